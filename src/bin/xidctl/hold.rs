//! `xidctl hold`, `release` and `gate`: stop advances, or commits, for a while.

use std::io::{self, Write};
use std::time::Duration;

use serde::Serialize;

use crate::boxes::{Boxes, ago, name_of, parse_time};
use crate::error::Error;
use crate::place::PlaceArgs;
use crate::{Context, Outcome};

/// Refuse advances of a mailbox for a while, whoever makes them.
///
/// Its UIDs above the watermark then wait. The hold ends by `xidctl release`, or by itself after
/// the time that was given.
#[derive(clap::Args)]
pub struct HoldArgs {
    #[command(flatten)]
    place: PlaceArgs,

    /// How long.
    #[arg(long = "for", value_name = "TIME", default_value = "5m", value_parser = parse_time)]
    time: Duration,
}

/// Allow advances of a mailbox again.
#[derive(clap::Args)]
pub struct ReleaseArgs {
    #[command(flatten)]
    place: PlaceArgs,
}

/// Let new commits to a mailbox wait for a while.
///
/// Commits that are under way finish. The gate opens by --open, or by itself after the time that
/// was given.
#[derive(clap::Args)]
pub struct GateArgs {
    #[command(flatten)]
    place: PlaceArgs,

    /// How long.
    #[arg(long = "for", value_name = "TIME", default_value = "30s", value_parser = parse_time)]
    time: Duration,

    /// Open the gate, whoever closed it.
    #[arg(long, conflicts_with = "time")]
    open: bool,
}

#[derive(Serialize)]
struct Answer {
    mailbox: String,
    what: &'static str,
    /// Until it ends by itself.
    left_ms: Option<u64>,
}

/// Who holds, when it is xidctl: the process is gone as soon as it has said so, and the next
/// xidctl is to be able to prolong it.
const OWNER: u64 = u64::MAX;

/// Holds a mailbox.
///
/// # Errors
/// When the mailbox is not in the table, or another program holds it.
pub fn hold(args: &HoldArgs, context: &Context) -> Result<Outcome, Error> {
    change(
        &args.place,
        context,
        "on hold",
        Some(args.time),
        |mailbox| mailbox.hold(OWNER, millis(args.time)),
    )
}

/// Releases a mailbox, whoever holds it.
///
/// # Errors
/// When the mailbox is not in the table.
pub fn release(args: &ReleaseArgs, context: &Context) -> Result<Outcome, Error> {
    change(&args.place, context, "not on hold", None, |mailbox| {
        mailbox.release(0)
    })
}

/// Closes or opens a mailbox's gate.
///
/// # Errors
/// When the mailbox is not in the table, or another program closed its gate.
pub fn gate(args: &GateArgs, context: &Context) -> Result<Outcome, Error> {
    if args.open {
        return change(&args.place, context, "gate open", None, |mailbox| {
            mailbox.open_gate(0)
        });
    }
    change(
        &args.place,
        context,
        "gate closed",
        Some(args.time),
        |mailbox| mailbox.close_gate(OWNER, millis(args.time)),
    )
}

fn change(
    place: &PlaceArgs,
    context: &Context,
    what: &'static str,
    time: Option<Duration>,
    work: impl FnOnce(&imap_xid::table::Mailbox) -> Result<(), imap_xid::table::Error>,
) -> Result<Outcome, Error> {
    let boxes = Boxes::open(place, context)?;
    let (mailbox, info) = boxes.one(place)?;
    work(&mailbox)?;
    drop(boxes);
    let answer = Answer {
        mailbox: name_of(&info),
        what,
        left_ms: time.map(millis),
    };
    context.output.print(&answer, show)?;
    Ok(Outcome::Fine)
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn show(out: &mut dyn Write, answer: &Answer) -> io::Result<()> {
    let Answer {
        mailbox,
        what,
        left_ms,
    } = answer;
    match left_ms {
        Some(ms) => writeln!(out, "{mailbox}: {what}, for {}", ago(*ms)),
        None => writeln!(out, "{mailbox}: {what}"),
    }
}
