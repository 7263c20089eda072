//! The history checker, on histories that are right and on one for each thing that may be wrong.

use super::history::{Event, History, Row, now};
use super::workload::still_there;

fn row(uid: u32, xid: &str, key: &str) -> Row {
    Row {
        uid,
        xid: xid.into(),
        key: key.into(),
    }
}

fn listing(node: usize, rows: &[Row]) -> Event {
    Event::Listing {
        node,
        uidvalidity: 1,
        rows: rows.to_vec(),
    }
}

fn last(node: usize, rows: &[Row]) -> Event {
    Event::Final {
        node,
        uidvalidity: 1,
        rows: rows.to_vec(),
    }
}

fn next(uidnext: u32) -> Event {
    Event::UidNext {
        node: 1,
        uidvalidity: 1,
        uidnext,
    }
}

fn acknowledged(key: &str) -> Event {
    Event::Acknowledged {
        node: 1,
        key: key.into(),
    }
}

fn news(before: &[Row], announced: &[&str]) -> Event {
    Event::News {
        client: "c".into(),
        before: before.to_vec(),
        announced: announced.iter().map(|xid| (*xid).to_owned()).collect(),
    }
}

fn history(events: Vec<Event>) -> History {
    let mut history = History::default();
    events.into_iter().for_each(|event| history.push(event));
    history
}

fn broken(events: Vec<Event>) -> Vec<&'static str> {
    let found = history(events).violations();
    found.iter().map(|violation| violation.invariant).collect()
}

#[test]
fn a_clean_history_has_no_violation() {
    let rows = [row(1, "a-1", "m1"), row(2, "b-1", "m2")];
    let events = vec![
        acknowledged("m1"),
        listing(1, &rows[..1]),
        next(2),
        news(&rows[..1], &["a-1"]),
        listing(1, &rows),
        listing(2, &rows),
        news(&rows, &["b-1"]),
        last(1, &rows),
        last(2, &rows),
    ];
    assert_eq!(broken(events), Vec::<&str>::new());
}

#[test]
fn a_uid_that_names_two_messages_breaks_i1() {
    let events = vec![
        listing(1, &[row(9, "", "m1")]),
        listing(2, &[row(9, "", "m2")]),
    ];
    assert_eq!(broken(events), ["I1"]);
}

#[test]
fn a_message_with_two_uids_breaks_i1_and_counts_as_changed() {
    let events = vec![
        listing(1, &[row(9, "", "m1")]),
        listing(1, &[row(10, "", "m1")]),
    ];
    assert_eq!(history(events.clone()).count().changed, 1);
    assert_eq!(broken(events), ["I1"]);
}

#[test]
fn another_uidvalidity_breaks_i1() {
    let again = Event::Listing {
        node: 1,
        uidvalidity: 2,
        rows: vec![row(9, "", "m1")],
    };
    assert_eq!(broken(vec![listing(1, &[row(9, "", "m1")]), again]), ["I1"]);
}

#[test]
fn uids_out_of_order_break_i2() {
    assert_eq!(
        broken(vec![listing(1, &[row(2, "", "m1"), row(1, "", "m2")])]),
        ["I2"]
    );
}

#[test]
fn a_message_below_a_uidnext_already_shown_breaks_i2() {
    let before = listing(1, &[row(5, "", "m1")]);
    let after = listing(1, &[row(5, "", "m1"), row(8, "", "m2")]);
    assert_eq!(broken(vec![next(9), before.clone(), after.clone()]), ["I2"]);
    // The listing may be older than the UIDNEXT: then the message was only not seen yet.
    assert!(broken(vec![before, next(9), after]).is_empty());
}

#[test]
fn a_message_below_one_already_listed_breaks_i2() {
    let events = vec![
        listing(1, &[row(5, "", "m1"), row(9, "", "m3")]),
        listing(1, &[row(5, "", "m1"), row(8, "", "m2"), row(9, "", "m3")]),
    ];
    assert_eq!(broken(events), ["I2"]);
}

#[test]
fn listings_that_overlap_may_see_a_message_or_not() {
    let mut history = history(vec![next(9)]);
    let (one, other) = (now(), now());
    history.push_since(one, listing(1, &[row(5, "", "m1")]));
    history.push_since(other, listing(1, &[row(5, "", "m1"), row(8, "", "m2")]));
    assert_eq!(history.violations(), []);
}

#[test]
fn a_uidnext_that_goes_down_breaks_i2() {
    assert_eq!(broken(vec![next(9), next(8)]), ["I2"]);
    assert_eq!(
        broken(vec![listing(1, &[row(9, "", "m")]), next(9)]),
        ["I2"]
    );
}

#[test]
fn an_xid_that_names_two_messages_breaks_i3() {
    let events = vec![listing(1, &[row(1, "a-1", "m1"), row(2, "a-1", "m2")])];
    assert_eq!(broken(events), ["I3"]);
}

#[test]
fn a_message_whose_xid_changes_breaks_i3() {
    let events = vec![
        listing(1, &[row(1, "a-1", "m1")]),
        listing(2, &[row(1, "b-1", "m1")]),
    ];
    assert_eq!(broken(events), ["I3"]);
}

#[test]
fn a_message_that_a_client_was_never_told_of_breaks_i4() {
    let rows = [row(0, "a-1", "m1"), row(0, "b-1", "m2")];
    assert_eq!(broken(vec![news(&rows, &["a-1"])]), ["I4"]);
    let expunged = Event::Expunging { key: "m2".into() };
    assert!(broken(vec![expunged, news(&rows, &["a-1"])]).is_empty());
    let reset = Event::Reset { client: "c".into() };
    assert_eq!(broken(vec![reset]), ["I4"]);
}

#[test]
fn lost_and_doubled_messages_break_i5() {
    let twice = [row(1, "", "m1"), row(2, "", "m1")];
    let events = vec![
        acknowledged("m1"),
        acknowledged("m2"),
        acknowledged("m3"),
        Event::Expunging { key: "m3".into() },
        last(2, &twice),
    ];
    let history = history(events);
    let count = history.count();
    assert_eq!((count.lost, count.duplicated), (1, 1));
    let found = history.violations();
    assert!(
        found
            .iter()
            .any(|v| v.what == "m2 was acknowledged and is lost")
    );
}

#[test]
fn nodes_that_differ_in_the_end_break_i6() {
    let events = vec![
        last(1, &[row(1, "a-1", "m1")]),
        last(2, &[row(1, "a-1", "m1"), row(2, "a-2", "m2")]),
    ];
    assert_eq!(broken(events), ["I6"]);
    let never = Event::NeverStable {
        node: 2,
        why: "NO".into(),
    };
    assert_eq!(broken(vec![never]), ["I6"]);
}

/// Each EXPUNGE renumbers what comes after it.
#[test]
fn what_goes_with_the_answer_to_a_question_for_news_is_no_news() {
    let rows = ["m1", "m2", "m3", "m4"].map(|key| row(0, key, key));
    let listed: Vec<_> = (1..).zip(rows.clone()).collect();
    let [one, _, three, four] = rows.clone();
    assert_eq!(still_there(listed.clone(), &[]), rows);
    assert_eq!(
        still_there(listed.clone(), &[2]),
        [one.clone(), three, four]
    );
    assert_eq!(still_there(listed.clone(), &[4, 2, 2]), [one]);
    assert_eq!(still_there(listed, &[1, 1, 1, 1, 9]), []);
}
