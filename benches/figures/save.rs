//! What saving costs: APPEND by one client and by eight, LMTP.

use std::time::Instant;

use crate::apart::Apart;
use crate::client::Client;
use crate::harness::{Dovecot, message_of};
use crate::report::Report;
use crate::rounds::{Side, alternate};

/// Turns of one round.
const SLICES: usize = 5;
/// How many times the rounds of other figures: saving waits for a disk, and no two rounds are alike.
const TIMES: usize = 3;
/// Messages of one turn.
const MESSAGES: usize = 10;
/// Bytes of a message's body.
const BODY: usize = 4096 - 200;
const SESSIONS: usize = 8;
/// APPEND and LMTP may take this much longer.
const AT_MOST: f64 = 1.05;

pub fn measure(report: &mut Report) {
    let names = [
        "append_1_session",
        "append_8_sessions",
        "lmtp",
        "lmtp_condstore",
    ];
    if !report.wants(&names) {
        return;
    }
    let stock = Dovecot::setup().plugin(false).start();
    let ours = Dovecot::setup().start();
    let mut compare = |name: &'static str, side: fn(&Dovecot) -> Side<'_>| {
        if report.wants(&[name]) {
            // Eight clients need all processors.
            let apart = name != "append_8_sessions";
            let _apart = apart.then(|| Apart::new(&[&stock, &ours]));
            let rounds = report.rounds * TIMES;
            let spread = alternate(rounds, SLICES, || side(&stock), || side(&ours));
            report.add_ratio(name, &spread, AT_MOST);
        }
    };
    compare("append_1_session", appends);
    compare("append_8_sessions", at_once);
    compare("lmtp", |server| deliveries(server, "lmtp"));
    compare("lmtp_condstore", |server| {
        let mut client = Client::login(server.imap_addr(), "condstore");
        client.ok("ENABLE CONDSTORE");
        client.ok("SELECT INBOX");
        client.ok("LOGOUT");
        deliveries(server, "condstore")
    });
    report.done_with([stock, ours]);
}

/// Seconds per message.
fn appends(server: &Dovecot) -> Side<'_> {
    let mut client = Client::timed(server, "one");
    let message = message_of(1, BODY);
    Box::new(move || {
        let times = (0..MESSAGES).map(|_| client.append("INBOX", &message));
        times.sum::<f64>() / MESSAGES as f64
    })
}

/// Seconds per message, of clients that save at the same time.
fn at_once(server: &Dovecot) -> Side<'_> {
    let login = |n| Client::login(server.imap_addr(), &format!("eight{n}"));
    let mut clients: Vec<Client> = (0..SESSIONS).map(login).collect();
    let message = message_of(1, BODY);
    Box::new(move || {
        let start = Instant::now();
        std::thread::scope(|scope| {
            for client in &mut clients {
                scope.spawn(|| {
                    for _ in 0..MESSAGES {
                        client.append("INBOX", &message);
                    }
                });
            }
        });
        start.elapsed().as_secs_f64() / (MESSAGES * SESSIONS) as f64
    })
}

/// Seconds per delivery.
fn deliveries<'a>(server: &'a Dovecot, user: &'a str) -> Side<'a> {
    let mut lmtp = server.lmtp();
    let message = message_of(1, BODY);
    Box::new(move || {
        let start = Instant::now();
        for _ in 0..MESSAGES {
            let answers = lmtp.deliver(&[user], &message);
            let taken = answers.iter().all(|answer| answer.0 == 250);
            assert!(taken, "LMTP: {answers:?}");
        }
        start.elapsed().as_secs_f64() / MESSAGES as f64
    })
}
