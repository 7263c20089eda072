/* Messages that came between replication's look at the mailbox and its commit.
   They have the UIDs that were next when it looked. What it brings keeps the
   UID that the other node has for it, as long as that is not given yet; so such
   a message may come to lie below one that both nodes have, at a UID at which
   the other node has nothing: it raised its next UID, or no longer knows what
   it expunged there. The next sync would take it for expunged on the other
   node, and remove it. dsync gives it a new UID at the end of the same sync;
   but it may be killed before that, or find that the message was promised
   meanwhile. So such a commit is refused as a whole: the next sync finds the
   message, and brings the same again.

   Where the other node has another message at that UID dsync sees that the two
   differ, and looks for nothing common above it. */
#include "cluster.h"
#include "seq-range-array.h"
#include "mail-index-private.h"

void xid_between_begin(struct xid_wait_mailbox *wbox)
{
	struct mailbox *box = wbox->xbox->box;

	if (wbox->sync_next_uid != 0 ||
	    !xid_user_is_clustered(wbox->xbox->xuser))
		return;
	wbox->sync_next_uid = mail_index_get_header(box->view)->next_uid;
	p_array_init(&wbox->sync_uids, box->pool, 8);
}

/* The highest UID that a message of the transaction gets because the other node
   has it there; 0 = none. Notes which UIDs are wanted. */
static uint32_t
xid_between_highest(struct mailbox_transaction_context *t, uint32_t next_uid)
{
	struct xid_wait_mailbox *wbox = xid_mailbox_context(t->box)->wait;
	struct xid_saved_mail *mails;
	unsigned int i, count = xid_saved_mails(t, &mails);
	uint32_t uid, highest = 0;

	for (i = 0; i < count; i++) {
		uid = mails[i].wanted_uid;
		if (uid == 0)
			continue;
		seq_range_array_add(&wbox->sync_uids, uid);
		if (uid >= next_uid)
			highest = I_MAX(highest, uid);
	}
	return highest;
}

/* The first message that came meanwhile, at a UID of which this sync knows
   nothing; 0 = none. */
static uint32_t
xid_between_find(struct xid_wait_mailbox *wbox, struct mail_index_view *view,
		 uint32_t next_uid)
{
	uint32_t seq, seq2, uid;

	if (!mail_index_lookup_seq_range(view, wbox->sync_next_uid,
					 next_uid - 1, &seq, &seq2))
		return 0;
	for (; seq <= seq2; seq++) {
		mail_index_lookup_uid(view, seq, &uid);
		if (!seq_range_exists(&wbox->sync_uids, uid))
			return uid;
	}
	return 0;
}

const char *xid_between_objection(struct mailbox_transaction_context *t)
{
	struct xid_wait_mailbox *wbox = xid_mailbox_context(t->box)->wait;
	struct mail_index_view *view;
	uint32_t next_uid, highest, uid = 0;

	if (xid_transaction_is_spoilt(t))
		return "a message was expunged meanwhile, or cannot be saved";
	if (wbox->sync_next_uid == 0)
		return NULL;
	(void)mail_index_refresh(t->box->index);
	view = mail_index_view_open(t->box->index);
	next_uid = mail_index_get_header(view)->next_uid;
	highest = xid_between_highest(t, next_uid);
	if (highest != 0 && next_uid > wbox->sync_next_uid)
		uid = xid_between_find(wbox, view, next_uid);
	mail_index_view_close(&view);
	return uid == 0 ? NULL : t_strdup_printf(
		"UID %u came meanwhile, and would lie below UID %u, which "
		"another node has", uid, highest);
}

void xid_between_saved(struct xid_wait_mailbox *wbox,
		       const ARRAY_TYPE(seq_range) *uids)
{
	if (wbox->sync_next_uid != 0 && array_is_created(uids))
		seq_range_array_merge(&wbox->sync_uids, uids);
}
