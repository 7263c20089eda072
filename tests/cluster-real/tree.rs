//! Mailboxes that are made, renamed, deleted and subscribed to on one node while another writes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Barrier;
use std::time::{Duration, Instant};

use crate::harness::cluster::Cluster;
use crate::harness::{Dovecot, Fetch, Format, Imap, LIMIT, message, until};
use crate::workload::USER;

/// How long the nodes may take until all say the same.
const SETTLING: Duration = Duration::from_secs(120);
/// Between two messages of a client that goes on and on.
const PAUSE: Duration = Duration::from_millis(40);
/// Lines with errors that a settled cluster may still log while it takes a few messages.
const LAST_ERRORS: usize = 3;

/// A message: UID, XID, subject.
pub type Row = (u32, String, String);
/// Mailboxes with their messages, without INBOX.
type Tree = BTreeMap<String, Vec<Row>>;

fn names(client: &mut Imap, command: &str) -> BTreeSet<String> {
    let listed = client.ok(&format!("{command} \"\" *"));
    let lines = listed.untagged(command).into_iter();
    let names = lines.filter_map(|line| {
        let text = line.text().into_owned();
        let name = text.trim_end().rsplit(' ').next()?;
        Some(name.trim_matches('"').to_owned())
    });
    names.filter(|name| name != "INBOX").collect()
}

/// What a client saw of a mailbox: UIDVALIDITY, and the messages with their UIDs.
#[derive(Clone, PartialEq, Debug)]
pub struct Seen {
    pub uidvalidity: String,
    pub rows: Vec<Row>,
}

/// `None`: not all of it is stable yet, or it was renamed under the client's eyes.
pub fn look(server: &Dovecot, mailbox: &str) -> Option<Seen> {
    let mut client = server.try_imap(USER, Duration::from_secs(60)).ok()?;
    let selected = client.try_cmd(&format!("SELECT {mailbox}")).ok()?;
    let uidvalidity = selected.untagged_code("UIDVALIDITY")?;
    if selected.exists()? == 0 {
        let rows = Vec::new();
        return Some(Seen { uidvalidity, rows });
    }
    let items = "(UID XID BODY.PEEK[HEADER.FIELDS (SUBJECT)])";
    let reply = client.try_cmd(&format!("FETCH 1:* {items}")).ok()?;
    let row = |fetch: Fetch| {
        let subject = fetch.text("BODY[HEADER.FIELDS (SUBJECT)]")?;
        Some((fetch.uid()?, fetch.xid()?, subject.trim().to_owned()))
    };
    let rows = reply.is_ok().then(|| reply.fetches().into_iter());
    let rows = rows?.filter_map(row).collect();
    Some(Seen { uidvalidity, rows })
}

/// `None`: not all is stable yet.
fn tree(cluster: &Cluster, node: usize) -> Option<Tree> {
    let server = cluster.node(node);
    let names = names(&mut server.imap(USER), "LIST").into_iter();
    names
        .map(|name| look(server, &name).map(|seen| (name, seen.rows)))
        .collect()
}

/// Waits until all nodes show the same, and that it is what is wanted.
fn same_tree(cluster: &Cluster, what: &str, wanted: impl Fn(&Tree) -> bool) -> Tree {
    let end = Instant::now() + SETTLING;
    loop {
        let trees: Vec<_> = (1..=cluster.nodes()).map(|n| tree(cluster, n)).collect();
        let alike = trees.iter().all(|tree| tree.is_some() && *tree == trees[0]);
        if let Some(tree) = trees[0].clone().filter(|tree| alike && wanted(tree)) {
            return tree;
        }
        assert!(Instant::now() < end, "{what}: {trees:#?}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// The subjects of all messages, each as often as it is there.
fn subjects(tree: &Tree) -> Vec<String> {
    let rows = tree.values().flatten();
    let mut all: Vec<String> = rows.map(|row| row.2.clone()).collect();
    all.sort_unstable();
    all
}

fn expected(numbers: impl IntoIterator<Item = usize>) -> Vec<String> {
    let numbers = numbers.into_iter();
    let mut all: Vec<String> = numbers.map(|n| format!("Subject: message {n}")).collect();
    all.sort_unstable();
    all
}

fn errors(cluster: &Cluster) -> usize {
    let is_error = |line: &&str| line.contains("Error: ") || line.contains(" WARN ");
    let logs = (1..=cluster.nodes()).flat_map(|n| [cluster.node(n).log(), cluster.xidd_log(n)]);
    logs.map(|log| log.lines().filter(is_error).count()).sum()
}

/// The mailbox goes on everywhere, and nobody complains again and again.
fn goes_on(cluster: &Cluster, what: &str, mailbox: &str) {
    let in_it = |tree: &Tree| tree.get(mailbox).map_or(0, Vec::len);
    let count = in_it(&same_tree(cluster, what, |tree| tree.contains_key(mailbox)));
    let before = errors(cluster);
    for node in 1..=cluster.nodes() {
        let server = cluster.node(node);
        server.append(USER, mailbox, &message(900 + node));
        same_tree(cluster, what, |tree| in_it(tree) == count + node);
    }
    let more = errors(cluster) - before;
    println!("{what}: {before} errors, {more} afterwards");
    assert!(more <= LAST_ERRORS, "{what}: {more} more errors");
}

/// Where a mailbox is renamed or deleted under an APPEND, stock Dovecot's imap process can crash: the
/// message was not acknowledged, and the client logs in again.
fn allow_crashes(cluster: &Cluster) {
    cluster.allow_log("dbox_file_seek");
    cluster.allow_log("killed with signal 6");
    cluster.allow_log("killed with signal 11");
}

/// Appends a message; whether it was acknowledged.
fn is_taken(cluster: &Cluster, node: usize, mailbox: &str, number: usize) -> bool {
    let mut client = cluster.node(node).imap(USER);
    let reply = client.try_append(mailbox, &message(number));
    reply.is_ok_and(|reply| reply.is_ok())
}

/// What a client did with a mailbox that it made.
struct Made {
    /// The numbers of its messages.
    taken: Vec<usize>,
    /// XIDs by subject, whoever wrote the message, as often as it looked.
    named: Vec<(String, String)>,
    /// What it saw at the end.
    seen: Option<Seen>,
}

/// XIDs by subject: a client is told them at once.
fn xids(server: &Dovecot, mailbox: &str) -> Vec<(String, String)> {
    let mut client = server.imap(USER);
    // It may be made another one at this moment.
    if !client.cmd(&format!("SELECT {mailbox}")).is_ok() {
        return Vec::new();
    }
    let reply = client.cmd("FETCH 1:* (XID BODY.PEEK[HEADER.FIELDS (SUBJECT)])");
    let named = reply.fetches().into_iter().filter_map(|fetch| {
        let subject = fetch.text("BODY[HEADER.FIELDS (SUBJECT)]")?;
        Some((subject.trim().to_owned(), fetch.xid()?))
    });
    named.collect()
}

/// Makes a mailbox, puts two messages in and looks at it; it may become another one under the eyes
/// of the client.
fn make(cluster: &Cluster, node: usize, mailbox: &str, number: usize) -> Made {
    let server = cluster.node(node);
    // The other node's may be here already.
    let _ = server.imap(USER).cmd(&format!("CREATE {mailbox}"));
    let (mut next, mut taken, mut named) = (number, Vec::new(), Vec::new());
    until("a mailbox of that name", || {
        // What was not acknowledged may be there or not.
        if is_taken(cluster, node, mailbox, next) {
            taken.push(next);
            named.extend(xids(server, mailbox));
        }
        next += 1;
        taken.len() == 2
    });
    let seen = look(server, mailbox);
    Made { taken, named, seen }
}

/// A message has the XID under which any client ever saw it.
fn keeps_xids(what: &str, tree: &Tree, named: &[(String, String)]) {
    for (subject, xid) in named {
        let mut rows = tree.values().flatten();
        let now = rows.find(|row| row.2 == *subject).map(|row| &row.1);
        assert!(
            now.is_none_or(|now| now == xid),
            "{what}: {subject} was {xid} and is {now:?}"
        );
    }
}

/// Everything that was acknowledged is there, and nothing is there twice.
fn holds(tree: &Tree, taken: &[usize]) -> bool {
    let found = subjects(tree);
    let acknowledged = expected(taken.iter().copied());
    found.windows(2).all(|pair| pair[0] != pair[1])
        && acknowledged
            .iter()
            .all(|one| found.binary_search(one).is_ok())
}

/// Under the UIDVALIDITY that a client saw, each UID names the message that it saw.
fn still_true(cluster: &Cluster, node: usize, mailbox: &str, seen: &Seen) {
    let now = look(cluster.node(node), mailbox).expect("it is stable");
    let same = now.uidvalidity == seen.uidvalidity;
    for row in seen.rows.iter().filter(|_| same) {
        let found = now.rows.iter().find(|found| found.0 == row.0);
        assert_eq!(found, Some(row), "node {node}, {mailbox}");
    }
}

/// All nodes make mailboxes of the same names at the same moments.
fn made_at_once(format: Format) {
    const ROUNDS: usize = 2;
    let what = format!("made at once, {}", format.name());
    let cluster = Cluster::setup().nodes(3).format(format).start();
    cluster.allow_log("until its new name is replicated");
    cluster.allow_log("it is another mailbox by now");
    // A sync that opened the mailbox before it became another one, and looks for its place after.
    cluster.allow_log("open it again");
    allow_crashes(&cluster);
    for node in 1..=3 {
        cluster.node(node).imap_in(USER, "INBOX");
    }
    let (mut seen, mut taken, mut named) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let (mailbox, barrier) = (format!("box{round}"), Barrier::new(3));
        std::thread::scope(|scope| {
            let threads = [1, 2, 3].map(|node| {
                let (cluster, mailbox, barrier) = (&cluster, &mailbox, &barrier);
                scope.spawn(move || {
                    barrier.wait();
                    make(cluster, node, mailbox, 10_000 * round + 1000 * node)
                })
            });
            for (index, thread) in threads.into_iter().enumerate() {
                let made = thread.join().expect("a client");
                taken.extend(made.taken);
                named.extend(made.named);
                seen.extend(made.seen.map(|seen| (index + 1, mailbox.clone(), seen)));
            }
        });
    }
    let tree = same_tree(&cluster, &what, |tree| holds(tree, &taken));
    let names: Vec<_> = tree.keys().collect();
    assert_eq!(names, ["box0", "box1"], "{what}");
    keeps_xids(&what, &tree, &named);
    for (node, mailbox, seen) in &seen {
        still_true(&cluster, *node, mailbox, seen);
    }
    goes_on(&cluster, &what, "box0");
}

#[test]
fn mailboxes_of_one_name_made_at_once_on_three_nodes_lose_and_double_nothing() {
    made_at_once(Format::Sdbox);
}

#[test]
fn mdbox_mailboxes_of_one_name_made_at_once_lose_and_double_nothing() {
    made_at_once(Format::Mdbox);
}

#[test]
fn maildirs_of_one_name_made_at_once_lose_and_double_nothing() {
    made_at_once(Format::Maildir);
}

/// One mailbox that is on both nodes, with a message of each.
fn with_box(format: Format, what: &str, mailbox: &str) -> Cluster {
    let cluster = Cluster::setup().nodes(2).format(format).start();
    cluster.allow_log("until its new name is replicated");
    allow_crashes(&cluster);
    // As for every cluster of these tests.
    cluster.node(2).imap_in(USER, "INBOX");
    let mut one = cluster.node(1).imap_in(USER, "INBOX");
    one.ok(&format!("CREATE {mailbox}"));
    one.append(mailbox, &message(1));
    same_tree(&cluster, what, |tree| tree.contains_key(mailbox));
    cluster.node(2).append(USER, mailbox, &message(2));
    same_tree(&cluster, what, |tree| subjects(tree).len() == 2);
    cluster
}

/// Appends messages from `number` on until there is no such mailbox; gives the numbers of those
/// that were acknowledged.
fn append_until_gone(client: &mut Imap, mailbox: &str, mut number: usize) -> Vec<usize> {
    let (end, mut taken) = (Instant::now() + LIMIT, Vec::new());
    // A lost connection is as good as a NO.
    while let Ok(reply) = client.try_append(mailbox, &message(number)) {
        if !reply.is_ok() {
            // It goes at the very moment: mdbox says SERVERBUG in place of TRYCREATE.
            assert!(!reply.text.contains("UNAVAILABLE"), "{reply:?}");
            break;
        }
        assert!(Instant::now() < end, "{mailbox} is still there");
        taken.push(number);
        number += 1;
        std::thread::sleep(PAUSE);
    }
    taken
}

/// A mailbox is renamed on one node while a client on the other appends to it.
fn renamed_while_written(format: Format) {
    let what = format!("renamed while written, {}", format.name());
    let cluster = with_box(format, &what, "old");
    let barrier = Barrier::new(2);
    let mut taken = std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut client = cluster.node(2).imap(USER);
            client.append("old", &message(3));
            barrier.wait();
            let taken = append_until_gone(&mut client, "old", 10);
            until("the new name", || is_taken(&cluster, 2, "new", 4));
            taken
        });
        barrier.wait();
        cluster.node(1).imap(USER).ok("RENAME old new");
        cluster.node(1).append(USER, "new", &message(5));
        writer.join().expect("the writer")
    });
    taken.extend(1..=5);
    let tree = same_tree(&cluster, &what, |tree| holds(tree, &taken));
    assert_eq!(tree.keys().collect::<Vec<_>>(), ["new"], "{what}");
    goes_on(&cluster, &what, "new");
}

#[test]
fn a_mailbox_that_is_renamed_while_the_other_node_writes_keeps_every_message_once() {
    renamed_while_written(Format::Sdbox);
}

#[test]
fn an_mdbox_mailbox_that_is_renamed_while_written_keeps_every_message_once() {
    renamed_while_written(Format::Mdbox);
}

#[test]
fn a_maildir_that_is_renamed_while_written_keeps_every_message_once() {
    renamed_while_written(Format::Maildir);
}

/// A mailbox is deleted on one node while a client on the other appends to it, and is made again.
fn deleted_while_written(format: Format) {
    let what = format!("deleted while written, {}", format.name());
    let cluster = with_box(format, &what, "box");
    let barrier = Barrier::new(2);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut client = cluster.node(2).imap(USER);
            client.append("box", &message(3));
            barrier.wait();
            append_until_gone(&mut client, "box", 10);
        });
        barrier.wait();
        let mut one = cluster.node(1).imap(USER);
        // Where a message comes at that moment, stock refuses.
        until("it is deleted", || one.cmd("DELETE box").is_ok());
    });
    same_tree(&cluster, &what, Tree::is_empty);
    let mut two = cluster.node(2).imap(USER);
    // A sync that began before may make it once more, for a moment.
    until("it can be made again", || two.cmd("CREATE box").is_ok());
    two.append("box", &message(5));
    same_tree(&cluster, &what, |tree| subjects(tree) == expected([5]));
    goes_on(&cluster, &what, "box");
}

#[test]
fn a_mailbox_that_is_deleted_while_the_other_node_writes_is_gone_and_can_be_made_again() {
    deleted_while_written(Format::Sdbox);
}

#[test]
fn an_mdbox_mailbox_that_is_deleted_while_written_can_be_made_again() {
    deleted_while_written(Format::Mdbox);
}

#[test]
fn a_maildir_that_is_deleted_while_written_can_be_made_again() {
    deleted_while_written(Format::Maildir);
}

#[test]
fn subscriptions_reach_the_other_node_while_it_writes() {
    let what = "subscribed while written";
    let cluster = with_box(Format::Sdbox, what, "box");
    let (mut one, mut two) = (cluster.node(1).imap(USER), cluster.node(2).imap(USER));
    let mut number = 2;
    for (command, count) in [("SUBSCRIBE", 1), ("UNSUBSCRIBE", 0), ("SUBSCRIBE", 1)] {
        one.ok(&format!("{command} box"));
        until("the subscription on the other node", || {
            number += 1;
            two.append("box", &message(number));
            names(&mut two, "LSUB").len() == count
        });
        // Replication tells changes of one second apart by nothing.
        let second = now_in_seconds();
        until("the next second", || now_in_seconds() > second);
    }
    let all = expected(1..=number);
    same_tree(&cluster, what, |tree| subjects(tree) == all);
    assert_eq!(names(&mut one, "LSUB"), BTreeSet::from(["box".to_owned()]));
    goes_on(&cluster, what, "box");
}

fn now_in_seconds() -> u64 {
    let since = std::time::UNIX_EPOCH.elapsed();
    since.expect("a clock that is set").as_secs()
}
