//! Waiting: for a UID to become stable, for a gate to open.
//!
//! Sleepers sleep in the kernel on the mailbox's futex word. They look up at least once a second
//! all the same: the table may have been replaced under them.

use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::layout::{Slot, WAIT_BUCKETS_MS, WAIT_TAG, WaitCell};
use super::mailbox::Mailbox;
use super::pool::{Writer, add};
use super::words::Mark;
use super::{Error, Table};

/// How long one sleep may be.
const LOOK_UP: Duration = Duration::from_secs(1);

/// How a wait ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waited {
    /// What was waited for is so.
    Done,
    /// The time is over.
    TimedOut,
    /// The process got a signal.
    Interrupted,
    /// The table was deleted or replaced: attach the mailbox again.
    Replaced,
}

/// A wait that was announced by [`Mailbox::wait_begin`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WaitId {
    index: u32,
    since: u64,
}

impl WaitId {
    /// The wait as a number for C.
    pub fn to_raw(self) -> (u32, u64) {
        (self.index, self.since)
    }

    /// What [`WaitId::to_raw`] gave.
    pub fn from_raw((index, since): (u32, u64)) -> WaitId {
        WaitId { index, since }
    }
}

impl Mailbox {
    /// Sleeps until every UID up to `uid` is stable.
    pub fn wait(&self, uid: u32, limit: Duration) -> Result<Waited, Error> {
        if self.watermark() >= uid {
            return Ok(Waited::Done);
        }
        let id = self.wait_begin(uid)?;
        let waited = self.sleep_until(limit, || self.watermark() >= uid);
        self.wait_end(id, waited == Waited::TimedOut)?;
        Ok(waited)
    }

    /// Whether commits must wait: for how many more milliseconds at most. One load when the gate
    /// is open.
    #[inline]
    pub fn gate_closed(&self) -> Option<u64> {
        let gate = &self.slot().gate;
        match gate.until.load(Acquire) {
            0 => None,
            _ => gate.closed_by(now_ms()).map(|(_, left)| left),
        }
    }

    /// Sleeps until the gate is open or its lease is over.
    pub fn wait_for_gate(&self, limit: Duration) -> Waited {
        if self.gate_closed().is_none() {
            return Waited::Done;
        }
        add(&self.table.map.header().counters.gate_waits, 1);
        self.sleep_until(limit, || self.gate_closed().is_none())
    }

    /// Sleeps until somebody said that new messages may get UIDs up to `uid`.
    pub fn wait_for_limit(&self, uid: u32, limit: Duration) -> Waited {
        let room = || self.limit().is_some_and(|limit| uid <= limit);
        if room() {
            return Waited::Done;
        }
        add(&self.table.map.header().counters.limit_waits, 1);
        self.table.sleep_on(&self.slot().mark, limit, || None, room)
    }

    /// Counts a commit that was refused since it would have changed what was promised.
    pub fn count_refusal(&self) {
        add(&self.table.map.header().counters.refusals, 1);
    }

    /// Counts a commit that found the gate closed and waits by itself.
    pub fn count_gate_wait(&self) {
        add(&self.table.map.header().counters.gate_waits, 1);
    }

    fn sleep_until(&self, limit: Duration, done: impl Fn() -> bool) -> Waited {
        let mark = &self.slot().mark;
        self.table
            .sleep_on(mark, limit, || self.gate_closed(), done)
    }

    /// Announces a wait of this process for `uid`, so that an operator and an assigner see it.
    /// Pair with [`Mailbox::wait_end`]; what a killed process leaves is forgotten.
    pub fn wait_begin(&self, uid: u32) -> Result<WaitId, Error> {
        let writer = self.table.writer()?;
        let slot = self.slot();
        let index = writer.allocate(0)?;
        let wait: &WaitCell = self.table.map.block(index, 0)?;
        let first = slot.waits.load(Relaxed);
        let since = now_ms();
        wait.next.store(first, Relaxed);
        wait.prev.store(0, Relaxed);
        wait.uid.store(uid, Relaxed);
        wait.pid.store(std::process::id(), Relaxed);
        wait.since.store(since, Relaxed);
        wait.slot.store(self.index, Relaxed);
        wait.tag.store(WAIT_TAG, Relaxed);
        slot.waits.store(index, Release);
        if first != 0 {
            let first: &WaitCell = self.table.map.block(first, 0)?;
            first.prev.store(index, Relaxed);
        }
        Ok(WaitId { index, since })
    }

    /// Ends an announced wait and counts it. A wait that is not there any more is only counted.
    pub fn wait_end(&self, id: WaitId, timed_out: bool) -> Result<(), Error> {
        self.table
            .count_wait(now_ms().saturating_sub(id.since), timed_out);
        // Nearly always it is gone, by the advance that ended it: a thousand that wake at once
        // should not queue for the lock.
        if !self.is_ours(id)? {
            return Ok(());
        }
        let writer = self.table.writer()?;
        if !self.is_ours(id)? {
            return Ok(());
        }
        let wait: &WaitCell = self.table.map.block(id.index, 0)?;
        writer.unlink_wait(self.slot(), id.index, wait)
    }

    /// Whether the wait is still in the table.
    fn is_ours(&self, id: WaitId) -> Result<bool, Error> {
        let map = &self.table.map;
        // It may be of a table that was replaced since.
        if id.index >= map.header().pool.0.unused.load(Acquire) {
            return Ok(false);
        }
        let wait: &WaitCell = map.block(id.index, 0)?;
        Ok(wait.tag.load(Acquire) == WAIT_TAG
            && wait.slot.load(Acquire) == self.index
            && wait.since.load(Acquire) == id.since
            && wait.pid.load(Acquire) == std::process::id())
    }
}

impl Table {
    /// How often pending entries were added: hand it to [`Table::wait_for_commits`].
    pub fn commits(&self) -> u32 {
        self.map.header().commits.0.ticket()
    }

    /// Sleeps until pending entries were added since [`Table::commits`] was `seen`, in any mailbox.
    pub fn wait_for_commits(&self, seen: u32, limit: Duration) -> Waited {
        let mark = &self.map.header().commits.0;
        self.sleep_on(mark, limit, || None, || mark.ticket() != seen)
    }

    /// Sleeps on a word until `done`. `at_most` says in how many milliseconds something ends by
    /// itself, without anyone who wakes.
    fn sleep_on(
        &self,
        mark: &Mark,
        limit: Duration,
        at_most: impl Fn() -> Option<u64>,
        done: impl Fn() -> bool,
    ) -> Waited {
        let end = Instant::now() + limit;
        loop {
            mark.enter();
            let ticket = mark.ticket();
            if done() {
                mark.leave();
                return Waited::Done;
            }
            let mut sleep = LOOK_UP.min(end.saturating_duration_since(Instant::now()));
            if let Some(left) = at_most() {
                sleep = sleep.min(Duration::from_millis(left));
            }
            let interrupted = futex_wait(mark.futex(), ticket, sleep);
            mark.leave();
            if done() {
                return Waited::Done;
            }
            if interrupted {
                return Waited::Interrupted;
            }
            if Instant::now() >= end {
                return Waited::TimedOut;
            }
            if !self.is_current() {
                return Waited::Replaced;
            }
        }
    }

    fn count_wait(&self, ms: u64, timed_out: bool) {
        let counters = &self.map.header().counters;
        add(&counters.waits, 1);
        add(&counters.wait_ms, ms);
        add(&counters.timeouts, u64::from(timed_out));
        let bucket = WAIT_BUCKETS_MS.iter().position(|bound| ms <= *bound);
        add(
            &counters.wait_buckets[bucket.unwrap_or(WAIT_BUCKETS_MS.len())],
            1,
        );
    }
}

impl Writer<'_> {
    /// Takes the waits out that an advance to `uid` ends.
    pub fn end_waits(&self, slot: &Slot, uid: u32) -> Result<(), Error> {
        let mut index = slot.waits.load(Relaxed);
        for _ in 0..self.pool().unused.load(Relaxed) {
            if index == 0 {
                return Ok(());
            }
            let wait: &WaitCell = self.map.block(index, 0)?;
            let next = wait.next.load(Relaxed);
            if wait.uid.load(Relaxed) <= uid {
                self.unlink_wait(slot, index, wait)?;
            }
            index = next;
        }
        Err(self.map.damaged("a list of waits has no end"))
    }

    /// Takes a wait out of its list and frees its block.
    pub fn unlink_wait(&self, slot: &Slot, index: u32, wait: &WaitCell) -> Result<(), Error> {
        let (next, prev) = (wait.next.load(Relaxed), wait.prev.load(Relaxed));
        match prev {
            0 => slot.waits.store(next, Release),
            prev => {
                let prev: &WaitCell = self.map.block(prev, 0)?;
                prev.next.store(next, Release);
            }
        }
        if next != 0 {
            let next: &WaitCell = self.map.block(next, 0)?;
            next.prev.store(prev, Relaxed);
        }
        wait.tag.store(0, Relaxed);
        self.release(index, 0)
    }
}

/// Milliseconds since boot, time asleep included: the clock of leases and ages.
pub(super) fn now_ms() -> u64 {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: a valid timespec to fill in; this clock exists on every Linux since 2.6.39.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &mut now) };
    now.tv_sec as u64 * 1000 + now.tv_nsec as u64 / 1_000_000
}

/// Whether a process exists, also one that may not be signalled.
pub(super) fn is_alive(pid: u32) -> bool {
    let Ok(pid) = libc::pid_t::try_from(pid) else {
        return false;
    };
    // SAFETY: signal 0 only asks.
    let result = unsafe { libc::kill(pid, 0) };
    pid > 0 && (result == 0 || std::io::Error::last_os_error().raw_os_error() == Some(libc::EPERM))
}

/// Sleeps while `word` is `value`, for at most `limit`. Returns whether a signal came.
fn futex_wait(word: &AtomicU32, value: u32, limit: Duration) -> bool {
    let limit = libc::timespec {
        tv_sec: limit.as_secs() as libc::time_t,
        tv_nsec: limit.subsec_nanos() as libc::c_long,
    };
    // Not FUTEX_WAIT_PRIVATE: the waker is another process.
    // SAFETY: the word is mapped and aligned, the time-out outlives the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_futex,
            word.as_ptr(),
            libc::FUTEX_WAIT,
            value,
            &raw const limit,
        )
    };
    result != 0 && std::io::Error::last_os_error().raw_os_error() == Some(libc::EINTR)
}

/// Wakes everyone who sleeps on the word.
pub(super) fn futex_wake(word: &AtomicU32) {
    // SAFETY: the word is mapped and aligned.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, i32::MAX) };
}

/// What an operator watches.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts {
    /// Mailboxes in the table.
    pub mailboxes: u32,
    /// Pending entries of all of them.
    pub pending: u64,
    /// Waits for UIDs that ended.
    pub waits: u64,
    /// Those of them that ended by their time-out.
    pub timeouts: u64,
    /// Commits that waited for a gate.
    pub gate_waits: u64,
    /// Commits that waited for UIDs, since there were as many that are not stable as can be.
    pub limit_waits: u64,
    /// Commits that were refused since they would have changed what was promised.
    pub refusals: u64,
    /// Times a watermark rose.
    pub advances: u64,
    /// Repairs after a process was killed in the table.
    pub repairs: u64,
    /// Milliseconds of all waits together.
    pub wait_ms: u64,
    /// Waits that took at most so many milliseconds ([`WAIT_BUCKETS_MS`]) and more than those of
    /// the bucket before; the last has the rest.
    pub wait_buckets: [u64; WAIT_BUCKETS_MS.len() + 1],
    /// Bytes of the file.
    pub size: u64,
}

impl Table {
    /// The counters, since the table was made.
    pub fn counts(&self) -> Counts {
        let header = self.map.header();
        let counters = &header.counters;
        let read = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            mailboxes: header.boxes.0.count.load(Ordering::Relaxed),
            pending: read(&header.boxes.0.pending),
            waits: read(&counters.waits),
            timeouts: read(&counters.timeouts),
            gate_waits: read(&counters.gate_waits),
            limit_waits: read(&counters.limit_waits),
            refusals: read(&counters.refusals),
            advances: read(&counters.advances),
            repairs: read(&counters.repairs),
            wait_ms: read(&counters.wait_ms),
            wait_buckets: std::array::from_fn(|i| read(&counters.wait_buckets[i])),
            size: read(&header.pool.0.size),
        }
    }
}
