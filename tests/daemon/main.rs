//! The daemon on real nodes: Dovecot, etcd and xidd on each.

#[path = "../harness/mod.rs"]
mod harness;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use harness::cluster::Cluster;
use harness::{Format, Imap, message, until};

const USER: &str = "alice";

/// What a client on a node sees of INBOX once all of it is stable: UID, GUID and XID.
fn seen(cluster: &Cluster, node: usize) -> Vec<(u32, String, Option<String>)> {
    let messages = cluster.node(node).messages(USER, "INBOX");
    messages
        .into_iter()
        .map(|m| (m.uid, m.guid, m.xid))
        .collect()
}

/// Appends a message and waits until its UID can be used; gives how long the latter took.
fn append_and_use(client: &mut Imap, n: usize) -> Duration {
    assert!(client.append("INBOX", &message(n)).is_ok());
    let began = Instant::now();
    assert!(client.cmd("UID FETCH *:* (UID)").is_ok());
    began.elapsed()
}

#[test]
fn one_writer_s_messages_have_the_same_uids_on_both_nodes() {
    let cluster = Cluster::setup().nodes(2).format(Format::Sdbox).start();
    let mut client = cluster.node(1).imap_in(USER, "INBOX");
    let mut waits: Vec<Duration> = (1..=30).map(|n| append_and_use(&mut client, n)).collect();
    waits.sort();
    println!(
        "APPEND to usable UID: median {:?}, most {:?}",
        waits[15], waits[29]
    );
    until("both nodes to show the same", || {
        let (one, two) = (seen(&cluster, 1), seen(&cluster, 2));
        one.len() == 30 && one == two
    });
    let uids: BTreeSet<u32> = seen(&cluster, 1).into_iter().map(|m| m.0).collect();
    assert_eq!(uids, (1..=30).collect());
}
