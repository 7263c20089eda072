//! The cluster's records as bytes: JSON, which an operator can read with etcdctl.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Registration, Text};
use crate::cluster::{Entry, Incarnation, Node, Stable, Tail, Uid};

/// A value that is not what its key should hold.
#[derive(Debug, thiserror::Error)]
pub enum BadRecord {
    /// It is no JSON of the expected form.
    #[error("{0}")]
    Form(#[from] serde_json::Error),
    /// Its entries are not in UID order, or below what they should be.
    #[error("its entries are out of order")]
    Order,
}

/// A registered node.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Member {
    pub name: String,
    pub namespace: String,
    pub disk: String,
    pub node: u8,
    pub incarnation: u32,
    /// An operator took it off the books; kept, so that nobody else gets its number.
    #[serde(default)]
    pub evicted: bool,
}

impl Member {
    pub fn registration(&self) -> Registration {
        Registration {
            node: Node(self.node),
            incarnation: Incarnation(self.incarnation),
        }
    }

    /// The same node, with another disk (which is a new incarnation) or another namespace.
    pub fn on_disk(&self, disk: &str, namespace: &str) -> Member {
        Member {
            disk: disk.into(),
            namespace: namespace.into(),
            incarnation: self.incarnation + u32::from(self.disk != disk),
            evicted: false,
            ..self.clone()
        }
    }
}

#[derive(Serialize, Deserialize)]
struct StoredStable {
    uid: Uid,
    floor: Uid,
    holders: BTreeMap<u8, u32>,
}

#[derive(Serialize, Deserialize)]
struct StoredTail {
    firm: bool,
    end: Uid,
    next: Uid,
    /// UID, GUID, XID, expunged.
    entries: Vec<(Uid, Text, Text, bool)>,
}

/// As JSON; our own types have nothing that JSON lacks.
pub(super) fn encode(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_default()
}

pub(super) fn member(bytes: &[u8]) -> Result<Member, BadRecord> {
    Ok(serde_json::from_slice(bytes)?)
}

pub(super) fn encode_stable(stable: &Stable) -> Vec<u8> {
    encode(&StoredStable {
        uid: stable.uid,
        floor: stable.floor,
        holders: stable.holders.iter().map(|(n, i)| (n.0, i.0)).collect(),
    })
}

pub(super) fn stable(bytes: &[u8]) -> Result<Stable, BadRecord> {
    let stored: StoredStable = serde_json::from_slice(bytes)?;
    let holders = stored.holders.into_iter();
    Ok(Stable {
        uid: stored.uid,
        floor: stored.floor,
        holders: holders.map(|(n, i)| (Node(n), Incarnation(i))).collect(),
    })
}

pub(super) fn encode_tail(tail: &Tail<Text, Text>) -> Vec<u8> {
    let entries = tail.entries.iter();
    encode(&StoredTail {
        firm: tail.firm,
        end: tail.end,
        next: tail.next,
        entries: entries
            .map(|e| (e.uid, e.guid.clone(), e.xid.clone(), e.expunged))
            .collect(),
    })
}

pub(super) fn tail(bytes: &[u8]) -> Result<Tail<Text, Text>, BadRecord> {
    let stored: StoredTail = serde_json::from_slice(bytes)?;
    if !stored.entries.is_sorted_by(|a, b| a.0 < b.0) {
        return Err(BadRecord::Order);
    }
    let entries = stored.entries.into_iter();
    Ok(Tail {
        firm: stored.firm,
        end: stored.end,
        next: stored.next,
        entries: entries
            .map(|(uid, guid, xid, expunged)| Entry {
                uid,
                guid,
                xid,
                expunged,
            })
            .collect(),
    })
}

pub(super) fn encode_gate(node: Node) -> Vec<u8> {
    encode(&node.0)
}

pub(super) fn gate(bytes: &[u8]) -> Result<Node, BadRecord> {
    Ok(Node(serde_json::from_slice(bytes)?))
}

pub(super) fn window(bytes: &[u8]) -> Result<u32, BadRecord> {
    Ok(serde_json::from_slice(bytes)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tail_comes_back_as_it_was() {
        let entry = |uid, expunged| Entry {
            uid,
            guid: format!("g{uid}"),
            xid: "a-1".into(),
            expunged,
        };
        let tail = Tail {
            firm: true,
            end: 9,
            next: 10,
            entries: vec![entry(3, false), entry(9, true)],
        };
        assert_eq!(
            super::tail(&encode_tail(&tail)).expect("our own bytes"),
            tail
        );
    }

    #[test]
    fn a_tail_that_is_out_of_order_is_refused() {
        let bytes = br#"{"firm":true,"end":9,"next":10,"entries":[[3,"a","x-1",false],[3,"b","x-2",false]]}"#;
        assert!(matches!(tail(bytes), Err(BadRecord::Order)));
    }

    #[test]
    fn a_record_comes_back_as_it_was() {
        let holders = BTreeMap::from([(Node(1), Incarnation(0)), (Node(2), Incarnation(4))]);
        let record = Stable {
            uid: 7,
            floor: 10_007,
            holders,
        };
        assert_eq!(
            stable(&encode_stable(&record)).expect("our own bytes"),
            record
        );
    }

    #[test]
    fn another_disk_is_another_incarnation_of_the_same_node() {
        let member = Member {
            name: "n".into(),
            namespace: "n".into(),
            disk: "one".into(),
            node: 4,
            incarnation: 2,
            evicted: true,
        };
        assert!(!member.on_disk("one", "n").evicted, "it is back");
        assert_eq!(
            member.on_disk("one", "n").registration(),
            member.registration()
        );
        let moved = member.on_disk("two", "n").registration();
        assert_eq!(
            moved,
            Registration {
                node: Node(4),
                incarnation: Incarnation(3)
            }
        );
    }
}
