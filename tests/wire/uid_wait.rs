//! Spec part 6: commands that use UIDs wait until the UIDs are agreed, and nothing else does.

use crate::assign::{advance, inbox, table, uids};
use crate::harness::*;

/// Sends a command and sees that it waits: a keepalive comes instead of its answer.
fn send_and_see_it_wait(client: &mut Imap, command: &str) -> Tag {
    client.take_untagged();
    let tag = client.send(command);
    client.wait_line("OK Waiting");
    assert!(client.is_waiting(&tag), "{command} was answered");
    tag
}

#[test]
fn uid_commands_wholly_below_the_watermark_do_not_wait() {
    for format in Format::ALL {
        let server = inbox(table().format(format), 9, 8);
        let mut client = server.imap_in("alice", "INBOX");
        client.ok("CREATE Other");
        assert_eq!(
            uids(&client.ok("UID FETCH 1:8 (FLAGS)")),
            Vec::from_iter(1..=8)
        );
        client.ok("UID STORE 3,8 +FLAGS (\\Flagged)");
        client.ok("UID COPY 2 Other");
        client.ok("UID MOVE 4 Other");
        client.ok("UID STORE 5 +FLAGS.SILENT (\\Deleted)");
        client.ok("UID EXPUNGE 5");
        assert_eq!(
            client.ok("UID SEARCH UID 1:8").search_numbers(),
            [1, 2, 3, 6, 7, 8]
        );
        assert_eq!(client.ok("UID SEARCH 1:2").search_numbers(), [1, 2]);
    }
}

#[test]
fn a_uid_set_that_reaches_above_waits_and_runs_on_advance() {
    for format in Format::ALL {
        let server = inbox(table().format(format), 9, 8);
        let mut client = server.imap_in("alice", "INBOX");
        let tag = send_and_see_it_wait(&mut client, "UID FETCH 7:9 (FLAGS)");
        advance(&server, "alice", "INBOX", 9);
        let reply = client.wait(&tag);
        assert!(reply.is_ok(), "{}", reply.text);
        assert_eq!(uids(&reply), [7, 8, 9]);
    }
}

#[test]
fn a_star_waits() {
    let server = inbox(table(), 3, 2);
    let mut client = server.imap_in("alice", "INBOX");
    let tag = send_and_see_it_wait(&mut client, "UID FETCH * (FLAGS)");
    advance(&server, "alice", "INBOX", 3);
    assert_eq!(uids(&client.wait(&tag)), [3]);
}

#[test]
fn every_uid_command_that_changes_something_waits_before_it_does() {
    let server = inbox(table(), 4, 3);
    let mut client = server.imap_in("alice", "INBOX");
    let mut other = server.imap_in("alice", "INBOX");
    client.ok("CREATE Other");

    let tag = send_and_see_it_wait(&mut client, "UID STORE 4 +FLAGS (\\Flagged)");
    assert_eq!(other.ok("SEARCH FLAGGED").search_numbers(), [0; 0]);
    advance(&server, "alice", "INBOX", 4);
    assert!(client.wait(&tag).is_ok());
    other.ok("NOOP");
    assert_eq!(other.ok("SEARCH FLAGGED").search_numbers(), [4]);

    for (command, uid, left) in [
        ("UID COPY 5 Other", 5, 5),
        ("UID MOVE 6 Other", 6, 5),
        ("UID EXPUNGE 7", 7, 5),
    ] {
        client.append("INBOX", &message(uid));
        let seq = client.ok("SEARCH ALL").search_numbers().len();
        client.ok(&format!("STORE {seq} +FLAGS.SILENT (\\Deleted)"));
        let tag = send_and_see_it_wait(&mut client, command);
        assert_eq!(other.ok("NOOP").untagged("EXPUNGE").len(), 0, "{command}");
        advance(&server, "alice", "INBOX", uid as u32);
        let reply = client.wait(&tag);
        assert!(reply.is_ok(), "{command}: {}", reply.text);
        assert_eq!(
            client.ok("SEARCH ALL").search_numbers().len(),
            left,
            "{command}"
        );
        other.ok("NOOP");
    }
    server.note_watermark("alice", "Other", 0);
    assert_eq!(
        client.ok("STATUS Other (MESSAGES)").only("STATUS"),
        "Other (MESSAGES 2)"
    );
}

#[test]
fn what_uses_sequence_numbers_or_xids_does_not_wait() {
    let server = inbox(table(), 5, 2);
    let mut client = server.imap_in("alice", "INBOX");
    client.ok("CREATE Other");
    assert_eq!(client.ok("FETCH 1:* (XID FLAGS)").fetches().len(), 5);
    client.ok("FETCH 1:* (BODY.PEEK[] ENVELOPE BODYSTRUCTURE)");
    client.ok("FETCH 5 (BODY[])");
    client.ok("STORE 1:5 +FLAGS (\\Flagged)");
    client.ok("COPY 1:5 Other");
    client.ok("MOVE 5 Other");
    client.ok("STORE 4 +FLAGS (\\Deleted)");
    client.ok("EXPUNGE");
    assert_eq!(client.ok("SEARCH ALL").search_numbers(), [1, 2, 3]);
    client.ok("SORT (SUBJECT) UTF-8 ALL");
    client.ok("THREAD REFERENCES UTF-8 ALL");
    client.append("INBOX", &message(6));
    client.ok("CHECK");
    client.ok("CLOSE");
    client.ok("EXAMINE INBOX");
    client.ok("STATUS Other (MESSAGES UIDNEXT)");
}

#[test]
fn xhxid_commands_do_not_wait_unless_the_uid_item_is_asked_for() {
    let server = inbox(table(), 3, 1);
    let mut client = server.imap_in("alice", "INBOX");
    let fetches = client.ok("FETCH 1:* (XID)").fetches();
    let last = fetches[2].xid().expect("an XID");
    client.ok("XHXID");
    client.ok(&format!("XHXID FETCH {last} (FLAGS)"));
    client.ok(&format!("XHXID STORE {last} +FLAGS (\\Seen)"));
    client.ok("XHXID SEARCH ALL");
    let tag = send_and_see_it_wait(&mut client, &format!("XHXID FETCH {last} (UID)"));
    advance(&server, "alice", "INBOX", 3);
    assert_eq!(uids(&client.wait(&tag)), [3]);
}

#[test]
fn fetch_with_the_uid_item_waits_where_it_touches_a_uid_that_is_not_stable() {
    let server = inbox(table(), 4, 3);
    let mut client = server.imap_in("alice", "INBOX");
    assert_eq!(uids(&client.ok("FETCH 1:3 (UID FLAGS)")), [1, 2, 3]);
    assert_eq!(uids(&client.ok("FETCH 2 UID")), [2]);
    let tag = send_and_see_it_wait(&mut client, "FETCH 1:* (FLAGS UID)");
    advance(&server, "alice", "INBOX", 4);
    assert_eq!(uids(&client.wait(&tag)), [1, 2, 3, 4]);
}

#[test]
fn searches_wait_only_where_the_answer_could_show_an_unstable_uid() {
    let server = inbox(table(), 4, 3);
    let mut client = server.imap_in("alice", "INBOX");
    for command in [
        "SEARCH ALL",
        "SEARCH UID 1:3",
        "SEARCH NOT UID 2",
        "SEARCH SUBJECT UID",
        "SORT (DATE) UTF-8 UID 1:3",
        "UID SEARCH UID 1:3",
        "UID SEARCH UID 1:3 SUBJECT message",
        "UID SEARCH (UID 1 SUBJECT message)",
        "UID SEARCH 1:3",
        "UID SEARCH RETURN (COUNT) ALL",
        "UID SEARCH RETURN (SAVE) ALL",
        "UID SORT (DATE) UTF-8 UID 1:2",
        "UID THREAD REFERENCES UTF-8 2",
    ] {
        client.ok(command);
    }
    // A stable UID each, so that the next round waits again.
    let mut uid = 4;
    for command in [
        "UID SEARCH ALL",
        "UID SEARCH SUBJECT message",
        "UID SEARCH RETURN (MAX) ALL",
        "UID SEARCH OR UID 1:3 SUBJECT message",
        "UID SEARCH NOT UID 1:3",
        "SEARCH UID *",
        "SEARCH UID 3:100",
        "SEARCH NOT UID 4:20",
        "UID SORT (DATE) UTF-8 ALL",
        "UID THREAD REFERENCES UTF-8 ALL",
        "SORT (DATE) UTF-8 UID 4:100",
        "THREAD ORDEREDSUBJECT UTF-8 UID *",
    ] {
        let tag = send_and_see_it_wait(&mut client, command);
        advance(&server, "alice", "INBOX", uid);
        let reply = client.wait(&tag);
        assert!(reply.is_ok(), "{command}: {}", reply.text);
        uid += 1;
        client.append("INBOX", &message(uid as usize));
    }
}

#[test]
fn a_saved_search_result_is_judged_by_its_members() {
    let server = inbox(table(), 4, 3);
    let mut client = server.imap_in("alice", "INBOX");
    client.ok("SEARCH RETURN (SAVE) 1:3");
    assert_eq!(uids(&client.ok("UID FETCH $ (FLAGS)")), [1, 2, 3]);
    client.ok("SEARCH RETURN (SAVE) 2:*");
    client.ok("FETCH $ (FLAGS)");
    assert_eq!(client.ok("SEARCH $").search_numbers(), [2, 3, 4]);
    let tag = send_and_see_it_wait(&mut client, "UID FETCH $ (FLAGS)");
    advance(&server, "alice", "INBOX", 4);
    assert_eq!(uids(&client.wait(&tag)), [2, 3, 4]);
}

#[test]
fn the_wait_ends_with_unavailable_and_the_command_had_no_effect() {
    let server = inbox(table().xid("xid_uid_wait", "1s"), 2, 1);
    let mut client = server.imap_in("alice", "INBOX");
    client.ok("CREATE Other");
    for command in [
        "UID STORE 1:* +FLAGS (\\Deleted)",
        "UID FETCH 2 (BODY[])",
        "UID COPY 1:2 Other",
        "UID MOVE 1:2 Other",
        "UID EXPUNGE 1:*",
        "UID SEARCH ALL",
    ] {
        let reply = client.no(command);
        assert!(
            reply.code("UNAVAILABLE").is_some(),
            "{command}: {}",
            reply.text
        );
    }
    let fetches = client.ok("FETCH 1:* (FLAGS)").fetches();
    assert_eq!(fetches.len(), 2);
    for fetch in fetches {
        let flags = fetch.flags().expect("flags");
        assert!(
            !flags.iter().any(|f| f == "\\Deleted" || f == "\\Seen"),
            "{flags:?}"
        );
    }
    assert_eq!(
        client.ok("STATUS Other (MESSAGES)").only("STATUS"),
        "Other (MESSAGES 0)"
    );
    // The client goes on as if nothing had been.
    assert_eq!(uids(&client.ok("UID FETCH 1 (FLAGS)")), [1]);
}

#[test]
fn a_waiting_client_gets_keepalives() {
    let server = inbox(table().xid("xid_keepalive", "1s"), 2, 1);
    let mut client = server.imap_in("alice", "INBOX");
    let tag = client.send("UID FETCH 2 (FLAGS)");
    let mut lines = 0;
    while lines < 3 {
        let line = client.read_line();
        assert!(line.starts_with("* OK "), "{}", line.text());
        lines += 1;
    }
    advance(&server, "alice", "INBOX", 2);
    assert!(client.wait(&tag).is_ok());
}

#[test]
fn a_keepalive_comes_after_a_second_and_then_every_two() {
    use std::time::{Duration, Instant};
    let server = inbox(table().xid("xid_uid_wait", "8s"), 2, 1);
    let mut client = server.imap_in("alice", "INBOX");
    let start = Instant::now();
    client.send("UID FETCH 2 (FLAGS)");
    let mut seconds = 1;
    loop {
        let line = client.read_line();
        if !line.starts_with("* OK Waiting") {
            break;
        }
        // None is early; late they are on a machine that is busy.
        let due = Duration::from_secs(seconds);
        assert!(
            start.elapsed() + Duration::from_millis(100) > due,
            "{seconds}"
        );
        seconds += 2;
    }
    // At 1, 3, 5 and 7 s; the last may be too late to come before the end.
    assert!((7..=9).contains(&seconds), "{seconds}");
}

#[test]
fn keepalives_can_be_turned_off() {
    let server = inbox(
        table().xid("xid_keepalive", "0").xid("xid_uid_wait", "3s"),
        2,
        1,
    );
    let mut client = server.imap_in("alice", "INBOX");
    let reply = client.no("UID FETCH 2 (FLAGS)");
    assert!(reply.lines.is_empty(), "{:?}", reply.lines);
}

#[test]
fn only_messages_that_were_there_when_the_command_came_are_waited_for() {
    let server = inbox(table(), 2, 1);
    let mut client = server.imap_in("alice", "INBOX");
    let tag = send_and_see_it_wait(&mut client, "UID FETCH 1:* (FLAGS)");
    // They keep coming; each is agreed only after the next has come.
    for n in 3..20 {
        server.append("alice", "INBOX", &message(n));
    }
    advance(&server, "alice", "INBOX", 2);
    let reply = client.wait(&tag);
    assert!(reply.is_ok(), "{}", reply.text);
    assert_eq!(uids(&reply), [1, 2]);
    // What came is announced afterwards.
    let exists = reply.exists().or_else(|| client.ok("NOOP").exists());
    assert_eq!(exists, Some(19));
}

#[test]
fn a_message_that_the_session_has_not_seen_is_not_waited_for() {
    let server = inbox(table(), 2, 2);
    let mut client = server.imap_in("alice", "INBOX");
    server.append("alice", "INBOX", &message(3));
    let reply = client.ok("UID FETCH 1:* (FLAGS)");
    assert_eq!(uids(&reply), [1, 2]);
}

#[test]
fn commands_pipelined_behind_a_waiting_one_run_after_it_in_order() {
    let server = inbox(table(), 3, 2);
    let mut client = server.imap_in("alice", "INBOX");
    let mut tags = vec![client.send("UID FETCH 3 (FLAGS)")];
    for command in [
        "FETCH 1 (FLAGS)",
        "NOOP",
        "STORE 3 +FLAGS (\\Deleted)",
        "EXPUNGE",
        "UID SEARCH ALL",
        "CREATE Other",
        "SELECT Other",
        "FETCH 1 (FLAGS)",
    ] {
        tags.push(client.send(command));
    }
    client.wait_line("OK Waiting");
    for tag in &tags {
        assert!(client.is_waiting(tag));
    }
    advance(&server, "alice", "INBOX", 3);
    let replies: Vec<Reply> = tags.iter().map(|tag| client.wait(tag)).collect();
    let answers: Vec<bool> = replies.iter().map(Reply::is_ok).collect();
    // The last one asks for a message of an empty mailbox.
    assert_eq!(
        answers,
        [true, true, true, true, true, true, true, true, false]
    );
    let lines = replies.iter().flat_map(|reply| &reply.lines);
    let searches: Vec<String> = lines
        .filter(|line| line.keyword() == "SEARCH")
        .map(|line| line.text().into_owned())
        .collect();
    assert_eq!(searches, ["* SEARCH 1 2"]);
}

#[test]
fn commands_before_a_waiting_one_are_answered_meanwhile() {
    let server = inbox(table(), 3, 2);
    let mut client = server.imap_in("alice", "INBOX");
    let first = client.send("STORE 1 +FLAGS (\\Flagged)");
    let second = client.send("NOOP");
    let waiting = client.send("UID FETCH 1:* (FLAGS)");
    assert!(client.wait(&first).is_ok());
    assert!(client.wait(&second).is_ok());
    client.wait_line("OK Waiting");
    assert!(client.is_waiting(&waiting));
    advance(&server, "alice", "INBOX", 3);
    assert_eq!(uids(&client.wait(&waiting)), [1, 2, 3]);
}

#[test]
fn more_commands_than_the_buffer_holds_wait_behind_a_waiting_one() {
    let server = inbox(table(), 2, 1);
    let mut client = server.imap_in("alice", "INBOX");
    let waiting = send_and_see_it_wait(&mut client, "UID FETCH 2 (FLAGS)");
    let tags: Vec<Tag> = (0..8000)
        .map(|_| client.send("FETCH 1 (FLAGS INTERNALDATE)"))
        .collect();
    client.wait_line("OK Waiting");
    assert!(client.is_waiting(&waiting));
    advance(&server, "alice", "INBOX", 2);
    assert!(client.wait(&waiting).is_ok());
    for tag in &tags {
        assert!(client.wait(tag).is_ok());
    }
}

#[test]
fn a_waiting_client_does_not_delay_another_one_of_the_same_process() {
    let conf = "service imap {\n client_limit = 10\n service_count = 100\n process_limit = 1\n}";
    let server = inbox(table().conf(conf), 2, 1);
    let mut waiting: Vec<(Imap, Tag)> = (0..4)
        .map(|_| {
            let mut client = server.imap_in("alice", "INBOX");
            let tag = send_and_see_it_wait(&mut client, "UID FETCH 1:* (FLAGS)");
            (client, tag)
        })
        .collect();
    let mut other = server.imap_in("alice", "INBOX");
    assert_eq!(server.pids("imap").len(), 1, "all clients share a process");
    other.ok("FETCH 1:* (XID)");
    assert_eq!(uids(&other.ok("UID FETCH 1 (FLAGS)")), [1]);
    other.append("INBOX", &message(3));
    // One of the waiting goes away; the others do not notice.
    drop(waiting.pop());
    other.ok("NOOP");
    advance(&server, "alice", "INBOX", 2);
    for (mut client, tag) in waiting {
        assert_eq!(uids(&client.wait(&tag)), [1, 2]);
    }
}

#[test]
fn a_waiting_client_does_not_delay_another_process_on_the_mailbox() {
    let server = inbox(table(), 2, 1);
    let mut client = server.imap_in("alice", "INBOX");
    let tag = send_and_see_it_wait(&mut client, "UID STORE 1:* +FLAGS (\\Seen)");
    let mut other = server.imap_in("alice", "INBOX");
    other.append("INBOX", &message(3));
    other.ok("STORE 1:* +FLAGS (\\Flagged)");
    other.ok("STORE 1 +FLAGS (\\Deleted)");
    other.ok("EXPUNGE");
    advance(&server, "alice", "INBOX", 2);
    assert!(client.wait(&tag).is_ok());
}

#[test]
fn the_wait_ends_at_once_when_the_client_disconnects() {
    let server = inbox(table(), 2, 1);
    let mut client = server.imap_in("alice", "INBOX");
    send_and_see_it_wait(&mut client, "UID FETCH 1:* (FLAGS)");
    let pid = server.pids("imap")[0];
    drop(client);
    until("the imap process is free of the client", || {
        server.log().contains("Disconnected: ") || !server.pids("imap").contains(&pid)
    });
}

#[test]
fn a_client_that_filled_the_buffer_may_go_away_too() {
    let server = inbox(table(), 2, 1);
    let mut client = server.imap_in("alice", "INBOX");
    send_and_see_it_wait(&mut client, "UID FETCH 1:* (FLAGS)");
    for _ in 0..8000 {
        client.send("FETCH 1 (FLAGS INTERNALDATE)");
    }
    drop(client);
    until("the client is gone", || {
        server.log().contains("Disconnected: ")
    });
}

#[test]
fn the_wait_ends_at_once_when_the_server_shuts_down() {
    let server = inbox(table(), 2, 1);
    let mut client = server.imap_in("alice", "INBOX");
    send_and_see_it_wait(&mut client, "UID FETCH 1:* (FLAGS)");
    server.stop();
    assert!(client.closes());
    // Nothing was left behind that stands in the way.
    server.start_again();
    advance(&server, "alice", "INBOX", 2);
    let mut client = server.imap_in("alice", "INBOX");
    assert_eq!(uids(&client.ok("UID FETCH 1:* (FLAGS)")), [1, 2]);
}

#[test]
fn the_watermark_outlives_a_restart_and_the_table() {
    let server = inbox(table(), 3, 2);
    server.stop();
    for file in ["xid.table", "xid.journal"] {
        // A reboot takes the table; the journal may be there or not.
        if file == "xid.table" {
            std::fs::remove_file(server.mail_dir("alice").join(file)).expect("a table");
        }
    }
    server.start_again();
    let mut client = server.imap("alice");
    assert_eq!(
        client
            .ok("SELECT INBOX")
            .untagged_code("UIDNEXT")
            .as_deref(),
        Some("3")
    );
    let tag = send_and_see_it_wait(&mut client, "UID FETCH 1:* (FLAGS)");
    advance(&server, "alice", "INBOX", 3);
    assert_eq!(uids(&client.wait(&tag)), [1, 2, 3]);
}

#[test]
fn a_mailbox_without_a_watermark_starts_with_what_it_holds_as_stable() {
    for format in Format::ALL {
        let server = inbox(Dovecot::setup().format(format), 3, 0);
        server.stop();
        server.set_xid("xid_uid_source", "table");
        server.set_xid("xid_uid_wait", "60s");
        server.start_again();
        server.note_watermark("alice", "INBOX", 3);
        let mut client = server.imap_in("alice", "INBOX");
        assert_eq!(uids(&client.ok("UID FETCH 1:* (FLAGS)")), [1, 2, 3]);
        client.append("INBOX", &message(4));
        assert_eq!(
            client.ok("STATUS INBOX (UIDNEXT)").only("STATUS"),
            "INBOX (UIDNEXT 4)"
        );
        client.ok("UID FETCH 1:3 (FLAGS)");
        let tag = send_and_see_it_wait(&mut client, "UID FETCH 4 (FLAGS)");
        advance(&server, "alice", "INBOX", 4);
        assert_eq!(uids(&client.wait(&tag)), [4]);
    }
}

#[test]
fn what_came_while_the_plug_in_was_off_is_the_assigners_when_it_is_back() {
    for format in Format::ALL {
        let server = inbox(table().format(format), 2, 2);
        server.stop();
        server.set_plugin(false);
        server.start_again();
        server.append("alice", "INBOX", &message(3));
        server.stop();
        server.set_plugin(true);
        server.start_again();
        let mut client = server.imap("alice");
        let next = client.ok("SELECT INBOX").untagged_code("UIDNEXT");
        assert_eq!(next.as_deref(), Some("3"), "{format:?}");
        assert_eq!(uids(&client.ok("UID FETCH 1:2 (FLAGS)")), [1, 2]);
        let tag = send_and_see_it_wait(&mut client, "UID FETCH 3 (FLAGS)");
        assert_eq!(crate::assign::inbox_state(&server).pending, 1);
        advance(&server, "alice", "INBOX", 3);
        assert_eq!(uids(&client.wait(&tag)), [3], "{format:?}");
    }
}

#[test]
fn compression_works_around_a_wait() {
    let server = inbox(table(), 2, 1);
    let mut client = server.imap_in("alice", "INBOX");
    client.compress();
    let waiting = send_and_see_it_wait(&mut client, "UID FETCH 2 (FLAGS)");
    let behind = client.send("FETCH 1 (FLAGS)");
    advance(&server, "alice", "INBOX", 2);
    assert!(client.wait(&waiting).is_ok());
    assert!(client.wait(&behind).is_ok());
}

#[test]
fn tls_works_around_a_wait() {
    let server = inbox(table().tls(), 2, 1);
    let mut client = server.imap_tls("alice");
    client.ok("SELECT INBOX");
    let waiting = send_and_see_it_wait(&mut client, "UID FETCH 2 (FLAGS)");
    advance(&server, "alice", "INBOX", 2);
    assert!(client.wait(&waiting).is_ok());
}

#[test]
fn notify_works_around_a_wait() {
    let server = inbox(table(), 2, 1);
    let mut client = server.imap_in("alice", "INBOX");
    client.ok("CREATE Other");
    client.ok(
        "NOTIFY SET (SELECTED (MessageNew (FLAGS) MessageExpunge FlagChange)) \
               (MAILBOXES Other (MessageNew MessageExpunge))",
    );
    let tag = send_and_see_it_wait(&mut client, "UID FETCH 1:* (FLAGS)");
    // What happens meanwhile is told, if not before then after the wait.
    server.append("alice", "INBOX", &message(3));
    server.append("alice", "Other", &message(4));
    server
        .imap_in("alice", "INBOX")
        .ok("STORE 1 +FLAGS (\\Flagged)");
    advance(&server, "alice", "INBOX", 2);
    let reply = client.wait(&tag);
    assert!(reply.is_ok(), "{}", reply.text);
    assert_eq!(uids(&reply), [1, 2]);
    for line in ["3 EXISTS", "STATUS Other", "1 FETCH (FLAGS (\\Flagged"] {
        if !reply.lines.iter().any(|told| told.contains(line)) {
            client.wait_line(line);
        }
    }
    // And it goes on: with NOTIFY, what is new is fetched when it is told.
    server.append("alice", "INBOX", &message(5));
    let reply = client.ok("NOOP");
    assert_eq!(reply.exists(), Some(4));
    assert!(reply.fetches().iter().any(|fetch| fetch.seq == 4));
}

#[test]
fn idle_works_before_and_after_a_wait() {
    let server = inbox(table(), 2, 1);
    let mut client = server.imap_in("alice", "INBOX");
    let idle = client.idle();
    server.append("alice", "INBOX", &message(3));
    client.wait_line("3 EXISTS");
    client.done(&idle);
    let tag = send_and_see_it_wait(&mut client, "UID FETCH 1:* (FLAGS)");
    advance(&server, "alice", "INBOX", 3);
    assert_eq!(uids(&client.wait(&tag)), [1, 2, 3]);
    let idle = client.idle();
    server.append("alice", "INBOX", &message(4));
    client.wait_line("4 EXISTS");
    client.done(&idle);
}

#[test]
fn an_idle_pipelined_behind_a_waiting_command_begins_after_it() {
    let server = inbox(table(), 2, 1);
    let mut client = server.imap_in("alice", "INBOX");
    let waiting = send_and_see_it_wait(&mut client, "UID FETCH 2 (FLAGS)");
    let idle = client.send("IDLE");
    advance(&server, "alice", "INBOX", 2);
    assert!(client.wait(&waiting).is_ok());
    client.wait_line("+ ");
    server.append("alice", "INBOX", &message(3));
    client.wait_line("3 EXISTS");
    client.done(&idle);
}

#[test]
fn hibernation_works_around_a_wait() {
    let server = inbox(table().hibernate("1s"), 2, 2);
    let mut client = server.imap_in("alice", "INBOX");
    let idle = client.idle();
    until("the client hibernates", || server.pids("imap").is_empty());
    server.append("alice", "INBOX", &message(3));
    client.wait_line("3 EXISTS");
    client.done(&idle);
    let tag = send_and_see_it_wait(&mut client, "UID FETCH 1:* (FLAGS)");
    advance(&server, "alice", "INBOX", 3);
    assert_eq!(uids(&client.wait(&tag)), [1, 2, 3]);
    let idle = client.idle();
    until("the client hibernates again", || {
        server.pids("imap").is_empty()
    });
    client.done(&idle);
    assert_eq!(uids(&client.ok("UID FETCH 1:* (FLAGS)")), [1, 2, 3]);
}

#[test]
fn appends_never_wait_however_many_uids_are_pending() {
    let server = table().start();
    let mut client = server.imap("alice");
    for n in 1..=300 {
        client.append("INBOX", &message(n));
    }
    client.ok("SELECT INBOX");
    assert_eq!(client.ok("FETCH 1:* (XID)").fetches().len(), 300);
    advance(&server, "alice", "INBOX", 300);
    assert_eq!(uids(&client.ok("UID FETCH 1:* (FLAGS)")).len(), 300);
}

#[test]
fn a_mailbox_whose_index_is_in_memory_has_nobody_to_agree_with() {
    let server = table()
        .format(Format::Maildir)
        .location(":INDEX=MEMORY")
        .start();
    server.allow_log("index is in memory");
    server.note_watermark("alice", "INBOX", 100);
    let mut client = server.imap("alice");
    client.append("INBOX", &message(1));
    let next = client.ok("SELECT INBOX").untagged_code("UIDNEXT");
    assert_eq!(next.as_deref(), Some("2"));
    assert_eq!(uids(&client.ok("UID FETCH 1:* (FLAGS)")), [1]);
}

#[test]
fn the_files_of_the_plug_in_are_no_mailboxes_where_mailboxes_are_plain_folders() {
    let fs = table().format(Format::Maildir).location(":LAYOUT=fs");
    let server = inbox(fs, 1, 0);
    let mut client = server.imap_in("alice", "INBOX");
    client.ok("CREATE Other");
    // A wait makes the folder of those that wait.
    let tag = send_and_see_it_wait(&mut client, "UID FETCH 1:* (FLAGS)");
    advance(&server, "alice", "INBOX", 1);
    assert!(client.wait(&tag).is_ok());
    assert!(server.mail_dir("alice").join("xid.waiters").is_dir());
    let listed = server.imap("alice").ok("LIST \"\" *");
    let names: Vec<String> = listed
        .untagged("LIST")
        .iter()
        .map(|l| l.text().into_owned())
        .collect();
    assert_eq!(names.len(), 2, "{names:?}");
}

#[test]
fn catenate_with_the_url_of_an_unstable_message_waits() {
    let server = inbox(table(), 2, 1);
    let mut client = server.imap_in("alice", "INBOX");
    client.ok("CREATE Other");
    let validity = client
        .ok("STATUS INBOX (UIDVALIDITY)")
        .only("STATUS")
        .rsplit(' ')
        .next()
        .map(|word| word.trim_end_matches(')').to_owned())
        .expect("a UIDVALIDITY");
    let url = |uid: u32| format!("\"/INBOX;UIDVALIDITY={validity}/;UID={uid}\"");
    client.ok(&format!("APPEND Other CATENATE (URL {})", url(1)));
    let parts = format!("TEXT {{6+}}\r\nA: b\r\n URL {}", url(2));
    let tag = send_and_see_it_wait(&mut client, &format!("APPEND Other CATENATE ({parts})"));
    // The client is alone in waiting.
    server.imap_in("alice", "INBOX").ok("FETCH 1:* (XID)");
    advance(&server, "alice", "INBOX", 2);
    assert!(client.wait(&tag).is_ok());
    // A URL that comes after the command began finds no message yet.
    server.append("alice", "INBOX", &message(3));
    client.ok("NOOP");
    let tag = client.new_tag();
    client.raw(format!("{} APPEND Other CATENATE (TEXT {{6}}\r\n", tag.0).as_bytes());
    assert!(client.read_line().starts_with("+"));
    client.raw(format!("A: b\r\n URL {})\r\n", url(3)).as_bytes());
    assert!(!client.wait(&tag).is_ok());
}

/// Times that the process slept in the kernel and was woken.
fn wake_ups(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it lives");
    let count = status
        .lines()
        .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    count.and_then(|n| n.trim().parse().ok()).expect("a count")
}

/// Longer than any pause after which something used to look at the table.
const QUIET: std::time::Duration = std::time::Duration::from_secs(6);

#[test]
fn a_waiting_client_without_keepalives_wakes_its_process_not_once() {
    let server = inbox(table().xid("xid_keepalive", "0"), 2, 1);
    let mut client = server.imap_in("alice", "INBOX");
    let tag = client.send("UID FETCH 1:* (FLAGS)");
    until("the client waits", || {
        crate::assign::waiters(&server) == 1 && server.pids("imap").len() == 1
    });
    let pid = server.pids("imap")[0];
    // The process goes to sleep after it announced the wait.
    let mut before = wake_ups(pid);
    until("the process sleeps", || {
        std::thread::sleep(std::time::Duration::from_millis(500));
        std::mem::replace(&mut before, wake_ups(pid)) == wake_ups(pid)
    });
    std::thread::sleep(QUIET);
    assert_eq!(wake_ups(pid), before);
    advance(&server, "alice", "INBOX", 2);
    assert_eq!(uids(&client.wait(&tag)), [1, 2]);
}

/// Takes away the files by which those who wait are woken.
fn remove_waiters(server: &Dovecot) {
    let folder = server.mail_dir("alice").join("xid.waiters");
    let entries = std::fs::read_dir(folder).expect("a folder of those who wait");
    for entry in entries {
        std::fs::remove_file(entry.expect("an entry").path()).expect("it can be removed");
    }
}

#[test]
fn an_alarm_that_was_lost_is_made_good_by_the_next_keepalive() {
    let server = inbox(table(), 2, 1);
    let mut client = server.imap_in("alice", "INBOX");
    let tag = send_and_see_it_wait(&mut client, "UID FETCH 1:* (FLAGS)");
    remove_waiters(&server);
    advance(&server, "alice", "INBOX", 2);
    assert_eq!(uids(&client.wait(&tag)), [1, 2]);
}

#[test]
fn without_keepalives_a_lost_alarm_is_made_good_when_the_time_is_over() {
    let setup = table().xid("xid_keepalive", "0").xid("xid_uid_wait", "3s");
    let server = inbox(setup, 2, 1);
    let mut client = server.imap_in("alice", "INBOX");
    let tag = client.send("UID FETCH 1:* (FLAGS)");
    until("the client waits", || crate::assign::waiters(&server) == 1);
    remove_waiters(&server);
    advance(&server, "alice", "INBOX", 2);
    assert_eq!(uids(&client.wait(&tag)), [1, 2]);
}
