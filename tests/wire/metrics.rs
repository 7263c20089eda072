//! What an operator watches: every wait is an event of Dovecot's own metric system, so that its
//! OpenMetrics endpoint shows it, and the table counts it.

use crate::assign::{advance, inbox_state};
use crate::harness::*;

const METRICS: &str = "service stats {
  unix_listener stats-writer {
    mode = 0666
  }
}
metric xid_wait {
  filter = event=xid_wait_finished
  group_by = result duration:exponential:1:5:10
}
metric xid_delivery {
  filter = event=xid_delivery_finished
  group_by = result
}
metric xid_login {
  filter = event=xid_login_finished
  group_by = result
}";

/// The `count` column of a metric in `doveadm stats dump`.
fn count(server: &Dovecot, metric: &str) -> u32 {
    let dump = server.doveadm_ok(&["stats", "dump"]);
    let mut lines = dump.lines();
    let Some(column) = lines
        .next()
        .and_then(|head| head.split('\t').position(|name| name == "count"))
    else {
        return 0;
    };
    lines
        .map(|line| line.split('\t').collect::<Vec<_>>())
        .find(|columns| columns[0] == metric)
        .and_then(|columns| columns[column].parse().ok())
        .unwrap_or(0)
}

#[test]
fn waits_and_timeouts_are_counted_where_dovecot_counts() {
    let server = Dovecot::setup()
        .xid("xid_uid_source", "table")
        .xid("xid_uid_wait", "1s")
        .xid("xid_delivery_wait", "1s")
        .conf(METRICS)
        .start();
    let mut client = server.imap("alice");
    client.append("INBOX", &message(1));
    client.ok("SELECT INBOX");
    // One that ends by its time, one that ends by an advance, one that does not wait.
    client.no("UID FETCH 1 (FLAGS)");
    let tag = client.send("UID FETCH 1 (FLAGS)");
    until("it waits", || inbox_state(&server).waiters == 1);
    advance(&server, "alice", "INBOX", 1);
    assert!(client.wait(&tag).is_ok());
    client.ok("UID FETCH 1 (FLAGS)");
    until("both waits are counted", || count(&server, "xid_wait") == 2);
    assert_eq!(inbox_state(&server).waiters, 0);

    server.deliver("alice", &message(2));
    until("the delivery is counted", || {
        count(&server, "xid_delivery") == 1
    });
}

#[test]
fn pending_messages_are_in_the_table_until_they_are_stable_or_gone() {
    for format in Format::ALL {
        let server = Dovecot::setup()
            .format(format)
            .xid("xid_uid_source", "table")
            .xid("xid_delivery_wait", "10ms")
            .start();
        let mut client = server.imap("alice");
        client.append("INBOX", &message(1));
        client.append("INBOX", &message(2));
        client.ok("SELECT INBOX");
        client.ok("COPY 1:2 INBOX");
        let state = inbox_state(&server);
        assert_eq!(
            (state.pending, state.last_uid, state.watermark),
            (4, 4, 0),
            "{format:?}"
        );
        client.ok("STORE 3 +FLAGS.SILENT (\\Deleted)");
        client.ok("EXPUNGE");
        until("what is expunged waits no more", || {
            inbox_state(&server).pending == 3
        });
        advance(&server, "alice", "INBOX", 2);
        let state = inbox_state(&server);
        assert_eq!((state.pending, state.watermark), (1, 2), "{format:?}");
    }
}

#[test]
fn the_table_is_filled_again_after_it_was_lost() {
    for format in Format::ALL {
        let server = Dovecot::setup()
            .format(format)
            .xid("xid_uid_source", "table")
            .start();
        let mut client = server.imap("alice");
        for n in 1..=4 {
            client.append("INBOX", &message(n));
        }
        drop(client);
        advance(&server, "alice", "INBOX", 1);
        server.stop();
        std::fs::remove_file(server.mail_dir("alice").join("xid.table")).expect("a table");
        server.start_again();
        server.imap_in("alice", "INBOX").ok("NOOP");
        let state = inbox_state(&server);
        assert_eq!(
            (state.pending, state.last_uid, state.watermark),
            (3, 4, 1),
            "{format:?}"
        );
    }
}
