//! UIDs that changed after a client saw them, messages lost or there twice.

use std::process::{Child, Stdio};
use std::time::Duration;

use crate::harness::Format;
use crate::harness::cluster::Cluster;
use crate::history::{Count, History};
use crate::report::Report;
use crate::stock::Pair;
use crate::workload::{Observer, at_once, beside_lookers, conclude, meanwhile, write_by_turns};

/// Messages of a figure, as in the measurements that ours is compared with.
const MESSAGES: usize = 500;
/// Messages of the heal in which replication is killed.
const MANY: usize = 2000;
/// Between two looks of a client.
const LOOKS: Duration = Duration::from_millis(20);
/// Between two messages, where there is a pause.
const PAUSE: Duration = Duration::from_millis(20);
/// Longer than the lease.
const PAST_THE_LEASE: Duration = Duration::from_secs(5);
/// How often, and how soon after its start, a heal's replication is killed.
const KILLS: u64 = 6;
const KILL_AFTER: Duration = Duration::from_millis(60);

pub fn measure(report: &mut Report) {
    for format in [Format::Sdbox, Format::Maildir] {
        for (name, pause) in [("no_pause", Duration::ZERO), ("pause_20ms", PAUSE)] {
            let figure = format!("alternate_{name}_{}", format.name());
            if report.wants(&figure) {
                let (stock, ours) = (stock_turns(format, pause), our_turns(2, format, pause));
                add(report, &figure, Some(stock), &ours);
            }
        }
        let figure = format!("three_nodes_no_pause_{}", format.name());
        if report.wants(&figure) {
            let ours = our_turns(3, format, Duration::ZERO);
            add(report, &figure, None, &ours);
        }
    }
    if report.wants("partition") {
        let ours = our_partition(MESSAGES, |_| ());
        let stock = stock_partition(MESSAGES, |_| ());
        add(report, "partition", Some(stock), &ours);
    }
    if report.wants("partition_dsync_killed") {
        let ours = our_partition(MANY, kill_ours);
        let stock = stock_partition(MANY, kill_stock);
        add(report, "partition_dsync_killed", Some(stock), &ours);
    }
}

/// Three lines for one run.
fn add(report: &mut Report, figure: &str, stock: Option<Count>, ours: &History) {
    let count = ours.count();
    let detail = format!(
        "{} messages, {} looks; other violations: {}",
        ours.acknowledged(),
        ours.looks(),
        ours.violations().len()
    );
    let mut line = |what: &str, of: fn(&Count) -> usize| {
        let name = format!("{figure}_{what}");
        let stock = stock.as_ref().map(|count| of(count) as f64);
        let ours = of(&count) as f64;
        report.add(&name, stock, ours, "messages", Some(0.0), detail.clone());
    };
    line("changed", |count| count.changed);
    line("lost", |count| count.lost);
    line("duplicated", |count| count.duplicated);
}

/// As the stock figures of old were taken: two writers, each looks after each of its messages.
fn stock_turns(format: Format, pause: Duration) -> Count {
    let pair = Pair::start(format);
    let mut observers = meanwhile(
        || {
            pair.sync(false);
        },
        || write_by_turns(pair.observers(), 0, MESSAGES, pause),
    );
    pair.settle();
    conclude(&mut observers).count()
}

/// The writers never wait for UIDs, as stock's do not: other clients look meanwhile.
fn our_turns(nodes: usize, format: Format, pause: Duration) -> History {
    let cluster = Cluster::setup().nodes(nodes).format(format).start();
    let (writers, lookers) = (clients(&cluster), clients(&cluster));
    let mut all = beside_lookers(writers, lookers, LOOKS, |index, writer| {
        for n in (1..=MESSAGES).filter(|n| n % nodes == index) {
            let _ = writer.append(n);
            std::thread::sleep(pause);
        }
    });
    conclude(&mut all)
}

fn clients(cluster: &Cluster) -> Vec<Observer<'_>> {
    (1..=cluster.nodes())
        .map(|node| Observer::new(cluster.node(node), node, true))
        .collect()
}

/// Node 1 of three is cut off; nodes 1 and 2 take in half of the messages each.
fn our_partition(messages: usize, on_heal: impl Fn(&Cluster)) -> History {
    let cluster = Cluster::setup().nodes(3).start();
    // Replication that was under way to the node that is cut off waits for it to answer.
    cluster.allow_log("failed: Interrupted system call");
    let observers = write_by_turns(clients(&cluster), 0, 12, PAUSE);
    cluster.net.isolate(1).expect("a partition");
    let observers = write_apart(observers, messages / 2);
    std::thread::sleep(PAST_THE_LEASE);
    cluster.heal();
    on_heal(&cluster);
    let mut observers = write_by_turns(observers, 90_000, 12, PAUSE);
    conclude(&mut observers)
}

/// The first two write `each`; they look at the end of it, as far as they can.
fn write_apart(observers: Vec<Observer<'_>>, each: usize) -> Vec<Observer<'_>> {
    at_once(observers, |index, observer| {
        if index > 1 {
            return;
        }
        for n in 1..=each {
            let _ = observer.append(10_000 * (index + 1) + n);
        }
        let _ = observer.look();
    })
}

fn kill_ours(cluster: &Cluster) {
    for round in 0..2 * KILLS {
        std::thread::sleep(KILL_AFTER);
        cluster.kill_dsync(1 + round as usize % cluster.nodes());
    }
}

fn stock_partition(messages: usize, on_heal: impl Fn(&Pair)) -> Count {
    let pair = Pair::start(Format::Sdbox);
    let observers = meanwhile(
        || {
            pair.sync(false);
        },
        || write_by_turns(pair.observers(), 0, 12, PAUSE),
    );
    pair.settle();
    pair.net.partition(&[1], &[2]).expect("a partition");
    let observers = write_apart(observers, messages / 2);
    pair.net.heal().expect("a heal");
    on_heal(&pair);
    pair.settle();
    let mut observers = meanwhile(
        || {
            pair.sync(false);
        },
        || write_by_turns(observers, 90_000, 12, PAUSE),
    );
    pair.settle();
    conclude(&mut observers).count()
}

/// The first syncs of a heal are killed, each a little later than the one before.
fn kill_stock(pair: &Pair) {
    for round in 1..=KILLS {
        let mut child = pair.start_sync();
        std::thread::sleep(KILL_AFTER * u32::try_from(round).unwrap_or(1));
        end(&mut child);
    }
}

fn end(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
}

impl Pair {
    /// A full sync to be killed by the caller.
    fn start_sync(&self) -> Child {
        let mut command = self.sync_command(true);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command.spawn().expect("doveadm")
    }
}
