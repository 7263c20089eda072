//! What holds for every input and every history, tried with random ones.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use imap_xid::registry::journal::{self, Record};
use imap_xid::registry::{Entry, Error, Mailbox, Registry};
use imap_xid::xid::{self, Mark, NUMBER_MAX, State, Xid, XidSet};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

// Parse and format

fn namespace() -> impl Strategy<Value = String> {
    "[A-Za-z][A-Za-z0-9._]{0,62}"
}

fn number() -> impl Strategy<Value = u64> {
    prop_oneof![1..=20_u64, 1..=NUMBER_MAX, Just(NUMBER_MAX)]
}

fn mark() -> impl Strategy<Value = Mark> {
    (1..=u32::MAX, any::<u32>()).prop_map(|(uidvalidity, uid)| Mark { uidvalidity, uid })
}

/// Text that is nearly right: what is refused is most interesting there.
fn near_miss() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        "[a-zA-Z0-9._@,:* -]{0,40}".prop_map(String::into_bytes),
        "@?[a-z0-9]{0,4}-[0-9]{0,22}[, ]?([a-z]-[0-9]{1,3})?".prop_map(String::into_bytes),
        vec(any::<u8>(), 0..60),
    ]
}

proptest! {
    #[test]
    fn an_xid_is_what_it_was_written_as(namespace in namespace(), number in number()) {
        let xid = Xid::new(namespace.as_bytes(), number).unwrap();
        let text = xid.to_string();
        prop_assert!(text.len() <= xid::XID_MAX);
        prop_assert_eq!(Xid::parse(text.as_bytes()), Ok(xid));
    }

    #[test]
    fn a_set_is_what_it_was_written_as(xids in vec((namespace(), number()), 1..40)) {
        let text = xids.iter().map(|(ns, n)| format!("{ns}-{n}")).collect::<Vec<_>>().join(",");
        let set = XidSet::parse(text.as_bytes()).unwrap();
        prop_assert_eq!(set.len(), xids.len());
        let read: Vec<(String, u64)> =
            set.iter().map(|x| (x.namespace().to_owned(), x.number())).collect();
        prop_assert_eq!(read, xids);
    }

    #[test]
    fn a_state_is_what_it_was_written_as(
        xids in vec((namespace(), number()), 0..40),
        mark in proptest::option::of(mark()),
    ) {
        let mut state = State::new();
        for (ns, n) in &xids {
            state.raise(Xid::new(ns.as_bytes(), *n).unwrap());
        }
        state.set_mark(mark);
        prop_assert_eq!(State::parse(state.to_string().as_bytes()).unwrap(), state.clone());
        for (ns, n) in &xids {
            prop_assert!(state.number(ns) >= *n);
        }
    }

    #[test]
    fn what_is_taken_is_written_the_same_way_and_what_is_refused_says_what_was_expected(
        text in near_miss(),
    ) {
        match Xid::parse(&text) {
            Ok(xid) => prop_assert_eq!(xid.to_string().into_bytes(), text.clone()),
            Err(e) => prop_assert!(e.to_string().contains("expected")),
        }
        match XidSet::parse(&text) {
            Ok(set) => {
                let again: Vec<String> = set.iter().map(|x| x.to_string()).collect();
                prop_assert_eq!(again.join(",").into_bytes(), text.clone());
            }
            Err(e) => prop_assert!(e.to_string().contains("expected")),
        }
        match State::parse(&text) {
            Ok(state) => {
                prop_assert_eq!(State::parse(state.to_string().as_bytes()), Ok(state));
            }
            Err(e) => {
                let line = e.to_string();
                prop_assert!(line.contains("expected") && line.len() < 300);
                prop_assert!(line.bytes().all(|b| (b' '..=b'~').contains(&b)), "{line}");
            }
        }
    }

    #[test]
    fn every_host_name_gives_a_namespace(host in vec(any::<u8>(), 0..300)) {
        if let Ok(namespace) = xid::namespace_from_host(&host) {
            prop_assert!(xid::check_namespace(namespace.as_bytes()).is_ok(), "{}", namespace);
        } else {
            prop_assert!(host.first().is_none_or(|&b| b == b'.'));
        }
    }
}

// The journal

#[derive(Debug, Clone)]
enum Told {
    Note(u32, String, u64, Vec<u8>),
    Box(u32, Vec<u8>),
    Forget(u32, bool),
    Gone(String, u64, Vec<u8>),
    Drop,
}

fn told() -> impl Strategy<Value = Told> {
    prop_oneof![
        4 => (1..=u32::MAX, namespace(), number(), vec(any::<u8>(), 0..=255))
            .prop_map(|(uid, ns, n, guid)| Told::Note(uid, ns, n, guid)),
        1 => (any::<u32>(), vec(any::<u8>(), 0..300)).prop_map(|(v, name)| Told::Box(v, name)),
        1 => any::<(u32, bool)>().prop_map(|(uid, firm)| Told::Forget(uid, firm)),
        1 => (namespace(), number(), vec(any::<u8>(), 0..=255))
            .prop_map(|(ns, n, guid)| Told::Gone(ns, n, guid)),
        1 => Just(Told::Drop),
    ]
}

impl Told {
    fn record(&self, mailbox: [u8; 16]) -> Record<'_> {
        match self {
            Told::Note(uid, ns, n, guid) => {
                let xid = Xid::new(ns.as_bytes(), *n).unwrap();
                Record::Note {
                    mailbox,
                    uid: *uid,
                    xid,
                    guid,
                }
            }
            Told::Box(uidvalidity, name) => Record::Box {
                mailbox,
                uidvalidity: *uidvalidity,
                name,
            },
            Told::Forget(uid, firm) => Record::Forget {
                mailbox,
                uid: *uid,
                firm: *firm,
            },
            Told::Gone(ns, n, guid) => Record::Gone {
                mailbox,
                xid: Xid::new(ns.as_bytes(), *n).unwrap(),
                guid,
            },
            Told::Drop => Record::Drop { mailbox },
        }
    }
}

/// Reads a journal in two pieces, as the reader of a file that grows does.
fn read_in_two(bytes: &[u8], cut: usize, mut each: impl FnMut(Record<'_>)) -> usize {
    let mut apply = |record: Record<'_>| {
        each(record);
        Ok::<(), ()>(())
    };
    let first = journal::read(&bytes[..cut], false, &mut apply).unwrap();
    assert!(first.consumed <= cut);
    let rest = journal::read(&bytes[first.consumed..], true, &mut apply).unwrap();
    assert_eq!(first.consumed + rest.consumed, bytes.len());
    first.garbage + rest.garbage
}

proptest! {
    #[test]
    fn a_journal_is_read_as_it_was_written_wherever_it_is_cut(
        told in vec(told(), 0..20),
        mailbox in any::<[u8; 16]>(),
        cut in any::<Index>(),
    ) {
        let mut bytes = Vec::new();
        for one in &told {
            one.record(mailbox).encode(&mut bytes);
        }
        let cut = cut.index(bytes.len() + 1);
        let mut next = told.iter();
        let garbage = read_in_two(&bytes, cut, |record| {
            assert_eq!(Some(record), next.next().map(|one| one.record(mailbox)));
        });
        prop_assert_eq!(garbage, 0);
        prop_assert!(next.next().is_none());
    }

    #[test]
    fn garbage_in_a_journal_is_skipped_and_hides_at_most_what_it_touches(
        before in told(),
        garbage in vec(any::<u8>(), 0..2000),
        after in told(),
    ) {
        let mut bytes = Vec::new();
        before.record([1; 16]).encode(&mut bytes);
        bytes.extend_from_slice(&garbage);
        after.record([2; 16]).encode(&mut bytes);
        let mut seen = Vec::new();
        let skipped = read_in_two(&bytes, bytes.len(), |record| seen.push(format!("{record:?}")));
        let expected =
            [format!("{:?}", before.record([1; 16])), format!("{:?}", after.record([2; 16]))];
        prop_assert_eq!(seen, expected);
        prop_assert_eq!(skipped, garbage.len());
    }
}

// Histories

const NODES: [&str; 3] = ["own", "north", "south"];
const UIDVALIDITY: u32 = 77;

#[derive(Debug, Clone)]
enum Step {
    /// A message of a node arrives; false: the journal could not be written.
    Save(usize, bool),
    Expunge(Index, bool),
    /// A client comes and asks what is new.
    Visit(usize),
    /// The process ends; another serves from now on.
    Restart,
    /// The registry is deleted.
    Lose,
    /// The index is lost, and with it the XIDs of all messages; UIDs and GUIDs stay.
    Reindex,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        12 => (0..NODES.len(), any::<u8>()).prop_map(|(node, luck)| Step::Save(node, luck > 20)),
        5 => (any::<Index>(), any::<bool>()).prop_map(|(which, noted)| Step::Expunge(which, noted)),
        6 => (0..2_usize).prop_map(Step::Visit),
        2 => Just(Step::Restart),
        1 => Just(Step::Lose),
        1 => Just(Step::Reindex),
    ];
    vec(step, 1..60)
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Message {
    uid: u32,
    node: usize,
    number: u64,
}

impl Message {
    fn guid(&self) -> String {
        format!("guid of {}", self.uid)
    }

    fn xid(&self) -> Xid<'static> {
        Xid::new(NODES[self.node].as_bytes(), self.number).unwrap()
    }
}

/// A host in small: the index is a list, everything else is the registry's.
struct Server {
    dir: tempfile::TempDir,
    registry: Arc<Registry>,
    mailbox: Mailbox,
    index: Vec<Message>,
    next_uid: u32,
    /// The highest number of each node, as the mailbox's header has it: it survives expunges.
    highest: [u64; NODES.len()],
    ever: BTreeSet<String>,
}

impl Server {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let registry = open(dir.path());
        Server {
            dir,
            registry,
            mailbox: mailbox(),
            index: Vec::new(),
            next_uid: 1,
            highest: [0; NODES.len()],
            ever: BTreeSet::new(),
        }
    }

    fn save(&mut self, node: usize, noted: bool) {
        let number = match node {
            0 => self.registry.take_numbers(self.highest[0], 1).unwrap(),
            _ => self.highest[node] + 1,
        };
        assert!(number > self.highest[node], "numbers ascend in a mailbox");
        self.highest[node] = number;
        let message = Message {
            uid: self.next_uid,
            node,
            number,
        };
        assert!(
            self.ever.insert(message.xid().to_string()),
            "{message:?}: XID given twice"
        );
        if noted {
            let guid = message.guid();
            let entry = Entry {
                uid: message.uid,
                xid: message.xid(),
                guid: guid.as_bytes(),
            };
            self.registry.note(&self.mailbox, &[entry]).unwrap();
        }
        self.index.push(message);
        self.next_uid += 1;
    }

    fn expunge(&mut self, which: Index, noted: bool) {
        if self.index.is_empty() {
            return;
        }
        let message = self.index.remove(which.index(self.index.len()));
        if noted {
            self.registry
                .forget(&self.mailbox, &[message.uid], u32::MAX)
                .unwrap();
        }
    }

    fn restart(&mut self) {
        self.registry = open(self.dir.path());
        self.mailbox = mailbox();
    }

    fn lose(&mut self) {
        let _ = std::fs::remove_file(self.dir.path().join("xid.registry"));
    }

    /// What the registry may not know is read from the index.
    fn cover(&self) {
        let missing = self
            .registry
            .registered(&self.mailbox, self.next_uid)
            .unwrap();
        if missing == self.next_uid {
            return;
        }
        let from = self.index.partition_point(|m| m.uid < missing);
        self.register(&self.index[from..], missing == 1);
        assert_eq!(
            self.registry
                .registered(&self.mailbox, self.next_uid)
                .unwrap(),
            self.next_uid
        );
    }

    fn register(&self, messages: &[Message], all: bool) {
        let guids: Vec<String> = messages.iter().map(Message::guid).collect();
        let entries: Vec<Entry<'_>> = messages
            .iter()
            .zip(&guids)
            .map(|(m, guid)| Entry {
                uid: m.uid,
                xid: m.xid(),
                guid: guid.as_bytes(),
            })
            .collect();
        self.registry
            .register(&self.mailbox, &entries, self.next_uid, all)
            .unwrap();
    }

    /// Spec part 1: XIDs survive index rebuilds where the host kept the message's GUID.
    fn reindex(&mut self) {
        self.cover();
        let mut recovery = self.registry.recovery(&self.mailbox).unwrap();
        for message in &self.index {
            let guid = message.guid();
            let found = recovery.as_mut().unwrap().take(guid.as_bytes()).unwrap();
            assert_eq!(found, Some(message.xid()), "{message:?}");
        }
        self.register(&self.index, true);
    }

    /// Spec part 4. The state to save comes as the text that the client gets.
    fn xhxid(&self, state: &str) -> (Vec<Message>, String) {
        let state = State::parse(state.as_bytes()).unwrap();
        let watermark = self.next_uid - 1;
        let news = match state.mark() {
            Some(mark) => {
                assert_eq!(mark.uidvalidity, UIDVALIDITY);
                let known = mark.uid.min(watermark);
                self.index
                    .iter()
                    .filter(|m| m.uid > known)
                    .cloned()
                    .collect()
            }
            None => self.plain_news(&state),
        };
        let mut code = State::new();
        for (node, &number) in NODES.iter().zip(&self.highest).filter(|(_, n)| **n > 0) {
            code.raise(Xid::new(node.as_bytes(), number).unwrap());
        }
        code.set_mark(Some(Mark {
            uidvalidity: UIDVALIDITY,
            uid: watermark,
        }));
        (news, code.to_string())
    }

    fn plain_news(&self, state: &State) -> Vec<Message> {
        self.cover();
        let uids = match self.registry.news(&self.mailbox, state) {
            Err(Error::Replaced(_)) => {
                self.cover();
                self.registry.news(&self.mailbox, state).unwrap()
            }
            other => other.unwrap(),
        };
        assert!(uids.is_sorted());
        let found = |uid: &u32| self.index.binary_search_by_key(uid, |m| m.uid).ok();
        let news: Vec<Message> = uids
            .iter()
            .filter_map(found)
            .map(|at| self.index[at].clone())
            .collect();
        for message in &news {
            assert!(
                message.number > state.number(NODES[message.node]),
                "no news: {message:?}"
            );
        }
        news
    }

    /// Every message is found under its XID.
    fn check(&self) {
        self.cover();
        for message in &self.index {
            let uid = self.registry.lookup(&self.mailbox, message.xid()).unwrap();
            assert_eq!(uid, Some(message.uid), "{message:?}");
        }
    }
}

fn open(dir: &Path) -> Arc<Registry> {
    Arc::new(Registry::new(dir, NODES[0]).unwrap())
}

fn mailbox() -> Mailbox {
    Mailbox::new([3; 16], "INBOX", UIDVALIDITY)
}

/// How many histories are tried; each takes some 50 ms.
fn histories() -> u32 {
    if std::env::var_os("IMAP_XID_SOAK").is_some() {
        3000
    } else {
        96
    }
}

/// What a client keeps: the XIDs it has, and the state it will send.
#[derive(Default)]
struct Client {
    has: BTreeSet<String>,
    state: String,
}

impl Client {
    /// Saves the state code as it is, or makes its state of what it saw (the proposal's way).
    fn visit(&mut self, server: &Server, saves_the_code: bool) {
        let (news, code) = server.xhxid(&self.state);
        let mut own = State::parse(self.state.as_bytes()).unwrap();
        for message in &news {
            self.has.insert(message.xid().to_string());
            own.raise(message.xid());
        }
        self.state = if saves_the_code {
            code
        } else {
            own.to_string()
        };
        for message in &server.index {
            assert!(
                self.has.contains(&message.xid().to_string()),
                "missed {message:?}"
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(histories()))]

    /// Numbers of one node arrive in order here, so that a client's own maxima miss nothing
    /// either (spec part 4 says when they may).
    #[test]
    fn a_client_misses_nothing_in_any_history(steps in steps()) {
        let mut server = Server::new();
        let mut clients = [Client::default(), Client::default()];
        for step in steps {
            match step {
                Step::Save(node, noted) => server.save(node, noted),
                Step::Expunge(which, noted) => server.expunge(which, noted),
                Step::Visit(who) => clients[who].visit(&server, who == 0),
                Step::Restart => server.restart(),
                Step::Lose => server.lose(),
                Step::Reindex => server.reindex(),
            }
        }
        for (who, client) in clients.iter_mut().enumerate() {
            client.visit(&server, who == 0);
        }
        server.check();
    }
}
