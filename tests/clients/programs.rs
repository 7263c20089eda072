//! The clients: how each is told to download INBOX and to save a message.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What one client is to do.
pub struct Job {
    /// The IMAP server.
    pub server: SocketAddr,
    /// The mail user; any password will do.
    pub user: String,
    /// A folder of its own: configuration, state, home.
    pub dir: PathBuf,
    /// Where it puts what it downloads, any way it likes.
    pub out: PathBuf,
    /// The message to save into Sent.
    pub message: PathBuf,
    /// Where packages of the language registries are installed.
    pub modules: PathBuf,
}

/// Where Debian's evolution-data-server keeps Camel's side of IMAP, below the root.
pub const CAMEL_PROVIDERS: &str = "usr/lib/evolution-data-server/camel-providers";

/// A client and what it can do.
pub struct Program {
    /// As docs/clients.md names it.
    pub name: &'static str,
    /// The commands to run, one after the other.
    pub commands: fn(&Job) -> io::Result<Vec<Command>>,
    /// Whether it saves the message too.
    pub saves: bool,
    /// How often it may be run until it is content. isync 1.4 looks for a message that it saved
    /// by its header when there was no APPENDUID, stumbles over the answer (a bug of its own),
    /// and finds everything in order on its next run.
    pub runs: u32,
    /// Whether it is too large for every day: only `make soak` and `make generate` have it.
    pub soak: bool,
}

/// Every client.
pub const ALL: &[Program] = &[
    Program {
        name: "mbsync",
        commands: mbsync,
        saves: true,
        runs: 2,
        soak: false,
    },
    Program {
        name: "offlineimap3",
        commands: offlineimap,
        saves: true,
        runs: 1,
        soak: false,
    },
    Program {
        name: "getmail6",
        commands: getmail,
        saves: false,
        runs: 1,
        soak: false,
    },
    Program {
        name: "fetchmail",
        commands: fetchmail,
        saves: false,
        runs: 1,
        soak: false,
    },
    Program {
        name: "mutt",
        commands: mutt,
        saves: true,
        runs: 1,
        soak: false,
    },
    Program {
        name: "imapfilter",
        commands: imapfilter,
        saves: true,
        runs: 1,
        soak: false,
    },
    Program {
        name: "curl",
        commands: curl,
        saves: true,
        runs: 1,
        soak: false,
    },
    Program {
        name: "imapflow",
        commands: imapflow,
        saves: true,
        runs: 1,
        soak: false,
    },
    Program {
        name: "IMAPClient",
        commands: imapclient,
        saves: true,
        runs: 1,
        soak: false,
    },
    Program {
        name: "Mail::IMAPClient",
        commands: mail_imapclient,
        saves: true,
        runs: 1,
        soak: false,
    },
    Program {
        name: "alpine",
        commands: alpine,
        saves: true,
        runs: 1,
        soak: false,
    },
    Program {
        name: "Evolution (Camel)",
        commands: evolution,
        saves: true,
        runs: 1,
        soak: false,
    },
    Program {
        name: "Thunderbird",
        commands: thunderbird,
        saves: true,
        runs: 1,
        soak: true,
    },
];

impl Job {
    fn host(&self) -> String {
        self.server.ip().to_string()
    }

    fn port(&self) -> String {
        self.server.port().to_string()
    }

    /// Writes a configuration file into the job's folder.
    fn file(&self, name: &str, text: &str) -> io::Result<PathBuf> {
        let path = self.dir.join(name);
        fs::write(&path, text)?;
        // fetchmail and getmail refuse what others can read.
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
        Ok(path)
    }

    /// A maildir that holds the message to save; made for the first run only.
    fn maildir_with_message(&self, path: &Path) -> io::Result<()> {
        if path.exists() {
            return Ok(());
        }
        for part in ["cur", "new", "tmp"] {
            fs::create_dir_all(path.join(part))?;
        }
        fs::copy(&self.message, path.join("cur/1700000000.1.saved:2,S"))?;
        Ok(())
    }

    /// A script of ours with the arguments that all of them take.
    fn script(&self, interpreter: &str, name: &str) -> Command {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/clients")
            .join(name);
        let mut command = Command::new(interpreter);
        command
            .arg(path)
            .args([self.host(), self.port(), self.user.clone()]);
        command.arg(&self.out).arg(&self.message);
        command
    }

    /// A full-screen program, on a terminal of its own.
    fn on_terminal(&self, line: &str) -> Command {
        let mut command = Command::new("script");
        command
            .args(["-q", "-e", "-c", line, "/dev/null"])
            .env("TERM", "xterm");
        command
    }
}

/// A script beside this file.
fn own(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/clients")
        .join(name)
}

fn mbsync(job: &Job) -> io::Result<Vec<Command>> {
    job.maildir_with_message(&job.dir.join("Sent"))?;
    let text = format!(
        "IMAPAccount a\nHost {}\nPort {}\nUser {}\nPass pass\nSSLType None\nAuthMechs LOGIN\n\n\
         IMAPStore far\nAccount a\n\nMaildirStore near\nPath {dir}/\nInbox {out}/inbox\n\
         SubFolders Verbatim\n\nChannel c\nFar :far:\nNear :near:\nPatterns INBOX Sent\n\
         Create Both\nSyncState *\n",
        job.host(),
        job.port(),
        job.user,
        dir = job.dir.display(),
        out = job.out.display(),
    );
    let mut command = Command::new("mbsync");
    command
        .arg("-c")
        .arg(job.file("mbsyncrc", &text)?)
        .arg("-a");
    Ok(vec![command])
}

fn offlineimap(job: &Job) -> io::Result<Vec<Command>> {
    job.maildir_with_message(&job.dir.join("local/Sent"))?;
    let text = format!(
        "[general]\nmetadata = {dir}/state\naccounts = a\n\n[Account a]\n\
         localrepository = l\nremoterepository = r\n\n[Repository l]\ntype = Maildir\n\
         localfolders = {dir}/local\n\n[Repository r]\ntype = IMAP\nremotehost = {}\n\
         remoteport = {}\nremoteuser = {}\nremotepass = pass\nssl = no\nstarttls = no\n\
         auth_mechanisms = LOGIN\n",
        job.host(),
        job.port(),
        job.user,
        dir = job.dir.display(),
    );
    let config = job.file("offlineimaprc", &text)?;
    let mut run = Command::new("offlineimap");
    run.arg("-c").arg(config).args(["-o", "-u", "basic"]);
    let mut collect = Command::new("cp");
    collect
        .arg("-r")
        .arg(job.dir.join("local/INBOX"))
        .arg(&job.out);
    Ok(vec![run, collect])
}

fn getmail(job: &Job) -> io::Result<Vec<Command>> {
    // A delivery command: as root it would not write to a maildir itself. getmail misses the end of
    // one that ends before it begins to wait for it, and then waits for its whole time-out; so
    // the command ends only once getmail sleeps.
    let text = format!(
        "[retriever]\ntype = SimpleIMAPRetriever\nserver = {}\nport = {}\nusername = {}\n\
         password = pass\nmailboxes = (\"INBOX\",)\ntimeout = 120\n\n[destination]\n\
         type = MDA_external\npath = /bin/sh\nallow_root_commands = true\n\
         arguments = (\"-c\", \"cat > $(mktemp {}/XXXXXX); \
         until grep -q ^State:.S /proc/$PPID/status; do :; done\")\n\n[options]\nread_all = true\n",
        job.host(),
        job.port(),
        job.user,
        job.out.display(),
    );
    let config = job.file("getmailrc", &text)?;
    let mut command = Command::new("getmail");
    command.arg("-g").arg(&job.dir).arg("-r").arg(config);
    Ok(vec![command])
}

fn fetchmail(job: &Job) -> io::Result<Vec<Command>> {
    let text = format!(
        "set no bouncemail\npoll {} port {} protocol imap timeout 120 auth password\n\
         user \"{}\" password \"pass\" sslproto \"\" keep fetchall\n\
         mda \"sh -c 'cat > $(mktemp {}/XXXXXX)'\"\n",
        job.host(),
        job.port(),
        job.user,
        job.out.display(),
    );
    let config = job.file("fetchmailrc", &text)?;
    let mut command = Command::new("fetchmail");
    command
        .arg("-f")
        .arg(config)
        .arg("--pidfile")
        .arg(job.dir.join("pid"));
    Ok(vec![command])
}

fn mutt(job: &Job) -> io::Result<Vec<Command>> {
    let text = format!(
        "set imap_user={user}\nset imap_pass=pass\nset ssl_starttls=no\nset ssl_force_tls=no\n\
         set folder=imap://{host}:{port}/\nset confirmappend=no\nset confirmcreate=no\nset delete=no\n\
         set quit=yes\nset mbox_type=mbox\nset wait_key=no\nset sleep_time=0\nset move=no\n\
         set mark_old=no\nset auto_tag=no\n",
        user = job.user,
        host = job.host(),
        port = job.port(),
    );
    let config = job.file("muttrc", &text)?;
    let saved = job.dir.join("saved.mbox");
    let mut mbox = b"From sender Mon Nov 23 10:00:00 2026\n".to_vec();
    mbox.extend(fs::read(&job.message)?.iter().filter(|b| **b != b'\r'));
    fs::write(&saved, mbox)?;
    let run = |folder: &str, keys: &str| {
        job.on_terminal(&format!(
            "mutt -n -F {} -f {folder} -e 'push \"{keys}\"'",
            config.display()
        ))
    };
    let take = format!(
        "<tag-pattern>~A<enter><tag-prefix><copy-message>{}/mbox<enter><quit>",
        job.out.display()
    );
    let save = "<copy-message>=Sent<enter><quit>";
    Ok(vec![
        run("=INBOX", &take),
        run(&saved.display().to_string(), save),
    ])
}

fn imapfilter(job: &Job) -> io::Result<Vec<Command>> {
    let mut command = Command::new("imapfilter");
    command.arg("-c").arg(own("imapfilter.lua"));
    command
        .env("HOST", job.host())
        .env("PORT", job.port())
        .env("MAILUSER", &job.user);
    command.env("OUT", &job.out).env("MESSAGE", &job.message);
    Ok(vec![command])
}

fn curl(job: &Job) -> io::Result<Vec<Command>> {
    let url = format!("imap://{}:{}", job.host(), job.port());
    let login = format!("{}:pass", job.user);
    let script = format!(
        "set -e; uids=$(curl -sS --max-time 120 -u {login} {url}/INBOX -X 'UID SEARCH ALL' \
         | tr -d '\\r' | sed -n 's/^\\* SEARCH//p'); \
         for uid in $uids; do curl -sS --max-time 120 -u {login} \"{url}/INBOX;UID=$uid\" \
         -o {out}/$uid; done; curl -sS --max-time 120 -u {login} -T {message} {url}/Sent",
        out = job.out.display(),
        message = job.message.display(),
    );
    let mut command = Command::new("sh");
    command.args(["-c", &script]);
    Ok(vec![command])
}

fn imapflow(job: &Job) -> io::Result<Vec<Command>> {
    let mut command = job.script("node", "imapflow.mjs");
    command.current_dir(&job.modules);
    Ok(vec![command])
}

fn imapclient(job: &Job) -> io::Result<Vec<Command>> {
    let mut command = job.script("python3", "use_imapclient.py");
    command.env("PYTHONPATH", job.modules.join("python"));
    Ok(vec![command])
}

fn mail_imapclient(job: &Job) -> io::Result<Vec<Command>> {
    Ok(vec![job.script("perl", "mail_imapclient.pl")])
}

fn alpine(job: &Job) -> io::Result<Vec<Command>> {
    Ok(vec![job.script("python3", "alpine.py")])
}

fn evolution(job: &Job) -> io::Result<Vec<Command>> {
    // Debian's Python: only that one has the bindings from Debian.
    let mut command = job.script("/usr/bin/python3", "evolution.py");
    command
        .env(
            "EDS_CAMEL_PROVIDER_DIR",
            job.modules.join("evolution").join(CAMEL_PROVIDERS),
        )
        .env("GSETTINGS_BACKEND", "memory");
    Ok(vec![command])
}

fn thunderbird(job: &Job) -> io::Result<Vec<Command>> {
    Ok(vec![job.script("python3", "thunderbird.py")])
}
