//! What the daemon counts.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;

/// Upper ends, in seconds, of the classes in which delays are counted.
const DELAY_SECONDS: [f64; 12] = [
    0.01, 0.025, 0.05, 0.1, 0.15, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0,
];

/// The daemon's counters. Whoever does something counts it here.
#[derive(Debug)]
pub struct Metrics {
    /// 1: the node is in the cluster (its lease is alive); 0: it is not.
    pub member: Gauge,
    /// Nodes that are alive.
    pub alive: Gauge,
    /// Mailboxes that have a task.
    pub active: Gauge,
    /// UIDs, over all active mailboxes, that this node has given out and not shown yet.
    pub pending: Gauge,
    /// Events heard from the plug-in.
    pub events: Counter,
    /// Watermarks that this node moved in etcd.
    pub advances: Counter,
    /// Tails published.
    pub publications: Counter,
    /// Tails withdrawn, because something in them must get another UID.
    pub withdrawals: Counter,
    /// Gates that this node closed.
    pub gates: Counter,
    /// Transactions that dropped dead nodes from a mailbox's holders.
    pub evictions: Counter,
    /// Mailboxes that this node joined as a holder.
    pub joins: Counter,
    /// Syncs started.
    pub syncs: Counter,
    /// Syncs that failed.
    pub sync_failures: Counter,
    /// Syncs that the plug-in's interlock refused.
    pub interlock_refusals: Counter,
    /// Requests to the host, on this node or another, that failed.
    pub host_failures: Counter,
    /// Requests to etcd that failed.
    pub etcd_failures: Counter,
    /// Seconds from hearing of a new message to showing its UID.
    pub delay: Histogram,
}

impl Default for Metrics {
    fn default() -> Self {
        Metrics {
            member: Gauge::default(),
            alive: Gauge::default(),
            active: Gauge::default(),
            pending: Gauge::default(),
            events: Counter::default(),
            advances: Counter::default(),
            publications: Counter::default(),
            withdrawals: Counter::default(),
            gates: Counter::default(),
            evictions: Counter::default(),
            joins: Counter::default(),
            syncs: Counter::default(),
            sync_failures: Counter::default(),
            interlock_refusals: Counter::default(),
            host_failures: Counter::default(),
            etcd_failures: Counter::default(),
            delay: Histogram::new(DELAY_SECONDS),
        }
    }
}
