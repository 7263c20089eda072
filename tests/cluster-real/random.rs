//! Random faults by a schedule that a seed gives, and clients that write through them.
//!
//! `make test` plays short schedules of six seeds. The long trial is played with `--ignored`:
//! `IMAP_XID_CLUSTER_SEED=n` begins with schedule n; `IMAP_XID_CLUSTER_RUNS=1` plays only that one.
//! With `IMAP_XID_SOAK` set it goes on for [`SOAK`], each schedule for [`LONG`].

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::harness::cluster::Cluster;
use crate::harness::{Format, Random, seed};
use crate::judge;
use crate::workload::{Observer, USER, at_once, conclude};

/// How long `make soak` plays.
const SOAK: Duration = Duration::from_secs(31 * 60);
/// How long one schedule of it is: a mailbox grows with it, and each look lists all of it.
const LONG: Duration = Duration::from_secs(60);
/// How long a schedule of `make test` is.
const SHORT: Duration = Duration::from_secs(8);
/// A fault lasts up to so many milliseconds. The lease is shorter: nodes are dropped.
const FAULT_MS: usize = 6_000;

/// Something that goes wrong. Node numbers start at 1, etcd's members at 0.
#[derive(Clone, Debug)]
enum Fault {
    Isolate(usize),
    CutOneWay(usize, usize),
    Lose(usize, u32),
    KillXidd(usize),
    PauseXidd(usize),
    KillDsync(usize),
    PauseDovecot(usize),
    CrashDovecot(usize),
    PowerOff(usize),
    CrashEtcd(usize),
    PauseEtcd(usize),
    ShiftClock(usize, &'static str),
}

impl Fault {
    fn random(random: &mut Random, nodes: usize) -> Fault {
        let node = 1 + random.below(nodes);
        let other = 1 + (node + random.below(nodes - 1)) % nodes;
        match random.below(12) {
            0 => Fault::Isolate(node),
            1 => Fault::CutOneWay(node, other),
            2 => Fault::Lose(node, *random.pick(&[10, 30, 60])),
            3 => Fault::KillXidd(node),
            4 => Fault::PauseXidd(node),
            5 | 6 => Fault::KillDsync(node),
            7 => Fault::PauseDovecot(node),
            8 => Fault::CrashDovecot(node),
            9 => Fault::PowerOff(node),
            10 => match random.chance(2) {
                true => Fault::CrashEtcd(node - 1),
                false => Fault::PauseEtcd(node - 1),
            },
            _ => Fault::ShiftClock(node, ["+1h", "-1h", "+30d"][random.below(3)]),
        }
    }

    fn strike(&self, cluster: &Cluster) {
        let net = &cluster.net;
        match *self {
            Fault::Isolate(node) => net.isolate(node).expect("cut"),
            Fault::CutOneWay(from, to) => net.cut_one_way(from, to).expect("cut"),
            Fault::Lose(node, percent) => net.lose(node, percent).expect("loss"),
            Fault::KillXidd(node) => cluster.kill_xidd(node),
            Fault::PauseXidd(node) => cluster.pause_xidd(node, true),
            Fault::KillDsync(node) => drop(cluster.kill_dsync(node)),
            Fault::PauseDovecot(node) => cluster.node(node).pause(true),
            Fault::CrashDovecot(node) if cluster.node(node).is_running() => {
                cluster.node(node).crash();
            }
            Fault::CrashDovecot(_) => {}
            Fault::PowerOff(node) => cluster.power_off(node),
            Fault::CrashEtcd(member) => cluster.etcd.crash(member),
            Fault::PauseEtcd(member) => cluster.etcd.pause(member, true),
            Fault::ShiftClock(node, by) => drop(cluster.shift_clock(node, by)),
        }
    }
}

/// What happens: one to three faults in a row, then everything is whole again for a while.
#[derive(Debug)]
struct Round {
    /// Each with the milliseconds until the next.
    faults: Vec<(Fault, usize)>,
    quiet_ms: usize,
}

fn schedule(seed: u64, nodes: usize, long: Duration) -> Vec<Round> {
    let mut random = Random::new(seed);
    let (mut rounds, mut ms) = (Vec::new(), 0);
    while ms < long.as_millis() as usize {
        let count = 1 + random.below(3);
        let faults: Vec<_> = (0..count)
            .map(|_| {
                let fault = Fault::random(&mut random, nodes);
                (fault, 100 + random.below(FAULT_MS / count))
            })
            .collect();
        let quiet_ms = 200 + random.below(3000);
        ms += quiet_ms + faults.iter().map(|(_, ms)| ms).sum::<usize>();
        rounds.push(Round { faults, quiet_ms });
    }
    rounds
}

/// The node whose mdbox Dovecot made anew from what lies about, as stock does where a process was
/// killed between the two files that an expunge changes. What was expunged comes back then, under
/// another UID, and nothing that we do can keep it away: such a run says nothing of us.
fn rebuilt(cluster: &Cluster, format: Format) -> Option<usize> {
    let anew = |node: &usize| cluster.node(*node).log().contains(": rebuilding indexes");
    (1..=cluster.nodes()).find(|node| format == Format::Mdbox && anew(node))
}

/// Plays a schedule. Everything about it follows from its seed, except for what the machine does.
fn play(seed: u64, long: Duration) {
    let nodes = 2 + (seed % 2) as usize;
    let format = Format::ALL[(seed / 2) as usize % Format::ALL.len()];
    let what = format!(
        "IMAP_XID_CLUSTER_SEED={seed}: {nodes} nodes, {}",
        format.name()
    );
    let rounds = schedule(seed, nodes, long);
    println!("{what}");
    for round in &rounds {
        println!("  {round:?}");
    }
    let cluster = Cluster::setup()
        .nodes(nodes)
        .format(format)
        .clocks()
        .start();
    // Whatever was killed says so; a commit is refused while nobody can say which XID it has.
    cluster.allow_log("xid: ");
    // ... and where a Dovecot is down replication cannot reach it.
    cluster.allow_log("Fatal: connect(");
    // ... of which the master says the same, should the log service not have heard it.
    cluster.allow_log("returned error 89");
    for node in 1..=nodes {
        cluster.node(node).imap_in(USER, "INBOX");
    }
    let stop = AtomicBool::new(false);
    let observers: Vec<_> = (0..=nodes)
        .map(|index| {
            let node = 1 + index % nodes;
            Observer::new(cluster.node(node), node, true)
        })
        .collect();
    let mut observers = std::thread::scope(|scope| {
        let clients = scope.spawn(|| {
            at_once(observers, |index, observer| {
                let mut client = Client {
                    random: Random::new(seed ^ ((index as u64 + 1) << 32)),
                    cluster: &cluster,
                    roams: index == nodes,
                    next: 100_000 * index,
                };
                while !stop.load(Ordering::Acquire) {
                    client.act(observer);
                }
            })
        });
        for round in &rounds {
            for (fault, ms) in &round.faults {
                fault.strike(&cluster);
                std::thread::sleep(Duration::from_millis(*ms as u64));
            }
            cluster.heal();
            std::thread::sleep(Duration::from_millis(round.quiet_ms as u64));
        }
        stop.store(true, Ordering::Release);
        clients.join().expect("the clients")
    });
    let history = conclude(&mut observers);
    match rebuilt(&cluster, format) {
        Some(node) => println!(
            "{what}: node {node}'s storage was made anew: {}",
            history.count()
        ),
        None => judge(&what, &history, 1),
    }
    // One whose other end was killed while nothing came through waits for ever: stock replication has
    // no limit for the first answer. The server would not stop before it.
    (1..=nodes).for_each(|node| {
        cluster.kill_dsync(node);
    });
}

/// A client of a random run.
struct Client<'a> {
    random: Random,
    cluster: &'a Cluster,
    /// It goes from node to node.
    roams: bool,
    /// The number of its last message.
    next: usize,
}

impl<'a> Client<'a> {
    /// One thing that clients do. What is refused, or lost with its connection, is noted by the
    /// observer where it counts.
    fn act(&mut self, observer: &mut Observer<'a>) {
        if self.roams && self.random.chance(4) {
            let node = 1 + self.random.below(self.cluster.nodes());
            observer.move_to(self.cluster.node(node), node);
        }
        let done = match self.random.below(20) {
            0..8 => {
                self.next += 1;
                observer.append(self.next)
            }
            8..13 => observer.look().map(drop),
            13..17 => observer.ask_news(),
            17..19 if self.next % 100_000 > 3 => {
                let back = self.random.below(3);
                observer.expunge(&format!("message {}", self.next - back))
            }
            _ => observer.flag(1 + self.random.below(5), "lab"),
        };
        let pause = match done {
            Ok(()) => 20 + self.random.below(200),
            Err(_) => 200,
        };
        std::thread::sleep(Duration::from_millis(pause as u64));
    }
}

/// Schedules of `make test`. Of each the number of nodes and the format follow from its seed: both
/// tests play all formats.
const ON_TWO_NODES: [u64; 3] = [2, 4, 6];
const ON_THREE_NODES: [u64; 3] = [1, 3, 5];

#[test]
fn random_faults_on_two_nodes_change_lose_and_double_nothing() {
    for seed in ON_TWO_NODES {
        play(seed, SHORT);
    }
}

#[test]
fn random_faults_on_three_nodes_change_lose_and_double_nothing() {
    for seed in ON_THREE_NODES {
        play(seed, SHORT);
    }
}

#[test]
#[ignore = "for make soak: half an hour"]
fn random_faults_change_lose_and_double_nothing() {
    let first = seed("IMAP_XID_CLUSTER_SEED", 1);
    let soak = std::env::var_os("IMAP_XID_SOAK").is_some();
    let runs = std::env::var("IMAP_XID_CLUSTER_RUNS").ok();
    let runs: Option<u64> = runs.and_then(|runs| runs.parse().ok());
    let start = Instant::now();
    let enough = |done: u64| match runs {
        Some(runs) => done >= runs,
        None if soak => start.elapsed() >= SOAK,
        None => done >= 1,
    };
    let mut done = 0;
    while !enough(done) {
        play(first + done, if soak { LONG } else { SHORT });
        done += 1;
    }
}
