//! The daemon's heart: members, mailboxes, and the events that wake them.

use std::sync::Arc;

use tokio::sync::{mpsc, watch};

use super::{Config, Event, Metrics};

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
}

/// Runs until `stop` becomes true, or `events` end. A changed `config` takes effect at once,
/// except for the node's identity, which needs a restart.
///
/// # Errors
/// When the node cannot be a member of the cluster as configured. An etcd that is not reachable
/// is no error: the engine goes on trying, and shows no new UID meanwhile.
pub async fn run(
    config: watch::Receiver<Arc<Config>>,
    mut events: mpsc::Receiver<Event>,
    metrics: Arc<Metrics>,
    mut stop: watch::Receiver<bool>,
) -> Result<(), Error> {
    tracing::info!(node = config.borrow().node, "engine started");
    loop {
        tokio::select! {
            event = events.recv() => match event {
                Some(event) => cut(event, &metrics),
                None => return Ok(()),
            },
            ended = stop.wait_for(|stop| *stop) => return ended.map_or(Ok(()), |_| Ok(())),
        }
    }
}

/// The answers of a node that is not in the cluster.
fn cut(event: Event, metrics: &Metrics) {
    metrics.events.inc();
    // Whoever asked may have gone away meanwhile.
    match event {
        Event::Changed { .. } => {}
        Event::Xids { reply, .. } => {
            let _ = reply.send(Err("this node is not in the cluster".into()));
        }
        Event::Status { reply } => {
            let _ = reply.send(false);
        }
    }
}
