/* The arguments of XHXID. Sets of 10,000 XIDs and states of thousands of
   namespaces do not fit into the longest line that the host takes, and its
   limit cannot be raised for all commands: what nests (lists, NOT) is handled
   by recursion, and a megabyte of it overflows the stack. So XHXID has a
   parser of its own with a higher limit, and looks at the shape of the
   arguments before anything else does.

   The parser is lent to one command at a time in place of the host's. The
   host keeps the parser of a command that ended for the next one; if that is
   not XHXID, it gets an ordinary one back before it reads. */
#include "xid-imap.h"
#include "istream.h"
#include "imap-arg.h"
#include "imap-parser.h"

/* A set of 10,000 of the longest XIDs (84 octets with their commas) fits. */
#define XHXID_LINE_MAX (1024*1024)

/* What the host's own limit of 64 kB lets through, about: it is known to cope
   with that. */
#define XHXID_ARGS_MAX 16384
#define XHXID_LISTS_MAX 100

struct xid_client {
	union imap_module_context module_ctx;
	/* Ours even when a command or the host holds it too. */
	struct imap_parser *parser;
};

static MODULE_CONTEXT_DEFINE_INIT(xid_client_module, &imap_module_register);
#define XID_CLIENT(client) MODULE_CONTEXT(client, xid_client_module)

/*
 * The parser
 */

static struct imap_parser *
parser_create(struct client *client, size_t max_line_size)
{
	struct imap_parser *parser;

	parser = xid_imap_parser_create(client->input, client->output,
					max_line_size);
	if (client->set->imap_literal_minus)
		imap_parser_enable_literal_minus(parser);
	return parser;
}

static bool parser_is_lent(struct xid_client *xclient, struct client *client)
{
	struct client_command_context *cmd;

	for (cmd = client->command_queue; cmd != NULL; cmd = cmd->next) {
		if (cmd->parser == xclient->parser)
			return TRUE;
	}
	return FALSE;
}

/* Let the command have our parser. It has read its name and no more. */
static void parser_lend(struct xid_client *xclient,
			struct client_command_context *cmd)
{
	struct client *client = cmd->client;
	struct imap_parser *old = cmd->parser;

	if (xclient->parser == NULL)
		xclient->parser = parser_create(client, XHXID_LINE_MAX);
	else if (parser_is_lent(xclient, client)) {
		/* An earlier command is not over. It does not come to that,
		   since XHXID waits for those; the host's limit has to do. */
		return;
	}
	/* a reference for the command: the host's, or one more */
	if (client->free_parser == xclient->parser)
		client->free_parser = NULL;
	else
		imap_parser_ref(xclient->parser);
	imap_parser_reset(xclient->parser);
	imap_parser_set_streams(xclient->parser, client->input,
				client->output);
	cmd->parser = xclient->parser;
	xid_command_get(cmd)->has_parser = TRUE;

	if (client->free_parser != NULL)
		imap_parser_unref(&old);
	else {
		imap_parser_reset(old);
		client->free_parser = old;
	}
	i_stream_set_max_buffer_size(client->input, XHXID_LINE_MAX);
}

/* Give the command an ordinary one in place of ours. What was parsed is
   gone. */
static void parser_take_back(struct xid_client *xclient,
			     struct client_command_context *cmd)
{
	struct client *client = cmd->client;

	imap_parser_reset(xclient->parser);
	imap_parser_unref(&cmd->parser);
	if (client->free_parser != NULL &&
	    client->free_parser != xclient->parser) {
		cmd->parser = client->free_parser;
		client->free_parser = NULL;
	} else {
		cmd->parser = parser_create(client,
			client->set->imap_max_line_length);
	}
}

void xhxid_args_done(struct client_command_context *cmd)
{
	struct xid_client *xclient = XID_CLIENT(cmd->client);
	struct xid_command *xcmd = xid_command_find(cmd);

	if (xcmd == NULL || !xcmd->has_parser)
		return;
	xcmd->has_parser = FALSE;
	if (cmd->parser == xclient->parser)
		parser_take_back(xclient, cmd);
}

void xhxid_args_check_parser(struct client_command_context *cmd)
{
	struct xid_client *xclient = XID_CLIENT(cmd->client);
	struct xid_command *xcmd;

	if (xclient == NULL || xclient->parser == NULL ||
	    cmd->parser != xclient->parser)
		return;
	xcmd = xid_command_find(cmd);
	if (xcmd == NULL || !xcmd->has_parser) {
		/* The host kept it from a command that ended. This one has
		   not read anything with it yet. */
		parser_take_back(xclient, cmd);
	}
}

/*
 * Sessions
 */

static void xid_client_destroy(struct client *client, const char *reason)
{
	struct xid_client *xclient = XID_CLIENT(client);
	struct imap_parser *parser = xclient->parser;

	/* frees xclient, too */
	xclient->module_ctx.super.destroy(client, reason);
	if (parser != NULL)
		imap_parser_unref(&parser);
}

void xhxid_args_client_created(struct client *client)
{
	struct xid_client *xclient;

	if (client->set->imap_max_line_length >= XHXID_LINE_MAX)
		return;
	xclient = p_new(client->pool, struct xid_client, 1);
	xclient->module_ctx.super = client->v;
	client->v.destroy = xid_client_destroy;
	MODULE_CONTEXT_SET(client, xid_client_module, xclient);
}

/*
 * Reading
 */

/* Are they few, and not deep in lists? count is what is left. */
static bool args_are_shallow(const struct imap_arg *args, unsigned int depth,
			     unsigned int *count)
{
	const struct imap_arg *list;

	for (; !IMAP_ARG_IS_EOL(args); args++) {
		if (*count == 0)
			return FALSE;
		*count -= 1;
		if (imap_arg_get_list(args, &list) &&
		    (depth == 0 || !args_are_shallow(list, depth - 1, count)))
			return FALSE;
	}
	return TRUE;
}

/* A state is as long as it is, but has no lists. */
static bool args_are_flat(const struct imap_arg *args)
{
	for (; !IMAP_ARG_IS_EOL(args); args++) {
		if (args->type == IMAP_ARG_LIST)
			return FALSE;
	}
	return TRUE;
}

bool xhxid_args_are_few(const struct imap_arg *args)
{
	unsigned int count = XHXID_ARGS_MAX;

	return args_are_shallow(args, XHXID_LISTS_MAX, &count);
}

bool xhxid_read_args(struct client_command_context *cmd,
		     const struct imap_arg **args_r)
{
	struct xid_client *xclient = XID_CLIENT(cmd->client);
	struct xid_command *xcmd = xid_command_get(cmd);
	int ret;

	if (!xcmd->reading) {
		xcmd->reading = TRUE;
		if (xclient != NULL)
			parser_lend(xclient, cmd);
	}
	ret = imap_parser_read_args(cmd->parser, 0, 0, args_r);
	if (ret == -2) {
		if (cmd->client->input->closed)
			cmd->state = CLIENT_COMMAND_STATE_DONE;
		return FALSE;
	}
	if (xcmd->has_parser) {
		i_stream_set_max_buffer_size(cmd->client->input,
			cmd->client->set->imap_max_line_length);
	}
	if (ret < 0) {
		client_send_command_error(cmd, NULL);
		return FALSE;
	}
	if (!args_are_flat(*args_r) && !xhxid_args_are_few(*args_r)) {
		client_send_command_error(cmd, XHXID_ARGS_MANY);
		return FALSE;
	}
	cmd->client->input_lock = NULL;
	if (!xcmd->args_noted) {
		xcmd->args_noted = TRUE;
		client_args_finished(cmd, *args_r);
	}
	return TRUE;
}
