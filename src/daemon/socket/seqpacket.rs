//! Unix sockets that keep messages apart, which neither the standard library nor tokio has.

use std::cell::RefCell;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use tokio::io::unix::AsyncFd;

use super::{Error, MESSAGE_BYTES};

/// Connections that wait in the kernel; what comes beyond gets EAGAIN and tries again.
const BACKLOG: libc::c_int = 1024;
/// Every mail process may connect; who it is decides what it may say.
const MODE: libc::mode_t = 0o666;

thread_local! {
    /// Where messages are received: one for all connections, since there may be thousands.
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; MESSAGE_BYTES]);
}

/// A listening socket.
pub(super) struct Listener {
    fd: AsyncFd<OwnedFd>,
    /// Device and inode of the name under which it was bound.
    name: Option<(u64, u64)>,
}

/// A connection, with who is at its other end.
pub(super) struct Connection {
    fd: AsyncFd<OwnedFd>,
    peer: libc::ucred,
}

/// What came.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Received {
    /// A message.
    Message(Vec<u8>),
    /// One that is longer than any may be; it is lost.
    TooLong,
    /// The peer closed.
    End,
}

impl Listener {
    /// Binds it at a path, in place of one that nobody serves any more.
    pub fn bind(path: &Path) -> Result<Listener, Error> {
        let fail = |source| Error::Io {
            path: path.to_owned(),
            source,
        };
        let address = address(path).map_err(fail)?;
        clear(path, &address)?;
        let fd = new_socket().map_err(fail)?;
        // SAFETY: the address is initialised and lives through the call.
        let bound = unsafe { libc::bind(fd.as_raw_fd(), as_sockaddr(&address), address_size()) };
        check(bound).map_err(fail)?;
        open_to_all(path).map_err(fail)?;
        // SAFETY: listen has no preconditions.
        check(unsafe { libc::listen(fd.as_raw_fd(), BACKLOG) }).map_err(fail)?;
        Ok(Listener {
            fd: watched(fd).map_err(fail)?,
            name: identity(path),
        })
    }

    /// Takes over a listening socket of the right kind.
    pub fn inherit(fd: OwnedFd) -> io::Result<Listener> {
        let kind = option(fd.as_raw_fd(), libc::SO_TYPE)?;
        let listens = option(fd.as_raw_fd(), libc::SO_ACCEPTCONN)?;
        if kind != libc::SOCK_SEQPACKET || listens == 0 {
            let why = "what the service manager passed is no listening SOCK_SEQPACKET socket";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        // SAFETY: fcntl with these arguments has no preconditions.
        check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) })?;
        let fd = watched(fd)?;
        Ok(Listener { fd, name: None })
    }

    /// Whether this path leads here.
    pub fn is_at(&self, path: &Path) -> bool {
        self.name.is_some() && identity(path) == self.name
    }

    pub async fn accept(&self) -> io::Result<Connection> {
        loop {
            let mut ready = self.fd.readable().await?;
            match ready.try_io(|fd| accept(fd.get_ref())) {
                Ok(Ok(fd)) => {
                    let peer = credentials(&fd)?;
                    let fd = watched(fd)?;
                    return Ok(Connection { fd, peer });
                }
                // Gone again before we looked.
                Ok(Err(error)) if error.raw_os_error() == Some(libc::ECONNABORTED) => {}
                Ok(Err(error)) => return Err(error),
                Err(_would_block) => {}
            }
        }
    }
}

impl Connection {
    /// The peer's uid when it connected.
    pub fn uid(&self) -> u32 {
        self.peer.uid
    }

    /// Its process, for logs.
    pub fn pid(&self) -> i32 {
        self.peer.pid
    }

    pub async fn receive(&self) -> io::Result<Received> {
        loop {
            let mut ready = self.fd.readable().await?;
            if let Ok(received) = ready.try_io(|fd| receive(fd.get_ref())) {
                return received;
            }
        }
    }

    pub async fn send(&self, message: &[u8]) -> io::Result<()> {
        loop {
            let mut ready = self.fd.writable().await?;
            if let Ok(sent) = ready.try_io(|fd| send(fd.get_ref(), message)) {
                return sent;
            }
        }
    }
}

/// How many descriptors this process may have.
pub(super) fn descriptors() -> usize {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the structure is ours and of the right type.
    match unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } {
        0 => usize::try_from(limit.rlim_cur).unwrap_or(usize::MAX),
        // What every system grants.
        _ => 256,
    }
}

/// Removes a socket that nobody serves.
fn clear(path: &Path, address: &libc::sockaddr_un) -> Result<(), Error> {
    let fail = |source| Error::Io {
        path: path.to_owned(),
        source,
    };
    let kind = match path.symlink_metadata() {
        Ok(meta) => meta.file_type(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(fail(source)),
    };
    if !kind.is_socket() {
        return Err(Error::NoSocket {
            path: path.to_owned(),
        });
    }
    if is_served(address).map_err(fail)? {
        return Err(Error::InUse {
            path: path.to_owned(),
        });
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(fail(error)),
        _ => Ok(()),
    }
}

/// Whether a process listens there. Only a refused connection means that none does.
fn is_served(address: &libc::sockaddr_un) -> io::Result<bool> {
    let fd = new_socket()?;
    // SAFETY: the address is initialised and lives through the call.
    let connected = unsafe { libc::connect(fd.as_raw_fd(), as_sockaddr(address), address_size()) };
    match check(connected) {
        Ok(_) => Ok(true),
        Err(error) => Ok(!matches!(
            error.raw_os_error(),
            Some(libc::ECONNREFUSED | libc::ENOENT)
        )),
    }
}

fn new_socket() -> io::Result<OwnedFd> {
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: socket has no preconditions.
    let fd = check(unsafe { libc::socket(libc::AF_UNIX, kind, 0) })?;
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Puts a socket under the runtime's eyes.
fn watched(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd is one open socket until it is dropped, and always answers with the same
    // descriptor.
    Ok(unsafe { AsyncFd::register(fd) }?)
}

fn accept(listener: &OwnedFd) -> io::Result<OwnedFd> {
    let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    let nobody = std::ptr::null_mut();
    // SAFETY: no address is asked for, so none is written.
    let fd = unsafe { libc::accept4(listener.as_raw_fd(), nobody, std::ptr::null_mut(), flags) };
    let fd = check(fd)?;
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn receive(fd: &OwnedFd) -> io::Result<Received> {
    SCRATCH.with_borrow_mut(|buffer| {
        // MSG_TRUNC: the real length is told, even of what did not fit.
        // SAFETY: the buffer is ours, and as long as is said.
        let length = unsafe {
            let start = buffer.as_mut_ptr().cast();
            libc::recv(fd.as_raw_fd(), start, buffer.len(), libc::MSG_TRUNC)
        };
        match usize::try_from(length) {
            Err(_) => Err(io::Error::last_os_error()),
            Ok(0) => Ok(Received::End),
            Ok(length) => Ok(buffer.get(..length).map_or(Received::TooLong, |message| {
                Received::Message(message.to_vec())
            })),
        }
    })
}

fn send(fd: &OwnedFd, message: &[u8]) -> io::Result<()> {
    // SAFETY: the message is as long as is said.
    let sent = unsafe {
        let start = message.as_ptr().cast();
        libc::send(fd.as_raw_fd(), start, message.len(), libc::MSG_NOSIGNAL)
    };
    match sent {
        -1 => Err(io::Error::last_os_error()),
        // A message is sent whole or not at all.
        _ => Ok(()),
    }
}

fn credentials(fd: &OwnedFd) -> io::Result<libc::ucred> {
    let mut peer = libc::ucred {
        pid: 0,
        uid: u32::MAX,
        gid: u32::MAX,
    };
    get_option(fd.as_raw_fd(), libc::SO_PEERCRED, &mut peer)?;
    Ok(peer)
}

fn option(fd: RawFd, name: libc::c_int) -> io::Result<libc::c_int> {
    let mut value: libc::c_int = 0;
    get_option(fd, name, &mut value)?;
    Ok(value)
}

/// Reads an option of the socket into a plain value of its own type.
fn get_option<T: Copy>(fd: RawFd, name: libc::c_int, value: &mut T) -> io::Result<()> {
    let mut size = size_of::<T>() as libc::socklen_t;
    let place: *mut T = value;
    // SAFETY: the value is ours, and `size` is its size.
    let done = unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, name, place.cast(), &raw mut size) };
    check(done).map(|_| ())
}

fn open_to_all(path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: the path ends with NUL.
    check(unsafe { libc::chmod(path.as_ptr(), MODE) }).map(|_| ())
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    let meta = path.symlink_metadata().ok()?;
    Some((meta.dev(), meta.ino()))
}

fn address(path: &Path) -> io::Result<libc::sockaddr_un> {
    let bytes = path.as_os_str().as_bytes();
    let mut address = libc::sockaddr_un {
        sun_family: libc::AF_UNIX as libc::sa_family_t,
        sun_path: [0; 108],
    };
    // The last one stays NUL.
    if bytes.len() >= address.sun_path.len() || bytes.contains(&0) {
        let why = "the path of a unix socket has at most 107 bytes";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
    }
    for (place, byte) in address.sun_path.iter_mut().zip(bytes) {
        *place = *byte as libc::c_char;
    }
    Ok(address)
}

fn as_sockaddr(address: &libc::sockaddr_un) -> *const libc::sockaddr {
    std::ptr::from_ref(address).cast()
}

fn address_size() -> libc::socklen_t {
    size_of::<libc::sockaddr_un>() as libc::socklen_t
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    match result {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(result),
    }
}
