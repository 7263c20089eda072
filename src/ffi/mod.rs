//! What C sees: one file per group of functions, one boundary.

#[cfg(feature = "dovecot")]
mod dovecot;
