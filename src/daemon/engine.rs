//! The daemon's heart: members, mailboxes, and the events that wake them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::host::Place;
use super::mailbox::{Inbox, Task, Wake};
use super::member::{Member, Membership, News, Session};
use super::site::{DovecotSite, Site};
use super::sweep::{Order, Sweeper};
use super::xids;
use super::{Change, Config, Event, Metrics};
use crate::cluster::{Incarnation, Node};
use crate::etcd::Mailbox;

/// Most mailboxes that have a task at a time; the others wait for their turn.
const MAX_TASKS: usize = 5000;
/// Most changes heard of from etcd that wait to be passed on.
const MAX_NEWS: usize = 1024;

/// Why the engine cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The cluster refuses this node.
    #[error(transparent)]
    Etcd(#[from] crate::etcd::Error),
    /// The daemon's own state cannot be read or written.
    #[error("{path}: {why}; it must be writable by xidd and survive a restart")]
    State {
        /// The file.
        path: String,
        /// What went wrong.
        why: std::io::Error,
    },
    /// A file that the configuration names cannot be used.
    #[error(transparent)]
    Config(#[from] super::config::Error),
    /// etcd does not answer.
    #[error("etcd: {0} does not answer; look at its health and the network")]
    Silent(String),
    /// A part of the daemon ended that never should.
    #[error("internal error: {0}; please report it")]
    Internal(String),
}

/// What all tasks have in common.
pub struct Shared<S: Site> {
    /// What can be reached.
    pub site: S,
    /// Counters.
    pub metrics: Arc<Metrics>,
    config: watch::Receiver<Arc<Config>>,
    membership: Membership,
    tasks: Mutex<Tasks>,
    busy: AtomicUsize,
    /// Users of whose changes a node that is away does not know yet.
    owed: Mutex<BTreeMap<Node, BTreeSet<String>>>,
}

#[derive(Default)]
struct Tasks {
    active: HashMap<Mailbox, Arc<Wake>>,
    /// For these there was no room.
    waiting: BTreeMap<Mailbox, Inbox>,
    running: JoinSet<()>,
}

impl<S: Site> Shared<S> {
    /// The configuration in force.
    #[must_use]
    pub fn config(&self) -> Arc<Config> {
        self.config.borrow().clone()
    }

    /// The membership, unless the node is cut off.
    #[must_use]
    pub fn session(&self) -> Option<Arc<Session>> {
        self.membership.borrow().clone()
    }

    /// Tells a mailbox's task, which is started if there is none.
    pub fn wake(self: &Arc<Self>, mailbox: Mailbox, inbox: Inbox) {
        let mut tasks = self.tasks.lock();
        if let Some(wake) = tasks.active.get(&mailbox) {
            wake.ring(inbox);
        } else if tasks.active.len() < MAX_TASKS {
            self.start(&mut tasks, mailbox, inbox);
        } else {
            tasks.waiting.entry(mailbox).or_default().merge(inbox);
        }
    }

    fn start(self: &Arc<Self>, tasks: &mut Tasks, mailbox: Mailbox, inbox: Inbox) {
        // What has ended is only to be forgotten.
        while tasks.running.try_join_next().is_some() {}
        let wake = Arc::new(Wake::default());
        wake.ring(inbox);
        tasks.active.insert(mailbox.clone(), wake.clone());
        let task = Task::new(self.clone(), mailbox, wake);
        tasks.running.spawn(task.run());
        self.count(tasks);
    }

    fn count(&self, tasks: &Tasks) {
        let count = tasks.active.len();
        self.metrics
            .active
            .set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// Ends a task that has nothing to do. False: it was told something meanwhile.
    #[must_use]
    pub fn retire(self: &Arc<Self>, mailbox: &Mailbox) -> bool {
        let mut tasks = self.tasks.lock();
        if tasks
            .active
            .get(mailbox)
            .is_some_and(|wake| !wake.is_quiet())
        {
            return false;
        }
        tasks.active.remove(mailbox);
        if let Some((next, inbox)) = tasks.waiting.pop_first() {
            self.start(&mut tasks, next, inbox);
        }
        self.count(&tasks);
        true
    }

    /// A task is gone; had it not retired, the mailbox is free again.
    pub fn vacate(&self, mailbox: &Mailbox, wake: &Arc<Wake>) {
        // Tasks that are cut short at the end are dropped under the lock.
        let Some(mut tasks) = self.tasks.try_lock() else {
            return;
        };
        let same = tasks
            .active
            .get(mailbox)
            .is_some_and(|now| Arc::ptr_eq(now, wake));
        if same {
            tasks.active.remove(mailbox);
            self.count(&tasks);
        }
    }

    /// How many mailboxes are at work, or wait to be.
    #[must_use]
    pub fn busy(&self) -> usize {
        self.busy.load(Ordering::Relaxed) + self.tasks.lock().waiting.len()
    }

    /// A task takes up work, or has none.
    pub fn count_busy(&self, busy: bool) {
        match busy {
            true => self.busy.fetch_add(1, Ordering::Relaxed),
            false => self.busy.fetch_sub(1, Ordering::Relaxed),
        };
    }

    fn wake_all(&self) {
        let look = Inbox {
            look: true,
            members: true,
            ..Inbox::default()
        };
        let tasks = self.tasks.lock();
        tasks
            .active
            .values()
            .for_each(|wake| wake.ring(look.clone()));
    }

    /// A node that is away has to be told of a user's changes when it is back.
    pub fn owe(&self, node: Node, user: &str) {
        self.owed
            .lock()
            .entry(node)
            .or_default()
            .insert(user.to_owned());
    }

    /// Of which users a node has to be told that is back.
    #[must_use]
    pub fn pay(&self, node: Node) -> BTreeSet<String> {
        self.owed.lock().remove(&node).unwrap_or_default()
    }

    async fn shut_down(&self) {
        let mut running = std::mem::take(&mut self.tasks.lock().running);
        running.shutdown().await;
    }
}

/// Runs until `stop` becomes true, or `events` end. A changed `config` takes effect at once;
/// lease and etcd do when the next membership begins, and what
/// [`Config::fixed_keys_that_differ`] names never does.
///
/// # Errors
/// When the node cannot be a member of the cluster as configured. An etcd that is not reachable
/// is no error: the engine goes on trying, and shows no new UID meanwhile.
pub async fn run(
    config: watch::Receiver<Arc<Config>>,
    events: mpsc::Receiver<Event>,
    metrics: Arc<Metrics>,
    stop: watch::Receiver<bool>,
) -> Result<(), Error> {
    let site = DovecotSite::new(&config.borrow().clone())?;
    run_with(site, config, events, metrics, stop).await
}

/// [`run`], with another host or another replication.
///
/// # Errors
/// As [`run`].
pub async fn run_with<S: Site>(
    site: S,
    config: watch::Receiver<Arc<Config>>,
    events: mpsc::Receiver<Event>,
    metrics: Arc<Metrics>,
    stop: watch::Receiver<bool>,
) -> Result<(), Error> {
    let (session, membership) = watch::channel(None);
    let (news, heard) = mpsc::channel(MAX_NEWS);
    let (leave, left) = watch::channel(false);
    let fixed = config.borrow().clone();
    let member = Member {
        config: config.clone(),
        session,
        news,
        metrics: metrics.clone(),
    };
    let shared = Arc::new(Shared {
        site,
        metrics,
        config: config.clone(),
        membership,
        tasks: Mutex::default(),
        busy: AtomicUsize::new(0),
        owed: Mutex::default(),
    });
    let (sweeper, orders) = Sweeper::new(shared.clone(), &fixed.state_dir)?;
    let mut parts = JoinSet::new();
    parts.spawn(async move {
        sweeper.run().await;
        Err(Error::Internal("the sweeper ended".into()))
    });
    parts.spawn(member.run(left));
    let engine = Engine {
        shared: shared.clone(),
        orders,
        alive: BTreeSet::new(),
        disks: BTreeMap::new(),
    };
    let ended = tokio::select! {
        () = engine.listen(config, events, heard, stop) => Ok(()),
        Some(ended) = parts.join_next() => match ended {
            Ok(ended) => ended,
            Err(error) => Err(Error::Internal(error.to_string())),
        },
    };
    shared.shut_down().await;
    // The member gives its lease back, so that the others need not wait for its end.
    leave.send_replace(true);
    let all = async { while parts.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(fixed.etcd.timeout, all).await;
    ended
}

struct Engine<S: Site> {
    shared: Arc<Shared<S>>,
    orders: mpsc::UnboundedSender<Order>,
    /// Who was alive when the members were heard of last.
    alive: BTreeSet<Node>,
    /// The disk with which each node was last seen alive.
    disks: BTreeMap<Node, Incarnation>,
}

impl<S: Site> Engine<S> {
    async fn listen(
        mut self,
        mut config: watch::Receiver<Arc<Config>>,
        mut events: mpsc::Receiver<Event>,
        mut news: mpsc::Receiver<News>,
        mut stop: watch::Receiver<bool>,
    ) {
        loop {
            tokio::select! {
                event = events.recv() => match event {
                    Some(event) => self.event(event),
                    None => return,
                },
                Some(news) = news.recv() => self.news(news),
                Ok(()) = config.changed() => {
                    let config = config.borrow_and_update().clone();
                    self.configure(&config);
                }
                // A sender that is gone is a daemon that ends.
                _ = stop.wait_for(|stop| *stop) => return,
            }
        }
    }

    fn configure(&self, config: &Config) {
        if let Err(error) = self.shared.site.configure(config) {
            tracing::error!(%error, "everything that is reached stays as it was");
            return;
        }
        let _ = self.orders.send(Order::Retry);
        self.shared.wake_all();
    }

    fn event(&self, event: Event) {
        self.shared.metrics.events.inc();
        match event {
            Event::Changed {
                user,
                mailbox,
                name,
                kind,
            } => self.changed(user, mailbox, name, kind),
            Event::Xids {
                user,
                mailbox,
                name,
                guids,
                asking,
                reply,
            } => {
                let mailbox = Mailbox {
                    user,
                    guid: mailbox,
                };
                let place = Place { mailbox, name };
                xids::answer(self.shared.clone(), place, guids, asking, reply);
            }
            Event::Status { reply } => {
                // Whoever asked may be gone.
                let incarnation = self.shared.session().map(|s| s.me.incarnation);
                let _ = reply.send(incarnation);
            }
        }
    }

    fn changed(&self, user: String, guid: [u8; 16], name: String, kind: Change) {
        let order = match kind {
            Change::Tree => Order::Tree(user.clone()),
            _ => Order::Know(user.clone()),
        };
        // The sweeper lives as long as we do.
        let _ = self.orders.send(order);
        if guid == [0; 16] {
            return;
        }
        let inbox = Inbox {
            look: true,
            rev: None,
            name: Some(name),
            flags: kind == Change::Flags,
            heard: (kind == Change::Added).then(Instant::now),
            members: false,
        };
        self.shared.wake(Mailbox { user, guid }, inbox);
    }

    fn news(&mut self, news: News) {
        match news {
            News::Mailbox(mailbox, rev) => {
                let inbox = Inbox {
                    rev: Some(rev),
                    ..Inbox::default()
                };
                self.shared.wake(mailbox, inbox);
            }
            News::Members => {
                self.greet();
                self.shared.wake_all();
            }
            News::Missed => {
                self.greet();
                self.shared.wake_all();
                let _ = self.orders.send(Order::Everything);
            }
        }
    }

    /// Tells nodes that are back what they missed. (They themselves look at everything, too; but
    /// they may not know of every user.) A disk that was not there before knows no user, and what
    /// happened while nobody had heard of its node was meant for the others only.
    fn greet(&mut self) {
        let Some(session) = self.shared.session() else {
            return;
        };
        let now: BTreeSet<Node> = session.alive().collect();
        for node in now.difference(&self.alive) {
            for user in self.shared.pay(*node) {
                let _ = self.orders.send(Order::Owed(user, *node));
            }
        }
        for node in &now {
            let disk = session.members.alive[node];
            if self.disks.insert(*node, disk) != Some(disk) {
                let _ = self.orders.send(Order::Stranger(*node));
            }
        }
        self.alive = now;
    }
}
