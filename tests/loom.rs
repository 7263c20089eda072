//! Every interleaving of the table's words that need no lock, under loom.
//!
//! The file under test is the one that the table uses, compiled here a second time with loom's
//! atomics in the place of the machine's. Each test has a sibling at the end that breaks a rule
//! and shows that loom finds it: a check that cannot fail proves nothing.

#![allow(dead_code)]

mod atomic {
    pub use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
}

#[path = "../src/table/words.rs"]
mod words;

use std::panic::{AssertUnwindSafe, catch_unwind};

use loom::sync::Arc;
use loom::thread;

use words::{Fifos, Mark, Numbers};

/// How many times a thread may be pushed aside: enough for three threads of a few steps each.
const PREEMPTIONS: usize = 3;

fn explore(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(PREEMPTIONS);
    builder.check(model);
}

/// Whether loom finds an execution in which the model's assertions fail.
fn is_refuted(model: impl Fn() + Sync + Send + 'static) -> bool {
    catch_unwind(AssertUnwindSafe(|| explore(model))).is_err()
}

/// A registry that never reserves a number twice; between our blocks lie those of other tables.
struct Registry {
    next: loom::sync::Mutex<u64>,
}

impl Registry {
    fn new() -> Registry {
        Registry {
            next: loom::sync::Mutex::new(11),
        }
    }

    /// What the table does at a block's end, under the reservation lock: `begin` publishes.
    fn take(&self, numbers: &Numbers, count: u32, begin: impl Fn(&Numbers, u64, u64)) -> u64 {
        if let Some(first) = numbers.try_take(0, count) {
            return first;
        }
        let mut next = self.next.lock().unwrap();
        if let Some(first) = numbers.try_take(0, count) {
            return first;
        }
        let start = (*next).max(numbers.lowest_new());
        let end = start + 2;
        // The next two numbers are another table's.
        *next = end + 2;
        begin(numbers, start + u64::from(count), end);
        start
    }
}

fn is_ours(number: u64) -> bool {
    (number - 11) % 4 < 2
}

fn two_takers(begin: impl Fn(&Numbers, u64, u64) + Copy + Sync + Send + 'static) {
    let shared = Arc::new((Numbers::default(), Registry::new()));
    let other = Arc::clone(&shared);
    let taker = thread::spawn(move || {
        [
            other.1.take(&other.0, 1, begin),
            other.1.take(&other.0, 1, begin),
        ]
    });
    let mine = [
        shared.1.take(&shared.0, 1, begin),
        shared.1.take(&shared.0, 1, begin),
    ];
    let theirs = taker.join().unwrap();
    assert!(
        mine[0] < mine[1] && theirs[0] < theirs[1],
        "numbers rise: {mine:?} {theirs:?}"
    );
    for number in mine {
        assert!(!theirs.contains(&number), "{number} was given twice");
    }
    for number in mine.into_iter().chain(theirs) {
        assert!(is_ours(number), "{number} is another table's");
    }
}

#[test]
fn a_number_is_given_once_and_never_one_that_lies_between_two_blocks() {
    explore(|| two_takers(Numbers::begin_block));
}

#[test]
fn without_the_order_of_a_blocks_two_stores_a_foreign_number_is_given() {
    // The end first: as if the two stores of begin_block were swapped.
    assert!(is_refuted(|| {
        two_takers(|numbers, first, end| {
            numbers.begin_block(0, end);
            numbers.begin_block(first, end);
        });
    }));
}

/// One waits for UID 1, one advances; `sleeps` says whether the kernel would let it sleep.
fn waiter_and_advancer(waiter: impl Fn(&Mark) -> Option<u32> + Sync + Send + Copy + 'static) {
    let mark = Arc::new(Mark::default());
    let other = Arc::clone(&mark);
    let advancer = thread::spawn(move || {
        other.set_watermark(1);
        other.changed()
    });
    let ticket = waiter(&mark);
    let woken = advancer.join().unwrap();
    // The kernel lets a waiter sleep only while the word is its ticket. The advancer bumped it
    // exactly once, so a waiter with ticket 0 that is asleep by then needs the wake.
    if let Some(ticket) = ticket {
        let fell_asleep_before_the_bump = ticket == 0;
        assert!(!fell_asleep_before_the_bump || woken, "asleep for ever");
    }
}

#[test]
fn a_waiter_never_sleeps_through_the_advance_it_waits_for() {
    explore(|| {
        waiter_and_advancer(|mark| {
            mark.enter();
            let ticket = mark.ticket();
            (mark.watermark() < 1).then_some(ticket)
        });
    });
}

#[test]
fn a_waiter_that_does_not_count_itself_in_first_sleeps_for_ever() {
    assert!(is_refuted(|| {
        waiter_and_advancer(|mark| {
            let ticket = mark.ticket();
            let sleeps = (mark.watermark() < 1).then_some(ticket);
            mark.enter();
            sleeps
        });
    }));
}

/// What the folder of FIFOs shows: how many living ones are in it.
struct Shared {
    mark: Mark,
    fifos: Fifos,
    folder: loom::sync::Mutex<u32>,
    rung: loom::sync::atomic::AtomicU32,
}

impl Shared {
    fn new() -> Arc<Shared> {
        Arc::new(Shared {
            mark: Mark::default(),
            fifos: Fifos::default(),
            folder: loom::sync::Mutex::new(0),
            rung: loom::sync::atomic::AtomicU32::new(0),
        })
    }

    fn advance(&self, uid: u32) {
        self.mark.set_watermark(uid);
        self.mark.changed();
        let Some(before) = self.fifos.to_look() else {
            return;
        };
        let living = *self.folder.lock().unwrap();
        self.rung
            .fetch_add(living, loom::sync::atomic::Ordering::SeqCst);
        if living == 0 {
            self.fifos.found_nobody(before);
        }
    }
}

/// One opens a FIFO and looks at the watermark, another advances; `arrive` says in which order.
fn loop_and_advancer(arrive: impl Fn(&Shared) -> bool + Sync + Send + Copy + 'static) {
    let shared = Shared::new();
    // Somebody was here before and left, and the look that found nobody was made.
    shared.fifos.arrived();
    let other = Arc::clone(&shared);
    let advancer = thread::spawn(move || other.advance(1));
    let third = Arc::clone(&shared);
    let earlier = thread::spawn(move || {
        // An older advance whose look through the folder is late.
        if let Some(before) = third.fifos.to_look()
            && *third.folder.lock().unwrap() == 0
        {
            third.fifos.found_nobody(before);
        }
    });
    let sees = arrive(&shared);
    advancer.join().unwrap();
    earlier.join().unwrap();
    let rung = shared.rung.load(loom::sync::atomic::Ordering::SeqCst);
    assert!(sees || rung > 0, "nobody wakes the event loop");
}

#[test]
fn an_event_loop_that_came_is_rung_or_saw_the_watermark() {
    explore(|| {
        loop_and_advancer(|shared| {
            *shared.folder.lock().unwrap() += 1;
            shared.fifos.arrived();
            shared.mark.watermark() >= 1
        });
    });
}

#[test]
fn an_event_loop_that_looks_before_it_arrives_is_forgotten() {
    assert!(is_refuted(|| {
        loop_and_advancer(|shared| {
            let sees = shared.mark.watermark() >= 1;
            *shared.folder.lock().unwrap() += 1;
            shared.fifos.arrived();
            sees
        });
    }));
}

#[test]
fn an_event_loop_that_arrives_before_its_fifo_is_there_is_forgotten() {
    assert!(is_refuted(|| {
        loop_and_advancer(|shared| {
            shared.fifos.arrived();
            let sees = shared.mark.watermark() >= 1;
            *shared.folder.lock().unwrap() += 1;
            sees
        });
    }));
}
