//! What the library has to tell an administrator and no caller asked for: a file moved aside, a
//! journal that could not be read. The host says where it goes; until then, standard error.

use std::sync::RwLock;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub enum Level {
    /// Worth to know; nothing is wrong.
    Info = 0,
    /// Something was wrong and was put right.
    Warning = 1,
    /// Something is wrong and wants an administrator.
    Error = 2,
}

type Sink = Box<dyn Fn(Level, &str) + Send + Sync>;

static SINK: RwLock<Option<Sink>> = RwLock::new(None);

/// Sends all further lines to `sink`, or to standard error again.
pub fn set_sink(sink: Option<Sink>) {
    // A sink that panicked leaves nothing half-done in the lock: it holds one pointer.
    *SINK
        .write()
        .unwrap_or_else(|poisoned| poisoned.into_inner()) = sink;
}

/// One line, without a line break: `what (why): what to do`.
pub(crate) fn line(level: Level, text: &str) {
    match &*SINK.read().unwrap_or_else(|poisoned| poisoned.into_inner()) {
        Some(sink) => sink(level, text),
        None => eprintln!("xid: {text}"),
    }
}
