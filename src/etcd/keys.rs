//! The names of the cluster's keys.
//!
//! ```text
//! /imap-xid/CLUSTER/node/NAME                      who is registered
//! /imap-xid/CLUSTER/alive/NODE/INCARNATION         who is alive, and where (under its lease)
//! /imap-xid/CLUSTER/window                         how many unstable messages all nodes allow
//! /imap-xid/CLUSTER/box/USER/GUID/stable           a mailbox's record
//! /imap-xid/CLUSTER/box/USER/GUID/tail/NODE        what a node has above S
//! /imap-xid/CLUSTER/box/USER/GUID/gate             who closed the gate (under a lease)
//! ```

use crate::cluster::{Incarnation, Node};

/// A mailbox as the cluster knows it: whose, and its GUID.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mailbox {
    /// The user, as the host's replication names him.
    pub user: String,
    /// The mailbox's GUID.
    pub guid: [u8; 16],
}

/// What of a mailbox a key holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Changed {
    /// Its record.
    Stable,
    /// The tail of a node.
    Tail(Node),
    /// Its gate.
    Gate,
}

/// The keys of one cluster.
#[derive(Clone, Debug)]
pub struct Keys {
    root: String,
}

impl Keys {
    /// The keys of the cluster with this name.
    #[must_use]
    pub fn new(cluster: &str) -> Keys {
        Keys {
            root: format!("/imap-xid/{}/", escape(cluster)),
        }
    }

    /// What all keys of the cluster begin with.
    #[must_use]
    pub fn root(&self) -> String {
        self.root.clone()
    }

    /// What all registrations begin with.
    #[must_use]
    pub fn nodes(&self) -> String {
        format!("{}node/", self.root)
    }

    /// A node's registration.
    #[must_use]
    pub fn node(&self, name: &str) -> String {
        format!("{}{}", self.nodes(), escape(name))
    }

    /// What all liveness keys begin with.
    #[must_use]
    pub fn all_alive(&self) -> String {
        format!("{}alive/", self.root)
    }

    /// A node's liveness key. One per incarnation: "this disk is not alive" is then "there is no
    /// such key", which etcd can test.
    #[must_use]
    pub fn alive(&self, node: Node, incarnation: Incarnation) -> String {
        format!("{}{}/{}", self.all_alive(), node.0, incarnation.0)
    }

    /// The window of all nodes.
    #[must_use]
    pub fn window(&self) -> String {
        format!("{}window", self.root)
    }

    /// Who a liveness key is of.
    #[must_use]
    pub fn parse_alive(&self, key: &[u8]) -> Option<(Node, Incarnation)> {
        let rest = std::str::from_utf8(key)
            .ok()?
            .strip_prefix(&self.all_alive())?;
        let (node, incarnation) = rest.split_once('/')?;
        Some((
            Node(node.parse().ok()?),
            Incarnation(incarnation.parse().ok()?),
        ))
    }

    /// What all keys of a user's mailboxes begin with, or of everybody's.
    #[must_use]
    pub fn mailboxes_of(&self, user: Option<&str>) -> String {
        match user {
            Some(user) => format!("{}box/{}/", self.root, escape(user)),
            None => format!("{}box/", self.root),
        }
    }

    /// What all keys of a mailbox begin with.
    #[must_use]
    pub fn mailbox(&self, mailbox: &Mailbox) -> String {
        let user = escape(&mailbox.user);
        let guid = u128::from_be_bytes(mailbox.guid);
        format!("{}box/{user}/{guid:032x}/", self.root)
    }

    /// A mailbox's record.
    #[must_use]
    pub fn stable(&self, mailbox: &Mailbox) -> String {
        format!("{}stable", self.mailbox(mailbox))
    }

    /// A node's tail.
    #[must_use]
    pub fn tail(&self, mailbox: &Mailbox, node: Node) -> String {
        format!("{}tail/{}", self.mailbox(mailbox), node.0)
    }

    /// The gate.
    #[must_use]
    pub fn gate(&self, mailbox: &Mailbox) -> String {
        format!("{}gate", self.mailbox(mailbox))
    }

    /// Which mailbox a key is of, and what of it.
    #[must_use]
    pub fn parse(&self, key: &[u8]) -> Option<(Mailbox, Changed)> {
        let rest = std::str::from_utf8(key)
            .ok()?
            .strip_prefix(&self.root)?
            .strip_prefix("box/")?;
        let mut parts = rest.splitn(3, '/');
        let user = unescape(parts.next()?)?;
        let guid = u128::from_str_radix(parts.next()?, 16).ok()?.to_be_bytes();
        Some((Mailbox { user, guid }, part(parts.next()?)?))
    }

    /// What of this mailbox a key holds.
    #[must_use]
    pub fn parse_part(&self, mailbox: &Mailbox, key: &[u8]) -> Option<Changed> {
        part(
            std::str::from_utf8(key)
                .ok()?
                .strip_prefix(&self.mailbox(mailbox))?,
        )
    }
}

fn part(text: &str) -> Option<Changed> {
    match text {
        "stable" => Some(Changed::Stable),
        "gate" => Some(Changed::Gate),
        _ => text
            .strip_prefix("tail/")?
            .parse()
            .ok()
            .map(|n| Changed::Tail(Node(n))),
    }
}

/// Names are the administrator's: "/" in one must not make it two parts.
fn escape(name: &str) -> String {
    let mut text = String::with_capacity(name.len());
    for byte in name.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' | b'_' | b'-' | b'@' => {
                text.push(char::from(byte));
            }
            _ => text.push_str(&format!("%{byte:02X}")),
        }
    }
    text
}

fn unescape(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        if *first != b'%' {
            bytes.push(*first);
            rest = tail;
            continue;
        }
        let (digits, tail) = tail.split_at_checked(2)?;
        bytes.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
        rest = tail;
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_mailbox_comes_back_from_its_keys(user in ".{0,40}", guid: [u8; 16], node: u8) {
            let keys = Keys::new("a/b");
            let mailbox = Mailbox { user, guid };
            let all = [
                (keys.stable(&mailbox), Changed::Stable),
                (keys.gate(&mailbox), Changed::Gate),
                (keys.tail(&mailbox, Node(node)), Changed::Tail(Node(node))),
            ];
            for (key, part) in all {
                prop_assert_eq!(keys.parse(key.as_bytes()), Some((mailbox.clone(), part)));
                prop_assert_eq!(keys.parse_part(&mailbox, key.as_bytes()), Some(part));
            }
        }

        #[test]
        fn no_key_is_too_strange_to_be_looked_at(key: Vec<u8>) {
            let keys = Keys::new("c");
            prop_assert_eq!(keys.parse_alive(&key), None);
            prop_assert_eq!(keys.parse(&key), None);
        }
    }

    #[test]
    fn a_liveness_key_names_node_and_incarnation() {
        let keys = Keys::new("c");
        let key = keys.alive(Node(3), Incarnation(7));
        assert_eq!(
            keys.parse_alive(key.as_bytes()),
            Some((Node(3), Incarnation(7)))
        );
    }
}
