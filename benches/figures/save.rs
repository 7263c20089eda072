//! What saving costs: APPEND by one client and by eight, LMTP.

use std::time::Instant;

use crate::client::Client;
use crate::harness::{Dovecot, Lmtp, message_of};
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
    let servers = [&stock, &ours];
    if report.wants(&["append_1_session"]) {
        let [mut stock, mut ours] = servers.map(|server| Client::login(server.imap_addr(), "one"));
        let spread = alternate(report.rounds, || appends(&mut stock), || appends(&mut ours));
        report.add_ratio("append_1_session", &spread, AT_MOST);
    }
    if report.wants(&["append_8_sessions"]) {
        let [mut stock, mut ours] = servers.map(eight);
        let spread = alternate(report.rounds, || at_once(&mut stock), || at_once(&mut ours));
        report.add_ratio("append_8_sessions", &spread, AT_MOST);
    }
    if report.wants(&["lmtp"]) {
        let [mut stock, mut ours] = servers.map(Dovecot::lmtp);
        let spread = alternate(
            report.rounds,
            || deliveries(&mut stock),
            || deliveries(&mut ours),
        );
        report.add_ratio("lmtp", &spread, AT_MOST);
    }
}

/// Seconds per message.
fn appends(client: &mut Client) -> f64 {
    let message = message_of(1, BODY);
    let times = (0..MESSAGES).map(|_| client.append("INBOX", &message));
    times.sum::<f64>() / MESSAGES as f64
}

fn eight(server: &Dovecot) -> Vec<Client> {
    (0..SESSIONS)
        .map(|n| Client::login(server.imap_addr(), &format!("eight{n}")))
        .collect()
}

/// Seconds per message, of clients that save at the same time.
fn at_once(clients: &mut [Client]) -> f64 {
    let message = message_of(1, BODY);
    let start = Instant::now();
    std::thread::scope(|scope| {
        for client in &mut *clients {
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
fn deliveries(lmtp: &mut Lmtp) -> f64 {
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
