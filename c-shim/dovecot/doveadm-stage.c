/* The stage: where a node that returns to its cluster keeps what it has alone,
   until the others' messages are in. It lies in a namespace that exists only
   while one of our commands runs, in a folder beside the user's mailboxes: no
   other process ever sees it, so clients cannot list it, and replication does
   not carry it away. One mailbox in it for each that had messages in the stage,
   by GUID; those that have some now have a mark beside them, so that nobody needs
   to look into the others. */
#include "xid-doveadm.h"
#include "hash.h"
#include "str.h"
#include "settings-parser.h"
#include "fdatasync-path.h"
#include "mailbox-list-private.h"
#include "mail-storage-settings.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#define XID_STAGE_PREFIX XID_STAGE_FOLDER"/"
/* Not to be taken for a mailbox, in any layout. */
#define XID_STAGE_MARK "/xid.used-"

static const char *xid_stage_root(struct xid_doveadm *cmd)
{
	const char *root;

	if (!mailbox_list_get_root_path(cmd->box->list,
					MAILBOX_LIST_PATH_TYPE_DIR, &root))
		return NULL;
	return t_strconcat(root, "/", XID_STAGE_FOLDER, NULL);
}

static const char *xid_stage_name(struct xid_doveadm *cmd)
{
	struct mailbox_metadata metadata;

	if (mailbox_get_metadata(cmd->box, MAILBOX_METADATA_GUID,
				 &metadata) < 0)
		return NULL;
	return t_strdup(guid_128_to_string(metadata.guid));
}

static const char *xid_stage_mark(struct xid_doveadm *cmd, const char *name)
{
	return t_strconcat(xid_stage_root(cmd), XID_STAGE_MARK, name, NULL);
}

/* Mostly there is nothing in it. */
static bool xid_stage_is_used(struct xid_doveadm *cmd, const char *name)
{
	struct stat st;

	return stat(xid_stage_mark(cmd, name), &st) == 0;
}

/* Before the first message is in it. The folder is there: the mailbox is. */
static int xid_stage_use(struct xid_doveadm *cmd, const char *name)
{
	const char *path = xid_stage_mark(cmd, name);
	int fd;

	if (xid_stage_is_used(cmd, name))
		return 0;
	fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
	if (fd == -1 || close(fd) < 0 ||
	    fdatasync_path(xid_stage_root(cmd)) < 0) {
		return xid_doveadm_fail(cmd, MAIL_ERROR_TEMP,
					"cannot make %s: %m", path);
	}
	return 0;
}

static struct mail_namespace_settings *
xid_stage_settings(struct xid_doveadm *cmd, const char *location)
{
	struct mail_namespace_settings *set;

	set = p_new(cmd->user->pool, struct mail_namespace_settings, 1);
	*set = mail_namespace_default_settings;
	set->name = XID_STAGE_FOLDER;
	set->type = "private";
	set->separator = "/";
	set->prefix = XID_STAGE_PREFIX;
	set->location = p_strdup(cmd->user->pool, location);
	set->list = "no";
	set->hidden = TRUE;
	set->subscriptions = FALSE;
	return set;
}

/* Nobody is charged for what is in it, and nobody has rights on it. */
static int xid_stage_namespace(struct xid_doveadm *cmd)
{
	struct mail_namespace_settings *set, *unexpanded;
	struct mail_namespace *ns;
	const char *error;

	if (cmd->xuser->stage != NULL)
		return 0;
	set = xid_stage_settings(cmd, t_strconcat(cmd->box->storage->name, ":",
						  xid_stage_root(cmd), NULL));
	unexpanded = p_new(cmd->user->pool, struct mail_namespace_settings, 1);
	*unexpanded = *set;
	unexpanded->location = p_strconcat(cmd->user->pool,
		SETTING_STRVAR_EXPANDED, set->location, NULL);
	if (mail_namespaces_init_add(cmd->user, set, unexpanded, &ns,
				     &error) < 0) {
		return xid_doveadm_fail(cmd, MAIL_ERROR_TEMP,
					"stage: %s", error);
	}
	ns->flags |= NAMESPACE_FLAG_NOQUOTA | NAMESPACE_FLAG_NOACL |
		NAMESPACE_FLAG_USABLE;
	cmd->xuser->stage = ns;
	cmd->xuser->stage_of = mailbox_get_namespace(cmd->box);
	/* freed with the user's */
	mail_user_add_namespace(cmd->user, &ns);
	return 0;
}

static int xid_stage_open_box(struct xid_doveadm *cmd, struct mailbox *stage)
{
	enum mailbox_existence existence;

	if (mailbox_exists(stage, FALSE, &existence) < 0)
		return xid_doveadm_fail_box(cmd, stage, "look");
	if (existence == MAILBOX_EXISTENCE_NONE &&
	    mailbox_create(stage, NULL, FALSE) < 0 &&
	    mailbox_get_last_mail_error(stage) != MAIL_ERROR_EXISTS)
		return xid_doveadm_fail_box(cmd, stage, "create");
	if (mailbox_sync(stage, 0) < 0)
		return xid_doveadm_fail_box(cmd, stage, "sync");
	if (xid_mailbox_get(stage) == NULL) {
		return xid_doveadm_fail(cmd, MAIL_ERROR_TEMP,
			"stage: messages would have no XIDs there");
	}
	return 0;
}

int xid_stage_open(struct xid_doveadm *cmd, bool create,
		   struct mailbox **stage_r)
{
	const char *name = xid_stage_name(cmd);

	*stage_r = NULL;
	if (name == NULL || xid_stage_root(cmd) == NULL)
		return xid_doveadm_fail_box(cmd, cmd->box, "stage");
	if (!create && !xid_stage_is_used(cmd, name))
		return 0;
	if (xid_stage_namespace(cmd) < 0)
		return -1;
	*stage_r = mailbox_alloc(cmd->xuser->stage->list,
		t_strconcat(XID_STAGE_PREFIX, name, NULL),
		MAILBOX_FLAG_IGNORE_ACLS);
	if (xid_stage_open_box(cmd, *stage_r) < 0 ||
	    (create && xid_stage_use(cmd, name) < 0)) {
		mailbox_free(stage_r);
		return -1;
	}
	return 1;
}

void xid_stage_emptied(struct xid_doveadm *cmd, struct mailbox *stage)
{
	struct mail_storage *storage = mailbox_get_storage(stage);
	const char *name = xid_stage_name(cmd);

	/* mdbox keeps the messages until then */
	if (mail_storage_purge(storage) < 0) {
		e_error(cmd->user->event, "%s: stage: purge: %s",
			cmd->cmd->host.name,
			mail_storage_get_last_internal_error(storage, NULL));
	}
	if (name != NULL)
		i_unlink_if_exists(xid_stage_mark(cmd, name));
}

/* Each GUID once. */
static void xid_stage_guids(struct mailbox *stage, string_t *json)
{
	uint32_t seq, count = mail_index_view_get_messages_count(stage->view);
	HASH_TABLE(const char *, void *) seen;
	struct xid_guid_list *list;
	const char *guid;

	list = xid_guid_list_init(xid_mailbox_get(stage));
	hash_table_create(&seen, default_pool, 0, str_hash, strcmp);
	for (seq = 1; seq <= count; seq++) {
		guid = t_strdup(xid_guid_list_get(list, seq));
		if (hash_table_lookup(seen, guid) != NULL)
			continue;
		hash_table_insert(seen, guid, POINTER_CAST(seq));
		if (hash_table_count(seen) > 1)
			str_append_c(json, ',');
		xid_doveadm_append_string(json, guid);
	}
	hash_table_destroy(&seen);
	xid_guid_list_deinit(&list);
}

void xid_stage_find_guid(struct mailbox *stage, const char *guid,
			 ARRAY_TYPE(xid_found_mail) *found)
{
	uint32_t seq, count = mail_index_view_get_messages_count(stage->view);
	struct xid_found_mail *mail;
	struct xid_guid_list *list;

	list = xid_guid_list_init(xid_mailbox_get(stage));
	for (seq = 1; seq <= count; seq++) T_BEGIN {
		if (strcmp(xid_guid_list_get(list, seq), guid) == 0) {
			mail = array_append_space(found);
			mail->seq = seq;
			mail_index_lookup_uid(stage->view, seq, &mail->uid);
		}
	} T_END;
	xid_guid_list_deinit(&list);
}

int xid_stage_append(struct xid_doveadm *cmd, string_t *json)
{
	struct mailbox *stage;
	int ret = xid_stage_open(cmd, FALSE, &stage);

	if (ret <= 0)
		return ret;
	xid_stage_guids(stage, json);
	mailbox_free(&stage);
	return 0;
}
