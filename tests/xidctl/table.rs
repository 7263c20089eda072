//! xidctl on a UID-assignment table, without a server: what processes of a host would do is done
//! here by hand.

use std::sync::Arc;

use imap_xid::registry::Registry;
use imap_xid::table::{Entry, Mailbox, Table};

use crate::{stderr, stdout, xidctl};

/// A folder with a mailbox of 8 stable messages and 3 pending ones, and an empty mailbox.
struct Root {
    dir: tempfile::TempDir,
    registry: Registry,
    inbox: Mailbox,
}

impl Root {
    fn new() -> Root {
        let dir = tempfile::tempdir().expect("a folder");
        let registry = Registry::new(dir.path(), "foo").expect("a registry");
        let table = Arc::new(Table::open(dir.path()).expect("a table").0);
        let attach = |guid: &[u8; 16], name: &[u8], last_uid| {
            let mut store = &registry;
            table
                .attach(guid, 7, name, last_uid, &mut store)
                .expect("a slot")
                .0
        };
        let inbox = attach(b"guid of inbox 16", b"INBOX", 8);
        attach(b"guid of other 16", b"Other", 0);
        for uid in 9..=11 {
            let entry = Entry {
                uid,
                namespace: b"foo",
                number: u64::from(uid),
                guid: b"msg",
            };
            inbox.pending_add(&[entry]).expect("room");
        }
        Root {
            dir,
            registry,
            inbox,
        }
    }

    /// Runs a subcommand on the folder; gives status, output, complaints.
    fn run(&self, args: &[&str]) -> (Option<i32>, String, String) {
        let dir = self.dir.path().to_str().expect("UTF-8");
        let output = xidctl(&[args, &["--dir", dir, "--namespace", "foo"]].concat());
        (output.status.code(), stdout(&output), stderr(&output))
    }

    /// The same, where it must succeed.
    fn ok(&self, args: &[&str]) -> String {
        let (code, output, complaints) = self.run(args);
        assert_eq!(code, Some(0), "{args:?}: {output}{complaints}");
        output
    }

    fn refused(&self, args: &[&str]) -> String {
        let (code, output, complaints) = self.run(args);
        assert_eq!(code, Some(1), "{args:?}: {output}{complaints}");
        complaints
    }
}

#[test]
fn pending_lists_uid_xid_and_guid() {
    let root = Root::new();
    let text = root.ok(&["pending"]);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 3, "{text}");
    assert!(lines[0].starts_with("INBOX\t9\tfoo-9\tmsg\t"), "{text}");
    assert_eq!(root.ok(&["pending", "-m", "Other"]), "");
    let json: serde_json::Value =
        serde_json::from_str(&root.ok(&["--json", "pending", "-m", "INBOX"])).expect("JSON");
    let inbox = &json["mailboxes"][0];
    assert_eq!(inbox["watermark"], 8);
    assert_eq!(inbox["last_uid"], 11);
    assert_eq!(inbox["incomplete"], false);
    assert_eq!(inbox["pending"][2]["xid"], "foo-11");
}

#[test]
fn advance_moves_the_watermark_up_and_never_down() {
    let root = Root::new();
    let text = root.ok(&["advance", "-m", "INBOX", "10"]);
    assert!(text.contains("stable up to UID 10"), "{text}");
    assert_eq!(root.inbox.watermark(), 10);
    assert_eq!(
        root.registry.watermark(b"guid of inbox 16", 7).expect("it"),
        Some(10)
    );
    let text = root.ok(&["advance", "-m", "INBOX", "9"]);
    assert!(text.contains("already"), "{text}");
    let text = root.refused(&["advance", "-m", "INBOX", "12"]);
    assert!(text.contains("UID 12") && text.contains("is 11"), "{text}");
    root.ok(&["advance", "-m", "INBOX", "all"]);
    assert_eq!(root.inbox.watermark(), 11);
    assert!(root.refused(&["advance", "5"]).contains("-m MAILBOX"));
    assert!(
        root.refused(&["advance", "-m", "Nowhere", "5"])
            .contains("Nowhere")
    );
    assert_eq!(root.run(&["advance", "-m", "INBOX", "0"]).0, Some(2));
}

#[test]
fn a_mailbox_on_hold_is_not_advanced_until_it_is_released() {
    let root = Root::new();
    root.ok(&["hold", "-m", "INBOX", "--for", "1h"]);
    root.ok(&["hold", "-m", "INBOX", "--for", "2h"]);
    assert!(
        root.refused(&["advance", "-m", "INBOX", "9"])
            .contains("on hold")
    );
    assert!(root.ok(&["top"]).contains("on hold"));
    root.ok(&["release", "-m", "INBOX"]);
    root.ok(&["advance", "-m", "INBOX", "9"]);
    assert_eq!(root.run(&["hold", "-m", "INBOX", "--for", "5"]).0, Some(2));
}

#[test]
fn a_gate_is_closed_for_a_time_and_opened() {
    let root = Root::new();
    root.ok(&["gate", "-m", "INBOX", "--for", "1h"]);
    assert!(root.inbox.gate_closed().is_some());
    assert!(root.ok(&["top"]).contains("gate closed"));
    root.ok(&["gate", "-m", "INBOX", "--open"]);
    assert!(root.inbox.gate_closed().is_none());
}

#[test]
fn top_without_a_terminal_is_one_look() {
    let root = Root::new();
    let wait = root.inbox.wait_begin(11).expect("a place");
    let text = root.ok(&["top"]);
    assert!(text.contains("3 pending, 1 waiting"), "{text}");
    assert!(text.contains("INBOX") && !text.contains("Other"), "{text}");
    assert!(root.ok(&["top", "--all"]).contains("Other"));
    let json: serde_json::Value = serde_json::from_str(&root.ok(&["--json", "top"])).expect("JSON");
    assert_eq!(json["mailboxes"][0]["waiters"], 1);
    root.inbox.wait_end(wait, true).expect("its end");
}

#[test]
fn status_has_the_counters() {
    let root = Root::new();
    let wait = root.inbox.wait_begin(11).expect("a place");
    root.inbox.wait_end(wait, true).expect("its end");
    let json: serde_json::Value =
        serde_json::from_str(&root.ok(&["--json", "status"])).expect("JSON");
    let waiting = &json["waiting"];
    assert_eq!(waiting["pending"], 3);
    assert_eq!(waiting["waits"], 1);
    assert_eq!(waiting["timeouts"], 1);
    let histogram = waiting["wait_histogram"].as_array().expect("a list");
    let counted: u64 = histogram
        .iter()
        .filter_map(|bucket| bucket["waits"].as_u64())
        .sum();
    assert_eq!(counted, 1);
    let text = root.ok(&["status"]);
    assert!(text.contains("waits for UIDs     1, 1 timed out"), "{text}");
}

#[test]
fn a_folder_without_a_table_is_not_given_one() {
    let dir = tempfile::tempdir().expect("a folder");
    let registry = Registry::new(dir.path(), "foo").expect("a registry");
    registry.reserved().expect("it is made");
    let path = dir.path().to_str().expect("UTF-8");
    let output = xidctl(&["pending", "--dir", path]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("xid.table"), "{}", stderr(&output));
    assert!(!dir.path().join("xid.table").exists());
}
