//! Keeps the processors awake while something is measured.
//!
//! A processor of a virtual machine that has nothing to do is given back to the host, and takes up
//! to 100 us to come again: as long as some of the commands that are measured. Whether it gets that
//! far between two commands is chance.
//!
//! Not where something is saved: that waits for the disk, and where the disk is a file of another file
//! system, the kernel's threads between the two get their turn several times later.

use std::hint::spin_loop;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

/// A thread for each processor that runs only where nothing else does, until dropped.
pub struct Awake {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Awake {
    pub fn start() -> Awake {
        let stop = Arc::new(AtomicBool::new(false));
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = (0..processors)
            .map(|_| {
                let stop = Arc::clone(&stop);
                std::thread::spawn(move || idle(&stop))
            })
            .collect();
        Awake { stop, threads }
    }
}

fn idle(stop: &AtomicBool) {
    let nothing = libc::sched_param { sched_priority: 0 };
    // SAFETY: changes the calling thread alone; the parameters outlive the call.
    let changed = unsafe { libc::sched_setscheduler(0, libc::SCHED_IDLE, &raw const nothing) };
    // Otherwise it would take time from what is measured.
    if changed != 0 {
        return;
    }
    while !stop.load(Ordering::Relaxed) {
        spin_loop();
    }
}

impl Drop for Awake {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
