#ifndef XID_PLUGIN_H
#define XID_PLUGIN_H

/* What the files of the shim share.

   Who is who:
     plugin.c    the plug-in's life; which users and mailboxes have XIDs
     settings.c  plugin { xid_* }
     record.c    the XID as the mailbox index holds it
     storage.c   every message that is saved gets its XID
     recover.c   messages that have none yet get theirs
     register.c  what the registry is told
     adopt.c     XIDs that come from elsewhere
     moving.c    what moves within a mailbox, in case of a crash
     strays.c    files that a killed process left under a UID to come
     find.c      XID -> message, and what a client's state lacks
     guids.c     GUIDs of many messages, without a look at their files
     doveadm.c   doveadm xid ... (xid-doveadm.h)
     cluster.h   what there is only where a cluster daemon says the UIDs
   The imap process adds its commands (xid-imap.h). UIDs that wait, and the
   mode without UIDs, have their own header and files (wait.h).

   compat.h has the differences between host versions; no other file tests
   for them. */

#include "compat.h"
#include "xid-record.h"
#include "array.h"
#include "seq-range-array.h"
#include "module-context.h"
#include "mail-user.h"
#include "mail-storage-private.h"
#include "guid.h"
#include "imap_xid.h"

struct module;
struct mail_index_view;

/* The stage (doveadm-stage.c), in the root folder of a namespace. */
#define XID_STAGE_FOLDER "xid.stage"

/*
 * Settings
 */

enum xid_uid_source {
	/* the numbers are those of imap_xid_root_options.uid_source */
	XID_UID_SOURCE_LOCAL = 0,
	XID_UID_SOURCE_TABLE = 1,
	XID_UID_SOURCE_CLUSTER = 2,
};

struct xid_settings {
	/* this node's namespace; never empty */
	const char *namespace;
	enum xid_uid_source uid_source;
	unsigned int uid_wait_msecs;
	/* 0 = no keepalive */
	unsigned int keepalive_msecs;
	unsigned int delivery_wait_msecs;
	unsigned int appenduid_grace_msecs;
	/* FALSE = the server has no UIDs at all (xid_uids = no) */
	bool uids;
	/* NULL = none */
	const char *capability;
	/* NULL = the index root of each namespace's mailboxes */
	const char *dir;
};

/* Fill in the user's settings, allocated from the pool. Returns FALSE with
   an error that names the setting, its value and what is expected. */
bool xid_settings_read(struct mail_user *user, pool_t pool,
		       struct xid_settings *set_r, const char **error_r);

/*
 * Users, mail roots, mailboxes
 */

/* One folder with table, journal and registry: where the mailboxes of one
   mailbox list have their indexes. Opened at the first save or look-up. */
struct xid_root {
	struct xid_root *next;
	const char *dir;
	/* NULL = not opened yet, or it could not be opened */
	imap_xid_root *core;
	/* When opening failed; tried again after XID_ROOT_RETRY_SECS. */
	time_t failed_at;
	/* events.c: where this node's numbers begin was looked at */
	bool numbers_begun;
};

/* twins.c: a mailbox of another node. */
struct xid_twin {
	guid_128_t guid;
	uint32_t uid_validity;
};

struct xid_user {
	union mail_user_module_context module_ctx;
	struct mail_user *user;
	struct xid_settings set;
	struct xid_root *roots;
	/* doveadm-stage.c: the namespace of the stage, and whose it is; NULL =
	   not made in this process */
	struct mail_namespace *stage, *stage_of;
	/* wait.c: the user's deinit below ours */
	void (*wait_deinit)(struct mail_user *user);
	/* cmd-wait.c: a gate was waited for in vain; until then commits find
	   no gate closed. */
	time_t gates_ignored_until;
	/* twins.c: what replication would have made last, where there was
	   another mailbox of that name; uid_validity 0 = none */
	struct xid_twin twin;
	/* wait.c: what tells of UIDs that wait, and in which mailbox; NULL =
	   nothing yet */
	struct event *pending_event;
	char *pending_mailbox;
	/* events.c: in which mailbox UIDs were found to wait last, and when
	   (milliseconds) */
	guid_128_t reminded_of;
	int64_t reminded_at;
	/* A mailbox without an index on disk was seen, and logged. */
	bool memory_logged:1;
	/* Acts for the cluster daemon (doveadm xid): commits pass the gate and
	   the limit, which are there to make room for them. */
	bool acts_for_cluster:1;
	/* Answers another node's question which XIDs messages have. */
	bool asks_nobody:1;
	/* tree.c: a mailbox is made, or INBOX is opened, under the lock for
	   that; INBOX was opened, so it is there. */
	bool making_locked:1;
	bool inbox_opened:1;
	/* storage.c: a mailbox is renamed; this process holds the locks in it */
	bool renaming:1;
	/* The user goes away: nothing is kept to be told later. */
	bool ending:1;
};

struct xid_mailbox {
	/* module_ctx.super is what the mailbox did before the plug-in. All
	   files of the shim share it, so each vfunc has one file that
	   overrides it (see xid_mailbox_hook_t). */
	union mailbox_module_context module_ctx;
	struct mailbox *box;
	struct xid_user *xuser;
	struct xid_root *root;

	/* The host's private state per mailbox; where this box's own file
	   keeps what it needs. Allocated from box->pool. */
	struct xid_imap_mailbox *imap;
	struct xid_wait_mailbox *wait;

	/* index extension; valid once the index was opened (xid_mailbox_ready()) */
	uint32_t ext_id;
	/* NULL until the registry or the table is needed */
	imap_xid_box *core;
	uint32_t core_uid_validity;
	/* the mailbox's GUID, of core */
	guid_128_t guid;
	/* tree.c: the GUID that replication was told first; empty = none */
	guid_128_t told_guid;
	/* When xid_mailbox_repair() last failed. */
	time_t repair_failed_at;
	/* When the cluster daemon last could not say which XIDs messages
	   have; 0 = never. */
	time_t unanswered_at;
	/* Expunged in the sync that is going on; not created = none. */
	ARRAY(uint32_t) expunged;
	/* Up to this UID the registry was seen to know the messages. */
	uint32_t registered_uid;

	bool ready:1;
	/* xid_mailbox_repair() did its work since the last sync. */
	bool repaired:1;
	/* The index is in memory only: no XIDs here. */
	bool disabled:1;
	/* xid_mailbox_ensure() is running; it syncs nothing by itself. */
	bool ensuring:1;
	/* moving.c wrote down what is being committed; and it was written
	   with its XIDs. */
	bool moving:1;
	bool moved:1;
	/* reassign.c does what dsync does at the end of a sync */
	bool reassigning:1;
	/* recover.c expunged half a copy: the next sync carries it out. */
	bool strays:1;
};

/* Called for each mailbox that has XIDs when it is allocated, to put
   functions into v. What was there is in xbox->module_ctx.super. A vfunc has
   one owner. Hooks are added in the init functions and end with the plug-in.
   storage.c: close, transaction_begin, save_begin, copy,
   transaction_save_commit_pre, transaction_save_rollback, sync_deinit,
   sync_notify, rename_box, delete_box.
   imap side: search_*. Waiting: get_status, transaction_commit,
   sync_init, sync_next, mail_alloc and what else it needs. */
typedef void xid_mailbox_hook_t(struct xid_mailbox *xbox,
				struct mailbox_vfuncs *v);
void xid_mailbox_hook_add(xid_mailbox_hook_t *hook);

/* The same for users (v is user->vlast's table; module_ctx.super as above). */
typedef void xid_user_hook_t(struct xid_user *xuser,
			     struct mail_user_vfuncs *v);
void xid_user_hook_add(xid_user_hook_t *hook);

/* NULL = the plug-in is off for this user: it is not among his mail_plugins,
   his settings are wrong, or it is a raw or autocreated user. */
struct xid_user *xid_user_get(struct mail_user *user);
/* NULL = messages have no XIDs here: the above, a virtual mailbox (its
   messages live elsewhere; see xid_mail_append()), an index in memory. */
struct xid_mailbox *xid_mailbox_get(struct mailbox *box);
/* For vfuncs that the plug-in put into the mailbox: its context, also when it
   is disabled. Such a function always has one, to call what was there. */
struct xid_mailbox *xid_mailbox_context(struct mailbox *box);

/* The mail root opened. Returns NULL if that is not possible now (logged
   once in a while): the caller does without. */
imap_xid_root *xid_root_open(struct xid_mailbox *xbox);
/* The name by which the registry knows the mailbox. */
const char *xid_mailbox_name(struct mailbox *box);
/* The mailbox in its root; the mailbox must be open. NULL as above. */
imap_xid_box *xid_box_open(struct xid_mailbox *xbox);
/* Log, once per user, that a mailbox has its index in memory only. */
void xid_user_log_memory(struct xid_user *xuser, struct mailbox *box);
/* Log what the last C ABI call on this mailbox complained of. */
void xid_mailbox_log_error(struct xid_mailbox *xbox, const char *what);

/*
 * XIDs in the index (record.c; xid-record.h has the layout)
 */

/* The namespaces of the mailbox, as the view saw them (not newer ones): for
   the state code. Returns how many. */
unsigned int xid_header_entries(struct xid_mailbox *xbox,
				struct mail_index_view *view,
				const struct xid_header_entry **entries_r);
/* The message's XID; ns points into the index and is valid until it is
   refreshed. FALSE = it has none (or was expunged). */
bool xid_mail_get(struct xid_mailbox *xbox, struct mail_index_view *view,
		  uint32_t seq, struct imap_xid *xid_r);
/* Append the message's XID as text. FALSE = it has none. */
bool xid_mail_lookup(struct mailbox *box, struct mail_index_view *view,
		     uint32_t seq, string_t *dest);
/* The same for a mail, also one of a virtual mailbox (then the XID is that
   of the message behind it). */
bool xid_mail_append(struct mail *mail, string_t *dest);

/*
 * Mailbox as a whole. The mailbox must be open and synced. int functions
 * return -1 with the mailbox's storage error set.
 */

/* All visible messages have XIDs: those that have none get them. Cheap when
   there is nothing to do. The sync does this by itself. */
int xid_mailbox_ensure(struct mailbox *box);

/* The message that has this XID, in box->view. 1 = found, 0 = not here. */
int xid_mailbox_find(struct mailbox *box, const struct imap_xid *xid,
		     uint32_t *seq_r);

/* What the client with this state lacks, as sequences of box->view. 1 = ok,
   0 = the state is of another mailbox or the server lost data (XIDRESET). */
int xid_mailbox_news(struct mailbox *box, const imap_xid_state *state,
		     ARRAY_TYPE(seq_range) *seqs_r);

/* Append the state that covers all of box->view: "foo-1 bar-2 @v-u". */
void xid_mailbox_append_state(struct mailbox *box, string_t *dest);

/* The highest UID of box->view that is stable: with local UIDs its
   UIDNEXT - 1. */
uint32_t xid_mailbox_watermark(struct mailbox *box);

/* The highest number this node gave in this mail root. 0 = ok, -1 = error. */
int xid_mailbox_counter(struct mailbox *box, uint64_t *highest_r);

/*
 * Life
 */

/* storage.c */
void xid_storage_mailbox_allocated(struct xid_mailbox *xbox,
				   struct mailbox_vfuncs *v);
void xid_storage_mailbox_opened(struct xid_mailbox *xbox);

/* imap.c: FETCH item, commands. Only where the host process is imap. */
void xid_imap_init(struct module *module);
void xid_imap_deinit(void);

#endif
