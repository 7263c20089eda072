/* XHXID THREAD (spec part 5): as UID THREAD, with XIDs in the answer. */
#include "xid-imap.h"
#include "str.h"
#include "ostream.h"
#include "imap-arg.h"
#include "imap-base-subject.h"
#include "mail-search.h"
#include "mail-thread.h"

static void thread_append_xid(struct mailbox *box, string_t *str, uint32_t seq)
{
	if (!xid_mail_lookup(box, box->view, seq, str))
		str_append(str, "NIL");
}

/*
 * REFERENCES, REFS: the host builds the tree
 */

static int thread_write(struct mailbox *box,
			struct mail_thread_iterate_context *iter,
			string_t *str, bool root)
{
	struct mail_thread_iterate_context *children;
	const struct mail_thread_child_node *node;
	/* an only child stands behind its parent without parentheses */
	bool alone = !root && mail_thread_iterate_count(iter) == 1;
	int ret = 0;

	while ((node = mail_thread_iterate_next(iter, &children)) != NULL) {
		if (!alone)
			str_append_c(str, '(');
		/* 0 = a message that replies refer to, but is not here */
		if (node->uid != 0) {
			thread_append_xid(box, str, node->uid);
			if (children != NULL)
				str_append_c(str, ' ');
		}
		if (children != NULL) {
			T_BEGIN {
				if (thread_write(box, children, str, FALSE) < 0)
					ret = -1;
			} T_END;
			if (mail_thread_iterate_deinit(&children) < 0)
				ret = -1;
		}
		if (!alone)
			str_append_c(str, ')');
		if (ret < 0)
			break;
	}
	return ret;
}

static int thread_tree(struct client_command_context *cmd,
		       struct mail_search_args *sargs,
		       enum mail_thread_type type, string_t *str)
{
	struct mailbox *box = cmd->client->mailbox;
	struct mail_thread_iterate_context *iter;
	struct mail_thread_context *ctx;
	int ret;

	if (mail_thread_init(box, sargs, &ctx) < 0)
		return -1;
	iter = mail_thread_iterate_init(ctx, type, TRUE);
	T_BEGIN {
		ret = thread_write(box, iter, str, TRUE);
	} T_END;
	if (mail_thread_iterate_deinit(&iter) < 0)
		ret = -1;
	mail_thread_deinit(&ctx);
	return ret;
}

/*
 * ORDEREDSUBJECT (RFC 5256 part 3)
 */

struct subject_thread {
	time_t date;
	ARRAY_TYPE(uint32_t) seqs;
};
ARRAY_DEFINE_TYPE(subject_thread, struct subject_thread);

static int subject_thread_cmp(const struct subject_thread *a,
			      const struct subject_thread *b)
{
	if (a->date != b->date)
		return a->date < b->date ? -1 : 1;
	const uint32_t *seq_a = array_front(&a->seqs);
	const uint32_t *seq_b = array_front(&b->seqs);
	return *seq_a < *seq_b ? -1 : *seq_a > *seq_b;
}

/* The sent date, or when there is none, when it arrived. */
static time_t subject_thread_date(struct mail *mail)
{
	time_t date;
	int tz;

	if (mail_get_date(mail, &date, &tz) == 0 && date != 0)
		return date;
	return mail_get_received_date(mail, &date) == 0 ? date : 0;
}

/* Put the mail to the last thread if its subject is prev_subject; the search
   gives them sorted by subject and date. */
static void subject_thread_add(ARRAY_TYPE(subject_thread) *threads, pool_t pool,
			       struct mail *mail, string_t *prev_subject)
{
	struct subject_thread *thread;
	const char *subject, *base;
	bool is_reply_or_forward;

	if (mail_get_first_header(mail, "Subject", &subject) <= 0)
		subject = "";
	base = imap_get_base_subject_cased(pool_datastack_create(), subject,
					   &is_reply_or_forward);
	if (array_count(threads) > 0 && strcmp(str_c(prev_subject), base) == 0)
		thread = array_back_modifiable(threads);
	else {
		thread = array_append_space(threads);
		thread->date = subject_thread_date(mail);
		p_array_init(&thread->seqs, pool, 4);
		str_truncate(prev_subject, 0);
		str_append(prev_subject, base);
	}
	array_push_back(&thread->seqs, &mail->seq);
}

static int subject_threads_read(struct client_command_context *cmd,
				struct mail_search_args *sargs, pool_t pool,
				ARRAY_TYPE(subject_thread) *threads)
{
	static const enum mail_sort_type program[] = {
		MAIL_SORT_SUBJECT, MAIL_SORT_DATE, MAIL_SORT_END
	};
	struct mailbox_transaction_context *trans;
	struct mail_search_context *search_ctx;
	struct mail *mail;
	string_t *prev_subject = str_new(default_pool, 128);
	int ret;

	trans = mailbox_transaction_begin(cmd->client->mailbox, 0,
		imap_client_command_get_reason(cmd));
	search_ctx = mailbox_search_init(trans, sargs, program, 0, NULL);
	while (mailbox_search_next(search_ctx, &mail)) T_BEGIN {
		subject_thread_add(threads, pool, mail, prev_subject);
	} T_END;
	ret = mailbox_search_deinit(&search_ctx);
	(void)mailbox_transaction_commit(&trans);
	str_free(&prev_subject);
	return ret;
}

static void subject_thread_write(struct mailbox *box, string_t *str,
				 const struct subject_thread *thread)
{
	const uint32_t *seqs;
	unsigned int i, count;

	/* the first message, and all others as its replies */
	seqs = array_get(&thread->seqs, &count);
	str_append_c(str, '(');
	thread_append_xid(box, str, seqs[0]);
	for (i = 1; i < count; i++) {
		if (i == 1)
			str_append_c(str, ' ');
		if (count > 2)
			str_append_c(str, '(');
		thread_append_xid(box, str, seqs[i]);
		if (count > 2)
			str_append_c(str, ')');
	}
	str_append_c(str, ')');
}

static int thread_subjects(struct client_command_context *cmd,
			   struct mail_search_args *sargs, string_t *str)
{
	ARRAY_TYPE(subject_thread) threads;
	const struct subject_thread *thread;
	pool_t pool;
	int ret;

	pool = pool_alloconly_create("XHXID THREAD", 1024);
	p_array_init(&threads, pool, 64);
	ret = subject_threads_read(cmd, sargs, pool, &threads);
	if (ret == 0) {
		array_sort(&threads, subject_thread_cmp);
		array_foreach(&threads, thread)
			subject_thread_write(cmd->client->mailbox, str, thread);
	}
	pool_unref(&pool);
	return ret;
}

/*
 * Command
 */

static bool thread_run(struct client_command_context *cmd,
		       struct mail_search_args *sargs,
		       enum mail_thread_type type)
{
	struct client *client = cmd->client;
	string_t *str = str_new(default_pool, 1024);
	size_t len;
	int ret = 0;

	str_append(str, "* THREAD ");
	len = str_len(str);
	/* The host panics when asked for sequences in an empty mailbox. */
	if (client->messages_count > 0) {
		ret = type == MAIL_THREAD_ORDEREDSUBJECT ?
			thread_subjects(cmd, sargs, str) :
			thread_tree(cmd, sargs, type, str);
	}
	if (ret == 0) {
		if (str_len(str) == len)
			str_truncate(str, len - 1);
		str_append(str, "\r\n");
		o_stream_nsend(client->output, str_data(str), str_len(str));
	}
	str_free(&str);
	if (ret < 0) {
		client_send_box_error(cmd, client->mailbox);
		return TRUE;
	}
	return cmd_sync(cmd, MAILBOX_SYNC_FLAG_FAST, 0, "OK Thread completed.");
}

bool cmd_xhxid_thread(struct client_command_context *cmd,
		      struct xid_mailbox *xbox ATTR_UNUSED,
		      const struct imap_arg *args)
{
	struct mail_search_args *sargs;
	enum mail_thread_type type;
	const char *name, *charset;
	bool finished;
	int ret;

	if (!imap_arg_get_astring(&args[0], &name) ||
	    !imap_arg_get_astring(&args[1], &charset)) {
		client_send_command_error(cmd, "expected a thread algorithm, "
			"a charset and search keys, such as "
			"XHXID THREAD REFERENCES UTF-8 ALL");
		return TRUE;
	}
	if (!mail_thread_type_parse(name, &type)) {
		client_send_command_error(cmd, "Unknown thread algorithm: "
			"expected REFERENCES, REFS or ORDEREDSUBJECT");
		return TRUE;
	}
	ret = imap_search_args_build(cmd, args + 2, charset, &sargs);
	if (ret <= 0)
		return ret < 0;
	finished = thread_run(cmd, sargs, type);
	mail_search_args_unref(&sargs);
	return finished;
}
