//! The cluster's records in etcd: their keys, their encoding, and the transactions on them.
//!
//! This is all that the cluster stores. The protocol ([`crate::cluster`]) says what to read and
//! write; here its values become keys. Everything a decision rests on is read in one etcd
//! transaction, so that it is one moment's truth.

mod encoding;
mod keys;
mod operator;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use etcd_client::{
    Client, Compare, CompareOp, ConnectOptions, GetOptions, KeyValue, LeaseKeepAliveStream,
    LeaseKeeper, PutOptions, ResponseHeader, Txn as EtcdTxn, TxnOp, TxnOpResponse, WatchOptions,
    WatchStream,
};

use crate::cluster::{At, Condition, Incarnation, Node, Put, Rev, Snapshot, Tail, Txn};

pub use encoding::BadRecord;
pub use keys::{Changed, Keys, Mailbox};
pub use operator::{Records, Registered};

/// How long a closed gate stays closed when its holder dies, in seconds.
const GATE_LEASE_SECONDS: i64 = 5;
/// How often registration is tried again when another node registers at the same moment.
const REGISTER_TRIES: u32 = 16;

/// GUIDs and XIDs travel as text.
pub type Text = String;

/// What can go wrong between us and etcd.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// etcd cannot be reached or refused a request.
    #[error("etcd: {}; look at its endpoints, certificates and health", reason(.0))]
    Etcd(#[from] etcd_client::Error),
    /// None of its endpoints answers.
    #[error("etcd: {0}; look at its endpoints, certificates and health")]
    Unreachable(String),
    /// A key holds what this version cannot read.
    #[error("{key}: {why}; was it written by a newer xidd?")]
    Record {
        /// The key.
        key: String,
        /// What is wrong with its value.
        why: BadRecord,
    },
    /// Two nodes are configured with one namespace.
    #[error("namespace {namespace} belongs to node {owner}: give this node its own xid_namespace")]
    NamespaceTaken {
        /// The namespace.
        namespace: String,
        /// Who has it.
        owner: String,
    },
    /// Two nodes are configured with one name.
    #[error(
        "another xidd is in the cluster as node {name}, {how}: give each node a name of its own. \
         (Was this one's disk or machine replaced? Then the other is gone {seconds} s after its end.)"
    )]
    NameTaken {
        /// The name.
        name: String,
        /// How the two differ.
        how: &'static str,
        /// How long the other's claim lasts when it falls silent.
        seconds: i64,
    },
    /// The nodes are not configured alike.
    #[error(
        "window = {ours}, but that of the cluster is {theirs}: it must be the same on all nodes. \
         Leave it out of xidd.toml, or see `xidctl cluster window`"
    )]
    OtherWindow {
        /// This node's.
        ours: u32,
        /// The cluster's.
        theirs: u32,
    },
    /// More nodes than the protocol can number.
    #[error("the cluster has 255 nodes already")]
    TooManyNodes,
    /// Others kept registering at the same moment.
    #[error("registration did not succeed in {REGISTER_TRIES} tries; start xidd again")]
    Contended,
}

impl Error {
    /// Whether trying again is of no use until somebody changed a configuration. (A name that is
    /// taken may be free a lease later.)
    #[must_use]
    pub fn is_final(&self) -> bool {
        matches!(
            self,
            Error::NamespaceTaken { .. } | Error::OtherWindow { .. } | Error::TooManyNodes
        )
    }
}

/// Where etcd is.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Endpoints, as "https://10.0.0.1:2379".
    pub endpoints: Vec<String>,
    /// Name of the cluster: several can share one etcd.
    pub cluster: String,
    /// Time limit of one request.
    pub timeout: Duration,
    /// A connection on which nothing came for so long is tested. Where that is less than 5 s, as
    /// long as etcd answers more often than that: of several tests within 5 s between two answers
    /// it takes offence, and closes the connection.
    pub silence: Duration,
    /// Certificates; `None`: plain connections.
    pub tls: Option<etcd_client::TlsOptions>,
}

/// What a node is to the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registration {
    /// The node's number.
    pub node: Node,
    /// Which of its disks this is.
    pub incarnation: Incarnation,
}

/// The cluster's records.
#[derive(Clone)]
pub struct Store {
    client: Client,
    keys: Keys,
    /// The latest revision that we know to exist: nothing older is read any more.
    latest: Arc<AtomicU64>,
}

impl Store {
    /// Connects to etcd.
    ///
    /// # Errors
    /// When no endpoint can be reached.
    pub async fn connect(settings: &Settings) -> Result<Store, Error> {
        let mut options = ConnectOptions::new()
            .with_timeout(settings.timeout)
            .with_connect_timeout(settings.timeout)
            // A connection that a partition cut says nothing by itself.
            .with_keep_alive(settings.silence, settings.timeout)
            .with_keep_alive_while_idle(true)
            .with_require_leader(true);
        if let Some(tls) = &settings.tls {
            options = options.with_tls(tls.clone());
        }
        let client = Client::connect(&settings.endpoints, Some(options)).await?;
        Ok(Store {
            client,
            keys: Keys::new(&settings.cluster),
            latest: Arc::default(),
        })
    }

    /// Connects to the first endpoint that answers. (A client of several sends its requests to all
    /// of them in turn, those that are down included.)
    ///
    /// # Errors
    /// When none does, what each of them said.
    pub async fn connect_any(settings: &Settings) -> Result<Store, Error> {
        let mut failures = Vec::new();
        for endpoint in &settings.endpoints {
            let one = Settings {
                endpoints: vec![endpoint.clone()],
                ..settings.clone()
            };
            let answer = async {
                let mut store = Store::connect(&one).await?;
                store.window().await.map(|_| store)
            };
            let why = match tokio::time::timeout(settings.timeout, answer).await {
                Ok(Ok(store)) => return Ok(store),
                Ok(Err(Error::Etcd(error))) => reason(&error),
                Ok(Err(error)) => return Err(error),
                Err(_) => "no answer".to_owned(),
            };
            failures.push(format!("{endpoint}: {why}"));
        }
        Err(Error::Unreachable(failures.join(", ")))
    }

    /// The cluster's keys.
    #[must_use]
    pub fn keys(&self) -> &Keys {
        &self.keys
    }

    /// Makes the node known, or finds it again. `disk` identifies the node's disk: another one
    /// than last time is a new incarnation.
    ///
    /// # Errors
    /// [`Error::NamespaceTaken`] when another node has the namespace, [`Error::NameTaken`] while
    /// one with another disk is alive under the name.
    pub async fn register(
        &mut self,
        name: &str,
        namespace: &str,
        disk: &str,
    ) -> Result<Registration, Error> {
        for _ in 0..REGISTER_TRIES {
            if let Some(done) = self.try_register(name, namespace, disk).await? {
                return Ok(done);
            }
        }
        Err(Error::Contended)
    }

    /// `None`: somebody else changed the members meanwhile.
    async fn try_register(
        &mut self,
        name: &str,
        namespace: &str,
        disk: &str,
    ) -> Result<Option<Registration>, Error> {
        let all = self.keys.nodes();
        let options = Some(GetOptions::new().with_prefix());
        let answer = self.client.get(all.as_str(), options).await?;
        let members = answer.kvs();
        let mut known = Vec::new();
        for kv in members {
            known.push((
                encoding::member(kv.value()).map_err(|e| bad(kv, e))?,
                kv.mod_revision(),
            ));
        }
        if let Some((other, _)) = known
            .iter()
            .find(|(m, _)| m.namespace == namespace && m.name != name)
        {
            return Err(Error::NamespaceTaken {
                namespace: namespace.into(),
                owner: other.name.clone(),
            });
        }
        let mine = known.iter().find(|(member, _)| member.name == name);
        if let Some((member, _)) = mine
            && member.disk == disk
            && member.namespace == namespace
            && !member.evicted
        {
            return Ok(Some(member.registration()));
        }
        let member = match mine {
            Some((member, _)) => member.on_disk(disk, namespace),
            None => encoding::Member {
                name: name.into(),
                namespace: namespace.into(),
                disk: disk.into(),
                node: free_number(known.iter().map(|(m, _)| m.node))?,
                incarnation: 0,
                evicted: false,
            },
        };
        // The number, the namespace: nobody else may take them between our look and our write.
        let revisions = known.iter().map(|(_, revision)| *revision);
        let latest = revisions.max().unwrap_or(0);
        let mut when =
            vec![Compare::mod_revision(all.as_str(), CompareOp::Less, latest + 1).with_prefix()];
        if let Some((old, _)) = mine
            && old.disk != disk
        {
            // Two that took the name from each other by turns would be evicted for ever.
            let alive = self.alive_key(&old.registration());
            if let Some(claim) = self.claim(&alive).await? {
                return Err(claim.taken(name, "with another disk"));
            }
            when.push(Compare::version(alive, CompareOp::Equal, 0));
        }
        let put = TxnOp::put(self.keys.node(name), encoding::encode(&member), None);
        let txn = EtcdTxn::new().when(when).and_then([put]);
        let answer = self.client.txn(txn).await?;
        Ok(answer.succeeded().then(|| member.registration()))
    }

    /// Puts the node's liveness key under a lease of so many seconds. The lease must be kept
    /// alive through what is returned; when it ends, the others may go on without the node.
    ///
    /// `place` says on which running system this is: a copy of the disk, in use elsewhere, does
    /// not take the claim of the one that is alive. One that was killed on this system, and is
    /// started again, takes over its own at once.
    ///
    /// # Errors
    /// [`Error::NameTaken`] when the node is alive elsewhere; or when etcd cannot be reached.
    pub async fn enter(
        &mut self,
        me: &Registration,
        place: &str,
        seconds: i64,
    ) -> Result<Lease, Error> {
        let lease = self.client.lease_grant(seconds, None).await?.id();
        let key = self.alive_key(me);
        let put = || {
            let options = Some(PutOptions::new().with_lease(lease));
            TxnOp::put(key.as_str(), place, options)
        };
        let free = Compare::version(key.as_str(), CompareOp::Equal, 0);
        let ours = Compare::value(key.as_str(), CompareOp::Equal, place);
        let again = EtcdTxn::new().when([ours]).and_then([put()]);
        let txn = EtcdTxn::new().when([free]).and_then([put()]);
        let entered =
            self.client.txn(txn).await?.succeeded() || self.client.txn(again).await?.succeeded();
        if !entered {
            // It would end by itself; a failure is of no consequence.
            let _ = self.client.lease_revoke(lease).await;
            let claim = self.claim(&key).await?;
            let name = self.name_of(me.node).await?;
            return Err(claim.map_or(Error::Contended, |claim| {
                claim.taken(&name, "with a copy of this disk")
            }));
        }
        let (keeper, answers) = self.client.lease_keep_alive(lease).await?;
        Ok(Lease {
            lease,
            keeper,
            answers,
        })
    }

    fn alive_key(&self, who: &Registration) -> String {
        self.keys.alive(who.node, who.incarnation)
    }

    /// Who holds a liveness key; `None`: nobody.
    async fn claim(&mut self, key: &str) -> Result<Option<Claim>, Error> {
        let answer = self.client.get(key, None).await?;
        let Some(kv) = answer.kvs().first() else {
            return Ok(None);
        };
        let lease = self.client.lease_time_to_live(kv.lease(), None).await?;
        Ok(Some(Claim {
            seconds: lease.granted_ttl(),
        }))
    }

    async fn name_of(&mut self, node: Node) -> Result<String, Error> {
        Ok(self
            .members()
            .await?
            .names
            .remove(&node)
            .unwrap_or_default())
    }

    /// The window of all nodes: that of the first one. `wanted` is this node's; `None`: it has no
    /// opinion, and brings `default` where it is the first.
    ///
    /// # Errors
    /// [`Error::OtherWindow`] when this node's is another one; or when etcd cannot be reached.
    pub async fn agree_on_window(
        &mut self,
        wanted: Option<u32>,
        default: u32,
    ) -> Result<u32, Error> {
        let key = self.keys.window();
        let ours = encoding::encode(&wanted.unwrap_or(default));
        let txn = EtcdTxn::new()
            .when([Compare::version(key.as_str(), CompareOp::Equal, 0)])
            .and_then([TxnOp::put(key.as_str(), ours, None)]);
        self.client.txn(txn).await?;
        let theirs = self.window().await?.unwrap_or(default);
        match wanted {
            Some(ours) if ours != theirs => Err(Error::OtherWindow { ours, theirs }),
            _ => Ok(theirs),
        }
    }

    /// The window of all nodes; `None`: none of them was ever there.
    ///
    /// # Errors
    /// When etcd cannot be reached, or holds what we cannot read.
    pub async fn window(&mut self) -> Result<Option<u32>, Error> {
        let answer = self.client.get(self.keys.window(), None).await?;
        let Some(kv) = answer.kvs().first() else {
            return Ok(None);
        };
        encoding::window(kv.value())
            .map(Some)
            .map_err(|e| bad(kv, e))
    }

    /// Writes the node's liveness key again, as it is: whoever listens hears that it is alive.
    ///
    /// # Errors
    /// When etcd cannot be reached, or the key is gone.
    pub async fn beat(&mut self, me: &Registration) -> Result<(), Error> {
        let options = PutOptions::new().with_ignore_value().with_ignore_lease();
        let key = self.keys.alive(me.node, me.incarnation);
        self.client.put(key, "", Some(options)).await?;
        Ok(())
    }

    /// Ends the membership of a node that fell silent, unless it was heard of since this revision.
    /// False: it was, or it is gone already.
    ///
    /// # Errors
    /// When etcd cannot be reached.
    pub async fn end(&mut self, who: (Node, Incarnation), heard: Rev) -> Result<bool, Error> {
        let key = self.keys.alive(who.0, who.1);
        let heard = i64::try_from(heard.0).unwrap_or(i64::MAX);
        let same = Compare::mod_revision(key.as_str(), CompareOp::Equal, heard);
        let txn = EtcdTxn::new()
            .when([same])
            .and_then([TxnOp::delete(key, None)]);
        Ok(self.client.txn(txn).await?.succeeded())
    }

    /// Gives the lease back: the others need not wait for its end.
    ///
    /// # Errors
    /// When etcd cannot be reached; the lease then ends by itself.
    pub async fn leave(&mut self, lease: Lease) -> Result<(), Error> {
        self.client.lease_revoke(lease.lease).await?;
        Ok(())
    }

    /// Everything a decision on a mailbox rests on, as of one moment.
    ///
    /// # Errors
    /// When etcd cannot be reached, or holds what we cannot read.
    pub async fn snapshot(&mut self, mailbox: &Mailbox) -> Result<Snapshot<Text, Text>, Error> {
        let now = self.read(mailbox, false).await?;
        self.saw(now.rev);
        Ok(now.value)
    }

    /// [`Store::snapshot`], with etcd's revision at that moment: what a watch tells of it or an
    /// earlier one is in it.
    ///
    /// The moment may have passed: the member that we talk to answers by itself, without asking
    /// the others how far they are. It is never before one that was read, written or heard of
    /// through this store. So it is as if the answer had come then and whoever asked had been slow
    /// to act on it, which every decision has to stand anyway: what it writes is conditional on
    /// what it read. Only a mailbox's first record is made of who is there, which no condition
    /// covers: a mailbox without one is read afresh.
    ///
    /// # Errors
    /// When etcd cannot be reached, or holds what we cannot read.
    pub async fn snapshot_at(
        &mut self,
        mailbox: &Mailbox,
    ) -> Result<At<Snapshot<Text, Text>>, Error> {
        let near = self.read(mailbox, true).await?;
        if near.value.stable.is_some() && near.rev.0 >= self.latest.load(Ordering::Acquire) {
            self.saw(near.rev);
            return Ok(near);
        }
        let now = self.read(mailbox, false).await?;
        self.saw(now.rev);
        Ok(now)
    }

    /// Takes note that etcd was at this revision.
    pub fn saw(&self, rev: Rev) {
        self.latest.fetch_max(rev.0, Ordering::AcqRel);
    }

    /// One moment's truth: as the member that we talk to knows it, or as all of them do.
    async fn read(
        &mut self,
        mailbox: &Mailbox,
        near: bool,
    ) -> Result<At<Snapshot<Text, Text>>, Error> {
        let options = || match near {
            true => GetOptions::new().with_prefix().with_serializable(),
            false => GetOptions::new().with_prefix(),
        };
        let txn = EtcdTxn::new().and_then([
            TxnOp::get(self.keys.mailbox(mailbox), Some(options())),
            TxnOp::get(self.keys.all_alive(), Some(options().with_keys_only())),
            TxnOp::get(self.keys.nodes(), Some(options())),
        ]);
        let answer = self.client.txn(txn).await?;
        let rev = revision(answer.header());
        let mut ranges = answer.op_responses().into_iter().map(|op| match op {
            TxnOpResponse::Get(mut get) => get.take_kvs(),
            _ => Vec::new(),
        });
        let mut next = || ranges.next().unwrap_or_default();
        let (of_mailbox, alive, nodes) = (next(), next(), next());
        let value = self.assemble(mailbox, &of_mailbox, &alive, &nodes)?;
        Ok(At { rev, value })
    }

    fn assemble(
        &self,
        mailbox: &Mailbox,
        of_mailbox: &[KeyValue],
        alive: &[KeyValue],
        nodes: &[KeyValue],
    ) -> Result<Snapshot<Text, Text>, Error> {
        let mut snapshot = Snapshot {
            stable: None,
            tails: BTreeMap::new(),
            gate: None,
            alive: alive
                .iter()
                .filter_map(|kv| self.keys.parse_alive(kv.key()))
                .collect(),
            complete: false,
        };
        for kv in of_mailbox {
            self.take_in(mailbox, kv, &mut snapshot)?;
        }
        let mut complete = true;
        for kv in nodes {
            let member = encoding::member(kv.value()).map_err(|e| bad(kv, e))?;
            let me = member.registration();
            complete &= snapshot.alive.get(&me.node) == Some(&me.incarnation);
        }
        snapshot.complete = complete;
        Ok(snapshot)
    }

    fn take_in(
        &self,
        mailbox: &Mailbox,
        kv: &KeyValue,
        snapshot: &mut Snapshot<Text, Text>,
    ) -> Result<(), Error> {
        let rev = Rev(u64::try_from(kv.mod_revision()).unwrap_or(0));
        match self.keys.parse_part(mailbox, kv.key()) {
            Some(Changed::Stable) => {
                let value = encoding::stable(kv.value()).map_err(|e| bad(kv, e))?;
                snapshot.stable = Some(At { rev, value });
            }
            Some(Changed::Tail(node)) => {
                let value: Tail<Text, Text> = encoding::tail(kv.value()).map_err(|e| bad(kv, e))?;
                snapshot.tails.insert(node, At { rev, value });
            }
            Some(Changed::Gate) => {
                snapshot.gate = Some(encoding::gate(kv.value()).map_err(|e| bad(kv, e))?);
            }
            None => {}
        }
        Ok(())
    }

    /// Runs a transaction of the protocol and gives the revision that it wrote. `None`: a
    /// condition did not hold, nothing was written.
    ///
    /// # Errors
    /// When etcd cannot be reached: then it may or may not have been carried out.
    pub async fn run(
        &mut self,
        mailbox: &Mailbox,
        txn: &Txn<Text, Text>,
    ) -> Result<Option<Rev>, Error> {
        let closes = txn.then.iter().any(|put| matches!(put, Put::Gate(_)));
        let lease = match closes {
            true => Some(
                self.client
                    .lease_grant(GATE_LEASE_SECONDS, None)
                    .await?
                    .id(),
            ),
            false => None,
        };
        let when: Vec<Compare> = txn.when.iter().map(|c| self.compare(mailbox, c)).collect();
        let then: Vec<TxnOp> = txn
            .then
            .iter()
            .map(|p| self.write(mailbox, p, lease))
            .collect();
        let answer = self
            .client
            .txn(EtcdTxn::new().when(when).and_then(then))
            .await?;
        if let (false, Some(lease)) = (answer.succeeded(), lease) {
            // It would end by itself; a failure is of no consequence.
            let _ = self.client.lease_revoke(lease).await;
        }
        let revision = revision(answer.header());
        self.saw(revision);
        Ok(answer.succeeded().then_some(revision))
    }

    fn compare(&self, mailbox: &Mailbox, condition: &Condition) -> Compare {
        let revision = |rev: &Rev| i64::try_from(rev.0).unwrap_or(i64::MAX);
        // An absent key has revision and version 0.
        match condition {
            Condition::Stable(rev) => {
                Compare::mod_revision(self.keys.stable(mailbox), CompareOp::Equal, revision(rev))
            }
            Condition::Tail(node, rev) => Compare::mod_revision(
                self.keys.tail(mailbox, *node),
                CompareOp::Equal,
                revision(rev),
            ),
            Condition::Dead(node, incarnation) => {
                Compare::version(self.keys.alive(*node, *incarnation), CompareOp::Equal, 0)
            }
            Condition::GateOpen => Compare::version(self.keys.gate(mailbox), CompareOp::Equal, 0),
            Condition::GateOf(node) => Compare::value(
                self.keys.gate(mailbox),
                CompareOp::Equal,
                encoding::encode_gate(*node),
            ),
        }
    }

    fn write(&self, mailbox: &Mailbox, put: &Put<Text, Text>, lease: Option<i64>) -> TxnOp {
        match put {
            Put::Stable(stable) => TxnOp::put(
                self.keys.stable(mailbox),
                encoding::encode_stable(stable),
                None,
            ),
            Put::Tail(node, tail) => TxnOp::put(
                self.keys.tail(mailbox, *node),
                encoding::encode_tail(tail),
                None,
            ),
            Put::DropTail(node) => TxnOp::delete(self.keys.tail(mailbox, *node), None),
            Put::Gate(node) => TxnOp::put(
                self.keys.gate(mailbox),
                encoding::encode_gate(*node),
                lease.map(|id| PutOptions::new().with_lease(id)),
            ),
            Put::DropGate => TxnOp::delete(self.keys.gate(mailbox), None),
        }
    }

    /// Hears of every change of the cluster's records after this revision (0: from now on).
    ///
    /// # Errors
    /// When etcd cannot be reached.
    pub async fn watch(&mut self, after: Rev) -> Result<WatchStream, Error> {
        let mut options = WatchOptions::new().with_prefix();
        if after > Rev(0) {
            options = options.with_start_revision(i64::try_from(after.0 + 1).unwrap_or(i64::MAX));
        }
        Ok(self.client.watch(self.keys.root(), Some(options)).await?)
    }

    /// Who is registered, and who of them is alive.
    ///
    /// # Errors
    /// When etcd cannot be reached, or holds what we cannot read.
    pub async fn members(&mut self) -> Result<Members, Error> {
        let prefix = || Some(GetOptions::new().with_prefix());
        let keys_only = Some(GetOptions::new().with_prefix().with_keys_only());
        let txn = EtcdTxn::new().and_then([
            TxnOp::get(self.keys.nodes(), prefix()),
            TxnOp::get(self.keys.all_alive(), keys_only),
        ]);
        let answer = self.client.txn(txn).await?;
        let rev = revision(answer.header());
        let mut ranges = answer.op_responses().into_iter().map(|op| match op {
            TxnOpResponse::Get(mut get) => get.take_kvs(),
            _ => Vec::new(),
        });
        let (nodes, alive) = (ranges.next().unwrap_or_default(), ranges.next());
        let mut members = Members {
            names: BTreeMap::new(),
            alive: BTreeMap::new(),
            rev,
        };
        self.saw(rev);
        for kv in &nodes {
            let member = encoding::member(kv.value()).map_err(|e| bad(kv, e))?;
            if !member.evicted {
                members
                    .names
                    .insert(member.registration().node, member.name);
            }
        }
        let alive = alive.iter().flatten();
        members.alive = alive
            .filter_map(|kv| self.keys.parse_alive(kv.key()))
            .collect();
        Ok(members)
    }

    /// The mailboxes that have a record, in the order of their keys, at most about `most` at a
    /// time. Where there are more, the key after which the next call goes on.
    ///
    /// # Errors
    /// When etcd cannot be reached.
    pub async fn mailboxes(
        &mut self,
        after: Option<Vec<u8>>,
        most: i64,
    ) -> Result<(Vec<Mailbox>, Option<Vec<u8>>), Error> {
        let all = format!("{}box/", self.keys.root());
        let from = after.unwrap_or_else(|| all.clone().into_bytes());
        // "0" follows "/".
        let end = format!("{}box0", self.keys.root());
        let options = GetOptions::new()
            .with_range(end)
            .with_keys_only()
            .with_limit(most);
        let answer = self.client.get(from, Some(options)).await?;
        let found = answer.kvs().iter().filter_map(|kv| {
            let (mailbox, part) = self.keys.parse(kv.key())?;
            (part == Changed::Stable).then_some(mailbox)
        });
        let found = found.collect();
        let next = answer.kvs().last().filter(|_| answer.more()).map(|kv| {
            let mut key = kv.key().to_vec();
            key.push(0);
            key
        });
        Ok((found, next))
    }

    /// Goes on keeping a lease after its connection broke.
    ///
    /// # Errors
    /// When etcd cannot be reached.
    pub async fn reopen(&mut self, lease: &mut Lease) -> Result<(), Error> {
        (lease.keeper, lease.answers) = self.client.lease_keep_alive(lease.lease).await?;
        Ok(())
    }
}

/// Who is registered, and who of them is alive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Members {
    /// The nodes' names.
    pub names: BTreeMap<Node, String>,
    /// Those whose lease is alive.
    pub alive: BTreeMap<Node, Incarnation>,
    /// etcd's revision when this was read.
    pub rev: Rev,
}

/// What somebody else's claim to be alive looks like.
struct Claim {
    /// It ends so long after its holder falls silent.
    seconds: i64,
}

impl Claim {
    fn taken(&self, name: &str, how: &'static str) -> Error {
        Error::NameTaken {
            name: name.into(),
            how,
            seconds: self.seconds,
        }
    }
}

/// A node's claim to be alive.
pub struct Lease {
    lease: i64,
    keeper: LeaseKeeper,
    answers: LeaseKeepAliveStream,
}

impl Lease {
    /// Keeps the lease. False: it has ended, and with it the membership.
    ///
    /// # Errors
    /// When etcd cannot be reached: the lease may still live for a while.
    pub async fn keep(&mut self) -> Result<bool, Error> {
        self.keeper.keep_alive().await?;
        let answer = self.answers.message().await?;
        Ok(answer.is_some_and(|answer| answer.ttl() > 0))
    }
}

/// What went wrong, down to its cause: that a certificate is not accepted, for example. What is
/// said twice on the way is said once.
fn reason(error: &etcd_client::Error) -> String {
    let (mut text, mut cause) = match error {
        etcd_client::Error::GRpcStatus(status) => (status.message().to_owned(), source(status)),
        etcd_client::Error::TransportError(error) => (error.to_string(), source(error)),
        error => (error.to_string(), None),
    };
    while let Some(error) = cause {
        let part = error.to_string();
        if !text.contains(&part) {
            text = format!("{text}: {part}");
        }
        cause = error.source();
    }
    // By TLS 1.3 a client hears that its certificate was refused only when it reads on, if at all.
    let ended = ["fatal alert", "connection closed", "broken pipe", "reset"];
    if ended.iter().any(|part| text.contains(part)) {
        text.push_str(
            " (over TLS: does etcd accept this node's certificate? It may have expired, be missing, \
             or be of another authority than etcd's trusted-ca-file)",
        );
    }
    text
}

fn source(error: &impl std::error::Error) -> Option<&(dyn std::error::Error + 'static)> {
    error.source()
}

fn revision(header: Option<&ResponseHeader>) -> Rev {
    let revision = header.map_or(0, ResponseHeader::revision);
    Rev(u64::try_from(revision).unwrap_or(0))
}

fn free_number(taken: impl Iterator<Item = u8>) -> Result<u8, Error> {
    let highest = taken.max().unwrap_or(0);
    highest.checked_add(1).ok_or(Error::TooManyNodes)
}

fn bad(kv: &KeyValue, why: BadRecord) -> Error {
    Error::Record {
        key: String::from_utf8_lossy(kv.key()).into_owned(),
        why,
    }
}
