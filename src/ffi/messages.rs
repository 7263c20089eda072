//! What the table and the registry know of a mailbox's messages, for C: their GUIDs, without a
//! look at the host's files.

#![allow(non_camel_case_types)]

use libc::c_char;

use super::boundary::{Failure, given, octets, put, status};
use super::registry::imap_xid_box;
use super::table::{imap_xid_pending, pending_for_c, text_for_c};
use crate::registry::Exported;

/// Gives what is pending in the mailbox, by ascending UID: the messages with UIDs above `above`,
/// at most `room` of them. Ask again with the last UID for more.
///
/// Returns how many were stored (0: there are no more), or an error.
///
/// # Safety
/// `xbox` is a mailbox, `out` points to room for `room` entries.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn imap_xid_box_pending(
    xbox: *mut imap_xid_box,
    above: u32,
    out: *mut imap_xid_pending,
    room: usize,
) -> i32 {
    status(|| {
        // SAFETY: the caller's promise.
        let page = unsafe { given(xbox, "xbox") }?.place()?.pending(above)?;
        // SAFETY: the caller's promise.
        unsafe { put_all(page.iter().map(pending_for_c), out, room) }
    })
}

/// Gives what the registry knows of the mailbox's messages, by ascending UID: those with UIDs
/// above `above`, at most `room` of them. Ask again with the last UID for more. Check them against
/// the index: a message may be gone, or have another XID by now. Their age is not known: -1.
///
/// Returns how many were stored (0: there are no more), or an error.
///
/// # Safety
/// `xbox` is a mailbox, `out` points to room for `room` entries.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn imap_xid_box_rows(
    xbox: *mut imap_xid_box,
    above: u32,
    out: *mut imap_xid_pending,
    room: usize,
) -> i32 {
    status(|| {
        // SAFETY: the caller's promise.
        let xbox = unsafe { given(xbox, "xbox") }?;
        let limit = u32::try_from(room).unwrap_or(u32::MAX);
        let page = xbox.root.registry.rows(&xbox.mailbox, above, limit)?;
        // SAFETY: the caller's promise.
        unsafe { put_all(page.iter().map(row_for_c), out, room) }
    })
}

/// Gives what the registry knows of messages with this GUID in the mailbox, at most `room` of
/// them, in no order: there are several where a client copied a message within the mailbox. Check
/// them against the index. Their age is not known: -1.
///
/// Returns how many were stored, or an error.
///
/// # Safety
/// `xbox` is a mailbox, `guid` points to `guid_len` octets, `out` to room for `room` entries.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn imap_xid_box_by_guid(
    xbox: *mut imap_xid_box,
    guid: *const c_char,
    guid_len: usize,
    out: *mut imap_xid_pending,
    room: usize,
) -> i32 {
    status(|| {
        // SAFETY: the caller's promise.
        let (xbox, guid) = unsafe { (given(xbox, "xbox")?, octets(guid, guid_len)?) };
        let limit = u32::try_from(room).unwrap_or(u32::MAX);
        let rows = xbox.root.registry.by_guid(&xbox.mailbox, guid, limit)?;
        // SAFETY: the caller's promise.
        unsafe { put_all(rows.iter().map(row_for_c), out, room) }
    })
}

/// Whether a message with this GUID is in the mailbox, or was and is remembered, see
/// imap_xid_box_expunged().
///
/// Returns 1 when it is or was, 0 when nothing is known of one, or an error.
///
/// # Safety
/// `xbox` is a mailbox, `guid` points to `guid_len` octets.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn imap_xid_box_had(
    xbox: *mut imap_xid_box,
    guid: *const c_char,
    guid_len: usize,
) -> i32 {
    status(|| {
        // SAFETY: the caller's promise.
        let (xbox, guid) = unsafe { (given(xbox, "xbox")?, octets(guid, guid_len)?) };
        Ok(i32::from(xbox.root.registry.had(&xbox.mailbox, guid)?))
    })
}

/// The lowest UID at which a message with this GUID was expunged from the mailbox while it was
/// stable, or promised. That is remembered only in roots whose uid_source is not local, and for the last 50,000
/// expunged messages of a root.
///
/// Returns 1 and stores the UID, 0 when nothing is known of one, or an error.
///
/// # Safety
/// `xbox` is a mailbox, `guid` points to `guid_len` octets, `uid_out` to room for a UID.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn imap_xid_box_expunged(
    xbox: *mut imap_xid_box,
    guid: *const c_char,
    guid_len: usize,
    uid_out: *mut u32,
) -> i32 {
    status(|| {
        // SAFETY: the caller's promise.
        let (xbox, guid) = unsafe { (given(xbox, "xbox")?, octets(guid, guid_len)?) };
        let Some(uid) = xbox.root.registry.expunged(&xbox.mailbox, guid)? else {
            return Ok(0);
        };
        // SAFETY: the caller's promise.
        unsafe { put(uid_out, uid, "uid_out") }?;
        Ok(1)
    })
}

/// Gives the XIDs that messages with this GUID had when they were expunged from the mailbox, at
/// most `room` of them, the last one first. They have no UIDs (0). Remembered are the last 10,000
/// expunged messages of a root whose uid_source is not local.
///
/// Returns how many were stored, or an error.
///
/// # Safety
/// `xbox` is a mailbox, `guid` points to `guid_len` octets, `out` to room for `room` entries.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn imap_xid_box_gone(
    xbox: *mut imap_xid_box,
    guid: *const c_char,
    guid_len: usize,
    out: *mut imap_xid_pending,
    room: usize,
) -> i32 {
    status(|| {
        // SAFETY: the caller's promise.
        let (xbox, guid) = unsafe { (given(xbox, "xbox")?, octets(guid, guid_len)?) };
        let limit = u32::try_from(room).unwrap_or(u32::MAX);
        let rows = xbox.root.registry.gone(&xbox.mailbox, guid, limit)?;
        // SAFETY: the caller's promise.
        unsafe { put_all(rows.iter().map(row_for_c), out, room) }
    })
}

fn row_for_c(row: &Exported) -> imap_xid_pending {
    imap_xid_pending {
        uid: row.uid,
        guid_len: row.guid.len() as u32,
        number: row.number,
        age_ms: -1,
        ns: text_for_c(row.namespace.as_bytes()),
        guid: text_for_c(&row.guid),
    }
}

/// Stores as many entries as there is room for, and gives their number.
///
/// # Safety
/// `out` points to room for `room` entries.
unsafe fn put_all(
    entries: impl Iterator<Item = imap_xid_pending>,
    out: *mut imap_xid_pending,
    room: usize,
) -> Result<i32, Failure> {
    let mut count = 0;
    for entry in entries.take(room) {
        // SAFETY: the caller's promise; `count` is below `room`.
        unsafe { put(out.wrapping_add(count), entry, "out") }?;
        count += 1;
    }
    Ok(count as i32)
}
