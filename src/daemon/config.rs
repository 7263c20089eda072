//! What an administrator says about this node: `xidd.toml`.
//!
//! A wrong value is refused with the file, the line, the key, the value, and what is expected
//! there; so is a key that does not exist. Files with secrets must not be readable by everybody.

mod section;

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::pulse::BEATS;
use crate::table::LEAST_WINDOW;
use crate::xid::{check_namespace, namespace_from_host};
use section::{Section, whole_seconds};

/// Where the configuration is when nobody says otherwise.
pub const DEFAULT_FILE: &str = "/etc/dovecot/xidd.toml";
/// Time after which the others go on without a silent node: a compromise between a hiccup of
/// etcd and what clients of a dead node notice.
const LEASE: Duration = Duration::from_secs(5);
/// etcd grants no lease much shorter than its own election, which takes a second.
const LEASES: std::ops::RangeInclusive<u64> = 2..=600;
/// Unstable messages of one mailbox on one node before an APPEND to it waits, in a cluster whose
/// first node says nothing else.
pub const WINDOW: u32 = 10_000;
/// A smaller window would make a burst of deliveries wait; a larger one eats up the 32 bits of a
/// UID, since each eviction skips several windows.
pub const WINDOWS: std::ops::RangeInclusive<u32> = LEAST_WINDOW..=1_000_000;
/// Where OpenMetrics are served: on this machine only.
const METRICS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 9154);
/// Time limit of one request to etcd.
const ETCD_TIMEOUT: Duration = Duration::from_secs(2);
/// Longest name of a node, cluster or peer, in bytes: it is part of etcd's keys.
const NAME_BYTES: usize = 255;
/// Longest password, in bytes.
const PASSWORD_BYTES: usize = 1024;
/// Nodes that the protocol can number.
const PEERS: usize = 254;

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
    /// How many messages of one mailbox a node numbers by itself above the stable prefix; `None`:
    /// as many as the others do.
    pub window: Option<u32>,
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

/// What is wrong with the configuration.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file, or one that it names, cannot be read.
    #[error("{}: cannot be read ({source}): see that it exists and that xidd's user may read it", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is no TOML.
    #[error("{}:{line}: {problem}", file.display())]
    Syntax {
        /// The file.
        file: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What the parser says.
        problem: String,
    },
    /// A value that cannot be.
    #[error("{}:{line}: {key} = {value}: expected {expected}", file.display())]
    Value {
        /// The file.
        file: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The key, with its section.
        key: String,
        /// What is there.
        value: String,
        /// What should be.
        expected: String,
    },
    /// A key that does not exist.
    #[error("{}:{line}: {key}: there is no such key; {known}", file.display())]
    Unknown {
        /// The file.
        file: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The key, with its section.
        key: String,
        /// Which keys there are.
        known: String,
    },
    /// A key that must be there.
    #[error("{}: {key} is missing: expected {expected}", file.display())]
    Missing {
        /// The file.
        file: PathBuf,
        /// The key, with its section.
        key: String,
        /// What should be there.
        expected: String,
    },
    /// A secret that everybody can read.
    #[error("{}: everybody may read it (mode {mode:o}), and it holds a secret: chmod o-rwx it", file.display())]
    Exposed {
        /// The file.
        file: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// A file that does not hold what it should.
    #[error("{}: {problem}", file.display())]
    Content {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        problem: &'static str,
    },
}

impl Config {
    /// Reads the file, and looks at the files that it names.
    ///
    /// # Errors
    /// When something in it is not as it has to be.
    pub fn load(file: &Path) -> Result<Config, Error> {
        let text = std::fs::read_to_string(file).map_err(|source| Error::Read {
            file: file.to_owned(),
            source,
        })?;
        let config = Config::parse(file, &text)?;
        config.doveadm.password()?;
        config.etcd.tls()?;
        Ok(config)
    }

    /// Reads a text; `file` is its name in messages. The files that it names are not looked at.
    ///
    /// # Errors
    /// When something in it is not as it has to be.
    pub fn parse(file: &Path, text: &str) -> Result<Config, Error> {
        let document = section::parse(file, text)?;
        let mut top = Section::top(file, text, document.get_ref());
        let node = top.required("node", "the node's name, as \"alpha\"", name)?;
        let own = namespace_from_host(node.as_bytes()).unwrap_or_default();
        let lease = top.duration("lease", whole_seconds(LEASES))?;
        let config = Config {
            namespace: top
                .optional("namespace", NAMESPACE, namespace)?
                .unwrap_or(own),
            cluster: top
                .optional("cluster", "the cluster's name, as \"mail\"", name)?
                .unwrap_or_else(|| "mail".into()),
            lease: lease.unwrap_or(LEASE),
            window: top.number("window", WINDOWS)?,
            socket: top.path("socket")?.unwrap_or("/run/dovecot/xidd".into()),
            state_dir: top.path("state_dir")?.unwrap_or("/var/lib/xidd".into()),
            metrics: top
                .optional("metrics", "\"IP:PORT\", or \"off\"", metrics)?
                .unwrap_or(Some(METRICS)),
            etcd: etcd(&mut top, lease.unwrap_or(LEASE))?,
            doveadm: doveadm(&mut top)?,
            peers: peers(&mut top, &node)?,
            node,
        };
        top.finish()?;
        if !config.peers.is_empty() && config.doveadm.password_file.is_none() {
            return Err(Error::Missing {
                file: file.to_owned(),
                key: "doveadm.password_file".into(),
                expected: "a file with the doveadm_password of the peers".into(),
            });
        }
        Ok(config)
    }

    /// The lease, as etcd takes it.
    #[must_use]
    pub fn lease_seconds(&self) -> i64 {
        i64::try_from(self.lease.as_secs()).unwrap_or(i64::MAX)
    }

    /// What a running daemon cannot change: keys whose values differ in `other`.
    #[must_use]
    pub fn fixed_keys_that_differ(&self, other: &Config) -> Vec<&'static str> {
        let pairs = [
            ("node", self.node != other.node),
            ("namespace", self.namespace != other.namespace),
            ("cluster", self.cluster != other.cluster),
            ("window", self.window != other.window),
            ("socket", self.socket != other.socket),
            ("state_dir", self.state_dir != other.state_dir),
            ("metrics", self.metrics != other.metrics),
        ];
        pairs
            .into_iter()
            .filter(|(_, differs)| *differs)
            .map(|(key, _)| key)
            .collect()
    }

    /// What a running daemon uses when it next connects to etcd: keys whose values differ in `other`.
    #[must_use]
    pub fn late_keys_that_differ(&self, other: &Config) -> Vec<&'static str> {
        let lease = (self.lease != other.lease).then_some("lease");
        let etcd = (self.etcd != other.etcd).then_some("etcd");
        lease.into_iter().chain(etcd).collect()
    }

    /// This configuration with what cannot change in a running daemon taken from `running`.
    #[must_use]
    pub fn keeping_fixed_keys_of(self, running: &Config) -> Config {
        Config {
            node: running.node.clone(),
            namespace: running.namespace.clone(),
            cluster: running.cluster.clone(),
            window: running.window,
            socket: running.socket.clone(),
            state_dir: running.state_dir.clone(),
            metrics: running.metrics,
            ..self
        }
    }

    /// How [`crate::etcd::Store`] reaches this cluster's records. Reads the certificates anew.
    ///
    /// # Errors
    /// When a certificate or key cannot be read, or everybody can read the key.
    pub fn store(&self) -> Result<crate::etcd::Settings, Error> {
        Ok(crate::etcd::Settings {
            endpoints: self.etcd.endpoints.clone(),
            cluster: self.cluster.clone(),
            timeout: self.etcd.timeout,
            // etcd answers at least at each beat.
            silence: self.etcd.timeout.max(self.lease / BEATS),
            tls: self.etcd.tls()?,
        })
    }
}

impl Etcd {
    /// Certificates for the connections; `None`: plain ones.
    ///
    /// # Errors
    /// When a certificate or key cannot be read, or everybody can read the key.
    pub fn tls(&self) -> Result<Option<etcd_client::TlsOptions>, Error> {
        let Some(ca) = &self.ca else {
            return Ok(None);
        };
        let authority = etcd_client::Certificate::from_pem(pem(ca, read(ca)?)?);
        let mut tls = etcd_client::TlsOptions::new().ca_certificate(authority);
        if let (Some(cert), Some(key)) = (&self.cert, &self.key) {
            let (cert, key) = (pem(cert, read(cert)?)?, pem(key, secret(key)?)?);
            tls = tls.identity(etcd_client::Identity::from_pem(cert, key));
        }
        Ok(Some(tls))
    }
}

impl Doveadm {
    /// The password of the peers' listener. Read anew each time, so that it can be changed.
    ///
    /// # Errors
    /// When its file cannot be read, everybody can read it, or it holds no password.
    pub fn password(&self) -> Result<Option<String>, Error> {
        let Some(file) = &self.password_file else {
            return Ok(None);
        };
        let problem = |problem| Error::Content {
            file: file.clone(),
            problem,
        };
        let text = String::from_utf8(secret(file)?).map_err(|_| problem("not UTF-8"))?;
        let password = text.trim_end_matches(['\r', '\n']);
        if password.is_empty() || password.len() > PASSWORD_BYTES {
            return Err(problem("expected the doveadm_password, on one line"));
        }
        if password.contains(['\0', '\r', '\n', '\t']) {
            return Err(problem("a password has no line break, tab or NUL in it"));
        }
        Ok(Some(password.to_owned()))
    }
}

const NAMESPACE: &str = "the plug-in's xid_namespace on this node: \
    a letter, then at most 62 letters, digits, \".\" or \"_\"";
const ENDPOINTS: &str = "a list such as [\"https://10.0.0.1:2379\"]";
const LISTENER: &str = "host and port of the peer's doveadm listener, as \"10.0.0.2:24245\"";

fn etcd(top: &mut Section, lease: Duration) -> Result<Etcd, Error> {
    let mut section = top.table("etcd")?;
    let endpoints = section.list("endpoints", ENDPOINTS, endpoint)?;
    let https = endpoints.iter().any(|e| e.starts_with("https:"));
    let timeouts = Duration::from_millis(10)..=lease;
    let etcd = Etcd {
        endpoints,
        ca: section.path("ca")?,
        cert: section.path("cert")?,
        key: section.path("key")?,
        timeout: section
            .duration("timeout", section::between(timeouts))?
            .unwrap_or(ETCD_TIMEOUT.min(lease)),
    };
    if https && etcd.ca.is_none() {
        return Err(section.missing("ca", "the authority that signed etcd's certificates (PEM)"));
    }
    if !https && etcd.ca.is_some() {
        return Err(section.wrong("endpoints", "https:// endpoints, since there is a ca"));
    }
    match (&etcd.cert, &etcd.key) {
        (Some(_), None) => Err(section.missing("key", "the key of etcd.cert (PEM)")),
        (None, Some(_)) => Err(section.missing("cert", "the certificate of etcd.key (PEM)")),
        (Some(_), Some(_)) if etcd.ca.is_none() => {
            Err(section.missing("ca", "the authority that signed etcd's certificates (PEM)"))
        }
        _ => section.finish().map(|()| etcd),
    }
}

fn doveadm(top: &mut Section) -> Result<Doveadm, Error> {
    let mut section = top.table("doveadm")?;
    let doveadm = Doveadm {
        socket: section
            .path("socket")?
            .unwrap_or("/run/dovecot/doveadm-server".into()),
        password_file: section.path("password_file")?,
    };
    section.finish()?;
    Ok(doveadm)
}

fn peers(top: &mut Section, node: &str) -> Result<Vec<Peer>, Error> {
    let mut peers = Vec::new();
    let mut names = BTreeSet::from([node.to_owned()]);
    for mut section in top.tables("peer")? {
        let peer = Peer {
            name: section.required("name", "the peer's node name", name)?,
            doveadm: section.required("doveadm", LISTENER, listener)?,
        };
        if !names.insert(peer.name.clone()) {
            return Err(section.wrong("name", "a name that no other node has"));
        }
        if peers.len() == PEERS {
            return Err(section.wrong("name", "at most 254 peers"));
        }
        section.finish()?;
        peers.push(peer);
    }
    Ok(peers)
}

fn name(text: &str) -> Option<String> {
    let fits = !text.is_empty() && text.len() <= NAME_BYTES && !text.contains(char::is_control);
    fits.then(|| text.to_owned())
}

fn namespace(text: &str) -> Option<String> {
    check_namespace(text.as_bytes()).ok().map(str::to_owned)
}

fn metrics(text: &str) -> Option<Option<SocketAddr>> {
    match text {
        "off" => Some(None),
        _ => text.parse().ok().map(Some),
    }
}

fn endpoint(text: &str) -> Option<String> {
    let place = text
        .strip_prefix("https://")
        .or_else(|| text.strip_prefix("http://"))?;
    listener(place).map(|_| text.to_owned())
}

/// "host:port", the host a name, an IPv4 address, or an IPv6 address in brackets.
fn listener(text: &str) -> Option<String> {
    let (host, port) = text.rsplit_once(':')?;
    let inner = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
    let host_is_good = match inner {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => {
            let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
            !host.is_empty() && host.chars().all(good)
        }
    };
    let port: u16 = port.parse().ok()?;
    (host_is_good && port > 0).then(|| text.to_owned())
}

fn read(file: &Path) -> Result<Vec<u8>, Error> {
    std::fs::read(file).map_err(|source| Error::Read {
        file: file.to_owned(),
        source,
    })
}

/// A file that must not be readable by everybody.
fn secret(file: &Path) -> Result<Vec<u8>, Error> {
    let fail = |source| Error::Read {
        file: file.to_owned(),
        source,
    };
    let mode = file.metadata().map_err(fail)?.permissions().mode() & 0o7777;
    if mode & 0o007 != 0 {
        return Err(Error::Exposed {
            file: file.to_owned(),
            mode,
        });
    }
    read(file)
}

/// What is read but not PEM would be refused much later, as a failure to connect.
fn pem(file: &Path, bytes: Vec<u8>) -> Result<Vec<u8>, Error> {
    let begins = b"-----BEGIN ";
    if bytes.windows(begins.len()).any(|window| window == begins) {
        return Ok(bytes);
    }
    Err(Error::Content {
        file: file.to_owned(),
        problem: "expected PEM (-----BEGIN ...)",
    })
}

#[cfg(test)]
mod tests;
