//! What the daemon counts, and where it tells it.

mod http;
mod lag;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use crate::cluster::{Kind, Step};

pub use http::{Server, serve};
pub use lag::Lag;

/// Upper ends, in seconds, of the classes in which delays are counted.
const DELAY_SECONDS: [f64; 12] = [
    0.01, 0.025, 0.05, 0.1, 0.15, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0,
];

/// One label and its value.
type Label = [(&'static str, &'static str); 1];

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
    /// Since when messages that were heard of wait for their UIDs.
    pub lag: Lag,
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
    /// Seconds that a sync took, failed ones included.
    pub sync_seconds: Histogram,
    /// Syncs that the plug-in's interlock refused.
    pub interlock_refusals: Counter,
    /// Requests to the host, on this node or another, that failed.
    pub host_failures: Counter,
    /// Requests to etcd that failed.
    pub etcd_failures: Counter,
    /// Seconds from hearing of a new message to showing its UID.
    pub delay: Histogram,
    /// Connections to the event socket.
    pub connections: Gauge,
    /// Steps of the protocol that were carried out, by kind; see [`Metrics::step`].
    steps: Family<Label, Counter>,
    /// Connections and messages that the event socket turned away, by reason.
    refusals: Family<Label, Counter>,
}

impl Default for Metrics {
    fn default() -> Self {
        Metrics {
            member: Gauge::default(),
            alive: Gauge::default(),
            active: Gauge::default(),
            pending: Gauge::default(),
            lag: Lag::default(),
            events: Counter::default(),
            advances: Counter::default(),
            publications: Counter::default(),
            withdrawals: Counter::default(),
            gates: Counter::default(),
            evictions: Counter::default(),
            joins: Counter::default(),
            syncs: Counter::default(),
            sync_failures: Counter::default(),
            sync_seconds: Histogram::new(DELAY_SECONDS),
            interlock_refusals: Counter::default(),
            host_failures: Counter::default(),
            etcd_failures: Counter::default(),
            delay: Histogram::new(DELAY_SECONDS),
            connections: Gauge::default(),
            steps: Family::default(),
            refusals: Family::default(),
        }
    }
}

impl Metrics {
    /// Counts a step of the protocol that is carried out, by its kind.
    pub fn step<G, X>(&self, step: &Step<G, X>) {
        self.steps.get_or_create(&[("step", step_name(step))]).inc();
    }

    /// Counts a connection or message that the event socket turned away.
    pub fn refused(&self, reason: &'static str) {
        self.refusals.get_or_create(&[("reason", reason)]).inc();
    }

    /// How often the event socket turned something away for this reason.
    pub fn refusals_of(&self, reason: &'static str) -> u64 {
        self.refusals.get_or_create(&[("reason", reason)]).get()
    }

    /// All of them under the names by which they are scraped.
    #[must_use]
    pub fn registry(&self, node: &str) -> Registry {
        let mut registry = Registry::with_prefix("xidd");
        let version = env!("CARGO_PKG_VERSION").to_owned();
        let build = Info::new([("version", version), ("node", node.to_owned())]);
        registry.register("build", "The daemon and its node", build);
        self.register_state(&mut registry);
        self.register_counts(&mut registry);
        self.register_times(&mut registry);
        registry
    }

    fn register_state(&self, to: &mut Registry) {
        let all = [
            (
                "member",
                "1: the node is in the cluster, its lease is alive",
                &self.member,
            ),
            (
                "alive_nodes",
                "Nodes of the cluster that are alive",
                &self.alive,
            ),
            (
                "active_mailboxes",
                "Mailboxes that are being worked on",
                &self.active,
            ),
            (
                "pending_uids",
                "UIDs that this node gave out and does not show yet",
                &self.pending,
            ),
            (
                "connections",
                "Connections to the event socket",
                &self.connections,
            ),
        ];
        for (name, help, gauge) in all {
            to.register(name, help, gauge.clone());
        }
    }

    fn register_counts(&self, to: &mut Registry) {
        let all = [
            ("events", "Events heard from the plug-in", &self.events),
            (
                "advances",
                "Watermarks that this node moved",
                &self.advances,
            ),
            ("publications", "Tails published", &self.publications),
            (
                "withdrawals",
                "Tails withdrawn because something in them gets another UID",
                &self.withdrawals,
            ),
            ("gates", "Gates that this node closed", &self.gates),
            (
                "evictions",
                "Dead holders dropped, by mailbox",
                &self.evictions,
            ),
            (
                "joins",
                "Mailboxes that this node joined as a holder",
                &self.joins,
            ),
            ("syncs", "Syncs started", &self.syncs),
            ("sync_failures", "Syncs that failed", &self.sync_failures),
            (
                "interlock_refusals",
                "Syncs that the plug-in's interlock refused",
                &self.interlock_refusals,
            ),
            (
                "host_failures",
                "Requests to Dovecot that failed",
                &self.host_failures,
            ),
            (
                "etcd_failures",
                "Requests to etcd that failed",
                &self.etcd_failures,
            ),
        ];
        for (name, help, counter) in all {
            to.register(name, help, counter.clone());
        }
        to.register(
            "steps",
            "Steps of the protocol carried out",
            self.steps.clone(),
        );
        to.register(
            "refusals",
            "Connections and messages that the event socket turned away",
            self.refusals.clone(),
        );
    }

    fn register_times(&self, to: &mut Registry) {
        to.register_collector(Box::new(self.lag.clone()));
        to.register_with_unit(
            "delay",
            "From hearing of a new message to showing its UID",
            Unit::Seconds,
            self.delay.clone(),
        );
        to.register_with_unit(
            "sync",
            "How long a sync took",
            Unit::Seconds,
            self.sync_seconds.clone(),
        );
    }
}

/// A step's name in the counters.
fn step_name<G, X>(step: &Step<G, X>) -> &'static str {
    match step {
        Step::Wait => "wait",
        Step::Enter => "enter",
        Step::Txn(txn) => match txn.kind {
            Kind::Create => "create",
            Kind::Publish => "publish",
            Kind::Withdraw => "withdraw",
            Kind::Advance => "advance",
            Kind::Conclude => "conclude",
            Kind::Shrink => "shrink",
            Kind::Join => "join",
            Kind::CloseGate => "close_gate",
            Kind::OpenGate => "open_gate",
        },
        Step::Promise { .. } => "promise",
        Step::Release { .. } => "release",
        Step::Expose { .. } => "expose",
        Step::Gate { .. } => "gate",
        Step::Sync { force: true, .. } => "sync_force",
        Step::Sync { .. } => "sync",
        Step::Adopt { .. } => "adopt",
        Step::Raise { .. } => "raise",
        Step::DropLow { .. } => "drop_low",
        Step::AskPrefix { .. } => "ask_prefix",
        Step::Stage { .. } => "stage",
        Step::DropMain { .. } => "drop_main",
        Step::Unstage { .. } => "unstage",
        Step::DropStaged { .. } => "drop_staged",
    }
}
