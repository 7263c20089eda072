/* doveadm xid expose, promise, release, gate: what the cluster daemon writes
   into the table. */
/* syncfs() */
#define _GNU_SOURCE
#include "xid-doveadm.h"
#include "cluster.h"
#include "mailbox-list-private.h"
#include "mail-index-private.h"
#include "mdbox-storage.h"
#include "mdbox-map-private.h"

#include <fcntl.h>
#include <unistd.h>

/* Who closes gates through us: the cluster daemon, whatever its process. No
   process id is as high. */
#define XID_GATE_OWNER ((uint64_t)1 << 62)

/* The mailbox's place in the table; NULL = failed. */
static imap_xid_box *xid_doveadm_place(struct xid_doveadm *cmd)
{
	struct xid_wait_mailbox *wbox = xid_wait_mailbox_get(cmd->box);
	imap_xid_box *core = NULL;

	if (cmd->xuser->set.uid_source == XID_UID_SOURCE_LOCAL) {
		(void)xid_doveadm_fail(cmd, MAIL_ERROR_NOTPOSSIBLE,
			"UIDs are stable at once here (xid_uid_source is "
			"local)");
		return NULL;
	}
	if (wbox != NULL)
		core = xid_wait_attach(wbox);
	if (core == NULL) {
		(void)xid_doveadm_fail(cmd, MAIL_ERROR_TEMP,
			"%s: no place in the UID-assignment table, as was "
			"logged", mailbox_get_vname(cmd->box));
	}
	return core;
}

static int xid_doveadm_fail_core(struct xid_doveadm *cmd, int32_t ret)
{
	enum mail_error error = MAIL_ERROR_TEMP;

	if (ret == IMAP_XID_ERR_ARGUMENT)
		error = MAIL_ERROR_NOTPOSSIBLE;
	return xid_doveadm_fail(cmd, error, "%s: %s",
		mailbox_get_vname(cmd->box), imap_xid_last_error());
}

int xid_doveadm_expose(struct xid_doveadm *cmd)
{
	imap_xid_box *core;
	uint32_t uid, limit, bound;
	int32_t ret;

	if (xid_doveadm_number(cmd, 0, "UID", &uid) < 0 ||
	    xid_doveadm_number(cmd, 1, "limit", &limit) < 0 ||
	    xid_doveadm_number(cmd, 2, "bound", &bound) < 0 ||
	    xid_doveadm_number(cmd, 3, "UID", &cmd->above) < 0 ||
	    (core = xid_doveadm_place(cmd)) == NULL)
		return -1;
	ret = imap_xid_box_advance(core, uid);
	if (ret >= 0)
		ret = imap_xid_box_set_limits(core, limit, bound);
	if (ret < 0)
		return xid_doveadm_fail_core(cmd, ret);
	return xid_doveadm_answer_state(cmd);
}

int xid_doveadm_release(struct xid_doveadm *cmd)
{
	imap_xid_box *core;
	uint32_t to;
	int32_t ret;

	if (xid_doveadm_number(cmd, 0, "UID", &to) < 0 ||
	    xid_doveadm_number(cmd, 1, "UID", &cmd->above) < 0 ||
	    (core = xid_doveadm_place(cmd)) == NULL)
		return -1;
	ret = imap_xid_box_promise(core, to);
	if (ret < 0)
		return xid_doveadm_fail_core(cmd, ret);
	return xid_doveadm_answer_state(cmd);
}

int xid_doveadm_gate(struct xid_doveadm *cmd)
{
	bool closing = strcmp(cmd->args[0], "close") == 0;
	imap_xid_box *core;
	uint32_t lease_msecs;
	int32_t ret;

	if (!closing && strcmp(cmd->args[0], "open") != 0) {
		return xid_doveadm_fail(cmd, MAIL_ERROR_PARAMS,
			"%s: expected close or open", cmd->args[0]);
	}
	if (xid_doveadm_number(cmd, 1, "lease in milliseconds",
			       &lease_msecs) < 0 ||
	    xid_doveadm_number(cmd, 2, "UID", &cmd->above) < 0 ||
	    (core = xid_doveadm_place(cmd)) == NULL)
		return -1;
	ret = imap_xid_box_close_gate(core, XID_GATE_OWNER,
				      closing ? lease_msecs : 0);
	if (ret < 0)
		return xid_doveadm_fail_core(cmd, ret);
	return xid_doveadm_answer_state(cmd);
}

/*
 * What was promised survives a power loss

   The host itself syncs a message's file before its transaction is committed
   (unless mail_fsync = never), but neither the index's log, in which UID and XID
   are, nor maildir's list of UIDs.
 */

/* A file that is not there has nothing to lose. */
static int
xid_sync_path(struct xid_doveadm *cmd, const char *path, int (*sync)(int fd))
{
	int fd, ret;

	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd == -1 && errno == ENOENT)
		return 0;
	ret = fd == -1 ? -1 : sync(fd);
	if (ret < 0) {
		ret = xid_doveadm_fail(cmd, MAIL_ERROR_TEMP,
				       "cannot make %s durable: %m", path);
	}
	if (fd != -1)
		(void)close(fd);
	return ret;
}

/* The log may be rotated meanwhile: what was in it is then in the one before,
   or in the index. */
static int xid_sync_index(struct xid_doveadm *cmd, struct mail_index *index)
{
	static const char *const suffixes[] = { ".log", ".log.2", "" };
	const char *path;
	unsigned int i;

	for (i = 0; i < N_ELEMENTS(suffixes); i++) {
		path = t_strconcat(index->dir, "/", index->prefix,
				   suffixes[i], NULL);
		if (xid_sync_path(cmd, path, fdatasync) < 0)
			return -1;
	}
	return xid_sync_path(cmd, index->dir, fdatasync);
}

static int
xid_sync_box_folder(struct xid_doveadm *cmd, struct mailbox *box,
		    enum mailbox_list_path_type type, const char *name)
{
	const char *path;
	int ret;

	ret = mailbox_get_path_to(box, type, &path);
	if (ret < 0)
		return xid_doveadm_fail_box(cmd, box, "path");
	if (ret == 0)
		return 0;
	return xid_sync_path(cmd, *name == '\0' ? path :
			     t_strconcat(path, "/", name, NULL), fdatasync);
}

static int xid_sync_maildir(struct xid_doveadm *cmd, struct mailbox *box)
{
	if (xid_sync_box_folder(cmd, box, MAILBOX_LIST_PATH_TYPE_MAILBOX,
				"new") < 0 ||
	    xid_sync_box_folder(cmd, box, MAILBOX_LIST_PATH_TYPE_MAILBOX,
				"cur") < 0 ||
	    xid_sync_box_folder(cmd, box, MAILBOX_LIST_PATH_TYPE_CONTROL,
				"dovecot-uidlist") < 0)
		return -1;
	return xid_sync_box_folder(cmd, box, MAILBOX_LIST_PATH_TYPE_CONTROL,
				   "");
}

/* The mailbox's index names a message by its number in the map. */
static int xid_sync_mdbox(struct xid_doveadm *cmd, struct mailbox *box)
{
	struct mdbox_storage *storage =
		MDBOX_STORAGE(mailbox_get_storage(box));

	if (xid_sync_path(cmd, storage->storage_dir, fdatasync) < 0)
		return -1;
	return xid_sync_index(cmd, storage->map->index);
}

static int xid_sync_storage(struct xid_doveadm *cmd, struct mailbox *box)
{
	const char *name = mailbox_get_storage(box)->name;

	if (strcmp(name, "maildir") == 0)
		return xid_sync_maildir(cmd, box);
	if (strcmp(name, "mdbox") == 0 && xid_sync_mdbox(cmd, box) < 0)
		return -1;
	return xid_sync_box_folder(cmd, box, MAILBOX_LIST_PATH_TYPE_MAILBOX,
				   "");
}

/* The host synced nothing: all of the file system is. */
static int xid_sync_everything(struct xid_doveadm *cmd, struct mailbox *box)
{
	const char *path;

	if (mailbox_get_path_to(box, MAILBOX_LIST_PATH_TYPE_MAILBOX,
				&path) <= 0)
		return xid_doveadm_fail_box(cmd, box, "path");
	return xid_sync_path(cmd, path, syncfs);
}

int xid_doveadm_make_durable(struct xid_doveadm *cmd, struct mailbox *box)
{
	struct mail_storage *storage = mailbox_get_storage(box);

	if (storage->set->parsed_fsync_mode == FSYNC_MODE_NEVER &&
	    xid_sync_everything(cmd, box) < 0)
		return -1;
	if (xid_sync_storage(cmd, box) < 0)
		return -1;
	return xid_sync_index(cmd, box->index);
}

int xid_doveadm_promise(struct xid_doveadm *cmd)
{
	imap_xid_box *core;
	uint32_t end;
	int32_t ret;

	if (xid_doveadm_number(cmd, 0, "UID", &end) < 0 ||
	    xid_doveadm_number(cmd, 1, "UID", &cmd->above) < 0 ||
	    (core = xid_doveadm_place(cmd)) == NULL)
		return -1;
	ret = imap_xid_box_promise(core, end);
	if (ret < 0)
		return xid_doveadm_fail_core(cmd, ret);
	/* In this order: nobody renumbers from here on, this is what they
	   have, and it stays. */
	if (xid_interlock_barrier(cmd->box) < 0)
		return xid_doveadm_fail_box(cmd, cmd->box, "lock");
	if (xid_doveadm_sync(cmd) < 0 ||
	    xid_doveadm_make_durable(cmd, cmd->box) < 0)
		return -1;
	return xid_doveadm_answer_state(cmd);
}
