//! An IMAP client that a test drives line by line.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Result, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use super::leak::Scanner;
use super::reply::{Line, Reply};
use super::wire::Wire;

/// How much of a transcript a failing test prints, in lines.
const TRANSCRIPT_LINES: usize = 400;
/// How much of each line, in bytes.
const TRANSCRIPT_WIDTH: usize = 600;

/// What all clients of a run of the lab say and hear, where its logs are kept.
static LAB: LazyLock<Option<File>> = LazyLock::new(|| {
    let folder = std::env::var_os("IMAP_XID_LAB_KEEP")?;
    let at = Path::new(&folder).join(format!("clients.{}.log", std::process::id()));
    File::create(at).ok()
});
static CLIENTS: AtomicU32 = AtomicU32::new(0);

/// The tag of a command that was sent.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Tag(pub String);

/// A piece of a command.
pub enum Part<'a> {
    Text(&'a str),
    /// Sent as a synchronising literal: the server's "+" is waited for.
    Literal(&'a [u8]),
    /// Sent as a LITERAL+.
    LiteralPlus(&'a [u8]),
}

/// One connection. Prints its transcript when dropped by a failing test.
pub struct Imap {
    wire: Wire,
    next_tag: u32,
    unread: Vec<Line>,
    answered: HashMap<String, Reply>,
    transcript: Vec<String>,
    /// Tells it from the other clients of the process.
    number: u32,
    pub(super) scanner: Option<Scanner>,
    /// Named in the transcript.
    pub name: String,
    /// The greeting line.
    pub greeting: Line,
}

impl Imap {
    pub(super) fn connect(address: SocketAddr, name: &str) -> Imap {
        let wire = Wire::connect(address).unwrap_or_else(|e| panic!("connect {address}: {e}"));
        Imap::greeted(wire, name)
    }

    /// The same where nobody may answer, or nothing within `limit`.
    pub(super) fn try_connect(address: SocketAddr, name: &str, limit: Duration) -> Result<Imap> {
        let mut client = Imap::unread(Wire::connect(address)?, name);
        client.set_limit(limit);
        let greeting = client.try_read_line()?;
        client.greeting = greeting.ok_or(std::io::ErrorKind::UnexpectedEof)?;
        Ok(client)
    }

    pub(super) fn connect_tls(address: SocketAddr, args: &[&str], name: &str) -> Imap {
        let wire = Wire::connect_tls(address, args).expect("openssl s_client");
        Imap::greeted(wire, name)
    }

    fn greeted(wire: Wire, name: &str) -> Imap {
        let mut client = Imap::unread(wire, name);
        client.greeting = client.read_line();
        client
    }

    /// A client whose greeting is still to be read.
    fn unread(wire: Wire, name: &str) -> Imap {
        Imap {
            wire,
            next_tag: 0,
            unread: Vec::new(),
            answered: HashMap::new(),
            transcript: Vec::new(),
            number: CLIENTS.fetch_add(1, Ordering::Relaxed),
            scanner: None,
            name: name.to_owned(),
            greeting: Line(Vec::new()),
        }
    }

    /// LOGIN; any password will do.
    pub fn login(&mut self, user: &str) -> Reply {
        self.ok(&format!("LOGIN {user} pass"))
    }

    /// Sends a command and waits for its answer.
    pub fn cmd(&mut self, command: &str) -> Reply {
        let tag = self.send(command);
        self.wait(&tag)
    }

    /// [`Imap::cmd`] that insists on OK.
    pub fn ok(&mut self, command: &str) -> Reply {
        self.expect(command, "OK")
    }

    /// [`Imap::cmd`] that insists on NO.
    pub fn no(&mut self, command: &str) -> Reply {
        self.expect(command, "NO")
    }

    /// [`Imap::cmd`] that insists on BAD.
    pub fn bad(&mut self, command: &str) -> Reply {
        self.expect(command, "BAD")
    }

    fn expect(&mut self, command: &str, status: &str) -> Reply {
        let reply = self.cmd(command);
        assert_eq!(
            reply.status, status,
            "{}: {command}: {}",
            self.name, reply.text
        );
        reply
    }

    /// Sends a command without waiting for its answer.
    pub fn send(&mut self, command: &str) -> Tag {
        let tag = self.new_tag();
        self.raw(format!("{} {command}\r\n", tag.0).as_bytes());
        tag
    }

    /// Sends a command made of text and literals, and waits for its answer. A server may answer
    /// in place of the "+"; then the rest is not sent.
    pub fn cmd_parts(&mut self, parts: &[Part<'_>]) -> Reply {
        let tag = self.new_tag();
        let mut out = format!("{} ", tag.0).into_bytes();
        for part in parts {
            match part {
                Part::Text(text) => out.extend_from_slice(text.as_bytes()),
                Part::LiteralPlus(bytes) => {
                    out.extend_from_slice(format!("{{{}+}}\r\n", bytes.len()).as_bytes());
                    out.extend_from_slice(bytes);
                }
                Part::Literal(bytes) => {
                    out.extend_from_slice(format!("{{{}}}\r\n", bytes.len()).as_bytes());
                    self.raw(&std::mem::take(&mut out));
                    if !self.go_ahead(&tag) {
                        return self.wait(&tag);
                    }
                    out.extend_from_slice(bytes);
                }
            }
        }
        out.extend_from_slice(b"\r\n");
        self.raw(&out);
        self.wait(&tag)
    }

    /// Waits for the answer to a command that was sent; those to others are kept.
    ///
    /// # Panics
    /// When the server closes the connection first.
    pub fn wait(&mut self, tag: &Tag) -> Reply {
        loop {
            if let Some(reply) = self.answered.remove(&tag.0) {
                return reply;
            }
            let line = self.read_line();
            self.sort_in(line);
        }
    }

    /// The same, or an error when the connection ends (the server was killed).
    pub fn try_wait(&mut self, tag: &Tag) -> Result<Reply> {
        loop {
            if let Some(reply) = self.answered.remove(&tag.0) {
                return Ok(reply);
            }
            match self.try_read_line()? {
                Some(line) => self.sort_in(line),
                None => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            }
        }
    }

    /// [`Imap::cmd`] that reports a lost connection as an error.
    pub fn try_cmd(&mut self, command: &str) -> Result<Reply> {
        let tag = self.new_tag();
        self.try_raw(format!("{} {command}\r\n", tag.0).as_bytes())?;
        self.try_wait(&tag)
    }

    /// Whether the command has no answer among what has arrived by now.
    pub fn is_waiting(&mut self, tag: &Tag) -> bool {
        while self.wire.has_line().unwrap_or(true) {
            match self.try_read_line() {
                Ok(Some(line)) => self.sort_in(line),
                _ => break,
            }
        }
        !self.answered.contains_key(&tag.0)
    }

    /// Reads lines until an untagged one contains `text`, which it gives; it stays part of the
    /// next answer's lines.
    pub fn wait_line(&mut self, text: &str) -> Line {
        let mut seen = 0;
        loop {
            if let Some(line) = self.unread[seen..].iter().find(|line| line.contains(text)) {
                return line.clone();
            }
            seen = self.unread.len();
            let line = self.read_line();
            self.sort_in(line);
        }
    }

    /// The untagged lines that came and belong to no answer yet.
    pub fn take_untagged(&mut self) -> Vec<Line> {
        std::mem::take(&mut self.unread)
    }

    /// Sends bytes as they are.
    pub fn raw(&mut self, bytes: &[u8]) {
        if let Err(e) = self.try_raw(bytes) {
            panic!("{}: sending: {e}", self.name);
        }
    }

    /// The same, reporting a lost connection.
    pub fn try_raw(&mut self, bytes: &[u8]) -> Result<()> {
        self.note("C", bytes);
        if let Some(scanner) = &mut self.scanner {
            scanner.sent(bytes);
        }
        self.wire.send(bytes)
    }

    /// The next line, whatever it is.
    ///
    /// # Panics
    /// At the end of the connection, and when nothing comes within the limit.
    pub fn read_line(&mut self) -> Line {
        match self.try_read_line() {
            Ok(Some(line)) => line,
            Ok(None) => panic!("{}: the server closed the connection", self.name),
            Err(e) => panic!("{}: reading: {e}", self.name),
        }
    }

    /// The next line; None at the end of the connection.
    pub fn try_read_line(&mut self) -> Result<Option<Line>> {
        let Some(mut bytes) = self.wire.read_line()? else {
            self.note("S", b"(connection closed)");
            return Ok(None);
        };
        self.note("S", &bytes);
        let end = bytes
            .strip_suffix(b"\r\n")
            .or(bytes.strip_suffix(b"\n"))
            .map(<[u8]>::len);
        bytes.truncate(end.unwrap_or(bytes.len()));
        let line = Line(bytes);
        if let Some(scanner) = &mut self.scanner {
            scanner.received(&line);
        }
        Ok(Some(line))
    }

    /// Whether the server closes the connection (within the limit), reading all that is left.
    pub fn closes(&mut self) -> bool {
        loop {
            match self.try_read_line() {
                Ok(Some(_)) => {}
                Ok(None) => return true,
                Err(e) => return e.kind() != std::io::ErrorKind::TimedOut,
            }
        }
    }

    /// How long one read may take, in place of the generous default.
    pub fn set_limit(&mut self, limit: Duration) {
        self.wire.limit = limit;
    }

    /// APPEND without flags or date.
    pub fn append(&mut self, mailbox: &str, message: &[u8]) -> Reply {
        let reply = self
            .try_append(mailbox, message)
            .expect("the connection holds");
        assert!(
            reply.is_ok(),
            "{}: APPEND {mailbox}: {}",
            self.name,
            reply.text
        );
        reply
    }

    /// The same, reporting a lost connection and any status.
    pub fn try_append(&mut self, mailbox: &str, message: &[u8]) -> Result<Reply> {
        let tag = self.start_append(mailbox, message)?;
        self.try_wait(&tag)
    }

    /// APPEND without waiting for its answer.
    pub fn start_append(&mut self, mailbox: &str, message: &[u8]) -> Result<Tag> {
        let tag = self.new_tag();
        let mut out = format!("{} APPEND {mailbox} {{{}+}}\r\n", tag.0, message.len()).into_bytes();
        out.extend_from_slice(message);
        out.extend_from_slice(b"\r\n");
        self.try_raw(&out)?;
        Ok(tag)
    }

    /// IDLE, up to the server's "+".
    pub fn idle(&mut self) -> Tag {
        let tag = self.send("IDLE");
        assert!(self.go_ahead(&tag), "{}: IDLE was refused", self.name);
        tag
    }

    /// Ends an IDLE.
    pub fn done(&mut self, idle: &Tag) -> Reply {
        self.raw(b"DONE\r\n");
        let reply = self.wait(idle);
        assert!(reply.is_ok(), "{}: IDLE: {}", self.name, reply.text);
        reply
    }

    /// COMPRESS DEFLATE; from then on both ways are compressed.
    pub fn compress(&mut self) {
        self.ok("COMPRESS DEFLATE");
        self.wire.start_deflate();
    }

    /// Reads up to a "+" line; false when the command was answered in its place.
    fn go_ahead(&mut self, tag: &Tag) -> bool {
        loop {
            if self.answered.contains_key(&tag.0) {
                return false;
            }
            let line = self.read_line();
            if line.starts_with("+") {
                return true;
            }
            self.sort_in(line);
        }
    }

    pub fn new_tag(&mut self) -> Tag {
        self.next_tag += 1;
        Tag(format!("a{}", self.next_tag))
    }

    fn sort_in(&mut self, line: Line) {
        if line.starts_with("* ") || line.starts_with("+") {
            self.unread.push(line);
            return;
        }
        let tag = line.text().split(' ').next().unwrap_or("").to_owned();
        let reply = Reply::parse(&line, &tag, std::mem::take(&mut self.unread));
        self.answered.insert(tag, reply);
    }

    fn note(&mut self, side: &str, bytes: &[u8]) {
        let mut text = bytes[..bytes.len().min(TRANSCRIPT_WIDTH)]
            .escape_ascii()
            .to_string();
        if bytes.len() > TRANSCRIPT_WIDTH {
            text.push_str(&format!("... ({} bytes)", bytes.len()));
        }
        if self.transcript.len() >= 2 * TRANSCRIPT_LINES {
            self.transcript.drain(..TRANSCRIPT_LINES);
        }
        let line = format!("{side}: {text}");
        self.note_in_lab(&line);
        self.transcript.push(line);
    }

    fn note_in_lab(&self, line: &str) {
        if let Some(mut lab) = LAB.as_ref() {
            let (now, client) = (UNIX_EPOCH.elapsed().unwrap_or_default(), self.number);
            let at = now.as_secs_f64() % 86_400.0;
            // It is only there to look at.
            let _ = lab.write_all(format!("{at:.3} {client} {line}\n").as_bytes());
        }
    }
}

impl Drop for Imap {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let from = self.transcript.len().saturating_sub(TRANSCRIPT_LINES);
            println!(
                "--- transcript of {}\n{}",
                self.name,
                self.transcript[from..].join("\n")
            );
        }
    }
}
