//! What an IMAP server says, taken apart.

use std::borrow::Cow;
use std::fmt;

/// One line with its literals, without the last CRLF.
#[derive(Clone, PartialEq, Eq)]
pub struct Line(pub Vec<u8>);

impl Line {
    pub fn text(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.0)
    }

    pub fn starts_with(&self, text: &str) -> bool {
        self.0.starts_with(text.as_bytes())
    }

    pub fn contains(&self, text: &str) -> bool {
        self.text().contains(text)
    }

    /// The word after "*", or after "* n" where the line begins with a number.
    pub fn keyword(&self) -> String {
        let text = self.text();
        let mut words = text.split([' ', '\r']).skip(1);
        let first = words.next().unwrap_or("");
        let word = if first.parse::<u32>().is_ok() {
            words.next().unwrap_or("")
        } else {
            first
        };
        word.to_ascii_uppercase()
    }
}

impl fmt::Debug for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.text())
    }
}

/// The answer to one command.
#[derive(Clone, Debug)]
pub struct Reply {
    /// OK, NO or BAD.
    pub status: String,
    /// All after the status, a response code included.
    pub text: String,
    /// The untagged lines that came since the command before this one was answered.
    pub lines: Vec<Line>,
}

impl Reply {
    pub(super) fn parse(tagged: &Line, tag: &str, lines: Vec<Line>) -> Reply {
        let text = tagged.text()[tag.len()..].trim_start().to_owned();
        let (status, rest) = text.split_once(' ').unwrap_or((&text, ""));
        Reply {
            status: status.to_ascii_uppercase(),
            text: rest.into(),
            lines,
        }
    }

    pub fn is_ok(&self) -> bool {
        self.status == "OK"
    }

    /// What the tagged line has in `[name ...]`; "" for a code without arguments.
    pub fn code(&self, name: &str) -> Option<String> {
        code_in(&self.text, name)
    }

    /// The same of the first untagged `* OK [name ...]` line.
    pub fn untagged_code(&self, name: &str) -> Option<String> {
        let texts = self.lines.iter().map(|line| line.text().into_owned());
        texts
            .filter_map(|t| t.strip_prefix("* OK ").and_then(|t| code_in(t, name)))
            .next()
    }

    /// The untagged lines with this keyword (FETCH, EXISTS, SEARCH, XHXID, ...).
    pub fn untagged(&self, keyword: &str) -> Vec<&Line> {
        self.lines
            .iter()
            .filter(|line| line.keyword() == keyword)
            .collect()
    }

    /// What follows the keyword on the only line that has it.
    ///
    /// # Panics
    /// When there is none or several.
    pub fn only(&self, keyword: &str) -> String {
        let lines = self.untagged(keyword);
        assert_eq!(lines.len(), 1, "one {keyword} line expected in {self:#?}");
        let text = lines[0].text();
        let at = text
            .to_ascii_uppercase()
            .find(keyword)
            .expect("the keyword")
            + keyword.len();
        text[at..].trim().to_owned()
    }

    /// The words of all `* SEARCH` lines.
    pub fn search(&self) -> Vec<String> {
        self.words("SEARCH")
    }

    /// The same as numbers.
    pub fn search_numbers(&self) -> Vec<u32> {
        self.search()
            .iter()
            .map(|w| w.parse().expect("a number"))
            .collect()
    }

    /// What the `* XHXID <xid>` lines announce.
    pub fn announced(&self) -> Vec<String> {
        self.words("XHXID")
    }

    fn words(&self, keyword: &str) -> Vec<String> {
        let lines = self.untagged(keyword);
        lines
            .iter()
            .flat_map(|l| {
                l.text()
                    .split_whitespace()
                    .skip(2)
                    .map(str::to_owned)
                    .collect::<Vec<_>>()
            })
            .collect()
    }

    /// All FETCH lines, taken apart.
    pub fn fetches(&self) -> Vec<Fetch> {
        self.untagged("FETCH")
            .into_iter()
            .filter_map(Fetch::parse)
            .collect()
    }

    /// n of the last `* n EXISTS`.
    pub fn exists(&self) -> Option<u32> {
        self.untagged("EXISTS")
            .last()
            .and_then(|l| l.text().split(' ').nth(1)?.parse().ok())
    }
}

/// What `[name ...]` at the beginning of a text holds.
fn code_in(text: &str, name: &str) -> Option<String> {
    let inner = text.strip_prefix('[')?;
    let inner = &inner[..inner.find(']')?];
    let (word, rest) = inner.split_once(' ').unwrap_or((inner, ""));
    word.eq_ignore_ascii_case(name).then(|| rest.to_owned())
}

/// A value in a FETCH line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    Nil,
    Atom(String),
    Text(Vec<u8>),
    List(Vec<Value>),
}

impl Value {
    /// The text of an atom, a string or a literal.
    pub fn text(&self) -> String {
        match self {
            Value::Nil => "NIL".into(),
            Value::Atom(atom) => atom.clone(),
            Value::Text(bytes) => String::from_utf8_lossy(bytes).into_owned(),
            Value::List(list) => {
                let texts: Vec<String> = list.iter().map(Value::text).collect();
                format!("({})", texts.join(" "))
            }
        }
    }
}

/// `* n FETCH (...)`.
#[derive(Clone, Debug)]
pub struct Fetch {
    pub seq: u32,
    /// Names in upper case with their values, in the order in which they came.
    pub items: Vec<(String, Value)>,
}

impl Fetch {
    /// None for a line that is no well-formed FETCH.
    pub fn parse(line: &Line) -> Option<Fetch> {
        let mut cursor = Cursor {
            bytes: &line.0,
            at: 0,
        };
        cursor.expect(b"* ")?;
        let seq = cursor.atom()?.parse().ok()?;
        cursor.expect(b" FETCH (")?;
        let mut items = Vec::new();
        while cursor.peek()? != b')' {
            let name = cursor.item_name()?;
            cursor.expect(b" ")?;
            items.push((name, cursor.value()?));
            if cursor.peek()? == b' ' {
                cursor.at += 1;
            }
        }
        Some(Fetch { seq, items })
    }

    pub fn get(&self, name: &str) -> Option<&Value> {
        self.items.iter().find(|(n, _)| n == name).map(|(_, v)| v)
    }

    pub fn text(&self, name: &str) -> Option<String> {
        self.get(name).map(Value::text)
    }

    pub fn uid(&self) -> Option<u32> {
        self.text("UID")?.parse().ok()
    }

    pub fn xid(&self) -> Option<String> {
        self.text("XID")
    }

    pub fn flags(&self) -> Option<Vec<String>> {
        match self.get("FLAGS")? {
            Value::List(list) => Some(list.iter().map(Value::text).collect()),
            _ => None,
        }
    }
}

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Cursor<'_> {
    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn expect(&mut self, text: &[u8]) -> Option<()> {
        self.bytes[self.at..]
            .starts_with(text)
            .then(|| self.at += text.len())
    }

    fn atom(&mut self) -> Option<String> {
        let start = self.at;
        while !matches!(self.peek()?, b' ' | b'(' | b')') {
            self.at += 1;
        }
        Some(String::from_utf8_lossy(&self.bytes[start..self.at]).into_owned())
    }

    /// A name, where one part may be in brackets with anything in them: `BODY[HEADER.FIELDS (TO)]`.
    fn item_name(&mut self) -> Option<String> {
        let start = self.at;
        let mut depth = 0;
        loop {
            match self.peek()? {
                b'[' => depth += 1,
                b']' => depth -= 1,
                b' ' if depth == 0 => break,
                _ => {}
            }
            self.at += 1;
        }
        Some(String::from_utf8_lossy(&self.bytes[start..self.at]).to_ascii_uppercase())
    }

    fn value(&mut self) -> Option<Value> {
        match self.peek()? {
            b'(' => self.list(),
            b'"' => self.quoted(),
            b'{' | b'~' => self.literal(),
            _ => {
                let atom = self.atom()?;
                Some(if atom == "NIL" {
                    Value::Nil
                } else {
                    Value::Atom(atom)
                })
            }
        }
    }

    fn list(&mut self) -> Option<Value> {
        self.expect(b"(")?;
        let mut values = Vec::new();
        loop {
            match self.peek()? {
                b')' => {
                    self.at += 1;
                    return Some(Value::List(values));
                }
                b' ' => self.at += 1,
                _ => values.push(self.value()?),
            }
        }
    }

    fn quoted(&mut self) -> Option<Value> {
        self.expect(b"\"")?;
        let mut text = Vec::new();
        loop {
            let byte = self.peek()?;
            self.at += 1;
            match byte {
                b'"' => return Some(Value::Text(text)),
                b'\\' => {
                    text.push(self.peek()?);
                    self.at += 1;
                }
                other => text.push(other),
            }
        }
    }

    fn literal(&mut self) -> Option<Value> {
        if self.peek()? == b'~' {
            self.at += 1;
        }
        self.expect(b"{")?;
        let end = self.bytes[self.at..].iter().position(|&b| b == b'}')? + self.at;
        let size: usize = std::str::from_utf8(&self.bytes[self.at..end])
            .ok()?
            .parse()
            .ok()?;
        self.at = end + 1;
        self.expect(b"\r\n")?;
        let text = self.bytes.get(self.at..self.at + size)?.to_vec();
        self.at += size;
        Some(Value::Text(text))
    }
}
