//! `doveadm xid ...`, which the cluster daemon drives a node with: on a real Dovecot, in every
//! format, from the command line and through the doveadm server.

#[path = "../harness/mod.rs"]
mod harness;

mod ask;
mod client;
mod kills;
mod look;
mod marks;
mod moves;
mod silent;
mod state;
