/* The plug-in's life, and which users and mailboxes have XIDs. One file
   serves every Dovecot process; doveadm loads it twice under two names (see
   src/ffi/dovecot.rs), hence the count. */
#include "xid-plugin.h"
#include "xid-search.h"
#include "wait.h"
#include "cluster.h"
#include "xid-doveadm.h"
#include "ioloop.h"
#include "module-dir.h"
#include "mail-namespace.h"
#include "mailbox-list-private.h"
#include "mail-storage-hooks.h"

/* A mail root that could not be opened is tried again after this time: often
   enough to heal by itself, seldom enough for the log. */
#define XID_ROOT_RETRY_SECS 10

#define XID_USER_CONTEXT(obj) MODULE_CONTEXT(obj, xid_user_module)
#define XID_MAILBOX_CONTEXT(obj) MODULE_CONTEXT(obj, xid_mailbox_module)
#define XID_LIST_CONTEXT_REQUIRE(obj) \
	MODULE_CONTEXT_REQUIRE(obj, xid_list_module)

/* A folder among our files (see src/table/fifo.rs). */
#define XID_WAITERS_FOLDER "xid.waiters"

struct xid_list {
	union mailbox_list_module_context module_ctx;
};

void xid_shim_init(struct module *module);
void xid_shim_deinit(void);
void xid_shim_doveadm_init(struct module *module);
void xid_shim_doveadm_deinit(void);

static MODULE_CONTEXT_DEFINE_INIT(xid_user_module, &mail_user_module_register);
static MODULE_CONTEXT_DEFINE_INIT(xid_mailbox_module,
				  &mail_storage_module_register);
static MODULE_CONTEXT_DEFINE_INIT(xid_list_module,
				  &mailbox_list_module_register);

static unsigned int xid_refcount = 0;
static ARRAY(xid_user_hook_t *) xid_user_hooks;
static ARRAY(xid_mailbox_hook_t *) xid_mailbox_hooks;

void xid_user_hook_add(xid_user_hook_t *hook)
{
	array_push_back(&xid_user_hooks, &hook);
}

void xid_mailbox_hook_add(xid_mailbox_hook_t *hook)
{
	array_push_back(&xid_mailbox_hooks, &hook);
}

struct xid_user *xid_user_get(struct mail_user *user)
{
	return XID_USER_CONTEXT(user);
}

struct xid_mailbox *xid_mailbox_get(struct mailbox *box)
{
	struct xid_mailbox *xbox = XID_MAILBOX_CONTEXT(box);

	if (xbox == NULL || xbox->disabled)
		return NULL;
	return xbox;
}

struct xid_mailbox *xid_mailbox_context(struct mailbox *box)
{
	return MODULE_CONTEXT_REQUIRE(box, xid_mailbox_module);
}

/*
 * Mail roots
 */

static const char *xid_root_dir(struct xid_user *xuser, struct mailbox *box)
{
	struct mail_namespace *ns = mailbox_get_namespace(box);
	const char *dir;

	/* what is staged keeps its XIDs, and is known to the same registry */
	if (ns == xuser->stage)
		ns = xuser->stage_of;
	/* Two users of one mailbox must find the same table. The setting may
	   hold the user's name, so it stands for what is the user's own;
	   what another user shares has the folder that his setting says. */
	if (ns->type == MAIL_NAMESPACE_TYPE_PRIVATE && xuser->set.dir != NULL)
		return xuser->set.dir;
	if (ns->type == MAIL_NAMESPACE_TYPE_SHARED && ns->owner != NULL &&
	    xuser->set.dir != NULL) {
		dir = mail_user_plugin_getenv(ns->owner, "xid_dir");
		if (dir != NULL && *dir != '\0')
			return mail_user_home_expand(ns->owner, dir);
	}
	if (!mailbox_list_get_root_path(ns->list, MAILBOX_LIST_PATH_TYPE_INDEX,
					&dir) || *dir == '\0')
		return NULL;
	return dir;
}

static struct xid_root *
xid_root_get(struct xid_user *xuser, struct mailbox *box)
{
	const char *dir = xid_root_dir(xuser, box);
	struct xid_root *root;

	if (dir == NULL)
		return NULL;
	for (root = xuser->roots; root != NULL; root = root->next) {
		if (strcmp(root->dir, dir) == 0)
			return root;
	}
	root = p_new(xuser->user->pool, struct xid_root, 1);
	root->dir = p_strdup(xuser->user->pool, dir);
	root->next = xuser->roots;
	xuser->roots = root;
	return root;
}

imap_xid_root *xid_root_open(struct xid_mailbox *xbox)
{
	struct xid_root *root = xbox->root;
	struct imap_xid_root_options options;

	if (root->core != NULL)
		return root->core;
	if (root->failed_at != 0 &&
	    ioloop_time - root->failed_at < XID_ROOT_RETRY_SECS)
		return NULL;

	i_zero(&options);
	options.dir = root->dir;
	options.ns = xbox->xuser->set.namespace;
	options.uid_source = xbox->xuser->set.uid_source;
	if (imap_xid_root_open(&options, &root->core) < 0) {
		root->core = NULL;
		root->failed_at = ioloop_time;
		xid_mailbox_log_error(xbox, "new messages get their XIDs later");
		return NULL;
	}
	root->failed_at = 0;
	return root->core;
}

void xid_mailbox_log_error(struct xid_mailbox *xbox, const char *what)
{
	e_error(xbox->xuser->user->event, "xid: %s: %s: %s: %s",
		xbox->xuser->user->username, mailbox_get_vname(xbox->box),
		what, imap_xid_last_error());
}

/*
 * Users
 */

static void xid_mail_user_deinit(struct mail_user *user)
{
	struct xid_user *xuser = XID_USER_CONTEXT(user);
	struct xid_root *root;

	i_assert(xuser != NULL);
	/* frees the mailboxes, which use the roots */
	xuser->module_ctx.super.deinit(user);
	for (root = xuser->roots; root != NULL; root = root->next) {
		imap_xid_root_close(root->core);
		root->core = NULL;
	}
}

static void xid_mail_user_created(struct mail_user *user)
{
	struct mail_user_vfuncs *v = user->vlast;
	struct xid_user *xuser;
	struct xid_settings set;
	xid_user_hook_t *hook;
	const char *error;

	/* Made by the host for its own ends (a delivery's input, the owner of
	   a shared mailbox): never the one that reads or gets the mail. */
	if (user->autocreated)
		return;
	if (!xid_settings_read(user, user->pool, &set, &error)) {
		e_error(user->event, "xid: %s: plug-in is off for this user: "
			"%s", user->username, error);
		return;
	}
	xuser = p_new(user->pool, struct xid_user, 1);
	xuser->module_ctx.super = *v;
	user->vlast = &xuser->module_ctx.super;
	xuser->user = user;
	xuser->set = set;
	v->deinit = xid_mail_user_deinit;
	MODULE_CONTEXT_SET(user, xid_user_module, xuser);

	array_foreach_elem(&xid_user_hooks, hook)
		hook(xuser, v);
}

/*
 * Mailboxes
 */

/* Storages whose messages are another server's or another mailbox's, or that
   only stand in for something. */
static bool xid_storage_is_foreign(const struct mail_storage *storage)
{
	static const char *const foreign[] = {
		"virtual", "raw", "shared", "fail", "imapc", "pop3c", NULL
	};

	return str_array_find(foreign, storage->name);
}

void xid_user_log_memory(struct xid_user *xuser, struct mailbox *box)
{
	if (xuser->memory_logged)
		return;
	xuser->memory_logged = TRUE;
	e_warning(xuser->user->event, "xid: %s: %s: no XIDs here (the index is "
		  "in memory only): give the mailbox an index on disk",
		  xuser->user->username, mailbox_get_vname(box));
}

static void xid_mailbox_allocated(struct mailbox *box)
{
	struct xid_user *xuser = XID_USER_CONTEXT(box->storage->user);
	struct mailbox_vfuncs *v = box->vlast;
	struct xid_mailbox *xbox;
	struct xid_root *root;
	xid_mailbox_hook_t *hook;

	if (xuser != NULL && strcmp(box->storage->name, "virtual") == 0)
		xid_search_virtual_allocated(box);
	if (xuser == NULL || xid_storage_is_foreign(box->storage))
		return;
	root = xid_root_get(xuser, box);
	if (root == NULL) {
		xid_user_log_memory(xuser, box);
		return;
	}
	xbox = p_new(box->pool, struct xid_mailbox, 1);
	xbox->module_ctx.super = *v;
	box->vlast = &xbox->module_ctx.super;
	xbox->box = box;
	xbox->xuser = xuser;
	xbox->root = root;
	MODULE_CONTEXT_SET(box, xid_mailbox_module, xbox);

	xid_storage_mailbox_allocated(xbox, v);
	array_foreach_elem(&xid_mailbox_hooks, hook)
		hook(xbox, v);
}

static void xid_mailbox_opened(struct mailbox *box)
{
	struct xid_mailbox *xbox = XID_MAILBOX_CONTEXT(box);

	if (xbox != NULL)
		xid_storage_mailbox_opened(xbox);
}

static bool xid_is_internal_name(struct mailbox_list *list, const char *name)
{
	struct xid_list *xlist = XID_LIST_CONTEXT_REQUIRE(list);

	return strcmp(name, XID_WAITERS_FOLDER) == 0 ||
		strcmp(name, XID_STAGE_FOLDER) == 0 ||
		xlist->module_ctx.super.is_internal_name(list, name);
}

/* Where mailboxes are plain folders (maildir with LAYOUT=fs), our folders beside
   them must not be taken for some. The storage puts its own function into
   the list only after mailbox_list_created. */
static void xid_mail_namespaces_created(struct mail_namespace *namespaces)
{
	struct mail_namespace *ns;
	struct mailbox_list *list;
	struct xid_list *xlist;

	for (ns = namespaces; ns != NULL; ns = ns->next) {
		list = ns->list;
		if (XID_USER_CONTEXT(ns->user) == NULL ||
		    list->v.is_internal_name == NULL ||
		    MODULE_CONTEXT(list, xid_list_module) != NULL)
			continue;
		xlist = p_new(list->pool, struct xid_list, 1);
		xlist->module_ctx.super = list->v;
		list->v.is_internal_name = xid_is_internal_name;
		MODULE_CONTEXT_SET(list, xid_list_module, xlist);
	}
}

static struct mail_storage_hooks xid_hooks = {
	.mail_user_created = xid_mail_user_created,
	.mail_namespaces_created = xid_mail_namespaces_created,
	.mailbox_allocated = xid_mailbox_allocated,
	.mailbox_opened = xid_mailbox_opened,
	.mail_allocated = xid_expunge_mail_allocated,
};

/*
 * Life
 */

static void
xid_log(int32_t level, const char *text, void *context ATTR_UNUSED)
{
	switch (level) {
	case 0:
		i_info("xid: %s", text);
		break;
	case 1:
		i_warning("xid: %s", text);
		break;
	default:
		i_error("xid: %s", text);
		break;
	}
}

static void xid_common_init(struct module *module)
{
	if (xid_refcount++ > 0)
		return;
	imap_xid_set_logger(xid_log, NULL);
	i_array_init(&xid_user_hooks, 4);
	i_array_init(&xid_mailbox_hooks, 4);
	/* first: the commands of imap.c call those that wait */
	xid_wait_init();
	xid_imap_init(module);
}

static void xid_common_deinit(void)
{
	i_assert(xid_refcount > 0);
	if (--xid_refcount > 0)
		return;
	xid_imap_deinit();
	xid_wait_deinit();
	imap_xid_set_logger(NULL, NULL);
	array_free(&xid_user_hooks);
	array_free(&xid_mailbox_hooks);
}

/* As the mail plug-in that mail_plugins names. */
void xid_shim_init(struct module *module)
{
	xid_common_init(module);
	mail_storage_hooks_add(module, &xid_hooks);
}

void xid_shim_deinit(void)
{
	mail_storage_hooks_remove(&xid_hooks);
	xid_common_deinit();
}

/* As doveadm's own plug-in: for our commands, and for the search key, which
   doveadm parses before it knows the user's mail_plugins. The users' hooks come
   with the mail plug-in; they carry its name. */
void xid_shim_doveadm_init(struct module *module)
{
	xid_common_init(module);
	xid_doveadm_init();
}

void xid_shim_doveadm_deinit(void)
{
	xid_doveadm_deinit();
	xid_common_deinit();
}
