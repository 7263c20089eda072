//! `xidctl cluster`: the nodes that agree on UIDs, and what they recorded in etcd.

mod evict;
mod force;
mod forget;
mod members;
mod status;
mod window;

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::Subcommand;
use imap_xid::cluster::Node;
use imap_xid::daemon::Config;
use imap_xid::etcd::{self, Registered, Store};

use crate::error::Error;
use crate::{Context, Outcome};

/// Look at the cluster's records in etcd, and set them right where nodes are gone for good.
#[derive(clap::Args)]
pub struct Args {
    /// The configuration of this node's xidd, which says where etcd is.
    #[arg(long, value_name = "FILE", default_value = imap_xid::daemon::config::DEFAULT_FILE)]
    xidd: PathBuf,

    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Status(status::Args),
    Members(members::Args),
    Evict(evict::Args),
    Force(force::Args),
    Forget(forget::Args),
    Window(window::Args),
}

/// What goes wrong with the cluster's records.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// xidd.toml.
    #[error(transparent)]
    Config(#[from] imap_xid::daemon::config::Error),
    /// etcd.
    #[error(transparent)]
    Etcd(#[from] etcd::Error),
    /// This node's Dovecot.
    #[error("{0}: see that Dovecot runs here and has the plug-in")]
    Host(String),
    /// No such node.
    #[error("{0}: no such node; `xidctl cluster members` lists what there is")]
    NoNode(String),
    /// A node that should be dead is not.
    #[error(
        "{0} is alive: stop its xidd first, or give --even-if-alive (it comes back by itself \
         as long as its xidd runs)"
    )]
    Alive(String),
    /// A record that is fine.
    #[error("{mailbox}: nothing to force: {why}")]
    NoNeed {
        /// The mailbox.
        mailbox: String,
        /// Why not.
        why: String,
    },
    /// The command has to run elsewhere.
    #[error("this is node {here}: run it on {wanted}, whose mail is to count")]
    Elsewhere {
        /// This node.
        here: String,
        /// The other.
        wanted: String,
    },
    /// Nobody said that it is meant.
    #[error("nothing was changed: say --i-know-what-may-be-lost")]
    NotMeant,
    /// Nodes that may still have a mailbox.
    #[error(
        "nothing was changed: all nodes have to be alive, since one may still have a mailbox; \
             away: {0}"
    )]
    Away(String),
    /// Nodes that may come back with a mailbox.
    #[error(
        "nothing was changed: {0} evicted, and may come back with mailboxes that the others \
         deleted. If no evicted node will ever come back with its old disk, say --evicted-are-gone"
    )]
    Evicted(String),
    /// A node that this one does not know.
    #[error("{0}: there is no [[peer]] of this name in xidd.toml, so it cannot be asked")]
    NoPeer(String),
    /// A node that cannot say what it has.
    #[error("{0} cannot be asked: {1}")]
    Node(String, String),
    /// A window that some node may have used up.
    #[error(
        "window {new}: smaller than {old}, which a node that is away may have used up: choose a \
         larger one"
    )]
    Smaller {
        /// The present one.
        old: u32,
        /// The new one.
        new: u32,
    },
    /// Nodes that would go on with the old one.
    #[error("nothing was changed: stop xidd on all nodes first; alive: {0}")]
    Running(String),
    /// Somebody else wrote at the same moment.
    #[error("it changed meanwhile: look at `xidctl cluster status`, then try again")]
    Changed,
}

/// Runs a command about the cluster.
///
/// # Errors
/// When xidd.toml is wrong, etcd cannot be reached, or the command refuses.
pub fn run(args: &Args, context: &Context) -> Result<Outcome, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let config = Config::load(&args.xidd).map_err(Problem::from)?;
        let settings = config.store().map_err(Problem::from)?;
        let mut store = Store::connect_any(&settings).await.map_err(Problem::from)?;
        match &args.command {
            Command::Status(args) => status::run(args, &mut store, context).await,
            Command::Members(_) => members::run(&mut store, context).await,
            Command::Evict(args) => evict::run(args, &mut store, context).await,
            Command::Force(args) => force::run(args, &config, &mut store, context).await,
            Command::Forget(args) => forget::run(args, &config, &mut store, context).await,
            Command::Window(args) => window::run(args, &mut store, context).await,
        }
    })
}

/// The nodes' names.
fn names(members: &[Registered]) -> BTreeMap<Node, String> {
    let all = members.iter();
    all.map(|member| (member.registration.node, member.name.clone()))
        .collect()
}

fn name_of(names: &BTreeMap<Node, String>, node: Node) -> String {
    let name = names.get(&node).cloned();
    name.unwrap_or_else(|| format!("node {}", node.0))
}
