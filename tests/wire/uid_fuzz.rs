//! Random sessions with random advances: no line shows a UID that is not stable (the scanner
//! judges all of them), a UID never names two messages, and nothing makes the server fall over.
//!
//! `XID_FUZZ_SEED` repeats a run; `XID_FUZZ_COMMANDS` makes it longer.

use std::collections::HashMap;

use crate::assign::{Assigner, guid};
use crate::harness::*;

const BOXES: [&str; 2] = ["INBOX", "Other"];

/// A client of the server, and what the generator needs to know of it.
struct Session {
    client: Imap,
    qresync: bool,
    selected: Option<usize>,
    exists: u32,
    /// `uidvalidity highestmodseq` of the last SELECT.
    mark: Option<(String, String)>,
    updates: usize,
}

impl Session {
    fn open(server: &Dovecot, qresync: bool) -> Session {
        let mut client = server.imap("alice");
        if qresync {
            client.ok("ENABLE QRESYNC");
        }
        Session {
            client,
            qresync,
            selected: None,
            exists: 0,
            mark: None,
            updates: 0,
        }
    }

    /// Takes in what an answer says of the mailbox.
    fn follow(&mut self, reply: &Reply) {
        for line in &reply.lines {
            if line.keyword() == "EXISTS" {
                let text = line.text();
                self.exists = text
                    .split(' ')
                    .nth(1)
                    .and_then(|n| n.parse().ok())
                    .unwrap_or(0);
            }
        }
        let validity = reply.untagged_code("UIDVALIDITY");
        let modseq = reply.untagged_code("HIGHESTMODSEQ");
        if let (Some(validity), Some(modseq)) = (validity, modseq) {
            self.mark = Some((validity, modseq));
        }
    }
}

struct Fuzz<'a> {
    server: &'a Dovecot,
    random: Random,
    assigner: Assigner,
    guids: Vec<[u8; 16]>,
    messages: usize,
    /// (mailbox, UID) -> XID, of all that was ever shown.
    shown: HashMap<(usize, u32), String>,
    /// XIDs of messages that were seen.
    xids: Vec<String>,
    /// UIDs that POP3 showed.
    popped: usize,
}

impl Fuzz<'_> {
    fn number(&mut self, max: u32) -> u32 {
        1 + self.random.below(max.max(1) as usize) as u32
    }

    /// A set of numbers up to a bit above `max`.
    fn set(&mut self, max: u32) -> String {
        let mut parts = Vec::new();
        for _ in 0..=self.random.below(3) {
            let (a, b) = (self.number(max), self.number(max));
            parts.push(match self.random.below(6) {
                0 => "*".into(),
                1 => format!("{a}:*"),
                2 | 3 => format!("{a}:{b}"),
                _ => a.to_string(),
            });
        }
        parts.join(",")
    }

    fn uid_set(&mut self, session: &Session) -> String {
        if self.random.chance(12) {
            return "$".into();
        }
        let last = session
            .selected
            .map_or(1, |at| self.assigner.state(&self.guids[at]).last_uid);
        self.set(last + 2)
    }

    fn seq_set(&mut self, session: &Session) -> String {
        if self.random.chance(12) {
            return "$".into();
        }
        // Above EXISTS it is a BAD.
        let max = session.exists.max(1);
        let (a, b) = (self.number(max), self.number(max));
        match self.random.below(4) {
            0 => "1:*".into(),
            1 => "*".into(),
            2 => format!("{a}:{b}"),
            _ => a.to_string(),
        }
    }

    fn xid_set(&mut self) -> String {
        let mut set = vec!["nobody-1".to_owned()];
        for _ in 0..self.random.below(4) {
            if !self.xids.is_empty() {
                let xid = self.random.pick(&self.xids);
                set.push(xid.clone());
            }
        }
        set.join(",")
    }

    fn items(&mut self) -> &'static str {
        const ITEMS: [&str; 11] = [
            "(FLAGS)",
            "(UID XID FLAGS)",
            "(XID UID)",
            "(UID XID)",
            "(XID BODY.PEEK[HEADER.FIELDS (SUBJECT)])",
            "(MODSEQ UID)",
            "(UID ENVELOPE BODYSTRUCTURE)",
            "(BODY[])",
            "(INTERNALDATE RFC822.SIZE)",
            "FAST",
            "(MODSEQ FLAGS)",
        ];
        self.random.pick::<&'static str>(&ITEMS)
    }

    /// Stock Dovecot panics at a THREAD and at an UPDATE of sequences in an empty mailbox: then
    /// without them.
    fn keys(&mut self, session: &Session, with_seqs: bool) -> String {
        let uids = self.uid_set(session);
        let seqs = match with_seqs {
            true => self.seq_set(session),
            false => "ALL".into(),
        };
        match self.random.below(13) {
            0 => "ALL".into(),
            1 => format!("UID {uids}"),
            2 => seqs,
            3 => format!("NOT UID {uids}"),
            4 => format!("OR UID {uids} FLAGGED"),
            5 => "SUBJECT message".into(),
            6 => format!("{seqs} UNSEEN"),
            7 => format!("(UID {uids} UNDELETED)"),
            8 => "MODSEQ 1".into(),
            9 => "$".into(),
            10 => "FLAGGED".into(),
            11 => format!("XID {}", self.xid_set()),
            _ => format!("UID {uids} NOT SUBJECT UID"),
        }
    }

    fn flags(&mut self) -> String {
        let how = self
            .random
            .pick(&["FLAGS", "+FLAGS", "-FLAGS", "+FLAGS.SILENT"]);
        let flag = self
            .random
            .pick(&["\\Seen", "\\Flagged", "\\Deleted", "keyword"]);
        format!("{how} ({flag})")
    }

    fn search(&mut self, session: &mut Session) -> String {
        let returns = match self.random.below(9) {
            0 => "RETURN (MIN MAX COUNT) ",
            1 => "RETURN (ALL) ",
            2 => "RETURN (SAVE) ",
            3 => "RETURN (COUNT SAVE) ",
            4 if session.updates < 5 => {
                session.updates += 1;
                "RETURN (ALL UPDATE) "
            }
            5 => "RETURN () ",
            _ => "",
        };
        let bare = if returns.is_empty() && self.random.chance(4) {
            " XID"
        } else {
            ""
        };
        let with_seqs = !returns.contains("UPDATE");
        format!("SEARCH {returns}{}{bare}", self.keys(session, with_seqs))
    }

    fn by_uid(&mut self, session: &Session) -> (&'static str, String) {
        match self.random.chance(2) {
            true => ("UID ", self.uid_set(session)),
            false => ("", self.seq_set(session)),
        }
    }

    fn by_xid(&mut self, session: &mut Session) -> String {
        let set = self.xid_set();
        let other = *self.random.pick(&BOXES);
        match self.random.below(10) {
            0..=3 => format!("XHXID FETCH {set} {}", self.items()),
            4 => format!("XHXID STORE {set} {}", self.flags()),
            5 if session.exists < 60 => format!("XHXID COPY {set} {other}"),
            5 | 6 => format!("XHXID MOVE {set} {other}"),
            7 => format!("XHXID EXPUNGE {set}"),
            8 => format!("XHXID SORT (DATE) UTF-8 {}", self.keys(session, true)),
            _ => format!("XHXID SEARCH {}", self.keys(session, true)),
        }
    }

    /// What is about a mailbox by its name, selected or not.
    fn by_name(&mut self) -> String {
        let at = self.random.below(BOXES.len());
        let name = BOXES[at];
        let last = self.assigner.state(&self.guids[at]).last_uid;
        let uid = self.number(last + 1);
        let url = format!("imap://alice@imap.example.org/{name}/;UID={uid}");
        match self.random.below(6) {
            0 => format!("GETMETADATA (DEPTH infinity) {name} (/private /shared)"),
            1 => format!("SETMETADATA {name} (/private/comment \"mine\")"),
            2 => format!("GENURLAUTH \"{url};URLAUTH=user+alice\" INTERNAL"),
            3 => format!("APPEND {name} CATENATE (URL \"/{name}/;UID={uid}\")"),
            4 => "LIST \"\" * RETURN (STATUS (UIDNEXT MESSAGES))".into(),
            _ => format!("STATUS {name} (MESSAGES UIDNEXT HIGHESTMODSEQ)"),
        }
    }

    fn selected_command(&mut self, session: &mut Session) -> String {
        let (uid, set) = self.by_uid(session);
        let other = *self.random.pick(&BOXES);
        match self.random.below(26) {
            0..=4 => {
                let modifier = match (self.random.below(6), session.qresync) {
                    // Stock Dovecot panics where "$" is empty.
                    (0, true) if !uid.is_empty() && set != "$" => " (CHANGEDSINCE 1 VANISHED)",
                    (1, _) => " (CHANGEDSINCE 3)",
                    _ => "",
                };
                format!("{uid}FETCH {set} {}{modifier}", self.items())
            }
            5..=7 => format!("{uid}STORE {set} {}", self.flags()),
            8 => format!("{uid}STORE {set} (UNCHANGEDSINCE 5) {}", self.flags()),
            // Copies of copies would soon be all that there is.
            9 | 10 if session.exists > 60 => "STORE 1:40 +FLAGS.SILENT (\\Deleted)".into(),
            9 => format!("{uid}COPY {set} {other}"),
            10 => format!("{uid}MOVE {set} {other}"),
            11 => "EXPUNGE".into(),
            12 => format!("UID EXPUNGE {}", self.uid_set(session)),
            13..=15 => {
                let search = self.search(session);
                format!("{}{search}", self.random.pick(&["", "UID "]))
            }
            16 => format!("UID SORT (DATE) UTF-8 {}", self.keys(session, true)),
            17 => format!("{uid}THREAD REFERENCES UTF-8 {}", self.keys(session, false)),
            18 => "XHXID".into(),
            19 => "CHECK".into(),
            20..=23 => self.by_xid(session),
            _ => "NOOP".into(),
        }
    }

    fn select(&mut self, session: &Session) -> (usize, String) {
        let at = self.random.below(2);
        let name = self.random.pick(&["SELECT", "EXAMINE"]);
        let qresync = match &session.mark {
            Some((validity, modseq)) if session.qresync && self.random.chance(2) => {
                let known = if self.random.chance(2) { "" } else { " 1:40" };
                format!(" (QRESYNC ({validity} {modseq}{known}))")
            }
            _ => String::new(),
        };
        (at, format!("{name} {}{qresync}", BOXES[at]))
    }

    fn any_command(&mut self, session: &mut Session) -> String {
        if session.selected.is_none() || self.random.chance(25) {
            let (at, command) = self.select(session);
            session.selected = Some(at);
            session.updates = 0;
            return command;
        }
        match self.random.below(20) {
            0 | 1 => self.by_name(),
            2 if self.random.chance(3) => "NOTIFY SET (SELECTED (MessageNew (UID FLAGS) \
                MessageExpunge FlagChange)) (PERSONAL (MessageNew MessageExpunge))"
                .into(),
            3 if self.random.chance(2) => "NOTIFY NONE".into(),
            _ => self.selected_command(session),
        }
    }

    /// Raises the watermark of a random mailbox.
    fn advance(&mut self, all: bool) {
        for (at, mailbox) in BOXES.iter().enumerate() {
            if !all && self.random.chance(2) {
                continue;
            }
            let state = self.assigner.state(&self.guids[at]);
            let room = state.last_uid.saturating_sub(state.watermark);
            if room == 0 {
                continue;
            }
            let uid = match all {
                true => state.last_uid,
                false => state.watermark + self.number(room),
            };
            self.server.note_watermark("alice", mailbox, uid);
            self.assigner.advance(&self.guids[at], uid);
        }
    }

    fn append(&mut self, session: &mut Session) {
        self.messages += 1;
        let mailbox = *self.random.pick(&BOXES);
        let reply = session
            .client
            .try_append(mailbox, &message(self.messages))
            .expect("the connection holds");
        assert!(reply.is_ok(), "APPEND: {}", reply.text);
        session.follow(&reply);
    }

    fn idle(&mut self, session: &mut Session) {
        let idle = session.client.idle();
        if self.random.chance(2) {
            self.advance(false);
        }
        let reply = session.client.done(&idle);
        session.follow(&reply);
    }

    /// A UID that was shown once names the same message for ever.
    fn judge(&mut self, session: &Session, reply: &Reply) {
        let Some(at) = session.selected else { return };
        for fetch in reply.fetches() {
            self.xids.extend(fetch.xid());
            if let (Some(uid), Some(xid)) = (fetch.uid(), fetch.xid()) {
                let first = self.shown.entry((at, uid)).or_insert_with(|| xid.clone());
                assert_eq!(*first, xid, "UID {uid} of {} named two messages", BOXES[at]);
            }
        }
    }

    /// A POP3 login waits for UIDs, and is refused for now when they do not come.
    fn pop3(&mut self) {
        let mut client = self.server.connect_pop3();
        client.ok("USER alice");
        client.ok("PASS pass");
        client.send("UIDL");
        if !client.line().starts_with("+OK") {
            return;
        }
        let mark = self.server.watermarks().get("alice", "INBOX");
        loop {
            let line = client.line();
            if line == "." {
                return;
            }
            // The number, and the UID and the UIDVALIDITY in 8 hex digits each.
            let uid = line.split(' ').nth(1).and_then(|uidl| uidl.get(..8));
            let uid = uid.and_then(|uid| u32::from_str_radix(uid, 16).ok());
            let uid = uid.unwrap_or_else(|| panic!("UIDL says {line}"));
            assert!(
                uid <= mark,
                "UIDL shows UID {uid} above the watermark {mark}"
            );
            self.popped += 1;
        }
    }

    fn step(&mut self, session: &mut Session) {
        if self.random.chance(40) {
            return self.pop3();
        }
        if self.random.chance(6) {
            return self.append(session);
        }
        if session.selected.is_some() && self.random.chance(20) {
            return self.idle(session);
        }
        let before = session.selected;
        // Which mailbox a line is of must be known, so a SELECT is sent alone; and stock Dovecot
        // panics at a COPY behind a NOOP when NOTIFY is on.
        let mut tags = Vec::new();
        for _ in 0..=self.random.below(3) {
            let command = self.any_command(session);
            let alone = ["SELECT", "EXAMINE", "NOOP"]
                .iter()
                .any(|name| command.starts_with(name));
            if alone && !tags.is_empty() {
                session.selected = before;
                break;
            }
            tags.push(session.client.send(&command));
            if alone {
                break;
            }
        }
        if self.random.chance(2) {
            let all = self.random.chance(2);
            self.advance(all);
        }
        for tag in tags {
            let reply = session.client.try_wait(&tag).expect("the connection holds");
            session.follow(&reply);
            self.judge(session, &reply);
        }
    }
}

fn fuzz(format: Format, commands: usize, seed: u64) {
    let server = Dovecot::setup()
        .format(format)
        .xid("xid_uid_source", "table")
        .xid("xid_uid_wait", "150ms")
        .set("imap_metadata", "yes")
        .set("mail_attribute_dict", "file:%h/dovecot-attributes")
        .set("imap_urlauth_host", "imap.example.org")
        .start();
    server.allow_log("Couldn't init INBOX");
    let mut first = server.imap("alice");
    first.ok("CREATE Other");
    for mailbox in BOXES {
        first.append(mailbox, &message(0));
    }
    let guids = BOXES
        .iter()
        .map(|name| guid(&server, "alice", name))
        .collect();
    let mut fuzz = Fuzz {
        assigner: Assigner::open(&server, "alice"),
        server: &server,
        random: Random::new(seed),
        guids,
        messages: 0,
        shown: HashMap::new(),
        xids: Vec::new(),
        popped: 0,
    };
    let mut sessions = [false, true, true].map(|qresync| Session::open(&server, qresync));
    for _ in 0..commands {
        let at = fuzz.random.below(sessions.len());
        fuzz.step(&mut sessions[at]);
    }
    assert!(!fuzz.shown.is_empty(), "no UID was ever seen");
    assert!(fuzz.popped > 0, "no UID was ever seen by POP3");
}

#[test]
fn random_sessions_never_see_a_uid_that_is_not_stable() {
    let seed = seed("XID_FUZZ_SEED", 20_261_123);
    let commands = std::env::var("XID_FUZZ_COMMANDS")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(700);
    for (n, format) in Format::ALL.into_iter().enumerate() {
        fuzz(format, commands, seed + n as u64);
    }
}
