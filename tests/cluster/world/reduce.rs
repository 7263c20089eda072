//! Worlds that no future can tell apart are made one: fewer states, and the same verdicts.
//!
//! Each part says why nothing is lost by it, and which rules that takes: where one of them is left
//! out the part is left out, too. [`Cluster::plain`] leaves out all of it, and a test compares.

use super::{
    At, CURRENT, Cluster, Condition, Flight, Guid, Host, Msg, Node, Op, Put, Rev, STALE, Step,
    Tail, Uid, World, Xid,
};
use std::collections::BTreeMap;

/// Makes the world one of its kind.
pub fn canonical(cluster: &Cluster, world: &mut World) {
    fold_revisions(world);
    if !cluster.plain {
        answer_the_refused(world);
        end_idle_syncs(world);
        forget_durability(world);
        forget_what_is_gone(cluster, world);
        rename(cluster, world);
    }
    world.flights.sort();
}

/// Revisions are only ever compared for equality with the current one, so all that matters is
/// whether one that somebody holds is current, stale, or "absent".
pub fn fold_revisions(world: &mut World) {
    let World {
        hosts,
        etcd,
        flights,
        ..
    } = world;
    let fold = |held: &mut Rev, now: Rev| {
        *held = match *held {
            Rev(0) => Rev(0),
            rev if rev == now => CURRENT,
            _ => STALE,
        };
    };
    let tail = |tails: &BTreeMap<Node, At<Tail<Guid, Xid>>>, node: Node| {
        tails.get(&node).map_or(Rev(0), |t| t.rev)
    };
    let doing = hosts.iter_mut().filter_map(|h| match &mut h.doing {
        Some(Step::Txn(txn)) => Some(txn),
        _ => None,
    });
    for txn in flights.iter_mut().map(|f| &mut f.txn.0).chain(doing) {
        for condition in &mut txn.when {
            match condition {
                Condition::Stable(rev) => fold(rev, etcd.rev()),
                Condition::Tail(node, rev) => fold(rev, tail(&etcd.tails, *node)),
                _ => {}
            }
        }
    }
    for (n, host) in hosts.iter_mut().enumerate() {
        let withdrawn = host.replica.withdrawn_mut();
        if let Some(rev) = withdrawn {
            fold(rev, tail(&etcd.tails, Node(n as u8)));
        }
        // It is only asked whether the current tail is that one.
        if *withdrawn == Some(STALE) {
            *withdrawn = None;
        }
    }
    // What a source said of another record is not used.
    if etcd.rev() != CURRENT {
        hosts.iter_mut().for_each(|host| host.kept = None);
    }
    etcd.stable.iter_mut().for_each(|s| s.rev = CURRENT);
    etcd.tails.values_mut().for_each(|t| t.rev = CURRENT);
}

/// A transaction that depends on a revision that is gone never has an effect: no key gets an old
/// revision again, and the record is never deleted. That it arrives does nothing but let its sender
/// go on. Nobody else sees whether it does, and a crash of the sender forgets the same. So what can
/// happen before the answer can happen after it, and it comes at once; one that nobody waits for
/// is forgotten.
fn answer_the_refused(world: &mut World) {
    let record = world.etcd.stable.is_some();
    let refused = |flight: &Flight| {
        flight.txn.0.when.iter().any(|condition| match condition {
            Condition::Stable(rev) => *rev == STALE || (record && *rev == Rev(0)),
            Condition::Tail(_, rev) => *rev == STALE,
            _ => false,
        })
    };
    for flight in world.flights.iter().filter(|f| f.awaited && refused(f)) {
        let host = &mut world.hosts[flight.node as usize];
        host.busy = false;
        host.replica.txn_done(None);
    }
    world.flights.retain(|flight| !refused(flight));
}

/// What a dsync has to do on a side, but would change nothing: no UID comes back, no next UID goes
/// down, while it runs. A side with nothing left to do ends at once: its end frees locks, which
/// nothing that may happen needs to be taken; and a dsync that is killed instead leaves the same
/// behind, and a fault less to come.
fn end_idle_syncs(world: &mut World) {
    let World { hosts, syncs, .. } = world;
    for side in syncs.iter_mut().flat_map(|s| &mut s.sides) {
        let host = &hosts[side.node as usize];
        let works = |op: &Op| match op {
            Op::Expunge { uid, guid } => host.mail.iter().any(|m| m.uid == *uid && m.guid == *guid),
            Op::Next { uid } => host.next < *uid,
            _ => true,
        };
        if side.done {
            side.plain.clear();
            side.renumbering.clear();
        }
        side.plain.retain(works);
        side.renumbering.retain(works);
        side.done = side.plain.is_empty() && side.renumbering.is_empty();
    }
    syncs.retain(|s| s.sides.iter().any(|side| !side.done));
}

/// Where no power is lost any more nobody asks what would survive it.
fn forget_durability(world: &mut World) {
    if world.left.crash == 0 {
        world.hosts.iter_mut().for_each(|h| h.durable = 0);
    }
}

/// An expunge that was agreed on, or lies below the floor, is in no tail any more. It still matters
/// to a dsync or a join with a node that has that very message there, or may get it there; and to
/// who asks whether the message settled, while it exists.
///
/// Where the record goes back, which the rules below prevent, it may get into a tail again.
fn forget_what_is_gone(cluster: &Cluster, world: &mut World) {
    let rules = &cluster.rules;
    let forward =
        rules.advance_checks_stable && rules.publish_checks_stable && rules.join_checks_stable;
    if !forward || !cluster.host.settled_was_stable || !cluster.events.is_empty() {
        return;
    }
    let record = world.etcd.record();
    let base = record.map_or(0, |s| s.uid.max(s.floor));
    let gone = world.hosts.iter().flat_map(|h| &h.gone);
    let mut past: Vec<(Uid, Guid)> = gone.map(|m| (m.uid, m.guid)).collect();
    past.sort_unstable();
    past.dedup();
    past.retain(|(uid, guid)| *uid <= base && is_past(world, *uid, *guid));
    if !past.is_empty() {
        for host in &mut world.hosts {
            host.gone.retain(|m| !past.contains(&(m.uid, m.guid)));
        }
    }
}

/// Whether this message is not at this UID anywhere, nor ever will be, and what became of it there
/// is of no interest.
fn is_past(world: &World, uid: Uid, guid: Guid) -> bool {
    let comes = |op: &Op| matches!(op, Op::Import { guid: g, .. } if *g == guid);
    let ops = || {
        let sides = world.syncs.iter().flat_map(|s| &s.sides);
        sides.flat_map(|s| s.plain.iter().chain(&s.renumbering))
    };
    let there = |h: &Host| h.live(guid) || h.stage.iter().any(|(g, _)| *g == guid);
    // A message that is nowhere comes from nowhere.
    if !world.hosts.iter().any(there) && !ops().any(comes) {
        return true;
    }
    let here = |m: &Msg| m.uid == uid && m.guid == guid;
    let moves = |op: &Op| match op {
        Op::Import { uid: u, .. } | Op::Expunge { uid: u, .. } => *u == uid,
        Op::Renumber { from, to, .. } => *from == uid || *to == uid,
        Op::Next { .. } => false,
    };
    // No node gives a message a UID below its next one, which only a lost disk or a power loss
    // lowers.
    let passed = |h: &Host| h.next > uid && (world.left.crash == 0 || h.durable >= uid);
    world.left.disk == 0
        && world.ghost.shown.get(&uid) != Some(&guid)
        && !world.hosts.iter().any(|h| h.mail.iter().any(here))
        && !ops().any(moves)
        && world.hosts.iter().all(passed)
}

/// GUIDs and XIDs are asked for equality only, by the core and around it, and lists of messages are
/// in the order of UIDs, or of staging. So a world in which two messages have changed names is
/// the same; they are numbered as they are found.
fn rename(cluster: &Cluster, world: &mut World) {
    let used = cluster.budget.append - world.left.append;
    let mut order: Vec<Guid> = Vec::with_capacity(used.into());
    {
        let mut find = |guid: Guid| {
            if guid <= used && !order.contains(&guid) {
                order.push(guid);
            }
        };
        for host in &world.hosts {
            host.mail.iter().for_each(|m| find(m.guid));
            host.gone.iter().for_each(|m| find(m.guid));
            host.stage.iter().for_each(|(guid, _)| find(*guid));
        }
        world.ghost.shown.values().for_each(|guid| find(*guid));
        let tails = world.etcd.tails.values().flat_map(|t| &t.value.entries);
        tails.for_each(|e| find(e.guid));
        (1..=used).for_each(&mut find);
    }
    let mut names: [Guid; 16] = std::array::from_fn(|guid| guid as Guid);
    for (guid, name) in order.iter().zip(1..) {
        names[*guid as usize] = name;
    }
    let one_name_each = cluster.names_are_fresh();
    if !one_name_each && names.iter().zip(0..).all(|(name, guid)| *name == guid) {
        return;
    }
    let xid = |guid: Guid, xid: &mut Xid| {
        if one_name_each {
            *xid = guid;
        }
    };
    let message = |guid: &mut Guid, x: &mut Xid| {
        *guid = names[*guid as usize];
        xid(*guid, x);
    };
    for host in &mut world.hosts {
        for msg in host.mail.iter_mut().chain(&mut host.gone) {
            message(&mut msg.guid, &mut msg.xid);
        }
        for (guid, xid) in &mut host.stage {
            message(guid, xid);
        }
        if one_name_each {
            host.counter = 0;
        }
        if let Some(Step::Unstage { guid } | Step::DropStaged { guid }) = &mut host.doing {
            *guid = names[*guid as usize];
        }
    }
    let written = world.flights.iter_mut().flat_map(|f| &mut f.txn.0.then);
    let sent = written.filter_map(|put| match put {
        Put::Tail(_, tail) => Some(tail),
        _ => None,
    });
    let tails = world.etcd.tails.values_mut().map(|t| &mut t.value);
    for entry in tails.chain(sent).flat_map(|t| &mut t.entries) {
        message(&mut entry.guid, &mut entry.xid);
    }
    let sides = world.syncs.iter_mut().flat_map(|s| &mut s.sides);
    for op in sides.flat_map(|s| s.plain.iter_mut().chain(&mut s.renumbering)) {
        match op {
            Op::Import { guid, xid, .. } => message(guid, xid),
            Op::Expunge { guid, .. } | Op::Renumber { guid, .. } => *guid = names[*guid as usize],
            Op::Next { .. } => {}
        }
    }
    let ghost = &mut world.ghost;
    let bits = |set: &mut u16| {
        let one = |guid: usize| (*set >> guid & 1) << names[guid];
        *set = (0..16).map(one).sum();
    };
    let sets = [&mut ghost.acked, &mut ghost.expunged, &mut ghost.lost];
    sets.into_iter().for_each(bits);
    if let Some(saved) = &mut ghost.saved {
        bits(&mut saved.known);
        if one_name_each {
            saved.numbers.clear();
        }
    }
    for guid in ghost.shown.values_mut() {
        *guid = names[*guid as usize];
    }
    let xids = std::mem::take(&mut ghost.xids);
    let named = |(mut guid, mut xid)| {
        message(&mut guid, &mut xid);
        (guid, xid)
    };
    ghost.xids = xids.into_iter().map(named).collect();
}

impl Cluster {
    /// Whether every new message's XID is one that no message had before: a counter that never goes
    /// back, on a disk with a number of its own. Then it does not matter which one it is, and a
    /// message may as well have its GUID's. (`mark_in_state`: a saved state does not look at its
    /// parts. What was there before the cluster has several names.)
    pub(super) fn names_are_fresh(&self) -> bool {
        let host = &self.host;
        !self.plain
            && self.before == 0
            && host.new_incarnation
            && host.xids_travel
            && host.mark_in_state
    }
}
