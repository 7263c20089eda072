//! What clients see, on a real Dovecot. One file per part of the specification.

#[path = "../harness/mod.rs"]
mod harness;

mod harness_works;
