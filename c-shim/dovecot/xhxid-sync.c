/* Untagged FETCHes of the syncs that XHXID commands end or begin with: they
   carry XIDs, as those of UID STORE carry UIDs. What the command itself changed
   cannot be told from what others changed, so all of them do. */
#include "xid-imap.h"
#include "str.h"
#include "ostream.h"
#include "imap-util.h"

/* Bytes of untagged FETCHes that a client may leave unread before the sync
   stops for it: some thousand changes, little beside the session's memory. */
#define XID_SYNC_BUFFER_MAX (256*1024)

struct xid_imap_mailbox {
	bool (*sync_next)(struct mailbox_sync_context *ctx,
			  struct mailbox_sync_rec *sync_rec_r);
	/* the rest of a change that was told in part */
	struct mailbox_sync_rec rest;
	/* the client does not read: the host has to tell the next change */
	bool output_full:1;
};

/* Does this command want XIDs in the sync that is running? */
static bool xid_sync_is_for(struct client_command_context *cmd)
{
	struct xid_command *xcmd = xid_command_find(cmd);

	if (xcmd != NULL && xcmd->syncing)
		return TRUE;
	/* the host counts up when it begins the sync */
	return cmd->sync != NULL &&
		cmd->sync->counter + 1 == cmd->client->sync_counter &&
		(cmd->sync->imap_flags & XID_IMAP_SYNC_FLAG_SEND_XID) != 0;
}

/* The client whose sync of this mailbox is to tell XIDs. */
static struct client *xid_sync_client(struct mailbox *box)
{
	struct client_command_context *cmd;
	struct client *client;

	for (client = imap_clients; client != NULL; client = client->next) {
		if (client->mailbox == box)
			break;
	}
	if (client == NULL || !client->syncing)
		return NULL;
	for (cmd = client->command_queue; cmd != NULL; cmd = cmd->next) {
		if (xid_sync_is_for(cmd))
			return client;
	}
	return NULL;
}

static void xid_sync_append_ids(struct client *client, struct mail *mail,
				  string_t *str)
{
	str_printfa(str, "* %u FETCH (", mail->seq);
	str_append(str, "XID ");
	if (!xid_mail_append(mail, str))
		str_truncate(str, str_len(str) - strlen("XID "));
	else
		str_append_c(str, ' ');
	if (client_has_enabled(client, imap_feature_qresync) &&
	    mail->uid <= xid_mailbox_watermark(mail->box)) {
		/* RFC 7162 part 3.2.4: then all FETCHes have UIDs */
		str_printfa(str, "UID %u ", mail->uid);
	}
}

static void xid_sync_append_modseq(struct client *client, struct mail *mail,
				     string_t *str)
{
	uint64_t modseq;

	if (!client_has_enabled(client, imap_feature_condstore) ||
	    client->nonpermanent_modseqs)
		return;
	modseq = mail_get_modseq(mail);
	if (client->highest_fetch_modseq < modseq)
		client->highest_fetch_modseq = modseq;
	str_printfa(str, "MODSEQ (%"PRIu64") ", modseq);
}

static void xid_sync_append_flags(struct client *client, struct mail *mail,
				    string_t *str)
{
	enum mail_flags flags = mail_get_flags(mail);
	ARRAY_TYPE(keywords) keywords;
	const char *const *names;

	t_array_init(&keywords, client->keywords.announce_count + 8);
	names = client_get_keyword_names(client, &keywords,
					 mail_get_keyword_indexes(mail));
	if ((flags & MAIL_DELETED) != 0)
		client->sync_seen_deletes = TRUE;
	str_append(str, "FLAGS (");
	imap_write_flags(str, flags, names);
	str_append(str, ") ");
}

/* Returns FALSE when so much is unsent that the client has to read first. */
static bool xid_sync_send(struct client *client, struct mail *mail,
			  enum mailbox_sync_type type)
{
	string_t *str = t_str_new(128);
	size_t len;

	xid_sync_append_ids(client, mail, str);
	len = str_len(str);
	xid_sync_append_modseq(client, mail, str);
	if (type == MAILBOX_SYNC_TYPE_MODSEQ && str_len(str) == len) {
		/* the client does not know CONDSTORE: nothing to tell */
		return TRUE;
	}
	if (type == MAILBOX_SYNC_TYPE_FLAGS)
		xid_sync_append_flags(client, mail, str);
	str_truncate(str, str_len(str) - 1);
	str_append_c(str, ')');
	return client_send_line_next(client, str_c(str)) != 0 ||
		o_stream_get_buffer_used_size(client->output) <
		XID_SYNC_BUFFER_MAX;
}

/* Tell what the host would tell, with XIDs. Ends early when the client does
   not read; seq_r is the first one that was not told. */
static bool
xid_sync_send_range(struct client *client, struct mailbox *box,
		      const struct mailbox_sync_rec *rec, uint32_t *seq_r)
{
	struct mailbox_transaction_context *t;
	uint32_t seq, seq2 = I_MIN(rec->seq2, client->messages_count);
	struct mail *mail;
	bool more = TRUE;

	t = mailbox_transaction_begin(box, 0, "XHXID sync");
	mail = mail_alloc(t, MAIL_FETCH_FLAGS, NULL);
	for (seq = rec->seq1; seq <= seq2 && more; seq++) T_BEGIN {
		mail_set_seq(mail, seq);
		more = xid_sync_send(client, mail, rec->type);
	} T_END;
	mail_free(&mail);
	(void)mailbox_transaction_commit(&t);
	*seq_r = more ? rec->seq2 + 1 : seq;
	return more;
}

/* The host's sync can stop for a client that does not read only after a line
   of its own. So one change is told by it, and its XID in a line before. */
static void
xid_sync_give_back(struct client *client, struct mailbox *box,
		     struct xid_imap_mailbox *ibox,
		     struct mailbox_sync_rec *rec)
{
	string_t *str = t_str_new(128);

	ibox->output_full = FALSE;
	ibox->rest = *rec;
	ibox->rest.seq1++;
	rec->seq2 = rec->seq1;
	str_printfa(str, "* %u FETCH (XID ", rec->seq1);
	if (xid_mail_lookup(box, box->view, rec->seq1, str)) {
		str_append_c(str, ')');
		client_send_line(client, str_c(str));
	}
}

static bool xid_sync_next_rec(struct mailbox_sync_context *ctx,
				struct xid_imap_mailbox *ibox,
				struct mailbox_sync_rec *rec)
{
	if (ibox->rest.seq1 != 0 && ibox->rest.seq1 <= ibox->rest.seq2) {
		*rec = ibox->rest;
		i_zero(&ibox->rest);
		return TRUE;
	}
	return ibox->sync_next(ctx, rec);
}

static bool xhxid_sync_next(struct mailbox_sync_context *ctx,
			    struct mailbox_sync_rec *rec)
{
	struct mailbox *box = ctx->box;
	struct xid_imap_mailbox *ibox = xid_mailbox_context(box)->imap;
	struct client *client = xid_sync_client(box);
	uint32_t seq;

	if (client == NULL) {
		i_zero(&ibox->rest);
		return ibox->sync_next(ctx, rec);
	}
	while (xid_sync_next_rec(ctx, ibox, rec)) {
		if (rec->type == MAILBOX_SYNC_TYPE_EXPUNGE)
			return TRUE;
		if (!client->notify_flag_changes ||
		    rec->seq1 > client->messages_count)
			continue;
		if (ibox->output_full) {
			xid_sync_give_back(client, box, ibox, rec);
			return TRUE;
		}
		if (!xid_sync_send_range(client, box, rec, &seq)) {
			ibox->output_full = TRUE;
			ibox->rest = *rec;
			ibox->rest.seq1 = seq;
		}
	}
	ibox->output_full = FALSE;
	return FALSE;
}

void xhxid_mailbox_hook(struct xid_mailbox *xbox, struct mailbox_vfuncs *v)
{
	xbox->imap = p_new(xbox->box->pool, struct xid_imap_mailbox, 1);
	/* Not module_ctx.super: waiting for UIDs has its own function here. */
	xbox->imap->sync_next = v->sync_next;
	v->sync_next = xhxid_sync_next;
}
