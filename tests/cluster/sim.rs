//! What the cluster costs: the protocol core unchanged, in simulated time.
//!
//! `cluster-sim [NAME=VALUE]...` prints `name value unit` lines and a table; docs/scale.md has
//! the figures of its defaults.

mod carrier;
mod cell;

use cell::{Cell, Counts, Given, Time};

const HELP: &str = "\
cluster-sim [NAME=VALUE]...
What a message costs in a cluster of 2 to 5 nodes, by simulation.
  messages=N    appended in each run (200)
  every=MS      between two messages of one node (500; `rare`: 20 times as much)
  fsync=US      one write to a disk (2000)
  command=US    one command of the daemon on its own node (1500)
  dsync=US      a dsync without distance (60000)
  turns=N       how often a dsync waits for the other side (6)
  reads=1       each decision asks a majority of etcd's members, not the nearest one (0)
Names are NAME.NODES.RTT.WORKLOAD: RTT in ms; `rare` and `one`: one writer, on another node than
etcd's leader; `all`: every node writes.";

const NODES: [u8; 4] = [2, 3, 4, 5];
const RTTS_MS: [u64; 3] = [0, 20, 100];
const MS: Time = 1000;

struct Options {
    messages: usize,
    every: Time,
    given: Given,
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.iter().any(|a| a == "--help") {
        println!("{HELP}");
        return;
    }
    let options = options(&args).unwrap_or_else(|bad| {
        eprintln!("{bad}: not understood\n{HELP}");
        std::process::exit(2);
    });
    let mut table = Vec::new();
    for nodes in NODES {
        for rtt in RTTS_MS {
            for (name, writers, slow) in [("rare", 1, 20), ("one", 1, 1), ("all", nodes, 1)] {
                let every = options.every * slow;
                let run = run(&options, nodes, rtt * MS, writers, every);
                let counts = run.unwrap_or_else(|why| {
                    eprintln!("{nodes} nodes, {rtt} ms, {name}: {why}");
                    std::process::exit(1);
                });
                let figures = figures(&counts);
                for (figure, value, unit) in &figures {
                    println!("{figure}.{nodes}.{rtt}.{name} {value:.2} {unit}");
                }
                table.push((format!("{nodes} | {rtt} ms | {name}"), figures));
            }
        }
    }
    print_table(&table);
}

fn options(args: &[String]) -> Result<Options, String> {
    let mut options = Options {
        messages: 200,
        every: 500 * MS,
        given: Given {
            nodes: 0,
            rtt: 0,
            fsync: 2 * MS,
            command: 1500,
            dsync: 60 * MS,
            dsync_turns: 6,
            reads: false,
        },
    };
    for arg in args {
        let (name, value) = arg.split_once('=').ok_or_else(|| arg.clone())?;
        let value: u64 = value.parse().map_err(|_| arg.clone())?;
        match name {
            "messages" => options.messages = value as usize,
            "every" => options.every = value * MS,
            "fsync" => options.given.fsync = value,
            "command" => options.given.command = value,
            "dsync" => options.given.dsync = value,
            "turns" => options.given.dsync_turns = value,
            "reads" => options.given.reads = value != 0,
            _ => return Err(arg.clone()),
        }
    }
    Ok(options)
}

/// One mailbox on so many nodes. A lone writer is not beside etcd's leader; several write at
/// moments of their own, each as often as the lone one.
fn run(
    options: &Options,
    nodes: u8,
    rtt: Time,
    writers: u8,
    every: Time,
) -> Result<Counts, &'static str> {
    let given = Given {
        nodes,
        rtt,
        ..options.given.clone()
    };
    let mut cell = Cell::new(given);
    let writers = usize::from(writers);
    for message in 0..options.messages {
        let writer = message % writers;
        let node = if writers == 1 { 1 } else { writer };
        let round = (message / writers) as Time * every;
        // A golden-section step: never twice at one distance from the other nodes' rounds.
        let jitter = message as Time * 618_034 % (every / 2).max(1);
        cell.append_at(round + jitter, node);
    }
    cell.run()?;
    Ok(std::mem::take(&mut cell.counts))
}

type Figure = (&'static str, f64, &'static str);

fn figures(counts: &Counts) -> Vec<Figure> {
    let messages = counts.appends.len() as f64;
    let each = |count: u64| count as f64 / messages;
    vec![
        ("etcd_writes", each(counts.writes), "per_message"),
        ("etcd_refused", each(counts.refused), "per_message"),
        ("etcd_reads", each(counts.reads), "per_message"),
        ("etcd_bytes", each(counts.bytes), "bytes_per_message"),
        ("syncs", each(counts.syncs), "per_message"),
        ("syncs_refused", each(counts.sync_refused), "per_message"),
        ("gates", each(counts.gates), "per_message"),
        ("append_longest", quantile(&counts.appends, 100), "ms"),
        (
            "usable_here_median",
            quantile(&counts.usable_here, 50),
            "ms",
        ),
        ("usable_here_99", quantile(&counts.usable_here, 99), "ms"),
        (
            "usable_everywhere_median",
            quantile(&counts.usable_everywhere, 50),
            "ms",
        ),
        (
            "usable_everywhere_99",
            quantile(&counts.usable_everywhere, 99),
            "ms",
        ),
    ]
}

/// In milliseconds.
fn quantile(times: &[Time], percent: usize) -> f64 {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    let at = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
    sorted.get(at).map_or(0.0, |t| *t as f64 / MS as f64)
}

fn print_table(rows: &[(String, Vec<Figure>)]) {
    let Some((_, first)) = rows.first() else {
        return;
    };
    let names: Vec<_> = first
        .iter()
        .map(|(name, ..)| name.replace('_', " "))
        .collect();
    println!("\n| nodes | RTT | writers | {} |", names.join(" | "));
    println!("|{}", "---|".repeat(names.len() + 3));
    for (name, figures) in rows {
        let values: Vec<_> = figures.iter().map(|(_, value, _)| short(*value)).collect();
        println!("| {name} | {} |", values.join(" | "));
    }
}

fn short(value: f64) -> String {
    if value >= 100.0 {
        format!("{value:.0}")
    } else {
        format!("{value:.1}")
    }
}
