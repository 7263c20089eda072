//! The UID-assignment table: one mapped file per mail root.
