//! The plug-in under test, and the folder of modules that has it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Where Debian keeps Dovecot's modules.
pub(super) const MODULES: &str = "/usr/lib/dovecot/modules";

/// The .so under test: what IMAP_XID_PLUGIN names, or else a fresh debug build.
///
/// # Panics
/// When it cannot be built.
pub fn plugin_path() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| match std::env::var_os("IMAP_XID_PLUGIN") {
        Some(path) => PathBuf::from(path),
        None => cargo_build("dovecot", &["--lib"]).join("libimap_xid.so"),
    })
}

/// A program of this package (`xidctl`, `xidd`): from `env_name`, or else built with `feature`.
///
/// # Panics
/// When it cannot be built.
pub fn cargo_binary(env_name: &str, name: &str, feature: &str) -> PathBuf {
    match std::env::var_os(env_name) {
        Some(path) => PathBuf::from(path),
        None => cargo_build(feature, &["--bin", name]).join(name),
    }
}

/// Builds with `feature` into a target folder of its own (cargo holds the usual one's lock while
/// it builds tests) and gives the folder of what was built.
fn cargo_build(feature: &str, what: &[&str]) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let target = root.join("target").join(feature);
    let output = Command::new(env!("CARGO"))
        .current_dir(root)
        .args(["build", "--quiet", "--features", feature, "--target-dir"])
        .arg(&target)
        .args(what)
        // What cargo set for the test itself must not make the build differ from a plain one.
        .env_remove("CARGO_MANIFEST_DIR")
        .env_remove("RUSTFLAGS")
        .output()
        .expect("cargo runs");
    assert!(
        output.status.success(),
        "cargo build --features {feature} failed:\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    target.join("debug")
}

/// Fills `dir` with links to all modules of the system, and ours.
pub(super) fn fill_module_dir(dir: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(dir.join("doveadm"))?;
    for entry in std::fs::read_dir(MODULES)? {
        let path = entry?.path();
        let name = path.file_name().expect("an entry has a name");
        if name != "doveadm" {
            std::os::unix::fs::symlink(&path, dir.join(name))?;
        }
    }
    // Copies: this folder is mounted over the one that links would lead back to.
    for entry in std::fs::read_dir(Path::new(MODULES).join("doveadm"))? {
        let path = entry?.path();
        std::fs::copy(
            &path,
            dir.join("doveadm").join(path.file_name().expect("a name")),
        )?;
    }
    // The first one may be installed on this machine; ours is the one to test.
    for link in ["lib20_xid_plugin.so", "doveadm/lib20_doveadm_xid_plugin.so"] {
        let _ = std::fs::remove_file(dir.join(link));
        std::os::unix::fs::symlink(plugin_path(), dir.join(link))?;
    }
    Ok(())
}
