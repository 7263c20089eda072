//! What an operator watches: every wait is an event of Dovecot's own metric system, so that its
//! OpenMetrics endpoint shows it, and the table counts it.

use std::io::{Read, Write};

use crate::assign::{Assigner, advance, guid, inbox_state};
use crate::harness::*;

/// The configuration that docs/operations.md gives, on the server's own address, where mail
/// processes may write.
fn metrics() -> String {
    let text = include_str!("../../docs/operations.md");
    let is_code = |line: &&str| line.starts_with("    ");
    let from = text
        .lines()
        .skip_while(|line| *line != "    metric xid_wait {");
    let sample: Vec<&str> = from.take_while(is_code).collect();
    let sample = sample.join("\n").replace("address = 127.0.0.1", "");
    assert!(sample.contains("port = 9900"), "{sample}");
    format!("{sample}\nservice stats {{\n unix_listener stats-writer {{\n mode = 0666\n }}\n}}")
}

/// What a monitoring system gets.
fn scrape(server: &Dovecot) -> String {
    let address = (server.imap_addr().ip(), 9900);
    let mut stream = std::net::TcpStream::connect(address).expect("the endpoint listens");
    stream.set_read_timeout(Some(LIMIT)).expect("a limit");
    let request = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    stream.write_all(request).expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    answer
}

#[test]
fn every_kind_of_wait_is_seen_at_the_openmetrics_endpoint() {
    let server = Dovecot::setup()
        .xid("xid_uid_source", "table")
        .xid("xid_uid_wait", "3s")
        .xid("xid_delivery_wait", "1s")
        .xid("xid_appenduid_grace", "100ms")
        .conf(&metrics())
        .start();
    server.allow_log("Couldn't init INBOX");
    let mut client = server.imap("alice");
    // An APPEND whose grace is over, and one at a gate whose holder is gone.
    client.append("INBOX", &message(1));
    let inbox = guid(&server, "alice", "INBOX");
    Assigner::open(&server, "alice").gate(&inbox, 2000);
    client.append("INBOX", &message(2));
    client.ok("SELECT INBOX");
    client.no("UID FETCH 2 (FLAGS)");
    let tag = client.send("UID FETCH 1 (FLAGS)");
    until("it waits", || inbox_state(&server).waiters == 1);
    advance(&server, "alice", "INBOX", 1);
    assert!(client.wait(&tag).is_ok());
    let mut pop3 = server.connect_pop3();
    pop3.ok("USER alice");
    pop3.ok("PASS pass");
    assert!(pop3.line().starts_with("-ERR [SYS/TEMP]"));
    advance(&server, "alice", "INBOX", 2);
    server.deliver("alice", &message(3));
    for line in [
        "dovecot_xid_wait_count{result=\"stable\"} 1",
        "dovecot_xid_wait_count{result=\"timeout\"} 1",
        // It waited for 3 s.
        "dovecot_xid_wait_bucket{result=\"timeout\",le=\"1.000000\"} 0",
        "dovecot_xid_wait_bucket{result=\"timeout\",le=\"100.000000\"} 1",
        "dovecot_xid_delivery_total{result=\"timeout\"} 1",
        "dovecot_xid_login_total{result=\"timeout\"} 1",
        "dovecot_xid_appenduid_total{result=\"timeout\"} 2",
        "dovecot_xid_gate_total{result=\"open\"} 1",
        // With the three messages 1, 2 and 1 UIDs were not stable.
        "dovecot_xid_pending_count 3",
        "dovecot_xid_pending_bucket{le=\"1\"} 2",
        "dovecot_xid_pending_bucket{le=\"10\"} 3",
    ] {
        until(line, || scrape(&server).contains(line));
    }
    let status = server.xidctl(&["status", "-u", "alice"]).stdout;
    for line in ["pending UIDs       1", "waits at a gate    1"] {
        assert!(status.contains(line), "{status}");
    }
}

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
        .conf(&metrics())
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
