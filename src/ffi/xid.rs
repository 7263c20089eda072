//! XIDs, sets and states for C: parsing and formatting.

#![allow(non_camel_case_types)]

use libc::c_char;

use super::boundary::imap_xid_error::{IMAP_XID_ERR_ARGUMENT, IMAP_XID_ERR_SYNTAX};
use super::boundary::{Failure, boundary, free, given, given_mut, octets, put, put_text, status};
use crate::xid::{self, State, Xid, XidSet};

/// Room for the longest XID (63 octets of namespace, "-", 19 digits) and a NUL.
pub const IMAP_XID_SIZE: usize = 84;

/// Room for the longest namespace and a NUL.
pub const IMAP_XID_NAMESPACE_SIZE: usize = 64;

const _: () = assert!(IMAP_XID_SIZE == xid::XID_MAX + 1);
const _: () = assert!(IMAP_XID_NAMESPACE_SIZE == xid::NAMESPACE_MAX + 1);

impl From<xid::Error> for Failure {
    fn from(error: xid::Error) -> Self {
        Failure::new(IMAP_XID_ERR_SYNTAX, error.to_string())
    }
}

/// An XID. It borrows its namespace: the function that fills one in says from where, and for how
/// long that is valid.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct imap_xid {
    /// The namespace, 1 to 63 octets, not NUL-terminated.
    pub ns: *const c_char,
    /// Octets of the namespace.
    pub ns_len: usize,
    /// The number, 1 to 2^63-1.
    pub number: u64,
}

impl imap_xid {
    pub(crate) fn borrowing(xid: Xid<'_>) -> Self {
        let ns = xid.namespace();
        imap_xid {
            ns: ns.as_ptr().cast(),
            ns_len: ns.len(),
            number: xid.number(),
        }
    }

    /// The checked XID behind what C handed in.
    ///
    /// # Safety
    /// `ns` and `ns_len` describe octets that stay unchanged for `'a`.
    pub(crate) unsafe fn checked<'a>(&self) -> Result<Xid<'a>, Failure> {
        // SAFETY: the caller's promise.
        let namespace = unsafe { octets(self.ns, self.ns_len) }?;
        Xid::new(namespace, self.number)
            .map_err(|e| Failure::new(IMAP_XID_ERR_ARGUMENT, e.to_string()))
    }
}

/// A parsed set of XIDs. Made by imap_xid_set_parse(), ended by imap_xid_set_free().
pub struct imap_xid_set(XidSet);

/// A known state: the highest number of each namespace and perhaps a mark. Made by
/// imap_xid_state_new(), ended by imap_xid_state_free(). One thread at a time.
pub struct imap_xid_state(pub(crate) State);

/// Parses one XID, `namespace "-" number` (spec part 1).
///
/// Returns 0, or IMAP_XID_ERR_SYNTAX. On success `*out` borrows the namespace from `s`.
///
/// # Safety
/// `s` points to `len` octets, `out` to room for a struct imap_xid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn imap_xid_parse(s: *const c_char, len: usize, out: *mut imap_xid) -> i32 {
    status(|| {
        // SAFETY: the caller's promise.
        let xid = Xid::parse(unsafe { octets(s, len) }?)?;
        // SAFETY: the caller's promise.
        unsafe { put(out, imap_xid::borrowing(xid), "out") }?;
        Ok(0)
    })
}

/// Writes an XID as text with a NUL behind it. IMAP_XID_SIZE octets are always enough.
///
/// Returns the length without the NUL, or IMAP_XID_ERR_SPACE (nothing written) or
/// IMAP_XID_ERR_ARGUMENT (it is no XID).
///
/// # Safety
/// `x` points to an XID whose namespace is valid, `out` to `out_size` octets.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn imap_xid_format(
    x: *const imap_xid,
    out: *mut c_char,
    out_size: usize,
) -> i32 {
    status(|| {
        // SAFETY: the caller's promise.
        let xid = unsafe { given(x, "x")?.checked() }?;
        // SAFETY: the caller's promise.
        unsafe { put_text(&xid.to_string(), out, out_size) }
    })
}

/// Checks a namespace, such as the setting xid_namespace, against the grammar of spec part 1.
///
/// Returns 0, or IMAP_XID_ERR_SYNTAX.
///
/// # Safety
/// `ns` points to `len` octets.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn imap_xid_namespace_check(ns: *const c_char, len: usize) -> i32 {
    status(|| {
        // SAFETY: the caller's promise.
        xid::check_namespace(unsafe { octets(ns, len) }?)?;
        Ok(0)
    })
}

/// The default of xid_namespace: the host's name up to the first dot, "_" in place of what the
/// grammar does not have, "n" in front when it does not begin with a letter, 63 octets at most.
/// Written with a NUL behind it; IMAP_XID_NAMESPACE_SIZE octets are always enough.
///
/// Returns the length without the NUL, or IMAP_XID_ERR_SYNTAX when the host has no name.
///
/// # Safety
/// `host` points to `len` octets, `out` to `out_size` octets.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn imap_xid_namespace_from_host(
    host: *const c_char,
    len: usize,
    out: *mut c_char,
    out_size: usize,
) -> i32 {
    status(|| {
        // SAFETY: the caller's promise.
        let namespace = xid::namespace_from_host(unsafe { octets(host, len) }?)?;
        // SAFETY: the caller's promise.
        unsafe { put_text(&namespace, out, out_size) }
    })
}

/// Parses a set of XIDs, `xid *("," xid)` (spec part 3). Ranges and "*" are syntax errors.
///
/// Returns 0 and a new set in `*out`, or IMAP_XID_ERR_SYNTAX. The set copies the text; end it
/// with imap_xid_set_free().
///
/// # Safety
/// `s` points to `len` octets, `out` to room for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn imap_xid_set_parse(
    s: *const c_char,
    len: usize,
    out: *mut *mut imap_xid_set,
) -> i32 {
    status(|| {
        // SAFETY: the caller's promise.
        unsafe { put(out, std::ptr::null_mut(), "out") }?;
        // SAFETY: the caller's promise.
        let set = XidSet::parse(unsafe { octets(s, len) }?)?;
        // SAFETY: the caller's promise.
        unsafe { put(out, Box::into_raw(Box::new(imap_xid_set(set))), "out") }?;
        Ok(0)
    })
}

/// How many XIDs were written in the set, repetitions included. 0 for NULL.
///
/// # Safety
/// `set` is NULL or a set.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn imap_xid_set_count(set: *const imap_xid_set) -> usize {
    // SAFETY: the caller's promise.
    boundary(|| unsafe { set.as_ref() }.map_or(0, |set| set.0.len()))
}

/// The XID at position `i`, from 0, in the order in which the set was written.
///
/// Returns 0, or IMAP_XID_ERR_ARGUMENT behind the end. `*out` borrows from the set.
///
/// # Safety
/// `set` is a set, `out` points to room for a struct imap_xid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn imap_xid_set_get(
    set: *const imap_xid_set,
    i: usize,
    out: *mut imap_xid,
) -> i32 {
    status(|| {
        // SAFETY: the caller's promise.
        let set = unsafe { given(set, "set") }?;
        let xid = set.0.get(i).ok_or_else(|| {
            let count = set.0.len();
            Failure::new(
                IMAP_XID_ERR_ARGUMENT,
                format!("no item {i} in a set of {count}"),
            )
        })?;
        // SAFETY: the caller's promise.
        unsafe { put(out, imap_xid::borrowing(xid), "out") }?;
        Ok(0)
    })
}

/// Ends a set. NULL is fine.
///
/// # Safety
/// `set` is NULL or a set that is not used again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn imap_xid_set_free(set: *mut imap_xid_set) {
    // SAFETY: the caller's promise.
    boundary(|| unsafe { free(set) })
}

/// A new known state that knows nothing (spec part 4).
///
/// Returns 0 and the state in `*out`; end it with imap_xid_state_free().
///
/// # Safety
/// `out` points to room for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn imap_xid_state_new(out: *mut *mut imap_xid_state) -> i32 {
    status(|| {
        if out.is_null() {
            return Err(Failure::new(IMAP_XID_ERR_ARGUMENT, "out is NULL"));
        }
        // SAFETY: the caller's promise.
        unsafe {
            put(
                out,
                Box::into_raw(Box::new(imap_xid_state(State::new()))),
                "out",
            )
        }?;
        Ok(0)
    })
}

/// Adds one item of a client's state: an XID or a mark ("@" UIDVALIDITY "-" UID). Of a namespace
/// named twice the highest number counts.
///
/// Returns 0, or IMAP_XID_ERR_SYNTAX (a second mark is one, too); the state is then unchanged.
///
/// # Safety
/// `state` is a state, `item` points to `len` octets.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn imap_xid_state_add(
    state: *mut imap_xid_state,
    item: *const c_char,
    len: usize,
) -> i32 {
    status(|| {
        // SAFETY: the caller's promise.
        let state = unsafe { given_mut(state, "state") }?;
        // SAFETY: the caller's promise.
        state.0.add(unsafe { octets(item, len) }?)?;
        Ok(0)
    })
}

/// The highest number that the state knows of a namespace; 0 when it does not name it.
///
/// # Safety
/// `state` is NULL or a state, `ns` points to `ns_len` octets.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn imap_xid_state_number(
    state: *const imap_xid_state,
    ns: *const c_char,
    ns_len: usize,
) -> u64 {
    boundary(|| {
        // SAFETY: the caller's promise.
        let (state, ns) = unsafe { (state.as_ref(), octets(ns, ns_len)) };
        match (state, ns.ok().and_then(|ns| str::from_utf8(ns).ok())) {
            (Some(state), Some(ns)) => state.0.number(ns),
            _ => 0,
        }
    })
}

/// How many namespaces the state names. 0 for NULL.
///
/// # Safety
/// `state` is NULL or a state.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn imap_xid_state_count(state: *const imap_xid_state) -> usize {
    // SAFETY: the caller's promise.
    boundary(|| unsafe { state.as_ref() }.map_or(0, |state| state.0.namespaces()))
}

/// The mark of the state, if it has one.
///
/// Returns 1 and fills both in, or 0.
///
/// # Safety
/// `state` is a state, `uidvalidity` and `uid` point to room for their values.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn imap_xid_state_mark(
    state: *const imap_xid_state,
    uidvalidity: *mut u32,
    uid: *mut u32,
) -> i32 {
    status(|| {
        // SAFETY: the caller's promise.
        let Some(mark) = unsafe { given(state, "state") }?.0.mark() else {
            return Ok(0);
        };
        // SAFETY: the caller's promise.
        unsafe { put(uidvalidity, mark.uidvalidity, "uidvalidity") }?;
        // SAFETY: the caller's promise.
        unsafe { put(uid, mark.uid, "uid") }?;
        Ok(1)
    })
}

/// Ends a state. NULL is fine.
///
/// # Safety
/// `state` is NULL or a state that is not used again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn imap_xid_state_free(state: *mut imap_xid_state) {
    // SAFETY: the caller's promise.
    boundary(|| unsafe { free(state) })
}
