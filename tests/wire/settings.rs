//! Settings: right ones do what they say, wrong ones leave mail working (design.md).

use crate::harness::*;

/// The lines of the log that the plug-in wrote.
fn plugin_lines(server: &Dovecot) -> Vec<String> {
    server
        .log()
        .lines()
        .filter(|line| line.contains("xid: "))
        .map(str::to_owned)
        .collect()
}

/// With this wrong value mail works, the plug-in is off, and the log says so in one line.
fn off_with_one_clear_line(key: &str, value: &str) {
    let server = Dovecot::setup().xid(key, value).start();
    server.allow_log("xid: ");
    let mut client = server.imap_in("alice", "INBOX");
    client.append("INBOX", &message(1));
    assert_eq!(
        client.ok("FETCH 1 (UID)").fetches()[0].uid(),
        Some(1),
        "{key} = {value}"
    );
    client.bad("FETCH 1 (XID)");
    client.bad("XHXID");
    // Lines go by way of Dovecot's own log process.
    server.wait_log("xid: ");
    let lines = plugin_lines(&server);
    assert_eq!(lines.len(), 1, "{key} = {value}: {lines:#?}");
    assert!(
        lines[0].contains(key),
        "the line does not name the setting: {}",
        lines[0]
    );
    assert!(
        lines[0].contains("alice"),
        "the line does not name the user: {}",
        lines[0]
    );
    drop(client);
    server.deliver("alice", &message(2));
    assert_eq!(server.lda("alice", "INBOX", &message(3)).code, 0);
    assert_eq!(server.pop3("alice").list("UIDL").len(), 3);
    // Corrected, the messages get their XIDs.
    server.stop();
    let good = match key {
        "xid_namespace" => "foo",
        "xid_uid_source" => "local",
        "xid_uids" => "yes",
        "xid_dir" => "~/xid",
        _ => "5s",
    };
    server.set_xid(key, good);
    server.start_again();
    assert_eq!(server.checked("alice", "INBOX").len(), 3);
}

#[test]
fn a_wrong_namespace_is_one_clear_log_line_and_mail_works() {
    let long = "x".repeat(64);
    for value in ["1foo", "foo-bar", "foo bar", "f\u{f6}\u{f6}", "_x", &long] {
        off_with_one_clear_line("xid_namespace", value);
    }
}

#[test]
fn a_wrong_uid_source_is_one_clear_log_line_and_mail_works() {
    for value in ["Local", "tables", "0"] {
        off_with_one_clear_line("xid_uid_source", value);
    }
}

#[test]
fn a_wrong_time_is_one_clear_log_line_and_mail_works() {
    for key in [
        "xid_uid_wait",
        "xid_keepalive",
        "xid_delivery_wait",
        "xid_appenduid_grace",
    ] {
        off_with_one_clear_line(key, "soon");
    }
    off_with_one_clear_line("xid_uid_wait", "-3s");
}

#[test]
fn a_wrong_answer_to_yes_or_no_is_one_clear_log_line_and_mail_works() {
    off_with_one_clear_line("xid_uids", "maybe");
}

#[test]
fn a_folder_that_cannot_be_made_is_a_clear_log_line_and_mail_works() {
    let server = Dovecot::setup().xid("xid_dir", "/proc/nowhere").start();
    server.allow_log("xid: ");
    let mut client = server.imap_in("alice", "INBOX");
    client.append("INBOX", &message(1));
    client.append("INBOX", &message(2));
    assert_eq!(client.ok("FETCH 1:2 (UID)").fetches().len(), 2);
    server.wait_log("/proc/nowhere");
    let lines = plugin_lines(&server);
    assert!(
        lines.iter().any(|line| line.contains("/proc/nowhere")),
        "{lines:#?}"
    );
    assert!(lines.len() <= 3, "one fault, many lines: {lines:#?}");
    drop(client);
    server.deliver("alice", &message(3));
    server.stop();
    server.set_xid("xid_dir", "~/xid");
    server.start_again();
    assert_eq!(server.checked("alice", "INBOX").len(), 3);
}

#[test]
fn the_namespace_is_the_one_that_is_set() {
    let server = Dovecot::setup().xid("xid_namespace", "Node.7_b").start();
    server.append("alice", "INBOX", &message(1));
    assert_eq!(
        server.checked("alice", "INBOX")[0].xid.as_deref(),
        Some("Node.7_b-1")
    );
}

#[test]
fn the_default_namespace_is_the_hosts_name_up_to_the_first_dot() {
    let server = Dovecot::setup().xid("xid_namespace", "").start();
    server.append("alice", "INBOX", &message(1));
    let xid = server.checked("alice", "INBOX")[0]
        .xid
        .clone()
        .expect("an XID");
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").expect("a host name");
    let first = host.trim().split('.').next().unwrap_or("");
    let cleaned: String = first
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || c == '_' {
                c
            } else {
                '_'
            }
        })
        .collect();
    let (namespace, _) = split_xid(&xid);
    if cleaned.starts_with(|c: char| c.is_ascii_alphabetic()) {
        assert_eq!(namespace, cleaned.get(..63).unwrap_or(&cleaned));
    }
}

#[test]
fn a_changed_namespace_gives_new_messages_its_name_and_leaves_the_old_ones() {
    for format in Format::ALL {
        let server = Dovecot::setup().format(format).start();
        server.append("alice", "INBOX", &message(1));
        server.append("alice", "INBOX", &message(2));
        let before = server.checked("alice", "INBOX");
        server.set_xid("xid_namespace", "bar");
        server.restart();
        server.append("alice", "INBOX", &message(3));
        let after = server.checked("alice", "INBOX");
        assert_eq!(after[..2], before[..]);
        assert_eq!(split_xid(after[2].xid.as_ref().unwrap()).0, "bar");
        server.set_xid("xid_namespace", "foo");
        server.restart();
        server.append("alice", "INBOX", &message(4));
        let last = server.checked("alice", "INBOX");
        assert_eq!(last[..3], after[..]);
        assert!(number(&last[3]) > number(&before[1]));
    }
}

#[test]
fn no_capability_is_advertised_unless_it_is_asked_for() {
    let server = Dovecot::start();
    let mut client = server.imap("alice");
    let words = client.ok("CAPABILITY").only("CAPABILITY");
    assert!(!words.to_uppercase().contains("XID"), "{words}");
    let server = Dovecot::setup().xid("xid_capability", "XID").start();
    let mut client = server.imap("alice");
    let words = client.ok("CAPABILITY").only("CAPABILITY");
    assert!(words.split(' ').any(|word| word == "XID"), "{words}");
}

#[test]
fn files_of_the_plug_in_belong_to_the_mails_owner_alone() {
    use std::os::unix::fs::MetadataExt;
    let server = Dovecot::start();
    server.deliver("alice", &message(1));
    server.imap_in("alice", "INBOX").ok("XHXID foo-1");
    // doveadm runs as root: what it makes must be the owner's too.
    let saved = server.doveadm_input(&["save", "-u", "bob", "-m", "INBOX"], &message(2));
    assert_eq!(saved.code, 0, "{saved:?}");
    let mut seen = 0;
    for user in ["alice", "bob"] {
        for entry in std::fs::read_dir(server.mail_dir(user)).unwrap().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if !name.starts_with("xid.") {
                continue;
            }
            seen += 1;
            let meta = entry.metadata().unwrap();
            assert_eq!((meta.uid(), meta.gid()), server.mail_owner(), "{name}");
            assert_eq!(meta.mode() & 0o077, 0, "{name} can be read by others");
        }
    }
    assert!(seen >= 4, "only {seen} files");
}

#[test]
fn without_the_plug_in_fetch_xid_is_refused_by_the_host() {
    let server = Dovecot::setup().plugin(false).start();
    server.append("alice", "INBOX", &message(1));
    let mut client = server.imap_in("alice", "INBOX");
    client.bad("FETCH 1 (XID)");
    client.bad("SEARCH 1:* XID");
    client.bad("XHXID");
}
