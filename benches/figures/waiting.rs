//! What it costs that UIDs wait: those who wait, and those who do not.

use std::time::{Duration, Instant};

use crate::apart::Apart;
use crate::assign::{Assigner, guid, inbox_state};
use crate::awake::Awake;
use crate::client::Client;
use crate::harness::{Dovecot, Setup, message, message_of, until};
use crate::report::{Report, time};
use crate::rounds::{Side, alternate, quantile};

/// Messages that wait while others work.
const PENDING: usize = 1000;
/// Turns of one round.
const SLICES: usize = 5;
/// APPENDs of one turn.
const APPENDS: usize = 10;
/// How many times the rounds of other figures there are of APPENDs, since they wait for a disk.
const TIMES: usize = 3;
/// UID FETCHes of one turn.
const FETCHES: usize = 5;
/// Advances that one client waits for, one after the other.
const ADVANCES: u32 = 300;
/// Clients that wait at once.
const CLIENTS: usize = 1000;
/// For how long they are watched.
const WATCHED: Duration = Duration::from_secs(10);
const USER: &str = "alice";

pub fn measure(report: &mut Report) {
    if report.wants(&["append_1000_pending", "uid_fetch_below_1000_pending"]) {
        beside_pending(report);
    }
    if report.wants(&["advance_to_answer_median", "advance_to_answer_99"]) {
        advances(report);
    }
    if report.wants(&["waiting_1000_clients_cpu", "waiting_1000_clients_released"]) {
        many_clients(report);
    }
}

fn table() -> Setup {
    Dovecot::setup()
        .xid("xid_uid_source", "table")
        .xid("xid_uid_wait", "100s")
        .xid("xid_keepalive", "0")
}

/// A mailbox of twice as many messages as wait, of which the second half does.
fn filled(setup: Setup, waiting: bool) -> Dovecot {
    let server = setup.start();
    let mut client = Client::login(server.imap_addr(), USER);
    for n in 0..2 * PENDING {
        client.append("INBOX", &message(n));
        if waiting && n + 1 == PENDING {
            let guid = guid(&server, USER, "INBOX");
            Assigner::open(&server, USER).advance(&guid, PENDING as u32);
        }
    }
    server
}

fn beside_pending(report: &mut Report) {
    let stock = filled(Dovecot::setup().plugin(false), false);
    let ours = filled(table(), true);
    let apart = Apart::new(&[&stock, &ours]);
    // First what does not change the mailbox.
    let name = "uid_fetch_below_1000_pending";
    if report.wants(&[name]) {
        let _awake = Awake::start();
        let (base, fetched) = (|| fetches(&stock), || fetches(&ours));
        let spread = alternate(report.rounds, SLICES, base, fetched);
        report.add_ratio(name, &spread, 1.02);
    }
    let name = "append_1000_pending";
    if report.wants(&[name]) {
        let (assigner, guid) = (Assigner::open(&ours, USER), guid(&ours, USER, "INBOX"));
        let appended = || {
            // As many wait in each round.
            let last = assigner.state(&guid).last_uid;
            assigner.advance(&guid, last - PENDING as u32);
            appends(&ours)
        };
        let rounds = report.rounds * TIMES;
        let spread = alternate(rounds, SLICES, || appends(&stock), appended);
        report.add_ratio(name, &spread, 1.05);
    }
    drop(apart);
    report.done_with([stock, ours]);
}

/// Seconds per APPEND.
fn appends(server: &Dovecot) -> Side<'_> {
    let mut client = Client::timed(server, USER);
    let message = message_of(1, 4000);
    Box::new(move || {
        let times = (0..APPENDS).map(|_| client.append("INBOX", &message));
        times.sum::<f64>() / APPENDS as f64
    })
}

/// Seconds per UID FETCH of what is stable.
fn fetches(server: &Dovecot) -> Side<'_> {
    let mut client = Client::timed(server, USER);
    client.ok("SELECT INBOX");
    let command = format!("UID FETCH 1:{PENDING} (FLAGS)");
    Box::new(move || (0..FETCHES).map(|_| client.ok(&command)).sum::<f64>() / FETCHES as f64)
}

/// From the call that advances to the whole answer at the client: the watermark is written to
/// disk between them.
fn advances(report: &mut Report) {
    let server = table().start();
    let mut writer = Client::login(server.imap_addr(), USER);
    writer.append("INBOX", &message(0));
    let assigner = Assigner::open(&server, USER);
    let guid = guid(&server, USER, "INBOX");
    assigner.advance(&guid, 1);
    let mut client = Client::login(server.imap_addr(), USER);
    client.ok("SELECT INBOX");

    let (mut whole, mut woken) = (Vec::new(), Vec::new());
    for uid in 2..=ADVANCES {
        writer.append("INBOX", &message(1));
        client.ok("NOOP");
        client.send(&format!("UID FETCH {uid} (FLAGS)"));
        until("the client waits", || assigner.state(&guid).waiters == 1);
        let start = Instant::now();
        assigner.advance(&guid, uid);
        let durable = start.elapsed().as_secs_f64();
        client.finish();
        whole.push(start.elapsed().as_secs_f64());
        woken.push(whole[whole.len() - 1] - durable);
    }
    let detail = format!("{} after the advance returned", time(quantile(&woken, 0.5)));
    report.add(
        "advance_to_answer_median",
        1e3 * quantile(&whole, 0.5),
        "ms",
        1.0,
        detail,
    );
    let detail = format!(
        "{} after the advance returned, {ADVANCES} advances",
        time(quantile(&woken, 0.99))
    );
    report.add(
        "advance_to_answer_99",
        1e3 * quantile(&whole, 0.99),
        "ms",
        5.0,
        detail,
    );
    report.done_with([server]);
}

fn many_clients(report: &mut Report) {
    let conf = "service imap {\n client_limit = 250\n service_count = 0\n process_limit = 8\n vsz_limit = 8G\n}
mail_max_userip_connections = 0\n";
    let server = table().conf(conf).start();
    server.append(USER, "INBOX", &message(1));
    let mut clients: Vec<Client> = (0..CLIENTS)
        .map(|_| {
            let mut client = Client::login(server.imap_addr(), USER);
            client.ok("SELECT INBOX");
            client.send("UID FETCH 1:* (FLAGS)");
            client
        })
        .collect();
    until("all of them wait", || {
        inbox_state(&server).waiters as usize == CLIENTS
    });

    let pids = server.pids("imap");
    let before: f64 = pids.iter().map(|pid| processor_seconds(*pid)).sum();
    std::thread::sleep(WATCHED);
    let after: f64 = pids.iter().map(|pid| processor_seconds(*pid)).sum();
    let share = 100.0 * (after - before) / WATCHED.as_secs_f64();
    let detail = format!("{} processes, watched for {WATCHED:?}", pids.len());
    report.add(
        "waiting_1000_clients_cpu",
        share,
        "% of a core",
        1.0,
        detail,
    );

    let guid = guid(&server, USER, "INBOX");
    let assigner = Assigner::open(&server, USER);
    let start = Instant::now();
    assigner.advance(&guid, 1);
    clients.iter_mut().for_each(Client::finish);
    let released = start.elapsed().as_secs_f64();
    let detail = "from the advance to the last answer".into();
    report.add("waiting_1000_clients_released", released, "s", 1.0, detail);
    drop(clients);
    report.done_with([server]);
}

/// Processor time that a process has used.
fn processor_seconds(pid: u32) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/schedstat")).expect("it lives");
    let nanoseconds = text.split(' ').next().and_then(|n| n.parse::<f64>().ok());
    nanoseconds.expect("schedstat has a number") / 1e9
}
