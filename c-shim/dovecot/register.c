/* What the registry is told: a line in the journal for each message that gets
   an XID or goes, for each mailbox that is renamed or deleted. Nothing here
   ever fails a command: the registry finds out by itself what it missed. */
#include "xid-index.h"
#include "wait.h"
#include "guid.h"
#include "mail-namespace.h"
#include "mailbox-list-iter.h"

struct xid_guid_reader {
	struct mailbox_transaction_context *t;
	struct mail *mail;
};

/*
 * GUIDs
 */

struct xid_guid_reader *xid_guid_reader_init(struct xid_mailbox *xbox)
{
	struct xid_guid_reader *reader = i_new(struct xid_guid_reader, 1);

	/* Reading all GUIDs once is no reason to cache them from now on. */
	reader->t = mailbox_transaction_begin(xbox->box,
		MAILBOX_TRANSACTION_FLAG_NO_CACHE_DEC, "xid GUIDs");
	reader->mail = mail_alloc(reader->t, 0, NULL);
	return reader;
}

/* mdbox keeps 128 bits of each GUID in the index. To read the GUID itself it
   opens the message's file, and where that is broken the whole storage is
   rebuilt: nothing that a delivery should bring about for an old message. In
   a cluster the GUID must be what other nodes call it, whatever they store
   their mail in. */
static bool xid_guids_are_short(struct xid_mailbox *xbox)
{
	return strcmp(xbox->box->storage->name, "mdbox") == 0 &&
		xbox->xuser->set.uid_source == XID_UID_SOURCE_LOCAL;
}

const char *xid_guid_registered(struct xid_mailbox *xbox, const char *guid)
{
	guid_128_t guid_128;

	if (*guid == '\0' || !xid_guids_are_short(xbox))
		return guid;
	mail_generate_guid_128_hash(guid, guid_128);
	return guid_128_to_string(guid_128);
}

static const char *
xid_guid_read_short(struct xid_guid_reader *reader, uint32_t seq)
{
	struct mailbox *box = reader->mail->box;
	const void *guid_128;
	uint32_t ext_id;

	if (!mail_index_ext_lookup(box->index, "guid", &ext_id))
		return NULL;
	mail_index_lookup_ext(reader->t->view, seq, ext_id, &guid_128, NULL);
	if (guid_128 == NULL || guid_128_is_empty(guid_128))
		return NULL;
	return guid_128_to_string(guid_128);
}

const char *xid_guid_read(struct xid_guid_reader *reader, uint32_t seq)
{
	struct mailbox *box = reader->mail->box;
	struct xid_mailbox *xbox = xid_mailbox_context(box);
	struct mail_storage *storage = box->storage;
	const char *guid;

	if (xid_guids_are_short(xbox) &&
	    (guid = xid_guid_read_short(reader, seq)) != NULL)
		return guid;
	mail_set_seq(reader->mail, seq);
	/* The caller's error is not ours to overwrite. */
	mail_storage_last_error_push(storage);
	if (mail_get_special(reader->mail, MAIL_FETCH_GUID, &guid) < 0)
		guid = "";
	mail_storage_last_error_pop(storage);
	return xid_guid_registered(xbox, guid);
}

void xid_guid_reader_deinit(struct xid_guid_reader **_reader)
{
	struct xid_guid_reader *reader = *_reader;

	*_reader = NULL;
	mail_free(&reader->mail);
	mailbox_transaction_rollback(&reader->t);
	i_free(reader);
}

/*
 * The mailbox in the registry
 */

const char *xid_mailbox_name(struct mailbox *box)
{
	/* Each user has his own name for what is shared. */
	return mailbox_get_namespace(box)->type == MAIL_NAMESPACE_TYPE_PRIVATE ?
		mailbox_get_vname(box) : mailbox_get_name(box);
}

imap_xid_box *xid_box_open(struct xid_mailbox *xbox)
{
	struct mailbox *box = xbox->box;
	uint32_t uid_validity =
		mail_index_get_header(box->view)->uid_validity;
	struct mailbox_metadata metadata;
	imap_xid_root *root;

	if (xbox->core != NULL && xbox->core_uid_validity == uid_validity)
		return xbox->core;
	imap_xid_box_close(xbox->core);
	xbox->core = NULL;
	if ((root = xid_root_open(xbox)) == NULL)
		return NULL;
	if (mailbox_get_metadata(box, MAILBOX_METADATA_GUID, &metadata) < 0)
		return NULL;
	if (imap_xid_box_open(root, metadata.guid, xid_mailbox_name(box),
			      uid_validity, &xbox->core) < 0) {
		xid_mailbox_log_error(xbox, "XIDs cannot be registered");
		xbox->core = NULL;
		return NULL;
	}
	xbox->core_uid_validity = uid_validity;
	guid_128_copy(xbox->guid, metadata.guid);
	xbox->registered_uid = 0;
	return xbox->core;
}

/* Called while the storage holds its locks and changes the index: asking for
   the mailbox's GUID here could make it write its header into that index
   (mdbox does, and panics). So the mailbox was opened before, or the registry
   reads these messages from the index later. */
void xid_mailbox_note(struct xid_mailbox *xbox,
		      const ARRAY_TYPE(imap_xid_entry) *entries)
{
	if (array_count(entries) == 0 || xbox->core == NULL)
		return;
	xid_wait_saved(xbox, array_front(entries), array_count(entries));
	if (imap_xid_box_note(xbox->core, array_front(entries),
			      array_count(entries)) < 0)
		xid_mailbox_log_error(xbox, "messages are registered later");
}

void xid_mailbox_forget(struct xid_mailbox *xbox)
{
	imap_xid_box *core;

	if (!array_is_created(&xbox->expunged))
		return;
	xid_wait_expunged(xbox, array_front(&xbox->expunged),
			  array_count(&xbox->expunged));
	if (xbox->box->view != NULL && (core = xid_box_open(xbox)) != NULL &&
	    imap_xid_box_forget(core, array_front(&xbox->expunged),
				array_count(&xbox->expunged)) < 0)
		xid_mailbox_log_error(xbox, "registry keeps what is expunged");
	array_free(&xbox->expunged);
}

static void
xid_name_changed(struct mailbox_list *list, const char *vname, void *context)
{
	struct xid_mailbox *xbox = context;
	struct mailbox *box = mailbox_alloc(list, vname, 0);
	struct mailbox_metadata metadata;
	imap_xid_root *root;

	if (mailbox_get_metadata(box, MAILBOX_METADATA_GUID, &metadata) == 0 &&
	    (root = xid_root_open(xbox)) != NULL &&
	    imap_xid_root_renamed(root, metadata.guid,
				 xid_mailbox_name(box)) < 0)
		xid_mailbox_log_error(xbox, "registry keeps the old name");
	mailbox_free(&box);
}

void xid_mailbox_each_renamed(struct mailbox *box,
			      xid_mailbox_each_callback_t *callback,
			      void *context)
{
	struct mailbox_list_iterate_context *iter;
	const struct mailbox_info *info;
	const char *pattern;

	callback(box->list, mailbox_get_vname(box), context);
	pattern = t_strdup_printf("%s%c*", mailbox_get_vname(box),
		mail_namespace_get_sep(mailbox_get_namespace(box)));
	iter = mailbox_list_iter_init(box->list, pattern,
		MAILBOX_LIST_ITER_NO_AUTO_BOXES |
		MAILBOX_LIST_ITER_SKIP_ALIASES |
		MAILBOX_LIST_ITER_RETURN_NO_FLAGS);
	while ((info = mailbox_list_iter_next(iter)) != NULL) {
		if ((info->flags & (MAILBOX_NONEXISTENT |
				    MAILBOX_NOSELECT)) == 0) T_BEGIN {
			callback(box->list, info->vname, context);
		} T_END;
	}
	(void)mailbox_list_iter_deinit(&iter);
}

void xid_mailbox_renamed(struct mailbox *box)
{
	struct xid_mailbox *xbox = xid_mailbox_get(box);

	/* What could not be listed keeps its old name in the registry. */
	if (xbox != NULL)
		xid_mailbox_each_renamed(box, xid_name_changed, xbox);
}
