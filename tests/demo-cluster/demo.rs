//! The cluster's demonstration: two clients on different nodes write one mailbox, the nodes are
//! parted and joined again, and everything that the clients see is shown and counted; first on a
//! cluster of three, then on two stock servers that replicate to each other.
//!
//! Its last two lines are counts of what was seen on the wire.

#[path = "../harness/mod.rs"]
mod harness;
#[path = "../lab/history.rs"]
mod history;
mod ours;
mod pair;
#[path = "../demo/show.rs"]
mod show;
mod stage;
#[path = "../lab/stock.rs"]
mod stock;
mod story;
#[path = "../lab/workload.rs"]
mod workload;

use std::process::ExitCode;

use show::Show;

const USAGE: &str = "usage: make demo-cluster   (as root: it makes network namespaces)";

fn main() -> ExitCode {
    if std::env::args().any(|arg| arg == "--help") {
        println!("{USAGE}");
        return ExitCode::SUCCESS;
    }
    if !stage::is_on() {
        return stage::play();
    }
    let show = Show::new();
    let ours = ours::play(&show);
    let stock = pair::play(&show);
    show.title("Counted from what the clients saw on the wire");
    show.note(
        "changed: messages that were shown under more than one UID; lost: messages that the server \
         had acknowledged and that some node does not have in the end; duplicated: messages that \
         some node has more than once in the end.",
    );
    println!("\nours: {ours}\nstock: {stock}");
    ExitCode::SUCCESS
}
