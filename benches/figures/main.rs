//! The figures of docs/performance.md: what the plug-in costs, against the same server without it.
//!
//! `make bench` runs this. Every figure is printed as `name value unit` as soon as it is known, and
//! all of them as a table at the end. A NAME on the command line measures only figures whose names
//! contain it. `IMAP_XID_BENCH_ROUNDS` is the number of rounds, at least 10 for a figure to publish.

mod apart;
#[path = "../../tests/wire/assign.rs"]
mod assign;
mod assigner;
mod awake;
mod big;
mod client;
#[path = "../../tests/harness/mod.rs"]
mod harness;
mod process;
mod report;
mod rounds;
mod save;
mod waiting;

use std::process::ExitCode;

use report::Report;

/// Rounds where the environment names no number. Each has sessions of its own, and a session is some
/// per cent faster or slower than the next for all its life: many rounds tell small figures apart,
/// where many turns within a round would not.
const ROUNDS: usize = 60;

fn main() -> ExitCode {
    if std::env::var_os("IMAP_XID_PLUGIN").is_none() {
        eprintln!("figures: run `make bench`: IMAP_XID_PLUGIN has to name an optimised plug-in");
        return ExitCode::FAILURE;
    }
    let names: Vec<String> = std::env::args()
        .skip(1)
        .filter(|arg| !arg.starts_with('-'))
        .collect();
    let rounds = std::env::var("IMAP_XID_BENCH_ROUNDS")
        .ok()
        .and_then(|n| n.parse().ok());
    let mut report = Report::new(names, rounds.unwrap_or(ROUNDS));
    process::measure(&mut report);
    save::measure(&mut report);
    waiting::measure(&mut report);
    assigner::measure(&mut report);
    big::measure(&mut report);
    report.print_table();
    ExitCode::SUCCESS
}
