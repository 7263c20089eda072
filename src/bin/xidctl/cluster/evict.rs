//! `xidctl cluster evict`: goes on without a node.

use imap_xid::etcd::Store;
use serde::Serialize;

use super::Problem;
use crate::error::Error;
use crate::{Context, Outcome};

/// Take a dead node off the books, so that the others neither wait for it nor ask it.
///
/// The others drop it from each mailbox at the next message there. When its xidd starts again it
/// is back, and takes over from the others what it missed.
#[derive(clap::Args)]
pub struct Args {
    /// The node's name.
    node: String,

    /// End its membership although it is alive.
    #[arg(long)]
    even_if_alive: bool,
}

#[derive(Serialize)]
struct Answer {
    evicted: String,
}

/// Evicts it.
///
/// # Errors
/// When there is no such node, it is alive, or etcd cannot be reached.
pub async fn run(args: &Args, store: &mut Store, context: &Context) -> Result<Outcome, Error> {
    let members = store.registered().await.map_err(Problem::from)?;
    let found = members.into_iter().find(|member| member.name == args.node);
    let member = found.ok_or_else(|| Problem::NoNode(args.node.clone()))?;
    if member.lease_seconds.is_some() && !args.even_if_alive {
        return Err(Problem::Alive(member.name).into());
    }
    let done = store.evict(&member, args.even_if_alive).await;
    if !done.map_err(Problem::from)? {
        return Err(Problem::Changed.into());
    }
    let answer = Answer {
        evicted: member.name,
    };
    context.output.print(&answer, |out, answer| {
        let name = &answer.evicted;
        writeln!(out, "{name}: off the books")?;
        writeln!(
            out,
            "The others go on without it: each mailbox drops it at the next message there, and \
             UIDs skip what {name} may have given out. Messages that only {name} has are not lost \
             as long as its disk is: they come back when its xidd starts again."
        )
    })?;
    Ok(Outcome::Fine)
}
