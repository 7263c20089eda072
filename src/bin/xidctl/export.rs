//! `xidctl export`: XID, UID and GUID of every message.

use std::io::Write;

use serde::Serialize;

use crate::error::Error;
use crate::index::Index;
use crate::output::Output;
use crate::place::{Place, PlaceArgs};
use crate::{Context, Outcome};

/// Print XID, UID, GUID and mailbox of every message, one a line.
///
/// The columns are separated by tabs; a GUID that is not known is a dash. With --json each line is
/// an object. With -u the mailboxes' own indexes are read, with --dir the registry.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    place: PlaceArgs,
}

#[derive(Serialize)]
struct Row<'a> {
    xid: &'a str,
    uid: u32,
    guid: Option<&'a str>,
    mailbox: &'a str,
}

/// Prints the rows.
///
/// # Errors
/// When the user's folder cannot be found, or a mailbox not read.
pub fn run(args: &Args, context: &Context) -> Result<Outcome, Error> {
    let place = args.place.find(&context.host)?;
    let mut sheet = Sheet::new(&context.output);
    match &place.user {
        Some(user) => from_indexes(args, context, user, &mut sheet)?,
        None => from_registry(args, context, &place, &mut sheet)?,
    }
    sheet.end()?;
    Ok(Outcome::Fine)
}

fn from_indexes(
    args: &Args,
    context: &Context,
    user: &str,
    sheet: &mut Sheet<'_>,
) -> Result<(), Error> {
    let mailboxes = args.place.mailboxes(&context.host, user)?;
    let bar = context.output.progress("mailboxes", mailboxes.len() as u64);
    for mailbox in &mailboxes {
        let guids = context.host.message_guids(user, &mailbox.guid)?;
        let index = Index::read(&context.host, user, mailbox)?;
        for record in &index.records {
            let Some(xid) = record.xid else { continue };
            let guid = guids.get(&record.uid).map(String::as_str);
            sheet.row(&index.xid_text(xid), record.uid, guid, &mailbox.name)?;
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(())
}

fn from_registry(
    args: &Args,
    context: &Context,
    place: &Place,
    sheet: &mut Sheet<'_>,
) -> Result<(), Error> {
    let _owner = place.as_owner()?;
    let registry = place.existing_registry()?;
    let mut boxes = registry.boxes()?;
    if let Some(name) = &args.place.mailbox {
        boxes.retain(|info| info.name == *name);
        if boxes.is_empty() {
            return Err(Error::NoMailbox(name.clone()));
        }
    }
    let bar = context
        .output
        .progress("messages", boxes.iter().map(|info| info.messages).sum());
    for info in &boxes {
        for row in registry.export(&info.guid) {
            let row = row?;
            let guid = std::str::from_utf8(&row.guid)
                .ok()
                .filter(|guid| !guid.is_empty());
            sheet.row(
                &format!("{}-{}", row.namespace, row.number),
                row.uid,
                guid,
                &info.name,
            )?;
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    Ok(())
}

/// Rows on their way out.
struct Sheet<'a> {
    output: &'a Output,
    writer: std::io::BufWriter<std::io::StdoutLock<'static>>,
}

impl<'a> Sheet<'a> {
    fn new(output: &'a Output) -> Sheet<'a> {
        Sheet {
            output,
            writer: output.writer(),
        }
    }

    fn row(&mut self, xid: &str, uid: u32, guid: Option<&str>, mailbox: &str) -> Result<(), Error> {
        if self.output.json() {
            serde_json::to_writer(
                &mut self.writer,
                &Row {
                    xid,
                    uid,
                    guid,
                    mailbox,
                },
            )?;
            return Ok(writeln!(self.writer)?);
        }
        let guid = guid.unwrap_or("-");
        Ok(writeln!(self.writer, "{xid}\t{uid}\t{guid}\t{mailbox}")?)
    }

    fn end(mut self) -> Result<(), Error> {
        Ok(self.writer.flush()?)
    }
}
