//! kill -9 in the middle of raise, drop, stage, unstage and dropstaged: run again, each of them
//! ends as if nothing had happened, and at no time is a message lost.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::harness::*;
use crate::moves::{expose_all, faces, fill};
use crate::state::{Node, State, USER, connect};

/// Messages that move.
const MESSAGES: usize = 24;
/// Kills in each run; many more in a soak.
const KILLS: usize = 24;
const SOAK_KILLS: usize = 300;

struct Killer {
    node: Node,
    random: Random,
    mailbox: String,
    kills: usize,
    /// How long a command takes, at most: a kill comes within this time.
    takes: Duration,
    /// XIDs that may never be without a message.
    xids: BTreeSet<String>,
    format: Format,
}

/// Stock mdbox that was killed rebuilds itself now and then, and brings expunged messages back.
struct Rebuilt;

impl Killer {
    fn start(format: Format) -> Killer {
        let mut node = Node::start(format);
        node.server.allow_log("killed with signal 9");
        fill(&mut node, MESSAGES);
        let entries = node.look("INBOX").entries;
        Killer {
            mailbox: node.guid("INBOX"),
            node,
            random: Random::new(seed("XID_SEED", 7)),
            kills: 0,
            takes: Duration::from_millis(20),
            xids: entries.into_iter().map(|entry| entry.xid).collect(),
            format,
        }
    }

    /// Runs a command until it ended by itself, killing it before about every second time.
    fn run(&mut self, command: &str, argument: &str) -> Result<State, Rebuilt> {
        loop {
            let mailbox = self.mailbox.clone();
            let args = [mailbox.as_str(), "INBOX", argument, "0"];
            let begin = Instant::now();
            let victim = self.random.chance(2).then(|| self.victim());
            self.node.doveadm.start(USER, command, &args);
            if let Some(pid) = victim {
                let most = self.takes.as_micros() as usize;
                std::thread::sleep(Duration::from_micros(self.random.below(most) as u64));
                kill9(pid);
                self.kills += 1;
            }
            if let Some(reply) = self.node.doveadm.finish() {
                // What the killed process left may make the host refuse once.
                let again = reply.failed == "TEMPFAIL" && self.kills > 0;
                assert!(reply.failed.is_empty() || again, "{command}: {reply:?}");
                if victim.is_none() && !again {
                    self.takes = (self.takes + begin.elapsed()) / 2;
                    self.insist_on_the_same_storage()?;
                    return Ok(State::parse(&reply.field));
                }
            }
            if victim.is_some() {
                self.go_on()?;
            }
        }
    }

    /// The process that serves the connection.
    fn victim(&mut self) -> u32 {
        let pids = self.node.server.pids("doveadm-server");
        assert_eq!(pids.len(), 1, "one connection, one process");
        pids[0]
    }

    /// After a kill: connect again; what was there is still there.
    fn go_on(&mut self) -> Result<(), Rebuilt> {
        let server = &self.node.server;
        until("the end of the killed process", || {
            server.pids("doveadm-server").is_empty()
        });
        remove_locks(&server.mail_dir(USER));
        self.node.doveadm = connect(server);
        self.insist_on_the_same_storage()?;
        let guids = self.node.look("INBOX").staged;
        let mut seen: BTreeSet<String> = BTreeSet::new();
        seen.extend(self.node.look("INBOX").entries.into_iter().map(|e| e.xid));
        // What is staged is not told by XID; so many may be missing here.
        let missing = self.xids.difference(&seen).count();
        assert!(
            missing <= guids.len(),
            "{missing} are missing, {guids:?} are staged"
        );
        assert!(seen.is_subset(&self.xids), "new XIDs: {seen:?}");
        Ok(())
    }

    fn insist_on_the_same_storage(&self) -> Result<(), Rebuilt> {
        let rebuilt = self.node.server.log().contains("ebuilding index");
        match self.format == Format::Mdbox && rebuilt {
            true => Err(Rebuilt),
            false => Ok(()),
        }
    }

    fn raise(&mut self, floor: u32) -> Result<(), Rebuilt> {
        let state = self.run("xid raise", &floor.to_string())?;
        let low: Vec<String> = state
            .entries
            .iter()
            .filter(|entry| entry.uid > state.shown && entry.uid <= floor)
            .map(|entry| entry.uid.to_string())
            .collect();
        let state = self.run("xid drop", &low.join(","))?;
        let uids = state.uids().into_iter();
        assert_eq!(uids.filter(|uid| *uid > floor).count(), MESSAGES - 2);
        assert_eq!(state.entries.len(), MESSAGES);
        Ok(())
    }

    fn stage(&mut self) -> Result<(), Rebuilt> {
        let state = self.node.look("INBOX");
        let unstable = state.uids().into_iter().filter(|uid| *uid > state.shown);
        let set = unstable
            .map(|uid| uid.to_string())
            .collect::<Vec<_>>()
            .join(",");
        let state = self.run("xid stage", &set)?;
        assert_eq!(state.staged.len(), MESSAGES - 2);
        let state = self.run("xid drop", &set)?;
        assert_eq!(state.entries.len(), 2);
        for guid in state.staged {
            self.run("xid unstage", &guid)?;
            self.run("xid dropstaged", &guid)?;
        }
        Ok(())
    }
}

/// Lock files outlive a killed process, some for two minutes.
fn remove_locks(dir: &Path) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if entry.path().is_dir() {
            remove_locks(&entry.path());
        } else if name.ends_with(".lock") || name.ends_with(".newlock") {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

fn killed_in_the_middle(format: Format) {
    let mut killer = Killer::start(format);
    let face = faces(&killer.node, "INBOX");
    let kills = match std::env::var_os("IMAP_XID_SOAK") {
        Some(_) => SOAK_KILLS,
        None => KILLS,
    };
    for floor in (100..).step_by(100) {
        if killer.raise(floor).and_then(|()| killer.stage()).is_err() {
            println!("{format:?} rebuilt itself after {} kills", killer.kills);
            return;
        }
        if killer.kills >= kills {
            break;
        }
    }
    assert_eq!(faces(&killer.node, "INBOX"), face, "{format:?}");
    expose_all(&mut killer.node);
    let messages = killer.node.server.checked(USER, "INBOX");
    assert_eq!(messages.len(), MESSAGES, "{format:?}");
}

#[test]
fn moves_in_sdbox_that_are_killed_go_on() {
    killed_in_the_middle(Format::Sdbox);
}

#[test]
fn moves_in_mdbox_that_are_killed_go_on() {
    killed_in_the_middle(Format::Mdbox);
}

#[test]
fn moves_in_maildir_that_are_killed_go_on() {
    killed_in_the_middle(Format::Maildir);
}

/// sdbox gives its files their UIDs before the index hears of them. Stock, killed between the two,
/// finds the names taken, and makes its index anew of all files that it finds, with copies that
/// were never committed.
#[test]
fn copies_that_a_killed_sdbox_never_committed_are_no_messages() {
    let mut killer = Killer::start(Format::Sdbox);
    let mailbox = killer.node.guid("INBOX");
    let folder = killer
        .node
        .server
        .mail_dir(USER)
        .join("mailboxes/INBOX/dbox-Mails");
    let mut between = 0;
    // The kill has to come between two system calls of another process.
    for floor in (100..=20_000).step_by(100) {
        if floor > 2000 && between > 0 {
            break;
        }
        let victim = killer.victim();
        let args = [mailbox.as_str(), "INBOX", &floor.to_string(), "0"];
        killer.node.doveadm.start(USER, "xid raise", &args);
        let first = folder.join(format!("u.{}", floor + 1));
        while !first.exists() {
            std::hint::spin_loop();
        }
        kill9(victim);
        let _ = killer.node.doveadm.finish();
        until("the end of the killed process", || {
            killer.node.server.pids("doveadm-server").is_empty()
        });
        killer.node.doveadm = connect(&killer.node.server);
        let left = killer.node.look("INBOX");
        between += usize::from(left.next == floor + 1);
        let reply = killer.node.run("xid raise", &args);
        assert_eq!(reply.failed, "", "{floor}");
        let state = killer.node.look("INBOX");
        let low = state
            .uids()
            .into_iter()
            .filter(|uid| *uid > 2 && *uid <= floor);
        let low: Vec<String> = low.map(|uid| uid.to_string()).collect();
        let state = killer
            .node
            .state("xid drop", "INBOX", &[&low.join(","), "0"]);
        let xids: BTreeSet<String> = state
            .entries
            .iter()
            .map(|entry| entry.xid.clone())
            .collect();
        assert_eq!(xids, killer.xids);
        assert_eq!(state.entries.len(), MESSAGES);
    }
    assert!(between > 0, "no kill came at the right time");
    assert!(!killer.node.server.log().contains("ebuilding index"));
}
