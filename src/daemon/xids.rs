//! Which XIDs messages have that came from another node.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::JoinSet;

use super::XidsAnswer;
use super::engine::Shared;
use super::host::{self, Host, Place};
use super::member::Session;
use super::site::Site;
use crate::etcd::{Mailbox, Text};

/// Time limit of an answer: the plug-in holds up a delivery, and waits five seconds.
const LIMIT: Duration = Duration::from_secs(4);

/// Answers a query, when it can.
pub(super) fn answer<S: Site>(
    shared: Arc<Shared<S>>,
    mailbox: Mailbox,
    name: String,
    guids: Vec<Text>,
    reply: oneshot::Sender<XidsAnswer>,
) {
    tokio::spawn(async move {
        let place = Place { mailbox, name };
        let answer = match tokio::time::timeout(LIMIT, find(&shared, &place, &guids)).await {
            Ok(answer) => answer,
            Err(_) => Err(format!("no answer within {LIMIT:?}")),
        };
        if let Err(why) = &answer {
            tracing::info!(
                user = place.mailbox.user,
                mailbox = place.guid(),
                why,
                "XIDs unknown"
            );
        }
        // Whoever asked may be gone.
        let _ = reply.send(answer);
    });
}

async fn find<S: Site>(shared: &Shared<S>, place: &Place, guids: &[Text]) -> XidsAnswer {
    let session = shared.session().ok_or("this node is not in the cluster")?;
    let mut known = of_tails(&session, place).await?;
    if guids.iter().any(|guid| !known.contains_key(guid)) {
        let unknown = guids.iter().filter(|guid| !known.contains_key(*guid));
        let unknown: Vec<Text> = unknown.cloned().collect();
        let (found, silent) = of_peers(shared, &session, place, unknown).await;
        known.extend(found);
        if let Some(node) = silent
            && guids.iter().any(|guid| !known.contains_key(guid))
        {
            return Err(node);
        }
    }
    Ok(guids.iter().map(|guid| known.get(guid).cloned()).collect())
}

/// The XIDs that travelled with the tails.
async fn of_tails(session: &Session, place: &Place) -> Result<BTreeMap<Text, Text>, String> {
    let mut store = session.store.clone();
    let snapshot = store
        .snapshot(&place.mailbox)
        .await
        .map_err(|e| e.to_string())?;
    let tails = snapshot.tails.into_values();
    let entries = tails.flat_map(|tail| tail.value.entries);
    Ok(by_guid(entries.map(|entry| (entry.guid, entry.xid))))
}

/// XIDs by GUID: of messages that share one all, in order, separated by commas.
fn by_guid(entries: impl Iterator<Item = (Text, Text)>) -> BTreeMap<Text, Text> {
    let mut known: BTreeMap<Text, Text> = BTreeMap::new();
    for (guid, xid) in entries {
        match known.entry(guid) {
            Entry::Vacant(place) => {
                place.insert(xid);
            }
            Entry::Occupied(mut place) => {
                if !place.get().split(',').any(|there| there == xid) {
                    place.get_mut().push(',');
                    place.get_mut().push_str(&xid);
                }
            }
        }
    }
    known
}

/// What the peers know, and why it may not be all.
async fn of_peers<S: Site>(
    shared: &Shared<S>,
    session: &Session,
    place: &Place,
    guids: Vec<Text>,
) -> (BTreeMap<Text, Text>, Option<String>) {
    let (mut found, mut silent) = (BTreeMap::new(), None);
    let mut asked = JoinSet::new();
    for node in session.peers() {
        let name = session.name(node);
        let Some(host) = shared.site.peer(&name) else {
            silent = Some(format!("node {name} is no [[peer]] of this node"));
            continue;
        };
        let (place, guids) = (place.clone(), guids.clone());
        asked.spawn(async move { (name, host.xids(&place, &guids).await) });
    }
    while let Some(answered) = asked.join_next().await {
        match answered {
            Ok((_, Ok(xids))) => found.extend(xids),
            Ok((_, Err(host::Error::NotFound))) => {}
            Ok((name, Err(error))) => silent = Some(format!("node {name}: {error}")),
            Err(error) => silent = Some(error.to_string()),
        }
        if guids.iter().all(|guid| found.contains_key(guid)) {
            break;
        }
    }
    (found, silent)
}

#[cfg(test)]
mod tests {
    use super::by_guid;

    #[test]
    fn messages_that_share_a_guid_are_all_named_and_each_once() {
        let tails = [("g", "a-1"), ("h", "a-2"), ("g", "a-3"), ("g", "a-1")];
        let known = by_guid(tails.iter().map(|(g, x)| ((*g).into(), (*x).into())));
        assert_eq!(known["g"], "a-1,a-3");
        assert_eq!(known["h"], "a-2");
    }
}
