//! A mailbox on one node, and what a dsync makes of two of them, for the simulator.

use imap_xid::cluster::{Entry, Local, Uid};
use std::collections::BTreeMap;

/// GUID and XID are the message's number.
pub type Message = Entry<u32, u32>;

/// A mailbox and its table slot.
#[derive(Default)]
pub struct Host {
    pub mail: BTreeMap<Uid, u32>,
    pub next: Uid,
    pub promised: Uid,
    pub shown: Uid,
    pub limit: Uid,
    pub bound: Uid,
    pub gated: bool,
}

impl Host {
    pub fn append(&mut self, message: u32) {
        self.mail.insert(self.next, message);
        self.next += 1;
    }

    /// What the daemon is told: all above S.
    pub fn local(&self) -> Local<u32, u32> {
        let entry = |(uid, message): (&Uid, &u32)| Message {
            uid: *uid,
            guid: *message,
            xid: *message,
            expunged: false,
        };
        Local {
            entries: self.mail.range(self.shown + 1..).map(entry).collect(),
            next: self.next,
            promised: self.promised,
            shown: self.shown,
            limit: self.limit,
            bound: self.bound,
            gated: self.gated,
            staged: Vec::new(),
        }
    }

    /// What this one has above `from`, and the other one not under this UID.
    fn unlike(&self, other: &Host, from: Uid) -> Vec<(Uid, u32)> {
        let above = self.mail.range(from..);
        above
            .filter(|(uid, m)| other.mail.get(uid) != Some(m))
            .map(|(uid, m)| (*uid, *m))
            .collect()
    }

    fn find(&self, message: u32, from: Uid) -> Option<Uid> {
        let mut above = self.mail.range(from..);
        above.find(|(_, m)| **m == message).map(|(uid, _)| *uid)
    }

    /// Makes the changes of one conflict, unless the interlock refuses them.
    fn change(&mut self, moves: &[(Uid, Uid)], news: &[(Uid, u32)], next: Uid) -> bool {
        let fixed = self.shown.max(self.promised);
        if moves.iter().any(|(from, _)| *from <= fixed) {
            return false;
        }
        let moved: Vec<_> = moves
            .iter()
            .filter_map(|(from, to)| self.mail.remove(from).map(|m| (*to, m)))
            .collect();
        self.mail.extend(moved);
        self.mail.extend(news.iter().copied());
        self.next = self.next.max(next);
        true
    }
}

/// One side's part of a dsync.
#[derive(Default)]
struct Part {
    plain: Vec<(Uid, u32)>,
    moves: Vec<(Uid, Uid)>,
    news: Vec<(Uid, u32)>,
}

/// A whole dsync: whatever differs above the watermarks gets one UID on both sides, by dsync's
/// own rule. Returns whether an interlock refused.
pub fn dsync(hosts: [&mut Host; 2]) -> bool {
    let from = hosts[0].shown.min(hosts[1].shown) + 1;
    let [one, two] = hosts;
    let ends = [one.next, two.next];
    let mut next = one.next.max(two.next);
    let mut parts = [Part::default(), Part::default()];
    let mut odd: Vec<(Uid, usize, u32)> = Vec::new();
    odd.extend(one.unlike(two, from).iter().map(|(u, m)| (*u, 0, *m)));
    odd.extend(two.unlike(one, from).iter().map(|(u, m)| (*u, 1, *m)));
    odd.sort_unstable();
    for (uid, here, message) in odd {
        let there = 1 - here;
        let twin = [&*two, &*one][here].find(message, from);
        let mut fresh = || {
            next += 1;
            next - 1
        };
        match twin {
            // Settled from its other side.
            Some(twin) if (twin, there) < (uid, here) => {}
            Some(twin) => {
                let to = if uid >= ends[there] {
                    uid
                } else if twin >= ends[here] {
                    twin
                } else {
                    fresh()
                };
                for (side, at) in [(here, uid), (there, twin)] {
                    if at != to {
                        parts[side].moves.push((at, to));
                    }
                }
            }
            None if uid >= ends[there] => parts[there].plain.push((uid, message)),
            None => {
                let to = fresh();
                parts[here].moves.push((uid, to));
                parts[there].news.push((to, message));
            }
        }
    }
    let [a, b] = parts;
    let done = [(one, a), (two, b)].map(|(host, part)| {
        host.mail.extend(part.plain.iter().copied());
        let last = part.plain.last().map_or(0, |(uid, _)| uid + 1);
        host.next = host.next.max(last);
        host.change(&part.moves, &part.news, next)
    });
    done != [true, true]
}
