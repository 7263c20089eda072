//! What concerns whole users: which there are, what a daemon that was away has missed of them,
//! and the changes of their mailbox trees.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::carrier::{self, Carrier, Job, What};
use super::engine::{Error, Shared};
use super::host::Host;
use super::mailbox::Inbox;
use super::member::{Session, write_durably};
use super::site::Site;
use crate::cluster::Node;
use crate::etcd;

/// Syncs of whole users that run at a time.
const AT_A_TIME: usize = 2;
/// Changes of a tree are gathered for so long.
const GATHER: Duration = Duration::from_millis(100);
/// First and longest pause after a sync that failed.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// While so many mailboxes are at work, catching up waits.
const BUSY: usize = 64;
/// How often it looks whether they still are.
const BUSY_PAUSE: Duration = Duration::from_millis(20);
/// A host that cannot list its users is not asked again for so long: each question is an error in
/// its log, and it says the same where its user database is only away.
const UNLISTED: Duration = Duration::from_secs(3600);
/// How many of etcd's keys are read at a time.
const PAGE: i64 = 1000;

/// What the sweeper is asked to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// There is a user of this name.
    Know(String),
    /// The mailbox tree of this user changed here.
    Tree(String),
    /// This user changed while this node was away.
    Owed(String, Node),
    /// A node has a disk that was not seen before: it lacks the mailboxes of all users.
    Stranger(Node),
    /// What failed may not fail now.
    Retry,
    /// The daemon was away, or heard nothing: look at everything.
    Everything,
}

/// How much of a user is synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Extent {
    Tree,
    All,
}

/// A sync to be done.
#[derive(Clone, Copy, Debug)]
struct Due {
    extent: Extent,
    at: Instant,
    failures: u32,
}

/// How a sync ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    Done,
    Failed,
    /// One of the nodes has to join a mailbox first, or the mailboxes changed meanwhile.
    TooEarly,
}

type Whom = (String, Node);

/// Carries out orders.
pub struct Sweeper<S: Site> {
    shared: Arc<Shared<S>>,
    orders: mpsc::UnboundedReceiver<Order>,
    users: Users,
    due: BTreeMap<Whom, Due>,
    running: BTreeSet<Whom>,
    syncs: JoinSet<(Whom, Due, Ended)>,
    /// When the host last said that it cannot list its users.
    unlisted: Arc<Mutex<Option<Instant>>>,
}

impl<S: Site> Sweeper<S> {
    /// A sweeper, and where it takes orders.
    ///
    /// # Errors
    /// When the list of known users cannot be read.
    pub fn new(
        shared: Arc<Shared<S>>,
        state_dir: &Path,
    ) -> Result<(Sweeper<S>, mpsc::UnboundedSender<Order>), Error> {
        let (sender, orders) = mpsc::unbounded_channel();
        let sweeper = Sweeper {
            shared,
            orders,
            users: Users::load(state_dir)?,
            due: BTreeMap::new(),
            running: BTreeSet::new(),
            syncs: JoinSet::new(),
            unlisted: Arc::default(),
        };
        Ok((sweeper, sender))
    }

    /// Works as long as anybody gives orders.
    pub async fn run(mut self) {
        let mut catching_up = JoinSet::new();
        loop {
            self.start_due();
            let next = self.next_due();
            tokio::select! {
                order = self.orders.recv() => match order {
                    Some(Order::Everything) => {
                        // An older one that still goes on would only do the same.
                        catching_up.abort_all();
                        let known = self.users.names.clone();
                        catching_up.spawn(catch_up(self.shared.clone(), known, self.unlisted.clone()));
                    }
                    Some(order) => self.take(order),
                    None => return,
                },
                Some(users) = catching_up.join_next() => {
                    // One that was cut short was replaced.
                    for user in users.unwrap_or_default() {
                        self.users.know(&user);
                        self.all_peers(&user, Extent::All);
                    }
                }
                Some(ended) = self.syncs.join_next() => {
                    if let Ok((whom, due, how)) = ended {
                        self.ended(whom, due, how);
                    }
                }
                () = tokio::time::sleep_until(next) => {}
            }
        }
    }

    fn take(&mut self, order: Order) {
        match order {
            Order::Know(user) => self.users.know(&user),
            Order::Tree(user) => {
                self.users.know(&user);
                self.all_peers(&user, Extent::Tree);
            }
            Order::Owed(user, node) => self.order(user, node, Extent::All),
            Order::Stranger(node) => {
                for user in self.users.names.clone() {
                    self.order(user, node, Extent::Tree);
                }
            }
            Order::Retry => {
                let now = Instant::now();
                self.due.values_mut().for_each(|due| due.at = now);
            }
            Order::Everything => {}
        }
    }

    fn all_peers(&mut self, user: &str, extent: Extent) {
        let Some(session) = self.shared.session() else {
            return;
        };
        for node in session.peers() {
            match session.members.alive.contains_key(&node) {
                true => self.order(user.to_owned(), node, extent),
                false => self.shared.owe(node, user),
            }
        }
    }

    fn order(&mut self, user: String, node: Node, extent: Extent) {
        let at = Instant::now() + GATHER;
        let due = self.due.entry((user, node)).or_insert(Due {
            extent,
            at,
            failures: 0,
        });
        due.extent = due.extent.max(extent);
        due.at = due.at.min(at);
    }

    fn next_due(&self) -> Instant {
        let idle = Instant::now() + PAUSES.1;
        let free = self.running.len() < AT_A_TIME;
        let due = self
            .due
            .iter()
            .filter(|(whom, _)| free && !self.running.contains(*whom));
        due.map(|(_, due)| due.at).min().unwrap_or(idle).min(idle)
    }

    fn start_due(&mut self) {
        while self.running.len() < AT_A_TIME {
            let now = Instant::now();
            let ready = self
                .due
                .iter()
                .find(|(whom, due)| due.at <= now && !self.running.contains(*whom));
            let Some(whom) = ready.map(|(whom, _)| whom.clone()) else {
                return;
            };
            if let Some(due) = self.due.remove(&whom) {
                self.start(whom, due);
            }
        }
    }

    fn start(&mut self, whom: Whom, due: Due) {
        let Some(session) = self.shared.session() else {
            self.shared.owe(whom.1, &whom.0);
            return;
        };
        if !session.members.alive.contains_key(&whom.1) {
            self.shared.owe(whom.1, &whom.0);
            return;
        }
        self.running.insert(whom.clone());
        let shared = self.shared.clone();
        self.syncs.spawn(async move {
            let how = sync(&shared, &session, &whom, due.extent).await;
            (whom, due, how)
        });
    }

    fn ended(&mut self, whom: Whom, due: Due, how: Ended) {
        self.running.remove(&whom);
        let failures = match how {
            Ended::Done => return,
            Ended::Failed => due.failures + 1,
            Ended::TooEarly => 0,
        };
        let pause = PAUSES.0 * (1 << failures.saturating_sub(1).min(6));
        let again = Due {
            at: Instant::now() + pause.min(PAUSES.1),
            failures,
            ..due
        };
        self.due.entry(whom).or_insert(again);
    }
}

/// Syncs a user with a peer. While one of the two has to join a mailbox only the tree can be synced:
/// what a node that was away has there may have been expunged elsewhere, or moved, which
/// replication by itself does not always find out. It would bring such a message back, under
/// another UID, or carry an expunge of what is staged. Joining sees to that.
async fn sync<S: Site>(
    shared: &Shared<S>,
    session: &Session,
    (user, peer): &Whom,
    extent: Extent,
) -> Ended {
    let all = extent == Extent::All;
    let held = match all {
        true => held(session, user, *peer).await,
        false => Ok(true),
    };
    let held = match held {
        Ok(held) => held,
        Err(error) => {
            tracing::info!(user, %error, "which mailboxes can be synced is not known");
            return Ended::Failed;
        }
    };
    let job = Job {
        what: match all && held {
            true => What::User(user.clone()),
            false => What::Tree(user.clone()),
        },
        peer: session.name(*peer),
        lead: session.me.node < *peer,
        force: false,
        stable: 0,
    };
    shared.metrics.syncs.inc();
    let result = shared.site.carrier().sync(&job).await;
    tracing::debug!(user, peer = job.peer, what = ?job.what, ?result, "sync of a user");
    match result {
        Ok(()) if held => Ended::Done,
        Ok(()) | Err(carrier::Error::Changed) => Ended::TooEarly,
        Err(error) => {
            shared.metrics.sync_failures.inc();
            tracing::info!(user, peer = job.peer, %error, "sync of all mailboxes failed");
            Ended::Failed
        }
    }
}

/// Whether this node and the peer hold every mailbox of the user that has a record.
async fn held(session: &Session, user: &str, peer: Node) -> Result<bool, etcd::Error> {
    let Some(incarnation) = session.members.alive.get(&peer).copied() else {
        return Ok(false);
    };
    let (mut store, me) = (session.store.clone(), &session.me);
    let mut held = true;
    let check = |_, records: etcd::Records| {
        if let Some(stable) = records.stable {
            held &= stable.value.held_by(me.node, me.incarnation)
                && stable.value.held_by(peer, incarnation);
        }
        Ok::<(), etcd::Error>(())
    };
    store.each_mailbox(Some(user), check).await?;
    Ok(held)
}

/// Looks at every mailbox that may need it, a few at a time, and gives the users found.
async fn catch_up<S: Site>(
    shared: Arc<Shared<S>>,
    known: BTreeSet<String>,
    unlisted: Arc<Mutex<Option<Instant>>>,
) -> BTreeSet<String> {
    let mut users = known;
    let refused = *unlisted.lock();
    if refused.is_none_or(|at| at.elapsed() > UNLISTED) {
        match shared.site.local().users().await {
            Ok(all) => users.extend(all),
            Err(error) => {
                if error.is_refusal() {
                    *unlisted.lock() = Some(Instant::now());
                }
                tracing::info!(%error, "users cannot be listed; those seen before are looked at");
            }
        }
    }
    users.extend(recorded(&shared).await);
    for user in &users {
        match shared.site.local().pending(user).await {
            Ok(boxes) => {
                for found in boxes {
                    let inbox = Inbox {
                        look: true,
                        name: Some(found.place.name),
                        ..Inbox::default()
                    };
                    wake_gently(&shared, found.place.mailbox, inbox).await;
                }
            }
            Err(error) => tracing::info!(user, %error, "what waits there is not known"),
        }
    }
    users
}

/// Wakes the mailboxes that have a record, and gives their users.
async fn recorded<S: Site>(shared: &Arc<Shared<S>>) -> BTreeSet<String> {
    let (mut users, mut after) = (BTreeSet::new(), None);
    loop {
        let Some(session) = shared.session() else {
            return users;
        };
        let mut store = session.store.clone();
        let (found, next) = match store.mailboxes(after.take(), PAGE).await {
            Ok(page) => page,
            Err(error) => {
                tracing::info!(%error, "records cannot be listed");
                return users;
            }
        };
        for mailbox in found {
            users.insert(mailbox.user.clone());
            let inbox = Inbox {
                look: true,
                ..Inbox::default()
            };
            wake_gently(shared, mailbox, inbox).await;
        }
        match next {
            Some(next) => after = Some(next),
            None => return users,
        }
    }
}

async fn wake_gently<S: Site>(
    shared: &Arc<Shared<S>>,
    mailbox: crate::etcd::Mailbox,
    inbox: Inbox,
) {
    while shared.busy() >= BUSY {
        tokio::time::sleep(BUSY_PAUSE).await;
    }
    shared.wake(mailbox, inbox);
}

/// Users seen so far: some hosts cannot list them.
struct Users {
    path: PathBuf,
    names: BTreeSet<String>,
    /// Names that are not in the file yet.
    new: VecDeque<String>,
}

impl Users {
    fn load(state_dir: &Path) -> Result<Users, Error> {
        let path = state_dir.join("users");
        let names = match std::fs::read_to_string(&path) {
            Ok(text) => text.lines().map(str::to_owned).collect(),
            Err(why) if why.kind() == std::io::ErrorKind::NotFound => BTreeSet::new(),
            Err(why) => {
                let path = path.display().to_string();
                return Err(Error::State { path, why });
            }
        };
        let new = VecDeque::new();
        Ok(Users { path, names, new })
    }

    /// Remembers a user.
    fn know(&mut self, user: &str) {
        // No host has users with line ends in their names; the file could not hold them.
        if user.is_empty() || user.contains(['\n', '\r']) || self.names.contains(user) {
            return;
        }
        self.names.insert(user.to_owned());
        self.new.push_back(user.to_owned());
        if let Err(error) = self.append() {
            tracing::warn!(path = %self.path.display(), %error,
                "users are remembered until xidd stops: make the file writable");
        }
    }

    /// Adds the new names to the file; the first ones with the folder itself.
    fn append(&mut self) -> std::io::Result<()> {
        use std::io::Write;
        let text: String = self.new.iter().map(|name| format!("{name}\n")).collect();
        if !self.path.exists() {
            write_durably(&self.path, &text)?;
        } else {
            let mut file = std::fs::OpenOptions::new().append(true).open(&self.path)?;
            file.write_all(text.as_bytes())?;
        }
        self.new.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_remembered() {
        let dir = tempfile::tempdir().expect("a folder");
        let mut users = Users::load(dir.path()).expect("none yet");
        users.know("alice");
        users.know("bob");
        users.know("alice");
        users.know("no\nuser");
        let again = Users::load(dir.path()).expect("the file");
        assert_eq!(again.names, BTreeSet::from(["alice".into(), "bob".into()]));
        let text = std::fs::read_to_string(dir.path().join("users")).expect("the file");
        assert_eq!(text, "alice\nbob\n");
    }
}
