//! Who of the other nodes was heard of, and when.
//!
//! A node's lease ends by itself when nobody keeps it. But etcd gives all leases their whole time
//! again when it elects a leader, and it has to whenever the machine that failed held its leader:
//! then a dead node would be waited for twice as long as its lease. So each node also writes its
//! liveness key again and again, a *beat*, and who hears nothing of another for the time of a lease
//! takes it out. That is no more than what a lease's end is: the protocol stands it at any moment.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::cluster::{Incarnation, Node, Rev};

/// Beats in the time of a lease.
pub const BEATS: u32 = 3;

/// A node with its disk.
type Who = (Node, Incarnation);

/// The others' beats, and our own.
#[derive(Default)]
pub struct Pulse {
    me: Option<Who>,
    lease: Duration,
    others: BTreeMap<Who, Beat>,
    /// Under which lease each key was seen last, and when.
    leases: BTreeMap<Who, (i64, Instant)>,
    /// Our own last beat that etcd took, and since when it took them all in time.
    own: Option<Steady>,
}

/// When a node was heard of last, how long after the time before, and at which revision.
struct Beat {
    at: Instant,
    after: Duration,
    rev: Rev,
}

struct Steady {
    since: Instant,
    last: Instant,
}

impl Pulse {
    /// A membership begins, of this node and under such a lease, with these nodes alive. What was
    /// heard of them in the membership before still counts: it may have ended by the same failure
    /// as they did.
    pub fn begin(&mut self, me: Who, lease: Duration, alive: &BTreeMap<Node, Incarnation>) {
        let is_alive = |who: &Who| alive.get(&who.0) == Some(&who.1);
        self.others.retain(|who, _| is_alive(who));
        self.leases.retain(|who, _| is_alive(who));
        (self.me, self.lease, self.own) = (Some(me), lease, None);
    }

    /// A liveness key was written at this revision, under this lease. True: it is a beat; false: the
    /// node came, or came back, and until its first beat only its lease counts.
    #[must_use]
    pub fn heard(&mut self, who: Who, lease: i64, rev: Rev, at: Instant) -> bool {
        let before = self.leases.insert(who, (lease, at));
        let Some((_, last)) = before.filter(|(then, _)| *then == lease) else {
            self.others.remove(&who);
            return false;
        };
        if Some(who) == self.me {
            self.beat(at);
        } else {
            let after = at.duration_since(last);
            self.others.insert(who, Beat { at, after, rev });
        }
        true
    }

    /// Its key is gone.
    pub fn gone(&mut self, who: Who) {
        self.leases.remove(&who);
        self.others.remove(&who);
    }

    fn beat(&mut self, at: Instant) {
        let in_time = |own: &&Steady| at.duration_since(own.last) < self.too_late();
        let since = self.own.as_ref().filter(in_time).map(|own| own.since);
        let since = since.unwrap_or(at);
        self.own = Some(Steady { since, last: at });
    }

    /// Who fell silent, and the revision of the last beat.
    ///
    /// Nobody, while etcd does not take our own beats: then it does not take the others' either.
    /// When it does again they get the time of a beat to be heard.
    #[must_use]
    pub fn silent(&self, now: Instant) -> Vec<(Who, Rev)> {
        let heard_ourselves = self.own.as_ref().is_some_and(|own| {
            now.duration_since(own.last) < self.too_late()
                && now.duration_since(own.since) >= self.lease / BEATS
        });
        if !heard_ourselves {
            return Vec::new();
        }
        // Its lease may be longer than ours: then it beats more slowly.
        let lease = |beat: &Beat| self.lease.max(beat.after * BEATS);
        let silent = |beat: &Beat| now.duration_since(beat.at) >= lease(beat);
        let others = self.others.iter().filter(|(_, beat)| silent(beat));
        others.map(|(who, beat)| (*who, beat.rev)).collect()
    }

    /// So long after the last beat one is missing.
    fn too_late(&self) -> Duration {
        self.lease / BEATS * 3 / 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ME: Who = (Node(1), Incarnation(1));
    const OTHER: Who = (Node(2), Incarnation(1));
    const LEASE: Duration = Duration::from_secs(3);

    fn begun() -> Pulse {
        let mut pulse = Pulse::default();
        pulse.begin(ME, LEASE, &BTreeMap::from([ME, OTHER]));
        pulse
    }

    /// Beats of both at these milliseconds; who is silent at the end of each.
    fn silent_after(mine: &[u64], theirs: &[u64], now: u64) -> bool {
        let start = Instant::now();
        let at = |ms: &u64| start + Duration::from_millis(*ms);
        let mut pulse = begun();
        for (who, beats) in [(ME, mine), (OTHER, theirs)] {
            assert!(!pulse.heard(who, 7, Rev(0), start), "it came");
            for ms in beats {
                assert!(pulse.heard(who, 7, Rev(*ms), at(ms)), "a beat");
            }
        }
        let silent = pulse.silent(at(&now));
        assert!(
            silent.is_empty() || silent == [(OTHER, Rev(*theirs.last().expect("a beat")))],
            "{silent:?}"
        );
        !silent.is_empty()
    }

    #[test]
    fn who_is_silent_for_a_lease_is_gone() {
        let mine = [0, 1000, 2000, 3000, 4000];
        assert!(!silent_after(&mine, &[0, 1000], 3999));
        assert!(silent_after(&mine, &[0, 1000], 4000));
    }

    #[test]
    fn who_has_a_longer_lease_is_waited_for_longer() {
        let mine: Vec<u64> = (0..30).map(|second| second * 1000).collect();
        assert!(!silent_after(&mine, &[5000, 10_000], 24_999));
        assert!(silent_after(&mine, &[5000, 10_000], 25_000));
    }

    #[test]
    fn who_never_beat_has_only_a_lease() {
        assert!(!silent_after(&[0, 1000, 2000, 3000, 4000], &[], 4000));
    }

    #[test]
    fn nobody_is_silent_while_etcd_takes_no_beats() {
        assert!(!silent_after(&[0, 1000], &[0, 1000], 9000));
        // It takes them again: the other gets the time of one.
        assert!(!silent_after(&[0, 1000, 9000], &[0, 1000], 9999));
        assert!(silent_after(&[0, 1000, 9000, 10_000], &[0, 1000], 10_000));
    }

    #[test]
    fn a_node_that_came_back_has_only_a_lease_until_it_beats() {
        let start = Instant::now();
        let mut pulse = begun();
        let beats = [(OTHER, 7), (OTHER, 7), (OTHER, 8)];
        let heard = beats.map(|(who, lease)| pulse.heard(who, lease, Rev(1), start));
        assert_eq!(heard, [false, true, false]);
        for second in 0..9 {
            let _ = pulse.heard(ME, 9, Rev(2), start + Duration::from_secs(second));
        }
        assert!(pulse.silent(start + Duration::from_secs(8)).is_empty());
        pulse.gone(OTHER);
        assert!(!pulse.heard(OTHER, 8, Rev(3), start), "it came");
    }

    #[test]
    fn what_was_heard_before_the_membership_was_lost_still_counts() {
        let start = Instant::now();
        for (alive, silent) in [(vec![ME, OTHER], true), (vec![ME], false)] {
            let mut pulse = begun();
            let _ = pulse.heard(OTHER, 7, Rev(1), start);
            let _ = pulse.heard(OTHER, 7, Rev(2), start);
            pulse.begin(ME, LEASE, &alive.into_iter().collect());
            // Our lease is another one: the first is no beat.
            for ms in [2900, 3000, 4000] {
                let _ = pulse.heard(ME, 9, Rev(3), start + Duration::from_millis(ms));
            }
            assert!(pulse.silent(start + Duration::from_millis(3900)).is_empty());
            let now = pulse.silent(start + Duration::from_millis(4000));
            assert_eq!(!now.is_empty(), silent, "{now:?}");
        }
    }
}
