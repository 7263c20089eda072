//! Spec parts 2 and 3: the FETCH item XID and the search key XID.

use crate::harness::*;

/// A server with `count` messages in alice's INBOX, a client that selected it, and their XIDs.
pub fn filled(setup: Setup, count: usize) -> (Dovecot, Imap, Vec<String>) {
    let server = setup.start();
    let mut client = server.imap("alice");
    for n in 1..=count {
        client.append("INBOX", &message(n));
    }
    client.ok("SELECT INBOX");
    let xids = if count == 0 {
        Vec::new()
    } else {
        all_xids(&mut client)
    };
    assert_eq!(xids.len(), count);
    (server, client, xids)
}

/// The XIDs of the selected mailbox, in message order.
pub fn all_xids(client: &mut Imap) -> Vec<String> {
    fetched_xids(&client.ok("FETCH 1:* (XID)"))
}

/// The XIDs in the FETCH lines of an answer; each line must have one.
pub fn fetched_xids(reply: &Reply) -> Vec<String> {
    let fetches = reply.fetches();
    assert_eq!(fetches.len(), reply.untagged("FETCH").len(), "{reply:#?}");
    fetches
        .iter()
        .map(|f| f.xid().unwrap_or_else(|| panic!("no XID in {f:?}")))
        .collect()
}

#[test]
fn fetch_xid_gives_each_messages_xid() {
    for format in Format::ALL {
        let (_server, mut client, xids) = filled(Dovecot::setup().format(format), 3);
        for xid in &xids {
            assert_eq!(split_xid(xid).0, "foo");
        }
        let reply = client.ok("FETCH 2 XID");
        assert_eq!(
            reply.only("FETCH"),
            format!("(XID {})", xids[1]),
            "{format:?}"
        );
        let reply = client.ok("UID FETCH 1:* (FLAGS XID RFC822.SIZE)");
        assert_eq!(fetched_xids(&reply), xids);
        assert!(reply.fetches().iter().all(|f| f.uid().is_some()));
        let reply = client.ok("FETCH 1:3 (XID BODY.PEEK[] XID)");
        assert_eq!(fetched_xids(&reply), xids);
        client.ok("EXAMINE INBOX");
        assert_eq!(all_xids(&mut client), xids);
    }
}

#[test]
fn a_fetch_item_that_only_begins_with_xid_is_bad() {
    let (_server, mut client, _) = filled(Dovecot::setup(), 1);
    for item in ["XID.PEEK", "XID[]", "XIDS", "XID<0.1>"] {
        client.bad(&format!("FETCH 1 ({item})"));
    }
}

#[test]
fn without_the_plugin_every_word_of_it_is_bad() {
    let server = Dovecot::setup().plugin(false).start();
    server.append("alice", "INBOX", &message(1));
    let mut client = server.imap_in("alice", "INBOX");
    client.bad("FETCH 1 XID");
    client.bad("SEARCH 1:* XID");
    client.bad("SEARCH XID foo-1");
    client.bad("XHXID");
}

#[test]
fn with_wrong_settings_every_word_of_it_is_bad_and_mail_works() {
    let server = Dovecot::setup()
        .xid("xid_namespace", "not-a-namespace")
        .start();
    server.allow_log("xid_namespace");
    server.append("alice", "INBOX", &message(1));
    let mut client = server.imap_in("alice", "INBOX");
    let unknown = client.bad("NOSUCHCOMMAND").text;
    let xhxid = client.bad("XHXID").text.replace("XHXID", "NOSUCHCOMMAND");
    let words = |text: &str| text.split('(').next().unwrap_or("").to_owned();
    assert_eq!(words(&xhxid), words(&unknown), "as an unknown command");
    client.bad("FETCH 1 XID");
    client.bad("SEARCH 1:* XID");
    client.bad("SEARCH XID foo-1");
    client.ok("FETCH 1 (FLAGS BODY.PEEK[])");
    client.ok("SEARCH 1:*");
}

#[test]
fn no_capability_is_advertised_unless_an_option_adds_one() {
    let server = Dovecot::start();
    let mut client = server.imap("alice");
    assert!(!client.ok("CAPABILITY").only("CAPABILITY").contains("XID"));
    drop(client);
    server.stop();
    server.set_xid("xid_capability", "XXID");
    server.start_again();
    let mut client = server.imap("alice");
    let capabilities = client.ok("CAPABILITY").only("CAPABILITY");
    assert!(
        capabilities.split(' ').any(|c| c == "XXID"),
        "{capabilities}"
    );
}

#[test]
fn search_xid_with_a_set_matches_its_messages_alone() {
    for format in Format::ALL {
        let (_server, mut client, x) = filled(Dovecot::setup().format(format), 5);
        let cases: &[(String, &[u32])] = &[
            (format!("XID {}", x[1]), &[2]),
            (format!("XID {},{}", x[4], x[0]), &[1, 5]),
            (format!("XID {},{},{}", x[2], x[2], x[2]), &[3]),
            (format!("XID {},bar-1,nobody-77", x[3]), &[4]),
            ("XID nobody-1".into(), &[]),
            (format!("NOT XID {}", x[0]), &[2, 3, 4, 5]),
            ("NOT XID nobody-1".into(), &[1, 2, 3, 4, 5]),
            (format!("OR XID {} XID {}", x[0], x[4]), &[1, 5]),
            (format!("OR XID {} 2:3", x[0]), &[1, 2, 3]),
            (format!("XID {},{} XID {},{}", x[0], x[1], x[1], x[2]), &[2]),
            (format!("(XID {} UNSEEN)", x[2]), &[3]),
            (format!("NOT (XID {} UNSEEN)", x[2]), &[1, 2, 4, 5]),
            (format!("XID \"{}\"", x[2]), &[3]),
            (format!("SUBJECT message XID {}", x[1]), &[2]),
            (format!("XID {} TEXT \"message 2\"", x[1]), &[2]),
            (format!("XID {} TEXT \"message 3\"", x[1]), &[]),
        ];
        for (keys, expected) in cases {
            let found = client.ok(&format!("SEARCH {keys}")).search_numbers();
            assert_eq!(found, *expected, "{format:?}: {keys}");
        }
        let literal = [
            Part::Text("SEARCH XID "),
            Part::Literal(x[3].as_bytes()),
            Part::Text(" UNSEEN"),
        ];
        assert_eq!(client.cmd_parts(&literal).search_numbers(), [4]);
    }
}

#[test]
fn search_xid_works_in_esearch_sort_and_thread() {
    let (_server, mut client, x) = filled(Dovecot::setup(), 5);
    let set = format!("{},{}", x[1], x[3]);
    let reply = client.ok(&format!("SEARCH RETURN (MIN MAX ALL COUNT) XID {set}"));
    let answer = reply.only("ESEARCH");
    assert!(answer.ends_with("MIN 2 MAX 4 ALL 2,4 COUNT 2"), "{answer}");
    let reply = client.ok(&format!("UID SEARCH RETURN (COUNT) NOT XID {set}"));
    assert!(reply.only("ESEARCH").ends_with("COUNT 3"));
    let reply = client.ok(&format!("SORT (REVERSE SUBJECT) UTF-8 XID {set}"));
    assert_eq!(reply.only("SORT"), "4 2");
    let reply = client.ok(&format!("THREAD REFERENCES UTF-8 NOT XID {set}"));
    assert_eq!(reply.only("THREAD"), "(1)(3)(5)");
    let reply = client.ok(&format!("SEARCH INTHREAD REFERENCES XID {set}"));
    assert_eq!(reply.search_numbers(), [2, 4]);
}

#[test]
fn search_xid_works_in_saved_results() {
    let (_server, mut client, x) = filled(Dovecot::setup(), 5);
    client.ok(&format!("SEARCH RETURN (SAVE) XID {},{}", x[1], x[3]));
    assert_eq!(client.ok("SEARCH $").search_numbers(), [2, 4]);
    assert_eq!(
        client
            .ok(&format!("SEARCH $ NOT XID {}", x[1]))
            .search_numbers(),
        [4]
    );
    assert_eq!(fetched_xids(&client.ok("FETCH $ (XID)")), [&*x[1], &*x[3]]);
}

/// "ADDTO (0 6)" -> "6" of the updates that came with an answer.
fn updates(reply: &Reply, kind: &str) -> Vec<String> {
    let lines = reply.untagged("ESEARCH");
    lines
        .iter()
        .filter_map(|line| {
            let text = line.text().into_owned();
            let at = text.find(&format!("{kind} (0 "))? + kind.len() + 4;
            Some(text[at..].split(')').next()?.to_owned())
        })
        .collect()
}

#[test]
fn saved_results_that_are_updated_follow_xids() {
    for format in Format::ALL {
        let (server, mut client, x) = filled(Dovecot::setup().format(format), 3);
        // The next messages' XIDs are not known for sure, but are among these.
        let last = split_xid(&x[2]).1;
        let coming: Vec<String> = (last + 1..last + 4000)
            .map(|n| format!("foo-{n}"))
            .collect();
        let set = format!("{},{}", x[0], coming.join(","));
        client.ok(&format!("SEARCH RETURN (UPDATE) XID {set}"));
        client.ok(&format!("UID SEARCH RETURN (UPDATE) NOT XID {}", x[1]));
        server.append("alice", "INBOX", &message(4));
        let reply = client.ok("NOOP");
        assert_eq!(updates(&reply, "ADDTO"), ["4", "4"], "{format:?}");

        // Sequences shift; flags make it search again.
        client.ok("STORE 2 +FLAGS.SILENT (\\Deleted)");
        let reply = client.ok("EXPUNGE");
        assert!(updates(&reply, "ADDTO").is_empty(), "{reply:#?}");
        client.ok("STORE 1:* +FLAGS (\\Seen)");
        server.append("alice", "INBOX", &message(5));
        let reply = client.ok("NOOP");
        assert_eq!(updates(&reply, "ADDTO"), ["4", "5"], "{format:?}");
        client.ok("STORE 1 +FLAGS.SILENT (\\Deleted)");
        let reply = client.ok("EXPUNGE");
        assert_eq!(updates(&reply, "REMOVEFROM"), ["1", "1"], "{format:?}");
    }
}

#[test]
fn bare_xid_fetches_the_xids_of_the_matches() {
    for format in Format::ALL {
        let (_server, mut client, x) = filled(Dovecot::setup().format(format), 4);
        client.ok("STORE 2,4 +FLAGS.SILENT (\\Seen)");
        let cases: &[(&str, &[u32])] = &[
            ("SEARCH 1:* XID", &[1, 2, 3, 4]),
            ("SEARCH XID", &[1, 2, 3, 4]),
            ("SEARCH XID UNSEEN", &[1, 3]),
            ("SEARCH UNSEEN XID", &[1, 3]),
            ("SEARCH XID 2:3", &[2, 3]),
            ("SEARCH XID *", &[4]),
            ("SEARCH XID (OR SEEN 1)", &[1, 2, 4]),
            ("SEARCH (XID SEEN)", &[2, 4]),
            ("SEARCH XID NOT SEEN", &[1, 3]),
            ("SEARCH SUBJECT \"message 3\" XID", &[3]),
            ("SEARCH XID XID SEEN", &[2, 4]),
            ("SEARCH CHARSET UTF-8 SEEN XID", &[2, 4]),
            ("SEARCH XID SUBJECT nothing", &[]),
        ];
        for (command, expected) in cases {
            let reply = client.ok(command);
            assert_eq!(reply.search_numbers(), *expected, "{format:?}: {command}");
            let fetches = reply.fetches();
            let seqs: Vec<u32> = fetches.iter().map(|f| f.seq).collect();
            assert_eq!(seqs, *expected, "{format:?}: {command}");
            for fetch in &fetches {
                assert_eq!(fetch.items.len(), 1, "{fetch:?}");
                assert_eq!(fetch.xid().as_ref(), x.get(fetch.seq as usize - 1));
            }
            let keywords: Vec<String> = reply.lines.iter().map(Line::keyword).collect();
            assert_eq!(keywords[0], "SEARCH", "the search's answer comes first");
        }
        let reply = client.ok(&format!("SEARCH XID XID {}", x[2]));
        assert_eq!(reply.search_numbers(), [3]);
        assert_eq!(fetched_xids(&reply), [&*x[2]]);
    }
}

#[test]
fn bare_xid_works_with_uids_return_options_sort_and_thread() {
    let (_server, mut client, x) = filled(Dovecot::setup(), 3);
    let reply = client.ok("UID SEARCH 2:3 XID");
    assert_eq!(reply.search_numbers(), [2, 3]);
    assert!(
        reply.fetches().iter().all(|f| f.uid().is_some()),
        "{reply:#?}"
    );
    assert_eq!(fetched_xids(&reply), x[1..]);
    let reply = client.ok("SEARCH RETURN (COUNT) 1:2 XID");
    assert!(reply.only("ESEARCH").ends_with("COUNT 2"));
    assert_eq!(fetched_xids(&reply), x[..2]);
    let reply = client.ok("SORT (REVERSE SUBJECT) UTF-8 1:2 XID");
    assert_eq!(reply.only("SORT"), "2 1");
    assert_eq!(fetched_xids(&reply), x[..2]);
    let reply = client.ok("THREAD ORDEREDSUBJECT UTF-8 1:2 XID");
    assert_eq!(fetched_xids(&reply), x[..2]);
    let reply = client.ok("THREAD REFERENCES UTF-8 3 XID");
    assert_eq!(fetched_xids(&reply), x[2..]);
    // The next search has nothing of it left.
    assert!(client.ok("SEARCH 1:*").fetches().is_empty());
}

#[test]
fn bare_xid_is_bad_where_it_is_not_a_question() {
    let (_server, mut client, _) = filled(Dovecot::setup(), 2);
    for keys in [
        "NOT XID",
        "NOT (1 XID)",
        "OR XID SEEN",
        "OR SEEN XID",
        "OR (XID) SEEN",
        "INTHREAD REFERENCES XID",
        "XID OR XID SEEN",
    ] {
        let text = client.bad(&format!("SEARCH {keys}")).text;
        assert!(text.contains("expected an XID"), "{keys}: {text}");
        client.ok("NOOP");
    }
}

#[test]
fn a_wrong_xid_in_a_search_is_bad_and_says_what_was_expected() {
    let (_server, mut client, _) = filled(Dovecot::setup(), 1);
    for set in [
        "foo-0",
        "foo-01",
        "foo-",
        "foo-1,",
        ",foo-1",
        "foo-1:2",
        "foo-1:foo-2",
        "foo-*",
        "-1",
        "1foo-1",
        "foo-1,,foo-2",
        "foo-9223372036854775808",
        "foo-x",
        "\"foo-1 \"",
        "NIL",
    ] {
        let reply = client.bad(&format!("SEARCH XID {set}"));
        assert!(reply.text.contains("expected"), "{set}: {}", reply.text);
        client.ok("NOOP");
    }
}

#[test]
fn doveadm_searches_know_the_key() {
    for format in Format::ALL {
        let (server, _client, x) = filled(Dovecot::setup().format(format), 3);
        let search = |keys: &[&str]| {
            let mut args = vec!["fetch", "-u", "alice", "uid", "mailbox", "INBOX"];
            args.extend_from_slice(keys);
            let text = server.doveadm_ok(&args);
            let uids = text.lines().filter_map(|l| l.strip_prefix("uid: "));
            uids.map(str::to_owned).collect::<Vec<_>>().join(",")
        };
        assert_eq!(search(&["xid", &x[1]]), "2", "{format:?}");
        assert_eq!(search(&["XID", &format!("{},{},bar-1", x[2], x[0])]), "1,3");
        assert_eq!(search(&["not", "xid", &x[1]]), "1,3");
        assert_eq!(search(&["(", "xid", &x[0], "or", "xid", &x[1], ")"]), "1,2");
        assert_eq!(search(&["xid", "nobody-1"]), "");
        for bad in ["foo-0", "1:*", "seen"] {
            let args = ["search", "-u", "alice", "mailbox", "INBOX", "xid", bad];
            let output = server.doveadm(&args);
            assert_ne!(output.code, 0, "{bad}: {output:?}");
            assert!(output.stderr.contains("XID"), "{bad}: {output:?}");
        }
        // What is found can be changed.
        server.doveadm_ok(&["expunge", "-u", "alice", "mailbox", "INBOX", "xid", &x[1]]);
        assert_eq!(xids(&server.checked("alice", "INBOX")), [&*x[0], &*x[2]]);
    }
}

#[test]
fn notify_can_ask_for_xids_of_new_messages() {
    let (server, mut client, x) = filled(Dovecot::setup(), 1);
    client.ok("NOTIFY SET (SELECTED (MessageNew (XID FLAGS) MessageExpunge))");
    server.append("alice", "INBOX", &message(2));
    let reply = client.ok("NOOP");
    let xid = fetched_xids(&reply).pop().expect("a FETCH");
    assert!(number_of(&xid) > number_of(&x[0]));
    assert_eq!(all_xids(&mut client), [x[0].clone(), xid]);
}

/// The number in an XID.
pub fn number_of(xid: &str) -> u64 {
    split_xid(xid).1
}
