//! A real etcd of one's own: one member or several, on loopback or on the nodes of a lab.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use super::net::{self, Net};
use super::{kill9, until};

/// etcd's ports on a node of a lab, for clients and for its peers.
const CLIENTS: u16 = 2379;
const PEERS: u16 = 2380;

/// A running cluster of members. Stopped and removed when dropped.
pub struct Etcd {
    members: Vec<Member>,
}

struct Member {
    process: Option<Child>,
    args: Vec<String>,
    client: SocketAddr,
    namespace: Option<String>,
    _data: tempfile::TempDir,
}

impl Etcd {
    /// One member on loopback.
    pub fn start() -> Etcd {
        let port = || {
            let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
            free.local_addr().expect("bound").port()
        };
        let (client, peer) = (port(), port());
        let place = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        Etcd::of(vec![(place(client), place(peer), None)])
    }

    /// A member on each node of a lab.
    pub fn on(net: &Net) -> Etcd {
        Etcd::of(
            net.all()
                .map(|node| {
                    let place = |port| SocketAddr::from((net.ip(node), port));
                    (place(CLIENTS), place(PEERS), Some(net.name(node)))
                })
                .collect(),
        )
    }

    fn of(places: Vec<(SocketAddr, SocketAddr, Option<String>)>) -> Etcd {
        let names = places.iter().enumerate();
        let all: Vec<String> = names
            .map(|(i, (_, peer, _))| format!("m{i}=http://{peer}"))
            .collect();
        let members = places.into_iter().enumerate();
        let mut etcd = Etcd {
            members: members
                .map(|(i, place)| Member::new(i, place, &all.join(",")))
                .collect(),
        };
        for member in &mut etcd.members {
            member.start();
        }
        for member in &etcd.members {
            until("etcd to be healthy", || member.is_healthy());
        }
        etcd
    }

    /// Where clients connect, one a member.
    pub fn endpoints(&self) -> Vec<String> {
        self.members
            .iter()
            .map(|m| format!("http://{}", m.client))
            .collect()
    }

    /// kill -9 of a member (numbered from 0).
    pub fn crash(&mut self, member: usize) {
        self.members[member].stop();
    }

    /// Starts it again with the data that it has.
    pub fn start_again(&mut self, member: usize) {
        self.members[member].start();
    }
}

impl Member {
    fn new(index: usize, place: (SocketAddr, SocketAddr, Option<String>), all: &str) -> Member {
        let (client, peer, namespace) = place;
        let data = tempfile::Builder::new()
            .prefix("xid-etcd-")
            .tempdir()
            .expect("a folder");
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
                .collect(),
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
            command.pre_exec(move || {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                namespace.as_ref().map_or(Ok(()), net::enter)
            });
        }
        self.process = Some(command.spawn().expect("etcd (package etcd-server)"));
    }

    fn is_healthy(&self) -> bool {
        let mut command = Command::new("etcdctl");
        command
            .env("ETCDCTL_API", "3")
            .args(["endpoint", "health", "--endpoints"]);
        command
            .arg(self.client.to_string())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        if let Some(name) = &self.namespace {
            let namespace = net::open(name).expect("the node's namespace");
            // SAFETY: the closure makes one system call.
            unsafe {
                command.pre_exec(move || net::enter(&namespace));
            }
        }
        command.status().is_ok_and(|status| status.success())
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
        self.members.iter_mut().for_each(Member::stop);
    }
}
