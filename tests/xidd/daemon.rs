//! A running xidd of one's own, and a service manager for it.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::harness::LIMIT;
use crate::harness::etcd::Etcd;
use crate::peer;

/// The daemon under test.
pub const XIDD: &str = env!("CARGO_BIN_EXE_xidd");
/// systemd passes descriptors from this one on.
const FIRST_PASSED: i32 = 3;

/// A folder with a configuration and all that it names.
pub struct Scene {
    dir: tempfile::TempDir,
}

impl Scene {
    pub fn new() -> Scene {
        let dir = tempfile::Builder::new()
            .prefix("xidd-")
            .tempdir()
            .expect("a folder");
        // Other uids connect to the socket in it.
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(dir.path(), open).expect("its mode");
        Scene { dir }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn config(&self) -> PathBuf {
        self.at("xidd.toml")
    }

    pub fn socket(&self) -> PathBuf {
        self.at("socket")
    }

    /// Right, with an etcd that is not there.
    pub fn usual(&self) -> String {
        self.with_endpoint(&format!("http://127.0.0.1:{}", free_port()))
    }

    pub fn with_etcd(&self, etcd: &Etcd) -> String {
        self.with_endpoint(&etcd.endpoints()[0])
    }

    fn with_endpoint(&self, endpoint: &str) -> String {
        format!(
            "node = \"alpha\"\nlease = \"60s\"\nsocket = {:?}\nstate_dir = {:?}\n\
             metrics = \"off\"\n[etcd]\nendpoints = [{endpoint:?}]\n",
            self.socket(),
            self.at("state"),
        )
    }

    pub fn write(&self, text: &str) {
        std::fs::write(self.config(), text).expect("xidd.toml is written");
    }
}

/// A port that nobody has at the moment.
pub fn free_port() -> u16 {
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    free.local_addr().expect("bound").port()
}

/// A running xidd. Killed when dropped.
pub struct Daemon {
    child: Child,
    manager: UnixDatagram,
    log: PathBuf,
    /// What the manager was told and no test asked for yet.
    told: String,
}

impl Daemon {
    pub fn start(scene: &Scene) -> Daemon {
        Daemon::start_with(scene, &[])
    }

    pub fn start_with(scene: &Scene, environment: &[(&str, &str)]) -> Daemon {
        let mut command = Command::new(XIDD);
        command.arg("-c").arg(scene.config());
        command.envs(environment.iter().copied());
        Daemon::spawn(scene, command, None)
    }

    /// As systemd does where it made the socket. LISTEN_PID has to be the daemon's own.
    pub fn start_with_socket(scene: &Scene) -> Daemon {
        let mut command = Command::new("/bin/sh");
        let script = "LISTEN_PID=$$ LISTEN_FDS=1 exec \"$0\" -c \"$1\"";
        command.args(["-c", script, XIDD]).arg(scene.config());
        Daemon::spawn(scene, command, Some(peer::listen(&scene.socket())))
    }

    fn spawn(scene: &Scene, mut command: Command, passed: Option<OwnedFd>) -> Daemon {
        static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let notify = scene.at(&format!("notify-{number}"));
        let manager = UnixDatagram::bind(&notify).expect("a datagram socket");
        let patience = Some(Duration::from_secs(1));
        manager.set_read_timeout(patience).expect("its limit");
        let log = scene.at(&format!("log-{number}"));
        command
            .env("NOTIFY_SOCKET", &notify)
            .env("WATCHDOG_USEC", "1000000")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log).expect("a log"));
        // SAFETY: the closure makes system calls only.
        unsafe {
            command.pre_exec(move || {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                if let Some(fd) = &passed {
                    pass(fd.as_raw_fd())?;
                }
                Ok(())
            });
        }
        Daemon {
            child: command.spawn().expect("xidd starts"),
            manager,
            log,
            told: String::new(),
        }
    }

    /// Waits until the manager is told this, and forgets what was told up to there.
    pub fn told(&mut self, part: &str) {
        let deadline = Instant::now() + LIMIT;
        let mut buffer = [0_u8; 4096];
        loop {
            if let Some(start) = self.told.find(part) {
                self.told.drain(..start + part.len());
                return;
            }
            if let Ok(length) = self.manager.recv(&mut buffer) {
                self.told
                    .push_str(&String::from_utf8_lossy(&buffer[..length]));
            }
            let late = Instant::now() > deadline;
            let last = self.told.lines().rev().take(9).collect::<Vec<_>>();
            assert!(
                !late,
                "{part:?} was not told; last {last:?}\n{}",
                self.log()
            );
        }
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub fn signal(&self, signal: i32) {
        let pid = i32::try_from(self.child.id()).expect("a pid");
        // SAFETY: our own child, which is not waited for before its end.
        unsafe { libc::kill(pid, signal) };
    }

    /// Waits for its end.
    pub fn exit_code(&mut self) -> Option<i32> {
        let deadline = Instant::now() + LIMIT;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait().expect("our child") {
                return status.code();
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("xidd does not end\n{}", self.log());
    }

    /// SIGTERM; whether it ended well.
    pub fn stop(&mut self) -> bool {
        self.signal(libc::SIGTERM);
        self.exit_code() == Some(0)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Makes a descriptor the first one that is passed on.
fn pass(fd: i32) -> std::io::Result<()> {
    // SAFETY: plain system calls on descriptors of this process.
    let done = match fd {
        FIRST_PASSED => unsafe { libc::fcntl(fd, libc::F_SETFD, 0) },
        _ => unsafe { libc::dup2(fd, FIRST_PASSED) },
    };
    match done {
        -1 => Err(std::io::Error::last_os_error()),
        _ => Ok(()),
    }
}
