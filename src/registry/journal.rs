//! The journal: what happened since the registry was last written, `xid.journal`.
//!
//! A commit appends its records with one write(2) under a shared flock(2): no SQLite, no fsync.
//! Whoever needs the registry takes them in under the exclusive lock and cuts the file to nothing.
//! It may lose records (power loss, full disk): the registry knows up to which UID it has seen
//! everything, and what is missing is read from the host's index again.
//!
//! A record is
//!
//! ```text
//! magic  4  "xJ1\n"
//! length 2  of the body, little endian like all that follows
//! crc    4  CRC-32 of length and body
//! body   kind 1, mailbox GUID 16, then by kind
//!        1 note    uid 4, number 8, namespace length 1, message GUID length 1, namespace, GUID
//!        2 box     uidvalidity 4, name length 2, name
//!        3 forget  uid 4
//!        4 drop    nothing
//!        5 forget what nobody counts on: as forget
//!        6 gone    number 8, namespace length 1, message GUID length 1, namespace, GUID
//! ```
//!
//! A record that was torn by a kill or a full disk fails its CRC; reading goes on at the next
//! magic, so it never hides the records behind it.

use std::fs::{File, OpenOptions};
use std::io;
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use parking_lot::Mutex;

use super::error::Error;
use super::files::{self, LockKind};
use crate::xid::Xid;

const MAGIC: [u8; 4] = *b"xJ1\n";
const HEAD: usize = MAGIC.len() + 2 + 4;

/// The longest message GUID, in octets: its length is stored in one.
pub const GUID_MAX: usize = 255;

/// The longest mailbox name that is stored, in octets. A longer one only loses the recovery by
/// name.
pub const NAME_MAX: usize = 1024;

/// No record's body is longer, so a length beyond it is garbage.
const BODY_MAX: usize = 1 + 16 + 4 + 2 + NAME_MAX;

/// How long a writer or the reader waits for the other, in the worst case a stopped process.
const LOCK_LIMIT: Duration = Duration::from_secs(1);

/// What is read at a time.
const WINDOW: usize = 256 * 1024;

/// A mailbox GUID.
pub type BoxGuid = [u8; 16];

/// One thing that happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Record<'a> {
    /// A message has this XID.
    Note {
        /// The mailbox.
        mailbox: BoxGuid,
        /// The message's UID, not 0.
        uid: u32,
        /// Its XID.
        xid: Xid<'a>,
        /// Its GUID as the host writes it; empty when not known.
        guid: &'a [u8],
    },
    /// A mailbox has this name and UIDVALIDITY.
    Box {
        /// The mailbox.
        mailbox: BoxGuid,
        /// 0 when not known.
        uidvalidity: u32,
        /// The name, cut to [`NAME_MAX`].
        name: &'a [u8],
    },
    /// A message was expunged.
    Forget {
        /// The mailbox.
        mailbox: BoxGuid,
        /// The UID that it had.
        uid: u32,
        /// It was stable, or may have been: other nodes count on what was there.
        firm: bool,
    },
    /// A message that was stable was expunged on other nodes.
    Gone {
        /// The mailbox.
        mailbox: BoxGuid,
        /// Its XID.
        xid: Xid<'a>,
        /// Its GUID as the host writes it.
        guid: &'a [u8],
    },
    /// A mailbox was deleted with all that was in it.
    Drop {
        /// The mailbox.
        mailbox: BoxGuid,
    },
}

impl Record<'_> {
    /// Appends the record as it stands in the file.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&[0; HEAD - MAGIC.len()]);
        self.encode_body(out);
        let body = out.len() - start - HEAD;
        let length = u16::try_from(body).unwrap_or(u16::MAX).to_le_bytes();
        let crc = crc32(&[&length, &out[start + HEAD..]]).to_le_bytes();
        out[start + 4..start + 6].copy_from_slice(&length);
        out[start + 6..start + HEAD].copy_from_slice(&crc);
    }

    fn encode_body(&self, out: &mut Vec<u8>) {
        match *self {
            Record::Note {
                mailbox,
                uid,
                xid,
                guid,
            } => {
                out.push(1);
                out.extend_from_slice(&mailbox);
                out.extend_from_slice(&uid.to_le_bytes());
                encode_name(xid, guid, out);
            }
            Record::Box {
                mailbox,
                uidvalidity,
                name,
            } => {
                let name = &name[..name.len().min(NAME_MAX)];
                out.push(2);
                out.extend_from_slice(&mailbox);
                out.extend_from_slice(&uidvalidity.to_le_bytes());
                out.extend_from_slice(&(name.len() as u16).to_le_bytes());
                out.extend_from_slice(name);
            }
            Record::Forget { mailbox, uid, firm } => {
                out.push(if firm { 3 } else { 5 });
                out.extend_from_slice(&mailbox);
                out.extend_from_slice(&uid.to_le_bytes());
            }
            Record::Gone { mailbox, xid, guid } => {
                out.push(6);
                out.extend_from_slice(&mailbox);
                encode_name(xid, guid, out);
            }
            Record::Drop { mailbox } => {
                out.push(4);
                out.extend_from_slice(&mailbox);
            }
        }
    }
}

/// What a message is known by.
fn encode_name(xid: Xid<'_>, guid: &[u8], out: &mut Vec<u8>) {
    let guid = &guid[..guid.len().min(GUID_MAX)];
    let namespace = xid.namespace().as_bytes();
    out.extend_from_slice(&xid.number().to_le_bytes());
    // Both fit: a namespace has 63 octets at most, the GUID was cut above.
    out.extend_from_slice(&[namespace.len() as u8, guid.len() as u8]);
    out.extend_from_slice(namespace);
    out.extend_from_slice(guid);
}

/// Takes fields off the front of a record's body.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(head)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn record(mut self) -> Option<Record<'a>> {
        let [kind] = self.array()?;
        let mailbox: BoxGuid = self.array()?;
        let record = match kind {
            1 => self.note(mailbox)?,
            2 => {
                let uidvalidity = u32::from_le_bytes(self.array()?);
                let length = u16::from_le_bytes(self.array()?);
                Record::Box {
                    mailbox,
                    uidvalidity,
                    name: self.take(usize::from(length))?,
                }
            }
            3 | 5 => Record::Forget {
                mailbox,
                uid: u32::from_le_bytes(self.array()?),
                firm: kind == 3,
            },
            4 => Record::Drop { mailbox },
            6 => {
                let (xid, guid) = self.name()?;
                Record::Gone { mailbox, xid, guid }
            }
            _ => return None,
        };
        self.0.is_empty().then_some(record)
    }

    fn note(&mut self, mailbox: BoxGuid) -> Option<Record<'a>> {
        let uid = u32::from_le_bytes(self.array()?);
        let (xid, guid) = self.name()?;
        (uid > 0).then_some(Record::Note {
            mailbox,
            uid,
            xid,
            guid,
        })
    }

    fn name(&mut self) -> Option<(Xid<'a>, &'a [u8])> {
        let number = u64::from_le_bytes(self.array()?);
        let [namespace_length, guid_length] = self.array()?;
        let namespace = self.take(usize::from(namespace_length))?;
        let guid = self.take(usize::from(guid_length))?;
        Some((Xid::new(namespace, number).ok()?, guid))
    }
}

/// What reading a stretch of the journal gave.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Octets that are done with.
    pub consumed: usize,
    /// Octets among them that were no record.
    pub garbage: usize,
}

/// Calls `apply` for each record in `bytes`, in order.
///
/// `last` says that nothing follows. Otherwise reading stops before a record that may go on
/// behind the end of `bytes`.
pub fn read<'a, E>(
    bytes: &'a [u8],
    last: bool,
    mut apply: impl FnMut(Record<'a>) -> Result<(), E>,
) -> Result<Progress, E> {
    let mut progress = Progress::default();
    while progress.consumed < bytes.len() {
        match parse(&bytes[progress.consumed..]) {
            Parsed::Record(record, length) => {
                apply(record)?;
                progress.consumed += length;
            }
            Parsed::Short if !last => break,
            Parsed::Short | Parsed::Garbage => {
                let skip = next_magic(&bytes[progress.consumed..]);
                progress.consumed += skip;
                progress.garbage += skip;
            }
        }
    }
    Ok(progress)
}

enum Parsed<'a> {
    Record(Record<'a>, usize),
    /// It may become a record when there is more of it.
    Short,
    Garbage,
}

fn parse(bytes: &[u8]) -> Parsed<'_> {
    let magic = &bytes[..bytes.len().min(MAGIC.len())];
    if !MAGIC.starts_with(magic) {
        return Parsed::Garbage;
    }
    let Some((head, rest)) = bytes.split_first_chunk::<HEAD>() else {
        return Parsed::Short;
    };
    let length = u16::from_le_bytes([head[4], head[5]]);
    let crc = u32::from_le_bytes([head[6], head[7], head[8], head[9]]);
    if usize::from(length) > BODY_MAX {
        return Parsed::Garbage;
    }
    let Some(body) = rest.get(..usize::from(length)) else {
        return Parsed::Short;
    };
    if crc32(&[&length.to_le_bytes(), body]) != crc {
        return Parsed::Garbage;
    }
    match Fields(body).record() {
        Some(record) => Parsed::Record(record, HEAD + body.len()),
        None => Parsed::Garbage,
    }
}

/// How far it is from here, which is no record, to where the next one may begin.
fn next_magic(bytes: &[u8]) -> usize {
    bytes[1..]
        .iter()
        .position(|&b| b == MAGIC[0])
        .map_or(bytes.len(), |at| at + 1)
}

/// CRC-32 (IEEE 802.3) of some pieces in a row.
fn crc32(pieces: &[&[u8]]) -> u32 {
    let mut crc = u32::MAX;
    for &byte in pieces.iter().copied().flatten() {
        crc = CRC_TABLE[usize::from((crc as u8) ^ byte)] ^ (crc >> 8);
    }
    !crc
}

static CRC_TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 {
                (crc >> 1) ^ 0xEDB8_8320
            } else {
                crc >> 1
            };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
};

/// The journal of a mail root. The file is opened at the first use.
pub struct Journal {
    path: PathBuf,
    file: Mutex<Option<File>>,
}

impl Journal {
    /// The journal at `path`; touches nothing.
    pub fn new(path: PathBuf) -> Self {
        Journal {
            path,
            file: Mutex::new(None),
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Appends encoded records with one write, and gives the file's size before. On an error
    /// none, some or all of them are there; they need not be undone.
    pub fn append(&self, records: &[u8]) -> Result<u64, Error> {
        let mut slot = self.file.lock();
        let (file, size) = self.current(&mut slot)?;
        let _shared = files::lock(file, &self.path, LockKind::Shared, LOCK_LIMIT)?;
        let mut file: &File = file;
        file.write_all(records)
            .map_err(|e| Error::io("append to", &self.path, e))?;
        Ok(size)
    }

    /// How long it is; 0 when there is none.
    pub fn size(&self) -> Result<u64, Error> {
        match std::fs::metadata(&self.path) {
            Ok(meta) => Ok(meta.len()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(0),
            Err(e) => Err(Error::io("look at", &self.path, e)),
        }
    }

    /// Hands every record to `apply`, then calls `commit`, then cuts the journal to nothing.
    ///
    /// Writers are kept waiting only while what they added meanwhile is read and committed. When
    /// one of them holds its lock for too long (a stopped process) the journal stays as it is:
    /// its records will be applied once more, which changes nothing.
    ///
    /// Gives the number of octets that were no record.
    pub fn drain(
        &self,
        mut apply: impl FnMut(Record<'_>) -> Result<(), Error>,
        commit: impl FnOnce() -> Result<(), Error>,
    ) -> Result<usize, Error> {
        let mut slot = self.file.lock();
        let (file, size) = self.current(&mut slot)?;
        let mut reader = Reader {
            file,
            path: &self.path,
            at: 0,
            garbage: 0,
        };
        reader.run(size, false, &mut apply)?;
        let exclusive = match files::lock(file, &self.path, LockKind::Exclusive, LOCK_LIMIT) {
            Ok(exclusive) => exclusive,
            Err(Error::Busy { .. }) => {
                commit()?;
                return Ok(reader.garbage);
            }
            Err(e) => return Err(e),
        };
        let size = file
            .metadata()
            .map_err(|e| Error::io("look at", &self.path, e))?
            .len();
        reader.run(size, true, &mut apply)?;
        commit()?;
        file.set_len(0)
            .map_err(|e| Error::io("cut", &self.path, e))?;
        drop(exclusive);
        Ok(reader.garbage)
    }

    /// The open file and its size; opens it when it is not open, or was deleted since.
    fn current<'a>(&self, slot: &'a mut Option<File>) -> Result<(&'a File, u64), Error> {
        let look = |e| Error::io("look at", &self.path, e);
        if let Some(file) = slot.take() {
            let meta = file.metadata().map_err(look)?;
            if meta.nlink() > 0 {
                return Ok((slot.insert(file), meta.len()));
            }
        }
        let files::Own { file, meta, .. } = self.open()?;
        Ok((slot.insert(file), meta.len()))
    }

    /// Opens the file; makes it only where it is missing, since that locks its folder.
    fn open(&self) -> Result<files::Own, Error> {
        let mut options = OpenOptions::new();
        options.read(true).append(true).mode(0o600);
        options.custom_flags(libc::O_CLOEXEC | libc::O_NOFOLLOW);
        let missing = |e: &Error| matches!(e, Error::Io { source, .. } if source.kind() == io::ErrorKind::NotFound);
        let own = match files::open_own(&self.path, &options) {
            Err(e) if missing(&e) => files::open_own(&self.path, options.create(true))?,
            other => other?,
        };
        files::give_to_owner(&own.file, &self.path)?;
        Ok(own)
    }
}

/// Reads the journal from where it was left off, a window at a time.
struct Reader<'a> {
    file: &'a File,
    path: &'a Path,
    at: u64,
    garbage: usize,
}

impl Reader<'_> {
    fn run(
        &mut self,
        end: u64,
        last: bool,
        apply: &mut impl FnMut(Record<'_>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut window = Vec::new();
        while self.at < end {
            let want = (end - self.at).min(WINDOW as u64);
            window.resize(usize::try_from(want).unwrap_or(WINDOW), 0);
            let got = self
                .file
                .read_at(&mut window, self.at)
                .map_err(|e| Error::io("read", self.path, e))?;
            let at_end = got == 0 || self.at + got as u64 >= end;
            let progress = read(&window[..got], last && at_end, &mut *apply)?;
            self.at += progress.consumed as u64;
            self.garbage += progress.garbage;
            if progress.consumed == 0 {
                // The rest is the beginning of a record, or the file is shorter than it was said.
                break;
            }
        }
        Ok(())
    }
}
