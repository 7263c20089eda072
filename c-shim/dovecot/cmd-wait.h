#ifndef XID_CMD_WAIT_H
#define XID_CMD_WAIT_H

#include "imap-commands.h"

struct client;
struct xid_user;

/* A client that hears nothing for this long begins to worry. */
#define XID_KEEPALIVE_FIRST_MSECS 1000

/* Send a line that says that the server is alive, where that is possible. Like
   the next one it may destroy the client. */
void xid_client_keepalive(struct client *client, const char *line);
/* The client is destroyed if it cannot be written to any more. */
void xid_client_check_output(struct client *client);

/* grace.c: a client was made whose user may have a grace. */
void xid_grace_client_created(struct client *client, struct xid_user *xuser);

/* Is there a UID key among the keys of SEARCH, or of SORT or THREAD (sort)? */
bool xid_search_has_uid_key(const struct imap_arg *args, bool sort);

/* notify.c: the same for a user whose UIDs may wait. */
void xid_notify_client_created(struct client *client);

/* nouids.c: a command of a user who has no UIDs. func is the host's, which
   reads so many arguments. */
bool xid_nouids_command(struct client_command_context *cmd, const char *name,
			unsigned int arg_count, command_func_t *func);
/* Do not offer him what needs UIDs. */
void xid_nouids_client(struct client *client);

#endif
