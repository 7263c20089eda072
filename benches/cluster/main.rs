//! The cluster's figures of docs/performance.md, each beside what stock Dovecot does in the same
//! run.
//!
//! `make bench-cluster` runs this. Every figure is printed as `name value unit` as soon as it is
//! known (`name_stock` is the stock servers' value), and all of them as a table at the end. A NAME
//! on the command line measures only figures whose names contain it.

#[path = "../figures/apart.rs"]
mod apart;
#[path = "../figures/client.rs"]
#[allow(dead_code)]
mod client;
mod contention;
mod counts;
#[path = "../../tests/harness/mod.rs"]
mod harness;
#[path = "../../tests/lab/history.rs"]
mod history;
mod latency;
mod outage;
mod report;
#[path = "../figures/rounds.rs"]
#[allow(dead_code)]
mod rounds;
#[path = "../../tests/lab/stock.rs"]
mod stock;
#[path = "../../tests/lab/workload.rs"]
mod workload;

use std::process::ExitCode;

use report::Report;

fn main() -> ExitCode {
    if ["IMAP_XID_PLUGIN", "IMAP_XID_XIDD"]
        .iter()
        .any(|name| std::env::var_os(name).is_none())
    {
        eprintln!(
            "cluster figures: run `make bench-cluster`: IMAP_XID_PLUGIN and IMAP_XID_XIDD have to \
             name optimised builds"
        );
        return ExitCode::FAILURE;
    }
    let names = std::env::args().skip(1).filter(|arg| !arg.starts_with('-'));
    let mut report = Report::new(names.collect());
    counts::measure(&mut report);
    latency::measure(&mut report);
    outage::measure(&mut report);
    contention::measure(&mut report);
    report.print_table();
    ExitCode::SUCCESS
}
