//! Sockets that keep messages apart: the daemon's event socket is one.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

/// A socket that is connected to nothing.
pub fn socket() -> OwnedFd {
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
    // SAFETY: socket has no preconditions, and its descriptor is ours.
    unsafe { OwnedFd::from_raw_fd(libc::socket(libc::AF_UNIX, kind, 0)) }
}

/// A path as the kernel takes it.
pub fn address(path: &Path) -> libc::sockaddr_un {
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

/// A connection on which nothing is waited for longer than that.
pub fn open(path: &Path, limit: Duration) -> io::Result<OwnedFd> {
    let (fd, address) = (socket(), address(path));
    let limit = libc::timeval {
        tv_sec: limit.as_secs() as libc::time_t,
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

/// Whether the message went.
pub fn send(fd: &OwnedFd, message: &[u8]) -> bool {
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

/// The next message; `None`: the other side closed, or said nothing for too long.
pub fn receive(fd: &OwnedFd) -> Option<String> {
    let mut buffer = vec![0_u8; 65_536];
    // SAFETY: the buffer is as long as is said.
    let length = unsafe { libc::recv(fd.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0) };
    let length = usize::try_from(length).ok().filter(|length| *length > 0)?;
    Some(String::from_utf8_lossy(&buffer[..length]).into_owned())
}
