//! What must survive: XIDs by message GUID, UIDs by XID, and the number reservation.
//!
//! One registry per mail root, in four files beside the user's indexes: `xid.registry` (SQLite),
//! `xid.journal` (what a commit appends, so that it never opens SQLite), `xid.incarnation` (what
//! outlives the registry), and the numbers' fast part, which is the table's
//! ([`crate::table`]).
//!
//! Who does what: [`Registry`] is the door; `journal` is the file that commits append to; `rows`
//! says which message has which XID, `expunged` which messages are gone; `recovery` finds XIDs by
//! message GUID; `numbers` reserves
//! and `witness` remembers it; `db` is SQLite and `files` the names and locks.
//!
//! Nothing here decides about a message: the host's index is the authority, and every row can be
//! made again from it. That is why a power loss may undo a transaction, and why a broken file is
//! simply moved aside. Only the reservation must be durable, and is.

mod db;
mod error;
mod expunged;
mod files;
pub mod journal;
mod numbers;
mod recovery;
mod rows;
mod sqlite;
mod verify;
mod watermarks;
mod witness;

#[cfg(test)]
mod tests;

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use parking_lot::Mutex;

use db::{BUSY_LIMIT, Db};
pub use error::Error;
pub use journal::{BoxGuid, GUID_MAX};
use journal::{Journal, Record};
use numbers::OwnBlock;
pub use numbers::{BLOCK, INCARNATION_SHIFT};
pub use recovery::Recovery;
pub use verify::Finding;
use witness::Witness;

use crate::log::{self, Level};
use crate::xid::{State, Xid, check_namespace};

/// A journal this long, in octets, is taken in by the process that appends to it, so that it does
/// not grow for ever where nobody asks. About 10,000 messages.
const JOURNAL_LONG: u64 = 1 << 20;

/// What a message's record takes of the journal, in octets, unless its namespace is long.
const RECORD_ROOM: usize = 128;

/// Records that one write to the journal has at most, so that a million of them need no memory
/// for all at once.
const APPENDED_AT_ONCE: usize = 10_000;

/// Rows that an export reads at a time.
const EXPORT_PAGE: u32 = 1000;

/// A mailbox, as a host's process has it open.
#[derive(Debug)]
pub struct Mailbox {
    guid: BoxGuid,
    name: String,
    uidvalidity: u32,
    /// Whether the journal was told name and UIDVALIDITY.
    announced: AtomicBool,
    /// What [`Registry::registered`] said last.
    missing_from: AtomicU32,
    /// Of which opening of the registry; 0 before the first time.
    opening: AtomicU64,
}

impl Mailbox {
    /// Touches nothing. An empty name or UIDVALIDITY 0 stand for "not known".
    pub fn new(guid: BoxGuid, name: &str, uidvalidity: u32) -> Self {
        Mailbox {
            guid,
            name: cut(name).to_owned(),
            uidvalidity,
            announced: AtomicBool::new(false),
            missing_from: AtomicU32::new(1),
            opening: AtomicU64::new(0),
        }
    }

    /// The mailbox's GUID.
    pub fn guid(&self) -> &BoxGuid {
        &self.guid
    }

    /// Its name when it was opened.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its UIDVALIDITY when it was opened; 0 when not known.
    pub fn uidvalidity(&self) -> u32 {
        self.uidvalidity
    }
}

/// A name in the length that the journal has room for.
fn cut(name: &str) -> &str {
    let mut end = name.len().min(journal::NAME_MAX);
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    &name[..end]
}

/// A message: its UID, its XID, and its GUID as the host writes it (empty when not known; cut to
/// 255 octets).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry<'a> {
    /// Not 0.
    pub uid: u32,
    /// The XID.
    pub xid: Xid<'a>,
    /// The GUID.
    pub guid: &'a [u8],
}

/// A row of an export.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exported {
    /// The message's UID.
    pub uid: u32,
    /// The namespace of its XID.
    pub namespace: String,
    /// The number of its XID.
    pub number: u64,
    /// Its GUID; empty when not known.
    pub guid: Vec<u8>,
}

/// A mailbox of an export.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BoxInfo {
    /// Its GUID.
    pub guid: BoxGuid,
    /// The name it was last seen under; empty when not known.
    pub name: String,
    /// Its UIDVALIDITY; 0 when not known.
    pub uidvalidity: u32,
    /// The UID up to which the registry knows all messages.
    pub covered: u32,
    /// How many messages it knows.
    pub messages: u64,
}

/// What `xidctl status` shows of a registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// The highest number that was reserved; 0 before the first.
    pub reserved: u64,
    /// How often the registry was lost before.
    pub incarnation: u64,
    /// Octets in the journal that are not taken in yet.
    pub journal: u64,
}

/// The registry of a mail root. Any number of threads and processes use one at once; it does not
/// survive fork(2).
///
/// SQLite is opened at the first call that needs it, and again when the file was replaced.
pub struct Registry {
    path: PathBuf,
    namespace: String,
    journal: Journal,
    witness: Witness,
    open: Mutex<Open>,
    own: Mutex<OwnBlock>,
}

#[derive(Default)]
struct Open {
    db: Option<Db>,
    /// Counts openings: what was read from one means nothing in the next.
    opening: u64,
}

impl Registry {
    /// The registry of the mail root `dir`, which is made if it is missing; `namespace` is this
    /// node's. Opens no file.
    pub fn new(dir: &Path, namespace: &str) -> Result<Self, Error> {
        check_namespace(namespace.as_bytes()).map_err(|e| Error::Argument(e.to_string()))?;
        files::make_root(dir)?;
        Ok(Registry {
            path: dir.join(files::REGISTRY),
            namespace: namespace.to_owned(),
            journal: Journal::new(dir.join(files::JOURNAL)),
            witness: Witness::new(dir.join(files::WITNESS)),
            open: Mutex::default(),
            own: Mutex::default(),
        })
    }

    /// Whether the mail root has a registry. Every call below that needs one makes it.
    pub fn exists(dir: &Path) -> bool {
        dir.join(files::REGISTRY).exists()
    }

    /// This node's namespace.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The registry's file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    // Numbers

    /// Reserves a block of at least `count` numbers, all `from` or above, and never reserves them
    /// again. It is durable when this returns.
    ///
    /// `from` above everything that was ever reserved means that an earlier registry was lost: a
    /// new incarnation begins, above `from` and above all that the witness knows.
    pub fn reserve(&self, from: u64, count: u32) -> Result<Range<u64>, Error> {
        self.insist(|db, _| numbers::reserve(db, &self.witness, &self.path, from, count))
    }

    /// Takes `count` consecutive numbers above `above` and gives the first, where there is no
    /// table to share blocks with others: this process then has blocks of its own.
    pub fn take_numbers(&self, above: u64, count: u32) -> Result<u64, Error> {
        self.own
            .lock()
            .take(above, count, |from, count| self.reserve(from, count))
    }

    /// The highest number that was reserved: no higher one was ever given out. 0 before the first.
    pub fn reserved(&self) -> Result<u64, Error> {
        self.insist(|db, _| db.reserved())
    }

    // What commits tell

    /// Notes the XIDs of new messages in the journal: one write(2), no SQLite, not durable by
    /// itself. When it fails, nothing is lost: [`Registry::registered`] will ask for the messages.
    pub fn note(&self, mailbox: &Mailbox, entries: &[Entry<'_>]) -> Result<(), Error> {
        for some in entries.chunks(APPENDED_AT_ONCE) {
            self.tell(mailbox, |records| {
                records.reserve(some.len() * RECORD_ROOM);
                for entry in some {
                    let Entry { uid, xid, guid } = *entry;
                    Record::Note {
                        mailbox: mailbox.guid,
                        uid,
                        xid,
                        guid,
                    }
                    .encode(records);
                }
            })?;
        }
        Ok(())
    }

    /// Notes in the journal that these UIDs were expunged. Other nodes may count on what lay at or
    /// below `firm`: the watermark, or what was promised.
    pub fn forget(&self, mailbox: &Mailbox, uids: &[u32], firm: u32) -> Result<(), Error> {
        for some in uids.chunks(APPENDED_AT_ONCE) {
            self.tell(mailbox, |records| {
                for &uid in some {
                    Record::Forget {
                        mailbox: mailbox.guid,
                        uid,
                        firm: uid <= firm,
                    }
                    .encode(records);
                }
            })?;
        }
        Ok(())
    }

    /// Notes in the journal that other nodes expunged these messages, which were stable there. Their
    /// UIDs do not matter.
    pub fn gone_elsewhere(&self, mailbox: &Mailbox, entries: &[Entry<'_>]) -> Result<(), Error> {
        for some in entries.chunks(APPENDED_AT_ONCE) {
            self.tell(mailbox, |records| {
                for entry in some {
                    Record::Gone {
                        mailbox: mailbox.guid,
                        xid: entry.xid,
                        guid: entry.guid,
                    }
                    .encode(records);
                }
            })?;
        }
        Ok(())
    }

    /// What was promised above `kept` is no more: what was expunged there was not stable.
    pub fn take_back(&self, mailbox: &Mailbox, kept: u32) -> Result<(), Error> {
        self.ask_about(mailbox, |db| {
            self.ingest(db)?;
            expunged::take_back(db, &mailbox.guid, kept)
        })
    }

    /// Notes in the journal that a mailbox has another name.
    pub fn renamed(&self, guid: &BoxGuid, name: &str) -> Result<(), Error> {
        let mut records = Vec::new();
        let name = cut(name).as_bytes();
        Record::Box {
            mailbox: *guid,
            uidvalidity: 0,
            name,
        }
        .encode(&mut records);
        self.append(&records)
    }

    /// Notes in the journal that a mailbox was deleted with its messages.
    pub fn deleted(&self, guid: &BoxGuid) -> Result<(), Error> {
        let mut records = Vec::new();
        Record::Drop { mailbox: *guid }.encode(&mut records);
        self.append(&records)
    }

    fn tell(&self, mailbox: &Mailbox, encode: impl FnOnce(&mut Vec<u8>)) -> Result<(), Error> {
        let mut records = Vec::new();
        let announced = mailbox.announced.load(Ordering::Relaxed);
        if !announced {
            let (uidvalidity, name) = (mailbox.uidvalidity, mailbox.name.as_bytes());
            Record::Box {
                mailbox: mailbox.guid,
                uidvalidity,
                name,
            }
            .encode(&mut records);
        }
        encode(&mut records);
        self.append(&records)?;
        mailbox.announced.store(true, Ordering::Relaxed);
        Ok(())
    }

    fn append(&self, records: &[u8]) -> Result<(), Error> {
        let before = self.journal.append(records)?;
        // Once when the line is crossed, not again at each append while it cannot be taken in.
        let crossed = before / JOURNAL_LONG != (before + records.len() as u64) / JOURNAL_LONG;
        if crossed && let Err(e) = self.insist(|db, _| self.ingest(db)) {
            log::line(
                Level::Warning,
                &format!("the journal could not be taken in ({e})"),
            );
        }
        Ok(())
    }

    /// Takes the journal into the registry.
    fn ingest(&self, db: &Db) -> Result<(), Error> {
        if self.journal.size()? == 0 {
            return Ok(());
        }
        let garbage = db.enclosing(|commit| {
            let writer = std::cell::RefCell::new(rows::Writer::new(db));
            self.journal.drain(
                |record| writer.borrow_mut().apply(record),
                || {
                    writer.borrow_mut().finish()?;
                    commit()
                },
            )
        })?;
        if garbage > 0 {
            log::line(
                Level::Warning,
                &format!(
                    "{}: skipped {garbage} octets that were no records (a crash or a full disk): what \
                 they said is read from the indexes again",
                    self.journal.path().display(),
                ),
            );
        }
        match rows::purge(db) {
            Err(e @ Error::Broken { .. }) => Err(e),
            // It goes on next time; what was asked for can be answered all the same.
            _ => Ok(()),
        }
    }

    // What is asked

    /// The first UID below `next_uid` that the registry may not know; `next_uid` when it knows
    /// them all. Takes the journal in first. What is missing is to be given to
    /// [`Registry::register`].
    pub fn registered(&self, mailbox: &Mailbox, next_uid: u32) -> Result<u32, Error> {
        let (missing, opening) = self.insist(|db, opening| {
            self.ingest(db)?;
            Ok((rows::first_missing(db, mailbox)?, opening))
        })?;
        mailbox.announced.store(true, Ordering::Relaxed);
        mailbox.missing_from.store(missing, Ordering::Relaxed);
        mailbox.opening.store(opening, Ordering::Relaxed);
        Ok(missing.min(next_uid))
    }

    /// Makes the rows those of the index: `entries`, ascending by UID, are all messages from the
    /// UID that [`Registry::registered`] gave last up to `below` (exclusive); with `all`, all
    /// messages of the mailbox.
    ///
    /// An empty GUID keeps the one that the registry knows for that XID.
    pub fn register(
        &self,
        mailbox: &Mailbox,
        entries: &[Entry<'_>],
        below: u32,
        all: bool,
    ) -> Result<(), Error> {
        let from = if all {
            1
        } else {
            mailbox.missing_from.load(Ordering::Relaxed).max(1)
        };
        check_order(entries, below)?;
        // What comes before was registered by another process meanwhile.
        let first = entries.partition_point(|entry| entry.uid < from);
        self.insist(|db, _| {
            // Or an old record would undo what the index says now.
            self.ingest(db)?;
            rows::register(db, mailbox, &entries[first..], from, below)
        })
    }

    /// The UID that an XID has in the mailbox. To be checked against the index.
    pub fn lookup(&self, mailbox: &Mailbox, xid: Xid<'_>) -> Result<Option<u32>, Error> {
        self.ask_about(mailbox, |db| {
            let found = rows::lookup(db, mailbox, xid)?;
            if found.is_some() || self.journal.size()? == 0 {
                return Ok(found);
            }
            self.ingest(db)?;
            rows::lookup(db, mailbox, xid)
        })
    }

    /// The UIDs, ascending, of the messages whose number is above the state's for their
    /// namespace. To be checked against the index. Costs O(k + n log m) for k such messages, n
    /// namespaces in the mailbox, and m messages.
    pub fn news(&self, mailbox: &Mailbox, state: &State) -> Result<Vec<u32>, Error> {
        self.ask_about(mailbox, |db| {
            self.ingest(db)?;
            rows::news(db, mailbox, state)
        })
    }

    /// Up to `limit` rows of a mailbox with UIDs above `above`, in UID order. To be checked against
    /// the index.
    pub fn rows(&self, mailbox: &Mailbox, above: u32, limit: u32) -> Result<Vec<Exported>, Error> {
        self.ask_about(mailbox, |db| {
            self.ingest(db)?;
            rows::export(db, &mailbox.guid, above, limit)
        })
    }

    /// Up to `limit` rows of a mailbox whose messages have this GUID. To be checked against the
    /// index.
    pub fn by_guid(
        &self,
        mailbox: &Mailbox,
        guid: &[u8],
        limit: u32,
    ) -> Result<Vec<Exported>, Error> {
        self.ask_about(mailbox, |db| {
            self.ingest(db)?;
            rows::by_guid(db, &mailbox.guid, guid, limit)
        })
    }

    /// Whether a message with this GUID is here or was, as far as that is remembered: what was
    /// expunged, in mail roots with watermarks, and not for ever.
    pub fn had(&self, mailbox: &Mailbox, guid: &[u8]) -> Result<bool, Error> {
        self.ask_about(mailbox, |db| {
            self.ingest(db)?;
            expunged::had(db, &mailbox.guid, guid)
        })
    }

    /// The lowest UID at which a message with this GUID was expunged here while it was stable, or
    /// promised, as far as that is remembered: in mail roots with watermarks, and not for ever.
    pub fn expunged(&self, mailbox: &Mailbox, guid: &[u8]) -> Result<Option<u32>, Error> {
        self.ask_about(mailbox, |db| {
            self.ingest(db)?;
            expunged::find(db, &mailbox.guid, guid)
        })
    }

    /// The XIDs that expunged messages with this GUID had, up to `limit`, the last one first; they
    /// have no UIDs. Remembered as [`Registry::expunged`] is, but for fewer messages, and also for
    /// those above the watermark.
    pub fn gone(&self, mailbox: &Mailbox, guid: &[u8], limit: u32) -> Result<Vec<Exported>, Error> {
        self.ask_about(mailbox, |db| {
            self.ingest(db)?;
            expunged::xids(db, &mailbox.guid, guid, limit)
        })
    }

    /// Begins to find XIDs again for messages that have none. `None` when the registry knows
    /// nothing that could apply.
    pub fn recovery(self: &Arc<Self>, mailbox: &Mailbox) -> Result<Option<Recovery>, Error> {
        self.insist(|db, opening| {
            self.ingest(db)?;
            Recovery::begin(Arc::clone(self), db, opening, mailbox)
        })
    }

    // For the administrator

    /// What the registry says of itself.
    pub fn status(&self) -> Result<Status, Error> {
        let reserved = self.reserved()?;
        let incarnation = reserved >> INCARNATION_SHIFT;
        Ok(Status {
            reserved,
            incarnation,
            journal: self.journal.size()?,
        })
    }

    /// All mailboxes, by name, with the journal taken in.
    pub fn boxes(&self) -> Result<Vec<BoxInfo>, Error> {
        self.ask(|db| {
            self.ingest(db)?;
            rows::boxes(db)
        })
    }

    /// The rows of a mailbox in UID order, read a page at a time: what is written meanwhile may
    /// be in it or not, and nobody waits.
    pub fn export(&self, guid: &BoxGuid) -> impl Iterator<Item = Result<Exported, Error>> {
        let mut after = 0;
        let mut done = false;
        let pages = std::iter::from_fn(move || {
            if done {
                return None;
            }
            let page = self.ask(|db| rows::export(db, guid, after, EXPORT_PAGE));
            let last = page
                .as_ref()
                .ok()
                .and_then(|rows| rows.last())
                .map(|row| row.uid);
            done = last.is_none();
            after = last.unwrap_or(after);
            Some(page.map_or_else(|e| vec![Err(e)], |rows| rows.into_iter().map(Ok).collect()))
        });
        pages.flatten()
    }

    /// What is wrong in the registry; nothing is changed.
    pub fn verify(&self) -> Result<Vec<Finding>, Error> {
        let witness = self.witness.read()?;
        self.ask(|db| verify::verify(db, witness, &self.namespace))
    }

    /// Moves the registry aside, as is done with one that proves broken; the next call makes a new
    /// one, of a new incarnation.
    pub fn set_aside(&self, why: &str) -> Result<(), Error> {
        match self.ask(|db| Err::<(), _>(db.broken(why))) {
            Err(Error::Broken { .. }) => Ok(()),
            other => other,
        }
    }

    // The open file

    /// Runs `work`; a registry that proves broken is moved aside, and `work` runs again on a new
    /// one. For what is right on an empty registry, too.
    fn insist<T>(&self, mut work: impl FnMut(&Db, u64) -> Result<T, Error>) -> Result<T, Error> {
        let mut open = self.open.lock();
        match self.settle(&mut open, &mut work) {
            Err(Error::Broken { .. }) => self.settle(&mut open, work),
            other => other,
        }
    }

    /// Runs `work` once; a registry that proves broken is moved aside. For answers that an empty
    /// registry would give wrongly.
    fn ask<T>(&self, work: impl FnOnce(&Db) -> Result<T, Error>) -> Result<T, Error> {
        self.settle(&mut self.open.lock(), |db, _| work(db))
    }

    /// [`Registry::ask`] about a mailbox: not of another registry than the one that said what it
    /// knows of it.
    fn ask_about<T>(
        &self,
        mailbox: &Mailbox,
        work: impl FnOnce(&Db) -> Result<T, Error>,
    ) -> Result<T, Error> {
        match mailbox.opening.load(Ordering::Relaxed) {
            0 => self.ask(work),
            opening => self.with_opening(opening, work),
        }
    }

    /// [`Registry::ask`] on the registry of an earlier call only.
    fn with_opening<T>(
        &self,
        opening: u64,
        work: impl FnOnce(&Db) -> Result<T, Error>,
    ) -> Result<T, Error> {
        self.settle(&mut self.open.lock(), |db, now| {
            if now != opening {
                return Err(Error::Replaced(self.path.clone()));
            }
            work(db)
        })
    }

    fn settle<T>(
        &self,
        open: &mut Open,
        work: impl FnOnce(&Db, u64) -> Result<T, Error>,
    ) -> Result<T, Error> {
        // Another process may have moved it aside, or an administrator removed it.
        let db = match open.db.take().filter(Db::is_current) {
            Some(db) => db,
            None => self.open_anew(open)?,
        };
        let done = work(&db, open.opening);
        match &done {
            Err(Error::Broken { why, .. }) => db.retire(&self.witness, why)?,
            _ => open.db = Some(db),
        }
        done
    }

    fn open_anew(&self, open: &mut Open) -> Result<Db, Error> {
        open.opening += 1;
        let (db, broken) = Db::open(&self.path, &self.witness)?;
        let Some(why) = broken else { return Ok(db) };
        // The caller must learn that the answers are those of an empty registry.
        open.db = Some(db);
        Err(Error::Broken {
            path: self.path.clone(),
            why,
        })
    }
}

fn check_order(entries: &[Entry<'_>], below: u32) -> Result<(), Error> {
    let ascending = entries.windows(2).all(|pair| pair[0].uid < pair[1].uid);
    let within = entries.first().is_none_or(|entry| entry.uid > 0)
        && entries.last().is_none_or(|entry| entry.uid < below);
    if ascending && within {
        return Ok(());
    }
    Err(Error::Argument(format!(
        "the UIDs to register must ascend, from 1 up, below {below}"
    )))
}
