//! A client of Dovecot's administration service (`doveadm-server`), on this node's unix socket
//! or on a peer's TCP listener.
//!
//! The service speaks a line protocol: a version, a login where the socket asks for one, then one
//! command a line (flags, user, command, arguments; separated by TAB). From the login on the
//! server's side is a multiplex of two channels: the command's output, and what it logged. Output
//! ends with an empty line and a line that says how the command went.
//!
//! A connection is a process of the host, so connections are kept and reused; a command on a kept
//! one saves the start of a process.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::Semaphore;

/// What we speak; the minor version is the one from which the server multiplexes its log.
const VERSION: &str = "VERSION\tdoveadm-server\t1\t2\n";
/// The only user that the service knows.
const LOGIN: &str = "doveadm";
/// Time limit of connecting and logging in.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// A connection that nobody used for so long is closed: it is a process of the host.
const IDLE_LIMIT: Duration = Duration::from_secs(50);
/// Most bytes of one answer: a mailbox of a million messages fits.
const MAX_OUTPUT: usize = 256 << 20;
/// Most bytes kept of what a command logged.
const MAX_LOG: usize = 16 << 10;
/// The channel of a command's output.
const OUTPUT_CHANNEL: u8 = 0;
/// The channel of its log.
const LOG_CHANNEL: u8 = b'L';
/// The letters of errors, fatal errors and panics in a log.
const ERROR_LEVELS: [char; 3] = ['\u{4}', '\u{5}', '\u{6}'];
/// What marks an escaped character in the host's tab-separated lines.
const ESCAPE: u8 = 1;

/// What can go wrong between us and the service.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody listens, or nobody answers.
    #[error("{target}: {why}; is Dovecot's doveadm service there?")]
    Connect {
        /// The service.
        target: String,
        /// What went wrong.
        why: std::io::Error,
    },
    /// The service wants a password, and not this one.
    #[error("{target}: login refused; password_file must hold its doveadm_password")]
    Login {
        /// The service.
        target: String,
    },
    /// It said what no doveadm-server says.
    #[error("{target}: unexpected answer {said:?}; is this a doveadm listener of Dovecot 2.3?")]
    Protocol {
        /// The service.
        target: String,
        /// What it said.
        said: String,
    },
    /// The connection ended while a command ran: it may or may not have been carried out.
    #[error("{target}: {command}: {why}")]
    Broken {
        /// The service.
        target: String,
        /// The command.
        command: String,
        /// What went wrong.
        why: std::io::Error,
    },
    /// The command took too long; it may still be running.
    #[error("{target}: {command}: no answer within {limit:?}")]
    Late {
        /// The service.
        target: String,
        /// The command.
        command: String,
        /// The time limit.
        limit: Duration,
    },
    /// The command failed.
    #[error("{target}: {command}: {status}{}{log}", if log.is_empty() { "" } else { ": " })]
    Failed {
        /// The service.
        target: String,
        /// The command.
        command: String,
        /// Its exit status by name, as "NOTFOUND"; "UNKNOWN" for one that has no name.
        status: String,
        /// What it logged.
        log: String,
    },
}

impl Error {
    /// Whether the command said that what it was about does not exist.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(self, Error::Failed { status, .. } if status == "NOTFOUND" || status == "NOUSER")
    }
}

/// Where a service listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A unix socket.
    Unix(PathBuf),
    /// Host and port.
    Tcp(String),
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Target::Unix(path) => write!(f, "{}", path.display()),
            Target::Tcp(place) => f.write_str(place),
        }
    }
}

/// Kept connections to one service.
pub struct Pool {
    target: Target,
    password: Option<String>,
    /// One permit per connection that may exist.
    permits: Semaphore,
    idle: Mutex<Vec<(Connection, Instant)>>,
}

impl Pool {
    /// At most `size` connections at a time.
    #[must_use]
    pub fn new(target: Target, password: Option<String>, size: usize) -> Pool {
        Pool {
            target,
            password,
            permits: Semaphore::new(size),
            idle: Mutex::new(Vec::new()),
        }
    }

    /// Where the service is.
    #[must_use]
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// Runs a command for a user and gives its output. `limit` counts from when it is sent.
    ///
    /// A command whose kept connection turns out to be dead is sent once more on a new one: all
    /// that we send may be carried out twice.
    ///
    /// # Errors
    /// When the service cannot be reached, or the command fails.
    pub async fn run(&self, user: &str, args: &[&str], limit: Duration) -> Result<String, Error> {
        // A closed semaphore would be the only failure, and nobody closes it.
        let _permit = self.permits.acquire().await;
        if let Some(kept) = self.kept() {
            match self.run_on(kept, user, args, limit).await {
                Err(Error::Broken { .. }) => {}
                done => return done,
            }
        }
        let fresh = self.connect().await?;
        self.run_on(fresh, user, args, limit).await
    }

    /// The connection used last; those that nobody used for long are closed.
    fn kept(&self) -> Option<Connection> {
        let mut idle = self.idle.lock();
        idle.retain(|(_, since)| since.elapsed() < IDLE_LIMIT);
        idle.pop().map(|(connection, _)| connection)
    }

    async fn connect(&self) -> Result<Connection, Error> {
        let connecting = Connection::open(&self.target, self.password.as_deref());
        match tokio::time::timeout(CONNECT_LIMIT, connecting).await {
            Ok(done) => done,
            Err(_) => Err(Error::Connect {
                target: self.target.to_string(),
                why: std::io::ErrorKind::TimedOut.into(),
            }),
        }
    }

    async fn run_on(
        &self,
        mut connection: Connection,
        user: &str,
        args: &[&str],
        limit: Duration,
    ) -> Result<String, Error> {
        let command = || args.first().copied().unwrap_or_default().to_owned();
        let target = || self.target.to_string();
        let line = command_line(user, args);
        let answer = match tokio::time::timeout(limit, connection.exchange(&line)).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(why)) => {
                return Err(Error::Broken {
                    target: target(),
                    command: command(),
                    why,
                });
            }
            Err(_) => {
                return Err(Error::Late {
                    target: target(),
                    command: command(),
                    limit,
                });
            }
        };
        let mut idle = self.idle.lock();
        idle.push((connection, Instant::now()));
        drop(idle);
        match answer.status.strip_prefix('-') {
            None => Ok(answer.output),
            Some(status) => Err(Error::Failed {
                target: target(),
                command: command(),
                status: status.into(),
                log: answer.log,
            }),
        }
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Sync + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Sync + Unpin> Stream for T {}

/// A connection on which we are logged in.
struct Connection {
    stream: Box<dyn Stream>,
    /// Bytes of frames that are not whole yet.
    raw: Vec<u8>,
}

/// What came of a command.
#[derive(Debug, PartialEq, Eq)]
struct Answer {
    output: String,
    /// "+", or "-" and the exit status.
    status: String,
    log: String,
}

impl Connection {
    async fn open(target: &Target, password: Option<&str>) -> Result<Connection, Error> {
        let refused = |why| Error::Connect {
            target: target.to_string(),
            why,
        };
        let stream: Box<dyn Stream> = match target {
            Target::Unix(path) => Box::new(UnixStream::connect(path).await.map_err(refused)?),
            Target::Tcp(place) => {
                let stream = TcpStream::connect(place).await.map_err(refused)?;
                // A command is one small packet, and somebody waits for its answer.
                stream.set_nodelay(true).map_err(refused)?;
                Box::new(stream)
            }
        };
        let mut connection = Connection {
            stream,
            raw: Vec::new(),
        };
        connection.log_in(target, password).await?;
        Ok(connection)
    }

    /// Until here the server speaks in plain lines.
    async fn log_in(&mut self, target: &Target, password: Option<&str>) -> Result<(), Error> {
        let refused = |why| Error::Connect {
            target: target.to_string(),
            why,
        };
        let strange = |said: String| Error::Protocol {
            target: target.to_string(),
            said,
        };
        self.send(VERSION).await.map_err(refused)?;
        let version = self.line().await.map_err(refused)?;
        if !version.starts_with("VERSION\tdoveadm-client\t1\t") {
            return Err(strange(version));
        }
        match self.line().await.map_err(refused)?.as_str() {
            "+" => return Ok(()),
            "-" => {}
            other => return Err(strange(other.into())),
        }
        let login = || Error::Login {
            target: target.to_string(),
        };
        let plain = format!("\0{LOGIN}\0{}", password.ok_or_else(login)?);
        self.send(&format!("PLAIN\t{}\n", base64(plain.as_bytes())))
            .await
            .map_err(refused)?;
        match self.line().await.map_err(refused)?.as_str() {
            "+" => Ok(()),
            _ => Err(login()),
        }
    }

    async fn send(&mut self, text: &str) -> std::io::Result<()> {
        self.stream.write_all(text.as_bytes()).await?;
        self.stream.flush().await
    }

    /// Reads more of what the server sends.
    async fn fill(&mut self) -> std::io::Result<()> {
        if self.stream.read_buf(&mut self.raw).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        if self.raw.len() > MAX_OUTPUT {
            return Err(std::io::Error::other("the answer is too long"));
        }
        Ok(())
    }

    /// A line of the part that is not multiplexed.
    async fn line(&mut self) -> std::io::Result<String> {
        loop {
            if let Some(end) = self.raw.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.raw.drain(..=end).collect();
                return Ok(String::from_utf8_lossy(&line[..end]).into_owned());
            }
            self.fill().await?;
        }
    }

    /// Sends a command and reads all that it answers.
    async fn exchange(&mut self, line: &str) -> std::io::Result<Answer> {
        self.send(line).await?;
        let (mut output, mut log) = (Vec::new(), Vec::new());
        loop {
            while let Some((channel, data)) = take_frame(&mut self.raw) {
                match channel {
                    OUTPUT_CHANNEL => output.extend_from_slice(&data),
                    LOG_CHANNEL if log.len() < MAX_LOG => log.extend_from_slice(&data),
                    _ => {}
                }
            }
            if output.len() > MAX_OUTPUT {
                return Err(std::io::Error::other("the answer is too long"));
            }
            if let Some(answer) = finished(&output, &log) {
                return Ok(answer);
            }
            self.fill().await?;
        }
    }
}

/// Takes the first frame, if it is there whole: the channel, the length (big endian), the data.
fn take_frame(raw: &mut Vec<u8>) -> Option<(u8, Vec<u8>)> {
    let (channel, rest) = raw.split_first()?;
    let (length, rest) = rest.split_first_chunk::<4>()?;
    let length = u32::from_be_bytes(*length) as usize;
    let frame = (*channel, rest.get(..length)?.to_vec());
    raw.drain(..5 + length);
    Some(frame)
}

/// The answer, once its last line is there. Output has no line ends of its own: they are escaped.
fn finished(output: &[u8], log: &[u8]) -> Option<Answer> {
    let last = output.strip_suffix(b"\n")?;
    let end = last.iter().position(|b| *b == b'\n')?;
    let fields = last[..end].strip_suffix(b"\t").unwrap_or(&last[..end]);
    Some(Answer {
        output: String::from_utf8_lossy(&unescape(fields)).into_owned(),
        status: String::from_utf8_lossy(&last[end + 1..]).into_owned(),
        log: log_text(log),
    })
}

/// What the log says of errors; a letter before each line tells its level.
fn log_text(log: &[u8]) -> String {
    let text = String::from_utf8_lossy(log);
    let errors = text
        .lines()
        .filter_map(|line| line.strip_prefix(ERROR_LEVELS));
    errors.collect::<Vec<_>>().join("; ")
}

/// A command as the service reads it: no flags, the user, the command and its arguments.
fn command_line(user: &str, args: &[&str]) -> String {
    let mut line = String::new();
    for field in [user].iter().chain(args) {
        line.push('\t');
        escape(field, &mut line);
    }
    line.push('\n');
    line
}

fn escape(field: &str, line: &mut String) {
    for c in field.chars() {
        match c {
            '\0' => line.push_str("\u{1}0"),
            '\u{1}' => line.push_str("\u{1}1"),
            '\t' => line.push_str("\u{1}t"),
            '\r' => line.push_str("\u{1}r"),
            '\n' => line.push_str("\u{1}n"),
            _ => line.push(c),
        }
    }
}

fn unescape(field: &[u8]) -> Vec<u8> {
    let mut text = Vec::with_capacity(field.len());
    let mut bytes = field.iter();
    while let Some(byte) = bytes.next() {
        if *byte != ESCAPE {
            text.push(*byte);
            continue;
        }
        match bytes.next() {
            Some(b'0') => text.push(0),
            Some(b'1') => text.push(ESCAPE),
            Some(b't') => text.push(b'\t'),
            Some(b'r') => text.push(b'\r'),
            Some(b'n') => text.push(b'\n'),
            Some(other) => text.push(*other),
            None => {}
        }
    }
    text
}

/// RFC 4648, section 4.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let mut word = [0u8; 3];
        word[..group.len()].copy_from_slice(group);
        let word = u32::from_be_bytes([0, word[0], word[1], word[2]]);
        for digit in 0..4 {
            let index = (word >> (18 - 6 * digit)) & 63;
            text.push(match digit <= group.len() {
                true => char::from(DIGITS[index as usize]),
                false => '=',
            });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn base64_as_in_rfc_4648_section_10() {
        let vectors = [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ];
        for (plain, coded) in vectors {
            assert_eq!(base64(plain.as_bytes()), coded);
        }
    }

    #[test]
    fn a_command_is_a_line_of_flags_user_and_words() {
        let line = command_line("a\tb", &["xid", "look", "In\nbox"]);
        assert_eq!(line, "\ta\u{1}tb\txid\tlook\tIn\u{1}nbox\n");
    }

    #[test]
    fn an_answer_is_whole_with_its_last_line() {
        assert_eq!(finished(b"{\"a\":1}\t", b""), None);
        assert_eq!(finished(b"{\"a\":1}\t\n", b""), None);
        assert_eq!(finished(b"{\"a\":1}\t\n-NOT", b""), None);
        let answer = finished(b"a\x01tb\t\n+\n", b"\x04one\n\x03two\n\x05three\n").expect("whole");
        assert_eq!(answer.output, "a\tb");
        assert_eq!(answer.status, "+");
        assert_eq!(answer.log, "one; three");
    }

    #[test]
    fn an_answer_without_output_has_a_status() {
        assert_eq!(
            finished(b"\n-NOTFOUND\n", b"").expect("whole").status,
            "-NOTFOUND"
        );
    }

    proptest! {
        #[test]
        fn fields_come_back_from_their_escapes(field in ".{0,40}") {
            let mut escaped = String::new();
            escape(&field, &mut escaped);
            prop_assert!(!escaped.contains(['\t', '\n']));
            prop_assert_eq!(unescape(escaped.as_bytes()), field.into_bytes());
        }

        #[test]
        fn frames_come_back_however_they_are_cut(cut in 0usize..14) {
            let whole = b"\0\0\0\0\x02ab\x4c\0\0\0\x01x".to_vec();
            let mut raw = whole[..cut.min(whole.len())].to_vec();
            let mut frames: Vec<_> = std::iter::from_fn(|| take_frame(&mut raw)).collect();
            raw.extend_from_slice(&whole[cut.min(whole.len())..]);
            frames.extend(std::iter::from_fn(|| take_frame(&mut raw)));
            prop_assert_eq!(frames, vec![(0, b"ab".to_vec()), (b'L', b"x".to_vec())]);
        }
    }
}
