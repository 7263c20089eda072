//! Tests of the table within one process; tests/table/ has those with many.

use std::convert::Infallible;
use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::sync::atomic::{AtomicU64, Ordering};

use super::*;

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
    assert!(matches!(error, Error::Newer { version: 2, .. }), "{error}");
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
