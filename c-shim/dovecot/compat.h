#ifndef XID_COMPAT_H
#define XID_COMPAT_H

/* What differs between the host's versions. */

#include "lib.h"

#include "imap-parser.h"

/* Security updates gave the function a fourth argument, a pointer to limits,
   without another ABI version. It is always passed: the older function does
   not look at it, and zeros mean no limits, as before. */
static inline struct imap_parser *
xid_imap_parser_create(struct istream *input, struct ostream *output,
		       size_t max_line_size)
{
	typedef struct imap_parser *create_t(struct istream *, struct ostream *,
					     size_t, const void *);
	static const unsigned int no_limits[8] = { 0 };
	create_t *create = (create_t *)(void (*)(void))imap_parser_create;

	return create(input, output, max_line_size, no_limits);
}

#endif
