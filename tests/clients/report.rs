//! What each client did, as a table and as docs/clients.md.

use std::collections::BTreeMap;
use std::fmt;

use super::harness::{Dovecot, Setup};
use super::scene::MESSAGES;

/// What the server does to the clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scene {
    /// Nothing: Dovecot without the plug-in.
    Stock,
    /// No UID is stable until so many seconds after the client's first login.
    Waits(u64),
    /// UIDs become stable one by one, at random moments after the client's first login.
    Random,
    /// `xid_uids = no`.
    NoUids,
}

impl Scene {
    /// A server for it.
    pub fn server(self) -> Dovecot {
        let setup = Dovecot::setup();
        // Longer than the longest scene: no client is to see a time-out.
        let table = |setup: Setup| {
            setup
                .xid("xid_uid_source", "table")
                .xid("xid_uid_wait", "100s")
        };
        match self {
            Scene::Stock => setup.plugin(false),
            Scene::Waits(_) => table(setup),
            // Without COMPRESS, into which the scanner does not look.
            Scene::Random => table(setup).mail_plugins(""),
            Scene::NoUids => setup.xid("xid_uids", "no"),
        }
        .start()
    }

    fn title(self) -> String {
        match self {
            Scene::Stock => "stock".into(),
            Scene::Waits(seconds) => format!("UIDs wait {seconds} s"),
            Scene::Random => "UIDs at random moments".into(),
            Scene::NoUids => "no UIDs".into(),
        }
    }

    /// Without UIDs clients may do as they like; that is what the mode is there to find out.
    fn must_work(self) -> bool {
        self != Scene::NoUids
    }
}

/// What one client did in one scene.
pub struct Result {
    /// Subjects of what it downloaded, each with how often.
    pub got: BTreeMap<String, usize>,
    /// How often the message that it saved is in Sent; None for a client that only reads.
    pub saved: Option<usize>,
    /// The first exit code that is not 0.
    pub code: i32,
    /// How many runs that took.
    pub runs: u32,
    /// How long it took.
    pub seconds: u64,
    /// What it printed.
    pub said: String,
    /// UIDs that it was told before they were stable.
    pub leaks: Vec<String>,
}

impl Result {
    fn messages(&self) -> usize {
        (1..=MESSAGES)
            .filter(|n| self.got.get(&format!("message {n}")) == Some(&1))
            .count()
    }

    fn repeated(&self) -> usize {
        self.got.values().filter(|count| **count > 1).count()
    }

    fn perfect(&self) -> bool {
        self.messages() == MESSAGES
            && self.repeated() == 0
            && self.saved.is_none_or(|n| n == 1)
            && self.leaks.is_empty()
    }

    /// Without the time it took, which differs from run to run.
    fn words(&self) -> String {
        let mut words = format!("{} of {MESSAGES}", self.messages());
        if self.repeated() > 0 {
            words.push_str(&format!(", {} twice", self.repeated()));
        }
        match self.saved {
            Some(1) => words.push_str(", saved"),
            Some(0) => words.push_str(", not saved"),
            Some(n) => words.push_str(&format!(", saved {n} times")),
            None => {}
        }
        if self.runs > 1 {
            words.push_str(&format!(", {} runs", self.runs));
        }
        if self.code != 0 {
            words.push_str(&format!(", exit code {}", self.code));
        }
        words
    }
}

/// A scene and what every client did in it.
pub struct Played {
    pub scene: Scene,
    pub results: BTreeMap<&'static str, Result>,
}

/// All scenes.
pub struct Table(Vec<Played>);

impl Table {
    pub fn new(played: Vec<Played>) -> Table {
        Table(played)
    }

    /// What must not be: a client that works on the stock server and misses something here.
    pub fn failures(&self) -> Vec<String> {
        let mut failed = Vec::new();
        for played in self.0.iter().filter(|p| p.scene.must_work()) {
            for (name, result) in played.results.iter().filter(|(_, r)| !r.perfect()) {
                failed.push(format!(
                    "{name}, {}: {} after {} s\n{}\n{}",
                    played.scene.title(),
                    result.words(),
                    result.seconds,
                    result.leaks.join("\n"),
                    result.said
                ));
            }
        }
        failed
    }

    /// docs/clients.md.
    pub fn document(&self) -> String {
        let mut text = String::from(
            "# Real clients\n\n\
             What mail clients did against a server with imap-xid: each downloads the five\n\
             messages of its INBOX and, if it can, saves one into Sent. \"UIDs wait\": no UID\n\
             was stable until so long after the client's first login. \"UIDs at random\n\
             moments\": from then on they became stable one by one, and a scanner on the\n\
             client's wire saw none that was not; mbsync, which keeps below UIDNEXT, waits for\n\
             nothing and takes the rest on its next run. \"no UIDs\": `xid_uids = no`, the mode\n\
             that exists to find out. This page is written by the test `clients`.\n\n",
        );
        let titles: Vec<String> = self.0.iter().map(|p| p.scene.title()).collect();
        text.push_str(&format!(
            "| client | {} |\n|---|{}\n",
            titles.join(" | "),
            "---|".repeat(titles.len())
        ));
        for name in self
            .0
            .iter()
            .flat_map(|p| p.results.keys())
            .collect::<std::collections::BTreeSet<_>>()
        {
            let cells: Vec<String> = self
                .0
                .iter()
                .map(|p| p.results.get(name).map_or_else(String::new, Result::words))
                .collect();
            text.push_str(&format!("| {name} | {} |\n", cells.join(" | ")));
        }
        text
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for played in &self.0 {
            writeln!(f, "{}", played.scene.title())?;
            for (name, result) in &played.results {
                writeln!(f, "  {name:18} {} ({} s)", result.words(), result.seconds)?;
            }
        }
        Ok(())
    }
}
