//! imap-xid: an IMAP that works when a mailbox is written on many machines at once.
//!
//! Layers point one way: [`xid`] and [`uid`] (pure, no I/O) <- [`table`] and [`registry`]
//! (shared memory and disk) <- [`ffi`] (what C sees) <- `c-shim/` (what a host needs).
//! [`cluster`] is the protocol by which several nodes agree on UIDs; it is pure too, and the
//! daemon `xidd` runs it.
#![deny(unsafe_op_in_unsafe_fn, clippy::undocumented_unsafe_blocks)]
#![warn(missing_docs)]

pub mod cluster;
#[cfg(feature = "cluster")]
pub mod daemon;
#[cfg(feature = "cluster")]
pub mod etcd;
pub mod ffi;
pub mod log;
pub mod registry;
pub mod table;
pub mod uid;
pub mod xid;
