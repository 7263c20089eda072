//! What a client says that it knows (spec part 4).

use std::collections::BTreeMap;
use std::fmt;

use super::{Error, Quoted, Xid, parse_number};

/// "I know every message up to this UID" of the mailbox with this UIDVALIDITY.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// UIDVALIDITY of the mailbox that the mark is about, never 0.
    pub uidvalidity: u32,
    /// The highest UID that is known; 0 in a mailbox that never had a message.
    pub uid: u32,
}

impl Mark {
    /// Parses `"@" uidvalidity "-" uid`.
    pub fn parse(text: &[u8]) -> Result<Self, Error> {
        Self::parse_inner(text).ok_or_else(|| Error::Mark(Quoted::new(text)))
    }

    fn parse_inner(text: &[u8]) -> Option<Self> {
        let body = text.strip_prefix(b"@")?;
        let dash = body.iter().position(|&b| b == b'-')?;
        let uidvalidity = parse_u32(&body[..dash]).filter(|&v| v > 0)?;
        let uid = parse_u32(&body[dash + 1..])?;
        Some(Mark { uidvalidity, uid })
    }
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "@{}-{}", self.uidvalidity, self.uid)
    }
}

fn parse_u32(digits: &[u8]) -> Option<u32> {
    parse_number(digits, u64::from(u32::MAX)).and_then(|n| u32::try_from(n).ok())
}

/// A known state: for each namespace the highest number seen, and perhaps a mark.
///
/// An empty state means "I know nothing".
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct State {
    numbers: BTreeMap<Box<str>, u64>,
    mark: Option<Mark>,
}

impl State {
    /// The state of a client that knows nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Parses items separated by single spaces; nothing at all is the empty state.
    pub fn parse(text: &[u8]) -> Result<Self, Error> {
        let mut state = State::new();
        if text.is_empty() {
            return Ok(state);
        }
        for item in text.split(|&b| b == b' ') {
            state.add(item)?;
        }
        Ok(state)
    }

    /// Adds one item, an XID or a mark. Of a namespace that is named twice the highest number
    /// counts; a second mark is an error.
    pub fn add(&mut self, item: &[u8]) -> Result<(), Error> {
        match item.first() {
            None => Err(Error::EmptyItem),
            Some(b'@') => self.add_mark(item),
            Some(_) => {
                let xid = Xid::parse(item)?;
                self.raise(xid);
                Ok(())
            }
        }
    }

    fn add_mark(&mut self, item: &[u8]) -> Result<(), Error> {
        let mark = Mark::parse(item)?;
        if self.mark.is_some() {
            return Err(Error::SecondMark(Quoted::new(item)));
        }
        self.mark = Some(mark);
        Ok(())
    }

    /// Notes that this XID was seen.
    pub fn raise(&mut self, xid: Xid<'_>) {
        match self.numbers.get_mut(xid.namespace()) {
            Some(number) => *number = xid.number().max(*number),
            None => {
                self.numbers.insert(xid.namespace().into(), xid.number());
            }
        }
    }

    /// The highest number known of a namespace; 0 when the state does not name it.
    pub fn number(&self, namespace: &str) -> u64 {
        self.numbers.get(namespace).copied().unwrap_or(0)
    }

    /// The mark, if the client sent one.
    pub fn mark(&self) -> Option<Mark> {
        self.mark
    }

    /// Sets or clears the mark.
    pub fn set_mark(&mut self, mark: Option<Mark>) {
        self.mark = mark;
    }

    /// How many namespaces the state names.
    pub fn namespaces(&self) -> usize {
        self.numbers.len()
    }

    /// The highest XIDs, in the order of their namespaces.
    pub fn iter(&self) -> impl Iterator<Item = Xid<'_>> {
        self.numbers
            .iter()
            .map(|(namespace, &number)| Xid { namespace, number })
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut space = "";
        for xid in self.iter() {
            write!(f, "{space}{xid}")?;
            space = " ";
        }
        match self.mark {
            Some(mark) => write!(f, "{space}{mark}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_names_the_highest_number_of_each_namespace() {
        let state = State::parse(b"foo-1235 bar-7 foo-12 @1795460000-11 baz-1").unwrap();
        assert_eq!(state.number("foo"), 1235);
        assert_eq!(state.number("Foo"), 0, "namespaces are case-sensitive");
        assert_eq!(state.number("nowhere"), 0);
        assert_eq!(
            state.mark(),
            Some(Mark {
                uidvalidity: 1_795_460_000,
                uid: 11
            })
        );
        assert_eq!(state.to_string(), "bar-7 baz-1 foo-1235 @1795460000-11");
    }

    #[test]
    fn no_state_at_all_means_i_know_nothing() {
        assert_eq!(State::parse(b"").unwrap(), State::new());
        assert_eq!(State::new().to_string(), "");
    }

    #[test]
    fn the_mark_of_an_empty_mailbox_has_uid_0() {
        assert_eq!(
            Mark::parse(b"@1-0").unwrap(),
            Mark {
                uidvalidity: 1,
                uid: 0
            }
        );
    }

    #[test]
    fn what_is_no_state_is_refused_with_what_was_expected() {
        for bad in [
            " ",
            "foo-1 ",
            " foo-1",
            "foo-1  bar-1",
            "foo",
            "@",
            "@1",
            "@0-1",
            "@1-",
            "@01-1",
            "@1-01",
            "@4294967296-1",
            "@1-4294967296",
            "@1-1 @1-1",
            "@1-1-1",
            "foo-1,bar-1",
        ] {
            let error = State::parse(bad.as_bytes()).unwrap_err().to_string();
            assert!(error.contains("expected"), "{bad:?}: {error}");
        }
    }

    #[test]
    fn a_state_of_thousands_of_namespaces_is_fine() {
        let text: Vec<String> = (1..=5000).map(|i| format!("node{i}-{i}")).collect();
        let state = State::parse(text.join(" ").as_bytes()).unwrap();
        assert_eq!((state.namespaces(), state.number("node4711")), (5000, 4711));
    }
}
