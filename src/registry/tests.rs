//! The registry as a whole, on a real folder.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use super::*;

const INBOX: BoxGuid = [7; 16];
const INCARNATION: u64 = 1 << INCARNATION_SHIFT;

struct Home {
    dir: tempfile::TempDir,
    registry: Arc<Registry>,
}

impl Home {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let registry = Self::open(dir.path());
        Home { dir, registry }
    }

    fn open(dir: &Path) -> Arc<Registry> {
        Arc::new(Registry::new(dir, "foo").unwrap())
    }

    /// Another process's view: its own files, its own connection.
    fn another(&self) -> Arc<Registry> {
        Self::open(self.dir.path())
    }

    /// As if the process had ended and another begun.
    fn restart(&mut self) {
        self.registry = self.another();
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn aside(&self) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(self.dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.contains(".broken-") && !name.contains("-wal"))
            .filter(|name| !name.contains("-shm"))
            .collect();
        names.sort();
        names
    }
}

fn inbox() -> Mailbox {
    Mailbox::new(INBOX, "INBOX", 1000)
}

fn xid(text: &str) -> Xid<'_> {
    Xid::parse(text.as_bytes()).unwrap()
}

fn entry<'a>(uid: u32, text: &'a str, guid: &'a str) -> Entry<'a> {
    Entry {
        uid,
        xid: xid(text),
        guid: guid.as_bytes(),
    }
}

fn rows(registry: &Registry, guid: &BoxGuid) -> Vec<(u32, String, String)> {
    registry
        .export(guid)
        .map(|row| row.unwrap())
        .map(|row| {
            let guid = String::from_utf8(row.guid).unwrap();
            (row.uid, format!("{}-{}", row.namespace, row.number), guid)
        })
        .collect()
}

fn row(uid: u32, xid: &str, guid: &str) -> (u32, String, String) {
    (uid, xid.to_owned(), guid.to_owned())
}

#[test]
fn what_was_noted_is_known() {
    let home = Home::new();
    let inbox = inbox();
    home.registry
        .note(&inbox, &[entry(1, "foo-1", "a"), entry(2, "bar-9", "b")])
        .unwrap();
    assert!(
        !home.file("xid.registry").exists(),
        "a commit opened the registry"
    );
    let other = home.another();
    assert_eq!(other.registered(&inbox, 3).unwrap(), 3);
    assert_eq!(fs::metadata(home.file("xid.journal")).unwrap().len(), 0);
    assert_eq!(other.lookup(&inbox, xid("bar-9")).unwrap(), Some(2));
    assert_eq!(other.lookup(&inbox, xid("bar-8")).unwrap(), None);
    assert_eq!(
        rows(&other, &INBOX),
        [row(1, "foo-1", "a"), row(2, "bar-9", "b")]
    );
    let state = State::parse(b"foo-1").unwrap();
    assert_eq!(other.news(&inbox, &state).unwrap(), [2]);
    assert_eq!(other.news(&inbox, &State::new()).unwrap(), [1, 2]);
}

#[test]
fn numbers_come_in_blocks_that_are_never_repeated() {
    let home = Home::new();
    assert_eq!(home.registry.reserve(1, 1).unwrap(), 1..4097);
    assert_eq!(home.another().reserve(1, 1).unwrap(), 4097..8193);
    assert_eq!(home.registry.reserve(8193, 10_000).unwrap(), 8193..18_193);
}
