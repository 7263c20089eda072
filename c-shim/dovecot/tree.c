/* The mailbox tree of a clustered user: the daemon hears of its changes, and
   each node makes the same INBOX. */
#include "cluster.h"
#include "file-create-locked.h"
#include "guid.h"
#include "sha1.h"
#include "str.h"
#include "hostpid.h"
#include "write-full.h"
#include "mail-index-private.h"
#include "mail-transaction-log-private.h"
#include "mailbox-list-index.h"
#include "maildir-storage.h"
#include "maildir-uidlist.h"
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

/* While a mailbox is made that is to be the same on all nodes, or deleted; in
   the mail root. */
#define XID_INBOX_LOCK_NAME "xid.inbox.lock"
#define XID_INBOX_LOCK_SECS 10
/* A dbox's index log that is shorter may not say yet which mailbox it is of: it
   begins with a header and what the first openings note. */
#define XID_DBOX_YOUNG_LOG 1024

/* Any number that all nodes have in common. The smallest one: a mailbox that
   is made again by other means gets a higher one, as it must. */
#define XID_INBOX_UIDVALIDITY 1

/* Two nodes that make INBOX each by itself must have made one mailbox, not two
   of one name: replication cannot join those. */
static void xid_inbox_guid(struct mailbox *box, guid_128_t guid_r)
{
	struct mail_namespace *ns = mailbox_get_namespace(box);
	unsigned char digest[SHA1_RESULTLEN];
	string_t *str = t_str_new(128);

	/* user names and prefixes hold no NUL */
	str_append(str, "imap-xid");
	str_append_c(str, '\0');
	str_append(str, box->storage->user->username);
	str_append_c(str, '\0');
	str_append(str, ns->prefix);
	sha1_get_digest(str_data(str), str_len(str), digest);
	memcpy(guid_r, digest, GUID_128_SIZE);
}

/* What is not said otherwise. */
static void
xid_inbox_update_fill(struct mailbox *box, struct mailbox_update *update)
{
	if (guid_128_is_empty(update->mailbox_guid))
		xid_inbox_guid(box, update->mailbox_guid);
	if (update->uid_validity == 0)
		update->uid_validity = XID_INBOX_UIDVALIDITY;
}

/* Whether this process holds the lock of the list of mailboxes. Who makes a
   mailbox takes that lock after ours, so nobody who has it may wait for ours. */
static bool xid_list_is_locked(struct mailbox *box)
{
	const struct mailbox_list_index *ilist = INDEX_LIST_CONTEXT(box->list);

	return ilist != NULL && (ilist->syncing || ilist->updating_status);
}

/* Who opens a mailbox that another process is making finishes it in its own way,
   and gives it another GUID. So whoever makes one that is to have a certain GUID
   does so alone, and whoever opens it half made waits for that. Returns NULL
   where the lock cannot be had, or is held already: mail goes on. */
static struct file_lock *xid_making_lock(struct xid_mailbox *xbox)
{
	const bool wait = !xid_list_is_locked(xbox->box);
	const struct file_create_settings set = {
		.lock_timeout_secs = wait ? XID_INBOX_LOCK_SECS : 0,
		.lock_settings = {
			.lock_method = FILE_LOCK_METHOD_FLOCK,
			.close_on_free = TRUE,
		},
	};
	struct xid_user *xuser = xbox->xuser;
	struct file_lock *lock;
	const char *path, *error;
	bool created;

	if (xuser->making_locked || xid_root_open(xbox) == NULL)
		return NULL;
	path = t_strconcat(xbox->root->dir, "/"XID_INBOX_LOCK_NAME, NULL);
	if (file_create_locked(path, &set, &lock, &created, &error) < 0) {
		if (wait)
			e_warning(xbox->box->event,
				  "xid: %s may be made twice: %s",
				  mailbox_get_vname(xbox->box), error);
		return NULL;
	}
	xuser->making_locked = TRUE;
	return lock;
}

/* INBOX: who opens it for the first time may be the one who makes it. */
static struct file_lock *xid_inbox_lock(struct xid_mailbox *xbox)
{
	struct xid_user *xuser = xbox->xuser;

	if (!xbox->box->inbox_user || xuser->inbox_opened ||
	    !xid_user_is_clustered(xuser))
		return NULL;
	return xid_making_lock(xbox);
}

static void xid_making_unlock(struct xid_mailbox *xbox, struct file_lock **lock)
{
	if (*lock == NULL)
		return;
	file_lock_free(lock);
	xbox->xuser->making_locked = FALSE;
}

/* The list of UIDs of a maildir that has no message yet. */
static const char *xid_maildir_inbox_uidlist(struct mailbox *box)
{
	guid_128_t guid;

	xid_inbox_guid(box, guid);
	return t_strdup_printf("3 V%u N1 G%s\n", XID_INBOX_UIDVALIDITY,
			       guid_128_to_string(guid));
}

/* Puts text into a file that is not there. One that came meanwhile stays. What
   fails is logged; mail goes on. */
static void
xid_file_begin(struct mailbox *box, const char *path, const char *text)
{
	const char *temp = t_strdup_printf("%s.xid.%s", path, my_pid);
	int fd;

	if (mailbox_create_fd(box, temp, O_WRONLY | O_CREAT | O_TRUNC, &fd) <= 0)
		return;
	if (write_full(fd, text, strlen(text)) < 0)
		mailbox_set_critical(box, "write(%s) failed: %m", temp);
	else if (link(temp, path) < 0 && errno != EEXIST)
		mailbox_set_critical(box, "link(%s, %s) failed: %m", temp, path);
	i_unlink(temp);
	i_close_fd(&fd);
}

/* Whoever first looks at a maildir's list of UIDs, to say which UIDVALIDITY and
   GUID it has or merely to lock it, makes both up and writes them; a session that
   looks in that moment works with them. So the list is there before anybody
   looks. */
static void xid_maildir_inbox_begin(struct mailbox *box)
{
	struct xid_mailbox *xbox = xid_mailbox_context(box);
	const char *control, *path;
	struct stat st;

	if (!box->inbox_user || !xid_user_is_clustered(xbox->xuser) ||
	    mail_index_get_header(box->view)->uid_validity != 0 ||
	    mailbox_get_path_to(box, MAILBOX_LIST_PATH_TYPE_CONTROL,
				&control) <= 0)
		return;
	path = t_strconcat(control, "/"MAILDIR_UIDLIST_NAME, NULL);
	if (stat(path, &st) == 0 || errno != ENOENT)
		return;
	xid_file_begin(box, path, xid_maildir_inbox_uidlist(box));
}

/* The mailbox that is about to be opened may have a dbox's folder, but no index
   that says which mailbox it is; or it is not there yet. */
static bool xid_dbox_is_half_made(struct mailbox *box)
{
	const char *dir;
	struct stat st;

	if (mailbox_get_path_to(box, MAILBOX_LIST_PATH_TYPE_INDEX, &dir) <= 0)
		return FALSE;
	if (stat(t_strconcat(dir, "/", box->index_prefix, ".log", NULL),
		 &st) < 0)
		return errno == ENOENT;
	return st.st_size < XID_DBOX_YOUNG_LOG;
}

/* A maildir has no list of UIDs, which is to say which mailbox it is. */
static bool xid_maildir_is_half_made(struct mailbox *box)
{
	const char *control;
	struct stat st;

	return mailbox_get_path_to(box, MAILBOX_LIST_PATH_TYPE_CONTROL,
				   &control) > 0 &&
		stat(t_strconcat(control, "/"MAILDIR_UIDLIST_NAME, NULL),
		     &st) < 0 && errno == ENOENT;
}

/* Whether another process may be making the mailbox. Where none does it is
   finished as ever. */
static bool xid_tree_may_be_made(struct mailbox *box)
{
	return !box->inbox_user && !box->creating &&
		xid_user_is_clustered(xid_mailbox_context(box)->xuser);
}

/* Whether another process makes the mailbox, and it cannot be waited for because
   the list of mailboxes is locked. The list does without the GUID of a mailbox
   that it cannot open. */
static bool xid_tree_is_in_use(struct mailbox *box, struct file_lock *lock)
{
	if (lock != NULL || xid_mailbox_context(box)->xuser->making_locked ||
	    !xid_list_is_locked(box))
		return FALSE;
	mail_storage_set_error(box->storage, MAIL_ERROR_INUSE,
			       "Mailbox is being created");
	return TRUE;
}

/* INBOX needs no lock: the folder that it goes into must not be there before
   it. */
static int xid_tree_open_maildir(struct mailbox *box)
{
	struct xid_mailbox *xbox = xid_mailbox_context(box);
	struct file_lock *lock = NULL;

	if (xid_list_is_locked(box) && xid_tree_may_be_made(box) &&
	    xid_maildir_is_half_made(box)) {
		lock = xid_making_lock(xbox);
		if (xid_tree_is_in_use(box, lock))
			return -1;
	}
	if (xbox->module_ctx.super.open(box) < 0) {
		xid_making_unlock(xbox, &lock);
		return -1;
	}
	xid_maildir_inbox_begin(box);
	if (lock == NULL && xid_tree_may_be_made(box) &&
	    mail_index_get_header(box->view)->uid_validity == 0 &&
	    xid_maildir_is_half_made(box))
		lock = xid_making_lock(xbox);
	xid_making_unlock(xbox, &lock);
	return 0;
}

static int xid_tree_open_dbox(struct mailbox *box)
{
	struct xid_mailbox *xbox = xid_mailbox_context(box);
	const bool half_made = !box->creating &&
		xid_user_is_clustered(xbox->xuser) &&
		xid_dbox_is_half_made(box);
	struct file_lock *lock = xid_inbox_lock(xbox);
	int ret;

	if (half_made && xid_tree_may_be_made(box))
		lock = xid_making_lock(xbox);
	if (half_made && xid_tree_is_in_use(box, lock))
		return -1;
	ret = xbox->module_ctx.super.open(box);
	if (ret == 0 && box->inbox_user)
		xbox->xuser->inbox_opened = TRUE;
	xid_making_unlock(xbox, &lock);
	return ret;
}

int xid_tree_open(struct mailbox *box)
{
	int ret;

	T_BEGIN {
		ret = xid_storage_is_maildir(box) ? xid_tree_open_maildir(box) :
			xid_tree_open_dbox(box);
	} T_END;
	return ret;
}

static void xid_tree_changed(struct mailbox *box)
{
	struct xid_user *xuser = xid_mailbox_context(box)->xuser;

	if (!xid_user_replicates(xuser))
		xid_event_tree(box);
}

/* Before a mailbox is made; not for INBOX, which is the same one everywhere.
   -1 = the storage error is set. */
static int
xid_tree_before_create(struct mailbox *box, const struct mailbox_update *update)
{
	struct xid_user *xuser = xid_mailbox_context(box)->xuser;

	if (!xid_user_is_clustered(xuser) || !xid_user_replicates(xuser) ||
	    update == NULL || guid_128_is_empty(update->mailbox_guid))
		return 0;
	return xid_twins_meet(box, update);
}

/* One after the other: none finishes what another begins. */
static struct file_lock *xid_tree_create_lock(struct mailbox *box)
{
	struct xid_mailbox *xbox = xid_mailbox_context(box);

	if (box->inbox_user)
		return xid_storage_is_maildir(box) ? NULL :
			xid_inbox_lock(xbox);
	return xid_user_is_clustered(xbox->xuser) ?
		xid_making_lock(xbox) : NULL;
}

/* Asked to make a maildir that is there, the storage says so, but it gives it the
   GUID and UIDVALIDITY of the one that was to be made first. */
static int xid_tree_check_maildir(struct mailbox *box)
{
	enum mailbox_existence existence;

	if (box->inbox_user || !xid_storage_is_maildir(box) ||
	    box->storage->rebuilding_list_index ||
	    !xid_user_is_clustered(xid_mailbox_context(box)->xuser))
		return 0;
	if (mailbox_exists(box, FALSE, &existence) < 0)
		return -1;
	if (existence != MAILBOX_EXISTENCE_SELECT)
		return 0;
	mail_storage_set_error(box->storage, MAIL_ERROR_EXISTS,
			       "Mailbox already exists");
	return -1;
}

static int
xid_tree_create_alone(struct mailbox *box, const struct mailbox_update *update)
{
	struct xid_mailbox *xbox = xid_mailbox_context(box);
	struct file_lock *lock;
	int ret;

	lock = xid_tree_create_lock(box);
	ret = xid_tree_check_maildir(box);
	if (ret == 0)
		ret = xbox->module_ctx.super.create_box(box, update, FALSE);
	xid_making_unlock(xbox, &lock);
	return ret;
}

static int
xid_tree_create_box(struct mailbox *box, const struct mailbox_update *update,
		    bool directory)
{
	struct xid_mailbox *xbox = xid_mailbox_context(box);
	struct mailbox_update inbox_update;
	int ret;

	if (!box->inbox_user && !directory &&
	    xid_tree_before_create(box, update) < 0)
		return -1;
	if (box->inbox_user && !directory) {
		if (update != NULL)
			inbox_update = *update;
		else
			i_zero(&inbox_update);
		xid_inbox_update_fill(box, &inbox_update);
		update = &inbox_update;
		/* after it was deleted, too */
		xbox->xuser->inbox_opened = FALSE;
	}
	if (directory)
		ret = xbox->module_ctx.super.create_box(box, update, TRUE);
	else T_BEGIN {
		ret = xid_tree_create_alone(box, update);
	} T_END;
	if (ret < 0)
		return -1;
	xid_tree_changed(box);
	return 0;
}

/* Syncs with several nodes run at once, each with what it saw when it began. */
static int
xid_tree_join(struct mailbox *box, const struct mailbox_update *update)
{
	struct xid_mailbox *xbox = xid_mailbox_context(box);
	struct mailbox_update joined = *update;
	struct file_lock *lock;
	int ret;

	lock = xid_making_lock(xbox);
	ret = xid_twins_join(box, &joined);
	if (ret == 0)
		ret = xbox->module_ctx.super.update_box(box, &joined);
	xid_making_unlock(xbox, &lock);
	return ret;
}

/* Replication finds a mailbox by its GUID, and panics where the mailbox has
   another one by the time that it looks into it. One that became another node's
   in between is to it as one that is gone: it begins again. */
static int
xid_tree_get_metadata(struct mailbox *box, enum mailbox_metadata_items items,
		      struct mailbox_metadata *metadata_r)
{
	struct xid_mailbox *xbox = xid_mailbox_context(box);

	if (xbox->module_ctx.super.get_metadata(box, items, metadata_r) < 0)
		return -1;
	if ((items & MAILBOX_METADATA_GUID) == 0 ||
	    !xbox->xuser->user->dsyncing ||
	    !xid_user_is_clustered(xbox->xuser))
		return 0;
	if (guid_128_is_empty(xbox->told_guid))
		memcpy(xbox->told_guid, metadata_r->guid, GUID_128_SIZE);
	if (guid_128_equals(xbox->told_guid, metadata_r->guid))
		return 0;
	mail_storage_set_error(box->storage, MAIL_ERROR_NOTFOUND,
			       T_MAIL_ERR_MAILBOX_NOT_FOUND(box->vname));
	return -1;
}

static int
xid_tree_update_box(struct mailbox *box, const struct mailbox_update *update)
{
	struct xid_mailbox *xbox = xid_mailbox_context(box);
	int ret;

	if (box->inbox_user || !xid_user_is_clustered(xbox->xuser) ||
	    !xbox->xuser->user->dsyncing ||
	    guid_128_is_empty(update->mailbox_guid)) {
		ret = xbox->module_ctx.super.update_box(box, update);
	} else T_BEGIN {
		ret = xid_tree_join(box, update);
	} T_END;
	/* it is this process that gave it another one */
	guid_128_empty(xbox->told_guid);
	return ret;
}

static int xid_tree_rename_box(struct mailbox *src, struct mailbox *dest)
{
	struct xid_wait_mailbox *wbox = xid_mailbox_context(src)->wait;

	if (wbox->prev.rename_box(src, dest) < 0)
		return -1;
	xid_tree_changed(dest);
	return 0;
}

static bool
xid_tree_is_log(const struct mail_transaction_log_file *file, const char *path)
{
	struct stat st;

	return stat(path, &st) == 0 && st.st_ino == file->st_ino &&
		CMP_DEV_T(st.st_dev, file->st_dev);
}

/* Two syncs may bring one deletion, and a client may make a mailbox of that name
   again between them. That one's log cannot have the inode of the one that is open
   here; a second in which both were made they may share. */
static bool xid_tree_is_another(struct mailbox *box)
{
	const struct mail_transaction_log_file *head = box->index->log->head;
	const char *path;

	if (MAIL_INDEX_IS_IN_MEMORY(box->index) || head == NULL)
		return FALSE;
	path = t_strconcat(box->index->filepath, MAIL_TRANSACTION_LOG_SUFFIX,
			   NULL);
	/* a new one was begun meanwhile */
	return !xid_tree_is_log(head, path) &&
		!xid_tree_is_log(head, t_strconcat(path, ".2", NULL));
}

/* A deletion that fails is tried again every second; the log is short. */
static bool xid_tree_is_told(struct mailbox_list *list, const guid_128_t guid)
{
	struct mailbox_log *log = mailbox_list_get_changelog(list);
	const struct mailbox_log_record *rec;
	struct mailbox_log_iter *iter;
	bool told = FALSE;

	if (log == NULL)
		return FALSE;
	iter = mailbox_log_iter_init(log);
	while (!told && (rec = mailbox_log_iter_next(iter)) != NULL) {
		told = rec->type == MAILBOX_LOG_RECORD_DELETE_MAILBOX &&
			memcmp(rec->mailbox_guid, guid, GUID_128_SIZE) == 0;
	}
	/* not told, where the log cannot be read */
	return mailbox_log_iter_deinit(&iter) == 0 && told;
}

/* The mailbox is the one that was to be deleted, and replication hears of that
   first: the storage tells it after the mailbox is gone, and a sync that looks in
   between takes it for one that this node never had, and makes it again. Where it
   stays after all nothing comes of it: what is there was not deleted. */
static int xid_tree_before_delete(struct mailbox *box)
{
	struct mailbox_metadata metadata;

	if (xid_tree_is_another(box)) {
		mail_storage_set_error(box->storage, MAIL_ERROR_NOTFOUND,
			T_MAIL_ERR_MAILBOX_NOT_FOUND(box->vname));
		return -1;
	}
	/* a broken mailbox can be deleted; replication checks which one it is */
	if (mailbox_get_metadata(box, MAILBOX_METADATA_GUID, &metadata) < 0) {
		return xid_mailbox_context(box)->xuser->user->dsyncing ?
			-1 : 0;
	}
	if (!xid_tree_is_told(box->list, metadata.guid)) {
		mailbox_list_add_change(box->list,
					MAILBOX_LOG_RECORD_DELETE_MAILBOX,
					metadata.guid);
	}
	return 0;
}

/* Nobody makes one meanwhile. */
static int xid_tree_delete_alone(struct mailbox *box)
{
	struct xid_mailbox *xbox = xid_mailbox_context(box);
	struct file_lock *lock;
	int ret;

	lock = xid_making_lock(xbox);
	ret = xid_tree_before_delete(box);
	if (ret == 0)
		ret = xbox->wait->prev.delete_box(box);
	xid_making_unlock(xbox, &lock);
	return ret;
}

static int xid_tree_delete_box(struct mailbox *box)
{
	struct xid_mailbox *xbox = xid_mailbox_context(box);
	int ret;

	if (!box->opened || !xid_user_is_clustered(xbox->xuser))
		ret = xbox->wait->prev.delete_box(box);
	else T_BEGIN {
		ret = xid_tree_delete_alone(box);
	} T_END;
	if (ret < 0)
		return -1;
	xid_tree_changed(box);
	return 0;
}

static int xid_tree_set_subscribed(struct mailbox *box, bool set)
{
	struct xid_mailbox *xbox = xid_mailbox_context(box);

	if (xbox->module_ctx.super.set_subscribed(box, set) < 0)
		return -1;
	xid_tree_changed(box);
	return 0;
}

static int xid_maildir_inbox_fill(struct xid_wait_mailbox *wbox)
{
	struct mailbox *box = wbox->xbox->box;
	struct maildir_mailbox *mbox = MAILDIR_MAILBOX(box);
	struct mailbox_update update;

	if (!box->inbox_user || !xid_user_is_clustered(wbox->xbox->xuser))
		return 0;
	if (maildir_uidlist_refresh(mbox->uidlist) < 0)
		return -1;
	/* its index alone was lost */
	if (maildir_uidlist_get_uid_validity(mbox->uidlist) != 0)
		return 0;
	i_zero(&update);
	xid_inbox_update_fill(box, &update);
	return box->v.update_box(box, &update);
}

int xid_tree_maildir_first_sync(struct xid_wait_mailbox *wbox)
{
	struct xid_mailbox *xbox = wbox->xbox;
	struct file_lock *lock;
	int ret;

	T_BEGIN {
		lock = xid_inbox_lock(xbox);
	} T_END;
	ret = xid_maildir_inbox_fill(wbox);
	if (ret == 0)
		ret = mailbox_sync(xbox->box, 0);
	if (ret == 0 && xbox->box->inbox_user)
		xbox->xuser->inbox_opened = TRUE;
	xid_making_unlock(xbox, &lock);
	return ret;
}

void xid_tree_hook(struct xid_wait_mailbox *wbox, struct mailbox_vfuncs *v)
{
	wbox->prev.rename_box = v->rename_box;
	wbox->prev.delete_box = v->delete_box;
	v->create_box = xid_tree_create_box;
	v->update_box = xid_tree_update_box;
	v->get_metadata = xid_tree_get_metadata;
	v->rename_box = xid_tree_rename_box;
	v->delete_box = xid_tree_delete_box;
	v->set_subscribed = xid_tree_set_subscribed;
}
