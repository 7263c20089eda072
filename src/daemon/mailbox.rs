//! One mailbox at work: what etcd and the host say goes into the protocol core, and the step that
//! comes out is carried out, again and again, until the core says that there is nothing to do.
//!
//! Whatever fails is tried again later, from what is then there: nothing is remembered that
//! cannot be lost. So a task ends when its mailbox is quiet, and a new one begins at the next
//! event.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::task::{AbortHandle, JoinSet};

use super::carrier::{self, Carrier, Job, What};
use super::engine::Shared;
use super::host::{self, Host, Look, Op, Place};
use super::member::Session;
use super::site::Site;
use crate::cluster::{
    ALL_PROMISED, At, Config, Entry, Kind, Local, Node, Put, Replica, Rev, Rules, Snapshot, Source,
    Stable, Step, Tail, Txn, Uid, View,
};
use crate::etcd::{self, Mailbox, Text};

/// Most messages that one tail carries: with a GUID and an XID each, well below what etcd takes
/// in one request (1.5 MiB).
const CHUNK: usize = 4000;
/// Failed syncs of a conflict before the gate is closed.
const GATE_AFTER: u8 = 1;
/// A closed gate opens by itself after this time, should its daemon be gone.
const GATE_LEASE: Duration = Duration::from_secs(5);
/// A quiet mailbox's task ends after this time.
const LINGER: Duration = Duration::from_secs(10);
/// While something is above S and nothing happens, this often one looks again.
const LOOK_AGAIN: Duration = Duration::from_secs(3);
/// A node that is cut off looks again when it is back; this is only in case.
const CUT_OFF: Duration = Duration::from_secs(30);
/// First and longest pause after a failure, or when a step changes nothing.
const PAUSES: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(5));
/// After a push, so long the peer may take to say what it has now, before the next push.
const PATIENCE: Duration = Duration::from_millis(400);
/// With this patience a push was fruitless twice: the next one compares everything.
const FRUITLESS: Duration = Duration::from_millis(1600);
/// So long after a conflict nothing is pushed before it is promised: what collides again would be
/// refused, and cost more than it gains.
const CALM: Duration = Duration::from_secs(1);
/// A look at a mailbox of which nothing was heard since serves for so long: what was told may have
/// been lost.
const KEEPS: Duration = Duration::from_secs(1);
/// Changes of flags are gathered for so long before they are carried to the peers.
const GATHER: Duration = Duration::from_millis(50);

/// What wakes a mailbox's task, and what it has to know then.
#[derive(Default)]
pub struct Wake {
    inbox: Mutex<Inbox>,
    bell: Notify,
}

/// What happened since the task looked last.
#[derive(Clone, Debug, Default)]
pub struct Inbox {
    /// Something that is no change in etcd: look.
    pub look: bool,
    /// The highest revision at which etcd said something about the mailbox.
    pub rev: Option<Rev>,
    /// The name under which it was seen.
    pub name: Option<String>,
    /// Flags changed here, or messages went.
    pub flags: bool,
    /// When the first new message was heard of.
    pub heard: Option<Instant>,
    /// The members changed, or the membership began: what failed before may not fail now.
    pub members: bool,
}

impl Inbox {
    fn is_empty(&self) -> bool {
        !self.look && self.rev.is_none() && !self.flags
    }

    /// Adds what happened later.
    pub fn merge(&mut self, other: Inbox) {
        self.look |= other.look;
        self.rev = self.rev.max(other.rev);
        self.name = other.name.filter(|n| !n.is_empty()).or(self.name.take());
        self.flags |= other.flags;
        self.members |= other.members;
        self.heard = self.heard.or(other.heard);
    }
}

impl Wake {
    /// Tells the task.
    pub fn ring(&self, what: Inbox) {
        self.inbox.lock().merge(what);
        self.bell.notify_one();
    }

    /// Whether there is nothing to tell.
    pub fn is_quiet(&self) -> bool {
        self.inbox.lock().is_empty()
    }
}

/// Why a round failed.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Etcd(#[from] etcd::Error),
    #[error(transparent)]
    Host(#[from] host::Error),
    #[error("node {0}: {1}")]
    Peer(String, host::Error),
}

/// When the next round is.
enum Pace {
    /// At once.
    Again,
    /// When something happens, or after this time.
    After(Duration),
    /// When something happens.
    Quiet,
}

/// What is under way, or was done last, towards one peer.
struct Push {
    /// What we had, and what the peer had said, when it began.
    of: u64,
    /// When it ended; `None`: it runs.
    ended: Option<Instant>,
    /// How long to wait before the same is tried again.
    patience: Duration,
}

/// A mailbox as it was seen.
#[derive(Clone)]
struct Fresh {
    above: Uid,
    look: Look,
    at: Instant,
}

/// What a sync that ended was for.
struct Synced {
    peer: Node,
    /// It settles a conflict, or takes a prefix: nothing else is done meanwhile.
    alone: bool,
    /// It carries flags and expunges of stable messages.
    flags: bool,
    result: Result<(), carrier::Error>,
    took: Duration,
}

/// A mailbox's task.
pub struct Task<S: Site> {
    shared: Arc<Shared<S>>,
    place: Place,
    wake: Arc<Wake>,
    replica: Replica,
    /// The membership to which the replica belongs.
    session: Option<Arc<Session>>,
    /// A peer's account of the stable prefix.
    source: Option<Source<Text, Text>>,
    /// Which staged messages the source was asked about, and what it said.
    settled: BTreeMap<Text, bool>,
    /// The mailbox as it was seen last, and from which UID on; `None` once it may have changed.
    fresh: Option<Fresh>,
    /// From which UID on to look.
    above: Uid,
    /// etcd's revision that the last round saw.
    seen: Rev,
    syncs: JoinSet<Synced>,
    /// The same, by peer.
    running: Vec<(Node, AbortHandle)>,
    /// A sync is under way beside which nothing else is done.
    alone: bool,
    pushes: BTreeMap<Node, Push>,
    /// Peers to which a change of flags has to be carried, and since when.
    flags: BTreeSet<Node>,
    flags_since: Option<Instant>,
    /// The last step and what it was decided on, and how often that came again.
    last: Option<(u64, u32)>,
    heard: Option<Instant>,
    /// When nodes were last seen to collide.
    collided: Option<Instant>,
    /// What we added to the gauge of pending UIDs.
    pending: i64,
    failures: u32,
    /// It is not only lingering.
    busy: bool,
}

impl<S: Site> Task<S> {
    /// The task of a mailbox, woken by `wake`.
    pub fn new(shared: Arc<Shared<S>>, mailbox: Mailbox, wake: Arc<Wake>) -> Task<S> {
        let name = String::new();
        Task {
            shared,
            place: Place { mailbox, name },
            wake,
            replica: Replica::default(),
            session: None,
            source: None,
            settled: BTreeMap::new(),
            fresh: None,
            above: 0,
            seen: Rev(0),
            syncs: JoinSet::new(),
            running: Vec::new(),
            alone: false,
            pushes: BTreeMap::new(),
            flags: BTreeSet::new(),
            flags_since: None,
            last: None,
            heard: None,
            collided: None,
            pending: 0,
            failures: 0,
            busy: false,
        }
    }

    /// Works until the mailbox is quiet.
    pub async fn run(mut self) {
        self.set_busy(true);
        loop {
            self.read_inbox();
            self.note_ended();
            let pace = match self.round().await {
                Ok(pace) => pace,
                Err(error) => {
                    let pause = self.failed(&error);
                    self.recover(pause).await;
                    continue;
                }
            };
            match pace {
                Pace::Again => tokio::task::yield_now().await,
                Pace::After(pause) => {
                    self.sleep(pause).await;
                }
                Pace::Quiet => {
                    self.set_busy(false);
                    let idle = !self.sleep(LINGER).await && self.syncs.is_empty();
                    self.set_busy(true);
                    if idle && self.shared.retire(&self.place.mailbox) {
                        return;
                    }
                }
            }
        }
    }

    fn set_busy(&mut self, busy: bool) {
        if busy != self.busy {
            self.busy = busy;
            self.shared.count_busy(busy);
        }
    }

    fn read_inbox(&mut self) -> Inbox {
        let inbox = std::mem::take(&mut *self.wake.inbox.lock());
        if let Some(name) = &inbox.name {
            self.place.name.clone_from(name);
        }
        if inbox.flags
            && let Some(session) = &self.session.clone().or_else(|| self.shared.session())
        {
            self.flags.extend(session.peers());
            self.flags_since.get_or_insert_with(Instant::now);
        }
        if inbox.look {
            self.fresh = None;
        }
        self.heard = self.heard.or(inbox.heard);
        inbox
    }

    /// Waits until something happens. False: nothing did.
    async fn sleep(&mut self, limit: Duration) -> bool {
        let end = tokio::time::Instant::now() + limit;
        loop {
            tokio::select! {
                () = self.wake.bell.notified() => {
                    let inbox = self.read_inbox();
                    let news = inbox.rev.is_some_and(|rev| rev > self.seen);
                    if news || inbox.look || inbox.flags {
                        return true;
                    }
                }
                Some(ended) = self.syncs.join_next() => {
                    self.synced(ended.ok());
                    return true;
                }
                () = tokio::time::sleep_until(end) => return false,
            }
        }
    }

    /// Waits after a failure. What wakes us meanwhile would only fail again, unless it is news of
    /// the members.
    async fn recover(&mut self, pause: Duration) {
        let end = tokio::time::Instant::now() + pause;
        loop {
            tokio::select! {
                () = self.wake.bell.notified() => {
                    if self.read_inbox().members {
                        return;
                    }
                }
                () = tokio::time::sleep_until(end) => return,
            }
        }
    }

    /// What a failure means, and how long to pause.
    fn failed(&mut self, error: &Error) -> Duration {
        self.fresh = None;
        self.source = None;
        self.failures = self.failures.saturating_add(1);
        let place = &self.place;
        let metrics = &self.shared.metrics;
        match error {
            Error::Etcd(_) => {
                // A transaction may or may not have been carried out: begin as after a restart.
                self.replica = Replica::default();
                metrics.etcd_failures.inc()
            }
            Error::Host(_) | Error::Peer(..) => metrics.host_failures.inc(),
        };
        let pause = backoff(self.failures);
        tracing::warn!(user = place.mailbox.user, mailbox = place.guid(), name = place.name,
            %error, "trying again in {pause:?}");
        pause
    }

    /// Looks, decides, and does one thing.
    async fn round(&mut self) -> Result<Pace, Error> {
        let Some(session) = self.shared.session() else {
            return Ok(Pace::After(CUT_OFF));
        };
        if self.session.as_ref().is_none_or(|s| s.me != session.me) {
            self.replica = Replica::default();
        }
        self.session = Some(session.clone());
        let Some(view) = self.view(&session).await? else {
            return Ok(self.absent(&session).await);
        };
        self.give_up(&view.etcd);
        self.observe(&view);
        let config = self.config(&session);
        let mut replica = self.replica.clone();
        let step = replica.next(&config, &view);
        if let Some(pace) = self.hold(&step, &view) {
            return Ok(pace);
        }
        let started = self.speculate(&session, &config, &view, &step);
        if is_push(&step, &view, config.me) && !started {
            return Ok(Pace::After(self.patience(&view)));
        }
        self.replica = replica;
        let repeated = self.repeated(&step, &view);
        tracing::trace!(mailbox = self.place.guid(), ?step, "step");
        self.shared.metrics.step(&step);
        let pace = self.carry_out(&session, &view, step).await?;
        Ok(match (pace, repeated) {
            (Pace::Again, n) if n > 0 => Pace::After(backoff(n)),
            (pace, _) => pace,
        })
    }

    fn config(&self, session: &Session) -> Config {
        Config {
            me: session.me.node,
            incarnation: session.me.incarnation,
            window: session.window,
            chunk: CHUNK,
            gate_after: GATE_AFTER,
            rules: Rules::default(),
        }
    }

    /// etcd and the mailbox, side by side. `None`: the mailbox is not here.
    async fn view(&mut self, session: &Session) -> Result<Option<View<Text, Text>>, Error> {
        let mut store = session.store.clone();
        let fresh = self.fresh.take();
        let (above, place, shared) = (self.above, self.place.clone(), self.shared.clone());
        let looking = async {
            match fresh {
                Some(fresh) if fresh.above <= above && fresh.at.elapsed() < KEEPS => Ok(fresh),
                _ => {
                    let look = shared.site.local().act(&place, &Op::Look, above).await;
                    look.map(|look| Fresh::new(above, look))
                }
            }
        };
        let (snapshot, looked) = tokio::join!(store.snapshot_at(&place.mailbox), looking);
        let At { rev, value: etcd } = snapshot?;
        self.seen = rev;
        let mut fresh = match looked {
            Ok(found) => found,
            Err(host::Error::NotFound) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        self.above = holding(&etcd, session).map_or(0, |stable| stable.uid);
        // Where there is no record, one is made by what is here now: the record may be gone because
        // the mailbox is, and an earlier look would bring it back.
        if fresh.above > self.above || etcd.stable.is_none() {
            fresh = match self.act(&Op::Look).await {
                Ok(look) => Fresh::new(self.above, look),
                Err(host::Error::NotFound) => return Ok(None),
                Err(error) => return Err(error.into()),
            };
        }
        // It may have been renamed, here or by replication.
        if !fresh.look.name.is_empty() {
            self.place.name.clone_from(&fresh.look.name);
        }
        let mut local = fresh.look.local.clone();
        tracing::trace!(from = fresh.above, next = local.next, "looked");
        self.keep(fresh, &etcd, session);
        remember_expunges(&mut local, &etcd, session.me.node);
        self.check_source(&etcd);
        self.ask_settled(session, &etcd, &local).await?;
        for staged in &mut local.staged {
            staged.settled = self.settled.get(&staged.guid).copied().unwrap_or(false);
        }
        let source = self.source.clone();
        Ok(Some(View {
            etcd,
            local,
            source,
        }))
    }

    /// Keeps a look for the next decision, which mostly follows what another node wrote. Only
    /// where nothing changes its UID: who settles a conflict, or takes a prefix in, looks each time.
    fn keep(&mut self, fresh: Fresh, etcd: &Snapshot<Text, Text>, session: &Session) {
        let firm = etcd.tails.values().all(|tail| tail.value.firm);
        if firm && !self.alone && holding(etcd, session).is_some() {
            self.fresh = Some(fresh);
        }
    }

    /// Does something to the mailbox here.
    async fn act(&self, op: &Op) -> Result<Look, host::Error> {
        self.shared
            .site
            .local()
            .act(&self.place, op, self.above)
            .await
    }

    /// Forgets what a source said about another state of the record.
    fn check_source(&mut self, etcd: &Snapshot<Text, Text>) {
        let now = etcd.stable.as_ref().map(|at| at.rev);
        if self.source.as_ref().map(|source| source.rev) != now {
            self.source = None;
            self.settled.clear();
        }
    }

    /// Asks which of the staged messages were made stable.
    async fn ask_settled(
        &mut self,
        session: &Session,
        etcd: &Snapshot<Text, Text>,
        local: &Local<Text, Text>,
    ) -> Result<(), Error> {
        let (Some(source), Some(stable)) = (&self.source, &etcd.stable) else {
            return Ok(());
        };
        let staged = local.staged.iter().map(|staged| &staged.guid);
        let unknown: Vec<Text> = staged
            .filter(|guid| !self.settled.contains_key(*guid))
            .cloned()
            .collect();
        if unknown.is_empty() {
            return Ok(());
        }
        let mut settled = BTreeSet::new();
        for node in etcd.witnesses(source.node) {
            let (name, host) = self.peer(session, node)?;
            match host.settled(&self.place, stable.value.uid, &unknown).await {
                Ok(known) => settled.extend(known),
                Err(host::Error::NotFound) => {}
                Err(error) => return Err(Error::Peer(name, error)),
            }
        }
        let answers = unknown
            .into_iter()
            .map(|guid| (settled.contains(&guid), guid));
        self.settled.extend(answers.map(|(is, guid)| (guid, is)));
        Ok(())
    }

    fn peer(&self, session: &Session, node: Node) -> Result<(String, Arc<S::Host>), Error> {
        let name = session.name(node);
        match self.shared.site.peer(&name) {
            Some(host) => Ok((name, host)),
            None => Err(Error::Peer(name, host::Error::NotFound)),
        }
    }

    /// A mailbox that is not here. Who holds it pushes it here; who joins takes it, unless it is
    /// not there either.
    async fn absent(&mut self, session: &Arc<Session>) -> Pace {
        self.report(0);
        let mut store = session.store.clone();
        let Ok(etcd) = store.snapshot(&self.place.mailbox).await else {
            return Pace::After(backoff(self.failures + 1));
        };
        let Some(stable) = &etcd.stable else {
            return Pace::Quiet;
        };
        if holding(&etcd, session).is_some() {
            return Pace::Quiet;
        }
        let teacher = stable
            .value
            .holders
            .iter()
            .find(|(n, i)| etcd.alive.get(n) == Some(i));
        let Some((teacher, _)) = teacher else {
            return Pace::Quiet;
        };
        let Ok((_, host)) = self.peer(session, *teacher) else {
            return Pace::Quiet;
        };
        let there = host.act(&self.place, &Op::Look, stable.value.uid).await;
        if there.is_err() || self.alone {
            return Pace::Quiet;
        }
        self.start(session, *teacher, true, true, false);
        self.failures = self.failures.saturating_add(1);
        Pace::After(backoff(self.failures))
    }

    /// Tells the counters how much waits, and for how long.
    fn observe(&mut self, view: &View<Text, Text>) {
        let local = &view.local;
        let pending = i64::from(local.next - 1) - i64::from(local.shown);
        if pending < self.pending {
            self.failures = 0;
        }
        self.report(pending.max(0));
        let mailbox = &self.place.mailbox;
        if pending > 0 {
            let since = *self.heard.get_or_insert_with(Instant::now);
            self.shared.metrics.lag.waits(mailbox, since);
            return;
        }
        self.shared.metrics.lag.settled(mailbox);
        if let Some(heard) = self.heard.take() {
            let seconds = heard.elapsed().as_secs_f64();
            self.shared.metrics.delay.observe(seconds);
        }
    }

    fn report(&mut self, pending: i64) {
        self.shared.metrics.pending.inc_by(pending - self.pending);
        self.pending = pending;
        if pending == 0 {
            self.shared.metrics.lag.settled(&self.place.mailbox);
        }
    }

    /// Whether this step has to wait for a sync that is under way, or was done just now.
    fn hold(&self, step: &Step<Text, Text>, view: &View<Text, Text>) -> Option<Pace> {
        let follows = matches!(step, Step::Expose { .. } | Step::Gate { .. });
        if self.alone && !follows {
            return Some(Pace::After(LOOK_AGAIN));
        }
        if self.syncs.is_empty() || follows {
            return None;
        }
        let beside = match step {
            Step::Txn(_) | Step::Promise { .. } | Step::Wait | Step::Enter => true,
            step => is_push(step, view, self.me()),
        };
        (!beside).then_some(Pace::After(LOOK_AGAIN))
    }

    fn me(&self) -> Node {
        self.session
            .as_ref()
            .map_or(Node(0), |session| session.me.node)
    }

    /// How long until the next push can be tried.
    fn patience(&mut self, view: &View<Text, Text>) -> Duration {
        let peers: Vec<Node> = self.pushes.keys().copied().collect();
        let rests = peers.into_iter().filter_map(|peer| self.rests(peer, view));
        rests.min().unwrap_or(LOOK_AGAIN)
    }

    /// How long a push to this peer has to wait: until the one under way has ended, and the peer
    /// has had the time to say what it has now.
    fn rests(&mut self, peer: Node, view: &View<Text, Text>) -> Option<Duration> {
        let of = fingerprint(peer, view);
        let push = self.pushes.get_mut(&peer)?;
        let Some(ended) = push.ended else {
            return Some(LOOK_AGAIN);
        };
        if push.of != of {
            self.pushes.remove(&peer);
            return None;
        }
        push.patience.checked_sub(ended.elapsed())
    }

    /// Starts what the core would come to once our tail is published, where that is a push: it
    /// needs no promise, and takes the longest of all. True: something was started.
    fn speculate(
        &mut self,
        session: &Arc<Session>,
        config: &Config,
        view: &View<Text, Text>,
        step: &Step<Text, Text>,
    ) -> bool {
        let loose = view.etcd.tails.values().any(|tail| !tail.value.firm);
        if loose || view.etcd.gate.is_some() {
            self.collided = Some(Instant::now());
        }
        let calm = self.collided.is_none_or(|at| at.elapsed() > CALM);
        let plain = match step {
            Step::Promise { .. } => calm,
            Step::Txn(txn) => calm && txn.kind == Kind::Publish,
            step => is_push(step, view, config.me),
        };
        let mut started = false;
        if !plain {
            return started;
        }
        for (peer, force) in pushes(&self.replica, config, view) {
            if self.rests(peer, view).is_none() {
                let force = self.began(peer, view) || force;
                self.start(session, peer, force, false, false);
                started = true;
            }
        }
        started
    }

    /// Notes that a push begins. True: the same was tried again and again, and nobody saw anything
    /// of it; what replication remembers of the two nodes may be wrong.
    fn began(&mut self, peer: Node, view: &View<Text, Text>) -> bool {
        let of = fingerprint(peer, view);
        let before = self.pushes.remove(&peer).filter(|push| push.of == of);
        let patience = before.map_or(PATIENCE, |push| (push.patience * 2).min(PAUSES.1));
        let push = Push {
            of,
            ended: None,
            patience,
        };
        self.pushes.insert(peer, push);
        patience >= FRUITLESS
    }

    /// Starts a sync with a peer.
    fn start(&mut self, session: &Session, peer: Node, force: bool, alone: bool, flags: bool) {
        let name = session.name(peer);
        let job = Job {
            what: What::Mailbox(self.place.clone()),
            peer: name,
            lead: session.me.node < peer,
            force,
            stable: self.above,
        };
        tracing::debug!(mailbox = self.place.guid(), ?job, alone, "sync begins");
        self.alone |= alone;
        let shared = self.shared.clone();
        self.running.retain(|(_, sync)| !sync.is_finished());
        let sync = self.syncs.spawn(async move {
            let began = Instant::now();
            let result = shared.site.carrier().sync(&job).await;
            Synced {
                peer,
                alone,
                flags,
                result,
                took: began.elapsed(),
            }
        });
        self.running.push((peer, sync));
    }

    /// Waits no longer for syncs with nodes that are gone: they may hang for minutes.
    fn give_up(&self, etcd: &Snapshot<Text, Text>) {
        let gone = |peer: &Node| !etcd.alive.contains_key(peer);
        for (_, sync) in self.running.iter().filter(|(peer, _)| gone(peer)) {
            sync.abort();
        }
    }

    /// Takes note of the syncs that ended meanwhile. Where somebody writes without a pause there is
    /// always something to do, and no time to wait for them.
    fn note_ended(&mut self) {
        while let Some(ended) = self.syncs.try_join_next() {
            self.synced(ended.ok());
        }
    }

    /// Takes note of a sync that ended.
    fn synced(&mut self, ended: Option<Synced>) {
        self.fresh = None;
        let metrics = &self.shared.metrics;
        metrics.syncs.inc();
        let Some(ended) = ended else {
            // It was given up, or it panicked; which one it was is not known.
            metrics.sync_failures.inc();
            self.alone = false;
            self.source = None;
            self.pushes.clear();
            return;
        };
        metrics.sync_seconds.observe(ended.took.as_secs_f64());
        if ended.alone {
            self.alone = false;
            // It may have carried an expunge of ours to the source.
            self.source = None;
        }
        if let Some(push) = self.pushes.get_mut(&ended.peer) {
            push.ended = Some(Instant::now());
        }
        match ended.result {
            Ok(()) => {
                tracing::debug!(mailbox = self.place.guid(), peer = ended.peer.0,
                    alone = ended.alone, took = ?ended.took, "sync ended");
            }
            Err(error) => {
                metrics.sync_failures.inc();
                if matches!(error, carrier::Error::Interlock(_)) {
                    metrics.interlock_refusals.inc();
                }
                if ended.flags {
                    self.flags.insert(ended.peer);
                    self.flags_since = Some(Instant::now() + backoff(self.failures + 3));
                }
                tracing::info!(user = self.place.mailbox.user, mailbox = self.place.guid(),
                    peer = ended.peer.0, %error, "sync failed; it will be tried again");
            }
        }
    }

    /// How often in a row the same step came of the same view.
    fn repeated(&mut self, step: &Step<Text, Text>, view: &View<Text, Text>) -> u32 {
        if matches!(step, Step::Wait) {
            self.last = None;
            return 0;
        }
        let mut hasher = DefaultHasher::new();
        (step, view).hash(&mut hasher);
        let now = hasher.finish();
        let times = match self.last {
            Some((then, times)) if then == now => times.saturating_add(1),
            _ => 0,
        };
        self.last = Some((now, times));
        times
    }

    async fn carry_out(
        &mut self,
        session: &Arc<Session>,
        view: &View<Text, Text>,
        step: Step<Text, Text>,
    ) -> Result<Pace, Error> {
        let op = match step {
            Step::Wait => {
                self.failures = 0;
                return Ok(self.wait(session, view));
            }
            Step::Enter => return Ok(Pace::After(PAUSES.1)),
            Step::Txn(txn) => return self.transact(session, &txn).await,
            Step::AskPrefix { of } => return self.ask_prefix(session, view, of).await,
            Step::Sync {
                peer,
                force,
                joining,
            } => return self.sync(session, view, peer, force, joining).await,
            Step::Promise { end } => Op::Promise { end },
            Step::Release { to } => Op::Release { to },
            Step::Expose { uid, limit, bound } => Op::Expose { uid, limit, bound },
            Step::Gate { closed } => Op::Gate {
                closed,
                lease: GATE_LEASE,
            },
            Step::Raise { above } => Op::Raise { above },
            Step::DropLow { uids } | Step::DropMain { uids } => Op::Drop { uids },
            Step::Adopt { xids } => Op::Adopt { xids },
            Step::Stage { uids } => Op::Stage { uids },
            Step::Unstage { guid } => Op::Unstage { guid },
            Step::DropStaged { guid } => Op::DropStaged { guid },
        };
        let look = self.act(&op).await?;
        self.fresh = Some(Fresh::new(self.above, look));
        if matches!(op, Op::Promise { end } if end != ALL_PROMISED) {
            // Who joins next does so by what the source has now: a message that it lost meanwhile
            // must not be here.
            self.source = None;
        }
        Ok(Pace::Again)
    }

    /// Nothing to do for the protocol: what ordinary replication has to carry goes now.
    fn wait(&mut self, session: &Arc<Session>, view: &View<Text, Text>) -> Pace {
        let unstable = view.local.next > view.local.shown + 1;
        let calm = match unstable {
            true => Pace::After(LOOK_AGAIN),
            false => Pace::Quiet,
        };
        let Some(since) = self.flags_since.filter(|_| !self.flags.is_empty()) else {
            return calm;
        };
        let loose = view.etcd.tails.values().any(|tail| !tail.value.firm);
        if loose || !self.syncs.is_empty() {
            return Pace::After(LOOK_AGAIN);
        }
        if let Some(rest) = (since + GATHER).checked_duration_since(Instant::now()) {
            return Pace::After(rest);
        }
        self.flags_since = None;
        for peer in std::mem::take(&mut self.flags) {
            // One that is away gets all when it is back.
            let Some(incarnation) = view.etcd.alive.get(&peer) else {
                self.shared.owe(peer, &self.place.mailbox.user);
                continue;
            };
            let stable = holding(&view.etcd, session);
            if stable.is_some_and(|stable| stable.held_by(peer, *incarnation)) {
                self.start(session, peer, false, false, true);
            } else {
                // One that has to join could bring back what was expunged.
                self.flags.insert(peer);
                self.flags_since = Some(Instant::now());
            }
        }
        Pace::After(LOOK_AGAIN)
    }

    async fn transact(&mut self, session: &Session, txn: &Txn<Text, Text>) -> Result<Pace, Error> {
        let mut store = session.store.clone();
        let wrote = store.run(&self.place.mailbox, txn).await?;
        self.replica.txn_done(wrote);
        if wrote.is_some() {
            self.count(txn.kind);
        }
        Ok(Pace::Again)
    }

    fn count(&self, kind: Kind) {
        let metrics = &self.shared.metrics;
        match kind {
            Kind::Publish => metrics.publications.inc(),
            Kind::Withdraw => metrics.withdrawals.inc(),
            Kind::Advance => metrics.advances.inc(),
            Kind::Conclude => {
                metrics.publications.inc();
                metrics.advances.inc()
            }
            Kind::Shrink => metrics.evictions.inc(),
            Kind::Join => metrics.joins.inc(),
            Kind::CloseGate => metrics.gates.inc(),
            Kind::Create | Kind::OpenGate => 0,
        };
        let place = &self.place;
        if matches!(kind, Kind::Shrink | Kind::Join) {
            tracing::info!(
                user = place.mailbox.user,
                mailbox = place.guid(),
                ?kind,
                "done"
            );
        }
    }

    /// Asks a holder what the stable prefix is.
    async fn ask_prefix(
        &mut self,
        session: &Session,
        view: &View<Text, Text>,
        of: Node,
    ) -> Result<Pace, Error> {
        let Some(At { rev, value: stable }) = &view.etcd.stable else {
            return Ok(Pace::Again);
        };
        let (name, host) = self.peer(session, of)?;
        let there = host.act(&self.place, &Op::Look, 0).await;
        let mut entries = there.map_err(|e| Error::Peer(name, e))?.local.entries;
        entries.retain(|entry| entry.uid <= stable.uid);
        self.settled.clear();
        self.source = Some(Source {
            node: of,
            rev: *rev,
            entries,
        });
        Ok(Pace::Again)
    }

    /// Syncs to settle a conflict, or to take a prefix, which has to wait where it changed nothing
    /// when it was done last. (A push is under way already.)
    async fn sync(
        &mut self,
        session: &Arc<Session>,
        view: &View<Text, Text>,
        peer: Node,
        force: bool,
        joining: bool,
    ) -> Result<Pace, Error> {
        if !joining && !is_loose(view, session.me.node) {
            return Ok(Pace::After(LOOK_AGAIN));
        }
        if joining && let Some(rest) = self.rests(peer, view) {
            return Ok(Pace::After(rest));
        }
        if joining && let Some(stable) = &view.etcd.stable {
            let bound = stable.value.bound(session.window);
            self.lift_bound(&view.local, bound).await?;
        }
        self.began(peer, view);
        self.start(session, peer, force, true, false);
        Ok(Pace::After(LOOK_AGAIN))
    }

    /// What a joining node takes in is numbered by the holders, by the bound of today's record.
    async fn lift_bound(&mut self, local: &Local<Text, Text>, bound: Uid) -> Result<(), Error> {
        if local.bound == 0 || local.bound >= bound {
            return Ok(());
        }
        let op = Op::Expose {
            uid: local.shown,
            limit: local.limit,
            bound,
        };
        self.act(&op).await?;
        Ok(())
    }
}

/// The record, if we are among its holders.
fn holding<'a>(etcd: &'a Snapshot<Text, Text>, session: &Session) -> Option<&'a Stable> {
    let stable = &etcd.stable.as_ref()?.value;
    stable
        .held_by(session.me.node, session.me.incarnation)
        .then_some(stable)
}

/// What we published firmly and have no more is gone: it cannot have got another UID.
fn remember_expunges(local: &mut Local<Text, Text>, etcd: &Snapshot<Text, Text>, me: Node) {
    let Some(tail) = etcd.tails.get(&me).filter(|tail| tail.value.firm) else {
        return;
    };
    let here: BTreeSet<Uid> = local.entries.iter().map(|entry| entry.uid).collect();
    let stable = etcd.stable.as_ref().map_or(0, |at| at.value.uid);
    let gone = tail.value.above(stable).iter();
    let gone = gone.filter(|entry| !here.contains(&entry.uid) && entry.uid < local.next);
    let gone: Vec<Entry<Text, Text>> = gone
        .map(|entry| Entry {
            expunged: true,
            ..entry.clone()
        })
        .collect();
    if !gone.is_empty() {
        local.entries.extend(gone);
        local.entries.sort_by_key(|entry| entry.uid);
    }
}

/// Whether a node's tail is withdrawn.
fn is_loose(view: &View<Text, Text>, node: Node) -> bool {
    let tail = view.etcd.tails.get(&node);
    tail.is_some_and(|tail| !tail.value.firm)
}

/// Whether this is a sync that only carries over what a peer lacks: nothing has to change its UID.
fn is_push(step: &Step<Text, Text>, view: &View<Text, Text>, me: Node) -> bool {
    matches!(step, Step::Sync { joining: false, .. }) && !is_loose(view, me)
}

/// To whom the core would push once our tail is published, and whether it would compare
/// everything.
fn pushes(replica: &Replica, config: &Config, view: &View<Text, Text>) -> Vec<(Node, bool)> {
    /// No peer's tail has this revision.
    const IMAGINED: Rev = Rev(u64::MAX);
    let (mut replica, mut view) = (replica.clone(), view.clone());
    let mut found = Vec::new();
    // A promise, a publication, and each peer once.
    for _ in 0..2 + view.etcd.alive.len() {
        match replica.next(config, &view) {
            Step::Promise { end } => view.local.promised = end,
            Step::Txn(txn) if txn.kind == Kind::Publish => {
                let Some(Put::Tail(_, value)) = txn.then.into_iter().next() else {
                    break;
                };
                replica.txn_done(Some(IMAGINED));
                let rev = IMAGINED;
                view.etcd.tails.insert(config.me, At { rev, value });
            }
            Step::Sync {
                peer,
                force,
                joining: false,
            } => {
                let Some(mine) = view.etcd.tails.get(&config.me) else {
                    break;
                };
                // As if it had all and were busy: the next one is looked for.
                let value = Tail {
                    firm: false,
                    ..mine.value.clone()
                };
                let rev = IMAGINED;
                view.etcd.tails.insert(peer, At { rev, value });
                found.push((peer, force));
            }
            _ => break,
        }
    }
    found
}

/// What a push to this peer rests on: what we have, and what it said.
fn fingerprint(peer: Node, view: &View<Text, Text>) -> u64 {
    let mut hasher = DefaultHasher::new();
    let theirs = view.etcd.tails.get(&peer).map(|tail| tail.rev);
    let stable = view.etcd.stable.as_ref().map(|at| at.rev);
    (theirs, stable, &view.local.entries, view.local.next).hash(&mut hasher);
    hasher.finish()
}

impl Fresh {
    fn new(above: Uid, look: Look) -> Fresh {
        let at = Instant::now();
        Fresh { above, look, at }
    }
}

impl<S: Site> Drop for Task<S> {
    /// However it ends: the mailbox's next event starts another one.
    fn drop(&mut self) {
        self.report(0);
        self.set_busy(false);
        self.shared.vacate(&self.place.mailbox, &self.wake);
    }
}

/// The pause after so many failures.
fn backoff(failures: u32) -> Duration {
    let factor = 1u32 << failures.min(8);
    (PAUSES.0 * factor).min(PAUSES.1)
}
