/* Messages that have no XID yet get one: those that were there before the
   plug-in, that another program put into the maildir, or whose index was
   rebuilt. What the registry knows by the message's GUID is given back; the
   others get new numbers. All of it in one index transaction, under the
   index's lock, so that two processes never both do it. In a cluster another
   node may have given a message its XID already: the daemon is asked. */
#include "xid-index.h"
#include "cluster.h"
#include "bsearch-insert-pos.h"
#include "ioloop.h"
#include "mail-index-private.h"
#include "mail-index-view-private.h"

/* Messages per write to the journal: many enough to be quick, few enough to
   keep the memory small. */
#define XID_NOTE_BATCH 1024

/* Where other nodes could not be asked they are asked again after this time:
   a mailbox is synced by every other command. */
#define XID_ASK_AGAIN_SECS 2

#define XID_LOCK_REASON "xid: giving XIDs to messages that have none"

/* A message of the mailbox that had no XID when we looked. */
struct xid_lost_mail {
	uint32_t uid;
	/* sequence in the locked view; 0 = it is gone, or has an XID now */
	uint32_t seq;
	/* NULL = not read, since the registry knows nothing to find by it */
	const char *guid;
	/* What the cluster daemon says of the GUID; NULL = it was not asked */
	const char *answer;
	/* The XID with which it was moved when a process was killed */
	const char *moved;
	/* It is half a copy of this one; it goes. */
	const struct xid_moving *stray;
	/* number 0 = it needs a new one */
	struct xid_record rec;
};

struct xid_recover {
	struct xid_mailbox *xbox;
	pool_t pool;
	/* messages below this UID have XIDs */
	uint32_t first_uid;
	ARRAY(struct xid_lost_mail) mails;

	/* while the index is locked */
	struct mail_index_view *view;
	struct mail_index_transaction *trans;
	ARRAY(struct xid_header_entry) entries;
	uint32_t covered_uid, moved_uid;
	imap_xid_recovery *registry;
	/* XIDs that the mailbox's messages have, sorted; created when first
	   needed */
	ARRAY(struct xid_record) present;
};

/*
 * What is missing
 */

/* Every message of the view has an XID, as far as the header tells. */
static bool
xid_view_is_covered(struct xid_mailbox *xbox, struct mail_index_view *view)
{
	uint32_t count = mail_index_view_get_messages_count(view);
	struct xid_header_info info;
	uint32_t uid;

	if (count == 0)
		return TRUE;
	mail_index_lookup_uid(view, count, &uid);
	xid_header_read(xbox, NULL, &info);
	return uid <= info.covered_uid;
}

/* Never 0: the UIDs end before they wrap. */
static uint32_t xid_first_uncovered(struct xid_mailbox *xbox)
{
	struct xid_header_info info;

	xid_header_read(xbox, NULL, &info);
	return I_MIN(info.covered_uid, (uint32_t)-2) + 1;
}

/* The messages of box->view without XID. */
static void xid_recover_find_lost(struct xid_recover *r)
{
	struct mail_index_view *view = r->xbox->box->view;
	struct xid_lost_mail *lost;
	struct xid_record rec;
	uint32_t seq, seq2;

	if (!mail_index_lookup_seq_range(view, r->first_uid, (uint32_t)-1,
					 &seq, &seq2))
		return;
	for (; seq <= seq2; seq++) {
		if (xid_record_get(r->xbox, view, seq, &rec))
			continue;
		lost = array_append_space(&r->mails);
		mail_index_lookup_uid(view, seq, &lost->uid);
	}
}

/* Before the index is locked: to read a GUID the storage may lock, too. */
static void xid_recover_read_guids(struct xid_recover *r)
{
	struct mail_index_view *view = r->xbox->box->view;
	struct xid_guid_reader *reader;
	struct xid_lost_mail *lost;
	uint32_t seq;

	reader = xid_guid_reader_init(r->xbox);
	array_foreach_modifiable(&r->mails, lost) T_BEGIN {
		if (mail_index_lookup_seq(view, lost->uid, &seq)) {
			lost->guid = p_strdup(r->pool,
					      xid_guid_read(reader, seq));
		}
	} T_END;
	xid_guid_reader_deinit(&reader);
}

/*
 * Under the lock
 */

static uint32_t
xid_recover_namespace(struct xid_recover *r, const char *ns, size_t ns_len)
{
	struct xid_header_info info;
	struct xid_header_entry *entry;
	uint32_t idx;

	i_zero(&info);
	info.entries = array_get(&r->entries, &info.count);
	idx = xid_header_find(&info, ns, ns_len);
	if (idx != XID_NO_NAMESPACE)
		return idx;
	entry = array_append_space(&r->entries);
	i_assert(ns_len < sizeof(entry->name));
	memcpy(entry->name, ns, ns_len);
	return array_count(&r->entries) - 1;
}

static void xid_recover_read_present(struct xid_recover *r)
{
	uint32_t seq, count = mail_index_view_get_messages_count(r->view);
	struct xid_record rec;

	i_array_init(&r->present, 1024);
	for (seq = 1; seq <= count; seq++) {
		if (xid_record_get(r->xbox, r->view, seq, &rec))
			array_push_back(&r->present, &rec);
	}
	array_sort(&r->present, xid_record_cmp);
}

/* The XID is that of another message: the registry is behind. */
static bool
xid_recover_is_present(struct xid_recover *r, const struct xid_record *rec)
{
	if (!array_is_created(&r->present))
		xid_recover_read_present(r);
	return array_bsearch(&r->present, rec, xid_record_cmp) != NULL;
}

/* Find the messages in the locked view; drop those that another process was
   quicker with. */
static void xid_recover_locate(struct xid_recover *r)
{
	struct xid_lost_mail *lost;
	struct xid_record rec;

	array_foreach_modifiable(&r->mails, lost) {
		if (!mail_index_lookup_seq(r->view, lost->uid, &lost->seq) ||
		    xid_record_get(r->xbox, r->view, lost->seq, &rec))
			lost->seq = 0;
	}
}

static int
xid_recover_take(struct xid_recover *r, const struct xid_lost_mail *lost,
		 bool same_uid, struct imap_xid *xid_r)
{
	size_t len = strlen(lost->guid);

	return same_uid ?
		imap_xid_recovery_take_at(r->registry, lost->guid, len,
					  lost->uid, xid_r) :
		imap_xid_recovery_take(r->registry, lost->guid, len, xid_r);
}

/* The XID that the registry has for the message, unless another message of the
   mailbox has it. Returns -1 on error. */
static int
xid_recover_known_mail(struct xid_recover *r, struct xid_lost_mail *lost,
		       bool same_uid)
{
	struct imap_xid xid;
	int ret;

	while ((ret = xid_recover_take(r, lost, same_uid, &xid)) > 0) {
		lost->rec.number = xid.number;
		lost->rec.ns = xid_recover_namespace(r, xid.ns, xid.ns_len);
		if (!xid_recover_is_present(r, &lost->rec))
			return 0;
		i_zero(&lost->rec);
	}
	if (ret < 0) {
		xid_mailbox_log_error(r->xbox,
			"looking for the XIDs that messages had");
	}
	return ret;
}

/* What the registry still knows. By UID first: the mailbox may hold several
   messages of one GUID, and have held more. */
static int xid_recover_known(struct xid_recover *r)
{
	struct xid_lost_mail *lost;
	unsigned int pass;

	for (pass = 0; pass < 2; pass++) {
		array_foreach_modifiable(&r->mails, lost) {
			if (lost->seq == 0 || lost->rec.number != 0 ||
			    lost->guid == NULL || *lost->guid == '\0')
				continue;
			if (xid_recover_known_mail(r, lost, pass == 0) < 0)
				return -1;
		}
	}
	return 0;
}

/* Of XIDs that were given here, none is given twice. */
static void xid_recover_add_present(struct xid_recover *r)
{
	const struct xid_lost_mail *lost;

	if (!array_is_created(&r->present))
		xid_recover_read_present(r);
	array_foreach(&r->mails, lost) {
		if (lost->rec.number != 0)
			array_push_back(&r->present, &lost->rec);
	}
	array_sort(&r->present, xid_record_cmp);
}

/* FALSE = a message that is to have another XID has it. One at the same UID is
   the very same message, and moves. */
static bool
xid_recover_take_xid(struct xid_recover *r, struct xid_lost_mail *lost,
		     const struct imap_xid *xid, bool same_uid)
{
	struct xid_header_entry *ns;
	struct xid_record rec;
	unsigned int idx;

	i_zero(&rec);
	rec.number = xid->number;
	rec.ns = xid_recover_namespace(r, xid->ns, xid->ns_len);
	if (!array_bsearch_insert_pos(&r->present, &rec, xid_record_cmp, &idx))
		array_insert(&r->present, idx, &rec, 1);
	else if (same_uid)
		r->moved_uid = I_MAX(r->moved_uid, lost->uid);
	else
		return FALSE;
	lost->rec = rec;
	ns = array_idx_modifiable(&r->entries, rec.ns);
	ns->high = I_MAX(ns->high, xid->number);
	return TRUE;
}

static void
xid_recover_take_answer(struct xid_recover *r, struct xid_lost_mail *lost,
			bool same_uid)
{
	const char *const *found = t_strsplit(lost->answer, ",");
	struct imap_xid xid;
	uint32_t uid;

	for (; *found != NULL; found++) {
		if (xid_answer_parse(*found, &uid, &xid) == 0 &&
		    (!same_uid || uid == lost->uid) &&
		    xid_recover_take_xid(r, lost, &xid, same_uid))
			return;
	}
}

/* One that is not taken yet, if there is one. */
static struct xid_moving *
xid_recover_find_moving(ARRAY_TYPE(xid_moving) *moving, const char *guid)
{
	struct xid_moving *moved, *found = NULL;

	array_foreach_modifiable(moving, moved) {
		if (null_strcmp(guid, moved->guid) != 0)
			continue;
		found = moved;
		if (!moved->taken)
			break;
	}
	return found;
}

/* What was being moved when a process was killed. The message at its old place
   may still have the XID, too. */
static void xid_recover_find_moved(struct xid_recover *r)
{
	ARRAY_TYPE(xid_moving) moving;
	struct xid_lost_mail *lost;
	struct xid_moving *moved;
	bool others = FALSE;

	p_array_init(&moving, r->pool, 8);
	if (array_count(&r->mails) > 0)
		xid_moving_read(r->xbox, r->pool, &moving);
	if (array_count(&moving) == 0)
		return;
	array_foreach_modifiable(&r->mails, lost) {
		moved = xid_recover_find_moving(&moving, lost->guid);
		if (moved == NULL)
			others = TRUE;
		else if (!moved->taken) {
			lost->moved = moved->xid;
			moved->taken = TRUE;
		}
	}
	if (!others)
		return;
	xid_moving_find_files(r->xbox, &moving);
	array_foreach_modifiable(&r->mails, lost) T_BEGIN {
		if (xid_recover_find_moving(&moving, lost->guid) == NULL) {
			lost->stray = xid_moving_find_stray(r->xbox, lost->uid,
							    &moving);
		}
	} T_END;
}

static void xid_recover_drop_strays(struct xid_recover *r)
{
	struct xid_lost_mail *lost;

	array_foreach_modifiable(&r->mails, lost) {
		if (lost->seq == 0 || lost->stray == NULL ||
		    !xid_moving_remove_stray(r->xbox, lost->uid, lost->stray))
			continue;
		mail_index_expunge(r->trans, lost->seq);
		lost->seq = 0;
		r->xbox->strays = TRUE;
	}
}

static void xid_recover_moved(struct xid_recover *r)
{
	struct xid_lost_mail *lost;
	struct imap_xid xid;

	array_foreach_modifiable(&r->mails, lost) {
		if (lost->seq == 0 || lost->moved == NULL ||
		    imap_xid_parse(lost->moved, strlen(lost->moved), &xid) < 0)
			continue;
		lost->rec.number = xid.number;
		lost->rec.ns = xid_recover_namespace(r, xid.ns, xid.ns_len);
		r->moved_uid = I_MAX(r->moved_uid, lost->uid);
	}
}

/* What other nodes know: those that have the same UID there first. */
static void xid_recover_answered(struct xid_recover *r)
{
	struct xid_lost_mail *lost;
	unsigned int pass;
	bool added = FALSE;

	for (pass = 0; pass < 2; pass++) {
		array_foreach_modifiable(&r->mails, lost) {
			if (lost->seq == 0 || lost->rec.number != 0 ||
			    lost->answer == NULL)
				continue;
			if (!added)
				xid_recover_add_present(r);
			added = TRUE;
			T_BEGIN {
				xid_recover_take_answer(r, lost, pass == 0);
			} T_END;
		}
	}
}

/* As when a message is replicated: see there. */
static void
xid_recover_log_new(struct xid_recover *r, const struct xid_lost_mail *lost)
{
	struct xid_user *xuser = r->xbox->xuser;

	if (!xid_user_is_clustered(xuser))
		return;
	e_info(xuser->user->event, "xid: %s: %s: UID %u is given the new XID "
	       "%s-%"PRIu64" (found without XID, %s; GUID %s)",
	       xuser->user->username, mailbox_get_vname(r->xbox->box),
	       lost->uid, xuser->set.namespace, lost->rec.number,
	       lost->answer == NULL ? "no node knows it" :
	       t_strdup_printf("others have this XID: %s", lost->answer),
	       lost->guid == NULL ? "-" : lost->guid);
}

static int xid_recover_new_numbers(struct xid_recover *r)
{
	const char *ns = r->xbox->xuser->set.namespace;
	uint32_t count = 0, idx = xid_recover_namespace(r, ns, strlen(ns));
	struct xid_header_entry *own = array_idx_modifiable(&r->entries, idx);
	struct xid_lost_mail *lost;
	imap_xid_root *root;
	uint64_t number;

	array_foreach_modifiable(&r->mails, lost) {
		if (lost->seq != 0 && lost->rec.number == 0)
			count++;
	}
	if (count == 0)
		return 0;
	if ((root = xid_root_open(r->xbox)) == NULL)
		return -1;
	if (imap_xid_numbers_take(root, own->high, count, &number) < 0) {
		xid_mailbox_log_error(r->xbox, "messages have no XIDs yet");
		return -1;
	}
	array_foreach_modifiable(&r->mails, lost) {
		if (lost->seq == 0 || lost->rec.number != 0)
			continue;
		lost->rec.number = number++;
		lost->rec.ns = idx;
		xid_recover_log_new(r, lost);
	}
	return 0;
}

/* Up to where every message has an XID once ours are written: another process
   may have added messages behind the last one that we looked at. */
static void xid_recover_find_covered(struct xid_recover *r)
{
	const struct xid_lost_mail *lost;
	struct xid_record rec;
	uint32_t seq, seq2;

	if (array_count(&r->mails) > 0) {
		lost = array_back(&r->mails);
		r->covered_uid = I_MAX(r->covered_uid, lost->uid);
	}
	if (r->covered_uid == (uint32_t)-1 ||
	    !mail_index_lookup_seq_range(r->view, r->covered_uid + 1,
					 (uint32_t)-1, &seq, &seq2))
		return;
	for (; seq <= seq2; seq++) {
		if (!xid_record_get(r->xbox, r->view, seq, &rec))
			break;
		mail_index_lookup_uid(r->view, seq, &r->covered_uid);
	}
}

static void xid_recover_write(struct xid_recover *r)
{
	const struct xid_lost_mail *lost;
	struct xid_header_entry *entry;

	array_foreach(&r->mails, lost) {
		if (lost->seq == 0)
			continue;
		mail_index_update_ext(r->trans, lost->seq, r->xbox->ext_id,
				      &lost->rec, NULL);
		entry = array_idx_modifiable(&r->entries, lost->rec.ns);
		entry->high = I_MAX(entry->high, lost->rec.number);
	}
	xid_header_write(r->xbox, r->trans, array_front(&r->entries),
			 array_count(&r->entries), r->covered_uid);
	xid_header_update_moved(r->xbox, r->trans, r->moved_uid);
}

static void
xid_recover_note_entry(struct xid_recover *r, const struct xid_lost_mail *lost,
		       struct imap_xid_entry *entry)
{
	const struct xid_header_entry *ns =
		array_idx(&r->entries, lost->rec.ns);

	entry->uid = lost->uid;
	entry->ns = ns->name;
	entry->ns_len = strlen(ns->name);
	entry->number = lost->rec.number;
	entry->guid = lost->guid;
	entry->guid_len = strlen(lost->guid);
}

/* The registry hears of it before the index does: a crash in between leaves
   XIDs that the next try finds by the messages' GUIDs. */
static void xid_recover_note(struct xid_recover *r)
{
	ARRAY_TYPE(imap_xid_entry) entries;
	const struct xid_lost_mail *lost;

	i_array_init(&entries, 128);
	array_foreach(&r->mails, lost) {
		if (lost->seq == 0 || lost->guid == NULL)
			continue;
		xid_recover_note_entry(r, lost, array_append_space(&entries));
		if (array_count(&entries) == XID_NOTE_BATCH) {
			xid_mailbox_note(r->xbox, &entries);
			array_clear(&entries);
		}
	}
	xid_mailbox_note(r->xbox, &entries);
	array_free(&entries);
}

static int xid_recover_fill(struct xid_recover *r)
{
	const char *ns = r->xbox->xuser->set.namespace;
	struct xid_header_info info;

	xid_header_read(r->xbox, r->view, &info);
	r->covered_uid = info.covered_uid;
	p_array_init(&r->entries, r->pool, info.count + 1);
	if (info.count > 0)
		array_append(&r->entries, info.entries, info.count);
	(void)xid_recover_namespace(r, ns, strlen(ns));

	xid_recover_locate(r);
	r->moved_uid = info.moved_uid;
	xid_recover_drop_strays(r);
	xid_recover_moved(r);
	if (r->registry != NULL && xid_recover_known(r) < 0)
		return -1;
	xid_recover_answered(r);
	if (xid_recover_new_numbers(r) < 0)
		return -1;
	xid_recover_find_covered(r);
	return 0;
}

/* Returns -1 if the index could not be written (logged). */
static int xid_recover_commit(struct xid_recover *r)
{
	struct mailbox *box = r->xbox->box;
	int ret;

	if (mail_index_refresh(box->index) < 0) {
		mailbox_set_index_error(box);
		return -1;
	}
	r->view = mail_index_view_open(box->index);
	r->trans = mail_index_transaction_begin(r->view,
		MAIL_INDEX_TRANSACTION_FLAG_EXTERNAL |
		MAIL_INDEX_TRANSACTION_FLAG_FSYNC);
	ret = xid_recover_fill(r);
	if (ret < 0)
		mail_index_transaction_rollback(&r->trans);
	else {
		xid_recover_write(r);
		xid_recover_note(r);
		ret = mail_index_transaction_commit(&r->trans);
		if (ret < 0)
			mailbox_set_index_error(box);
	}
	mail_index_view_close(&r->view);
	return ret;
}

static int xid_recover_locked(struct xid_recover *r)
{
	struct mail_index *index = r->xbox->box->index;
	int ret;

	if (mail_index_lock_sync(index, XID_LOCK_REASON) < 0) {
		mailbox_set_index_error(r->xbox->box);
		return -1;
	}
	ret = xid_recover_commit(r);
	mail_index_unlock(index, XID_LOCK_REASON);
	/* so that box->view finds the records */
	return ret < 0 ? -1 : mail_index_refresh(index);
}

/* Returns 1 = the messages' GUIDs are needed, and read; 0 = the registry knows
   none of them, and they have no UIDs to agree on; -1 = the registry cannot be
   asked: new XIDs now would change those that it has. */
static int xid_recover_ask_registry(struct xid_recover *r)
{
	imap_xid_box *core = xid_box_open(r->xbox);
	int ret;

	if (core == NULL)
		return -1;
	if (array_count(&r->mails) == 0)
		return 0;
	ret = imap_xid_recovery_begin(core, &r->registry);
	if (ret < 0) {
		xid_mailbox_log_error(r->xbox, "messages have no XIDs yet");
		return -1;
	}
	if (r->xbox->xuser->set.uid_source != XID_UID_SOURCE_LOCAL)
		ret = 1;
	if (ret > 0)
		xid_recover_read_guids(r);
	return ret;
}

/* The messages that the registry cannot know. What is taken is put back by the
   caller, who begins anew. */
static int
xid_recover_find_unknown(struct xid_recover *r, ARRAY_TYPE(const_string) *guids,
			 ARRAY_TYPE(uint32_t) *indexes)
{
	const struct xid_lost_mail *lost;
	struct imap_xid xid;
	uint32_t i;
	int ret;

	for (i = 0; i < array_count(&r->mails); i++) {
		lost = array_idx(&r->mails, i);
		if (lost->guid == NULL || *lost->guid == '\0' ||
		    lost->moved != NULL || lost->stray != NULL)
			continue;
		ret = r->registry == NULL ? 0 :
			xid_recover_take(r, lost, FALSE, &xid);
		if (ret < 0)
			return -1;
		if (ret == 0) {
			array_push_back(guids, &lost->guid);
			array_push_back(indexes, &i);
		}
	}
	return 0;
}

static int
xid_recover_ask_of(struct xid_recover *r, const ARRAY_TYPE(const_string) *guids,
		   const ARRAY_TYPE(uint32_t) *indexes)
{
	ARRAY_TYPE(const_string) answers;
	struct xid_lost_mail *lost;
	const char *error, *answer;
	const uint32_t *idx;
	unsigned int i;

	t_array_init(&answers, array_count(guids));
	if (xid_daemon_xids(r->xbox, XID_ASK_HOLDING, guids, &answers,
			    &error) < 0) {
		r->xbox->unanswered_at = ioloop_time;
		e_warning(r->xbox->xuser->user->event, "xid: %s: %s: %u "
			"messages have no XIDs yet (%s)",
			r->xbox->xuser->user->username,
			mailbox_get_vname(r->xbox->box), array_count(guids),
			error);
		return -1;
	}
	for (i = 0; i < array_count(guids); i++) {
		idx = array_idx(indexes, i);
		lost = array_idx_modifiable(&r->mails, *idx);
		answer = array_idx_elem(&answers, i);
		lost->answer = strcmp(answer, "-") == 0 ? NULL :
			p_strdup(r->pool, answer);
	}
	return 0;
}

/* A replica of a message that has no XID here may have one elsewhere, which
   never changes. -1 = that cannot be known now: no new XIDs. */
static int xid_recover_ask_daemon(struct xid_recover *r)
{
	ARRAY_TYPE(const_string) guids;
	ARRAY_TYPE(uint32_t) indexes;
	int ret;

	if (!xid_user_is_clustered(r->xbox->xuser) ||
	    array_count(&r->mails) == 0)
		return 0;
	xid_daemon_begin_numbers(r->xbox);
	t_array_init(&guids, 64);
	t_array_init(&indexes, 64);
	ret = xid_recover_find_unknown(r, &guids, &indexes);
	if (r->registry != NULL) {
		imap_xid_recovery_free(r->registry);
		r->registry = NULL;
		if (ret == 0 && imap_xid_recovery_begin(r->xbox->core,
							&r->registry) < 0)
			ret = -1;
	}
	if (ret < 0) {
		xid_mailbox_log_error(r->xbox, "messages have no XIDs yet");
		return -1;
	}
	if (array_count(&guids) == 0)
		return 0;
	if (r->xbox->xuser->asks_nobody ||
	    (r->xbox->unanswered_at != 0 &&
	     ioloop_time - r->xbox->unanswered_at < XID_ASK_AGAIN_SECS))
		return -1;
	return xid_recover_ask_of(r, &guids, &indexes);
}

static int xid_recover_run(struct xid_mailbox *xbox, uint32_t first_uid)
{
	struct xid_recover r;
	int ret, known;

	i_zero(&r);
	r.xbox = xbox;
	r.first_uid = first_uid;
	r.pool = pool_alloconly_create("xid recover", 4096);
	p_array_init(&r.mails, r.pool, 16);
	xid_recover_find_lost(&r);
	ret = known = xid_recover_ask_registry(&r);
	if (ret > 0)
		xid_recover_find_moved(&r);
	if (ret >= 0) T_BEGIN {
		ret = xid_recover_ask_daemon(&r);
	} T_END;
	if (ret >= 0)
		ret = xid_recover_locked(&r);
	imap_xid_recovery_free(r.registry);
	/* What the registry had never heard of it learns now, piece by piece:
	   there may be a million. */
	if (ret == 0 && known == 0 && array_count(&r.mails) > 0)
		(void)xid_registry_cover(xbox);
	if (array_is_created(&r.present))
		array_free(&r.present);
	pool_unref(&r.pool);
	return ret;
}

/*
 * For the other files
 */

/* The index can be written now. Not while the storage itself is in the middle
   of changing it: then the next sync sees to it. */
static bool xid_mailbox_is_writable(struct xid_mailbox *xbox)
{
	struct mail_index *index = xbox->box->index;

	return xbox->ready && !xbox->ensuring && !index->readonly &&
		!index->syncing && !mail_index_is_locked(index) &&
		!mail_index_is_deleted(index);
}

static int xid_mailbox_recover(struct xid_mailbox *xbox, uint32_t first_uid)
{
	struct mail_storage *storage = xbox->box->storage;
	int ret;

	if (!xid_mailbox_is_writable(xbox))
		return 0;
	xbox->ensuring = TRUE;
	mail_storage_last_error_push(storage);
	ret = xid_recover_run(xbox, first_uid);
	mail_storage_last_error_pop(storage);
	xbox->ensuring = FALSE;
	return ret;
}

bool xid_mailbox_is_named(struct mailbox *box)
{
	struct xid_mailbox *xbox = xid_mailbox_get(box);

	return xbox != NULL && xbox->ready &&
		xid_view_is_covered(xbox, box->view);
}

void xid_mailbox_unnamed(struct mailbox *box, pool_t pool,
			 ARRAY_TYPE(const_string) *guids_r)
{
	struct xid_mailbox *xbox = xid_mailbox_get(box);
	struct xid_guid_list *guids;
	struct xid_record rec;
	const char *guid;
	uint32_t seq, seq2;

	if (xbox == NULL || xid_mailbox_is_named(box) ||
	    !mail_index_lookup_seq_range(box->view, xid_first_uncovered(xbox),
					 (uint32_t)-1, &seq, &seq2))
		return;
	guids = xid_guid_list_init(xbox);
	for (; seq <= seq2; seq++) {
		if (xid_record_get(xbox, box->view, seq, &rec))
			continue;
		guid = p_strdup(pool, xid_guid_list_get(guids, seq));
		array_push_back(guids_r, &guid);
	}
	xid_guid_list_deinit(&guids);
}

int xid_mailbox_ensure(struct mailbox *box)
{
	struct xid_mailbox *xbox = xid_mailbox_get(box);

	if (xbox == NULL || !xbox->ready ||
	    xid_view_is_covered(xbox, box->view))
		return 0;
	return xid_mailbox_recover(xbox, xid_first_uncovered(xbox));
}

bool xid_mailbox_repair(struct xid_mailbox *xbox)
{
	if (!xbox->ready || xbox->repaired || !xid_mailbox_is_writable(xbox))
		return FALSE;
	/* Once in a sync: nothing else can have taken XIDs away. What failed
	   is tried again after a second: the disk may stay full. */
	if (xbox->repair_failed_at == ioloop_time)
		return FALSE;
	if (xid_mailbox_recover(xbox, 1) < 0) {
		xbox->repair_failed_at = ioloop_time;
		return FALSE;
	}
	xbox->repaired = TRUE;
	return TRUE;
}

void xid_mailbox_prepare_save(struct xid_mailbox *xbox)
{
	const char *ns = xbox->xuser->set.namespace;
	struct xid_header_info info;

	if (!xbox->ready)
		return;
	xid_header_read(xbox, NULL, &info);
	if (xid_header_find(&info, ns, strlen(ns)) == XID_NO_NAMESPACE ||
	    !xid_view_is_covered(xbox, xbox->box->view))
		(void)xid_mailbox_recover(xbox, xid_first_uncovered(xbox));
	(void)xid_box_open(xbox);
}
