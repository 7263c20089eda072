//! Real mail clients while UIDs wait, and without UIDs at all (spec parts 6 and 7).
//!
//! Each client downloads the five messages of its INBOX and, if it can, saves one into Sent. In one
//! scene UIDs become stable at random moments, and a scanner looks at all that clients are told. The
//! table of what each did is docs/clients.md; `IMAP_XID_WRITE_DOCS=1` writes it anew. Thunderbird,
//! which needs Xvfb and 250 MB, takes part in that and with `IMAP_XID_SOAK`.

#[path = "../harness/mod.rs"]
mod harness;
mod programs;
mod report;
mod scene;

use report::Scene;

#[test]
fn real_clients_get_every_message_once_while_uids_wait_and_see_no_uid_before_it_is_stable() {
    let scenes = [
        Scene::Stock,
        Scene::Waits(5),
        Scene::Waits(40),
        Scene::Random,
        Scene::NoUids,
    ];
    let table = std::thread::scope(|scope| {
        let runs: Vec<_> = scenes
            .iter()
            .map(|s| scope.spawn(|| scene::play(*s)))
            .collect();
        let played = runs.into_iter().map(|run| run.join().expect("a scene"));
        report::Table::new(played.collect())
    });
    println!("{table}");
    if std::env::var_os("IMAP_XID_WRITE_DOCS").is_some() {
        std::fs::write("docs/clients.md", table.document()).expect("docs/clients.md is written");
    }
    let failed = table.failures();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}
