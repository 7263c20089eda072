//! The harness itself, on stock Dovecot: what the other tests stand on.

use crate::harness::*;

#[test]
fn a_stock_server_takes_and_gives_mail_in_every_way() {
    for format in Format::ALL {
        let server = Dovecot::setup().format(format).plugin(false).start();
        server.append("alice", "INBOX", &message(1));
        server.deliver("alice", &message(2));
        let lda = server.lda("alice", "INBOX", &message(3));
        assert_eq!(lda.code, 0, "{lda:?}");
        let save = server.doveadm_input(&["save", "-u", "alice", "-m", "INBOX"], &message(4));
        assert_eq!(save.code, 0, "{save:?}");
        let uids: Vec<u32> = server
            .messages("alice", "INBOX")
            .iter()
            .map(|m| m.uid)
            .collect();
        assert_eq!(uids, [1, 2, 3, 4], "{format:?}");
        assert_eq!(server.pop3("alice").list("UIDL").len(), 4);
    }
}

#[test]
fn literals_pipelining_and_idle_work() {
    let server = Dovecot::setup().plugin(false).start();
    let mut client = server.imap_in("alice", "INBOX");
    client.append("INBOX", &message_of(7, 5000));
    let (a, b) = (
        client.send("FETCH 1 (UID BODY.PEEK[])"),
        client.send("STATUS INBOX (UIDNEXT)"),
    );
    // Dovecot may answer the second first, and untagged lines belong to no command.
    let replies = [client.wait(&b), client.wait(&a)];
    let fetch = &replies
        .iter()
        .flat_map(Reply::fetches)
        .next()
        .expect("a FETCH");
    assert_eq!(fetch.uid(), Some(1));
    assert_eq!(
        fetch.text("BODY[]").unwrap().as_bytes(),
        message_of(7, 5000)
    );
    let lines = replies.iter().flat_map(|reply| &reply.lines);
    assert!(
        lines.clone().any(|line| line.contains("(UIDNEXT 2)")),
        "{replies:?}"
    );
    let reply = client.cmd_parts(&[Part::Text("SEARCH SUBJECT "), Part::Literal(b"message 7")]);
    assert_eq!(reply.search_numbers(), [1]);
    let idle = client.idle();
    server.deliver("alice", &message(8));
    client.wait_line("2 EXISTS");
    client.done(&idle);
}

#[test]
fn tls_and_compression_work() {
    let server = Dovecot::setup().plugin(false).tls().start();
    let mut client = server.imap_tls("alice");
    client.compress();
    client.append("INBOX", &message_of(1, 300_000));
    client.ok("SELECT INBOX");
    let reply = client.ok("FETCH 1 BODY[]");
    assert_eq!(
        reply.fetches()[0].text("BODY[]").unwrap().as_bytes(),
        message_of(1, 300_000)
    );
}

#[test]
fn a_crashed_server_starts_again_with_its_mail() {
    let server = Dovecot::setup().plugin(false).start();
    let mut client = server.imap("alice");
    client.append("INBOX", &message(1));
    assert_eq!(server.pids("imap").len(), 1);
    server.crash();
    assert!(client.closes());
    server.start_again();
    assert_eq!(server.messages("alice", "INBOX").len(), 1);
    server.restart();
    assert_eq!(server.messages("alice", "INBOX").len(), 1);
}

#[test]
#[should_panic(expected = "killed with signal 11")]
fn a_crash_in_the_log_fails_the_test() {
    let server = Dovecot::setup().plugin(false).start();
    let mut client = server.imap("alice");
    client.ok("NOOP");
    // SAFETY: a signal to a process of the server that this test started.
    unsafe { libc::kill(server.pids("imap")[0] as libc::pid_t, libc::SIGSEGV) };
    server.wait_log("killed with signal 11");
}

#[test]
fn the_plug_in_is_loaded_by_every_process() {
    let server = Dovecot::start();
    let mut imap = server.imap("alice");
    imap.append("INBOX", &message(1));
    let mut lmtp = server.lmtp();
    assert_eq!(lmtp.deliver(&["alice"], &message(2))[0].0, 250);
    let mut pop3 = server.pop3("alice");
    pop3.ok("STAT");
    for process in ["imap", "lmtp", "pop3"] {
        let pids = server.pids(process);
        assert_eq!(pids.len(), 1, "{process}");
        let maps = std::fs::read_to_string(format!("/proc/{}/maps", pids[0])).unwrap();
        assert!(maps.contains("libimap_xid"), "{process} has no plug-in");
    }
    let output = server.doveadm(&[
        "-D", "mailbox", "status", "-u", "alice", "messages", "INBOX",
    ]);
    assert!(output.stdout.contains("messages=2"), "{output:?}");
    for file in ["lib20_xid_plugin.so", "lib20_doveadm_xid_plugin.so"] {
        assert!(output.stderr.contains(file), "{file}: {output:?}");
    }
}

#[test]
fn the_plug_in_loads_sqlite_only_when_it_is_needed() {
    let output = std::process::Command::new("readelf")
        .arg("-d")
        .arg(plugin_path())
        .output()
        .expect("readelf (package binutils)");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("libc.so"), "{text}");
    assert!(
        !text.contains("libsqlite3"),
        "a function of SQLite is missing in c-shim/sqlite/lazy.c:\n{text}"
    );
}
