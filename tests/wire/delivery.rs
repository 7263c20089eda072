//! Every way by which a message gets into a mailbox gives it an XID (spec part 1).

use std::sync::Barrier;

use crate::harness::*;

/// Does `act`, then insists that exactly `count` messages came into the mailbox, each with a
/// number above all that the mailbox had.
fn adds(server: &Dovecot, mailbox: &str, count: usize, what: &str, act: impl FnOnce()) {
    let before = server.checked("alice", mailbox);
    act();
    let after = server.checked("alice", mailbox);
    assert_eq!(
        after.len(),
        before.len() + count,
        "{what}: messages in {mailbox}"
    );
    assert_eq!(
        &after[..before.len()],
        &before[..],
        "{what} changed older messages"
    );
}

fn ok(output: &Output) {
    assert_eq!(output.code, 0, "{output:?}");
}

fn every_way_in(format: Format) {
    let server = Dovecot::setup().format(format).start();
    let mut client = server.imap_in("alice", "INBOX");
    client.ok("CREATE Other");
    let add = |count, what: &str, act: &mut dyn FnMut()| adds(&server, "INBOX", count, what, act);

    add(1, "APPEND", &mut || {
        drop(client.append("INBOX", &message(1)))
    });
    add(3, "MULTIAPPEND", &mut || {
        let texts = [message(2), message(3), message(4)];
        let mut parts = vec![Part::Text("APPEND INBOX")];
        for text in &texts {
            parts.extend([Part::Text(" (\\Seen) "), Part::LiteralPlus(text)]);
        }
        assert!(client.cmd_parts(&parts).is_ok());
    });
    add(1, "CATENATE", &mut || {
        let text = message(5);
        let url = " URL \"/INBOX/;UID=1/;SECTION=TEXT\")";
        let parts = [
            Part::Text("APPEND INBOX CATENATE (TEXT "),
            Part::LiteralPlus(&text),
            Part::Text(url),
        ];
        assert!(client.cmd_parts(&parts).is_ok());
    });
    add(2, "COPY onto itself", &mut || {
        drop(client.ok("COPY 1:2 INBOX"))
    });
    add(1, "LMTP", &mut || server.deliver("alice", &message(6)));
    add(1, "lda", &mut || {
        ok(&server.lda("alice", "INBOX", &message(7)))
    });
    add(1, "doveadm save", &mut || {
        ok(&server.doveadm_input(&["save", "-u", "alice", "-m", "INBOX"], &message(8)));
    });
    client.append("Other", &message(9));
    client.append("Other", &message(10));
    add(2, "doveadm copy", &mut || {
        server.doveadm_ok(&["copy", "-u", "alice", "INBOX", "mailbox", "Other", "all"]);
    });
    add(1, "COPY", &mut || {
        let mut other = server.imap_in("alice", "Other");
        other.ok("COPY 1 INBOX");
    });
    add(1, "MOVE", &mut || {
        let mut other = server.imap_in("alice", "Other");
        other.ok("MOVE 1 INBOX");
    });
    add(1, "doveadm move", &mut || {
        server.doveadm_ok(&["move", "-u", "alice", "INBOX", "mailbox", "Other", "all"]);
    });
    assert!(server.checked("alice", "Other").is_empty());
    server.checked_all("alice");
}

#[test]
fn every_way_in_gives_an_xid_on_sdbox() {
    every_way_in(Format::Sdbox);
}

#[test]
fn every_way_in_gives_an_xid_on_mdbox() {
    every_way_in(Format::Mdbox);
}

#[test]
fn every_way_in_gives_an_xid_on_maildir() {
    every_way_in(Format::Maildir);
}

#[test]
fn doveadm_import_gives_xids_of_this_node() {
    for format in Format::ALL {
        let server = Dovecot::setup().format(format).start();
        for n in 1..=3 {
            server.append("bob", "INBOX", &message(n));
            server.append("alice", "INBOX", &message(10 + n));
        }
        let from = format!("{}:{}", format.name(), server.mail_dir("bob").display());
        adds(&server, "INBOX", 3, "doveadm import", || {
            server.doveadm_ok(&[
                "import", "-u", "alice", &from, "", "mailbox", "INBOX", "all",
            ]);
        });
    }
}

#[test]
fn sieve_fileinto_gives_an_xid() {
    for format in Format::ALL {
        let server = Dovecot::setup().format(format).start();
        if !server.has_sieve() {
            panic!("dovecot-sieve is needed for this test");
        }
        server.imap("alice").ok("CREATE Lists");
        server.sieve(
            "alice",
            "require [\"fileinto\", \"copy\", \"imap4flags\"];\r\n\
             fileinto :copy :flags \"\\\\Flagged\" \"Lists\";\r\n",
        );
        for (n, way) in [(1, "LMTP"), (2, "lda"), (3, "LMTP")] {
            adds(&server, "Lists", 1, way, || match way {
                "lda" => ok(&server.lda("alice", "INBOX", &message(n))),
                _ => server.deliver("alice", &message(n)),
            });
        }
        assert_eq!(server.checked_all("alice")["INBOX"].len(), 3);
        assert!(!server.log().contains("sieve: Error"), "{}", server.log());
    }
}

#[test]
fn one_lmtp_message_to_many_recipients_gives_each_an_xid() {
    for format in Format::ALL {
        let server = Dovecot::setup().format(format).start();
        let users = ["alice", "bob", "carol", "alice+Folder"];
        for n in 1..=3 {
            let answers = server.lmtp().deliver(&users, &message(n));
            assert!(answers.iter().all(|a| a.0 == 250), "{answers:?}");
        }
        for user in ["alice", "bob", "carol"] {
            assert_eq!(server.checked(user, "INBOX").len(), 3);
        }
        assert_eq!(server.checked_all("alice")["Folder"].len(), 3);
    }
}

#[test]
fn copy_and_move_make_a_new_xid_and_the_source_keeps_its_own() {
    for format in Format::ALL {
        let server = Dovecot::setup().format(format).start();
        let mut client = server.imap_in("alice", "INBOX");
        client.ok("CREATE Other");
        for n in 1..=4 {
            client.append("INBOX", &message(n));
        }
        let source = server.checked("alice", "INBOX");
        client.ok("COPY 1:3 Other");
        assert_eq!(server.checked("alice", "INBOX"), source);
        client.ok("MOVE 2 Other");
        let left = server.checked("alice", "INBOX");
        assert_eq!(
            xids(&left),
            [&xids(&source)[..1], &xids(&source)[2..]].concat()
        );
        // No XID is in both: checked_all looks.
        assert_eq!(server.checked_all("alice")["Other"].len(), 4);
    }
}

#[test]
fn the_number_of_an_expunged_message_is_not_used_again() {
    for format in Format::ALL {
        let server = Dovecot::setup().format(format).start();
        let mut highest = 0;
        for round in 1..=3 {
            server.append("alice", "INBOX", &message(round));
            let now = number(&server.checked("alice", "INBOX")[0]);
            assert!(now > highest, "{now} after {highest}");
            highest = now;
            let mut client = server.imap_in("alice", "INBOX");
            client.ok("STORE 1 +FLAGS (\\Deleted)");
            client.ok("EXPUNGE");
            drop(client);
            server.restart();
        }
    }
}

/// What each of the writers does, all at once into one mailbox.
fn write_from_everywhere(server: &Dovecot, each: usize) {
    let start = Barrier::new(7);
    std::thread::scope(|scope| {
        for writer in 0..3 {
            let (server, start) = (&server, &start);
            scope.spawn(move || {
                let mut client = server.imap("alice");
                start.wait();
                for n in 0..each {
                    client.append("INBOX", &message(1000 * writer + n));
                }
            });
        }
        for writer in 0..2 {
            let (server, start) = (&server, &start);
            scope.spawn(move || {
                let mut client = server.lmtp();
                start.wait();
                for n in 0..each / 2 {
                    let answers = client.deliver(&["alice"], &message(5000 + 1000 * writer + n));
                    assert_eq!(answers[0].0, 250, "{answers:?}");
                }
            });
        }
        scope.spawn(|| {
            let mut client = server.imap_in("alice", "Source");
            start.wait();
            for _ in 0..each / 5 {
                client.ok("COPY 1:5 INBOX");
            }
        });
        scope.spawn(|| {
            start.wait();
            for n in 0..each / 5 {
                ok(&server.lda("alice", "INBOX", &message(9000 + n)));
            }
        });
    });
}

fn many_processes(format: Format) {
    let server = Dovecot::setup().format(format).start();
    let mut client = server.imap("alice");
    client.ok("CREATE Source");
    for n in 0..5 {
        client.append("Source", &message(n));
    }
    // Stock Dovecot itself panics now and then when several processes create an INBOX at once.
    client.append("INBOX", &message(6));
    let each = 40;
    write_from_everywhere(&server, each);
    let expected = 3 * each + 2 * (each / 2) + 5 * (each / 5) + each / 5 + 1;
    assert_eq!(server.checked("alice", "INBOX").len(), expected);
    server.checked_all("alice");
}

#[test]
fn many_processes_at_once_keep_xid_order_and_uid_order_the_same_on_sdbox() {
    many_processes(Format::Sdbox);
}

#[test]
fn many_processes_at_once_keep_xid_order_and_uid_order_the_same_on_mdbox() {
    many_processes(Format::Mdbox);
}

#[test]
fn many_processes_at_once_keep_xid_order_and_uid_order_the_same_on_maildir() {
    many_processes(Format::Maildir);
}

#[test]
fn a_client_that_watches_sees_no_message_without_its_xid() {
    for format in Format::ALL {
        let server = Dovecot::setup().format(format).start();
        let mut watcher = server.imap_in("alice", "INBOX");
        std::thread::scope(|scope| {
            let writers: Vec<_> = (0..2)
                .map(|w| {
                    let server = &server;
                    scope.spawn(move || {
                        let mut client = server.imap("alice");
                        (0..30).for_each(|n| drop(client.append("INBOX", &message(100 * w + n))));
                    })
                })
                .collect();
            let (mut seen, mut exists) = (0, 0);
            until("60 messages to be seen", || {
                let reply = watcher.ok("NOOP");
                exists = reply.exists().unwrap_or(exists);
                while seen < exists {
                    let reply = watcher.ok(&format!("FETCH {}:{exists} (XID)", seen + 1));
                    let fetched = reply.fetches();
                    assert_eq!(fetched.len(), (exists - seen) as usize);
                    for fetch in fetched {
                        split_xid(&fetch.xid().expect("an XID"));
                    }
                    seen = exists;
                    // FETCH tells of new messages, too, and once told they are not told again.
                    exists = reply.exists().unwrap_or(exists);
                }
                seen == 60
            });
            for writer in writers {
                writer.join().expect("a writer");
            }
        });
    }
}
