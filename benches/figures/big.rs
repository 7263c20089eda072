//! What large mailboxes cost: reading and opening them, and finding the news in them.

use crate::client::Client;
use crate::harness::{Dovecot, Format, message_of};
use crate::report::Report;
use crate::rounds::alternate;

const USER: &str = "big";
/// New messages to be found.
const NEWS: u32 = 10;
/// How often a short command is repeated within one round.
const REPEATS: usize = 20;

/// The mailboxes, each ten times the one before; COPY makes them, which in mdbox writes nothing but
/// indexes.
const SEED: (&str, usize) = ("Seed", 1_000);
const BOXES: [&str; 3] = ["N10000", "N100000", "N1000000"];

pub fn measure(report: &mut Report) {
    let reading = ["fetch_flags", "uid_fetch_flags", "select"];
    let news = ["news_state", "news_plain", "news_growth"];
    if !report.wants(&[reading, news].concat()) {
        return;
    }
    let boxes = if report.wants(&news) { 3 } else { 2 };
    let [stock, ours] = [false, true].map(|plugin| {
        let setup = Dovecot::setup().plugin(plugin).format(Format::Mdbox);
        let server = setup.set("mail_fsync", "never").start();
        fill(&server, boxes);
        server
    });
    read_figures(report, &stock, &ours);
    if report.wants(&news) {
        news_figures(report, &stock, &ours);
    }
}

fn fill(server: &Dovecot, boxes: usize) {
    let mut client = Client::login(server.imap_addr(), USER);
    client.ok(&format!("CREATE {}", SEED.0));
    for n in 0..SEED.1 {
        client.append(SEED.0, &message_of(n, 1000));
    }
    let mut from = SEED.0;
    for to in &BOXES[..boxes] {
        client.ok(&format!("CREATE {to}"));
        client.ok(&format!("SELECT {from}"));
        for _ in 0..10 {
            client.ok(&format!("COPY 1:* {to}"));
        }
        from = to;
    }
    client.ok("LOGOUT");
}

fn read_figures(report: &mut Report, stock: &Dovecot, ours: &Dovecot) {
    let mut clients = [stock, ours].map(|server| Client::timed(server, USER));
    for client in &mut clients {
        client.ok(&format!("SELECT {}", BOXES[1]));
    }
    let [stock, ours] = &mut clients;
    let mut fetch = |report: &mut Report, name: &'static str, command: &str| {
        if report.wants(&[name]) {
            let spread = alternate(report.rounds, || stock.ok(command), || ours.ok(command));
            report.add_ratio(name, &spread, 1.02);
        }
    };
    fetch(report, "fetch_flags", "FETCH 1:* (FLAGS)");
    fetch(report, "uid_fetch_flags", "UID FETCH 1:* (FLAGS)");
    if report.wants(&["select"]) {
        let spread = alternate(report.rounds, || select(stock), || select(ours));
        report.add_ratio("select", &spread, 1.05);
    }
}

/// Seconds of a SELECT of the middle mailbox, the mean of several.
fn select(client: &mut Client) -> f64 {
    mean(|| {
        client.ok("UNSELECT");
        client.ok(&format!("SELECT {}", BOXES[1]))
    })
}

fn mean(mut measured: impl FnMut() -> f64) -> f64 {
    (0..REPEATS).map(|_| measured()).sum::<f64>() / REPEATS as f64
}

fn news_figures(report: &mut Report, stock: &Dovecot, ours: &Dovecot) {
    let [small, large] = [BOXES[0], BOXES[2]];
    let mut clients = [ours, ours].map(|server| Client::timed(server, USER));
    let [small_client, large_client] = &mut clients;
    let small_state = state(small_client, small);
    let large_state = state(large_client, large);
    let mut resync = Resync::new(stock, large);
    add_news(ours, small);
    add_news(ours, large);
    add_news(stock, large);
    for client in [&mut *small_client, &mut *large_client] {
        // What came meanwhile is taken in before the clock runs.
        client.ok("NOOP");
    }

    let with_mark = format!("XHXID {large_state}");
    if report.wants(&["news_state"]) {
        let ours = || find(large_client, &with_mark);
        report.add_ratio(
            "news_state",
            &alternate(report.rounds, || resync.extra(), ours),
            0.5,
        );
    }
    if report.wants(&["news_plain"]) {
        let plain = format!("XHXID {}", without_mark(&large_state));
        let ours = || find(large_client, &plain);
        report.add_ratio(
            "news_plain",
            &alternate(report.rounds, || resync.extra(), ours),
            1.0,
        );
    }
    if report.wants(&["news_growth"]) {
        let command = format!("XHXID {small_state}");
        let base = || find(small_client, &command);
        let ours = || find(large_client, &with_mark);
        report.add_ratio("news_growth", &alternate(report.rounds, base, ours), 1.5);
    }
}

/// Selects the mailbox and gives the state that a client would save.
fn state(client: &mut Client, mailbox: &str) -> String {
    client.ok(&format!("SELECT {mailbox}"));
    client.ok("XHXID");
    client.code("XHXID")
}

/// A state of numbers alone.
fn without_mark(state: &str) -> String {
    let items = state.split(' ').filter(|item| !item.starts_with('@'));
    items.collect::<Vec<_>>().join(" ")
}

fn add_news(server: &Dovecot, mailbox: &str) {
    let mut client = Client::login(server.imap_addr(), USER);
    client.ok(&format!("SELECT {}", SEED.0));
    client.ok(&format!("COPY 1:{NEWS} {mailbox}"));
}

/// Seconds of an XHXID that finds exactly the news, the mean of several.
fn find(client: &mut Client, command: &str) -> f64 {
    let seconds = mean(|| client.ok(command));
    assert_eq!(
        client.answer().matches("* XHXID ").count(),
        NEWS as usize,
        "{command}"
    );
    seconds
}

/// A client that finds the news by QRESYNC.
struct Resync {
    client: Client,
    plain: String,
    resync: String,
}

impl Resync {
    fn new(server: &Dovecot, mailbox: &str) -> Resync {
        let mut client = Client::timed(server, USER);
        client.ok("ENABLE QRESYNC");
        let plain = format!("SELECT {mailbox}");
        client.ok(&plain);
        let (validity, modseq) = (client.code("UIDVALIDITY"), client.code("HIGHESTMODSEQ"));
        let resync = format!("{plain} (QRESYNC ({validity} {modseq}))");
        Resync {
            client,
            plain,
            resync,
        }
    }

    /// Seconds that SELECT (QRESYNC ...) takes beyond a plain SELECT, the mean of several.
    fn extra(&mut self) -> f64 {
        mean(|| {
            self.client.ok("UNSELECT");
            let plain = self.client.ok(&self.plain);
            self.client.ok("UNSELECT");
            let resync = self.client.ok(&self.resync);
            let found = self.client.answer().matches(" FETCH (").count();
            assert_eq!(found, NEWS as usize, "{}", self.resync);
            resync - plain
        })
    }
}
