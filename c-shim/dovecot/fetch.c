/* The FETCH item XID (spec part 2). */
#include "xid-imap.h"
#include "str.h"
#include "mail-search-build.h"

static int fetch_xid(struct imap_fetch_context *ctx, struct mail *mail,
		     void *context ATTR_UNUSED)
{
	string_t *str = ctx->state.cur_str;
	size_t len = str_len(str);

	str_append(str, "XID ");
	if (xid_mail_append(mail, str)) {
		str_append_c(str, ' ');
		return 1;
	}
	/* There is no such thing as an XID that is NIL: leave the item out. */
	str_truncate(str, len);
	if (mail->expunged) {
		ctx->state.skipped_expunged_msgs = TRUE;
		return 1;
	}
	e_error(mail->box->event,
		"xid: UID %u has no XID although the mailbox was synced: "
		"run `xidctl verify` for this user", mail->uid);
	return 1;
}

static bool fetch_xid_init(struct imap_fetch_init_context *ctx)
{
	/* The host looks handlers up by the name's first word only. */
	if (strcmp(ctx->name, "XID") != 0 ||
	    xid_user_get(ctx->fetch_ctx->client->user) == NULL) {
		ctx->error = t_strdup_printf("Unknown parameter: %s", ctx->name);
		return FALSE;
	}
	imap_fetch_add_handler(ctx, IMAP_FETCH_HANDLER_FLAG_BUFFERED, NULL,
			       fetch_xid, NULL);
	return TRUE;
}

static bool fetch_add_item(struct imap_fetch_context *fetch_ctx, pool_t pool,
			   const char *name)
{
	struct imap_fetch_init_context init_ctx;

	i_zero(&init_ctx);
	init_ctx.fetch_ctx = fetch_ctx;
	init_ctx.pool = pool;
	init_ctx.name = name;
	return imap_fetch_init_handler(&init_ctx);
}

struct imap_fetch_context *
xid_fetch_matches_begin(struct client_command_context *cmd,
			const ARRAY_TYPE(seq_range) *uids)
{
	struct client *client = cmd->client;
	struct mail_search_args *search_args;
	struct mail_search_arg *arg;
	struct imap_fetch_context *ctx;

	ctx = imap_fetch_alloc(client, cmd->pool,
			       imap_client_command_get_reason(cmd));
	if ((cmd->uid && !fetch_add_item(ctx, cmd->pool, "UID")) ||
	    !fetch_add_item(ctx, cmd->pool, "XID")) {
		imap_fetch_free(&ctx);
		return NULL;
	}

	search_args = mail_search_build_init();
	arg = mail_search_build_add(search_args, SEARCH_UIDSET);
	p_array_init(&arg->value.seqset, search_args->pool,
		     array_count(uids));
	array_append_array(&arg->value.seqset, uids);
	imap_fetch_begin(ctx, client->mailbox, search_args);
	mail_search_args_unref(&search_args);
	return ctx;
}

static const struct imap_fetch_handler xid_fetch_handlers[] = {
	{ "XID", fetch_xid_init },
};

void xid_fetch_init(void)
{
	imap_fetch_handlers_register(xid_fetch_handlers,
				     N_ELEMENTS(xid_fetch_handlers));
}

void xid_fetch_deinit(void)
{
	imap_fetch_handler_unregister("XID");
}
