//! xidctl against a running Dovecot.

use crate::harness::{Dovecot, Format, Output, message};

const USER: &str = "alice";

/// A server with three messages in INBOX, one of them expunged, and a copy elsewhere.
fn server(format: Format) -> Dovecot {
    let server = Dovecot::setup().format(format).start();
    let mut client = server.imap_in(USER, "INBOX");
    for n in 1..=3 {
        client.append("INBOX", &message(n));
    }
    client.ok("CREATE Other");
    client.ok("COPY 1:2 Other");
    client.ok("STORE 2 +FLAGS (\\Deleted)");
    client.ok("EXPUNGE");
    client.ok("LOGOUT");
    server
}

/// Runs xidctl and insists on its exit status.
fn xidctl(server: &Dovecot, args: &[&str], code: i32) -> Output {
    let output = server.xidctl(args);
    assert_eq!(output.code, code, "xidctl {args:?}: {output:?}");
    output
}

/// The user's registry, opened behind everybody's back.
fn registry(server: &Dovecot) -> rusqlite::Connection {
    let path = server.mail_dir(USER).join("xid.registry");
    rusqlite::Connection::open(path).expect("the registry opens")
}

/// What an IMAP client sees of a mailbox, as lines of an export.
fn as_exported(server: &Dovecot, mailbox: &str) -> Vec<String> {
    let messages = server.messages(USER, mailbox);
    let lines = messages.iter().map(|m| {
        let xid = m.xid.as_deref().expect("an XID");
        format!("{xid}\t{}\t{}\t{mailbox}", m.uid, m.guid)
    });
    lines.collect()
}

fn sorted(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

#[test]
fn export_lists_what_a_client_sees() {
    for format in Format::ALL {
        let server = server(format);
        let mut wanted = as_exported(&server, "INBOX");
        let inbox = wanted.join("\n");
        let one = xidctl(&server, &["export", "-u", USER, "-m", "INBOX"], 0);
        assert_eq!(one.stdout.trim_end(), inbox, "{format:?}");

        wanted.extend(as_exported(&server, "Other"));
        wanted.sort();
        let all = xidctl(&server, &["export", "-u", USER], 0);
        assert_eq!(sorted(&all.stdout), wanted, "{format:?}");

        let dir = server.mail_dir(USER).display().to_string();
        let by_folder = xidctl(&server, &["export", "--dir", &dir], 0);
        assert_eq!(
            sorted(&by_folder.stdout),
            wanted,
            "{format:?}: from the registry"
        );
    }
}

#[test]
fn export_as_json_is_an_object_a_line() {
    let server = server(Format::Sdbox);
    let output = xidctl(&server, &["--json", "export", "-u", USER, "-m", "INBOX"], 0);
    let rows: Vec<serde_json::Value> = output
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    assert_eq!(rows.len(), 2, "{}", output.stdout);
    assert_eq!(rows[0]["xid"], "foo-1");
    assert_eq!(rows[0]["uid"], 1);
    assert_eq!(rows[0]["mailbox"], "INBOX");
}

#[test]
fn status_shows_numbers_and_mailboxes() {
    let server = server(Format::Sdbox);
    let output = xidctl(&server, &["status", "-u", USER, "--json"], 0);
    let status: serde_json::Value = serde_json::from_str(&output.stdout).expect("JSON");
    assert_eq!(status["namespace"], "foo");
    assert_eq!(
        status["numbers"]["given"], 5,
        "three saved, two copied: {status}"
    );
    assert!(
        status["numbers"]["reserved"].as_u64() >= Some(5),
        "{status}"
    );
    let mailboxes = status["mailboxes"].as_array().expect("a list");
    let inbox = mailboxes
        .iter()
        .find(|one| one["name"] == "INBOX")
        .expect("INBOX");
    assert_eq!(inbox["messages"], 2, "{status}");
    let people = xidctl(&server, &["status", "-u", USER, "-m", "Other"], 0);
    assert!(
        people.stdout.contains("mailbox Other: 2 messages"),
        "{}",
        people.stdout
    );
    assert!(!people.stdout.contains("INBOX"), "{}", people.stdout);
}

#[test]
fn verify_finds_nothing_where_nothing_is_wrong() {
    for format in Format::ALL {
        let server = server(format);
        let output = xidctl(&server, &["verify", "-u", USER], 0);
        let last = output.stdout.lines().next_back().unwrap_or_default();
        assert!(
            last.contains("4 messages, 0 differences"),
            "{format:?}: {}",
            output.stdout
        );
    }
}

#[test]
fn verify_names_each_difference_and_repairs_it() {
    let server = server(Format::Sdbox);
    xidctl(&server, &["verify", "-u", USER], 0);
    let before = xidctl(&server, &["export", "-u", USER], 0);
    let tampered = "UPDATE messages SET number = 900 WHERE uid = 1 AND number = 1;
         DELETE FROM messages WHERE uid = 3;
         INSERT INTO messages SELECT box, ns, 901, 2, guid FROM messages WHERE number = 900;";
    registry(&server).execute_batch(tampered).expect("SQL");

    let found = xidctl(&server, &["verify", "-u", USER], 3);
    for wanted in [
        "INBOX: UID 1: foo-1 in the index, foo-900 in the registry\n",
        "INBOX: UID 3: foo-3 is not in the registry\n",
        "INBOX: UID 2: foo-901 is in the registry, the message is gone\n",
    ] {
        assert!(
            found.stdout.contains(wanted),
            "{wanted} in:\n{}",
            found.stdout
        );
    }
    let repaired = xidctl(&server, &["verify", "-u", USER, "--repair"], 0);
    assert!(
        repaired.stdout.contains("3 differences, 3 repaired"),
        "{}",
        repaired.stdout
    );
    xidctl(&server, &["verify", "-u", USER], 0);
    let after = xidctl(&server, &["export", "-u", USER], 0);
    assert_eq!(
        after.stdout, before.stdout,
        "the mail itself has the XIDs that it had"
    );
    let dir = server.mail_dir(USER).display().to_string();
    let rows = xidctl(&server, &["export", "--dir", &dir], 0);
    assert_eq!(
        sorted(&rows.stdout),
        sorted(&before.stdout),
        "GUIDs included"
    );
}

#[test]
fn a_damaged_registry_is_moved_aside_and_filled_again() {
    let server = server(Format::Sdbox);
    xidctl(&server, &["verify", "-u", USER], 0);
    server.stop();
    let path = server.mail_dir(USER).join("xid.registry");
    registry(&server)
        .pragma_update(None, "wal_checkpoint", "TRUNCATE")
        .expect("a checkpoint");
    let mut bytes = std::fs::read(&path).expect("the registry");
    let pages = bytes.len() / 4096;
    for page in 2..pages {
        bytes[page * 4096..page * 4096 + 64].fill(0xa5);
    }
    std::fs::write(&path, bytes).expect("the registry is ours to break");
    server.allow_log("xid.registry");
    server.start_again();

    xidctl(&server, &["verify", "-u", USER, "--repair"], 0);
    let checked = xidctl(&server, &["verify", "-u", USER], 0);
    assert!(
        checked.stdout.contains(" 0 differences"),
        "{}",
        checked.stdout
    );
    let names: Vec<String> = std::fs::read_dir(server.mail_dir(USER))
        .expect("the folder")
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    assert!(
        names
            .iter()
            .any(|name| name.starts_with("xid.registry.broken-")),
        "{names:?}"
    );
    let xids: Vec<_> = server
        .messages(USER, "INBOX")
        .into_iter()
        .map(|m| m.xid)
        .collect();
    assert_eq!(xids, [Some("foo-1".to_owned()), Some("foo-3".to_owned())]);
}

#[test]
fn files_stay_the_mail_owners_whatever_xidctl_does() {
    use std::os::unix::fs::MetadataExt;
    let server = server(Format::Sdbox);
    for args in [
        &["status"][..],
        &["verify"],
        &["verify", "--repair"],
        &["export"],
    ] {
        xidctl(&server, &[args, &["-u", USER]].concat(), 0);
    }
    for entry in std::fs::read_dir(server.mail_dir(USER))
        .expect("the folder")
        .flatten()
    {
        let owner = entry.metadata().expect("metadata").uid();
        assert_eq!(owner, server.mail_owner().0, "{:?}", entry.path());
    }
}

#[test]
fn a_mailbox_that_does_not_exist_is_an_error_with_its_name() {
    let server = server(Format::Sdbox);
    for command in ["verify", "export", "status"] {
        let output = xidctl(&server, &[command, "-u", USER, "-m", "Nowhere"], 1);
        assert!(output.stderr.contains("Nowhere"), "{command}: {output:?}");
    }
}
