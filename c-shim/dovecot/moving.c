/* Messages that move within a mailbox, or come back to it, while a crash is
   possible. A storage gives a message its UID first and its index hears of it
   after; a process that is killed between the two leaves a message that has no
   XID, and whose GUID another one may still have. So what is about to be saved
   with an XID of its own is written down before, and forgotten after. Whoever
   moves messages holds replication's lock on the mailbox; one file is enough.

   So it is with what comes from another node into a maildir: its GUID is in the
   list of UIDs, unless its file is named so. */
#include "xid-index.h"
#include "str.h"
#include "strescape.h"
#include "istream.h"
#include "write-full.h"
#include "mail-index-private.h"
#include "maildir-storage.h"
#include "maildir-uidlist.h"
#include "maildir-filename.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#define XID_MOVING_FILE "xid.moving"

static const char *xid_moving_path(struct xid_mailbox *xbox)
{
	return t_strconcat(xbox->box->index->dir, "/"XID_MOVING_FILE, NULL);
}

/* The file of a message that came from another node, before it has its name. */
static bool
xid_moving_stat_saved(struct mailbox_transaction_context *t, uint32_t seq,
		      struct stat *st_r)
{
	int ret;

	T_BEGIN {
		ret = stat(maildir_save_file_get_path(t, seq), st_r);
	} T_END;
	return ret == 0;
}

/* XID TAB GUID, where it is known TAB inode, and of what is no copy TAB size TAB
   mtime */
static void
xid_moving_append(struct mailbox_transaction_context *t,
		  const struct xid_saved_mail *mail, string_t *text)
{
	struct stat st;

	str_append_data(text, mail->keep.ns, mail->keep.ns_len);
	str_printfa(text, "-%"PRIu64"\t", mail->keep.number);
	str_append_tabescaped(text, mail->guid);
	if (mail->inode != 0)
		str_printfa(text, "\t%"PRIuMAX, (uintmax_t)mail->inode);
	else if (mail->imported && xid_moving_stat_saved(t, mail->seq, &st)) {
		str_printfa(text, "\t%"PRIuMAX"\t%"PRIuUOFF_T"\t%"PRIdTIME_T,
			    (uintmax_t)st.st_ino, (uoff_t)st.st_size,
			    st.st_mtime);
	}
	str_append_c(text, '\n');
}

/* Of what comes from another node the index of a dbox hears with its XID, or not
   at all. */
static bool
xid_moving_is_noted(struct mailbox *box, const struct xid_saved_mail *mail)
{
	return mail->keep.number != 0 &&
		mail->guid != NULL && *mail->guid != '\0' &&
		(!mail->imported || xid_storage_is_maildir(box));
}

/* What an earlier process left may still be needed: it stays. Its last line may
   be half a line. */
static int xid_moving_write(const char *path, const string_t *text)
{
	int fd, ret;

	fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
	if (fd == -1)
		return -1;
	ret = write_full(fd, str_data(text), str_len(text));
	if (ret == 0)
		ret = fdatasync(fd);
	if (close(fd) < 0)
		ret = -1;
	return ret;
}

void xid_moving_begin(struct mailbox_transaction_context *t)
{
	struct xid_mailbox *xbox = xid_mailbox_context(t->box);
	struct xid_saved_mail *mails;
	unsigned int i, count;
	string_t *text;

	if (xbox->disabled)
		return;
	count = xid_saved_mails(t, &mails);
	text = t_str_new(256);
	str_append_c(text, '\n');
	for (i = 0; i < count; i++) {
		if (xid_moving_is_noted(t->box, &mails[i]))
			xid_moving_append(t, &mails[i], text);
	}
	if (str_len(text) == 1)
		return;
	xbox->moving = TRUE;
	xbox->moved = FALSE;
	/* It only matters if we are killed now. */
	if (xid_moving_write(xid_moving_path(xbox), text) < 0) {
		e_warning(xbox->xuser->user->event, "xid: %s: cannot write: %m",
			  xid_moving_path(xbox));
	}
}

/* Where the commit failed something may be there all the same; and where the
   index was rebuilt meanwhile messages get their XIDs later. */
void xid_moving_end(struct mailbox *box, bool success)
{
	struct xid_mailbox *xbox = xid_mailbox_context(box);

	if (!xbox->moving)
		return;
	xbox->moving = FALSE;
	if (!success || !xbox->moved)
		return;
	i_unlink_if_exists(xid_moving_path(xbox));
}

/* The message's place in the list; the last line about it counts. */
static struct xid_moving *
xid_moving_get(ARRAY_TYPE(xid_moving) *moving, const char *xid)
{
	struct xid_moving *mail;

	array_foreach_modifiable(moving, mail) {
		if (strcmp(mail->xid, xid) == 0)
			return mail;
	}
	mail = array_append_space(moving);
	mail->xid = xid;
	return mail;
}

static void
xid_moving_parse(const char *line, pool_t pool, ARRAY_TYPE(xid_moving) *moving)
{
	const char *const *fields = t_strsplit(line, "\t");
	unsigned int count = str_array_length(fields);
	struct xid_moving *mail;
	uintmax_t inode;

	if (count < 2)
		return;
	mail = xid_moving_get(moving, p_strdup(pool, fields[0]));
	mail->guid = p_strdup(pool, t_str_tabunescape(fields[1]));
	mail->inode = count > 2 && str_to_uintmax(fields[2], &inode) == 0 ?
		(ino_t)inode : 0;
	/* that a line was torn makes no file somebody else's */
	if (count < 5 || str_to_uoff(fields[3], &mail->size) < 0 ||
	    str_to_time(fields[4], &mail->mtime) < 0)
		mail->size = 0;
}

void xid_moving_read(struct xid_mailbox *xbox, pool_t pool,
		     ARRAY_TYPE(xid_moving) *moving)
{
	const char *path = xid_moving_path(xbox);
	struct istream *input;
	const char *line;
	int fd;

	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd == -1)
		return;
	input = i_stream_create_fd_autoclose(&fd, 4096);
	while ((line = i_stream_read_next_line(input)) != NULL) T_BEGIN {
		xid_moving_parse(line, pool, moving);
	} T_END;
	i_stream_unref(&input);
}

/*
 * Copies in a maildir that never got their GUIDs

   A message that is copied gets another file name, and its GUID when the list of
   UIDs is written. Killed before that, the copy looks like a message of its own.
   It is known by its file, which is the original's under another name.
 */

static bool
xid_maildir_stat(struct mailbox *box, const char *fname, struct stat *st_r)
{
	const char *dir = mailbox_get_path(box);

	return stat(t_strdup_printf("%s/cur/%s", dir, fname), st_r) == 0 ||
		stat(t_strdup_printf("%s/new/%s", dir, fname), st_r) == 0;
}

/* The file's name; NULL = it is not there */
static const char *
xid_maildir_find(struct mailbox *box, uint32_t uid, struct stat *st_r)
{
	struct maildir_mailbox *mbox = MAILDIR_MAILBOX(box);
	enum maildir_uidlist_rec_flag flags;
	const char *fname;

	if (maildir_uidlist_lookup(mbox->uidlist, uid, &flags, &fname) <= 0 ||
	    !xid_maildir_stat(box, fname, st_r))
		return NULL;
	return fname;
}

ino_t xid_moving_inode(struct mailbox *box, uint32_t uid)
{
	struct stat st;

	return xid_storage_is_maildir(box) &&
		xid_maildir_find(box, uid, &st) != NULL ? st.st_ino : 0;
}

static void
xid_moving_find_file(struct xid_mailbox *xbox, uint32_t uid, const char *fname,
		     ARRAY_TYPE(xid_moving) *moving)
{
	struct maildir_mailbox *mbox = MAILDIR_MAILBOX(xbox->box);
	struct xid_moving *mail;
	const char *guid;
	struct stat st;

	guid = maildir_uidlist_lookup_ext(mbox->uidlist, uid,
					  MAILDIR_UIDLIST_REC_EXT_GUID);
	if (guid == NULL)
		guid = t_strcut(fname, MAILDIR_INFO_SEP);
	array_foreach_modifiable(moving, mail) {
		if (mail->inode == 0 && strcmp(mail->guid, guid) == 0 &&
		    xid_maildir_stat(xbox->box, fname, &st))
			mail->inode = st.st_ino;
	}
}

void xid_moving_find_files(struct xid_mailbox *xbox,
			   ARRAY_TYPE(xid_moving) *moving)
{
	struct maildir_mailbox *mbox;
	struct maildir_uidlist_iter_ctx *iter;
	enum maildir_uidlist_rec_flag flags;
	const char *fname;
	uint32_t uid;

	if (!xid_storage_is_maildir(xbox->box) || array_count(moving) == 0)
		return;
	mbox = MAILDIR_MAILBOX(xbox->box);
	iter = maildir_uidlist_iter_init(mbox->uidlist);
	while (maildir_uidlist_iter_next(iter, &uid, &flags, &fname)) T_BEGIN {
		xid_moving_find_file(xbox, uid, fname, moving);
	} T_END;
	maildir_uidlist_iter_deinit(&iter);
}

/* Of a copy the file has another name still; of another file, the number may be
   somebody else's by now. */
static bool
xid_moving_is_file(const struct xid_moving *mail, const struct stat *st)
{
	if (mail->inode != st->st_ino)
		return FALSE;
	return mail->size == 0 ? st->st_nlink > 1 :
		mail->size == (uoff_t)st->st_size &&
		mail->mtime == st->st_mtime;
}

const struct xid_moving *
xid_moving_find_stray(struct xid_mailbox *xbox, uint32_t uid,
		      const ARRAY_TYPE(xid_moving) *moving)
{
	const struct xid_moving *mail;
	struct stat st;

	if (!xid_storage_is_maildir(xbox->box) ||
	    xid_maildir_find(xbox->box, uid, &st) == NULL)
		return NULL;
	array_foreach(moving, mail) {
		if (xid_moving_is_file(mail, &st))
			return mail;
	}
	return NULL;
}

/* What the index alone no longer had would be found again as new mail. */
bool xid_moving_remove_stray(struct xid_mailbox *xbox, uint32_t uid,
			     const struct xid_moving *mail)
{
	const char *fname, *dir = mailbox_get_path(xbox->box);
	struct stat st;

	/* Its flags may have changed a moment ago, and with them its name. */
	fname = xid_maildir_find(xbox->box, uid, &st);
	return fname != NULL && xid_moving_is_file(mail, &st) &&
		(unlink(t_strdup_printf("%s/cur/%s", dir, fname)) == 0 ||
		 unlink(t_strdup_printf("%s/new/%s", dir, fname)) == 0);
}
