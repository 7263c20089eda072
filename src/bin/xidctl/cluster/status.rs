//! `xidctl cluster status`: the nodes, and what is recorded of each mailbox.

use std::collections::BTreeMap;
use std::io::{self, Write};

use imap_xid::cluster::Node;
use imap_xid::etcd::{Mailbox, Records, Store};
use serde::Serialize;

use super::members::{self, Member};
use super::{Problem, name_of, names};
use crate::error::Error;
use crate::host::hex;
use crate::{Context, Outcome};

/// Show the nodes and the mailboxes' records: stable UID, holders, tails, gate.
#[derive(clap::Args)]
pub struct Args {
    /// Only this user's mailboxes.
    #[arg(short = 'u', long, value_name = "USER")]
    user: Option<String>,

    /// Only this mailbox, by its name (of the user given by -u) or its GUID.
    #[arg(short = 'm', long, value_name = "MAILBOX")]
    mailbox: Option<String>,
}

#[derive(Serialize)]
struct Status {
    members: Vec<Member>,
    mailboxes: Vec<Recorded>,
}

#[derive(Serialize)]
struct Recorded {
    user: String,
    mailbox: String,
    /// None: there is no record yet.
    stable_uid: Option<u32>,
    floor: Option<u32>,
    /// Name and disk.
    holders: BTreeMap<String, u32>,
    tails: Vec<TailOf>,
    gate: Option<Gate>,
    /// etcd's revision of the record.
    revision: Option<u64>,
}

#[derive(Serialize)]
struct TailOf {
    node: String,
    firm: bool,
    end: u32,
    next: u32,
    messages: usize,
}

#[derive(Serialize)]
struct Gate {
    node: String,
    /// It opens by itself after so long.
    seconds: Option<i64>,
}

/// Prints it.
///
/// # Errors
/// When etcd cannot be reached.
pub async fn run(args: &Args, store: &mut Store, context: &Context) -> Result<Outcome, Error> {
    let wanted = wanted(args.user.as_deref(), args.mailbox.as_deref(), context)?;
    let members = store.registered().await.map_err(Problem::from)?;
    let names = names(&members);
    let mut mailboxes = Vec::new();
    let each = |mailbox: Mailbox, records: Records| {
        if wanted.is_none_or(|guid| guid == mailbox.guid) {
            mailboxes.push(recorded(&mailbox, &records, &names));
        }
        Ok::<(), imap_xid::etcd::Error>(())
    };
    let read = store.each_mailbox(args.user.as_deref(), each).await;
    read.map_err(Problem::from)?;
    let members = members.into_iter().map(Member::from).collect();
    let status = Status { members, mailboxes };
    context.output.print(&status, |out, status| {
        show(out, status)?;
        match (&args.user, status.mailboxes.is_empty()) {
            (Some(user), true) => writeln!(out, "{user}: no records of any such mailbox"),
            _ => Ok(()),
        }
    })?;
    Ok(Outcome::Fine)
}

/// The GUID that a name or a GUID means.
pub fn wanted(
    user: Option<&str>,
    mailbox: Option<&str>,
    context: &Context,
) -> Result<Option<[u8; 16]>, Error> {
    let Some(text) = mailbox else {
        return Ok(None);
    };
    if text.len() == 32
        && let Ok(guid) = u128::from_str_radix(text, 16)
    {
        return Ok(Some(guid.to_be_bytes()));
    }
    let user = user.ok_or(Error::NoPlace)?;
    let found = context.host.mailboxes(user, text)?;
    match found.first() {
        Some(mailbox) => Ok(Some(mailbox.guid)),
        None => Err(Error::NoMailbox(text.to_owned())),
    }
}

fn recorded(mailbox: &Mailbox, records: &Records, names: &BTreeMap<Node, String>) -> Recorded {
    let stable = records.stable.as_ref();
    let holders = stable.into_iter().flat_map(|at| &at.value.holders);
    let tails = records.tails.iter().map(|(node, at)| TailOf {
        node: name_of(names, *node),
        firm: at.value.firm,
        end: at.value.end,
        next: at.value.next,
        messages: at.value.entries.len(),
    });
    Recorded {
        user: mailbox.user.clone(),
        mailbox: hex(&mailbox.guid),
        stable_uid: stable.map(|at| at.value.uid),
        floor: stable.map(|at| at.value.floor),
        holders: holders.map(|(n, i)| (name_of(names, *n), i.0)).collect(),
        tails: tails.collect(),
        gate: records.gate.map(|(node, seconds)| Gate {
            node: name_of(names, node),
            seconds,
        }),
        revision: stable.map(|at| at.rev.0),
    }
}

fn show(out: &mut dyn Write, status: &Status) -> io::Result<()> {
    for member in &status.members {
        members::show(out, member)?;
    }
    for mailbox in &status.mailboxes {
        show_mailbox(out, mailbox)?;
    }
    Ok(())
}

fn show_mailbox(out: &mut dyn Write, mailbox: &Recorded) -> io::Result<()> {
    write!(out, "{} {}: ", mailbox.user, mailbox.mailbox)?;
    match (mailbox.stable_uid, mailbox.floor) {
        (Some(uid), Some(floor)) => {
            let holders: Vec<&str> = mailbox.holders.keys().map(String::as_str).collect();
            write!(
                out,
                "stable up to UID {uid}, held by {}",
                holders.join(", ")
            )?;
            if floor > uid {
                write!(out, ", next stable UID above {floor}")?;
            }
        }
        _ => write!(out, "no record")?,
    }
    if let Some(gate) = &mailbox.gate {
        write!(out, ", gate closed by {}", gate.node)?;
        if let Some(seconds) = gate.seconds {
            write!(out, " for at most {seconds} s")?;
        }
    }
    writeln!(out)?;
    for tail in &mailbox.tails {
        let kind = if tail.firm { "promised" } else { "withdrawn" };
        let (node, count, end, next) = (&tail.node, tail.messages, tail.end, tail.next);
        writeln!(
            out,
            "  {node}: {count} above it, {kind} up to UID {end}, next UID {next}"
        )?;
    }
    Ok(())
}
