//! The tail of a mailbox: its pending entries, by ascending UID, and the advance that ends them.

use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use super::layout::{PendingCell, Slot};
use super::mailbox::{Guid, Mailbox, Tail, Watermarks, guid_of, has_watermark, tail_of, wake_all};
use super::pool::{Writer, add, class_for};
use super::wait::{futex_wake, now_ms};
use super::{Error, Table};

/// The longest message GUID that is stored.
pub const MESSAGE_GUID_MAX: usize = 255;

/// Entries that are copied out under one hold of the lock.
const PAGE: usize = 256;

/// A message whose UID is not stable, as whoever saved it tells.
#[derive(Debug, Clone, Copy)]
pub struct Entry<'a> {
    /// Its UID.
    pub uid: u32,
    /// The namespace of its XID; may be empty when it has none.
    pub namespace: &'a [u8],
    /// The number of its XID; 0: none.
    pub number: u64,
    /// The message GUID, at most [`MESSAGE_GUID_MAX`] bytes; may be empty.
    pub guid: &'a [u8],
}

/// A pending entry, copied out of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pending {
    /// Its UID.
    pub uid: u32,
    /// The namespace of its XID.
    pub namespace: Vec<u8>,
    /// The number of its XID; 0: none.
    pub number: u64,
    /// The message GUID.
    pub guid: Vec<u8>,
    /// For how long it has been pending, in milliseconds.
    pub age_ms: u64,
}

/// What an advance did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Advanced {
    /// The watermark rose, from this UID.
    From(u32),
    /// It was there, or above: nothing changed.
    Already(u32),
}

impl Mailbox {
    /// Adds messages that were just committed, in the order of their UIDs. Those that are stable
    /// or known already are passed over.
    ///
    /// [`Tail::MissingAbove`]: there are UIDs in between that the table was not told of, since
    /// who committed them was killed (or the host left some out): see there.
    pub fn pending_add(&self, entries: &[Entry<'_>]) -> Result<Tail, Error> {
        if let Some(long) = entries
            .iter()
            .find(|entry| entry.guid.len() > MESSAGE_GUID_MAX)
        {
            return Err(Error::LongGuid {
                uid: long.uid,
                len: long.guid.len(),
            });
        }
        let writer = self.table.writer()?;
        let slot = self.slot();
        entries
            .iter()
            .try_for_each(|entry| writer.add_pending(slot, entry))?;
        let commits = &self.table.map.header().commits.0;
        let sleepers = commits.changed();
        drop(writer);
        if sleepers {
            futex_wake(commits.futex());
        }
        Ok(tail_of(slot, slot.last_uid.load(Relaxed)))
    }

    /// Says that every message up to this UID was added, or is expunged.
    pub fn filled(&self, last_uid: u32) -> Result<(), Error> {
        let _writer = self.table.writer()?;
        let slot = self.slot();
        slot.last_uid.fetch_max(last_uid, Release);
        slot.told_uid.fetch_max(last_uid, Release);
        Ok(())
    }

    /// Takes a message out that was expunged before its UID was stable. `false`: it was not there.
    pub fn pending_remove(&self, uid: u32) -> Result<bool, Error> {
        self.table.writer()?.remove_pending(self.slot(), uid)
    }

    /// The lowest pending UID and for how many milliseconds it has been pending.
    pub fn oldest_pending(&self) -> Result<Option<(u32, u64)>, Error> {
        if self.slot().first.load(Acquire) == 0 {
            return Ok(None);
        }
        let oldest = self.table.writer()?.oldest(self.slot())?;
        Ok(oldest.map(|(uid, since)| (uid, now_ms().saturating_sub(since))))
    }

    /// Pending entries with UIDs above `above`, by ascending UID, a page of them; an empty one is
    /// the last.
    pub fn pending(&self, above: u32) -> Result<Vec<Pending>, Error> {
        self.table.writer()?.copy_pending(self.slot(), above)
    }

    /// Makes every UID up to `uid` stable: durably first, then for everyone to see; then wakes
    /// who waits. The watermark never goes down: a lower `uid` changes nothing.
    ///
    /// Refused: a UID that was never given, since the watermark would cover messages that nobody
    /// agreed on; a mailbox that is on hold.
    pub fn advance(&self, uid: u32, store: &mut dyn Watermarks) -> Result<Advanced, Error> {
        let Some(uidvalidity) = self.check_advance(uid)? else {
            return Ok(Advanced::Already(self.watermark()));
        };
        // From here on it counts as advanced: a hold that comes now came after it.
        store
            .raise(&[(guid_of(self.slot()), uidvalidity, uid)])
            .map_err(|why| Error::Store {
                path: self.table.path().to_owned(),
                why,
            })?;
        self.publish(uid, uidvalidity)
    }

    /// Whether an advance to `uid` is allowed: the UIDVALIDITY it is for, or `None` when there is
    /// nothing to do.
    pub fn check_advance(&self, uid: u32) -> Result<Option<u32>, Error> {
        let _writer = self.table.writer()?;
        let slot = self.slot();
        if !has_watermark(slot) {
            return Err(Error::NotAttached(self.guid_text()));
        }
        if uid <= slot.mark.watermark() {
            return Ok(None);
        }
        let last_uid = slot.last_uid.load(Relaxed);
        if uid > last_uid {
            return Err(Error::NeverGiven {
                mailbox: self.guid_text(),
                uid,
                last_uid,
            });
        }
        if let Some((owner, left_ms)) = slot.hold.closed_by(now_ms()) {
            return Err(Error::OnHold {
                mailbox: self.guid_text(),
                owner,
                left_ms,
            });
        }
        Ok(Some(slot.uidvalidity.load(Relaxed)))
    }

    /// The second half of an advance that [`Mailbox::check_advance`] allowed and that was made
    /// durable since.
    pub fn publish(&self, uid: u32, uidvalidity: u32) -> Result<Advanced, Error> {
        let advanced = self.publish_silently(uid, uidvalidity)?;
        if matches!(advanced, Advanced::From(_)) {
            self.table.ring();
        }
        Ok(advanced)
    }

    fn publish_silently(&self, uid: u32, uidvalidity: u32) -> Result<Advanced, Error> {
        let writer = self.table.writer()?;
        let slot = self.slot();
        let current = slot.uidvalidity.load(Relaxed);
        if uidvalidity != current {
            let path = self.table.path().to_owned();
            return Err(Error::OldUidvalidity {
                path,
                given: uidvalidity,
                current,
            });
        }
        let old = slot.mark.watermark();
        if uid <= old {
            return Ok(Advanced::Already(old));
        }
        // Shown before the tail is shortened: killed between the two, the repair shortens it.
        slot.mark.set_watermark(uid);
        writer.drop_tail(slot, uid)?;
        writer.end_waits(slot, uid)?;
        let sleepers = slot.mark.changed();
        drop(writer);
        // After the lock: a thousand that wake take a while, and commits must not wait for them.
        // Killed before this, the sleepers still look up by themselves.
        if sleepers {
            futex_wake(slot.mark.futex());
        }
        add(&self.table.map.header().counters.advances, 1);
        Ok(Advanced::From(old))
    }

    /// Refuses advances for `lease_ms` milliseconds from now, or until released. `owner` is any
    /// number that says who (a process id); the same owner may call again to go on.
    pub fn hold(&self, owner: u64, lease_ms: u64) -> Result<(), Error> {
        let _writer = self.table.writer()?;
        self.slot()
            .hold
            .close(now_ms(), owner, lease_ms)
            .map_err(|other| self.taken(other))
    }

    /// Allows advances again; `owner` 0 whoever holds.
    pub fn release(&self, owner: u64) -> Result<(), Error> {
        let _writer = self.table.writer()?;
        self.slot()
            .hold
            .open(now_ms(), owner)
            .map_err(|other| self.taken(other))
    }

    /// Closes the gate for `lease_ms` milliseconds from now, or until opened: new commits wait,
    /// those under way go on. `owner` as for [`Mailbox::hold`].
    pub fn close_gate(&self, owner: u64, lease_ms: u64) -> Result<(), Error> {
        let _writer = self.table.writer()?;
        let now = now_ms();
        // Before the gate is: who sees it closed must see this.
        let gates_until = &self.table.map.header().boxes.0.gates_until;
        gates_until.fetch_max(now.saturating_add(lease_ms), Release);
        self.slot()
            .gate
            .close(now, owner, lease_ms)
            .map_err(|other| self.taken(other))
    }

    /// Opens the gate and lets commits go on; `owner` 0 whoever closed it.
    pub fn open_gate(&self, owner: u64) -> Result<(), Error> {
        let writer = self.table.writer()?;
        self.slot()
            .gate
            .open(now_ms(), owner)
            .map_err(|other| self.taken(other))?;
        drop(writer);
        wake_all(&self.slot().mark);
        self.table.ring();
        Ok(())
    }

    fn taken(&self, (owner, left_ms): (u64, u64)) -> Error {
        Error::Taken {
            mailbox: self.guid_text(),
            owner,
            left_ms,
        }
    }

    /// The GUID as people write it.
    pub fn guid_text(&self) -> String {
        guid_text(&self.guid())
    }
}

/// A mailbox GUID as people write it: 32 hexadecimal digits.
pub fn guid_text(guid: &Guid) -> String {
    guid.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Table {
    /// Whether the gate of some mailbox may be closed. A load when none ever was.
    pub fn gates_may_be_closed(&self) -> bool {
        let until = self.map.header().boxes.0.gates_until.load(Acquire);
        until != 0 && now_ms() < until
    }

    /// Advances many mailboxes at once, with one durable transaction for all. All are checked
    /// first: one that is refused refuses all.
    pub fn advance_all(
        &self,
        marks: &[(Mailbox, u32)],
        store: &mut dyn Watermarks,
    ) -> Result<(), Error> {
        let mut checked = Vec::with_capacity(marks.len());
        for (mailbox, uid) in marks {
            if let Some(uidvalidity) = mailbox.check_advance(*uid)? {
                checked.push((mailbox, uidvalidity, *uid));
            }
        }
        let durable: Vec<_> = checked
            .iter()
            .map(|(m, v, uid)| (m.guid(), *v, *uid))
            .collect();
        store.raise(&durable).map_err(|why| Error::Store {
            path: self.path().to_owned(),
            why,
        })?;
        for (mailbox, uidvalidity, uid) in checked {
            mailbox.publish_silently(uid, uidvalidity)?;
        }
        self.ring();
        Ok(())
    }
}

impl Writer<'_> {
    fn pending_cell(&self, index: u32) -> Result<&PendingCell, Error> {
        self.map.block(index, 0)
    }

    /// The class of the block of a pending entry.
    pub fn pending_class(&self, cell: &PendingCell) -> Result<usize, Error> {
        let len = cell.guid_len.load(Relaxed) as usize;
        match len <= MESSAGE_GUID_MAX {
            true => Ok(class_for(size_of::<PendingCell>() + len).unwrap_or(0)),
            false => Err(self.map.damaged("a message GUID is longer than one can be")),
        }
    }

    fn add_pending(&self, slot: &Slot, entry: &Entry<'_>) -> Result<(), Error> {
        if entry.uid <= slot.mark.watermark() {
            return Ok(());
        }
        let told = slot.told_uid.load(Relaxed).max(slot.mark.watermark());
        let Some((before, after)) = self.place_for(slot, entry.uid)? else {
            return Ok(());
        };
        let namespace = match entry.number {
            0 => 0,
            _ => self.namespace(entry.namespace)?,
        };
        let class = class_for(size_of::<PendingCell>() + entry.guid.len()).unwrap_or(0);
        let index = self.allocate(class)?;
        let cell: &PendingCell = self.map.block(index, class)?;
        cell.next.store(after, Relaxed);
        cell.uid.store(entry.uid, Relaxed);
        cell.number.store(entry.number, Relaxed);
        cell.namespace.store(namespace, Relaxed);
        cell.guid_len.store(entry.guid.len() as u32, Relaxed);
        cell.since.store(now_ms(), Relaxed);
        self.map
            .write_after::<PendingCell>(index, class, entry.guid)?;
        // Linked by one store; what follows can be worked out from the links.
        match before {
            0 => slot.first.store(index, Release),
            before => self.pending_cell(before)?.next.store(index, Release),
        }
        if after == 0 {
            slot.last.store(index, Release);
        }
        slot.pending.fetch_add(1, Release);
        add(&self.map.header().boxes.0.pending, 1);
        slot.last_uid.fetch_max(entry.uid, Release);
        if told.checked_add(1) == Some(entry.uid) {
            slot.told_uid.store(entry.uid, Release);
        }
        Ok(())
    }

    /// The entries between which a UID belongs (0: none); `None` when it is there.
    fn place_for(&self, slot: &Slot, uid: u32) -> Result<Option<(u32, u32)>, Error> {
        let last = slot.last.load(Relaxed);
        if last == 0 {
            return Ok(Some((0, slot.first.load(Relaxed))));
        }
        // Nearly always: messages are added as they are committed.
        if self.pending_cell(last)?.uid.load(Relaxed) < uid {
            return Ok(Some((last, 0)));
        }
        let (mut before, mut index) = (0, slot.first.load(Relaxed));
        for _ in 0..self.pool().unused.load(Relaxed) {
            if index == 0 {
                return Ok(Some((before, 0)));
            }
            let cell = self.pending_cell(index)?;
            match cell.uid.load(Relaxed) {
                there if there == uid => return Ok(None),
                there if there > uid => return Ok(Some((before, index))),
                _ => (before, index) = (index, cell.next.load(Relaxed)),
            }
        }
        Err(self.map.damaged("a tail has no end"))
    }

    fn remove_pending(&self, slot: &Slot, uid: u32) -> Result<bool, Error> {
        let (mut before, mut index) = (0, slot.first.load(Relaxed));
        for _ in 0..self.pool().unused.load(Relaxed) {
            if index == 0 {
                return Ok(false);
            }
            let cell = self.pending_cell(index)?;
            let there = cell.uid.load(Relaxed);
            if there > uid {
                return Ok(false);
            }
            let next = cell.next.load(Relaxed);
            if there < uid {
                (before, index) = (index, next);
                continue;
            }
            match before {
                0 => slot.first.store(next, Release),
                before => self.pending_cell(before)?.next.store(next, Release),
            }
            if next == 0 {
                slot.last.store(before, Release);
            }
            self.forget(slot, index, cell)?;
            return Ok(true);
        }
        Err(self.map.damaged("a tail has no end"))
    }

    /// Takes the entries up to a UID out of the tail.
    pub fn drop_tail(&self, slot: &Slot, up_to: u32) -> Result<(), Error> {
        for _ in 0..self.pool().unused.load(Relaxed) {
            let index = slot.first.load(Relaxed);
            if index == 0 {
                return Ok(());
            }
            let cell = self.pending_cell(index)?;
            if cell.uid.load(Relaxed) > up_to {
                return Ok(());
            }
            let next = cell.next.load(Relaxed);
            if next == 0 {
                slot.last.store(0, Release);
            }
            slot.first.store(next, Release);
            self.forget(slot, index, cell)?;
        }
        Err(self.map.damaged("a tail has no end"))
    }

    /// Counts an entry out that nothing refers to any more, and frees its block.
    fn forget(&self, slot: &Slot, index: u32, cell: &PendingCell) -> Result<(), Error> {
        slot.pending.fetch_sub(1, Release);
        self.map.header().boxes.0.pending.fetch_sub(1, Relaxed);
        let class = self.pending_class(cell)?;
        self.release(index, class)
    }

    /// The first pending entry: its UID, and when it was added.
    pub fn oldest(&self, slot: &Slot) -> Result<Option<(u32, u64)>, Error> {
        match slot.first.load(Relaxed) {
            0 => Ok(None),
            index => {
                let cell = self.pending_cell(index)?;
                Ok(Some((cell.uid.load(Relaxed), cell.since.load(Relaxed))))
            }
        }
    }

    fn copy_pending(&self, slot: &Slot, above: u32) -> Result<Vec<Pending>, Error> {
        let mut page = Vec::new();
        let now = now_ms();
        let mut index = slot.first.load(Relaxed);
        for _ in 0..self.pool().unused.load(Relaxed) {
            if index == 0 || page.len() == PAGE {
                return Ok(page);
            }
            let cell = self.pending_cell(index)?;
            if cell.uid.load(Relaxed) > above {
                page.push(self.copy_entry(index, cell, now)?);
            }
            index = cell.next.load(Relaxed);
        }
        Err(self.map.damaged("a tail has no end"))
    }

    fn copy_entry(&self, index: u32, cell: &PendingCell, now: u64) -> Result<Pending, Error> {
        let class = self.pending_class(cell)?;
        let len = cell.guid_len.load(Relaxed) as usize;
        let namespace = match cell.namespace.load(Relaxed) {
            0 => Vec::new(),
            text => self.text(text)?,
        };
        Ok(Pending {
            uid: cell.uid.load(Relaxed),
            namespace,
            number: cell.number.load(Relaxed),
            guid: self.map.read_after::<PendingCell>(index, class, len)?,
            age_ms: now.saturating_sub(cell.since.load(Relaxed)),
        })
    }
}
