//! Daemons, replication and whole nodes that are killed while two clients write.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::harness::cluster::Cluster;
use crate::harness::until;
use crate::workload::{USER, at_once, conclude, meanwhile, write_by_turns};
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

/// Whether a sync of a mailbox is under way on a node: it holds this lock, which every other needs.
fn is_locked(cluster: &Cluster, node: usize) -> bool {
    let held = |folder: &Path| folder.join(".dovecot-box-sync.lock").exists();
    let mut folders = vec![cluster.node(node).mail_dir(USER)];
    while let Some(folder) = folders.pop() {
        if held(&folder) {
            return true;
        }
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        folders.extend(
            entries
                .map(|entry| entry.path())
                .filter(|path| path.is_dir()),
        );
    }
    false
}

/// Stops node 1 in the middle of a sync that it leads, so that node 2 waits for it, locked.
fn stopped_in_a_sync(cluster: &Cluster) -> bool {
    /// One that goes on by itself does not take so long.
    const ENOUGH: Duration = Duration::from_secs(1);
    if !is_locked(cluster, 1) || !is_locked(cluster, 2) {
        return false;
    }
    cluster.node(1).pause(true);
    let since = Instant::now();
    while is_locked(cluster, 2) {
        if since.elapsed() > ENOUGH {
            return true;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    cluster.node(1).pause(false);
    false
}

/// The node that leads all syncs dies in one. The other end holds the mailbox's lock, and nothing
/// tells it that nobody goes on.
#[test]
fn a_leader_that_loses_its_power_in_a_sync_holds_up_nobody() {
    let cluster = Cluster::setup().nodes(3).start();
    cluster.allow_log("xid: ");
    cluster.allow_log("Fatal: connect(");
    cluster.allow_log("Failed to lock mailbox");
    let all = write_by_turns(observers(&cluster), 0, 6, PAUSE);
    let stop = AtomicBool::new(false);
    let all = std::thread::scope(|scope| {
        let writers = scope.spawn(|| {
            at_once(all, |index, observer| {
                for n in (1..).take_while(|_| !stop.load(Ordering::Acquire)) {
                    let _ = observer.append(1000 * (index + 1) + n);
                }
            })
        });
        until("node 1 to stop in the middle of a sync", || {
            stopped_in_a_sync(&cluster)
        });
        stop.store(true, Ordering::Release);
        cluster.power_off(1);
        writers.join().expect("the writers")
    });
    let mut observers = at_once(all, |index, observer| {
        if index > 0 {
            observer.append(10_000 * (index + 1)).expect("an append");
            until("UIDs for all messages", || observer.look().is_ok());
        }
    });
    cluster.power_on(1);
    judge("a leader's power lost", &conclude(&mut observers), 6 + 2);
}
