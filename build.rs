//! Compiles the host's C shim into the cdylib, for the host whose feature is on.

use std::env;
use std::path::{Path, PathBuf};

/// The number in the C library's file name: IMAP_XID_ABI_VERSION of `src/ffi`, as programs are linked
/// with it.
const LIBRARY_ABI: u32 = 1;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if env::var_os("CARGO_FEATURE_DOVECOT").is_none()
        && env::var_os("CARGO_FEATURE_CYRUS").is_none()
    {
        println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,libimap_xid.so.{LIBRARY_ABI}");
    }
    if env::var_os("CARGO_FEATURE_DOVECOT").is_some() {
        dovecot();
        lazy_sqlite();
    }
    if env::var_os("CARGO_FEATURE_CLI").is_some() {
        record_layout();
    }
}

/// The layout of XIDs in an index, from the shim's header, for xidctl.
fn record_layout() {
    let header = "c-shim/dovecot/xid-record.h";
    println!("cargo::rerun-if-changed={header}");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    bindgen::Builder::default()
        .header(header)
        .allowlist_file(".*xid-record[.]h")
        .generate_cstr(true)
        .generate()
        .expect("the shim's header is plain C (libclang is needed: libclang-dev)")
        .write_to_file(out.join("xid_record.rs"))
        .expect("OUT_DIR can be written");
}

/// What a host's plug-in calls in place of a linked SQLite (see the file).
fn lazy_sqlite() {
    println!("cargo::rerun-if-changed=c-shim/sqlite");
    cc::Build::new()
        .file("c-shim/sqlite/lazy.c")
        .std("gnu11")
        .flag("-Wall")
        .flag("-Wextra")
        .warnings_into_errors(env::var_os("IMAP_XID_WERROR").is_some())
        .compile("xid_lazy_sqlite");
}

/// Builds `c-shim/dovecot` against the headers of the installed dovecot-dev.
fn dovecot() {
    println!("cargo::rerun-if-env-changed=DOVECOT_INCLUDE");
    println!("cargo::rerun-if-changed=c-shim/dovecot");
    println!("cargo::rerun-if-changed=include");
    let host = PathBuf::from(
        env::var_os("DOVECOT_INCLUDE").unwrap_or_else(|| "/usr/include/dovecot".into()),
    );
    let config = host.join("config.h");
    let abi = abi_version(&config).unwrap_or_else(|| {
        panic!(
            "{}: no DOVECOT_ABI_VERSION there; install dovecot-dev, or name the folder of its \
             headers in DOVECOT_INCLUDE",
            config.display()
        )
    });
    println!("cargo::rerun-if-changed={}", config.display());
    println!("cargo::rustc-env=IMAP_XID_DOVECOT_ABI={abi}");

    let mut build = cc::Build::new();
    for file in c_files(Path::new("c-shim/dovecot")) {
        build.file(file);
    }
    build
        .include("include")
        .include("c-shim/dovecot")
        // The host's headers are not ours to keep free of warnings.
        .flag("-isystem")
        .flag(host.to_string_lossy().as_ref())
        .define("HAVE_CONFIG_H", None)
        .std("gnu11")
        .flag("-fvisibility=hidden")
        .flag("-Wall")
        .flag("-Wextra")
        .flag("-Wmissing-prototypes")
        // -Werror only where the compiler is known: a newer one's new warnings must not break
        // a packager's build.
        .warnings_into_errors(env::var_os("IMAP_XID_WERROR").is_some())
        .compile("xid_dovecot_shim");
    println!("cargo::rerun-if-env-changed=IMAP_XID_WERROR");
}

/// The C files of a folder, in a fixed order.
fn c_files(folder: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|ext| ext == "c"))
        .collect();
    files.sort();
    files
}

/// The string after `#define DOVECOT_ABI_VERSION` in the host's config.h.
fn abi_version(config: &Path) -> Option<String> {
    let text = std::fs::read_to_string(config).ok()?;
    let line = text
        .lines()
        .find(|l| l.starts_with("#define DOVECOT_ABI_VERSION "))?;
    line.split('"').nth(1).map(str::to_owned)
}
