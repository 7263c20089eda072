//! A slow link between the nodes of a lab: a switch in user space, since Debian's kernels for
//! virtual machines often come without `tc netem`.
//!
//! Each node's eth0 is a TAP device whose frames a thread reads, keeps for a while, and writes to
//! the device of the node they are for.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// From linux/if_tun.h, which the libc crate has only in part.
const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
const IFF_TAP: libc::c_short = 0x0002;
const IFF_NO_PI: libc::c_short = 0x1000;
/// More than an Ethernet frame has.
const FRAME: usize = 2048;
/// Frames under way at once; what comes on top is lost, as on any link.
const QUEUE: usize = 100_000;
/// How long the switch sleeps at most, so that it sees when it has to stop.
const LOOK_UP: Duration = Duration::from_millis(50);

/// What can be changed while the link is up.
struct Pace {
    /// Microseconds that every frame takes.
    delay: AtomicU64,
    /// Up to so many microseconds more, by chance: frames overtake each other.
    jitter: AtomicU64,
    stop: AtomicBool,
}

/// A running switch. Stops when dropped.
pub(super) struct SlowLink {
    pace: Arc<Pace>,
    thread: Option<JoinHandle<()>>,
}

impl SlowLink {
    /// Joins the nodes' devices, which are in the order of the nodes.
    pub fn between(devices: Vec<File>) -> SlowLink {
        let pace = Arc::new(Pace {
            delay: AtomicU64::new(0),
            jitter: AtomicU64::new(0),
            stop: AtomicBool::new(false),
        });
        let theirs = Arc::clone(&pace);
        let thread = std::thread::spawn(move || Switch::new(devices, theirs).run());
        SlowLink {
            pace,
            thread: Some(thread),
        }
    }

    /// From now on a frame takes `delay`, and by chance up to `jitter` more.
    pub fn set(&self, delay: Duration, jitter: Duration) {
        let micros = |d: Duration| u64::try_from(d.as_micros()).unwrap_or(u64::MAX);
        self.pace.delay.store(micros(delay), Ordering::Relaxed);
        self.pace.jitter.store(micros(jitter), Ordering::Relaxed);
    }
}

impl Drop for SlowLink {
    fn drop(&mut self) {
        self.pace.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The MAC address of a node: the switch finds the node by its last byte.
pub(super) fn mac(lab: u8, node: usize) -> String {
    format!("02:00:00:00:{lab:02x}:{node:02x}")
}

/// Makes the TAP device `name` in the calling thread's network namespace.
pub(super) fn open_tap(name: &str) -> io::Result<File> {
    let file = File::options()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/net/tun")?;
    // SAFETY: ifreq is plain data, for which all zeroes is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = IFF_TAP | IFF_NO_PI;
    // SAFETY: the request is alive during the call, and ends its name with a zero.
    match unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, &request) } {
        0 => Ok(file),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A frame under way: when it is due, a number that keeps equal ones in order, whose device, what.
type Due = Reverse<(Instant, u64, usize, Vec<u8>)>;

struct Switch {
    devices: Vec<File>,
    pace: Arc<Pace>,
    under_way: BinaryHeap<Due>,
    number: u64,
    chance: super::Random,
}

impl Switch {
    fn new(devices: Vec<File>, pace: Arc<Pace>) -> Switch {
        Switch {
            devices,
            pace,
            under_way: BinaryHeap::new(),
            number: 0,
            chance: super::Random::new(1),
        }
    }

    fn run(mut self) {
        while !self.pace.stop.load(Ordering::Relaxed) {
            self.sleep();
            for from in 0..self.devices.len() {
                self.take_in(from);
            }
            self.give_out();
        }
    }

    /// Until a frame comes in or is due.
    fn sleep(&self) {
        let next = self.under_way.peek().map(|due| due.0.0);
        let left = next.map_or(LOOK_UP, |at| at.saturating_duration_since(Instant::now()));
        let left = left.min(LOOK_UP);
        let timeout = libc::timespec {
            tv_sec: 0,
            tv_nsec: libc::c_long::from(left.subsec_nanos()),
        };
        let mut entries: Vec<libc::pollfd> = self
            .devices
            .iter()
            .map(|device| libc::pollfd {
                fd: device.as_raw_fd(),
                events: libc::POLLIN,
                revents: 0,
            })
            .collect();
        let count = entries.len() as libc::nfds_t;
        // SAFETY: the entries and the time are alive during the call; no signal mask is given.
        unsafe {
            libc::ppoll(entries.as_mut_ptr(), count, &timeout, std::ptr::null());
        }
    }

    fn take_in(&mut self, from: usize) {
        let mut buffer = [0; FRAME];
        while let Ok(size) = (&self.devices[from]).read(&mut buffer) {
            for to in self.receivers(from, &buffer[..size]) {
                self.send(to, buffer[..size].to_vec());
            }
        }
    }

    /// One node, or all others for a broadcast.
    fn receivers(&self, from: usize, frame: &[u8]) -> Vec<usize> {
        let everybody = frame.first().is_none_or(|byte| byte & 1 == 1);
        let meant = usize::from(frame.get(5).copied().unwrap_or(0)).wrapping_sub(1);
        let others = (0..self.devices.len()).filter(|to| *to != from);
        others.filter(|to| everybody || *to == meant).collect()
    }

    fn send(&mut self, to: usize, frame: Vec<u8>) {
        if self.under_way.len() >= QUEUE {
            return;
        }
        let jitter = self.pace.jitter.load(Ordering::Relaxed);
        let extra = match jitter {
            0 => 0,
            most => self.chance.next() % most,
        };
        let micros = self.pace.delay.load(Ordering::Relaxed) + extra;
        let due = Instant::now() + Duration::from_micros(micros);
        self.number += 1;
        self.under_way.push(Reverse((due, self.number, to, frame)));
    }

    fn give_out(&mut self) {
        let now = Instant::now();
        while let Some(Reverse((due, ..))) = self.under_way.peek()
            && *due <= now
        {
            let Some(Reverse((_, _, to, frame))) = self.under_way.pop() else {
                return;
            };
            // A full device loses it, as a real one would.
            let _ = (&self.devices[to]).write(&frame);
        }
    }
}
