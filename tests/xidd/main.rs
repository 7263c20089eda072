//! xidd from outside: how it starts, what it tells the service manager, how it ends.

mod daemon;
#[path = "../harness/mod.rs"]
mod harness;
mod operator;
mod peer;
mod tls;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;

use daemon::{Daemon, Scene, XIDD, free_port};
use harness::{Dovecot, etcd::Etcd, until};
use peer::Peer;

/// A question about a user's mail.
fn question(user: &str) -> String {
    format!("X\t{user}\t{}\tINBOX\tg1", "0".repeat(32))
}

#[test]
fn it_says_its_version() {
    let output = Command::new(XIDD).arg("--version").output().expect("xidd");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(text.trim(), format!("xidd {}", env!("CARGO_PKG_VERSION")));
}

#[test]
fn a_configuration_can_be_checked_without_starting_anything() {
    let scene = Scene::new();
    let check = || {
        let mut command = Command::new(XIDD);
        command.arg("--check").arg("-c").arg(scene.config());
        command.output().expect("xidd")
    };
    scene.write(&scene.usual());
    let right = check();
    assert_eq!(right.status.code(), Some(0), "{right:?}");
    assert!(String::from_utf8_lossy(&right.stdout).contains("right"));
    assert!(!scene.socket().exists());
    scene.write(&scene.usual().replace("lease = \"60s\"", "lease = 60"));
    let wrong = check();
    assert_eq!(wrong.status.code(), Some(78), "{wrong:?}");
    let text = String::from_utf8_lossy(&wrong.stderr).into_owned();
    assert!(
        text.contains("xidd.toml:2: lease = 60: expected whole seconds"),
        "{text}"
    );
}

#[test]
fn a_wrong_configuration_is_not_started_and_not_tried_again() {
    let scene = Scene::new();
    for (text, part) in [
        (None, "cannot be read"),
        (
            Some(format!("windw = 5\n{}", scene.usual())),
            "there is no such key",
        ),
        (
            Some(format!(
                "{}[doveadm]\npassword_file = \"/no/where\"\n",
                scene.usual()
            )),
            "/no/where: cannot be read",
        ),
    ] {
        if let Some(text) = text {
            scene.write(&text);
        }
        let mut daemon = Daemon::start(&scene);
        assert_eq!(daemon.exit_code(), Some(78));
        assert!(daemon.log().contains(part), "{part}: {}", daemon.log());
    }
}

#[test]
fn it_tells_the_service_manager_what_it_does() {
    let (etcd, scene) = (Etcd::start(), Scene::new());
    scene.write(&scene.with_etcd(&etcd));
    let mut daemon = Daemon::start(&scene);
    daemon.told("READY=1");
    daemon.told("WATCHDOG=1");
    daemon.told("STATUS=");
    daemon.signal(libc::SIGHUP);
    daemon.told("RELOADING=1");
    daemon.told("MONOTONIC_USEC=");
    daemon.told("READY=1");
    daemon.signal(libc::SIGTERM);
    daemon.told("STOPPING=1");
    assert_eq!(daemon.exit_code(), Some(0));
    assert!(!scene.socket().exists(), "its socket is left behind");
}

#[test]
fn under_the_journal_a_line_begins_with_its_level() {
    let scene = Scene::new();
    let mut daemon = Daemon::start_with(&scene, &[("JOURNAL_STREAM", "8:1")]);
    assert_eq!(daemon.exit_code(), Some(78));
    assert!(daemon.log().starts_with("<3>"), "{}", daemon.log());
}

#[test]
fn without_etcd_it_starts_all_the_same_and_says_that_it_is_cut_off() {
    let scene = Scene::new();
    scene.write(&scene.usual());
    let mut daemon = Daemon::start(&scene);
    daemon.told("READY=1");
    daemon.told("cut off");
    let peer = Peer::connect(&scene.socket());
    peer.send(b"S");
    assert_eq!(peer.receive().as_deref(), Some("S\tcut"));
    daemon.signal(libc::SIGINT);
    assert_eq!(daemon.exit_code(), Some(0));
}

#[test]
fn a_second_one_leaves_the_first_one_s_socket_alone() {
    let scene = Scene::new();
    scene.write(&scene.usual());
    let mut first = Daemon::start(&scene);
    first.told("READY=1");
    let mut second = Daemon::start(&scene);
    assert_eq!(second.exit_code(), Some(1));
    assert!(second.log().contains("another xidd"), "{}", second.log());
    let peer = Peer::connect(&scene.socket());
    peer.send(b"S");
    assert_eq!(peer.receive().as_deref(), Some("S\tcut"));
    first.signal(libc::SIGKILL);
    first.exit_code();
    let mut third = Daemon::start(&scene);
    third.told("READY=1");
    assert!(third.stop(), "{}", third.log());
}

#[test]
fn the_service_manager_s_socket_is_served_and_left_to_it() {
    let scene = Scene::new();
    scene.write(&scene.usual());
    let mut daemon = Daemon::start_with_socket(&scene);
    daemon.told("READY=1");
    let peer = Peer::connect(&scene.socket());
    peer.send(b"S");
    assert_eq!(peer.receive().as_deref(), Some("S\tcut"));
    assert!(daemon.stop(), "{}", daemon.log());
    assert!(scene.socket().exists(), "it is the manager's, not ours");
}

#[test]
fn a_reload_takes_over_what_is_right_and_keeps_the_rest() {
    let scene = Scene::new();
    scene.write(&scene.usual());
    let mut daemon = Daemon::start(&scene);
    daemon.told("READY=1");
    let reload = |daemon: &mut Daemon, text: &str| {
        scene.write(text);
        daemon.signal(libc::SIGHUP);
        daemon.told("RELOADING=1");
        daemon.told("READY=1");
    };
    reload(&mut daemon, &scene.usual().replace("60s", "sixty"));
    until("the complaint", || {
        daemon
            .log()
            .contains("going on with the configuration as it was")
    });
    assert!(
        daemon.log().contains("lease = \"sixty\""),
        "{}",
        daemon.log()
    );
    let other_node = scene.usual().replace("\"alpha\"", "\"omega\"");
    reload(&mut daemon, &other_node);
    until("the refusal", || {
        daemon.log().contains("node, namespace: takes a restart")
    });
    reload(&mut daemon, &scene.usual().replace("60s", "61s"));
    until("the change", || daemon.log().contains("read anew\n"));
    let peer = Peer::connect(&scene.socket());
    peer.send(b"S");
    assert!(peer.receive().is_some());
    assert!(daemon.stop(), "{}", daemon.log());
}

#[test]
fn metrics_can_be_scraped() {
    let scene = Scene::new();
    let port = free_port();
    let address = format!("127.0.0.1:{port}");
    let with = format!("metrics = \"{address}\"\n");
    scene.write(&scene.usual().replace("metrics = \"off\"\n", &with));
    let mut daemon = Daemon::start(&scene);
    daemon.told("READY=1");
    let scrape = || {
        let mut stream = TcpStream::connect(&address).ok()?;
        stream
            .write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
            .ok()?;
        stream.shutdown(std::net::Shutdown::Write).ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        Some(text)
    };
    let mut text = String::new();
    until("a scrape", || {
        text = scrape().unwrap_or_default();
        text.ends_with("# EOF\n")
    });
    assert!(text.contains("node=\"alpha\""), "{text}");
    assert!(text.contains("\nxidd_member 0"), "{text}");
    assert!(text.contains("\nxidd_lag_seconds 0"), "{text}");
    assert!(daemon.stop(), "{}", daemon.log());
}

#[test]
fn a_taken_metrics_address_stops_nothing() {
    let scene = Scene::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("bound");
    let with = format!("metrics = \"{address}\"\n");
    scene.write(&scene.usual().replace("metrics = \"off\"\n", &with));
    let mut daemon = Daemon::start(&scene);
    daemon.told("READY=1");
    until("the complaint", || {
        daemon.log().contains("tried again until it is free")
    });
    assert!(daemon.stop(), "{}", daemon.log());
}

#[test]
fn who_owns_the_mail_is_asked_of_dovecot() {
    let (server, scene) = (Dovecot::setup().plugin(false).start(), Scene::new());
    scene.write(&format!(
        "{}\n[doveadm]\nsocket = {:?}\n",
        scene.usual(),
        server.doveadm_socket()
    ));
    let mut daemon = Daemon::start(&scene);
    daemon.told("READY=1");
    let (owner, _) = server.mail_owner();
    let ask = |uid| peer::ask_as(uid, &scene.socket(), &question("alice"));
    let heard = ask(owner);
    assert!(
        heard.starts_with("E\t") && !heard.contains("own"),
        "{heard:?}"
    );
    let stranger = ask(owner + 1);
    assert!(
        stranger.contains("does not own the mail of alice"),
        "{stranger:?}"
    );
    // Without Dovecot nobody new is believed, and whoever is known still is.
    server.stop();
    let known = ask(owner);
    assert!(!known.contains("own"), "{known:?}");
    let unknown = peer::ask_as(owner, &scene.socket(), &question("bob"));
    assert!(
        unknown.contains("the owner of bob's mail is not known"),
        "{unknown:?}"
    );
    assert!(daemon.stop(), "{}", daemon.log());
}

#[test]
fn a_namespace_that_another_node_has_is_refused_for_good() {
    let etcd = Etcd::start();
    let (one, two) = (Scene::new(), Scene::new());
    one.write(&one.with_etcd(&etcd));
    let mut first = Daemon::start(&one);
    first.told("in the cluster");
    let text = two.with_etcd(&etcd).replace("\"alpha\"", "\"beta\"");
    two.write(&format!("namespace = \"alpha\"\n{text}"));
    let mut second = Daemon::start(&two);
    assert_eq!(second.exit_code(), Some(78), "{}", second.log());
    assert!(
        second.log().contains("namespace alpha belongs to"),
        "{}",
        second.log()
    );
    assert!(first.stop(), "{}", first.log());
}

#[test]
fn a_name_that_a_living_node_has_is_refused_when_its_lease_was_waited_for() {
    let etcd = Etcd::start();
    let (one, two) = (Scene::new(), Scene::new());
    // Each has a state folder, and so a disk, of its own.
    for scene in [&one, &two] {
        scene.write(&scene.with_etcd(&etcd).replace("60s", "2s"));
    }
    let mut first = Daemon::start(&one);
    first.told("in the cluster");
    let mut second = Daemon::start(&two);
    assert_eq!(second.exit_code(), Some(78), "{}", second.log());
    let log = second.log();
    assert!(
        log.contains("another xidd is in the cluster as node alpha, with another disk"),
        "{log}"
    );
    assert!(!first.log().contains("membership lost"), "{}", first.log());
    assert!(first.stop(), "{}", first.log());
    // Its place is free now, as after a replaced disk.
    let mut third = Daemon::start(&two);
    third.told("in the cluster");
    assert!(third.stop(), "{}", third.log());
}

#[test]
fn a_window_that_is_not_the_cluster_s_is_refused_for_good() {
    let etcd = Etcd::start();
    let (one, two) = (Scene::new(), Scene::new());
    one.write(&format!("window = 500\n{}", one.with_etcd(&etcd)));
    let mut first = Daemon::start(&one);
    first.told("in the cluster");
    let beta = two.with_etcd(&etcd).replace("\"alpha\"", "\"beta\"");
    two.write(&format!("window = 10000\n{beta}"));
    let mut second = Daemon::start(&two);
    assert_eq!(second.exit_code(), Some(78), "{}", second.log());
    let log = second.log();
    assert!(
        log.contains("window = 10000, but that of the cluster is 500"),
        "{log}"
    );
    // Who says nothing does as the others do.
    two.write(&beta);
    let mut third = Daemon::start(&two);
    third.told("in the cluster");
    assert!(third.stop(), "{}", third.log());
    assert!(first.stop(), "{}", first.log());
}
