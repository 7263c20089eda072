//! Names, locks and owners of the files in a mail root.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::error::Error;
use crate::log::{self, Level};

/// The registry's name in the mail root. SQLite puts `-wal` and `-shm` beside it.
pub(super) const REGISTRY: &str = "xid.registry";

/// The journal's name.
pub(super) const JOURNAL: &str = "xid.journal";

/// The witness's name, see [`super::numbers`].
pub(super) const WITNESS: &str = "xid.incarnation";

/// Says that there are watermarks, see [`super::watermarks`].
pub(super) const WATERMARKS: &str = "xid.watermarks";

/// Between two looks at a lock that another process holds.
const LOCK_PAUSE: Duration = Duration::from_millis(1);

/// How many names are tried for a broken file before giving up.
const ASIDE_NAMES: u32 = 1000;

/// Makes the mail root and what is above it, readable for the owner only.
pub(super) fn make_root(dir: &Path) -> Result<(), Error> {
    // Nearly always: making it would lock the folder above only to find that out.
    if dir.is_dir() {
        return Ok(());
    }
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|e| Error::io("make the folder", dir, e))
}

/// Whether a registry that is gone left traces: it alone empties the journal (which nobody makes
/// empty) and says that it has watermarks.
pub(super) fn registry_was_beside(path: &Path) -> bool {
    let beside = |name| fs::symlink_metadata(path.with_file_name(name)).ok();
    let emptied = beside(JOURNAL).is_some_and(|journal| journal.is_file() && journal.len() == 0);
    emptied || beside(WATERMARKS).is_some()
}

/// How to lock.
#[derive(Clone, Copy)]
pub(super) enum LockKind {
    Shared,
    Exclusive,
}

/// A held flock(2), let go when dropped.
pub(super) struct Held<'a>(&'a File);

impl Drop for Held<'_> {
    fn drop(&mut self) {
        // SAFETY: a system call on a descriptor that the borrow keeps open.
        unsafe { libc::flock(self.0.as_raw_fd(), libc::LOCK_UN) };
    }
}

/// Locks a file for at most `limit`. It belongs to this opening of the file, so two handles of
/// one process exclude each other as two processes do.
pub(super) fn lock<'a>(
    file: &'a File,
    path: &Path,
    kind: LockKind,
    limit: Duration,
) -> Result<Held<'a>, Error> {
    let operation = match kind {
        LockKind::Shared => libc::LOCK_SH,
        LockKind::Exclusive => libc::LOCK_EX,
    };
    let start = Instant::now();
    loop {
        // SAFETY: a system call on an open descriptor.
        if unsafe { libc::flock(file.as_raw_fd(), operation | libc::LOCK_NB) } == 0 {
            return Ok(Held(file));
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::EWOULDBLOCK | libc::EINTR) => {}
            _ => return Err(Error::io("lock", path, error)),
        }
        if start.elapsed() >= limit {
            return Err(Error::Busy {
                path: path.to_owned(),
                seconds: limit.as_secs(),
            });
        }
        thread::sleep(LOCK_PAUSE);
    }
}

/// A file that root makes in a user's folder must be the user's, or his own processes could not
/// open it.
pub(super) fn give_to_owner(file: &File, path: &Path) -> Result<(), Error> {
    // SAFETY: a system call without arguments.
    if unsafe { libc::geteuid() } != 0 {
        return Ok(());
    }
    let folder = path.parent().unwrap_or(Path::new("."));
    let owner = fs::metadata(folder).map_err(|e| Error::io("look at", folder, e))?;
    let mine = file.metadata().map_err(|e| Error::io("look at", path, e))?;
    if (mine.uid(), mine.gid()) == (owner.uid(), owner.gid()) {
        return Ok(());
    }
    // SAFETY: a system call on an open descriptor.
    if unsafe { libc::fchown(file.as_raw_fd(), owner.uid(), owner.gid()) } != 0 {
        return Err(Error::io("give away", path, io::Error::last_os_error()));
    }
    Ok(())
}

/// Makes the names in a folder durable.
pub(super) fn sync_folder_of(path: &Path) -> Result<(), Error> {
    let folder = path.parent().unwrap_or(Path::new("."));
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(|e| Error::io("sync the folder", folder, e))
}

/// Which file a name stands for, to see whether it is still the same one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Identity {
    device: u64,
    inode: u64,
}

impl Identity {
    pub(super) fn of(meta: &fs::Metadata) -> Self {
        Identity {
            device: meta.dev(),
            inode: meta.ino(),
        }
    }
}

/// `None` when there is no such file.
pub(super) fn identity(path: &Path) -> Result<Option<Identity>, Error> {
    match fs::metadata(path) {
        Ok(meta) => Ok(Some(Identity::of(&meta))),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io("look at", path, e)),
    }
}

/// Moves a broken registry out of the way, with the files that SQLite keeps beside it, and gives
/// its new name.
///
/// SQLite's own go first: were we killed in between, a log left behind would be taken for that of
/// the next registry.
pub(super) fn move_aside(path: &Path) -> Result<PathBuf, Error> {
    let aside = free_name(path)?;
    for suffix in ["-wal", "-shm", ""] {
        let (from, to) = (with_suffix(path, suffix), with_suffix(&aside, suffix));
        match fs::rename(&from, &to) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(Error::io("move aside", &from, e)),
        }
    }
    sync_folder_of(path)?;
    Ok(aside)
}

/// Removes what an earlier registry of this name left beside it. Another process may still have
/// that registry open although it was deleted; SQLite would take the shared memory of its log for
/// that of the new one.
pub(super) fn remove_leftovers(path: &Path) -> Result<(), Error> {
    for suffix in ["-wal", "-shm"] {
        let left = with_suffix(path, suffix);
        match fs::remove_file(&left) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(Error::io("remove", &left, e)),
        }
    }
    Ok(())
}

/// One of our own files, opened.
pub(super) struct Own {
    pub(super) file: File,
    /// What it was when it was opened.
    pub(super) meta: fs::Metadata,
    /// Something else was in its place, and moved aside.
    pub(super) was_none: bool,
}

/// Opens one of our own files. A folder, a link or a device in its place would stop us for ever,
/// so it is moved aside.
pub(super) fn open_own(path: &Path, options: &OpenOptions) -> Result<Own, Error> {
    let look = |file: &File| file.metadata().map_err(|e| Error::io("look at", path, e));
    let first = match options.open(path) {
        Ok(file) => {
            let meta = look(&file)?;
            if meta.is_file() {
                let was_none = false;
                return Ok(Own {
                    file,
                    meta,
                    was_none,
                });
            }
            io::ErrorKind::InvalidInput.into()
        }
        Err(e) => e,
    };
    let in_the_way = fs::symlink_metadata(path).is_ok_and(|meta| !meta.is_file());
    if !in_the_way {
        return Err(Error::io("open", path, first));
    }
    let aside = free_name(path)?;
    fs::rename(path, &aside).map_err(|e| Error::io("move aside", path, e))?;
    log::line(
        Level::Error,
        &format!(
            "{} was no plain file: moved to {}; see who put it there",
            path.display(),
            aside.display()
        ),
    );
    let file = options.open(path).map_err(|e| Error::io("open", path, e))?;
    let meta = look(&file)?;
    Ok(Own {
        file,
        meta,
        was_none: true,
    })
}

fn free_name(path: &Path) -> Result<PathBuf, Error> {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |t| t.as_secs());
    let mut aside = with_suffix(path, &format!(".broken-{now}"));
    for n in 1..ASIDE_NAMES {
        if identity(&aside)?.is_none() {
            return Ok(aside);
        }
        aside = with_suffix(path, &format!(".broken-{now}.{n}"));
    }
    let error = io::Error::from(io::ErrorKind::AlreadyExists);
    Err(Error::io("find a name to move aside", path, error))
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}
