//! A scanner on a client's wire: no line may carry a UID above the watermark.
//!
//! It runs on every IMAP client of a server whose `xid_uid_source` is `table`, and fails the test
//! at the first line that leaks; clients that are programs of their own talk to the server through a
//! [`super::relay`]. It does not ask the code under test what the watermark is: it
//! keeps its own record. A mailbox starts at 0; `server.advance` moves record and server; a test
//! that moves the watermark by other means calls `server.note_watermark` *before* it does, and
//! also when a mailbox had messages before the mode was switched on.
//!
//! What is looked at: the UID item of FETCH, SEARCH/SORT/THREAD answers to UID commands, ESEARCH
//! (also of a CONTEXT), VANISHED, UIDNEXT in SELECT, EXAMINE and STATUS, APPENDUID, COPYUID, MODIFIED
//! of a UID STORE, `;UID=` in GENURLAUTH, the mark in the state of XHXID. A line that came late is
//! judged by the watermark of the moment at which it is read, so a test that wants to be strict
//! reads all before it advances.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::reply::{Fetch, Line};

/// What the test knows of watermarks: (user, mailbox) -> UID.
#[derive(Clone, Default)]
pub struct Watermarks(Arc<Mutex<HashMap<(String, String), u32>>>);

impl Watermarks {
    pub fn get(&self, user: &str, mailbox: &str) -> u32 {
        let key = (user.to_owned(), mailbox_name(mailbox));
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&key)
            .copied()
            .unwrap_or(0)
    }

    /// Raises it; a watermark never goes down.
    pub fn raise(&self, user: &str, mailbox: &str, uid: u32) {
        let key = (user.to_owned(), mailbox_name(mailbox));
        let mut map = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mark = map.entry(key).or_insert(0);
        *mark = uid.max(*mark);
    }

    /// The mailbox was deleted: the next one of its name starts at 0.
    pub fn forget(&self, user: &str, mailbox: &str) {
        let key = (user.to_owned(), mailbox_name(mailbox));
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&key);
    }

    /// The mailbox was renamed and took its watermark along.
    pub fn rename(&self, user: &str, from: &str, to: &str) {
        let mut map = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(mark) = map.remove(&(user.to_owned(), mailbox_name(from))) {
            map.insert((user.to_owned(), mailbox_name(to)), mark);
        }
    }
}

/// Without quotes; INBOX in upper case.
fn mailbox_name(name: &str) -> String {
    let name = name.trim_matches('"');
    if name.eq_ignore_ascii_case("inbox") {
        "INBOX".into()
    } else {
        name.into()
    }
}

struct Command {
    tag: String,
    /// Upper case, a leading UID or XHXID removed.
    name: String,
    by_uid: bool,
    mailbox: Option<String>,
}

/// Follows one connection.
pub struct Scanner {
    marks: Watermarks,
    user: String,
    selected: Option<String>,
    open: Vec<Command>,
}

impl Scanner {
    pub fn new(marks: Watermarks, user: &str) -> Scanner {
        Scanner {
            marks,
            user: user.into(),
            selected: None,
            open: Vec::new(),
        }
    }

    /// Notes the commands in what the client sends.
    pub fn sent(&mut self, bytes: &[u8]) {
        for line in String::from_utf8_lossy(bytes).split("\r\n") {
            if let Some(command) = Command::parse(line) {
                self.open.push(command);
            }
        }
    }

    /// Judges a line from the server.
    ///
    /// # Panics
    /// When it carries a UID above the watermark.
    pub fn received(&mut self, line: &Line) {
        if let Some(leak) = self.judge(line) {
            panic!("{leak}");
        }
    }

    /// The same, telling what is wrong with it.
    pub fn judge(&mut self, line: &Line) -> Option<String> {
        let text = line.text();
        let leak = self.leak(line, &text);
        self.follow(&text);
        leak.map(|leak| {
            let user = &self.user;
            format!("a UID above the watermark was sent to {user}: {leak}\nline: {text}")
        })
    }

    /// Which mailbox is selected, after this line.
    fn follow(&mut self, text: &str) {
        if text.starts_with("* OK [CLOSED]") {
            self.selected = None;
            return;
        }
        let mut words = text.split(' ');
        let tag = words.next().unwrap_or("");
        let Some(at) = self.open.iter().position(|c| c.tag == tag) else {
            return;
        };
        let command = self.open.remove(at);
        let ok = words.next() == Some("OK");
        match command.name.as_str() {
            "SELECT" | "EXAMINE" => self.selected = command.mailbox.filter(|_| ok),
            "CLOSE" | "UNSELECT" if ok => self.selected = None,
            _ => {}
        }
    }

    /// The selected mailbox, or the one that is being selected.
    fn current(&self) -> Option<String> {
        self.selected.clone().or_else(|| {
            let selecting = |c: &&Command| c.name == "SELECT" || c.name == "EXAMINE";
            self.open
                .iter()
                .find(selecting)
                .and_then(|c| c.mailbox.clone())
        })
    }

    fn mark_of(&self, mailbox: &str) -> u32 {
        self.marks.get(&self.user, mailbox)
    }

    fn leak(&self, line: &Line, text: &str) -> Option<String> {
        if let Some(code) = response_code(text)
            && let Some(leak) = self.leak_in_code(text, &code)
        {
            return Some(leak);
        }
        if !text.starts_with("* ") {
            return None;
        }
        match line.keyword().as_str() {
            "STATUS" => self.leak_in_status(text),
            "GENURLAUTH" => self.leak_in_urls(text),
            keyword => {
                let mark = self.mark_of(&self.current()?);
                let top = match keyword {
                    "FETCH" => Fetch::parse(line)?.uid()?,
                    "SEARCH" | "SORT" | "THREAD" if self.answers_in_uids() => {
                        highest(text.split_once(" (MODSEQ").map_or(text, |(head, _)| head))
                    }
                    "ESEARCH" => esearch_highest(text),
                    "VANISHED" => highest(text),
                    _ => 0,
                };
                above(top, mark)
            }
        }
    }

    /// Whether all searches under way are UID ones: which of several an untagged line answers
    /// cannot be told.
    fn answers_in_uids(&self) -> bool {
        let mut searches = self
            .open
            .iter()
            .filter(|c| matches!(c.name.as_str(), "SEARCH" | "SORT" | "THREAD"));
        let first = searches.next().is_some_and(|c| c.by_uid);
        first && searches.all(|c| c.by_uid)
    }

    fn leak_in_code(&self, text: &str, code: &str) -> Option<String> {
        let mut words = code.split(' ');
        let name = words.next()?.to_ascii_uppercase();
        let words: Vec<&str> = words.collect();
        let tag = text.split(' ').next()?;
        let command = self.open.iter().find(|c| c.tag == tag);
        match name.as_str() {
            "UIDNEXT" => {
                let next: u32 = words.first()?.parse().ok()?;
                above(next.saturating_sub(1), self.mark_of(&self.current()?))
            }
            "APPENDUID" => above(
                highest(words.get(1)?),
                self.mark_of(command?.mailbox.as_ref()?),
            ),
            "COPYUID" => {
                let moving = |c: &&Command| c.name == "MOVE" || c.name == "COPY";
                let command = command.or_else(|| self.open.iter().find(moving))?;
                let from = above(highest(words.get(1)?), self.mark_of(&self.current()?));
                let to = self.mark_of(command.mailbox.as_ref()?);
                from.or_else(|| above(highest(words.get(2).unwrap_or(&"")), to))
            }
            "MODIFIED" if command.is_some_and(|c| c.by_uid) => {
                above(highest(words.first()?), self.mark_of(&self.current()?))
            }
            "XHXID" => {
                let mark = words
                    .iter()
                    .find_map(|w| w.strip_prefix('@')?.split_once('-'))?;
                above(highest(mark.1), self.mark_of(&self.current()?))
            }
            _ => None,
        }
    }

    fn leak_in_status(&self, text: &str) -> Option<String> {
        let rest = text.strip_prefix("* STATUS ")?;
        let open = rest.rfind(" (")?;
        let upper = rest[open..].to_ascii_uppercase();
        let (_, after) = upper.split_once("UIDNEXT ")?;
        let next: u32 = after.split([' ', ')']).next()?.parse().ok()?;
        above(next.saturating_sub(1), self.mark_of(&rest[..open]))
    }

    fn leak_in_urls(&self, text: &str) -> Option<String> {
        let at = text.to_ascii_uppercase().find(";UID=")?;
        let uid = text[at + 5..]
            .split(|c: char| !c.is_ascii_digit())
            .next()?
            .parse()
            .ok()?;
        let path = text[..at].trim_end_matches('/');
        let path = path.split_once("://").map_or(path, |(_, rest)| rest);
        let mailbox = path.split_once('/').map_or(path, |(_, mailbox)| mailbox);
        let mailbox = mailbox.split(';').next()?;
        above(uid, self.mark_of(mailbox))
    }
}

impl Command {
    fn parse(line: &str) -> Option<Command> {
        let mut words = line.split(' ');
        let tag = words.next()?.to_owned();
        let mut name = words.next()?.to_ascii_uppercase();
        let by_uid = name == "UID";
        if by_uid || (name == "XHXID") {
            match words.next() {
                Some(word) => name = word.to_ascii_uppercase(),
                None => {
                    return Some(Command {
                        tag,
                        name,
                        by_uid,
                        mailbox: None,
                    });
                }
            }
        }
        let rest: Vec<&str> = words.collect();
        let mailbox = match name.as_str() {
            "SELECT" | "EXAMINE" | "APPEND" => quoted_or_word(&rest),
            "COPY" | "MOVE" => quoted_or_word(rest.get(1..).unwrap_or(&[])),
            _ => None,
        };
        Some(Command {
            tag,
            name,
            by_uid,
            mailbox,
        })
    }
}

/// The first argument, whose quotes may hold spaces.
fn quoted_or_word(words: &[&str]) -> Option<String> {
    let first = words.first()?;
    if !first.starts_with('"') {
        return Some(mailbox_name(first));
    }
    let joined = words.join(" ");
    Some(mailbox_name(joined[1..].split('"').next()?))
}

/// What is in the brackets of `tag OK [...]` or `* OK [...]`.
fn response_code(text: &str) -> Option<String> {
    let mut words = text.splitn(3, ' ');
    let (_, status, rest) = (words.next()?, words.next()?, words.next()?);
    if !matches!(status, "OK" | "NO" | "BAD") {
        return None;
    }
    Some(rest.strip_prefix('[')?.split(']').next()?.to_owned())
}

/// The highest number in a text (a UID set, a search answer, a thread).
fn highest(text: &str) -> u32 {
    text.split(|c: char| !c.is_ascii_digit())
        .filter_map(|n| n.parse().ok())
        .max()
        .unwrap_or(0)
}

/// The highest UID in an ESEARCH line that is about UIDs.
fn esearch_highest(text: &str) -> u32 {
    let Some((_, data)) = text.split_once(')') else {
        return 0;
    };
    let Some(data) = data.trim_start().strip_prefix("UID") else {
        return 0;
    };
    let mut top = 0;
    let words: Vec<&str> = data
        .split([' ', '(', ')'])
        .filter(|w| !w.is_empty())
        .collect();
    let mut position_next = false;
    let mut i = 0;
    while i < words.len() {
        match words[i].to_ascii_uppercase().as_str() {
            "COUNT" | "MODSEQ" | "PARTIAL" => i += 1,
            "ADDTO" | "REMOVEFROM" => position_next = true,
            _ if position_next => position_next = false,
            word => {
                top = top.max(highest(word));
                // Positions and sets alternate in ADDTO and REMOVEFROM.
                position_next = data.contains("ADDTO") || data.contains("REMOVEFROM");
            }
        }
        i += 1;
    }
    top
}

fn above(uid: u32, mark: u32) -> Option<String> {
    (uid > mark).then(|| format!("UID {uid}, watermark {mark}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(mark: u32, command: &str, line: &str) -> bool {
        let marks = Watermarks::default();
        marks.raise("u", "INBOX", mark);
        let mut scanner = Scanner::new(marks, "u");
        scanner.selected = Some("INBOX".into());
        scanner.sent(format!("a1 {command}\r\n").as_bytes());
        let line = Line(line.as_bytes().to_vec());
        scanner.leak(&line, &line.text()).is_some()
    }

    #[test]
    fn the_scanner_sees_every_line_that_leaks() {
        for (command, line) in [
            ("FETCH 1 (UID)", "* 1 FETCH (UID 6 FLAGS ())"),
            ("STORE 1 FLAGS ()", "* 1 FETCH (FLAGS (\\Seen) UID 6)"),
            ("UID SEARCH ALL", "* SEARCH 1 6"),
            ("UID SORT (DATE) UTF-8 ALL", "* SORT 6 1"),
            ("UID THREAD REFERENCES UTF-8 ALL", "* THREAD (1 (2)(6))"),
            (
                "UID SEARCH RETURN (ALL) ALL",
                "* ESEARCH (TAG \"a1\") UID ALL 1:6",
            ),
            (
                "UID SEARCH RETURN (MAX) ALL",
                "* ESEARCH (TAG \"a1\") UID MAX 6 COUNT 2",
            ),
            ("NOOP", "* ESEARCH (TAG \"a0\") UID ADDTO (0 6)"),
            ("NOOP", "* VANISHED 3:6"),
            ("SELECT INBOX", "* OK [UIDNEXT 7] Predicted next UID"),
            (
                "STATUS INBOX (UIDNEXT)",
                "* STATUS INBOX (MESSAGES 3 UIDNEXT 7)",
            ),
            ("APPEND inbox {3+}", "a1 OK [APPENDUID 17 6] done"),
            ("COPY 1 INBOX", "a1 OK [COPYUID 17 1 6] done"),
            ("MOVE 1 INBOX", "* OK [COPYUID 17 1 6] moved"),
            ("UID STORE 6 FLAGS ()", "a1 OK [MODIFIED 6] done"),
            ("XHXID", "a1 OK [XHXID foo-6 @17-6] done"),
            (
                "GENURLAUTH x INTERNAL",
                "* GENURLAUTH imap://u@h/INBOX/;UID=6;URLAUTH=x",
            ),
        ] {
            assert!(judge(5, command, line), "not seen: {line}");
            assert!(!judge(6, command, line), "seen where there is none: {line}");
        }
    }

    #[test]
    fn numbers_that_are_no_uids_pass() {
        for (command, line) in [
            ("SEARCH ALL", "* SEARCH 1 6"),
            ("FETCH 6 (FLAGS)", "* 6 FETCH (FLAGS () MODSEQ (99))"),
            (
                "UID SEARCH RETURN (COUNT) ALL",
                "* ESEARCH (TAG \"a1\") UID COUNT 6",
            ),
            ("NOOP", "* ESEARCH (TAG \"a0\") UID ADDTO (9 5)"),
            ("SEARCH RETURN (ALL) ALL", "* ESEARCH (TAG \"a1\") ALL 1:9"),
            ("UID SEARCH MODSEQ 1", "* SEARCH 1 5 (MODSEQ 77)"),
            ("NOOP", "* 6 EXISTS"),
            ("STATUS Other (MESSAGES)", "* STATUS Other (MESSAGES 9)"),
            ("XHXID", "* XHXID foo-99"),
        ] {
            assert!(!judge(5, command, line), "seen where there is none: {line}");
        }
    }
}
