/* sdbox gives a message's file its UID before the index hears of the message. A
   process that is killed between the two leaves a file that no message has, and
   whoever wants the UID next finds its name taken: then sdbox makes its index
   anew of all files that it finds, among them copies of messages that were being
   moved, and messages whose UID somebody else has by now. In a cluster that
   shows a message twice. So such files are put aside before. The lock under
   which files get their names tells them apart: while it is held by us nobody is
   between the two, and what the index does not have was never committed. */
#include "xid-index.h"
#include "ioloop.h"
#include "mail-index-private.h"
#include "mail-transaction-log-private.h"
#include "mail-index-transaction-private.h"
#include "mail-storage-settings.h"

#include <dirent.h>
#include <stdio.h>
#include <sys/stat.h>

#define XID_SDBOX_PREFIX "u."
/* The storage removes such files itself, some days later. Until then somebody
   who knows better finds them. */
#define XID_STRAY_PREFIX ".temp.xid-stray."

#define XID_STRAYS_LOCK_REASON "xid: files without a message"

/* Nobody has written to the index's log since this process read it: one look
   where mail_index_refresh() takes two and some thousand instructions, for each
   message that is saved. */
static bool xid_index_is_current(struct mail_index *index)
{
	const struct mail_transaction_log_file *head = index->log->head;
	const struct mail_index_header *hdr = &index->map->hdr;
	struct stat st;

	return hdr->log_file_seq == head->hdr.file_seq &&
		hdr->log_file_head_offset == head->sync_offset &&
		stat(head->filepath, &st) == 0 &&
		st.st_ino == head->st_ino &&
		CMP_DEV_T(st.st_dev, head->st_dev) &&
		(uoff_t)st.st_size == head->sync_offset;
}

static int xid_index_read(struct mail_index *index)
{
	return xid_index_is_current(index) ? 0 : mail_index_refresh(index);
}

/* As it was read last. */
static uint32_t xid_index_next_uid(const struct mail_index *index)
{
	return index->map->hdr.next_uid;
}

static bool xid_sdbox_has_file(const char *dir, uint32_t uid)
{
	struct stat st;

	return stat(t_strconcat(dir, "/"XID_SDBOX_PREFIX, dec2str(uid), NULL),
		    &st) == 0;
}

/* A file has the name that one of the new messages needs. */
static bool
xid_strays_collide(struct mailbox_transaction_context *t, const char *dir)
{
	uint32_t first_uid = xid_index_next_uid(t->box->index);
	uint32_t seq, uid, next_uid = first_uid;
	bool found = FALSE;

	for (seq = t->itrans->first_new_seq;
	     seq <= t->itrans->last_new_seq && !found; seq++) T_BEGIN {
		uid = mail_index_transaction_lookup(t->itrans, seq)->uid;
		if (uid == 0)
			uid = next_uid++;
		found = uid >= first_uid && xid_sdbox_has_file(dir, uid);
	} T_END;
	return found;
}

static void
xid_stray_put_aside(struct xid_mailbox *xbox, const char *dir, const char *name,
		    uint32_t uid)
{
	const char *from = t_strdup_printf("%s/%s", dir, name);
	const char *to = t_strdup_printf("%s/"XID_STRAY_PREFIX"%s.%u", dir,
					 dec2str(ioloop_time), uid);
	struct event *event = xbox->xuser->user->event;

	if (rename(from, to) < 0)
		e_error(event, "xid: rename(%s, %s) failed: %m", from, to);
	else {
		e_info(event, "xid: %s: %s belongs to no message: a process "
		       "was killed while it saved; it is %s now",
		       xbox->xuser->user->username, from, to);
	}
}

/* Those from this UID on. */
static void
xid_strays_put_aside(struct xid_mailbox *xbox, const char *dir,
		     uint32_t first_uid)
{
	struct dirent *d;
	uint32_t uid;
	DIR *files;

	files = opendir(dir);
	if (files == NULL)
		return;
	while ((d = readdir(files)) != NULL) T_BEGIN {
		if (str_begins(d->d_name, XID_SDBOX_PREFIX) &&
		    str_to_uint32(d->d_name + strlen(XID_SDBOX_PREFIX),
				  &uid) == 0 && uid >= first_uid)
			xid_stray_put_aside(xbox, dir, d->d_name, uid);
	} T_END;
	(void)closedir(files);
}

/* An index that is not what it was (it was lost, or found broken) decides
   nothing. */
static bool xid_index_is_whole(struct mail_index *index)
{
	return index->map->hdr.next_uid > 1 &&
		(index->map->hdr.flags & (MAIL_INDEX_HDR_FLAG_CORRUPTED |
					  MAIL_INDEX_HDR_FLAG_FSCKD)) == 0;
}

static void
xid_strays_clear_locked(struct mailbox_transaction_context *t, const char *dir)
{
	struct mail_index *index = t->box->index;

	/* Somebody else may have saved a moment ago. */
	if (mail_index_refresh(index) < 0 || !xid_index_is_whole(index) ||
	    !xid_strays_collide(t, dir))
		return;
	xid_strays_put_aside(xid_mailbox_context(t->box), dir,
			     xid_index_next_uid(index));
}

static bool xid_strays_matter(struct mailbox_transaction_context *t)
{
	struct mailbox *box = t->box;

	/* Without fsync a power failure may leave messages that were
	   acknowledged, and that the index does not have. */
	return strcmp(box->storage->name, "sdbox") == 0 &&
		xid_mailbox_context(box)->xuser->set.uid_source !=
			XID_UID_SOURCE_LOCAL &&
		box->storage->set->parsed_fsync_mode != FSYNC_MODE_NEVER &&
		t->itrans->first_new_seq != 0 &&
		!mail_index_is_locked(box->index);
}

void xid_strays_clear(struct mailbox_transaction_context *t)
{
	struct mail_index *index = t->box->index;
	const char *dir = mailbox_get_path(t->box);

	if (!xid_strays_matter(t) || xid_index_read(index) < 0 ||
	    !xid_strays_collide(t, dir))
		return;
	/* What goes wrong the storage finds out itself. */
	if (mail_index_lock_sync(index, XID_STRAYS_LOCK_REASON) < 0)
		return;
	xid_strays_clear_locked(t, dir);
	mail_index_unlock(index, XID_STRAYS_LOCK_REASON);
}
