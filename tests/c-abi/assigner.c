/* A complete assigner: it makes UIDs stable in the order in which messages
   came, each one ASSIGN_MSECS after its commit, and says what it does.

   usage: assigner DIR [ASSIGN_MSECS]

   DIR is the mail root (the folder of xid.table). An assigner of a cluster
   would ask the other nodes where this one only looks at the clock. It ends
   at SIGTERM or SIGINT, and can be killed and started again at any time: what
   is stable is durable, and what is pending stays so. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include "imap_xid.h"

#define PAGE 64
/* look again after so long, when nothing new came */
#define IDLE_MSECS 1000

static volatile sig_atomic_t stop;

static void on_signal(int signo)
{
	stop = signo;
}

static void complain(const char *what, const char *whose)
{
	fprintf(stderr, "assigner: %s: %s: %s\n", whose, what,
		imap_xid_last_error());
}

/* The highest UID that has been pending for long enough; 0 = none has. Prints
   what it makes stable. Stores for how long the next one has to wait. */
static uint32_t decide(imap_xid_table *table,
		       const struct imap_xid_table_box *box, int64_t msecs,
		       int64_t *wait_msecs)
{
	struct imap_xid_pending page[PAGE];
	uint32_t uid = 0;
	int32_t i, n;

	while ((n = imap_xid_table_pending(table, box->guid, uid,
					   page, PAGE)) > 0) {
		for (i = 0; i < n; i++) {
			if (page[i].age_ms < msecs) {
				if (msecs - page[i].age_ms < *wait_msecs)
					*wait_msecs = msecs - page[i].age_ms;
				return uid;
			}
			uid = page[i].uid;
			printf("%s %u %s-%llu %s\n", box->name, uid, page[i].ns,
			       (unsigned long long)page[i].number, page[i].guid);
		}
	}
	if (n < 0)
		complain("cannot list what is pending", box->name);
	return uid;
}

/* One look at every mailbox. Returns when to look again at the latest. */
static int64_t assign(imap_xid_table *table, int64_t msecs)
{
	struct imap_xid_table_box box;
	int64_t wait_msecs = IDLE_MSECS;
	int32_t ret;

	while ((ret = imap_xid_table_next(table, &box)) > 0) {
		if (box.pending == 0 || box.hold_ms != 0)
			continue;
		uint32_t uid = decide(table, &box, msecs, &wait_msecs);
		if (uid > 0 && imap_xid_table_advance(table, box.guid, uid) < 0)
			complain("cannot advance", box.name);
	}
	if (ret < 0)
		complain("cannot list the mailboxes", "table");
	fflush(stdout);
	return wait_msecs;
}

int main(int argc, char *argv[])
{
	struct sigaction action = { .sa_handler = on_signal };
	imap_xid_table *table;

	if (argc < 2 || argc > 3) {
		fprintf(stderr, "usage: %s DIR [ASSIGN_MSECS]\n", argv[0]);
		return 2;
	}
	if (imap_xid_table_open(argv[1], &table) < 0) {
		complain("cannot open", argv[1]);
		return 1;
	}
	sigaction(SIGTERM, &action, NULL);
	sigaction(SIGINT, &action, NULL);
	while (!stop)
		imap_xid_table_wait(table, assign(table, argc > 2 ? atoll(argv[2]) : 0));
	imap_xid_table_close(table);
	return 0;
}
