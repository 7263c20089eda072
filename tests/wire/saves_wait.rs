//! Saves that wait, for APPENDUID's grace or at a closed gate, delay nobody else of their process.

use crate::assign::{Assigner, advance, guid};
use crate::harness::*;

/// All clients in one process, which must not be blocked by one of them.
const ONE_PROCESS: &str =
    "service imap {\n client_limit = 20\n service_count = 1000\n process_limit = 1\n}";

fn table(grace: &str) -> Setup {
    Dovecot::setup()
        .xid("xid_uid_source", "table")
        .xid("xid_uid_wait", "60s")
        .xid("xid_appenduid_grace", grace)
        .conf(ONE_PROCESS)
}

/// Two stable messages in alice's INBOX, and a mailbox Other.
fn filled(setup: Setup) -> Dovecot {
    let server = setup.start();
    let mut client = server.imap("alice");
    client.ok("CREATE Other");
    for n in 1..=2 {
        let tag = client
            .start_append("INBOX", &message(n))
            .expect("a connection");
        until("the message is there", || {
            server.imap("alice").ok("EXAMINE INBOX").exists() == Some(n as u32)
        });
        advance(&server, "alice", "INBOX", n as u32);
        assert!(client.wait(&tag).is_ok());
    }
    server
}

fn append_and_see_it_wait(client: &mut Imap, n: usize) -> Tag {
    let tag = client
        .start_append("INBOX", &message(n))
        .expect("a connection");
    client.wait_line("OK Waiting");
    assert!(client.is_waiting(&tag), "APPEND was answered");
    tag
}

fn send_and_see_it_wait(client: &mut Imap, command: &str) -> Tag {
    let tag = client.send(command);
    client.wait_line("OK Waiting");
    assert!(client.is_waiting(&tag), "{command} was answered");
    tag
}

#[test]
fn a_grace_delays_no_other_client_of_the_process_and_no_other_command() {
    let server = filled(table("90s"));
    let mut client = server.imap_in("alice", "INBOX");
    let append = append_and_see_it_wait(&mut client, 3);
    // What the same client sent after it runs at once, and so do others.
    let reply = client.ok("FETCH 3 (XID)");
    assert_eq!(reply.exists(), Some(3));
    let mut other = server.imap_in("alice", "INBOX");
    assert_eq!(server.pids("imap").len(), 1, "all clients share a process");
    assert_eq!(other.ok("FETCH 1:* (XID)").fetches().len(), 3);
    let copy = send_and_see_it_wait(&mut other, "COPY 1 Other");

    advance(&server, "alice", "INBOX", 3);
    let code = client.wait(&append).code("APPENDUID").unwrap_or_default();
    assert!(code.ends_with(" 3"), "{code}");
    assert!(other.is_waiting(&copy));
    advance(&server, "alice", "Other", 1);
    let code = other.wait(&copy).code("COPYUID").unwrap_or_default();
    assert!(code.ends_with(" 1 1"), "{code}");
}

#[test]
fn a_grace_without_a_selected_mailbox_and_of_many_appends_at_once() {
    let server = filled(table("90s"));
    let mut client = server.imap("alice");
    let tags: Vec<Tag> = (3..=8)
        .map(|n| {
            client
                .start_append("INBOX", &message(n))
                .expect("a connection")
        })
        .collect();
    until("the messages are there", || {
        server.imap("alice").ok("EXAMINE INBOX").exists() == Some(8)
    });
    for (tag, uid) in tags.iter().zip(3u32..) {
        assert!(client.is_waiting(tag));
        advance(&server, "alice", "INBOX", uid);
        let code = client.wait(tag).code("APPENDUID").unwrap_or_default();
        assert!(code.ends_with(&format!(" {uid}")), "{code}");
    }
}

#[test]
fn a_grace_that_is_over_gives_the_tagged_line_without_uids() {
    let server = filled(table("1s"));
    let mut client = server.imap_in("alice", "INBOX");
    let reply = client.append("INBOX", &message(3));
    assert_eq!(reply.code("APPENDUID"), None, "{}", reply.text);
    let reply = client.ok("COPY 1:2 Other");
    assert_eq!(reply.code("COPYUID"), None, "{}", reply.text);
    // MOVE names its UIDs before it expunges: it has no grace.
    let reply = client.ok("MOVE 1 Other");
    assert_eq!(reply.untagged_code("COPYUID"), None, "{:?}", reply.lines);
    // The line is whole: nothing of the code is left, nothing of the text is missing.
    let reply = client.append("Other", &message(4));
    assert!(reply.text.starts_with("Append completed"), "{}", reply.text);
}

#[test]
fn logout_disconnect_and_shutdown_end_a_grace_at_once() {
    let server = filled(table("90s"));
    let mut client = server.imap_in("alice", "INBOX");
    let append = append_and_see_it_wait(&mut client, 3);
    let logout = client.send("LOGOUT");
    assert_eq!(client.wait(&append).code("APPENDUID"), None);
    assert!(client.wait(&logout).is_ok());

    let mut client = server.imap_in("alice", "INBOX");
    append_and_see_it_wait(&mut client, 4);
    drop(client);
    until("the client is gone", || {
        server.log().contains("Disconnected: Connection closed")
    });
    let mut client = server.imap_in("alice", "INBOX");
    append_and_see_it_wait(&mut client, 5);
    server.stop();
    assert!(client.closes());
}

#[test]
fn a_closed_gate_delays_only_who_saves_into_its_mailbox() {
    for format in Format::ALL {
        let server = filled(table("0").format(format));
        let assigner = Assigner::open(&server, "alice");
        let inbox = guid(&server, "alice", "INBOX");
        assigner.gate(&inbox, 100_000);
        let mut appender = server.imap("alice");
        let append = append_and_see_it_wait(&mut appender, 3);
        let mut copier = server.imap_in("alice", "INBOX");
        let copy = send_and_see_it_wait(&mut copier, "COPY 2 INBOX");
        let mut mover = server.imap_in("alice", "INBOX");
        let moves = send_and_see_it_wait(&mut mover, "UID MOVE 1 INBOX");
        let mut xids = server.imap_in("alice", "INBOX");
        let xid = xids.ok("FETCH 2 (XID)").fetches()[0].xid().expect("an XID");
        let by_xid = send_and_see_it_wait(&mut xids, &format!("XHXID COPY {xid} INBOX"));

        let mut other = server.imap_in("alice", "INBOX");
        assert_eq!(server.pids("imap").len(), 1, "all clients share a process");
        other.append("Other", &message(9));
        other.ok("COPY 1 Other");
        assert_eq!(other.ok("NOOP").exists(), None, "{format:?}");
        // One that waits may go away.
        let mut leaves = server.imap("alice");
        append_and_see_it_wait(&mut leaves, 8);
        let gone = || {
            server
                .log()
                .matches("Disconnected: Connection closed")
                .count()
        };
        // those who filled the mailbox have gone before
        let before = gone();
        drop(leaves);
        until("the client is gone", || gone() > before);

        assigner.gate(&inbox, 0);
        assert!(appender.wait(&append).is_ok());
        assert!(copier.wait(&copy).is_ok());
        assert!(mover.wait(&moves).is_ok());
        assert!(xids.wait(&by_xid).is_ok());
        assert_eq!(other.ok("NOOP").exists(), Some(5), "{format:?}");
    }
}

#[test]
fn a_gate_whose_holder_died_opens_by_its_lease() {
    let server = filled(table("0"));
    let assigner = Assigner::open(&server, "alice");
    let inbox = guid(&server, "alice", "INBOX");
    assigner.gate(&inbox, 1500);
    let mut client = server.imap("alice");
    let append = append_and_see_it_wait(&mut client, 3);
    assert!(client.wait(&append).is_ok());
}

#[test]
fn who_waited_at_a_gate_in_vain_saves_all_the_same() {
    let server = filled(table("0").xid("xid_uid_wait", "2s"));
    let assigner = Assigner::open(&server, "alice");
    let inbox = guid(&server, "alice", "INBOX");
    assigner.gate(&inbox, 100_000);
    let mut client = server.imap("alice");
    let append = append_and_see_it_wait(&mut client, 3);
    assert!(client.wait(&append).is_ok());
    assert_eq!(client.ok("EXAMINE INBOX").exists(), Some(3));
}

/// Gives the last message of the mailbox another UID, as replication does with what is not stable.
fn renumber_last(server: &Dovecot, mailbox: &str, uid: u32) {
    let uid = uid.to_string();
    server.doveadm_ok(&[
        "move", "-u", "alice", mailbox, "mailbox", mailbox, "uid", &uid,
    ]);
}

#[test]
fn what_was_renumbered_during_its_grace_is_not_named_by_its_old_uid() {
    for format in Format::ALL {
        let server = filled(table("90s").format(format));
        let mut client = server.imap_in("alice", "INBOX");
        let append = append_and_see_it_wait(&mut client, 3);
        let mut other = server.imap_in("alice", "INBOX");
        let copy = send_and_see_it_wait(&mut other, "COPY 1:2 Other");

        renumber_last(&server, "INBOX", 3);
        advance(&server, "alice", "INBOX", 4);
        let reply = client.wait(&append);
        assert!(reply.is_ok(), "{}", reply.text);
        assert_eq!(reply.code("APPENDUID"), None, "{format:?}: {}", reply.text);

        renumber_last(&server, "Other", 2);
        advance(&server, "alice", "Other", 3);
        let reply = other.wait(&copy);
        assert!(reply.is_ok(), "{}", reply.text);
        assert_eq!(reply.code("COPYUID"), None, "{format:?}: {}", reply.text);
    }
}
