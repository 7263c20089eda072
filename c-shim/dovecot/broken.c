/* Replication that broke off: the other end was killed, or nothing was heard of
   it for too long. dsync then commits what it has so far, in no order: of
   messages that were on their way some are here, and some with lower UIDs are
   not. The next sync finds a message that both nodes have, and takes what is
   missing below it for expunged: it removes it where it was, although a client
   had been told that it is safe. So nothing of such a sync is committed but what
   dsync commits on its way, which has no gaps. dsync tells nobody that it
   failed, except for the log. */
#include "cluster.h"
#include "failures.h"

#include <errno.h>

/* Since a transaction began. A process runs one sync at a time. */
static bool xid_sync_broke;

static failure_callback_t *xid_error_handler_orig;

/* Lost connections and silence end with a note of what was sent last; what
   cannot be understood begins with the other end's name. */
static bool xid_says_that_sync_broke(const char *text)
{
	return str_begins(text, "dsync(") ||
		(str_begins(text, "read(") && strstr(text, "(last sent=") != NULL);
}

static void ATTR_FORMAT(2, 0)
xid_error_handler(const struct failure_context *ctx, const char *format,
		  va_list args)
{
	int old_errno = errno;
	va_list args2;

	VA_COPY(args2, args);
	T_BEGIN {
		if (xid_says_that_sync_broke(t_strdup_vprintf(format, args2)))
			xid_sync_broke = TRUE;
	} T_END;
	va_end(args2);
	errno = old_errno;
	xid_error_handler_orig(ctx, format, args);
}

void xid_broken_watch(void)
{
	failure_callback_t *fatal, *error, *info, *debug;

	xid_sync_broke = FALSE;
	/* doveadm's server has one of its own for each command */
	i_get_failure_handlers(&fatal, &error, &info, &debug);
	if (error == xid_error_handler)
		return;
	xid_error_handler_orig = error;
	i_set_error_handler(xid_error_handler);
}

int xid_broken_check(struct mailbox_transaction_context *t)
{
	struct mailbox *box = t->box;
	struct mail_user *user = box->storage->user;

	if (!user->dsyncing || !xid_sync_broke)
		return 0;
	e_info(user->event, "xid: %s: %s: replication broke off: what came of "
	       "it is not kept, it comes again",
	       user->username, mailbox_get_vname(box));
	mail_storage_set_error(box->storage, MAIL_ERROR_TEMP,
			       "Replication broke off, try again later");
	return -1;
}

void xid_broken_deinit(void)
{
	failure_callback_t *fatal, *error, *info, *debug;

	i_get_failure_handlers(&fatal, &error, &info, &debug);
	if (error == xid_error_handler)
		i_set_error_handler(xid_error_handler_orig);
}
