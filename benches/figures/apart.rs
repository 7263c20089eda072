//! Keeps a client and the servers that it talks to on processors of their own.
//!
//! Where the kernel puts two processes that talk to each other makes them faster or slower by more
//! than what is measured, for as long as they live: on one processor they take turns, on two each
//! wakes the other. So every session of a figure of one client is put alike.

use crate::harness::Dovecot;

/// The calling thread on the first processor, servers on the last one, until dropped.
pub struct Apart {
    servers: Vec<libc::pid_t>,
}

impl Apart {
    /// Does nothing on a machine with one processor.
    pub fn new(servers: &[&Dovecot]) -> Apart {
        let masters = servers.iter().filter_map(|server| server.master_pid());
        // What a master starts from now on is where the master is.
        let apart = Apart {
            servers: masters.map(|pid| pid as libc::pid_t).collect(),
        };
        let last = processors() - 1;
        apart.servers.iter().for_each(|&pid| put(pid, last..=last));
        put(0, 0..=0);
        apart
    }
}

impl Drop for Apart {
    fn drop(&mut self) {
        let all = 0..=processors() - 1;
        self.servers.iter().for_each(|&pid| put(pid, all.clone()));
        put(0, all);
    }
}

fn processors() -> usize {
    // SAFETY: takes a name, gives a number.
    let online = unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) };
    usize::try_from(online).unwrap_or(1).max(1)
}

/// Lets a process (0: the calling thread) run on these processors alone.
fn put(pid: libc::pid_t, processors: std::ops::RangeInclusive<usize>) {
    // SAFETY: a set of bits, of which zeros are a valid value.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    for processor in processors {
        // SAFETY: below the number of processors, which the set has room for.
        unsafe { libc::CPU_SET(processor, &mut set) };
    }
    // SAFETY: the set outlives the call. A failure leaves the process where it was, which costs
    // precision alone.
    unsafe { libc::sched_setaffinity(pid, size_of::<libc::cpu_set_t>(), &raw const set) };
}
