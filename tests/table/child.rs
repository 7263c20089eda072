//! Forked children that end without running anything of the test harness.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

/// How long a child may take for what takes milliseconds.
pub const LIMIT: Duration = Duration::from_secs(120);

/// A forked process; killed when dropped.
pub struct Child {
    pid: libc::pid_t,
    gone: bool,
}

/// How a child ended.
#[derive(Debug, PartialEq, Eq)]
pub enum End {
    Code(i32),
    Signal(i32),
}

impl Child {
    /// Runs `work` in a forked process, which exits with its result.
    pub fn fork(work: impl FnOnce() -> i32) -> Child {
        // SAFETY: the child runs only `work`, which uses no lock of this process, and exits.
        match unsafe { libc::fork() } {
            -1 => panic!("fork: {}", std::io::Error::last_os_error()),
            0 => {
                let code = catch_unwind(AssertUnwindSafe(work)).unwrap_or(101);
                // SAFETY: ends the child, without destructors.
                unsafe { libc::_exit(code) }
            }
            pid => Child { pid, gone: false },
        }
    }

    pub fn pid(&self) -> libc::pid_t {
        self.pid
    }

    /// Waits until a traced child stops; `false` when it ended instead (and can be waited for).
    pub fn stopped(&self) -> bool {
        // SAFETY: our own child, room for what happened; its end is left to `wait`.
        unsafe {
            let mut info = std::mem::zeroed::<libc::siginfo_t>();
            let flags = libc::WEXITED | libc::WSTOPPED | libc::WNOWAIT;
            let result = libc::waitid(libc::P_PID, self.pid as u32, &mut info, flags);
            result == 0 && matches!(info.si_code, libc::CLD_STOPPED | libc::CLD_TRAPPED)
        }
    }

    pub fn kill(&self) {
        // SAFETY: a child of ours that was not waited for, so the id is still its.
        unsafe { libc::kill(self.pid, libc::SIGKILL) };
    }

    /// The child's end, if it came.
    pub fn end(&mut self) -> Option<End> {
        let mut status = 0;
        // SAFETY: our own child, room for its status.
        let pid = unsafe { libc::waitpid(self.pid, &mut status, libc::WNOHANG) };
        if pid != self.pid {
            return None;
        }
        self.gone = true;
        Some(match libc::WIFEXITED(status) {
            true => End::Code(libc::WEXITSTATUS(status)),
            false => End::Signal(libc::WTERMSIG(status)),
        })
    }

    /// Waits for the end.
    pub fn wait(mut self) -> End {
        let start = Instant::now();
        loop {
            if let Some(end) = self.end() {
                return end;
            }
            assert!(start.elapsed() < LIMIT, "process {} does not end", self.pid);
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if !self.gone {
            self.kill();
            let mut status = 0;
            // SAFETY: as in `end`.
            unsafe { libc::waitpid(self.pid, &mut status, 0) };
        }
    }
}

/// Numbers that look random, the same for the same seed.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % end
    }
}
