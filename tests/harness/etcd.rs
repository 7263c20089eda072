//! A real etcd of one's own: one member or several, on loopback or on the nodes of a lab.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::net::{self, Net};
use super::tls::{Authority, Issued};
use super::{janitor, kill9, signal, until};

/// etcd's ports on a node of a lab, for clients and for its peers.
const CLIENTS: u16 = 2379;
const PEERS: u16 = 2380;

/// A running cluster of members. Stopped and removed when dropped.
pub struct Etcd {
    members: Vec<Mutex<Member>>,
}

struct Member {
    process: Option<Child>,
    args: Vec<String>,
    /// Whether clients have to show a certificate: then what etcdctl needs for that.
    tls: Option<[String; 6]>,
    client: SocketAddr,
    namespace: Option<String>,
    _data: tempfile::TempDir,
}

impl Etcd {
    /// One member on loopback.
    pub fn start() -> Etcd {
        let place = Etcd::free_place();
        Etcd::of(vec![place], &[])
    }

    /// The same, which speaks TLS with this certificate, and only with whom this authority knows.
    pub fn start_with_tls(server: &Issued, clients: &Authority, probe: &Issued) -> Etcd {
        let path = |path: &std::path::Path| path.display().to_string();
        let args = [
            format!("--cert-file={}", path(&server.cert)),
            format!("--key-file={}", path(&server.key)),
            "--client-cert-auth".to_owned(),
            format!("--trusted-ca-file={}", path(&clients.cert())),
        ];
        // Whatever is wrong with the server's certificate: etcdctl is to find it healthy.
        let tls = [
            "--insecure-skip-tls-verify".to_owned(),
            "--insecure-transport=false".to_owned(),
            "--cert".to_owned(),
            path(&probe.cert),
            "--key".to_owned(),
            path(&probe.key),
        ];
        let (client, peer, _) = Etcd::free_place();
        let all = format!("m0=http://{peer}");
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let mut member = Member::new(0, (client, peer, None), &all, &args);
        for arg in &mut member.args {
            if *arg == format!("http://{client}") {
                *arg = format!("https://{client}");
            }
        }
        member.tls = Some(tls);
        member.start();
        let etcd = Etcd {
            members: vec![Mutex::new(member)],
        };
        etcd.wait_healthy(0);
        etcd
    }

    fn free_place() -> (SocketAddr, SocketAddr, Option<String>) {
        let port = || {
            let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
            free.local_addr().expect("bound").port()
        };
        let place = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        (place(port()), place(port()), None)
    }

    /// A member on each of the first `members` nodes of a lab, with further arguments for each.
    pub fn on(net: &Net, members: usize, args: &[&str]) -> Etcd {
        let places = net.all().take(members).map(|node| {
            let place = |port| SocketAddr::from((net.ip(node), port));
            (place(CLIENTS), place(PEERS), Some(net.name(node)))
        });
        Etcd::of(places.collect(), args)
    }

    fn of(places: Vec<(SocketAddr, SocketAddr, Option<String>)>, args: &[&str]) -> Etcd {
        let names = places.iter().enumerate();
        let all: Vec<String> = names
            .map(|(i, (_, peer, _))| format!("m{i}=http://{peer}"))
            .collect();
        let members = places.into_iter().enumerate();
        let etcd = Etcd {
            members: members
                .map(|(i, place)| Mutex::new(Member::new(i, place, &all.join(","), args)))
                .collect(),
        };
        for member in 0..etcd.members.len() {
            etcd.member(member).start();
        }
        for member in 0..etcd.members.len() {
            etcd.wait_healthy(member);
        }
        etcd
    }

    fn member(&self, index: usize) -> MutexGuard<'_, Member> {
        let member = self.members[index].lock();
        member.unwrap_or_else(PoisonError::into_inner)
    }

    /// How many members there are, running or not.
    pub fn members(&self) -> usize {
        self.members.len()
    }

    /// Waits until a member (numbered from 0) can write.
    pub fn wait_healthy(&self, member: usize) {
        until("etcd to be healthy", || self.member(member).is_healthy());
    }

    /// The member that leads the others, if there is one.
    pub fn leader(&self) -> Option<usize> {
        (0..self.members.len()).find(|member| self.member(*member).leads())
    }

    /// Where clients connect, one a member.
    pub fn endpoints(&self) -> Vec<String> {
        (0..self.members.len())
            .map(|member| {
                let member = self.member(member);
                let scheme = if member.tls.is_some() {
                    "https"
                } else {
                    "http"
                };
                format!("{scheme}://{}", member.client)
            })
            .collect()
    }

    /// kill -9 of a member (numbered from 0).
    pub fn crash(&self, member: usize) {
        self.member(member).stop();
    }

    /// Starts it again with the data that it has.
    pub fn start_again(&self, member: usize) {
        let mut member = self.member(member);
        if member.process.is_none() {
            member.start();
        }
    }

    /// SIGSTOP, or SIGCONT.
    pub fn pause(&self, member: usize, paused: bool) {
        if let Some(process) = &self.member(member).process {
            signal(
                process.id(),
                if paused { libc::SIGSTOP } else { libc::SIGCONT },
            );
        }
    }
}

impl Member {
    fn new(
        index: usize,
        place: (SocketAddr, SocketAddr, Option<String>),
        all: &str,
        more: &[&str],
    ) -> Member {
        let (client, peer, namespace) = place;
        let data = tempfile::Builder::new()
            .prefix("xid-etcd-")
            .tempdir()
            .expect("a folder");
        janitor::folder(data.path());
        let args = [
            ("--name", format!("m{index}")),
            ("--data-dir", data.path().join("data").display().to_string()),
            ("--listen-client-urls", format!("http://{client}")),
            ("--advertise-client-urls", format!("http://{client}")),
            ("--listen-peer-urls", format!("http://{peer}")),
            ("--initial-advertise-peer-urls", format!("http://{peer}")),
            ("--initial-cluster", all.to_owned()),
            ("--log-level", "error".to_owned()),
        ];
        Member {
            process: None,
            args: args
                .into_iter()
                .flat_map(|(k, v)| [k.to_owned(), v])
                .chain(more.iter().map(|arg| (*arg).to_owned()))
                .collect(),
            tls: None,
            client,
            namespace,
            _data: data,
        }
    }

    fn start(&mut self) {
        let mut command = Command::new("etcd");
        command
            .args(&self.args)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let namespace = self
            .namespace
            .as_ref()
            .map(|n| net::open(n).expect("the node's namespace"));
        // SAFETY: the closure makes system calls only.
        unsafe {
            command.pre_exec(move || match &namespace {
                // There the janitor finds it.
                Some(namespace) => net::enter(namespace),
                None => {
                    libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                    Ok(())
                }
            });
        }
        self.process = Some(command.spawn().expect("etcd (package etcd-server)"));
    }

    fn is_healthy(&self) -> bool {
        let status = self.etcdctl(&["endpoint", "health"]).output();
        status.is_ok_and(|output| output.status.success())
    }

    /// Whether it says that the leader is itself.
    fn leads(&self) -> bool {
        let output = self.etcdctl(&["endpoint", "status"]).output();
        let Ok(output) = output else { return false };
        // "10.77.0.1:2379, 8e9e05c52164694d, 3.4.23, 20 kB, true, false, 2, 8, 8,"
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.split(", ").nth(4) == Some("true")
    }

    fn etcdctl(&self, words: &[&str]) -> Command {
        let mut command = Command::new("etcdctl");
        command
            .env("ETCDCTL_API", "3")
            .args(words)
            .args(["--endpoints", &self.client.to_string()])
            .args(self.tls.iter().flatten())
            .stdin(Stdio::null());
        if let Some(name) = &self.namespace {
            let namespace = net::open(name).expect("the node's namespace");
            // SAFETY: the closure makes one system call.
            unsafe {
                command.pre_exec(move || net::enter(&namespace));
            }
        }
        command
    }

    fn stop(&mut self) {
        let Some(mut process) = self.process.take() else {
            return;
        };
        kill9(process.id());
        let _ = process.wait();
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        for member in 0..self.members.len() {
            self.member(member).stop();
        }
    }
}
