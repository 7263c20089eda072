#ifndef XID_INDEX_H
#define XID_INDEX_H

/* How XIDs lie in a mailbox's index. For the files that read and write them:
   record.c, storage.c, recover.c, find.c. */

#include "xid-plugin.h"

#define XID_NO_NAMESPACE ((uint32_t)-1)

/* A look at the extension's header. entries points into the index and is
   valid until it is refreshed. */
struct xid_header_info {
	uint32_t count;
	uint32_t covered_uid;
	uint32_t moved_uid;
	const struct xid_header_entry *entries;
};

/* Tell the index of the extension. The mailbox must be open. */
void xid_index_register(struct xid_mailbox *xbox);

/* The header as the view saw it; view NULL = the newest that this process
   has read. count 0 when there is none yet. */
void xid_header_read(struct xid_mailbox *xbox, struct mail_index_view *view,
		     struct xid_header_info *info_r);
/* The entry's index, or XID_NO_NAMESPACE. */
uint32_t xid_header_find(const struct xid_header_info *info,
			 const char *ns, size_t ns_len);
/* Write the whole header. The index's log must be locked: another process
   may be adding a namespace. */
void xid_header_write(struct xid_mailbox *xbox,
		      struct mail_index_transaction *trans,
		      const struct xid_header_entry *entries, uint32_t count,
		      uint32_t covered_uid);
/* Messages up to this UID may have the XIDs of others. */
void xid_header_update_moved(struct xid_mailbox *xbox,
			     struct mail_index_transaction *trans,
			     uint32_t moved_uid);
/* Write what a save changes; the entry exists. */
void xid_header_update(struct xid_mailbox *xbox,
		       struct mail_index_transaction *trans, uint32_t idx,
		       uint64_t high, uint32_t covered_uid);

/* The message's record. FALSE = it has none. */
bool xid_record_get(struct xid_mailbox *xbox, struct mail_index_view *view,
		    uint32_t seq, struct xid_record *rec_r);
ARRAY_DEFINE_TYPE(xid_record, struct xid_record);
/* By namespace and number. */
int xid_record_cmp(const struct xid_record *r1, const struct xid_record *r2);
/* The namespace that the header gives an index. */
bool xid_record_to_xid(const struct xid_header_info *info,
		       const struct xid_record *rec, struct imap_xid *xid_r);

ARRAY_DEFINE_TYPE(imap_xid_entry, struct imap_xid_entry);
ARRAY_DEFINE_TYPE(xid_header_entry, struct xid_header_entry);

/*
 * storage.c
 */

/* What is known of a message that is being saved. */
struct xid_saved_mail {
	/* its sequence in the index transaction */
	uint32_t seq;
	/* Replication moves it from this UID within the mailbox; 0 = it is
	   not moved. */
	uint32_t moved_uid;
	/* Replication wants it to have this UID; 0 = any. */
	uint32_t wanted_uid;
	/* It was stable here under this UID, and was expunged. 0 = not so. */
	uint32_t expunged_uid;
	/* NULL = not known here */
	const char *guid;
	/* The file of which it is a copy; 0 = not known, or no matter */
	ino_t inode;
	/* The XID that it keeps; number 0 = it gets a new one. */
	struct imap_xid keep;
	/* The XID of the message of this mailbox that replication copied to
	   make it, since the GUID was the same; number 0 = there was none. */
	struct imap_xid copied;
	/* It comes from another node, which gave it an XID. */
	bool imported;
};

/* The messages that were put into the transaction, by seq; those that nothing
   is known of are missing. None are left once it is being committed. Returns
   how many. */
unsigned int xid_saved_mails(struct mailbox_transaction_context *t,
			     struct xid_saved_mail **mails_r);
/* A message could not be saved or copied, and dsync goes on as if it had been:
   nothing of the transaction may be committed. */
bool xid_transaction_is_spoilt(struct mailbox_transaction_context *t);
/* The message keeps this XID. */
void xid_saved_mail_set_xid(struct mailbox_transaction_context *t,
			    struct xid_saved_mail *mail,
			    const struct imap_xid *xid);
/* The same, where the message is one that is in this mailbox at another UID
   still: replication moves it. */
void xid_saved_mail_move_xid(struct mailbox_transaction_context *t,
			     struct xid_saved_mail *mail,
			     const struct imap_xid *xid);
bool xid_storage_is_maildir(const struct mailbox *box);

/*
 * adopt.c
 */

/* Give these messages these XIDs, in one transaction of the index, durably. UID
   0 = no message; only that the index knows the namespace. 1 = done, 0 = one of
   them is gone, and nothing was done; -1 = error (the storage error is set). */
int xid_mailbox_adopt(struct xid_mailbox *xbox,
		      const struct imap_xid_entry *mails, unsigned int count);
/* New numbers of ours are above these from here on. */
int xid_numbers_skip(struct xid_mailbox *xbox,
		     const struct imap_xid_entry *mails, unsigned int count);

/* storage.c: the message that was put last into the transaction, and has this
   GUID, keeps this XID. Its namespace must be known to the index. The inode is
   that of xid_moving_inode() for the message that it is a copy of. */
void xid_save_keeps_xid(struct mailbox_transaction_context *t,
			const struct imap_xid *xid, const char *guid,
			ino_t inode);

/* strays.c: before a commit gives files their names: what a killed process left
   under one of these is put aside. */
void xid_strays_clear(struct mailbox_transaction_context *t);

/* takeback.c: the storage was about to commit these messages; it does not. */
void xid_save_take_back(struct mail_save_context *ctx,
			const struct mailbox_vfuncs *super);

/*
 * moving.c
 */

/* Around the commit of messages that keep their XIDs. */
void xid_moving_begin(struct mailbox_transaction_context *t);
void xid_moving_end(struct mailbox *box, bool success);

/* What a process that was killed meanwhile has left. */
struct xid_moving {
	const char *guid, *xid;
	/* in a maildir, where it was noted, or xid_moving_find_files() found
	   it; else 0 */
	ino_t inode;
	/* It was not a copy of another file, but came from another node:
	   octets, seconds. 0 = not so. */
	uoff_t size;
	time_t mtime;
	bool taken;
};
ARRAY_DEFINE_TYPE(xid_moving, struct xid_moving);
void xid_moving_read(struct xid_mailbox *xbox, pool_t pool,
		     ARRAY_TYPE(xid_moving) *moving);
void xid_moving_find_files(struct xid_mailbox *xbox,
			   ARRAY_TYPE(xid_moving) *moving);
/* The one that this message, which has no XID, is an unfinished copy of; NULL =
   of none. */
const struct xid_moving *
xid_moving_find_stray(struct xid_mailbox *xbox, uint32_t uid,
		      const ARRAY_TYPE(xid_moving) *moving);
/* Its file goes. FALSE = it was not found, or cannot be removed. */
bool xid_moving_remove_stray(struct xid_mailbox *xbox, uint32_t uid,
			     const struct xid_moving *mail);
/* What tells such a copy of this message; 0 = nothing does. */
ino_t xid_moving_inode(struct mailbox *box, uint32_t uid);

/*
 * uidlist.c
 */

/* A maildir's list of UIDs has no lines any more of messages that went. After a
   sync that saw that they did. */
void xid_maildir_forget_gone(struct mailbox *box);
/* Before a commit: no message that it saves gets the name of one that went, and
   that the list still has. */
void xid_maildir_free_names(struct mailbox_transaction_context *t);

/*
 * recover.c, register.c
 */

/* Before messages are saved: those that are there have XIDs, and the header
   knows this node's namespace, so that the save need not add it. */
void xid_mailbox_prepare_save(struct xid_mailbox *xbox);
/* A message was found to have no XID: look at all of them. FALSE = nothing was
   changed. */
bool xid_mailbox_repair(struct xid_mailbox *xbox);
/* Every message of box->view has an XID, as far as the header tells. */
bool xid_mailbox_is_named(struct mailbox *box);
/* The GUIDs of those that have none, as the host has them. */
void xid_mailbox_unnamed(struct mailbox *box, pool_t pool,
			 ARRAY_TYPE(const_string) *guids_r);
/* Write into the journal, from which the registry learns of the messages.
   What fails is logged; the registry is filled from the index later. */
void xid_mailbox_note(struct xid_mailbox *xbox,
		      const ARRAY_TYPE(imap_xid_entry) *entries);

/* The same for xbox->expunged. */
void xid_mailbox_forget(struct xid_mailbox *xbox);
/* The mailbox and those below it have new names. */
void xid_mailbox_renamed(struct mailbox *box);

typedef void xid_mailbox_each_callback_t(struct mailbox_list *list,
					 const char *vname, void *context);
/* The mailbox and those below it that can be listed: what a rename renames. */
void xid_mailbox_each_renamed(struct mailbox *box,
			      xid_mailbox_each_callback_t *callback,
			      void *context);

/* find.c: make the registry know all messages of box->view. -1 = do without. */
int xid_registry_cover(struct xid_mailbox *xbox);
/* The registry said what is not so. Returns -1 if it cannot be mended. */
int xid_registry_rebuild(struct xid_mailbox *xbox);

struct xid_found_mail {
	uint32_t uid, seq;
};
ARRAY_DEFINE_TYPE(xid_found_mail, struct xid_found_mail);
/* find.c: the messages of box->view that have this GUID, several where a client
   copied one within the mailbox. -1 = the registry cannot be asked (logged). */
int xid_mailbox_find_guid(struct mailbox *box, const char *guid,
			  ARRAY_TYPE(xid_found_mail) *found_r);
/* find.c: a message of the mailbox has this GUID, or one that is gone had it.
   Also TRUE where that cannot be found out (logged). */
bool xid_mailbox_had_guid(struct mailbox *box, const char *guid);

/* The UID in an answer of what is there, or comes just now, and whose UID says
   nothing: it is in the stage, or in another mailbox of the same name. */
#define XID_NO_UID ((uint32_t)-1)

/* find.c: append "0:XID" of those that had this GUID and are gone, as far as that
   is remembered, and "XID_NO_UID:XID" of those that the view lacks. After
   xid_mailbox_find_guid(); returns as that. */
int xid_mailbox_gone_guid(struct mailbox *box, const char *guid,
			  string_t *dest);

/* A message's GUID as the registry has it. Allocated from the data stack. */
const char *xid_guid_registered(struct xid_mailbox *xbox, const char *guid);

/* GUIDs of messages of box->view as the host has them, in ascending order of
   the messages: from the table or the registry where these know the message by
   the XID that it has, else from the storage. */
struct xid_guid_list;
struct xid_guid_list *xid_guid_list_init(struct xid_mailbox *xbox);
/* "" = it has none, or it cannot be read. Valid until the next call. */
const char *xid_guid_list_get(struct xid_guid_list *list, uint32_t seq);
void xid_guid_list_deinit(struct xid_guid_list **list);

/* GUIDs of messages of box->view, as the registry has them. */
struct xid_guid_reader;
struct xid_guid_reader *xid_guid_reader_init(struct xid_mailbox *xbox);
/* "" = it has none, or it cannot be read. Valid until the next read. */
const char *xid_guid_read(struct xid_guid_reader *reader, uint32_t seq);
void xid_guid_reader_deinit(struct xid_guid_reader **reader);

#endif
