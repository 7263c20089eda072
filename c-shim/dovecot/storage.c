/* Every message that is saved gets its XID in its own index transaction. */
#include "xid-index.h"
#include "cluster.h"
#include "guid.h"
#include "mail-index-private.h"
#include "mail-index-modseq.h"
#include "mail-index-transaction-private.h"
#include "dbox-save.h"
#include "maildir-storage.h"
#include "maildir-uidlist.h"
#include "maildir-filename.h"

#define XID_TRANSACTION_CONTEXT(obj) \
	MODULE_CONTEXT(obj, xid_transaction_module)

/* UIDs that are looked up one by one in a maildir's uidlist, at most. */
#define XID_UID_GAP_MAX 1000

struct xid_transaction {
	union mailbox_transaction_module_context module_ctx;
	pool_t pool;
	/* by seq; only what the storage does not tell at commit */
	ARRAY(struct xid_saved_mail) mails;
	/* dsync was told of a copy that it is there, and it is not */
	bool lacks_copy;
};

/* A message of the transaction that is being committed. */
struct xid_append {
	uint32_t seq, uid;
};
ARRAY_DEFINE_TYPE(xid_append, struct xid_append);

static MODULE_CONTEXT_DEFINE_INIT(xid_transaction_module,
				  &mail_storage_module_register);

/* sdbox and mdbox write the GUID into the message's metadata, where it is not
   cheap to read back. */
static bool xid_storage_is_dbox(const struct mailbox *box)
{
	const char *name = box->storage->name;

	return strcmp(name, "sdbox") == 0 || strcmp(name, "mdbox") == 0 ||
		strcmp(name, "dbox") == 0;
}

bool xid_storage_is_maildir(const struct mailbox *box)
{
	return strcmp(box->storage->name, MAILDIR_STORAGE_NAME) == 0;
}

/*
 * While messages are saved
 */

static struct xid_transaction *
xid_transaction_get(struct mailbox_transaction_context *t)
{
	struct xid_transaction *xt = XID_TRANSACTION_CONTEXT(t);
	pool_t pool;

	if (xt == NULL) {
		pool = pool_alloconly_create("xid transaction", 1024);
		xt = p_new(pool, struct xid_transaction, 1);
		xt->pool = pool;
		p_array_init(&xt->mails, pool, 8);
		MODULE_CONTEXT_SET(t, xid_transaction_module, xt);
	}
	return xt;
}

static struct xid_saved_mail *
xid_saved_mail_get(struct mailbox_transaction_context *t, uint32_t seq)
{
	struct xid_transaction *xt = xid_transaction_get(t);
	struct xid_saved_mail *mail;

	if (array_count(&xt->mails) > 0) {
		mail = array_back_modifiable(&xt->mails);
		if (mail->seq == seq)
			return mail;
	}
	mail = array_append_space(&xt->mails);
	mail->seq = seq;
	return mail;
}

/* A save that failed gives its sequence to the next one: forget it. */
static void xid_saved_mail_begin(struct mailbox_transaction_context *t)
{
	struct xid_transaction *xt = XID_TRANSACTION_CONTEXT(t);
	const struct xid_saved_mail *mail;

	while (xt != NULL && array_count(&xt->mails) > 0) {
		mail = array_back(&xt->mails);
		if (mail->seq <= t->itrans->last_new_seq)
			break;
		array_pop_back(&xt->mails);
	}
}

static void xid_transaction_free(struct mailbox_transaction_context *t)
{
	struct xid_transaction *xt = XID_TRANSACTION_CONTEXT(t);

	if (xt == NULL)
		return;
	MODULE_CONTEXT_UNSET(t, xid_transaction_module);
	pool_unref(&xt->pool);
}

/* The message that was put last into the transaction; guid NULL = leave it. */
static struct xid_saved_mail *
xid_saved_mail_last(struct mailbox_transaction_context *t, const char *guid)
{
	struct xid_saved_mail *mail =
		xid_saved_mail_get(t, t->itrans->last_new_seq);
	struct xid_transaction *xt = XID_TRANSACTION_CONTEXT(t);

	if (guid != NULL)
		mail->guid = p_strdup(xt->pool, guid);
	return mail;
}

unsigned int xid_saved_mails(struct mailbox_transaction_context *t,
			     struct xid_saved_mail **mails_r)
{
	struct xid_transaction *xt = XID_TRANSACTION_CONTEXT(t);
	unsigned int count;

	/* the last save may have failed */
	xid_saved_mail_begin(t);
	*mails_r = NULL;
	if (xt == NULL || array_count(&xt->mails) == 0)
		return 0;
	*mails_r = array_get_modifiable(&xt->mails, &count);
	return count;
}

void xid_saved_mail_set_xid(struct mailbox_transaction_context *t,
			    struct xid_saved_mail *mail,
			    const struct imap_xid *xid)
{
	struct xid_transaction *xt = XID_TRANSACTION_CONTEXT(t);

	mail->keep = *xid;
	mail->keep.ns = p_strndup(xt->pool, xid->ns, xid->ns_len);
}

void xid_saved_mail_move_xid(struct mailbox_transaction_context *t,
			     struct xid_saved_mail *mail,
			     const struct imap_xid *xid)
{
	xid_saved_mail_set_xid(t, mail, xid);
	/* it is written down while it moves */
	mail->imported = FALSE;
}

void xid_save_keeps_xid(struct mailbox_transaction_context *t,
			const struct imap_xid *xid, const char *guid,
			ino_t inode)
{
	struct xid_saved_mail *mail = xid_saved_mail_last(t, guid);

	mail->inode = inode;
	xid_saved_mail_set_xid(t, mail, xid);
}

static int xid_saved_mail_seq_cmp(const uint32_t *seq,
				  const struct xid_saved_mail *mail)
{
	return *seq < mail->seq ? -1 : (*seq > mail->seq ? 1 : 0);
}

/* A delivery opens the mailbox for one message, and a client that saves what it
   sent for few. To know the MODSEQ at which the index stands such a process
   reads the whole of the index's log, up to a megabyte and twice as many records
   with XIDs as without, unless the index says: and it does once MODSEQs are
   tracked, as they are when a client has used CONDSTORE. It costs 8 octets a
   message. */
static void xid_save_tracks_modseqs(struct xid_mailbox *xbox)
{
	struct mail_index *index = xbox->box->index;

	if (!index->readonly && !mail_index_have_modseq_tracking(index))
		mail_index_modseq_enable(index);
}

static struct mailbox_transaction_context *
xid_transaction_begin(struct mailbox *box,
		      enum mailbox_transaction_flags flags, const char *reason)
{
	struct xid_mailbox *xbox = xid_mailbox_context(box);

	if (!xbox->disabled &&
	    (flags & MAILBOX_TRANSACTION_FLAG_EXTERNAL) != 0) {
		/* maildir otherwise leaves the UID, and with it the XID, to
		   whoever looks next */
		flags |= MAILBOX_TRANSACTION_FLAG_ASSIGN_UIDS;
		xid_save_tracks_modseqs(xbox);
		/* what was there before comes before what is saved now */
		xid_mailbox_prepare_save(xbox);
	}
	return xbox->module_ctx.super.transaction_begin(box, flags, reason);
}

/* Replication saves where somebody says which UIDs are stable. */
static bool xid_save_is_replication(const struct xid_mailbox *xbox)
{
	return xbox->xuser->user->dsyncing &&
		xbox->xuser->set.uid_source != XID_UID_SOURCE_LOCAL;
}

/* What replication wants of the message that was put last into t. */
static void
xid_saved_mail_replicated(struct mailbox_transaction_context *t,
			  const char *guid, uint32_t wanted_uid)
{
	struct xid_mailbox *xbox = xid_mailbox_context(t->box);
	struct xid_saved_mail *mail = xid_saved_mail_last(t, guid);

	mail->wanted_uid = wanted_uid;
	mail->imported = guid != NULL &&
		xbox->xuser->set.uid_source == XID_UID_SOURCE_CLUSTER;
}

static int xid_save_begin(struct mail_save_context *ctx, struct istream *input)
{
	struct mailbox *box = ctx->transaction->box;
	struct xid_mailbox *xbox = xid_mailbox_context(box);
	bool dbox = !xbox->disabled && xid_storage_is_dbox(box);
	bool replication = !xbox->disabled && xid_save_is_replication(xbox);
	bool has_guid = ctx->data.guid != NULL;
	guid_128_t guid;

	xid_saved_mail_begin(ctx->transaction);
	/* The storage would make one up itself, but not tell. */
	if (dbox && ctx->data.guid == NULL) {
		guid_128_generate(guid);
		mailbox_save_set_guid(ctx, guid_128_to_string(guid));
	}
	if (xbox->module_ctx.super.save_begin(ctx, input) < 0)
		return -1;
	if (replication) {
		xid_saved_mail_replicated(ctx->transaction, has_guid ?
					  ctx->data.guid : NULL, ctx->data.uid);
	}
	if (dbox)
		xid_saved_mail_last(ctx->transaction, ctx->data.guid);
	return 0;
}

/* dsync gives a message another UID by moving it within its mailbox. That is
   the same message still. */
static bool
xid_copy_is_renumbering(const struct mail_save_context *ctx,
			const struct mail *mail)
{
	return ctx->moving && mail->box == ctx->transaction->box &&
		mail->box->storage->user->dsyncing;
}

static void
xid_saved_mail_keep(struct mailbox_transaction_context *t,
		    struct xid_mailbox *xbox, struct mail *mail,
		    struct xid_saved_mail *saved)
{
	struct imap_xid xid;

	saved->imported = FALSE;
	saved->moved_uid = mail->uid;
	if (xid_mail_get(xbox, mail->transaction->view, mail->seq, &xid))
		xid_saved_mail_set_xid(t, saved, &xid);
}

/* Replication does not move each message that moved elsewhere: where it finds
   one that it is to save here by the same GUID, it copies that, and expunges it
   later as it was expunged there. Which XID it has is found out at the commit:
   copies that clients make share a GUID, too. */
static void
xid_saved_mail_copied(struct mailbox_transaction_context *t,
		      struct xid_mailbox *xbox, struct mail *mail)
{
	struct xid_saved_mail *saved = xid_saved_mail_last(t, NULL);
	struct imap_xid xid;

	if (!saved->imported || mail->box != t->box ||
	    !xid_mail_get(xbox, mail->transaction->view, mail->seq, &xid))
		return;
	xid_saved_mail_set_xid(t, saved, &xid);
	saved->copied = saved->keep;
	i_zero(&saved->keep);
}

static bool
xid_saves_guid(struct mailbox_transaction_context *t, const char *guid)
{
	struct xid_saved_mail *mails;
	unsigned int i, count = xid_saved_mails(t, &mails);

	for (i = 0; i < count; i++) {
		if (mails[i].guid != NULL && strcmp(mails[i].guid, guid) == 0)
			return TRUE;
	}
	return FALSE;
}

/* Storages let a copy keep its source's GUID. But replication takes two
   messages of a mailbox that share a GUID for one, and what was expunged for
   what it shall take away elsewhere. */
static bool
xid_copy_needs_guid(const struct mail_save_context *ctx, struct mail *mail)
{
	struct mailbox_transaction_context *t = ctx->transaction;
	struct xid_mailbox *xbox = xid_mailbox_context(t->box);
	const char *guid;

	if (xbox->disabled || ctx->data.guid != NULL ||
	    !xid_user_is_clustered(xbox->xuser) ||
	    xid_user_replicates(xbox->xuser) ||
	    mail_get_special(mail, MAIL_FETCH_GUID, &guid) < 0 || *guid == '\0')
		return FALSE;
	return xid_saves_guid(t, guid) || xid_mailbox_had_guid(t->box, guid);
}

/* The file is written anew: links to the source's would keep its GUID. */
static int xid_copy_with_new_guid(struct mail_save_context *ctx,
				  struct mail *mail)
{
	struct mailbox *box = ctx->transaction->box;
	bool disabled = box->disable_reflink_copy_to;
	guid_128_t guid;
	int ret;

	if (xid_storage_is_maildir(box)) {
		/* the file is called so */
		mailbox_save_set_guid(ctx, maildir_filename_generate());
	} else {
		guid_128_generate(guid);
		mailbox_save_set_guid(ctx, guid_128_to_string(guid));
	}
	box->disable_reflink_copy_to = TRUE;
	ret = xid_mailbox_context(box)->module_ctx.super.copy(ctx, mail);
	box->disable_reflink_copy_to = disabled;
	return ret;
}

/* dsync moves a message that was expunged since it looked. It then asks the
   other node for that message, and where that never had it, it asks for nothing
   in particular, which ends it with an assertion (dsync_ibc_send_mail_request).
   So it is told that all is well, and the commit is refused: the next sync
   finds the message gone. */
static int
xid_copy_expunged(struct mailbox_transaction_context *t, uint32_t wanted_uid)
{
	struct xid_mailbox *xbox = xid_mailbox_context(t->box);

	if (wanted_uid == 0 || xbox->disabled ||
	    !xid_user_is_clustered(xbox->xuser) ||
	    mailbox_get_last_mail_error(t->box) != MAIL_ERROR_EXPUNGED)
		return -1;
	xid_transaction_get(t)->lacks_copy = TRUE;
	return 0;
}

/* sdbox remembers until the end of the transaction that a save was cancelled or
   failed, and then removes the files of all its messages, which are committed
   by then. dsync cancels a save where the message was expunged on the other node
   after it was announced, and goes on; after other failures it commits what it
   has as well. The messages would be lost on both nodes: what has no file is
   expunged, and replication carries that on. */
static bool xid_sdbox_removes_files(struct mailbox_transaction_context *t)
{
	return t->save_ctx != NULL && t->save_count > 0 &&
		strcmp(t->box->storage->name, "sdbox") == 0 &&
		(DBOX_SAVECTX(t->save_ctx))->failed;
}

bool xid_transaction_is_spoilt(struct mailbox_transaction_context *t)
{
	struct xid_transaction *xt = XID_TRANSACTION_CONTEXT(t);

	return (xt != NULL && xt->lacks_copy) || xid_sdbox_removes_files(t);
}

static int xid_copy(struct mail_save_context *ctx, struct mail *mail)
{
	struct mailbox_transaction_context *t = ctx->transaction;
	struct xid_mailbox *xbox = xid_mailbox_context(t->box);
	bool renumbering = xid_copy_is_renumbering(ctx, mail);
	/* the context is freed by the copy */
	uint32_t wanted_uid = ctx->data.uid;
	const char *wanted_guid = t_strdup(ctx->data.guid);
	struct xid_saved_mail *saved;
	const char *guid;

	xid_saved_mail_begin(t);
	if (xid_copy_needs_guid(ctx, mail)) {
		return xid_copy_with_new_guid(ctx, mail);
	} else if (xbox->module_ctx.super.copy(ctx, mail) < 0) {
		return renumbering ? xid_copy_expunged(t, wanted_uid) : -1;
	}
	if (xbox->disabled)
		return 0;
	if (xid_save_is_replication(xbox)) {
		xid_saved_mail_replicated(t, wanted_guid, wanted_uid);
		if (!renumbering)
			xid_saved_mail_copied(t, xbox, mail);
	}
	if (xid_storage_is_dbox(t->box)) {
		saved = xid_saved_mail_last(t, NULL);
		/* If it was not saved anew it has its source's GUID. */
		if (saved->guid == NULL &&
		    mail_get_special(mail, MAIL_FETCH_GUID, &guid) == 0)
			saved = xid_saved_mail_last(t, guid);
	} else if (renumbering) {
		if (mail_get_special(mail, MAIL_FETCH_GUID, &guid) < 0)
			guid = NULL;
		saved = xid_saved_mail_last(t, guid);
	} else {
		return 0;
	}
	if (renumbering)
		xid_saved_mail_keep(t, xbox, mail, saved);
	return 0;
}

/*
 * At commit
 */

static int xid_append_cmp(const struct xid_append *a1,
			  const struct xid_append *a2)
{
	return a1->uid < a2->uid ? -1 : (a1->uid > a2->uid ? 1 : 0);
}

/* The messages that the transaction adds, by UID: dsync does not save in that
   order. */
static void
xid_appends_get(struct mail_index_transaction *itrans,
		ARRAY_TYPE(xid_append) *appends)
{
	const struct mail_index_record *rec;
	struct xid_append *append;
	uint32_t seq;

	for (seq = itrans->first_new_seq; seq <= itrans->last_new_seq; seq++) {
		rec = mail_index_transaction_lookup(itrans, seq);
		if (rec->uid == 0)
			continue;
		append = array_append_space(appends);
		append->seq = seq;
		append->uid = rec->uid;
	}
	array_sort(appends, xid_append_cmp);
}

static const char *
xid_maildir_guid(struct mailbox *box, uint32_t uid)
{
	struct maildir_mailbox *mbox = MAILDIR_MAILBOX(box);
	enum maildir_uidlist_rec_flag flags;
	const char *guid, *fname;

	if (maildir_uidlist_lookup(mbox->uidlist, uid, &flags, &fname) <= 0)
		return "";
	guid = maildir_uidlist_lookup_ext(mbox->uidlist, uid,
					  MAILDIR_UIDLIST_REC_EXT_GUID);
	return guid != NULL ? guid :
		t_strcut(fname, MAILDIR_INFO_SEP);
}

static const struct xid_saved_mail *
xid_saved_mail_find(struct mailbox_transaction_context *t, uint32_t seq)
{
	struct xid_transaction *xt = XID_TRANSACTION_CONTEXT(t);

	if (xt == NULL)
		return NULL;
	return array_bsearch(&xt->mails, &seq, xid_saved_mail_seq_cmp);
}

static const char *
xid_append_guid(struct mailbox_transaction_context *t,
		const struct xid_append *append,
		const struct xid_saved_mail *saved)
{
	if (xid_storage_is_maildir(t->box))
		return xid_maildir_guid(t->box, append->uid);
	if (saved == NULL || saved->guid == NULL)
		return "";
	return xid_guid_registered(xid_mailbox_context(t->box), saved->guid);
}

/* A wide gap, as where the next UID was raised: one look at the whole list. */
static bool
xid_maildir_list_has_more(struct maildir_uidlist *uidlist,
			  struct mail_index_view *view,
			  uint32_t uid1, uint32_t uid2)
{
	struct maildir_uidlist_iter_ctx *iter;
	enum maildir_uidlist_rec_flag flags;
	const char *fname;
	uint32_t uid, seq;
	bool found = FALSE;

	iter = maildir_uidlist_iter_init(uidlist);
	while (!found && maildir_uidlist_iter_next(iter, &uid, &flags, &fname)) {
		found = uid >= uid1 && uid <= uid2 &&
			!mail_index_lookup_seq(view, uid, &seq);
	}
	maildir_uidlist_iter_deinit(&iter);
	return found;
}

/* The index may hear only now of a file that is in the uidlist already. */
static bool
xid_maildir_has_more(struct xid_mailbox *xbox, struct mail_index_view *view,
		     uint32_t uid1, uint32_t uid2)
{
	struct maildir_mailbox *mbox = MAILDIR_MAILBOX(xbox->box);
	enum maildir_uidlist_rec_flag flags;
	const char *fname;
	uint32_t uid, seq;

	if (uid2 - uid1 > XID_UID_GAP_MAX) {
		return xid_maildir_list_has_more(mbox->uidlist, view,
						 uid1, uid2);
	}
	for (uid = uid1; uid <= uid2; uid++) {
		if (!mail_index_lookup_seq(view, uid, &seq) &&
		    maildir_uidlist_lookup(mbox->uidlist, uid,
					   &flags, &fname) > 0)
			return TRUE;
	}
	return FALSE;
}

/* Every message before UID has an XID. Mostly a look at the header; the
   messages are looked at when there is a gap in the UIDs. */
static bool xid_all_have_xids_before(struct xid_mailbox *xbox,
				     uint32_t covered_uid, uint32_t uid)
{
	struct mail_index_view *view;
	struct xid_record rec;
	uint32_t seq, seq2;
	bool have = TRUE;

	if (uid - 1 <= covered_uid)
		return TRUE;
	view = mail_index_view_open(xbox->box->index);
	if (mail_index_lookup_seq_range(view, covered_uid + 1, uid - 1,
					&seq, &seq2)) {
		for (; have && seq <= seq2; seq++)
			have = xid_record_get(xbox, view, seq, &rec);
	}
	if (have && xid_storage_is_maildir(xbox->box)) {
		have = !xid_maildir_has_more(xbox, view, covered_uid + 1,
					     uid - 1);
	}
	mail_index_view_close(&view);
	return have;
}

/* This node's place in the header, if the messages can have their XIDs now.
   They cannot where the index was rebuilt since the transaction began: others
   have lost theirs, and these would overtake them. Whoever syncs the mailbox
   next gives all of them their XIDs, in order. */
static bool
xid_appends_allowed(struct xid_mailbox *xbox,
		    const struct xid_header_info *info,
		    const ARRAY_TYPE(xid_append) *appends, uint32_t *idx_r)
{
	const char *ns = xbox->xuser->set.namespace;
	const struct xid_append *first = array_front(appends);

	*idx_r = xid_header_find(info, ns, strlen(ns));
	return *idx_r != XID_NO_NAMESPACE &&
		xid_all_have_xids_before(xbox, info->covered_uid, first->uid);
}

/* The numbers that the transaction writes. */
struct xid_numbers {
	/* by namespace: the highest in the mailbox, then with the new ones */
	uint64_t *high;
	/* of this node's namespace */
	uint32_t own;
	uint64_t next;
	/* how many messages need a new one */
	unsigned int wanted;
};

/* See which XIDs messages keep. FALSE = one of them is of a namespace that the
   header does not have: the index was rebuilt just now, and whoever syncs the
   mailbox next finds that XID again. */
static bool
xid_numbers_init(struct mailbox_transaction_context *t,
		 const struct xid_header_info *info,
		 const ARRAY_TYPE(xid_append) *appends,
		 struct xid_numbers *numbers)
{
	const struct xid_saved_mail *saved;
	const struct xid_append *append;
	uint32_t idx;

	numbers->high = t_new(uint64_t, info->count);
	for (idx = 0; idx < info->count; idx++)
		numbers->high[idx] = info->entries[idx].high;
	array_foreach(appends, append) {
		saved = xid_saved_mail_find(t, append->seq);
		if (saved == NULL || saved->keep.number == 0) {
			numbers->wanted++;
			continue;
		}
		idx = xid_header_find(info, saved->keep.ns,
				      saved->keep.ns_len);
		if (idx == XID_NO_NAMESPACE)
			return FALSE;
		numbers->high[idx] = I_MAX(numbers->high[idx],
					   saved->keep.number);
	}
	return TRUE;
}

/* New numbers are above all that the mailbox has of ours, also those that come
   back from another node in this transaction. */
static int
xid_numbers_take(imap_xid_root *root, struct xid_numbers *numbers)
{
	uint64_t above = numbers->high[numbers->own];

	if (numbers->wanted == 0)
		return 0;
	if (imap_xid_numbers_take(root, above, numbers->wanted,
				  &numbers->next) < 0)
		return -1;
	numbers->high[numbers->own] = numbers->next + numbers->wanted - 1;
	return 0;
}

/* The message's XID: the one that it keeps, else the next number. */
static void
xid_append_record(const struct xid_header_info *info,
		  const struct xid_saved_mail *saved,
		  struct xid_numbers *numbers, struct xid_record *rec_r)
{
	i_zero(rec_r);
	if (saved != NULL && saved->keep.number != 0) {
		rec_r->number = saved->keep.number;
		rec_r->ns = xid_header_find(info, saved->keep.ns,
					    saved->keep.ns_len);
	} else {
		rec_r->number = numbers->next++;
		rec_r->ns = numbers->own;
	}
}

/* The XID was in this mailbox before: until the message that had it goes, two
   have it. */
static void
xid_append_moved(struct xid_mailbox *xbox, struct mail_index_transaction *trans,
		 const struct xid_header_info *info,
		 const struct xid_append *append, const struct xid_record *rec)
{
	if (rec->number <= info->entries[rec->ns].high &&
	    append->uid > info->moved_uid)
		xid_header_update_moved(xbox, trans, append->uid);
}

/* In a cluster nothing but a client's or a delivery's message gets a new XID,
   with few exceptions: an administrator who looks for why there are two of them
   finds out which it was. */
static void
xid_append_log_new(struct xid_mailbox *xbox, const struct xid_append *append,
		   const struct xid_saved_mail *saved,
		   const struct xid_record *rec)
{
	if (!xid_user_is_clustered(xbox->xuser) ||
	    !xid_user_replicates(xbox->xuser))
		return;
	e_info(xbox->xuser->user->event, "xid: %s: %s: UID %u is given the new "
	       "XID %s-%"PRIu64" (replicated, %s; GUID %s)",
	       xbox->xuser->user->username, mailbox_get_vname(xbox->box),
	       append->uid, xbox->xuser->set.namespace, rec->number,
	       saved == NULL ? "nothing is known of it" :
	       (saved->moved_uid != 0 ? "moved, and had none" :
		saved->imported ? "no other node knows it" : "it has no GUID"),
	       saved == NULL || saved->guid == NULL ? "-" : saved->guid);
}

/* Put one XID into the transaction and say so in the entry. */
static void
xid_append_write(struct xid_mailbox *xbox,
		 struct mailbox_transaction_context *t,
		 const struct xid_header_info *info,
		 const struct xid_append *append, struct xid_numbers *numbers,
		 struct imap_xid_entry *entry)
{
	const struct xid_saved_mail *saved = xid_saved_mail_find(t, append->seq);
	const struct xid_header_entry *ns;
	struct xid_record rec;

	xid_append_record(info, saved, numbers, &rec);
	if (saved == NULL || saved->keep.number == 0)
		xid_append_log_new(xbox, append, saved, &rec);
	else
		xid_append_moved(xbox, t->itrans, info, append, &rec);
	mail_index_update_ext(t->itrans, append->seq, xbox->ext_id, &rec, NULL);

	ns = &info->entries[rec.ns];
	entry->uid = append->uid;
	entry->ns = ns->name;
	entry->ns_len = strnlen(ns->name, sizeof(ns->name));
	entry->number = rec.number;
	entry->guid = xid_append_guid(t, append, saved);
	entry->guid_len = strlen(entry->guid);
}

static void
xid_highs_write(struct xid_mailbox *xbox, struct mail_index_transaction *trans,
		const struct xid_header_info *info,
		const struct xid_numbers *numbers, uint32_t covered_uid)
{
	uint32_t idx;

	for (idx = 0; idx < info->count; idx++) {
		if (idx == numbers->own ||
		    numbers->high[idx] > info->entries[idx].high) {
			xid_header_update(xbox, trans, idx, numbers->high[idx],
					  covered_uid);
		}
	}
}

/* Put the XIDs into the transaction. The mailbox's append lock is held, so
   that the numbers ascend as the UIDs do. */
static void
xid_appends_write(struct xid_mailbox *xbox,
		  struct mailbox_transaction_context *t,
		  const ARRAY_TYPE(xid_append) *appends)
{
	ARRAY_TYPE(imap_xid_entry) entries;
	const struct xid_append *append;
	struct xid_header_info info;
	struct xid_numbers numbers;
	imap_xid_root *root;

	i_zero(&numbers);
	xid_header_read(xbox, NULL, &info);
	if ((root = xid_root_open(xbox)) == NULL ||
	    !xid_appends_allowed(xbox, &info, appends, &numbers.own) ||
	    !xid_numbers_init(t, &info, appends, &numbers))
		return;
	if (xid_numbers_take(root, &numbers) < 0) {
		xid_mailbox_log_error(xbox,
			"saved messages get their XIDs later");
		return;
	}

	t_array_init(&entries, array_count(appends));
	array_foreach(appends, append) {
		xid_append_write(xbox, t, &info, append, &numbers,
				 array_append_space(&entries));
	}
	append = array_back(appends);
	xid_highs_write(xbox, t->itrans, &info, &numbers,
			I_MAX(info.covered_uid, append->uid));
	xbox->moved = TRUE;
	xid_mailbox_note(xbox, &entries);
}

static int xid_transaction_save_commit_pre(struct mail_save_context *ctx)
{
	struct mailbox_transaction_context *t = ctx->transaction;
	struct xid_mailbox *xbox = xid_mailbox_context(t->box);
	ARRAY_TYPE(xid_append) appends;
	int ret;

	if (!xbox->disabled)
		xid_strays_clear(t);
	ret = xbox->module_ctx.super.transaction_save_commit_pre(ctx);
	if (ret == 0 && xid_interlock_recheck(t) < 0) {
		/* the storage has let go of nothing yet */
		xid_save_take_back(ctx, &xbox->module_ctx.super);
		ret = -1;
	}
	if (ret == 0 && !xbox->disabled && t->itrans->first_new_seq != 0 &&
	    t->itrans->last_new_seq >= t->itrans->first_new_seq) T_BEGIN {
		t_array_init(&appends, 8);
		xid_appends_get(t->itrans, &appends);
		if (array_count(&appends) > 0)
			xid_appends_write(xbox, t, &appends);
	} T_END;
	xid_transaction_free(t);
	return ret;
}

static void xid_transaction_save_rollback(struct mail_save_context *ctx)
{
	struct mailbox_transaction_context *t = ctx->transaction;
	struct xid_mailbox *xbox = xid_mailbox_context(t->box);

	xid_transaction_free(t);
	xbox->module_ctx.super.transaction_save_rollback(ctx);
}

/*
 * The mailbox's life
 */

static int xid_sync_deinit(struct mailbox_sync_context *ctx,
			   struct mailbox_sync_status *status_r)
{
	struct mailbox *box = ctx->box;
	struct xid_mailbox *xbox = xid_mailbox_context(box);

	if (xbox->module_ctx.super.sync_deinit(ctx, status_r) < 0)
		return -1;
	xid_mailbox_forget(xbox);
	xbox->repaired = FALSE;
	/* Mail works without: what went wrong is in the log. */
	(void)xid_mailbox_ensure(box);
	return 0;
}

/* The storage tells of each expunge that it carries out. The registry must not
   give the XID of what is gone to a copy of it when the index is lost. It is
   told later, since the storage is in the middle of its sync here. */
static void xid_sync_notify(struct mailbox *box, uint32_t uid,
			    enum mailbox_sync_type sync_type)
{
	struct xid_mailbox *xbox = xid_mailbox_context(box);

	if (xbox->module_ctx.super.sync_notify != NULL)
		xbox->module_ctx.super.sync_notify(box, uid, sync_type);
	if (xbox->disabled || uid == 0 ||
	    sync_type != MAILBOX_SYNC_TYPE_EXPUNGE)
		return;
	if (!array_is_created(&xbox->expunged))
		i_array_init(&xbox->expunged, 32);
	array_push_back(&xbox->expunged, &uid);
}

/* The mailbox's old GUID and name are what a mailbox without index is known
   by; rename takes its children along. */
static int xid_rename_box(struct mailbox *src, struct mailbox *dest)
{
	struct xid_mailbox *xbox = xid_mailbox_context(src);
	struct xid_rename_locks *locks = xid_rename_lock(src);
	int ret;

	xbox->xuser->renaming = locks != NULL;
	ret = xbox->module_ctx.super.rename_box(src, dest);
	xbox->xuser->renaming = FALSE;
	xid_rename_unlock(&locks);
	if (ret < 0)
		return -1;
	if (!xbox->disabled)
		xid_mailbox_renamed(dest);
	return 0;
}

static int xid_delete_box(struct mailbox *box)
{
	struct xid_mailbox *xbox = xid_mailbox_context(box);
	struct mailbox_metadata metadata;
	imap_xid_root *root;
	bool known;

	known = box->opened && !xbox->disabled &&
		mailbox_get_metadata(box, MAILBOX_METADATA_GUID,
				     &metadata) == 0;
	if (xbox->module_ctx.super.delete_box(box) < 0)
		return -1;
	if (known && (root = xid_root_open(xbox)) != NULL &&
	    imap_xid_root_deleted(root, metadata.guid) < 0)
		xid_mailbox_log_error(xbox, "registry keeps a deleted mailbox");
	return 0;
}

static void xid_mailbox_close(struct mailbox *box)
{
	struct xid_mailbox *xbox = xid_mailbox_context(box);

	xid_mailbox_forget(xbox);
	imap_xid_box_close(xbox->core);
	xbox->core = NULL;
	xbox->registered_uid = 0;
	xbox->ready = FALSE;
	xbox->module_ctx.super.close(box);
}

void xid_storage_mailbox_opened(struct xid_mailbox *xbox)
{
	if (mail_index_is_in_memory(xbox->box->index)) {
		xid_user_log_memory(xbox->xuser, xbox->box);
		xbox->disabled = TRUE;
		return;
	}
	xbox->disabled = FALSE;
	xid_index_register(xbox);
	xbox->ready = TRUE;
}

void xid_storage_mailbox_allocated(struct xid_mailbox *xbox ATTR_UNUSED,
				   struct mailbox_vfuncs *v)
{
	v->transaction_begin = xid_transaction_begin;
	v->save_begin = xid_save_begin;
	v->copy = xid_copy;
	v->transaction_save_commit_pre = xid_transaction_save_commit_pre;
	v->transaction_save_rollback = xid_transaction_save_rollback;
	v->sync_deinit = xid_sync_deinit;
	v->sync_notify = xid_sync_notify;
	v->rename_box = xid_rename_box;
	v->delete_box = xid_delete_box;
	v->close = xid_mailbox_close;
}
