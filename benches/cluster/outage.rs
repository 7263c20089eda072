//! A node dies: how long its death keeps the others' clients from new UIDs.

use std::time::{Duration, Instant};

use crate::harness::LIMIT;
use crate::harness::cluster::Cluster;
use crate::report::Report;
use crate::workload::{Observer, write_by_turns};

/// The default of xidd.toml.
const LEASE: Duration = Duration::from_secs(5);
/// How much longer than the lease it may take.
const MORE: f64 = 1.0;

pub fn measure(report: &mut Report) {
    for (name, leads) in [("node_killed", false), ("node_killed_etcd_leader", true)] {
        if report.wants(name) {
            let seconds = uids_again_after(leads);
            let most = LEASE.as_secs_f64() + MORE;
            let detail = format!("lease {LEASE:?}; the node {} etcd's leader", is(leads));
            report.add(name, None, seconds, "s", Some(most), detail);
        }
    }
}

fn is(leads: bool) -> &'static str {
    match leads {
        true => "held",
        false => "did not hold",
    }
}

/// From the kill of one of three nodes to the first UID of a message that was saved on another
/// after it.
fn uids_again_after(leads: bool) -> f64 {
    let lease = format!("{}s", LEASE.as_secs());
    let cluster = Cluster::setup()
        .nodes(3)
        .lease(&lease)
        .xid("xid_uid_wait", "60s")
        .start();
    // Replication that was under way to the dead node waits for it to answer.
    cluster.allow_log("failed: Interrupted system call");
    let clients = (1..=3).map(|node| Observer::new(cluster.node(node), node, true));
    let observers = write_by_turns(clients.collect(), 0, 12, Duration::from_millis(50));
    // Nodes as they are mostly: who came in the last moments has only its lease, which etcd gives its
    // whole time again when it elects a leader.
    std::thread::sleep(LEASE);
    let leader = cluster.etcd.leader().expect("etcd has a leader") + 1;
    let victim = match leads {
        true => leader,
        false => 1 + leader % 3,
    };
    let mut survivor = observers
        .into_iter()
        .find(|observer| observer.node() != victim)
        .expect("two others");
    let start = Instant::now();
    cluster.power_off(victim);
    survivor.append(1000).expect("APPEND on a live node");
    while start.elapsed() < LIMIT {
        // Without a row it got another UID meanwhile, and has to be asked for again.
        if matches!(survivor.look_newest(), Ok(Some(_))) {
            return start.elapsed().as_secs_f64();
        }
    }
    f64::INFINITY
}
