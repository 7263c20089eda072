//! The daemon's life: what is started, what is waited for, how it ends.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use imap_xid::daemon::metrics::{self, Server};
use imap_xid::daemon::{Config, Metrics, engine, socket};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};

use crate::{limits, manager, owners, reload};

/// Events that wait for the engine. Beyond it the plug-ins' messages stay in the kernel.
const EVENTS: usize = 1024;
/// How long the start waits for the cluster before it calls itself started: so that `systemctl
/// start` fails where the cluster refuses the node. An etcd that is not there is no failure.
const START_LIMIT: Duration = Duration::from_secs(3);
/// How long the engine may take to put everything down.
const STOP_LIMIT: Duration = Duration::from_secs(20);
/// How often the state is told where no watchdog asks for it.
const STATUS: Duration = Duration::from_secs(10);
/// How often a taken metrics address is tried again.
const METRICS_RETRY: Duration = Duration::from_secs(10);

/// Why the daemon ended, or did not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The runtime, or signals.
    #[error("the system refuses what every daemon needs: {0}")]
    System(#[from] std::io::Error),
    /// The event socket.
    #[error(transparent)]
    Socket(#[from] socket::Error),
    /// The engine.
    #[error(transparent)]
    Engine(#[from] engine::Error),
    /// The engine ended by itself, or panicked.
    #[error("the engine ended ({0}): please report this with the lines before")]
    Ended(String),
    /// It did not stop in time.
    #[error("did not stop within {STOP_LIMIT:?}: ended as it is, which loses nothing")]
    Slow,
}

impl Error {
    /// Whether starting again is of no use until somebody changed something.
    pub fn is_final(&self) -> bool {
        use imap_xid::etcd::Error as Etcd;
        match self {
            // A name that is free after the other's lease was waited for.
            Error::Engine(engine::Error::Etcd(Etcd::NameTaken { .. })) => true,
            Error::Engine(engine::Error::Etcd(error)) => error.is_final(),
            _ => false,
        }
    }
}

/// Runs the daemon until it is told to stop.
///
/// # Errors
/// When it cannot start, or has to end.
pub fn run(file: PathBuf, config: Config) -> Result<(), Error> {
    limits::raise();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let ended = runtime.block_on(live(&file, config));
    // A name lookup that hangs in a thread must not keep the process.
    runtime.shutdown_background();
    ended
}

async fn live(file: &Path, config: Config) -> Result<(), Error> {
    let mut signals = Signals::new()?;
    let socket = match manager::socket()? {
        Some(fd) => socket::Socket::inherit(fd, &config.socket)?,
        None => socket::Socket::bind(&config.socket)?,
    };
    let metrics = Arc::new(Metrics::default());
    let (events, heard) = mpsc::channel(EVENTS);
    let (stop, stopped) = watch::channel(false);
    let address = config.metrics;
    let node = config.node.clone();
    let (running, seen) = watch::channel(Arc::new(config));
    let owners = owners::Doveadm::new(seen.clone());
    let version = env!("CARGO_PKG_VERSION");
    tracing::info!("xidd {version} of node {node} starts");
    let mut engine = tokio::spawn(engine::run(seen, heard, Arc::clone(&metrics), stopped));
    let listening = tokio::spawn(socket.serve(owners, events, Arc::clone(&metrics)));
    let telling = address.map(|address| {
        let registry = metrics.registry(&node);
        tokio::spawn(async move { metrics::serve(bind(address).await, registry).await })
    });
    let ended = watch_over(file, &mut engine, &mut signals, &running, &metrics).await;
    let ended = match ended {
        Some(error) => Err(error),
        None => put_down(&mut engine, &mut signals, &stop).await,
    };
    listening.abort();
    // Its end removes the socket's name.
    let _ = listening.await;
    if let Some(telling) = telling {
        telling.abort();
    }
    ended
}

type Engine = JoinHandle<Result<(), engine::Error>>;

/// The signals that mean something.
struct Signals {
    hangup: Signal,
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Signals> {
        Ok(Signals {
            hangup: signal(SignalKind::hangup())?,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn stop(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Until a signal says stop, or the engine ends, which is an error.
async fn watch_over(
    file: &Path,
    engine: &mut Engine,
    signals: &mut Signals,
    running: &watch::Sender<Arc<Config>>,
    metrics: &Metrics,
) -> Option<Error> {
    let mut life = interval(manager::watchdog().unwrap_or(STATUS));
    life.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let started = Instant::now();
    let mut ready = false;
    loop {
        if !ready && (metrics.member.get() == 1 || started.elapsed() >= START_LIMIT) {
            ready = true;
            manager::tell_ready();
            manager::tell_alive(metrics);
        }
        // Short steps until the start is over.
        let look = sleep(if ready { STATUS } else { START_LIMIT / 100 });
        tokio::select! {
            ended = &mut *engine => return Some(why(ended)),
            _ = life.tick() => manager::tell_alive(metrics),
            () = look => {}
            _ = signals.hangup.recv() => {
                manager::tell_reloading();
                reload::reload(file, running);
                manager::tell_ready();
            }
            _ = signals.terminate.recv() => return None,
            _ = signals.interrupt.recv() => return None,
        }
    }
}

/// Has the engine put everything down. A second signal means: at once.
async fn put_down(
    engine: &mut Engine,
    signals: &mut Signals,
    stop: &watch::Sender<bool>,
) -> Result<(), Error> {
    tracing::info!("stopping");
    manager::tell_stopping(STOP_LIMIT);
    stop.send_replace(true);
    let waiting = timeout(STOP_LIMIT, &mut *engine);
    let ended = tokio::select! {
        ended = waiting => ended,
        () = signals.stop() => {
            tracing::warn!("told to stop again: ended as it is, which loses nothing");
            engine.abort();
            return Ok(());
        }
    };
    match ended {
        Ok(Ok(Ok(()))) => {
            tracing::info!("stopped");
            Ok(())
        }
        Ok(ended) => Err(why(ended)),
        Err(_) => {
            engine.abort();
            Err(Error::Slow)
        }
    }
}

/// What an engine that ended by itself means.
fn why(ended: Result<Result<(), engine::Error>, tokio::task::JoinError>) -> Error {
    match ended {
        Ok(Err(error)) => error.into(),
        Ok(Ok(())) => Error::Ended("nobody told it to".into()),
        Err(panic) => Error::Ended(panic.to_string()),
    }
}

/// Takes the metrics' address. That somebody else has it is no reason not to move mail on.
async fn bind(address: std::net::SocketAddr) -> Server {
    let mut said = false;
    loop {
        match Server::bind(address).await {
            Ok(server) => return server,
            Err(error) if !said => {
                tracing::error!("metrics: {address}: {error}: tried again until it is free");
                said = true;
            }
            Err(_) => {}
        }
        sleep(METRICS_RETRY).await;
    }
}
