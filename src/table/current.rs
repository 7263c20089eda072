//! The mail root's table, whichever that is by now: a table may be deleted or replaced while it
//! is in use.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use parking_lot::RwLock;

use super::{Error, Opened, Table};

/// A mail root's table, opened again when it was replaced.
pub struct Current {
    dir: PathBuf,
    table: RwLock<Arc<Table>>,
    /// Counts the tables. Raised after `table` was stored.
    generation: AtomicU32,
}

impl Current {
    /// Opens the table of the mail root `dir` as [`Table::open`] does.
    pub fn open(dir: &Path) -> Result<(Current, Opened), Error> {
        let (table, opened) = Table::open(dir)?;
        let current = Current {
            dir: dir.to_owned(),
            table: RwLock::new(Arc::new(table)),
            generation: AtomicU32::new(1),
        };
        Ok((current, opened))
    }

    /// The mail root.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The table as far as this process knows.
    pub fn table(&self) -> Arc<Table> {
        Arc::clone(&self.table.read())
    }

    /// Changes when the table was opened again: mailboxes must be attached again.
    pub fn generation(&self) -> u32 {
        self.generation.load(Ordering::Acquire)
    }

    /// Opens the table again if it was deleted or replaced, and says how that was found; `None`
    /// when it is still the one. Costs one system call then.
    pub fn refresh(&self) -> Result<Option<Opened>, Error> {
        if self.table().is_current() {
            return Ok(None);
        }
        let mut table = self.table.write();
        if table.is_current() {
            return Ok(None);
        }
        let (new, opened) = Table::open(&self.dir)?;
        *table = Arc::new(new);
        self.generation.fetch_add(1, Ordering::Release);
        Ok(Some(opened))
    }
}
