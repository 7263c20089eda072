//! Clients that copy a message to where it is already, or move it away and back: where the host
//! keeps the GUID, a mailbox would hold two messages that replication takes for one.

use std::time::{Duration, Instant};

use crate::harness::cluster::Cluster;
use crate::harness::{Dovecot, Format, message, until};
use crate::metrics::quiet;
use crate::workload::USER;

/// Longer than the lease: the others go on without the node that is cut off.
const PAST_THE_LEASE: Duration = Duration::from_secs(5);
/// How long the nodes may take until all say the same.
const SETTLING: Duration = Duration::from_secs(120);

/// A message: UID, XID, subject.
pub type Row = (u32, String, String);

/// The mailbox with UIDs; `None`: not all of them are stable yet.
fn rows(server: &Dovecot, user: &str, mailbox: &str) -> Option<Vec<Row>> {
    let mut client = server.try_imap(user, Duration::from_secs(60)).ok()?;
    let selected = client.try_cmd(&format!("SELECT {mailbox}")).ok()?;
    if selected.exists()? == 0 {
        return Some(Vec::new());
    }
    let items = "(UID XID BODY.PEEK[HEADER.FIELDS (SUBJECT)])";
    let reply = client.try_cmd(&format!("FETCH 1:* {items}")).ok()?;
    let row = |fetch: &crate::harness::Fetch| {
        let subject = fetch
            .text("BODY[HEADER.FIELDS (SUBJECT)]")
            .unwrap_or_default();
        Some((fetch.uid()?, fetch.xid()?, subject.trim().to_owned()))
    };
    reply
        .is_ok()
        .then(|| reply.fetches().iter().filter_map(row).collect())
}

/// Waits until all nodes show the same, and as many messages; gives them.
fn same_everywhere(cluster: &Cluster, what: &str, mailbox: &str, count: usize) -> Vec<Row> {
    users_same_everywhere(cluster, what, USER, mailbox, count)
}

/// The same for any user.
pub fn users_same_everywhere(
    cluster: &Cluster,
    what: &str,
    user: &str,
    mailbox: &str,
    count: usize,
) -> Vec<Row> {
    let end = Instant::now() + SETTLING;
    loop {
        let all: Vec<_> = (1..=cluster.nodes())
            .map(|node| rows(cluster.node(node), user, mailbox))
            .collect();
        let alike = all.iter().all(|rows| rows.is_some() && *rows == all[0]);
        if let Some(rows) = all[0].clone().filter(|rows| alike && rows.len() == count) {
            return rows;
        }
        assert!(
            Instant::now() < end,
            "{what}: {user}'s {mailbox} is {all:#?}, not {count} messages"
        );
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// No UID that was shown names another message now, and no XID is there twice.
fn insist(what: &str, before: &[Row], after: &[Row]) {
    for row in before {
        let found = after.iter().find(|now| now.0 == row.0);
        assert!(
            found.is_none_or(|now| now == row),
            "{what}: {row:?} became {found:?}"
        );
    }
    let mut xids: Vec<_> = after.iter().map(|row| &row.1).collect();
    xids.sort_unstable();
    xids.dedup();
    assert_eq!(xids.len(), after.len(), "{what}: {after:?}");
}

/// Both nodes copy the message within INBOX, whole and parted.
fn copied_within(format: Format) {
    let what = format!("copies within INBOX, {}", format.name());
    let cluster = Cluster::setup().nodes(2).format(format).start();
    cluster.node(1).append(USER, "INBOX", &message(1));
    let before = same_everywhere(&cluster, &what, "INBOX", 1);
    for node in [1, 2] {
        cluster.node(node).imap_in(USER, "INBOX").ok("COPY 1 INBOX");
        let _ = same_everywhere(&cluster, &what, "INBOX", 1 + node);
    }
    let both = same_everywhere(&cluster, &what, "INBOX", 3);
    insist(&what, &before, &both);

    cluster.net.isolate(1).expect("a partition");
    for node in [1, 2] {
        let mut client = cluster.node(node).imap_in(USER, "INBOX");
        client.ok("COPY 1 INBOX");
        client.ok("COPY 2 INBOX");
        client.append("INBOX", &message(10 + node));
    }
    std::thread::sleep(PAST_THE_LEASE);
    cluster.node(2).imap_in(USER, "INBOX").ok("COPY 1 INBOX");
    cluster.heal();
    let after = same_everywhere(&cluster, &what, "INBOX", 3 + 6 + 1);
    insist(&what, &both, &after);
}

/// A message goes to another mailbox and comes back, whole and parted.
fn moved_and_back(format: Format) {
    let what = format!("away and back, {}", format.name());
    let cluster = Cluster::setup().nodes(2).format(format).start();
    cluster.node(1).imap_in(USER, "INBOX").ok("CREATE box");
    for n in 1..=3 {
        cluster.node(1).append(USER, "INBOX", &message(n));
    }
    let before = same_everywhere(&cluster, &what, "INBOX", 3);
    until("the other node has the mailbox", || {
        rows(cluster.node(2), USER, "box").is_some()
    });
    let away_and_back = |node: usize| {
        let mut client = cluster.node(node).imap_in(USER, "INBOX");
        client.ok("MOVE 1 box");
        client.ok("SELECT box");
        client.ok("MOVE 1 INBOX");
    };
    away_and_back(1);
    let moved = same_everywhere(&cluster, &what, "INBOX", 3);
    insist(&what, &before, &moved);

    cluster.net.isolate(1).expect("a partition");
    away_and_back(1);
    away_and_back(1);
    cluster.node(2).append(USER, "INBOX", &message(4));
    std::thread::sleep(PAST_THE_LEASE);
    cluster.node(2).append(USER, "INBOX", &message(5));
    cluster.heal();
    let after = same_everywhere(&cluster, &what, "INBOX", 5);
    insist(&what, &moved, &after);
    let mut subjects: Vec<_> = after.iter().map(|row| row.2.as_str()).collect();
    subjects.sort_unstable();
    subjects.dedup();
    assert_eq!(subjects.len(), 5, "{what}: {after:?}");
    let _ = same_everywhere(&cluster, &what, "box", 0);
}

/// A node that was away joins by what another one has. What that one loses while it joins, by the very
/// expunges that it brings along, is not waited for.
#[test]
fn a_node_that_expunged_while_its_daemon_was_away_joins_again() {
    let what = "expunged while away";
    let cluster = Cluster::setup().nodes(3).start();
    for n in 1..=3 {
        cluster.node(1).append(USER, "INBOX", &message(n));
    }
    let before = same_everywhere(&cluster, what, "INBOX", 3);
    // Nobody carries the expunge anywhere, a sync that began before neither.
    quiet(&cluster);
    cluster.kill_xidd(1);
    let mut client = cluster.node(1).imap_in(USER, "INBOX");
    client.ok("STORE 2 +FLAGS.SILENT (\\Deleted)");
    client.ok("EXPUNGE");
    std::thread::sleep(PAST_THE_LEASE);
    cluster.node(2).append(USER, "INBOX", &message(4));
    // From then on nothing changes there by itself.
    for node in [2, 3] {
        until("the other nodes go on without it", || {
            rows(cluster.node(node), USER, "INBOX").is_some_and(|rows| rows.len() == 4)
        });
    }
    cluster.start_xidd(1);
    let after = same_everywhere(&cluster, what, "INBOX", 3);
    assert_eq!(after[..2], [before[0].clone(), before[2].clone()]);
}

#[test]
fn a_copy_within_a_mailbox_is_a_message_of_its_own() {
    copied_within(Format::Sdbox);
}

#[test]
fn a_copy_within_an_mdbox_mailbox_is_a_message_of_its_own() {
    copied_within(Format::Mdbox);
}

#[test]
fn a_copy_within_a_maildir_is_a_message_of_its_own() {
    copied_within(Format::Maildir);
}

#[test]
fn a_message_that_comes_back_is_there_once() {
    moved_and_back(Format::Sdbox);
}

#[test]
fn a_message_that_comes_back_to_an_mdbox_mailbox_is_there_once() {
    moved_and_back(Format::Mdbox);
}

#[test]
fn a_message_that_comes_back_to_a_maildir_is_there_once() {
    moved_and_back(Format::Maildir);
}
