//! Every setting that the plug-in reads is in each place where an administrator looks for it.

use std::collections::BTreeSet;
use std::path::Path;

/// A place in the tree, and how a setting stands there.
type Place = (&'static str, fn(&str) -> String);

const PLACES: [Place; 3] = [
    ("packaging/90-xid.conf", |name| format!("  #{name} = ")),
    ("packaging/man/dovecot-xid.7", |name| {
        format!("\n.It Cm {name}\n")
    }),
    ("docs/operations.md", |name| format!("\n| `{name}` |")),
];

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The names of settings in the shim: string literals that begin with "xid_".
fn settings() -> BTreeSet<String> {
    let source = read("c-shim/dovecot/settings.c");
    let literals = source.split('"').skip(1).step_by(2);
    let is_name = |text: &&str| {
        text.strip_prefix("xid_").is_some_and(|rest| {
            !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
        })
    };
    literals.filter(is_name).map(str::to_owned).collect()
}

#[test]
fn every_setting_is_documented_in_each_place() {
    let settings = settings();
    assert!(settings.len() >= 9, "the shim reads only {settings:?}");
    for (path, spelled) in PLACES {
        let text = read(path);
        for name in &settings {
            assert!(text.contains(&spelled(name)), "{path} lacks {name}");
        }
    }
}

#[test]
fn no_place_documents_a_setting_that_is_not_there() {
    let settings = settings();
    let conf = read("packaging/90-xid.conf");
    for line in conf.lines().filter_map(|line| line.strip_prefix("  #xid_")) {
        let name = format!("xid_{}", line.split(' ').next().unwrap_or_default());
        assert!(settings.contains(&name), "packaging/90-xid.conf has {name}");
    }
}
