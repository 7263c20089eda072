//! The symbols by which Dovecot finds the plug-in.
//!
//! Rust owns them because rustc's version script hides C symbols that are linked into a cdylib;
//! each hands over to the C shim, which knows the host's types. doveadm looks for the names with
//! `doveadm_` in front, in a folder of its own that holds a link to the same file.

use libc::{c_char, c_void};

unsafe extern "C" {
    fn xid_shim_init(module: *mut c_void);
    fn xid_shim_deinit();
    fn xid_shim_doveadm_init(module: *mut c_void);
    fn xid_shim_doveadm_deinit();
}

/// A pointer to a C string that lives as long as the library.
#[repr(transparent)]
pub struct StaticCStr(*const c_char);

// SAFETY: the pointer is to a string literal, which nobody writes.
unsafe impl Sync for StaticCStr {}

/// What Dovecot compares with its own version, up to the first "(".
const ABI_VERSION: StaticCStr =
    StaticCStr(concat!(env!("IMAP_XID_DOVECOT_ABI"), "\0").as_ptr().cast());

/// The Dovecot ABI that this file was built for.
#[unsafe(no_mangle)]
#[allow(non_upper_case_globals)]
pub static xid_plugin_version: StaticCStr = ABI_VERSION;

/// The same, under the name that doveadm asks for.
#[unsafe(no_mangle)]
#[allow(non_upper_case_globals)]
pub static doveadm_xid_plugin_version: StaticCStr = ABI_VERSION;

/// Called by Dovecot when it has loaded the plug-in.
///
/// # Safety
/// `module` is the host's `struct module *`, valid until the plug-in's deinit.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xid_plugin_init(module: *mut c_void) {
    // SAFETY: handed on as the host gave it.
    unsafe { xid_shim_init(module) }
}

/// Called by Dovecot before it unloads the plug-in.
#[unsafe(no_mangle)]
pub extern "C" fn xid_plugin_deinit() {
    // SAFETY: the host calls this once for each init.
    unsafe { xid_shim_deinit() }
}

/// [`xid_plugin_init`] under the name that doveadm asks for.
///
/// # Safety
/// As for [`xid_plugin_init`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doveadm_xid_plugin_init(module: *mut c_void) {
    // SAFETY: handed on as the host gave it.
    unsafe { xid_shim_doveadm_init(module) }
}

/// [`xid_plugin_deinit`] under the name that doveadm asks for.
#[unsafe(no_mangle)]
pub extern "C" fn doveadm_xid_plugin_deinit() {
    // SAFETY: the host calls this once for each init.
    unsafe { xid_shim_doveadm_deinit() }
}
