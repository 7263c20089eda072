//! `doveadm xid raise|drop|stage|unstage|dropstaged|adopt`: messages move, and stay the same.

use std::collections::BTreeMap;

use crate::harness::*;
use crate::state::{Entry, Node, USER};

/// What must stay of a message wherever it is, by its XID.
pub fn faces(node: &Node, mailbox: &str) -> BTreeMap<String, String> {
    let mut client = node.server.imap_in(USER, mailbox);
    let reply = client.ok("FETCH 1:* (XID X-GUID FLAGS INTERNALDATE RFC822.SIZE BODY.PEEK[])");
    let face = |fetch: &Fetch| {
        let mut flags = fetch.flags().expect("flags");
        flags.retain(|flag| flag != "\\Recent");
        flags.sort();
        let texts = ["X-GUID", "INTERNALDATE", "BODY[]"].map(|name| fetch.text(name));
        (fetch.xid().expect("an XID"), format!("{flags:?} {texts:?}"))
    };
    reply.fetches().iter().map(face).collect()
}

/// Messages with flags, keywords and dates of their own, none of them stable; the first two are.
pub fn fill(node: &mut Node, count: usize) {
    let mut client = node.server.imap(USER);
    for n in 1..=count {
        client.append("INBOX", &message(n));
        if n == 2 {
            node.state("xid expose", "INBOX", &["2", "0", "0", "0"]);
            node.server.note_watermark(USER, "INBOX", 2);
        }
    }
    client.ok("SELECT INBOX");
    client.ok("STORE 3 +FLAGS.SILENT (\\Seen $Work)");
    if count < 4 {
        return;
    }
    client.ok("STORE 4 +FLAGS.SILENT (\\Flagged \\Answered other)");
}

/// All that is there becomes stable.
pub fn expose_all(node: &mut Node) {
    let uid = node.look("INBOX").next - 1;
    node.server.note_watermark(USER, "INBOX", uid);
    node.state("xid expose", "INBOX", &[&uid.to_string(), "0", "0", "0"]);
}

fn xids_of(entries: &[Entry]) -> Vec<&str> {
    entries.iter().map(|entry| entry.xid.as_str()).collect()
}

#[test]
fn raise_copies_what_is_not_stable_above_the_floor() {
    for format in Format::ALL {
        let mut node = Node::start(format);
        fill(&mut node, 5);
        let before = node.look("INBOX");
        assert_eq!(
            (before.shown, before.uids()),
            (2, vec![1, 2, 3, 4, 5]),
            "{format:?}"
        );
        let face = faces(&node, "INBOX");

        let raised = node.state("xid raise", "INBOX", &["100", "100"]);
        // The copies, and where they came from.
        assert_eq!(raised.uids(), [3, 4, 5, 101, 102, 103], "{format:?}");
        assert_eq!(raised.next, 104, "{format:?}");
        for (low, high) in raised.entries[..3].iter().zip(&raised.entries[3..]) {
            assert_eq!((&low.guid, &low.xid), (&high.guid, &high.xid), "{format:?}");
        }
        // Again: nothing more.
        let again = node.state("xid raise", "INBOX", &["100", "0"]);
        assert_eq!(again.uids(), [1, 2, 3, 4, 5, 101, 102, 103], "{format:?}");

        let after = node.state("xid drop", "INBOX", &["3:5,77", "0"]);
        assert_eq!(after.uids(), [1, 2, 101, 102, 103], "{format:?}");
        assert_eq!(
            xids_of(&after.entries),
            xids_of(&before.entries),
            "{format:?}"
        );
        assert_eq!(faces(&node, "INBOX"), face, "{format:?}");
        expose_all(&mut node);
        node.server.checked(USER, "INBOX");

        // XHXID finds them: the registry followed.
        let mut client = node.server.imap_in(USER, "INBOX");
        let xid = &after.entries[3].xid;
        assert_eq!(
            client.ok(&format!("XHXID FETCH {xid} (X-GUID)")).fetches()[0].seq,
            4
        );

        // With no message in the way only the next UID rises.
        let empty = node.state("xid raise", "INBOX", &["100", "0"]);
        assert_eq!(empty.uids(), [1, 2, 101, 102, 103], "{format:?}");
        let high = node.state("xid raise", "INBOX", &["200", "200"]);
        assert_eq!((high.next, high.uids()), (201, vec![]), "{format:?}");
    }
}

/// A node that joins shows less than it has taken from the others, and all of that stays where it is
/// when its next UID rises above what is stable.
#[test]
fn raise_leaves_what_is_promised() {
    for format in Format::ALL {
        let mut node =
            Node::start_with(crate::state::setup(format).xid("xid_uid_source", "cluster"));
        node.server.allow_log("xidd");
        node.state("xid expose", "INBOX", &["0", "100", "200", "0"]);
        for n in 1..=5 {
            node.server.append(USER, "INBOX", &message(n));
        }
        node.state("xid expose", "INBOX", &["2", "100", "200", "0"]);
        assert_eq!(node.look("INBOX").promised, u32::MAX, "{format:?}");
        let raised = node.state("xid raise", "INBOX", &["50", "0"]);
        let is = (raised.next, raised.uids());
        assert_eq!(is, (51, vec![1, 2, 3, 4, 5]), "{format:?}");
        // As far as the promise goes.
        node.state("xid release", "INBOX", &["4", "0"]);
        let raised = node.state("xid raise", "INBOX", &["50", "0"]);
        assert_eq!(raised.uids(), [1, 2, 3, 4, 5, 51], "{format:?}");
    }
}

#[test]
fn raise_goes_as_far_as_a_window_and_in_several_transactions() {
    for format in Format::ALL {
        let mut node = Node::start(format);
        fill(&mut node, 5);
        let mut client = node.server.imap_in(USER, "INBOX");
        while node.look("INBOX").entries.len() < 600 {
            client.ok("COPY 1:* INBOX");
            client.ok("NOOP");
        }
        let before = node.look("INBOX");
        let raised = node.state("xid raise", "INBOX", &["30000", "30000"]);
        let low = before.entries.len() - 2;
        assert_eq!(raised.entries.len(), 2 * low, "{format:?}");
        for (old, new) in before.entries[2..].iter().zip(&raised.entries[low..]) {
            assert_eq!((&old.guid, &old.xid), (&new.guid, &new.xid), "{format:?}");
        }
        let again = node.state("xid raise", "INBOX", &["30000", "30000"]);
        assert_eq!(again.entries, raised.entries, "{format:?}");
        let after = node.state("xid drop", "INBOX", &["3:30000", "0"]);
        assert_eq!(
            xids_of(&after.entries),
            xids_of(&before.entries),
            "{format:?}"
        );
    }
}

#[test]
fn what_was_staged_comes_back_as_the_same_messages() {
    for format in Format::ALL {
        let mut node = Node::start(format);
        fill(&mut node, 5);
        let before = node.look("INBOX");
        let face = faces(&node, "INBOX");
        let guids: Vec<String> = before.entries.iter().map(|e| e.guid.clone()).collect();

        let staged = node.state("xid stage", "INBOX", &["3:4", "0"]);
        assert_eq!(staged.staged, guids[2..4], "{format:?}");
        assert_eq!(staged.entries, before.entries, "{format:?}");
        // By GUID, and what is there already is not staged again.
        let staged = node.state("xid stage", "INBOX", &["3:5", "0"]);
        assert_eq!(staged.staged, guids[2..5], "{format:?}");
        let main = node.state("xid drop", "INBOX", &["3:5", "0"]);
        assert_eq!((main.uids(), &main.staged), (vec![1, 2], &staged.staged));
        nobody_sees_the_stage(&node);

        // Not what is there.
        let state = node.state("xid unstage", "INBOX", &[&guids[0], "0"]);
        assert_eq!(state.uids(), [1, 2], "{format:?}");
        for (n, guid) in guids[2..].iter().enumerate() {
            for _ in 0..2 {
                let state = node.state("xid unstage", "INBOX", &[guid, "5"]);
                assert_eq!(state.next, 7 + n as u32, "{format:?}");
                assert_eq!(&state.entries[n].guid, guid, "{format:?}");
            }
            for _ in 0..2 {
                let state = node.state("xid dropstaged", "INBOX", &[guid, "5"]);
                assert_eq!(state.staged, guids[3 + n..], "{format:?}");
            }
        }
        let after = node.look("INBOX");
        assert_eq!(after.uids(), [1, 2, 6, 7, 8], "{format:?}");
        assert_eq!(
            xids_of(&after.entries),
            xids_of(&before.entries),
            "{format:?}"
        );
        assert_eq!(faces(&node, "INBOX"), face, "{format:?}");
        // New messages get XIDs above all that were.
        node.server.append(USER, "INBOX", &message(6));
        let last = node.look("INBOX").entries.pop().expect("the new one");
        assert_eq!(last.uid, 9, "{format:?}");
        assert!(split_xid(&last.xid).1 > 5, "{format:?} {last:?}");
        expose_all(&mut node);
        node.server.checked(USER, "INBOX");
    }
}

/// What goes and comes back has its file's name again: two lines that name one file make Dovecot
/// give it another UID.
#[test]
fn a_maildir_s_list_forgets_what_was_dropped() {
    let mut node = Node::start(Format::Maildir);
    fill(&mut node, 5);
    let list = node.server.mail_dir(USER).join("dovecot-uidlist");
    let lines = || {
        std::fs::read_to_string(&list)
            .expect("the list")
            .lines()
            .count()
    };
    let staged = node.state("xid stage", "INBOX", &["3:5", "0"]);
    assert_eq!(lines(), 1 + 5);
    node.state("xid drop", "INBOX", &["3:5", "0"]);
    assert_eq!(lines(), 1 + 2);
    for guid in &staged.staged {
        node.state("xid unstage", "INBOX", &[guid, "0"]);
        node.state("xid dropstaged", "INBOX", &[guid, "0"]);
    }
    assert_eq!(node.look("INBOX").uids(), [1, 2, 6, 7, 8]);
    let log = node.server.log();
    assert!(!log.contains("Duplicate file entry"), "{log}");
}

/// A move was cut short: what was raised is still below the floor, too.
#[test]
fn what_is_there_twice_is_staged_once_and_leaves_the_stage() {
    for format in Format::ALL {
        let mut node = Node::start(format);
        fill(&mut node, 5);
        let raised = node.state("xid raise", "INBOX", &["100", "100"]);
        assert_eq!(raised.uids(), [3, 4, 5, 101, 102, 103], "{format:?}");
        let staged = node.state("xid stage", "INBOX", &["3:5,101:103", "0"]);
        assert_eq!(staged.staged.len(), 3, "{format:?}");
        let main = node.state("xid drop", "INBOX", &["3:5,101:103", "0"]);
        assert_eq!(main.uids(), [1, 2], "{format:?}");

        let guid = &staged.staged[0];
        let back = node.state("xid unstage", "INBOX", &[guid, "100"]);
        assert_eq!(back.entries.len(), 1, "{format:?}");
        assert_eq!(&back.entries[0].guid, guid, "{format:?}");
        for (n, guid) in staged.staged.iter().enumerate() {
            let state = node.state("xid dropstaged", "INBOX", &[guid, "100"]);
            assert_eq!(state.staged, staged.staged[n + 1..], "{format:?}");
        }
    }
}

/// Who dropped a message because another node knows that it was expunged can say so when that node is
/// away. What goes back into the mailbox, and what waits in the stage, is not gone.
#[test]
fn what_leaves_the_stage_for_good_is_known_to_be_gone() {
    for format in Format::ALL {
        let mut node = Node::start(format);
        fill(&mut node, 5);
        let staged = node.state("xid stage", "INBOX", &["3:5", "0"]).staged;
        node.state("xid drop", "INBOX", &["3:5", "0"]);
        node.state("xid unstage", "INBOX", &[&staged[0], "0"]);
        node.state("xid dropstaged", "INBOX", &[&staged[0], "0"]);
        node.state("xid dropstaged", "INBOX", &[&staged[1], "0"]);
        // Whatever the watermark is by now.
        expose_all(&mut node);
        let mailbox = node.guid("INBOX");
        let mut is_settled = |guid: &str| {
            let reply = node.run("xid settled", &[&mailbox, "INBOX", "5", guid]);
            reply.field.contains(guid)
        };
        let settled = staged.iter().map(|guid| is_settled(guid));
        let settled: Vec<_> = settled.collect();
        assert_eq!(settled, [false, true, false], "{format:?}");
    }
}

/// The registry has one of two that have one XID; which one goes is not always the other.
#[test]
fn of_what_is_there_twice_the_one_that_stays_is_found() {
    for format in Format::ALL {
        let mut node = Node::start(format);
        fill(&mut node, 5);
        let raised = node.state("xid raise", "INBOX", &["100", "100"]);
        let after = node.state("xid drop", "INBOX", &["3,4,103", "0"]);
        assert_eq!(after.uids(), [1, 2, 5, 101, 102], "{format:?}");
        let guids: Vec<&str> = after.entries.iter().map(|e| e.guid.as_str()).collect();
        let mailbox = node.guid("INBOX");
        for guid in guids {
            let reply = node.run("xid settled", &[&mailbox, "INBOX", "102", guid]);
            assert!(reply.field.contains(guid), "{format:?} {reply:?}");
        }
        expose_all(&mut node);
        let mut client = node.server.imap_in(USER, "INBOX");
        for (entry, seq) in after.entries.iter().zip(1..) {
            let reply = client.ok(&format!("XHXID FETCH {} (X-GUID)", entry.xid));
            assert_eq!(reply.fetches()[0].seq, seq, "{format:?} {entry:?}");
        }
        assert_eq!(raised.entries[2].xid, after.entries[2].xid, "{format:?}");
    }
}

fn nobody_sees_the_stage(node: &Node) {
    let mut client = node.server.imap(USER);
    for pattern in ["*", "xid.stage*", "%"] {
        let reply = client.ok(&format!("LIST \"\" \"{pattern}\""));
        let lines: Vec<_> = reply.untagged("LIST").into_iter().collect();
        assert!(
            !lines
                .iter()
                .any(|line| format!("{line:?}").contains("stage")),
            "{lines:?}"
        );
    }
    let reply = client.ok("LSUB \"\" \"*\"");
    assert!(!format!("{:?}", reply.lines).contains("stage"));
    let list = node.server.doveadm_ok(&["mailbox", "list", "-u", USER]);
    assert!(!list.contains("stage"), "{list}");
}

#[test]
fn the_stage_of_a_maildir_that_is_plain_folders_is_no_mailbox() {
    let setup = crate::state::setup(Format::Maildir).location(":LAYOUT=fs");
    let mut node = Node::start_with(setup);
    fill(&mut node, 3);
    let staged = node.state("xid stage", "INBOX", &["3", "0"]);
    assert_eq!(staged.staged.len(), 1);
    nobody_sees_the_stage(&node);
    assert_eq!(node.look("INBOX").staged, staged.staged);
}

#[test]
fn messages_of_several_mailboxes_are_staged_apart() {
    let mut node = Node::start(Format::Mdbox);
    fill(&mut node, 3);
    node.server.imap(USER).ok("CREATE Other");
    node.server.append(USER, "Other", &message(9));
    let inbox = node.state("xid stage", "INBOX", &["3", "0"]);
    assert!(node.look("Other").staged.is_empty());
    let other = node.state("xid stage", "Other", &["1", "0"]);
    assert_eq!((inbox.staged.len(), other.staged.len()), (1, 1));
    assert_ne!(inbox.staged, other.staged);
    node.state("xid dropstaged", "Other", &[&other.staged[0], "0"]);
    assert_eq!(node.look("INBOX").staged, inbox.staged);
    assert!(node.look("Other").staged.is_empty());
}

#[test]
fn messages_take_the_xids_that_others_gave_them() {
    for format in Format::ALL {
        let mut node = Node::start(format);
        fill(&mut node, 5);
        let before = node.look("INBOX");
        // A foreign one, two that change places, and one of our own from a lost disk.
        let (four, five) = (&before.entries[3].xid, &before.entries[4].xid);
        let high = (7_u64 << 40) + 3;
        let adopt = format!("3:beta-9,4:{five},5:{four}");
        let after = node.state("xid adopt", "INBOX", &[&adopt, "0"]);
        assert_eq!(
            xids_of(&after.entries)[2..],
            ["beta-9", five, four],
            "{format:?}"
        );
        let after = node.state("xid adopt", "INBOX", &[&format!("2:foo-{high}"), "0"]);
        assert_eq!(after.entries[1].xid, format!("foo-{high}"), "{format:?}");
        for (old, new) in before.entries.iter().zip(&after.entries) {
            assert_eq!((old.uid, &old.guid), (new.uid, &new.guid), "{format:?}");
        }
        node.server.append(USER, "INBOX", &message(6));
        let last = node.look("INBOX").entries.pop().expect("the new one");
        assert!(split_xid(&last.xid).1 > high, "{format:?} {last:?}");

        // The registry knows them by their new names only.
        let mut client = node.server.imap_in(USER, "INBOX");
        for (xid, seq) in [("beta-9", 3), (five.as_str(), 4), (four.as_str(), 5)] {
            let reply = client.ok(&format!("XHXID FETCH {xid} (X-GUID)"));
            assert_eq!(reply.fetches()[0].seq, seq, "{format:?} {xid}");
        }
        let reply = client.ok(&format!("XHXID FETCH {} (X-GUID)", before.entries[2].xid));
        assert!(reply.fetches().is_empty(), "{format:?}");

        let guid = node.guid("INBOX");
        for (xids, failed) in [
            ("99:beta-10", "TEMPFAIL"),
            ("3:beta-10,99:beta-11", "TEMPFAIL"),
            ("3:-", "USAGE"),
            ("0:beta-10", "USAGE"),
        ] {
            let reply = node.run("xid adopt", &[&guid, "INBOX", xids, "0"]);
            assert_eq!(reply.failed, failed, "{xids}");
        }
        assert_eq!(node.look("INBOX").entries[2].xid, "beta-9", "{format:?}");
        // What has an XID of another node is moved with it, too.
        let guid = after.entries[2].guid.clone();
        node.state("xid stage", "INBOX", &["3", "0"]);
        node.state("xid drop", "INBOX", &["3", "0"]);
        let back = node.state("xid unstage", "INBOX", &[&guid, "0"]);
        let last = back.entries.last().expect("the staged one");
        assert_eq!(
            (last.guid.as_str(), last.xid.as_str()),
            (guid.as_str(), "beta-9")
        );
    }
}

#[test]
fn moves_wait_for_replication_and_replication_for_them() {
    let mut node = Node::start(Format::Sdbox);
    fill(&mut node, 4);
    let dir = node
        .server
        .mail_dir(USER)
        .join("mailboxes/INBOX/dbox-Mails");
    let lock = dir.join(".dovecot-box-sync.lock");
    let file = std::fs::File::create(&lock).expect("the lock");
    let (uid, gid) = node.server.mail_owner();
    std::os::unix::fs::chown(&lock, Some(uid), Some(gid)).expect("chown");
    lock_whole(&file);
    let guid = node.guid("INBOX");
    let reply = node.run("xid raise", &[&guid, "INBOX", "50", "0"]);
    assert_eq!(reply.failed, "TEMPFAIL");
    assert_eq!(node.look("INBOX").next, 5);
    drop(file);
    assert_eq!(node.state("xid raise", "INBOX", &["50", "50"]).next, 53);
}

#[test]
fn copies_of_one_message_have_an_xid_each() {
    let mut node = Node::start(Format::Sdbox);
    node.server.append(USER, "INBOX", &message(1));
    node.server.imap_in(USER, "INBOX").ok("COPY 1 INBOX");
    let state = node.look("INBOX");
    let [one, two] = &state.entries[..] else {
        panic!("two messages: {state:?}");
    };
    assert_eq!(one.guid, two.guid);
    assert_ne!(one.xid, two.xid);
    // Not taken for one message at two places.
    assert_eq!(node.state("xid look", "INBOX", &["1"]).uids(), [2]);
    let mailbox = node.guid("INBOX");
    let reply = node.run("xid xids", &[&mailbox, "INBOX", &one.guid]);
    assert!(
        reply
            .field
            .contains(&format!("\"1:{},2:{}\"", one.xid, two.xid)),
        "{reply:?}"
    );
}

#[test]
fn quota_has_no_say_in_moves() {
    for format in Format::ALL {
        let setup = crate::state::setup(format).mail_plugins("zlib quota").conf(
            "plugin {\n  quota = count:User quota\n  quota_vsizes = yes\n  \
                 quota_rule = *:messages=5\n}",
        );
        let mut node = Node::start_with(setup);
        fill(&mut node, 5);
        let reply = node
            .server
            .imap(USER)
            .try_append("INBOX", &message(6))
            .expect("an answer");
        assert_eq!(reply.status, "NO", "{format:?}: {}", reply.text);
        node.state("xid raise", "INBOX", &["50", "0"]);
        node.state("xid drop", "INBOX", &["3:5", "0"]);
        let staged = node.state("xid stage", "INBOX", &["51:53", "0"]).staged;
        node.state("xid drop", "INBOX", &["51:53", "0"]);
        for n in 6..=8 {
            node.server.append(USER, "INBOX", &message(n));
        }
        for guid in &staged {
            node.state("xid unstage", "INBOX", &[guid, "0"]);
        }
        assert_eq!(node.look("INBOX").entries.len(), 8, "{format:?}");
    }
}

#[test]
fn neither_gate_nor_limit_stops_what_the_daemon_does() {
    let setup = crate::state::setup(Format::Sdbox)
        .xid("xid_uid_source", "cluster")
        .xid("xid_uid_wait", "60s");
    let mut node = Node::start_with(setup);
    node.server.allow_log("xidd");
    let mut client = node.server.imap_in(USER, "INBOX");
    node.state("xid expose", "INBOX", &["0", "4", "200", "0"]);
    for n in 1..=4 {
        client.append("INBOX", &message(n));
    }
    let state = node.state("xid expose", "INBOX", &["2", "4", "200", "0"]);
    assert_eq!((state.shown, state.limit), (2, 4));
    assert!(
        node.state("xid gate", "INBOX", &["close", "600000", "0"])
            .gated
    );
    let begin = std::time::Instant::now();
    node.state("xid release", "INBOX", &["2", "0"]);
    node.state("xid raise", "INBOX", &["50", "0"]);
    node.state("xid drop", "INBOX", &["3:4", "0"]);
    let staged = node.state("xid stage", "INBOX", &["51:52", "0"]).staged;
    node.state("xid drop", "INBOX", &["51:52", "0"]);
    for guid in &staged {
        node.state("xid unstage", "INBOX", &[guid, "0"]);
        node.state("xid dropstaged", "INBOX", &[guid, "0"]);
    }
    assert_eq!(node.look("INBOX").uids(), [1, 2, 53, 54]);
    assert!(
        begin.elapsed() < std::time::Duration::from_secs(50),
        "nothing waited"
    );
    node.state("xid gate", "INBOX", &["open", "0", "0"]);
}

#[test]
fn replication_does_not_carry_the_stage_away() {
    let mut node = Node::start(Format::Sdbox);
    fill(&mut node, 4);
    node.state("xid stage", "INBOX", &["3", "0"]);
    let copy = node.server.home(USER).join("copy");
    let location = format!("sdbox:{}", copy.display());
    let backup = node.server.doveadm(&["backup", "-u", USER, &location]);
    assert_eq!(backup.code, 0, "{backup:?}");
    let boxes: Vec<_> = std::fs::read_dir(copy.join("mailboxes"))
        .expect("mailboxes")
        .map(|entry| entry.expect("an entry").file_name())
        .collect();
    assert_eq!(boxes, ["INBOX"]);
    assert!(!copy.join("xid.stage").exists());
}

#[test]
fn a_client_s_copies_are_staged_and_come_back_each() {
    for format in Format::ALL {
        let mut node = Node::start(format);
        fill(&mut node, 3);
        let mut client = node.server.imap_in(USER, "INBOX");
        client.ok("COPY 3 INBOX");
        client.ok("COPY 3 INBOX");
        let before = node.look("INBOX");
        let face = faces(&node, "INBOX");
        let guid = before.entries[2].guid.clone();
        assert!(before.entries[3..].iter().all(|entry| entry.guid == guid));

        node.state("xid stage", "INBOX", &["3:4", "0"]);
        let staged = node.state("xid stage", "INBOX", &["3:5", "0"]);
        assert_eq!(staged.staged, [guid.as_str()], "{format:?}");
        // One of them stays; the others come back beside it.
        node.state("xid drop", "INBOX", &["3,5", "0"]);
        for _ in 0..2 {
            let back = node.state("xid unstage", "INBOX", &[&guid, "0"]);
            assert_eq!(back.uids(), [1, 2, 4, 6, 7], "{format:?}");
        }
        assert_eq!(faces(&node, "INBOX"), face, "{format:?}");
        let after = node.state("xid dropstaged", "INBOX", &[&guid, "0"]);
        assert!(after.staged.is_empty(), "{format:?}");

        // What got another XID elsewhere is the same message all the same.
        node.state("xid stage", "INBOX", &["7", "0"]);
        node.state("xid drop", "INBOX", &["4,6", "0"]);
        node.state("xid adopt", "INBOX", &["7:beta-1", "0"]);
        let same = node.state("xid unstage", "INBOX", &[&guid, "0"]);
        assert_eq!(same.uids(), [1, 2, 7], "{format:?}");
    }
}
