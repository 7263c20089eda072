//! A mutex between processes whose owner may die.
//!
//! That the owner died is not an error code that could be overlooked: [`RobustMutex::lock`]
//! returns an [`Orphan`], and the only way from there to the lock is [`Orphan::repaired`].
//! Dropping the orphan instead makes the mutex unusable for everyone, for ever, which is right
//! when the repair failed: the table is then replaced.

use std::cell::UnsafeCell;
use std::io;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::time::{Duration, Instant};

/// How often to try before sleeping. The table's critical sections take around 100 ns, two
/// switches of context some microseconds: it pays to look again for about as long as one lasts.
const SPINS: u32 = 60;

/// How long one sleep for the lock may be. Sleeps are against the wall clock, which may jump.
const SLICE: Duration = Duration::from_secs(1);

/// A process-shared, robust pthread mutex in mapped memory, a cache line long.
#[repr(C, align(64))]
pub struct RobustMutex(UnsafeCell<libc::pthread_mutex_t>);

const _: () = assert!(size_of::<RobustMutex>() == 64);

// SAFETY: a pthread mutex is made to be used from many threads.
unsafe impl Sync for RobustMutex {}

/// Why a lock was not had.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// The holder did not let go in time; it is stopped or hung, since a dead one lets go.
    #[error(
        "another process held the lock for {0:?}: see whether one that uses this mail is stopped"
    )]
    Timeout(Duration),
    /// An earlier repair failed.
    #[error("the table could not be repaired after a process died in it")]
    Unrecoverable,
    /// pthread said something else.
    #[error("the lock in the table does not work: {0}")]
    Pthread(io::Error),
}

/// What a lock attempt got.
pub enum Locked<'a> {
    /// The lock; what it guards is whole.
    Clean(Guard<'a>),
    /// The lock, from an owner that died; what it guards must be repaired first.
    OwnerDied(Orphan<'a>),
}

/// The held lock; dropping it lets go.
pub struct Guard<'a>(&'a RobustMutex, PhantomData<*mut ()>);

/// A lock whose owner died while it held it.
pub struct Orphan<'a>(Guard<'a>);

impl RobustMutex {
    /// Makes a mutex in place.
    ///
    /// # Safety
    /// `at` is valid for writes, 64-aligned, and nobody else sees it yet.
    pub unsafe fn init(at: *mut RobustMutex) -> io::Result<()> {
        let mut attr = MaybeUninit::<libc::pthread_mutexattr_t>::uninit();
        // SAFETY: `attr` is initialised by the first call and used only when that succeeded;
        // `at` is the caller's promise.
        unsafe {
            check(libc::pthread_mutexattr_init(attr.as_mut_ptr()))?;
            let attr = attr.as_mut_ptr();
            let result = check(libc::pthread_mutexattr_setpshared(
                attr,
                libc::PTHREAD_PROCESS_SHARED,
            ))
            .and_then(|()| {
                check(libc::pthread_mutexattr_setrobust(
                    attr,
                    libc::PTHREAD_MUTEX_ROBUST,
                ))
            })
            .and_then(|()| {
                check(libc::pthread_mutex_init(
                    UnsafeCell::raw_get(&raw const (*at).0),
                    attr,
                ))
            });
            libc::pthread_mutexattr_destroy(attr);
            result
        }
    }

    /// Locks, for at most `limit`.
    pub fn lock(&self, limit: Duration) -> Result<Locked<'_>, LockError> {
        for _ in 0..SPINS {
            // SAFETY: the mutex was initialised before the table was published.
            match unsafe { libc::pthread_mutex_trylock(self.0.get()) } {
                libc::EBUSY => std::hint::spin_loop(),
                code => return self.locked(code),
            }
        }
        let start = Instant::now();
        loop {
            let until = wall_clock_in(SLICE.min(limit));
            // SAFETY: as above; `until` outlives the call.
            match unsafe { libc::pthread_mutex_timedlock(self.0.get(), &until) } {
                libc::ETIMEDOUT if start.elapsed() >= limit => {
                    return Err(LockError::Timeout(limit));
                }
                libc::ETIMEDOUT => {}
                code => return self.locked(code),
            }
        }
    }

    fn locked(&self, code: i32) -> Result<Locked<'_>, LockError> {
        match code {
            0 => Ok(Locked::Clean(Guard(self, PhantomData))),
            libc::EOWNERDEAD => Ok(Locked::OwnerDied(Orphan(Guard(self, PhantomData)))),
            libc::ENOTRECOVERABLE => Err(LockError::Unrecoverable),
            code => Err(LockError::Pthread(io::Error::from_raw_os_error(code))),
        }
    }
}

impl<'a> Orphan<'a> {
    /// Declares that what the lock guards is whole again.
    pub fn repaired(self) -> Result<Guard<'a>, LockError> {
        // SAFETY: this thread holds the mutex and got EOWNERDEAD for it.
        check(unsafe { libc::pthread_mutex_consistent(self.0.0.0.get()) })
            .map_err(LockError::Pthread)?;
        Ok(self.0)
    }
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        // SAFETY: a guard exists only in the thread that holds the mutex (it is not Send, see
        // below), and only once.
        unsafe { libc::pthread_mutex_unlock(self.0.0.get()) };
    }
}

fn check(code: i32) -> io::Result<()> {
    match code {
        0 => Ok(()),
        code => Err(io::Error::from_raw_os_error(code)),
    }
}

/// The wall clock's time after `wait`.
fn wall_clock_in(wait: Duration) -> libc::timespec {
    let at = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default()
        + wait;
    libc::timespec {
        tv_sec: libc::time_t::try_from(at.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_nsec: libc::c_long::from(at.subsec_nanos() as i32),
    }
}
