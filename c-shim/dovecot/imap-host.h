#ifndef XID_IMAP_HOST_H
#define XID_IMAP_HOST_H

/* What the imap binary exports. In every other process these are not there:
   weak, and never called unless xid_wait_imap. */

#include "imap-common.h"
#include "imap-commands.h"
#include "imap-fetch.h"
#include "imap-notify.h"
#include "imap-sync-private.h"
#include "imap-search-args.h"

#undef imap_fetch_add_handler

#pragma weak client_add_missing_io
#pragma weak client_destroy
#pragma weak client_disconnect_with_error
#pragma weak client_find_namespace_full
#pragma weak client_has_enabled
#pragma weak client_read_args
#pragma weak client_send_command_error
#pragma weak client_send_line
#pragma weak client_send_tagline
#pragma weak command_find
#pragma weak command_register
#pragma weak command_unregister
#pragma weak imap_client_created_hook_set
#pragma weak imap_client_notify_newmails
#pragma weak imap_clients
#pragma weak imap_feature_qresync
#pragma weak imap_fetch_add_handler
#pragma weak imap_fetch_free
#pragma weak imap_fetch_handler_lookup
#pragma weak imap_fetch_handler_unregister
#pragma weak imap_fetch_handlers_register
#pragma weak imap_module_register

#endif
