//! Sizes: of the plug-in's file, and of an idle imap process.

use std::path::Path;
use std::process::Command;

use crate::client::Client;
use crate::harness::{Dovecot, message, plugin_path};
use crate::report::Report;
use crate::rounds::quantile;

pub fn measure(report: &mut Report) {
    if report.wants(&["plugin_size"]) {
        let size = stripped_size(plugin_path()) as f64 / f64::from(1 << 20);
        report.add("plugin_size", size, "MiB", 1.5, "stripped".into());
    }
    if report.wants(&["idle_memory"]) {
        let (stock, ours) = (
            idle_memory(false, report.rounds),
            idle_memory(true, report.rounds),
        );
        let detail = format!("resident {stock:.2} MiB to {ours:.2} MiB");
        report.add("idle_memory", ours - stock, "MiB", 1.0, detail);
    }
}

fn stripped_size(file: &Path) -> u64 {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let copy = dir.path().join("plugin.so");
    let done = Command::new("strip")
        .arg("--strip-unneeded")
        .arg("-o")
        .arg(&copy)
        .arg(file)
        .status();
    assert!(
        done.is_ok_and(|status| status.success()),
        "strip (binutils) is needed"
    );
    copy.metadata().expect("strip wrote it").len()
}

/// Resident memory of an imap process with a mailbox selected, in MiB: the median of several.
fn idle_memory(plugin: bool, sessions: usize) -> f64 {
    let server = Dovecot::setup().plugin(plugin).start();
    for n in 0..10 {
        server.append("mem", "INBOX", &message(n));
    }
    let mut sizes = Vec::new();
    for _ in 0..sessions {
        let mut client = Client::login(server.imap_addr(), "mem");
        client.ok("SELECT INBOX");
        client.ok("NOOP");
        let pids = server.pids("imap");
        sizes.extend(pids.iter().map(|pid| resident(*pid)));
        client.ok("LOGOUT");
        crate::harness::until("the imap process ends", || server.pids("imap").is_empty());
    }
    quantile(&sizes, 0.5)
}

fn resident(pid: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("a live process");
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .expect("VmRSS");
    let kib: f64 = line
        .split_whitespace()
        .nth(1)
        .and_then(|n| n.parse().ok())
        .expect("a number");
    kib / 1024.0
}
