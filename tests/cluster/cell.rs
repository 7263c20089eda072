//! One mailbox on the nodes of a cell, in simulated time: the protocol core unchanged, an etcd
//! and a dsync of given latencies, and clients that append.

use super::carrier::{Host, Message, dsync};
use imap_xid::cluster::{
    At, Condition, Config, Incarnation, Kind, Node, Put, Replica, Rev, Rules, Snapshot, Stable,
    Step, Tail, Txn, Uid, View,
};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

/// Microseconds.
pub type Time = u64;

/// What the simulation takes as given; times in microseconds.
#[derive(Clone)]
pub struct Given {
    pub nodes: u8,
    /// Between any two nodes, there and back.
    pub rtt: Time,
    /// One write to a disk.
    pub fsync: Time,
    /// One command of the daemon on its own node.
    pub command: Time,
    /// A dsync between nodes with no distance between them.
    pub dsync: Time,
    /// How often a dsync waits for the other side.
    pub dsync_turns: u64,
    /// The daemon reads etcd afresh for each decision; else it follows a watch.
    pub reads: bool,
}

/// What was counted.
#[derive(Default)]
pub struct Counts {
    pub writes: u64,
    pub refused: u64,
    pub bytes: u64,
    pub reads: u64,
    pub syncs: u64,
    pub sync_refused: u64,
    pub gates: u64,
    /// From an append's wish to its end.
    pub appends: Vec<Time>,
    /// From an append to its UID being usable where it was made.
    pub usable_here: Vec<Time>,
    /// ... and on all nodes.
    pub usable_everywhere: Vec<Time>,
}

type Txn32 = Txn<u32, u32>;
type Step32 = Step<u32, u32>;
type Etcd = Snapshot<u32, u32>;

enum Event {
    Append {
        node: usize,
    },
    /// A fresh read of etcd passes it.
    Read {
        node: usize,
    },
    Turn {
        node: usize,
    },
    Done {
        node: usize,
        step: Box<Step32>,
    },
    Synced {
        node: usize,
        peer: usize,
        awaited: bool,
    },
    Apply {
        node: usize,
        txn: Box<Txn32>,
    },
    Reply {
        node: usize,
        wrote: Option<Rev>,
    },
    Deliver {
        node: usize,
        etcd: Box<Etcd>,
    },
}

struct Member {
    host: Host,
    replica: Replica,
    seen: Etcd,
    /// A turn or a step is under way.
    busy: bool,
    /// Something changed since the last look.
    news: bool,
    /// Appends that wait for the gate.
    waiting: Vec<Time>,
    /// Takes part in a dsync.
    locked: bool,
    /// What was pushed to whom: what we had, and what it said. The same is not pushed twice.
    pushed: BTreeMap<usize, (Vec<Message>, Uid, Rev, Rev)>,
}

/// An append and how far it got.
struct Sent {
    node: usize,
    at: Time,
    shown: Vec<bool>,
}

pub struct Cell {
    given: Given,
    now: Time,
    queue: BinaryHeap<Reverse<(Time, u64)>>,
    events: BTreeMap<u64, Event>,
    members: Vec<Member>,
    etcd: Etcd,
    rev: u64,
    sent: Vec<Sent>,
    pub counts: Counts,
}

const DISK: Incarnation = Incarnation(1);
const WINDOW: u32 = 10_000;
/// No workload here needs so many events; more means that the mailbox never settles.
const MOST_EVENTS: u64 = 50_000_000;

impl Cell {
    pub fn new(given: Given) -> Cell {
        let alive: BTreeMap<_, _> = (0..given.nodes).map(|n| (Node(n), DISK)).collect();
        let record = Stable {
            uid: 0,
            floor: 0,
            holders: alive.clone(),
        };
        let host = || Host {
            next: 1,
            limit: record.limit(WINDOW),
            bound: record.bound(WINDOW),
            ..Host::default()
        };
        let etcd = Snapshot {
            stable: Some(At {
                rev: Rev(1),
                value: record.clone(),
            }),
            tails: BTreeMap::new(),
            gate: None,
            alive,
            complete: true,
        };
        let member = |_| Member {
            host: host(),
            replica: Replica::default(),
            seen: etcd.clone(),
            busy: false,
            news: false,
            waiting: Vec::new(),
            locked: false,
            pushed: BTreeMap::new(),
        };
        Cell {
            members: (0..given.nodes).map(member).collect(),
            given,
            now: 0,
            queue: BinaryHeap::new(),
            events: BTreeMap::new(),
            etcd,
            rev: 1,
            sent: Vec::new(),
            counts: Counts::default(),
        }
    }

    /// A client on this node will append a message.
    pub fn append_at(&mut self, at: Time, node: usize) {
        self.after(at, Event::Append { node });
    }

    /// Goes on until nothing happens any more. `Err`: the mailbox does not settle.
    pub fn run(&mut self) -> Result<(), &'static str> {
        for _ in 0..MOST_EVENTS {
            let Some(Reverse((at, number))) = self.queue.pop() else {
                let last = self.members.iter().map(|m| m.host.next - 1);
                let settled = last
                    .zip(&self.members)
                    .all(|(last, m)| m.host.shown == last);
                return settled.then_some(()).ok_or("some UIDs stayed unstable");
            };
            self.now = at;
            if let Some(event) = self.events.remove(&number) {
                self.happen(event);
            }
        }
        Err("no end")
    }

    fn after(&mut self, delay: Time, event: Event) {
        let number = self.events.last_key_value().map_or(0, |(n, _)| n + 1);
        let number = number.max(self.queue.len() as u64);
        self.events.insert(number, event);
        self.queue.push(Reverse((self.now + delay, number)));
    }

    /// etcd's leader is beside node 0.
    fn to_leader(&self, node: usize) -> Time {
        if node == 0 { 0 } else { self.given.rtt / 2 }
    }

    /// A majority has it on disk.
    fn agreed(&self) -> Time {
        self.heard() + self.given.fsync
    }

    /// A majority has answered.
    fn heard(&self) -> Time {
        if self.given.nodes > 1 {
            self.given.rtt
        } else {
            0
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Append { node } => self.append(node),
            Event::Read { node } => {
                self.members[node].seen = self.etcd.clone();
                self.after(self.to_leader(node), Event::Turn { node });
            }
            Event::Turn { node } => self.turn(node),
            Event::Done { node, step } => self.done(node, *step),
            Event::Synced {
                node,
                peer,
                awaited,
            } => self.end_sync(node, peer, awaited),
            Event::Apply { node, txn } => self.apply(node, *txn),
            Event::Reply { node, wrote } => {
                self.members[node].replica.txn_done(wrote);
                self.members[node].busy = false;
                self.wake(node);
            }
            Event::Deliver { node, etcd } => {
                self.members[node].seen = *etcd;
                self.wake(node);
            }
        }
    }

    fn append(&mut self, node: usize) {
        let now = self.now;
        let member = &mut self.members[node];
        if member.host.gated {
            member.waiting.push(now);
            return;
        }
        self.take(node, now);
    }

    /// A message that a client sent at `at` gets a UID.
    fn take(&mut self, node: usize, at: Time) {
        self.counts.appends.push(self.now - at);
        self.members[node].host.append(self.sent.len() as u32);
        self.sent.push(Sent {
            node,
            at,
            shown: vec![false; self.members.len()],
        });
        self.wake(node);
    }

    /// Looks again, at once or when what is under way has ended.
    fn wake(&mut self, node: usize) {
        self.members[node].news = true;
        if self.members[node].busy {
            return;
        }
        self.members[node].busy = true;
        self.members[node].news = false;
        if self.given.reads {
            self.counts.reads += 1;
            let asked = self.to_leader(node) + self.heard();
            self.after(asked.max(self.given.command), Event::Read { node });
        } else {
            self.after(self.given.command, Event::Turn { node });
        }
    }

    fn config(node: usize) -> Config {
        Config {
            me: Node(node as u8),
            incarnation: DISK,
            window: WINDOW,
            chunk: 4000,
            gate_after: 1,
            rules: Rules::default(),
        }
    }

    fn turn(&mut self, node: usize) {
        let config = Cell::config(node);
        let member = &mut self.members[node];
        let view = View {
            etcd: member.seen.clone(),
            local: member.host.local(),
            source: None,
        };
        let early = pushes(&member.replica, &config, &view);
        let step = member.replica.next(&config, &view);
        let delay = match &step {
            Step::Wait => return self.rest(node),
            Step::Txn(txn) => {
                if txn.kind == Kind::Publish {
                    early.into_iter().for_each(|peer| self.push(node, peer));
                }
                let txn = Box::new(txn.clone());
                let delay = self.to_leader(node) + self.agreed();
                return self.after(delay, Event::Apply { node, txn });
            }
            Step::Sync { peer, .. } if view.etcd.firm(config.me) => {
                self.push(node, peer.0 as usize);
                return self.rest(node);
            }
            Step::Sync { peer, .. } => return self.start_sync(node, peer.0 as usize, true),
            Step::Promise { .. } | Step::Expose { .. } => self.given.command + self.given.fsync,
            _ => self.given.command,
        };
        let step = Box::new(step);
        self.after(delay, Event::Done { node, step });
    }

    /// Has a dsync carry over what a peer lacks, beside whatever else is done.
    fn push(&mut self, node: usize, peer: usize) {
        let member = &self.members[node];
        let theirs = member.seen.tails.get(&Node(peer as u8));
        let stable = member.seen.stable.as_ref().map_or(Rev(0), |s| s.rev);
        let local = member.host.local();
        let why = (
            local.entries,
            local.next,
            theirs.map_or(Rev(0), |t| t.rev),
            stable,
        );
        if member.locked || self.members[peer].locked || member.pushed.get(&peer) == Some(&why) {
            return;
        }
        self.members[node].pushed.insert(peer, why);
        self.start_sync(node, peer, false);
    }

    /// Nothing to do until something changes.
    fn rest(&mut self, node: usize) {
        self.members[node].busy = false;
        if self.members[node].news {
            self.wake(node);
        }
    }

    fn start_sync(&mut self, node: usize, peer: usize, awaited: bool) {
        if self.members[node].locked || self.members[peer].locked {
            // Whoever has the lock wakes everyone when it is free.
            return self.rest(node);
        }
        self.members[node].locked = true;
        self.members[peer].locked = true;
        self.counts.syncs += 1;
        let delay = self.given.dsync + self.given.dsync_turns * self.given.rtt;
        let end = Event::Synced {
            node,
            peer,
            awaited,
        };
        self.after(delay, end);
    }

    fn done(&mut self, node: usize, step: Step32) {
        let host = &mut self.members[node].host;
        match step {
            Step::Promise { end } => host.promised = end,
            Step::Release { to } => host.promised = to,
            Step::Expose { uid, limit, bound } => {
                host.shown = host.shown.max(uid);
                (host.limit, host.bound) = (limit, bound);
                self.note_shown(node);
            }
            Step::Gate { closed } => self.gate(node, closed),
            // Nobody is dropped here, so that nothing is moved, staged or joined.
            _ => {}
        }
        self.members[node].busy = false;
        self.wake(node);
    }

    fn gate(&mut self, node: usize, closed: bool) {
        self.members[node].host.gated = closed;
        if closed {
            return;
        }
        for at in std::mem::take(&mut self.members[node].waiting) {
            self.take(node, at);
        }
    }

    fn end_sync(&mut self, node: usize, peer: usize, awaited: bool) {
        let (low, high) = (node.min(peer), node.max(peer));
        let (left, right) = self.members.split_at_mut(high);
        let refused = dsync([&mut left[low].host, &mut right[0].host]);
        self.counts.sync_refused += u64::from(refused);
        self.members[node].locked = false;
        self.members[peer].locked = false;
        if awaited {
            self.members[node].busy = false;
        }
        (0..self.members.len()).for_each(|n| self.wake(n));
    }

    /// Which messages' UIDs became usable on this node.
    fn note_shown(&mut self, node: usize) {
        let host = &self.members[node].host;
        for message in host.mail.range(..=host.shown).map(|(_, m)| *m as usize) {
            let sent = &mut self.sent[message];
            if std::mem::replace(&mut sent.shown[node], true) {
                continue;
            }
            let passed = self.now - sent.at;
            if sent.node == node {
                self.counts.usable_here.push(passed);
            }
            if sent.shown.iter().all(|s| *s) {
                self.counts.usable_everywhere.push(passed);
            }
        }
    }

    /// A transaction passes etcd; everyone hears of it.
    fn apply(&mut self, node: usize, txn: Txn32) {
        let holds = txn.when.iter().all(|c| self.holds(c));
        let back = self.to_leader(node);
        let mut wrote = None;
        if holds {
            self.rev += 1;
            wrote = Some(Rev(self.rev));
            self.counts.writes += 1;
            txn.then.into_iter().for_each(|put| self.write(put));
            for other in 0..self.members.len() {
                let etcd = Box::new(self.etcd.clone());
                let delay = self.to_leader(other);
                self.after(delay, Event::Deliver { node: other, etcd });
            }
        } else {
            self.counts.refused += 1;
        }
        self.after(back, Event::Reply { node, wrote });
    }

    fn holds(&self, condition: &Condition) -> bool {
        let stable = self.etcd.stable.as_ref().map_or(Rev(0), |s| s.rev);
        match condition {
            Condition::Stable(rev) => stable == *rev,
            Condition::Tail(node, rev) => self.tail_rev(*node) == *rev,
            Condition::Dead(node, disk) => self.etcd.alive.get(node) != Some(disk),
            Condition::GateOpen => self.etcd.gate.is_none(),
            Condition::GateOf(node) => self.etcd.gate == Some(*node),
        }
    }

    fn tail_rev(&self, node: Node) -> Rev {
        self.etcd.tails.get(&node).map_or(Rev(0), |t| t.rev)
    }

    fn write(&mut self, put: Put<u32, u32>) {
        self.counts.bytes += size(&put);
        let rev = Rev(self.rev);
        match put {
            Put::Stable(value) => self.etcd.stable = Some(At { rev, value }),
            Put::Tail(node, value) => {
                self.etcd.tails.insert(node, At { rev, value });
            }
            Put::DropTail(node) => {
                self.etcd.tails.remove(&node);
            }
            Put::Gate(node) => {
                self.counts.gates += 1;
                self.etcd.gate = Some(node);
            }
            Put::DropGate => self.etcd.gate = None,
        }
    }
}

trait Firm {
    /// Whether this node counts on its promise.
    fn firm(&self, node: Node) -> bool;
}

impl Firm for Etcd {
    fn firm(&self, node: Node) -> bool {
        self.tails.get(&node).is_some_and(|t| t.value.firm)
    }
}

/// To whom the core would push once the tail that it is about to publish is there: the daemon
/// does not wait for it.
fn pushes(replica: &Replica, config: &Config, view: &View<u32, u32>) -> Vec<usize> {
    let (mut replica, mut view) = (replica.clone(), view.clone());
    let mut found = Vec::new();
    for _ in 0..1 + view.etcd.alive.len() {
        match replica.next(config, &view) {
            Step::Txn(txn) if txn.kind == Kind::Publish => {
                let Some(Put::Tail(_, value)) = txn.then.into_iter().next() else {
                    break;
                };
                view.etcd.tails.insert(config.me, At { rev: NEW, value });
                replica.txn_done(Some(NEW));
            }
            Step::Sync { peer, .. } if view.etcd.firm(config.me) => {
                found.push(peer.0 as usize);
                let Some(mine) = view.etcd.tails.get(&config.me) else {
                    break;
                };
                let value = mine.value.clone();
                view.etcd.tails.insert(peer, At { rev: NEW, value });
            }
            _ => break,
        }
    }
    found
}

/// A revision that no key has.
const NEW: Rev = Rev(u64::MAX);

/// Key and value, as `src/etcd` writes them, for a user's name of 20 bytes.
fn size(put: &Put<u32, u32>) -> u64 {
    let key = "/imap-xid/mail/box/".len() + 20 + "/".len() + 32 + "/stable".len();
    let value = match put {
        Put::Stable(stable) => stable_size(stable),
        Put::Tail(_, tail) => tail_size(tail),
        Put::Gate(_) => 1,
        Put::DropTail(_) | Put::DropGate => 0,
    };
    (key + value) as u64
}

/// Of a mailbox's record.
pub fn stable_size(stable: &Stable) -> usize {
    let (uid, floor) = (stable.uid, stable.floor);
    let text = format!(r#"{{"uid":{uid},"floor":{floor},"holders":{{}}}}"#);
    text.len() + stable.holders.len() * r#""0":1,"#.len()
}

fn tail_size(tail: &Tail<u32, u32>) -> usize {
    let (end, next) = (tail.end, tail.next);
    let text = format!(r#"{{"firm":true,"end":{end},"next":{next},"entries":[]}}"#);
    let entry = |uid: u32| format!(r#"[{uid},"","alpha-1000000",false],"#).len() + 32;
    text.len() + tail.entries.iter().map(|e| entry(e.uid)).sum::<usize>()
}
