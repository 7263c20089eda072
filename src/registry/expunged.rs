//! Which messages were here and are gone.
//!
//! A node that was away may hold a message that the others expunged meanwhile, and must not bring
//! it back. So the registry remembers the GUIDs of expunged messages with their UIDs: only those that
//! were stable then, and only the last [`REMEMBERED`] of a mail root. A
//! message that was expunged before those may come back from a node that was away since before
//! then. Like the rows themselves this survives a crash, and a power loss may undo the last of it.
//!
//! Whether it was stable is judged when it is expunged, and not by the watermark that there is when
//! the journal is read: by then that may be above a UID which the message had for a moment only,
//! and which it left for another one. Between the two lies what this node promised not to change: it
//! counts, since the others may have made it stable just now, and no more once the promise was taken
//! back.
//!
//! Another node may also have begun to take a message in just before it was expunged here, and ask for
//! its XID just after. So the XIDs of the last [`GONE`] are remembered as well, stable or not.
//!
//! Nor may a client's copy of a message that is here, or was, get that one's GUID.

use super::Exported;
use super::db::Db;
use super::error::Error;
use super::journal::BoxGuid;

/// Expunged messages that are remembered in each mail root: about 8 MB.
pub(super) const REMEMBERED: i64 = 50_000;

/// Expunged messages whose XIDs are remembered in each mail root.
pub(super) const GONE: i64 = 10_000;

/// Copies a message's row. One that moved to another UID has no row at the old one.
const REMEMBER: &str = "INSERT INTO expunged(box, guid, uid) \
    SELECT box, guid, uid FROM messages WHERE box = ?1 AND uid = ?2 AND length(guid) > 0 \
    AND EXISTS (SELECT 1 FROM watermarks WHERE guid = ?3) \
    ON CONFLICT(box, guid) DO UPDATE SET uid = min(uid, excluded.uid)";

const REMEMBER_XID: &str = "INSERT INTO gone(box, guid, ns, number) \
    SELECT box, guid, ns, number FROM messages WHERE box = ?1 AND uid = ?2 AND length(guid) > 0 \
    AND EXISTS (SELECT 1 FROM watermarks WHERE guid = ?3) \
    ON CONFLICT(box, guid, ns, number) DO NOTHING";

/// The lowest UID will do: it was somewhere in what is stable.
const GONE_ELSEWHERE: &str = "INSERT INTO expunged(box, guid, uid) VALUES(?1, ?2, 1) \
    ON CONFLICT(box, guid) DO UPDATE SET uid = 1";

const GONE_XID: &str = "INSERT INTO gone(box, guid, ns, number) VALUES(?1, ?2, ?3, ?4) \
    ON CONFLICT(box, guid, ns, number) DO NOTHING";

const FORGET_OLD_XIDS: &str = "DELETE FROM gone WHERE id <= (SELECT max(id) FROM gone) - ?1";

const XIDS: &str = "SELECT n.name, g.number, g.guid FROM boxes b, gone g, namespaces n \
    WHERE b.guid = ?1 AND g.box = b.id AND g.guid = ?2 AND n.id = g.ns ORDER BY g.id DESC LIMIT ?3";

const HAD: &str = "SELECT EXISTS (SELECT 1 FROM messages WHERE box = b.id AND guid = ?2) \
    OR EXISTS (SELECT 1 FROM expunged WHERE box = b.id AND guid = ?2) \
    OR EXISTS (SELECT 1 FROM gone WHERE box = b.id AND guid = ?2) FROM boxes b WHERE b.guid = ?1";

const FORGET_OLD: &str = "DELETE FROM expunged WHERE id <= (SELECT max(id) FROM expunged) - ?1";

const FIND: &str = "SELECT e.uid FROM boxes b, expunged e \
    WHERE b.guid = ?1 AND e.box = b.id AND e.guid = ?2";

const TAKE_BACK: &str = "DELETE FROM expunged \
    WHERE box = (SELECT id FROM boxes WHERE guid = ?1) AND uid > ?2";

/// Remembers the message that has this UID, as the registry knows it; true when there was one.
/// `firm`: it was stable, or promised.
pub(super) fn remember(
    db: &Db,
    id: i64,
    mailbox: &BoxGuid,
    uid: u32,
    firm: bool,
) -> Result<bool, Error> {
    let gone = db.run(REMEMBER_XID, (id, uid, mailbox.as_slice()))?;
    if !firm {
        return Ok(gone > 0);
    }
    Ok(gone + db.run(REMEMBER, (id, uid, mailbox.as_slice()))? > 0)
}

/// Remembers a message of which another node said that it was stable there, and was expunged: that
/// one may not be there to ask when the next node comes back with it.
pub(super) fn remember_gone(
    db: &Db,
    id: i64,
    guid: &[u8],
    ns: i64,
    number: i64,
) -> Result<bool, Error> {
    let xids = db.run(GONE_XID, (id, guid, ns, number))?;
    Ok(xids + db.run(GONE_ELSEWHERE, (id, guid))? > 0)
}

/// What was expunged above `kept` was promised, and is no more.
pub(super) fn take_back(db: &Db, mailbox: &BoxGuid, kept: u32) -> Result<(), Error> {
    db.run(TAKE_BACK, (mailbox.as_slice(), kept)).map(drop)
}

/// Keeps the newest only.
pub(super) fn forget_old(db: &Db) -> Result<(), Error> {
    db.run(FORGET_OLD, [REMEMBERED])?;
    db.run(FORGET_OLD_XIDS, [GONE]).map(drop)
}

/// Forgets those of a mailbox that is gone, or whose UIDs are others now.
pub(super) fn forget_box(db: &Db, id: i64) -> Result<(), Error> {
    db.run("DELETE FROM expunged WHERE box = ?1", [id])?;
    db.run("DELETE FROM gone WHERE box = ?1", [id]).map(drop)
}

/// The XIDs that messages with this GUID had when they were expunged, the last one first. They have
/// no UIDs.
pub(super) fn xids(
    db: &Db,
    mailbox: &BoxGuid,
    guid: &[u8],
    limit: u32,
) -> Result<Vec<Exported>, Error> {
    db.all(XIDS, (mailbox.as_slice(), guid, limit), |row| {
        let number: i64 = row.get(1)?;
        Ok(Exported {
            uid: 0,
            namespace: row.get::<_, Option<String>>(0)?.unwrap_or_default(),
            number: number.unsigned_abs(),
            guid: row.get(2)?,
        })
    })
}

/// Whether a message with this GUID is there, or was.
pub(super) fn had(db: &Db, mailbox: &BoxGuid, guid: &[u8]) -> Result<bool, Error> {
    let found = db.one(HAD, (mailbox.as_slice(), guid), |row| row.get(0))?;
    Ok(found.unwrap_or(false))
}

/// The lowest UID at which a message with this GUID was expunged while it was stable, or promised.
pub(super) fn find(db: &Db, mailbox: &BoxGuid, guid: &[u8]) -> Result<Option<u32>, Error> {
    db.one(FIND, (mailbox.as_slice(), guid), |row| row.get(0))
}
