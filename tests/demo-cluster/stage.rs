//! Where the demonstration is played: in a process of its own, so that everything is cleared up
//! however it ends, by Ctrl-C too.

use std::io;
use std::mem::MaybeUninit;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitCode};
use std::time::{Duration, Instant};

use crate::harness::kill9;

/// Says to the program that it is the one that plays.
const ON_STAGE: &str = "IMAP_XID_DEMO_ON_STAGE";
/// How often it is looked whether the play is over.
const LOOK: Duration = Duration::from_millis(100);
/// Servers that lost their master may take so long to end by themselves.
const PATIENCE: Duration = Duration::from_secs(10);
/// As a shell says that Ctrl-C ended a program.
const INTERRUPTED: u8 = 130;

/// Whether this process is the one that plays.
pub fn is_on() -> bool {
    std::env::var_os(ON_STAGE).is_some()
}

/// Has the demonstration played, and clears up.
pub fn play() -> ExitCode {
    let signals = Signals::block();
    let folder = tempfile::Builder::new().prefix("xid-demo-").tempdir();
    let folder = folder.expect("a temporary folder");
    let mut child = start(folder.path(), &signals).expect("the program starts itself");
    let code = wait(&mut child, &signals);
    clear_networks(child.id());
    code
}

fn start(folder: &std::path::Path, signals: &Signals) -> io::Result<Child> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(std::env::args_os().skip(1));
    command.env(ON_STAGE, "1").env("TMPDIR", folder);
    // A group of its own: Ctrl-C reaches us, who clear up.
    command.process_group(0);
    let before = signals.before;
    // SAFETY: the closure makes system calls only.
    unsafe {
        command.pre_exec(move || {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            libc::sigprocmask(libc::SIG_SETMASK, &raw const before, std::ptr::null_mut());
            Ok(())
        });
    }
    command.spawn()
}

/// Until it is over, or somebody has seen enough.
fn wait(child: &mut Child, signals: &Signals) -> ExitCode {
    loop {
        match child.try_wait() {
            Ok(None) => {}
            Ok(Some(status)) => {
                let code = status.code().or(status.signal().map(|signal| 128 + signal));
                return ExitCode::from(code.and_then(|c| u8::try_from(c).ok()).unwrap_or(1));
            }
            Err(_) => return ExitCode::FAILURE,
        }
        if signals.came_within(LOOK) {
            println!("\nStopping the servers, and removing their files.");
            // Its daemons die with it, its Dovecots stop when they see that it is gone.
            kill9(child.id());
            let _ = child.wait();
            return ExitCode::from(INTERRUPTED);
        }
    }
}

/// Removes the namespaces that the process left behind, once nobody lives there.
fn clear_networks(process: u32) {
    let prefix = format!("xid{process}-");
    let end = Instant::now() + PATIENCE;
    for name in words(&["ip", "netns", "list"]) {
        if !name.starts_with(&prefix) {
            continue;
        }
        loop {
            let pids = words(&["ip", "netns", "pids", &name]);
            if pids.is_empty() {
                break;
            }
            if Instant::now() > end {
                let pids = pids.iter().filter_map(|pid| pid.parse().ok());
                pids.for_each(kill9);
            }
            std::thread::sleep(LOOK);
        }
        let _ = Command::new("ip").args(["netns", "del", &name]).output();
    }
}

fn words(command: &[&str]) -> Vec<String> {
    let output = Command::new(command[0]).args(&command[1..]).output();
    let text = output.map(|output| output.stdout).unwrap_or_default();
    let text = String::from_utf8_lossy(&text).into_owned();
    text.split_whitespace().map(str::to_owned).collect()
}

/// Ctrl-C and its like, which no longer end this process.
struct Signals {
    set: libc::sigset_t,
    /// What was blocked before.
    before: libc::sigset_t,
}

impl Signals {
    fn block() -> Signals {
        let mut set = MaybeUninit::uninit();
        let mut before = MaybeUninit::uninit();
        // SAFETY: sigemptyset and sigprocmask fill the sets before anything reads them.
        unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
                libc::sigaddset(set.as_mut_ptr(), signal);
            }
            libc::sigprocmask(libc::SIG_BLOCK, set.as_ptr(), before.as_mut_ptr());
            Signals {
                set: set.assume_init(),
                before: before.assume_init(),
            }
        }
    }

    fn came_within(&self, limit: Duration) -> bool {
        let limit = libc::timespec {
            tv_sec: 0,
            tv_nsec: limit.subsec_nanos().into(),
        };
        // SAFETY: both are alive during the call; nothing is written.
        unsafe {
            libc::sigtimedwait(&raw const self.set, std::ptr::null_mut(), &raw const limit) > 0
        }
    }
}
