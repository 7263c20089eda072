//! A node whose disk was replaced, and whose first mail comes before its daemon does.

use crate::harness::cluster::Cluster;
use crate::harness::{Format, Reply, message, until};
use crate::workload::{USER, conclude, write_by_turns};
use crate::{PAUSE, judge, observers};

/// Messages before the disk is lost, while it is away, and after it is back.
const BEFORE: usize = 12;
const AWAY: usize = 12;
const AFTER: usize = 12;
/// Messages that clients try to give to the new disk before any daemon runs there.
const EARLY: usize = 3;

/// A client that only appends: until the others' mail is back the mailbox looks empty.
fn early(cluster: &Cluster, taken: impl Fn(&Reply)) {
    let mut client = cluster.node(3).imap(USER);
    for n in 1..=EARLY {
        let reply = client.try_append("INBOX", &message(2000 + n));
        taken(&reply.expect("the connection holds"));
    }
}

fn new_mail_first(format: Format) {
    let cluster = Cluster::setup()
        .nodes(3)
        .format(format)
        .xid("xid_uid_wait", "2s")
        .start();
    let mut all = write_by_turns(observers(&cluster), 0, BEFORE, PAUSE);
    let mut third = all.pop().expect("three observers");
    cluster.replace_disk(3);
    let mut all = write_by_turns(all, 1000, AWAY, PAUSE);
    early(&cluster, |reply| {
        assert!(!reply.is_ok(), "a new disk took a message by itself");
    });
    cluster.start_xidd(3);
    // Some come too early still, and are refused; what is taken must stay.
    early(&cluster, |_| ());
    cluster.wait_node_in(3);
    until("the new disk takes mail", || third.append(4000).is_ok());
    all.push(third);
    let mut all = write_by_turns(all, 5000, AFTER, PAUSE);
    let what = format!("a new disk, {}", format.name());
    judge(&what, &conclude(&mut all), BEFORE + AWAY + AFTER);
}

#[test]
fn a_new_disk_that_gets_mail_first_joins_and_changes_no_uid() {
    new_mail_first(Format::Sdbox);
}

#[test]
fn a_new_maildir_that_gets_mail_first_joins_and_changes_no_uid() {
    new_mail_first(Format::Maildir);
}
