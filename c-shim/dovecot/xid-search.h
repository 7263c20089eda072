#ifndef XID_SEARCH_H
#define XID_SEARCH_H

/* XID as a search key (spec part 3), in every process that searches. */

#include "xid-plugin.h"

struct mail_search_arg;

/* The messages of box->view that the set names, as sequences. XIDs that are
   not in the mailbox are skipped. */
void xid_search_resolve(struct xid_mailbox *xbox, const imap_xid_set *set,
			ARRAY_TYPE(seq_range) *seqs);

/* What the imap process adds to the key. */
struct xid_search_vfuncs {
	/* Does whoever searches have the plug-in? The key is there for all. */
	bool (*enabled)(void);
	/* XID without a set was found where it asks for the XIDs of the
	   matches. FALSE = nobody waits for an answer here. */
	bool (*want_matches)(void);
	/* A search begins. Where the UIDs of its matches go, or NULL. */
	ARRAY_TYPE(seq_range) *(*matches_wanted)(struct mailbox *box);
};
extern const struct xid_search_vfuncs *xid_search_imap;

/* A virtual mailbox was made: it can be searched for the XIDs of the messages
   behind its own. */
void xid_search_virtual_allocated(struct mailbox *box);

void xid_search_init(void);
void xid_search_deinit(void);

#endif
