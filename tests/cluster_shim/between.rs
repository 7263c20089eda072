//! Messages that come, or go, between replication's look at a mailbox and its commit.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use crate::assign::advance;
use crate::broken::{collide, sync_through};
use crate::harness::*;
use crate::interlock::slot;
use crate::pair::{Pair, inbox, messages, named};
use crate::travel::moving;

/// The UID that the first server's message gets, far above the other's next one: what replication
/// brings to that keeps it, whatever comes there meanwhile.
const FAR: u32 = 5;

/// Both have a message; the first server has another one, at UID [`FAR`], and nothing in between,
/// nor a trace of an expunge.
fn with_a_gap(format: Format) -> Pair {
    let pair = Pair::start(format);
    pair.fill(1);
    let (first, next) = (&pair.servers[0], FAR.to_string());
    let words = [
        "mailbox",
        "update",
        "-u",
        "alice",
        "--min-next-uid",
        &next,
        "INBOX",
    ];
    first.doveadm_ok(&words);
    first.append("alice", "INBOX", &message(2));
    assert_eq!(messages(first, "INBOX").last().map(|m| m.uid), Some(FAR));
    for server in &pair.servers {
        // Since the table was made everything counts as promised.
        slot(server).promise(1).expect("a promise");
    }
    pair.introduce("INBOX");
    pair
}

/// A sync brings that message to the second server, where one comes just before it is saved.
fn meanwhile(pair: &Pair, promised: bool) {
    let (second, daemon) = (&pair.servers[1], &pair.daemons[1]);
    daemon.forget();
    daemon.hold(true);
    std::thread::scope(|scope| {
        let syncing = scope.spawn(|| pair.sync(&[]));
        until("replication asks which XIDs it brings", || {
            !daemon.asked().is_empty()
        });
        second.append("alice", "INBOX", &message(3));
        if promised {
            slot(second).promise(2).expect("a promise");
        }
        daemon.hold(false);
        syncing.join().expect("it ends");
    });
    slot(second).promise(1).expect("the promise is taken back");
}

#[test]
fn a_message_that_comes_during_a_sync_is_not_removed_by_the_next_one() {
    let formats = Format::ALL.into_iter();
    for (format, promised) in formats.flat_map(|format| [(format, true), (format, false)]) {
        let pair = with_a_gap(format);
        meanwhile(&pair, promised);
        until("a sync that goes well", || {
            pair.introduce("INBOX");
            pair.sync(&["-f"]).code == 0
        });
        let guids: BTreeSet<_> = pair.same("INBOX").into_iter().map(|m| m.guid).collect();
        assert_eq!(guids.len(), 3, "{format:?}, promised: {promised}");
    }
}

/// At how many places of a sync messages are expunged.
const PLACES: usize = 6;
/// Messages of the second trial, of which those at even UIDs go.
const SENT: u32 = 9;

fn guids(list: &[Message]) -> BTreeSet<String> {
    list.iter().map(|message| message.guid.clone()).collect()
}

/// Expunges the messages at these UIDs on one of the servers, as the other one's daemon can hear;
/// gives their GUIDs.
fn expunge(pair: &Pair, index: usize, mailbox: &str, uids: &[u32]) -> BTreeSet<String> {
    let server = &pair.servers[index];
    let mut there = messages(server, mailbox);
    there.retain(|message| uids.contains(&message.uid));
    let set: Vec<String> = uids.iter().map(u32::to_string).collect();
    let set = set.join(",");
    let words = ["expunge", "-u", "alice", "mailbox", mailbox, "uid", &set];
    server.doveadm_ok(&words);
    pair.daemons[1 - index].knows_gone(&there);
    guids(&there)
}

/// Of messages in a mailbox of their own that `fill` makes, these UIDs go on these servers in the
/// middle of a sync, at one place of it after the other. Nothing else goes.
fn expunged_on_the_way(
    pair: &Pair,
    fill: impl Fn(&str) -> BTreeSet<String>,
    servers: &[usize],
    uids: &[u32],
) {
    fill("whole");
    let (whole, _) = sync_through(pair, "whole", usize::MAX, || true);
    for place in 1..=PLACES {
        let mailbox = format!("place{place}");
        let (mut kept, mut gone) = (fill(&mailbox), BTreeSet::new());
        let (_, output) = sync_through(pair, &mailbox, whole * place / (PLACES + 1), || {
            for server in servers {
                gone.extend(expunge(pair, *server, &mailbox, uids));
            }
            true
        });
        assert!(!output.stderr.contains("Panic"), "{mailbox}: {output:?}");
        assert!(!gone.is_empty(), "{mailbox}");
        kept.retain(|guid| !gone.contains(guid));
        until("syncs that go well, to the same on both", || {
            pair.introduce(&mailbox);
            let [one, other] = [0, 1].map(|i| named(&messages(&pair.servers[i], &mailbox)));
            pair.sync(&["-f", "-m", &mailbox]).code == 0 && one == other
        });
        let both = pair.same(&mailbox);
        let there = guids(&both);
        let lost: Vec<_> = kept.difference(&there).collect();
        assert!(lost.is_empty(), "{mailbox}: {lost:?} of {kept:?}");
        assert_eq!(both.len(), there.len(), "{mailbox}");
    }
}

#[test]
fn a_message_that_is_expunged_while_replication_moves_it_ends_no_process() {
    for format in Format::ALL {
        let pair = Pair::start(format);
        println!("{format:?}");
        expunged_on_the_way(&pair, |mailbox| collide(&pair, mailbox), &[0, 1], &[2]);
    }
}

#[test]
fn a_message_that_is_expunged_before_it_is_sent_takes_no_other_along() {
    let even: Vec<u32> = (1..=SENT).filter(|uid| uid % 2 == 0).collect();
    for format in Format::ALL {
        let pair = Pair::start(format);
        println!("{format:?}");
        let first = &pair.servers[0];
        let fill = |mailbox: &str| {
            first.imap("alice").ok(&format!("CREATE {mailbox}"));
            pair.sync_ok(&["-f", "-m", mailbox]);
            for n in 1..=SENT {
                first.append("alice", mailbox, &message(n as usize));
            }
            pair.introduce(mailbox);
            guids(&messages(first, mailbox))
        };
        expunged_on_the_way(&pair, fill, &[0], &even);
    }
}

/// A message comes to both nodes from a third one, with this UID: the next one of the first.
fn common(pair: &Pair, uid: u32) {
    let next = uid.to_string();
    let words = ["mailbox", "update", "-u", "alice", "--min-next-uid", &next];
    pair.servers[1].doveadm_ok(&[&words[..], &["INBOX"]].concat());
    for server in &pair.servers {
        let new = server.mail_dir("alice").join("new/from-a-third-node");
        std::fs::write(&new, message(5)).expect("it is delivered");
        let folder = std::fs::metadata(server.mail_dir("alice")).expect("a folder");
        std::os::unix::fs::chown(&new, Some(folder.uid()), Some(folder.gid())).expect("its owner");
        pair.introduce("INBOX");
    }
    let last = [0, 1].map(|i| messages(&pair.servers[i], "INBOX").pop().expect("it"));
    assert_eq!(named(&last[..1]), named(&last[1..]));
    assert_eq!(last[0].uid, uid);
}

/// Below a message that both nodes have from a third one, one of them has a message that the other
/// never had: that one went on above it.
fn below_a_common_one(pair: &Pair) -> Message {
    pair.servers[0].append("alice", "INBOX", &message(3));
    let alone = messages(&pair.servers[0], "INBOX").pop();
    let alone = alone.expect("a message");
    common(pair, alone.uid + 1);
    alone
}

/// Syncs until this message is on both nodes, once and as it was; gives all of them.
fn until_on_both(pair: &Pair, alone: &Message) -> Vec<Message> {
    let is_it = |message: &&Message| message.guid == alone.guid;
    until("the message to be on both nodes", || {
        pair.introduce("INBOX");
        let synced = pair.sync(&["-f"]).code == 0;
        let [there, other] = [0, 1].map(|i| messages(&pair.servers[i], "INBOX"));
        let found = there.iter().find(is_it).expect("it is lost");
        assert_eq!(found.xid, alone.xid);
        synced && other.iter().any(|m| is_it(&m))
    });
    let both = pair.same("INBOX");
    assert_eq!(both.iter().filter(is_it).count(), 1);
    both
}

#[test]
fn a_message_that_the_other_node_never_had_is_not_expunged() {
    let pair = Pair::start(Format::Maildir);
    pair.fill(2);
    for server in &pair.servers {
        slot(server).promise(0).expect("nothing is promised");
    }
    let alone = below_a_common_one(&pair);
    assert_eq!(until_on_both(&pair, &alone).len(), 4);
}

/// Who was killed while it moved a message has it twice. Of the two neither goes for the other's
/// sake when replication would expunge both.
#[test]
fn a_message_that_is_there_twice_is_not_expunged_twice() {
    let pair = Pair::start(Format::Maildir);
    pair.fill(2);
    for server in &pair.servers {
        slot(server).promise(2).expect("no more is promised");
        advance(server, "alice", "INBOX", 2);
    }
    pair.servers[0].append("alice", "INBOX", &message(3));
    moving(&pair.servers[0], &["raise", "3", "0"]);
    let there = messages(&pair.servers[0], "INBOX");
    let [.., first, second] = &there[..] else {
        panic!("two of them: {there:?}");
    };
    assert_eq!((first.uid, second.uid), (3, 4));
    assert_eq!((&first.guid, &first.xid), (&second.guid, &second.xid));
    common(&pair, 5);
    assert_eq!(until_on_both(&pair, first).len(), 4);
}

/// A node that has the message in its stage, or in a mailbox that is becoming this one, names it as well.
#[test]
fn a_message_that_another_node_has_elsewhere_is_not_expunged() {
    let pair = Pair::start(Format::Maildir);
    pair.fill(2);
    for server in &pair.servers {
        slot(server).promise(0).expect("nothing is promised");
    }
    let alone = below_a_common_one(&pair);
    let staged = Message {
        uid: u32::MAX,
        ..alone.clone()
    };
    pair.daemons[0].knows(&[staged]);
    assert_eq!(until_on_both(&pair, &alone).len(), 4);
}

/// Replication remembers how far two nodes have the same. So a sync that could not decide about a
/// message, since it is promised and must keep its UID, does not succeed.
#[test]
fn a_sync_that_leaves_an_expunge_open_fails_and_comes_again() {
    let pair = Pair::start(Format::Maildir);
    pair.fill(2);
    for server in &pair.servers {
        slot(server).promise(0).expect("nothing is promised");
    }
    let alone = below_a_common_one(&pair);
    let mine = slot(&pair.servers[0]);
    mine.promise(alone.uid).expect("it is promised");
    pair.introduce("INBOX");
    let before = named(&messages(&pair.servers[0], "INBOX"));
    let refused = pair.sync(&["-f"]);
    assert_ne!(refused.code, 0, "{refused:?}");
    let why = "Whether messages were expunged is not known yet";
    assert!(refused.stderr.contains(why), "{refused:?}");
    assert_eq!(named(&messages(&pair.servers[0], "INBOX")), before);
    mine.promise(0).expect("nothing is promised");
    assert_eq!(until_on_both(&pair, &alone).len(), before.len());
}

/// A third node may have it from the one that expunges it now, and would bring it back for ever.
#[test]
fn who_expunges_what_another_node_expunged_remembers_that() {
    for format in Format::ALL {
        let pair = Pair::start(format);
        pair.fill(2);
        for server in &pair.servers {
            slot(server).promise(2).expect("no more is promised");
            advance(server, "alice", "INBOX", 2);
        }
        pair.fill(2);
        let unstable: Vec<u32> = pair.same("INBOX").iter().map(|m| m.uid).collect();
        let [one, two] = [unstable[2], unstable[3]];
        let settled = |guid: &str| {
            let server = &pair.servers[1];
            let mailbox: String = inbox(server).1.iter().map(|b| format!("{b:02x}")).collect();
            let words = [
                "xid", "settled", "-u", "alice", &mailbox, "INBOX", "2", guid,
            ];
            server.doveadm_ok(&words)
        };
        let guid = expunge(&pair, 0, "INBOX", &[one]);
        let guid = guid.first().expect("one went");
        assert!(!settled(guid).contains(guid), "{format:?}");
        until("the expunge on the other node", || {
            pair.sync(&["-f"]).code == 0 && messages(&pair.servers[1], "INBOX").len() == 3
        });
        assert_eq!(pair.same("INBOX").last().expect("a message").uid, two);
        assert!(settled(guid).contains(guid), "{format:?}");
    }
}

/// Where the file of a maildir's message is: in which folder, under which name.
fn maildir_file(server: &Dovecot, guid: &str) -> PathBuf {
    let folders = ["cur", "new"].map(|name| server.mail_dir("alice").join(name));
    let files = folders.iter().filter_map(|f| std::fs::read_dir(f).ok());
    let mut paths = files.flatten().flatten().map(|file| file.path());
    let is_it = |path: &PathBuf| {
        let name = path.file_name().expect("a name").to_string_lossy();
        name.split(':').next() == Some(guid)
    };
    paths.find(is_it).expect("the message's file")
}

/// A process was killed while it saved a message of another node a second time: its file is there,
/// under a name of its own, but not what it is the file of. `same`: as it was written down.
fn killed_import(server: &Dovecot, message: &Message, same: bool) -> PathBuf {
    let file = maildir_file(server, &message.guid);
    let folder = server.mail_dir("alice");
    let size = file.metadata().expect("a file").len();
    let half = folder.join(format!("cur/1234567890.M1P1.host,S={size}:2,"));
    std::fs::copy(&file, &half).expect("a file");
    let half_of = half.metadata().expect("a file");
    let mtime = half_of.mtime() - i64::from(!same);
    let xid = message.xid.as_ref().expect("an XID");
    let (guid, inode) = (&message.guid, half_of.ino());
    let line = format!("\n{xid}\t{guid}\t{inode}\t{size}\t{mtime}\n");
    let moving = folder.join("xid.moving");
    std::fs::write(&moving, line).expect("the note");
    let owner = folder.metadata().expect("a folder");
    for path in [&half, &moving] {
        std::os::unix::fs::chown(path, Some(owner.uid()), Some(owner.gid())).expect("its owner");
    }
    half
}

#[test]
fn an_import_that_was_killed_leaves_no_second_message_in_a_maildir() {
    let pair = Pair::start(Format::Maildir);
    pair.fill(2);
    let server = &pair.servers[1];
    let before = messages(server, "INBOX");
    let half = killed_import(server, &before[1], true);
    until("the second one to be gone", || {
        named(&messages(server, "INBOX")) == named(&before)
    });
    assert!(!half.exists());
    // What has its number is not its file.
    let other = killed_import(server, &before[1], false);
    until("a message", || messages(server, "INBOX").len() == 3);
    assert!(other.exists());
}

#[test]
fn a_message_that_a_maildir_does_not_see_for_a_moment_keeps_its_xid() {
    let pair = Pair::start(Format::Maildir);
    let server = &pair.servers[0];
    (1..=2).for_each(|n| server.append("alice", "INBOX", &message(n)));
    let before = messages(server, "INBOX");
    let file = maildir_file(server, &before[1].guid);
    let aside = server.mail_dir("alice").join("aside");
    std::fs::rename(&file, &aside).expect("the file is moved away");
    until("the message to be gone", || {
        messages(server, "INBOX").len() == 1
    });
    std::fs::rename(&aside, &file).expect("the file comes back");
    let mut after = Vec::new();
    until("the message to be back", || {
        after = messages(server, "INBOX");
        after.len() == 2
    });
    assert_eq!(after[1].guid, before[1].guid);
    assert!(after[1].uid > before[1].uid, "{after:?}");
    // Nobody else knows it: the daemon is of no help.
    assert_eq!(after[1].xid, before[1].xid);
}
