#ifndef XID_DOVEADM_H
#define XID_DOVEADM_H

/* doveadm xid ...: what the cluster daemon has a node do with its mail. The
   files:

     doveadm.c         the commands' names; which mailbox is meant
     doveadm-answer.c  the one line of JSON that every command answers with
     doveadm-table.c   expose, promise, release, gate
     doveadm-ask.c     xids, settled, pending
     doveadm-move.c    raise, drop, stage, unstage, dropstaged, adopt
     doveadm-stage.c   the stage mailbox
     doveadm-sync.c    doveadm's own sync, where the other node is lost */

#include "xid-plugin.h"
#include "xid-index.h"
#include "wait.h"
#include "mail-namespace.h"
#include "guid.h"
#include "doveadm-host.h"

struct xid_doveadm_cmd;

/* A command under way. */
struct xid_doveadm {
	struct doveadm_mail_cmd_context ctx;
	const struct xid_doveadm_cmd *cmd;
	/* -a */
	bool all;

	struct mail_user *user;
	struct xid_user *xuser;
	/* The mailbox, opened and synced, and the arguments behind its name.
	   NULL for commands on all mailboxes. */
	struct mailbox *box;
	struct xid_mailbox *xbox;
	const char *const *args;
	/* It has the name that was asked for, but another GUID. */
	bool twin;

	/* What to tell of the mailbox: messages above this UID, and at most so
	   many of them. */
	uint32_t above, max;
};

/* A command of ours. run returns -1 after xid_doveadm_fail(). */
struct xid_doveadm_cmd {
	struct doveadm_cmd_ver2 host;
	/* Arguments, with MAILBOX and NAME. 0 = it is about all mailboxes. */
	unsigned int min_args, max_args;
	int (*run)(struct xid_doveadm *cmd);
};

/* doveadm is to exit with what stands for this error. Always returns -1. */
int xid_doveadm_fail(struct xid_doveadm *cmd, enum mail_error error,
		     const char *format, ...) ATTR_FORMAT(3, 4);
/* The same for what the mailbox's storage says. */
int xid_doveadm_fail_box(struct xid_doveadm *cmd, struct mailbox *box,
			 const char *what);
/* args[idx] as a UID, a UID + 1 or a count. */
int xid_doveadm_number(struct xid_doveadm *cmd, unsigned int idx,
		       const char *what, uint32_t *number_r);
/* The user's own mailboxes are here, not those that others share with him. */
bool xid_doveadm_namespace_is_own(const struct mail_namespace *ns);
/* As xid_mailbox_find_guid(). */
int xid_doveadm_find_guid(struct xid_doveadm *cmd, struct mailbox *box,
			  const char *guid, ARRAY_TYPE(xid_found_mail) *found);
/* Bring the mailbox and its view up to date. */
int xid_doveadm_sync(struct xid_doveadm *cmd);

/*
 * doveadm-answer.c
 */

/* The state of cmd->box as it was last synced. */
int xid_doveadm_answer_state(struct xid_doveadm *cmd);
/* Print the answer: one line. */
void xid_doveadm_answer(string_t *json);
void xid_doveadm_append_xid(string_t *json, const struct imap_xid *xid);
/* With the quotes. */
void xid_doveadm_append_string(string_t *json, const char *str);

/*
 * doveadm-stage.c: the functions return -1 after xid_doveadm_fail().
 */

/* The stage of cmd->box, opened and synced. 1 = open, 0 = there is none (never
   with create). */
int xid_stage_open(struct xid_doveadm *cmd, bool create,
		   struct mailbox **stage_r);
/* It is empty: nobody needs to look into it. */
void xid_stage_emptied(struct xid_doveadm *cmd, struct mailbox *stage);
/* All messages in it that have this GUID, as the index has them: of two with one
   XID the registry knows only one. */
void xid_stage_find_guid(struct mailbox *stage, const char *guid,
			 ARRAY_TYPE(xid_found_mail) *found);
/* Append the GUIDs of what is in it, as members of a JSON array. */
int xid_stage_append(struct xid_doveadm *cmd, string_t *json);

/* doveadm-table.c: what box->view shows, and its next UID, survive a power loss
   after this. */
int xid_doveadm_make_durable(struct xid_doveadm *cmd, struct mailbox *box);

/*
 * The commands
 */

int xid_doveadm_expose(struct xid_doveadm *cmd);
int xid_doveadm_promise(struct xid_doveadm *cmd);
int xid_doveadm_release(struct xid_doveadm *cmd);
int xid_doveadm_gate(struct xid_doveadm *cmd);

int xid_doveadm_raise(struct xid_doveadm *cmd);
int xid_doveadm_drop(struct xid_doveadm *cmd);
int xid_doveadm_stage(struct xid_doveadm *cmd);
int xid_doveadm_unstage(struct xid_doveadm *cmd);
int xid_doveadm_dropstaged(struct xid_doveadm *cmd);
int xid_doveadm_adopt(struct xid_doveadm *cmd);

int xid_doveadm_xids(struct xid_doveadm *cmd);
int xid_doveadm_settled(struct xid_doveadm *cmd);
int xid_doveadm_pending(struct xid_doveadm *cmd);

/*
 * plugin.c: as doveadm's module
 */

void xid_doveadm_init(void);
void xid_doveadm_deinit(void);

/*
 * doveadm.c: with its commands
 */

void xid_doveadm_sync_init(void);
void xid_doveadm_sync_deinit(void);

#endif
