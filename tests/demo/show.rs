//! What the reader sees: titles, notes, and both sides of the wire.

use std::io::IsTerminal;

use crate::harness::{Imap, Reply, Tag};

/// How wide notes are set, in characters.
const WIDTH: usize = 92;
/// More lines of one answer than this are not shown.
const LINES: usize = 8;

const BOLD: &str = "1";
const CLIENT: &str = "1;32";
const SERVER: &str = "36";
const NOTE: &str = "2";
const GOOD: &str = "32";

/// A stage; coloured where a person looks on.
pub struct Show {
    color: bool,
}

impl Show {
    pub fn new() -> Show {
        let wanted = std::env::var_os("NO_COLOR").is_none();
        Show {
            color: wanted && std::io::stdout().is_terminal(),
        }
    }

    fn paint(&self, style: &str, text: &str) -> String {
        match self.color {
            true => format!("\x1b[{style}m{text}\x1b[0m"),
            false => text.to_owned(),
        }
    }

    pub fn title(&self, text: &str) {
        println!("\n{}\n", self.paint(BOLD, text));
    }

    /// A new subject: what it is, and why one would want it.
    pub fn step(&self, what: &str, why: &str) {
        println!("\n{}", self.paint(BOLD, what));
        self.note(why);
    }

    /// Text between the commands.
    pub fn note(&self, text: &str) {
        for line in wrapped(text) {
            println!("  {}", self.paint(NOTE, &line));
        }
    }

    /// Sends a command, shows it with its explanation, and shows the whole answer.
    pub fn command(&self, client: &mut Imap, command: &str, why: &str) -> Reply {
        let tag = self.sent(client, command, why);
        let reply = client.wait(&tag);
        self.received(&tag, &reply);
        reply
    }

    /// Sends a command and shows it; its answer comes later.
    pub fn sent(&self, client: &mut Imap, command: &str, why: &str) -> Tag {
        client.take_untagged();
        let tag = client.send(command);
        let line = format!("C: {} {command}", tag.0);
        println!(
            "    {}   {}",
            self.paint(CLIENT, &line),
            self.paint(NOTE, &format!("<- {why}"))
        );
        tag
    }

    /// Shows an answer: its first lines, and the tagged one.
    pub fn received(&self, tag: &Tag, reply: &Reply) {
        let lines: Vec<String> = reply.lines.iter().map(|line| flat(&line.0)).collect();
        let hidden = lines.len().saturating_sub(LINES);
        let (first, last) = match hidden {
            0 => (lines.len(), 0),
            _ => (LINES - 2, 2),
        };
        for line in &lines[..first] {
            self.server(line);
        }
        if hidden > 0 {
            self.note(&format!(
                "   ... {} lines more ...",
                lines.len() - first - last
            ));
        }
        for line in &lines[lines.len() - last..] {
            self.server(line);
        }
        self.server(&format!("{} {} {}", tag.0, reply.status, reply.text));
    }

    /// A line of the server's.
    pub fn server(&self, line: &str) {
        println!("    {}", self.paint(SERVER, &format!("S: {line}")));
    }

    /// Insists on something.
    ///
    /// # Panics
    /// When it is not so: the demonstration has failed.
    pub fn check(&self, what: &str, holds: bool) {
        assert!(holds, "the demonstration went wrong: expected {what}");
        println!("    {}", self.paint(GOOD, &format!("   ok: {what}")));
    }
}

/// A server's line on one line: literals and other line ends are shown as such.
fn flat(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).replace("\r\n", "\\r\\n")
}

/// Text broken into lines of [`WIDTH`].
fn wrapped(text: &str) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let line = lines.len() - 1;
        if !lines[line].is_empty() && lines[line].len() + 1 + word.len() > WIDTH {
            lines.push(word.to_owned());
        } else {
            let gap = if lines[line].is_empty() { "" } else { " " };
            lines[line].push_str(gap);
            lines[line].push_str(word);
        }
    }
    lines
}
