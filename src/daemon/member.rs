//! This node's membership: registered, alive under its lease, and hearing what the others write.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::Metrics;
use super::config::{Config, WINDOW};
use super::engine::Error;
use super::pulse::{BEATS, Pulse};
use crate::cluster::{Node, Rev};
use crate::etcd::{self, Lease, Mailbox, Members, Registration, Store};

/// First pause before etcd is tried again, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// How long after its lease a dead node's claim may still be seen: etcd looks every half second.
const GRACE: Duration = Duration::from_secs(2);
/// How much earlier than the next one each endpoint of etcd is tried.
const HEAD_START: Duration = Duration::from_millis(300);
/// How often it is looked whether a node fell silent.
const LISTEN: Duration = Duration::from_millis(100);
/// Time limit of taking it out; then it is looked again.
const ENDING: Duration = Duration::from_secs(1);
/// Bytes of a disk's identity.
const DISK_ID_BYTES: usize = 16;

/// A membership that is in force: the lease is alive as far as we know.
#[derive(Clone)]
pub struct Session {
    /// The cluster's records.
    pub store: Store,
    /// Who we are.
    pub me: Registration,
    /// Who is there.
    pub members: Members,
    /// How many unstable messages of one mailbox every node numbers by itself.
    pub window: u32,
}

impl Session {
    /// All other nodes that ever were registered.
    pub fn peers(&self) -> impl Iterator<Item = Node> + '_ {
        let others = self.members.names.keys().copied();
        others.filter(|node| *node != self.me.node)
    }

    /// The other nodes that are alive.
    pub fn alive(&self) -> impl Iterator<Item = Node> + '_ {
        self.peers()
            .filter(|node| self.members.alive.contains_key(node))
    }

    /// A node's name; empty if it is not known.
    #[must_use]
    pub fn name(&self, node: Node) -> String {
        self.members.names.get(&node).cloned().unwrap_or_default()
    }
}

/// The membership, or `None` while the node is cut off.
pub type Membership = watch::Receiver<Option<Arc<Session>>>;

/// What a member hears of the others.
#[derive(Debug)]
pub enum News {
    /// A mailbox's records changed.
    Mailbox(Mailbox, Rev),
    /// Nodes came or went.
    Members,
    /// Changes may have been missed: look at everything.
    Missed,
}

/// What a member does its work with.
pub struct Member {
    /// The configuration: each membership begins with the one that is then in force.
    pub config: watch::Receiver<Arc<Config>>,
    /// Where the membership is told.
    pub session: watch::Sender<Option<Arc<Session>>>,
    /// Where changes are told.
    pub news: mpsc::Sender<News>,
    /// Counters.
    pub metrics: Arc<Metrics>,
}

/// Why a membership ended.
enum End {
    /// We were asked to stop, and left.
    Stopped,
    /// The lease ended, or somebody ended it.
    Lost,
}

impl Member {
    /// Is a member, again and again, until told to stop.
    ///
    /// # Errors
    /// When the cluster refuses the node; when etcd cannot be reached it tries again.
    pub async fn run(self, mut stop: watch::Receiver<bool>) -> Result<(), Error> {
        let disk = disk_id(&self.config.borrow().state_dir)?;
        let mut pause = PAUSES.0;
        let mut taken_since = None;
        let mut pulse = Pulse::default();
        loop {
            let config = self.config.borrow().clone();
            let ended = self.live(&config, &disk, &mut pulse, &mut stop).await;
            self.session.send_replace(None);
            self.metrics.member.set(0);
            match ended {
                Ok(End::Stopped) => return Ok(()),
                Ok(End::Lost) => {
                    tracing::warn!("membership lost: nothing new is shown until it is back");
                    pause = PAUSES.0;
                }
                Err(error) if is_fatal(&error, &mut taken_since) => return Err(error),
                Err(error) => {
                    self.metrics.etcd_failures.inc();
                    tracing::warn!(%error, "not in the cluster; trying again");
                    pause = (pause * 2).min(PAUSES.1);
                }
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                _ = stop.wait_for(|stop| *stop) => return Ok(()),
            }
        }
    }

    /// One membership, from its begin to its end.
    async fn live(
        &self,
        config: &Config,
        disk: &str,
        pulse: &mut Pulse,
        stop: &mut watch::Receiver<bool>,
    ) -> Result<End, Error> {
        let mut store = nearest(&config.store()?).await?;
        let me = store
            .register(&config.node, &config.namespace, disk)
            .await?;
        let window = store.agree_on_window(config.window, WINDOW).await?;
        let mut lease = store.enter(&me, &place(), config.lease_seconds()).await?;
        let members = store.members().await?;
        let from = members.rev;
        let own = (me.node, me.incarnation);
        pulse.begin(own, config.lease, &members.alive);
        tracing::info!(
            node = me.node.0,
            incarnation = me.incarnation.0,
            "in the cluster"
        );
        self.metrics.member.set(1);
        let session = Session {
            store: store.clone(),
            me: me.clone(),
            members,
            window,
        };
        self.tell(session.clone());
        // A receiver that is gone is an engine that stops.
        let _ = self.news.send(News::Missed).await;
        let ended = tokio::select! {
            lost = self.keep(&session, &mut lease, config.lease) => lost,
            lost = self.follow(session.clone(), from, pulse) => lost,
            _ = stop.wait_for(|stop| *stop) => Ok(End::Stopped),
        };
        if !matches!(ended, Ok(End::Lost)) {
            // Failing that, the lease ends by itself.
            let leaving = store.leave(lease);
            let _ = tokio::time::timeout(config.etcd.timeout, leaving).await;
        }
        Ok(ended?)
    }

    fn tell(&self, session: Session) {
        let alive = i64::try_from(session.members.alive.len());
        self.metrics.alive.set(alive.unwrap_or(i64::MAX));
        self.session.send_replace(Some(Arc::new(session)));
    }

    /// Keeps the lease, which lasts so long, until it is lost, and tells the others each time.
    async fn keep(
        &self,
        session: &Session,
        lease: &mut Lease,
        lasts: Duration,
    ) -> Result<End, etcd::Error> {
        let mut store = session.store.clone();
        let third = lasts / BEATS;
        let mut kept = Instant::now();
        loop {
            let next = tokio::time::Instant::now() + third;
            match tokio::time::timeout(third / 2, lease.keep()).await {
                Ok(Ok(true)) => {
                    kept = Instant::now();
                    // A beat that does not get through is made up for by the next one.
                    let beat = tokio::time::timeout(third, store.beat(&session.me)).await;
                    if !matches!(beat, Ok(Ok(()))) {
                        self.metrics.etcd_failures.inc();
                        tracing::debug!(?beat, "telling the others that we are alive");
                    }
                    tokio::time::sleep_until(next).await;
                    continue;
                }
                Ok(Ok(false)) => return Ok(End::Lost),
                Ok(Err(error)) => tracing::debug!(%error, "keeping the lease"),
                Err(_) => tracing::debug!("keeping the lease: no answer"),
            }
            self.metrics.etcd_failures.inc();
            // Who is silent may be electing a leader, and answer soon. Who refuses, or is silent for
            // long, is left while another endpoint may still answer before the lease ends.
            tokio::time::sleep(PAUSES.0).await;
            let reopened = tokio::time::timeout(third / 2, store.reopen(lease)).await;
            if matches!(reopened, Ok(Err(_))) || kept.elapsed() >= lasts - third {
                return Ok(End::Lost);
            }
        }
    }

    /// Hears of changes until our own liveness is gone.
    async fn follow(
        &self,
        mut session: Session,
        from: Rev,
        pulse: &mut Pulse,
    ) -> Result<End, etcd::Error> {
        let mut seen = from;
        let mut store = session.store.clone();
        loop {
            let mut watch = match store.watch(seen).await {
                Ok(watch) => watch,
                Err(error) => {
                    tracing::debug!(%error, "watching");
                    tokio::time::sleep(PAUSES.0).await;
                    continue;
                }
            };
            loop {
                let heard = tokio::time::timeout(LISTEN, watch.message()).await;
                self.end_the_silent(&mut store, pulse).await;
                let message = match heard {
                    Err(_) => continue,
                    Ok(Ok(Some(message))) => message,
                    Ok(_) => break,
                };
                if message.canceled() {
                    if message.compact_revision() > 0 {
                        // What happened until then nobody can tell any more.
                        seen = store.members().await?.rev;
                        let _ = self.news.send(News::Missed).await;
                    }
                    break;
                }
                let news = Heard {
                    seen: &mut seen,
                    pulse: &mut *pulse,
                };
                if let Some(end) = self.hear(&mut session, &message, news).await? {
                    return Ok(end);
                }
            }
            tokio::time::sleep(PAUSES.0).await;
        }
    }

    /// Passes on what a message of the watch tells.
    async fn hear(
        &self,
        session: &mut Session,
        message: &etcd_client::WatchResponse,
        news: Heard<'_>,
    ) -> Result<Option<End>, etcd::Error> {
        let mut members_changed = false;
        for event in message.events() {
            let Some(kv) = event.kv() else { continue };
            let rev = Rev(u64::try_from(kv.mod_revision()).unwrap_or(0));
            *news.seen = rev.max(*news.seen);
            session.store.saw(rev);
            if let Some((mailbox, _)) = session.store.keys().parse(kv.key()) {
                let _ = self.news.send(News::Mailbox(mailbox, rev)).await;
                continue;
            }
            let beats = match session.store.keys().parse_alive(kv.key()) {
                Some(who) if event.event_type() == etcd_client::EventType::Put => {
                    news.pulse.heard(who, kv.lease(), rev, Instant::now())
                }
                Some(who) => {
                    news.pulse.gone(who);
                    false
                }
                None => false,
            };
            members_changed |= !beats;
        }
        if !members_changed {
            return Ok(None);
        }
        let me = &session.me;
        let members = session.store.members().await?;
        if members.alive.get(&me.node) != Some(&me.incarnation) {
            return Ok(Some(End::Lost));
        }
        session.members = members;
        self.tell(session.clone());
        let _ = self.news.send(News::Members).await;
        Ok(None)
    }

    /// Takes out nodes that fell silent. What fails is tried again at the next look.
    async fn end_the_silent(&self, store: &mut Store, pulse: &Pulse) {
        for (who, heard) in pulse.silent(Instant::now()) {
            let ending = store.end(who, heard);
            match tokio::time::timeout(ENDING, ending).await {
                Ok(Ok(true)) => tracing::warn!(
                    node = who.0.0,
                    "fell silent: it is no member any more, the others go on without it"
                ),
                // Somebody else was faster; the watch will tell.
                Ok(Ok(false)) => {}
                failed => tracing::debug!(?failed, "taking out a silent node"),
            }
        }
    }
}

/// Where it is noted what a message tells.
struct Heard<'a> {
    /// The highest revision.
    seen: &'a mut Rev,
    pulse: &'a mut Pulse,
}

/// The first endpoint that answers for the whole of etcd. (A client of several would send its
/// requests to all of them in turn, those that are down included.) The first of the list is
/// this node's own, mostly: each gets a start before the next.
async fn nearest(settings: &etcd::Settings) -> Result<Store, Error> {
    let mut tries = JoinSet::new();
    let mut limit = settings.timeout;
    for (start, endpoint) in (0..).zip(&settings.endpoints) {
        let one = etcd::Settings {
            endpoints: vec![endpoint.clone()],
            ..settings.clone()
        };
        limit = settings.timeout + HEAD_START * start;
        tries.spawn(async move {
            tokio::time::sleep(HEAD_START * start).await;
            let mut store = Store::connect(&one).await?;
            store.members().await?;
            Ok::<_, etcd::Error>(store)
        });
    }
    let mut failed = None;
    let first = async {
        while let Some(tried) = tries.join_next().await {
            match tried {
                Ok(Ok(store)) => return Some(store),
                Ok(Err(error)) => failed = Some(error),
                Err(_) => {}
            }
        }
        None
    };
    if let Ok(Some(store)) = tokio::time::timeout(limit, first).await {
        return Ok(store);
    }
    Err(match failed {
        Some(error) => error.into(),
        None => Error::Silent(settings.endpoints.join(", ")),
    })
}

/// Whether trying again is of no use. A name is taken by somebody who is alive only when it still
/// is after his lease: until then he may be our own predecessor on another disk.
fn is_fatal(error: &Error, taken_since: &mut Option<Instant>) -> bool {
    if let Error::Etcd(etcd::Error::NameTaken { seconds, .. }) = error {
        let lease = Duration::from_secs(u64::try_from(*seconds).unwrap_or(0));
        return taken_since.get_or_insert_with(Instant::now).elapsed() > lease + GRACE;
    }
    if !matches!(error, Error::Silent(_)) {
        *taken_since = None;
    }
    match error {
        Error::State { .. } => true,
        Error::Etcd(error) => error.is_final(),
        _ => false,
    }
}

/// Which running system this is: not the same after the next boot, nor on a copy of the disk.
fn place() -> String {
    let read = |what| std::fs::read_to_string(what).unwrap_or_default();
    let [boot, host] = ["random/boot_id", "hostname"]
        .map(|name| read(format!("/proc/sys/kernel/{name}")).trim().to_owned());
    format!("{host} {boot}")
}

/// What identifies the disk: made once, lost with it.
fn disk_id(state_dir: &Path) -> Result<String, Error> {
    let path = state_dir.join("disk");
    let failed = |why| Error::State {
        path: path.display().to_string(),
        why,
    };
    match std::fs::read_to_string(&path) {
        Ok(id) if !id.trim().is_empty() => return Ok(id.trim().to_owned()),
        Err(why) if why.kind() != std::io::ErrorKind::NotFound => return Err(failed(why)),
        _ => {}
    }
    let id = random_id().map_err(failed)?;
    write_durably(&path, &format!("{id}\n")).map_err(failed)?;
    Ok(id)
}

fn random_id() -> std::io::Result<String> {
    use std::io::Read;
    let mut bytes = [0u8; DISK_ID_BYTES];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Replaces a file so that after a power loss it is the old or the new one.
pub(super) fn write_durably(path: &Path, text: &str) -> std::io::Result<()> {
    use std::io::Write;
    let dir = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(dir)?;
    let mut new = PathBuf::from(path);
    new.set_extension("new");
    let mut file = std::fs::File::create(&new)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&new, path)?;
    std::fs::File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_keeps_its_identity() {
        let dir = tempfile::tempdir().expect("a folder");
        let first = disk_id(dir.path()).expect("an identity");
        assert_eq!(first.len(), 2 * DISK_ID_BYTES);
        assert_eq!(disk_id(dir.path()).expect("the same"), first);
        let other = tempfile::tempdir().expect("another");
        assert_ne!(disk_id(other.path()).expect("another"), first);
    }

    #[test]
    fn a_state_folder_that_cannot_be_written_is_named() {
        let error = disk_id(Path::new("/proc/nowhere")).expect_err("not writable");
        assert!(error.to_string().contains("/proc/nowhere"), "{error}");
    }
}
