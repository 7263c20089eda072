/* XHXID (spec parts 4 and 5): which form it is, and the forms that hand over
   to the host's own commands: FETCH, STORE, COPY, MOVE, EXPUNGE.

   The XIDs are turned into sequences when the command runs, and the host's
   command gets its parsed arguments with the sequences (or UIDs, where it may
   wait) in place of the XIDs. */
#include "xid-imap.h"
#include "str.h"
#include "str-sanitize.h"
#include "ostream.h"
#include "imap-arg.h"
#include "imap-resp-code.h"
#include "imap-seqset.h"
#include "imap-util.h"
#include "mail-search-build.h"

/* A UID that no message has; the highest one means "*" to the host. */
#define XID_UNUSED_UID "4294967294"

/*
 * Arguments
 */

/* The host gives parsed arguments out as const, and the same array again when
   its command asks for them: that is where they are changed. */
static struct imap_arg *args_modifiable(const struct imap_arg *args)
{
	return (struct imap_arg *)(uintptr_t)args;
}

static unsigned int args_count(const struct imap_arg *args)
{
	unsigned int count = 0;

	while (!IMAP_ARG_IS_EOL(&args[count]))
		count++;
	return count;
}

static void arg_set_atom(struct imap_arg *arg, const char *str)
{
	arg->type = IMAP_ARG_ATOM;
	arg->str_len = strlen(str);
	arg->_data.str = str;
}

/* The set of XIDs that a command begins with. */
static bool xhxid_read_set(struct client_command_context *cmd,
			   struct xid_mailbox *xbox, const struct imap_arg *arg,
			   ARRAY_TYPE(seq_range) *seqs)
{
	imap_xid_set *set;
	const char *text;

	if (!imap_arg_get_astring(arg, &text)) {
		client_send_command_error(cmd,
			"expected an XID or a comma-separated set of XIDs, "
			"such as foo-1,bar-2");
		return FALSE;
	}
	if (imap_xid_set_parse(text, arg->str_len, &set) < 0) {
		xid_send_bad(cmd, "");
		return FALSE;
	}
	xid_search_resolve(xbox, set, seqs);
	imap_xid_set_free(set);
	/* With the delay-newmail workaround the client has not heard of all
	   that the host sees. */
	seq_range_array_remove_range(seqs, cmd->client->messages_count + 1,
				     (uint32_t)-1);
	return TRUE;
}

/*
 * Handing over
 */

/* Let the host's command run with this set. args begin with the set's
   place. */
static bool xhxid_run(struct client_command_context *cmd, command_func_t *func,
		      const struct imap_arg *args, const char *set)
{
	arg_set_atom(args_modifiable(args), set);
	/* The host appends the arguments to these when it reads them again. */
	cmd->args = NULL;
	cmd->human_args = NULL;
	cmd->func = func;
	return func(cmd);
}

static const char *
set_write(struct client_command_context *cmd, const ARRAY_TYPE(seq_range) *set)
{
	string_t *str = str_new(cmd->pool, 128);

	imap_write_seq_range(str, set);
	return str_c(str);
}

/* Run it with these sequences. name is how the host calls the command, func
   its own function. */
static bool xhxid_run_seqs(struct client_command_context *cmd, const char *name,
			   command_func_t *func, const struct imap_arg *args,
			   const ARRAY_TYPE(seq_range) *seqs)
{
	struct command *command = command_find(name);

	if (array_count(seqs) == 0) {
		/* The host refuses an empty set of sequences; a set of UIDs
		   of which none is there is fine. No UID can come of it, so
		   there is nothing to wait for. */
		cmd->uid = TRUE;
		return xhxid_run(cmd, func, args, XID_UNUSED_UID);
	}
	/* another plug-in may have put its own in place of the host's */
	if (command != NULL)
		func = command->func;
	cmd->cmd_flags = COMMAND_FLAG_USES_SEQS;
	return xhxid_run(cmd, func, args, set_write(cmd, seqs));
}

/* The same for a command whose answer shows UIDs: it may have to wait for
   them, and sequences can shift meanwhile. */
static bool xhxid_run_uids(struct client_command_context *cmd, const char *name,
			   command_func_t *func, const struct imap_arg *args,
			   const ARRAY_TYPE(seq_range) *seqs)
{
	struct command *command = command_find(name);
	ARRAY_TYPE(seq_range) uids;

	if (array_count(seqs) == 0)
		return xhxid_run_seqs(cmd, name, func, args, seqs);
	t_array_init(&uids, array_count(seqs));
	mailbox_get_uid_range(cmd->client->mailbox, seqs, &uids);
	if (command != NULL)
		func = command->func;
	cmd->uid = TRUE;
	return xhxid_run(cmd, func, args, set_write(cmd, &uids));
}

/* Remove the prefix command's name from the arguments. */
static void args_shift(const struct imap_arg *_args)
{
	struct imap_arg *args = args_modifiable(_args);
	unsigned int i = 0;

	do {
		args[i] = args[i+1];
	} while (!IMAP_ARG_IS_EOL(&args[i++]));
}

/*
 * FETCH
 */

static const struct {
	const char *name;
	const char *const items[6];
} fetch_macros[] = {
	{ "ALL", { "FLAGS", "INTERNALDATE", "RFC822.SIZE", "ENVELOPE", NULL } },
	{ "FAST", { "FLAGS", "INTERNALDATE", "RFC822.SIZE", NULL } },
	{ "FULL", { "FLAGS", "INTERNALDATE", "RFC822.SIZE", "ENVELOPE", "BODY",
		    NULL } },
};

static void fetch_items_add_atom(ARRAY_TYPE(imap_arg_list) *items,
				 const char *name)
{
	arg_set_atom(array_append_space(items), name);
}

static bool fetch_items_add_macro(ARRAY_TYPE(imap_arg_list) *items,
				  const char *name)
{
	unsigned int i, j;

	for (i = 0; i < N_ELEMENTS(fetch_macros); i++) {
		if (strcasecmp(fetch_macros[i].name, name) != 0)
			continue;
		for (j = 0; fetch_macros[i].items[j] != NULL; j++) {
			fetch_items_add_atom(items, fetch_macros[i].items[j]);
		}
		return TRUE;
	}
	return FALSE;
}

/* How many arguments the one item takes: BODY[HEADER.FIELDS (..)]<..> is
   three of them to the host's parser. */
static unsigned int fetch_item_args(const struct imap_arg *args)
{
	const char *str;
	unsigned int count = 1;

	if (!imap_arg_get_atom(&args[0], &str) || strchr(str, '[') == NULL ||
	    strchr(str, ']') != NULL)
		return 1;
	while (!IMAP_ARG_IS_EOL(&args[count])) {
		count++;
		if (imap_arg_get_atom(&args[count-1], &str) &&
		    strchr(str, ']') != NULL)
			break;
	}
	return count;
}

/* Make `(XID items)` of the items. Returns how many arguments they took. */
static unsigned int
fetch_items_with_xid(struct client_command_context *cmd,
		     const struct imap_arg *args, struct imap_arg *list_r)
{
	ARRAY_TYPE(imap_arg_list) items;
	const struct imap_arg *list;
	const char *name;
	unsigned int count, used = 1;

	p_array_init(&items, cmd->pool, 16);
	fetch_items_add_atom(&items, "XID");
	if (imap_arg_get_list_full(&args[0], &list, &count))
		array_append(&items, list, count);
	else if (!imap_arg_get_atom(&args[0], &name) ||
		 !fetch_items_add_macro(&items, name)) {
		used = fetch_item_args(args);
		array_append(&items, args, used);
	}
	struct imap_arg *end = array_append_space(&items);
	end->type = IMAP_ARG_EOL;

	i_zero(list_r);
	list_r->type = IMAP_ARG_LIST;
	list_r->_data.list = items;
	return used;
}

static bool list_has_atom(const struct imap_arg *arg, const char *name)
{
	const struct imap_arg *list;

	if (!imap_arg_get_list(arg, &list))
		return FALSE;
	for (; !IMAP_ARG_IS_EOL(list); list++) {
		if (imap_arg_atom_equals(list, name))
			return TRUE;
	}
	return FALSE;
}

static bool cmd_xhxid_fetch(struct client_command_context *cmd,
			    struct xid_mailbox *xbox,
			    const struct imap_arg *_args)
{
	struct imap_arg list, *args = args_modifiable(_args);
	ARRAY_TYPE(seq_range) seqs;
	const struct imap_arg *items;
	unsigned int count, used;

	if (args_count(args) < 3 ||
	    (args[2].type != IMAP_ARG_LIST && args[2].type != IMAP_ARG_ATOM)) {
		client_send_command_error(cmd,
			"expected a set of XIDs and the items to fetch, "
			"such as XHXID FETCH foo-1 (FLAGS)");
		return TRUE;
	}
	if (imap_arg_get_list_full(&args[2], &items, &count) && count == 0) {
		client_send_command_error(cmd, "FETCH list is empty.");
		return TRUE;
	}
	t_array_init(&seqs, 64);
	if (!xhxid_read_set(cmd, xbox, &args[1], &seqs))
		return TRUE;

	used = fetch_items_with_xid(cmd, &args[2], &list);
	if (list_has_atom(&args[2 + used], "VANISHED")) {
		client_send_command_error(cmd,
			"VANISHED answers with UIDs: use UID FETCH for it");
		return TRUE;
	}
	/* FETCH set items [modifiers] -> set (XID items) [modifiers] */
	args[1] = list;
	args[2] = args[2 + used];
	if (!IMAP_ARG_IS_EOL(&args[2]))
		args[3].type = IMAP_ARG_EOL;
	if (list_has_atom(&args[1], "UID"))
		return xhxid_run_uids(cmd, "UID FETCH", cmd_fetch, args, &seqs);
	return xhxid_run_seqs(cmd, "FETCH", cmd_fetch, args, &seqs);
}

/*
 * STORE, COPY, MOVE, EXPUNGE
 */

static bool cmd_xhxid_store(struct client_command_context *cmd,
			    struct xid_mailbox *xbox,
			    const struct imap_arg *args)
{
	ARRAY_TYPE(seq_range) seqs;

	if (args_count(args) < 4) {
		client_send_command_error(cmd,
			"expected a set of XIDs and the flags to store, "
			"such as XHXID STORE foo-1 +FLAGS (\\Seen)");
		return TRUE;
	}
	t_array_init(&seqs, 64);
	if (!xhxid_read_set(cmd, xbox, &args[1], &seqs))
		return TRUE;

	args_shift(args);
	return xhxid_run_seqs(cmd, "STORE", cmd_store, args, &seqs);
}

static bool xhxid_copy_full(struct client_command_context *cmd,
			    struct xid_mailbox *xbox,
			    const struct imap_arg *args, bool move)
{
	ARRAY_TYPE(seq_range) seqs;

	if (args_count(args) != 3 || !IMAP_ARG_IS_ASTRING(&args[2])) {
		client_send_command_error(cmd,
			"expected a set of XIDs and a mailbox, "
			"such as XHXID COPY foo-1 Archive");
		return TRUE;
	}
	t_array_init(&seqs, 64);
	if (!xhxid_read_set(cmd, xbox, &args[1], &seqs))
		return TRUE;

	args_shift(args);
	return xhxid_run_seqs(cmd, move ? "MOVE" : "COPY",
			      move ? cmd_move : cmd_copy, args, &seqs);
}

static bool cmd_xhxid_copy(struct client_command_context *cmd,
			   struct xid_mailbox *xbox,
			   const struct imap_arg *args)
{
	return xhxid_copy_full(cmd, xbox, args, FALSE);
}

static bool cmd_xhxid_move(struct client_command_context *cmd,
			   struct xid_mailbox *xbox,
			   const struct imap_arg *args)
{
	return xhxid_copy_full(cmd, xbox, args, TRUE);
}

static int xhxid_expunge_seqs(struct client_command_context *cmd,
			      const ARRAY_TYPE(seq_range) *seqs)
{
	struct client *client = cmd->client;
	struct mail_search_args *search_args;
	struct mail_search_arg *arg;
	int ret;

	if (array_count(seqs) == 0)
		return 0;
	search_args = mail_search_build_init();
	arg = mail_search_build_add(search_args, SEARCH_SEQSET);
	p_array_init(&arg->value.seqset, search_args->pool,
		     array_count(seqs));
	array_append_array(&arg->value.seqset, seqs);
	mail_search_args_init(search_args, client->mailbox, FALSE, NULL);
	ret = imap_expunge(client->mailbox, search_args->args,
			   &client->expunged_count);
	mail_search_args_unref(&search_args);
	return ret;
}

static bool cmd_xhxid_expunge(struct client_command_context *cmd,
			      struct xid_mailbox *xbox,
			      const struct imap_arg *args)
{
	struct client *client = cmd->client;
	ARRAY_TYPE(seq_range) seqs;
	enum mail_error error;
	const char *errstr;

	if (args_count(args) != 2) {
		client_send_command_error(cmd, "expected a set of XIDs, "
			"such as XHXID EXPUNGE foo-1,bar-2");
		return TRUE;
	}
	t_array_init(&seqs, 64);
	if (!xhxid_read_set(cmd, xbox, &args[1], &seqs))
		return TRUE;

	if (xhxid_expunge_seqs(cmd, &seqs) < 0) {
		errstr = mailbox_get_last_error(client->mailbox, &error);
		if (error != MAIL_ERROR_PERM) {
			client_send_box_error(cmd, client->mailbox);
			return TRUE;
		}
		return cmd_sync(cmd, 0, IMAP_SYNC_FLAG_SAFE, t_strdup_printf(
			"OK Expunge ignored: %s.", errstr));
	}
	client->sync_seen_deletes = FALSE;
	return cmd_sync(cmd, MAILBOX_SYNC_FLAG_EXPUNGE, IMAP_SYNC_FLAG_SAFE,
			"OK Expunge completed.");
}

/*
 * What the host says at the end
 */

/* "OK [MODIFIED 1:2] .." names sequences; make them XIDs. */
static const char *
xhxid_modified(struct client_command_context *cmd, const char *tagline)
{
	static const char *const prefix = "OK [MODIFIED ";
	struct mailbox *box = cmd->client->mailbox;
	ARRAY_TYPE(seq_range) seqs;
	struct seq_range_iter iter;
	string_t *str;
	const char *set, *end;
	unsigned int n = 0;
	uint32_t seq;
	size_t len;

	if (strncmp(tagline, prefix, strlen(prefix)) != 0)
		return tagline;
	set = tagline + strlen(prefix);
	end = strchr(set, ']');
	t_array_init(&seqs, 16);
	if (end == NULL ||
	    imap_seq_set_parse(t_strdup_until(set, end), &seqs) < 0)
		return tagline;

	str = str_new(cmd->pool, 256);
	str_append(str, prefix);
	seq_range_array_iter_init(&iter, &seqs);
	while (seq_range_array_iter_nth(&iter, n++, &seq)) {
		len = str_len(str);
		if (n > 1)
			str_append_c(str, ',');
		if (!xid_mail_lookup(box, box->view, seq, str))
			str_truncate(str, len);
	}
	str_append(str, end);
	return str_c(str);
}

void xhxid_adjust_sync(struct client_command_context *cmd)
{
	struct imap_client_sync_context *sync = cmd->sync;

	/* XIDs do not shift when a message goes, so expunges can be told, as
	   after UID commands. */
	sync->flags &= ENUM_NEGATE(MAILBOX_SYNC_FLAG_NO_EXPUNGES);
	sync->imap_flags &= ENUM_NEGATE(IMAP_SYNC_FLAG_SEND_UID);
	sync->imap_flags |= (enum imap_sync_flags)XID_IMAP_SYNC_FLAG_SEND_XID;
	if (sync->tagline != NULL) {
		sync->tagline = xhxid_modified(cmd, sync->tagline);
		cmd->tagline_reply = sync->tagline;
	}
}

/*
 * XHXID
 */

static const struct {
	const char *name;
	bool (*func)(struct client_command_context *cmd,
		     struct xid_mailbox *xbox, const struct imap_arg *args);
	/* the arguments begin with the command's own name */
	bool with_name;
} xhxid_prefixes[] = {
	{ "FETCH", cmd_xhxid_fetch, TRUE },
	{ "STORE", cmd_xhxid_store, TRUE },
	{ "COPY", cmd_xhxid_copy, TRUE },
	{ "MOVE", cmd_xhxid_move, TRUE },
	{ "EXPUNGE", cmd_xhxid_expunge, TRUE },
	{ "SEARCH", cmd_xhxid_search, FALSE },
	{ "SORT", cmd_xhxid_sort, FALSE },
	{ "THREAD", cmd_xhxid_thread, FALSE },
};

static bool xhxid_find_prefix(const struct imap_arg *arg, unsigned int *idx_r)
{
	const char *name;
	unsigned int i;

	if (!imap_arg_get_astring(arg, &name))
		return FALSE;
	for (i = 0; i < N_ELEMENTS(xhxid_prefixes); i++) {
		if (strlen(name) == arg->str_len &&
		    strcasecmp(xhxid_prefixes[i].name, name) == 0) {
			*idx_r = i;
			return TRUE;
		}
	}
	return FALSE;
}

static const char *xhxid_why_not(const struct mailbox *box)
{
	if (strcmp(box->storage->name, "virtual") == 0) {
		return "NO ["IMAP_RESP_CODE_CANNOT"] XHXID does not work in a "
			"virtual mailbox: select the mailbox that the "
			"messages are in, or search for XIDs.";
	}
	return "NO ["IMAP_RESP_CODE_CANNOT"] "
		"Messages have no XIDs in this mailbox.";
}

bool cmd_xhxid(struct client_command_context *cmd)
{
	struct client *client = cmd->client;
	struct xid_mailbox *xbox;
	const struct imap_arg *args;
	unsigned int i;

	if (xid_user_get(client->user) == NULL) {
		/* as the host says it where there is no such plug-in */
		client_send_command_error(cmd, "Unknown command.");
		return TRUE;
	}
	if (!xhxid_read_args(cmd, &args))
		return FALSE;
	if (!client_verify_open_mailbox(cmd))
		return TRUE;
	xbox = xid_mailbox_get(client->mailbox);
	if (xbox == NULL) {
		client_send_tagline(cmd, xhxid_why_not(client->mailbox));
		return TRUE;
	}
	if (!xhxid_find_prefix(&args[0], &i))
		return cmd_xhxid_state(cmd, xbox, args);

	if (!xhxid_args_are_few(args)) {
		client_send_command_error(cmd, XHXID_ARGS_MANY);
		return TRUE;
	}
	xid_command_get(cmd)->prefix = TRUE;
	cmd->name = p_strconcat(cmd->pool, "XHXID ",
				xhxid_prefixes[i].name, NULL);
	return xhxid_prefixes[i].func(cmd, xbox, xhxid_prefixes[i].with_name ?
				      args : args + 1);
}
