/* The mailbox tree of a clustered user: the daemon hears of its changes, and
   each node makes the same INBOX. */
#include "cluster.h"
#include "file-create-locked.h"
#include "guid.h"
#include "sha1.h"
#include "str.h"
#include "hostpid.h"
#include "write-full.h"
#include "maildir-storage.h"
#include "maildir-uidlist.h"
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

/* While INBOX is made; in the mail root. */
#define XID_INBOX_LOCK_NAME "xid.inbox.lock"
#define XID_INBOX_LOCK_SECS 10

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

/* Who opens an INBOX that another process is making finishes it in its own way,
   and gives it another GUID. So whoever makes it does so alone, and whoever
   opens it for the first time waits for that. Returns NULL where nobody needs to
   wait, or where the lock cannot be had: mail goes on. */
static struct file_lock *xid_inbox_lock(struct xid_mailbox *xbox)
{
	const struct file_create_settings set = {
		.lock_timeout_secs = XID_INBOX_LOCK_SECS,
		.lock_settings = {
			.lock_method = FILE_LOCK_METHOD_FLOCK,
			.close_on_free = TRUE,
		},
	};
	struct xid_user *xuser = xbox->xuser;
	struct file_lock *lock;
	const char *path, *error;
	bool created;

	if (!xbox->box->inbox_user || xuser->inbox_locked ||
	    xuser->inbox_opened || !xid_user_is_clustered(xuser) ||
	    xid_root_open(xbox) == NULL)
		return NULL;
	path = t_strconcat(xbox->root->dir, "/"XID_INBOX_LOCK_NAME, NULL);
	if (file_create_locked(path, &set, &lock, &created, &error) < 0) {
		e_warning(xbox->box->event, "xid: INBOX may be made twice: %s",
			  error);
		return NULL;
	}
	xuser->inbox_locked = TRUE;
	return lock;
}

static void xid_inbox_unlock(struct xid_mailbox *xbox, struct file_lock **lock)
{
	if (*lock == NULL)
		return;
	file_lock_free(lock);
	xbox->xuser->inbox_locked = FALSE;
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

/* Not a maildir: the folder that the lock goes into must not be there before it,
   and it needs none. */
int xid_tree_open(struct mailbox *box)
{
	struct xid_mailbox *xbox = xid_mailbox_context(box);
	struct file_lock *lock;
	int ret;

	if (xid_storage_is_maildir(box)) {
		if (xbox->module_ctx.super.open(box) < 0)
			return -1;
		T_BEGIN {
			xid_maildir_inbox_begin(box);
		} T_END;
		return 0;
	}
	T_BEGIN {
		lock = xid_inbox_lock(xbox);
	} T_END;
	ret = xbox->module_ctx.super.open(box);
	if (ret == 0 && box->inbox_user)
		xbox->xuser->inbox_opened = TRUE;
	xid_inbox_unlock(xbox, &lock);
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

static int
xid_tree_create_box(struct mailbox *box, const struct mailbox_update *update,
		    bool directory)
{
	struct xid_mailbox *xbox = xid_mailbox_context(box);
	struct mailbox_update inbox_update;
	struct file_lock *lock = NULL;
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
		if (!xid_storage_is_maildir(box)) T_BEGIN {
			lock = xid_inbox_lock(xbox);
		} T_END;
	}
	ret = xbox->module_ctx.super.create_box(box, update, directory);
	xid_inbox_unlock(xbox, &lock);
	if (ret < 0)
		return -1;
	xid_tree_changed(box);
	return 0;
}

static int
xid_tree_update_box(struct mailbox *box, const struct mailbox_update *update)
{
	struct xid_mailbox *xbox = xid_mailbox_context(box);
	struct mailbox_update joined;

	if (!box->inbox_user && xid_user_is_clustered(xbox->xuser) &&
	    xbox->xuser->user->dsyncing) {
		joined = *update;
		if (xid_twins_join(box, &joined) < 0)
			return -1;
		update = &joined;
	}
	return xbox->module_ctx.super.update_box(box, update);
}

static int xid_tree_rename_box(struct mailbox *src, struct mailbox *dest)
{
	struct xid_wait_mailbox *wbox = xid_mailbox_context(src)->wait;

	if (wbox->prev.rename_box(src, dest) < 0)
		return -1;
	xid_tree_changed(dest);
	return 0;
}

static int xid_tree_delete_box(struct mailbox *box)
{
	struct xid_wait_mailbox *wbox = xid_mailbox_context(box)->wait;

	if (wbox->prev.delete_box(box) < 0)
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
	xid_inbox_unlock(xbox, &lock);
	return ret;
}

void xid_tree_hook(struct xid_wait_mailbox *wbox, struct mailbox_vfuncs *v)
{
	wbox->prev.rename_box = v->rename_box;
	wbox->prev.delete_box = v->delete_box;
	v->create_box = xid_tree_create_box;
	v->update_box = xid_tree_update_box;
	v->rename_box = xid_tree_rename_box;
	v->delete_box = xid_tree_delete_box;
	v->set_subscribed = xid_tree_set_subscribed;
}
