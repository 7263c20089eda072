/* A message that comes from another node keeps the XID that it got there. Its
   GUID says which message it is; the cluster daemon knows the XIDs that the
   other nodes have, the registry those that were here. All of this is found out
   before the storage takes its locks. */
#include "cluster.h"
#include "mail-index-private.h"

#define XID_LOCK_REASON "xid: namespaces of other nodes"
#define XID_UNKNOWN_ORIGIN "-"
/* XIDs that are looked at of expunged messages with one GUID */
#define XID_GONE_ROWS 16

ARRAY_DEFINE_TYPE(xid_saved_mail_p, struct xid_saved_mail *);

struct xid_import {
	struct mailbox_transaction_context *t;
	struct xid_mailbox *xbox;
	/* messages whose XIDs are not known yet */
	ARRAY_TYPE(xid_saved_mail_p) mails;
	/* one of them was here before, as far as its number tells */
	bool returns;
};

static void xid_import_find_mails(struct xid_import *im)
{
	struct xid_saved_mail *mails, *mail;
	unsigned int i, count = xid_saved_mails(im->t, &mails);

	t_array_init(&im->mails, 8);
	for (i = 0; i < count; i++) {
		mail = &mails[i];
		if (mail->imported && mail->keep.number == 0 &&
		    mail->guid != NULL && *mail->guid != '\0')
			array_push_back(&im->mails, &mail);
	}
}

/*
 * Which XID
 */

bool xid_is_same(const struct imap_xid *xid1, const struct imap_xid *xid2)
{
	return xid1->number == xid2->number && xid1->ns_len == xid2->ns_len &&
		memcmp(xid1->ns, xid2->ns, xid1->ns_len) == 0;
}

/* A message of the mailbox has it, as it is now and not as this process saw it
   when replication began. Mostly a look at the header: what is new has a higher
   number than all before. */
static bool
xid_import_is_here(struct xid_import *im, const struct imap_xid *xid)
{
	struct xid_mailbox *xbox = im->xbox;
	struct mail_index_view *view;
	struct xid_header_info info;
	struct xid_record rec;
	uint32_t idx, seq;
	bool found = FALSE;

	(void)mail_index_refresh(xbox->box->index);
	xid_header_read(xbox, NULL, &info);
	idx = xid_header_find(&info, xid->ns, xid->ns_len);
	if (idx == XID_NO_NAMESPACE || xid->number > info.entries[idx].high)
		return FALSE;
	view = mail_index_view_open(xbox->box->index);
	seq = mail_index_view_get_messages_count(view);
	for (; seq > 0 && !found; seq--) {
		found = xid_record_get(xbox, view, seq, &rec) &&
			rec.number == xid->number && rec.ns == idx;
	}
	mail_index_view_close(&view);
	return found;
}

/* Another message has it: one that shares the GUID. */
static bool
xid_import_is_taken(struct xid_import *im, const struct imap_xid *xid)
{
	struct xid_saved_mail *mails;
	unsigned int i, count = xid_saved_mails(im->t, &mails);

	for (i = 0; i < count; i++) {
		if (mails[i].keep.number != 0 &&
		    xid_is_same(&mails[i].keep, xid))
			return TRUE;
	}
	return xid_import_is_here(im, xid);
}

/* Take what one of a message's instances on other nodes says. Where that has the
   UID that replication wants the message to have it is the very same, whatever
   has its XID here: that moves. Else it is one whose XID is free. */
static void
xid_import_take_answer(struct xid_import *im, struct xid_saved_mail *mail,
		       const char *answer, bool same_uid)
{
	const char *const *found = t_strsplit(answer, ",");
	struct imap_xid xid;
	uint32_t uid;

	for (; *found != NULL; found++) {
		if (xid_answer_parse(*found, &uid, &xid) < 0 ||
		    (same_uid && (uid != mail->wanted_uid || uid == 0)))
			continue;
		if (!xid_import_is_taken(im, &xid)) {
			xid_saved_mail_set_xid(im->t, mail, &xid);
			return;
		}
		if (same_uid) {
			xid_saved_mail_move_xid(im->t, mail, &xid);
			return;
		}
	}
}

/* Ask for the messages that have no XID so far; -1 = the daemon cannot say.
   answers is by message, and has NULL where nobody knows one. */
static int
xid_import_ask_daemon(struct xid_import *im, enum xid_asking asking,
		      ARRAY_TYPE(const_string) *answers, const char **error_r)
{
	ARRAY_TYPE(const_string) guids, found;
	struct xid_saved_mail *const *mails;
	const char *answer;
	unsigned int i, next = 0, count;

	mails = array_get(&im->mails, &count);
	t_array_init(&guids, count);
	t_array_init(&found, count);
	for (i = 0; i < count; i++) {
		if (mails[i]->keep.number == 0)
			array_push_back(&guids, &mails[i]->guid);
	}
	if (xid_daemon_xids(im->xbox, asking, &guids, &found, error_r) < 0)
		return -1;
	for (i = 0; i < count; i++) {
		answer = NULL;
		if (mails[i]->keep.number == 0) {
			answer = array_idx_elem(&found, next++);
			if (strcmp(answer, XID_UNKNOWN_ORIGIN) == 0)
				answer = NULL;
		}
		array_idx_set(answers, i, &answer);
	}
	return 0;
}

/* Those at the same UIDs first: the others' XIDs are free only then. Returns
   whether there are messages that others know, but not so that we know which
   one it is. */
static bool
xid_import_take_answers(struct xid_import *im,
			const ARRAY_TYPE(const_string) *answers)
{
	struct xid_saved_mail *const *mails;
	const char *answer;
	unsigned int i, pass, count;
	bool unclear = FALSE;

	mails = array_get(&im->mails, &count);
	for (pass = 0; pass < 2; pass++) {
		for (i = 0; i < count; i++) {
			answer = array_idx_elem(answers, i);
			if (mails[i]->keep.number == 0 && answer != NULL) {
				xid_import_take_answer(im, mails[i], answer,
						       pass == 0);
			}
		}
	}
	for (i = 0; i < count; i++) {
		answer = array_idx_elem(answers, i);
		if (mails[i]->keep.number == 0 && answer != NULL)
			unclear = TRUE;
	}
	return unclear;
}

/* All nodes said what they have, and every XID that it may be another message
   has here. So it is that message, which moved: replication copied it, or it
   came from several nodes. Until one of them goes it is here twice. */
static void
xid_import_take_moved(struct xid_import *im,
		      const ARRAY_TYPE(const_string) *answers)
{
	struct xid_saved_mail *const *mails;
	struct imap_xid xid;
	const char *answer;
	unsigned int i, count;
	uint32_t uid;

	mails = array_get(&im->mails, &count);
	for (i = 0; i < count; i++) {
		answer = array_idx_elem(answers, i);
		if (mails[i]->keep.number != 0)
			continue;
		if (mails[i]->copied.number != 0) {
			xid_saved_mail_move_xid(im->t, mails[i],
						&mails[i]->copied);
		} else if (answer != NULL &&
			   xid_answer_parse(t_strcut(answer, ','), &uid,
					    &xid) == 0)
			xid_saved_mail_move_xid(im->t, mails[i], &xid);
	}
}

static int xid_import_ask_nodes(struct xid_import *im, const char **error_r)
{
	ARRAY_TYPE(const_string) answers;

	t_array_init(&answers, array_count(&im->mails));
	if (xid_import_ask_daemon(im, XID_ASK_QUICKLY, &answers, error_r) < 0)
		return -1;
	if (xid_import_take_answers(im, &answers)) {
		/* what was published is not always what is there by now */
		if (xid_import_ask_daemon(im, XID_ASK_EVERYBODY, &answers,
					  error_r) < 0)
			return -1;
		(void)xid_import_take_answers(im, &answers);
	}
	xid_import_take_moved(im, &answers);
	return 0;
}

/* What the registry remembers of a message that was here. */
static int
xid_import_take_remembered(struct xid_import *im, imap_xid_recovery *registry,
			   struct xid_saved_mail *mail)
{
	size_t len = strlen(mail->guid);
	struct imap_xid xid;
	int ret;

	ret = imap_xid_recovery_take_at(registry, mail->guid, len,
					mail->wanted_uid, &xid);
	if (ret == 0)
		ret = imap_xid_recovery_take(registry, mail->guid, len, &xid);
	while (ret > 0 && xid_import_is_taken(im, &xid))
		ret = imap_xid_recovery_take(registry, mail->guid, len, &xid);
	if (ret > 0)
		xid_saved_mail_set_xid(im->t, mail, &xid);
	return ret;
}

static int xid_import_ask_registry(struct xid_import *im)
{
	imap_xid_box *core = xid_box_open(im->xbox);
	imap_xid_recovery *registry = NULL;
	struct xid_saved_mail *const *mails;
	unsigned int i, count;
	int ret = -1;

	if (core != NULL)
		ret = imap_xid_recovery_begin(core, &registry);
	mails = array_get(&im->mails, &count);
	for (i = 0; ret > 0 && i < count; i++) {
		if (mails[i]->keep.number == 0 &&
		    xid_import_take_remembered(im, registry, mails[i]) < 0)
			ret = -1;
	}
	imap_xid_recovery_free(registry);
	if (ret < 0)
		xid_mailbox_log_error(im->xbox, "XIDs of replicated messages");
	return ret < 0 ? -1 : 0;
}

static bool xid_import_is_complete(struct xid_import *im)
{
	struct xid_saved_mail *mail;

	array_foreach_elem(&im->mails, mail) {
		if (mail->keep.number == 0)
			return FALSE;
	}
	return TRUE;
}

/* The daemon first: it mostly knows, and to ask it is quicker. What neither
   knows comes from a node without the plug-in. */
static int xid_import_find_xids(struct xid_import *im)
{
	const char *error = NULL;
	int ret = xid_import_ask_nodes(im, &error);

	if (xid_import_is_complete(im))
		return 0;
	if (xid_import_ask_registry(im) == 0 &&
	    (ret == 0 || xid_import_is_complete(im))) {
		xid_daemon_begin_numbers(im->xbox);
		return 0;
	}
	e_error(im->xbox->xuser->user->event, "xid: %s: %s: replication "
		"refused (the XIDs of its messages are not known: %s)",
		im->xbox->xuser->user->username,
		mailbox_get_vname(im->xbox->box),
		error != NULL ? error : imap_xid_last_error());
	mail_storage_set_error(im->xbox->box->storage, MAIL_ERROR_TEMP,
		"The XIDs of messages are not known yet, try again later");
	return -1;
}

/*
 * What was expunged here
 */

/* It may have been here: what is new has a higher number than all before. */
static bool
xid_import_may_be_old(struct xid_import *im, const struct imap_xid *xid)
{
	struct xid_header_info info;
	uint32_t idx;

	xid_header_read(im->xbox, NULL, &info);
	idx = xid_header_find(&info, xid->ns, xid->ns_len);
	return idx != XID_NO_NAMESPACE && xid->number <= info.entries[idx].high;
}

/* Of expunged messages with this GUID one had the XID. */
static bool
xid_import_is_gone(imap_xid_box *core, const char *guid,
		   const struct imap_xid *xid)
{
	struct imap_xid_pending rows[XID_GONE_ROWS];
	struct imap_xid gone;
	int32_t i, count;

	count = imap_xid_box_gone(core, guid, strlen(guid), rows,
				  N_ELEMENTS(rows));
	for (i = 0; i < count; i++) {
		gone.ns = rows[i].ns;
		gone.ns_len = strlen(rows[i].ns);
		gone.number = rows[i].number;
		if (xid_is_same(&gone, xid))
			return TRUE;
	}
	return FALSE;
}

/* Replication that has no state of two nodes, and cannot tell up to which UID
   they have the same, takes what one of them expunged for a message that it
   lacks: it would come back under another UID. What a client puts there again,
   on a node that does not know of the first time, has another XID. */
static void
xid_import_note_expunged(struct xid_import *im, struct xid_saved_mail *mail)
{
	imap_xid_box *core = xid_box_open(im->xbox);
	const char *guid = xid_guid_registered(im->xbox, mail->guid);
	uint32_t uid;

	if (core != NULL &&
	    imap_xid_box_expunged(core, guid, strlen(guid), &uid) > 0 &&
	    xid_import_is_gone(core, guid, &mail->keep))
		mail->expunged_uid = uid;
}

static void xid_import_find_returning(struct xid_import *im)
{
	struct xid_saved_mail *mail;

	array_foreach_elem(&im->mails, mail) {
		if (mail->keep.number == 0 ||
		    !xid_import_may_be_old(im, &mail->keep))
			continue;
		im->returns = TRUE;
		xid_import_note_expunged(im, mail);
	}
}

/*
 * Room for it in the index
 */

static bool
xid_import_has_namespace(const ARRAY_TYPE(xid_header_entry) *entries,
			 const struct imap_xid *xid)
{
	struct xid_header_info info;

	i_zero(&info);
	info.entries = array_get(entries, &info.count);
	return xid_header_find(&info, xid->ns, xid->ns_len) != XID_NO_NAMESPACE;
}

/* The namespaces of the header and those that messages need besides. Returns
   whether there are any of the latter. */
static bool
xid_import_namespaces(struct xid_import *im,
		      ARRAY_TYPE(xid_header_entry) *entries,
		      uint32_t *covered_uid_r)
{
	struct xid_saved_mail *mails;
	unsigned int i, count = xid_saved_mails(im->t, &mails);
	struct xid_header_entry *entry;
	struct xid_header_info info;

	xid_header_read(im->xbox, NULL, &info);
	*covered_uid_r = info.covered_uid;
	t_array_init(entries, info.count + 1);
	if (info.count > 0)
		array_append(entries, info.entries, info.count);
	for (i = 0; i < count; i++) {
		if (mails[i].keep.number == 0 ||
		    xid_import_has_namespace(entries, &mails[i].keep))
			continue;
		entry = array_append_space(entries);
		i_assert(mails[i].keep.ns_len < sizeof(entry->name));
		memcpy(entry->name, mails[i].keep.ns, mails[i].keep.ns_len);
	}
	return array_count(entries) > info.count;
}

/* Under the index's lock: another process may be adding one, too. A namespace
   without numbers shows nowhere. */
static int xid_import_write_namespaces(struct xid_import *im)
{
	struct mail_index *index = im->xbox->box->index;
	ARRAY_TYPE(xid_header_entry) entries;
	struct mail_index_transaction *trans;
	struct mail_index_view *view;
	uint32_t covered_uid;
	int ret = 0;

	if (mail_index_refresh(index) < 0)
		return -1;
	if (!xid_import_namespaces(im, &entries, &covered_uid))
		return 0;
	view = mail_index_view_open(index);
	trans = mail_index_transaction_begin(view,
		MAIL_INDEX_TRANSACTION_FLAG_EXTERNAL);
	xid_header_write(im->xbox, trans, array_front(&entries),
			 array_count(&entries), covered_uid);
	ret = mail_index_transaction_commit(&trans);
	mail_index_view_close(&view);
	return ret;
}

static int xid_import_add_namespaces(struct xid_import *im)
{
	struct mailbox *box = im->xbox->box;
	ARRAY_TYPE(xid_header_entry) entries;
	uint32_t covered_uid;
	int ret;

	if (!xid_import_namespaces(im, &entries, &covered_uid))
		return 0;
	ret = mail_index_lock_sync(box->index, XID_LOCK_REASON);
	if (ret == 0) {
		ret = xid_import_write_namespaces(im);
		mail_index_unlock(box->index, XID_LOCK_REASON);
	}
	if (ret == 0)
		ret = mail_index_refresh(box->index);
	if (ret < 0)
		mailbox_set_index_error(box);
	return ret < 0 ? -1 : 0;
}

/* A number of our own that we never gave: this disk replaces one that was lost.
   From here on all new numbers are above every one that was given there. */
static int xid_import_own_numbers(struct xid_import *im)
{
	const char *ns = im->xbox->xuser->set.namespace;
	size_t ns_len = strlen(ns);
	imap_xid_root *root = xid_root_open(im->xbox);
	struct xid_saved_mail *mails;
	unsigned int i, count = xid_saved_mails(im->t, &mails);
	uint64_t highest = 0, given, skipped;

	for (i = 0; i < count; i++) {
		if (mails[i].keep.ns_len == ns_len &&
		    memcmp(mails[i].keep.ns, ns, ns_len) == 0)
			highest = I_MAX(highest, mails[i].keep.number);
	}
	if (highest == 0 || root == NULL)
		return 0;
	if (imap_xid_counter(root, &given) < 0 ||
	    (highest > given &&
	     imap_xid_numbers_take(root, highest, 1, &skipped) < 0)) {
		xid_mailbox_log_error(im->xbox, "numbers that come back");
		mail_storage_set_internal_error(im->xbox->box->storage);
		return -1;
	}
	return 0;
}

int xid_import_prepare(struct mailbox_transaction_context *t)
{
	struct xid_import im;
	imap_xid_box *core;

	i_zero(&im);
	im.t = t;
	im.xbox = xid_mailbox_context(t->box);
	if (!xid_user_is_clustered(im.xbox->xuser))
		return 0;
	xid_import_find_mails(&im);
	if (array_count(&im.mails) == 0)
		return 0;
	if (xid_import_find_xids(&im) < 0 ||
	    xid_import_own_numbers(&im) < 0)
		return -1;
	xid_import_find_returning(&im);
	core = xid_wait_attached(im.xbox->wait);
	if (im.returns && core != NULL && xid_is_joining(core))
		xid_maildir_forget_gone(t->box);
	return xid_import_add_namespaces(&im);
}
