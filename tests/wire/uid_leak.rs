//! Spec part 6: only stable UIDs ever leave the server. The scanner of the harness judges every
//! line; these tests make the server talk, and see that nothing is lost by its silence.

use crate::assign::{advance, inbox, table, uids, waiters};
use crate::harness::*;

/// The number in `[HIGHESTMODSEQ n]`, untagged or in the tagged line.
fn highest_modseq(reply: &Reply) -> Option<u64> {
    reply
        .code("HIGHESTMODSEQ")
        .or_else(|| reply.untagged_code("HIGHESTMODSEQ"))
        .and_then(|n| n.parse().ok())
}

#[test]
fn uidnext_is_the_watermark_plus_one() {
    for format in Format::ALL {
        let server = inbox(table().format(format), 5, 3);
        let mut client = server.imap("alice");
        for command in ["SELECT INBOX", "EXAMINE INBOX"] {
            let reply = client.ok(command);
            assert_eq!(
                reply.untagged_code("UIDNEXT").as_deref(),
                Some("4"),
                "{command}"
            );
            assert_eq!(reply.exists(), Some(5));
        }
        client.ok("UNSELECT");
        for command in [
            "STATUS INBOX (MESSAGES UIDNEXT)",
            "LIST \"\" INBOX RETURN (STATUS (MESSAGES UIDNEXT))",
        ] {
            let status = client.ok(command).only("STATUS");
            assert!(status.contains("MESSAGES 5"), "{status}");
            assert!(status.contains("UIDNEXT 4"), "{status}");
        }
        advance(&server, "alice", "INBOX", 4);
        let status = client.ok("STATUS INBOX (UIDNEXT)").only("STATUS");
        assert!(status.contains("UIDNEXT 5"), "{status}");
        advance(&server, "alice", "INBOX", 5);
        assert_eq!(
            client
                .ok("SELECT INBOX")
                .untagged_code("UIDNEXT")
                .as_deref(),
            Some("6")
        );
    }
}

#[test]
fn uidnext_of_an_empty_mailbox_and_of_one_whose_last_message_is_gone() {
    let server = inbox(table(), 3, 2);
    let mut client = server.imap_in("alice", "INBOX");
    client.ok("STORE 3 +FLAGS.SILENT (\\Deleted)");
    client.ok("EXPUNGE");
    assert_eq!(
        client
            .ok("SELECT INBOX")
            .untagged_code("UIDNEXT")
            .as_deref(),
        Some("3")
    );
    client.ok("CREATE Empty");
    assert_eq!(
        client
            .ok("SELECT Empty")
            .untagged_code("UIDNEXT")
            .as_deref(),
        Some("1")
    );
}

#[test]
fn appenduid_and_copyuid_are_left_out_while_the_uid_is_not_stable() {
    for format in Format::ALL {
        let server = inbox(table().format(format), 3, 3);
        let mut client = server.imap_in("alice", "INBOX");
        client.ok("CREATE Other");
        let reply = client.append("INBOX", &message(4));
        assert_eq!(reply.code("APPENDUID"), None, "{}", reply.text);
        let reply = client.ok("COPY 1 Other");
        assert_eq!(reply.code("COPYUID"), None, "{}", reply.text);
        let reply = client.ok("MOVE 1 Other");
        assert_eq!(reply.code("COPYUID"), None, "{}", reply.text);
        assert_eq!(reply.untagged_code("COPYUID"), None, "{:?}", reply.lines);
        let reply = client.ok("UID COPY 2 INBOX");
        assert_eq!(reply.code("COPYUID"), None, "{}", reply.text);
    }
}

#[test]
fn appenduid_comes_when_the_uid_is_agreed_within_the_grace() {
    let server = inbox(table(), 1, 1);
    server.stop();
    server.set_xid("xid_appenduid_grace", "90s");
    server.start_again();
    let mut client = server.imap("alice");
    let tag = client
        .start_append("INBOX", &message(2))
        .expect("a connection");
    until("the message is there", || {
        server.imap("alice").ok("EXAMINE INBOX").exists() == Some(2)
    });
    advance(&server, "alice", "INBOX", 2);
    let reply = client.wait(&tag);
    let code = reply.code("APPENDUID").unwrap_or_default();
    assert!(code.ends_with(" 2"), "{}", reply.text);
}

#[test]
fn a_message_with_a_stable_uid_is_copied_without_naming_an_unstable_one() {
    let server = inbox(table().xid("xid_appenduid_grace", "100ms"), 3, 1);
    let mut client = server.imap_in("alice", "INBOX");
    client.ok("CREATE Other");
    // Source 2 and 3 are not stable, nor is what they become.
    client.ok("COPY 1:3 Other");
    client.ok("MOVE 2 Other");
}

#[test]
fn uid_store_tells_changes_of_unstable_messages_later_and_loses_none() {
    let server = inbox(table(), 4, 2);
    let mut client = server.imap_in("alice", "INBOX");
    let mut other = server.imap_in("alice", "INBOX");
    other.ok("STORE 3:4 +FLAGS (\\Flagged)");
    // The host adds UIDs to all changes that a UID STORE sees.
    let reply = client.ok("UID STORE 1 +FLAGS (\\Seen)");
    assert_eq!(uids(&reply), [1]);
    // A command that adds none tells them.
    let mut seen: Vec<u32> = Vec::new();
    for fetch in client.ok("NOOP").fetches() {
        assert!(
            fetch
                .flags()
                .expect("flags")
                .contains(&"\\Flagged".to_owned())
        );
        assert_eq!(fetch.uid(), None);
        seen.push(fetch.seq);
    }
    assert_eq!(seen, [3, 4]);
}

#[test]
fn store_by_sequence_number_answers_at_once_without_a_uid() {
    let server = inbox(table(), 2, 1);
    let mut client = server.imap_in("alice", "INBOX");
    let fetches = client.ok("STORE 2 +FLAGS (\\Seen)").fetches();
    assert_eq!(fetches.len(), 1);
    assert_eq!(fetches[0].uid(), None);
}

#[test]
fn with_qresync_changes_of_unstable_messages_are_held_back_until_they_are_stable() {
    for format in Format::ALL {
        let server = inbox(table().format(format), 4, 2);
        let mut client = server.imap("alice");
        client.ok("ENABLE QRESYNC");
        client.ok("SELECT INBOX");
        let mut other = server.imap_in("alice", "INBOX");
        other.ok("STORE 1:4 +FLAGS (\\Flagged)");
        let reply = client.ok("NOOP");
        assert_eq!(uids(&reply), [1, 2], "{format:?}");
        assert!(client.ok("NOOP").fetches().is_empty());
        advance(&server, "alice", "INBOX", 3);
        assert_eq!(uids(&client.ok("NOOP")), [3]);
        advance(&server, "alice", "INBOX", 4);
        assert_eq!(uids(&client.ok("NOOP")), [4]);
        assert!(client.ok("NOOP").fetches().is_empty());
    }
}

#[test]
fn an_idle_client_is_told_what_was_held_back_as_soon_as_it_is_stable() {
    let server = inbox(table(), 2, 1);
    let mut client = server.imap("alice");
    client.ok("ENABLE QRESYNC");
    client.ok("SELECT INBOX");
    let idle = client.idle();
    let mut other = server.imap_in("alice", "INBOX");
    other.ok("STORE 1:2 +FLAGS (\\Flagged)");
    client.wait_line("UID 1 ");
    advance(&server, "alice", "INBOX", 2);
    client.wait_line("UID 2 ");
    client.done(&idle);
}

#[test]
fn vanished_names_no_uid_that_is_not_stable() {
    for format in Format::ALL {
        let server = inbox(table().format(format), 4, 2);
        let mut client = server.imap("alice");
        client.ok("ENABLE QRESYNC");
        client.ok("SELECT INBOX");
        let mut other = server.imap_in("alice", "INBOX");
        other.ok("STORE 4 +FLAGS.SILENT (\\Deleted)");
        other.ok("EXPUNGE");
        assert!(
            client.ok("NOOP").untagged("VANISHED").is_empty(),
            "{format:?}"
        );
        // What is stable is told at once, if nothing else is held back.
        advance(&server, "alice", "INBOX", 4);
        let told = client.ok("NOOP");
        assert_eq!(told.only("VANISHED"), "4", "{format:?}");
        // The session's own EXPUNGE of an unstable message.
        client.append("INBOX", &message(5));
        assert_eq!(client.ok("NOOP").exists().unwrap_or(4), 4);
        client.ok("STORE 4 +FLAGS.SILENT (\\Deleted)");
        assert!(client.ok("EXPUNGE").untagged("VANISHED").is_empty());
        advance(&server, "alice", "INBOX", 5);
        assert_eq!(client.ok("NOOP").only("VANISHED"), "5", "{format:?}");
        client.ok("STORE 1 +FLAGS.SILENT (\\Deleted)");
        assert_eq!(client.ok("EXPUNGE").only("VANISHED"), "1");
    }
}

#[test]
fn stable_messages_vanish_at_once_while_others_are_unstable() {
    let server = inbox(table(), 4, 2);
    let mut client = server.imap("alice");
    client.ok("ENABLE QRESYNC");
    client.ok("SELECT INBOX");
    client.ok("UID STORE 1 +FLAGS.SILENT (\\Deleted)");
    assert_eq!(client.ok("UID EXPUNGE 1").only("VANISHED"), "1");
    assert_eq!(client.ok("FETCH 1:* (XID)").fetches().len(), 3);
}

#[test]
fn no_change_is_lost_through_highestmodseq() {
    for format in Format::ALL {
        let server = inbox(table().format(format), 4, 2);
        let mut client = server.imap("alice");
        client.ok("ENABLE QRESYNC");
        let selected = client.ok("SELECT INBOX");
        let validity = selected.untagged_code("UIDVALIDITY").expect("UIDVALIDITY");
        let mut known = highest_modseq(&selected).expect("HIGHESTMODSEQ");
        // Changes above and below the watermark, in turn.
        let mut other = server.imap_in("alice", "INBOX");
        other.ok("STORE 4 +FLAGS (\\Flagged)");
        other.ok("STORE 1 +FLAGS (\\Answered)");
        other.ok("STORE 3 +FLAGS (\\Seen)");
        other.ok("STORE 2 +FLAGS (\\Draft)");
        for _ in 0..3 {
            let reply = client.ok("NOOP");
            // A client that takes its mark from MODSEQs corrects it by what the server says.
            if let Some(modseq) = highest_modseq(&reply) {
                known = modseq;
            }
        }
        drop(client);
        advance(&server, "alice", "INBOX", 4);
        let mut client = server.imap("alice");
        client.ok("ENABLE QRESYNC");
        let reply = client.ok(&format!("SELECT INBOX (QRESYNC ({validity} {known}))"));
        let told = uids(&reply);
        // Everything that the first session was not told is told now.
        assert!(
            told.contains(&3) && told.contains(&4),
            "{format:?}: {told:?}"
        );
    }
}

#[test]
fn select_with_qresync_names_stable_uids_only() {
    for format in Format::ALL {
        let server = inbox(table().format(format), 4, 4);
        let mut client = server.imap("alice");
        client.ok("ENABLE QRESYNC");
        let selected = client.ok("SELECT INBOX");
        let validity = selected.untagged_code("UIDVALIDITY").expect("UIDVALIDITY");
        let known = highest_modseq(&selected).expect("HIGHESTMODSEQ");
        client.ok("UNSELECT");
        let mut other = server.imap_in("alice", "INBOX");
        for n in 5..=7 {
            other.append("INBOX", &message(n));
        }
        other.ok("NOOP");
        other.ok("STORE 2,6 +FLAGS (\\Flagged)");
        other.ok("STORE 3,7 +FLAGS.SILENT (\\Deleted)");
        other.ok("EXPUNGE");
        for parameters in [
            format!("{validity} {known}"),
            format!("{validity} {known} 1:9"),
            format!("{validity} {known} 1:4 (1:4 1:4)"),
            format!("{validity} {known} (1,4 1,4)"),
        ] {
            let reply = client.ok(&format!("SELECT INBOX (QRESYNC ({parameters}))"));
            assert_eq!(reply.only("VANISHED"), "(EARLIER) 3", "{parameters}");
            assert_eq!(uids(&reply), [2], "{parameters}");
            assert!(highest_modseq(&reply).is_some());
        }
        // Nothing known is stable: nothing to tell.
        let reply = client.ok(&format!("SELECT INBOX (QRESYNC ({validity} {known} 5:7))"));
        assert!(reply.fetches().is_empty() && reply.untagged("VANISHED").is_empty());
        advance(&server, "alice", "INBOX", 7);
        let reply = client.ok(&format!("SELECT INBOX (QRESYNC ({validity} {known}))"));
        assert_eq!(uids(&reply), [2, 5, 6]);
        assert_eq!(reply.only("VANISHED"), "(EARLIER) 3,7");
    }
}

#[test]
fn uid_fetch_vanished_names_stable_uids_only() {
    let server = inbox(table(), 4, 3);
    let mut client = server.imap("alice");
    client.ok("ENABLE QRESYNC");
    client.ok("SELECT INBOX");
    client.ok("STORE 2,4 +FLAGS.SILENT (\\Deleted)");
    let mut other = server.imap_in("alice", "INBOX");
    other.ok("EXPUNGE");
    client.ok("SELECT INBOX");
    let reply = client.ok("UID FETCH 1:* (FLAGS) (CHANGEDSINCE 1 VANISHED)");
    assert_eq!(reply.only("VANISHED"), "(EARLIER) 2");
}

#[test]
fn updates_of_a_search_name_no_uid_that_is_not_stable() {
    let server = inbox(table(), 2, 2);
    let mut client = server.imap_in("alice", "INBOX");
    client.ok("UID SEARCH RETURN (ALL UPDATE) ALL");
    client.append("INBOX", &message(3));
    let reply = client.ok("NOOP");
    assert!(reply.untagged("ESEARCH").is_empty(), "{:?}", reply.lines);
    // By sequence numbers there is nothing to hold back.
    let by_seq = client.send("SEARCH RETURN (ALL UPDATE) ALL");
    assert!(client.wait(&by_seq).is_ok());
    client.append("INBOX", &message(4));
    let reply = client.ok("NOOP");
    let all: Vec<Line> = reply.untagged("ESEARCH").into_iter().cloned().collect();
    assert!(all.iter().all(|line| !line.contains("UID")), "{all:?}");
    advance(&server, "alice", "INBOX", 4);
    let reply = client.ok("NOOP");
    let told = reply.untagged("ESEARCH");
    assert!(
        told.iter().any(|line| line.contains("UID ADDTO (0 3:4)")),
        "{told:?}"
    );
}

#[test]
fn notify_holds_the_fetch_of_new_messages_back_until_they_are_stable() {
    let server = inbox(table(), 1, 1);
    let mut client = server.imap_in("alice", "INBOX");
    client.ok("NOTIFY SET (SELECTED (MessageNew (UID FLAGS) MessageExpunge FlagChange))");
    for uid in 2..=4 {
        client.take_untagged();
        server.append("alice", "INBOX", &message(uid));
        let reply = client.ok("NOOP");
        assert_eq!(reply.exists(), Some(uid as u32));
        assert!(reply.fetches().is_empty(), "{:?}", reply.lines);
        // It comes by itself.
        advance(&server, "alice", "INBOX", uid as u32);
        client.wait_line(&format!("UID {uid} "));
    }
}

#[test]
fn notify_without_uids_fetches_at_once() {
    let server = inbox(table(), 1, 1);
    let mut client = server.imap_in("alice", "INBOX");
    client.ok("NOTIFY SET (SELECTED (MessageNew (FLAGS) MessageExpunge FlagChange))");
    server.append("alice", "INBOX", &message(2));
    let fetches = client.ok("NOOP").fetches();
    assert_eq!(fetches.len(), 1);
    assert_eq!(fetches[0].seq, 2);
}

#[test]
fn notify_of_other_mailboxes_tells_uidnext_as_status_does() {
    let server = inbox(table(), 2, 1);
    let mut client = server.imap("alice");
    client.ok("CREATE Other");
    client.ok("SELECT Other");
    let reply =
        client.ok("NOTIFY SET STATUS (MAILBOXES INBOX (MessageNew MessageExpunge FlagChange))");
    let status = reply.only("STATUS");
    assert!(status.contains("MESSAGES 2"), "{status}");
    assert!(status.contains("UIDNEXT 2"), "{status}");
}

#[test]
fn notify_tells_another_mailbox_again_when_its_uids_are_stable() {
    let server = inbox(table(), 2, 1);
    let mut client = server.imap("alice");
    client.ok("CREATE Other");
    client.ok("SELECT Other");
    let reply = client.ok("NOTIFY SET STATUS (MAILBOXES INBOX (MessageNew MessageExpunge))");
    assert!(reply.only("STATUS").contains("UIDNEXT 2"));
    let idle = client.idle();
    advance(&server, "alice", "INBOX", 2);
    let line = client.wait_line("STATUS INBOX").text().into_owned();
    assert!(
        line.contains("MESSAGES 2") && line.contains("UIDNEXT 3"),
        "{line}"
    );
    client.done(&idle);
    // So does whatever else told it a UIDNEXT that stayed behind.
    server.append("alice", "INBOX", &message(3));
    let reply = client.ok("STATUS INBOX (UIDNEXT)");
    assert!(reply.only("STATUS").contains("UIDNEXT 3"));
    advance(&server, "alice", "INBOX", 3);
    let line = client.wait_line("STATUS INBOX").text().into_owned();
    assert!(line.contains("UIDNEXT 4"), "{line}");
    // Nothing is told after it asked for nothing.
    client.ok("NOTIFY NONE");
    server.append("alice", "INBOX", &message(4));
    advance(&server, "alice", "INBOX", 4);
    assert!(client.ok("NOOP").untagged("STATUS").is_empty());
}

#[test]
fn pop3_waits_at_login() {
    let server = inbox(table(), 2, 1);
    let mut pop3 = server.connect_pop3();
    pop3.ok("USER alice");
    // The password is accepted before the mailbox is opened.
    pop3.ok("PASS pass");
    pop3.send("UIDL");
    // Another protocol goes on meanwhile.
    let mut client = server.imap_in("alice", "INBOX");
    client.ok("FETCH 1:* (FLAGS)");
    until("the session is announced as waiting", || {
        waiters(&server) == 1
    });
    assert!(!pop3.has_line());
    advance(&server, "alice", "INBOX", 2);
    assert!(pop3.line().starts_with("+OK"));
    assert!(pop3.line().starts_with("1 "));
}

#[test]
fn a_pop3_login_is_refused_for_now_when_the_time_is_over() {
    let server = inbox(table().xid("xid_uid_wait", "1s"), 2, 1);
    server.allow_log("Couldn't init INBOX");
    let mut pop3 = server.connect_pop3();
    pop3.ok("USER alice");
    pop3.ok("PASS pass");
    let answer = pop3.line();
    assert!(answer.starts_with("-ERR [SYS/TEMP]"), "{answer}");
}

#[test]
fn pop3_does_not_wait_when_its_uidl_has_no_uids() {
    let server = inbox(table().set("pop3_uidl_format", "%g"), 2, 1);
    assert_eq!(server.pop3("alice").list("UIDL").len(), 2);
}

#[test]
fn the_state_code_of_xhxid_marks_the_watermark() {
    let server = inbox(table(), 4, 2);
    let mut client = server.imap_in("alice", "INBOX");
    let reply = client.ok("XHXID");
    assert_eq!(reply.announced().len(), 4);
    let state = reply.code("XHXID").expect("a state");
    assert!(state.ends_with("-2"), "{state}");
    // What lies above the mark is announced again, until it is stable.
    assert_eq!(client.ok(&format!("XHXID {state}")).announced().len(), 2);
    advance(&server, "alice", "INBOX", 4);
    let reply = client.ok(&format!("XHXID {state}"));
    let state = reply.code("XHXID").expect("a state");
    assert!(state.ends_with("-4"), "{state}");
    assert!(client.ok(&format!("XHXID {state}")).announced().is_empty());
}

#[test]
fn a_fetch_that_fails_half_way_names_no_uid_that_is_not_stable() {
    // The host fills a FETCH line that stays empty with the UID.
    let server = inbox(table(), 2, 1);
    let file = server
        .mail_dir("alice")
        .join("mailboxes/INBOX/dbox-Mails/u.2");
    assert!(file.exists(), "{}", file.display());
    std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o000))
        .expect("a file");
    for command in [
        "FETCH 2 (BODY[])",
        "FETCH 2 (BINARY[])",
        "FETCH 2 (BODYSTRUCTURE)",
    ] {
        let mut client = server.imap_in("alice", "INBOX");
        // Answered or disconnected: the scanner sees every line.
        if client.try_cmd(command).is_ok() {
            client.ok("NOOP");
        }
    }
}

#[test]
fn genurlauth_and_urlfetch_wait_for_the_uid_of_the_url() {
    let setup = table()
        .set("imap_urlauth_host", "imap.example.org")
        .set("mail_attribute_dict", "file:%h/dovecot-attributes");
    let server = inbox(setup, 3, 2);
    let mut client = server.imap_in("alice", "INBOX");
    let url =
        |uid: u32| format!("imap://alice@imap.example.org/INBOX/;UID={uid};URLAUTH=user+alice");
    let reply = client.cmd(&format!("GENURLAUTH \"{}\" INTERNAL", url(2)));
    assert!(reply.is_ok(), "{}", reply.text);
    let tag = client.send(&format!("GENURLAUTH \"{}\" INTERNAL", url(3)));
    client.wait_line("OK Waiting");
    advance(&server, "alice", "INBOX", 3);
    let reply = client.wait(&tag);
    assert!(reply.is_ok(), "{}", reply.text);
    let signed = reply.only("GENURLAUTH");
    assert!(signed.contains(";UID=3"));
    // URLFETCH waits too, whatever it then finds of the URL.
    server.append("alice", "INBOX", &message(4));
    client.ok("NOOP");
    let signed = signed.trim_matches('"').replace(";UID=3", ";UID=4");
    let tag = client.send(&format!("URLFETCH \"{signed}\""));
    client.wait_line("OK Waiting");
    advance(&server, "alice", "INBOX", 4);
    client.wait(&tag);
}

#[test]
fn a_client_may_set_and_get_metadata_while_uids_wait() {
    let setup = table()
        .set("imap_metadata", "yes")
        .set("mail_attribute_dict", "file:%h/dovecot-attributes");
    let server = inbox(setup, 3, 1);
    let mut client = server.imap_in("alice", "INBOX");
    client.ok("SETMETADATA INBOX (/private/comment \"mine\")");
    let reply = client.ok("GETMETADATA INBOX /private/comment");
    assert!(reply.lines.iter().any(|line| line.contains("mine")));
    client.ok("GETMETADATA (DEPTH infinity) INBOX (/private /shared)");
}
