//! A POP3 client.

use std::net::SocketAddr;

use super::wire::Wire;

/// One connection, logged in.
pub struct Pop3 {
    wire: Wire,
}

impl Pop3 {
    pub(super) fn connect(address: SocketAddr) -> Pop3 {
        let wire = Wire::connect(address).unwrap_or_else(|e| panic!("connect {address}: {e}"));
        let mut client = Pop3 { wire };
        let greeting = client.line();
        assert!(greeting.starts_with("+OK"), "{greeting}");
        client
    }

    pub(super) fn login(&mut self, user: &str) {
        self.ok(&format!("USER {user}"));
        self.ok("PASS pass");
    }

    /// Sends a line without waiting for its answer.
    pub fn send(&mut self, line: &str) {
        self.wire
            .send(format!("{line}\r\n").as_bytes())
            .expect("the connection holds");
    }

    /// Sends a line and gives the first line of the answer.
    pub fn cmd(&mut self, line: &str) -> String {
        self.send(line);
        self.line()
    }

    /// The same, insisting on +OK.
    pub fn ok(&mut self, line: &str) -> String {
        let answer = self.cmd(line);
        assert!(answer.starts_with("+OK"), "{line}: {answer}");
        answer
    }

    /// A command whose answer goes on up to a dot: the lines between.
    pub fn list(&mut self, line: &str) -> Vec<String> {
        self.ok(line);
        let mut lines = Vec::new();
        loop {
            let line = self.line();
            if line == "." {
                return lines;
            }
            lines.push(line);
        }
    }

    /// The next line.
    pub fn line(&mut self) -> String {
        let line = self
            .wire
            .read_line()
            .expect("a line in time")
            .expect("no end yet");
        String::from_utf8_lossy(&line).trim_end().to_owned()
    }

    /// Whether a line has arrived.
    pub fn has_line(&mut self) -> bool {
        self.wire.has_line().unwrap_or(true)
    }
}
