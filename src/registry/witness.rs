//! The witness, `xid.incarnation`: one line that outlives the registry, so that a registry that
//! was deleted, moved aside or put back from a backup never makes a number be given twice.
//!
//! `1 <incarnation> <reserved>`: the version of the line, the incarnation, and the highest number
//! that was reserved. It is written after the registry and before the numbers are used.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::error::Error;
use super::files::{self, LockKind};
use super::numbers::INCARNATION_SHIFT;

/// The longest line: two numbers of 20 digits.
const LINE_MAX: usize = 64;

/// Stands in a witness that was made where something else was.
const UNREADABLE: &[u8] = b"?\n";

/// How long to wait for another process that opens or reserves (two durable writes).
const LOCK_LIMIT: Duration = Duration::from_secs(10);

const SECONDS_PER_DAY: u64 = 86_400;

/// What the witness says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Evidence {
    /// There was no registry before.
    None,
    /// An earlier registry reserved up to this number.
    Reserved(u64),
    /// There was one, and nothing more can be known.
    Unreadable,
}

impl Evidence {
    /// The number above which a new registry must start, if there was an earlier one.
    ///
    /// From an unreadable witness it is made of the date: the count of days is above every
    /// incarnation that came by one loss at a time.
    pub(super) fn floor(self) -> Option<u64> {
        match self {
            Evidence::None => None,
            Evidence::Reserved(number) => Some(number),
            Evidence::Unreadable => {
                let now = SystemTime::now()
                    .duration_since(UNIX_EPOCH)
                    .unwrap_or_default();
                Some((now.as_secs() / SECONDS_PER_DAY) << INCARNATION_SHIFT)
            }
        }
    }
}

/// The witness of a mail root. Its lock also guards the opening of the registry.
pub(super) struct Witness {
    path: PathBuf,
}

impl Witness {
    pub(super) fn new(path: PathBuf) -> Self {
        Witness { path }
    }

    /// Runs `work` while no other process opens the registry or changes the witness.
    pub(super) fn locked<T>(
        &self,
        work: impl FnOnce(&Locked<'_>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let mut options = OpenOptions::new();
        options
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600);
        options.custom_flags(libc::O_CLOEXEC | libc::O_NOFOLLOW);
        let files::Own { file, was_none, .. } = files::open_own(&self.path, &options)?;
        if was_none {
            // An empty one would say that there never was a registry.
            file.write_all_at(UNREADABLE, 0)
                .map_err(|e| Error::io("write", &self.path, e))?;
        }
        files::give_to_owner(&file, &self.path)?;
        let _held = files::lock(&file, &self.path, LockKind::Exclusive, LOCK_LIMIT)?;
        work(&Locked {
            file: &file,
            path: &self.path,
        })
    }

    /// What it says now. Does not make it.
    pub(super) fn read(&self) -> Result<Evidence, Error> {
        if files::identity(&self.path)?.is_none() {
            return Ok(Evidence::None);
        }
        self.locked(|witness| witness.read())
    }
}

/// The witness while it is locked.
pub(super) struct Locked<'a> {
    file: &'a File,
    path: &'a Path,
}

impl Locked<'_> {
    pub(super) fn read(&self) -> Result<Evidence, Error> {
        let mut line = [0; LINE_MAX];
        let n = self
            .file
            .read_at(&mut line, 0)
            .map_err(|e| Error::io("read", self.path, e))?;
        Ok(parse(&line[..n]))
    }

    /// Makes it say `reserved`, durably, unless it says more.
    pub(super) fn raise(&self, reserved: u64) -> Result<(), Error> {
        if matches!(self.read()?, Evidence::Reserved(known) if known >= reserved) {
            return Ok(());
        }
        // In place and within one sector: it is the old line or the new one, whatever happens.
        // The padding overwrites an unreadable line that was longer.
        let line = format!("1 {} {reserved}", reserved >> INCARNATION_SHIFT);
        let line = format!("{line:<width$}\n", width = LINE_MAX - 1);
        self.file
            .write_all_at(line.as_bytes(), 0)
            .and_then(|()| self.file.sync_all())
            .map_err(|e| Error::io("write", self.path, e))?;
        files::sync_folder_of(self.path)
    }
}

fn parse(line: &[u8]) -> Evidence {
    if line.is_empty() {
        return Evidence::None;
    }
    let number = |text: &str| {
        text.parse::<u64>()
            .ok()
            .filter(|&n| n <= crate::xid::NUMBER_MAX)
    };
    let fields = str::from_utf8(line).map(|line| line.split_ascii_whitespace().collect::<Vec<_>>());
    match fields.as_deref() {
        Ok(["1", incarnation, reserved]) => match (number(incarnation), number(reserved)) {
            (Some(i), Some(r)) if r >> INCARNATION_SHIFT == i => Evidence::Reserved(r),
            _ => Evidence::Unreadable,
        },
        _ => Evidence::Unreadable,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_witness_only_ever_rises() {
        let dir = tempfile::tempdir().unwrap();
        let witness = Witness::new(dir.path().join("w"));
        assert_eq!(witness.read().unwrap(), Evidence::None);
        for (raise, says) in [
            (4096, 4096),
            (100, 4096),
            (1 << 40, 1 << 40),
            (9000, 1 << 40),
        ] {
            witness.locked(|w| w.raise(raise)).unwrap();
            assert_eq!(witness.read().unwrap(), Evidence::Reserved(says));
        }
    }

    #[test]
    fn an_unreadable_witness_is_above_every_ordinary_incarnation_and_can_be_written_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("w");
        for bad in [
            "x",
            "1 0",
            "2 0 0\n",
            "1 1 5\n",
            "1 0 99999999999999999999\n",
            "\u{ff}",
        ] {
            std::fs::write(&path, bad).unwrap();
            assert_eq!(parse(bad.as_bytes()), Evidence::Unreadable, "{bad:?}");
            let witness = Witness::new(path.clone());
            let floor = witness.read().unwrap().floor().unwrap();
            assert!(floor > 10_000 << INCARNATION_SHIFT, "{floor}");
            witness.locked(|w| w.raise(floor)).unwrap();
            assert_eq!(witness.read().unwrap(), Evidence::Reserved(floor));
        }
    }
}
