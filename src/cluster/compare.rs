//! Comparing tails: by UID and GUID, never by counts.

use super::types::{Entry, Ident, Stable, Tail, Uid};
use std::collections::{BTreeMap, BTreeSet};

/// How far S can move: the highest UID up to which all firm `tails` say the same.
///
/// Returns at least `stable.uid`; that very value means "not at all". Below the record's floor
/// there may be nothing alive: dropped nodes may have used those UIDs.
pub fn agreed<G: Ident, X: Ident>(stable: &Stable, tails: &[&Tail<G, X>]) -> Uid {
    let Some(end) = tails.iter().map(|t| t.end).min() else {
        return stable.uid;
    };
    if end <= stable.uid || end < stable.floor || tails.iter().any(|t| !t.firm) {
        return stable.uid;
    }
    let used: BTreeSet<Uid> = tails
        .iter()
        .flat_map(|t| t.above(stable.uid))
        .map(|e| e.uid)
        .collect();
    for uid in used.into_iter().take_while(|uid| *uid <= end) {
        let at: Vec<_> = tails
            .iter()
            .map(|t| find(t.above(stable.uid), uid))
            .collect();
        let alive = at.iter().flatten().any(|e| !e.expunged);
        if alive && uid <= stable.floor {
            return stable.uid;
        }
        if !same(&at) {
            let below = uid - 1;
            return if below < stable.floor {
                stable.uid
            } else {
                below
            };
        }
    }
    end
}

/// Whether all nodes have the same at one UID: one message by one XID, or none. Something that
/// is gone equals nothing, but not something that is still there: replication has to carry the
/// expunge first.
fn same<G: Ident, X: Ident>(at: &[Option<&Entry<G, X>>]) -> bool {
    let alive: Vec<_> = at.iter().flatten().filter(|e| !e.expunged).collect();
    match alive.first() {
        None => true,
        Some(first) => {
            let equal = |e: &&&Entry<G, X>| e.guid == first.guid && e.xid == first.xid;
            alive.len() == at.len() && alive.iter().all(equal)
        }
    }
}

/// The entry at a UID.
fn find<G, X>(entries: &[Entry<G, X>], uid: Uid) -> Option<&Entry<G, X>> {
    entries
        .binary_search_by_key(&uid, |e| e.uid)
        .ok()
        .map(|i| &entries[i])
}

/// Whether replication between these two would have to change the UID of something above `s`.
pub fn conflict<G: Ident, X: Ident>(s: Uid, one: &Tail<G, X>, other: &Tail<G, X>) -> bool {
    displaced(s, one, other) || displaced(s, other, one)
}

/// Whether a live message of `one` finds its UID passed, and not its own, in `other`.
fn displaced<G: Ident, X: Ident>(s: Uid, one: &Tail<G, X>, other: &Tail<G, X>) -> bool {
    // What lies between `end` and `next` is not in the tail: nothing is known about it.
    one.above(s)
        .iter()
        .filter(|e| !e.expunged && e.uid < other.next && e.uid <= other.end)
        .any(|e| find(other.above(s), e.uid).is_none_or(|twin| twin.guid != e.guid))
}

/// Whether `theirs` lacks something above `s` that `mine` has: a message, an expunge, or a
/// higher next UID.
pub fn lacks<G: Ident, X: Ident>(s: Uid, mine: &Tail<G, X>, theirs: &Tail<G, X>) -> bool {
    mine.next > theirs.next
        || mine
            .above(s)
            .iter()
            .filter(|e| e.uid <= theirs.end)
            .any(|e| {
                let twin = find(theirs.above(s), e.uid);
                match twin {
                    None => !e.expunged,
                    Some(twin) => e.expunged && !twin.expunged,
                }
            })
}

/// What of `mine` is, at the same UID and by the same GUID, in a tail of a lower node by another
/// XID: two nodes that got a message by themselves (both had it before they had the plug-in)
/// named it twice. The lowest node's name counts.
///
/// `tails` in the order of their nodes. An XID that names something else here is left alone. Of
/// more than `most` the result is a part that can be taken over by itself, the rest follows.
pub fn misnamed<G: Ident, X: Ident>(
    mine: &[Entry<G, X>],
    tails: &[&[Entry<G, X>]],
    most: usize,
) -> Vec<(Uid, X)> {
    let better = |e: &Entry<G, X>| {
        let twins = tails.iter().filter_map(|t| find(t, e.uid));
        let mut named = twins.filter(|o| !o.expunged && o.guid == e.guid);
        named
            .next()
            .filter(|o| o.xid != e.xid)
            .map(|o| (e.uid, o.xid.clone()))
    };
    let alive = || mine.iter().filter(|e| !e.expunged);
    let mut changes: BTreeMap<Uid, X> = alive().filter_map(better).collect();
    loop {
        let stays = |e: &&Entry<G, X>| !changes.contains_key(&e.uid);
        let kept: BTreeSet<&X> = alive().filter(stays).map(|e| &e.xid).collect();
        let taken = |x: &X| kept.contains(x);
        if !changes.values().any(taken) {
            break;
        }
        let free = changes.iter().filter(|(_, x)| !taken(x));
        changes = free.map(|(uid, x)| (*uid, x.clone())).collect();
    }
    if changes.len() <= most {
        return changes.into_iter().collect();
    }
    let holders: BTreeMap<&X, Uid> = alive().map(|e| (&e.xid, e.uid)).collect();
    part_of(&changes, &holders, most)
}

/// A part of `changes` after which no XID is there twice: such as take a name that nobody has, or
/// else some that pass their names round.
fn part_of<X: Ident>(
    changes: &BTreeMap<Uid, X>,
    holders: &BTreeMap<&X, Uid>,
    most: usize,
) -> Vec<(Uid, X)> {
    let nobodys = changes.iter().filter(|(_, x)| !holders.contains_key(x));
    let part: Vec<_> = nobodys.take(most).map(|(u, x)| (*u, x.clone())).collect();
    if !part.is_empty() {
        return part;
    }
    let mut ring = BTreeMap::new();
    let mut next = changes.iter().next();
    while let Some((uid, xid)) = next.filter(|(uid, _)| !ring.contains_key(*uid)) {
        ring.insert(*uid, xid.clone());
        next = holders.get(xid).and_then(|uid| changes.get_key_value(uid));
    }
    ring.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::super::types::{Incarnation, Node};
    use super::*;

    fn tail(next: Uid, entries: &[(Uid, &'static str)]) -> Tail<&'static str, ()> {
        let entries = entries
            .iter()
            .map(|(uid, guid)| Entry {
                uid: *uid,
                guid: *guid,
                xid: (),
                expunged: false,
            })
            .collect();
        Tail {
            firm: true,
            end: next - 1,
            next,
            entries,
        }
    }

    fn stable(uid: Uid, floor: Uid) -> Stable {
        Stable {
            uid,
            floor,
            holders: [(Node(0), Incarnation(1))].into(),
        }
    }

    #[test]
    fn equal_tails_agree_up_to_the_lower_end() {
        let (a, b) = (tail(11, &[(9, "a"), (10, "b")]), tail(10, &[(9, "a")]));
        assert_eq!(agreed(&stable(8, 0), &[&a, &b]), 9);
        assert_eq!(agreed(&stable(8, 0), &[&a, &a]), 10);
    }

    #[test]
    fn a_uid_with_two_guids_stops_the_advance_below_it() {
        let (a, b) = (
            tail(11, &[(9, "a"), (10, "b")]),
            tail(11, &[(9, "a"), (10, "c")]),
        );
        assert_eq!(agreed(&stable(8, 0), &[&a, &b]), 9);
        assert!(conflict(8, &a, &b));
    }

    #[test]
    fn a_message_below_the_floor_stops_the_advance() {
        let (low, high) = (tail(10, &[(9, "a")]), tail(22, &[(21, "a")]));
        assert_eq!(agreed(&stable(8, 20), &[&low]), 8);
        assert_eq!(agreed(&stable(8, 20), &[&high]), 21);
        assert_eq!(
            agreed(&stable(8, 20), &[&tail(15, &[])]),
            8,
            "an end below the floor"
        );
    }

    #[test]
    fn a_loose_tail_stops_the_advance() {
        let mut a = tail(10, &[(9, "a")]);
        a.firm = false;
        assert_eq!(agreed(&stable(8, 0), &[&a]), 8);
    }

    #[test]
    fn something_gone_equals_nothing_but_not_something_alive() {
        let mut gone = tail(10, &[(9, "a")]);
        gone.entries[0].expunged = true;
        let (empty, alive) = (tail(10, &[]), tail(10, &[(9, "a")]));
        assert_eq!(agreed(&stable(8, 0), &[&gone, &empty]), 9);
        assert_eq!(agreed(&stable(8, 0), &[&gone, &alive]), 8);
        assert!(!conflict(8, &gone, &alive));
        assert!(lacks(8, &gone, &alive) && !lacks(8, &alive, &gone));
    }

    #[test]
    fn one_writer_never_conflicts() {
        let (a, b) = (tail(11, &[(9, "a"), (10, "b")]), tail(9, &[]));
        assert!(!conflict(8, &a, &b));
        assert!(lacks(8, &a, &b) && !lacks(8, &b, &a));
    }

    fn named(uid: Uid, guid: &'static str, xid: u8) -> Entry<&'static str, u8> {
        Entry {
            uid,
            guid,
            xid,
            expunged: false,
        }
    }

    fn named_tail(entries: &[Entry<&'static str, u8>]) -> Tail<&'static str, u8> {
        let next = entries.last().map_or(9, |e| e.uid + 1);
        Tail {
            firm: true,
            end: next - 1,
            next,
            entries: entries.to_vec(),
        }
    }

    /// A client's COPY in a mailbox: one GUID, two messages.
    #[test]
    fn copies_that_share_a_guid_are_two_messages() {
        let both = named_tail(&[named(9, "a", 1), named(10, "a", 2)]);
        assert_eq!(agreed(&stable(8, 0), &[&both, &both.clone()]), 10);
        assert!(!conflict(8, &both, &both.clone()));
        let one = named_tail(&[named(9, "a", 1)]);
        assert!(lacks(8, &both, &one) && !conflict(8, &both, &one));
    }

    #[test]
    fn one_message_by_two_xids_stops_the_advance() {
        let one = named_tail(&[named(9, "a", 1), named(10, "b", 2)]);
        let other = named_tail(&[named(9, "a", 1), named(10, "b", 3)]);
        assert_eq!(agreed(&stable(8, 0), &[&one, &other]), 9);
        assert!(!conflict(8, &one, &other));
        assert_eq!(misnamed(&other.entries, &[&one.entries], 9), [(10, 2)]);
    }

    #[test]
    fn names_that_are_swapped_are_swapped_back_together() {
        let lower = [named(9, "a", 1), named(10, "a", 2)];
        let mine = [named(9, "a", 2), named(10, "a", 1)];
        assert_eq!(misnamed(&mine, &[&lower], 9), [(9, 1), (10, 2)]);
    }

    #[test]
    fn many_names_are_taken_over_in_parts_and_none_is_there_twice() {
        // A name moves up from message to message, two are swapped, others are new here.
        let theirs = [5, 1, 2, 3, 21, 20, 30, 31].iter().zip(1..);
        let ours = [1, 2, 3, 4, 20, 21, 40, 41].iter().zip(1..);
        let lower: Vec<_> = theirs.map(|(x, uid)| named(uid, "a", *x)).collect();
        let mut mine: Vec<_> = ours.map(|(x, uid)| named(uid, "a", *x)).collect();
        for most in [1, 2, 3] {
            let mut steps = 0;
            while mine != lower {
                let part = misnamed(&mine, &[&lower], most);
                assert!(!part.is_empty() && part.len() <= most.max(2), "{part:?}");
                for (uid, xid) in part {
                    mine[uid as usize - 1].xid = xid;
                }
                let names: BTreeSet<u8> = mine.iter().map(|e| e.xid).collect();
                assert_eq!(names.len(), mine.len(), "{mine:?}");
                steps += 1;
                assert!(steps <= mine.len());
            }
        }
    }

    #[test]
    fn a_name_that_another_message_has_here_is_not_taken_twice() {
        let lower = [named(9, "a", 1)];
        let mine = [named(9, "a", 3), named(11, "a", 1)];
        assert_eq!(misnamed(&mine, &[&lower], 9), []);
    }

    #[test]
    fn a_message_whose_uid_was_passed_elsewhere_conflicts() {
        assert!(conflict(8, &tail(10, &[(9, "a")]), &tail(12, &[(11, "a")])));
    }
}
