//! Several writers, nothing broken.

use std::time::Duration;

use crate::harness::cluster::Cluster;
use crate::harness::{Format, Imap, message, until};
use crate::workload::{USER, conclude, write_by_turns};
use crate::{PAUSE, judge, observers};

/// Messages of one run.
const MESSAGES: usize = 16;
/// One way from node to node, where it matters.
const FAR: Duration = Duration::from_millis(20);
/// More messages than one sync carries while they are written as fast as it goes.
const SEVERAL_SYNCS: u32 = 300;

fn written_by_turns(nodes: usize, format: Format) {
    let cluster = Cluster::setup().nodes(nodes).format(format).start();
    let mut observers = write_by_turns(observers(&cluster), 0, MESSAGES, PAUSE);
    let what = format!("{nodes} nodes, {}", format.name());
    judge(&what, &conclude(&mut observers), MESSAGES);
}

#[test]
fn two_nodes_that_write_one_sdbox_mailbox_never_change_a_uid() {
    written_by_turns(2, Format::Sdbox);
}

#[test]
fn two_nodes_that_write_one_mdbox_mailbox_never_change_a_uid() {
    written_by_turns(2, Format::Mdbox);
}

#[test]
fn two_nodes_that_write_one_maildir_never_change_a_uid_and_double_nothing() {
    written_by_turns(2, Format::Maildir);
}

#[test]
fn three_nodes_that_write_one_mailbox_never_change_a_uid() {
    written_by_turns(3, Format::Sdbox);
}

#[test]
fn three_nodes_that_write_one_maildir_never_change_a_uid_and_double_nothing() {
    written_by_turns(3, Format::Maildir);
}

/// UIDNEXT as this client is told: UIDs below it can be used.
fn next_uid(client: &mut Imap) -> u32 {
    let status = client.ok("STATUS INBOX (UIDNEXT)");
    let line = status.untagged("STATUS")[0].text().into_owned();
    let number = line
        .split("UIDNEXT ")
        .nth(1)
        .and_then(|rest| rest.split(')').next());
    number.and_then(|text| text.parse().ok()).expect("a number")
}

/// Each of two nodes in turn: one of them leads, and the other asks it to sync.
#[test]
fn uids_go_on_while_somebody_writes_without_a_pause() {
    // So far apart that messages come faster than the daemon can tell etcd of them.
    let cluster = Cluster::setup().nodes(2).delay(FAR).start();
    for node in [1, 2] {
        let mut writer = cluster.node(node).imap_in(USER, "INBOX");
        let mut reader = cluster.node(3 - node).imap(USER);
        let wanted = next_uid(&mut reader) + SEVERAL_SYNCS;
        until(
            &format!("the UIDs of node {node}'s messages to go on"),
            || {
                writer.append("INBOX", &message(node));
                next_uid(&mut reader) >= wanted
            },
        );
    }
}
