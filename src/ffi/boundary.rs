//! The boundary itself: no panic crosses it, errors become a code and words.

#![allow(non_camel_case_types)]

use std::cell::RefCell;
use std::ffi::CString;
use std::panic::{AssertUnwindSafe, catch_unwind};

use libc::c_char;

/// The version of this interface. It grows when a struct or a function changes its meaning; new
/// functions alone do not change it.
pub const IMAP_XID_ABI_VERSION: u32 = 1;

/// What went wrong, as the negative value that the functions return. imap_xid_last_error() has
/// the words.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum imap_xid_error {
    /// The caller broke the interface's rules: a NULL where a pointer is due, a length that
    /// cannot be, a number outside its range.
    IMAP_XID_ERR_ARGUMENT = -1,
    /// A text from outside (client, setting) does not fit its grammar. The words say what was
    /// expected and may be shown to the client after BAD.
    IMAP_XID_ERR_SYNTAX = -2,
    /// The caller's buffer is too small.
    IMAP_XID_ERR_SPACE = -3,
    /// The operating system refused to read, write or map a file.
    IMAP_XID_ERR_IO = -4,
    /// The disk or the quota is full. Nothing that was stored before is lost.
    IMAP_XID_ERR_FULL = -5,
    /// Another process held a lock for longer than we wait.
    IMAP_XID_ERR_BUSY = -6,
    /// A file was written by a newer imap-xid than this one. It is left alone.
    IMAP_XID_ERR_NEWER = -7,
    /// A file was broken or is not ours. It was moved aside; try once more.
    IMAP_XID_ERR_BROKEN = -8,
    /// The numbers of this namespace are used up (2^23 incarnations).
    IMAP_XID_ERR_EXHAUSTED = -9,
    /// A defect of imap-xid itself: a panic was caught. The caller should stop to use the
    /// library for this session.
    IMAP_XID_ERR_INTERNAL = -10,
}

use imap_xid_error::*;

/// An error on its way to C: the code that the function returns and the words that
/// imap_xid_last_error() will give.
#[derive(Debug)]
pub(crate) struct Failure {
    code: imap_xid_error,
    text: String,
}

impl Failure {
    pub(crate) fn new(code: imap_xid_error, text: impl Into<String>) -> Self {
        Failure {
            code,
            text: text.into(),
        }
    }

    /// The words.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }
}

/// What a function answers when its body panicked.
pub(crate) trait OnPanic {
    /// The answer that makes the caller do least harm.
    fn on_panic() -> Self;
}

impl OnPanic for () {
    fn on_panic() -> Self {}
}

impl OnPanic for i32 {
    fn on_panic() -> Self {
        IMAP_XID_ERR_INTERNAL as i32
    }
}

impl OnPanic for u32 {
    fn on_panic() -> Self {
        0
    }
}

impl OnPanic for u64 {
    fn on_panic() -> Self {
        0
    }
}

impl OnPanic for usize {
    fn on_panic() -> Self {
        0
    }
}

/// A text from the library is never NULL.
impl OnPanic for *const c_char {
    fn on_panic() -> Self {
        c"".as_ptr()
    }
}

impl<T> OnPanic for *mut T {
    fn on_panic() -> Self {
        std::ptr::null_mut()
    }
}

thread_local! {
    static LAST_ERROR: RefCell<CString> = RefCell::default();
}

/// The one boundary: runs the body of an exported function and turns a panic into the default
/// of its return type, with the panic's message as the last error.
pub(crate) fn boundary<T: OnPanic>(body: impl FnOnce() -> T) -> T {
    // AssertUnwindSafe: what a body can leave half-changed is either behind a parking_lot mutex
    // whose holders keep its data valid at every step, or belongs to the caller, who is told to
    // stop by IMAP_XID_ERR_INTERNAL.
    catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|panic| {
        let what = panic
            .downcast_ref::<&str>()
            .copied()
            .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
            .unwrap_or("unknown panic");
        remember(&format!("internal error: {what}: please report this"));
        // A payload's own destructor may panic too; it is not worth a second try.
        std::mem::forget(panic);
        T::on_panic()
    })
}

/// [`boundary`] for the functions that return a status: an error becomes its code.
pub(crate) fn status(body: impl FnOnce() -> Result<i32, Failure>) -> i32 {
    boundary(|| match body() {
        Ok(value) => value,
        Err(failure) => {
            remember(&failure.text);
            failure.code as i32
        }
    })
}

fn remember(text: &str) {
    let clean: Vec<u8> = text.bytes().filter(|&b| b != 0).collect();
    // A thread that is ending has no last error any more; nobody is left to ask for it.
    let _ = LAST_ERROR.try_with(|slot| {
        if let (Ok(mut slot), Ok(text)) = (slot.try_borrow_mut(), CString::new(clean)) {
            *slot = text;
        }
    });
}

/// The version of the interface that the library was built with. A caller compares it with the
/// IMAP_XID_ABI_VERSION of the header that it was compiled against.
#[unsafe(no_mangle)]
pub extern "C" fn imap_xid_abi_version() -> u32 {
    boundary(|| IMAP_XID_ABI_VERSION)
}

/// What the last failed call on this thread says about its failure: what, whose, what to do. Not
/// cleared by calls that succeed.
///
/// Returns a NUL-terminated text, never NULL. It belongs to the library and is valid until the
/// next failing call on the same thread.
#[unsafe(no_mangle)]
pub extern "C" fn imap_xid_last_error() -> *const c_char {
    boundary(|| {
        LAST_ERROR
            .try_with(|slot| slot.try_borrow().map(|text| text.as_ptr()).ok())
            .ok()
            .flatten()
            .unwrap_or(c"".as_ptr())
    })
}

/// The octets of a (pointer, length) pair from C. NULL is fine when the length is 0.
///
/// # Safety
/// `ptr` is NULL or points to `len` octets that nobody changes during the call.
pub(crate) unsafe fn octets<'a>(ptr: *const c_char, len: usize) -> Result<&'a [u8], Failure> {
    if len == 0 {
        return Ok(&[]);
    }
    if ptr.is_null() || len > isize::MAX as usize {
        return Err(Failure::new(
            IMAP_XID_ERR_ARGUMENT,
            "a text is NULL although its length is not 0, or its length cannot be",
        ));
    }
    // SAFETY: not NULL, and the caller vouches for the rest.
    Ok(unsafe { std::slice::from_raw_parts(ptr.cast::<u8>(), len) })
}

/// What a handle or another pointer to a single value from C points to.
///
/// # Safety
/// `ptr` is NULL or points to a valid `T` that outlives the call and that nobody changes in it.
pub(crate) unsafe fn given<'a, T>(ptr: *const T, what: &str) -> Result<&'a T, Failure> {
    // SAFETY: the caller's promise, and as_ref() tests for NULL.
    unsafe { ptr.as_ref() }.ok_or_else(|| null(what))
}

/// [`given`] for what the function changes.
///
/// # Safety
/// `ptr` is NULL or points to a valid `T` that outlives the call and that nobody else uses in it.
pub(crate) unsafe fn given_mut<'a, T>(ptr: *mut T, what: &str) -> Result<&'a mut T, Failure> {
    // SAFETY: the caller's promise, and as_mut() tests for NULL.
    unsafe { ptr.as_mut() }.ok_or_else(|| null(what))
}

/// Stores a result where C asked for it, without reading or dropping what was there.
///
/// # Safety
/// `out` is NULL or points to room for a `T`.
pub(crate) unsafe fn put<T>(out: *mut T, value: T, what: &str) -> Result<(), Failure> {
    if out.is_null() {
        return Err(null(what));
    }
    // SAFETY: not NULL, and the caller vouches for the room.
    unsafe { out.write(value) };
    Ok(())
}

/// Takes back a value that [`Box::into_raw`] gave to C. NULL is fine.
///
/// # Safety
/// `ptr` is NULL or came from `Box::into_raw` and is not used afterwards.
pub(crate) unsafe fn free<T>(ptr: *mut T) {
    if !ptr.is_null() {
        // SAFETY: the caller's promise.
        drop(unsafe { Box::from_raw(ptr) });
    }
}

/// Writes text and NUL into the caller's buffer; gives the length without the NUL.
///
/// # Safety
/// `out` is NULL or points to `size` octets that nobody else uses during the call.
pub(crate) unsafe fn put_text(text: &str, out: *mut c_char, size: usize) -> Result<i32, Failure> {
    if out.is_null() {
        return Err(null("out"));
    }
    let length = i32::try_from(text.len()).ok().filter(|_| text.len() < size);
    let Some(length) = length else {
        return Err(Failure::new(
            IMAP_XID_ERR_SPACE,
            format!(
                "the buffer has {size} octets and {} are needed",
                text.len() + 1
            ),
        ));
    };
    // SAFETY: `out` has room for text and NUL, checked above; a fresh buffer of C cannot overlap
    // a text that Rust owns.
    unsafe {
        std::ptr::copy_nonoverlapping(text.as_ptr(), out.cast::<u8>(), text.len());
        out.add(text.len()).write(0);
    }
    Ok(length)
}

fn null(what: &str) -> Failure {
    Failure::new(IMAP_XID_ERR_ARGUMENT, format!("{what} is NULL"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::CStr;

    fn last_error() -> String {
        // SAFETY: never NULL, NUL-terminated, and no failing call comes between.
        unsafe { CStr::from_ptr(imap_xid_last_error()) }
            .to_string_lossy()
            .into_owned()
    }

    #[test]
    fn a_panic_becomes_the_default_of_the_return_type() {
        assert_eq!(
            status(|| panic!("on purpose")),
            IMAP_XID_ERR_INTERNAL as i32
        );
        assert!(last_error().contains("on purpose"), "{}", last_error());
        assert_eq!(boundary::<u64>(|| panic!("{} purpose", "on")), 0);
        assert!(boundary::<*mut u8>(|| panic!("on purpose")).is_null());
        assert!(!boundary::<*const c_char>(|| panic!("on purpose")).is_null());
    }

    #[test]
    fn the_last_error_belongs_to_its_thread() {
        status(|| Err(Failure::new(IMAP_XID_ERR_IO, "mine\0!")));
        assert_eq!(last_error(), "mine!");
        let other = std::thread::spawn(last_error).join().unwrap();
        assert_eq!(other, "");
    }
}
