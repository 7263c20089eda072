#ifndef XID_CMD_WAIT_H
#define XID_CMD_WAIT_H

#include "imap-commands.h"

struct client;

/* Is there a UID key among the keys of SEARCH, or of SORT or THREAD (sort)? */
bool xid_search_has_uid_key(const struct imap_arg *args, bool sort);

/* nouids.c: a command of a user who has no UIDs. func is the host's, which
   reads so many arguments. */
bool xid_nouids_command(struct client_command_context *cmd, const char *name,
			unsigned int arg_count, command_func_t *func);
/* Do not offer him what needs UIDs. */
void xid_nouids_client(struct client *client);

#endif
