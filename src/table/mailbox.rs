//! A mailbox's slot: found, made, and what it says.

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use super::file::Mapped;
use super::layout::{
    CHILDREN, HAS_WATERMARK, Lease, PROMISE_MAX, PROMISED_ALL, ROOTS, SLOT_CLASS, Slot, WAIT_TAG,
    WaitCell,
};
use super::pool::Writer;
use super::wait::now_ms;
use super::words::Mark;
use super::{Error, Table};

/// The GUID of a mailbox.
pub type Guid = [u8; 16];

/// The smallest window of UIDs above the watermark that a cluster can be given. So many UIDs a node
/// may give out above a watermark that it knows, whatever else it does not know.
pub const LEAST_WINDOW: u32 = 100;

/// What a registry stores of watermarks, so that a reboot shows no lower UIDNEXT.
pub trait Watermarks {
    /// Returns the mailbox's durable watermark; where it has none under this UIDVALIDITY, makes
    /// `uid` it first. One durable transaction.
    fn begin(&mut self, guid: &Guid, uidvalidity: u32, uid: u32) -> Result<u32, String>;

    /// Raises durable watermarks to at least these: GUID, UIDVALIDITY, UID. One durable
    /// transaction.
    fn raise(&mut self, marks: &[(Guid, u32, u32)]) -> Result<(), String>;
}

/// A mailbox in a table.
#[derive(Clone)]
pub struct Mailbox {
    pub(super) table: Arc<Table>,
    slot: NonNull<Slot>,
    pub(super) index: u32,
}

// SAFETY: the pointer is into a mapping that lives as long as `table`, to atomics.
unsafe impl Send for Mailbox {}
// SAFETY: as above.
unsafe impl Sync for Mailbox {}

/// How a mailbox begins of which the table knows nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begin {
    /// Without a durable watermark all that it holds is stable.
    Stable,
    /// Its cluster has to say so: nothing is stable, and there is no room for new messages. With a
    /// durable watermark there is room for [`LEAST_WINDOW`] above it.
    Cluster,
}

/// Whether the tail of pending entries is whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tail {
    /// Every message above the watermark was added.
    Whole,
    /// Messages with UIDs above this one may be missing, after a reboot or because who saved
    /// them was killed: add them ([`Mailbox::pending_add`]), then say [`Mailbox::filled`].
    MissingAbove(u32),
}

/// What the table says about a mailbox, at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Info {
    /// The mailbox GUID.
    pub guid: Guid,
    /// The mailbox's name, as it was when it was last attached.
    pub name: Vec<u8>,
    /// What all UIDs here are of.
    pub uidvalidity: u32,
    /// Every UID up to here is stable; `None` before the mailbox was attached.
    pub watermark: Option<u32>,
    /// The highest UID known to be given.
    pub last_uid: u32,
    /// Whether all messages above the watermark are among the pending ones.
    pub tail: Tail,
    /// Messages above the watermark.
    pub pending: u32,
    /// The lowest pending UID and for how many milliseconds it has been pending.
    pub oldest_pending: Option<(u32, u64)>,
    /// Commands that wait for UIDs here.
    pub waiters: u32,
    /// For how many milliseconds the first of them has been waiting.
    pub oldest_wait_ms: Option<u64>,
    /// Who closed the gate, and for how many more milliseconds.
    pub gate: Option<(u64, u64)>,
    /// Who holds the watermark, and for how many more milliseconds.
    pub hold: Option<(u64, u64)>,
    /// Up to which UID the node promised to renumber nothing; `None`: everything counts.
    pub promised: Option<u32>,
    /// The highest UID that a new message may get here, and the highest that replication may
    /// bring; `None`: nobody said so yet.
    pub limit: Option<u32>,
    /// See `limit`.
    pub bound: Option<u32>,
}

impl Table {
    /// The mailbox with this GUID, if it was attached since the table was made. No lock.
    pub fn find(self: &Arc<Table>, guid: &Guid) -> Result<Option<Mailbox>, Error> {
        let found = find(&self.map, guid)?.1;
        found.map(|index| self.mailbox(index)).transpose()
    }

    /// Whether the mailbox has a watermark here already, so that attaching asks nobody for one. No
    /// lock.
    pub fn has_place(&self, guid: &Guid, uidvalidity: u32) -> Result<bool, Error> {
        let Some(index) = find(&self.map, guid)?.1 else {
            return Ok(false);
        };
        let slot: &Slot = self.map.block(index, SLOT_CLASS)?;
        Ok(has_watermark(slot) && slot.uidvalidity.load(Acquire) == uidvalidity)
    }

    /// Every mailbox, the newest first. No lock: one that is made meanwhile may be missing.
    pub fn mailboxes(self: &Arc<Table>) -> Result<Vec<Mailbox>, Error> {
        let boxes = &self.map.header().boxes.0;
        let mut found = Vec::new();
        let mut index = boxes.newest.load(Acquire);
        while index != 0 {
            if found.len() > boxes.count.load(Acquire) as usize + 1 {
                return Err(self.map.damaged("the list of mailboxes has no end"));
            }
            let mailbox = self.mailbox(index)?;
            index = mailbox.slot().older.load(Relaxed);
            found.push(mailbox);
        }
        Ok(found)
    }

    /// Finds the mailbox's slot, or makes it, and sees to it that it has a watermark: the durable
    /// one; where there is none, `last_uid`, so that all that the mailbox holds is stable.
    ///
    /// `last_uid` is the highest UID given in the mailbox, `name` what to show to people. `store`
    /// is asked only where this table does not know the watermark yet.
    pub fn attach(
        self: &Arc<Table>,
        guid: &Guid,
        uidvalidity: u32,
        name: &[u8],
        last_uid: u32,
        store: &mut dyn Watermarks,
    ) -> Result<(Mailbox, Tail), Error> {
        let begin = Begin::Stable;
        self.attach_from(guid, uidvalidity, name, last_uid, begin, store)
    }

    /// As [`Table::attach`], but `begin` says what is stable in a mailbox without a durable
    /// watermark.
    pub fn attach_from(
        self: &Arc<Table>,
        guid: &Guid,
        uidvalidity: u32,
        name: &[u8],
        last_uid: u32,
        begin: Begin,
        store: &mut dyn Watermarks,
    ) -> Result<(Mailbox, Tail), Error> {
        if let Some(mailbox) = self.find(guid)?
            && mailbox.refuse_older(uidvalidity)?
        {
            mailbox.set_name(name)?;
            let tail = tail_of(mailbox.slot(), last_uid);
            return Ok((mailbox, tail));
        }
        let first = match begin {
            Begin::Stable => last_uid,
            Begin::Cluster => 0,
        };
        // The registry first: what it says is durable before anyone sees it here.
        let watermark = store
            .begin(guid, uidvalidity, first)
            .map_err(|why| Error::Store {
                path: self.path().to_owned(),
                why,
            })?;
        let mailbox = self.mailbox(self.writer()?.find_or_make(guid)?)?;
        mailbox.begin(uidvalidity, watermark, begin)?;
        mailbox.set_name(name)?;
        let tail = tail_of(mailbox.slot(), last_uid);
        Ok((mailbox, tail))
    }

    /// Forgets all watermarks and what is pending, for a mail root whose UIDs are stable at once
    /// from here on. Mailboxes that are attached in processes go on with what they saw.
    pub fn forget_watermarks(self: &Arc<Table>) -> Result<(), Error> {
        for mailbox in self.mailboxes()? {
            let writer = self.writer()?;
            let slot = mailbox.slot();
            slot.flags.store(0, Release);
            writer.drop_tail(slot, u32::MAX)?;
        }
        Ok(())
    }

    fn mailbox(self: &Arc<Table>, index: u32) -> Result<Mailbox, Error> {
        let slot = NonNull::from(self.map.block::<Slot>(index, SLOT_CLASS)?);
        Ok(Mailbox {
            table: Arc::clone(self),
            slot,
            index,
        })
    }
}

impl Mailbox {
    #[inline]
    pub(super) fn slot(&self) -> &Slot {
        // SAFETY: the mapping lives as long as `self.table`; all is atomic or never written again.
        unsafe { self.slot.as_ref() }
    }

    /// Every UID up to here is stable. Loads only; callable at any time.
    #[inline]
    pub fn watermark(&self) -> u32 {
        self.slot().mark.watermark()
    }

    /// The table that the mailbox is in.
    pub fn table(&self) -> &Arc<Table> {
        &self.table
    }

    /// The mailbox GUID.
    pub fn guid(&self) -> Guid {
        guid_of(self.slot())
    }

    /// What all UIDs here are of.
    pub fn uidvalidity(&self) -> u32 {
        self.slot().uidvalidity.load(Acquire)
    }

    /// Up to which UID the node promised its peers to renumber nothing; `None`: not known since
    /// the boot, so everything counts as promised. Loads only.
    pub fn promised(&self) -> Option<u32> {
        Some(self.slot().promised.load(Acquire)).filter(|uid| *uid != PROMISED_ALL)
    }

    /// Notes a promise, or with a lower `uid` its withdrawal; `u32::MAX`: of whatever comes, too,
    /// as after a boot. For the cluster daemon's side alone.
    pub fn promise(&self, uid: u32) -> Result<(), Error> {
        let _writer = self.table.writer()?;
        self.slot().promised.store(uid, Release);
        Ok(())
    }

    /// Others may count on what lies at or below this UID: it is stable or promised, or it is not
    /// known what was promised. Loads only.
    pub fn firm(&self) -> u32 {
        match self.promised() {
            None => u32::MAX,
            Some(promised) if promised > PROMISE_MAX => self.watermark(),
            Some(promised) => promised.max(self.watermark()),
        }
    }

    /// The highest UID known to be given, stable or not. Loads only.
    pub fn last_uid(&self) -> u32 {
        self.slot().last_uid.load(Acquire)
    }

    /// The highest UID that a new message may get on this node; `None`: nobody said so yet. Where
    /// somebody has to say so, as in a cluster, there is no room for new messages until then: other
    /// nodes may have given every UID from 1 on. After a boot it is [`LEAST_WINDOW`] above the
    /// watermark. Loads only.
    pub fn limit(&self) -> Option<u32> {
        Some(self.slot().limit.load(Acquire)).filter(|uid| *uid != 0)
    }

    /// The highest UID that replication may bring; `None`: not known since the boot, so nothing
    /// holds it back.
    pub fn bound(&self) -> Option<u32> {
        Some(self.slot().bound.load(Acquire)).filter(|uid| *uid != 0)
    }

    /// Says how far UIDs may go (0: not known), and wakes who waits for room. For the cluster
    /// daemon's side alone.
    pub fn set_limits(&self, limit: u32, bound: u32) -> Result<(), Error> {
        let writer = self.table.writer()?;
        let slot = self.slot();
        if slot.limit.load(Relaxed) == limit && slot.bound.load(Relaxed) == bound {
            return Ok(());
        }
        slot.bound.store(bound, Release);
        slot.limit.store(limit, Release);
        drop(writer);
        wake_all(&slot.mark);
        Ok(())
    }

    /// All that the table says about the mailbox.
    pub fn info(&self) -> Result<Info, Error> {
        let writer = self.table.writer()?;
        let slot = self.slot();
        let now = now_ms();
        let (waiters, oldest_wait) = writer.waits(slot)?;
        let name = match slot.name.load(Relaxed) {
            0 => Vec::new(),
            index => writer.text(index)?,
        };
        Ok(Info {
            guid: guid_of(slot),
            name,
            uidvalidity: slot.uidvalidity.load(Relaxed),
            watermark: has_watermark(slot).then(|| slot.mark.watermark()),
            last_uid: slot.last_uid.load(Relaxed),
            tail: tail_of(slot, slot.last_uid.load(Relaxed)),
            pending: slot.pending.load(Relaxed),
            oldest_pending: writer
                .oldest(slot)?
                .map(|(uid, since)| (uid, now.saturating_sub(since))),
            waiters,
            oldest_wait_ms: oldest_wait.map(|since| now.saturating_sub(since)),
            gate: slot.gate.closed_by(now),
            hold: slot.hold.closed_by(now),
            promised: self.promised(),
            limit: self.limit(),
            bound: self.bound(),
        })
    }

    /// Whether the slot has a watermark of this UIDVALIDITY; a process that still knows an older
    /// one is refused.
    fn refuse_older(&self, uidvalidity: u32) -> Result<bool, Error> {
        let slot = self.slot();
        if !has_watermark(slot) {
            return Ok(false);
        }
        let current = slot.uidvalidity.load(Acquire);
        if uidvalidity < current {
            let path = self.table.path().to_owned();
            return Err(Error::OldUidvalidity {
                path,
                given: uidvalidity,
                current,
            });
        }
        Ok(uidvalidity == current)
    }

    /// Gives the slot the watermark that the registry has, unless another process just did.
    fn begin(&self, uidvalidity: u32, watermark: u32, begin: Begin) -> Result<(), Error> {
        let writer = self.table.writer()?;
        let slot = self.slot();
        if self.refuse_older(uidvalidity)? {
            return Ok(());
        }
        // A killed process leaves no watermark, not one of the other UIDVALIDITY.
        slot.flags.store(0, Release);
        writer.drop_tail(slot, u32::MAX)?;
        slot.uidvalidity.store(uidvalidity, Release);
        slot.mark.set_watermark(watermark);
        slot.last_uid.store(watermark, Release);
        slot.told_uid.store(watermark, Release);
        slot.promised.store(PROMISED_ALL, Release);
        let limit = match (begin, watermark) {
            (Begin::Stable, _) | (_, 0) => 0,
            (Begin::Cluster, uid) => uid.saturating_add(LEAST_WINDOW),
        };
        slot.limit.store(limit, Release);
        slot.bound.store(0, Release);
        slot.flags.store(HAS_WATERMARK, Release);
        wake_all(&slot.mark);
        Ok(())
    }

    /// Stores the name where it changed.
    fn set_name(&self, name: &[u8]) -> Result<(), Error> {
        let writer = self.table.writer()?;
        let link = &self.slot().name;
        let old = link.load(Relaxed);
        if old != 0 && writer.text(old)? == name {
            return Ok(());
        }
        link.store(writer.store_text(name)?, Release);
        if old != 0 {
            let (_, class) = writer.text_size(old)?;
            writer.release(old, class)?;
        }
        Ok(())
    }
}

/// Whether the table was told of every message up to a UID.
pub(super) fn tail_of(slot: &Slot, last_uid: u32) -> Tail {
    let told = slot.told_uid.load(Acquire).max(slot.mark.watermark());
    match last_uid > told {
        true => Tail::MissingAbove(told),
        false => Tail::Whole,
    }
}

pub(super) fn guid_of(slot: &Slot) -> Guid {
    // SAFETY: written before the slot was linked, never after.
    unsafe { *slot.guid.get() }
}

pub(super) fn has_watermark(slot: &Slot) -> bool {
    slot.flags.load(Acquire) & HAS_WATERMARK != 0
}

/// Tells who sleeps on a mailbox to look again.
pub(super) fn wake_all(mark: &Mark) {
    if mark.changed() {
        super::wait::futex_wake(mark.futex());
    }
}

impl Lease {
    /// Who closed it and for how many more milliseconds; `None` when it is open.
    pub fn closed_by(&self, now: u64) -> Option<(u64, u64)> {
        let left = self
            .until
            .load(Acquire)
            .checked_sub(now)
            .filter(|left| *left > 0)?;
        Some((self.owner.load(Acquire), left))
    }

    /// Closes it, or goes on closing it. Only under the lock. `Err`: another has it.
    pub fn close(&self, now: u64, owner: u64, lease_ms: u64) -> Result<(), (u64, u64)> {
        match self.closed_by(now) {
            Some((other, left)) if other != owner => Err((other, left)),
            _ => {
                self.owner.store(owner, Release);
                self.until.store(now.saturating_add(lease_ms), Release);
                Ok(())
            }
        }
    }

    /// Opens it; `owner` 0 whoever closed it. Only under the lock. `Err`: another has it.
    pub fn open(&self, now: u64, owner: u64) -> Result<(), (u64, u64)> {
        match self.closed_by(now) {
            Some((other, left)) if owner != 0 && other != owner => Err((other, left)),
            _ => {
                self.until.store(0, Release);
                Ok(())
            }
        }
    }
}

/// The path of a GUID through the trie: which root, then which child at each level.
struct Path(u64, u32);

impl Path {
    fn new(guid: &Guid) -> Path {
        let half = |at: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&guid[at..at + 8]);
            u64::from_le_bytes(bytes)
        };
        // The finaliser of splitmix64, over both halves: GUIDs are far from random.
        let mix = |x: u64| {
            let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            x ^ (x >> 31)
        };
        Path(
            mix(mix(half(0))
                .wrapping_add(half(8))
                .wrapping_add(0x9e37_79b9_7f4a_7c15)),
            64,
        )
    }

    fn take(&mut self, ways: usize) -> usize {
        let bits = ways.trailing_zeros();
        if self.1 < bits {
            // All bits are spent, 30 levels down: go on with others.
            *self = Path(
                self.0.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(31),
                64,
            );
        }
        let way = self.0 as usize & (ways - 1);
        *self = Path(self.0.rotate_right(bits), self.1 - bits);
        way
    }
}

/// How deep the trie can be looked through: enough for any number of GUIDs by chance, and a bound
/// for a damaged one, which may go in circles.
const DEPTH_LIMIT: usize = 4096;

/// The slot of a GUID, if there is one, and the link that leads there or should.
fn find<'a>(map: &'a Mapped, guid: &Guid) -> Result<(&'a AtomicU32, Option<u32>), Error> {
    let mut path = Path::new(guid);
    let mut link = &map.header().roots[path.take(ROOTS)];
    for _ in 0..DEPTH_LIMIT {
        let index = link.load(Acquire);
        if index == 0 {
            return Ok((link, None));
        }
        let slot: &Slot = map.block(index, SLOT_CLASS)?;
        if guid_of(slot) == *guid {
            return Ok((link, Some(index)));
        }
        link = &slot.children[path.take(CHILDREN)];
    }
    Err(map.damaged("the tree of mailboxes has no end"))
}

impl<'a> Writer<'a> {
    /// The slot of a GUID, made if there is none.
    fn find_or_make(&self, guid: &Guid) -> Result<u32, Error> {
        let (link, found) = find(self.map, guid)?;
        if let Some(index) = found {
            return Ok(index);
        }
        let index = self.allocate(SLOT_CLASS)?;
        let boxes = &self.map.header().boxes.0;
        let slot = Slot {
            guid: (*guid).into(),
            children: Default::default(),
            older: boxes.newest.load(Relaxed).into(),
            flags: AtomicU32::new(0),
            mark: Mark::default(),
            last_uid: AtomicU32::new(0),
            told_uid: AtomicU32::new(0),
            promised: PROMISED_ALL.into(),
            limit: AtomicU32::new(0),
            bound: AtomicU32::new(0),
            uidvalidity: AtomicU32::new(0),
            first: AtomicU32::new(0),
            last: AtomicU32::new(0),
            pending: AtomicU32::new(0),
            name: AtomicU32::new(0),
            waits: AtomicU32::new(0),
            gate: Lease::default(),
            hold: Lease::default(),
        };
        let at = self.map.cells(index, super::pool::cells_of(SLOT_CLASS))?;
        // SAFETY: a block of a slot's size and alignment that nothing refers to.
        unsafe { at.cast::<Slot>().write(slot) };
        // Into the list first: the repair puts into the trie what the list has.
        boxes.newest.store(index, Release);
        boxes.count.fetch_add(1, Release);
        link.store(index, Release);
        Ok(index)
    }

    /// Puts a slot of the list into the trie if it is not there. For the repair.
    pub fn relink(&self, index: u32, slot: &Slot) -> Result<(), Error> {
        let (link, found) = find(self.map, &guid_of(slot))?;
        if found.is_none() {
            link.store(index, Release);
        }
        Ok(())
    }

    /// How many wait for UIDs of a mailbox and since when the first of them does. Forgets those
    /// that died.
    fn waits(&self, slot: &Slot) -> Result<(u32, Option<u64>), Error> {
        let (mut count, mut oldest) = (0, None);
        let mut index = slot.waits.load(Relaxed);
        let mut left = self.pool().unused.load(Relaxed);
        while index != 0 {
            left = left
                .checked_sub(1)
                .ok_or_else(|| self.map.damaged("a list has no end"))?;
            let wait: &WaitCell = self.map.block(index, 0)?;
            let next = wait.next.load(Relaxed);
            if wait.tag.load(Relaxed) != WAIT_TAG {
                return Err(self.map.damaged("a list of waits leads elsewhere"));
            }
            match super::wait::is_alive(wait.pid.load(Relaxed)) {
                false => self.unlink_wait(slot, index, wait)?,
                true => {
                    count += 1;
                    let since = wait.since.load(Relaxed);
                    oldest = Some(oldest.map_or(since, |oldest: u64| oldest.min(since)));
                }
            }
            index = next;
        }
        Ok((count, oldest))
    }
}
