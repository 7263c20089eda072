//! Network namespaces for cluster tests: one per node, joined by a bridge that has a namespace
//! of its own, so that nothing leaves them and nothing of the machine is touched.
//!
//! Links are cut with nftables rules inside the nodes' namespaces, one direction at a time.

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::os::fd::AsRawFd;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// Namespaces are named by process and a counter: several labs can live side by side.
static NEXT_LAB: AtomicU32 = AtomicU32::new(0);

/// A set of namespaces that can all reach each other, until cut.
pub struct Net {
    prefix: String,
    nodes: usize,
}

impl Net {
    /// Makes `nodes` namespaces (numbered from 1) and the bridge between them.
    pub fn new(nodes: usize) -> io::Result<Net> {
        assert!((1..=16).contains(&nodes), "a lab has 1 to 16 nodes");
        let lab = NEXT_LAB.fetch_add(1, Ordering::Relaxed);
        let net = Net {
            prefix: format!("xid{}-{lab}-", std::process::id()),
            nodes,
        };
        net.build()?;
        Ok(net)
    }

    fn build(&self) -> io::Result<()> {
        let switch = self.switch();
        run(&["ip", "netns", "add", &switch])?;
        run(&["ip", "-n", &switch, "link", "add", "br0", "type", "bridge"])?;
        run(&["ip", "-n", &switch, "link", "set", "br0", "up"])?;
        for node in self.all() {
            self.build_node(node, &switch)?;
        }
        Ok(())
    }

    fn build_node(&self, node: usize, switch: &str) -> io::Result<()> {
        let ns = self.name(node);
        let port = format!("p{node}");
        let address = format!("{}/24", self.ip(node));
        run(&["ip", "netns", "add", &ns])?;
        run(&["ip", "-n", &ns, "link", "set", "lo", "up"])?;
        run(&[
            "ip", "-n", switch, "link", "add", &port, "type", "veth", "peer", "name", "eth0",
            "netns", &ns,
        ])?;
        run(&[
            "ip", "-n", switch, "link", "set", &port, "master", "br0", "up",
        ])?;
        run(&["ip", "-n", &ns, "addr", "add", &address, "dev", "eth0"])?;
        run(&["ip", "-n", &ns, "link", "set", "eth0", "up"])?;
        self.nft(
            node,
            "add table inet cut; add chain inet cut in { type filter hook input priority 0; }",
        )
    }

    /// The numbers of all nodes.
    pub fn all(&self) -> std::ops::RangeInclusive<usize> {
        1..=self.nodes
    }

    /// The namespace of a node, as `ip netns` knows it.
    pub fn name(&self, node: usize) -> String {
        format!("{}n{node}", self.prefix)
    }

    fn switch(&self) -> String {
        format!("{}sw", self.prefix)
    }

    /// The address of a node inside the lab.
    pub fn ip(&self, node: usize) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, 0, u8::try_from(node).unwrap_or(u8::MAX))
    }

    /// A command that will run inside a node's namespace.
    pub fn command(&self, node: usize, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name(node), program]);
        command
    }

    /// Drops what `from` sends to `to`; the other direction still works.
    pub fn cut_one_way(&self, from: usize, to: usize) -> io::Result<()> {
        self.nft(
            to,
            &format!("add rule inet cut in ip saddr {} drop", self.ip(from)),
        )
    }

    /// Drops everything between the two groups.
    pub fn partition(&self, left: &[usize], right: &[usize]) -> io::Result<()> {
        for &l in left {
            for &r in right {
                self.cut_one_way(l, r)?;
                self.cut_one_way(r, l)?;
            }
        }
        Ok(())
    }

    /// Lets a share of the packets that reach `node` get lost.
    pub fn lose(&self, node: usize, percent: u32) -> io::Result<()> {
        self.nft(
            node,
            &format!("add rule inet cut in iifname eth0 numgen random mod 100 < {percent} drop"),
        )
    }

    /// Takes all cuts and losses back.
    pub fn heal(&self) -> io::Result<()> {
        self.all()
            .try_for_each(|node| self.nft(node, "flush chain inet cut in"))
    }

    fn nft(&self, node: usize, rules: &str) -> io::Result<()> {
        run(&["ip", "netns", "exec", &self.name(node), "nft", rules])
    }

    /// Runs `work` with its sockets in a node's namespace. It gets a thread of its own, since a
    /// namespace is a thread's property.
    pub fn inside<T: Send>(&self, node: usize, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        let handle = File::open(format!("/run/netns/{}", self.name(node)))?;
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || {
                // SAFETY: setns takes no pointers; the descriptor is open for the whole call.
                let moved = unsafe { libc::setns(handle.as_raw_fd(), libc::CLONE_NEWNET) };
                if moved != 0 {
                    return Err(io::Error::last_os_error());
                }
                Ok(work())
            });
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Connects, as a client on `from` would, to a port of `to`. The socket stays in that
    /// namespace when it is handed to another thread.
    pub fn connect(&self, from: usize, to: usize, port: u16) -> io::Result<TcpStream> {
        let address = SocketAddrV4::new(self.ip(to), port);
        self.inside(from, move || {
            TcpStream::connect_timeout(&address.into(), Duration::from_secs(10))
        })?
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        let names = self
            .all()
            .map(|node| self.name(node))
            .chain([self.switch()]);
        for name in names {
            // Nothing can be done about a failure here; the name is unique, nobody trips over it.
            let _ = Command::new("ip").args(["netns", "del", &name]).output();
        }
    }
}

/// Runs a command to its end; an error carries what it said.
pub fn run(words: &[&str]) -> io::Result<()> {
    let Output { status, stderr, .. } = Command::new(words[0]).args(&words[1..]).output()?;
    if status.success() {
        return Ok(());
    }
    let text = format!(
        "{}: {status}: {}",
        words.join(" "),
        String::from_utf8_lossy(&stderr).trim()
    );
    Err(io::Error::other(text))
}
