//! A stand-in for the cluster daemon's socket: takes what plug-ins say, and answers what the test
//! told it to.

use std::collections::HashMap;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

use imap_xid::table::Table;

use crate::harness::*;

/// The longest message.
const MESSAGE_MAX: usize = 64 * 1024;
/// How often the threads look whether they are to end, in milliseconds.
const LOOK_MS: i32 = 20;

/// How far UIDs go in a mailbox that has no record yet: new messages, and replication.
pub const FIRST_LIMITS: (u32, u32) = (10_000, 40_000);

/// What a plug-in said: `C`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    pub user: String,
    pub mailbox: String,
    pub name: String,
    pub kind: char,
    /// The system user at the other end.
    pub uid: u32,
}

/// What the daemon says to `X` about a message that the test did not name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unknown {
    /// "-": nobody has it.
    Nobody,
    /// An error.
    Error,
    /// Nothing at all.
    Silence,
}

#[derive(Default)]
struct State {
    events: Vec<Event>,
    asked: Vec<String>,
    connections: usize,
    xids: HashMap<String, String>,
    unknown: Option<Unknown>,
    cut: bool,
    held: bool,
    /// It says nothing to those who ask for the node's status, of whom there were so many.
    silent: bool,
    looks: usize,
    incarnation: u32,
    /// The server's folder that holds the users' homes.
    homes: PathBuf,
}

/// A daemon on a server's socket. Ends when dropped.
pub struct Daemon {
    path: PathBuf,
    state: Arc<Mutex<State>>,
    stop: Arc<AtomicBool>,
    threads: Arc<Mutex<Vec<JoinHandle<()>>>>,
}

impl Daemon {
    /// Listens on the socket of `server`.
    pub fn start(server: &Dovecot) -> Daemon {
        let path = server.tree().join("run/xidd");
        let listener = listen(&path).expect("a socket");
        let homes = server.home("alice");
        let state = State {
            homes: homes.parent().expect("a folder").to_owned(),
            ..State::default()
        };
        let daemon = Daemon {
            path,
            state: Arc::new(Mutex::new(state)),
            stop: Arc::default(),
            threads: Arc::default(),
        };
        let (state, stop) = (Arc::clone(&daemon.state), Arc::clone(&daemon.stop));
        let threads = Arc::clone(&daemon.threads);
        let accepting = std::thread::spawn(move || {
            while let Some(connection) = accept(&listener, &stop) {
                lock(&state).connections += 1;
                let (state, stop) = (Arc::clone(&state), Arc::clone(&stop));
                let serving = std::thread::spawn(move || serve(&connection, &state, &stop));
                lock(&threads).push(serving);
            }
        });
        lock(&daemon.threads).push(accepting);
        daemon
    }

    /// What was said so far.
    pub fn events(&self) -> Vec<Event> {
        lock(&self.state).events.clone()
    }

    /// Waits until something is said that fits.
    pub fn wait_event(&self, what: &str, fits: impl Fn(&Event) -> bool) -> Event {
        let mut found = None;
        until(what, || {
            found = self.events().into_iter().find(|event| fits(event));
            found.is_some()
        });
        found.expect("until() saw it")
    }

    /// Forgets what was said and asked.
    pub fn forget(&self) {
        let mut state = lock(&self.state);
        state.events.clear();
        state.asked.clear();
    }

    /// The GUIDs that were asked for.
    pub fn asked(&self) -> Vec<String> {
        lock(&self.state).asked.clone()
    }

    /// How many processes connected.
    pub fn connections(&self) -> usize {
        lock(&self.state).connections
    }

    /// The daemon knows these messages, as if it had asked the other nodes; several of one GUID
    /// with their UIDs and XIDs in order.
    pub fn knows(&self, messages: &[Message]) {
        messages
            .iter()
            .for_each(|message| self.learns(message, message.uid));
    }

    /// Another node had these messages, and has them no more.
    pub fn knows_gone(&self, messages: &[Message]) {
        messages.iter().for_each(|message| self.learns(message, 0));
    }

    fn learns(&self, message: &Message, uid: u32) {
        let xid = message.xid.as_ref().expect("an XID");
        let xid = format!("{uid}:{xid}");
        let mut state = lock(&self.state);
        let entry = state.xids.entry(message.guid.clone());
        entry
            .and_modify(|xids| {
                if !xids.split(',').any(|known| known == xid) {
                    *xids = format!("{xids},{xid}");
                }
            })
            .or_insert(xid);
    }

    /// What it says about others.
    pub fn says_of_others(&self, unknown: Unknown) {
        lock(&self.state).unknown = Some(unknown);
    }

    /// Whether it keeps those who ask for XIDs waiting (they wait five seconds).
    pub fn hold(&self, held: bool) {
        lock(&self.state).held = held;
    }

    /// Whether it does not answer those who ask whether the node is in the cluster.
    pub fn silence(&self, silent: bool) {
        lock(&self.state).silent = silent;
    }

    /// How often it was asked whether the node is in the cluster.
    pub fn looks(&self) -> usize {
        lock(&self.state).looks
    }

    /// Which of the node's disks it says this is.
    pub fn disk(&self, incarnation: u32) {
        lock(&self.state).incarnation = incarnation;
    }

    /// Whether it says that the node is cut off.
    pub fn cut(&self, cut: bool) {
        lock(&self.state).cut = cut;
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = std::fs::remove_file(&self.path);
        loop {
            let Some(thread) = lock(&self.threads).pop() else {
                return;
            };
            let _ = thread.join();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn check(result: i32) -> io::Result<i32> {
    match result {
        -1 => Err(io::Error::last_os_error()),
        value => Ok(value),
    }
}

fn listen(path: &Path) -> io::Result<OwnedFd> {
    let _ = std::fs::remove_file(path);
    // SAFETY: all zeroes are a valid address; descriptors are ours; the path fits, as is checked.
    unsafe {
        let fd = OwnedFd::from_raw_fd(check(libc::socket(
            libc::AF_UNIX,
            libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC,
            0,
        ))?);
        let mut address: libc::sockaddr_un = std::mem::zeroed();
        address.sun_family = libc::AF_UNIX as libc::sa_family_t;
        let bytes = path.as_os_str().as_bytes();
        assert!(bytes.len() < address.sun_path.len(), "{}", path.display());
        for (to, from) in address.sun_path.iter_mut().zip(bytes) {
            *to = *from as libc::c_char;
        }
        let size = size_of::<libc::sockaddr_un>() as libc::socklen_t;
        check(libc::bind(
            fd.as_raw_fd(),
            (&raw const address).cast(),
            size,
        ))?;
        let name = CString::new(bytes)?;
        check(libc::chmod(name.as_ptr(), 0o666))?;
        check(libc::listen(fd.as_raw_fd(), 64))?;
        Ok(fd)
    }
}

/// Waits until there is something to read; `false` when the daemon ends.
fn readable(fd: &OwnedFd, stop: &AtomicBool) -> bool {
    while !stop.load(Ordering::SeqCst) {
        let mut poll = libc::pollfd {
            fd: fd.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one entry.
        if unsafe { libc::poll(&raw mut poll, 1, LOOK_MS) } > 0 {
            return true;
        }
    }
    false
}

fn accept(listener: &OwnedFd, stop: &AtomicBool) -> Option<OwnedFd> {
    if !readable(listener, stop) {
        return None;
    }
    // SAFETY: the descriptor is open; the new one is ours.
    unsafe {
        let fd = check(libc::accept(
            listener.as_raw_fd(),
            std::ptr::null_mut(),
            std::ptr::null_mut(),
        ));
        Some(OwnedFd::from_raw_fd(fd.expect("accept")))
    }
}

fn peer(connection: &OwnedFd) -> u32 {
    let mut cred = libc::ucred {
        pid: 0,
        uid: 0,
        gid: 0,
    };
    let mut size = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: room for the answer, of that size.
    let result = unsafe {
        libc::getsockopt(
            connection.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut cred).cast(),
            &raw mut size,
        )
    };
    check(result).expect("SO_PEERCRED");
    cred.uid
}

fn serve(connection: &OwnedFd, state: &Mutex<State>, stop: &AtomicBool) {
    let uid = peer(connection);
    let mut buffer = vec![0u8; MESSAGE_MAX + 1];
    while readable(connection, stop) {
        // SAFETY: room for as much as is said.
        let length = unsafe {
            libc::recv(
                connection.as_raw_fd(),
                buffer.as_mut_ptr().cast(),
                buffer.len(),
                0,
            )
        };
        let Ok(length @ 1..=MESSAGE_MAX) = usize::try_from(length) else {
            return;
        };
        let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
        let Some(answer) = lock(state).take(&text, uid) else {
            continue;
        };
        while answer.starts_with('X') && lock(state).held && !stop.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(LOOK_MS as u64));
        }
        // SAFETY: as long as is said.
        unsafe {
            libc::send(
                connection.as_raw_fd(),
                answer.as_ptr().cast(),
                answer.len(),
                libc::MSG_NOSIGNAL,
            )
        };
    }
}

impl State {
    /// The answer to a message, if it gets one.
    fn take(&mut self, text: &str, uid: u32) -> Option<String> {
        let fields: Vec<String> = text.split('\t').map(unescape).collect();
        let fields: Vec<&str> = fields.iter().map(String::as_str).collect();
        match fields.as_slice() {
            ["C", user, mailbox, name, kind] => {
                if *kind == "w" && !self.cut {
                    self.make_room(user, mailbox);
                }
                self.events.push(Event {
                    user: (*user).into(),
                    mailbox: (*mailbox).into(),
                    name: (*name).into(),
                    kind: kind.chars().next().expect("a kind"),
                    uid,
                });
                None
            }
            ["S"] => self.status(),
            // However sure it is to be, it has nobody to ask.
            ["X" | "A" | "R", _user, _mailbox, _name, guids @ ..] => self.xids(guids),
            other => panic!("the plug-in said {other:?}"),
        }
    }

    fn status(&mut self) -> Option<String> {
        self.looks += 1;
        let status = match self.cut {
            true => "S\tcut".to_owned(),
            false => format!("S\tin\t{}", self.incarnation),
        };
        (!self.silent).then_some(status)
    }

    /// Whoever waits in a mailbox of which no daemon has said anything gets what xidd gives to one
    /// without a record.
    fn make_room(&self, user: &str, mailbox: &str) {
        let folder = self.homes.join(user).join("mail");
        let guid = u128::from_str_radix(mailbox, 16).expect("a GUID");
        let table = Arc::new(Table::open(&folder).expect("a table").0);
        let found = table.find(&guid.to_be_bytes()).expect("a table");
        let unknown = found.filter(|mailbox| mailbox.limit().is_none());
        if let Some(mailbox) = unknown {
            let (limit, bound) = FIRST_LIMITS;
            mailbox.set_limits(limit, bound).expect("limits");
        }
    }

    fn xids(&mut self, guids: &[&str]) -> Option<String> {
        let mut answer = "X".to_owned();
        for guid in guids {
            self.asked.push((*guid).to_owned());
            let xid = match (self.xids.get(*guid), self.unknown) {
                (Some(xid), _) => xid,
                (None, None | Some(Unknown::Nobody)) => "-",
                (None, Some(Unknown::Error)) => return Some("E\tno peer answers".to_owned()),
                (None, Some(Unknown::Silence)) => return None,
            };
            answer.push('\t');
            answer.push_str(xid);
        }
        Some(answer)
    }
}

/// Undoes Dovecot's str_tabescape().
fn unescape(field: &str) -> String {
    let mut text = String::new();
    let mut chars = field.chars();
    while let Some(c) = chars.next() {
        match c {
            '\u{1}' => text.push(match chars.next() {
                Some('0') => '\0',
                Some('t') => '\t',
                Some('n') => '\n',
                Some('r') => '\r',
                Some('1') => '\u{1}',
                other => panic!("escape {other:?} in {field:?}"),
            }),
            c => text.push(c),
        }
    }
    text
}
