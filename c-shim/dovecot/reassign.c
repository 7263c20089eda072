/* Messages that came while dsync was at work. They may have got UIDs below
   messages that dsync saved and the other node has. The next sync would take
   such a message for one that the other node expunged, and remove it; so dsync
   gives all that is in the wrong place new UIDs at the end of the same sync. But
   it takes the old ones out of the index without telling the storage: a maildir
   keeps their files, and the messages come back a second time. We move them in
   its place as it moves messages otherwise: a copy, then an expunge as any
   other. */
#include "cluster.h"

#include "mail-storage-private.h"

static bool xid_is_reassigned(const struct xid_saved_mail *mail)
{
	return mail->moved_uid != 0 && mail->wanted_uid == 0;
}

bool xid_is_reassigning(struct mailbox_transaction_context *t)
{
	struct xid_mailbox *xbox = xid_mailbox_context(t->box);
	struct xid_saved_mail *mails;
	unsigned int i, count;

	if (xbox->reassigning || !t->box->storage->user->dsyncing ||
	    !xid_user_is_clustered(xbox->xuser))
		return FALSE;
	count = xid_saved_mails(t, &mails);
	for (i = 0; i < count; i++) {
		if (xid_is_reassigned(&mails[i]))
			return TRUE;
	}
	return FALSE;
}

static void
xid_reassigned_uids(struct mailbox_transaction_context *t,
		    ARRAY_TYPE(uint32_t) *uids)
{
	struct xid_saved_mail *mails;
	unsigned int i, count = xid_saved_mails(t, &mails);

	for (i = 0; i < count; i++) {
		if (xid_is_reassigned(&mails[i]))
			array_push_back(uids, &mails[i].moved_uid);
	}
}

static int
xid_reassign_mails(struct mail *mail, struct mailbox_transaction_context *dest,
		   const ARRAY_TYPE(uint32_t) *uids)
{
	struct mail_save_context *ctx;
	uint32_t uid;

	array_foreach_elem(uids, uid) {
		if (!mail_set_uid(mail, uid))
			continue;
		ctx = mailbox_save_alloc(dest);
		mailbox_save_copy_flags(ctx, mail);
		if (mailbox_move(&ctx, mail) < 0 && !mail->expunged)
			return -1;
	}
	return 0;
}

/* The copies are committed first: killed in between the message is there twice,
   which the daemon settles. */
static int
xid_reassign_uids(struct mailbox *box, const ARRAY_TYPE(uint32_t) *uids)
{
	struct mailbox_transaction_context *src, *dest;
	struct mail *mail;
	int ret;

	src = mailbox_transaction_begin(box, 0, "xid reassign from");
	mail = mail_alloc(src, 0, NULL);
	dest = mailbox_transaction_begin(box,
		MAILBOX_TRANSACTION_FLAG_EXTERNAL |
		MAILBOX_TRANSACTION_FLAG_ASSIGN_UIDS, "xid reassign to");
	ret = xid_reassign_mails(mail, dest, uids);
	mail_free(&mail);
	if (ret < 0)
		mailbox_transaction_rollback(&dest);
	else
		ret = mailbox_transaction_commit(&dest);
	if (ret < 0)
		mailbox_transaction_rollback(&src);
	else
		ret = mailbox_transaction_commit(&src);
	/* The next sync of the mailbox carries the expunge out. */
	return ret;
}

int xid_reassign(struct mailbox *box, const ARRAY_TYPE(uint32_t) *uids)
{
	struct xid_mailbox *xbox = xid_mailbox_context(box);
	int ret;

	xbox->reassigning = TRUE;
	ret = xid_reassign_uids(box, uids);
	xbox->reassigning = FALSE;
	return ret;
}

int xid_reassign_commit(struct mailbox_transaction_context *t,
			struct mail_transaction_commit_changes *changes_r)
{
	struct mailbox *box = t->box;
	struct xid_mailbox *xbox = xid_mailbox_context(box);
	ARRAY_TYPE(uint32_t) uids;
	int ret;

	t_array_init(&uids, 16);
	xid_reassigned_uids(t, &uids);
	xid_expunge_ended(xbox->wait, t, FALSE);
	xbox->module_ctx.super.transaction_rollback(t);

	i_zero(changes_r);
	changes_r->pool = pool_alloconly_create("xid reassigned", 128);
	p_array_init(&changes_r->saved_uids, changes_r->pool, 1);
	ret = xid_reassign(box, &uids);
	if (ret < 0)
		pool_unref(&changes_r->pool);
	return ret;
}
