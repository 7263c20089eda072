/* A maildir's list of UIDs, dovecot-uidlist. It is written to its end only, so what
   went stays in it; and where that comes back, as it does when a message moves to
   and fro, is unstaged or comes from another node, its file mostly has the same
   name again, which is its GUID. Whoever reads both lines takes the file for one of
   the old UID that reappeared, and gives it another; and who saved it first crashes
   in its next save, since it finds a file of a message that the index lacks. So no
   name is used again while a line has it. */
#ifndef _GNU_SOURCE
#  define _GNU_SOURCE /* memmem() */
#endif
#include "xid-index.h"
#include "cluster.h"
#include "hash.h"
#include "str.h"
#include "maildir-storage.h"
#include "maildir-uidlist.h"
#include "maildir-filename.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* The whole list; NULL = it is not there, or cannot be read. */
static const char *xid_uidlist_map(struct mailbox *box, size_t *size_r)
{
	const char *control, *path;
	void *list = MAP_FAILED;
	struct stat st;
	int fd;

	if (mailbox_get_path_to(box, MAILBOX_LIST_PATH_TYPE_CONTROL,
				&control) <= 0)
		return NULL;
	path = t_strconcat(control, "/"MAILDIR_UIDLIST_NAME, NULL);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd == -1)
		return NULL;
	if (fstat(fd, &st) == 0 && st.st_size > 0) {
		list = mmap(NULL, st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
		*size_r = st.st_size;
	}
	i_close_fd(&fd);
	return list == MAP_FAILED ? NULL : list;
}

/* Names of files. */
typedef HASH_TABLE(const char *, const char *) xid_name_set;

/* The names that messages of this transaction want. What is there gets another name
   anyway. */
static void
xid_uidlist_wanted(struct mailbox_transaction_context *t, xid_name_set names)
{
	struct maildir_mailbox *mbox = MAILDIR_MAILBOX(t->box);
	struct xid_saved_mail *mails;
	unsigned int i, count = xid_saved_mails(t, &mails);

	for (i = 0; i < count; i++) {
		if (mails[i].guid == NULL || *mails[i].guid == '\0')
			continue;
		if (maildir_uidlist_get_full_filename(mbox->uidlist,
						      mails[i].guid) == NULL)
			hash_table_update(names, mails[i].guid, mails[i].guid);
	}
}

/* A line has its file after " :", and the name ends where the flags begin. */
static bool
xid_uidlist_line_names(const char *line, const char *end, xid_name_set names,
		       string_t *name)
{
	const char *begin = memmem(line, end - line, " :", 2), *flags;

	if (begin == NULL)
		return FALSE;
	begin += 2;
	flags = memchr(begin, MAILDIR_INFO_SEP, end - begin);
	str_truncate(name, 0);
	str_append_data(name, begin, (flags == NULL ? end : flags) - begin);
	return hash_table_lookup(names, str_c(name)) != NULL;
}

static bool
xid_uidlist_names(const char *list, size_t size, xid_name_set names)
{
	const char *line = list, *end, *list_end = list + size;
	string_t *name = t_str_new(256);

	for (; line < list_end; line = end + 1) {
		end = memchr(line, '\n', list_end - line);
		if (end == NULL)
			end = list_end;
		if (xid_uidlist_line_names(line, end, names, name))
			return TRUE;
	}
	return FALSE;
}

/* Messages that went have names that messages of this transaction want. */
static bool
xid_uidlist_has_gone(struct mailbox_transaction_context *t)
{
	xid_name_set names;
	bool found = FALSE;
	const char *list;
	size_t size;

	list = xid_uidlist_map(t->box, &size);
	if (list == NULL)
		return FALSE;
	hash_table_create(&names, default_pool, 0, str_hash, strcmp);
	T_BEGIN {
		xid_uidlist_wanted(t, names);
		if (hash_table_count(names) > 0)
			found = xid_uidlist_names(list, size, names);
	} T_END;
	hash_table_destroy(&names);
	if (munmap((void *)(uintptr_t)list, size) < 0)
		i_error("munmap() failed: %m");
	return found;
}

static bool xid_uidlist_wants_names(struct mailbox_transaction_context *t)
{
	struct xid_saved_mail *mails;
	unsigned int i, count;

	if (!xid_storage_is_maildir(t->box) ||
	    !xid_user_is_clustered(xid_mailbox_context(t->box)->xuser))
		return FALSE;
	count = xid_saved_mails(t, &mails);
	for (i = 0; i < count; i++) {
		if (mails[i].guid != NULL && *mails[i].guid != '\0')
			return TRUE;
	}
	return FALSE;
}

void xid_maildir_free_names(struct mailbox_transaction_context *t)
{
	struct maildir_mailbox *mbox;

	if (!xid_uidlist_wants_names(t))
		return;
	mbox = MAILDIR_MAILBOX(t->box);
	/* What this process knows is what will be written. What goes wrong is
	   told, if it matters, by the save itself. */
	if (maildir_uidlist_lock(mbox->uidlist) <= 0)
		return;
	if (maildir_uidlist_refresh(mbox->uidlist) >= 0 &&
	    xid_uidlist_has_gone(t))
		xid_maildir_forget_gone(t->box);
	maildir_uidlist_unlock(mbox->uidlist);
}

void xid_maildir_forget_gone(struct mailbox *box)
{
	struct maildir_mailbox *mbox;
	uint32_t next_uid;

	if (!xid_storage_is_maildir(box))
		return;
	mbox = MAILDIR_MAILBOX(box);
	next_uid = maildir_uidlist_get_next_uid(mbox->uidlist);
	/* it could not be read */
	if (next_uid == 0)
		return;
	/* That is what has it written anew. */
	maildir_uidlist_set_next_uid(mbox->uidlist, next_uid, TRUE);
	/* What goes wrong was logged; it is written anew later. */
	(void)maildir_uidlist_update(mbox->uidlist);
}
