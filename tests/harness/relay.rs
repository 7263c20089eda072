//! A relay between a mail client that is a program of its own and the server: what the client is
//! told passes the scanner of [`super::leak`] on its way.
//!
//! The client must neither encrypt nor compress: the server is not to offer it.

use std::io::{Read, Result, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use super::leak::{Scanner, Watermarks};
use super::reply::Line;

/// A literal of the client's that is no longer is an argument, a mailbox name for example: the
/// scanner is shown it in quotes. Longer ones are messages.
const ARGUMENT: usize = 200;

/// Takes connections until it is dropped.
pub struct Relay {
    address: SocketAddr,
    seen: Arc<Seen>,
    accepts: Option<JoinHandle<()>>,
}

/// What all connections came to.
#[derive(Default)]
struct Seen {
    leaks: Mutex<Vec<String>>,
    lines: AtomicUsize,
    stop: AtomicBool,
}

impl Relay {
    /// A relay for the clients of one mail user.
    pub fn start(server: SocketAddr, marks: &Watermarks, user: &str) -> Result<Relay> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let seen = Arc::new(Seen::default());
        let (theirs, marks, user) = (Arc::clone(&seen), marks.clone(), user.to_owned());
        let accepts = std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if theirs.stop.load(Ordering::SeqCst) {
                    return;
                }
                let scanner = Scanner::new(marks.clone(), &user);
                // A server that is not there hangs up on its client.
                let _ = relay(client, server, scanner, &theirs);
            }
        });
        Ok(Relay {
            address,
            seen,
            accepts: Some(accepts),
        })
    }

    /// Where clients connect to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many lines the server has sent.
    pub fn lines(&self) -> usize {
        self.seen.lines.load(Ordering::SeqCst)
    }

    /// What was sent and must not have been.
    pub fn leaks(&self) -> Vec<String> {
        lock(&self.seen.leaks).clone()
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.seen.stop.store(true, Ordering::SeqCst);
        // It looks when somebody comes. Connections end with their clients.
        let _ = TcpStream::connect(self.address);
        if let Some(accepts) = self.accepts.take() {
            let _ = accepts.join();
        }
    }
}

/// Two threads for a connection, one for each way.
fn relay(client: TcpStream, server: SocketAddr, scanner: Scanner, seen: &Arc<Seen>) -> Result<()> {
    let server = TcpStream::connect(server)?;
    for stream in [&client, &server] {
        stream.set_nodelay(true)?;
    }
    let scanner = Arc::new(Mutex::new(scanner));
    let (from, to, commands) = (
        client.try_clone()?,
        server.try_clone()?,
        Arc::clone(&scanner),
    );
    std::thread::spawn(move || {
        pass(from, to, |line| lock(&commands).sent(&as_command(line)));
    });
    let seen = Arc::clone(seen);
    std::thread::spawn(move || {
        pass(server, client, |line| {
            seen.lines.fetch_add(1, Ordering::SeqCst);
            let leak = lock(&scanner).judge(&without_end(line));
            lock(&seen.leaks).extend(leak);
        });
    });
    Ok(())
}

/// Passes bytes on until one side is gone. A line is looked at before its last byte goes on.
fn pass(mut from: TcpStream, mut to: TcpStream, mut look: impl FnMut(&[Part])) {
    let mut lines = Lines::default();
    let mut buffer = [0; 65536];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        lines.add(&buffer[..count], &mut look);
        if to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    // Whichever side was first: the other way is to end too.
    let _ = to.shutdown(Shutdown::Both);
    let _ = from.shutdown(Shutdown::Both);
}

/// A piece of a line.
#[derive(Debug, PartialEq, Eq)]
enum Part {
    /// Up to and with CRLF.
    Text(Vec<u8>),
    /// What the text before announced.
    Literal(Vec<u8>),
}

/// Puts lines with their literals together from what comes in pieces.
#[derive(Default)]
struct Lines {
    parts: Vec<Part>,
    /// The text that is under way.
    text: Vec<u8>,
    /// The literal that is under way, and how much of it is to come.
    literal: Option<(Vec<u8>, usize)>,
}

impl Lines {
    fn add(&mut self, mut bytes: &[u8], look: &mut impl FnMut(&[Part])) {
        while !bytes.is_empty() {
            bytes = match self.literal.take() {
                Some((literal, left)) => self.add_to_literal(literal, left, bytes),
                None => self.add_to_text(bytes, look),
            };
        }
    }

    fn add_to_literal<'a>(
        &mut self,
        mut literal: Vec<u8>,
        left: usize,
        bytes: &'a [u8],
    ) -> &'a [u8] {
        let (mine, rest) = bytes.split_at(left.min(bytes.len()));
        literal.extend_from_slice(mine);
        match left - mine.len() {
            0 => self.parts.push(Part::Literal(literal)),
            left => self.literal = Some((literal, left)),
        }
        rest
    }

    fn add_to_text<'a>(&mut self, bytes: &'a [u8], look: &mut impl FnMut(&[Part])) -> &'a [u8] {
        let end = bytes.iter().position(|byte| *byte == b'\n');
        let (mine, rest) = bytes.split_at(end.map_or(bytes.len(), |at| at + 1));
        self.text.extend_from_slice(mine);
        if end.is_none() {
            return rest;
        }
        let text = std::mem::take(&mut self.text);
        let announced = announced_literal(&text);
        self.parts.push(Part::Text(text));
        match announced {
            // An empty one is whole at once.
            Some(0) => self.parts.push(Part::Literal(Vec::new())),
            Some(size) => self.literal = Some((Vec::new(), size)),
            None => {
                look(&self.parts);
                self.parts.clear();
            }
        }
        rest
    }
}

/// n of a text that ends in `{n}`, or `{n+}` as clients may say.
fn announced_literal(text: &[u8]) -> Option<usize> {
    let text = text.strip_suffix(b"\r\n")?.strip_suffix(b"}")?;
    let text = text.strip_suffix(b"+").unwrap_or(text);
    let open = text.iter().rposition(|&byte| byte == b'{')?;
    std::str::from_utf8(&text[open + 1..]).ok()?.parse().ok()
}

/// A line of the server's, as it came but for its end.
fn without_end(line: &[Part]) -> Line {
    let mut bytes: Vec<u8> = Vec::new();
    for part in line {
        let (Part::Text(part) | Part::Literal(part)) = part;
        bytes.extend_from_slice(part);
    }
    let end = bytes.iter().rposition(|byte| !b"\r\n".contains(byte));
    bytes.truncate(end.map_or(0, |at| at + 1));
    Line(bytes)
}

/// A command of the client's as one line: short literals in quotes, without messages.
fn as_command(line: &[Part]) -> Vec<u8> {
    let mut command = Vec::new();
    for part in line {
        match part {
            Part::Text(text) => {
                let end = match announced_literal(text) {
                    Some(_) => text.iter().rposition(|&byte| byte == b'{'),
                    None => None,
                };
                command.extend_from_slice(&text[..end.unwrap_or(text.len())]);
            }
            Part::Literal(literal) if literal.len() <= ARGUMENT => {
                command.push(b'"');
                command.extend_from_slice(literal);
                command.push(b'"');
            }
            Part::Literal(_) => {}
        }
    }
    command
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_with_literals_is_put_together_from_pieces() {
        let text = b"a SELECT {5+}\r\nINBOX\r\nb APPEND x {0}\r\n {3}\r\n\r\n.\r\nDONE\r\n";
        for size in 1..text.len() {
            let mut lines = Lines::default();
            let mut commands = Vec::new();
            for piece in text.chunks(size) {
                lines.add(piece, &mut |line| commands.push(as_command(line)));
            }
            let commands: Vec<_> = commands
                .iter()
                .map(|c| String::from_utf8_lossy(c))
                .collect();
            let expected = [
                "a SELECT \"INBOX\"\r\n",
                "b APPEND x \"\" \"\r\n.\"\r\n",
                "DONE\r\n",
            ];
            assert_eq!(commands, expected, "in pieces of {size}");
        }
    }

    /// Says this to whoever comes, and hears what he says.
    fn server(says: &'static [u8]) -> (SocketAddr, JoinHandle<Vec<u8>>) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let address = listener.local_addr().expect("an address");
        let thread = std::thread::spawn(move || {
            let (mut client, _) = listener.accept().expect("a client");
            let mut heard = vec![0; 18];
            client.read_exact(&mut heard).expect("a command");
            client.write_all(says).expect("the client listens");
            client.shutdown(Shutdown::Write).expect("a connection");
            client.read_to_end(&mut heard).expect("an end");
            heard
        });
        (address, thread)
    }

    #[test]
    fn all_that_is_said_passes_and_a_leak_is_seen() {
        let says = b"* OK [UIDNEXT 6] x\r\na OK y\r\n* 1 FETCH (BODY[] {3}\r\nabc UID 6)\r\n";
        let (address, heard) = server(says);
        let marks = Watermarks::default();
        marks.raise("u", "INBOX", 5);
        let relay = Relay::start(address, &marks, "u").expect("a relay");
        let mut client = TcpStream::connect(relay.address()).expect("it listens");
        client.write_all(b"a SELECT \"INBOX\"\r\n").expect("sent");
        let mut told = Vec::new();
        client.read_to_end(&mut told).expect("told");
        assert_eq!(told, says);
        assert_eq!(heard.join().expect("heard"), b"a SELECT \"INBOX\"\r\n");
        assert_eq!(relay.lines(), 3);
        let leaks = relay.leaks();
        assert!(leaks.len() == 1 && leaks[0].contains("UID 6"), "{leaks:?}");
    }
}
