//! kill -9 at any instruction of the registry, files deleted under it, a full disk: no number is
//! given twice, and everything that the index has is known again.

use std::collections::HashSet;
use std::fs::{self, OpenOptions};
use std::io::{BufRead, BufReader, Lines, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use imap_xid::registry::{Entry, Error, Mailbox, Registry};
use imap_xid::xid::{State, Xid};

/// Processes that share a mail root, each with a mailbox of its own.
const VICTIMS: u8 = 3;
const ROUNDS: u64 = 20;
const ROUNDS_OF_SOAK: u64 = 700;

/// The longest life of a victim, in microseconds: several of its turns.
const LIFE_MAX: u64 = 40_000;

/// Tells a process of this test that it is a victim: the mail root and its number.
const ROLE: &str = "IMAP_XID_VICTIM";

fn mailbox(victim: u8) -> Mailbox {
    Mailbox::new([victim + 1; 16], &format!("box {victim}"), 1)
}

/// A host's index in small: UID n is the n-th number in the file, appended in one write before
/// anything is noted.
struct Index(PathBuf);

impl Index {
    fn of(root: &Path, victim: u8) -> Self {
        Index(root.join(format!("index.{victim}")))
    }

    fn numbers(&self) -> Vec<u64> {
        let octets = fs::read(&self.0).unwrap_or_default();
        octets
            .chunks_exact(8)
            .map(|n| u64::from_le_bytes(n.try_into().unwrap()))
            .collect()
    }

    fn append(&self, numbers: std::ops::Range<u64>) {
        let octets: Vec<u8> = numbers.flat_map(u64::to_le_bytes).collect();
        let file = OpenOptions::new().append(true).create(true).open(&self.0);
        file.unwrap().write_all(&octets).unwrap();
    }
}

fn entries(numbers: &[u64], from: u32) -> Vec<Entry<'static>> {
    (1..)
        .zip(numbers)
        .skip(from as usize - 1)
        .map(|(uid, &n)| Entry {
            uid,
            xid: Xid::new(b"foo", n).unwrap(),
            guid: b"guid",
        })
        .collect()
}

/// Makes the registry know the whole index.
fn cover(registry: &Registry, mailbox: &Mailbox, numbers: &[u64]) {
    let next_uid = numbers.len() as u32 + 1;
    let missing = registry.registered(mailbox, next_uid).unwrap();
    if missing < next_uid {
        registry
            .register(mailbox, &entries(numbers, missing), next_uid, missing == 1)
            .unwrap();
    }
}

fn random(seed: &mut u64) -> u64 {
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    *seed
}

/// Runs only as a process of its own, until it is killed.
#[test]
#[ignore = "a process that the test below starts and kills"]
fn victim() {
    let Ok(role) = std::env::var(ROLE) else {
        return;
    };
    let (victim, root) = role.split_once(' ').unwrap();
    let (victim, root) = (victim.parse().unwrap(), Path::new(root));
    let registry = Registry::new(root, "foo").unwrap();
    let (mailbox, index) = (mailbox(victim), Index::of(root, victim));
    let mut seed = u64::from(std::process::id()) << 20 | 1;
    for _ in 0..100_000 {
        let known = index.numbers();
        match random(&mut seed) % 8 {
            0 => drop(registry.reserve(1, 1).unwrap()),
            1 => cover(&registry, &mailbox, &known),
            2 => {
                let next_uid = known.len() as u32 + 1;
                registry
                    .register(&mailbox, &entries(&known, 1), next_uid, true)
                    .unwrap();
            }
            _ => {
                let count = 1 + (random(&mut seed) % 30) as u32;
                let above = known.last().copied().unwrap_or(0);
                let first = registry.take_numbers(above, count).unwrap();
                index.append(first..first + u64::from(count));
                let now = index.numbers();
                registry
                    .note(&mailbox, &entries(&now, known.len() as u32 + 1))
                    .unwrap();
            }
        }
    }
}

/// Runs only as a process of its own: has the registry open, and uses it again when told to.
#[test]
#[ignore = "a process that a test below starts"]
fn holder() {
    let Ok(role) = std::env::var(ROLE) else {
        return;
    };
    let (_, root) = role.split_once(' ').unwrap();
    let registry = Registry::new(Path::new(root), "foo").unwrap();
    for line in std::io::stdin().lines() {
        assert_eq!(line.unwrap(), "reserve");
        println!("reserved {}", registry.reserve(1, 1).unwrap().start);
    }
}

/// Octets of the small file system.
const SMALL_DISK: usize = 1 << 20;

/// Runs only as a process of its own, where `root` is a file system of [`SMALL_DISK`].
#[test]
#[ignore = "a process that a test below starts"]
fn tenant() {
    let Ok(role) = std::env::var(ROLE) else {
        return;
    };
    let (_, root) = role.split_once(' ').unwrap();
    let (root, ballast) = (Path::new(root), Path::new(root).join("ballast"));
    let registry = Registry::new(root, "foo").unwrap();
    let mailbox = mailbox(0);
    let mut numbers: Vec<u64> = (1..=20).collect();
    assert_eq!(registry.take_numbers(0, 20).unwrap(), 1);
    registry.note(&mailbox, &entries(&numbers, 1)).unwrap();
    cover(&registry, &mailbox, &numbers);

    let full = fs::write(&ballast, vec![b'x'; SMALL_DISK]).unwrap_err();
    assert_eq!(full.raw_os_error(), Some(libc::ENOSPC), "{full}");
    // Numbers that are reserved need no room, and the messages are the host's to save.
    for count in [30_u32, 40, 50] {
        let first = registry
            .take_numbers(*numbers.last().unwrap(), count)
            .unwrap();
        let from = numbers.len() as u32 + 1;
        numbers.extend(first..first + u64::from(count));
        let told = registry.note(&mailbox, &entries(&numbers, from));
        assert!(matches!(told, Ok(()) | Err(Error::Full(_))), "{told:?}");
    }
    let refused = registry.reserve(1, 1).unwrap_err();
    assert!(matches!(refused, Error::Full(_)), "{refused}");
    let next_uid = numbers.len() as u32 + 1;
    let refused = registry.register(&mailbox, &entries(&numbers, 1), next_uid, true);
    assert!(matches!(refused, Err(Error::Full(_))), "{refused:?}");

    fs::remove_file(&ballast).unwrap();
    cover(&registry, &mailbox, &numbers);
    let all: Vec<u32> = (1..next_uid).collect();
    assert_eq!(registry.news(&mailbox, &State::new()).unwrap(), all);
    let block = registry.reserve(1, 1).unwrap();
    assert!(block.start > *numbers.last().unwrap(), "{block:?}");
    assert_eq!(registry.verify().unwrap(), []);
    println!("all is well");
}

fn start(root: &Path, victim: u8) -> Child {
    process("victim", root, victim)
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

/// A process that runs one of the tests that are ignored.
fn process(role: &str, root: &Path, victim: u8) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--ignored", "--nocapture", "--exact", role])
        .env(ROLE, format!("{victim} {}", root.display()))
        .stderr(Stdio::piped());
    command
}

#[test]
fn a_full_disk_is_a_clear_error_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let test = std::env::current_exe().unwrap();
    let script = format!(
        "mount -t tmpfs -o size={SMALL_DISK} tmpfs \"$1\" && exec \"$2\" --ignored --nocapture \
         --exact tenant"
    );
    // SAFETY: a system call without arguments.
    let user_space: &[&str] = match unsafe { libc::geteuid() } {
        0 => &[],
        _ => &["--user", "--map-root-user"],
    };
    let output = Command::new("unshare")
        .args(user_space)
        .args(["--mount", "sh", "-c", &script, "sh"])
        .args([dir.path(), &test])
        .env(ROLE, format!("0 {}", dir.path().display()))
        .output()
        .expect("unshare runs (util-linux)");
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(
        output.status.success() && out.contains("all is well"),
        "{out}{err}"
    );
}

/// A [`holder`] and how to make it reserve.
struct Holder {
    process: Child,
    orders: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
}

impl Holder {
    fn start(root: &Path) -> Self {
        let mut process = process("holder", root, 0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let orders = process.stdin.take().unwrap();
        let answers = BufReader::new(process.stdout.take().unwrap()).lines();
        Holder {
            process,
            orders,
            answers,
        }
    }

    fn reserve(&mut self) -> u64 {
        self.orders.write_all(b"reserve\n").unwrap();
        let mut answers = self.answers.by_ref().map(Result::unwrap);
        let answer = answers.find(|line| line.starts_with("reserved ")).unwrap();
        answer["reserved ".len()..].parse().unwrap()
    }

    fn end(mut self) {
        drop(self.orders);
        assert!(self.process.wait().unwrap().success());
    }
}

#[test]
fn a_registry_deleted_while_another_process_has_it_open_is_made_anew() {
    let dir = tempfile::tempdir().unwrap();
    let mut holder = Holder::start(dir.path());
    assert_eq!(holder.reserve(), 1);
    // What SQLite keeps beside it stays, and stays in the holder's memory.
    fs::remove_file(dir.path().join("xid.registry")).unwrap();
    let registry = Registry::new(dir.path(), "foo").unwrap();
    let mailbox = mailbox(0);
    assert_eq!(registry.registered(&mailbox, 9).unwrap(), 1);
    assert_eq!(registry.reserve(1, 1).unwrap().start, (1 << 40) + 1);
    assert_eq!(
        holder.reserve(),
        (1 << 40) + 4097,
        "the holder has seen it, too"
    );
    assert_eq!(registry.verify().unwrap(), []);
    holder.end();
}

#[test]
fn deleting_sqlites_own_files_under_processes_makes_no_number_come_twice() {
    let dir = tempfile::tempdir().unwrap();
    let mut holder = Holder::start(dir.path());
    let mut seen = vec![holder.reserve()];
    for suffix in ["-shm", "-wal"] {
        fs::remove_file(dir.path().join(format!("xid.registry{suffix}"))).unwrap();
    }
    // Two processes now have two logs of one file, and no lock in common.
    let registry = Registry::new(dir.path(), "foo").unwrap();
    for _ in 0..4 {
        seen.extend(registry.reserve(1, 1).map(|block| block.start));
        seen.push(holder.reserve());
    }
    let mut blocks: Vec<u64> = seen.iter().map(|number| number / 4096).collect();
    blocks.sort_unstable();
    blocks.dedup();
    assert_eq!(blocks.len(), seen.len(), "{seen:?}");
    assert!(seen.len() > 5, "{seen:?}");
    holder.end();
}

#[test]
fn whoever_is_killed_no_number_is_given_twice_and_nothing_is_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    let soak = std::env::var_os("IMAP_XID_SOAK").is_some();
    let mut seed = 0x1795_4600_0000_0011;
    for round in 0..if soak { ROUNDS_OF_SOAK } else { ROUNDS } {
        let children: Vec<Child> = (0..VICTIMS).map(|victim| start(root, victim)).collect();
        for mut child in children {
            std::thread::sleep(Duration::from_micros(random(&mut seed) % LIFE_MAX));
            child.kill().unwrap();
            let output = child.wait_with_output().unwrap();
            let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(
                !complaint.contains("panicked"),
                "round {round}: {complaint}"
            );
            assert!(!complaint.contains("broken"), "round {round}: {complaint}");
        }
        check(root);
    }
    let given: usize = (0..VICTIMS)
        .map(|v| Index::of(root, v).numbers().len())
        .sum();
    assert!(
        given > 100,
        "the victims did not live long enough: {given} numbers"
    );
}

fn check(root: &Path) {
    let registry = Arc::new(Registry::new(root, "foo").unwrap());
    let mut given = HashSet::new();
    for victim in 0..VICTIMS {
        let (mailbox, numbers) = (mailbox(victim), Index::of(root, victim).numbers());
        assert!(numbers.is_sorted(), "numbers ascend in a mailbox");
        for &number in &numbers {
            assert!(given.insert(number), "foo-{number} was given twice");
        }
        cover(&registry, &mailbox, &numbers);
        let all: Vec<u32> = (1..=numbers.len() as u32).collect();
        assert_eq!(registry.news(&mailbox, &State::new()).unwrap(), all);
    }
    assert_eq!(registry.verify().unwrap(), []);
    assert_eq!(
        registry.status().unwrap().incarnation,
        0,
        "a kill is no loss"
    );
}
