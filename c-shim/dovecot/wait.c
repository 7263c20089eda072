/* The watermark of a mailbox, and who waits for it.

   A waiter costs nothing while it waits: the table wakes each process that
   has waiters in a mail root through one descriptor, in the event loop. The
   descriptor is there only while somebody waits. Nothing looks from time to
   time: a thousand clients that do, each in a mail root of its own, are
   hundreds of wake-ups a second. An alarm that gets lost (somebody removed the
   descriptor's file, or who advanced was killed right then) is made good by the
   waiter's next keepalive, and at the latest when its time is over. */
#include "wait.h"
#include "cluster.h"
#include "imap-host.h"
#include "ioloop.h"
#include "llist.h"
#include "time-util.h"

/* The table's word is the watermark, the descriptor is only an alarm clock.
   Where it cannot be had (no room in the folder), waiters look this often. */
#define XID_WAIT_POLL_MSECS 250
/* How long the descriptor outlives the last who waited: his answer comes
   before the cleaning up, and a client that waits once often waits again. */
#define XID_WAIT_LINGER_MSECS 50

struct xid_wait_root {
	struct xid_wait_root *prev, *next;
	imap_xid_root *core;
	/* NULL = could not be opened: waiters look for themselves */
	imap_xid_waiter *waiter;
	struct io *io;
	/* NULL = there is nothing to do until the descriptor tells */
	struct timeout *to_check;
	struct xid_waiting *waiting;
	/* the cluster daemon is told every now and then that somebody waits */
	bool reminds:1;
	/* nobody waits: it ends soon */
	bool lingering:1;
};

struct xid_waiting {
	struct xid_waiting *prev, *next;
	struct xid_wait_root *root;
	struct xid_wait_mailbox *wbox;
	/* 0 = for the mailbox's gate to open */
	uint32_t uid;
	struct timeout *to;
	/* of a gate: when the waiter's patience ends */
	struct timeval deadline;
	/* as operators and assigners see it */
	struct imap_xid_wait announced;
	bool is_announced;
	xid_wait_callback_t *callback;
	void *context;
};

unsigned int xid_wait_users = 0;
unsigned int xid_wait_generation = 0;
bool xid_wait_imap = FALSE;
unsigned int xid_wait_inside = 0;

static struct xid_wait_root *xid_wait_roots = NULL;
static struct event_category event_category_xid = { .name = "xid" };

static void xid_wait_check(struct xid_wait_root *root);
static void xid_wait_root_open(struct xid_wait_root *root);

/*
 * Who is concerned
 */

static bool xid_wait_applies(const struct xid_settings *set)
{
	return set->uid_source != XID_UID_SOURCE_LOCAL || !set->uids;
}

struct xid_user *xid_wait_user_get(struct mail_user *user)
{
	struct xid_user *xuser;

	if (xid_wait_users == 0)
		return NULL;
	xuser = xid_user_get(user);
	return xuser != NULL && xid_wait_applies(&xuser->set) ? xuser : NULL;
}

struct xid_wait_mailbox *xid_wait_mailbox_get(struct mailbox *box)
{
	struct xid_mailbox *xbox;

	if (xid_wait_users == 0 || box == NULL)
		return NULL;
	xbox = xid_mailbox_get(box);
	return xbox == NULL || xbox->disabled ? NULL : xbox->wait;
}

bool xid_user_is_clustered(const struct xid_user *xuser)
{
	return xuser->set.uid_source == XID_UID_SOURCE_CLUSTER;
}

bool xid_user_replicates(const struct xid_user *xuser)
{
	return xuser->user->dsyncing || xuser->acts_for_cluster;
}

/*
 * Watermark
 */

uint32_t xid_wait_last_uid(struct mailbox *box)
{
	uint32_t count, uid;

	count = mail_index_view_get_messages_count(box->view);
	if (count == 0)
		return 0;
	mail_index_lookup_uid(box->view, count, &uid);
	return uid;
}

uint32_t xid_wait_first_unstable(struct mailbox *box, uint32_t watermark)
{
	uint32_t seq1, seq2;

	if (xid_wait_last_uid(box) <= watermark)
		return 0;
	if (!mail_index_lookup_seq_range(box->view, watermark + 1,
					 (uint32_t)-1, &seq1, &seq2))
		return 0;
	return seq1;
}

bool xid_wait_has_uids(struct mailbox *box, const ARRAY_TYPE(seq_range) *uids)
{
	const struct seq_range *range;
	struct mail_index_view *view;
	uint32_t seq1, seq2;
	bool has = TRUE;

	/* If this fails they are not shown. */
	if (mail_index_refresh(box->index) < 0)
		return FALSE;
	view = mail_index_view_open(box->index);
	array_foreach(uids, range) {
		if (!mail_index_lookup_seq_range(view, range->seq1, range->seq2,
						 &seq1, &seq2) ||
		    seq2 - seq1 != range->seq2 - range->seq1)
			has = FALSE;
	}
	mail_index_view_close(&view);
	return has;
}

/* The core's mailbox is opened anew when its UIDVALIDITY changed; it may get
   the same address. */
imap_xid_box *xid_wait_attached(const struct xid_wait_mailbox *wbox)
{
	const struct xid_mailbox *xbox = wbox->xbox;

	return xbox->core != NULL && xbox->core == wbox->attached &&
		xbox->core_uid_validity == wbox->attached_uid_validity ?
		xbox->core : NULL;
}

/* What the mailbox holds at this moment, not what our view saw once: where the
   table does not know the mailbox, all of it is stable. Otherwise the index as
   it was read last will do, which is as of now when the mailbox was just
   opened, as for each APPEND. */
static uint32_t xid_wait_held_uid(struct mailbox *box, imap_xid_box *core)
{
	struct mail_index_view *view;
	uint32_t next_uid;

	if (imap_xid_box_has_place(core) > 0)
		return mail_index_get_header(box->view)->next_uid - 1;
	(void)mail_index_refresh(box->index);
	view = mail_index_view_open(box->index);
	next_uid = mail_index_get_header(view)->next_uid;
	mail_index_view_close(&view);
	return next_uid - 1;
}

/* Returns as imap_xid_box_attach(). */
static int xid_wait_attach_from(struct xid_wait_mailbox *wbox,
				imap_xid_box *core, uint32_t last_uid)
{
	int ret = imap_xid_box_attach(core, last_uid);

	if (ret < 0) {
		xid_mailbox_log_error(wbox->xbox,
			"no place in the UID-assignment table: "
			"UIDs of new messages wait");
	} else {
		/* under another UIDVALIDITY there are other UIDs */
		if (wbox->attached_uid_validity !=
		    wbox->xbox->core_uid_validity)
			wbox->last_watermark = 0;
		xid_wait_generation++;
		wbox->attached = core;
		wbox->attached_uid_validity = wbox->xbox->core_uid_validity;
	}
	return ret;
}

/* The cluster daemon reads GUIDs from the mailbox; others have only what is in
   the table. A cluster's mailbox may begin with all its messages pending. */
static const char *
xid_wait_fill_guid(struct xid_wait_mailbox *wbox, struct mail *mail)
{
	const char *guid;

	if (xid_user_is_clustered(wbox->xbox->xuser) ||
	    mail_get_special(mail, MAIL_FETCH_GUID, &guid) < 0)
		return "";
	return guid;
}

static int xid_wait_fill_mail(struct xid_wait_mailbox *wbox, struct mail *mail)
{
	struct imap_xid_entry entry;
	struct imap_xid xid;

	/* It gets its XID when another node could be asked, and is told then. */
	if (!xid_mail_get(wbox->xbox, mail->transaction->view, mail->seq, &xid))
		return 0;
	i_zero(&entry);
	entry.uid = mail->uid;
	entry.ns = xid.ns;
	entry.ns_len = xid.ns_len;
	entry.number = xid.number;
	entry.guid = xid_wait_fill_guid(wbox, mail);
	entry.guid_len = strlen(entry.guid);
	return imap_xid_box_pending_add(wbox->attached, &entry, 1);
}

/* The table does not know all messages above the watermark: it was lost with
   a reboot, or a process died right after its commit. */
static void xid_wait_fill(struct xid_wait_mailbox *wbox)
{
	struct mailbox *box = wbox->xbox->box;
	struct mailbox_transaction_context *t;
	struct mail *mail;
	uint32_t seq, count;
	int ret = 0;

	seq = xid_wait_first_unstable(box,
				      imap_xid_box_watermark(wbox->attached));
	count = mail_index_view_get_messages_count(box->view);
	t = mailbox_transaction_begin(box, 0, "xid: pending UIDs");
	mail = mail_alloc(t, 0, NULL);
	for (; seq != 0 && seq <= count && ret >= 0; seq++) T_BEGIN {
		mail_set_seq(mail, seq);
		ret = xid_wait_fill_mail(wbox, mail);
	} T_END;
	mail_free(&mail);
	mailbox_transaction_rollback(&t);
	if (ret < 0 ||
	    imap_xid_box_pending_filled(wbox->attached,
			mail_index_get_header(box->view)->next_uid - 1) < 0) {
		xid_mailbox_log_error(wbox->xbox, "the UID-assignment table "
				      "lacks messages that wait");
	}
}

imap_xid_box *xid_wait_attach(struct xid_wait_mailbox *wbox)
{
	struct mailbox *box = wbox->xbox->box;
	imap_xid_box *core;
	int ret;

	if (wbox->xbox->xuser->set.uid_source == XID_UID_SOURCE_LOCAL ||
	    wbox->xbox->disabled || !box->opened || box->view == NULL)
		return NULL;
	core = xid_box_open(wbox->xbox);
	if (core == NULL || core == xid_wait_attached(wbox))
		return core;
	/* A mailbox that was never synced may not have its UIDVALIDITY. */
	if (wbox->xbox->core_uid_validity == 0)
		return NULL;
	ret = xid_wait_attach_from(wbox, core,
				   xid_wait_held_uid(box, core));
	if (ret > 0)
		xid_wait_fill(wbox);
	if (ret >= 0 &&
	    imap_xid_box_watermark(core) < xid_wait_last_uid(box))
		xid_event_remind_opened(wbox);
	return ret < 0 ? NULL : core;
}

imap_xid_box *xid_wait_attach_locked(struct xid_wait_mailbox *wbox,
				     uint32_t last_uid)
{
	imap_xid_box *core = wbox->xbox->core;

	if (core == NULL || core == xid_wait_attached(wbox))
		return core;
	return xid_wait_attach_from(wbox, core, last_uid) < 0 ? NULL : core;
}

uint32_t xid_wait_watermark(struct xid_wait_mailbox *wbox)
{
	struct mailbox *box = wbox->xbox->box;
	imap_xid_box *core = xid_wait_attached(wbox);
	uint32_t watermark;

	/* with an index in memory only there is no second session either */
	if (wbox->xbox->xuser->set.uid_source == XID_UID_SOURCE_LOCAL ||
	    wbox->xbox->disabled)
		return (uint32_t)-1;
	if (core == NULL) {
		if (!box->opened && mailbox_open(box) < 0)
			return 0;
		core = xid_wait_attach(wbox);
	}
	if (core == NULL)
		return wbox->last_watermark;
	watermark = imap_xid_box_watermark(core);
	if (watermark > wbox->last_watermark)
		wbox->last_watermark = watermark;
	return wbox->last_watermark;
}

/*
 * Waiting
 */

static void xid_wait_announce(struct xid_waiting *waiting)
{
	imap_xid_box *core = xid_wait_attached(waiting->wbox);

	if (core == NULL)
		return;
	waiting->is_announced =
		imap_xid_box_wait_begin(core, waiting->uid,
					&waiting->announced) >= 0;
}

static void xid_wait_unlink(struct xid_waiting *waiting, bool timed_out)
{
	imap_xid_box *core = xid_wait_attached(waiting->wbox);

	if (waiting->is_announced && core != NULL) {
		(void)imap_xid_box_wait_end(core, &waiting->announced,
					    timed_out ? 1 : 0);
	}
	timeout_remove(&waiting->to);
	DLLIST_REMOVE(&waiting->root->waiting, waiting);
}

static void xid_wait_finish(struct xid_waiting *waiting,
			    enum xid_wait_result result)
{
	xid_wait_callback_t *callback = waiting->callback;
	void *context = waiting->context;

	xid_wait_unlink(waiting, result == XID_WAIT_TIMED_OUT);
	i_free(waiting);
	callback(result, context);
}

/* 0 = open, else for how many milliseconds it is closed at most */
static int xid_wait_gate(struct xid_wait_mailbox *wbox)
{
	imap_xid_box *core = xid_wait_attached(wbox);

	return core == NULL ? 0 : I_MAX(imap_xid_box_gate(core), 0);
}

static bool xid_waiting_is_over(const struct xid_waiting *waiting)
{
	if (waiting->uid == 0)
		return xid_wait_gate(waiting->wbox) == 0;
	return xid_wait_watermark(waiting->wbox) >= waiting->uid;
}

static void xid_wait_timeout(struct xid_waiting *waiting);

/* Nobody is woken when the gate's lease is over. */
static void xid_wait_gate_again(struct xid_waiting *waiting)
{
	int left = timeval_diff_msecs(&waiting->deadline, &ioloop_timeval);

	timeout_remove(&waiting->to);
	waiting->to = timeout_add(I_MAX(I_MIN(left,
					      xid_wait_gate(waiting->wbox)), 1),
				  xid_wait_timeout, waiting);
}

static void xid_wait_timeout(struct xid_waiting *waiting)
{
	struct xid_wait_root *root = waiting->root;
	bool over = xid_waiting_is_over(waiting);

	if (!over && waiting->uid == 0 &&
	    timeval_cmp(&ioloop_timeval, &waiting->deadline) < 0) {
		/* the lease was prolonged */
		xid_wait_gate_again(waiting);
		return;
	}
	xid_wait_finish(waiting, over ? XID_WAIT_STABLE : XID_WAIT_TIMED_OUT);
	xid_wait_check(root);
}

static void xid_wait_root_close(struct xid_wait_root *root)
{
	timeout_remove(&root->to_check);
	io_remove(&root->io);
	imap_xid_waiter_close(root->waiter);
	root->waiter = NULL;
}

static void xid_wait_root_free(struct xid_wait_root *root)
{
	i_assert(root->waiting == NULL);

	DLLIST_REMOVE(&xid_wait_roots, root);
	xid_wait_root_close(root);
	i_free(root);
}

static void xid_wait_root_watch(struct xid_wait_root *root)
{
	root->lingering = FALSE;
	timeout_remove(&root->to_check);
	if (root->waiter == NULL || root->reminds) {
		root->to_check = timeout_add(root->waiter == NULL ?
			XID_WAIT_POLL_MSECS : XID_REMIND_MSECS,
			xid_wait_check, root);
	}
}

static void xid_wait_root_linger(struct xid_wait_root *root)
{
	/* advances do not make it longer */
	if (root->lingering)
		return;
	root->lingering = TRUE;
	timeout_remove(&root->to_check);
	root->to_check = timeout_add_short(XID_WAIT_LINGER_MSECS,
					   xid_wait_root_free, root);
}

/* Those that linger; their mail root may be about to be closed. */
static void xid_wait_roots_free_unused(void)
{
	struct xid_wait_root *root, *next;

	for (root = xid_wait_roots; root != NULL; root = next) {
		next = root->next;
		if (root->waiting == NULL)
			xid_wait_root_free(root);
	}
}

/* Wake those whose UID is stable now. */
static void xid_wait_check(struct xid_wait_root *root)
{
	struct xid_waiting *waiting;

	/* a callback may end other waits: look from the start each time */
	waiting = root->waiting;
	while (waiting != NULL) {
		if (!xid_waiting_is_over(waiting)) {
			xid_event_remind(waiting->wbox);
			waiting = waiting->next;
			continue;
		}
		xid_wait_finish(waiting, XID_WAIT_STABLE);
		waiting = root->waiting;
	}
	if (root->waiting == NULL)
		xid_wait_root_linger(root);
}

static void xid_wait_alarm(struct xid_wait_root *root)
{
	if (imap_xid_waiter_drain(root->waiter) != 0) {
		/* somebody removed its file */
		xid_wait_root_close(root);
		xid_wait_root_open(root);
	}
	xid_wait_check(root);
}

static void xid_wait_root_open(struct xid_wait_root *root)
{
	if (root->core == NULL ||
	    imap_xid_waiter_open(root->core, &root->waiter) < 0) {
		i_warning("xid: UIDs are waited for by looking every %u ms "
			  "(%s): see that xid_dir has room and is writable",
			  XID_WAIT_POLL_MSECS, imap_xid_last_error());
		root->waiter = NULL;
	} else {
		root->io = io_add(imap_xid_waiter_fd(root->waiter), IO_READ,
				  xid_wait_alarm, root);
	}
	xid_wait_root_watch(root);
}

static struct xid_wait_root *
xid_wait_root_get(imap_xid_root *core, const struct xid_user *xuser)
{
	struct xid_wait_root *root;

	for (root = xid_wait_roots; root != NULL; root = root->next) {
		if (root->core == core) {
			if (root->lingering)
				xid_wait_root_watch(root);
			return root;
		}
	}
	root = i_new(struct xid_wait_root, 1);
	root->core = core;
	root->reminds = xid_user_is_clustered(xuser) &&
		!xid_user_replicates(xuser);
	xid_wait_root_open(root);
	DLLIST_PREPEND(&xid_wait_roots, root);
	return root;
}

static void xid_wait_nothing_to_wait_for(struct xid_waiting *waiting)
{
	struct xid_wait_root *root = waiting->root;

	xid_wait_finish(waiting, XID_WAIT_STABLE);
	xid_wait_check(root);
}

static struct xid_waiting *
xid_waiting_new(struct xid_wait_mailbox *wbox, uint32_t uid,
		xid_wait_callback_t *callback, void *context)
{
	struct xid_waiting *waiting;

	waiting = i_new(struct xid_waiting, 1);
	/* Without a table the wait still ends, by its time. */
	waiting->root = xid_wait_root_get(xid_root_open(wbox->xbox),
					  wbox->xbox->xuser);
	waiting->wbox = wbox;
	waiting->uid = uid;
	waiting->callback = callback;
	waiting->context = context;
	DLLIST_PREPEND(&waiting->root->waiting, waiting);
	return waiting;
}

struct xid_waiting *
xid_wait_begin(struct xid_wait_mailbox *wbox, uint32_t uid,
	       unsigned int timeout_msecs,
	       xid_wait_callback_t *callback, void *context)
{
	struct xid_waiting *waiting;

	waiting = xid_waiting_new(wbox, uid, callback, context);
	/* The waiter is known to the table now: an advance that came before
	   is seen here, a later one wakes us. */
	if (xid_wait_watermark(wbox) >= uid) {
		waiting->to = timeout_add_short(0,
			xid_wait_nothing_to_wait_for, waiting);
	} else if (timeout_msecs != 0) {
		xid_wait_announce(waiting);
		xid_event_remind(wbox);
		waiting->to = timeout_add(timeout_msecs, xid_wait_timeout,
					  waiting);
	}
	return waiting;
}

bool xid_wait_gate_is_closed(struct xid_wait_mailbox *wbox)
{
	return xid_wait_attach(wbox) != NULL && xid_wait_gate(wbox) > 0;
}

struct xid_waiting *
xid_wait_gate_begin(struct xid_wait_mailbox *wbox, unsigned int timeout_msecs,
		    xid_wait_callback_t *callback, void *context)
{
	imap_xid_box *core = xid_wait_attached(wbox);
	struct xid_waiting *waiting;

	if (core != NULL)
		(void)imap_xid_box_gate_found_closed(core);
	waiting = xid_waiting_new(wbox, 0, callback, context);
	waiting->deadline = ioloop_timeval;
	timeval_add_msecs(&waiting->deadline, timeout_msecs);
	xid_wait_gate_again(waiting);
	return waiting;
}

bool xid_wait_look(struct xid_waiting *waiting)
{
	if (!xid_waiting_is_over(waiting))
		return FALSE;
	xid_wait_nothing_to_wait_for(waiting);
	return TRUE;
}

void xid_wait_end(struct xid_waiting **_waiting)
{
	struct xid_waiting *waiting = *_waiting;
	struct xid_wait_root *root;

	if (waiting == NULL)
		return;
	*_waiting = NULL;

	root = waiting->root;
	xid_wait_unlink(waiting, FALSE);
	i_free(waiting);
	if (root->waiting == NULL)
		xid_wait_root_free(root);
}

/*
 * What an operator watches
 */

struct event *xid_wait_event_begin(struct event *parent, const char *mailbox,
				   uint32_t uid)
{
	struct event *event = event_create(parent);

	event_add_category(event, &event_category_xid);
	event_add_str(event, "mailbox", mailbox);
	event_add_int(event, "uid", uid);
	return event;
}

void xid_wait_event_end(struct event **_event, const char *what,
			const char *result)
{
	struct event *event = *_event;

	if (event == NULL)
		return;
	*_event = NULL;

	event_set_name(event, t_strdup_printf("xid_%s_finished", what));
	event_add_str(event, "result", result);
	e_debug(event, "xid: %s ended: %s", what, result);
	event_unref(&event);
}

static void xid_wait_event_pending_free(struct xid_user *xuser)
{
	event_unref(&xuser->pending_event);
	i_free(xuser->pending_mailbox);
}

/* Each save would make one, and there are saves by the thousand: it is kept for
   as long as they go into the same mailbox. */
static struct event *
xid_wait_event_pending_get(struct xid_user *xuser, const char *mailbox)
{
	if (xuser->pending_event != NULL &&
	    strcmp(xuser->pending_mailbox, mailbox) == 0)
		return xuser->pending_event;
	xid_wait_event_pending_free(xuser);
	xuser->pending_mailbox = i_strdup(mailbox);
	xuser->pending_event = xid_wait_event_begin(xuser->user->event,
						    mailbox, 0);
	return xuser->pending_event;
}

void xid_wait_event_pending(struct xid_wait_mailbox *wbox, uint32_t uid)
{
	imap_xid_box *core = xid_wait_attached(wbox);
	uint32_t watermark, last_uid;
	struct event *event;

	if (core == NULL)
		return;
	watermark = xid_wait_watermark(wbox);
	last_uid = I_MAX(imap_xid_box_last_uid(core), uid);
	if (uid <= watermark || wbox->xbox->xuser->ending)
		return;
	event = xid_wait_event_pending_get(wbox->xbox->xuser,
					   mailbox_get_vname(wbox->xbox->box));
	event_set_name(event, "xid_message_pending");
	event_add_int(event, "uid", uid);
	event_add_int(event, "pending", last_uid - watermark);
	e_debug(event, "xid: UID %u is not stable yet, with %u others", uid,
		last_uid - watermark - 1);
}

/*
 * Mailboxes and users
 */

static void xid_wait_mailbox_close(struct mailbox *box)
{
	struct xid_wait_mailbox *wbox = xid_mailbox_context(box)->wait;

	xid_leak_close(wbox);
	if (array_is_created(&wbox->moved_uids))
		array_free(&wbox->moved_uids);
	xid_expunge_close(wbox);
	wbox->attached = NULL;
	xid_wait_generation++;
	xid_wait_inside++;
	wbox->prev.close(box);
	xid_wait_inside--;
}

static void
xid_wait_mailbox_allocated(struct xid_mailbox *xbox, struct mailbox_vfuncs *v)
{
	struct xid_wait_mailbox *wbox;

	if (!xid_wait_applies(&xbox->xuser->set) ||
	    mailbox_get_namespace(xbox->box) == xbox->xuser->stage)
		return;

	wbox = p_new(xbox->box->pool, struct xid_wait_mailbox, 1);
	wbox->xbox = xbox;
	xbox->wait = wbox;
	xid_wait_generation++;

	wbox->prev.close = v->close;
	v->close = xid_wait_mailbox_close;
	xid_delivery_hook(wbox, v);
	if (xid_user_is_clustered(xbox->xuser))
		xid_tree_hook(wbox, v);
	if (xid_wait_imap)
		xid_leak_hook(wbox, v);
}

static void xid_wait_user_deinit(struct mail_user *user)
{
	struct xid_user *xuser = xid_user_get(user);

	i_assert(xid_wait_users > 0);
	xid_wait_users--;
	xid_wait_roots_free_unused();
	xid_events_flush();
	xid_wait_event_pending_free(xuser);
	xuser->ending = TRUE;
	xuser->wait_deinit(user);
}

static void
xid_wait_user_created(struct xid_user *xuser, struct mail_user_vfuncs *v)
{
	if (!xid_wait_applies(&xuser->set))
		return;
	xid_wait_users++;
	xuser->wait_deinit = v->deinit;
	v->deinit = xid_wait_user_deinit;
}

void xid_wait_init(void)
{
	/* the imap process alone has these */
	if (command_register != NULL && imap_fetch_handlers_register != NULL)
		xid_wait_imap_init();
	xid_user_hook_add(xid_wait_user_created);
	xid_mailbox_hook_add(xid_wait_mailbox_allocated);
}

void xid_wait_deinit(void)
{
	xid_broken_deinit();
	if (xid_wait_imap)
		xid_wait_imap_deinit();
	while (xid_wait_roots != NULL) {
		struct xid_waiting *waiting = xid_wait_roots->waiting;

		/* nobody may be left, but a shutdown ends all the same */
		while (waiting != NULL) {
			struct xid_waiting *next = waiting->next;

			xid_wait_unlink(waiting, FALSE);
			i_free(waiting);
			waiting = next;
		}
		xid_wait_root_free(xid_wait_roots);
	}
	xid_events_deinit();
}
