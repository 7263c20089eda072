//! Whole clusters, real faults, and what clients on every node saw of them.
//!
//! Everything is judged by the history checker of `tests/lab`, which knows only the lines that
//! clients got. `IMAP_XID_SOAK=1` plays random schedules for half an hour and more.

mod copies;
mod first;
#[path = "../harness/mod.rs"]
mod harness;
#[path = "../lab/history.rs"]
mod history;
mod killed;
mod long;
mod many;
mod metrics;
mod news;
mod operator;
mod parted;
mod random;
mod reload;
mod tree;
mod wiped;
#[path = "../lab/workload.rs"]
mod workload;
mod writers;

use std::time::Duration;

use harness::cluster::Cluster;
use history::History;
use workload::Observer;

/// Between two messages of one writer.
const PAUSE: Duration = Duration::from_millis(20);
/// How many violations a failing test prints.
const PRINTED: usize = 20;

/// A client on each node. INBOX is there first: where a client and replication make it at once,
/// stock Dovecot's locks can clash.
fn observers(cluster: &Cluster) -> Vec<Observer<'_>> {
    for node in 1..=cluster.nodes() {
        cluster.node(node).imap_in(workload::USER, "INBOX");
    }
    let on = |node| Observer::new(cluster.node(node), node, true);
    (1..=cluster.nodes()).map(on).collect()
}

/// Insists that nothing was seen that must not be, and that there was something to see.
///
/// # Panics
/// With the first violations.
fn judge(what: &str, history: &History, at_least: usize) {
    let (messages, looks) = (history.acknowledged(), history.looks());
    println!(
        "{what}: {} ({messages} messages, {looks} looks)",
        history.count()
    );
    assert!(
        messages >= at_least,
        "{what}: {messages} messages were taken, not {at_least}"
    );
    assert!(looks > 0, "{what}: nobody ever saw a UID");
    let violations = history.violations();
    for violation in violations.iter().take(PRINTED) {
        println!("{violation}");
    }
    let mut keys: Vec<_> = violations.iter().filter_map(key_of).collect();
    keys.dedup();
    for key in keys.iter().take(PRINTED) {
        println!("{key}:\n  {}", history.story(key).join("\n  "));
    }
    assert!(
        violations.is_empty(),
        "{what}: {} violations",
        violations.len()
    );
}

/// The first message that a violation names.
fn key_of(violation: &history::Violation) -> Option<String> {
    let (_, rest) = violation.what.split_once("message ")?;
    let number: String = rest.chars().take_while(char::is_ascii_digit).collect();
    (!number.is_empty()).then(|| format!("message {number}"))
}
