#ifndef XID_RECORD_H
#define XID_RECORD_H

/* What of an XID is in a mailbox's index, octet by octet. This header needs
   nothing of the host: build.rs hands it to bindgen, so that xidctl reads
   exactly what the shim writes. */

#include <stdint.h>

/* The index extension's name, and the layout of its header. */
#define XID_EXT_NAME "xid"
#define XID_HEADER_VERSION 1

#define XID_NAMESPACE_SIZE 64

/* The index extension's record. number 0 = no XID. */
struct xid_record {
	uint64_t number;
	/* which entry of the extension's header names the namespace */
	uint32_t ns;
	uint32_t reserved;
};

/* The extension's header: this, then count times struct xid_header_entry. */
struct xid_header {
	uint32_t version;
	uint32_t count;
	/* Every UID up to this one that is in the mailbox has an XID. */
	uint32_t covered_uid;
	/* No message above this UID has an XID that another message of the
	   mailbox may have, too: up to here some were saved with an XID that
	   was here before, while they moved from one UID to another. */
	uint32_t moved_uid;
};

struct xid_header_entry {
	/* the highest number ever given in this mailbox, expunged ones too */
	uint64_t high;
	char name[XID_NAMESPACE_SIZE];
};

#endif
