//! XIDs, sets of XIDs and known states: parse and format (spec parts 1, 3 and 4). Pure.
//!
//! Everything here takes bytes as a client sent them and either gives a value or an error whose
//! text says what was expected, fit to be shown to that client after `BAD`.

mod set;
mod state;

pub use set::XidSet;
pub use state::{Mark, State};

use std::fmt;

/// The longest namespace, in octets (spec part 1: ALPHA and up to 62 more).
pub const NAMESPACE_MAX: usize = 63;

/// The highest number of an XID: it must fit the signed 64 bits that databases and languages have.
pub const NUMBER_MAX: u64 = i64::MAX as u64;

/// The longest XID in octets: namespace, dash, 19 digits.
pub const XID_MAX: usize = NAMESPACE_MAX + 1 + 19;

/// How much of a client's bad input an error repeats, so that no answer line grows without bound.
const QUOTE_MAX: usize = 40;

/// Why a text is no XID, no set or no state.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The namespace part is outside the grammar.
    #[error("{0}: expected a namespace: a letter, then at most 62 letters, digits, \".\" or \"_\"")]
    Namespace(Quoted),
    /// There is no dash, or nothing on one of its sides.
    #[error("{0}: expected an XID such as foo-12")]
    Xid(Quoted),
    /// The part behind the dash is not a number that an XID can have.
    #[error("{0}: expected a number from 1 to 9223372036854775807, without leading zeros")]
    Number(Quoted),
    /// A set holds a range or a star.
    #[error("{0}: expected XIDs separated by commas; ranges and \"*\" are not defined for XIDs")]
    Range(Quoted),
    /// A set holds nothing, or nothing between two commas.
    #[error("expected XIDs separated by commas, such as foo-1,bar-2")]
    EmptySet,
    /// The mark of a state is outside the grammar.
    #[error("{0}: expected a mark such as @1795460000-11 (\"@\", UIDVALIDITY, \"-\", UID)")]
    Mark(Quoted),
    /// A state has a second mark.
    #[error("{0}: expected one mark at most")]
    SecondMark(Quoted),
    /// A state has nothing between two spaces.
    #[error("expected a state such as foo-1234 bar-5678 @1795460000-11, one space between items")]
    EmptyItem,
    /// No namespace can be made of the host's name.
    #[error("the host's name is empty: set xid_namespace")]
    NoHost,
}

/// A piece of bad input, made printable and cut to a bounded length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quoted(String);

impl Quoted {
    /// Takes up to 40 octets of `input`; what is not printable ASCII becomes "?", since the text
    /// may go out in an IMAP response line.
    pub fn new(input: &[u8]) -> Self {
        let mut text: String = input
            .iter()
            .take(QUOTE_MAX)
            .map(|&b| {
                if b.is_ascii_graphic() || b == b' ' {
                    char::from(b)
                } else {
                    '?'
                }
            })
            .collect();
        if input.len() > QUOTE_MAX {
            text.push_str("...");
        }
        Quoted(text)
    }
}

impl fmt::Display for Quoted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            f.write_str("(nothing)")
        } else {
            f.write_str(&self.0)
        }
    }
}

/// An XID, borrowing its namespace from whatever it was parsed from (spec part 1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Xid<'a> {
    namespace: &'a str,
    number: u64,
}

impl<'a> Xid<'a> {
    /// An XID of parts that come from elsewhere; both are checked.
    pub fn new(namespace: &'a [u8], number: u64) -> Result<Self, Error> {
        let namespace = check_namespace(namespace)?;
        if number == 0 || number > NUMBER_MAX {
            return Err(Error::Number(Quoted::new(number.to_string().as_bytes())));
        }
        Ok(Xid { namespace, number })
    }

    /// Parses `namespace "-" number`.
    pub fn parse(text: &'a [u8]) -> Result<Self, Error> {
        let dash = text
            .iter()
            .position(|&b| b == b'-')
            .ok_or_else(|| Error::Xid(Quoted::new(text)))?;
        let (namespace, number) = (&text[..dash], &text[dash + 1..]);
        if namespace.is_empty() || number.is_empty() {
            return Err(Error::Xid(Quoted::new(text)));
        }
        let namespace = check_namespace(namespace)?;
        let number = parse_number(number, NUMBER_MAX)
            .filter(|&n| n > 0)
            .ok_or_else(|| Error::Number(Quoted::new(number)))?;
        Ok(Xid { namespace, number })
    }

    /// The namespace: the name of the node that introduced the message.
    pub fn namespace(&self) -> &'a str {
        self.namespace
    }

    /// The number, 1 to 2^63-1.
    pub fn number(&self) -> u64 {
        self.number
    }
}

impl fmt::Display for Xid<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.namespace, self.number)
    }
}

/// Checks a namespace against the grammar of spec part 1 and gives it back as text.
pub fn check_namespace(namespace: &[u8]) -> Result<&str, Error> {
    let wrong = || Error::Namespace(Quoted::new(namespace));
    let (first, rest) = namespace.split_first().ok_or_else(wrong)?;
    if !first.is_ascii_alphabetic()
        || namespace.len() > NAMESPACE_MAX
        || !rest.iter().all(|&b| is_namespace_char(b))
    {
        return Err(wrong());
    }
    str::from_utf8(namespace).map_err(|_| wrong())
}

/// The default of `xid_namespace`: the host's name up to the first dot, with "_" for what the
/// grammar does not have. A name that does not begin with a letter gets an "n" (for node) in
/// front, and what is too long is cut.
pub fn namespace_from_host(host: &[u8]) -> Result<String, Error> {
    let label = host.split(|&b| b == b'.').next().unwrap_or_default();
    let first = label.first().ok_or(Error::NoHost)?;
    let mut namespace = String::with_capacity(NAMESPACE_MAX);
    if !first.is_ascii_alphabetic() {
        namespace.push('n');
    }
    let room = NAMESPACE_MAX - namespace.len();
    namespace.extend(label.iter().take(room).map(|&b| {
        if is_namespace_char(b) {
            char::from(b)
        } else {
            '_'
        }
    }));
    Ok(namespace)
}

fn is_namespace_char(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b == b'.' || b == b'_'
}

/// A decimal number of `0..=max` without leading zeros; anything else is `None`.
fn parse_number(digits: &[u8], max: u64) -> Option<u64> {
    if digits.is_empty() || (digits.len() > 1 && digits[0] == b'0') {
        return None;
    }
    let mut number: u64 = 0;
    for &b in digits {
        let digit = u64::from(b.checked_sub(b'0').filter(|&d| d <= 9)?);
        number = number.checked_mul(10)?.checked_add(digit)?;
    }
    (number <= max).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_xid_is_namespace_dash_number() {
        let xid = Xid::parse(b"foo-1").unwrap();
        assert_eq!((xid.namespace(), xid.number()), ("foo", 1));
        assert_eq!(
            Xid::parse(b"a.B_9-9223372036854775807").unwrap().number(),
            NUMBER_MAX
        );
        let long = format!("{}-9223372036854775807", "n".repeat(NAMESPACE_MAX));
        assert_eq!(Xid::parse(long.as_bytes()).unwrap().to_string(), long);
        assert_eq!(long.len(), XID_MAX);
    }

    #[test]
    fn what_is_no_xid_is_refused_with_what_was_expected() {
        for bad in [
            "",
            "-",
            "foo",
            "foo-",
            "-1",
            "foo-0",
            "foo-01",
            "foo-9223372036854775808",
            "foo-1a",
            "foo--1",
            "foo-+1",
            "1foo-1",
            "_foo-1",
            "fo o-1",
            "f\u{e9}-1",
            "foo-1 ",
            "foo-1-2",
            "foo-18446744073709551617",
        ] {
            let error = Xid::parse(bad.as_bytes()).unwrap_err().to_string();
            assert!(error.contains("expected"), "{bad:?}: {error}");
        }
        let long = format!("{}-1", "n".repeat(NAMESPACE_MAX + 1));
        assert!(matches!(
            Xid::parse(long.as_bytes()),
            Err(Error::Namespace(_))
        ));
    }

    #[test]
    fn an_error_never_repeats_control_characters_or_long_input() {
        let error = Xid::parse(&[b'\r'; 5000]).unwrap_err().to_string();
        assert!(error.len() < 200 && error.bytes().all(|b| b.is_ascii_graphic() || b == b' '));
    }

    #[test]
    fn the_namespace_of_a_host_is_its_first_label_made_to_fit() {
        for (host, namespace) in [
            ("mx1.example.org", "mx1"),
            ("mail-a", "mail_a"),
            ("10-0-0-1.local", "n10_0_0_1"),
            ("-", "n_"),
            ("Foo", "Foo"),
        ] {
            let made = namespace_from_host(host.as_bytes()).unwrap();
            assert_eq!(made, namespace);
            assert!(check_namespace(made.as_bytes()).is_ok());
        }
        assert_eq!(
            namespace_from_host(&[b'x'; 200]).unwrap().len(),
            NAMESPACE_MAX
        );
        assert_eq!(
            namespace_from_host(&[b'7'; 200]).unwrap().len(),
            NAMESPACE_MAX
        );
        assert!(namespace_from_host(b"").is_err());
        assert!(namespace_from_host(b".example.org").is_err());
    }
}
