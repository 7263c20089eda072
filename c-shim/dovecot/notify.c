/* NOTIFY of mailboxes that are not selected (RFC 5465). The host tells a new
   message with a STATUS, whose UIDNEXT stays behind while the message's UID is
   not stable. When it is, the client gets a second STATUS. */
#include "wait.h"
#include "imap-host.h"
#include "cmd-wait.h"
#include "imap-status.h"
#include "ioloop.h"
#include "llist.h"
#include "ostream.h"

#pragma weak imap_feature_condstore
#pragma weak imap_notify_match_mailbox
#pragma weak imap_status_get_result
#pragma weak imap_status_send

/* Mailboxes watched for one client, each with a handle of its own. Of more
   than these it hears at their next change. */
#define XID_NOTIFY_WATCHED_MAX 64
/* Another command is in the middle of its answer. */
#define XID_NOTIFY_RETRY_MSECS 20

struct xid_notify_watch {
	struct xid_notify_watch *prev, *next;
	struct xid_notify_client *nclient;
	struct mailbox_list *list;
	char *vname;
	uint32_t uid;
	/* NULL = to be opened from the event loop */
	struct mailbox *box;
	struct xid_waiting *waiting;
	struct timeout *to;
};

struct xid_notify_client {
	union imap_module_context module_ctx;
	struct client *client;
	struct xid_notify_watch *watches;
	unsigned int count;
};

static MODULE_CONTEXT_DEFINE_INIT(xid_notify_client_module,
				  &imap_module_register);
#define XID_NOTIFY_CLIENT(client) \
	MODULE_CONTEXT(client, xid_notify_client_module)

/*
 * What the client wants to hear of
 */

static bool xid_notify_ns_wants(struct imap_notify_namespace *notify_ns,
				const char *vname)
{
	const struct imap_notify_mailboxes *boxes;

	array_foreach(&notify_ns->mailboxes, boxes) {
		if ((boxes->events & IMAP_NOTIFY_EVENT_MESSAGE_NEW) != 0 &&
		    imap_notify_match_mailbox(notify_ns, boxes, vname))
			return TRUE;
	}
	return FALSE;
}

/* Of the selected mailbox it hears by other means. */
static bool xid_notify_wants(struct client *client, struct mailbox_list *list,
			     const char *vname)
{
	struct imap_notify_namespace *notify_ns;

	if (client->notify_ctx == NULL || client->disconnected ||
	    (client->mailbox != NULL && client->mailbox->list == list &&
	     strcmp(mailbox_get_vname(client->mailbox), vname) == 0))
		return FALSE;
	array_foreach_modifiable(&client->notify_ctx->namespaces, notify_ns) {
		if (notify_ns->ns->list == list &&
		    xid_notify_ns_wants(notify_ns, vname))
			return TRUE;
	}
	return FALSE;
}

/* NOTIFY tells the mailboxes' state before it is known what is asked for: that
   is looked at when there is something to tell. */
static bool xid_notify_is_beginning(struct client *client)
{
	const struct client_command_context *cmd;

	for (cmd = client->command_queue; cmd != NULL; cmd = cmd->next) {
		if (cmd->name != NULL && strcmp(cmd->name, "NOTIFY") == 0)
			return TRUE;
	}
	return FALSE;
}

/*
 * Watching
 */

static void xid_notify_watch_free(struct xid_notify_watch *watch)
{
	DLLIST_REMOVE(&watch->nclient->watches, watch);
	watch->nclient->count--;
	xid_wait_end(&watch->waiting);
	timeout_remove(&watch->to);
	if (watch->box != NULL)
		mailbox_free(&watch->box);
	i_free(watch->vname);
	i_free(watch);
}

static void xid_notify_status(struct client *client, struct mailbox_list *list,
			      const char *vname)
{
	struct imap_status_items items;
	struct imap_status_result result;
	struct mailbox *box;

	i_zero(&items);
	items.flags = IMAP_STATUS_ITEM_UIDNEXT | IMAP_STATUS_ITEM_MESSAGES |
		IMAP_STATUS_ITEM_UNSEEN;
	if (client_has_enabled(client, imap_feature_condstore))
		items.flags |= IMAP_STATUS_ITEM_HIGHESTMODSEQ;

	box = mailbox_alloc(list, vname, 0);
	/* a mailbox that is gone is told of by the host */
	if (imap_status_get_result(client, box, &items, &result) == 0)
		(void)imap_status_send(client, vname, &items, &result);
	mailbox_free(&box);
}

static void xid_notify_tell(struct xid_notify_watch *watch)
{
	struct client *client = watch->nclient->client;
	struct mailbox_list *list = watch->list;
	const char *vname;

	timeout_remove(&watch->to);
	if (client->output_cmd_lock != NULL || client->syncing) {
		watch->to = timeout_add_short(XID_NOTIFY_RETRY_MSECS,
					      xid_notify_tell, watch);
		return;
	}
	/* what is not stable by now is watched anew */
	vname = t_strdup(watch->vname);
	xid_notify_watch_free(watch);
	if (!xid_notify_wants(client, list, vname))
		return;
	o_stream_cork(client->output);
	xid_notify_status(client, list, vname);
	o_stream_uncork(client->output);
	xid_client_check_output(client);
}

static void xid_notify_stable(enum xid_wait_result result ATTR_UNUSED,
			      void *context)
{
	struct xid_notify_watch *watch = context;

	watch->waiting = NULL;
	xid_notify_tell(watch);
}

static void xid_notify_watch_begin(struct xid_notify_watch *watch)
{
	struct xid_wait_mailbox *wbox;

	timeout_remove(&watch->to);
	watch->box = mailbox_alloc(watch->list, watch->vname,
				   MAILBOX_FLAG_READONLY);
	if (mailbox_open(watch->box) < 0 ||
	    (wbox = xid_wait_mailbox_get(watch->box)) == NULL) {
		xid_notify_watch_free(watch);
		return;
	}
	watch->waiting = xid_wait_begin(wbox, watch->uid, 0,
					xid_notify_stable, watch);
}

static struct xid_notify_watch *
xid_notify_watch_find(struct xid_notify_client *nclient,
		      struct mailbox_list *list, const char *vname)
{
	struct xid_notify_watch *watch;

	for (watch = nclient->watches; watch != NULL; watch = watch->next) {
		if (watch->list == list && strcmp(watch->vname, vname) == 0)
			return watch;
	}
	return NULL;
}

static struct client *xid_notify_client_of(const struct mail_user *user)
{
	struct client *client;

	for (client = imap_clients; client != NULL; client = client->next) {
		if (client->user == user)
			return client;
	}
	return NULL;
}

void xid_notify_uidnext_clipped(struct mailbox *box, uint32_t last_uid)
{
	struct client *client = xid_notify_client_of(box->storage->user);
	struct xid_notify_client *nclient =
		client == NULL ? NULL : XID_NOTIFY_CLIENT(client);
	const char *vname = mailbox_get_vname(box);
	struct xid_notify_watch *watch;

	if (nclient == NULL ||
	    (!xid_notify_is_beginning(client) &&
	     !xid_notify_wants(client, box->list, vname)) ||
	    xid_notify_watch_find(nclient, box->list, vname) != NULL ||
	    nclient->count == XID_NOTIFY_WATCHED_MAX)
		return;
	watch = i_new(struct xid_notify_watch, 1);
	watch->nclient = nclient;
	watch->list = box->list;
	watch->vname = i_strdup(vname);
	watch->uid = last_uid;
	DLLIST_PREPEND(&nclient->watches, watch);
	nclient->count++;
	/* the host is in the middle of its answer */
	watch->to = timeout_add_short(0, xid_notify_watch_begin, watch);
}

/*
 * Clients
 */

static void xid_notify_client_destroy(struct client *client, const char *reason)
{
	struct xid_notify_client *nclient = XID_NOTIFY_CLIENT(client);

	while (nclient->watches != NULL)
		xid_notify_watch_free(nclient->watches);
	nclient->module_ctx.super.destroy(client, reason);
}

void xid_notify_client_created(struct client *client)
{
	struct xid_notify_client *nclient;

	nclient = p_new(client->pool, struct xid_notify_client, 1);
	nclient->client = client;
	nclient->module_ctx.super = client->v;
	client->v.destroy = xid_notify_client_destroy;
	MODULE_CONTEXT_SET(client, xid_notify_client_module, nclient);
}
