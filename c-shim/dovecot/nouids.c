/* xid_uids = no (spec part 7): the server has no UIDs at all. It exists to
   find out how clients behave. XIDs and sequence numbers work.

   What commands ask for is narrowed down before the host sees it. Only SELECT
   says more than it is asked for: its lines are looked through. */
#include "wait.h"
#include "imap-host.h"
#include "cmd-wait.h"
#include "ostream.h"
#include "str.h"

#define XID_NO_UIDS_REPLY "NO [CANNOT] This server has no UIDs."
#define XID_NO_UIDS_LINE \
	"* NO [UIDNOTSTICKY] This server has no UIDs.\r\n"

/* Extensions that are about UIDs. */
static const char *const xid_uid_capabilities[] = {
	"UIDPLUS", "QRESYNC", "NOTIFY", "URLAUTH", "URLAUTH=BINARY", NULL
};

static const char *const xid_uid_status_items[] = {
	"UIDNEXT", "UIDVALIDITY", NULL
};

/*
 * Arguments
 */

static void xid_list_remove(const struct imap_arg *list_arg,
			    const char *const *names)
{
	ARRAY_TYPE(imap_arg_list) *list =
		&((struct imap_arg *)list_arg)->_data.list;
	const struct imap_arg *args;
	const char *name;
	unsigned int i;

	args = array_front(list);
	for (i = 0; !IMAP_ARG_IS_EOL(&args[i]); ) {
		if (imap_arg_get_atom(&args[i], &name) &&
		    str_array_icase_find(names, name)) {
			array_delete(list, i, 1);
			args = array_front(list);
		} else {
			i++;
		}
	}
}

static bool xid_list_is_empty(const struct imap_arg *list_arg)
{
	return IMAP_ARG_IS_EOL(imap_arg_as_list(list_arg));
}

static bool xid_nouids_refuse(struct client_command_context *cmd)
{
	client_send_tagline(cmd, XID_NO_UIDS_REPLY);
	return TRUE;
}

/* STATUS mailbox (items). Returns FALSE if nothing is left to answer. */
static bool xid_nouids_status(const struct imap_arg *args)
{
	if (IMAP_ARG_IS_EOL(&args[0]) || args[1].type != IMAP_ARG_LIST)
		return TRUE;
	if (xid_list_is_empty(&args[1]))
		return TRUE;
	xid_list_remove(&args[1], xid_uid_status_items);
	return !xid_list_is_empty(&args[1]);
}

/* LIST ... RETURN (... STATUS (items)) */
static bool xid_nouids_list(const struct imap_arg *args)
{
	const struct imap_arg *options;

	for (; !IMAP_ARG_IS_EOL(args); args++) {
		if (!imap_arg_atom_equals(args, "RETURN") ||
		    !imap_arg_get_list(&args[1], &options))
			continue;
		for (; !IMAP_ARG_IS_EOL(options); options++) {
			if (imap_arg_atom_equals(options, "STATUS") &&
			    options[1].type == IMAP_ARG_LIST &&
			    !xid_list_is_empty(&options[1])) {
				xid_list_remove(&options[1],
						xid_uid_status_items);
				if (xid_list_is_empty(&options[1]))
					return FALSE;
			}
		}
	}
	return TRUE;
}

/* ENABLE: QRESYNC is passed over, as an unknown extension is. */
static void xid_nouids_enable(struct client_command_context *cmd,
			      const struct imap_arg *_args)
{
	struct imap_arg *arg = (struct imap_arg *)_args;

	for (; !IMAP_ARG_IS_EOL(arg); arg++) {
		if (!imap_arg_atom_equals(arg, "QRESYNC"))
			continue;
		arg->_data.str = p_strdup(cmd->pool, "X-NO-UIDS");
		arg->str_len = strlen(arg->_data.str);
	}
}

/*
 * SELECT and EXAMINE
 */

static bool xid_line_is_about_uids(const char *line)
{
	return str_begins(line, "* OK [UIDVALIDITY ") ||
		str_begins(line, "* OK [UIDNEXT ");
}

/* Send what SELECT said, without what it must not say. */
static void xid_nouids_send(struct ostream *output, const char *text)
{
	const char *end, *line;
	bool told = FALSE;

	while ((end = strstr(text, "\r\n")) != NULL) {
		line = t_strdup_until(text, end);
		text = end + 2;
		if (!xid_line_is_about_uids(line)) {
			o_stream_nsend_str(output, line);
			o_stream_nsend_str(output, "\r\n");
		} else if (!told) {
			o_stream_nsend_str(output, XID_NO_UIDS_LINE);
			told = TRUE;
		}
	}
}

static bool xid_nouids_select(struct client_command_context *cmd,
			      command_func_t *func)
{
	struct client *client = cmd->client;
	struct ostream *output = client->output;
	buffer_t *said = t_buffer_create(1024);
	bool finished;

	client->output = o_stream_create_buffer(said);
	o_stream_set_no_error_handling(client->output, TRUE);
	finished = func(cmd);
	o_stream_destroy(&client->output);
	client->output = output;

	xid_nouids_send(output, str_c(said));
	if (client->disconnected)
		o_stream_close(output);
	return finished;
}

/*
 * Commands
 */

static bool xid_nouids_options_have(const struct imap_arg *arg,
				    const char *name)
{
	const struct imap_arg *options;

	if (IMAP_ARG_IS_EOL(arg) || !imap_arg_get_list(arg + 1, &options))
		return FALSE;
	for (; !IMAP_ARG_IS_EOL(options); options++) {
		if (imap_arg_atom_equals(options, name))
			return TRUE;
	}
	return FALSE;
}

/* Narrow the arguments down. Returns FALSE if the command is all about
   UIDs. */
static bool xid_nouids_narrow(struct client_command_context *cmd,
			      const char *name, const struct imap_arg *args)
{
	if (strcmp(name, "STATUS") == 0)
		return xid_nouids_status(args);
	if (strcmp(name, "LIST") == 0)
		return xid_nouids_list(args);
	if (strcmp(name, "SEARCH") == 0 || strcmp(name, "SORT") == 0 ||
	    strcmp(name, "THREAD") == 0)
		return !xid_search_has_uid_key(args, strcmp(name, "SEARCH") != 0);
	if (strcmp(name, "SELECT") == 0 || strcmp(name, "EXAMINE") == 0)
		return !xid_nouids_options_have(args, "QRESYNC");
	if (strcmp(name, "NOTIFY") == 0)
		return imap_arg_atom_equals(args, "NONE");
	if (strcmp(name, "GENURLAUTH") == 0 || strcmp(name, "URLFETCH") == 0)
		return FALSE;
	if (strcmp(name, "ENABLE") == 0)
		xid_nouids_enable(cmd, args);
	return TRUE;
}

bool xid_nouids_command(struct client_command_context *cmd, const char *name,
			unsigned int arg_count, command_func_t *func)
{
	const struct imap_arg *args;
	bool finished;

	if (!cmd->uid && arg_count > 0) {
		/* names messages by their sequence numbers */
		return func(cmd);
	}
	if (!client_read_args(cmd, cmd->uid ? 0 : arg_count, 0, &args))
		return FALSE;
	if (cmd->uid || !xid_nouids_narrow(cmd, name, args))
		return xid_nouids_refuse(cmd);

	/* the host reads them itself and notes them for its log */
	cmd->args = NULL;
	cmd->human_args = NULL;
	if (strcmp(name, "SELECT") != 0 && strcmp(name, "EXAMINE") != 0)
		return func(cmd);
	T_BEGIN {
		finished = xid_nouids_select(cmd, func);
	} T_END;
	return finished;
}

void xid_nouids_client(struct client *client)
{
	const char *const *names;
	string_t *left = t_str_new(256);

	names = t_strsplit_spaces(str_c(client->capability_string), " ");
	for (; *names != NULL; names++) {
		if (str_array_icase_find(xid_uid_capabilities, *names))
			continue;
		if (str_len(left) > 0)
			str_append_c(left, ' ');
		str_append(left, *names);
	}
	str_truncate(client->capability_string, 0);
	str_append_str(client->capability_string, left);
}
