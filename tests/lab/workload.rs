//! Clients on several nodes that write to one mailbox and note all that they see.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::harness::{Dovecot, Imap, message};
use super::history::{Event, History, Row};

/// The mailbox's owner, on every node.
pub const USER: &str = "alice";

/// A client that stays on one node.
pub struct Observer {
    client: Imap,
    node: usize,
    items: &'static str,
    uidvalidity: u32,
    /// What it saw.
    pub history: History,
}

impl Observer {
    /// Logs in on `server`, which is node number `node`, and selects INBOX. With `xids` it asks
    /// for them too.
    pub fn new(server: &Dovecot, node: usize, xids: bool) -> Observer {
        let items = if xids {
            "(UID XID BODY.PEEK[HEADER.FIELDS (SUBJECT)])"
        } else {
            "(UID BODY.PEEK[HEADER.FIELDS (SUBJECT)])"
        };
        let mut observer = Observer {
            client: server.imap(USER),
            node,
            items,
            uidvalidity: 0,
            history: History::default(),
        };
        observer.select();
        observer
    }

    /// Selects INBOX (anew) and notes UIDVALIDITY and UIDNEXT.
    pub fn select(&mut self) {
        let reply = self.client.ok("SELECT INBOX");
        let number = |name| reply.untagged_code(name).and_then(|text| text.parse().ok());
        self.uidvalidity = number("UIDVALIDITY").unwrap_or(0);
        if let Some(uidnext) = number("UIDNEXT") {
            let (node, uidvalidity) = (self.node, self.uidvalidity);
            self.history.push(Event::UidNext {
                node,
                uidvalidity,
                uidnext,
            });
        }
    }

    /// APPEND of message number `n`, noted once it is acknowledged.
    pub fn append(&mut self, n: usize) {
        let reply = self.client.append("INBOX", &message(n));
        let (node, key) = (self.node, format!("message {n}"));
        if let Some(uid) = appended_uid(reply.code("APPENDUID").as_deref()) {
            let (uidvalidity, key) = (self.uidvalidity, key.clone());
            self.history.push(Event::Shown {
                node,
                uidvalidity,
                uid,
                key,
            });
        }
        self.history.push(Event::Acknowledged { node, key });
    }

    /// Looks at the whole mailbox, as a client that checks for news.
    pub fn look(&mut self) {
        let rows = self.rows();
        let (node, uidvalidity) = (self.node, self.uidvalidity);
        self.history.push(Event::Listing {
            node,
            uidvalidity,
            rows,
        });
    }

    /// The look that counts for what is lost or there twice.
    pub fn last_look(&mut self) {
        self.select();
        let rows = self.rows();
        let (node, uidvalidity) = (self.node, self.uidvalidity);
        self.history.push(Event::Final {
            node,
            uidvalidity,
            rows,
        });
    }

    fn rows(&mut self) -> Vec<Row> {
        self.client.ok("NOOP");
        let reply = self.client.ok(&format!("FETCH 1:* {}", self.items));
        let fetches = reply.fetches();
        fetches
            .iter()
            .map(|fetch| Row {
                uid: fetch.uid().unwrap_or(0),
                xid: fetch.xid().unwrap_or_default(),
                key: subject(
                    &fetch
                        .text("BODY[HEADER.FIELDS (SUBJECT)]")
                        .unwrap_or_default(),
                ),
            })
            // A line without the header is a flag change that came by the way.
            .filter(|row| !row.key.is_empty())
            .collect()
    }
}

/// The UID in "1795460000 17".
fn appended_uid(code: Option<&str>) -> Option<u32> {
    code?.split_whitespace().nth(1)?.parse().ok()
}

fn subject(header: &str) -> String {
    let value = header.trim().strip_prefix("Subject:").unwrap_or_default();
    value.trim().to_owned()
}

/// Messages `1..=count` written by turns on the observers' nodes, each by a thread of its own;
/// every observer looks after each of its messages. Gives the observers back.
pub fn write_by_turns(observers: Vec<Observer>, count: usize, pause: Duration) -> Vec<Observer> {
    let writers = observers.len();
    std::thread::scope(|scope| {
        let threads: Vec<_> = observers
            .into_iter()
            .enumerate()
            .map(|(index, mut observer)| {
                scope.spawn(move || {
                    for n in (1..=count).filter(|n| n % writers == index) {
                        observer.append(n);
                        observer.look();
                        std::thread::sleep(pause);
                    }
                    observer
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|t| t.join().expect("a writer"))
            .collect()
    })
}

/// Runs `step` in a thread until `work` is done; gives what `work` gave.
pub fn meanwhile<T>(step: impl Fn() + Sync, work: impl FnOnce() -> T) -> T {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Acquire) {
                step();
            }
        });
        let result = work();
        done.store(true, Ordering::Release);
        result
    })
}
