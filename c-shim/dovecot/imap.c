/* What only the imap process has: FETCH item and commands. */
#include "lib.h"
#include "xid-plugin.h"

void xid_imap_init(struct module *module ATTR_UNUSED)
{
}

void xid_imap_deinit(void)
{
}
