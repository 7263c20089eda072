//! A whole cluster of one's own: a Dovecot and an xidd on each node of a lab, etcd on the first
//! three (or fewer), and everything that can go wrong with them.
//!
//! ```ignore
//! let cluster = Cluster::setup().nodes(3).format(Format::Maildir).start();
//! let mut client = cluster.node(1).imap_in("alice", "INBOX");   // a Dovecot as any other
//! cluster.net.partition(&[1], &[2, 3]);
//! cluster.heal();                                               // everything is up and whole again
//! ```
//!
//! Nodes are numbered from 1; node n has the name and the namespace "n" and its number. Clients
//! reach a node from beside it: what is cut is cut between nodes only.

use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::etcd::Etcd;
use super::net::{self, Net};
use super::seqpacket;
use super::{Dovecot, Format, LIMIT, Setup, cargo_binary, kill9, signal, until};

/// Where doveadm listens on every node.
pub const DOVEADM: u16 = 4155;
/// The password of that.
const PASSWORD: &str = "lab";
/// More etcd members than this do not make a cluster safer, only slower.
const ETCD_MEMBERS: usize = 3;
/// How much of each xidd's log a failing test prints, in bytes.
const LOG_TAIL: usize = 12_000;

/// A cluster to be; [`ClusterSetup::start`] makes it.
pub struct ClusterSetup {
    nodes: usize,
    server: Setup,
    delay: Option<Duration>,
    lease: String,
    window: u32,
    clocks: bool,
}

impl ClusterSetup {
    pub fn nodes(mut self, nodes: usize) -> ClusterSetup {
        self.nodes = nodes;
        self
    }

    pub fn format(mut self, format: Format) -> ClusterSetup {
        self.server = self.server.format(format);
        self
    }

    /// A setting inside `plugin { }` of every node.
    pub fn xid(mut self, key: &str, value: &str) -> ClusterSetup {
        self.server = self.server.xid(key, value);
        self
    }

    /// Lines for the configuration of every node.
    pub fn conf(mut self, lines: &str) -> ClusterSetup {
        self.server = self.server.conf(lines);
        self
    }

    /// The nodes are this far apart, one way.
    pub fn delay(mut self, delay: Duration) -> ClusterSetup {
        self.delay = Some(delay);
        self
    }

    /// How long a silent node stays a member ("3s").
    pub fn lease(mut self, lease: &str) -> ClusterSetup {
        self.lease = lease.into();
        self
    }

    /// How many messages of a mailbox a node numbers by itself.
    pub fn window(mut self, window: u32) -> ClusterSetup {
        self.window = window;
        self
    }

    /// The wall clocks of the daemons can be shifted (costs them time).
    pub fn clocks(mut self) -> ClusterSetup {
        self.clocks = true;
        self
    }

    /// Starts it all and waits until every node is in the cluster.
    ///
    /// # Panics
    /// When something does not start.
    pub fn start(self) -> Cluster {
        // It may have to be built first.
        let daemon = cargo_binary("IMAP_XID_XIDD", "xidd", "cluster");
        let net = match self.delay {
            None => Net::new(self.nodes),
            Some(delay) => Net::slow(self.nodes, delay),
        };
        let net = net.expect("namespaces (needs root)");
        let pace = etcd_pace(self.delay.unwrap_or_default());
        let pace: Vec<&str> = pace.iter().map(String::as_str).collect();
        let etcd = Etcd::on(&net, self.nodes.min(ETCD_MEMBERS), &pace);
        let members = net
            .all()
            .map(|node| self.member(&net, node, &daemon))
            .collect();
        let cluster = Cluster { members, etcd, net };
        for node in cluster.net.all() {
            cluster.write_config(node, &self);
            cluster.start_xidd(node);
        }
        cluster.wait_in();
        cluster
    }

    fn member(&self, net: &Net, node: usize, daemon: &Path) -> Member {
        let listener =
            format!("service doveadm {{\n  inet_listener {{\n    port = {DOVEADM}\n  }}\n}}");
        let server = self.server.clone().at(net, node).conf(&listener);
        let server = match std::env::var_os("IMAP_XID_LAB_LOG") {
            Some(_) => told(server),
            None => server,
        };
        let server = server.set("doveadm_password", PASSWORD);
        let dovecot = server
            .xid("xid_uid_source", "cluster")
            .xid("xid_namespace", &name(node))
            .start();
        // Replication that would renumber what is promised is refused: under contention that
        // is how it goes, until the daemons settle it.
        dovecot.allow_log("xid: interlock: ");
        // So is replication while the node is cut off and cannot ask for XIDs.
        dovecot.allow_log("replication refused (the XIDs of its messages are not known");
        Member {
            place: Place::of(&dovecot, net.name(node)),
            daemon: daemon.to_owned(),
            library: if self.clocks { faketime() } else { None },
            dovecot,
            xidd: Mutex::new(None),
        }
    }
}

/// etcd's own advice for members that are far apart: a beat of about the way there and back, ten
/// times that for an election.
fn etcd_pace(delay: Duration) -> Vec<String> {
    let beat = (delay.as_millis() * 2).max(100);
    vec![
        format!("--heartbeat-interval={beat}"),
        format!("--election-timeout={}", beat * 10),
    ]
}

fn name(node: usize) -> String {
    format!("n{node}")
}

/// A running cluster. Stopped and removed when dropped.
pub struct Cluster {
    members: Vec<Member>,
    /// etcd's members, numbered from 0: member 0 runs on node 1.
    pub etcd: Etcd,
    /// The links.
    pub net: Net,
}

struct Member {
    dovecot: Dovecot,
    xidd: Mutex<Option<Child>>,
    place: Place,
    /// The program.
    daemon: PathBuf,
    /// What shifts its clock, if anything does.
    library: Option<PathBuf>,
}

/// Where a node's xidd lives.
struct Place {
    namespace: String,
    config: PathBuf,
    socket: PathBuf,
    state: PathBuf,
    password: PathBuf,
    doveadm: PathBuf,
    log: PathBuf,
    /// Holds what the daemon believes the time to be, where faketime is installed.
    clock: PathBuf,
}

impl Place {
    fn of(dovecot: &Dovecot, namespace: String) -> Place {
        let at = |name: &str| dovecot.tree().join(name);
        Place {
            namespace,
            config: at("xidd.toml"),
            socket: at("run/xidd"),
            state: at("xidd"),
            password: at("xidd.password"),
            doveadm: at("run/doveadm-server"),
            log: at("xidd.log"),
            clock: at("xidd.clock"),
        }
    }
}

impl Cluster {
    /// Three nodes, sdbox, a lease of three seconds, no delay.
    pub fn setup() -> ClusterSetup {
        ClusterSetup {
            nodes: 3,
            server: Dovecot::setup(),
            delay: None,
            lease: "3s".into(),
            window: 10_000,
            clocks: false,
        }
    }

    /// How many nodes there are.
    pub fn nodes(&self) -> usize {
        self.members.len()
    }

    /// The Dovecot of a node.
    pub fn node(&self, node: usize) -> &Dovecot {
        &self.member(node).dovecot
    }

    fn member(&self, node: usize) -> &Member {
        &self.members[node - 1]
    }

    fn write_config(&self, node: usize, setup: &ClusterSetup) {
        let place = &self.member(node).place;
        std::fs::write(&place.password, PASSWORD).expect("the password is written");
        // xidd refuses one that everybody may read.
        std::fs::set_permissions(&place.password, Permissions::from_mode(0o600)).expect("chmod");
        std::fs::create_dir_all(&place.state).expect("the folder is made");
        let mut endpoints = self.etcd.endpoints();
        let own = (node - 1) % endpoints.len();
        endpoints.rotate_left(own);
        let mut text = format!(
            "node = \"{name}\"\nnamespace = \"{name}\"\ncluster = \"lab\"\nlease = \"{lease}\"\n\
             window = {window}\nsocket = {socket:?}\nstate_dir = {state:?}\n\
             metrics = \"127.0.0.1:9154\"\n\n[etcd]\nendpoints = {endpoints:?}\n\
             timeout = \"2s\"\n\n[doveadm]\nsocket = {doveadm:?}\npassword_file = {password:?}\n",
            name = name(node),
            lease = setup.lease,
            window = setup.window,
            socket = place.socket,
            state = place.state,
            doveadm = place.doveadm,
            password = place.password,
        );
        for peer in self.net.all().filter(|peer| *peer != node) {
            text.push_str(&format!(
                "\n[[peer]]\nname = \"{}\"\ndoveadm = \"{}:{DOVEADM}\"\n",
                name(peer),
                self.net.ip(peer)
            ));
        }
        std::fs::write(&place.config, text).expect("xidd.toml is written");
    }

    // --- xidd -------------------------------------------------------------------------------

    /// Starts a node's xidd, unless it runs.
    pub fn start_xidd(&self, node: usize) {
        let mut running = self.xidd(node);
        if running.is_none() {
            *running = Some(self.spawn_xidd(node));
        }
    }

    fn spawn_xidd(&self, node: usize) -> Child {
        let member = self.member(node);
        let place = &member.place;
        let log = File::options().append(true).create(true).open(&place.log);
        let log = log.expect("xidd.log can be written");
        let namespace = net::open(&place.namespace).expect("the node's namespace");
        let mut command = Command::new(&member.daemon);
        command
            .arg("-c")
            .arg(&place.config)
            .env(
                "RUST_LOG",
                std::env::var("IMAP_XID_LAB_LOG").unwrap_or_else(|_| "info".into()),
            )
            .env("RUST_BACKTRACE", "1")
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second handle"))
            .stderr(log);
        if let Some(library) = &member.library {
            std::fs::write(&place.clock, "+0").expect("the clock is written");
            command
                .env("LD_PRELOAD", library)
                .env("FAKETIME_TIMESTAMP_FILE", &place.clock)
                .env("FAKETIME_NO_CACHE", "1")
                .env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        }
        // SAFETY: the closure makes one system call, on a descriptor that it owns.
        unsafe {
            command.pre_exec(move || net::enter(&namespace));
        }
        command.spawn().expect("xidd starts")
    }

    fn xidd(&self, node: usize) -> MutexGuard<'_, Option<Child>> {
        let xidd = self.member(node).xidd.lock();
        xidd.unwrap_or_else(PoisonError::into_inner)
    }

    /// kill -9 of a node's xidd.
    pub fn kill_xidd(&self, node: usize) {
        if let Some(mut child) = self.xidd(node).take() {
            kill9(child.id());
            let _ = child.wait();
        }
    }

    /// SIGTERM to a node's xidd; waits for its end, and gives its exit code.
    pub fn stop_xidd(&self, node: usize) -> Option<i32> {
        let mut child = self.xidd(node).take()?;
        signal(child.id(), libc::SIGTERM);
        let deadline = Instant::now() + LIMIT;
        while Instant::now() < deadline {
            if let Ok(Some(status)) = child.try_wait() {
                return status.code();
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        kill9(child.id());
        let _ = child.wait();
        panic!("xidd of node {node} did not stop within {LIMIT:?}");
    }

    /// SIGSTOP, or SIGCONT.
    pub fn pause_xidd(&self, node: usize, paused: bool) {
        if let Some(child) = &*self.xidd(node) {
            signal(
                child.id(),
                if paused { libc::SIGSTOP } else { libc::SIGCONT },
            );
        }
    }

    /// The text of a node's xidd.toml.
    pub fn xidd_config(&self, node: usize) -> String {
        let file = &self.member(node).place.config;
        std::fs::read_to_string(file).expect("xidd.toml can be read")
    }

    /// Replaces a node's xidd.toml and tells its xidd, as `systemctl reload` does; gives what the
    /// daemon logged until it was done with it.
    pub fn reload_xidd(&self, node: usize, text: &str) -> String {
        std::fs::write(&self.member(node).place.config, text).expect("xidd.toml is written");
        let before = self.xidd_log(node).len();
        let pid = self.xidd(node).as_ref().map(Child::id);
        signal(pid.expect("an xidd"), libc::SIGHUP);
        let mut said = String::new();
        until(&format!("xidd of node {node} to reload"), || {
            said = self.xidd_log(node).split_off(before);
            ["read anew", "going on with the configuration as it was"]
                .iter()
                .any(|end| said.contains(end))
        });
        said
    }

    /// A file with the password of the peers' doveadm listeners, as a node's xidd knows it.
    pub fn password_file(&self, node: usize) -> &Path {
        &self.member(node).place.password
    }

    /// Whether a node's xidd runs.
    pub fn xidd_runs(&self, node: usize) -> bool {
        let mut xidd = self.xidd(node);
        let running = xidd.as_mut().map(|child| child.try_wait());
        matches!(running, Some(Ok(None)))
    }

    /// What a node's xidd logged.
    pub fn xidd_log(&self, node: usize) -> String {
        let bytes = std::fs::read(&self.member(node).place.log).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Shifts the wall clock of a node's xidd ("+1h", "-2d", "+0"), where [`ClusterSetup::clocks`]
    /// said so. False: faketime is not installed, nothing happened.
    pub fn shift_clock(&self, node: usize, by: &str) -> bool {
        let member = self.member(node);
        if member.library.is_some() {
            std::fs::write(&member.place.clock, by).expect("the clock is written");
        }
        member.library.is_some()
    }

    /// Whether a node's xidd says that the node is in the cluster.
    pub fn is_in(&self, node: usize) -> bool {
        ask(&self.member(node).place.socket, b"S").is_ok_and(|answer| answer.starts_with("S\tin"))
    }

    /// Waits until all nodes are.
    pub fn wait_in(&self) {
        for node in self.net.all() {
            self.wait_node_in(node);
        }
    }

    /// Waits until this one is.
    pub fn wait_node_in(&self, node: usize) {
        until(&format!("node {node} to be in the cluster"), || {
            assert!(self.xidd_runs(node), "xidd of node {node} ended by itself");
            self.is_in(node)
        });
    }

    /// The OpenMetrics text of a node's xidd.
    pub fn metrics(&self, node: usize) -> String {
        let fetched = self.net.inside(node, || {
            use std::io::{Read, Write};
            let mut stream = std::net::TcpStream::connect(("127.0.0.1", 9154))?;
            stream.set_read_timeout(Some(LIMIT))?;
            stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: lab\r\nConnection: close\r\n\r\n")?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            io::Result::Ok(text)
        });
        fetched.and_then(|text| text).unwrap_or_default()
    }

    // --- faults -----------------------------------------------------------------------------

    /// kill -9 of the processes in which a node's replication, and what its xidd does to mail, are
    /// at work. Gives how many there were.
    ///
    /// Not of those that only begin: Dovecot's master then starts no other for up to a minute.
    pub fn kill_dsync(&self, node: usize) -> usize {
        let server = self.node(node);
        let owner = server.mail_owner().0;
        let mut pids = server.pids("doveadm-server");
        pids.retain(|pid| acts_as(*pid) == Some(owner));
        pids.iter().for_each(|pid| kill9(*pid));
        server.allow_log("killed with signal 9");
        pids.len()
    }

    /// The node loses its power: nothing of it answers any more, and nobody is told so.
    pub fn power_off(&self, node: usize) {
        self.allow_nobody_there();
        self.net.isolate(node).expect("the node is cut off");
        self.kill_xidd(node);
        if self.node(node).is_running() {
            self.node(node).crash();
        }
        if node <= self.etcd.members() {
            self.etcd.crash(node - 1);
        }
    }

    /// It comes back with the disk that it had.
    pub fn power_on(&self, node: usize) {
        self.net.reconnect(node).expect("the node is connected");
        if node <= self.etcd.members() {
            self.etcd.start_again(node - 1);
        }
        if !self.node(node).is_running() {
            self.node(node).start_again();
        }
        self.start_xidd(node);
    }

    /// The node gets a new, empty disk: all mail is gone, and all that its daemon knew. Its Dovecot
    /// runs; its daemon is to be started.
    pub fn replace_disk(&self, node: usize) {
        self.allow_nobody_there();
        self.kill_xidd(node);
        if self.node(node).is_running() {
            self.node(node).crash();
        }
        let place = &self.member(node).place;
        std::fs::remove_dir_all(&place.state).expect("the daemon's files");
        std::fs::create_dir_all(&place.state).expect("the folder is made");
        let home = self.node(node).home("alice");
        let homes = home.parent().expect("a folder");
        for home in std::fs::read_dir(homes).expect("the homes").flatten() {
            std::fs::remove_dir_all(home.path()).expect("the mail");
        }
        self.node(node).start_again();
    }

    /// Whose replication comes to a node just when nobody is there says so, and ends.
    fn allow_nobody_there(&self) {
        self.allow_log("Fatal: connect(");
    }

    /// Everything is up, goes on and reaches everything, whatever was done before.
    pub fn heal(&self) {
        self.net.heal().expect("the links are whole");
        for member in 0..self.etcd.members() {
            self.etcd.start_again(member);
            self.etcd.pause(member, false);
        }
        for node in self.net.all() {
            self.node(node).pause(false);
            if !self.node(node).is_running() {
                self.node(node).start_again();
            }
            self.pause_xidd(node, false);
            self.shift_clock(node, "+0");
            self.start_xidd(node);
        }
    }

    /// Adds a message to what is no fault in any node's log.
    pub fn allow_log(&self, text: &str) {
        for node in self.net.all() {
            self.node(node).allow_log(text);
        }
    }

    /// Copies all logs to the folder that `IMAP_XID_LAB_KEEP` names, if it does.
    fn keep_logs(&self) {
        let Some(folder) = std::env::var_os("IMAP_XID_LAB_KEEP") else {
            return;
        };
        let folder = PathBuf::from(folder).join(format!("{}", std::process::id()));
        let _ = std::fs::create_dir_all(&folder);
        for node in self.net.all() {
            let at = |what: &str| folder.join(format!("{}.{what}.log", name(node)));
            let _ = std::fs::write(at("xidd"), self.xidd_log(node));
            let _ = std::fs::write(at("dovecot"), self.node(node).log());
        }
        println!("--- all logs are kept in {}", folder.display());
    }

    fn print_logs(&self) {
        for node in self.net.all() {
            let log = self.xidd_log(node);
            let mut from = log.len().saturating_sub(LOG_TAIL);
            while !log.is_char_boundary(from) {
                from += 1;
            }
            println!("--- log of xidd on node {node}\n{}", &log[from..]);
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.keep_logs();
        if std::thread::panicking() {
            self.print_logs();
        }
        for node in self.net.all() {
            // A stopped process does not die of a broken link; all others end by themselves.
            self.kill_xidd(node);
            self.node(node).pause(false);
        }
    }
}

/// Dovecot's log says what becomes of each message, too: for who looks for one that went.
fn told(server: Setup) -> Setup {
    let what = "plugin {\n  mail_log_events = expunge copy save flag_change\n  \
                mail_log_fields = uid box\n}";
    server.mail_plugins("zlib notify mail_log").conf(what)
}

/// The system user as whom a process acts: at work on mail it is the mail's owner.
fn acts_as(pid: u32) -> Option<u32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let uids = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    uids.split_whitespace().nth(1)?.parse().ok()
}

/// libfaketime, where Debian put it.
fn faketime() -> Option<PathBuf> {
    let arch = std::env::consts::ARCH;
    let path = PathBuf::from(format!(
        "/usr/lib/{arch}-linux-gnu/faketime/libfaketimeMT.so.1"
    ));
    path.exists().then_some(path)
}

/// One message to the daemon's socket, and its answer.
fn ask(socket: &Path, message: &[u8]) -> io::Result<String> {
    /// A daemon that is stopped does not answer.
    const PATIENCE: Duration = Duration::from_secs(2);
    let connection = seqpacket::open(socket, PATIENCE)?;
    if !seqpacket::send(&connection, message) {
        return Err(io::Error::last_os_error());
    }
    let answer = seqpacket::receive(&connection).ok_or(io::ErrorKind::UnexpectedEof)?;
    Ok(answer.trim().to_owned())
}
