//! How long an APPEND takes, and how long until its UID can be used.

use std::time::{Duration, Instant};

use crate::apart::Apart;
use crate::client::Client;
use crate::harness::cluster::Cluster;
use crate::harness::{Dovecot, Format, message_of};
use crate::report::Report;
use crate::rounds::{Side, alternate, quantile};
use crate::stock::{Pair, replicating};

/// Between two APPENDs of a client that is alone, once all nodes have settled the one before: what
/// that set off ends meanwhile.
const REST: Duration = Duration::from_millis(150);
/// The same for each millisecond that a packet takes: the last news are on their way that long.
const REST_FOR_DELAY: u32 = 4;
/// APPENDs of one session that rests before each.
const SESSION: usize = 20;
/// The same for sessions of a single APPEND.
const FIRST: (usize, usize) = (1, 40);
/// APPENDs of one round, and rounds, one right after the other.
const BACK_TO_BACK: (usize, usize) = (20, 30);
/// Bytes of a message's body.
const BODY: usize = 4096 - 200;
/// Messages whose UIDs are waited for.
const SAMPLES: usize = 60;
/// The same where the other node has to get the message by the replicator.
const STOCK_SAMPLES: usize = 25;
const USER: &str = "alice";
/// APPEND may take this much longer than on a single stock server.
const APPEND_AT_MOST: f64 = 1.05;
const UID_AT_MOST_MS: f64 = 150.0;

pub fn measure(report: &mut Report) {
    // The further apart, the longer it takes until a message is settled, and the fewer sessions there
    // are. They are equally long: a session's first APPEND takes longer than the others.
    for (delay, rounds) in [(0, 20), (20, 14), (100, 8)] {
        append_beside_one_server(report, delay, (SESSION, rounds));
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

/// One client at a time: the time of an APPEND while nothing else goes on. Beside it, without a limit,
/// that of a session's first, which reads the index's log; and that of one APPEND right after the other: there the work that all nodes have with the ones
/// before is done beside it, and on one machine by the same processors.
fn append_beside_one_server(report: &mut Report, delay: u32, turns: (usize, usize)) {
    let alone = format!("append_{delay}ms");
    let row = format!("{alone}_back_to_back");
    let first = format!("{alone}_first");
    if [&alone, &row, &first]
        .iter()
        .all(|name| !report.wants(name))
    {
        return;
    }
    let (stock, cluster) = (Dovecot::setup().plugin(false).start(), apart(delay.into()));
    let ours = cluster.node(1);
    let _apart = Apart::new(&[&stock, ours]);
    let rest = REST + Duration::from_millis(delay.into()) * REST_FOR_DELAY;
    if report.wants(&alone) {
        let (stock, ours) = (|| rested(&stock, rest, false), || rested(ours, rest, true));
        compare(report, &alone, turns, Some(APPEND_AT_MOST), stock, ours);
    }
    if report.wants(&first) {
        let (stock, ours) = (|| rested(&stock, rest, false), || rested(ours, rest, true));
        compare(report, &first, FIRST, None, stock, ours);
    }
    if report.wants(&row) {
        let side = |server| move || back_to_back(server);
        compare(report, &row, BACK_TO_BACK, None, side(&stock), side(ours));
    }
}

fn compare<'a>(
    report: &mut Report,
    name: &str,
    (slices, rounds): (usize, usize),
    at_most: Option<f64>,
    stock: impl FnMut() -> Side<'a>,
    ours: impl FnMut() -> Side<'a>,
) {
    let spread = alternate(rounds, slices, stock, ours);
    let detail = format!(
        "median of {rounds} rounds of {slices}, quartiles {:.2} to {:.2}; {:.2} ms to {:.2} ms",
        spread.low,
        spread.high,
        spread.base * 1e3,
        spread.ours * 1e3
    );
    report.add(name, Some(1.0), spread.ratio, "ratio", at_most, detail);
}

/// A client whose every call is one APPEND, after a rest: its seconds. In a cluster it then waits,
/// beside the clock, until the message's UID can be used.
fn rested<'a>(server: &'a Dovecot, rest: Duration, settles: bool) -> Side<'a> {
    let mut client = Client::login(server.imap_addr(), USER);
    let mut reader = settles.then(|| {
        let mut reader = Client::login(server.imap_addr(), USER);
        reader.ok("SELECT INBOX");
        reader
    });
    let message = message_of(1, BODY);
    Box::new(move || {
        std::thread::sleep(rest);
        let seconds = client.append("INBOX", &message);
        if let Some(reader) = &mut reader {
            reader.ok("NOOP");
            reader.ok("FETCH * (UID)");
        }
        seconds
    })
}

/// A client whose every call is one APPEND.
fn back_to_back<'a>(server: &'a Dovecot) -> Side<'a> {
    let mut client = Client::login(server.imap_addr(), USER);
    let message = message_of(1, BODY);
    Box::new(move || client.append("INBOX", &message))
}

/// Stock replication joins two nodes, and so is compared with two; three take longer, since the writer
/// has one sync with each of the others.
fn append_to_uid(report: &mut Report) {
    let stock = times_to_other();
    let ms = |times: &[f64], part| 1e3 * quantile(times, part);
    for (name, nodes) in [("append_to_uid", 2), ("append_to_uid_three_nodes", 3)] {
        let cluster = Cluster::setup().nodes(nodes).start();
        let ours = times_to_uid(cluster.node(1));
        let detail = format!(
            "median of {SAMPLES} messages, 90 % within {:.0} ms; stock: until the replicator \
             brought it to the other node",
            ms(&ours, 0.9)
        );
        let (stock, ours) = (Some(ms(&stock, 0.5)), ms(&ours, 0.5));
        report.add(name, stock, ours, "ms", Some(UID_AT_MOST_MS), detail);
    }
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
