//! How many connections each uid may have: one account must not take them from the others.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Connections of a uid that owns no mail as far as we know.
const STRANGERS: usize = 64;
/// One line in the log per so long, however many there would be.
const LOG_PAUSE: Duration = Duration::from_secs(10);

/// The connections, by uid.
#[derive(Default)]
pub(super) struct Crowd {
    counts: Mutex<HashMap<u32, usize>>,
    logged: Mutex<Option<Instant>>,
}

/// A connection's place; given back when dropped.
pub(super) struct Place<'a> {
    crowd: &'a Crowd,
    uid: u32,
}

impl Crowd {
    /// Takes a place, of `most` in all. An eighth of them no uid can take from the others, except
    /// root.
    pub fn enter(&self, uid: u32, known: bool, most: usize) -> Option<Place<'_>> {
        let limit = match (uid, known) {
            (0, _) => most,
            (_, true) => most - most / 8,
            (_, false) => STRANGERS.min(most / 8).max(1),
        };
        let mut counts = self.counts.lock();
        let count = counts.entry(uid).or_default();
        if *count >= limit {
            return None;
        }
        *count += 1;
        Some(Place { crowd: self, uid })
    }

    /// Whether something that a peer did may go into the log: not more often than now and then.
    pub fn may_be_logged(&self) -> bool {
        let mut logged = self.logged.lock();
        if logged.is_some_and(|at| at.elapsed() < LOG_PAUSE) {
            return false;
        }
        *logged = Some(Instant::now());
        true
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut counts = self.crowd.counts.lock();
        let Some(count) = counts.get_mut(&self.uid) else {
            return;
        };
        *count -= 1;
        if *count == 0 {
            counts.remove(&self.uid);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_uid_takes_all_places() {
        let crowd = Crowd::default();
        let take = |uid, known| crowd.enter(uid, known, 800);
        let owner: Vec<_> = std::iter::from_fn(|| take(1, true)).collect();
        let stranger: Vec<_> = std::iter::from_fn(|| take(2, false)).collect();
        assert_eq!((owner.len(), stranger.len()), (700, STRANGERS));
        assert!(take(3, true).is_some() && take(0, true).is_some());
        drop(owner);
        drop(stranger);
        assert!(take(1, true).is_some() && take(2, false).is_some());
        assert!(crowd.counts.lock().is_empty(), "places are given back");
    }

    #[test]
    fn the_log_is_not_flooded() {
        let crowd = Crowd::default();
        let lines = (0..1000).filter(|_| crowd.may_be_logged()).count();
        assert_eq!(lines, 1);
    }
}
