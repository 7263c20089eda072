//! A process that talks to the event socket, as the plug-in does.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

use crate::harness::LIMIT;
use crate::harness::seqpacket::{address, open, receive, send, socket};

/// A connection.
pub struct Peer(OwnedFd);

impl Peer {
    /// As whoever runs the test.
    pub fn connect(path: &Path) -> Peer {
        Peer(open(path, LIMIT).expect("a connection"))
    }

    pub fn send(&self, message: &[u8]) {
        assert!(send(&self.0, message), "{}", io::Error::last_os_error());
    }

    /// The next message; `None`: the daemon closed, or said nothing for too long.
    pub fn receive(&self) -> Option<String> {
        receive(&self.0)
    }
}

/// Asks as another uid, and gives the answer; empty: none.
pub fn ask_as(uid: u32, path: &Path, question: &str) -> String {
    let mut ends = [0; 2];
    // SAFETY: two descriptors are written.
    assert_eq!(unsafe { libc::pipe(ends.as_mut_ptr()) }, 0, "a pipe");
    // SAFETY: both are new and nobody else's.
    let [from, to] = ends.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
    // SAFETY: the child makes system calls and leaves by _exit.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        let answer = as_uid(uid, path, question).unwrap_or_default();
        // SAFETY: the answer is as long as is said; _exit does not return.
        unsafe {
            libc::write(to.as_raw_fd(), answer.as_ptr().cast(), answer.len());
            libc::_exit(0);
        }
    }
    assert!(pid > 0, "fork");
    drop(to);
    let mut answer = String::new();
    io::Read::read_to_string(&mut std::fs::File::from(from), &mut answer).expect("text");
    // SAFETY: pid is our child.
    unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) };
    answer
}

fn as_uid(uid: u32, path: &Path, question: &str) -> Option<String> {
    // SAFETY: plain system calls.
    let dropped = unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        libc::setgid(uid) == 0 && libc::setuid(uid) == 0
    };
    let fd = dropped.then(|| open(path, LIMIT).ok())??;
    send(&fd, question.as_bytes()).then(|| receive(&fd))?
}

/// A listening socket, as the service manager makes it.
pub fn listen(path: &Path) -> OwnedFd {
    let (fd, address) = (socket(), address(path));
    let size = size_of::<libc::sockaddr_un>() as libc::socklen_t;
    // SAFETY: the address is initialised and as long as is said.
    let bound = unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), size) };
    assert_eq!(bound, 0, "{}", io::Error::last_os_error());
    // SAFETY: listen has no preconditions.
    assert_eq!(unsafe { libc::listen(fd.as_raw_fd(), 16) }, 0);
    fd
}
