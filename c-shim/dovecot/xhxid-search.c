/* XHXID SEARCH and XHXID SORT (spec part 5): as UID SEARCH and UID SORT, with
   XIDs in the answer. The host writes its answers with numbers only, so these
   are commands of their own around its searching. */
#include "xid-imap.h"
#include "str.h"
#include "ostream.h"
#include "imap-arg.h"
#include "imap-quote.h"
#include "imap-resp-code.h"
#include "mail-search.h"

struct xhxid_search_context {
	/* what the host's parsing of RETURN fills in */
	struct imap_search_context opts;
	struct client_command_context *cmd;
	struct mailbox *box;
	struct mailbox_transaction_context *trans;
	struct mail_search_context *search_ctx;
	struct mail_search_args *sargs;
	bool sorting;
	bool have_seqsets;
	bool lost_data;

	/* sequences in the order of the answer */
	ARRAY_TYPE(uint32_t) result;
	unsigned int count;
	uint32_t min_seq, max_seq, last_noted_seq;
	uint64_t highest_modseq;
	ARRAY(float) scores;

	/* the answer: head, the result's XIDs with sep between them, tail */
	string_t *head, *tail;
	char sep;
	unsigned int next;
	bool sending, send_list;
};

#define ONLY_MIN_MAX(opts) \
	(HAS_ANY_BITS(opts, SEARCH_RETURN_MIN | SEARCH_RETURN_MAX) && \
	 HAS_NO_BITS(opts, SEARCH_RETURN_ALL | SEARCH_RETURN_COUNT | \
			   SEARCH_RETURN_PARTIAL))

static bool cmd_xhxid_search_more(struct client_command_context *cmd);

/*
 * Matches
 */

/* The message counts for MODSEQ, SAVE and RELEVANCY. */
static void search_note(struct xhxid_search_context *ctx, struct mail *mail)
{
	unsigned int opts = ctx->opts.return_options;
	const char *str;
	float score = 0;
	uint64_t modseq;

	if (mail->seq == ctx->last_noted_seq)
		return;
	ctx->last_noted_seq = mail->seq;

	if ((opts & SEARCH_RETURN_MODSEQ) != 0) {
		modseq = mail_get_modseq(mail);
		ctx->highest_modseq = I_MAX(ctx->highest_modseq, modseq);
	}
	if ((opts & SEARCH_RETURN_SAVE) != 0) {
		seq_range_array_add(&ctx->cmd->client->search_saved_uidset,
				    mail->uid);
	}
	if ((opts & SEARCH_RETURN_RELEVANCY) != 0) {
		if (mail_get_special(mail, MAIL_FETCH_SEARCH_RELEVANCY,
				     &str) == 0)
			score = strtod(str, NULL);
		array_push_back(&ctx->scores, &score);
	}
}

static void search_match_partial(struct xhxid_search_context *ctx,
				 struct mail *mail)
{
	unsigned int opts = ctx->opts.return_options;

	if (ctx->count >= ctx->opts.partial1 &&
	    ctx->count <= ctx->opts.partial2) {
		array_push_back(&ctx->result, &mail->seq);
		search_note(ctx, mail);
	} else if (HAS_ALL_BITS(opts, SEARCH_RETURN_COUNT |
				      SEARCH_RETURN_SAVE)) {
		/* RFC 5267 part 4.3 and RFC 5182 part 2.4: COUNT saves all */
		seq_range_array_add(&ctx->cmd->client->search_saved_uidset,
				    mail->uid);
	}
}

static void search_match(struct xhxid_search_context *ctx, struct mail *mail)
{
	unsigned int opts = ctx->opts.return_options;

	ctx->count++;
	ctx->max_seq = mail->seq;
	if (ctx->min_seq == 0) {
		ctx->min_seq = mail->seq;
		if ((opts & SEARCH_RETURN_MIN) != 0)
			search_note(ctx, mail);
	}
	if ((opts & SEARCH_RETURN_PARTIAL) != 0) {
		search_match_partial(ctx, mail);
		return;
	}
	if (ONLY_MIN_MAX(opts)) {
		/* which is the last one is known at the end */
		return;
	}
	if ((opts & SEARCH_RETURN_ALL) != 0)
		array_push_back(&ctx->result, &mail->seq);
	search_note(ctx, mail);
}

static void search_note_max(struct xhxid_search_context *ctx)
{
	struct mail *mail;

	if ((ctx->opts.return_options & SEARCH_RETURN_MAX) == 0 ||
	    ctx->max_seq == 0)
		return;
	mail = mail_alloc(ctx->trans, 0, NULL);
	mail_set_seq(mail, ctx->max_seq);
	search_note(ctx, mail);
	mail_free(&mail);
}

/*
 * Answer
 */

static void search_append_item(struct xhxid_search_context *ctx,
			       const char *name, uint32_t seq)
{
	size_t len = str_len(ctx->head);

	str_printfa(ctx->head, " %s ", name);
	if (!xid_mail_lookup(ctx->box, ctx->box->view, seq, ctx->head))
		str_truncate(ctx->head, len);
}

static void search_append_scores(struct xhxid_search_context *ctx)
{
	const float *score;
	float min = 0, max = 0, range;
	bool first = TRUE;

	if (array_count(&ctx->scores) > 0)
		min = max = *array_front(&ctx->scores);
	array_foreach(&ctx->scores, score) {
		min = I_MIN(min, *score);
		max = I_MAX(max, *score);
	}
	range = max > min ? max - min : 1;

	/* RFC 6203 part 4: 1 to 100 */
	str_append(ctx->tail, " RELEVANCY (");
	array_foreach(&ctx->scores, score) {
		if (!first)
			str_append_c(ctx->tail, ' ');
		first = FALSE;
		str_printfa(ctx->tail, "%u", (unsigned int)
			    I_MAX((*score - min) / range * 100, 1));
	}
	str_append_c(ctx->tail, ')');
}

static void search_answer_standard(struct xhxid_search_context *ctx)
{
	ctx->sep = ' ';
	ctx->send_list = TRUE;
	str_append(ctx->head, ctx->sorting ? "* SORT" : "* SEARCH");
	if (array_count(&ctx->result) > 0)
		str_append_c(ctx->head, ' ');
	if (ctx->highest_modseq != 0) {
		str_printfa(ctx->tail, " (MODSEQ %"PRIu64")",
			    ctx->highest_modseq);
	}
}

static void search_answer_extended(struct xhxid_search_context *ctx)
{
	unsigned int opts = ctx->opts.return_options;

	ctx->sep = ',';
	str_append(ctx->head, "* ESEARCH (TAG ");
	imap_append_string(ctx->head, ctx->cmd->tag);
	str_append(ctx->head, ") XID");
	if ((opts & SEARCH_RETURN_MIN) != 0 && ctx->min_seq != 0)
		search_append_item(ctx, "MIN", ctx->min_seq);
	if ((opts & SEARCH_RETURN_MAX) != 0 && ctx->max_seq != 0)
		search_append_item(ctx, "MAX", ctx->max_seq);
	if ((opts & SEARCH_RETURN_PARTIAL) != 0) {
		str_printfa(ctx->head, " PARTIAL (%u:%u ",
			    ctx->opts.partial1, ctx->opts.partial2);
		if (array_count(&ctx->result) == 0)
			str_append(ctx->head, "NIL");
		ctx->send_list = TRUE;
		str_append_c(ctx->tail, ')');
	} else if ((opts & SEARCH_RETURN_ALL) != 0 &&
		   array_count(&ctx->result) > 0) {
		str_append(ctx->head, " ALL ");
		ctx->send_list = TRUE;
	}
	if ((opts & SEARCH_RETURN_RELEVANCY) != 0)
		search_append_scores(ctx);
	if ((opts & SEARCH_RETURN_COUNT) != 0)
		str_printfa(ctx->tail, " COUNT %u", ctx->count);
	if (ctx->highest_modseq != 0)
		str_printfa(ctx->tail, " MODSEQ %"PRIu64, ctx->highest_modseq);
}

/* Returns FALSE if there is nothing to answer. */
static bool search_answer_begin(struct xhxid_search_context *ctx)
{
	unsigned int opts = ctx->opts.return_options;

	if (opts == (SEARCH_RETURN_ESEARCH | SEARCH_RETURN_SAVE))
		return FALSE;
	ctx->head = str_new(default_pool, 256);
	ctx->tail = str_new(default_pool, 256);
	if ((opts & SEARCH_RETURN_ESEARCH) != 0)
		search_answer_extended(ctx);
	else
		search_answer_standard(ctx);
	str_append(ctx->tail, "\r\n");
	return TRUE;
}

/* Returns FALSE if the client has to read first. */
static bool search_answer_flush(struct xhxid_search_context *ctx, string_t *str)
{
	struct client *client = ctx->cmd->client;

	o_stream_nsend(client->output, str_data(str), str_len(str));
	str_truncate(str, 0);
	client->last_output = ioloop_time;
	return o_stream_get_buffer_used_size(client->output) <
		CLIENT_OUTPUT_OPTIMAL_SIZE ||
		o_stream_flush(client->output) != 0;
}

/* Returns FALSE if it has to be continued. */
static bool search_answer_more(struct xhxid_search_context *ctx)
{
	struct client *client = ctx->cmd->client;
	string_t *str = t_str_new(1024);
	const uint32_t *seqs;
	unsigned int count;

	if (client->output->closed)
		return TRUE;
	/* nothing else may be sent until the line is complete */
	client->output_cmd_lock = ctx->cmd;
	str_append_str(str, ctx->head);
	str_truncate(ctx->head, 0);
	seqs = array_get(&ctx->result, &count);
	for (; ctx->send_list && ctx->next < count; ctx->next++) {
		if (ctx->next > 0)
			str_append_c(str, ctx->sep);
		if (!xid_mail_lookup(ctx->box, ctx->box->view,
				     seqs[ctx->next], str)) {
			/* cannot be after a sync; the answer stays well
			   formed all the same */
			str_append(str, "NIL");
		}
		if (str_len(str) > 1024-IMAP_XID_SIZE &&
		    !search_answer_flush(ctx, str)) {
			ctx->next++;
			return FALSE;
		}
	}
	str_append_str(str, ctx->tail);
	(void)search_answer_flush(ctx, str);
	client->output_cmd_lock = NULL;
	return TRUE;
}

/*
 * Life
 */

static int search_end(struct xhxid_search_context *ctx)
{
	struct client_command_context *cmd = ctx->cmd;
	int ret = 0;

	if (ctx->search_ctx != NULL)
		ret = mailbox_search_deinit(&ctx->search_ctx);
	if ((ret < 0 || cmd->cancel) && cmd->search_save_result &&
	    array_is_created(&cmd->client->search_saved_uidset))
		array_clear(&cmd->client->search_saved_uidset);
	return ret;
}

static void search_free(struct xhxid_search_context *ctx)
{
	struct client_command_context *cmd = ctx->cmd;

	(void)search_end(ctx);
	(void)mailbox_transaction_commit(&ctx->trans);
	mail_search_args_deinit(ctx->sargs);
	mail_search_args_unref(&ctx->sargs);
	if (cmd->client->output_cmd_lock == cmd)
		cmd->client->output_cmd_lock = NULL;
	if (array_is_created(&ctx->scores))
		array_free(&ctx->scores);
	array_free(&ctx->result);
	str_free(&ctx->head);
	str_free(&ctx->tail);
	cmd->context = NULL;
	i_free(ctx);
}

static bool search_finish(struct xhxid_search_context *ctx)
{
	struct client_command_context *cmd = ctx->cmd;
	enum mailbox_sync_flags flags = MAILBOX_SYNC_FLAG_FAST;
	const char *reply;

	if (ctx->have_seqsets)
		flags |= MAILBOX_SYNC_FLAG_NO_EXPUNGES;
	reply = t_strdup_printf("OK %s%s completed.", ctx->lost_data ?
				"["IMAP_RESP_CODE_EXPUNGEISSUED"] " : "",
				ctx->sorting ? "Sort" : "Search");
	search_free(ctx);
	return cmd_sync(cmd, flags, 0, reply);
}

/* Returns 1 if all matches are known, 0 if it takes longer, -1 on failure. */
static int search_run(struct xhxid_search_context *ctx)
{
	struct mail *mail;
	bool tryagain;

	if (ctx->search_ctx == NULL)
		return 1;
	while (mailbox_search_next_nonblock(ctx->search_ctx, &mail, &tryagain))
		search_match(ctx, mail);
	if (tryagain)
		return 0;
	search_note_max(ctx);
	ctx->lost_data = mailbox_search_seen_lost_data(ctx->search_ctx);
	return search_end(ctx) < 0 ? -1 : 1;
}

static bool cmd_xhxid_search_more(struct client_command_context *cmd)
{
	struct xhxid_search_context *ctx = cmd->context;
	int ret;

	if (cmd->cancel) {
		if (ctx->sending && !cmd->client->destroyed) {
			client_disconnect(cmd->client,
				"XHXID SEARCH was cancelled within a line");
		}
		search_free(ctx);
		return TRUE;
	}
	/* Asked again as soon as the client can take output: at once, unless
	   another command is sending. */
	cmd->state = CLIENT_COMMAND_STATE_WAIT_OUTPUT;
	if (!ctx->sending) {
		ret = search_run(ctx);
		if (ret == 0)
			return FALSE;
		if (ret < 0) {
			client_send_box_error(cmd, ctx->box);
			search_free(ctx);
			return TRUE;
		}
		if (!search_answer_begin(ctx))
			return search_finish(ctx);
		ctx->sending = TRUE;
	}
	if (!search_answer_more(ctx))
		return FALSE;
	return search_finish(ctx);
}

static void search_args_analyze(struct xhxid_search_context *ctx,
				const struct mail_search_arg *arg)
{
	for (; arg != NULL; arg = arg->next) {
		switch (arg->type) {
		case SEARCH_SEQSET:
			ctx->have_seqsets = TRUE;
			break;
		case SEARCH_MODSEQ:
			ctx->opts.return_options |= SEARCH_RETURN_MODSEQ;
			break;
		case SEARCH_OR:
		case SEARCH_SUB:
			search_args_analyze(ctx, arg->value.subargs);
			break;
		default:
			break;
		}
	}
}

static bool search_start(struct client_command_context *cmd,
			 const struct imap_search_context *opts,
			 struct mail_search_args *sargs,
			 const enum mail_sort_type *sort_program)
{
	struct xhxid_search_context *ctx;

	ctx = i_new(struct xhxid_search_context, 1);
	ctx->opts = *opts;
	ctx->cmd = cmd;
	ctx->box = cmd->client->mailbox;
	ctx->sargs = sargs;
	ctx->sorting = sort_program != NULL;
	search_args_analyze(ctx, sargs->args);
	if ((ctx->opts.return_options & SEARCH_RETURN_MODSEQ) != 0)
		client_enable(cmd->client, imap_feature_condstore);
	if ((ctx->opts.return_options & SEARCH_RETURN_RELEVANCY) != 0)
		i_array_init(&ctx->scores, 64);
	i_array_init(&ctx->result, 64);

	ctx->trans = mailbox_transaction_begin(ctx->box, 0,
		imap_client_command_get_reason(cmd));
	/* The host panics on sequences within INTHREAD in an empty mailbox. */
	if (cmd->client->messages_count > 0) {
		ctx->search_ctx = mailbox_search_init(ctx->trans, sargs,
						      sort_program, 0, NULL);
	}
	cmd->func = cmd_xhxid_search_more;
	cmd->context = ctx;
	return cmd_xhxid_search_more(cmd);
}

/*
 * Arguments
 */

/* The host tells updates of a search with sequences or UIDs only, so this one
   gets none (RFC 5267 part 4.3). */
static void search_refuse_updates(struct client_command_context *cmd,
				  struct imap_search_context *opts)
{
	string_t *str;

	if ((opts->return_options & SEARCH_RETURN_UPDATE) == 0)
		return;
	opts->return_options &= ENUM_NEGATE(SEARCH_RETURN_UPDATE);
	imap_search_context_free(opts);
	str = t_str_new(64);
	str_append(str, "* NO [NOUPDATE ");
	imap_append_quoted(str, cmd->tag);
	str_append(str, "] There are no updates with XIDs");
	client_send_line(cmd->client, str_c(str));
}

/* Returns 1 if ok, 0 if it has to be done again later, -1 after BAD. */
static int search_parse_return(struct client_command_context *cmd,
			       struct imap_search_context **opts_r,
			       const struct imap_arg **args)
{
	struct imap_search_context *opts;
	int ret;

	opts = p_new(cmd->pool, struct imap_search_context, 1);
	opts->cmd = cmd;
	ret = cmd_search_parse_return_if_found(opts, args);
	if (ret > 0)
		*opts_r = opts;
	return ret;
}

static bool search_build(struct client_command_context *cmd,
			 struct imap_search_context *opts,
			 const struct imap_arg *args, const char *charset,
			 const enum mail_sort_type *sort_program)
{
	struct mail_search_args *sargs;
	int ret;

	ret = imap_search_args_build(cmd, args, charset, &sargs);
	if (ret <= 0) {
		imap_search_context_free(opts);
		return ret < 0;
	}
	search_refuse_updates(cmd, opts);
	return search_start(cmd, opts, sargs, sort_program);
}

bool cmd_xhxid_search(struct client_command_context *cmd,
		      struct xid_mailbox *xbox ATTR_UNUSED,
		      const struct imap_arg *args)
{
	struct imap_search_context *opts;
	const char *charset = "UTF-8";
	int ret;

	ret = search_parse_return(cmd, &opts, &args);
	if (ret <= 0)
		return ret < 0;
	if (imap_arg_atom_equals(args, "CHARSET")) {
		if (!imap_arg_get_astring(&args[1], &charset)) {
			client_send_command_error(cmd,
				"expected the name of a charset behind CHARSET");
			imap_search_context_free(opts);
			return TRUE;
		}
		args += 2;
	}
	return search_build(cmd, opts, args, charset, NULL);
}

static const struct {
	const char *name;
	enum mail_sort_type type;
} sort_keys[] = {
	{ "ARRIVAL", MAIL_SORT_ARRIVAL },
	{ "CC", MAIL_SORT_CC },
	{ "DATE", MAIL_SORT_DATE },
	{ "DISPLAYFROM", MAIL_SORT_DISPLAYFROM },
	{ "DISPLAYTO", MAIL_SORT_DISPLAYTO },
	{ "FROM", MAIL_SORT_FROM },
	{ "RELEVANCY", MAIL_SORT_RELEVANCY },
	{ "SIZE", MAIL_SORT_SIZE },
	{ "SUBJECT", MAIL_SORT_SUBJECT },
	{ "TO", MAIL_SORT_TO },
	{ "X-SCORE", MAIL_SORT_RELEVANCY },
};

static bool sort_key_find(const char *name, enum mail_sort_type *type_r)
{
	unsigned int i;

	for (i = 0; i < N_ELEMENTS(sort_keys); i++) {
		if (strcasecmp(sort_keys[i].name, name) == 0) {
			*type_r = sort_keys[i].type;
			return TRUE;
		}
	}
	return FALSE;
}

static bool sort_parse(struct client_command_context *cmd,
		       const struct imap_arg *arg,
		       enum mail_sort_type program[MAX_SORT_PROGRAM_SIZE])
{
	enum mail_sort_type type, seen = 0, reverse = 0;
	const char *name;
	unsigned int n = 0;

	for (; imap_arg_get_astring(arg, &name); arg++) {
		if (strcasecmp(name, "REVERSE") == 0) {
			reverse ^= MAIL_SORT_FLAG_REVERSE;
			continue;
		}
		if (!sort_key_find(name, &type)) {
			client_send_command_error(cmd, t_strconcat(
				"Unknown sort key: ", name, NULL));
			return FALSE;
		}
		/* a key's second time changes nothing */
		if ((seen & type) == 0) {
			i_assert(n < MAX_SORT_PROGRAM_SIZE - 1);
			program[n++] = type | reverse;
			seen |= type;
		}
		reverse = 0;
	}
	program[n] = MAIL_SORT_END;
	if (!IMAP_ARG_IS_EOL(arg) || n == 0 || reverse != 0) {
		client_send_command_error(cmd,
			"expected a list of sort keys, such as (REVERSE DATE)");
		return FALSE;
	}
	return TRUE;
}

bool cmd_xhxid_sort(struct client_command_context *cmd,
		    struct xid_mailbox *xbox ATTR_UNUSED,
		    const struct imap_arg *args)
{
	enum mail_sort_type program[MAX_SORT_PROGRAM_SIZE];
	struct imap_search_context *opts;
	const struct imap_arg *list;
	const char *charset;
	int ret;

	ret = search_parse_return(cmd, &opts, &args);
	if (ret <= 0)
		return ret < 0;
	if (!imap_arg_get_list(&args[0], &list) ||
	    !imap_arg_get_astring(&args[1], &charset)) {
		client_send_command_error(cmd, "expected sort keys, a charset "
			"and search keys, such as "
			"XHXID SORT (DATE) UTF-8 ALL");
		imap_search_context_free(opts);
		return TRUE;
	}
	if (!sort_parse(cmd, list, program)) {
		imap_search_context_free(opts);
		return TRUE;
	}
	return search_build(cmd, opts, args + 2, charset, program);
}
