#ifndef XID_IMAP_H
#define XID_IMAP_H

/* What the files of the imap process share.

   Who is who:
     imap.c          sessions, hooks around commands, registration
     fetch.c         the FETCH item XID
     search.c        the search key XID (in every process)
     commands.c      XHXID: which form it is; FETCH, STORE, COPY, MOVE, EXPUNGE
     xhxid-args.c    its arguments, which may be long
     xhxid.c         XHXID with a known state
     xhxid-search.c  XHXID SEARCH and SORT
     xhxid-thread.c  XHXID THREAD
     xhxid-sync.c    XIDs in the changes that XHXID commands report */

#include "xid-plugin.h"
#include "xid-search.h"
#include "imap-common.h"
#include "imap-commands.h"
#include "imap-fetch.h"
#include "imap-search.h"
#include "imap-search-args.h"
#include "imap-sync-private.h"
#include "imap-expunge.h"
#include "imap-feature.h"

/* The host's functions that only the imap binary has: the same file is loaded
   by lmtp and others, where they must not be missed. */
#undef imap_fetch_add_handler
#pragma weak client_add_capability
#pragma weak client_args_finished
#pragma weak client_get_keyword_names
#pragma weak client_handle_search_save_ambiguity
#pragma weak client_has_enabled
#pragma weak client_send_box_error
#pragma weak client_send_command_error
#pragma weak client_send_internal_error
#pragma weak client_send_line
#pragma weak client_send_line_next
#pragma weak client_send_tagline
#pragma weak client_send_untagged_storage_error
#pragma weak client_verify_open_mailbox
#pragma weak client_disconnect
#pragma weak client_enable
#pragma weak cmd_copy
#pragma weak cmd_fetch
#pragma weak cmd_move
#pragma weak cmd_search_parse_return_if_found
#pragma weak cmd_store
#pragma weak cmd_sync
#pragma weak command_find
#pragma weak command_hook_register
#pragma weak command_hook_unregister
#pragma weak command_register
#pragma weak command_unregister
#pragma weak imap_client_command_get_reason
#pragma weak imap_client_created_hook_set
#pragma weak imap_clients
#pragma weak imap_expunge
#pragma weak imap_feature_condstore
#pragma weak imap_feature_qresync
#pragma weak imap_fetch_add_handler
#pragma weak imap_fetch_alloc
#pragma weak imap_fetch_begin
#pragma weak imap_fetch_end
#pragma weak imap_fetch_free
#pragma weak imap_fetch_handler_unregister
#pragma weak imap_fetch_handlers_register
#pragma weak imap_fetch_init_handler
#pragma weak imap_fetch_more
#pragma weak imap_module_register
#pragma weak imap_search_args_build
#pragma weak imap_search_context_free
#pragma weak imap_sync_deinit
#pragma weak imap_sync_init
#pragma weak imap_sync_is_allowed
#pragma weak imap_sync_more

/* A command that this plug-in has a part in. Allocated from cmd->pool. */
struct xid_command {
	union imap_module_context module_ctx;

	/* what cmd_sync() was to do, when something is sent before it */
	enum mailbox_sync_flags sync_flags;
	enum imap_sync_flags imap_sync_flags;
	const char *tagline;

	/* the bare search key XID: UIDs of the matches */
	ARRAY_TYPE(seq_range) matches;

	/* xhxid-args.c: arguments are being read, by our own parser, and
	   were noted for the log */
	bool reading:1;
	bool has_parser:1;
	bool args_noted:1;
	/* XHXID with another command behind it */
	bool prefix:1;
	/* XHXID with a state: its own sync is running */
	bool syncing:1;
	/* the bare search key XID was given */
	bool want_matches:1;
	/* the search that it belongs to has begun */
	bool matching:1;
	/* cmd->sync was seen and adjusted */
	bool sync_seen:1;
};

/* Also set in imap_client_sync_context.imap_flags, beside the host's own:
   untagged FETCHes of this sync carry XIDs. */
#define XID_IMAP_SYNC_FLAG_SEND_XID 0x4000

/* The command's context, made if it is the first use. */
struct xid_command *xid_command_get(struct client_command_context *cmd);
/* The same, NULL if there is none. */
struct xid_command *xid_command_find(struct client_command_context *cmd);

/* Room for what a client sent in a text that goes back to it. */
#define XID_ERROR_TEXT_MAX 300

/* BAD, with the C ABI's last error behind what. */
void xid_send_bad(struct client_command_context *cmd, const char *what);

/* fetch.c */
void xid_fetch_init(void);
void xid_fetch_deinit(void);
/* Begin `FETCH <uids> ([UID] XID)`, as a part of cmd. Continue it with
   imap_fetch_more(). */
struct imap_fetch_context *
xid_fetch_matches_begin(struct client_command_context *cmd,
			const ARRAY_TYPE(seq_range) *uids);

/* commands.c */
bool cmd_xhxid(struct client_command_context *cmd);
/* The command reached its sync: what XHXID differs in there. */
void xhxid_adjust_sync(struct client_command_context *cmd);

/* xhxid-args.c */
/* Read all arguments. Returns FALSE if there are more to come, or after
   BAD. */
bool xhxid_read_args(struct client_command_context *cmd,
		     const struct imap_arg **args_r);
/* Are they few, and shallow, as all but a state must be? What the host does
   with them is recursive. */
bool xhxid_args_are_few(const struct imap_arg *args);
#define XHXID_ARGS_MANY \
	"Too many arguments, or lists too deep in lists: " \
	"expected one set of XIDs and few others"
/* The arguments are not needed any more: they are gone after this. */
void xhxid_args_done(struct client_command_context *cmd);
/* A command is about to be executed: not with the parser of XHXID. */
void xhxid_args_check_parser(struct client_command_context *cmd);
void xhxid_args_client_created(struct client *client);

/* xhxid.c */
bool cmd_xhxid_state(struct client_command_context *cmd,
		     struct xid_mailbox *xbox, const struct imap_arg *args);

/* xhxid-search.c; args are behind the prefix command's name */
bool cmd_xhxid_search(struct client_command_context *cmd,
		      struct xid_mailbox *xbox, const struct imap_arg *args);
bool cmd_xhxid_sort(struct client_command_context *cmd,
		    struct xid_mailbox *xbox, const struct imap_arg *args);

/* xhxid-thread.c */
bool cmd_xhxid_thread(struct client_command_context *cmd,
		      struct xid_mailbox *xbox, const struct imap_arg *args);

/* xhxid-sync.c */
void xhxid_mailbox_hook(struct xid_mailbox *xbox, struct mailbox_vfuncs *v);

#endif
