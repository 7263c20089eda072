//! Mail roots and mailboxes for C: numbers, what the registry knows, recovery.

#![allow(non_camel_case_types)]

use std::ffi::{CStr, CString};
use std::path::Path;
use std::sync::Arc;

use libc::{c_char, c_void};

use super::boundary::imap_xid_error::{self, *};
use super::boundary::{Failure, boundary, free, given, given_mut, octets, put, status};
use super::xid::{imap_xid, imap_xid_state};
use crate::log::{self, Level};
use crate::registry::{BoxGuid, Entry, Error, Mailbox, Recovery, Registry};
use crate::table::{Current, TakeError};

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let code: imap_xid_error = match error {
            Error::Io { .. } | Error::Sql { .. } => IMAP_XID_ERR_IO,
            Error::Full(_) => IMAP_XID_ERR_FULL,
            Error::Busy { .. } => IMAP_XID_ERR_BUSY,
            Error::Newer { .. } => IMAP_XID_ERR_NEWER,
            Error::Broken { .. } | Error::Replaced(_) => IMAP_XID_ERR_BROKEN,
            Error::Exhausted(_) => IMAP_XID_ERR_EXHAUSTED,
            Error::Argument(_) => IMAP_XID_ERR_ARGUMENT,
        };
        Failure::new(code, error.to_string())
    }
}

/// Who says that a UID is stable: nobody needs to, it is at once.
pub const IMAP_XID_UID_SOURCE_LOCAL: u32 = 0;
/// Who says that a UID is stable: another program, through the table.
pub const IMAP_XID_UID_SOURCE_TABLE: u32 = 1;
/// Who says that a UID is stable: the cluster daemon.
pub const IMAP_XID_UID_SOURCE_CLUSTER: u32 = 2;

/// How to open a mail root. Zero what you do not set.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct imap_xid_root_options {
    /// The folder, NUL-terminated; made with mode 0700 if it is missing. On a local disk.
    pub dir: *const c_char,
    /// This node's namespace, NUL-terminated.
    pub ns: *const c_char,
    /// IMAP_XID_UID_SOURCE_LOCAL, _TABLE or _CLUSTER; the same for all processes. LOCAL forgets
    /// the watermarks that the others keep.
    pub uid_source: u32,
    /// Must be 0.
    pub flags: u32,
    /// Must be 0.
    pub reserved: u32,
}

/// A mail root: table, registry and journal of one folder. Ended by imap_xid_root_close(), which
/// may come before the end of its mailboxes. Several threads may use it at once; it does not
/// survive fork().
pub struct imap_xid_root(pub(crate) Arc<Root>);

/// What a root and its boxes share.
pub(crate) struct Root {
    pub(crate) registry: Arc<Registry>,
    /// `None` when it cannot be used; numbers then come from blocks of this process alone.
    pub(crate) table: Option<Current>,
    pub(crate) uid_source: u32,
}

/// A mailbox in a mail root. Ended by imap_xid_box_close(). Several threads may use it at once.
pub struct imap_xid_box {
    pub(crate) root: Arc<Root>,
    pub(crate) mailbox: Mailbox,
    pub(crate) attached: super::table::Attachment,
}

/// One message: UID, XID and GUID.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct imap_xid_entry {
    /// The UID, not 0.
    pub uid: u32,
    /// The XID's namespace.
    pub ns: *const c_char,
    /// Octets of the namespace.
    pub ns_len: usize,
    /// The XID's number.
    pub number: u64,
    /// The message GUID as the host writes it; NULL when not known. Cut to 255 octets.
    pub guid: *const c_char,
    /// Octets of the GUID; 0 when not known.
    pub guid_len: usize,
}

/// XIDs being found again for the messages of one mailbox. Made by imap_xid_recovery_begin(),
/// ended by imap_xid_recovery_free(). One thread at a time.
pub struct imap_xid_recovery(Recovery);

/// What imap_xid_set_logger() takes: the level (0 information, 1 warning, 2 error), one line
/// without a line break, valid during the call, and the caller's own pointer.
pub type imap_xid_log_fn =
    Option<unsafe extern "C" fn(level: i32, text: *const c_char, context: *mut c_void)>;

/// The host's pointer, handed back to the host's function only.
struct Context(*mut c_void);

// SAFETY: we never look behind it; the host was told that any thread of its own may bring it back.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

impl Context {
    fn pointer(&self) -> *mut c_void {
        self.0
    }
}

/// Says where lines for the administrator go that no error code carries, such as that a broken
/// file was moved aside. For the whole process; NULL means standard error. The function is called
/// on threads that are inside a call of this library, and must not call it.
///
/// # Safety
/// `logger` and `context` stay valid until they are replaced.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn imap_xid_set_logger(logger: imap_xid_log_fn, context: *mut c_void) {
    boundary(|| {
        let Some(logger) = logger else {
            return log::set_sink(None);
        };
        let context = Context(context);
        log::set_sink(Some(Box::new(move |level: Level, text: &str| {
            let text = CString::new(text.replace(['\0', '\n'], " ")).unwrap_or_default();
            // SAFETY: the caller's promise.
            unsafe { logger(level as i32, text.as_ptr(), context.pointer()) }
        })));
    })
}

/// Opens a mail root: makes the folder if it is missing and maps the table. The registry is
/// opened when it is first needed. A table that cannot be used is reported to the logger and done
/// without.
///
/// Returns 0 and the root in `*out`, or an error.
///
/// # Safety
/// `options` points to options whose texts are valid, `out` to room for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn imap_xid_root_open(
    options: *const imap_xid_root_options,
    out: *mut *mut imap_xid_root,
) -> i32 {
    status(|| {
        // SAFETY: the caller's promise.
        unsafe { put(out, std::ptr::null_mut(), "out") }?;
        // SAFETY: the caller's promise.
        let options = unsafe { given(options, "options") }?;
        // SAFETY: the caller's promise.
        let (dir, ns) = unsafe { (c_text(options.dir, "dir")?, c_text(options.ns, "ns")?) };
        if options.uid_source > IMAP_XID_UID_SOURCE_CLUSTER || options.flags | options.reserved != 0
        {
            return Err(argument("uid_source is 0 to 2, flags and reserved are 0"));
        }
        let root = open_root(dir, ns, options.uid_source)?;
        // SAFETY: the caller's promise.
        unsafe {
            put(
                out,
                Box::into_raw(Box::new(imap_xid_root(Arc::new(root)))),
                "out",
            )
        }?;
        Ok(0)
    })
}

fn open_root(dir: &[u8], namespace: &[u8], uid_source: u32) -> Result<Root, Failure> {
    use std::os::unix::ffi::OsStrExt;
    let dir = Path::new(std::ffi::OsStr::from_bytes(dir));
    let namespace = crate::xid::check_namespace(namespace)?;
    let registry = Arc::new(Registry::new(dir, namespace)?);
    let table = match Current::open(dir) {
        Ok((table, opened)) => {
            super::table::report(dir, opened);
            Some(table)
        }
        Err(e) => {
            log::line(Level::Error, &format!("{e}; going on without the table"));
            None
        }
    };
    let root = Root {
        registry,
        table,
        uid_source,
    };
    if uid_source == IMAP_XID_UID_SOURCE_LOCAL {
        root.forget_watermarks();
    }
    Ok(root)
}

/// Ends a root. NULL is fine. Its mailboxes stay usable until they are closed themselves.
///
/// # Safety
/// `root` is NULL or a root that is not used again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn imap_xid_root_close(root: *mut imap_xid_root) {
    // SAFETY: the caller's promise.
    boundary(|| unsafe { free(root) })
}

/// Takes `count` consecutive numbers of this node's namespace, all above `above`, and stores the
/// first. To be called while the mailbox's append lock is held, with the highest number that the
/// mailbox ever had in this namespace, so that numbers ascend in the order in which messages
/// become visible. Most calls make no system call; one in about 4096 numbers makes a reservation
/// durable first (a few fsyncs). Numbers once taken are never taken again.
///
/// Returns 0, or an error: then no message may be saved without its XID.
///
/// # Safety
/// `root` is a root, `first_out` points to room for a number.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn imap_xid_numbers_take(
    root: *mut imap_xid_root,
    above: u64,
    count: u32,
    first_out: *mut u64,
) -> i32 {
    status(|| {
        // SAFETY: the caller's promise.
        let root = unsafe { given(root, "root") }?;
        if count == 0 {
            return Err(argument("count is 0"));
        }
        let first = root.0.take_numbers(above, count)?;
        // SAFETY: the caller's promise.
        unsafe { put(first_out, first, "first_out") }?;
        Ok(0)
    })
}

impl Root {
    fn take_numbers(&self, above: u64, count: u32) -> Result<u64, Failure> {
        let Some(table) = &self.table else {
            return Ok(self.registry.take_numbers(above, count)?);
        };
        match table.table().take_numbers(above, count, |from, count| {
            self.registry.reserve(from, count)
        }) {
            Ok(first) => Ok(first),
            Err(TakeError::Reserve(e)) => Err(e.into()),
            Err(TakeError::Table(e)) => {
                log::line(
                    Level::Error,
                    &format!("{e}; taking numbers without the table"),
                );
                Ok(self.registry.take_numbers(above, count)?)
            }
        }
    }

    fn highest_given(&self) -> Result<u64, Failure> {
        // A table that was deleted under us does not see what others take from the next one.
        let table = self.table.as_ref().map(Current::table);
        let table = table.filter(|table| table.is_current());
        match table.and_then(|table| table.highest_given()) {
            Some(number) => Ok(number),
            None => Ok(self.registry.reserved()?),
        }
    }
}

/// At least the highest number that this node has given out in its namespace, and nothing above
/// what was reserved. A client that knows a higher one knows another mailbox (spec part 4,
/// XIDRESET).
///
/// Returns 0, or an error.
///
/// # Safety
/// `root` is a root, `highest_given_out` points to room for a number.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn imap_xid_counter(
    root: *mut imap_xid_root,
    highest_given_out: *mut u64,
) -> i32 {
    status(|| {
        // SAFETY: the caller's promise.
        let highest = unsafe { given(root, "root") }?.0.highest_given()?;
        // SAFETY: the caller's promise.
        unsafe { put(highest_given_out, highest, "highest_given_out") }?;
        Ok(0)
    })
}

/// A mailbox of a root. Cheap: opens no file. `name` is NUL-terminated and may be NULL when not
/// known; uidvalidity may be 0 when not known. Recovery after the loss of an index that held the
/// mailbox's GUID goes by the name.
///
/// Returns 0 and the mailbox in `*out`, or an error.
///
/// # Safety
/// `root` is a root, `guid` points to 16 octets, `out` to room for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn imap_xid_box_open(
    root: *mut imap_xid_root,
    guid: *const u8,
    name: *const c_char,
    uidvalidity: u32,
    out: *mut *mut imap_xid_box,
) -> i32 {
    status(|| {
        // SAFETY: the caller's promise.
        unsafe { put(out, std::ptr::null_mut(), "out") }?;
        // SAFETY: the caller's promise.
        let (root, guid) = unsafe { (given(root, "root")?, box_guid(guid)?) };
        let name = if name.is_null() { c"".as_ptr() } else { name };
        // SAFETY: the caller's promise.
        let name = unsafe { c_text(name, "name") }?;
        let mailbox = Mailbox::new(guid, &String::from_utf8_lossy(name), uidvalidity);
        let handle = imap_xid_box {
            root: Arc::clone(&root.0),
            mailbox,
            attached: super::table::Attachment::default(),
        };
        // A table that was deleted or replaced while this process used it is noticed here.
        root.0.refresh_table();
        // SAFETY: the caller's promise.
        unsafe { put(out, Box::into_raw(Box::new(handle)), "out") }?;
        Ok(0)
    })
}

/// Ends a mailbox. NULL is fine.
///
/// # Safety
/// `xbox` is NULL or a mailbox that is not used again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn imap_xid_box_close(xbox: *mut imap_xid_box) {
    // SAFETY: the caller's promise.
    boundary(|| unsafe { free(xbox) })
}

/// Notes the XIDs of new messages: one write(2) to the journal, no fsync, no SQLite.
///
/// Returns 0, or an error. The messages must be saved all the same: nothing is lost, since
/// imap_xid_box_registered() will ask for them. Log it.
///
/// # Safety
/// `xbox` is a mailbox, `entries` points to `n` entries whose texts are valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn imap_xid_box_note(
    xbox: *mut imap_xid_box,
    entries: *const imap_xid_entry,
    n: usize,
) -> i32 {
    status(|| {
        // SAFETY: the caller's promise.
        let (xbox, entries) = unsafe { (given(xbox, "xbox")?, checked_entries(entries, n)?) };
        if !entries.is_empty() {
            xbox.root.registry.note(&xbox.mailbox, &entries)?;
        }
        Ok(0)
    })
}

/// Notes that other nodes expunged these messages, which were stable there, so that this one can say
/// so when those nodes are away. The UIDs of the entries do not matter, but are not 0.
///
/// Returns 0, or an error that need not stop anything.
///
/// # Safety
/// `xbox` is a mailbox, `entries` points to `n` entries.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn imap_xid_box_gone_elsewhere(
    xbox: *mut imap_xid_box,
    entries: *const imap_xid_entry,
    n: usize,
) -> i32 {
    status(|| {
        // SAFETY: the caller's promise.
        let (xbox, entries) = unsafe { (given(xbox, "xbox")?, checked_entries(entries, n)?) };
        if !entries.is_empty() {
            xbox.root.registry.gone_elsewhere(&xbox.mailbox, &entries)?;
        }
        Ok(0)
    })
}

/// Notes that messages were expunged: one write(2) to the journal. Without it their rows stay
/// until the mailbox is registered anew, which costs space and time but is not wrong as long as
/// answers are checked against the index.
///
/// Returns 0, or an error that need not stop anything.
///
/// # Safety
/// `xbox` is a mailbox, `uids` points to `n` UIDs.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn imap_xid_box_forget(
    xbox: *mut imap_xid_box,
    uids: *const u32,
    n: usize,
) -> i32 {
    status(|| {
        // SAFETY: the caller's promise.
        let (xbox, uids) = unsafe { (given(xbox, "xbox")?, array(uids, n, "uids")?) };
        if !uids.is_empty() {
            let firm = xbox.place().map_or(u32::MAX, |place| place.firm());
            xbox.root.registry.forget(&xbox.mailbox, uids, firm)?;
        }
        Ok(0)
    })
}

/// [`imap_xid_box_forget`] of messages that never were stable, whatever the watermark is by now: the
/// cluster daemon had them moved to other UIDs, or to another mailbox.
///
/// Returns 0, or an error that need not stop anything.
///
/// # Safety
/// `xbox` is a mailbox, `uids` points to `n` UIDs.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn imap_xid_box_forget_moved(
    xbox: *mut imap_xid_box,
    uids: *const u32,
    n: usize,
) -> i32 {
    status(|| {
        // SAFETY: the caller's promise.
        let (xbox, uids) = unsafe { (given(xbox, "xbox")?, array(uids, n, "uids")?) };
        if !uids.is_empty() {
            xbox.root.registry.forget(&xbox.mailbox, uids, 0)?;
        }
        Ok(0)
    })
}

/// Notes that a mailbox was renamed: one write(2) to the journal. `name` is NUL-terminated.
///
/// Returns 0, or an error; the new name is then learned at the next imap_xid_box_registered().
///
/// # Safety
/// `root` is a root, `guid` points to 16 octets.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn imap_xid_root_renamed(
    root: *mut imap_xid_root,
    guid: *const u8,
    name: *const c_char,
) -> i32 {
    status(|| {
        // SAFETY: the caller's promise.
        let (root, guid) = unsafe { (given(root, "root")?, box_guid(guid)?) };
        // SAFETY: the caller's promise.
        let name = String::from_utf8_lossy(unsafe { c_text(name, "name") }?);
        root.0.registry.renamed(&guid, &name)?;
        Ok(0)
    })
}

/// Notes that a mailbox was deleted with its messages: one write(2) to the journal. Their XIDs
/// are then not found again when a mailbox of the same name is made.
///
/// Returns 0, or an error that need not stop anything.
///
/// # Safety
/// `root` is a root, `guid` points to 16 octets.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn imap_xid_root_deleted(root: *mut imap_xid_root, guid: *const u8) -> i32 {
    status(|| {
        // SAFETY: the caller's promise.
        let (root, guid) = unsafe { (given(root, "root")?, box_guid(guid)?) };
        root.0.registry.deleted(&guid)?;
        Ok(0)
    })
}

/// Asks which messages the registry may not know: stores the first such UID, or `next_uid` when
/// it knows all below. Takes the journal in. To be called before a look-up, and followed by
/// imap_xid_box_register() when something is missing. 1 means that the registry knows nothing for
/// sure (it is new, or the UIDVALIDITY has changed): then register with replace_all.
///
/// Returns 0, or an error.
///
/// # Safety
/// `xbox` is a mailbox, `first_missing_uid_out` points to room for a UID.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn imap_xid_box_registered(
    xbox: *mut imap_xid_box,
    next_uid: u32,
    first_missing_uid_out: *mut u32,
) -> i32 {
    status(|| {
        // SAFETY: the caller's promise.
        let xbox = unsafe { given(xbox, "xbox") }?;
        let missing = xbox.root.registry.registered(&xbox.mailbox, next_uid)?;
        // SAFETY: the caller's promise.
        unsafe { put(first_missing_uid_out, missing, "first_missing_uid_out") }?;
        Ok(0)
    })
}

/// Makes the registry know what the index says. `entries` ascend by UID and are all messages that
/// the index has from the UID that imap_xid_box_registered() stored last up to covers_below_uid
/// (exclusive), with the XIDs they have there; or, with `replace_all` not 0, all messages of the
/// mailbox below covers_below_uid, where everything else that the registry says of the mailbox is
/// removed. An entry without a GUID keeps the GUID that the registry has for that XID.
///
/// Written in transactions of 10,000 messages; stopped in between, the registry knows how far it
/// got.
///
/// Returns 0, or an error.
///
/// # Safety
/// `xbox` is a mailbox, `entries` points to `n` entries whose texts are valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn imap_xid_box_register(
    xbox: *mut imap_xid_box,
    entries: *const imap_xid_entry,
    n: usize,
    covers_below_uid: u32,
    replace_all: u32,
) -> i32 {
    status(|| {
        // SAFETY: the caller's promise.
        let (xbox, entries) = unsafe { (given(xbox, "xbox")?, checked_entries(entries, n)?) };
        let all = replace_all != 0;
        xbox.root
            .registry
            .register(&xbox.mailbox, &entries, covers_below_uid, all)?;
        Ok(0)
    })
}

/// The UID of an XID in the mailbox, as far as the registry knows: check that the index has this
/// XID there. A wrong answer means that the rows are stale: register with replace_all and ask
/// again.
///
/// Returns 1 and stores the UID, 0 when the XID is not known, or an error. After
/// IMAP_XID_ERR_BROKEN begin again with imap_xid_box_registered().
///
/// # Safety
/// `xbox` is a mailbox, `x` points to an XID, `uid_out` to room for a UID.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn imap_xid_box_lookup(
    xbox: *mut imap_xid_box,
    x: *const imap_xid,
    uid_out: *mut u32,
) -> i32 {
    status(|| {
        // SAFETY: the caller's promise.
        let (xbox, xid) = unsafe { (given(xbox, "xbox")?, given(x, "x")?.checked()?) };
        let Some(uid) = xbox.root.registry.lookup(&xbox.mailbox, xid)? else {
            return Ok(0);
        };
        // SAFETY: the caller's promise.
        unsafe { put(uid_out, uid, "uid_out") }?;
        Ok(1)
    })
}

/// What is new to a client with a plain state: the UIDs, ascending, of the messages whose number
/// is above the state's for their namespace. The state's mark plays no part. Check the UIDs
/// against the index; messages that were expunged may be among them.
///
/// Returns 0 and a new array of `*n_out` UIDs in `*uids_out`, to be ended with
/// imap_xid_uids_free(), or an error. After IMAP_XID_ERR_BROKEN begin again with
/// imap_xid_box_registered().
///
/// # Safety
/// `xbox` is a mailbox, `state` a state, `uids_out` and `n_out` point to room for their values.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn imap_xid_box_news(
    xbox: *mut imap_xid_box,
    state: *const imap_xid_state,
    uids_out: *mut *mut u32,
    n_out: *mut usize,
) -> i32 {
    status(|| {
        // SAFETY: the caller's promise.
        unsafe { put(uids_out, std::ptr::null_mut(), "uids_out") }?;
        // SAFETY: the caller's promise.
        unsafe { put(n_out, 0, "n_out") }?;
        // SAFETY: the caller's promise.
        let (xbox, state) = unsafe { (given(xbox, "xbox")?, given(state, "state")?) };
        let uids = xbox
            .root
            .registry
            .news(&xbox.mailbox, &state.0)?
            .into_boxed_slice();
        let n = uids.len();
        // SAFETY: the caller's promise.
        unsafe { put(n_out, n, "n_out") }?;
        // SAFETY: the caller's promise.
        unsafe { put(uids_out, Box::into_raw(uids).cast::<u32>(), "uids_out") }?;
        Ok(0)
    })
}

/// Ends an array of UIDs. NULL is fine.
///
/// # Safety
/// `uids` is NULL or an array that this library gave with this `n`, and is not used again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn imap_xid_uids_free(uids: *mut u32, n: usize) {
    boundary(|| {
        if !uids.is_null() {
            // SAFETY: pointer and length are those of a boxed slice, by the caller's promise.
            drop(unsafe { Box::from_raw(std::ptr::slice_from_raw_parts_mut(uids, n)) });
        }
    })
}

/// Begins to find XIDs again for messages of the mailbox that have none: their index was lost, or
/// they came without the plug-in.
///
/// Returns 1 and the recovery in `*out`; or 0, and NULL there, when the registry knows nothing
/// that could apply, so that no GUID need be read; or an error.
///
/// # Safety
/// `xbox` is a mailbox, `out` points to room for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn imap_xid_recovery_begin(
    xbox: *mut imap_xid_box,
    out: *mut *mut imap_xid_recovery,
) -> i32 {
    status(|| {
        // SAFETY: the caller's promise.
        unsafe { put(out, std::ptr::null_mut(), "out") }?;
        // SAFETY: the caller's promise.
        let xbox = unsafe { given(xbox, "xbox") }?;
        let Some(recovery) = xbox.root.registry.recovery(&xbox.mailbox)? else {
            return Ok(0);
        };
        // SAFETY: the caller's promise.
        unsafe {
            put(
                out,
                Box::into_raw(Box::new(imap_xid_recovery(recovery))),
                "out",
            )
        }?;
        Ok(1)
    })
}

/// Says that a message of the mailbox has this XID already, so that it is not given to another.
/// Or look each XID that imap_xid_recovery_take() gives up in the index, and take once more when
/// it is there: what was taken is not given again.
///
/// Returns 0, or an error.
///
/// # Safety
/// `recovery` is a recovery, `x` points to an XID.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn imap_xid_recovery_exclude(
    recovery: *mut imap_xid_recovery,
    x: *const imap_xid,
) -> i32 {
    status(|| {
        // SAFETY: the caller's promise.
        let (recovery, xid) =
            unsafe { (given_mut(recovery, "recovery")?, given(x, "x")?.checked()?) };
        recovery.0.exclude(xid)?;
        Ok(0)
    })
}

/// The XID of the message with this GUID. To be called in UID order: of copies that share a GUID
/// the first gets the XID of the first.
///
/// Returns 1 and the XID in `*out`, which borrows from the recovery until it is freed; or 0 when
/// there is none (left); or an error. After IMAP_XID_ERR_BROKEN begin again.
///
/// # Safety
/// `recovery` is a recovery, `guid` points to `guid_len` octets, `out` to room for an XID.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn imap_xid_recovery_take(
    recovery: *mut imap_xid_recovery,
    guid: *const c_char,
    guid_len: usize,
    out: *mut imap_xid,
) -> i32 {
    status(|| {
        // SAFETY: the caller's promise.
        let (recovery, guid) =
            unsafe { (given_mut(recovery, "recovery")?, octets(guid, guid_len)?) };
        if out.is_null() {
            return Err(argument("out is NULL"));
        }
        let Some(xid) = recovery.0.take(guid)? else {
            return Ok(0);
        };
        // SAFETY: the caller's promise.
        unsafe { put(out, imap_xid::borrowing(xid), "out") }?;
        Ok(1)
    })
}

/// The XID of the message that had both this GUID and this UID. To be called for all messages
/// before imap_xid_recovery_take() is called for those that are left: the mailbox may have held
/// other copies with the same GUID, whose XIDs are not theirs.
///
/// Returns as imap_xid_recovery_take().
///
/// # Safety
/// `recovery` is a recovery, `guid` points to `guid_len` octets, `out` to room for an XID.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn imap_xid_recovery_take_at(
    recovery: *mut imap_xid_recovery,
    guid: *const c_char,
    guid_len: usize,
    uid: u32,
    out: *mut imap_xid,
) -> i32 {
    status(|| {
        // SAFETY: the caller's promise.
        let (recovery, guid) =
            unsafe { (given_mut(recovery, "recovery")?, octets(guid, guid_len)?) };
        if out.is_null() {
            return Err(argument("out is NULL"));
        }
        let Some(xid) = recovery.0.take_at(guid, uid)? else {
            return Ok(0);
        };
        // SAFETY: the caller's promise.
        unsafe { put(out, imap_xid::borrowing(xid), "out") }?;
        Ok(1)
    })
}

/// Ends a recovery. NULL is fine.
///
/// # Safety
/// `recovery` is NULL or a recovery that is not used again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn imap_xid_recovery_free(recovery: *mut imap_xid_recovery) {
    // SAFETY: the caller's promise.
    boundary(|| unsafe { free(recovery) })
}

pub(crate) fn argument(text: &str) -> Failure {
    Failure::new(IMAP_XID_ERR_ARGUMENT, text)
}

/// A NUL-terminated text.
///
/// # Safety
/// `text` is NULL or NUL-terminated and unchanged during the call.
pub(crate) unsafe fn c_text<'a>(text: *const c_char, what: &str) -> Result<&'a [u8], Failure> {
    if text.is_null() {
        return Err(argument(&format!("{what} is NULL")));
    }
    // SAFETY: not NULL, and the caller vouches for the rest.
    Ok(unsafe { CStr::from_ptr(text) }.to_bytes())
}

/// A mailbox GUID.
///
/// # Safety
/// `guid` is NULL or points to 16 octets.
pub(crate) unsafe fn box_guid(guid: *const u8) -> Result<BoxGuid, Failure> {
    // SAFETY: the caller's promise; an array of octets has no alignment.
    unsafe { given(guid.cast::<BoxGuid>(), "guid") }.copied()
}

/// An array from C. NULL is fine when it is empty.
///
/// # Safety
/// `items` points to `n` values that nobody changes during the call.
unsafe fn array<'a, T>(items: *const T, n: usize, what: &str) -> Result<&'a [T], Failure> {
    if n == 0 {
        return Ok(&[]);
    }
    if items.is_null() || n > isize::MAX as usize / size_of::<T>() {
        return Err(argument(&format!(
            "{what} is NULL, or there cannot be as many"
        )));
    }
    // SAFETY: not NULL, not longer than memory, and the caller vouches for the rest.
    Ok(unsafe { std::slice::from_raw_parts(items, n) })
}

/// Entries from C, each with its XID checked.
///
/// # Safety
/// `entries` points to `n` entries whose texts stay unchanged for `'a`.
pub(crate) unsafe fn checked_entries<'a>(
    entries: *const imap_xid_entry,
    n: usize,
) -> Result<Vec<Entry<'a>>, Failure> {
    // SAFETY: the caller's promise.
    let entries = unsafe { array(entries, n, "entries") }?;
    let mut checked = Vec::with_capacity(n);
    for entry in entries {
        let xid = imap_xid {
            ns: entry.ns,
            ns_len: entry.ns_len,
            number: entry.number,
        };
        // SAFETY: the caller's promise.
        let (xid, guid) = unsafe { (xid.checked()?, octets(entry.guid, entry.guid_len)?) };
        if entry.uid == 0 {
            return Err(argument("an entry has UID 0"));
        }
        checked.push(Entry {
            uid: entry.uid,
            xid,
            guid,
        });
    }
    Ok(checked)
}
