use super::*;
use crate::cluster::Incarnation;
use parking_lot::Mutex;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Instant;

/// Generous: for a machine that is busy with other things.
const PATIENCE: Duration = Duration::from_secs(60);
/// A uid that owns joe's mail, and one that owns nothing. Neither needs to exist.
const JOE: u32 = 4_004;
const STRANGER: u32 = 4_005;
const HEX: &str = "000102030405060708090a0b0c0d0e0f";

/// A host on which joe's mail is uid JOE's.
struct Host;

impl Owners for Host {
    async fn uid_of(&self, user: &str) -> UidAnswer {
        Ok((user == "joe").then_some(JOE))
    }
}

/// A served socket, and what came out of it.
struct Scene {
    dir: tempfile::TempDir,
    metrics: Arc<Metrics>,
    heard: Arc<Mutex<Vec<String>>>,
}

impl Scene {
    fn path(&self) -> PathBuf {
        self.dir.path().join("xidd")
    }

    fn count(&self, what: &str) -> usize {
        self.heard
            .lock()
            .iter()
            .filter(|line| *line == what)
            .count()
    }

    async fn until(&self, what: &str, done: impl Fn(&Scene) -> bool) {
        let start = Instant::now();
        while !done(self) {
            assert!(
                start.elapsed() < PATIENCE,
                "{what}: {:?}",
                self.heard.lock()
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// A peer in this thread, blocking in nothing: it asks until there is an answer.
struct Peer(OwnedFd);

impl Peer {
    /// As root, which tests are.
    fn connect(path: &Path) -> Peer {
        Peer(plain_connect(path).expect("a connection"))
    }

    fn send(&self, message: &[u8]) -> isize {
        plain_send(&self.0, message)
    }

    async fn answer(&self) -> Option<String> {
        let start = Instant::now();
        let mut buffer = vec![0_u8; MESSAGE_BYTES];
        loop {
            // SAFETY: the buffer is as long as is said.
            let length = unsafe {
                let start = buffer.as_mut_ptr().cast();
                libc::recv(self.0.as_raw_fd(), start, buffer.len(), libc::MSG_DONTWAIT)
            };
            match usize::try_from(length) {
                Ok(0) => return None,
                Ok(length) => {
                    return Some(String::from_utf8_lossy(&buffer[..length]).into_owned());
                }
                Err(_) => {
                    let error = io::Error::last_os_error();
                    if error.kind() != io::ErrorKind::WouldBlock {
                        return None;
                    }
                }
            }
            assert!(start.elapsed() < PATIENCE, "no answer");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

fn plain_connect(path: &Path) -> io::Result<OwnedFd> {
    let mut address = libc::sockaddr_un {
        sun_family: libc::AF_UNIX as libc::sa_family_t,
        sun_path: [0; 108],
    };
    let bytes = std::os::unix::ffi::OsStrExt::as_bytes(path.as_os_str());
    for (place, byte) in address.sun_path.iter_mut().zip(bytes) {
        *place = *byte as libc::c_char;
    }
    // SAFETY: plain system calls on a descriptor and an address of our own.
    unsafe {
        let fd = libc::socket(libc::AF_UNIX, libc::SOCK_SEQPACKET, 0);
        let fd = OwnedFd::from_raw_fd(fd);
        let size = size_of::<libc::sockaddr_un>() as libc::socklen_t;
        match libc::connect(fd.as_raw_fd(), (&raw const address).cast(), size) {
            0 => Ok(fd),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

fn plain_send(fd: &OwnedFd, message: &[u8]) -> isize {
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: the message is as long as is said.
    unsafe {
        libc::send(
            fd.as_raw_fd(),
            message.as_ptr().cast(),
            message.len(),
            flags,
        )
    }
}

/// The engine of these tests: notes what it hears, knows the XID of one message.
async fn engine(mut events: mpsc::Receiver<Event>, heard: Arc<Mutex<Vec<String>>>) {
    while let Some(event) = events.recv().await {
        match event {
            Event::Changed {
                user, name, kind, ..
            } => heard.lock().push(format!("{user} {name} {kind:?}")),
            Event::Xids { guids, reply, .. } => {
                let known = |guid: &String| (guid == "g1").then(|| "a-1".to_owned());
                let _ = reply.send(Ok(guids.iter().map(known).collect()));
            }
            Event::Status { reply } => {
                let _ = reply.send(Some(Incarnation(4)));
            }
        }
    }
}

fn with_socket<F: Future<Output = ()>>(test: impl FnOnce(Arc<Scene>) -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("tokio");
    let scene = Arc::new(Scene {
        dir: tempfile::tempdir().expect("a folder"),
        metrics: Arc::default(),
        heard: Arc::default(),
    });
    // Uids of these tests must be able to look into it.
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(scene.dir.path(), open).expect("its mode");
    runtime.block_on(async {
        let (events, heard) = mpsc::channel(4);
        let socket = Socket::bind(&scene.path()).expect("bound");
        tokio::spawn(engine(heard, Arc::clone(&scene.heard)));
        tokio::spawn(socket.serve(Host, events, Arc::clone(&scene.metrics)));
        let test = test(Arc::clone(&scene));
        tokio::time::timeout(PATIENCE * 2, test)
            .await
            .expect("in time");
    });
}

fn changed(user: &str) -> String {
    format!("C\t{user}\t{HEX}\tINBOX\ta")
}

/// Runs `work` in a child of another uid. What it returns is the child's exit status.
fn as_uid(uid: u32, work: impl FnOnce() -> i32) -> libc::pid_t {
    // SAFETY: the child makes system calls only, besides what the caller gave it, and leaves by
    // _exit; nothing of the parent's threads is needed in it.
    unsafe {
        let pid = libc::fork();
        if pid == 0 {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            let dropped = libc::setgid(uid) == 0 && libc::setuid(uid) == 0;
            libc::_exit(if dropped { work() } else { 99 });
        }
        assert!(pid > 0, "fork");
        pid
    }
}

async fn exit_status(pid: libc::pid_t) -> i32 {
    let start = Instant::now();
    loop {
        let mut status = 0;
        // SAFETY: pid is a child of ours.
        match unsafe { libc::waitpid(pid, &raw mut status, libc::WNOHANG) } {
            0 if start.elapsed() < PATIENCE => tokio::time::sleep(Duration::from_millis(5)).await,
            0 => {
                // SAFETY: it is our own child, not waited for yet.
                unsafe { libc::kill(pid, libc::SIGKILL) };
                panic!("the child did not end");
            }
            _ => return libc::WEXITSTATUS(status),
        }
    }
}

/// In a child: connects, sends, and waits for the end of the connection or a message. 0: closed;
/// 1: a message came.
fn talk(path: &Path, message: &[u8]) -> i32 {
    let Ok(fd) = plain_connect(path) else {
        return 98;
    };
    plain_send(&fd, message);
    let mut buffer = [0_u8; 256];
    // SAFETY: the buffer is as long as is said. It ends when the daemon closes or answers.
    let length = unsafe { libc::recv(fd.as_raw_fd(), buffer.as_mut_ptr().cast(), 256, 0) };
    i32::from(length > 0) + i32::from(length > 0 && buffer[0] == b'X')
}

#[test]
fn questions_are_answered_and_changes_are_handed_on() {
    with_socket(|scene| async move {
        let peer = Peer::connect(&scene.path());
        peer.send(b"S");
        assert_eq!(peer.answer().await.as_deref(), Some("S\tin\t4"));
        peer.send(format!("X\tjoe\t{HEX}\tINBOX\tg1\tg2").as_bytes());
        assert_eq!(peer.answer().await.as_deref(), Some("X\ta-1\t-"));
        peer.send(changed("joe").as_bytes());
        scene
            .until("the change", |s| s.count("joe INBOX Added") == 1)
            .await;
    });
}

#[test]
fn the_owner_of_the_mail_is_heard_and_nobody_else() {
    with_socket(|scene| async move {
        let (path, ask) = (scene.path(), format!("X\tjoe\t{HEX}\tINBOX\tg1"));
        let owner = as_uid(JOE, || talk(&path, ask.as_bytes()));
        assert_eq!(exit_status(owner).await, 2, "the owner gets XIDs");
        let stranger = as_uid(STRANGER, || talk(&path, ask.as_bytes()));
        assert_eq!(exit_status(stranger).await, 1, "a stranger gets an error");
        let other = ask.replace("joe", "jane");
        let owner = as_uid(JOE, || talk(&path, other.as_bytes()));
        assert_eq!(exit_status(owner).await, 1, "not about another's mail");
        assert_eq!(scene.metrics.refusals_of("uid"), 2);
    });
}

#[test]
fn a_stranger_s_changes_are_not_handed_on() {
    with_socket(|scene| async move {
        let path = scene.path();
        let lie = changed("joe");
        // Then garbage, so that the connection ends.
        let stranger = as_uid(STRANGER, || {
            let Ok(fd) = plain_connect(&path) else {
                return 98;
            };
            plain_send(&fd, lie.as_bytes());
            talk(&path, b"garbage")
        });
        assert_eq!(exit_status(stranger).await, 0);
        scene
            .until("the refusal", |s| s.metrics.refusals_of("uid") == 1)
            .await;
        let peer = Peer::connect(&scene.path());
        peer.send(changed("joe").replace("INBOX", "True").as_bytes());
        scene
            .until("the truth", |s| s.count("joe True Added") == 1)
            .await;
        assert_eq!(scene.count("joe INBOX Added"), 0);
    });
}

#[test]
fn what_is_not_understood_ends_the_connection_and_no_other() {
    with_socket(|scene| async move {
        let good = Peer::connect(&scene.path());
        for garbage in [&b"\0"[..], b"Q\tx", b"C\tjoe", b"\xff\xfe", b"X", b"S\tS"] {
            let bad = Peer::connect(&scene.path());
            bad.send(garbage);
            assert_eq!(bad.answer().await, None, "{garbage:?}");
        }
        assert_eq!(scene.metrics.refusals_of("not_understood"), 6);
        let long = Peer::connect(&scene.path());
        assert!(long.send(&vec![b'x'; MESSAGE_BYTES + 1]) > 0);
        assert_eq!(long.answer().await, None);
        assert_eq!(scene.metrics.refusals_of("too_long"), 1);
        good.send(b"S");
        assert_eq!(good.answer().await.as_deref(), Some("S\tin\t4"));
    });
}

#[test]
fn the_longest_message_is_heard() {
    with_socket(|scene| async move {
        let peer = Peer::connect(&scene.path());
        let mut text = format!("X\tjoe\t{HEX}\tINBOX");
        while text.len() + 3 <= MESSAGE_BYTES {
            text.push_str("\tg1");
        }
        let wanted = text.matches("\tg1").count();
        assert!(peer.send(text.as_bytes()) > 0);
        let answer = peer.answer().await.expect("an answer");
        // Each XID is longer than its GUID here, so the whole answer does not fit.
        assert!(answer.starts_with("E\t"), "{wanted}: {answer}");
        let half = text[..text.len() / 2].rsplit_once('\t').expect("fields").0;
        assert!(peer.send(half.as_bytes()) > 0);
        let answer = peer.answer().await.expect("an answer");
        assert_eq!(
            answer.matches("\ta-1").count(),
            half.matches("\tg1").count()
        );
    });
}

#[test]
fn a_flood_does_not_keep_others_waiting() {
    with_socket(|scene| async move {
        let floods: Vec<_> = (0..20).map(|_| Peer::connect(&scene.path())).collect();
        let lines = changed("joe");
        let (mut sent, mut slowest) = (0, Duration::ZERO);
        for _ in 0..50 {
            for flood in &floods {
                while flood.send(lines.as_bytes()) > 0 && sent % 500 != 499 {
                    sent += 1;
                }
                sent += 1;
            }
            let start = Instant::now();
            let polite = Peer::connect(&scene.path());
            polite.send(b"S");
            assert_eq!(polite.answer().await.as_deref(), Some("S\tin\t4"));
            slowest = slowest.max(start.elapsed());
        }
        assert!(sent > 1000, "no flood: {sent}");
        assert!(slowest < PATIENCE / 2, "{slowest:?}");
    });
}

#[test]
fn a_peer_that_does_not_read_is_let_go_and_stalls_nobody() {
    with_socket(|scene| async move {
        let deaf = Peer::connect(&scene.path());
        // Its answers fill its own buffer, then it is waited for, then it is let go.
        let ask = format!("X\tjoe\t{HEX}\tINBOX{}", "\tg1".repeat(10_000));
        let start = Instant::now();
        let mut gone = false;
        while !gone {
            assert!(start.elapsed() < PATIENCE, "it is still listened to");
            if deaf.send(ask.as_bytes()) < 0 {
                gone = io::Error::last_os_error().kind() == io::ErrorKind::BrokenPipe;
            }
            let other = Peer::connect(&scene.path());
            other.send(b"S");
            assert_eq!(other.answer().await.as_deref(), Some("S\tin\t4"));
        }
        assert_eq!(scene.metrics.refusals_of("does_not_read"), 1);
    });
}

#[test]
fn a_stranger_has_few_connections_and_not_for_long() {
    with_socket(|scene| async move {
        let path = scene.path();
        let crowd = as_uid(STRANGER, || {
            let all: Vec<_> = (0..80).map(|_| plain_connect(&path)).collect();
            // Until the daemon has closed every one of them.
            for fd in all.iter().flatten() {
                let mut byte = [0_u8; 1];
                // SAFETY: the buffer is as long as is said.
                unsafe { libc::recv(fd.as_raw_fd(), byte.as_mut_ptr().cast(), 1, 0) };
            }
            0
        });
        scene
            .until("the many to be refused", |s| {
                s.metrics.refusals_of("too_many") >= 16
            })
            .await;
        let peer = Peer::connect(&scene.path());
        peer.send(b"S");
        assert_eq!(peer.answer().await.as_deref(), Some("S\tin\t4"));
        assert_eq!(exit_status(crowd).await, 0);
        assert_eq!(scene.metrics.refusals_of("stranger"), 64);
    });
}

#[test]
fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
    with_socket(|scene| async move {
        let path = scene.path();
        assert!(matches!(Socket::bind(&path), Err(Error::InUse { .. })));
        let stale = scene.dir.path().join("stale");
        let old = Listener::bind(&stale).expect("bound");
        drop(old);
        assert!(
            stale.exists(),
            "it has to be there for this test to mean something"
        );
        assert!(Socket::bind(&stale).is_ok());
        let file = scene.dir.path().join("file");
        std::fs::write(&file, "mail").expect("written");
        assert!(matches!(Socket::bind(&file), Err(Error::NoSocket { .. })));
        assert!(file.exists());
        let nowhere = scene.dir.path().join("no/where");
        assert!(matches!(Socket::bind(&nowhere), Err(Error::Io { .. })));
        let long = scene.dir.path().join("x".repeat(120));
        assert!(matches!(Socket::bind(&long), Err(Error::Io { .. })));
    });
}

#[test]
fn a_socket_whose_name_was_removed_comes_back() {
    with_socket(|scene| async move {
        std::fs::remove_file(scene.path()).expect("removed");
        scene.until("the name", |s| s.path().exists()).await;
        let start = Instant::now();
        while plain_connect(&scene.path()).is_err() {
            assert!(start.elapsed() < PATIENCE, "it does not listen");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let peer = Peer::connect(&scene.path());
        peer.send(b"S");
        assert_eq!(peer.answer().await.as_deref(), Some("S\tin\t4"));
    });
}

#[test]
fn an_inherited_socket_is_served_and_another_kind_is_refused() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("tokio");
    let _inside = runtime.enter();
    let (one, _other) = std::os::unix::net::UnixStream::pair().expect("a pair");
    let path = Path::new("/x");
    assert!(matches!(
        Socket::inherit(one.into(), path),
        Err(Error::Io { .. })
    ));
}
