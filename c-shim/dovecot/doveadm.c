/* doveadm xid ...: the commands, and the mailbox that they are about. They
   serve the cluster daemon, through doveadm-server mostly: many commands on one
   connection, for users with different system users. So nothing is kept from
   one command to the next, and nothing here ends the process: wrong arguments
   are an exit code as every other failure. */
#include "xid-doveadm.h"
#include "hex-binary.h"
#include "str.h"
#include "unichar.h"

#define XID_MAILBOX_USAGE "<mailbox GUID> <name> "

static struct doveadm_mail_cmd_context *
xid_doveadm_alloc(const struct xid_doveadm_cmd *host_cmd);

/*
 * Failures
 */

static int
xid_doveadm_failed(struct xid_doveadm *cmd, enum mail_error error,
		   const char *text)
{
	/* The daemon asks for mailboxes that are gone, and needs the exit code
	   only: nothing is wrong that an administrator should read of. */
	if (error == MAIL_ERROR_NOTFOUND &&
	    cmd->ctx.cctx->conn_type != DOVEADM_CONNECTION_TYPE_CLI)
		e_debug(cmd->user->event, "%s: %s", cmd->cmd->host.name, text);
	else
		e_error(cmd->user->event, "%s: %s", cmd->cmd->host.name, text);
	doveadm_mail_failed_error(&cmd->ctx, error);
	return -1;
}

int xid_doveadm_fail(struct xid_doveadm *cmd, enum mail_error error,
		     const char *format, ...)
{
	va_list args;
	int ret;

	va_start(args, format);
	ret = xid_doveadm_failed(cmd, error, t_strdup_vprintf(format, args));
	va_end(args);
	return ret;
}

int xid_doveadm_fail_box(struct xid_doveadm *cmd, struct mailbox *box,
			 const char *what)
{
	enum mail_error error;
	const char *text = mailbox_get_last_internal_error(box, &error);

	/* The mailbox is there: that something in it is not is no answer to
	   "is it there". */
	if (error == MAIL_ERROR_NOTFOUND)
		error = MAIL_ERROR_TEMP;
	return xid_doveadm_fail(cmd, error, "%s: %s: %s",
				mailbox_get_vname(box), what, text);
}

int xid_doveadm_find_guid(struct xid_doveadm *cmd, struct mailbox *box,
			  const char *guid, ARRAY_TYPE(xid_found_mail) *found)
{
	if (xid_mailbox_find_guid(box, guid, found) == 0)
		return 0;
	return xid_doveadm_fail(cmd, MAIL_ERROR_TEMP,
		"%s: the registry cannot be asked, as was logged",
		mailbox_get_vname(box));
}

int xid_doveadm_number(struct xid_doveadm *cmd, unsigned int idx,
		       const char *what, uint32_t *number_r)
{
	if (str_to_uint32(cmd->args[idx], number_r) == 0)
		return 0;
	return xid_doveadm_fail(cmd, MAIL_ERROR_PARAMS,
		"%s: expected a number up to %u as %s",
		cmd->args[idx], (uint32_t)-1, what);
}

/*
 * The mailbox
 */

int xid_doveadm_sync(struct xid_doveadm *cmd)
{
	int ret = mailbox_sync(cmd->box, 0);

	if (ret == 0 && cmd->xbox->strays) {
		cmd->xbox->strays = FALSE;
		ret = mailbox_sync(cmd->box, 0);
	}
	if (ret < 0)
		return xid_doveadm_fail_box(cmd, cmd->box, "sync");
	return 0;
}

/* 1 = there is a mailbox, and it is open; 0 = there is none, -1 = error */
static int xid_doveadm_box_open(struct xid_doveadm *cmd, struct mailbox *box)
{
	enum mailbox_existence existence;

	/* Opening INBOX could make it. */
	if (mailbox_exists(box, FALSE, &existence) < 0)
		return xid_doveadm_fail_box(cmd, box, "look");
	if (existence != MAILBOX_EXISTENCE_SELECT)
		return 0;
	if (mailbox_open(box) == 0)
		return 1;
	if (mailbox_get_last_mail_error(box) == MAIL_ERROR_NOTFOUND)
		return 0;
	return xid_doveadm_fail_box(cmd, box, "open");
}

/* Returns as above. Takes the box in any case. guid NULL = whichever it is. */
static int
xid_doveadm_box_try(struct xid_doveadm *cmd, struct mailbox *box,
		    const guid_128_t guid)
{
	struct mailbox_metadata metadata;
	int ret = xid_doveadm_box_open(cmd, box);

	if (ret > 0 && guid != NULL) {
		if (mailbox_get_metadata(box, MAILBOX_METADATA_GUID,
					 &metadata) < 0)
			ret = xid_doveadm_fail_box(cmd, box, "GUID");
		else if (!guid_128_equals(metadata.guid, guid))
			ret = 0;
	}
	if (ret <= 0)
		mailbox_free(&box);
	else
		cmd->box = box;
	return ret;
}

bool xid_doveadm_namespace_is_own(const struct mail_namespace *ns)
{
	return ns->type == MAIL_NAMESPACE_TYPE_PRIVATE &&
		ns->alias_for == NULL &&
		(ns->flags & NAMESPACE_FLAG_UNUSABLE) == 0;
}

static int
xid_doveadm_box_by_name(struct xid_doveadm *cmd, const char *name,
			const guid_128_t guid)
{
	struct mail_namespace *ns;

	if (*name == '\0' || !uni_utf8_str_is_valid(name))
		return 0;
	ns = mail_namespace_find(cmd->user->namespaces, name);
	if (!xid_doveadm_namespace_is_own(ns))
		return 0;
	return xid_doveadm_box_try(cmd, mailbox_alloc(ns->list, name,
				MAILBOX_FLAG_IGNORE_ACLS), guid);
}

static int
xid_doveadm_box_by_guid(struct xid_doveadm *cmd, const guid_128_t guid)
{
	struct mail_namespace *ns;
	int ret = 0;

	for (ns = cmd->user->namespaces; ns != NULL && ret == 0; ns = ns->next) {
		if (!xid_doveadm_namespace_is_own(ns))
			continue;
		ret = xid_doveadm_box_try(cmd, mailbox_alloc_guid(ns->list, guid,
				MAILBOX_FLAG_IGNORE_ACLS), guid);
	}
	return ret;
}

/* Two nodes made a mailbox of that name, and the one here is not yet the other's:
   who got messages from it by way of the other must hear their XIDs. */
static int xid_doveadm_box_twin(struct xid_doveadm *cmd, const char *name)
{
	cmd->twin = TRUE;
	return xid_doveadm_box_by_name(cmd, name, NULL);
}

static int
xid_doveadm_box_find(struct xid_doveadm *cmd, const char *guid_hex,
		     const char *name)
{
	guid_128_t guid;
	int ret;

	if (guid_128_from_string(guid_hex, guid) < 0) {
		return xid_doveadm_fail(cmd, MAIL_ERROR_PARAMS,
			"%s: expected a mailbox GUID of 32 hex digits",
			guid_hex);
	}
	ret = xid_doveadm_box_by_name(cmd, name, guid);
	if (ret == 0)
		ret = xid_doveadm_box_by_guid(cmd, guid);
	if (ret == 0 && cmd->cmd->run == xid_doveadm_xids)
		ret = xid_doveadm_box_twin(cmd, name);
	if (ret == 0) {
		return xid_doveadm_fail(cmd, MAIL_ERROR_NOTFOUND,
			"%s (%s): no such mailbox", guid_hex, name);
	}
	return ret < 0 ? -1 : 0;
}

static int xid_doveadm_run_in_box(struct xid_doveadm *cmd)
{
	if (xid_doveadm_box_find(cmd, cmd->args[0], cmd->args[1]) < 0)
		return -1;
	cmd->args += 2;
	cmd->xbox = xid_mailbox_get(cmd->box);
	if (cmd->xbox == NULL) {
		return xid_doveadm_fail(cmd, MAIL_ERROR_NOTPOSSIBLE,
			"%s: messages have no XIDs here",
			mailbox_get_vname(cmd->box));
	}
	if (xid_doveadm_sync(cmd) < 0)
		return -1;
	return cmd->cmd->run(cmd);
}

/*
 * Commands
 */

/* look <above> [<max>] */
static int xid_doveadm_look(struct xid_doveadm *cmd)
{
	if (xid_doveadm_number(cmd, 0, "UID", &cmd->above) < 0 ||
	    (cmd->args[1] != NULL &&
	     xid_doveadm_number(cmd, 1, "count", &cmd->max) < 0))
		return -1;
	return xid_doveadm_answer_state(cmd);
}

#define XID_DOVEADM_CMD(ident, cmd_name, cmd_usage, min, max, run_func) \
static struct doveadm_mail_cmd_context *xid_doveadm_alloc_##ident(void); \
static struct xid_doveadm_cmd xid_doveadm_cmd_##ident = { \
	.host = { \
		.name = "xid " cmd_name, \
		.mail_cmd = xid_doveadm_alloc_##ident, \
		.usage = DOVEADM_CMD_MAIL_USAGE_PREFIX cmd_usage, \
		.flags = CMD_FLAG_NO_UNORDERED_OPTIONS, \
DOVEADM_CMD_PARAMS_START \
DOVEADM_CMD_MAIL_COMMON \
DOVEADM_CMD_PARAM('a', "all", CMD_PARAM_BOOL, 0) \
DOVEADM_CMD_PARAM('\0', "arguments", CMD_PARAM_ARRAY, \
		  CMD_PARAM_FLAG_POSITIONAL) \
DOVEADM_CMD_PARAMS_END, \
	}, \
	.min_args = min, \
	.max_args = max, \
	.run = run_func, \
}; \
static struct doveadm_mail_cmd_context *xid_doveadm_alloc_##ident(void) \
{ \
	return xid_doveadm_alloc(&xid_doveadm_cmd_##ident); \
}

XID_DOVEADM_CMD(look, "look",
		"[-a] " XID_MAILBOX_USAGE "<above UID> [<max>]",
		3, 4, xid_doveadm_look)
XID_DOVEADM_CMD(expose, "expose",
		XID_MAILBOX_USAGE "<watermark> <limit> <bound> <above UID>",
		6, 6, xid_doveadm_expose)
XID_DOVEADM_CMD(promise, "promise",
		XID_MAILBOX_USAGE "<last UID> <above UID>",
		4, 4, xid_doveadm_promise)
XID_DOVEADM_CMD(release, "release",
		XID_MAILBOX_USAGE "<last UID> <above UID>",
		4, 4, xid_doveadm_release)
XID_DOVEADM_CMD(gate, "gate",
		XID_MAILBOX_USAGE "close|open <milliseconds> <above UID>",
		5, 5, xid_doveadm_gate)
XID_DOVEADM_CMD(raise, "raise",
		XID_MAILBOX_USAGE "<floor> <above UID>",
		4, 4, xid_doveadm_raise)
XID_DOVEADM_CMD(drop, "drop",
		XID_MAILBOX_USAGE "<UIDs> <above UID>",
		4, 4, xid_doveadm_drop)
XID_DOVEADM_CMD(stage, "stage",
		XID_MAILBOX_USAGE "<UIDs> <above UID>",
		4, 4, xid_doveadm_stage)
XID_DOVEADM_CMD(unstage, "unstage",
		XID_MAILBOX_USAGE "<message GUID> <above UID>",
		4, 4, xid_doveadm_unstage)
XID_DOVEADM_CMD(dropstaged, "dropstaged",
		XID_MAILBOX_USAGE "<message GUID> <above UID>",
		4, 4, xid_doveadm_dropstaged)
XID_DOVEADM_CMD(adopt, "adopt",
		XID_MAILBOX_USAGE "<UID>:<XID>[,...] <above UID>",
		4, 4, xid_doveadm_adopt)
XID_DOVEADM_CMD(xids, "xids",
		XID_MAILBOX_USAGE "<message GUID> [...]",
		3, UINT_MAX, xid_doveadm_xids)
XID_DOVEADM_CMD(settled, "settled",
		XID_MAILBOX_USAGE "<last UID> <message GUID> [...]",
		3, UINT_MAX, xid_doveadm_settled)
XID_DOVEADM_CMD(pending, "pending", "", 0, 0, xid_doveadm_pending)

static struct xid_doveadm_cmd *const xid_doveadm_cmds[] = {
	&xid_doveadm_cmd_look,
	&xid_doveadm_cmd_expose,
	&xid_doveadm_cmd_promise,
	&xid_doveadm_cmd_release,
	&xid_doveadm_cmd_gate,
	&xid_doveadm_cmd_raise,
	&xid_doveadm_cmd_drop,
	&xid_doveadm_cmd_stage,
	&xid_doveadm_cmd_unstage,
	&xid_doveadm_cmd_dropstaged,
	&xid_doveadm_cmd_adopt,
	&xid_doveadm_cmd_xids,
	&xid_doveadm_cmd_settled,
	&xid_doveadm_cmd_pending,
};

/*
 * As doveadm calls us
 */

static int xid_doveadm_check(struct xid_doveadm *cmd)
{
	unsigned int count = str_array_length(cmd->args);

	if (count < cmd->cmd->min_args || count > cmd->cmd->max_args) {
		return xid_doveadm_fail(cmd, MAIL_ERROR_PARAMS,
			"wrong number of arguments: expected %s",
			cmd->cmd->host.usage);
	}
	cmd->xuser = xid_user_get(cmd->user);
	if (cmd->xuser == NULL) {
		return xid_doveadm_fail(cmd, MAIL_ERROR_NOTPOSSIBLE,
			"plug-in xid is off for this user: see that it is "
			"among his mail_plugins, also for doveadm");
	}
	cmd->xuser->acts_for_cluster = TRUE;
	/* another node's daemon asks: to ask it back would have no end */
	cmd->xuser->asks_nobody = cmd->cmd->run == xid_doveadm_xids;
	return 0;
}

static int
xid_doveadm_run(struct doveadm_mail_cmd_context *ctx, struct mail_user *user)
{
	struct xid_doveadm *cmd = container_of(ctx, struct xid_doveadm, ctx);
	int ret;

	cmd->user = user;
	cmd->args = ctx->args;
	cmd->twin = FALSE;
	cmd->above = 0;
	cmd->max = (uint32_t)-1;
	ret = xid_doveadm_check(cmd);
	if (ret == 0)
		ret = cmd->cmd->min_args == 0 ? cmd->cmd->run(cmd) :
			xid_doveadm_run_in_box(cmd);
	cmd->xbox = NULL;
	if (cmd->box != NULL)
		mailbox_free(&cmd->box);
	return ret;
}

static bool
xid_doveadm_parse_arg(struct doveadm_mail_cmd_context *ctx, int c)
{
	struct xid_doveadm *cmd = container_of(ctx, struct xid_doveadm, ctx);

	if (c != 'a')
		return FALSE;
	cmd->all = TRUE;
	return TRUE;
}

static void
xid_doveadm_cmd_init(struct doveadm_mail_cmd_context *ctx ATTR_UNUSED,
		     const char *const args[] ATTR_UNUSED)
{
	doveadm_print_header("xid", "xid", DOVEADM_PRINT_HEADER_FLAG_HIDE_TITLE);
}

static struct doveadm_mail_cmd_context *
xid_doveadm_alloc(const struct xid_doveadm_cmd *host_cmd)
{
	struct xid_doveadm *cmd = doveadm_mail_cmd_alloc(struct xid_doveadm);

	cmd->cmd = host_cmd;
	cmd->ctx.getopt_args = "a";
	cmd->ctx.v.parse_arg = xid_doveadm_parse_arg;
	cmd->ctx.v.init = xid_doveadm_cmd_init;
	cmd->ctx.v.run = xid_doveadm_run;
	doveadm_print_init(DOVEADM_PRINT_TYPE_FLOW);
	return &cmd->ctx;
}

void xid_doveadm_init(void)
{
	unsigned int i;

	if (doveadm_cmd_register_ver2 == NULL)
		return;
	for (i = 0; i < N_ELEMENTS(xid_doveadm_cmds); i++)
		doveadm_cmd_register_ver2(&xid_doveadm_cmds[i]->host);
	xid_doveadm_sync_init();
}

void xid_doveadm_deinit(void)
{
	if (doveadm_cmd_register_ver2 != NULL)
		xid_doveadm_sync_deinit();
}
