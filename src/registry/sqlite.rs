//! SQLite, loaded when it is first needed.
//!
//! A host's plug-in is not linked with it (`c-shim/sqlite/lazy.c` says why). Everything else is,
//! and has nothing to load.

use super::Error;

/// Makes SQLite callable. Every other use of it comes after this.
///
/// # Errors
/// When the library is not installed or lacks a function.
#[cfg(feature = "dovecot")]
pub(super) fn load() -> Result<(), Error> {
    use std::ffi::CStr;

    use libc::c_char;
    use once_cell::sync::OnceCell;

    unsafe extern "C" {
        fn imap_xid_sqlite_load() -> *const c_char;
    }
    static LOADED: OnceCell<()> = OnceCell::new();

    LOADED
        .get_or_try_init(|| {
            // SAFETY: the cell lets one thread in at a time.
            let why = unsafe { imap_xid_sqlite_load() };
            if why.is_null() {
                return Ok(());
            }
            // SAFETY: not NULL, so it is what dlerror() said, and nobody called it since.
            let why = unsafe { CStr::from_ptr(why) }.to_string_lossy();
            let install = "install SQLite (Debian: libsqlite3-0)";
            Err(Error::Io {
                what: "load",
                path: "libsqlite3.so.0".into(),
                source: std::io::Error::other(format!("{why}; {install}")),
            })
        })
        .copied()
}

/// It was linked: nothing to do.
#[cfg(not(feature = "dovecot"))]
#[expect(clippy::unnecessary_wraps, reason = "the plug-in's can fail")]
pub(super) fn load() -> Result<(), Error> {
    Ok(())
}
