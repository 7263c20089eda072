//! The stock pair's part: the same mail, replicated by dsync both ways.

use crate::harness::Format;
use crate::history::Count;
use crate::show::Show;
use crate::stock::Pair;
use crate::story::{TOGETHER, compare, write_apart, write_together};
use crate::workload::{conclude, meanwhile};

pub fn play(show: &Show) -> Count {
    show.title("The same on two stock Dovecots that sync with each other");
    show.note("No plug-in, no xidd. `doveadm sync` runs in a loop, as fast as it can.");
    let pair = Pair::start(Format::Sdbox);
    let mut observers = pair.observers();
    // The one message at the beginning.
    let _ = observers[0].append(0);
    pair.sync(false);

    show.step(
        &format!("{TOGETHER} messages, written by turns on both"),
        "Where both chose the same UID, dsync gives both messages new ones, after clients saw the \
         old.",
    );
    let mut observers = meanwhile(
        || {
            pair.sync(false);
        },
        || write_together(observers),
    );
    pair.settle();
    compare(show, &mut observers);

    show.step(
        "A partition, and both go on writing",
        "Each shows UIDs at once.",
    );
    pair.net.partition(&[1], &[2]).expect("the link is cut");
    let mut observers = write_apart(observers);
    compare(show, &mut observers);

    show.step(
        "After the partition",
        "The same messages, under other UIDs:",
    );
    pair.net.heal().expect("the link is whole");
    pair.settle();
    compare(show, &mut observers);
    conclude(&mut observers).count()
}
