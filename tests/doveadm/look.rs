//! `doveadm xid look`.

use crate::client::Doveadm;
use crate::harness::*;
use crate::state::{Node, State, USER, connect, setup};

#[test]
fn look_gives_what_lies_above_a_uid() {
    for format in Format::ALL {
        let mut node = Node::start(format);
        for n in 1..=4 {
            node.server.append(USER, "INBOX", &message(n));
        }
        let seen = node.seen("INBOX");
        let all = node.look("INBOX");
        assert_eq!(all.uids(), [1, 2, 3, 4], "{format:?}");
        for (entry, seen) in all.entries.iter().zip(&seen) {
            assert_eq!(
                (&entry.guid, &entry.xid),
                (&seen.guid, &seen.xid),
                "{format:?}"
            );
        }
        assert_eq!((all.next, all.more, all.gated), (5, false, false));
        assert_eq!(all.promised, u32::MAX, "nothing is known of promises");

        let above = node.state("xid look", "INBOX", &["2"]);
        assert_eq!(above.entries, all.entries[2..]);
        let some = node.state("xid look", "INBOX", &["1", "2"]);
        assert_eq!(
            (some.entries.as_slice(), some.more),
            (&all.entries[1..3], true)
        );
        let none = node.state("xid look", "INBOX", &["4294967295"]);
        assert_eq!((none.entries.len(), none.more), (0, false));
        let whole = node.state("xid look", "INBOX", &["4294967295"]);
        assert_eq!(whole.next, 5);
    }
}

#[test]
fn look_answers_on_the_command_line_with_one_line() {
    let node = Node::start(Format::Sdbox);
    node.server.append(USER, "INBOX", &message(1));
    let guid = node.guid("INBOX");
    let text = node
        .server
        .doveadm_ok(&["xid", "look", "-u", USER, "-a", &guid, "INBOX", "1"]);
    assert_eq!(text.lines().count(), 1);
    let state = State::parse(&text);
    assert_eq!((state.uids(), state.next), (vec![1], 2));
    let output = node.server.doveadm(&["xid", "look", "-u", USER, &guid]);
    assert_eq!(output.code, 64, "{output:?}");
}

#[test]
fn a_mailbox_is_found_by_its_guid_whatever_its_name_is() {
    for format in Format::ALL {
        let mut node = Node::start(format);
        let mut client = node.server.imap(USER);
        client.ok("CREATE \"tab\\\\le &- x\"");
        client.ok("CREATE Other");
        client.append("Other", &message(1));
        let guid = node.guid("Other");
        for hint in [
            "Other",
            "",
            "INBOX",
            "No such",
            "tab\\le & x",
            "bad\u{1}\t\n\r",
        ] {
            let reply = node.run("xid look", &[&guid, hint, "0"]);
            assert_eq!(reply.failed, "", "{format:?} {hint:?}");
            assert_eq!(State::parse(&reply.field).uids(), [1]);
        }
        client.ok("RENAME Other New");
        let reply = node.run("xid look", &[&guid, "Other", "0"]);
        assert_eq!(
            (reply.failed.as_str(), State::parse(&reply.field).next),
            ("", 2)
        );
    }
}

#[test]
fn what_is_not_there_has_an_exit_code_and_the_connection_goes_on() {
    let mut node = Node::start(Format::Sdbox);
    let nowhere = "0123456789abcdef0123456789abcdef";
    // No INBOX is made by looking for it.
    assert_eq!(
        node.run("xid look", &[nowhere, "INBOX", "0"]).failed,
        "NOTFOUND"
    );
    assert!(!node.server.mail_dir(USER).join("mailboxes/INBOX").exists());
    assert_eq!(node.run("xid look", &["xyz", "INBOX", "0"]).failed, "USAGE");
    assert_eq!(node.run("xid look", &[nowhere]).failed, "USAGE");
    let output = node
        .server
        .doveadm(&["xid", "look", "-u", USER, nowhere, "INBOX", "0"]);
    assert_eq!(
        (output.code, output.stdout.as_str()),
        (68, ""),
        "{output:?}"
    );
    assert!(output.stderr.contains("no such mailbox"), "{output:?}");

    node.server.append(USER, "INBOX", &message(1));
    assert_eq!(node.look("INBOX").uids(), [1]);
    let guid = node.guid("INBOX");
    let args = [guid.as_str(), "INBOX", "-1"];
    assert_eq!(node.run("xid look", &args).failed, "USAGE");
}

#[test]
fn one_connection_serves_users_with_different_system_users() {
    let server = setup(Format::Sdbox).start();
    let (uid, gid) = server.mail_owner();
    let mut users = String::new();
    for (name, more) in [("alice", 0), ("bob", 1), ("carol", 2)] {
        let home = server.home(name);
        std::fs::create_dir_all(&home).expect("a home");
        std::os::unix::fs::chown(&home, Some(uid + more), Some(gid)).expect("chown");
        let (uid, home) = (uid + more, home.display());
        users.push_str(&format!("{name}::{uid}:{gid}::{home}::\n"));
    }
    std::fs::write(server.tree().join("users"), users).expect("written");
    let config = std::fs::read_to_string(server.config()).expect("read");
    let (before, rest) = config.split_once("userdb {").expect("a userdb");
    let (_, after) = rest.split_once("}\n").expect("its end");
    let tree = server.tree().display();
    let userdb = format!("userdb {{\n  driver = passwd-file\n  args = {tree}/users\n}}\n");
    std::fs::write(server.config(), format!("{before}{userdb}{after}")).expect("written");
    server.doveadm_ok(&["reload"]);
    until("the users' own system users", || {
        let output = server.doveadm(&["user", "-f", "uid", "carol"]);
        output.stdout.trim() == (uid + 2).to_string()
    });
    let mut doveadm = connect(&server);
    let mut guids = Vec::new();
    for user in ["alice", "bob", "carol"] {
        server.append(user, "INBOX", &message(1));
        let args = ["mailbox", "status", "-u", user, "guid", "INBOX"];
        let text = server.doveadm_ok(&args);
        guids.push((
            user,
            text.trim().rsplit_once('=').expect("a GUID").1.to_owned(),
        ));
    }
    for round in 1..=3 {
        for (user, guid) in &guids {
            let reply = doveadm.run(user, "xid look", &[guid, "INBOX", "0"]);
            assert_eq!(reply.failed, "", "{user} {round}");
            assert_eq!(State::parse(&reply.field).uids().len(), round);
            server.append(user, "INBOX", &message(round));
        }
    }
}

#[test]
fn a_listener_with_a_password_serves_the_peers() {
    let port = std::net::TcpListener::bind(("127.0.0.1", 0))
        .and_then(|free| free.local_addr())
        .expect("a free port");
    let listener = format!("address = 127.0.0.1\n    port = {}", port.port());
    let server = setup(Format::Sdbox)
        .conf(&format!(
            "doveadm_password = secret\n\
             service doveadm {{\n  inet_listener {{\n    {listener}\n  }}\n}}"
        ))
        .start();
    server.append(USER, "INBOX", &message(1));
    let args = ["mailbox", "status", "-u", USER, "guid", "INBOX"];
    let guid = server.doveadm_ok(&args);
    let guid = guid.trim().rsplit_once('=').expect("a GUID").1;
    // base64 of "\0doveadm\0secret"
    let mut doveadm = Doveadm::tcp(port, "AGRvdmVhZG0Ac2VjcmV0");
    for _ in 0..3 {
        let reply = doveadm.run(USER, "xid look", &[guid, "INBOX", "0"]);
        assert_eq!(
            (reply.failed.as_str(), State::parse(&reply.field).next),
            ("", 2)
        );
    }
}

#[test]
fn a_user_without_the_plug_in_is_refused() {
    let setup = setup(Format::Sdbox).xid("xid_uid_source", "somebody");
    let mut node = Node::start_with(setup);
    node.server.allow_log("plug-in is off for this user");
    node.server.append(USER, "INBOX", &message(1));
    let guid = node.guid("INBOX");
    let reply = node.run("xid look", &[&guid, "INBOX", "0"]);
    assert_eq!(
        (reply.failed.as_str(), reply.field.as_str()),
        ("DATAERR", "")
    );
    assert_eq!(node.run("xid pending", &[]).failed, "DATAERR");
    let reply = node
        .doveadm
        .run("alice", "xid look", &[&guid, "INBOX", "0"]);
    assert_eq!(reply.failed, "DATAERR");
}
