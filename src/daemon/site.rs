//! What one daemon can reach: its own host, its peers' hosts, and the replication between them.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::RwLock;

use super::Config;
use super::carrier::{Carrier, Dsync, Link};
use super::config;
use super::doveadm::{Pool, Target};
use super::host::{Dovecot, Host};

/// Connections to this node's service for operations on mailboxes: each is a process.
const LOCAL: usize = 8;
/// The same for syncs, which last longer.
const SYNCS: usize = 8;
/// Connections to each peer's service.
const REMOTE: usize = 6;

/// What one daemon can reach.
pub trait Site: Send + Sync + 'static {
    /// A node's mail server.
    type Host: Host;
    /// The replication.
    type Carrier: Carrier;

    /// Takes over where this node's service and the peers' are, and their password.
    ///
    /// # Errors
    /// When a file that the configuration names cannot be used.
    fn configure(&self, config: &Config) -> Result<(), config::Error>;
    /// This node's own.
    fn local(&self) -> Arc<Self::Host>;
    /// That of the peer with this name.
    fn peer(&self, name: &str) -> Option<Arc<Self::Host>>;
    /// The replication.
    fn carrier(&self) -> &Self::Carrier;
}

/// Dovecot here and there, and dsync between.
pub struct DovecotSite {
    local: RwLock<Arc<Dovecot>>,
    carrier: Dsync,
    peers: RwLock<HashMap<String, Arc<Dovecot>>>,
}

impl DovecotSite {
    /// What this configuration can reach.
    ///
    /// # Errors
    /// When a file that the configuration names cannot be used.
    pub fn new(config: &Config) -> Result<DovecotSite, config::Error> {
        let reach = Reach::of(config)?;
        Ok(DovecotSite {
            local: RwLock::new(reach.local),
            carrier: Dsync::new(reach.syncs, reach.links),
            peers: RwLock::new(reach.peers),
        })
    }
}

/// Services, each with connections of its own.
struct Reach {
    local: Arc<Dovecot>,
    syncs: Arc<Pool>,
    links: HashMap<String, Arc<Link>>,
    peers: HashMap<String, Arc<Dovecot>>,
}

impl Reach {
    fn of(config: &Config) -> Result<Reach, config::Error> {
        let password = config.doveadm.password()?;
        let pool = |target, size| Arc::new(Pool::new(target, password.clone(), size));
        let ours = || Target::Unix(config.doveadm.socket.clone());
        let mut reach = Reach {
            local: Arc::new(Dovecot::new(pool(ours(), LOCAL))),
            syncs: pool(ours(), SYNCS),
            links: HashMap::new(),
            peers: HashMap::new(),
        };
        for peer in &config.peers {
            let theirs = || pool(Target::Tcp(peer.doveadm.clone()), REMOTE);
            let link = Link {
                pool: theirs(),
                there: peer.doveadm.clone(),
                here: None,
            };
            reach.links.insert(peer.name.clone(), Arc::new(link));
            let host = Arc::new(Dovecot::new(theirs()));
            reach.peers.insert(peer.name.clone(), host);
        }
        Ok(reach)
    }
}

impl Site for DovecotSite {
    type Host = Dovecot;
    type Carrier = Dsync;

    fn configure(&self, config: &Config) -> Result<(), config::Error> {
        let reach = Reach::of(config)?;
        // What is under way ends on the connection that it has.
        self.carrier.reach(reach.syncs, reach.links);
        *self.local.write() = reach.local;
        *self.peers.write() = reach.peers;
        Ok(())
    }

    fn local(&self) -> Arc<Dovecot> {
        self.local.read().clone()
    }

    fn peer(&self, name: &str) -> Option<Arc<Dovecot>> {
        self.peers.read().get(name).cloned()
    }

    fn carrier(&self) -> &Dsync {
        &self.carrier
    }
}
