//! The file: made, checked, mapped, grown.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::layout::{CELL, HEADER, Header, SEAL, Seal, VERSION};
use super::lock::RobustMutex;
use super::{Error, Opened};

/// The table's name in the mail root.
pub(super) const NAME: &str = "xid.table";

/// What a table is called while it is made.
const NEW_NAME: &str = "xid.table.new";

/// What is mapped first, and what each later mapping doubles, in bytes. More than the file has is
/// mapped, so that growing needs no new mapping most of the time. Not much more: address space is
/// what hosts limit (`vsz_limit`), and a process may serve hundreds of users.
const FIRST_CHUNK: u64 = 1 << 16;

/// Mappings, each as long as all before it together: 2^16 .. 2^38, which u32 cell indices need.
const CHUNKS: usize = 23;

/// More than the file ever grows by at once, in bytes: a size beyond it was not written by us.
const GROWTH_LIMIT: u64 = 1 << 20;

/// What the file grows by, at least: the table of a user with few mailboxes stays small.
const STEP: u64 = 16 * 1024;

/// How long to wait for another process that makes the table (it writes one page).
const MAKE_LIMIT: Duration = Duration::from_secs(10);

/// A mapped table. Mappings stay until it is dropped, so a reference into one is valid as long.
pub(super) struct Mapped {
    file: File,
    path: PathBuf,
    /// Bytes that were seen to be in the file: what may be touched. Only ever grows.
    seen: AtomicU64,
    chunks: [AtomicPtr<u8>; CHUNKS],
}

// A mapping may end within its last page, and a chunk must hold whole pages.
const _: () = assert!(FIRST_CHUNK.is_multiple_of(65536) && STEP.is_multiple_of(4096));

impl Mapped {
    /// Opens the table of the mail root `dir`; makes it when it is not there, and makes it anew
    /// when what is there is of an earlier boot or damaged.
    pub fn open(dir: &Path) -> Result<(Mapped, Opened), Error> {
        let boot_id = boot_id()?;
        let path = dir.join(NAME);
        if let Verdict::Good(table) = examine(&path, &boot_id)? {
            return Ok((*table, Opened::Existing));
        }
        let folder = Folder::lock(dir)?;
        // Another process may have made it while this one waited for the folder.
        let opened = match examine(&path, &boot_id)? {
            Verdict::Good(table) => return Ok((*table, Opened::Existing)),
            Verdict::Missing => Opened::Created,
            Verdict::Stale => Opened::AfterBoot,
            Verdict::Damaged(why) => {
                folder.put_aside(&path)?;
                Opened::Rebuilt(why)
            }
        };
        Ok((folder.make(&path, &boot_id)?, opened))
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the file still has a name: a table that was deleted or replaced has none.
    pub fn is_linked(&self) -> bool {
        self.file.metadata().is_ok_and(|meta| meta.nlink() > 0)
    }

    pub fn header(&self) -> &Header {
        let start = self.chunks[0].load(Ordering::Acquire);
        // SAFETY: the first chunk is mapped before `Mapped` exists and until it is dropped, the
        // file was seen to hold a header, and every word of it is an atomic, a lock, or never
        // written again.
        unsafe { &*start.cast::<Header>() }
    }

    /// The address of `cells` cells from the cell `index`, after checking that the file has them
    /// and that they are within one mapping.
    pub fn cells(&self, index: u32, cells: u64) -> Result<*mut u8, Error> {
        let start = u64::from(index) * CELL;
        let end = start + cells * CELL;
        if start < HEADER {
            return Err(self.damaged("an index points into the header"));
        }
        if end > self.seen.load(Ordering::Acquire) {
            self.see(end)?;
        }
        let chunk = chunk_of(start);
        let (from, to) = chunk_range(chunk);
        if end > to {
            return Err(self.damaged("an index points across a boundary"));
        }
        let base = self.chunk(chunk)?;
        // SAFETY: `start - from` is within the chunk, which is mapped.
        Ok(unsafe { base.add((start - from) as usize) })
    }

    /// Makes sure that the file has `end` bytes before they are touched: touching a mapping
    /// beyond the end of its file kills the process.
    fn see(&self, end: u64) -> Result<(), Error> {
        let size = self.header().pool.0.size.load(Ordering::Acquire);
        if end > size {
            return Err(self.damaged("an index points beyond the end"));
        }
        let meta = self
            .file
            .metadata()
            .map_err(|e| Error::io("look at", &self.path, e))?;
        if meta.len() < end {
            return Err(self.damaged("something cut the file"));
        }
        self.seen.fetch_max(size.min(meta.len()), Ordering::AcqRel);
        Ok(())
    }

    /// The address of a chunk, mapped now if no thread did so before.
    fn chunk(&self, chunk: usize) -> Result<*mut u8, Error> {
        let known = self.chunks[chunk].load(Ordering::Acquire);
        if !known.is_null() {
            return Ok(known);
        }
        let mapped = self.map(chunk)?;
        match self.chunks[chunk].compare_exchange(
            std::ptr::null_mut(),
            mapped,
            Ordering::AcqRel,
            Ordering::Acquire,
        ) {
            Ok(_) => Ok(mapped),
            Err(other) => {
                // SAFETY: nobody saw this mapping.
                unsafe { unmap(mapped, chunk) };
                Ok(other)
            }
        }
    }

    fn map(&self, chunk: usize) -> Result<*mut u8, Error> {
        let (from, to) = chunk_range(chunk);
        let offset = libc::off_t::try_from(from).map_err(|_| Error::TooBig(self.path.clone()))?;
        // SAFETY: a new mapping, at an address of the kernel's choice.
        let at = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                (to - from) as usize,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                self.file.as_raw_fd(),
                offset,
            )
        };
        if at == libc::MAP_FAILED {
            return Err(Error::io("map", &self.path, io::Error::last_os_error()));
        }
        Ok(at.cast())
    }

    /// Makes the file at least `end` bytes long, with disk space behind every byte, and lets
    /// everyone use them. Only under the table's lock. Killed in the middle, the file is longer
    /// than said, which the next growth makes good.
    pub fn grow(&self, end: u64) -> Result<(), Error> {
        let size = &self.header().pool.0.size;
        let old = size.load(Ordering::Acquire);
        let meta = self
            .file
            .metadata()
            .map_err(|e| Error::io("look at", &self.path, e))?;
        if meta.len() < old || end > old + GROWTH_LIMIT {
            return Err(self.damaged("it is not as long as it should be"));
        }
        let new = end.max(old + (old / 8).max(STEP)).next_multiple_of(STEP);
        if new / CELL > u64::from(u32::MAX) {
            return Err(Error::TooBig(self.path.clone()));
        }
        allocate(&self.file, old, new).map_err(|e| Error::io("enlarge", &self.path, e))?;
        size.store(new, Ordering::Release);
        Ok(())
    }

    /// The first byte after the chunk that holds the byte `at`.
    pub fn boundary_after(at: u64) -> u64 {
        chunk_range(chunk_of(at)).1
    }

    /// What was found cannot be: every process opens another table when it next looks.
    pub fn damaged(&self, why: &'static str) -> Error {
        // Not where the file was cut so far that its first page is no more.
        if self.file.metadata().is_ok_and(|meta| meta.len() >= HEADER) {
            self.header().pool.0.broken.store(1, Ordering::Release);
        }
        Error::Damaged {
            path: self.path.clone(),
            why,
        }
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        for (chunk, at) in self.chunks.iter_mut().enumerate() {
            let at = *at.get_mut();
            if !at.is_null() {
                // SAFETY: mapped by `map`, and references into it borrow from `self`.
                unsafe { unmap(at, chunk) };
            }
        }
    }
}

/// # Safety
/// `at` is what `map` returned for `chunk`, and nothing refers into it any more.
unsafe fn unmap(at: *mut u8, chunk: usize) {
    let (from, to) = chunk_range(chunk);
    // SAFETY: the caller's promise.
    unsafe { libc::munmap(at.cast(), (to - from) as usize) };
}

/// The chunk that holds a byte.
fn chunk_of(at: u64) -> usize {
    (u64::BITS - (at / FIRST_CHUNK).leading_zeros()) as usize
}

/// The bytes of a chunk, end excluded.
fn chunk_range(chunk: usize) -> (u64, u64) {
    match chunk {
        0 => (0, FIRST_CHUNK),
        n => (FIRST_CHUNK << (n - 1), FIRST_CHUNK << n),
    }
}

/// Puts disk space behind the bytes `from..to`: a hole would kill the process that writes to it
/// when the disk is full.
fn allocate(file: &File, from: u64, to: u64) -> io::Result<()> {
    let offset =
        |at| libc::off_t::try_from(at).map_err(|_| io::Error::from_raw_os_error(libc::EFBIG));
    loop {
        // SAFETY: the descriptor is open.
        match unsafe { libc::posix_fallocate(file.as_raw_fd(), offset(from)?, offset(to - from)?) }
        {
            0 => return Ok(()),
            libc::EINTR => {}
            code => return Err(io::Error::from_raw_os_error(code)),
        }
    }
}

/// What a look at the file said.
enum Verdict {
    Good(Box<Mapped>),
    Missing,
    /// Of an earlier boot: what it says is past, and nobody uses it.
    Stale,
    Damaged(&'static str),
}

/// Looks at the file, touching nothing that was not checked before.
fn examine(path: &Path, boot_id: &[u8; 16]) -> Result<Verdict, Error> {
    let file = match open_at(path, libc::O_RDWR, 0) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Verdict::Missing),
        Err(e) => return Err(Error::io("open", path, e)),
    };
    let meta = file.metadata().map_err(|e| Error::io("look at", path, e))?;
    refuse_foreign(path, &meta)?;
    let mut bytes = [0; SEAL];
    if meta.len() < HEADER {
        return Ok(Verdict::Damaged("it is shorter than its header"));
    }
    file.read_exact_at(&mut bytes, 0)
        .map_err(|e| Error::io("read", path, e))?;
    let Some(seal) = Seal::decode(&bytes) else {
        return Ok(Verdict::Damaged("its header is no table's, or was torn"));
    };
    if seal.boot_id != *boot_id {
        return Ok(Verdict::Stale);
    }
    if seal.version > VERSION {
        return Err(Error::Newer {
            path: path.to_owned(),
            version: seal.version,
        });
    }
    if seal != Seal::of(&meta, boot_id) {
        return Ok(Verdict::Damaged(
            "it is a copy of a table, or of another version",
        ));
    }
    let table = Mapped::of(file, path)?;
    let pool = &table.header().pool.0;
    let size = pool.size.load(Ordering::Acquire);
    if pool.broken.load(Ordering::Acquire) != 0 {
        return Ok(Verdict::Damaged("a repair of it failed"));
    }
    if size > meta.len() || size < HEADER {
        return Ok(Verdict::Damaged("it was cut"));
    }
    table.seen.store(size, Ordering::Release);
    Ok(Verdict::Good(Box::new(table)))
}

/// Refuses what must not be replaced either, since replacing it would not help or do harm.
fn refuse_foreign(path: &Path, meta: &std::fs::Metadata) -> Result<(), Error> {
    let refuse = |why| {
        Err(Error::Refused {
            path: path.to_owned(),
            why,
        })
    };
    if !meta.is_file() {
        return refuse("it is no regular file");
    }
    if meta.mode() & 0o022 != 0 {
        return refuse("others may write to it");
    }
    Ok(())
}

impl Mapped {
    fn of(file: File, path: &Path) -> Result<Mapped, Error> {
        let table = Mapped {
            file,
            path: path.to_owned(),
            seen: AtomicU64::new(HEADER),
            chunks: [const { AtomicPtr::new(std::ptr::null_mut()) }; CHUNKS],
        };
        table.chunk(0)?;
        Ok(table)
    }
}

impl Seal {
    /// The seal that a file must have to be a table of this boot and version.
    fn of(meta: &std::fs::Metadata, boot_id: &[u8; 16]) -> Seal {
        Seal {
            version: VERSION,
            boot_id: *boot_id,
            dev: meta.dev(),
            ino: meta.ino(),
            mutex: size_of::<libc::pthread_mutex_t>() as u32,
        }
    }
}

/// The mail root, locked against others that make a table in it. A dead holder lets go.
struct Folder<'a> {
    dir: &'a Path,
    /// Closing it lets go.
    file: File,
}

impl<'a> Folder<'a> {
    fn lock(dir: &'a Path) -> Result<Folder<'a>, Error> {
        let file = open_at(dir, libc::O_RDONLY | libc::O_DIRECTORY, 0)
            .map_err(|e| Error::io("open", dir, e))?;
        let start = Instant::now();
        loop {
            // SAFETY: the descriptor is open.
            if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } == 0 {
                return Ok(Folder { dir, file });
            }
            let e = io::Error::last_os_error();
            let busy = e.kind() == io::ErrorKind::WouldBlock;
            if !(busy || e.kind() == io::ErrorKind::Interrupted) || start.elapsed() > MAKE_LIMIT {
                return Err(Error::io("lock", dir, e));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Makes a whole table under another name and gives it its own by one rename, so that nobody
    /// ever sees half of one.
    fn make(&self, path: &Path, boot_id: &[u8; 16]) -> Result<Mapped, Error> {
        let new = self.dir.join(NEW_NAME);
        match std::fs::remove_file(&new) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(Error::io("remove", &new, e));
            }
            _ => {}
        }
        let file = open_at(&new, libc::O_RDWR | libc::O_CREAT | libc::O_EXCL, 0o600)
            .map_err(|e| Error::io("create", &new, e))?;
        self.give_to_owner(&file)
            .map_err(|e| Error::io("give to the mail's owner", &new, e))?;
        allocate(&file, 0, HEADER).map_err(|e| Error::io("write", &new, e))?;
        let meta = file.metadata().map_err(|e| Error::io("look at", &new, e))?;
        file.write_all_at(&Seal::of(&meta, boot_id).encode(), 0)
            .map_err(|e| Error::io("write", &new, e))?;
        let table = Mapped::of(file, path)?;
        table.init().map_err(|e| Error::io("initialise", &new, e))?;
        std::fs::rename(&new, path).map_err(|e| Error::io("name", path, e))?;
        Ok(table)
    }

    /// A table that root makes (doveadm) must be the user's all the same.
    fn give_to_owner(&self, file: &File) -> io::Result<()> {
        let owner = self.file.metadata()?;
        let made = file.metadata()?;
        if owner.uid() == made.uid() || made.uid() != 0 {
            return Ok(());
        }
        std::os::unix::fs::fchown(file, Some(owner.uid()), Some(owner.gid()))
    }

    /// Keeps what is no table of ours: it may be somebody's. One such file is kept.
    fn put_aside(&self, path: &Path) -> Result<(), Error> {
        let aside = self.dir.join("xid.table.broken");
        std::fs::rename(path, &aside).map_err(|e| Error::io("put aside", path, e))
    }
}

impl Mapped {
    /// Fills the header of a table that nobody else sees yet; what is not named is 0.
    fn init(&self) -> io::Result<()> {
        let header = self.header();
        // SAFETY: both are aligned by the layout, and nobody else sees the file.
        unsafe {
            RobustMutex::init((&raw const header.lock).cast_mut())?;
            RobustMutex::init((&raw const header.reserving).cast_mut())?;
        }
        header
            .pool
            .0
            .unused
            .store((HEADER / CELL) as u32, Ordering::Relaxed);
        header.pool.0.size.store(HEADER, Ordering::Release);
        // Whoever had a FIFO for a table that this one replaces is looked for once.
        header.fifos.0.arrived();
        Ok(())
    }
}

/// Opens a file that may not be a symbolic link, never across an exec.
fn open_at(path: &Path, flags: i32, mode: libc::c_uint) -> io::Result<File> {
    let name = std::ffi::CString::new(path.as_os_str().as_bytes())?;
    let flags = flags | libc::O_NOFOLLOW | libc::O_CLOEXEC | libc::O_NONBLOCK;
    // SAFETY: `name` is a C string; the descriptor is owned by nobody else.
    unsafe {
        match libc::open(name.as_ptr(), flags, mode) {
            -1 => Err(io::Error::last_os_error()),
            fd => Ok(File::from_raw_fd(fd)),
        }
    }
}

/// This boot's id.
fn boot_id() -> Result<[u8; 16], Error> {
    const PATH: &str = "/proc/sys/kernel/random/boot_id";
    static BOOT_ID: OnceLock<[u8; 16]> = OnceLock::new();
    if let Some(known) = BOOT_ID.get() {
        return Ok(*known);
    }
    let text = std::fs::read_to_string(PATH).map_err(Error::NoBootId)?;
    let id = parse_boot_id(text.trim())
        .ok_or_else(|| Error::NoBootId(io::Error::other(format!("{PATH} holds no id"))))?;
    Ok(*BOOT_ID.get_or_init(|| id))
}

/// Reads 32 hexadecimal digits with dashes among them.
fn parse_boot_id(text: &str) -> Option<[u8; 16]> {
    let digits: Vec<u8> = text.bytes().filter(|byte| *byte != b'-').collect();
    let digits = std::str::from_utf8(&digits)
        .ok()
        .filter(|digits| digits.len() == 32)?;
    Some(u128::from_str_radix(digits, 16).ok()?.to_be_bytes())
}
