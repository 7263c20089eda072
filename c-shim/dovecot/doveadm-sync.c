/* doveadm's own sync, where the other node is lost meanwhile.

   A machine that lost its power ends no connection. Whoever leads a sync first
   connects, has dsync started there, and waits for the answer in a loop of its
   own that nothing ends: no limit, no signal (doveadm only notes it), not the
   end of the client that gave the command. Such a process stays for ever, and
   with it a server that is being stopped. What comes after that answer has the
   limit that is given with -T, but on the leading side alone: the other one
   waits for ten minutes, and holds the mailbox's lock, without which no other
   node can sync it. */
#include "xid-doveadm.h"
#include "ioloop.h"
#include "net.h"

#include <netinet/tcp.h>
#include <sys/select.h>
#include <sys/socket.h>

/* Until the answer. Much more than starting a process and looking a user up
   takes, and the daemon tries again. */
#define XID_SYNC_ANSWER_SECS 30
/* A node that has not acknowledged anything for so long is gone: after the idle
   time it is asked so many times. */
#define XID_SYNC_IDLE_SECS 5
#define XID_SYNC_ASK_SECS 5
#define XID_SYNC_ASK_COUNT 3
#define XID_SYNC_GONE_MSECS 20000

typedef int xid_prerun_t(struct doveadm_mail_cmd_context *ctx,
			 struct mail_storage_service_user *user,
			 const char **error_r);

/* doveadm carries out one command at a time. */
static struct {
	xid_prerun_t *prerun;
	struct timeout *to;
	/* Open before it connected: these are not the other node's. */
	fd_set others;
	bool late;
} xid_sync;

static void (*xid_next_mail_init)(struct doveadm_mail_cmd_context *ctx);

/* By TCP, that is. */
static bool xid_fd_is_connected(int fd)
{
	struct ip_addr ip;
	in_port_t port;

	return net_getpeername(fd, &ip, &port) == 0 && port != 0;
}

static void xid_sync_note_others(void)
{
	int fd;

	FD_ZERO(&xid_sync.others);
	for (fd = 0; fd < FD_SETSIZE; fd++) {
		if (xid_fd_is_connected(fd))
			FD_SET(fd, &xid_sync.others);
	}
}

/* For doveadm this is the other node's doing: it cleans up and says so. */
static void xid_sync_give_up(void *context ATTR_UNUSED)
{
	int fd;

	timeout_remove(&xid_sync.to);
	xid_sync.late = TRUE;
	for (fd = 0; fd < FD_SETSIZE; fd++) {
		if (!FD_ISSET(fd, &xid_sync.others) && xid_fd_is_connected(fd))
			(void)shutdown(fd, SHUT_RDWR);
	}
}

/* The loop that waits is made and ended while the limit runs. */
static void xid_sync_follow(struct ioloop *prev ATTR_UNUSED)
{
	if (xid_sync.to != NULL)
		xid_sync.to = io_loop_move_timeout(&xid_sync.to);
}

static int
xid_sync_prerun(struct doveadm_mail_cmd_context *ctx,
		struct mail_storage_service_user *user, const char **error_r)
{
	int ret;

	xid_sync_note_others();
	xid_sync.late = FALSE;
	xid_sync.to = timeout_add(XID_SYNC_ANSWER_SECS * 1000,
				  xid_sync_give_up, NULL);
	io_loop_add_switch_callback(xid_sync_follow);
	ret = xid_sync.prerun(ctx, user, error_r);
	io_loop_remove_switch_callback(xid_sync_follow);
	timeout_remove(&xid_sync.to);
	if (ret < 0 && xid_sync.late) {
		*error_r = t_strdup_printf("xid: no answer within %u seconds "
			"(%s): is the other node up, and its doveadm service "
			"below its limits?", XID_SYNC_ANSWER_SECS, *error_r);
	}
	return ret;
}

static void xid_set_option(int fd, int option, int value)
{
	/* Without it the other node is waited for as long as ever. */
	(void)setsockopt(fd, IPPROTO_TCP, option, &value, sizeof(value));
}

/* A node that is gone is to be noticed. */
static void xid_sync_watch_connections(void)
{
	const int on = 1;
	int fd;

	for (fd = 0; fd < FD_SETSIZE; fd++) {
		if (!xid_fd_is_connected(fd))
			continue;
		(void)setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
		xid_set_option(fd, TCP_KEEPIDLE, XID_SYNC_IDLE_SECS);
		xid_set_option(fd, TCP_KEEPINTVL, XID_SYNC_ASK_SECS);
		xid_set_option(fd, TCP_KEEPCNT, XID_SYNC_ASK_COUNT);
		xid_set_option(fd, TCP_USER_TIMEOUT, XID_SYNC_GONE_MSECS);
	}
}

static void xid_sync_mail_init(struct doveadm_mail_cmd_context *ctx)
{
	if (xid_next_mail_init != NULL)
		xid_next_mail_init(ctx);
	/* Who sits at a terminal can wait as long as he likes. */
	if (ctx->cctx->conn_type == DOVEADM_CONNECTION_TYPE_CLI)
		return;
	if (strcmp(ctx->cmd->name, "dsync-server") == 0) {
		xid_sync_watch_connections();
	} else if (strcmp(ctx->cmd->name, "sync") == 0 &&
		   ctx->v.prerun != NULL) {
		xid_sync.prerun = ctx->v.prerun;
		ctx->v.prerun = xid_sync_prerun;
	}
}

void xid_doveadm_sync_init(void)
{
	xid_next_mail_init = hook_doveadm_mail_init;
	hook_doveadm_mail_init = xid_sync_mail_init;
}

void xid_doveadm_sync_deinit(void)
{
	hook_doveadm_mail_init = xid_next_mail_init;
}
