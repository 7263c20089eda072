//! One node's part in one mailbox: what it sees in, the next step out.

use super::compare::{agreed, conflict, lacks, misnamed};
use super::types::{
    ALL_PROMISED, At, Condition, Entry, Ident, Incarnation, Kind, Local, Node, Put, Rev, Snapshot,
    Source, Stable, Step, Tail, Txn, Uid, View,
};
use std::collections::{BTreeMap, BTreeSet};

/// What is fixed for a node.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Config {
    /// This node.
    pub me: Node,
    /// Its disk.
    pub incarnation: Incarnation,
    /// How many UIDs above S a node may give out by itself.
    pub window: Uid,
    /// How many messages one tail carries at most, or get other XIDs at once; the rest follows when
    /// S has moved.
    pub chunk: usize,
    /// Close the gate after so many syncs that did not settle a conflict.
    pub gate_after: u8,
    /// The rules; all of them, unless a model checker wants to see what one is good for.
    pub rules: Rules,
}

/// The rules, each of which the model checker can switch off. [`Rules::default`] has them all.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
#[allow(missing_docs)]
pub struct Rules {
    pub promise: bool,
    pub withdraw_checks_stable: bool,
    pub withdraw_afresh: bool,
    pub publish_checks_tail: bool,
    pub publish_checks_stable: bool,
    pub advance_checks_stable: bool,
    pub advance_checks_tails: bool,
    pub advance_below_next: bool,
    pub compare_guids: bool,
    pub compare_xids: bool,
    pub adopt_xids: bool,
    pub expose_as_holder: bool,
    pub shrink_as_holder: bool,
    pub room_below: bool,
    pub stage: bool,
    pub join_checks_stable: bool,
    pub join_compares: bool,
    pub join_promises: bool,
    pub join_passes_stable: bool,
    pub skip_settled: bool,
    pub force_sync: bool,
    pub open_gate: bool,
    pub correct_next: bool,
    /// No rule but a short cut: who publishes last moves S in the same transaction.
    pub conclude: bool,
}

impl Default for Rules {
    fn default() -> Self {
        Rules {
            promise: true,
            withdraw_checks_stable: true,
            withdraw_afresh: true,
            publish_checks_tail: true,
            publish_checks_stable: true,
            advance_checks_stable: true,
            advance_checks_tails: true,
            advance_below_next: true,
            compare_guids: true,
            compare_xids: true,
            adopt_xids: true,
            expose_as_holder: true,
            shrink_as_holder: true,
            room_below: true,
            stage: true,
            join_checks_stable: true,
            join_compares: true,
            join_promises: true,
            join_passes_stable: true,
            skip_settled: true,
            force_sync: true,
            open_gate: true,
            correct_next: true,
            conclude: true,
        }
    }
}

/// What a node remembers of a mailbox between two steps, in memory only.
#[derive(Clone, Default, PartialEq, Eq, Hash, Debug)]
pub struct Replica {
    /// The loose tail that this life of the daemon wrote last, if nothing was tried since: no
    /// earlier transaction of ours can land any more.
    withdrawn: Option<Rev>,
    /// Forced syncs since S moved last, as far as [`Config::gate_after`] asks.
    tries: u8,
    /// The transaction under way.
    pending: Option<Kind>,
}

type Tails<'a, G, X> = Vec<(Node, Option<&'a At<Tail<G, X>>>)>;

/// The view of a holder, with what nearly every rule asks for.
struct Holder<'a, G, X> {
    config: &'a Config,
    view: &'a View<G, X>,
    at: Rev,
    stable: &'a Stable,
    /// The higher of S and the floor: what lies at or below it is settled, or must move.
    base: Uid,
    /// Our own mailbox above the base, as a tail.
    mine: Tail<G, X>,
    /// What we published.
    published: Option<&'a At<Tail<G, X>>>,
    /// What the other holders published.
    others: Tails<'a, G, X>,
}

impl Replica {
    /// The transaction under way ended; `wrote` is the revision it wrote, `None` if its
    /// conditions did not hold. (When the outcome is not known the daemon forgets the
    /// [`Replica`] and starts with a new one, as after a restart.)
    pub fn txn_done(&mut self, wrote: Option<Rev>) {
        match (self.pending.take(), wrote) {
            (Some(Kind::Withdraw), Some(rev)) => self.withdrawn = Some(rev),
            (Some(Kind::Advance | Kind::Conclude), Some(_)) => self.tries = 0,
            _ => {}
        }
    }

    /// The revision of the loose tail that this life wrote last; for the model checker, which
    /// renumbers revisions to keep its states few.
    pub fn withdrawn_mut(&mut self) -> &mut Option<Rev> {
        &mut self.withdrawn
    }

    /// What to do next.
    pub fn next<G: Ident, X: Ident>(&mut self, config: &Config, view: &View<G, X>) -> Step<G, X> {
        let step = decide(self, config, view);
        self.note(config, &step);
        step
    }

    /// Remembers what a step means for the next one.
    fn note<G, X>(&mut self, config: &Config, step: &Step<G, X>) {
        match step {
            Step::Txn(txn) => {
                self.pending = Some(txn.kind);
                let ours = [Kind::Publish, Kind::Conclude, Kind::Withdraw, Kind::Join];
                if ours.contains(&txn.kind) {
                    self.withdrawn = None;
                }
            }
            Step::Sync {
                force: true,
                joining: false,
                ..
            } => {
                let most = config.gate_after.max(1);
                self.tries = self.tries.saturating_add(1).min(most);
            }
            _ => {}
        }
    }
}

/// The first rule that has something to say.
fn decide<G: Ident, X: Ident>(replica: &Replica, config: &Config, view: &View<G, X>) -> Step<G, X> {
    if view.etcd.alive.get(&config.me) != Some(&config.incarnation) {
        return Step::Enter;
    }
    let Some(At { rev, value: stable }) = &view.etcd.stable else {
        return create(config, view);
    };
    if !stable.held_by(config.me, config.incarnation) {
        if !config.rules.expose_as_holder && view.local.shown < stable.uid {
            return expose(config, stable);
        }
        return join(config, view, *rev, stable);
    }
    let holder = Holder::new(config, view, *rev, stable);
    holder
        .follow()
        .or_else(|| holder.unstage())
        .or_else(|| holder.rest(replica))
        .or_else(|| holder.shrink())
        .or_else(|| holder.make_room(replica))
        .or_else(|| holder.adopt(replica))
        .or_else(|| holder.dedupe(replica))
        .or_else(|| holder.settle(replica))
        // Before publishing what came since: where messages keep coming, there is always some.
        .or_else(|| holder.advance())
        .or_else(|| holder.publish())
        .or_else(|| holder.push())
        .unwrap_or(Step::Wait)
}

/// The record of a mailbox that has none: held by all who are there. Where some node is not,
/// the floor is above what it may have numbered by itself.
///
/// Until there is something in it there is no record, but room: a host takes no message before it
/// was told how far its UIDs go.
fn create<G: Ident, X: Ident>(config: &Config, view: &View<G, X>) -> Step<G, X> {
    if view.local.limit < config.window {
        return expose(config, &Stable::new(view.etcd.alive.clone()));
    }
    if view.local.next <= 1 {
        return Step::Wait;
    }
    let floor = if view.etcd.complete {
        0
    } else {
        2 * config.window
    };
    let stable = Stable {
        floor,
        ..Stable::new(view.etcd.alive.clone())
    };
    Step::Txn(Txn {
        kind: Kind::Create,
        when: vec![Condition::Stable(Rev(0))],
        then: vec![Put::Stable(stable)],
    })
}

impl<'a, G: Ident, X: Ident> Holder<'a, G, X> {
    fn new(config: &'a Config, view: &'a View<G, X>, at: Rev, stable: &'a Stable) -> Self {
        let tails = &view.etcd.tails;
        let others = stable.holders.keys().filter(|n| **n != config.me);
        Holder {
            config,
            view,
            at,
            stable,
            base: stable.uid.max(stable.floor),
            mine: tail_of(&view.local, stable.uid.max(stable.floor), config.chunk),
            published: tails.get(&config.me),
            others: others.map(|n| (*n, tails.get(n))).collect(),
        }
    }

    /// Takes over what etcd decided: the watermark, the limit, the gate.
    fn follow(&self) -> Option<Step<G, X>> {
        let local = &self.view.local;
        let (limit, bound) = (
            self.stable.limit(self.config.window),
            self.stable.bound(self.config.window),
        );
        if local.shown < self.stable.uid || local.limit != limit || local.bound != bound {
            return Some(expose(self.config, self.stable));
        }
        let closed = self.view.etcd.gate.is_some();
        if local.gated != closed {
            return Some(Step::Gate { closed });
        }
        // We joined, and published nothing since.
        let to = self.stable.uid;
        is_durable(local.promised).then_some(Step::Release { to })
    }

    /// Brings staged messages back, one by one.
    fn unstage(&self) -> Option<Step<G, X>> {
        let guid = self.view.local.staged.first()?.guid.clone();
        let here = self
            .view
            .local
            .entries
            .iter()
            .any(|e| !e.expunged && e.guid == guid);
        if here && self.config.rules.skip_settled {
            return Some(Step::DropStaged { guid });
        }
        let fits = self.view.local.next <= self.view.local.limit;
        fits.then_some(Step::Unstage { guid })
    }

    /// Nothing above S anywhere: the mailbox costs nothing.
    fn rest(&self, replica: &Replica) -> Option<Step<G, X>> {
        let quiet = self.mine.next == self.stable.uid + 1;
        let busy = self
            .others
            .iter()
            .flat_map(|(_, t)| t)
            .any(|t| t.value.end > self.stable.uid);
        if self.view.etcd.gate == Some(self.config.me) && self.settled(replica) {
            return Some(Step::Txn(Txn {
                kind: Kind::OpenGate,
                when: vec![Condition::GateOf(self.config.me)],
                then: vec![Put::DropGate],
            }));
        }
        (quiet && !busy).then_some(Step::Wait)
    }

    /// Whether the gate that we hold has done its work: S covers what we have, or this life of
    /// the daemon never found a reason to close it.
    fn settled(&self, replica: &Replica) -> bool {
        let done = self.mine.next <= self.stable.uid + 1 || replica.tries == 0;
        self.config.rules.open_gate && done
    }

    /// Drops holders that are not alive.
    fn shrink(&self) -> Option<Step<G, X>> {
        let dead: Vec<(Node, Incarnation)> = self
            .stable
            .holders
            .iter()
            .filter(|(n, i)| self.view.etcd.alive.get(n) != Some(i))
            .map(|(n, i)| (*n, *i))
            .collect();
        (!dead.is_empty()).then(|| shrink_txn(self.config, self.at, self.stable, &dead))
    }

    /// Moves what we have above the floor, after we withdrew it.
    fn make_room(&self, replica: &Replica) -> Option<Step<G, X>> {
        if self.base == self.stable.uid {
            return None;
        }
        let low: Vec<_> = self
            .live(self.stable.uid)
            .filter(|e| e.uid <= self.base)
            .collect();
        if low.is_empty() {
            let raise = Step::Raise { above: self.base };
            return (self.view.local.next <= self.base).then_some(raise);
        }
        if let Some(step) = self.loosen(replica) {
            return Some(step);
        }
        let moved = low
            .iter()
            .filter(|e| self.live(self.base).any(|o| same(o, e)));
        let moved: Vec<Uid> = moved.map(|e| e.uid).collect();
        Some(if moved.len() == low.len() {
            Step::DropLow { uids: moved }
        } else {
            Step::Raise { above: self.base }
        })
    }

    /// Our live messages above a UID.
    fn live(&self, above: Uid) -> impl Iterator<Item = &'a Entry<G, X>> {
        self.view
            .local
            .entries
            .iter()
            .filter(move |e| !e.expunged && e.uid > above)
    }

    /// Takes over the XIDs that a lower node has for our messages.
    fn adopt(&self, replica: &Replica) -> Option<Step<G, X>> {
        let lower = self.others.iter().filter(|(n, _)| *n < self.config.me);
        let tails: Vec<_> = lower
            .filter_map(|(_, t)| t.map(|t| t.value.above(self.base)))
            .collect();
        let xids = misnamed(&self.mine.entries, &tails, self.config.chunk);
        if xids.is_empty() || !self.config.rules.adopt_xids {
            return None;
        }
        // Nothing in a firm tail changes, its XIDs neither.
        Some(self.loosen(replica).unwrap_or(Step::Adopt { xids }))
    }

    /// Keeps one of two that are the same message: a move that was cut short, or that raced with
    /// replication, leaves two. What is stable stays; of two that are not, the later.
    fn dedupe(&self, replica: &Replica) -> Option<Step<G, X>> {
        let s = self.stable.uid;
        let settled = |e: &&Entry<G, X>| self.live(0).any(|o| o.uid <= s && same(o, e));
        let again: Vec<Uid> = self.live(s).filter(settled).map(|e| e.uid).collect();
        if !again.is_empty() {
            return Some(Step::DropLow { uids: again });
        }
        let later = |e: &&Entry<G, X>| self.live(e.uid).any(|o| same(o, e));
        let uids: Vec<Uid> = self.live(s).filter(later).map(|e| e.uid).collect();
        if uids.is_empty() {
            return None;
        }
        // S must not pass the one that goes while it goes.
        Some(self.loosen(replica).unwrap_or(Step::DropLow { uids }))
    }

    /// Has replication settle what cannot stay under its UIDs on all nodes.
    fn settle(&self, replica: &Replica) -> Option<Step<G, X>> {
        let s = self.base;
        let published = self
            .others
            .iter()
            .filter_map(|(n, t)| t.map(|t| (*n, &t.value)));
        let clashes: Vec<_> = published
            .filter(|(_, t)| self.config.rules.compare_guids && conflict(s, &self.mine, t))
            .collect();
        if clashes.is_empty() {
            return None;
        }
        if let Some(step) = self.loosen(replica) {
            return Some(step);
        }
        // A peer whose tail is firm sees the same clash, and withdraws; of two that did, the
        // lower one syncs.
        let ready = clashes.iter().find(|(n, t)| !t.firm && self.config.me < *n);
        // Where messages keep coming, a tail that is up to date would be chased for ever: who syncs
        // does that first, and closes the gate.
        let chasing = ready.is_some() && self.view.etcd.gate.is_none();
        if !chasing && self.published.is_none_or(|p| !self.up_to_date(&p.value)) {
            return Some(self.withdraw());
        }
        let Some((peer, _)) = ready else {
            return Some(Step::Wait);
        };
        if self.cramped(&clashes) {
            return Some(shrink_txn(self.config, self.at, self.stable, &[]));
        }
        if replica.tries >= self.config.gate_after && self.view.etcd.gate.is_none() {
            return Some(self.close_gate());
        }
        Some(Step::Sync {
            peer: *peer,
            force: self.config.rules.force_sync,
            joining: false,
        })
    }

    /// Whether settling could need UIDs above what the record allows. Then the floor is raised,
    /// and with it the limit.
    fn cramped(&self, clashes: &[(Node, &Tail<G, X>)]) -> bool {
        let tails = clashes.iter().map(|(_, t)| *t).chain([&self.mine]);
        let next = tails.clone().map(|t| t.next).max().unwrap_or(0);
        let live = tails
            .flat_map(|t| t.above(self.base))
            .filter(|e| !e.expunged);
        let count = live.map(|e| &e.guid).collect::<BTreeSet<_>>().len();
        next as usize + count > self.stable.bound(self.config.window) as usize + 1
    }

    /// What is left to do until nothing above S is promised: withdraw, then release.
    fn loosen(&self, replica: &Replica) -> Option<Step<G, X>> {
        if !self.config.rules.promise {
            return None;
        }
        let fresh = match self.published {
            Some(p) if !p.value.firm => {
                replica.withdrawn == Some(p.rev) || !self.config.rules.withdraw_afresh
            }
            _ => false,
        };
        if !fresh {
            return Some(self.withdraw());
        }
        let to = self.stable.uid;
        (self.view.local.promised > to).then_some(Step::Release { to })
    }

    /// Whether a tail that we published says what is true now.
    fn up_to_date(&self, published: &Tail<G, X>) -> bool {
        published.end == self.mine.end
            && published.next == self.mine.next
            && published.above(self.base) == self.mine.entries
    }

    /// Writes a loose tail.
    fn withdraw(&self) -> Step<G, X> {
        let tail = Tail {
            firm: false,
            ..self.mine.clone()
        };
        let checks = &self.config.rules;
        self.write(Kind::Withdraw, tail, checks.withdraw_checks_stable, true)
    }

    /// Puts our own tail, conditional on what we saw.
    fn write(&self, kind: Kind, tail: Tail<G, X>, stable: bool, own: bool) -> Step<G, X> {
        let mut when = Vec::new();
        if stable {
            when.push(Condition::Stable(self.at));
        }
        if own {
            when.push(Condition::Tail(
                self.config.me,
                self.published.map_or(Rev(0), |p| p.rev),
            ));
        }
        Step::Txn(Txn {
            kind,
            when,
            then: vec![Put::Tail(self.config.me, tail)],
        })
    }

    fn close_gate(&self) -> Step<G, X> {
        Step::Txn(Txn {
            kind: Kind::CloseGate,
            when: vec![Condition::GateOpen],
            then: vec![Put::Gate(self.config.me)],
        })
    }

    /// Promises our tail, then publishes it.
    fn publish(&self) -> Option<Step<G, X>> {
        let rules = &self.config.rules;
        let (end, promised) = (self.mine.end, self.view.local.promised);
        // A node that withdrew is left alone until it says otherwise, though it has nothing left.
        let withdrew = self.published.is_some_and(|p| !p.value.firm);
        if end <= self.stable.uid && !withdrew && !(rules.correct_next && self.overstated()) {
            return None;
        }
        // A mark above every UID was made when other messages were here.
        if rules.promise && promised >= self.view.local.next {
            return Some(Step::Promise { end });
        }
        if rules.promise && promised < end {
            // What came since the promise waits for the next one, or nothing would be published
            // where messages keep coming.
            let before = self.published.filter(|p| p.value.firm);
            let before = before.map_or(self.base, |p| p.value.end);
            return Some(match promised > before.max(self.base) {
                true => self.write_firm(cut(&self.mine, promised)),
                false => Step::Promise { end },
            });
        }
        if self
            .published
            .is_some_and(|p| p.value.firm && self.up_to_date(&p.value))
        {
            return None;
        }
        Some(self.write_firm(self.mine.clone()))
    }

    /// Whether our tail counts more than we have: it was on its way when a power loss took what had
    /// come after its end. Others would not bring that again.
    fn overstated(&self) -> bool {
        self.published
            .is_some_and(|p| p.value.next > self.mine.next)
    }

    /// Publishes this much of our tail, and moves S with it where that is all it waits for.
    fn write_firm(&self, tail: Tail<G, X>) -> Step<G, X> {
        let rules = &self.config.rules;
        let (stable, own) = (rules.publish_checks_stable, rules.publish_checks_tail);
        match self.conclude(&tail) {
            Some(step) => step,
            None => self.write(Kind::Publish, tail, stable, own),
        }
    }

    /// Moves S together with our publication, where that is all it waits for: the two are one
    /// transaction, which depends on what both depend on.
    fn conclude(&self, mine: &Tail<G, X>) -> Option<Step<G, X>> {
        let rules = &self.config.rules;
        if !rules.conclude {
            return None;
        }
        let mut theirs = Vec::new();
        for (node, tail) in &self.others {
            theirs.push((*node, (*tail)?));
        }
        let values = theirs.iter().map(|(_, tail)| &tail.value);
        let values: Vec<_> = [mine].into_iter().chain(values).collect();
        let uid = self.judge(&values);
        if uid <= self.stable.uid {
            return None;
        }
        let (mut when, mut then) = self.moved(uid, &theirs);
        if !rules.publish_checks_stable {
            when.retain(|condition| !matches!(condition, Condition::Stable(_)));
        }
        let (me, rev) = (self.config.me, self.published.map_or(Rev(0), |p| p.rev));
        if rules.publish_checks_tail && rules.advance_checks_tails {
            when.push(Condition::Tail(me, rev));
        }
        if mine.next > uid + 1 {
            then.push(Put::Tail(me, mine.clone()));
        } else if self.published.is_some() {
            then.push(Put::DropTail(me));
        }
        Some(Step::Txn(Txn {
            kind: Kind::Conclude,
            when,
            then,
        }))
    }

    /// Moves S as far as all holders agree.
    fn advance(&self) -> Option<Step<G, X>> {
        let mut tails = vec![(self.config.me, self.published?)];
        for (node, tail) in &self.others {
            tails.push((*node, (*tail)?));
        }
        let values: Vec<_> = tails.iter().map(|(_, t)| &t.value).collect();
        let uid = self.judge(&values);
        (uid > self.stable.uid).then(|| self.advance_txn(uid, &tails))
    }

    /// How far the tails agree, by the rules that are on.
    fn judge(&self, tails: &[&Tail<G, X>]) -> Uid {
        let rules = &self.config.rules;
        if rules.compare_guids && rules.compare_xids && rules.advance_below_next {
            return agreed(self.stable, tails);
        }
        let mut bent: Vec<Tail<G, X>> = tails.iter().map(|t| (*t).clone()).collect();
        if !rules.compare_xids
            && let Some(named) = tails.first()
        {
            for entry in bent.iter_mut().flat_map(|t| &mut t.entries) {
                let twin = |e: &&Entry<G, X>| e.uid == entry.uid && e.guid == entry.guid;
                if let Some(twin) = named.entries.iter().find(twin) {
                    entry.xid = twin.xid.clone();
                }
            }
        }
        if !rules.advance_below_next {
            let end = bent.iter().map(|t| t.end).max().unwrap_or(0);
            bent.iter_mut().for_each(|t| t.end = end);
            bent.retain(|t| !t.entries.is_empty());
        }
        if !rules.compare_guids {
            let entries = bent[0].entries.clone();
            let count = entries.len();
            bent.iter_mut()
                .filter(|t| t.entries.len() == count)
                .for_each(|t| {
                    t.entries.clone_from(&entries);
                });
        }
        agreed(self.stable, &bent.iter().collect::<Vec<_>>())
    }

    fn advance_txn(&self, uid: Uid, tails: &[(Node, &At<Tail<G, X>>)]) -> Step<G, X> {
        let (when, then) = self.moved(uid, tails);
        Step::Txn(Txn {
            kind: Kind::Advance,
            when,
            then,
        })
    }

    /// What it depends on, and what it writes, to move S to where these tails agree.
    fn moved(
        &self,
        uid: Uid,
        tails: &[(Node, &At<Tail<G, X>>)],
    ) -> (Vec<Condition>, Vec<Put<G, X>>) {
        let rules = &self.config.rules;
        let mut when = Vec::new();
        if rules.advance_checks_stable {
            when.push(Condition::Stable(self.at));
        }
        let mut then = vec![Put::Stable(Stable {
            uid,
            ..self.stable.clone()
        })];
        for (node, tail) in tails {
            if rules.advance_checks_tails {
                when.push(Condition::Tail(*node, tail.rev));
            }
            // Nothing is left in it: an idle mailbox costs nothing.
            if tail.value.next <= uid + 1 {
                then.push(Put::DropTail(*node));
            }
        }
        (when, then)
    }

    /// Syncs with a peer that lacks something we have.
    fn push(&self) -> Option<Step<G, X>> {
        let s = self.base;
        let behind = |tail: &Option<&At<Tail<G, X>>>| match tail {
            None => self.mine.next > self.stable.uid + 1,
            // A peer that withdrew is busy: it will say when it is not.
            Some(tail) => tail.value.firm && lacks(s, &self.mine, &tail.value),
        };
        // Who has the least comes first: S waits for it.
        let end = |tail: &Option<&At<Tail<G, X>>>| tail.map_or(0, |t| t.value.end);
        let lacking = self.others.iter().filter(|(_, tail)| behind(tail));
        let (peer, tail) = lacking.min_by_key(|(_, tail)| end(tail))?;
        // Equal next UIDs are what the replication's shortcut looks at.
        let alike = tail.is_some_and(|t| t.value.next == self.mine.next);
        Some(Step::Sync {
            peer: *peer,
            force: alike,
            joining: false,
        })
    }
}

/// Takes a record over into the table.
fn expose<G, X>(config: &Config, stable: &Stable) -> Step<G, X> {
    Step::Expose {
        uid: stable.uid,
        limit: stable.limit(config.window),
        bound: stable.bound(config.window),
    }
}

/// Whether two entries are one message.
fn same<G: Ident, X: Ident>(one: &Entry<G, X>, other: &Entry<G, X>) -> bool {
    one.guid == other.guid && one.xid == other.xid
}

/// Above `s`, the first `chunk` entries.
fn tail_of<G: Ident, X: Ident>(local: &Local<G, X>, s: Uid, chunk: usize) -> Tail<G, X> {
    let from = local.entries.partition_point(|e| e.uid <= s);
    let all = &local.entries[from..];
    let entries = &all[..all.len().min(chunk)];
    let end = match entries.last() {
        Some(last) if entries.len() < all.len() => last.uid,
        _ => local.next - 1,
    };
    Tail {
        firm: true,
        end,
        next: local.next,
        entries: entries.to_vec(),
    }
}

/// What of a tail lies at or below `end`.
fn cut<G: Ident, X: Ident>(tail: &Tail<G, X>, end: Uid) -> Tail<G, X> {
    let below = tail.entries.partition_point(|e| e.uid <= end);
    Tail {
        end,
        entries: tail.entries[..below].to_vec(),
        ..tail.clone()
    }
}

/// The record without the dead, its floor above all that they may have numbered.
fn shrink_txn<G: Ident, X: Ident>(
    config: &Config,
    at: Rev,
    stable: &Stable,
    dead: &[(Node, Incarnation)],
) -> Step<G, X> {
    let mut holders = stable.holders.clone();
    holders.insert(config.me, config.incarnation);
    for (node, _) in dead {
        holders.remove(node);
    }
    let floor = if config.rules.room_below {
        stable.bound(config.window)
    } else {
        stable.floor
    };
    let mut when = vec![Condition::Stable(at)];
    when.extend(dead.iter().map(|(n, i)| Condition::Dead(*n, *i)));
    let mut then = vec![Put::Stable(Stable {
        uid: stable.uid,
        floor,
        holders,
    })];
    then.extend(dead.iter().map(|(n, _)| Put::DropTail(*n)));
    Step::Txn(Txn {
        kind: Kind::Shrink,
        when,
        then,
    })
}

/// The next step of a node that does not hold the stable prefix.
fn join<G: Ident, X: Ident>(
    config: &Config,
    view: &View<G, X>,
    at: Rev,
    stable: &Stable,
) -> Step<G, X> {
    let rules = &config.rules;
    // The gate is for holders.
    if view.local.gated {
        return Step::Gate { closed: false };
    }
    let Some(of) = teacher(&view.etcd, stable) else {
        if !rules.shrink_as_holder {
            let dead: Vec<_> = stable.holders.iter().map(|(n, i)| (*n, *i)).collect();
            return shrink_txn(config, at, stable, &dead);
        }
        // Only those who hold what was shown can go on.
        return Step::Wait;
    };
    let Some(source) = view
        .source
        .as_ref()
        .filter(|s| s.rev == at || !rules.join_checks_stable)
    else {
        return Step::AskPrefix { of };
    };
    // What we have may be in the prefix, or get there while we join. Moving it would leave an
    // expunge behind, which replication carries to those who show the message.
    let promised = view.local.promised;
    let (any, durable) = (
        Step::Promise { end: ALL_PROMISED },
        durable_up_to(stable.uid),
    );
    if rules.join_promises && promised != ALL_PROMISED && promised != durable {
        return any;
    }
    if !rules.join_compares || holds(&view.local, source, stable.uid) {
        return enter(config, view, at, stable);
    }
    // What comes now is not on the disk yet.
    if rules.join_promises && promised == durable {
        return any;
    }
    if rules.stage
        && let Some(step) = clear(&view.local, source, stable.uid)
    {
        return step;
    }
    Step::Sync {
        peer: source.node,
        force: true,
        joining: true,
    }
}

/// A holder that is alive.
fn teacher<G, X>(etcd: &Snapshot<G, X>, stable: &Stable) -> Option<Node> {
    stable
        .holders
        .iter()
        .find(|(n, i)| etcd.alive.get(n) == Some(i))
        .map(|(n, _)| *n)
}

/// Whether we have all that the source has up to S, under the same UIDs, and nothing else.
///
/// What is gone here may still be there: our expunge travels later. What is gone there must not
/// be here: that may be a message which moved.
fn holds<G: Ident, X: Ident>(local: &Local<G, X>, source: &Source<G, X>, s: Uid) -> bool {
    let ours: BTreeMap<Uid, _> = local
        .entries
        .iter()
        .filter(|e| e.uid <= s)
        .map(|e| (e.uid, e))
        .collect();
    let theirs: BTreeMap<Uid, _> = source.entries.iter().map(|e| (e.uid, e)).collect();
    let here = |e: &&Entry<G, X>| ours.get(&e.uid).is_some_and(|o| o.guid == e.guid);
    let there = |o: &&Entry<G, X>| {
        theirs
            .get(&o.uid)
            .is_some_and(|e| !e.expunged && o.guid == e.guid)
    };
    theirs.values().filter(|e| !e.expunged).all(here)
        && ours.values().filter(|o| !o.expunged).all(there)
}

/// The promised mark of a node that promised all it has when it had the prefix up to `s`, so that
/// the prefix is on its disk. Above every UID, as [`ALL_PROMISED`] is, for the UIDs that there are
/// in practice.
fn durable_up_to(s: Uid) -> Uid {
    ALL_PROMISED - 1 - s.min(ALL_PROMISED - 1)
}

/// Whether a promised mark is one of [`durable_up_to`].
fn is_durable(promised: Uid) -> bool {
    promised > ALL_PROMISED / 2 && promised != ALL_PROMISED
}

/// Becomes a holder: passes S, makes the prefix durable, and joins.
fn enter<G: Ident, X: Ident>(
    config: &Config,
    view: &View<G, X>,
    at: Rev,
    stable: &Stable,
) -> Step<G, X> {
    let rules = &config.rules;
    if let Some(staged) = view
        .local
        .staged
        .iter()
        .find(|s| s.settled && rules.skip_settled)
    {
        return Step::DropStaged {
            guid: staged.guid.clone(),
        };
    }
    let prefix = view.local.entries.partition_point(|e| e.uid <= stable.uid);
    let theirs = view.source.as_ref().map(|s| &s.entries[..]);
    let xids = misnamed(
        &view.local.entries[..prefix],
        &[theirs.unwrap_or_default()],
        config.chunk,
    );
    if rules.adopt_xids && !xids.is_empty() {
        return Step::Adopt { xids };
    }
    if rules.join_passes_stable && view.local.next <= stable.uid {
        return Step::Raise { above: stable.uid };
    }
    let durable = durable_up_to(stable.uid);
    if rules.join_promises && view.local.promised != durable {
        return Step::Promise { end: durable };
    }
    let mut holders = stable.holders.clone();
    holders.insert(config.me, config.incarnation);
    let when = if rules.join_checks_stable {
        vec![Condition::Stable(at)]
    } else {
        Vec::new()
    };
    Step::Txn(Txn {
        kind: Kind::Join,
        when,
        then: vec![
            Put::Stable(Stable {
                holders,
                ..stable.clone()
            }),
            Put::DropTail(config.me),
        ],
    })
}

/// Moves what is not part of the stable prefix out of its way.
///
/// Only at or below S, where it is decided that no holder has this message under this UID:
/// replication carries the removal on, by UID and GUID, and above S the source may have the very
/// same message, and make it stable.
fn clear<G: Ident, X: Ident>(
    local: &Local<G, X>,
    source: &Source<G, X>,
    s: Uid,
) -> Option<Step<G, X>> {
    let stays = |uid: Uid, guid: &G| {
        let same = |e: &Entry<G, X>| e.uid == uid && e.guid == *guid;
        source.entries.iter().any(same)
    };
    let extra = local
        .entries
        .iter()
        .filter(|e| !e.expunged && e.uid <= s && !stays(e.uid, &e.guid));
    let (saved, unsaved): (Vec<_>, Vec<_>) =
        extra.partition(|e| local.staged.iter().any(|s| s.guid == e.guid));
    if !unsaved.is_empty() {
        return Some(Step::Stage {
            uids: unsaved.iter().map(|e| e.uid).collect(),
        });
    }
    (!saved.is_empty()).then(|| Step::DropMain {
        uids: saved.iter().map(|e| e.uid).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::super::types::View;
    use super::*;

    fn message(uid: Uid, guid: &'static str) -> Entry<&'static str, u64> {
        Entry {
            uid,
            guid,
            xid: u64::from(uid),
            expunged: false,
        }
    }

    fn config(me: Node) -> Config {
        Config {
            me,
            incarnation: Incarnation(1),
            window: 100,
            chunk: 10,
            gate_after: 1,
            rules: Rules::default(),
        }
    }

    /// What a node that is no holder does, S being 9, its source having `theirs`.
    fn joining(
        ours: &[Entry<&'static str, u64>],
        theirs: &[Entry<&'static str, u64>],
    ) -> Step<&'static str, u64> {
        let (me, source, disk) = (Node(1), Node(0), Incarnation(1));
        let value = Stable {
            uid: 9,
            floor: 0,
            holders: [(source, disk)].into(),
        };
        let view = View {
            etcd: Snapshot {
                stable: Some(At { rev: Rev(5), value }),
                tails: BTreeMap::new(),
                gate: None,
                alive: [(me, disk), (source, disk)].into(),
                complete: true,
            },
            local: Local {
                entries: ours.to_vec(),
                next: ours.last().map_or(1, |e| e.uid + 1),
                promised: ALL_PROMISED,
                shown: 0,
                limit: 100,
                bound: 100,
                gated: false,
                staged: Vec::new(),
            },
            source: Some(Source {
                node: source,
                rev: Rev(5),
                entries: theirs.to_vec(),
            }),
        };
        Replica::default().next(&config(me), &view)
    }

    /// Node 0 as the only holder of a mailbox, S being 8.
    fn alone(ours: &[Entry<&'static str, u64>]) -> View<&'static str, u64> {
        let (me, disk) = (Node(0), Incarnation(1));
        let value = Stable {
            uid: 8,
            floor: 0,
            holders: [(me, disk)].into(),
        };
        let local = Local {
            entries: ours.to_vec(),
            next: ours.last().map_or(9, |e| e.uid + 1),
            promised: ALL_PROMISED,
            shown: 8,
            limit: value.limit(100),
            bound: value.bound(100),
            gated: false,
            staged: Vec::new(),
        };
        View {
            etcd: Snapshot {
                stable: Some(At { rev: Rev(5), value }),
                tails: BTreeMap::new(),
                gate: None,
                alive: [(me, disk)].into(),
                complete: true,
            },
            local,
            source: None,
        }
    }

    /// What it does.
    fn holding(ours: &[Entry<&'static str, u64>]) -> Step<&'static str, u64> {
        Replica::default().next(&config(Node(0)), &alone(ours))
    }

    /// What replication brings is taken for a part of the stable prefix until then.
    #[test]
    fn who_joined_promises_no_more_than_others() {
        let mut view = alone(&[message(8, "a")]);
        view.local.promised = durable_up_to(7);
        let step = Replica::default().next(&config(Node(0)), &view);
        assert_eq!(step, Step::Release { to: 8 });
        view.local.promised = 8;
        let step = Replica::default().next(&config(Node(0)), &view);
        assert_eq!(step, Step::Wait);
    }

    /// A client's COPY within a mailbox keeps the GUID where the host does so.
    #[test]
    fn a_copy_that_shares_a_guid_is_kept() {
        let copy = Entry {
            xid: 20,
            ..message(10, "a")
        };
        let publishes = Step::Promise { end: 10 };
        assert_eq!(holding(&[message(9, "a"), copy.clone()]), publishes);
        // ... of a stable message, too.
        assert_eq!(holding(&[message(8, "a"), copy]), publishes);
    }

    #[test]
    fn the_same_message_at_two_uids_is_made_one() {
        let moved = Entry {
            xid: 8,
            ..message(10, "a")
        };
        let step = holding(&[message(8, "a"), moved]);
        assert_eq!(step, Step::DropLow { uids: vec![10] });
    }

    #[test]
    fn what_is_not_in_the_stable_prefix_is_staged() {
        let step = joining(&[message(9, "mine")], &[message(9, "theirs")]);
        assert_eq!(step, Step::Stage { uids: vec![9] });
    }

    /// Its removal would travel to the source, which may have made it stable meanwhile.
    #[test]
    fn what_lies_above_s_is_not_staged() {
        let step = joining(
            &[message(8, "old"), message(10, "new")],
            &[message(9, "theirs")],
        );
        assert_eq!(step, Step::Stage { uids: vec![8] });
        let step = joining(&[message(10, "new")], &[message(9, "theirs")]);
        assert!(matches!(step, Step::Sync { joining: true, .. }), "{step:?}");
    }
}
