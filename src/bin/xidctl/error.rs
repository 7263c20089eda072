//! What can go wrong in xidctl, with what to do about it.

use std::io;
use std::path::PathBuf;

/// An error as the administrator reads it: what, whose, what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A program of the host could not be started at all.
    #[error(
        "{program} cannot be started ({source}): install dovecot-core, or give --dir instead of -u"
    )]
    NoHost {
        /// The program's name.
        program: &'static str,
        /// Why.
        source: io::Error,
    },
    /// A program of the host answered with an error.
    #[error("{command} failed: {text}: see that Dovecot runs and knows the user, or give --dir")]
    Host {
        /// The command line that was run.
        command: String,
        /// What it said.
        text: String,
    },
    /// A program of the host answered in a way that is not understood.
    #[error(
        "{command} answered {got:?} where {wanted} was expected: is this another Dovecot version?"
    )]
    HostAnswer {
        /// The command line that was run.
        command: String,
        /// What should have been there.
        wanted: &'static str,
        /// What was there.
        got: String,
    },
    /// The user's mail has nothing of the plug-in's.
    #[error(
        "{user}: no xid files at or above {looked}: is xid in mail_plugins, and has the user \
         logged in since? (if xid_dir is set in another way than by plugin {{ }}, give --dir)"
    )]
    NoRoot {
        /// The user.
        user: String,
        /// Where they were looked for.
        looked: PathBuf,
    },
    /// The folder is not one of the plug-in's.
    #[error("{}: {why}: name the folder that holds xid.registry", dir.display())]
    NotARoot {
        /// The folder.
        dir: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A `xid_dir` with a variable that only Dovecot can expand.
    #[error("xid_dir = {value}: xidctl cannot expand {variable}: give --dir")]
    Variable {
        /// The setting.
        value: String,
        /// The variable in it.
        variable: String,
    },
    /// Neither -u nor --dir.
    #[error("whose mail? give -u USER, or --dir DIR for the folder that holds xid.registry")]
    NoPlace,
    /// Becoming the owner of the mail failed.
    #[error("{}: cannot act as its owner, uid {uid} ({source}): run xidctl as root or as that user", dir.display())]
    Owner {
        /// The folder.
        dir: PathBuf,
        /// Its owner.
        uid: u32,
        /// Why.
        source: io::Error,
    },
    /// The index of a mailbox cannot be understood.
    #[error("{mailbox}: cannot read its index: {why}: use the xidctl of the plug-in's own release")]
    Index {
        /// The mailbox.
        mailbox: String,
        /// What is wrong.
        why: String,
    },
    /// No mailbox of this name.
    #[error("{0}: no such mailbox; `xidctl status` lists what there is")]
    NoMailbox(String),
    /// A command that changes one mailbox was not told which.
    #[error("which mailbox? give -m MAILBOX")]
    WhichMailbox,
    /// A name that several mailboxes have.
    #[error("{0}: more than one mailbox; give the GUID with --dir (`xidctl --json status` has it)")]
    SeveralMailboxes(String),
    /// The table does not know the mailbox.
    #[error(
        "{0}: not in the UID-assignment table: no process has opened it since the boot with \
         xid_uid_source set to table or cluster; open it once"
    )]
    NotInTable(String),
    /// The host's name makes no namespace.
    #[error("{0}: set xid_namespace")]
    HostName(String),
    /// The registry.
    #[error(transparent)]
    Registry(#[from] imap_xid::registry::Error),
    /// The table.
    #[error(transparent)]
    Table(#[from] imap_xid::table::Error),
    /// The cluster.
    #[cfg(feature = "cluster")]
    #[error(transparent)]
    Cluster(#[from] crate::cluster::Problem),
    /// Standard output cannot be written.
    #[error("cannot write the answer: {0}")]
    Output(#[from] io::Error),
    /// JSON cannot be made.
    #[error("cannot write the answer as JSON: {0}")]
    Json(#[from] serde_json::Error),
}
