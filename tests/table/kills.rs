//! Processes that are killed at random points, and what must hold all the same.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::time::Duration;

use imap_xid::table::{Audit, Error};

use crate::child::{Child, End, Random};
use crate::world::{World, guid, message_guid};

/// How many kills; IMAP_XID_TABLE_KILLS says another number.
const KILLS: u64 = 500;

/// How many with IMAP_XID_SOAK.
const SOAK_KILLS: u64 = 10_000;

/// After so many kills all workers are killed, and the table is looked at.
const ALL_AT_ONCE: u64 = 25;

/// Processes at work at once.
const WORKERS: u64 = 4;

/// Mailboxes to begin with; new ones are added now and then.
const MAILBOXES: u64 = 6;

/// Of every so many UIDs one may be expunged while it is pending.
const EXPUNGED: u32 = 17;

/// More than this many pending entries are not let grow.
const PENDING_LIMIT: u32 = 300;

fn kills() -> u64 {
    let told = std::env::var("IMAP_XID_TABLE_KILLS").ok();
    let usual = match std::env::var_os("IMAP_XID_SOAK") {
        Some(_) => SOAK_KILLS,
        None => KILLS,
    };
    told.and_then(|text| text.parse().ok()).unwrap_or(usual)
}

#[test]
fn a_table_is_whole_after_processes_were_killed_at_random_points() {
    let dir = tempfile::tempdir().unwrap();
    let mut random = Random::new(u64::from(std::process::id()));
    let mut next_seed = 0;
    let mut worker = |random: &mut Random| {
        next_seed += 1;
        let seed = random.below(u64::MAX) + next_seed;
        let dir = dir.path().to_owned();
        Child::fork(move || work(&dir, seed))
    };
    let mut workers: Vec<Child> = (0..WORKERS).map(|_| worker(&mut random)).collect();
    for kill in 0..kills() {
        if kill % ALL_AT_ONCE == ALL_AT_ONCE - 1 {
            workers.drain(..).for_each(kill_and_wait);
            check_at_rest(dir.path());
            workers.extend((0..WORKERS).map(|_| worker(&mut random)));
        }
        std::thread::sleep(Duration::from_micros(random.below(4000)));
        let victim = random.below(WORKERS) as usize;
        workers[victim].kill();
        let end = std::mem::replace(&mut workers[victim], worker(&mut random)).wait();
        assert_eq!(
            end,
            End::Signal(libc::SIGKILL),
            "before kill {kill}: see what it printed"
        );
    }
    workers.drain(..).for_each(kill_and_wait);
    check_at_rest(dir.path());
    check_numbers_of(dir.path(), 1000);
    let world = World::open(dir.path());
    let counts = world.table.counts();
    println!(
        "{} kills, {} of them within the lock: {counts:?}",
        kills(),
        counts.repairs
    );
    assert!(
        counts.repairs > 0,
        "no kill hit the lock: the test tests nothing"
    );
    // Whatever a kill lost was found again: what the pool holds does not grow with the kills.
    assert!(counts.size < 8 << 20, "{} bytes", counts.size);
}

fn kill_and_wait(worker: Child) {
    worker.kill();
    assert_eq!(
        worker.wait(),
        End::Signal(libc::SIGKILL),
        "see what it printed"
    );
}

/// What a worker knows of a mailbox.
#[derive(Default)]
struct Seen {
    watermark: u32,
}

/// Works until killed. Any other end is a failure.
fn work(dir: &Path, seed: u64) -> i32 {
    let mut random = Random::new(seed);
    let mut world = World::open(dir);
    let mut seen: HashMap<u64, Seen> = HashMap::new();
    let mut last_number = 0;
    loop {
        // Four actions in a row are done on one mailbox; a new mailbox comes now and then.
        let number = match random.below(200) {
            0 => random.below(1000),
            _ => random.below(MAILBOXES),
        };
        let mailbox = world.attach(number);
        let seen = seen.entry(number).or_default();
        for _ in 0..4 {
            let watermark = mailbox.watermark();
            assert!(
                watermark >= seen.watermark,
                "the watermark of {number} went down"
            );
            assert!(
                watermark <= world.store.watermark(number),
                "{number} shows what is not durable"
            );
            seen.watermark = watermark;
            act(&mut world, &mailbox, number, &mut random);
        }
        let first = world.take(random.below(5) as u32 + 1);
        assert!(first > last_number, "{first} after {last_number}");
        last_number = first;
    }
}

fn act(world: &mut World, mailbox: &imap_xid::table::Mailbox, number: u64, random: &mut Random) {
    let info = mailbox.info().unwrap();
    match random.below(9) {
        0..=2 if info.pending < PENDING_LIMIT => {
            world.commit(mailbox, number, random.below(4) as u32 + 1);
        }
        0..=4 => {
            let room = u64::from(info.last_uid - info.watermark.unwrap());
            let to = info.watermark.unwrap() + random.below(room + 1) as u32;
            match mailbox.advance(to, &mut world.store) {
                Ok(_) | Err(Error::OnHold { .. }) => {}
                Err(e) => panic!("advance of {number} to {to}: {e}"),
            }
        }
        5 => {
            let id = mailbox.wait_begin(info.last_uid + 1).unwrap();
            if random.below(2) == 0 {
                mailbox.wait_end(id, true).unwrap();
            }
        }
        6 => {
            let owner = u64::from(std::process::id());
            let _ = mailbox.hold(owner, 1);
            let _ = mailbox.close_gate(owner, 1);
            mailbox.open_gate(0).unwrap();
            let uid = info.last_uid / EXPUNGED * EXPUNGED;
            mailbox.pending_remove(uid).unwrap();
        }
        7 => {
            mailbox.promise(info.last_uid).unwrap();
            mailbox
                .set_limits(info.last_uid + 1, info.last_uid + 2)
                .unwrap();
        }
        _ => check_page(mailbox, random.below(u64::from(info.last_uid) + 1) as u32),
    }
}

/// Looks at some pending entries.
fn check_page(mailbox: &imap_xid::table::Mailbox, above: u32) {
    let watermark = mailbox.watermark();
    let page = mailbox.pending(above).unwrap();
    let mut last = above.max(watermark.min(above));
    for entry in page {
        assert!(entry.uid > last, "{} after {last}", entry.uid);
        assert_eq!(entry.guid, message_guid(entry.uid).as_bytes());
        assert_eq!(entry.number, u64::from(entry.uid) + 1000);
        let namespace: &[u8] = if entry.uid % 3 == 0 { b"foo" } else { b"bar" };
        assert_eq!(entry.namespace, namespace);
        last = entry.uid;
    }
}

/// Looks at the whole table, while others may be at work on it.
fn check(dir: &Path) {
    let mut world = World::open(dir);
    let mailboxes = world.table.mailboxes().unwrap();
    let guids: HashSet<_> = mailboxes.iter().map(|mailbox| mailbox.guid()).collect();
    assert_eq!(guids.len(), mailboxes.len(), "a mailbox is there twice");
    for number in 0..MAILBOXES {
        let mailbox = world.attach(number);
        assert_eq!(mailbox.guid(), guid(number));
        check_page(&mailbox, 0);
        assert!(mailbox.watermark() <= world.store.watermark(number));
    }
}

/// Looks at what must hold when nobody is at work: nothing is lost, neither message nor memory.
fn check_at_rest(dir: &Path) {
    check(dir);
    let mut world = World::open(dir);
    for number in 0..MAILBOXES {
        let mailbox = world.attach(number);
        let pending: HashSet<u32> = all_pending(&mailbox).into_iter().collect();
        let expected = mailbox.watermark() + 1..=world.last_uid(number);
        for uid in expected.filter(|uid| uid % EXPUNGED != 0) {
            assert!(pending.contains(&uid), "UID {uid} of {number} is forgotten");
        }
    }
    // Whoever was killed in the lock last is repaired by now.
    assert_eq!(world.table.audit().unwrap(), Audit::default());
}

pub fn all_pending(mailbox: &imap_xid::table::Mailbox) -> Vec<u32> {
    let mut all = Vec::new();
    loop {
        let page = mailbox.pending(all.last().copied().unwrap_or(0)).unwrap();
        if page.is_empty() {
            return all;
        }
        all.extend(page.iter().map(|entry| entry.uid));
    }
}

/// No number was given twice, of `least` at least.
pub fn check_numbers_of(dir: &Path, least: usize) {
    let text = std::fs::read_to_string(dir.join("taken")).unwrap();
    let numbers: Vec<u64> = text.lines().map(|line| line.parse().unwrap()).collect();
    let unique: HashSet<_> = numbers.iter().collect();
    assert!(numbers.len() >= least);
    assert_eq!(unique.len(), numbers.len(), "a number was given twice");
}

#[test]
fn the_gate_and_the_hold_of_a_killed_process_open_by_themselves() {
    let dir = tempfile::tempdir().unwrap();
    let mut world = World::open(dir.path());
    let mailbox = world.attach(1);
    world.commit(&mailbox, 1, 1);
    let path = dir.path().to_owned();
    let holder = Child::fork(move || {
        let mailbox = World::open(&path).attach(1);
        let owner = u64::from(std::process::id());
        mailbox.close_gate(owner, 400).unwrap();
        mailbox.hold(owner, 400).unwrap();
        std::fs::write(path.join("closed"), "").unwrap();
        loop {
            std::thread::park();
        }
    });
    let closed = dir.path().join("closed");
    let start = std::time::Instant::now();
    while !closed.exists() {
        assert!(start.elapsed() < crate::child::LIMIT);
        std::thread::yield_now();
    }
    holder.kill();
    assert_eq!(holder.wait(), End::Signal(libc::SIGKILL));
    let waited = mailbox.wait_for_gate(crate::child::LIMIT);
    assert_eq!(waited, imap_xid::table::Waited::Done);
    while mailbox.info().unwrap().hold.is_some() {
        assert!(start.elapsed() < crate::child::LIMIT);
        std::thread::yield_now();
    }
    mailbox.advance(1, &mut world.store).unwrap();
}
