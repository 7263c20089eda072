//! Many processes at once.

use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use imap_xid::table::{Table, Waited, Waiter};

use crate::child::{Child, End, LIMIT};
use crate::world::World;

/// Processes that wait: half of them asleep on the futex word, half in poll() on their FIFO.
const WAITERS: usize = 1000;

#[test]
fn a_thousand_waiting_processes_are_woken_by_one_advance() {
    let dir = tempfile::tempdir().unwrap();
    let mut world = World::open(dir.path());
    let mailbox = world.attach(1);
    world.commit(&mailbox, 1, 1);
    let waiters: Vec<Child> = (0..WAITERS)
        .map(|i| {
            let (table, mailbox) = (world.table.clone(), mailbox.clone());
            Child::fork(move || match i % 2 {
                0 => i32::from(mailbox.wait(1, LIMIT).unwrap() != Waited::Done),
                _ => i32::from(!wait_in_poll(&table, &mailbox)),
            })
        })
        .collect();
    let start = Instant::now();
    while mailbox.info().unwrap().waiters < WAITERS as u32 {
        assert!(start.elapsed() < LIMIT, "they do not come");
        std::thread::sleep(Duration::from_millis(5));
    }
    let start = Instant::now();
    mailbox.advance(1, &mut world.store).unwrap();
    let advance = start.elapsed();
    for waiter in waiters {
        assert_eq!(waiter.wait(), End::Code(0));
    }
    println!(
        "advance: {advance:?}, all {WAITERS} gone after {:?}",
        start.elapsed()
    );
    assert_eq!(mailbox.info().unwrap().waiters, 0);
    assert_eq!(world.table.waiting_processes(), 0);
}

fn wait_in_poll(table: &Table, mailbox: &imap_xid::table::Mailbox) -> bool {
    let waiter = Waiter::open(table).unwrap();
    let id = mailbox.wait_begin(1).unwrap();
    let start = Instant::now();
    while mailbox.watermark() < 1 && start.elapsed() < LIMIT {
        let fd = waiter.fd().as_raw_fd();
        let mut poll = libc::pollfd {
            fd,
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one valid entry.
        let ready = unsafe { libc::poll(&mut poll, 1, LIMIT.as_millis() as i32) };
        assert_eq!(ready, 1, "no byte came");
        assert!(waiter.drain());
    }
    mailbox.wait_end(id, false).unwrap();
    mailbox.watermark() == 1
}

#[test]
fn processes_that_open_at_once_get_one_table() {
    for damaged in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        if damaged {
            std::fs::write(dir.path().join("xid.table"), "no table").unwrap();
        }
        let openers: Vec<Child> = (0..16)
            .map(|i| {
                let dir = dir.path().to_owned();
                Child::fork(move || {
                    let table = Table::open(&dir).unwrap().0;
                    assert!(table.is_current());
                    let inode = std::fs::metadata(table.path()).unwrap().ino();
                    std::fs::write(dir.join(format!("inode{i}")), inode.to_string()).unwrap();
                    0
                })
            })
            .collect();
        for opener in openers {
            assert_eq!(opener.wait(), End::Code(0));
        }
        let inode = std::fs::metadata(dir.path().join("xid.table"))
            .unwrap()
            .ino()
            .to_string();
        for i in 0..16 {
            let seen = std::fs::read_to_string(dir.path().join(format!("inode{i}"))).unwrap();
            assert_eq!(seen, inode);
        }
    }
}

#[test]
fn an_assigner_sleeps_until_there_is_something_to_assign() {
    let dir = tempfile::tempdir().unwrap();
    let mut world = World::open(dir.path());
    let mailbox = world.attach(1);
    let path = dir.path().to_owned();
    let seen = world.table.commits();
    assert_eq!(
        world.table.wait_for_commits(seen, Duration::from_millis(1)),
        Waited::TimedOut
    );
    let writer = Child::fork(move || {
        let mut world = World::open(&path);
        let mailbox = world.attach(1);
        world.commit(&mailbox, 1, 1);
        0
    });
    assert_eq!(world.table.wait_for_commits(seen, LIMIT), Waited::Done);
    assert_eq!(writer.wait(), End::Code(0));
    assert_eq!(mailbox.pending(0).unwrap().len(), 1);
}
