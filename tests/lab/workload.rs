//! Clients on several nodes that write to one mailbox and note all that they see.

// Every program takes what it needs of it.
#![allow(dead_code)]

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::harness::{Dovecot, Fetch, Imap, Line, Reply, message};
use super::history::{Event, History, Moment, Row, now};

/// The mailbox's owner, on every node.
pub const USER: &str = "alice";
/// How long a client waits for one answer before it gives the connection up.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long the nodes may take in the end until they show every UID.
const SETTLING: Duration = Duration::from_secs(120);

/// What became of a command.
#[derive(Debug)]
pub enum Gone {
    /// The connection is lost; what the command did is not known.
    Lost(std::io::Error),
    /// The server said NO or BAD.
    Refused(String),
}

impl From<std::io::Error> for Gone {
    fn from(error: std::io::Error) -> Gone {
        Gone::Lost(error)
    }
}

type Done<T> = Result<T, Gone>;

/// A client that stays on one node, unless it is sent to another. It logs in anew when it loses
/// its connection.
pub struct Observer<'a> {
    server: &'a Dovecot,
    node: usize,
    client: Option<Imap>,
    name: String,
    xids: bool,
    uidvalidity: u32,
    /// The XHXID state that it saved.
    state: Option<String>,
    /// What it saw.
    pub history: History,
    /// How long its APPENDs took that were acknowledged.
    pub append_times: Vec<Duration>,
    /// How long its listings with UIDs took.
    pub look_times: Vec<Duration>,
    /// Commands that were refused, with what the server said.
    pub refusals: Vec<String>,
}

impl<'a> Observer<'a> {
    /// Logs in on `server`, which is node number `node`, and selects INBOX. With `xids` it asks
    /// for them too.
    pub fn new(server: &'a Dovecot, node: usize, xids: bool) -> Observer<'a> {
        static COUNT: AtomicUsize = AtomicUsize::new(1);
        let name = format!("client {}", COUNT.fetch_add(1, Ordering::Relaxed));
        Observer {
            server,
            node,
            client: None,
            name,
            xids,
            uidvalidity: 0,
            state: None,
            history: History::default(),
            append_times: Vec::new(),
            look_times: Vec::new(),
            refusals: Vec::new(),
        }
    }

    /// The node it is on.
    pub fn node(&self) -> usize {
        self.node
    }

    /// Sends the client to another node, with the state that it saved.
    pub fn move_to(&mut self, server: &'a Dovecot, node: usize) {
        self.client = None;
        (self.server, self.node) = (server, node);
    }

    /// Its connection, made anew where it was lost.
    fn connected(&mut self) -> Done<&mut Imap> {
        if self.client.is_none() {
            let mut client = self.server.try_imap(USER, PATIENCE)?;
            let began = now();
            let reply = client.try_cmd("SELECT INBOX")?;
            if !reply.is_ok() {
                return Err(Gone::Refused(reply.text));
            }
            self.selected(began, &reply);
            self.client = Some(client);
        }
        Ok(self.client.as_mut().expect("just made"))
    }

    fn selected(&mut self, began: u64, reply: &Reply) {
        let number = |name| reply.untagged_code(name).and_then(|text| text.parse().ok());
        self.uidvalidity = number("UIDVALIDITY").unwrap_or(0);
        if let Some(uidnext) = number("UIDNEXT") {
            let event = Event::UidNext {
                node: self.node,
                uidvalidity: self.uidvalidity,
                uidnext,
            };
            self.history.push_since(began, event);
        }
    }

    /// Drops the connection where it broke; notes what was refused.
    fn after<T>(&mut self, done: Done<T>) -> Done<T> {
        match &done {
            Err(Gone::Lost(_)) => self.client = None,
            Err(Gone::Refused(text)) => self.refusals.push(text.clone()),
            Ok(_) => {}
        }
        done
    }

    /// Its connection, for commands of the caller's own; what their answers show is to be noted
    /// by [`Observer::note`].
    ///
    /// # Panics
    /// When the node cannot be reached.
    pub fn imap(&mut self) -> &mut Imap {
        let node = self.node;
        self.connected()
            .unwrap_or_else(|gone| panic!("node {node}: {gone:?}"))
    }

    /// Notes the UIDs that an answer shows together with subjects.
    pub fn note(&mut self, reply: &Reply) {
        self.note_shown(reply);
    }

    /// A command that must be answered OK.
    fn ask(&mut self, command: &str) -> Done<Reply> {
        let reply = self.connected()?.try_cmd(command)?;
        match reply.is_ok() {
            true => Ok(reply),
            // What came before the NO was seen all the same.
            false => {
                self.note_shown(&reply);
                Err(Gone::Refused(reply.text))
            }
        }
    }

    fn note_shown(&mut self, reply: &Reply) {
        for row in rows_of(reply).into_iter().filter(|row| row.uid != 0) {
            let event = Event::Shown {
                node: self.node,
                uidvalidity: self.uidvalidity,
                uid: row.uid,
                key: row.key,
            };
            self.history.push(event);
        }
    }

    /// APPEND of message number `n`, noted once it is acknowledged.
    pub fn append(&mut self, n: usize) -> Done<()> {
        let done = self.try_append(n);
        self.after(done)
    }

    fn try_append(&mut self, n: usize) -> Done<()> {
        let client = self.connected()?;
        let (start, began) = (Instant::now(), now());
        let reply = client.try_append("INBOX", &message(n))?;
        if !reply.is_ok() {
            return Err(Gone::Refused(reply.text));
        }
        self.append_times.push(start.elapsed());
        let (node, key) = (self.node, format!("message {n}"));
        if let Some(uid) = appended_uid(reply.code("APPENDUID").as_deref()) {
            let event = Event::Shown {
                node,
                uidvalidity: self.uidvalidity,
                uid,
                key: key.clone(),
            };
            self.history.push_since(began, event);
        }
        self.history.push(Event::Acknowledged { node, key });
        Ok(())
    }

    /// Looks at the whole mailbox, as a client that checks for news.
    pub fn look(&mut self) -> Done<Vec<Row>> {
        let (start, began) = (Instant::now(), now());
        let done = self.rows(&self.items());
        let rows = self.after(done)?;
        self.look_times.push(start.elapsed());
        let event = Event::Listing {
            node: self.node,
            uidvalidity: self.uidvalidity,
            rows: rows.clone(),
        };
        self.history.push_since(began, event);
        Ok(rows)
    }

    /// Looks at the newest message only: how a client waits for its UID.
    pub fn look_newest(&mut self) -> Done<Option<Row>> {
        let start = Instant::now();
        let done = self.newest();
        let row = self.after(done)?;
        self.look_times.push(start.elapsed());
        Ok(row)
    }

    fn newest(&mut self) -> Done<Option<Row>> {
        self.ask("NOOP")?;
        let reply = self.ask(&format!("FETCH * {}", self.items()))?;
        self.note_shown(&reply);
        Ok(rows_of(&reply).pop())
    }

    fn items(&self) -> String {
        let xid = if self.xids { "XID " } else { "" };
        format!("(UID {xid}{SUBJECT_ITEM})")
    }

    /// Asks what is new since the state that it has (XHXID), and saves the new one.
    pub fn ask_news(&mut self) -> Done<()> {
        let done = self.try_news();
        self.after(done)
    }

    fn try_news(&mut self) -> Done<()> {
        let began = now();
        let listed = self.listed(&format!("(XID {SUBJECT_ITEM})"))?;
        let state = self.state.clone().unwrap_or_default();
        let reply = match self.ask(format!("XHXID {state}").trim_end()) {
            Err(Gone::Refused(text)) if text.starts_with("[XIDRESET]") => {
                self.state = None;
                let client = self.name.clone();
                self.history.push(Event::Reset { client });
                return Ok(());
            }
            answered => answered?,
        };
        let code = reply.code("XHXID");
        self.state = Some(code.ok_or_else(|| Gone::Refused("no [XHXID] code".into()))?);
        let event = Event::News {
            client: self.name.clone(),
            // What goes with this very answer is no news.
            before: still_there(listed, &expunged_in(&reply)),
            announced: reply.announced(),
        };
        self.history.push_since(began, event);
        Ok(())
    }

    /// The XHXID state that it saved last.
    pub fn state(&self) -> Option<&str> {
        self.state.as_deref()
    }

    /// Expunges one message.
    pub fn expunge(&mut self, key: &str) -> Done<()> {
        let done = self.try_expunge(key);
        self.after(done)
    }

    fn try_expunge(&mut self, key: &str) -> Done<()> {
        // The answer gives sequence numbers, which hold until the next command that may bring
        // news; so both are one line each, without anything between them.
        self.ask("NOOP")?;
        let found = self.ask(&format!("SEARCH HEADER Subject \"{key}\""))?;
        let listed = self.ask(&format!("FETCH 1:* ({SUBJECT_ITEM})"))?;
        let exact = |fetch: &&Fetch| key_of(fetch) == key;
        let Some(seq) = listed.fetches().iter().find(exact).map(|fetch| fetch.seq) else {
            return Ok(());
        };
        if !found.search_numbers().contains(&seq) {
            return Ok(());
        }
        self.history.push(Event::Expunging { key: key.into() });
        self.ask(&format!("STORE {seq} +FLAGS.SILENT (\\Deleted)"))?;
        self.ask("EXPUNGE")?;
        Ok(())
    }

    /// Adds a keyword to a message, by its sequence number; it need not be there.
    pub fn flag(&mut self, seq: usize, keyword: &str) -> Done<()> {
        let done = self.ask(&format!("STORE {seq} +FLAGS.SILENT ({keyword})"));
        self.after(done).map(drop)
    }

    /// A look that may be the last, in a view of its own: what an old session remembers does not
    /// count.
    fn last_look(&mut self) -> Result<Last, String> {
        self.client = None;
        let began = now();
        let done = self.rows(&self.items());
        let rows = self.after(done).map_err(|gone| format!("{gone:?}"))?;
        Ok(Last {
            began,
            uidvalidity: self.uidvalidity,
            rows,
        })
    }

    fn note_last(&mut self, last: Result<Last, String>) {
        let node = self.node;
        match last {
            Ok(Last {
                began,
                uidvalidity,
                rows,
            }) => {
                let event = Event::Final {
                    node,
                    uidvalidity,
                    rows,
                };
                self.history.push_since(began, event);
            }
            Err(why) => self.history.push(Event::NeverStable { node, why }),
        }
    }

    /// The mailbox as it is now, after a look for news.
    fn rows(&mut self, items: &str) -> Done<Vec<Row>> {
        let listed = self.listed(items)?;
        Ok(listed.into_iter().map(|(_, row)| row).collect())
    }

    /// All messages with their sequence numbers.
    fn listed(&mut self, items: &str) -> Done<Vec<(u32, Row)>> {
        self.ask("NOOP")?;
        match self.ask(&format!("FETCH 1:* {items}")) {
            Ok(reply) => Ok(listed_in(&reply)),
            // Dovecot's answer where there is no message.
            Err(Gone::Refused(text)) if text.contains("Invalid messageset") => Ok(Vec::new()),
            Err(other) => Err(other),
        }
    }
}

const SUBJECT_ITEM: &str = "BODY.PEEK[HEADER.FIELDS (SUBJECT)]";

/// The messages of an answer. A line without the header is a flag change that came by the way.
fn rows_of(reply: &Reply) -> Vec<Row> {
    listed_in(reply).into_iter().map(|(_, row)| row).collect()
}

/// The same with their sequence numbers.
fn listed_in(reply: &Reply) -> Vec<(u32, Row)> {
    let row = |fetch: Fetch| {
        let row = Row {
            uid: fetch.uid().unwrap_or(0),
            xid: fetch.xid().unwrap_or_default(),
            key: key_of(&fetch),
        };
        (fetch.seq, row)
    };
    let rows = reply.fetches().into_iter().map(row);
    rows.filter(|(_, row)| !row.key.is_empty()).collect()
}

/// The sequence numbers of an answer's EXPUNGEs, in their order.
fn expunged_in(reply: &Reply) -> Vec<u32> {
    let lines = reply.untagged("EXPUNGE").into_iter();
    let number = |line: &Line| line.text().split(' ').nth(1)?.parse().ok();
    lines.filter_map(number).collect()
}

/// What is left of messages after these EXPUNGEs.
pub fn still_there(listed: Vec<(u32, Row)>, expunged: &[u32]) -> Vec<Row> {
    let last = listed.iter().map(|(seq, _)| *seq).max().unwrap_or(0);
    let mut numbers: Vec<u32> = (1..=last).collect();
    for gone in expunged {
        let index = *gone as usize - 1;
        if index < numbers.len() {
            numbers.remove(index);
        }
    }
    let listed = listed.into_iter();
    let left = listed.filter(|(seq, _)| numbers.contains(seq));
    left.map(|(_, row)| row).collect()
}

fn key_of(fetch: &Fetch) -> String {
    let header = fetch.text("BODY[HEADER.FIELDS (SUBJECT)]");
    let header = header.unwrap_or_default();
    let value = header.trim().strip_prefix("Subject:").unwrap_or_default();
    value.trim().to_owned()
}

/// The UID in "1795460000 17".
fn appended_uid(code: Option<&str>) -> Option<u32> {
    code?.split_whitespace().nth(1)?.parse().ok()
}

/// Messages `from + 1..=from + count` written by turns on the observers' nodes, each by a thread
/// of its own; every observer looks after each of its messages. Gives the observers back.
pub fn write_by_turns(
    observers: Vec<Observer<'_>>,
    from: usize,
    count: usize,
    pause: Duration,
) -> Vec<Observer<'_>> {
    let writers = observers.len();
    at_once(observers, |index, observer| {
        for n in (1..=count).filter(|n| n % writers == index) {
            // Refused or lost: it was not acknowledged, which is all that counts.
            let _ = observer.append(from + n);
            let _ = observer.look();
            std::thread::sleep(pause);
        }
    })
}

/// Every observer does this by a thread of its own; gives them back.
pub fn at_once<'a>(
    observers: Vec<Observer<'a>>,
    work: impl Fn(usize, &mut Observer<'a>) + Sync,
) -> Vec<Observer<'a>> {
    let work = &work;
    std::thread::scope(|scope| {
        let threads: Vec<_> = observers
            .into_iter()
            .enumerate()
            .map(|(index, mut observer)| {
                scope.spawn(move || {
                    work(index, &mut observer);
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

/// While each of the writers does `work` (with its index) in a thread of its own, each of the
/// lookers looks at the whole mailbox again and again. Gives all of them back, writers first.
pub fn beside_lookers<'a>(
    writers: Vec<Observer<'a>>,
    lookers: Vec<Observer<'a>>,
    pause: Duration,
    work: impl Fn(usize, &mut Observer<'a>) + Sync,
) -> Vec<Observer<'a>> {
    let count = writers.len();
    let working = AtomicUsize::new(count);
    let all = writers.into_iter().chain(lookers).collect();
    at_once(all, |index, observer| {
        if index < count {
            work(index, observer);
            working.fetch_sub(1, Ordering::AcqRel);
            return;
        }
        while working.load(Ordering::Acquire) > 0 {
            let _ = observer.look();
            std::thread::sleep(pause);
        }
    })
}

/// The last look of every observer, and all that they saw. They look again and again until all
/// see the same and nobody lacks what was acknowledged, or the time is over: what is on its way
/// is not lost.
pub fn conclude(observers: &mut [Observer<'_>]) -> History {
    let mut history = History::default();
    for observer in observers.iter_mut() {
        history.extend(std::mem::take(&mut observer.history));
    }
    let deadline = Instant::now() + SETTLING;
    loop {
        let lasts: Vec<_> = observers.iter_mut().map(Observer::last_look).collect();
        if settled(&lasts, &history) || Instant::now() > deadline {
            for (observer, last) in observers.iter_mut().zip(lasts) {
                observer.note_last(last);
                history.extend(std::mem::take(&mut observer.history));
            }
            return history;
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// Whether all see the same, and everything that was acknowledged before.
fn settled(lasts: &[Result<Last, String>], history: &History) -> bool {
    let seen: Vec<&Last> = lasts.iter().flatten().collect();
    let agreed =
        seen.len() == lasts.len() && seen.windows(2).all(|pair| pair[0].rows == pair[1].rows);
    agreed
        && seen
            .iter()
            .all(|last| history.lacking(&last.rows).is_empty())
}

/// What may be a last look.
struct Last {
    began: Moment,
    uidvalidity: u32,
    rows: Vec<Row>,
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
