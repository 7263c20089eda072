//! Messages that come, or go, between replication's look at a mailbox and its commit.

use std::collections::BTreeSet;

use crate::broken::{collide, sync_through};
use crate::harness::*;
use crate::interlock::slot;
use crate::pair::{Pair, messages};

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

/// Expunges the messages at these UIDs; gives their GUIDs.
fn expunge(server: &Dovecot, mailbox: &str, uids: &[u32]) -> BTreeSet<String> {
    let mut there = messages(server, mailbox);
    there.retain(|message| uids.contains(&message.uid));
    let set: Vec<String> = uids.iter().map(u32::to_string).collect();
    let set = set.join(",");
    let words = ["expunge", "-u", "alice", "mailbox", mailbox, "uid", &set];
    server.doveadm_ok(&words);
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
                gone.extend(expunge(&pair.servers[*server], &mailbox, uids));
            }
            true
        });
        assert!(!output.stderr.contains("Panic"), "{mailbox}: {output:?}");
        assert!(!gone.is_empty(), "{mailbox}");
        kept.retain(|guid| !gone.contains(guid));
        until("a sync that goes well", || {
            pair.introduce(&mailbox);
            pair.sync(&["-f", "-m", &mailbox]).code == 0
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
