/* Messages that move within a mailbox, or come back to it, while a crash is
   possible. A storage gives a message its UID first and its index hears of it
   after; a process that is killed between the two leaves a message that has no
   XID, and whose GUID another one may still have. So what is about to be saved
   with an XID of its own is written down before, and forgotten after. Whoever
   moves messages holds replication's lock on the mailbox; one file is enough. */
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

/* XID TAB GUID */
static void
xid_moving_append(const struct xid_saved_mail *mail, string_t *text)
{
	str_append_data(text, mail->keep.ns, mail->keep.ns_len);
	str_printfa(text, "-%"PRIu64"\t", mail->keep.number);
	str_append_tabescaped(text, mail->guid);
	str_append_c(text, '\n');
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
		if (mails[i].keep.number != 0 && !mails[i].imported &&
		    mails[i].guid != NULL && *mails[i].guid != '\0')
			xid_moving_append(&mails[i], text);
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

void xid_moving_read(struct xid_mailbox *xbox, pool_t pool,
		     ARRAY_TYPE(xid_moving) *moving)
{
	const char *path = xid_moving_path(xbox);
	struct xid_moving *mail;
	struct istream *input;
	const char *line, *tab, *xid;
	int fd;

	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd == -1)
		return;
	input = i_stream_create_fd_autoclose(&fd, 4096);
	while ((line = i_stream_read_next_line(input)) != NULL) {
		tab = strchr(line, '\t');
		if (tab == NULL)
			continue;
		xid = p_strdup_until(pool, line, tab);
		mail = xid_moving_get(moving, xid);
		mail->guid = p_strdup(pool, t_str_tabunescape(tab + 1));
	}
	i_stream_unref(&input);
}

/*
 * Copies in a maildir that never got their GUIDs

   A message that is copied within its maildir gets another file name, and its
   GUID when the list of UIDs is written. Killed before that, the copy looks like
   a message of its own. It is known by its file, which is the original's.
 */

static bool
xid_maildir_stat(struct mailbox *box, const char *fname, struct stat *st_r)
{
	const char *dir = mailbox_get_path(box);

	return stat(t_strdup_printf("%s/cur/%s", dir, fname), st_r) == 0 ||
		stat(t_strdup_printf("%s/new/%s", dir, fname), st_r) == 0;
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

bool xid_moving_is_stray(struct xid_mailbox *xbox, uint32_t uid,
			 const ARRAY_TYPE(xid_moving) *moving)
{
	struct maildir_mailbox *mbox;
	enum maildir_uidlist_rec_flag flags;
	const struct xid_moving *mail;
	const char *fname;
	struct stat st;

	if (!xid_storage_is_maildir(xbox->box))
		return FALSE;
	mbox = MAILDIR_MAILBOX(xbox->box);
	if (maildir_uidlist_lookup(mbox->uidlist, uid, &flags, &fname) <= 0 ||
	    !xid_maildir_stat(xbox->box, fname, &st))
		return FALSE;
	array_foreach(moving, mail) {
		if (mail->inode == st.st_ino)
			return TRUE;
	}
	return FALSE;
}
