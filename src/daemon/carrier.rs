//! What carries messages between nodes: the host's own replication.
//!
//! [`Carrier`] is all that the daemon knows of it; [`Dsync`] is Dovecot's. Another host's has to
//! - carry both ways what the other side lacks, and expunges and flags of what both have;
//! - give one UID to each message on both sides, in whatever way, as long as each commit passes the
//!   plug-in there, which refuses to change what must not change ([`Error::Interlock`]);
//! - keep GUIDs and XIDs;
//! - do no harm where it is cut short, by us or by a crash: the daemon gives up on syncs with nodes
//!   that are gone, and believes nothing of a sync that it has not looked at;
//! - allow several at a time, of different mailboxes and with different peers.
//!
//! It may ignore what its host has no use for: `lead` is for replication that locks on both sides,
//! `stable` for replication that remembers where it ended, and it may carry more than it is asked
//! for (all of a user in place of one mailbox).

use std::collections::HashMap;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, RwLock};

use super::doveadm::{self, Pool};
use super::host::Place;
use crate::cluster::Uid;
use crate::etcd::Mailbox;

/// Time limit of a sync that looks at everything: of a large mailbox it takes its time.
const LIMIT: Duration = Duration::from_secs(900);
/// The same of one that carries what is new. Replication waits without a limit for the other side's
/// first answer, which a network that was cut for a moment may have lost. One that is at work still
/// goes on to its end; the next one waits for its lock.
const PUSH_LIMIT: Duration = Duration::from_secs(180);
/// Replication gives up when the other side is silent for so many seconds.
const SILENCE_SECONDS: &str = "20";
/// Most replication states kept; without one a sync looks at the whole mailbox.
const MAX_STATES: usize = 20_000;
/// How the host calls our refusal to change what must not change.
const INTERLOCK: &str = "xid: interlock";

/// Why messages were not carried.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The plug-in refused to change a UID that must not change.
    #[error("refused by the interlock: {0}")]
    Interlock(String),
    /// Which mailboxes there are changed while it ran.
    #[error("mailboxes were made, renamed or deleted meanwhile")]
    Changed,
    /// Anything else.
    #[error("{0}")]
    Failed(String),
}

/// What to sync.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// One mailbox.
    Mailbox(Place),
    /// All of a user's mailboxes, with their messages.
    User(String),
    /// Which mailboxes the user has and is subscribed to; no messages.
    Tree(String),
}

impl What {
    /// How long it may take.
    fn limit(&self, force: bool) -> Duration {
        match self {
            What::Mailbox(_) if !force => PUSH_LIMIT,
            _ => LIMIT,
        }
    }

    fn user(&self) -> &str {
        match self {
            What::Mailbox(place) => &place.mailbox.user,
            What::User(user) | What::Tree(user) => user,
        }
    }
}

/// One sync to be done, both ways.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    /// What.
    pub what: What,
    /// The other node's name.
    pub peer: String,
    /// This node, not the peer, takes the lead. Of two nodes it is always the same one that
    /// leads: replication locks a mailbox first where it is led and then on the other side, so
    /// two syncs led from both sides would wait for each other.
    pub lead: bool,
    /// Compare everything.
    pub force: bool,
    /// Up to this UID messages are stable in that mailbox, 0 where it is not known.
    pub stable: Uid,
}

/// The host's replication.
pub trait Carrier: Send + Sync + 'static {
    /// Syncs. Success proves nothing: whoever needs to know looks.
    fn sync(&self, job: &Job) -> impl Future<Output = Result<(), Error>> + Send;
}

/// Where another node is.
pub struct Link {
    /// Its administration service.
    pub pool: Arc<Pool>,
    /// The same, as this node's replication finds it: host and port.
    pub there: String,
    /// This node's own, as the peer's replication finds it; `None`: at the address from which we
    /// reach the peer, at the peer's port.
    pub here: Option<String>,
}

/// Dovecot's replication, run by its administration service.
pub struct Dsync {
    local: RwLock<Arc<Pool>>,
    links: RwLock<HashMap<String, Arc<Link>>>,
    states: Mutex<States>,
}

impl Dsync {
    /// Through this node's service, or that of the leading peer, by name.
    #[must_use]
    pub fn new(local: Arc<Pool>, links: HashMap<String, Arc<Link>>) -> Dsync {
        Dsync {
            local: RwLock::new(local),
            links: RwLock::new(links),
            states: Mutex::default(),
        }
    }

    /// The same through others, from the next sync on.
    pub fn reach(&self, local: Arc<Pool>, links: HashMap<String, Arc<Link>>) {
        *self.local.write() = local;
        *self.links.write() = links;
    }

    /// Where the sync is run, and where its other end is.
    async fn ends(&self, job: &Job) -> Result<(Arc<Pool>, String), Error> {
        let link = self.links.read().get(&job.peer).cloned();
        let link = link.ok_or_else(|| {
            Error::Failed(format!(
                "node {} is in the cluster, but no [[peer]] of this node",
                job.peer
            ))
        })?;
        if job.lead {
            return Ok((self.local.read().clone(), link.there.clone()));
        }
        let here = match &link.here {
            Some(here) => here.clone(),
            None => own_address(&link).await?,
        };
        Ok((link.pool.clone(), here))
    }
}

/// Where the peer finds us: the address from which we reach it, and its own port.
async fn own_address(link: &Link) -> Result<String, Error> {
    let failed = |e: std::io::Error| Error::Failed(format!("{}: {e}", link.there));
    let mut found = tokio::net::lookup_host(&link.there).await.map_err(failed)?;
    let there = found
        .next()
        .ok_or_else(|| failed(std::io::ErrorKind::NotFound.into()))?;
    let any = if there.is_ipv4() {
        "0.0.0.0:0"
    } else {
        "[::]:0"
    };
    let socket = tokio::net::UdpSocket::bind(any).await.map_err(failed)?;
    // Nothing is sent: the system only chooses the way.
    socket.connect(there).await.map_err(failed)?;
    let ip = socket.local_addr().map_err(failed)?.ip();
    Ok(SocketAddr::new(ip, there.port()).to_string())
}

impl Carrier for Dsync {
    async fn sync(&self, job: &Job) -> Result<(), Error> {
        let (pool, other) = self.ends(job).await?;
        let state = self.states.lock().take(job).unwrap_or_default();
        let words = command(job, &state, &other);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        match pool
            .run(job.what.user(), &words, job.what.limit(job.force))
            .await
        {
            Ok(state) => {
                self.states.lock().put(job, state);
                Ok(())
            }
            // Something changed while it ran; a status without a name says so. What it carried,
            // it carried; whoever waits for a message looks.
            Err(doveadm::Error::Failed { status, log, .. })
                if status == "UNKNOWN" && log.is_empty() =>
            {
                match job.what {
                    What::Tree(_) => Err(Error::Changed),
                    What::Mailbox(_) | What::User(_) => Ok(()),
                }
            }
            Err(error) => Err(reason(error)),
        }
    }
}

fn reason(error: doveadm::Error) -> Error {
    let text = error.to_string();
    match text.contains(INTERLOCK) {
        true => Error::Interlock(text),
        false => Error::Failed(text),
    }
}

/// The command of a sync. An empty state asks for one to begin with.
fn command(job: &Job, state: &str, other: &str) -> Vec<String> {
    let mut words: Vec<String> = vec!["sync".into(), "-T".into(), SILENCE_SECONDS.into()];
    let mut option = |letter: &str, value: &str| {
        words.push(letter.into());
        words.push(value.into());
    };
    match &job.what {
        // By its GUID the host has to look at every mailbox to find one.
        What::Mailbox(place) if is_plain(&place.name) => option("-m", &place.name),
        What::Mailbox(place) => option("-g", &place.guid()),
        What::Tree(_) => option("-m", ""),
        What::User(_) => {}
    }
    if job.force {
        option("-s", "");
        words.push("-f".into());
    } else {
        option("-s", state);
    }
    words.push(format!("tcp:{other}"));
    words
}

/// Whether a mailbox's name means itself: others are patterns, escaped, or a special use.
fn is_plain(name: &str) -> bool {
    let plain = |c: char| c.is_alphanumeric() || matches!(c, '/' | '.' | '-' | '_' | ' ' | '@');
    !name.is_empty() && name.chars().all(plain)
}

/// Of which mailbox a state is, and with which peer.
type Key = (Mailbox, String);

/// Where each sync of a mailbox can begin: what the host gave at the end of the one before.
///
/// A state says up to which UID the two nodes had the same. Replication takes for new what one of them
/// has above it, and does not look whether the other one had it, too, by way of a third node or of
/// a sync that another daemon ordered, and expunged it since: the message comes back, under another
/// UID. So a state that ends before the stable prefix does is of no use. Whole users are
/// synced seldom, and always from the beginning.
///
/// They are not kept over a restart of the daemon. A state must be gone from the disk before the sync
/// begins that it is used for, so each sync would wait for the disk once more; and while the daemon
/// is down others move S and sync by other ways, so that most of what was kept could not be used.
/// Once per mailbox and peer a sync looks at the whole mailbox instead.
#[derive(Default)]
struct States {
    known: HashMap<Key, (u64, String)>,
    /// Counts what was put, to tell old from new.
    clock: u64,
}

impl States {
    /// The state, if it can be used, which then is gone: of a sync that fails, nobody knows how far
    /// it came.
    fn take(&mut self, job: &Job) -> Option<String> {
        let key = key(job)?;
        let (_, state) = self.known.remove(&key)?;
        let common = last_common_uid(&state, &key.0.guid)?;
        (common >= job.stable).then_some(state)
    }

    fn put(&mut self, job: &Job, state: String) {
        let Some(key) = key(job).filter(|_| !state.is_empty()) else {
            return;
        };
        self.clock += 1;
        self.known.insert(key, (self.clock, state));
        if self.known.len() > MAX_STATES {
            self.forget_old();
        }
    }

    /// Forgets the older half.
    fn forget_old(&mut self) {
        let mut ages: Vec<u64> = self.known.values().map(|(age, _)| *age).collect();
        let (_, median, _) = ages.select_nth_unstable(MAX_STATES / 2);
        let median = *median;
        self.known.retain(|_, (age, _)| *age > median);
    }
}

fn key(job: &Job) -> Option<Key> {
    match &job.what {
        What::Mailbox(place) => Some((place.mailbox.clone(), job.peer.clone())),
        What::User(_) | What::Tree(_) => None,
    }
}

/// Octets of a state before the first mailbox, of a mailbox, and of the checksum at the end.
const STATE_PARTS: (usize, usize, usize) = (4, 44, 4);
/// Where a mailbox's last common UID is: after its GUID and its UIDVALIDITY.
const COMMON_UID: std::ops::Range<usize> = 20..24;

/// What replication's state says of a mailbox. `None`: it does not know it, or is of another
/// version.
fn last_common_uid(state: &str, guid: &[u8; 16]) -> Option<Uid> {
    let bytes = from_base64(state)?;
    let (head, size, tail) = STATE_PARTS;
    let end = bytes.len().checked_sub(tail)?;
    let mailboxes = bytes.get(head..end)?;
    if mailboxes.len() % size != 0 {
        return None;
    }
    let mailbox = mailboxes.chunks(size).find(|one| one.starts_with(guid))?;
    let uid = mailbox.get(COMMON_UID)?;
    Some(Uid::from_le_bytes(uid.try_into().ok()?))
}

fn from_base64(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    let (mut bits, mut count) = (0u32, 0);
    for c in text.trim_end().trim_end_matches('=').bytes() {
        let six = match c {
            b'A'..=b'Z' => c - b'A',
            b'a'..=b'z' => c - b'a' + 26,
            b'0'..=b'9' => c - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(six);
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
            bits &= (1 << count) - 1;
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(name: &str, force: bool) -> Job {
        let mailbox = Mailbox {
            user: "alice".into(),
            guid: [0xab; 16],
        };
        let name = name.to_owned();
        Job {
            what: What::Mailbox(Place { mailbox, name }),
            peer: "beta".into(),
            lead: true,
            force,
            stable: 0,
        }
    }

    /// A state as dsync writes it, of a mailbox up to UID 258.
    fn state(guid: [u8; 16]) -> String {
        let mut bytes = vec![1, 0, 0, 0];
        bytes.extend(guid);
        bytes.extend([7, 0, 0, 0, 2, 1, 0, 0]);
        bytes.extend([0; 20]);
        bytes.extend([1, 2, 3, 4]);
        let mut text = String::new();
        for three in bytes.chunks(3) {
            let word = three
                .iter()
                .fold(0u32, |word, byte| word << 8 | u32::from(*byte));
            let word = word << (8 * (3 - three.len()));
            const CODE: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
            for n in 0..=three.len() {
                text.push(CODE[(word >> (18 - 6 * n)) as usize & 63] as char);
            }
        }
        while !text.len().is_multiple_of(4) {
            text.push('=');
        }
        text
    }

    #[test]
    fn a_state_that_ends_before_what_is_stable_is_not_used() {
        assert_eq!(last_common_uid(&state([0xab; 16]), &[0xab; 16]), Some(258));
        let mut states = States::default();
        for (stable, used) in [(0, true), (258, true), (259, false)] {
            states.put(&job("INBOX", false), state([0xab; 16]));
            let job = Job {
                stable,
                ..job("INBOX", false)
            };
            assert_eq!(states.take(&job).is_some(), used, "{stable}");
        }
    }

    #[test]
    fn a_state_of_something_else_is_not_used() {
        for text in ["", "AAAA", "!", &state([1; 16]), "AQAAAKurq6s="] {
            assert_eq!(last_common_uid(text, &[0xab; 16]), None, "{text}");
        }
    }

    #[test]
    fn a_mailbox_is_synced_by_name_from_where_the_last_sync_ended() {
        let words = command(&job("Work/2026", false), "STATE", "10.0.0.2:24245").join(" ");
        assert_eq!(words, "sync -T 20 -m Work/2026 -s STATE tcp:10.0.0.2:24245");
    }

    #[test]
    fn a_name_that_would_be_a_pattern_is_replaced_by_the_guid() {
        for name in ["a*", "a%b", "\\Sent", ""] {
            let words = command(&job(name, false), "", "10.0.0.2:24245").join(" ");
            assert!(words.contains("-g abababab"), "{words}");
        }
    }

    #[test]
    fn a_forced_sync_begins_at_the_beginning() {
        let words = command(&job("INBOX", true), "STATE", "10.0.0.2:24245").join(" ");
        assert_eq!(words, "sync -T 20 -m INBOX -s  -f tcp:10.0.0.2:24245");
    }

    #[test]
    fn a_state_is_used_once() {
        let (mut states, one) = (States::default(), state([0xab; 16]));
        states.put(&job("INBOX", false), one.clone());
        assert_eq!(states.take(&job("INBOX", true)), Some(one));
        assert_eq!(states.take(&job("INBOX", false)), None);
    }

    #[test]
    fn the_older_states_are_forgotten() {
        let mut states = States::default();
        let of = |n: usize| Job {
            peer: format!("p{n}"),
            ..job("INBOX", false)
        };
        for n in 0..=MAX_STATES {
            states.put(&of(n), "s".into());
        }
        assert!(states.known.len() <= MAX_STATES);
        let newest = key(&of(MAX_STATES)).expect("a mailbox");
        assert!(states.known.contains_key(&newest));
    }
}
