//! XIDs found again by message GUID, after a mailbox lost its index.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::db::{Db, signed};
use super::error::Error;
use super::{Mailbox, Registry, rows};
use crate::xid::{NUMBER_MAX, Xid};

/// The index is named since SQLite would rather walk a whole mailbox in UID order than sort the two
/// rows that share a GUID.
pub(super) const CANDIDATES: &str = "SELECT m.ns, n.name, m.number \
    FROM messages m INDEXED BY messages_guid, namespaces n \
    WHERE m.guid = ?1 AND m.box = ?2 AND n.id = m.ns ORDER BY m.uid";

const CANDIDATE_AT: &str = "SELECT m.ns, n.name, m.number FROM messages m, namespaces n \
    WHERE m.box = ?1 AND m.uid = ?2 AND m.guid = ?3 AND n.id = m.ns";

/// What was expunged in a cluster may come back: a message that moves and is not found at its new
/// place, for a moment. It is the same message, and nobody else may know it.
const GONE: &str = "SELECT g.ns, n.name, g.number FROM gone g, namespaces n \
    WHERE g.guid = ?1 AND g.box = ?2 AND n.id = g.ns ORDER BY g.id DESC";

const ANY: &str = "SELECT EXISTS (SELECT 1 FROM messages WHERE box = ?1) \
    OR EXISTS (SELECT 1 FROM gone WHERE box = ?1)";

/// One mailbox being recovered: an XID that it gave is not given again.
///
/// Candidates are the rows of the same mailbox GUID first, then those of mailboxes that were last
/// seen under the same name, the newest first; of several messages with one GUID (copies) in UID
/// order. After all of them come the XIDs of messages that were expunged.
pub struct Recovery {
    registry: Arc<Registry>,
    /// Ids are of one opening of the registry.
    opening: u64,
    candidates: Vec<i64>,
    used: HashSet<(i64, u64)>,
    /// What the XIDs that were given borrow from; entries never go away.
    names: HashMap<i64, Box<str>>,
}

impl Recovery {
    /// `None` when the registry knows nothing that could be the mailbox's.
    pub(super) fn begin(
        registry: Arc<Registry>,
        db: &Db,
        opening: u64,
        mailbox: &Mailbox,
    ) -> Result<Option<Self>, Error> {
        let mut candidates = Vec::new();
        candidates.extend(rows::find_box(db, &mailbox.guid)?.map(|row| row.id));
        candidates.extend(rows::namesakes(db, mailbox)?);
        let mut filled = Vec::new();
        for id in candidates {
            let any = db.one(ANY, [id], |row| row.get(0))?.unwrap_or(false);
            filled.extend(any.then_some(id));
        }
        Ok((!filled.is_empty()).then(|| Recovery {
            registry,
            opening,
            candidates: filled,
            used: HashSet::new(),
            names: HashMap::new(),
        }))
    }

    /// Notes that a message of the mailbox has this XID, so that it is not given to another.
    pub fn exclude(&mut self, xid: Xid<'_>) -> Result<(), Error> {
        let id = self.registry.with_opening(self.opening, |db| {
            db.one(
                "SELECT id FROM namespaces WHERE name = ?1",
                [xid.namespace()],
                |row| row.get(0),
            )
        })?;
        // What the registry never heard of, it will not give.
        if let Some(id) = id {
            self.used.insert((id, xid.number()));
        }
        Ok(())
    }

    /// The XID of the message with this GUID, if one is left. It borrows from the recovery.
    pub fn take(&mut self, guid: &[u8]) -> Result<Option<Xid<'_>>, Error> {
        if guid.is_empty() {
            return Ok(None);
        }
        let found = self.registry.with_opening(self.opening, |db| {
            for query in [CANDIDATES, GONE] {
                for &id in &self.candidates {
                    if let Some(found) = self.first_unused(db, query, guid, id)? {
                        return Ok(Some(found));
                    }
                }
            }
            Ok(None)
        })?;
        Ok(found.and_then(|row| self.give(row)))
    }

    /// The XID of the message that had this GUID and this UID. Where UIDs were kept this is to be
    /// asked for all messages before [`Recovery::take`]: a copy with the same GUID that was
    /// expunged unnoticed still has its row, and must not lend its XID.
    pub fn take_at(&mut self, guid: &[u8], uid: u32) -> Result<Option<Xid<'_>>, Error> {
        if guid.is_empty() || uid == 0 {
            return Ok(None);
        }
        let found = self.registry.with_opening(self.opening, |db| {
            for &id in &self.candidates {
                let row: Option<(i64, String, i64)> =
                    db.one(CANDIDATE_AT, (id, uid, guid), |row| {
                        Ok((row.get(0)?, row.get(1)?, row.get(2)?))
                    })?;
                let Some((ns, name, number)) = row else {
                    continue;
                };
                let number = u64::try_from(number).unwrap_or(NUMBER_MAX);
                if !self.used.contains(&(ns, number)) {
                    return Ok(Some((ns, name, number)));
                }
            }
            Ok(None)
        })?;
        Ok(found.and_then(|row| self.give(row)))
    }

    fn give(&mut self, (ns, name, number): (i64, String, u64)) -> Option<Xid<'_>> {
        self.used.insert((ns, number));
        let name = self.names.entry(ns).or_insert_with(|| name.into());
        // A name or number outside the grammar was not written by us; the message gets a new XID.
        Xid::new(name.as_bytes(), number).ok()
    }

    fn first_unused(
        &self,
        db: &Db,
        query: &str,
        guid: &[u8],
        mailbox: i64,
    ) -> Result<Option<(i64, String, u64)>, Error> {
        let mut found = None;
        db.each(query, (guid, mailbox), |row| {
            let (ns, number): (i64, i64) = (row.get(0)?, row.get(2)?);
            let number = u64::try_from(number).unwrap_or(NUMBER_MAX);
            if found.is_none() && !self.used.contains(&(ns, number)) {
                found = Some((ns, row.get(1)?, number));
            }
            Ok(())
        })?;
        debug_assert!(
            found
                .as_ref()
                .is_none_or(|f: &(i64, String, u64)| signed(f.2) >= 0)
        );
        Ok(found)
    }
}
