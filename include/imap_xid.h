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
 * Who says that a UID is stable: nobody needs to, it is at once.
 */
#define IMAP_XID_UID_SOURCE_LOCAL 0

/**
 * Who says that a UID is stable: another program, through the table.
 */
#define IMAP_XID_UID_SOURCE_TABLE 1

/**
 * Who says that a UID is stable: the cluster daemon.
 */
#define IMAP_XID_UID_SOURCE_CLUSTER 2

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
 * A mailbox in a mail root. Ended by imap_xid_box_close(). Several threads may use it at once.
 */
typedef struct imap_xid_box imap_xid_box;

/**
 * XIDs being found again for the messages of one mailbox. Made by imap_xid_recovery_begin(),
 * ended by imap_xid_recovery_free(). One thread at a time.
 */
typedef struct imap_xid_recovery imap_xid_recovery;

/**
 * A mail root: table, registry and journal of one folder. Ended by imap_xid_root_close(), which
 * may come before the end of its mailboxes. Several threads may use it at once; it does not
 * survive fork().
 */
typedef struct imap_xid_root imap_xid_root;

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

/**
 * What imap_xid_set_logger() takes: the level (0 information, 1 warning, 2 error), one line
 * without a line break, valid during the call, and the caller's own pointer.
 */
typedef void (*imap_xid_log_fn)(int32_t level, const char *text, void *context);

/**
 * How to open a mail root. Zero what you do not set.
 */
typedef struct imap_xid_root_options {
    /**
     * The folder, NUL-terminated; made with mode 0700 if it is missing. On a local disk.
     */
    const char *dir;
    /**
     * This node's namespace, NUL-terminated.
     */
    const char *ns;
    /**
     * IMAP_XID_UID_SOURCE_LOCAL, _TABLE or _CLUSTER.
     */
    uint32_t uid_source;
    /**
     * Must be 0.
     */
    uint32_t flags;
    /**
     * Must be 0.
     */
    uint32_t reserved;
} imap_xid_root_options;

/**
 * One message: UID, XID and GUID.
 */
typedef struct imap_xid_entry {
    /**
     * The UID, not 0.
     */
    uint32_t uid;
    /**
     * The XID's namespace.
     */
    const char *ns;
    /**
     * Octets of the namespace.
     */
    size_t ns_len;
    /**
     * The XID's number.
     */
    uint64_t number;
    /**
     * The message GUID as the host writes it; NULL when not known. Cut to 255 octets.
     */
    const char *guid;
    /**
     * Octets of the GUID; 0 when not known.
     */
    size_t guid_len;
} imap_xid_entry;

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

/**
 * Says where lines for the administrator go that no error code carries, such as that a broken
 * file was moved aside. For the whole process; NULL means standard error. The function is called
 * on threads that are inside a call of this library, and must not call it.
 *
 * The caller promises:
 * `logger` and `context` stay valid until they are replaced.
 */
void imap_xid_set_logger(imap_xid_log_fn logger,
                         void *context);

/**
 * Opens a mail root: makes the folder if it is missing and maps the table. The registry is
 * opened when it is first needed. A table that cannot be used is reported to the logger and done
 * without.
 *
 * Returns 0 and the root in `*out`, or an error.
 *
 * The caller promises:
 * `options` points to options whose texts are valid, `out` to room for a pointer.
 */
int32_t imap_xid_root_open(const struct imap_xid_root_options *options,
                           struct imap_xid_root **out);

/**
 * Ends a root. NULL is fine. Its mailboxes stay usable until they are closed themselves.
 *
 * The caller promises:
 * `root` is NULL or a root that is not used again.
 */
void imap_xid_root_close(struct imap_xid_root *root);

/**
 * Takes `count` consecutive numbers of this node's namespace, all above `above`, and stores the
 * first. To be called while the mailbox's append lock is held, with the highest number that the
 * mailbox ever had in this namespace, so that numbers ascend in the order in which messages
 * become visible. Most calls make no system call; one in about 4096 numbers makes a reservation
 * durable first (a few fsyncs). Numbers once taken are never taken again.
 *
 * Returns 0, or an error: then no message may be saved without its XID.
 *
 * The caller promises:
 * `root` is a root, `first_out` points to room for a number.
 */
int32_t imap_xid_numbers_take(struct imap_xid_root *root,
                              uint64_t above,
                              uint32_t count,
                              uint64_t *first_out);

/**
 * At least the highest number that this node has given out in its namespace, and nothing above
 * what was reserved. A client that knows a higher one knows another mailbox (spec part 4,
 * XIDRESET).
 *
 * Returns 0, or an error.
 *
 * The caller promises:
 * `root` is a root, `highest_given_out` points to room for a number.
 */
int32_t imap_xid_counter(struct imap_xid_root *root, uint64_t *highest_given_out);

/**
 * A mailbox of a root. Cheap: opens no file. `name` is NUL-terminated and may be NULL when not
 * known; uidvalidity may be 0 when not known. Recovery after the loss of an index that held the
 * mailbox's GUID goes by the name.
 *
 * Returns 0 and the mailbox in `*out`, or an error.
 *
 * The caller promises:
 * `root` is a root, `guid` points to 16 octets, `out` to room for a pointer.
 */
int32_t imap_xid_box_open(struct imap_xid_root *root,
                          const uint8_t *guid,
                          const char *name,
                          uint32_t uidvalidity,
                          struct imap_xid_box **out);

/**
 * Ends a mailbox. NULL is fine.
 *
 * The caller promises:
 * `xbox` is NULL or a mailbox that is not used again.
 */
void imap_xid_box_close(struct imap_xid_box *xbox);

/**
 * Notes the XIDs of new messages: one write(2) to the journal, no fsync, no SQLite.
 *
 * Returns 0, or an error. The messages must be saved all the same: nothing is lost, since
 * imap_xid_box_registered() will ask for them. Log it.
 *
 * The caller promises:
 * `xbox` is a mailbox, `entries` points to `n` entries whose texts are valid.
 */
int32_t imap_xid_box_note(struct imap_xid_box *xbox,
                          const struct imap_xid_entry *entries,
                          size_t n);

/**
 * Notes that messages were expunged: one write(2) to the journal. Without it their rows stay
 * until the mailbox is registered anew, which costs space and time but is not wrong as long as
 * answers are checked against the index.
 *
 * Returns 0, or an error that need not stop anything.
 *
 * The caller promises:
 * `xbox` is a mailbox, `uids` points to `n` UIDs.
 */
int32_t imap_xid_box_forget(struct imap_xid_box *xbox, const uint32_t *uids, size_t n);

/**
 * Notes that a mailbox was renamed: one write(2) to the journal. `name` is NUL-terminated.
 *
 * Returns 0, or an error; the new name is then learned at the next imap_xid_box_registered().
 *
 * The caller promises:
 * `root` is a root, `guid` points to 16 octets.
 */
int32_t imap_xid_root_renamed(struct imap_xid_root *root,
                              const uint8_t *guid,
                              const char *name);

/**
 * Notes that a mailbox was deleted with its messages: one write(2) to the journal. Their XIDs
 * are then not found again when a mailbox of the same name is made.
 *
 * Returns 0, or an error that need not stop anything.
 *
 * The caller promises:
 * `root` is a root, `guid` points to 16 octets.
 */
int32_t imap_xid_root_deleted(struct imap_xid_root *root, const uint8_t *guid);

/**
 * Asks which messages the registry may not know: stores the first such UID, or `next_uid` when
 * it knows all below. Takes the journal in. To be called before a look-up, and followed by
 * imap_xid_box_register() when something is missing. 1 means that the registry knows nothing for
 * sure (it is new, or the UIDVALIDITY has changed): then register with replace_all.
 *
 * Returns 0, or an error.
 *
 * The caller promises:
 * `xbox` is a mailbox, `first_missing_uid_out` points to room for a UID.
 */
int32_t imap_xid_box_registered(struct imap_xid_box *xbox,
                                uint32_t next_uid,
                                uint32_t *first_missing_uid_out);

/**
 * Makes the registry know what the index says. `entries` ascend by UID and are all messages that
 * the index has from the UID that imap_xid_box_registered() stored last up to covers_below_uid
 * (exclusive), with the XIDs they have there; or, with `replace_all` not 0, all messages of the
 * mailbox below covers_below_uid, where everything else that the registry says of the mailbox is
 * removed. An entry without a GUID keeps the GUID that the registry has for that XID.
 *
 * Written in transactions of 10,000 messages; stopped in between, the registry knows how far it
 * got.
 *
 * Returns 0, or an error.
 *
 * The caller promises:
 * `xbox` is a mailbox, `entries` points to `n` entries whose texts are valid.
 */
int32_t imap_xid_box_register(struct imap_xid_box *xbox,
                              const struct imap_xid_entry *entries,
                              size_t n,
                              uint32_t covers_below_uid,
                              uint32_t replace_all);

/**
 * The UID of an XID in the mailbox, as far as the registry knows: check that the index has this
 * XID there. A wrong answer means that the rows are stale: register with replace_all and ask
 * again.
 *
 * Returns 1 and stores the UID, 0 when the XID is not known, or an error. After
 * IMAP_XID_ERR_BROKEN begin again with imap_xid_box_registered().
 *
 * The caller promises:
 * `xbox` is a mailbox, `x` points to an XID, `uid_out` to room for a UID.
 */
int32_t imap_xid_box_lookup(struct imap_xid_box *xbox,
                            const struct imap_xid *x,
                            uint32_t *uid_out);

/**
 * What is new to a client with a plain state: the UIDs, ascending, of the messages whose number
 * is above the state's for their namespace. The state's mark plays no part. Check the UIDs
 * against the index; messages that were expunged may be among them.
 *
 * Returns 0 and a new array of `*n_out` UIDs in `*uids_out`, to be ended with
 * imap_xid_uids_free(), or an error. After IMAP_XID_ERR_BROKEN begin again with
 * imap_xid_box_registered().
 *
 * The caller promises:
 * `xbox` is a mailbox, `state` a state, `uids_out` and `n_out` point to room for their values.
 */
int32_t imap_xid_box_news(struct imap_xid_box *xbox,
                          const struct imap_xid_state *state,
                          uint32_t **uids_out,
                          size_t *n_out);

/**
 * Ends an array of UIDs. NULL is fine.
 *
 * The caller promises:
 * `uids` is NULL or an array that this library gave with this `n`, and is not used again.
 */
void imap_xid_uids_free(uint32_t *uids, size_t n);

/**
 * Begins to find XIDs again for messages of the mailbox that have none: their index was lost, or
 * they came without the plug-in.
 *
 * Returns 1 and the recovery in `*out`; or 0, and NULL there, when the registry knows nothing
 * that could apply, so that no GUID need be read; or an error.
 *
 * The caller promises:
 * `xbox` is a mailbox, `out` points to room for a pointer.
 */
int32_t imap_xid_recovery_begin(struct imap_xid_box *xbox,
                                struct imap_xid_recovery **out);

/**
 * Says that a message of the mailbox has this XID already, so that it is not given to another.
 * Or look each XID that imap_xid_recovery_take() gives up in the index, and take once more when
 * it is there: what was taken is not given again.
 *
 * Returns 0, or an error.
 *
 * The caller promises:
 * `recovery` is a recovery, `x` points to an XID.
 */
int32_t imap_xid_recovery_exclude(struct imap_xid_recovery *recovery,
                                  const struct imap_xid *x);

/**
 * The XID of the message with this GUID. To be called in UID order: of copies that share a GUID
 * the first gets the XID of the first.
 *
 * Returns 1 and the XID in `*out`, which borrows from the recovery until it is freed; or 0 when
 * there is none (left); or an error. After IMAP_XID_ERR_BROKEN begin again.
 *
 * The caller promises:
 * `recovery` is a recovery, `guid` points to `guid_len` octets, `out` to room for an XID.
 */
int32_t imap_xid_recovery_take(struct imap_xid_recovery *recovery,
                               const char *guid,
                               size_t guid_len,
                               struct imap_xid *out);

/**
 * The XID of the message that had both this GUID and this UID. To be called for all messages
 * before imap_xid_recovery_take() is called for those that are left: the mailbox may have held
 * other copies with the same GUID, whose XIDs are not theirs.
 *
 * Returns as imap_xid_recovery_take().
 *
 * The caller promises:
 * `recovery` is a recovery, `guid` points to `guid_len` octets, `out` to room for an XID.
 */
int32_t imap_xid_recovery_take_at(struct imap_xid_recovery *recovery,
                                  const char *guid,
                                  size_t guid_len,
                                  uint32_t uid,
                                  struct imap_xid *out);

/**
 * Ends a recovery. NULL is fine.
 *
 * The caller promises:
 * `recovery` is NULL or a recovery that is not used again.
 */
void imap_xid_recovery_free(struct imap_xid_recovery *recovery);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* IMAP_XID_H */
