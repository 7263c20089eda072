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

    /// Takes over which peers there are.
    ///
    /// # Errors
    /// When a file that the configuration names cannot be used.
    fn configure(&self, config: &Config) -> Result<(), config::Error>;
    /// This node's own.
    fn local(&self) -> &Self::Host;
    /// That of the peer with this name.
    fn peer(&self, name: &str) -> Option<Arc<Self::Host>>;
    /// The replication.
    fn carrier(&self) -> &Self::Carrier;
}

/// Dovecot here and there, and dsync between.
pub struct DovecotSite {
    local: Dovecot,
    carrier: Dsync,
    peers: RwLock<HashMap<String, Arc<Dovecot>>>,
}

impl DovecotSite {
    /// What this configuration can reach.
    ///
    /// # Errors
    /// When a file that the configuration names cannot be used.
    pub fn new(config: &Config) -> Result<DovecotSite, config::Error> {
        let password = config.doveadm.password()?;
        let pool = |size| {
            let target = Target::Unix(config.doveadm.socket.clone());
            Arc::new(Pool::new(target, password.clone(), size))
        };
        let site = DovecotSite {
            local: Dovecot::new(pool(LOCAL)),
            carrier: Dsync::new(pool(SYNCS)),
            peers: RwLock::default(),
        };
        site.configure(config)?;
        Ok(site)
    }
}

impl Site for DovecotSite {
    type Host = Dovecot;
    type Carrier = Dsync;

    fn configure(&self, config: &Config) -> Result<(), config::Error> {
        let password = config.doveadm.password()?;
        let (mut links, mut peers) = (HashMap::new(), HashMap::new());
        for peer in &config.peers {
            let pool = || {
                let target = Target::Tcp(peer.doveadm.clone());
                Arc::new(Pool::new(target, password.clone(), REMOTE))
            };
            let link = Link {
                pool: pool(),
                there: peer.doveadm.clone(),
                here: None,
            };
            links.insert(peer.name.clone(), Arc::new(link));
            peers.insert(peer.name.clone(), Arc::new(Dovecot::new(pool())));
        }
        self.carrier.link(links);
        *self.peers.write() = peers;
        Ok(())
    }

    fn local(&self) -> &Dovecot {
        &self.local
    }

    fn peer(&self, name: &str) -> Option<Arc<Dovecot>> {
        self.peers.read().get(name).cloned()
    }

    fn carrier(&self) -> &Dsync {
        &self.carrier
    }
}
