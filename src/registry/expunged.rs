//! Which messages were here and are gone.
//!
//! A node that was away may hold a message that the others expunged meanwhile, and must not bring
//! it back. So the registry remembers the GUIDs of expunged messages with their UIDs: only those at
//! or below a mailbox's watermark, and only the last [`REMEMBERED`] of a mail root. A
//! message that was expunged before those may come back from a node that was away since before
//! then. Like the rows themselves this survives a crash, and a power loss may undo the last of it.

use super::db::Db;
use super::error::Error;
use super::journal::BoxGuid;

/// Expunged messages that are remembered in each mail root: about 8 MB.
pub(super) const REMEMBERED: i64 = 50_000;

/// Copies a message's row. One that moved to another UID has no row at the old one. What lies
/// above the watermark was not stable: it may have moved, and its new copy not have come yet.
const REMEMBER: &str = "INSERT INTO expunged(box, guid, uid) \
    SELECT box, guid, uid FROM messages WHERE box = ?1 AND uid = ?2 AND length(guid) > 0 \
    AND EXISTS (SELECT 1 FROM watermarks WHERE guid = ?3 AND uid >= ?2) \
    ON CONFLICT(box, guid) DO UPDATE SET uid = min(uid, excluded.uid)";

const FORGET_OLD: &str = "DELETE FROM expunged WHERE id <= (SELECT max(id) FROM expunged) - ?1";

/// Remembers the message that has this UID, as the registry knows it; true when there was one.
pub(super) fn remember(db: &Db, id: i64, mailbox: &BoxGuid, uid: u32) -> Result<bool, Error> {
    Ok(db.run(REMEMBER, (id, uid, mailbox.as_slice()))? > 0)
}

/// Keeps the newest only.
pub(super) fn forget_old(db: &Db) -> Result<(), Error> {
    db.run(FORGET_OLD, [REMEMBERED]).map(drop)
}

/// Forgets those of a mailbox that is gone, or whose UIDs are others now.
pub(super) fn forget_box(db: &Db, id: i64) -> Result<(), Error> {
    db.run("DELETE FROM expunged WHERE box = ?1", [id])
        .map(drop)
}

/// The lowest UID at which a message with this GUID was expunged.
pub(super) fn find(db: &Db, mailbox: &BoxGuid, guid: &[u8]) -> Result<Option<u32>, Error> {
    db.one(
        "SELECT e.uid FROM boxes b, expunged e WHERE b.guid = ?1 AND e.box = b.id AND e.guid = ?2",
        (mailbox.as_slice(), guid),
        |row| row.get(0),
    )
}
