//! Corners of giving XIDs that depend on what the storage does (spec part 1).

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::harness::*;

fn fill(server: &Dovecot, mailbox: &str, count: usize) {
    let mut client = server.imap("alice");
    for n in 1..=count {
        client.append(mailbox, &message(n));
    }
}

/// Removes the index files of one mailbox.
fn lose_index(server: &Dovecot, mailbox: &str) {
    let args = ["mailbox", "path", "-u", "alice", "-t", "index", mailbox];
    let path = server.doveadm_ok(&args);
    for entry in std::fs::read_dir(path.trim()).unwrap().flatten() {
        if entry
            .file_name()
            .to_string_lossy()
            .starts_with("dovecot.index")
        {
            std::fs::remove_file(entry.path()).unwrap();
        }
    }
}

#[test]
fn a_copy_does_not_get_the_xid_of_an_expunged_copy_back() {
    for format in [Format::Sdbox, Format::Maildir] {
        let server = Dovecot::setup().format(format).start();
        fill(&server, "INBOX", 2);
        let mut client = server.imap_in("alice", "INBOX");
        client.ok("CREATE Box");
        client.ok("COPY 1:2 Box");
        client.ok("COPY 1:2 Box");
        client.ok("SELECT Box");
        client.ok("STORE 2:3 +FLAGS (\\Deleted)");
        client.ok("EXPUNGE");
        drop(client);
        let before = server.checked("alice", "Box");
        lose_index(&server, "Box");
        server.doveadm_ok(&["force-resync", "-u", "alice", "Box"]);
        assert_eq!(
            xids(&server.checked("alice", "Box")),
            xids(&before),
            "{format:?}"
        );
    }
}

#[test]
fn a_mailbox_below_a_renamed_one_is_known_by_its_new_name() {
    for format in [Format::Sdbox, Format::Maildir] {
        let server = Dovecot::setup().format(format).start();
        let mut client = server.imap("alice");
        client.ok("CREATE Parent");
        client.ok("CREATE Parent/Child");
        fill(&server, "Parent/Child", 3);
        let before = server.checked("alice", "Parent/Child");
        client.ok("RENAME Parent Other");
        lose_index(&server, "Other/Child");
        server.doveadm_ok(&["force-resync", "-u", "alice", "Other/Child"]);
        assert_eq!(
            xids(&server.checked("alice", "Other/Child")),
            xids(&before),
            "{format:?}"
        );
    }
}

#[test]
fn mail_from_a_time_without_the_plug_in_comes_before_what_is_delivered_next() {
    for format in Format::ALL {
        let server = Dovecot::setup().format(format).plugin(false).start();
        fill(&server, "INBOX", 3);
        server.stop();
        server.set_plugin(true);
        server.start_again();
        // Nobody opened the mailbox: the delivery is the first that sees it.
        server.deliver("alice", &message(4));
        let messages = server.checked("alice", "INBOX");
        assert_eq!(
            xids(&messages),
            ["foo-1", "foo-2", "foo-3", "foo-4"],
            "{format:?}"
        );
    }
}

#[test]
fn where_xids_cannot_be_kept_mail_is_kept_and_gets_them_later() {
    for format in Format::ALL {
        let server = Dovecot::setup()
            .format(format)
            .conf("plugin {\n  xid_dir = @TREE@/nowhere/%u\n}\n")
            .start();
        server.allow_log("xid: ");
        std::fs::write(server.tree().join("nowhere"), "in the way").unwrap();
        fill(&server, "INBOX", 3);
        server.deliver("alice", &message(4));
        let fetched = server
            .imap_in("alice", "INBOX")
            .ok("FETCH 1:* (UID FLAGS)")
            .fetches();
        assert_eq!(fetched.len(), 4, "{format:?}");

        let folder = server.tree().join("nowhere");
        std::fs::remove_file(&folder).unwrap();
        std::fs::create_dir(&folder).unwrap();
        std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o777)).unwrap();
        let messages = server.checked("alice", "INBOX");
        assert_eq!(
            xids(&messages),
            ["foo-1", "foo-2", "foo-3", "foo-4"],
            "{format:?}"
        );
    }
}

#[test]
fn numbers_go_on_above_what_mailboxes_show_when_all_our_files_are_lost() {
    for format in Format::ALL {
        let server = Dovecot::setup().format(format).start();
        server.allow_log("xid: ");
        fill(&server, "INBOX", 5);
        let before = server.checked("alice", "INBOX");
        remove_ours(&server.mail_dir("alice"));
        fill(&server, "INBOX", 2);
        let after = server.checked("alice", "INBOX");
        assert_eq!(after[..5], before[..], "{format:?}");
        assert!(
            number(&after[5]) > number(&before[4]),
            "{format:?}: {after:?}"
        );
        let known = before[2].xid.clone().unwrap();
        let news = server
            .imap_in("alice", "INBOX")
            .ok(&format!("XHXID {known}"))
            .text;
        assert!(!news.contains("XIDRESET"), "{format:?}: {news}");
    }
}

fn remove_ours(folder: &Path) {
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        if entry.file_name().to_string_lossy().starts_with("xid.") {
            std::fs::remove_file(entry.path()).unwrap();
        }
    }
}

#[test]
fn a_message_that_dsync_renumbers_keeps_its_xid() {
    for format in [Format::Sdbox, Format::Maildir] {
        let server = Dovecot::setup().format(format).start();
        let other = server.tree().join("home/alice/other");
        let other = format!("{}:{}", format.name(), other.display());
        // In full: without that dsync takes two mailboxes for the same that have as many messages, the
        // same next UID and the same MODSEQ.
        let sync = || server.doveadm_ok(&["sync", "-f", "-u", "alice", &other]);
        fill(&server, "INBOX", 2);
        sync();
        // One message on each side: both get another UID.
        fill(&server, "INBOX", 1);
        let location = format!("mail_location={other}");
        let saved = server.doveadm_input(
            &["-o", &location, "save", "-u", "alice"],
            message(9).as_slice(),
        );
        assert_eq!(saved.code, 0, "{saved:?}");
        let before = server.messages("alice", "INBOX");
        sync();
        let after = server.messages("alice", "INBOX");
        for old in &before {
            let new = after.iter().find(|new| new.guid == old.guid).unwrap();
            assert_eq!(new.xid, old.xid, "{format:?}: {before:?} {after:?}");
        }
        assert!(
            after.iter().all(|m| m.xid.is_some()) && after.len() == 4,
            "{format:?}: {after:?}"
        );
    }
}

#[test]
fn a_virtual_mailbox_shows_the_xids_of_the_messages_behind_it() {
    let server = Dovecot::setup()
        .mail_plugins("virtual")
        .conf(
            "namespace virtual {\n  prefix = Virtual/\n  separator = /\n  \
             location = virtual:@TREE@/virtual:INDEX=@TREE@/home/%u/virtual\n}\n",
        )
        .start();
    let folder = server.tree().join("virtual/All");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("dovecot-virtual"), "INBOX\nBox\n  all\n").unwrap();
    for folder in [server.tree().join("virtual"), folder] {
        let (uid, gid) = server.mail_owner();
        std::os::unix::fs::chown(folder, Some(uid), Some(gid)).unwrap();
    }
    let mut client = server.imap("alice");
    client.ok("CREATE Box");
    client.append("INBOX", &message(1));
    client.append("Box", &message(2));
    client.append("INBOX", &message(3));
    client.ok("SELECT Virtual/All");
    let mut seen: Vec<_> = client
        .ok("FETCH 1:* (XID)")
        .fetches()
        .iter()
        .map(|fetch| fetch.xid().unwrap())
        .collect();
    let at = seen.iter().position(|xid| xid == "foo-2").unwrap() + 1;
    seen.sort();
    assert_eq!(seen, ["foo-1", "foo-2", "foo-3"]);

    // As a search key, and as what the matches are to be named by.
    let search = |client: &mut Imap, keys: &str| client.ok(keys).search_numbers();
    assert_eq!(search(&mut client, "SEARCH XID foo-2,foo-9"), [at as u32]);
    // NOT is as the host has it for sequence numbers here.
    let not = search(&mut client, &format!("SEARCH NOT {at}"));
    assert_eq!(search(&mut client, "SEARCH NOT XID foo-2"), not);
    assert_eq!(
        search(&mut client, "SEARCH OR XID foo-1 XID foo-3").len(),
        2
    );
    assert_eq!(search(&mut client, "UID SEARCH XID foo-2").len(), 1);
    let reply = client.ok("SEARCH SUBJECT \"message 2\" XID");
    assert_eq!(reply.fetches()[0].xid().as_deref(), Some("foo-2"));
    // The numbers of a state are those of one mailbox.
    let reply = client.no("XHXID");
    assert!(reply.text.contains("virtual"), "{}", reply.text);
    client.no("XHXID FETCH foo-1 (FLAGS)");
}
