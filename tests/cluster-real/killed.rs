//! Daemons, replication and whole nodes that are killed while two clients write.

use std::time::Duration;

use crate::harness::cluster::Cluster;
use crate::workload::{at_once, conclude, meanwhile, write_by_turns};
use crate::{PAUSE, judge, observers};

const MESSAGES: usize = 60;

/// Writes by turns on all nodes, while `fault` is done again and again with a counter.
fn written_while(what: &str, nodes: usize, fault: impl Fn(&Cluster, usize) + Sync) {
    let cluster = Cluster::setup().nodes(nodes).start();
    let round = std::sync::atomic::AtomicUsize::new(0);
    let observers = meanwhile(
        || {
            fault(
                &cluster,
                round.fetch_add(1, std::sync::atomic::Ordering::Relaxed),
            )
        },
        || write_by_turns(observers(&cluster), 0, MESSAGES, PAUSE),
    );
    cluster.heal();
    let mut observers = observers;
    judge(what, &conclude(&mut observers), MESSAGES);
}

#[test]
fn replication_killed_again_and_again_changes_no_uid() {
    written_while("dsync killed", 2, |cluster, round| {
        cluster.kill_dsync(1 + round % 2);
        std::thread::sleep(Duration::from_millis(70));
    });
}

#[test]
fn xidd_killed_again_and_again_changes_no_uid() {
    written_while("xidd killed", 2, |cluster, round| {
        let node = 1 + round % 2;
        cluster.kill_xidd(node);
        std::thread::sleep(Duration::from_millis(200));
        cluster.start_xidd(node);
        std::thread::sleep(Duration::from_millis(800));
    });
}

#[test]
fn a_node_that_loses_its_power_comes_back_with_all_that_it_acknowledged() {
    let cluster = Cluster::setup().nodes(3).start();
    let observers = write_by_turns(observers(&cluster), 0, 12, PAUSE);
    cluster.power_off(3);
    let survivors = at_once(observers, |index, observer| {
        for n in 1..=10 {
            // The client of the dead node has nobody to talk to.
            let _ = observer.append(1000 * (index + 1) + n);
            let _ = observer.look();
        }
    });
    cluster.power_on(3);
    let mut observers = write_by_turns(survivors, 5000, 12, PAUSE);
    judge("power lost", &conclude(&mut observers), 12 + 20 + 8);
}
