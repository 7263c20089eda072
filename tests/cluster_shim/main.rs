//! `xid_uid_source = cluster` in the plug-in, on real Dovecots: the cluster daemon's socket is a
//! stand-in's ([`daemon`]), replication is the real `doveadm sync`.

#[path = "../harness/mod.rs"]
mod harness;

#[path = "../wire/assign.rs"]
mod assign;

mod between;
mod broken;
mod copies;
mod daemon;
mod events;
mod interlock;
mod pair;
mod room;
mod stale;
mod travel;
mod tree;
