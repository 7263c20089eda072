//! A small cluster as a value: hosts, etcd, replication, faults, and the protocol core under
//! test, as a stateright model.
//!
//! The core is the one that `xidd` runs; only what surrounds it is modelled. One mailbox.

mod reduce;

use imap_xid::cluster::{
    ALL_PROMISED, At, Condition, Config, Entry, Incarnation, Kind, Local, Node, Put, Replica, Rev,
    Rules, Snapshot, Source, Stable, Staged, Step, Tail, Txn, Uid, View,
};
use stateright::{Model, Property};
use std::collections::{BTreeMap, BTreeSet};

pub type Guid = u8;
/// Namespace (3 bits), incarnation (2 bits), number (3 bits).
pub type Xid = u8;
type Txn8 = Txn<Guid, Xid>;
type Step8 = Step<Guid, Xid>;

/// How often each thing may still happen.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Budget {
    /// Messages appended, on any node.
    pub append: u8,
    /// The lease of a node that is up expires.
    pub expire: u8,
    /// A node loses its power: everything not on disk is gone.
    pub crash: u8,
    /// A dsync dies midway.
    pub kill: u8,
    /// A client expunges a message.
    pub expunge: u8,
    /// A node loses its disk.
    pub disk: u8,
    /// A client saves its XHXID state.
    pub save: u8,
    /// Somebody starts a dsync by hand, between any two nodes.
    pub stray: u8,
    /// Something gives a message a new UID, for no reason that the protocol knows: a dsync with a
    /// node that went past its limit, or one that works from an old read.
    pub rogue: u8,
}

/// Rules that hosts, plug-in and clients keep, rather than the core.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct HostRules {
    /// Renumbering what is shown or promised is refused.
    pub interlock: bool,
    /// After a restart all counts as promised.
    pub promised_over_crash: bool,
    /// No UID above the limit is given out.
    pub window: bool,
    /// A message keeps its XID when it is replicated.
    pub xids_travel: bool,
    /// A replaced disk gets a new incarnation.
    pub new_incarnation: bool,
    /// What is gone counts as settled only if it went when it was stable.
    pub settled_was_stable: bool,
    /// All holders are asked what became of a joining node's messages, not its source alone.
    pub all_are_asked: bool,
    /// A joining node asks its source anew each time, not only when the record changed.
    pub source_is_asked_anew: bool,
    /// A node that is no holder knows which of its messages went. Real ones do not, and ask their
    /// source until it knows no more than they do.
    pub gone_is_known: bool,
    /// A promise makes durable what it covers.
    pub promise_is_durable: bool,
    /// The XHXID state carries a mark.
    pub mark_in_state: bool,
}

impl Default for HostRules {
    fn default() -> Self {
        HostRules {
            interlock: true,
            promised_over_crash: true,
            window: true,
            xids_travel: true,
            new_incarnation: true,
            settled_was_stable: true,
            all_are_asked: true,
            source_is_asked_anew: true,
            gone_is_known: true,
            promise_is_durable: true,
            mark_in_state: true,
        }
    }
}

/// One cluster to check.
#[derive(Clone, Debug)]
pub struct Cluster {
    pub nodes: u8,
    pub budget: Budget,
    pub window: Uid,
    pub gate_after: u8,
    pub rules: Rules,
    pub host: HostRules,
    /// Decide and act in two steps, not in one.
    pub split: bool,
    /// Also ask that these things happen at all, by name.
    pub events: Vec<&'static str>,
    /// Name only actions that change something: the paths of random walks need it.
    pub walking: bool,
    /// Messages that all nodes have from the start, under the same UIDs, each by an XID of its
    /// own, in a mailbox without a record.
    pub before: u8,
    /// Where to start, if not there.
    pub start: Option<Box<World>>,
    /// I6 is checked in one state of so many (each check plays the cluster to its end); 0: never.
    pub settle_one_in: u64,
    /// Every world by itself: those that no future can tell apart are not made one.
    pub plain: bool,
}

impl Default for Cluster {
    fn default() -> Self {
        Cluster {
            nodes: 2,
            budget: Budget {
                append: 2,
                ..Budget::default()
            },
            window: 2,
            gate_after: 1,
            rules: Rules::default(),
            host: HostRules::default(),
            split: false,
            events: Vec::new(),
            walking: false,
            before: 0,
            start: None,
            settle_one_in: 16,
            plain: false,
        }
    }
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Msg {
    pub uid: Uid,
    pub guid: Guid,
    pub xid: Xid,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Host {
    pub up: bool,
    pub incarnation: u32,
    pub mail: Vec<Msg>,
    pub gone: Vec<Msg>,
    pub next: Uid,
    /// Everything up to this UID survives a power loss.
    pub durable: Uid,
    pub stage: Vec<(Guid, Xid)>,
    pub shown: Uid,
    pub promised: Uid,
    pub limit: Uid,
    pub bound: Uid,
    pub gated: bool,
    pub counter: u8,
    pub replica: Replica,
    /// Waits for a transaction.
    pub busy: bool,
    /// Decided and not yet done (`Cluster::split`).
    pub doing: Option<Step8>,
    /// What the source said, if it is not asked anew each time.
    pub kept: Option<Source<Guid, Xid>>,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Etcd {
    /// `None`: the mailbox has no record yet.
    pub stable: Option<At<Stable>>,
    pub tails: BTreeMap<Node, At<Tail<Guid, Xid>>>,
    pub gate: Option<Node>,
    pub alive: BTreeMap<Node, Incarnation>,
}

/// A transaction that etcd has not seen yet, and perhaps never will.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Flight {
    pub node: u8,
    /// The sender still waits for the answer.
    pub awaited: bool,
    pub txn: TxnOrd,
}

/// A transaction with an order of its own, so that flights can be kept sorted.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct TxnOrd(pub Txn8);
impl PartialOrd for TxnOrd {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for TxnOrd {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        stateright_hash(&self.0).cmp(&stateright_hash(&other.0))
    }
}

impl Etcd {
    /// The record's revision.
    fn rev(&self) -> Rev {
        self.stable.as_ref().map_or(Rev(0), |s| s.rev)
    }

    /// The record.
    pub fn record(&self) -> Option<&Stable> {
        self.stable.as_ref().map(|s| &s.value)
    }

    fn holds(&self, node: u8, incarnation: u32) -> bool {
        let held = |s: &Stable| s.held_by(Node(node), Incarnation(incarnation));
        self.record().is_some_and(held)
    }
}

pub fn stateright_hash<T: std::hash::Hash>(value: &T) -> u64 {
    use std::hash::{DefaultHasher, Hasher};
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

/// What dsync does to one side.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Op {
    Expunge { uid: Uid, guid: Guid },
    Import { uid: Uid, guid: Guid, xid: Xid },
    Renumber { from: Uid, to: Uid, guid: Guid },
    Next { uid: Uid },
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Side {
    pub node: u8,
    /// Messages that keep their UIDs, in UID order; each may be committed by itself.
    pub plain: Vec<Op>,
    /// New UIDs: one transaction.
    pub renumbering: Vec<Op>,
    pub done: bool,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Dsync {
    pub sides: [Side; 2],
    pub joining: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Broken {
    I1,
    I2,
    I3,
    I4,
    I5,
}

/// What no node knows: what clients saw.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Ghost {
    /// By UID, what was shown under it.
    pub shown: BTreeMap<Uid, Guid>,
    /// By GUID, the XID that was shown.
    pub xids: BTreeMap<Guid, Xid>,
    /// Acknowledged, by bit.
    pub acked: u16,
    /// Expunged by a client.
    pub expunged: u16,
    /// Gone with the last disk that held it.
    pub lost: u16,
    /// A client's saved XHXID state.
    pub saved: Option<Saved>,
    pub broken: Option<Broken>,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Saved {
    pub mark: Uid,
    /// Highest number per namespace and incarnation.
    pub numbers: BTreeMap<u8, u8>,
    /// What the client has, by bit.
    pub known: u16,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct World {
    pub hosts: Vec<Host>,
    pub etcd: Etcd,
    pub flights: Vec<Flight>,
    pub syncs: Vec<Dsync>,
    pub left: Budget,
    pub ghost: Ghost,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Action {
    Append(u8),
    Expunge(u8, Guid),
    Save(u8),
    Stray(u8, u8),
    /// A message gets a new UID.
    Rogue(u8, Uid),
    /// The daemon looks and takes the next step.
    Turn(u8),
    /// The daemon does what it decided.
    Do(u8),
    /// A transaction arrives.
    Land(usize),
    /// One side of a dsync commits.
    Commit(usize, usize),
    /// A dsync dies when one side has committed this many of its commits.
    Kill(usize, usize, usize),
    Expire(u8),
    Crash(u8),
    LoseDisk(u8),
    Restart(u8),
}

/// After so many undisturbed rounds a cluster must have settled.
const ROUNDS: usize = 100;

const STALE: Rev = Rev(99);
const CURRENT: Rev = Rev(1);
const FRESH: Rev = Rev(2);

impl Host {
    fn live(&self, guid: Guid) -> bool {
        self.mail.iter().any(|m| m.guid == guid)
    }

    fn insert(&mut self, msg: Msg) {
        self.next = self.next.max(msg.uid + 1);
        let at = self.mail.partition_point(|m| m.uid < msg.uid);
        self.mail.insert(at, msg);
    }

    fn remove(&mut self, uid: Uid) {
        if let Some(at) = self.mail.iter().position(|m| m.uid == uid) {
            let msg = self.mail.remove(at);
            let to = self.gone.partition_point(|m| m.uid < uid);
            self.gone.insert(to, msg);
        }
    }

    /// Which GUIDs are stable here, or were when they were expunged. (Not those that were at such
    /// a UID and went before it was stable: they may have moved.)
    fn settled(&self, s: Uid, gone: impl Fn(&Msg) -> bool) -> Vec<Guid> {
        let here = self.mail.iter().filter(|m| m.uid <= s);
        let gone = self.gone.iter().filter(|m| gone(m));
        here.chain(gone).map(|m| m.guid).collect()
    }

    /// What its daemon sees, where those GUIDs are settled.
    fn local(&self, settled: &[Guid]) -> Local<Guid, Xid> {
        let entry = |m: &Msg, expunged| Entry {
            uid: m.uid,
            guid: m.guid,
            xid: m.xid,
            expunged,
        };
        let mut entries: Vec<_> = self.mail.iter().map(|m| entry(m, false)).collect();
        entries.extend(self.gone.iter().map(|m| entry(m, true)));
        entries.sort();
        let staged = self.stage.iter().map(|(guid, _)| Staged {
            guid: *guid,
            settled: settled.contains(guid),
        });
        Local {
            entries,
            next: self.next,
            promised: self.promised,
            shown: self.shown,
            limit: self.limit,
            bound: self.bound,
            gated: self.gated,
            staged: staged.collect(),
        }
    }
}

/// All rules, by name.
pub const RULES: &[&str] = &[
    "promise",
    "withdraw_checks_stable",
    "withdraw_afresh",
    "publish_checks_tail",
    "publish_checks_stable",
    "advance_checks_stable",
    "advance_checks_tails",
    "advance_below_next",
    "compare_guids",
    "compare_xids",
    "adopt_xids",
    "expose_as_holder",
    "shrink_as_holder",
    "room_below",
    "stage",
    "join_checks_stable",
    "join_compares",
    "join_promises",
    "join_passes_stable",
    "skip_settled",
    "force_sync",
    "open_gate",
    "correct_next",
    "interlock",
    "promised_over_crash",
    "window",
    "xids_travel",
    "new_incarnation",
    "settled_was_stable",
    "all_are_asked",
    "source_is_asked_anew",
    "gone_is_known",
    "promise_is_durable",
    "mark_in_state",
];

impl Cluster {
    /// The same cluster without one rule.
    pub fn without(mut self, rule: &str) -> Cluster {
        let on = match rule {
            "promise" => &mut self.rules.promise,
            "withdraw_checks_stable" => &mut self.rules.withdraw_checks_stable,
            "withdraw_afresh" => &mut self.rules.withdraw_afresh,
            "publish_checks_tail" => &mut self.rules.publish_checks_tail,
            "publish_checks_stable" => &mut self.rules.publish_checks_stable,
            "advance_checks_stable" => &mut self.rules.advance_checks_stable,
            "advance_checks_tails" => &mut self.rules.advance_checks_tails,
            "advance_below_next" => &mut self.rules.advance_below_next,
            "compare_guids" => &mut self.rules.compare_guids,
            "compare_xids" => &mut self.rules.compare_xids,
            "adopt_xids" => &mut self.rules.adopt_xids,
            "expose_as_holder" => &mut self.rules.expose_as_holder,
            "shrink_as_holder" => &mut self.rules.shrink_as_holder,
            "room_below" => &mut self.rules.room_below,
            "stage" => &mut self.rules.stage,
            "join_checks_stable" => &mut self.rules.join_checks_stable,
            "join_compares" => &mut self.rules.join_compares,
            "join_promises" => &mut self.rules.join_promises,
            "join_passes_stable" => &mut self.rules.join_passes_stable,
            "skip_settled" => &mut self.rules.skip_settled,
            "force_sync" => &mut self.rules.force_sync,
            "open_gate" => &mut self.rules.open_gate,
            "correct_next" => &mut self.rules.correct_next,
            "conclude" => &mut self.rules.conclude,
            "interlock" => &mut self.host.interlock,
            "promised_over_crash" => &mut self.host.promised_over_crash,
            "window" => &mut self.host.window,
            "xids_travel" => &mut self.host.xids_travel,
            "new_incarnation" => &mut self.host.new_incarnation,
            "settled_was_stable" => &mut self.host.settled_was_stable,
            "all_are_asked" => &mut self.host.all_are_asked,
            "source_is_asked_anew" => &mut self.host.source_is_asked_anew,
            "gone_is_known" => &mut self.host.gone_is_known,
            "promise_is_durable" => &mut self.host.promise_is_durable,
            "mark_in_state" => &mut self.host.mark_in_state,
            _ => panic!("{rule}: no such rule"),
        };
        *on = false;
        self
    }

    pub fn config(&self, node: u8, host: &Host) -> Config {
        Config {
            me: Node(node),
            incarnation: Incarnation(host.incarnation),
            window: self.window,
            chunk: 4,
            gate_after: self.gate_after,
            rules: self.rules.clone(),
        }
    }

    pub fn first_world(&self) -> World {
        let mut world = self.empty_world();
        if self.before > 0 {
            world.etcd.stable = None;
        }
        for node in 0..self.nodes {
            for number in 1..=self.before {
                // Above all that will be appended.
                let guid = self.budget.append + number;
                let host = &mut world.hosts[node as usize];
                let (uid, xid) = (Uid::from(number), self.give_xid(node, host));
                host.insert(Msg { uid, guid, xid });
                host.durable = uid;
                world.ghost.acked |= 1 << guid;
            }
        }
        world
    }

    fn empty_world(&self) -> World {
        let host = Host {
            up: true,
            incarnation: 0,
            mail: Vec::new(),
            gone: Vec::new(),
            next: 1,
            durable: 0,
            stage: Vec::new(),
            shown: 0,
            promised: 0,
            limit: self.window,
            bound: 2 * self.window * Uid::from(self.nodes),
            gated: false,
            counter: 0,
            replica: Replica::default(),
            busy: false,
            doing: None,
            kept: None,
        };
        let everyone: BTreeMap<_, _> = (0..self.nodes).map(|n| (Node(n), Incarnation(0))).collect();
        let stable = Stable {
            uid: 0,
            floor: 0,
            holders: everyone.clone(),
        };
        World {
            hosts: vec![host; self.nodes.into()],
            etcd: Etcd {
                stable: Some(At {
                    rev: CURRENT,
                    value: stable,
                }),
                tails: BTreeMap::new(),
                gate: None,
                alive: everyone,
            },
            flights: Vec::new(),
            syncs: Vec::new(),
            left: self.budget,
            ghost: Ghost::default(),
        }
    }

    /// The world that stands for this one, and for all that no future can tell from it.
    pub fn kind(&self, world: &World) -> World {
        let mut kind = world.clone();
        reduce::canonical(self, &mut kind);
        kind
    }

    /// The same cluster, to be looked at from this world on.
    pub fn from(self, world: World) -> Cluster {
        Cluster {
            start: Some(Box::new(world)),
            ..self
        }
    }

    /// What one action makes of a world; it must do something.
    pub fn after(&self, world: &World, action: Action) -> World {
        let what = format!("{action:?}");
        let Some(world) = self.next_state(world, action) else {
            panic!("{what}: nothing happens in {world:?}");
        };
        world
    }

    /// These nodes go on until there is nothing left for them to do; the others do nothing.
    pub fn play(&self, world: &World, nodes: &[u8]) -> World {
        let mut world = world.clone();
        for _ in 0..ROUNDS {
            let before = world.clone();
            self.play_nodes(&mut world, nodes);
            self.observe(&before, &mut world);
            if world == before {
                break;
            }
        }
        world
    }

    /// Node 0 alone holds messages 1 and 2, and shows them; node 1 is back, and has message 1
    /// where node 0 had another one.
    pub fn one_dropped(&self) -> World {
        let mut world = self.after(&self.first_world(), Action::Append(1));
        while world.syncs.is_empty() {
            let flight = world.flights.is_empty();
            let next = if flight {
                Action::Turn(1)
            } else {
                Action::Land(0)
            };
            world = self.after(&world, next);
        }
        // Comes before what node 1's dsync brings.
        world = self.after(&world, Action::Append(0));
        world = self.after(&world, Action::Commit(0, 1));
        if !world.syncs.is_empty() {
            world = self.after(&world, Action::Commit(0, 0));
        }
        world = self.after(&world, Action::Expire(1));
        world = self.play(&world, &[0]);
        self.after(&world, Action::Turn(1))
    }

    /// Both nodes have message 1 at UID 1, where nobody has shown it; node 1 has another one
    /// after it, and has published both.
    pub fn one_ahead(&self) -> World {
        let world = self.after(&self.first_world(), Action::Append(0));
        let world = self.play(&world, &[0]);
        let world = self.after(&world, Action::Append(1));
        let mut world = self.after(&world, Action::Turn(1));
        while !world.etcd.tails.contains_key(&Node(1)) {
            let flight = world.flights.is_empty();
            let next = if flight {
                Action::Turn(1)
            } else {
                Action::Land(0)
            };
            world = self.after(&world, next);
        }
        world
    }

    /// Node 2, which has message 1, was dropped; node 1 then expunged it, and node 0 joined, which
    /// never had it.
    pub fn one_knows_of_an_expunge(&self) -> World {
        let world = self.after(&self.first_world(), Action::Expire(0));
        let world = self.after(&world, Action::Append(1));
        let world = self.play(&world, &[1, 2]);
        assert_eq!(world.ghost.shown.len(), 1, "{world:?}");
        let world = self.after(&world, Action::Expire(2));
        let world = self.after(&world, Action::Append(1));
        let world = self.play(&world, &[1]);
        let guid = world.hosts[1].mail[0].guid;
        let world = self.after(&world, Action::Expunge(1, guid));
        let world = self.play(&world, &[0, 1]);
        assert!(
            world.etcd.holds(0, 0) && !world.etcd.holds(2, 0),
            "{world:?}"
        );
        assert!(!world.hosts[2].mail.is_empty(), "{world:?}");
        world
    }

    /// Both nodes have message 1; node 1, which was dropped, expunged it.
    pub fn expunged_while_away(&self) -> World {
        let world = self.after(&self.first_world(), Action::Append(0));
        let world = self.play(&world, &[0, 1]);
        let guid = world.hosts[1].mail[0].guid;
        let world = self.after(&world, Action::Expire(1));
        let world = self.after(&world, Action::Expunge(1, guid));
        // What comes now has node 0 go on alone.
        let world = self.after(&world, Action::Append(0));
        let world = self.play(&world, &[0]);
        assert!(!world.etcd.holds(1, 0), "{world:?}");
        assert_eq!(world.hosts[0].mail.len(), 2, "{world:?}");
        world
    }

    /// Node 0 shows message 1; node 1, which it dropped, takes as many as it may.
    pub fn one_writes_apart(&self) -> World {
        let world = self.after(&self.first_world(), Action::Append(0));
        let world = self.after(&world, Action::Expire(1));
        let mut world = self.play(&world, &[0]);
        while world.left.append > 0 {
            let Some(next) = self.next_state(&world, Action::Append(1)) else {
                break;
            };
            world = next;
        }
        world
    }

    /// Both nodes withdrew for a conflict that is settled; node 0 died when it had sent its new
    /// tail, and the transaction is still on its way.
    pub fn late_publish(&self) -> World {
        let world = self.after(&self.first_world(), Action::Append(0));
        let mut world = self.after(&world, Action::Append(1));
        let sent = |w: &World| {
            let publish = |f: &Flight| f.node == 0 && f.txn.0.kind == Kind::Publish;
            w.hosts.iter().all(|h| h.mail.len() == 2) && w.flights.iter().any(publish)
        };
        for node in [0, 1].into_iter().cycle().take(ROUNDS) {
            world = self.next_state(&world, Action::Turn(node)).unwrap_or(world);
            if sent(&world) {
                break;
            }
            while !world.flights.is_empty() {
                world = self.after(&world, Action::Land(0));
            }
            while let Some(sync) = world.syncs.first() {
                let side = usize::from(sync.sides[0].done);
                world = self.after(&world, Action::Commit(0, side));
            }
        }
        assert!(sent(&world), "{world:?}");
        world = self.after(&world, Action::Crash(0));
        self.after(&world, Action::Restart(0))
    }

    /// What may happen next.
    fn offered(&self, world: &World, actions: &mut Vec<Action>) {
        // What is broken stays broken: nothing more is to be learned behind it.
        if world.ghost.broken.is_some() {
            return;
        }
        let left = &world.left;
        for (n, host) in world.hosts.iter().enumerate() {
            let n = n as u8;
            let alive = world.etcd.alive.get(&Node(n)) == Some(&Incarnation(host.incarnation));
            if !host.up {
                actions.push(Action::Restart(n));
                if world.etcd.alive.contains_key(&Node(n)) {
                    actions.push(Action::Expire(n));
                }
                continue;
            }
            actions.push(if host.doing.is_some() {
                Action::Do(n)
            } else {
                Action::Turn(n)
            });
            if left.append > 0 {
                actions.push(Action::Append(n));
            }
            if left.expunge > 0 {
                actions.extend(host.mail.iter().map(|m| Action::Expunge(n, m.guid)));
            }
            if left.save > 0 {
                actions.push(Action::Save(n));
            }
            if left.expire > 0 && alive {
                actions.push(Action::Expire(n));
            }
            if left.stray > 0 {
                let others = (0..self.nodes).filter(|other| *other != n);
                actions.extend(others.map(|other| Action::Stray(n, other)));
            }
            if left.rogue > 0 {
                actions.extend(host.mail.iter().map(|m| Action::Rogue(n, m.uid)));
            }
            if left.crash > 0 {
                actions.push(Action::Crash(n));
            }
            if left.disk > 0 {
                actions.push(Action::LoseDisk(n));
            }
        }
        actions.extend((0..world.flights.len()).map(Action::Land));
        for (i, sync) in world.syncs.iter().enumerate() {
            for (j, side) in sync.sides.iter().enumerate().filter(|(_, s)| !s.done) {
                actions.push(Action::Commit(i, j));
                if left.kill > 0 {
                    actions.extend((0..=side.plain.len() + 1).map(|k| Action::Kill(i, j, k)));
                }
            }
        }
    }

    /// What must happen in some state, or else the model checks less than it seems to.
    fn possible(&self) -> Vec<Property<Cluster>> {
        vec![
            Property::sometimes(
                "all messages are shown everywhere",
                |c: &Cluster, w: &World| {
                    let all = usize::from(c.budget.append);
                    w.ghost.shown.len() == all && c.is_settled(w)
                },
            ),
            Property::sometimes("a message is staged", |_, w: &World| {
                w.hosts.iter().any(|h| !h.stage.is_empty())
            }),
            Property::sometimes("the gate is closed", |_, w: &World| w.etcd.gate.is_some()),
            Property::sometimes("a node was dropped and is back", |_, w: &World| {
                w.etcd
                    .record()
                    .is_some_and(|s| s.floor > 0 && s.holders.len() == w.hosts.len() && s.uid > 0)
            }),
            Property::sometimes(
                "a message moved after another node had it",
                |_, w: &World| {
                    let moved = |h: &Host| h.gone.iter().any(|g| h.live(g.guid));
                    w.hosts.iter().filter(|h| moved(h)).count() > 1
                },
            ),
            Property::sometimes(
                "a promise is refused to be broken",
                |c: &Cluster, w: &World| {
                    w.syncs.iter().flat_map(|s| &s.sides).any(|side| {
                        let host = &w.hosts[side.node as usize];
                        !side.done && !c.may_renumber(host, &side.renumbering)
                    })
                },
            ),
        ]
    }

    /// More UIDs than a mailbox of this size can need: a few floors.
    fn enough_uids(&self) -> Uid {
        let floor = 2 * self.window * Uid::from(self.nodes);
        let b = &self.budget;
        let faults = b.expire + b.crash + b.kill + b.disk + b.stray + b.rogue;
        floor * (Uid::from(faults) + 3)
    }

    pub fn view(&self, world: &World, node: u8) -> View<Guid, Xid> {
        let etcd = Snapshot {
            stable: world.etcd.stable.clone(),
            tails: world.etcd.tails.clone(),
            gate: world.etcd.gate,
            alive: world.etcd.alive.clone(),
            complete: world.etcd.alive.len() == world.hosts.len(),
        };
        let source = match self.host.source_is_asked_anew {
            true => self.source(world, node),
            false => world.hosts[node as usize].kept.clone(),
        };
        let asked = source.as_ref().map(|from| self.asked(&etcd, from.node));
        let stage = &world.hosts[node as usize].stage;
        let up = |n: &Node| world.hosts[n.0 as usize].up;
        let answer = stage.is_empty() || asked.iter().flatten().all(up);
        let known = asked.iter().flatten().map(|n| self.settled(world, *n));
        let settled: Vec<Guid> = known.flatten().collect();
        let host = &world.hosts[node as usize];
        let mut local = host.local(&settled);
        if !self.host.gone_is_known && !world.etcd.holds(node, host.incarnation) {
            local.entries.retain(|entry| !entry.expunged);
        }
        View {
            etcd,
            local,
            // Who is alive and does not answer is asked again.
            source: source.filter(|_| answer),
        }
    }

    /// Who is asked what became of the messages of a node that joins.
    fn asked(&self, etcd: &Snapshot<Guid, Xid>, source: Node) -> BTreeSet<Node> {
        match self.host.all_are_asked {
            true => etcd.witnesses(source),
            false => [source].into(),
        }
    }

    /// What this node knows to have been made stable.
    fn settled(&self, world: &World, node: Node) -> Vec<Guid> {
        let s = world.etcd.record().map_or(0, |s| s.uid);
        let was_shown = |m: &Msg| world.ghost.shown.get(&m.uid) == Some(&m.guid);
        let stable = |m: &Msg| match self.host.settled_was_stable {
            true => was_shown(m),
            false => m.uid <= s,
        };
        world.hosts[node.0 as usize].settled(s, stable)
    }

    /// What a holder that is up tells one that is none.
    fn source(&self, world: &World, node: u8) -> Option<Source<Guid, Xid>> {
        let stable = world.etcd.record()?;
        let me = Incarnation(world.hosts[node as usize].incarnation);
        if stable.held_by(Node(node), me) {
            return None;
        }
        let of = stable.holders.iter().find(|(n, i)| {
            let host = &world.hosts[n.0 as usize];
            host.up && host.incarnation == i.0 && world.etcd.alive.get(n) == Some(i)
        })?;
        let mut entries = world.hosts[of.0.0 as usize].local(&[]).entries;
        entries.retain(|e| e.uid <= stable.uid);
        Some(Source {
            node: *of.0,
            rev: world.etcd.rev(),
            entries,
        })
    }

    /// One look of the daemon, and what follows from it at once.
    fn turn(&self, world: &mut World, node: u8) -> bool {
        let host = &world.hosts[node as usize];
        // Whoever started a dsync waits for its end.
        let syncs = world.syncs.iter().any(|s| s.sides[0].node == node);
        if !host.up || host.busy || host.doing.is_some() || syncs {
            return false;
        }
        let (config, view) = (self.config(node, host), self.view(world, node));
        let step = world.hosts[node as usize].replica.next(&config, &view);
        if self.split && !matches!(step, Step::Wait | Step::AskPrefix { .. } | Step::Txn(_)) {
            world.hosts[node as usize].doing = Some(step);
            return true;
        }
        self.perform(world, node, step)
    }

    /// Carries a step out.
    fn perform(&self, world: &mut World, node: u8, step: Step8) -> bool {
        let durable = self.host.promise_is_durable;
        let atomic_unstage = !self.rules.skip_settled;
        // What moves messages takes the mailbox's sync lock, as dsync does.
        let locked = world
            .syncs
            .iter()
            .any(|s| s.sides.iter().any(|side| side.node == node));
        let host = &mut world.hosts[node as usize];
        match step {
            Step::Raise { .. }
            | Step::DropLow { .. }
            | Step::Stage { .. }
            | Step::DropMain { .. }
            | Step::Unstage { .. }
                if locked =>
            {
                return false;
            }
            Step::AskPrefix { .. } if !self.host.source_is_asked_anew => {
                world.hosts[node as usize].kept = self.source(world, node);
            }
            Step::Wait | Step::AskPrefix { .. } => return false,
            Step::Enter => {
                world
                    .etcd
                    .alive
                    .insert(Node(node), Incarnation(host.incarnation));
            }
            Step::Txn(txn) => {
                host.busy = true;
                world.flights.push(Flight {
                    node,
                    awaited: true,
                    txn: TxnOrd(txn),
                });
            }
            Step::Promise { end } => {
                host.promised = end;
                if durable {
                    host.durable = host.durable.max(host.next - 1);
                }
            }
            Step::Release { to } => host.promised = to,
            Step::Expose { uid, limit, bound } => {
                host.shown = host.shown.max(uid);
                (host.limit, host.bound) = (limit, bound);
            }
            Step::Gate { closed } => host.gated = closed,
            Step::Sync {
                peer,
                force,
                joining,
            } => {
                return self.start_sync(world, node, peer.0, force, joining);
            }
            Step::Raise { above } => raise(host, above, self.host.interlock),
            Step::DropLow { uids } => uids.iter().for_each(|uid| host.remove(*uid)),
            Step::Adopt { xids } => {
                for (uid, xid) in xids {
                    host.mail
                        .iter_mut()
                        .filter(|m| m.uid == uid)
                        .for_each(|m| m.xid = xid);
                }
            }
            Step::Stage { uids } => {
                for msg in host.mail.iter().filter(|m| uids.contains(&m.uid)) {
                    if !host.stage.iter().any(|(g, _)| *g == msg.guid) {
                        host.stage.push((msg.guid, msg.xid));
                    }
                }
            }
            Step::DropMain { uids } => uids.iter().for_each(|uid| host.remove(*uid)),
            Step::Unstage { guid } => {
                if let Some((_, xid)) = host.stage.iter().find(|(g, _)| *g == guid).copied() {
                    let uid = host.next;
                    host.insert(Msg { uid, guid, xid });
                    host.durable = host.durable.max(uid);
                    if atomic_unstage {
                        host.stage.retain(|(g, _)| *g != guid);
                    }
                }
            }
            Step::DropStaged { guid } => host.stage.retain(|(g, _)| *g != guid),
        }
        true
    }

    /// dsync compares both sides and decides what it will do (facts: dsync-mailbox-import.c).
    fn start_sync(&self, world: &mut World, a: u8, b: u8, force: bool, joining: bool) -> bool {
        let taken = |n: u8| {
            world
                .syncs
                .iter()
                .any(|s| s.sides.iter().any(|side| side.node == n))
        };
        let (left, right) = (&world.hosts[a as usize], &world.hosts[b as usize]);
        if !left.up || !right.up || taken(a) || taken(b) {
            return false;
        }
        // The shortcut: equal next UIDs and counts look like equal mailboxes.
        if !force && left.next == right.next && left.mail.len() == right.mail.len() {
            return false;
        }
        let sides = plan((a, left), (b, right));
        let idle = |s: &Side| s.plain.is_empty() && s.renumbering.is_empty();
        if sides.iter().all(idle) {
            return false;
        }
        world.syncs.push(Dsync { sides, joining });
        true
    }

    /// Applies what `side` of a dsync has to do, up to `commits` commits.
    fn commit(&self, world: &mut World, sync: usize, side: usize, commits: usize) {
        let job = world.syncs[sync].clone();
        let Side {
            node,
            plain,
            renumbering,
            ..
        } = &job.sides[side];
        let unlimited = job.joining && side == 0;
        for op in plain.iter().take(commits) {
            if !self.apply(world, *node, op, unlimited) {
                return;
            }
        }
        let host = &world.hosts[*node as usize];
        let fits = unlimited || self.fits(host, renumbering);
        if commits > plain.len() && fits && self.may_renumber(host, renumbering) {
            for op in renumbering {
                self.apply(world, *node, op, unlimited);
            }
        }
    }

    /// Whether replication may not bring this UID. A node with a new disk knows no bound.
    fn above_bound(&self, host: &Host, uid: Uid) -> bool {
        self.host.window && host.bound > 0 && uid > host.bound
    }

    /// A message gets a new UID, if the interlock lets it.
    fn rogue(&self, world: &mut World, node: u8, uid: Uid) -> bool {
        let host = &mut world.hosts[node as usize];
        let Some(msg) = host.mail.iter().find(|m| m.uid == uid).cloned() else {
            return false;
        };
        let (to, guid) = (host.next, msg.guid);
        let op = Op::Renumber {
            from: uid,
            to,
            guid,
        };
        if !self.may_renumber(host, std::slice::from_ref(&op)) || self.above_bound(host, to) {
            return false;
        }
        world.left.rogue -= 1;
        self.apply(world, node, &op, false)
    }

    /// The interlock: no UID above the bound.
    fn fits(&self, host: &Host, ops: &[Op]) -> bool {
        let mut next = host.next;
        ops.iter().all(|op| {
            if let Op::Renumber { to: uid, .. } | Op::Import { uid, .. } = op {
                next = next.max(*uid) + 1;
            }
            !self.above_bound(host, next - 1)
        })
    }

    /// The interlock: nothing that is shown or promised changes its UID.
    fn may_renumber(&self, host: &Host, ops: &[Op]) -> bool {
        let fixed = host.shown.max(host.promised);
        let touches = |op: &Op| matches!(op, Op::Renumber { from, .. } if *from <= fixed);
        !self.host.interlock || !ops.iter().any(touches)
    }

    /// One change by dsync; false: refused.
    fn apply(&self, world: &mut World, node: u8, op: &Op, unlimited: bool) -> bool {
        let known = |guid: Guid| {
            let listed = |t: &At<Tail<Guid, Xid>>| t.value.entries.iter().any(|e| e.guid == guid);
            world.etcd.tails.values().any(listed)
                || world.ghost.shown.values().any(|g| *g == guid)
                || unlimited
        };
        let known = match op {
            Op::Import { guid, .. } => known(*guid),
            _ => true,
        };
        let host = &mut world.hosts[node as usize];
        let refused = |uid: Uid| !unlimited && self.above_bound(host, uid);
        match op {
            Op::Expunge { uid, guid } => {
                if host.mail.iter().any(|m| m.uid == *uid && m.guid == *guid) {
                    host.remove(*uid);
                }
            }
            Op::Import { uid, guid, xid } => {
                let uid = (*uid).max(host.next);
                if refused(uid) || (self.host.xids_travel && !known) {
                    return false;
                }
                let xid = if self.host.xids_travel {
                    *xid
                } else {
                    new_xid(node, host)
                };
                host.insert(Msg {
                    uid,
                    guid: *guid,
                    xid,
                });
            }
            Op::Renumber { from, to, guid } => {
                let uid = (*to).max(host.next);
                let Some(msg) = host.mail.iter().find(|m| m.uid == *from && m.guid == *guid) else {
                    return true;
                };
                let msg = Msg { uid, ..msg.clone() };
                host.remove(*from);
                host.insert(msg);
                // The old one may only go when the new one is on the disk.
                host.durable = host.durable.max(uid);
            }
            Op::Next { uid } => {
                if refused(*uid - 1) {
                    return false;
                }
                host.next = host.next.max(*uid);
            }
        }
        true
    }

    /// A transaction reaches etcd.
    fn land(&self, world: &mut World, flight: usize) {
        let Flight {
            node,
            awaited,
            txn: TxnOrd(txn),
        } = world.flights.remove(flight);
        let holds = txn.when.iter().all(|c| holds(&world.etcd, c));
        if holds {
            for put in txn.then {
                write(&mut world.etcd, put);
            }
        }
        if awaited {
            let host = &mut world.hosts[node as usize];
            host.busy = false;
            host.replica.txn_done(holds.then_some(FRESH));
        }
    }

    /// The power goes: what was only in memory, or not yet on the disk, is gone.
    fn crash(&self, world: &mut World, node: u8) {
        world
            .flights
            .iter_mut()
            .filter(|f| f.node == node)
            .for_each(|f| f.awaited = false);
        world
            .syncs
            .retain(|s| s.sides.iter().all(|side| side.node != node));
        let host = &mut world.hosts[node as usize];
        host.up = false;
        host.busy = false;
        host.doing = None;
        host.replica = Replica::default();
        host.gated = false;
        host.promised = if self.host.promised_over_crash {
            ALL_PROMISED
        } else {
            0
        };
        host.limit = host.shown + self.window;
        host.bound = host.limit;
        let durable = host.durable;
        host.mail.retain(|m| m.uid <= durable);
        host.gone.retain(|m| m.uid <= durable);
        host.next = host.next.min(durable + 1);
    }

    fn lose_disk(&self, world: &mut World, node: u8) {
        let number = world.hosts[node as usize].incarnation;
        let held = world.hosts[node as usize].mail.clone();
        let staged = world.hosts[node as usize].stage.clone();
        self.crash(world, node);
        let blank = self.empty_world().hosts[0].clone();
        world.hosts[node as usize] = Host {
            up: false,
            // Without the rule the disk comes back as if nothing had been.
            incarnation: number + 1,
            promised: ALL_PROMISED,
            limit: 0,
            bound: 0,
            ..blank
        };
        let guids = held
            .iter()
            .map(|m| m.guid)
            .chain(staged.iter().map(|(g, _)| *g));
        for guid in guids {
            let kept = world
                .hosts
                .iter()
                .any(|h| h.live(guid) || h.stage.iter().any(|(g, _)| *g == guid));
            if !kept {
                world.ghost.lost |= 1 << guid;
            }
        }
    }

    fn append(&self, world: &mut World, node: u8) -> bool {
        let host = &mut world.hosts[node as usize];
        if !host.up || host.gated || (self.host.window && host.next > host.limit) {
            return false;
        }
        world.left.append -= 1;
        let guid = self.budget.append - world.left.append;
        let xid = match self.names_are_fresh() {
            true => guid,
            false => self.give_xid(node, host),
        };
        let uid = host.next;
        host.insert(Msg { uid, guid, xid });
        host.durable = host.durable.max(uid);
        world.ghost.acked |= 1 << guid;
        true
    }

    fn give_xid(&self, node: u8, host: &mut Host) -> Xid {
        host.counter += 1;
        let disk = if self.host.new_incarnation {
            host.incarnation as u8
        } else {
            0
        };
        (node << 5) | (disk << 3) | host.counter
    }

    fn expunge(&self, world: &mut World, node: u8, guid: Guid) -> bool {
        let host = &mut world.hosts[node as usize];
        let uids: Vec<_> = host
            .mail
            .iter()
            .filter(|m| m.guid == guid)
            .map(|m| m.uid)
            .collect();
        uids.iter().for_each(|uid| host.remove(*uid));
        world.left.expunge -= 1;
        world.ghost.expunged |= 1 << guid;
        !uids.is_empty()
    }

    fn save(&self, world: &mut World, node: u8) {
        world.left.save -= 1;
        let host = &world.hosts[node as usize];
        let mut saved = Saved {
            mark: host.shown,
            numbers: BTreeMap::new(),
            known: 0,
        };
        for msg in &host.mail {
            saved.known |= 1 << msg.guid;
            let highest = saved.numbers.entry(msg.xid >> 3).or_insert(0);
            *highest = (*highest).max(msg.xid & 7);
        }
        world.ghost.saved = Some(saved);
    }

    /// Whether XHXID on this host, given the saved state, announces this message.
    fn announces(&self, saved: &Saved, host: &Host, msg: &Msg) -> bool {
        if self.host.mark_in_state {
            return msg.uid > saved.mark.min(host.shown);
        }
        msg.xid & 7 > saved.numbers.get(&(msg.xid >> 3)).copied().unwrap_or(0)
    }

    /// Looks at everything a client can see, and remembers it.
    fn observe(&self, before: &World, world: &mut World) {
        let broken = self
            .appeared_below(before, world)
            .or_else(|| self.shown_twice(world));
        let broken = broken
            .or_else(|| self.xid_twice(world))
            .or_else(|| self.missed(world));
        world.ghost.broken = broken.or_else(|| self.lost(world));
    }

    /// I2: nothing appears below a UIDNEXT that the node has shown.
    fn appeared_below(&self, before: &World, world: &World) -> Option<Broken> {
        let pairs = before.hosts.iter().zip(&world.hosts);
        let mut same_disk = pairs.filter(|(b, h)| b.incarnation == h.incarnation);
        same_disk
            .any(|(b, h)| {
                h.mail
                    .iter()
                    .any(|m| m.uid <= b.shown && !b.mail.contains(m))
            })
            .then_some(Broken::I2)
    }

    /// I1: a UID names one message, on every node, and a message has one UID (I5). And a node
    /// that shows a UID has its message, or else it would appear too late (I2).
    fn shown_twice(&self, world: &mut World) -> Option<Broken> {
        let World { hosts, ghost, .. } = world;
        for host in hosts.iter() {
            for msg in host.mail.iter().filter(|m| m.uid <= host.shown) {
                match ghost.shown.get(&msg.uid) {
                    Some(guid) if *guid != msg.guid => return Some(Broken::I1),
                    Some(_) => {}
                    None if ghost.shown.values().any(|g| *g == msg.guid) => {
                        return Some(Broken::I5);
                    }
                    None => {
                        ghost.shown.insert(msg.uid, msg.guid);
                    }
                }
            }
        }
        for host in hosts.iter() {
            for (uid, guid) in ghost.shown.iter().filter(|(uid, _)| **uid <= host.shown) {
                let here = host.mail.iter().any(|m| m.uid == *uid);
                if !here && ghost.expunged & (1 << guid) == 0 {
                    return Some(Broken::I1);
                }
            }
        }
        None
    }

    /// I3: an XID names one message, and once its UID was shown the message keeps it. What came
    /// into the mailbox in the cluster has one XID from the first moment on any node.
    fn xid_twice(&self, world: &mut World) -> Option<Broken> {
        let World { hosts, ghost, .. } = world;
        let mut names: BTreeMap<Xid, Guid> = ghost.xids.iter().map(|(g, x)| (*x, *g)).collect();
        for host in hosts.iter() {
            for msg in &host.mail {
                if *names.entry(msg.xid).or_insert(msg.guid) != msg.guid {
                    return Some(Broken::I3);
                }
                let born_here = msg.guid <= self.budget.append;
                let twin = |o: &Msg| o.guid == msg.guid && o.xid != msg.xid;
                if born_here && hosts.iter().flat_map(|h| &h.mail).any(twin) {
                    return Some(Broken::I3);
                }
                let shown = msg.uid <= host.shown;
                let xid = ghost.xids.get(&msg.guid).copied();
                if shown && xid.is_some_and(|xid| xid != msg.xid) {
                    return Some(Broken::I3);
                }
                if shown {
                    ghost.xids.insert(msg.guid, msg.xid);
                }
            }
        }
        None
    }

    /// I4: a saved state announces, on any node, all that its client lacks.
    fn missed(&self, world: &World) -> Option<Broken> {
        let saved = world.ghost.saved.as_ref()?;
        let mut up = world.hosts.iter().filter(|h| h.up);
        up.any(|host| {
            let unknown = host
                .mail
                .iter()
                .filter(|m| saved.known & (1 << m.guid) == 0);
            unknown.into_iter().any(|m| !self.announces(saved, host, m))
        })
        .then_some(Broken::I4)
    }

    /// I5: what was acknowledged is on a disk, unless a client or the disk's loss took it.
    fn lost(&self, world: &World) -> Option<Broken> {
        let owed = world.ghost.acked & !world.ghost.expunged & !world.ghost.lost;
        let held = |guid: Guid| {
            world
                .hosts
                .iter()
                .any(|h| h.live(guid) || h.stage.iter().any(|(g, _)| *g == guid))
        };
        (1..=15)
            .any(|g| owed & (1 << g) != 0 && !held(g))
            .then_some(Broken::I5)
    }

    /// I6: plays on without further faults and says whether everything becomes stable.
    ///
    /// Otherwise gives the worlds of the last rounds.
    pub fn settle(&self, world: &World) -> Result<(), Vec<World>> {
        let mut rounds = Vec::new();
        let mut world = world.clone();
        world.flights.retain(|f| f.awaited);
        let stays = |s: &Stable| {
            let mut holders = s.holders.iter();
            holders.any(|(n, i)| world.hosts[n.0 as usize].incarnation == i.0)
        };
        let prefix_survives = world.etcd.record().is_none_or(stays);
        if !prefix_survives {
            return Ok(());
        }
        for node in 0..self.nodes {
            world.hosts[node as usize].up = true;
        }
        for round in 0..ROUNDS {
            if self.is_settled(&world) {
                return Ok(());
            }
            self.play_round(&mut world, round);
            rounds.push(world.clone());
        }
        Err(rounds.split_off(ROUNDS - 3))
    }

    /// In every other round a dsync ends before the next node's turn: who waits for a mailbox's lock
    /// gets it at some time, however often the others take it.
    fn play_round(&self, world: &mut World, round: usize) {
        let all: Vec<u8> = (0..self.nodes).collect();
        let together = if round.is_multiple_of(2) {
            all.len()
        } else {
            1
        };
        for nodes in all.chunks(together) {
            self.play_nodes(world, nodes);
        }
    }

    /// Each of these takes a turn; transactions arrive, and dsyncs run to their ends.
    fn play_nodes(&self, world: &mut World, nodes: &[u8]) {
        for &node in nodes {
            if let Some(step) = world.hosts[node as usize].doing.take() {
                self.perform(world, node, step);
            } else {
                self.turn(world, node);
            }
            reduce::fold_revisions(world);
            // What nobody waits for any more is late.
            while let Some(flight) = world.flights.iter().position(|f| f.awaited) {
                self.land(world, flight);
                reduce::fold_revisions(world);
            }
        }
        for sync in 0..world.syncs.len() {
            for side in 0..2 {
                if !world.syncs[sync].sides[side].done {
                    self.commit(world, sync, side, usize::MAX);
                }
            }
        }
        world.syncs.clear();
    }

    fn is_settled(&self, world: &World) -> bool {
        let s = world.etcd.record().map_or(0, |s| s.uid);
        // What a client expunged may still be on its way out.
        let kept = |h: &Host| {
            let expunged = world.ghost.expunged;
            h.mail
                .iter()
                .filter(|m| expunged & (1 << m.guid) == 0)
                .cloned()
                .collect::<Vec<_>>()
        };
        let first = kept(&world.hosts[0]);
        world.etcd.gate.is_none()
            && world.hosts.iter().enumerate().all(|(n, h)| {
                (world.etcd.holds(n as u8, h.incarnation) || world.etcd.stable.is_none())
                    && h.shown == s
                    && h.next == s + 1
                    && h.stage.is_empty()
                    && !h.gated
                    && kept(h) == first
            })
    }
}

fn new_xid(node: u8, host: &mut Host) -> Xid {
    host.counter += 1;
    (node << 5) | ((host.incarnation as u8) << 3) | host.counter
}

/// Raises the next UID, and copies low messages above it.
fn raise(host: &mut Host, above: Uid, interlock: bool) {
    host.next = host.next.max(above + 1);
    let low: Vec<Msg> = host
        .mail
        .iter()
        .filter(|m| m.uid <= above && m.uid > host.shown)
        .filter(|m| {
            let copy = |o: &Msg| o.uid > above && o.guid == m.guid && o.xid == m.xid;
            !host.mail.iter().any(copy)
        })
        .cloned()
        .collect();
    if interlock && low.iter().any(|m| m.uid <= host.promised) {
        return;
    }
    for msg in low {
        let uid = host.next;
        host.insert(Msg { uid, ..msg });
    }
    host.durable = host.durable.max(host.next - 1);
}

/// Both sides' work: what differs gets one UID on both.
fn plan(a: (u8, &Host), b: (u8, &Host)) -> [Side; 2] {
    let side = |node| Side {
        node,
        plain: Vec::new(),
        renumbering: Vec::new(),
        done: false,
    };
    let mut sides = [side(a.0), side(b.0)];
    let hosts = [a.1, b.1];
    let mut next = a.1.next.max(b.1.next);
    let odd = [
        unmatched(a.1, b.1, &mut sides[0]),
        unmatched(b.1, a.1, &mut sides[1]),
    ];
    let mut queue: Vec<(Uid, usize, Msg)> = Vec::new();
    for (i, list) in odd.iter().enumerate() {
        queue.extend(list.iter().map(|m| (m.uid, i, m.clone())));
    }
    queue.sort_by_key(|(uid, i, _)| (*uid, *i));
    let mut paired: Vec<Guid> = Vec::new();
    for (_, here, msg) in queue {
        let there = 1 - here;
        let twin = odd[there].iter().find(|m| m.guid == msg.guid);
        if let Some(twin) = twin {
            if paired.contains(&msg.guid) {
                continue;
            }
            paired.push(msg.guid);
            let to = if msg.uid >= hosts[there].next {
                msg.uid
            } else if twin.uid >= hosts[here].next {
                twin.uid
            } else {
                next += 1;
                next - 1
            };
            for (i, m) in [(here, &msg), (there, twin)] {
                if m.uid != to {
                    let op = Op::Renumber {
                        from: m.uid,
                        to,
                        guid: m.guid,
                    };
                    sides[i].renumbering.push(op);
                }
            }
            continue;
        }
        let import = |uid| Op::Import {
            uid,
            guid: msg.guid,
            xid: msg.xid,
        };
        if msg.uid >= hosts[there].next {
            sides[there].plain.push(import(msg.uid));
            continue;
        }
        let to = next;
        next += 1;
        sides[here].renumbering.push(Op::Renumber {
            from: msg.uid,
            to,
            guid: msg.guid,
        });
        sides[there].renumbering.push(import(to));
    }
    for (i, side) in sides.iter_mut().enumerate() {
        side.renumbering.sort_by_key(|op| match op {
            Op::Renumber { to, .. } => *to,
            Op::Import { uid, .. } => *uid,
            _ => 0,
        });
        if hosts[i].next < next {
            side.renumbering.push(Op::Next { uid: next });
        }
    }
    sides
}

/// The live messages of `one` that `other` does not have at the same UID; what `other` expunged
/// is expunged here too.
fn unmatched(one: &Host, other: &Host, side: &mut Side) -> Vec<Msg> {
    let at = |list: &[Msg], m: &Msg| list.iter().any(|o| o.uid == m.uid && o.guid == m.guid);
    let mut odd = Vec::new();
    for msg in one.mail.iter().filter(|m| !at(&other.mail, m)) {
        if at(&other.gone, msg) {
            side.plain.push(Op::Expunge {
                uid: msg.uid,
                guid: msg.guid,
            });
        } else {
            odd.push(msg.clone());
        }
    }
    odd
}

fn holds(etcd: &Etcd, condition: &Condition) -> bool {
    match condition {
        Condition::Stable(rev) => etcd.rev() == *rev,
        Condition::Tail(node, rev) => etcd.tails.get(node).map_or(Rev(0), |t| t.rev) == *rev,
        Condition::Dead(node, incarnation) => etcd.alive.get(node) != Some(incarnation),
        Condition::GateOpen => etcd.gate.is_none(),
        Condition::GateOf(node) => etcd.gate == Some(*node),
    }
}

fn write(etcd: &mut Etcd, put: Put<Guid, Xid>) {
    match put {
        Put::Stable(value) => etcd.stable = Some(At { rev: FRESH, value }),
        Put::Tail(node, value) => {
            etcd.tails.insert(node, At { rev: FRESH, value });
        }
        Put::DropTail(node) => {
            etcd.tails.remove(&node);
        }
        Put::Gate(node) => etcd.gate = Some(node),
        Put::DropGate => etcd.gate = None,
    }
}

impl Model for Cluster {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        vec![match &self.start {
            Some(world) => self.kind(world),
            None => self.kind(&self.first_world()),
        }]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        self.offered(world, actions);
        if self.walking {
            actions.retain(|action| self.next_state(world, action.clone()).is_some());
        }
    }

    fn next_state(&self, before: &World, action: Action) -> Option<World> {
        let mut world = before.clone();
        let happened = match action {
            Action::Append(n) => self.append(&mut world, n),
            Action::Expunge(n, guid) => self.expunge(&mut world, n, guid),
            Action::Save(n) => {
                self.save(&mut world, n);
                true
            }
            Action::Stray(n, other) => {
                world.left.stray -= 1;
                self.start_sync(&mut world, n, other, true, false)
            }
            Action::Rogue(n, uid) => self.rogue(&mut world, n, uid),
            Action::Turn(n) => self.turn(&mut world, n),
            Action::Do(n) => {
                let step = world.hosts[n as usize].doing.take()?;
                self.perform(&mut world, n, step)
            }
            Action::Land(i) => {
                self.land(&mut world, i);
                true
            }
            Action::Commit(i, j) => {
                self.commit(&mut world, i, j, usize::MAX);
                world.syncs[i].sides[j].done = true;
                if world.syncs[i].sides.iter().all(|s| s.done) {
                    world.syncs.remove(i);
                }
                true
            }
            Action::Kill(i, j, commits) => {
                world.left.kill -= 1;
                self.commit(&mut world, i, j, commits);
                world.syncs.remove(i);
                true
            }
            Action::Expire(n) => {
                if world.hosts[n as usize].up {
                    world.left.expire -= 1;
                }
                world.etcd.alive.remove(&Node(n));
                if world.etcd.gate == Some(Node(n)) {
                    world.etcd.gate = None;
                }
                true
            }
            Action::Crash(n) => {
                world.left.crash -= 1;
                self.crash(&mut world, n);
                true
            }
            Action::LoseDisk(n) => {
                world.left.disk -= 1;
                self.lose_disk(&mut world, n);
                true
            }
            Action::Restart(n) => {
                world.hosts[n as usize].up = true;
                true
            }
        };
        if !happened {
            return None;
        }
        self.observe(before, &mut world);
        reduce::canonical(self, &mut world);
        Some(world)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut all = vec![
            Property::always(
                "I1 a UID names one message everywhere for ever",
                |_, w: &World| w.ghost.broken != Some(Broken::I1),
            ),
            Property::always(
                "I2 nothing appears below a UIDNEXT shown",
                |_, w: &World| w.ghost.broken != Some(Broken::I2),
            ),
            Property::always("I3 an XID is unique and permanent", |_, w: &World| {
                w.ghost.broken != Some(Broken::I3)
            }),
            Property::always(
                "I4 a saved state announces what is missing",
                |_, w: &World| w.ghost.broken != Some(Broken::I4),
            ),
            Property::always("I5 nothing is lost or duplicated", |_, w: &World| {
                w.ghost.broken != Some(Broken::I5)
            }),
            Property::always(
                "no schedule burns UIDs without end",
                |c: &Cluster, w: &World| w.hosts.iter().all(|h| h.next <= c.enough_uids()),
            ),
            Property::always("I6 everything becomes stable", |c: &Cluster, w: &World| {
                let due =
                    c.settle_one_in != 0 && stateright_hash(w).is_multiple_of(c.settle_one_in);
                !due || c.settle(w).is_ok()
            }),
        ];
        all.extend(
            self.possible()
                .into_iter()
                .filter(|p| self.events.contains(&p.name)),
        );
        all
    }
}
