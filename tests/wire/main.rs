//! What clients see, on a real Dovecot. One file per part of the specification.

#[path = "../harness/mod.rs"]
mod harness;

mod harness_works;

mod bad_input;
mod delivery;
mod durability;
mod fetch_search;
mod formats;
mod settings;
mod storage;
mod tls_compress_hibernate;
mod xhxid_prefix;
mod xhxid_state;

mod assign;
mod delivery_wait;
mod metrics;
mod no_uids;
mod saves_wait;
mod uid_fuzz;
mod uid_leak;
mod uid_wait;
