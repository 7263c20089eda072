//! What an operator asks and does beside the daemons: who is registered, what is recorded, taking a
//! dead node off the books, and naming a new holder where all are lost.

use std::collections::BTreeMap;

use etcd_client::{Compare, CompareOp, DeleteOptions, GetOptions, KeyValue, Txn as EtcdTxn, TxnOp};

use super::{Changed, Error, Mailbox, Registration, Store, Text, bad, encoding};
use crate::cluster::{At, Condition, Incarnation, Kind, Node, Put, Rev, Stable, Tail, Txn};

/// Keys that are read at a time.
const PAGE: i64 = 500;

/// A node on the books.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registered {
    /// Its name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Its number, and which of its disks is on the books.
    pub registration: Registration,
    /// An operator took it off; it is not asked and not waited for until it comes back.
    pub evicted: bool,
    /// What is left of its lease, in seconds; `None`: it is not alive.
    pub lease_seconds: Option<i64>,
    /// The registration's revision.
    pub rev: Rev,
}

/// All that etcd has of one mailbox.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Records {
    /// Its record.
    pub stable: Option<At<Stable>>,
    /// The tails, by node.
    pub tails: BTreeMap<Node, At<Tail<Text, Text>>>,
    /// Who closed the gate, and for how many seconds it stays closed by itself.
    pub gate: Option<(Node, Option<i64>)>,
}

impl Store {
    /// Every node on the books, by number.
    ///
    /// # Errors
    /// When etcd cannot be reached, or holds what we cannot read.
    pub async fn registered(&mut self) -> Result<Vec<Registered>, Error> {
        let leases = self.leases().await?;
        let prefix = Some(GetOptions::new().with_prefix());
        let answer = self.client.get(self.keys.nodes(), prefix).await?;
        let mut all = Vec::new();
        for kv in answer.kvs() {
            let member = encoding::member(kv.value()).map_err(|e| bad(kv, e))?;
            let registration = member.registration();
            let lease = leases.get(&(registration.node, registration.incarnation));
            let lease_seconds = match lease {
                Some(lease) => self.left(*lease).await?,
                None => None,
            };
            all.push(Registered {
                lease_seconds,
                evicted: member.evicted,
                name: member.name,
                namespace: member.namespace,
                registration,
                rev: rev(kv),
            });
        }
        all.sort_by_key(|member| member.registration.node);
        Ok(all)
    }

    /// The leases of who is alive.
    async fn leases(&mut self) -> Result<BTreeMap<(Node, Incarnation), i64>, Error> {
        let prefix = Some(GetOptions::new().with_prefix());
        let answer = self.client.get(self.keys.all_alive(), prefix).await?;
        let all = answer.kvs().iter();
        Ok(all
            .filter_map(|kv| Some((self.keys.parse_alive(kv.key())?, kv.lease())))
            .collect())
    }

    /// What is left of a lease, in seconds; `None`: it has ended.
    async fn left(&mut self, lease: i64) -> Result<Option<i64>, Error> {
        if lease == 0 {
            return Ok(None);
        }
        let answer = self.client.lease_time_to_live(lease, None).await?;
        Ok(Some(answer.ttl()).filter(|left| *left >= 0))
    }

    /// Takes a node off the books: its liveness ends, and nobody asks it or waits for it until it
    /// registers again. Its number, its namespace and its disk stay noted, so that no other node
    /// gets its number and it is known when it comes back. False: it changed meanwhile, or it
    /// is alive and that was not to be.
    ///
    /// # Errors
    /// When etcd cannot be reached, or holds what we cannot read.
    pub async fn evict(&mut self, who: &Registered, even_if_alive: bool) -> Result<bool, Error> {
        let key = self.keys.node(&who.name);
        let answer = self.client.get(key.as_str(), None).await?;
        let Some(kv) = answer.kvs().first().filter(|kv| rev(kv) == who.rev) else {
            return Ok(false);
        };
        let mut member = encoding::member(kv.value()).map_err(|e| bad(kv, e))?;
        member.evicted = true;
        let Registration { node, incarnation } = who.registration;
        let alive = self.keys.alive(node, incarnation);
        let mut when = vec![Compare::mod_revision(
            key.as_str(),
            CompareOp::Equal,
            kv.mod_revision(),
        )];
        if !even_if_alive {
            when.push(Compare::version(alive.as_str(), CompareOp::Equal, 0));
        }
        let then = [
            TxnOp::put(key, encoding::encode(&member), None),
            TxnOp::delete(alive, None),
        ];
        let txn = EtcdTxn::new().when(when).and_then(then);
        Ok(self.client.txn(txn).await?.succeeded())
    }

    /// Gives all nodes another window. False: a node is alive, or it changed meanwhile: nothing was
    /// changed.
    ///
    /// # Errors
    /// When etcd cannot be reached.
    pub async fn change_window(&mut self, old: u32, new: u32) -> Result<bool, Error> {
        let (key, alive) = (self.keys.window(), self.keys.all_alive());
        let same = Compare::value(key.as_str(), CompareOp::Equal, encoding::encode(&old));
        // A key that is there has a revision above 0.
        let nobody = Compare::mod_revision(alive, CompareOp::Less, 1).with_prefix();
        let put = TxnOp::put(key, encoding::encode(&new), None);
        let txn = EtcdTxn::new().when([same, nobody]).and_then([put]);
        Ok(self.client.txn(txn).await?.succeeded())
    }

    /// Hands over all that etcd has of each mailbox: of all users or of one, in the order of their
    /// keys. They are not of one moment.
    ///
    /// # Errors
    /// When etcd cannot be reached, or holds what we cannot read; or what `each` says.
    pub async fn each_mailbox<E: From<Error>>(
        &mut self,
        user: Option<&str>,
        mut each: impl FnMut(Mailbox, Records) -> Result<(), E>,
    ) -> Result<(), E> {
        let prefix = self.keys.mailboxes_of(user);
        let end = after_prefix(&prefix);
        let mut from = prefix.into_bytes();
        let mut current: Option<(Mailbox, Records)> = None;
        loop {
            let options = GetOptions::new().with_range(end.clone()).with_limit(PAGE);
            let answer = self.client.get(from, Some(options)).await;
            let answer = answer.map_err(Error::from)?;
            for kv in answer.kvs() {
                let Some((mailbox, part)) = self.keys.parse(kv.key()) else {
                    continue;
                };
                if current.as_ref().is_some_and(|(m, _)| *m != mailbox)
                    && let Some((done, records)) = current.take()
                {
                    each(done, records)?;
                }
                let (_, records) = current.get_or_insert_with(|| (mailbox, Records::default()));
                self.add(kv, part, records).await?;
            }
            let last = answer.kvs().last().filter(|_| answer.more());
            let Some(last) = last else {
                break;
            };
            from = last.key().to_vec();
            from.push(0);
        }
        match current {
            Some((mailbox, records)) => each(mailbox, records),
            None => Ok(()),
        }
    }

    async fn add(&mut self, kv: &KeyValue, part: Changed, to: &mut Records) -> Result<(), Error> {
        let rev = rev(kv);
        match part {
            Changed::Stable => {
                let value = encoding::stable(kv.value()).map_err(|e| bad(kv, e))?;
                to.stable = Some(At { rev, value });
            }
            Changed::Tail(node) => {
                let value = encoding::tail(kv.value()).map_err(|e| bad(kv, e))?;
                to.tails.insert(node, At { rev, value });
            }
            Changed::Gate => {
                let node = encoding::gate(kv.value()).map_err(|e| bad(kv, e))?;
                to.gate = Some((node, self.left(kv.lease()).await?));
            }
        }
        Ok(())
    }

    /// Removes all that there is of a mailbox that none of these nodes has. False: one of its records
    /// changed, a node came, or one of these that are not evicted is not alive: nothing was changed.
    ///
    /// # Errors
    /// When etcd cannot be reached: then it may or may not have been carried out.
    pub async fn forget(
        &mut self,
        mailbox: &Mailbox,
        records: &Records,
        members: &[Registered],
    ) -> Result<bool, Error> {
        let after = |rev: Option<Rev>| i64::try_from(rev.map_or(0, |rev| rev.0)).unwrap_or(0) + 1;
        let nodes = members.iter().map(|member| member.rev).max();
        let of_mailbox = records.tails.values().map(|tail| tail.rev);
        let newest = of_mailbox
            .chain(records.stable.iter().map(|at| at.rev))
            .max();
        let all = self.keys.mailbox(mailbox);
        let mut when = vec![
            Compare::mod_revision(self.keys.nodes(), CompareOp::Less, after(nodes)).with_prefix(),
            Compare::mod_revision(all.as_str(), CompareOp::Less, after(newest)).with_prefix(),
        ];
        for member in members.iter().filter(|member| !member.evicted) {
            let Registration { node, incarnation } = member.registration;
            let alive = self.keys.alive(node, incarnation);
            when.push(Compare::version(alive, CompareOp::Greater, 0));
        }
        let delete = TxnOp::delete(all, Some(DeleteOptions::new().with_prefix()));
        let txn = EtcdTxn::new().when(when).and_then([delete]);
        Ok(self.client.txn(txn).await?.succeeded())
    }

    /// Writes a mailbox's record anew, with one holder, where every holder of the present record
    /// is dead. All tails and the gate go: they were about the old one. False: the record changed
    /// meanwhile, or one of its holders is alive.
    ///
    /// # Errors
    /// When etcd cannot be reached: then it may or may not have been carried out.
    pub async fn force(
        &mut self,
        mailbox: &Mailbox,
        records: &Records,
        new: Stable,
    ) -> Result<bool, Error> {
        let Some(At { rev, value: old }) = &records.stable else {
            return Ok(false);
        };
        let dead = old.holders.iter().map(|(n, i)| Condition::Dead(*n, *i));
        let mut then = vec![Put::Stable(new), Put::DropGate];
        then.extend(records.tails.keys().map(|node| Put::DropTail(*node)));
        let txn = Txn {
            kind: Kind::Shrink,
            when: dead.chain([Condition::Stable(*rev)]).collect(),
            then,
        };
        Ok(self.run(mailbox, &txn).await?.is_some())
    }
}

fn rev(kv: &KeyValue) -> Rev {
    Rev(u64::try_from(kv.mod_revision()).unwrap_or(0))
}

/// The first key that does not begin with this. Our prefixes end with "/", which "0" follows.
fn after_prefix(prefix: &str) -> String {
    let cut = prefix.strip_suffix('/').unwrap_or(prefix);
    format!("{cut}0")
}
