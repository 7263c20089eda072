/* doveadm xid xids, settled, pending: questions that have answers of their
   own. */
#include "xid-doveadm.h"
#include "str.h"
#include "mailbox-list-iter.h"

/* Opened when first needed. */
struct xid_ask_stage {
	struct mailbox *box;
	bool looked;
};

static void xid_ask_separate(string_t *json)
{
	char last = str_data(json)[str_len(json)-1];

	if (last != '{' && last != '[')
		str_append_c(json, ',');
}

/*
 * xids <GUID>...
 */

static int xid_found_mail_cmp(const struct xid_found_mail *mail1,
			      const struct xid_found_mail *mail2)
{
	return mail1->uid < mail2->uid ? -1 : (mail1->uid > mail2->uid ? 1 : 0);
}

static int
xid_ask_instances(struct xid_doveadm *cmd, struct mailbox *box,
		  const char *guid, bool uids, string_t *dest)
{
	ARRAY_TYPE(xid_found_mail) found;
	const struct xid_found_mail *mail;
	string_t *xid = t_str_new(64);

	t_array_init(&found, 4);
	if (xid_doveadm_find_guid(cmd, box, guid, &found) < 0)
		return -1;
	array_sort(&found, xid_found_mail_cmp);
	array_foreach(&found, mail) {
		str_truncate(xid, 0);
		if (!xid_mail_lookup(box, box->view, mail->seq, xid))
			continue;
		if (str_len(dest) > 0)
			str_append_c(dest, ',');
		str_printfa(dest, "%u:%s", uids ? mail->uid : XID_NO_UID,
			    str_c(xid));
	}
	return 0;
}

/* Who lost its UID waits in the stage for another: it did not go. */
static int
xid_ask_staged(struct xid_doveadm *cmd, struct xid_ask_stage *stage,
	       const char *guid, string_t *dest)
{
	if (!stage->looked) {
		stage->looked = TRUE;
		if (xid_stage_open(cmd, FALSE, &stage->box) < 0)
			return -1;
	}
	return stage->box == NULL ? 0 :
		xid_ask_instances(cmd, stage->box, guid, FALSE, dest);
}

/* Several where messages share the GUID, in the order of their UIDs, which mean
   nothing to who asks where the mailbox is another one. What moves
   to the stage while we look is in the mailbox as it was when we began; what
   moves back is known to the registry by now. */
static int
xid_ask_xid(struct xid_doveadm *cmd, struct xid_ask_stage *stage,
	    const char *guid, string_t *json)
{
	string_t *found = t_str_new(128);

	if (xid_ask_instances(cmd, cmd->box, guid, !cmd->twin, found) < 0 ||
	    (str_len(found) == 0 &&
	     xid_ask_staged(cmd, stage, guid, found) < 0))
		return -1;
	/* who asks may have begun to take it in before it was expunged */
	if (str_len(found) == 0 &&
	    xid_mailbox_gone_guid(cmd->box, guid, found) < 0) {
		return xid_doveadm_fail(cmd, MAIL_ERROR_TEMP,
			"%s: the registry cannot be asked, as was logged",
			mailbox_get_vname(cmd->box));
	}
	if (str_len(found) == 0)
		return 0;
	xid_ask_separate(json);
	xid_doveadm_append_string(json, guid);
	str_append_c(json, ':');
	xid_doveadm_append_string(json, str_c(found));
	return 0;
}

/* Those of the messages that are here and have no XID yet: whoever asks must
   not think that there are none. */
static void xid_ask_unnamed(struct xid_doveadm *cmd, string_t *json)
{
	ARRAY_TYPE(const_string) unnamed;
	const char *guid;

	t_array_init(&unnamed, 16);
	xid_mailbox_unnamed(cmd->box, pool_datastack_create(), &unnamed);
	array_foreach_elem(&unnamed, guid) {
		if (!str_array_find(cmd->args, guid))
			continue;
		xid_ask_separate(json);
		xid_doveadm_append_string(json, guid);
	}
}

int xid_doveadm_xids(struct xid_doveadm *cmd)
{
	string_t *json = str_new(default_pool, 1024);
	struct xid_ask_stage stage;
	const char *const *guid = cmd->args;
	int ret = 0;

	i_zero(&stage);
	str_append(json, "{\"xids\":{");
	for (; *guid != NULL && ret == 0; guid++) T_BEGIN {
		ret = xid_ask_xid(cmd, &stage, *guid, json);
	} T_END;
	str_append(json, "},\"unnamed\":[");
	xid_ask_unnamed(cmd, json);
	str_append(json, "]}");
	if (stage.box != NULL)
		mailbox_free(&stage.box);
	if (ret == 0)
		xid_doveadm_answer(json);
	str_free(&json);
	return ret;
}

/*
 * settled <UID> <GUID>...
 */

/* What was promised counts when it is known to be stable. */
static uint32_t xid_ask_stable_uid(struct xid_doveadm *cmd)
{
	struct xid_wait_mailbox *wbox = cmd->xbox->wait;
	imap_xid_box *core = wbox == NULL ? NULL : xid_wait_attach(wbox);

	return core == NULL ? 0 : imap_xid_box_watermark(core);
}

/* 1 = a message with this GUID is at or below the UID, or was when it was
   expunged and stable, and is not above it now */
static int
xid_ask_settled(struct xid_doveadm *cmd, const char *guid, uint32_t last_uid)
{
	ARRAY_TYPE(xid_found_mail) found;
	const struct xid_found_mail *mail;
	uint32_t expunged_uid;
	int32_t ret;

	t_array_init(&found, 4);
	if (xid_doveadm_find_guid(cmd, cmd->box, guid, &found) < 0)
		return -1;
	array_foreach(&found, mail) {
		if (mail->uid <= last_uid)
			return 1;
	}
	if (array_count(&found) > 0)
		return 0;
	ret = imap_xid_box_expunged(cmd->xbox->core, guid, strlen(guid),
				    &expunged_uid);
	if (ret < 0) {
		return xid_doveadm_fail(cmd, MAIL_ERROR_TEMP, "%s: %s",
			mailbox_get_vname(cmd->box), imap_xid_last_error());
	}
	return ret > 0 && expunged_uid <= last_uid &&
		expunged_uid <= xid_ask_stable_uid(cmd) ? 1 : 0;
}

int xid_doveadm_settled(struct xid_doveadm *cmd)
{
	string_t *json;
	uint32_t last_uid;
	int ret = 0;

	if (xid_doveadm_number(cmd, 0, "UID", &last_uid) < 0)
		return -1;
	json = str_new(default_pool, 1024);
	str_append(json, "{\"settled\":[");
	for (cmd->args++; *cmd->args != NULL && ret >= 0; cmd->args++) T_BEGIN {
		ret = xid_ask_settled(cmd, *cmd->args, last_uid);
		if (ret > 0) {
			xid_ask_separate(json);
			xid_doveadm_append_string(json, *cmd->args);
		}
	} T_END;
	str_append(json, "]}");
	if (ret >= 0)
		xid_doveadm_answer(json);
	str_free(&json);
	return ret < 0 ? -1 : 0;
}

/*
 * pending
 */

struct xid_pending_box {
	struct mailbox_metadata metadata;
	struct mailbox_status status;
	uint32_t watermark;
};

/* 1 = filled, 0 = not one of ours, -1 = error (of the storage, or logged) */
static int
xid_pending_read(struct mailbox *box, struct xid_pending_box *pending)
{
	struct xid_mailbox *xbox = xid_mailbox_get(box);
	enum mailbox_existence existence;
	imap_xid_root *root;
	imap_xid_box *core;
	int ret;

	if (xbox == NULL)
		return 0;
	if (mailbox_exists(box, FALSE, &existence) < 0)
		return -1;
	if (existence != MAILBOX_EXISTENCE_SELECT)
		return 0;
	if (mailbox_get_status(box, STATUS_UIDNEXT | STATUS_UIDVALIDITY,
			       &pending->status) < 0 ||
	    mailbox_get_metadata(box, MAILBOX_METADATA_GUID,
				 &pending->metadata) < 0)
		return -1;
	if (pending->status.uidvalidity == 0)
		return 0;
	if ((root = xid_root_open(xbox)) == NULL ||
	    imap_xid_box_open(root, pending->metadata.guid,
			      xid_mailbox_name(box),
			      pending->status.uidvalidity, &core) < 0)
		return -1;
	ret = imap_xid_box_attach(core, pending->status.uidnext - 1);
	if (ret < 0)
		xid_mailbox_log_error(xbox, "no place in the table");
	pending->watermark = imap_xid_box_watermark(core);
	imap_xid_box_close(core);
	return ret < 0 ? -1 : 1;
}

/* One mailbox that cannot be read does not hide the others. */
static void
xid_pending_append(struct xid_doveadm *cmd, struct mailbox *box, string_t *json)
{
	struct xid_pending_box pending;
	int ret = xid_pending_read(box, &pending);

	if (ret < 0) {
		e_error(cmd->user->event, "%s: %s: left out: %s",
			cmd->cmd->host.name, mailbox_get_vname(box),
			mailbox_get_last_internal_error(box, NULL));
	}
	if (ret <= 0 || pending.status.uidnext <= pending.watermark + 1)
		return;
	xid_ask_separate(json);
	str_printfa(json, "{\"mailbox\":\"%s\",\"name\":",
		    guid_128_to_string(pending.metadata.guid));
	xid_doveadm_append_string(json, mailbox_get_vname(box));
	str_printfa(json, ",\"next\":%u,\"shown\":%u}",
		    pending.status.uidnext, pending.watermark);
}

static int
xid_pending_in_namespace(struct xid_doveadm *cmd, struct mail_namespace *ns,
			 string_t *json)
{
	struct mailbox_list_iterate_context *iter;
	const struct mailbox_info *info;
	struct mailbox *box;

	iter = mailbox_list_iter_init(ns->list, "*",
		MAILBOX_LIST_ITER_NO_AUTO_BOXES |
		MAILBOX_LIST_ITER_SKIP_ALIASES |
		MAILBOX_LIST_ITER_RETURN_NO_FLAGS);
	while ((info = mailbox_list_iter_next(iter)) != NULL) {
		if ((info->flags & (MAILBOX_NONEXISTENT |
				    MAILBOX_NOSELECT)) != 0)
			continue;
		T_BEGIN {
			box = mailbox_alloc(ns->list, info->vname,
					    MAILBOX_FLAG_IGNORE_ACLS);
			xid_pending_append(cmd, box, json);
			mailbox_free(&box);
		} T_END;
	}
	if (mailbox_list_iter_deinit(&iter) == 0)
		return 0;
	return xid_doveadm_fail(cmd, MAIL_ERROR_TEMP,
		"mailboxes cannot be listed: %s",
		mailbox_list_get_last_internal_error(ns->list, NULL));
}

int xid_doveadm_pending(struct xid_doveadm *cmd)
{
	struct mail_namespace *ns = cmd->user->namespaces;
	string_t *json = str_new(default_pool, 1024);
	int ret = 0;

	str_append(json, "{\"boxes\":[");
	/* where UIDs are stable at once nothing ever is */
	if (cmd->xuser->set.uid_source == XID_UID_SOURCE_LOCAL)
		ns = NULL;
	for (; ns != NULL && ret == 0; ns = ns->next) {
		if (xid_doveadm_namespace_is_own(ns))
			ret = xid_pending_in_namespace(cmd, ns, json);
	}
	str_append(json, "]}");
	if (ret == 0)
		xid_doveadm_answer(json);
	str_free(&json);
	return ret;
}
