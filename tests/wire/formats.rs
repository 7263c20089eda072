//! What is peculiar to one way of storing mail.

use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};

use crate::harness::*;

/// Another program drops a message into a maildir.
fn drop_in(server: &Dovecot, maildir: &Path, name: &str, n: usize) {
    let (uid, gid) = server.mail_owner();
    let tmp = maildir.join("tmp").join(name);
    std::fs::write(&tmp, message(n)).unwrap();
    chown(&tmp, Some(uid), Some(gid)).unwrap();
    std::fs::rename(&tmp, maildir.join("new").join(name)).unwrap();
}

fn maildir(server: &Dovecot) -> PathBuf {
    server.mail_dir("alice")
}

#[test]
fn mail_dropped_into_a_maildir_gets_xids() {
    let server = Dovecot::setup().format(Format::Maildir).start();
    server.append("alice", "INBOX", &message(1));
    for n in 2..=5 {
        drop_in(
            &server,
            &maildir(&server),
            &format!("{}.drop{n}.host", 1_795_460_000 + n),
            n,
        );
    }
    let first = server.checked("alice", "INBOX");
    assert_eq!(first.len(), 5);
    server.append("alice", "INBOX", &message(6));
    drop_in(&server, &maildir(&server), "1795460010.drop.host", 7);
    let second = server.checked("alice", "INBOX");
    assert_eq!(second[..5], first[..]);
    assert_eq!(second.len(), 7);
    server.restart();
    assert_eq!(server.checked("alice", "INBOX"), second);
}

#[test]
fn a_client_that_has_the_maildir_open_sees_dropped_in_mail_with_its_xid() {
    let server = Dovecot::setup().format(Format::Maildir).start();
    let mut client = server.imap_in("alice", "INBOX");
    for n in 1..=5_u32 {
        drop_in(
            &server,
            &maildir(&server),
            &format!("{}.open.host", 1_795_460_000 + n),
            n as usize,
        );
        until("the message to be seen", || {
            client.ok("NOOP").exists() == Some(n)
        });
        let fetch = &client.ok(&format!("FETCH {n} (UID XID)")).fetches()[0];
        split_xid(&fetch.xid().expect("an XID"));
    }
    assert_eq!(server.checked("alice", "INBOX").len(), 5);
}

#[test]
fn mail_dropped_in_while_others_deliver_gets_xids_in_uid_order() {
    let server = Dovecot::setup().format(Format::Maildir).start();
    server.append("alice", "INBOX", &message(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for n in 0..40 {
                drop_in(
                    &server,
                    &maildir(&server),
                    &format!("{}.x.host", 1_795_460_000 + n),
                    n,
                );
            }
        });
        scope.spawn(|| {
            let mut client = server.imap("alice");
            (0..30).for_each(|n| drop(client.append("INBOX", &message(n))));
        });
        scope.spawn(|| {
            let mut client = server.lmtp();
            for n in 0..30 {
                assert_eq!(client.deliver(&["alice"], &message(n))[0].0, 250);
            }
        });
        scope.spawn(|| {
            let mut client = server.imap_in("alice", "INBOX");
            (0..40).for_each(|_| drop(client.ok("NOOP")));
        });
    });
    assert_eq!(server.checked("alice", "INBOX").len(), 101);
    server.checked_all("alice");
}

#[test]
fn a_maildir_that_loses_its_uidlist_changes_uids_and_keeps_xids() {
    let server = Dovecot::setup().format(Format::Maildir).start();
    let mut client = server.imap_in("alice", "INBOX");
    for n in 1..=5 {
        client.append("INBOX", &message(n));
    }
    client.ok("STORE 1:2 +FLAGS (\\Deleted)");
    client.ok("EXPUNGE");
    let before = server.checked("alice", "INBOX");
    drop(client);
    server.stop();
    for entry in std::fs::read_dir(maildir(&server)).unwrap().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name == "dovecot-uidlist" || name.starts_with("dovecot.index") {
            std::fs::remove_file(entry.path()).unwrap();
        }
    }
    server.start_again();
    let after = server.messages("alice", "INBOX");
    assert_eq!(by_guid(&after), by_guid(&before));
}

#[test]
fn flags_that_rename_a_maildir_file_do_not_change_its_xid() {
    let server = Dovecot::setup().format(Format::Maildir).start();
    for n in 1..=3 {
        server.append("alice", "INBOX", &message(n));
    }
    let before = server.checked("alice", "INBOX");
    let mut client = server.imap_in("alice", "INBOX");
    for flags in ["\\Seen", "\\Flagged $Word", "\\Answered \\Draft other"] {
        client.ok(&format!("STORE 1:* +FLAGS ({flags})"));
        assert_eq!(server.checked("alice", "INBOX"), before);
    }
}

#[test]
fn purging_and_moving_to_alternative_storage_keep_the_xids_of_mdbox() {
    let server = Dovecot::setup()
        .format(Format::Mdbox)
        .location(":ALT=~/alt")
        .set("mdbox_rotate_size", "2k")
        .start();
    let mut client = server.imap_in("alice", "INBOX");
    for n in 1..=10 {
        client.append("INBOX", &message_of(n, 900));
    }
    client.ok("STORE 2,4,6 +FLAGS (\\Deleted)");
    client.ok("EXPUNGE");
    let before = server.checked("alice", "INBOX");
    server.doveadm_ok(&["purge", "-u", "alice"]);
    assert_eq!(server.checked("alice", "INBOX"), before);
    server.doveadm_ok(&["altmove", "-u", "alice", "mailbox", "INBOX", "all"]);
    assert_eq!(server.checked("alice", "INBOX"), before);
    assert_eq!(client.ok("FETCH 1:* (BODY.PEEK[])").fetches().len(), 7);
}

#[test]
fn indexes_kept_elsewhere_work_as_well() {
    for format in Format::ALL {
        let server = Dovecot::setup()
            .format(format)
            .location(":INDEX=~/index")
            .start();
        for n in 1..=3 {
            server.append("alice", "INBOX", &message(n));
        }
        let before = server.checked("alice", "INBOX");
        assert!(
            server.home("alice").join("index/xid.table").exists(),
            "{format:?}"
        );
        server.restart();
        server.append("alice", "INBOX", &message(4));
        let after = server.checked("alice", "INBOX");
        assert_eq!(after[..3], before[..]);
        server.stop();
        std::fs::remove_dir_all(server.home("alice").join("index")).unwrap();
        server.start_again();
        server.allow_log("xid: ");
        server.doveadm_ok(&["force-resync", "-u", "alice", "INBOX"]);
        // The whole index folder is gone, and what XIDs are kept in with it: new ones, but some.
        assert_eq!(server.checked("alice", "INBOX").len(), 4);
    }
}

#[test]
fn xid_dir_can_be_elsewhere_and_survives_the_loss_of_the_indexes() {
    for format in Format::ALL {
        let server = Dovecot::setup()
            .format(format)
            .location(":INDEX=~/index")
            .xid("xid_dir", "~/xid files")
            .start();
        for n in 1..=3 {
            server.append("alice", "INBOX", &message(n));
        }
        let before = server.checked("alice", "INBOX");
        assert!(
            server.home("alice").join("xid files/xid.table").exists(),
            "{format:?}"
        );
        server.stop();
        std::fs::remove_dir_all(server.home("alice").join("index")).unwrap();
        server.start_again();
        server.doveadm_ok(&["force-resync", "-u", "alice", "INBOX"]);
        assert_eq!(
            by_guid(&server.checked("alice", "INBOX")),
            by_guid(&before),
            "{format:?}"
        );
    }
}

#[test]
fn a_shared_namespace_has_one_counter_for_all_its_users() {
    for format in Format::ALL {
        let public = format!(
            "namespace public {{\n  prefix = Public/\n  separator = /\n  list = yes\n  \
             subscriptions = no\n  location = {}:@TREE@/public\n}}\n",
            format.name()
        );
        let server = Dovecot::setup().format(format).conf(&public).start();
        let folder = server.tree().join("public");
        let (uid, gid) = server.mail_owner();
        std::fs::create_dir(&folder).unwrap();
        chown(&folder, Some(uid), Some(gid)).unwrap();
        server.imap("alice").ok("CREATE Public/Box");
        std::thread::scope(|scope| {
            for user in ["alice", "bob", "carol"] {
                let server = &server;
                scope.spawn(move || {
                    let mut client = server.imap(user);
                    for n in 0..15 {
                        client.append("Public/Box", &message(n));
                        client.append("INBOX", &message(n));
                    }
                });
            }
        });
        assert_eq!(server.checked("bob", "Public/Box").len(), 45);
        for user in ["alice", "bob", "carol"] {
            assert_eq!(server.checked(user, "INBOX").len(), 15);
        }
        assert!(folder.join("xid.table").exists(), "{format:?}");
    }
}

#[test]
fn a_mailbox_whose_index_is_in_memory_can_be_used() {
    let server = Dovecot::setup()
        .format(Format::Maildir)
        .location(":INDEX=MEMORY")
        .start();
    server.allow_log("xid: ");
    let mut client = server.imap_in("alice", "INBOX");
    for n in 1..=3 {
        client.append("INBOX", &message(n));
    }
    assert_eq!(client.ok("FETCH 1:* (UID FLAGS)").fetches().len(), 3);
}

#[test]
fn a_large_message_and_an_empty_one_have_xids_too() {
    for format in Format::ALL {
        let server = Dovecot::setup().format(format).start();
        server.append("alice", "INBOX", &message_of(1, 3_000_000));
        server.append("alice", "INBOX", b"\r\n");
        server.append("alice", "INBOX", b"\x80\xff no header \x01\r\n");
        let messages = server.checked("alice", "INBOX");
        assert_eq!(messages.len(), 3);
        let mut client = server.imap_in("alice", "INBOX");
        let fetched = client.ok("FETCH 1:* (RFC822.SIZE XID)").fetches();
        assert_eq!(
            fetched[0].text("RFC822.SIZE"),
            Some(message_of(1, 3_000_000).len().to_string())
        );
    }
}
