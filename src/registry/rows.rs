//! The rows: which message has which XID, under which UID.
//!
//! The host's index is the authority. A row may be stale (a message expunged or renumbered while
//! nobody told us), so callers check every answer against the index; what they find wrong they
//! put right with [`register`].

use std::collections::HashMap;
use std::collections::hash_map::Entry as Slot;

use rusqlite::ffi::ErrorCode;

use super::db::{Db, signed};
use super::error::Error;
use super::expunged;
use super::journal::{BoxGuid, GUID_MAX, Record};
use super::{BoxInfo, Entry, Exported, Mailbox};
use crate::xid::{State, Xid};

/// Messages handled in one transaction, so that none lasts longer than a fraction of
/// [`super::BUSY_LIMIT`].
pub(super) const CHUNK: usize = 10_000;

/// Chunks of a deleted mailbox's rows that one session removes; the next one goes on.
const PURGE_CHUNKS: usize = 10;

const PUT: &str = "INSERT INTO messages(box, ns, number, uid, guid) VALUES(?1, ?2, ?3, ?4, ?5) \
    ON CONFLICT(box, ns, number) DO UPDATE SET uid = excluded.uid, \
    guid = CASE WHEN length(excluded.guid) > 0 THEN excluded.guid ELSE guid END";

pub(super) const LOOKUP: &str = "SELECT m.uid FROM boxes b, namespaces n, messages m \
    WHERE b.guid = ?1 AND n.name = ?2 AND m.box = b.id AND m.ns = n.id AND m.number = ?3";

pub(super) const NEXT_NAMESPACE: &str = "SELECT m.ns, n.name FROM messages m, namespaces n \
    WHERE m.box = ?1 AND m.ns > ?2 AND n.id = m.ns ORDER BY m.ns LIMIT 1";

pub(super) const NEWS: &str = "SELECT uid FROM messages WHERE box = ?1 AND ns = ?2 AND number > ?3";

pub(super) const RANGE: &str = "SELECT m.uid, n.name, m.number, m.guid FROM messages m \
    LEFT JOIN namespaces n ON n.id = m.ns \
    WHERE m.box = ?1 AND m.uid >= ?2 AND m.uid <= ?3 ORDER BY m.uid LIMIT ?4";

pub(super) const BY_GUID: &str = "SELECT m.uid, n.name, m.number, m.guid FROM boxes b, messages m \
    LEFT JOIN namespaces n ON n.id = m.ns \
    WHERE b.guid = ?1 AND m.box = b.id AND m.guid = ?2 LIMIT ?3";

/// A mailbox as the registry knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct BoxRow {
    pub(super) id: i64,
    pub(super) name: String,
    pub(super) uidvalidity: u32,
    pub(super) covered: u32,
}

pub(super) fn find_box(db: &Db, guid: &BoxGuid) -> Result<Option<BoxRow>, Error> {
    db.one(
        "SELECT id, name, uidvalidity, covered FROM boxes WHERE guid = ?1",
        [guid.as_slice()],
        |row| {
            Ok(BoxRow {
                id: row.get(0)?,
                name: row.get(1)?,
                uidvalidity: row.get(2)?,
                covered: row.get(3)?,
            })
        },
    )
}

/// What one write transaction does. It lives as long as the transaction: what it remembers may
/// be rolled back with it.
pub(super) struct Writer<'a> {
    db: &'a Db,
    boxes: HashMap<BoxGuid, Known>,
    namespaces: HashMap<Box<str>, i64>,
    /// Expunged messages were remembered.
    remembered: bool,
}

struct Known {
    row: BoxRow,
    /// `covered` is to be written back.
    moved: bool,
}

impl<'a> Writer<'a> {
    pub(super) fn new(db: &'a Db) -> Self {
        Writer {
            db,
            boxes: HashMap::new(),
            namespaces: HashMap::new(),
            remembered: false,
        }
    }

    /// Does what a record of the journal says.
    pub(super) fn apply(&mut self, record: Record<'_>) -> Result<(), Error> {
        match record {
            Record::Note {
                mailbox,
                uid,
                xid,
                guid,
            } => {
                self.put(&mailbox, &Entry { uid, xid, guid })?;
                self.seen(&mailbox, uid)
            }
            Record::Forget { mailbox, uid, firm } => {
                let id = self.mailbox(&mailbox)?.row.id;
                self.remembered |= expunged::remember(self.db, id, &mailbox, uid, firm)?;
                self.delete(id, uid)?;
                self.seen(&mailbox, uid)
            }
            Record::Box {
                mailbox,
                uidvalidity,
                name,
            } => self.describe(&mailbox, &String::from_utf8_lossy(name), uidvalidity),
            Record::Gone { mailbox, xid, guid } => {
                let id = self.mailbox(&mailbox)?.row.id;
                let ns = self.namespace(xid.namespace())?;
                let number = signed(xid.number());
                self.remembered |= expunged::remember_gone(self.db, id, guid, ns, number)?;
                Ok(())
            }
            Record::Drop { mailbox } => self.drop_box(&mailbox),
        }
    }

    /// Writes what was remembered. The last call before the commit.
    pub(super) fn finish(&mut self) -> Result<(), Error> {
        for known in self.boxes.values_mut().filter(|known| known.moved) {
            self.db.run(
                "UPDATE boxes SET covered = ?2 WHERE id = ?1",
                (known.row.id, known.row.covered),
            )?;
            known.moved = false;
        }
        if std::mem::take(&mut self.remembered) {
            expunged::forget_old(self.db)?;
        }
        Ok(())
    }

    fn mailbox(&mut self, guid: &BoxGuid) -> Result<&mut Known, Error> {
        match self.boxes.entry(*guid) {
            Slot::Occupied(slot) => Ok(slot.into_mut()),
            Slot::Vacant(slot) => {
                let row = match find_box(self.db, guid)? {
                    Some(row) => row,
                    None => insert_box(self.db, guid)?,
                };
                Ok(slot.insert(Known { row, moved: false }))
            }
        }
    }

    /// Notes a mailbox's name and UIDVALIDITY, where they are known. Under another UIDVALIDITY
    /// all UIDs are others, so nothing is covered any more; the rows stay for recovery.
    pub(super) fn describe(
        &mut self,
        guid: &BoxGuid,
        name: &str,
        uidvalidity: u32,
    ) -> Result<(), Error> {
        let db = self.db;
        let known = self.mailbox(guid)?;
        if !name.is_empty() && known.row.name != name {
            db.run(
                "UPDATE boxes SET name = ?2 WHERE id = ?1",
                (known.row.id, name),
            )?;
            known.row.name = name.to_owned();
        }
        if uidvalidity == 0 || known.row.uidvalidity == uidvalidity {
            return Ok(());
        }
        if known.row.uidvalidity != 0 {
            known.row.covered = 0;
            known.moved = true;
            expunged::forget_box(db, known.row.id)?;
        }
        known.row.uidvalidity = uidvalidity;
        db.run(
            "UPDATE boxes SET uidvalidity = ?2 WHERE id = ?1",
            (known.row.id, uidvalidity),
        )?;
        Ok(())
    }

    /// A message with this UID was seen; the covered UIDs grow when it is the next one.
    fn seen(&mut self, guid: &BoxGuid, uid: u32) -> Result<(), Error> {
        let known = self.mailbox(guid)?;
        if known.row.covered.checked_add(1) == Some(uid) {
            known.row.covered = uid;
            known.moved = true;
        }
        Ok(())
    }

    fn covered(&mut self, guid: &BoxGuid) -> Result<u32, Error> {
        Ok(self.mailbox(guid)?.row.covered)
    }

    fn set_covered(&mut self, guid: &BoxGuid, uid: u32) -> Result<(), Error> {
        let known = self.mailbox(guid)?;
        known.moved |= known.row.covered != uid;
        known.row.covered = uid;
        Ok(())
    }

    /// A mailbox was deleted: it is nobody's from now on, and its rows go bit by bit
    /// ([`purge`]), since a transaction that removes a million of them would hold up others.
    fn drop_box(&mut self, guid: &BoxGuid) -> Result<(), Error> {
        self.boxes.remove(guid);
        if let Some(row) = find_box(self.db, guid)? {
            expunged::forget_box(self.db, row.id)?;
        }
        self.db.run(
            "UPDATE boxes SET guid = CAST(printf('gone%020d', id) AS BLOB), name = '' \
             WHERE guid = ?1",
            [guid.as_slice()],
        )?;
        self.db
            .run("DELETE FROM watermarks WHERE guid = ?1", [guid.as_slice()])?;
        Ok(())
    }

    /// Stores a message's row in place of whatever contradicts it.
    fn put(&mut self, mailbox: &BoxGuid, entry: &Entry<'_>) -> Result<(), Error> {
        let id = self.mailbox(mailbox)?.row.id;
        let ns = self.namespace(entry.xid.namespace())?;
        let number = signed(entry.xid.number());
        let guid = &entry.guid[..entry.guid.len().min(GUID_MAX)];
        let params = (id, ns, number, entry.uid, guid);
        match self.db.run(PUT, params) {
            Err(Error::Sql { source, .. }) if is_conflict(&source) => {}
            other => return other.map(drop),
        }
        // Another XID has this UID: of a save that was rolled back, or from before a renumbering.
        self.delete(id, entry.uid)?;
        self.db.run(PUT, params).map(drop)
    }

    fn delete(&self, id: i64, uid: u32) -> Result<(), Error> {
        self.db
            .run(
                "DELETE FROM messages WHERE box = ?1 AND uid = ?2",
                (id, uid),
            )
            .map(drop)
    }

    fn namespace(&mut self, name: &str) -> Result<i64, Error> {
        if let Some(&id) = self.namespaces.get(name) {
            return Ok(id);
        }
        let found = self
            .db
            .one("SELECT id FROM namespaces WHERE name = ?1", [name], |row| {
                row.get(0)
            })?;
        let id = match found {
            Some(id) => id,
            None => {
                self.db
                    .run("INSERT INTO namespaces(name) VALUES(?1)", [name])?;
                self.db.last_insert_id()
            }
        };
        self.namespaces.insert(name.into(), id);
        Ok(id)
    }

    /// Makes the rows from the UID `from` to `to` those of `entries`, touching only what differs.
    fn make_equal(
        &mut self,
        mailbox: &BoxGuid,
        from: u32,
        to: u32,
        entries: &[Entry<'_>],
    ) -> Result<(), Error> {
        let id = self.mailbox(mailbox)?.row.id;
        let mut wrong = Vec::new();
        let mut stays = vec![false; entries.len()];
        let mut next = 0;
        self.db.each(RANGE, (id, from, to, -1), |row| {
            let uid: u32 = row.get(0)?;
            while entries.get(next).is_some_and(|entry| entry.uid < uid) {
                next += 1;
            }
            match entries.get(next).filter(|entry| entry.uid == uid) {
                Some(entry) if same_xid(row, entry)? => stays[next] = same_guid(row, entry)?,
                _ => wrong.push(uid),
            }
            Ok(())
        })?;
        for uid in wrong {
            self.delete(id, uid)?;
        }
        for (entry, _) in entries.iter().zip(stays).filter(|(_, stays)| !stays) {
            self.put(mailbox, entry)?;
        }
        Ok(())
    }
}

/// Whether a row of [`RANGE`] has the entry's XID.
fn same_xid(row: &rusqlite::Row<'_>, entry: &Entry<'_>) -> rusqlite::Result<bool> {
    let namespace: Option<&str> = row.get_ref(1)?.as_str_or_null()?;
    let number: i64 = row.get(2)?;
    Ok(namespace == Some(entry.xid.namespace()) && number == signed(entry.xid.number()))
}

/// Whether it has the entry's GUID, or the entry has none to add.
fn same_guid(row: &rusqlite::Row<'_>, entry: &Entry<'_>) -> rusqlite::Result<bool> {
    Ok(entry.guid.is_empty() || row.get_ref(3)?.as_blob()? == entry.guid)
}

fn is_conflict(error: &rusqlite::Error) -> bool {
    error.sqlite_error_code() == Some(ErrorCode::ConstraintViolation)
}

fn insert_box(db: &Db, guid: &BoxGuid) -> Result<BoxRow, Error> {
    db.run(
        "INSERT INTO boxes(guid, name, uidvalidity, covered) VALUES(?1, '', 0, 0)",
        [guid.as_slice()],
    )?;
    Ok(BoxRow {
        id: db.last_insert_id(),
        name: String::new(),
        uidvalidity: 0,
        covered: 0,
    })
}

/// Notes the mailbox if it is new or has changed, and gives the first UID that is not known to be
/// covered.
pub(super) fn first_missing(db: &Db, mailbox: &Mailbox) -> Result<u32, Error> {
    let same = |row: &BoxRow| {
        (mailbox.name.is_empty() || row.name == mailbox.name)
            && (mailbox.uidvalidity == 0 || row.uidvalidity == mailbox.uidvalidity)
    };
    let row = find_box(db, &mailbox.guid)?;
    if let Some(row) = row.filter(same) {
        return Ok(row.covered.saturating_add(1));
    }
    db.transaction(|| {
        let mut writer = Writer::new(db);
        writer.describe(&mailbox.guid, &mailbox.name, mailbox.uidvalidity)?;
        let covered = writer.covered(&mailbox.guid)?;
        writer.finish()?;
        Ok(covered.saturating_add(1))
    })
}

/// Makes the rows of a mailbox what its index says: from the UID `from` on, below `below`.
/// `entries` ascend by UID and are all that the index has there. With `from` 1 the rows at and
/// above `below` are removed as well.
///
/// In several transactions; stopped between two of them, what is covered says how far it got.
pub(super) fn register(
    db: &Db,
    mailbox: &Mailbox,
    entries: &[Entry<'_>],
    from: u32,
    below: u32,
) -> Result<(), Error> {
    if from <= 1 {
        begin_anew(db, mailbox, below)?;
    }
    let mut start = from;
    let chunks = entries.chunks(CHUNK);
    let last = chunks.len().saturating_sub(1);
    for (n, chunk) in chunks.enumerate() {
        let end = chunk.last().map_or(start, |entry| entry.uid);
        // The last chunk goes on to the end: what lies behind its entries goes with it.
        let end = if n == last { below - 1 } else { end };
        register_chunk(db, mailbox, start, end, chunk)?;
        start = end + 1;
    }
    if entries.is_empty() && below > from {
        register_chunk(db, mailbox, from, below - 1, &[])?;
    }
    remove_doubles(db, mailbox)
}

/// Covers nothing any more and removes the rows from the UID `below` on. In this order: a message
/// that is noted meanwhile then leaves a gap to be asked for, not a hole that counts as covered.
fn begin_anew(db: &Db, mailbox: &Mailbox, below: u32) -> Result<(), Error> {
    let id = db.transaction(|| {
        let mut writer = Writer::new(db);
        writer.describe(&mailbox.guid, &mailbox.name, mailbox.uidvalidity)?;
        writer.set_covered(&mailbox.guid, 0)?;
        writer.finish()?;
        Ok(writer.mailbox(&mailbox.guid)?.row.id)
    })?;
    while remove_chunk(db, id, below)? {}
    Ok(())
}

/// One transaction of [`register`].
fn register_chunk(
    db: &Db,
    mailbox: &Mailbox,
    start: u32,
    end: u32,
    entries: &[Entry<'_>],
) -> Result<(), Error> {
    db.transaction(|| {
        let mut writer = Writer::new(db);
        writer.describe(&mailbox.guid, &mailbox.name, mailbox.uidvalidity)?;
        writer.make_equal(&mailbox.guid, start, end, entries)?;
        // Below `start` there may be a gap again, when another process found a new UIDVALIDITY.
        let covered = writer.covered(&mailbox.guid)?;
        if covered.saturating_add(1) >= start {
            writer.set_covered(&mailbox.guid, covered.max(end))?;
        }
        writer.finish()
    })
}

/// Removes some of a mailbox's rows from a UID on. True when there may be more.
fn remove_chunk(db: &Db, id: i64, uid: u32) -> Result<bool, Error> {
    db.transaction(|| {
        let end: Option<u32> = db.one(
            "SELECT uid FROM messages WHERE box = ?1 AND uid >= ?2 ORDER BY uid LIMIT 1 OFFSET ?3",
            (id, uid, CHUNK as i64),
            |row| row.get(0),
        )?;
        db.run(
            "DELETE FROM messages WHERE box = ?1 AND uid >= ?2 AND uid < ?3",
            (id, uid, end.map_or(i64::MAX, i64::from)),
        )?;
        Ok(end.is_some())
    })
}

/// A mailbox whose GUID was lost with its index took its XIDs over from the rows under the old
/// GUID and the same name. Those are not to be found again: an XID names one message.
fn remove_doubles(db: &Db, mailbox: &Mailbox) -> Result<(), Error> {
    if mailbox.name.is_empty() {
        return Ok(());
    }
    let Some(row) = find_box(db, &mailbox.guid)? else {
        return Ok(());
    };
    for old in namesakes(db, mailbox)? {
        db.transaction(|| {
            db.run(
                "DELETE FROM messages WHERE box = ?1 AND EXISTS (SELECT 1 FROM messages mine \
                 WHERE mine.box = ?2 AND mine.ns = messages.ns AND mine.number = messages.number)",
                (old, row.id),
            )?;
            db.run(
                "DELETE FROM boxes WHERE id = ?1 \
                 AND NOT EXISTS (SELECT 1 FROM messages WHERE box = ?1)",
                [old],
            )?;
            Ok(())
        })?;
    }
    Ok(())
}

/// Other mailboxes that were last seen under the same name, the newest first.
pub(super) fn namesakes(db: &Db, mailbox: &Mailbox) -> Result<Vec<i64>, Error> {
    if mailbox.name.is_empty() {
        return Ok(Vec::new());
    }
    db.all(
        "SELECT id FROM boxes WHERE name = ?1 AND guid <> ?2 ORDER BY id DESC",
        (&mailbox.name, mailbox.guid.as_slice()),
        |row| row.get(0),
    )
}

/// Removes rows of deleted mailboxes, some at a time.
pub(super) fn purge(db: &Db) -> Result<(), Error> {
    let gone: Vec<i64> = db.all(
        "SELECT id FROM boxes WHERE guid >= CAST('gone' AS BLOB) AND guid < CAST('gonf' AS BLOB) \
         AND length(guid) = 24",
        [],
        |row| row.get(0),
    )?;
    let mut chunks = 0;
    for id in gone {
        while remove_chunk(db, id, 0)? {
            chunks += 1;
            if chunks >= PURGE_CHUNKS {
                return Ok(());
            }
        }
        db.run("DELETE FROM boxes WHERE id = ?1", [id])?;
    }
    Ok(())
}

/// The UID that an XID has in a mailbox.
pub(super) fn lookup(db: &Db, mailbox: &Mailbox, xid: Xid<'_>) -> Result<Option<u32>, Error> {
    db.one(
        LOOKUP,
        (
            mailbox.guid.as_slice(),
            xid.namespace(),
            signed(xid.number()),
        ),
        |row| row.get(0),
    )
}

/// The UIDs, ascending, of messages whose number is above the state's for their namespace.
pub(super) fn news(db: &Db, mailbox: &Mailbox, state: &State) -> Result<Vec<u32>, Error> {
    let Some(row) = find_box(db, &mailbox.guid)? else {
        return Ok(Vec::new());
    };
    let mut uids = Vec::new();
    let mut after = i64::MIN;
    loop {
        let next = db.one(NEXT_NAMESPACE, (row.id, after), |row| {
            Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?))
        })?;
        let Some((ns, name)) = next else { break };
        db.each(NEWS, (row.id, ns, signed(state.number(&name))), |row| {
            uids.push(row.get(0)?);
            Ok(())
        })?;
        after = ns;
    }
    uids.sort_unstable();
    Ok(uids)
}

/// Up to `limit` rows of a mailbox, in UID order, above the UID `after`.
pub(super) fn export(
    db: &Db,
    guid: &BoxGuid,
    after: u32,
    limit: u32,
) -> Result<Vec<Exported>, Error> {
    let Some(row) = find_box(db, guid)? else {
        return Ok(Vec::new());
    };
    let from = i64::from(after) + 1;
    db.all(RANGE, (row.id, from, u32::MAX, limit), |row| {
        let number: i64 = row.get(2)?;
        Ok(Exported {
            uid: row.get(0)?,
            namespace: row.get::<_, Option<String>>(1)?.unwrap_or_default(),
            number: number.unsigned_abs(),
            guid: row.get(3)?,
        })
    })
}

/// Up to `limit` rows of a mailbox that have this message GUID, by XID.
pub(super) fn by_guid(
    db: &Db,
    mailbox: &BoxGuid,
    guid: &[u8],
    limit: u32,
) -> Result<Vec<Exported>, Error> {
    db.all(BY_GUID, (mailbox.as_slice(), guid, limit), |row| {
        let number: i64 = row.get(2)?;
        Ok(Exported {
            uid: row.get(0)?,
            namespace: row.get::<_, Option<String>>(1)?.unwrap_or_default(),
            number: number.unsigned_abs(),
            guid: row.get(3)?,
        })
    })
}

/// All mailboxes, by name.
pub(super) fn boxes(db: &Db) -> Result<Vec<BoxInfo>, Error> {
    db.all(
        "SELECT b.guid, b.name, b.uidvalidity, b.covered, \
         (SELECT count(*) FROM messages m WHERE m.box = b.id) \
         FROM boxes b WHERE length(b.guid) = 16 ORDER BY b.name, b.id",
        [],
        |row| {
            Ok(BoxInfo {
                guid: row.get(0)?,
                name: row.get(1)?,
                uidvalidity: row.get(2)?,
                covered: row.get(3)?,
                messages: row.get::<_, i64>(4)?.unsigned_abs(),
            })
        },
    )
}
