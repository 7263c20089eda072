//! Starts, stops and asks a private Dovecot.

use std::ffi::CString;
use std::fs::{File, Permissions};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::config::{Place, Setup, put, sieve_installed};
use super::imap::Imap;
use super::leak::{Scanner, Watermarks};
use super::lmtp::Lmtp;
use super::plugin::{MODULES, cargo_binary, fill_module_dir};
use super::pop3::Pop3;
use super::{LIMIT, net, tls, until};

/// Owner of the mail when the tests run as root: an account that exists nowhere.
const MAIL_UID: u32 = 64990;
/// How much of the log a failing test prints, in bytes.
const LOG_TAIL: usize = 20_000;
/// How long what still serves a connection may go on when the master has ended.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often another address is tried when the ports were taken meanwhile.
const START_TRIES: u32 = 5;

/// What a program said.
#[derive(Clone, Debug)]
pub struct Output {
    /// The exit code; -1 when a signal ended it.
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

/// A message as [`Dovecot::messages`] sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    pub seq: u32,
    pub uid: u32,
    /// None where the server has no plug-in.
    pub xid: Option<String>,
    pub guid: String,
}

/// A running server. Stopped and removed when dropped.
pub struct Dovecot {
    setup: Mutex<Setup>,
    place: Place,
    running: Mutex<Option<Child>>,
    allowed: Mutex<Vec<String>>,
    watermarks: Watermarks,
    tmpfs: Option<PathBuf>,
    // Last: the folder goes when all else is done with it.
    _tree: Option<tempfile::TempDir>,
}

impl Dovecot {
    /// A server to configure.
    pub fn setup() -> Setup {
        Setup::new()
    }

    /// sdbox, the plug-in on, namespace "foo".
    pub fn start() -> Dovecot {
        Setup::new().start()
    }

    pub(super) fn start_with(setup: Setup) -> Dovecot {
        let tree = tempfile::Builder::new()
            .prefix("xid-")
            .tempdir()
            .expect("a temporary folder");
        let path = tree.path().to_owned();
        let keep = std::env::var_os("KEEP_TREE").is_some();
        let tree = if keep {
            drop(tree.keep());
            None
        } else {
            Some(tree)
        };
        let mut server = Dovecot {
            place: place_in(&path, &setup),
            tmpfs: setup
                .tmpfs
                .as_ref()
                .map(|size| mount_tmpfs(&path.join("home"), size)),
            setup: Mutex::new(setup),
            running: Mutex::new(None),
            allowed: Mutex::new(Vec::new()),
            watermarks: Watermarks::default(),
            _tree: tree,
        };
        server.fill_tree().expect("the server's folder is made");
        for attempt in 1.. {
            server.choose_ports();
            match server.try_start() {
                Ok(()) => break,
                Err(why) => assert!(attempt < START_TRIES, "{why}\n{}", server.log()),
            }
        }
        server
    }

    fn fill_tree(&self) -> std::io::Result<()> {
        let tree = &self.place.tree;
        std::fs::set_permissions(tree, Permissions::from_mode(0o755))?;
        for dir in ["run", "state", "home", "modules"] {
            std::fs::create_dir_all(tree.join(dir))?;
        }
        chown(
            tree.join("home"),
            Some(self.place.uid),
            Some(self.place.gid),
        )?;
        File::create(tree.join("dovecot.log"))?;
        let setup = lock(&self.setup);
        if setup.plugin {
            fill_module_dir(&self.place.modules)?;
        }
        if setup.tls {
            tls::write_certificate(tree)?;
        }
        Ok(())
    }

    /// A loopback address of our own, and ports that are free there. Stays the same over
    /// restarts.
    fn choose_ports(&mut self) {
        if let Some(node) = &lock(&self.setup).node {
            self.place.address = node.address;
            (self.place.imap, self.place.imaps) = (143, 993);
            (self.place.lmtp, self.place.pop3) = (24, 110);
            return;
        }
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let n = COUNTER.fetch_add(1, Ordering::Relaxed);
        let mix = (u64::from(std::process::id()) << 20 | u64::from(n))
            .wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let [_, a, b, c, ..] = mix.to_be_bytes();
        self.place.address = Ipv4Addr::new(127, a.max(1), b, c.clamp(2, 250));
        let free: Vec<TcpListener> = (0..4)
            .map(|_| TcpListener::bind((self.place.address, 0)).expect("a free port"))
            .collect();
        let port = |i: usize| free[i].local_addr().expect("bound").port();
        (self.place.imap, self.place.imaps) = (port(0), port(1));
        (self.place.lmtp, self.place.pop3) = (port(2), port(3));
    }

    fn write_config(&self) {
        let setup = lock(&self.setup);
        if setup.plugin && !self.place.modules.join("lib20_xid_plugin.so").exists() {
            fill_module_dir(&self.place.modules).expect("the folder of modules is made");
        }
        std::fs::write(self.config(), setup.text(&self.place)).expect("dovecot.conf is written");
    }

    fn try_start(&self) -> Result<(), String> {
        self.write_config();
        let tree = match self._tree {
            Some(_) => self.place.tree.as_os_str(),
            None => "".as_ref(),
        };
        let mut command = Command::new("sh");
        command
            .args(["-c", SCRIPT, "sh"])
            .arg(self.config())
            .arg(tree);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(self.log_file());
        // A group of its own: Ctrl-C reaches the test, whose end closes the input.
        command.process_group(0);
        self.in_place(&mut command);
        let mut child = command.spawn().map_err(|e| format!("sh: {e}"))?;
        self.wait_until_serving(&mut child)?;
        *lock(&self.running) = Some(child);
        Ok(())
    }

    fn wait_until_serving(&self, child: &mut Child) -> Result<(), String> {
        let deadline = Instant::now() + LIMIT;
        loop {
            if let Ok(Some(status)) = child.try_wait() {
                return Err(format!("dovecot did not start: {status}"));
            }
            if self.master_pid().is_some() && net::dial(self.imap_addr()).is_ok() {
                return Ok(());
            }
            if Instant::now() > deadline {
                tell(child, "stop");
                let _ = wait_with_limit(child);
                return Err("dovecot does not answer".into());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Where the server's programs run: its lab namespace, its own mounts.
    fn in_place(&self, command: &mut Command) {
        if let Some(node) = &lock(&self.setup).node {
            let namespace = net::open(&node.namespace).expect("the node's namespace");
            // SAFETY: the closure makes one system call, on a descriptor that it owns.
            unsafe {
                command.pre_exec(move || net::enter(&namespace));
            }
        }
        self.in_own_mounts(command);
    }

    /// doveadm looks for its own plug-ins in a folder that is compiled in: in a mount namespace of
    /// its own it finds ours there.
    fn in_own_mounts(&self, command: &mut Command) {
        if !lock(&self.setup).plugin || !is_root() {
            return;
        }
        let ours = c_string(&self.place.modules.join("doveadm"));
        let system = c_string(&Path::new(MODULES).join("doveadm"));
        // SAFETY: the closure makes system calls only, on strings made before the fork.
        unsafe {
            command.pre_exec(move || bind_over(&ours, &system));
        }
    }

    // --- life -------------------------------------------------------------------------------

    /// Stops the server and waits until all its processes are gone: the master first, then what
    /// still serves a connection, as a service manager does.
    ///
    /// # Panics
    /// When the master does not end; then it is killed, with all that belongs to it.
    pub fn stop(&self) {
        let Some(mut child) = lock(&self.running).take() else {
            return;
        };
        let Some(group) = self.master_pid().and_then(Group::of) else {
            tell(&mut child, "stop");
            let _ = wait_with_limit(&mut child);
            return;
        };
        tell(&mut child, "stop");
        let ended = ends(&mut child);
        if !ended {
            let left = group.describe();
            group.signal(libc::SIGKILL);
            let _ = wait_with_limit(&mut child);
            let text = format!(
                "dovecot did not stop within {LIMIT:?}:\n{}",
                left.join("\n")
            );
            assert!(std::thread::panicking(), "{text}");
            println!("{text}");
        }
        if !group.is_gone_within(PATIENCE) {
            group.signal(libc::SIGTERM);
            group.wait_gone();
        }
    }

    /// Starts again after [`Dovecot::stop`] or [`Dovecot::crash`], with the configuration as it is
    /// now.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start_again(&self) {
        let _ = std::fs::remove_file(self.place.tree.join("run/master.pid"));
        if let Err(why) = self.try_start() {
            panic!("{why}\n{}", self.log());
        }
    }

    pub fn restart(&self) {
        self.stop();
        self.start_again();
    }

    /// kill -9 of every process of the server at once.
    ///
    /// # Panics
    /// When its master is gone already, or one of its processes does not go.
    pub fn crash(&self) {
        let Some(mut child) = lock(&self.running).take() else {
            return;
        };
        let group = self.master_pid().and_then(Group::of);
        let group = group.expect("a master process");
        group.signal(libc::SIGKILL);
        group.wait_gone();
        tell(&mut child, "gone");
        let _ = child.wait();
        self.allow_log("killed with signal 9");
    }

    /// SIGSTOP (or SIGCONT) to every process of the server, unless it is down.
    pub fn pause(&self, paused: bool) {
        let running = lock(&self.running);
        let group = running.as_ref().and_then(|_| self.master_pid());
        if let Some(group) = group.and_then(Group::of) {
            group.signal(if paused { libc::SIGSTOP } else { libc::SIGCONT });
        }
    }

    /// Whether it was started and neither stopped nor crashed since.
    pub fn is_running(&self) -> bool {
        lock(&self.running).is_some()
    }

    /// Whether `xid` is among the plug-ins, from the next start on.
    pub fn set_plugin(&self, on: bool) {
        lock(&self.setup).plugin = on;
    }

    /// A setting in `plugin { }`, from the next start on.
    pub fn set_xid(&self, key: &str, value: &str) {
        put(&mut lock(&self.setup).xid, key, value);
    }

    /// A setting at the top level, from the next start on.
    pub fn set(&self, key: &str, value: &str) {
        put(&mut lock(&self.setup).top, key, value);
    }

    // --- places and processes ---------------------------------------------------------------

    pub fn imap_addr(&self) -> SocketAddr {
        (self.place.address, self.place.imap).into()
    }

    pub fn imaps_addr(&self) -> SocketAddr {
        (self.place.address, self.place.imaps).into()
    }

    pub fn lmtp_addr(&self) -> SocketAddr {
        (self.place.address, self.place.lmtp).into()
    }

    pub fn pop3_addr(&self) -> SocketAddr {
        (self.place.address, self.place.pop3).into()
    }

    /// The folder that holds all of the server.
    pub fn tree(&self) -> &Path {
        &self.place.tree
    }

    pub fn config(&self) -> PathBuf {
        self.place.tree.join("dovecot.conf")
    }

    /// Owner and group of the mail.
    pub fn mail_owner(&self) -> (u32, u32) {
        (self.place.uid, self.place.gid)
    }

    pub fn home(&self, user: &str) -> PathBuf {
        self.place.tree.join("home").join(user)
    }

    /// ~/mail: mail root and (unless moved) index root, so where the plug-in's files are.
    pub fn mail_dir(&self, user: &str) -> PathBuf {
        self.home(user).join("mail")
    }

    /// Process numbers of the running processes of this service ("imap", "lmtp", "auth").
    pub fn pids(&self, service: &str) -> Vec<u32> {
        let Some(master) = self.master_pid() else {
            return Vec::new();
        };
        let children = format!("/proc/{master}/task/{master}/children");
        let children = std::fs::read_to_string(children).unwrap_or_default();
        let pids = children
            .split_whitespace()
            .filter_map(|pid| pid.parse().ok());
        pids.filter(|pid| name_of(*pid) == service).collect()
    }

    pub fn master_pid(&self) -> Option<u32> {
        let text = std::fs::read_to_string(self.place.tree.join("run/master.pid")).ok()?;
        text.trim().parse().ok()
    }

    // --- clients ----------------------------------------------------------------------------

    /// A greeted connection that has not logged in.
    pub fn connect_imap(&self) -> Imap {
        Imap::connect(self.imap_addr(), "imap")
    }

    /// A logged-in client.
    pub fn imap(&self, user: &str) -> Imap {
        let mut client = Imap::connect(self.imap_addr(), user);
        self.log_in(&mut client, user);
        client
    }

    /// The same where the server may be down: an error then.
    pub fn try_imap(&self, user: &str, limit: Duration) -> std::io::Result<Imap> {
        let mut client = Imap::try_connect(self.imap_addr(), user, limit)?;
        let reply = client.try_cmd(&format!("LOGIN {user} pass"))?;
        match reply.is_ok() {
            true => Ok(client),
            false => Err(std::io::Error::other(reply.text)),
        }
    }

    /// The same with a mailbox selected.
    pub fn imap_in(&self, user: &str, mailbox: &str) -> Imap {
        let mut client = self.imap(user);
        client.ok(&format!("SELECT {mailbox}"));
        client
    }

    /// A logged-in client over imaps.
    pub fn imap_tls(&self, user: &str) -> Imap {
        let mut client = Imap::connect_tls(self.imaps_addr(), &[], user);
        self.log_in(&mut client, user);
        client
    }

    fn log_in(&self, client: &mut Imap, user: &str) {
        client.login(user);
        let setup = lock(&self.setup);
        let table = setup
            .xid
            .iter()
            .any(|(k, v)| k == "xid_uid_source" && v == "table");
        if setup.plugin && table {
            client.scanner = Some(Scanner::new(self.watermarks.clone(), user));
        }
    }

    pub fn lmtp(&self) -> Lmtp {
        self.try_lmtp().expect("lmtp says hello")
    }

    /// The same where the process may be killed meanwhile.
    pub fn try_lmtp(&self) -> std::io::Result<Lmtp> {
        Lmtp::connect(self.lmtp_addr())
    }

    /// A logged-in POP3 client.
    pub fn pop3(&self, user: &str) -> Pop3 {
        let mut client = Pop3::connect(self.pop3_addr());
        client.login(user);
        client
    }

    /// A POP3 client that has not logged in.
    pub fn connect_pop3(&self) -> Pop3 {
        Pop3::connect(self.pop3_addr())
    }

    // --- getting mail in --------------------------------------------------------------------

    /// APPEND by a client of its own.
    pub fn append(&self, user: &str, mailbox: &str, message: &[u8]) {
        self.imap(user).append(mailbox, message);
    }

    /// LMTP to one recipient.
    pub fn deliver(&self, recipient: &str, message: &[u8]) {
        let answers = self.lmtp().deliver(&[recipient], message);
        assert_eq!(answers[0].0, 250, "LMTP to {recipient}: {answers:?}");
    }

    /// dovecot-lda.
    pub fn lda(&self, user: &str, mailbox: &str, message: &[u8]) -> Output {
        let mut command = Command::new("/usr/lib/dovecot/dovecot-lda");
        command
            .arg("-c")
            .arg(self.config())
            .args(["-d", user, "-m", mailbox, "-e"]);
        self.in_place(&mut command);
        run(&mut command, message)
    }

    /// A Sieve script for the user, active at once.
    pub fn sieve(&self, user: &str, script: &str) {
        assert!(self.place.sieve, "dovecot-sieve is not installed");
        let home = self.home(user);
        std::fs::create_dir_all(&home).expect("the home is made");
        let file = home.join(".dovecot.sieve");
        std::fs::write(&file, script).expect("the script is written");
        for path in [home, file] {
            chown(path, Some(self.place.uid), Some(self.place.gid)).expect("chown");
        }
    }

    /// Whether dovecot-sieve is installed.
    pub fn has_sieve(&self) -> bool {
        self.place.sieve
    }

    // --- doveadm ----------------------------------------------------------------------------

    /// The socket of the server's doveadm service.
    pub fn doveadm_socket(&self) -> PathBuf {
        self.place.tree.join("run/doveadm-server")
    }

    pub fn doveadm(&self, args: &[&str]) -> Output {
        self.doveadm_input(args, b"")
    }

    /// The same, insisting on success; gives its output.
    pub fn doveadm_ok(&self, args: &[&str]) -> String {
        let output = self.doveadm(args);
        assert_eq!(output.code, 0, "doveadm {args:?}: {output:?}");
        output.stdout
    }

    pub fn doveadm_input(&self, args: &[&str], input: &[u8]) -> Output {
        run(&mut self.doveadm_command(args), input)
    }

    /// A doveadm to be started by the test itself.
    pub fn doveadm_command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("doveadm");
        command.arg("-c").arg(self.config()).args(args);
        self.in_place(&mut command);
        command
    }

    // --- what is there ----------------------------------------------------------------------

    /// Every message of a mailbox, in order, as an IMAP client sees it.
    pub fn messages(&self, user: &str, mailbox: &str) -> Vec<Message> {
        let plugin = lock(&self.setup).plugin;
        let mut client = self.imap(user);
        if client.ok(&format!("EXAMINE {mailbox}")).exists() == Some(0) {
            return Vec::new();
        }
        let xid = if plugin { " XID" } else { "" };
        let reply = client.ok(&format!("FETCH 1:* (UID X-GUID{xid})"));
        let fetches = reply.fetches();
        fetches
            .iter()
            .map(|fetch| Message {
                seq: fetch.seq,
                uid: fetch.uid().expect("a UID"),
                xid: fetch.xid(),
                guid: fetch.text("X-GUID").expect("a GUID"),
            })
            .collect()
    }

    // --- watermarks -------------------------------------------------------------------------

    /// Moves the watermark of a `table` mailbox up to `uid`, as an administrator would.
    pub fn advance(&self, user: &str, mailbox: &str, uid: u32) {
        self.note_watermark(user, mailbox, uid);
        let output = self.xidctl(&["advance", "-u", user, "-m", mailbox, &uid.to_string()]);
        assert_eq!(output.code, 0, "xidctl advance: {output:?}");
    }

    /// Tells the leak scanner of a watermark that is moved by other means.
    pub fn note_watermark(&self, user: &str, mailbox: &str, uid: u32) {
        self.watermarks.raise(user, mailbox, uid);
    }

    /// What the leak scanners know.
    pub fn watermarks(&self) -> &Watermarks {
        &self.watermarks
    }

    /// The administrator's tool, told of this server's configuration.
    pub fn xidctl(&self, args: &[&str]) -> Output {
        let mut command = Command::new(cargo_binary("IMAP_XID_XIDCTL", "xidctl", "cli"));
        command.arg("-c").arg(self.config()).args(args);
        self.in_place(&mut command);
        run(&mut command, b"")
    }

    // --- log --------------------------------------------------------------------------------

    pub fn log(&self) -> String {
        let bytes = std::fs::read(self.place.tree.join("dovecot.log")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Log lines with this text are no fault.
    pub fn allow_log(&self, text: &str) {
        lock(&self.allowed).push(text.into());
    }

    /// Waits until the log has this text.
    pub fn wait_log(&self, text: &str) {
        until(&format!("{text:?} in the log"), || {
            self.log().contains(text)
        });
    }

    fn log_file(&self) -> Stdio {
        let file = File::options()
            .append(true)
            .create(true)
            .open(self.place.tree.join("dovecot.log"));
        file.map_or_else(|_| Stdio::null(), Stdio::from)
    }

    /// Log lines that must not be there.
    pub fn faults(&self) -> Vec<String> {
        let allowed = self
            .allowed
            .lock()
            .map(|list| list.clone())
            .unwrap_or_default();
        let is_fault = |line: &str| {
            // A process that was still starting when the server was stopped.
            if line.contains("Fatal: Error reading configuration") {
                return false;
            }
            line.contains("Panic: ")
                || line.contains("Fatal: ")
                || line.contains("killed with signal")
                || line.contains("has different ABI version")
                || (line.contains("Error: ") && line.contains("xid: "))
        };
        let log = self.log();
        let lines = log.lines().filter(|line| is_fault(line));
        lines
            .filter(|l| !allowed.iter().any(|a| l.contains(a.as_str())))
            .map(str::to_owned)
            .collect()
    }

    fn print_on_failure(&self) {
        let log = self.log();
        let mut from = log.len().saturating_sub(LOG_TAIL);
        while !log.is_char_boundary(from) {
            from += 1;
        }
        println!(
            "--- log of dovecot ({})\n{}",
            self.place.tree.display(),
            &log[from..]
        );
        let setup = lock(&self.setup);
        println!(
            "--- {:?}, plug-in {}, plugin {{ {:?} }}, {:?}\n{}",
            setup.format, setup.plugin, setup.xid, setup.top, setup.extra
        );
    }
}

impl Drop for Dovecot {
    fn drop(&mut self) {
        self.stop();
        if let Some(path) = &self.tmpfs {
            let _ = run(Command::new("umount").arg("-l").arg(path), b"");
        }
        let faults = self.faults();
        if std::thread::panicking() {
            self.print_on_failure();
        } else if !faults.is_empty() {
            self.print_on_failure();
            panic!("the server's log has faults:\n{}", faults.join("\n"));
        }
    }
}

fn place_in(tree: &Path, _setup: &Setup) -> Place {
    // SAFETY: these calls have no conditions.
    let (uid, gid) = unsafe { (libc::geteuid(), libc::getegid()) };
    let (uid, gid) = if is_root() {
        (MAIL_UID, MAIL_UID)
    } else {
        (uid, gid)
    };
    Place {
        tree: tree.to_owned(),
        modules: tree.join("modules"),
        address: Ipv4Addr::LOCALHOST,
        imap: 0,
        imaps: 0,
        lmtp: 0,
        pop3: 0,
        uid,
        gid,
        sieve: sieve_installed(),
    }
}

/// A panic in another thread of the test must not hide behind a second one here.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn is_root() -> bool {
    // SAFETY: no conditions.
    unsafe { libc::geteuid() == 0 }
}

fn c_string(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).expect("no NUL in a path")
}

/// In a mount namespace of our own, `ours` is seen where `system` was.
fn bind_over(ours: &CString, system: &CString) -> std::io::Result<()> {
    let none = std::ptr::null();
    // SAFETY: all strings are valid C strings; nothing else is passed.
    let failed = unsafe {
        libc::unshare(libc::CLONE_NEWNS) != 0
            || libc::mount(
                none,
                c"/".as_ptr(),
                none,
                libc::MS_REC | libc::MS_PRIVATE,
                none.cast(),
            ) != 0
            || libc::mount(
                ours.as_ptr(),
                system.as_ptr(),
                none,
                libc::MS_BIND,
                none.cast(),
            ) != 0
    };
    if failed {
        Err(std::io::Error::last_os_error())
    } else {
        Ok(())
    }
}

fn mount_tmpfs(path: &Path, size: &str) -> PathBuf {
    std::fs::create_dir_all(path).expect("the folder is made");
    let mut mount = Command::new("mount");
    mount
        .args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
        .arg(path);
    let output = run(&mut mount, b"");
    assert_eq!(
        output.code, 0,
        "this test needs to mount a small tmpfs: {output:?}"
    );
    path.to_owned()
}

/// kill -9.
pub fn kill9(pid: u32) {
    signal(pid, libc::SIGKILL);
}

/// Sends a signal to a process that we started.
pub fn signal(pid: u32, signal: libc::c_int) {
    // SAFETY: kill has no memory conditions; the pid is one of our server's.
    unsafe {
        libc::kill(pid as libc::pid_t, signal);
    }
}

/// Runs a program with this input.
///
/// # Panics
/// When it cannot be started, or runs longer than [`LIMIT`].
pub fn run(command: &mut Command, input: &[u8]) -> Output {
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command
        .spawn()
        .unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let mut stdin = child.stdin.take().expect("piped");
    let (mut stdout, mut stderr) = (
        child.stdout.take().expect("piped"),
        child.stderr.take().expect("piped"),
    );
    std::thread::scope(|scope| {
        scope.spawn(move || stdin.write_all(input));
        let err = scope.spawn(move || read_all(&mut stderr));
        let out = scope.spawn(move || read_all(&mut stdout));
        let code = wait_with_limit(&mut child);
        Output {
            code: code.unwrap_or_else(|| panic!("{command:?} took longer than {LIMIT:?}")),
            stdout: out.join().expect("read"),
            stderr: err.join().expect("read"),
        }
    })
}

fn read_all(from: &mut impl Read) -> String {
    let mut bytes = Vec::new();
    let _ = from.read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The exit code (-1: a signal); None when it had to be killed after the limit.
fn wait_with_limit(child: &mut Child) -> Option<i32> {
    let deadline = Instant::now() + LIMIT;
    let mut pause = Duration::from_micros(500);
    loop {
        if let Ok(Some(status)) = child.try_wait() {
            return Some(status.code().unwrap_or(-1));
        }
        if Instant::now() > deadline {
            let _ = child.kill();
            let _ = child.wait();
            return None;
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(10));
    }
}

/// Runs Dovecot until the line "stop" comes. Should the input end without a word, the test is gone:
/// then all of Dovecot is ended, however it fares, and its folder is removed.
///
/// The master gets a session of its own, so that it and all that it starts are one process group.
const SCRIPT: &str = r#"
exec 3<&0
setsid dovecot -F -c "$1" </dev/null 3<&- &
master=$!
(
  if read -r word; then
    [ "$word" != stop ] || kill -TERM $master
    exit
  fi
  trap '' TERM
  kill -CONT -$master
  kill -TERM -$master
  tries=50
  while kill -0 -$master; do
    [ $tries -gt 0 ] || kill -KILL -$master
    tries=$((tries - 1))
    sleep 0.1
  done
  [ -z "$2" ] || { umount -l "$2/home"; rm -rf -- "$2"; }
) <&3 >/dev/null 2>&1 &
reader=$!
wait $master
code=$?
kill $reader 2>/dev/null
exit $code
"#;

/// A word to the shell that runs Dovecot.
fn tell(child: &mut Child, word: &str) {
    if let Some(mut input) = child.stdin.take() {
        // It may be gone.
        let _ = writeln!(input, "{word}");
    }
}

/// Whether a child ends within [`LIMIT`].
fn ends(child: &mut Child) -> bool {
    let deadline = Instant::now() + LIMIT;
    while Instant::now() < deadline {
        if let Ok(Some(_)) = child.try_wait() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    false
}

/// A running server's processes: the master, and all that it started.
struct Group {
    master: u32,
}

impl Group {
    /// `None`: there is no such master any more.
    fn of(master: u32) -> Option<Group> {
        // SAFETY: getpgid has no memory conditions.
        let leads = unsafe { libc::getpgid(master as libc::pid_t) } == master as libc::pid_t;
        leads.then_some(Group { master })
    }

    /// One signal to all at once: who is just being forked gets it as well.
    fn signal(&self, signal: libc::c_int) {
        // SAFETY: kill has no memory conditions; the group is our server's.
        unsafe {
            libc::kill(-(self.master as libc::pid_t), signal);
        }
    }

    fn pids(&self) -> Vec<u32> {
        let all = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        pids.filter(|pid| stat_field(*pid, GROUP_FIELD) == Some(u64::from(self.master)))
            .filter(|pid| !is_zombie(*pid))
            .collect()
    }

    fn describe(&self) -> Vec<String> {
        self.pids().into_iter().map(describe).collect()
    }

    /// # Panics
    /// When somebody stays; then all are killed.
    fn wait_gone(&self) {
        if self.is_gone_within(LIMIT) {
            return;
        }
        let left = self.describe();
        self.signal(libc::SIGKILL);
        let text = format!("after {LIMIT:?} there are still:\n{}", left.join("\n"));
        assert!(std::thread::panicking(), "{text}");
        println!("{text}");
    }

    fn is_gone_within(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        while !self.pids().is_empty() {
            if Instant::now() > deadline {
                return false;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        true
    }
}

/// Who a process is, and what it is at.
pub fn describe(pid: u32) -> String {
    let read = |what: &str| std::fs::read(format!("/proc/{pid}/{what}")).unwrap_or_default();
    let text = |what: &str| {
        let text = String::from_utf8_lossy(&read(what)).replace(['\0', '\n'], " ");
        text.trim().to_owned()
    };
    let status = String::from_utf8_lossy(&read("status")).into_owned();
    let state = status.lines().find(|line| line.starts_with("State:"));
    let state = state.unwrap_or("gone").replace('\t', " ");
    let (command, at, call) = (text("cmdline"), text("wchan"), text("syscall"));
    format!("process {pid} ({command}): {state}, in {at}, system call {call}")
}

/// The name of a process.
fn name_of(pid: u32) -> String {
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm"));
    name.unwrap_or_default().trim().to_owned()
}

/// The process group in /proc/PID/stat.
const GROUP_FIELD: usize = 2;

/// A field of /proc/PID/stat, counted from 0 after the name.
fn stat_field(pid: u32, index: usize) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    text[text.rfind(')')? + 2..]
        .split(' ')
        .nth(index)?
        .parse()
        .ok()
}

fn is_zombie(pid: u32) -> bool {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    text.rfind(')')
        .is_some_and(|at| text[at..].starts_with(") Z"))
}
