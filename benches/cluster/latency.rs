//! How long an APPEND takes, and how long until its UID can be used.

use std::time::{Duration, Instant};

use crate::client::Client;
use crate::harness::cluster::Cluster;
use crate::harness::{Dovecot, Format, message_of};
use crate::report::Report;
use crate::rounds::{Side, alternate, quantile};
use crate::stock::{Pair, replicating};

/// Rounds of a comparison.
const ROUNDS: usize = 10;
/// APPENDs of one round.
const APPENDS: usize = 20;
/// Between two APPENDs of a client that is alone: all that the one before set off has ended.
const REST: Duration = Duration::from_millis(300);
/// Bytes of a message's body.
const BODY: usize = 4096 - 200;
/// Messages whose UIDs are waited for.
const SAMPLES: usize = 100;
/// The same where the other node has to get the message by the replicator.
const STOCK_SAMPLES: usize = 25;
const USER: &str = "alice";
/// APPEND may take this much longer than on a single stock server.
const APPEND_AT_MOST: f64 = 1.05;
const UID_AT_MOST_MS: f64 = 150.0;

pub fn measure(report: &mut Report) {
    for delay in [0, 20, 100] {
        append_beside_one_server(report, delay);
    }
    if report.wants("append_to_uid") {
        append_to_uid(report);
    }
}

fn apart(delay: u64) -> Cluster {
    let setup = Cluster::setup().nodes(3).lease("10s");
    match delay {
        0 => setup.start(),
        ms => setup.delay(Duration::from_millis(ms)).start(),
    }
}

/// One client at a time: the time of an APPEND while nothing else goes on, and of one APPEND
/// right after the other, which on a machine that all nodes share has their work beside it.
fn append_beside_one_server(report: &mut Report, delay: u64) {
    let names = [
        (format!("append_{delay}ms"), REST),
        (format!("append_{delay}ms_back_to_back"), Duration::ZERO),
    ];
    if !names.iter().any(|(name, _)| report.wants(name)) {
        return;
    }
    let (stock, cluster) = (Dovecot::setup().plugin(false).start(), apart(delay));
    for (name, rest) in names {
        if !report.wants(&name) {
            continue;
        }
        let ours = cluster.node(1);
        let side = |server| move || side(server, rest);
        let spread = alternate(ROUNDS, APPENDS, side(&stock), side(ours));
        let detail = format!(
            "median of {ROUNDS} rounds of {APPENDS}, quartiles {:.2} to {:.2}; {:.2} ms to {:.2} ms",
            spread.low,
            spread.high,
            spread.base * 1e3,
            spread.ours * 1e3
        );
        let most = Some(APPEND_AT_MOST);
        report.add(&name, Some(1.0), spread.ratio, "ratio", most, detail);
    }
}

/// A client whose every call is one APPEND, after a rest: its seconds.
fn side<'a>(server: &Dovecot, rest: Duration) -> Side<'a> {
    let mut client = Client::login(server.imap_addr(), USER);
    let message = message_of(1, BODY);
    Box::new(move || {
        std::thread::sleep(rest);
        client.append("INBOX", &message)
    })
}

fn append_to_uid(report: &mut Report) {
    let cluster = Cluster::setup().nodes(3).start();
    let ours = times_to_uid(cluster.node(1));
    drop(cluster);
    let stock = times_to_other();
    let ms = |times: &[f64], part| 1e3 * quantile(times, part);
    let detail = format!(
        "{SAMPLES} messages, 90 % within {:.0} ms; stock: until the replicator brought it to the \
         other node",
        ms(&ours, 0.9)
    );
    report.add(
        "append_to_uid_median",
        Some(ms(&stock, 0.5)),
        ms(&ours, 0.5),
        "ms",
        Some(UID_AT_MOST_MS),
        detail,
    );
}

/// From the first byte of an APPEND to the answer that has its UID, on the node that took it.
fn times_to_uid(server: &Dovecot) -> Vec<f64> {
    let mut client = Client::login(server.imap_addr(), USER);
    client.append("INBOX", &message_of(1, BODY));
    client.ok("SELECT INBOX");
    client.ok("FETCH * (UID)");
    let message = message_of(1, BODY);
    let sample = |_| {
        std::thread::sleep(REST);
        let start = Instant::now();
        client.append("INBOX", &message);
        client.ok("FETCH * (UID)");
        start.elapsed().as_secs_f64()
    };
    (0..SAMPLES).map(sample).collect()
}

/// From the first byte of an APPEND to its EXISTS on the other of two servers that replicate.
fn times_to_other() -> Vec<f64> {
    let pair = Pair::on(|net| replicating(net, Format::Sdbox));
    let mut writer = Client::login(pair.server(1).imap_addr(), USER);
    let mut reader = Client::login(pair.server(2).imap_addr(), USER);
    reader.ok("SELECT INBOX");
    let message = message_of(1, BODY);
    let sample = |_| {
        std::thread::sleep(REST);
        let start = Instant::now();
        writer.append("INBOX", &message);
        while !reader.news() {
            std::thread::sleep(Duration::from_millis(2));
        }
        start.elapsed().as_secs_f64()
    };
    (0..STOCK_SAMPLES).map(sample).collect()
}

impl Client {
    /// Whether a NOOP brings EXISTS.
    fn news(&mut self) -> bool {
        self.ok("NOOP");
        self.answer().contains(" EXISTS\r\n")
    }
}
