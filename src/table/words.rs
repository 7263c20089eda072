//! The words of the table that are read and written without its lock, and the order in which.
//!
//! Rust's atomics are sound between processes as they are between threads: an atomic operation
//! is an instruction on a physical word, two mappings of one file page are one word to the
//! machine's coherence protocol, and no lock is hidden behind the integer types used here (all
//! are lock-free on every platform that has them). What does not cross is a pointer, so no word
//! here holds one.
//!
//! This file names its atomics through `super::atomic`, so that the tests can put it, unchanged,
//! under a module where those are loom's and every interleaving is tried (tests/loom.rs).

use super::atomic::{AtomicU32, AtomicU64, Ordering, fence};

/// The largest number an XID can have: it must fit a signed 64-bit integer (spec part 1).
pub const NUMBER_MAX: u64 = i64::MAX as u64;

/// Where the next XID number comes from.
///
/// Invariant: every number in `next..end` was reserved in the registry for this table alone and
/// was not given out. `next` above `end` is the same as an empty block.
#[repr(C)]
#[derive(Debug, Default)]
pub struct Numbers {
    /// The next number to give. Written by every taker, by compare-and-swap, and by the holder of
    /// the reservation lock when a block begins. It never goes down. 0: no block was ever had.
    next: AtomicU64,
    /// The first number that is not reserved. Written by the holder of the reservation lock only,
    /// after `next`; a taker that sees a new `end` therefore fails its swap if its `next` is old.
    end: AtomicU64,
}

impl Numbers {
    /// Takes `count` consecutive numbers above `above` from the block at hand, and returns the
    /// first; `None` when the block has too few. No system call, no lock: a process that dies
    /// here has either taken all of them or none.
    pub fn try_take(&self, above: u64, count: u32) -> Option<u64> {
        let mut next = self.next.load(Ordering::Acquire);
        loop {
            let end = self.end.load(Ordering::Acquire);
            let first = next.max(above.checked_add(1)?);
            let after = first.checked_add(u64::from(count))?;
            if next == 0 || after > end {
                return None;
            }
            match self
                .next
                .compare_exchange_weak(next, after, Ordering::AcqRel, Ordering::Acquire)
            {
                Ok(_) => return Some(first),
                Err(seen) => next = seen,
            }
        }
    }

    /// Begins the block `first..end`. Only under the reservation lock.
    ///
    /// `next` is stored before `end`: whoever sees the new end and the old next must fail its
    /// swap, or it would give out what lies between two blocks, which is another table's. Killed
    /// between the two, the block is empty and its numbers are skipped.
    pub fn begin_block(&self, first: u64, end: u64) {
        self.next.fetch_max(first, Ordering::AcqRel);
        self.end.store(end, Ordering::Release);
    }

    /// The lowest number that a new block may start at: above all that this table gave out.
    pub fn lowest_new(&self) -> u64 {
        self.next
            .load(Ordering::Acquire)
            .max(self.end.load(Ordering::Acquire))
            .max(1)
    }

    /// At least the highest number given out through this table; `None` when it had no block yet.
    pub fn highest_given(&self) -> Option<u64> {
        self.next.load(Ordering::Acquire).checked_sub(1)
    }
}

/// A mailbox's watermark and what wakes those who wait for it to rise.
///
/// A waiter counts itself in, reads `seq`, looks at what it waits for, and sleeps on `seq`. Who
/// changes something stores it, then bumps `seq`, then looks for sleepers. Both sides have a
/// sequentially consistent fence between their write and their read, so that either the waiter
/// sees the change or the changer sees the waiter.
#[repr(C)]
#[derive(Debug, Default)]
pub struct Mark {
    /// Every UID up to here is stable. Written under the table's lock, only ever upwards within
    /// one UIDVALIDITY, after the registry has it durably; read by everyone at any time.
    watermark: AtomicU32,
    /// Bumped after every change that could end a wait: the word waiters sleep on.
    seq: AtomicU32,
    /// How many sleep, or are about to. A killed sleeper stays counted, which costs an advance
    /// one system call and nothing else.
    sleepers: AtomicU32,
}

impl Mark {
    /// The watermark: one load.
    #[inline]
    pub fn watermark(&self) -> u32 {
        self.watermark.load(Ordering::Acquire)
    }

    /// Stores a watermark. Only under the table's lock; follow it with [`Mark::changed`].
    pub fn set_watermark(&self, uid: u32) {
        self.watermark.store(uid, Ordering::Release);
    }

    /// Says that something was changed; returns whether anyone may sleep on [`Mark::futex`].
    pub fn changed(&self) -> bool {
        self.seq.fetch_add(1, Ordering::AcqRel);
        fence(Ordering::SeqCst);
        self.sleepers.load(Ordering::Acquire) != 0
    }

    /// Counts the caller in as a sleeper. Pair with [`Mark::leave`].
    pub fn enter(&self) {
        self.sleepers.fetch_add(1, Ordering::AcqRel);
        fence(Ordering::SeqCst);
    }

    /// The value to hand to the futex wait; read it before looking at what is waited for.
    pub fn ticket(&self) -> u32 {
        self.seq.load(Ordering::Acquire)
    }

    /// Counts the caller out.
    pub fn leave(&self) {
        self.sleepers.fetch_sub(1, Ordering::AcqRel);
    }

    /// The word to sleep on.
    pub fn futex(&self) -> &AtomicU32 {
        &self.seq
    }
}

/// Whether an advance has FIFOs to write to, without counting them: a count would be wrong after
/// a kill, and correcting it would race with a newcomer.
///
/// Who opens a FIFO makes it visible in the folder, then raises `opened`, then looks at the
/// watermark. Who advances stores the watermark, then compares the two words (fences as for
/// [`Mark`]); when a look through the folder found nobody, `idle_at` becomes what `opened` was
/// before the look.
#[repr(C)]
#[derive(Debug, Default)]
pub struct Fifos {
    /// Raised by whoever opens a FIFO, after it is in place. Never goes down.
    opened: AtomicU64,
    /// The value of `opened` at the last look that found no live FIFO. Written by advancers; an
    /// old value that overwrites a newer one only costs another look.
    idle_at: AtomicU64,
}

impl Fifos {
    /// Says that a FIFO is in place.
    pub fn arrived(&self) {
        self.opened.fetch_add(1, Ordering::AcqRel);
        fence(Ordering::SeqCst);
    }

    /// What to remember of a look through the folder that must be made; `None` when nobody came
    /// since one that found nobody.
    pub fn to_look(&self) -> Option<u64> {
        fence(Ordering::SeqCst);
        let opened = self.opened.load(Ordering::Acquire);
        (opened != self.idle_at.load(Ordering::Acquire)).then_some(opened)
    }

    /// The look that [`Fifos::to_look`] asked for found nobody.
    pub fn found_nobody(&self, at: u64) {
        self.idle_at.store(at, Ordering::Release);
    }
}
