//! What the service manager is told, and asked. Without one nothing here does anything.

use std::ffi::OsStr;
use std::io::{self, ErrorKind};
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use imap_xid::daemon::Metrics;
use sd_notify::NotifyState;

use crate::service::Error;

/// How often something is told to a manager whose queue is full, and the pause between: a second
/// in all.
const TRIES: usize = 50;
const PAUSE: Duration = Duration::from_millis(20);

/// The daemon works.
pub fn tell_ready() {
    tell(&[NotifyState::Ready]);
}

/// The configuration is being read anew; [`tell_ready`] ends it.
pub fn tell_reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(_) => tell(&[NotifyState::Reloading]),
    }
}

/// The daemon is on its way out, and may take so long.
pub fn tell_stopping(limit: Duration) {
    let microseconds = u32::try_from(limit.as_micros()).unwrap_or(u32::MAX);
    tell(&[
        NotifyState::Stopping,
        NotifyState::ExtendTimeoutUsec(microseconds),
        NotifyState::Status("stopping"),
    ]);
}

/// The daemon ended with an error.
pub fn tell_end(error: &Error) {
    tell(&[NotifyState::Status(&error.to_string())]);
}

/// A sign of life, with the node's state in words.
pub fn tell_alive(metrics: &Metrics) {
    let state = state(metrics);
    tell(&[NotifyState::Watchdog, NotifyState::Status(&state)]);
}

/// The node's state in words.
fn state(metrics: &Metrics) -> String {
    let place = match metrics.member.get() {
        1 => format!("in the cluster, {} nodes alive", metrics.alive.get()),
        _ => "cut off from the cluster: no UID becomes stable here".to_owned(),
    };
    format!(
        "{place}; {} mailboxes active, {} UIDs pending",
        metrics.active.get(),
        metrics.pending.get()
    )
}

/// How often the manager wants a sign of life, if at all: twice as often as it says.
pub fn watchdog() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|limit| limit / 2)
}

/// The event socket, where the manager made it.
pub fn socket() -> io::Result<Option<OwnedFd>> {
    let Some(fd) = sd_notify::listen_fds()?.next() else {
        return Ok(None);
    };
    // SAFETY: the manager passed it to this process, and it is taken here only.
    Ok(Some(unsafe { OwnedFd::from_raw_fd(fd) }))
}

/// A sign of life that does not get through at once is followed by the next; all else is tried
/// again for a while. A manager that is stuck must not make the daemon stuck.
fn tell(what: &[NotifyState]) {
    let Some(address) = std::env::var_os("NOTIFY_SOCKET") else {
        return;
    };
    let lines: Vec<String> = what.iter().map(|line| format!("{line}\n")).collect();
    let tries = match what.first() {
        Some(NotifyState::Watchdog) => 1,
        _ => TRIES,
    };
    for _ in 0..tries {
        match send(&address, lines.concat().as_bytes()) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::sleep(PAUSE),
            Err(error) => {
                tracing::warn!("the service manager cannot be told anything ({error})");
                return;
            }
            Ok(()) => return,
        }
    }
}

/// Sends without waiting, which sd_notify::notify does not.
fn send(address: &OsStr, text: &[u8]) -> io::Result<()> {
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    let address = match address.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        path => SocketAddr::from_pathname(OsStr::from_bytes(path))?,
    };
    socket.send_to_addr(text, &address).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manager_that_does_not_listen_blocks_nothing() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("notify");
        let _deaf = UnixDatagram::bind(&path).expect("a socket");
        let full = (0..100_000).find_map(|_| send(path.as_os_str(), b"WATCHDOG=1\n").err());
        assert_eq!(full.map(|error| error.kind()), Some(ErrorKind::WouldBlock));
    }

    #[test]
    fn the_state_says_whether_the_node_is_in() {
        let metrics = Metrics::default();
        assert!(state(&metrics).starts_with("cut off"));
        metrics.member.set(1);
        metrics.alive.set(3);
        metrics.pending.set(7);
        let words = "in the cluster, 3 nodes alive; 0 mailboxes active, 7 UIDs pending";
        assert_eq!(state(&metrics), words);
    }
}
