/* What doveadm xid answers: the mailbox as the cluster daemon sees it, as one
   line of JSON. */
#include "xid-doveadm.h"
#include "json-parser.h"
#include "str.h"

void xid_doveadm_append_string(string_t *json, const char *str)
{
	str_append_c(json, '"');
	json_append_escaped(json, str);
	str_append_c(json, '"');
}

void xid_doveadm_append_xid(string_t *json, const struct imap_xid *xid)
{
	/* the grammar of namespaces has nothing that needs escaping */
	str_append_c(json, '"');
	str_append_data(json, xid->ns, xid->ns_len);
	str_printfa(json, "-%"PRIu64"\"", xid->number);
}

void xid_doveadm_answer(string_t *json)
{
	doveadm_print(str_c(json));
}

/*
 * Messages
 */

static void
xid_entry_append(struct xid_doveadm *cmd, string_t *json, uint32_t seq,
		 const char *guid)
{
	struct mail_index_view *view = cmd->box->view;
	struct imap_xid xid;
	uint32_t uid;

	mail_index_lookup_uid(view, seq, &uid);
	if (str_data(json)[str_len(json)-1] == '}')
		str_append_c(json, ',');
	str_printfa(json, "{\"uid\":%u,\"guid\":", uid);
	xid_doveadm_append_string(json, guid);
	str_append(json, ",\"xid\":");
	if (xid_mail_get(cmd->xbox, view, seq, &xid))
		xid_doveadm_append_xid(json, &xid);
	else
		str_append(json, "null");
	str_append_c(json, '}');
}

/* The XIDs of those messages from seq1 to seq2 that may have had another UID
   before. */
static void
xid_moved_get(struct xid_doveadm *cmd, uint32_t seq1, uint32_t seq2,
	      ARRAY_TYPE(xid_record) *moved)
{
	struct xid_header_info info;
	struct xid_record rec;
	uint32_t seq, uid;

	xid_header_read(cmd->xbox, NULL, &info);
	for (seq = seq1; seq <= seq2; seq++) {
		mail_index_lookup_uid(cmd->box->view, seq, &uid);
		if (uid > info.moved_uid)
			break;
		if (xid_record_get(cmd->xbox, cmd->box->view, seq, &rec))
			array_push_back(moved, &rec);
	}
	array_sort(moved, xid_record_cmp);
}

/* What lies below seq and has an XID of those that are told: a message that
   moved, and whose old place was not cleared. */
static void
xid_entries_append_doubles(struct xid_doveadm *cmd, string_t *json,
			   uint32_t seq1, uint32_t seq2)
{
	ARRAY_TYPE(xid_record) moved;
	struct xid_guid_list *guids;
	struct xid_record rec;
	uint32_t seq;

	t_array_init(&moved, 16);
	xid_moved_get(cmd, seq1, seq2, &moved);
	if (array_count(&moved) == 0)
		return;
	guids = xid_guid_list_init(cmd->xbox);
	for (seq = 1; seq < seq1; seq++) {
		if (xid_record_get(cmd->xbox, cmd->box->view, seq, &rec) &&
		    array_bsearch(&moved, &rec, xid_record_cmp) != NULL) {
			xid_entry_append(cmd, json, seq,
					 xid_guid_list_get(guids, seq));
		}
	}
	xid_guid_list_deinit(&guids);
}

/* Returns whether there are more. */
static bool xid_entries_append(struct xid_doveadm *cmd, string_t *json)
{
	struct xid_guid_list *guids;
	uint32_t seq, seq1, seq2;
	uint32_t above = cmd->all ? 0 : cmd->above;
	bool more;

	if (above == (uint32_t)-1 ||
	    !mail_index_lookup_seq_range(cmd->box->view, above + 1,
					 (uint32_t)-1, &seq1, &seq2))
		return FALSE;
	more = seq2 - seq1 >= cmd->max;
	if (more)
		seq2 = seq1 + cmd->max - 1;
	xid_entries_append_doubles(cmd, json, seq1, seq2);
	guids = xid_guid_list_init(cmd->xbox);
	for (seq = seq1; seq <= seq2; seq++) T_BEGIN {
		xid_entry_append(cmd, json, seq, xid_guid_list_get(guids, seq));
	} T_END;
	xid_guid_list_deinit(&guids);
	return more;
}

/*
 * The mailbox
 */

/* What the table says; with UIDs that are stable at once there is none. */
static int xid_table_append(struct xid_doveadm *cmd, string_t *json)
{
	uint32_t next_uid = mail_index_get_header(cmd->box->view)->next_uid;
	struct xid_wait_mailbox *wbox = xid_wait_mailbox_get(cmd->box);
	imap_xid_box *core;

	if (cmd->xuser->set.uid_source == XID_UID_SOURCE_LOCAL) {
		str_printfa(json, "\"shown\":%u,\"promised\":%u,\"limit\":0,"
			    "\"bound\":0,\"gated\":false",
			    next_uid - 1, next_uid - 1);
		return 0;
	}
	core = wbox == NULL ? NULL : xid_wait_attach(wbox);
	if (core == NULL) {
		return xid_doveadm_fail(cmd, MAIL_ERROR_TEMP,
			"%s: no place in the UID-assignment table, as was "
			"logged", mailbox_get_vname(cmd->box));
	}
	str_printfa(json, "\"shown\":%u,\"promised\":%u,\"limit\":%u,"
		    "\"bound\":%u,\"gated\":%s",
		    imap_xid_box_watermark(core), imap_xid_box_promised(core),
		    imap_xid_box_limit(core), imap_xid_box_bound(core),
		    imap_xid_box_gate(core) > 0 ? "true" : "false");
	return 0;
}

int xid_doveadm_answer_state(struct xid_doveadm *cmd)
{
	const struct mail_index_header *hdr =
		mail_index_get_header(cmd->box->view);
	string_t *json = str_new(default_pool, 1024);
	bool more = FALSE;
	int ret;

	str_append(json, "{\"name\":");
	xid_doveadm_append_string(json, mailbox_get_vname(cmd->box));
	str_printfa(json, ",\"uidvalidity\":%u,\"next\":%u,",
		    hdr->uid_validity, hdr->next_uid);
	ret = xid_table_append(cmd, json);
	if (ret == 0) {
		str_append(json, ",\"entries\":[");
		more = xid_entries_append(cmd, json);
		str_append(json, "],\"staged\":[");
		ret = xid_stage_append(cmd, json);
	}
	if (ret == 0) {
		str_printfa(json, "],\"more\":%s}", more ? "true" : "false");
		xid_doveadm_answer(json);
	}
	str_free(&json);
	return ret;
}
