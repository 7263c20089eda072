/* SQLite on demand. A host has one process per session, and most of them never
   need the registry: in those, libsqlite3 and the libm that it brings would be
   half of what the plug-in costs in memory. So the plug-in is not linked with
   it. Each function of SQLite that is used is here a jump through a pointer,
   and imap_xid_sqlite_load() sets the pointers.

   A function that is missing from the list is no error: then the linker takes
   libsqlite3 after all, which a test notices. */
#include <dlfcn.h>
#include <stddef.h>

#define LIBRARY "libsqlite3.so.0"

#if defined(__x86_64__)
#  define JUMP(name) "endbr64\n\tjmp *lazy_" #name "(%rip)\n"
#elif defined(__aarch64__)
#  define JUMP(name) "hint 34\n\tadrp x16, lazy_" #name "\n" \
	"\tldr x16, [x16, :lo12:lazy_" #name "]\n\tbr x16\n"
#endif

#define FUNCTIONS(F) \
	F(sqlite3_bind_blob64) \
	F(sqlite3_bind_double) \
	F(sqlite3_bind_int64) \
	F(sqlite3_bind_null) \
	F(sqlite3_bind_parameter_count) \
	F(sqlite3_bind_text64) \
	F(sqlite3_bind_zeroblob) \
	F(sqlite3_busy_timeout) \
	F(sqlite3_changes) \
	F(sqlite3_clear_bindings) \
	F(sqlite3_close) \
	F(sqlite3_column_blob) \
	F(sqlite3_column_bytes) \
	F(sqlite3_column_count) \
	F(sqlite3_column_double) \
	F(sqlite3_column_int64) \
	F(sqlite3_column_name) \
	F(sqlite3_column_text) \
	F(sqlite3_column_type) \
	F(sqlite3_db_config) \
	F(sqlite3_errcode) \
	F(sqlite3_errmsg) \
	F(sqlite3_errstr) \
	F(sqlite3_extended_result_codes) \
	F(sqlite3_finalize) \
	F(sqlite3_get_autocommit) \
	F(sqlite3_keyword_check) \
	F(sqlite3_last_insert_rowid) \
	F(sqlite3_libversion_number) \
	F(sqlite3_mutex_alloc) \
	F(sqlite3_mutex_free) \
	F(sqlite3_open_v2) \
	F(sqlite3_prepare_v3) \
	F(sqlite3_reset) \
	F(sqlite3_step) \
	F(sqlite3_threadsafe)

#ifdef JUMP
#define DEFINE(name) \
	extern void *lazy_##name __attribute__((visibility("hidden"))); \
	void *lazy_##name; \
	__asm__(".text\n.globl " #name "\n.hidden " #name "\n" \
		".type " #name ", %function\n" #name ":\n\t" JUMP(name) \
		".size " #name ", . - " #name "\n");
FUNCTIONS(DEFINE)

static const struct {
	const char *name;
	void **at;
} functions[] = {
#define ENTRY(name) { #name, &lazy_##name },
	FUNCTIONS(ENTRY)
};

const char *imap_xid_sqlite_load(void);

/* Returns NULL, or why it cannot be loaded. Not to be called by two threads at
   once. The library stays loaded: SQLite keeps state of its own. */
const char *imap_xid_sqlite_load(void)
{
	void *library = dlopen(LIBRARY, RTLD_NOW | RTLD_LOCAL);
	size_t i;

	if (library == NULL)
		return dlerror();
	for (i = 0; i < sizeof(functions) / sizeof(functions[0]); i++) {
		*functions[i].at = dlsym(library, functions[i].name);
		if (*functions[i].at == NULL)
			return dlerror();
	}
	return NULL;
}
#else
const char *imap_xid_sqlite_load(void);

/* For this processor there are no jumps: the linker took libsqlite3. */
const char *imap_xid_sqlite_load(void)
{
	return NULL;
}
#endif
