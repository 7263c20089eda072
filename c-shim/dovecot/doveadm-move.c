/* doveadm xid raise, drop, stage, unstage, dropstaged, adopt: what the cluster
   daemon does to messages. A copy that one of these makes is the same message:
   GUID, XID, flags and dates stay. Each of them can be killed at any moment and
   run again. They hold the lock that replication holds, so that neither sees
   the other's work half done. */
#include "xid-doveadm.h"
#include "cluster.h"
#include "file-lock.h"
#include "hash.h"
#include "imap-seqset.h"
#include "str.h"

/* Replication's own lock on a mailbox. */
#define XID_SYNC_LOCK_NAME ".dovecot-box-sync.lock"
#define XID_SYNC_LOCK_SECS 10

/* Messages that are copied in one transaction: few enough not to begin from the
   start for ever where something kills us again and again. */
#define XID_COPY_BATCH 500

/*
 * Copies
 */

/* Copying to a mailbox that may be the source's own. */
struct xid_copy {
	struct xid_doveadm *cmd;
	struct mailbox *src, *dest;
	struct mailbox_transaction_context *src_t, *dest_t;
	struct mail *mail;
	unsigned int count;
};

static void
xid_copy_init(struct xid_copy *copy, struct xid_doveadm *cmd,
	      struct mailbox *src, struct mailbox *dest)
{
	i_zero(copy);
	copy->cmd = cmd;
	copy->src = src;
	copy->dest = dest;
	copy->src_t = mailbox_transaction_begin(src, 0, "xid copy from");
	copy->mail = mail_alloc(copy->src_t, MAIL_FETCH_GUID, NULL);
}

/* As replication does: it is no new mail, so quota has no say. */
static void xid_copy_begin(struct xid_copy *copy)
{
	struct mail_user *user = copy->cmd->user;
	bool dsyncing = user->dsyncing;

	user->dsyncing = TRUE;
	copy->dest_t = mailbox_transaction_begin(copy->dest,
		MAILBOX_TRANSACTION_FLAG_EXTERNAL |
		MAILBOX_TRANSACTION_FLAG_ASSIGN_UIDS, "xid copy to");
	user->dsyncing = dsyncing;
}

static int xid_copy_commit(struct xid_copy *copy)
{
	int ret;

	if (copy->dest_t == NULL)
		return 0;
	copy->count = 0;
	/* elsewhere every commit does that */
	if (copy->dest != copy->cmd->box) {
		xid_maildir_free_names(copy->dest_t);
		xid_moving_begin(copy->dest_t);
	}
	ret = mailbox_transaction_commit(&copy->dest_t);
	if (copy->dest != copy->cmd->box)
		xid_moving_end(copy->dest, ret == 0);
	if (ret < 0)
		return xid_doveadm_fail_box(copy->cmd, copy->dest, "save");
	return 0;
}

static int xid_copy_deinit(struct xid_copy *copy, int ret)
{
	if (ret == 0)
		ret = xid_copy_commit(copy);
	if (copy->dest_t != NULL)
		mailbox_transaction_rollback(&copy->dest_t);
	mail_free(&copy->mail);
	mailbox_transaction_rollback(&copy->src_t);
	return ret;
}

static void
xid_entry_from_xid(const struct imap_xid *xid, struct imap_xid_entry *entry_r)
{
	i_zero(entry_r);
	entry_r->ns = xid->ns;
	entry_r->ns_len = xid->ns_len;
	entry_r->number = xid->number;
}

/* The destination's index must know the namespace before messages are saved in
   it. */
static int
xid_copy_add_namespace(struct xid_copy *copy, const struct imap_xid *xid)
{
	struct xid_mailbox *xbox = xid_mailbox_get(copy->dest);
	struct xid_header_info info;
	struct imap_xid_entry entry;

	xid_header_read(xbox, NULL, &info);
	if (xid_header_find(&info, xid->ns, xid->ns_len) != XID_NO_NAMESPACE)
		return 0;
	if (xid_copy_commit(copy) < 0)
		return -1;
	xid_entry_from_xid(xid, &entry);
	if (xid_mailbox_adopt(xbox, &entry, 1) < 0)
		return xid_doveadm_fail_box(copy->cmd, copy->dest, "index");
	return 0;
}

/* What mailbox_copy() does not take along by itself. */
static int
xid_copy_metadata(struct mail_save_context *ctx, struct mail *mail)
{
	const char *uidl, *order;
	time_t received_date, save_date;
	unsigned int number;

	if (mail_get_received_date(mail, &received_date) < 0 ||
	    mail_get_special(mail, MAIL_FETCH_UIDL_BACKEND, &uidl) < 0 ||
	    mail_get_special(mail, MAIL_FETCH_POP3_ORDER, &order) < 0)
		return -1;
	mailbox_save_copy_flags(ctx, mail);
	mailbox_save_set_received_date(ctx, received_date, 0);
	if (mail_get_save_date(mail, &save_date) > 0)
		mailbox_save_set_save_date(ctx, save_date);
	if (*uidl != '\0')
		mailbox_save_set_pop3_uidl(ctx, uidl);
	if (str_to_uint(order, &number) == 0)
		mailbox_save_set_pop3_order(ctx, number);
	return 0;
}

/* 0 = copied, or it is gone; -1 = failed */
static int
xid_copy_saved(struct xid_copy *copy, const struct imap_xid *xid)
{
	struct mail_save_context *ctx;
	const char *guid;

	if (mail_get_special(copy->mail, MAIL_FETCH_GUID, &guid) < 0) {
		return copy->mail->expunged ? 0 :
			xid_doveadm_fail_box(copy->cmd, copy->src, "GUID");
	}
	guid = t_strdup(guid);
	if (copy->dest_t == NULL)
		xid_copy_begin(copy);
	ctx = mailbox_save_alloc(copy->dest_t);
	if (xid_copy_metadata(ctx, copy->mail) < 0) {
		mailbox_save_cancel(&ctx);
		return copy->mail->expunged ? 0 :
			xid_doveadm_fail_box(copy->cmd, copy->src, "read");
	}
	if (mailbox_copy(&ctx, copy->mail) < 0) {
		return copy->mail->expunged ? 0 :
			xid_doveadm_fail_box(copy->cmd, copy->dest, "copy");
	}
	xid_save_keeps_xid(copy->dest_t, xid, guid,
			   xid_moving_inode(copy->src, copy->mail->uid));
	copy->count++;
	return 0;
}

static int xid_copy_mail(struct xid_copy *copy, uint32_t seq)
{
	struct xid_mailbox *xbox = xid_mailbox_get(copy->src);
	struct imap_xid xid;

	mail_set_seq(copy->mail, seq);
	if (!xid_mail_get(xbox, copy->src->view, seq, &xid)) {
		return xid_doveadm_fail(copy->cmd, MAIL_ERROR_TEMP,
			"%s: UID %u has no XID yet",
			mailbox_get_vname(copy->src), copy->mail->uid);
	}
	/* the index may be mapped elsewhere after this */
	xid.ns = t_strndup(xid.ns, xid.ns_len);
	if (xid_copy_add_namespace(copy, &xid) < 0 ||
	    xid_copy_saved(copy, &xid) < 0)
		return -1;
	return copy->count < XID_COPY_BATCH ? 0 : xid_copy_commit(copy);
}

/*
 * In the mailbox
 */

/* Run under replication's lock, with the mailbox as it is then; then answer. */
static int
xid_doveadm_run_locked(struct xid_doveadm *cmd,
		       int (*run)(struct xid_doveadm *cmd))
{
	struct file_lock *lock;
	const char *error;
	int ret;

	if (mailbox_lock_file_create(cmd->box, XID_SYNC_LOCK_NAME,
				     XID_SYNC_LOCK_SECS, &lock, &error) <= 0) {
		return xid_doveadm_fail(cmd, MAIL_ERROR_TEMP, "%s: %s",
			mailbox_get_vname(cmd->box), error);
	}
	ret = xid_doveadm_sync(cmd);
	if (ret == 0)
		ret = run(cmd);
	if (ret == 0)
		ret = xid_doveadm_sync(cmd);
	file_lock_free(&lock);
	return ret < 0 ? -1 : xid_doveadm_answer_state(cmd);
}

static int xid_raise_next_uid(struct xid_doveadm *cmd, uint32_t floor)
{
	struct mailbox_update update;

	if (mail_index_get_header(cmd->box->view)->next_uid > floor)
		return 0;
	i_zero(&update);
	update.min_next_uid = floor + 1;
	if (mailbox_update(cmd->box, &update) < 0)
		return xid_doveadm_fail_box(cmd, cmd->box, "raise UIDNEXT");
	return xid_doveadm_sync(cmd);
}

/* The XIDs of messages above the floor that may have come from below, where a
   move was cut short; sorted. */
static void
xid_raised_get(struct xid_doveadm *cmd, uint32_t floor,
	       ARRAY_TYPE(xid_record) *raised)
{
	struct xid_header_info info;
	struct xid_record rec;
	uint32_t seq1, seq2;

	xid_header_read(cmd->xbox, NULL, &info);
	if (info.moved_uid <= floor ||
	    !mail_index_lookup_seq_range(cmd->box->view, floor + 1,
					 info.moved_uid, &seq1, &seq2))
		return;
	for (; seq1 <= seq2; seq1++) {
		if (xid_record_get(cmd->xbox, cmd->box->view, seq1, &rec))
			array_push_back(raised, &rec);
	}
	array_sort(raised, xid_record_cmp);
}

static bool
xid_is_raised(struct xid_doveadm *cmd, uint32_t seq,
	      ARRAY_TYPE(xid_record) *raised)
{
	struct xid_record rec;

	return xid_record_get(cmd->xbox, cmd->box->view, seq, &rec) &&
		array_bsearch(raised, &rec, xid_record_cmp) != NULL;
}

/* What is neither stable nor promised and lies at or below the floor is copied above
   it. Who joins has promised everything: the prefix stays where it is, though not
   all of it is shown here yet. */
static int xid_raise_copy(struct xid_doveadm *cmd, uint32_t floor)
{
	struct xid_wait_mailbox *wbox = cmd->xbox->wait;
	uint32_t fixed_uid = xid_fixed_uid(wbox, xid_wait_attach(wbox));
	ARRAY_TYPE(xid_record) raised;
	uint32_t seq, seq1, seq2;
	struct xid_copy copy;
	int ret = 0;

	if (fixed_uid >= floor ||
	    !mail_index_lookup_seq_range(cmd->box->view, fixed_uid + 1, floor,
					 &seq1, &seq2))
		return 0;
	t_array_init(&raised, 64);
	xid_raised_get(cmd, floor, &raised);
	xid_copy_init(&copy, cmd, cmd->box, cmd->box);
	for (seq = seq1; seq <= seq2 && ret == 0; seq++) T_BEGIN {
		if (!xid_is_raised(cmd, seq, &raised))
			ret = xid_copy_mail(&copy, seq);
	} T_END;
	return xid_copy_deinit(&copy, ret);
}

static int xid_raise_locked(struct xid_doveadm *cmd)
{
	uint32_t floor;

	if (xid_doveadm_number(cmd, 0, "UID", &floor) < 0)
		return -1;
	if (floor >= (uint32_t)-2) {
		return xid_doveadm_fail(cmd, MAIL_ERROR_PARAMS,
			"%u: no UIDs are left above it", floor);
	}
	if (xid_raise_next_uid(cmd, floor) < 0 ||
	    xid_raise_copy(cmd, floor) < 0)
		return -1;
	/* the originals are to be dropped */
	return xid_doveadm_make_durable(cmd, cmd->box);
}

int xid_doveadm_raise(struct xid_doveadm *cmd)
{
	if (xid_doveadm_number(cmd, 1, "UID", &cmd->above) < 0)
		return -1;
	return xid_doveadm_run_locked(cmd, xid_raise_locked);
}

static int
xid_doveadm_uids(struct xid_doveadm *cmd, const char *set,
		 ARRAY_TYPE(seq_range) *uids)
{
	t_array_init(uids, 16);
	if (imap_seq_set_nostar_parse(set, uids) == 0)
		return 0;
	return xid_doveadm_fail(cmd, MAIL_ERROR_PARAMS,
		"%s: expected UIDs as 3:5,9", set);
}

/* Expunge; the next sync carries it out. */
static int
xid_expunge(struct xid_doveadm *cmd, struct mailbox *box,
	    const ARRAY_TYPE(seq_range) *uids)
{
	struct mailbox_transaction_context *t;
	struct seq_range_iter iter;
	struct mail *mail;
	unsigned int i = 0;
	uint32_t uid;

	t = mailbox_transaction_begin(box, 0, "xid expunge");
	mail = mail_alloc(t, 0, NULL);
	seq_range_array_iter_init(&iter, uids);
	while (seq_range_array_iter_nth(&iter, i++, &uid)) {
		if (mail_set_uid(mail, uid))
			mail_expunge(mail);
	}
	mail_free(&mail);
	if (mailbox_transaction_commit(&t) < 0)
		return xid_doveadm_fail_box(cmd, box, "expunge");
	return 0;
}

/* The GUIDs of messages that are about to be registered; who is gone is left
   out. */
static void
xid_entries_add_guids(struct xid_doveadm *cmd, struct imap_xid_entry *mails,
		      unsigned int count, ARRAY_TYPE(imap_xid_entry) *entries)
{
	struct xid_guid_list *guids;
	unsigned int i;
	uint32_t seq;

	guids = xid_guid_list_init(cmd->xbox);
	for (i = 0; i < count; i++) {
		if (!mail_index_lookup_seq(cmd->box->view, mails[i].uid, &seq))
			continue;
		mails[i].guid = t_strdup(xid_guid_list_get(guids, seq));
		mails[i].guid_len = strlen(mails[i].guid);
		array_push_back(entries, &mails[i]);
	}
	xid_guid_list_deinit(&guids);
}

static void
xid_dropped_get(struct xid_doveadm *cmd, const ARRAY_TYPE(seq_range) *uids,
		ARRAY_TYPE(xid_record) *dropped)
{
	struct seq_range_iter iter;
	struct xid_record rec;
	unsigned int i = 0;
	uint32_t uid, seq;

	seq_range_array_iter_init(&iter, uids);
	while (seq_range_array_iter_nth(&iter, i++, &uid)) {
		if (mail_index_lookup_seq(cmd->box->view, uid, &seq) &&
		    xid_record_get(cmd->xbox, cmd->box->view, seq, &rec))
			array_push_back(dropped, &rec);
	}
	array_sort(dropped, xid_record_cmp);
}

/* Of two messages that have one XID, since a move was cut short, the registry
   knows one. It must know the one that stays, or nobody finds that again. */
static void
xid_drop_note_others(struct xid_doveadm *cmd,
		     const ARRAY_TYPE(seq_range) *uids)
{
	struct mail_index_view *view = cmd->box->view;
	uint32_t seq, uid, count = mail_index_view_get_messages_count(view);
	ARRAY_TYPE(xid_record) dropped;
	ARRAY_TYPE(imap_xid_entry) stay, entries;
	struct imap_xid_entry *entry;
	struct xid_record rec;
	struct imap_xid xid;
	imap_xid_box *core;

	t_array_init(&dropped, 64);
	t_array_init(&stay, 8);
	t_array_init(&entries, 8);
	xid_dropped_get(cmd, uids, &dropped);
	for (seq = 1; seq <= count; seq++) {
		if (!xid_record_get(cmd->xbox, view, seq, &rec) ||
		    array_bsearch(&dropped, &rec, xid_record_cmp) == NULL)
			continue;
		mail_index_lookup_uid(view, seq, &uid);
		if (seq_range_exists(uids, uid) ||
		    !xid_mail_get(cmd->xbox, view, seq, &xid))
			continue;
		entry = array_append_space(&stay);
		xid_entry_from_xid(&xid, entry);
		entry->uid = uid;
	}
	if (array_count(&stay) == 0 || (core = xid_box_open(cmd->xbox)) == NULL)
		return;
	xid_entries_add_guids(cmd, array_front_modifiable(&stay),
			      array_count(&stay), &entries);
	if (array_count(&entries) > 0 &&
	    imap_xid_box_note(core, array_front(&entries),
			      array_count(&entries)) < 0)
		xid_mailbox_log_error(cmd->xbox, "registry lacks a message");
}

/* The registry is told beforehand, as any process may carry the expunge out, and
   takes what it expunges for what clients expunged. */
static void
xid_drop_note(struct xid_doveadm *cmd, const ARRAY_TYPE(seq_range) *ranges)
{
	imap_xid_box *core = xid_box_open(cmd->xbox);
	struct seq_range_iter iter;
	ARRAY(uint32_t) uids;
	unsigned int n = 0;
	uint32_t uid;

	if (core == NULL)
		return;
	t_array_init(&uids, 64);
	seq_range_array_iter_init(&iter, ranges);
	while (seq_range_array_iter_nth(&iter, n++, &uid))
		array_push_back(&uids, &uid);
	if (array_count(&uids) > 0 &&
	    imap_xid_box_forget_moved(core, array_front(&uids),
				      array_count(&uids)) < 0)
		xid_mailbox_log_error(cmd->xbox, "registry keeps what is moved");
}

static int xid_drop_locked(struct xid_doveadm *cmd)
{
	ARRAY_TYPE(seq_range) uids;

	if (xid_doveadm_uids(cmd, cmd->args[0], &uids) < 0)
		return -1;
	xid_drop_note(cmd, &uids);
	xid_drop_note_others(cmd, &uids);
	if (xid_expunge(cmd, cmd->box, &uids) < 0 ||
	    xid_doveadm_sync(cmd) < 0)
		return -1;
	if (xid_storage_is_maildir(cmd->box)) {
		/* that they went is seen by the next sync */
		if (xid_doveadm_sync(cmd) < 0)
			return -1;
		xid_maildir_forget_gone(cmd->box);
	}
	return 0;
}

int xid_doveadm_drop(struct xid_doveadm *cmd)
{
	if (xid_doveadm_number(cmd, 1, "UID", &cmd->above) < 0)
		return -1;
	return xid_doveadm_run_locked(cmd, xid_drop_locked);
}

/*
 * Stage
 */

/* Those of a mailbox, as texts. */
typedef HASH_TABLE(const char *, void *) xid_text_set;

static void xid_texts_add(struct mailbox *box, xid_text_set xids)
{
	uint32_t seq, count = mail_index_view_get_messages_count(box->view);
	string_t *xid;

	for (seq = 1; seq <= count; seq++) {
		xid = t_str_new(64);
		if (xid_mail_lookup(box, box->view, seq, xid)) {
			hash_table_update(xids, str_c(xid),
					  POINTER_CAST(seq));
		}
	}
}

struct xid_seq_pair {
	uint32_t main, stage;
};

/* Staging: what is in the stage, by XID, since a client's copies of a message
   share its GUID. */
struct xid_staging {
	struct xid_doveadm *cmd;
	struct mailbox *stage;
	struct xid_copy copy;
	pool_t pool;
	xid_text_set staged;
	/* those that were in it before */
	ARRAY(struct xid_seq_pair) before;
};

static int xid_stage_mail(struct xid_staging *staging, uint32_t seq)
{
	struct mailbox *box = staging->cmd->box;
	string_t *text = t_str_new(64);
	void *here_now = staging, *value;
	struct xid_seq_pair *pair;
	const char *xid;

	if (!xid_mail_lookup(box, box->view, seq, text))
		return xid_copy_mail(&staging->copy, seq);
	value = hash_table_lookup(staging->staged, str_c(text));
	if (value == NULL) {
		xid = p_strdup(staging->pool, str_c(text));
		hash_table_insert(staging->staged, xid, here_now);
		return xid_copy_mail(&staging->copy, seq);
	}
	/* One that was being moved is in the mailbox twice. */
	if (value == here_now)
		return 0;
	pair = array_append_space(&staging->before);
	pair->main = seq;
	pair->stage = POINTER_CAST_TO(value, uint32_t);
	return 0;
}

static void
xid_stage_mail_flags(struct mail *mail, struct mail *staged)
{
	const char *const *names = mail_get_keywords(mail);
	struct mail_keywords *keywords =
		mailbox_keywords_create_valid(staged->box, names);

	mail_update_flags(staged, MODIFY_REPLACE,
			  mail_get_flags(mail) & MAIL_FLAGS_NONRECENT);
	mail_update_keywords(staged, MODIFY_REPLACE, keywords);
	mailbox_keywords_unref(&keywords);
}

/* A maildir names its keywords in a file that it writes after the messages: of
   one that was staged by who was killed between the two they are not known. */
static int xid_stage_flags(struct xid_staging *staging)
{
	struct mailbox_transaction_context *main_t, *stage_t;
	const struct xid_seq_pair *pair;
	struct mail *mail, *staged;
	int ret;

	if (array_count(&staging->before) == 0)
		return 0;
	main_t = mailbox_transaction_begin(staging->cmd->box, 0, "xid staged");
	stage_t = mailbox_transaction_begin(staging->stage, 0, "xid staged");
	mail = mail_alloc(main_t, 0, NULL);
	staged = mail_alloc(stage_t, 0, NULL);
	array_foreach(&staging->before, pair) T_BEGIN {
		mail_set_seq(mail, pair->main);
		mail_set_seq(staged, pair->stage);
		xid_stage_mail_flags(mail, staged);
	} T_END;
	mail_free(&mail);
	mail_free(&staged);
	mailbox_transaction_rollback(&main_t);
	ret = mailbox_transaction_commit(&stage_t);
	return ret == 0 ? 0 :
		xid_doveadm_fail_box(staging->cmd, staging->stage, "flags");
}

/* What is in the stage already is not put there again. */
static int
xid_stage_copy(struct xid_doveadm *cmd, struct mailbox *stage,
	       const ARRAY_TYPE(seq_range) *uids)
{
	struct xid_staging staging;
	struct seq_range_iter iter;
	unsigned int i = 0;
	uint32_t uid, seq;
	int ret = 0;

	i_zero(&staging);
	staging.cmd = cmd;
	staging.stage = stage;
	staging.pool = pool_alloconly_create("xid staging", 4096);
	p_array_init(&staging.before, staging.pool, 16);
	hash_table_create(&staging.staged, default_pool, 0, str_hash, strcmp);
	xid_texts_add(stage, staging.staged);
	xid_copy_init(&staging.copy, cmd, cmd->box, stage);
	seq_range_array_iter_init(&iter, uids);
	while (ret == 0 && seq_range_array_iter_nth(&iter, i++, &uid)) T_BEGIN {
		if (mail_index_lookup_seq(cmd->box->view, uid, &seq))
			ret = xid_stage_mail(&staging, seq);
	} T_END;
	ret = xid_copy_deinit(&staging.copy, ret);
	if (ret == 0)
		ret = xid_stage_flags(&staging);
	hash_table_destroy(&staging.staged);
	pool_unref(&staging.pool);
	return ret;
}

static int xid_stage_locked(struct xid_doveadm *cmd)
{
	ARRAY_TYPE(seq_range) uids;
	struct mailbox *stage;
	int ret;

	if (xid_doveadm_uids(cmd, cmd->args[0], &uids) < 0 ||
	    xid_stage_open(cmd, TRUE, &stage) < 0)
		return -1;
	ret = xid_stage_copy(cmd, stage, &uids);
	if (ret == 0 && mailbox_sync(stage, 0) < 0)
		ret = xid_doveadm_fail_box(cmd, stage, "sync");
	/* the originals are to be dropped */
	if (ret == 0)
		ret = xid_doveadm_make_durable(cmd, stage);
	mailbox_free(&stage);
	return ret;
}

int xid_doveadm_stage(struct xid_doveadm *cmd)
{
	if (xid_doveadm_number(cmd, 1, "UID", &cmd->above) < 0)
		return -1;
	return xid_doveadm_run_locked(cmd, xid_stage_locked);
}

/* Take one off the messages that are here: the same by its XID, or else one that
   got another XID elsewhere. */
static bool
xid_unstage_match(struct xid_doveadm *cmd, struct mailbox *stage,
		  uint32_t staged_seq, bool same_xid,
		  ARRAY_TYPE(xid_found_mail) *here)
{
	const struct xid_found_mail *mail;
	string_t *staged_xid = t_str_new(64), *xid = t_str_new(64);

	(void)xid_mail_lookup(stage, stage->view, staged_seq, staged_xid);
	array_foreach(here, mail) {
		str_truncate(xid, 0);
		(void)xid_mail_lookup(cmd->box, cmd->box->view, mail->seq, xid);
		if (!same_xid || str_equals(staged_xid, xid)) {
			array_delete(here, array_foreach_idx(here, mail), 1);
			return TRUE;
		}
	}
	return FALSE;
}

/* Earlier versions put a message that was being moved there twice. */
static void
xid_unstage_once(struct mailbox *stage, ARRAY_TYPE(xid_found_mail) *staged)
{
	struct xid_found_mail *mail;
	xid_text_set seen;
	string_t *xid;

	hash_table_create(&seen, default_pool, 0, str_hash, strcmp);
	array_foreach_modifiable(staged, mail) {
		xid = t_str_new(64);
		if (!xid_mail_lookup(stage, stage->view, mail->seq, xid))
			continue;
		if (hash_table_lookup(seen, str_c(xid)) != NULL)
			mail->seq = 0;
		else
			hash_table_insert(seen, str_c(xid),
					  POINTER_CAST(mail->seq));
	}
	hash_table_destroy(&seen);
}

/* Mostly one message is staged, and none is here. There are several where a
   client copied one: each copy that is not here comes back. */
static int
xid_unstage_copy(struct xid_doveadm *cmd, struct mailbox *stage,
		 const char *guid, ARRAY_TYPE(xid_found_mail) *here)
{
	ARRAY_TYPE(xid_found_mail) staged;
	struct xid_found_mail *mail;
	struct xid_copy copy;
	int ret = 0;

	t_array_init(&staged, 4);
	xid_stage_find_guid(stage, guid, &staged);
	xid_unstage_once(stage, &staged);
	array_foreach_modifiable(&staged, mail) {
		if (mail->seq != 0 &&
		    xid_unstage_match(cmd, stage, mail->seq, TRUE, here))
			mail->seq = 0;
	}
	xid_copy_init(&copy, cmd, stage, cmd->box);
	array_foreach_modifiable(&staged, mail) {
		if (ret == 0 && mail->seq != 0 &&
		    !xid_unstage_match(cmd, stage, mail->seq, FALSE, here))
			ret = xid_copy_mail(&copy, mail->seq);
	}
	return xid_copy_deinit(&copy, ret);
}

static int xid_unstage_locked(struct xid_doveadm *cmd)
{
	ARRAY_TYPE(xid_found_mail) here;
	struct mailbox *stage;
	int ret;

	t_array_init(&here, 4);
	if (xid_doveadm_find_guid(cmd, cmd->box, cmd->args[0], &here) < 0)
		return -1;
	ret = xid_stage_open(cmd, FALSE, &stage);
	if (ret <= 0)
		return ret;
	ret = xid_unstage_copy(cmd, stage, cmd->args[0], &here);
	mailbox_free(&stage);
	if (ret == 0)
		ret = xid_doveadm_sync(cmd);
	/* the stage's copy is to be dropped */
	return ret < 0 ? -1 : xid_doveadm_make_durable(cmd, cmd->box);
}

int xid_doveadm_unstage(struct xid_doveadm *cmd)
{
	if (xid_doveadm_number(cmd, 1, "UID", &cmd->above) < 0)
		return -1;
	return xid_doveadm_run_locked(cmd, xid_unstage_locked);
}

/* What goes and is not in the mailbox was stable on a node that knows that it was
   expunged. From here on we know it, too: that node may be away when the next one
   comes back with the message. */
static void
xid_dropstaged_note(struct xid_doveadm *cmd, struct mailbox *stage,
		    const char *guid, const ARRAY_TYPE(xid_found_mail) *found)
{
	struct xid_mailbox *staged = xid_mailbox_get(stage);
	ARRAY_TYPE(xid_found_mail) here;
	ARRAY_TYPE(imap_xid_entry) gone;
	const struct xid_found_mail *mail;
	struct imap_xid_entry *entry;
	struct imap_xid xid;
	imap_xid_box *core;

	t_array_init(&here, 4);
	t_array_init(&gone, 4);
	if (xid_doveadm_find_guid(cmd, cmd->box, guid, &here) < 0 ||
	    array_count(&here) > 0 || (core = xid_box_open(cmd->xbox)) == NULL)
		return;
	array_foreach(found, mail) {
		if (!xid_mail_get(staged, stage->view, mail->seq, &xid))
			continue;
		entry = array_append_space(&gone);
		xid_entry_from_xid(&xid, entry);
		entry->uid = mail->uid;
		entry->guid = guid;
		entry->guid_len = strlen(guid);
	}
	if (array_count(&gone) > 0 &&
	    imap_xid_box_gone_elsewhere(core, array_front(&gone),
					array_count(&gone)) < 0)
		xid_mailbox_log_error(cmd->xbox, "registry lacks what went");
}

static int
xid_dropstaged_from(struct xid_doveadm *cmd, struct mailbox *stage,
		    const char *guid)
{
	ARRAY_TYPE(xid_found_mail) found;
	const struct xid_found_mail *mail;
	ARRAY_TYPE(seq_range) uids;

	t_array_init(&found, 4);
	t_array_init(&uids, 4);
	xid_stage_find_guid(stage, guid, &found);
	xid_dropstaged_note(cmd, stage, guid, &found);
	array_foreach(&found, mail)
		seq_range_array_add(&uids, mail->uid);
	if (array_count(&uids) > 0 && xid_expunge(cmd, stage, &uids) < 0)
		return -1;
	if (mailbox_sync(stage, 0) < 0)
		return xid_doveadm_fail_box(cmd, stage, "sync");
	return 0;
}

static int xid_dropstaged_locked(struct xid_doveadm *cmd)
{
	struct mailbox *stage;
	int ret = xid_stage_open(cmd, FALSE, &stage);

	if (ret <= 0)
		return ret;
	ret = xid_dropstaged_from(cmd, stage, cmd->args[0]);
	if (ret == 0 &&
	    mail_index_view_get_messages_count(stage->view) == 0)
		xid_stage_emptied(cmd, stage);
	mailbox_free(&stage);
	return ret;
}

int xid_doveadm_dropstaged(struct xid_doveadm *cmd)
{
	if (xid_doveadm_number(cmd, 1, "UID", &cmd->above) < 0)
		return -1;
	return xid_doveadm_run_locked(cmd, xid_dropstaged_locked);
}

/*
 * Adopt
 */

/* UID:XID */
static int
xid_adopt_parse(struct xid_doveadm *cmd, const char *arg,
		struct imap_xid_entry *entry_r)
{
	const char *colon = strchr(arg, ':');
	struct imap_xid xid;
	uint32_t uid;

	if (colon == NULL ||
	    str_to_uint32(t_strdup_until(arg, colon), &uid) < 0 || uid == 0 ||
	    imap_xid_parse(colon + 1, strlen(colon + 1), &xid) < 0) {
		return xid_doveadm_fail(cmd, MAIL_ERROR_PARAMS,
			"%s: expected UID:XID", arg);
	}
	xid_entry_from_xid(&xid, entry_r);
	entry_r->uid = uid;
	return 0;
}

static int xid_adopt_locked(struct xid_doveadm *cmd)
{
	const char *const *args = t_strsplit(cmd->args[0], ",");
	ARRAY_TYPE(imap_xid_entry) mails, noted;
	struct imap_xid_entry *entries;
	unsigned int count;
	int ret;

	t_array_init(&mails, 64);
	for (; *args != NULL; args++) {
		if (xid_adopt_parse(cmd, *args,
				    array_append_space(&mails)) < 0)
			return -1;
	}
	entries = array_get_modifiable(&mails, &count);
	if (xid_numbers_skip(cmd->xbox, entries, count) < 0) {
		return xid_doveadm_fail(cmd, MAIL_ERROR_TEMP,
			"numbers cannot be taken, as was logged");
	}
	/* The registry hears of it before the index has it: what it says is
	   checked against the index in any case. */
	t_array_init(&noted, count);
	xid_entries_add_guids(cmd, entries, count, &noted);
	xid_mailbox_note(cmd->xbox, &noted);
	ret = xid_mailbox_adopt(cmd->xbox, entries, count);
	if (ret < 0)
		return xid_doveadm_fail_box(cmd, cmd->box, "index");
	if (ret == 0) {
		return xid_doveadm_fail(cmd, MAIL_ERROR_TEMP,
			"%s: one of these messages is gone: nothing was done",
			mailbox_get_vname(cmd->box));
	}
	return xid_doveadm_make_durable(cmd, cmd->box);
}

int xid_doveadm_adopt(struct xid_doveadm *cmd)
{
	if (xid_doveadm_number(cmd, 1, "UID", &cmd->above) < 0)
		return -1;
	return xid_doveadm_run_locked(cmd, xid_adopt_locked);
}
