//! An assigner in the test's own process: moves watermarks through the C ABI, as any program may.

// The benches take this file in too, and need a part of it.
#![allow(dead_code)]

use std::ffi::{CStr, CString};
use std::os::unix::ffi::OsStrExt;

use imap_xid::ffi::{
    imap_xid_last_error, imap_xid_table, imap_xid_table_advance, imap_xid_table_box,
    imap_xid_table_close, imap_xid_table_find, imap_xid_table_gate, imap_xid_table_open,
};

use crate::harness::*;

/// The table of a user's mail root.
pub struct Assigner {
    table: *mut imap_xid_table,
}

impl Assigner {
    pub fn open(server: &Dovecot, user: &str) -> Assigner {
        Assigner::open_dir(&server.mail_dir(user))
    }

    pub fn open_dir(dir: &std::path::Path) -> Assigner {
        let dir = CString::new(dir.as_os_str().as_bytes()).expect("no NUL");
        let mut table = std::ptr::null_mut();
        // SAFETY: a C string, and room for a pointer.
        let ret = unsafe { imap_xid_table_open(dir.as_ptr(), &raw mut table) };
        assert!(ret >= 0, "{}", last_error());
        Assigner { table }
    }

    /// Makes every UID up to `uid` stable.
    pub fn advance(&self, guid: &[u8; 16], uid: u32) {
        // SAFETY: the table is open until drop; a GUID has 16 octets.
        let ret = unsafe { imap_xid_table_advance(self.table, guid.as_ptr(), uid) };
        assert!(ret >= 0, "advance to {uid}: {}", last_error());
    }

    /// Closes the mailbox's gate for so many milliseconds; 0 opens it.
    pub fn gate(&self, guid: &[u8; 16], lease_ms: u64) {
        // SAFETY: the table is open, a GUID has 16 octets.
        let ret = unsafe { imap_xid_table_gate(self.table, guid.as_ptr(), lease_ms) };
        assert!(ret >= 0, "gate: {}", last_error());
    }

    /// What the table knows of a mailbox.
    pub fn state(&self, guid: &[u8; 16]) -> imap_xid_table_box {
        let mut state = std::mem::MaybeUninit::uninit();
        // SAFETY: the table is open, a GUID has 16 octets, and there is room for the answer.
        let ret = unsafe { imap_xid_table_find(self.table, guid.as_ptr(), state.as_mut_ptr()) };
        assert_eq!(ret, 1, "{}", last_error());
        // SAFETY: 1 says that it was stored.
        unsafe { state.assume_init() }
    }
}

impl Drop for Assigner {
    fn drop(&mut self) {
        // SAFETY: nobody uses it any more.
        unsafe { imap_xid_table_close(self.table) }
    }
}

fn last_error() -> String {
    // SAFETY: never NULL, valid until the next call.
    unsafe { CStr::from_ptr(imap_xid_last_error()) }
        .to_string_lossy()
        .into_owned()
}

/// The mailbox's GUID.
pub fn guid(server: &Dovecot, user: &str, mailbox: &str) -> [u8; 16] {
    let text = server.doveadm_ok(&["mailbox", "status", "-u", user, "guid", mailbox]);
    let (_, hex) = text.trim().rsplit_once("guid=").expect("a GUID");
    let mut guid = [0; 16];
    for (i, octet) in guid.iter_mut().enumerate() {
        *octet = u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).expect("hex");
    }
    guid
}

/// Makes every UID of the mailbox up to `uid` stable; the leak scanners know of it first.
pub fn advance(server: &Dovecot, user: &str, mailbox: &str, uid: u32) {
    server.note_watermark(user, mailbox, uid);
    Assigner::open(server, user).advance(&guid(server, user, mailbox), uid);
}

/// How many commands wait for UIDs of alice's INBOX.
pub fn waiters(server: &Dovecot) -> u32 {
    inbox_state(server).waiters
}

/// What the table knows of alice's INBOX.
pub fn inbox_state(server: &Dovecot) -> imap_xid_table_box {
    Assigner::open(server, "alice").state(&guid(server, "alice", "INBOX"))
}

/// A server whose watermarks others move, and that waits for longer than any test takes.
pub fn table() -> Setup {
    Dovecot::setup()
        .xid("xid_uid_source", "table")
        .xid("xid_uid_wait", "60s")
}

/// `messages` messages in alice's INBOX, of which `stable` are stable.
pub fn inbox(setup: Setup, messages: usize, stable: u32) -> Dovecot {
    let server = setup.start();
    let mut client = server.imap("alice");
    for n in 1..=messages {
        client.append("INBOX", &message(n));
    }
    if stable > 0 {
        advance(&server, "alice", "INBOX", stable);
    }
    server
}

/// The UIDs that an answer's FETCH lines have.
pub fn uids(reply: &Reply) -> Vec<u32> {
    reply.fetches().iter().filter_map(Fetch::uid).collect()
}
