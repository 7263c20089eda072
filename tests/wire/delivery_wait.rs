//! Spec part 6: deliveries wait for the new message's UID before they acknowledge.

use crate::assign::{Assigner, advance, guid};
use crate::harness::*;

fn table() -> Setup {
    Dovecot::setup()
        .xid("xid_uid_source", "table")
        .xid("xid_delivery_wait", "100s")
}

/// A server on which these users have an INBOX. Stock Dovecot 2.3 cannot make one for a delivery and
/// for an IMAP client at the same moment: each holds a lock that the other wants, and the one that
/// the kernel tells so (EDEADLK on dovecot.list.index.log) panics. Here LMTP waits while an IMAP
/// client looks, so on a busy machine that is what they would do.
fn start_with_inboxes(setup: Setup, users: &[&str]) -> Dovecot {
    let server = setup.start();
    for user in users {
        server.imap(user).ok("EXAMINE INBOX");
    }
    server
}

/// Waits until the mailbox holds `count` messages, seen by another session.
fn until_there(server: &Dovecot, mailbox: &str, count: u32) {
    until("the message is there", || {
        let mut client = server.imap("alice");
        let reply = client.cmd(&format!("EXAMINE {mailbox}"));
        reply.exists() == Some(count)
    });
}

#[test]
fn lmtp_waits_for_the_uid_before_it_acknowledges() {
    for format in Format::ALL {
        let server = start_with_inboxes(table().format(format), &["alice"]);
        let mut lmtp = server.lmtp();
        lmtp.start(&["alice"], &message(1));
        until_there(&server, "INBOX", 1);
        assert!(!lmtp.has_answer(), "acknowledged before the UID was agreed");
        advance(&server, "alice", "INBOX", 1);
        assert_eq!(lmtp.answer().expect("an answer").0, 250);
    }
}

#[test]
fn after_its_time_lmtp_acknowledges_all_the_same() {
    let server = table().xid("xid_delivery_wait", "1s").start();
    let answers = server.lmtp().deliver(&["alice"], &message(1));
    assert_eq!(answers[0].0, 250, "{answers:?}");
    assert_eq!(server.imap("alice").ok("EXAMINE INBOX").exists(), Some(1));
}

#[test]
fn a_delivery_fails_for_now_and_saves_nothing_when_a_uid_has_waited_for_too_long() {
    for format in Format::ALL {
        let server = table()
            .format(format)
            .xid("xid_delivery_wait", "1s")
            .start();
        server.append("alice", "INBOX", &message(1));
        until("UID 1 has waited for too long", || {
            let answers = server.lmtp().deliver(&["alice"], &message(2));
            answers[0].0 == 451
        });
        let before = server.imap("alice").ok("EXAMINE INBOX").exists();
        let answers = server.lmtp().deliver(&["alice"], &message(3));
        assert_eq!(answers[0].0, 451, "{answers:?}");
        let lda = server.lda("alice", "INBOX", &message(4));
        assert_eq!(lda.code, 75, "{lda:?}");
        let mut client = server.imap("alice");
        let selected = client.ok("EXAMINE INBOX");
        assert_eq!(selected.exists(), before, "{format:?}");
        // IMAP goes on.
        client.append("INBOX", &message(5));
        let last = before.unwrap_or(0) + 1;
        advance(&server, "alice", "INBOX", last);
        let answers = server.lmtp().deliver(&["alice"], &message(6));
        assert_eq!(answers[0].0, 250, "{answers:?}");
    }
}

#[test]
fn dovecot_lda_waits_too() {
    let server = start_with_inboxes(table(), &["alice"]);
    std::thread::scope(|scope| {
        let lda = scope.spawn(|| server.lda("alice", "INBOX", &message(1)));
        until_there(&server, "INBOX", 1);
        assert!(!lda.is_finished());
        advance(&server, "alice", "INBOX", 1);
        let output = lda.join().expect("lda runs");
        assert_eq!(output.code, 0, "{output:?}");
    });
}

#[test]
fn each_recipient_waits_for_his_own_mailbox() {
    let server = start_with_inboxes(table(), &["alice", "bob"]);
    let mut lmtp = server.lmtp();
    lmtp.start(&["alice", "bob"], &message(1));
    until_there(&server, "INBOX", 1);
    advance(&server, "alice", "INBOX", 1);
    until("bob has it", || {
        server.imap("bob").ok("EXAMINE INBOX").exists() == Some(1)
    });
    advance(&server, "bob", "INBOX", 1);
    assert_eq!(lmtp.answer().expect("an answer").0, 250);
    assert_eq!(lmtp.answer().expect("an answer").0, 250);
}

#[test]
fn a_sieve_fileinto_waits_for_the_mailbox_it_files_into() {
    let server = start_with_inboxes(table(), &["alice"]);
    assert!(server.has_sieve(), "dovecot-sieve is needed for this test");
    server.imap("alice").ok("CREATE Lists");
    server.sieve("alice", "require \"fileinto\"; fileinto \"Lists\";");
    let mut lmtp = server.lmtp();
    lmtp.start(&["alice"], &message(1));
    until_there(&server, "Lists", 1);
    assert!(!lmtp.has_answer());
    advance(&server, "alice", "Lists", 1);
    assert_eq!(lmtp.answer().expect("an answer").0, 250);
}

#[test]
fn a_shutdown_ends_a_delivery_that_waits() {
    let server = start_with_inboxes(table(), &["alice"]);
    let mut lmtp = server.lmtp();
    lmtp.start(&["alice"], &message(1));
    until_there(&server, "INBOX", 1);
    server.stop();
    server.start_again();
    assert_eq!(server.imap("alice").ok("EXAMINE INBOX").exists(), Some(1));
}

#[test]
fn with_local_uids_a_delivery_is_acknowledged_at_once() {
    let server = Dovecot::setup().xid("xid_delivery_wait", "100s").start();
    server.deliver("alice", &message(1));
    server.deliver("alice", &message(2));
}

#[test]
fn commits_wait_while_the_gate_is_closed_and_go_on_when_it_opens() {
    for format in Format::ALL {
        let server = table().format(format).start();
        server.append("alice", "INBOX", &message(1));
        let assigner = Assigner::open(&server, "alice");
        let guid = guid(&server, "alice", "INBOX");
        assigner.gate(&guid, 100_000);
        let mut client = server.imap("alice");
        let tag = client
            .start_append("INBOX", &message(2))
            .expect("a connection");
        // Reading goes on, and so does another mailbox.
        let mut other = server.imap_in("alice", "INBOX");
        other.ok("CREATE Other");
        other.append("Other", &message(3));
        assert_eq!(other.ok("NOOP").exists(), None, "{format:?}");
        assert!(client.is_waiting(&tag));
        assigner.gate(&guid, 0);
        assert!(client.wait(&tag).is_ok());
        // A holder that died opens it by its lease.
        assigner.gate(&guid, 200);
        client.append("INBOX", &message(4));
    }
}
