//! What each fuzz target does with its input. `tests/fuzz_smoke.rs` runs the same functions on a
//! stable toolchain; `cargo +nightly fuzz run TARGET fuzz/corpus/TARGET fuzz/seeds/TARGET` runs
//! one for long.
//!
//! A body fails by panicking. That nothing panics is the least of it: each also states what must
//! hold of whatever was accepted.

#![allow(dead_code)]

use std::fs;
use std::path::Path;
use std::ptr;
use std::sync::OnceLock;

use imap_xid::ffi;
use imap_xid::registry::journal::{self, Record};
use imap_xid::registry::{Entry, Mailbox, Registry};
use imap_xid::table::Table;
use imap_xid::uid::UidSet;
use imap_xid::xid::{self, State, Xid, XidSet};

/// What a target does with an input.
pub type Body = fn(&[u8]);

/// The bodies by the names of their targets.
pub const ALL: [(&str, Body); 9] = [
    ("xid", xid),
    ("xid_set", xid_set),
    ("state", state),
    ("host", host),
    ("uid_set", uid_set),
    ("journal", journal),
    ("interface", interface),
    ("registry_file", registry_file),
    ("table_file", table_file),
];

/// Those that write files, and take milliseconds where the others take microseconds.
pub const SLOW: [&str; 2] = ["registry_file", "table_file"];

/// An XID is written in one way only.
pub fn xid(data: &[u8]) {
    if let Ok(xid) = Xid::parse(data) {
        assert_eq!(xid.to_string().as_bytes(), data);
        assert!(xid.number() >= 1 && xid.number() <= xid::NUMBER_MAX);
        assert!(data.len() <= xid::XID_MAX);
    }
}

/// So is a set.
pub fn xid_set(data: &[u8]) {
    if let Ok(set) = XidSet::parse(data) {
        let written: Vec<String> = set.iter().map(|xid| xid.to_string()).collect();
        assert_eq!(written.join(",").as_bytes(), data);
        assert_eq!(set.len(), written.len());
    }
}

/// A state comes back as it was sent.
pub fn state(data: &[u8]) {
    match State::parse(data) {
        Ok(state) => assert_eq!(State::parse(state.to_string().as_bytes()), Ok(state)),
        Err(e) => assert!(e.to_string().is_ascii()),
    }
}

/// Whatever a host is called, its namespace is one.
pub fn host(data: &[u8]) {
    if let Ok(namespace) = xid::namespace_from_host(data) {
        assert!(xid::check_namespace(namespace.as_bytes()).is_ok());
    }
}

/// A set that does not reach above the watermark names nothing above it, and the other way round.
pub fn uid_set(data: &[u8]) {
    let Some((head, text)) = data.split_at_checked(2) else {
        return;
    };
    let (watermark, last) = (u32::from(head[0]), u32::from(head[0]) + u32::from(head[1]));
    let Ok(set) = UidSet::parse(text) else { return };
    match set.reach(watermark, last) {
        Some(uid) => assert!(uid > watermark && uid <= last),
        None => {
            let named = set.clamp(last);
            assert!(named.as_slice().iter().all(|&(_, end)| end <= watermark));
        }
    }
}

/// What is read from a journal, written again and read again, is the same; so is what is read in
/// two pieces.
pub fn journal(data: &[u8]) {
    let mut again = Vec::new();
    let mut records = 0;
    let progress = journal::read::<()>(data, true, |record| {
        record.encode(&mut again);
        records += 1;
        Ok(())
    });
    assert!(progress.is_ok_and(|p| p.consumed == data.len() && p.garbage <= data.len()));
    let mut second = Vec::new();
    let copied = |record: Record<'_>| {
        record.encode(&mut second);
        Ok::<(), ()>(())
    };
    assert!(journal::read(&again, true, copied).is_ok_and(|p| p.garbage == 0));
    assert_eq!(second, again);

    let cut = data.first().map_or(0, |&b| usize::from(b).min(data.len()));
    let mut in_two = 0;
    let mut count = |_: Record<'_>| {
        in_two += 1;
        Ok::<(), ()>(())
    };
    let first = journal::read(&data[..cut], false, &mut count).map_or(0, |p| p.consumed);
    let _ = journal::read(&data[first..], true, &mut count);
    assert_eq!(in_two, records);
}

/// The same parsers through the C interface.
pub fn interface(data: &[u8]) {
    let (text, len) = (data.as_ptr().cast(), data.len());
    let mut parsed = ffi::imap_xid {
        ns: ptr::null(),
        ns_len: 0,
        number: 0,
    };
    let mut out = [0; ffi::IMAP_XID_SIZE];
    // SAFETY: the pointers are to live values of the lengths given, and every handle is freed
    // once, after its last use.
    unsafe {
        if ffi::imap_xid_parse(text, len, &mut parsed) == 0 {
            let n = ffi::imap_xid_format(&parsed, out.as_mut_ptr(), out.len());
            assert_eq!(usize::try_from(n).ok(), Some(len));
        }
        let mut set = ptr::null_mut();
        if ffi::imap_xid_set_parse(text, len, &mut set) == 0 {
            let count = ffi::imap_xid_set_count(set);
            assert!(count > 0 && ffi::imap_xid_set_get(set, count - 1, &mut parsed) == 0);
            assert!(ffi::imap_xid_set_get(set, count, &mut parsed) < 0);
        }
        ffi::imap_xid_set_free(set);
        let mut state = ptr::null_mut();
        assert_eq!(ffi::imap_xid_state_new(&mut state), 0);
        for item in data.split(|&b| b == b' ') {
            ffi::imap_xid_state_add(state, item.as_ptr().cast(), item.len());
        }
        ffi::imap_xid_state_number(state, text, len);
        let (mut uidvalidity, mut uid) = (0, 0);
        if ffi::imap_xid_state_mark(state, &mut uidvalidity, &mut uid) == 1 {
            assert!(uidvalidity > 0);
        }
        ffi::imap_xid_state_free(state);
        let mut name = [0; ffi::IMAP_XID_NAMESPACE_SIZE];
        let n = ffi::imap_xid_namespace_from_host(text, len, name.as_mut_ptr(), name.len());
        if let Ok(n) = usize::try_from(n) {
            assert_eq!(ffi::imap_xid_namespace_check(name.as_ptr(), n), 0);
        }
        assert!(!ffi::imap_xid_last_error().is_null());
    }
}

/// The files of a mail root with one message, one reservation, and a note in the journal.
struct Template {
    registry: Vec<u8>,
    log: Vec<u8>,
    witness: Vec<u8>,
    journal: Vec<u8>,
    table: Vec<u8>,
}

const MAILBOX: [u8; 16] = [5; 16];

fn message(uid: u32, number: u64) -> Entry<'static> {
    // The namespace is in the grammar and no number here is 0.
    let Ok(xid) = Xid::new(b"foo", number) else {
        panic!("no XID")
    };
    Entry {
        uid,
        xid,
        guid: b"guid",
    }
}

fn template() -> &'static Template {
    static TEMPLATE: OnceLock<Template> = OnceLock::new();
    TEMPLATE.get_or_init(|| {
        imap_xid::log::set_sink(Some(Box::new(|_, _| {})));
        let dir = tempfile::tempdir().expect("a folder");
        let registry = Registry::new(dir.path(), "foo").expect("a mail root");
        let mailbox = Mailbox::new(MAILBOX, "INBOX", 1);
        registry.reserve(1, 1).expect("a reservation");
        registry
            .register(&mailbox, &[message(1, 1)], 2, true)
            .expect("a row");
        registry.note(&mailbox, &[message(2, 2)]).expect("a note");
        drop(Table::open(dir.path()).expect("a table"));
        let read = |name| fs::read(dir.path().join(name)).expect("the file");
        Template {
            registry: read("xid.registry"),
            log: read("xid.registry-wal"),
            witness: read("xid.incarnation"),
            journal: read("xid.journal"),
            table: read("xid.table"),
        }
    })
}

/// Changes a copy of `file` as the input says: each four octets are a place and what is there
/// from then on; what is left over at the end cuts the file.
fn patched(file: &[u8], places: usize, input: &[u8]) -> Vec<u8> {
    let mut file = file.to_vec();
    let (patches, rest) = input.as_chunks::<4>();
    for patch in patches {
        let place = usize::from(u16::from_le_bytes([patch[0], patch[1]])) * 7;
        let n = file.len().min(places).max(1);
        if let Some(byte) = file.get_mut(place % n) {
            *byte = patch[2] ^ patch[3].rotate_left(4);
        }
    }
    if let [high, low, ..] = rest {
        let len = file.len();
        file.truncate(len * usize::from(u16::from_be_bytes([*high, *low])) / 0xffff);
    }
    file
}

/// Whatever is in the files, nothing panics, and a number that was given before is not given
/// again. Which file is changed, the first octet says; an odd one replaces it altogether.
pub fn registry_file(data: &[u8]) {
    let Some((&which, input)) = data.split_first() else {
        return;
    };
    let template = template();
    let Ok(dir) = tempfile::tempdir() else { return };
    let file = |kind: u8, name: &str, good: &[u8]| {
        let content = match (which / 2 % 4 == kind, which % 2 == 1) {
            (false, _) => good.to_vec(),
            (true, false) => patched(good, usize::MAX, input),
            (true, true) => input.to_vec(),
        };
        fs::write(dir.path().join(name), content).expect("a file");
    };
    file(0, "xid.registry", &template.registry);
    file(1, "xid.registry-wal", &template.log);
    file(2, "xid.incarnation", &template.witness);
    file(3, "xid.journal", &template.journal);
    use_registry(dir.path());
}

fn use_registry(dir: &Path) {
    let Ok(registry) = Registry::new(dir, "foo") else {
        return;
    };
    let registry = std::sync::Arc::new(registry);
    let mailbox = Mailbox::new(MAILBOX, "INBOX", 1);
    if let Ok(missing) = registry.registered(&mailbox, 3) {
        assert!(missing <= 3);
    }
    let _ = registry.lookup(&mailbox, message(1, 1).xid);
    let _ = registry.news(&mailbox, &State::new());
    if let Ok(Some(mut recovery)) = registry.recovery(&mailbox) {
        let _ = recovery.take(b"guid");
    }
    let index = [message(1, 1), message(2, 2)];
    let registered = registry.register(&mailbox, &index, 3, true);
    let _ = registry.verify();
    let _ = registry.boxes();
    let _ = registry.export(&MAILBOX).count();
    if let Ok(block) = registry.reserve(1, 1) {
        let again = registry.reserve(1, 1);
        assert!(
            again.is_ok_and(|again| again.start >= block.end),
            "{block:?}"
        );
    }
    if registered.is_ok()
        && let Ok(3) = registry.registered(&mailbox, 3)
    {
        let found = registry.lookup(&mailbox, message(2, 2).xid);
        assert!(matches!(found, Ok(Some(2)) | Err(_)), "{found:?}");
    }
}

/// The part of a table that is checked before the rest is believed.
const SEAL: usize = 128;

/// A table whose head is damaged, or that is too short, is refused or made anew.
pub fn table_file(data: &[u8]) {
    let template = template();
    let Ok(dir) = tempfile::tempdir() else { return };
    let content = match data.split_first() {
        Some((&0, whole)) => whole.to_vec(),
        _ => patched(&template.table, SEAL, data),
    };
    fs::write(dir.path().join("xid.table"), content).expect("a file");
    let Ok((table, _)) = Table::open(dir.path()) else {
        return;
    };
    let taken = table.take_numbers(0, 3, |from, count| {
        Ok::<_, ()>(from..from + u64::from(count) + 10)
    });
    assert!(taken.is_ok(), "{:?}", taken.err());
}
