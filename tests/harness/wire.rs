//! A connection: bytes both ways, lines with their literals, a limit on every wait.

use std::collections::VecDeque;
use std::io::{Error, ErrorKind, Read, Result, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress};

use super::LIMIT;

/// One end of a TCP connection, by itself or through `openssl s_client`.
pub(super) struct Wire {
    stream: Stream,
    openssl: Option<Child>,
    received: VecDeque<u8>,
    closed: bool,
    deflate: Option<(Compress, Decompress)>,
    /// How long one read may take.
    pub limit: Duration,
}

enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Wire {
    pub fn connect(address: SocketAddr) -> Result<Wire> {
        let stream = super::net::dial(address)?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        Ok(Wire::over(Stream::Tcp(stream), None))
    }

    /// The same under TLS; `args` are further arguments of s_client (`-starttls imap`).
    pub fn connect_tls(address: SocketAddr, args: &[&str]) -> Result<Wire> {
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let child = Command::new("openssl")
            .args(["s_client", "-quiet", "-connect", &address.to_string()])
            .args(args)
            .stdin(Stdio::from(OwnedFd::from(theirs.try_clone()?)))
            .stdout(Stdio::from(OwnedFd::from(theirs)))
            .stderr(Stdio::null())
            .spawn()?;
        Ok(Wire::over(Stream::Unix(ours), Some(child)))
    }

    fn over(stream: Stream, openssl: Option<Child>) -> Wire {
        Wire {
            stream,
            openssl,
            received: VecDeque::new(),
            closed: false,
            deflate: None,
            limit: LIMIT,
        }
    }

    /// From here on both ways are raw deflate (RFC 4978).
    pub fn start_deflate(&mut self) {
        assert!(
            self.received.is_empty(),
            "bytes came before the compression began"
        );
        self.deflate = Some((
            Compress::new(Compression::fast(), false),
            Decompress::new(false),
        ));
    }

    /// Sends all of `bytes`. Takes in what comes meanwhile: a server that cannot send its answers
    /// stops to read.
    pub fn send(&mut self, bytes: &[u8]) -> Result<()> {
        let packed;
        let mut rest = match &mut self.deflate {
            None => bytes,
            Some((compress, _)) => {
                packed = deflate(compress, bytes)?;
                &packed
            }
        };
        let deadline = Instant::now() + self.limit;
        while !rest.is_empty() {
            let ready = self.poll(true, deadline)?;
            if ready == 0 {
                return Err(ErrorKind::TimedOut.into());
            }
            if ready & libc::POLLOUT != 0 {
                let written = match &mut self.stream {
                    Stream::Tcp(s) => s.write(rest),
                    Stream::Unix(s) => s.write(rest),
                };
                match written {
                    Ok(n) => rest = &rest[n..],
                    Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                    Err(e) => return Err(e),
                }
            }
            if ready & libc::POLLIN != 0 {
                self.take_in()?;
            }
        }
        Ok(())
    }

    /// One line with its literals, with the last CRLF; None at the end of the connection.
    pub fn read_line(&mut self) -> Result<Option<Vec<u8>>> {
        let mut line = Vec::new();
        loop {
            let part = match self.read_until_newline()? {
                Some(part) => part,
                None if line.is_empty() => return Ok(None),
                None => return Err(ErrorKind::UnexpectedEof.into()),
            };
            line.extend_from_slice(&part);
            match literal_size(&part) {
                Some(size) => line.extend_from_slice(&self.read_exact(size)?),
                None => return Ok(Some(line)),
            }
        }
    }

    /// Whether a whole line can be read without waiting (literals aside).
    pub fn has_line(&mut self) -> Result<bool> {
        while !self.closed && self.poll(false, Instant::now())? & libc::POLLIN != 0 {
            self.take_in()?;
        }
        Ok(self.received.contains(&b'\n') || self.closed)
    }

    fn read_until_newline(&mut self) -> Result<Option<Vec<u8>>> {
        let mut seen = 0;
        loop {
            if let Some(at) = self.received.iter().skip(seen).position(|&b| b == b'\n') {
                return Ok(Some(self.received.drain(..=seen + at).collect()));
            }
            seen = self.received.len();
            if self.closed && seen == 0 {
                return Ok(None);
            }
            self.wait_for_more()?;
        }
    }

    fn read_exact(&mut self, size: usize) -> Result<Vec<u8>> {
        while self.received.len() < size {
            self.wait_for_more()?;
        }
        Ok(self.received.drain(..size).collect())
    }

    fn wait_for_more(&mut self) -> Result<()> {
        if self.closed {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        if self.poll(false, Instant::now() + self.limit)? == 0 {
            return Err(ErrorKind::TimedOut.into());
        }
        self.take_in()
    }

    /// What can be done without blocking; 0 after the deadline.
    fn poll(&self, write: bool, deadline: Instant) -> Result<i16> {
        let fd = match &self.stream {
            Stream::Tcp(s) => s.as_raw_fd(),
            Stream::Unix(s) => s.as_raw_fd(),
        };
        let events = if write {
            libc::POLLIN | libc::POLLOUT
        } else {
            libc::POLLIN
        };
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let mut entry = libc::pollfd {
                fd,
                events,
                revents: 0,
            };
            let wait = i32::try_from(left.as_millis()).unwrap_or(i32::MAX);
            // SAFETY: one valid pollfd, alive during the call.
            let n = unsafe { libc::poll(&mut entry, 1, wait) };
            if n > 0 {
                // A hang-up is read as the end of the stream.
                let hung = entry.revents & (libc::POLLHUP | libc::POLLERR) != 0;
                return Ok(entry.revents | if hung { libc::POLLIN } else { 0 });
            }
            if n < 0 && Error::last_os_error().kind() != ErrorKind::Interrupted {
                return Err(Error::last_os_error());
            }
            if n == 0 && deadline <= Instant::now() {
                return Ok(0);
            }
        }
    }

    fn take_in(&mut self) -> Result<()> {
        let mut buffer = [0; 65536];
        let got = match &mut self.stream {
            Stream::Tcp(s) => s.read(&mut buffer),
            Stream::Unix(s) => s.read(&mut buffer),
        };
        let n = match got {
            Ok(n) => n,
            Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(e) if e.kind() == ErrorKind::Interrupted => return Ok(()),
            Err(e) if e.kind() == ErrorKind::ConnectionReset => 0,
            Err(e) => return Err(e),
        };
        if n == 0 {
            self.closed = true;
            return Ok(());
        }
        match &mut self.deflate {
            None => self.received.extend(&buffer[..n]),
            Some((_, decompress)) => inflate(decompress, &buffer[..n], &mut self.received)?,
        }
        Ok(())
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        if let Some(child) = &mut self.openssl {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// n of a line that ends in `{n}`, as IMAP announces a literal.
fn literal_size(line: &[u8]) -> Option<usize> {
    let line = line.strip_suffix(b"\r\n")?.strip_suffix(b"}")?;
    let open = line.iter().rposition(|&b| b == b'{')?;
    std::str::from_utf8(&line[open + 1..]).ok()?.parse().ok()
}

fn deflate(compress: &mut Compress, mut bytes: &[u8]) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    loop {
        out.reserve(bytes.len() + 4096);
        let before = compress.total_in();
        compress
            .compress_vec(bytes, &mut out, FlushCompress::Sync)
            .map_err(Error::other)?;
        bytes = &bytes[(compress.total_in() - before) as usize..];
        if bytes.is_empty() && out.len() < out.capacity() {
            return Ok(out);
        }
    }
}

fn inflate(from: &mut Decompress, mut bytes: &[u8], to: &mut VecDeque<u8>) -> Result<()> {
    loop {
        let mut out = Vec::with_capacity(65536);
        let before = from.total_in();
        from.decompress_vec(bytes, &mut out, FlushDecompress::Sync)
            .map_err(Error::other)?;
        bytes = &bytes[(from.total_in() - before) as usize..];
        to.extend(&out);
        if bytes.is_empty() && out.len() < out.capacity() {
            return Ok(());
        }
    }
}
