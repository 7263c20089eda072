//! `xidctl cluster members`: who is on the books, and who is alive.

use std::io::{self, Write};

use imap_xid::etcd::{Registered, Store};
use serde::Serialize;

use super::Problem;
use crate::error::Error;
use crate::{Context, Outcome};

/// Show the nodes: number, disk, namespace, and whether they are alive.
#[derive(clap::Args)]
pub struct Args {}

/// A node as it is shown.
#[derive(Serialize)]
pub struct Member {
    name: String,
    node: u8,
    /// How often its disk was replaced.
    incarnation: u32,
    namespace: String,
    alive: bool,
    evicted: bool,
    /// What is left of its lease if it stopped now.
    lease_seconds: Option<i64>,
}

impl From<Registered> for Member {
    fn from(member: Registered) -> Member {
        Member {
            node: member.registration.node.0,
            incarnation: member.registration.incarnation.0,
            alive: member.lease_seconds.is_some(),
            name: member.name,
            namespace: member.namespace,
            evicted: member.evicted,
            lease_seconds: member.lease_seconds,
        }
    }
}

/// Prints them.
///
/// # Errors
/// When etcd cannot be reached.
pub async fn run(store: &mut Store, context: &Context) -> Result<Outcome, Error> {
    let members = store.registered().await.map_err(Problem::from)?;
    let members: Vec<Member> = members.into_iter().map(Member::from).collect();
    context.output.print(&members, |out, members| {
        members.iter().try_for_each(|member| show(out, member))
    })?;
    Ok(Outcome::Fine)
}

/// A node on one line.
pub fn show(out: &mut dyn Write, member: &Member) -> io::Result<()> {
    let state = match (member.lease_seconds, member.evicted) {
        (Some(seconds), _) => format!("alive, lease ends in {seconds} s if it falls silent"),
        (None, true) => "evicted".into(),
        (None, false) => "NOT ALIVE".into(),
    };
    writeln!(
        out,
        "{}: node {}, disk {}, namespace {}, {state}",
        member.name, member.node, member.incarnation, member.namespace
    )
}
