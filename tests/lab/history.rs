//! What clients saw, and whether it is what the invariants allow.
//!
//! The checker knows nothing of the code under test: it is given the lines that clients got,
//! each with the node it came from, and judges them by the rules a client author would write
//! down (I1 to I6 of docs/cluster-model.md).

// Every program takes what it needs of it.
#![allow(dead_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// A message as the workload knows it: the value of a header that it wrote itself.
pub type Key = String;

/// A moment, in an order that all clients of this process agree on.
pub type Moment = u64;

/// This moment, later than every one given before.
pub fn now() -> Moment {
    static CLOCK: AtomicU64 = AtomicU64::new(1);
    CLOCK.fetch_add(1, Ordering::SeqCst)
}

/// One thing that a client saw or did. `node` numbers start at 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The server acknowledged an APPEND or a delivery.
    Acknowledged { node: usize, key: Key },
    /// A client asked that the message be expunged; it may go from here on.
    Expunging { key: Key },
    /// A client was told UIDNEXT.
    UidNext {
        node: usize,
        uidvalidity: u32,
        uidnext: u32,
    },
    /// A whole listing of the mailbox, after the client had asked for news: (UID, XID, message)
    /// by sequence number. UIDs that were not shown are 0; an XID that was not is empty.
    Listing {
        node: usize,
        uidvalidity: u32,
        rows: Vec<Row>,
    },
    /// A single message was shown under a UID (a FETCH answer, APPENDUID, COPYUID).
    Shown {
        node: usize,
        uidvalidity: u32,
        uid: u32,
        key: Key,
    },
    /// A client asked `XHXID <its state>`. `before` is what it saw in the mailbox just before
    /// that; `announced` is the answer. A client that threw its cache away starts as a new one.
    News {
        client: String,
        before: Vec<Row>,
        announced: Vec<String>,
    },
    /// A client was told that its cache is of another mailbox, or that the server lost data.
    Reset { client: String },
    /// The last listing of a node after everything was healed and settled.
    Final {
        node: usize,
        uidvalidity: u32,
        rows: Vec<Row>,
    },
    /// A node that could not list the mailbox with its UIDs in the end; why.
    NeverStable { node: usize, why: String },
}

impl Event {
    fn is_listing(&self) -> bool {
        matches!(self, Event::Listing { .. } | Event::Final { .. })
    }

    /// Where it was seen (0: that does not matter), and what it says of a message.
    fn about(&self, key: &str) -> (usize, Option<String>) {
        let is = |its: &Key, text: &str| (its == key).then(|| text.to_owned());
        match self {
            Event::Acknowledged { node, key } => (*node, is(key, "acknowledged")),
            Event::Expunging { key } => (0, is(key, "being expunged")),
            Event::Shown { node, uid, key, .. } => (*node, is(key, &format!("shown as UID {uid}"))),
            Event::Listing { node, rows, .. } | Event::Final { node, rows, .. } => {
                let there = rows.iter().filter(|row| row.key == key);
                let there: Vec<String> =
                    there.map(|r| format!("UID {} {}", r.uid, r.xid)).collect();
                (*node, Some(format!("listed: {there:?}")))
            }
            Event::UidNext { node, .. } | Event::NeverStable { node, .. } => (*node, None),
            Event::News { .. } | Event::Reset { .. } => (0, None),
        }
    }
}

/// A message in a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The UID shown, 0 if none was.
    pub uid: u32,
    /// The XID shown, empty if none was.
    pub xid: String,
    /// Which message it was.
    pub key: Key,
}

/// A broken invariant, in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// "I1" to "I6".
    pub invariant: &'static str,
    /// What was seen that must not be.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.invariant, self.what)
    }
}

/// What happened to the messages, as a user would count it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Messages for which more than one UID was shown.
    pub changed: usize,
    /// Acknowledged messages that some node does not have at the end.
    pub lost: usize,
    /// Messages that some node has more than once at the end.
    pub duplicated: usize,
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "changed {} lost {} duplicated {}",
            self.changed, self.lost, self.duplicated
        )
    }
}

/// An event with the moments at which its command was sent and its answer had come.
#[derive(Clone, Debug)]
struct Seen {
    began: Moment,
    ended: Moment,
    /// For who compares it with logs.
    at: SystemTime,
    event: Event,
}

/// Everything that was seen.
#[derive(Clone, Debug, Default)]
pub struct History {
    seen: Vec<Seen>,
}

/// A listing, of either kind, in a place: a node under a UIDVALIDITY.
struct Listing<'a> {
    began: Moment,
    ended: Moment,
    node: usize,
    uidvalidity: u32,
    rows: &'a [Row],
}

type Place = (usize, u32);

impl History {
    /// Adds what a client saw just now, without a command that asked for it.
    pub fn push(&mut self, event: Event) {
        self.push_since(now(), event);
    }

    /// Adds what a client saw in the answer to a command that it sent at `began`.
    pub fn push_since(&mut self, began: Moment, event: Event) {
        self.seen.push(Seen {
            began,
            ended: now(),
            at: SystemTime::now(),
            event,
        });
    }

    /// Adds what another recorder saw.
    pub fn extend(&mut self, other: History) {
        self.seen.extend(other.seen);
        self.seen.sort_by_key(|seen| seen.ended);
    }

    /// What clients saw of a message, a line each, with the seconds of the day (UTC). A listing that
    /// has it as the one before on that node did is left out.
    pub fn story(&self, key: &str) -> Vec<String> {
        let mut last = BTreeMap::new();
        let mut lines = Vec::new();
        for seen in &self.seen {
            let (node, text) = seen.event.about(key);
            let Some(text) = text else { continue };
            let known = last.insert((node, seen.event.is_listing()), text.clone());
            if !seen.event.is_listing() || known.as_ref() != Some(&text) {
                let at = seen.at.duration_since(UNIX_EPOCH).unwrap_or_default();
                let seconds = at.as_secs_f64() % 86_400.0;
                lines.push(format!("{seconds:.3} node {node}: {text}"));
            }
        }
        lines
    }

    fn events(&self) -> impl Iterator<Item = &Event> {
        self.seen.iter().map(|seen| &seen.event)
    }

    /// Every (UIDVALIDITY, UID, message) that left a server.
    fn shown(&self) -> impl Iterator<Item = (u32, u32, &Key)> {
        let single = self.events().filter_map(|event| match event {
            Event::Shown {
                uidvalidity,
                uid,
                key,
                ..
            } => Some((*uidvalidity, *uid, key)),
            _ => None,
        });
        let listed = self.listings().flat_map(|listing| {
            let rows = listing.rows.iter().filter(|row| row.uid != 0);
            rows.map(move |row| (listing.uidvalidity, row.uid, &row.key))
        });
        single.chain(listed)
    }

    fn listings(&self) -> impl Iterator<Item = Listing<'_>> {
        self.seen.iter().filter_map(|seen| match &seen.event {
            Event::Listing {
                node,
                uidvalidity,
                rows,
            }
            | Event::Final {
                node,
                uidvalidity,
                rows,
            } => Some(Listing {
                began: seen.began,
                ended: seen.ended,
                node: *node,
                uidvalidity: *uidvalidity,
                rows,
            }),
            _ => None,
        })
    }

    /// All rows in which clients saw messages, with or without UIDs.
    fn rows(&self) -> impl Iterator<Item = &Row> {
        self.events().flat_map(|event| match event {
            Event::Listing { rows, .. } | Event::Final { rows, .. } => rows.as_slice(),
            Event::News { before, .. } => before.as_slice(),
            _ => &[],
        })
    }

    /// Counts what a user would complain about.
    pub fn count(&self) -> Count {
        let mut uids: BTreeMap<&Key, BTreeSet<(u32, u32)>> = BTreeMap::new();
        for (uidvalidity, uid, key) in self.shown() {
            uids.entry(key).or_default().insert((uidvalidity, uid));
        }
        let (lost, duplicated) = self.fates();
        Count {
            changed: uids.values().filter(|set| set.len() > 1).count(),
            lost: lost.len(),
            duplicated: duplicated.len(),
        }
    }

    /// How many different messages were acknowledged.
    pub fn acknowledged(&self) -> usize {
        let keys = self.events().filter_map(|event| match event {
            Event::Acknowledged { key, .. } => Some(key),
            _ => None,
        });
        keys.collect::<BTreeSet<_>>().len()
    }

    /// How many times a UID, or a whole listing with them, was shown.
    pub fn looks(&self) -> usize {
        self.listings()
            .filter(|listing| listing.rows.iter().any(|row| row.uid != 0))
            .count()
    }

    fn expunged(&self) -> BTreeSet<&Key> {
        let keys = self.events().filter_map(|event| match event {
            Event::Expunging { key } => Some(key),
            _ => None,
        });
        keys.collect()
    }

    /// Messages that were acknowledged, and that nobody asked to have expunged.
    fn kept(&self) -> BTreeSet<&Key> {
        let expunged = self.expunged();
        let acknowledged = self.events().filter_map(|event| match event {
            Event::Acknowledged { key, .. } => Some(key),
            _ => None,
        });
        acknowledged.filter(|key| !expunged.contains(key)).collect()
    }

    /// Which of them this listing lacks.
    pub fn lacking(&self, rows: &[Row]) -> Vec<&Key> {
        let here: BTreeSet<&str> = rows.iter().map(|row| row.key.as_str()).collect();
        let kept = self.kept().into_iter();
        kept.filter(|key| !here.contains(key.as_str())).collect()
    }

    /// Acknowledged messages that are missing somewhere, and messages that are somewhere twice.
    fn fates(&self) -> (BTreeSet<&Key>, BTreeSet<&Key>) {
        let (mut lost, mut duplicated) = (BTreeSet::new(), BTreeSet::new());
        for event in self.events() {
            let Event::Final { rows, .. } = event else {
                continue;
            };
            let mut seen = BTreeSet::new();
            duplicated.extend(rows.iter().map(|r| &r.key).filter(|key| !seen.insert(*key)));
            lost.extend(self.lacking(rows));
        }
        (lost, duplicated)
    }

    /// Everything that must not have been seen.
    pub fn violations(&self) -> Vec<Violation> {
        let mut found = Vec::new();
        self.check_uid_names_one_message(&mut found);
        self.check_ascending(&mut found);
        self.check_uidnext(&mut found);
        self.check_nothing_below_uidnext(&mut found);
        self.check_xids(&mut found);
        self.check_news(&mut found);
        self.check_fates(&mut found);
        self.check_agreement(&mut found);
        found
    }

    /// I1: one UID, one message, on every node and for ever; and a message has one UID.
    fn check_uid_names_one_message(&self, found: &mut Vec<Violation>) {
        let mut message_of: BTreeMap<(u32, u32), &Key> = BTreeMap::new();
        let mut uid_of: BTreeMap<&Key, (u32, u32)> = BTreeMap::new();
        for (uidvalidity, uid, key) in self.shown() {
            let first = message_of.entry((uidvalidity, uid)).or_insert(key);
            if *first != key {
                found.push(Violation {
                    invariant: "I1",
                    what: format!("UID {uid} was shown for {first} and for {key}"),
                });
            }
            let first = *uid_of.entry(key).or_insert((uidvalidity, uid));
            if first != (uidvalidity, uid) {
                let (before, old) = first;
                found.push(Violation {
                    invariant: "I1",
                    what: format!(
                        "{key} was shown as UID {old} and as UID {uid} \
                         (UIDVALIDITY {before} and {uidvalidity})"
                    ),
                });
            }
        }
    }

    /// I2, first part: UIDs ascend with sequence numbers.
    fn check_ascending(&self, found: &mut Vec<Violation>) {
        for Listing { node, rows, .. } in self.listings() {
            let uids: Vec<u32> = rows.iter().map(|r| r.uid).filter(|uid| *uid != 0).collect();
            for pair in uids.windows(2).filter(|pair| pair[0] >= pair[1]) {
                found.push(Violation {
                    invariant: "I2",
                    what: format!("node {node} listed UID {} before UID {}", pair[0], pair[1]),
                });
            }
        }
    }

    /// Below what a node said nothing new may appear: (when it had said so, the UIDNEXT), by
    /// time, each the highest until then.
    fn floors(&self) -> BTreeMap<Place, Vec<(Moment, u32)>> {
        let mut told: BTreeMap<Place, Vec<(Moment, u32)>> = BTreeMap::new();
        for seen in &self.seen {
            let (place, next) = match &seen.event {
                Event::UidNext {
                    node,
                    uidvalidity,
                    uidnext,
                } => ((*node, *uidvalidity), *uidnext),
                Event::Shown {
                    node,
                    uidvalidity,
                    uid,
                    ..
                } => ((*node, *uidvalidity), uid + 1),
                _ => continue,
            };
            told.entry(place).or_default().push((seen.ended, next));
        }
        for listing in self.listings() {
            let top = listing.rows.iter().map(|row| row.uid).max().unwrap_or(0);
            let place = (listing.node, listing.uidvalidity);
            let floors = told.entry(place).or_default();
            floors.push((listing.ended, top + 1));
        }
        for floors in told.values_mut() {
            floors.sort_unstable();
            let mut highest = 0;
            for (_, next) in floors.iter_mut() {
                highest = highest.max(*next);
                *next = highest;
            }
        }
        told
    }

    /// I2, second part: a node's UIDNEXT never goes down.
    fn check_uidnext(&self, found: &mut Vec<Violation>) {
        let floors = self.floors();
        for seen in &self.seen {
            let Event::UidNext {
                node,
                uidvalidity,
                uidnext,
            } = &seen.event
            else {
                continue;
            };
            let floor = floor_at(&floors, (*node, *uidvalidity), seen.began);
            if *uidnext < floor {
                found.push(Violation {
                    invariant: "I2",
                    what: format!("node {node} showed UIDNEXT {floor}, later {uidnext}"),
                });
            }
        }
    }

    /// I2, third part: a message that was not there when a node had said UIDNEXT never appears
    /// below that UIDNEXT on that node. "Not there" is told by a whole listing that began after
    /// it was said, and ended before the first one that has the message began.
    fn check_nothing_below_uidnext(&self, found: &mut Vec<Violation>) {
        let floors = self.floors();
        let mut first: BTreeMap<(Place, u32), Moment> = BTreeMap::new();
        let mut looked: BTreeMap<Place, Vec<(Moment, u32)>> = BTreeMap::new();
        for listing in self.listings() {
            let shown = |row: &&Row| row.uid != 0;
            if !listing.rows.is_empty() && !listing.rows.iter().any(|row| row.uid != 0) {
                continue;
            }
            let place = (listing.node, listing.uidvalidity);
            let top = listing.rows.iter().map(|row| row.uid).max().unwrap_or(0);
            let floor = floor_at(&floors, place, listing.began).max(top + 1);
            looked
                .entry(place)
                .or_default()
                .push((listing.ended, floor));
            for row in listing.rows.iter().filter(shown) {
                let began = first.entry((place, row.uid)).or_insert(listing.began);
                *began = (*began).min(listing.began);
            }
        }
        for looks in looked.values_mut() {
            looks.sort_unstable();
            let mut highest = 0;
            for (_, floor) in looks.iter_mut() {
                highest = highest.max(*floor);
                *floor = highest;
            }
        }
        for ((place, uid), began) in first {
            let floor = floor_at(&looked, place, began);
            if uid < floor {
                let node = place.0;
                found.push(Violation {
                    invariant: "I2",
                    what: format!("node {node}: UID {uid} appeared below UIDNEXT {floor}"),
                });
            }
        }
    }

    /// I3: an XID names one message, and a message keeps its XID.
    fn check_xids(&self, found: &mut Vec<Violation>) {
        let mut message_of: BTreeMap<&str, &Key> = BTreeMap::new();
        let mut xids_of: BTreeMap<&Key, BTreeSet<&str>> = BTreeMap::new();
        for row in self.rows().filter(|row| !row.xid.is_empty()) {
            let first = message_of.entry(&row.xid).or_insert(&row.key);
            if *first != &row.key {
                found.push(Violation {
                    invariant: "I3",
                    what: format!("XID {} was shown for {first} and for {}", row.xid, row.key),
                });
            }
            xids_of.entry(&row.key).or_default().insert(&row.xid);
        }
        for (key, xids) in xids_of.iter().filter(|(_, xids)| xids.len() > 1) {
            let xids: Vec<&str> = xids.iter().copied().collect();
            found.push(Violation {
                invariant: "I3",
                what: format!("{key} had the XIDs {}", xids.join(" and ")),
            });
        }
    }

    /// I4: what a client saw in the mailbox it has been told of once it had asked for news.
    fn check_news(&self, found: &mut Vec<Violation>) {
        let expunged = self.expunged();
        let mut known: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for event in self.events() {
            match event {
                Event::News {
                    client,
                    before,
                    announced,
                } => {
                    let knows = known.entry(client).or_default();
                    knows.extend(announced.iter().map(String::as_str));
                    let here = before.iter().filter(|row| !expunged.contains(&row.key));
                    for row in here.filter(|row| !knows.contains(row.xid.as_str())) {
                        found.push(Violation {
                            invariant: "I4",
                            what: format!("{client} was never told of {} ({})", row.xid, row.key),
                        });
                    }
                }
                Event::Reset { client } => found.push(Violation {
                    invariant: "I4",
                    what: format!("{client} was told to throw its cache away"),
                }),
                _ => {}
            }
        }
    }

    /// I5: nothing acknowledged is lost, nothing is there twice.
    fn check_fates(&self, found: &mut Vec<Violation>) {
        let (lost, duplicated) = self.fates();
        let lost = lost
            .iter()
            .map(|key| format!("{key} was acknowledged and is lost"));
        let twice = duplicated
            .iter()
            .map(|key| format!("{key} is there more than once"));
        found.extend(lost.chain(twice).map(|what| Violation {
            invariant: "I5",
            what,
        }));
    }

    /// I6: in the end every node shows every message under a UID, and all show the same.
    fn check_agreement(&self, found: &mut Vec<Violation>) {
        let mut last: BTreeMap<usize, (u32, &[Row])> = BTreeMap::new();
        for event in self.events() {
            match event {
                Event::NeverStable { node, why } => found.push(Violation {
                    invariant: "I6",
                    what: format!("node {node} did not become stable: {why}"),
                }),
                Event::Final {
                    node,
                    uidvalidity,
                    rows,
                } => {
                    last.insert(*node, (*uidvalidity, rows));
                }
                _ => {}
            }
        }
        let Some((first, reference)) = last.pop_first() else {
            return;
        };
        for (node, listing) in last.iter().filter(|(_, listing)| **listing != reference) {
            let difference = difference(reference.1, listing.1);
            found.push(Violation {
                invariant: "I6",
                what: format!("in the end nodes {first} and {node} differ: {difference}"),
            });
        }
    }
}

/// The highest of these floors that was there before `moment`.
fn floor_at(floors: &BTreeMap<Place, Vec<(Moment, u32)>>, place: Place, moment: Moment) -> u32 {
    let Some(floors) = floors.get(&place) else {
        return 0;
    };
    let before = floors.partition_point(|(at, _)| *at < moment);
    before.checked_sub(1).map_or(0, |last| floors[last].1)
}

/// Where two listings part.
fn difference(one: &[Row], other: &[Row]) -> String {
    let at = one.iter().zip(other).position(|(a, b)| a != b);
    match at {
        Some(at) => format!("{:?} and {:?}", one[at], other[at]),
        None => format!("{} and {} messages", one.len(), other.len()),
    }
}
