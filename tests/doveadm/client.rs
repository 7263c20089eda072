//! A connection to a doveadm server: many commands, one after another.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;

use crate::harness::LIMIT;

/// What a command gave: its exit code's name ("" when it went well) and its only field.
#[derive(Debug)]
pub struct Reply {
    pub failed: String,
    pub field: String,
}

pub struct Doveadm {
    read: BufReader<Box<dyn Read>>,
    write: Box<dyn Write>,
}

impl Doveadm {
    /// Through the server's own socket.
    pub fn unix(path: &Path) -> Doveadm {
        let socket = UnixStream::connect(path).expect("the doveadm server's socket");
        socket.set_read_timeout(Some(LIMIT)).expect("a limit");
        let read = Box::new(socket.try_clone().expect("a second handle"));
        Doveadm::greet(read, Box::new(socket), None)
    }

    /// Through a TCP listener, with the password as base64 of "\0doveadm\0password".
    pub fn tcp(address: SocketAddr, password: &str) -> Doveadm {
        let socket = TcpStream::connect(address).expect("the doveadm listener");
        socket.set_read_timeout(Some(LIMIT)).expect("a limit");
        socket.set_nodelay(true).expect("no delay");
        let read = Box::new(socket.try_clone().expect("a second handle"));
        Doveadm::greet(read, Box::new(socket), Some(password))
    }

    fn greet(read: Box<dyn Read>, write: Box<dyn Write>, password: Option<&str>) -> Doveadm {
        let mut connection = Doveadm {
            read: BufReader::new(read),
            write,
        };
        connection.send("VERSION\tdoveadm-server\t1\t0\n");
        let greeting = connection.line();
        if let Some(password) = password {
            assert_eq!(greeting, "-", "a password is wanted");
            connection.send(&format!("PLAIN\t{password}\n"));
            assert_eq!(connection.line(), "+", "the password is right");
        } else {
            assert_eq!(greeting, "+");
        }
        connection
    }

    fn send(&mut self, line: &str) {
        self.write.write_all(line.as_bytes()).expect("sent");
    }

    /// None when the server closed the connection.
    fn try_line(&mut self) -> Option<String> {
        let mut line = String::new();
        match self.read.read_line(&mut line) {
            Ok(_) if line.ends_with('\n') => Some(line.trim_end_matches('\n').to_owned()),
            _ => None,
        }
    }

    fn line(&mut self) -> String {
        self.try_line()
            .expect("an answer, not an end of the connection")
    }

    /// Runs a command ("xid look") for a user.
    pub fn run(&mut self, user: &str, command: &str, args: &[&str]) -> Reply {
        self.start(user, command, args);
        self.finish()
            .unwrap_or_else(|| panic!("{command} {args:?}: the connection ended"))
    }

    /// Sends a command.
    pub fn start(&mut self, user: &str, command: &str, args: &[&str]) {
        let words = [&["", user, command], args].concat();
        let words: Vec<String> = words.iter().map(|word| escape(word)).collect();
        self.send(&format!("{}\n", words.join("\t")));
    }

    /// Waits for its answer; None when the connection ended before.
    pub fn finish(&mut self) -> Option<Reply> {
        let field = self.try_line()?;
        let result = self.try_line()?;
        assert!(result.starts_with(['+', '-']), "{field:?} {result:?}");
        Some(Reply {
            failed: result[1..].to_owned(),
            field: unescape(field.trim_end_matches('\t')),
        })
    }
}

/// As the protocol escapes what separates its fields.
fn escape(word: &str) -> String {
    word.replace('\x01', "\x011")
        .replace('\t', "\x01t")
        .replace('\n', "\x01n")
        .replace('\r', "\x01r")
}

fn unescape(field: &str) -> String {
    field
        .replace("\x01t", "\t")
        .replace("\x01n", "\n")
        .replace("\x01r", "\r")
        .replace("\x011", "\x01")
}
