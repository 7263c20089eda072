//! APPEND beside an assigner that takes its time: at once with us, however long that takes; and
//! with a setting that makes APPEND wait for it, as servers do that must have the UID first.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::apart::Apart;
use crate::assign::{Assigner, guid};
use crate::client::Client;
use crate::harness::{Dovecot, Setup, message_of};
use crate::report::{Report, time};
use crate::rounds::{Side, alternate};

const USER: &str = "alice";
/// What the assigner needs for a UID.
const PER_UID: Duration = Duration::from_millis(100);
/// How often it looks when there is nothing to do.
const IDLE: Duration = Duration::from_millis(1);
/// Turns of a round.
const SLICES: usize = 5;
/// Messages of a turn.
const MESSAGES: u32 = 10;
/// How many times the rounds of other figures: saving waits for a disk, and no two rounds are alike.
const TIMES: usize = 3;

pub fn measure(report: &mut Report) {
    if !report.wants(&["append_slow_assigner"]) {
        return;
    }
    let stock = Dovecot::setup().plugin(false).start();
    let (ours, ours_assigner) = with_assigner(Dovecot::setup());
    let (waits, waits_assigner) = with_assigner(Dovecot::setup().xid("xid_appenduid_grace", "60s"));
    let waiting = time(appends(&waits)());
    let apart = Apart::new(&[&stock, &ours]);
    let rounds = report.rounds * TIMES;
    let spread = alternate(rounds, SLICES, || appends(&stock), || appends(&ours));
    drop(apart);
    let detail = format!(
        "{} to {} (quartiles of {} rounds {:.3} to {:.3}); {waiting} where APPEND waits for the \
         UID (xid_appenduid_grace)",
        time(spread.base),
        time(spread.ours),
        spread.rounds,
        spread.low,
        spread.high
    );
    report.add("append_slow_assigner", spread.ratio, "ratio", 1.05, detail);
    drop((ours_assigner, waits_assigner));
    report.done_with([stock, ours, waits]);
}

fn with_assigner(setup: Setup) -> (Dovecot, Slow) {
    let server = setup.xid("xid_uid_source", "table").start();
    Client::login(server.imap_addr(), USER).ok("SELECT INBOX");
    let assigner = Slow::start(&server);
    (server, assigner)
}

/// Seconds per message.
fn appends(server: &Dovecot) -> Side<'_> {
    let mut client = Client::login(server.imap_addr(), USER);
    let message = message_of(1, 4000);
    Box::new(move || {
        let times = (0..MESSAGES).map(|_| client.append("INBOX", &message));
        times.sum::<f64>() / f64::from(MESSAGES)
    })
}

/// An assigner in a thread, until dropped.
struct Slow {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Slow {
    fn start(server: &Dovecot) -> Slow {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let guid = guid(server, USER, "INBOX");
        let dir = server.mail_dir(USER);
        let thread = std::thread::spawn(move || {
            let assigner = Assigner::open_dir(&dir);
            while !stopped.load(Ordering::Relaxed) {
                let state = assigner.state(&guid);
                if state.last_uid == state.watermark {
                    std::thread::sleep(IDLE);
                    continue;
                }
                std::thread::sleep(PER_UID);
                assigner.advance(&guid, state.watermark + 1);
            }
        });
        let thread = Some(thread);
        Slow { stop, thread }
    }
}

impl Drop for Slow {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
