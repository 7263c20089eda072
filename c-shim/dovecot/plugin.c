/* The plug-in's life. One file serves every Dovecot process; doveadm loads it
   twice under two names (see src/ffi/dovecot.rs), hence the count. */
#include "lib.h"
#include "xid-plugin.h"

void xid_shim_init(struct module *module);
void xid_shim_deinit(void);

static unsigned int xid_refcount = 0;

void xid_shim_init(struct module *module)
{
	if (xid_refcount++ > 0)
		return;
	xid_storage_init(module);
	xid_imap_init(module);
}

void xid_shim_deinit(void)
{
	i_assert(xid_refcount > 0);
	if (--xid_refcount > 0)
		return;
	xid_imap_deinit();
	xid_storage_deinit();
}
