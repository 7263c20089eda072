//! The socket's messages as text. Fields are escaped as Dovecot's `str_tabescape` does.

use super::super::{Asking, Change, XidsAnswer};
use super::MESSAGE_BYTES;
use crate::cluster::Incarnation;

/// Longest name of a user, in bytes; longer ones no host takes either.
const USER_BYTES: usize = 1024;
/// Longest GUID of a message, in bytes: what the registry can keep.
const GUID_BYTES: usize = 255;
/// What stands for a message whose XID nobody knows.
const UNKNOWN: &str = "-";

/// What the plug-in says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Message {
    /// Something changed.
    Changed {
        user: String,
        mailbox: [u8; 16],
        name: String,
        kind: Change,
    },
    /// Which XIDs have these messages?
    Xids {
        user: String,
        mailbox: [u8; 16],
        name: String,
        guids: Vec<String>,
        asking: Asking,
    },
    /// Is this node in the cluster?
    Status,
}

impl Message {
    /// Whose mail it is about.
    pub fn user(&self) -> Option<&str> {
        match self {
            Message::Changed { user, .. } | Message::Xids { user, .. } => Some(user),
            Message::Status => None,
        }
    }

    /// Whether somebody waits for an answer.
    pub fn wants_reply(&self) -> bool {
        !matches!(self, Message::Changed { .. })
    }
}

/// `None`: it is no message.
pub(super) fn parse(bytes: &[u8]) -> Option<Message> {
    let text = std::str::from_utf8(bytes).ok()?;
    let text = text.strip_suffix('\n').unwrap_or(text);
    let mut fields = text.split('\t');
    match fields.next()? {
        "C" => changed(fields),
        "X" => xids_wanted(fields, Asking::Quickly),
        "A" => xids_wanted(fields, Asking::Everybody),
        "R" => xids_wanted(fields, Asking::Holding),
        "S" => fields.next().is_none().then_some(Message::Status),
        _ => None,
    }
}

fn changed<'a>(mut fields: impl Iterator<Item = &'a str>) -> Option<Message> {
    let (user, mailbox, name) = place(&mut fields)?;
    let kind = match fields.next()? {
        "a" => Change::Added,
        "f" => Change::Flags,
        "i" => Change::Imported,
        "t" => Change::Tree,
        "w" => Change::Reminder,
        _ => return None,
    };
    fields.next().is_none().then_some(Message::Changed {
        user,
        mailbox,
        name,
        kind,
    })
}

fn xids_wanted<'a>(mut fields: impl Iterator<Item = &'a str>, asking: Asking) -> Option<Message> {
    let (user, mailbox, name) = place(&mut fields)?;
    let mut guids = Vec::new();
    for field in fields {
        let guid = unescape(field)?;
        if guid.is_empty() || guid.len() > GUID_BYTES {
            return None;
        }
        guids.push(guid);
    }
    (!guids.is_empty()).then_some(Message::Xids {
        user,
        mailbox,
        name,
        guids,
        asking,
    })
}

/// User, mailbox GUID, mailbox name.
fn place<'a>(fields: &mut impl Iterator<Item = &'a str>) -> Option<(String, [u8; 16], String)> {
    let user = unescape(fields.next()?)?;
    if user.is_empty() || user.len() > USER_BYTES {
        return None;
    }
    let hex = fields.next()?;
    let digits = hex.len() == 32 && hex.bytes().all(|b| b.is_ascii_hexdigit());
    let guid = digits.then(|| u128::from_str_radix(hex, 16).ok())??;
    let name = unescape(fields.next()?)?;
    Some((user, guid.to_be_bytes(), name))
}

/// The answer to a question for XIDs, of which there must be `wanted`.
pub(super) fn xids(answer: XidsAnswer, wanted: usize) -> String {
    let xids = match answer {
        Ok(xids) if xids.len() == wanted => xids,
        Ok(_) => return error("xidd answered for another number of messages"),
        Err(why) => return error(&why),
    };
    let mut text = String::from("X");
    for xid in xids {
        text.push('\t');
        escape(xid.as_deref().unwrap_or(UNKNOWN), &mut text);
    }
    match text.len() > MESSAGE_BYTES {
        true => error("the answer is too long: ask for fewer messages at once"),
        false => text,
    }
}

/// The answer to a question that cannot be answered.
pub(super) fn error(why: &str) -> String {
    let mut text = String::from("E\t");
    escape(why, &mut text);
    text
}

/// The answer to the question for the node's state: when it is in, with the number of its disk, from
/// which new registries begin their numbers.
pub(super) fn status(inside: Option<Incarnation>) -> String {
    match inside {
        Some(incarnation) => format!("S\tin\t{}", incarnation.0),
        None => "S\tcut".into(),
    }
}

fn escape(text: &str, into: &mut String) {
    for c in text.chars() {
        match c {
            '\0' => into.push_str("\u{1}0"),
            '\u{1}' => into.push_str("\u{1}1"),
            '\t' => into.push_str("\u{1}t"),
            '\r' => into.push_str("\u{1}r"),
            '\n' => into.push_str("\u{1}n"),
            _ => into.push(c),
        }
    }
}

/// `None`: what follows an escape is none of its five letters. A NUL is refused, too: it would
/// end the text for everybody else.
fn unescape(text: &str) -> Option<String> {
    let mut plain = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        plain.push(match c {
            '\0' => return None,
            '\u{1}' => match chars.next()? {
                '1' => '\u{1}',
                't' => '\t',
                'r' => '\r',
                'n' => '\n',
                _ => return None,
            },
            _ => c,
        });
    }
    Some(plain)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HEX: &str = "000102030405060708090a0b0c0d0e0f";
    const GUID: [u8; 16] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];

    #[test]
    fn the_messages_are_understood() {
        let (user, name) = ("jo\u{1}te@example.org", "Bär/x");
        let text = format!("C\t{user}\t{HEX}\t{name}\tf");
        let changed = Message::Changed {
            user: "jo\te@example.org".into(),
            mailbox: GUID,
            name: name.into(),
            kind: Change::Flags,
        };
        assert_eq!(parse(text.as_bytes()), Some(changed));
        for (letter, asking) in [
            ("X", Asking::Quickly),
            ("A", Asking::Everybody),
            ("R", Asking::Holding),
        ] {
            let text = format!("{letter}\tjoe\t{HEX}\tINBOX\tg1\tg2\n");
            let xids = Message::Xids {
                user: "joe".into(),
                mailbox: GUID,
                name: "INBOX".into(),
                guids: vec!["g1".into(), "g2".into()],
                asking,
            };
            assert_eq!(parse(text.as_bytes()), Some(xids));
        }
        assert_eq!(parse(b"S"), Some(Message::Status));
    }

    #[test]
    fn anything_else_is_refused() {
        let wrong = [
            String::new(),
            "\n".into(),
            "Q".into(),
            "S\tx".into(),
            "C\tjoe".into(),
            format!("C\tjoe\t{HEX}\tINBOX"),
            format!("C\tjoe\t{HEX}\tINBOX\tz"),
            format!("C\tjoe\t{HEX}\tINBOX\ta\tmore"),
            format!("C\t\t{HEX}\tINBOX\ta"),
            format!("C\t{}\t{HEX}\tINBOX\ta", "x".repeat(USER_BYTES + 1)),
            format!("C\tjoe\t+{}\tINBOX\ta", &HEX[1..]),
            format!("C\tjoe\t{HEX}0\tINBOX\ta"),
            format!("C\tjo\u{1}0e\t{HEX}\tINBOX\ta"),
            format!("C\tjo\0e\t{HEX}\tINBOX\ta"),
            format!("C\tjoe\u{1}\t{HEX}\tINBOX\ta"),
            format!("X\tjoe\t{HEX}\tINBOX"),
            format!("X\tjoe\t{HEX}\tINBOX\t"),
            format!("X\tjoe\t{HEX}\tINBOX\t{}", "g".repeat(GUID_BYTES + 1)),
        ];
        for text in wrong {
            assert_eq!(parse(text.as_bytes()), None, "{text:?}");
        }
        assert_eq!(parse(b"C\t\xff"), None);
    }

    #[test]
    fn replies_have_one_field_per_message() {
        let answer = Ok(vec![Some("7:a-1".into()), None]);
        assert_eq!(xids(answer.clone(), 2), "X\t7:a-1\t-");
        assert!(xids(answer, 3).starts_with("E\t"));
        assert_eq!(
            xids(Err("no\tquorum\n".into()), 2),
            "E\tno\u{1}tquorum\u{1}n"
        );
        let long = Ok(vec![Some("x".repeat(80)); 1000]);
        assert!(xids(long, 1000).starts_with("E\t"));
        assert_eq!(
            (status(Some(Incarnation(3))), status(None)),
            ("S\tin\t3".into(), "S\tcut".into())
        );
    }

    proptest! {
        #[test]
        fn what_is_escaped_comes_back(text in "[^\u{0}]{0,60}") {
            let mut escaped = String::new();
            escape(&text, &mut escaped);
            prop_assert!(!escaped.contains(['\t', '\r', '\n']));
            prop_assert_eq!(unescape(&escaped), Some(text));
        }

        #[test]
        fn no_message_is_too_strange_to_be_looked_at(bytes: Vec<u8>) {
            let _ = parse(&bytes);
        }
    }
}
