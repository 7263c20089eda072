//! Numbers are reserved in blocks: durable here before the first of a block is used.

use std::ops::Range;
use std::path::Path;

use super::db::Db;
use super::error::Error;
use super::witness::{Evidence, Witness};
use crate::xid::NUMBER_MAX;

/// A number's bits from here up are its incarnation: how often the registry was lost before.
pub const INCARNATION_SHIFT: u32 = 40;

/// Numbers in a block. A crash skips what is left of one; a reservation costs about three fsyncs.
pub const BLOCK: u32 = 4096;

/// The first number of the first incarnation above that of `number`.
fn next_incarnation(number: u64) -> u64 {
    ((number >> INCARNATION_SHIFT) + 1) << INCARNATION_SHIFT
}

/// Where a new registry begins: its "reserved" before the first reservation.
pub(super) fn initial_reserved(evidence: Evidence) -> u64 {
    evidence.floor().map_or(0, next_incarnation)
}

/// The block of at least `count` numbers that follows, all of them `from` or above.
///
/// `reserved` is what the registry reserved so far, `witnessed` what the witness says. When either
/// the caller or the witness has seen more than the registry, the registry is not the one that
/// gave those numbers out: another mailbox may show any number up to the end of that incarnation,
/// so a new one begins.
fn next_block(reserved: u64, witnessed: u64, from: u64, count: u32) -> Option<Range<u64>> {
    let seen = witnessed.max(from.saturating_sub(1));
    if seen > NUMBER_MAX {
        return None;
    }
    let start = if seen > reserved {
        next_incarnation(seen) + 1
    } else {
        reserved + 1
    };
    let end = start.checked_add(u64::from(count.max(BLOCK)))?;
    (end - 1 <= NUMBER_MAX).then_some(start..end)
}

/// Reserves a block, durable when this returns. See [`super::Registry::reserve`].
pub(super) fn reserve(
    db: &Db,
    witness: &Witness,
    path: &Path,
    from: u64,
    count: u32,
) -> Result<Range<u64>, Error> {
    // Locked throughout: where SQLite's own locks do not exclude another process any more (its
    // files beside the registry were deleted under it), the witness still does.
    witness.locked(|witness| {
        let witnessed = match witness.read()? {
            Evidence::Reserved(number) => number,
            Evidence::None | Evidence::Unreadable => 0,
        };
        let block = db.durably(|| {
            let block = next_block(db.reserved()?, witnessed, from, count)
                .ok_or_else(|| Error::Exhausted(path.to_owned()))?;
            db.set_reserved(block.end - 1)?;
            Ok(block)
        })?;
        witness.raise(block.end - 1)?;
        Ok(block)
    })
}

/// What is left of a block that this process has for itself, where there is no table to share it.
#[derive(Debug, Default)]
pub(super) struct OwnBlock(Range<u64>);

impl OwnBlock {
    /// Takes `count` numbers above `above`, as [`crate::table::Table::take_numbers`] does.
    pub(super) fn take(
        &mut self,
        above: u64,
        count: u32,
        reserve: impl FnOnce(u64, u32) -> Result<Range<u64>, Error>,
    ) -> Result<u64, Error> {
        let wanted = u64::from(count.max(1));
        let mut first = self.0.start.max(above.saturating_add(1));
        if self.0.end.saturating_sub(first) < wanted {
            let block = reserve(first, count)?;
            first = block.start;
            self.0 = block;
        }
        self.0.start = first + wanted;
        Ok(first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const I: u64 = 1 << INCARNATION_SHIFT;

    #[test]
    fn blocks_follow_each_other() {
        assert_eq!(next_block(0, 0, 1, 1), Some(1..4097));
        assert_eq!(next_block(4096, 4096, 3000, 1), Some(4097..8193));
        assert_eq!(next_block(4096, 4096, 4097, 10_000), Some(4097..14_097));
    }

    #[test]
    fn numbers_that_the_registry_never_reserved_begin_an_incarnation() {
        assert_eq!(next_block(0, 0, 2, 1), Some(I + 1..I + 4097));
        assert_eq!(next_block(4096, 8192, 1, 1), Some(I + 1..I + 4097));
        assert_eq!(
            next_block(I + 4096, 3 * I + 7, 5, 1),
            Some(4 * I + 1..4 * I + 4097)
        );
        assert_eq!(
            next_block(I + 4096, 0, 3 * I + 8, 1),
            Some(4 * I + 1..4 * I + 4097)
        );
    }

    #[test]
    fn the_numbers_end_with_an_error() {
        assert_eq!(
            next_block(NUMBER_MAX - 4096, 0, 1, 1),
            Some(NUMBER_MAX - 4095..NUMBER_MAX + 1)
        );
        assert_eq!(next_block(NUMBER_MAX - 4095, 0, 1, 1), None);
        assert_eq!(next_block(0, 0, u64::MAX, 1), None);
    }

    #[test]
    fn a_process_without_a_table_takes_from_its_own_block() {
        let mut reserved = 0;
        let mut reserve = |from, count| {
            let block = next_block(reserved, reserved, from, count).unwrap();
            reserved = block.end - 1;
            Ok(block)
        };
        let mut own = OwnBlock::default();
        assert_eq!(own.take(0, 1, &mut reserve).unwrap(), 1);
        assert_eq!(own.take(0, 3, &mut reserve).unwrap(), 2);
        assert_eq!(own.take(4090, 6, &mut reserve).unwrap(), 4091);
        assert_eq!(own.take(0, 1, &mut reserve).unwrap(), 4097);
        // Another process's messages came in between: its block is above ours.
        reserve(1, 1).unwrap();
        assert_eq!(own.take(12_288, 1, &mut reserve).unwrap(), 12_289);
    }
}
