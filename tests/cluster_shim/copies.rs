//! A client's copies: in a cluster no two messages of a mailbox ever share a GUID, since replication
//! would take them for one.

use crate::daemon::Daemon;
use crate::events::clustered;
use crate::harness::*;
use crate::pair::{Pair, messages};

fn guids(server: &Dovecot, mailbox: &str) -> Vec<String> {
    let messages = messages(server, mailbox);
    messages.into_iter().map(|m| m.guid).collect()
}

#[test]
fn a_copy_to_where_the_message_is_or_was_gets_a_guid_of_its_own() {
    for format in Format::ALL {
        let server = clustered().format(format).start();
        let _daemon = Daemon::start(&server);
        let mut client = server.imap("alice");
        client.ok("CREATE box");
        for n in 1..=3 {
            client.append("INBOX", &message(n));
        }
        client.ok("SELECT INBOX");
        client.ok("STORE 1 +FLAGS (\\Flagged kept)");
        client.ok("COPY 1:2 INBOX");
        client.ok("COPY 3 INBOX");
        client.ok("NOOP");
        let mut all = guids(&server, "INBOX");
        assert_eq!(all.len(), 6, "{format:?}");
        let body = client
            .ok("FETCH 4 (FLAGS INTERNALDATE BODY.PEEK[])")
            .fetches();
        let source = client
            .ok("FETCH 1 (FLAGS INTERNALDATE BODY.PEEK[])")
            .fetches();
        for item in ["BODY[]", "INTERNALDATE"] {
            assert_eq!(
                body[0].text(item),
                source[0].text(item),
                "{format:?} {item}"
            );
        }
        // Where it never was it keeps the GUID, and is not written anew.
        client.ok("COPY 2 box");
        assert_eq!(guids(&server, "box")[0], all[1], "{format:?}");
        // Away and back again, and back to where it came from.
        client.ok("MOVE 3 box");
        client.ok("SELECT box");
        client.ok("MOVE 2 INBOX");
        client.ok("MOVE 1 INBOX");
        client.ok("SELECT INBOX");
        client.ok("MOVE 6:7 box");
        all.extend(guids(&server, "box"));
        all.extend(guids(&server, "INBOX").into_iter().skip(5));
        let count = all.len();
        assert_eq!(count, 8, "{format:?}");
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count, "{format:?}");
    }
}

/// What two nodes' clients copied each by themselves is there after a sync.
#[test]
fn copies_that_two_nodes_made_are_all_there_after_replication() {
    for format in Format::ALL {
        let pair = Pair::start(format);
        pair.servers[0].append("alice", "INBOX", &message(1));
        pair.introduce("INBOX");
        pair.sync_ok(&[]);
        for server in &pair.servers {
            crate::interlock::slot(server)
                .promise(1)
                .expect("a promise");
            server.imap_in("alice", "INBOX").ok("COPY 1 INBOX");
            server.allow_log("xid: interlock");
            server.allow_log("commit failed");
            server.allow_log("Change during sync");
        }
        until("both have all", || {
            pair.introduce("INBOX");
            let [one, other] = [0, 1].map(|i| guids(&pair.servers[i], "INBOX"));
            pair.sync(&["-f"]).code == 0 && one == other && one.len() == 3
        });
        pair.same("INBOX");
    }
}
