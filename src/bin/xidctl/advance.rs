//! `xidctl advance`: makes UIDs stable.

use std::io::{self, Write};

use imap_xid::table::Advanced;
use serde::Serialize;

use crate::boxes::{Boxes, name_of};
use crate::error::Error;
use crate::place::PlaceArgs;
use crate::{Context, Outcome};

/// Make all UIDs of a mailbox up to one stable, and let go who waits for them.
///
/// For a server with xid_uid_source = table. What is stable stays so: the watermark never goes
/// down. A UID that was never given is refused, and so is a mailbox on hold.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    place: PlaceArgs,

    /// The UID up to which all are stable from now on; `all` for all that were given.
    #[arg(value_name = "UID")]
    uid: Uid,
}

#[derive(Clone, Copy)]
enum Uid {
    UpTo(u32),
    All,
}

impl std::str::FromStr for Uid {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Uid, Self::Err> {
        match (text, text.parse()) {
            ("all", _) => Ok(Uid::All),
            (_, Ok(uid)) if uid > 0 => Ok(Uid::UpTo(uid)),
            _ => Err("expected a UID, 1 to 4294967295, or all"),
        }
    }
}

#[derive(Serialize)]
struct Answer {
    mailbox: String,
    /// The watermark before.
    before: u32,
    watermark: u32,
}

/// Advances the watermark.
///
/// # Errors
/// When the mailbox is not in the table, or the advance is refused.
pub fn run(args: &Args, context: &Context) -> Result<Outcome, Error> {
    let boxes = Boxes::open(&args.place, context)?;
    let (mailbox, info) = boxes.one(&args.place)?;
    let uid = match args.uid {
        Uid::UpTo(uid) => uid,
        Uid::All => info.last_uid,
    };
    let registry = boxes.registry()?;
    let before = match mailbox.advance(uid, &mut &registry)? {
        Advanced::From(before) | Advanced::Already(before) => before,
    };
    let answer = Answer {
        mailbox: name_of(&info),
        before,
        watermark: mailbox.watermark(),
    };
    drop(boxes);
    context.output.print(&answer, show)?;
    Ok(Outcome::Fine)
}

fn show(out: &mut dyn Write, answer: &Answer) -> io::Result<()> {
    let Answer {
        mailbox,
        before,
        watermark,
    } = answer;
    match before == watermark {
        true => writeln!(
            out,
            "{mailbox}: all up to UID {watermark} were stable already"
        ),
        false => writeln!(
            out,
            "{mailbox}: stable up to UID {watermark}, before up to {before}"
        ),
    }
}
