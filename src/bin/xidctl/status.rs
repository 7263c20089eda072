//! `xidctl status`: what the plug-in keeps for a user, at a glance.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use imap_xid::registry::{BoxInfo, Registry};
use imap_xid::table::{Counts, Info, Table, WAIT_BUCKETS_MS};
use serde::Serialize;

use crate::boxes::ago;
use crate::error::Error;
use crate::host::hex;
use crate::place::{Place, PlaceArgs};
use crate::{Context, Outcome};

/// Show what the plug-in keeps for a user: files, numbers, mailboxes.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    place: PlaceArgs,
}

/// The files whose size says something.
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
    namespace: String,
    files: Vec<File>,
    numbers: Option<Numbers>,
    /// None while there is no table.
    waiting: Option<Waiting>,
    mailboxes: Vec<Mailbox>,
}

#[derive(Serialize)]
struct File {
    name: &'static str,
    /// Octets; none when there is no such file.
    size: Option<u64>,
}

#[derive(Serialize)]
struct Numbers {
    /// The highest number ever given; none while no process has the table in use.
    given: Option<u64>,
    reserved: u64,
    incarnation: u64,
}

/// The table's counters, since it was made: since the boot, mostly.
#[derive(Serialize)]
struct Waiting {
    pending: u64,
    waits: u64,
    timeouts: u64,
    gate_waits: u64,
    /// Commits that waited for UIDs below their mailbox's limit.
    limit_waits: u64,
    /// Commits that would have changed what is stable or promised.
    refusals: u64,
    advances: u64,
    /// Repairs after a process was killed while it changed the table.
    repairs: u64,
    wait_ms: u64,
    /// Waits that took at most so long, and longer than the row before says.
    wait_histogram: Vec<Bucket>,
}

#[derive(Serialize)]
struct Bucket {
    /// None for all longer ones.
    up_to_ms: Option<u64>,
    waits: u64,
}

impl From<Counts> for Waiting {
    fn from(counts: Counts) -> Waiting {
        let bounds = WAIT_BUCKETS_MS.iter().copied().map(Some).chain([None]);
        let buckets = bounds.zip(counts.wait_buckets);
        Waiting {
            pending: counts.pending,
            waits: counts.waits,
            timeouts: counts.timeouts,
            gate_waits: counts.gate_waits,
            limit_waits: counts.limit_waits,
            refusals: counts.refusals,
            advances: counts.advances,
            repairs: counts.repairs,
            wait_ms: counts.wait_ms,
            wait_histogram: buckets
                .map(|(up_to_ms, waits)| Bucket { up_to_ms, waits })
                .collect(),
        }
    }
}

/// A mailbox as registry and table know it.
#[derive(Serialize, Default)]
struct Mailbox {
    name: String,
    guid: String,
    uidvalidity: u32,
    /// Messages in the registry.
    messages: u64,
    /// The UID up to which the registry knows all messages.
    covered: u32,
    watermark: Option<u32>,
    pending: u32,
    waiters: u32,
    oldest_pending_ms: Option<u64>,
    oldest_wait_ms: Option<u64>,
}

/// Prints the status.
///
/// # Errors
/// When the user's folder cannot be found or read.
pub fn run(args: &Args, context: &Context) -> Result<Outcome, Error> {
    let place = args.place.find(&context.host)?;
    let wanted = match (&args.place.mailbox, &place.user) {
        (Some(_), Some(user)) => {
            let found = args.place.mailboxes(&context.host, user)?;
            Some(found.iter().map(|one| hex(&one.guid)).collect::<Vec<_>>())
        }
        _ => None,
    };
    let mut status = {
        let _owner = place.as_owner()?;
        gather(&place)?
    };
    match (&wanted, &args.place.mailbox) {
        (Some(guids), _) => status.mailboxes.retain(|one| guids.contains(&one.guid)),
        (None, Some(name)) => status.mailboxes.retain(|one| one.name == *name),
        (None, None) => {}
    }
    context.output.print(&status, show)?;
    Ok(Outcome::Fine)
}

fn gather(place: &Place) -> Result<Status, Error> {
    let size = |dir: &Path, name| dir.join(name).metadata().ok().map(|meta| meta.len());
    let files = FILES.map(|name| File {
        name,
        size: size(&place.dir, name),
    });
    let table = open_table(&place.dir)?;
    let mut mailboxes = Vec::new();
    let mut numbers = None;
    if Registry::exists(&place.dir) {
        let registry = place.registry()?;
        let status = registry.status()?;
        numbers = Some(Numbers {
            given: table.as_ref().and_then(|table| table.highest_given()),
            reserved: status.reserved,
            incarnation: status.incarnation,
        });
        mailboxes = registry.boxes()?.into_iter().map(from_registry).collect();
    }
    if let Some(table) = &table {
        add_table(&mut mailboxes, table)?;
    }
    Ok(Status {
        dir: place.dir.clone(),
        user: place.user.clone(),
        namespace: place.namespace.clone(),
        files: files.into(),
        numbers,
        waiting: table.map(|table| table.counts().into()),
        mailboxes,
    })
}

/// The table, if there is one: looking must not make it.
fn open_table(dir: &Path) -> Result<Option<Arc<Table>>, Error> {
    if !dir.join("xid.table").exists() {
        return Ok(None);
    }
    Ok(Some(Arc::new(Table::open(dir)?.0)))
}

fn from_registry(info: BoxInfo) -> Mailbox {
    Mailbox {
        name: info.name,
        guid: hex(&info.guid),
        uidvalidity: info.uidvalidity,
        messages: info.messages,
        covered: info.covered,
        ..Mailbox::default()
    }
}

/// What the table says beside the registry; a mailbox that is new may be in it alone.
fn add_table(mailboxes: &mut Vec<Mailbox>, table: &Arc<Table>) -> Result<(), Error> {
    for slot in table.mailboxes()? {
        let info = slot.info()?;
        let guid = hex(&info.guid);
        match mailboxes.iter_mut().find(|mailbox| mailbox.guid == guid) {
            Some(mailbox) => fill(mailbox, &info),
            None => {
                let name = String::from_utf8_lossy(&info.name).into_owned();
                let uidvalidity = info.uidvalidity;
                let mut mailbox = Mailbox {
                    name,
                    guid,
                    uidvalidity,
                    ..Mailbox::default()
                };
                fill(&mut mailbox, &info);
                mailboxes.push(mailbox);
            }
        }
    }
    Ok(())
}

fn fill(mailbox: &mut Mailbox, info: &Info) {
    mailbox.watermark = info.watermark;
    mailbox.pending = info.pending;
    mailbox.waiters = info.waiters;
    mailbox.oldest_pending_ms = info.oldest_pending.map(|(_, ms)| ms);
    mailbox.oldest_wait_ms = info.oldest_wait_ms;
}

fn show(out: &mut dyn Write, status: &Status) -> io::Result<()> {
    writeln!(out, "folder       {}", status.dir.display())?;
    if let Some(user) = &status.user {
        writeln!(out, "user         {user}")?;
    }
    writeln!(out, "namespace    {}", status.namespace)?;
    for file in &status.files {
        match file.size {
            Some(size) => writeln!(out, "{:<18} {size} bytes", file.name)?,
            None => writeln!(out, "{:<18} none", file.name)?,
        }
    }
    if let Some(Numbers {
        given,
        reserved,
        incarnation,
    }) = &status.numbers
    {
        let given = given.map_or("none since the table was made".to_owned(), |n| {
            n.to_string()
        });
        writeln!(out, "highest given      {given}")?;
        writeln!(
            out,
            "reserved up to     {reserved} (incarnation {incarnation})"
        )?;
    }
    if let Some(waiting) = &status.waiting {
        show_waiting(out, waiting)?;
    }
    for mailbox in &status.mailboxes {
        writeln!(out, "{}", describe(mailbox))?;
    }
    Ok(())
}

fn show_waiting(out: &mut dyn Write, waiting: &Waiting) -> io::Result<()> {
    writeln!(out, "pending UIDs       {}", waiting.pending)?;
    writeln!(out, "advances           {}", waiting.advances)?;
    writeln!(out, "waits at a gate    {}", waiting.gate_waits)?;
    writeln!(out, "waits at the limit {}", waiting.limit_waits)?;
    writeln!(out, "refused commits    {}", waiting.refusals)?;
    writeln!(out, "repairs            {}", waiting.repairs)?;
    write!(out, "waits for UIDs     {}", waiting.waits)?;
    write!(out, ", {} timed out", waiting.timeouts)?;
    if let Some(average) = waiting.wait_ms.checked_div(waiting.waits) {
        write!(out, ", {} on average", ago(average))?;
    }
    writeln!(out)?;
    for bucket in waiting
        .wait_histogram
        .iter()
        .filter(|bucket| bucket.waits > 0)
    {
        match bucket.up_to_ms {
            Some(ms) => writeln!(out, "  up to {:<12} {}", ago(ms), bucket.waits)?,
            None => writeln!(out, "  longer             {}", bucket.waits)?,
        }
    }
    Ok(())
}

fn describe(mailbox: &Mailbox) -> String {
    let mut text = format!(
        "mailbox {}: {} messages up to UID {} in the registry",
        mailbox.name, mailbox.messages, mailbox.covered
    );
    if let Some(watermark) = mailbox.watermark {
        text.push_str(&format!(
            ", watermark {watermark}, {} pending, {} waiting",
            mailbox.pending, mailbox.waiters
        ));
    }
    text
}
