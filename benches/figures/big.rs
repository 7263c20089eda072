//! What large mailboxes cost: reading and opening them, and finding the news in them.

use crate::apart::Apart;
use crate::awake::Awake;
use crate::client::Client;
use crate::harness::{Dovecot, Format, message_of};
use crate::report::Report;
use crate::rounds::{Side, alternate};

const USER: &str = "big";
/// New messages to be found.
const NEWS: u32 = 10;
/// How often a short command is repeated within one round.
const REPEATS: usize = 5;
/// How often the news are found within one turn, and as often before it: opening a mailbox of a
/// million messages leaves the processor's caches cold, which is SELECT's cost.
const FINDS: usize = 20;
/// Turns of a round that reads the whole mailbox.
const SLICES: usize = 2;

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
    let (apart, _awake) = (Apart::new(&[&stock, &ours]), Awake::start());
    read_figures(report, &stock, &ours);
    if report.wants(&news) {
        news_figures(report, &stock, &ours);
    }
    drop(apart);
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
    let fetch = |report: &mut Report, name: &'static str, command: &str| {
        if report.wants(&[name]) {
            let [base, ours] = [stock, ours].map(|server| move || warm(server, command));
            report.add_ratio(name, &alternate(report.rounds, SLICES, base, ours), 1.02);
        }
    };
    fetch(report, "fetch_flags", "FETCH 1:* (FLAGS)");
    fetch(report, "uid_fetch_flags", "UID FETCH 1:* (FLAGS)");
    if report.wants(&["select"]) {
        let [base, ours] = [stock, ours].map(|server| move || select(server));
        report.add_ratio(
            "select",
            &alternate(report.rounds, REPEATS, base, ours),
            1.05,
        );
    }
}

// Every round has sessions of its own: where the kernel puts a process can make it slower or
// faster for all its life, and that would otherwise be the figure.

/// Seconds of a command in the middle mailbox, after it ran once.
fn warm<'a>(server: &'a Dovecot, command: &'a str) -> Side<'a> {
    let mut client = in_mailbox(server, BOXES[1]);
    client.ok(command);
    Box::new(move || client.ok(command))
}

/// Seconds of a SELECT of the middle mailbox.
fn select(server: &Dovecot) -> Side<'_> {
    let mut client = in_mailbox(server, BOXES[1]);
    Box::new(move || {
        client.ok("UNSELECT");
        client.ok(&format!("SELECT {}", BOXES[1]))
    })
}

/// A side that is one turn.
fn at_once<'a>(measured: impl FnMut() -> f64 + 'a) -> Side<'a> {
    Box::new(measured)
}

fn in_mailbox(server: &Dovecot, mailbox: &str) -> Client {
    let mut client = Client::timed(server, USER);
    client.ok(&format!("SELECT {mailbox}"));
    client
}

fn mean(repeats: usize, mut measured: impl FnMut() -> f64) -> f64 {
    (0..repeats).map(|_| measured()).sum::<f64>() / repeats as f64
}

fn news_figures(report: &mut Report, stock: &Dovecot, ours: &Dovecot) {
    let [small, large] = [BOXES[0], BOXES[2]];
    let small_state = state(ours, small);
    let large_state = state(ours, large);
    let resync = Resync::new(stock, large);
    add_news(ours, small);
    add_news(ours, large);
    add_news(stock, large);

    let resync = || at_once(|| resync.extra(stock));
    if report.wants(&["news_state"]) {
        let find = || at_once(|| find(ours, large, &large_state));
        let spread = alternate(report.rounds, 1, resync, find);
        report.add_ratio("news_state", &spread, 0.5);
    }
    if report.wants(&["news_plain"]) {
        let plain = without_mark(&large_state);
        let find = || at_once(|| find(ours, large, &plain));
        let spread = alternate(report.rounds, 1, resync, find);
        report.add_ratio("news_plain", &spread, 1.0);
    }
    if report.wants(&["news_growth"]) {
        let base = || at_once(|| find(ours, small, &small_state));
        let grown = || at_once(|| find(ours, large, &large_state));
        let spread = alternate(report.rounds, 1, base, grown);
        report.add_ratio("news_growth", &spread, 1.5);
    }
}

/// The state that a client would save of a mailbox.
fn state(server: &Dovecot, mailbox: &str) -> String {
    let mut client = in_mailbox(server, mailbox);
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
fn find(server: &Dovecot, mailbox: &str, state: &str) -> f64 {
    let mut client = in_mailbox(server, mailbox);
    let command = format!("XHXID {state}");
    mean(FINDS, || client.ok(&command));
    let seconds = mean(FINDS, || client.ok(&command));
    assert_eq!(
        client.answer().matches("* XHXID ").count(),
        NEWS as usize,
        "{command}"
    );
    seconds
}

/// How a client finds the news by QRESYNC.
struct Resync {
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
        Resync { plain, resync }
    }

    /// Seconds that SELECT (QRESYNC ...) takes beyond a plain SELECT, the mean of several.
    fn extra(&self, server: &Dovecot) -> f64 {
        let mut client = Client::timed(server, USER);
        client.ok("ENABLE QRESYNC");
        client.ok(&self.plain);
        mean(REPEATS, || {
            client.ok("UNSELECT");
            let plain = client.ok(&self.plain);
            client.ok("UNSELECT");
            let resync = client.ok(&self.resync);
            let found = client.answer().matches(" FETCH (").count();
            assert_eq!(found, NEWS as usize, "{}", self.resync);
            resync - plain
        })
    }
}
