#ifndef XID_WAIT_H
#define XID_WAIT_H

/* UIDs that are not agreed yet (spec part 6), and the mode without UIDs
   (part 7): what these files share.

     wait.c      the watermark of a mailbox, and who waits for it
     cmd-wait.c  IMAP commands that wait
     uidleak.c   what the server says by itself: no UID above the watermark
     delivery.c  saves: the gate, the pending UIDs, deliveries, POP3 logins
     grace.c     APPENDUID and COPYUID a little later
     notify.c    NOTIFY's second STATUS
     nouids.c    xid_uids = no

   None of it does anything for a user whose UIDs are local: his mailboxes
   keep their functions, and a command's wrapper tests xid_wait_users and goes
   on. */

#include "xid-plugin.h"

struct client;
struct client_command_context;

/* How many users of this process have UIDs that may wait, or none at all. */
extern unsigned int xid_wait_users;
/* Changes when a watermark that was read may be another mailbox's by now, or
   of another UIDVALIDITY. */
extern unsigned int xid_wait_generation;
/* This process serves IMAP clients. */
extern bool xid_wait_imap;
/* More than 0 while the storage asks itself (list index, sizes, full text
   search keep the true UIDNEXT; only clients must not see it). */
extern unsigned int xid_wait_inside;

/* One per mailbox of a user whose UIDs may wait. */
struct xid_wait_mailbox {
	struct xid_mailbox *xbox;
	/* The functions that stood in these places before ours, where
	   another file of the shim had put its own. */
	struct {
		void (*close)(struct mailbox *box);
		int (*copy)(struct mail_save_context *ctx, struct mail *mail);
		int (*sync_deinit)(struct mailbox_sync_context *ctx,
				   struct mailbox_sync_status *status_r);
		struct mailbox_transaction_context *
			(*transaction_begin)(struct mailbox *box,
				enum mailbox_transaction_flags flags,
				const char *reason);
		int (*rename_box)(struct mailbox *src, struct mailbox *dest);
		int (*delete_box)(struct mailbox *box);
	} prev;

	/* The core's mailbox that got its slot in the table; to be asked for
	   by xid_wait_attached(). */
	imap_xid_box *attached;
	uint32_t attached_uid_validity;
	/* The last watermark seen. A table that breaks later does not make
	   what was stable wait. */
	uint32_t last_watermark;

	/* uidleak.c: the MODSEQ below which everything is stable was `is`
	   when the view's highest was `of`; every change raises that. Each
	   sync asks, and there may be thousands of messages to look at. */
	struct {
		uint64_t of, is;
		uint32_t watermark, messages_count;
	} stable_modseq;
	/* uidleak.c: what the client was not told yet, as UIDs */
	ARRAY_TYPE(seq_range) held_flags, held_modseqs;
	ARRAY(struct xid_leak_search *) held_searches;
	struct xid_leak_sync *sync;
	/* woken when something held back may be told */
	struct xid_waiting *held_waiting;
	struct timeout *to_held;
	/* delivery.c: a message from above its own mailbox's watermark was
	   copied in this transaction: COPYUID would name its UID. */
	const struct mailbox_transaction_context *copied_unstable;
	/* interlock.c: what must hold of the transaction that is being
	   committed was looked at once, and is looked at again under the
	   mailbox's lock */
	bool rechecks;
	/* interlock.c: the same for room in a maildir, which is locked until
	   the commit is over */
	bool room_locked;
	/* interlock.c: the highest UID that was seen under the lock; neither
	   the view nor the table may know of it */
	uint32_t seen_last_uid;
	/* interlock.c: dsync copied these UIDs to others, and is to expunge
	   them in its next transaction; not created = none */
	ARRAY(uint32_t) moved_uids;
	/* expunge.c: what is not stable, and replication would expunge; not
	   created = none. NULL = the transaction was committed. */
	ARRAY_TYPE(seq_range) doubted_uids;
	const struct mailbox_transaction_context *doubted_of;
	/* expunge.c: what was expunged here while it was stable, and
	   replication brings back; not created = none */
	ARRAY(struct imap_xid) returned;
	/* between.c: the next UID when replication looked at the mailbox (0 =
	   it does not save here), and the UIDs from there on that are its
	   own doing, or that it wanted */
	uint32_t sync_next_uid;
	ARRAY_TYPE(seq_range) sync_uids;
	/* events.c: when the daemon was last told that somebody waits here,
	   in milliseconds; 0 = never */
	int64_t reminded_at;
	bool expunges_held:1;
	/* expunge.c: it is decided that these go */
	bool expunging:1;
	/* expunge.c: what came back goes again, whatever became of the sync */
	bool returning:1;
	/* expunge.c: some neither went nor got other UIDs */
	bool doubts_left:1;
	/* interlock.c: holds the index's lock during the commit */
	bool expunge_locked:1;
	/* delivery.c: the POP3 session had its one chance to wait */
	bool login_waited:1;
};

enum xid_wait_result {
	/* the watermark reached the UID */
	XID_WAIT_STABLE,
	XID_WAIT_TIMED_OUT,
};
typedef void xid_wait_callback_t(enum xid_wait_result result, void *context);

/* NULL = the mailbox's UIDs never wait. */
struct xid_wait_mailbox *xid_wait_mailbox_get(struct mailbox *box);
/* NULL = the user's UIDs never wait (he may have none: set.uids). */
struct xid_user *xid_wait_user_get(struct mail_user *user);

/* Give the mailbox its slot in the table. A mailbox that has none starts with
   what it holds now as stable, so this must be called before the first
   message is saved. Returns NULL if there is no table (logged). */
imap_xid_box *xid_wait_attach(struct xid_wait_mailbox *wbox);
/* The core's mailbox if it has its slot, else NULL. */
imap_xid_box *xid_wait_attached(const struct xid_wait_mailbox *wbox);
/* The same while the storage holds its locks; last_uid = what the mailbox
   holds. */
imap_xid_box *xid_wait_attach_locked(struct xid_wait_mailbox *wbox,
				     uint32_t last_uid);
/* The highest UID that may be shown. Opens the mailbox if needed; 0 if it
   cannot be known. */
uint32_t xid_wait_watermark(struct xid_wait_mailbox *wbox);
/* The UID of the last message in the mailbox's view; 0 = empty. */
uint32_t xid_wait_last_uid(struct mailbox *box);
/* Sequence of the first message of box->view that is above the watermark.
   0 = none is. */
uint32_t xid_wait_first_unstable(struct mailbox *box, uint32_t watermark);

/* Does the mailbox still have a message under each of these UIDs? Replication
   may have given them others until they were stable: asked after the watermark
   was read, this says whether they can be shown. */
bool xid_wait_has_uids(struct mailbox *box,
		       const ARRAY_TYPE(seq_range) *uids);

/* Call back from the event loop when the mailbox's watermark is at or above
   the UID, or after the time; 0 = no limit, and nobody needs to know of this
   wait. The mailbox must stay open until then or until xid_wait_end(). */
struct xid_waiting *
xid_wait_begin(struct xid_wait_mailbox *wbox, uint32_t uid,
	       unsigned int timeout_msecs,
	       xid_wait_callback_t *callback, void *context);
/* The mailbox, which must be open, takes no new messages now. */
bool xid_wait_gate_is_closed(struct xid_wait_mailbox *wbox);
/* Call back when the mailbox's gate is open, or after the time. */
struct xid_waiting *
xid_wait_gate_begin(struct xid_wait_mailbox *wbox, unsigned int timeout_msecs,
		    xid_wait_callback_t *callback, void *context);
/* The caller is awake anyway: is there nothing to wait for any more? Then the
   callback is called before this returns TRUE. */
bool xid_wait_look(struct xid_waiting *waiting);
/* Stop waiting; not to be called after the callback. */
void xid_wait_end(struct xid_waiting **waiting);

/* For the operator: an event per wait, named xid_<what>_finished, with the
   field result; its duration is that of the wait. */
struct event *xid_wait_event_begin(struct event *parent, const char *mailbox,
				   uint32_t uid);
void xid_wait_event_end(struct event **event, const char *what,
			const char *result);
/* A message with this UID was saved: an event if it is not stable, with how
   many UIDs of the mailbox are not. */
void xid_wait_event_pending(struct xid_wait_mailbox *wbox, uint32_t uid);

void xid_wait_init(void);
void xid_wait_deinit(void);

/*
 * delivery.c
 */

/* The process delivers to the user: lmtp, lda. */
bool xid_user_is_delivered_to(const struct mail_user *user);

/* storage.c: these messages are about to become visible in the mailbox; the
   UIDs are final, the index transaction is open. Or they are visible already
   and got their XIDs late. */
void xid_wait_saved(struct xid_mailbox *xbox,
		    const struct imap_xid_entry *entries, size_t count);

/* storage.c: these messages are gone. They wait no more. */
void xid_wait_expunged(struct xid_mailbox *xbox, const uint32_t *uids,
		       unsigned int count);

void xid_delivery_hook(struct xid_wait_mailbox *wbox, struct mailbox_vfuncs *v);

/*
 * cmd-wait.c, uidleak.c, nouids.c: only where the process is imap
 */

void xid_wait_imap_init(void);
void xid_wait_imap_deinit(void);

/* An APPEND or COPY saved messages up to this UID, which is not stable: may the
   host name them? Their tagged line is then held back. */
bool xid_grace_begin(struct mailbox *box, uint32_t uid_validity,
		     uint32_t last_uid);

/* UIDNEXT of the mailbox was told as less than it is. */
void xid_notify_uidnext_clipped(struct mailbox *box, uint32_t last_uid);

void xid_leak_hook(struct xid_wait_mailbox *wbox, struct mailbox_vfuncs *v);
void xid_leak_init(void);
void xid_leak_deinit(void);
/* The mailbox is being closed: forget what was held back. */
void xid_leak_close(struct xid_wait_mailbox *wbox);
/* Until unset with (uint32_t)-1, UIDNEXT and HIGHESTMODSEQ are told as if the
   watermark were not above this. One SELECT tells one story. */
void xid_leak_freeze(uint32_t watermark);

#endif
