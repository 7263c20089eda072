//! The words of the protocol: what is stored, what is seen, what is to be done.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::hash::Hash;

/// An IMAP UID; 0 stands for "none".
pub type Uid = u32;

/// The promised mark of a node that does not know what it promised: everything.
pub const ALL_PROMISED: Uid = Uid::MAX;

/// What identifies a message (its GUID) or names it (its XID); opaque to the protocol.
pub trait Ident: Clone + Eq + Ord + Hash + Debug {}
impl<T: Clone + Eq + Ord + Hash + Debug> Ident for T {}

/// A node of the cluster, by the number that etcd gave it when it first registered.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Node(pub u8);

/// Which disk of a node: a node whose mail was lost comes back with a new one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Incarnation(pub u32);

/// A key's revision in etcd; 0: the key is absent.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Rev(pub u64);

/// A value together with the revision at which it was read.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct At<T> {
    /// The key's revision.
    pub rev: Rev,
    /// What was stored.
    pub value: T,
}

/// A message at a UID.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Entry<G, X> {
    /// Its UID here.
    pub uid: Uid,
    /// The message's GUID.
    pub guid: G,
    /// The message's XID, which travels with it.
    pub xid: X,
    /// It was here and is gone; its UID is never used again.
    pub expunged: bool,
}

/// A mailbox's record in etcd.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Stable {
    /// S: every UID up to here names one message, or none, for ever.
    pub uid: Uid,
    /// Nodes that were dropped may have used any UID up to here; S moves only past it.
    pub floor: Uid,
    /// Who holds everything up to S, and is asked before S moves.
    pub holders: BTreeMap<Node, Incarnation>,
}

impl Stable {
    /// Of a mailbox about which nothing was agreed yet.
    pub fn new(holders: BTreeMap<Node, Incarnation>) -> Stable {
        Stable {
            uid: 0,
            floor: 0,
            holders,
        }
    }

    /// The highest UID that a node which read this record gives to a new message by itself.
    pub fn limit(&self, window: Uid) -> Uid {
        self.uid.max(self.floor).saturating_add(window)
    }

    /// The highest UID that any message can have on such a node. Replication may go above the
    /// limit, since settling a conflict uses up UIDs: at most one per message, and moving all
    /// messages above a floor as many again.
    pub fn bound(&self, window: Uid) -> Uid {
        let nodes = Uid::try_from(self.holders.len()).unwrap_or(Uid::MAX).max(2);
        self.uid
            .max(self.floor)
            .saturating_add(window.saturating_mul(2).saturating_mul(nodes))
    }

    /// Whether this disk of this node is a holder.
    pub fn held_by(&self, node: Node, incarnation: Incarnation) -> bool {
        self.holders.get(&node) == Some(&incarnation)
    }
}

/// What a node has above S, as published in etcd.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Tail<G, X> {
    /// Promised (see the module's rule 2); a loose tail is only a hint.
    pub firm: bool,
    /// `entries` is complete up to this UID, and nothing will ever be added at or below it.
    pub end: Uid,
    /// The node's next UID when this was written.
    pub next: Uid,
    /// In UID order.
    pub entries: Vec<Entry<G, X>>,
}

impl<G: Ident, X: Ident> Tail<G, X> {
    /// The entries above `uid`.
    pub fn above(&self, uid: Uid) -> &[Entry<G, X>] {
        &self.entries[self.entries.partition_point(|e| e.uid <= uid)..]
    }
}

/// One consistent read of a mailbox's keys in etcd.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Snapshot<G, X> {
    /// The mailbox's record; `None`: nobody made one yet.
    pub stable: Option<At<Stable>>,
    /// Tails by node.
    pub tails: BTreeMap<Node, At<Tail<G, X>>>,
    /// Who closed the gate.
    pub gate: Option<Node>,
    /// The nodes whose lease is alive.
    pub alive: BTreeMap<Node, Incarnation>,
    /// Whether every node that was ever registered is among `alive`.
    pub complete: bool,
}

impl<G, X> Snapshot<G, X> {
    /// Who is asked what became of the messages of a node that joins with this source: the other
    /// holders that are alive, too. Who joined after an expunge knows nothing of it, and the
    /// message would come back.
    pub fn witnesses(&self, source: Node) -> BTreeSet<Node> {
        let holders = self.stable.iter().flat_map(|at| &at.value.holders);
        let alive = holders.filter(|(node, disk)| self.alive.get(node) == Some(*disk));
        alive.map(|(node, _)| *node).chain([source]).collect()
    }
}

/// A message in the stage mailbox.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Staged<G> {
    /// Its GUID.
    pub guid: G,
    /// One of the [`Snapshot::witnesses`] has it in the stable prefix, or had it there once: only
    /// the copy in the stage remains to be dropped.
    pub settled: bool,
}

/// What a node sees of itself.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Local<G, X> {
    /// In UID order: all above S, and what at or below S has the XID of one of these; all of the
    /// mailbox when the node is no holder.
    pub entries: Vec<Entry<G, X>>,
    /// The mailbox's next UID.
    pub next: Uid,
    /// The table's promised mark: nothing at or below it may be renumbered.
    pub promised: Uid,
    /// The table's watermark.
    pub shown: Uid,
    /// The table's limit: no new message gets a UID above it.
    pub limit: Uid,
    /// The table's bound: replication brings no UID above it.
    pub bound: Uid,
    /// The table's gate is closed.
    pub gated: bool,
    /// What lies in the stage mailbox.
    pub staged: Vec<Staged<G>>,
}

/// A holder's own account of the stable prefix.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Source<G, X> {
    /// Who says so.
    pub node: Node,
    /// The record's revision when the prefix was read.
    pub rev: Rev,
    /// Everything up to S, expunged entries included as far as known.
    pub entries: Vec<Entry<G, X>>,
}

/// All that one decision rests on.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct View<G, X> {
    /// etcd.
    pub etcd: Snapshot<G, X>,
    /// The mailbox and its table slot.
    pub local: Local<G, X>,
    /// Answer to [`Step::AskPrefix`], where there was one.
    pub source: Option<Source<G, X>>,
}

/// What a transaction is for; for logs and counters.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Kind {
    /// Make the mailbox's record.
    Create,
    /// Publish a firm tail.
    Publish,
    /// Write a loose tail.
    Withdraw,
    /// Move S.
    Advance,
    /// Publish a firm tail and move S, which waited for nothing else.
    Conclude,
    /// Drop dead holders.
    Shrink,
    /// Become a holder.
    Join,
    /// Close the gate everywhere.
    CloseGate,
    /// Open it again.
    OpenGate,
}

/// What must hold for a transaction to have an effect.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Condition {
    /// The mailbox's record has this revision.
    Stable(Rev),
    /// A node's tail has this revision.
    Tail(Node, Rev),
    /// This node is not alive with this incarnation.
    Dead(Node, Incarnation),
    /// Nobody holds the gate.
    GateOpen,
    /// This node holds the gate.
    GateOf(Node),
}

/// What a transaction writes.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Put<G, X> {
    /// The mailbox's record.
    Stable(Stable),
    /// A node's tail.
    Tail(Node, Tail<G, X>),
    /// Delete a node's tail.
    DropTail(Node),
    /// The gate, under a short lease.
    Gate(Node),
    /// Delete the gate.
    DropGate,
}

/// All or nothing.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Txn<G, X> {
    /// What for.
    pub kind: Kind,
    /// All must hold.
    pub when: Vec<Condition>,
    /// Then all is written.
    pub then: Vec<Put<G, X>>,
}

/// The next thing to do.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Step<G, X> {
    /// Nothing until etcd or the mailbox changes.
    Wait,
    /// Put the node's liveness key, under its lease.
    Enter,
    /// Run this in etcd and report by [`crate::cluster::Replica::txn_done`].
    Txn(Txn<G, X>),
    /// Note in the table that nothing up to `end` changes any more, and make what is there
    /// durable.
    Promise {
        /// The promised mark; [`ALL_PROMISED`]: whatever comes, too.
        end: Uid,
    },
    /// Lower the table's promised mark.
    Release {
        /// The promised mark.
        to: Uid,
    },
    /// Move the table's watermark (durably), limit and bound.
    Expose {
        /// The watermark.
        uid: Uid,
        /// The highest UID for a new message.
        limit: Uid,
        /// The highest UID that replication may bring.
        bound: Uid,
    },
    /// Close (or open) the table's gate: commits wait.
    Gate {
        /// Close it.
        closed: bool,
    },
    /// Have the host's replication sync this mailbox.
    Sync {
        /// With whom.
        peer: Node,
        /// Compare everything: the replication's own shortcuts would miss the difference.
        force: bool,
        /// Take the peer's prefix: imports may go above the limit.
        joining: bool,
    },
    /// Raise the next UID above this, and copy there the unstable live messages that lie at or
    /// below it and have no copy above it yet.
    Raise {
        /// The floor.
        above: Uid,
    },
    /// Remove these: each has a copy at a higher UID.
    DropLow {
        /// Their UIDs.
        uids: Vec<Uid>,
    },
    /// Give these messages other XIDs, all in one transaction of the mailbox, and durably: a
    /// holder has the same messages, under these UIDs and GUIDs, by these XIDs.
    Adopt {
        /// UIDs and their XIDs.
        xids: Vec<(Uid, X)>,
    },
    /// Ask this holder for the prefix up to S, and all [`Snapshot::witnesses`] which staged GUIDs
    /// were made stable.
    AskPrefix {
        /// Whom.
        of: Node,
    },
    /// Copy these messages to the stage mailbox.
    Stage {
        /// Their UIDs.
        uids: Vec<Uid>,
    },
    /// Remove these from the mailbox: their copies are in the stage.
    DropMain {
        /// Their UIDs.
        uids: Vec<Uid>,
    },
    /// Save this staged message as a new one.
    Unstage {
        /// Which.
        guid: G,
    },
    /// Remove this from the stage.
    DropStaged {
        /// Which.
        guid: G,
    },
}
