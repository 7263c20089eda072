//! Several writers, nothing broken.

use crate::harness::Format;
use crate::harness::cluster::Cluster;
use crate::workload::{conclude, write_by_turns};
use crate::{PAUSE, judge, observers};

/// Messages of one run.
const MESSAGES: usize = 16;

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
