/* What is stable, or promised to the other nodes, never changes, whatever
   replication does; and UIDs go no further than the cluster has room for. */
#include "cluster.h"
#include "ioloop.h"
#include "time-util.h"
#include "mail-index-private.h"
#include "mail-index-transaction-private.h"
#include "maildir-storage.h"
#include "maildir-uidlist.h"

#define XID_NO_ROOM \
	"Too many UIDs in this mailbox are not agreed yet, try again later"
#define XID_NO_LIMIT \
	"The cluster has not said yet which UIDs this mailbox may use, " \
	"try again later"
#define XID_REFUSED \
	"The change would break what the cluster agreed on, try again later"

#define XID_MEANWHILE \
	"Messages came while replication was at work, try again later"

#define XID_UID_MAX_PROMISE ((uint32_t)1 << 31)

#define XID_EXPUNGE_REASON "xid: expunging what was moved"
#define XID_BARRIER_REASON "xid: a promise"

/* In a table without a cluster nothing is promised beyond what is shown. */
uint32_t xid_fixed_uid(struct xid_wait_mailbox *wbox, imap_xid_box *core)
{
	uint32_t watermark = core == NULL ? wbox->last_watermark :
		imap_xid_box_watermark(core);

	if (!xid_user_is_clustered(wbox->xbox->xuser))
		return watermark;
	/* not known: everything may be promised */
	return core == NULL ? (uint32_t)-1 :
		I_MAX(watermark, imap_xid_box_promised(core));
}

bool xid_is_joining(imap_xid_box *core)
{
	return imap_xid_box_promised(core) > XID_UID_MAX_PROMISE;
}

/* NULL = this may be. */
static const char *
xid_interlock_objection(struct xid_wait_mailbox *wbox,
			const struct xid_saved_mail *mail)
{
	imap_xid_box *core = xid_wait_attached(wbox);
	uint32_t fixed_uid, bound, watermark;

	if (mail->moved_uid != 0) {
		fixed_uid = xid_fixed_uid(wbox, core);
		if (mail->moved_uid <= fixed_uid) {
			return t_strdup_printf("UID %u would become %u, but "
				"what is up to UID %u stays (it is shown or "
				"promised)", mail->moved_uid, mail->wanted_uid,
				fixed_uid);
		}
	}
	if (core == NULL || mail->wanted_uid == 0)
		return NULL;
	watermark = imap_xid_box_watermark(core);
	if (mail->wanted_uid <= watermark) {
		return t_strdup_printf("UID %u would be saved, but all up to "
			"UID %u is stable", mail->wanted_uid, watermark);
	}
	bound = imap_xid_box_bound(core);
	if (bound != 0 && mail->wanted_uid > bound) {
		return t_strdup_printf("UID %u is above %u, the highest that "
			"there is room for", mail->wanted_uid, bound);
	}
	return NULL;
}

static const char *
xid_interlock_objections(struct mailbox_transaction_context *t)
{
	struct xid_wait_mailbox *wbox = xid_mailbox_context(t->box)->wait;
	struct xid_saved_mail *mails;
	unsigned int i, count = xid_saved_mails(t, &mails);
	const char *why = NULL;

	for (i = 0; i < count && why == NULL; i++)
		why = xid_interlock_objection(wbox, &mails[i]);
	return why;
}

static int xid_interlock_check_moves(struct mailbox_transaction_context *t)
{
	struct mailbox *box = t->box;
	struct xid_mailbox *xbox = xid_mailbox_context(box);
	imap_xid_box *core = xid_wait_attached(xbox->wait);
	const char *why;

	why = xid_interlock_objections(t);
	if (why == NULL)
		return 0;
	/* the daemon counts these lines by their first words */
	e_error(xbox->xuser->user->event, "xid: interlock: %s: %s: replication "
		"refused (%s): the cluster daemon settles this",
		xbox->xuser->user->username, mailbox_get_vname(box), why);
	if (core != NULL)
		(void)imap_xid_box_count_refusal(core);
	mail_storage_set_error(box->storage, MAIL_ERROR_TEMP, XID_REFUSED);
	return -1;
}

static int xid_interlock_check(struct mailbox_transaction_context *t)
{
	struct mailbox *box = t->box;
	const char *why;

	if (xid_interlock_check_moves(t) < 0)
		return -1;
	why = xid_between_objection(t);
	if (why == NULL)
		return 0;
	e_info(box->storage->user->event, "xid: %s: %s: replication begins "
	       "again (%s)", box->storage->user->username,
	       mailbox_get_vname(box), why);
	mail_storage_set_error(box->storage, MAIL_ERROR_TEMP, XID_MEANWHILE);
	return -1;
}

/*
 * Room for new messages
 */

/* The highest UID that the transaction would give. */
static uint32_t
xid_last_new_uid(struct mailbox_transaction_context *t, imap_xid_box *core)
{
	uint32_t next_uid = mail_index_get_header(t->box->view)->next_uid;
	uint32_t last_uid = I_MAX(next_uid - 1, imap_xid_box_last_uid(core));

	last_uid = I_MAX(last_uid,
			 xid_mailbox_context(t->box)->wait->seen_last_uid);
	return last_uid > (uint32_t)-2 - t->save_count ? (uint32_t)-2 :
		last_uid + t->save_count;
}

/* A limit that is not known leaves no room: this may be a mailbox of many
   messages on a disk that replaces a lost one. What came to it now would have
   the UIDs of messages that others show, and never let them in. */
static bool
xid_has_room(struct mailbox_transaction_context *t, imap_xid_box *core)
{
	uint32_t limit = imap_xid_box_limit(core);

	return limit != 0 && xid_last_new_uid(t, core) <= limit;
}

static bool
xid_needs_room(struct mailbox_transaction_context *t, imap_xid_box *core)
{
	struct xid_user *xuser = xid_mailbox_context(t->box)->xuser;

	return core != NULL && xid_user_is_clustered(xuser) &&
		!xid_user_replicates(xuser);
}

static void
xid_room_set_error(struct mailbox_transaction_context *t, imap_xid_box *core)
{
	mail_storage_set_error(t->box->storage, MAIL_ERROR_UNAVAILABLE,
			       imap_xid_box_limit(core) == 0 ?
			       XID_NO_LIMIT : XID_NO_ROOM);
}

/* New messages wait for room, as commands wait for UIDs. A signal ends it. */
static int xid_wait_for_room(struct mailbox_transaction_context *t)
{
	struct mailbox *box = t->box;
	struct xid_wait_mailbox *wbox = xid_mailbox_context(box)->wait;
	unsigned int slice, msecs = wbox->xbox->xuser->set.uid_wait_msecs;
	imap_xid_box *core = xid_wait_attached(wbox);
	struct timeval begin, end;
	struct event *event;
	int ret = 1;

	if (!xid_needs_room(t, core) || xid_has_room(t, core))
		return 0;
	event = xid_wait_event_begin(box->event, mailbox_get_vname(box),
				     xid_last_new_uid(t, core));
	while (!xid_has_room(t, core) && msecs > 0) {
		xid_event_remind(wbox);
		slice = I_MIN(msecs, XID_REMIND_MSECS);
		i_gettimeofday(&begin);
		ret = imap_xid_box_limit_wait(core, xid_last_new_uid(t, core),
					      slice);
		i_gettimeofday(&end);
		if (ret == 0 &&
		    timeval_diff_msecs(&end, &begin) + 20 < (int)slice)
			break;
		msecs -= slice;
	}
	io_loop_time_refresh();
	ret = xid_has_room(t, core) ? 0 : -1;
	xid_wait_event_end(&event, "room", ret == 0 ? "open" : "timeout");
	if (ret < 0)
		xid_room_set_error(t, core);
	return ret;
}

/*
 * Around a commit
 */

/* dbox asks us again under its lock. Of a maildir, the lock that it takes
   itself is taken before. */
static int xid_interlock_lock(struct mailbox *box)
{
	struct maildir_mailbox *mbox;
	int ret;

	if (!xid_storage_is_maildir(box))
		return 0;
	mbox = MAILDIR_MAILBOX(box);
	ret = maildir_uidlist_lock(mbox->uidlist);
	if (ret > 0)
		return 0;
	if (ret == 0) {
		mail_storage_set_error(box->storage, MAIL_ERROR_INUSE,
				       MAIL_ERRSTR_LOCK_TIMEOUT);
	}
	return -1;
}

static void xid_interlock_unlock(struct mailbox *box)
{
	struct maildir_mailbox *mbox;

	if (!xid_storage_is_maildir(box))
		return;
	mbox = MAILDIR_MAILBOX(box);
	maildir_uidlist_unlock(mbox->uidlist);
}

int xid_interlock_barrier(struct mailbox *box)
{
	if (xid_interlock_lock(box) < 0)
		return -1;
	xid_interlock_unlock(box);
	if (mail_index_lock_sync(box->index, XID_BARRIER_REASON) < 0) {
		mailbox_set_index_error(box);
		return -1;
	}
	mail_index_unlock(box->index, XID_BARRIER_REASON);
	return 0;
}

static void xid_interlock_note_moves(struct mailbox_transaction_context *t)
{
	struct xid_wait_mailbox *wbox = xid_mailbox_context(t->box)->wait;
	struct xid_saved_mail *mails;
	unsigned int i, count = xid_saved_mails(t, &mails);

	for (i = 0; i < count; i++) {
		if (mails[i].moved_uid == 0)
			continue;
		if (!array_is_created(&wbox->moved_uids))
			i_array_init(&wbox->moved_uids, 8);
		array_push_back(&wbox->moved_uids, &mails[i].moved_uid);
	}
}

/* A promise may have come between the copy and the expunge. Then both stay, and
   the daemon settles it as it does a move that was cut short. */
static int xid_interlock_check_moved(struct xid_wait_mailbox *wbox)
{
	struct mailbox *box = wbox->xbox->box;
	imap_xid_box *core = xid_wait_attached(wbox);
	uint32_t uid, fixed_uid = xid_fixed_uid(wbox, core);

	array_foreach_elem(&wbox->moved_uids, uid) {
		if (uid > fixed_uid)
			continue;
		e_error(wbox->xbox->xuser->user->event, "xid: interlock: "
			"%s: %s: replication refused (UID %u was moved and "
			"would go, but what is up to UID %u stays): "
			"the cluster daemon settles this",
			wbox->xbox->xuser->user->username,
			mailbox_get_vname(box), uid, fixed_uid);
		if (core != NULL)
			(void)imap_xid_box_count_refusal(core);
		mail_storage_set_error(box->storage, MAIL_ERROR_TEMP,
				       XID_REFUSED);
		return -1;
	}
	return 0;
}

int xid_interlock_begin_expunge(struct mailbox_transaction_context *t)
{
	struct xid_wait_mailbox *wbox = xid_mailbox_context(t->box)->wait;
	int ret;

	if (!array_is_created(&wbox->moved_uids))
		return 0;
	/* until the transaction is in the log: a promise takes this lock */
	if (mail_index_lock_sync(t->box->index, XID_EXPUNGE_REASON) < 0) {
		mailbox_set_index_error(t->box);
		ret = -1;
	} else {
		ret = xid_interlock_check_moved(wbox);
		if (ret == 0)
			wbox->expunge_locked = TRUE;
		else {
			mail_index_unlock(t->box->index, XID_EXPUNGE_REASON);
		}
	}
	array_free(&wbox->moved_uids);
	return ret;
}

/* While the look for room was not under the lock yet, a joining node may have
   taken in messages of the others: what came then would have a UID among theirs, for
   good, and the node could never take in the one that has it there. dbox looks
   again when it knows the UIDs; a maildir's cannot be taken back so late. */
static int xid_room_begin(struct mailbox_transaction_context *t)
{
	struct xid_wait_mailbox *wbox = xid_mailbox_context(t->box)->wait;
	imap_xid_box *core = xid_wait_attached(wbox);
	struct maildir_mailbox *mbox;
	uint32_t next_uid;

	if (!xid_needs_room(t, core) || !xid_storage_is_maildir(t->box))
		return 0;
	mbox = MAILDIR_MAILBOX(t->box);
	if (xid_interlock_lock(t->box) < 0)
		return -1;
	next_uid = maildir_uidlist_get_next_uid(mbox->uidlist);
	wbox->seen_last_uid = next_uid == 0 ? 0 : next_uid - 1;
	wbox->room_locked = xid_has_room(t, core);
	if (wbox->room_locked)
		return 0;
	xid_interlock_unlock(t->box);
	return xid_wait_for_room(t) < 0 ? -1 : xid_room_begin(t);
}

/* The UIDs are there, under the lock, and can be taken back. */
static int xid_room_recheck(struct mailbox_transaction_context *t)
{
	struct xid_wait_mailbox *wbox = xid_mailbox_context(t->box)->wait;
	imap_xid_box *core = xid_wait_attached(wbox);
	const struct seq_range *range;
	uint32_t limit;

	if (!xid_needs_room(t, core) || xid_storage_is_maildir(t->box) ||
	    array_count(&t->changes->saved_uids) == 0)
		return 0;
	range = array_back(&t->changes->saved_uids);
	limit = imap_xid_box_limit(core);
	if (limit != 0 && range->seq2 <= limit)
		return 0;
	range = array_front(&t->changes->saved_uids);
	wbox->seen_last_uid = range->seq1 - 1;
	xid_room_set_error(t, core);
	return -1;
}

int xid_interlock_begin(struct mailbox_transaction_context *t)
{
	struct xid_wait_mailbox *wbox = xid_mailbox_context(t->box)->wait;

	if (xid_wait_for_room(t) < 0)
		return -1;
	if (!t->box->storage->user->dsyncing)
		return xid_room_begin(t);
	if (xid_interlock_lock(t->box) < 0)
		return -1;
	if (xid_interlock_check(t) < 0) {
		xid_interlock_unlock(t->box);
		return -1;
	}
	xid_interlock_note_moves(t);
	wbox->rechecks = TRUE;
	return 0;
}

void xid_interlock_end(struct mailbox *box)
{
	struct xid_wait_mailbox *wbox = xid_mailbox_context(box)->wait;

	if (wbox->expunge_locked) {
		wbox->expunge_locked = FALSE;
		mail_index_unlock(box->index, XID_EXPUNGE_REASON);
	}
	if (!wbox->rechecks && !wbox->room_locked)
		return;
	wbox->rechecks = FALSE;
	wbox->room_locked = FALSE;
	xid_interlock_unlock(box);
}

int xid_interlock_recheck(struct mailbox_transaction_context *t)
{
	struct xid_wait_mailbox *wbox = xid_mailbox_context(t->box)->wait;

	/* a maildir has been locked all along */
	if (wbox == NULL)
		return 0;
	if (!wbox->rechecks)
		return xid_room_recheck(t);
	return xid_storage_is_maildir(t->box) ? 0 : xid_interlock_check(t);
}
