//! `doveadm xid xids|settled|pending`.

use serde_json::Value;

use crate::harness::*;
use crate::state::{Node, USER};

/// A mailbox's name in IMAP and as people see it.
const BUSY: (&str, &str) = ("B&AOk-sy", "B\u{e9}sy");

fn json(node: &mut Node, command: &str, args: &[&str]) -> Value {
    let reply = node.run(command, args);
    assert_eq!(reply.failed, "", "{command} {args:?}");
    serde_json::from_str(&reply.field).expect("JSON")
}

/// The UID of what is there, and whose UID says nothing.
const NO_UID: u32 = u32::MAX;

#[test]
fn xids_of_messages_are_told_by_guid() {
    for format in Format::ALL {
        let mut node = Node::start(format);
        for n in 1..=3 {
            node.server.append(USER, "INBOX", &message(n));
        }
        let entries = node.look("INBOX").entries;
        let mailbox = node.guid("INBOX");
        let mut args = vec![mailbox.as_str(), "INBOX", "unknown \"GUID\"", ""];
        args.extend(entries.iter().map(|entry| entry.guid.as_str()));
        let answer = json(&mut node, "xid xids", &args);
        let xids = answer["xids"].as_object().expect("xids");
        assert_eq!(xids.len(), 3, "{format:?}");
        for entry in &entries {
            let instance = format!("{}:{}", entry.uid, entry.xid);
            assert_eq!(xids[&entry.guid], instance, "{format:?}");
        }

        // What waits in the stage has its XID and no UID. It did not go.
        node.state("xid stage", "INBOX", &["3", "0"]);
        node.state("xid drop", "INBOX", &["3", "0"]);
        let answer = json(&mut node, "xid xids", &args);
        let staged = &entries[2];
        assert_eq!(
            answer["xids"][&staged.guid],
            format!("{NO_UID}:{}", staged.xid),
            "{format:?}"
        );
        assert_eq!(answer["unnamed"].as_array().expect("a list").len(), 0);

        // What is gone had an XID all the same.
        let mut client = node.server.imap_in(USER, "INBOX");
        client.ok("STORE 2 +FLAGS.SILENT (\\Deleted)");
        client.ok("EXPUNGE");
        let answer = json(&mut node, "xid xids", &args);
        let gone = &entries[1];
        assert_eq!(
            answer["xids"][&gone.guid],
            format!("0:{}", gone.xid),
            "{format:?}"
        );
    }
}

/// Two nodes made it, and here it has not become the other's yet.
#[test]
fn a_mailbox_of_the_same_name_tells_its_xids_where_none_has_the_guid() {
    let elsewhere = "00112233445566778899aabbccddeeff";
    for format in Format::ALL {
        let mut node = Node::start(format);
        node.server.imap(USER).ok("CREATE box");
        node.server.append(USER, "box", &message(1));
        let entry = node.look("box").entries.remove(0);
        let args = [elsewhere, "box", entry.guid.as_str()];
        let answer = json(&mut node, "xid xids", &args);
        let xid = format!("{NO_UID}:{}", entry.xid);
        assert_eq!(answer["xids"][&entry.guid], xid, "{format:?}");

        let nowhere = [elsewhere, "no such box", entry.guid.as_str()];
        let reply = node.run("xid xids", &nowhere);
        assert_eq!(reply.failed, "NOTFOUND", "{format:?}");
        // Nothing is done to a mailbox that is another one.
        let reply = node.run("xid look", &[elsewhere, "box", "0"]);
        assert_eq!(reply.failed, "NOTFOUND", "{format:?}");
    }
}

#[test]
fn what_was_stable_at_or_below_a_uid_is_settled() {
    for format in Format::ALL {
        let mut node = Node::start(format);
        for n in 1..=6 {
            node.server.append(USER, "INBOX", &message(n));
        }
        node.server.note_watermark(USER, "INBOX", 4);
        node.state("xid expose", "INBOX", &["4", "0", "0", "0"]);
        let guids: Vec<String> = node
            .look("INBOX")
            .entries
            .into_iter()
            .map(|entry| entry.guid)
            .collect();
        let mut client = node.server.imap_in(USER, "INBOX");
        // 5 is not stable: for all that is known here it moved.
        client.ok("STORE 2,4,5 +FLAGS.SILENT (\\Deleted)");
        client.ok("EXPUNGE");
        let mailbox = node.guid("INBOX");
        let mut settled = |uid: &str| {
            let mut args = vec![mailbox.as_str(), "INBOX", uid, "unknown"];
            args.extend(guids.iter().map(String::as_str));
            let answer = json(&mut node, "xid settled", &args);
            let settled = answer["settled"].as_array().expect("settled");
            let at = |guid: &Value| guids.iter().position(|g| guid == g).expect("known") + 1;
            settled.iter().map(at).collect::<Vec<_>>()
        };
        assert_eq!(settled("3"), [1, 2, 3], "{format:?}");
        assert_eq!(settled("4"), [1, 2, 3, 4], "{format:?}");
        assert_eq!(settled("5"), [1, 2, 3, 4], "{format:?}");
        assert_eq!(settled("0"), [0; 0], "{format:?}");
    }
}

#[test]
fn pending_names_the_mailboxes_with_uids_that_wait() {
    for format in Format::ALL {
        let mut node = Node::start(format);
        assert_eq!(
            json(&mut node, "xid pending", &[])["boxes"],
            Value::Array(vec![])
        );
        let mut client = node.server.imap(USER);
        for name in ["Quiet", BUSY.0, "Empty"] {
            client.ok(&format!("CREATE {name}"));
        }
        for name in ["INBOX", "Quiet", BUSY.0] {
            client.append(name, &message(1));
        }
        for name in ["INBOX", "Quiet", BUSY.1] {
            let uid = node.look(name).next - 1;
            node.state("xid expose", name, &[&uid.to_string(), "0", "0", "0"]);
        }
        for name in ["INBOX", BUSY.0] {
            client.append(name, &message(2));
        }
        let answer = json(&mut node, "xid pending", &[]);
        let mut boxes = answer["boxes"].as_array().expect("boxes").clone();
        boxes.sort_by_key(|one| one["name"].as_str().map(str::to_owned));
        let names: Vec<_> = boxes.iter().map(|one| &one["name"]).collect();
        assert_eq!(names, [BUSY.1, "INBOX"], "{format:?}");
        for one in &boxes {
            assert_eq!(one["next"], 3, "{format:?}");
            assert_eq!(one["shown"], 1, "{format:?}");
            let name = one["name"].as_str().expect("a name");
            assert_eq!(one["mailbox"], node.guid(name));
        }
    }
}
