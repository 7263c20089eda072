//! The cluster protocol as a value: what a node knows goes in, the next thing to do comes out.
//!
//! Nothing here does I/O or looks at a clock. A driver (the daemon `xidd`, or the model checker
//! in `tests/cluster/`) reads etcd and the mailbox, shows both to a [`Replica`] as a [`View`],
//! carries out the [`Step`] it names, and asks again. All that must survive a crash lives
//! outside: in etcd, in the mailbox, in the table. So a node may die between any two steps.
//!
//! # The rules
//!
//! 1. **Holders.** Per mailbox etcd holds one record, [`Stable`]: the stable UID S, the floor,
//!    and the *holders*: the nodes (with their disks' incarnations) that hold everything up to
//!    S. Every change of it is conditional on its own revision.
//! 2. **Promise.** A holder publishes its *tail* (what it has above S) after it noted in the
//!    table that nothing in it changes its UID or content (an expunge is allowed). To let
//!    replication renumber, it first withdraws: it writes a *loose* tail, conditional on S and
//!    on its own tail not having moved, in this life of the daemon, and only then releases the
//!    promise. After a restart everything counts as promised.
//! 3. **Advance.** If the firm tails of *all* holders agree up to u (UID, GUID and XID), any
//!    holder sets S := u, conditional on the record and on every tail that it compared. Where
//!    only the XIDs differ, those of the lowest node count: the others withdraw and adopt them.
//! 4. **Expose.** A node shows UIDs up to an S that it read while it was a holder. What it showed
//!    once is durable.
//! 5. **Shrink.** A holder that has work to do drops dead holders from the record. The record
//!    never becomes empty, since whoever writes it stays in it. In the same transaction the
//!    floor rises above every UID that the dropped node can have given out by itself (the
//!    *window*); the survivors move their unstable messages above the floor before S moves.
//! 6. **Join.** A node that is no holder promises all it has, moves what the stable prefix does
//!    not have to a stage mailbox, takes the prefix from a holder, compares it entry by entry,
//!    and joins, conditional on the record it compared with. Then the staged messages come back
//!    as new ones, except those that are there already or were made stable meanwhile, which all
//!    holders that are alive are asked.
//! 7. **Gate.** Where writers keep colliding one node closes the gate everywhere. Safety does
//!    not rest on it.
//!
//! `docs/cluster-model.md` says what was checked and what breaks without each rule.

mod compare;
mod replica;
mod types;

pub use compare::{agreed, conflict, lacks, misnamed};
pub use replica::{Config, Replica, Rules};
pub use types::{
    ALL_PROMISED, At, Condition, Entry, Ident, Incarnation, Kind, Local, Node, Put, Rev, Snapshot,
    Source, Stable, Staged, Step, Tail, Txn, Uid, View,
};
