//! The SQLite file: opened, checked, given its schema; transactions and the plainest statements.
//!
//! Nothing but SQLite opens the file while it may be in use: closing any other descriptor of it
//! would drop the locks that SQLite holds for this process.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{
    Connection, OpenFlags, OptionalExtension, Params, Row, Transaction, TransactionBehavior,
};

use super::error::Error;
use super::files::{self, Identity};
use super::numbers::initial_reserved;
use super::witness::{Evidence, Locked, Witness};
use crate::log::{self, Level};

/// "xidr": says that an SQLite file is a registry.
const APPLICATION_ID: i32 = 0x7869_6472;

/// The schema that this release makes and knows.
const SCHEMA_VERSION: i32 = 3;

/// What versions added to the ones before them.
const ADDED: [(i32, &str); 4] = [
    (2, "expunged"),
    (2, "expunged_guid"),
    (3, "gone"),
    (3, "gone_guid"),
];

/// How long a statement waits for another process's transaction. Ours are cut into pieces that
/// take a fraction of it ([`super::rows::CHUNK`]).
pub(super) const BUSY_LIMIT: Duration = Duration::from_secs(5);

/// SQLite's page cache, in KiB: an idle session should not notice it.
const CACHE_KIB: i32 = 256;

/// No SQLite file has smaller pages, in octets.
const SMALLEST_PAGE: u64 = 512;

/// What SQLite's log keeps on disk after it was written back, in octets.
const LOG_KEPT: i32 = 4 << 20;

/// Statements that stay compiled.
const STATEMENTS_KEPT: usize = 24;

/// Every object of the schema, by the text that SQLite keeps of it: a file is ours when it has
/// exactly these.
///
/// `messages` is keyed by what XHXID asks for: the numbers of one namespace in one mailbox, in
/// order. `meta` has one row. `covered` is the UID up to which the registry is known to hold all
/// messages. `expunged` has what messages were at which UIDs, `gone` which XIDs they had (see
/// `expunged.rs`).
pub(super) const SCHEMA: [(&str, &str); 12] = [
    (
        "boxes",
        "CREATE TABLE boxes(id INTEGER PRIMARY KEY, guid BLOB NOT NULL UNIQUE, name TEXT NOT NULL, uidvalidity INTEGER NOT NULL, covered INTEGER NOT NULL)",
    ),
    ("boxes_name", "CREATE INDEX boxes_name ON boxes(name)"),
    (
        "expunged",
        "CREATE TABLE expunged(id INTEGER PRIMARY KEY, box INTEGER NOT NULL, guid BLOB NOT NULL, uid INTEGER NOT NULL)",
    ),
    (
        "expunged_guid",
        "CREATE UNIQUE INDEX expunged_guid ON expunged(box, guid)",
    ),
    (
        "gone",
        "CREATE TABLE gone(id INTEGER PRIMARY KEY, box INTEGER NOT NULL, guid BLOB NOT NULL, ns INTEGER NOT NULL, number INTEGER NOT NULL)",
    ),
    (
        "gone_guid",
        "CREATE UNIQUE INDEX gone_guid ON gone(box, guid, ns, number)",
    ),
    (
        "messages",
        "CREATE TABLE messages(box INTEGER NOT NULL, ns INTEGER NOT NULL, number INTEGER NOT NULL, uid INTEGER NOT NULL, guid BLOB NOT NULL, PRIMARY KEY(box, ns, number)) WITHOUT ROWID",
    ),
    (
        "messages_guid",
        "CREATE INDEX messages_guid ON messages(guid, box)",
    ),
    (
        "messages_uid",
        "CREATE UNIQUE INDEX messages_uid ON messages(box, uid)",
    ),
    (
        "meta",
        "CREATE TABLE meta(one INTEGER PRIMARY KEY CHECK(one = 1), reserved INTEGER NOT NULL)",
    ),
    (
        "namespaces",
        "CREATE TABLE namespaces(id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE)",
    ),
    (
        "watermarks",
        "CREATE TABLE watermarks(guid BLOB PRIMARY KEY, uidvalidity INTEGER NOT NULL, uid INTEGER NOT NULL) WITHOUT ROWID",
    ),
];

/// Whether a later version than this one added an object.
fn added_after(version: i32, name: &str) -> bool {
    let later = |(added, object): &(i32, &str)| *added > version && *object == name;
    ADDED.iter().any(later)
}

/// An open registry.
pub(super) struct Db {
    conn: Connection,
    path: PathBuf,
    identity: Identity,
}

impl Db {
    /// Opens the registry, makes it if it is missing, moves it aside if it is not one and then
    /// says what was wrong with it.
    pub(super) fn open(path: &Path, witness: &Witness) -> Result<(Self, Option<String>), Error> {
        witness.locked(|witness| match Self::open_checked(path, witness) {
            Err(Error::Broken { why, .. }) => {
                set_aside(path, &why)?;
                Ok((Self::open_checked(path, witness)?, Some(why)))
            }
            other => Ok((other?, None)),
        })
    }

    fn open_checked(path: &Path, witness: &Locked<'_>) -> Result<Self, Error> {
        if path.is_dir() {
            return Err(Error::Broken {
                path: path.to_owned(),
                why: "it is a folder".to_owned(),
            });
        }
        super::sqlite::load()?;
        make_private(path)?;
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let sql = |e| Error::sql(path, e);
        let conn = Connection::open_with_flags(path, flags).map_err(sql)?;
        let db = Db {
            conn,
            path: path.to_owned(),
            identity: identity_of(path)?,
        };
        db.configure().map_err(sql)?;
        db.check_or_make(witness)?;
        Ok(db)
    }

    fn configure(&self) -> rusqlite::Result<()> {
        let conn = &self.conn;
        conn.busy_timeout(BUSY_LIMIT)?;
        conn.set_prepared_statement_cache_capacity(STATEMENTS_KEPT);
        // The file is the user's, and what is in it must not make our process run anything.
        conn.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
        conn.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
        conn.pragma_update(None, "cell_size_check", true)?;
        conn.pragma_update(None, "cache_size", -CACHE_KIB)?;
        conn.pragma_update(None, "temp_store", "MEMORY")?;
        conn.pragma_update(None, "synchronous", "FULL")?;
        Ok(())
    }

    fn check_or_make(&self, witness: &Locked<'_>) -> Result<(), Error> {
        let objects = self.objects()?;
        let application = self.pragma("application_id")?;
        let version = self.pragma("user_version")?;
        if objects.is_empty() && application == 0 && version == 0 {
            self.make(witness)?;
        } else {
            self.check(&objects, application, version)?;
        }
        let sql = |e| Error::sql(&self.path, e);
        self.conn
            .pragma_update(None, "journal_size_limit", LOG_KEPT)
            .map_err(sql)?;
        self.conn
            .pragma_update(None, "synchronous", "NORMAL")
            .map_err(sql)
    }

    fn pragma(&self, name: &str) -> Result<i32, Error> {
        self.conn
            .pragma_query_value(None, name, |row| row.get(0))
            .map_err(|e| Error::sql(&self.path, e))
    }

    fn objects(&self) -> Result<Vec<(String, String)>, Error> {
        self.all(
            "SELECT name, sql FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY name",
            [],
            |row| Ok((row.get(0)?, row.get(1)?)),
        )
    }

    fn check(
        &self,
        objects: &[(String, String)],
        application: i32,
        version: i32,
    ) -> Result<(), Error> {
        if application != APPLICATION_ID {
            return Err(self.broken("it is a database of something else"));
        }
        if version > SCHEMA_VERSION {
            return Err(Error::Newer {
                path: self.path.clone(),
                found: version,
                known: SCHEMA_VERSION,
            });
        }
        if !self.is_ours(objects, version) {
            return Err(self.broken("its tables are not those of a registry"));
        }
        if version < SCHEMA_VERSION {
            self.update(version)?;
        }
        if self.reserved_row()?.is_none() {
            return Err(self.broken("the row with the reserved numbers is missing"));
        }
        Ok(())
    }

    /// Whether these are the objects of a registry of this version.
    fn is_ours(&self, objects: &[(String, String)], version: i32) -> bool {
        let known = SCHEMA
            .iter()
            .filter(|(name, _)| !added_after(version, name));
        let found = objects.iter().map(|(name, sql)| (&**name, &**sql));
        version >= 1 && found.eq(known.copied())
    }

    /// Brings the schema of an earlier version to this one.
    fn update(&self, version: i32) -> Result<(), Error> {
        let sql = |e| Error::sql(&self.path, e);
        self.transaction(|| {
            for (name, statement) in SCHEMA {
                if added_after(version, name) {
                    self.conn.execute(statement, []).map_err(sql)?;
                }
            }
            self.conn
                .pragma_update(None, "user_version", SCHEMA_VERSION)
                .map_err(sql)
        })
    }

    /// Gives an empty file the schema, above all that the witness saw.
    fn make(&self, witness: &Locked<'_>) -> Result<(), Error> {
        let evidence = match witness.read()? {
            // Somebody deleted both, and left what only a registry leaves.
            Evidence::None if files::registry_was_beside(&self.path) => Evidence::Unreadable,
            said => said,
        };
        let reserved = initial_reserved(evidence);
        let sql = |e| Error::sql(&self.path, e);
        self.conn
            .pragma_update(None, "journal_mode", "WAL")
            .map_err(sql)?;
        self.transaction(|| {
            for (_, statement) in SCHEMA {
                self.conn.execute(statement, []).map_err(sql)?;
            }
            self.conn
                .pragma_update(None, "application_id", APPLICATION_ID)
                .map_err(sql)?;
            self.conn
                .pragma_update(None, "user_version", SCHEMA_VERSION)
                .map_err(sql)?;
            self.run(
                "INSERT INTO meta(one, reserved) VALUES(1, ?1)",
                [signed(reserved)],
            )?;
            Ok(())
        })?;
        files::sync_folder_of(&self.path)?;
        if reserved > 0 {
            log::line(
                Level::Warning,
                &format!(
                    "{}: made anew where an earlier registry was ({evidence:?}): its rows are read \
                 from the indexes again, and numbers go on in incarnation {}",
                    self.path.display(),
                    reserved >> super::numbers::INCARNATION_SHIFT,
                ),
            );
        }
        Ok(())
    }

    /// Whether the file is still the one behind its name.
    pub(super) fn is_current(&self) -> bool {
        matches!(files::identity(&self.path), Ok(Some(identity)) if identity == self.identity)
    }

    /// Moves this registry aside, unless another process did that already.
    pub(super) fn retire(self, witness: &Witness, why: &str) -> Result<(), Error> {
        let Db {
            conn,
            path,
            identity,
        } = self;
        // Before the rename: SQLite's last writes must go to the names it knows.
        drop(conn);
        witness.locked(|_| match files::identity(&path)? {
            Some(found) if found == identity => set_aside(&path, why),
            _ => Ok(()),
        })
    }

    pub(super) fn broken(&self, why: &str) -> Error {
        Error::Broken {
            path: self.path.clone(),
            why: why.to_owned(),
        }
    }

    /// Runs `work` in a transaction that may write. It survives a crash of the process; a power
    /// loss may undo it together with all later ones.
    pub(super) fn transaction<T>(
        &self,
        work: impl FnOnce() -> Result<T, Error>,
    ) -> Result<T, Error> {
        let sql = |e| Error::sql(&self.path, e);
        let transaction =
            Transaction::new_unchecked(&self.conn, TransactionBehavior::Immediate).map_err(sql)?;
        let done = work()?;
        transaction.commit().map_err(sql)?;
        Ok(done)
    }

    /// The same, where `work` itself commits by calling its argument, and may do more then.
    pub(super) fn enclosing<T>(
        &self,
        work: impl FnOnce(&dyn Fn() -> Result<(), Error>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let sql = |e| Error::sql(&self.path, e);
        let transaction =
            Transaction::new_unchecked(&self.conn, TransactionBehavior::Immediate).map_err(sql)?;
        let done = work(&|| self.conn.execute_batch("COMMIT").map_err(sql))?;
        // Rolls back what `work` did not commit; after a commit there is nothing to do.
        drop(transaction);
        Ok(done)
    }

    /// As [`Db::transaction`], and it survives a power loss as well.
    pub(super) fn durably<T>(&self, work: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
        let sql = |e| Error::sql(&self.path, e);
        self.conn
            .pragma_update(None, "synchronous", "FULL")
            .map_err(sql)?;
        let done = self.transaction(work);
        let restored = self
            .conn
            .pragma_update(None, "synchronous", "NORMAL")
            .map_err(sql);
        let done = done?;
        restored?;
        Ok(done)
    }

    /// Runs a statement that gives no rows; gives the number of rows that it changed.
    pub(super) fn run(&self, statement: &str, params: impl Params) -> Result<usize, Error> {
        self.conn
            .prepare_cached(statement)
            .and_then(|mut statement| statement.execute(params))
            .map_err(|e| Error::sql(&self.path, e))
    }

    /// The first row of a query.
    pub(super) fn one<T>(
        &self,
        query: &str,
        params: impl Params,
        read: impl FnOnce(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Option<T>, Error> {
        self.conn
            .prepare_cached(query)
            .and_then(|mut query| query.query_row(params, read).optional())
            .map_err(|e| Error::sql(&self.path, e))
    }

    /// All rows of a query.
    pub(super) fn all<T>(
        &self,
        query: &str,
        params: impl Params,
        read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>, Error> {
        self.conn
            .prepare_cached(query)
            .and_then(|mut query| query.query_map(params, read)?.collect())
            .map_err(|e| Error::sql(&self.path, e))
    }

    /// Calls `each` for the rows of a query, until it fails.
    pub(super) fn each(
        &self,
        query: &str,
        params: impl Params,
        mut each: impl FnMut(&Row<'_>) -> rusqlite::Result<()>,
    ) -> Result<(), Error> {
        let step = || {
            let mut query = self.conn.prepare_cached(query)?;
            let mut rows = query.query(params)?;
            while let Some(row) = rows.next()? {
                each(row)?;
            }
            Ok(())
        };
        step().map_err(|e| Error::sql(&self.path, e))
    }

    pub(super) fn last_insert_id(&self) -> i64 {
        self.conn.last_insert_rowid()
    }

    fn reserved_row(&self) -> Result<Option<i64>, Error> {
        self.one("SELECT reserved FROM meta WHERE one = 1", [], |row| {
            row.get(0)
        })
    }

    /// The highest number that was reserved, with its incarnation; 0 before the first.
    pub(super) fn reserved(&self) -> Result<u64, Error> {
        let row = self.reserved_row()?;
        row.and_then(|reserved| u64::try_from(reserved).ok())
            .ok_or_else(|| self.broken("the reserved numbers are missing or negative"))
    }

    pub(super) fn set_reserved(&self, reserved: u64) -> Result<(), Error> {
        self.run(
            "UPDATE meta SET reserved = ?1 WHERE one = 1",
            [signed(reserved)],
        )?;
        Ok(())
    }

    #[cfg(test)]
    pub(super) fn connection(&self) -> &Connection {
        &self.conn
    }
}

/// A number as SQLite stores it. All ours are below 2^63.
pub(super) fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// SQLite would make the file with the umask's permissions; its `-wal` and `-shm` follow the file.
fn make_private(path: &Path) -> Result<(), Error> {
    let made = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .custom_flags(libc::O_CLOEXEC)
        .open(path);
    match made {
        Ok(file) => {
            files::give_to_owner(&file, path)?;
            files::remove_leftovers(path)
        }
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => insist_on_file(path),
        Err(e) => Err(Error::io("make", path, e)),
    }
}

/// A folder or a device in the registry's place would stop SQLite for ever: it is moved aside as
/// any other broken registry is.
fn insist_on_file(path: &Path) -> Result<(), Error> {
    match std::fs::metadata(path) {
        Ok(found) if !found.is_file() => Err(Error::Broken {
            path: path.to_owned(),
            why: "it is not a file".to_owned(),
        }),
        // What cannot be looked at SQLite says better.
        _ => Ok(()),
    }
}

/// Which file was opened. SQLite takes a file that is shorter than its smallest page for a new one
/// and writes over it; we do not.
fn identity_of(path: &Path) -> Result<Identity, Error> {
    let meta = std::fs::metadata(path).map_err(|e| Error::io("look at", path, e))?;
    if (1..SMALLEST_PAGE).contains(&meta.len()) {
        return Err(Error::Broken {
            path: path.to_owned(),
            why: format!("it has {} octets only", meta.len()),
        });
    }
    Ok(Identity::of(&meta))
}

fn set_aside(path: &Path, why: &str) -> Result<(), Error> {
    let aside = files::move_aside(path)?;
    log::line(
        Level::Error,
        &format!(
            "{} is broken ({why}): moved to {}, a new one is made and its rows are read from the \
         indexes; look at the disk",
            path.display(),
            aside.display(),
        ),
    );
    Ok(())
}
