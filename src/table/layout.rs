//! What is where in the file `xid.table`.
//!
//! ```text
//! 0      header page: seal, two locks, number counter, pool words, roots of the slot trie, counters
//! 4096   cells of 64 bytes each, up to `Pool::size`: slots, pending entries, names, waits
//! ```
//! A cell is named by its index from the start of the file, so that the header's own cells are
//! indices that never name anything: index 0 is "none". The file grows at its end and nothing in
//! it ever moves.
//!
//! All words that are shared are atomics, also those that the table's lock guards: a process that
//! was killed may have left any of them half-way, and a hostile writer any value, so they are
//! read as plain numbers and checked against bounds before they are used as indices.

use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicU32, AtomicU64};

use super::lock::RobustMutex;
use super::words::{Fifos, Mark, Numbers};

/// Bytes of a cell: a cache line, so that two slots never share one.
pub(super) const CELL: u64 = 64;

/// Bytes of the header: a page.
pub(super) const HEADER: u64 = 4096;

/// Bytes of the sealed part of the header.
pub(super) const SEAL: usize = 128;

/// The first bytes of every table, of whatever version.
pub(super) const MAGIC: [u8; 8] = *b"IMAPXIDT";

/// The version of all that is described here.
pub(super) const VERSION: u32 = 2;

/// Block sizes of the pool are 2^class cells; the largest holds a mailbox name of 4 KiB.
pub(super) const CLASSES: usize = 8;

/// Root links of the slot trie: 6 bits of the hash.
pub(super) const ROOTS: usize = 64;

/// Children of a slot in the trie: 2 bits of the hash a level.
pub(super) const CHILDREN: usize = 4;

/// Upper bounds in milliseconds of the buckets of the wait histogram; one more holds the rest.
pub const WAIT_BUCKETS_MS: [u64; 12] = [
    1, 3, 10, 30, 100, 300, 1_000, 3_000, 10_000, 30_000, 100_000, 300_000,
];

/// The header page.
#[repr(C, align(64))]
pub(super) struct Header {
    /// The [`Seal`], encoded. Written before the file gets its name, never after.
    pub seal: UnsafeCell<[u8; SEAL]>,
    /// Guards all but what is said to be read without it.
    pub lock: RobustMutex,
    /// Held while the registry reserves a block of numbers, which may take a disk's time; never
    /// together with `lock`.
    pub reserving: RobustMutex,
    pub numbers: Line<Numbers>,
    pub pool: Line<Pool>,
    pub boxes: Line<Boxes>,
    pub fifos: Line<Fifos>,
    pub counters: Counters,
    /// First slots of the trie, by the low bits of the GUID's hash. Written under `lock` after
    /// the slot is whole; read by everyone.
    pub roots: [AtomicU32; ROOTS],
    /// Bumped when pending entries were added: what an assigner sleeps on. Its watermark is not
    /// used.
    pub commits: Line<Mark>,
}

/// A cache line of its own.
#[repr(C, align(64))]
pub(super) struct Line<T>(pub T);

/// Where free cells are. Written under the lock.
#[repr(C)]
pub(super) struct Pool {
    /// Bytes of the file that may be touched; the file was made at least this long before. Read
    /// by everyone.
    pub size: AtomicU64,
    /// The first cell that was never used.
    pub unused: AtomicU32,
    /// Not 0: a repair failed, and the table must be replaced. Never goes back. Read by everyone.
    pub broken: AtomicU32,
    /// Free blocks of each class: index of the first, each holding the index of the next.
    pub free: [AtomicU32; CLASSES],
}

/// What there is of mailboxes. Written under the lock.
#[repr(C)]
pub(super) struct Boxes {
    /// The newest slot; each names an older one. Read by everyone.
    pub newest: AtomicU32,
    /// How many slots.
    pub count: AtomicU32,
    /// Pending entries of all mailboxes.
    pub pending: AtomicU64,
    /// The first of the [`Text`]s that name namespaces; they never go away.
    pub namespaces: AtomicU32,
    /// No gate is closed from this point in time on (milliseconds since boot; never goes down): a
    /// commit that comes later need not look at its mailbox. Read by everyone.
    pub gates_until: AtomicU64,
}

/// What an operator watches. Added to by everyone, without order, without the lock.
#[repr(C, align(64))]
#[derive(Default)]
pub(super) struct Counters {
    /// Waits for a UID that ended, however they did.
    pub waits: AtomicU64,
    /// Those of them that ended by their time-out.
    pub timeouts: AtomicU64,
    /// Commits that found their mailbox's gate closed.
    pub gate_waits: AtomicU64,
    /// Commits whose UIDs would have been above their mailbox's limit.
    pub limit_waits: AtomicU64,
    /// Commits that were refused since they would have changed what was promised.
    pub refusals: AtomicU64,
    /// Times a watermark rose.
    pub advances: AtomicU64,
    /// Repairs after a process died with the lock.
    pub repairs: AtomicU64,
    /// Milliseconds of all `waits`.
    pub wait_ms: AtomicU64,
    /// `waits` by duration: see [`WAIT_BUCKETS_MS`].
    pub wait_buckets: [AtomicU64; WAIT_BUCKETS_MS.len() + 1],
}

/// A mailbox. Never moves, never goes away while the table exists.
#[repr(C, align(64))]
pub(super) struct Slot {
    /// The mailbox GUID. Written before the slot is linked, never after.
    pub guid: UnsafeCell<[u8; 16]>,
    /// The trie below this slot. Written under the lock; read by everyone.
    pub children: [AtomicU32; CHILDREN],
    /// The next older slot. Written before the slot is linked, never after.
    pub older: AtomicU32,
    /// [`HAS_WATERMARK`]. Written under the lock; read by everyone.
    pub flags: AtomicU32,
    pub mark: Mark,
    /// The highest UID known to be given in the mailbox, stable or not. Written under the lock.
    pub last_uid: AtomicU32,
    /// Up to here the node promised its peers to renumber nothing; [`PROMISED_ALL`] until the
    /// cluster daemon said. Written by the daemon, under the lock; read by who commits.
    pub promised: AtomicU32,
    /// The highest UID that a new message may get here; 0: not known yet. Written by the daemon
    /// and by who finds the mailbox after a boot, under the lock; read by who commits.
    pub limit: AtomicU32,

    /// What `mark`, `last_uid` and the tail are of. Written under the lock.
    pub uidvalidity: AtomicU32,
    /// First and last cell of the tail: pending entries by ascending UID. Written under the lock.
    pub first: AtomicU32,
    pub last: AtomicU32,
    /// Entries in the tail. Written under the lock.
    pub pending: AtomicU32,
    /// Cell of the mailbox's name. Written under the lock.
    pub name: AtomicU32,
    /// First cell of the list of waits under way. Written under the lock.
    pub waits: AtomicU32,
    /// Every UID up to here was told, or is expunged. Below `last_uid` when a process was killed
    /// between its commit and telling. Written under the lock.
    pub told_uid: AtomicU32,
    /// The highest UID that replication may bring; 0: not known yet. Written by the
    /// daemon, under the lock; read by replication.
    pub bound: AtomicU32,
    pub gate: Lease,
    pub hold: Lease,
}

/// Something that somebody closed until a point in time. Written under the lock, `owner` first.
#[repr(C)]
#[derive(Default)]
pub(super) struct Lease {
    /// Closed while the clock (milliseconds since boot) is below this; 0: open. Read by everyone.
    pub until: AtomicU64,
    /// Who closed it, as he calls himself; not 0.
    pub owner: AtomicU64,
}

/// A pending entry: a message whose UID is not stable. Written under the lock.
#[repr(C)]
pub(super) struct PendingCell {
    /// The entry with the next higher UID.
    pub next: AtomicU32,
    pub uid: AtomicU32,
    /// The XID: the number, 0 for none, and the [`Text`] of its namespace.
    pub number: AtomicU64,
    pub namespace: AtomicU32,
    /// Bytes of the message GUID, which follow.
    pub guid_len: AtomicU32,
    /// When it was added: milliseconds since boot.
    pub since: AtomicU64,
}

/// A wait that is under way: who waits, since when, for which UID. Written under the lock; who
/// waits reads his own without it, to see whether it was ended.
#[repr(C)]
pub(super) struct WaitCell {
    pub next: AtomicU32,
    pub prev: AtomicU32,
    pub uid: AtomicU32,
    pub pid: AtomicU32,
    /// Milliseconds since boot.
    pub since: AtomicU64,
    /// The slot that it belongs to: who ends a wait must name both.
    pub slot: AtomicU32,
    /// [`WAIT_TAG`] while it is one.
    pub tag: AtomicU32,
}

/// [`WaitCell::tag`] of a wait.
pub(super) const WAIT_TAG: u32 = 0x5741_4954;

/// A name: of a mailbox, or of a namespace. Written under the lock, before it is linked.
#[repr(C)]
pub(super) struct Text {
    /// Of namespaces: the next one.
    pub next: AtomicU32,
    /// Bytes, which follow.
    pub len: AtomicU32,
}

/// [`Slot::flags`]: `mark` holds a watermark.
pub(super) const HAS_WATERMARK: u32 = 1;

/// [`Slot::promised`]: what was promised is not known, so everything counts as promised.
pub(super) const PROMISED_ALL: u32 = u32::MAX;

/// A higher promise than this is one of everything that comes, too: UIDs do not get so far. The
/// daemon says so of a mailbox that is about to take in what the others have.
pub(super) const PROMISE_MAX: u32 = 1 << 31;

/// The class of a slot's block.
pub(super) const SLOT_CLASS: usize = 1;

const _: () = {
    assert!(size_of::<Header>() <= HEADER as usize);
    assert!(size_of::<Slot>() == (CELL as usize) << SLOT_CLASS);
    assert!(std::mem::offset_of!(Header, lock) == 128);
    assert!(std::mem::offset_of!(Header, reserving) == 192);
    assert!(std::mem::offset_of!(Header, numbers) == 256);
    assert!(std::mem::offset_of!(Header, pool) == 320);
    assert!(std::mem::offset_of!(Header, boxes) == 384);
    assert!(std::mem::offset_of!(Header, fifos) == 448);
    assert!(std::mem::offset_of!(Header, counters) == 512);
    assert!(std::mem::offset_of!(Header, roots) == 704);
    assert!(std::mem::offset_of!(Header, commits) == 960);
    // What a command's check and a waiter touch is on one cache line.
    assert!(std::mem::offset_of!(Slot, mark) == 40);
    assert!(std::mem::offset_of!(Slot, uidvalidity) == 64);
    assert!(size_of::<PendingCell>() == 32 && size_of::<WaitCell>() == 32);
    assert!(size_of::<Text>() == 8);
};

/// The part of the header that says whose and what the file is. It is read from the file before
/// anything is mapped. Magic, version and boot id keep their places in every later version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seal {
    pub version: u32,
    /// The boot in which the table was made.
    pub boot_id: [u8; 16],
    /// The file's own device and inode: a copy of a table (a restored backup) is no table.
    pub dev: u64,
    pub ino: u64,
    /// Length of a pthread mutex: another C library's is another.
    pub mutex: u32,
}

impl Seal {
    /// The bytes that stand in the file.
    pub fn encode(&self) -> [u8; SEAL] {
        let mut bytes = [0; SEAL];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&self.version.to_ne_bytes());
        bytes[16..32].copy_from_slice(&self.boot_id);
        bytes[32..40].copy_from_slice(&self.dev.to_ne_bytes());
        bytes[40..48].copy_from_slice(&self.ino.to_ne_bytes());
        bytes[48..52].copy_from_slice(&self.mutex.to_ne_bytes());
        let sum = checksum(&bytes[..SEAL - 8]);
        bytes[SEAL - 8..].copy_from_slice(&sum.to_ne_bytes());
        bytes
    }

    /// Reads what [`Seal::encode`] wrote, of any version; `None` when it is no table's.
    pub fn decode(bytes: &[u8; SEAL]) -> Option<Seal> {
        let sum = u64::from_ne_bytes(array(&bytes[SEAL - 8..])?);
        if bytes[..8] != MAGIC || checksum(&bytes[..SEAL - 8]) != sum {
            return None;
        }
        Some(Seal {
            version: u32::from_ne_bytes(array(&bytes[8..12])?),
            boot_id: array(&bytes[16..32])?,
            dev: u64::from_ne_bytes(array(&bytes[32..40])?),
            ino: u64::from_ne_bytes(array(&bytes[40..48])?),
            mutex: u32::from_ne_bytes(array(&bytes[48..52])?),
        })
    }
}

fn array<const N: usize>(bytes: &[u8]) -> Option<[u8; N]> {
    bytes.try_into().ok()
}

/// FNV-1a: enough against a torn or foreign file, which is all that it is for.
fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, byte| {
        (sum ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}
