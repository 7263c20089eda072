/* The mailbox tree of a clustered user: the daemon hears of its changes, and
   each node makes the same INBOX. */
#include "cluster.h"
#include "guid.h"
#include "sha1.h"
#include "str.h"
#include "maildir-storage.h"
#include "maildir-uidlist.h"

/* Any number that all nodes have in common. The smallest one: a mailbox that
   is made again by other means gets a higher one, as it must. */
#define XID_INBOX_UIDVALIDITY 1

/* Two nodes that make INBOX each by itself must have made one mailbox, not two
   of one name: replication cannot join those. */
static void xid_inbox_guid(struct mailbox *box, guid_128_t guid_r)
{
	struct mail_namespace *ns = mailbox_get_namespace(box);
	unsigned char digest[SHA1_RESULTLEN];
	string_t *str = t_str_new(128);

	/* user names and prefixes hold no NUL */
	str_append(str, "imap-xid");
	str_append_c(str, '\0');
	str_append(str, box->storage->user->username);
	str_append_c(str, '\0');
	str_append(str, ns->prefix);
	sha1_get_digest(str_data(str), str_len(str), digest);
	memcpy(guid_r, digest, GUID_128_SIZE);
}

/* What is not said otherwise. */
static void
xid_inbox_update_fill(struct mailbox *box, struct mailbox_update *update)
{
	if (guid_128_is_empty(update->mailbox_guid))
		xid_inbox_guid(box, update->mailbox_guid);
	if (update->uid_validity == 0)
		update->uid_validity = XID_INBOX_UIDVALIDITY;
}

static void xid_tree_changed(struct mailbox *box)
{
	struct xid_user *xuser = xid_mailbox_context(box)->xuser;

	if (!xid_user_replicates(xuser))
		xid_event_tree(box);
}

static int
xid_tree_create_box(struct mailbox *box, const struct mailbox_update *update,
		    bool directory)
{
	struct xid_mailbox *xbox = xid_mailbox_context(box);
	struct mailbox_update inbox_update;

	if (box->inbox_user && !directory) {
		if (update != NULL)
			inbox_update = *update;
		else
			i_zero(&inbox_update);
		xid_inbox_update_fill(box, &inbox_update);
		update = &inbox_update;
	}
	if (xbox->module_ctx.super.create_box(box, update, directory) < 0)
		return -1;
	xid_tree_changed(box);
	return 0;
}

static int xid_tree_rename_box(struct mailbox *src, struct mailbox *dest)
{
	struct xid_wait_mailbox *wbox = xid_mailbox_context(src)->wait;

	if (wbox->prev.rename_box(src, dest) < 0)
		return -1;
	xid_tree_changed(dest);
	return 0;
}

static int xid_tree_delete_box(struct mailbox *box)
{
	struct xid_wait_mailbox *wbox = xid_mailbox_context(box)->wait;

	if (wbox->prev.delete_box(box) < 0)
		return -1;
	xid_tree_changed(box);
	return 0;
}

static int xid_tree_set_subscribed(struct mailbox *box, bool set)
{
	struct xid_mailbox *xbox = xid_mailbox_context(box);

	if (xbox->module_ctx.super.set_subscribed(box, set) < 0)
		return -1;
	xid_tree_changed(box);
	return 0;
}

int xid_tree_inbox_opened(struct xid_wait_mailbox *wbox)
{
	struct mailbox *box = wbox->xbox->box;
	struct maildir_mailbox *mbox = MAILDIR_MAILBOX(box);
	struct mailbox_update update;

	if (!box->inbox_user || !xid_user_is_clustered(wbox->xbox->xuser))
		return 0;
	if (maildir_uidlist_refresh(mbox->uidlist) < 0)
		return -1;
	/* its index alone was lost */
	if (maildir_uidlist_get_uid_validity(mbox->uidlist) != 0)
		return 0;
	i_zero(&update);
	xid_inbox_update_fill(box, &update);
	return box->v.update_box(box, &update);
}

void xid_tree_hook(struct xid_wait_mailbox *wbox, struct mailbox_vfuncs *v)
{
	wbox->prev.rename_box = v->rename_box;
	wbox->prev.delete_box = v->delete_box;
	v->create_box = xid_tree_create_box;
	v->rename_box = xid_tree_rename_box;
	v->delete_box = xid_tree_delete_box;
	v->set_subscribed = xid_tree_set_subscribed;
}
