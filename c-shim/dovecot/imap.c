/* What only the imap process has: sessions, hooks around commands,
   registration. */
#include "xid-imap.h"
#include "array.h"
#include "ostream.h"
#include "str-sanitize.h"

static MODULE_CONTEXT_DEFINE_INIT(xid_command_module, &imap_module_register);

static imap_client_created_func_t *next_hook_client_created;
static bool xid_imap_initialized = FALSE;
/* The command that is being executed. */
static struct client_command_context *xid_current_command = NULL;

struct xid_command *xid_command_find(struct client_command_context *cmd)
{
	return MODULE_CONTEXT(cmd, xid_command_module);
}

struct xid_command *xid_command_get(struct client_command_context *cmd)
{
	struct xid_command *xcmd = xid_command_find(cmd);

	if (xcmd == NULL) {
		xcmd = p_new(cmd->pool, struct xid_command, 1);
		MODULE_CONTEXT_SET(cmd, xid_command_module, xcmd);
	}
	return xcmd;
}

void xid_send_bad(struct client_command_context *cmd, const char *what)
{
	client_send_command_error(cmd, t_strconcat(what,
		str_sanitize(imap_xid_last_error(), XID_ERROR_TEXT_MAX), NULL));
}

/*
 * The bare search key: after the search's own answer, FETCH the matches
 */

static bool imap_search_enabled(void)
{
	struct client_command_context *cmd = xid_current_command;

	return cmd == NULL || xid_user_get(cmd->client->user) != NULL;
}

static bool imap_want_matches(void)
{
	struct client_command_context *cmd = xid_current_command;
	struct xid_command *xcmd;

	if (cmd == NULL)
		return FALSE;
	xcmd = xid_command_get(cmd);
	if (!xcmd->want_matches) {
		xcmd->want_matches = TRUE;
		p_array_init(&xcmd->matches, cmd->pool, 32);
	}
	return TRUE;
}

static ARRAY_TYPE(seq_range) *imap_matches_wanted(struct mailbox *box)
{
	struct client_command_context *cmd = xid_current_command;
	struct xid_command *xcmd;

	if (cmd == NULL || cmd->client->mailbox != box)
		return NULL;
	xcmd = xid_command_find(cmd);
	if (xcmd == NULL || !xcmd->want_matches || xcmd->matching)
		return NULL;
	xcmd->matching = TRUE;
	return &xcmd->matches;
}

static const struct xid_search_vfuncs imap_search_vfuncs = {
	imap_search_enabled,
	imap_want_matches,
	imap_matches_wanted
};

static bool imap_matches_finish(struct client_command_context *cmd,
				struct imap_fetch_context *ctx)
{
	struct xid_command *xcmd = xid_command_find(cmd);
	int ret;

	ret = imap_fetch_end(ctx);
	imap_fetch_free(&ctx);
	if (cmd->cancel)
		return TRUE;
	if (ret < 0) {
		client_send_box_error(cmd, cmd->client->mailbox);
		return TRUE;
	}
	return cmd_sync(cmd, xcmd->sync_flags, xcmd->imap_sync_flags,
			xcmd->tagline);
}

static bool cmd_imap_matches_continue(struct client_command_context *cmd)
{
	struct imap_fetch_context *ctx = cmd->context;

	if (imap_fetch_more(ctx, cmd) == 0 && !cmd->cancel)
		return FALSE;
	return imap_matches_finish(cmd, ctx);
}

/* The search has answered and waits for its sync: that has to wait for us. */
static void imap_matches_send(struct client_command_context *cmd,
			      struct xid_command *xcmd)
{
	struct imap_fetch_context *ctx;

	if (array_count(&xcmd->matches) == 0)
		return;
	ctx = xid_fetch_matches_begin(cmd, &xcmd->matches);
	if (ctx == NULL)
		return;

	xcmd->sync_flags = cmd->sync->flags;
	xcmd->imap_sync_flags = cmd->sync->imap_flags;
	xcmd->tagline = cmd->sync->tagline;
	cmd->sync = NULL;
	cmd->tagline_reply = NULL;
	cmd->state = CLIENT_COMMAND_STATE_WAIT_OUTPUT;
	cmd->func = cmd_imap_matches_continue;
	cmd->context = ctx;

	if (cmd_imap_matches_continue(cmd)) {
		/* failed, and said so */
		cmd->state = CLIENT_COMMAND_STATE_DONE;
	} else if (cmd->state == CLIENT_COMMAND_STATE_WAIT_OUTPUT) {
		/* not all of who called the command look at its state */
		o_stream_set_flush_pending(cmd->client->output, TRUE);
	}
}

/*
 * Commands
 */

static void xid_command_pre(struct client_command_context *cmd)
{
	xhxid_args_check_parser(cmd);
	xid_current_command = cmd;
}

static void xid_command_post(struct client_command_context *cmd)
{
	struct xid_command *xcmd = xid_command_find(cmd);

	if (xcmd != NULL && !xcmd->sync_seen && cmd->sync != NULL &&
	    cmd->state == CLIENT_COMMAND_STATE_WAIT_SYNC) {
		xcmd->sync_seen = TRUE;
		if (xcmd->prefix)
			xhxid_adjust_sync(cmd);
		if (xcmd->want_matches)
			imap_matches_send(cmd, xcmd);
		xhxid_args_done(cmd);
	}
	xid_current_command = NULL;
}

/*
 * Sessions
 */

static void xid_client_created(struct client **client)
{
	struct xid_user *xuser = xid_user_get((*client)->user);

	if (xuser != NULL) {
		xhxid_args_client_created(*client);
		if (xuser->set.capability != NULL)
			client_add_capability(*client, xuser->set.capability);
	}
	if (next_hook_client_created != NULL)
		next_hook_client_created(client);
}

void xid_imap_init(struct module *module ATTR_UNUSED)
{
	xid_search_init();
	/* lmtp, doveadm and others load the same file */
	if (command_register == NULL)
		return;

	xid_search_imap = &imap_search_vfuncs;
	xid_fetch_init();
	/* As UID commands: it may be followed by EXPUNGEs, and so waits for
	   commands that use sequences. With a state it syncs first. */
	command_register("XHXID", cmd_xhxid, COMMAND_FLAG_BREAKS_SEQS |
			 COMMAND_FLAG_REQUIRES_SYNC);
	command_hook_register(xid_command_pre, xid_command_post);
	xid_mailbox_hook_add(xhxid_mailbox_hook);
	next_hook_client_created =
		imap_client_created_hook_set(xid_client_created);
	xid_imap_initialized = TRUE;
}

void xid_imap_deinit(void)
{
	xid_search_deinit();
	if (!xid_imap_initialized)
		return;
	imap_client_created_hook_set(next_hook_client_created);
	command_hook_unregister(xid_command_pre, xid_command_post);
	command_unregister("XHXID");
	xid_fetch_deinit();
	xid_search_imap = NULL;
	xid_imap_initialized = FALSE;
}
