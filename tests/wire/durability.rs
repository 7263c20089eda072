//! An XID never changes, and no number is used twice, whatever happens to the server and its
//! files (spec part 1).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::harness::*;

fn fill(server: &Dovecot, mailbox: &str, count: usize) {
    let mut client = server.imap("alice");
    for n in 1..=count {
        client.append(mailbox, &message(n));
    }
}

/// All files below `dir` whose name begins with `prefix`.
fn files(dir: &Path, prefix: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut todo = vec![dir.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                todo.push(path);
            } else if entry.file_name().to_string_lossy().starts_with(prefix) {
                found.push(path);
            }
        }
    }
    found
}

fn remove(dir: &Path, prefix: &str) -> usize {
    let found = files(dir, prefix);
    for file in &found {
        std::fs::remove_file(file).unwrap();
    }
    found.len()
}

/// No XID of `after` was another message's in `before`.
fn no_xid_moved(before: &[Message], after: &[Message]) {
    let owner: BTreeMap<&str, &str> = before
        .iter()
        .map(|m| (m.xid.as_deref().unwrap(), m.guid.as_str()))
        .collect();
    for message in after {
        let xid = message.xid.as_deref().unwrap();
        if let Some(guid) = owner.get(xid) {
            assert_eq!(*guid, message.guid, "{xid} is another message's now");
        }
    }
}

/// Every number of `after` that is not in `before` is above all of `before`.
fn only_new_numbers(before: &[Message], after: &[Message]) {
    let highest = before.iter().map(number).max().unwrap_or(0);
    let old = xids(before);
    for message in after {
        if !old.contains(message.xid.as_ref().unwrap()) {
            assert!(
                number(message) > highest,
                "{message:?} is not above {highest}"
            );
        }
    }
}

#[test]
fn xids_survive_a_restart_and_a_crash() {
    for format in Format::ALL {
        let server = Dovecot::setup().format(format).start();
        fill(&server, "INBOX", 5);
        let before = server.checked("alice", "INBOX");
        server.restart();
        assert_eq!(server.checked("alice", "INBOX"), before);
        server.crash();
        server.start_again();
        assert_eq!(server.checked("alice", "INBOX"), before);
        fill(&server, "INBOX", 1);
        only_new_numbers(&before, &server.checked("alice", "INBOX"));
    }
}

#[test]
fn xids_survive_a_rename_of_the_mailbox_and_of_its_parent() {
    for format in Format::ALL {
        let server = Dovecot::setup().format(format).start();
        let mut client = server.imap("alice");
        client.ok("CREATE Parent/Child");
        fill(&server, "Parent/Child", 4);
        let before = server.checked("alice", "Parent/Child");
        client.ok("RENAME Parent/Child Parent/Other");
        assert_eq!(server.checked("alice", "Parent/Other"), before);
        client.ok("RENAME Parent Renamed");
        assert_eq!(server.checked("alice", "Renamed/Other"), before);
        // The old name again: another mailbox, other numbers.
        client.ok("CREATE Parent/Child");
        fill(&server, "Parent/Child", 2);
        only_new_numbers(&before, &server.checked("alice", "Parent/Child"));
        fill(&server, "Renamed/Other", 1);
        assert_eq!(server.checked("alice", "Renamed/Other")[..4], before[..]);
        server.checked_all("alice");
    }
}

#[test]
fn renaming_inbox_takes_its_xids_along() {
    for format in Format::ALL {
        let server = Dovecot::setup().format(format).start();
        fill(&server, "INBOX", 3);
        let before = server.checked("alice", "INBOX");
        let renamed = server.imap("alice").cmd("RENAME INBOX Archive");
        if !renamed.is_ok() {
            assert!(
                renamed.text.contains("isn't supported"),
                "{format:?}: {}",
                renamed.text
            );
            continue;
        }
        assert_eq!(xids(&server.checked("alice", "Archive")), xids(&before));
        fill(&server, "INBOX", 2);
        only_new_numbers(&before, &server.checked("alice", "INBOX"));
        server.checked_all("alice");
    }
}

#[test]
fn xids_survive_force_resync() {
    for format in Format::ALL {
        let server = Dovecot::setup().format(format).start();
        fill(&server, "INBOX", 6);
        fill_and_expunge(&server);
        let before = server.checked("alice", "INBOX");
        for _ in 0..2 {
            server.doveadm_ok(&["force-resync", "-u", "alice", "INBOX"]);
            let after = server.checked("alice", "INBOX");
            assert_eq!(by_guid(&after), by_guid(&before), "{format:?}");
        }
        fill(&server, "INBOX", 1);
        only_new_numbers(&before, &server.checked("alice", "INBOX"));
    }
}

/// Leaves gaps in INBOX.
fn fill_and_expunge(server: &Dovecot) {
    let mut client = server.imap_in("alice", "INBOX");
    client.ok("STORE 2,5 +FLAGS (\\Deleted)");
    client.ok("EXPUNGE");
}

#[test]
fn xids_survive_the_deletion_of_the_index_files() {
    for format in Format::ALL {
        let server = Dovecot::setup().format(format).start();
        fill(&server, "INBOX", 6);
        fill_and_expunge(&server);
        let before = server.checked("alice", "INBOX");
        server.stop();
        assert!(remove(&server.mail_dir("alice"), "dovecot.index") > 0);
        server.start_again();
        server.doveadm_ok(&["force-resync", "-u", "alice", "INBOX"]);
        let after = server.checked("alice", "INBOX");
        assert_eq!(by_guid(&after), by_guid(&before), "{format:?}");
        fill(&server, "INBOX", 2);
        let later = server.checked("alice", "INBOX");
        assert_eq!(later.len(), before.len() + 2);
        only_new_numbers(&before, &later);
    }
}

#[test]
fn xids_survive_the_deletion_of_the_index_files_of_a_running_server() {
    for format in [Format::Sdbox, Format::Maildir] {
        let server = Dovecot::setup().format(format).start();
        fill(&server, "INBOX", 5);
        let before = server.checked("alice", "INBOX");
        assert!(remove(&server.mail_dir("alice"), "dovecot.index") > 0);
        if format == Format::Sdbox {
            // Until then a stock sdbox without its index is empty.
            server.doveadm_ok(&["force-resync", "-u", "alice", "INBOX"]);
        }
        let after = server.checked("alice", "INBOX");
        assert_eq!(by_guid(&after), by_guid(&before), "{format:?}");
    }
}

#[test]
fn copies_that_share_a_guid_keep_an_xid_each_after_the_loss_of_the_index() {
    // dbox keeps the GUID in a copy.
    for format in [Format::Sdbox, Format::Mdbox] {
        let server = Dovecot::setup().format(format).start();
        fill(&server, "INBOX", 2);
        let mut client = server.imap_in("alice", "INBOX");
        client.ok("CREATE Other");
        client.ok("COPY 1:2 Other");
        client.ok("COPY 1:2 INBOX");
        let (inbox, other) = (
            server.checked("alice", "INBOX"),
            server.checked("alice", "Other"),
        );
        drop(client);
        server.stop();
        remove(&server.mail_dir("alice"), "dovecot.index");
        server.start_again();
        server.doveadm_ok(&["force-resync", "-u", "alice", "*"]);
        let all = server.checked_all("alice");
        let sorted = |messages: &[Message]| {
            let mut xids = xids(messages);
            xids.sort();
            xids
        };
        if format == Format::Sdbox {
            assert_eq!(sorted(&all["INBOX"]), sorted(&inbox));
            assert_eq!(sorted(&all["Other"]), sorted(&other));
        }
        for messages in all.values() {
            no_xid_moved(&[inbox.clone(), other.clone()].concat(), messages);
        }
    }
}

#[test]
fn a_deleted_and_created_mailbox_repeats_no_number() {
    for format in Format::ALL {
        let server = Dovecot::setup().format(format).start();
        let mut client = server.imap("alice");
        let mut all: Vec<Message> = Vec::new();
        for round in 0..3 {
            client.ok("CREATE Box");
            fill(&server, "Box", 3);
            let now = server.checked("alice", "Box");
            only_new_numbers(&all, &now);
            assert!(
                now.iter()
                    .all(|m| !xids(&all).contains(m.xid.as_ref().unwrap()))
            );
            all.extend(now);
            client.ok("DELETE Box");
            if round == 1 {
                drop(client);
                server.restart();
                client = server.imap("alice");
            }
        }
    }
}

#[test]
fn messages_that_were_there_before_get_xids_in_their_order_when_first_opened() {
    for format in Format::ALL {
        let server = Dovecot::setup().format(format).plugin(false).start();
        fill(&server, "INBOX", 6);
        fill_and_expunge(&server);
        let before = server.messages("alice", "INBOX");
        server.set_plugin(true);
        server.restart();
        // Opened by several at once, one of them read-only.
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| server.checked("alice", "INBOX"));
            }
        });
        let after = server.checked("alice", "INBOX");
        let keys = |m: &[Message]| {
            m.iter()
                .map(|m| (m.uid, m.guid.clone()))
                .collect::<Vec<_>>()
        };
        assert_eq!(keys(&after), keys(&before));
        server.restart();
        assert_eq!(server.checked("alice", "INBOX"), after);
    }
}

#[test]
fn a_plug_in_that_was_off_for_a_while_repeats_no_number_and_changes_no_xid() {
    for format in Format::ALL {
        let server = Dovecot::setup().format(format).start();
        fill(&server, "INBOX", 3);
        let first = server.checked("alice", "INBOX");
        server.set_plugin(false);
        server.restart();
        let mut client = server.imap_in("alice", "INBOX");
        client.append("INBOX", &message(50));
        client.append("INBOX", &message(51));
        client.ok("STORE 3 +FLAGS (\\Deleted)");
        client.ok("EXPUNGE");
        client.ok("COPY 1 INBOX");
        drop(client);
        server.deliver("alice", &message(52));
        server.set_plugin(true);
        server.restart();
        let second = server.checked("alice", "INBOX");
        assert_eq!(second.len(), 6);
        assert_eq!(second[..2], first[..2], "{format:?}");
        only_new_numbers(&first, &second);
        fill(&server, "INBOX", 1);
        only_new_numbers(&second, &server.checked("alice", "INBOX"));
    }
}

/// `spoil` what the plug-in keeps while the server is down; then all XIDs are as before and new
/// ones are new.
fn after_spoiling(format: Format, what: &str, spoil: impl Fn(&Path)) {
    let server = Dovecot::setup().format(format).start();
    fill(&server, "INBOX", 4);
    server.imap("alice").ok("CREATE Gone");
    fill(&server, "Gone", 3);
    let gone = server.checked("alice", "Gone");
    server.imap("alice").ok("DELETE Gone");
    let before = server.checked("alice", "INBOX");
    server.stop();
    spoil(&server.mail_dir("alice"));
    server.allow_log("xid: ");
    server.start_again();
    assert_eq!(
        server.checked("alice", "INBOX"),
        before,
        "{what}, {format:?}"
    );
    fill(&server, "INBOX", 2);
    let after = server.checked("alice", "INBOX");
    only_new_numbers(&before, &after);
    let fresh = &after[before.len()..];
    assert!(
        fresh
            .iter()
            .all(|m| !xids(&gone).contains(m.xid.as_ref().unwrap())),
        "{what}: {fresh:?}"
    );
    server.imap("alice").ok("CREATE New");
    fill(&server, "New", 2);
    let new = server.checked("alice", "New");
    assert!(
        new.iter()
            .all(|m| !xids(&gone).contains(m.xid.as_ref().unwrap())),
        "{what}: {new:?}"
    );
    server.checked_all("alice");
    // What was spoilt works again: a client's state is answered.
    let mut client = server.imap_in("alice", "INBOX");
    let news = client
        .ok(&format!("XHXID {}", before[3].xid.as_ref().unwrap()))
        .announced();
    let expected = xids(&after)[4..].to_vec();
    assert!(
        expected.iter().all(|xid| news.contains(xid)),
        "{what}: {news:?} of {expected:?}"
    );
}

#[test]
fn a_deleted_registry_repeats_no_number() {
    for format in Format::ALL {
        after_spoiling(format, "registry deleted", |dir| {
            remove(dir, "xid.registry");
        });
    }
}

#[test]
fn a_deleted_table_repeats_no_number() {
    after_spoiling(Format::Sdbox, "table deleted", |dir| {
        assert!(remove(dir, "xid.table") > 0);
    });
}

#[test]
fn a_deleted_journal_repeats_no_number() {
    after_spoiling(Format::Sdbox, "journal deleted", |dir| {
        remove(dir, "xid.journal");
    });
}

#[test]
fn registry_journal_and_table_deleted_together_repeat_no_number() {
    for format in Format::ALL {
        after_spoiling(format, "all but the witness deleted", |dir| {
            for name in ["xid.registry", "xid.journal", "xid.table"] {
                remove(dir, name);
            }
        });
    }
}

#[test]
fn an_index_that_is_lost_with_the_registry_gets_new_xids_and_repeats_none() {
    for format in Format::ALL {
        let server = Dovecot::setup().format(format).start();
        fill(&server, "INBOX", 4);
        let before = server.checked("alice", "INBOX");
        server.stop();
        for name in ["dovecot.index", "xid.registry", "xid.journal", "xid.table"] {
            remove(&server.mail_dir("alice"), name);
        }
        server.allow_log("xid: ");
        server.start_again();
        server.doveadm_ok(&["force-resync", "-u", "alice", "INBOX"]);
        let after = server.checked("alice", "INBOX");
        assert_eq!(after.len(), 4);
        no_xid_moved(&before, &after);
    }
}
