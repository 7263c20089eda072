//! One server, every client against it at the same time, each with a user of its own.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::harness::relay::Relay;
use super::harness::{Dovecot, Output, Random, message, run, seed, until};
use super::programs::{self, Job, Program};
use super::report::{Played, Result, Scene};

/// Messages that wait in INBOX when the client comes.
pub const MESSAGES: usize = 5;
/// The number of the message that the client saves.
const SAVED: usize = 100;
/// Pause between two looks for the client's login.
const LOGIN_PAUSE: Duration = Duration::from_millis(100);
/// Pause between the rounds of the assigner.
const ASSIGN_PAUSE: Duration = Duration::from_millis(500);
/// Longest pause of the assigner that comes at random moments.
const RANDOM_PAUSE_MS: usize = 1500;

/// Plays one scene with every client.
pub fn play(scene: Scene) -> Played {
    let server = scene.server();
    let dir = tempfile::tempdir().expect("a temporary folder");
    let results = std::thread::scope(|scope| {
        let runs: Vec<_> = programs::ALL
            .iter()
            .filter(|p| is_wanted(p))
            .map(|p| scope.spawn(|| (p.name, one(scene, &server, dir.path(), p))))
            .collect();
        runs.into_iter()
            .map(|run| run.join().expect("a client"))
            .collect()
    });
    Played { scene, results }
}

/// IMAP_XID_CLIENT plays with one client alone.
fn is_wanted(program: &Program) -> bool {
    let soak = ["IMAP_XID_SOAK", "IMAP_XID_WRITE_DOCS"];
    match std::env::var("IMAP_XID_CLIENT") {
        Ok(wanted) => wanted == program.name,
        Err(_) => !program.soak || soak.iter().any(|name| std::env::var_os(name).is_some()),
    }
}

fn one(scene: Scene, server: &Dovecot, dir: &Path, program: &Program) -> Result {
    let user: String = program
        .name
        .chars()
        .filter(char::is_ascii_alphanumeric)
        .collect();
    let user = user.to_lowercase();
    fill(server, &user);
    let relay = (scene == Scene::Random)
        .then(|| Relay::start(server.imap_addr(), server.watermarks(), &user).expect("a relay"));
    let address = relay
        .as_ref()
        .map_or_else(|| server.imap_addr(), Relay::address);
    let job = job(address, dir, &user);
    let start = Instant::now();
    let done = AtomicBool::new(false);
    let logins = logins(server, &user);
    let (outputs, runs) = std::thread::scope(|scope| {
        let (assigned, done) = (&user, &done);
        scope.spawn(move || {
            let Some(login) = next_login(server, assigned, logins, done) else {
                return;
            };
            match scene {
                Scene::Waits(seconds) => {
                    assign(server, assigned, login + Duration::from_secs(seconds), done);
                }
                Scene::Random => assign_at_random(server, assigned, done),
                Scene::Stock | Scene::NoUids => {}
            }
        });
        let (mut outputs, mut runs) = run_all(program, &job);
        // One that keeps below UIDNEXT waits for nothing: it is content with what is stable.
        if scene == Scene::Random && subjects_below(&job.out).len() < MESSAGES {
            let mut client = server.imap(&user);
            until("all UIDs of INBOX are stable", || {
                let status = client.ok("STATUS INBOX (UIDNEXT)").only("STATUS");
                status.contains(&format!("UIDNEXT {}", MESSAGES + 1))
            });
            outputs = run_once(program, &job);
            runs += 1;
        }
        done.store(true, Ordering::Release);
        (outputs, runs)
    });
    if let Some(relay) = &relay {
        assert!(relay.lines() > 0, "{} was not heard", program.name);
    }
    Result {
        got: subjects_below(&job.out),
        saved: program.saves.then(|| saved(server, &user)),
        code: outputs
            .iter()
            .map(|o| o.code)
            .find(|c| *c != 0)
            .unwrap_or(0),
        runs,
        seconds: start.elapsed().as_secs(),
        said: outputs
            .iter()
            .map(|o| format!("{}{}", o.stdout, o.stderr))
            .collect(),
        leaks: relay.map(|relay| relay.leaks()).unwrap_or_default(),
    }
}

fn fill(server: &Dovecot, user: &str) {
    let mut client = server.imap(user);
    client.ok("CREATE Sent");
    for n in 1..=MESSAGES {
        client.append("INBOX", &message(n));
    }
}

fn job(server: SocketAddr, dir: &Path, user: &str) -> Job {
    let dir = dir.join(user);
    let out = dir.join("out");
    fs::create_dir_all(&out).expect("the client's folder");
    let path = dir.join("message");
    fs::write(&path, message(SAVED)).expect("the message");
    Job {
        server,
        user: user.into(),
        dir,
        out,
        message: path,
        modules: modules().into(),
    }
}

/// What each command of the last run said, and how many runs it took.
fn run_all(program: &Program, job: &Job) -> (Vec<Output>, u32) {
    let mut runs = 0;
    loop {
        runs += 1;
        let outputs = run_once(program, job);
        if runs == program.runs || outputs.iter().all(|o| o.code == 0) {
            return (outputs, runs);
        }
    }
}

fn run_once(program: &Program, job: &Job) -> Vec<Output> {
    let mut outputs = Vec::new();
    for mut command in (program.commands)(job).expect("the client's configuration") {
        command.env("HOME", &job.dir).env("XDG_DATA_HOME", &job.dir);
        let output = run(&mut command, b"");
        let failed = output.code != 0;
        outputs.push(output);
        if failed {
            break;
        }
    }
    outputs
}

/// How often the user has logged in.
fn logins(server: &Dovecot, user: &str) -> usize {
    let line = format!("Login: user=<{user}>");
    server.log().matches(&line).count()
}

/// When the client comes to the server, which may be long after its start; None if it is done
/// without having come.
fn next_login(server: &Dovecot, user: &str, before: usize, done: &AtomicBool) -> Option<Instant> {
    while !done.load(Ordering::Acquire) {
        if logins(server, user) > before {
            return Some(Instant::now());
        }
        std::thread::sleep(LOGIN_PAUSE);
    }
    None
}

/// Makes UIDs stable from `due` on, until the client is done.
fn assign(server: &Dovecot, user: &str, due: Instant, done: &AtomicBool) {
    while !done.load(Ordering::Acquire) {
        std::thread::sleep(ASSIGN_PAUSE.min(due.saturating_duration_since(Instant::now())));
        if Instant::now() < due {
            continue;
        }
        for (mailbox, uid) in LAST_UIDS {
            make_stable(server, user, mailbox, uid);
        }
        std::thread::sleep(ASSIGN_PAUSE);
    }
}

/// The mailboxes that are there, each with the highest UID that it comes to have.
const LAST_UIDS: [(&str, u32); 2] = [("INBOX", MESSAGES as u32), ("Sent", 1)];

/// The highest UID that the mailbox has given, stable or not.
fn last_uid(server: &Dovecot, user: &str, mailbox: &str) -> u32 {
    let status = server.doveadm_ok(&["mailbox", "status", "-u", user, "uidnext", mailbox]);
    let next = status.trim().rsplit_once("uidnext=");
    next.and_then(|(_, next)| next.parse::<u32>().ok())
        .expect("a UIDNEXT")
        - 1
}

/// Nothing is pending in Sent until the client saved its message there: then this is none yet.
fn make_stable(server: &Dovecot, user: &str, mailbox: &str, uid: u32) {
    server.note_watermark(user, mailbox, uid);
    let uid = uid.to_string();
    let _ = server.xidctl(&["advance", "-u", user, "-m", mailbox, &uid]);
}

/// Makes UIDs stable at random moments, a random number of them at once, until the client is done.
fn assign_at_random(server: &Dovecot, user: &str, done: &AtomicBool) {
    let name: u64 = user.bytes().map(u64::from).sum();
    let mut random = Random::new(seed("XID_CLIENTS_SEED", 20_261_128).wrapping_add(name));
    let mut stable = [0; LAST_UIDS.len()];
    while !done.load(Ordering::Acquire) {
        let pause = random.below(RANDOM_PAUSE_MS) as u64;
        std::thread::sleep(Duration::from_millis(pause));
        let at = random.below(LAST_UIDS.len());
        let mailbox = LAST_UIDS[at].0;
        let more = stable[at] + 1 + random.below(2) as u32;
        stable[at] = more.min(last_uid(server, user, mailbox));
        make_stable(server, user, mailbox, stable[at]);
    }
}

/// How often each message is below the folder, by its subject.
fn subjects_below(dir: &Path) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for path in files_below(dir) {
        let bytes = fs::read(path).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        for line in text.lines() {
            if let Some(subject) = line.strip_prefix("Subject: ") {
                *counts.entry(subject.trim().to_owned()).or_default() += 1;
            }
        }
    }
    counts
}

fn files_below(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .flat_map(|entry| match entry.path() {
            path if path.is_dir() => files_below(&path),
            path => vec![path],
        })
        .collect()
}

/// How often the message is in Sent.
fn saved(server: &Dovecot, user: &str) -> usize {
    let mut client = server.imap(user);
    client.ok("EXAMINE Sent");
    let reply = client.ok(&format!("SEARCH HEADER SUBJECT \"message {SAVED}\""));
    reply.search().len()
}

/// Where the packages of the npm registry and of PyPI are: installed once per build folder.
fn modules() -> &'static Path {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    DIR.get_or_init(|| {
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("clients");
        fs::create_dir_all(&dir).expect("a folder for modules");
        if !dir.join("node_modules/imapflow").exists() {
            let mut npm = Command::new("npm");
            npm.args([
                "install",
                "--no-audit",
                "--no-fund",
                "--ignore-scripts",
                "imapflow@^1",
            ]);
            let output = run(npm.arg("--prefix").arg(&dir), b"");
            assert_eq!(output.code, 0, "npm install imapflow: {output:?}");
        }
        if !dir.join("python/imapclient").exists() {
            let mut pip = Command::new("python3");
            pip.args(["-m", "pip", "install", "-q", "IMAPClient~=3.0", "--target"]);
            let output = run(pip.arg(dir.join("python")), b"");
            assert_eq!(output.code, 0, "pip install IMAPClient: {output:?}");
        }
        let evolution = dir.join("evolution");
        if !evolution.join(programs::CAMEL_PROVIDERS).exists() {
            unpack("evolution-data-server", &evolution);
        }
        dir
    })
}

/// Takes one of Debian's packages apart without installing it: this one brings a hundred others,
/// a browser among them, that what we want of it does not need.
fn unpack(package: &str, to: &Path) {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let mut get = Command::new("apt-get");
    get.args(["download", "-q", package])
        .current_dir(dir.path());
    let output = run(&mut get, b"");
    assert_eq!(output.code, 0, "apt-get download {package}: {output:?}");
    for file in files_below(dir.path()) {
        let mut dpkg = Command::new("dpkg-deb");
        let output = run(dpkg.arg("-x").arg(file).arg(to), b"");
        assert_eq!(output.code, 0, "dpkg-deb -x {package}: {output:?}");
    }
}
