//! A user's first sessions, on all nodes at once: each of them makes INBOX, and it is one mailbox.

use std::time::Duration;

use crate::copies::users_same_everywhere;
use crate::harness::cluster::Cluster;
use crate::harness::{Dovecot, Format, message, until};

/// Users whose first sessions come, in `make test` and in `make soak`.
const USERS: [usize; 2] = [2, 20];
/// First sessions of a user on each node.
const SESSIONS: usize = 3;

/// Opens INBOX, and gives it a message.
fn begin(server: &Dovecot, user: &str, n: usize) {
    until("a first session to leave a message", || {
        let done = server
            .try_imap(user, Duration::from_secs(60))
            .and_then(|mut client| {
                client.try_cmd("SELECT INBOX")?;
                client.try_append("INBOX", &message(n))
            });
        done.is_ok_and(|reply| reply.is_ok())
    });
}

fn guid(server: &Dovecot, user: &str) -> String {
    server.doveadm_ok(&["mailbox", "status", "-u", user, "guid uidvalidity", "INBOX"])
}

fn first_sessions(format: Format) {
    let cluster = Cluster::setup().nodes(2).format(format).start();
    let soak = std::env::var_os("IMAP_XID_SOAK").is_some();
    for user in (1..=USERS[usize::from(soak)]).map(|n| format!("user{n}")) {
        std::thread::scope(|scope| {
            for n in 0..2 * SESSIONS {
                let (server, user) = (cluster.node(1 + n % 2), user.as_str());
                scope.spawn(move || begin(server, user, n));
            }
        });
        let what = format!("first sessions, {}", format.name());
        users_same_everywhere(&cluster, &what, &user, "INBOX", 2 * SESSIONS);
        let both = [1, 2].map(|node| guid(cluster.node(node), &user));
        assert_eq!(both[0], both[1], "{what}: {user}");
    }
}

#[test]
fn first_sessions_on_all_nodes_open_one_sdbox_inbox() {
    first_sessions(Format::Sdbox);
}

#[test]
fn first_sessions_on_all_nodes_open_one_mdbox_inbox() {
    first_sessions(Format::Mdbox);
}

#[test]
fn first_sessions_on_all_nodes_open_one_maildir_inbox() {
    first_sessions(Format::Maildir);
}
