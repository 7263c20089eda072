//! `xidd`, the cluster daemon: what moves the watermarks of a node's mailboxes.
//!
//! It touches no mail file. It hears of commits from the plug-in ([`Event`]), asks the host about
//! mailboxes and changes them through the host's own doors, has the host's replication carry the
//! messages, reads and writes the cluster's records ([`crate::etcd`]), and leaves every decision
//! to the protocol core ([`crate::cluster`]).

pub mod carrier;
pub mod config;
pub mod doveadm;
pub mod engine;
pub mod host;
pub mod mailbox;
pub mod member;
pub mod metrics;
mod pulse;
pub mod site;
pub mod socket;
mod sweep;
mod xids;

use tokio::sync::oneshot;

use crate::cluster::Incarnation;

pub use config::Config;
pub use metrics::Metrics;

/// What an XID query answers: what was found (`uid:xid`, separated by commas), or `None`, per GUID
/// asked for; or why nobody knows.
pub type XidsAnswer = Result<Vec<Option<String>>, String>;

/// Something that the plug-in, or another program on this node, tells or asks the daemon.
#[derive(Debug)]
pub enum Event {
    /// Something in a mailbox changed, or somebody waits there.
    Changed {
        /// Whose mailbox.
        user: String,
        /// The mailbox's GUID; all zeroes where a change of the tree has none.
        mailbox: [u8; 16],
        /// The name under which it was seen.
        name: String,
        /// What changed.
        kind: Change,
    },
    /// Which XIDs have these messages on the nodes that have them?
    Xids {
        /// Whose mailbox.
        user: String,
        /// The mailbox's GUID.
        mailbox: [u8; 16],
        /// The name under which it was seen.
        name: String,
        /// The messages.
        guids: Vec<String>,
        /// How sure the answer must be.
        asking: Asking,
        /// `None` for a GUID: every node was asked, and none knows.
        reply: oneshot::Sender<XidsAnswer>,
    },
    /// Is this node in the cluster: its lease alive, etcd reachable?
    Status {
        /// In: which of the node's disks this is. `None`: cut off.
        reply: oneshot::Sender<Option<Incarnation>>,
    },
}

/// How sure the answer to an XID query must be. A message that nobody knows is always asked for on
/// every node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asking {
    /// `X`: what the tails say is enough.
    Quickly,
    /// `A`: every live node says what it has now, since the tails were no help.
    Everybody,
    /// `R`: the same; whoever asks has the messages without XIDs, and may have to name them.
    Holding,
}

/// What changed in a mailbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Change {
    /// A client or a delivery added messages.
    Added,
    /// A client changed flags or keywords, or expunged.
    Flags,
    /// Replication committed something.
    Imported,
    /// A mailbox was created, renamed, deleted or subscribed to.
    Tree,
    /// Nothing; but a process still waits for a UID.
    Reminder,
}
