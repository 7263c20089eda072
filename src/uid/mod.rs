//! Which commands reach above a watermark (spec part 6). Pure.
//!
//! A client names messages by sets of UIDs. Where a set reaches above the watermark the command
//! waits, and only for what was there when it came: [`UidSet::reach`] says for which UID,
//! [`UidSet::clamp`] cuts the set down to what was there, so that messages which came during the
//! wait neither prolong it nor are shown.

use std::fmt;

/// Why a text is no set of UIDs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Nothing at all.
    #[error("a set of UIDs is empty: expected numbers, ranges as 2:4, or *, with commas between")]
    Empty,
    /// Something that is neither a number nor "*".
    #[error("a set of UIDs has no number where one is expected, after {0} octets")]
    NotANumber(usize),
    /// UIDs begin with 1.
    #[error("a set of UIDs has a 0, after {0} octets: UIDs begin with 1")]
    Zero(usize),
}

/// A set of UIDs as a client writes one (RFC 3501 `sequence-set`).
///
/// Accepts what hosts accept beyond the grammar (leading zeros, a comma at the end, numbers that
/// overflow, which count as the highest): a set that is not judged would be run unjudged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UidSet {
    /// Both ends as written, [`STAR`] for "*".
    ranges: Vec<(u64, u64)>,
}

/// "*", above every UID.
const STAR: u64 = u64::MAX;

impl UidSet {
    /// Parses a set.
    pub fn parse(text: &[u8]) -> Result<UidSet, Error> {
        if text.is_empty() {
            return Err(Error::Empty);
        }
        let mut ranges = Vec::new();
        let mut at = 0;
        while at < text.len() {
            let (first, after) = number(text, at)?;
            let (last, after) = match text.get(after) {
                Some(b':') => number(text, after + 1)?,
                _ => (first, after),
            };
            ranges.push((first, last));
            at = match text.get(after) {
                None => after,
                Some(b',') => after + 1,
                Some(_) => return Err(Error::NotANumber(after)),
            };
        }
        Ok(UidSet { ranges })
    }

    /// Whether a command with this set must wait, and until the watermark is at which UID.
    ///
    /// `last_uid` is the UID of the last message that is there as the command comes. A set that
    /// lies above it waits for that message: its UID is not agreed, so it may be the one meant.
    pub fn reach(&self, watermark: u32, last_uid: u32) -> Option<u32> {
        if last_uid <= watermark {
            return None;
        }
        let highest = self.ranges.iter().map(|(a, b)| *a.max(b)).max()?;
        let highest = u32::try_from(highest).unwrap_or(u32::MAX).min(last_uid);
        (highest > watermark).then_some(highest)
    }

    /// The UIDs that the set named when the last message was `last_uid` ("*" is that UID), as
    /// ascending ranges that do not touch; none when there was nothing that it names.
    pub fn clamp(&self, last_uid: u32) -> Ranges {
        let mut ranges: Vec<(u32, u32)> = self
            .ranges
            .iter()
            .filter_map(|(first, last)| clamp_range(*first, *last, last_uid))
            .collect();
        ranges.sort_unstable();
        let mut merged: Vec<(u32, u32)> = Vec::with_capacity(ranges.len());
        for (first, last) in ranges {
            match merged.last_mut() {
                Some(previous) if first <= previous.1.saturating_add(1) => {
                    previous.1 = previous.1.max(last);
                }
                _ => merged.push((first, last)),
            }
        }
        Ranges(merged)
    }
}

/// A range's UIDs up to `last_uid`; `None` when it has none there.
fn clamp_range(first: u64, last: u64, last_uid: u32) -> Option<(u32, u32)> {
    let end = |end| {
        if end == STAR {
            u64::from(last_uid)
        } else {
            end
        }
    };
    let (first, last) = (end(first), end(last));
    let (low, high) = (first.min(last), first.max(last));
    let high = u32::try_from(high).unwrap_or(u32::MAX).min(last_uid);
    let low = u32::try_from(low).ok()?;
    (low <= high && high > 0).then_some((low.max(1), high))
}

/// The number or "*" at an offset, and the offset after it.
fn number(text: &[u8], at: usize) -> Result<(u64, usize), Error> {
    let rest = &text[at.min(text.len())..];
    if rest.first() == Some(&b'*') {
        return Ok((STAR, at + 1));
    }
    let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    if digits == 0 {
        return Err(Error::NotANumber(at));
    }
    let value = rest[..digits].iter().fold(0_u64, |value, digit| {
        (value * 10 + u64::from(digit - b'0')).min(u64::from(u32::MAX))
    });
    match value {
        0 => Err(Error::Zero(at)),
        value => Ok((value, at + digits)),
    }
}

/// Ascending ranges of UIDs that do not touch. Written as IMAP writes a set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ranges(Vec<(u32, u32)>);

impl Ranges {
    /// First and last UID of each range.
    pub fn as_slice(&self) -> &[(u32, u32)] {
        &self.0
    }

    /// Whether no UID is in it; such a set cannot be written.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for Ranges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (first, last)) in self.0.iter().enumerate() {
            let comma = if i == 0 { "" } else { "," };
            match first == last {
                true => write!(f, "{comma}{first}")?,
                false => write!(f, "{comma}{first}:{last}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn reach(set: &str, watermark: u32, last_uid: u32) -> Option<u32> {
        UidSet::parse(set.as_bytes())
            .unwrap()
            .reach(watermark, last_uid)
    }

    fn clamp(set: &str, last_uid: u32) -> String {
        UidSet::parse(set.as_bytes())
            .unwrap()
            .clamp(last_uid)
            .to_string()
    }

    #[test]
    fn a_set_wholly_at_or_below_the_watermark_does_not_wait() {
        assert_eq!(reach("1:8", 8, 11), None);
        assert_eq!(reach("8", 8, 9), None);
        assert_eq!(reach("1,3,5:7", 8, 11), None);
        assert_eq!(reach("8:1", 8, 11), None);
    }

    #[test]
    fn a_set_that_reaches_above_waits_for_what_it_names() {
        assert_eq!(reach("9", 8, 11), Some(9));
        assert_eq!(reach("1:9", 8, 11), Some(9));
        assert_eq!(reach("10:1", 8, 11), Some(10));
        assert_eq!(reach("1,10,2", 8, 11), Some(10));
        assert_eq!(reach("1:4294967295", 8, 11), Some(11));
    }

    #[test]
    fn a_star_waits_for_the_last_message_that_was_there() {
        assert_eq!(reach("*", 8, 11), Some(11));
        assert_eq!(reach("1:*", 8, 11), Some(11));
        assert_eq!(reach("*:1", 8, 11), Some(11));
        assert_eq!(reach("20:*", 8, 11), Some(11));
    }

    #[test]
    fn a_set_above_all_that_is_there_waits_for_it() {
        assert_eq!(reach("50:60", 8, 11), Some(11));
    }

    #[test]
    fn nothing_waits_where_every_uid_is_stable() {
        for set in ["*", "1:*", "12", "1:4294967295"] {
            assert_eq!(reach(set, 11, 11), None, "{set}");
            assert_eq!(reach(set, 12, 11), None, "{set}");
            assert_eq!(reach(set, 0, 0), None, "{set}");
        }
    }

    #[test]
    fn an_empty_mailbox_without_stable_uids_waits_from_the_first() {
        assert_eq!(reach("1", 0, 1), Some(1));
        assert_eq!(reach("*", 0, 3), Some(3));
    }

    #[test]
    fn a_clamped_set_names_what_was_there() {
        assert_eq!(clamp("1:*", 11), "1:11");
        assert_eq!(clamp("*", 11), "11");
        assert_eq!(clamp("20:*", 11), "11");
        assert_eq!(clamp("*:9", 11), "9:11");
        assert_eq!(clamp("9:15,3,4,5,20", 11), "3:5,9:11");
        assert_eq!(clamp("12:40", 11), "");
        assert_eq!(clamp("1:*", 0), "");
        assert_eq!(clamp("*", 0), "");
        assert_eq!(clamp("4294967295,1", u32::MAX), "1,4294967295");
    }

    #[test]
    fn what_hosts_accept_beyond_the_grammar_is_judged_too() {
        assert_eq!(reach("9,", 8, 11), Some(9));
        assert_eq!(reach("0009", 8, 11), Some(9));
        // A host that lets it wrap around would show UID 9.
        assert_eq!(reach("4294967305", 8, 11), Some(11));
        assert_eq!(reach("99999999999999999999999999999999", 8, 11), Some(11));
    }

    #[test]
    fn what_is_no_set_is_an_error_that_says_where() {
        let error = |text: &str| UidSet::parse(text.as_bytes()).unwrap_err();
        assert_eq!(error(""), Error::Empty);
        assert_eq!(error("a"), Error::NotANumber(0));
        assert_eq!(error("1:"), Error::NotANumber(2));
        assert_eq!(error("1,,2"), Error::NotANumber(2));
        assert_eq!(error("1:2:3"), Error::NotANumber(3));
        assert_eq!(error("1 2"), Error::NotANumber(1));
        assert_eq!(error("**"), Error::NotANumber(1));
        assert_eq!(error("4:0"), Error::Zero(2));
        assert_eq!(error("foo-1"), Error::NotANumber(0));
        assert_eq!(error("-1"), Error::NotANumber(0));
    }

    /// One end of a range: a UID or, for 0, "*".
    fn end(value: u32) -> String {
        if value == 0 {
            "*".to_owned()
        } else {
            value.to_string()
        }
    }

    proptest! {
        #[test]
        fn reach_and_clamp_agree_with_the_members_of_the_set(
            ranges in prop::collection::vec((0_u32..40, 0_u32..40), 1..6),
            watermark in 0_u32..40,
            last_uid in 1_u32..40,
        ) {
            let text: Vec<String> =
                ranges.iter().map(|(a, b)| format!("{}:{}", end(*a), end(*b))).collect();
            let set = UidSet::parse(text.join(",").as_bytes()).unwrap();
            let value = |end: u32| if end == 0 { last_uid } else { end };
            let members: BTreeSet<u32> = ranges
                .iter()
                .flat_map(|(a, b)| value(*a).min(value(*b))..=value(*a).max(value(*b)))
                .collect();
            let there: Vec<u32> = members.iter().copied().filter(|uid| *uid <= last_uid).collect();
            let clamped = set.clamp(last_uid);
            let listed: Vec<u32> =
                clamped.as_slice().iter().flat_map(|(a, b)| *a..=*b).collect();
            prop_assert_eq!(&listed, &there);
            // What is written is read as the same set again.
            if !clamped.is_empty() {
                let again = UidSet::parse(clamped.to_string().as_bytes()).unwrap();
                prop_assert_eq!(again.clamp(last_uid), clamped);
            }
            let wait = set.reach(watermark, last_uid);
            let highest = members.last().copied().unwrap_or(0).min(last_uid);
            prop_assert_eq!(wait, (highest > watermark).then_some(highest));
        }

        #[test]
        fn no_text_makes_it_panic(text in prop::collection::vec(any::<u8>(), 0..40)) {
            if let Ok(set) = UidSet::parse(&text) {
                set.clamp(7);
                set.reach(3, 7);
            }
        }

        #[test]
        fn no_text_of_a_sets_octets_makes_it_panic(text in "[0-9:,*]{0,30}") {
            if let Ok(set) = UidSet::parse(text.as_bytes()) {
                let clamped = set.clamp(u32::MAX);
                prop_assert!(UidSet::parse(clamped.to_string().as_bytes()).is_ok());
            }
        }
    }
}
