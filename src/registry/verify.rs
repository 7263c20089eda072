//! Whether the registry agrees with itself; what `xidctl verify` starts with.

use super::db::{Db, signed};
use super::error::Error;
use super::witness::Evidence;

/// Complaints of one kind that are reported; there may be a million of them.
const REPORTED: u32 = 100;

/// Something in the registry that cannot be right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// SQLite finds the file damaged.
    Damaged(String),
    /// This node's own XID has a number that was never reserved: it may be given once more.
    Unreserved {
        /// The mailbox's name.
        mailbox: String,
        /// The XID.
        xid: String,
        /// The highest reserved number.
        reserved: u64,
    },
    /// Two messages have one XID.
    Double {
        /// The XID.
        xid: String,
        /// The mailboxes' names, and the UIDs there.
        places: String,
    },
    /// Rows of a mailbox or a namespace that is not listed.
    Orphans(u64),
    /// The witness has seen more than the registry.
    WitnessAhead {
        /// The highest number that the witness knows.
        witnessed: u64,
        /// The highest reserved number.
        reserved: u64,
    },
    /// The witness is missing or says nothing, although numbers were reserved.
    WitnessLost,
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Finding::Damaged(what) => write!(f, "the registry is damaged: {what}"),
            Finding::Unreserved {
                mailbox,
                xid,
                reserved,
            } => {
                write!(
                    f,
                    "{mailbox}: {xid} was never reserved (reserved up to {reserved})"
                )
            }
            Finding::Double { xid, places } => write!(f, "{xid} names several messages: {places}"),
            Finding::Orphans(rows) => write!(f, "{rows} rows belong to no mailbox or namespace"),
            Finding::WitnessAhead {
                witnessed,
                reserved,
            } => write!(
                f,
                "the witness has seen {witnessed}, the registry reserved {reserved} only: an old \
                 registry was put back, and the next numbers will be of a new incarnation"
            ),
            Finding::WitnessLost => {
                write!(f, "the witness xid.incarnation is missing or unreadable")
            }
        }
    }
}

/// Everything that is wrong, at most 100 of a kind.
pub(super) fn verify(db: &Db, witness: Evidence, namespace: &str) -> Result<Vec<Finding>, Error> {
    let mut findings: Vec<Finding> = db
        .all("PRAGMA integrity_check(100)", [], |row| {
            row.get::<_, String>(0)
        })?
        .into_iter()
        .filter(|line| line != "ok")
        .map(Finding::Damaged)
        .collect();
    let reserved = db.reserved()?;
    findings.extend(unreserved(db, namespace, reserved)?);
    findings.extend(doubles(db)?);
    findings.extend(orphans(db)?);
    findings.extend(match witness {
        Evidence::Reserved(witnessed) if witnessed > reserved => Some(Finding::WitnessAhead {
            witnessed,
            reserved,
        }),
        Evidence::None | Evidence::Unreadable if reserved > 0 => Some(Finding::WitnessLost),
        _ => None,
    });
    Ok(findings)
}

fn unreserved(db: &Db, namespace: &str, reserved: u64) -> Result<Vec<Finding>, Error> {
    db.all(
        "SELECT b.name, m.number FROM namespaces n, boxes b, messages m \
         WHERE n.name = ?1 AND m.box = b.id AND m.ns = n.id AND m.number > ?2 LIMIT ?3",
        (namespace, signed(reserved), REPORTED),
        |row| {
            Ok(Finding::Unreserved {
                mailbox: row.get(0)?,
                xid: format!("{namespace}-{}", row.get::<_, i64>(1)?),
                reserved,
            })
        },
    )
}

fn doubles(db: &Db) -> Result<Vec<Finding>, Error> {
    db.all(
        "SELECT n.name || '-' || m.number, group_concat(b.name || ' UID ' || m.uid, ', ') \
         FROM messages m, namespaces n, boxes b \
         WHERE n.id = m.ns AND b.id = m.box AND length(b.guid) = 16 \
         GROUP BY m.ns, m.number HAVING count(*) > 1 LIMIT ?1",
        [REPORTED],
        |row| {
            Ok(Finding::Double {
                xid: row.get(0)?,
                places: row.get(1)?,
            })
        },
    )
}

fn orphans(db: &Db) -> Result<Option<Finding>, Error> {
    let rows: Option<i64> = db.one(
        "SELECT count(*) FROM messages WHERE box NOT IN (SELECT id FROM boxes) \
         OR ns NOT IN (SELECT id FROM namespaces)",
        [],
        |row| row.get(0),
    )?;
    Ok(rows
        .and_then(|n| u64::try_from(n).ok())
        .filter(|&n| n > 0)
        .map(Finding::Orphans))
}
