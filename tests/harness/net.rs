//! Network namespaces for cluster tests: one per node, joined by a bridge that has a namespace
//! of its own, so that nothing leaves them and nothing of the machine is touched.
//!
//! Links are cut with nftables rules inside the nodes' namespaces, one direction at a time. Where
//! distance is wanted ([`Net::slow`]), a switch of our own takes the bridge's place.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::server::describe;
use super::slow::{SlowLink, mac, open_tap};
use super::{LIMIT, janitor, kill9};

/// Namespaces are named by process and a counter: several labs can live side by side.
static NEXT_LAB: AtomicU8 = AtomicU8::new(0);

/// Which namespace an address of a lab is to be dialled in: the node's own, as a client beside
/// the server would.
static NAMESPACES: Mutex<Vec<(Ipv4Addr, String)>> = Mutex::new(Vec::new());

/// Connects to a server: in its own namespace if it has one.
pub fn dial(address: SocketAddr) -> io::Result<TcpStream> {
    let connect = move || TcpStream::connect_timeout(&address, LIMIT);
    match namespace_of(address.ip()) {
        Some(name) => in_namespace(&name, connect)?,
        None => connect(),
    }
}

fn namespace_of(ip: IpAddr) -> Option<String> {
    let known = NAMESPACES.lock().unwrap_or_else(PoisonError::into_inner);
    known
        .iter()
        .find(|(known, _)| IpAddr::V4(*known) == ip)
        .map(|(_, name)| name.clone())
}

/// Runs `work` with its sockets in a namespace. It gets a thread of its own, since a namespace
/// is a thread's property.
fn in_namespace<T: Send>(name: &str, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    let handle = open(name)?;
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || enter(&handle).map(|()| work()));
        thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// A namespace's handle.
pub(super) fn open(name: &str) -> io::Result<File> {
    File::open(format!("/run/netns/{name}"))
}

/// Moves the calling thread into the namespace.
pub(super) fn enter(namespace: &File) -> io::Result<()> {
    // SAFETY: setns takes no pointers; the descriptor is open for the whole call.
    match unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A set of namespaces that can all reach each other, until cut.
pub struct Net {
    prefix: String,
    /// Third byte of the lab's addresses.
    lab: u8,
    nodes: usize,
    /// In place of the bridge, where there is one.
    slow: Option<SlowLink>,
    faults: Mutex<Faults>,
}

/// What is wrong with the links at the moment.
#[derive(Default)]
struct Faults {
    /// (from, to): packets of this direction get lost.
    cuts: BTreeSet<(usize, usize)>,
    /// Percent of the packets that reach a node and get lost.
    losses: BTreeMap<usize, u32>,
}

impl Net {
    /// Makes `nodes` namespaces (numbered from 1) and the bridge between them.
    pub fn new(nodes: usize) -> io::Result<Net> {
        let net = Net::unbuilt(nodes);
        let switch = net.switch();
        janitor::space(&switch);
        run(&["ip", "netns", "add", &switch])?;
        run(&["ip", "-n", &switch, "link", "add", "br0", "type", "bridge"])?;
        run(&["ip", "-n", &switch, "link", "set", "br0", "up"])?;
        for node in net.all() {
            net.add_namespace(node)?;
            net.plug_in(node, &switch)?;
            net.configure(node)?;
        }
        Ok(net)
    }

    /// The same, where every packet takes `delay` from one node to another (there and back twice
    /// that). [`Net::set_delay`] changes it.
    pub fn slow(nodes: usize, delay: Duration) -> io::Result<Net> {
        let mut net = Net::unbuilt(nodes);
        let mut devices = Vec::new();
        for node in net.all() {
            net.add_namespace(node)?;
            devices.push(net.inside(node, || open_tap("eth0"))??);
            let (name, address) = (net.name(node), mac(net.lab, node));
            run(&[
                "ip", "-n", &name, "link", "set", "eth0", "address", &address,
            ])?;
            net.configure(node)?;
        }
        net.slow = Some(SlowLink::between(devices));
        net.set_delay(delay, Duration::ZERO);
        Ok(net)
    }

    fn unbuilt(nodes: usize) -> Net {
        assert!((1..=16).contains(&nodes), "a lab has 1 to 16 nodes");
        let lab = NEXT_LAB.fetch_add(1, Ordering::Relaxed);
        Net {
            prefix: format!("xid{}-{lab}-", std::process::id()),
            lab,
            nodes,
            slow: None,
            faults: Mutex::default(),
        }
    }

    fn add_namespace(&self, node: usize) -> io::Result<()> {
        let name = self.name(node);
        let mut known = NAMESPACES.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|(address, _)| *address != self.ip(node));
        known.push((self.ip(node), name.clone()));
        drop(known);
        janitor::space(&name);
        run(&["ip", "netns", "add", &name])?;
        run(&["ip", "-n", &name, "link", "set", "lo", "up"])
    }

    /// A pair of devices between the node and the bridge.
    fn plug_in(&self, node: usize, switch: &str) -> io::Result<()> {
        let (name, port) = (self.name(node), format!("p{node}"));
        run(&[
            "ip", "-n", switch, "link", "add", &port, "type", "veth", "peer", "name", "eth0",
            "netns", &name,
        ])?;
        run(&[
            "ip", "-n", switch, "link", "set", &port, "master", "br0", "up",
        ])
    }

    fn configure(&self, node: usize) -> io::Result<()> {
        let (name, address) = (self.name(node), format!("{}/24", self.ip(node)));
        run(&["ip", "-n", &name, "addr", "add", &address, "dev", "eth0"])?;
        run(&["ip", "-n", &name, "link", "set", "eth0", "up"])?;
        self.nft(
            node,
            "add table inet cut; add chain inet cut in { type filter hook input priority 0; }",
        )
    }

    /// From now on a packet takes `delay`, and by chance up to `jitter` more, so that packets
    /// overtake each other.
    ///
    /// # Panics
    /// On a lab that was not made by [`Net::slow`].
    pub fn set_delay(&self, delay: Duration, jitter: Duration) {
        let link = self.slow.as_ref().expect("a lab made by Net::slow");
        link.set(delay, jitter);
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
        Ipv4Addr::new(10, 77, self.lab, u8::try_from(node).unwrap_or(u8::MAX))
    }

    /// A command that will run inside a node's namespace.
    pub fn command(&self, node: usize, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name(node), program]);
        command
    }

    /// Drops what `from` sends to `to`; the other direction still works.
    pub fn cut_one_way(&self, from: usize, to: usize) -> io::Result<()> {
        self.change(|faults| {
            faults.cuts.insert((from, to));
        })
    }

    /// Drops everything between the two groups.
    pub fn partition(&self, left: &[usize], right: &[usize]) -> io::Result<()> {
        self.change(|faults| {
            for (&l, &r) in left.iter().flat_map(|l| right.iter().map(move |r| (l, r))) {
                faults.cuts.extend([(l, r), (r, l)]);
            }
        })
    }

    /// Cuts a node off from all others.
    pub fn isolate(&self, node: usize) -> io::Result<()> {
        let others: Vec<usize> = self.all().filter(|other| *other != node).collect();
        self.partition(&[node], &others)
    }

    /// Takes back what was cut around this node.
    pub fn reconnect(&self, node: usize) -> io::Result<()> {
        self.change(|faults| {
            faults
                .cuts
                .retain(|(from, to)| *from != node && *to != node)
        })
    }

    /// Lets a share of the packets that reach `node` get lost.
    pub fn lose(&self, node: usize, percent: u32) -> io::Result<()> {
        self.change(|faults| {
            faults.losses.insert(node, percent);
        })
    }

    /// Takes all cuts and losses back.
    pub fn heal(&self) -> io::Result<()> {
        self.change(|faults| *faults = Faults::default())
    }

    /// Changes the faults and makes every node's rules say so.
    fn change(&self, how: impl FnOnce(&mut Faults)) -> io::Result<()> {
        let mut faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
        how(&mut faults);
        self.all().try_for_each(|node| self.apply(node, &faults))
    }

    fn apply(&self, node: usize, faults: &Faults) -> io::Result<()> {
        let mut rules = String::from("flush chain inet cut in");
        for (from, _) in faults.cuts.iter().filter(|(_, to)| *to == node) {
            let from = self.ip(*from);
            rules.push_str(&format!("; add rule inet cut in ip saddr {from} drop"));
        }
        if let Some(percent) = faults.losses.get(&node) {
            let chance = format!("numgen random mod 100 < {percent}");
            rules.push_str(&format!(
                "; add rule inet cut in iifname eth0 {chance} drop"
            ));
        }
        self.nft(node, &rules)
    }

    fn nft(&self, node: usize, rules: &str) -> io::Result<()> {
        run(&["ip", "netns", "exec", &self.name(node), "nft", rules])
    }

    /// Runs `work` with its sockets in a node's namespace. A socket stays there when it is
    /// handed to another thread.
    pub fn inside<T: Send>(&self, node: usize, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        in_namespace(&self.name(node), work)
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        let names = self
            .all()
            .map(|node| self.name(node))
            .chain([self.switch()]);
        for name in names {
            // Whoever lives there still has escaped from what should have ended him.
            for pid in pids_in(&name) {
                println!("--- {} is left behind in {name}: killed", describe(pid));
                kill9(pid);
            }
            // Nothing can be done about a failure here; the name is unique, nobody trips over it.
            let _ = Command::new("ip").args(["netns", "del", &name]).output();
        }
    }
}

/// Who lives in a namespace.
fn pids_in(name: &str) -> Vec<u32> {
    let output = Command::new("ip").args(["netns", "pids", name]).output();
    let text = output.map(|output| output.stdout).unwrap_or_default();
    let text = String::from_utf8_lossy(&text).into_owned();
    let pids = text.split_whitespace().filter_map(|pid| pid.parse().ok());
    pids.collect()
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
