/* A maildir is renamed with the lock files in it, and who took one removes it by its
   old name: nothing is there any more. What moved along keeps everybody out of the
   mailbox for as long as that process lives, a client's session for hours. In a
   cluster replication renames while clients save. So the locks are taken before, and
   given back through the folders, which are the same ones under their new names. */
#ifndef _GNU_SOURCE
#  define _GNU_SOURCE /* O_PATH */
#endif
#include "xid-index.h"
#include "cluster.h"
#include "file-dotlock.h"
#include "maildir-storage.h"
#include "maildir-uidlist.h"
#include "maildir-keywords.h"

#include <fcntl.h>
#include <time.h>

/* For all locks of one rename. Who holds one longer is stuck, and renaming goes on
   as it does without us. */
#define XID_RENAME_LOCK_SECS 10

/* Each is an open file. */
#define XID_RENAME_MAX_FOLDERS 256

struct xid_rename_locks {
	/* the control folders of the mailbox and of those below it */
	ARRAY(int) folders;
	ARRAY(struct dotlock *) dotlocks;
	time_t until;
};

/* In the order in which Dovecot takes them. */
static const char *const xid_rename_locked[] = {
	MAILDIR_UIDLIST_NAME,
	MAILDIR_KEYWORDS_NAME,
};

static void
xid_rename_lock_file(struct xid_rename_locks *locks, int folder,
		     const char *name)
{
	struct dotlock_settings set = {
		.use_excl_lock = TRUE,
		.stale_timeout = MAILDIR_UIDLIST_LOCK_STALE_TIMEOUT,
	};
	enum dotlock_create_flags flags = 0;
	struct dotlock *dotlock;
	time_t now = time(NULL);
	const char *path;

	if (now < locks->until)
		set.timeout = locks->until - now;
	else
		flags = DOTLOCK_CREATE_FLAG_NONBLOCK;
	path = t_strdup_printf("/proc/self/fd/%d/%s", folder, name);
	/* What goes wrong is logged; somebody may have deleted the folder. */
	if (file_dotlock_create(&set, path, flags, &dotlock) > 0)
		array_push_back(&locks->dotlocks, &dotlock);
}

static void
xid_rename_lock_mailbox(struct mailbox_list *list, const char *vname,
			void *context)
{
	struct xid_rename_locks *locks = context;
	const char *path;
	unsigned int i;
	int folder;

	if (array_count(&locks->folders) >= XID_RENAME_MAX_FOLDERS)
		return;
	if (mailbox_list_get_path(list, mailbox_list_get_storage_name(list, vname),
				  MAILBOX_LIST_PATH_TYPE_CONTROL, &path) <= 0)
		return;
	folder = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (folder == -1)
		return;
	array_push_back(&locks->folders, &folder);
	for (i = 0; i < N_ELEMENTS(xid_rename_locked); i++) T_BEGIN {
		xid_rename_lock_file(locks, folder, xid_rename_locked[i]);
	} T_END;
}

struct xid_rename_locks *xid_rename_lock(struct mailbox *src)
{
	struct xid_rename_locks *locks;

	if (!xid_storage_is_maildir(src) ||
	    !xid_user_is_clustered(xid_mailbox_context(src)->xuser))
		return NULL;
	locks = i_new(struct xid_rename_locks, 1);
	i_array_init(&locks->folders, 4);
	i_array_init(&locks->dotlocks, 8);
	locks->until = time(NULL) + XID_RENAME_LOCK_SECS;
	/* Those that are not seen are renamed unlocked. */
	T_BEGIN {
		xid_mailbox_each_renamed(src, xid_rename_lock_mailbox, locks);
	} T_END;
	return locks;
}

void xid_rename_unlock(struct xid_rename_locks **_locks)
{
	struct xid_rename_locks *locks = *_locks;
	struct dotlock **dotlock;
	int *folder;

	*_locks = NULL;
	if (locks == NULL)
		return;
	array_foreach_modifiable(&locks->dotlocks, dotlock)
		file_dotlock_delete(dotlock);
	array_foreach_modifiable(&locks->folders, folder)
		i_close_fd(folder);
	array_free(&locks->dotlocks);
	array_free(&locks->folders);
	i_free(locks);
}
