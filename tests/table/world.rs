//! What surrounds a table in real life, made of small files: mailboxes that give UIDs under an
//! append lock, a registry of watermarks, reservations of numbers. All survive a kill: each fact
//! is one write of eight bytes.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use imap_xid::table::{Entry, Guid, Mailbox, Table, Tail, Watermarks};

/// The UIDVALIDITY of every mailbox.
pub const UIDVALIDITY: u32 = 7;

/// Numbers in a block: few, so that blocks end often.
const BLOCK: u64 = 64;

/// A file of eight-byte words behind a lock.
struct Words(File);

impl Words {
    fn open(path: &Path) -> Words {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path);
        Words(file.unwrap())
    }

    fn get(&self, index: u64) -> u64 {
        let mut bytes = [0; 8];
        match self.0.read_exact_at(&mut bytes, index * 8) {
            Ok(()) => u64::from_ne_bytes(bytes),
            Err(_) => 0,
        }
    }

    fn set(&self, index: u64, value: u64) {
        self.0
            .write_all_at(&value.to_ne_bytes(), index * 8)
            .unwrap();
    }

    /// Runs `work` under the file's lock. A killed holder lets go.
    fn locked<T>(&self, work: impl FnOnce(&Words) -> T) -> T {
        // SAFETY: the descriptor is open.
        while unsafe { libc::flock(self.0.as_raw_fd(), libc::LOCK_EX) } != 0 {}
        let result = work(self);
        // SAFETY: as above.
        unsafe { libc::flock(self.0.as_raw_fd(), libc::LOCK_UN) };
        result
    }
}

/// The durable watermarks, by number of mailbox: UID + 1, so that 0 is none.
pub struct Store(Words);

impl Watermarks for Store {
    fn begin(&mut self, guid: &Guid, _: u32, uid: u32) -> Result<u32, String> {
        let index = number_of(guid);
        Ok(self.0.locked(|words| match words.get(index) {
            0 => {
                words.set(index, u64::from(uid) + 1);
                uid
            }
            stored => (stored - 1) as u32,
        }))
    }

    fn raise(&mut self, marks: &[(Guid, u32, u32)]) -> Result<(), String> {
        self.0.locked(|words| {
            for (guid, _, uid) in marks {
                let index = number_of(guid);
                words.set(index, words.get(index).max(u64::from(*uid) + 1));
            }
        });
        Ok(())
    }
}

/// Where no watermark is asked for.
pub struct NoStore;

impl Watermarks for NoStore {
    fn begin(&mut self, _: &Guid, _: u32, _: u32) -> Result<u32, String> {
        Err("nobody should ask".to_owned())
    }

    fn raise(&mut self, _: &[(Guid, u32, u32)]) -> Result<(), String> {
        Err("nobody should ask".to_owned())
    }
}

impl Store {
    pub fn watermark(&self, number: u64) -> u32 {
        self.0.get(number).saturating_sub(1) as u32
    }
}

/// A process's view of it all. Every process opens its own: locks belong to open files.
pub struct World {
    pub table: Arc<Table>,
    pub store: Store,
    /// The last UID that was given, by number of mailbox.
    mailboxes: Words,
    /// The first number that is not reserved.
    reserved: Words,
    taken: File,
}

impl World {
    pub fn open(dir: &Path) -> World {
        let taken = OpenOptions::new()
            .append(true)
            .create(true)
            .open(dir.join("taken"));
        World {
            table: Arc::new(Table::open(dir).unwrap().0),
            store: Store(Words::open(&dir.join("store"))),
            mailboxes: Words::open(&dir.join("mailboxes")),
            reserved: Words::open(&dir.join("reserved")),
            taken: taken.unwrap(),
        }
    }

    /// Attaches a mailbox as a host does when it opens one: with what it holds, and adding what
    /// a killed process did not tell.
    pub fn attach(&mut self, number: u64) -> Mailbox {
        let last_uid = self.last_uid(number);
        let guid = guid(number);
        let name = format!("mailbox {number}");
        let (mailbox, tail) = self
            .table
            .attach(
                &guid,
                UIDVALIDITY,
                name.as_bytes(),
                last_uid,
                &mut self.store,
            )
            .unwrap();
        if let Tail::MissingAbove(known) = tail {
            let missing: Vec<u32> = (known + 1..=last_uid).collect();
            add(&mailbox, &missing);
            mailbox.filled(last_uid).unwrap();
        }
        mailbox
    }

    pub fn last_uid(&self, number: u64) -> u32 {
        self.mailboxes.get(number) as u32
    }

    /// Saves messages: gives UIDs under the mailbox's append lock, then tells the table.
    pub fn commit(&self, mailbox: &Mailbox, number: u64, count: u32) {
        self.mailboxes.locked(|words| {
            let last = words.get(number) as u32;
            words.set(number, u64::from(last + count));
            add(mailbox, &(last + 1..=last + count).collect::<Vec<_>>());
        });
    }

    /// Takes numbers and writes them down.
    pub fn take(&mut self, count: u32) -> u64 {
        let reserved = &self.reserved;
        let first = self
            .table
            .take_numbers(0, count, |from, count| {
                reserved.locked(|words| {
                    let start = words.get(0).max(from);
                    let end = start + BLOCK.max(count.into());
                    words.set(0, end);
                    Ok::<_, String>(start..end)
                })
            })
            .unwrap();
        let lines: String = (first..first + u64::from(count))
            .map(|n| format!("{n}\n"))
            .collect();
        self.taken.write_all(lines.as_bytes()).unwrap();
        first
    }
}

fn add(mailbox: &Mailbox, uids: &[u32]) {
    let guids: Vec<String> = uids.iter().map(|uid| message_guid(*uid)).collect();
    let entries: Vec<Entry<'_>> = uids
        .iter()
        .zip(&guids)
        .map(|(uid, guid)| Entry {
            uid: *uid,
            namespace: if uid % 3 == 0 { b"foo" } else { b"bar" },
            number: u64::from(*uid) + 1000,
            guid: guid.as_bytes(),
        })
        .collect();
    mailbox.pending_add(&entries).unwrap();
}

/// The GUID of a message: of many lengths, so that blocks of several classes are used.
pub fn message_guid(uid: u32) -> String {
    let len = (uid as usize * 7) % 200 + 1;
    uid.to_string().repeat(len)[..len].to_owned()
}

pub fn guid(number: u64) -> Guid {
    let mut guid = [0; 16];
    guid[..8].copy_from_slice(&number.to_be_bytes());
    guid
}

fn number_of(guid: &Guid) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&guid[..8]);
    u64::from_be_bytes(bytes)
}
