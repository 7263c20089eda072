//! Dovecot's own imaptest, where somebody has it: an external program that is not needed to build
//! or to test this package.
//!
//! IMAPTEST names its binary, IMAPTEST_TESTS the folder of its scripts. What it finds must be the
//! same with the plug-in as without.

#[path = "../harness/mod.rs"]
mod harness;

use std::path::Path;
use std::process::Command;

use harness::*;

/// None (and a line that says so) when imaptest is not there.
fn imaptest() -> Option<String> {
    let path = std::env::var("IMAPTEST").ok();
    if path.is_none() {
        println!("not run: IMAPTEST does not name an imaptest");
    }
    path
}

fn server(format: Format, plugin: bool) -> Dovecot {
    Dovecot::setup()
        .format(format)
        .plugin(plugin)
        .set("mail_log_prefix", "\"%s(%u): \"")
        .start()
}

fn command(program: &str, server: &Dovecot) -> Command {
    let mut command = Command::new(program);
    command.current_dir(server.tree());
    let address = server.imap_addr();
    command.args([
        format!("host={}", address.ip()),
        format!("port={}", address.port()),
    ]);
    command
}

/// The lines of the summary that count what failed.
fn scripted(program: &str, tests: &str, format: Format, plugin: bool) -> Vec<String> {
    let server = server(format, plugin);
    let output = run(
        command(program, &server).args(["user=tester", "pass=pass", &format!("test={tests}")]),
        b"",
    );
    let text = output.stdout + &output.stderr;
    assert!(!text.contains("Panic"), "imaptest itself failed:\n{text}");
    let counts: Vec<String> = text
        .lines()
        .filter(|line| {
            line.contains("failed")
                && line.starts_with(|c: char| c.is_ascii_digit() || c == 'b' || c == 'e')
        })
        .map(str::to_owned)
        .collect();
    assert!(!counts.is_empty(), "imaptest counted nothing:\n{text}");
    println!("{format:?}, plug-in {plugin}: {counts:#?}");
    counts
}

#[test]
fn the_scripts_find_the_same_with_and_without_the_plug_in() {
    let Some(program) = imaptest() else { return };
    let tests = std::env::var("IMAPTEST_TESTS").expect("IMAPTEST_TESTS names imaptest's scripts");
    for format in Format::ALL {
        let stock = scripted(&program, &tests, format, false);
        assert_eq!(
            scripted(&program, &tests, format, true),
            stock,
            "{format:?}"
        );
    }
}

/// An mbox from which imaptest takes the messages that it appends.
fn write_mbox(path: &Path) {
    let mut text = Vec::new();
    for n in 0..40 {
        text.extend_from_slice(b"From sender@example.org Mon Nov 23 10:00:00 2026\n");
        let message = message_of(n, 100 + 700 * (n % 7));
        text.extend(message.iter().filter(|&&byte| byte != b'\r'));
        text.push(b'\n');
    }
    std::fs::write(path, text).expect("the mbox is written");
}

/// The errors that a stress run reports.
fn stressed(program: &str, format: Format, plugin: bool, extra: &[&str]) -> Vec<String> {
    let server = server(format, plugin);
    // Ten first sessions at once can deadlock while they make the INBOX and list it, and one of them
    // panics: stock Dovecot does it too (seen once in 50 starts), so it is made before.
    server.doveadm_ok(&["mailbox", "status", "-u", "stress", "messages", "INBOX"]);
    let mbox = server.tree().join("mbox");
    write_mbox(&mbox);
    let mut command = command(program, &server);
    let secs = if std::env::var_os("IMAP_XID_SOAK").is_some() {
        60
    } else {
        5
    };
    command.args(["clients=10", "seed=2005", &format!("secs={secs}")]);
    command.arg(format!("mbox={}", mbox.display())).args(extra);
    command.args(["user=stress", "pass=pass"]);
    let output = run(&mut command, b"");
    let text = output.stdout + &output.stderr;
    assert!(!text.contains("Panic"), "imaptest itself failed:\n{text}");
    assert!(
        server.log().contains("user=<stress>"),
        "imaptest did not log in:\n{text}"
    );
    if plugin {
        server.checked_all("stress");
    }
    text.lines()
        .filter(|line| line.contains("Error: "))
        .map(str::to_owned)
        .collect()
}

#[test]
fn stress_finds_no_error_with_the_plug_in() {
    let Some(program) = imaptest() else { return };
    for format in Format::ALL {
        for extra in [&[][..], &["uidf=50"][..]] {
            let stock = stressed(&program, format, false, extra);
            let ours = stressed(&program, format, true, extra);
            println!(
                "{format:?} {extra:?}: stock {}, ours {}",
                stock.len(),
                ours.len()
            );
            assert!(
                ours.len() <= stock.len(),
                "{format:?} {extra:?}: {ours:#?}, stock: {stock:#?}"
            );
        }
    }
}
