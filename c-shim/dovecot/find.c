/* XID -> message, and what a client's state lacks. The registry has the
   order; the index decides: what the registry says is checked against the
   message's record, and where it differs the mailbox's rows are written anew
   from the index. */
#include "xid-index.h"
#include "wait.h"
#include "str.h"

/* Messages that are registered in one transaction of the registry: enough to
   make its fsync cheap, few enough to keep the memory small. */
#define XID_REGISTER_BATCH 8192

/* Messages of one GUID that are looked at: a client may copy a message within
   its mailbox, but more copies than this help nobody. */
#define XID_GUID_ROWS 64

/*
 * Keeping the registry true
 */

static uint32_t xid_view_last_uid(struct mail_index_view *view)
{
	uint32_t uid, count = mail_index_view_get_messages_count(view);

	if (count == 0)
		return 0;
	mail_index_lookup_uid(view, count, &uid);
	return uid;
}

/* Register the messages from seq on, XID_REGISTER_BATCH at most. */
static int
xid_register_batch(struct xid_mailbox *xbox, struct xid_guid_reader *reader,
		   uint32_t seq, bool replace_all)
{
	struct mail_index_view *view = xbox->box->view;
	uint32_t count = mail_index_view_get_messages_count(view);
	uint32_t covers = mail_index_get_header(view)->next_uid;
	ARRAY_TYPE(imap_xid_entry) entries;
	struct imap_xid_entry *entry;
	struct imap_xid xid;
	pool_t pool;
	int ret;

	pool = pool_alloconly_create("xid register", 64 * 1024);
	p_array_init(&entries, pool, 128);
	for (; seq <= count; seq++) {
		if (array_count(&entries) == XID_REGISTER_BATCH) {
			mail_index_lookup_uid(view, seq, &covers);
			break;
		}
		if (!xid_mail_get(xbox, view, seq, &xid))
			continue;
		entry = array_append_space(&entries);
		mail_index_lookup_uid(view, seq, &entry->uid);
		entry->ns = p_strndup(pool, xid.ns, xid.ns_len);
		entry->ns_len = xid.ns_len;
		entry->number = xid.number;
		T_BEGIN {
			entry->guid = p_strdup(pool, xid_guid_read(reader, seq));
		} T_END;
		entry->guid_len = strlen(entry->guid);
	}
	ret = imap_xid_box_register(xbox->core,
		array_count(&entries) == 0 ? NULL : array_front(&entries),
		array_count(&entries), covers, replace_all ? 1 : 0);
	pool_unref(&pool);
	if (ret < 0)
		xid_mailbox_log_error(xbox, "messages cannot be registered");
	return ret;
}

/* The first UID of box->view that the registry lacks; the view's next UID when
   there is none. */
static int
xid_registry_first_missing(struct xid_mailbox *xbox, uint32_t *uid_r)
{
	uint32_t next_uid = mail_index_get_header(xbox->box->view)->next_uid;

	if (imap_xid_box_registered(xbox->core, next_uid, uid_r) < 0) {
		xid_mailbox_log_error(xbox, "registry cannot be used");
		return -1;
	}
	return 0;
}

/* first_uid 1 = write the mailbox's rows anew */
static int xid_register_from(struct xid_mailbox *xbox, uint32_t first_uid)
{
	struct mail_index_view *view = xbox->box->view;
	struct xid_guid_reader *reader;
	uint32_t seq, seq2, missing_uid;
	int ret = 0;

	reader = xid_guid_reader_init(xbox);
	while (ret == 0 &&
	       mail_index_lookup_seq_range(view, first_uid, (uint32_t)-1,
					   &seq, &seq2)) {
		ret = xid_register_batch(xbox, reader, seq, first_uid == 1);
		if (ret == 0)
			ret = xid_registry_first_missing(xbox, &missing_uid);
		if (ret == 0 && missing_uid <= first_uid)
			ret = -1;
		first_uid = missing_uid;
	}
	xid_guid_reader_deinit(&reader);
	return ret;
}

int xid_registry_cover(struct xid_mailbox *xbox)
{
	uint32_t first_missing, last_uid = xid_view_last_uid(xbox->box->view);

	if (xid_box_open(xbox) == NULL)
		return -1;
	if (last_uid <= xbox->registered_uid)
		return 0;
	if (xid_registry_first_missing(xbox, &first_missing) < 0)
		return -1;
	if (first_missing <= last_uid &&
	    xid_register_from(xbox, first_missing) < 0)
		return -1;
	xbox->registered_uid = last_uid;
	return 0;
}

int xid_registry_rebuild(struct xid_mailbox *xbox)
{
	e_warning(xbox->xuser->user->event, "xid: %s: %s: registry differs "
		  "from the mailbox: written anew",
		  xbox->xuser->user->username,
		  mailbox_get_vname(xbox->box));
	return xid_register_from(xbox, 1);
}

/*
 * XID -> message
 */

static bool
xid_seq_has(struct xid_mailbox *xbox, uint32_t seq,
	    const struct imap_xid *wanted)
{
	struct imap_xid xid;

	return xid_mail_get(xbox, xbox->box->view, seq, &xid) &&
		xid.number == wanted->number && xid.ns_len == wanted->ns_len &&
		memcmp(xid.ns, wanted->ns, xid.ns_len) == 0;
}

/* Without the registry: look at every message. */
static int
xid_find_scan(struct xid_mailbox *xbox, const struct imap_xid *wanted,
	      uint32_t *seq_r)
{
	uint32_t count = mail_index_view_get_messages_count(xbox->box->view);

	for (*seq_r = 1; *seq_r <= count; *seq_r += 1) {
		if (xid_seq_has(xbox, *seq_r, wanted))
			return 1;
	}
	return 0;
}

enum xid_found {
	XID_FOUND_ERROR = -1,
	XID_FOUND_NOT = 0,
	XID_FOUND = 1,
	/* the registry names a message that has another XID */
	XID_FOUND_OTHER = 2,
};

static enum xid_found
xid_find_registered(struct xid_mailbox *xbox, const struct imap_xid *wanted,
		    uint32_t *seq_r)
{
	uint32_t uid;
	int ret;

	ret = imap_xid_box_lookup(xbox->core, wanted, &uid);
	if (ret < 0) {
		xid_mailbox_log_error(xbox, "registry cannot be used");
		/* It may be a new one, which must be told everything. */
		xbox->registered_uid = 0;
		return XID_FOUND_ERROR;
	}
	if (ret == 0 ||
	    !mail_index_lookup_seq(xbox->box->view, uid, seq_r))
		return XID_FOUND_NOT;
	return xid_seq_has(xbox, *seq_r, wanted) ? XID_FOUND : XID_FOUND_OTHER;
}

/* The mailbox never had a message of this namespace and number. Saves the
   registry the questions of a client that guesses. */
static bool
xid_was_never_here(struct xid_mailbox *xbox, const struct imap_xid *xid)
{
	struct xid_header_info info;
	uint32_t idx;

	xid_header_read(xbox, NULL, &info);
	idx = xid_header_find(&info, xid->ns, xid->ns_len);
	return idx == XID_NO_NAMESPACE || xid->number > info.entries[idx].high;
}

int xid_mailbox_find(struct mailbox *box, const struct imap_xid *xid,
		     uint32_t *seq_r)
{
	struct xid_mailbox *xbox = xid_mailbox_get(box);
	enum xid_found found;

	*seq_r = 0;
	if (xbox == NULL || xid_was_never_here(xbox, xid))
		return 0;
	if (xid_registry_cover(xbox) < 0)
		return xid_find_scan(xbox, xid, seq_r);

	found = xid_find_registered(xbox, xid, seq_r);
	if (found == XID_FOUND_OTHER) {
		if (xid_registry_rebuild(xbox) < 0)
			return xid_find_scan(xbox, xid, seq_r);
		found = xid_find_registered(xbox, xid, seq_r);
	}
	if (found == XID_FOUND_ERROR)
		return xid_find_scan(xbox, xid, seq_r);
	return found == XID_FOUND ? 1 : 0;
}

/*
 * GUID -> messages
 */

/* 1 = there, 0 = gone, -1 = another message is there */
static int
xid_row_check(struct xid_mailbox *xbox, const struct imap_xid_pending *row,
	      struct xid_found_mail *found_r)
{
	struct imap_xid xid;

	if (!mail_index_lookup_seq(xbox->box->view, row->uid, &found_r->seq))
		return 0;
	found_r->uid = row->uid;
	xid.ns = row->ns;
	xid.ns_len = strlen(row->ns);
	xid.number = row->number;
	return xid_seq_has(xbox, found_r->seq, &xid) ? 1 : -1;
}

static int
xid_find_guid_rows(struct xid_mailbox *xbox, const char *guid,
		   ARRAY_TYPE(xid_found_mail) *found)
{
	struct imap_xid_pending rows[XID_GUID_ROWS];
	struct xid_found_mail mail;
	int32_t i, count;
	int ret = 0;

	array_clear(found);
	count = imap_xid_box_by_guid(xbox->core, guid, strlen(guid), rows,
				     N_ELEMENTS(rows));
	if (count < 0) {
		xid_mailbox_log_error(xbox, "registry cannot be used");
		xbox->registered_uid = 0;
		return -1;
	}
	for (i = 0; i < count; i++) {
		switch (xid_row_check(xbox, &rows[i], &mail)) {
		case 1:
			array_push_back(found, &mail);
			break;
		case -1:
			ret = 1;
			break;
		}
	}
	return ret;
}

int xid_mailbox_find_guid(struct mailbox *box, const char *guid,
			  ARRAY_TYPE(xid_found_mail) *found_r)
{
	struct xid_mailbox *xbox = xid_mailbox_get(box);
	int ret;

	if (xbox == NULL || xid_registry_cover(xbox) < 0)
		return -1;
	ret = xid_find_guid_rows(xbox, xid_guid_registered(xbox, guid),
				 found_r);
	if (ret > 0 && xid_registry_rebuild(xbox) == 0) {
		ret = xid_find_guid_rows(xbox, xid_guid_registered(xbox, guid),
					 found_r);
	}
	return ret == 0 ? 0 : -1;
}

static void
xid_gone_append(uint32_t uid, const struct imap_xid_pending *row,
		string_t *dest)
{
	if (str_len(dest) > 0)
		str_append_c(dest, ',');
	str_printfa(dest, "%u:%s-%"PRIu64, uid, row->ns, row->number);
}

int xid_mailbox_gone_guid(struct mailbox *box, const char *guid,
			  string_t *dest)
{
	struct xid_mailbox *xbox = xid_mailbox_get(box);
	struct imap_xid_pending rows[XID_GUID_ROWS];
	size_t len;
	int32_t i, count;
	uint32_t seq;

	if (xbox == NULL || xbox->core == NULL)
		return -1;
	guid = xid_guid_registered(xbox, guid);
	len = strlen(guid);
	/* not in our view any more, or not yet: it did not go for sure */
	count = imap_xid_box_by_guid(xbox->core, guid, len, rows,
				     N_ELEMENTS(rows));
	for (i = 0; i < count; i++) {
		if (!mail_index_lookup_seq(box->view, rows[i].uid, &seq))
			xid_gone_append(XID_NO_UID, &rows[i], dest);
	}
	if (count >= 0) {
		count = imap_xid_box_gone(xbox->core, guid, len, rows,
					  N_ELEMENTS(rows));
	}
	for (i = 0; i < count; i++)
		xid_gone_append(0, &rows[i], dest);
	if (count < 0)
		xid_mailbox_log_error(xbox, "registry cannot be used");
	return count < 0 ? -1 : 0;
}

bool xid_mailbox_had_guid(struct mailbox *box, const char *guid)
{
	struct xid_mailbox *xbox = xid_mailbox_get(box);
	const char *registered;
	int32_t ret;

	if (xbox == NULL || xid_registry_cover(xbox) < 0)
		return TRUE;
	registered = xid_guid_registered(xbox, guid);
	ret = imap_xid_box_had(xbox->core, registered, strlen(registered));
	if (ret < 0) {
		xid_mailbox_log_error(xbox, "registry cannot be used");
		xbox->registered_uid = 0;
	}
	return ret != 0;
}

/*
 * News
 */

/* The state is of another mailbox, or we lost what the client has seen. */
static bool
xid_state_is_foreign(struct xid_mailbox *xbox, const imap_xid_state *state)
{
	const char *ns = xbox->xuser->set.namespace;
	struct xid_header_info info;
	uint32_t uid_validity, uid, idx;
	uint64_t number, highest;
	imap_xid_root *root;

	if (imap_xid_state_mark(state, &uid_validity, &uid) > 0 &&
	    uid_validity !=
	    mail_index_get_header(xbox->box->view)->uid_validity)
		return TRUE;
	number = imap_xid_state_number(state, ns, strlen(ns));
	/* What the mailbox itself remembers needs no look at the counter, and
	   is right even where that was lost. */
	xid_header_read(xbox, NULL, &info);
	idx = xid_header_find(&info, ns, strlen(ns));
	if (number == 0 ||
	    (idx != XID_NO_NAMESPACE && number <= info.entries[idx].high) ||
	    (root = xid_root_open(xbox)) == NULL)
		return FALSE;
	if (imap_xid_counter(root, &highest) < 0) {
		xid_mailbox_log_error(xbox, "the highest number is not known");
		return FALSE;
	}
	return number > highest;
}

static bool
xid_state_lacks(struct xid_mailbox *xbox, const imap_xid_state *state,
		uint32_t seq)
{
	struct imap_xid xid;

	return xid_mail_get(xbox, xbox->box->view, seq, &xid) &&
		xid.number > imap_xid_state_number(state, xid.ns, xid.ns_len);
}

static void
xid_news_since(struct xid_mailbox *xbox, uint32_t mark_uid,
	       ARRAY_TYPE(seq_range) *seqs)
{
	uint32_t seq1, seq2;

	mark_uid = I_MIN(mark_uid, xid_mailbox_watermark(xbox->box));
	if (mark_uid != (uint32_t)-1 &&
	    mail_index_lookup_seq_range(xbox->box->view, mark_uid + 1,
					(uint32_t)-1, &seq1, &seq2))
		seq_range_array_add_range(seqs, seq1, seq2);
}

static void
xid_news_scan(struct xid_mailbox *xbox, const imap_xid_state *state,
	      ARRAY_TYPE(seq_range) *seqs)
{
	uint32_t seq, count =
		mail_index_view_get_messages_count(xbox->box->view);

	for (seq = 1; seq <= count; seq++) {
		if (xid_state_lacks(xbox, state, seq))
			seq_range_array_add(seqs, seq);
	}
}

/* 1 = ok, 0 = the registry names messages that are not news, -1 = error */
static int
xid_news_registered(struct xid_mailbox *xbox, const imap_xid_state *state,
		    ARRAY_TYPE(seq_range) *seqs)
{
	uint32_t *uids, seq;
	size_t i, count;
	int ret = 1;

	if (imap_xid_box_news(xbox->core, state, &uids, &count) < 0) {
		xid_mailbox_log_error(xbox, "registry cannot be used");
		xbox->registered_uid = 0;
		return -1;
	}
	for (i = 0; i < count && ret > 0; i++) {
		/* expunged, or not in the view yet */
		if (!mail_index_lookup_seq(xbox->box->view, uids[i], &seq))
			continue;
		if (!xid_state_lacks(xbox, state, seq))
			ret = 0;
		seq_range_array_add(seqs, seq);
	}
	imap_xid_uids_free(uids, count);
	return ret;
}

static void
xid_news_plain(struct xid_mailbox *xbox, const imap_xid_state *state,
	       ARRAY_TYPE(seq_range) *seqs)
{
	int ret;

	if (xid_registry_cover(xbox) == 0) {
		ret = xid_news_registered(xbox, state, seqs);
		if (ret == 0 && xid_registry_rebuild(xbox) == 0) {
			array_clear(seqs);
			ret = xid_news_registered(xbox, state, seqs);
		}
		if (ret > 0)
			return;
		array_clear(seqs);
	}
	xid_news_scan(xbox, state, seqs);
}

int xid_mailbox_news(struct mailbox *box, const imap_xid_state *state,
		     ARRAY_TYPE(seq_range) *seqs_r)
{
	struct xid_mailbox *xbox = xid_mailbox_get(box);
	uint32_t uid_validity, uid;

	if (xbox == NULL)
		return 1;
	if (xid_state_is_foreign(xbox, state))
		return 0;
	if (imap_xid_state_mark(state, &uid_validity, &uid) > 0)
		xid_news_since(xbox, uid, seqs_r);
	else if (imap_xid_state_count(state) == 0) {
		/* nothing is known: everything is news */
		xid_news_since(xbox, 0, seqs_r);
	} else
		xid_news_plain(xbox, state, seqs_r);
	return 1;
}

/*
 * State
 */

uint32_t xid_mailbox_watermark(struct mailbox *box)
{
	uint32_t last_uid = mail_index_get_header(box->view)->next_uid - 1;
	struct xid_wait_mailbox *wbox = xid_wait_mailbox_get(box);

	return wbox == NULL ? last_uid :
		I_MIN(last_uid, xid_wait_watermark(wbox));
}

void xid_mailbox_append_state(struct mailbox *box, string_t *dest)
{
	struct xid_mailbox *xbox = xid_mailbox_get(box);
	struct xid_header_info info;
	uint32_t i;

	i_assert(xbox != NULL);
	xid_header_read(xbox, box->view, &info);
	for (i = 0; i < info.count; i++) {
		if (info.entries[i].high == 0)
			continue;
		str_printfa(dest, "%.*s-%"PRIu64" ", XID_NAMESPACE_SIZE,
			    info.entries[i].name, info.entries[i].high);
	}
	str_printfa(dest, "@%u-%u",
		    mail_index_get_header(box->view)->uid_validity,
		    xid_mailbox_watermark(box));
}

int xid_mailbox_counter(struct mailbox *box, uint64_t *highest_r)
{
	struct xid_mailbox *xbox = xid_mailbox_get(box);
	imap_xid_root *root;

	*highest_r = 0;
	if (xbox == NULL || (root = xid_root_open(xbox)) == NULL)
		return -1;
	return imap_xid_counter(root, highest_r) < 0 ? -1 : 0;
}
