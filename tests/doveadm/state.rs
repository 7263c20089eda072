//! What the commands answer, taken apart; and a server to ask.

use serde_json::Value;

use crate::client::{Doveadm, Reply};
use crate::harness::*;

/// The user of these tests.
pub const USER: &str = "alice";

/// A message of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub uid: u32,
    pub guid: String,
    pub xid: String,
}

/// A mailbox, as every command answers with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    pub uidvalidity: u32,
    pub next: u32,
    pub shown: u32,
    pub promised: u32,
    pub limit: u32,
    pub bound: u32,
    pub gated: bool,
    pub entries: Vec<Entry>,
    pub staged: Vec<String>,
    pub more: bool,
}

impl State {
    /// # Panics
    /// When it is not one line of JSON with exactly these members.
    pub fn parse(text: &str) -> State {
        assert!(!text.trim_end().contains('\n'), "one line: {text:?}");
        let json: Value = serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text:?}"));
        let number = |name: &str| {
            let value = json[name]
                .as_u64()
                .unwrap_or_else(|| panic!("{name}: {text}"));
            u32::try_from(value).expect("a UID")
        };
        let entries = json["entries"].as_array().expect("entries").iter();
        let staged = json["staged"].as_array().expect("staged").iter();
        State {
            uidvalidity: number("uidvalidity"),
            next: number("next"),
            shown: number("shown"),
            promised: number("promised"),
            limit: number("limit"),
            bound: number("bound"),
            gated: json["gated"].as_bool().expect("gated"),
            entries: entries.map(entry).collect(),
            staged: staged.map(|guid| text_of(guid).to_owned()).collect(),
            more: json["more"].as_bool().expect("more"),
        }
    }

    pub fn uids(&self) -> Vec<u32> {
        self.entries.iter().map(|entry| entry.uid).collect()
    }
}

fn entry(json: &Value) -> Entry {
    Entry {
        uid: json["uid"].as_u64().expect("a UID") as u32,
        guid: text_of(&json["guid"]).to_owned(),
        xid: text_of(&json["xid"]).to_owned(),
    }
}

fn text_of(json: &Value) -> &str {
    json.as_str().expect("a text")
}

/// A server whose UIDs wait, and a connection to its doveadm server.
pub struct Node {
    // Before the server, which waits for its connections to end.
    pub doveadm: Doveadm,
    pub server: Dovecot,
}

impl Node {
    pub fn start(format: Format) -> Node {
        Node::start_with(setup(format))
    }

    pub fn start_with(setup: Setup) -> Node {
        let server = setup.start();
        let doveadm = connect(&server);
        Node { doveadm, server }
    }

    /// The GUID of a mailbox, as 32 hex digits.
    pub fn guid(&self, mailbox: &str) -> String {
        let args = ["mailbox", "status", "-u", USER, "guid", mailbox];
        let text = self.server.doveadm_ok(&args);
        let (_, guid) = text.trim().rsplit_once("guid=").expect("a GUID");
        guid.to_owned()
    }

    pub fn run(&mut self, command: &str, args: &[&str]) -> Reply {
        self.doveadm.run(USER, command, args)
    }

    /// A command on a mailbox that goes well, and the state that it answers with.
    pub fn state(&mut self, command: &str, mailbox: &str, args: &[&str]) -> State {
        let guid = self.guid(mailbox);
        let args = [&[guid.as_str(), mailbox], args].concat();
        let reply = self.run(command, &args);
        assert_eq!(reply.failed, "", "{command} {args:?}");
        State::parse(&reply.field)
    }

    /// All of a mailbox.
    pub fn look(&mut self, mailbox: &str) -> State {
        self.state("xid look", mailbox, &["0"])
    }

    /// The messages, as a client sees them: their UIDs above the watermark wait, so by other means.
    pub fn seen(&self, mailbox: &str) -> Vec<Entry> {
        let mut client = self.server.imap_in(USER, mailbox);
        let reply = client.ok("FETCH 1:* (XID X-GUID)");
        let fetches = reply.fetches();
        let entry = |fetch: &Fetch| Entry {
            uid: fetch.seq,
            guid: fetch.text("X-GUID").expect("a GUID"),
            xid: fetch.xid().expect("an XID"),
        };
        fetches.iter().map(entry).collect()
    }
}

pub fn setup(format: Format) -> Setup {
    Dovecot::setup()
        .format(format)
        .xid("xid_uid_source", "table")
        .xid("xid_uid_wait", "2s")
}

pub fn connect(server: &Dovecot) -> Doveadm {
    Doveadm::unix(&server.doveadm_socket())
}
