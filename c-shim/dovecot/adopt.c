/* XIDs that come from elsewhere: room for their namespaces in the index, and
   messages that get them in place of their own. */
#include "xid-index.h"
#include "mail-index-private.h"
#include "mail-index-view-private.h"

#define XID_LOCK_REASON "xid: XIDs from elsewhere"

ARRAY_DEFINE_TYPE(xid_header_list, struct xid_header_entry);

struct xid_adopt {
	struct xid_mailbox *xbox;
	struct mail_index_view *view;
	struct mail_index_transaction *trans;
	/* the header as it will be */
	ARRAY_TYPE(xid_header_list) entries;
	uint32_t covered_uid, moved_uid;
};

static uint32_t
xid_adopt_namespace(struct xid_adopt *a, const struct imap_xid *xid)
{
	struct xid_header_info info;
	struct xid_header_entry *entry;
	uint32_t idx;

	i_zero(&info);
	info.entries = array_get(&a->entries, &info.count);
	idx = xid_header_find(&info, xid->ns, xid->ns_len);
	if (idx != XID_NO_NAMESPACE)
		return idx;
	entry = array_append_space(&a->entries);
	i_assert(xid->ns_len < sizeof(entry->name));
	memcpy(entry->name, xid->ns, xid->ns_len);
	return array_count(&a->entries) - 1;
}

static void xid_adopt_read_header(struct xid_adopt *a)
{
	struct xid_header_info info;

	xid_header_read(a->xbox, a->view, &info);
	t_array_init(&a->entries, info.count + 1);
	if (info.count > 0)
		array_append(&a->entries, info.entries, info.count);
	a->covered_uid = info.covered_uid;
	a->moved_uid = info.moved_uid;
}

static void
xid_adopt_one(struct xid_adopt *a, uint32_t seq, uint32_t uid,
	      const struct imap_xid *xid)
{
	struct xid_header_entry *entry;
	struct xid_record rec;

	i_zero(&rec);
	rec.ns = xid_adopt_namespace(a, xid);
	rec.number = xid->number;
	mail_index_update_ext(a->trans, seq, a->xbox->ext_id, &rec, NULL);
	entry = array_idx_modifiable(&a->entries, rec.ns);
	/* somebody here may have it already */
	if (rec.number <= entry->high)
		a->moved_uid = I_MAX(a->moved_uid, uid);
	entry->high = I_MAX(entry->high, rec.number);
}

static int
xid_adopt_all(struct xid_adopt *a, const struct imap_xid_entry *mails,
	      unsigned int count)
{
	struct imap_xid xid;
	unsigned int i;
	uint32_t seq;

	for (i = 0; i < count; i++) {
		xid.ns = mails[i].ns;
		xid.ns_len = mails[i].ns_len;
		xid.number = mails[i].number;
		if (mails[i].uid == 0)
			(void)xid_adopt_namespace(a, &xid);
		else if (mail_index_lookup_seq(a->view, mails[i].uid, &seq))
			xid_adopt_one(a, seq, mails[i].uid, &xid);
		else
			return 0;
	}
	return 1;
}

/* The index is locked. Returns as xid_mailbox_adopt(). */
static int
xid_adopt_locked(struct xid_mailbox *xbox, const struct imap_xid_entry *mails,
		 unsigned int count)
{
	struct mail_index *index = xbox->box->index;
	struct xid_adopt a;
	int ret;

	if (mail_index_refresh(index) < 0)
		return -1;
	i_zero(&a);
	a.xbox = xbox;
	a.view = mail_index_view_open(index);
	a.trans = mail_index_transaction_begin(a.view,
		MAIL_INDEX_TRANSACTION_FLAG_EXTERNAL |
		MAIL_INDEX_TRANSACTION_FLAG_FSYNC);
	xid_adopt_read_header(&a);
	ret = xid_adopt_all(&a, mails, count);
	if (ret == 0)
		mail_index_transaction_rollback(&a.trans);
	else {
		xid_header_write(xbox, a.trans, array_front(&a.entries),
				 array_count(&a.entries), a.covered_uid);
		xid_header_update_moved(xbox, a.trans, a.moved_uid);
		if (mail_index_transaction_commit(&a.trans) < 0)
			ret = -1;
	}
	mail_index_view_close(&a.view);
	return ret;
}

int xid_mailbox_adopt(struct xid_mailbox *xbox,
		      const struct imap_xid_entry *mails, unsigned int count)
{
	struct mail_index *index = xbox->box->index;
	int ret;

	if (count == 0)
		return 1;
	if (mail_index_lock_sync(index, XID_LOCK_REASON) < 0)
		ret = -1;
	else {
		T_BEGIN {
			ret = xid_adopt_locked(xbox, mails, count);
		} T_END;
		mail_index_unlock(index, XID_LOCK_REASON);
	}
	if (ret > 0 && mail_index_refresh(index) < 0)
		ret = -1;
	if (ret < 0)
		mailbox_set_index_error(xbox->box);
	return ret;
}

/* Numbers of ours that we never gave come from a disk that this one replaces:
   what we give from here on is above them. */
int xid_numbers_skip(struct xid_mailbox *xbox,
		     const struct imap_xid_entry *mails, unsigned int count)
{
	const char *ns = xbox->xuser->set.namespace;
	imap_xid_root *root = xid_root_open(xbox);
	uint64_t highest = 0, given, skipped;
	unsigned int i;

	for (i = 0; i < count; i++) {
		if (mails[i].ns_len == strlen(ns) &&
		    memcmp(mails[i].ns, ns, mails[i].ns_len) == 0)
			highest = I_MAX(highest, mails[i].number);
	}
	if (highest == 0)
		return 0;
	if (root == NULL || imap_xid_counter(root, &given) < 0 ||
	    (highest > given &&
	     imap_xid_numbers_take(root, highest, 1, &skipped) < 0)) {
		xid_mailbox_log_error(xbox, "numbers that come back");
		return -1;
	}
	return 0;
}
