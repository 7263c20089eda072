//! The cluster's records, in a real etcd.

#[path = "../harness/mod.rs"]
mod harness;

use std::collections::BTreeMap;
use std::future::Future;
use std::time::Duration;

use harness::etcd::Etcd;
use imap_xid::cluster::{Condition, Entry, Incarnation, Kind, Node, Put, Rev, Stable, Tail, Txn};
use imap_xid::etcd::{Error, Mailbox, Settings, Store};

/// Long enough for no test to lose its lease by the machine's slowness.
const LEASE_SECONDS: i64 = 60;

fn with_store<F: Future<Output = Result<(), Error>>>(test: impl FnOnce(Vec<String>, Store) -> F) {
    let etcd = Etcd::start();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("tokio");
    let settings = Settings {
        endpoints: etcd.endpoints(),
        cluster: "test".into(),
        timeout: Duration::from_secs(30),
        silence: Duration::from_secs(30),
        tls: None,
    };
    let work = async { test(etcd.endpoints(), Store::connect(&settings).await?).await };
    runtime.block_on(work).expect("etcd answers");
}

fn mailbox() -> Mailbox {
    Mailbox {
        user: "a/lice".into(),
        guid: [7; 16],
    }
}

fn create(node: Node) -> Txn<String, String> {
    let holders = BTreeMap::from([(node, Incarnation(0))]);
    Txn {
        kind: Kind::Create,
        when: vec![Condition::Stable(Rev(0))],
        then: vec![Put::Stable(Stable {
            uid: 3,
            floor: 0,
            holders,
        })],
    }
}

fn tail(end: u32) -> Tail<String, String> {
    let entry = |uid| Entry {
        uid,
        guid: format!("g{uid}"),
        xid: format!("a-{uid}"),
        expunged: uid == 5,
    };
    Tail {
        firm: true,
        end,
        next: end + 1,
        entries: (4..=end).map(entry).collect(),
    }
}

#[test]
fn a_node_is_registered_once_and_found_again() {
    with_store(|_, mut store| async move {
        let first = store.register("n1", "n1", "disk").await?;
        let second = store.register("n2", "n2", "disk").await?;
        assert_ne!(first.node, second.node);
        assert_eq!(store.register("n1", "n1", "disk").await?, first);
        let replaced = store.register("n1", "n1", "new disk").await?;
        assert_eq!(replaced.node, first.node);
        assert_eq!(replaced.incarnation, Incarnation(first.incarnation.0 + 1));
        Ok(())
    });
}

#[test]
fn two_nodes_with_one_namespace_are_refused() {
    with_store(|_, mut store| async move {
        store.register("n1", "mail", "disk").await?;
        let refused = store.register("n2", "mail", "disk").await;
        assert!(matches!(refused, Err(Error::NamespaceTaken { owner, .. }) if owner == "n1"));
        Ok(())
    });
}

#[test]
fn a_name_is_not_taken_from_a_node_that_is_alive() {
    with_store(|_, mut store| async move {
        let me = store.register("n1", "n1", "disk").await?;
        let lease = store.enter(&me, "here", LEASE_SECONDS).await?;
        let other = store.register("n1", "n1", "other disk").await;
        let Err(Error::NameTaken { name, seconds, .. }) = &other else {
            panic!("{other:?}");
        };
        assert_eq!((name.as_str(), *seconds), ("n1", LEASE_SECONDS));
        assert_eq!(
            store.register("n1", "n1", "disk").await?,
            me,
            "nothing changed"
        );
        store.leave(lease).await?;
        let replaced = store.register("n1", "n1", "other disk").await?;
        assert_eq!(replaced.incarnation, Incarnation(me.incarnation.0 + 1));
        Ok(())
    });
}

#[test]
fn a_copy_of_a_disk_does_not_take_the_claim_of_the_node_that_is_alive() {
    with_store(|_, mut store| async move {
        let me = store.register("n1", "n1", "disk").await?;
        let lease = store.enter(&me, "here", LEASE_SECONDS).await?;
        let copy = store.enter(&me, "elsewhere", LEASE_SECONDS).await;
        assert!(matches!(copy, Err(Error::NameTaken { name, .. }) if name == "n1"));
        // Killed and started again before the lease ended: the claim goes on under a new lease.
        let mut again = store.enter(&me, "here", LEASE_SECONDS).await?;
        store.leave(lease).await?;
        assert!(again.keep().await?);
        let alive = store.members().await?.alive;
        assert_eq!(alive, BTreeMap::from([(me.node, me.incarnation)]));
        store.leave(again).await?;
        store.enter(&me, "elsewhere", LEASE_SECONDS).await?;
        Ok(())
    });
}

#[test]
fn the_first_node_decides_on_the_window_of_all() {
    with_store(|_, mut store| async move {
        assert_eq!(store.window().await?, None);
        assert_eq!(store.agree_on_window(Some(500), 10_000).await?, 500);
        assert_eq!(store.agree_on_window(None, 10_000).await?, 500);
        assert_eq!(store.agree_on_window(Some(500), 10_000).await?, 500);
        let refused = store.agree_on_window(Some(600), 10_000).await;
        let Err(Error::OtherWindow { ours, theirs }) = refused else {
            panic!("{refused:?}");
        };
        assert_eq!((ours, theirs), (600, 500));
        Ok(())
    });
}

#[test]
fn the_window_is_changed_only_while_no_node_is_alive() {
    with_store(|_, mut store| async move {
        let me = store.register("n1", "n1", "disk").await?;
        assert_eq!(store.agree_on_window(Some(500), 10_000).await?, 500);
        let lease = store.enter(&me, "here", LEASE_SECONDS).await?;
        assert!(!store.change_window(500, 600).await?);
        store.leave(lease).await?;
        assert!(!store.change_window(400, 600).await?, "it is not 400");
        assert!(store.change_window(500, 600).await?);
        assert_eq!(store.window().await?, Some(600));
        Ok(())
    });
}

#[test]
fn a_snapshot_has_what_transactions_wrote_and_who_is_alive() {
    with_store(|_, mut store| async move {
        let me = store.register("n1", "n1", "disk").await?;
        let empty = store.snapshot(&mailbox()).await?;
        assert!(empty.stable.is_none() && empty.alive.is_empty() && !empty.complete);
        let mut lease = store.enter(&me, "here", LEASE_SECONDS).await?;
        assert!(lease.keep().await?);
        assert!(store.run(&mailbox(), &create(me.node)).await?.is_some());
        let stable = store
            .snapshot(&mailbox())
            .await?
            .stable
            .expect("the record");
        let publish = Txn {
            kind: Kind::Publish,
            when: vec![
                Condition::Stable(stable.rev),
                Condition::Tail(me.node, Rev(0)),
            ],
            then: vec![Put::Tail(me.node, tail(6))],
        };
        assert!(store.run(&mailbox(), &publish).await?.is_some());
        assert!(
            store.run(&mailbox(), &publish).await?.is_none(),
            "the tail has moved"
        );
        let seen = store.snapshot(&mailbox()).await?;
        assert_eq!(seen.tails[&me.node].value, tail(6));
        assert_eq!(seen.alive, BTreeMap::from([(me.node, me.incarnation)]));
        assert!(seen.complete);
        store.leave(lease).await?;
        assert!(store.snapshot(&mailbox()).await?.alive.is_empty());
        Ok(())
    });
}

#[test]
fn a_silent_node_is_taken_out_unless_it_was_heard_of() {
    with_store(|_, mut store| async move {
        let me = store.register("n1", "n1", "disk").await?;
        let who = (me.node, me.incarnation);
        let lease = store.enter(&me, "here", LEASE_SECONDS).await?;
        store.beat(&me).await?;
        let earlier = store.members().await?.rev;
        store.beat(&me).await?;
        assert!(!store.end(who, earlier).await?, "it beat since");
        let last = store.members().await?.rev;
        assert!(store.end(who, last).await?);
        assert!(store.members().await?.alive.is_empty());
        assert!(store.beat(&me).await.is_err(), "it is no member any more");
        store.leave(lease).await?;
        Ok(())
    });
}

#[test]
fn what_the_nearest_member_knows_is_not_older_than_what_we_wrote() {
    with_store(|_, mut store| async move {
        let me = store.register("n1", "n1", "disk").await?;
        assert!(store.snapshot_at(&mailbox()).await?.value.stable.is_none());
        let rev = store.run(&mailbox(), &create(me.node)).await?;
        let seen = store.snapshot_at(&mailbox()).await?;
        assert_eq!(seen.value.stable.map(|stable| stable.rev), rev);
        Ok(())
    });
}

#[test]
fn a_transaction_whose_condition_fails_writes_nothing() {
    with_store(|_, mut store| async move {
        let me = store.register("n1", "n1", "disk").await?;
        let lease = store.enter(&me, "here", LEASE_SECONDS).await?;
        assert!(store.run(&mailbox(), &create(me.node)).await?.is_some());
        let dead = Condition::Dead(me.node, me.incarnation);
        let drop_tail = |when| Txn {
            kind: Kind::Shrink,
            when: vec![when],
            then: vec![Put::DropTail(me.node)],
        };
        let write = Txn {
            kind: Kind::Publish,
            when: vec![],
            then: vec![Put::Tail(me.node, tail(4))],
        };
        assert!(store.run(&mailbox(), &write).await?.is_some());
        assert!(
            store
                .run(&mailbox(), &drop_tail(dead.clone()))
                .await?
                .is_none(),
            "the node is alive"
        );
        assert_eq!(store.snapshot(&mailbox()).await?.tails.len(), 1);
        store.leave(lease).await?;
        assert!(store.run(&mailbox(), &drop_tail(dead)).await?.is_some());
        assert!(store.snapshot(&mailbox()).await?.tails.is_empty());
        Ok(())
    });
}

#[test]
fn only_one_node_holds_the_gate() {
    with_store(|_, mut store| async move {
        let close = |node| Txn {
            kind: Kind::CloseGate,
            when: vec![Condition::GateOpen],
            then: vec![Put::Gate(node)],
        };
        let open = |node| Txn {
            kind: Kind::OpenGate,
            when: vec![Condition::GateOf(node)],
            then: vec![Put::DropGate],
        };
        assert!(store.run(&mailbox(), &close(Node(1))).await?.is_some());
        assert!(store.run(&mailbox(), &close(Node(2))).await?.is_none());
        assert_eq!(store.snapshot(&mailbox()).await?.gate, Some(Node(1)));
        assert!(store.run(&mailbox(), &open(Node(2))).await?.is_none());
        assert!(store.run(&mailbox(), &open(Node(1))).await?.is_some());
        assert_eq!(store.snapshot(&mailbox()).await?.gate, None);
        Ok(())
    });
}

#[test]
fn a_change_is_heard_of_by_its_mailbox() {
    with_store(|_, mut store| async move {
        let mut watch = store.watch(Rev(0)).await?;
        assert!(store.run(&mailbox(), &create(Node(1))).await?.is_some());
        let heard = loop {
            let message = watch.message().await?.expect("the watch goes on");
            let keys = message.events().iter().filter_map(|event| event.kv());
            let parsed = keys.filter_map(|kv| store.keys().parse(kv.key())).next();
            if let Some((heard, _)) = parsed {
                break heard;
            }
        };
        assert_eq!(heard, mailbox());
        Ok(())
    });
}

#[test]
fn a_record_that_cannot_be_read_is_an_error_that_names_its_key() {
    with_store(|endpoints, mut store| async move {
        let mut client = etcd_client::Client::connect(endpoints, None).await?;
        client
            .put(store.keys().stable(&mailbox()), "not JSON", None)
            .await?;
        let error = store.snapshot(&mailbox()).await.expect_err("unreadable");
        assert!(error.to_string().contains("/stable"), "{error}");
        Ok(())
    });
}
