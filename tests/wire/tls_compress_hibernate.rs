//! XIDs over TLS and COMPRESS, after IDLE and after hibernation (issue: XHXID as prefix).

use crate::harness::*;

/// What a client of XIDs does, with three messages in the mailbox.
fn works(client: &mut Imap) {
    let fetched = client.ok("FETCH 1:3 (UID XID)").fetches();
    let xids: Vec<String> = fetched.iter().map(|f| f.xid().expect("an XID")).collect();
    assert_eq!(client.ok("XHXID").announced(), xids);
    assert_eq!(
        client.ok(&format!("XHXID {}", xids[1])).announced(),
        &xids[2..]
    );
    let code = client.ok("XHXID").code("XHXID").expect("a state");
    assert!(client.ok(&format!("XHXID {code}")).announced().is_empty());
    let set = format!("{},{}", xids[2], xids[0]);
    let found: Vec<String> = client
        .ok(&format!("XHXID FETCH {set} (FLAGS)"))
        .fetches()
        .iter()
        .filter_map(Fetch::xid)
        .collect();
    assert_eq!(found, [xids[0].clone(), xids[2].clone()]);
    assert_eq!(
        client.ok(&format!("SEARCH XID {set}")).search_numbers(),
        [1, 3]
    );
    assert_eq!(client.ok("XHXID SEARCH ALL").search(), xids);
    client.ok(&format!("XHXID STORE {} +FLAGS (\\Flagged)", xids[1]));
    assert_eq!(client.ok("SEARCH FLAGGED").search_numbers(), [2]);
    let sorted = client.ok("XHXID SORT (REVERSE ARRIVAL) UTF-8 ALL");
    assert_eq!(sorted.untagged("SORT").len(), 1);
    let thread = client.ok("XHXID THREAD ORDEREDSUBJECT UTF-8 ALL");
    assert!(thread.only("THREAD").contains(&xids[0]));
    // Copies come and go, so that the mailbox holds the three afterwards.
    client.cmd("CREATE Other");
    let copy = copied(client, &xids[0]);
    client.ok(&format!("XHXID MOVE {copy} Other"));
    let copy = copied(client, &xids[0]);
    client.ok(&format!("XHXID STORE {copy} +FLAGS (\\Deleted)"));
    client.ok(&format!("XHXID EXPUNGE {copy}"));
    assert_eq!(client.ok("XHXID").announced(), xids);
}

/// Copies a message into its own mailbox; the copy's XID.
fn copied(client: &mut Imap, xid: &str) -> String {
    let state = client.ok("XHXID").code("XHXID").expect("a state");
    client.ok(&format!("XHXID COPY {xid} INBOX"));
    let news = client.ok(&format!("XHXID {state}")).announced();
    assert_eq!(news.len(), 1, "{news:?}");
    news[0].clone()
}

fn fill(server: &Dovecot) {
    for n in 1..=3 {
        server.append("alice", "INBOX", &message(n));
    }
}

#[test]
fn everything_works_over_tls() {
    let server = Dovecot::setup().tls().start();
    fill(&server);
    let mut client = server.imap_tls("alice");
    client.ok("SELECT INBOX");
    works(&mut client);
}

#[test]
fn everything_works_over_compress_and_over_both() {
    let server = Dovecot::setup().tls().start();
    fill(&server);
    for tls in [false, true] {
        let mut client = if tls {
            server.imap_tls("alice")
        } else {
            server.imap("alice")
        };
        client.compress();
        client.ok("SELECT INBOX");
        works(&mut client);
    }
}

#[test]
fn everything_works_after_idle() {
    let server = Dovecot::start();
    let mut client = server.imap_in("alice", "INBOX");
    let idle = client.idle();
    fill(&server);
    client.wait_line("3 EXISTS");
    client.done(&idle);
    works(&mut client);
}

#[test]
fn everything_works_after_hibernation() {
    let server = Dovecot::setup().hibernate("1s").start();
    fill(&server);
    let mut client = server.imap_in("alice", "INBOX");
    let mut state = client.ok("XHXID").code("XHXID").expect("a state");
    for round in 0..2 {
        let idle = client.idle();
        until("the client to hibernate", || {
            server.pids("imap").is_empty() && !server.pids("imap-hibernate").is_empty()
        });
        if round == 1 {
            server.deliver("alice", &message(4));
            client.wait_line("4 EXISTS");
        }
        client.done(&idle);
        if round == 0 {
            works(&mut client);
            state = client.ok("XHXID").code("XHXID").expect("a state");
        }
    }
    let news = client.ok(&format!("XHXID {state}")).announced();
    assert_eq!(news.len(), 1, "{news:?}");
    let fetches = client
        .ok(&format!("XHXID FETCH {} (UID)", news[0]))
        .fetches();
    // Two copies had UIDs between.
    assert_eq!(fetches[0].uid(), Some(6));
}

#[test]
fn an_examined_mailbox_answers_and_changes_nothing() {
    let server = Dovecot::start();
    fill(&server);
    let mut client = server.imap("alice");
    client.ok("EXAMINE INBOX");
    assert_eq!(client.ok("XHXID foo-1").announced(), ["foo-2", "foo-3"]);
    assert_eq!(client.ok("XHXID SEARCH ALL").search().len(), 3);
    let by_uid = client.cmd("UID STORE 1 +FLAGS (\\Deleted)").status;
    assert_eq!(
        client.cmd("XHXID STORE foo-1 +FLAGS (\\Deleted)").status,
        by_uid
    );
    assert!(client.ok("SEARCH DELETED").search().is_empty());
}
