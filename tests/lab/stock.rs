//! Two stock servers that replicate by `doveadm sync`: what the cluster is measured against.

use std::time::Duration;

use super::harness::net::Net;
use super::harness::{Dovecot, Format};
use super::history::{Count, History};
use super::workload::{Observer, USER, meanwhile, write_by_turns};

/// doveadm's port on every node.
const DOVEADM: u16 = 4155;
/// Full syncs after which both sides of a stock pair agree; the first ones still renumber.
const SETTLING_SYNCS: usize = 4;

/// A stock server on a node of the lab that others can sync with.
pub fn server(net: &Net, node: usize, format: Format) -> Dovecot {
    let doveadm = format!(
        "doveadm_password = lab\ndoveadm_port = {DOVEADM}\n\
         service doveadm {{\n  inet_listener {{\n    port = {DOVEADM}\n  }}\n}}"
    );
    Dovecot::setup()
        .plugin(false)
        .format(format)
        .at(net, node)
        .conf(&doveadm)
        .start()
}

/// One two-way sync from `server` to node `to`. A failure is the carrier's business, as it is
/// in production: the next one repairs it.
pub fn sync(server: &Dovecot, net: &Net, to: usize, full: bool) -> bool {
    let peer = format!("tcp:{}:{DOVEADM}", net.ip(to));
    let mut args = vec!["sync", "-u", USER];
    args.extend(full.then_some("-f"));
    args.push(&peer);
    server.doveadm(&args).code == 0
}

/// Messages written by turns on two nodes while a loop syncs them; what the clients saw.
pub fn pair_written_by_turns(format: Format, count: usize, pause: Duration) -> (Count, History) {
    let net = Net::new(2).expect("namespaces (needs root)");
    let servers = [server(&net, 1, format), server(&net, 2, format)];
    // dsync asserts when INBOX was made on each side by itself.
    servers[0].doveadm_ok(&["mailbox", "status", "-u", USER, "messages", "INBOX"]);
    assert!(sync(&servers[0], &net, 2, true), "the first sync");
    let observers = vec![
        Observer::new(&servers[0], 1, false),
        Observer::new(&servers[1], 2, false),
    ];
    let mut observers = meanwhile(
        || {
            sync(&servers[0], &net, 2, false);
        },
        || write_by_turns(observers, count, pause),
    );
    for _ in 0..SETTLING_SYNCS {
        sync(&servers[0], &net, 2, true);
    }
    let mut history = History::default();
    for observer in &mut observers {
        observer.last_look();
        history.extend(std::mem::take(&mut observer.history));
    }
    (history.count(), history)
}

#[test]
fn a_stock_pair_changes_uids_that_clients_saw() {
    let (count, history) = pair_written_by_turns(Format::Sdbox, 40, Duration::from_millis(20));
    println!("stock: {count}");
    assert!(
        count.changed > 0,
        "the lab sees what dsync is known to do: {count}"
    );
    assert!(history.violations().iter().any(|v| v.invariant == "I1"));
}
