//! `xidctl cluster force`: names a new holder where all are lost.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal};

use imap_xid::cluster::{At, Stable};
use imap_xid::daemon::Config;
use imap_xid::daemon::host::{Host, Look, Op, Place};
use imap_xid::daemon::site::{DovecotSite, Site};
use imap_xid::etcd::{Mailbox, Records, Registered, Registration, Store};
use serde::Serialize;

use super::status::wanted;
use super::{Problem, name_of, names};
use crate::error::Error;
use crate::{Context, Outcome};

/// Let this node's copy of a mailbox count, where every node that holds the agreed one is lost.
///
/// The last resort: clients may have seen messages that are then gone. As long as the disk of one
/// holder can be brought back, bring that back instead. Says first what may be lost.
#[derive(clap::Args)]
pub struct Args {
    /// The user.
    #[arg(short = 'u', long, value_name = "USER")]
    user: String,

    /// The mailbox, by its name or its GUID.
    #[arg(short = 'm', long, value_name = "MAILBOX")]
    mailbox: String,

    /// The node whose mail counts from now on: this one, where the command has to run.
    #[arg(long, value_name = "NODE")]
    as_holder: String,

    /// Do it without asking.
    #[arg(long)]
    i_know_what_may_be_lost: bool,
}

#[derive(Serialize)]
struct Answer {
    mailbox: String,
    holder: String,
    /// Who held it, and is dead.
    lost_holders: Vec<String>,
    /// The stable UID before, and now: what lies between may be lost.
    before: u32,
    stable_uid: u32,
    floor: u32,
}

/// Forces it.
///
/// # Errors
/// When a holder is alive, it is not meant, or etcd or Dovecot cannot be reached.
pub async fn run(
    args: &Args,
    config: &Config,
    store: &mut Store,
    context: &Context,
) -> Result<Outcome, Error> {
    if args.as_holder != config.node {
        return Err(Problem::Elsewhere {
            here: config.node.clone(),
            wanted: args.as_holder.clone(),
        }
        .into());
    }
    let guid = wanted(Some(&args.user), Some(&args.mailbox), context)?;
    let mailbox = Mailbox {
        user: args.user.clone(),
        guid: guid.unwrap_or_default(),
    };
    let members = store.registered().await.map_err(Problem::from)?;
    let me = members.iter().find(|member| member.name == config.node);
    let me = me.ok_or_else(|| Problem::NoNode(config.node.clone()))?;
    let records = records_of(store, &mailbox).await?;
    let old = lost(&args.mailbox, &records, &members, me)?;
    let look = look(config, &mailbox, &args.mailbox).await?;
    // Without one no xidd ever was there: then there was no record either.
    let window = store.window().await.map_err(Problem::from)?;
    let window = window.unwrap_or(imap_xid::daemon::config::WINDOW);
    let new = replacement(&old.value, &look, me, window);
    let lost_holders = holders(&old.value, &members);
    warn(&old.value, &new, &look, &lost_holders);
    if !args.i_know_what_may_be_lost && !confirmed()? {
        return Err(Problem::NotMeant.into());
    }
    let (stable_uid, floor) = (new.uid, new.floor);
    let done = store.force(&mailbox, &records, new).await;
    if !done.map_err(Problem::from)? {
        return Err(Problem::Changed.into());
    }
    let answer = Answer {
        mailbox: args.mailbox.clone(),
        holder: config.node.clone(),
        lost_holders,
        before: old.value.uid,
        stable_uid,
        floor,
    };
    context.output.print(&answer, |out, answer| {
        let Answer {
            mailbox, holder, ..
        } = answer;
        writeln!(out, "{mailbox}: {holder} is its only holder from now on")
    })?;
    Ok(Outcome::Fine)
}

async fn records_of(store: &mut Store, mailbox: &Mailbox) -> Result<Records, Error> {
    let mut found = Records::default();
    let each = |other: Mailbox, records: Records| {
        if other == *mailbox {
            found = records;
        }
        Ok::<(), imap_xid::etcd::Error>(())
    };
    let read = store.each_mailbox(Some(&mailbox.user), each).await;
    read.map_err(Problem::from)?;
    Ok(found)
}

/// The record, if all its holders are dead.
fn lost<'a>(
    mailbox: &str,
    records: &'a Records,
    members: &[Registered],
    me: &Registered,
) -> Result<&'a At<Stable>, Problem> {
    let no_need = |why: String| Problem::NoNeed {
        mailbox: mailbox.to_owned(),
        why,
    };
    let Some(stable) = &records.stable else {
        return Err(no_need("the cluster has no record of it yet".into()));
    };
    let alive = members.iter().find(|member| {
        let holds = stable
            .value
            .held_by(member.registration.node, member.registration.incarnation);
        holds && member.lease_seconds.is_some()
    });
    let Registration { node, incarnation } = me.registration;
    if stable.value.held_by(node, incarnation) && alive.is_none() {
        return Err(no_need("this node holds it: start its xidd".into()));
    }
    match alive {
        Some(member) => Err(no_need(format!("{} holds it and is alive", member.name))),
        None => Ok(stable),
    }
}

/// This node's own view of the mailbox.
async fn look(config: &Config, mailbox: &Mailbox, name: &str) -> Result<Look, Problem> {
    let site = DovecotSite::new(config)?;
    let place = Place {
        mailbox: mailbox.clone(),
        name: name.to_owned(),
    };
    let look = site.local().act(&place, &Op::Look, 0).await;
    look.map_err(|error| Problem::Host(error.to_string()))
}

/// What this node showed, it holds. What it has above that are its own unstable messages, whatever
/// their UIDs: they must go above all that anybody may have seen.
fn replacement(old: &Stable, look: &Look, me: &Registered, window: u32) -> Stable {
    let registration = &me.registration;
    Stable {
        uid: old.uid.min(look.local.shown),
        floor: old.bound(window).max(look.local.bound),
        holders: BTreeMap::from([(registration.node, registration.incarnation)]),
    }
}

fn holders(old: &Stable, members: &[Registered]) -> Vec<String> {
    let names = names(members);
    let mut holders: Vec<String> = old.holders.keys().map(|n| name_of(&names, *n)).collect();
    holders.sort_unstable();
    holders
}

fn warn(old: &Stable, new: &Stable, look: &Look, holders: &[String]) {
    let own = look.local.entries.iter();
    let own = own.filter(|e| !e.expunged && e.uid > new.uid).count();
    eprintln!(
        "All holders ({}) are dead. They had agreed on all up to UID {}.",
        holders.join(", "),
        old.uid
    );
    if new.uid < old.uid {
        eprintln!(
            "This node was there up to UID {}. Messages from UID {} to {}, which clients may have \
             seen, are lost unless this node has them too. (Not every UID was given out.)",
            new.uid,
            new.uid + 1,
            old.uid
        );
    }
    eprintln!(
        "Messages that only the dead holders have, and were not stable, are lost as well. {own} \
         messages of this node get new UIDs, above {}. A holder that comes back later takes over \
         this node's mail; what it alone has comes back as new messages.",
        new.floor
    );
}

/// Asks whoever sits there.
fn confirmed() -> io::Result<bool> {
    if !io::stdin().is_terminal() {
        return Ok(false);
    }
    eprint!("Type yes to go on: ");
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    Ok(answer.trim() == "yes")
}
