//! Whose mail is whose: asked of the host, remembered for a while.

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::time::timeout;

/// How long an answer is taken for true. Who loses a mailbox keeps its voice for so long.
const FRESH: Duration = Duration::from_secs(60);
/// The same for "no such user", who may just have been created.
const FRESH_UNKNOWN: Duration = Duration::from_secs(5);
/// Users that are remembered; their names have at most 1 KiB each.
const USERS: usize = 65_536;
/// Questions under way, for processes that are known and for those that are not: strangers who
/// ask for users by the thousand must not be in the way of others.
const LOOKUPS: usize = 16;
const STRANGERS_LOOKUPS: usize = 4;
/// How long one question may take.
const LIMIT: Duration = Duration::from_secs(5);

/// The system's uid that owns a user's mail; `None`: there is no such user; an error: nobody knows.
pub type UidAnswer = Result<Option<u32>, String>;

/// Who knows the owners of mail: the host.
pub trait Owners: Send + Sync + 'static {
    /// Asks it.
    fn uid_of(&self, user: &str) -> impl Future<Output = UidAnswer> + Send;
}

/// Whether a process may speak about a user's mail.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It owns the mail, or is above that.
    Owner,
    /// It does not.
    Stranger,
    /// The host could not be asked.
    Unknown(String),
}

/// What the host said, and when.
#[derive(Clone, Copy)]
struct Answer {
    uid: Option<u32>,
    at: Instant,
}

impl Answer {
    fn is_fresh(&self) -> bool {
        let limit = match self.uid {
            Some(_) => FRESH,
            None => FRESH_UNKNOWN,
        };
        self.at.elapsed() < limit
    }
}

/// The host's answers.
pub(super) struct Known<O> {
    owners: O,
    own: u32,
    answers: Mutex<HashMap<String, Answer>>,
    /// Uids that own mail.
    proven: Mutex<HashSet<u32>>,
    lookups: Semaphore,
    strangers_lookups: Semaphore,
}

impl<O: Owners> Known<O> {
    pub fn new(owners: O) -> Known<O> {
        Known {
            owners,
            // SAFETY: geteuid has no preconditions.
            own: unsafe { libc::geteuid() },
            answers: Mutex::default(),
            proven: Mutex::default(),
            lookups: Semaphore::new(LOOKUPS),
            strangers_lookups: Semaphore::new(STRANGERS_LOOKUPS),
        }
    }

    /// Whether this uid is known to own any mail, or is root's or our own.
    pub fn is_trusted(&self, uid: u32) -> bool {
        self.is_above(uid) || self.proven.lock().contains(&uid)
    }

    fn is_above(&self, uid: u32) -> bool {
        uid == 0 || uid == self.own
    }

    /// Whether a process of this uid may speak about this user's mail.
    pub async fn check(&self, user: &str, uid: u32) -> Verdict {
        if self.is_above(uid) {
            return Verdict::Owner;
        }
        let remembered = self.answers.lock().get(user).copied();
        let answer = match remembered {
            Some(answer) if answer.is_fresh() => Ok(answer.uid),
            _ => self.ask(user, uid).await,
        };
        match (answer, remembered) {
            (Ok(owner), _) => self.judge(owner, uid),
            // Owners hardly ever change; the host being down must not silence them.
            (Err(_), Some(Answer { uid: Some(old), .. })) => self.judge(Some(old), uid),
            (Err(why), _) => Verdict::Unknown(why),
        }
    }

    fn judge(&self, owner: Option<u32>, uid: u32) -> Verdict {
        if owner != Some(uid) {
            return Verdict::Stranger;
        }
        self.proven.lock().insert(uid);
        Verdict::Owner
    }

    async fn ask(&self, user: &str, uid: u32) -> UidAnswer {
        let places = match self.is_trusted(uid) {
            true => &self.lookups,
            false => &self.strangers_lookups,
        };
        let question = async {
            let _place = places.acquire().await.map_err(|error| error.to_string())?;
            self.owners.uid_of(user).await
        };
        let answer = timeout(LIMIT, question).await;
        let uid = answer.map_err(|_| "no answer in time".to_owned())??;
        self.remember(user, uid);
        Ok(uid)
    }

    fn remember(&self, user: &str, uid: Option<u32>) {
        let mut answers = self.answers.lock();
        if answers.len() >= USERS {
            answers.retain(|_, answer| answer.is_fresh());
        }
        if answers.len() >= USERS {
            answers.clear();
        }
        let at = Instant::now();
        answers.insert(user.to_owned(), Answer { uid, at });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// A host that knows joe, and counts how often it is asked.
    #[derive(Clone, Default)]
    struct Host {
        asked: Arc<AtomicUsize>,
        down: Arc<Mutex<bool>>,
    }

    impl Owners for Host {
        async fn uid_of(&self, user: &str) -> UidAnswer {
            self.asked.fetch_add(1, Ordering::Relaxed);
            match (*self.down.lock(), user) {
                (true, _) => Err("down".into()),
                (false, "joe") => Ok(Some(4000)),
                _ => Ok(None),
            }
        }
    }

    fn run(test: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("tokio");
        runtime.block_on(test);
    }

    #[test]
    fn only_the_owner_root_and_we_ourselves_may_speak() {
        run(async {
            let host = Host::default();
            let known = Known::new(host.clone());
            assert_eq!(known.check("joe", 0).await, Verdict::Owner);
            assert_eq!(host.asked.load(Ordering::Relaxed), 0);
            assert!(!known.is_trusted(4000));
            assert_eq!(known.check("joe", 4000).await, Verdict::Owner);
            assert!(known.is_trusted(4000));
            assert_eq!(known.check("joe", 4001).await, Verdict::Stranger);
            assert_eq!(known.check("jane", 4000).await, Verdict::Stranger);
            assert!(!known.is_trusted(4001));
        });
    }

    #[test]
    fn the_host_is_asked_once_a_while() {
        run(async {
            let host = Host::default();
            let known = Known::new(host.clone());
            for _ in 0..1000 {
                known.check("joe", 4000).await;
                known.check("jane", 4000).await;
            }
            assert_eq!(host.asked.load(Ordering::Relaxed), 2);
        });
    }

    #[test]
    fn while_the_host_is_down_its_last_answer_holds() {
        run(async {
            let host = Host::default();
            let known = Known::new(host.clone());
            known.check("joe", 4000).await;
            *host.down.lock() = true;
            let old = Instant::now()
                .checked_sub(FRESH * 2)
                .expect("up for long enough");
            known.answers.lock().get_mut("joe").expect("asked").at = old;
            assert_eq!(known.check("joe", 4000).await, Verdict::Owner);
            assert_eq!(known.check("joe", 4001).await, Verdict::Stranger);
            assert_eq!(
                known.check("ann", 4000).await,
                Verdict::Unknown("down".into())
            );
        });
    }

    #[test]
    fn what_is_remembered_has_a_bound() {
        run(async {
            let known = Known::new(Host::default());
            for user in 0..USERS + 10 {
                known.remember(&user.to_string(), None);
            }
            assert!(known.answers.lock().len() <= USERS);
        });
    }
}
