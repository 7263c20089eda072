/* What replication expunges of what is not agreed. It takes a message that the
   other node lacks, below one that both nodes have, for one that was expunged
   there. That holds where UIDs are given once. But of two nodes that sync with
   several others one may commit its half of a sync, and the other refuse its own;
   and a message which only one of them has then lies below one that a third node
   brought to both. So an expunge of what is not stable is carried out where it is
   known why: the message was moved to another UID, or is in the mailbox a second
   time; or the node that had it says that it went. Else it gets a new UID, above
   all that the other node has, and reaches that with the next sync. */
#include "cluster.h"
#include "mail-index-private.h"
#include "mail-storage-private.h"

#define XID_EXPUNGE_MAIL(obj) \
	MODULE_CONTEXT_REQUIRE(obj, xid_expunge_mail_module)

static MODULE_CONTEXT_DEFINE_INIT(xid_expunge_mail_module,
				  &mail_module_register);

/* A message that was to be expunged. */
struct xid_doubted_mail {
	uint32_t uid;
	const char *guid;
	struct imap_xid xid;
	bool goes;
	/* since a node says so */
	bool went_elsewhere;
};
ARRAY_DEFINE_TYPE(xid_doubted_mail, struct xid_doubted_mail);

/*
 * While replication is at work
 */

static bool xid_expunge_is_doubtful(struct mail *mail)
{
	struct xid_wait_mailbox *wbox = xid_wait_mailbox_get(mail->box);

	/* a mailbox that is deleted is emptied before */
	return wbox != NULL && !wbox->expunging && !wbox->xbox->reassigning &&
		!mail->box->deleting &&
		mail->uid > xid_wait_watermark(wbox);
}

/* It is decided when all that the sync brings is there. */
static void xid_expunge_mail(struct mail *_mail)
{
	struct mail_private *mail = (struct mail_private *)_mail;
	union mail_module_context *mmail = XID_EXPUNGE_MAIL(mail);
	struct xid_wait_mailbox *wbox;

	if (!xid_expunge_is_doubtful(_mail)) {
		mmail->super.expunge(_mail);
		return;
	}
	wbox = xid_wait_mailbox_get(_mail->box);
	if (!array_is_created(&wbox->doubted_uids))
		i_array_init(&wbox->doubted_uids, 8);
	wbox->doubted_of = _mail->transaction;
	seq_range_array_add(&wbox->doubted_uids, _mail->uid);
}

void xid_expunge_mail_allocated(struct mail *_mail)
{
	struct mail_private *mail = (struct mail_private *)_mail;
	struct xid_wait_mailbox *wbox = xid_wait_mailbox_get(_mail->box);
	struct mail_vfuncs *v = mail->vlast;
	union mail_module_context *mmail;

	if (wbox == NULL || !_mail->box->storage->user->dsyncing ||
	    !xid_user_is_clustered(wbox->xbox->xuser))
		return;
	mmail = p_new(mail->pool, union mail_module_context, 1);
	mmail->super = *v;
	mail->vlast = &mmail->super;
	v->expunge = xid_expunge_mail;
	MODULE_CONTEXT_SET_SELF(mail, xid_expunge_mail_module, mmail);
}

void xid_expunge_ended(struct xid_wait_mailbox *wbox,
		       const struct mailbox_transaction_context *t,
		       bool committed)
{
	if (wbox->doubted_of != t)
		return;
	wbox->doubted_of = NULL;
	/* what was to take their place is not there */
	if (!committed)
		array_free(&wbox->doubted_uids);
}

/*
 * What is known of them
 */

static bool
xid_expunge_was_moved(const struct xid_wait_mailbox *wbox, uint32_t uid)
{
	uint32_t moved_uid;

	if (!array_is_created(&wbox->moved_uids))
		return FALSE;
	array_foreach_elem(&wbox->moved_uids, moved_uid) {
		if (moved_uid == uid)
			return TRUE;
	}
	return FALSE;
}

/* Another message of the mailbox has its XID, as it is now. Of two that both were to
   be expunged the later one stays, until it is known what becomes of it. */
static bool
xid_expunge_is_elsewhere(struct xid_mailbox *xbox, struct mail_index_view *view,
			 const struct xid_doubted_mail *mail)
{
	uint32_t seq, uid, count = mail_index_view_get_messages_count(view);
	struct imap_xid xid;

	for (seq = count; seq > 0; seq--) {
		mail_index_lookup_uid(view, seq, &uid);
		if (uid == mail->uid || (uid < mail->uid &&
		    seq_range_exists(&xbox->wait->doubted_uids, uid)))
			continue;
		if (xid_mail_get(xbox, view, seq, &xid) &&
		    xid_is_same(&xid, &mail->xid))
			return TRUE;
	}
	return FALSE;
}

static void
xid_expunge_look(struct xid_wait_mailbox *wbox, struct mail_index_view *view,
		 struct xid_guid_reader *reader, uint32_t uid,
		 ARRAY_TYPE(xid_doubted_mail) *mails)
{
	struct mailbox *box = wbox->xbox->box;
	struct xid_doubted_mail *mail;
	uint32_t seq;

	/* somebody else expunged it */
	if (!mail_index_lookup_seq(box->view, uid, &seq))
		return;
	mail = array_append_space(mails);
	mail->uid = uid;
	mail->goes = xid_expunge_was_moved(wbox, uid);
	if (mail->goes || !xid_mail_get(wbox->xbox, box->view, seq, &mail->xid))
		return;
	mail->xid.ns = t_strndup(mail->xid.ns, mail->xid.ns_len);
	mail->guid = t_strdup(xid_guid_read(reader, seq));
	mail->goes = xid_expunge_is_elsewhere(wbox->xbox, view, mail);
}

static void
xid_expunge_look_all(struct xid_wait_mailbox *wbox,
		     ARRAY_TYPE(xid_doubted_mail) *mails)
{
	struct mail_index *index = wbox->xbox->box->index;
	struct xid_guid_reader *reader = xid_guid_reader_init(wbox->xbox);
	struct mail_index_view *view;
	struct seq_range_iter iter;
	unsigned int n = 0;
	uint32_t uid;

	(void)mail_index_refresh(index);
	view = mail_index_view_open(index);
	seq_range_array_iter_init(&iter, &wbox->doubted_uids);
	while (seq_range_array_iter_nth(&iter, n++, &uid))
		xid_expunge_look(wbox, view, reader, uid, mails);
	mail_index_view_close(&view);
	xid_guid_reader_deinit(&reader);
}

/* A node had the message, and has it no more. */
static bool
xid_expunge_is_gone(const struct xid_doubted_mail *mail, const char *answer)
{
	const char *const *found = t_strsplit(answer, ",");
	struct imap_xid xid;
	uint32_t uid;

	for (; *found != NULL; found++) {
		if (xid_answer_parse(*found, &uid, &xid) == 0 && uid == 0 &&
		    xid_is_same(&xid, &mail->xid))
			return TRUE;
	}
	return FALSE;
}

/* Where not all nodes can be asked nobody knows. */
static void
xid_expunge_ask(struct xid_wait_mailbox *wbox,
		ARRAY_TYPE(xid_doubted_mail) *mails)
{
	ARRAY_TYPE(const_string) guids, answers;
	struct xid_doubted_mail *mail;
	const char *error;
	unsigned int next = 0;

	t_array_init(&guids, 8);
	t_array_init(&answers, 8);
	array_foreach_modifiable(mails, mail) {
		if (!mail->goes && mail->guid != NULL && *mail->guid != '\0')
			array_push_back(&guids, &mail->guid);
	}
	if (array_count(&guids) == 0 ||
	    xid_daemon_xids(wbox->xbox, XID_ASK_EVERYBODY, &guids, &answers,
			    &error) < 0)
		return;
	array_foreach_modifiable(mails, mail) {
		if (!mail->goes && mail->guid != NULL && *mail->guid != '\0') {
			mail->goes = xid_expunge_is_gone(mail,
				array_idx_elem(&answers, next++));
			mail->went_elsewhere = mail->goes;
		}
	}
}

/* From here on we know it, too. Else a node to which it came meanwhile would bring
   it to us, and we to the next one, and so on. */
static void
xid_expunge_note_gone(struct xid_mailbox *xbox,
		      const ARRAY_TYPE(xid_doubted_mail) *mails)
{
	imap_xid_box *core = xid_box_open(xbox);
	ARRAY_TYPE(imap_xid_entry) gone;
	const struct xid_doubted_mail *mail;
	struct imap_xid_entry *entry;

	t_array_init(&gone, 8);
	array_foreach(mails, mail) {
		if (!mail->went_elsewhere)
			continue;
		entry = array_append_space(&gone);
		i_zero(entry);
		entry->ns = mail->xid.ns;
		entry->ns_len = mail->xid.ns_len;
		entry->number = mail->xid.number;
		entry->uid = mail->uid;
		entry->guid = mail->guid;
		entry->guid_len = strlen(mail->guid);
	}
	if (array_count(&gone) > 0 && core != NULL &&
	    imap_xid_box_gone_elsewhere(core, array_front(&gone),
					array_count(&gone)) < 0)
		xid_mailbox_log_error(xbox, "registry lacks what went");
}

/*
 * At the end of the sync
 */

/* What goes since it is there a second time must not be promised by now, as what was
   moved must not: the commit looks. */
static void
xid_expunge_note_moved(struct xid_wait_mailbox *wbox,
		       const ARRAY_TYPE(xid_doubted_mail) *mails)
{
	const struct xid_doubted_mail *doubted;

	array_foreach(mails, doubted) {
		if (!doubted->goes || doubted->went_elsewhere)
			continue;
		if (!array_is_created(&wbox->moved_uids))
			i_array_init(&wbox->moved_uids, 8);
		array_push_back(&wbox->moved_uids, &doubted->uid);
	}
}

static int
xid_expunge_mails(struct xid_wait_mailbox *wbox,
		  const ARRAY_TYPE(xid_doubted_mail) *mails)
{
	struct mailbox_transaction_context *t;
	const struct xid_doubted_mail *doubted;
	struct mail *mail;

	xid_expunge_note_moved(wbox, mails);
	t = mailbox_transaction_begin(wbox->xbox->box, 0, "xid expunge");
	mail = mail_alloc(t, 0, NULL);
	array_foreach(mails, doubted) {
		if (doubted->goes && mail_set_uid(mail, doubted->uid))
			mail_expunge(mail);
	}
	mail_free(&mail);
	return mailbox_transaction_commit(&t);
}

/* What is promised keeps its UID, and the sync fails. */
static void
xid_expunge_raise(struct xid_wait_mailbox *wbox,
		  const ARRAY_TYPE(xid_doubted_mail) *mails)
{
	struct mailbox *box = wbox->xbox->box;
	struct event *event = box->storage->user->event;
	imap_xid_box *core = xid_wait_attached(wbox);
	const struct xid_doubted_mail *doubted;
	ARRAY_TYPE(uint32_t) uids;

	t_array_init(&uids, 4);
	array_foreach(mails, doubted) {
		if (doubted->goes)
			continue;
		if (core == NULL ||
		    doubted->uid <= imap_xid_box_promised(core)) {
			wbox->doubts_left = TRUE;
			continue;
		}
		array_push_back(&uids, &doubted->uid);
		e_info(event, "xid: %s: %s: UID %u gets another one: replication "
		       "would expunge it, and no node says that it had it",
		       box->storage->user->username, mailbox_get_vname(box),
		       doubted->uid);
	}
	if (array_count(&uids) > 0 && xid_reassign(box, &uids) < 0)
		wbox->doubts_left = TRUE;
}

static void xid_expunge_decide_all(struct xid_wait_mailbox *wbox)
{
	ARRAY_TYPE(xid_doubted_mail) mails;

	t_array_init(&mails, 8);
	xid_expunge_look_all(wbox, &mails);
	xid_expunge_ask(wbox, &mails);
	wbox->expunging = TRUE;
	if (xid_expunge_mails(wbox, &mails) == 0) {
		xid_expunge_note_gone(wbox->xbox, &mails);
		xid_expunge_raise(wbox, &mails);
	} else {
		wbox->doubts_left = TRUE;
	}
	wbox->expunging = FALSE;
}

/* Replication remembers how far the nodes have the same, and does not say again what
   it said. So a sync fails that left something open: by the next one it is stable, or
   a node knows more of it. */
int xid_expunge_check(struct xid_wait_mailbox *wbox)
{
	struct mail_storage *storage = wbox->xbox->box->storage;

	if (!wbox->doubts_left)
		return 0;
	wbox->doubts_left = FALSE;
	mail_storage_set_error(storage, MAIL_ERROR_TEMP,
		"Whether messages were expunged is not known yet, "
		"try again later");
	return -1;
}

void xid_expunge_decide(struct xid_wait_mailbox *wbox)
{
	if (wbox->doubted_of != NULL || wbox->expunging ||
	    !array_is_created(&wbox->doubted_uids))
		return;
	T_BEGIN {
		xid_expunge_decide_all(wbox);
	} T_END;
	array_free(&wbox->doubted_uids);
}

/*
 * What comes back
 */

/* It goes again, and the node that brought it learns from us that it went. To refuse
   it would end every sync with that node. Who joins has to have what the others
   have first. */
void xid_expunge_note_returned(struct mailbox_transaction_context *t)
{
	struct xid_wait_mailbox *wbox = xid_mailbox_context(t->box)->wait;
	imap_xid_box *core = xid_wait_attached(wbox);
	struct xid_saved_mail *mails;
	unsigned int i, count;
	struct imap_xid *xid;

	if (!t->box->storage->user->dsyncing || core == NULL ||
	    xid_is_joining(core))
		return;
	count = xid_saved_mails(t, &mails);
	for (i = 0; i < count; i++) {
		if (mails[i].expunged_uid == 0)
			continue;
		if (!array_is_created(&wbox->returned))
			i_array_init(&wbox->returned, 4);
		xid = array_append_space(&wbox->returned);
		*xid = mails[i].keep;
		xid->ns = i_strndup(xid->ns, xid->ns_len);
		e_info(t->box->storage->user->event, "xid: %s: %s: what was "
		       "expunged here as UID %u comes back, and goes again",
		       t->box->storage->user->username,
		       mailbox_get_vname(t->box), mails[i].expunged_uid);
	}
}

static bool
xid_expunge_has_returned(struct xid_wait_mailbox *wbox, uint32_t seq)
{
	const struct imap_xid *returned;
	struct imap_xid xid;

	if (!xid_mail_get(wbox->xbox, wbox->xbox->box->view, seq, &xid))
		return FALSE;
	array_foreach(&wbox->returned, returned) {
		if (xid_is_same(returned, &xid))
			return TRUE;
	}
	return FALSE;
}

static void xid_expunge_returned_free(struct xid_wait_mailbox *wbox)
{
	struct imap_xid *xid;
	char *ns;

	if (!array_is_created(&wbox->returned))
		return;
	array_foreach_modifiable(&wbox->returned, xid) {
		ns = (char *)(uintptr_t)xid->ns;
		i_free(ns);
	}
	array_free(&wbox->returned);
}

/* Whoever syncs the mailbox next carries it out. What is stable by now stays. */
void xid_expunge_returned(struct xid_wait_mailbox *wbox)
{
	struct mailbox_transaction_context *t;
	struct mailbox *box = wbox->xbox->box;
	uint32_t seq, count;
	struct mail *mail;

	if (!array_is_created(&wbox->returned) || wbox->expunging)
		return;
	wbox->expunging = TRUE;
	wbox->returning = TRUE;
	t = mailbox_transaction_begin(box, 0, "xid expunge");
	mail = mail_alloc(t, 0, NULL);
	count = mail_index_view_get_messages_count(box->view);
	seq = xid_wait_first_unstable(box, xid_wait_watermark(wbox));
	for (; seq > 0 && seq <= count; seq++) T_BEGIN {
		if (xid_expunge_has_returned(wbox, seq)) {
			mail_set_seq(mail, seq);
			mail_expunge(mail);
		}
	} T_END;
	mail_free(&mail);
	/* what goes wrong was logged */
	(void)mailbox_transaction_commit(&t);
	wbox->returning = FALSE;
	wbox->expunging = FALSE;
	xid_expunge_returned_free(wbox);
}

void xid_expunge_close(struct xid_wait_mailbox *wbox)
{
	if (array_is_created(&wbox->doubted_uids))
		array_free(&wbox->doubted_uids);
	wbox->doubted_of = NULL;
	xid_expunge_returned_free(wbox);
}
