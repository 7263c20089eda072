/* Saves while UIDs wait (spec part 6).

   Every save: an open gate first, and the new UIDs are noted as pending before
   they can be seen. IMAP saves: APPENDUID and COPYUID only when they are
   stable. Deliveries: the acknowledgement waits for the UID; a mailbox in
   which UIDs have waited for too long takes no deliveries. POP3 shows UIDs in
   UIDL, so the login waits. */
#include "wait.h"
#include "cluster.h"
#include "ioloop.h"
#include "time-util.h"
#include "mail-storage-settings.h"
#include "var-expand.h"

#include <poll.h>

/* The host moves this many messages in one transaction, and names the UIDs of
   all transactions together at the end. */
#define XID_MOVE_BATCH 1000

/* How often a delivery looks for a daemon that is not there. */
#define XID_DAEMON_LOOK_MSECS 1000

/* Changes of a mailbox that other nodes must have too; what a process writes
   into its cache when it reads is none of them. */
#define XID_TOLD_CHANGES \
	(MAIL_INDEX_TRANSACTION_CHANGE_EXPUNGE | \
	 MAIL_INDEX_TRANSACTION_CHANGE_FLAGS | \
	 MAIL_INDEX_TRANSACTION_CHANGE_KEYWORDS | \
	 MAIL_INDEX_TRANSACTION_CHANGE_MODSEQ | \
	 MAIL_INDEX_TRANSACTION_CHANGE_ATTRIBUTE)

#define XID_DELIVERY_REFUSED \
	"The UIDs of earlier messages in this mailbox are not agreed yet, " \
	"try again later"
#define XID_DELIVERY_CUT \
	"This server is cut off from its cluster, try again later"
#define XID_LOGIN_REFUSED \
	"The UIDs of new messages are not agreed yet, try again later"

static bool xid_user_service_is(const struct mail_user *user, const char *name)
{
	return user->service != NULL && strcmp(user->service, name) == 0;
}

bool xid_user_is_delivered_to(const struct mail_user *user)
{
	return xid_user_service_is(user, "lmtp") ||
		xid_user_service_is(user, "lda");
}

/*
 * Waiting in place, where the host offers no other way
 */

/* A signal ends it too, and sets *left_msecs to 0: the process is to stop. */
static bool
xid_wait_in_place(struct xid_wait_mailbox *wbox, uint32_t uid,
		  unsigned int msecs, unsigned int *left_msecs)
{
	struct timeval begin, end;
	int ret;

	i_gettimeofday(&begin);
	ret = imap_xid_box_wait(xid_wait_attached(wbox), uid, msecs);
	if (ret > 0)
		return TRUE;
	i_gettimeofday(&end);
	/* a little early for a clock that is set */
	if (ret < 0 || timeval_diff_msecs(&end, &begin) + 20 < (int)msecs)
		*left_msecs = 0;
	return FALSE;
}

static bool
xid_delivery_wait(struct xid_wait_mailbox *wbox, uint32_t uid,
		  unsigned int msecs, const char *what)
{
	struct mailbox *box = wbox->xbox->box;
	imap_xid_box *core;
	struct event *event;
	unsigned int slice;
	bool stable;

	if (xid_wait_watermark(wbox) >= uid)
		return TRUE;
	core = xid_wait_attached(wbox);
	if (msecs == 0 || core == NULL)
		return FALSE;
	event = xid_wait_event_begin(box->event, mailbox_get_vname(box), uid);
	do {
		xid_event_remind(wbox);
		slice = I_MIN(msecs, XID_REMIND_MSECS);
		msecs -= slice;
		stable = xid_wait_in_place(wbox, uid, slice, &msecs);
	} while (!stable && msecs > 0);
	io_loop_time_refresh();
	xid_wait_event_end(&event, what, stable ? "stable" : "timeout");
	return stable;
}

/* Commits wait while the gate is closed. It has a lease: this ends. An IMAP
   command waited for it already; here it can only have been closed since, while
   the client was sending the message. */
static void xid_gate_wait(struct xid_wait_mailbox *wbox)
{
	struct mailbox *box = wbox->xbox->box;
	imap_xid_box *core = xid_wait_attached(wbox);
	struct event *event;
	int ret;

	if (core == NULL || imap_xid_box_gate(core) <= 0 ||
	    ioloop_time < wbox->xbox->xuser->gates_ignored_until)
		return;
	/* what the gate was closed for */
	if (xid_user_replicates(wbox->xbox->xuser))
		return;
	event = xid_wait_event_begin(box->event, mailbox_get_vname(box), 0);
	ret = imap_xid_box_gate_wait(core,
				     wbox->xbox->xuser->set.uid_wait_msecs);
	io_loop_time_refresh();
	xid_wait_event_end(&event, "gate", ret > 0 ? "open" : "timeout");
}

/*
 * Saves
 */

void xid_wait_saved(struct xid_mailbox *xbox,
		    const struct imap_xid_entry *entries, size_t count)
{
	imap_xid_box *core;

	if (xbox->wait == NULL ||
	    xbox->xuser->set.uid_source == XID_UID_SOURCE_LOCAL || count == 0)
		return;
	/* The transaction that saves has attached it. Otherwise messages were
	   found: a mailbox without a watermark starts with them as stable. */
	core = xid_wait_attach_locked(xbox->wait, entries[count-1].uid);
	/* An assigner that does not see the message here finds it by the
	   mailbox's highest UID; it is not shown before that. */
	if (core != NULL && imap_xid_box_pending_add(core, entries, count) < 0) {
		xid_mailbox_log_error(xbox, "messages are not in the table "
				      "of those whose UIDs are to be agreed");
	}
}

void xid_wait_expunged(struct xid_mailbox *xbox, const uint32_t *uids,
		       unsigned int count)
{
	imap_xid_box *core =
		xbox->wait == NULL ? NULL : xid_wait_attached(xbox->wait);
	unsigned int i;

	for (i = 0; core != NULL && i < count; i++) {
		if (uids[i] > imap_xid_box_watermark(core))
			(void)imap_xid_box_pending_remove(core, uids[i]);
	}
}

/* No delivery where the assigner is stuck: the sender keeps the message and
   tries another server. */
static bool xid_delivery_is_stuck(struct xid_wait_mailbox *wbox)
{
	struct xid_user *xuser = wbox->xbox->xuser;
	imap_xid_box *core = xid_wait_attached(wbox);
	int64_t age_msecs = 0;
	uint32_t uid = 0;

	if (core == NULL)
		return FALSE;
	return imap_xid_box_oldest_pending(core, &uid, &age_msecs) > 0 &&
		age_msecs > (int64_t)xuser->set.delivery_wait_msecs;
}

/* Where the daemon is not there, the delivery waits until it is, for as long
   as it would wait for its UID. Returns FALSE if it does not come, or says that
   this node is none of the cluster's. A message's other recipients, who would
   each wait as long again, are refused at once; who comes later waits. */
static bool xid_delivery_is_in_cluster(struct xid_user *xuser)
{
	static time_t gave_up_at = 0;
	const time_t patience = xuser->set.delivery_wait_msecs / 1000;
	enum xid_daemon_status status;
	time_t began = 0;

	while ((status = xid_daemon_status(xuser, NULL)) ==
	       XID_DAEMON_UNREACHABLE) {
		if (began == 0)
			began = ioloop_time;
		if (ioloop_time - gave_up_at < patience)
			return FALSE;
		if (ioloop_time - began >= patience) {
			gave_up_at = ioloop_time;
			return FALSE;
		}
		/* a signal: the process is to stop */
		if (poll(NULL, 0, XID_DAEMON_LOOK_MSECS) < 0)
			return FALSE;
		io_loop_time_refresh();
	}
	gave_up_at = 0;
	return status == XID_DAEMON_IN;
}

/* NULL = the delivery may be saved. */
static const char *xid_delivery_must_wait(struct xid_wait_mailbox *wbox)
{
	struct xid_user *xuser = wbox->xbox->xuser;

	if (!xid_user_is_delivered_to(xuser->user))
		return NULL;
	if (xid_user_is_clustered(xuser) && !xid_delivery_is_in_cluster(xuser))
		return XID_DELIVERY_CUT;
	return xid_delivery_is_stuck(wbox) ? XID_DELIVERY_REFUSED : NULL;
}

static int
xid_delivery_refuse(struct mailbox_transaction_context *t, const char *why)
{
	struct mailbox *box = t->box;
	struct xid_mailbox *xbox = xid_mailbox_context(box);
	struct event *event;

	event = xid_wait_event_begin(box->event, mailbox_get_vname(box), 0);
	xid_wait_event_end(&event, "delivery", "refused");
	xid_expunge_ended(xbox->wait, t, FALSE);
	xbox->module_ctx.super.transaction_rollback(t);
	mail_storage_set_error(box->storage, MAIL_ERROR_TEMP, why);
	return -1;
}

/* The rollback must not hide why. */
static void xid_commit_refuse(struct mailbox_transaction_context *t)
{
	struct mailbox *box = t->box;
	struct xid_mailbox *xbox = xid_mailbox_context(box);

	xid_expunge_ended(xbox->wait, t, FALSE);
	mail_storage_last_error_push(box->storage);
	xbox->module_ctx.super.transaction_rollback(t);
	mail_storage_last_error_pop(box->storage);
}

static uint32_t
xid_saved_last_uid(const struct mail_transaction_commit_changes *changes)
{
	const struct seq_range *ranges;
	unsigned int count;

	if (!array_is_created(&changes->saved_uids))
		return 0;
	ranges = array_get(&changes->saved_uids, &count);
	return count == 0 ? 0 : ranges[count-1].seq2;
}

/* Should the tagged OK (or, for MOVE, the line before) name the UIDs? */
static bool
xid_saved_uids_may_show(struct xid_wait_mailbox *wbox,
			const struct mail_transaction_commit_changes *changes,
			uint32_t last_uid, bool may_wait)
{
	struct xid_settings *set = &wbox->xbox->xuser->set;

	if (!set->uids)
		return FALSE;
	if (xid_wait_watermark(wbox) >= last_uid)
		return xid_wait_has_uids(wbox->xbox->box, &changes->saved_uids);
	return may_wait && set->appenduid_grace_msecs > 0 &&
		xid_grace_begin(wbox->xbox->box, changes->uid_validity,
				last_uid);
}

static void
xid_saved_uids_hide(struct mail_transaction_commit_changes *changes, bool move)
{
	changes->no_read_perm = TRUE;
	/* A MOVE that fails later names them nevertheless. */
	if (move)
		array_clear(&changes->saved_uids);
}

/* The mailbox gets its place in the table before the first message that waits
   is saved: a mailbox without a watermark starts with all that it holds as
   stable. Maildir has no UIDVALIDITY, and does not know what it holds, before
   the first sync. */
static int xid_wait_mailbox_open(struct mailbox *box)
{
	struct xid_mailbox *xbox = xid_mailbox_context(box);

	if (xid_tree_open(box) < 0)
		return -1;
	if (!xbox->disabled && !box->creating && !xbox->xuser->renaming &&
	    strcmp(box->storage->name, "maildir") == 0 &&
	    mail_index_get_header(box->view)->uid_validity == 0)
		return xid_tree_maildir_first_sync(xbox->wait);
	return 0;
}

static struct mailbox_transaction_context *
xid_wait_transaction_begin(struct mailbox *box,
			   enum mailbox_transaction_flags flags,
			   const char *reason)
{
	struct xid_wait_mailbox *wbox = xid_mailbox_context(box)->wait;

	if ((flags & MAILBOX_TRANSACTION_FLAG_EXTERNAL) != 0 &&
	    !wbox->xbox->disabled)
		(void)xid_wait_attach(wbox);
	if (box->storage->user->dsyncing &&
	    (flags & MAILBOX_TRANSACTION_FLAG_EXTERNAL) != 0) {
		xid_broken_watch();
		xid_between_begin(wbox);
	}
	return wbox->prev.transaction_begin(box, flags, reason);
}

static void
xid_commit_told(struct xid_wait_mailbox *wbox, unsigned int save_count,
		const struct mail_transaction_commit_changes *changes)
{
	struct xid_mailbox *xbox = wbox->xbox;

	if (save_count == 0 && (changes->changes_mask & XID_TOLD_CHANGES) == 0)
		return;
	if (xid_user_replicates(xbox->xuser))
		xid_event_changed(xbox, XID_EVENT_IMPORTED);
	else {
		xid_event_changed(xbox, save_count > 0 ?
				  XID_EVENT_ADDED : XID_EVENT_FLAGS);
	}
}

static int
xid_wait_transaction_commit(struct mailbox_transaction_context *t,
			    struct mail_transaction_commit_changes *changes_r)
{
	struct mailbox *box = t->box;
	struct xid_mailbox *xbox = xid_mailbox_context(box);
	struct xid_wait_mailbox *wbox = xbox->wait;
	unsigned int save_count = t->save_count;
	bool copied_unstable = wbox->copied_unstable == t;
	bool move = t->reason != NULL && strstr(t->reason, "MOVE") != NULL;
	const char *refusal;
	uint32_t last_uid;
	int ret;

	if (copied_unstable)
		wbox->copied_unstable = NULL;
	if (!wbox->returning && xid_broken_check(t) < 0) {
		xid_commit_refuse(t);
		return -1;
	}
	if (save_count > 0 && xid_is_reassigning(t))
		return xid_reassign_commit(t, changes_r);
	if (save_count > 0) {
		refusal = xid_delivery_must_wait(wbox);
		if (refusal != NULL)
			return xid_delivery_refuse(t, refusal);
		xid_gate_wait(wbox);
		if (!box->storage->user->dsyncing)
			xid_daemon_begin_numbers(xbox);
		if (xid_import_prepare(t) < 0 || xid_interlock_begin(t) < 0) {
			xid_commit_refuse(t);
			return -1;
		}
		xid_maildir_free_names(t);
		xid_expunge_note_returned(t);
		xid_moving_begin(t);
	} else if ((wbox->expunging || xbox->reassigning) &&
		   xid_interlock_begin_expunge(t) < 0) {
		xid_commit_refuse(t);
		return -1;
	}
	xid_wait_inside++;
	ret = xbox->module_ctx.super.transaction_commit(t, changes_r);
	xid_wait_inside--;
	xid_expunge_ended(wbox, t, ret == 0);
	xid_moving_end(box, ret == 0);
	xid_interlock_end(box);
	if (ret == 0) {
		xid_commit_told(wbox, save_count, changes_r);
		xid_between_saved(wbox, &changes_r->saved_uids);
	}
	last_uid = ret < 0 || save_count == 0 ? 0 :
		xid_saved_last_uid(changes_r);
	if (last_uid == 0)
		return ret;

	xid_wait_event_pending(wbox, last_uid);
	if (xid_user_is_delivered_to(xbox->xuser->user)) {
		(void)xid_delivery_wait(wbox, last_uid,
					xbox->xuser->set.delivery_wait_msecs,
					"delivery");
	} else if (xid_wait_imap &&
		   (copied_unstable || (move && save_count >= XID_MOVE_BATCH) ||
		    !xid_saved_uids_may_show(wbox, changes_r, last_uid,
					     !move))) {
		xid_saved_uids_hide(changes_r, move);
	}
	return ret;
}

static void xid_wait_transaction_rollback(struct mailbox_transaction_context *t)
{
	struct xid_mailbox *xbox = xid_mailbox_context(t->box);

	xid_expunge_ended(xbox->wait, t, FALSE);
	xbox->module_ctx.super.transaction_rollback(t);
}

/* COPYUID would name the message's UID, which others must not know: it is not
   stable; or it is not the message's any more, and the session has not seen
   that yet. */
static bool xid_source_is_unstable(struct mail *mail)
{
	struct xid_wait_mailbox *source = xid_wait_mailbox_get(mail->box);

	if (!xid_wait_imap || source == NULL ||
	    source->xbox->xuser->set.uid_source == XID_UID_SOURCE_LOCAL)
		return FALSE;
	if (mail->uid > xid_wait_watermark(source))
		return TRUE;
	(void)mail_index_refresh(mail->box->index);
	return mail_index_is_expunged(mail->transaction->view, mail->seq);
}

static int xid_wait_copy(struct mail_save_context *ctx, struct mail *mail)
{
	struct mailbox_transaction_context *t = ctx->transaction;
	struct xid_wait_mailbox *wbox = xid_mailbox_context(t->box)->wait;

	if (xid_source_is_unstable(mail))
		wbox->copied_unstable = t;
	return wbox->prev.copy(ctx, mail);
}

/*
 * POP3
 */

static bool xid_uidl_has_uids(struct mail_user *user)
{
	const struct mail_storage_settings *set =
		mail_user_set_get_storage_set(user);

	return var_has_key(set->pop3_uidl_format, 'u', NULL);
}

/* The session's list of messages is made after its first sync. */
static int xid_pop3_sync_deinit(struct mailbox_sync_context *ctx,
				struct mailbox_sync_status *status_r)
{
	struct mailbox *box = ctx->box;
	struct xid_mailbox *xbox = xid_mailbox_context(box);
	struct xid_wait_mailbox *wbox = xbox->wait;

	if (wbox->prev.sync_deinit(ctx, status_r) < 0)
		return -1;
	(void)xid_wait_attach(wbox);
	if (wbox->login_waited)
		return 0;
	wbox->login_waited = TRUE;
	if (xid_delivery_wait(wbox, xid_wait_last_uid(box),
			      xbox->xuser->set.uid_wait_msecs, "login"))
		return 0;
	mail_storage_set_error(box->storage, MAIL_ERROR_TEMP,
			       XID_LOGIN_REFUSED);
	return -1;
}

/*
 * Which mailboxes
 */

/* Elsewhere the first sync gives a mailbox its place in the table too. */
static int xid_wait_sync_deinit(struct mailbox_sync_context *ctx,
				struct mailbox_sync_status *status_r)
{
	struct xid_wait_mailbox *wbox = xid_mailbox_context(ctx->box)->wait;
	int ret;

	ret = wbox->prev.sync_deinit(ctx, status_r);
	if (ret == 0) {
		(void)xid_wait_attach(wbox);
		xid_expunge_returned(wbox);
		ret = xid_expunge_check(wbox);
	}
	return ret;
}

static struct mailbox_sync_context *
xid_wait_sync_init(struct mailbox *box, enum mailbox_sync_flags flags)
{
	struct xid_mailbox *xbox = xid_mailbox_context(box);

	xid_expunge_decide(xbox->wait);
	return xbox->module_ctx.super.sync_init(box, flags);
}

void xid_delivery_hook(struct xid_wait_mailbox *wbox, struct mailbox_vfuncs *v)
{
	struct xid_user *xuser = wbox->xbox->xuser;

	wbox->prev.copy = v->copy;
	v->copy = xid_wait_copy;
	v->transaction_commit = xid_wait_transaction_commit;
	v->transaction_rollback = xid_wait_transaction_rollback;

	if (xuser->set.uid_source == XID_UID_SOURCE_LOCAL)
		return;
	v->open = xid_wait_mailbox_open;
	wbox->prev.transaction_begin = v->transaction_begin;
	v->transaction_begin = xid_wait_transaction_begin;
	if (xid_wait_imap)
		return;
	v->sync_init = xid_wait_sync_init;
	wbox->prev.sync_deinit = v->sync_deinit;
	v->sync_deinit = xid_user_service_is(xuser->user, "pop3") &&
		wbox->xbox->box->inbox_user && xid_uidl_has_uids(xuser->user) ?
		xid_pop3_sync_deinit : xid_wait_sync_deinit;
}
