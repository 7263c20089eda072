//! Processes that are killed at chosen instructions: a tracer lets one make so many steps into an
//! operation, and no more.

use std::path::Path;

use imap_xid::table::{Audit, Mailbox, Waiter};

use crate::child::{Child, End, Random};
use crate::world::World;

/// Kills for each operation, spread over its instructions; more with IMAP_XID_SOAK.
const KILLS: u64 = 6;
const SOAK_KILLS: u64 = 150;

/// More steps than any operation takes.
const STEPS_LIMIT: u64 = 300_000;

/// What is done to a mailbox whose UIDs up to 5 are stable and 6 to 9 pending.
type Operation = (&'static str, fn(&mut World, &Mailbox));

const OPERATIONS: [Operation; 10] = [
    ("attach another mailbox", |world, _| {
        world.attach(2);
    }),
    ("rename", |world, _| {
        let mut store = crate::world::NoStore;
        let (guid, name) = (crate::world::guid(1), [b'n'; 300]);
        let uidvalidity = crate::world::UIDVALIDITY;
        world
            .table
            .attach(&guid, uidvalidity, &name, 9, &mut store)
            .unwrap();
    }),
    ("commit", |world, mailbox| world.commit(mailbox, 1, 3)),
    ("advance", |world, mailbox| {
        mailbox.advance(8, &mut world.store).unwrap();
    }),
    ("remove", |_, mailbox| {
        mailbox.pending_remove(7).unwrap();
    }),
    ("wait", |_, mailbox| {
        let first = mailbox.wait_begin(9).unwrap();
        mailbox.wait_begin(9).unwrap();
        mailbox.wait_end(first, true).unwrap();
    }),
    ("promise and room", |_, mailbox| {
        mailbox.promise(9).unwrap();
        mailbox.set_limits(20, 40).unwrap();
    }),
    ("grow", |world, mailbox| world.commit(mailbox, 1, 1)),
    ("take numbers", |world, _| {
        world.take(3);
    }),
    ("wake an event loop", |world, mailbox| {
        let _waiter = Waiter::open(&world.table).unwrap();
        mailbox.advance(9, &mut world.store).unwrap();
    }),
];

/// A folder with the mailbox that operations are made on; for "grow" with so many more messages
/// that the next one needs a larger file.
fn prepared(operation: Operation) -> tempfile::TempDir {
    let (dir, mut world, mailbox) = with_mailbox();
    // All but one of a block.
    world.take(63);
    if operation.0 == "grow" {
        (1..commits_until_growth()).for_each(|_| world.commit(&mailbox, 1, 1));
    }
    dir
}

fn with_mailbox() -> (tempfile::TempDir, World, Mailbox) {
    let dir = tempfile::tempdir().unwrap();
    let mut world = World::open(dir.path());
    let mailbox = world.attach(1);
    world.commit(&mailbox, 1, 9);
    mailbox.advance(5, &mut world.store).unwrap();
    (dir, world, mailbox)
}

/// The number of the commit that makes the file grow.
fn commits_until_growth() -> u32 {
    let (_dir, world, mailbox) = with_mailbox();
    let size = world.table.counts().size;
    let grows = |_: &u32| {
        world.commit(&mailbox, 1, 1);
        world.table.counts().size > size
    };
    (1..10_000).find(grows).unwrap()
}

/// A process that stops, and then makes the operation.
fn traced(dir: &Path, operation: Operation) -> Child {
    let dir = dir.to_owned();
    let child = Child::fork(move || {
        let mut world = World::open(&dir);
        let mailbox = world.attach(1);
        // SAFETY: asks to be traced by the parent, and stops for it.
        unsafe {
            libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0);
            libc::raise(libc::SIGSTOP);
        }
        operation.1(&mut world, &mailbox);
        0
    });
    assert!(child.stopped(), "the child does not stop");
    child
}

/// Lets the child make one step; `false` when it has ended.
fn step(child: &Child) -> bool {
    // SAFETY: our own child, which is stopped.
    let result = unsafe { libc::ptrace(libc::PTRACE_SINGLESTEP, child.pid(), 0, 0) };
    assert_eq!(result, 0, "ptrace: {}", std::io::Error::last_os_error());
    child.stopped()
}

/// How many instructions an operation takes.
fn count_steps(operation: Operation) -> u64 {
    let dir = prepared(operation);
    let child = traced(dir.path(), operation);
    let steps = (0..STEPS_LIMIT).take_while(|_| step(&child)).count() as u64;
    assert!(steps < STEPS_LIMIT, "{} has no end", operation.0);
    assert_eq!(child.wait(), End::Code(0), "{}", operation.0);
    check(dir.path(), operation.0, steps);
    steps
}

/// Nothing is lost, whatever the last instruction was.
fn check(dir: &Path, operation: &str, steps: u64) {
    let mut world = World::open(dir);
    let mailbox = world.attach(1);
    let watermark = mailbox.watermark();
    assert!(
        watermark >= 5,
        "{operation}, step {steps}: the watermark went down"
    );
    assert!(
        watermark <= world.store.watermark(1),
        "{operation}, step {steps}: not durable"
    );
    let pending = crate::kills::all_pending(&mailbox);
    let expected: Vec<u32> = (watermark + 1..=world.last_uid(1)).collect();
    let removed: Vec<u32> = expected.iter().copied().filter(|uid| *uid != 7).collect();
    assert!(
        pending == expected || operation == "remove" && pending == removed,
        "{operation}, step {steps}: {pending:?}"
    );
    world.attach(2);
    world.commit(&mailbox, 1, 2);
    world.take(70);
    mailbox
        .advance(world.last_uid(1), &mut world.store)
        .unwrap();
    // What killed processes announced is forgotten.
    assert_eq!(mailbox.info().unwrap().waiters, 0);
    let audit = world.table.audit().unwrap();
    assert_eq!(audit, Audit::default(), "{operation}, step {steps}");
    crate::kills::check_numbers_of(dir, 1);
}

#[test]
fn a_table_is_whole_whatever_the_instruction_a_process_was_killed_at() {
    let mut random = Random::new(u64::from(std::process::id()));
    let kills = match std::env::var_os("IMAP_XID_SOAK") {
        Some(_) => SOAK_KILLS,
        None => KILLS,
    };
    let mut repairs = 0;
    for operation in OPERATIONS {
        let steps = count_steps(operation);
        for kill in 0..kills {
            let at = (kill * steps + random.below(steps)) / kills;
            let dir = prepared(operation);
            let child = traced(dir.path(), operation);
            let made = (0..at).take_while(|_| step(&child)).count() as u64;
            child.kill();
            assert!(matches!(
                child.wait(),
                End::Signal(libc::SIGKILL) | End::Code(0)
            ));
            check(dir.path(), operation.0, made);
            repairs += World::open(dir.path()).table.counts().repairs;
        }
        println!("{}: {steps} instructions, {kills} kills", operation.0);
    }
    println!("{repairs} kills within the lock");
    assert!(repairs > 0);
}
