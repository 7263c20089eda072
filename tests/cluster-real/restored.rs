//! Mail that an administrator puts back, or removes, on one node under a running cluster: it has what
//! it lacks from the other nodes again, and nobody sees another UID.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::harness::cluster::Cluster;
use crate::harness::{Format, message, until};
use crate::metrics::total;
use crate::tree::{Seen, look};
use crate::workload::USER;

/// Messages that are there before, and come after.
const SOME: usize = 4;

struct Restored {
    cluster: Cluster,
    mailbox: &'static str,
    /// Messages that were taken.
    taken: usize,
    /// Messages that a client expunged.
    expunged: usize,
}

impl Restored {
    fn start(format: Format, mailbox: &'static str) -> Restored {
        let setup = Cluster::setup().nodes(2).format(format);
        let cluster = setup.xid("xid_uid_wait", "2s").start();
        if mailbox != "INBOX" {
            let made = format!("CREATE {mailbox}");
            cluster.node(1).imap(USER).ok(&made);
        }
        Restored {
            cluster,
            mailbox,
            taken: 0,
            expunged: 0,
        }
    }

    /// Both nodes take some by turns.
    fn write(&mut self) {
        for n in self.taken + 1..=self.taken + SOME {
            self.write_on(1 + n % 2, n);
        }
        self.taken += SOME;
    }

    /// A client on node 1 expunges the first message.
    fn expunge(&mut self) {
        let mut client = self.cluster.node(1).imap_in(USER, self.mailbox);
        client.ok("STORE 1 +FLAGS (\\Deleted)");
        client.ok("EXPUNGE");
        self.expunged += 1;
    }

    /// Who has lost something says so until it has it again.
    fn write_on(&self, node: usize, number: usize) {
        until("the message to be taken", || {
            let mut client = self.cluster.node(node).imap(USER);
            let reply = client.try_append(self.mailbox, &message(number));
            reply.is_ok_and(|reply| reply.is_ok())
        });
    }

    /// What a client sees on either node once both have all.
    fn settled(&self) -> Seen {
        let mut seen = None;
        until("both nodes to have all", || {
            let both = [1, 2].map(|node| look(self.cluster.node(node), self.mailbox));
            let all = |seen: &Seen| seen.rows.len() + self.expunged == self.taken;
            let [one, two] = both;
            seen = one.filter(|one| all(one) && two.as_ref() == Some(one));
            seen.is_some()
        });
        seen.expect("both nodes have all")
    }

    /// A folder of node 2's mail.
    fn folder(&self, name: &str) -> PathBuf {
        self.cluster.node(2).mail_dir(USER).join(name)
    }

    /// Nobody has anything open, as after a backup program's own stop.
    fn with_node_2_stopped(&self, work: impl FnOnce(&Self)) {
        self.cluster.allow_log("Fatal: connect(");
        self.cluster.node(2).stop();
        work(self);
        self.cluster.node(2).start_again();
    }

    /// More is written after the files changed; all is where it was, and goes on.
    fn goes_on(mut self, before: &Seen) {
        self.write();
        let after = self.settled();
        assert_eq!(after.uidvalidity, before.uidvalidity);
        assert_eq!(after.rows[..before.rows.len()], before.rows);
        let xids: BTreeSet<&str> = after.rows.iter().map(|row| row.1.as_str()).collect();
        assert_eq!(xids.len(), after.rows.len(), "an XID is there twice");
        let leaves = total(&self.cluster, "xidd_leaves_total");
        assert!(leaves > 0.0, "no node noticed that it lacks something");
    }
}

fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-a").args([from, to]).status();
    assert!(status.expect("cp runs").success());
}

fn remove(folder: &Path) {
    std::fs::remove_dir_all(folder).expect("the folder is there");
}

/// A folder of node 2 is put back as it was some messages ago, and before one was expunged.
fn put_back(format: Format, mailbox: &'static str, folder: &str) {
    let mut restored = Restored::start(format, mailbox);
    restored.write();
    restored.settled();
    let place = restored.folder(folder);
    // Elsewhere: beside it the copy would be one more mailbox.
    let backup = restored.cluster.node(2).home(USER).join("backup");
    restored.with_node_2_stopped(|_| copy(&place, &backup));
    restored.write();
    restored.expunge();
    let before = restored.settled();
    restored.with_node_2_stopped(|_| {
        remove(&place);
        std::fs::rename(&backup, &place).expect("the copy is there");
        forget_numbers(&place);
    });
    restored.goes_on(&before);
}

/// What is put back with all of a user's mail would give numbers again: operations.md says what goes.
fn forget_numbers(root: &Path) {
    for name in ["registry", "registry-wal", "registry-shm", "table"] {
        let _ = std::fs::remove_file(root.join(format!("xid.{name}")));
    }
}

/// All mail of the user is removed on node 2.
fn removed(format: Format) {
    let mut restored = Restored::start(format, "INBOX");
    restored.write();
    let before = restored.settled();
    restored.with_node_2_stopped(|restored| remove(&restored.folder("")));
    restored.goes_on(&before);
}

#[test]
fn an_sdbox_mailbox_that_is_put_back_has_all_again_under_the_same_uids() {
    put_back(Format::Sdbox, "box", "mailboxes/box");
}

#[test]
fn a_maildir_that_is_put_back_has_all_again_under_the_same_uids() {
    put_back(Format::Maildir, "box", ".box");
}

/// All of it: mdbox keeps all mailboxes' messages together.
#[test]
fn mdbox_mail_that_is_put_back_has_all_again_under_the_same_uids() {
    put_back(Format::Mdbox, "INBOX", "");
}

#[test]
fn mail_that_is_removed_on_one_node_is_there_again_under_the_same_uids() {
    removed(Format::Sdbox);
}

#[test]
fn mdbox_mail_that_is_removed_on_one_node_is_there_again_under_the_same_uids() {
    removed(Format::Mdbox);
}

#[test]
fn a_maildir_that_is_removed_on_one_node_is_there_again_under_the_same_uids() {
    removed(Format::Maildir);
}
