//! Files of the plug-in that are torn, foreign or random: mail works, no XID changes, no number
//! is used twice.

use std::collections::BTreeSet;
use std::io::Write;
use std::os::unix::fs::chown;
use std::path::Path;

use crate::harness::*;

/// A way to spoil a file.
#[derive(Clone, Copy, Debug)]
enum Spoil {
    Empty,
    Truncated,
    RandomBytes,
    AllRandom,
    Foreign,
    Longer,
    Folder,
}

const SPOILS: [Spoil; 7] = [
    Spoil::Empty,
    Spoil::Truncated,
    Spoil::RandomBytes,
    Spoil::AllRandom,
    Spoil::Foreign,
    Spoil::Longer,
    Spoil::Folder,
];

fn random_bytes(random: &mut Random, len: usize) -> Vec<u8> {
    (0..len).map(|_| random.next() as u8).collect()
}

/// False when there was nothing to spoil.
fn spoil(path: &Path, how: Spoil, random: &mut Random, owner: (u32, u32)) -> bool {
    let Ok(mut bytes) = std::fs::read(path) else {
        return false;
    };
    match how {
        Spoil::Empty => bytes.clear(),
        Spoil::Truncated => bytes.truncate(random.below(bytes.len().max(1))),
        Spoil::RandomBytes => {
            for _ in 0..(1 + bytes.len() / 200).min(400) {
                let at = random.below(bytes.len().max(1));
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = random.next() as u8;
                }
            }
        }
        Spoil::AllRandom => bytes = random_bytes(random, bytes.len().max(64)),
        Spoil::Foreign => bytes = b"This is a letter to somebody, not a database.\n".to_vec(),
        Spoil::Longer => bytes.extend(random_bytes(random, 5000)),
        Spoil::Folder => {
            std::fs::remove_file(path).unwrap();
            std::fs::create_dir(path).unwrap();
            chown(path, Some(owner.0), Some(owner.1)).unwrap();
            return true;
        }
    }
    // In place: the owner and the mode stay.
    let mut file = std::fs::File::options()
        .write(true)
        .truncate(true)
        .open(path)
        .unwrap();
    file.write_all(&bytes).unwrap();
    true
}

/// A user's mail and every XID that was ever seen in it.
struct Mail {
    server: Dovecot,
    ever: BTreeSet<String>,
    next: usize,
}

impl Mail {
    fn new(format: Format) -> Mail {
        let server = Dovecot::setup().format(format).start();
        server.allow_log("xid: ");
        server.imap("alice").ok("CREATE Other");
        Mail {
            server,
            ever: BTreeSet::new(),
            next: 1,
        }
    }

    /// Two new messages in each mailbox: with new XIDs, the others keep theirs.
    fn grow(&mut self, what: &str) {
        for mailbox in ["INBOX", "Other"] {
            let before = self.server.checked("alice", mailbox);
            let mut client = self.server.imap("alice");
            client.append(mailbox, &message(self.next));
            self.next += 1;
            drop(client);
            self.server
                .deliver(&format!("alice+{mailbox}"), &message(self.next));
            self.next += 1;
            let after = self.server.checked("alice", mailbox);
            assert_eq!(after.len(), before.len() + 2, "{what}");
            assert_eq!(
                after[..before.len()],
                before[..],
                "{what}: older messages changed"
            );
            for xid in xids(&after[before.len()..]) {
                assert!(
                    self.ever.insert(xid.clone()),
                    "{what}: {xid} was used before"
                );
            }
        }
        self.ask(what);
    }

    /// States and sets are answered rightly.
    fn ask(&self, what: &str) {
        let mut client = self.server.imap_in("alice", "INBOX");
        let all = xids(&self.server.checked("alice", "INBOX"));
        assert_eq!(client.ok("XHXID").announced(), all, "{what}: XHXID");
        let last = &all[all.len() - 2];
        let state = client.cmd(&format!("XHXID {last}"));
        if state.is_ok() {
            assert!(
                state.announced().contains(&all[all.len() - 1]),
                "{what}: news after {last}"
            );
        } else {
            assert!(state.text.contains("[XIDRESET]"), "{what}: {}", state.text);
        }
        let set = format!("XHXID FETCH {},{} (FLAGS)", all[0], all[all.len() - 1]);
        assert_eq!(client.ok(&set).fetches().len(), 2, "{what}: {set}");
    }

    /// Waits until no process has the files open.
    fn quiet(&self) {
        until("all sessions to end", || {
            self.server.pids("imap").is_empty()
        });
    }
}

fn spoilt(format: Format, files: &[&str], rounds: usize) {
    let mut mail = Mail::new(format);
    let mut random = Random::new(seed("TORN_SEED", 7));
    mail.grow("at first");
    for round in 0..rounds * crate::scale() {
        for how in SPOILS {
            for file in files {
                mail.quiet();
                let path = mail.server.mail_dir("alice").join(file);
                let what = format!("{format:?}, round {round}: {file} {how:?}");
                if spoil(&path, how, &mut random, mail.server.mail_owner()) {
                    mail.grow(&what);
                    mail.grow(&format!("{what}, again"));
                }
            }
        }
    }
    mail.server.restart();
    mail.grow("after a restart");
    mail.server.checked_all("alice");
}

#[test]
fn a_spoilt_table_repeats_no_number() {
    for format in Format::ALL {
        spoilt(format, &["xid.table"], 1);
    }
}

#[test]
fn a_spoilt_journal_repeats_no_number() {
    for format in Format::ALL {
        spoilt(format, &["xid.journal"], 1);
    }
}

#[test]
fn a_spoilt_registry_repeats_no_number() {
    for format in Format::ALL {
        spoilt(
            format,
            &["xid.registry", "xid.registry-wal", "xid.registry-shm"],
            1,
        );
    }
}

#[test]
fn a_spoilt_witness_repeats_no_number() {
    spoilt(Format::Sdbox, &["xid.incarnation"], 1);
}

#[test]
fn all_files_spoilt_at_once_repeat_no_number_and_mail_works() {
    let mut mail = Mail::new(Format::Sdbox);
    let mut random = Random::new(seed("TORN_SEED", 7));
    mail.grow("at first");
    for how in SPOILS {
        mail.quiet();
        for file in [
            "xid.table",
            "xid.journal",
            "xid.registry",
            "xid.registry-wal",
        ] {
            spoil(
                &mail.server.mail_dir("alice").join(file),
                how,
                &mut random,
                mail.server.mail_owner(),
            );
        }
        mail.grow(&format!("all files {how:?}"));
    }
}

#[test]
fn a_table_that_is_torn_while_it_is_in_use_repeats_no_number() {
    let mut mail = Mail::new(Format::Sdbox);
    mail.grow("at first");
    let mut client = mail.server.imap_in("alice", "INBOX");
    client.append("INBOX", &message(500));
    let path = mail.server.mail_dir("alice").join("xid.table");
    // Replaced by another file, as a restore from a backup does; the client has the old one mapped.
    std::fs::rename(&path, path.with_extension("old")).unwrap();
    client.append("INBOX", &message(501));
    mail.server.append("alice", "INBOX", &message(502));
    client.append("INBOX", &message(503));
    mail.server.append("alice", "INBOX", &message(504));
    mail.ever
        .extend(xids(&mail.server.checked("alice", "INBOX")));
    drop(client);
    mail.grow("afterwards");
    mail.server.checked_all("alice");
}
