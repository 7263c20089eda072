//! What an administrator says about this node.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// The configuration of one `xidd`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The node's name in the cluster.
    pub node: String,
    /// The plug-in's `xid_namespace` on this node.
    pub namespace: String,
    /// The cluster's name: several can share one etcd.
    pub cluster: String,
    /// How long the others wait for a node that fell silent.
    pub lease: Duration,
    /// How many messages of one mailbox a node numbers by itself above the stable prefix.
    pub window: u32,
    /// Where the plug-in finds the daemon.
    pub socket: PathBuf,
    /// The daemon's own state: disk id, known users, replication states.
    pub state_dir: PathBuf,
    /// Where to serve OpenMetrics, if at all.
    pub metrics: Option<SocketAddr>,
    /// Where etcd is.
    pub etcd: Etcd,
    /// The host's administration service.
    pub doveadm: Doveadm,
    /// The other nodes.
    pub peers: Vec<Peer>,
}

/// Where etcd is, and who we are to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Etcd {
    /// Endpoints, as "https://10.0.0.1:2379".
    pub endpoints: Vec<String>,
    /// The authority that signed etcd's certificates (PEM).
    pub ca: Option<PathBuf>,
    /// Our certificate (PEM).
    pub cert: Option<PathBuf>,
    /// Its key (PEM).
    pub key: Option<PathBuf>,
    /// Time limit of one request.
    pub timeout: Duration,
}

/// The host's administration service, on this node and on its peers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Doveadm {
    /// The unix socket of this node's service.
    pub socket: PathBuf,
    /// A file with the password of the peers' TCP listener.
    pub password_file: Option<PathBuf>,
}

/// Another node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its name in the cluster.
    pub name: String,
    /// Host and port of its doveadm listener, as "10.0.0.2:24245".
    pub doveadm: String,
}
