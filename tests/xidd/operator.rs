//! `xidctl cluster` against a real etcd.

use std::process::{Command, Output};
use std::time::Duration;

use imap_xid::cluster::{Condition, Incarnation, Kind, Put, Rev, Stable, Txn};
use imap_xid::etcd::{Mailbox, Settings, Store};

use crate::daemon::{Daemon, Scene};
use crate::harness::{cargo_binary, etcd::Etcd};

pub fn xidctl(scene: &Scene, args: &[&str]) -> Output {
    let mut command = Command::new(cargo_binary("IMAP_XID_XIDCTL", "xidctl", "cli,cluster"));
    command.args(["cluster", "--xidd"]).arg(scene.config());
    command.args(args).output().expect("xidctl")
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Two nodes, one of them alive, and a mailbox that the dead one holds.
async fn furnish(etcd: &Etcd) {
    let settings = Settings {
        endpoints: etcd.endpoints(),
        cluster: "mail".into(),
        timeout: Duration::from_secs(30),
        silence: Duration::from_secs(30),
        tls: None,
    };
    let mut store = Store::connect(&settings).await.expect("etcd");
    let alpha = store.register("alpha", "alpha", "d1").await.expect("alpha");
    let beta = store.register("beta", "beta", "d2").await.expect("beta");
    store.enter(&alpha, "here", 600).await.expect("alive");
    let mailbox = Mailbox {
        user: "joe".into(),
        guid: [7; 16],
    };
    let stable = Stable {
        uid: 41,
        floor: 0,
        holders: [(beta.node, Incarnation(0))].into(),
    };
    let txn = Txn {
        kind: Kind::Create,
        when: vec![Condition::Stable(Rev(0))],
        then: vec![Put::Stable(stable)],
    };
    let wrote = store.run(&mailbox, &txn).await.expect("etcd");
    assert!(wrote.is_some());
}

#[test]
fn the_operator_sees_the_cluster_and_evicts_the_dead_only() {
    let (etcd, scene) = (Etcd::start(), Scene::new());
    scene.write(&scene.with_etcd(&etcd));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("tokio");
    runtime.block_on(furnish(&etcd));
    let status = text(&xidctl(&scene, &["status", "-u", "joe"]).stdout);
    assert!(status.contains("alpha: node 1, disk 0"), "{status}");
    assert!(
        status.contains("beta: node 2") && status.contains("NOT ALIVE"),
        "{status}"
    );
    assert!(
        status.contains("stable up to UID 41, held by beta"),
        "{status}"
    );
    let nobody = text(&xidctl(&scene, &["status", "-u", "jane"]).stdout);
    assert!(!nobody.contains("stable up to"), "{nobody}");
    assert!(nobody.contains("jane: no records"), "{nobody}");
    let alive = xidctl(&scene, &["evict", "alpha"]);
    assert!(text(&alive.stderr).contains("alpha is alive"), "{alive:?}");
    assert_eq!(alive.status.code(), Some(1));
    assert_eq!(xidctl(&scene, &["evict", "beta"]).status.code(), Some(0));
    let members = text(&xidctl(&scene, &["members"]).stdout);
    assert!(
        members.contains("beta: node 2, disk 0, namespace beta, evicted"),
        "{members}"
    );
    assert!(members.contains("alive, lease ends in"), "{members}");
    assert_eq!(
        xidctl(&scene, &["evict", "--even-if-alive", "alpha"])
            .status
            .code(),
        Some(0)
    );
    let members = text(&xidctl(&scene, &["members"]).stdout);
    assert!(!members.contains("lease ends in"), "{members}");
    let unknown = xidctl(&scene, &["evict", "gamma"]);
    assert!(
        text(&unknown.stderr).contains("no such node"),
        "{unknown:?}"
    );
    let guid = "07".repeat(16);
    let elsewhere = ["force", "-u", "joe", "-m", &guid, "--as-holder", "beta"];
    let refused = xidctl(&scene, &elsewhere);
    assert!(
        text(&refused.stderr).contains("run it on beta"),
        "{refused:?}"
    );
}

#[test]
fn the_window_is_shown_and_changed_while_all_are_down() {
    let (etcd, scene) = (Etcd::start(), Scene::new());
    scene.write(&format!("window = 500\n{}", scene.with_etcd(&etcd)));
    let mut daemon = Daemon::start(&scene);
    daemon.told("in the cluster");
    let shown = text(&xidctl(&scene, &["window"]).stdout);
    assert_eq!(shown, "window 500\n");
    let running = xidctl(&scene, &["window", "600"]);
    assert!(
        text(&running.stderr).contains("stop xidd on all nodes first; alive: alpha"),
        "{running:?}"
    );
    assert!(daemon.stop(), "{}", daemon.log());
    let smaller = xidctl(&scene, &["window", "400"]);
    assert!(
        text(&smaller.stderr).contains("smaller than 500"),
        "{smaller:?}"
    );
    assert_eq!(xidctl(&scene, &["window", "600"]).status.code(), Some(0));
    let json = text(&xidctl(&scene, &["--json", "window"]).stdout);
    assert_eq!(
        json.split_whitespace().collect::<String>(),
        "{\"window\":600}"
    );
}
