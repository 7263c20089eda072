//! Nodes that all write at once, for a while: on good lines, on lines that lose packets, and far
//! apart.

use std::time::{Duration, Instant};

use crate::harness::Format;
use crate::harness::cluster::{Cluster, ClusterSetup};
use crate::workload::{Observer, at_once, conclude};
use crate::{PAUSE, judge, observers};

/// How long they write in `make test`, and in `make soak`.
const LONG: [Duration; 2] = [Duration::from_secs(5), Duration::from_secs(300)];
/// Every so many messages a client lists the whole mailbox and asks for news.
const LISTED: usize = 10;
/// Of the packets that reach a node.
const LOST_PERCENT: u32 = 5;
/// One way; by chance up to twice that.
const DELAY: Duration = Duration::from_millis(20);

fn long() -> Duration {
    LONG[usize::from(std::env::var_os("IMAP_XID_SOAK").is_some())]
}

/// Message `n`, and its UID; now and then all that there is.
fn write(observer: &mut Observer<'_>, n: usize) {
    // Refused or lost: it was not acknowledged, which is all that counts.
    let _ = observer.append(n);
    let _ = observer.look_newest();
    if n.is_multiple_of(LISTED) {
        let _ = observer.look();
        let _ = observer.ask_news();
    }
}

/// A client on each node writes as fast as it gets to know UIDs, while there is `trouble`.
fn written_at_once(what: &str, setup: ClusterSetup, trouble: impl FnOnce(&Cluster)) {
    let cluster = setup.start();
    let observers = observers(&cluster);
    trouble(&cluster);
    let end = Instant::now() + long();
    let mut observers = at_once(observers, |index, observer| {
        let from = 100_000 * (index + 1);
        for n in (from..).take_while(|_| Instant::now() < end) {
            write(observer, n);
            std::thread::sleep(PAUSE);
        }
    });
    cluster.heal();
    let appends = observers.iter().flat_map(|observer| &observer.append_times);
    let looks = observers.iter().flat_map(|observer| &observer.look_times);
    println!(
        "{what}: longest APPEND {:?}, longest wait for UIDs {:?}",
        appends.max(),
        looks.max()
    );
    judge(what, &conclude(&mut observers), cluster.nodes());
}

#[test]
fn three_nodes_that_all_write_at_once_never_change_a_uid() {
    let setup = Cluster::setup().nodes(3);
    written_at_once("all at once", setup, |_| ());
}

#[test]
fn lines_that_lose_packets_change_no_uid() {
    let setup = Cluster::setup().nodes(3).format(Format::Mdbox);
    written_at_once("packets lost", setup, |cluster| {
        for node in 1..=cluster.nodes() {
            cluster.net.lose(node, LOST_PERCENT).expect("loss");
        }
    });
}

#[test]
fn nodes_that_are_far_apart_and_write_at_once_never_change_a_uid() {
    let setup = Cluster::setup()
        .nodes(3)
        .format(Format::Maildir)
        .delay(DELAY);
    written_at_once("far apart", setup, |cluster| {
        cluster.net.set_delay(DELAY, DELAY);
    });
}
