//! Which XIDs messages have that came from another node.
//!
//! A message has its XID from the node that introduced it, and whoever gets it by replication must
//! know that before anybody sees it there. What the tails say in etcd is quick, but not all: they
//! have what is not stable yet, and where a message moved they may have its old UID. So the nodes
//! themselves are asked, dead ones too: "nobody knows it" is an answer only where all of them gave
//! it, since the message then gets a new XID.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::JoinSet;

use super::engine::Shared;
use super::host::{self, Host, Named, Place};
use super::member::Session;
use super::site::Site;
use super::{Asking, XidsAnswer};
use crate::cluster::{Node, Snapshot};
use crate::etcd::Text;

/// Time limit of an answer: the plug-in holds up a delivery, and waits five seconds.
const LIMIT: Duration = Duration::from_secs(4);

/// Answers a query, when it can.
pub(super) fn answer<S: Site>(
    shared: Arc<Shared<S>>,
    place: Place,
    guids: Vec<Text>,
    asking: Asking,
    reply: oneshot::Sender<XidsAnswer>,
) {
    tokio::spawn(async move {
        let finding = find(&shared, &place, &guids, asking);
        let answer = match tokio::time::timeout(LIMIT, finding).await {
            Ok(answer) => answer,
            Err(_) => Err(format!("no answer within {LIMIT:?}")),
        };
        log(&place, &guids, &answer);
        // Whoever asked may be gone.
        let _ = reply.send(answer);
    });
}

/// A message of which nobody knows gets an XID of its own: an administrator who wonders why there
/// are two of them finds out here.
fn log(place: &Place, guids: &[Text], answer: &XidsAnswer) {
    let (user, mailbox) = (&place.mailbox.user, place.guid());
    match answer {
        Err(why) => tracing::info!(user, mailbox, why, "XIDs unknown"),
        Ok(xids) => {
            let answered = guids.iter().zip(xids);
            for (guid, _) in answered.filter(|(_, xid)| xid.is_none()) {
                tracing::info!(user, mailbox, guid, "no other node has this message");
            }
        }
    }
}

async fn find<S: Site>(
    shared: &Shared<S>,
    place: &Place,
    guids: &[Text],
    asking: Asking,
) -> XidsAnswer {
    let session = shared.session().ok_or("this node is not in the cluster")?;
    let mut known = of_tails(&session, place, guids, asking).await?;
    let wanted = guids.iter();
    let wanted = wanted.filter(|guid| asking != Asking::Quickly || !known.has(guid));
    let wanted: Vec<Text> = wanted.cloned().collect();
    if !wanted.is_empty() {
        let mut inquiry = Inquiry::new(&peers_of(shared, &session), wanted, asking);
        inquiry.ask(shared, place, &known).await;
        inquiry.conclude(session.me.node, &mut known)?;
    }
    Ok(guids.iter().map(|guid| known.text(guid)).collect())
}

/// Messages by GUID: `uid:xid` of each, in the order of the nodes that said so, once.
#[derive(Debug, Default)]
struct Known(BTreeMap<Text, Vec<Text>>);

impl Known {
    /// Adds what one node said of a GUID: several, separated by commas, where messages share it.
    fn add(&mut self, guid: &str, found: &str) {
        let there = self.0.entry(guid.to_owned()).or_default();
        for one in found.split(',').filter(|one| !one.is_empty()) {
            if !there.iter().any(|known| known == one) {
                there.push(one.to_owned());
            }
        }
    }

    fn has(&self, guid: &str) -> bool {
        self.0.get(guid).is_some_and(|found| !found.is_empty())
    }

    fn text(&self, guid: &str) -> Option<Text> {
        self.has(guid).then(|| self.0[guid].join(","))
    }

    /// What the tails say.
    fn of(snapshot: Snapshot<Text, Text>) -> Known {
        let mut known = Known::default();
        let tails = snapshot.tails.into_values();
        for entry in tails.flat_map(|tail| tail.value.entries) {
            known.add(&entry.guid, &format!("{}:{}", entry.uid, entry.xid));
        }
        known
    }
}

/// The XIDs that travelled with the tails. Where what is published is enough, what the nearest
/// member of etcd knows is: replication commits its messages one by one where it does not lead, and
/// each would wait until all members agreed, twice the way to them and back.
async fn of_tails(
    session: &Session,
    place: &Place,
    guids: &[Text],
    asking: Asking,
) -> Result<Known, String> {
    let mut store = session.store.clone();
    if asking == Asking::Quickly {
        let near = store.snapshot_at(&place.mailbox).await;
        let known = Known::of(near.map_err(|e| e.to_string())?.value);
        if guids.iter().all(|guid| known.has(guid)) {
            return Ok(known);
        }
    }
    let now = store.snapshot(&place.mailbox).await;
    Ok(Known::of(now.map_err(|e| e.to_string())?))
}

/// A node that may know a message.
#[derive(Clone, Debug)]
struct Peer {
    name: Text,
    /// `None`: it was never in the cluster, but is to be.
    node: Option<Node>,
    alive: bool,
}

/// All that ever were in the cluster, and those that the configuration names besides.
fn peers_of<S: Site>(shared: &Shared<S>, session: &Session) -> Vec<Peer> {
    let alive: BTreeSet<Node> = session.alive().collect();
    let registered = session.peers().map(|node| Peer {
        name: session.name(node),
        node: Some(node),
        alive: alive.contains(&node),
    });
    let mut peers: Vec<Peer> = registered.collect();
    let names: BTreeSet<Text> = peers.iter().map(|peer| peer.name.clone()).collect();
    let configured = shared.config().peers.clone().into_iter();
    let others = configured.filter(|peer| !names.contains(&peer.name));
    peers.extend(others.map(|peer| Peer {
        name: peer.name,
        node: None,
        alive: false,
    }));
    peers
}

/// A question to all nodes.
struct Inquiry {
    guids: Vec<Text>,
    asking: Asking,
    /// In the order of their numbers, each with its answer when it came.
    peers: Vec<(Peer, Option<Result<Named, String>>)>,
}

impl Inquiry {
    fn new(peers: &[Peer], guids: Vec<Text>, asking: Asking) -> Inquiry {
        Inquiry {
            guids,
            asking,
            peers: peers.iter().map(|peer| (peer.clone(), None)).collect(),
        }
    }

    /// Asks all at once, until enough is known.
    async fn ask<S: Site>(&mut self, shared: &Shared<S>, place: &Place, known: &Known) {
        let mut asked = JoinSet::new();
        for (index, (peer, answer)) in self.peers.iter_mut().enumerate() {
            let Some(host) = shared.site.peer(&peer.name) else {
                *answer = Some(Err("it is no [[peer]] of this node".into()));
                continue;
            };
            let (place, guids) = (place.clone(), self.guids.clone());
            asked.spawn(async move { (index, host.xids(&place, &guids).await) });
        }
        while !self.is_enough(known) {
            match asked.join_next().await {
                Some(Ok((index, answer))) => self.take(index, answer),
                Some(Err(_)) => {}
                None => return,
            }
        }
    }

    fn take(&mut self, index: usize, answer: Result<Named, host::Error>) {
        self.peers[index].1 = Some(match answer {
            // It has no such mailbox, and so none of its messages.
            Err(host::Error::NotFound) => Ok(Named::default()),
            answer => answer.map_err(|error| error.to_string()),
        });
    }

    fn answers(&self) -> impl Iterator<Item = (&Peer, &Named)> {
        self.peers.iter().filter_map(|(peer, answer)| match answer {
            Some(Ok(named)) => Some((peer, named)),
            _ => None,
        })
    }

    /// Whether the answers that are still out do not matter: a dead node's do not where others know
    /// the message, and nobody's where one is enough.
    fn is_enough(&self, known: &Known) -> bool {
        let out = |(peer, answer): &(Peer, Option<_>)| peer.alive && answer.is_none();
        let found = |guid: &Text| {
            known.has(guid)
                || self
                    .answers()
                    .any(|(_, named)| named.xids.contains_key(guid))
        };
        (self.asking == Asking::Quickly || !self.peers.iter().any(out))
            && self.guids.iter().all(found)
    }

    /// Adds what was found, in the order of the nodes; or why it is not all.
    fn conclude(&self, me: Node, known: &mut Known) -> Result<(), String> {
        for (_, named) in self.answers() {
            for (guid, found) in &named.xids {
                known.add(guid, found);
            }
        }
        let unknown: Vec<&Text> = self.guids.iter().filter(|guid| !known.has(guid)).collect();
        self.silent(!unknown.is_empty()).map_or(Ok(()), Err)?;
        unknown
            .into_iter()
            .find_map(|guid| self.unnamed(me, guid))
            .map_or(Ok(()), Err)
    }

    /// Who did not answer, and had to.
    fn silent(&self, all: bool) -> Option<String> {
        let must = |peer: &Peer| all || (peer.alive && self.asking != Asking::Quickly);
        let why = |(peer, answer): &(Peer, Option<Result<Named, String>>)| match answer {
            _ if !must(peer) => None,
            Some(Ok(_)) => None,
            Some(Err(why)) => Some(format!("node {}: {why}", peer.name)),
            None => Some(format!("node {}: no answer", peer.name)),
        };
        self.peers.iter().find_map(why)
    }

    /// A node has the message and did not name it yet. Of nodes that all have it without an XID the
    /// lowest names it; who gets it from one of them waits.
    fn unnamed(&self, me: Node, guid: &Text) -> Option<String> {
        let first =
            |peer: &Peer| self.asking != Asking::Holding || peer.node.is_some_and(|node| node < me);
        let mut naming = self
            .answers()
            .filter(|(peer, named)| named.unnamed.contains(guid) && first(peer));
        naming
            .next()
            .map(|(peer, _)| format!("node {} has it without an XID so far", peer.name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(number: u8, alive: bool) -> Peer {
        Peer {
            name: format!("n{number}"),
            node: Some(Node(number)),
            alive,
        }
    }

    fn named(xids: &[(&str, &str)], unnamed: &[&str]) -> Named {
        let own = |(guid, found): &(&str, &str)| ((*guid).to_owned(), (*found).to_owned());
        Named {
            xids: xids.iter().map(own).collect(),
            unnamed: unnamed.iter().map(|guid| (*guid).to_owned()).collect(),
        }
    }

    /// What node 2 of three finds of "g".
    fn concluded(asking: Asking, answers: [Option<Result<Named, &str>>; 2]) -> XidsAnswer {
        let [one, three] = answers;
        let alive = [one.is_some(), three.is_some()];
        let mut inquiry = Inquiry::new(
            &[peer(1, alive[0]), peer(3, alive[1])],
            vec!["g".into()],
            asking,
        );
        for (index, answer) in [one, three].into_iter().enumerate() {
            inquiry.peers[index].1 = answer.map(|a| a.map_err(str::to_owned));
        }
        let mut known = Known::default();
        inquiry.conclude(Node(2), &mut known)?;
        Ok(vec![known.text("g")])
    }

    #[test]
    fn messages_that_share_a_guid_are_all_named_and_each_once() {
        let mut known = Known::default();
        for (guid, found) in [("g", "1:a-1"), ("h", "2:a-2"), ("g", "3:a-3,1:a-1")] {
            known.add(guid, found);
        }
        assert_eq!(known.text("g").as_deref(), Some("1:a-1,3:a-3"));
        assert_eq!(known.text("h").as_deref(), Some("2:a-2"));
        assert_eq!(known.text("i"), None);
    }

    #[test]
    fn nobody_knows_a_message_only_if_all_say_so() {
        let nothing = || Some(Ok(Named::default()));
        assert_eq!(
            concluded(Asking::Quickly, [nothing(), nothing()]),
            Ok(vec![None])
        );
        for silent in [None, Some(Err("it burns"))] {
            let answer = concluded(Asking::Quickly, [nothing(), silent]);
            assert!(answer.is_err_and(|why| why.contains("n3")));
        }
    }

    #[test]
    fn a_dead_node_is_not_waited_for_where_others_know_a_message() {
        let found = || Some(Ok(named(&[("g", "7:a-1")], &[])));
        let answer = Ok(vec![Some("7:a-1".into())]);
        for asking in [Asking::Quickly, Asking::Everybody, Asking::Holding] {
            assert_eq!(concluded(asking, [found(), None]), answer);
        }
        let failed = || Some(Err("too busy"));
        assert_eq!(concluded(Asking::Quickly, [found(), failed()]), answer);
        assert!(concluded(Asking::Everybody, [found(), failed()]).is_err());
    }

    #[test]
    fn what_another_node_has_without_xid_is_named_there_or_by_the_lowest() {
        let nothing = || Some(Ok(Named::default()));
        let unnamed = || Some(Ok(named(&[], &["g"])));
        let importing = Asking::Everybody;
        assert!(concluded(importing, [nothing(), unnamed()]).is_err());
        let holding = Asking::Holding;
        assert_eq!(concluded(holding, [nothing(), unnamed()]), Ok(vec![None]));
        assert!(concluded(holding, [unnamed(), nothing()]).is_err());
        // Who knows its XID is right in any case.
        let found = Some(Ok(named(&[("g", "7:a-1")], &[])));
        assert_eq!(
            concluded(importing, [found, unnamed()]),
            Ok(vec![Some("7:a-1".into())])
        );
    }
}
