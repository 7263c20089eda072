//! `xidctl cluster forget`: removes the records of mailboxes that no node has any more.

use imap_xid::daemon::Config;
use imap_xid::daemon::host::{self, Host, Op, Place};
use imap_xid::daemon::site::{DovecotSite, Site};
use imap_xid::etcd::{Mailbox, Records, Registered, Store};
use serde::Serialize;

use super::Problem;
use crate::error::Error;
use crate::host::hex;
use crate::{Context, Outcome};

/// Remove the records of mailboxes that were deleted on all nodes.
///
/// Each node is asked for each mailbox, so all nodes have to be alive: one that is away may still
/// have the mailbox, with UIDs that clients saw. An account that is removed should be forgotten
/// before one of the same name is made: its INBOX has the same GUID.
#[derive(clap::Args)]
pub struct Args {
    /// Only this user's mailboxes.
    #[arg(short = 'u', long, value_name = "USER")]
    user: Option<String>,

    /// Only say which they are.
    #[arg(long)]
    dry_run: bool,

    /// No evicted node will ever come back with the disk that it had.
    #[arg(long)]
    evicted_are_gone: bool,
}

#[derive(Serialize)]
struct Answer {
    dry_run: bool,
    forgotten: Vec<Gone>,
    kept: usize,
}

#[derive(Serialize)]
struct Gone {
    user: String,
    mailbox: String,
}

/// Forgets them.
///
/// # Errors
/// When a node is away or cannot be asked, or etcd cannot be reached.
pub async fn run(
    args: &Args,
    config: &Config,
    store: &mut Store,
    context: &Context,
) -> Result<Outcome, Error> {
    let members = store.registered().await.map_err(Problem::from)?;
    let site = DovecotSite::new(config).map_err(Problem::from)?;
    let nodes = reachable(args, config, &site, &members)?;
    let (mut forgotten, mut kept) = (Vec::new(), 0);
    for (mailbox, records) in all(store, args.user.as_deref()).await? {
        if !is_gone(config, &site, &nodes, &mailbox).await?
            || !forget(args, store, &mailbox, &records, &members).await?
        {
            kept += 1;
            continue;
        }
        forgotten.push(Gone {
            mailbox: hex(&mailbox.guid),
            user: mailbox.user,
        });
    }
    let answer = Answer {
        dry_run: args.dry_run,
        forgotten,
        kept,
    };
    context.output.print(&answer, |out, answer| {
        for Gone { user, mailbox } in &answer.forgotten {
            writeln!(out, "{user} {mailbox}: on no node")?;
        }
        let what = if answer.dry_run {
            "would be forgotten"
        } else {
            "forgotten"
        };
        writeln!(
            out,
            "{} {what}, {} kept",
            answer.forgotten.len(),
            answer.kept
        )
    })?;
    Ok(Outcome::Fine)
}

/// Every node; all of them are alive, and can be asked.
fn reachable(
    args: &Args,
    config: &Config,
    site: &impl Site,
    members: &[Registered],
) -> Result<Vec<String>, Problem> {
    let names = |which: &dyn Fn(&&Registered) -> bool| {
        let found = members
            .iter()
            .filter(which)
            .map(|member| member.name.as_str());
        found.collect::<Vec<_>>().join(", ")
    };
    let away = names(&|member| !member.evicted && member.lease_seconds.is_none());
    if !away.is_empty() {
        return Err(Problem::Away(away));
    }
    let evicted = names(&|member| member.evicted);
    if !evicted.is_empty() && !args.evicted_are_gone {
        return Err(Problem::Evicted(evicted));
    }
    let here = members.iter().filter(|member| !member.evicted);
    let here: Vec<String> = here.map(|member| member.name.clone()).collect();
    let unknown = |name: &&String| **name != config.node && site.peer(name).is_none();
    match here.iter().find(unknown) {
        Some(name) => Err(Problem::NoPeer(name.clone())),
        None => Ok(here),
    }
}

async fn all(store: &mut Store, user: Option<&str>) -> Result<Vec<(Mailbox, Records)>, Problem> {
    let mut all = Vec::new();
    let each = |mailbox, records| {
        all.push((mailbox, records));
        Ok::<(), imap_xid::etcd::Error>(())
    };
    store.each_mailbox(user, each).await?;
    Ok(all)
}

/// Whether every node says that it has no such mailbox.
async fn is_gone(
    config: &Config,
    site: &impl Site,
    nodes: &[String],
    mailbox: &Mailbox,
) -> Result<bool, Problem> {
    let place = Place {
        mailbox: mailbox.clone(),
        name: String::new(),
    };
    for name in nodes {
        let look = match site.peer(name) {
            Some(peer) if *name != config.node => peer.act(&place, &Op::Look, u32::MAX).await,
            _ => site.local().act(&place, &Op::Look, u32::MAX).await,
        };
        match look {
            Err(host::Error::NotFound) => {}
            Ok(_) => return Ok(false),
            Err(error) => return Err(Problem::Node(name.clone(), error.to_string())),
        }
    }
    Ok(true)
}

/// False: something happened to it meanwhile.
async fn forget(
    args: &Args,
    store: &mut Store,
    mailbox: &Mailbox,
    records: &Records,
    members: &[Registered],
) -> Result<bool, Problem> {
    if args.dry_run {
        return Ok(true);
    }
    Ok(store.forget(mailbox, records, members).await?)
}
