//! `xidctl cluster window`: how many unstable messages every node allows.

use imap_xid::daemon::config::{WINDOW, WINDOWS};
use imap_xid::etcd::Store;
use serde::Serialize;

use super::Problem;
use crate::error::Error;
use crate::{Context, Outcome};

/// Show how many messages of a mailbox each node numbers by itself, or change it for all nodes.
///
/// The first xidd of a cluster brings the window of its xidd.toml, or 10000; from then on it is
/// that of all nodes, and an xidd configured otherwise does not start. It can be changed while no
/// xidd of the cluster runs, and only be made larger: a node that was away may have used up the
/// old one.
#[derive(clap::Args)]
pub struct Args {
    /// The new window.
    #[arg(value_parser = clap::value_parser!(u32).range(i64::from(*WINDOWS.start())..=i64::from(*WINDOWS.end())))]
    new: Option<u32>,
}

#[derive(Serialize)]
struct Answer {
    window: u32,
}

/// Shows or changes it.
///
/// # Errors
/// When a node is alive, the new one is smaller, or etcd cannot be reached.
pub async fn run(args: &Args, store: &mut Store, context: &Context) -> Result<Outcome, Error> {
    let old = store.window().await.map_err(Problem::from)?;
    let old = old.unwrap_or(WINDOW);
    if let Some(new) = args.new {
        change(store, old, new).await?;
    }
    let answer = Answer {
        window: args.new.unwrap_or(old),
    };
    context.output.print(&answer, |out, answer| {
        writeln!(out, "window {}", answer.window)
    })?;
    Ok(Outcome::Fine)
}

async fn change(store: &mut Store, old: u32, new: u32) -> Result<(), Problem> {
    if new < old {
        return Err(Problem::Smaller { old, new });
    }
    store.agree_on_window(None, old).await?;
    if store.change_window(old, new).await? {
        return Ok(());
    }
    let members = store.registered().await?;
    let alive = members.into_iter().filter(|m| m.lease_seconds.is_some());
    let alive: Vec<String> = alive.map(|member| member.name).collect();
    Err(match alive.is_empty() {
        true => Problem::Changed,
        false => Problem::Running(alive.join(", ")),
    })
}
