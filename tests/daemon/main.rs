//! The daemon on real nodes: Dovecot, etcd and xidd on each.

#[path = "../harness/mod.rs"]
mod harness;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use harness::cluster::Cluster;
use harness::{Format, Imap, message, until};

const USER: &str = "alice";

/// What a client on a node sees of INBOX once all of it is stable: UID, GUID and XID.
fn seen(cluster: &Cluster, node: usize) -> Vec<(u32, String, Option<String>)> {
    let messages = cluster.node(node).messages(USER, "INBOX");
    messages
        .into_iter()
        .map(|m| (m.uid, m.guid, m.xid))
        .collect()
}

/// Appends a message and waits until its UID can be used; gives how long the latter took.
fn append_and_use(client: &mut Imap, n: usize) -> Duration {
    assert!(client.append("INBOX", &message(n)).is_ok());
    let began = Instant::now();
    assert!(client.cmd("UID FETCH *:* (UID)").is_ok());
    began.elapsed()
}

#[test]
fn one_writer_s_messages_have_the_same_uids_on_both_nodes() {
    let cluster = Cluster::setup().nodes(2).format(Format::Sdbox).start();
    let mut client = cluster.node(1).imap_in(USER, "INBOX");
    let mut waits: Vec<Duration> = (1..=30).map(|n| append_and_use(&mut client, n)).collect();
    waits.sort();
    println!(
        "APPEND to usable UID: median {:?}, most {:?}",
        waits[15], waits[29]
    );
    until("both nodes to show the same", || {
        let (one, two) = (seen(&cluster, 1), seen(&cluster, 2));
        one.len() == 30 && one == two
    });
    let uids: BTreeSet<u32> = seen(&cluster, 1).into_iter().map(|m| m.0).collect();
    assert_eq!(uids, (1..=30).collect());
}

/// How many messages each of two writers appends.
const EACH: usize = 60;

/// Appends messages `from`..`from + EACH` with a pause, and uses the UID of each tenth; gives the
/// longest APPEND and the longest wait for a UID.
fn write(cluster: &Cluster, node: usize, from: usize, pause: Duration) -> (Duration, Duration) {
    let mut client = cluster.node(node).imap_in(USER, "INBOX");
    let (mut append, mut wait) = (Duration::ZERO, Duration::ZERO);
    for n in from..from + EACH {
        let began = Instant::now();
        assert!(client.append("INBOX", &message(n)).is_ok());
        append = append.max(began.elapsed());
        if n % 10 == 0 {
            let began = Instant::now();
            assert!(client.cmd("UID FETCH *:* (UID)").is_ok());
            wait = wait.max(began.elapsed());
        }
        std::thread::sleep(pause);
    }
    (append, wait)
}

#[test]
fn two_writers_messages_are_all_there_once_under_the_same_uids() {
    Format::ALL.into_iter().for_each(two_writers);
}

fn two_writers(format: Format) {
    let cluster = Cluster::setup().nodes(2).format(format).start();
    // Two writers collide: what would change a UID is refused, and settled by the daemons.
    cluster.allow_log("replication refused");
    cluster.allow_log("would break what the cluster agreed on");
    let pause = Duration::from_millis(50);
    let (one, two) = std::thread::scope(|scope| {
        let one = scope.spawn(|| write(&cluster, 1, 1, pause));
        let two = scope.spawn(|| write(&cluster, 2, 1001, pause));
        (one.join().expect("node 1"), two.join().expect("node 2"))
    });
    println!("{format:?}: longest APPEND and UID wait: {one:?}, {two:?}");
    until("both nodes to show the same", || {
        let (one, two) = (seen(&cluster, 1), seen(&cluster, 2));
        one.len() == 2 * EACH && one == two
    });
}

#[test]
fn a_node_that_loses_power_is_gone_on_without_and_comes_back() {
    let cluster = Cluster::setup().nodes(3).format(Format::Sdbox).start();
    // What was under way with the node that goes fails, and says so.
    cluster.allow_log("Error: ");
    // So does what finds its network back before its server listens.
    cluster.allow_log("Fatal: connect(");
    for node in 1..=3 {
        let mut client = cluster.node(node).imap_in(USER, "INBOX");
        append_and_use(&mut client, node);
    }
    let mut client = cluster.node(1).imap_in(USER, "INBOX");
    cluster.power_off(3);
    println!(
        "UID wait after the power loss: {:?}",
        append_and_use(&mut client, 4)
    );
    println!("and the next one: {:?}", append_and_use(&mut client, 5));
    until("the two that are left to show the same", || {
        let (one, two) = (seen(&cluster, 1), seen(&cluster, 2));
        one.len() == 5 && one == two
    });
    let began = Instant::now();
    cluster.power_on(3);
    until("the third to show it, too", || {
        let (one, three) = (seen(&cluster, 1), seen(&cluster, 3));
        one.len() == 5 && one == three
    });
    println!("back after {:?}", began.elapsed());
}

#[test]
fn what_is_written_on_both_sides_of_a_partition_is_all_there_once_afterwards() {
    let cluster = Cluster::setup().nodes(3).format(Format::Sdbox).start();
    // What was under way over the links that are cut fails, and says so.
    cluster.allow_log("Error: ");
    let mut one = cluster.node(1).imap_in(USER, "INBOX");
    append_and_use(&mut one, 1);
    until("the third to show it", || seen(&cluster, 3).len() == 1);
    cluster.net.partition(&[1, 2], &[3]).expect("links are cut");
    for n in 2..=6 {
        assert!(one.append("INBOX", &message(n)).is_ok());
        let mut three = cluster.node(3).imap_in(USER, "INBOX");
        assert!(three.append("INBOX", &message(100 + n)).is_ok());
    }
    assert!(one.cmd("UID FETCH *:* (UID)").is_ok(), "two of three go on");
    let before = seen(&cluster, 1);
    assert_eq!(before.len(), 6);
    cluster.heal();
    until("all nodes to show all of it once", || {
        let (one, two, three) = (seen(&cluster, 1), seen(&cluster, 2), seen(&cluster, 3));
        one.len() == 11 && one == two && one == three
    });
    assert_eq!(seen(&cluster, 1)[..6], before, "what was shown stays");
}

#[test]
fn flags_and_new_mailboxes_reach_the_other_node() {
    let cluster = Cluster::setup().nodes(2).format(Format::Sdbox).start();
    let mut one = cluster.node(1).imap_in(USER, "INBOX");
    append_and_use(&mut one, 1);
    until("the second to show it", || seen(&cluster, 2).len() == 1);
    let mut two = cluster.node(2).imap_in(USER, "INBOX");
    two.ok("STORE 1 +FLAGS (\\Flagged)");
    two.ok("CREATE Work");
    until("the flag to arrive", || {
        let flagged = one.ok("SEARCH FLAGGED").search_numbers();
        flagged == [1]
    });
    until("the mailbox to arrive", || {
        one.ok("LIST \"\" Work").untagged("LIST").len() == 1
    });
}

/// Such a user is on no node's list: Dovecot cannot list users here, and etcd has no record of a
/// mailbox without mail.
#[test]
fn a_new_disk_gets_the_mailboxes_of_users_without_mail() {
    let cluster = Cluster::setup().nodes(2).format(Format::Sdbox).start();
    let mut one = cluster.node(1).imap_in(USER, "INBOX");
    one.ok("CREATE Work");
    let there = || {
        let mut two = cluster.node(2).imap(USER);
        two.ok("LIST \"\" Work").untagged("LIST").len() == 1
    };
    until("the mailbox to arrive", there);
    cluster.replace_disk(2);
    assert!(!there(), "the disk is new");
    cluster.start_xidd(2);
    cluster.wait_node_in(2);
    until("the mailbox to be back", there);
}
