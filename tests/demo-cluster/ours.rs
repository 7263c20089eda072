//! The cluster's part.

use crate::harness::cluster::Cluster;
use crate::harness::{Fetch, Reply};
use crate::history::{Count, History};
use crate::show::Show;
use crate::story::{APART, TOGETHER, compare, write_apart, write_together};
use crate::workload::{Observer, USER, conclude};

/// The newest message, with everything that names it.
const NEWEST: &str = "FETCH * (UID XID BODY.PEEK[HEADER.FIELDS (SUBJECT)])";

pub fn play(show: &Show) -> Count {
    show.title("A cluster of three: every node takes mail, and no UID ever changes");
    let cluster = Cluster::setup().nodes(3).start();
    show.note(&format!(
        "Three Dovecots (n1, n2, n3), each with xidd beside it, and three etcd members, in network \
         namespaces of their own on this machine. {USER}'s INBOX is on all of them. One client is \
         on n1, another on n2."
    ));
    let mut observers: Vec<Observer<'_>> = [1, 2]
        .map(|node| Observer::new(cluster.node(node), node, true))
        .into();
    first_message(show, &mut observers);
    let observers = together(show, observers);
    let mut observers = parted(show, &cluster, observers);
    healed(show, &cluster, &mut observers);
    observers.push(Observer::new(cluster.node(3), 3, true));
    let history = conclude(&mut observers);
    judged(show, &history);
    history.count()
}

fn first_message(show: &Show, observers: &mut [Observer<'_>]) {
    show.step(
        "One message",
        "It is saved on n1 at once: nobody is asked first. Its XID is there with it, its UID as \
         soon as the nodes agree on it; whoever asks for the UID waits that long.",
    );
    let appended = observers[0].append(0);
    show.check("APPEND on n1 is acknowledged", appended.is_ok());
    let reply = show.command(observers[0].imap(), NEWEST, "asks for UID and XID");
    observers[0].note(&reply);
    let xid = xid_of(&reply.fetches());
    show.check(
        "the XID is of the node that took it in",
        xid.starts_with("n1-"),
    );
    crate::harness::until("the message on n2", || {
        observers[1].imap().ok("NOOP");
        observers[1].imap().cmd("FETCH 1 (FLAGS)").is_ok()
    });
    let reply = show.command(observers[1].imap(), NEWEST, "the same on n2");
    observers[1].note(&reply);
    show.check("same XID on n2", xid_of(&reply.fetches()) == xid);
}

/// Asks until there is an answer: a message that gets another UID before anybody saw the first is
/// gone from under the question.
fn newest(show: &Show, observer: &mut Observer<'_>, why: &str) -> Reply {
    let mut reply = show.command(observer.imap(), NEWEST, why);
    crate::harness::until("the newest message's UID", || {
        observer.note(&reply);
        if !reply.fetches().is_empty() {
            return true;
        }
        show.note("It got another UID before anybody saw the first: a look for news, and again.");
        observer.imap().ok("NOOP");
        reply = show.command(observer.imap(), NEWEST, why);
        false
    });
    reply
}

fn xid_of(fetches: &[Fetch]) -> String {
    let last = fetches.last().and_then(Fetch::xid);
    last.unwrap_or_default()
}

fn together<'a>(show: &Show, observers: Vec<Observer<'a>>) -> Vec<Observer<'a>> {
    show.step(
        &format!("{TOGETHER} messages, written by turns on n1 and n2"),
        "Both nodes number messages by themselves, so they often choose the same UID for different \
         messages. Nobody sees that: a UID is shown only once all nodes agree.",
    );
    let mut observers = write_together(observers);
    compare(show, &mut observers);
    observers
}

fn parted<'a>(show: &Show, cluster: &Cluster, observers: Vec<Observer<'a>>) -> Vec<Observer<'a>> {
    show.step(
        "A partition: n1 on one side, n2 and n3 on the other",
        "Both clients go on writing. On n1 nothing above the last agreed UID is shown; the other \
         two drop n1 when its lease ends, and go on.",
    );
    cluster.net.isolate(1).expect("the link is cut");
    let mut observers = write_apart(observers);
    let reply = show.command(
        observers[0].imap(),
        "FETCH * (XID FLAGS)",
        "n1, cut off: sequence numbers and XIDs work as ever",
    );
    show.check(
        "n1's newest has its XID",
        xid_of(&reply.fetches()).starts_with("n1-"),
    );
    let tag = show.sent(
        observers[0].imap(),
        NEWEST,
        "n1, cut off: this UID is not agreed, so it waits",
    );
    let reply = newest(show, &mut observers[1], "n2, with n3: answered");
    show.check("n2 goes on", !xid_of(&reply.fetches()).is_empty());
    show.check("n1 still waits", observers[0].imap().is_waiting(&tag));
    show.note("The partition ends.");
    cluster.heal();
    let reply = observers[0].imap().wait(&tag);
    show.received(&tag, &reply);
    observers[0].note(&reply);
    observers
}

fn healed(show: &Show, cluster: &Cluster, observers: &mut [Observer<'_>]) {
    show.step(
        "After the partition",
        &format!(
            "What n1 took in meanwhile ({APART} messages) comes after what the others agreed on; \
             every UID that was shown before is what it was."
        ),
    );
    cluster.wait_in();
    let all = TOGETHER + 1 + 2 * APART;
    crate::harness::until("all messages on both nodes", || {
        observers
            .iter_mut()
            .all(|o| o.look().is_ok_and(|rows| rows.len() >= all))
    });
    compare(show, observers);
}

fn judged(show: &Show, history: &History) {
    let violations = history.violations();
    for violation in &violations {
        show.note(&violation.to_string());
    }
    show.check(
        "all three nodes show the same in the end",
        violations.is_empty(),
    );
}
