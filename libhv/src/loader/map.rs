//! The guest's memory map as firmware would report it, and the room in it that a loader hands out.

use crate::address::{Gpa, PAGE_SIZE};
use crate::error::ImageError;
use crate::memory::GuestMemory;
use alloc::vec::Vec;
use core::ops::Range;

/// The first byte of the extended BIOS data area, where usable low memory ends.
pub const LOW_MEMORY_END: u64 = 0x9_FC00;
/// The first byte after the legacy video memory and ROM: 1 MiB.
pub const HIGH_MEMORY: u64 = 0x10_0000;
/// The first address that 32 bits cannot express.
pub const FOUR_GIB: u64 = 1 << 32;

/// What a range of a memory map may be used for, numbered as the firmware call INT 15H, AX=E820H numbers it; Multiboot
/// and PVH number it the same.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Use {
    /// Memory for the guest's operating system.
    Usable = 1,
    /// Not to be touched: tables, ROM, devices, holes.
    Reserved = 2,
}

/// A range of guest-physical addresses and its use.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// The addresses; never empty.
    pub range: Range<u64>,
    /// What they are for.
    pub usage: Use,
}

/// Which guest-physical addresses are usable and which are reserved: sorted, and without overlaps.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MemoryMap {
    entries: Vec<Entry>,
}

impl MemoryMap {
    /// Makes the map of `memory`: all of it is usable but the legacy area from 9FC00H to 1 MiB and the ranges
    /// `reserved`, which may lie outside memory as well.
    pub fn new(memory: &GuestMemory, reserved: &[Range<u64>]) -> Self {
        let legacy = LOW_MEMORY_END..HIGH_MEMORY;
        let holes = union(reserved.iter().cloned().chain([legacy]));
        let mut usable = union(memory.regions().iter().map(|r| r.start().as_u64()..r.end().as_u64()));
        for hole in &holes {
            usable = subtract(usable, hole);
        }
        let mut entries: Vec<Entry> = usable.into_iter().map(|range| Entry { range, usage: Use::Usable }).collect();
        for range in holes {
            let place = entries.partition_point(|entry| entry.range.start < range.start);
            entries.insert(place, Entry { range, usage: Use::Reserved });
        }
        Self { entries }
    }

    /// Returns the ranges, sorted by address.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Returns the number of usable bytes from `address` on without a gap.
    pub fn usable_from(&self, address: u64) -> u64 {
        let inside = |entry: &&Entry| entry.usage == Use::Usable && entry.range.contains(&address);
        self.entries.iter().find(inside).map_or(0, |entry| entry.range.end - address)
    }
}

/// Returns the ranges sorted, without empty ones, and with those that overlap or touch made one.
fn union(ranges: impl Iterator<Item = Range<u64>>) -> Vec<Range<u64>> {
    let mut merged: Vec<Range<u64>> = Vec::new();
    for range in ranges.filter(|range| !range.is_empty()) {
        let first = merged.partition_point(|other| other.end < range.start);
        let after = merged.partition_point(|other| other.start <= range.end);
        let touching = merged.get(first..after).unwrap_or(&[]);
        let start = touching.first().map_or(range.start, |other| other.start.min(range.start));
        let end = touching.last().map_or(range.end, |other| other.end.max(range.end));
        merged.drain(first..after);
        merged.insert(first, start..end);
    }
    merged
}

/// Returns `ranges` without the addresses of `hole`.
fn subtract(ranges: Vec<Range<u64>>, hole: &Range<u64>) -> Vec<Range<u64>> {
    let parts = |range: Range<u64>| [range.start..range.end.min(hole.start), range.start.max(hole.end)..range.end];
    ranges.into_iter().flat_map(parts).filter(|part| !part.is_empty()).collect()
}

/// The usable memory that no part of the guest's image has been given yet.
#[derive(Clone, Debug)]
pub(super) struct Room {
    free: Vec<Range<u64>>,
}

impl Room {
    /// Makes room of all that is usable, but for the first page: it holds the real-mode interrupt vectors, and address
    /// 0 means "none" in most formats.
    pub(super) fn new(map: &MemoryMap) -> Self {
        let usable = map.entries.iter().filter(|entry| entry.usage == Use::Usable);
        Self { free: subtract(usable.map(|entry| entry.range.clone()).collect(), &(0..PAGE_SIZE)) }
    }

    /// Takes `bytes` bytes at `start`; `part` is what they are for.
    ///
    /// # Errors
    /// [`ImageError::DoesNotFit`] when not all of them are free.
    pub(super) fn claim(&mut self, part: &'static str, start: u64, bytes: u64) -> Result<(), ImageError> {
        if bytes == 0 {
            return Ok(());
        }
        let available =
            self.free.iter().find(|range| range.contains(&start)).map_or(0, |range| range.end.saturating_sub(start));
        if available < bytes {
            return Err(ImageError::DoesNotFit { part, needed: bytes, available });
        }
        let taken = start..start + bytes;
        self.free = subtract(core::mem::take(&mut self.free), &taken);
        Ok(())
    }

    /// Takes `bytes` bytes at the lowest multiple of `align` (a power of two) in `limits`.
    ///
    /// # Errors
    /// [`ImageError::DoesNotFit`] when there is no such place.
    pub(super) fn lowest(
        &mut self,
        part: &'static str,
        bytes: u64,
        align: u64,
        limits: Range<u64>,
    ) -> Result<u64, ImageError> {
        let place = self.inside(&limits).find_map(|range| {
            let start = range.start.checked_next_multiple_of(align)?;
            (start.checked_add(bytes)? <= range.end).then_some(start)
        });
        self.settle(part, place, bytes, &limits)
    }

    /// Takes `bytes` bytes at the highest multiple of `align` (a power of two) in `limits`.
    ///
    /// # Errors
    /// [`ImageError::DoesNotFit`] when there is no such place.
    pub(super) fn highest(
        &mut self,
        part: &'static str,
        bytes: u64,
        align: u64,
        limits: Range<u64>,
    ) -> Result<u64, ImageError> {
        let places = self.inside(&limits).filter_map(|range| {
            let start = range.end.checked_sub(bytes)?;
            let start = start - start % align;
            (start >= range.start).then_some(start)
        });
        let place = places.max();
        self.settle(part, place, bytes, &limits)
    }

    fn settle(
        &mut self,
        part: &'static str,
        place: Option<u64>,
        bytes: u64,
        limits: &Range<u64>,
    ) -> Result<u64, ImageError> {
        let available = self.inside(limits).map(|range| range.end - range.start).max().unwrap_or(0);
        let start = place.ok_or(ImageError::DoesNotFit { part, needed: bytes, available })?;
        self.claim(part, start, bytes)?;
        Ok(start)
    }

    /// Returns what is free inside `limits`.
    fn inside(&self, limits: &Range<u64>) -> impl Iterator<Item = Range<u64>> {
        let parts = self.free.iter().map(|range| range.start.max(limits.start)..range.end.min(limits.end));
        parts.filter(|range| !range.is_empty())
    }
}

/// Writes an image's part where [`Room`] found place for it.
///
/// # Errors
/// [`ImageError::DoesNotFit`] when memory ends before the part does.
pub(super) fn store(
    memory: &mut GuestMemory,
    part: &'static str,
    address: u64,
    bytes: &[u8],
) -> Result<(), ImageError> {
    if bytes.is_empty() {
        return Ok(());
    }
    memory.write(Gpa::new(address), bytes).map_err(|end| ImageError::DoesNotFit {
        part,
        needed: bytes.len() as u64,
        available: end.0.as_u64().saturating_sub(address),
    })
}

/// Fills `bytes` bytes with zeros where [`Room`] found place for them.
///
/// # Errors
/// [`ImageError::DoesNotFit`] when memory ends before they do.
pub(super) fn clear(memory: &mut GuestMemory, part: &'static str, address: u64, bytes: u64) -> Result<(), ImageError> {
    let zeros = [0; 1024];
    let mut done = 0;
    while done < bytes {
        let chunk = (bytes - done).min(zeros.len() as u64);
        store(memory, part, address.wrapping_add(done), &zeros[..chunk as usize])?;
        done += chunk;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::window::Window;
    use proptest::prelude::*;

    const TOP: u64 = 0x20_0000;
    const CELL: u64 = 0x400;
    const CELLS: usize = (TOP / CELL) as usize;

    fn memory() -> GuestMemory {
        let mut memory = GuestMemory::for_tests(0x15_0000);
        memory.add(Gpa::new(0x18_0000), Window::leaked(0x4_0000)).expect("apart from the first");
        memory
    }

    fn page_range() -> impl Strategy<Value = Range<u64>> {
        (0..TOP / 0x400, 0u64..0x80).prop_map(|(start, length)| start * 0x400..(start + length) * 0x400)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn every_address_has_the_use_it_was_given(reserved in proptest::collection::vec(page_range(), 0..5)) {
            let memory = memory();
            let map = MemoryMap::new(&memory, &reserved);
            for address in (0..TOP).step_by(0x400) {
                let hole = (0x9_FC00..0x10_0000).contains(&address) || reserved.iter().any(|range| range.contains(&address));
                let expected = match (hole, memory.contains(Gpa::new(address), 1)) {
                    (true, _) => Some(Use::Reserved),
                    (false, true) => Some(Use::Usable),
                    (false, false) => None,
                };
                let found: Vec<_> = map.entries().iter().filter(|entry| entry.range.contains(&address)).collect();
                prop_assert!(found.len() <= 1);
                prop_assert_eq!(found.first().map(|entry| entry.usage), expected);
            }
            prop_assert!(map.entries().is_sorted_by_key(|entry| entry.range.start));
        }

        /// The model counts in cells of 1 KiB.
        #[test]
        fn nothing_is_given_twice_and_nothing_free_is_refused(
            requests in proptest::collection::vec((1usize..0xC0, 0u32..7, 0..CELLS, 0..CELLS, any::<bool>()), 1..12),
        ) {
            let mut room = Room::new(&MemoryMap::new(&memory(), &[]));
            let mut taken = alloc::vec![true; CELLS];
            for usable in [4..0x27F, 0x400..0x540, 0x600..0x700] {
                taken[usable].fill(false);
            }
            for (cells, shift, one, other, high) in requests {
                let limits = one.min(other)..one.max(other);
                let free = |start: &usize| start + cells <= limits.end && !taken[*start..start + cells].contains(&true);
                let mut candidates = (0..CELLS).step_by(1 << shift).filter(|start| *start >= limits.start).filter(free);
                let (bytes, align) = (cells as u64 * CELL, CELL << shift);
                let limits = limits.start as u64 * CELL..limits.end as u64 * CELL;
                let (expected, got) = if high {
                    (candidates.next_back(), room.highest("part", bytes, align, limits))
                } else {
                    (candidates.next(), room.lowest("part", bytes, align, limits))
                };
                prop_assert_eq!(got.ok(), expected.map(|start| start as u64 * CELL));
                if let Some(start) = expected {
                    taken[start..start + cells].fill(true);
                }
            }
        }
    }
}
