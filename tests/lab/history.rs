//! What clients saw, and whether it is what the invariants allow.
//!
//! The checker knows nothing of the code under test: it is given the lines that clients got,
//! each with the node it came from, and judges them by the rules a client author would write
//! down (I1 to I5 of docs/cluster-model.md).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// A message as the workload knows it: the value of a header that it wrote itself.
pub type Key = String;

/// One thing that a client saw or did. `node` numbers start at 1; events are in the order in
/// which the clients noted them, which for one client is the order on the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The server acknowledged an APPEND or a delivery.
    Acknowledged { node: usize, key: Key },
    /// The workload itself expunged the message.
    Expunged { key: Key },
    /// A client was told UIDNEXT.
    UidNext {
        node: usize,
        uidvalidity: u32,
        uidnext: u32,
    },
    /// A whole listing of the mailbox: (UID, XID, message) by sequence number. UIDs that the
    /// server keeps to itself are 0; an XID that was not asked for is empty.
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
    /// The last listing of a node after everything was healed and settled.
    Final {
        node: usize,
        uidvalidity: u32,
        rows: Vec<Row>,
    },
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
    /// "I1" to "I5".
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

/// Everything that was seen.
#[derive(Clone, Debug, Default)]
pub struct History {
    events: Vec<Event>,
}

impl History {
    /// Adds what a client saw.
    pub fn push(&mut self, event: Event) {
        self.events.push(event);
    }

    /// Adds what another recorder saw.
    pub fn extend(&mut self, other: History) {
        self.events.extend(other.events);
    }

    /// Every (UIDVALIDITY, UID, message) that left a server.
    fn shown(&self) -> impl Iterator<Item = (u32, u32, &Key)> {
        self.events
            .iter()
            .flat_map(|event| -> Box<dyn Iterator<Item = (u32, u32, &Key)>> {
                match event {
                    Event::Shown {
                        uidvalidity,
                        uid,
                        key,
                        ..
                    } => Box::new(std::iter::once((*uidvalidity, *uid, key))),
                    Event::Listing {
                        uidvalidity, rows, ..
                    }
                    | Event::Final {
                        uidvalidity, rows, ..
                    } => Box::new(
                        rows.iter()
                            .filter(|r| r.uid != 0)
                            .map(|r| (*uidvalidity, r.uid, &r.key)),
                    ),
                    _ => Box::new(std::iter::empty()),
                }
            })
    }

    fn listings(&self) -> impl Iterator<Item = (usize, u32, &[Row])> {
        self.events.iter().filter_map(|event| match event {
            Event::Listing {
                node,
                uidvalidity,
                rows,
            }
            | Event::Final {
                node,
                uidvalidity,
                rows,
            } => Some((*node, *uidvalidity, rows.as_slice())),
            _ => None,
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

    /// Acknowledged messages that are missing somewhere, and messages that are somewhere twice.
    fn fates(&self) -> (BTreeSet<&Key>, BTreeSet<&Key>) {
        let mut kept: BTreeSet<&Key> = BTreeSet::new();
        for event in &self.events {
            match event {
                Event::Acknowledged { key, .. } => kept.insert(key),
                Event::Expunged { key } => kept.remove(key),
                _ => false,
            };
        }
        let (mut lost, mut duplicated) = (BTreeSet::new(), BTreeSet::new());
        for event in &self.events {
            let Event::Final { rows, .. } = event else {
                continue;
            };
            let mut seen = BTreeSet::new();
            duplicated.extend(rows.iter().map(|r| &r.key).filter(|key| !seen.insert(*key)));
            lost.extend(kept.iter().copied().filter(|key| !seen.contains(*key)));
        }
        (lost, duplicated)
    }

    /// Everything that must not have been seen.
    pub fn violations(&self) -> Vec<Violation> {
        let mut found = Vec::new();
        self.check_uid_names_one_message(&mut found);
        self.check_ascending(&mut found);
        self.check_nothing_below_uidnext(&mut found);
        self.check_xids(&mut found);
        self.check_fates(&mut found);
        found
    }

    /// I1: one UID, one message, on every node and for ever; and a message has one UID.
    fn check_uid_names_one_message(&self, found: &mut Vec<Violation>) {
        let mut message_of: BTreeMap<(u32, u32), &Key> = BTreeMap::new();
        let mut uid_of: BTreeMap<(u32, &Key), u32> = BTreeMap::new();
        for (uidvalidity, uid, key) in self.shown() {
            let first = message_of.entry((uidvalidity, uid)).or_insert(key);
            if *first != key {
                found.push(Violation {
                    invariant: "I1",
                    what: format!("UID {uid} was shown for {first} and for {key}"),
                });
            }
            let first = *uid_of.entry((uidvalidity, key)).or_insert(uid);
            if first != uid {
                found.push(Violation {
                    invariant: "I1",
                    what: format!("{key} was shown as UID {first} and as UID {uid}"),
                });
            }
        }
    }

    /// I2, first half: UIDs ascend with sequence numbers.
    fn check_ascending(&self, found: &mut Vec<Violation>) {
        for (node, _, rows) in self.listings() {
            let uids: Vec<u32> = rows.iter().map(|r| r.uid).filter(|uid| *uid != 0).collect();
            for pair in uids.windows(2).filter(|pair| pair[0] >= pair[1]) {
                found.push(Violation {
                    invariant: "I2",
                    what: format!("node {node} listed UID {} before UID {}", pair[0], pair[1]),
                });
            }
        }
    }

    /// I2, second half: a message that was not there when a node said UIDNEXT never appears
    /// below that UIDNEXT on that node.
    fn check_nothing_below_uidnext(&self, found: &mut Vec<Violation>) {
        let mut told: BTreeMap<(usize, u32), u32> = BTreeMap::new();
        let mut known: BTreeSet<(usize, u32, u32)> = BTreeSet::new();
        let mut listed: BTreeSet<(usize, u32)> = BTreeSet::new();
        for event in &self.events {
            match event {
                Event::UidNext {
                    node,
                    uidvalidity,
                    uidnext,
                } => {
                    let highest = told.entry((*node, *uidvalidity)).or_default();
                    if uidnext < highest {
                        found.push(Violation {
                            invariant: "I2",
                            what: format!("node {node} said UIDNEXT {highest}, later {uidnext}"),
                        });
                    }
                    *highest = (*highest).max(*uidnext);
                }
                Event::Listing {
                    node,
                    uidvalidity,
                    rows,
                }
                | Event::Final {
                    node,
                    uidvalidity,
                    rows,
                } => {
                    let place = (*node, *uidvalidity);
                    let floor = told.get(&place).copied().unwrap_or(0);
                    // Before its first listing a client cannot know what was there already.
                    let knows = !listed.insert(place);
                    for uid in rows.iter().map(|r| r.uid).filter(|uid| *uid != 0) {
                        if known.insert((*node, *uidvalidity, uid)) && knows && uid < floor {
                            found.push(Violation {
                                invariant: "I2",
                                what: format!(
                                    "node {node}: UID {uid} appeared below UIDNEXT {floor}"
                                ),
                            });
                        }
                    }
                    let top = rows.iter().map(|r| r.uid).max().unwrap_or(0);
                    let highest = told.entry(place).or_default();
                    *highest = (*highest).max(top + u32::from(top != 0));
                }
                _ => {}
            }
        }
    }

    /// I3: an XID names one message; a message whose UID was shown keeps its XID.
    fn check_xids(&self, found: &mut Vec<Violation>) {
        let mut message_of: BTreeMap<&str, &Key> = BTreeMap::new();
        let mut xid_of: BTreeMap<&Key, &str> = BTreeMap::new();
        for row in self
            .listings()
            .flat_map(|(_, _, rows)| rows)
            .filter(|r| !r.xid.is_empty())
        {
            let first = message_of.entry(&row.xid).or_insert(&row.key);
            if *first != &row.key {
                found.push(Violation {
                    invariant: "I3",
                    what: format!("XID {} was shown for {first} and for {}", row.xid, row.key),
                });
            }
            if row.uid == 0 {
                continue;
            }
            let first = *xid_of.entry(&row.key).or_insert(&row.xid);
            if first != row.xid {
                found.push(Violation {
                    invariant: "I3",
                    what: format!("{} had XID {first}, then {}", row.key, row.xid),
                });
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
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(uid: u32, xid: &str, key: &str) -> Row {
        Row {
            uid,
            xid: xid.into(),
            key: key.into(),
        }
    }

    fn listing(node: usize, rows: &[Row]) -> Event {
        Event::Listing {
            node,
            uidvalidity: 1,
            rows: rows.to_vec(),
        }
    }

    fn broken(events: Vec<Event>) -> Vec<&'static str> {
        let history = History { events };
        history.violations().iter().map(|v| v.invariant).collect()
    }

    #[test]
    fn a_clean_history_has_no_violation() {
        let rows = [row(1, "a-1", "m1"), row(2, "b-1", "m2")];
        let events = vec![
            Event::Acknowledged {
                node: 1,
                key: "m1".into(),
            },
            listing(1, &rows[..1]),
            Event::UidNext {
                node: 1,
                uidvalidity: 1,
                uidnext: 2,
            },
            listing(1, &rows),
            listing(2, &rows),
            Event::Final {
                node: 1,
                uidvalidity: 1,
                rows: rows.to_vec(),
            },
        ];
        assert_eq!(broken(events), Vec::<&str>::new());
    }

    #[test]
    fn a_uid_that_names_two_messages_breaks_i1() {
        let events = vec![
            listing(1, &[row(9, "", "m1")]),
            listing(2, &[row(9, "", "m2")]),
        ];
        assert_eq!(broken(events), ["I1"]);
    }

    #[test]
    fn a_message_with_two_uids_breaks_i1_and_counts_as_changed() {
        let events = vec![
            listing(1, &[row(9, "", "m1")]),
            listing(1, &[row(10, "", "m1")]),
        ];
        assert_eq!(
            History {
                events: events.clone()
            }
            .count()
            .changed,
            1
        );
        assert_eq!(broken(events), ["I1"]);
    }

    #[test]
    fn uids_out_of_order_break_i2() {
        assert_eq!(
            broken(vec![listing(1, &[row(2, "", "m1"), row(1, "", "m2")])]),
            ["I2"]
        );
    }

    #[test]
    fn a_message_below_a_uidnext_already_shown_breaks_i2() {
        let events = vec![
            listing(1, &[row(5, "", "m1")]),
            Event::UidNext {
                node: 1,
                uidvalidity: 1,
                uidnext: 9,
            },
            listing(1, &[row(5, "", "m1"), row(8, "", "m2")]),
        ];
        assert_eq!(broken(events), ["I2"]);
    }

    #[test]
    fn a_uidnext_that_goes_down_breaks_i2() {
        let next = |uidnext| Event::UidNext {
            node: 1,
            uidvalidity: 1,
            uidnext,
        };
        assert_eq!(broken(vec![next(9), next(8)]), ["I2"]);
    }

    #[test]
    fn an_xid_that_names_two_messages_breaks_i3() {
        let events = vec![listing(1, &[row(1, "a-1", "m1"), row(2, "a-1", "m2")])];
        assert_eq!(broken(events), ["I3"]);
    }

    #[test]
    fn a_message_whose_xid_changes_breaks_i3() {
        let events = vec![
            listing(1, &[row(1, "a-1", "m1")]),
            listing(2, &[row(1, "b-1", "m1")]),
        ];
        assert_eq!(broken(events), ["I3"]);
    }

    #[test]
    fn lost_and_doubled_messages_break_i5() {
        let twice = vec![row(1, "", "m1"), row(2, "", "m1")];
        let events = vec![
            Event::Acknowledged {
                node: 1,
                key: "m1".into(),
            },
            Event::Acknowledged {
                node: 1,
                key: "m2".into(),
            },
            Event::Acknowledged {
                node: 1,
                key: "m3".into(),
            },
            Event::Expunged { key: "m3".into() },
            Event::Final {
                node: 2,
                uidvalidity: 1,
                rows: twice,
            },
        ];
        let history = History { events };
        let count = history.count();
        assert_eq!((count.lost, count.duplicated), (1, 1));
        assert!(
            history
                .violations()
                .iter()
                .any(|v| v.what == "m2 was acknowledged and is lost")
        );
    }
}
