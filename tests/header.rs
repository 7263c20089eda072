//! include/imap_xid.h is generated from src/ffi and committed; this is where both meet.

use std::fs;
use std::path::Path;

/// The files that make the header, in its order. The hosts' entry points are no part of the C
/// interface, and mod.rs only names the others.
const SOURCES: [&str; 5] = [
    "boundary.rs",
    "xid.rs",
    "registry.rs",
    "table.rs",
    "messages.rs",
];

fn generate(root: &Path) -> String {
    let config = cbindgen::Config::from_file(root.join("cbindgen.toml")).expect("cbindgen.toml");
    let mut builder = cbindgen::Builder::new().with_config(config);
    for source in SOURCES {
        builder = builder.with_src(root.join("src/ffi").join(source));
    }
    let mut header = Vec::new();
    builder
        .generate()
        .expect("src/ffi parses")
        .write(&mut header);
    let header = String::from_utf8(header).expect("the header is UTF-8");
    // The heading is Rust's custom; C programmers need the words.
    header.replace("# Safety", "The caller promises:")
}

/// With IMAP_XID_BLESS=1 the header is written instead of compared.
#[test]
fn the_committed_header_is_what_the_source_says() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let path = root.join("include/imap_xid.h");
    let fresh = generate(root);
    if std::env::var_os("IMAP_XID_BLESS").is_some() {
        fs::create_dir_all(root.join("include")).expect("include/");
        fs::write(&path, &fresh).expect("write the header");
        return;
    }
    let committed = fs::read_to_string(&path).expect("include/imap_xid.h is there");
    let line = committed
        .lines()
        .zip(fresh.lines())
        .position(|(a, b)| a != b);
    assert!(
        committed == fresh,
        "include/imap_xid.h differs from src/ffi, first in line {:?}: run \
         `IMAP_XID_BLESS=1 cargo test --test header` and commit it",
        line.map(|l| l + 1)
    );
}

/// A file of src/ffi that SOURCES forgets would be missing from the header unseen.
#[test]
fn every_file_of_the_interface_makes_the_header() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/ffi");
    for entry in fs::read_dir(folder).expect("src/ffi") {
        let name = entry
            .expect("an entry")
            .file_name()
            .into_string()
            .expect("UTF-8");
        let apart = matches!(name.as_str(), "mod.rs" | "dovecot.rs" | "cyrus.rs");
        assert!(
            apart || SOURCES.contains(&name.as_str()),
            "{name} is not in SOURCES"
        );
    }
}
