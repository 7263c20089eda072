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
 * Room for the longest message GUID and a NUL.
 */
#define IMAP_XID_GUID_SIZE 256

/**
 * Room for a mailbox name and a NUL; longer ones are cut.
 */
#define IMAP_XID_NAME_SIZE 256

/**
 * Buckets of the histogram of waits: up to 1, 3, 10, 30, 100, 300 milliseconds, 1, 3, 10, 30,
 * 100, 300 seconds, and longer.
 */
#define IMAP_XID_WAIT_BUCKETS 13

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
 * A mail root's table as an assigner uses it, who says which UIDs are stable. Made by
 * imap_xid_table_open(), ended by imap_xid_table_close(). One thread at a time.
 */
typedef struct imap_xid_table imap_xid_table;

/**
 * What wakes a process that waits in an event loop. Made by imap_xid_waiter_open(), ended by
 * imap_xid_waiter_close().
 */
typedef struct imap_xid_waiter imap_xid_waiter;

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
     * IMAP_XID_UID_SOURCE_LOCAL, _TABLE or _CLUSTER; the same for all processes. LOCAL forgets
     * the watermarks that the others keep.
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

/**
 * A wait that was announced with imap_xid_box_wait_begin(). Its fields are the library's.
 */
typedef struct imap_xid_wait {
    /**
     * The library's own.
     */
    uint32_t index;
    /**
     * Not used.
     */
    uint32_t reserved;
    /**
     * When it began, in milliseconds since the boot.
     */
    uint64_t since;
} imap_xid_wait;

/**
 * What the table says of a mailbox.
 */
typedef struct imap_xid_table_box {
    /**
     * The mailbox GUID.
     */
    uint8_t guid[16];
    /**
     * What all UIDs here are of.
     */
    uint32_t uidvalidity;
    /**
     * Every UID up to here is stable.
     */
    uint32_t watermark;
    /**
     * The highest UID that is known to be given: no advance goes above it.
     */
    uint32_t last_uid;
    /**
     * Messages above the watermark.
     */
    uint32_t pending;
    /**
     * Not 0: some of them may be missing from the table until a host process next opens the
     * mailbox, since the one that committed them was killed.
     */
    uint32_t missing;
    /**
     * Commands that wait for UIDs.
     */
    uint32_t waiters;
    /**
     * Up to here the node promised to renumber nothing; UINT32_MAX: everything counts.
     */
    uint32_t promised;
    /**
     * The highest UID that a new message may get; 0: not known since the boot.
     */
    uint32_t limit;
    /**
     * The highest UID that replication may bring; 0: not known since the boot.
     */
    uint32_t bound;
    /**
     * Not used.
     */
    uint32_t reserved;
    /**
     * For how many milliseconds the lowest pending UID has been pending; -1: nothing is.
     */
    int64_t oldest_pending_ms;
    /**
     * For how many milliseconds the first of the waiters has waited; -1: none.
     */
    int64_t oldest_wait_ms;
    /**
     * For how many more milliseconds the gate is closed; 0: it is open.
     */
    uint64_t gate_ms;
    /**
     * For how many more milliseconds the mailbox is on hold; 0: it is not.
     */
    uint64_t hold_ms;
    /**
     * The name, NUL-terminated, as it was when the mailbox was last opened.
     */
    char name[IMAP_XID_NAME_SIZE];
} imap_xid_table_box;

/**
 * A message whose UID is not stable.
 */
typedef struct imap_xid_pending {
    /**
     * Its UID.
     */
    uint32_t uid;
    /**
     * Octets of the GUID; 0 when it is not known.
     */
    uint32_t guid_len;
    /**
     * The number of its XID; 0 when it has none.
     */
    uint64_t number;
    /**
     * For how many milliseconds it has been pending.
     */
    int64_t age_ms;
    /**
     * The namespace of its XID, NUL-terminated.
     */
    char ns[IMAP_XID_NAMESPACE_SIZE];
    /**
     * The message GUID, NUL-terminated.
     */
    char guid[IMAP_XID_GUID_SIZE];
} imap_xid_pending;

/**
 * What an operator watches, since the table was made (a boot, mostly).
 */
typedef struct imap_xid_counters {
    /**
     * Mailboxes in the table.
     */
    uint64_t mailboxes;
    /**
     * Messages whose UIDs are not stable, in all mailboxes.
     */
    uint64_t pending;
    /**
     * Waits for UIDs that ended, however they did.
     */
    uint64_t waits;
    /**
     * Those of them that ended by their time-out.
     */
    uint64_t timeouts;
    /**
     * Commits that waited for a gate.
     */
    uint64_t gate_waits;
    /**
     * Commits that waited for UIDs, since there were as many that are not stable as can be.
     */
    uint64_t limit_waits;
    /**
     * Commits that were refused since they would have changed what is stable or promised.
     */
    uint64_t refusals;
    /**
     * Times that a watermark rose.
     */
    uint64_t advances;
    /**
     * Repairs after a process was killed while it changed the table.
     */
    uint64_t repairs;
    /**
     * Milliseconds of all waits together.
     */
    uint64_t wait_ms;
    /**
     * Waits by how long they took.
     */
    uint64_t wait_buckets[IMAP_XID_WAIT_BUCKETS];
} imap_xid_counters;

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
 * Notes that other nodes expunged these messages, which were stable there, so that this one can say
 * so when those nodes are away. The UIDs of the entries do not matter, but are not 0.
 *
 * Returns 0, or an error that need not stop anything.
 *
 * The caller promises:
 * `xbox` is a mailbox, `entries` points to `n` entries.
 */
int32_t imap_xid_box_gone_elsewhere(struct imap_xid_box *xbox,
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
 * [`imap_xid_box_forget`] of messages that never were stable, whatever the watermark is by now: the
 * cluster daemon had them moved to other UIDs, or to another mailbox.
 *
 * Returns 0, or an error that need not stop anything.
 *
 * The caller promises:
 * `xbox` is a mailbox, `uids` points to `n` UIDs.
 */
int32_t imap_xid_box_forget_moved(struct imap_xid_box *xbox,
                                  const uint32_t *uids,
                                  size_t n);

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

/**
 * Whether the table has the mailbox's watermark, so that imap_xid_box_attach() takes none from
 * `last_uid`. Loads only. Returns 1 or 0, or an error; 0 where the root's uid_source is local.
 *
 * The caller promises:
 * `xbox` is a mailbox.
 */
int32_t imap_xid_box_has_place(const struct imap_xid_box *xbox);

/**
 * Gives the mailbox its place in the table. Needed before any other call on its watermark; again
 * whenever the mailbox was opened anew. `last_uid` is the highest UID that was ever given in the
 * mailbox (its UIDNEXT - 1), also by others: a mailbox without a watermark starts there, with all
 * that it holds as stable; in a cluster it starts at 0, with nothing stable. The box must have
 * been opened with its UIDVALIDITY, and its root with a uid_source other than local.
 *
 * Returns 0, or 1 when messages above the watermark may be missing from the table (after a
 * reboot, or because a process was killed right after its commit): then add all messages above
 * imap_xid_box_watermark() with imap_xid_box_pending_add(), and say imap_xid_box_pending_filled().
 * Or an error: then no UID above the last known watermark may be shown.
 *
 * The caller promises:
 * `xbox` is a mailbox.
 */
int32_t imap_xid_box_attach(struct imap_xid_box *xbox,
                            uint32_t last_uid);

/**
 * The watermark: every UID up to it is stable. A few loads; no lock, no system call. It never
 * goes down under one UIDVALIDITY. 0 when the mailbox was not attached.
 *
 * The caller promises:
 * `xbox` is a mailbox.
 */
uint32_t imap_xid_box_watermark(const struct imap_xid_box *xbox);

/**
 * Tells the table of messages that were just committed and whose UIDs are not stable, in the
 * order of their UIDs. Those at or below the watermark and those that are there already are
 * passed over.
 *
 * Returns 0; or 1 when messages above the watermark may be missing, as imap_xid_box_attach() does
 * and with the same answer; or an error: the messages stay committed all the same, their UIDs
 * wait, and imap_xid_box_attach() will ask for them.
 *
 * The caller promises:
 * `xbox` is a mailbox, `entries` points to `n` entries whose texts are valid.
 */
int32_t imap_xid_box_pending_add(struct imap_xid_box *xbox,
                                 const struct imap_xid_entry *entries,
                                 size_t n);

/**
 * Says that every message up to last_uid was added, or is expunged: the answer to a 1 of
 * imap_xid_box_attach().
 *
 * Returns 0, or an error.
 *
 * The caller promises:
 * `xbox` is a mailbox.
 */
int32_t imap_xid_box_pending_filled(struct imap_xid_box *xbox, uint32_t last_uid);

/**
 * Takes a message out of the pending ones that was expunged.
 *
 * Returns 1, 0 when it was not pending, or an error that need not stop anything.
 *
 * The caller promises:
 * `xbox` is a mailbox.
 */
int32_t imap_xid_box_pending_remove(struct imap_xid_box *xbox, uint32_t uid);

/**
 * The lowest UID that is not stable, and for how many milliseconds it has been so.
 *
 * Returns 1 and stores both, 0 when nothing is pending, or an error.
 *
 * The caller promises:
 * `xbox` is a mailbox, `uid_out` and `age_ms_out` point to room for their values.
 */
int32_t imap_xid_box_oldest_pending(struct imap_xid_box *xbox,
                                    uint32_t *uid_out,
                                    int64_t *age_ms_out);

/**
 * Sleeps until every UID up to `uid` is stable, `timeout_ms` at most. For programs without an
 * event loop; others use imap_xid_waiter_open().
 *
 * Returns 1 when it is so, 0 when the time is over or a signal came before (look at the clock),
 * or an error.
 *
 * The caller promises:
 * `xbox` is a mailbox.
 */
int32_t imap_xid_box_wait(struct imap_xid_box *xbox,
                          uint32_t uid,
                          uint32_t timeout_ms);

/**
 * Announces that a command of this process waits for `uid`, so that operators and assigners see
 * it. To be paired with imap_xid_box_wait_end(); what a killed process leaves is forgotten. A
 * wait that cannot be announced is a wait all the same.
 *
 * Returns 0, or an error that need not stop anything.
 *
 * The caller promises:
 * `xbox` is a mailbox, `out` points to room for a struct imap_xid_wait.
 */
int32_t imap_xid_box_wait_begin(struct imap_xid_box *xbox,
                                uint32_t uid,
                                struct imap_xid_wait *out);

/**
 * Ends an announced wait and counts it; `timed_out` not 0 when it ended by its time. One that
 * could not be announced is passed over.
 *
 * Returns 0, or an error that need not stop anything.
 *
 * The caller promises:
 * `xbox` is the mailbox of the wait, `wait` points to what imap_xid_box_wait_begin() stored.
 */
int32_t imap_xid_box_wait_end(struct imap_xid_box *xbox,
                              const struct imap_xid_wait *wait,
                              uint32_t timed_out);

/**
 * Whether new commits to the mailbox must wait: its gate is closed. A load when it is not.
 *
 * Returns 0 when the gate is open, else for how many more milliseconds it is closed at most, or an
 * error, which counts as open.
 *
 * The caller promises:
 * `xbox` is a mailbox.
 */
int32_t imap_xid_box_gate(const struct imap_xid_box *xbox);

/**
 * Counts a commit that found the mailbox's gate closed and waits in its own event loop: for
 * imap_xid_box_gate() to return 0, which an imap_xid_waiter tells of unless the lease ran out.
 *
 * Returns 0, or an error.
 *
 * The caller promises:
 * `xbox` is a mailbox.
 */
int32_t imap_xid_box_gate_found_closed(struct imap_xid_box *xbox);

/**
 * Whether the gate of some mailbox of the root may be closed: then imap_xid_box_gate() tells of
 * which. A load when none ever was.
 *
 * Returns 0 when all are open, 1 when one may be closed, or an error, which counts as open.
 *
 * The caller promises:
 * `root` is a root.
 */
int32_t imap_xid_root_gates(const struct imap_xid_root *root);

/**
 * Sleeps until the mailbox's gate is open, by hand or because its lease is over, `timeout_ms` at
 * most; counts the wait if there is one. Hold no lock meanwhile.
 *
 * Returns 1 when it is open, 0 when the time is over or a signal came before, or an error, which
 * counts as open.
 *
 * The caller promises:
 * `xbox` is a mailbox.
 */
int32_t imap_xid_box_gate_wait(struct imap_xid_box *xbox,
                               uint32_t timeout_ms);

/**
 * Up to which UID this node promised its peers to renumber nothing. UINT32_MAX: not known since
 * the boot, so everything counts as promised. Loads only.
 *
 * The caller promises:
 * `xbox` is a mailbox.
 */
uint32_t imap_xid_box_promised(const struct imap_xid_box *xbox);

/**
 * Notes in the table that this node promises to renumber nothing up to `uid`; a lower one than
 * before takes back, and what was expunged above it was not stable. For the cluster daemon's side,
 * under the mailbox's own rules for it.
 *
 * Returns 0, or an error: then nothing was promised that was not before.
 *
 * The caller promises:
 * `xbox` is a mailbox.
 */
int32_t imap_xid_box_promise(struct imap_xid_box *xbox,
                             uint32_t uid);

/**
 * The highest UID that the table knows to be given in the mailbox; 0 when it was not attached.
 * A load.
 *
 * The caller promises:
 * `xbox` is a mailbox.
 */
uint32_t imap_xid_box_last_uid(const struct imap_xid_box *xbox);

/**
 * The highest UID that a new message may get here. 0: nobody said so yet; in a cluster there is no
 * room for new messages until the daemon does. Loads only.
 *
 * The caller promises:
 * `xbox` is a mailbox.
 */
uint32_t imap_xid_box_limit(const struct imap_xid_box *xbox);

/**
 * The highest UID that replication may bring here. 0: not known since the boot. Loads only.
 *
 * The caller promises:
 * `xbox` is a mailbox.
 */
uint32_t imap_xid_box_bound(const struct imap_xid_box *xbox);

/**
 * Says how far UIDs may go, of new messages (limit) and by replication (bound); 0: not known.
 * Wakes who waits for room. For the cluster daemon's side. Lost with a reboot; the limit then is a
 * little above the watermark.
 *
 * Returns 0, or an error.
 *
 * The caller promises:
 * `xbox` is a mailbox.
 */
int32_t imap_xid_box_set_limits(struct imap_xid_box *xbox,
                                uint32_t limit,
                                uint32_t bound);

/**
 * Sleeps until somebody said that new messages may have UIDs up to `uid`, `timeout_ms` at most; counts the wait if
 * there is one. Hold no lock meanwhile.
 *
 * Returns 1 when they may, 0 when the time is over or a signal came before, or an error, which
 * counts as 1.
 *
 * The caller promises:
 * `xbox` is a mailbox.
 */
int32_t imap_xid_box_limit_wait(struct imap_xid_box *xbox,
                                uint32_t uid,
                                uint32_t timeout_ms);

/**
 * Counts a commit that was refused since it would have changed what is stable or promised.
 *
 * Returns 0, or an error that need not stop anything.
 *
 * The caller promises:
 * `xbox` is a mailbox.
 */
int32_t imap_xid_box_count_refusal(struct imap_xid_box *xbox);

/**
 * As imap_xid_table_advance(), for a mailbox at hand: makes every UID up to `uid` stable,
 * durably, and wakes who waits for them. The watermark never goes down.
 *
 * Returns as imap_xid_table_advance().
 *
 * The caller promises:
 * `xbox` is a mailbox.
 */
int32_t imap_xid_box_advance(struct imap_xid_box *xbox, uint32_t uid);

/**
 * Closes the mailbox's gate: new commits wait, for `lease_ms` milliseconds from now at most; 0
 * opens it. `owner` says who: any number but 0 that the same program uses again, from whichever
 * of its processes. Call again before the lease ends to go on.
 *
 * Returns 0, or an error: IMAP_XID_ERR_BUSY when another owner closed it.
 *
 * The caller promises:
 * `xbox` is a mailbox.
 */
int32_t imap_xid_box_close_gate(struct imap_xid_box *xbox,
                                uint64_t owner,
                                uint64_t lease_ms);

/**
 * Makes something for an event loop to watch: from here on it is readable after every advance of
 * any mailbox in the root, and whenever a gate opens. One for each process and root does; keep it
 * only while something waits. Look at the watermark once after this call, for an advance that
 * came before. Starts no thread.
 *
 * Returns 0 and the waiter in `*out`, or an error.
 *
 * The caller promises:
 * `root` is a root, `out` points to room for a pointer.
 */
int32_t imap_xid_waiter_open(struct imap_xid_root *root,
                             struct imap_xid_waiter **out);

/**
 * The descriptor to watch for reading. It belongs to the waiter.
 *
 * The caller promises:
 * `waiter` is a waiter.
 */
int32_t imap_xid_waiter_fd(const struct imap_xid_waiter *waiter);

/**
 * To be called when the descriptor is readable, before looking at the watermarks.
 *
 * Returns 0, or 1 when the waiter will not be woken any more since somebody removed its file:
 * close it and open another.
 *
 * The caller promises:
 * `waiter` is a waiter.
 */
int32_t imap_xid_waiter_drain(struct imap_xid_waiter *waiter);

/**
 * Ends a waiter. NULL is fine. Stop watching its descriptor before.
 *
 * The caller promises:
 * `waiter` is NULL or a waiter that is not used again.
 */
void imap_xid_waiter_close(struct imap_xid_waiter *waiter);

/**
 * Whether a command with this set of UIDs (as "1:4,9,12:*") must wait. `last_uid` is the UID of
 * the last message that is there as the command comes. Sets that hosts accept beyond the grammar
 * are judged too.
 *
 * Returns 0 when it need not, or 1 and stores until the watermark is at which UID; or
 * IMAP_XID_ERR_SYNTAX.
 *
 * The caller promises:
 * `set` points to `len` octets, `wait_for_uid_out` to room for a UID.
 */
int32_t imap_xid_uidset_reach(const char *set,
                              size_t len,
                              uint32_t watermark,
                              uint32_t last_uid,
                              uint32_t *wait_for_uid_out);

/**
 * Cuts a set of UIDs down to what was there when the last message had the UID `last_uid`: "*"
 * becomes that UID, what lies above goes. What came while a command waited is then not its
 * business. Stores the set as text, NUL-terminated; "" when nothing is left of it.
 *
 * Returns the octets without the NUL, IMAP_XID_ERR_SPACE when `out` is too small (6 octets for
 * each octet of the set and 1 are always enough), or IMAP_XID_ERR_SYNTAX.
 *
 * The caller promises:
 * `set` points to `len` octets, `out` to `out_size` octets of room.
 */
int32_t imap_xid_uidset_clamp(const char *set,
                              size_t len,
                              uint32_t last_uid,
                              char *out,
                              size_t out_size);

/**
 * Opens a mail root's table for an assigner. `dir` is NUL-terminated and must exist.
 *
 * Returns 0 and the table in `*out`, or an error.
 *
 * The caller promises:
 * `dir` is a C string, `out` points to room for a pointer.
 */
int32_t imap_xid_table_open(const char *dir, struct imap_xid_table **out);

/**
 * Ends a table. NULL is fine.
 *
 * The caller promises:
 * `table` is NULL or a table that is not used again.
 */
void imap_xid_table_close(struct imap_xid_table *table);

/**
 * Gives the mailboxes of the table one by one: those that were opened since the boot. After the
 * last one comes a 0, and then the first one again.
 *
 * Returns 1 and stores a mailbox, 0 after the last, or an error.
 *
 * The caller promises:
 * `table` is a table, `out` points to room for a struct imap_xid_table_box.
 */
int32_t imap_xid_table_next(struct imap_xid_table *table,
                            struct imap_xid_table_box *out);

/**
 * One mailbox of the table.
 *
 * Returns 1 and stores it, 0 when the table does not have it, or an error.
 *
 * The caller promises:
 * `table` is a table, `guid` points to 16 octets, `out` to room for a struct imap_xid_table_box.
 */
int32_t imap_xid_table_find(struct imap_xid_table *table,
                            const uint8_t *guid,
                            struct imap_xid_table_box *out);

/**
 * Gives what is pending in a mailbox, by ascending UID: the messages with UIDs above `above`, at
 * most `room` of them. Ask again with the last UID for more.
 *
 * Returns how many were stored (0: there are no more), or an error.
 *
 * The caller promises:
 * `table` is a table, `guid` points to 16 octets, `out` to room for `room` entries.
 */
int32_t imap_xid_table_pending(struct imap_xid_table *table,
                               const uint8_t *guid,
                               uint32_t above,
                               struct imap_xid_pending *out,
                               size_t room);

/**
 * Makes every UID of a mailbox up to `uid` stable, durably, and wakes who waits for them. The
 * watermark never goes down. A UID above the highest that was given is refused; so is a mailbox
 * that is on hold.
 *
 * Returns 1 when the watermark rose, 0 when it was there or above already, or an error.
 *
 * The caller promises:
 * `table` is a table, `guid` points to 16 octets.
 */
int32_t imap_xid_table_advance(struct imap_xid_table *table,
                               const uint8_t *guid,
                               uint32_t uid);

/**
 * Holds a mailbox: no advance, whoever's, is allowed for `lease_ms` milliseconds from now; 0
 * releases it, whoever holds it. Call again before the lease ends to go on.
 *
 * Returns 0, or an error: IMAP_XID_ERR_BUSY when another process holds it.
 *
 * The caller promises:
 * `table` is a table, `guid` points to 16 octets.
 */
int32_t imap_xid_table_hold(struct imap_xid_table *table,
                            const uint8_t *guid,
                            uint64_t lease_ms);

/**
 * Closes a mailbox's gate: new commits wait, for `lease_ms` milliseconds from now at most; 0
 * opens it, whoever closed it. Call again before the lease ends to go on.
 *
 * Returns 0, or an error: IMAP_XID_ERR_BUSY when another process closed it.
 *
 * The caller promises:
 * `table` is a table, `guid` points to 16 octets.
 */
int32_t imap_xid_table_gate(struct imap_xid_table *table,
                            const uint8_t *guid,
                            uint64_t lease_ms);

/**
 * Notes that this node promises to renumber nothing up to `uid` in a mailbox; a lower one than
 * before takes back.
 *
 * Returns 0, or an error: then nothing was promised.
 *
 * The caller promises:
 * `table` is a table, `guid` points to 16 octets.
 */
int32_t imap_xid_table_promise(struct imap_xid_table *table,
                               const uint8_t *guid,
                               uint32_t uid);

/**
 * Says how far UIDs may go in a mailbox, of new messages (limit) and by replication (bound); 0:
 * not known. Wakes who waits for room. Lost with a reboot.
 *
 * Returns 0, or an error.
 *
 * The caller promises:
 * `table` is a table, `guid` points to 16 octets.
 */
int32_t imap_xid_table_set_limits(struct imap_xid_table *table,
                                  const uint8_t *guid,
                                  uint32_t limit,
                                  uint32_t bound);

/**
 * Sleeps until messages became pending in any mailbox since the last call (or since the table
 * was opened), `timeout_ms` at most.
 *
 * Returns 1 when some did, 0 when the time is over or a signal came before, or an error.
 *
 * The caller promises:
 * `table` is a table.
 */
int32_t imap_xid_table_wait(struct imap_xid_table *table, uint32_t timeout_ms);

/**
 * Stores the table's counters.
 *
 * Returns 0, or an error.
 *
 * The caller promises:
 * `table` is a table, `out` points to room for a struct imap_xid_counters.
 */
int32_t imap_xid_table_counters(struct imap_xid_table *table, struct imap_xid_counters *out);

/**
 * Gives what is pending in the mailbox, by ascending UID: the messages with UIDs above `above`,
 * at most `room` of them. Ask again with the last UID for more.
 *
 * Returns how many were stored (0: there are no more), or an error.
 *
 * The caller promises:
 * `xbox` is a mailbox, `out` points to room for `room` entries.
 */
int32_t imap_xid_box_pending(struct imap_xid_box *xbox,
                             uint32_t above,
                             struct imap_xid_pending *out,
                             size_t room);

/**
 * Gives what the registry knows of the mailbox's messages, by ascending UID: those with UIDs
 * above `above`, at most `room` of them. Ask again with the last UID for more. Check them against
 * the index: a message may be gone, or have another XID by now. Their age is not known: -1.
 *
 * Returns how many were stored (0: there are no more), or an error.
 *
 * The caller promises:
 * `xbox` is a mailbox, `out` points to room for `room` entries.
 */
int32_t imap_xid_box_rows(struct imap_xid_box *xbox,
                          uint32_t above,
                          struct imap_xid_pending *out,
                          size_t room);

/**
 * Gives what the registry knows of messages with this GUID in the mailbox, at most `room` of
 * them, in no order: there are several where a client copied a message within the mailbox. Check
 * them against the index. Their age is not known: -1.
 *
 * Returns how many were stored, or an error.
 *
 * The caller promises:
 * `xbox` is a mailbox, `guid` points to `guid_len` octets, `out` to room for `room` entries.
 */
int32_t imap_xid_box_by_guid(struct imap_xid_box *xbox,
                             const char *guid,
                             size_t guid_len,
                             struct imap_xid_pending *out,
                             size_t room);

/**
 * Whether a message with this GUID is in the mailbox, or was and is remembered, see
 * imap_xid_box_expunged().
 *
 * Returns 1 when it is or was, 0 when nothing is known of one, or an error.
 *
 * The caller promises:
 * `xbox` is a mailbox, `guid` points to `guid_len` octets.
 */
int32_t imap_xid_box_had(struct imap_xid_box *xbox, const char *guid, size_t guid_len);

/**
 * The lowest UID at which a message with this GUID was expunged from the mailbox while it was
 * stable, or promised. That is remembered only in roots whose uid_source is not local, and for the last 50,000
 * expunged messages of a root.
 *
 * Returns 1 and stores the UID, 0 when nothing is known of one, or an error.
 *
 * The caller promises:
 * `xbox` is a mailbox, `guid` points to `guid_len` octets, `uid_out` to room for a UID.
 */
int32_t imap_xid_box_expunged(struct imap_xid_box *xbox,
                              const char *guid,
                              size_t guid_len,
                              uint32_t *uid_out);

/**
 * Gives the XIDs that messages with this GUID had when they were expunged from the mailbox, at
 * most `room` of them, the last one first. They have no UIDs (0). Remembered are the last 10,000
 * expunged messages of a root whose uid_source is not local.
 *
 * Returns how many were stored, or an error.
 *
 * The caller promises:
 * `xbox` is a mailbox, `guid` points to `guid_len` octets, `out` to room for `room` entries.
 */
int32_t imap_xid_box_gone(struct imap_xid_box *xbox,
                          const char *guid,
                          size_t guid_len,
                          struct imap_xid_pending *out,
                          size_t room);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* IMAP_XID_H */
