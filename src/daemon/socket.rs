//! The event socket: where the plug-in, in every process of the host, tells of commits and asks.
//!
//! Anybody on this machine can connect. So a process is believed only what it says about mail that
//! it owns: its uid, as the kernel tells it, must be the owner's, or root's, or the daemon's own.
//! A message is one line of fields with tabs between them:
//!
//! ```text
//! C user mailbox name kind       something changed (see Change); no reply
//! X user mailbox name guid...    reply: X found-or-"-"..., or E text
//! A, R                           the same, asked otherwise (see Asking)
//! S                              reply: S in, or S cut
//! ```
//!
//! What is found of a GUID is `uid:xid`, separated by commas: the UIDs at which nodes have the
//! message, 0 where it has none just now, with its XID; copies that share a GUID have XIDs of
//! their own.
//!
//! Each connection is a task with at most one message under way, so that a slow, silent or flooding
//! peer has its own share and no other's. All that a peer can fill is the kernel's buffer.

mod line;
mod owners;
mod seqpacket;
mod strangers;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::timeout;

use super::{Event, Metrics, XidsAnswer};
use line::Message;
use owners::{Known, Verdict};
use seqpacket::{Connection, Listener, Received};
use strangers::Crowd;

pub use owners::{Owners, UidAnswer};

/// Longest message and longest reply, in bytes. Who has more to ask asks again.
pub const MESSAGE_BYTES: usize = 64 * 1024;
/// Connections at once: one for each process of the host that writes mail. Fewer where the
/// system grants fewer descriptors.
const CONNECTIONS: usize = 16_384;
/// How long a process that never spoke about its own mail may keep its connection; a test need not
/// wait so long.
const STRANGER_LIMIT: Duration = Duration::from_secs(if cfg!(test) { 2 } else { 10 });
/// How long a reply may wait for its reader.
const REPLY_LIMIT: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 5 });
/// How long the engine has for an answer. The plug-in itself gives up after 5 s.
const ANSWER_LIMIT: Duration = Duration::from_secs(6);
/// How often it is looked whether the socket's name still leads to it.
const NAME_CHECK: Duration = Duration::from_secs(2);
/// Pause after accept failed: for want of descriptors, say, which others may give back.
const PAUSE: Duration = Duration::from_millis(100);

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another process serves it.
    #[error("{}: another xidd serves it: stop that one, or give this one a socket of its own", path.display())]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// Something else has its name.
    #[error("{}: something that is no socket has this name: move it away", path.display())]
    NoSocket {
        /// The path.
        path: PathBuf,
    },
    /// It cannot be made.
    #[error("{}: the socket cannot be made ({source}): see that the folder exists and that xidd may write there", path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A bound socket.
pub struct Socket {
    path: PathBuf,
    listener: Listener,
    /// The service manager made it, and will again.
    inherited: bool,
}

/// What every connection needs.
struct Shared<O> {
    events: mpsc::Sender<Event>,
    metrics: Arc<Metrics>,
    known: Known<O>,
    crowd: Crowd,
}

impl Socket {
    /// Binds it. A socket that nobody serves any more is replaced, a live one is not.
    ///
    /// # Errors
    /// When somebody serves it, or it cannot be made.
    pub fn bind(path: &Path) -> Result<Socket, Error> {
        Ok(Socket {
            path: path.to_owned(),
            listener: Listener::bind(path)?,
            inherited: false,
        })
    }

    /// Takes over the socket that the service manager made; `path` is its name in messages.
    ///
    /// # Errors
    /// When it is none of the right kind.
    pub fn inherit(fd: std::os::fd::OwnedFd, path: &Path) -> Result<Socket, Error> {
        let path = path.to_owned();
        match Listener::inherit(fd) {
            Ok(listener) => Ok(Socket {
                path,
                listener,
                inherited: true,
            }),
            Err(source) => Err(Error::Io { path, source }),
        }
    }

    /// Serves it until whoever reads `events` is gone.
    pub async fn serve<O: Owners>(
        mut self,
        owners: O,
        events: mpsc::Sender<Event>,
        metrics: Arc<Metrics>,
    ) {
        let shared = Arc::new(Shared {
            events,
            metrics,
            known: Known::new(owners),
            crowd: Crowd::default(),
        });
        let most = CONNECTIONS.min(seqpacket::descriptors() / 2);
        let places = Arc::new(Semaphore::new(most));
        loop {
            let place = tokio::select! {
                place = Arc::clone(&places).acquire_owned() => place,
                () = shared.events.closed() => return,
            };
            let connection = tokio::select! {
                connection = self.accept() => connection,
                () = shared.events.closed() => return,
            };
            let shared = Arc::clone(&shared);
            tokio::spawn(async move {
                shared.metrics.connections.inc();
                admit(&connection, &shared, most).await;
                shared.metrics.connections.dec();
                drop(place);
            });
        }
    }

    /// The next connection. Whoever removed our name, Dovecot's folder being made anew for
    /// example, does not remove us.
    async fn accept(&mut self) -> Connection {
        loop {
            match timeout(NAME_CHECK, self.listener.accept()).await {
                Ok(Ok(connection)) => return connection,
                Ok(Err(error)) => {
                    tracing::error!("{}: cannot accept: {error}", self.path.display());
                    tokio::time::sleep(PAUSE).await;
                }
                Err(_) => self.keep_name(),
            }
        }
    }

    fn keep_name(&mut self) {
        if self.inherited || self.listener.is_at(&self.path) {
            return;
        }
        match Listener::bind(&self.path) {
            Ok(listener) => {
                tracing::warn!("{}: was removed; made anew", self.path.display());
                self.listener = listener;
            }
            Err(error) => tracing::error!("{error}"),
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if !self.inherited && self.listener.is_at(&self.path) {
            // The next xidd replaces it anyway.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Serves a connection if its uid has not too many.
async fn admit<O: Owners>(connection: &Connection, shared: &Shared<O>, most: usize) {
    let uid = connection.uid();
    let known = shared.known.is_trusted(uid);
    match shared.crowd.enter(uid, known, most) {
        Some(_place) => converse(connection, shared).await,
        None => shared.metrics.refused("too_many"),
    }
}

/// Reads and answers until the peer is gone, or not worth listening to.
async fn converse<O: Owners>(connection: &Connection, shared: &Shared<O>) {
    loop {
        let bytes = match receive(connection, shared).await {
            Some(Received::Message(bytes)) => bytes,
            Some(Received::TooLong) => return shared.metrics.refused("too_long"),
            Some(Received::End) | None => return,
        };
        let Some(message) = line::parse(&bytes) else {
            return shared.metrics.refused("not_understood");
        };
        if let Some(reply) = attend(message, connection, shared).await {
            let sent = timeout(REPLY_LIMIT, connection.send(reply.as_bytes())).await;
            if !matches!(sent, Ok(Ok(()))) {
                return shared.metrics.refused("does_not_read");
            }
        }
        if shared.events.is_closed() {
            return;
        }
    }
}

/// The next message; `None`: the peer is gone, or a stranger said nothing for too long.
async fn receive<O: Owners>(connection: &Connection, shared: &Shared<O>) -> Option<Received> {
    loop {
        if let Ok(received) = timeout(STRANGER_LIMIT, connection.receive()).await {
            return received.ok();
        }
        if !shared.known.is_trusted(connection.uid()) {
            shared.metrics.refused("stranger");
            return None;
        }
    }
}

/// Checks who speaks and hands the message on. The reply, where there is one.
async fn attend<O: Owners>(
    message: Message,
    connection: &Connection,
    shared: &Shared<O>,
) -> Option<String> {
    if let Some(user) = message.user() {
        let verdict = shared.known.check(user, connection.uid()).await;
        if let Some(why) = objection(&verdict, user, connection, shared) {
            return message.wants_reply().then(|| line::error(&why));
        }
    }
    match message {
        Message::Changed {
            user,
            mailbox,
            name,
            kind,
        } => {
            let event = Event::Changed {
                user,
                mailbox,
                name,
                kind,
            };
            // Waits while the engine is busy; a closed engine ends the conversation.
            let _ = shared.events.send(event).await;
            None
        }
        Message::Xids {
            user,
            mailbox,
            name,
            guids,
            asking,
        } => {
            let wanted = guids.len();
            let answer = ask(shared, |reply| Event::Xids {
                user,
                mailbox,
                name,
                guids,
                asking,
                reply,
            });
            let answer: Result<XidsAnswer, String> = answer.await;
            Some(line::xids(answer.and_then(|xids| xids), wanted))
        }
        Message::Status => {
            let incarnation = ask(shared, |reply| Event::Status { reply }).await;
            Some(line::status(incarnation.ok().flatten()))
        }
    }
}

/// Why a message is not taken.
fn objection<O: Owners>(
    verdict: &Verdict,
    user: &str,
    connection: &Connection,
    shared: &Shared<O>,
) -> Option<String> {
    let (uid, pid) = (connection.uid(), connection.pid());
    match verdict {
        Verdict::Owner => None,
        Verdict::Stranger => {
            shared.metrics.refused("uid");
            if shared.crowd.may_be_logged() {
                tracing::warn!(
                    "{user}: process {pid} of uid {uid} is not the mail's owner: not heard"
                );
            }
            Some(format!("uid {uid} does not own the mail of {user}"))
        }
        Verdict::Unknown(why) => {
            shared.metrics.refused("owner_unknown");
            if shared.crowd.may_be_logged() {
                tracing::warn!(
                    "{user}: cannot learn who owns the mail ({why}): process {pid} not heard"
                );
            }
            Some(format!("the owner of {user}'s mail is not known: {why}"))
        }
    }
}

/// Asks the engine.
async fn ask<O: Owners, T>(
    shared: &Shared<O>,
    event: impl FnOnce(oneshot::Sender<T>) -> Event,
) -> Result<T, String> {
    let (reply, answer) = oneshot::channel();
    let exchange = async {
        shared.events.send(event(reply)).await.ok()?;
        answer.await.ok()
    };
    match timeout(ANSWER_LIMIT, exchange).await {
        Ok(Some(answer)) => Ok(answer),
        Ok(None) => Err("xidd is stopping".into()),
        Err(_) => Err("no answer in time".into()),
    }
}

#[cfg(test)]
mod tests;
