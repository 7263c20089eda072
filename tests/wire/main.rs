//! What clients see, on a real Dovecot. One file per part of the specification.

#[path = "../harness/mod.rs"]
mod harness;

mod harness_works;

mod delivery;
mod durability;
mod formats;
mod settings;
mod tls_compress_hibernate;
