//! What plug-ins tell the daemon.

use std::time::{Duration, Instant};

use crate::assign::{Assigner, advance, guid};
use crate::daemon::{Daemon, Event, FIRST_LIMITS};
use crate::harness::*;
use crate::interlock::slot_of;

pub fn clustered() -> Setup {
    Dovecot::setup().xid("xid_uid_source", "cluster")
}

/// alice's mailbox is one of which a daemon has said something once.
pub fn make_room(server: &Dovecot, mailbox: &str) {
    drop(server.imap_in("alice", mailbox));
    let (limit, bound) = FIRST_LIMITS;
    let found = slot_of(server, mailbox).set_limits(limit, bound);
    found.expect("limits");
}

#[test]
fn every_kind_of_change_is_told_once_with_the_mailbox() {
    for format in Format::ALL {
        let server = clustered().format(format).start();
        let daemon = Daemon::start(&server);
        let mut client = server.imap_in("alice", "INBOX");
        daemon.forget();
        client.append("INBOX", &message(1));
        let added = daemon.wait_event("an APPEND", |e| e.kind == 'a');
        assert_eq!(
            (added.user.as_str(), added.name.as_str()),
            ("alice", "INBOX")
        );
        assert_eq!(added.uid, server.mail_owner().0);
        let hex: String = guid(&server, "alice", "INBOX")
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect();
        assert_eq!(added.mailbox, hex);

        client.ok("STORE 1 +FLAGS (\\Flagged)");
        daemon.wait_event("a STORE", |e| e.kind == 'f' && e.mailbox == hex);
        daemon.forget();
        client.ok("STORE 1 +FLAGS.SILENT (\\Deleted)");
        client.ok("EXPUNGE");
        daemon.wait_event("an EXPUNGE", |e| e.kind == 'f' && e.mailbox == hex);

        daemon.forget();
        client.ok("CREATE \"a\\\"b\"");
        daemon.wait_event("a CREATE", |e| e.kind == 't' && e.name == "a\"b");
        client.ok("RENAME \"a\\\"b\" c");
        daemon.wait_event("a RENAME", |e| e.kind == 't' && e.name == "c");
        client.ok("SUBSCRIBE c");
        client.ok("DELETE c");
        let tree = |e: &&Event| e.kind == 't';
        until("a SUBSCRIBE and a DELETE", || {
            daemon.events().iter().filter(tree).count() >= 4
        });
        assert!(daemon.events().iter().all(|e| e.mailbox.len() == 32));
        assert_eq!(daemon.connections(), 1, "one connection for a process");
    }
}

#[test]
fn what_a_client_saved_is_told_though_it_leaves_at_once() {
    for format in Format::ALL {
        let server = clustered().format(format).start();
        let daemon = Daemon::start(&server);
        let mut client = server.imap_in("alice", "INBOX");
        daemon.forget();
        // Nothing runs in the session between the commit and its end.
        let message = message(1);
        let mut lines = format!("x APPEND INBOX {{{}+}}\r\n", message.len()).into_bytes();
        lines.extend_from_slice(&message);
        lines.extend_from_slice(b"\r\ny LOGOUT\r\n");
        client.raw(&lines);
        daemon.wait_event("an APPEND", |e| e.kind == 'a' && e.name == "INBOX");
    }
}

#[test]
fn who_saves_many_beside_uids_that_wait_says_seldom_that_they_wait() {
    let server = clustered().start();
    let daemon = Daemon::start(&server);
    make_room(&server, "INBOX");
    let mut client = server.imap("alice");
    client.append("INBOX", &message(0));
    daemon.forget();
    let start = std::time::Instant::now();
    for n in 1..=50 {
        client.append("INBOX", &message(n));
    }
    daemon.wait_event("the first look", |e| e.kind == 'a');
    // Once a second, and once more where a process was there before.
    let most = start.elapsed().as_secs() as usize + 2;
    let reminders = daemon.events().iter().filter(|e| e.kind == 'w').count();
    assert!(reminders <= most, "{reminders} reminders, at most {most}");
}

#[test]
fn what_is_read_is_not_told() {
    let server = clustered().start();
    let daemon = Daemon::start(&server);
    server.append("alice", "INBOX", &message(1));
    advance(&server, "alice", "INBOX", 1);
    let mut client = server.imap_in("alice", "INBOX");
    daemon.forget();
    client.ok("FETCH 1 (FLAGS ENVELOPE)");
    client.ok("UID FETCH 1 (BODY.PEEK[])");
    client.ok("STATUS INBOX (MESSAGES)");
    client.ok("NOOP");
    // Something that is told, after which all before it has been.
    client.append("INBOX", &message(2));
    daemon.wait_event("an APPEND", |e| e.kind == 'a');
    let kinds: Vec<char> = daemon.events().iter().map(|e| e.kind).collect();
    assert_eq!(kinds, ['a']);
}

#[test]
fn a_mailbox_begins_with_nothing_stable_and_who_waits_says_so_again_and_again() {
    for format in Format::ALL {
        let server = clustered()
            .format(format)
            .xid("xid_uid_wait", "100s")
            .start();
        let daemon = Daemon::start(&server);
        server.append("alice", "INBOX", &message(1));
        daemon.forget();
        let mut client = server.imap_in("alice", "INBOX");
        daemon.wait_event("the first look", |e| e.kind == 'w');
        let waiting = client.send("UID FETCH 1 (FLAGS)");
        until("three reminders", || {
            let reminders = |e: &&Event| e.kind == 'w' && e.name == "INBOX";
            daemon.events().iter().filter(reminders).count() >= 3
        });
        assert!(client.is_waiting(&waiting));
        advance(&server, "alice", "INBOX", 1);
        assert!(client.wait(&waiting).is_ok());
    }
}

#[test]
fn what_the_daemon_does_itself_is_no_news_to_it() {
    for format in Format::ALL {
        let server = clustered().format(format).start();
        let daemon = Daemon::start(&server);
        server.append("alice", "INBOX", &message(1));
        let hex: String = guid(&server, "alice", "INBOX")
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect();
        daemon.forget();
        server.doveadm_ok(&["xid", "look", "-u", "alice", &hex, "INBOX", "0"]);
        server.doveadm_ok(&["xid", "promise", "-u", "alice", &hex, "INBOX", "1", "0"]);
        server.append("bob", "INBOX", &message(2));
        daemon.wait_event("an APPEND", |e| e.kind == 'a');
        let of_alice = daemon.events().iter().any(|e| e.user == "alice");
        assert!(!of_alice, "{format:?}: {:?}", daemon.events());
    }
}

#[test]
fn without_a_daemon_mail_works_and_one_that_starts_is_found() {
    let server = clustered().start();
    let mut client = server.imap_in("alice", "INBOX");
    make_room(&server, "INBOX");
    for n in 1..50 {
        client.append("INBOX", &message(n));
    }
    let daemon = Daemon::start(&server);
    until("the daemon hears of an APPEND", || {
        client.append("INBOX", &message(100));
        daemon.events().iter().any(|e| e.kind == 'a')
    });
    drop(daemon);
    client.append("INBOX", &message(101));
    let daemon = Daemon::start(&server);
    until("the next daemon hears of an APPEND", || {
        client.append("INBOX", &message(102));
        daemon.events().iter().any(|e| e.kind == 'a')
    });
}

#[test]
fn deliveries_are_refused_where_the_node_is_cut_off_and_wait_for_a_daemon() {
    for format in Format::ALL {
        let server = clustered()
            .format(format)
            .xid("xid_delivery_wait", "2s")
            .start();
        let answers = server.lmtp().deliver(&["alice"], &message(1));
        assert_eq!(answers[0].0, 451, "no daemon: {answers:?}");
        let lda = server.lda("alice", "INBOX", &message(2));
        assert_eq!(lda.code, 75, "no daemon: {lda:?}");

        let daemon = Daemon::start(&server);
        make_room(&server, "INBOX");
        daemon.cut(true);
        let answers = server.lmtp().deliver(&["alice"], &message(3));
        assert_eq!(answers[0].0, 451, "cut off: {answers:?}");
        let lda = server.lda("alice", "INBOX", &message(4));
        assert_eq!(lda.code, 75, "cut off: {lda:?}");
        // IMAP goes on.
        server.append("alice", "INBOX", &message(5));

        daemon.cut(false);
        advance(&server, "alice", "INBOX", 1);
        let answers = server.lmtp().deliver(&["alice"], &message(6));
        assert_eq!(answers[0].0, 250, "{answers:?}");
        let mut client = server.imap("alice");
        assert_eq!(client.ok("EXAMINE INBOX").exists(), Some(2), "{format:?}");
    }
}

#[test]
fn a_delivery_waits_for_a_daemon_that_is_being_restarted() {
    let server = clustered().xid("xid_delivery_wait", "100s").start();
    std::thread::scope(|scope| {
        let delivery = scope.spawn(|| server.lmtp().deliver(&["alice"], &message(1)));
        until("the delivery waits", || !server.pids("lmtp").is_empty());
        let daemon = Daemon::start(&server);
        let added = daemon.wait_event("the delivery", |e| e.kind == 'a');
        assert_eq!(added.uid, server.mail_owner().0, "not lmtp's own user");
        advance(&server, "alice", "INBOX", 1);
        assert_eq!(delivery.join().expect("it ends")[0].0, 250);
    });
}

/// One outage is waited for once, by the first recipient; an earlier outage counts for nothing.
#[test]
fn a_delivery_waits_for_a_daemon_though_its_process_gave_up_on_one_before() {
    const WAIT: Duration = Duration::from_secs(6);
    let server = clustered().xid("xid_delivery_wait", "6s").start();
    let mut lmtp = server.lmtp();
    let began = Instant::now();
    let answers = lmtp.deliver(&["alice", "bob", "carol"], &message(1));
    assert!(answers.iter().all(|answer| answer.0 == 451), "{answers:?}");
    let took = began.elapsed();
    assert!(took < WAIT * 2, "three recipients took {took:?}");
    let process = server.pids("lmtp");
    assert_eq!(process.len(), 1);

    let gave_up = Instant::now();
    until("a later delivery", || gave_up.elapsed() > WAIT);
    let daemon = Daemon::start(&server);
    daemon.silence(true);
    std::thread::scope(|scope| {
        let delivery = scope.spawn(|| lmtp.deliver(&["alice"], &message(2)));
        until("the delivery looks again", || {
            assert!(!delivery.is_finished(), "it did not wait");
            daemon.looks() > 1
        });
        daemon.silence(false);
        daemon.wait_event("the delivery", |e| e.kind == 'a');
        advance(&server, "alice", "INBOX", 1);
        assert_eq!(delivery.join().expect("it ends")[0].0, 250);
    });
    assert_eq!(server.pids("lmtp"), process);
}

#[test]
fn sieve_files_nothing_where_the_node_is_cut_off() {
    let server = clustered().xid("xid_delivery_wait", "1s").start();
    if !server.has_sieve() {
        return;
    }
    let daemon = Daemon::start(&server);
    server.imap("alice").ok("CREATE box");
    server.sieve("alice", "require \"fileinto\"; fileinto \"box\";");
    daemon.cut(true);
    let answers = server.lmtp().deliver(&["alice"], &message(1));
    assert_eq!(answers[0].0, 451, "{answers:?}");
    for mailbox in ["INBOX", "box"] {
        let selected = server.imap("alice").ok(&format!("EXAMINE {mailbox}"));
        assert_eq!(selected.exists(), Some(0), "{mailbox}");
    }
    server.allow_log("cut off from its cluster");
}

#[test]
fn the_table_of_a_cluster_says_what_is_promised_and_how_far_uids_go() {
    let server = clustered().start();
    drop(server.imap_in("alice", "INBOX"));
    let table = Assigner::open(&server, "alice");
    let state = table.state(&guid(&server, "alice", "INBOX"));
    assert_eq!((state.watermark, state.last_uid), (0, 0));
    assert_eq!((state.promised, state.limit, state.bound), (u32::MAX, 0, 0));

    let _daemon = Daemon::start(&server);
    server.append("alice", "INBOX", &message(1));
    let state = table.state(&guid(&server, "alice", "INBOX"));
    assert_eq!((state.watermark, state.last_uid), (0, 1));
    assert_eq!(state.promised, u32::MAX);
    assert_eq!((state.limit, state.bound), FIRST_LIMITS);
}
