/* Two mailboxes of one name, made on two nodes before either heard of the other.
   Replication makes them one: that with the lower GUID takes the GUID of the
   other. It is another mailbox from then on, so it takes the other's UIDVALIDITY,
   too; which UIDs its messages have there, the daemons settle as ever. */
#include "cluster.h"
#include "guid.h"
#include "maildir-storage.h"
#include "maildir-uidlist.h"

static int xid_twins_fail(struct mailbox *box, struct mailbox *other)
{
	enum mail_error error;
	const char *text = mailbox_get_last_internal_error(other, &error);

	mail_storage_set_error(box->storage, error, text);
	return -1;
}

/* 1 = there is a mailbox of this name, 0 = there is none, -1 = the error is
   set. */
static int xid_twin_get(struct mailbox *box, struct mailbox *twin,
			struct xid_twin *twin_r)
{
	struct mailbox_metadata metadata;
	struct mailbox_status status;
	enum mailbox_existence existence;

	if (mailbox_exists(twin, FALSE, &existence) < 0)
		return xid_twins_fail(box, twin);
	if (existence != MAILBOX_EXISTENCE_SELECT)
		return 0;
	/* the list's index may still have what was here before */
	if (mailbox_open(twin) < 0 ||
	    mailbox_get_metadata(twin, MAILBOX_METADATA_GUID, &metadata) < 0 ||
	    mailbox_get_status(twin, STATUS_UIDVALIDITY, &status) < 0)
		return xid_twins_fail(box, twin);
	memcpy(twin_r->guid, metadata.guid, sizeof(twin_r->guid));
	twin_r->uid_validity = status.uidvalidity;
	return 1;
}

/* Replication of this mailbox alone does not see that it is here, under another
   name: it would be here twice. */
static int
xid_twins_check_elsewhere(struct mailbox *box, const guid_128_t guid)
{
	enum mailbox_existence existence;
	struct mailbox *same;
	int ret = 0;

	same = mailbox_alloc_guid(box->list, guid, 0);
	if (mailbox_exists(same, FALSE, &existence) < 0)
		ret = xid_twins_fail(box, same);
	else if (existence == MAILBOX_EXISTENCE_SELECT &&
		 strcmp(same->vname, box->vname) != 0) {
		mail_storage_set_error(box->storage, MAIL_ERROR_TEMP,
			t_strdup_printf("xid: it is %s here until its "
					"new name is replicated", same->vname));
		ret = -1;
	}
	mailbox_free(&same);
	return ret;
}

static int
xid_twins_meet_with(struct mailbox *box, struct mailbox *twin,
		    const struct mailbox_update *update)
{
	struct xid_user *xuser = xid_mailbox_context(box)->xuser;
	struct xid_twin here;
	int ret = xid_twin_get(box, twin, &here);

	if (ret < 0)
		return -1;
	if (ret > 0 && guid_128_equals(here.guid, update->mailbox_guid))
		return 0;
	if (xid_twins_check_elsewhere(box, update->mailbox_guid) < 0)
		return -1;
	if (ret == 0)
		return 0;
	/* Ours is to become the other one: clients could not tell them apart. */
	if (memcmp(here.guid, update->mailbox_guid, sizeof(here.guid)) < 0 &&
	    here.uid_validity == update->uid_validity &&
	    xid_mailbox_watermark(twin) > 0) {
		mail_storage_set_error(box->storage, MAIL_ERROR_TEMP,
			"xid: two nodes made it in the same second, with the "
			"same UIDVALIDITY: rename one of them");
		return -1;
	}
	memcpy(xuser->twin.guid, update->mailbox_guid,
	       sizeof(xuser->twin.guid));
	xuser->twin.uid_validity = update->uid_validity;
	return 0;
}

int xid_twins_meet(struct mailbox *box, const struct mailbox_update *update)
{
	struct mailbox *twin;
	int ret;

	twin = mailbox_alloc(box->list, box->vname, 0);
	T_BEGIN {
		ret = xid_twins_meet_with(box, twin, update);
	} T_END;
	mailbox_free(&twin);
	return ret;
}

static int xid_twins_refresh_uidlist(struct mailbox *box)
{
	struct maildir_mailbox *mbox;

	if (!xid_storage_is_maildir(box))
		return 0;
	mbox = MAILDIR_MAILBOX(box);
	return maildir_uidlist_refresh(mbox->uidlist) < 0 ? -1 : 0;
}

/* Which mailbox it is now, whatever this process read of it. */
static int xid_twins_refresh_guid(struct mailbox *box, guid_128_t guid_r)
{
	struct mailbox_metadata metadata;

	if (xid_twins_refresh_uidlist(box) < 0 || mailbox_sync(box, 0) < 0 ||
	    mailbox_get_metadata(box, MAILBOX_METADATA_GUID, &metadata) < 0)
		return -1;
	memcpy(guid_r, metadata.guid, GUID_128_SIZE);
	return 0;
}

int xid_twins_join(struct mailbox *box, struct mailbox_update *update)
{
	const struct xid_twin *twin = &xid_mailbox_context(box)->xuser->twin;
	struct mail_user *user = box->storage->user;
	guid_128_t guid;
	int cmp;

	if (xid_twins_refresh_guid(box, guid) < 0)
		return -1;
	cmp = memcmp(guid, update->mailbox_guid, sizeof(guid));
	/* Another sync was faster. A mailbox never becomes one of a lower GUID:
	   it would be one and the other by turns. */
	if (twin->uid_validity == 0 ||
	    !guid_128_equals(twin->guid, update->mailbox_guid) ||
	    cmp > 0) {
		mail_storage_set_error(box->storage, MAIL_ERROR_TEMP,
			"xid: it is another mailbox by now");
		return -1;
	}
	update->uid_validity = twin->uid_validity;
	if (cmp < 0) {
		e_warning(user->event, "xid: %s: %s: another node made a "
			  "mailbox of the same name: they become one",
			  user->username, box->vname);
	}
	return 0;
}
