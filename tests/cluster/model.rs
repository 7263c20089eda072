//! The cluster protocol, checked exhaustively on small clusters, with every fault, and with
//! every rule left out in turn.
//!
//! The usual run takes the small sizes; with `IMAP_XID_SOAK` set the large ones are added.
//! `cargo run --release --example cluster-model -- --help` runs any other.

mod world;

use stateright::{Checker, HasDiscoveries, Model, UniformChooser};
use std::collections::{BTreeSet, HashMap};
use world::{Budget, Cluster, RULES, World, stateright_hash};

/// A cluster with messages and the named faults, one of each.
fn cluster(nodes: u8, messages: u8, faults: &[&str]) -> Cluster {
    let mut budget = Budget {
        append: messages,
        ..Budget::default()
    };
    for fault in faults {
        match *fault {
            "expire" => budget.expire = 1,
            "crash" => budget.crash = 1,
            "kill" => budget.kill = 1,
            "expunge" => budget.expunge = 1,
            "disk" => budget.disk = 1,
            "save" => budget.save = 1,
            "stray" => budget.stray = 1,
            "rogue" => budget.rogue = 1,
            other => panic!("{other}: no such fault"),
        }
    }
    Cluster {
        nodes,
        budget,
        ..Cluster::default()
    }
}

/// Visits every state there is.
fn holds_everywhere(cluster: Cluster) {
    let checker = cluster
        .checker()
        .finish_when(HasDiscoveries::AnyFailures)
        .spawn_bfs()
        .join();
    println!(
        "{} states, depth {}",
        checker.unique_state_count(),
        checker.max_depth()
    );
    checker.assert_properties();
    assert!(checker.is_done(), "every state was visited");
}

/// Visits every state there is, with a fraction of the memory that breadth first takes.
fn holds_depth_first(cluster: Cluster) {
    let checker = cluster
        .checker()
        .finish_when(HasDiscoveries::AnyFailures)
        .spawn_dfs()
        .join();
    println!(
        "{} states, depth {}",
        checker.unique_state_count(),
        checker.max_depth()
    );
    checker.assert_properties();
    assert!(checker.is_done(), "every state was visited");
}

/// Visits so many states, nearest first.
fn holds_breadth_first(cluster: Cluster, states: usize) {
    let checker = cluster
        .checker()
        .finish_when(HasDiscoveries::AnyFailures)
        .target_state_count(states)
        .spawn_bfs()
        .join();
    checker.assert_properties();
}

/// Visits so many states by random walks.
fn holds_at_random(cluster: Cluster, steps: usize, seed: u64) {
    let checker = Cluster {
        walking: true,
        ..cluster
    }
    .checker()
    .finish_when(HasDiscoveries::AnyFailures)
    .target_state_count(steps)
    .spawn_simulation(seed, UniformChooser)
    .join();
    checker.assert_properties();
    assert!(
        checker.state_count() >= steps / 2,
        "{} steps only",
        checker.state_count()
    );
}

/// Without the rule some invariant breaks.
fn needs(rule: &str, invariant: &str, cluster: Cluster) {
    let checker = cluster
        .without(rule)
        .checker()
        .finish_when(HasDiscoveries::AnyFailures)
        .target_state_count(3_000_000)
        .spawn_bfs()
        .join();
    let found = checker.discoveries();
    for (name, path) in &found {
        let (steps, states) = (
            path.clone().into_actions().len(),
            checker.unique_state_count(),
        );
        println!("without {rule}: {name}, {steps} steps, {states} states");
    }
    let names: Vec<_> = found.keys().collect();
    assert!(
        found.keys().any(|name| name.starts_with(invariant)),
        "without {rule} {invariant} should break in some way; broken: {names:?}"
    );
}

/// The same, where the counterexample is too deep to be found breadth first.
fn needs_at_random(rule: &str, invariant: &str, cluster: Cluster) {
    let checker = Cluster {
        walking: true,
        ..cluster
    }
    .without(rule)
    .checker()
    .finish_when(HasDiscoveries::AnyFailures)
    .target_state_count(1_000_000)
    .spawn_simulation(1, UniformChooser)
    .join();
    let found = checker.discoveries();
    let names: Vec<_> = found.keys().collect();
    assert!(
        found.keys().any(|name| name.starts_with(invariant)),
        "without {rule} {invariant} should break in some way; broken: {names:?}"
    );
}

/// All worlds that can be reached, and how many before those that no future can tell apart were
/// made one.
fn kinds(cluster: &Cluster) -> (HashMap<u64, World>, usize) {
    let usual = Cluster {
        plain: false,
        ..cluster.clone()
    };
    let (mut kinds, mut seen) = (HashMap::new(), BTreeSet::new());
    let (mut left, mut actions) = (cluster.init_states(), Vec::new());
    while let Some(world) = left.pop() {
        if !seen.insert(stateright_hash(&world)) {
            continue;
        }
        let kind = usual.kind(&world);
        kinds.insert(stateright_hash(&kind), kind);
        cluster.actions(&world, &mut actions);
        let next = actions.drain(..);
        left.extend(next.filter_map(|action| cluster.next_state(&world, action)));
    }
    (kinds, seen.len())
}

/// Nothing is lost by making worlds one: those that are reached without it are of the same kinds,
/// and of no others.
fn loses_nothing(cluster: Cluster) {
    let (few, visited) = kinds(&cluster);
    let (all, many) = kinds(&Cluster {
        plain: true,
        ..cluster
    });
    println!("{visited} of {many} worlds, {} kinds", all.len());
    assert!(visited < many);
    let lost = all.iter().find(|(kind, _)| !few.contains_key(kind));
    assert!(lost.is_none(), "only without: {lost:?}");
    let new = few.iter().find(|(kind, _)| !all.contains_key(kind));
    assert!(new.is_none(), "only with: {new:?}");
}

/// Without looking whether everything becomes stable: looking for another invariant.
fn never_settling(cluster: Cluster) -> Cluster {
    Cluster {
        settle_one_in: 0,
        ..cluster
    }
}

fn soak() -> bool {
    std::env::var_os("IMAP_XID_SOAK").is_some()
}

#[test]
fn the_model_reaches_what_it_is_about() {
    let dropped = vec![
        "all messages are shown everywhere",
        "a node was dropped and is back",
        "a message moved after another node had it",
    ];
    holds_everywhere(Cluster {
        events: dropped,
        ..cluster(2, 1, &["expire"])
    });
    let clashing = vec![
        "all messages are shown everywhere",
        "the gate is closed",
        "a promise is refused to be broken",
    ];
    holds_everywhere(Cluster {
        events: clashing,
        ..cluster(2, 2, &[])
    });
}

#[test]
fn every_rule_can_be_left_out() {
    for rule in RULES {
        let bent = Cluster::default().without(rule);
        let usual = Cluster::default();
        assert!(
            bent.rules != usual.rules || bent.host != usual.host,
            "{rule}"
        );
    }
}

#[test]
fn worlds_that_no_future_can_tell_apart_may_be_made_one() {
    for fault in ["expire", "crash", "disk", "expunge", "save", "stray"] {
        loses_nothing(cluster(2, 1, &[fault]));
    }
    loses_nothing(cluster(2, 2, &[]));
    loses_nothing(cluster(3, 1, &[]));
}

/// As below, every world by itself.
#[test]
fn what_breaks_without_a_rule_breaks_whether_or_not_worlds_are_made_one() {
    let plain = |cluster| Cluster {
        plain: true,
        ..never_settling(cluster)
    };
    needs("compare_guids", "I1", plain(cluster(2, 2, &[])));
    needs("interlock", "I1", plain(cluster(2, 1, &["rogue"])));
    needs("expose_as_holder", "I1", plain(cluster(2, 1, &["expire"])));
    needs("join_compares", "I1", plain(cluster(2, 1, &["expire"])));
    needs("xids_travel", "I3", plain(cluster(2, 2, &[])));
    needs("promise_is_durable", "I1", plain(cluster(2, 1, &["crash"])));
}

#[test]
fn one_message_survives_each_fault() {
    for fault in [
        "expire", "crash", "kill", "expunge", "disk", "save", "stray",
    ] {
        holds_everywhere(cluster(2, 1, &[fault]));
    }
}

#[test]
fn two_writers_agree() {
    holds_everywhere(cluster(2, 2, &[]));
}

#[test]
fn two_writers_agree_without_a_gate_before_the_third_try() {
    holds_everywhere(Cluster {
        gate_after: 3,
        ..cluster(2, 2, &[])
    });
}

#[test]
fn a_dsync_may_be_killed_between_any_two_commits() {
    holds_everywhere(cluster(2, 2, &["kill"]));
}

#[test]
fn a_saved_state_announces_what_is_missing_on_any_node() {
    holds_everywhere(cluster(2, 2, &["save"]));
}

#[test]
fn deciding_and_acting_may_be_far_apart() {
    holds_everywhere(Cluster {
        split: true,
        ..cluster(2, 1, &["expire"])
    });
}

#[test]
fn a_dsync_by_hand_does_no_harm() {
    holds_everywhere(cluster(2, 1, &["expire", "stray"]));
}

#[test]
fn three_nodes_agree() {
    holds_everywhere(cluster(3, 1, &[]));
}

#[test]
fn random_walks_with_all_faults_find_nothing() {
    let all = [
        "expire", "crash", "kill", "expunge", "disk", "save", "stray",
    ];
    let factor = if soak() { 100 } else { 1 };
    holds_at_random(cluster(2, 3, &all), 60_000 * factor, 1);
    holds_at_random(cluster(3, 3, &all), 60_000 * factor, 2);
}

#[test]
fn large_clusters_hold_everywhere() {
    if !soak() {
        return;
    }
    let sparse = |cluster| Cluster {
        settle_one_in: 64,
        ..cluster
    };
    let large = |messages, faults: &[_]| holds_depth_first(sparse(cluster(2, messages, faults)));
    large(2, &["expire"]);
    large(2, &["crash"]);
    large(2, &["disk"]);
    large(2, &["expunge"]);
    large(2, &["stray"]);
    large(2, &["kill", "expunge"]);
    large(2, &["expire", "crash"]);
    large(2, &["expire", "expunge"]);
    large(1, &["expire", "rogue", "stray"]);
    let from_before = |nodes, messages, faults: &[_]| Cluster {
        before: 1,
        ..sparse(cluster(nodes, messages, faults))
    };
    holds_depth_first(from_before(2, 1, &["crash"]));
    holds_depth_first(from_before(3, 0, &["expire"]));
    holds_depth_first(sparse(cluster(3, 1, &["expire"])));
}

#[test]
fn no_uid_is_taken_before_every_next_uid_is_above_it() {
    needs(
        "advance_below_next",
        "I1",
        never_settling(cluster(2, 2, &["expire"])),
    );
}

#[test]
fn comparing_by_uid_alone_is_not_enough() {
    needs("compare_guids", "I1", never_settling(cluster(2, 2, &[])));
}

#[test]
fn only_a_holder_exposes_what_it_reads() {
    needs(
        "expose_as_holder",
        "I1",
        never_settling(cluster(2, 1, &["expire"])),
    );
}

#[test]
fn the_prefix_is_compared_before_a_node_joins() {
    needs(
        "join_compares",
        "I1",
        never_settling(cluster(2, 1, &["expire"])),
    );
}

#[test]
fn xids_travel_with_messages() {
    needs("xids_travel", "I3", never_settling(cluster(2, 2, &[])));
}

#[test]
fn a_replaced_disk_gets_a_new_incarnation() {
    needs(
        "new_incarnation",
        "I3",
        never_settling(cluster(2, 2, &["disk"])),
    );
}

#[test]
fn dropped_nodes_leave_room_below() {
    needs("room_below", "I6", cluster(2, 2, &["expire"]));
}

#[test]
fn unstable_messages_are_staged_before_a_node_joins() {
    needs("stage", "I6", cluster(2, 2, &["expire"]));
}

/// Nobody lets go of what a firm tail says, whatever replication does.
#[test]
fn what_is_shown_is_not_renumbered() {
    needs("interlock", "I1", never_settling(cluster(2, 1, &["rogue"])));
}

#[test]
fn what_is_promised_is_not_renumbered() {
    needs("promise", "I1", never_settling(cluster(2, 2, &["rogue"])));
}

#[test]
fn after_a_crash_everything_counts_as_promised() {
    let faults = ["rogue", "crash"];
    needs(
        "promised_over_crash",
        "I1",
        never_settling(cluster(2, 2, &faults)),
    );
}

/// Where tails cross on their way S is moved by a transaction of its own. Here every one is, so that
/// the search need not find two that cross.
#[test]
fn an_advance_checks_the_tails_it_compared() {
    let cluster = never_settling(cluster(2, 3, &["rogue"])).without("conclude");
    let start = cluster.one_ahead();
    needs("advance_checks_tails", "I1", cluster.from(start));
}

/// Nodes that withdrew and settled their conflict, a late tail of the one that died, and then
/// another conflict. The rule is left out from the start: the late tail was sent without it.
fn with_a_late_tail(without: &str) -> Cluster {
    let cluster = Cluster {
        window: 4,
        ..never_settling(cluster(2, 4, &["crash", "rogue"]))
    }
    .without(without);
    let start = cluster.late_publish();
    cluster.from(start)
}

#[test]
fn a_late_tail_does_not_replace_a_withdrawal() {
    let rule = "publish_checks_tail";
    needs(rule, "I1", with_a_late_tail(rule));
}

/// As above, every tail is published by itself.
#[test]
fn the_tail_of_a_lost_disk_does_not_come_late() {
    needs(
        "publish_checks_stable",
        "I1",
        never_settling(cluster(2, 2, &["disk"])).without("conclude"),
    );
}

#[test]
fn after_a_restart_a_node_withdraws_afresh() {
    let rule = "withdraw_afresh";
    needs(rule, "I1", with_a_late_tail(rule));
}

#[test]
fn what_is_stable_does_not_come_back_from_the_stage() {
    let cluster = never_settling(cluster(2, 2, &["expire", "expunge"]));
    let start = cluster.one_dropped();
    needs("skip_settled", "I5", cluster.from(start));
}

#[test]
fn what_moved_before_it_was_stable_is_not_settled() {
    let faults = ["expire", "rogue", "stray"];
    let cluster = never_settling(cluster(2, 1, &faults));
    needs("settled_was_stable", "I5", cluster);
}

/// Three nodes of which one joined after an expunge, so that it does not know of it, and one is to
/// join that has the message.
fn with_an_expunge_that_one_knows_of() -> Cluster {
    let mut cluster = never_settling(cluster(3, 2, &["expunge"]));
    cluster.budget.expire = 2;
    cluster
}

#[test]
fn all_holders_are_asked_what_became_of_a_message() {
    let cluster = with_an_expunge_that_one_knows_of();
    let start = cluster.one_knows_of_an_expunge();
    needs("all_are_asked", "I5", cluster.clone().from(start.clone()));
    holds_everywhere(Cluster {
        settle_one_in: 16,
        ..cluster.from(start)
    });
}

/// On nodes that also fail to keep the bound, which else hides it.
#[test]
fn who_is_no_holder_promises_all_it_has() {
    let cluster = never_settling(cluster(2, 1, &["expire", "rogue"])).without("window");
    needs("join_promises", "I1", cluster);
}

#[test]
fn a_dropped_node_stays_below_what_the_others_show() {
    let usual = Cluster {
        window: 1,
        ..cluster(2, 8, &["expire"])
    };
    let settles = |cluster: &Cluster| cluster.settle(&cluster.one_writes_apart()).is_ok();
    assert!(settles(&usual));
    assert!(!settles(&usual.without("window")));
}

/// A sync of the node that joins carries its expunges to the source: what that one had said before is
/// not what it has then, though the record is the same.
#[test]
fn a_joining_node_asks_its_source_anew() {
    let usual = cluster(2, 2, &["expire", "expunge"]).without("gone_is_known");
    let settles = |cluster: &Cluster| cluster.settle(&cluster.expunged_while_away()).is_ok();
    assert!(settles(&usual));
    assert!(!settles(&usual.without("source_is_asked_anew")));
    let small = cluster(2, 1, &["expire", "expunge"]).without("gone_is_known");
    holds_everywhere(Cluster {
        settle_one_in: 16,
        ..small
    });
}

#[test]
fn xids_are_compared_before_s_moves() {
    let cluster = Cluster {
        before: 1,
        ..cluster(2, 1, &[])
    };
    needs("compare_xids", "I3", never_settling(cluster));
}

#[test]
fn where_two_nodes_named_a_message_one_takes_the_others_name() {
    let cluster = Cluster {
        before: 1,
        ..cluster(2, 1, &[])
    };
    needs("adopt_xids", "I6", cluster);
}

/// The prefix that a node joins with is on its disk (found missing by lease and crash together).
#[test]
fn what_a_joining_node_took_survives_its_crash() {
    let cluster = Cluster {
        settle_one_in: 256,
        ..cluster(2, 1, &["expire", "crash"])
    };
    holds_breadth_first(cluster, 650_000);
}

#[test]
fn what_was_there_before_the_cluster_becomes_stable() {
    holds_everywhere(Cluster {
        before: 2,
        ..cluster(2, 0, &["expire"])
    });
    holds_everywhere(Cluster {
        before: 1,
        ..cluster(3, 0, &[])
    });
}

#[test]
fn replication_may_renumber_what_it_likes() {
    holds_everywhere(cluster(2, 1, &["rogue", "crash"]));
    holds_everywhere(cluster(2, 1, &["rogue", "disk"]));
    holds_everywhere(cluster(2, 2, &["rogue"]));
}

#[test]
fn the_record_is_the_one_that_was_compared_with_when_a_node_joins() {
    needs("join_checks_stable", "I6", cluster(2, 2, &["expire"]));
}

#[test]
fn an_advance_checks_the_record_it_was_decided_on() {
    needs("advance_checks_stable", "I6", cluster(2, 2, &["expire"]));
}

#[test]
fn replication_is_told_to_compare_everything_after_a_conflict() {
    needs("force_sync", "I6", cluster(2, 2, &[]));
}

#[test]
fn a_promise_makes_durable_what_it_covers() {
    needs("promise_is_durable", "I6", cluster(2, 1, &["crash"]));
}

#[test]
fn whoever_closed_the_gate_opens_it() {
    needs("open_gate", "I6", cluster(2, 1, &["expire"]));
}

/// A tail that comes after its sender lost power counts messages that went with it.
#[test]
fn a_tail_that_counts_what_is_lost_is_written_again() {
    needs("correct_next", "I6", cluster(2, 2, &["crash"]));
}

#[test]
fn only_a_holder_drops_holders() {
    let mut cluster = never_settling(cluster(2, 1, &["expire"]));
    cluster.budget.expire = 2;
    needs("shrink_as_holder", "I1", cluster);
}

#[test]
fn a_state_without_a_mark_misses_messages() {
    needs(
        "mark_in_state",
        "I4",
        never_settling(cluster(2, 3, &["kill", "save"])),
    );
}

#[test]
fn a_node_passes_s_with_its_next_uid_before_it_joins() {
    let faults = ["expire", "crash", "expunge"];
    needs_at_random(
        "join_passes_stable",
        "I2",
        never_settling(cluster(2, 2, &faults)),
    );
}
