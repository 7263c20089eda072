//! xidctl from outside: what it says of itself, and how it answers when it cannot help.

#[path = "../harness/mod.rs"]
mod harness;
mod server;
mod settings;
mod table;

use std::path::Path;
use std::process::{Command, Output};

/// Runs xidctl with these arguments and an empty PATH: nothing here may need Dovecot.
fn xidctl(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_xidctl"))
        .args(args)
        .env("PATH", "")
        .output()
        .expect("xidctl starts")
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn the_manual_page_in_the_tree_is_current() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/man/xidctl.1");
    let committed = std::fs::read_to_string(path).expect("packaging/man/xidctl.1 is readable");
    let written = stdout(&xidctl(&["man"]));
    assert!(
        written.contains(".TH xidctl 1"),
        "not a manual page:\n{written}"
    );
    assert_eq!(
        committed, written,
        "run `make generate` and commit packaging/man/xidctl.1"
    );
}

#[test]
fn completions_know_the_subcommands() {
    for shell in ["bash", "zsh", "fish"] {
        let script = stdout(&xidctl(&["completions", shell]));
        assert!(
            script.contains("xidctl") && script.contains("status"),
            "{shell}:\n{script}"
        );
    }
}

#[test]
fn a_command_without_a_user_or_a_folder_says_which_options_to_give() {
    let output = xidctl(&["status"]);
    assert_eq!(output.status.code(), Some(1));
    let text = stderr(&output);
    assert!(
        text.contains("-u USER") && text.contains("--dir DIR"),
        "{text}"
    );
}

#[test]
fn a_folder_that_is_not_the_plug_ins_is_refused_by_name() {
    let dir = tempfile::tempdir().expect("a folder");
    let name = dir.path().display().to_string();
    let output = xidctl(&["status", "--dir", &name]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains(&name), "{}", stderr(&output));
}

#[test]
fn without_dovecot_the_error_says_what_to_install() {
    let output = xidctl(&["status", "-u", "joe"]);
    assert_eq!(output.status.code(), Some(1));
    let text = stderr(&output);
    assert!(
        text.contains("doveadm") && text.contains("dovecot-core"),
        "{text}"
    );
}
