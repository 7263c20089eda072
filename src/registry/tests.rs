//! The registry as a whole, on a real folder.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use super::*;

const INBOX: BoxGuid = [7; 16];
const INCARNATION: u64 = 1 << INCARNATION_SHIFT;

struct Home {
    dir: tempfile::TempDir,
    registry: Arc<Registry>,
}

impl Home {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let registry = Self::open(dir.path());
        Home { dir, registry }
    }

    fn open(dir: &Path) -> Arc<Registry> {
        Arc::new(Registry::new(dir, "foo").unwrap())
    }

    /// Another process's view: its own files, its own connection.
    fn another(&self) -> Arc<Registry> {
        Self::open(self.dir.path())
    }

    /// As if the process had ended and another begun.
    fn restart(&mut self) {
        self.registry = self.another();
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn aside(&self) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(self.dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.contains(".broken-") && !name.contains("-wal"))
            .filter(|name| !name.contains("-shm"))
            .collect();
        names.sort();
        names
    }
}

fn inbox() -> Mailbox {
    Mailbox::new(INBOX, "INBOX", 1000)
}

fn xid(text: &str) -> Xid<'_> {
    Xid::parse(text.as_bytes()).unwrap()
}

fn entry<'a>(uid: u32, text: &'a str, guid: &'a str) -> Entry<'a> {
    Entry {
        uid,
        xid: xid(text),
        guid: guid.as_bytes(),
    }
}

fn rows(registry: &Registry, guid: &BoxGuid) -> Vec<(u32, String, String)> {
    registry
        .export(guid)
        .map(|row| row.unwrap())
        .map(|row| {
            let guid = String::from_utf8(row.guid).unwrap();
            (row.uid, format!("{}-{}", row.namespace, row.number), guid)
        })
        .collect()
}

fn row(uid: u32, xid: &str, guid: &str) -> (u32, String, String) {
    (uid, xid.to_owned(), guid.to_owned())
}

#[test]
fn what_was_noted_is_known() {
    let home = Home::new();
    let inbox = inbox();
    home.registry
        .note(&inbox, &[entry(1, "foo-1", "a"), entry(2, "bar-9", "b")])
        .unwrap();
    assert!(
        !home.file("xid.registry").exists(),
        "a commit opened the registry"
    );
    let other = home.another();
    assert_eq!(other.registered(&inbox, 3).unwrap(), 3);
    assert_eq!(fs::metadata(home.file("xid.journal")).unwrap().len(), 0);
    assert_eq!(other.lookup(&inbox, xid("bar-9")).unwrap(), Some(2));
    assert_eq!(other.lookup(&inbox, xid("bar-8")).unwrap(), None);
    assert_eq!(
        rows(&other, &INBOX),
        [row(1, "foo-1", "a"), row(2, "bar-9", "b")]
    );
    let state = State::parse(b"foo-1").unwrap();
    assert_eq!(other.news(&inbox, &state).unwrap(), [2]);
    assert_eq!(other.news(&inbox, &State::new()).unwrap(), [1, 2]);
}

#[test]
fn numbers_come_in_blocks_that_are_never_repeated() {
    let home = Home::new();
    assert_eq!(home.registry.reserve(1, 1).unwrap(), 1..4097);
    assert_eq!(home.another().reserve(1, 1).unwrap(), 4097..8193);
    assert_eq!(home.registry.reserve(8193, 10_000).unwrap(), 8193..18_193);
}

#[test]
fn the_files_are_the_owners_alone() {
    let home = Home::new();
    home.registry.reserve(1, 1).unwrap();
    home.registry
        .note(&inbox(), &[entry(1, "foo-1", "a")])
        .unwrap();
    home.registry.registered(&inbox(), 2).unwrap();
    let mut seen = 0;
    for file in fs::read_dir(home.dir.path()).unwrap() {
        let file = file.unwrap();
        let mode = file.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{:?}", file.file_name());
        seen += 1;
    }
    assert!(
        seen >= 5,
        "registry, -wal, -shm, journal and witness were expected"
    );
}

#[test]
fn a_root_that_is_missing_is_made_for_the_owner_alone_and_may_lie_behind_a_link() {
    let dir = tempfile::tempdir().unwrap();
    let link = dir.path().join("link");
    std::os::unix::fs::symlink(dir.path(), &link).unwrap();
    let root = link.join("a/b");
    let registry = Registry::new(&root, "foo").unwrap();
    registry.reserve(1, 1).unwrap();
    assert_eq!(
        fs::metadata(&root).unwrap().permissions().mode() & 0o777,
        0o700
    );
    assert!(Registry::exists(&root));
    assert!(Registry::new(&root, "not-a-namespace").is_err());
}

// Numbers

#[test]
fn a_deleted_registry_starts_a_new_incarnation() {
    let mut home = Home::new();
    home.registry.reserve(1, 1).unwrap();
    for incarnation in 1..4 {
        fs::remove_file(home.file("xid.registry")).unwrap();
        home.restart();
        let first = incarnation * INCARNATION + 1;
        assert_eq!(home.registry.reserve(1, 1).unwrap(), first..first + 4096);
    }
}

#[test]
fn a_registry_deleted_under_a_running_process_is_noticed() {
    let home = Home::new();
    home.registry.reserve(1, 1).unwrap();
    fs::remove_file(home.file("xid.registry")).unwrap();
    let (mine, other) = (
        home.registry.reserve(1, 1).unwrap(),
        home.another().reserve(1, 1).unwrap(),
    );
    assert_eq!(mine.start, INCARNATION + 1);
    assert_eq!(other.start, INCARNATION + 4097);
}

#[test]
fn numbers_in_a_mailbox_prove_an_earlier_registry_even_without_the_witness() {
    let home = Home::new();
    assert_eq!(
        home.registry.reserve(4712, 1).unwrap().start,
        INCARNATION + 1
    );
    fs::remove_file(home.file("xid.incarnation")).unwrap();
    fs::remove_file(home.file("xid.registry")).unwrap();
    let above = 9 * INCARNATION + 5;
    assert_eq!(
        home.another().reserve(above + 1, 1).unwrap().start,
        10 * INCARNATION + 1
    );
}

#[test]
fn an_old_registry_put_back_starts_a_new_incarnation() {
    let mut home = Home::new();
    home.registry.reserve(1, 1).unwrap();
    // The last to close it writes everything into the one file.
    home.restart();
    fs::copy(home.file("xid.registry"), home.file("backup")).unwrap();
    assert_eq!(home.registry.reserve(1, 1).unwrap(), 4097..8193);
    home.restart();
    fs::rename(home.file("backup"), home.file("xid.registry")).unwrap();
    assert_eq!(home.registry.reserve(1, 1).unwrap().start, INCARNATION + 1);
    assert_eq!(
        home.registry.reserve(1, 1).unwrap().start,
        INCARNATION + 4097
    );
}

#[test]
fn a_reservation_lost_with_the_write_ahead_log_starts_a_new_incarnation() {
    let mut home = Home::new();
    home.registry.reserve(1, 1).unwrap();
    home.restart();
    home.registry.reserve(1, 1).unwrap();
    // As it looks after kill -9 with a damaged log: nobody wrote it back.
    let (copy, wal) = (home.file("copy"), home.file("xid.registry-wal"));
    fs::copy(home.file("xid.registry"), &copy).unwrap();
    let mut log = fs::read(&wal).unwrap();
    assert!(log.len() > 1000, "the log holds the reservation");
    log[600..].fill(0x5a);
    home.restart();
    fs::rename(copy, home.file("xid.registry")).unwrap();
    fs::write(&wal, log).unwrap();
    assert_eq!(home.registry.reserve(1, 1).unwrap().start, INCARNATION + 1);
}

#[test]
fn an_unreadable_witness_is_no_licence_to_begin_at_1() {
    let mut home = Home::new();
    home.registry.reserve(1, 1).unwrap();
    home.restart();
    fs::write(home.file("xid.incarnation"), "?").unwrap();
    assert_eq!(
        home.registry.reserve(1, 1).unwrap(),
        4097..8193,
        "the registry still knows"
    );
    home.restart();
    fs::write(home.file("xid.incarnation"), "?").unwrap();
    fs::remove_file(home.file("xid.registry")).unwrap();
    assert!(home.registry.reserve(1, 1).unwrap().start > 10_000 * INCARNATION);
}

#[test]
fn threads_and_handles_never_get_a_number_twice() {
    let home = Home::new();
    let numbers = Mutex::new(std::collections::BTreeSet::new());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            let registry = home.another();
            let numbers = &numbers;
            scope.spawn(move || {
                for round in 0..6 {
                    let first = registry.take_numbers(0, 2000 + round).unwrap();
                    let mut numbers = numbers.lock();
                    for number in first..first + u64::from(2000 + round) {
                        assert!(numbers.insert(number), "{number} was given twice");
                    }
                }
            });
        }
    });
    assert_eq!(numbers.lock().len(), 4 * (6 * 2000 + 15));
}

// Broken files

/// What may be found in place of a registry, each with its name.
fn broken_registries(good: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let mut random = good.to_vec();
    let mut seed = 0x9e37_79b9_u32;
    for byte in &mut random {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        *byte = (seed >> 24) as u8;
    }
    let mut header_torn = good.to_vec();
    header_torn[10..80].fill(0);
    let mut cells_torn = good.to_vec();
    for page in cells_torn.chunks_mut(4096).skip(1) {
        page[..64].fill(0xff);
    }
    vec![
        ("random", random),
        (
            "text",
            b"this is no database at all, not even by accident".to_vec(),
        ),
        ("one octet", vec![1]),
        ("torn header", header_torn),
        ("torn pages", cells_torn),
        ("half", good[..good.len() / 2].to_vec()),
    ]
}

#[test]
fn a_torn_or_random_registry_is_moved_aside_and_its_rows_come_back_from_the_index() {
    let template = Home::new();
    template.registry.reserve(1, 1).unwrap();
    template
        .registry
        .note(&inbox(), &[entry(1, "foo-1", "a")])
        .unwrap();
    template.registry.registered(&inbox(), 2).unwrap();
    let (dir, registry) = (template.dir, template.registry);
    drop(registry);
    let good = fs::read(dir.path().join("xid.registry")).unwrap();
    for (name, content) in broken_registries(&good) {
        let home = Home::new();
        fs::write(home.file("xid.registry"), &content).unwrap();
        fs::copy(
            dir.path().join("xid.incarnation"),
            home.file("xid.incarnation"),
        )
        .unwrap();
        let missing = home.registry.registered(&inbox(), 2).unwrap();
        assert_eq!(missing, 1, "{name}");
        assert_eq!(home.aside().len(), 1, "{name}: {:?}", home.aside());
        assert_eq!(
            fs::read(home.file(&home.aside()[0])).unwrap(),
            content,
            "{name}"
        );
        home.registry
            .register(&inbox(), &[entry(1, "foo-1", "a")], 2, true)
            .unwrap();
        assert_eq!(
            home.registry.lookup(&inbox(), xid("foo-1")).unwrap(),
            Some(1),
            "{name}"
        );
        assert_eq!(
            home.registry.reserve(1, 1).unwrap().start,
            INCARNATION + 1,
            "{name}"
        );
    }
}

#[test]
fn a_registry_that_breaks_while_it_is_open_is_moved_aside_by_the_call_that_finds_out() {
    let home = Home::new();
    let many: Vec<String> = (1..=3000).map(|n| format!("foo-{n}")).collect();
    let entries: Vec<Entry<'_>> = (1..)
        .zip(&many)
        .map(|(uid, x)| entry(uid, x, "g"))
        .collect();
    home.registry
        .register(&inbox(), &entries, 3001, true)
        .unwrap();
    drop(home.another().boxes().unwrap());
    let registry = home.another();
    drop(home.registry);
    // Only now is everything in the one file, and nobody has pages of it in memory.
    let path = home.dir.path().join("xid.registry");
    let mut content = fs::read(&path).unwrap();
    for page in content.chunks_mut(4096).skip(2) {
        page[..512].fill(0xff);
    }
    fs::write(&path, &content).unwrap();
    let error = registry.lookup(&inbox(), xid("foo-2000")).unwrap_err();
    assert!(matches!(error, Error::Broken { .. }), "{error}");
    assert_eq!(
        registry.registered(&inbox(), 3001).unwrap(),
        1,
        "a new one knows nothing yet"
    );
    let aside = fs::read_dir(home.dir.path())
        .unwrap()
        .filter(|f| {
            f.as_ref()
                .unwrap()
                .file_name()
                .to_string_lossy()
                .contains("broken")
        })
        .count();
    assert!(aside >= 1);
}

fn sqlite(path: &Path, statements: &str) {
    let conn = rusqlite::Connection::open(path).unwrap();
    conn.execute_batch(statements).unwrap();
}

#[test]
fn a_database_of_something_else_is_moved_aside() {
    for statements in [
        "CREATE TABLE mail(x)",
        "PRAGMA application_id = 1; CREATE TABLE mail(x)",
        "PRAGMA application_id = 2020172914; PRAGMA user_version = 1; CREATE TABLE messages(x)",
    ] {
        let home = Home::new();
        sqlite(&home.file("xid.registry"), statements);
        home.registry.reserve(1, 1).unwrap();
        assert_eq!(home.aside().len(), 1, "{statements}");
    }
}

#[test]
fn a_registry_with_an_object_too_many_is_not_trusted() {
    let mut home = Home::new();
    home.registry.reserve(1, 1).unwrap();
    home.restart();
    sqlite(
        &home.file("xid.registry"),
        "CREATE TRIGGER t AFTER UPDATE ON meta BEGIN UPDATE meta SET reserved = 0; END",
    );
    assert_eq!(home.registry.reserve(1, 1).unwrap().start, INCARNATION + 1);
    assert_eq!(home.aside().len(), 1);
}

#[test]
fn a_newer_schema_is_refused_and_left_alone() {
    let mut home = Home::new();
    home.registry.reserve(1, 1).unwrap();
    home.restart();
    sqlite(
        &home.file("xid.registry"),
        "PRAGMA user_version = 4; ALTER TABLE meta ADD more",
    );
    let error = home.registry.reserve(1, 1).unwrap_err();
    assert!(
        matches!(
            error,
            Error::Newer {
                found: 4,
                known: 3,
                ..
            }
        ),
        "{error}"
    );
    assert!(error.to_string().contains("update this program"));
    assert!(home.aside().is_empty());
    assert!(home.registry.lookup(&inbox(), xid("foo-1")).is_err());
}

#[test]
fn a_locked_registry_is_a_clear_error_after_a_bounded_time() {
    let home = Home::new();
    home.registry.reserve(1, 1).unwrap();
    let other = rusqlite::Connection::open(home.file("xid.registry")).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let error = home.registry.reserve(1, 1).unwrap_err();
    assert!(matches!(error, Error::Busy { .. }), "{error}");
    // The commit path does not notice.
    home.registry
        .note(&inbox(), &[entry(1, "foo-1", "a")])
        .unwrap();
    other.execute_batch("COMMIT").unwrap();
    assert_eq!(home.registry.registered(&inbox(), 2).unwrap(), 2);
}

// The journal

#[test]
fn a_journal_that_cannot_be_written_loses_nothing() {
    let home = Home::new();
    let (root, away) = (home.dir.path(), home.dir.path().with_extension("away"));
    let inbox = inbox();
    fs::rename(root, &away).unwrap();
    let error = home
        .registry
        .note(&inbox, &[entry(1, "foo-1", "a")])
        .unwrap_err();
    assert!(matches!(error, Error::Io { .. }), "{error}");
    fs::rename(&away, root).unwrap();
    home.registry
        .note(&inbox, &[entry(2, "foo-2", "b")])
        .unwrap();
    assert_eq!(
        home.registry.registered(&inbox, 3).unwrap(),
        1,
        "UID 1 is asked for"
    );
    let index = [entry(1, "foo-1", "a"), entry(2, "foo-2", "")];
    home.registry.register(&inbox, &index, 3, false).unwrap();
    assert_eq!(home.registry.registered(&inbox, 3).unwrap(), 3);
    assert_eq!(
        rows(&home.registry, &INBOX),
        [row(1, "foo-1", "a"), row(2, "foo-2", "b")]
    );
}

#[test]
fn a_folder_or_a_link_in_the_place_of_a_file_is_moved_aside() {
    for name in ["xid.registry", "xid.journal", "xid.incarnation"] {
        for link in [false, true] {
            let home = Home::new();
            match link {
                true => std::os::unix::fs::symlink("/nowhere/at/all", home.file(name)).unwrap(),
                false => fs::create_dir(home.file(name)).unwrap(),
            }
            if name == "xid.registry" && link {
                // A link to a file elsewhere is an administrator's wish; this one is broken.
                assert!(home.registry.reserve(1, 1).is_err());
                continue;
            }
            let inbox = inbox();
            home.registry
                .note(&inbox, &[entry(1, "foo-1", "a")])
                .unwrap();
            assert_eq!(home.registry.registered(&inbox, 2).unwrap(), 2, "{name}");
            let first = home.registry.reserve(1, 1).unwrap().start;
            let lost = name == "xid.incarnation";
            assert_eq!(first > 10_000 * INCARNATION, lost, "{name}: {first}");
            assert_eq!(home.aside().len(), 1, "{name}");
        }
    }
}

#[test]
fn a_registry_deleted_with_its_witness_is_known_by_what_it_left() {
    let home = Home::new();
    let inbox = inbox();
    assert_eq!(home.registry.reserve(1, 1).unwrap().start, 1);
    home.registry
        .note(&inbox, &[entry(1, "foo-1", "a")])
        .unwrap();
    assert_eq!(home.registry.registered(&inbox, 2).unwrap(), 2);
    for name in [
        "xid.registry",
        "xid.registry-wal",
        "xid.registry-shm",
        "xid.incarnation",
    ] {
        let _ = fs::remove_file(home.file(name));
    }
    let first = home.another().reserve(1, 1).unwrap().start;
    assert!(first > 10_000 * INCARNATION, "{first}");
}

#[test]
fn a_torn_record_hides_none_behind_it() {
    let mut whole = Vec::new();
    let uids = 1..=3_u32;
    let xids: Vec<String> = uids.clone().map(|uid| format!("foo-{uid}")).collect();
    let mut ends = vec![0];
    for (uid, x) in uids.clone().zip(&xids) {
        Record::Note {
            mailbox: INBOX,
            uid,
            xid: xid(x),
            guid: b"axJ1\nb",
        }
        .encode(&mut whole);
        ends.push(whole.len());
    }
    // The second record is cut at each of its octets, as a full disk would.
    for cut in ends[1]..ends[2] {
        let torn = [&whole[..cut], &whole[ends[2]..]].concat();
        let mut seen = Vec::new();
        let progress = journal::read::<()>(&torn, true, |record| {
            if let Record::Note { uid, .. } = record {
                seen.push(uid);
            }
            Ok(())
        });
        assert_eq!(seen, [1, 3], "cut at {cut}");
        let expected = journal::Progress {
            consumed: torn.len(),
            garbage: cut - ends[1],
        };
        assert_eq!(progress, Ok(expected));
    }
}

#[test]
fn every_flipped_bit_is_noticed() {
    let mut whole = Vec::new();
    Record::Note {
        mailbox: INBOX,
        uid: 9,
        xid: xid("foo-77"),
        guid: b"guid",
    }
    .encode(&mut whole);
    Record::Box {
        mailbox: INBOX,
        uidvalidity: 5,
        name: b"INBOX",
    }
    .encode(&mut whole);
    let records = |bytes: &[u8]| {
        let mut n = 0;
        journal::read::<()>(bytes, true, |_| {
            n += 1;
            Ok(())
        })
        .unwrap();
        n
    };
    assert_eq!(records(&whole), 2);
    for bit in 0..whole.len() * 8 {
        let mut flipped = whole.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(records(&flipped), 1, "bit {bit}");
    }
}

#[test]
fn a_journal_is_read_in_pieces() {
    let home = Home::new();
    let inbox = inbox();
    let long = "g".repeat(250);
    // More than two windows of the reader, less than what makes the writer take it in.
    let xids: Vec<String> = (1..=2000).map(|n| format!("foo-{n}")).collect();
    for (uid, x) in (1..).zip(&xids) {
        home.registry.note(&inbox, &[entry(uid, x, &long)]).unwrap();
    }
    assert!(fs::metadata(home.file("xid.journal")).unwrap().len() > 512 * 1024);
    assert_eq!(home.registry.registered(&inbox, 2001).unwrap(), 2001);
    assert_eq!(rows(&home.registry, &INBOX).len(), 2000);
}

#[test]
fn a_long_journal_is_taken_in_by_who_appends_to_it() {
    let home = Home::new();
    let inbox = inbox();
    let xids: Vec<String> = (1..=12_000).map(|n| format!("foo-{n}")).collect();
    let entries: Vec<Entry<'_>> = (1..)
        .zip(&xids)
        .map(|(uid, x)| entry(uid, x, "0123456789abcdef0123456789abcdef"))
        .collect();
    for some in entries.chunks(100) {
        home.registry.note(&inbox, some).unwrap();
    }
    assert!(home.registry.status().unwrap().journal < 1 << 20);
    assert_eq!(home.registry.registered(&inbox, 12_001).unwrap(), 12_001);
}

#[test]
fn a_writer_that_was_stopped_with_its_lock_held_holds_up_nobody_for_long() {
    let home = Home::new();
    let inbox = inbox();
    home.registry
        .note(&inbox, &[entry(1, "foo-1", "a")])
        .unwrap();
    let stopped = fs::File::open(home.file("xid.journal")).unwrap();
    stopped.lock_shared().unwrap();
    assert_eq!(home.registry.registered(&inbox, 2).unwrap(), 2);
    assert!(
        fs::metadata(home.file("xid.journal")).unwrap().len() > 0,
        "it was not cut"
    );
    home.registry
        .note(&inbox, &[entry(2, "foo-2", "b")])
        .unwrap();
    stopped.unlock().unwrap();
    assert_eq!(home.registry.registered(&inbox, 3).unwrap(), 3);
    assert_eq!(
        rows(&home.registry, &INBOX),
        [row(1, "foo-1", "a"), row(2, "foo-2", "b")]
    );
}

#[test]
fn a_journal_deleted_under_a_running_process_is_made_anew() {
    let home = Home::new();
    let inbox = inbox();
    home.registry
        .note(&inbox, &[entry(1, "foo-1", "a")])
        .unwrap();
    fs::remove_file(home.file("xid.journal")).unwrap();
    home.registry
        .note(&inbox, &[entry(2, "foo-2", "b")])
        .unwrap();
    assert_eq!(home.registry.registered(&inbox, 3).unwrap(), 1);
    assert_eq!(home.registry.lookup(&inbox, xid("foo-2")).unwrap(), Some(2));
}

#[test]
fn writers_and_readers_at_once_lose_nothing() {
    const WRITERS: u32 = 3;
    const EACH: u32 = 300;
    let home = Home::new();
    std::thread::scope(|scope| {
        for writer in 0..WRITERS {
            let registry = home.another();
            scope.spawn(move || {
                let mailbox = Mailbox::new([writer as u8; 16], &format!("box{writer}"), 1);
                for uid in 1..=EACH {
                    let x = format!("foo-{}", writer * EACH + uid);
                    registry.note(&mailbox, &[entry(uid, &x, "g")]).unwrap();
                }
            });
        }
        let registry = home.another();
        scope.spawn(move || {
            let inbox = inbox();
            for _ in 0..100 {
                registry.registered(&inbox, 1).unwrap();
            }
        });
    });
    for writer in 0..WRITERS {
        let mailbox = Mailbox::new([writer as u8; 16], "", 0);
        assert_eq!(
            home.registry.registered(&mailbox, EACH + 1).unwrap(),
            EACH + 1
        );
    }
    assert!(
        home.registry
            .verify()
            .unwrap()
            .iter()
            .all(|f| matches!(f, Finding::Unreserved { .. }))
    );
}

// Rows

#[test]
fn a_gap_is_asked_for_until_it_is_registered() {
    let home = Home::new();
    let inbox = inbox();
    home.registry
        .note(&inbox, &[entry(1, "foo-1", ""), entry(2, "foo-2", "")])
        .unwrap();
    home.registry
        .note(&inbox, &[entry(5, "foo-5", "")])
        .unwrap();
    assert_eq!(home.registry.registered(&inbox, 6).unwrap(), 3);
    // UID 3 was expunged before anybody noted it.
    let index = [entry(4, "bar-1", ""), entry(5, "foo-5", "")];
    home.registry.register(&inbox, &index, 6, false).unwrap();
    assert_eq!(home.registry.registered(&inbox, 6).unwrap(), 6);
    home.registry
        .note(&inbox, &[entry(6, "foo-6", "")])
        .unwrap();
    assert_eq!(home.registry.registered(&inbox, 7).unwrap(), 7);
    assert_eq!(rows(&home.registry, &INBOX).len(), 5);
}

#[test]
fn an_expunged_message_is_forgotten() {
    let home = Home::new();
    let inbox = inbox();
    home.registry
        .note(&inbox, &[entry(1, "foo-1", "a"), entry(2, "foo-2", "b")])
        .unwrap();
    home.registry.forget(&inbox, &[1], u32::MAX).unwrap();
    assert_eq!(home.registry.news(&inbox, &State::new()).unwrap(), [2]);
    assert_eq!(home.registry.lookup(&inbox, xid("foo-1")).unwrap(), None);
    assert_eq!(home.registry.registered(&inbox, 3).unwrap(), 3);
    let mut recovery = home.registry.recovery(&inbox).unwrap().unwrap();
    assert_eq!(
        recovery.take(b"a").unwrap(),
        None,
        "it would come back with its old XID"
    );
}

#[test]
fn a_save_that_was_rolled_back_gives_its_uid_to_the_next() {
    let home = Home::new();
    let inbox = inbox();
    home.registry
        .note(&inbox, &[entry(1, "foo-1", "a")])
        .unwrap();
    home.registry
        .note(&inbox, &[entry(1, "foo-2", "b")])
        .unwrap();
    home.registry.registered(&inbox, 2).unwrap();
    assert_eq!(rows(&home.registry, &INBOX), [row(1, "foo-2", "b")]);
}

#[test]
fn renumbered_messages_keep_xid_and_guid() {
    let home = Home::new();
    let inbox = inbox();
    let before = [
        entry(1, "foo-1", "a"),
        entry(2, "foo-2", "b"),
        entry(3, "foo-3", "c"),
    ];
    home.registry.register(&inbox, &before, 4, true).unwrap();
    home.registry
        .note(&inbox, &[entry(2, "foo-1", ""), entry(1, "foo-2", "")])
        .unwrap();
    home.registry.registered(&inbox, 4).unwrap();
    // The note of foo-1 at 2 put foo-2 out; foo-2's own brought it back.
    let found = rows(&home.registry, &INBOX);
    assert_eq!(found[0].1, "foo-2");
    assert_eq!(found[1..], [row(2, "foo-1", "a"), row(3, "foo-3", "c")]);
    let index = [
        entry(4, "foo-1", "a"),
        entry(5, "foo-2", "b"),
        entry(9, "foo-3", "c"),
    ];
    home.registry.register(&inbox, &index, 10, true).unwrap();
    let after = [
        row(4, "foo-1", "a"),
        row(5, "foo-2", "b"),
        row(9, "foo-3", "c"),
    ];
    assert_eq!(rows(&home.registry, &INBOX), after);
}

#[test]
fn registering_all_removes_what_the_index_does_not_have() {
    let home = Home::new();
    let inbox = inbox();
    let stale: Vec<String> = (1..=50).map(|n| format!("foo-{n}")).collect();
    let entries: Vec<Entry<'_>> = (1..)
        .zip(&stale)
        .map(|(uid, x)| entry(uid, x, "g"))
        .collect();
    home.registry.register(&inbox, &entries, 51, true).unwrap();
    let index = [entry(2, "foo-2", ""), entry(7, "bar-1", "h")];
    home.registry.register(&inbox, &index, 20, true).unwrap();
    assert_eq!(
        rows(&home.registry, &INBOX),
        [row(2, "foo-2", "g"), row(7, "bar-1", "h")]
    );
    assert_eq!(home.registry.registered(&inbox, 30).unwrap(), 20);
    home.registry.register(&inbox, &[], 30, true).unwrap();
    assert!(rows(&home.registry, &INBOX).is_empty());
    assert_eq!(home.registry.registered(&inbox, 30).unwrap(), 30);
}

#[test]
fn registering_goes_on_where_it_was_stopped_and_spans_transactions() {
    let home = Home::new();
    let inbox = inbox();
    let xids: Vec<String> = (1..=25_000).map(|n| format!("foo-{n}")).collect();
    let entries: Vec<Entry<'_>> = (1..).zip(&xids).map(|(uid, x)| entry(uid, x, "")).collect();
    home.registry.registered(&inbox, 25_001).unwrap();
    home.registry
        .register(&inbox, &entries[..12_000], 12_001, false)
        .unwrap();
    assert_eq!(home.registry.registered(&inbox, 25_001).unwrap(), 12_001);
    // What another process registered meanwhile may be among the entries.
    home.registry
        .register(&inbox, &entries, 25_001, false)
        .unwrap();
    assert_eq!(home.registry.registered(&inbox, 25_001).unwrap(), 25_001);
    assert_eq!(rows(&home.registry, &INBOX).len(), 25_000);
    home.registry
        .register(&inbox, &entries[24_999..], 25_001, true)
        .unwrap();
    assert_eq!(rows(&home.registry, &INBOX).len(), 1);
}

#[test]
fn entries_out_of_order_are_refused() {
    let home = Home::new();
    let inbox = inbox();
    for (entries, below) in [
        (vec![entry(2, "foo-1", ""), entry(1, "foo-2", "")], 3),
        (vec![entry(1, "foo-1", ""), entry(1, "foo-2", "")], 3),
        (vec![entry(3, "foo-1", "")], 3),
        (vec![entry(0, "foo-1", "")], 3),
    ] {
        let error = home
            .registry
            .register(&inbox, &entries, below, true)
            .unwrap_err();
        assert!(matches!(error, Error::Argument(_)), "{error}");
    }
}

#[test]
fn another_uidvalidity_covers_nothing() {
    let home = Home::new();
    home.registry
        .register(&inbox(), &[entry(1, "foo-1", "a")], 2, true)
        .unwrap();
    let renewed = Mailbox::new(INBOX, "INBOX", 2000);
    assert_eq!(home.registry.registered(&renewed, 2).unwrap(), 1);
    let mut recovery = home.registry.recovery(&renewed).unwrap().unwrap();
    assert_eq!(
        recovery.take(b"a").unwrap(),
        Some(xid("foo-1")),
        "XIDs outlive UIDs"
    );
}

#[test]
fn the_same_xid_may_have_several_namespaces_and_boxes_side_by_side() {
    let home = Home::new();
    let inbox = inbox();
    let names: Vec<String> = (1..=500).map(|n| format!("node{n}-{n}")).collect();
    let entries: Vec<Entry<'_>> = (1..)
        .zip(&names)
        .map(|(uid, x)| entry(uid, x, ""))
        .collect();
    home.registry.register(&inbox, &entries, 501, true).unwrap();
    let state = State::parse(names[..490].join(" ").as_bytes()).unwrap();
    let news: Vec<u32> = (491..=500).collect();
    assert_eq!(home.registry.news(&inbox, &state).unwrap(), news);
    let other = Mailbox::new([8; 16], "other", 1);
    assert!(
        home.registry
            .news(&other, &State::new())
            .unwrap()
            .is_empty()
    );
}

// Mailboxes and recovery

#[test]
fn recovery_of_a_mailbox_that_was_never_seen_needs_no_guid() {
    let home = Home::new();
    assert!(home.registry.recovery(&inbox()).unwrap().is_none());
    home.registry.registered(&inbox(), 5).unwrap();
    assert!(home.registry.recovery(&inbox()).unwrap().is_none());
}

#[test]
fn copies_that_share_a_guid_get_their_xids_back_in_order_and_none_twice() {
    let home = Home::new();
    let inbox = inbox();
    let index = [
        entry(1, "foo-5", "g"),
        entry(2, "bar-1", "g"),
        entry(3, "foo-2", "g"),
    ];
    home.registry.register(&inbox, &index, 4, true).unwrap();
    let mut recovery = home.registry.recovery(&inbox).unwrap().unwrap();
    recovery.exclude(xid("bar-1")).unwrap();
    recovery.exclude(xid("never-1")).unwrap();
    assert_eq!(recovery.take(b"g").unwrap(), Some(xid("foo-5")));
    assert_eq!(recovery.take(b"g").unwrap(), Some(xid("foo-2")));
    assert_eq!(recovery.take(b"g").unwrap(), None);
    assert_eq!(recovery.take(b"").unwrap(), None);
    assert_eq!(recovery.take(b"h").unwrap(), None);
}

#[test]
fn a_message_that_was_expunged_and_comes_back_has_its_xid_unless_another_has_it() {
    let home = Home::new();
    let (inbox, registry) = (inbox(), &home.registry);
    registry.begin_watermark(&INBOX, 1000, 1).unwrap();
    let entries = [entry(1, "foo-1", "a"), entry(2, "bar-2", "b")];
    registry.note(&inbox, &entries).unwrap();
    registry.forget(&inbox, &[2], u32::MAX).unwrap();
    let mut recovery = registry.recovery(&inbox).unwrap().unwrap();
    assert_eq!(recovery.take(b"b").unwrap(), Some(xid("bar-2")));
    assert_eq!(recovery.take(b"b").unwrap(), None);
    assert_eq!(recovery.take(b"a").unwrap(), Some(xid("foo-1")));

    let mut recovery = registry.recovery(&inbox).unwrap().unwrap();
    recovery.exclude(xid("bar-2")).unwrap();
    assert_eq!(recovery.take(b"b").unwrap(), None);

    // Also where nothing else is left; and what is there comes first.
    registry.forget(&inbox, &[1], u32::MAX).unwrap();
    let mut recovery = registry.recovery(&inbox).unwrap().unwrap();
    assert_eq!(recovery.take(b"a").unwrap(), Some(xid("foo-1")));
    registry.note(&inbox, &[entry(3, "foo-9", "a")]).unwrap();
    let mut recovery = registry.recovery(&inbox).unwrap().unwrap();
    assert_eq!(recovery.take(b"a").unwrap(), Some(xid("foo-9")));
}

#[test]
fn a_mailbox_whose_guid_was_lost_recovers_by_its_name_once() {
    let home = Home::new();
    home.registry
        .note(&inbox(), &[entry(1, "foo-1", "a"), entry(2, "foo-2", "b")])
        .unwrap();
    let again = Mailbox::new([9; 16], "INBOX", 3000);
    assert_eq!(home.registry.registered(&again, 3).unwrap(), 1);
    let mut recovery = home.registry.recovery(&again).unwrap().unwrap();
    assert_eq!(recovery.take(b"b").unwrap(), Some(xid("foo-2")));
    home.registry
        .register(&again, &[entry(1, "foo-2", "b")], 2, true)
        .unwrap();
    assert_eq!(
        rows(&home.registry, &INBOX),
        [row(1, "foo-1", "a")],
        "it moved"
    );
    let findings = home.registry.verify().unwrap();
    assert!(
        !findings.iter().any(|f| matches!(f, Finding::Double { .. })),
        "{findings:?}"
    );
    assert!(
        home.registry
            .recovery(&Mailbox::new([1; 16], "", 1))
            .unwrap()
            .is_none()
    );
}

#[test]
fn a_renamed_mailbox_leaves_nothing_behind_under_its_old_name() {
    let home = Home::new();
    home.registry
        .note(&inbox(), &[entry(1, "foo-1", "a")])
        .unwrap();
    home.registry.renamed(&INBOX, "Archive").unwrap();
    let new_inbox = Mailbox::new([9; 16], "INBOX", 2000);
    assert!(home.registry.recovery(&new_inbox).unwrap().is_none());
    assert_eq!(home.registry.boxes().unwrap()[0].name, "Archive");
    // A process that still has it open under the old name changes nothing until it opens it anew.
    let archive = Mailbox::new([5; 16], "Archive", 2000);
    let mut recovery = home.registry.recovery(&archive).unwrap().unwrap();
    assert_eq!(recovery.take(b"a").unwrap(), Some(xid("foo-1")));
}

#[test]
fn a_deleted_mailbox_is_not_recovered_from() {
    let home = Home::new();
    home.registry
        .note(&inbox(), &[entry(1, "foo-1", "a")])
        .unwrap();
    home.registry.set_watermark(&INBOX, 1000, 1).unwrap();
    home.registry.deleted(&INBOX).unwrap();
    for guid in [INBOX, [9; 16]] {
        let again = Mailbox::new(guid, "INBOX", 2000);
        assert!(home.registry.recovery(&again).unwrap().is_none());
    }
    assert!(home.registry.boxes().unwrap().is_empty());
    assert_eq!(home.registry.watermark(&INBOX, 1000).unwrap(), None);
    assert!(home.registry.verify().unwrap().is_empty());
}

#[test]
fn the_rows_of_a_large_deleted_mailbox_go_bit_by_bit() {
    let home = Home::new();
    fill(&home.registry, 130_000);
    home.registry.deleted(&INBOX).unwrap();
    assert!(home.registry.boxes().unwrap().is_empty());
    let left = |registry: &Registry| {
        registry.ask(|db| db.one("SELECT count(*) FROM messages", [], |r| r.get::<_, i64>(0)))
    };
    let after_first = left(&home.registry).unwrap().unwrap();
    assert!((1..130_000).contains(&after_first), "{after_first}");
    home.registry.deleted(&[1; 16]).unwrap();
    home.registry.boxes().unwrap();
    assert_eq!(left(&home.registry).unwrap(), Some(0));
}

#[test]
fn what_was_asked_of_one_registry_is_not_answered_by_the_next() {
    let home = Home::new();
    let inbox = inbox();
    home.registry
        .register(&inbox, &[entry(1, "foo-1", "a")], 2, true)
        .unwrap();
    assert_eq!(home.registry.registered(&inbox, 2).unwrap(), 2);
    fs::remove_file(home.file("xid.registry")).unwrap();
    // "Not found" would be wrong: the new registry knows nothing at all.
    assert!(matches!(
        home.registry.lookup(&inbox, xid("foo-1")),
        Err(Error::Replaced(_))
    ));
    assert!(matches!(
        home.registry.news(&inbox, &State::new()),
        Err(Error::Replaced(_))
    ));
    assert_eq!(home.registry.registered(&inbox, 2).unwrap(), 1);
    assert_eq!(home.registry.lookup(&inbox, xid("foo-1")).unwrap(), None);
}

#[test]
fn a_recovery_does_not_survive_its_registry() {
    let home = Home::new();
    home.registry
        .register(&inbox(), &[entry(1, "foo-1", "a")], 2, true)
        .unwrap();
    let mut recovery = home.registry.recovery(&inbox()).unwrap().unwrap();
    fs::remove_file(home.file("xid.registry")).unwrap();
    assert!(matches!(recovery.take(b"a"), Err(Error::Replaced(_))));
}

// Watermarks

#[test]
fn a_watermark_never_falls_under_one_uidvalidity() {
    let home = Home::new();
    assert_eq!(home.registry.watermark(&INBOX, 5).unwrap(), None);
    for (uid, then) in [(10, 10), (7, 10), (11, 11)] {
        home.registry.set_watermark(&INBOX, 5, uid).unwrap();
        assert_eq!(home.another().watermark(&INBOX, 5).unwrap(), Some(then));
    }
    home.registry.set_watermark(&INBOX, 6, 2).unwrap();
    assert_eq!(home.registry.watermark(&INBOX, 6).unwrap(), Some(2));
    assert_eq!(home.registry.watermark(&INBOX, 5).unwrap(), None);
}

// For the administrator

#[test]
fn verify_finds_what_cannot_be() {
    let home = Home::new();
    let inbox = inbox();
    home.registry.reserve(1, 1).unwrap();
    home.registry
        .register(&inbox, &[entry(1, "foo-1", "a")], 2, true)
        .unwrap();
    assert!(home.registry.verify().unwrap().is_empty());
    let other = Mailbox::new([8; 16], "Other", 1);
    let wrong = [
        entry(1, "foo-1", "a"),
        entry(2, "foo-5000", ""),
        entry(3, "bar-5000", ""),
    ];
    home.registry.register(&other, &wrong, 4, true).unwrap();
    home.registry
        .ask(|db| db.run("INSERT INTO messages VALUES(99, 1, 1, 1, X'')", []))
        .unwrap();
    fs::write(home.file("xid.incarnation"), "1 0 9000").unwrap();
    let findings = home.registry.verify().unwrap();
    let reserved = 4096;
    let expected = [
        Finding::Unreserved {
            mailbox: "Other".into(),
            xid: "foo-5000".into(),
            reserved,
        },
        Finding::Double {
            xid: "foo-1".into(),
            places: "INBOX UID 1, Other UID 1".into(),
        },
        Finding::Orphans(1),
        Finding::WitnessAhead {
            witnessed: 9000,
            reserved,
        },
    ];
    assert_eq!(findings, expected);
    fs::remove_file(home.file("xid.incarnation")).unwrap();
    assert!(
        home.registry
            .verify()
            .unwrap()
            .contains(&Finding::WitnessLost)
    );
    assert!(
        findings
            .iter()
            .all(|finding| !finding.to_string().is_empty())
    );
}

#[test]
fn an_export_gives_every_row_once_whatever_the_page() {
    let home = Home::new();
    fill(&home.registry, 2500);
    let uids: Vec<u32> = home
        .registry
        .export(&INBOX)
        .map(|row| row.unwrap().uid)
        .collect();
    assert_eq!(uids, (1..=2500).collect::<Vec<u32>>());
    assert_eq!(home.registry.export(&[1; 16]).count(), 0);
    let info = &home.registry.boxes().unwrap()[0];
    assert_eq!(
        (info.messages, info.covered, &*info.name),
        (2500, 2500, "INBOX")
    );
    let status = home.registry.status().unwrap();
    assert_eq!(
        status,
        Status {
            reserved: 0,
            incarnation: 0,
            journal: 0
        }
    );
}

// Speed: what a million messages cost

/// Rows foo-1 … foo-n under the UIDs 1 … n, put in by SQLite itself.
fn fill(registry: &Registry, n: u32) {
    registry
        .register(&inbox(), &[entry(1, "foo-1", "guid1")], n + 1, true)
        .unwrap();
    registry
        .ask(|db| {
            db.transaction(|| {
                db.run(
                    "WITH RECURSIVE c(x) AS (SELECT 2 UNION ALL SELECT x + 1 FROM c WHERE x < ?1) \
                     INSERT INTO messages SELECT 1, 1, x, x, CAST('guid' || x AS BLOB) FROM c",
                    [n],
                )
            })
        })
        .unwrap();
}

/// Steps of SQLite's machine that a query took: the same on every machine.
fn steps(registry: &Registry, query: &str, params: impl rusqlite::Params) -> (usize, i32) {
    registry
        .ask(|db| {
            let mut statement = db.connection().prepare(query).unwrap();
            let rows = statement.query_map(params, |_| Ok(())).unwrap().count();
            Ok((
                rows,
                statement.get_status(rusqlite::StatementStatus::VmStep),
            ))
        })
        .unwrap()
}

fn plan(registry: &Registry, query: &str) -> String {
    registry
        .ask(|db| {
            let mut statement = db
                .connection()
                .prepare(&format!("EXPLAIN QUERY PLAN {query}"))
                .unwrap();
            let n = statement.parameter_count();
            let none = rusqlite::params_from_iter((0..n).map(|_| 1));
            let lines = statement
                .query_map(none, |row| row.get::<_, String>(3))
                .unwrap();
            Ok(lines.map(Result::unwrap).collect::<Vec<_>>().join("\n"))
        })
        .unwrap()
}

#[test]
fn news_and_lookups_cost_the_same_in_a_mailbox_of_a_million() {
    let (small, large) = (Home::new(), Home::new());
    fill(&small.registry, 10_000);
    fill(&large.registry, 1_000_000);
    let cost = |home: &Home, n: u32| {
        let news = steps(&home.registry, rows::NEWS, (1, 1, n - 10));
        assert_eq!(news.0, 10);
        let lookup = steps(
            &home.registry,
            rows::LOOKUP,
            (INBOX.as_slice(), "foo", i64::from(n - 5)),
        );
        assert_eq!(lookup.0, 1);
        let namespaces = steps(&home.registry, rows::NEXT_NAMESPACE, (1, i64::MIN));
        let guid = format!("guid{}", n - 5).into_bytes();
        let candidates = steps(&home.registry, recovery::CANDIDATES, (guid, 1));
        assert_eq!((namespaces.0, candidates.0), (1, 1));
        [news.1, lookup.1, namespaces.1, candidates.1]
    };
    let (of_small, of_large) = (cost(&small, 10_000), cost(&large, 1_000_000));
    assert_eq!(
        of_small, of_large,
        "steps of news, lookup, namespaces, candidates"
    );
    assert!(of_large.iter().all(|&steps| steps < 200), "{of_large:?}");

    let state = State::parse(b"foo-999990").unwrap();
    let news = large.registry.news(&inbox(), &state).unwrap();
    assert_eq!(news, (999_991..=1_000_000).collect::<Vec<u32>>());
    for query in [
        rows::NEWS,
        rows::LOOKUP,
        rows::NEXT_NAMESPACE,
        rows::RANGE,
        recovery::CANDIDATES,
    ] {
        let plan = plan(&large.registry, query);
        assert!(
            !plan.contains("SCAN") && plan.contains("SEARCH"),
            "{query}:\n{plan}"
        );
    }
    let plan = plan(&large.registry, rows::NEWS);
    assert!(
        plan.contains("PRIMARY KEY (box=? AND ns=? AND number>?)"),
        "{plan}"
    );
}

#[test]
fn watermarks_are_forgotten_when_uids_are_stable_at_once() {
    let home = Home::new();
    assert!(!home.registry.has_watermarks());
    assert_eq!(home.registry.begin_watermark(&INBOX, 5, 8).unwrap(), 8);
    assert_eq!(home.registry.begin_watermark(&INBOX, 5, 30).unwrap(), 8);
    assert!(home.registry.has_watermarks());
    home.registry.forget_watermarks().unwrap();
    assert!(!home.registry.has_watermarks());
    assert_eq!(home.registry.begin_watermark(&INBOX, 5, 30).unwrap(), 30);
}

#[test]
fn expunged_messages_are_remembered_where_there_are_watermarks() {
    let home = Home::new();
    let (inbox, registry) = (inbox(), &home.registry);
    registry.note(&inbox, &[entry(1, "foo-1", "a")]).unwrap();
    registry.forget(&inbox, &[1], u32::MAX).unwrap();
    assert_eq!(registry.expunged(&inbox, b"a").unwrap(), None);

    registry.begin_watermark(&INBOX, 1000, 3).unwrap();
    let entries = [entry(2, "foo-2", "b"), entry(3, "foo-3", "c")];
    registry.note(&inbox, &entries).unwrap();
    // "c" moves to UID 4; "b" goes.
    registry.note(&inbox, &[entry(4, "foo-3", "c")]).unwrap();
    registry.forget(&inbox, &[2, 3], u32::MAX).unwrap();
    assert_eq!(registry.expunged(&inbox, b"b").unwrap(), Some(2));
    assert_eq!(registry.expunged(&inbox, b"c").unwrap(), None);
    assert_eq!(registry.by_guid(&inbox, b"c", 9).unwrap()[0].uid, 4);
    assert!(registry.by_guid(&inbox, b"b", 9).unwrap().is_empty());

    // Above what was stable it may have moved, but it was here.
    assert!(!registry.had(&inbox, b"d").unwrap());
    registry.note(&inbox, &[entry(5, "foo-5", "d")]).unwrap();
    assert!(registry.had(&inbox, b"d").unwrap());
    registry.forget(&inbox, &[5], 3).unwrap();
    assert_eq!(registry.expunged(&inbox, b"d").unwrap(), None);
    assert!(registry.had(&inbox, b"d").unwrap());
    assert!(registry.had(&inbox, b"b").unwrap());

    // Which XIDs they had is remembered of both.
    let gone = |guid: &[u8]| {
        let xids = registry.gone(&inbox, guid, 9).unwrap();
        let names = xids.iter().map(|x| format!("{}-{}", x.namespace, x.number));
        names.collect::<Vec<_>>()
    };
    assert_eq!(gone(b"b"), ["foo-2"]);
    assert_eq!(gone(b"d"), ["foo-5"]);
    assert!(gone(b"c").is_empty(), "it moved");
    assert!(gone(b"a").is_empty(), "there was no watermark");

    // Under another UIDVALIDITY the UIDs mean nothing.
    let anew = Mailbox::new(INBOX, "INBOX", 1001);
    registry.registered(&anew, 1).unwrap();
    assert_eq!(registry.expunged(&anew, b"b").unwrap(), None);
    assert!(registry.gone(&anew, b"b", 9).unwrap().is_empty());
}

#[test]
fn what_was_not_stable_when_it_was_expunged_is_no_expunged_message_later() {
    let home = Home::new();
    let (inbox, registry) = (inbox(), &home.registry);
    registry.begin_watermark(&INBOX, 1000, 1).unwrap();
    let entries = [
        entry(1, "foo-1", "stable"),
        entry(2, "foo-2", "promised"),
        entry(3, "foo-3", "loose"),
        entry(4, "foo-4", "withdrawn"),
    ];
    registry.note(&inbox, &entries).unwrap();
    let expunged = |guid: &[u8]| registry.expunged(&inbox, guid).unwrap();
    // Promised up to 2 when the first three went, up to 4 when the last one did, and then no more.
    registry.forget(&inbox, &[1, 2, 3], 2).unwrap();
    registry.forget(&inbox, &[4], 4).unwrap();
    assert_eq!(expunged(b"stable"), Some(1));
    // The others may have made it stable, and this node does not know it yet.
    assert_eq!(expunged(b"promised"), Some(2));
    registry.take_back(&inbox, 3).unwrap();

    registry.set_watermark(&INBOX, 1000, 9).unwrap();
    assert_eq!(expunged(b"stable"), Some(1));
    assert_eq!(expunged(b"promised"), Some(2));
    assert_eq!(expunged(b"loose"), None);
    assert_eq!(expunged(b"withdrawn"), None);
    // Which XID it had is remembered of each.
    let xids = |guid: &[u8]| registry.gone(&inbox, guid, 9).unwrap().len();
    assert_eq!([xids(b"loose"), xids(b"withdrawn")], [1, 1]);
}

#[test]
fn what_other_nodes_expunged_is_remembered_as_what_was_expunged_here() {
    let home = Home::new();
    let (inbox, registry) = (inbox(), &home.registry);
    registry.begin_watermark(&INBOX, 1000, 7).unwrap();
    registry
        .gone_elsewhere(&inbox, &[entry(9, "bar-3", "a")])
        .unwrap();
    assert!(registry.expunged(&inbox, b"a").unwrap().is_some());
    assert!(registry.had(&inbox, b"a").unwrap());
    let xids = registry.gone(&inbox, b"a", 9).unwrap();
    assert_eq!((xids[0].namespace.as_str(), xids[0].number), ("bar", 3));
    assert!(rows(registry, &INBOX).is_empty(), "it is no message");
}

#[test]
fn only_the_last_expunged_messages_are_remembered() {
    let home = Home::new();
    let (inbox, registry) = (inbox(), &home.registry);
    let count = u32::try_from(expunged::REMEMBERED).unwrap() + 10;
    registry.begin_watermark(&INBOX, 1000, count).unwrap();
    let xids: Vec<String> = (1..=count).map(|n| format!("foo-{n}")).collect();
    let entries: Vec<_> = (1..=count)
        .zip(&xids)
        .map(|(uid, xid)| entry(uid, xid, xid))
        .collect();
    registry.note(&inbox, &entries).unwrap();
    let uids: Vec<u32> = (1..=count).collect();
    registry.forget(&inbox, &uids, u32::MAX).unwrap();
    assert_eq!(registry.expunged(&inbox, b"foo-10").unwrap(), None);
    assert_eq!(registry.expunged(&inbox, b"foo-11").unwrap(), Some(11));
    let last = format!("foo-{count}");
    assert_eq!(
        registry.expunged(&inbox, last.as_bytes()).unwrap(),
        Some(count)
    );
}

#[test]
fn registries_of_earlier_schemas_are_brought_up_to_date() {
    for earlier in [
        "DROP TABLE expunged; DROP TABLE gone; PRAGMA user_version = 1",
        "DROP TABLE gone; PRAGMA user_version = 2",
    ] {
        brought_up_to_date(earlier);
    }
}

fn brought_up_to_date(earlier: &str) {
    let mut home = Home::new();
    let inbox = inbox();
    home.registry
        .note(&inbox, &[entry(1, "foo-1", "a")])
        .unwrap();
    home.registry.registered(&inbox, 2).unwrap();
    home.restart();
    sqlite(&home.file("xid.registry"), earlier);
    assert_eq!(rows(&home.registry, &INBOX), [row(1, "foo-1", "a")]);
    home.registry.begin_watermark(&INBOX, 1000, 1).unwrap();
    home.registry.forget(&inbox, &[1], u32::MAX).unwrap();
    assert_eq!(home.registry.expunged(&inbox, b"a").unwrap(), Some(1));
    assert_eq!(home.registry.gone(&inbox, b"a", 9).unwrap().len(), 1);
    assert!(home.aside().is_empty());
}
