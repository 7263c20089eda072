/* XIDs are given to messages. */
#include "lib.h"
#include "module-dir.h"
#include "xid-plugin.h"

void xid_storage_init(struct module *module)
{
	i_debug("xid: loaded as %s", module->name);
}

void xid_storage_deinit(void)
{
}
