/* What this process tells the cluster daemon, and asks of it: one connection,
   made when first needed. A daemon that is not there costs one attempt to
   connect in a second; nothing is kept for it, since it looks for what it missed
   when it starts. */
#include "cluster.h"
#include "ioloop.h"
#include "str.h"
#include "strescape.h"
#include "guid.h"
#include "time-util.h"
#include "mail-storage-settings.h"

#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>

#define XID_SOCKET_NAME "xidd"
/* The longest message, also of the daemon's answers. */
#define XID_MESSAGE_MAX (64*1024)
/* GUIDs of one question: their XIDs are shorter than the answer's limit. */
#define XID_ASK_MAX 400
#define XID_RECONNECT_MSECS 1000
/* A disk of the node has 2^50 numbers: it may lose its registry 1023 times, each
   of which takes 2^40 (src/registry/numbers.rs). */
#define XID_DISK_SHIFT 50
/* The daemon asks the other nodes before it answers. */
#define XID_ASK_XIDS_MSECS (5*1000)
/* It knows this by itself. */
#define XID_ASK_STATUS_MSECS 1000

static struct {
	int fd;
	/* The system user as whom it was made: the daemon knows (SO_PEERCRED) */
	uid_t uid;
	/* milliseconds; 0 = never */
	int64_t tried_at;
	char *path;
} daemon_conn = { .fd = -1 };

static int64_t xid_now_msecs(void)
{
	struct timespec now;

	if (clock_gettime(CLOCK_MONOTONIC, &now) < 0)
		return 0;
	return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/*
 * The connection
 */

static void xid_daemon_disconnect(void)
{
	if (daemon_conn.fd != -1)
		i_close_fd(&daemon_conn.fd);
}

static int xid_daemon_connect_to(const char *path)
{
	struct sockaddr_un addr;
	int fd;

	i_zero(&addr);
	addr.sun_family = AF_UNIX;
	if (i_strocpy(addr.sun_path, path, sizeof(addr.sun_path)) < 0) {
		errno = ENAMETOOLONG;
		return -1;
	}
	fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (fd == -1)
		return -1;
	if (connect(fd, (struct sockaddr *)&addr, sizeof(addr)) < 0) {
		i_close_fd(&fd);
		return -1;
	}
	return fd;
}

static const char *xid_daemon_path(struct mail_user *user)
{
	return t_strconcat(user->set->base_dir, "/"XID_SOCKET_NAME, NULL);
}

/* A connection that the daemon takes for this user's. A process that serves
   several users one after another may have another system user by now. */
static bool xid_daemon_connect(struct mail_user *user)
{
	const char *path = xid_daemon_path(user);
	int64_t now;

	if (daemon_conn.fd != -1 && daemon_conn.uid == user->uid &&
	    strcmp(daemon_conn.path, path) == 0)
		return TRUE;
	if (daemon_conn.fd != -1) {
		xid_daemon_disconnect();
		daemon_conn.tried_at = 0;
	}
	now = xid_now_msecs();
	if (daemon_conn.tried_at != 0 &&
	    now - daemon_conn.tried_at < XID_RECONNECT_MSECS)
		return FALSE;
	daemon_conn.tried_at = now;
	daemon_conn.fd = xid_daemon_connect_to(path);
	if (daemon_conn.fd == -1) {
		e_debug(user->event, "xid: connect(%s) failed: %m", path);
		return FALSE;
	}
	daemon_conn.uid = user->uid;
	i_free(daemon_conn.path);
	daemon_conn.path = i_strdup(path);
	return TRUE;
}

/* 1 = sent, 0 = no room now, -1 = no daemon */
static int xid_daemon_send(struct mail_user *user, const string_t *msg)
{
	unsigned int attempt;

	/* The connection may be one to a daemon that has ended since. */
	for (attempt = 0; attempt < 2; attempt++) {
		if (!xid_daemon_connect(user))
			return -1;
		if (send(daemon_conn.fd, str_data(msg), str_len(msg),
			 MSG_DONTWAIT | MSG_NOSIGNAL) >= 0)
			return 1;
		if (errno == EAGAIN || errno == ENOBUFS)
			return 0;
		xid_daemon_disconnect();
	}
	return -1;
}

/*
 * Telling
 */

static void
xid_event_send(struct mail_user *user, const char *box_guid, const char *name,
	       enum xid_event_kind kind)
{
	string_t *msg = t_str_new(256);

	str_append(msg, "C\t");
	str_append_tabescaped(msg, user->username);
	str_printfa(msg, "\t%s\t", box_guid);
	str_append_tabescaped(msg, name);
	str_printfa(msg, "\t%c", (char)kind);
	(void)xid_daemon_send(user, msg);
}

/* What an imap process has yet to tell. It does so once the command that it is at
   has its answer: what the daemons do then, the client need not wait for. */
struct xid_event_late {
	struct mail_user *user;
	guid_128_t guid;
	char *name;
	enum xid_event_kind kind;
};
static ARRAY(struct xid_event_late) late_events;
static struct timeout *to_late_events = NULL;

void xid_events_flush(void)
{
	struct xid_event_late *late;

	timeout_remove(&to_late_events);
	if (!array_is_created(&late_events))
		return;
	array_foreach_modifiable(&late_events, late) T_BEGIN {
		xid_event_send(late->user, guid_128_to_string(late->guid),
			       late->name, late->kind);
		i_free(late->name);
	} T_END;
	array_clear(&late_events);
}

static void xid_events_late(void *context ATTR_UNUSED)
{
	xid_events_flush();
}

static bool xid_event_is_late(struct mail_user *user, const guid_128_t guid,
			      enum xid_event_kind kind)
{
	const struct xid_event_late *late;

	array_foreach(&late_events, late) {
		if (late->user == user && late->kind == kind &&
		    guid_128_equals(late->guid, guid))
			return TRUE;
	}
	return FALSE;
}

static void
xid_event_send_late(struct xid_mailbox *xbox, enum xid_event_kind kind)
{
	struct mail_user *user = xbox->xuser->user;
	struct xid_event_late *late;

	if (!array_is_created(&late_events))
		i_array_init(&late_events, 4);
	if (xid_event_is_late(user, xbox->guid, kind))
		return;
	late = array_append_space(&late_events);
	late->user = user;
	guid_128_copy(late->guid, xbox->guid);
	late->name = i_strdup(mailbox_get_vname(xbox->box));
	late->kind = kind;
	if (to_late_events == NULL) {
		to_late_events = timeout_add_short_to(io_loop_get_root(), 0,
			xid_events_late, (void *)NULL);
	}
}

void xid_event_changed(struct xid_mailbox *xbox, enum xid_event_kind kind)
{
	/* the stage is the daemon's own */
	if (!xid_user_is_clustered(xbox->xuser) ||
	    guid_128_is_empty(xbox->guid) ||
	    (xbox->xuser->stage != NULL &&
	     mailbox_get_namespace(xbox->box) == xbox->xuser->stage))
		return;
	if (xid_wait_imap && kind != XID_EVENT_WAITING &&
	    !xbox->xuser->ending) {
		xid_event_send_late(xbox, kind);
		return;
	}
	/* what came before is told before */
	xid_events_flush();
	T_BEGIN {
		xid_event_send(xbox->xuser->user,
			       guid_128_to_string(xbox->guid),
			       mailbox_get_vname(xbox->box), kind);
	} T_END;
}

void xid_event_tree(struct mailbox *box)
{
	static const guid_128_t no_guid = { 0, };

	T_BEGIN {
		xid_event_send(box->storage->user, guid_128_to_string(no_guid),
			       mailbox_get_vname(box), XID_EVENT_TREE);
	} T_END;
}

/* What the daemon does itself is no news to it: it would go on for ever. */
static bool xid_event_may_remind(const struct xid_user *xuser)
{
	return xid_user_is_clustered(xuser) && !xid_user_replicates(xuser);
}

/* Several wait in one mailbox, and timers are not exact. */
static bool xid_event_was_reminded(int64_t *reminded_at)
{
	int64_t now = xid_now_msecs();

	if (*reminded_at != 0 && now - *reminded_at < XID_REMIND_MSECS / 2)
		return TRUE;
	*reminded_at = now;
	return FALSE;
}

void xid_event_remind(struct xid_wait_mailbox *wbox)
{
	if (xid_event_may_remind(wbox->xbox->xuser) &&
	    !xid_event_was_reminded(&wbox->reminded_at))
		xid_event_changed(wbox->xbox, XID_EVENT_WAITING);
}

void xid_event_remind_opened(struct xid_wait_mailbox *wbox)
{
	struct xid_user *xuser = wbox->xbox->xuser;

	if (!xid_event_may_remind(xuser))
		return;
	if (!guid_128_equals(xuser->reminded_of, wbox->xbox->guid)) {
		guid_128_copy(xuser->reminded_of, wbox->xbox->guid);
		xuser->reminded_at = 0;
	}
	if (!xid_event_was_reminded(&xuser->reminded_at))
		xid_event_remind(wbox);
}

void xid_events_deinit(void)
{
	timeout_remove(&to_late_events);
	if (array_is_created(&late_events))
		array_free(&late_events);
	xid_daemon_disconnect();
	i_free(daemon_conn.path);
	daemon_conn.tried_at = 0;
}

/*
 * Asking
 */

static bool xid_daemon_wait(short events, int64_t deadline)
{
	struct pollfd pfd = { .fd = daemon_conn.fd, .events = events };
	int64_t left = deadline - xid_now_msecs();

	return left > 0 && poll(&pfd, 1, (int)left) > 0;
}

/* A daemon that is busy gets its time. */
static bool
xid_daemon_send_wait(struct mail_user *user, const string_t *msg,
		     int64_t deadline)
{
	int ret;

	while ((ret = xid_daemon_send(user, msg)) == 0) {
		if (!xid_daemon_wait(POLLOUT, deadline))
			return FALSE;
	}
	return ret > 0;
}

/* NULL = there is no answer. */
static const char *
xid_daemon_ask(struct mail_user *user, const string_t *msg, unsigned int msecs)
{
	int64_t deadline = xid_now_msecs() + msecs;
	char *answer = NULL;
	ssize_t ret = -1;

	if (xid_daemon_send_wait(user, msg, deadline) &&
	    xid_daemon_wait(POLLIN, deadline)) {
		answer = t_malloc_no0(XID_MESSAGE_MAX + 1);
		ret = recv(daemon_conn.fd, answer, XID_MESSAGE_MAX, 0);
	}
	io_loop_time_refresh();
	if (ret <= 0) {
		/* an answer that comes later is another question's */
		xid_daemon_disconnect();
		return NULL;
	}
	answer[ret] = '\0';
	return answer;
}

enum xid_daemon_status
xid_daemon_status(struct xid_user *xuser, uint32_t *incarnation_r)
{
	enum xid_daemon_status status = XID_DAEMON_UNREACHABLE;
	const char *const *fields, *answer;
	uint32_t incarnation = 0;
	string_t *msg;

	T_BEGIN {
		msg = t_str_new(16);
		str_append_c(msg, 'S');
		answer = xid_daemon_ask(xuser->user, msg, XID_ASK_STATUS_MSECS);
		fields = t_strsplit_tabescaped(answer == NULL ? "" : answer);
		if (str_array_length(fields) >= 2 &&
		    strcmp(fields[0], "S") == 0) {
			status = strcmp(fields[1], "in") == 0 ?
				XID_DAEMON_IN : XID_DAEMON_CUT;
			if (fields[2] == NULL ||
			    str_to_uint32(fields[2], &incarnation) < 0)
				incarnation = 0;
		}
	} T_END;
	if (incarnation_r != NULL)
		*incarnation_r = incarnation;
	return status;
}

void xid_daemon_begin_numbers(struct xid_mailbox *xbox)
{
	struct xid_user *xuser = xbox->xuser;
	uint64_t given, first, skipped;
	imap_xid_root *root;
	uint32_t incarnation;

	if (!xid_user_is_clustered(xuser) || xbox->root->numbers_begun ||
	    (root = xid_root_open(xbox)) == NULL)
		return;
	xbox->root->numbers_begun = TRUE;
	if (imap_xid_counter(root, &given) < 0 || given != 0)
		return;
	(void)xid_daemon_status(xuser, &incarnation);
	if (incarnation == 0)
		return;
	/* The number below belongs to the incarnation before, so that the
	   registry begins this one. */
	first = (uint64_t)incarnation << XID_DISK_SHIFT;
	if (first >> XID_DISK_SHIFT != incarnation || first > INT64_MAX ||
	    imap_xid_numbers_take(root, first - 1, 1, &skipped) < 0) {
		e_error(xuser->user->event, "xid: %s: numbers of disk %u "
			"cannot begin: %s", xuser->user->username, incarnation,
			imap_xid_last_error());
	}
}

static int
xid_daemon_xids_parse(const char *answer, unsigned int count,
		      ARRAY_TYPE(const_string) *answers, const char **error_r)
{
	const char *const *fields;

	if (answer == NULL) {
		*error_r = "the cluster daemon xidd does not answer: see that "
			"it runs";
		return -1;
	}
	fields = t_strsplit_tabescaped(answer);
	if (strcmp(fields[0], "X") != 0 ||
	    str_array_length(fields) != count + 1) {
		*error_r = strcmp(fields[0], "E") == 0 && fields[1] != NULL ?
			t_strdup_printf("xidd: %s", fields[1]) :
			"the cluster daemon xidd answers what it was not asked";
		return -1;
	}
	array_append(answers, fields + 1, count);
	return 0;
}

static int
xid_daemon_xids_some(struct xid_mailbox *xbox, enum xid_asking asking,
		     const char *const *guids, unsigned int count,
		     ARRAY_TYPE(const_string) *answers,
		     const char **error_r)
{
	string_t *msg = t_str_new(1024);
	unsigned int i;

	str_append_c(msg, (char)asking);
	str_append_c(msg, '\t');
	str_append_tabescaped(msg, xbox->xuser->user->username);
	str_printfa(msg, "\t%s\t", guid_128_to_string(xbox->guid));
	str_append_tabescaped(msg, mailbox_get_vname(xbox->box));
	for (i = 0; i < count; i++) {
		str_append_c(msg, '\t');
		str_append_tabescaped(msg, guids[i]);
	}
	return xid_daemon_xids_parse(
		xid_daemon_ask(xbox->xuser->user, msg, XID_ASK_XIDS_MSECS),
		count, answers, error_r);
}

int xid_daemon_xids(struct xid_mailbox *xbox, enum xid_asking asking,
		    const ARRAY_TYPE(const_string) *guids,
		    ARRAY_TYPE(const_string) *answers, const char **error_r)
{
	const char *const *all;
	unsigned int i, some, count;
	size_t size;

	all = array_get(guids, &count);
	for (i = 0; i < count; i += some) {
		size = 0;
		for (some = 0; i + some < count && some < XID_ASK_MAX; some++) {
			size += strlen(all[i + some]) * 2 + 1;
			if (some > 0 && size > XID_MESSAGE_MAX / 2)
				break;
		}
		if (xid_daemon_xids_some(xbox, asking, all + i, some, answers,
					 error_r) < 0)
			return -1;
	}
	return 0;
}

int xid_answer_parse(const char *found, uint32_t *uid_r,
		     struct imap_xid *xid_r)
{
	const char *colon = strchr(found, ':');

	if (colon == NULL ||
	    str_to_uint32(t_strdup_until(found, colon), uid_r) < 0)
		return -1;
	return imap_xid_parse(colon + 1, strlen(colon + 1), xid_r) < 0 ? -1 : 0;
}
