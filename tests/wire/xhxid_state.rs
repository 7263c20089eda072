//! Spec part 4: XHXID with a known state.

use crate::fetch_search::{all_xids, filled, number_of};
use crate::harness::*;

/// The state code of an answer.
fn code(reply: &Reply) -> String {
    reply
        .code("XHXID")
        .unwrap_or_else(|| panic!("no state in {:?}", reply.text))
}

/// "@uidvalidity-uid" of a state code, taken apart.
fn mark(code: &str) -> (u32, u32) {
    let item = code.split(' ').next_back().expect("an item");
    let (validity, uid) = item
        .strip_prefix('@')
        .and_then(|m| m.split_once('-'))
        .unwrap_or_else(|| panic!("no mark at the end of {code:?}"));
    (
        validity.parse().expect("a UIDVALIDITY"),
        uid.parse().expect("a UID"),
    )
}

#[test]
fn without_a_state_every_message_is_announced_in_message_order() {
    for format in Format::ALL {
        let (_server, mut client, x) = filled(Dovecot::setup().format(format), 4);
        let reply = client.ok("XHXID");
        assert_eq!(reply.announced(), x, "{format:?}");
        assert!(reply.text.contains("] done"), "{}", reply.text);
        let code = code(&reply);
        let highest = split_xid(code.split(' ').next().expect("an item"));
        assert_eq!(highest.0, "foo");
        assert!(highest.1 >= number_of(&x[3]));
        assert_eq!(mark(&code).1, 4);
    }
}

#[test]
fn the_state_that_was_saved_announces_only_the_news() {
    for format in Format::ALL {
        let (server, mut client, x) = filled(Dovecot::setup().format(format), 3);
        let mut state = code(&client.ok("XHXID"));
        assert!(client.ok(&format!("XHXID {state}")).announced().is_empty());
        for n in 4..7 {
            server.append("alice", "INBOX", &message(n));
            let reply = client.ok(&format!("XHXID {state}"));
            let news = reply.announced();
            assert_eq!(news.len(), 1, "{format:?}: {reply:#?}");
            state = code(&reply);
            assert_eq!(mark(&state).1, u32::try_from(n).expect("small"));
        }
        // In another session, and after a restart, it is worth the same.
        server.deliver("alice", &message(7));
        server.restart();
        let mut client = server.imap_in("alice", "INBOX");
        let reply = client.ok(&format!("XHXID {state}"));
        assert_eq!(reply.announced(), all_xids(&mut client)[6..]);
        assert_eq!(all_xids(&mut client)[..3], x);
    }
}

#[test]
fn news_of_a_delivery_come_after_its_exists() {
    for format in Format::ALL {
        let (server, mut client, _) = filled(Dovecot::setup().format(format), 1);
        let state = code(&client.ok("XHXID"));
        server.deliver("alice", &message(2));
        server.append("alice", "INBOX", &message(3));
        let reply = client.ok(&format!("XHXID {state}"));
        assert_eq!(reply.exists(), Some(3), "{reply:#?}");
        let keywords: Vec<String> = reply.lines.iter().map(Line::keyword).collect();
        let exists = keywords
            .iter()
            .rposition(|k| k == "EXISTS")
            .expect("EXISTS");
        let first = keywords.iter().position(|k| k == "XHXID").expect("XHXID");
        assert!(exists < first, "{format:?}: {reply:#?}");
        assert_eq!(reply.announced(), all_xids(&mut client)[1..]);
    }
}

#[test]
fn expunges_are_told_before_the_announcements() {
    let (server, mut client, x) = filled(Dovecot::setup(), 3);
    let mut other = server.imap_in("alice", "INBOX");
    other.ok("STORE 1 +FLAGS.SILENT (\\Deleted)");
    other.ok("EXPUNGE");
    let reply = client.ok("XHXID");
    assert_eq!(reply.untagged("EXPUNGE").len(), 1);
    assert_eq!(reply.announced(), x[1..]);
}

#[test]
fn a_state_that_the_client_built_announces_higher_numbers() {
    for format in Format::ALL {
        let (_server, mut client, x) = filled(Dovecot::setup().format(format), 5);
        for known in 0..5 {
            let reply = client.ok(&format!("XHXID {}", x[known]));
            assert_eq!(reply.announced(), x[known + 1..], "{format:?}");
        }
        // A namespace that is not named is announced from its first message.
        assert_eq!(client.ok("XHXID bar-5678").announced(), x);
        // The highest of duplicates counts, wherever it stands.
        let reply = client.ok(&format!("XHXID {} {} {}", x[0], x[3], x[1]));
        assert_eq!(reply.announced(), x[4..]);
    }
}

#[test]
fn a_mark_counts_whatever_the_numbers_say() {
    let (_server, mut client, x) = filled(Dovecot::setup(), 5);
    let (validity, _) = mark(&code(&client.ok("XHXID")));
    let reply = client.ok(&format!("XHXID {} @{validity}-2", x[4]));
    assert_eq!(reply.announced(), x[2..]);
    let reply = client.ok(&format!("XHXID {} @{validity}-3", x[0]));
    assert_eq!(reply.announced(), x[3..]);
    // Above the server's own watermark it is the watermark that counts.
    let reply = client.ok(&format!("XHXID @{validity}-4294967295"));
    assert!(reply.announced().is_empty());
    assert_eq!(mark(&code(&reply)).1, 5);
    let reply = client.ok(&format!("XHXID @{validity}-0"));
    assert_eq!(reply.announced(), x);
}

#[test]
fn what_was_expunged_is_covered_and_never_announced() {
    for format in Format::ALL {
        let (server, mut client, x) = filled(Dovecot::setup().format(format), 4);
        let before = code(&client.ok("XHXID"));
        client.ok("STORE 2,4 +FLAGS.SILENT (\\Deleted)");
        client.ok("EXPUNGE");
        let reply = client.ok(&format!("XHXID {before}"));
        assert!(reply.announced().is_empty(), "{format:?}");
        assert_eq!(
            code(&reply),
            before,
            "{format:?}: the state does not go back"
        );
        assert_eq!(
            client.ok("XHXID").announced(),
            [x[0].clone(), x[2].clone()],
            "{format:?}"
        );
        client.ok("STORE 1:* +FLAGS.SILENT (\\Deleted)");
        client.ok("EXPUNGE");
        drop(client);
        server.restart();
        let mut client = server.imap_in("alice", "INBOX");
        let reply = client.ok("XHXID");
        assert!(reply.announced().is_empty());
        assert_eq!(code(&reply), before, "{format:?}: all are gone");
        server.append("alice", "INBOX", &message(5));
        assert_eq!(client.ok(&format!("XHXID {before}")).announced().len(), 1);
        // Numbers of what is gone are no reason to re-synchronise.
        assert_eq!(client.ok(&format!("XHXID {}", x[3])).announced().len(), 1);
    }
}

#[test]
fn a_mark_of_another_uidvalidity_is_no_xidreset() {
    let (_server, mut client, x) = filled(Dovecot::setup(), 2);
    let (validity, uid) = mark(&code(&client.ok("XHXID")));
    for other in [validity - 1, validity + 1, 1] {
        let reply = client.no(&format!("XHXID {} @{other}-{uid}", x[0]));
        assert!(reply.code("XIDRESET").is_some(), "{}", reply.text);
        assert!(reply.announced().is_empty());
    }
}

#[test]
fn a_number_above_this_nodes_counter_is_xidreset_and_another_nodes_is_not() {
    let (_server, mut client, x) = filled(Dovecot::setup(), 2);
    let reply = client.no("XHXID foo-9000000000000000000");
    assert!(reply.code("XIDRESET").is_some(), "{}", reply.text);
    let reply = client.ok(&format!("XHXID {} bar-9000000000000000000", x[0]));
    assert_eq!(reply.announced(), x[1..]);
}

#[test]
fn an_empty_mailbox_has_a_state() {
    let (server, mut client, _) = filled(Dovecot::setup(), 0);
    let reply = client.ok("XHXID");
    assert!(reply.announced().is_empty());
    let state = code(&reply);
    assert_eq!(mark(&state).1, 0);
    server.append("alice", "INBOX", &message(1));
    let reply = client.ok(&format!("XHXID {state}"));
    assert_eq!(reply.announced(), all_xids(&mut client));
}

#[test]
fn a_state_may_be_sent_as_strings_and_literals() {
    let (_server, mut client, x) = filled(Dovecot::setup(), 3);
    let state = code(&client.ok("XHXID"));
    assert!(
        client
            .ok(&format!("XHXID \"{state}\""))
            .announced()
            .is_empty()
    );
    for literal in [
        Part::Literal(state.as_bytes()),
        Part::LiteralPlus(state.as_bytes()),
    ] {
        let reply = client.cmd_parts(&[Part::Text("XHXID "), literal]);
        assert!(reply.is_ok(), "{}", reply.text);
        assert!(reply.announced().is_empty());
    }
    let parts = [
        Part::Text("XHXID bar-1 "),
        Part::Literal(x[0].as_bytes()),
        Part::Text(" \"baz-2\" "),
        Part::Literal(x[1].as_bytes()),
    ];
    assert_eq!(client.cmd_parts(&parts).announced(), x[2..]);
}

#[test]
fn a_state_may_name_thousands_of_namespaces() {
    let (_server, mut client, x) = filled(Dovecot::setup(), 3);
    let mut items: Vec<String> = (0..8000)
        .map(|n| format!("node{n}.example-{}", n + 1))
        .collect();
    items.insert(4000, x[1].clone());
    let state = items.join(" ");
    assert!(state.len() > 100_000, "above the host's own line length");
    assert_eq!(client.ok(&format!("XHXID {state}")).announced(), x[2..]);
    let parts = [Part::Text("XHXID "), Part::Literal(state.as_bytes())];
    assert_eq!(client.cmd_parts(&parts).announced(), x[2..]);
}

#[test]
fn messages_that_came_without_the_plugin_are_announced() {
    for format in Format::ALL {
        let (server, mut client, _) = filled(Dovecot::setup().format(format), 2);
        let state = code(&client.ok("XHXID"));
        drop(client);
        server.stop();
        server.set_plugin(false);
        server.start_again();
        server.append("alice", "INBOX", &message(3));
        server.deliver("alice", &message(4));
        server.stop();
        server.set_plugin(true);
        server.start_again();
        let mut client = server.imap_in("alice", "INBOX");
        let reply = client.ok(&format!("XHXID {state}"));
        assert_eq!(reply.announced(), all_xids(&mut client)[2..], "{format:?}");
        server.checked("alice", "INBOX");
    }
}

#[test]
fn it_works_in_an_examined_mailbox_and_needs_one_that_is_selected() {
    let (_server, mut client, x) = filled(Dovecot::setup(), 2);
    client.ok("EXAMINE INBOX");
    let reply = client.ok("XHXID");
    assert_eq!(reply.announced(), x);
    assert!(
        client
            .ok(&format!("XHXID {}", code(&reply)))
            .announced()
            .is_empty()
    );
    client.ok("UNSELECT");
    client.bad("XHXID");
    client.bad("XHXID FETCH foo-1 FLAGS");
}

#[test]
fn a_client_that_builds_its_state_from_announcements_misses_nothing() {
    let (server, mut client, mut known) = filled(Dovecot::setup(), 2);
    let mut other = server.imap_in("alice", "INBOX");
    let mut state = code(&client.ok("XHXID"));
    let mut random = Random::new(seed("XHXID_SEED", 7));
    let mut next = 3;
    for _ in 0..30 {
        for _ in 0..random.below(4) {
            other.append("INBOX", &message(next));
            next += 1;
        }
        if random.chance(2) {
            other.ok("NOOP");
            let count = other.ok("SEARCH ALL").search_numbers().len();
            if count > 0 {
                let seq = random.below(count) + 1;
                other.ok(&format!("STORE {seq} +FLAGS.SILENT (\\Deleted)"));
                other.ok("EXPUNGE");
            }
        }
        if random.chance(3) {
            continue;
        }
        let reply = client.ok(&format!("XHXID {state}"));
        known.extend(reply.announced());
        state = code(&reply);
        for xid in server
            .checked("alice", "INBOX")
            .iter()
            .filter_map(|m| m.xid.as_ref())
        {
            assert!(known.contains(xid), "{xid} was never announced");
        }
    }
}

/// Appends `count` small messages with few commands.
pub fn append_many(client: &mut Imap, mailbox: &str, count: usize) {
    let mut left = count;
    while left > 0 {
        let tag = client.new_tag();
        let mut out = format!("{} APPEND {mailbox}", tag.0);
        for _ in 0..left.min(500) {
            out.push_str(" {16+}\r\nSubject: s\r\n\r\nb\r");
            out.push('\n');
        }
        // the last octet of each body is the line feed above
        let out = out.replace("{16+}", "{17+}");
        client.raw(format!("{out}\r\n").as_bytes());
        assert!(client.wait(&tag).is_ok());
        left -= left.min(500);
    }
}

/// kB of memory that a process has in use.
fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
    let line = status
        .lines()
        .find(|l| l.starts_with("VmRSS:"))
        .expect("VmRSS");
    line.split_whitespace()
        .nth(1)
        .and_then(|n| n.parse().ok())
        .expect("a number")
}

#[test]
fn a_client_that_reads_late_costs_no_memory_and_loses_nothing() {
    let (server, mut client, _) = filled(Dovecot::setup().set("mail_fsync", "never"), 0);
    append_many(&mut client, "INBOX", 20_000);
    client.ok("NOOP");
    let x = all_xids(&mut client);
    client.ok("XHXID SEARCH 1");
    let pids = server.pids("imap");
    assert_eq!(pids.len(), 1, "one session: {pids:?}");
    let before = resident(pids[0]);
    // Each answer is about 300 kB; none is read until all are asked for.
    let tags: Vec<Tag> = (0..3).map(|_| client.send("XHXID")).collect();
    let search = client.send("XHXID SEARCH ALL");
    until("the server waits for the client", || {
        std::fs::read_to_string(format!("/proc/{}/stat", pids[0]))
            .is_ok_and(|stat| stat.contains(") S "))
    });
    let grown = resident(pids[0]).saturating_sub(before);
    assert!(grown < 4096, "{grown} kB more");
    for tag in tags {
        assert_eq!(client.wait(&tag).announced(), x);
    }
    assert_eq!(client.wait(&search).search(), x);
}
