//! `assigner.c`, a program that moves watermarks by the C interface alone.

use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use imap_xid::registry::Registry;
use imap_xid::table::{Entry, Guid, Mailbox, Table, Waited};

/// How long what takes milliseconds may take.
const LIMIT: Duration = Duration::from_secs(60);

const GUID: Guid = *b"a mailbox's guid";

/// The assigner at work; ended when dropped.
struct Assigner(Child);

impl Drop for Assigner {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Root {
    dir: tempfile::TempDir,
    registry: Registry,
    table: Arc<Table>,
}

impl Root {
    fn new() -> Root {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::new(dir.path(), "foo").unwrap();
        let table = Arc::new(Table::open(dir.path()).unwrap().0);
        Root {
            dir,
            registry,
            table,
        }
    }

    fn mailbox(&self) -> Mailbox {
        let mut store = &self.registry;
        self.table
            .attach(&GUID, 7, b"INBOX", 3, &mut store)
            .unwrap()
            .0
    }

    fn start(&self, msecs: &str) -> Assigner {
        let program = super::compile("assigner.c", self.dir.path());
        let child = Command::new(program)
            .arg(self.dir.path())
            .arg(msecs)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Assigner(child)
    }
}

fn add(mailbox: &Mailbox, uid: u32) {
    let guid = format!("guid of {uid}");
    let number = u64::from(uid) + 100;
    let entry = Entry {
        uid,
        namespace: b"foo",
        number,
        guid: guid.as_bytes(),
    };
    mailbox.pending_add(&[entry]).unwrap();
}

#[test]
fn an_assigner_in_c_makes_pending_uids_stable() {
    let root = Root::new();
    let mailbox = root.mailbox();
    (4..=200).for_each(|uid| add(&mailbox, uid));
    let mut assigner = root.start("0");
    assert_eq!(mailbox.wait(200, LIMIT).unwrap(), Waited::Done);
    add(&mailbox, 201);
    assert_eq!(mailbox.wait(201, LIMIT).unwrap(), Waited::Done);
    assert_eq!(root.registry.watermark(&GUID, 7).unwrap(), Some(201));
    assert_eq!(mailbox.pending(0).unwrap(), []);

    // SAFETY: a child of ours that was not waited for.
    unsafe { libc::kill(assigner.0.id() as i32, libc::SIGTERM) };
    let output = std::io::read_to_string(assigner.0.stdout.take().unwrap()).unwrap();
    assert!(assigner.0.wait().unwrap().success());
    let lines: Vec<&str> = output.lines().collect();
    assert_eq!(lines.len(), 198);
    assert_eq!(lines[0], "INBOX 4 foo-104 guid of 4");
    assert_eq!(lines[197], "INBOX 201 foo-301 guid of 201");
}

#[test]
fn an_assigner_in_c_takes_its_time_and_leaves_a_held_mailbox_alone() {
    let root = Root::new();
    let mailbox = root.mailbox();
    mailbox.hold(1, u64::MAX).unwrap();
    add(&mailbox, 4);
    let start = Instant::now();
    let _assigner = root.start("300");
    assert_eq!(
        mailbox.wait(4, Duration::from_millis(600)).unwrap(),
        Waited::TimedOut
    );
    mailbox.release(0).unwrap();
    // It is not told of the release; it looks by itself.
    assert_eq!(mailbox.wait(4, LIMIT).unwrap(), Waited::Done);
    add(&mailbox, 5);
    let added = Instant::now();
    assert_eq!(mailbox.wait(5, LIMIT).unwrap(), Waited::Done);
    assert!(
        added.elapsed() >= Duration::from_millis(290),
        "{:?}",
        start.elapsed()
    );
}

#[test]
fn an_assigner_is_shorter_than_a_hundred_lines() {
    let text = std::fs::read_to_string(super::source("tests/c-abi/assigner.c")).unwrap();
    assert!(text.lines().count() < 100);
}
