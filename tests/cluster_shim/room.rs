//! A mailbox of which no daemon has said anything: it may be one of many messages, on a disk that
//! replaces a lost one. Nothing that came to it now could ever join the others' mailbox.

use std::fs::File;
use std::io::Read;
use std::os::fd::FromRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use crate::daemon::Daemon;
use crate::events::clustered;
use crate::harness::*;
use crate::interlock::slot;
use crate::pair::{Pair, messages, server};
use crate::tree::hold_lock;

#[test]
fn without_a_word_of_a_daemon_no_message_is_taken() {
    for format in Format::ALL {
        let server = clustered().format(format).xid("xid_uid_wait", "1s").start();
        let mut client = server.imap("alice");
        let refused = client.try_append("INBOX", &message(1)).expect("an answer");
        assert!(!refused.is_ok(), "{format:?}: {refused:?}");
        assert!(
            refused.code("UNAVAILABLE").is_some(),
            "{format:?}: {refused:?}"
        );
        assert_eq!(messages(&server, "INBOX").len(), 0, "{format:?}");
        assert_eq!(slot(&server).limit(), None, "{format:?}");

        let daemon = Daemon::start(&server);
        until("the daemon is found", || {
            let reply = client.try_append("INBOX", &message(2));
            reply.expect("an answer").is_ok()
        });
        drop(daemon);
        client.append("INBOX", &message(3));
        // A copy is a new message, too.
        client.ok("CREATE other");
        client.ok("SELECT INBOX");
        let tag = client.send("COPY 1 other");
        let refused = client.wait(&tag);
        assert!(!refused.is_ok(), "{format:?}: {refused:?}");
        assert_eq!(messages(&server, "other").len(), 0, "{format:?}");
    }
}

/// A node whose disk was replaced gets a message while the others' mail is on its way.
#[test]
fn a_new_disk_takes_the_others_mail_before_it_takes_new_mail() {
    for format in Format::ALL {
        let setup = |name| server(name, format).xid("xid_uid_wait", "100s");
        let pair = Pair::of_servers([setup("foo").start(), setup("bar").start()]);
        for n in 1..=5 {
            pair.servers[0].append("alice", "INBOX", &message(n));
        }
        pair.daemons[1].knows(&messages(&pair.servers[0], "INBOX"));
        pair.daemons[1].cut(true);
        let mut client = pair.servers[1].imap("alice");
        std::thread::scope(|scope| {
            let appending = scope.spawn(|| client.append("INBOX", &message(6)));
            pair.daemons[1].wait_event("the APPEND waits", |e| e.kind == 'w');
            assert!(!appending.is_finished());
            pair.sync_ok(&[]);
            assert!(!appending.is_finished());
            slot(&pair.servers[1]).set_limits(105, 200).expect("limits");
            assert!(appending.join().expect("it ends").is_ok());
        });
        let there = messages(&pair.servers[1], "INBOX");
        let uids: Vec<u32> = there.iter().map(|m| m.uid).collect();
        assert_eq!(uids, [1, 2, 3, 4, 5, 6], "{format:?}");
        pair.introduce("INBOX");
        pair.sync_ok(&[]);
        assert_eq!(pair.same("INBOX").len(), 6, "{format:?}");
    }
}

#[test]
fn after_a_boot_there_is_room_above_a_watermark_that_is_known() {
    let server = clustered().xid("xid_uid_wait", "1s").start();
    let daemon = Daemon::start(&server);
    server.append("alice", "INBOX", &message(1));
    crate::assign::advance(&server, "alice", "INBOX", 1);
    drop(daemon);
    server.stop();
    // A boot takes the table away.
    std::fs::remove_file(server.mail_dir("alice").join("xid.table")).expect("the table");
    server.start_again();
    let mut client = server.imap("alice");
    assert!(client.append("INBOX", &message(2)).is_ok());
    let limit = 1 + imap_xid::table::LEAST_WINDOW;
    assert_eq!(slot(&server).limit(), Some(limit));
}

/// Locks the log of INBOX's index, under which dbox gives out UIDs.
fn lock_index(server: &Dovecot) -> File {
    let path = server
        .mail_dir("alice")
        .join("mailboxes/INBOX/dbox-Mails/dovecot.index.log");
    let file = File::options().read(true).write(true).open(path);
    let file = file.expect("the log");
    lock_whole(&file);
    file
}

/// Whether some process waits for this lock.
fn is_awaited(lock: &File) -> bool {
    let inode = format!(":{} ", lock.metadata().expect("a file").ino());
    let locks = std::fs::read_to_string("/proc/locks").expect("the kernel's list");
    locks
        .lines()
        .any(|line| line.contains("->") && line.contains(&inode))
}

/// What tells when somebody opens this file.
fn watch_opens(path: &Path) -> File {
    // SAFETY: no pointers.
    let fd = unsafe { libc::inotify_init1(libc::IN_CLOEXEC) };
    assert!(fd >= 0, "{}", std::io::Error::last_os_error());
    // SAFETY: it is new, and nobody else's.
    let watch = unsafe { File::from_raw_fd(fd) };
    let name = std::ffi::CString::new(path.as_os_str().as_bytes()).expect("a path");
    // SAFETY: an open descriptor and a path that lives longer.
    let ret = unsafe { libc::inotify_add_watch(fd, name.as_ptr(), libc::IN_OPEN) };
    assert!(ret >= 0, "{}", std::io::Error::last_os_error());
    watch
}

/// A server on which a daemon said of INBOX, with one message, how far UIDs go.
fn with_one_message(format: Format) -> (Dovecot, Daemon) {
    let server = clustered()
        .format(format)
        .xid("xid_uid_wait", "100s")
        .start();
    let daemon = Daemon::start(&server);
    server.append("alice", "INBOX", &message(1));
    slot(&server).set_limits(2, 200).expect("limits");
    (server, daemon)
}

/// On a node that joins, replication may pass the limit between a client's look and its commit. What
/// came then would have the UID of a message that the others show.
#[test]
fn a_message_does_not_pass_the_limit_while_it_waits_for_the_lock() {
    for format in [Format::Sdbox, Format::Mdbox] {
        let (server, _daemon) = with_one_message(format);
        let mut client = server.imap("alice");
        let lock = lock_index(&server);
        std::thread::scope(|scope| {
            let appending = scope.spawn(|| client.try_append("INBOX", &message(2)));
            until("the APPEND waits for the lock", || is_awaited(&lock));
            slot(&server).set_limits(1, 200).expect("limits");
            drop(lock);
            let refused = appending.join().expect("it ends").expect("an answer");
            let why = refused.code("UNAVAILABLE");
            assert!(why.is_some(), "{format:?}: {refused:?}");
        });
        assert_eq!(messages(&server, "INBOX").len(), 1, "{format:?}");
        slot(&server).set_limits(2, 200).expect("limits");
        client.append("INBOX", &message(2));
        let there = messages(&server, "INBOX");
        let uids: Vec<u32> = there.iter().map(|m| m.uid).collect();
        assert_eq!(uids, [1, 2], "{format:?}");
    }
}

/// In a maildir it waits, as it does where there was no room when it looked first.
#[test]
fn a_message_in_a_maildir_waits_on_where_the_limit_was_passed_meanwhile() {
    let (server, daemon) = with_one_message(Format::Maildir);
    let mut client = server.imap("alice");
    let folder = server.mail_dir("alice");
    let lock = hold_lock(&folder, "dovecot-uidlist");
    // Whose lock it is, is read of one that is not new.
    let file = File::options().write(true).open(&lock).expect("the lock");
    let old = SystemTime::now() - Duration::from_secs(60);
    file.set_modified(old).expect("it is ours");
    let mut opened = watch_opens(&lock);
    std::thread::scope(|scope| {
        let appending = scope.spawn(|| client.append("INBOX", &message(2)));
        let read = opened.read(&mut [0; 512]).expect("an event");
        assert!(read > 0);
        daemon.forget();
        slot(&server).set_limits(1, 200).expect("limits");
        std::fs::remove_file(&lock).expect("the lock");
        daemon.wait_event("the APPEND waits", |e| e.kind == 'w');
        assert!(!appending.is_finished());
        slot(&server).set_limits(2, 200).expect("limits");
        assert!(appending.join().expect("it ends").is_ok());
    });
    let there = messages(&server, "INBOX");
    let uids: Vec<u32> = there.iter().map(|m| m.uid).collect();
    assert_eq!(uids, [1, 2]);
}
