//! Watermarks: what a mailbox's clients were shown last survives a power loss, so that no reboot
//! shows a lower UIDNEXT.
//!
//! They count as long as watermarks are in use. Once a server was told that UIDs are stable at
//! once, clients see UIDs above them, and they must be forgotten: a mail root that is opened in
//! that way looks for an empty file beside the registry, made before the first watermark, and
//! opens the registry only where that is.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use super::db::Db;
use super::{BoxGuid, Error, Registry, files};
use crate::table::Watermarks;

/// Stores a watermark. It never falls under one UIDVALIDITY; another UIDVALIDITY begins anew.
const RAISE: &str = "INSERT INTO watermarks(guid, uidvalidity, uid) VALUES(?1, ?2, ?3) \
    ON CONFLICT(guid) DO UPDATE SET uid = excluded.uid, uidvalidity = excluded.uidvalidity \
    WHERE uidvalidity <> excluded.uidvalidity OR uid < excluded.uid";

const READ: &str = "SELECT uid FROM watermarks WHERE guid = ?1 AND uidvalidity = ?2";

fn read(db: &Db, guid: &BoxGuid, uidvalidity: u32) -> Result<Option<u32>, Error> {
    db.one(READ, (guid.as_slice(), uidvalidity), |row| row.get(0))
}

impl Registry {
    /// The watermark last stored for a mailbox under this UIDVALIDITY.
    pub fn watermark(&self, guid: &BoxGuid, uidvalidity: u32) -> Result<Option<u32>, Error> {
        self.insist(|db, _| read(db, guid, uidvalidity))
    }

    /// The stored watermark of a mailbox; where it has none under this UIDVALIDITY, `uid`, which
    /// is durable when this returns.
    pub fn begin_watermark(
        &self,
        guid: &BoxGuid,
        uidvalidity: u32,
        uid: u32,
    ) -> Result<u32, Error> {
        self.insist(|db, _| {
            if let Some(stored) = read(db, guid, uidvalidity)? {
                return Ok(stored);
            }
            self.mark_watermarks()?;
            db.durably(|| match read(db, guid, uidvalidity)? {
                // Another process was first.
                Some(stored) => Ok(stored),
                None => db
                    .run(RAISE, (guid.as_slice(), uidvalidity, uid))
                    .map(|_| uid),
            })
        })
    }

    /// Stores a watermark; it survives a power loss when this returns. It never falls under one
    /// UIDVALIDITY.
    pub fn set_watermark(&self, guid: &BoxGuid, uidvalidity: u32, uid: u32) -> Result<(), Error> {
        self.raise_watermarks(&[(*guid, uidvalidity, uid)])
    }

    /// Stores watermarks (mailbox, UIDVALIDITY, UID) in one transaction; they survive a power loss
    /// when this returns.
    pub fn raise_watermarks(&self, marks: &[(BoxGuid, u32, u32)]) -> Result<(), Error> {
        if marks.is_empty() {
            return Ok(());
        }
        self.insist(|db, _| {
            self.mark_watermarks()?;
            db.durably(|| {
                for (guid, uidvalidity, uid) in marks {
                    db.run(RAISE, (guid.as_slice(), uidvalidity, uid))?;
                }
                Ok(())
            })
        })
    }
}

impl Registry {
    /// Whether there are watermarks: one system call.
    pub fn has_watermarks(&self) -> bool {
        self.watermarks_mark().exists()
    }

    /// Forgets all watermarks, for a mail root whose UIDs are stable at once from here on. When
    /// watermarks come into use again, every mailbox starts with all that it holds as stable.
    pub fn forget_watermarks(&self) -> Result<(), Error> {
        self.insist(|db, _| db.durably(|| db.run("DELETE FROM watermarks", [])))?;
        let mark = self.watermarks_mark();
        match std::fs::remove_file(&mark) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", &mark, e)),
            _ => Ok(()),
        }
    }

    fn watermarks_mark(&self) -> PathBuf {
        self.path().with_file_name(files::WATERMARKS)
    }

    /// Says that there are watermarks, before the first is stored.
    fn mark_watermarks(&self) -> Result<(), Error> {
        if self.has_watermarks() {
            return Ok(());
        }
        let mark = self.watermarks_mark();
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false).mode(0o600);
        let file = files::open_own(&mark, &options)?.file;
        files::give_to_owner(&file, &mark)?;
        files::sync_folder_of(&mark)
    }
}

impl Watermarks for &Registry {
    fn begin(&mut self, guid: &BoxGuid, uidvalidity: u32, uid: u32) -> Result<u32, String> {
        self.begin_watermark(guid, uidvalidity, uid)
            .map_err(|e| e.to_string())
    }

    fn raise(&mut self, marks: &[(BoxGuid, u32, u32)]) -> Result<(), String> {
        self.raise_watermarks(marks).map_err(|e| e.to_string())
    }
}
