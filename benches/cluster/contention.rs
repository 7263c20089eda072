//! Two nodes that write one mailbox all the time.

use std::time::{Duration, Instant};

use crate::harness::Format;
use crate::harness::cluster::Cluster;
use crate::report::Report;
use crate::rounds::quantile;
use crate::stock::Pair;
use crate::workload::{Observer, at_once, conclude, meanwhile};

/// Messages of each writer in a second.
const RATE: u32 = 20;
const SECONDS: u32 = 60;
/// Between two looks of a client.
const LOOKS: Duration = Duration::from_millis(50);
const APPEND_AT_MOST_MS: f64 = 300.0;
const UID_AT_MOST_S: f64 = 2.0;

pub fn measure(report: &mut Report) {
    if !report.wants("contention") {
        return;
    }
    let cluster = Cluster::setup().nodes(2).start();
    let clients = |node| Observer::new(cluster.node(node), node, true);
    let mut ours = written([1, 2, 1, 2].map(clients).into());
    let history = conclude(&mut ours);
    let pair = Pair::start(Format::Sdbox);
    let clients = |node| Observer::new(pair.server(node), node, false);
    let stock = meanwhile(
        || {
            pair.sync(false);
        },
        || written([1, 2, 1, 2].map(clients).into()),
    );
    let count = history.count();
    let (appends, looks) = (times(&ours[..2], |o| &o.append_times), waits(&ours));
    let detail = format!(
        "{} messages, median {:.1} ms; {count}; violations: {}",
        appends.len(),
        1e3 * quantile(&appends, 0.5),
        history.violations().len()
    );
    report.add(
        "contention_longest_append",
        Some(1e3 * longest(&times(&stock[..2], |o| &o.append_times))),
        1e3 * longest(&appends),
        "ms",
        Some(APPEND_AT_MOST_MS),
        detail,
    );
    let refused: usize = ours.iter().map(|o| o.refusals.len()).sum();
    let detail = format!(
        "{} looks, median {:.0} ms, 99 % within {:.0} ms; {refused} refused",
        looks.len(),
        1e3 * quantile(&looks, 0.5),
        1e3 * quantile(&looks, 0.99)
    );
    report.add(
        "contention_longest_uid_wait",
        Some(longest(&waits(&stock))),
        longest(&looks),
        "s",
        Some(UID_AT_MOST_S),
        detail,
    );
}

fn waits(observers: &[Observer<'_>]) -> Vec<f64> {
    times(&observers[2..], |observer| &observer.look_times)
}

type Times = for<'a, 'b> fn(&'a Observer<'b>) -> &'a [Duration];

fn times(observers: &[Observer<'_>], of: Times) -> Vec<f64> {
    let all = observers.iter().flat_map(|observer| of(observer));
    all.map(Duration::as_secs_f64).collect()
}

fn longest(times: &[f64]) -> f64 {
    times.iter().copied().fold(0.0, f64::max)
}

/// The first two write at their rate, the others ask for the newest message's UID.
fn written(observers: Vec<Observer<'_>>) -> Vec<Observer<'_>> {
    let start = Instant::now();
    let end = start + Duration::from_secs(u64::from(SECONDS));
    at_once(observers, |index, observer| {
        let mut n = 0;
        while Instant::now() < end {
            if index >= 2 {
                let _ = observer.look_newest();
                std::thread::sleep(LOOKS);
                continue;
            }
            n += 1;
            let _ = observer.append(100_000 * (index + 1) + n as usize);
            let due = start + Duration::from_secs(1) / RATE * n;
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
        }
    })
}
