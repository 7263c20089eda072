//! Tests of the table within one process; tests/table/ has those with many.

use std::convert::Infallible;
use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::sync::atomic::{AtomicU64, Ordering};

use super::*;
use std::sync::Arc;

/// A registry's reservation, as far as the table sees it: blocks never overlap.
struct Reservations(AtomicU64);

impl Reservations {
    fn new() -> Reservations {
        Reservations(AtomicU64::new(1))
    }

    fn reserve(&self, from: u64, count: u32) -> Result<Range<u64>, Infallible> {
        let start = self.0.load(Ordering::SeqCst).max(from);
        let end = start + u64::from(count).max(16);
        self.0.store(end, Ordering::SeqCst);
        Ok(start..end)
    }

    fn take(&self, table: &Table, above: u64, count: u32) -> u64 {
        table
            .take_numbers(above, count, |from, count| self.reserve(from, count))
            .unwrap()
    }
}

fn open(dir: &Path) -> (Table, Opened) {
    Table::open(dir).unwrap()
}

#[test]
fn numbers_rise_across_blocks_and_handles() {
    let dir = tempfile::tempdir().unwrap();
    let registry = Reservations::new();
    let (one, opened) = open(dir.path());
    assert_eq!(opened, Opened::Created);
    let (two, opened) = open(dir.path());
    assert_eq!(opened, Opened::Existing);
    assert_eq!(one.highest_given(), None);
    let mut last = 0;
    for i in 0..1000_u32 {
        let table = if i % 3 == 0 { &one } else { &two };
        let count = i % 7 + 1;
        let first = registry.take(table, 0, count);
        assert!(first > last, "{first} after {last}");
        last = first + u64::from(count) - 1;
    }
    assert!(one.highest_given() >= Some(last));
}

#[test]
fn numbers_are_above_what_the_mailbox_has() {
    let dir = tempfile::tempdir().unwrap();
    let registry = Reservations::new();
    let (table, _) = open(dir.path());
    assert_eq!(registry.take(&table, 0, 1), 1);
    assert_eq!(registry.take(&table, 5, 2), 6);
    assert_eq!(registry.take(&table, 1 << 40, 1), (1 << 40) + 1);
    assert_eq!(registry.take(&table, 0, 1), (1 << 40) + 2);
}

#[test]
fn a_run_of_numbers_may_be_longer_than_a_block() {
    let dir = tempfile::tempdir().unwrap();
    let registry = Reservations::new();
    let (table, _) = open(dir.path());
    let first = registry.take(&table, 0, 1000);
    assert_eq!(registry.take(&table, 0, 1), first + 1000);
}

#[test]
fn two_live_tables_never_give_one_number_twice() {
    let dir = tempfile::tempdir().unwrap();
    let registry = Reservations::new();
    let (old, _) = open(dir.path());
    let mut seen = vec![registry.take(&old, 0, 1)];
    fs::remove_file(old.path()).unwrap();
    assert!(!old.is_current());
    let (new, opened) = open(dir.path());
    assert_eq!(opened, Opened::Created);
    assert!(new.is_current());
    for i in 0..200 {
        seen.push(registry.take(if i % 2 == 0 { &old } else { &new }, 0, 1));
    }
    let taken = seen.len();
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen.len(), taken);
}

#[test]
fn numbers_end_at_the_largest_and_a_bad_reservation_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (table, _) = open(dir.path());
    let none = |_, _| Ok::<_, Infallible>(0..0);
    assert!(matches!(
        table.take_numbers(NUMBER_MAX, 1, none),
        Err(TakeError::Table(Error::NumbersExhausted { .. }))
    ));
    assert!(matches!(
        table.take_numbers(u64::MAX, 1, none),
        Err(TakeError::Table(Error::NumbersExhausted { .. }))
    ));
    assert!(matches!(
        table.take_numbers(7, 1, |_, _| Ok::<_, Infallible>(7..100)),
        Err(TakeError::Table(Error::BadReservation { .. }))
    ));
    assert!(matches!(
        table.take_numbers(7, 1, |_, _| Err("no")),
        Err(TakeError::Reserve("no"))
    ));
    assert_eq!(table.highest_given(), None);
}

#[test]
fn a_table_is_private_to_its_owner() {
    let dir = tempfile::tempdir().unwrap();
    let (table, _) = open(dir.path());
    let mode = fs::metadata(table.path()).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o600);
    drop(table);
    fs::set_permissions(
        dir.path().join(file::NAME),
        fs::Permissions::from_mode(0o620),
    )
    .unwrap();
    assert!(matches!(
        Table::open(dir.path()),
        Err(Error::Refused { .. })
    ));
}

#[test]
fn what_is_no_file_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink("/dev/null", dir.path().join(file::NAME)).unwrap();
    assert!(matches!(Table::open(dir.path()), Err(Error::Io { .. })));
    fs::remove_file(dir.path().join(file::NAME)).unwrap();
    fs::create_dir(dir.path().join(file::NAME)).unwrap();
    assert!(Table::open(dir.path()).is_err());
}

#[test]
fn a_missing_folder_is_named_in_the_error() {
    let error = Table::open(Path::new("/nonexistent/mail"))
        .err()
        .unwrap()
        .to_string();
    assert!(error.contains("/nonexistent/mail"), "{error}");
}

/// Opens a table, changes its file, and opens it again.
fn reopened_after(change: impl FnOnce(&Path, &fs::File)) -> Result<Opened, Error> {
    let dir = tempfile::tempdir().unwrap();
    let registry = Reservations::new();
    let (table, _) = open(dir.path());
    registry.take(&table, 0, 3);
    drop(table);
    let path = dir.path().join(file::NAME);
    let file = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(&path)
        .unwrap();
    change(&path, &file);
    let (table, opened) = Table::open(dir.path())?;
    assert!(registry.take(&table, 0, 1) > 3);
    Ok(opened)
}

#[test]
fn a_short_torn_or_foreign_file_is_rebuilt() {
    for len in [0, 1, 127, 128, 4095] {
        let opened = reopened_after(|_, file| file.set_len(len).unwrap()).unwrap();
        assert!(matches!(opened, Opened::Rebuilt(_)), "{len}: {opened:?}");
    }
    for at in (0..128).filter(|at| !(8..32).contains(at)) {
        let opened = reopened_after(|_, file| flip(file, at)).unwrap();
        assert!(matches!(opened, Opened::Rebuilt(_)), "{at}: {opened:?}");
    }
    let opened = reopened_after(|path, _| fs::write(path, vec![b'x'; 10_000]).unwrap()).unwrap();
    assert!(matches!(opened, Opened::Rebuilt(_)), "{opened:?}");
}

fn flip(file: &fs::File, at: u64) {
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x55], at).unwrap();
}

#[test]
fn a_copy_of_a_table_is_rebuilt() {
    let opened = reopened_after(|path, _| {
        let bytes = fs::read(path).unwrap();
        let copy = path.with_extension("copy");
        fs::write(&copy, bytes).unwrap();
        fs::set_permissions(&copy, fs::Permissions::from_mode(0o600)).unwrap();
        fs::rename(&copy, path).unwrap();
    });
    assert!(matches!(opened.unwrap(), Opened::Rebuilt(_)));
}

#[test]
fn a_table_of_an_earlier_boot_is_rebuilt_whatever_its_version() {
    for version in [layout::VERSION, layout::VERSION + 1] {
        let opened = reopened_after(|_, file| {
            reseal(file, |seal| {
                seal.version = version;
                seal.boot_id[3] ^= 1;
            });
        });
        assert_eq!(opened.unwrap(), Opened::AfterBoot);
    }
}

#[test]
fn a_newer_table_of_this_boot_is_refused() {
    let opened = reopened_after(|_, file| reseal(file, |seal| seal.version += 1));
    let error = opened.unwrap_err();
    let newer = layout::VERSION + 1;
    assert!(
        matches!(error, Error::Newer { version, .. } if version == newer),
        "{error}"
    );
    assert!(error.to_string().contains("newer release"), "{error}");
}

fn reseal(file: &fs::File, change: impl FnOnce(&mut layout::Seal)) {
    let mut bytes = [0; layout::SEAL];
    file.read_exact_at(&mut bytes, 0).unwrap();
    let mut seal = layout::Seal::decode(&bytes).unwrap();
    change(&mut seal);
    file.write_all_at(&seal.encode(), 0).unwrap();
}

#[test]
fn a_table_that_could_not_be_repaired_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let (table, _) = open(dir.path());
    table.map.header().pool.0.broken.store(1, Ordering::SeqCst);
    assert!(!table.is_current());
    assert!(matches!(open(dir.path()).1, Opened::Rebuilt(_)));
    assert_eq!(open(dir.path()).1, Opened::Existing);
}

/// What a registry keeps of watermarks.
#[derive(Default)]
struct Store {
    marks: std::collections::HashMap<Guid, (u32, u32)>,
    broken: bool,
}

impl Watermarks for Store {
    fn begin(&mut self, guid: &Guid, uidvalidity: u32, uid: u32) -> Result<u32, String> {
        if self.broken {
            return Err("no disk".to_owned());
        }
        match self.marks.get(guid) {
            Some((validity, there)) if *validity == uidvalidity => Ok(*there),
            _ => {
                self.marks.insert(*guid, (uidvalidity, uid));
                Ok(uid)
            }
        }
    }

    fn raise(&mut self, marks: &[(Guid, u32, u32)]) -> Result<(), String> {
        if self.broken {
            return Err("no disk".to_owned());
        }
        for (guid, uidvalidity, uid) in marks {
            let mark = self.marks.entry(*guid).or_default();
            *mark = (*uidvalidity, mark.1.max(*uid));
        }
        Ok(())
    }
}

fn guid(number: u128) -> Guid {
    number.to_be_bytes()
}

fn entry(uid: u32) -> Entry<'static> {
    Entry {
        uid,
        namespace: b"foo",
        number: u64::from(uid) + 100,
        guid: b"0123456789abcdef0123456789abcdef",
    }
}

struct Fixture {
    dir: tempfile::TempDir,
    table: Arc<Table>,
    store: Store,
}

impl Fixture {
    fn new() -> Fixture {
        let dir = tempfile::tempdir().unwrap();
        let table = Arc::new(open(dir.path()).0);
        Fixture {
            dir,
            table,
            store: Store::default(),
        }
    }

    fn attach(&mut self, number: u128, last_uid: u32) -> Mailbox {
        self.table
            .attach(&guid(number), 7, b"INBOX", last_uid, &mut self.store)
            .unwrap()
            .0
    }

    /// Deletes the table, as a reboot does.
    fn reboot(&mut self) {
        fs::remove_file(self.dir.path().join(file::NAME)).unwrap();
        self.table = Arc::new(open(self.dir.path()).0);
    }
}

fn uids(mailbox: &Mailbox) -> Vec<u32> {
    let mut all = Vec::new();
    loop {
        let page = mailbox.pending(all.last().copied().unwrap_or(0)).unwrap();
        if page.is_empty() {
            return all;
        }
        all.extend(page.iter().map(|entry| entry.uid));
    }
}

#[test]
fn a_mailbox_without_a_watermark_starts_with_all_that_it_holds_as_stable() {
    let mut f = Fixture::new();
    let mailbox = f.attach(1, 8);
    assert_eq!(mailbox.watermark(), 8);
    assert_eq!(f.store.marks[&guid(1)], (7, 8));
    assert_eq!(f.attach(2, 0).watermark(), 0);
    // An empty mailbox has a watermark too: what comes later is not stable by itself.
    assert_eq!(f.attach(2, 5).watermark(), 0);
    assert_eq!(f.table.mailboxes().unwrap().len(), 2);
}

#[test]
fn a_mailbox_has_a_place_once_it_was_attached_under_its_uidvalidity() {
    let mut f = Fixture::new();
    let has = |f: &Fixture, uidvalidity| f.table.has_place(&guid(1), uidvalidity).unwrap();
    assert!(!has(&f, 7));
    f.attach(1, 8);
    assert!(has(&f, 7));
    assert!(!has(&f, 8), "under another UIDVALIDITY it begins anew");
}

#[test]
fn a_watermark_is_durable_before_anyone_sees_it() {
    let mut f = Fixture::new();
    f.store.broken = true;
    assert!(f.table.attach(&guid(1), 7, b"", 8, &mut f.store).is_err());
    assert!(f.table.find(&guid(1)).unwrap().is_none());
    f.store.broken = false;
    let mailbox = f.attach(1, 8);
    mailbox.pending_add(&[entry(9)]).unwrap();
    f.store.broken = true;
    let error = mailbox.advance(9, &mut f.store).unwrap_err().to_string();
    assert!(error.contains("no disk"), "{error}");
    assert_eq!(mailbox.watermark(), 8);
    assert_eq!(uids(&mailbox), [9]);
}

#[test]
fn after_a_reboot_the_watermark_is_the_one_exposed_last() {
    let mut f = Fixture::new();
    let mailbox = f.attach(1, 8);
    mailbox
        .pending_add(&[entry(9), entry(10), entry(11)])
        .unwrap();
    mailbox.advance(10, &mut f.store).unwrap();
    f.reboot();
    let (mailbox, tail) = f
        .table
        .attach(&guid(1), 7, b"INBOX", 11, &mut f.store)
        .unwrap();
    assert_eq!(mailbox.watermark(), 10);
    assert_eq!(tail, Tail::MissingAbove(10));
    mailbox.pending_add(&[entry(11)]).unwrap();
    mailbox.filled(11).unwrap();
    let (_, tail) = f
        .table
        .attach(&guid(1), 7, b"INBOX", 11, &mut f.store)
        .unwrap();
    assert_eq!(tail, Tail::Whole);
    assert_eq!(uids(&mailbox), [11]);
}

#[test]
fn an_advance_ends_what_is_pending_up_to_it() {
    let mut f = Fixture::new();
    let mailbox = f.attach(1, 8);
    let entries: Vec<_> = (9..1009).map(entry).collect();
    mailbox.pending_add(&entries).unwrap();
    assert_eq!(uids(&mailbox), (9..1009).collect::<Vec<_>>());
    assert_eq!(f.table.counts().pending, 1000);
    assert_eq!(mailbox.oldest_pending().unwrap().unwrap().0, 9);
    assert_eq!(
        mailbox.advance(500, &mut f.store).unwrap(),
        Advanced::From(8)
    );
    assert_eq!(uids(&mailbox), (501..1009).collect::<Vec<_>>());
    assert_eq!(
        mailbox.advance(1008, &mut f.store).unwrap(),
        Advanced::From(500)
    );
    assert_eq!(f.table.counts().pending, 0);
    assert_eq!(mailbox.oldest_pending().unwrap(), None);
    let size = f.table.counts().size;
    for round in 1..20 {
        let entries: Vec<_> = (0..1000).map(|i| entry(round * 1009 + i)).collect();
        mailbox.pending_add(&entries).unwrap();
        mailbox.advance(round * 1009 + 999, &mut f.store).unwrap();
    }
    assert_eq!(f.table.counts().size, size, "blocks are used again");
}

#[test]
fn a_watermark_never_goes_down_and_never_above_what_was_given() {
    let mut f = Fixture::new();
    let mailbox = f.attach(1, 8);
    mailbox.pending_add(&[entry(9)]).unwrap();
    assert_eq!(
        mailbox.advance(3, &mut f.store).unwrap(),
        Advanced::Already(8)
    );
    assert_eq!(
        mailbox.advance(8, &mut f.store).unwrap(),
        Advanced::Already(8)
    );
    let error = mailbox.advance(10, &mut f.store).unwrap_err();
    assert!(
        matches!(
            error,
            Error::NeverGiven {
                uid: 10,
                last_uid: 9,
                ..
            }
        ),
        "{error}"
    );
    assert_eq!(mailbox.advance(9, &mut f.store).unwrap(), Advanced::From(8));
    assert_eq!(f.store.marks[&guid(1)], (7, 9));
}

#[test]
fn pending_entries_keep_guid_and_xid_and_order() {
    let mut f = Fixture::new();
    let mailbox = f.attach(1, 0);
    let long = vec![b'g'; MESSAGE_GUID_MAX];
    let entries = [
        Entry {
            uid: 5,
            namespace: b"foo",
            number: 1 << 41,
            guid: &long,
        },
        Entry {
            uid: 2,
            namespace: b"bar",
            number: 7,
            guid: b"",
        },
        Entry {
            uid: 9,
            namespace: b"",
            number: 0,
            guid: b"x",
        },
        Entry {
            uid: 5,
            namespace: b"other",
            number: 3,
            guid: b"again",
        },
    ];
    mailbox.pending_add(&entries).unwrap();
    let pending = mailbox.pending(0).unwrap();
    let got: Vec<_> = pending
        .iter()
        .map(|p| (p.uid, &p.namespace[..], p.number, &p.guid[..]))
        .collect();
    let expected: Vec<(u32, &[u8], u64, &[u8])> = vec![
        (2, b"bar", 7, b""),
        (5, b"foo", 1 << 41, &long),
        (9, b"", 0, b"x"),
    ];
    assert_eq!(got, expected);
    assert!(mailbox.pending_remove(5).unwrap());
    assert!(!mailbox.pending_remove(5).unwrap());
    assert!(mailbox.pending_remove(9).unwrap());
    mailbox.pending_add(&[entry(10)]).unwrap();
    assert_eq!(uids(&mailbox), [2, 10]);
    let too_long = Entry {
        guid: &[0; MESSAGE_GUID_MAX + 1],
        ..entry(11)
    };
    assert!(matches!(
        mailbox.pending_add(&[too_long]),
        Err(Error::LongGuid { .. })
    ));
    mailbox.advance(2, &mut f.store).unwrap();
    mailbox.pending_add(&[entry(1), entry(2)]).unwrap();
    assert_eq!(uids(&mailbox), [10], "stable ones are not pending");
}

#[test]
fn a_new_uidvalidity_begins_anew_and_an_old_one_is_refused() {
    let mut f = Fixture::new();
    let mailbox = f.attach(1, 8);
    mailbox.pending_add(&[entry(9)]).unwrap();
    let (again, tail) = f
        .table
        .attach(&guid(1), 8, b"INBOX", 3, &mut f.store)
        .unwrap();
    assert_eq!((again.watermark(), tail), (3, Tail::Whole));
    assert!(uids(&again).is_empty());
    let error = f
        .table
        .attach(&guid(1), 7, b"INBOX", 9, &mut f.store)
        .err()
        .unwrap();
    assert!(
        matches!(
            error,
            Error::OldUidvalidity {
                given: 7,
                current: 8,
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn a_held_mailbox_is_not_advanced_until_released_or_the_lease_ends() {
    let mut f = Fixture::new();
    let mailbox = f.attach(1, 8);
    mailbox.pending_add(&[entry(9), entry(10)]).unwrap();
    mailbox.hold(42, 600_000).unwrap();
    let error = mailbox.advance(9, &mut f.store).unwrap_err();
    assert!(matches!(error, Error::OnHold { owner: 42, .. }), "{error}");
    assert!(matches!(
        mailbox.hold(43, 1000),
        Err(Error::Taken { owner: 42, .. })
    ));
    assert!(matches!(
        mailbox.release(43),
        Err(Error::Taken { owner: 42, .. })
    ));
    mailbox.release(42).unwrap();
    mailbox.advance(9, &mut f.store).unwrap();
    mailbox.hold(42, 1).unwrap();
    let end = std::time::Instant::now() + Duration::from_secs(20);
    while mailbox.info().unwrap().hold.is_some() {
        assert!(std::time::Instant::now() < end, "the lease does not end");
    }
    mailbox.advance(10, &mut f.store).unwrap();
    mailbox.hold(42, u64::MAX).unwrap();
    mailbox.release(0).unwrap();
}

#[test]
fn a_closed_gate_opens_by_hand_or_by_its_lease_and_wakes_who_waits() {
    let mut f = Fixture::new();
    let mailbox = f.attach(1, 8);
    assert_eq!(mailbox.gate_closed(), None);
    mailbox.close_gate(1, 600_000).unwrap();
    assert!(mailbox.gate_closed().is_some());
    assert!(matches!(
        mailbox.close_gate(2, 1),
        Err(Error::Taken { owner: 1, .. })
    ));
    let other = mailbox.clone();
    let waiting = std::thread::spawn(move || other.wait_for_gate(Duration::from_secs(60)));
    mailbox.open_gate(1).unwrap();
    assert_eq!(waiting.join().unwrap(), Waited::Done);
    mailbox.close_gate(1, 5).unwrap();
    assert_eq!(mailbox.wait_for_gate(Duration::from_secs(60)), Waited::Done);
    mailbox.close_gate(1, 600_000).unwrap();
    assert_eq!(
        mailbox.wait_for_gate(Duration::from_millis(1)),
        Waited::TimedOut
    );
}

#[test]
fn a_wait_ends_by_an_advance_by_its_time_or_by_a_new_table() {
    let mut f = Fixture::new();
    let mailbox = f.attach(1, 8);
    mailbox.pending_add(&[entry(9), entry(10)]).unwrap();
    assert_eq!(mailbox.wait(8, Duration::ZERO).unwrap(), Waited::Done);
    assert_eq!(
        mailbox.wait(9, Duration::from_millis(2)).unwrap(),
        Waited::TimedOut
    );
    let other = mailbox.clone();
    let waiting = std::thread::spawn(move || other.wait(10, Duration::from_secs(60)).unwrap());
    mailbox.advance(9, &mut f.store).unwrap();
    mailbox.advance(10, &mut f.store).unwrap();
    assert_eq!(waiting.join().unwrap(), Waited::Done);
    let counts = f.table.counts();
    assert_eq!((counts.waits >= 1, counts.timeouts), (true, 1));
    assert_eq!(counts.wait_buckets.iter().sum::<u64>(), counts.waits);

    let other = mailbox.clone();
    let waiting = std::thread::spawn(move || other.wait(11, Duration::from_secs(60)).unwrap());
    f.reboot();
    assert_eq!(waiting.join().unwrap(), Waited::Replaced);
}

#[test]
fn waits_under_way_are_seen() {
    let mut f = Fixture::new();
    let mailbox = f.attach(1, 8);
    let ids: Vec<_> = (0..5).map(|i| mailbox.wait_begin(9 + i).unwrap()).collect();
    assert_eq!(mailbox.info().unwrap().waiters, 5);
    for id in [ids[2], ids[0], ids[4]] {
        mailbox.wait_end(id, false).unwrap();
    }
    let info = mailbox.info().unwrap();
    assert_eq!(info.waiters, 2);
    assert!(info.oldest_wait_ms.is_some());
    mailbox.wait_end(ids[2], false).unwrap();
    assert_eq!(mailbox.info().unwrap().waiters, 2, "ended once only");
    mailbox.wait_end(ids[1], true).unwrap();
    mailbox.wait_end(ids[3], true).unwrap();
    let info = mailbox.info().unwrap();
    assert_eq!((info.waiters, info.oldest_wait_ms), (0, None));
    assert_eq!(f.table.counts().timeouts, 2);
}

#[test]
fn promises_count_as_everything_until_known() {
    let mut f = Fixture::new();
    let mailbox = f.attach(1, 8);
    assert_eq!(mailbox.promised(), None);
    mailbox.promise(12).unwrap();
    assert_eq!(mailbox.promised(), Some(12));
    mailbox.promise(9).unwrap();
    assert_eq!(mailbox.info().unwrap().promised, Some(9));
    // As a node does that joins: whatever comes is promised, too.
    mailbox.promise(u32::MAX).unwrap();
    assert_eq!(mailbox.promised(), None);
    mailbox.promise(9).unwrap();
    f.reboot();
    assert_eq!(f.attach(1, 8).promised(), None);
}

#[test]
fn who_waits_for_room_is_woken() {
    let mut f = Fixture::new();
    let mailbox = f.attach(1, 8);
    assert_eq!((mailbox.limit(), mailbox.bound()), (None, None));
    assert_eq!(mailbox.wait_for_limit(1, Duration::ZERO), Waited::TimedOut);
    mailbox.set_limits(10, 20).unwrap();
    assert_eq!((mailbox.limit(), mailbox.bound()), (Some(10), Some(20)));
    assert_eq!(mailbox.wait_for_limit(10, Duration::ZERO), Waited::Done);
    assert_eq!(mailbox.wait_for_limit(11, Duration::ZERO), Waited::TimedOut);

    let other = mailbox.clone();
    let waiting = std::thread::spawn(move || other.wait_for_limit(11, Duration::from_secs(60)));
    mailbox.set_limits(11, 22).unwrap();
    assert_eq!(waiting.join().unwrap(), Waited::Done);
    assert!(f.table.counts().limit_waits >= 1);

    f.reboot();
    let mailbox = f.attach(1, 8);
    assert_eq!((mailbox.limit(), mailbox.bound()), (None, None));
}

#[test]
fn a_mailbox_of_a_cluster_has_no_room_before_its_watermark_is_known() {
    let mut f = Fixture::new();
    let attach = |f: &mut Fixture| {
        let attached = f
            .table
            .attach_from(&guid(1), 7, b"INBOX", 5, Begin::Cluster, &mut f.store);
        attached.unwrap().0
    };
    assert_eq!(attach(&mut f).limit(), None);
    f.reboot();
    let mailbox = attach(&mut f);
    assert_eq!(mailbox.limit(), None);
    mailbox.set_limits(10_000, 40_000).unwrap();
    assert_eq!(attach(&mut f).limit(), Some(10_000));
    mailbox.filled(5).unwrap();
    mailbox.advance(5, &mut f.store).unwrap();
    f.reboot();
    let mailbox = attach(&mut f);
    let room = (mailbox.limit(), mailbox.bound());
    assert_eq!(room, (Some(5 + LEAST_WINDOW), None));
}

#[test]
fn a_mailbox_of_a_cluster_begins_with_nothing_stable() {
    let mut f = Fixture::new();
    let (mailbox, tail) = f
        .table
        .attach_from(&guid(1), 7, b"INBOX", 8, Begin::Cluster, &mut f.store)
        .unwrap();
    assert_eq!((mailbox.watermark(), tail), (0, Tail::MissingAbove(0)));
    mailbox.filled(8).unwrap();
    mailbox.advance(5, &mut f.store).unwrap();
    f.reboot();
    let (mailbox, tail) = f
        .table
        .attach_from(&guid(1), 7, b"INBOX", 8, Begin::Cluster, &mut f.store)
        .unwrap();
    assert_eq!((mailbox.watermark(), tail), (5, Tail::MissingAbove(5)));
}

#[test]
fn names_follow_a_rename_and_their_blocks_are_used_again() {
    let mut f = Fixture::new();
    f.attach(1, 8);
    let long = vec![b'n'; 20_000];
    let mut size = 0;
    for round in 0..100 {
        for name in [b"a".as_slice(), &[b'b'; 300], &long] {
            let (mailbox, _) = f.table.attach(&guid(1), 7, name, 8, &mut f.store).unwrap();
            let shown = mailbox.info().unwrap().name;
            assert_eq!(shown, name[..shown.len()]);
            assert!(shown.len() == name.len() || shown.len() > 4096);
        }
        if round == 1 {
            size = f.table.counts().size;
        }
    }
    assert_eq!(f.table.counts().size, size);
}

#[test]
fn a_table_grows_without_moving_what_is_mapped() {
    let mut f = Fixture::new();
    let first = f.attach(1, 8);
    for number in 2..20_000 {
        f.attach(number << 64 | number, number as u32);
    }
    assert!(f.table.counts().size > 2 << 20, "more than one mapping");
    assert_eq!(first.watermark(), 8);
    // Another process has only the file.
    let other = Arc::new(open(f.dir.path()).0);
    for number in [2_u128, 777, 19_999] {
        let mailbox = other.find(&guid(number << 64 | number)).unwrap().unwrap();
        assert_eq!(mailbox.watermark(), number as u32);
    }
    assert_eq!(other.mailboxes().unwrap().len(), 19_999);
    first.pending_add(&[entry(9)]).unwrap();
    let seen = other.find(&guid(1)).unwrap().unwrap();
    seen.advance(9, &mut f.store).unwrap();
    assert_eq!(first.watermark(), 9);
}

/// Runs `child` in a forked process, without destructors; returns whether it said true.
fn in_child(child: impl FnOnce() -> bool) -> bool {
    // SAFETY: the child runs only `child`, which takes no lock of the test harness, and exits.
    match unsafe { libc::fork() } {
        // SAFETY: ends the child.
        0 => unsafe { libc::_exit(i32::from(!child())) },
        pid => {
            let mut status = 1;
            // SAFETY: our own child, room for its status.
            assert_eq!(unsafe { libc::waitpid(pid, &mut status, 0) }, pid);
            status == 0
        }
    }
}

#[test]
fn a_full_disk_is_an_error_and_no_signal() {
    // A file-size limit stands for the full disk: both fail in the same call.
    let mut f = Fixture::new();
    let mailbox = f.attach(1, 8);
    let refused = in_child(|| {
        let limit = libc::rlimit {
            rlim_cur: 40_000,
            rlim_max: 40_000,
        };
        // SAFETY: only this child has the limit.
        unsafe {
            libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
            libc::setrlimit(libc::RLIMIT_FSIZE, &limit);
        }
        let full = (9..5000).find_map(|uid| mailbox.pending_add(&[entry(uid)]).err());
        matches!(
            full,
            Some(Error::Io {
                what: "enlarge",
                ..
            })
        )
    });
    assert!(refused, "the error was another, or a signal came");
    let known = uids(&mailbox).len() as u32;
    assert!(known > 100);
    // There is room again.
    mailbox.pending_add(&[entry(9 + known)]).unwrap();
    mailbox.advance(9 + known, &mut f.store).unwrap();
    assert!(uids(&mailbox).is_empty());
}

fn readable(waiter: &Waiter, ms: i32) -> bool {
    use std::os::fd::AsRawFd;
    let mut poll = libc::pollfd {
        fd: waiter.fd().as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one valid entry.
    unsafe { libc::poll(&mut poll, 1, ms) == 1 }
}

#[test]
fn an_advance_makes_every_fifo_readable() {
    let mut f = Fixture::new();
    let mailbox = f.attach(1, 8);
    mailbox
        .pending_add(&[entry(9), entry(10), entry(11)])
        .unwrap();
    let waiters: Vec<_> = (0..3).map(|_| Waiter::open(&f.table).unwrap()).collect();
    assert!(!readable(&waiters[0], 0));
    mailbox.advance(9, &mut f.store).unwrap();
    for waiter in &waiters {
        assert!(readable(waiter, 20_000));
        assert!(waiter.drain());
        assert!(!readable(waiter, 0));
    }
    drop(waiters);
    assert_eq!(f.table.waiting_processes(), 0);
    mailbox.advance(10, &mut f.store).unwrap();
    assert_eq!(
        f.table.map.header().fifos.0.to_look(),
        None,
        "nobody is looked for any more"
    );
    let late = Waiter::open(&f.table).unwrap();
    mailbox.advance(11, &mut f.store).unwrap();
    assert!(readable(&late, 20_000));
    assert!(late.drain());
    f.reboot();
    let mailbox = f.attach(1, 8);
    mailbox.pending_add(&[entry(12)]).unwrap();
    mailbox.advance(12, &mut f.store).unwrap();
    assert!(readable(&late, 20_000), "the new table rings it too");
    fs::remove_dir_all(f.dir.path().join("xid.waiters")).unwrap();
    assert!(!late.drain());
}

#[test]
fn the_fifos_of_dead_processes_and_what_is_no_fifo_are_dealt_with() {
    let mut f = Fixture::new();
    let mailbox = f.attach(1, 8);
    mailbox.pending_add(&[entry(9), entry(10)]).unwrap();
    assert!(in_child(|| Waiter::open(&f.table)
        .map(std::mem::forget)
        .is_ok()));
    assert_eq!(f.table.waiting_processes(), 1);
    mailbox.advance(9, &mut f.store).unwrap();
    assert_eq!(f.table.waiting_processes(), 0);

    let waiter = Waiter::open(&f.table).unwrap();
    let folder = f.dir.path().join("xid.waiters");
    fs::write(folder.join("file"), "as it was").unwrap();
    std::os::unix::fs::symlink(folder.join("file"), folder.join("link")).unwrap();
    mailbox.advance(10, &mut f.store).unwrap();
    assert!(readable(&waiter, 20_000));
    assert_eq!(fs::read(folder.join("file")).unwrap(), b"as it was");
    let mode = fs::metadata(&folder).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o700);
}

#[test]
fn a_gap_that_a_killed_process_left_is_asked_for_until_it_is_filled() {
    let mut f = Fixture::new();
    let mailbox = f.attach(1, 8);
    assert_eq!(mailbox.pending_add(&[entry(9)]).unwrap(), Tail::Whole);
    // Whoever committed 10 and 11 never told.
    assert_eq!(
        mailbox.pending_add(&[entry(12)]).unwrap(),
        Tail::MissingAbove(9)
    );
    assert_eq!(mailbox.info().unwrap().tail, Tail::MissingAbove(9));
    let attach = |f: &mut Fixture| {
        f.table
            .attach(&guid(1), 7, b"", 12, &mut f.store)
            .unwrap()
            .1
    };
    assert_eq!(attach(&mut f), Tail::MissingAbove(9));
    mailbox
        .pending_add(&[entry(10), entry(11), entry(12)])
        .unwrap();
    mailbox.filled(12).unwrap();
    assert_eq!(attach(&mut f), Tail::Whole);
    assert_eq!(uids(&mailbox), [9, 10, 11, 12]);
    // A gap below the watermark is none.
    assert_eq!(
        mailbox.pending_add(&[entry(15)]).unwrap(),
        Tail::MissingAbove(12)
    );
    mailbox.advance(15, &mut f.store).unwrap();
    assert_eq!(mailbox.pending_add(&[entry(16)]).unwrap(), Tail::Whole);
}

#[test]
fn forgotten_watermarks_start_anew_with_all_that_the_mailbox_holds() {
    let mut f = Fixture::new();
    let mailbox = f.attach(1, 8);
    mailbox.pending_add(&[entry(9), entry(10)]).unwrap();
    f.table.forget_watermarks().unwrap();
    f.store.marks.clear();
    let again = f.attach(1, 20);
    assert_eq!(again.watermark(), 20);
    assert!(uids(&again).is_empty());
    assert_eq!(f.table.audit().unwrap(), Audit::default());
}

/// All that can be done with a table; whatever it answers.
fn use_all(table: &Arc<Table>, store: &mut Store) -> Result<(), Error> {
    let (mailbox, _) = table.attach(&guid(1), 7, b"another name", 12, store)?;
    table.attach(&guid(77), 7, b"new", 3, store)?;
    for one in table.mailboxes()? {
        one.info()?;
        one.pending(0)?;
    }
    mailbox.pending_add(&[entry(30), entry(29), entry(31)])?;
    mailbox.pending_remove(29)?;
    let id = mailbox.wait_begin(31)?;
    mailbox.wait_end(id, false)?;
    mailbox.hold(1, 1)?;
    mailbox.release(0)?;
    mailbox.close_gate(1, 1)?;
    mailbox.open_gate(0)?;
    mailbox.advance(10, store)?;
    mailbox.promise(3)?;
    mailbox.set_limits(20, 40)?;
    table.counts();
    table.audit()?;
    Ok(())
}

#[test]
fn a_table_with_any_word_changed_gives_errors_and_never_a_crash() {
    const FIRST_WORD: u64 = 256; // after the seal and the locks
    let mut f = Fixture::new();
    let mailbox = f.attach(1, 8);
    let entries: Vec<_> = (9..40).map(entry).collect();
    mailbox.pending_add(&entries[..20]).unwrap();
    mailbox.wait_begin(12).unwrap();
    f.attach(2, 3);
    let path = f.table.path().to_owned();
    let whole = fs::read(&path).unwrap();
    let used = u64::from(f.table.map.header().pool.0.unused.load(Ordering::SeqCst)) * 64;
    drop(mailbox);
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    let mut damaged = 0;
    let values = [u32::MAX, 1, 64, 70, 0x1000_0000];
    for (at, value) in (FIRST_WORD..used).step_by(4).zip(values.iter().cycle()) {
        let (table, opened) = open(f.dir.path());
        assert_eq!(opened, Opened::Existing, "offset {at}");
        file.write_all_at(&value.to_ne_bytes(), at).unwrap();
        let table = Arc::new(table);
        if let Err(Error::Damaged { .. }) = use_all(&table, &mut Store::default()) {
            damaged += 1;
            assert!(
                !table.is_current(),
                "offset {at}: others would go on with it"
            );
        }
        drop(table);
        file.set_len(whole.len() as u64).unwrap();
        file.write_all_at(&whole, 0).unwrap();
    }
    assert!(damaged > 20, "only {damaged} changes were found");
}

#[test]
fn a_damaged_table_is_replaced_when_it_is_next_opened() {
    let mut f = Fixture::new();
    let mailbox = f.attach(1, 8);
    mailbox.pending_add(&[entry(9)]).unwrap();
    mailbox.slot().first.store(u32::MAX, Ordering::SeqCst);
    assert!(matches!(mailbox.pending(0), Err(Error::Damaged { .. })));
    assert!(!f.table.is_current());
    let (table, opened) = open(f.dir.path());
    assert!(matches!(opened, Opened::Rebuilt(_)));
    f.table = Arc::new(table);
    let (mailbox, tail) = f.table.attach(&guid(1), 7, b"", 9, &mut f.store).unwrap();
    assert_eq!((mailbox.watermark(), tail), (8, Tail::MissingAbove(8)));
}
