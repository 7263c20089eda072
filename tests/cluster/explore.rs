//! Longer runs of the model checker than a test has time for.
//!
//! `cluster-model NODES MESSAGES [FAULT=COUNT]... [OPTION=VALUE]...`

mod world;

use imap_xid::cluster::Step;
use stateright::{Checker, HasDiscoveries, Model, UniformChooser};
use std::time::Instant;
use world::{Cluster, Msg, RULES, World};

const HELP: &str = "\
cluster-model NODES MESSAGES [NAME=VALUE]...
Checks the cluster protocol exhaustively, breadth first, or by random walks.
  expire= crash= kill= expunge= disk= save= stray= rogue= how often each fault may happen (default 0)
  window= gate=      UIDs above S; syncs before the gate is closed (2, 1)
  before=N           messages that all nodes have before there is a record
  show=1             print the world to start from
  dropped=1 ahead=1 late=1 apart=1 away=1 knows=1  start from a world made by hand (the last argument)
  split=1            decide and act in two steps
  plain=1            every world by itself: none are made one
  settle=N           check I6 in one state of N (16; 0: never)
  random=STEPS       random walks of that many steps in all, seed=N
  limit=STATES       stop after so many states
  deep=1             depth first: a fraction of the memory, but traces are long
  threads=N          (1)
  without=RULE       leave one rule out";

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.len() < 2 || args.iter().any(|a| a == "--help") {
        println!("{HELP}");
        return;
    }
    let mut cluster = Cluster {
        nodes: number(&args[0]) as u8,
        ..Cluster::default()
    };
    cluster.budget.append = number(&args[1]) as u8;
    let (mut random, mut seed, mut limit, mut threads, mut deep) = (0, 1, 0, 1, false);
    for arg in &args[2..] {
        let (name, value) = arg.split_once('=').unwrap_or((arg, "1"));
        if name == "without" {
            if !RULES.contains(&value) {
                return println!("{value}: no such rule; there are {RULES:?}");
            }
            cluster = cluster.without(value);
            continue;
        }
        let value = number(value);
        match name {
            "expire" => cluster.budget.expire = value as u8,
            "crash" => cluster.budget.crash = value as u8,
            "kill" => cluster.budget.kill = value as u8,
            "expunge" => cluster.budget.expunge = value as u8,
            "disk" => cluster.budget.disk = value as u8,
            "stray" => cluster.budget.stray = value as u8,
            "rogue" => cluster.budget.rogue = value as u8,
            "before" => cluster.before = value as u8,
            "save" => cluster.budget.save = value as u8,
            "window" => cluster.window = value as u32,
            "gate" => cluster.gate_after = value as u8,
            "split" => cluster.split = value != 0,
            "plain" => cluster.plain = value != 0,
            "settle" => cluster.settle_one_in = value,
            "random" => (random, cluster.walking) = (value as usize, true),
            "seed" => seed = value,
            "limit" => limit = value as usize,
            "deep" => deep = value != 0,
            "threads" => threads = value as usize,
            "show" => println!("{}", brief(&cluster.init_states()[0])),
            "dropped" => cluster = cluster.clone().from(cluster.one_dropped()),
            "apart" => cluster = cluster.clone().from(cluster.one_writes_apart()),
            "away" => cluster = cluster.clone().from(cluster.expunged_while_away()),
            "knows" => cluster = cluster.clone().from(cluster.one_knows_of_an_expunge()),
            "late" => cluster = cluster.clone().from(cluster.late_publish()),
            "ahead" => cluster = cluster.clone().from(cluster.one_ahead()),
            _ => return println!("{name}: no such option\n{HELP}"),
        }
    }
    let mut checker = cluster
        .checker()
        .threads(threads)
        .finish_when(HasDiscoveries::AnyFailures);
    for states in [random, limit].into_iter().filter(|n| *n > 0) {
        checker = checker.target_state_count(states);
    }
    let start = Instant::now();
    if random > 0 {
        report(
            &args,
            start,
            &checker.spawn_simulation(seed, UniformChooser).join(),
        );
    } else if deep {
        report(&args, start, &checker.spawn_dfs().join());
    } else {
        report(&args, start, &checker.spawn_bfs().join());
    }
}

fn number(text: &str) -> u64 {
    text.parse().unwrap_or_else(|_| {
        eprintln!("{text}: not a number\n{HELP}");
        std::process::exit(2);
    })
}

fn report(args: &[String], start: Instant, checker: &impl Checker<Cluster>) {
    for (property, path) in checker.discoveries() {
        println!("BROKEN: {property}");
        let end = path.last_state().clone();
        for (world, action) in path.into_vec() {
            println!("{}", brief(&world));
            println!("  {action:?}");
        }
        for world in checker.model().settle(&end).err().unwrap_or_default() {
            println!("left alone it stays:\n{}", brief(&world));
            for node in 0..checker.model().nodes {
                println!(
                    "    {node} would {:?}",
                    would(checker.model(), &world, node)
                );
            }
        }
    }
    println!(
        "{}: {} states, {} different, depth {}, {:.0} s",
        args.join(" "),
        checker.state_count(),
        checker.unique_state_count(),
        checker.max_depth(),
        start.elapsed().as_secs_f64()
    );
    if !checker.discoveries().is_empty() {
        std::process::exit(1);
    }
}

/// What the daemon of a node would do now.
fn would(cluster: &Cluster, world: &World, node: u8) -> Step<u8, u8> {
    let host = &world.hosts[node as usize];
    let (config, view) = (cluster.config(node, host), cluster.view(world, node));
    host.replica.clone().next(&config, &view)
}

/// A world in a few lines.
fn brief(world: &World) -> String {
    let mut text = String::new();
    for (n, h) in world.hosts.iter().enumerate() {
        let list = |mail: &[Msg]| {
            let all: Vec<_> = mail
                .iter()
                .map(|m| format!("{}:{}", m.uid, m.guid))
                .collect();
            all.join(" ")
        };
        text += &format!(
            "    {n}{} [{}] gone [{}] next {} shown {} promised {} limit {} stage {:?}{}{} {:?} {:?}\n",
            if h.up { "" } else { " down" },
            list(&h.mail),
            list(&h.gone),
            h.next,
            h.shown,
            h.promised,
            h.limit,
            h.stage,
            if h.gated { " gated" } else { "" },
            if h.busy { " busy" } else { "" },
            h.replica,
            h.doing,
        );
    }
    text += &format!(
        "    etcd {:?} gate {:?} alive {:?}\n",
        world.etcd.record(),
        world.etcd.gate,
        world.etcd.alive
    );
    for (n, t) in &world.etcd.tails {
        let t = &t.value;
        let entry = |e: &imap_xid::cluster::Entry<u8, u8>| {
            format!("{}:{}{}", e.uid, e.guid, if e.expunged { "x" } else { "" })
        };
        let all: Vec<_> = t.entries.iter().map(entry).collect();
        let firm = if t.firm { "firm" } else { "loose" };
        text += &format!(
            "    tail {} {firm} end {} next {} {all:?}\n",
            n.0, t.end, t.next
        );
    }
    for f in &world.flights {
        text += &format!("    flight {f:?}\n");
    }
    for s in &world.syncs {
        text += &format!("    sync {s:?}\n");
    }
    text + &format!("    {:?}", world.ghost)
}
