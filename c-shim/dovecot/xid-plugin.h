#ifndef XID_PLUGIN_H
#define XID_PLUGIN_H

/* What the files of the shim share. compat.h has the differences between
   host versions; no other file tests for them. */

struct module;

/* storage.c: XIDs are given to messages. In every process. */
void xid_storage_init(struct module *module);
void xid_storage_deinit(void);

/* imap.c: FETCH item, commands. Only where the host process is imap. */
void xid_imap_init(struct module *module);
void xid_imap_deinit(void);

#endif
