//! What an operator's monitoring sees of a cluster to which things happen.

use crate::harness::cluster::Cluster;
use crate::harness::{message, until};
use crate::workload::USER;

/// The value of a counter or gauge, by its name in the text of a scrape.
fn value(text: &str, name: &str) -> f64 {
    let mut lines = text.lines().filter_map(|line| line.split_once(' '));
    let found = lines.find(|(key, _)| *key == name);
    let (_, number) = found.unwrap_or_else(|| panic!("no {name} in\n{text}"));
    number.parse().expect("a number")
}

/// The same, over all nodes.
pub fn total(cluster: &Cluster, name: &str) -> f64 {
    let texts = (1..=cluster.nodes()).map(|node| cluster.metrics(node));
    texts.map(|text| value(&text, name)).sum()
}

/// Waits until no sync ends for a while: none is under way that the daemons began before.
pub fn quiet(cluster: &Cluster) {
    until("the syncs to end", || {
        let before = total(cluster, "xidd_syncs_total");
        std::thread::sleep(std::time::Duration::from_secs(2));
        total(cluster, "xidd_syncs_total") == before
    });
}

/// Waits until all of these are above zero on some node.
fn wait_moved(cluster: &Cluster, names: &[&str]) {
    for name in names {
        until(&format!("{name} to move"), || total(cluster, name) > 0.0);
    }
}

/// Waits until nothing waits on this node.
fn wait_settled(cluster: &Cluster, node: usize) {
    until(&format!("node {node} to have nothing pending"), || {
        let text = cluster.metrics(node);
        value(&text, "xidd_pending_uids") == 0.0 && value(&text, "xidd_lag_seconds") == 0.0
    });
}

fn append(cluster: &Cluster, node: usize, number: usize) {
    cluster.node(node).append(USER, "INBOX", &message(number));
}

/// Both nodes write at once until replication was refused, and the daemons settled it.
fn collide(cluster: &Cluster, number: &mut usize) {
    let refusals = "xidd_interlock_refusals_total";
    until("a sync that is refused, and gates", || {
        *number += 10;
        std::thread::scope(|scope| {
            for node in [1, 2] {
                let from = *number + 5 * (node - 1);
                scope.spawn(move || (from..from + 5).for_each(|n| append(cluster, node, n)));
            }
        });
        let moved = |name| total(cluster, name) > 0.0;
        [refusals, "xidd_gates_total", "xidd_withdrawals_total"]
            .into_iter()
            .all(moved)
    });
}

#[test]
fn every_counter_that_an_operator_watches_moves_when_it_should() {
    let cluster = Cluster::setup().nodes(3).start();
    // Replication and requests to a Dovecot that is down fail, and say so.
    cluster.allow_log("Error: ");
    cluster.allow_log("Fatal: ");
    for node in 1..=3 {
        cluster.node(node).imap_in(USER, "INBOX");
        until("it to be in, with all others", || {
            let text = cluster.metrics(node);
            value(&text, "xidd_member") == 1.0 && value(&text, "xidd_alive_nodes") == 3.0
        });
    }
    // A client that stays: its process is what is connected to the daemon.
    let mut client = cluster.node(1).imap_in(USER, "INBOX");
    client.append("INBOX", &message(1));
    wait_moved(
        &cluster,
        &[
            "xidd_events_total",
            "xidd_publications_total",
            "xidd_advances_total",
            "xidd_syncs_total",
            "xidd_sync_seconds_count",
            "xidd_delay_seconds_count",
            "xidd_connections",
        ],
    );
    drop(client);
    wait_settled(&cluster, 1);

    // One that is silent keeps the others waiting, until they go on without it.
    assert_eq!(total(&cluster, "xidd_evictions_total"), 0.0);
    cluster.pause_xidd(3, true);
    append(&cluster, 1, 2);
    until("a UID that waits", || {
        let text = cluster.metrics(1);
        value(&text, "xidd_pending_uids") >= 1.0 && value(&text, "xidd_lag_seconds") > 0.5
    });
    wait_settled(&cluster, 1);
    // The paused one does not answer.
    let awake = |name| -> f64 {
        [1, 2]
            .map(|n| value(&cluster.metrics(n), name))
            .iter()
            .sum()
    };
    assert!(awake("xidd_evictions_total") > 0.0);
    assert_eq!(value(&cluster.metrics(1), "xidd_alive_nodes"), 2.0);
    cluster.pause_xidd(3, false);
    let joins = awake("xidd_joins_total");
    until("it to join again", || {
        total(&cluster, "xidd_joins_total") > joins
    });
    wait_settled(&cluster, 3);

    cluster.net.isolate(3).expect("the node is cut off");
    until("it to know that it is cut off", || {
        let text = cluster.metrics(3);
        value(&text, "xidd_member") == 0.0 && value(&text, "xidd_etcd_failures_total") > 0.0
    });
    cluster.heal();
    cluster.wait_in();

    cluster.node(2).crash();
    // A daemon that looked a moment ago decides by that look, and asks its host with a later one.
    let mut number = 3;
    until("syncs and requests that fail", || {
        append(&cluster, 1, number);
        number += 1;
        ["xidd_sync_failures_total", "xidd_host_failures_total"]
            .into_iter()
            .all(|name| total(&cluster, name) > 0.0)
    });
    cluster.node(2).start_again();
    wait_settled(&cluster, 1);
    collide(&cluster, &mut (number + 100));
    (1..=3).for_each(|node| wait_settled(&cluster, node));
}
