//! kill -9 of imap, lmtp and doveadm processes under load.
//!
//! Writers put numbered messages in and note which were acknowledged; a killer picks busy processes
//! at random moments; a watcher reads all mailboxes again and again and compares with what was seen
//! before. mdbox itself doubles messages and changes UIDs when its processes are killed, plug-in or
//! not; so there only what the plug-in answers for is asked.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{ErrorKind, Result};
use std::process::{Child, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use crate::harness::*;

/// No process holds a lock file for as long as this, however busy the machine.
const STALE: Duration = Duration::from_secs(8);

const BOXES: [&str; 3] = ["INBOX", "Work", "Copies"];

/// One run: the server and what is known of it.
struct Load {
    server: Dovecot,
    format: Format,
    plugin: bool,
    over: AtomicBool,
    kills: AtomicUsize,
    next: AtomicUsize,
    /// (mailbox, n) of messages whose storing was acknowledged.
    acknowledged: Mutex<BTreeSet<(&'static str, usize)>>,
    seen: Mutex<Seen>,
}

/// What was observed at any time.
#[derive(Default)]
struct Seen {
    /// XID -> (mailbox, GUID).
    xids: BTreeMap<String, (String, String)>,
    /// (mailbox, UIDVALIDITY, UID) -> XID.
    uids: BTreeMap<(String, String, u32), String>,
}

impl Seen {
    /// Compares a mailbox with all that was seen before.
    fn add(&mut self, mailbox: &str, validity: &str, messages: &[Message], uids_hold: bool) {
        for message in messages {
            // A message whose file is gone (stock mdbox after a kill) has none.
            if message.guid.is_empty() {
                continue;
            }
            let xid = message.xid.clone().expect("an XID");
            let here = (mailbox.to_owned(), message.guid.clone());
            let key = (mailbox.to_owned(), validity.to_owned(), message.uid);
            let owner = self.xids.entry(xid.clone()).or_insert_with(|| here.clone());
            // Stock mdbox that lost its map shows another message's text under the same UID.
            let swapped = !uids_hold && self.uids.get(&key) == Some(&xid);
            // It did when the XID was seen first, under another UIDVALIDITY: that text is another's.
            let others = |m: &Message| m.guid == owner.1 && m.xid.as_ref() != Some(&xid);
            let was_swapped = !uids_hold && *owner != here && messages.iter().any(others);
            if was_swapped {
                owner.clone_from(&here);
            }
            if *owner != here && !swapped {
                panic!("{xid} of {owner:?} is now that of {here:?}, {key:?}");
            }
            let before = self.uids.insert(key, xid.clone());
            if uids_hold && let Some(before) = before {
                let uid = message.uid;
                assert_eq!(before, xid, "{mailbox}: UID {uid} changed its XID");
            }
        }
    }

    /// Every XID that this GUID ever had in this mailbox.
    fn of(&self, mailbox: &str, guid: &str) -> BTreeSet<&String> {
        let is_it =
            |(_, owner): &(&String, &(String, String))| owner.0 == mailbox && owner.1 == guid;
        self.xids.iter().filter(is_it).map(|(xid, _)| xid).collect()
    }
}

/// With UID a set that names nobody is no error.
const ALL_IDS: &str = "UID FETCH 1:* (BODY.PEEK[HEADER.FIELDS (MESSAGE-ID)])";

impl Load {
    fn new(format: Format, plugin: bool) -> Load {
        let server = Dovecot::setup()
            .format(format)
            .plugin(plugin)
            .set("verbose_proctitle", "yes")
            .start();
        server.allow_log("killed with signal 9");
        if format == Format::Mdbox {
            server.allow_log("has no XID although the mailbox was synced");
        }
        let mut client = server.imap("alice");
        client.ok("CREATE Work");
        client.ok("CREATE Copies");
        // Stock Dovecot itself panics now and then when several processes create an INBOX at once.
        client.append("INBOX", &message(0));
        drop(client);
        Load {
            server,
            format,
            plugin,
            over: AtomicBool::new(false),
            kills: AtomicUsize::new(0),
            next: AtomicUsize::new(1),
            acknowledged: Mutex::new(BTreeSet::new()),
            seen: Mutex::new(Seen::default()),
        }
    }

    fn running(&self) -> bool {
        !self.over.load(Ordering::SeqCst)
    }

    fn next(&self) -> usize {
        self.next.fetch_add(1, Ordering::SeqCst)
    }

    fn acknowledge(&self, mailbox: &'static str, n: usize) {
        self.acknowledged.lock().unwrap().insert((mailbox, n));
    }

    /// A client whose connection may be lost at any moment.
    fn client(&self) -> Result<Imap> {
        let mut client = self.server.connect_imap();
        if client.try_cmd("LOGIN alice pass")?.is_ok() {
            Ok(client)
        } else {
            Err(ErrorKind::ConnectionRefused.into())
        }
    }

    /// Does `work` over and over, with a new connection when the old one is lost.
    fn keep_on(&self, mut work: impl FnMut(&mut Imap) -> Result<()>) {
        while self.running() {
            let Ok(mut client) = self.client() else {
                continue;
            };
            while self.running() && work(&mut client).is_ok() {}
        }
    }

    fn append(&self, mailbox: &'static str) {
        self.keep_on(|client| {
            let n = self.next();
            if client.try_append(mailbox, &message(n))?.is_ok() {
                self.acknowledge(mailbox, n);
            }
            Ok(())
        });
    }

    /// Copies, moves and expunges, in a mailbox from which nothing is asked to stay.
    fn copy_and_move(&self, mut random: Random) {
        self.keep_on(|client| {
            client.try_cmd("SELECT INBOX")?;
            client.try_cmd(&format!("COPY {} Copies", 1 + random.below(5)))?;
            client.try_cmd("SELECT Copies")?;
            client.try_cmd("MOVE 1 Copies")?;
            client.try_cmd("STORE 1:2 +FLAGS (\\Deleted)")?;
            if random.chance(4) {
                client.try_cmd("EXPUNGE")?;
            }
            Ok(())
        });
    }

    fn deliver(&self) {
        while self.running() {
            let Ok(mut client) = self.server.try_lmtp() else {
                continue;
            };
            while self.running() {
                let n = self.next();
                match client.try_deliver(&["alice"], &message(n)) {
                    Ok(answers) if answers[0].0 == 250 => self.acknowledge("INBOX", n),
                    Ok(_) => {}
                    Err(_) => break,
                }
            }
        }
    }

    /// doveadm, killed by us at a random moment of its life.
    fn doveadm(&self, mut random: Random) {
        while self.running() {
            let n = self.next();
            let (args, input): (&[&str], _) = match random.below(4) {
                0 => (&["force-resync", "-u", "alice", "INBOX"], Vec::new()),
                1 => (
                    &["copy", "-u", "alice", "Copies", "mailbox", "Work", "1:3"],
                    Vec::new(),
                ),
                _ => (&["save", "-u", "alice", "-m", "Work"], message(n)),
            };
            let mut command = self.server.doveadm_command(args);
            command
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .stderr(Stdio::null());
            let mut child = command.spawn().expect("doveadm starts");
            let _ = std::io::Write::write_all(&mut child.stdin.take().unwrap(), &input);
            // Most of its life is before it opens the mailbox.
            if random.chance(2) {
                std::thread::sleep(Duration::from_micros(random.below(60_000) as u64));
                let _ = child.kill();
                self.kills.fetch_add(1, Ordering::SeqCst);
            }
            if ends_well(&mut child) && args[0] == "save" {
                self.acknowledge("Work", n);
            }
        }
    }

    /// Kills processes that are serving somebody.
    fn kill(&self, target: usize, mut random: Random) {
        while self.kills.load(Ordering::SeqCst) < target {
            std::thread::sleep(Duration::from_micros(random.below(100_000) as u64));
            let service = *random.pick(&["imap", "imap", "lmtp"]);
            let busy: Vec<u32> = self
                .server
                .pids(service)
                .into_iter()
                .filter(|pid| is_busy(*pid, service))
                .collect();
            if busy.is_empty() {
                continue;
            }
            kill9(*random.pick(&busy));
            self.kills.fetch_add(1, Ordering::SeqCst);
        }
        self.over.store(true, Ordering::SeqCst);
    }

    /// Removes lock files that a killed process left: the host itself waits for minutes before it
    /// does, on maildir and where a log is rotated.
    fn sweep(&self, older_than: Duration) {
        let mut todo = vec![self.server.mail_dir("alice")];
        while let Some(dir) = todo.pop() {
            for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
                let name = entry.file_name().to_string_lossy().into_owned();
                let Ok(meta) = entry.metadata() else { continue };
                if meta.is_dir() {
                    todo.push(entry.path());
                } else if name.ends_with(".lock") || name.ends_with(".newlock") {
                    let age = meta.modified().ok().and_then(|at| at.elapsed().ok());
                    if age.is_some_and(|age| age >= older_than) {
                        let _ = std::fs::remove_file(entry.path());
                    }
                }
            }
        }
    }

    /// [`Load::sweep`] now and then, until the run is over and the others have ended.
    fn janitor(&self, others: &AtomicUsize) {
        while self.running() || others.load(Ordering::SeqCst) > 0 {
            self.sweep(STALE);
            std::thread::sleep(Duration::from_millis(500));
        }
    }

    fn watch(&self) {
        self.keep_on(|client| {
            for mailbox in BOXES {
                self.look(client, mailbox)?;
            }
            Ok(())
        });
    }

    /// Reads a mailbox and compares it with what was seen before.
    fn look(&self, client: &mut Imap, mailbox: &str) -> Result<Vec<Message>> {
        // A mailbox that is being rebuilt after a kill may be refused for the moment.
        let selected = client.try_cmd(&format!("EXAMINE {mailbox}"))?;
        if !selected.is_ok() {
            return Ok(Vec::new());
        }
        let validity = selected.untagged_code("UIDVALIDITY").expect("UIDVALIDITY");
        if !self.plugin {
            return Ok(Vec::new());
        }
        let reply = client.try_cmd("FETCH 1:* (UID XID X-GUID)")?;
        if reply.text.contains("[EXPUNGEISSUED]") {
            // The index was rebuilt under the session, which cannot read the messages any more.
            return Ok(Vec::new());
        }
        let mut messages = Vec::new();
        for fetch in reply.fetches() {
            // A line about flags alone has no UID.
            let (Some(uid), Some(guid)) = (fetch.uid(), fetch.text("X-GUID")) else {
                continue;
            };
            messages.push(Message {
                seq: fetch.seq,
                uid,
                xid: fetch.xid(),
                guid,
            });
        }
        let mdbox = self.format == Format::Mdbox;
        if mdbox {
            // While stock mdbox rebuilds all its indexes, a session may read a message whose XID is
            // not put back yet; at rest none is missing.
            let rebuilding = self.running();
            messages.retain(|message| message.xid.is_some() || !rebuilding);
            no_xid_missing_or_doubled(mailbox, &messages);
        } else {
            check_messages(mailbox, &messages);
        }
        self.seen
            .lock()
            .unwrap()
            .add(mailbox, &validity, &messages, !mdbox);
        Ok(messages)
    }

    /// All acknowledged messages are there, and each has the XID it always had. Gives how many
    /// are gone: none, but on mdbox.
    fn judge(&self) -> usize {
        // Nobody writes any more.
        self.sweep(Duration::ZERO);
        if self.format == Format::Mdbox {
            // It notices what is broken when it reads a message, and then ends the session.
            self.server
                .doveadm_ok(&["force-resync", "-u", "alice", "*"]);
        }
        let mut client = self.client().expect("nobody kills any more");
        let mut lost = 0;
        for mailbox in BOXES {
            let messages = self
                .look(&mut client, mailbox)
                .expect("nobody kills any more");
            let seen = self.seen.lock().unwrap();
            for message in messages.iter().filter(|_| mailbox != "Copies") {
                // Copies of a message share its GUID on dbox; only Copies and Work have such.
                if mailbox == "INBOX" && self.format != Format::Mdbox {
                    let had = seen.of(mailbox, &message.guid);
                    assert_eq!(had.len(), 1, "{mailbox}: {message:?} had {had:?}");
                }
            }
            drop(seen);
            lost += self.judge_acknowledged(&mut client, mailbox);
        }
        let kills = self.kills.load(Ordering::SeqCst);
        let messages = self.seen.lock().unwrap().xids.len();
        let kept = self.acknowledged.lock().unwrap().len();
        println!(
            "{:?}, plug-in {}: {kills} kills, {messages} XIDs seen, {lost} of {kept} acknowledged \
             messages are gone",
            self.format, self.plugin
        );
        lost
    }

    /// Stock mdbox that was killed makes its storage anew when it finds out, which may be in the
    /// middle of a session, and ends that.
    fn let_it_rebuild(&self, client: &mut Imap, mailbox: &str) {
        if self.format != Format::Mdbox {
            return;
        }
        until("a session that reads all messages", || {
            *client = self.server.imap_in("alice", mailbox);
            client.try_cmd(ALL_IDS).is_ok_and(|reply| reply.is_ok())
        });
    }

    fn judge_acknowledged(&self, client: &mut Imap, mailbox: &str) -> usize {
        self.let_it_rebuild(client, mailbox);
        let reply = client.ok(ALL_IDS);
        let mut found: BTreeMap<String, usize> = BTreeMap::new();
        for fetch in reply.fetches() {
            let header = fetch
                .items
                .iter()
                .find(|(name, _)| name.starts_with("BODY["));
            *found
                .entry(header.expect("the header").1.text())
                .or_default() += 1;
        }
        let acknowledged = self.acknowledged.lock().unwrap();
        let here = acknowledged.iter().filter(|(name, _)| *name == mailbox);
        let times = |n: &usize| {
            let id = format!("Message-ID: <{n}@test.example.org>\r\n\r\n");
            found.get(&id).copied().unwrap_or(0)
        };
        let counts: Vec<(usize, usize)> = here.map(|(_, n)| (*n, times(n))).collect();
        let wrong: Vec<_> = counts.iter().filter(|(_, count)| *count != 1).collect();
        if self.format != Format::Mdbox {
            assert!(
                wrong.is_empty(),
                "{mailbox}: acknowledged messages, and how often: {wrong:?}"
            );
        }
        wrong.iter().filter(|(_, count)| *count == 0).count()
    }
}

/// What holds even where the host itself doubles messages.
fn no_xid_missing_or_doubled(mailbox: &str, messages: &[Message]) {
    let mut seen = BTreeSet::new();
    for message in messages {
        let Some(xid) = &message.xid else {
            panic!("{mailbox}: no XID: {message:?}")
        };
        split_xid(xid);
        assert!(seen.insert(xid), "{mailbox}: {xid} twice: {messages:?}");
    }
}

/// Whether the process title names somebody: one that is killed before it said that it runs makes
/// Dovecot hold the service back for seconds.
fn is_busy(pid: u32, service: &str) -> bool {
    let title = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let title = String::from_utf8_lossy(&title);
    match service {
        "imap" => title.contains("[alice"),
        _ => title.contains("[127."),
    }
}

fn ends_well(child: &mut Child) -> bool {
    child.wait().is_ok_and(|status| status.success())
}

/// Counts a worker off, also when it panics.
struct Done<'a>(&'a AtomicUsize);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

fn kill_under_load(format: Format, plugin: bool) -> usize {
    let target = 80 * crate::scale();
    let load = Load::new(format, plugin);
    let seed = seed("KILL_SEED", 20051123);
    let others = AtomicUsize::new(6);
    let until_over = |work: &dyn Fn()| {
        let _done = Done(&others);
        work();
    };
    std::thread::scope(|scope| {
        scope.spawn(|| until_over(&|| load.append("INBOX")));
        scope.spawn(|| until_over(&|| load.append("Work")));
        scope.spawn(|| until_over(&|| load.deliver()));
        scope.spawn(|| until_over(&|| load.copy_and_move(Random::new(seed + 1))));
        scope.spawn(|| until_over(&|| load.doveadm(Random::new(seed + 2))));
        scope.spawn(|| until_over(&|| load.watch()));
        scope.spawn(|| load.janitor(&others));
        load.kill(target, Random::new(seed));
    });
    load.judge();
    // A restart reads everything anew.
    load.server.restart();
    load.judge()
}

#[test]
fn kills_lose_repeat_and_reorder_nothing_on_sdbox() {
    kill_under_load(Format::Sdbox, true);
}

#[test]
fn kills_lose_repeat_and_reorder_nothing_on_mdbox() {
    // Stock mdbox doubles messages when its processes are killed, and now and then loses some.
    let ours = kill_under_load(Format::Mdbox, true);
    let stock = kill_under_load(Format::Mdbox, false);
    // How many is chance, so it is shown and not judged.
    println!("mdbox: {ours} acknowledged messages are gone, {stock} without the plug-in");
}

#[test]
fn kills_lose_repeat_and_reorder_nothing_on_maildir() {
    kill_under_load(Format::Maildir, true);
}

#[test]
fn crashes_of_the_whole_server_repeat_no_number() {
    for format in Format::ALL {
        let load = Load::new(format, true);
        for _ in 0..5 * crate::scale() {
            load.over.store(false, Ordering::SeqCst);
            std::thread::scope(|scope| {
                scope.spawn(|| load.append("INBOX"));
                scope.spawn(|| load.append("Work"));
                let before = load.next.load(Ordering::SeqCst);
                until("some messages", || {
                    load.next.load(Ordering::SeqCst) >= before + 20
                });
                load.over.store(true, Ordering::SeqCst);
                load.server.crash();
            });
            load.server.start_again();
            load.judge();
        }
    }
}
