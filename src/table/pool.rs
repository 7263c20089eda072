//! Blocks of cells: taken from free lists, or from the end of the file.
//!
//! Every block has a class: 2^class cells, within one mapping. A process that dies between taking
//! a block and linking it loses the block until the repair, which finds it by what is not used.

use std::sync::atomic::Ordering::{Relaxed, Release};
use std::sync::atomic::{AtomicU32, AtomicU64};

use super::Error;
use super::file::Mapped;
use super::layout::{CELL, CLASSES, Pool, Text};
use super::lock::{Guard, Orphan};

/// The holder of the table's lock: what may change what the lock guards.
pub(super) struct Writer<'a> {
    pub map: &'a Mapped,
    /// Lets go when the writer is dropped; `None` for the repair, whose orphan does.
    _guard: Option<Guard<'a>>,
}

/// The first word of a free block.
#[repr(C)]
struct FreeCell {
    next: AtomicU32,
}

/// Cells of a block of this class.
pub(super) const fn cells_of(class: usize) -> u64 {
    1 << class
}

/// The smallest class whose blocks hold so many bytes; `None` when none does.
pub(super) fn class_for(bytes: usize) -> Option<usize> {
    let cells = (bytes as u64).div_ceil(CELL).max(1);
    let class = cells.next_power_of_two().trailing_zeros() as usize;
    (class < CLASSES).then_some(class)
}

impl<'a> Writer<'a> {
    pub fn new(map: &'a Mapped, guard: Guard<'a>) -> Writer<'a> {
        Writer {
            map,
            _guard: Some(guard),
        }
    }

    /// The right to repair, while the orphaned lock is held.
    pub fn repairing(map: &'a Mapped, _orphan: &'a Orphan<'a>) -> Writer<'a> {
        Writer { map, _guard: None }
    }

    pub fn pool(&self) -> &'a Pool {
        &self.map.header().pool.0
    }

    /// Takes a block of this class. What it holds is undefined.
    pub fn allocate(&self, class: usize) -> Result<u32, Error> {
        let head = &self.pool().free[class];
        let index = head.load(Relaxed);
        if index == 0 {
            return self.allocate_unused(class);
        }
        let free: &FreeCell = self.map.block(index, class)?;
        head.store(free.next.load(Relaxed), Relaxed);
        Ok(index)
    }

    /// Takes a block that was never used, growing the file when it must.
    fn allocate_unused(&self, class: usize) -> Result<u32, Error> {
        let unused = &self.pool().unused;
        let mut index = unused.load(Relaxed);
        if u64::from(index) * CELL > self.pool().size.load(Relaxed) {
            return Err(self.map.damaged("its end is not where it can be"));
        }
        let boundary = Mapped::boundary_after(u64::from(index) * CELL) / CELL;
        if u64::from(index) + cells_of(class) > boundary {
            // A block does not cross from one mapping into the next: leave the rest free.
            self.need(boundary * CELL)?;
            let boundary = self.index(boundary)?;
            unused.store(boundary, Relaxed);
            self.release_range(index, boundary)?;
            index = boundary;
        }
        let end = u64::from(index) + cells_of(class);
        self.need(end * CELL)?;
        unused.store(self.index(end)?, Relaxed);
        Ok(index)
    }

    fn index(&self, cell: u64) -> Result<u32, Error> {
        u32::try_from(cell).map_err(|_| Error::TooBig(self.map.path().to_owned()))
    }

    fn need(&self, end: u64) -> Result<(), Error> {
        match end > self.pool().size.load(Relaxed) {
            true => self.map.grow(end),
            false => Ok(()),
        }
    }

    /// Gives a block back. Nothing may refer to it any more.
    pub fn release(&self, index: u32, class: usize) -> Result<(), Error> {
        let free: &FreeCell = self.map.block(index, class)?;
        let head = &self.pool().free[class];
        free.next.store(head.load(Relaxed), Relaxed);
        head.store(index, Relaxed);
        Ok(())
    }

    /// Gives back the cells `from..to`, in as large blocks as fit within one mapping.
    pub fn release_range(&self, mut from: u32, to: u32) -> Result<(), Error> {
        while from < to {
            let boundary = Mapped::boundary_after(u64::from(from) * CELL) / CELL;
            let room = u64::from(to - from).min(boundary - u64::from(from));
            let class = (room.ilog2() as usize).min(CLASSES - 1);
            self.release(from, class)?;
            from += cells_of(class) as u32;
        }
        Ok(())
    }

    /// How many cells the free lists hold.
    pub fn free_cells(&self) -> Result<u64, Error> {
        let mut cells = 0;
        for (class, head) in self.pool().free.iter().enumerate() {
            let mut index = head.load(Relaxed);
            let mut left = self.pool().unused.load(Relaxed);
            while index != 0 {
                cells += cells_of(class);
                let free: &FreeCell = self.map.block(index, class)?;
                index = free.next.load(Relaxed);
                left = left
                    .checked_sub(1)
                    .ok_or_else(|| self.map.damaged("a list of free blocks has no end"))?;
            }
        }
        Ok(cells)
    }

    /// Stores a name; cuts it where the largest block ends.
    pub fn store_text(&self, text: &[u8]) -> Result<u32, Error> {
        let room = (cells_of(CLASSES - 1) * CELL) as usize - size_of::<Text>();
        let text = &text[..text.len().min(room)];
        let class = class_for(size_of::<Text>() + text.len()).unwrap_or(CLASSES - 1);
        let index = self.allocate(class)?;
        let cell: &Text = self.map.block(index, class)?;
        cell.next.store(0, Relaxed);
        cell.len.store(text.len() as u32, Relaxed);
        self.map.write_after::<Text>(index, class, text)?;
        Ok(index)
    }

    /// Length and class of a stored name.
    pub fn text_size(&self, index: u32) -> Result<(usize, usize), Error> {
        let cell: &Text = self.map.block(index, 0)?;
        let len = cell.len.load(Relaxed) as usize;
        let class = class_for(len.saturating_add(size_of::<Text>()));
        let class = class.ok_or_else(|| self.map.damaged("a name is longer than names can be"))?;
        Ok((len, class))
    }

    /// Reads a name.
    pub fn text(&self, index: u32) -> Result<Vec<u8>, Error> {
        let (len, class) = self.text_size(index)?;
        self.map.read_after::<Text>(index, class, len)
    }

    /// The namespace's text, stored if it is new.
    pub fn namespace(&self, name: &[u8]) -> Result<u32, Error> {
        let mut link = &self.map.header().boxes.0.namespaces;
        let mut left = self.pool().unused.load(Relaxed);
        loop {
            let index = link.load(Relaxed);
            if index == 0 {
                break;
            }
            if self.text(index)? == name {
                return Ok(index);
            }
            let cell: &Text = self.map.block(index, 0)?;
            link = &cell.next;
            left = left
                .checked_sub(1)
                .ok_or_else(|| self.map.damaged("a list has no end"))?;
        }
        let index = self.store_text(name)?;
        link.store(index, Release);
        Ok(index)
    }
}

/// The bytes that follow a cell's head in a block of this class.
pub(super) const fn max_after<T>(class: usize) -> usize {
    (cells_of(class) * CELL) as usize - size_of::<T>()
}

/// What may lie at the start of a block: only atomics, valid with any bytes.
///
/// # Safety
/// Any bytes are a valid value, all fields are atomics or in an `UnsafeCell`, it is not larger
/// than a block of the class that it is used with, and its alignment is at most a cell's.
pub(super) unsafe trait Cell {}

// SAFETY: atomics only.
unsafe impl Cell for FreeCell {}
// SAFETY: atomics only.
unsafe impl Cell for Text {}
// SAFETY: atomics only.
unsafe impl Cell for super::layout::PendingCell {}
// SAFETY: atomics only.
unsafe impl Cell for super::layout::WaitCell {}
// SAFETY: atomics, and a GUID in an `UnsafeCell`; 128 bytes, used with class 1 only.
unsafe impl Cell for super::layout::Slot {}

impl Mapped {
    /// The head of the block `index` of this class, once all of the block was seen to be there.
    pub fn block<T: Cell>(&self, index: u32, class: usize) -> Result<&T, Error> {
        let at = self.cells(index, cells_of(class))?;
        debug_assert!(size_of::<T>() as u64 <= cells_of(class) * CELL);
        // SAFETY: mapped and long enough; `T: Cell` is valid with any bytes.
        Ok(unsafe { &*at.cast::<T>() })
    }

    /// Copies bytes behind a block's head. Only under the lock.
    pub fn write_after<T: Cell>(
        &self,
        index: u32,
        class: usize,
        bytes: &[u8],
    ) -> Result<(), Error> {
        if bytes.len() > max_after::<T>(class) {
            return Err(self.damaged("a block is too short for what it should hold"));
        }
        let at = self.cells(index, cells_of(class))?;
        // SAFETY: the block was just seen to be there and to have room, what follows a head is
        // touched by nobody without the lock, and `bytes` is no mapping of ours.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), at.add(size_of::<T>()), bytes.len());
        }
        Ok(())
    }

    /// Copies `len` bytes from behind a block's head. Only under the lock.
    pub fn read_after<T: Cell>(
        &self,
        index: u32,
        class: usize,
        len: usize,
    ) -> Result<Vec<u8>, Error> {
        if len > max_after::<T>(class) {
            return Err(self.damaged("a block is shorter than what it should hold"));
        }
        let at = self.cells(index, cells_of(class))?;
        let mut bytes = vec![0; len];
        // SAFETY: as in `write_after`.
        unsafe { std::ptr::copy_nonoverlapping(at.add(size_of::<T>()), bytes.as_mut_ptr(), len) };
        Ok(bytes)
    }
}

/// A counter that is told only the difference.
pub(super) fn add(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Relaxed);
}
