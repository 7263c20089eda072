//! What C sees: one file per group of functions, one boundary.
//!
//! Every exported function is one call of `boundary::boundary` or `boundary::status`, which
//! goes through it: no panic crosses into the host. `tests/c-abi` lists the symbols of the
//! built library and fails when one of them does not. The C header is generated from these files
//! (`IMAP_XID_BLESS=1 cargo test --test header` writes it), so their docstrings speak to C
//! programmers and their type names are C's.

mod boundary;
mod messages;
mod registry;
mod table;
mod xid;

#[cfg(feature = "dovecot")]
mod dovecot;

pub use boundary::*;
pub use messages::*;
pub use registry::*;
pub use table::*;
pub use xid::*;
