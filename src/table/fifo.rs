//! Waking processes that wait in an event loop: each has a FIFO in `xid.waiters/`, and every
//! advance in the mail root makes it readable. No thread, nothing to poll.
//!
//! The reader opens its FIFO for reading and writing, so that it never sees an end of file and so
//! that a FIFO without a living owner cannot be opened for writing (ENXIO): that is how the next
//! advance knows what a killed process left, and removes it.

use std::ffi::{CStr, CString, OsStr};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use super::{Error, Table};

/// The folder of the FIFOs in the mail root.
const FOLDER: &str = "xid.waiters";

/// In front of the name of a FIFO whose owner has not opened it yet.
const UNOPENED: &str = ".";

/// After this time a FIFO that nobody opened is a dead process's.
const UNOPENED_LIMIT: Duration = Duration::from_secs(60);

/// This process's FIFO in a mail root.
pub struct Waiter {
    fifo: File,
    path: PathBuf,
}

impl Waiter {
    /// Makes the FIFO. From here on it is readable after every advance in the mail root; look at
    /// the watermark once after this, for an advance that came before.
    pub fn open(table: &Table) -> Result<Waiter, Error> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let folder = folder_of(table.path());
        make_folder(&folder)?;
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        // The time tells this process from one of another pid namespace with the same id.
        let time = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default()
            .as_nanos();
        let name = format!("{}-{number}-{time:x}", std::process::id());
        let unopened = folder.join(format!("{UNOPENED}{name}"));
        let path = folder.join(name);
        let fifo = make_fifo(&unopened)?;
        // It gets its name when it has its reader: one without is taken for a dead process's.
        if let Err(e) = std::fs::rename(&unopened, &path) {
            let _ = std::fs::remove_file(&unopened);
            return Err(Error::io("name", &path, e));
        }
        table.map.header().fifos.0.arrived();
        Ok(Waiter { fifo, path })
    }

    /// The descriptor to watch for reading.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fifo.as_fd()
    }

    /// Empties the FIFO. Do this first, then look at the watermarks: the other way round loses
    /// an advance between the two.
    ///
    /// `false`: somebody removed the FIFO, so that nothing wakes this waiter any more: open
    /// another. A FIFO serves the mail root, not one table: when the table was replaced, the next
    /// one rings it too; attach the mailboxes again.
    pub fn drain(&self) -> bool {
        let mut buffer = [0; 4096];
        while matches!((&self.fifo).read(&mut buffer), Ok(n) if n == buffer.len()) {}
        self.fifo.metadata().is_ok_and(|meta| meta.nlink() > 0)
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        // If it cannot be removed, the next advance finds nobody behind it and does.
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Table {
    /// Wakes the event loops of the mail root. One load when there are none.
    pub(super) fn ring(&self) {
        let fifos = &self.map.header().fifos.0;
        let Some(before) = fifos.to_look() else {
            return;
        };
        // A folder that cannot be read leaves the loops to their time-outs; try again next time.
        if let Ok(0) = ring_all(&folder_of(self.path())) {
            fifos.found_nobody(before);
        }
    }

    /// How many processes have a FIFO, living or not yet found dead.
    pub fn waiting_processes(&self) -> usize {
        std::fs::read_dir(folder_of(self.path())).map_or(0, |entries| entries.flatten().count())
    }
}

fn folder_of(table: &Path) -> PathBuf {
    table.with_file_name(FOLDER)
}

/// Makes the folder, for its owner alone.
fn make_folder(folder: &Path) -> Result<(), Error> {
    use std::os::unix::fs::DirBuilderExt;
    match std::fs::DirBuilder::new().mode(0o700).create(folder) {
        Ok(()) => give_to_owner_of_parent(folder),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(e) => Err(e),
    }
    .map_err(|e| Error::io("create", folder, e))
}

/// What root makes (doveadm) must be the mail owner's all the same.
fn give_to_owner_of_parent(path: &Path) -> io::Result<()> {
    let Some(parent) = path.parent() else {
        return Ok(());
    };
    let (owner, made) = (parent.metadata()?, path.symlink_metadata()?);
    if owner.uid() == made.uid() || made.uid() != 0 {
        return Ok(());
    }
    std::os::unix::fs::lchown(path, Some(owner.uid()), Some(owner.gid()))
}

fn make_fifo(path: &Path) -> Result<File, Error> {
    let fail = |what| Error::io(what, path, io::Error::last_os_error());
    let name =
        CString::new(path.as_os_str().as_bytes()).map_err(|e| Error::io("name", path, e.into()))?;
    // SAFETY: a C string.
    if unsafe { libc::mkfifo(name.as_ptr(), 0o600) } != 0 {
        return Err(fail("create"));
    }
    match open_at(libc::AT_FDCWD, &name, libc::O_RDWR) {
        Ok(fifo) => Ok(fifo),
        Err(e) => {
            let _ = std::fs::remove_file(path);
            Err(Error::io("open", path, e))
        }
    }
}

fn open_at(folder: i32, name: &CStr, flags: i32) -> io::Result<File> {
    let flags = flags | libc::O_NONBLOCK | libc::O_NOFOLLOW | libc::O_CLOEXEC;
    // SAFETY: a C string; the descriptor is owned by nobody else.
    unsafe {
        match libc::openat(folder, name.as_ptr(), flags) {
            -1 => Err(io::Error::last_os_error()),
            fd => Ok(File::from_raw_fd(fd)),
        }
    }
}

/// Writes a byte to every FIFO; returns how many have a living owner.
fn ring_all(folder: &Path) -> io::Result<usize> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(e) => return Err(e),
    };
    let at = File::open(folder)?;
    let _quiet = NoSigpipe::new();
    let mut living = 0;
    for entry in entries {
        living += usize::from(ring_one(&at, &entry?.file_name()));
    }
    Ok(living)
}

/// Writes a byte to one FIFO, or removes it when nobody is behind it. Returns whether somebody is
/// (or will be: one that is not opened yet counts).
fn ring_one(folder: &File, name: &OsStr) -> bool {
    let Ok(c_name) = CString::new(name.as_bytes()) else {
        return false;
    };
    match open_at(folder.as_raw_fd(), &c_name, libc::O_WRONLY) {
        Ok(mut fifo) if is_fifo(&fifo) => {
            // A full FIFO is readable already.
            !matches!(fifo.write(b"."), Err(e) if e.kind() == io::ErrorKind::BrokenPipe)
        }
        Err(e) if e.raw_os_error() == Some(libc::ENXIO) => {
            let young =
                name.as_bytes().starts_with(UNOPENED.as_bytes()) && is_young(folder, &c_name);
            if !young {
                // SAFETY: an open folder and a C string.
                unsafe { libc::unlinkat(folder.as_raw_fd(), c_name.as_ptr(), 0) };
            }
            young
        }
        _ => false,
    }
}

/// Whoever owns the mail may put anything into the folder, and root may be the one who rings.
fn is_fifo(file: &File) -> bool {
    file.metadata().is_ok_and(|meta| meta.file_type().is_fifo())
}

/// Whether a FIFO is so new that its owner may be about to open it.
fn is_young(folder: &File, name: &CStr) -> bool {
    let mut stat = std::mem::MaybeUninit::<libc::stat>::uninit();
    // SAFETY: an open folder, a C string, room for the answer, which is read on success only.
    let made = unsafe {
        let flags = libc::AT_SYMLINK_NOFOLLOW;
        if libc::fstatat(folder.as_raw_fd(), name.as_ptr(), stat.as_mut_ptr(), flags) != 0 {
            return false;
        }
        stat.assume_init().st_mtime
    };
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    now.as_secs().abs_diff(made as u64) < UNOPENED_LIMIT.as_secs()
}

/// Keeps SIGPIPE from this thread: a reader may die between the opening and the write, and the
/// host's program may not ignore the signal.
struct NoSigpipe {
    /// Whether the signal was blocked, or was waiting, before: then it is not ours to take.
    before: bool,
}

impl NoSigpipe {
    fn new() -> NoSigpipe {
        let pipe = sigpipe();
        // SAFETY: valid sets, filled in by the calls that are handed them first.
        let before = unsafe {
            let mut old = std::mem::zeroed::<libc::sigset_t>();
            libc::pthread_sigmask(libc::SIG_BLOCK, &pipe, &mut old);
            libc::sigismember(&old, libc::SIGPIPE) == 1
        };
        NoSigpipe { before }
    }
}

impl Drop for NoSigpipe {
    fn drop(&mut self) {
        if self.before {
            return;
        }
        let pipe = sigpipe();
        let now = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // SAFETY: as above. A signal that the writes raised is taken before it could be delivered.
        unsafe {
            while libc::sigtimedwait(&pipe, std::ptr::null_mut(), &now) == libc::SIGPIPE {}
            libc::pthread_sigmask(libc::SIG_UNBLOCK, &pipe, std::ptr::null_mut());
        }
    }
}

fn sigpipe() -> libc::sigset_t {
    // SAFETY: all zeroes is a valid set, and sigemptyset makes it an empty one.
    unsafe {
        let mut set = std::mem::zeroed::<libc::sigset_t>();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, libc::SIGPIPE);
        set
    }
}
