/* What the server says by itself: no UID above the watermark leaves it.

   UIDNEXT is told as watermark + 1, HIGHESTMODSEQ as what lies below every
   message that is not stable. Changes that would be told with a UID are held
   back until the UID may be shown; until then the session's HIGHESTMODSEQ
   stays where it was, so a client that comes back with it is told again. */
#include "wait.h"
#include "imap-host.h"
#include "cmd-wait.h"
#include "ioloop.h"
#include "str.h"
#include "mail-index-modseq.h"
#include "mailbox-search-result-private.h"

/* After a command NOTIFY listens again with this delay. */
#define XID_HELD_RETRY_MSECS 1000

/* One sync of a selected mailbox whose client is told UIDs. */
struct xid_leak_sync {
	uint32_t watermark;
	/* sequence of the first message above it; 0 = none */
	uint32_t first_unstable;
	/* told in this sync although the host will not find them changed */
	ARRAY(struct mailbox_sync_rec) replay;
	unsigned int replay_idx;
	bool qresync:1;
};

static uint32_t xid_leak_frozen = (uint32_t)-1;
static imap_client_created_func_t *xid_leak_next_client_created;

static MODULE_CONTEXT_DEFINE_INIT(xid_leak_client_module,
				  &imap_module_register);
#define XID_LEAK_CLIENT(client) \
	MODULE_CONTEXT(client, xid_leak_client_module)

struct xid_leak_client {
	union imap_module_context module_ctx;
	/* NOTIFY's FETCH of new messages while it is held back, and whose it
	   is */
	struct imap_fetch_context *notify_fetch;
	struct imap_notify_context *notify_ctx;
	/* it is half way through */
	bool notify_running;
};

static void xid_leak_held_watch(struct xid_wait_mailbox *wbox);

/*
 * UIDNEXT, HIGHESTMODSEQ
 */

void xid_leak_freeze(uint32_t watermark)
{
	xid_leak_frozen = watermark;
}

/* The highest MODSEQ that is below that of every message above the
   watermark. */
static uint64_t
xid_leak_stable_modseq(struct mailbox *box, uint32_t watermark, uint64_t highest)
{
	uint32_t seq, count;
	uint64_t modseq;

	seq = xid_wait_first_unstable(box, watermark);
	if (seq == 0)
		return highest;
	count = mail_index_view_get_messages_count(box->view);
	for (; seq <= count; seq++) {
		modseq = mail_index_modseq_lookup(box->view, seq);
		if (modseq <= highest && modseq > 0)
			highest = modseq - 1;
	}
	return I_MAX(highest, 1);
}

static uint64_t
xid_leak_stable_modseq_known(struct xid_wait_mailbox *wbox, uint32_t watermark,
			     uint64_t highest)
{
	struct mailbox *box = wbox->xbox->box;
	uint32_t count = mail_index_view_get_messages_count(box->view);

	if (wbox->stable_modseq.of != highest ||
	    wbox->stable_modseq.watermark != watermark ||
	    wbox->stable_modseq.messages_count != count) {
		wbox->stable_modseq.is =
			xid_leak_stable_modseq(box, watermark, highest);
		wbox->stable_modseq.of = highest;
		wbox->stable_modseq.watermark = watermark;
		wbox->stable_modseq.messages_count = count;
	}
	return wbox->stable_modseq.is;
}

static struct client *xid_leak_client_of(struct mailbox *box)
{
	struct client *client;

	for (client = imap_clients; client != NULL; client = client->next) {
		if (client->mailbox == box)
			return client;
	}
	return NULL;
}

static bool xid_fetch_has_uid(const struct imap_fetch_context *fetch_ctx);

/* NOTIFY asks for UIDNEXT to find the messages to FETCH. Without UIDs in the
   answer that is no news to the client. */
static bool xid_leak_is_notify_without_uids(struct mailbox *box,
					    enum mailbox_status_items items)
{
	struct client *client;

	if (items != STATUS_UIDNEXT)
		return FALSE;
	client = xid_leak_client_of(box);
	return client != NULL && client->notify_ctx != NULL &&
		client->notify_ctx->fetch_ctx != NULL &&
		!xid_fetch_has_uid(client->notify_ctx->fetch_ctx);
}

static int xid_leak_get_status(struct mailbox *box,
			       enum mailbox_status_items items,
			       struct mailbox_status *status_r)
{
	struct xid_mailbox *xbox = xid_mailbox_context(box);
	struct xid_wait_mailbox *wbox = xbox->wait;
	uint32_t watermark;

	if (xbox->module_ctx.super.get_status(box, items, status_r) < 0)
		return -1;
	if (xid_wait_inside > 0 || !xbox->xuser->set.uids ||
	    (items & (STATUS_UIDNEXT | STATUS_HIGHESTMODSEQ)) == 0 ||
	    xid_leak_is_notify_without_uids(box, items))
		return 0;

	watermark = I_MIN(xid_wait_watermark(wbox), xid_leak_frozen);
	if (!box->opened && !xbox->disabled && watermark == 0) {
		/* the status came from elsewhere, and the mailbox's own
		   index cannot be opened (the error is set) */
		return -1;
	}
	if ((items & STATUS_UIDNEXT) != 0 && status_r->uidnext > watermark) {
		if (status_r->uidnext > watermark + 1)
			xid_notify_uidnext_clipped(box, status_r->uidnext - 1);
		status_r->uidnext = watermark + 1;
	}
	if ((items & STATUS_HIGHESTMODSEQ) != 0 && box->opened) {
		status_r->highest_modseq = xid_leak_stable_modseq_known(wbox,
			watermark, status_r->highest_modseq);
	}
	return 0;
}

/*
 * Untagged FETCH and VANISHED
 */

/* Will this sync's FETCH lines name UIDs? */
static bool xid_leak_sends_uids(struct client *client)
{
	const struct client_command_context *cmd;

	if (client_has_enabled(client, imap_feature_qresync))
		return TRUE;
	/* UID STORE names the UID of every change that it sees */
	for (cmd = client->command_queue; cmd != NULL; cmd = cmd->next) {
		if (cmd->sync != NULL &&
		    (cmd->sync->imap_flags & IMAP_SYNC_FLAG_SEND_UID) != 0)
			return TRUE;
	}
	return FALSE;
}

static bool xid_leak_has_held(const struct xid_wait_mailbox *wbox)
{
	return (array_is_created(&wbox->held_flags) &&
		array_count(&wbox->held_flags) > 0) ||
		(array_is_created(&wbox->held_modseqs) &&
		 array_count(&wbox->held_modseqs) > 0);
}

static void xid_leak_hold(struct mailbox *box,
			  ARRAY_TYPE(seq_range) *held,
			  uint32_t seq1, uint32_t seq2)
{
	uint32_t uid;

	if (!array_is_created(held))
		i_array_init(held, 16);
	for (; seq1 <= seq2; seq1++) {
		mail_index_lookup_uid(box->view, seq1, &uid);
		seq_range_array_add(held, uid);
	}
}

/* Move what is stable now from held to the records to be told. */
static void xid_leak_release(struct xid_wait_mailbox *wbox,
			     struct xid_leak_sync *sync,
			     ARRAY_TYPE(seq_range) *held,
			     enum mailbox_sync_type type)
{
	struct mailbox *box = wbox->xbox->box;
	struct mailbox_sync_rec rec;
	const struct seq_range *range;

	if (!array_is_created(held))
		return;
	rec.type = type;
	array_foreach(held, range) {
		if (range->seq1 > sync->watermark)
			break;
		if (mail_index_lookup_seq_range(box->view, range->seq1,
				I_MIN(range->seq2, sync->watermark),
				&rec.seq1, &rec.seq2))
			array_push_back(&sync->replay, &rec);
	}
	seq_range_array_remove_range(held, 1, sync->watermark);
}

/* Tell the part of a change that may be told, hold the rest. Returns FALSE if
   nothing of it is left. */
static bool xid_leak_split(struct xid_wait_mailbox *wbox,
			   const struct xid_leak_sync *sync,
			   struct mailbox_sync_rec *rec)
{
	struct mailbox *box = wbox->xbox->box;
	ARRAY_TYPE(seq_range) *held =
		rec->type == MAILBOX_SYNC_TYPE_FLAGS ?
		&wbox->held_flags : &wbox->held_modseqs;

	if (sync->first_unstable == 0 || rec->seq2 < sync->first_unstable)
		return TRUE;
	xid_leak_hold(box, held, I_MAX(rec->seq1, sync->first_unstable),
		      rec->seq2);
	if (rec->seq1 >= sync->first_unstable)
		return FALSE;
	rec->seq2 = sync->first_unstable - 1;
	return TRUE;
}

/* Another session expunged a message that is not stable between our look and
   the sync. VANISHED would name it; the view cannot go back. */
static void xid_leak_give_up(struct mailbox *box)
{
	struct client *client = xid_leak_client_of(box);

	if (client != NULL && !client->disconnected) {
		client_disconnect_with_error(client,
			"Mailbox changed before its UIDs were agreed, "
			"please reconnect.");
	}
}

static bool xid_leak_sync_next(struct mailbox_sync_context *ctx,
			       struct mailbox_sync_rec *rec_r)
{
	struct xid_mailbox *xbox = xid_mailbox_context(ctx->box);
	struct xid_wait_mailbox *wbox = xbox->wait;
	struct xid_leak_sync *sync = wbox->sync;

	if (sync == NULL)
		return xbox->module_ctx.super.sync_next(ctx, rec_r);
	if (sync->replay_idx < array_count(&sync->replay)) {
		*rec_r = *array_idx(&sync->replay, sync->replay_idx++);
		return TRUE;
	}
	while (xbox->module_ctx.super.sync_next(ctx, rec_r)) {
		if (rec_r->type != MAILBOX_SYNC_TYPE_EXPUNGE) {
			if (xid_leak_split(wbox, sync, rec_r))
				return TRUE;
			continue;
		}
		if (sync->qresync && sync->first_unstable != 0 &&
		    rec_r->seq2 >= sync->first_unstable)
			xid_leak_give_up(ctx->box);
		return TRUE;
	}
	return FALSE;
}

/*
 * Updates of searches (RFC 5267)
 */

/* Will an update of this search name UIDs? */
static bool xid_leak_update_names_uids(const struct imap_search_update *update)
{
	return update->return_uids ||
		(update->fetch_ctx != NULL &&
		 xid_fetch_has_uid(update->fetch_ctx));
}

struct xid_leak_search {
	struct mail_search_result *result;
	/* found, but not told */
	ARRAY_TYPE(seq_range) held;
};

static struct xid_leak_search *
xid_leak_search_get(struct xid_wait_mailbox *wbox,
		    struct mail_search_result *result)
{
	struct xid_leak_search *search;

	if (!array_is_created(&wbox->held_searches))
		i_array_init(&wbox->held_searches, 4);
	array_foreach_elem(&wbox->held_searches, search) {
		if (search->result == result)
			return search;
	}
	search = i_new(struct xid_leak_search, 1);
	search->result = result;
	i_array_init(&search->held, 8);
	array_push_back(&wbox->held_searches, &search);
	return search;
}

static void xid_leak_search_free(struct xid_leak_search *search)
{
	array_free(&search->held);
	i_free(search);
}

static void xid_leak_searches_free(struct xid_wait_mailbox *wbox)
{
	struct xid_leak_search *search;

	if (!array_is_created(&wbox->held_searches))
		return;
	array_foreach_elem(&wbox->held_searches, search)
		xid_leak_search_free(search);
	array_free(&wbox->held_searches);
}

/* The update is about to be told: take out what may not be. begin = the host
   now tells only of messages that left the result. Returns TRUE if anything
   is held. */
static bool
xid_leak_search_filter(struct xid_wait_mailbox *wbox,
		       const struct imap_search_update *update,
		       uint32_t watermark, bool begin)
{
	struct mail_search_result *result = update->result;
	struct xid_leak_search *search = xid_leak_search_get(wbox, result);

	/* what left the result before it was told is not told at all */
	seq_range_array_remove_seq_range(&search->held, &result->removed_uids);
	seq_range_array_merge(&search->held, &result->added_uids);
	array_clear(&result->added_uids);
	if (xid_leak_update_names_uids(update))
		seq_range_array_remove_range(&result->removed_uids,
					     watermark + 1, (uint32_t)-1);
	if (begin)
		return array_count(&search->held) > 0;

	seq_range_array_merge(&result->added_uids, &search->held);
	array_clear(&search->held);
	if (xid_leak_update_names_uids(update)) {
		seq_range_array_merge(&search->held, &result->added_uids);
		seq_range_array_remove_range(&search->held, 1, watermark);
		seq_range_array_remove_range(&result->added_uids,
					     watermark + 1, (uint32_t)-1);
	}
	return array_count(&search->held) > 0;
}

/* Forget the searches that the client cancelled. */
static void xid_leak_searches_purge(struct xid_wait_mailbox *wbox,
				    struct client *client)
{
	const struct imap_search_update *update;
	struct xid_leak_search *const *searches;
	unsigned int i;
	bool alive;

	if (!array_is_created(&wbox->held_searches))
		return;
	for (i = array_count(&wbox->held_searches); i > 0; i--) {
		searches = array_idx(&wbox->held_searches, i - 1);
		alive = FALSE;
		array_foreach(&client->search_updates, update) {
			if (update->result == (*searches)->result)
				alive = TRUE;
		}
		if (!alive) {
			xid_leak_search_free(*searches);
			array_delete(&wbox->held_searches, i - 1, 1);
		}
	}
}

static bool xid_leak_searches_filter(struct xid_wait_mailbox *wbox,
				     struct client *client,
				     uint32_t watermark, bool begin)
{
	const struct imap_search_update *update;
	bool held = FALSE;

	if (!array_is_created(&client->search_updates))
		return FALSE;
	xid_leak_searches_purge(wbox, client);
	array_foreach(&client->search_updates, update) {
		if (array_is_created(&update->result->added_uids) &&
		    xid_leak_search_filter(wbox, update, watermark, begin))
			held = TRUE;
	}
	return held;
}

/*
 * NOTIFY's FETCH of new messages (RFC 5465)
 */

/* Take the FETCH away until the messages are stable. */
static void xid_leak_notify_hold(struct client *client)
{
	struct xid_leak_client *lclient = XID_LEAK_CLIENT(client);

	if (lclient == NULL || client->notify_ctx == NULL ||
	    client->notify_ctx->fetch_ctx == NULL ||
	    client->notify_ctx->notifying ||
	    !xid_fetch_has_uid(client->notify_ctx->fetch_ctx))
		return;
	lclient->notify_fetch = client->notify_ctx->fetch_ctx;
	lclient->notify_ctx = client->notify_ctx;
	client->notify_ctx->fetch_ctx = NULL;
}

static void xid_leak_notify_restore(struct client *client)
{
	struct xid_leak_client *lclient = XID_LEAK_CLIENT(client);

	if (lclient == NULL || lclient->notify_fetch == NULL)
		return;
	if (client->notify_ctx == lclient->notify_ctx &&
	    client->notify_ctx != NULL) {
		client->notify_ctx->fetch_ctx = lclient->notify_fetch;
		lclient->notify_fetch = NULL;
	} else {
		/* another NOTIFY took its place */
		imap_fetch_free(&lclient->notify_fetch);
	}
}

static bool xid_leak_notify_is_held(struct client *client)
{
	return client->notify_ctx != NULL && client->mailbox != NULL &&
		client->notify_ctx->fetch_ctx != NULL &&
		xid_fetch_has_uid(client->notify_ctx->fetch_ctx) &&
		client->notify_uidnext <= xid_wait_last_uid(client->mailbox);
}

/* After all else of the sync was told. Returns 1 = done, 0 = the client's
   buffer is full, -1 = error. */
static int xid_leak_sync_notify_more(struct imap_sync_context *ctx)
{
	struct client *client = ctx->client;
	struct xid_leak_client *lclient = XID_LEAK_CLIENT(client);
	struct xid_wait_mailbox *wbox = xid_wait_mailbox_get(client->mailbox);
	int ret = 1;

	if (wbox != NULL) {
		xid_leak_notify_restore(client);
		if (lclient->notify_running ||
		    (xid_leak_notify_is_held(client) &&
		     xid_wait_watermark(wbox) >= client->notify_uidnext))
			ret = imap_client_notify_newmails(client);
		lclient->notify_running = ret == 0;
		if (ret == 0)
			return 0;
		if (xid_leak_notify_is_held(client))
			xid_leak_held_watch(wbox);
	}
	if (ret < 0)
		return ret;
	return lclient->module_ctx.super.sync_notify_more(ctx);
}

/*
 * Sync
 */

/* Does the index lack a message that our view has above the watermark? */
static bool xid_leak_unstable_expunged(struct mailbox *box, uint32_t watermark)
{
	struct mail_index_view *view;
	uint32_t first, count, last_uid, seq1, seq2, left = 0;

	first = xid_wait_first_unstable(box, watermark);
	if (first == 0)
		return FALSE;
	count = mail_index_view_get_messages_count(box->view);
	last_uid = xid_wait_last_uid(box);

	(void)mail_index_refresh(box->index);
	view = mail_index_view_open(box->index);
	if (mail_index_lookup_seq_range(view, watermark + 1, last_uid,
					&seq1, &seq2))
		left = seq2 - seq1 + 1;
	mail_index_view_close(&view);
	return left != count - first + 1;
}

/* With QRESYNC an expunge is told by UID. Bring everything else up to date
   first; then it is known whether an expunge must be held back. */
static bool xid_leak_must_hold_expunges(struct xid_wait_mailbox *wbox,
					struct client *client,
					enum mailbox_sync_flags flags)
{
	struct mailbox *box = wbox->xbox->box;
	struct mailbox_vfuncs *super = &wbox->xbox->module_ctx.super;
	struct xid_leak_sync *sync = wbox->sync;
	struct mailbox_sync_context *ctx;
	struct mailbox_sync_status status;
	struct mailbox_sync_rec rec;

	ctx = super->sync_init(box, flags | MAILBOX_SYNC_FLAG_NO_EXPUNGES);
	sync->first_unstable = xid_wait_first_unstable(box, sync->watermark);
	while (super->sync_next(ctx, &rec)) {
		if (rec.type != MAILBOX_SYNC_TYPE_EXPUNGE &&
		    xid_leak_split(wbox, sync, &rec))
			array_push_back(&sync->replay, &rec);
	}
	if (wbox->prev.sync_deinit(ctx, &status) < 0)
		return TRUE;
	/* what came into the results is told at the end of the real sync */
	(void)xid_leak_searches_filter(wbox, client, sync->watermark, TRUE);
	return xid_leak_unstable_expunged(box, sync->watermark);
}

static struct xid_leak_sync *
xid_leak_sync_begin(struct xid_wait_mailbox *wbox, struct client *client)
{
	struct xid_leak_sync *sync;

	sync = i_new(struct xid_leak_sync, 1);
	/* a sync that names no UIDs may tell what an earlier one could not */
	sync->watermark = xid_leak_sends_uids(client) ?
		xid_wait_watermark(wbox) : (uint32_t)-1;
	sync->qresync = client_has_enabled(client, imap_feature_qresync);
	i_array_init(&sync->replay, 4);
	xid_leak_release(wbox, sync, &wbox->held_flags,
			 MAILBOX_SYNC_TYPE_FLAGS);
	xid_leak_release(wbox, sync, &wbox->held_modseqs,
			 MAILBOX_SYNC_TYPE_MODSEQ);
	wbox->sync = sync;
	return sync;
}

static void xid_leak_sync_free(struct xid_wait_mailbox *wbox)
{
	if (wbox->sync == NULL)
		return;
	array_free(&wbox->sync->replay);
	i_free(wbox->sync);
}

static struct mailbox_sync_context *
xid_leak_sync_init(struct mailbox *box, enum mailbox_sync_flags flags)
{
	struct xid_mailbox *xbox = xid_mailbox_context(box);
	struct xid_wait_mailbox *wbox = xbox->wait;
	struct client *client = xid_leak_client_of(box);
	struct mailbox_sync_context *ctx;

	/* the storage syncs once more within a sync: nothing to tell */
	if (xid_wait_inside > 0)
		return xbox->module_ctx.super.sync_init(box, flags);

	xid_wait_inside++;
	if (client != NULL && xbox->xuser->set.uids) {
		xid_leak_notify_restore(client);
		xid_leak_sync_free(wbox);
		xid_wait_end(&wbox->held_waiting);
		timeout_remove(&wbox->to_held);
		wbox->expunges_held = FALSE;
		if (xid_leak_has_held(wbox) ||
		    (xid_leak_sends_uids(client) &&
		     xid_wait_last_uid(box) > xid_wait_watermark(wbox)))
			(void)xid_leak_sync_begin(wbox, client);
	}
	if (wbox->sync != NULL && wbox->sync->qresync &&
	    (flags & MAILBOX_SYNC_FLAG_NO_EXPUNGES) == 0 &&
	    xid_leak_must_hold_expunges(wbox, client, flags)) {
		flags |= MAILBOX_SYNC_FLAG_NO_EXPUNGES;
		wbox->expunges_held = TRUE;
	}
	ctx = xbox->module_ctx.super.sync_init(box, flags);
	if (wbox->sync != NULL) {
		wbox->sync->first_unstable =
			xid_wait_first_unstable(box, wbox->sync->watermark);
	}
	if (client != NULL && xbox->xuser->set.uids) {
		(void)xid_leak_searches_filter(wbox, client,
			xid_wait_watermark(wbox), TRUE);
	}
	xid_wait_inside--;
	return ctx;
}

static int xid_leak_sync_deinit(struct mailbox_sync_context *ctx,
				struct mailbox_sync_status *status_r)
{
	struct mailbox *box = ctx->box;
	struct xid_mailbox *xbox = xid_mailbox_context(box);
	struct xid_wait_mailbox *wbox = xbox->wait;
	struct client *client = xid_leak_client_of(box);
	bool held = FALSE;
	int ret;

	if (xid_wait_inside > 0)
		return wbox->prev.sync_deinit(ctx, status_r);

	xid_wait_inside++;
	ret = wbox->prev.sync_deinit(ctx, status_r);
	xid_wait_inside--;
	/* the first sync of a mailbox that had no watermark yet */
	if (ret == 0)
		(void)xid_wait_attach(wbox);

	if (client != NULL && xbox->xuser->set.uids && ret == 0) {
		uint32_t watermark = xid_wait_watermark(wbox);

		held = xid_leak_searches_filter(wbox, client, watermark, FALSE);
		if (status_r != NULL && xid_leak_sends_uids(client) &&
		    xid_wait_last_uid(box) > watermark)
			status_r->sync_delayed_expunges = TRUE;
		xid_leak_notify_hold(client);
	}
	xid_leak_sync_free(wbox);
	if (client != NULL &&
	    (held || wbox->expunges_held || xid_leak_has_held(wbox)))
		xid_leak_held_watch(wbox);
	return ret;
}

/*
 * Telling it later
 */

/* In IDLE, and with NOTIFY, the client is told at once. Otherwise the next
   command's sync tells it. */
static void xid_leak_held_tell(struct xid_wait_mailbox *wbox)
{
	struct mailbox *box = wbox->xbox->box;
	struct client *client;

	timeout_remove(&wbox->to_held);
	client = xid_leak_client_of(box);
	if (client == NULL)
		return;
	if (box->notify_callback != NULL) {
		box->notify_callback(box, box->notify_context);
		return;
	}
	/* NOTIFY listens again a moment after a command */
	if (client->notify_ctx != NULL) {
		wbox->to_held = timeout_add(XID_HELD_RETRY_MSECS,
					    xid_leak_held_tell, wbox);
	}
}

static void xid_leak_held_stable(enum xid_wait_result result ATTR_UNUSED,
				 void *context)
{
	struct xid_wait_mailbox *wbox = context;

	wbox->held_waiting = NULL;
	xid_leak_held_tell(wbox);
}

static void xid_leak_held_watch(struct xid_wait_mailbox *wbox)
{
	if (wbox->held_waiting != NULL)
		return;
	/* any advance may let something go */
	wbox->held_waiting = xid_wait_begin(wbox, xid_wait_watermark(wbox) + 1,
					    0, xid_leak_held_stable, wbox);
}

void xid_leak_close(struct xid_wait_mailbox *wbox)
{
	i_zero(&wbox->stable_modseq);
	xid_wait_end(&wbox->held_waiting);
	timeout_remove(&wbox->to_held);
	xid_leak_sync_free(wbox);
	xid_leak_searches_free(wbox);
	if (array_is_created(&wbox->held_flags))
		array_free(&wbox->held_flags);
	if (array_is_created(&wbox->held_modseqs))
		array_free(&wbox->held_modseqs);
}

/*
 * FETCH that fails half way. The host then closes the empty line with the
 * message's UID. A message whose UID is not stable is shown as gone there.
 */

static MODULE_CONTEXT_DEFINE_INIT(xid_leak_mail_module, &mail_module_register);

static struct mail_vfuncs *xid_leak_mail_super(struct mail *mail)
{
	union mail_module_context *context =
		MODULE_CONTEXT((struct mail_private *)mail,
			       xid_leak_mail_module);

	return &context->super;
}

static int xid_leak_mail_failed(struct mail *mail, int ret)
{
	struct xid_wait_mailbox *wbox;

	if (ret >= 0 || mail->expunged ||
	    mail->lookup_abort != MAIL_LOOKUP_ABORT_NEVER)
		return ret;
	wbox = xid_wait_mailbox_get(mail->box);
	if (wbox != NULL && mail->uid > xid_wait_watermark(wbox))
		mail_set_expunged(mail);
	return ret;
}

static int
xid_leak_mail_get_stream(struct mail *mail, bool get_body,
			 struct message_size *hdr_size,
			 struct message_size *body_size,
			 struct istream **stream_r)
{
	return xid_leak_mail_failed(mail,
		xid_leak_mail_super(mail)->get_stream(mail, get_body, hdr_size,
						      body_size, stream_r));
}

static int
xid_leak_mail_get_header_stream(struct mail *mail,
				struct mailbox_header_lookup_ctx *headers,
				struct istream **stream_r)
{
	return xid_leak_mail_failed(mail,
		xid_leak_mail_super(mail)->get_header_stream(mail, headers,
							     stream_r));
}

static int
xid_leak_mail_get_binary_stream(struct mail *mail,
				const struct message_part *part,
				bool include_hdr, uoff_t *size_r,
				unsigned int *lines_r, bool *binary_r,
				struct istream **stream_r)
{
	return xid_leak_mail_failed(mail,
		xid_leak_mail_super(mail)->get_binary_stream(mail, part,
			include_hdr, size_r, lines_r, binary_r, stream_r));
}

static int
xid_leak_mail_get_special(struct mail *mail, enum mail_fetch_field field,
			  const char **value_r)
{
	return xid_leak_mail_failed(mail,
		xid_leak_mail_super(mail)->get_special(mail, field, value_r));
}

static bool xid_leak_user_appends(const struct mail_user *user)
{
	const struct client_command_context *cmd;
	const struct client *client;

	for (client = imap_clients; client != NULL; client = client->next) {
		if (client->user != user)
			continue;
		for (cmd = client->command_queue; cmd != NULL; cmd = cmd->next) {
			if (cmd->name != NULL &&
			    strcasecmp(cmd->name, "APPEND") == 0)
				return TRUE;
		}
	}
	return FALSE;
}

/* A URL in CATENATE names a message by its UID. Where the command did not wait
   for it there is no such message yet. */
static bool xid_leak_mail_set_uid(struct mail *mail, uint32_t uid)
{
	struct xid_wait_mailbox *wbox = xid_wait_mailbox_get(mail->box);

	if (wbox != NULL && uid > xid_wait_watermark(wbox) &&
	    xid_leak_user_appends(mail->box->storage->user))
		return FALSE;
	return xid_leak_mail_super(mail)->set_uid(mail, uid);
}

static struct mail *
xid_leak_mail_alloc(struct mailbox_transaction_context *t,
		    enum mail_fetch_field wanted_fields,
		    struct mailbox_header_lookup_ctx *wanted_headers)
{
	struct xid_mailbox *xbox = xid_mailbox_context(t->box);
	union mail_module_context *context;
	struct mail_private *pmail;
	struct mail *mail;

	mail = xbox->module_ctx.super.mail_alloc(t, wanted_fields,
						 wanted_headers);
	pmail = (struct mail_private *)mail;
	context = p_new(pmail->pool, union mail_module_context, 1);
	context->super = pmail->v;
	MODULE_CONTEXT_SET_SELF(pmail, xid_leak_mail_module, context);
	pmail->v.set_uid = xid_leak_mail_set_uid;
	/* only a client's own FETCH ends in such a line */
	if (xid_leak_client_of(t->box) == NULL)
		return mail;
	pmail->v.get_stream = xid_leak_mail_get_stream;
	pmail->v.get_header_stream = xid_leak_mail_get_header_stream;
	pmail->v.get_binary_stream = xid_leak_mail_get_binary_stream;
	pmail->v.get_special = xid_leak_mail_get_special;
	return mail;
}

/*
 * FETCH's UID item
 */

/* Of one FETCH, so that nearly every message costs a few comparisons. */
struct xid_fetch_uid_context {
	/* UIDs up to this one are stable in this mailbox, as of this
	   xid_wait_generation: NOTIFY's FETCH outlives mailboxes. */
	struct mailbox *box;
	uint32_t stable_uid;
	unsigned int generation;
};

/* Every command that shows UIDs waited for them. Should one have slipped
   through, it shows a message without its UID. */
static bool
xid_fetch_uid_may_show(struct xid_fetch_uid_context *uctx, struct mail *mail)
{
	struct xid_wait_mailbox *wbox = xid_wait_mailbox_get(mail->box);

	uctx->stable_uid = 0;
	if (wbox == NULL)
		return TRUE;
	if (!wbox->xbox->xuser->set.uids)
		return FALSE;
	uctx->stable_uid = xid_wait_watermark(wbox);
	uctx->box = mail->box;
	uctx->generation = xid_wait_generation;
	if (mail->uid <= uctx->stable_uid)
		return TRUE;
	e_error(mail->box->event, "xid: FETCH left a UID out "
		"that is not agreed yet: please report this");
	return FALSE;
}

static int xid_fetch_uid(struct imap_fetch_context *ctx, struct mail *mail,
			 void *context)
{
	struct xid_fetch_uid_context *uctx = context;

	if (xid_wait_users == 0 ||
	    (mail->uid <= uctx->stable_uid && mail->box == uctx->box &&
	     uctx->generation == xid_wait_generation) ||
	    xid_fetch_uid_may_show(uctx, mail))
		str_printfa(ctx->state.cur_str, "UID %u ", mail->uid);
	return 1;
}

static bool xid_fetch_uid_init(struct imap_fetch_init_context *ctx)
{
	/* UID FETCH adds the item by itself; the host would take a second one
	   for another, since they differ in their contexts */
	if (xid_fetch_has_uid(ctx->fetch_ctx))
		return TRUE;
	imap_fetch_add_handler(ctx, IMAP_FETCH_HANDLER_FLAG_BUFFERED, NULL,
			       xid_fetch_uid,
			       p_new(ctx->pool,
				     struct xid_fetch_uid_context, 1));
	return TRUE;
}

static bool xid_fetch_has_uid(const struct imap_fetch_context *fetch_ctx)
{
	const struct imap_fetch_context_handler *handler;

	array_foreach(&fetch_ctx->handlers, handler) {
		if (handler->handler == xid_fetch_uid)
			return TRUE;
	}
	return FALSE;
}

static const struct imap_fetch_handler xid_fetch_uid_handler = {
	.name = "UID",
	.init = xid_fetch_uid_init,
};
static struct imap_fetch_handler xid_fetch_host_handler;

void xid_leak_hook(struct xid_wait_mailbox *wbox, struct mailbox_vfuncs *v)
{
	wbox->prev.sync_deinit = v->sync_deinit;
	v->get_status = xid_leak_get_status;
	v->mail_alloc = xid_leak_mail_alloc;
	v->sync_init = xid_leak_sync_init;
	v->sync_next = xid_leak_sync_next;
	v->sync_deinit = xid_leak_sync_deinit;
}

/*
 * Clients
 */

/* The selected mailbox has messages whose UIDs are not told yet: imap-hibernate
   cannot know them, X-STATE must not. */
static int xid_leak_state_export(struct client *client, bool internal,
				 buffer_t *dest, const char **error_r)
{
	struct xid_leak_client *lclient = XID_LEAK_CLIENT(client);
	struct xid_wait_mailbox *wbox = xid_wait_mailbox_get(client->mailbox);

	if (wbox != NULL &&
	    (wbox->held_waiting != NULL ||
	     mail_index_get_header(client->mailbox->view)->next_uid - 1 >
	     xid_wait_watermark(wbox))) {
		*error_r = "UIDs of new messages are not agreed yet";
		return 0;
	}
	return lclient->module_ctx.super.state_export(client, internal,
						      dest, error_r);
}

static void xid_leak_client_destroy(struct client *client, const char *reason)
{
	struct xid_leak_client *lclient = XID_LEAK_CLIENT(client);

	xid_leak_notify_restore(client);
	lclient->module_ctx.super.destroy(client, reason);
}

static void xid_leak_client_created(struct client **_client)
{
	struct client *client = *_client;
	struct xid_user *xuser = xid_wait_user_get(client->user);
	struct xid_leak_client *lclient;

	if (xuser != NULL && !xuser->set.uids)
		xid_nouids_client(client);
	if (xuser != NULL) {
		lclient = p_new(client->pool, struct xid_leak_client, 1);
		lclient->module_ctx.super = client->v;
		client->v.sync_notify_more = xid_leak_sync_notify_more;
		client->v.state_export = xid_leak_state_export;
		client->v.destroy = xid_leak_client_destroy;
		MODULE_CONTEXT_SET(client, xid_leak_client_module, lclient);
		xid_grace_client_created(client, xuser);
		xid_notify_client_created(client);
	}
	if (xid_leak_next_client_created != NULL)
		xid_leak_next_client_created(_client);
}

void xid_leak_init(void)
{
	xid_leak_next_client_created =
		imap_client_created_hook_set(xid_leak_client_created);
	xid_fetch_host_handler = *imap_fetch_handler_lookup("UID");
	imap_fetch_handler_unregister("UID");
	imap_fetch_handlers_register(&xid_fetch_uid_handler, 1);
}

void xid_leak_deinit(void)
{
	imap_fetch_handler_unregister("UID");
	imap_fetch_handlers_register(&xid_fetch_host_handler, 1);
	imap_client_created_hook_set(xid_leak_next_client_created);
}
