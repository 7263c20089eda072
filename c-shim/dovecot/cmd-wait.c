/* IMAP commands that use UIDs wait until every message that they could name
   is stable (spec part 6), and those that save wait while their mailbox's gate
   is closed.

   A command that must wait keeps the input, as IDLE does: what is pipelined
   behind it stays in the buffer and runs after it, in order; and a client that
   goes away is noticed at once. It runs later from the output callback, where
   no other command is half way through its own answer. */
#include "wait.h"
#include "imap-host.h"
#include "cmd-wait.h"
#include "ioloop.h"
#include "istream.h"
#include "ostream.h"
#include "str.h"
#include "time-util.h"
#include "imap-seqset.h"
#include "imap-url.h"
#include "imap-util.h"
#include "mail-namespace.h"
#include "mail-search-build.h"
#include "mail-search-parser.h"
#include "mail-search-register.h"

#define XID_KEEPALIVE_LINE \
	"* OK Waiting until the UIDs of new messages are agreed."
#define XID_GATE_KEEPALIVE_LINE \
	"* OK Waiting until the mailbox takes new messages again."
#define XID_WAIT_TIMEOUT_REPLY \
	"NO [UNAVAILABLE] The UIDs of new messages are not agreed yet, " \
	"try again later."

/* For which UID of which mailbox the command must wait, or for the mailbox's
   gate; neither = it need not. A mailbox other than the selected one is freed
   after the wait. */
struct xid_reach {
	struct mailbox *box;
	uint32_t uid;
	bool gate;
};

typedef void xid_judge_t(struct client_command_context *cmd,
			 const struct imap_arg *args, struct xid_reach *reach);

/* Narrow the arguments down to what may be answered. */
typedef void xid_prepare_t(struct client_command_context *cmd,
			   const struct imap_arg *args);

struct xid_uid_command {
	const char *name;
	command_func_t *wrapper;
	/* either may be NULL */
	xid_judge_t *judge;
	xid_prepare_t *prepare;
	/* how many arguments the host's own function reads; 0 = the line */
	unsigned int arg_count;
	/* which of them, from 1, names the mailbox that it saves into; 0 = it
	   saves nothing */
	unsigned int dest;
	/* works on the selected mailbox */
	bool selected;
	/* never waits without the UID prefix */
	bool uid_only;

	/* what the host had registered, for the command and its UID twin */
	command_func_t *plain_func, *uid_func;
	enum command_flags plain_flags, uid_flags;
};

struct xid_command_wait {
	struct client_command_context *cmd;
	struct xid_uid_command *command;
	struct xid_waiting *waiting;
	/* a mailbox opened for this wait only */
	struct mailbox *box;
	struct timeout *to_keepalive;
	struct event *event;
	/* when the client's patience ends */
	struct timeval deadline;
	/* waits for a gate */
	bool gate:1;
	bool ready:1;
	bool timed_out:1;
};

static bool xid_command_waiting(struct client_command_context *cmd);
static bool xid_command_run(struct client_command_context *cmd,
			    struct xid_uid_command *command,
			    struct xid_command_wait *wait);

/*
 * Which UIDs a command reaches
 */

static uint32_t xid_box_watermark(struct mailbox *box)
{
	struct xid_wait_mailbox *wbox = xid_wait_mailbox_get(box);

	return wbox == NULL ? (uint32_t)-1 : xid_wait_watermark(wbox);
}

static uint32_t xid_saved_result_max(struct client *client)
{
	const ARRAY_TYPE(seq_range) *saved = &client->search_saved_uidset;
	const struct seq_range *ranges;
	unsigned int count;

	if (!array_is_created(saved))
		return 0;
	ranges = array_get(saved, &count);
	return count == 0 ? 0 : ranges[count-1].seq2;
}

static void xid_reach_uid_set(struct client_command_context *cmd,
			      const char *set, struct xid_reach *reach)
{
	struct mailbox *box = cmd->client->mailbox;
	uint32_t watermark = xid_box_watermark(box);
	uint32_t last_uid = xid_wait_last_uid(box);
	uint32_t max;

	if (last_uid <= watermark)
		return;
	if (strcmp(set, "$") == 0) {
		max = xid_saved_result_max(cmd->client);
		if (max > watermark)
			reach->uid = I_MIN(max, last_uid);
		return;
	}
	/* a set that is no set is for the host to complain about */
	if (imap_xid_uidset_reach(set, strlen(set), watermark, last_uid,
				  &reach->uid) != 1)
		reach->uid = 0;
}

static void xid_judge_uid_set(struct client_command_context *cmd,
			      const struct imap_arg *args,
			      struct xid_reach *reach)
{
	const char *set;

	if (imap_arg_get_astring(&args[0], &set))
		xid_reach_uid_set(cmd, set, reach);
}

static bool xid_fetch_wants_uid(const struct imap_arg *arg)
{
	const struct imap_arg *list;

	if (imap_arg_atom_equals(arg, "UID"))
		return TRUE;
	if (!imap_arg_get_list(arg, &list))
		return FALSE;
	for (; !IMAP_ARG_IS_EOL(list); list++) {
		if (imap_arg_atom_equals(list, "UID"))
			return TRUE;
	}
	return FALSE;
}

/* The UID of the last message in a set of sequence numbers. */
static uint32_t
xid_seq_set_max_uid(struct mailbox *box, const ARRAY_TYPE(seq_range) *seqs)
{
	const struct seq_range *ranges;
	unsigned int count;
	uint32_t messages, uid;

	ranges = array_get(seqs, &count);
	messages = mail_index_view_get_messages_count(box->view);
	if (count == 0 || messages == 0)
		return 0;
	mail_index_lookup_uid(box->view,
			      I_MIN(ranges[count-1].seq2, messages), &uid);
	return uid;
}

static void xid_judge_fetch(struct client_command_context *cmd,
			    const struct imap_arg *args,
			    struct xid_reach *reach)
{
	struct mailbox *box = cmd->client->mailbox;
	ARRAY_TYPE(seq_range) seqs;
	const char *set;
	uint32_t uid;

	if (!imap_arg_get_atom(&args[0], &set))
		return;
	if (cmd->uid) {
		xid_reach_uid_set(cmd, set, reach);
		return;
	}
	if (!xid_fetch_wants_uid(&args[1]))
		return;
	if (strcmp(set, "$") == 0) {
		xid_reach_uid_set(cmd, set, reach);
		return;
	}
	t_array_init(&seqs, 8);
	if (imap_seq_set_parse(set, &seqs) < 0)
		return;
	uid = xid_seq_set_max_uid(box, &seqs);
	if (uid > xid_box_watermark(box))
		reach->uid = uid;
}

/*
 * Searches
 */

struct xid_search_reach {
	struct client *client;
	uint32_t watermark, last_uid;
};

static bool xid_uid_ranges_reach(const struct xid_search_reach *search,
				 const ARRAY_TYPE(seq_range) *uids)
{
	const struct seq_range *range;

	array_foreach(uids, range) {
		/* also a UID that no message has now: one of those that
		   wait may get it */
		if (range->seq2 > search->watermark)
			return TRUE;
	}
	return FALSE;
}

static bool xid_search_arg_reaches(const struct xid_search_reach *search,
				   const struct mail_search_arg *arg)
{
	/* the numbers in "$" are UIDs, but its members are no secret */
	if (arg->type != SEARCH_UIDSET || strcmp(arg->value.str, "$") == 0)
		return FALSE;
	return xid_uid_ranges_reach(search, &arg->value.seqset);
}

/* Does the answer depend on the UID of a message that is not stable? */
static bool xid_search_uses_uids(const struct xid_search_reach *search,
				 const struct mail_search_arg *arg)
{
	for (; arg != NULL; arg = arg->next) {
		if (arg->type == SEARCH_SUB || arg->type == SEARCH_OR) {
			if (xid_search_uses_uids(search, arg->value.subargs))
				return TRUE;
		} else if (xid_search_arg_reaches(search, arg)) {
			return TRUE;
		}
	}
	return FALSE;
}

/* Is a key there that all matches must have, and that only stable messages
   can have? */
static bool xid_search_stays_below(const struct xid_search_reach *search,
				   const struct mail_search_arg *arg)
{
	struct mailbox *box = search->client->mailbox;

	for (; arg != NULL; arg = arg->next) {
		if (arg->match_not)
			continue;
		if (arg->type == SEARCH_UIDSET) {
			if (strcmp(arg->value.str, "$") == 0) {
				if (xid_saved_result_max(search->client) <=
				    search->watermark)
					return TRUE;
			} else if (!xid_search_arg_reaches(search, arg)) {
				return TRUE;
			}
		} else if (arg->type == SEARCH_SEQSET &&
			   xid_seq_set_max_uid(box, &arg->value.seqset) <=
			   search->watermark) {
			return TRUE;
		} else if (arg->type == SEARCH_SUB &&
			   xid_search_stays_below(search,
						  arg->value.subargs)) {
			return TRUE;
		}
	}
	return FALSE;
}

/* RETURN options that name no message. */
static bool xid_search_returns_uids(const struct imap_arg *list)
{
	const char *name;

	if (IMAP_ARG_IS_EOL(list))
		return TRUE;
	for (; !IMAP_ARG_IS_EOL(list); list++) {
		if (!imap_arg_get_atom(list, &name))
			return TRUE;
		if (strcasecmp(name, "COUNT") != 0 &&
		    strcasecmp(name, "SAVE") != 0)
			return TRUE;
	}
	return FALSE;
}

/* The keys of SEARCH, or of SORT or THREAD (sort), after what comes before
   them. returns_r = the RETURN options, NULL if there are none. */
static const struct imap_arg *
xid_search_keys(const struct imap_arg *args, bool sort, const char **charset_r,
		const struct imap_arg **returns_r)
{
	*charset_r = "UTF-8";
	*returns_r = NULL;
	if (imap_arg_atom_equals(&args[0], "RETURN") &&
	    imap_arg_get_list(&args[1], returns_r))
		args += 2;
	if (!sort) {
		if (imap_arg_atom_equals(&args[0], "CHARSET") &&
		    imap_arg_get_astring(&args[1], charset_r))
			args += 2;
		return args;
	}
	/* program or algorithm, charset, keys */
	if (IMAP_ARG_IS_EOL(&args[0]))
		return args;
	return imap_arg_get_astring(&args[1], charset_r) ? args + 2 : args + 1;
}

/* Returns NULL if the host will complain about them. */
static struct mail_search_args *
xid_search_parse(const struct imap_arg *args, const char *charset)
{
	struct mail_search_parser *parser;
	struct mail_search_args *sargs;
	const char *error;
	int ret;

	if (IMAP_ARG_IS_EOL(args))
		return NULL;
	parser = mail_search_parser_init_imap(args);
	ret = mail_search_build(mail_search_register_get_imap(), parser,
				&charset, &sargs, &error);
	mail_search_parser_deinit(&parser);
	return ret < 0 ? NULL : sargs;
}

bool xid_search_has_uid_key(const struct imap_arg *args, bool sort)
{
	const struct xid_search_reach any = { NULL, 0, (uint32_t)-1 };
	const struct imap_arg *returns;
	struct mail_search_args *sargs;
	const char *charset;
	bool ret;

	args = xid_search_keys(args, sort, &charset, &returns);
	sargs = xid_search_parse(args, charset);
	if (sargs == NULL)
		return FALSE;
	ret = xid_search_uses_uids(&any, sargs->args);
	mail_search_args_unref(&sargs);
	return ret;
}

static void xid_reach_search(struct client_command_context *cmd,
			     const struct imap_arg *args, bool sort,
			     struct xid_reach *reach)
{
	struct xid_search_reach search;
	const struct imap_arg *returns;
	struct mail_search_args *sargs;
	const char *charset;
	bool shows_uids;

	search.client = cmd->client;
	search.watermark = xid_box_watermark(cmd->client->mailbox);
	search.last_uid = xid_wait_last_uid(cmd->client->mailbox);
	if (search.last_uid <= search.watermark)
		return;

	args = xid_search_keys(args, sort, &charset, &returns);
	sargs = xid_search_parse(args, charset);
	if (sargs == NULL)
		return;
	shows_uids = cmd->uid &&
		(returns == NULL || xid_search_returns_uids(returns));
	if (shows_uids ? !xid_search_stays_below(&search, sargs->args) :
	    xid_search_uses_uids(&search, sargs->args))
		reach->uid = search.last_uid;
	mail_search_args_unref(&sargs);
}

static void xid_judge_search(struct client_command_context *cmd,
			     const struct imap_arg *args,
			     struct xid_reach *reach)
{
	xid_reach_search(cmd, args, FALSE, reach);
}

static void xid_judge_sort(struct client_command_context *cmd,
			   const struct imap_arg *args,
			   struct xid_reach *reach)
{
	xid_reach_search(cmd, args, TRUE, reach);
}

/*
 * URLs (RFC 4467): the server repeats the URL, UID and all
 */

/* base NULL = the URL names its server */
static void xid_reach_url(struct client_command_context *cmd,
			  const char *text, const struct imap_url *base,
			  struct xid_reach *reach)
{
	struct mail_user *user = cmd->client->user;
	struct mail_namespace *ns;
	struct imap_url *url;
	struct mailbox *box;
	const char *error;

	if (imap_url_parse(text, base, base != NULL ?
			   IMAP_URL_PARSE_REQUIRE_RELATIVE :
			   IMAP_URL_PARSE_ALLOW_URLAUTH, &url, &error) < 0 ||
	    url->mailbox == NULL || url->uid == 0)
		return;
	if (url->userid != NULL && strcmp(url->userid, user->username) != 0)
		return;

	ns = mail_namespace_find(user->namespaces, url->mailbox);
	box = mailbox_alloc(ns->list, url->mailbox, MAILBOX_FLAG_READONLY);
	if (mailbox_open(box) == 0 && url->uid > xid_box_watermark(box) &&
	    url->uid <= xid_wait_last_uid(box)) {
		reach->box = box;
		reach->uid = url->uid;
		return;
	}
	mailbox_free(&box);
}

/* Each argument is a URL, or a list that begins with one (URLFETCH), or is
   followed by a mechanism (GENURLAUTH), which is no URL. */
static void xid_judge_urls(struct client_command_context *cmd,
			   const struct imap_arg *args,
			   struct xid_reach *reach)
{
	const struct imap_arg *arg;
	const char *text;

	for (; !IMAP_ARG_IS_EOL(args) && reach->uid == 0; args++) {
		if (!imap_arg_get_list(args, &arg))
			arg = args;
		if (imap_arg_get_astring(arg, &text))
			xid_reach_url(cmd, text, NULL, reach);
	}
}

/*
 * CATENATE (RFC 4469): parts of what is appended can be URLs
 */

/* The next word of a command that is still in the buffer; literals that are
   whole are passed over. Returns NULL at the end of what is there. */
static const char *xid_peek_word(const char **data, const char *end)
{
	const char *p = *data, *start;
	unsigned long size;
	char *after;

	while (p < end && strchr(" ()\r\n", *p) != NULL)
		p++;
	start = p;
	if (p < end && *p == '"') {
		for (p++; p < end && *p != '"'; p++) {
			if (*p == '\\' && p + 1 < end)
				p++;
		}
		*data = I_MIN(p + 1, end);
		return p < end ? t_strdup_until(start + 1, p) : NULL;
	}
	while (p < end && strchr(" ()\r\n", *p) == NULL)
		p++;
	*data = p;
	if (p == end)
		return NULL;
	if (*start == '{' && *p == '\r') {
		size = strtoul(start + 1, &after, 10);
		if (size > (size_t)(end - p) || end - p < 2)
			return NULL;
		*data = I_MIN(p + 2 + size, end);
	}
	return t_strdup_until(start, p);
}

static void xid_reach_catenate(struct client_command_context *cmd,
			       const char *data, const char *end,
			       struct xid_reach *reach)
{
	struct mailbox *box = cmd->client->mailbox;
	struct imap_url base;
	const char *word;
	bool is_url = FALSE;

	i_zero(&base);
	if (box != NULL) {
		base.mailbox = mailbox_get_vname(box);
		base.uidvalidity =
			mail_index_get_header(box->view)->uid_validity;
	}
	while (reach->uid == 0 &&
	       (word = xid_peek_word(&data, end)) != NULL) {
		if (is_url)
			xid_reach_url(cmd, word, &base, reach);
		is_url = strcasecmp(word, "URL") == 0;
	}
}

/* The host reads what follows the mailbox piece by piece. What a client sends
   in one go is here already; a URL that comes later finds no message whose UID
   is not stable (uidleak.c). */
static void xid_judge_append(struct client_command_context *cmd,
			     const struct imap_arg *args ATTR_UNUSED,
			     struct xid_reach *reach)
{
	const char *data, *line;
	size_t size;

	data = (const char *)i_stream_get_data(cmd->client->input, &size);
	line = memchr(data, '\n', size);
	if (line == NULL)
		line = data + size;
	if (strstr(t_str_ucase(t_strndup(data, line - data)),
		   "CATENATE (") != NULL)
		xid_reach_catenate(cmd, data, data + size, reach);
}

/*
 * Gates
 */

/* A mailbox is opened to see its gate only if some gate is closed. */
static bool xid_gates_may_be_closed(struct client *client)
{
	struct xid_user *xuser = xid_user_get(client->user);
	struct xid_root *root;

	if (ioloop_time < xuser->gates_ignored_until)
		return FALSE;
	/* a session that has not used any mailbox yet cannot tell */
	for (root = xuser->roots; root != NULL; root = root->next) {
		if (root->core == NULL || imap_xid_root_gates(root->core) > 0)
			return TRUE;
	}
	return xuser->roots == NULL;
}

static void xid_reach_gate(struct client_command_context *cmd,
			   const struct imap_arg *arg, struct xid_reach *reach)
{
	struct xid_wait_mailbox *wbox;
	struct mail_namespace *ns;
	struct mailbox *box;
	const char *name, *error;

	if (!imap_arg_get_astring(arg, &name))
		return;
	ns = client_find_namespace_full(cmd->client, &name, &error);
	if (ns == NULL)
		return;
	box = mailbox_alloc(ns->list, name, MAILBOX_FLAG_READONLY);
	if (mailbox_open(box) == 0 &&
	    (wbox = xid_wait_mailbox_get(box)) != NULL &&
	    xid_wait_gate_is_closed(wbox)) {
		reach->box = box;
		reach->gate = TRUE;
		return;
	}
	mailbox_free(&box);
}

/*
 * Arguments rewritten before the command runs
 */

static void xid_arg_set_atom(struct client_command_context *cmd,
			     const struct imap_arg *_arg, const char *atom)
{
	struct imap_arg *arg = (struct imap_arg *)_arg;

	arg->type = IMAP_ARG_ATOM;
	arg->_data.str = p_strdup(cmd->pool, atom);
	arg->str_len = strlen(atom);
}

/* The UIDs of the set up to the watermark; last_uid is what "*" means.
   Returns NULL if there are none. */
static const char *
xid_uid_set_below(const char *set, uint32_t watermark, uint32_t last_uid)
{
	ARRAY_TYPE(seq_range) uids;
	struct seq_range *range;
	string_t *str;

	t_array_init(&uids, 8);
	if (imap_seq_set_parse(set, &uids) < 0)
		return set;
	array_foreach_modifiable(&uids, range) {
		if (range->seq1 == (uint32_t)-1)
			range->seq1 = I_MAX(last_uid, 1);
	}
	seq_range_array_remove_range(&uids, watermark + 1, (uint32_t)-1);
	if (array_count(&uids) == 0)
		return NULL;
	str = t_str_new(64);
	imap_write_seq_range(str, &uids);
	return str_c(str);
}

/* UID FETCH ... (CHANGEDSINCE n VANISHED) names every expunged UID of the set,
   also one that was expunged before it was stable. */
static void xid_fetch_clip_vanished(struct client_command_context *cmd,
				    const struct imap_arg *args)
{
	struct mailbox *box = cmd->client->mailbox;
	const struct imap_arg *list;
	const char *set;
	uint32_t watermark;
	string_t *str;

	if (!cmd->uid || !imap_arg_get_atom(&args[0], &set) ||
	    IMAP_ARG_IS_EOL(&args[1]) || !imap_arg_get_list(&args[2], &list))
		return;
	while (!IMAP_ARG_IS_EOL(list) &&
	       !imap_arg_atom_equals(list, "VANISHED"))
		list++;
	if (IMAP_ARG_IS_EOL(list))
		return;

	watermark = xid_box_watermark(box);
	if (watermark == (uint32_t)-1)
		return;
	if (strcmp(set, "$") == 0) {
		if (xid_saved_result_max(cmd->client) <= watermark)
			return;
		str = t_str_new(64);
		imap_write_seq_range(str, &cmd->client->search_saved_uidset);
		set = str_c(str);
	}
	set = xid_uid_set_below(set, watermark, xid_wait_last_uid(box));
	/* no message has this UID, now or ever */
	xid_arg_set_atom(cmd, &args[0], set != NULL ? set : "4294967294");
}

/*
 * SELECT and EXAMINE
 */

/* The mailbox's watermark before it is selected. */
static uint32_t
xid_select_watermark(struct client_command_context *cmd, const char *name)
{
	struct mail_namespace *ns;
	struct mailbox *box;
	const char *error;
	uint32_t watermark = 0;

	ns = client_find_namespace_full(cmd->client, &name, &error);
	if (ns == NULL)
		return (uint32_t)-1;
	box = mailbox_alloc(ns->list, name, MAILBOX_FLAG_READONLY);
	if (mailbox_open(box) == 0)
		watermark = xid_box_watermark(box);
	mailbox_free(&box);
	return watermark;
}

/* QRESYNC (uidvalidity modseq [known-uids] [(seqs uids)]): the answer names
   every UID of known-uids that changed, and without known-uids every UID. */
static void
xid_select_clip_qresync(struct client_command_context *cmd,
			const struct imap_arg *name_arg, uint32_t watermark)
{
	const struct imap_arg *list_arg = name_arg + 1;
	ARRAY_TYPE(imap_arg_list) *list;
	const struct imap_arg *params;
	struct imap_arg known;
	const char *set = "1:4294967295";
	unsigned int count;

	if (!imap_arg_get_list_full(list_arg, &params, &count) || count < 2)
		return;
	if (count > 2 && !imap_arg_get_atom(&params[2], &set))
		set = "1:4294967295";
	set = xid_uid_set_below(set, watermark, watermark);
	if (set == NULL) {
		/* Nothing that is stable is of interest to the client. */
		xid_arg_set_atom(cmd, name_arg, "CONDSTORE");
		xid_arg_set_atom(cmd, list_arg, "CONDSTORE");
		return;
	}
	if (count > 2 && params[2].type == IMAP_ARG_ATOM) {
		xid_arg_set_atom(cmd, &params[2], set);
		return;
	}
	i_zero(&known);
	known.parent = (struct imap_arg *)list_arg;
	xid_arg_set_atom(cmd, &known, set);
	list = &((struct imap_arg *)list_arg)->_data.list;
	array_insert(list, 2, &known, 1);
}

static void xid_select_prepare(struct client_command_context *cmd,
			       const struct imap_arg *args)
{
	const struct imap_arg *options;
	const char *name;
	uint32_t watermark;

	if (!imap_arg_get_astring(&args[0], &name) ||
	    !imap_arg_get_list(&args[1], &options))
		return;
	for (; !IMAP_ARG_IS_EOL(options); options++) {
		if (!imap_arg_atom_equals(options, "QRESYNC"))
			continue;
		watermark = xid_select_watermark(cmd, name);
		if (watermark == (uint32_t)-1)
			return;
		xid_leak_freeze(watermark);
		xid_select_clip_qresync(cmd, options, watermark);
		return;
	}
}

/*
 * Waiting
 */

static void xid_command_wait_stop(struct xid_command_wait *wait,
				  const char *result)
{
	xid_wait_end(&wait->waiting);
	timeout_remove(&wait->to_keepalive);
	if (wait->box != NULL)
		mailbox_free(&wait->box);
	xid_wait_event_end(&wait->event, wait->gate ? "gate" : "wait", result);
}

static void xid_command_wake(struct xid_command_wait *wait)
{
	struct client_command_context *cmd = wait->cmd;

	timeout_remove(&wait->to_keepalive);
	/* The output callback runs it, when no other command owns the
	   output. */
	cmd->state = CLIENT_COMMAND_STATE_WAIT_OUTPUT;
	o_stream_set_flush_pending(cmd->client->output, TRUE);
}

static void xid_command_wait_over(enum xid_wait_result result, void *context)
{
	struct xid_command_wait *wait = context;

	wait->waiting = NULL;
	if (result == XID_WAIT_STABLE)
		wait->ready = TRUE;
	else
		wait->timed_out = TRUE;
	xid_command_wake(wait);
}

void xid_client_check_output(struct client *client)
{
	if (client->output->closed || client->output->stream_errno != 0)
		client_destroy(client, NULL);
}

void xid_client_keepalive(struct client *client, const char *line)
{
	/* Nothing may go into the middle of another command's answer, and a
	   client that does not read needs no more lines. */
	if (client->output_cmd_lock != NULL ||
	    o_stream_get_buffer_used_size(client->output) > 0)
		return;
	o_stream_cork(client->output);
	client_send_line(client, line);
	o_stream_uncork(client->output);
	xid_client_check_output(client);
}

static void xid_command_keepalive(struct xid_command_wait *wait)
{
	struct client *client = wait->cmd->client;
	struct xid_user *xuser = xid_user_get(client->user);

	if (xid_wait_look(wait->waiting))
		return;
	timeout_remove(&wait->to_keepalive);
	wait->to_keepalive = timeout_add(xuser->set.keepalive_msecs,
					 xid_command_keepalive, wait);
	xid_client_keepalive(client, wait->gate ? XID_GATE_KEEPALIVE_LINE :
			     XID_KEEPALIVE_LINE);
}

static void xid_command_hangup(struct xid_command_wait *wait)
{
	client_destroy(wait->cmd->client, NULL);
}

static void xid_command_input(struct xid_command_wait *wait)
{
	struct client *client = wait->cmd->client;

	client->last_input = ioloop_time;
	timeout_reset(client->to_idle);

	switch (i_stream_read(client->input)) {
	case -1:
		client_destroy(client, NULL);
		break;
	case -2:
		/* The buffer is full of commands for later. Only the end of
		   the connection is of interest now. */
		io_remove(&client->io);
		client->io = io_add(client->fd_in, IO_ERROR,
				    xid_command_hangup, wait);
		break;
	default:
		break;
	}
}

static bool
xid_command_wait_begin(struct xid_command_wait *wait, struct xid_reach *reach)
{
	struct client_command_context *cmd = wait->cmd;
	struct client *client = cmd->client;
	struct xid_user *xuser = xid_user_get(client->user);
	struct mailbox *box;
	int msecs;

	wait->box = reach->box;
	box = reach->box != NULL ? reach->box : client->mailbox;
	msecs = timeval_diff_msecs(&wait->deadline, &ioloop_timeval);
	wait->event = xid_wait_event_begin(cmd->event, mailbox_get_vname(box),
					   reach->uid);
	wait->gate = reach->gate;
	wait->waiting = wait->gate ?
		xid_wait_gate_begin(xid_wait_mailbox_get(box), I_MAX(msecs, 1),
				    xid_command_wait_over, wait) :
		xid_wait_begin(xid_wait_mailbox_get(box), reach->uid,
			       I_MAX(msecs, 1), xid_command_wait_over, wait);
	if (xuser->set.keepalive_msecs > 0) {
		wait->to_keepalive = timeout_add(XID_KEEPALIVE_FIRST_MSECS,
			xid_command_keepalive, wait);
	}

	cmd->func = xid_command_waiting;
	cmd->context = wait;
	cmd->state = CLIENT_COMMAND_STATE_WAIT_INPUT;
	client->input_lock = cmd;
	io_remove(&client->io);
	client->io = io_add_istream(client->input, xid_command_input, wait);
	/* Commands before this one get their answers meanwhile. */
	o_stream_set_flush_pending(client->output, TRUE);
	return FALSE;
}

/* The wait is over: the command is as it was when it came. */
static void xid_command_restore(struct xid_command_wait *wait)
{
	struct client_command_context *cmd = wait->cmd;
	struct client *client = cmd->client;

	cmd->func = wait->command->wrapper;
	cmd->context = NULL;
	cmd->state = CLIENT_COMMAND_STATE_WAIT_INPUT;
	client->input_lock = NULL;
	/* the host adds its own when this callback ends */
	io_remove(&client->io);
}

static bool xid_command_waiting(struct client_command_context *cmd)
{
	struct xid_command_wait *wait = cmd->context;
	struct xid_uid_command *command = wait->command;
	struct xid_user *xuser;

	if (cmd->cancel) {
		xid_command_wait_stop(wait, "disconnected");
		return TRUE;
	}
	if (!wait->ready && !wait->timed_out)
		return FALSE;

	xid_command_wait_stop(wait, !wait->ready ? "timeout" :
			      (wait->gate ? "open" : "stable"));
	xid_command_restore(wait);
	if (wait->timed_out && wait->gate) {
		/* A gate is not worth a message: it was waited for. */
		xuser = xid_user_get(cmd->client->user);
		xuser->gates_ignored_until = ioloop_time +
			xuser->set.uid_wait_msecs / 1000 + 1;
	} else if (wait->timed_out) {
		client_send_tagline(cmd, XID_WAIT_TIMEOUT_REPLY);
		return TRUE;
	}
	return xid_command_run(cmd, command, wait);
}

/*
 * Running
 */

static command_func_t *
xid_command_func(struct client_command_context *cmd,
		 const struct xid_uid_command *command)
{
	return cmd->uid ? command->uid_func : command->plain_func;
}

static void xid_command_forget_args(struct client_command_context *cmd)
{
	/* the host's own reading of the arguments notes them again */
	cmd->args = NULL;
	cmd->human_args = NULL;
}

static bool xid_command_call(struct client_command_context *cmd,
			     struct xid_uid_command *command,
			     const struct imap_arg *args)
{
	command_func_t *func = xid_command_func(cmd, command);
	bool finished;

	if (command->prepare != NULL)
		command->prepare(cmd, args);
	xid_command_forget_args(cmd);
	finished = func(cmd);
	xid_leak_freeze((uint32_t)-1);
	return finished;
}

static struct xid_command_wait *
xid_command_wait_new(struct client_command_context *cmd,
		     struct xid_uid_command *command)
{
	struct xid_user *xuser = xid_user_get(cmd->client->user);
	struct xid_command_wait *wait;

	wait = p_new(cmd->pool, struct xid_command_wait, 1);
	wait->cmd = cmd;
	wait->command = command;
	wait->deadline = ioloop_timeval;
	timeval_add_msecs(&wait->deadline, xuser->set.uid_wait_msecs);
	return wait;
}

/* Nothing in the selected mailbox is, or ever was, above the watermark. */
static bool xid_command_all_stable(struct client *client)
{
	struct xid_wait_mailbox *wbox = xid_wait_mailbox_get(client->mailbox);

	return wbox == NULL ||
		mail_index_get_header(client->mailbox->view)->next_uid - 1 <=
		xid_wait_watermark(wbox);
}

/* Nothing that the command could do is to be waited for. */
static bool xid_command_passes(struct client_command_context *cmd,
			       const struct xid_uid_command *command)
{
	struct client *client = cmd->client;

	if (command->dest > 0 && xid_gates_may_be_closed(client))
		return FALSE;
	if ((command->uid_only && !cmd->uid) ||
	    (command->judge == NULL && command->prepare == NULL))
		return TRUE;
	return command->selected &&
		(client->mailbox == NULL || xid_command_all_stable(client));
}

static void xid_command_judge(struct client_command_context *cmd,
			      const struct xid_uid_command *command,
			      const struct imap_arg *args,
			      struct xid_reach *reach)
{
	i_zero(reach);
	if (command->judge != NULL && (cmd->uid || !command->uid_only) &&
	    (cmd->client->mailbox != NULL || !command->selected))
		command->judge(cmd, args, reach);
	if (reach->uid == 0 && command->dest > 0 &&
	    xid_gates_may_be_closed(cmd->client))
		xid_reach_gate(cmd, &args[command->dest-1], reach);
}

/* wait = the one that just ended, NULL if the command is new. */
static bool xid_command_run(struct client_command_context *cmd,
			    struct xid_uid_command *command,
			    struct xid_command_wait *wait)
{
	const struct imap_arg *args;
	struct xid_reach reach;

	if (xid_command_passes(cmd, command))
		return xid_command_func(cmd, command)(cmd);

	if (!client_read_args(cmd, command->arg_count, 0, &args))
		return FALSE;
	xid_command_judge(cmd, command, args, &reach);
	if (reach.uid == 0 && !reach.gate)
		return xid_command_call(cmd, command, args);

	/* More messages can have come into view while an earlier command
	   finished; the time for them is what is left. */
	if (wait == NULL)
		wait = xid_command_wait_new(cmd, command);
	wait->ready = wait->timed_out = FALSE;
	return xid_command_wait_begin(wait, &reach);
}

static bool xid_command_start(struct client_command_context *cmd,
			      struct xid_uid_command *command)
{
	struct xid_user *xuser;

	if (xid_wait_users == 0)
		return xid_command_func(cmd, command)(cmd);
	xuser = xid_wait_user_get(cmd->client->user);
	if (xuser == NULL)
		return xid_command_func(cmd, command)(cmd);
	if (!xuser->set.uids) {
		return xid_nouids_command(cmd, command->name,
					  command->arg_count,
					  xid_command_func(cmd, command));
	}
	return xid_command_run(cmd, command, NULL);
}

/*
 * The commands. The wrapper, not the host's function, is what another file
 * of the shim must call: command_find(name)->func.
 */

enum xid_command_idx {
	XID_APPEND,
	XID_FETCH,
	XID_STORE,
	XID_COPY,
	XID_MOVE,
	XID_EXPUNGE,
	XID_SEARCH,
	XID_SORT,
	XID_THREAD,
	XID_SELECT,
	XID_EXAMINE,
	XID_GENURLAUTH,
	XID_URLFETCH,
	XID_STATUS,
	XID_LIST,
	XID_ENABLE,
	XID_NOTIFY,
	XID_COMMAND_COUNT
};

static struct xid_uid_command xid_uid_commands[XID_COMMAND_COUNT];

#define XID_WRAPPER(idx) \
	static bool xid_wrapper_##idx(struct client_command_context *cmd) \
	{ \
		return xid_command_start(cmd, &xid_uid_commands[idx]); \
	}
XID_WRAPPER(XID_APPEND)
XID_WRAPPER(XID_FETCH)
XID_WRAPPER(XID_STORE)
XID_WRAPPER(XID_COPY)
XID_WRAPPER(XID_MOVE)
XID_WRAPPER(XID_EXPUNGE)
XID_WRAPPER(XID_SEARCH)
XID_WRAPPER(XID_SORT)
XID_WRAPPER(XID_THREAD)
XID_WRAPPER(XID_SELECT)
XID_WRAPPER(XID_EXAMINE)
XID_WRAPPER(XID_GENURLAUTH)
XID_WRAPPER(XID_URLFETCH)
XID_WRAPPER(XID_STATUS)
XID_WRAPPER(XID_LIST)
XID_WRAPPER(XID_ENABLE)
XID_WRAPPER(XID_NOTIFY)

#define XID_SELECTED(idx, name, judge, prepare) \
	[idx] = { name, xid_wrapper_##idx, judge, prepare, 0, 0, TRUE, FALSE, \
		  NULL, NULL, 0, 0 }
#define XID_UID_ONLY(idx, name, arg_count, dest) \
	[idx] = { name, xid_wrapper_##idx, xid_judge_uid_set, NULL, \
		  arg_count, dest, TRUE, TRUE, NULL, NULL, 0, 0 }
#define XID_SAVES(idx, name, judge, arg_count, dest) \
	[idx] = { name, xid_wrapper_##idx, judge, NULL, \
		  arg_count, dest, FALSE, FALSE, NULL, NULL, 0, 0 }
#define XID_ANY(idx, name, judge, prepare) \
	[idx] = { name, xid_wrapper_##idx, judge, prepare, 0, 0, FALSE, FALSE, \
		  NULL, NULL, 0, 0 }

static struct xid_uid_command xid_uid_commands[XID_COMMAND_COUNT] = {
	XID_SELECTED(XID_FETCH, "FETCH", xid_judge_fetch,
		     xid_fetch_clip_vanished),
	XID_UID_ONLY(XID_STORE, "STORE", 0, 0),
	XID_UID_ONLY(XID_COPY, "COPY", 2, 2),
	XID_UID_ONLY(XID_MOVE, "MOVE", 2, 2),
	XID_UID_ONLY(XID_EXPUNGE, "EXPUNGE", 1, 0),
	XID_SAVES(XID_APPEND, "APPEND", xid_judge_append, 1, 1),
	XID_SELECTED(XID_SEARCH, "SEARCH", xid_judge_search, NULL),
	XID_SELECTED(XID_SORT, "SORT", xid_judge_sort, NULL),
	XID_SELECTED(XID_THREAD, "THREAD", xid_judge_sort, NULL),
	XID_ANY(XID_SELECT, "SELECT", NULL, xid_select_prepare),
	XID_ANY(XID_EXAMINE, "EXAMINE", NULL, xid_select_prepare),
	XID_ANY(XID_GENURLAUTH, "GENURLAUTH", xid_judge_urls, NULL),
	XID_ANY(XID_URLFETCH, "URLFETCH", xid_judge_urls, NULL),
	/* these for nouids.c only */
	XID_ANY(XID_STATUS, "STATUS", NULL, NULL),
	XID_ANY(XID_LIST, "LIST", NULL, NULL),
	XID_ANY(XID_ENABLE, "ENABLE", NULL, NULL),
	XID_ANY(XID_NOTIFY, "NOTIFY", NULL, NULL),
};

static command_func_t *
xid_command_wrap(const char *name, command_func_t *wrapper,
		 enum command_flags *flags_r)
{
	struct command *host = command_find(name);
	command_func_t *func;

	if (host == NULL)
		return NULL;
	func = host->func;
	*flags_r = host->flags;
	name = host->name;
	command_unregister(name);
	command_register(name, wrapper, *flags_r);
	return func;
}

static void xid_command_unwrap(const char *name, command_func_t *func,
			       enum command_flags flags)
{
	struct command *host = command_find(name);

	if (func == NULL || host == NULL)
		return;
	name = host->name;
	command_unregister(name);
	command_register(name, func, flags);
}

void xid_wait_imap_init(void)
{
	unsigned int i;

	xid_wait_imap = TRUE;
	for (i = 0; i < XID_COMMAND_COUNT; i++) {
		struct xid_uid_command *command = &xid_uid_commands[i];

		command->plain_func = xid_command_wrap(command->name,
			command->wrapper, &command->plain_flags);
		T_BEGIN {
			command->uid_func = xid_command_wrap(
				t_strconcat("UID ", command->name, NULL),
				command->wrapper, &command->uid_flags);
		} T_END;
	}
	xid_leak_init();
}

void xid_wait_imap_deinit(void)
{
	unsigned int i;

	if (!xid_wait_imap)
		return;
	xid_leak_deinit();
	for (i = 0; i < XID_COMMAND_COUNT; i++) {
		struct xid_uid_command *command = &xid_uid_commands[i];

		xid_command_unwrap(command->name, command->plain_func,
				   command->plain_flags);
		T_BEGIN {
			xid_command_unwrap(
				t_strconcat("UID ", command->name, NULL),
				command->uid_func, command->uid_flags);
		} T_END;
	}
	xid_wait_imap = FALSE;
}
