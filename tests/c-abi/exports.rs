//! Every symbol that the library exports is in the header, and no panic gets out of it.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use crate::{library_folder, source, succeed};

/// The functions and variables that the built library exports.
fn exported() -> BTreeSet<String> {
    let output = Command::new("nm")
        .args(["--dynamic", "--defined-only", "--format=posix"])
        .arg(library_folder().join("libimap_xid.so"))
        .output()
        .expect("nm runs (binutils, which the linker comes from)");
    succeed("nm", &output);
    String::from_utf8(output.stdout)
        .expect("ASCII")
        .lines()
        .filter_map(|line| line.split(' ').next())
        .map(str::to_owned)
        .collect()
}

/// The functions that the header declares.
fn declared() -> BTreeSet<String> {
    let header = fs::read_to_string(source("include/imap_xid.h")).expect("the header");
    let mut names = BTreeSet::new();
    for (at, _) in header.match_indices("imap_xid_") {
        let name: String = header[at..]
            .chars()
            .take_while(|c| c.is_alphanumeric() || *c == '_')
            .collect();
        let line_start = header[..at].rfind('\n').map_or(0, |n| n + 1);
        let declares = header[at + name.len()..].starts_with('(')
            && header[line_start..].starts_with(|c: char| c.is_ascii_lowercase());
        if declares {
            names.insert(name);
        }
    }
    names
}

/// The body of each `extern "C" fn` of src/ffi that is exported, by its name.
fn bodies() -> Vec<(String, String)> {
    let mut bodies = Vec::new();
    for entry in fs::read_dir(source("src/ffi")).expect("src/ffi") {
        let path = entry.expect("an entry").path();
        if matches!(
            path.file_name().and_then(|n| n.to_str()),
            Some("dovecot.rs" | "cyrus.rs")
        ) {
            continue;
        }
        let text = fs::read_to_string(&path).expect("a source file");
        for piece in text.split("#[unsafe(no_mangle)]").skip(1) {
            bodies.push(name_and_body(piece));
        }
    }
    bodies
}

/// rustfmt ends an item's signature with "{" at a line's end and the item with "}" at the
/// beginning of one.
fn name_and_body(piece: &str) -> (String, String) {
    let (_, after) = piece
        .split_once("extern \"C\" fn ")
        .expect("an exported item is a function");
    let name = after.split('(').next().expect("a name").to_owned();
    let (_, body) = after.split_once("{\n").expect("a body");
    let (body, _) = body.split_once("\n}\n").expect("the end of the body");
    (name, body.to_owned())
}

/// Whether the body is one call of the boundary and nothing else, comments aside.
fn is_within_the_boundary(body: &str) -> bool {
    let code: Vec<&str> = body
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .collect();
    let indented = |line: &&str| line.starts_with("     ") || line.trim().is_empty();
    let (Some(first), Some(last)) = (code.first(), code.last()) else {
        return false;
    };
    let opens = ["    boundary(", "    status("]
        .iter()
        .any(|call| first.starts_with(call));
    opens
        && last.ends_with(')')
        && (code.len() == 1 || last.starts_with("    }"))
        && code[1..code.len().max(2) - 1].iter().all(indented)
}

#[test]
fn the_header_declares_what_the_library_exports_and_nothing_else() {
    let (exported, declared) = (exported(), declared());
    assert!(exported.len() > 30, "nm found {exported:?}");
    let difference: Vec<&String> = exported.symmetric_difference(&declared).collect();
    assert!(
        difference.is_empty(),
        "exported or declared, but not both (a stale library? `cargo build --lib`): {difference:?}"
    );
}

#[test]
fn every_export_is_one_call_of_the_boundary() {
    let bodies = bodies();
    for (name, body) in &bodies {
        assert!(
            is_within_the_boundary(body),
            "{name} does more than call the boundary:\n{body}"
        );
    }
    let written: BTreeSet<String> = bodies.into_iter().map(|(name, _)| name).collect();
    assert_eq!(
        written,
        exported(),
        "what src/ffi writes is what the library exports"
    );
}

#[test]
fn the_check_of_the_boundary_can_fail() {
    assert!(is_within_the_boundary(
        "    status(|| {\n        Ok(0)\n    })"
    ));
    assert!(is_within_the_boundary(
        "    // SAFETY: x\n    boundary(|| unsafe { free(x) })"
    ));
    for bad in [
        "",
        "    0",
        "    let x = check();\n    status(|| Ok(x))",
        "    status(|| {\n        Ok(0)\n    });\n    run()",
        "    status(|| {\n        Ok(0)\n    });\n    run();\n    status(|| {\n    })",
        "    unsafe { status(|| Ok(0)) }",
    ] {
        assert!(!is_within_the_boundary(bad), "{bad}");
    }
}
