//! Spec part 7: `xid_uids = no`, a server that has no UIDs at all.

use crate::harness::*;

fn without_uids(format: Format) -> Dovecot {
    let server = Dovecot::setup()
        .format(format)
        .xid("xid_uids", "no")
        .start();
    let mut client = server.imap("alice");
    for n in 1..=3 {
        client.append("INBOX", &message(n));
    }
    server
}

#[test]
fn select_says_uidnotsticky_and_no_uidvalidity_and_no_uidnext() {
    for format in Format::ALL {
        let server = without_uids(format);
        let mut client = server.imap("alice");
        for command in ["SELECT INBOX", "EXAMINE INBOX"] {
            let reply = client.ok(command);
            assert_eq!(reply.exists(), Some(3));
            assert_eq!(
                reply.untagged_code("UIDVALIDITY"),
                None,
                "{:?}",
                reply.lines
            );
            assert_eq!(reply.untagged_code("UIDNEXT"), None, "{:?}", reply.lines);
            assert!(
                reply
                    .lines
                    .iter()
                    .any(|line| line.contains("[UIDNOTSTICKY]")),
                "{:?}",
                reply.lines
            );
        }
        client.no("SELECT Nowhere");
        client.ok("SELECT INBOX (CONDSTORE)");
    }
}

#[test]
fn uid_commands_get_no_and_do_nothing() {
    let server = without_uids(Format::Sdbox);
    let mut client = server.imap_in("alice", "INBOX");
    client.ok("CREATE Other");
    for command in [
        "UID FETCH 1:* (FLAGS)",
        "UID STORE 1 +FLAGS (\\Deleted)",
        "UID COPY 1 Other",
        "UID MOVE 1 Other",
        "UID EXPUNGE 1",
        "UID SEARCH ALL",
        "UID SORT (DATE) UTF-8 ALL",
        "UID THREAD REFERENCES UTF-8 ALL",
        "SEARCH UID 1:*",
        "SEARCH OR UID 1 SUBJECT message",
        "SORT (DATE) UTF-8 UID 1",
        "STATUS INBOX (UIDNEXT)",
        "STATUS INBOX (UIDVALIDITY UIDNEXT)",
        "SELECT INBOX (QRESYNC (1 1))",
    ] {
        client.no(command);
    }
    assert_eq!(client.ok("SEARCH UNDELETED").search_numbers(), [1, 2, 3]);
}

#[test]
fn sequence_numbers_and_xids_work() {
    for format in Format::ALL {
        let server = without_uids(format);
        let mut client = server.imap_in("alice", "INBOX");
        client.ok("CREATE Other");
        let fetches = client.ok("FETCH 1:* (UID XID FLAGS)").fetches();
        assert_eq!(fetches.len(), 3);
        for fetch in &fetches {
            assert_eq!(fetch.uid(), None);
        }
        let xid = fetches[2].xid().expect("an XID");
        assert_eq!(
            client
                .ok(&format!("XHXID FETCH {xid} (FLAGS)"))
                .fetches()
                .len(),
            1
        );
        client.ok("STORE 2 +FLAGS (\\Flagged)");
        let reply = client.ok("COPY 1 Other");
        assert_eq!(reply.code("COPYUID"), None, "{}", reply.text);
        let reply = client.append("INBOX", &message(4));
        assert_eq!(reply.code("APPENDUID"), None, "{}", reply.text);
        let reply = client.ok("MOVE 1 Other");
        assert!(reply.lines.iter().all(|line| !line.contains("COPYUID")));
        assert_eq!(client.ok("SEARCH ALL").search_numbers(), [1, 2, 3]);
        client.ok("SORT (DATE) UTF-8 ALL");
        client.ok("THREAD REFERENCES UTF-8 ALL");
        client.ok("STORE 1 +FLAGS.SILENT (\\Deleted)");
        client.ok("EXPUNGE");
        let idle = client.idle();
        server.append("alice", "INBOX", &message(5));
        client.wait_line("3 EXISTS");
        client.done(&idle);
    }
}

#[test]
fn status_leaves_out_what_is_about_uids() {
    let server = without_uids(Format::Sdbox);
    let mut client = server.imap("alice");
    assert_eq!(
        client
            .ok("STATUS INBOX (MESSAGES UIDNEXT UIDVALIDITY UNSEEN)")
            .only("STATUS"),
        "INBOX (MESSAGES 3 UNSEEN 3)"
    );
    let status = client
        .ok("LIST \"\" INBOX RETURN (STATUS (UIDNEXT MESSAGES UIDVALIDITY))")
        .only("STATUS");
    assert_eq!(status, "INBOX (MESSAGES 3)");
}

#[test]
fn what_needs_uids_is_not_offered() {
    let server = without_uids(Format::Sdbox);
    let mut client = server.imap("alice");
    let reply = client.ok("CAPABILITY");
    let line = reply.only("CAPABILITY");
    for name in ["UIDPLUS", "QRESYNC", "NOTIFY"] {
        assert!(!line.split(' ').any(|word| word == name), "{line}");
    }
    client.ok("ENABLE QRESYNC");
    client.ok("SELECT INBOX");
    client.ok("STORE 1 +FLAGS.SILENT (\\Deleted)");
    let reply = client.ok("EXPUNGE");
    assert!(reply.untagged("VANISHED").is_empty(), "{:?}", reply.lines);
}

#[test]
fn mail_can_be_delivered_and_read_by_pop3() {
    let server = without_uids(Format::Sdbox);
    server.deliver("alice", &message(4));
    assert_eq!(server.imap("alice").ok("SELECT INBOX").exists(), Some(4));
}
