//! What must hold of every mailbox at every moment.

use std::collections::{BTreeMap, HashMap};

use super::server::{Dovecot, Message};

/// An XID taken apart.
///
/// # Panics
/// When it is none by the grammar.
pub fn split_xid(xid: &str) -> (&str, u64) {
    let (namespace, number) = xid
        .rsplit_once('-')
        .unwrap_or_else(|| panic!("no XID: {xid:?}"));
    let first = namespace.starts_with(|c: char| c.is_ascii_alphabetic());
    let rest = namespace
        .chars()
        .all(|c| c.is_ascii_alphanumeric() || c == '.' || c == '_');
    assert!(
        first && rest && namespace.len() <= 63,
        "a bad namespace in {xid:?}"
    );
    assert!(
        !number.starts_with('0') && !number.starts_with('+'),
        "a bad number in {xid:?}"
    );
    let value = number
        .parse()
        .unwrap_or_else(|_| panic!("a bad number in {xid:?}"));
    assert!(value <= i64::MAX as u64, "too high a number in {xid:?}");
    (namespace, value)
}

/// The number of a message's XID.
pub fn number(message: &Message) -> u64 {
    split_xid(message.xid.as_deref().expect("an XID")).1
}

/// Every message has an XID, none twice, in UID order.
pub fn check_messages(what: &str, messages: &[Message]) {
    let mut last: HashMap<String, (u64, u32)> = HashMap::new();
    let mut last_uid = 0;
    for message in messages {
        assert!(
            message.uid > last_uid,
            "{what}: UIDs out of order: {messages:?}"
        );
        last_uid = message.uid;
        let Some(xid) = &message.xid else {
            panic!("{what}: no XID: {message:?}")
        };
        assert_ne!(xid, "NIL", "{what}: {message:?}");
        let (namespace, number) = split_xid(xid);
        if let Some((before, uid)) = last.insert(namespace.to_owned(), (number, message.uid)) {
            assert!(
                number > before,
                "{what}: UID {} has {xid} after UID {uid} had {namespace}-{before}: {messages:#?}",
                message.uid
            );
        }
    }
}

/// The XIDs of the messages, in order.
pub fn xids(messages: &[Message]) -> Vec<String> {
    messages
        .iter()
        .map(|m| m.xid.clone().expect("an XID"))
        .collect()
}

/// GUID -> XIDs (a copied message may share its GUID).
pub fn by_guid(messages: &[Message]) -> BTreeMap<String, Vec<String>> {
    let mut map: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for message in messages {
        map.entry(message.guid.clone())
            .or_default()
            .push(message.xid.clone().expect("an XID"));
    }
    map
}

impl Dovecot {
    /// [`Dovecot::messages`] with [`check_messages`] done.
    pub fn checked(&self, user: &str, mailbox: &str) -> Vec<Message> {
        let messages = self.messages(user, mailbox);
        check_messages(&format!("{user}: {mailbox}"), &messages);
        messages
    }

    /// The same for every mailbox of a user; no XID may be in two of them.
    pub fn checked_all(&self, user: &str) -> BTreeMap<String, Vec<Message>> {
        let list = self.doveadm_ok(&["mailbox", "list", "-u", user]);
        let mut seen: HashMap<String, String> = HashMap::new();
        let mut all = BTreeMap::new();
        for mailbox in list.lines() {
            // A parent that is no mailbox itself.
            if self
                .doveadm(&["mailbox", "status", "-u", user, "messages", mailbox])
                .code
                != 0
            {
                continue;
            }
            let messages = self.checked(user, &format!("\"{mailbox}\""));
            for xid in xids(&messages) {
                if let Some(other) = seen.insert(xid.clone(), mailbox.to_owned()) {
                    panic!("{user}: {xid} is both in {other} and in {mailbox}");
                }
            }
            all.insert(mailbox.to_owned(), messages);
        }
        all
    }
}
