/* Taking back what a storage has prepared to commit. Its own way is its rollback,
   which no storage takes so late itself: mdbox has written the new messages to
   its map by then, and a rollback leaves the map without them in its log but not
   in its state, and their files cut off. The next process finds that something
   must have crashed, and makes the whole storage anew, with what was expunged. So
   there the map's part is brought to its end, and the messages are given back
   like expunged ones. */
#include "xid-index.h"
#include "mail-index-private.h"
#include "mdbox-storage.h"
#include "mdbox-map-private.h"

static void
xid_mdbox_get_map_uids(struct mailbox_transaction_context *t,
		       ARRAY_TYPE(uint32_t) *map_uids)
{
	struct mdbox_mailbox *mbox = MDBOX_MAILBOX(t->box);
	const struct mdbox_mail_index_record *rec;
	struct mail_index_view *view;
	const void *data;
	uint32_t seq;

	view = mail_index_transaction_open_updated_view(t->itrans);
	for (seq = t->itrans->first_new_seq; seq <= t->itrans->last_new_seq;
	     seq++) {
		mail_index_lookup_ext(view, seq, mbox->ext_id, &data, NULL);
		rec = data;
		if (rec != NULL && rec->map_uid != 0)
			array_push_back(map_uids, &rec->map_uid);
	}
	mail_index_view_close(&view);
}

/* What goes wrong was logged; the messages then take room until the storage is
   made anew. */
static void
xid_mdbox_give_back(struct mdbox_storage *storage,
		    const ARRAY_TYPE(uint32_t) *map_uids)
{
	struct mdbox_map_atomic_context *atomic;
	struct mdbox_map_transaction_context *trans;

	if (array_count(map_uids) == 0)
		return;
	atomic = mdbox_map_atomic_begin(storage->map);
	if (mdbox_map_atomic_lock(atomic, "xid: a refused commit") == 0) {
		trans = mdbox_map_transaction_begin(atomic, FALSE);
		if (mdbox_map_update_refcounts(trans, map_uids, -1) < 0 ||
		    mdbox_map_transaction_commit(trans, "xid: refused") < 0)
			mdbox_map_atomic_set_failed(atomic);
		mdbox_map_transaction_free(&trans);
	}
	(void)mdbox_map_atomic_finish(&atomic);
}

void xid_save_take_back(struct mail_save_context *ctx,
			const struct mailbox_vfuncs *super)
{
	struct mailbox_transaction_context *t = ctx->transaction;
	struct mail_storage *storage = t->box->storage;
	struct mail_index_transaction_commit_result result;
	ARRAY_TYPE(uint32_t) map_uids;

	if (strcmp(storage->name, MDBOX_STORAGE_NAME) != 0) {
		super->transaction_save_rollback(ctx);
		return;
	}
	i_zero(&result);
	i_array_init(&map_uids, 16);
	xid_mdbox_get_map_uids(t, &map_uids);
	/* why it is refused was said */
	mail_storage_last_error_push(storage);
	super->transaction_save_commit_post(ctx, &result);
	xid_mdbox_give_back(MDBOX_STORAGE(storage), &map_uids);
	mail_storage_last_error_pop(storage);
	array_free(&map_uids);
}
