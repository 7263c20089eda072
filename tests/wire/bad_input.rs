//! Issue "Bad input": BAD with a text that says what was expected, no effect, no harm.

use crate::fetch_search::{all_xids, filled};
use crate::harness::*;

/// What must not change: XIDs and flags of every message.
fn picture(client: &mut Imap) -> Vec<String> {
    let reply = client.ok("FETCH 1:* (XID FLAGS)");
    let lines = reply.untagged("FETCH");
    lines.iter().map(|line| line.text().into_owned()).collect()
}

const BAD_SETS: &[&str] = &[
    "foo-0",
    "foo-",
    "foo-01",
    "-1",
    "foo",
    "1foo-1",
    "foo-1,",
    ",foo-1",
    "foo-1,,foo-1",
    "foo-1:2",
    "foo-1:foo-3",
    "1:*",
    "*",
    "1",
    "$",
    "foo-9223372036854775808",
    "fo+o-1",
    "\"\"",
    "\"foo-1 \"",
    "NIL",
    "(foo-1)",
    "@1-1",
    "\"foo 1\"",
];

const BAD_STATES: &[&str] = &[
    "foo-0",
    "foo-",
    "-1",
    "1",
    "*",
    "1:*",
    "foo-1,foo-2",
    "(foo-1)",
    "foo",
    "@",
    "@1",
    "@1-",
    "@-1",
    "@x-1",
    "@1-2-3",
    "@4294967296-1",
    "@1-4294967296",
    "@1-1 @1-1",
    "\"\"",
    "\"foo-1  foo-2\"",
    "UID foo-1",
    "NIL",
    "foo-9223372036854775808",
];

/// Arguments of XHXID that are wrong in form; SET stands for a good set.
const BAD_FORMS: &[&str] = &[
    "FETCH",
    "FETCH SET",
    "FETCH SET ()",
    "FETCH SET BODY[HEADER.FIELDS (SUBJECT)",
    "FETCH SET FLAGS (CHANGEDSINCE 1 VANISHED)",
    "STORE",
    "STORE SET",
    "STORE SET +FLAGS",
    "COPY",
    "COPY SET",
    "COPY SET (Other)",
    "COPY SET Other more",
    "MOVE SET",
    "EXPUNGE",
    "EXPUNGE SET more",
    "SORT",
    "SORT ()",
    "SORT () UTF-8 ALL",
    "SORT (REVERSE) UTF-8 ALL",
    "SORT (DATE) ALL",
    "THREAD",
    "THREAD NOSUCH UTF-8 ALL",
    "THREAD REFERENCES",
];

/// What the host itself refuses, in its own words.
const BAD_WORDS: &[&str] = &[
    "XHXID FETCH SET NOSUCHITEM",
    "XHXID FETCH SET (FLAGS NOSUCHITEM)",
    "XHXID FETCH SET FLAGS (NOSUCH 1)",
    "XHXID FETCH SET FLAGS junk",
    "XHXID FETCH SET XID.PEEK",
    "XHXID FETCH nobody-1 NOSUCHITEM",
    "XHXID STORE SET NOSUCH (\\Seen)",
    "XHXID STORE SET +FLAGS (\\NoSuchFlag)",
    "XHXID STORE SET (NOSUCH 1) +FLAGS (\\Seen)",
    "XHXID STORE nobody-1 NOSUCH (\\Seen)",
    "XHXID SEARCH",
    "XHXID SEARCH NOSUCHKEY",
    "XHXID SEARCH RETURN (NOSUCH) ALL",
    "XHXID SEARCH RETURN (PARTIAL 0:1) ALL",
    "XHXID SEARCH RETURN (ALL PARTIAL 1:2) ALL",
    "XHXID SEARCH CHARSET",
    "XHXID SORT (NOSUCH) UTF-8 ALL",
    "XHXID SORT (DATE (SIZE)) UTF-8 ALL",
    "UID XHXID",
    "UID XHXID FETCH SET FLAGS",
];

/// All commands that are malformed where `good` is a set of XIDs that are there.
fn malformed(good: &str) -> Vec<String> {
    let mut commands = Vec::new();
    for bad in BAD_SETS {
        commands.push(format!("XHXID FETCH {bad} (FLAGS)"));
        commands.push(format!("XHXID STORE {bad} +FLAGS (\\Seen)"));
        commands.push(format!("XHXID COPY {bad} Other"));
        commands.push(format!("XHXID MOVE {bad} Other"));
        commands.push(format!("XHXID EXPUNGE {bad}"));
        if !bad.contains(['"', '(']) {
            commands.push(format!("XHXID EXPUNGE {good},{bad}"));
        }
    }
    let forms = BAD_STATES.iter().chain(BAD_FORMS);
    commands.extend(forms.map(|form| format!("XHXID {}", form.replace("SET", good))));
    commands
}

#[test]
fn malformed_commands_get_bad_say_what_was_expected_and_change_nothing() {
    let (_server, mut client, x) = filled(Dovecot::setup(), 3);
    client.ok("STORE 2 +FLAGS.SILENT (\\Deleted)");
    client.ok("CREATE Other");
    let before = picture(&mut client);
    for command in malformed(&x[1]) {
        let reply = client.bad(&command);
        let says = ["xpected", "Missing", "empty", "use UID", "Unknown"];
        let told = says.iter().any(|s| reply.text.contains(s));
        assert!(told, "{command}: {}", reply.text);
        // The host ends sessions that send nothing but errors.
        client.ok("NOOP");
    }
    for command in BAD_WORDS {
        client.bad(&command.replace("SET", &x[1]));
        client.ok("NOOP");
    }
    assert_eq!(picture(&mut client), before);
    let other = client.ok("STATUS Other (MESSAGES)").only("STATUS");
    assert_eq!(other, "Other (MESSAGES 0)");
}

#[test]
fn a_line_that_is_too_long_is_refused_and_the_session_goes_on() {
    let (server, mut client, x) = filled(Dovecot::setup(), 1);
    let long = format!("XHXID FETCH {}", "foo-1234567890,".repeat(100_000));
    let reply = client.cmd(&format!("{long}foo-1 FLAGS"));
    assert_eq!(reply.status, "BAD", "{}", reply.text);
    assert_eq!(all_xids(&mut client), x);
    let mut other = server.imap_in("alice", "INBOX");
    assert_eq!(all_xids(&mut other), x);
}

#[test]
fn what_is_nested_too_deeply_is_refused() {
    let (_server, mut client, x) = filled(Dovecot::setup(), 2);
    let deep = 250_000;
    let lists = format!("{}ALL{}", "(".repeat(deep), ")".repeat(deep));
    for nested in [
        format!("XHXID SEARCH {lists}"),
        format!("XHXID SEARCH {}ALL", "NOT ".repeat(deep)),
        format!("XHXID SEARCH {}ALL", "FUZZY ".repeat(deep / 2)),
        format!("XHXID SORT (DATE) UTF-8 {}ALL", "OR ALL ".repeat(deep / 2)),
        format!("XHXID FETCH {} {lists}", x[0]),
        format!("XHXID STORE {} +FLAGS {lists}", x[0]),
        format!("XHXID {lists}"),
    ] {
        let reply = client.bad(&nested);
        assert!(reply.text.contains("xpected"), "{}", reply.text);
        client.ok("NOOP");
    }
    // What a person may write is fine.
    let some = format!("{}ALL{}", "(".repeat(50), ")".repeat(50));
    assert_eq!(client.ok(&format!("XHXID SEARCH {some}")).search(), x);
    let not = "NOT ".repeat(16_000);
    assert_eq!(client.ok(&format!("XHXID SEARCH {not}ALL")).search(), x);
    let many = "OR XID nobody-1 ".repeat(1000);
    assert_eq!(client.ok(&format!("XHXID SEARCH {many}ALL")).search(), x);
}

#[test]
fn other_commands_keep_the_hosts_limit_before_and_after() {
    let (_server, mut client, x) = filled(Dovecot::setup(), 2);
    let keys = "NOT ".repeat(100_000);
    for _ in 0..2 {
        let reply = client.bad(&format!("SEARCH {keys}ALL"));
        assert!(reply.text.contains("too large"), "{}", reply.text);
        client.ok("NOOP");
        let set = format!("{}{}", "nobody-1,".repeat(20_000), x[1]);
        assert_eq!(
            client.ok(&format!("XHXID SEARCH XID {set}")).search(),
            x[1..]
        );
        client.bad(&format!("XHXID FETCH {set},0 FLAGS"));
    }
    // Of several that are sent at once, each has its own.
    let set = format!("{}{}", "nobody-1,".repeat(20_000), x[0]);
    let tags = [
        client.send(&format!("XHXID SEARCH XID {set}")),
        client.send(&format!("XHXID FETCH {set} FLAGS")),
        client.send(&format!("SEARCH {keys}ALL")),
        client.send(&format!("XHXID SEARCH XID {set}")),
        client.send("NOOP"),
    ];
    let status: Vec<String> = tags.iter().map(|tag| client.wait(tag).status).collect();
    assert_eq!(status, ["OK", "OK", "BAD", "OK", "OK"]);
}

const WORDS: &[&str] = &[
    "XHXID",
    "FETCH",
    "STORE",
    "COPY",
    "MOVE",
    "EXPUNGE",
    "SEARCH",
    "SORT",
    "XID",
    "UID",
    "NOT",
    "OR",
    "foo-1",
    "foo-2",
    "foo-3,foo-4",
    "foo-1,foo-2,foo-3",
    "foo-999",
    "bar-1",
    "@1-2",
    "@",
    "-",
    "foo-",
    "foo-0",
    "foo-1:2",
    "1:*",
    "*",
    "$",
    "ALL",
    "(",
    "(FLAGS)",
    "(UID FLAGS)",
    "FLAGS",
    "+FLAGS",
    "-FLAGS.SILENT",
    "(\\Seen)",
    "(\\Deleted)",
    "(\\Flagged key)",
    "BODY[]",
    "(BODY.PEEK[HEADER.FIELDS (SUBJECT)])",
    "BODY[HEADER.FIELDS",
    "BODY[",
    "]",
    ")",
    "\"foo-1\"",
    "\"\"",
    "{5+}\r\nfoo-1",
    "{0+}\r\n",
    "NIL",
    "INBOX",
    "Other",
    "RETURN",
    "(MIN MAX)",
    "(SAVE)",
    "(COUNT ALL)",
    "(UPDATE)",
    "(PARTIAL 1:2)",
    "(RELEVANCY)",
    "UTF-8",
    "(REVERSE DATE)",
    "(SUBJECT)",
    "REFERENCES",
    "ORDEREDSUBJECT",
    "REFS",
    "(CHANGEDSINCE 1)",
    "(UNCHANGEDSINCE 3)",
    "(CHANGEDSINCE 1 VANISHED)",
    "MODSEQ",
    "1",
    "UNSEEN",
    "SUBJECT",
    "x",
    "FUZZY",
    "CHARSET",
    "BINARY[1]",
    "RFC822.SIZE",
    "(ALL)",
    "FAST",
    "foo-9223372036854775807",
    "foo-9223372036854775808",
    "@4294967295-4294967295",
    "foo-1 foo-2",
    "XID foo-1",
    "(XID foo-1)",
    "NOT XID foo-1",
    "OR XID foo-1 XID foo-2",
];

fn random_words(random: &mut Random, most: usize) -> String {
    let words: Vec<&str> = (0..random.below(most + 1))
        .map(|_| *random.pick(WORDS))
        .collect();
    words.join(" ")
}

fn random_set(random: &mut Random) -> String {
    let xids: Vec<String> = (0..=random.below(4))
        .map(|_| format!("foo-{}", random.below(90) + 1))
        .collect();
    xids.join(",")
}

fn random_command(random: &mut Random) -> String {
    let set = random_set(random);
    match random.below(18) {
        0..=2 => format!("XHXID {}", random_words(random, 6)),
        3 => format!("SEARCH {}", random_words(random, 5)),
        4 => format!("XHXID FETCH {set} {}", random_words(random, 3)),
        5 => format!("XHXID STORE {set} +FLAGS (\\Seen key)"),
        6 => format!("XHXID STORE {set} {}", random_words(random, 3)),
        7 => format!("XHXID SEARCH {}", random_words(random, 5)),
        8 => format!("UID SEARCH {}", random_words(random, 4)),
        9 => format!(
            "XHXID MOVE {set} {}",
            random.pick(&["Other", "INBOX", "None"])
        ),
        10 => format!("XHXID COPY {set} {}", random.pick(&["Other", "INBOX"])),
        11 => format!("XHXID STORE {set} +FLAGS.SILENT (\\Deleted)"),
        12 => format!("XHXID EXPUNGE {set}"),
        13 => format!(
            "XHXID foo-{} bar-{}",
            random.below(90) + 1,
            random.below(9) + 1
        ),
        14 => format!("XHXID SORT (ARRIVAL) UTF-8 {}", random_words(random, 3)),
        15 => format!(
            "XHXID THREAD {} UTF-8 {}",
            random.pick(&["REFS", "ORDEREDSUBJECT"]),
            random_words(random, 3)
        ),
        16 => (*random.pick(&[
            "SELECT INBOX",
            "EXAMINE INBOX",
            "SELECT Other",
            "ENABLE QRESYNC",
        ]))
        .into(),
        _ => "FETCH 1:* (XID)".into(),
    }
}

/// A session of nonsense and sense. The server may close the connection (too many errors), but
/// no process may crash: the harness looks at the log when the server ends.
fn torture(server: &Dovecot, random: &mut Random, commands: usize) {
    let mut client = server.imap_in("alice", "INBOX");
    for _ in 0..commands {
        if random.chance(8) {
            server.append("alice", "INBOX", &message(1));
        }
        let command = random_command(random);
        let survived = client
            .try_cmd(&command)
            .and_then(|_| client.try_cmd("NOOP"))
            .is_ok();
        if !survived {
            client = server.imap_in("alice", "INBOX");
        }
    }
}

#[test]
fn no_command_kills_the_process() {
    for format in Format::ALL {
        let server = Dovecot::setup().format(format).start();
        server.append("alice", "INBOX", &message(1));
        server.imap("alice").ok("CREATE Other");
        let mut random = Random::new(seed("BAD_INPUT_SEED", 11));
        torture(&server, &mut random, 500);
        server.checked("alice", "INBOX");
        server.checked("alice", "Other");
    }
}

#[test]
fn no_bytes_kill_the_process() {
    let (server, client, x) = filled(Dovecot::setup(), 3);
    drop(client);
    let mut random = Random::new(seed("BAD_BYTES_SEED", 5));
    for _ in 0..150 {
        let mut client = server.imap_in("alice", "INBOX");
        let mut bytes = b"x XHXID ".to_vec();
        for _ in 0..random.below(120) {
            let byte = random.next() as u8;
            // a literal's size would let the server wait for bytes that never come
            bytes.push(if byte == b'{' { b'?' } else { byte });
        }
        bytes.extend_from_slice(b"\r\nlast NOOP\r\n");
        let _ = client.try_raw(&bytes);
        while let Ok(Some(line)) = client.try_read_line() {
            if line.starts_with("last ") {
                break;
            }
        }
    }
    let mut client = server.imap_in("alice", "INBOX");
    assert_eq!(all_xids(&mut client), x);
}
