//! Memory-map arithmetic: sorted, disjoint ranges of physical memory, in an array of fixed size.

use crate::address::PAGE_SIZE;

/// Bytes in a 2 MiB page.
pub const LARGE_PAGE: u64 = 2 << 20;
/// Bytes in a 1 GiB page.
pub const HUGE_PAGE: u64 = 1 << 30;

/// Ranges at most; what would need one more is left out, which wastes memory and is never wrong.
const CAPACITY: usize = 128;

/// The physical addresses from `start` up to, not including, `end`. Empty when `end` is not above `start`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Range {
    /// The first address.
    pub start: u64,
    /// The address after the last.
    pub end: u64,
}

impl Range {
    /// Makes the range of `bytes` bytes at `start`, cut at 2^64 - 1.
    pub const fn new(start: u64, bytes: u64) -> Self {
        Self { start, end: start.saturating_add(bytes) }
    }
    /// Returns the number of bytes.
    pub const fn bytes(self) -> u64 {
        self.end.saturating_sub(self.start)
    }
    /// Returns whether it holds no address.
    pub const fn is_empty(self) -> bool {
        self.end <= self.start
    }
    /// Returns whether the two have an address in common.
    pub const fn overlaps(self, other: Self) -> bool {
        self.start < other.end && other.start < self.end && !self.is_empty() && !other.is_empty()
    }
    /// Returns what of the range starts and ends at multiples of `align`, a power of two.
    pub const fn aligned(self, align: u64) -> Self {
        match self.start.checked_add(align - 1) {
            Some(start) => Self { start: start & !(align - 1), end: self.end & !(align - 1) },
            None => Self { start: 0, end: 0 },
        }
    }
    /// Returns the pages, of 4 KiB, that the range touches.
    pub const fn pages(self) -> Self {
        let end = match self.end.checked_add(PAGE_SIZE - 1) {
            Some(end) => end & !(PAGE_SIZE - 1),
            None => !(PAGE_SIZE - 1),
        };
        Self { start: self.start & !(PAGE_SIZE - 1), end }
    }
}

/// A set of addresses as sorted ranges that neither overlap nor touch.
#[derive(Clone)]
pub struct Ranges {
    list: [Range; CAPACITY],
    count: usize,
}

impl PartialEq for Ranges {
    fn eq(&self, other: &Self) -> bool {
        self.as_slice() == other.as_slice()
    }
}

impl Eq for Ranges {}

impl core::fmt::Debug for Ranges {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_list().entries(self.as_slice().iter().map(|range| range.start..range.end)).finish()
    }
}

impl Default for Ranges {
    fn default() -> Self {
        Self::new()
    }
}

impl Ranges {
    /// Makes an empty set.
    pub const fn new() -> Self {
        Self { list: [Range { start: 0, end: 0 }; CAPACITY], count: 0 }
    }

    /// Returns the ranges, sorted by address.
    pub fn as_slice(&self) -> &[Range] {
        &self.list[..self.count]
    }

    /// Returns the number of bytes in all ranges.
    pub fn bytes(&self) -> u64 {
        self.as_slice().iter().map(|range| range.bytes()).sum()
    }

    /// Returns whether any address of `range` is in the set.
    pub fn overlaps(&self, range: Range) -> bool {
        self.as_slice().iter().any(|own| own.overlaps(range))
    }

    /// Adds the addresses of `range`.
    pub fn insert(&mut self, mut range: Range) {
        if range.is_empty() {
            return;
        }
        let first = self.as_slice().partition_point(|own| own.end < range.start);
        let last = self.as_slice().partition_point(|own| own.start <= range.end);
        if first < last {
            range.start = range.start.min(self.list[first].start);
            range.end = range.end.max(self.list[last - 1].end);
        }
        self.replace(first, last, &[range]);
    }

    /// Removes the addresses of `range`.
    pub fn remove(&mut self, range: Range) {
        if range.is_empty() {
            return;
        }
        let first = self.as_slice().partition_point(|own| own.end <= range.start);
        let last = self.as_slice().partition_point(|own| own.start < range.end);
        if first >= last {
            return;
        }
        let before = Range { start: self.list[first].start, end: range.start };
        let after = Range { start: range.end, end: self.list[last - 1].end };
        match (before.is_empty(), after.is_empty()) {
            (true, true) => self.replace(first, last, &[]),
            (true, false) => self.replace(first, last, &[after]),
            (false, true) => self.replace(first, last, &[before]),
            (false, false) => self.replace(first, last, &[before, after]),
        }
    }

    /// Puts `new` (two ranges at most) in the place of the ranges `first..last`. Where that is one too many, the
    /// smallest of `new` is left out.
    fn replace(&mut self, first: usize, last: usize, new: &[Range]) {
        let tail = self.count - last;
        let new = match new {
            [a, b] if first + 2 + tail > CAPACITY => core::slice::from_ref(if a.bytes() < b.bytes() { b } else { a }),
            [_] if first + 1 + tail > CAPACITY => &[],
            new => new,
        };
        self.list.copy_within(last..self.count, first + new.len());
        self.list[first..first + new.len()].copy_from_slice(new);
        self.count = first + new.len() + tail;
    }

    /// Returns the best place for `bytes` bytes that starts at a multiple of `align` (a power of two) and within
    /// `within`: in the shortest run that has room, at its lowest address.
    pub fn place(&self, bytes: u64, align: u64, within: Range) -> Option<Range> {
        let runs = self.runs(align, within).filter(|run| run.bytes() >= bytes);
        runs.min_by_key(|run| run.bytes()).map(|run| Range::new(run.start, bytes))
    }

    /// Removes the best place for `bytes` bytes and returns it.
    pub fn take(&mut self, bytes: u64, align: u64, within: Range) -> Option<Range> {
        let place = self.place(bytes, align, within)?;
        self.remove(place);
        Some(place)
    }

    /// Returns the longest run within `within` that starts at a multiple of `align`, a power of two.
    pub fn longest(&self, align: u64, within: Range) -> Option<Range> {
        self.runs(align, within).max_by_key(|run| run.bytes())
    }

    /// Returns the ranges, each cut to `within` and to begin at a multiple of `align` and end at one of 4096.
    fn runs(&self, align: u64, within: Range) -> impl Iterator<Item = Range> {
        self.as_slice().iter().filter_map(move |own| {
            let cut = Range { start: own.start.max(within.start), end: own.end.min(within.end) };
            let start = cut.start.checked_add(align - 1)? & !(align - 1);
            let run = Range { start, end: cut.end & !(PAGE_SIZE - 1) };
            (!run.is_empty()).then_some(run)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    const EVERYWHERE: Range = Range { start: 0, end: u64::MAX };

    fn filled(steps: &[(bool, u64, u64)]) -> (Ranges, BTreeSet<u64>) {
        let (mut ranges, mut model) = (Ranges::new(), BTreeSet::new());
        for &(add, start, bytes) in steps {
            let range = Range::new(start, bytes);
            if add {
                ranges.insert(range);
                model.extend(range.start..range.end);
            } else {
                ranges.remove(range);
                model.retain(|address| *address < range.start || *address >= range.end);
            }
        }
        (ranges, model)
    }

    proptest! {
        #[test]
        fn ranges_are_the_set_of_their_addresses(steps in proptest::collection::vec((any::<bool>(), 0u64..300, 0u64..40), 0..40)) {
            let (ranges, model) = filled(&steps);
            let held: BTreeSet<u64> = ranges.as_slice().iter().flat_map(|range| range.start..range.end).collect();
            prop_assert_eq!(&held, &model);
            prop_assert_eq!(ranges.bytes(), model.len() as u64);
            prop_assert!(ranges.as_slice().windows(2).all(|pair| pair[0].end < pair[1].start));
        }

        #[test]
        fn what_is_taken_was_there_and_is_gone(steps in proptest::collection::vec((any::<bool>(), 0u64..64, 0u64..20), 0..20), pages in 1u64..12, shift in 0u32..4) {
            let (small, _) = filled(&steps);
            let mut ranges = Ranges::new();
            for range in small.as_slice() {
                ranges.insert(Range { start: range.start * PAGE_SIZE, end: range.end * PAGE_SIZE });
            }
            let (before, align) = (ranges.clone(), PAGE_SIZE << shift);
            let fits = before.as_slice().iter().any(|own| own.start.next_multiple_of(align) + pages * PAGE_SIZE <= own.end);
            let taken = ranges.take(pages * PAGE_SIZE, align, EVERYWHERE);
            prop_assert_eq!(taken.is_some(), fits);
            if let Some(taken) = taken {
                prop_assert_eq!(taken.start % align, 0);
                prop_assert!(before.as_slice().iter().any(|own| own.start <= taken.start && taken.end <= own.end));
                prop_assert!(!ranges.overlaps(taken));
                ranges.insert(taken);
                prop_assert_eq!(ranges, before);
            }
        }

        #[test]
        fn the_ends_of_the_address_space_do_not_overflow(start: u64, bytes: u64, align in 12u32..40) {
            let mut ranges = Ranges::new();
            ranges.insert(Range::new(start, bytes));
            ranges.insert(Range::new(u64::MAX - 10, u64::MAX));
            ranges.remove(Range::new(start, 1));
            let _ = ranges.take(PAGE_SIZE, 1 << align, EVERYWHERE);
            let pages = Range::new(start, bytes).pages();
            prop_assert!(pages.start <= start);
        }
    }

    #[test]
    fn a_full_list_loses_memory_and_never_invents_it() {
        let mut ranges = Ranges::new();
        for n in 0..200 {
            ranges.insert(Range::new(n * 100, 50));
        }
        assert_eq!(ranges.as_slice().len(), CAPACITY);
        ranges.remove(Range::new(10, 1));
        assert_eq!(ranges.as_slice()[0], Range { start: 11, end: 50 });
        assert_eq!(ranges.as_slice().len(), CAPACITY);
    }
}
