//! What is stable or promised stays, whatever replication wants; UIDs go as far as there is room.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use imap_xid::table::{Mailbox, Table};

use crate::assign::{Assigner, advance, guid};
use crate::daemon::Daemon;
use crate::events::clustered;
use crate::harness::*;
use crate::pair::{Pair, messages, named, server};

/// alice's INBOX in the table, as the daemon's side uses it.
pub fn slot(server: &Dovecot) -> Mailbox {
    slot_of(server, "INBOX")
}

/// Another mailbox of hers.
pub fn slot_of(server: &Dovecot, mailbox: &str) -> Mailbox {
    let table = std::sync::Arc::new(Table::open(&server.mail_dir("alice")).expect("a table").0);
    let found = table.find(&guid(server, "alice", mailbox));
    found.expect("a table").expect("it was opened")
}

/// Both nodes hold the same message, and then each gets one of its own: the same UID twice.
fn in_conflict(format: Format) -> Pair {
    let pair = Pair::start(format);
    pair.servers[0].append("alice", "INBOX", &message(1));
    pair.introduce("INBOX");
    pair.sync_ok(&[]);
    pair.servers[0].append("alice", "INBOX", &message(2));
    pair.servers[1].append("alice", "INBOX", &message(3));
    pair.introduce("INBOX");
    for server in &pair.servers {
        server.allow_log("xid: interlock");
        server.allow_log("commit failed");
        server.allow_log("Change during sync");
    }
    pair
}

fn refusals(server: &Dovecot) -> u64 {
    let table = Table::open(&server.mail_dir("alice")).expect("a table").0;
    table.counts().refusals
}

#[test]
fn what_is_promised_is_not_renumbered_and_what_is_not_may_be() {
    for format in Format::ALL {
        let pair = in_conflict(format);
        let before = [0, 1].map(|i| named(&messages(&pair.servers[i], "INBOX")));
        // Since the table was made everything counts as promised.
        for _ in 0..2 {
            assert_ne!(pair.sync(&["-f"]).code, 0, "{format:?}");
        }
        for i in [0, 1] {
            let now = named(&messages(&pair.servers[i], "INBOX"));
            let kept = before[i].iter().all(|message| now.contains(message));
            assert!(kept, "{format:?}: {before:?} became {now:?}");
        }
        assert!(refusals(&pair.servers[0]) + refusals(&pair.servers[1]) >= 1);

        for server in &pair.servers {
            slot(server).promise(1).expect("a promise");
        }
        until("the conflict is settled", || {
            pair.introduce("INBOX");
            let [one, other] = [0, 1].map(|i| messages(&pair.servers[i], "INBOX"));
            pair.sync(&["-f"]).code == 0 && named(&one) == named(&other) && one.len() == 3
        });
        let both = pair.same("INBOX");
        let xids: Vec<&str> = both.iter().filter_map(|m| m.xid.as_deref()).collect();
        let mut sorted = xids.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, ["bar-1", "foo-1", "foo-2"], "{format:?}");
    }
}

#[test]
fn what_is_stable_is_not_renumbered() {
    for format in Format::ALL {
        let pair = in_conflict(format);
        for server in &pair.servers {
            slot(server).promise(1).expect("a promise");
        }
        advance(&pair.servers[0], "alice", "INBOX", 2);
        let before = pair.servers[0].messages("alice", "INBOX");
        for _ in 0..3 {
            pair.introduce("INBOX");
            pair.sync(&["-f"]);
        }
        let stable = messages(&pair.servers[0], "INBOX");
        assert_eq!(named(&stable[..2]), named(&before), "{format:?}");
        assert!(refusals(&pair.servers[0]) >= 1, "{format:?}");
    }
}

/// A server whose replication soon forgets what was expunged: its index has no log to speak of.
fn forgetful(namespace: &str, format: Format) -> Setup {
    let sizes = [
        "rewrite_min_log_bytes",
        "rewrite_max_log_bytes",
        "log_rotate_min_size",
    ];
    let sizes = sizes
        .map(|name| format!("mail_index_{name} = 1\n"))
        .concat();
    let ages = "mail_index_log_rotate_min_age = 0\nmail_index_log2_max_age = 0\n";
    server(namespace, format).conf(&format!("{sizes}{ages}mail_index_log_rotate_max_size = 1"))
}

/// Both nodes hold four messages, all of them stable; the first one's client expunges the last.
fn expunged_on_one(format: Format) -> Pair {
    let names = ["foo", "bar"];
    let pair = Pair::of_servers(names.map(|name| forgetful(name, format).start()));
    pair.fill(4);
    pair.introduce("INBOX");
    for server in &pair.servers {
        slot(server).promise(4).expect("a promise");
        advance(server, "alice", "INBOX", 4);
        server.allow_log("xid: interlock");
        server.allow_log("commit failed");
    }
    let mut client = pair.servers[0].imap_in("alice", "INBOX");
    client.ok("STORE 4 +FLAGS.SILENT (\\Deleted)");
    client.ok("EXPUNGE");
    // Until the log that says so is gone.
    for n in 1..=40 {
        let flag = ["+", "-"][n % 2];
        client.ok(&format!("STORE 1 {flag}FLAGS.SILENT (\\Flagged)"));
        client.ok("NOOP");
    }
    pair
}

#[test]
fn what_was_stable_and_expunged_does_not_stay_under_another_uid() {
    for format in Format::ALL {
        let pair = expunged_on_one(format);
        let before = named(&messages(&pair.servers[0], "INBOX"));
        for _ in 0..2 {
            let output = pair.sync(&["-f"]);
            let mut now = Vec::new();
            until("it to be gone again", || {
                now = named(&messages(&pair.servers[0], "INBOX"));
                now == before
            });
            let why = "what was expunged here as UID 4 comes back";
            assert!(output.stderr.contains(why), "{format:?}: {output:?}");
        }
        // Who joins takes what the others have.
        slot(&pair.servers[0]).promise(u32::MAX).expect("a promise");
        pair.sync(&["-f"]);
        let now = named(&messages(&pair.servers[0], "INBOX"));
        assert_eq!(now.len(), 4, "{format:?}: {now:?}");
    }
}

#[test]
fn replication_stops_at_the_bound() {
    for format in Format::ALL {
        let pair = Pair::start(format);
        pair.servers[1].imap_in("alice", "INBOX").ok("NOOP");
        slot(&pair.servers[1]).set_limits(1, 2).expect("limits");
        for n in 1..=3 {
            pair.servers[0].append("alice", "INBOX", &message(n));
        }
        pair.introduce("INBOX");
        pair.servers[1].allow_log("xid: interlock");
        pair.servers[1].allow_log("commit failed");
        assert_ne!(pair.sync(&[]).code, 0, "{format:?}");
        let there = messages(&pair.servers[1], "INBOX");
        assert!(there.iter().all(|m| m.uid <= 2), "{format:?}");
        slot(&pair.servers[1]).set_limits(1, 3).expect("limits");
        pair.sync_ok(&["-f"]);
        assert_eq!(pair.same("INBOX").len(), 3, "{format:?}");
    }
}

#[test]
fn new_messages_wait_for_room_and_then_fail_for_now() {
    for format in Format::ALL {
        let server = clustered()
            .format(format)
            .xid("xid_uid_wait", "100s")
            .start();
        let daemon = Daemon::start(&server);
        server.append("alice", "INBOX", &message(1));
        slot(&server).set_limits(2, 8).expect("limits");
        server.append("alice", "INBOX", &message(2));
        daemon.forget();
        let mut client = server.imap("alice");
        std::thread::scope(|scope| {
            let appending = scope.spawn(|| client.append("INBOX", &message(3)));
            daemon.wait_event("the APPEND waits", |e| e.kind == 'w');
            assert_eq!(messages(&server, "INBOX").len(), 2, "{format:?}");
            assert!(!appending.is_finished());
            slot(&server).set_limits(3, 8).expect("limits");
            appending.join().expect("it ends");
        });
        assert_eq!(messages(&server, "INBOX").len(), 3, "{format:?}");

        server.set_xid("xid_uid_wait", "1s");
        server.restart();
        let mut client = server.imap("alice");
        let text = String::from_utf8(message(4)).expect("text");
        let literal = text.into_bytes();
        let reply = client.cmd_parts(&[Part::Text("APPEND INBOX "), Part::Literal(&literal)]);
        assert!(reply.text.contains("[UNAVAILABLE]"), "{}", reply.text);
        // A full mailbox is this mailbox's business alone.
        client.ok("CREATE other");
        client.append("other", &message(5));
        assert_eq!(messages(&server, "INBOX").len(), 3, "{format:?}");
    }
}

#[test]
fn replication_passes_a_closed_gate_and_others_wait() {
    for format in Format::ALL {
        let pair = Pair::start(format);
        pair.servers[0].append("alice", "INBOX", &message(1));
        pair.servers[1].imap_in("alice", "INBOX").ok("NOOP");
        pair.introduce("INBOX");
        let table = Assigner::open(&pair.servers[1], "alice");
        let inbox = guid(&pair.servers[1], "alice", "INBOX");
        table.gate(&inbox, Duration::from_secs(300).as_millis() as u64);
        pair.sync_ok(&[]);
        let mut client = pair.servers[1].imap("alice");
        std::thread::scope(|scope| {
            let appending = scope.spawn(|| client.append("INBOX", &message(2)));
            until("the APPEND is at the gate", || {
                let table = Table::open(&pair.servers[1].mail_dir("alice"));
                table.expect("a table").0.counts().gate_waits >= 1
            });
            assert_eq!(messages(&pair.servers[1], "INBOX").len(), 1);
            assert!(!appending.is_finished());
            table.gate(&inbox, 0);
            appending.join().expect("it ends");
        });
    }
}

#[test]
fn a_table_says_nothing_of_promises_but_what_is_stable_stays() {
    let names = ["foo", "bar"];
    let servers = [0, 1].map(|i| {
        crate::pair::server(names[i], Format::Sdbox)
            .xid("xid_uid_source", "table")
            .start()
    });
    let daemons = [0, 1].map(|i| Daemon::start(&servers[i]));
    let pair = Pair { daemons, servers };
    pair.servers[0].append("alice", "INBOX", &message(1));
    pair.sync_ok(&[]);
    let watermark = slot(&pair.servers[1]).watermark();
    assert!(watermark <= 1);
    pair.servers[0].append("alice", "INBOX", &message(2));
    pair.servers[1].append("alice", "INBOX", &message(3));
    for _ in 0..3 {
        pair.sync(&["-f"]);
    }
    let [one, other] = [0, 1].map(|i| messages(&pair.servers[i], "INBOX"));
    let uids = |list: &[Message]| list.iter().map(|m| m.uid).collect::<Vec<_>>();
    assert_eq!(uids(&one), uids(&other));
    assert_eq!(one.len(), 3);
}

/// Messages that each writer adds while a sync runs all the time.
const RACING: usize = 30;

#[test]
fn messages_that_come_during_a_sync_are_not_doubled() {
    for format in Format::ALL {
        let pair = Pair::start(format);
        for server in &pair.servers {
            server.append("alice", "INBOX", &message(0));
            for expected in ["commit failed", "interlock", "Change during sync"] {
                server.allow_log(expected);
            }
            slot(server).promise(0).expect("a promise");
        }
        std::thread::scope(|scope| {
            let writers: Vec<_> = [0, 1]
                .map(|i| {
                    let server = &pair.servers[i];
                    scope.spawn(move || {
                        let mut client = server.imap("alice");
                        for n in 1..=RACING {
                            client.append("INBOX", &message(1000 * i + n));
                        }
                    })
                })
                .into();
            while !writers.iter().all(|writer| writer.is_finished()) {
                pair.sync(&["-f"]);
            }
        });
        let mut both = Vec::new();
        until("both sides are the same", || {
            pair.sync(&["-f"]);
            both = [0, 1]
                .map(|i| guids(&messages(&pair.servers[i], "INBOX")))
                .to_vec();
            both[0] == both[1]
        });
        let there = both[0].len();
        both[0].dedup();
        assert_eq!(both[0].len(), there, "{format:?}: messages are doubled");
        assert_eq!(there, 2 * (RACING + 1), "{format:?}");
    }
}

fn guids(messages: &[Message]) -> Vec<String> {
    let mut guids: Vec<String> = messages.iter().map(|m| m.guid.clone()).collect();
    guids.sort();
    guids
}

/// Rounds of promise, look, and withdrawal while both nodes write and sync.
const PROMISES: usize = 15;

#[test]
fn what_was_promised_stays_while_replication_runs() {
    for format in Format::ALL {
        let pair = Pair::start(format);
        for server in &pair.servers {
            server.append("alice", "INBOX", &message(0));
            for expected in ["commit failed", "interlock", "Change during sync"] {
                server.allow_log(expected);
            }
            slot(server).promise(0).expect("a promise");
        }
        let stop = AtomicBool::new(false);
        let kept = std::thread::scope(|scope| {
            for server in &pair.servers {
                let stop = &stop;
                scope.spawn(move || {
                    let mut client = server.imap("alice");
                    for n in 1.. {
                        if stop.load(Ordering::SeqCst) {
                            break;
                        }
                        client.append("INBOX", &message(n));
                        std::thread::sleep(Duration::from_millis(30));
                    }
                });
            }
            scope.spawn(|| {
                while !stop.load(Ordering::SeqCst) {
                    pair.sync(&["-f"]);
                }
            });
            // Where a promise is broken the others end as well.
            let _ending = Ending(&stop);
            promises_are_kept(&pair.servers[0], &pair.servers[1])
        });
        assert!(kept > PROMISES, "{format:?}: {kept} messages were promised");
        // A commit that is refused late leaves the storage as it was; and no message gets the name of
        // one that a maildir's list still has, which processes that read both take for one message.
        for server in &pair.servers {
            let log = server.log();
            for wrong in ["rebuilding indexes", "Duplicate file entry"] {
                assert!(!log.contains(wrong), "{format:?}: {log}");
            }
        }
    }
}

/// Stops the others when it goes.
struct Ending<'a>(&'a AtomicBool);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Promises what there is, lets replication run, and looks whether it is all there still; many
/// times. Gives how many messages were promised.
fn promises_are_kept(server: &Dovecot, peer: &Dovecot) -> usize {
    let mut promised = 0;
    for _ in 0..PROMISES {
        let end = slot(server).last_uid().to_string();
        let before = look(server, "promise", &end);
        promised += before.len();
        // Something that the other side has to be told, and tells.
        peer.append("alice", "INBOX", &message(100_000));
        let after = look(server, "look", "");
        for entry in before {
            assert!(after.contains(&entry), "{entry:?} is gone: {after:?}");
        }
        look(server, "release", "0");
    }
    promised
}

/// Runs `doveadm xid COMMAND [UID]`; gives UID and GUID of what it shows, up to the promise.
fn look(server: &Dovecot, command: &str, uid: &str) -> Vec<(u32, String)> {
    let hex: String = guid(server, "alice", "INBOX")
        .iter()
        .map(|octet| format!("{octet:02x}"))
        .collect();
    let mut words = vec!["xid", command, "-u", "alice", &hex, "INBOX"];
    words.extend((!uid.is_empty()).then_some(uid));
    words.push("0");
    let answer = server.doveadm_ok(&words);
    let number = |text: &str| -> u32 {
        let digits = text.split(|c: char| !c.is_ascii_digit()).next();
        digits.and_then(|d| d.parse().ok()).expect("a number")
    };
    let (_, promised) = answer.split_once("\"promised\":").expect("a mark");
    let promised = number(promised);
    let entries = answer.split("{\"uid\":").skip(1).map(|entry| {
        let (_, rest) = entry.split_once("\"guid\":\"").expect("a GUID");
        let (guid, _) = rest.split_once('"').expect("its end");
        (number(entry), guid.to_owned())
    });
    entries.filter(|(uid, _)| *uid <= promised).collect()
}
