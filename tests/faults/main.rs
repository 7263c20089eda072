//! Faults: processes killed at any moment, files torn or foreign, full disks.

#[path = "../harness/mod.rs"]
mod harness;

mod disk;
mod kill;
mod torn;

/// The long runs of `make soak` do this many times as much.
fn scale() -> usize {
    if std::env::var_os("IMAP_XID_SOAK").is_some() {
        25
    } else {
        1
    }
}
