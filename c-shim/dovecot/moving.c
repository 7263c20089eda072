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

#include <fcntl.h>
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

static int xid_moving_write(const char *path, const string_t *text)
{
	int fd, ret;

	fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
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
	for (i = 0; i < count; i++) {
		if (mails[i].keep.number != 0 && !mails[i].imported &&
		    mails[i].guid != NULL && *mails[i].guid != '\0')
			xid_moving_append(&mails[i], text);
	}
	if (str_len(text) == 0)
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

void xid_moving_read(struct xid_mailbox *xbox, pool_t pool,
		     ARRAY_TYPE(xid_moving) *moving)
{
	const char *path = xid_moving_path(xbox);
	struct xid_moving *mail;
	struct istream *input;
	const char *line, *tab;
	int fd;

	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd == -1)
		return;
	input = i_stream_create_fd_autoclose(&fd, 4096);
	while ((line = i_stream_read_next_line(input)) != NULL) {
		tab = strchr(line, '\t');
		if (tab == NULL)
			continue;
		mail = array_append_space(moving);
		mail->xid = p_strdup_until(pool, line, tab);
		mail->guid = p_strdup(pool, t_str_tabunescape(tab + 1));
	}
	i_stream_unref(&input);
}
