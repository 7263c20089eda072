/* plugin { xid_* }: read once per user, at login. */
#include "xid-plugin.h"
#include "hostpid.h"
#include "home-expand.h"
#include "settings-parser.h"

#define XID_DEFAULT_UID_WAIT "30s"
#define XID_DEFAULT_KEEPALIVE "2s"
#define XID_DEFAULT_DELIVERY_WAIT "30s"
#define XID_DEFAULT_APPENDUID_GRACE "0"

/* Longer than this is a slip of the pen: nobody waits a day for a command,
   and the timers of the host count milliseconds in 32 bits. */
#define XID_MAX_TIME_MSECS (24 * 60 * 60 * 1000U)

static bool
read_time(struct mail_user *user, const char *name, const char *def,
	  unsigned int *msecs_r, const char **error_r)
{
	const char *value = mail_user_plugin_getenv(user, name);
	const char *error;

	if (value == NULL || *value == '\0')
		value = def;
	if (settings_get_time_msecs(value, msecs_r, &error) < 0) {
		*error_r = t_strdup_printf("%s = %s: expected a time such as "
			"30s, 500ms or 0 (%s)", name, value, error);
		return FALSE;
	}
	if (*msecs_r > XID_MAX_TIME_MSECS) {
		*error_r = t_strdup_printf("%s = %s: expected at most one day",
					   name, value);
		return FALSE;
	}
	return TRUE;
}

static bool
read_bool(struct mail_user *user, const char *name, bool def,
	  bool *value_r, const char **error_r)
{
	const char *value = mail_user_plugin_getenv(user, name);

	*value_r = def;
	if (value == NULL || *value == '\0')
		return TRUE;
	if (strcasecmp(value, "yes") == 0 || strcasecmp(value, "no") == 0) {
		*value_r = strcasecmp(value, "yes") == 0;
		return TRUE;
	}
	*error_r = t_strdup_printf("%s = %s: expected yes or no", name, value);
	return FALSE;
}

static bool
read_namespace(struct mail_user *user, pool_t pool, const char **ns_r,
	       const char **error_r)
{
	const char *value = mail_user_plugin_getenv(user, "xid_namespace");
	char name[IMAP_XID_NAMESPACE_SIZE];

	if (value != NULL && *value != '\0') {
		if (imap_xid_namespace_check(value, strlen(value)) < 0) {
			/* the words begin with the value */
			*error_r = t_strconcat("xid_namespace = ",
				imap_xid_last_error(), NULL);
			return FALSE;
		}
		*ns_r = p_strdup(pool, value);
		return TRUE;
	}
	if (imap_xid_namespace_from_host(my_hostname, strlen(my_hostname),
					 name, sizeof(name)) < 0) {
		*error_r = t_strdup_printf("xid_namespace is not set and the "
			"host's name gives none (%s): set it",
			imap_xid_last_error());
		return FALSE;
	}
	*ns_r = p_strdup(pool, name);
	return TRUE;
}

static bool
read_uid_source(struct mail_user *user, enum xid_uid_source *source_r,
		const char **error_r)
{
	const char *value = mail_user_plugin_getenv(user, "xid_uid_source");

	*source_r = XID_UID_SOURCE_LOCAL;
	if (value == NULL || *value == '\0' || strcmp(value, "local") == 0)
		;
	else if (strcmp(value, "table") == 0)
		*source_r = XID_UID_SOURCE_TABLE;
	else if (strcmp(value, "cluster") == 0)
		*source_r = XID_UID_SOURCE_CLUSTER;
	else {
		*error_r = t_strdup_printf("xid_uid_source = %s: expected "
			"local, table or cluster", value);
		return FALSE;
	}
	return TRUE;
}

/* A capability is an IMAP atom; a wrong one would break every client's parse
   of the greeting. */
static bool
read_capability(struct mail_user *user, pool_t pool, const char **capability_r,
		const char **error_r)
{
	const char *value = mail_user_plugin_getenv(user, "xid_capability");
	const char *p;

	*capability_r = NULL;
	if (value == NULL || *value == '\0')
		return TRUE;
	for (p = value; *p != '\0'; p++) {
		if (!i_isalnum(*p) && strchr("-._=+/", *p) == NULL) {
			*error_r = t_strdup_printf("xid_capability = %s: "
				"expected one word of letters, digits and "
				"\"-._=+/\"", value);
			return FALSE;
		}
	}
	*capability_r = p_strdup(pool, value);
	return TRUE;
}

static bool
read_dir(struct mail_user *user, pool_t pool, const char **dir_r,
	 const char **error_r)
{
	const char *value = mail_user_plugin_getenv(user, "xid_dir");

	*dir_r = NULL;
	if (value == NULL || *value == '\0')
		return TRUE;
	value = mail_user_home_expand(user, value);
	if (*value != '/') {
		*error_r = t_strdup_printf("xid_dir = %s: expected an absolute "
			"path or one that begins with ~/", value);
		return FALSE;
	}
	*dir_r = p_strdup(pool, value);
	return TRUE;
}

bool xid_settings_read(struct mail_user *user, pool_t pool,
		       struct xid_settings *set_r, const char **error_r)
{
	i_zero(set_r);
	return read_namespace(user, pool, &set_r->namespace, error_r) &&
		read_uid_source(user, &set_r->uid_source, error_r) &&
		read_time(user, "xid_uid_wait", XID_DEFAULT_UID_WAIT,
			  &set_r->uid_wait_msecs, error_r) &&
		read_time(user, "xid_keepalive", XID_DEFAULT_KEEPALIVE,
			  &set_r->keepalive_msecs, error_r) &&
		read_time(user, "xid_delivery_wait", XID_DEFAULT_DELIVERY_WAIT,
			  &set_r->delivery_wait_msecs, error_r) &&
		read_time(user, "xid_appenduid_grace",
			  XID_DEFAULT_APPENDUID_GRACE,
			  &set_r->appenduid_grace_msecs, error_r) &&
		read_bool(user, "xid_uids", TRUE, &set_r->uids, error_r) &&
		read_capability(user, pool, &set_r->capability, error_r) &&
		read_dir(user, pool, &set_r->dir, error_r);
}
