//! Two stock servers that replicate by `doveadm sync`: what the cluster is measured against.

// Every program takes what it needs of it.
#![allow(dead_code)]

use std::process::Command;
use std::time::Duration;

use super::harness::net::Net;
use super::harness::{Dovecot, Format, Setup, run};
use super::history::History;
use super::workload::{Observer, USER, conclude, meanwhile, write_by_turns};

/// doveadm's port on every node.
const DOVEADM: u16 = 4155;
/// Full syncs after which both sides of a stock pair agree; the first ones still renumber.
const SETTLING_SYNCS: usize = 4;

/// A pair of stock servers. Stopped and removed when dropped.
pub struct Pair {
    servers: [Dovecot; 2],
    /// The link between them.
    pub net: Net,
}

impl Pair {
    /// Starts both, and makes the mailbox known to both.
    pub fn start(format: Format) -> Pair {
        Pair::on(|net| [1, 2].map(|node| server(net, node, format).start()))
    }

    /// The same with servers of another kind.
    pub fn on(servers: impl FnOnce(&Net) -> [Dovecot; 2]) -> Pair {
        let net = Net::new(2).expect("namespaces (needs root)");
        let pair = Pair {
            servers: servers(&net),
            net,
        };
        // dsync asserts when INBOX was made on each side by itself.
        let status = ["mailbox", "status", "-u", USER, "messages", "INBOX"];
        pair.server(1).doveadm_ok(&status);
        assert!(pair.sync(true), "the first sync");
        pair
    }

    /// Of node 1 or 2.
    pub fn server(&self, node: usize) -> &Dovecot {
        &self.servers[node - 1]
    }

    /// A client on each.
    pub fn observers(&self) -> Vec<Observer<'_>> {
        (1..=2)
            .map(|node| Observer::new(self.server(node), node, false))
            .collect()
    }

    /// One two-way sync. A failure is the carrier's business, as it is in production: the next
    /// one repairs it.
    pub fn sync(&self, full: bool) -> bool {
        run(&mut self.sync_command(full), b"").code == 0
    }

    /// A two-way sync to be started by the caller.
    pub fn sync_command(&self, full: bool) -> Command {
        let peer = format!("tcp:{}:{DOVEADM}", self.net.ip(2));
        let mut args = vec!["sync", "-u", USER];
        args.extend(full.then_some("-f"));
        args.push(&peer);
        self.server(1).doveadm_command(&args)
    }

    /// Syncs until both sides have everything.
    pub fn settle(&self) {
        for _ in 0..SETTLING_SYNCS {
            self.sync(true);
        }
    }
}

/// A stock server on a node of the lab that others can sync with.
fn server(net: &Net, node: usize, format: Format) -> Setup {
    let doveadm = format!(
        "doveadm_password = lab\ndoveadm_port = {DOVEADM}\n\
         service doveadm {{\n  inet_listener {{\n    port = {DOVEADM}\n  }}\n}}"
    );
    Dovecot::setup()
        .plugin(false)
        .format(format)
        .at(net, node)
        .conf(&doveadm)
}

/// Two servers that bring each other what is new by Dovecot's own replicator.
pub fn replicating(net: &Net, format: Format) -> [Dovecot; 2] {
    let services = "service replicator {\n  process_min_avail = 1\n\
         \x20 unix_listener replicator-doveadm {\n    mode = 0600\n  }\n}\n\
         service aggregator {\n  fifo_listener replication-notify-fifo {\n    mode = 0666\n  }\n\
         \x20 unix_listener replication-notify {\n    mode = 0666\n  }\n}\n";
    [(1, 2), (2, 1)].map(|(node, other)| {
        let replica = format!(
            "{services}plugin {{\n  mail_replica = tcp:{}:{DOVEADM}\n}}",
            net.ip(other)
        );
        server(net, node, format)
            .mail_plugins("zlib notify replication")
            .conf(&replica)
            .start()
    })
}

/// Messages written by turns on two nodes while a loop syncs them; what the clients saw.
pub fn pair_written_by_turns(format: Format, count: usize, pause: Duration) -> History {
    let pair = Pair::start(format);
    let mut observers = meanwhile(
        || {
            pair.sync(false);
        },
        || write_by_turns(pair.observers(), 0, count, pause),
    );
    pair.settle();
    conclude(&mut observers)
}
