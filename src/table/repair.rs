//! What the next process does when one died with the table's lock.
//!
//! Every change of what the lock guards is one store that links or unlinks, and stores before and
//! after it that can be worked out from the links. So the repair believes the links (each checked
//! against its bounds), works the rest out anew, and gives back every block that nothing links.
//! It may be killed too: it changes nothing that it would not find again.

use std::sync::atomic::Ordering::{Relaxed, Release};

use super::file::Mapped;
use super::layout::{CELL, HEADER, SLOT_CLASS, Slot, Text, WAIT_TAG, WaitCell};
use super::lock::Orphan;
use super::mailbox::{has_watermark, wake_all};
use super::pool::{Writer, add, cells_of};
use super::{Error, Table};

/// Blocks that are in use: index and class.
type Used = Vec<(u32, usize)>;

/// Makes the table whole again. An error means that it cannot be.
pub(super) fn repair(map: &Mapped, orphan: &Orphan<'_>) -> Result<(), Error> {
    Writer::repairing(map, orphan).repair()
}

/// What [`Table::audit`] found. All is 0 in a table that is whole.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Audit {
    /// Cells that are neither in use nor free.
    pub lost_cells: u64,
    /// Mailboxes whose tail did not end, or was not as long, as their slot said.
    pub wrong_tails: u32,
    /// By how much the number of all pending entries was wrong.
    pub wrong_pending: u64,
}

impl Table {
    /// Looks through the whole table under its lock, and puts right what it finds wrong. Takes a
    /// time in proportion to the table; for tests and administrators.
    pub fn audit(&self) -> Result<Audit, Error> {
        self.writer()?.audit()
    }
}

impl Writer<'_> {
    fn audit(&self) -> Result<Audit, Error> {
        let mut audit = Audit::default();
        let mut used = Used::new();
        self.check_pool()?;
        self.repair_namespaces(&mut used)?;
        let mut pending = 0;
        for (index, slot) in self.repair_slots(&mut used)? {
            let before = (slot.last.load(Relaxed), slot.pending.load(Relaxed));
            pending += u64::from(self.repair_tail(slot, &mut used)?);
            let after = (slot.last.load(Relaxed), slot.pending.load(Relaxed));
            audit.wrong_tails += u32::from(before != after);
            self.repair_waits(index, slot, &mut used)?;
            self.repair_name(slot, &mut used);
        }
        let counted = self.map.header().boxes.0.pending.swap(pending, Relaxed);
        audit.wrong_pending = counted.abs_diff(pending);
        let in_use: u64 = used.iter().map(|(_, class)| cells_of(*class)).sum();
        let all = u64::from(self.limit()) - HEADER / CELL;
        audit.lost_cells = all.saturating_sub(in_use + self.free_cells()?);
        Ok(audit)
    }

    fn repair(&self) -> Result<(), Error> {
        self.check_pool()?;
        let mut used = Used::new();
        self.repair_namespaces(&mut used)?;
        let slots = self.repair_slots(&mut used)?;
        let mut pending = 0;
        for (index, slot) in &slots {
            self.relink(*index, slot)?;
            pending += u64::from(self.repair_tail(slot, &mut used)?);
            self.repair_waits(*index, slot, &mut used)?;
            self.repair_name(slot, &mut used);
        }
        let boxes = &self.map.header().boxes.0;
        boxes.count.store(slots.len() as u32, Release);
        boxes.pending.store(pending, Release);
        self.free_all_but(used)?;
        for (_, slot) in &slots {
            // Whoever died may have been about to.
            wake_all(&slot.mark);
        }
        wake_all(&self.map.header().commits.0);
        add(&self.map.header().counters.repairs, 1);
        Ok(())
    }

    fn check_pool(&self) -> Result<(), Error> {
        let pool = self.pool();
        let unused = u64::from(pool.unused.load(Relaxed)) * CELL;
        match (HEADER..=pool.size.load(Relaxed)).contains(&unused) {
            true => Ok(()),
            false => Err(self.map.damaged("its end is not where it can be")),
        }
    }

    /// The most blocks that there can be: longer lists go in circles.
    fn limit(&self) -> u32 {
        self.pool().unused.load(Relaxed)
    }

    fn repair_namespaces(&self, used: &mut Used) -> Result<(), Error> {
        let mut link = &self.map.header().boxes.0.namespaces;
        for _ in 0..self.limit() {
            let index = link.load(Relaxed);
            if index == 0 {
                return Ok(());
            }
            used.push((index, self.text_size(index)?.1));
            let text: &Text = self.map.block(index, 0)?;
            link = &text.next;
        }
        Err(self.map.damaged("the list of namespaces has no end"))
    }

    fn repair_slots(&self, used: &mut Used) -> Result<Vec<(u32, &Slot)>, Error> {
        let mut slots = Vec::new();
        let mut index = self.map.header().boxes.0.newest.load(Relaxed);
        for _ in 0..self.limit() {
            if index == 0 {
                return Ok(slots);
            }
            let slot: &Slot = self.map.block(index, SLOT_CLASS)?;
            used.push((index, SLOT_CLASS));
            slots.push((index, slot));
            index = slot.older.load(Relaxed);
        }
        Err(self.map.damaged("the list of mailboxes has no end"))
    }

    /// Works out the end and the length of a tail, and drops what an advance had passed; returns
    /// the length.
    fn repair_tail(&self, slot: &Slot, used: &mut Used) -> Result<u32, Error> {
        let watermark = if has_watermark(slot) {
            slot.mark.watermark()
        } else {
            u32::MAX
        };
        let (mut last, mut length, mut last_uid) = (0, 0, 0);
        let mut index = slot.first.load(Relaxed);
        while index != 0 {
            let cell: &super::layout::PendingCell = self.map.block(index, 0)?;
            let (uid, next) = (cell.uid.load(Relaxed), cell.next.load(Relaxed));
            if uid <= last_uid {
                return Err(self.map.damaged("a tail is out of order"));
            }
            last_uid = uid;
            if uid <= watermark {
                slot.first.store(next, Release);
            } else {
                used.push((index, self.pending_class(cell)?));
                last = index;
                length += 1;
            }
            index = next;
        }
        slot.last.store(last, Release);
        slot.pending.store(length, Release);
        slot.last_uid.fetch_max(last_uid, Release);
        Ok(length)
    }

    fn repair_waits(&self, index: u32, slot: &Slot, used: &mut Used) -> Result<(), Error> {
        let (mut prev, mut at) = (0, slot.waits.load(Relaxed));
        for _ in 0..self.limit() {
            if at == 0 {
                return Ok(());
            }
            let wait: &WaitCell = self.map.block(at, 0)?;
            if wait.tag.load(Relaxed) != WAIT_TAG || wait.slot.load(Relaxed) != index {
                return self.cut_waits(slot, prev);
            }
            wait.prev.store(prev, Relaxed);
            used.push((at, 0));
            (prev, at) = (at, wait.next.load(Relaxed));
        }
        Err(self.map.damaged("a list of waits has no end"))
    }

    /// Ends a list of waits after `prev`: what follows is no wait of this mailbox. Only what
    /// people are shown depends on it.
    fn cut_waits(&self, slot: &Slot, prev: u32) -> Result<(), Error> {
        match prev {
            0 => slot.waits.store(0, Release),
            prev => {
                let prev: &WaitCell = self.map.block(prev, 0)?;
                prev.next.store(0, Release);
            }
        }
        Ok(())
    }

    fn repair_name(&self, slot: &Slot, used: &mut Used) {
        let index = slot.name.load(Relaxed);
        if index == 0 {
            return;
        }
        match self.text_size(index) {
            Ok((_, class)) => used.push((index, class)),
            Err(_) => slot.name.store(0, Release),
        }
    }

    /// Rebuilds the free lists from what is not used.
    fn free_all_but(&self, mut used: Used) -> Result<(), Error> {
        for head in &self.pool().free {
            head.store(0, Release);
        }
        used.sort_unstable();
        let mut free_from = (HEADER / CELL) as u32;
        for (index, class) in used {
            if index < free_from {
                return Err(self.map.damaged("two blocks lie in one place"));
            }
            self.release_range(free_from, index)?;
            free_from = index + cells_of(class) as u32;
        }
        let unused = self.pool().unused.load(Relaxed);
        if free_from > unused {
            return Err(self.map.damaged("a block lies where none was used"));
        }
        self.release_range(free_from, unused)
    }
}
