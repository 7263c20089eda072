//! Mailboxes that are made, renamed and deleted: who waits for whom.

use std::fs::File;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::assign::guid;
use crate::daemon::Daemon;
use crate::events::clustered;
use crate::harness::*;
use crate::pair::{Pair, messages};

/// The folders of a mailbox that another process is making: nothing in them says which one it is.
fn begin_mailbox(server: &Dovecot, format: Format, name: &str) {
    let root = server.mail_dir("alice");
    let folders = match format {
        Format::Maildir => [format!(".{name}"), format!(".{name}/cur")],
        _ => [
            format!("mailboxes/{name}"),
            format!("mailboxes/{name}/dbox-Mails"),
        ],
    };
    let (uid, gid) = server.mail_owner();
    for folder in folders {
        let path = root.join(folder);
        std::fs::create_dir(&path).expect("a folder");
        chown(&path, Some(uid), Some(gid)).expect("root may");
    }
}

/// The list of mailboxes is read anew by who looks next.
fn forget_list(server: &Dovecot) {
    for suffix in ["", ".log"] {
        let file = format!("dovecot.list.index{suffix}");
        let gone = std::fs::remove_file(server.mail_dir("alice").join(file));
        assert!(suffix.is_empty() || gone.is_ok(), "{gone:?}");
    }
}

/// The list of mailboxes is locked while it is read anew, and whoever makes a mailbox takes that
/// lock last. So who reads it must not wait for a mailbox to be made: each would wait for the other.
/// One that did would say so in the log after ten seconds, which fails the test.
#[test]
fn a_list_does_not_wait_for_a_mailbox_that_is_being_made() {
    for format in Format::ALL {
        let server = clustered().format(format).start();
        let _daemon = Daemon::start(&server);
        server.imap("alice").ok("CREATE made");
        let lock = server.mail_dir("alice").join("xid.inbox.lock");
        let lock = File::open(lock).expect("the lock was made with the mailbox");
        lock.lock().expect("nobody has it");
        begin_mailbox(&server, format, "half");
        forget_list(&server);
        let mut client = server.imap("alice");
        let listed = client.ok("LIST \"\" *");
        let names: Vec<String> = listed
            .untagged("LIST")
            .iter()
            .map(|line| line.text().into_owned())
            .collect();
        for name in ["made", "half"] {
            assert!(
                names.iter().any(|n| n.ends_with(name)),
                "{format:?} {names:?}"
            );
        }
        lock.unlock().expect("it is ours");
        // Nobody makes it any more: who opens it finishes it.
        client.append("half", &message(1));
        let status = client.ok("STATUS half (MESSAGES)");
        let status = status.untagged("STATUS")[0].text().into_owned();
        assert!(status.ends_with("(MESSAGES 1)"), "{format:?} {status}");
    }
}

/// Whether somebody waits for this lock, as the kernel lists locks.
fn is_awaited(lock: &File) -> bool {
    let inode = format!(":{} ", lock.metadata().expect("it is open").ino());
    let locks = std::fs::read_to_string("/proc/locks").expect("the kernel's locks");
    locks
        .lines()
        .any(|line| line.contains("-> FLOCK") && line.contains(&inode))
}

/// Two syncs bring one deletion, and a client makes a mailbox of that name again after the first:
/// the second has opened the mailbox that is gone, and would remove the new one by its name.
#[test]
fn a_mailbox_of_the_same_name_is_not_deleted_in_place_of_the_one_that_is_gone() {
    for format in Format::ALL {
        let server = clustered().format(format).start();
        let _daemon = Daemon::start(&server);
        let mut client = server.imap("alice");
        client.ok("CREATE gone");
        client.ok("CREATE new");
        client.append("new", &message(1));
        // Enough for its log to say that it is whole: else it would be waited for when opened.
        (2..10).for_each(|number| drop(client.append("gone", &message(number))));
        let root = server.mail_dir("alice");
        let folder = |name: &str| match format {
            Format::Maildir => root.join(format!(".{name}")),
            _ => root.join("mailboxes").join(name),
        };
        let lock = File::open(root.join("xid.inbox.lock")).expect("made with the mailboxes");
        lock.lock().expect("nobody has it");
        let reply = std::thread::scope(|scope| {
            let deleting = scope.spawn(|| server.imap("alice").cmd("DELETE gone"));
            until("the deletion to wait for the lock", || is_awaited(&lock));
            std::fs::remove_dir_all(folder("gone")).expect("it is there");
            std::fs::rename(folder("new"), folder("gone")).expect("it is there");
            lock.unlock().expect("it is ours");
            deleting.join().expect("it ends")
        });
        assert!(reply.text.contains("NONEXISTENT"), "{format:?} {reply:?}");
        let status = server.imap("alice").ok("STATUS gone (MESSAGES)");
        let status = status.untagged("STATUS")[0].text().into_owned();
        assert!(status.ends_with("(MESSAGES 1)"), "{format:?} {status}");
    }
}

/// Records in the log of changes of a user's mailboxes that tell of this mailbox's deletion.
fn told_deletions(server: &Dovecot, mailbox: &[u8; 16]) -> usize {
    /// Its type, three octets of nothing, the GUID, the time.
    const RECORD: usize = 24;
    const DELETED: u8 = 1;
    let log = server.mail_dir("alice").join("dovecot.mailbox.log");
    let log = std::fs::read(log).unwrap_or_default();
    log.chunks_exact(RECORD)
        .filter(|record| record[0] == DELETED && record[4..20] == mailbox[..])
        .count()
}

/// Replication reads of a deletion before the mailbox is gone, once for all attempts, and takes one
/// that failed for none.
#[test]
fn a_deletion_that_fails_is_told_once_and_deletes_nothing_elsewhere() {
    for format in Format::ALL {
        let pair = Pair::start(format);
        let server = &pair.servers[0];
        server.imap("alice").ok("CREATE box");
        server.append("alice", "box", &message(1));
        pair.daemons[1].knows(&messages(server, "box"));
        pair.sync_ok(&[]);
        let guid = guid(server, "alice", "box");
        for _ in 0..3 {
            let delete = ["mailbox", "delete", "-u", "alice", "-e", "box"];
            assert_ne!(server.doveadm(&delete).code, 0, "it is not empty");
        }
        assert_eq!(told_deletions(server, &guid), 1, "{format:?}");
        pair.sync_ok(&[]);
        assert_eq!(pair.same("box").len(), 1, "{format:?}");
    }
}

/// A lock as Dovecot has it while it saves: named after the process that holds it, here us, which
/// lives as a client's session does. Gives its path.
pub fn hold_lock(folder: &Path, file: &str) -> PathBuf {
    let path = folder.join(format!("{file}.lock"));
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").expect("a host name");
    let holder = format!("{}:{}", std::process::id(), host.trim_end());
    std::fs::write(&path, holder).expect("a lock");
    path
}

/// Locks are files that their holders remove by name. One that moved along with its mailbox would
/// keep everybody out for as long as its holder lives.
#[test]
fn a_maildir_is_renamed_with_no_lock_in_it() {
    for (below, file) in [
        ("", "dovecot-uidlist"),
        ("", "dovecot-keywords"),
        ("/below", "dovecot-uidlist"),
    ] {
        let server = clustered().format(Format::Maildir).start();
        let _daemon = Daemon::start(&server);
        let mut client = server.imap("alice");
        client.ok("CREATE old");
        client.ok("CREATE old/below");
        let folder = |name: &str| {
            let name = format!(".{name}{}", below.replace('/', "."));
            server.mail_dir("alice").join(name)
        };
        let (old, new) = (folder("old"), folder("new"));
        let lock = hold_lock(&old, file);
        let renamed = client.send("RENAME old new");
        // It waits for us; without our plug-in it does not.
        let end = Instant::now() + Duration::from_secs(1);
        while old.exists() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(10));
        }
        let released = std::fs::remove_file(lock);
        assert!(client.wait(&renamed).is_ok());
        let left = new.join(format!("{file}.lock"));
        assert!(!left.exists(), "{left:?} {released:?}");
        released.expect("the rename waited");
        client.append(&format!("new{below}"), &message(1));
    }
}
