/* The XID as the mailbox index holds it: an extension whose record is a
   number and which namespace it belongs to, and whose header lists the
   namespaces with the highest number that each ever had here. */
#include "xid-index.h"
#include "str.h"
#include "mail-index-private.h"
#include "mail-index-view-private.h"
#include "mail-storage-settings.h"
#include "wait.h"

/* Room for one namespace from the start: a node without a cluster never
   needs more, and growing the header is an index change of its own. */
#define XID_EXT_HEADER_SIZE \
	(sizeof(struct xid_header) + sizeof(struct xid_header_entry))

_Static_assert(sizeof(struct xid_record) == 16, "on disk");
_Static_assert(sizeof(struct xid_header) == 16, "on disk");
_Static_assert(sizeof(struct xid_header_entry) == 72, "on disk");

/* The host writes the whole index anew when so much of its log is not in it
   yet. An XID makes what a message takes of the log 2.5 times as long (sdbox:
   184 octets for 72), so a process that lives for many messages is given 2.5
   times as much of it: the index is written as often as without XIDs. Not
   for deliveries: each of them reads that part of the log again. */
static void xid_index_allow_log(struct xid_mailbox *xbox)
{
	const struct mail_storage_settings *set = xbox->box->storage->set;
	struct mail_index_optimization_settings optimization_set;

	if (!xid_wait_imap)
		return;
	i_zero(&optimization_set);
	optimization_set.index.rewrite_min_log_bytes =
		set->mail_index_rewrite_min_log_bytes * 5 / 2;
	mail_index_set_optimization_settings(xbox->box->index,
					     &optimization_set);
}

void xid_index_register(struct xid_mailbox *xbox)
{
	xid_index_allow_log(xbox);
	xbox->ext_id = mail_index_ext_register(xbox->box->index, XID_EXT_NAME,
					       XID_EXT_HEADER_SIZE,
					       sizeof(struct xid_record),
					       sizeof(uint64_t));
}

static size_t xid_header_size(uint32_t count)
{
	return sizeof(struct xid_header) +
		(size_t)count * sizeof(struct xid_header_entry);
}

void xid_header_read(struct xid_mailbox *xbox, struct mail_index_view *view,
		     struct xid_header_info *info_r)
{
	struct mail_index_map *map = view != NULL ? view->map : NULL;
	const struct xid_header *hdr;
	const void *data;
	size_t size;

	i_zero(info_r);
	mail_index_map_get_header_ext(xbox->box->view, map, xbox->ext_id,
				      &data, &size);
	hdr = data;
	if (size < sizeof(*hdr) || hdr->version != XID_HEADER_VERSION ||
	    hdr->count > (size - sizeof(*hdr)) / sizeof(*info_r->entries))
		return;
	info_r->count = hdr->count;
	info_r->covered_uid = hdr->covered_uid;
	info_r->moved_uid = hdr->moved_uid;
	info_r->entries = CONST_PTR_OFFSET(data, sizeof(*hdr));
}

static size_t xid_entry_name_len(const struct xid_header_entry *entry)
{
	return strnlen(entry->name, sizeof(entry->name));
}

uint32_t xid_header_find(const struct xid_header_info *info,
			 const char *ns, size_t ns_len)
{
	uint32_t i;

	for (i = 0; i < info->count; i++) {
		if (xid_entry_name_len(&info->entries[i]) == ns_len &&
		    memcmp(info->entries[i].name, ns, ns_len) == 0)
			return i;
	}
	return XID_NO_NAMESPACE;
}

void xid_header_write(struct xid_mailbox *xbox,
		      struct mail_index_transaction *trans,
		      const struct xid_header_entry *entries, uint32_t count,
		      uint32_t covered_uid)
{
	struct xid_header hdr;
	size_t size = xid_header_size(count);
	struct xid_header_info old;
	const void *old_data;
	size_t old_size;

	mail_index_map_get_header_ext(xbox->box->view, NULL, xbox->ext_id,
				      &old_data, &old_size);
	if (size > I_MAX(old_size, XID_EXT_HEADER_SIZE))
		mail_index_ext_resize_hdr(trans, xbox->ext_id, size);

	xid_header_read(xbox, NULL, &old);
	i_zero(&hdr);
	hdr.version = XID_HEADER_VERSION;
	hdr.count = count;
	hdr.covered_uid = covered_uid;
	hdr.moved_uid = old.moved_uid;
	mail_index_update_header_ext(trans, xbox->ext_id, 0, &hdr, sizeof(hdr));
	if (count > 0) {
		mail_index_update_header_ext(trans, xbox->ext_id, sizeof(hdr),
					     entries, size - sizeof(hdr));
	}
}

void xid_header_update_moved(struct xid_mailbox *xbox,
			     struct mail_index_transaction *trans,
			     uint32_t moved_uid)
{
	mail_index_update_header_ext(trans, xbox->ext_id,
		offsetof(struct xid_header, moved_uid),
		&moved_uid, sizeof(moved_uid));
}

void xid_header_update(struct xid_mailbox *xbox,
		       struct mail_index_transaction *trans, uint32_t idx,
		       uint64_t high, uint32_t covered_uid)
{
	mail_index_update_header_ext(trans, xbox->ext_id,
		offsetof(struct xid_header, covered_uid),
		&covered_uid, sizeof(covered_uid));
	mail_index_update_header_ext(trans, xbox->ext_id,
		xid_header_size(idx) + offsetof(struct xid_header_entry, high),
		&high, sizeof(high));
}

bool xid_record_get(struct xid_mailbox *xbox, struct mail_index_view *view,
		    uint32_t seq, struct xid_record *rec_r)
{
	const void *data;

	mail_index_lookup_ext(view, seq, xbox->ext_id, &data, NULL);
	if (data == NULL)
		return FALSE;
	/* records of other extensions may leave ours unaligned */
	memcpy(rec_r, data, sizeof(*rec_r));
	return rec_r->number != 0;
}

int xid_record_cmp(const struct xid_record *r1, const struct xid_record *r2)
{
	if (r1->ns != r2->ns)
		return r1->ns < r2->ns ? -1 : 1;
	if (r1->number != r2->number)
		return r1->number < r2->number ? -1 : 1;
	return 0;
}

bool xid_record_to_xid(const struct xid_header_info *info,
		       const struct xid_record *rec, struct imap_xid *xid_r)
{
	if (rec->ns >= info->count)
		return FALSE;
	xid_r->ns = info->entries[rec->ns].name;
	xid_r->ns_len = xid_entry_name_len(&info->entries[rec->ns]);
	xid_r->number = rec->number;
	return xid_r->ns_len > 0;
}

unsigned int xid_header_entries(struct xid_mailbox *xbox,
				struct mail_index_view *view,
				const struct xid_header_entry **entries_r)
{
	struct xid_header_info info;

	xid_header_read(xbox, view, &info);
	*entries_r = info.entries;
	return info.count;
}

bool xid_mail_get(struct xid_mailbox *xbox, struct mail_index_view *view,
		  uint32_t seq, struct imap_xid *xid_r)
{
	struct xid_header_info info;
	struct xid_record rec;

	if (!xid_record_get(xbox, view, seq, &rec))
		return FALSE;
	xid_header_read(xbox, NULL, &info);
	return xid_record_to_xid(&info, &rec, xid_r);
}

bool xid_mail_lookup(struct mailbox *box, struct mail_index_view *view,
		     uint32_t seq, string_t *dest)
{
	struct xid_mailbox *xbox = xid_mailbox_get(box);
	struct imap_xid xid;

	if (xbox == NULL)
		return FALSE;
	/* A message has none only if giving it one failed (the disk was full),
	   or if the index lost it. */
	if (!xid_mail_get(xbox, view, seq, &xid) &&
	    (mail_index_is_expunged(view, seq) || !xid_mailbox_repair(xbox) ||
	     !xid_mail_get(xbox, view, seq, &xid)))
		return FALSE;
	str_append_data(dest, xid.ns, xid.ns_len);
	str_printfa(dest, "-%"PRIu64, xid.number);
	return TRUE;
}

bool xid_mail_append(struct mail *mail, string_t *dest)
{
	struct mail *real_mail;

	if (mail_get_backend_mail(mail, &real_mail) < 0)
		return FALSE;
	return xid_mail_lookup(real_mail->box, real_mail->transaction->view,
			       real_mail->seq, dest);
}
