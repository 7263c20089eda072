//! The mailboxes of a user's UID-assignment table, for the commands that look at it or change it.

use std::sync::Arc;
use std::time::Duration;

use imap_xid::registry::Registry;
use imap_xid::table::{Info, Mailbox, Table};

use crate::Context;
use crate::error::Error;
use crate::host::parse_guid;
use crate::place::{AsOwner, Place, PlaceArgs};

/// A user's table, and the right to use it as the mail's owner.
pub struct Boxes {
    /// The table.
    pub table: Arc<Table>,
    /// The folder it is in.
    pub place: Place,
    /// The GUID of the one mailbox that was asked for.
    wanted: Option<[u8; 16]>,
    /// The name of the one mailbox that was asked for, where Dovecot was not.
    name: Option<String>,
    _owner: AsOwner,
}

impl Boxes {
    /// Opens the table that the options name.
    ///
    /// # Errors
    /// When there is none: looking must not make one.
    pub fn open(args: &PlaceArgs, context: &Context) -> Result<Boxes, Error> {
        let place = args.find(&context.host)?;
        let (wanted, name) = match (&place.user, &args.mailbox) {
            (Some(user), Some(name)) => (guid_of(args, context, user, name)?, None),
            (None, Some(name)) => (parse_guid(name), Some(name.clone())),
            (_, None) => (None, None),
        };
        let owner = place.as_owner()?;
        if !place.dir.join("xid.table").exists() {
            let why = "it has no xid.table: nobody opened the mail since the boot".to_owned();
            let dir = place.dir;
            return Err(Error::NotARoot { dir, why });
        }
        let table = Arc::new(Table::open(&place.dir)?.0);
        Ok(Boxes {
            table,
            place,
            wanted,
            name,
            _owner: owner,
        })
    }

    /// The mailboxes that were asked for and are in the table, by name.
    ///
    /// # Errors
    /// When the table cannot be read.
    pub fn list(&self) -> Result<Vec<(Mailbox, Info)>, Error> {
        let mut found = Vec::new();
        for mailbox in self.table.mailboxes()? {
            let info = mailbox.info()?;
            if self.is_wanted(&info) {
                found.push((mailbox, info));
            }
        }
        found.sort_by(|a, b| a.1.name.cmp(&b.1.name));
        Ok(found)
    }

    fn is_wanted(&self, info: &Info) -> bool {
        match (&self.wanted, &self.name) {
            (Some(guid), _) => info.guid == *guid,
            (None, Some(name)) => info.name == name.as_bytes(),
            (None, None) => true,
        }
    }

    /// The one mailbox that a command is to change.
    ///
    /// # Errors
    /// When the table does not have it, or has several of that name.
    pub fn one(&self, args: &PlaceArgs) -> Result<(Mailbox, Info), Error> {
        let Some(name) = &args.mailbox else {
            return Err(Error::WhichMailbox);
        };
        let mut found = self.list()?;
        match (found.pop(), found.is_empty()) {
            (Some(one), true) => Ok(one),
            (Some(_), false) => Err(Error::SeveralMailboxes(name.clone())),
            (None, _) => Err(Error::NotInTable(name.clone())),
        }
    }

    /// The registry, in which watermarks are durable.
    ///
    /// # Errors
    /// When there is none.
    pub fn registry(&self) -> Result<Registry, Error> {
        self.place.existing_registry()
    }
}

/// The GUID of a mailbox, from Dovecot.
fn guid_of(
    args: &PlaceArgs,
    context: &Context,
    user: &str,
    name: &str,
) -> Result<Option<[u8; 16]>, Error> {
    let mut found = args.mailboxes(&context.host, user)?;
    match (found.pop(), found.is_empty()) {
        (Some(one), true) => Ok(Some(one.guid)),
        _ => Err(Error::SeveralMailboxes(name.to_owned())),
    }
}

/// A mailbox's name as people read it.
pub fn name_of(info: &Info) -> String {
    match info.name.is_empty() {
        true => imap_xid::table::guid_text(&info.guid),
        false => String::from_utf8_lossy(&info.name).into_owned(),
    }
}

/// A time as people read it: the largest unit that leaves a number above 0.
pub fn ago(ms: u64) -> String {
    match ms {
        0..1_000 => format!("{ms} ms"),
        1_000..60_000 => format!("{}.{} s", ms / 1_000, ms % 1_000 / 100),
        60_000..3_600_000 => format!("{} min", ms / 60_000),
        3_600_000..172_800_000 => format!("{} h", ms / 3_600_000),
        _ => format!("{} days", ms / 86_400_000),
    }
}

/// Reads a time as Dovecot's settings write it: `30s`, `5m`, `200ms`, `2h`.
///
/// # Errors
/// What was expected.
pub fn parse_time(text: &str) -> Result<Duration, String> {
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor = match unit.trim() {
        "ms" | "msecs" => 1,
        "s" | "secs" => 1_000,
        "m" | "min" | "mins" => 60_000,
        "h" | "hours" => 3_600_000,
        _ => 0,
    };
    let ms = number.parse().ok().and_then(|n: u64| n.checked_mul(factor));
    ms.filter(|ms| *ms > 0)
        .map(Duration::from_millis)
        .ok_or_else(|| "expected a number above 0 with a unit: 200ms, 30s, 5m or 2h".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_with_their_units_only() {
        assert_eq!(parse_time("200ms"), Ok(Duration::from_millis(200)));
        assert_eq!(parse_time("30s"), Ok(Duration::from_secs(30)));
        assert_eq!(parse_time("5 m"), Ok(Duration::from_secs(300)));
        assert_eq!(parse_time("2h"), Ok(Duration::from_secs(7200)));
        for bad in [
            "",
            "s",
            "5",
            "0s",
            "-1s",
            "1w",
            "99999999999999999999s",
            "18446744073709551615h",
        ] {
            assert!(parse_time(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn times_are_written_for_people() {
        assert_eq!(ago(999), "999 ms");
        assert_eq!(ago(1_250), "1.2 s");
        assert_eq!(ago(61_000), "1 min");
        assert_eq!(ago(7_200_000), "2 h");
        assert_eq!(ago(172_800_000), "2 days");
    }
}
