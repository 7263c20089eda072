//! What the UID-assignment table costs: the check that every command makes, and its operations
//! while eight processes contend for it. `cargo bench --bench table`.
//!
//! Each figure is printed as `name value unit`: the check, the contention, and how long it takes
//! until one process, and the last of a thousand, is awake after an advance. Criterion adds its own.

use std::fs;
use std::hint::black_box;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use criterion::Criterion;

use imap_xid::ffi::{
    imap_xid_box, imap_xid_box_attach, imap_xid_box_close, imap_xid_box_open,
    imap_xid_box_watermark, imap_xid_root, imap_xid_root_close, imap_xid_root_open,
    imap_xid_root_options, imap_xid_uidset_reach,
};
use imap_xid::registry::Registry;
use imap_xid::table::{Entry, Guid, Mailbox, Table, Waited, Waiter, Watermarks};

/// Processes that contend.
const PROCESSES: usize = 8;

/// Rounds of operations of each.
const ROUNDS: u32 = 20_000;

/// A new mailbox comes every so many rounds.
const ROUNDS_PER_MAILBOX: u32 = 20;

/// A registry that costs nothing: what is measured here is the table.
struct NoStore;

impl Watermarks for NoStore {
    fn begin(&mut self, _: &Guid, _: u32, uid: u32) -> Result<u32, String> {
        Ok(uid)
    }

    fn raise(&mut self, _: &[(Guid, u32, u32)]) -> Result<(), String> {
        Ok(())
    }
}

fn guid(process: usize, number: u32) -> Guid {
    let mut guid = [0; 16];
    guid[..8].copy_from_slice(&(process as u64).to_be_bytes());
    guid[8..12].copy_from_slice(&number.to_be_bytes());
    guid
}

fn entry(uid: u32) -> Entry<'static> {
    Entry {
        uid,
        namespace: b"foo",
        number: u64::from(uid),
        guid: b"0123456789abcdef0123456789abcdef",
    }
}

/// Nanoseconds of each operation of one process.
#[derive(Default)]
struct Times {
    attach: Vec<u32>,
    add: Vec<u32>,
    advance: Vec<u32>,
}

fn timed<T>(times: &mut Vec<u32>, work: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = work();
    times.push(u32::try_from(start.elapsed().as_nanos()).unwrap_or(u32::MAX));
    result
}

/// One process's work: slots allocated, pending entries added, watermarks advanced.
fn contend(dir: &Path, process: usize) -> Times {
    let table = Arc::new(Table::open(dir).expect("the table").0);
    let mut times = Times::default();
    let mut mailbox: Option<Mailbox> = None;
    for round in 0..ROUNDS {
        if round % ROUNDS_PER_MAILBOX == 0 {
            let guid = guid(process, round);
            let attached = timed(&mut times.attach, || {
                table.attach(&guid, 1, b"a mailbox", 0, &mut NoStore)
            });
            mailbox = Some(attached.expect("a slot").0);
        }
        let mailbox = mailbox.as_ref().expect("a mailbox");
        let uid = round % ROUNDS_PER_MAILBOX + 1;
        timed(&mut times.add, || mailbox.pending_add(&[entry(uid)])).expect("room");
        timed(&mut times.advance, || mailbox.advance(uid, &mut NoStore)).expect("an advance");
    }
    times
}

fn store_times(path: &Path, times: &Times) {
    for (name, times) in [
        ("attach", &times.attach),
        ("add", &times.add),
        ("advance", &times.advance),
    ] {
        let bytes: Vec<u8> = times.iter().flat_map(|ns| ns.to_ne_bytes()).collect();
        fs::write(path.with_extension(name), bytes).expect("write the times");
    }
}

/// Runs the work in several processes at once; gives all the times of one operation.
fn contention(dir: &Path, processes: usize) {
    let children: Vec<libc::pid_t> = (0..processes)
        .map(|process| {
            // SAFETY: this program has one thread; the child exits without destructors.
            match unsafe { libc::fork() } {
                0 => {
                    let times = contend(dir, process);
                    store_times(&dir.join(format!("times{process}")), &times);
                    // SAFETY: ends the child.
                    unsafe { libc::_exit(0) }
                }
                pid => pid,
            }
        })
        .collect();
    for pid in children {
        let mut status = 1;
        // SAFETY: our own child, room for its status.
        unsafe { libc::waitpid(pid, &mut status, 0) };
        assert_eq!(status, 0, "a process failed");
    }
}

fn times_of(dir: &Path, processes: usize, operation: &str) -> Vec<u32> {
    let mut all: Vec<u32> = (0..processes)
        .flat_map(|process| {
            let path = dir
                .join(format!("times{process}"))
                .with_extension(operation);
            fs::read(path).expect("the times")
        })
        .collect::<Vec<u8>>()
        .chunks_exact(4)
        .map(|bytes| u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
        .collect();
    all.sort_unstable();
    all
}

fn report_contention() {
    for processes in [1, PROCESSES] {
        let dir = tempfile::tempdir().expect("a folder");
        contention(dir.path(), processes);
        for operation in ["attach", "add", "advance"] {
            let times = times_of(dir.path(), processes, operation);
            let at = |share: f64| f64::from(times[(times.len() as f64 * share) as usize]) / 1e3;
            let name = format!("table-{operation}-{processes}p");
            println!("{name}-median {:.3} us", at(0.5));
            println!("{name}-p99 {:.3} us", at(0.99));
        }
    }
}

/// Processes that wait for one advance.
const WAITERS: usize = 1000;

/// Advances that one process waits for, one after another.
const WAKES: u32 = 300;

/// Longer than anything here takes.
const LIMIT: Duration = Duration::from_secs(60);

/// Nanoseconds of a clock that all processes share.
fn clock() -> u64 {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: room for the time.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Waits for a UID, asleep in the kernel or in an event loop, and gives the time it woke at.
fn wait_for(mailbox: &Mailbox, uid: u32, in_loop: bool) -> u64 {
    if !in_loop {
        let waited = mailbox.wait(uid, LIMIT).expect("a wait");
        assert_eq!(waited, Waited::Done);
        return clock();
    }
    let waiter = Waiter::open(mailbox.table()).expect("a FIFO");
    let id = mailbox.wait_begin(uid).expect("room");
    while mailbox.watermark() < uid {
        let fd = waiter.fd().as_raw_fd();
        let mut poll = libc::pollfd {
            fd,
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one valid entry.
        let ready = unsafe { libc::poll(&mut poll, 1, LIMIT.as_millis() as i32) };
        assert_eq!(ready, 1, "no byte came");
        waiter.drain();
    }
    let woken = clock();
    mailbox.wait_end(id, false).expect("its end");
    woken
}

/// Memory that forked processes share: when each woke, for each UID.
struct Woken {
    words: &'static [AtomicU64],
}

impl Woken {
    fn new(words: usize) -> Woken {
        let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: new memory, all zeroes, which is never unmapped.
        let words = unsafe {
            let at = libc::mmap(std::ptr::null_mut(), words * 8, protection, flags, -1, 0);
            assert_ne!(at, libc::MAP_FAILED);
            std::slice::from_raw_parts(at.cast::<AtomicU64>(), words)
        };
        Woken { words }
    }

    fn count(&self) -> usize {
        self.words
            .iter()
            .filter(|word| word.load(Relaxed) != 0)
            .count()
    }
}

/// Forks processes that wait for each of the UIDs up to `last_uid`, advances when all wait, and
/// gives the nanoseconds from each advance until each process was awake. A process that woke
/// goes to sleep at once: what it would do next is not the table's.
fn wakes(processes: usize, last_uid: u32, in_loop: bool) -> Vec<u64> {
    let dir = tempfile::tempdir().expect("a folder");
    let table = Arc::new(Table::open(dir.path()).expect("the table").0);
    let attached = table.attach(&guid(0, 0), 1, b"", 0, &mut NoStore);
    let mailbox = attached.expect("a slot").0;
    mailbox.filled(last_uid).expect("a UID");
    let woken = Woken::new(processes * last_uid as usize);
    let children: Vec<libc::pid_t> = (0..processes)
        // SAFETY: this program has one thread; the child exits without destructors.
        .map(|process| match unsafe { libc::fork() } {
            0 => {
                for uid in 1..=last_uid {
                    let word = (uid as usize - 1) * processes + process;
                    woken.words[word].store(wait_for(&mailbox, uid, in_loop), Relaxed);
                }
                // SAFETY: waits for the parent's SIGKILL.
                loop {
                    unsafe { libc::pause() };
                }
            }
            pid => pid,
        })
        .collect();
    let mut advanced = Vec::new();
    for uid in 1..=last_uid {
        while mailbox.info().expect("a mailbox").waiters < processes as u32 {
            std::thread::sleep(Duration::from_millis(if processes > 1 { 50 } else { 0 }));
        }
        // Announced is not asleep yet.
        std::thread::sleep(Duration::from_millis(if processes > 1 { 200 } else { 1 }));
        advanced.push(clock());
        mailbox.advance(uid, &mut NoStore).expect("an advance");
    }
    let start = Instant::now();
    while woken.count() < woken.words.len() {
        assert!(start.elapsed() < LIMIT, "a process did not wake");
        std::thread::sleep(Duration::from_millis(10));
    }
    for pid in children {
        // SAFETY: our own child, which nobody waited for yet.
        unsafe {
            libc::kill(pid, libc::SIGKILL);
            libc::waitpid(pid, std::ptr::null_mut(), 0);
        }
    }
    let mut times: Vec<u64> = woken
        .words
        .chunks_exact(processes)
        .zip(&advanced)
        .flat_map(|(row, advanced)| row.iter().map(move |word| word.load(Relaxed) - advanced))
        .collect();
    times.sort_unstable();
    times
}

fn report_wakes() {
    for (way, in_loop) in [("sleeper", false), ("event-loop", true)] {
        let one = wakes(1, WAKES, in_loop);
        let at = |times: &[u64], share: f64| times[(times.len() as f64 * share) as usize] as f64;
        println!("table-wake-{way}-median {:.1} us", at(&one, 0.5) / 1e3);
        println!("table-wake-{way}-p99 {:.1} us", at(&one, 0.99) / 1e3);
        let all = wakes(WAITERS, 1, in_loop);
        println!(
            "table-wake-{WAITERS}-{way}s-median {:.2} ms",
            at(&all, 0.5) / 1e6
        );
        println!(
            "table-wake-{WAITERS}-{way}s-last {:.2} ms",
            at(&all, 0.9999) / 1e6
        );
    }
}

/// A mailbox as C has it.
struct CBox {
    root: *mut imap_xid_root,
    mailbox: *mut imap_xid_box,
}

impl CBox {
    fn open(dir: &Path) -> CBox {
        let text = std::ffi::CString::new(dir.to_str().expect("UTF-8")).expect("no NUL");
        let options = imap_xid_root_options {
            dir: text.as_ptr(),
            ns: c"foo".as_ptr(),
            uid_source: 1,
            flags: 0,
            reserved: 0,
        };
        let (mut root, mut mailbox) = (std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: valid options and room for the handles, as the interface asks.
        unsafe {
            assert_eq!(imap_xid_root_open(&options, &mut root), 0);
            let guid = guid(0, 0);
            let name = c"INBOX".as_ptr();
            assert_eq!(
                imap_xid_box_open(root, guid.as_ptr(), name, 1, &mut mailbox),
                0
            );
            assert_eq!(imap_xid_box_attach(mailbox, 8), 0);
        }
        CBox { root, mailbox }
    }
}

impl Drop for CBox {
    fn drop(&mut self) {
        // SAFETY: opened above, not used again.
        unsafe {
            imap_xid_box_close(self.mailbox);
            imap_xid_root_close(self.root);
        }
    }
}

/// Prints the check as a figure: the median of batches.
fn report_check(c_box: &CBox) {
    const BATCHES: usize = 21;
    const CHECKS: u32 = 500_000;
    let mut batches: Vec<f64> = (0..BATCHES)
        .map(|_| {
            let start = Instant::now();
            for _ in 0..CHECKS {
                // SAFETY: a mailbox.
                black_box(unsafe { imap_xid_box_watermark(black_box(c_box.mailbox)) });
            }
            start.elapsed().as_nanos() as f64 / f64::from(CHECKS)
        })
        .collect();
    batches.sort_by(f64::total_cmp);
    println!("table-watermark-check {:.1} ns", batches[BATCHES / 2]);
}

fn checks(criterion: &mut Criterion) {
    let dir = tempfile::tempdir().expect("a folder");
    let c_box = CBox::open(dir.path());
    report_check(&c_box);
    criterion.bench_function("watermark check through the C interface", |bencher| {
        // SAFETY: a mailbox.
        bencher.iter(|| unsafe { imap_xid_box_watermark(black_box(c_box.mailbox)) });
    });
    let set = "1:8,3,17:*";
    criterion.bench_function("judging a set of UIDs", |bencher| {
        bencher.iter(|| {
            let mut uid = 0;
            // SAFETY: a text of that length, room for a UID.
            unsafe {
                let text = black_box(set).as_ptr().cast();
                imap_xid_uidset_reach(text, set.len(), 8, 11, &mut uid)
            }
        });
    });
    numbers(criterion);
    durable_advance(criterion);
}

fn numbers(criterion: &mut Criterion) {
    let dir = tempfile::tempdir().expect("a folder");
    let table = Table::open(dir.path()).expect("the table").0;
    let reserve = |from: u64, _| Ok::<_, String>(from..from + 4096);
    criterion.bench_function("one number", |bencher| {
        bencher.iter(|| table.take_numbers(0, 1, reserve));
    });
}

/// What an advance costs with a registry that makes it durable first.
fn durable_advance(criterion: &mut Criterion) {
    let dir = tempfile::tempdir_in(".").expect("a folder on disk");
    let registry = Registry::new(dir.path(), "foo").expect("the registry");
    let table = Arc::new(Table::open(dir.path()).expect("the table").0);
    let mut store = &registry;
    let attached = table.attach(&guid(0, 0), 1, b"", 0, &mut store);
    let mailbox = attached.expect("a slot").0;
    let mut uid = 0;
    criterion.bench_function("durable advance", |bencher| {
        bencher.iter(|| {
            uid += 1;
            mailbox.pending_add(&[entry(uid)]).expect("room");
            mailbox.advance(uid, &mut store).expect("an advance")
        });
    });
}

fn main() {
    // Before criterion, which has threads: the processes are forked.
    report_contention();
    report_wakes();
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .configure_from_args();
    checks(&mut criterion);
    criterion.final_summary();
}
