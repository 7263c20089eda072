//! The demonstration: a private Dovecot, a mailbox of real-shaped mail, and an IMAP session in
//! which every answer is explained, and checked. It runs as one of the tests too.
//!
//! `--shell` leaves the server up to play with instead.

#[path = "../harness/mod.rs"]
mod harness;
mod mail;
mod shell;
mod show;

use std::process::ExitCode;

use harness::Dovecot;
use show::Show;

/// The namespace of the demonstration's server.
const NAMESPACE: &str = "harbor";
/// Whose mail it is.
const USER: &str = "demo";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let has = |name: &str| args.iter().any(|arg| arg == name);
    if has("--list") || !is_meant(&args) {
        return ExitCode::SUCCESS;
    }
    let server = start();
    if has("--shell") {
        shell::wait(&server);
    } else {
        play(&server);
    }
    ExitCode::SUCCESS
}

/// `cargo test NAME` gives every test program the NAME; ours is "demo".
fn is_meant(args: &[String]) -> bool {
    let mut names = args.iter().filter(|arg| !arg.starts_with('-')).peekable();
    names.peek().is_none() || names.any(|name| "demo".contains(name.as_str()))
}

/// A server with the mail of the tree in it, and one large message.
fn start() -> Dovecot {
    let server = Dovecot::setup()
        .xid("xid_namespace", NAMESPACE)
        .tls()
        .start();
    let mut lmtp = server.lmtp();
    for message in mail::messages().iter().chain([&mail::large()]) {
        let answers = lmtp.deliver(&[USER], message);
        assert!(answers.iter().all(|a| a.0 == 250), "LMTP: {answers:?}");
    }
    server
}

/// The whole session.
fn play(server: &Dovecot) {
    let show = Show::new();
    let count = mail::messages().len() + 1;
    show.title("XIDs: a name for every message, given at once, by one server alone");
    show.note(&format!(
        "A private Dovecot now runs on {}, with {count} messages in {USER}'s INBOX (from \
         tests/demo/mail.mbox, and one of 300 kB), delivered by LMTP. This is an IMAP client:",
        server.imap_addr()
    ));
    let state = first_visit(server, &show, count);
    while_it_is_away(server, &show);
    let news = second_visit(server, &show, &state, count);
    by_xid(server, &show, &news);
    what_is_refused(server, &show);
    waiting(&show);
    show.title("All answers were as they should be. Nothing is left behind.");
    show.note("make demo-shell leaves the server up to play with; docs/protocol.md has the rest.");
}

/// The client meets the mailbox, and saves a state.
fn first_visit(server: &Dovecot, show: &Show, count: usize) -> String {
    let mut client = server.imap_in(USER, "INBOX");

    show.step(
        "Does this server know XIDs?",
        "No capability is advertised: a client just asks. A server without XIDs answers BAD.",
    );
    let probe = show.command(
        &mut client,
        "SEARCH 1:3 XID",
        "which messages, and their XIDs",
    );
    show.check("three messages found", probe.search().len() == 3);
    show.check(
        "three XIDs given",
        probe.fetches().iter().all(|f| f.xid().is_some()),
    );

    show.step(
        "An XID is one more thing to FETCH",
        "The namespace (before the dash) belongs to the server that took the message in, so it \
         can count by itself. No other server is asked, so nothing ever waits.",
    );
    let all = show.command(
        &mut client,
        "FETCH 11:* (XID RFC822.SIZE)",
        "the last three",
    );
    let xids: Vec<_> = all
        .fetches()
        .iter()
        .filter_map(harness::Fetch::xid)
        .collect();
    show.check("each has the XID of its turn", xids == numbered(11..=count));

    show.step(
        "Everything at once, and a state to come back with",
        "XHXID without a state means: I know nothing. It names every message in one short line, \
         and its OK carries a state, which the client saves as it is.",
    );
    let everything = show.command(&mut client, "XHXID", "what is there?");
    show.check(
        "all are announced, in order",
        everything.announced() == numbered(1..=count),
    );
    let state = everything.code("XHXID").unwrap_or_default();
    show.check(
        "the OK carries a state",
        state.starts_with(&format!("{NAMESPACE}-{count}")),
    );
    client.ok("LOGOUT");
    state
}

/// What happens to the mailbox behind the client's back.
fn while_it_is_away(server: &Dovecot, show: &Show) {
    show.step(
        "The client is away; the mailbox is not",
        "One message is delivered, another client saves one and deletes an old one.",
    );
    server.deliver(
        USER,
        &mail::news("The painters are here", "They ask for the ladder."),
    );
    let mut other = server.imap_in(USER, "INBOX");
    other.append("INBOX", &mail::news("Note to self", "Ladder!"));
    other.ok("STORE 2 +FLAGS (\\Deleted)");
    other.ok("EXPUNGE");
    other.ok("LOGOUT");
}

/// The client comes back and asks for the news alone.
fn second_visit(server: &Dovecot, show: &Show, state: &str, count: usize) -> Vec<String> {
    let mut client = server.imap_in(USER, "INBOX");
    show.step(
        "What is new?",
        "The state goes back as it was saved, to this server or to any other one that has the \
         mailbox. The work is that of the news: ten of a million cost as much as ten of ten.",
    );
    let reply = show.command(&mut client, &format!("XHXID {state}"), "the saved state");
    let news = reply.announced();
    show.check(
        "exactly the two new messages",
        news == numbered(count + 1..=count + 2),
    );

    show.step(
        "A client may also count for itself",
        "The highest number that it saw in each namespace is a state, too.",
    );
    let plain = show.command(
        &mut client,
        &format!("XHXID {NAMESPACE}-{count}"),
        "by hand",
    );
    show.check("the same news", plain.announced() == news);
    client.ok("LOGOUT");
    news
}

/// Working with messages by their XIDs.
fn by_xid(server: &Dovecot, show: &Show, news: &[String]) {
    let mut client = server.imap_in(USER, "INBOX");
    show.step(
        "XHXID wherever UID would stand",
        "FETCH, STORE, COPY, MOVE, EXPUNGE, SEARCH, SORT, THREAD: the same arguments, XIDs in \
         place of UIDs, and XIDs in the answers.",
    );
    let command = format!(
        "XHXID FETCH {} (FLAGS BODY.PEEK[HEADER.FIELDS (SUBJECT)])",
        news.join(",")
    );
    let fetched = show.command(&mut client, &command, "the news themselves");
    let got: Vec<_> = fetched
        .fetches()
        .iter()
        .filter_map(harness::Fetch::xid)
        .collect();
    show.check("each answer names its XID", got == news);

    let found = show.command(
        &mut client,
        "XHXID SEARCH FROM \"harbour\"",
        "a search that answers with XIDs",
    );
    let wanted = [format!("{NAMESPACE}-1"), format!("{NAMESPACE}-11")];
    show.check("the two from the harbour", found.search() == wanted);

    let command = format!("XHXID STORE {NAMESPACE}-1 +FLAGS (\\Seen)");
    let stored = show.command(&mut client, &command, "mark one as read");
    let seen = |f: &harness::Fetch| {
        f.flags()
            .is_some_and(|flags| flags.iter().any(|x| x == "\\Seen"))
    };
    show.check("it is seen", stored.fetches().iter().any(seen));

    let command = format!("XHXID FETCH {NAMESPACE}-2 (FLAGS)");
    let gone = show.command(
        &mut client,
        &command,
        "the one that was deleted: skipped, as with UIDs",
    );
    show.check(
        "no answer for it",
        gone.is_ok() && gone.fetches().is_empty(),
    );
    client.ok("LOGOUT");
}

/// Input that means nothing changes nothing.
fn what_is_refused(server: &Dovecot, show: &Show) {
    let mut client = server.imap_in(USER, "INBOX");
    show.step(
        "What is not an XID is refused",
        "There are no ranges: XIDs of different servers have no common order.",
    );
    let command = format!("XHXID FETCH {NAMESPACE}-1:{NAMESPACE}-3 (FLAGS)");
    let refused = show.command(&mut client, &command, "a range");
    show.check("BAD, with a reason", refused.status == "BAD");
    client.ok("LOGOUT");
}

/// Why all this: UIDs that several servers have to agree on.
fn waiting(show: &Show) {
    show.step(
        "Why?",
        "A mailbox that is written on several servers at once needs all of them to agree before a \
         UID can be given. XIDs need nobody, so a client that uses them never waits.",
    );
    let server = Dovecot::setup()
        .xid("xid_namespace", NAMESPACE)
        .xid("xid_uid_source", "table")
        .xid("xid_uid_wait", "60s")
        .start();
    show.note(
        "Here is a second server, on which UIDs are agreed by someone else (xid_uid_source = \
         table; in a cluster the daemon xidd does it). Nobody has agreed on anything yet.",
    );
    let mut client = server.imap_in(USER, "INBOX");
    client.append("INBOX", &mail::news("Just saved", "No UID yet."));
    let now = show.command(
        &mut client,
        "FETCH 1 (XID FLAGS)",
        "visible at once, by number and XID",
    );
    show.check(
        "it has its XID",
        now.fetches().iter().any(|f| f.xid().is_some()),
    );
    let tag = show.sent(
        &mut client,
        "UID FETCH 1:* (FLAGS)",
        "but its UID is not agreed: this waits",
    );
    show.server(&client.wait_line("* OK").text());
    show.check("it waits", client.is_waiting(&tag));
    show.note("$ xidctl advance -u demo -m INBOX 1        (somewhere else, agreement is reached)");
    server.advance(USER, "INBOX", 1);
    let mut after = client.wait(&tag);
    // Shown when it came.
    after.lines.retain(|line| !line.starts_with("* OK"));
    show.received(&tag, &after);
    show.check(
        "the UID comes when it is final",
        after.fetches().iter().any(|f| f.uid() == Some(1)),
    );
    client.ok("LOGOUT");
}

/// The XIDs that this server gives to its nth messages.
fn numbered(numbers: impl Iterator<Item = usize>) -> Vec<String> {
    numbers.map(|n| format!("{NAMESPACE}-{n}")).collect()
}
