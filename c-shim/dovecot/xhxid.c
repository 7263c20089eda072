/* XHXID with a known state (spec part 4): announce what the client lacks. */
#include "xid-imap.h"
#include "str.h"
#include "str-sanitize.h"
#include "ostream.h"
#include "imap-arg.h"
#include "imap-resp-code.h"

struct xhxid_context {
	struct client_command_context *cmd;
	struct xid_mailbox *xbox;
	imap_xid_state *state;

	/* the sync before the announcements */
	struct imap_sync_context *sync;

	/* Held while announcing: no sync may renumber the news meanwhile. */
	struct mailbox_transaction_context *trans;
	ARRAY_TYPE(seq_range) news;
	struct seq_range_iter iter;
	unsigned int next;
	/* the state that the client shall save */
	string_t *code;
};

static bool cmd_xhxid_state_continue(struct client_command_context *cmd);

/*
 * Arguments
 */

/* A client may send the state that it saved as one string. */
static bool state_add_items(struct client_command_context *cmd,
			    imap_xid_state *state, const char *data, size_t len)
{
	const char *space;
	size_t item_len;

	for (;;) {
		space = memchr(data, ' ', len);
		item_len = space == NULL ? len : (size_t)(space - data);
		if (imap_xid_state_add(state, data, item_len) < 0) {
			xid_send_bad(cmd, "");
			return FALSE;
		}
		if (space == NULL)
			return TRUE;
		data += item_len + 1;
		len -= item_len + 1;
	}
}

static bool state_add_args(struct client_command_context *cmd,
			   imap_xid_state *state, const struct imap_arg *args)
{
	const char *data;

	for (; !IMAP_ARG_IS_EOL(args); args++) {
		if (!imap_arg_get_astring(args, &data)) {
			client_send_command_error(cmd,
				"expected XIDs and a mark, such as foo-12 "
				"bar-3 @1795460000-11, or FETCH, STORE, COPY, "
				"MOVE, EXPUNGE, SEARCH, SORT or THREAD");
			return FALSE;
		}
		if (!state_add_items(cmd, state, data, args->str_len))
			return FALSE;
	}
	return TRUE;
}

/*
 * Steps
 */

static void xhxid_free(struct xhxid_context *ctx)
{
	struct client *client = ctx->cmd->client;

	xid_command_get(ctx->cmd)->syncing = FALSE;
	if (ctx->sync != NULL) {
		client->syncing = FALSE;
		(void)imap_sync_deinit(ctx->sync, ctx->cmd);
	}
	if (ctx->trans != NULL)
		(void)mailbox_transaction_commit(&ctx->trans);
	if (array_is_created(&ctx->news))
		array_free(&ctx->news);
	str_free(&ctx->code);
	imap_xid_state_free(ctx->state);
	ctx->cmd->context = NULL;
	i_free(ctx);
}

/* The client has to be told of new messages before their XIDs, and messages
   that came without an XID get theirs in a sync. Returns FALSE if it has to
   be continued later. */
static bool xhxid_sync(struct xhxid_context *ctx)
{
	struct client *client = ctx->cmd->client;
	int ret;

	if (ctx->sync == NULL) {
		if (!imap_sync_is_allowed(client))
			return FALSE;
		client->syncing = TRUE;
		/* changes by commands before this one are told here, too */
		xid_command_get(ctx->cmd)->syncing = TRUE;
		ctx->sync = imap_sync_init(client, client->mailbox, 0, 0);
	}
	ret = imap_sync_more(ctx->sync);
	if (ret == 0)
		return FALSE;

	if (ret < 0)
		ctx->sync->failed = TRUE;
	client->syncing = FALSE;
	xid_command_get(ctx->cmd)->syncing = FALSE;
	if (imap_sync_deinit(ctx->sync, ctx->cmd) < 0) {
		client_send_untagged_storage_error(client,
			mailbox_get_storage(client->mailbox));
	}
	ctx->sync = NULL;
	return TRUE;
}

/* Find out what to announce. Returns FALSE if the command is over. */
static bool xhxid_find_news(struct xhxid_context *ctx)
{
	struct client_command_context *cmd = ctx->cmd;
	struct mailbox *box = cmd->client->mailbox;
	int ret;

	i_array_init(&ctx->news, 16);
	ret = xid_mailbox_ensure(box);
	if (ret == 0) {
		ret = xid_mailbox_news(box, ctx->state, &ctx->news);
		if (ret == 0) {
			client_send_tagline(cmd, "NO [XIDRESET] The state is "
				"not of this mailbox, or the server lost "
				"messages: synchronise anew.");
			return FALSE;
		}
	}
	if (ret < 0) {
		client_send_box_error(cmd, box);
		return FALSE;
	}

	ctx->code = str_new(default_pool, 128);
	str_append(ctx->code, "OK [XHXID ");
	xid_mailbox_append_state(box, ctx->code);
	str_append(ctx->code, "] done");
	ctx->trans = mailbox_transaction_begin(box, 0,
		imap_client_command_get_reason(cmd));
	seq_range_array_iter_init(&ctx->iter, &ctx->news);
	return TRUE;
}

/* Returns 1 if all is announced, 0 if the client has to read first, -1 if it
   is gone. */
static int xhxid_announce(struct xhxid_context *ctx)
{
	struct client *client = ctx->cmd->client;
	struct mailbox *box = client->mailbox;
	string_t *str = t_str_new(128);
	uint32_t seq;
	int ret;

	while (seq_range_array_iter_nth(&ctx->iter, ctx->next, &seq)) {
		ctx->next++;
		str_truncate(str, 0);
		str_append(str, "* XHXID ");
		if (!xid_mail_lookup(box, box->view, seq, str))
			continue;
		ret = client_send_line_next(client, str_c(str));
		if (ret <= 0)
			return ret;
	}
	return 1;
}

static bool cmd_xhxid_state_continue(struct client_command_context *cmd)
{
	struct xhxid_context *ctx = cmd->context;
	int ret;

	if (cmd->cancel) {
		if (ctx->sync != NULL) {
			/* the host does not like half a sync; the client
			   does not get the rest of it */
			(void)imap_sync_more(ctx->sync);
		}
		xhxid_free(ctx);
		return TRUE;
	}
	cmd->state = CLIENT_COMMAND_STATE_WAIT_OUTPUT;
	if (ctx->code == NULL) {
		if (!xhxid_sync(ctx))
			return FALSE;
		if (cmd->client->disconnected || !xhxid_find_news(ctx)) {
			xhxid_free(ctx);
			return TRUE;
		}
	}
	ret = xhxid_announce(ctx);
	if (ret == 0)
		return FALSE;
	if (ret > 0)
		client_send_tagline(cmd, str_c(ctx->code));
	xhxid_free(ctx);
	return TRUE;
}

bool cmd_xhxid_state(struct client_command_context *cmd,
		     struct xid_mailbox *xbox, const struct imap_arg *args)
{
	struct xhxid_context *ctx;
	imap_xid_state *state;

	if (imap_xid_state_new(&state) < 0) {
		e_error(xbox->box->event, "xid: XHXID: %s",
			imap_xid_last_error());
		client_send_internal_error(cmd);
		return TRUE;
	}
	if (!state_add_args(cmd, state, args)) {
		imap_xid_state_free(state);
		return TRUE;
	}
	xhxid_args_done(cmd);
	ctx = i_new(struct xhxid_context, 1);
	ctx->cmd = cmd;
	ctx->xbox = xbox;
	ctx->state = state;
	cmd->context = ctx;
	cmd->func = cmd_xhxid_state_continue;
	return cmd_xhxid_state_continue(cmd);
}
