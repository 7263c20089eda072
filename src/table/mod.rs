//! The UID-assignment table: one mapped file per mail root, `xid.table`.
//!
//! It says, without a system call, which UIDs are stable and which number the next XID gets, and
//! it wakes who waits. It is volatile: all that must survive a reboot is in the registry first
//! ([`crate::registry`]), and a table of an earlier boot is made anew.
//!
//! Who does what: [`file`] makes, checks, maps and grows the file; [`layout`] says what is where;
//! [`lock`] is the mutex whose owner may die and [`repair`] what follows; [`words`] are the words
//! that need no lock; [`pool`] hands out blocks of the file; [`mailbox`], [`tail`] and [`wait`]
//! are what the table is for; [`fifo`] wakes event loops; [`current`] is the table of a mail
//! root, opened again when it was replaced.

mod current;
mod fifo;
mod file;
mod layout;
mod lock;
mod mailbox;
mod pool;
mod repair;
mod tail;
mod wait;
mod words;

/// The atomics of [`words`]: the machine's own.
mod atomic {
    pub use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
}

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::Duration;

pub use current::Current;
pub use fifo::Waiter;
use file::Mapped;
pub use layout::WAIT_BUCKETS_MS;
pub use lock::LockError;
use lock::{Guard, Locked, Orphan};
pub use mailbox::{Begin, Guid, Info, LEAST_WINDOW, Mailbox, Tail, Watermarks};
use pool::Writer;
pub use repair::Audit;
pub use tail::{Advanced, Entry, MESSAGE_GUID_MAX, Pending, guid_text};
pub use wait::{Counts, WaitId, Waited};
pub use words::NUMBER_MAX;

/// How long to wait for a lock in the table. Holders keep the table's lock for about 100 ns; the
/// reservation lock is held for one durable write of the registry.
const LOCK_LIMIT: Duration = Duration::from_secs(20);

/// What is wrong with a table, whose it is, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The system refused something.
    #[error("cannot {what} {path}: {source}", path = .path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// With what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A file that is neither used nor replaced.
    #[error("{path} is not used: {why}; remove it, and see who put it there", path = .path.display())]
    Refused {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A newer release made this table and may be using it.
    #[error("{path} was made by a newer release (version {version}): update this program, or \
             remove the file when nothing newer uses it", path = .path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        version: u32,
    },
    /// What the table says cannot be; it is made anew when it is next opened.
    #[error("{path} is damaged: {why}; it is made anew when it is next opened", path = .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What was found.
        why: &'static str,
    },
    /// The file reached the largest size that its indices can name.
    #[error("{path} cannot grow any more (256 GiB)", path = .0.display())]
    TooBig(PathBuf),
    /// The boot id cannot be read, so it cannot be known whether a table is of this boot.
    #[error("cannot read the id of this boot: {0}: mount /proc, in the chroot too")]
    NoBootId(io::Error),
    /// A lock was not had.
    #[error("{path}: {source}", path = .path.display())]
    Lock {
        /// The table.
        path: PathBuf,
        /// Why not.
        source: LockError,
    },
    /// More numbers were asked for than exist above the last.
    #[error("no {count} numbers are left above {above}")]
    NumbersExhausted {
        /// The caller's own highest.
        above: u64,
        /// How many were asked for.
        count: u32,
    },
    /// The registry reserved numbers that were not asked for.
    #[error("the registry reserved {got:?} where {count} numbers from {from} on were asked for")]
    BadReservation {
        /// What it reserved.
        got: Range<u64>,
        /// The least number to reserve.
        from: u64,
        /// How many.
        count: u32,
    },
    /// The registry could not store a watermark.
    #[error("{path}: the watermark is not durable: {why}", path = .path.display())]
    Store {
        /// The table.
        path: PathBuf,
        /// What the registry says.
        why: String,
    },
    /// The mailbox was attached with a newer UIDVALIDITY since.
    #[error("{path}: the mailbox has UIDVALIDITY {current} by now, not {given}: open it again; \
             if an older mailbox was restored, remove this file", path = .path.display())]
    OldUidvalidity {
        /// The table.
        path: PathBuf,
        /// The caller's.
        given: u32,
        /// The table's.
        current: u32,
    },
    /// No process opened the mailbox since the boot, so the table knows nothing of it.
    #[error("mailbox {0} was not opened since the boot: open it once")]
    NotAttached(String),
    /// An advance above all UIDs that were given.
    #[error(
        "mailbox {mailbox}: the watermark cannot go to UID {uid}: the highest that was given \
             is {last_uid}"
    )]
    NeverGiven {
        /// The mailbox GUID.
        mailbox: String,
        /// The UID asked for.
        uid: u32,
        /// The highest one known.
        last_uid: u32,
    },
    /// An advance of a mailbox that somebody holds.
    #[error("mailbox {mailbox} is on hold, by {owner} for {left_ms} ms more: release it first")]
    OnHold {
        /// The mailbox GUID.
        mailbox: String,
        /// Who holds it.
        owner: u64,
        /// For how much longer.
        left_ms: u64,
    },
    /// A hold or gate that somebody else has.
    #[error("mailbox {mailbox}: {owner} has that, for {left_ms} ms more")]
    Taken {
        /// The mailbox GUID.
        mailbox: String,
        /// Who has it.
        owner: u64,
        /// For how much longer.
        left_ms: u64,
    },
    /// A message GUID that is longer than any host's.
    #[error("the GUID of UID {uid} has {len} bytes, more than {MESSAGE_GUID_MAX}")]
    LongGuid {
        /// Whose.
        uid: u32,
        /// How long it is.
        len: usize,
    },
}

impl Error {
    pub(crate) fn io(what: &'static str, path: &Path, source: io::Error) -> Error {
        Error::Io {
            what,
            path: path.to_owned(),
            source,
        }
    }
}

/// Why numbers were not taken.
#[derive(Debug, thiserror::Error)]
pub enum TakeError<E> {
    /// The table's fault.
    #[error(transparent)]
    Table(#[from] Error),
    /// The registry could not reserve a block.
    #[error("{0}")]
    Reserve(E),
}

/// How [`Table::open`] found the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opened {
    /// It was there.
    Existing,
    /// There was none.
    Created,
    /// It was of an earlier boot, and was made anew, as it is after every boot.
    AfterBoot,
    /// It was damaged for this reason, and was made anew; what was there is `xid.table.broken`.
    /// Worth a line in the log.
    Rebuilt(&'static str),
}

/// The table of a mail root. Any number of threads and processes use one at once.
///
/// A file that somebody cuts short while it is mapped kills, by SIGBUS, who touches what was cut:
/// no check helps against that. Its folder is writable for the mail's owner only.
pub struct Table {
    map: Mapped,
}

// SAFETY: what is shared are atomics and process-shared locks.
unsafe impl Send for Table {}
// SAFETY: as above.
unsafe impl Sync for Table {}

impl Table {
    /// Opens the table of the mail root `dir`, making it when it is missing, of an earlier boot,
    /// or damaged. The folder must exist.
    pub fn open(dir: &Path) -> Result<(Table, Opened), Error> {
        let (map, opened) = Mapped::open(dir)?;
        Ok((Table { map }, opened))
    }

    /// Whether this is still the mail root's table: not when its file was deleted or replaced.
    /// Then open it again. Costs one system call.
    pub fn is_current(&self) -> bool {
        self.map.is_linked() && self.map.header().pool.0.broken.load(Ordering::Acquire) == 0
    }

    /// The file.
    pub fn path(&self) -> &Path {
        self.map.path()
    }

    /// Takes `count` consecutive numbers, all above `above`, and returns the first.
    ///
    /// No system call within a block of reserved numbers. At a block's end `reserve(from, count)`
    /// must make a block durable that starts at `from` or above, has at least `count` numbers,
    /// and was never handed to any table before; only one process at a time asks. Numbers that
    /// were taken are never taken again, also not by another table for the same registry, after a
    /// kill or a reboot; of one table they only ever rise. `count` 0 counts as 1.
    pub fn take_numbers<E>(
        &self,
        above: u64,
        count: u32,
        mut reserve: impl FnMut(u64, u32) -> Result<Range<u64>, E>,
    ) -> Result<u64, TakeError<E>> {
        let count = count.max(1);
        let numbers = &self.map.header().numbers.0;
        if let Some(first) = numbers.try_take(above, count) {
            return Ok(first);
        }
        let _reserving = self.lock_reserving()?;
        // Another process may have begun a block while this one waited.
        if let Some(first) = numbers.try_take(above, count) {
            return Ok(first);
        }
        let from = numbers.lowest_new().max(above.saturating_add(1));
        if from.saturating_add(u64::from(count) - 1) > NUMBER_MAX {
            return Err(Error::NumbersExhausted { above, count }.into());
        }
        let block = reserve(from, count).map_err(TakeError::Reserve)?;
        check_block(&block, from, count)?;
        // The caller's own are taken before the others see the block, or they might empty it.
        numbers.begin_block(block.start + u64::from(count), block.end);
        Ok(block.start)
    }

    /// At least the highest number given out, and nothing above what was reserved; `None` when
    /// this table never had a block, so that only the registry knows.
    pub fn highest_given(&self) -> Option<u64> {
        self.map.header().numbers.0.highest_given()
    }

    /// The reservation lock. What it guards is in order at every instruction, so a dead owner
    /// leaves nothing to repair.
    fn lock_reserving(&self) -> Result<Guard<'_>, Error> {
        match self.map.header().reserving.lock(LOCK_LIMIT) {
            Ok(Locked::Clean(guard)) => Ok(guard),
            Ok(Locked::OwnerDied(orphan)) => orphan.repaired(),
            Err(e) => Err(e),
        }
        .map_err(|e| self.lock_error(e))
    }

    /// The table's lock, and with it the right to change what it guards; repairs first what a
    /// dead owner left.
    fn writer(&self) -> Result<Writer<'_>, Error> {
        match self.map.header().lock.lock(LOCK_LIMIT) {
            Ok(Locked::Clean(guard)) => Ok(Writer::new(&self.map, guard)),
            Ok(Locked::OwnerDied(orphan)) => self.repaired(orphan),
            Err(e) => Err(self.lock_error(e)),
        }
    }

    /// Repairs the table. If that cannot be done nobody gets the lock any more: every process
    /// opens another table when it next looks.
    fn repaired<'a>(&'a self, orphan: Orphan<'a>) -> Result<Writer<'a>, Error> {
        if let Err(e) = repair::repair(&self.map, &orphan) {
            self.map.header().pool.0.broken.store(1, Ordering::Release);
            return Err(e);
        }
        let guard = orphan.repaired().map_err(|e| self.lock_error(e))?;
        // Event loops may wait for a ring that the dead process did not give.
        self.ring();
        Ok(Writer::new(&self.map, guard))
    }

    fn lock_error(&self, source: LockError) -> Error {
        Error::Lock {
            path: self.path().to_owned(),
            source,
        }
    }
}

/// Checks what the registry reserved: numbers that are not ours must never be given out.
fn check_block(block: &Range<u64>, from: u64, count: u32) -> Result<(), Error> {
    let long_enough = block
        .start
        .checked_add(u64::from(count))
        .is_some_and(|end| end <= block.end);
    if block.start >= from && long_enough && block.end - 1 <= NUMBER_MAX {
        return Ok(());
    }
    Err(Error::BadReservation {
        got: block.clone(),
        from,
        count,
    })
}

#[cfg(test)]
mod tests;
