//! XIDs travel with their messages; INBOX is one mailbox wherever it was made.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::assign::{advance, guid};
use crate::daemon::{Daemon, Unknown};
use crate::harness::*;
use crate::pair::{Pair, inbox, messages, named, server};

#[test]
fn nodes_that_make_inbox_each_by_itself_have_one_mailbox() {
    for format in Format::ALL {
        let pair = Pair::start(format);
        pair.servers[0].append("alice", "INBOX", &message(1));
        pair.servers[0].append("alice", "INBOX", &message(2));
        pair.servers[1].imap_in("alice", "INBOX").ok("NOOP");
        let both = [0, 1].map(|i| inbox(&pair.servers[i]));
        assert_eq!(both[0], both[1], "{format:?}");
        pair.introduce("INBOX");
        pair.sync_ok(&[]);
        let uids: Vec<u32> = pair.same("INBOX").iter().map(|m| m.uid).collect();
        assert_eq!(uids, [1, 2], "{format:?}");
        // A delivery makes it too, and another user's is another mailbox.
        let alice = inbox(&pair.servers[1]).1;
        pair.servers[1].deliver_later("bob");
        assert_ne!(guid(&pair.servers[1], "bob", "INBOX"), alice);
        pair.servers[0].imap_in("bob", "INBOX").ok("NOOP");
        let bobs = [0, 1].map(|i| guid(&pair.servers[i], "bob", "INBOX"));
        assert_eq!(bobs[0], bobs[1], "{format:?}");
    }
}

/// Sessions that are a user's first, at the same time.
const FIRST_SESSIONS: usize = 6;

#[test]
fn sessions_that_open_the_first_inbox_at_once_make_one() {
    for format in Format::ALL {
        let pair = Pair::start(format);
        for user in ["bob", "carol", "dave", "erin"] {
            std::thread::scope(|scope| {
                for _ in 0..FIRST_SESSIONS {
                    scope.spawn(|| pair.servers[0].imap_in(user, "INBOX").ok("NOOP"));
                }
            });
            pair.servers[1].imap_in(user, "INBOX").ok("NOOP");
            let both = [0, 1].map(|i| guid(&pair.servers[i], user, "INBOX"));
            assert_eq!(both[0], both[1], "{user}, {format:?}");
        }
    }
}

/// Mailboxes that come from the other node under the eyes of clients.
const MADE: usize = 30;
/// Such clients.
const WATCHERS: usize = 2;

/// Where a mailbox's folder will be.
fn folder(server: &Dovecot, format: Format, name: &str) -> PathBuf {
    let root = server.mail_dir("alice");
    match format {
        Format::Maildir => root.join(format!(".{name}")),
        _ => root.join("mailboxes").join(name),
    }
}

/// Opens each mailbox as soon as its folder is there.
fn open_early(server: &Dovecot, format: Format, names: &[String], done: &AtomicBool) {
    let mut client = server.imap("alice");
    let mut left: Vec<(&String, PathBuf)> = names
        .iter()
        .map(|name| (name, folder(server, format, name)))
        .collect();
    while !left.is_empty() && !done.load(Ordering::Relaxed) {
        left.retain(|(name, folder)| {
            let there = folder.exists();
            if there {
                client.cmd(&format!("EXAMINE {name}"));
            }
            !there
        });
    }
}

#[test]
fn a_mailbox_that_is_opened_while_replication_makes_it_is_that_of_the_other_node() {
    for format in Format::ALL {
        let pair = Pair::start(format);
        let [one, two] = &pair.servers;
        let names: Vec<String> = (0..MADE).map(|n| format!("box{n:02}")).collect();
        let mut client = one.imap("alice");
        for name in &names {
            client.ok(&format!("CREATE {name}"));
        }
        two.imap_in("alice", "INBOX").ok("NOOP");
        let done = AtomicBool::new(false);
        let synced = std::thread::scope(|scope| {
            for _ in 0..WATCHERS {
                scope.spawn(|| open_early(two, format, &names, &done));
            }
            // As xidd does it: the mailboxes only.
            let synced = pair.sync(&["-m", ""]);
            done.store(true, Ordering::Relaxed);
            synced
        });
        assert_eq!(synced.code, 0, "{format:?}: {synced:?}");
        let of = |server| names.iter().map(move |name| identity(server, name));
        let made: Vec<_> = of(one).collect();
        assert_eq!(of(two).collect::<Vec<_>>(), made, "{format:?}");
    }
}

#[test]
fn a_mailbox_stays_itself_where_replication_would_make_one_of_that_name() {
    for format in Format::ALL {
        let pair = Pair::start(format);
        for server in &pair.servers {
            server.imap("alice").ok("CREATE box");
            server.append("alice", "box", &message(1));
        }
        let both = || [0, 1].map(|i| identity(&pair.servers[i], "box"));
        let before = both();
        pair.sync(&["-m", ""]);
        assert_eq!(both(), before, "{format:?}");
    }
}

/// UIDVALIDITY and GUID.
fn identity(server: &Dovecot, mailbox: &str) -> String {
    let fields = [
        "mailbox",
        "status",
        "-u",
        "alice",
        "uidvalidity guid",
        mailbox,
    ];
    server.doveadm_ok(&fields)
}

trait DeliverLater {
    fn deliver_later(&self, user: &str);
}

impl DeliverLater for Dovecot {
    /// Delivers without waiting for the UID that nobody agrees on.
    fn deliver_later(&self, user: &str) {
        let mut lmtp = self.lmtp();
        lmtp.start(&[user], &message(1));
        until("the delivery is there", || {
            let mut client = self.imap(user);
            client.cmd("EXAMINE INBOX").exists() == Some(1)
        });
    }
}

#[test]
fn messages_keep_their_xids_in_both_directions_and_all_formats() {
    let formats = [
        [Format::Sdbox, Format::Sdbox],
        [Format::Mdbox, Format::Mdbox],
        [Format::Maildir, Format::Maildir],
        [Format::Sdbox, Format::Maildir],
    ];
    for formats in formats {
        let pair = Pair::of(formats);
        pair.fill(5);
        let first = pair.same("INBOX");
        assert!(
            first
                .iter()
                .all(|m| m.xid.as_ref().is_some_and(|x| x.starts_with("foo-")))
        );
        for n in 6..=9 {
            pair.servers[1].append("alice", "INBOX", &message(n));
        }
        pair.introduce("INBOX");
        pair.sync_ok(&["-f"]);
        let both = pair.same("INBOX");
        assert_eq!(both.len(), 9, "{formats:?}");
        assert_eq!(named(&both[..5]), named(&first));
        assert!(
            both[5..]
                .iter()
                .all(|m| m.xid.as_ref().is_some_and(|x| x.starts_with("bar-")))
        );
        // What is new to a client that knows the first five, on both nodes.
        for server in &pair.servers {
            let mut client = server.imap_in("alice", "INBOX");
            let reply = client.ok("XHXID foo-5");
            let news: Vec<String> = reply
                .untagged("XHXID")
                .iter()
                .map(|line| line.text().trim_start_matches("* XHXID ").trim().to_owned())
                .collect();
            assert_eq!(news, ["bar-1", "bar-2", "bar-3", "bar-4"], "{formats:?}");
            client.ok("XHXID FETCH bar-2,foo-3 (FLAGS)");
            let code = reply.code("XHXID").expect("a state");
            assert!(code.contains("foo-5") && code.contains("bar-4"), "{code}");
        }
        // Our own go on above all that is there.
        pair.servers[0].append("alice", "INBOX", &message(10));
        let last = messages(&pair.servers[0], "INBOX").pop().expect("one");
        assert_eq!(last.xid.as_deref(), Some("foo-6"));
    }
}

#[test]
fn while_xids_are_not_known_replication_is_refused_and_brings_nothing() {
    for (format, unknown) in [
        (Format::Sdbox, Unknown::Error),
        (Format::Mdbox, Unknown::Error),
        (Format::Maildir, Unknown::Error),
        (Format::Sdbox, Unknown::Silence),
    ] {
        let pair = Pair::start(format);
        pair.servers[0].append("alice", "INBOX", &message(1));
        pair.servers[1].imap_in("alice", "INBOX").ok("NOOP");
        pair.servers[1].allow_log("replication refused");
        pair.servers[1].allow_log("Save commit failed");
        pair.servers[1].allow_log("not known yet");
        pair.daemons[1].says_of_others(unknown);
        assert_ne!(pair.sync(&[]).code, 0, "{format:?}");
        assert!(messages(&pair.servers[1], "INBOX").is_empty());
        pair.introduce("INBOX");
        pair.sync_ok(&["-f"]);
        assert_eq!(pair.same("INBOX").len(), 1, "{format:?}");
    }
}

#[test]
fn without_a_daemon_replication_is_refused() {
    let names = ["foo", "bar"];
    let servers = [0, 1].map(|i| server(names[i], Format::Sdbox).start());
    let first = Daemon::start(&servers[0]);
    servers[0].append("alice", "INBOX", &message(1));
    servers[1].allow_log("replication refused");
    servers[1].allow_log("Save commit failed");
    let pair = Pair {
        daemons: [first, Daemon::start(&servers[0])],
        servers,
    };
    assert_ne!(pair.sync(&[]).code, 0);
    assert!(messages(&pair.servers[1], "INBOX").is_empty());
}

#[test]
fn a_message_from_a_node_without_the_plug_in_gets_a_new_xid() {
    let pair = Pair::start(Format::Sdbox);
    pair.servers[0].append("alice", "INBOX", &message(1));
    pair.daemons[1].says_of_others(Unknown::Nobody);
    pair.sync_ok(&[]);
    let there = messages(&pair.servers[1], "INBOX");
    assert_eq!(there[0].xid.as_deref(), Some("bar-1"));
    assert_eq!(pair.daemons[1].asked(), [there[0].guid.clone()]);
}

#[test]
fn messages_that_share_a_guid_have_each_its_own_xid_on_all_nodes() {
    for format in [Format::Sdbox, Format::Mdbox] {
        let pair = Pair::start(format);
        // They are from before the cluster, in which a copy gets a GUID of its own.
        pair.servers[0].set_xid("xid_uid_source", "local");
        pair.servers[0].restart();
        pair.servers[0].append("alice", "INBOX", &message(1));
        let mut client = pair.servers[0].imap_in("alice", "INBOX");
        client.ok("COPY 1 INBOX");
        client.ok("COPY 1 INBOX");
        drop(client);
        pair.servers[0].set_xid("xid_uid_source", "cluster");
        pair.servers[0].restart();
        let there = messages(&pair.servers[0], "INBOX");
        assert_eq!(there[0].guid, there[2].guid, "{format:?}");
        pair.introduce("INBOX");
        pair.sync_ok(&[]);
        assert_eq!(pair.same("INBOX").len(), 3, "{format:?}");
    }
}

/// The nodes promise nothing: UIDs may change.
fn release(pair: &Pair) {
    for server in &pair.servers {
        moving(server, &["release", "0", "0"]);
    }
}

#[test]
fn a_message_that_moved_elsewhere_keeps_its_xid_where_replication_copies_it() {
    for format in Format::ALL {
        // What the nodes published may be older than the move.
        for told in [true, false] {
            let pair = Pair::start(format);
            pair.fill(3);
            let before = pair.same("INBOX");
            let hex = inbox_hex(&pair.servers[0]);
            let xid = |command: &str, what: &str| {
                let words = ["xid", command, "-u", "alice", &hex, "INBOX", what, "0"];
                pair.servers[0].doveadm_ok(&words);
            };
            release(&pair);
            xid("raise", "10");
            xid("drop", "1:3");
            if told {
                pair.introduce("INBOX");
            }
            pair.sync_ok(&["-f"]);
            let after = pair.same("INBOX");
            let uids: Vec<u32> = after.iter().map(|m| m.uid).collect();
            assert_eq!(uids, [11, 12, 13], "{format:?}");
            for (moved, message) in after.iter().zip(&before) {
                assert_eq!(moved.xid, message.xid, "{format:?} {told}");
                assert_eq!(moved.guid, message.guid, "{format:?} {told}");
            }
        }
    }
}

#[test]
fn a_lost_disk_never_gives_its_numbers_again() {
    for format in Format::ALL {
        let pair = Pair::start(format);
        pair.fill(3);
        let before = pair.same("INBOX");
        pair.servers[0].stop();
        std::fs::remove_dir_all(pair.servers[0].mail_dir("alice")).expect("a disk is lost");
        pair.servers[0].start_again();
        pair.introduce("INBOX");
        pair.sync_ok(&["-f"]);
        assert_eq!(named(&pair.same("INBOX")), named(&before), "{format:?}");
        // Also where none of them has come back.
        pair.servers[0].imap("alice").ok("CREATE other");
        pair.servers[0].append("alice", "other", &message(4));
        let new = messages(&pair.servers[0], "other");
        let number = number(&new[0]);
        assert!(number >= 1 << 40, "{number}");
    }
}

#[test]
fn a_new_disk_begins_with_numbers_that_no_other_gave() {
    let server = server("foo", Format::Sdbox).start();
    let daemon = Daemon::start(&server);
    server.append("alice", "INBOX", &message(1));
    daemon.disk(2);
    server.append("alice", "INBOX", &message(2));
    server.append("bob", "INBOX", &message(3));
    let of_alice = messages(&server, "INBOX");
    let xids: Vec<&str> = of_alice.iter().filter_map(|m| m.xid.as_deref()).collect();
    assert_eq!(xids, ["foo-1", "foo-2"], "what was begun goes on");
    let mut client = server.imap_in("bob", "INBOX");
    let reply = client.ok("FETCH 1 (XID)");
    let xid = reply.fetches()[0].xid().expect("an XID");
    let (_, number) = xid.split_once('-').expect("a number");
    let number: u64 = number.parse().expect("a number");
    assert_eq!(number >> 50, 2, "{xid}");
}

#[test]
fn messages_without_xid_get_the_one_that_another_node_gave_them() {
    for format in Format::ALL {
        let pair = Pair::start(format);
        pair.servers[0].append("alice", "INBOX", &message(1));
        pair.servers[0].append("alice", "INBOX", &message(2));
        // The second node has the same messages from before it had the plug-in.
        pair.servers[1].stop();
        pair.servers[1].set_plugin(false);
        pair.servers[1].start_again();
        pair.sync_ok(&[]);
        pair.servers[1].stop();
        pair.servers[1].set_plugin(true);
        pair.servers[1].start_again();
        // stock makes an INBOX of its own only where it was not made by replication
        pair.daemons[1].says_of_others(Unknown::Error);
        pair.servers[1].allow_log("has no XID although the mailbox was synced");
        let unknown = messages(&pair.servers[1], "INBOX");
        assert_eq!(unknown[0].xid, None, "{format:?}");
        let there = messages(&pair.servers[0], "INBOX");
        pair.daemons[1].knows(&there);
        assert_eq!(pair.same("INBOX").len(), 2, "{format:?}");
    }
}

fn inbox_hex(server: &Dovecot) -> String {
    let mailbox = server.doveadm_ok(&["mailbox", "status", "-u", "alice", "guid", "INBOX"]);
    let (_, hex) = mailbox.trim().rsplit_once('=').expect("a GUID");
    hex.to_owned()
}

#[test]
fn who_answers_another_node_does_not_ask_it_back() {
    let server = server("foo", Format::Maildir).start();
    let daemon = Daemon::start(&server);
    server.append("alice", "INBOX", &message(1));
    let hex = inbox_hex(&server);
    let dropped = server.mail_dir("alice").join("new/1795480000.dropped.in");
    std::fs::write(&dropped, message(2)).expect("a file");
    let (uid, gid) = server.mail_owner();
    std::os::unix::fs::chown(&dropped, Some(uid), Some(gid)).expect("root may");

    let ask = [
        "xid",
        "xids",
        "-u",
        "alice",
        &hex,
        "INBOX",
        "1795480000.dropped.in",
    ];
    // It does not say that nobody has the message, either.
    let unnamed = "{\"xids\":{},\"unnamed\":[\"1795480000.dropped.in\"]}";
    assert_eq!(server.doveadm_ok(&ask).trim(), unnamed);
    assert!(daemon.asked().is_empty(), "{:?}", daemon.asked());
    let look = ["xid", "look", "-u", "alice", &hex, "INBOX", "0"];
    assert!(server.doveadm_ok(&look).contains("foo-2"));
    assert_eq!(daemon.asked(), ["1795480000.dropped.in"]);
    assert!(server.doveadm_ok(&ask).contains("foo-2"));
}

#[test]
fn what_came_while_the_plug_in_was_off_is_not_stable() {
    for format in Format::ALL {
        let server = server("foo", format).start();
        let _daemon = Daemon::start(&server);
        server.append("alice", "INBOX", &message(1));
        advance(&server, "alice", "INBOX", 1);
        for reboot in [false, true] {
            server.stop();
            server.set_plugin(false);
            server.start_again();
            server.append("alice", "INBOX", &message(2));
            server.stop();
            server.set_plugin(true);
            if reboot {
                std::fs::remove_file(server.mail_dir("alice").join("xid.table")).expect("a table");
            }
            server.start_again();
            let mut client = server.imap("alice");
            let selected = client.ok("SELECT INBOX");
            let next = selected.untagged_code("UIDNEXT");
            assert_eq!(next.as_deref(), Some("2"), "{format:?}");
            let state = crate::assign::inbox_state(&server);
            assert_eq!(state.watermark, 1, "{format:?}");
            assert!(state.pending >= 1, "{format:?}");
        }
    }
}

/// Survivors of a node that is dropped move what is not stable, each by itself, and replication
/// may run before all of them did.
#[test]
fn what_one_node_moved_is_the_same_where_it_was_not_moved_yet() {
    for (format, dropped) in [
        (Format::Sdbox, false),
        (Format::Sdbox, true),
        (Format::Maildir, false),
    ] {
        let pair = Pair::start(format);
        pair.fill(4);
        let before = named(&pair.same("INBOX"));
        release(&pair);
        let raise = |i: usize| moving(&pair.servers[i], &["raise", "100", "0"]);
        raise(0);
        if dropped {
            moving(&pair.servers[0], &["drop", "1:4", "0"]);
        }
        pair.introduce("INBOX");
        pair.sync_ok(&["-f"]);
        raise(1);
        moving(&pair.servers[1], &["drop", "1:4", "0"]);
        let xids = |messages: &[(u32, String, Option<String>)]| {
            let mut xids: Vec<_> = messages.iter().map(|(_, _, xid)| xid.clone()).collect();
            xids.sort();
            xids
        };
        let there = named(&messages(&pair.servers[1], "INBOX"));
        assert_eq!(
            xids(&there),
            xids(&before),
            "{format:?}, dropped: {dropped}"
        );
    }
}

/// `doveadm xid` on alice's INBOX.
pub fn moving(server: &Dovecot, command: &[&str]) {
    let mailbox = server.doveadm_ok(&["mailbox", "status", "-u", "alice", "guid", "INBOX"]);
    let (_, hex) = mailbox.trim().rsplit_once('=').expect("a GUID");
    let (name, args) = command.split_first().expect("a command");
    let mut words = vec!["xid", name, "-u", "alice", hex, "INBOX"];
    words.extend(args);
    server.doveadm_ok(&words);
}
