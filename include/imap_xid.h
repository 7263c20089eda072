/* imap-xid: XIDs for IMAP, the C interface.
 *
 * Generated from src/ffi; do not edit. `IMAP_XID_BLESS=1 cargo test --test header` writes it anew.
 *
 * Conventions:
 * - Functions that return int32_t return >= 0 on success and a negative value of
 *   enum imap_xid_error on failure; imap_xid_last_error() then has the words.
 * - Texts are (pointer, octets) and need no NUL, unless a function says so.
 * - A handle is ended by its own _free or _close function, which takes NULL, too. What a function
 *   lends (it "borrows") is valid until the handle that it came from is ended or changed.
 * - Sets, states and recoveries belong to one thread at a time; roots and boxes may be used by
 *   several threads at once. No handle survives fork(): open it in the child.
 * - No function exits, aborts, or starts a thread that outlives it. A defect inside is caught and
 *   reported as IMAP_XID_ERR_INTERNAL.
 */

#ifndef IMAP_XID_H
#define IMAP_XID_H

#include <stddef.h>
#include <stdint.h>

/**
 * The version of this interface. It grows when a struct or a function changes its meaning; new
 * functions alone do not change it.
 */
#define IMAP_XID_ABI_VERSION 1

/**
 * Room for the longest XID (63 octets of namespace, "-", 19 digits) and a NUL.
 */
#define IMAP_XID_SIZE 84

/**
 * Room for the longest namespace and a NUL.
 */
#define IMAP_XID_NAMESPACE_SIZE 64

/**
 * What went wrong, as the negative value that the functions return. imap_xid_last_error() has
 * the words.
 */
typedef enum imap_xid_error {
    /**
     * The caller broke the interface's rules: a NULL where a pointer is due, a length that
     * cannot be, a number outside its range.
     */
    IMAP_XID_ERR_ARGUMENT = -1,
    /**
     * A text from outside (client, setting) does not fit its grammar. The words say what was
     * expected and may be shown to the client after BAD.
     */
    IMAP_XID_ERR_SYNTAX = -2,
    /**
     * The caller's buffer is too small.
     */
    IMAP_XID_ERR_SPACE = -3,
    /**
     * The operating system refused to read, write or map a file.
     */
    IMAP_XID_ERR_IO = -4,
    /**
     * The disk or the quota is full. Nothing that was stored before is lost.
     */
    IMAP_XID_ERR_FULL = -5,
    /**
     * Another process held a lock for longer than we wait.
     */
    IMAP_XID_ERR_BUSY = -6,
    /**
     * A file was written by a newer imap-xid than this one. It is left alone.
     */
    IMAP_XID_ERR_NEWER = -7,
    /**
     * A file was broken or is not ours. It was moved aside; try once more.
     */
    IMAP_XID_ERR_BROKEN = -8,
    /**
     * The numbers of this namespace are used up (2^23 incarnations).
     */
    IMAP_XID_ERR_EXHAUSTED = -9,
    /**
     * A defect of imap-xid itself: a panic was caught. The caller should stop to use the
     * library for this session.
     */
    IMAP_XID_ERR_INTERNAL = -10,
} imap_xid_error;

/**
 * A parsed set of XIDs. Made by imap_xid_set_parse(), ended by imap_xid_set_free().
 */
typedef struct imap_xid_set imap_xid_set;

/**
 * A known state: the highest number of each namespace and perhaps a mark. Made by
 * imap_xid_state_new(), ended by imap_xid_state_free(). One thread at a time.
 */
typedef struct imap_xid_state imap_xid_state;

/**
 * An XID. It borrows its namespace: the function that fills one in says from where, and for how
 * long that is valid.
 */
typedef struct imap_xid {
    /**
     * The namespace, 1 to 63 octets, not NUL-terminated.
     */
    const char *ns;
    /**
     * Octets of the namespace.
     */
    size_t ns_len;
    /**
     * The number, 1 to 2^63-1.
     */
    uint64_t number;
} imap_xid;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * The version of the interface that the library was built with. A caller compares it with the
 * IMAP_XID_ABI_VERSION of the header that it was compiled against.
 */
uint32_t imap_xid_abi_version(void);

/**
 * What the last failed call on this thread says about its failure: what, whose, what to do. Not
 * cleared by calls that succeed.
 *
 * Returns a NUL-terminated text, never NULL. It belongs to the library and is valid until the
 * next failing call on the same thread.
 */
const char *imap_xid_last_error(void);

/**
 * Parses one XID, `namespace "-" number` (spec part 1).
 *
 * Returns 0, or IMAP_XID_ERR_SYNTAX. On success `*out` borrows the namespace from `s`.
 *
 * The caller promises:
 * `s` points to `len` octets, `out` to room for a struct imap_xid.
 */
int32_t imap_xid_parse(const char *s, size_t len, struct imap_xid *out);

/**
 * Writes an XID as text with a NUL behind it. IMAP_XID_SIZE octets are always enough.
 *
 * Returns the length without the NUL, or IMAP_XID_ERR_SPACE (nothing written) or
 * IMAP_XID_ERR_ARGUMENT (it is no XID).
 *
 * The caller promises:
 * `x` points to an XID whose namespace is valid, `out` to `out_size` octets.
 */
int32_t imap_xid_format(const struct imap_xid *x, char *out, size_t out_size);

/**
 * Checks a namespace, such as the setting xid_namespace, against the grammar of spec part 1.
 *
 * Returns 0, or IMAP_XID_ERR_SYNTAX.
 *
 * The caller promises:
 * `ns` points to `len` octets.
 */
int32_t imap_xid_namespace_check(const char *ns, size_t len);

/**
 * The default of xid_namespace: the host's name up to the first dot, "_" in place of what the
 * grammar does not have, "n" in front when it does not begin with a letter, 63 octets at most.
 * Written with a NUL behind it; IMAP_XID_NAMESPACE_SIZE octets are always enough.
 *
 * Returns the length without the NUL, or IMAP_XID_ERR_SYNTAX when the host has no name.
 *
 * The caller promises:
 * `host` points to `len` octets, `out` to `out_size` octets.
 */
int32_t imap_xid_namespace_from_host(const char *host, size_t len, char *out, size_t out_size);

/**
 * Parses a set of XIDs, `xid *("," xid)` (spec part 3). Ranges and "*" are syntax errors.
 *
 * Returns 0 and a new set in `*out`, or IMAP_XID_ERR_SYNTAX. The set copies the text; end it
 * with imap_xid_set_free().
 *
 * The caller promises:
 * `s` points to `len` octets, `out` to room for a pointer.
 */
int32_t imap_xid_set_parse(const char *s, size_t len, struct imap_xid_set **out);

/**
 * How many XIDs were written in the set, repetitions included. 0 for NULL.
 *
 * The caller promises:
 * `set` is NULL or a set.
 */
size_t imap_xid_set_count(const struct imap_xid_set *set);

/**
 * The XID at position `i`, from 0, in the order in which the set was written.
 *
 * Returns 0, or IMAP_XID_ERR_ARGUMENT behind the end. `*out` borrows from the set.
 *
 * The caller promises:
 * `set` is a set, `out` points to room for a struct imap_xid.
 */
int32_t imap_xid_set_get(const struct imap_xid_set *set, size_t i, struct imap_xid *out);

/**
 * Ends a set. NULL is fine.
 *
 * The caller promises:
 * `set` is NULL or a set that is not used again.
 */
void imap_xid_set_free(struct imap_xid_set *set);

/**
 * A new known state that knows nothing (spec part 4).
 *
 * Returns 0 and the state in `*out`; end it with imap_xid_state_free().
 *
 * The caller promises:
 * `out` points to room for a pointer.
 */
int32_t imap_xid_state_new(struct imap_xid_state **out);

/**
 * Adds one item of a client's state: an XID or a mark ("@" UIDVALIDITY "-" UID). Of a namespace
 * named twice the highest number counts.
 *
 * Returns 0, or IMAP_XID_ERR_SYNTAX (a second mark is one, too); the state is then unchanged.
 *
 * The caller promises:
 * `state` is a state, `item` points to `len` octets.
 */
int32_t imap_xid_state_add(struct imap_xid_state *state,
                           const char *item,
                           size_t len);

/**
 * The highest number that the state knows of a namespace; 0 when it does not name it.
 *
 * The caller promises:
 * `state` is NULL or a state, `ns` points to `ns_len` octets.
 */
uint64_t imap_xid_state_number(const struct imap_xid_state *state,
                               const char *ns,
                               size_t ns_len);

/**
 * How many namespaces the state names. 0 for NULL.
 *
 * The caller promises:
 * `state` is NULL or a state.
 */
size_t imap_xid_state_count(const struct imap_xid_state *state);

/**
 * The mark of the state, if it has one.
 *
 * Returns 1 and fills both in, or 0.
 *
 * The caller promises:
 * `state` is a state, `uidvalidity` and `uid` point to room for their values.
 */
int32_t imap_xid_state_mark(const struct imap_xid_state *state,
                            uint32_t *uidvalidity,
                            uint32_t *uid);

/**
 * Ends a state. NULL is fine.
 *
 * The caller promises:
 * `state` is NULL or a state that is not used again.
 */
void imap_xid_state_free(struct imap_xid_state *state);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* IMAP_XID_H */
