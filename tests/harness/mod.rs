//! A real Dovecot of one's own, and the clients that talk to it.
//!
//! Every test crate, example or bench takes it in with
//!
//! ```ignore
//! #[path = "../harness/mod.rs"]
//! mod harness;
//! use harness::*;
//! ```
//!
//! # A server
//!
//! ```ignore
//! let server = Dovecot::start();                       // sdbox, plug-in on, namespace "foo"
//! let server = Dovecot::setup()
//!     .format(Format::Maildir)                         // sdbox, mdbox, maildir
//!     .plugin(false)                                   // stock Dovecot
//!     .xid("xid_uid_source", "table")                  // into plugin { }
//!     .set("mail_fsync", "never")                      // a setting at the top level
//!     .conf("service imap {\n client_limit = 10\n}")   // any lines
//!     .tls().hibernate("1s")                           // imaps and STARTTLS; IDLE hibernates
//!     .start();
//! ```
//!
//! It lives in a temporary folder, listens on a loopback address of its own (127.x.y.z), serves
//! any user name with any password, and runs mail as an unprivileged user. It is stopped and
//! removed when dropped; also when the test is killed (see [`janitor`] for all else). At its end the log is scanned: a `Panic`,
//! a `Fatal`, a process killed by a signal or an error of the plug-in fails the test, unless
//! [`Dovecot::allow_log`] named it. A failing test prints the log, the configuration's
//! changes and the transcript of every client; `IMAP_XID_LAB_KEEP=folder` keeps what all clients
//! said and heard there. `KEEP_TREE=1` leaves the server's folder behind.
//!
//! * `server.imap("alice")`, `server.imap_in("alice", "INBOX")`, `server.connect_imap()`,
//!   `server.imap_tls("alice")`, `server.lmtp()`, `server.pop3("alice")`
//! * `server.append(user, box, &message)`, `server.deliver(user, &message)` (LMTP; `user+box`
//!   delivers into a folder), `server.lda(user, box, &message)`
//! * `server.doveadm(&["..."])` gives code, stdout and stderr; `server.doveadm_ok` insists on
//!   success; `server.doveadm_input(args, stdin)`
//! * `server.stop()`, `server.start_again()`, `server.restart()`, `server.crash()` (kill -9 of
//!   everything); `server.set_plugin(false)`, `server.set_xid(k, v)`, `server.set(k, v)` change the
//!   configuration for the next start
//! * `server.pids("imap")`, `kill9(pid)`; `server.home(user)`, `server.mail_dir(user)`;
//!   `server.log()`, `server.wait_log("text")`, `server.allow_log("text")`; `server.sieve(user, script)`
//! * `server.messages(user, box)`: UID, XID, GUID and sequence number of every message
//! * `Dovecot::setup().at(&net, 1)`: on a node of a [`net::Net`], reached in its namespace
//! * `Cluster::setup().nodes(3).start()`: a whole cluster, see [`cluster`]
//! * `server.checked(user, box)`: the same, having checked that every message has an XID, none twice,
//!   in UID order; `server.checked_all(user)` for all mailboxes; see [`checks`]
//! * `server.advance(user, box, uid)`: moves a `table` watermark; see [`leak`], and [`relay`] for
//!   clients that are programs
//!
//! # An IMAP client
//!
//! ```ignore
//! let mut c = server.imap_in("alice", "INBOX");
//! let reply = c.ok("FETCH 1:* (XID)");                 // panics unless OK; also no(), bad(), cmd()
//! reply.untagged("FETCH"); reply.fetches()[0].xid(); reply.code("XHXID"); reply.search();
//! let a = c.send("UID FETCH 5 (FLAGS)");               // pipelining: a tag, not waited for
//! let b = c.send("NOOP");
//! let reply = c.wait(&b); let reply = c.wait(&a);      // in any order
//! c.append("INBOX", &message(1)); c.raw(b"..."); c.read_line(); c.compress(); c.idle(); c.done();
//! c.is_waiting(&a)                                     // no answer yet, told by what came so far
//! ```
//!
//! An untagged line belongs to no command (Dovecot answers pipelined ones out of order): `Reply::lines`
//! is what came since the answer before.
//!
//! Arguments that need literals: `c.cmd_parts(&[Part::Text("SEARCH TEXT "), Part::Literal(b"..")])`.
//! All reads have a generous limit ([`LIMIT`]); no test needs to sleep: use [`until`].

#![allow(dead_code)]

pub mod checks;
pub mod cluster;
mod config;
pub mod etcd;
pub mod imap;
mod janitor;
pub mod leak;
mod lmtp;
pub mod net;
mod plugin;
mod pop3;
pub mod relay;
pub mod reply;
pub mod seqpacket;
mod server;
mod slow;
pub mod tls;
mod wire;

#[allow(unused_imports)]
pub use checks::{by_guid, check_messages, number, split_xid, xids};
#[allow(unused_imports)]
pub use config::{Format, Setup};
#[allow(unused_imports)]
pub use imap::{Imap, Part, Tag};
#[allow(unused_imports)]
pub use lmtp::Lmtp;
#[allow(unused_imports)]
pub use plugin::{cargo_binary, plugin_path};
#[allow(unused_imports)]
pub use pop3::Pop3;
#[allow(unused_imports)]
pub use reply::{Fetch, Line, Reply, Value};
#[allow(unused_imports)]
pub use server::{Dovecot, Message, Output, kill9, run, signal};

use std::time::{Duration, Instant};

/// How long anything may take before a test gives up: far above what it takes on a busy machine.
pub const LIMIT: Duration = Duration::from_secs(120);

/// Waits until `condition` holds, looking every few milliseconds.
///
/// # Panics
/// After [`LIMIT`], naming `what`.
pub fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !condition() {
        assert!(Instant::now() < deadline, "waited {LIMIT:?} for: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A small message whose subject and Message-ID carry `n`.
pub fn message(n: usize) -> Vec<u8> {
    message_of(n, 200)
}

/// The same with a body of about `size` bytes.
pub fn message_of(n: usize, size: usize) -> Vec<u8> {
    let mut text = format!(
        "From: Sender <sender@example.org>\r\nTo: reader@example.org\r\n\
         Subject: message {n}\r\nMessage-ID: <{n}@test.example.org>\r\n\
         Date: Mon, 23 Nov 2026 10:00:00 +0000\r\n\r\n"
    );
    let mut line = 0;
    let start = text.len();
    while text.len() - start < size {
        line += 1;
        text.push_str(&format!(
            "Line {line} of message {n}, as plain as a line can be.\r\n"
        ));
    }
    text.into_bytes()
}

/// The seed of a random test: from the environment variable `name`, or the fixed `default`.
/// Printed, so that a failure can be repeated.
pub fn seed(name: &str, default: u64) -> u64 {
    let seed = std::env::var(name)
        .ok()
        .and_then(|s| s.parse().ok())
        .unwrap_or(default);
    println!("{name}={seed}");
    seed
}

/// A small generator of repeatable random numbers (xorshift64*).
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Below `n`, which is not 0.
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() >> 16) as usize % n
    }

    pub fn chance(&mut self, one_in: usize) -> bool {
        self.below(one_in) == 0
    }

    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }
}

/// Locks a file as Dovecot does (lock_method = fcntl), until it is closed.
pub fn lock_whole(file: &std::fs::File) {
    use std::os::fd::AsRawFd;
    // SAFETY: zeros are a valid struct flock.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = libc::F_WRLCK as _;
    // SAFETY: an open descriptor and a struct flock.
    let ret = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLKW, &raw const lock) };
    assert_eq!(ret, 0, "{}", std::io::Error::last_os_error());
}
