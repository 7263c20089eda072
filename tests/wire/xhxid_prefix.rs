//! Spec part 5: XHXID in place of UID.

use std::collections::HashMap;

use crate::fetch_search::{all_xids, fetched_xids, filled, number_of};
use crate::harness::*;
use crate::xhxid_state::append_many;

/// Flags of each message, by XID.
fn flags(client: &mut Imap) -> HashMap<String, Vec<String>> {
    let fetches = client.ok("FETCH 1:* (XID FLAGS)").fetches();
    fetches
        .iter()
        .map(|f| {
            let mut flags = f.flags().expect("FLAGS");
            flags.retain(|flag| flag != "\\Recent");
            (f.xid().expect("an XID"), flags)
        })
        .collect()
}

#[test]
fn fetch_adds_the_xid_by_itself() {
    for format in Format::ALL {
        let (_server, mut client, x) = filled(Dovecot::setup().format(format), 3);
        for items in [
            "FLAGS",
            "(FLAGS)",
            "(XID FLAGS)",
            "ALL",
            "FAST",
            "full",
            "BODY.PEEK[]",
            "BODY.PEEK[HEADER.FIELDS (SUBJECT FROM)]",
            "(FLAGS BODY.PEEK[HEADER.FIELDS (SUBJECT)]<0.10> UID)",
            "UID",
            "(uid)",
            "BODY.PEEK[TEXT]<3.7>",
            "BODYSTRUCTURE",
            "BINARY.PEEK[1]<0.4>",
            "BINARY.SIZE[1]",
        ] {
            let reply = client.ok(&format!("XHXID FETCH {},{} {items}", x[2], x[0]));
            let expected = [x[0].clone(), x[2].clone()];
            assert_eq!(fetched_xids(&reply), expected, "{format:?}: {items}");
            let fetch = &reply.fetches()[0];
            let asked = items.to_uppercase().contains("UID");
            assert_eq!(fetch.uid().is_some(), asked, "{items}");
            assert!(fetch.items.len() > 1, "{items}: {fetch:?}");
        }
    }
}

#[test]
fn fetch_gives_what_uid_fetch_gives() {
    let (_server, mut client, x) = filled(Dovecot::setup(), 3);
    for items in [
        "ALL",
        "FULL",
        "BODY.PEEK[HEADER.FIELDS (SUBJECT FROM)]",
        "(BODY.PEEK[]<5.20> ENVELOPE)",
        "(BINARY.PEEK[1] MODSEQ)",
    ] {
        let with_uid = client.ok(&format!("UID FETCH 2 {items}")).fetches();
        let with_xid = client
            .ok(&format!("XHXID FETCH {} {items}", x[1]))
            .fetches();
        let rest = |fetch: &Fetch| {
            let mut items = fetch.items.clone();
            items.retain(|(name, _)| name != "UID" && name != "XID");
            items
        };
        assert_eq!(rest(&with_xid[0]), rest(&with_uid[0]), "{items}");
    }
}

#[test]
fn fetch_takes_changedsince_and_marks_as_seen() {
    let (_server, mut client, x) = filled(Dovecot::setup(), 3);
    let set = x.join(",");
    let reply = client.ok(&format!("XHXID FETCH {set} (MODSEQ)"));
    let fetches = reply.fetches();
    let modseqs = fetches.iter().map(|fetch| -> u64 {
        let modseq = fetch.text("MODSEQ").expect("MODSEQ");
        modseq.trim_matches(['(', ')']).parse().expect("a number")
    });
    let modseq = modseqs.max().expect("three messages");
    client.ok("STORE 2 +FLAGS.SILENT (\\Flagged)");
    let reply = client.ok(&format!(
        "XHXID FETCH {set} (FLAGS) (CHANGEDSINCE {modseq})"
    ));
    assert_eq!(fetched_xids(&reply), [&*x[1]]);
    let reply = client.ok(&format!("XHXID FETCH {set} FLAGS (CHANGEDSINCE {modseq})"));
    assert_eq!(fetched_xids(&reply), [&*x[1]]);

    let reply = client.ok(&format!("XHXID FETCH {} BODY[]", x[2]));
    let fetch = &reply.fetches()[0];
    assert!(fetch.flags().expect("FLAGS").contains(&"\\Seen".to_owned()));
    assert_eq!(flags(&mut client)[&x[2]], ["\\Seen"]);
}

#[test]
fn unknown_xids_are_skipped_in_silence() {
    let (_server, mut client, x) = filled(Dovecot::setup(), 2);
    let reply = client.ok(&format!("XHXID FETCH nobody-1,{},foo-999999 FLAGS", x[1]));
    assert_eq!(fetched_xids(&reply), [&*x[1]]);
    client.ok("CREATE Other");
    for command in [
        "FETCH nobody-1 (FLAGS UID)",
        "FETCH nobody-1 FULL",
        "STORE nobody-1 +FLAGS (\\Deleted)",
        "STORE nobody-1 (UNCHANGEDSINCE 1) +FLAGS (\\Deleted)",
        "COPY nobody-1,foo-999999 Other",
        "MOVE nobody-1 Other",
        "EXPUNGE nobody-1",
    ] {
        let reply = client.ok(&format!("XHXID {command}"));
        assert!(reply.untagged("FETCH").is_empty(), "{command}: {reply:#?}");
        assert!(
            reply.untagged("EXPUNGE").is_empty(),
            "{command}: {reply:#?}"
        );
    }
    assert_eq!(client.ok("XHXID SEARCH XID nobody-1").search(), [""; 0]);
    assert!(flags(&mut client).values().all(Vec::is_empty));
    assert_eq!(
        client.ok("STATUS Other (MESSAGES)").only("STATUS"),
        "Other (MESSAGES 0)"
    );
}

#[test]
fn store_answers_with_xids() {
    for format in Format::ALL {
        let (_server, mut client, x) = filled(Dovecot::setup().format(format), 4);
        let reply = client.ok(&format!(
            "XHXID STORE {},{} +FLAGS (\\Flagged key)",
            x[0], x[3]
        ));
        assert_eq!(fetched_xids(&reply), [&*x[0], &*x[3]], "{format:?}");
        let reply = client.ok(&format!("XHXID STORE {} -FLAGS (key)", x[0]));
        assert_eq!(fetched_xids(&reply), [&*x[0]]);
        let reply = client.ok(&format!("XHXID STORE {} FLAGS.SILENT (\\Seen)", x[1]));
        assert!(reply.untagged("FETCH").is_empty());
        let now = flags(&mut client);
        assert_eq!(now[&x[0]], ["\\Flagged"], "{format:?}");
        assert_eq!(now[&x[1]], ["\\Seen"]);
        assert!(now[&x[2]].is_empty());
        assert_eq!(now[&x[3]], ["\\Flagged", "key"]);

        // Also with CONDSTORE, where a silent store answers with MODSEQ.
        client.ok("ENABLE CONDSTORE");
        let reply = client.ok(&format!("XHXID STORE {} +FLAGS.SILENT (\\Draft)", x[2]));
        assert_eq!(fetched_xids(&reply), [&*x[2]]);
        assert!(reply.fetches()[0].get("MODSEQ").is_some());
        // QRESYNC wants UIDs in all FETCHes, besides.
        client.ok("ENABLE QRESYNC");
        let reply = client.ok(&format!("XHXID STORE {} +FLAGS (\\Answered)", x[2]));
        assert_eq!(fetched_xids(&reply), [&*x[2]]);
        assert_eq!(reply.fetches()[0].uid(), Some(3));
    }
}

#[test]
fn store_unchangedsince_lists_the_xids_that_were_modified() {
    let (_server, mut client, x) = filled(Dovecot::setup(), 3);
    client.ok("ENABLE CONDSTORE");
    client.ok(&format!("XHXID STORE {},{} +FLAGS (\\Seen)", x[0], x[2]));
    let set = x.join(",");
    let reply = client.ok(&format!(
        "XHXID STORE {set} (UNCHANGEDSINCE 1) +FLAGS (\\Flagged)"
    ));
    assert_eq!(reply.code("MODIFIED").expect("MODIFIED"), set);
    let reply = client.ok("FETCH 2 (MODSEQ)");
    let modseq = reply.fetches()[0].text("MODSEQ").expect("MODSEQ");
    let modseq = modseq.trim_matches(['(', ')']);
    let reply = client.ok(&format!(
        "XHXID STORE {set} (UNCHANGEDSINCE {modseq}) +FLAGS (\\Flagged)"
    ));
    let modified = format!("{},{}", x[0], x[2]);
    assert_eq!(reply.code("MODIFIED").expect("MODIFIED"), modified);
    assert_eq!(flags(&mut client)[&x[1]], ["\\Flagged"]);
    assert_eq!(flags(&mut client)[&x[0]], ["\\Seen"]);
}

#[test]
fn changes_by_pipelined_stores_carry_xids() {
    let (_server, mut client, x) = filled(Dovecot::setup(), 3);
    let tags = [
        client.send(&format!("XHXID STORE {} +FLAGS (\\Seen)", x[0])),
        client.send(&format!("XHXID STORE {} +FLAGS (\\Flagged)", x[1])),
        client.send("XHXID"),
        client.send(&format!("XHXID STORE {} +FLAGS (\\Draft)", x[2])),
        client.send("NOOP"),
    ];
    let replies: Vec<Reply> = tags.iter().map(|tag| client.wait(tag)).collect();
    assert!(replies.iter().all(Reply::is_ok), "{replies:#?}");
    let mut seen: Vec<String> = replies.iter().flat_map(fetched_xids).collect();
    seen.sort_by_key(|xid| number_of(xid));
    assert_eq!(seen, x);
}

#[test]
fn copy_and_move_make_messages_with_xids_of_their_own() {
    for format in Format::ALL {
        let (server, mut client, x) = filled(Dovecot::setup().format(format), 4);
        client.ok("CREATE Other");
        let reply = client.ok(&format!("XHXID COPY {},{} Other", x[0], x[2]));
        assert!(
            reply.code("COPYUID").is_some(),
            "{format:?}: {}",
            reply.text
        );
        let reply = client.ok(&format!("XHXID MOVE {},nobody-1 Other", x[1]));
        assert!(reply.untagged_code("COPYUID").is_some(), "{reply:#?}");
        assert_eq!(reply.untagged("EXPUNGE").len(), 1);
        assert_eq!(all_xids(&mut client), [&*x[0], &*x[2], &*x[3]]);
        let copies = xids(&server.checked("alice", "Other"));
        assert_eq!(copies.len(), 3);
        assert!(
            copies.iter().all(|c| number_of(c) > number_of(&x[3])),
            "{copies:?}"
        );
        let reply = client.no(&format!("XHXID COPY {} Nowhere", x[0]));
        assert!(reply.code("TRYCREATE").is_some());
    }
}

#[test]
fn expunge_removes_the_listed_ones_alone_that_are_deleted() {
    for format in Format::ALL {
        let (_server, mut client, x) = filled(Dovecot::setup().format(format), 4);
        client.ok(&format!("XHXID STORE {},{} +FLAGS (\\Deleted)", x[0], x[2]));
        let reply = client.ok(&format!("XHXID EXPUNGE {},{},nobody-1", x[2], x[3]));
        assert_eq!(reply.untagged("EXPUNGE").len(), 1, "{format:?}");
        assert_eq!(all_xids(&mut client), [&*x[0], &*x[1], &*x[3]]);
        client.ok("ENABLE QRESYNC");
        let reply = client.ok(&format!("XHXID EXPUNGE {}", x[0]));
        assert_eq!(reply.only("VANISHED"), "1");
    }
}

/// What a UID form answered, with XIDs in place of the UIDs.
fn to_xids(text: &str, xid_of: &HashMap<String, String>) -> String {
    let mut out = String::new();
    let mut word = String::new();
    for c in text.chars().chain([' ']) {
        if c.is_ascii_digit() {
            word.push(c);
            continue;
        }
        if !word.is_empty() {
            out.push_str(xid_of.get(&word).unwrap_or(&word));
            word.clear();
        }
        out.push(c);
    }
    out.trim_end().to_owned()
}

/// A mailbox in which UIDs, sequences and numbers differ, and threads are.
fn threaded() -> (Dovecot, Imap, HashMap<String, String>) {
    let (server, mut client, _) = filled(Dovecot::setup(), 0);
    for n in 1..=9_usize {
        let text = format!(
            "From: a{n}@example.org\r\nSubject: {}topic {}\r\nMessage-ID: <{n}@t>\r\n{}\
             Date: Mon, {n:02} Jan 2024 10:00:00 +0000\r\n\r\nbody {n}\r\n",
            if n > 3 { "Re: " } else { "" },
            n % 3,
            if n > 3 {
                format!("References: <{}@t>\r\n", n / 2)
            } else {
                String::new()
            },
        );
        client.append("INBOX", text.as_bytes());
    }
    client.ok("STORE 2,6 +FLAGS.SILENT (\\Deleted)");
    client.ok("EXPUNGE");
    client.ok("STORE 3:5 +FLAGS.SILENT (\\Flagged)");
    let fetches = client.ok("FETCH 1:* (UID XID)").fetches();
    let xid_of = fetches
        .iter()
        .map(|f| {
            (
                f.uid().expect("a UID").to_string(),
                f.xid().expect("an XID"),
            )
        })
        .collect();
    (server, client, xid_of)
}

#[test]
fn search_sort_and_thread_answer_as_their_uid_forms_with_xids() {
    let (_server, mut client, xid_of) = threaded();
    for (keyword, arguments) in [
        ("SEARCH", "ALL"),
        ("SEARCH", "FLAGGED"),
        ("SEARCH", "2:4 UNFLAGGED"),
        ("SEARCH", "CHARSET UTF-8 SUBJECT \"topic 1\""),
        ("SEARCH", "TEXT nothing-at-all"),
        ("SORT", "(REVERSE DATE) UTF-8 ALL"),
        ("SORT", "(SUBJECT REVERSE ARRIVAL) UTF-8 ALL"),
        ("SORT", "(FROM) UTF-8 FLAGGED"),
        ("SORT", "(TO CC SIZE DISPLAYFROM DISPLAYTO DATE) UTF-8 1:3"),
        ("THREAD", "REFERENCES UTF-8 ALL"),
        ("THREAD", "REFS UTF-8 UNFLAGGED"),
        ("THREAD", "ORDEREDSUBJECT UTF-8 ALL"),
        ("THREAD", "REFERENCES UTF-8 SUBJECT nothing-at-all"),
    ] {
        let by_uid = client
            .ok(&format!("UID {keyword} {arguments}"))
            .only(keyword);
        let by_xid = client
            .ok(&format!("XHXID {keyword} {arguments}"))
            .only(keyword);
        assert_eq!(by_xid, to_xids(&by_uid, &xid_of), "{keyword} {arguments}");
    }
}

/// `ALL 1:3,5` -> `ALL 1,2,3,5`: XIDs have no ranges.
fn without_ranges(text: &str) -> String {
    let words = text.split(' ').map(|word| {
        let (word, end) = match word.strip_suffix(')') {
            Some(w) => (w, ")"),
            None => (word, ""),
        };
        let parts = word.split(',').map(|part| {
            let range = part.split_once(':');
            let Some((a, b)) =
                range.and_then(|(a, b)| Some((a.parse::<u32>().ok()?, b.parse::<u32>().ok()?)))
            else {
                return part.to_owned();
            };
            let all: Vec<String> = (a..=b).map(|n| n.to_string()).collect();
            all.join(",")
        });
        parts.collect::<Vec<_>>().join(",") + end
    });
    words.collect::<Vec<_>>().join(" ")
}

#[test]
fn search_return_options_answer_with_xids() {
    let (_server, mut client, xid_of) = threaded();
    for (arguments, has) in [
        ("RETURN (MIN) FLAGGED", "MIN"),
        ("RETURN (MAX) FLAGGED", "MAX"),
        ("RETURN (ALL) ALL", "ALL"),
        ("RETURN () FLAGGED", "ALL"),
        ("RETURN (MIN MAX) ALL", "MIN"),
        ("RETURN (ALL) TEXT nothing-at-all", ""),
    ] {
        let uid = client
            .ok(&format!("UID SEARCH {arguments}"))
            .only("ESEARCH");
        let xid = client
            .ok(&format!("XHXID SEARCH {arguments}"))
            .only("ESEARCH");
        let data = |text: &str| text.split_once(") ").expect("a tag").1.to_owned();
        let data = (data(&uid), data(&xid));
        let uid_data = data.0.strip_prefix("UID").expect("UID");
        let xid_data = data.1.strip_prefix("XID").expect("XID");
        assert!(xid_data.contains(has), "{xid}");
        assert_eq!(
            xid_data,
            to_xids(&without_ranges(uid_data), &xid_of),
            "{arguments}"
        );
    }
    let x = all_xids(&mut client);
    let answer = client
        .ok("XHXID SEARCH RETURN (COUNT MIN) FLAGGED")
        .only("ESEARCH");
    assert!(
        answer.ends_with(&format!(") XID MIN {} COUNT 3", x[2])),
        "{answer}"
    );
    let answer = client
        .ok("XHXID SEARCH RETURN (PARTIAL 2:3) ALL")
        .only("ESEARCH");
    assert!(
        answer.ends_with(&format!("PARTIAL (2:3 {},{})", x[1], x[2])),
        "{answer}"
    );
    let answer = client
        .ok("XHXID SEARCH RETURN (PARTIAL 20:30 COUNT) ALL")
        .only("ESEARCH");
    assert!(answer.ends_with("PARTIAL (20:30 NIL) COUNT 7"), "{answer}");
    let answer = client
        .ok("XHXID SORT RETURN (MIN MAX ALL) (REVERSE DATE) UTF-8 1:3")
        .only("ESEARCH");
    let sorted = format!(
        "XID MIN {} MAX {} ALL {},{},{}",
        x[2], x[0], x[2], x[1], x[0]
    );
    assert!(answer.ends_with(&sorted), "{answer}");
    let answer = client.ok("XHXID SEARCH MODSEQ 1").only("SEARCH");
    assert!(
        answer.starts_with(&x.join(" ")) && answer.contains("(MODSEQ "),
        "{answer}"
    );
}

#[test]
fn search_can_save_its_result() {
    let (_server, mut client, _) = threaded();
    let x = all_xids(&mut client);
    assert!(
        client
            .ok("XHXID SEARCH RETURN (SAVE) FLAGGED")
            .untagged("ESEARCH")
            .is_empty()
    );
    assert_eq!(fetched_xids(&client.ok("FETCH $ (XID)")), x[2..5]);
    client.ok("XHXID SEARCH RETURN (SAVE MAX) FLAGGED");
    assert_eq!(fetched_xids(&client.ok("FETCH $ (XID)")), x[4..5]);
    client.ok("XHXID SEARCH RETURN (SAVE PARTIAL 1:2) ALL");
    assert_eq!(fetched_xids(&client.ok("FETCH $ (XID)")), x[..2]);
    assert_eq!(client.ok("XHXID SEARCH $").search(), x[..2]);
    client.ok("XHXID SEARCH RETURN (SAVE COUNT PARTIAL 1:2) ALL");
    assert_eq!(client.ok("XHXID SEARCH $").search(), x);
}

#[test]
fn search_refuses_updates_and_says_so() {
    let (server, mut client, x) = filled(Dovecot::setup(), 2);
    let reply = client.ok("XHXID SEARCH RETURN (UPDATE ALL) ALL");
    assert!(reply.lines[0].contains("[NOUPDATE "), "{reply:#?}");
    assert!(reply.only("ESEARCH").ends_with(&x.join(",")));
    server.append("alice", "INBOX", &message(3));
    assert!(client.ok("NOOP").untagged("ESEARCH").is_empty());
}

#[test]
fn sets_of_ten_thousand_xids_work_as_atom_and_as_literal() {
    let (_server, mut client, _) = filled(Dovecot::setup().set("mail_fsync", "never"), 0);
    append_many(&mut client, "INBOX", 10_050);
    client.ok("NOOP");
    let x = all_xids(&mut client);
    let mut set: Vec<String> = x[..10_000].to_vec();
    set.reverse();
    let set = set.join(",");
    assert!(set.len() > 65_536, "above the host's own line length");
    let reply = client.ok(&format!("XHXID FETCH {set} (FLAGS)"));
    assert_eq!(fetched_xids(&reply), x[..10_000]);
    client.compress();
    for literal in [
        Part::Literal(set.as_bytes()),
        Part::LiteralPlus(set.as_bytes()),
    ] {
        let parts = [
            Part::Text("XHXID STORE "),
            literal,
            Part::Text(" +FLAGS (\\Seen)"),
        ];
        let reply = client.cmd_parts(&parts);
        assert!(reply.is_ok(), "{}", reply.text);
    }
    assert_eq!(client.ok("SEARCH UNSEEN").search_numbers().len(), 50);
    let rest = client.ok(&format!("XHXID SEARCH NOT XID {set}")).search();
    assert_eq!(rest, x[10_000..]);
    client.ok("CREATE Other");
    client.ok(&format!("XHXID COPY {set} Other"));
    assert_eq!(
        client.ok("STATUS Other (MESSAGES)").only("STATUS"),
        "Other (MESSAGES 10000)"
    );
}

#[test]
fn the_name_of_a_prefix_command_may_be_written_in_any_way() {
    let (_server, mut client, x) = filled(Dovecot::setup(), 1);
    for name in ["fetch", "Fetch", "\"FETCH\""] {
        let reply = client.ok(&format!("xhxid {name} {} FLAGS", x[0]));
        assert_eq!(fetched_xids(&reply), x);
    }
}

#[test]
fn in_an_examined_mailbox_nothing_is_changed() {
    let (server, mut client, x) = filled(Dovecot::setup(), 2);
    client.ok("STORE 1 +FLAGS (\\Deleted)");
    client.ok("EXAMINE INBOX");
    assert_eq!(
        fetched_xids(&client.ok(&format!("XHXID FETCH {} BODY[]", x[1]))),
        [&*x[1]]
    );
    client.ok(&format!("XHXID STORE {} +FLAGS (\\Flagged)", x[1]));
    client.cmd(&format!("XHXID EXPUNGE {}", x[0]));
    client.ok("CREATE Other");
    client.ok(&format!("XHXID COPY {} Other", x[0]));
    assert_eq!(client.ok("XHXID SEARCH ALL").search(), x);
    let mut other = server.imap_in("alice", "INBOX");
    let now = flags(&mut other);
    assert_eq!(now[&x[0]], ["\\Deleted"]);
    assert!(now[&x[1]].is_empty(), "{now:?}");
}

#[test]
fn none_of_it_waits_for_uids_that_are_not_agreed() {
    let server = Dovecot::setup().xid("xid_uid_source", "table").start();
    let mut client = server.imap_in("alice", "INBOX");
    for n in 1..=5 {
        client.append("INBOX", &message(n));
    }
    client.ok("NOOP");
    let x = all_xids(&mut client);
    client.ok("CREATE Other");
    let set = x.join(",");
    let reply = client.ok(&format!("XHXID FETCH {set} (FLAGS BODY.PEEK[])"));
    assert_eq!(fetched_xids(&reply), x);
    let reply = client.ok(&format!("XHXID STORE {} +FLAGS (\\Flagged)", x[4]));
    assert_eq!(fetched_xids(&reply), [&*x[4]]);
    assert_eq!(client.ok("XHXID SEARCH FLAGGED").search(), [&*x[4]]);
    let answer = client
        .ok("XHXID SORT (REVERSE SUBJECT) UTF-8 ALL")
        .only("SORT");
    let reversed: Vec<&str> = x.iter().rev().map(String::as_str).collect();
    assert_eq!(answer, reversed.join(" "));
    let answer = client
        .ok("XHXID THREAD REFERENCES UTF-8 ALL")
        .only("THREAD");
    assert_eq!(answer, format!("({})", x.join(")(")));
    assert_eq!(client.ok("XHXID").announced(), x);
    assert_eq!(client.ok("SEARCH ALL XID").fetches().len(), 5);
    let reply = client.ok(&format!("XHXID COPY {} Other", x[0]));
    assert!(reply.code("COPYUID").is_none(), "{}", reply.text);
    client.ok(&format!("XHXID MOVE {} Other", x[1]));
    client.ok(&format!("XHXID STORE {} +FLAGS (\\Deleted)", x[2]));
    client.ok(&format!("XHXID EXPUNGE {}", x[2]));
    assert_eq!(all_xids(&mut client), [&*x[0], &*x[3], &*x[4]]);
}
