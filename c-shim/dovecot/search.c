/* XID as a search key (spec part 3).

   The host's searches know no keys of plug-ins. So a set of XIDs travels
   through the host as the argument of another key, GUID, that no message can
   have; while a search runs in a mailbox, the argument is turned into the
   sequences that the set names there. Everything that the host does with
   search arguments (NOT, OR, copies, comparison, saved results that are
   updated) then needs nothing from us. */
#include "xid-search.h"
#include "hash.h"
#include "str.h"
#include "str-sanitize.h"
#include "imap-seqset.h"
#include "mail-search.h"
#include "mail-search-build.h"
#include "mail-search-parser-private.h"
#include "mail-search-register.h"

/* What marks a GUID argument as a set of XIDs. No GUID begins like this. */
#define XID_SEARCH_MARK "\001xid "
#define XID_SEARCH_MARK_LEN (sizeof(XID_SEARCH_MARK)-1)

/* Looking one XID up in the registry costs about as much as reading this many
   records of the index. */
#define XID_LOOKUP_COST 100

#define XID_ERROR_TOKEN_MAX 100

#define XID_SET_EXPECTED \
	"expected an XID or a comma-separated set of XIDs, such as foo-1,bar-2"

/* A search whose matches are collected. */
struct xid_search {
	union mail_search_module_context module_ctx;
	ARRAY_TYPE(seq_range) *matches;
};

static MODULE_CONTEXT_DEFINE_INIT(xid_search_module,
				  &mail_storage_module_register);

const struct xid_search_vfuncs *xid_search_imap = NULL;

/*
 * Sets to sequences
 */

HASH_TABLE_DEFINE_TYPE(xid_wanted, const struct imap_xid *,
		       const struct imap_xid *);

static unsigned int xid_hash(const struct imap_xid *xid)
{
	return mem_hash(xid->ns, xid->ns_len) ^
		(unsigned int)(xid->number * 2654435761U) ^
		(unsigned int)(xid->number >> 32);
}

static int xid_cmp(const struct imap_xid *a, const struct imap_xid *b)
{
	if (a->number != b->number)
		return a->number < b->number ? -1 : 1;
	if (a->ns_len != b->ns_len)
		return a->ns_len < b->ns_len ? -1 : 1;
	return memcmp(a->ns, b->ns, a->ns_len);
}

/* What the set names. The XIDs themselves are returned, to be freed after the
   table. */
static struct imap_xid *
xid_wanted_init(const imap_xid_set *set, HASH_TABLE_TYPE(xid_wanted) *wanted_r)
{
	size_t i, count = imap_xid_set_count(set);
	struct imap_xid *xids = i_new(struct imap_xid, I_MAX(count, 1));
	const struct imap_xid *key;

	hash_table_create(wanted_r, default_pool, count, xid_hash, xid_cmp);
	for (i = 0; i < count; i++) {
		if (imap_xid_set_get(set, i, &xids[i]) < 0)
			i_unreached();
		key = &xids[i];
		hash_table_update(*wanted_r, key, key);
	}
	return xids;
}

/* One pass over the mailbox: for sets that are large beside it, and when the
   registry cannot be asked. */
static void xid_search_scan(struct xid_mailbox *xbox, const imap_xid_set *set,
			    ARRAY_TYPE(seq_range) *seqs)
{
	struct mail_index_view *view = xbox->box->view;
	uint32_t seq, messages = mail_index_view_get_messages_count(view);
	HASH_TABLE_TYPE(xid_wanted) wanted;
	struct imap_xid *xids, xid;
	const struct imap_xid *key = &xid;

	xids = xid_wanted_init(set, &wanted);
	for (seq = 1; seq <= messages; seq++) {
		if (xid_mail_get(xbox, view, seq, &xid) &&
		    hash_table_lookup(wanted, key) != NULL)
			seq_range_array_add(seqs, seq);
	}
	hash_table_destroy(&wanted);
	i_free(xids);
}

/* Returns -1 when the registry failed. */
static int xid_search_look_up(struct xid_mailbox *xbox, const imap_xid_set *set,
			      ARRAY_TYPE(seq_range) *seqs)
{
	size_t i, count = imap_xid_set_count(set);
	struct imap_xid xid;
	uint32_t seq;
	int ret;

	for (i = 0; i < count; i++) {
		if (imap_xid_set_get(set, i, &xid) < 0)
			i_unreached();
		ret = xid_mailbox_find(xbox->box, &xid, &seq);
		if (ret < 0)
			return -1;
		if (ret > 0)
			seq_range_array_add(seqs, seq);
	}
	return 0;
}

void xid_search_resolve(struct xid_mailbox *xbox, const imap_xid_set *set,
			ARRAY_TYPE(seq_range) *seqs)
{
	uint32_t messages = mail_index_view_get_messages_count(xbox->box->view);

	if (imap_xid_set_count(set) >= messages / XID_LOOKUP_COST ||
	    xid_box_open(xbox) == NULL ||
	    xid_search_look_up(xbox, set, seqs) < 0) {
		array_clear(seqs);
		xid_search_scan(xbox, set, seqs);
	}
}

/*
 * Virtual mailboxes: their messages are those of others, and have their XIDs
 */

static MODULE_CONTEXT_DEFINE_INIT(xid_virtual_module,
				  &mail_storage_module_register);

/* What stood in the place of our functions: of a virtual mailbox, which has no
   XIDs of its own, or of one that has. */
static struct mailbox_vfuncs *xid_search_super(struct mailbox *box)
{
	union mailbox_module_context *ctx =
		MODULE_CONTEXT(box, xid_virtual_module);

	return ctx != NULL ? &ctx->super :
		&xid_mailbox_context(box)->module_ctx.super;
}

static void
xid_search_virtual_mail(struct mail *mail, HASH_TABLE_TYPE(xid_wanted) wanted,
			ARRAY_TYPE(seq_range) *seqs)
{
	struct xid_mailbox *xbox;
	struct mail *behind;
	struct imap_xid xid;
	const struct imap_xid *key = &xid;

	if (mail_get_backend_mail(mail, &behind) < 0)
		return;
	xbox = xid_mailbox_get(behind->box);
	if (xbox != NULL &&
	    xid_mail_get(xbox, behind->transaction->view, behind->seq, &xid) &&
	    hash_table_lookup(wanted, key) != NULL)
		seq_range_array_add(seqs, mail->seq);
}

static void xid_search_virtual(struct mailbox *box, const imap_xid_set *set,
			       ARRAY_TYPE(seq_range) *seqs)
{
	uint32_t seq, messages = mail_index_view_get_messages_count(box->view);
	struct mailbox_transaction_context *t;
	HASH_TABLE_TYPE(xid_wanted) wanted;
	struct imap_xid *xids;
	struct mail *mail;

	xids = xid_wanted_init(set, &wanted);
	t = mailbox_transaction_begin(box, 0, "xid: search");
	mail = mail_alloc(t, 0, NULL);
	for (seq = 1; seq <= messages; seq++) T_BEGIN {
		mail_set_seq(mail, seq);
		xid_search_virtual_mail(mail, wanted, seqs);
	} T_END;
	mail_free(&mail);
	mailbox_transaction_rollback(&t);
	hash_table_destroy(&wanted);
	i_free(xids);
}

/*
 * Searches
 */

static bool search_arg_is_xid(const struct mail_search_arg *arg)
{
	switch (arg->type) {
	case SEARCH_GUID:
	case SEARCH_SEQSET:
	case SEARCH_UIDSET:
		return arg->value.str != NULL &&
			strncmp(arg->value.str, XID_SEARCH_MARK,
				XID_SEARCH_MARK_LEN) == 0;
	default:
		return FALSE;
	}
}

static void search_arg_begin(struct mailbox *box, pool_t pool,
			     struct mail_search_arg *arg)
{
	const char *text = arg->value.str + XID_SEARCH_MARK_LEN;
	struct xid_mailbox *xbox = xid_mailbox_get(box);
	imap_xid_set *set;

	if (array_is_created(&arg->value.seqset))
		array_clear(&arg->value.seqset);
	else
		p_array_init(&arg->value.seqset, pool, 8);
	arg->type = SEARCH_SEQSET;

	if (imap_xid_set_parse(text, strlen(text), &set) < 0) {
		/* somebody made a GUID up that looks like our mark */
		return;
	}
	if (xbox != NULL)
		xid_search_resolve(xbox, set, &arg->value.seqset);
	else
		xid_search_virtual(box, set, &arg->value.seqset);
	imap_xid_set_free(set);
}

/* The arguments below INTHREAD are searched for by themselves, and come here
   with that search. */
static void search_args_begin(struct mailbox *box, pool_t pool,
			      struct mail_search_arg *arg)
{
	for (; arg != NULL; arg = arg->next) {
		if (arg->type == SEARCH_OR || arg->type == SEARCH_SUB)
			search_args_begin(box, pool, arg->value.subargs);
		else if (arg->type == SEARCH_GUID && search_arg_is_xid(arg))
			search_arg_begin(box, pool, arg);
	}
}

static void search_args_end(struct mail_search_arg *arg)
{
	for (; arg != NULL; arg = arg->next) {
		if (arg->type == SEARCH_OR || arg->type == SEARCH_SUB)
			search_args_end(arg->value.subargs);
		else if (search_arg_is_xid(arg)) {
			/* The sequences may mean others after the next sync,
			   and a saved result is searched for again then. */
			arg->type = SEARCH_GUID;
		}
	}
}

static bool xid_search_next(struct mail_search_context *ctx,
			    struct mail **mail_r, bool *tryagain_r)
{
	struct mailbox_vfuncs *super = xid_search_super(ctx->transaction->box);
	struct xid_search *xsearch = MODULE_CONTEXT(ctx, xid_search_module);

	if (!super->search_next_nonblock(ctx, mail_r, tryagain_r))
		return FALSE;
	if (xsearch != NULL)
		seq_range_array_add(xsearch->matches, (*mail_r)->uid);
	return TRUE;
}

/* Only now, and not for every mailbox: what runs for each message costs too
   much for the many searches whose matches nobody collects. */
static void search_collect(struct mailbox *box)
{
	if (box->v.search_next_nonblock == xid_search_next)
		return;
	xid_search_super(box)->search_next_nonblock =
		box->v.search_next_nonblock;
	box->v.search_next_nonblock = xid_search_next;
}

/* Not where the index is in memory only. */
static bool xid_search_applies(struct mailbox *box)
{
	return xid_mailbox_get(box) != NULL ||
		MODULE_CONTEXT(box, xid_virtual_module) != NULL;
}

/* Whether a session may still have messages under UIDs that were never stable:
   replication gives them others, and to the session's view that is an expunge
   that it has not seen yet. */
static bool search_may_be_stale(struct mailbox *box)
{
	const struct xid_mailbox *xbox = xid_mailbox_get(box);

	return xbox != NULL && !xbox->xuser->user->dsyncing &&
		xbox->xuser->set.uid_source == XID_UID_SOURCE_CLUSTER;
}

static struct mail_search_context *
xid_search_begin(struct mailbox_transaction_context *t,
		 struct mail_search_args *args,
		 const enum mail_sort_type *sort_program,
		 enum mail_fetch_field wanted_fields,
		 struct mailbox_header_lookup_ctx *wanted_headers)
{
	struct mailbox_vfuncs *super = xid_search_super(t->box);
	struct mail_search_context *ctx;
	struct xid_search *xsearch;
	ARRAY_TYPE(seq_range) *matches;

	matches = xid_search_imap == NULL ? NULL :
		xid_search_imap->matches_wanted(t->box);
	if (xid_search_applies(t->box)) T_BEGIN {
		search_args_begin(t->box, args->pool, args->args);
	} T_END;
	/* The watermark was looked at before this. What replication moved, it
	   had moved before the watermark passed it, so it is seen now. */
	if (search_may_be_stale(t->box))
		(void)mail_index_refresh(t->box->index);
	ctx = super->search_init(t, args, sort_program, wanted_fields,
				 wanted_headers);
	if (matches != NULL) {
		search_collect(t->box);
		xsearch = i_new(struct xid_search, 1);
		xsearch->matches = matches;
		MODULE_CONTEXT_SET(ctx, xid_search_module, xsearch);
	}
	return ctx;
}

/* What is gone is not found. The watermark may have passed the old UID of a
   message that got another one: shown from the view, it would have two.

   What the arguments are found to be of a message is forgotten before the next
   one is looked at: that would match, too. */
static bool xid_search_next_update_seq(struct mail_search_context *ctx)
{
	struct mailbox_transaction_context *t = ctx->transaction;
	struct mailbox_vfuncs *super = xid_search_super(t->box);
	bool stale = search_may_be_stale(t->box);

	while (super->search_next_update_seq(ctx)) {
		if (!stale || !mail_index_is_expunged(t->view, ctx->seq))
			return TRUE;
		mail_search_args_reset(ctx->args->args, FALSE);
	}
	return FALSE;
}

static int xid_search_end(struct mail_search_context *ctx)
{
	struct mailbox_vfuncs *super = xid_search_super(ctx->transaction->box);
	struct xid_search *xsearch = MODULE_CONTEXT(ctx, xid_search_module);
	struct mail_search_args *args = ctx->args;
	int ret;

	ret = super->search_deinit(ctx);
	search_args_end(args->args);
	i_free(xsearch);
	return ret;
}

void xid_search_virtual_allocated(struct mailbox *box)
{
	struct mailbox_vfuncs *v = box->vlast;
	union mailbox_module_context *ctx;

	ctx = p_new(box->pool, union mailbox_module_context, 1);
	ctx->super = *v;
	box->vlast = &ctx->super;
	v->search_init = xid_search_begin;
	v->search_deinit = xid_search_end;
	MODULE_CONTEXT_SET_SELF(box, xid_virtual_module, ctx);
}

static void search_mailbox_hook(struct xid_mailbox *xbox,
				struct mailbox_vfuncs *v)
{
	v->search_init = xid_search_begin;
	v->search_deinit = xid_search_end;
	/* It runs for each message: only where it can find something. */
	if (xbox->xuser->set.uid_source == XID_UID_SOURCE_CLUSTER)
		v->search_next_update_seq = xid_search_next_update_seq;
}

/*
 * Parsing
 */

/* The host's parsers cannot look ahead. This one stands in front of one of
   them, with the word that turned out to be the next key. */
struct xid_search_parser {
	struct mail_search_parser parser;
	struct mail_search_parser *behind;
	const char *word;
};

static int search_parser_key(struct mail_search_parser *_parser,
			     const char **key_r)
{
	struct xid_search_parser *parser =
		container_of(_parser, struct xid_search_parser, parser);

	if (parser->word == NULL)
		return parser->behind->v.parse_key(parser->behind, key_r);
	*key_r = parser->word;
	parser->word = NULL;
	return 1;
}

static int search_parser_string(struct mail_search_parser *_parser,
				const char **value_r)
{
	struct xid_search_parser *parser =
		container_of(_parser, struct xid_search_parser, parser);

	if (parser->word == NULL) {
		int ret = parser->behind->v.parse_string(parser->behind,
							 value_r);
		/* the caller adds to it, and shows the one behind */
		_parser->error = parser->behind->error;
		return ret;
	}
	*value_r = parser->word;
	parser->word = NULL;
	return 1;
}

static bool search_parser_skip_next(struct mail_search_parser *_parser,
				    const char *str)
{
	struct xid_search_parser *parser =
		container_of(_parser, struct xid_search_parser, parser);

	if (parser->word == NULL)
		return parser->behind->v.parse_skip_next(parser->behind, str);
	if (strcasecmp(parser->word, str) != 0)
		return FALSE;
	parser->word = NULL;
	return TRUE;
}

static const struct mail_search_parser_vfuncs search_parser_vfuncs = {
	search_parser_key,
	search_parser_string,
	search_parser_skip_next
};

static void search_parser_push_back(struct mail_search_build_context *ctx,
				    const char *word)
{
	struct xid_search_parser *parser;

	if (ctx->parser->v.parse_key == search_parser_key) {
		parser = container_of(ctx->parser, struct xid_search_parser,
				      parser);
	} else {
		parser = p_new(ctx->pool, struct xid_search_parser, 1);
		parser->parser.v = search_parser_vfuncs;
		parser->parser.pool = ctx->pool;
		parser->behind = ctx->parser;
		ctx->parser = &parser->parser;
	}
	i_assert(parser->word == NULL);
	parser->word = p_strdup(ctx->pool, word);
}

/* How deep in NOT, OR and INTHREAD the key stands that is being parsed. */
static unsigned int search_depth = 0;

static struct mail_search_arg *
search_key_set(struct mail_search_build_context *ctx, const char *text)
{
	struct mail_search_arg *arg;

	arg = mail_search_build_new(ctx, SEARCH_GUID);
	arg->value.str = p_strconcat(ctx->pool, XID_SEARCH_MARK, text, NULL);
	return arg;
}

static struct mail_search_arg *
search_key_error(struct mail_search_build_context *ctx, const char *error)
{
	ctx->_error = p_strconcat(ctx->pool, "XID: ", error, NULL);
	return NULL;
}

static struct mail_search_arg *
search_key_bare(struct mail_search_build_context *ctx)
{
	if (search_depth > 0) {
		return search_key_error(ctx, XID_SET_EXPECTED
			"; XID alone does not go into NOT, OR or INTHREAD");
	}
	if (xid_search_imap == NULL || !xid_search_imap->want_matches())
		return search_key_error(ctx, XID_SET_EXPECTED);
	return mail_search_build_new(ctx, SEARCH_ALL);
}

/* Can the word be a search key, or was it meant as a set? */
static bool search_word_is_key(struct mail_search_build_context *ctx,
			       const char *word)
{
	ARRAY_TYPE(seq_range) seqs;

	t_array_init(&seqs, 8);
	return imap_seq_set_parse(word, &seqs) == 0 ||
		mail_search_register_find(ctx->reg, t_str_ucase(word)) != NULL;
}

static struct mail_search_arg *
search_key_xid(struct mail_search_build_context *ctx)
{
	imap_xid_set *set;
	const char *word;

	if (xid_search_imap != NULL && !xid_search_imap->enabled()) {
		/* as the host says it where there is no such plug-in */
		ctx->_error = "Unknown argument XID";
		return NULL;
	}
	if (mail_search_parse_string(ctx->parser, &word) < 0) {
		/* a list, or nothing: not an error, but the bare form */
		return search_key_bare(ctx);
	}
	if (imap_xid_set_parse(word, strlen(word), &set) == 0) {
		imap_xid_set_free(set);
		return search_key_set(ctx, word);
	}
	if (!search_word_is_key(ctx, word)) {
		return search_key_error(ctx, str_sanitize(imap_xid_last_error(),
							  XID_ERROR_TOKEN_MAX * 3));
	}
	search_parser_push_back(ctx, word);
	return search_key_bare(ctx);
}

/* Keys with keys inside: theirs are counted. */
struct search_nesting {
	const char *key;
	struct mail_search_arg *(*wrapper)(struct mail_search_build_context *);
	struct mail_search_arg *(*wrapped)(struct mail_search_build_context *);
};
#define XID_SEARCH_NESTINGS 3
static struct search_nesting search_nestings[XID_SEARCH_NESTINGS];

static struct mail_search_arg *
search_key_nested(struct mail_search_build_context *ctx, unsigned int i)
{
	struct mail_search_arg *arg;

	search_depth++;
	arg = search_nestings[i].wrapped(ctx);
	search_depth--;
	return arg;
}

static struct mail_search_arg *
search_key_not(struct mail_search_build_context *ctx)
{
	return search_key_nested(ctx, 0);
}

static struct mail_search_arg *
search_key_or(struct mail_search_build_context *ctx)
{
	return search_key_nested(ctx, 1);
}

static struct mail_search_arg *
search_key_inthread(struct mail_search_build_context *ctx)
{
	return search_key_nested(ctx, 2);
}

static struct search_nesting search_nestings[XID_SEARCH_NESTINGS] = {
	{ "NOT", search_key_not, NULL },
	{ "OR", search_key_or, NULL },
	{ "INTHREAD", search_key_inthread, NULL },
};

/* A register's entry, to be changed: the host can add keys, but not replace
   one. Its array is on the heap. */
static struct mail_search_register_arg *
search_register_entry(struct mail_search_register *reg, const char *key)
{
	return (struct mail_search_register_arg *)(uintptr_t)
		mail_search_register_find(reg, key);
}

static const struct mail_search_register_arg xid_search_key = {
	"XID", search_key_xid
};

static void search_register_add(struct mail_search_register *reg)
{
	if (mail_search_register_find(reg, xid_search_key.key) == NULL)
		mail_search_register_add(reg, &xid_search_key, 1);
}

void xid_search_init(void)
{
	struct mail_search_register *reg = mail_search_register_get_imap();
	struct mail_search_register_arg *entry;
	unsigned int i;

	search_register_add(reg);
	/* doveadm's own: may be a copy of the other, or older than our key */
	search_register_add(mail_search_register_get_human());

	for (i = 0; i < N_ELEMENTS(search_nestings); i++) {
		entry = search_register_entry(reg, search_nestings[i].key);
		if (entry == NULL || entry->build == search_nestings[i].wrapper)
			continue;
		search_nestings[i].wrapped = entry->build;
		entry->build = search_nestings[i].wrapper;
	}
	xid_mailbox_hook_add(search_mailbox_hook);
}

void xid_search_deinit(void)
{
	struct mail_search_register *reg = mail_search_register_get_imap();
	struct mail_search_register_arg *entry;
	unsigned int i;

	for (i = 0; i < N_ELEMENTS(search_nestings); i++) {
		entry = search_register_entry(reg, search_nestings[i].key);
		if (entry != NULL && search_nestings[i].wrapped != NULL)
			entry->build = search_nestings[i].wrapped;
	}
}
