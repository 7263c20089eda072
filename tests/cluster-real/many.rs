//! Many mailboxes of one user with news at once: each is synced by itself, on connections that are
//! kept, and not twice.

use std::time::Instant;

use crate::harness::cluster::Cluster;
use crate::harness::{Imap, message, until};
use crate::metrics::{quiet, total};
use crate::workload::USER;

/// How many mailboxes have news.
const MAILBOXES: usize = 20;
/// Connections to a node's own doveadm service that a daemon has at most: for operations, for
/// syncs, and to learn who owns mail. Each is a process.
const CONNECTIONS: usize = 8 + 8 + 4;

fn name(number: usize) -> String {
    format!("box{number}")
}

/// Waits until every mailbox has so many messages on this node, all of them with stable UIDs.
fn wait_for(cluster: &Cluster, node: usize, messages: u32) {
    let mut client = cluster.node(node).imap(USER);
    for number in 0..MAILBOXES {
        let mailbox = name(number);
        let wanted = format!("MESSAGES {messages} UIDNEXT {}", messages + 1);
        until(&format!("{mailbox} on node {node}: {wanted}"), || {
            let status = client.cmd(&format!("STATUS {mailbox} (MESSAGES UIDNEXT)"));
            let lines = status.untagged("STATUS");
            let said = lines.first().map(|line| line.text().into_owned());
            said.is_some_and(|text| text.contains(&wanted))
        });
    }
}

/// A message to every mailbox, as fast as it goes.
fn write_to_all(client: &mut Imap, number: usize) {
    (0..MAILBOXES).for_each(|mailbox| drop(client.append(&name(mailbox), &message(number))));
}

#[test]
fn news_in_many_mailboxes_of_a_user_are_synced_once_each() {
    let cluster = Cluster::setup().nodes(2).lease("30s").start();
    let mut client = cluster.node(1).imap(USER);
    (0..MAILBOXES).for_each(|number| drop(client.ok(&format!("CREATE {}", name(number)))));
    write_to_all(&mut client, 1);
    for node in [1, 2] {
        wait_for(&cluster, node, 1);
    }
    quiet(&cluster);
    let syncs = total(&cluster, "xidd_syncs_total");
    let began = Instant::now();
    write_to_all(&mut client, 2);
    wait_for(&cluster, 1, 2);
    println!(
        "{MAILBOXES} mailboxes with news: stable after {:?}",
        began.elapsed()
    );
    wait_for(&cluster, 2, 2);
    let syncs = total(&cluster, "xidd_syncs_total") - syncs;
    println!("{syncs} syncs");
    // Where the other node is too slow to say what it has now the same is tried again.
    assert!(
        (1.0..2.0 * MAILBOXES as f64).contains(&syncs),
        "{syncs} syncs of {MAILBOXES} mailboxes"
    );
    for node in [1, 2] {
        let processes = cluster.node(node).pids("doveadm-server").len();
        // What the other node's daemon and replication have here comes to as many again.
        assert!(processes <= 2 * CONNECTIONS, "{processes} on node {node}");
    }
}
