//! What an operator does where nodes are gone, on a real cluster.

use crate::harness::cluster::Cluster;
use crate::harness::{Output, message, until};

const USER: &str = "alice";

/// `xidctl cluster` on a node.
fn xidctl(cluster: &Cluster, node: usize, args: &[&str]) -> Output {
    let server = cluster.node(node);
    let xidd = server.tree().join("xidd.toml").display().to_string();
    let mut all = vec!["cluster", "--xidd", &xidd];
    all.extend(args);
    server.xidctl(&all)
}

fn status(cluster: &Cluster, node: usize) -> String {
    xidctl(cluster, node, &["status", "-u", USER]).stdout
}

/// The messages of a node's INBOX, by the numbers in their subjects, with duplicates.
fn numbers(cluster: &Cluster, node: usize) -> Vec<usize> {
    let query = [
        "fetch",
        "-u",
        USER,
        "hdr.subject",
        "mailbox",
        "INBOX",
        "all",
    ];
    let fetched = cluster.node(node).doveadm_ok(&query);
    let subjects = fetched
        .lines()
        .filter_map(|line| line.rsplit_once("message "));
    let mut numbers: Vec<usize> = subjects
        .filter_map(|(_, n)| n.trim().parse().ok())
        .collect();
    numbers.sort_unstable();
    numbers
}

/// Whether all that is on this node has a UID that the cluster agreed on.
fn is_stable(cluster: &Cluster, node: usize) -> bool {
    let pending = ["xid", "pending", "-u", USER];
    cluster.node(node).doveadm_ok(&pending).trim() == "{\"boxes\":[]}"
}

fn wait_for(cluster: &Cluster, nodes: &[usize], wanted: &[usize]) {
    for node in nodes {
        until(&format!("{wanted:?} to be stable on node {node}"), || {
            numbers(cluster, *node) == wanted && is_stable(cluster, *node)
        });
    }
}

fn append(cluster: &Cluster, node: usize, number: usize) {
    cluster.node(node).append(USER, "INBOX", &message(number));
}

/// INBOX is there first: where a client and replication make it at once, stock Dovecot's locks can
/// clash.
fn start() -> Cluster {
    let cluster = Cluster::setup().nodes(3).start();
    for node in 1..=3 {
        cluster.node(node).imap_in(USER, "INBOX");
    }
    append(&cluster, 1, 11);
    wait_for(&cluster, &[1, 2, 3], &[11]);
    cluster
}

#[test]
fn where_all_holders_are_lost_a_node_can_be_forced_to_go_on() {
    let cluster = start();
    // Replication that is under way when a Dovecot dies finds nobody there.
    cluster.allow_log("failed: Connection refused");
    cluster.stop_xidd(3);
    append(&cluster, 1, 12);
    append(&cluster, 2, 13);
    wait_for(&cluster, &[1, 2], &[11, 12, 13]);
    for node in [1, 2] {
        cluster.kill_xidd(node);
        cluster.node(node).crash();
    }
    cluster.start_xidd(3);
    cluster.wait_node_in(3);
    append(&cluster, 3, 31);
    until("the others' leases to end", || {
        status(&cluster, 3).matches("NOT ALIVE").count() == 2
    });
    let shown = status(&cluster, 3);
    let agreed = shown.split("stable up to UID ").nth(1);
    let agreed = agreed.and_then(|rest| rest.strip_suffix(", held by n1, n2\n"));
    let agreed: u32 = agreed.and_then(|uid| uid.parse().ok()).expect(&shown);
    assert!(
        agreed > 3,
        "the survivors number above what node 3 may have given out"
    );
    assert!(!is_stable(&cluster, 3), "it goes on without those who know");

    let force = |more: &[&str]| {
        let mut args = vec!["force", "-u", USER, "-m", "INBOX", "--as-holder"];
        args.extend(more);
        xidctl(&cluster, 3, &args)
    };
    let elsewhere = force(&["n1", "--i-know-what-may-be-lost"]);
    assert!(elsewhere.stderr.contains("run it on n1"), "{elsewhere:?}");
    let unsaid = force(&["n3"]);
    assert_eq!(unsaid.code, 1, "{unsaid:?}");
    for part in [
        &format!("All holders (n1, n2) are dead. They had agreed on all up to UID {agreed}"),
        &format!("Messages from UID 2 to {agreed}, which clients may have seen, are lost unless"),
        "1 messages of this node get new UIDs",
        "nothing was changed",
    ] {
        assert!(unsaid.stderr.contains(part), "{part}: {unsaid:?}");
    }
    assert!(!is_stable(&cluster, 3));
    let forced = force(&["n3", "--i-know-what-may-be-lost", "--json"]);
    assert_eq!(forced.code, 0, "{forced:?}");
    let said: serde_json::Value = serde_json::from_str(&forced.stdout).expect("JSON");
    assert_eq!(said["lost_holders"], serde_json::json!(["n1", "n2"]));
    assert_eq!(
        (&said["before"], &said["stable_uid"]),
        (&agreed.into(), &1.into())
    );
    wait_for(&cluster, &[3], &[11, 31]);
    let again = force(&["n3", "--i-know-what-may-be-lost"]);
    assert!(
        again.stderr.contains("n3 holds it and is alive"),
        "{again:?}"
    );

    // The lost ones come back all the same: nothing that was acknowledged is gone.
    for node in [1, 2] {
        cluster.node(node).start_again();
        cluster.start_xidd(node);
    }
    wait_for(&cluster, &[1, 2, 3], &[11, 12, 13, 31]);
}

#[test]
fn a_node_that_only_stopped_is_not_forced() {
    let cluster = start();
    for node in 1..=3 {
        cluster.stop_xidd(node);
    }
    let args = ["force", "-u", USER, "-m", "INBOX", "--as-holder", "n2"];
    let refused = xidctl(&cluster, 2, &args);
    assert!(
        refused
            .stderr
            .contains("this node holds it: start its xidd"),
        "{refused:?}"
    );
    let members = xidctl(&cluster, 2, &["members"]).stdout;
    assert_eq!(members.matches("NOT ALIVE").count(), 3, "{members}");
    // The first endpoint of node 1 is its own.
    cluster.etcd.crash(0);
    until("the others to lead", || {
        xidctl(&cluster, 1, &["members"]).stdout == members
    });
    cluster.etcd.crash(1);
    let silent = xidctl(&cluster, 1, &["status"]);
    assert_eq!((silent.code, silent.stdout.as_str()), (1, ""), "{silent:?}");
    assert_eq!(silent.stderr.matches("http://").count(), 3, "{silent:?}");
}

#[test]
fn an_evicted_node_comes_back_and_what_is_deleted_everywhere_is_forgotten() {
    let cluster = start();
    let alive = xidctl(&cluster, 1, &["evict", "n3"]);
    assert!(alive.stderr.contains("n3 is alive"), "{alive:?}");
    assert_eq!(cluster.stop_xidd(3), Some(0));
    let evicted = xidctl(&cluster, 1, &["evict", "n3", "--json"]);
    assert_eq!(evicted.stdout.trim(), "{\"evicted\":\"n3\"}", "{evicted:?}");
    append(&cluster, 2, 21);
    wait_for(&cluster, &[1, 2], &[11, 21]);
    let shown = status(&cluster, 2);
    assert!(shown.contains("namespace n3, evicted"), "{shown}");
    assert!(shown.contains("held by n1, n2"), "{shown}");
    let forget = |more: &[&str]| {
        let mut args = vec!["forget"];
        args.extend(more);
        xidctl(&cluster, 1, &args)
    };
    let unsure = forget(&[]);
    assert!(
        unsure.stderr.contains("n3 evicted, and may come back"),
        "{unsure:?}"
    );
    append(&cluster, 3, 31);
    cluster.start_xidd(3);
    wait_for(&cluster, &[1, 2, 3], &[11, 21, 31]);

    let kept = forget(&["--dry-run"]);
    assert_eq!(
        kept.stdout.trim(),
        "0 would be forgotten, 1 kept",
        "{kept:?}"
    );
    let server = cluster.node(1);
    server.doveadm_ok(&["mailbox", "create", "-u", USER, "Old"]);
    server.append(USER, "Old", &message(1));
    let has = |node: usize, name: &str| {
        let list = cluster
            .node(node)
            .doveadm_ok(&["mailbox", "list", "-u", USER]);
        list.lines().any(|line| line == name)
    };
    until("the new mailbox to be recorded and everywhere", || {
        status(&cluster, 1).matches("stable up to").count() == 2
            && (1..=3).all(|node| has(node, "Old") && is_stable(&cluster, node))
    });
    cluster.stop_xidd(3);
    server.doveadm_ok(&["mailbox", "delete", "-u", USER, "Old"]);
    until("the others to delete it", || !has(2, "Old"));
    let away = forget(&[]);
    assert_eq!(away.code, 1, "{away:?}");
    assert!(away.stderr.contains("away: n3"), "{away:?}");
    cluster.start_xidd(3);
    cluster.wait_node_in(3);
    until("the last one to delete it", || !has(3, "Old"));
    let mut forgotten = forget(&[]);
    until("a moment without a change", || {
        if !forgotten.stdout.contains("1 forgotten, 1 kept") {
            forgotten = forget(&[]);
        }
        forgotten.stdout.contains("1 forgotten, 1 kept")
    });
    assert!(forgotten.stdout.contains("alice "), "{forgotten:?}");
    let shown = status(&cluster, 3);
    assert_eq!(shown.matches("stable up to").count(), 1, "{shown}");
    wait_for(&cluster, &[1, 2, 3], &[11, 21, 31]);
    for node in 1..=3 {
        let log = cluster.node(node).log();
        assert!(!log.contains("no such mailbox"), "node {node}: {log}");
    }
}
