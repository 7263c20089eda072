//! `xidctl status`: what the plug-in keeps for a user, at a glance.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::error::Error;
use crate::place::{Place, PlaceArgs};
use crate::{Context, Outcome};

/// Show what the plug-in keeps for a user: files, counters, mailboxes.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    place: PlaceArgs,
}

/// The files that are worth a look, with what their size says.
const FILES: [&str; 4] = [
    "xid.registry",
    "xid.registry-wal",
    "xid.journal",
    "xid.table",
];

#[derive(Serialize)]
struct Status {
    dir: PathBuf,
    user: Option<String>,
    files: Vec<File>,
    mailboxes: Vec<Mailbox>,
}

#[derive(Serialize)]
struct File {
    name: &'static str,
    /// Bytes; none when there is no such file.
    size: Option<u64>,
}

#[derive(Serialize)]
struct Mailbox {
    name: String,
    uidvalidity: u32,
    uidnext: u32,
}

/// Prints the status.
///
/// # Errors
/// When the user's folder cannot be found or read.
pub fn run(args: &Args, context: &Context) -> Result<Outcome, Error> {
    let place = args.place.find(&context.host)?;
    let mailboxes = mailboxes(&args.place, context)?;
    place.act_as_owner()?;
    context.output.print(&gather(place, mailboxes), show)?;
    Ok(Outcome::Fine)
}

/// The mailboxes as Dovecot sees them; none when it is not to be asked.
fn mailboxes(place: &PlaceArgs, context: &Context) -> Result<Vec<Mailbox>, Error> {
    let Some(user) = &place.user else {
        return Ok(Vec::new());
    };
    let mask = place.mailbox.as_deref().unwrap_or("*");
    let found = context.host.mailboxes(user, mask)?;
    let row = |box_: crate::host::Mailbox| Mailbox {
        name: box_.name,
        uidvalidity: box_.uidvalidity,
        uidnext: box_.uidnext,
    };
    Ok(found.into_iter().map(row).collect())
}

fn gather(place: Place, mailboxes: Vec<Mailbox>) -> Status {
    let size = |dir: &Path, name| dir.join(name).metadata().ok().map(|meta| meta.len());
    let files = FILES.map(|name| File {
        name,
        size: size(&place.dir, name),
    });
    Status {
        dir: place.dir,
        user: place.user,
        files: files.into(),
        mailboxes,
    }
}

fn show(out: &mut dyn Write, status: &Status) -> io::Result<()> {
    writeln!(out, "folder     {}", status.dir.display())?;
    if let Some(user) = &status.user {
        writeln!(out, "user       {user}")?;
    }
    for file in &status.files {
        match file.size {
            Some(size) => writeln!(out, "file       {} {size} bytes", file.name)?,
            None => writeln!(out, "file       {} none", file.name)?,
        }
    }
    for mailbox in &status.mailboxes {
        let Mailbox {
            name,
            uidvalidity,
            uidnext,
        } = mailbox;
        writeln!(
            out,
            "mailbox    {name}: uidvalidity {uidvalidity}, uidnext {uidnext}"
        )?;
    }
    Ok(())
}
