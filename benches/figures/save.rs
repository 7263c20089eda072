//! What saving costs: APPEND by one client and by eight, LMTP.

use std::time::Instant;

use crate::client::Client;
use crate::harness::{Dovecot, message_of};
use crate::report::Report;
use crate::rounds::alternate;

/// Messages of one round.
const MESSAGES: usize = 200;
/// Bytes of a message's body.
const BODY: usize = 4096 - 200;
const SESSIONS: usize = 8;
/// APPEND and LMTP may take this much longer.
const AT_MOST: f64 = 1.05;

pub fn measure(report: &mut Report) {
    if !report.wants(&["append_1_session", "append_8_sessions", "lmtp"]) {
        return;
    }
    let stock = Dovecot::setup().plugin(false).start();
    let ours = Dovecot::setup().start();
    let mut compare = |name: &'static str, measured: fn(&Dovecot) -> f64| {
        if report.wants(&[name]) {
            let spread = alternate(report.rounds, || measured(&stock), || measured(&ours));
            report.add_ratio(name, &spread, AT_MOST);
        }
    };
    compare("append_1_session", appends);
    compare("append_8_sessions", at_once);
    compare("lmtp", deliveries);
}

/// Seconds per message.
fn appends(server: &Dovecot) -> f64 {
    let mut client = Client::timed(server, "one");
    let message = message_of(1, BODY);
    let times = (0..MESSAGES).map(|_| client.append("INBOX", &message));
    times.sum::<f64>() / MESSAGES as f64
}

/// Seconds per message, of clients that save at the same time.
fn at_once(server: &Dovecot) -> f64 {
    let login = |n| Client::login(server.imap_addr(), &format!("eight{n}"));
    let mut clients: Vec<Client> = (0..SESSIONS).map(login).collect();
    let message = message_of(1, BODY);
    let start = Instant::now();
    std::thread::scope(|scope| {
        for client in &mut clients {
            scope.spawn(|| {
                for _ in 0..MESSAGES / SESSIONS {
                    client.append("INBOX", &message);
                }
            });
        }
    });
    start.elapsed().as_secs_f64() / MESSAGES as f64
}

/// Seconds per delivery.
fn deliveries(server: &Dovecot) -> f64 {
    let mut lmtp = server.lmtp();
    let message = message_of(1, BODY);
    let start = Instant::now();
    for _ in 0..MESSAGES {
        let answers = lmtp.deliver(&["lmtp"], &message);
        assert!(
            answers.iter().all(|answer| answer.0 == 250),
            "LMTP: {answers:?}"
        );
    }
    start.elapsed().as_secs_f64() / MESSAGES as f64
}
