//! The UID-assignment table for C: a mailbox's watermark and who waits for it, and the other
//! side, who moves it.

#![allow(non_camel_case_types)]

use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use libc::c_char;
use parking_lot::RwLock;

use super::boundary::imap_xid_error::*;
use super::boundary::{Failure, boundary, free, given, given_mut, octets, put, put_text, status};
use super::registry::{
    IMAP_XID_UID_SOURCE_CLUSTER, IMAP_XID_UID_SOURCE_LOCAL, Root, argument, box_guid, c_text,
    checked_entries, imap_xid_box, imap_xid_entry, imap_xid_root,
};
use super::xid::IMAP_XID_NAMESPACE_SIZE;
use crate::log::{self, Level};
use crate::registry::Registry;
use crate::table::{
    Advanced, Begin, Counts, Current, Entry, Error, Info, LockError, MESSAGE_GUID_MAX, Mailbox,
    Opened, Pending, Table, Tail, WAIT_BUCKETS_MS, WaitId, Waited, Waiter,
};
use crate::uid::UidSet;

/// Room for the longest message GUID and a NUL.
pub const IMAP_XID_GUID_SIZE: usize = 256;

/// Room for a mailbox name and a NUL; longer ones are cut.
pub const IMAP_XID_NAME_SIZE: usize = 256;

/// Buckets of the histogram of waits: up to 1, 3, 10, 30, 100, 300 milliseconds, 1, 3, 10, 30,
/// 100, 300 seconds, and longer.
pub const IMAP_XID_WAIT_BUCKETS: usize = 13;

const _: () = assert!(IMAP_XID_GUID_SIZE == MESSAGE_GUID_MAX + 1);
const _: () = assert!(IMAP_XID_WAIT_BUCKETS == WAIT_BUCKETS_MS.len() + 1);

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let code = match &error {
            Error::Io { source, .. } => match source.raw_os_error() {
                Some(libc::ENOSPC | libc::EDQUOT | libc::EFBIG) => IMAP_XID_ERR_FULL,
                _ => IMAP_XID_ERR_IO,
            },
            Error::NoBootId(_) | Error::Store { .. } => IMAP_XID_ERR_IO,
            Error::TooBig(_) => IMAP_XID_ERR_FULL,
            Error::Newer { .. } => IMAP_XID_ERR_NEWER,
            Error::Refused { .. } | Error::Damaged { .. } | Error::BadReservation { .. } => {
                IMAP_XID_ERR_BROKEN
            }
            Error::Lock { source, .. } => match source {
                LockError::Timeout(_) => IMAP_XID_ERR_BUSY,
                LockError::Unrecoverable | LockError::Pthread(_) => IMAP_XID_ERR_BROKEN,
            },
            Error::NumbersExhausted { .. } => IMAP_XID_ERR_EXHAUSTED,
            Error::OnHold { .. } | Error::Taken { .. } => IMAP_XID_ERR_BUSY,
            Error::OldUidvalidity { .. }
            | Error::NotAttached(_)
            | Error::NeverGiven { .. }
            | Error::LongGuid { .. } => IMAP_XID_ERR_ARGUMENT,
        };
        Failure::new(code, error.to_string())
    }
}

impl From<crate::uid::Error> for Failure {
    fn from(error: crate::uid::Error) -> Self {
        Failure::new(IMAP_XID_ERR_SYNTAX, error.to_string())
    }
}

/// Tells the administrator of a table that had to be made anew for a reason that is his business.
pub(crate) fn report(dir: &Path, opened: Opened) {
    if let Opened::Rebuilt(why) = opened {
        let text = format!(
            "{}: the UID-assignment table was damaged ({why}): it was made anew, what was there \
             is xid.table.broken",
            dir.display()
        );
        log::line(Level::Warning, &text);
    }
}

impl Root {
    /// Opens the table again if it was deleted or replaced.
    pub(crate) fn refresh_table(&self) {
        let Some(current) = &self.table else {
            return;
        };
        match current.refresh() {
            Ok(None) => {}
            Ok(Some(opened)) => report(current.dir(), opened),
            Err(e) => log::line(Level::Error, &format!("{e}; going on with the old table")),
        }
    }

    /// Forgets what watermarks an earlier uid_source left: clients see UIDs above them from here
    /// on, and a later uid_source must not show a lower UIDNEXT.
    pub(crate) fn forget_watermarks(&self) {
        if !self.registry.has_watermarks() {
            return;
        }
        let table = self.table.as_ref().map(Current::table);
        let forgotten = table
            .map_or(Ok(()), |table| table.forget_watermarks())
            .map_err(Failure::from)
            .and_then(|()| Ok(self.registry.forget_watermarks()?));
        let path = self.registry.path().display();
        match forgotten {
            Ok(()) => log::line(
                Level::Warning,
                &format!("{path}: uid_source is local: all UIDs are stable, watermarks forgotten"),
            ),
            Err(e) => log::line(Level::Error, &format!("{path}: watermarks: {}", e.text())),
        }
    }

    fn current(&self) -> Result<&Current, Failure> {
        self.table.as_ref().ok_or_else(|| {
            Failure::new(
                IMAP_XID_ERR_BROKEN,
                "the UID-assignment table could not be opened, as was logged",
            )
        })
    }
}

/// A mailbox's place in the table, once it was attached.
#[derive(Default)]
pub(crate) struct Attachment(RwLock<Option<Attached>>);

#[derive(Clone)]
struct Attached {
    mailbox: Mailbox,
    /// Of [`Current`]: another one means that the table was replaced.
    generation: u32,
}

impl imap_xid_box {
    fn has_place(&self) -> Result<bool, Failure> {
        if self.root.uid_source == IMAP_XID_UID_SOURCE_LOCAL {
            return Ok(false);
        }
        self.root.refresh_table();
        let table = self.root.current()?;
        let (guid, uidvalidity) = (self.mailbox.guid(), self.mailbox.uidvalidity());
        Ok(table.table().has_place(guid, uidvalidity)?)
    }

    fn attach(&self, last_uid: u32) -> Result<Tail, Failure> {
        let root = &self.root;
        root.refresh_table();
        let current = root.current()?;
        let generation = current.generation();
        // In a cluster nothing is stable before all said so.
        let begin = match root.uid_source {
            IMAP_XID_UID_SOURCE_CLUSTER => Begin::Cluster,
            _ => Begin::Stable,
        };
        let (mailbox, tail) = current.table().attach_from(
            self.mailbox.guid(),
            self.mailbox.uidvalidity(),
            self.mailbox.name().as_bytes(),
            last_uid,
            begin,
            &mut &*root.registry,
        )?;
        *self.attached.0.write() = Some(Attached {
            mailbox,
            generation,
        });
        Ok(tail)
    }

    /// The watermark; from the new table where the old one was replaced.
    fn watermark(&self) -> u32 {
        let attached = self.attached.0.read();
        let Some(place) = &*attached else {
            return 0;
        };
        let watermark = place.mailbox.watermark();
        let generation = self.root.table.as_ref().map(Current::generation);
        if generation == Some(place.generation) {
            return watermark;
        }
        drop(attached);
        // The registry has a durable watermark, so what is passed here is not used.
        if let Err(e) = self.attach(watermark) {
            log::line(Level::Error, &format!("watermark: {}", e.text()));
            return watermark;
        }
        let attached = self.attached.0.read();
        let new = attached
            .as_ref()
            .map_or(0, |place| place.mailbox.watermark());
        new.max(watermark)
    }

    pub(super) fn place(&self) -> Result<Mailbox, Failure> {
        let attached = self.attached.0.read();
        let place = attached.as_ref().map(|place| place.mailbox.clone());
        place.ok_or_else(|| argument("the mailbox was not attached (imap_xid_box_attach)"))
    }
}

/// Whether the table has the mailbox's watermark, so that imap_xid_box_attach() takes none from
/// `last_uid`. Loads only. Returns 1 or 0, or an error; 0 where the root's uid_source is local.
///
/// # Safety
/// `xbox` is a mailbox.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn imap_xid_box_has_place(xbox: *const imap_xid_box) -> i32 {
    status(|| {
        // SAFETY: the caller's promise.
        let xbox = unsafe { given(xbox, "xbox") }?;
        xbox.has_place().map(i32::from)
    })
}

/// Gives the mailbox its place in the table. Needed before any other call on its watermark; again
/// whenever the mailbox was opened anew. `last_uid` is the highest UID that was ever given in the
/// mailbox (its UIDNEXT - 1), also by others: a mailbox without a watermark starts there, with all
/// that it holds as stable; in a cluster it starts at 0, with nothing stable. The box must have
/// been opened with its UIDVALIDITY, and its root with a uid_source other than local.
///
/// Returns 0, or 1 when messages above the watermark may be missing from the table (after a
/// reboot, or because a process was killed right after its commit): then add all messages above
/// imap_xid_box_watermark() with imap_xid_box_pending_add(), and say imap_xid_box_pending_filled().
/// Or an error: then no UID above the last known watermark may be shown.
///
/// # Safety
/// `xbox` is a mailbox.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn imap_xid_box_attach(xbox: *mut imap_xid_box, last_uid: u32) -> i32 {
    status(|| {
        // SAFETY: the caller's promise.
        let xbox = unsafe { given(xbox, "xbox") }?;
        if xbox.root.uid_source == IMAP_XID_UID_SOURCE_LOCAL {
            return Err(argument(
                "the root was opened with uid_source local: every UID is stable at once, and \
                 nobody would move a watermark",
            ));
        }
        let tail = xbox.attach(last_uid)?;
        Ok(i32::from(tail != Tail::Whole))
    })
}

/// The watermark: every UID up to it is stable. A few loads; no lock, no system call. It never
/// goes down under one UIDVALIDITY. 0 when the mailbox was not attached.
///
/// # Safety
/// `xbox` is a mailbox.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn imap_xid_box_watermark(xbox: *const imap_xid_box) -> u32 {
    // SAFETY: the caller's promise.
    boundary(|| unsafe { given(xbox, "xbox") }.map_or(0, imap_xid_box::watermark))
}

/// Tells the table of messages that were just committed and whose UIDs are not stable, in the
/// order of their UIDs. Those at or below the watermark and those that are there already are
/// passed over.
///
/// Returns 0; or 1 when messages above the watermark may be missing, as imap_xid_box_attach() does
/// and with the same answer; or an error: the messages stay committed all the same, their UIDs
/// wait, and imap_xid_box_attach() will ask for them.
///
/// # Safety
/// `xbox` is a mailbox, `entries` points to `n` entries whose texts are valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn imap_xid_box_pending_add(
    xbox: *mut imap_xid_box,
    entries: *const imap_xid_entry,
    n: usize,
) -> i32 {
    status(|| {
        // SAFETY: the caller's promise.
        let (xbox, entries) = unsafe { (given(xbox, "xbox")?, checked_entries(entries, n)?) };
        let entries: Vec<Entry<'_>> = entries
            .iter()
            .map(|entry| Entry {
                uid: entry.uid,
                namespace: entry.xid.namespace().as_bytes(),
                number: entry.xid.number(),
                guid: &entry.guid[..entry.guid.len().min(MESSAGE_GUID_MAX)],
            })
            .collect();
        let tail = xbox.place()?.pending_add(&entries)?;
        Ok(i32::from(tail != Tail::Whole))
    })
}

/// Says that every message up to last_uid was added, or is expunged: the answer to a 1 of
/// imap_xid_box_attach().
///
/// Returns 0, or an error.
///
/// # Safety
/// `xbox` is a mailbox.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn imap_xid_box_pending_filled(
    xbox: *mut imap_xid_box,
    last_uid: u32,
) -> i32 {
    status(|| {
        // SAFETY: the caller's promise.
        unsafe { given(xbox, "xbox") }?.place()?.filled(last_uid)?;
        Ok(0)
    })
}

/// Takes a message out of the pending ones that was expunged.
///
/// Returns 1, 0 when it was not pending, or an error that need not stop anything.
///
/// # Safety
/// `xbox` is a mailbox.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn imap_xid_box_pending_remove(xbox: *mut imap_xid_box, uid: u32) -> i32 {
    status(|| {
        // SAFETY: the caller's promise.
        let place = unsafe { given(xbox, "xbox") }?.place()?;
        Ok(i32::from(place.pending_remove(uid)?))
    })
}

/// The lowest UID that is not stable, and for how many milliseconds it has been so.
///
/// Returns 1 and stores both, 0 when nothing is pending, or an error.
///
/// # Safety
/// `xbox` is a mailbox, `uid_out` and `age_ms_out` point to room for their values.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn imap_xid_box_oldest_pending(
    xbox: *mut imap_xid_box,
    uid_out: *mut u32,
    age_ms_out: *mut i64,
) -> i32 {
    status(|| {
        // SAFETY: the caller's promise.
        let place = unsafe { given(xbox, "xbox") }?.place()?;
        let Some((uid, age)) = place.oldest_pending()? else {
            return Ok(0);
        };
        // SAFETY: the caller's promise.
        unsafe {
            put(uid_out, uid, "uid_out")?;
            put(age_ms_out, signed(age), "age_ms_out")?;
        }
        Ok(1)
    })
}

/// Sleeps until every UID up to `uid` is stable, `timeout_ms` at most. For programs without an
/// event loop; others use imap_xid_waiter_open().
///
/// Returns 1 when it is so, 0 when the time is over or a signal came before (look at the clock),
/// or an error.
///
/// # Safety
/// `xbox` is a mailbox.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn imap_xid_box_wait(
    xbox: *mut imap_xid_box,
    uid: u32,
    timeout_ms: u32,
) -> i32 {
    status(|| {
        // SAFETY: the caller's promise.
        let xbox = unsafe { given(xbox, "xbox") }?;
        let end = std::time::Instant::now() + Duration::from_millis(timeout_ms.into());
        loop {
            let left = end.saturating_duration_since(std::time::Instant::now());
            let place = xbox.place()?;
            match place.wait(uid, left)? {
                Waited::Done => return Ok(1),
                Waited::TimedOut | Waited::Interrupted => return Ok(0),
                Waited::Replaced => {
                    xbox.attach(place.watermark())?;
                }
            }
        }
    })
}

/// A wait that was announced with imap_xid_box_wait_begin(). Its fields are the library's.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct imap_xid_wait {
    /// The library's own.
    pub index: u32,
    /// Not used.
    pub reserved: u32,
    /// When it began, in milliseconds since the boot.
    pub since: u64,
}

/// Announces that a command of this process waits for `uid`, so that operators and assigners see
/// it. To be paired with imap_xid_box_wait_end(); what a killed process leaves is forgotten. A
/// wait that cannot be announced is a wait all the same.
///
/// Returns 0, or an error that need not stop anything.
///
/// # Safety
/// `xbox` is a mailbox, `out` points to room for a struct imap_xid_wait.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn imap_xid_box_wait_begin(
    xbox: *mut imap_xid_box,
    uid: u32,
    out: *mut imap_xid_wait,
) -> i32 {
    status(|| {
        let none = imap_xid_wait {
            index: 0,
            reserved: 0,
            since: 0,
        };
        // SAFETY: the caller's promise.
        unsafe { put(out, none, "out") }?;
        // SAFETY: the caller's promise.
        let id = unsafe { given(xbox, "xbox") }?.place()?.wait_begin(uid)?;
        let (index, since) = id.to_raw();
        // SAFETY: the caller's promise.
        unsafe {
            put(
                out,
                imap_xid_wait {
                    index,
                    since,
                    ..none
                },
                "out",
            )
        }?;
        Ok(0)
    })
}

/// Ends an announced wait and counts it; `timed_out` not 0 when it ended by its time. One that
/// could not be announced is passed over.
///
/// Returns 0, or an error that need not stop anything.
///
/// # Safety
/// `xbox` is the mailbox of the wait, `wait` points to what imap_xid_box_wait_begin() stored.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn imap_xid_box_wait_end(
    xbox: *mut imap_xid_box,
    wait: *const imap_xid_wait,
    timed_out: u32,
) -> i32 {
    status(|| {
        // SAFETY: the caller's promise.
        let (xbox, wait) = unsafe { (given(xbox, "xbox")?, given(wait, "wait")?) };
        if wait.index == 0 {
            return Ok(0);
        }
        let id = WaitId::from_raw((wait.index, wait.since));
        xbox.place()?.wait_end(id, timed_out != 0)?;
        Ok(0)
    })
}

/// Whether new commits to the mailbox must wait: its gate is closed. A load when it is not.
///
/// Returns 0 when the gate is open, else for how many more milliseconds it is closed at most, or an
/// error, which counts as open.
///
/// # Safety
/// `xbox` is a mailbox.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn imap_xid_box_gate(xbox: *const imap_xid_box) -> i32 {
    status(|| {
        // SAFETY: the caller's promise.
        let xbox = unsafe { given(xbox, "xbox") }?;
        let attached = xbox.attached.0.read();
        let left = attached.as_ref().and_then(|a| a.mailbox.gate_closed());
        Ok(left.map_or(0, |ms| i32::try_from(ms).unwrap_or(i32::MAX).max(1)))
    })
}

/// Counts a commit that found the mailbox's gate closed and waits in its own event loop: for
/// imap_xid_box_gate() to return 0, which an imap_xid_waiter tells of unless the lease ran out.
///
/// Returns 0, or an error.
///
/// # Safety
/// `xbox` is a mailbox.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn imap_xid_box_gate_found_closed(xbox: *mut imap_xid_box) -> i32 {
    status(|| {
        // SAFETY: the caller's promise.
        unsafe { given(xbox, "xbox") }?.place()?.count_gate_wait();
        Ok(0)
    })
}

/// Whether the gate of some mailbox of the root may be closed: then imap_xid_box_gate() tells of
/// which. A load when none ever was.
///
/// Returns 0 when all are open, 1 when one may be closed, or an error, which counts as open.
///
/// # Safety
/// `root` is a root.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn imap_xid_root_gates(root: *const imap_xid_root) -> i32 {
    status(|| {
        // SAFETY: the caller's promise.
        let root = &unsafe { given(root, "root") }?.0;
        Ok(i32::from(root.current()?.table().gates_may_be_closed()))
    })
}

/// Sleeps until the mailbox's gate is open, by hand or because its lease is over, `timeout_ms` at
/// most; counts the wait if there is one. Hold no lock meanwhile.
///
/// Returns 1 when it is open, 0 when the time is over or a signal came before, or an error, which
/// counts as open.
///
/// # Safety
/// `xbox` is a mailbox.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn imap_xid_box_gate_wait(xbox: *mut imap_xid_box, timeout_ms: u32) -> i32 {
    status(|| {
        // SAFETY: the caller's promise.
        let place = unsafe { given(xbox, "xbox") }?.place()?;
        let waited = place.wait_for_gate(Duration::from_millis(timeout_ms.into()));
        // A table that is gone has no gate.
        Ok(i32::from(matches!(waited, Waited::Done | Waited::Replaced)))
    })
}

/// Up to which UID this node promised its peers to renumber nothing. UINT32_MAX: not known since
/// the boot, so everything counts as promised. Loads only.
///
/// # Safety
/// `xbox` is a mailbox.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn imap_xid_box_promised(xbox: *const imap_xid_box) -> u32 {
    boundary(|| {
        // SAFETY: the caller's promise.
        let Ok(xbox) = (unsafe { given(xbox, "xbox") }) else {
            return u32::MAX;
        };
        let attached = xbox.attached.0.read();
        let promised = attached.as_ref().and_then(|a| a.mailbox.promised());
        promised.unwrap_or(u32::MAX)
    })
}

/// Notes in the table that this node promises to renumber nothing up to `uid`; a lower one than
/// before takes back, and what was expunged above it was not stable. For the cluster daemon's side,
/// under the mailbox's own rules for it.
///
/// Returns 0, or an error: then nothing was promised that was not before.
///
/// # Safety
/// `xbox` is a mailbox.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn imap_xid_box_promise(xbox: *mut imap_xid_box, uid: u32) -> i32 {
    status(|| {
        // SAFETY: the caller's promise.
        let xbox = unsafe { given(xbox, "xbox") }?;
        let place = xbox.place()?;
        let before = place.firm();
        place.promise(uid)?;
        if place.firm() < before {
            xbox.root.registry.take_back(&xbox.mailbox, place.firm())?;
        }
        Ok(0)
    })
}

/// The highest UID that the table knows to be given in the mailbox; 0 when it was not attached.
/// A load.
///
/// # Safety
/// `xbox` is a mailbox.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn imap_xid_box_last_uid(xbox: *const imap_xid_box) -> u32 {
    boundary(|| {
        // SAFETY: the caller's promise.
        let attached = unsafe { given(xbox, "xbox") }.map(|xbox| xbox.attached.0.read());
        let attached = attached.as_ref().ok().and_then(|guard| guard.as_ref());
        attached.map_or(0, |a| a.mailbox.last_uid())
    })
}

/// The highest UID that a new message may get here. 0: nobody said so yet; in a cluster there is no
/// room for new messages until the daemon does. Loads only.
///
/// # Safety
/// `xbox` is a mailbox.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn imap_xid_box_limit(xbox: *const imap_xid_box) -> u32 {
    boundary(|| {
        // SAFETY: the caller's promise.
        let attached = unsafe { given(xbox, "xbox") }.map(|xbox| xbox.attached.0.read());
        let attached = attached.as_ref().ok().and_then(|guard| guard.as_ref());
        attached.and_then(|a| a.mailbox.limit()).unwrap_or(0)
    })
}

/// The highest UID that replication may bring here. 0: not known since the boot. Loads only.
///
/// # Safety
/// `xbox` is a mailbox.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn imap_xid_box_bound(xbox: *const imap_xid_box) -> u32 {
    boundary(|| {
        // SAFETY: the caller's promise.
        let attached = unsafe { given(xbox, "xbox") }.map(|xbox| xbox.attached.0.read());
        let attached = attached.as_ref().ok().and_then(|guard| guard.as_ref());
        attached.and_then(|a| a.mailbox.bound()).unwrap_or(0)
    })
}

/// Says how far UIDs may go, of new messages (limit) and by replication (bound); 0: not known.
/// Wakes who waits for room. For the cluster daemon's side. Lost with a reboot; the limit then is a
/// little above the watermark.
///
/// Returns 0, or an error.
///
/// # Safety
/// `xbox` is a mailbox.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn imap_xid_box_set_limits(
    xbox: *mut imap_xid_box,
    limit: u32,
    bound: u32,
) -> i32 {
    status(|| {
        // SAFETY: the caller's promise.
        let place = unsafe { given(xbox, "xbox") }?.place()?;
        place.set_limits(limit, bound)?;
        Ok(0)
    })
}

/// Sleeps until somebody said that new messages may have UIDs up to `uid`, `timeout_ms` at most; counts the wait if
/// there is one. Hold no lock meanwhile.
///
/// Returns 1 when they may, 0 when the time is over or a signal came before, or an error, which
/// counts as 1.
///
/// # Safety
/// `xbox` is a mailbox.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn imap_xid_box_limit_wait(
    xbox: *mut imap_xid_box,
    uid: u32,
    timeout_ms: u32,
) -> i32 {
    status(|| {
        // SAFETY: the caller's promise.
        let place = unsafe { given(xbox, "xbox") }?.place()?;
        let waited = place.wait_for_limit(uid, Duration::from_millis(timeout_ms.into()));
        Ok(i32::from(matches!(waited, Waited::Done | Waited::Replaced)))
    })
}

/// Counts a commit that was refused since it would have changed what is stable or promised.
///
/// Returns 0, or an error that need not stop anything.
///
/// # Safety
/// `xbox` is a mailbox.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn imap_xid_box_count_refusal(xbox: *mut imap_xid_box) -> i32 {
    status(|| {
        // SAFETY: the caller's promise.
        unsafe { given(xbox, "xbox") }?.place()?.count_refusal();
        Ok(0)
    })
}

/// As imap_xid_table_advance(), for a mailbox at hand: makes every UID up to `uid` stable,
/// durably, and wakes who waits for them. The watermark never goes down.
///
/// Returns as imap_xid_table_advance().
///
/// # Safety
/// `xbox` is a mailbox.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn imap_xid_box_advance(xbox: *mut imap_xid_box, uid: u32) -> i32 {
    status(|| {
        // SAFETY: the caller's promise.
        let xbox = unsafe { given(xbox, "xbox") }?;
        let advanced = xbox.place()?.advance(uid, &mut &*xbox.root.registry)?;
        Ok(i32::from(matches!(advanced, Advanced::From(_))))
    })
}

/// Closes the mailbox's gate: new commits wait, for `lease_ms` milliseconds from now at most; 0
/// opens it. `owner` says who: any number but 0 that the same program uses again, from whichever
/// of its processes. Call again before the lease ends to go on.
///
/// Returns 0, or an error: IMAP_XID_ERR_BUSY when another owner closed it.
///
/// # Safety
/// `xbox` is a mailbox.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn imap_xid_box_close_gate(
    xbox: *mut imap_xid_box,
    owner: u64,
    lease_ms: u64,
) -> i32 {
    status(|| {
        // SAFETY: the caller's promise.
        let place = unsafe { given(xbox, "xbox") }?.place()?;
        if owner == 0 {
            return Err(argument("owner is 0"));
        }
        match lease_ms {
            0 => place.open_gate(owner)?,
            _ => place.close_gate(owner, lease_ms)?,
        }
        Ok(0)
    })
}

/// What wakes a process that waits in an event loop. Made by imap_xid_waiter_open(), ended by
/// imap_xid_waiter_close().
pub struct imap_xid_waiter {
    waiter: Waiter,
    root: Arc<Root>,
}

/// Makes something for an event loop to watch: from here on it is readable after every advance of
/// any mailbox in the root, and whenever a gate opens. One for each process and root does; keep it
/// only while something waits. Look at the watermark once after this call, for an advance that
/// came before. Starts no thread.
///
/// Returns 0 and the waiter in `*out`, or an error.
///
/// # Safety
/// `root` is a root, `out` points to room for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn imap_xid_waiter_open(
    root: *mut imap_xid_root,
    out: *mut *mut imap_xid_waiter,
) -> i32 {
    status(|| {
        // SAFETY: the caller's promise.
        unsafe { put(out, std::ptr::null_mut(), "out") }?;
        // SAFETY: the caller's promise.
        let root = &unsafe { given(root, "root") }?.0;
        root.refresh_table();
        let waiter = Waiter::open(&root.current()?.table())?;
        let waiter = imap_xid_waiter {
            waiter,
            root: Arc::clone(root),
        };
        // SAFETY: the caller's promise.
        unsafe { put(out, Box::into_raw(Box::new(waiter)), "out") }?;
        Ok(0)
    })
}

/// The descriptor to watch for reading. It belongs to the waiter.
///
/// # Safety
/// `waiter` is a waiter.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn imap_xid_waiter_fd(waiter: *const imap_xid_waiter) -> i32 {
    status(|| {
        // SAFETY: the caller's promise.
        let waiter = unsafe { given(waiter, "waiter") }?;
        Ok(waiter.waiter.fd().as_raw_fd())
    })
}

/// To be called when the descriptor is readable, before looking at the watermarks.
///
/// Returns 0, or 1 when the waiter will not be woken any more since somebody removed its file:
/// close it and open another.
///
/// # Safety
/// `waiter` is a waiter.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn imap_xid_waiter_drain(waiter: *mut imap_xid_waiter) -> i32 {
    status(|| {
        // SAFETY: the caller's promise.
        let waiter = unsafe { given(waiter, "waiter") }?;
        let linked = waiter.waiter.drain();
        // The next table rings the FIFOs of the folder, ours too; the boxes attach by themselves.
        waiter.root.refresh_table();
        Ok(i32::from(!linked))
    })
}

/// Ends a waiter. NULL is fine. Stop watching its descriptor before.
///
/// # Safety
/// `waiter` is NULL or a waiter that is not used again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn imap_xid_waiter_close(waiter: *mut imap_xid_waiter) {
    // SAFETY: the caller's promise.
    boundary(|| unsafe { free(waiter) })
}

/// Whether a command with this set of UIDs (as "1:4,9,12:*") must wait. `last_uid` is the UID of
/// the last message that is there as the command comes. Sets that hosts accept beyond the grammar
/// are judged too.
///
/// Returns 0 when it need not, or 1 and stores until the watermark is at which UID; or
/// IMAP_XID_ERR_SYNTAX.
///
/// # Safety
/// `set` points to `len` octets, `wait_for_uid_out` to room for a UID.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn imap_xid_uidset_reach(
    set: *const c_char,
    len: usize,
    watermark: u32,
    last_uid: u32,
    wait_for_uid_out: *mut u32,
) -> i32 {
    status(|| {
        // SAFETY: the caller's promise.
        let set = UidSet::parse(unsafe { octets(set, len) }?)?;
        let Some(uid) = set.reach(watermark, last_uid) else {
            return Ok(0);
        };
        // SAFETY: the caller's promise.
        unsafe { put(wait_for_uid_out, uid, "wait_for_uid_out") }?;
        Ok(1)
    })
}

/// Cuts a set of UIDs down to what was there when the last message had the UID `last_uid`: "*"
/// becomes that UID, what lies above goes. What came while a command waited is then not its
/// business. Stores the set as text, NUL-terminated; "" when nothing is left of it.
///
/// Returns the octets without the NUL, IMAP_XID_ERR_SPACE when `out` is too small (6 octets for
/// each octet of the set and 1 are always enough), or IMAP_XID_ERR_SYNTAX.
///
/// # Safety
/// `set` points to `len` octets, `out` to `out_size` octets of room.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn imap_xid_uidset_clamp(
    set: *const c_char,
    len: usize,
    last_uid: u32,
    out: *mut c_char,
    out_size: usize,
) -> i32 {
    status(|| {
        // SAFETY: the caller's promise.
        let set = UidSet::parse(unsafe { octets(set, len) }?)?;
        // SAFETY: the caller's promise.
        unsafe { put_text(&set.clamp(last_uid).to_string(), out, out_size) }
    })
}

/// A mail root's table as an assigner uses it, who says which UIDs are stable. Made by
/// imap_xid_table_open(), ended by imap_xid_table_close(). One thread at a time.
pub struct imap_xid_table {
    current: Current,
    registry: Registry,
    /// What imap_xid_table_next() has still to give.
    rest: Vec<Mailbox>,
    /// Whether a round of imap_xid_table_next() is under way.
    listing: bool,
    /// How many commits imap_xid_table_wait() saw.
    commits: u32,
}

/// What the table says of a mailbox.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct imap_xid_table_box {
    /// The mailbox GUID.
    pub guid: [u8; 16],
    /// What all UIDs here are of.
    pub uidvalidity: u32,
    /// Every UID up to here is stable.
    pub watermark: u32,
    /// The highest UID that is known to be given: no advance goes above it.
    pub last_uid: u32,
    /// Messages above the watermark.
    pub pending: u32,
    /// Not 0: some of them may be missing from the table until a host process next opens the
    /// mailbox, since the one that committed them was killed.
    pub missing: u32,
    /// Commands that wait for UIDs.
    pub waiters: u32,
    /// Up to here the node promised to renumber nothing; UINT32_MAX: everything counts.
    pub promised: u32,
    /// The highest UID that a new message may get; 0: not known since the boot.
    pub limit: u32,
    /// The highest UID that replication may bring; 0: not known since the boot.
    pub bound: u32,
    /// Not used.
    pub reserved: u32,
    /// For how many milliseconds the lowest pending UID has been pending; -1: nothing is.
    pub oldest_pending_ms: i64,
    /// For how many milliseconds the first of the waiters has waited; -1: none.
    pub oldest_wait_ms: i64,
    /// For how many more milliseconds the gate is closed; 0: it is open.
    pub gate_ms: u64,
    /// For how many more milliseconds the mailbox is on hold; 0: it is not.
    pub hold_ms: u64,
    /// The name, NUL-terminated, as it was when the mailbox was last opened.
    pub name: [c_char; IMAP_XID_NAME_SIZE],
}

/// A message whose UID is not stable.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct imap_xid_pending {
    /// Its UID.
    pub uid: u32,
    /// Octets of the GUID; 0 when it is not known.
    pub guid_len: u32,
    /// The number of its XID; 0 when it has none.
    pub number: u64,
    /// For how many milliseconds it has been pending.
    pub age_ms: i64,
    /// The namespace of its XID, NUL-terminated.
    pub ns: [c_char; IMAP_XID_NAMESPACE_SIZE],
    /// The message GUID, NUL-terminated.
    pub guid: [c_char; IMAP_XID_GUID_SIZE],
}

/// What an operator watches, since the table was made (a boot, mostly).
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct imap_xid_counters {
    /// Mailboxes in the table.
    pub mailboxes: u64,
    /// Messages whose UIDs are not stable, in all mailboxes.
    pub pending: u64,
    /// Waits for UIDs that ended, however they did.
    pub waits: u64,
    /// Those of them that ended by their time-out.
    pub timeouts: u64,
    /// Commits that waited for a gate.
    pub gate_waits: u64,
    /// Commits that waited for UIDs, since there were as many that are not stable as can be.
    pub limit_waits: u64,
    /// Commits that were refused since they would have changed what is stable or promised.
    pub refusals: u64,
    /// Times that a watermark rose.
    pub advances: u64,
    /// Repairs after a process was killed while it changed the table.
    pub repairs: u64,
    /// Milliseconds of all waits together.
    pub wait_ms: u64,
    /// Waits by how long they took.
    pub wait_buckets: [u64; IMAP_XID_WAIT_BUCKETS],
}

/// Opens a mail root's table for an assigner. `dir` is NUL-terminated and must exist.
///
/// Returns 0 and the table in `*out`, or an error.
///
/// # Safety
/// `dir` is a C string, `out` points to room for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn imap_xid_table_open(
    dir: *const c_char,
    out: *mut *mut imap_xid_table,
) -> i32 {
    status(|| {
        // SAFETY: the caller's promise.
        unsafe { put(out, std::ptr::null_mut(), "out") }?;
        // SAFETY: the caller's promise.
        let table = open_table(unsafe { c_text(dir, "dir") }?)?;
        // SAFETY: the caller's promise.
        unsafe { put(out, Box::into_raw(Box::new(table)), "out") }?;
        Ok(0)
    })
}

fn open_table(dir: &[u8]) -> Result<imap_xid_table, Failure> {
    use std::os::unix::ffi::OsStrExt;
    // A registry is asked for watermarks only here, and those belong to no namespace.
    const NO_NAMESPACE: &str = "assigner";
    let dir = PathBuf::from(std::ffi::OsStr::from_bytes(dir));
    let (current, opened) = Current::open(&dir)?;
    report(&dir, opened);
    let registry = Registry::new(&dir, NO_NAMESPACE)?;
    let commits = current.table().commits();
    Ok(imap_xid_table {
        current,
        registry,
        rest: Vec::new(),
        listing: false,
        commits,
    })
}

impl imap_xid_table {
    /// The table, opened again if it was deleted or replaced.
    fn table(&self) -> Result<Arc<Table>, Failure> {
        if let Some(opened) = self.current.refresh()? {
            report(self.current.dir(), opened);
        }
        Ok(self.current.table())
    }

    fn mailbox(&self, guid: &[u8; 16]) -> Result<Mailbox, Failure> {
        let not_attached = || Error::NotAttached(crate::table::guid_text(guid));
        Ok(self.table()?.find(guid)?.ok_or_else(not_attached)?)
    }
}

/// Ends a table. NULL is fine.
///
/// # Safety
/// `table` is NULL or a table that is not used again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn imap_xid_table_close(table: *mut imap_xid_table) {
    // SAFETY: the caller's promise.
    boundary(|| unsafe { free(table) })
}

/// Gives the mailboxes of the table one by one: those that were opened since the boot. After the
/// last one comes a 0, and then the first one again.
///
/// Returns 1 and stores a mailbox, 0 after the last, or an error.
///
/// # Safety
/// `table` is a table, `out` points to room for a struct imap_xid_table_box.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn imap_xid_table_next(
    table: *mut imap_xid_table,
    out: *mut imap_xid_table_box,
) -> i32 {
    status(|| {
        // SAFETY: the caller's promise.
        let table = unsafe { given_mut(table, "table") }?;
        if !table.listing {
            table.rest = table.table()?.mailboxes()?;
            table.listing = true;
        }
        let Some(mailbox) = table.rest.pop() else {
            table.listing = false;
            return Ok(0);
        };
        // SAFETY: the caller's promise.
        unsafe { put(out, box_for_c(&mailbox.info()?), "out") }?;
        Ok(1)
    })
}

/// One mailbox of the table.
///
/// Returns 1 and stores it, 0 when the table does not have it, or an error.
///
/// # Safety
/// `table` is a table, `guid` points to 16 octets, `out` to room for a struct imap_xid_table_box.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn imap_xid_table_find(
    table: *mut imap_xid_table,
    guid: *const u8,
    out: *mut imap_xid_table_box,
) -> i32 {
    status(|| {
        // SAFETY: the caller's promise.
        let (table, guid) = unsafe { (given(table, "table")?, box_guid(guid)?) };
        let Some(mailbox) = table.table()?.find(&guid)? else {
            return Ok(0);
        };
        // SAFETY: the caller's promise.
        unsafe { put(out, box_for_c(&mailbox.info()?), "out") }?;
        Ok(1)
    })
}

/// Gives what is pending in a mailbox, by ascending UID: the messages with UIDs above `above`, at
/// most `room` of them. Ask again with the last UID for more.
///
/// Returns how many were stored (0: there are no more), or an error.
///
/// # Safety
/// `table` is a table, `guid` points to 16 octets, `out` to room for `room` entries.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn imap_xid_table_pending(
    table: *mut imap_xid_table,
    guid: *const u8,
    above: u32,
    out: *mut imap_xid_pending,
    room: usize,
) -> i32 {
    status(|| {
        // SAFETY: the caller's promise.
        let (table, guid) = unsafe { (given(table, "table")?, box_guid(guid)?) };
        let page = table.mailbox(&guid)?.pending(above)?;
        let count = page.len().min(room);
        for (i, pending) in page.iter().take(count).enumerate() {
            // SAFETY: the caller's promise; `i` is below `room`.
            unsafe { put(out.wrapping_add(i), pending_for_c(pending), "out") }?;
        }
        Ok(count as i32)
    })
}

/// Makes every UID of a mailbox up to `uid` stable, durably, and wakes who waits for them. The
/// watermark never goes down. A UID above the highest that was given is refused; so is a mailbox
/// that is on hold.
///
/// Returns 1 when the watermark rose, 0 when it was there or above already, or an error.
///
/// # Safety
/// `table` is a table, `guid` points to 16 octets.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn imap_xid_table_advance(
    table: *mut imap_xid_table,
    guid: *const u8,
    uid: u32,
) -> i32 {
    status(|| {
        // SAFETY: the caller's promise.
        let (table, guid) = unsafe { (given(table, "table")?, box_guid(guid)?) };
        let advanced = table.mailbox(&guid)?.advance(uid, &mut &table.registry)?;
        Ok(i32::from(matches!(advanced, Advanced::From(_))))
    })
}

/// Holds a mailbox: no advance, whoever's, is allowed for `lease_ms` milliseconds from now; 0
/// releases it, whoever holds it. Call again before the lease ends to go on.
///
/// Returns 0, or an error: IMAP_XID_ERR_BUSY when another process holds it.
///
/// # Safety
/// `table` is a table, `guid` points to 16 octets.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn imap_xid_table_hold(
    table: *mut imap_xid_table,
    guid: *const u8,
    lease_ms: u64,
) -> i32 {
    status(|| {
        // SAFETY: the caller's promise.
        let (table, guid) = unsafe { (given(table, "table")?, box_guid(guid)?) };
        let mailbox = table.mailbox(&guid)?;
        match lease_ms {
            0 => mailbox.release(0)?,
            _ => mailbox.hold(std::process::id().into(), lease_ms)?,
        }
        Ok(0)
    })
}

/// Closes a mailbox's gate: new commits wait, for `lease_ms` milliseconds from now at most; 0
/// opens it, whoever closed it. Call again before the lease ends to go on.
///
/// Returns 0, or an error: IMAP_XID_ERR_BUSY when another process closed it.
///
/// # Safety
/// `table` is a table, `guid` points to 16 octets.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn imap_xid_table_gate(
    table: *mut imap_xid_table,
    guid: *const u8,
    lease_ms: u64,
) -> i32 {
    status(|| {
        // SAFETY: the caller's promise.
        let (table, guid) = unsafe { (given(table, "table")?, box_guid(guid)?) };
        let mailbox = table.mailbox(&guid)?;
        match lease_ms {
            0 => mailbox.open_gate(0)?,
            _ => mailbox.close_gate(std::process::id().into(), lease_ms)?,
        }
        Ok(0)
    })
}

/// Notes that this node promises to renumber nothing up to `uid` in a mailbox; a lower one than
/// before takes back.
///
/// Returns 0, or an error: then nothing was promised.
///
/// # Safety
/// `table` is a table, `guid` points to 16 octets.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn imap_xid_table_promise(
    table: *mut imap_xid_table,
    guid: *const u8,
    uid: u32,
) -> i32 {
    status(|| {
        // SAFETY: the caller's promise.
        let (table, guid) = unsafe { (given(table, "table")?, box_guid(guid)?) };
        table.mailbox(&guid)?.promise(uid)?;
        Ok(0)
    })
}

/// Says how far UIDs may go in a mailbox, of new messages (limit) and by replication (bound); 0:
/// not known. Wakes who waits for room. Lost with a reboot.
///
/// Returns 0, or an error.
///
/// # Safety
/// `table` is a table, `guid` points to 16 octets.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn imap_xid_table_set_limits(
    table: *mut imap_xid_table,
    guid: *const u8,
    limit: u32,
    bound: u32,
) -> i32 {
    status(|| {
        // SAFETY: the caller's promise.
        let (table, guid) = unsafe { (given(table, "table")?, box_guid(guid)?) };
        table.mailbox(&guid)?.set_limits(limit, bound)?;
        Ok(0)
    })
}

/// Sleeps until messages became pending in any mailbox since the last call (or since the table
/// was opened), `timeout_ms` at most.
///
/// Returns 1 when some did, 0 when the time is over or a signal came before, or an error.
///
/// # Safety
/// `table` is a table.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn imap_xid_table_wait(table: *mut imap_xid_table, timeout_ms: u32) -> i32 {
    status(|| {
        // SAFETY: the caller's promise.
        let table = unsafe { given_mut(table, "table") }?;
        let generation = table.current.generation();
        let now = table.table()?;
        let limit = Duration::from_millis(timeout_ms.into());
        // Another table counts anew, and all that it has is new.
        let waited = match table.current.generation() == generation {
            true => now.wait_for_commits(table.commits, limit),
            false => Waited::Replaced,
        };
        table.commits = table.table()?.commits();
        Ok(i32::from(matches!(waited, Waited::Done | Waited::Replaced)))
    })
}

/// Stores the table's counters.
///
/// Returns 0, or an error.
///
/// # Safety
/// `table` is a table, `out` points to room for a struct imap_xid_counters.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn imap_xid_table_counters(
    table: *mut imap_xid_table,
    out: *mut imap_xid_counters,
) -> i32 {
    status(|| {
        // SAFETY: the caller's promise.
        let counts = unsafe { given(table, "table") }?.table()?.counts();
        // SAFETY: the caller's promise.
        unsafe { put(out, counters_for_c(&counts), "out") }?;
        Ok(0)
    })
}

fn counters_for_c(counts: &Counts) -> imap_xid_counters {
    imap_xid_counters {
        mailboxes: counts.mailboxes.into(),
        pending: counts.pending,
        waits: counts.waits,
        timeouts: counts.timeouts,
        gate_waits: counts.gate_waits,
        limit_waits: counts.limit_waits,
        refusals: counts.refusals,
        advances: counts.advances,
        repairs: counts.repairs,
        wait_ms: counts.wait_ms,
        wait_buckets: counts.wait_buckets,
    }
}

fn box_for_c(info: &Info) -> imap_xid_table_box {
    imap_xid_table_box {
        guid: info.guid,
        uidvalidity: info.uidvalidity,
        watermark: info.watermark.unwrap_or(0),
        last_uid: info.last_uid,
        pending: info.pending,
        missing: u32::from(info.tail != Tail::Whole),
        waiters: info.waiters,
        promised: info.promised.unwrap_or(u32::MAX),
        limit: info.limit.unwrap_or(0),
        bound: info.bound.unwrap_or(0),
        reserved: 0,
        oldest_pending_ms: info.oldest_pending.map_or(-1, |(_, age)| signed(age)),
        oldest_wait_ms: info.oldest_wait_ms.map_or(-1, signed),
        gate_ms: info.gate.map_or(0, |(_, left)| left),
        hold_ms: info.hold.map_or(0, |(_, left)| left),
        name: text_for_c(&info.name),
    }
}

pub(super) fn pending_for_c(pending: &Pending) -> imap_xid_pending {
    imap_xid_pending {
        uid: pending.uid,
        guid_len: pending.guid.len() as u32,
        number: pending.number,
        age_ms: signed(pending.age_ms),
        ns: text_for_c(&pending.namespace),
        guid: text_for_c(&pending.guid),
    }
}

/// A text in an array of C's, cut where it must be, NUL-terminated.
pub(super) fn text_for_c<const N: usize>(text: &[u8]) -> [c_char; N] {
    let mut array = [0; N];
    for (to, from) in array[..N - 1].iter_mut().zip(text) {
        *to = *from as c_char;
    }
    array
}

fn signed(ms: u64) -> i64 {
    i64::try_from(ms).unwrap_or(i64::MAX)
}
