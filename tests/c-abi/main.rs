//! The C interface from C's side: programs that are compiled against the header and linked with
//! the built library, and a look at what the library exports.
//!
//! With a host's feature the library needs that host's symbols, so these tests are of the plain
//! one.
#![cfg(not(any(feature = "dovecot", feature = "cyrus")))]

mod assigner;
mod exports;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use imap_xid::ffi::IMAP_XID_ABI_VERSION;

/// The folder with the libimap_xid.so that cargo built along with this test.
fn library_folder() -> PathBuf {
    let test = std::env::current_exe().expect("the test's own path");
    let folder = test.parent().expect("a folder").to_owned();
    assert!(
        folder.join("libimap_xid.so").exists(),
        "no libimap_xid.so in {}",
        folder.display()
    );
    folder
}

fn source(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn succeed(what: &str, output: &Output) {
    assert!(
        output.status.success(),
        "{what}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Compiles a program of this folder, every warning an error.
fn compile(name: &str, into: &Path) -> PathBuf {
    let library = library_folder();
    let program = into.join(name.trim_end_matches(".c"));
    let output = Command::new("cc")
        .args([
            "-std=c11",
            "-D_GNU_SOURCE",
            "-O1",
            "-g",
            "-Wall",
            "-Wextra",
            "-Wpedantic",
        ])
        .args([
            "-Wmissing-prototypes",
            "-Wstrict-prototypes",
            "-Werror",
            "-I",
        ])
        .arg(source("include"))
        .arg(source("tests/c-abi").join(name))
        .arg("-o")
        .arg(&program)
        .arg("-L")
        .arg(&library)
        .arg("-limap_xid")
        .arg(format!("-Wl,-rpath,{}", into.display()))
        .output()
        .expect("cc runs");
    succeed(name, &output);
    // Under the name that an installed one has.
    let installed = into.join(format!("libimap_xid.so.{IMAP_XID_ABI_VERSION}"));
    if !installed.exists() {
        std::os::unix::fs::symlink(library.join("libimap_xid.so"), installed).expect("a link");
    }
    program
}

#[test]
fn a_c_program_without_any_host_uses_everything() {
    let dir = tempfile::tempdir().expect("a folder");
    let program = compile("client.c", dir.path());
    let root = dir.path().join("root");
    let run = || {
        let output = Command::new(&program)
            .arg(&root)
            .output()
            .expect("the program runs");
        succeed("client", &output);
        assert_eq!(
            String::from_utf8_lossy(&output.stderr),
            "",
            "it had something to complain of"
        );
        String::from_utf8(output.stdout).expect("ASCII")
    };
    // The first of the three is expunged each time; numbers go on where they were.
    assert_eq!(
        run(),
        "news after 0: 2 3\nnews after 1: 2 3\nnews after 3:\n"
    );
    assert_eq!(
        run(),
        "news after 3: 5 6\nnews after 1: 2 3 5 6\nnews after 6:\n"
    );
    // A reboot, which a table does not survive: the rest of the block is skipped.
    std::fs::remove_file(root.join("xid.table")).expect("there is a table");
    assert_eq!(
        run(),
        "news after 4096: 8 9\nnews after 1: 2 3 5 6 8 9\nnews after 4099:\n"
    );
}
