//! `doveadm xid expose|promise|release|gate`.

use crate::harness::*;
use crate::state::{Node, USER};

#[test]
fn expose_shows_uids_and_never_takes_them_back() {
    for format in Format::ALL {
        let mut node = Node::start(format);
        // A mailbox of the table begins with what it holds as stable.
        node.server.append(USER, "INBOX", &message(1));
        for n in 2..=5 {
            node.server.append(USER, "INBOX", &message(n));
        }
        let before = node.look("INBOX");
        assert!(before.shown < 3, "{format:?}: {before:?}");
        let state = node.state("xid expose", "INBOX", &["3", "103", "203", "3"]);
        assert_eq!((state.shown, state.limit, state.bound), (3, 103, 203));
        assert_eq!(state.uids(), [4, 5], "{format:?}");
        let back = node.state("xid expose", "INBOX", &["2", "104", "204", "0"]);
        assert_eq!((back.shown, back.limit, back.bound), (3, 104, 204));
        assert_eq!(back.entries, before.entries);

        node.server.note_watermark(USER, "INBOX", 3);
        let mut client = node.server.imap_in(USER, "INBOX");
        assert_eq!(client.ok("UID FETCH 3 (FLAGS)").fetches().len(), 1);
        client.no("UID FETCH 4 (FLAGS)");

        let guid = node.guid("INBOX");
        let above = [guid.as_str(), "INBOX", "6", "106", "206", "0"];
        assert_eq!(node.run("xid expose", &above).failed, "DATAERR");
        assert_eq!(node.look("INBOX").shown, 3);
    }
}

#[test]
fn what_was_exposed_stays_over_a_crash_and_what_was_promised_is_everything_until_told() {
    let mut node = Node::start(Format::Sdbox);
    for n in 1..=3 {
        node.server.append(USER, "INBOX", &message(n));
    }
    node.state("xid expose", "INBOX", &["2", "102", "202", "0"]);
    let state = node.state("xid promise", "INBOX", &["3", "2"]);
    assert_eq!((state.promised, state.uids()), (3, vec![3]));
    let state = node.state("xid release", "INBOX", &["2", "2"]);
    assert_eq!(state.promised, 2);

    node.server.crash();
    // As a power loss leaves it: the table is of an earlier boot.
    std::fs::remove_file(node.server.mail_dir(USER).join("xid.table")).expect("a table");
    node.server.start_again();
    node.doveadm = crate::state::connect(&node.server);
    let state = node.look("INBOX");
    assert_eq!((state.shown, state.promised), (2, u32::MAX));
    assert_eq!((state.limit, state.bound), (0, 0));
    assert_eq!(state.uids(), [1, 2, 3]);
}

#[test]
fn promise_answers_with_what_it_made_durable() {
    let formats = Format::ALL.map(|format| (format, "optimized"));
    for (format, fsync) in formats.into_iter().chain([(Format::Sdbox, "never")]) {
        let setup = crate::state::setup(format).set("mail_fsync", fsync);
        let mut node = Node::start_with(setup);
        for n in 1..=3 {
            node.server.append(USER, "INBOX", &message(n));
        }
        let state = node.state("xid promise", "INBOX", &["3", "0"]);
        assert_eq!((state.promised, state.next), (3, 4), "{format:?}");
        assert_eq!(state.uids(), [1, 2, 3], "{format:?}");
    }
}

#[test]
fn appends_wait_while_the_gate_is_closed_and_go_on_when_it_opens() {
    let mut node = Node::start(Format::Sdbox);
    node.server.append(USER, "INBOX", &message(1));
    let state = node.state("xid gate", "INBOX", &["close", "60000", "0"]);
    assert!(state.gated);
    // Closed by one process, closed on and opened by others.
    let mut other = crate::state::connect(&node.server);
    let guid = node.guid("INBOX");
    let again = other.run(USER, "xid gate", &[&guid, "INBOX", "close", "60000", "0"]);
    assert_eq!(again.failed, "");

    let server = &node.server;
    let doveadm = &mut node.doveadm;
    std::thread::scope(|scope| {
        let append = scope.spawn(|| server.append(USER, "INBOX", &message(2)));
        until("the append at the gate", || {
            let output = server.xidctl(&["status", "-u", USER, "--json"]);
            output.stdout.contains("\"gate_waits\":1")
                || output.stdout.contains("\"gate_waits\": 1")
        });
        let args = [guid.as_str(), "INBOX", "open", "0", "0"];
        let reply = doveadm.run(USER, "xid gate", &args);
        assert_eq!(reply.failed, "");
        assert!(!crate::state::State::parse(&reply.field).gated);
        append.join().expect("the append ends");
    });
    assert_eq!(node.look("INBOX").uids(), [1, 2]);
}

#[test]
fn marks_of_a_table_that_is_not_used_are_refused() {
    let setup = Dovecot::setup();
    let mut node = Node::start_with(setup);
    node.server.append(USER, "INBOX", &message(1));
    let state = node.look("INBOX");
    assert_eq!((state.shown, state.promised, state.uids()), (1, 1, vec![1]));
    let guid = node.guid("INBOX");
    for (command, args) in [
        ("xid expose", &["1", "1", "1", "0"][..]),
        ("xid promise", &["1", "0"]),
        ("xid release", &["1", "0"]),
        ("xid gate", &["close", "1000", "0"]),
    ] {
        let args = [&[guid.as_str(), "INBOX"], args].concat();
        assert_eq!(node.run(command, &args).failed, "DATAERR", "{command}");
    }
}
