//! `systemctl reload xidd`: what changed is used at once, what is wrong changes nothing, and
//! whoever writes mail meanwhile does not notice.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::harness::cluster::{Cluster, ClusterSetup, DOVEADM};
use crate::harness::{message, until};
use crate::metrics::total;
use crate::workload::{USER, conclude, meanwhile, write_by_turns};
use crate::{PAUSE, judge, observers};

/// Messages that are written while the daemons reload.
const MESSAGES: usize = 60;
/// A second place where doveadm listens on every node.
const SECOND: u16 = DOVEADM + 1;
const SECOND_LISTENERS: &str = "service doveadm {\n  inet_listener second {\n    port = 4156\n  }\n\
                                \x20 unix_listener doveadm-second {\n    mode = 0600\n  }\n}";
/// As the kernel lists sockets: established, connected.
const ESTABLISHED: &str = "01";
const CONNECTED: &str = "03";

/// Two nodes that keep their membership on a machine that is busy: only a reload could lose it.
fn two_nodes() -> ClusterSetup {
    Cluster::setup().nodes(2).lease("30s")
}

/// The same, whose doveadm services have two sockets and two ports each.
fn with_second_listeners() -> Cluster {
    assert!(SECOND_LISTENERS.contains(&SECOND.to_string()));
    two_nodes().conf(SECOND_LISTENERS).start()
}

/// A configuration that reaches the peer, and this node's own service, in the second place.
fn with_second_places(text: &str) -> String {
    text.replace(&format!(":{DOVEADM}\""), &format!(":{SECOND}\""))
        .replace("/doveadm-server\"", "/doveadm-second\"")
}

/// What the kernel says of the sockets in a node's namespace: the columns of each line.
fn sockets(cluster: &Cluster, node: usize, family: &str) -> Vec<Vec<String>> {
    let file = format!("/proc/thread-self/net/{family}");
    let text = cluster.net.inside(node, || std::fs::read_to_string(file));
    let text = text.expect("the namespace").expect("its sockets");
    let columns = |line: &str| line.split_whitespace().map(str::to_owned).collect();
    text.lines().skip(1).map(columns).collect()
}

/// Connections from a node to this port of another one.
fn connections_to(cluster: &Cluster, node: usize, ip: Ipv4Addr, port: u16) -> usize {
    let place = format!("{:08X}:{port:04X}", u32::from_le_bytes(ip.octets()));
    let lines = sockets(cluster, node, "tcp").into_iter();
    lines
        .filter(|line| line[2] == place && line[3] == ESTABLISHED)
        .count()
}

/// Connections to this socket of a node's Dovecot.
fn connections_at(cluster: &Cluster, node: usize, socket: &str) -> usize {
    let path: PathBuf = cluster.node(node).tree().join("run").join(socket);
    let path = path.display().to_string();
    let lines = sockets(cluster, node, "unix").into_iter();
    lines
        .filter(|line| line.get(7) == Some(&path) && line[5] == CONNECTED)
        .count()
}

/// A message on this node, until its UID can be used there and the other node shows it, too.
fn goes_through(cluster: &Cluster, node: usize, number: usize) {
    let mut client = cluster.node(node).imap_in(USER, "INBOX");
    client.append("INBOX", &message(number));
    let subject = format!("Subject: message {number}");
    for node in 1..=cluster.nodes() {
        let mut client = cluster.node(node).imap_in(USER, "INBOX");
        until(&format!("message {number} on node {node}"), || {
            client.ok("NOOP");
            let newest = client.cmd("FETCH * (UID BODY.PEEK[HEADER.FIELDS (SUBJECT)])");
            let shown = newest.fetches();
            let text = shown
                .last()
                .and_then(|row| row.text("BODY[HEADER.FIELDS (SUBJECT)]"));
            newest.is_ok() && text.is_some_and(|text| text.trim() == subject)
        });
    }
}

/// The membership that began at the start is the one that is in force on every node, and nobody
/// was dropped from a mailbox.
fn nothing_was_lost(cluster: &Cluster) {
    for node in 1..=cluster.nodes() {
        let log = cluster.xidd_log(node);
        assert_eq!(log.matches("in the cluster node=").count(), 1, "{log}");
        assert!(!log.contains("membership lost"), "{log}");
        assert!(cluster.is_in(node));
    }
    assert_eq!(total(cluster, "xidd_evictions_total"), 0.0);
}

#[test]
fn a_reload_is_not_noticed_by_those_who_write() {
    let cluster = with_second_listeners();
    let usual = [1, 2].map(|node| cluster.xidd_config(node));
    let observers = observers(&cluster);
    // With all nodes in each mailbox: who comes to one for the first time joins it.
    goes_through(&cluster, 1, 100_000);
    let joins = total(&cluster, "xidd_joins_total");
    let (round, refused) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let reload = || {
        let n = round.fetch_add(1, Ordering::Relaxed);
        for (node, usual) in (1..).zip(&usual) {
            let text = match n % 3 {
                0 => with_second_places(usual),
                1 => usual.replace("lease = ", "lease = 1 "),
                _ => usual.clone(),
            };
            let said = cluster.reload_xidd(node, &text);
            let wrong = said.contains("going on with the configuration as it was");
            assert_eq!(wrong, n % 3 == 1, "{said}");
            refused.fetch_add(usize::from(wrong), Ordering::Relaxed);
        }
        std::thread::sleep(PAUSE);
    };
    let mut observers = meanwhile(reload, || write_by_turns(observers, 0, MESSAGES, PAUSE));
    let rounds = round.load(Ordering::Relaxed);
    println!("{rounds} reloads of each daemon");
    assert!(rounds >= 3 && refused.load(Ordering::Relaxed) >= 2);
    for observer in &observers {
        assert_eq!(observer.refusals, Vec::<String>::new());
        let longest = observer.append_times.iter().max();
        println!("longest APPEND: {longest:?}");
    }
    judge("reloaded", &conclude(&mut observers), MESSAGES);
    nothing_was_lost(&cluster);
    assert_eq!(total(&cluster, "xidd_joins_total"), joins);
}

#[test]
fn a_reload_takes_over_where_doveadm_is_here_and_on_the_peers() {
    let cluster = with_second_listeners();
    // One of the two leads: to sync, the other's daemon asks the service of the leading one.
    let peers = || [(1, cluster.net.ip(2)), (2, cluster.net.ip(1))].into_iter();
    let to_peers = |port| -> usize {
        peers()
            .map(|(node, peer)| connections_to(&cluster, node, peer, port))
            .sum()
    };
    let here = |socket| -> usize {
        peers()
            .map(|(node, _)| connections_at(&cluster, node, socket))
            .sum()
    };
    let used = |port, socket| to_peers(port) > 0 && here(socket) > 0;
    goes_through(&cluster, 1, 0);
    goes_through(&cluster, 2, 1);
    assert!(used(DOVEADM, "doveadm-server"), "the first places are used");
    assert!(!used(SECOND, "doveadm-second"));
    for node in [1, 2] {
        let text = with_second_places(&cluster.xidd_config(node));
        let said = cluster.reload_xidd(node, &text);
        assert!(said.contains("xidd.toml: read anew\n"), "{said}");
    }
    goes_through(&cluster, 1, 2);
    goes_through(&cluster, 2, 3);
    for node in [1, 2] {
        // Who owns his mail nobody asked so far.
        cluster.node(node).append("bob", "INBOX", &message(node));
    }
    until("the second places to be used, and no other", || {
        used(SECOND, "doveadm-second") && to_peers(DOVEADM) == 0 && here("doveadm-server") == 0
    });
    nothing_was_lost(&cluster);
}

#[test]
fn a_reload_takes_over_another_password_of_the_peers() {
    let refusal = "login refused; password_file must hold its doveadm_password";
    let cluster = two_nodes().start();
    // Replication to a Dovecot that is down, or still has the old password.
    cluster.allow_log("Fatal: ");
    goes_through(&cluster, 1, 1);
    for node in [1, 2] {
        cluster.node(node).set("doveadm_password", "other");
        cluster.node(node).restart();
    }
    // Who does not lead asks the leading one to sync.
    let follower = [1, 2]
        .into_iter()
        .find(|node| cluster.xidd_log(*node).contains("in the cluster node=2 "))
        .expect("the second of the two");
    until("the old password to be refused", || {
        cluster.node(follower).append(USER, "INBOX", &message(2));
        cluster.xidd_log(follower).contains(refusal)
    });
    for node in [1, 2] {
        std::fs::write(cluster.password_file(node), "other\n").expect("the password is written");
        let text = cluster.xidd_config(node);
        let said = cluster.reload_xidd(node, &text);
        assert!(said.contains("read anew, nothing changed"), "{said}");
    }
    // What had begun before ends as it began. On the same node: one that comes meanwhile on the
    // other may have its place before those that wait.
    goes_through(&cluster, follower, 3);
    let before = cluster.xidd_log(follower).len();
    goes_through(&cluster, 2, 4);
    goes_through(&cluster, 1, 5);
    let since = cluster.xidd_log(follower).split_off(before);
    assert!(!since.contains(refusal), "{since}");
    nothing_was_lost(&cluster);
}

#[test]
fn a_wrong_configuration_is_complained_about_and_changes_nothing() {
    let cluster = two_nodes().start();
    goes_through(&cluster, 1, 1);
    let usual = cluster.xidd_config(1);
    let nowhere = usual.replace("xidd.password\"", "nowhere\"");
    for (wrong, complaint) in [
        ("", "xidd.toml: node is missing"),
        ("node = ", "xidd.toml:1: "),
        (
            &usual.replace("lease = \"30s\"", "lease = \"30\""),
            "xidd.toml:4: lease = \"30\": expected whole seconds",
        ),
        (
            &usual.replace("[doveadm]", "[doveadmin]"),
            "doveadmin: there is no such key",
        ),
        (&nowhere, "nowhere: cannot be read"),
    ] {
        let said = cluster.reload_xidd(1, wrong);
        assert!(said.contains(" ERROR "), "{said}");
        assert!(said.contains(complaint), "{complaint}: {said}");
        assert!(
            said.contains("; going on with the configuration as it was"),
            "{said}"
        );
    }
    goes_through(&cluster, 1, 2);
    goes_through(&cluster, 2, 3);
    // What cannot change in a running daemon, and what changes with its next membership.
    let other = usual
        .replace("127.0.0.1:9154", "127.0.0.1:9155")
        .replace("lease = \"30s\"", "lease = \"31s\"");
    let said = cluster.reload_xidd(1, &other);
    for part in [
        "metrics: takes a restart; as it was until then",
        "lease: from the next connection to etcd on",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert!(cluster.metrics(1).contains("xidd_member 1"));
    goes_through(&cluster, 1, 4);
    nothing_was_lost(&cluster);
}
