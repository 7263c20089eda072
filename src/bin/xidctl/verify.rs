//! `xidctl verify`: whether index, registry and reservation agree.

use std::collections::BTreeMap;
use std::io::{self, Write};

use imap_xid::registry::{Entry, Exported, Finding, Registry};
use imap_xid::xid::Xid;
use serde::Serialize;

use crate::error::Error;
use crate::host::Mailbox;
use crate::index::Index;
use crate::output::Output;
use crate::place::{Place, PlaceArgs};
use crate::{Context, Outcome};

/// Compare index, registry and reservation, and print what does not agree.
///
/// With -u every mailbox's own index is read, through doveadm; with --dir only the registry is
/// looked at. The exit status is 3 when differences are left.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    place: PlaceArgs,

    /// Write the registry anew from the indexes where it is wrong; needs -u.
    #[arg(long, requires = "user")]
    repair: bool,
}

/// What is wrong, of one kind, in one place.
#[derive(Serialize, Debug, PartialEq, Eq)]
struct Difference {
    /// None for the registry as a whole.
    mailbox: Option<String>,
    #[serde(flatten)]
    what: What,
    /// Whether --repair has removed it.
    repaired: bool,
}

#[derive(Serialize, Debug, PartialEq, Eq)]
#[serde(rename_all = "snake_case", tag = "kind", content = "detail")]
enum What {
    /// The registry disagrees with itself.
    Registry(String),
    /// The file is damaged, and cannot be trusted at all.
    Damaged(String),
    /// A message without an XID.
    NoXid { uid: u32 },
    /// One XID, several messages.
    Double { xid: String, uids: Vec<u32> },
    /// A number above the one that the mailbox's header has as the highest.
    AboveHigh { uid: u32, xid: String, high: u64 },
    /// A number of this server's that was never reserved.
    Unreserved {
        uid: u32,
        xid: String,
        reserved: u64,
    },
    /// The index has a message that the registry does not have.
    NotRegistered { uid: u32, xid: String },
    /// The registry has another XID for the message.
    Other {
        uid: u32,
        xid: String,
        registered: String,
    },
    /// The registry has a message that the index does not have.
    Gone { uid: u32, registered: String },
}

impl What {
    /// Whether writing the mailbox's rows anew removes it.
    fn is_of_the_rows(&self) -> bool {
        matches!(
            self,
            What::NotRegistered { .. } | What::Other { .. } | What::Gone { .. }
        )
    }

    fn text(&self) -> String {
        match self {
            What::Registry(text) => text.clone(),
            What::Damaged(text) => format!("the registry's file is damaged: {text}"),
            What::NoXid { uid } => {
                format!("UID {uid} has no XID: open the mailbox with the plug-in")
            }
            What::Double { xid, uids } => format!("{xid} names several messages: UIDs {uids:?}"),
            What::AboveHigh { uid, xid, high } => {
                format!("UID {uid}: {xid} is above the highest number in the index header, {high}")
            }
            What::Unreserved { uid, xid, reserved } => {
                format!("UID {uid}: {xid} was never reserved (reserved up to {reserved})")
            }
            What::NotRegistered { uid, xid } => format!("UID {uid}: {xid} is not in the registry"),
            What::Other {
                uid,
                xid,
                registered,
            } => {
                format!("UID {uid}: {xid} in the index, {registered} in the registry")
            }
            What::Gone { uid, registered } => {
                format!("UID {uid}: {registered} is in the registry, the message is gone")
            }
        }
    }
}

#[derive(Serialize)]
struct Report {
    mailboxes: usize,
    messages: usize,
    differences: Vec<Difference>,
}

/// Verifies, repairs if asked to, and prints what was found.
///
/// # Errors
/// When the user's folder cannot be found, or a mailbox not read.
pub fn run(args: &Args, context: &Context) -> Result<Outcome, Error> {
    let place = args.place.find(&context.host)?;
    let mut report = Report {
        mailboxes: 0,
        messages: 0,
        differences: Vec::new(),
    };
    let mut check = Check {
        context,
        place: &place,
        registry: place.existing_registry()?,
        report: &mut report,
    };
    check.whole(args.repair)?;
    if let Some(user) = &place.user {
        let mailboxes = args.place.mailboxes(&context.host, user)?;
        let bar = context.output.progress("mailboxes", mailboxes.len() as u64);
        for mailbox in &mailboxes {
            check.mailbox(user, mailbox, args.repair)?;
            bar.inc(1);
        }
        bar.finish_and_clear();
    }
    print(&context.output, &report)?;
    let left = report
        .differences
        .iter()
        .any(|difference| !difference.repaired);
    Ok(if left { Outcome::Found } else { Outcome::Fine })
}

/// One verification under way.
struct Check<'a> {
    context: &'a Context,
    place: &'a Place,
    registry: Registry,
    report: &'a mut Report,
}

impl Check<'_> {
    /// The registry by itself. One that is damaged is moved aside by a repair, and filled again
    /// when the mailboxes are looked at.
    fn whole(&mut self, repair: bool) -> Result<(), Error> {
        let _owner = self.place.as_owner()?;
        let findings = match self.registry.verify() {
            // So broken that it could not even be looked at: it is moved aside already.
            Err(imap_xid::registry::Error::Broken { why, .. }) => {
                self.note(None, What::Damaged(why), repair);
                return Ok(());
            }
            findings => findings?,
        };
        for finding in findings {
            let (what, repairable) = match finding {
                Finding::Damaged(text) => (What::Damaged(text), repair),
                other => (What::Registry(other.to_string()), false),
            };
            self.note(None, what, repairable);
        }
        if let Some(Difference {
            what: What::Damaged(why),
            repaired: true,
            ..
        }) = self.report.differences.iter().find(|one| one.repaired)
        {
            self.registry.set_aside(why)?;
        }
        Ok(())
    }

    /// One mailbox's index against its rows.
    fn mailbox(&mut self, user: &str, mailbox: &Mailbox, repair: bool) -> Result<(), Error> {
        let host = &self.context.host;
        // Opens the mailbox with the plug-in, which gives XIDs where there are none.
        let guids = match repair {
            true => host.message_guids(user, &mailbox.guid)?,
            false => Default::default(),
        };
        let index = Index::read(host, user, mailbox)?;
        self.report.mailboxes += 1;
        self.report.messages += index.records.len();
        let _owner = self.place.as_owner()?;
        self.index_alone(mailbox, &index)?;
        let rows = compare(&index, &self.rows(mailbox)?);
        let repaired = repair && rows.iter().any(What::is_of_the_rows);
        if repaired {
            self.write_rows(mailbox, &index, &guids)?;
        }
        let left = match repaired {
            true => compare(&index, &self.rows(mailbox)?),
            false => Vec::new(),
        };
        for what in rows {
            let gone = repaired && !left.contains(&what);
            self.note(Some(mailbox), what, gone);
        }
        Ok(())
    }

    /// What is wrong in the index itself, or with the numbers in it.
    fn index_alone(&mut self, mailbox: &Mailbox, index: &Index) -> Result<(), Error> {
        let reserved = self.registry.reserved()?;
        for record in &index.records {
            let uid = record.uid;
            let Some((namespace, number)) = record.xid else {
                self.note(Some(mailbox), What::NoXid { uid }, false);
                continue;
            };
            let xid = index.xid_text((namespace, number));
            let (name, high) = index.namespaces.get(namespace).cloned().unwrap_or_default();
            if number > high {
                self.note(Some(mailbox), What::AboveHigh { uid, xid, high }, false);
            } else if name == self.place.namespace && number > reserved {
                self.note(
                    Some(mailbox),
                    What::Unreserved { uid, xid, reserved },
                    false,
                );
            }
        }
        for (xid, uids) in index.doubles() {
            self.note(
                Some(mailbox),
                What::Double {
                    xid: index.xid_text(xid),
                    uids,
                },
                false,
            );
        }
        Ok(())
    }

    fn rows(&self, mailbox: &Mailbox) -> Result<Vec<Exported>, Error> {
        // Takes the journal in: what is in it is registered.
        self.registry
            .registered(&core_mailbox(mailbox), mailbox.uidnext)?;
        let rows: Result<Vec<_>, _> = self.registry.export(&mailbox.guid).collect();
        Ok(rows?)
    }

    fn write_rows(
        &self,
        mailbox: &Mailbox,
        index: &Index,
        guids: &std::collections::HashMap<u32, String>,
    ) -> Result<(), Error> {
        let entries: Vec<Entry<'_>> = index
            .records
            .iter()
            .filter_map(|record| {
                let (namespace, number) = record.xid?;
                let (name, _) = index.namespaces.get(namespace)?;
                let xid = Xid::new(name.as_bytes(), number).ok()?;
                let guid = guids
                    .get(&record.uid)
                    .map_or(&b""[..], |guid| guid.as_bytes());
                Some(Entry {
                    uid: record.uid,
                    xid,
                    guid,
                })
            })
            .collect();
        let below = entries
            .last()
            .map_or(1, |entry| entry.uid + 1)
            .max(mailbox.uidnext);
        Ok(self
            .registry
            .register(&core_mailbox(mailbox), &entries, below, true)?)
    }

    fn note(&mut self, mailbox: Option<&Mailbox>, what: What, repaired: bool) {
        let mailbox = mailbox.map(|mailbox| mailbox.name.clone());
        self.report.differences.push(Difference {
            mailbox,
            what,
            repaired,
        });
    }
}

fn core_mailbox(mailbox: &Mailbox) -> imap_xid::registry::Mailbox {
    imap_xid::registry::Mailbox::new(mailbox.guid, &mailbox.name, mailbox.uidvalidity)
}

/// Where index and rows differ. A message that came after the index was read is not "gone".
fn compare(index: &Index, rows: &[Exported]) -> Vec<What> {
    let mut registered: BTreeMap<u32, String> = rows
        .iter()
        .map(|row| (row.uid, format!("{}-{}", row.namespace, row.number)))
        .collect();
    let last = index.records.last().map_or(0, |record| record.uid);
    let mut found = Vec::new();
    for record in &index.records {
        let known = registered.remove(&record.uid);
        let Some(xid) = record.xid else { continue };
        let (uid, xid) = (record.uid, index.xid_text(xid));
        match known {
            None => found.push(What::NotRegistered { uid, xid }),
            Some(known) if known != xid => {
                found.push(What::Other {
                    uid,
                    xid,
                    registered: known,
                });
            }
            Some(_) => {}
        }
    }
    let gone = registered.into_iter().filter(|(uid, _)| *uid <= last);
    found.extend(gone.map(|(uid, registered)| What::Gone { uid, registered }));
    found
}

fn print(output: &Output, report: &Report) -> Result<(), Error> {
    output.print(report, |out, report| show(out, report))
}

fn show(out: &mut dyn Write, report: &Report) -> io::Result<()> {
    for difference in &report.differences {
        let place = difference.mailbox.as_deref().unwrap_or("registry");
        let end = if difference.repaired {
            " (repaired)"
        } else {
            ""
        };
        writeln!(out, "{place}: {}{end}", difference.what.text())?;
    }
    writeln!(
        out,
        "{} mailboxes, {} messages, {} differences, {} repaired",
        report.mailboxes,
        report.messages,
        report.differences.len(),
        report.differences.iter().filter(|one| one.repaired).count()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::Record;

    fn index(messages: &[(u32, u64)]) -> Index {
        let record = |&(uid, number): &(u32, u64)| Record {
            uid,
            xid: Some((0, number)),
        };
        Index {
            namespaces: vec![("foo".into(), 100)],
            records: messages.iter().map(record).collect(),
        }
    }

    fn rows(messages: &[(u32, u64)]) -> Vec<Exported> {
        let row = |&(uid, number): &(u32, u64)| Exported {
            uid,
            namespace: "foo".into(),
            number,
            guid: Vec::new(),
        };
        messages.iter().map(row).collect()
    }

    #[test]
    fn index_and_rows_that_agree_have_no_difference() {
        assert_eq!(
            compare(&index(&[(1, 1), (3, 2)]), &rows(&[(1, 1), (3, 2)])),
            []
        );
    }

    #[test]
    fn every_way_to_differ_is_named() {
        let found = compare(
            &index(&[(1, 1), (3, 2), (4, 3)]),
            &rows(&[(2, 9), (3, 8), (4, 3)]),
        );
        assert_eq!(
            found,
            [
                What::NotRegistered {
                    uid: 1,
                    xid: "foo-1".into()
                },
                What::Other {
                    uid: 3,
                    xid: "foo-2".into(),
                    registered: "foo-8".into()
                },
                What::Gone {
                    uid: 2,
                    registered: "foo-9".into()
                },
            ]
        );
    }

    #[test]
    fn what_came_after_the_index_was_read_is_not_gone() {
        assert_eq!(compare(&index(&[(1, 1)]), &rows(&[(1, 1), (2, 2)])), []);
    }
}
