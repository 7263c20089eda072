//! A process that talks to the event socket, as the plug-in does.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::harness::LIMIT;

/// A connection.
pub struct Peer(OwnedFd);

impl Peer {
    /// As whoever runs the test.
    pub fn connect(path: &Path) -> Peer {
        Peer(open(path).expect("a connection"))
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
    let fd = dropped.then(|| open(path).ok())??;
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

fn socket() -> OwnedFd {
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
    // SAFETY: socket has no preconditions, and its descriptor is ours.
    unsafe { OwnedFd::from_raw_fd(libc::socket(libc::AF_UNIX, kind, 0)) }
}

fn address(path: &Path) -> libc::sockaddr_un {
    let mut address = libc::sockaddr_un {
        sun_family: libc::AF_UNIX as libc::sa_family_t,
        sun_path: [0; 108],
    };
    let bytes = path.as_os_str().as_bytes();
    assert!(bytes.len() < address.sun_path.len(), "{path:?} is too long");
    for (place, byte) in address.sun_path.iter_mut().zip(bytes) {
        *place = *byte as libc::c_char;
    }
    address
}

fn open(path: &Path) -> io::Result<OwnedFd> {
    let (fd, address) = (socket(), address(path));
    let limit = libc::timeval {
        tv_sec: LIMIT.as_secs() as libc::time_t,
        tv_usec: 0,
    };
    let size = size_of::<libc::sockaddr_un>() as libc::socklen_t;
    // SAFETY: address and limit are ours and as long as is said.
    let connected = unsafe {
        let (name, length) = (libc::SO_RCVTIMEO, size_of::<libc::timeval>() as u32);
        let value = (&raw const limit).cast();
        libc::setsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, name, value, length);
        libc::connect(fd.as_raw_fd(), (&raw const address).cast(), size)
    };
    match connected {
        0 => Ok(fd),
        _ => Err(io::Error::last_os_error()),
    }
}

fn send(fd: &OwnedFd, message: &[u8]) -> bool {
    let flags = libc::MSG_NOSIGNAL;
    // SAFETY: the message is as long as is said.
    unsafe {
        libc::send(
            fd.as_raw_fd(),
            message.as_ptr().cast(),
            message.len(),
            flags,
        ) >= 0
    }
}

fn receive(fd: &OwnedFd) -> Option<String> {
    let mut buffer = vec![0_u8; 65_536];
    // SAFETY: the buffer is as long as is said.
    let length = unsafe { libc::recv(fd.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0) };
    let length = usize::try_from(length).ok().filter(|length| *length > 0)?;
    Some(String::from_utf8_lossy(&buffer[..length]).into_owned())
}
