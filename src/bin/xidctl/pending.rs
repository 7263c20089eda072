//! `xidctl pending`: the messages whose UIDs are not stable.

use std::io::{self, Write};

use imap_xid::table::{Info, Mailbox, Tail, guid_text};
use serde::Serialize;

use crate::boxes::{Boxes, ago, name_of};
use crate::error::Error;
use crate::place::PlaceArgs;
use crate::{Context, Outcome};

/// List the messages whose UIDs are not stable yet.
///
/// One line for each: mailbox, UID, XID, message GUID, and for how long it has been pending.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    place: PlaceArgs,
}

#[derive(Serialize)]
struct Answer {
    mailboxes: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    name: String,
    guid: String,
    uidvalidity: u32,
    watermark: Option<u32>,
    last_uid: u32,
    /// Whether messages may be missing from the list until the mailbox is next opened.
    incomplete: bool,
    pending: Vec<Message>,
}

#[derive(Serialize)]
struct Message {
    uid: u32,
    xid: Option<String>,
    guid: String,
    age_ms: u64,
}

/// Prints what is pending.
///
/// # Errors
/// When the user's table cannot be found or read.
pub fn run(args: &Args, context: &Context) -> Result<Outcome, Error> {
    let boxes = Boxes::open(&args.place, context)?;
    let mut mailboxes = Vec::new();
    for (mailbox, info) in boxes.list()? {
        mailboxes.push(row(&mailbox, &info)?);
    }
    drop(boxes);
    context.output.print(&Answer { mailboxes }, show)?;
    Ok(Outcome::Fine)
}

fn row(mailbox: &Mailbox, info: &Info) -> Result<Row, Error> {
    let mut pending: Vec<Message> = Vec::new();
    loop {
        let page = mailbox.pending(pending.last().map_or(0, |last| last.uid))?;
        if page.is_empty() {
            break;
        }
        pending.extend(page.into_iter().map(|entry| Message {
            uid: entry.uid,
            xid: (entry.number > 0).then(|| {
                format!(
                    "{}-{}",
                    String::from_utf8_lossy(&entry.namespace),
                    entry.number
                )
            }),
            guid: String::from_utf8_lossy(&entry.guid).into_owned(),
            age_ms: entry.age_ms,
        }));
    }
    Ok(Row {
        name: name_of(info),
        guid: guid_text(&info.guid),
        uidvalidity: info.uidvalidity,
        watermark: info.watermark,
        last_uid: info.last_uid,
        incomplete: info.tail != Tail::Whole,
        pending,
    })
}

fn show(out: &mut dyn Write, answer: &Answer) -> io::Result<()> {
    for mailbox in &answer.mailboxes {
        for message in &mailbox.pending {
            let xid = message.xid.as_deref().unwrap_or("-");
            let guid = if message.guid.is_empty() {
                "-"
            } else {
                &message.guid
            };
            let age = ago(message.age_ms);
            writeln!(
                out,
                "{}\t{}\t{xid}\t{guid}\t{age}",
                mailbox.name, message.uid
            )?;
        }
        if mailbox.incomplete {
            let name = &mailbox.name;
            writeln!(
                out,
                "{name}\tothers may be missing here until the mailbox is next opened"
            )?;
        }
    }
    Ok(())
}
