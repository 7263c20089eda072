/* APPENDUID and COPYUID a little later (xid_appenduid_grace).

   The tagged OK of an APPEND or COPY whose UIDs are not stable is held back
   until they are, or until the time is over: then it goes out without them.
   The command itself is over; nobody but the client that asked for it waits.
   MOVE names its UIDs before it expunges, so it gets no grace. */
#include "wait.h"
#include "imap-host.h"
#include "cmd-wait.h"
#include "ioloop.h"
#include "llist.h"
#include "ostream.h"
#include "str.h"
#include "imap-seqset.h"

/* Saves whose tagged line has not come yet; a client that pipelines has a few.
   The oldest are forgotten: their lines go out without UIDs. */
#define XID_GRACE_SAVED_MAX 16
/* Another command is in the middle of its answer. */
#define XID_GRACE_RETRY_MSECS 20

#define XID_GRACE_KEEPALIVE \
	"* OK Waiting until the UIDs of what was saved are agreed."

/* What a transaction saved. */
struct xid_grace_saved {
	struct mailbox_list *list;
	const char *vname;
	uint32_t uid_validity, last_uid;
};

enum xid_grace_result {
	XID_GRACE_TIMED_OUT,
	XID_GRACE_STABLE,
	/* the watermark has come, but the messages have gone from their UIDs */
	XID_GRACE_RENUMBERED,
};

static const char *const xid_grace_results[] = {
	"timeout", "stable", "renumbered"
};

struct xid_grace_line {
	struct xid_grace_line *prev, *next;
	struct xid_grace_client *gclient;
	/* the mailbox that is watched, with a handle of our own */
	struct mailbox *box;
	struct xid_waiting *waiting;
	struct timeout *to_keepalive, *to_send;
	struct event *event;
	/* as it would have been sent */
	char *line;
	/* where the code begins in it */
	size_t code_pos;
	enum xid_grace_result result;
};

struct xid_grace_client {
	union imap_module_context module_ctx;
	struct client *client;
	ARRAY(struct xid_grace_saved) saved;
	struct xid_grace_line *lines;
};

static MODULE_CONTEXT_DEFINE_INIT(xid_grace_client_module,
				  &imap_module_register);
#define XID_GRACE_CLIENT(client) \
	MODULE_CONTEXT(client, xid_grace_client_module)

/*
 * What was saved
 */

static struct xid_grace_client *xid_grace_client_of(const struct mail_user *user)
{
	struct client *client;

	for (client = imap_clients; client != NULL; client = client->next) {
		if (client->user == user)
			return XID_GRACE_CLIENT(client);
	}
	return NULL;
}

bool xid_grace_begin(struct mailbox *box, uint32_t uid_validity,
		     uint32_t last_uid)
{
	struct xid_grace_client *gclient =
		xid_grace_client_of(box->storage->user);
	struct xid_grace_saved *saved;

	if (gclient == NULL)
		return FALSE;
	if (array_count(&gclient->saved) == XID_GRACE_SAVED_MAX)
		array_pop_front(&gclient->saved);
	saved = array_append_space(&gclient->saved);
	saved->list = box->list;
	saved->vname = p_strdup(gclient->client->pool, mailbox_get_vname(box));
	saved->uid_validity = uid_validity;
	saved->last_uid = last_uid;
	return TRUE;
}

/* The UIDs that the line names: those of the messages that were saved are
   named last. Returns FALSE if it names none. */
static bool
xid_grace_parse(const char *data, uint32_t *uid_validity_r,
		ARRAY_TYPE(seq_range) *uids)
{
	const char *const *words;
	const char *end;
	unsigned int count;

	if (!str_begins(data, "OK [APPENDUID ") &&
	    !str_begins(data, "OK [COPYUID "))
		return FALSE;
	end = strchr(data, ']');
	if (end == NULL)
		return FALSE;
	words = t_strsplit(t_strdup_until(data, end), " ");
	count = str_array_length(words);
	return count >= 4 && str_to_uint32(words[2], uid_validity_r) == 0 &&
		imap_seq_set_parse(words[count-1], uids) == 0 &&
		array_count(uids) > 0;
}

/* The save whose UIDs the line names. */
static bool xid_grace_take(struct xid_grace_client *gclient, const char *data,
			   struct xid_grace_saved *saved_r)
{
	const struct xid_grace_saved *saved;
	const struct seq_range *last;
	ARRAY_TYPE(seq_range) uids;
	uint32_t uid_validity;

	if (array_count(&gclient->saved) == 0)
		return FALSE;
	t_array_init(&uids, 8);
	if (!xid_grace_parse(data, &uid_validity, &uids))
		return FALSE;
	last = array_back(&uids);
	array_foreach(&gclient->saved, saved) {
		if (saved->uid_validity != uid_validity ||
		    saved->last_uid != last->seq2)
			continue;
		*saved_r = *saved;
		array_delete(&gclient->saved,
			     array_foreach_idx(&gclient->saved, saved), 1);
		return TRUE;
	}
	return FALSE;
}

/*
 * Held lines
 */

static void xid_grace_line_free(struct xid_grace_line *line, const char *result)
{
	DLLIST_REMOVE(&line->gclient->lines, line);
	xid_wait_end(&line->waiting);
	timeout_remove(&line->to_keepalive);
	timeout_remove(&line->to_send);
	xid_wait_event_end(&line->event, "appenduid", result);
	mailbox_free(&line->box);
	i_free(line->line);
	i_free(line);
}

/* The line without its code. */
static void xid_grace_line_cut(struct xid_grace_line *line)
{
	char *code = line->line + line->code_pos;
	char *rest = strstr(code, "] ");

	if (rest != NULL)
		memmove(code, rest + 2, strlen(rest + 2) + 1);
}

static void xid_grace_line_write(struct xid_grace_line *line)
{
	struct client *client = line->gclient->client;

	if (line->result != XID_GRACE_STABLE)
		xid_grace_line_cut(line);
	o_stream_nsend_str(client->output, line->line);
	client->last_output = ioloop_time;
	xid_grace_line_free(line, xid_grace_results[line->result]);
}

static void xid_grace_line_send(struct xid_grace_line *line)
{
	struct client *client = line->gclient->client;

	timeout_remove(&line->to_send);
	if (client->output_cmd_lock != NULL) {
		line->to_send = timeout_add_short(XID_GRACE_RETRY_MSECS,
						  xid_grace_line_send, line);
		return;
	}
	o_stream_cork(client->output);
	xid_grace_line_write(line);
	o_stream_uncork(client->output);
	xid_client_check_output(client);
}

/* Are the messages still where the line says? */
static bool xid_grace_line_holds(const struct xid_grace_line *line)
{
	ARRAY_TYPE(seq_range) uids;
	uint32_t uid_validity;

	t_array_init(&uids, 8);
	return xid_grace_parse(line->line + line->code_pos - strlen("OK "),
			       &uid_validity, &uids) &&
		xid_wait_has_uids(line->box, &uids);
}

static void xid_grace_over(enum xid_wait_result result, void *context)
{
	struct xid_grace_line *line = context;

	line->waiting = NULL;
	if (result == XID_WAIT_STABLE) T_BEGIN {
		line->result = xid_grace_line_holds(line) ?
			XID_GRACE_STABLE : XID_GRACE_RENUMBERED;
	} T_END;
	timeout_remove(&line->to_keepalive);
	/* Whoever wakes us may be in the middle of waking others, and the client
	   may go away when it is written to. */
	line->to_send = timeout_add_short(0, xid_grace_line_send, line);
}

static void xid_grace_keepalive(struct xid_grace_line *line)
{
	struct client *client = line->gclient->client;
	struct xid_user *xuser = xid_user_get(client->user);

	if (xid_wait_look(line->waiting))
		return;
	timeout_remove(&line->to_keepalive);
	line->to_keepalive = timeout_add(xuser->set.keepalive_msecs,
					 xid_grace_keepalive, line);
	xid_client_keepalive(client, XID_GRACE_KEEPALIVE);
}

/* The tagged line as the host would send it, from the heap. */
static char *xid_grace_catch(struct client_command_context *cmd,
			     struct xid_grace_client *gclient, const char *data)
{
	struct client *client = cmd->client;
	struct ostream *output = client->output;
	buffer_t *said = t_buffer_create(256);

	client->output = o_stream_create_buffer(said);
	o_stream_set_no_error_handling(client->output, TRUE);
	gclient->module_ctx.super.send_tagline(cmd, data);
	o_stream_destroy(&client->output);
	client->output = output;
	return i_strdup(str_c(said));
}

/* Returns NULL if there is nothing to wait for. */
static struct xid_wait_mailbox *
xid_grace_open(const struct xid_grace_saved *saved, struct mailbox **box_r)
{
	struct xid_wait_mailbox *wbox;

	*box_r = mailbox_alloc(saved->list, saved->vname,
			       MAILBOX_FLAG_READONLY);
	if (mailbox_open(*box_r) == 0 &&
	    (wbox = xid_wait_mailbox_get(*box_r)) != NULL &&
	    xid_wait_watermark(wbox) < saved->last_uid)
		return wbox;
	mailbox_free(box_r);
	return NULL;
}

static void
xid_grace_hold(struct client_command_context *cmd, const char *data,
	       const struct xid_grace_saved *saved,
	       struct xid_wait_mailbox *wbox)
{
	struct xid_grace_client *gclient = XID_GRACE_CLIENT(cmd->client);
	struct xid_settings *set = &wbox->xbox->xuser->set;
	struct xid_grace_line *line;

	line = i_new(struct xid_grace_line, 1);
	line->gclient = gclient;
	line->box = wbox->xbox->box;
	line->line = xid_grace_catch(cmd, gclient, data);
	/* after the tag, which the host may have replaced by "*" */
	line->code_pos = strcspn(line->line, " ") + strlen(" OK ");
	line->event = xid_wait_event_begin(cmd->event, saved->vname,
					   saved->last_uid);
	DLLIST_PREPEND(&gclient->lines, line);
	line->waiting = xid_wait_begin(wbox, saved->last_uid,
				       set->appenduid_grace_msecs,
				       xid_grace_over, line);
	if (set->keepalive_msecs > 0) {
		line->to_keepalive = timeout_add(XID_KEEPALIVE_FIRST_MSECS,
						 xid_grace_keepalive, line);
	}
}

/* Everything that is held goes out now, without UIDs. */
static void xid_grace_flush(struct xid_grace_client *gclient)
{
	while (gclient->lines != NULL)
		xid_grace_line_write(gclient->lines);
}

/*
 * Clients
 */

static void
xid_grace_send_tagline(struct client_command_context *cmd, const char *data)
{
	struct xid_grace_client *gclient = XID_GRACE_CLIENT(cmd->client);
	struct xid_wait_mailbox *wbox;
	struct xid_grace_saved saved;
	struct mailbox *box;

	/* nothing comes after the answer to LOGOUT */
	if (cmd->name != NULL && strcmp(cmd->name, "LOGOUT") == 0)
		xid_grace_flush(gclient);
	if (cmd->cancel || cmd->client->output->closed ||
	    !xid_grace_take(gclient, data, &saved) ||
	    (wbox = xid_grace_open(&saved, &box)) == NULL)
		gclient->module_ctx.super.send_tagline(cmd, data);
	else
		xid_grace_hold(cmd, data, &saved, wbox);
}

static int xid_grace_state_export(struct client *client, bool internal,
				  buffer_t *dest, const char **error_r)
{
	struct xid_grace_client *gclient = XID_GRACE_CLIENT(client);

	if (gclient->lines != NULL) {
		*error_r = "UIDs of what was saved are not agreed yet";
		return 0;
	}
	return gclient->module_ctx.super.state_export(client, internal,
						      dest, error_r);
}

static void xid_grace_client_destroy(struct client *client, const char *reason)
{
	struct xid_grace_client *gclient = XID_GRACE_CLIENT(client);

	while (gclient->lines != NULL)
		xid_grace_line_free(gclient->lines, "disconnected");
	gclient->module_ctx.super.destroy(client, reason);
}

void xid_grace_client_created(struct client *client, struct xid_user *xuser)
{
	struct xid_grace_client *gclient;

	if (xuser->set.appenduid_grace_msecs == 0)
		return;
	gclient = p_new(client->pool, struct xid_grace_client, 1);
	gclient->client = client;
	p_array_init(&gclient->saved, client->pool, XID_GRACE_SAVED_MAX);
	gclient->module_ctx.super = client->v;
	client->v.send_tagline = xid_grace_send_tagline;
	client->v.state_export = xid_grace_state_export;
	client->v.destroy = xid_grace_client_destroy;
	MODULE_CONTEXT_SET(client, xid_grace_client_module, gclient);
}
