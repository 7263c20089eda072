//! Two servers that replicate by `doveadm sync`, each with a stand-in for its daemon.

use crate::assign::guid;
use crate::daemon::Daemon;
use crate::events::clustered;
use crate::harness::*;

/// doveadm's port; every server has an address of its own.
pub const DOVEADM: u16 = 4155;

/// The servers end first: the other end of a sync may still be asking its daemon.
pub struct Pair {
    pub servers: [Dovecot; 2],
    pub daemons: [Daemon; 2],
}

impl Pair {
    pub fn start(format: Format) -> Pair {
        Pair::of([format, format])
    }

    pub fn of(formats: [Format; 2]) -> Pair {
        let names = ["foo", "bar"];
        Pair::of_servers([0, 1].map(|i| server(names[i], formats[i]).start()))
    }

    pub fn of_servers(servers: [Dovecot; 2]) -> Pair {
        let daemons = [0, 1].map(|i| Daemon::start(&servers[i]));
        Pair { daemons, servers }
    }

    /// One sync of all of alice's mail, begun by the first server.
    pub fn sync(&self, args: &[&str]) -> Output {
        let peer = format!("tcp:{}:{DOVEADM}", self.servers[1].imap_addr().ip());
        let mut words = vec!["sync", "-u", "alice"];
        words.extend(args);
        words.push(&peer);
        self.servers[0].doveadm(&words)
    }

    /// The same, which must succeed.
    pub fn sync_ok(&self, args: &[&str]) {
        let output = self.sync(args);
        assert_eq!(output.code, 0, "sync: {output:?}");
    }

    /// Each daemon learns what the other server has, as xidd would by asking.
    pub fn introduce(&self, mailbox: &str) {
        for (daemon, server) in [(0, 1), (1, 0)] {
            let messages = messages(&self.servers[server], mailbox);
            self.daemons[daemon].knows(&messages);
        }
    }

    /// So many messages are saved on the first server, and synced.
    pub fn fill(&self, count: usize) {
        for n in 1..=count {
            self.servers[0].append("alice", "INBOX", &message(n));
        }
        self.introduce("INBOX");
        self.sync_ok(&[]);
    }

    /// Both have the same messages with the same UIDs and XIDs; returns them.
    pub fn same(&self, mailbox: &str) -> Vec<Message> {
        let [one, other] = [0, 1].map(|i| messages(&self.servers[i], mailbox));
        assert_eq!(named(&one), named(&other), "{mailbox}");
        one
    }
}

pub fn server(namespace: &str, format: Format) -> Setup {
    let doveadm = format!(
        "doveadm_password = lab\ndoveadm_port = {DOVEADM}\n\
         service doveadm {{\n  inet_listener {{\n    port = {DOVEADM}\n  }}\n}}"
    );
    clustered()
        .format(format)
        .xid("xid_namespace", namespace)
        .conf(&doveadm)
}

/// What can be compared of messages.
pub fn named(messages: &[Message]) -> Vec<(u32, String, Option<String>)> {
    messages
        .iter()
        .map(|m| (m.uid, m.guid.clone(), m.xid.clone()))
        .collect()
}

/// All messages of alice's mailbox, without a client that would wait for UIDs. The other end of a
/// sync that failed may still be at work: looks until both ways to look say the same.
pub fn messages(server: &Dovecot, mailbox: &str) -> Vec<Message> {
    let mut found = None;
    until("doveadm and IMAP see the same messages", || {
        found = look(server, mailbox);
        found.is_some()
    });
    found.expect("until() saw it")
}

fn look(server: &Dovecot, mailbox: &str) -> Option<Vec<Message>> {
    let output = server.doveadm(&[
        "-f", "tab", "fetch", "-u", "alice", "uid guid", "mailbox", mailbox,
    ]);
    if output.code != 0 {
        return Some(Vec::new());
    }
    let xids = xids_of(server, mailbox);
    let lines: Vec<&str> = output.stdout.lines().skip(1).collect();
    if lines.len() != xids.len() {
        return None;
    }
    let messages = lines.iter().zip(xids).zip(1..).map(|((line, xid), seq)| {
        let (uid, guid) = line.split_once('\t').expect("two fields");
        Message {
            seq,
            uid: uid.parse().expect("a UID"),
            xid,
            guid: guid.trim().into(),
        }
    });
    Some(messages.collect())
}

/// The messages' XIDs, in order.
fn xids_of(server: &Dovecot, mailbox: &str) -> Vec<Option<String>> {
    let mut client = server.imap("alice");
    let selected = client.ok(&format!("EXAMINE {mailbox}"));
    if selected.exists() == Some(0) {
        return Vec::new();
    }
    let reply = client.ok("FETCH 1:* (FLAGS XID)");
    reply.fetches().iter().map(|fetch| fetch.xid()).collect()
}

/// UIDVALIDITY and GUID of INBOX.
pub fn inbox(server: &Dovecot) -> (String, [u8; 16]) {
    let text = server.doveadm_ok(&["mailbox", "status", "-u", "alice", "uidvalidity", "INBOX"]);
    (text, guid(server, "alice", "INBOX"))
}
