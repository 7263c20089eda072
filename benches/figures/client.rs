//! A client that does as little as possible: what is measured is the server.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Instant;

use crate::harness::{Dovecot, LIMIT, net};

/// Bytes read at once.
const CHUNK: usize = 1 << 18;

/// One IMAP connection.
pub struct Client {
    /// The process that serves it, when its processor time is what counts.
    served_by: Option<u32>,
    stream: TcpStream,
    tags: u32,
    answer: Vec<u8>,
    chunk: Vec<u8>,
}

impl Client {
    /// A client that has logged in.
    pub fn login(address: SocketAddr, user: &str) -> Client {
        let stream = net::dial(address).expect("the server takes connections");
        stream.set_nodelay(true).expect("a TCP socket");
        stream.set_read_timeout(Some(LIMIT)).expect("a TCP socket");
        let mut client = Client {
            served_by: None,
            stream,
            tags: 0,
            answer: Vec::new(),
            chunk: vec![0; CHUNK],
        };
        client.read_until("* OK");
        client.ok(&format!("LOGIN {user} pass"));
        client
    }

    /// A client of which the processor time of its imap process is measured where
    /// IMAP_XID_BENCH_CLOCK is `cpu`: on a busy machine that tells more than the clock on the wall.
    pub fn timed(server: &Dovecot, user: &str) -> Client {
        let before = server.pids("imap");
        let mut client = Client::login(server.imap_addr(), user);
        if std::env::var("IMAP_XID_BENCH_CLOCK").is_ok_and(|clock| clock == "cpu") {
            let pids = server.pids("imap");
            client.served_by = pids.into_iter().find(|pid| !before.contains(pid));
        }
        client
    }

    /// Seconds from some beginning.
    fn now(&self, start: Instant) -> f64 {
        let Some(pid) = self.served_by else {
            return start.elapsed().as_secs_f64();
        };
        let text = std::fs::read_to_string(format!("/proc/{pid}/schedstat"));
        let text = text.expect("the imap process lives");
        let nanoseconds = text.split(' ').next().and_then(|n| n.parse::<f64>().ok());
        nanoseconds.expect("schedstat has a number") / 1e9
    }

    /// Sends a command and reads its whole answer; gives the seconds it took.
    ///
    /// # Panics
    /// When the answer is not OK.
    pub fn ok(&mut self, command: &str) -> f64 {
        self.ok_with(command.as_bytes())
    }

    /// APPEND of a whole message without waiting for a "+".
    pub fn append(&mut self, mailbox: &str, message: &[u8]) -> f64 {
        let mut command = format!("APPEND {mailbox} {{{}+}}\r\n", message.len()).into_bytes();
        command.extend_from_slice(message);
        self.ok_with(&command)
    }

    /// Sends a command whose answer is read later.
    pub fn send(&mut self, command: &str) {
        self.tags += 1;
        let line = format!("t{} {command}\r\n", self.tags);
        self.stream
            .write_all(line.as_bytes())
            .expect("the connection holds");
    }

    /// Reads the whole answer to what was sent last.
    ///
    /// # Panics
    /// When it is not OK.
    pub fn finish(&mut self) {
        let tag = format!("t{} ", self.tags);
        self.read_until(&tag);
        let last = String::from_utf8_lossy(self.last_line()).into_owned();
        assert!(last.starts_with(&format!("{tag}OK")), "{last}");
    }

    fn ok_with(&mut self, command: &[u8]) -> f64 {
        self.tags += 1;
        let tag = format!("t{}", self.tags);
        let mut line = format!("{tag} ").into_bytes();
        line.extend_from_slice(command);
        line.extend_from_slice(b"\r\n");
        let start = Instant::now();
        let from = self.now(start);
        self.stream.write_all(&line).expect("the connection holds");
        self.read_until(&format!("{tag} "));
        let seconds = self.now(start) - from;
        let last = String::from_utf8_lossy(self.last_line()).into_owned();
        assert!(
            last.starts_with(&format!("{tag} OK")),
            "{}: {last}",
            String::from_utf8_lossy(&line)
        );
        seconds
    }

    /// Reads until the last line begins with `start`.
    fn read_until(&mut self, start: &str) {
        self.answer.clear();
        while !(self.answer.ends_with(b"\r\n") && self.last_line().starts_with(start.as_bytes())) {
            let got = self
                .stream
                .read(&mut self.chunk)
                .expect("an answer within the limit");
            assert!(got > 0, "the server closed the connection");
            self.answer.extend_from_slice(&self.chunk[..got]);
        }
    }

    fn last_line(&self) -> &[u8] {
        let end = self.answer.len().saturating_sub(2);
        let start = self.answer[..end]
            .iter()
            .rposition(|&b| b == b'\n')
            .map_or(0, |at| at + 1);
        &self.answer[start..end]
    }

    /// The whole answer to the last command.
    pub fn answer(&self) -> String {
        String::from_utf8_lossy(&self.answer).into_owned()
    }

    /// The text after `[name ` up to `]` in the last answer.
    pub fn code(&self, name: &str) -> String {
        let answer = self.answer();
        let (_, rest) = answer
            .split_once(&format!("[{name} "))
            .expect("the code is there");
        rest.split(']').next().unwrap_or_default().to_owned()
    }
}
