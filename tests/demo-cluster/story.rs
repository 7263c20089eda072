//! What happens on both: the same mail, written in the same way.

use std::time::Duration;

use crate::history::Row;
use crate::show::Show;
use crate::workload::{Observer, at_once, write_by_turns};

/// Messages that both clients write by turns while all is well.
pub const TOGETHER: usize = 20;
/// Messages that each writes while they are parted.
pub const APART: usize = 8;
/// Between two messages of one client.
const PAUSE: Duration = Duration::from_millis(20);
/// Rows of a listing that are shown.
const ROWS: usize = 6;

/// The two clients write by turns, and each looks after each of its messages.
pub fn write_together(observers: Vec<Observer<'_>>) -> Vec<Observer<'_>> {
    write_by_turns(observers, 0, TOGETHER, PAUSE)
}

/// Each writes some at its own node. Neither looks.
pub fn write_apart(observers: Vec<Observer<'_>>) -> Vec<Observer<'_>> {
    at_once(observers, |index, observer| {
        for n in 1..=APART {
            // What is not acknowledged does not count.
            let _ = observer.append(1000 * (index + 1) + n);
            std::thread::sleep(PAUSE);
        }
    })
}

/// Both clients look, and what they see is shown side by side: the end of the mailbox.
pub fn compare(show: &Show, observers: &mut [Observer<'_>]) {
    for observer in observers {
        let node = observer.node();
        match observer.look() {
            Ok(rows) => listing(show, node, &rows),
            Err(why) => show.note(&format!("client on node {node}: {why:?}")),
        }
    }
}

fn listing(show: &Show, node: usize, rows: &[Row]) {
    show.note(&format!(
        "the client on node {node} sees {} messages, the last ones are:",
        rows.len()
    ));
    for row in &rows[rows.len().saturating_sub(ROWS)..] {
        let xid = match row.xid.as_str() {
            "" => String::new(),
            xid => format!("  XID {xid:<8}"),
        };
        show.server(&format!("UID {:<5}{xid}  {}", row.uid, row.key));
    }
}
