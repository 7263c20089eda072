//! A full disk: what was acknowledged stays, nothing crashes, no number is used twice, and all
//! works again when there is room.

use std::path::PathBuf;

use crate::harness::*;

/// A server whose users' homes are on a small file system, and a file that takes the rest of it.
struct Full {
    server: Dovecot,
    ballast: PathBuf,
}

impl Full {
    fn new(format: Format) -> Full {
        let server = Dovecot::setup().format(format).tmpfs("6m").start();
        // Dovecot and the plug-in may complain as loudly as they like.
        for complaint in ["No space left", "Disk full", "disk is full", "xid: "] {
            server.allow_log(complaint);
        }
        if format == Format::Sdbox {
            // See saves_needed().
            server.allow_log("already exists, rebuilding index");
            server.allow_log("Rebuilding index");
        }
        let ballast = server.tree().join("home/ballast");
        Full { server, ballast }
    }

    /// Leaves about this many bytes.
    fn leave(&self, bytes: u64) {
        let _ = std::fs::remove_file(&self.ballast);
        let free = free_bytes(&self.server.tree().join("home"));
        let size = free.saturating_sub(bytes) as usize;
        let _ = std::fs::write(&self.ballast, vec![b'x'; size]);
    }

    fn make_room(&self) {
        std::fs::remove_file(&self.ballast).unwrap();
    }
}

fn free_bytes(path: &std::path::Path) -> u64 {
    let path = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
    // SAFETY: a zeroed statvfs is a valid one; the path is a C string.
    unsafe {
        let mut stat: libc::statvfs = std::mem::zeroed();
        assert_eq!(libc::statvfs(path.as_ptr(), &mut stat), 0);
        stat.f_bavail * stat.f_frsize
    }
}

/// How many saves it may take until one is taken when there is room again. sdbox by itself, without
/// the plug-in too: where just the index's log had no room, the message's file stays under the next
/// UID, and the next save finds it there, fails and rebuilds the index.
fn saves_needed(format: Format) -> usize {
    match format {
        Format::Sdbox => 2,
        Format::Mdbox | Format::Maildir => 1,
    }
}

fn full_disk(format: Format) {
    let full = Full::new(format);
    let mut n = 0;
    let mut acknowledged = Vec::new();
    let mut before: Vec<Message> = Vec::new();
    let mut refused = 0;
    for room in [0, 4096, 8192, 12_288, 20_480, 40_960, 81_920, 163_840] {
        full.leave(room);
        let mut client = full.server.imap("alice");
        for _ in 0..30 {
            n += 1;
            match client.try_append("INBOX", &message_of(n, 3000)) {
                Ok(reply) if reply.is_ok() => acknowledged.push(n),
                Ok(_) => refused += 1,
                Err(_) => client = full.server.imap("alice"),
            }
            n += 1;
            match full.server.lmtp().deliver(&["alice"], &message_of(n, 3000))[0].0 {
                250 => acknowledged.push(n),
                _ => refused += 1,
            }
        }
        drop(client);
        full.make_room();
        let now = full.server.checked("alice", "INBOX");
        assert!(
            now.len() >= before.len(),
            "{format:?}, room {room}: messages are gone"
        );
        assert_eq!(
            now[..before.len()],
            before[..],
            "{format:?}, room {room}: older ones changed"
        );
        let mut client = full.server.imap("alice");
        let saved = (0..saves_needed(format)).any(|_| {
            n += 1;
            let reply = client.try_append("INBOX", &message(n)).expect("an answer");
            reply.is_ok().then(|| acknowledged.push(n)).is_some()
        });
        assert!(
            saved,
            "{format:?}, room {room}: no save although there is room"
        );
        before = full.server.checked("alice", "INBOX");
        let mut client = full.server.imap_in("alice", "INBOX");
        assert_eq!(
            client.ok("XHXID").announced(),
            xids(&before),
            "{format:?}, room {room}"
        );
    }
    assert!(refused > 0, "{format:?}: the disk was never full");
    all_there(&full.server, &acknowledged, &format!("{format:?}"));
    full.server.restart();
    assert_eq!(full.server.checked("alice", "INBOX"), before);
}

fn all_there(server: &Dovecot, acknowledged: &[usize], what: &str) {
    let mut client = server.imap_in("alice", "INBOX");
    let reply = client.ok("FETCH 1:* (BODY.PEEK[HEADER.FIELDS (MESSAGE-ID)])");
    let headers: String = reply
        .fetches()
        .iter()
        .map(|fetch| fetch.items[0].1.text())
        .collect();
    for n in acknowledged {
        assert!(
            headers.contains(&format!("<{n}@")),
            "{what}: message {n} was acknowledged"
        );
    }
}

#[test]
fn a_full_disk_loses_and_repeats_nothing_on_sdbox() {
    full_disk(Format::Sdbox);
}

#[test]
fn a_full_disk_loses_and_repeats_nothing_on_mdbox() {
    full_disk(Format::Mdbox);
}

#[test]
fn a_full_disk_loses_and_repeats_nothing_on_maildir() {
    full_disk(Format::Maildir);
}

#[test]
fn a_disk_that_was_full_from_the_first_login_works_when_there_is_room() {
    for format in Format::ALL {
        let full = Full::new(format);
        full.leave(0);
        // Whatever the host answers, it answers.
        let mut client = full.server.imap("alice");
        let _ = client.try_append("INBOX", &message(1));
        let _ = client.try_cmd("SELECT INBOX");
        drop(client);
        full.make_room();
        let before = full.server.checked("alice", "INBOX").len();
        full.server.append("alice", "INBOX", &message(2));
        assert_eq!(full.server.checked("alice", "INBOX").len(), before + 1);
    }
}
