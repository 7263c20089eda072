//! What can go wrong in the registry, whose fault it is, and what to do.

use std::io;
use std::path::{Path, PathBuf};

use rusqlite::ffi::ErrorCode;

/// Why the registry or the journal could not do it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The system refused something.
    #[error("cannot {what} {path}: {source}", path = .path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// With what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The disk, or the quota of the mail's owner, is full.
    #[error(
        "{path}: the disk or the quota is full: make room; nothing stored before is lost",
        path = .0.display()
    )]
    Full(PathBuf),
    /// Somebody holds a lock for longer than we wait.
    #[error(
        "{path}: another process has held its lock for more than {seconds} s: see who has the \
         file open",
        path = .path.display()
    )]
    Busy {
        /// The locked file.
        path: PathBuf,
        /// How long was waited, in seconds.
        seconds: u64,
    },
    /// A newer release made the registry and may be using it.
    #[error(
        "{path} was made by a newer release (schema {found}, this one knows {known}): update this \
         program",
        path = .path.display()
    )]
    Newer {
        /// The registry.
        path: PathBuf,
        /// Its schema.
        found: i32,
        /// Ours.
        known: i32,
    },
    /// The registry is torn, foreign, or says what cannot be. It is moved aside.
    #[error("{path} is broken: {why}; it is moved aside and made anew", path = .path.display())]
    Broken {
        /// The registry.
        path: PathBuf,
        /// What was found.
        why: String,
    },
    /// The registry was replaced during an operation of several calls.
    #[error("{path}: it was replaced meanwhile: begin again", path = .0.display())]
    Replaced(PathBuf),
    /// All numbers are used up.
    #[error("{path}: no numbers are left in this namespace: choose another xid_namespace", path = .0.display())]
    Exhausted(PathBuf),
    /// SQLite refused something that has no better name.
    #[error("{path}: {source}", path = .path.display())]
    Sql {
        /// The registry.
        path: PathBuf,
        /// Why not.
        source: rusqlite::Error,
    },
    /// The caller gave something that cannot be stored.
    #[error("{0}")]
    Argument(String),
}

impl Error {
    pub(super) fn io(what: &'static str, path: &Path, source: io::Error) -> Self {
        if is_full(&source) {
            return Error::Full(path.to_owned());
        }
        Error::Io {
            what,
            path: path.to_owned(),
            source,
        }
    }

    /// What an error of SQLite means for the registry.
    pub(super) fn sql(path: &Path, source: rusqlite::Error) -> Self {
        use rusqlite::Error as E;
        let broken = |why: String| Error::Broken {
            path: path.to_owned(),
            why,
        };
        match &source {
            E::SqliteFailure(e, _) => match e.code {
                ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked => Error::Busy {
                    path: path.to_owned(),
                    seconds: super::BUSY_LIMIT.as_secs(),
                },
                ErrorCode::DiskFull => Error::Full(path.to_owned()),
                ErrorCode::SystemIoFailure if grew_in_vain(e.extended_code) => {
                    Error::Full(path.to_owned())
                }
                ErrorCode::SystemIoFailure if was_cut(e.extended_code) => {
                    broken("its end is missing".to_owned())
                }
                ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase => broken(source.to_string()),
                _ => Error::Sql {
                    path: path.to_owned(),
                    source,
                },
            },
            // The schema was compared when the file was opened, so a value that does not fit was
            // not written by us.
            E::IntegralValueOutOfRange(..)
            | E::InvalidColumnType(..)
            | E::FromSqlConversionFailure(..)
            | E::Utf8Error(..) => broken(source.to_string()),
            _ => Error::Sql {
                path: path.to_owned(),
                source,
            },
        }
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT))
}

/// A page that is known to be there was not.
fn was_cut(extended: i32) -> bool {
    extended == rusqlite::ffi::SQLITE_IOERR_SHORT_READ
}

/// SQLite gives its own name to a shared-memory file that cannot grow; the reason is always room.
fn grew_in_vain(extended: i32) -> bool {
    extended == rusqlite::ffi::SQLITE_IOERR_SHMSIZE
}
