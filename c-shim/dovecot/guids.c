/* GUIDs of many messages without a look at their files: sdbox has a message's
   GUID in its file only. The table knows what is not stable, the registry the
   rest. Either may be behind; an entry counts only if it has the XID that the
   index has for the message. */
#include "xid-index.h"
#include "wait.h"

/* What is asked for at a time. */
#define XID_GUID_PAGE 128

/* Entries in UID order, read a page at a time. */
struct xid_guid_pages {
	int32_t (*read)(imap_xid_box *core, uint32_t above,
			struct imap_xid_pending *out, size_t room);
	struct imap_xid_pending *page;
	unsigned int next, count;
	bool ended;
};

struct xid_guid_list {
	struct xid_mailbox *xbox;
	imap_xid_box *core;
	struct xid_guid_pages table, registry;
	/* made when first needed */
	struct mailbox_transaction_context *t;
	struct mail *mail;
};

struct xid_guid_list *xid_guid_list_init(struct xid_mailbox *xbox)
{
	struct xid_guid_list *list = i_new(struct xid_guid_list, 1);

	list->xbox = xbox;
	list->core = xid_box_open(xbox);
	list->table.read = imap_xid_box_pending;
	list->registry.read = imap_xid_box_rows;
	list->table.ended = list->core == NULL || xbox->wait == NULL ||
		xid_wait_attached(xbox->wait) == NULL;
	/* It has not all GUIDs in full where they are this node's business
	   alone. */
	list->registry.ended = list->core == NULL ||
		xbox->xuser->set.uid_source == XID_UID_SOURCE_LOCAL;
	return list;
}

/* The page begins at the first entry at or above the UID. */
static bool
xid_guid_pages_seek(struct xid_guid_list *list, struct xid_guid_pages *pages,
		    uint32_t uid)
{
	int32_t count;

	while (pages->next < pages->count &&
	       pages->page[pages->next].uid < uid)
		pages->next++;
	if (pages->next < pages->count)
		return TRUE;
	if (pages->ended)
		return FALSE;
	if (pages->page == NULL)
		pages->page = i_new(struct imap_xid_pending, XID_GUID_PAGE);
	count = pages->read(list->core, uid - 1, pages->page, XID_GUID_PAGE);
	if (count < 0)
		xid_mailbox_log_error(list->xbox, "GUIDs are read from the mail");
	pages->next = 0;
	pages->count = I_MAX(count, 0);
	pages->ended = count <= 0;
	return count > 0;
}

static const char *
xid_guid_pages_find(struct xid_guid_list *list, struct xid_guid_pages *pages,
		    uint32_t uid, const struct imap_xid *xid)
{
	const struct imap_xid_pending *entry;

	if (!xid_guid_pages_seek(list, pages, uid))
		return NULL;
	entry = &pages->page[pages->next];
	if (entry->uid != uid || entry->guid_len == 0 ||
	    entry->number != xid->number || strlen(entry->ns) != xid->ns_len ||
	    memcmp(entry->ns, xid->ns, xid->ns_len) != 0)
		return NULL;
	return entry->guid;
}

static const char *
xid_guid_list_read(struct xid_guid_list *list, uint32_t seq)
{
	struct mail_storage *storage = list->xbox->box->storage;
	const char *guid;

	if (list->mail == NULL) {
		list->t = mailbox_transaction_begin(list->xbox->box,
			MAILBOX_TRANSACTION_FLAG_NO_CACHE_DEC, "xid GUIDs");
		list->mail = mail_alloc(list->t, 0, NULL);
	}
	mail_set_seq(list->mail, seq);
	mail_storage_last_error_push(storage);
	if (mail_get_special(list->mail, MAIL_FETCH_GUID, &guid) < 0)
		guid = "";
	mail_storage_last_error_pop(storage);
	return guid;
}

const char *xid_guid_list_get(struct xid_guid_list *list, uint32_t seq)
{
	struct mail_index_view *view = list->xbox->box->view;
	const char *guid = NULL;
	struct imap_xid xid;
	uint32_t uid;

	mail_index_lookup_uid(view, seq, &uid);
	if (xid_mail_get(list->xbox, view, seq, &xid)) {
		guid = xid_guid_pages_find(list, &list->table, uid, &xid);
		if (guid == NULL) {
			guid = xid_guid_pages_find(list, &list->registry,
						   uid, &xid);
		}
	}
	return guid != NULL ? guid : xid_guid_list_read(list, seq);
}

void xid_guid_list_deinit(struct xid_guid_list **_list)
{
	struct xid_guid_list *list = *_list;

	*_list = NULL;
	if (list->mail != NULL) {
		mail_free(&list->mail);
		mailbox_transaction_rollback(&list->t);
	}
	i_free(list->table.page);
	i_free(list->registry.page);
	i_free(list);
}
