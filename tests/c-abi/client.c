/* A host in small: everything that a mail server does with XIDs, without one.

   usage: client DIR

   DIR is a mail root. Each run appends three messages to one mailbox, expunges
   one, and prints what is new to a client that was here in the run before. */
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "imap_xid.h"

#define CHECK(condition) \
	((condition) ? (void)0 : fail(__LINE__, #condition))

static const char *const NODE = "alpha";
static const uint8_t INBOX[16] = "fifteen octets.";
static const uint32_t UIDVALIDITY = 1795460000;

static void fail(int line, const char *condition)
{
	fprintf(stderr, "client.c:%d: %s: %s\n", line, condition,
		imap_xid_last_error());
	exit(1);
}

static void logger(int32_t level, const char *text, void *context)
{
	fprintf(stderr, "%s: level %d: %s\n", (const char *)context,
		(int)level, text);
}

static bool error_says(const char *what)
{
	return strstr(imap_xid_last_error(), what) != NULL;
}

static int32_t parse(const char *text, struct imap_xid *xid)
{
	return imap_xid_parse(text, strlen(text), xid);
}

static void parse_and_format(void)
{
	struct imap_xid xid;
	char text[IMAP_XID_SIZE];

	CHECK(parse("alpha-42", &xid) == 0);
	CHECK(xid.ns_len == 5 && memcmp(xid.ns, "alpha", 5) == 0);
	CHECK(xid.number == 42);
	CHECK(imap_xid_format(&xid, text, sizeof(text)) == 8);
	CHECK(strcmp(text, "alpha-42") == 0);
	CHECK(imap_xid_format(&xid, text, 8) == IMAP_XID_ERR_SPACE);
	CHECK(imap_xid_format(&xid, text, 9) == 8);

	CHECK(parse("alpha-0", &xid) == IMAP_XID_ERR_SYNTAX);
	CHECK(error_says("expected a number"));
	CHECK(parse("al pha-1", &xid) == IMAP_XID_ERR_SYNTAX);
	CHECK(error_says("expected a namespace"));
	CHECK(imap_xid_parse(NULL, 0, &xid) == IMAP_XID_ERR_SYNTAX);
	CHECK(imap_xid_parse(NULL, 1, &xid) == IMAP_XID_ERR_ARGUMENT);
	CHECK(imap_xid_parse("a-1", 3, NULL) == IMAP_XID_ERR_ARGUMENT);
	xid.number = 0;
	CHECK(imap_xid_format(&xid, text, sizeof(text)) ==
	      IMAP_XID_ERR_ARGUMENT);
}

static void namespaces(void)
{
	char ns[IMAP_XID_NAMESPACE_SIZE];

	CHECK(imap_xid_namespace_check("mx1", 3) == 0);
	CHECK(imap_xid_namespace_check("mx-1", 4) == IMAP_XID_ERR_SYNTAX);
	CHECK(imap_xid_namespace_from_host("mx-1.example.org", 16, ns,
					   sizeof(ns)) == 4);
	CHECK(strcmp(ns, "mx_1") == 0);
	CHECK(imap_xid_namespace_from_host("", 0, ns, sizeof(ns)) ==
	      IMAP_XID_ERR_SYNTAX);
}

static void sets(void)
{
	const char *text = "alpha-1,beta-2,alpha-3";
	imap_xid_set *set;
	struct imap_xid xid;

	CHECK(imap_xid_set_parse(text, strlen(text), &set) == 0);
	CHECK(imap_xid_set_count(set) == 3);
	CHECK(imap_xid_set_get(set, 1, &xid) == 0);
	CHECK(xid.ns_len == 4 && memcmp(xid.ns, "beta", 4) == 0);
	CHECK(imap_xid_set_get(set, 3, &xid) == IMAP_XID_ERR_ARGUMENT);
	imap_xid_set_free(set);
	CHECK(imap_xid_set_parse("alpha-1:alpha-2", 15, &set) ==
	      IMAP_XID_ERR_SYNTAX);
	CHECK(set == NULL);
	imap_xid_set_free(NULL);
	CHECK(imap_xid_set_count(NULL) == 0);
}

static void states(void)
{
	imap_xid_state *state;
	uint32_t uidvalidity, uid;

	CHECK(imap_xid_state_new(&state) == 0);
	CHECK(imap_xid_state_add(state, "alpha-7", 7) == 0);
	CHECK(imap_xid_state_add(state, "alpha-5", 7) == 0);
	CHECK(imap_xid_state_number(state, "alpha", 5) == 7);
	CHECK(imap_xid_state_number(state, "beta", 4) == 0);
	CHECK(imap_xid_state_count(state) == 1);
	CHECK(imap_xid_state_mark(state, &uidvalidity, &uid) == 0);
	CHECK(imap_xid_state_add(state, "@99-11", 6) == 0);
	CHECK(imap_xid_state_mark(state, &uidvalidity, &uid) == 1);
	CHECK(uidvalidity == 99 && uid == 11);
	CHECK(imap_xid_state_add(state, "@99-12", 6) == IMAP_XID_ERR_SYNTAX);
	CHECK(error_says("one mark at most"));
	imap_xid_state_free(state);
}

static struct imap_xid_entry
entry_of(uint32_t uid, uint64_t number, const char *guid)
{
	struct imap_xid_entry entry = {
		.uid = uid, .ns = NODE, .ns_len = strlen(NODE),
		.number = number, .guid = guid, .guid_len = strlen(guid),
	};

	return entry;
}

/* Three messages are saved; their UIDs begin at next_uid. */
static uint64_t
append_three(imap_xid_root *root, imap_xid_box *box, uint32_t next_uid,
	     uint64_t highest)
{
	struct imap_xid_entry entries[3];
	char guids[3][32];
	uint64_t first;
	uint32_t i;

	CHECK(imap_xid_numbers_take(root, highest, 3, &first) == 0);
	CHECK(first > highest);
	for (i = 0; i < 3; i++) {
		snprintf(guids[i], sizeof(guids[i]), "guid-%" PRIu32,
			 next_uid + i);
		entries[i] = entry_of(next_uid + i, first + i, guids[i]);
	}
	CHECK(imap_xid_box_note(box, entries, 3) == 0);
	return first;
}

static void
print_news(imap_xid_box *box, const char *node, uint64_t known)
{
	char item[IMAP_XID_SIZE];
	imap_xid_state *state;
	uint32_t *uids;
	size_t i, n;

	CHECK(imap_xid_state_new(&state) == 0);
	if (known > 0) {
		snprintf(item, sizeof(item), "%s-%" PRIu64, node, known);
		CHECK(imap_xid_state_add(state, item, strlen(item)) == 0);
	}
	CHECK(imap_xid_box_news(box, state, &uids, &n) == 0);
	printf("news after %" PRIu64 ":", known);
	for (i = 0; i < n; i++)
		printf(" %" PRIu32, uids[i]);
	printf("\n");
	imap_xid_uids_free(uids, n);
	imap_xid_state_free(state);
}

static void
look_up_and_recover(imap_xid_box *box, uint64_t first, uint32_t first_uid)
{
	imap_xid_recovery *recovery;
	struct imap_xid xid = {
		.ns = NODE, .ns_len = strlen(NODE), .number = first + 1,
	};
	struct imap_xid found;
	char guid[32];
	uint32_t uid;

	CHECK(imap_xid_box_lookup(box, &xid, &uid) == 1);
	CHECK(uid == first_uid + 1);
	xid.number = first + 1000000;
	CHECK(imap_xid_box_lookup(box, &xid, &uid) == 0);

	/* As if the index had been deleted. */
	snprintf(guid, sizeof(guid), "guid-%" PRIu32, first_uid + 2);
	CHECK(imap_xid_recovery_begin(box, &recovery) == 1);
	CHECK(imap_xid_recovery_take(recovery, guid, strlen(guid),
				     &found) == 1);
	CHECK(found.number == first + 2);
	CHECK(found.ns_len == strlen(NODE) &&
	      memcmp(found.ns, NODE, found.ns_len) == 0);
	CHECK(imap_xid_recovery_take(recovery, guid, strlen(guid),
				     &found) == 0);
	imap_xid_recovery_free(recovery);

	CHECK(imap_xid_recovery_begin(box, &recovery) == 1);
	xid.number = first + 2;
	CHECK(imap_xid_recovery_exclude(recovery, &xid) == 0);
	CHECK(imap_xid_recovery_take(recovery, guid, strlen(guid),
				     &found) == 0);
	imap_xid_recovery_free(recovery);
}

/* A mailbox of its own, made and removed, so that the runs are alike. */
static void mailbox_life(imap_xid_root *root)
{
	static const uint8_t guid[16] = "another mailbox";
	struct imap_xid_entry entry = entry_of(1, 1, "shared guid");
	imap_xid_recovery *recovery;
	imap_xid_box *box;
	uint32_t missing;

	entry.ns = "elsewhere";
	entry.ns_len = strlen(entry.ns);
	CHECK(imap_xid_box_open(root, guid, "Old", 1, &box) == 0);
	CHECK(imap_xid_box_registered(box, 2, &missing) == 0);
	CHECK(missing == 1);
	CHECK(imap_xid_recovery_begin(box, &recovery) == 0);
	CHECK(recovery == NULL);
	CHECK(imap_xid_box_register(box, &entry, 1, 2, 1) == 0);
	CHECK(imap_xid_box_registered(box, 2, &missing) == 0);
	CHECK(missing == 2);
	CHECK(imap_xid_root_renamed(root, guid, "New") == 0);
	CHECK(imap_xid_root_deleted(root, guid) == 0);
	CHECK(imap_xid_recovery_begin(box, &recovery) == 0);
	imap_xid_box_close(box);
}

static void misuse(imap_xid_root *root, imap_xid_box *box)
{
	struct imap_xid_entry entry = entry_of(0, 1, "");
	struct imap_xid_root_options options = { .dir = "/", .ns = "a-b" };
	imap_xid_root *other = root;
	uint64_t number;

	CHECK(imap_xid_root_open(&options, &other) == IMAP_XID_ERR_SYNTAX);
	CHECK(other == NULL);
	options.ns = NODE;
	options.uid_source = 3;
	CHECK(imap_xid_root_open(&options, &other) == IMAP_XID_ERR_ARGUMENT);
	CHECK(imap_xid_root_open(NULL, &other) == IMAP_XID_ERR_ARGUMENT);
	CHECK(imap_xid_numbers_take(root, 0, 0, &number) ==
	      IMAP_XID_ERR_ARGUMENT);
	CHECK(imap_xid_box_note(box, &entry, 1) == IMAP_XID_ERR_ARGUMENT);
	CHECK(error_says("UID 0"));
	/* Here every UID is stable at once. */
	CHECK(imap_xid_box_attach(box, 0) == IMAP_XID_ERR_ARGUMENT);
	CHECK(imap_xid_box_has_place(box) == 0);
	CHECK(imap_xid_box_has_place(NULL) == IMAP_XID_ERR_ARGUMENT);
	CHECK(imap_xid_box_note(NULL, NULL, 0) == IMAP_XID_ERR_ARGUMENT);
	CHECK(imap_xid_box_note(box, NULL, 0) == 0);
	imap_xid_root_close(NULL);
	imap_xid_box_close(NULL);
	imap_xid_uids_free(NULL, 0);
	imap_xid_recovery_free(NULL);
}

static void session(const char *dir)
{
	const struct imap_xid_root_options options = {
		.dir = dir, .ns = NODE,
		.uid_source = IMAP_XID_UID_SOURCE_LOCAL,
	};
	imap_xid_root *root;
	imap_xid_box *box;
	uint64_t highest, first;
	uint32_t next_uid;

	CHECK(imap_xid_root_open(&options, &root) == 0);
	CHECK(imap_xid_box_open(root, INBOX, "INBOX", UIDVALIDITY, &box) == 0);
	misuse(root, box);
	CHECK(imap_xid_counter(root, &highest) == 0);
	/* The registry is the only index that this host has. */
	CHECK(imap_xid_box_registered(box, UINT32_MAX, &next_uid) == 0);

	first = append_three(root, box, next_uid, highest);
	CHECK(imap_xid_counter(root, &highest) == 0);
	CHECK(highest >= first + 2);
	look_up_and_recover(box, first, next_uid);
	CHECK(imap_xid_box_forget(box, &next_uid, 1) == 0);
	/* It is gone already: nothing of it is left to forget. */
	CHECK(imap_xid_box_forget_moved(box, &next_uid, 1) == 0);
	CHECK(imap_xid_box_gone_elsewhere(box, NULL, 0) == 0);
	print_news(box, NODE, first - 1);
	print_news(box, "unheard.of", 1);
	print_news(box, NODE, first + 2);
	mailbox_life(root);

	/* In either order. */
	imap_xid_root_close(root);
	imap_xid_box_close(box);
}

int main(int argc, char *argv[])
{
	static char name[] = "client";

	if (argc != 2) {
		fprintf(stderr, "usage: %s DIR\n", argv[0]);
		return 2;
	}
	CHECK(imap_xid_abi_version() == IMAP_XID_ABI_VERSION);
	imap_xid_set_logger(logger, name);
	parse_and_format();
	namespaces();
	sets();
	states();
	session(argv[1]);
	imap_xid_set_logger(NULL, NULL);
	return 0;
}
