//! What the daemon asks a host about its mailboxes, and has it do to them.
//!
//! A host is a node's mail server. All that is done to mail, the plug-in does inside the server,
//! as the mail's owner; the daemon only says what. Every operation can be repeated without harm.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;

use super::doveadm::{self, Pool};
use crate::cluster::{Entry, Local, Staged, Uid};
use crate::etcd::{Mailbox, Text};

/// Time limit of an operation that touches few messages.
const SHORT: Duration = Duration::from_secs(15);
/// Time limit of one that copies, reads or syncs to disk as many as there are.
const LONG: Duration = Duration::from_secs(120);

/// What can go wrong with a host.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The mailbox, or its user, is not on that node.
    #[error("the mailbox does not exist there")]
    NotFound,
    /// The host could not be asked, or refused.
    #[error(transparent)]
    Doveadm(doveadm::Error),
    /// It answered what we do not understand.
    #[error("{command}: {why} in {answer:?}; is the plug-in there of the same version?")]
    Answer {
        /// What was asked.
        command: String,
        /// What is wrong with the answer.
        why: String,
        /// The beginning of it.
        answer: String,
    },
}

impl Error {
    /// Whether the host was asked, and said no.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        matches!(
            self,
            Error::NotFound | Error::Doveadm(doveadm::Error::Failed { .. })
        )
    }
}

impl From<doveadm::Error> for Error {
    fn from(error: doveadm::Error) -> Error {
        match error.is_not_found() {
            true => Error::NotFound,
            false => Error::Doveadm(error),
        }
    }
}

/// A mailbox, and under which name it was seen last (empty: never).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Whose, and its GUID.
    pub mailbox: Mailbox,
    /// A hint: it may have been renamed.
    pub name: String,
}

impl Place {
    /// The GUID in hexadecimal digits.
    #[must_use]
    pub fn guid(&self) -> String {
        format!("{:032x}", u128::from_be_bytes(self.mailbox.guid))
    }
}

/// Something to be done to a mailbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Nothing.
    Look,
    /// Move the watermark up to `uid`, durably; set the limit and the bound.
    Expose {
        /// The watermark.
        uid: Uid,
        /// The highest UID for a new message.
        limit: Uid,
        /// The highest UID that replication may bring.
        bound: Uid,
    },
    /// Note that nothing up to `end` changes any more, then make what is there durable.
    Promise {
        /// The promised mark.
        end: Uid,
    },
    /// Lower the promised mark.
    Release {
        /// The promised mark.
        to: Uid,
    },
    /// Close or open the gate.
    Gate {
        /// Close it.
        closed: bool,
        /// It opens by itself after this time.
        lease: Duration,
    },
    /// Raise the next UID above this, and copy there what is unstable, lies at or below it and
    /// has no copy above it.
    Raise {
        /// The floor.
        above: Uid,
    },
    /// Expunge these.
    Drop {
        /// Their UIDs.
        uids: Vec<Uid>,
    },
    /// Copy these to the stage mailbox, where they are not there yet.
    Stage {
        /// Their UIDs.
        uids: Vec<Uid>,
    },
    /// Save this staged message as a new one, unless it is there.
    Unstage {
        /// Its GUID.
        guid: Text,
    },
    /// Give these messages other XIDs, all or none, durably.
    Adopt {
        /// UIDs and their XIDs.
        xids: Vec<(Uid, Text)>,
    },
    /// Remove this from the stage.
    DropStaged {
        /// Its GUID.
        guid: Text,
    },
}

/// A mailbox as its host sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Look {
    /// Its name now; empty: a plug-in of before does not say.
    pub name: String,
    /// UIDVALIDITY.
    pub uidvalidity: u32,
    /// What the protocol needs of it. (Whether a staged message is settled, the source of a join
    /// says; until then it is not.)
    pub local: Local<Text, Text>,
}

/// A mailbox with messages that nobody was shown yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pending {
    /// The mailbox.
    pub place: Place,
    /// Its next UID.
    pub next: Uid,
    /// Its watermark.
    pub shown: Uid,
}

/// A node's mail server.
pub trait Host: Send + Sync + 'static {
    /// Does something to a mailbox and tells its state afterwards: all messages above `above`,
    /// and what at or below it has the GUID of one of these.
    fn act(
        &self,
        place: &Place,
        op: &Op,
        above: Uid,
    ) -> impl Future<Output = Result<Look, Error>> + Send;

    /// Which of these messages are, or once were, at a UID up to `stable`.
    fn settled(
        &self,
        place: &Place,
        stable: Uid,
        guids: &[Text],
    ) -> impl Future<Output = Result<BTreeSet<Text>, Error>> + Send;

    /// The user's mailboxes with messages that nobody was shown yet.
    fn pending(&self, user: &str) -> impl Future<Output = Result<Vec<Pending>, Error>> + Send;

    /// What is known there of these messages.
    fn xids(
        &self,
        place: &Place,
        guids: &[Text],
    ) -> impl Future<Output = Result<Named, Error>> + Send;

    /// All users that the host can name; some hosts cannot name any.
    fn users(&self) -> impl Future<Output = Result<Vec<String>, Error>> + Send;
}

/// What a node knows of messages by GUID.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Named {
    /// UID and XID, `uid:xid`, of each message with that GUID, separated by commas. UID 0: it was
    /// there and went; the highest there is: it is there, in the stage perhaps, and its UID says nothing.
    pub xids: BTreeMap<Text, Text>,
    /// These are there and have no XID yet.
    #[serde(default)]
    pub unnamed: BTreeSet<Text>,
}

/// Dovecot, through its administration service and our module in it.
#[derive(Clone)]
pub struct Dovecot {
    pool: Arc<Pool>,
}

impl Dovecot {
    /// The host that this service belongs to.
    #[must_use]
    pub fn new(pool: Arc<Pool>) -> Dovecot {
        Dovecot { pool }
    }

    /// Runs `doveadm xid COMMAND USER MAILBOX NAME ARGS...`.
    async fn xid(
        &self,
        place: &Place,
        command: &str,
        args: &[String],
        limit: Duration,
    ) -> Result<String, Error> {
        let (guid, command) = (place.guid(), format!("xid {command}"));
        let mut words = vec![command.as_str(), guid.as_str(), place.name.as_str()];
        words.extend(args.iter().map(String::as_str));
        Ok(self.pool.run(&place.mailbox.user, &words, limit).await?)
    }
}

impl Host for Dovecot {
    async fn act(&self, place: &Place, op: &Op, above: Uid) -> Result<Look, Error> {
        let (command, mut args, limit) = words(op);
        args.push(above.to_string());
        look(command, &self.xid(place, command, &args, limit).await?)
    }

    async fn settled(
        &self,
        place: &Place,
        stable: Uid,
        guids: &[Text],
    ) -> Result<BTreeSet<Text>, Error> {
        #[derive(Deserialize)]
        struct Answer {
            settled: BTreeSet<Text>,
        }
        let mut args = vec![stable.to_string()];
        args.extend_from_slice(guids);
        let answer = self.xid(place, "settled", &args, LONG).await?;
        Ok(parse::<Answer>("settled", &answer)?.settled)
    }

    async fn pending(&self, user: &str) -> Result<Vec<Pending>, Error> {
        #[derive(Deserialize)]
        struct Answer {
            boxes: Vec<Unshown>,
        }
        let answer = self.pool.run(user, &["xid pending"], LONG).await?;
        let boxes = parse::<Answer>("pending", &answer)?.boxes.into_iter();
        boxes.map(|found| found.of(user)).collect()
    }

    async fn xids(&self, place: &Place, guids: &[Text]) -> Result<Named, Error> {
        let answer = self.xid(place, "xids", guids, SHORT).await?;
        parse("xids", &answer)
    }

    async fn users(&self) -> Result<Vec<String>, Error> {
        #[derive(Deserialize)]
        struct Answer {
            #[serde(rename = "userList")]
            users: Vec<String>,
        }
        let answer = self.pool.run("", &["user", "*"], LONG).await?;
        Ok(parse::<Answer>("user", &answer)?.users)
    }
}

/// An operation as a command, its arguments and its time limit.
fn words(op: &Op) -> (&'static str, Vec<String>, Duration) {
    match op {
        Op::Look => ("look", Vec::new(), SHORT),
        Op::Expose { uid, limit, bound } => {
            let args = [uid, limit, bound].map(Uid::to_string);
            ("expose", args.to_vec(), SHORT)
        }
        Op::Promise { end } => ("promise", vec![end.to_string()], LONG),
        Op::Release { to } => ("release", vec![to.to_string()], SHORT),
        Op::Gate { closed, lease } => {
            let what = if *closed { "close" } else { "open" };
            let args = vec![what.into(), lease.as_millis().to_string()];
            ("gate", args, SHORT)
        }
        Op::Raise { above } => ("raise", vec![above.to_string()], LONG),
        Op::Drop { uids } => ("drop", vec![uid_set(uids)], LONG),
        Op::Stage { uids } => ("stage", vec![uid_set(uids)], LONG),
        Op::Unstage { guid } => ("unstage", vec![guid.clone()], SHORT),
        Op::Adopt { xids } => {
            let named = xids.iter().map(|(uid, xid)| format!("{uid}:{xid}"));
            let all = named.collect::<Vec<_>>().join(",");
            ("adopt", vec![all], LONG)
        }
        Op::DropStaged { guid } => ("dropstaged", vec![guid.clone()], SHORT),
    }
}

/// As IMAP writes sets: "3:5,9".
fn uid_set(uids: &[Uid]) -> String {
    let mut text = String::new();
    for run in uids.chunk_by(|a, b| a.checked_add(1) == Some(*b)) {
        let comma = if text.is_empty() { "" } else { "," };
        // Writing to a String cannot fail.
        let _ = match run {
            [one] => write!(text, "{comma}{one}"),
            [first, .., last] => write!(text, "{comma}{first}:{last}"),
            [] => Ok(()),
        };
    }
    text
}

#[derive(Deserialize)]
struct State {
    #[serde(default)]
    name: String,
    uidvalidity: u32,
    next: Uid,
    shown: Uid,
    promised: Uid,
    limit: Uid,
    bound: Uid,
    gated: bool,
    entries: Vec<Message>,
    #[serde(default)]
    staged: Vec<Text>,
    #[serde(default)]
    more: bool,
}

#[derive(Deserialize)]
struct Message {
    uid: Uid,
    guid: Text,
    xid: Text,
}

#[derive(Deserialize)]
struct Unshown {
    mailbox: String,
    name: String,
    next: Uid,
    shown: Uid,
}

impl Unshown {
    fn of(self, user: &str) -> Result<Pending, Error> {
        let guid = u128::from_str_radix(&self.mailbox, 16);
        let guid = guid.map_err(|e| bad("pending", &self.mailbox, &e.to_string()))?;
        let mailbox = Mailbox {
            user: user.into(),
            guid: guid.to_be_bytes(),
        };
        Ok(Pending {
            place: Place {
                mailbox,
                name: self.name,
            },
            next: self.next,
            shown: self.shown,
        })
    }
}

fn parse<'a, T: Deserialize<'a>>(command: &str, answer: &'a str) -> Result<T, Error> {
    serde_json::from_str(answer).map_err(|e| bad(command, answer, &e.to_string()))
}

fn bad(command: &str, answer: &str, why: &str) -> Error {
    /// Enough to see what it is.
    const SHOWN: usize = 120;
    Error::Answer {
        command: command.into(),
        why: why.into(),
        answer: answer.chars().take(SHOWN).collect(),
    }
}

/// Reads the state of a mailbox, and that it can be one.
fn look(command: &str, answer: &str) -> Result<Look, Error> {
    let state: State = parse(command, answer)?;
    if state.more {
        // We never ask for less than everything: what is missing would look like an expunge.
        return Err(bad(command, answer, "not all messages are there"));
    }
    if state.next == 0 {
        return Err(bad(command, answer, "the next UID cannot be 0"));
    }
    if !state.entries.is_sorted_by(|a, b| a.uid < b.uid)
        || state.entries.last().is_some_and(|e| e.uid >= state.next)
    {
        return Err(bad(command, answer, "the UIDs do not ascend to the next"));
    }
    let entries = state.entries.into_iter().map(|message| Entry {
        uid: message.uid,
        guid: message.guid,
        xid: message.xid,
        expunged: false,
    });
    let staged = state.staged.into_iter().map(|guid| Staged {
        guid,
        settled: false,
    });
    Ok(Look {
        name: state.name,
        uidvalidity: state.uidvalidity,
        local: Local {
            entries: entries.collect(),
            next: state.next,
            promised: state.promised,
            shown: state.shown,
            limit: state.limit,
            bound: state.bound,
            gated: state.gated,
            staged: staged.collect(),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATE: &str = r#"{"name":"Work","uidvalidity":7,"next":12,"shown":9,
        "promised":4294967295,"limit":10,"bound":20,"gated":false,"entries":[{"uid":10,"guid":"g\"","xid":"a-1"},
        {"uid":11,"guid":"h","xid":"a-2"}],"staged":["s"],"more":false}"#;

    #[test]
    fn a_state_is_read_as_it_is_written() {
        let look = look("look", STATE).expect("a state");
        assert_eq!(
            (look.uidvalidity, look.local.next, look.local.shown),
            (7, 12, 9)
        );
        assert_eq!(look.name, "Work");
        assert_eq!(look.local.promised, crate::cluster::ALL_PROMISED);
        assert_eq!(look.local.entries[0].guid, "g\"");
        assert_eq!(look.local.staged[0].guid, "s");
    }

    #[test]
    fn an_incomplete_state_is_refused() {
        let cut = STATE.replace("\"more\":false", "\"more\":true");
        assert!(look("look", &cut).is_err());
    }

    #[test]
    fn a_state_with_a_uid_at_or_above_the_next_is_refused() {
        assert!(look("look", &STATE.replace("\"next\":12", "\"next\":11")).is_err());
        assert!(look("look", &STATE.replace("\"next\":12", "\"next\":0")).is_err());
    }

    #[test]
    fn uids_are_written_as_imap_writes_sets() {
        assert_eq!(uid_set(&[3, 4, 5, 9]), "3:5,9");
        assert_eq!(uid_set(&[1]), "1");
        assert_eq!(uid_set(&[Uid::MAX]), "4294967295");
    }

    #[test]
    fn an_operation_is_a_command_with_its_arguments() {
        let op = Op::Gate {
            closed: true,
            lease: Duration::from_secs(5),
        };
        let (command, args, _) = words(&op);
        assert_eq!((command, args.join(" ").as_str()), ("gate", "close 5000"));
    }
}
