//! Sessions that have not heard yet which messages went.

use crate::daemon::Daemon;
use crate::events::{clustered, make_room};
use crate::harness::*;

/// Messages of the mailbox; the one that goes, and the one that another session expunges with it.
const MESSAGES: usize = 6;
const GOES: usize = 3;
const TOO: usize = 5;

/// The numbers of the messages that are there, each with whether it is flagged.
fn there(server: &Dovecot, mailbox: &str) -> Vec<(usize, bool)> {
    let mut client = server.imap("alice");
    if client.ok(&format!("EXAMINE {mailbox}")).exists() == Some(0) {
        return Vec::new();
    }
    let reply = client.ok("FETCH 1:* (FLAGS BODY.PEEK[HEADER.FIELDS (SUBJECT)])");
    let row = |fetch: Fetch| {
        let subject = fetch.text("BODY[HEADER.FIELDS (SUBJECT)]")?;
        let number = subject.trim().rsplit(' ').next()?.parse().ok()?;
        let flagged = fetch.text("FLAGS")?.contains("\\Flagged");
        Some((number, flagged))
    };
    reply.fetches().into_iter().filter_map(row).collect()
}

fn fill(server: &Dovecot, mailbox: &str) {
    let mut client = server.imap("alice");
    client.ok(&format!("CREATE {mailbox}"));
    make_room(server, mailbox);
    (1..=MESSAGES).for_each(|n| drop(client.append(mailbox, &message(n))));
}

/// What commands do to a message that went, by its number, happens to no other: neither to the one
/// after it, nor to what was to be expunged with it.
#[test]
fn what_is_done_to_a_message_that_went_is_not_done_to_the_next_one() {
    for format in Format::ALL {
        let server = clustered().format(format).start();
        let _daemon = Daemon::start(&server);
        fill(&server, "box");
        server.imap("alice").ok("CREATE elsewhere");
        make_room(&server, "elsewhere");
        let mut one = server.imap_in("alice", "box");
        // Its COPY may tell it what went, before a later command.
        let mut copier = server.imap_in("alice", "box");
        let mut other = server.imap_in("alice", "box");
        other.ok(&format!("STORE {GOES} +FLAGS (\\Deleted)"));
        other.ok("EXPUNGE");

        one.cmd(&format!("STORE {GOES} +FLAGS.SILENT (\\Flagged)"));
        copier.cmd(&format!("COPY {GOES} elsewhere"));
        let fetched = one.cmd(&format!("FETCH {GOES} (FLAGS)"));
        let seqs: Vec<_> = fetched.fetches().iter().map(|fetch| fetch.seq).collect();
        assert!(!seqs.contains(&(GOES as u32 + 1)), "{format:?}: {seqs:?}");
        let found = one.cmd(&format!("SEARCH {GOES}")).search_numbers();
        assert!(!found.contains(&(GOES as u32 + 1)), "{format:?}: {found:?}");
        one.cmd(&format!("STORE {GOES},{TOO} +FLAGS.SILENT (\\Deleted)"));
        one.cmd("EXPUNGE");

        let kept = (1..=MESSAGES).filter(|n| ![GOES, TOO].contains(n));
        let kept: Vec<_> = kept.map(|n| (n, false)).collect();
        assert_eq!(there(&server, "box"), kept, "{format:?}");
        assert_eq!(there(&server, "elsewhere"), [], "{format:?}");
    }
}
