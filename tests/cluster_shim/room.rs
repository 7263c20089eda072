//! A mailbox of which no daemon has said anything: it may be one of many messages, on a disk that
//! replaces a lost one. Nothing that came to it now could ever join the others' mailbox.

use crate::daemon::Daemon;
use crate::events::clustered;
use crate::harness::*;
use crate::interlock::slot;
use crate::pair::{Pair, messages, server};

#[test]
fn without_a_word_of_a_daemon_no_message_is_taken() {
    for format in Format::ALL {
        let server = clustered().format(format).xid("xid_uid_wait", "1s").start();
        let mut client = server.imap("alice");
        let refused = client.try_append("INBOX", &message(1)).expect("an answer");
        assert!(!refused.is_ok(), "{format:?}: {refused:?}");
        assert!(
            refused.code("UNAVAILABLE").is_some(),
            "{format:?}: {refused:?}"
        );
        assert_eq!(messages(&server, "INBOX").len(), 0, "{format:?}");
        assert_eq!(slot(&server).limit(), None, "{format:?}");

        let daemon = Daemon::start(&server);
        until("the daemon is found", || {
            let reply = client.try_append("INBOX", &message(2));
            reply.expect("an answer").is_ok()
        });
        drop(daemon);
        client.append("INBOX", &message(3));
        // A copy is a new message, too.
        client.ok("CREATE other");
        client.ok("SELECT INBOX");
        let tag = client.send("COPY 1 other");
        let refused = client.wait(&tag);
        assert!(!refused.is_ok(), "{format:?}: {refused:?}");
        assert_eq!(messages(&server, "other").len(), 0, "{format:?}");
    }
}

/// A node whose disk was replaced gets a message while the others' mail is on its way.
#[test]
fn a_new_disk_takes_the_others_mail_before_it_takes_new_mail() {
    for format in Format::ALL {
        let setup = |name| server(name, format).xid("xid_uid_wait", "100s");
        let pair = Pair::of_servers([setup("foo").start(), setup("bar").start()]);
        for n in 1..=5 {
            pair.servers[0].append("alice", "INBOX", &message(n));
        }
        pair.daemons[1].knows(&messages(&pair.servers[0], "INBOX"));
        pair.daemons[1].cut(true);
        let mut client = pair.servers[1].imap("alice");
        std::thread::scope(|scope| {
            let appending = scope.spawn(|| client.append("INBOX", &message(6)));
            pair.daemons[1].wait_event("the APPEND waits", |e| e.kind == 'w');
            assert!(!appending.is_finished());
            pair.sync_ok(&[]);
            assert!(!appending.is_finished());
            slot(&pair.servers[1]).set_limits(105, 200).expect("limits");
            assert!(appending.join().expect("it ends").is_ok());
        });
        let there = messages(&pair.servers[1], "INBOX");
        let uids: Vec<u32> = there.iter().map(|m| m.uid).collect();
        assert_eq!(uids, [1, 2, 3, 4, 5, 6], "{format:?}");
        pair.introduce("INBOX");
        pair.sync_ok(&[]);
        assert_eq!(pair.same("INBOX").len(), 6, "{format:?}");
    }
}

#[test]
fn after_a_boot_there_is_room_above_a_watermark_that_is_known() {
    let server = clustered().xid("xid_uid_wait", "1s").start();
    let daemon = Daemon::start(&server);
    server.append("alice", "INBOX", &message(1));
    crate::assign::advance(&server, "alice", "INBOX", 1);
    drop(daemon);
    server.stop();
    // A boot takes the table away.
    std::fs::remove_file(server.mail_dir("alice").join("xid.table")).expect("the table");
    server.start_again();
    let mut client = server.imap("alice");
    assert!(client.append("INBOX", &message(2)).is_ok());
    let limit = 1 + imap_xid::table::LEAST_WINDOW;
    assert_eq!(slot(&server).limit(), Some(limit));
}
