#ifndef XID_CLUSTER_H
#define XID_CLUSTER_H

/* A user whose UIDs the cluster daemon xidd says (xid_uid_source = cluster):

     events.c     what is told to the daemon, and asked of it
     tree.c       the mailbox tree changes; an INBOX that is the same mailbox
                  on every node
     twins.c      two mailboxes of one name
     interlock.c  what must not change, and how far UIDs may go
     between.c    messages that came while replication was at work
     broken.c     replication that broke off
     import.c     messages that come from other nodes keep their XIDs
     reassign.c   messages that came during a sync get UIDs above it
     expunge.c    what is expunged of what is not agreed
     rename.c     a maildir keeps no lock under its new name

   Nothing here does anything for other users. The daemon's socket lies in
   Dovecot's base_dir. One message is one line, its fields separated by TABs
   and escaped as str_tabescape() does. */

#include "xid-plugin.h"
#include "xid-index.h"
#include "wait.h"

bool xid_user_is_clustered(const struct xid_user *xuser);
/* Replication, or what the daemon does by itself (doveadm xid). */
bool xid_user_replicates(const struct xid_user *xuser);

/*
 * events.c
 */

/* What happened in a mailbox. */
enum xid_event_kind {
	/* a client or a delivery added messages */
	XID_EVENT_ADDED = 'a',
	/* a client changed flags or expunged */
	XID_EVENT_FLAGS = 'f',
	/* replication changed anything */
	XID_EVENT_IMPORTED = 'i',
	/* mailboxes were made, renamed, deleted, subscribed to */
	XID_EVENT_TREE = 't',
	/* somebody waits for a UID here */
	XID_EVENT_WAITING = 'w',
};

/* How often a waiter says that it waits: the daemon may have been started
   since, or have lost an event. */
#define XID_REMIND_MSECS (2*1000)

/* Tell the daemon, if it is there and has room. Never blocks. The mailbox must
   have been open. An imap process tells it after the command's answer. */
void xid_event_changed(struct xid_mailbox *xbox, enum xid_event_kind kind);
/* The same for the mailbox tree; box need not exist. */
void xid_event_tree(struct mailbox *box);
/* XID_EVENT_WAITING, unless that was said a moment ago. */
void xid_event_remind(struct xid_wait_mailbox *wbox);
/* The same where a mailbox was opened in which UIDs wait. An APPEND opens it anew:
   a client that saves many says so once in a while. */
void xid_event_remind_opened(struct xid_wait_mailbox *wbox);
/* Tell now what is kept until the command has its answer: before the user goes
   away. */
void xid_events_flush(void);

enum xid_daemon_status {
	XID_DAEMON_UNREACHABLE,
	/* this node is no live member of its cluster */
	XID_DAEMON_CUT,
	XID_DAEMON_IN,
};
/* incarnation_r (may be NULL) gets which of the node's disks this is, 0 for
   the first one or when it is not known. */
enum xid_daemon_status
xid_daemon_status(struct xid_user *xuser, uint32_t *incarnation_r);

/* Before new numbers are taken, while no lock is held: where none was ever
   given, begin with those that no earlier disk of this node gave. */
void xid_daemon_begin_numbers(struct xid_mailbox *xbox);

/* How sure the answer must be. */
enum xid_asking {
	/* what the nodes published is enough */
	XID_ASK_QUICKLY = 'X',
	/* what they have now, since that was no help */
	XID_ASK_EVERYBODY = 'A',
	/* the same; the messages are here without XIDs, and may have to be
	   named */
	XID_ASK_HOLDING = 'R',
};

/* Ask for the XIDs of messages by GUID. Fills answers with as many texts as
   there are GUIDs, from the data stack: the instances that nodes have of it,
   separated by commas; or "-": nobody knows the message. Blocks for some
   seconds at most. -1 = not known now, with why. */
int xid_daemon_xids(struct xid_mailbox *xbox, enum xid_asking asking,
		    const ARRAY_TYPE(const_string) *guids,
		    ARRAY_TYPE(const_string) *answers,
		    const char **error_r);

/* One instance of an answer: UID and XID. UID 0 = it was there, and went. Returns
   -1 if it is none. */
int xid_answer_parse(const char *found, uint32_t *uid_r,
		     struct imap_xid *xid_r);
bool xid_is_same(const struct imap_xid *xid1, const struct imap_xid *xid2);

void xid_events_deinit(void);

/*
 * interlock.c
 */

/* Before messages are saved or moved: whether this may be. Waits where new
   messages must wait for room. -1 = not (the storage error is set, logged where
   it should never happen). Pair 0 with xid_interlock_end() after the commit. */
int xid_interlock_begin(struct mailbox_transaction_context *t);
void xid_interlock_end(struct mailbox *box);
/* The same for a transaction that saves nothing: it may expunge what the one
   before it moved. */
int xid_interlock_begin_expunge(struct mailbox_transaction_context *t);
/* The same once more while the storage holds the mailbox's lock: what is
   promised may have changed. -1 = the storage error is set. */
int xid_interlock_recheck(struct mailbox_transaction_context *t);
/* What a UID must be above to be moved: what is stable, or promised. core =
   xid_wait_attached(). */
uint32_t xid_fixed_uid(struct xid_wait_mailbox *wbox, imap_xid_box *core);
/* Who joins takes what the others have. As long as it does it has promised more
   UIDs than there are messages (src/cluster/replica.rs). */
bool xid_is_joining(imap_xid_box *core);
/* What was promised in the table before this call, nobody changes after it:
   commits that did not see it yet are over. -1 = the storage error is set. */
int xid_interlock_barrier(struct mailbox *box);

/*
 * between.c
 */

/* When replication begins to save: what comes from now on it does not know. */
void xid_between_begin(struct xid_wait_mailbox *wbox);
/* Before it commits, under the lock by which messages get their UIDs: why it
   may not. NULL = it may. */
const char *xid_between_objection(struct mailbox_transaction_context *t);
/* It committed: these UIDs are its own. */
void xid_between_saved(struct xid_wait_mailbox *wbox,
		       const ARRAY_TYPE(seq_range) *uids);

/*
 * expunge.c
 */

void xid_expunge_mail_allocated(struct mail *mail);
/* A transaction of the mailbox ended. */
void xid_expunge_ended(struct xid_wait_mailbox *wbox,
		       const struct mailbox_transaction_context *t,
		       bool committed);
/* At the end of replication, before the mailbox is synced. */
void xid_expunge_decide(struct xid_wait_mailbox *wbox);
/* After that sync: -1 = something is left open (the storage error is set). */
int xid_expunge_check(struct xid_wait_mailbox *wbox);
/* It was committed: what it brought back goes. */
void xid_expunge_note_returned(struct mailbox_transaction_context *t);
/* After that sync. */
void xid_expunge_returned(struct xid_wait_mailbox *wbox);
void xid_expunge_close(struct xid_wait_mailbox *wbox);

/*
 * broken.c
 */

/* When replication begins to save: from now on errors of the sync are noticed. */
void xid_broken_watch(void);
/* Before it commits: -1 = the sync broke off since then (the storage error is
   set). */
int xid_broken_check(struct mailbox_transaction_context *t);
void xid_broken_deinit(void);

/*
 * rename.c
 */

/* Before a mailbox is renamed: nobody holds a lock file in it, or below it, until
   xid_rename_unlock(). NULL = there are none. Waits for some seconds at most. */
struct xid_rename_locks *xid_rename_lock(struct mailbox *src);
/* Afterwards, whether it was renamed or not. */
void xid_rename_unlock(struct xid_rename_locks **locks);

/*
 * import.c
 */

/* Before the transaction is committed: find the XIDs of the messages that come
   from other nodes. -1 = they are not known now (the storage error is set). */
int xid_import_prepare(struct mailbox_transaction_context *t);

/*
 * reassign.c
 */

/* Messages get new UIDs, above all others. */
int xid_reassign(struct mailbox *box, const ARRAY_TYPE(uint32_t) *uids);
/* dsync gives messages new UIDs that came while it was at work. */
bool xid_is_reassigning(struct mailbox_transaction_context *t);
/* Does that in place of the transaction, which is gone then. */
int xid_reassign_commit(struct mailbox_transaction_context *t,
			struct mail_transaction_commit_changes *changes_r);

/*
 * tree.c
 */

void xid_tree_hook(struct xid_wait_mailbox *wbox, struct mailbox_vfuncs *v);
/* Syncs a maildir for the first time. As INBOX it gets what it lacks to be the
   cluster's, once. The mailbox is open, and was not synced. */
int xid_tree_maildir_first_sync(struct xid_wait_mailbox *wbox);
/* Opens the mailbox as the storage does; INBOX not while it is being made. */
int xid_tree_open(struct mailbox *box);

/*
 * twins.c
 */

/* Before replication makes one: takes note of what has this name and is another
   mailbox. -1 = replication must not make it now (the storage error is set). */
int xid_twins_meet(struct mailbox *box, const struct mailbox_update *update);
/* Before replication makes a mailbox another one: adds to the update what belongs
   to that. -1 = it must not (the storage error is set). */
int xid_twins_join(struct mailbox *box, struct mailbox_update *update);

#endif
