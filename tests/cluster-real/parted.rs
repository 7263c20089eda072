//! Partitions with writes on both sides, and what comes of them when they end.

use std::time::Duration;

use crate::harness::Format;
use crate::harness::cluster::Cluster;
use crate::workload::{Observer, at_once, conclude, write_by_turns};
use crate::{PAUSE, judge, observers};

/// Messages before, during (on each side) and after the partition.
const BEFORE: usize = 12;
const DURING: usize = 20;
const AFTER: usize = 12;
/// Longer than the lease: the others go on without the node that is cut off.
const PAST_THE_LEASE: Duration = Duration::from_secs(5);

/// Everybody writes, without a look: a node that is cut off shows no new UID.
fn write_apart(observers: Vec<Observer<'_>>) -> Vec<Observer<'_>> {
    at_once(observers, |index, observer| {
        for n in 1..=DURING {
            let _ = observer.append(1000 * (index + 1) + n);
            std::thread::sleep(PAUSE);
        }
    })
}

/// Node 1 is cut off from the others for `long`; all write.
fn parted(nodes: usize, format: Format, long: Duration, on_heal: impl Fn(&Cluster) + Sync) {
    let cluster = Cluster::setup().nodes(nodes).format(format).start();
    let observers = write_by_turns(observers(&cluster), 0, BEFORE, PAUSE);
    cluster.net.isolate(1).expect("a partition");
    let observers = write_apart(observers);
    std::thread::sleep(long);
    cluster.heal();
    on_heal(&cluster);
    let mut observers = write_by_turns(observers, 5000, AFTER, PAUSE);
    let what = format!("parted {long:?}, {nodes} nodes, {}", format.name());
    let at_least = BEFORE + nodes * DURING + AFTER;
    judge(&what, &conclude(&mut observers), at_least);
}

#[test]
fn a_short_partition_with_writes_on_both_sides_changes_no_uid() {
    parted(3, Format::Sdbox, Duration::ZERO, |_| ());
}

#[test]
fn a_node_that_was_dropped_comes_back_without_changing_a_uid() {
    parted(3, Format::Sdbox, PAST_THE_LEASE, |_| ());
}

#[test]
fn a_maildir_node_that_was_dropped_comes_back_and_doubles_nothing() {
    parted(3, Format::Maildir, PAST_THE_LEASE, |_| ());
}

#[test]
fn replication_that_is_killed_while_it_heals_changes_no_uid() {
    parted(3, Format::Sdbox, PAST_THE_LEASE, |cluster| {
        for round in 0..20 {
            cluster.kill_dsync(1 + round % cluster.nodes());
            std::thread::sleep(Duration::from_millis(100));
        }
    });
}
