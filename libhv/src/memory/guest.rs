//! `GuestMemory`: the only way for host code to read or write guest memory, with one door for all writes.

use super::window::{GuestFrames, PageWords, Window};
use crate::address::{Gpa, PAGE_SIZE};
use crate::error::{Error, Result};
use crate::exit::Width;
use alloc::vec::Vec;

/// An address, or part of a range, is not memory of the guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NotMemory(pub Gpa);

/// Guest-physical memory that is contiguous for guest and host.
#[derive(Debug)]
pub struct Region {
    start: Gpa,
    window: Window,
}

impl Region {
    /// Returns the first guest-physical address.
    pub fn start(&self) -> Gpa {
        self.start
    }
    /// Returns the number of bytes, a multiple of 4096.
    pub fn bytes(&self) -> u64 {
        self.window.len() as u64
    }
    /// Returns the host memory it is backed by; `None` for memory that no processor may be given (tests).
    pub fn frames(&self) -> Option<GuestFrames> {
        self.window.frames()
    }
    /// Returns the guest-physical address after the last byte.
    pub fn end(&self) -> Gpa {
        self.start.wrapping_add(self.bytes())
    }
    /// Returns how far inside `address` lies.
    #[inline]
    fn offset(&self, address: Gpa) -> Option<usize> {
        let offset = address.as_u64().wrapping_sub(self.start.as_u64());
        (offset < self.bytes()).then_some(offset as usize)
    }
}

/// The guest's memory as the host sees it: regions sorted by address.
#[derive(Debug)]
pub struct GuestMemory {
    regions: Vec<Region>,
    /// The first address of a page that is written by [`write_page`](Self::write_page) alone; [`NO_PAGE`] for none.
    read_only: u64,
}

/// An address far from all that is memory.
const NO_PAGE: u64 = 1 << 63;

impl Default for GuestMemory {
    fn default() -> Self {
        Self::new()
    }
}

impl GuestMemory {
    /// Makes a guest memory without a byte in it.
    pub const fn new() -> Self {
        Self { regions: Vec::new(), read_only: NO_PAGE }
    }

    /// Makes a guest memory of `bytes` zeroed bytes from guest-physical 0, on the heap: for host tests and `sim`.
    pub fn for_tests(bytes: usize) -> Self {
        let mut memory = Self::new();
        let bytes = bytes.next_multiple_of(PAGE_SIZE as usize);
        memory.add(Gpa::new(0), Window::leaked(bytes)).expect("a first region overlaps nothing");
        memory
    }

    /// Adds a region at `start`, backed by the host memory that `window` shows.
    ///
    /// # Errors
    /// [`Error::BadRegion`] when it overlaps another, ends past 2^52, is empty, or is not aligned to pages.
    pub fn add(&mut self, start: Gpa, window: Window) -> Result<()> {
        let bad = Error::BadRegion(start.as_u64());
        let bytes = window.len() as u64;
        let end = start.checked_add(bytes).filter(|end| end.as_u64() <= 1 << 52).ok_or(bad)?;
        let host = window.frames().map_or(0, |frames| frames.start().as_u64());
        let aligned = (start.as_u64() | host | bytes).is_multiple_of(PAGE_SIZE) && bytes > 0;
        let position = self.regions.partition_point(|region| region.start < start);
        let overlaps = self.regions.get(position).is_some_and(|next| next.start < end)
            || position.checked_sub(1).is_some_and(|before| self.regions[before].end() > start);
        if !aligned || overlaps {
            return Err(bad);
        }
        self.regions.insert(position, Region { start, window });
        Ok(())
    }

    /// Returns the regions, sorted by address.
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// Has one page be read-only from now on, as ROM is: writes to it are ignored, but for those of
    /// [`write_page`](Self::write_page). Nested paging has the guest's own writes leave it.
    pub fn set_read_only(&mut self, page: Option<Gpa>) {
        self.read_only = page.map_or(NO_PAGE, Gpa::as_u64);
    }

    /// Returns the page that is read-only.
    pub fn read_only(&self) -> Option<Gpa> {
        (self.read_only != NO_PAGE).then(|| Gpa::new(self.read_only))
    }

    /// Returns whether the byte at `address` can only be read.
    #[inline]
    pub fn is_read_only(&self, address: Gpa) -> bool {
        address.as_u64() & !(PAGE_SIZE - 1) == self.read_only
    }

    /// Returns whether any of `bytes` bytes, at least one, can only be read.
    #[inline]
    fn touches_read_only(&self, address: Gpa, bytes: u64) -> bool {
        address.as_u64().wrapping_sub(self.read_only).wrapping_add(bytes - 1) < PAGE_SIZE + bytes - 1
    }

    /// Returns whether all of `bytes` bytes at `address` are memory, in one region.
    pub fn contains(&self, address: Gpa, bytes: u64) -> bool {
        self.find(address).is_ok_and(|(region, offset)| bytes <= region.bytes() - offset as u64)
    }

    #[inline]
    fn find(&self, address: Gpa) -> core::result::Result<(&Region, usize), NotMemory> {
        // Nearly all there is lies in the first region.
        if let Some(first) = self.regions.first()
            && let Some(offset) = first.offset(address)
        {
            return Ok((first, offset));
        }
        self.find_further(address)
    }

    #[cold]
    fn find_further(&self, address: Gpa) -> core::result::Result<(&Region, usize), NotMemory> {
        let mut found = self.regions.iter().filter_map(|region| Some((region, region.offset(address)?)));
        found.next().ok_or(NotMemory(address))
    }

    /// Reads bytes, which may lie across regions that touch.
    ///
    /// # Errors
    /// [`NotMemory`] with the first address that is not memory; what lies before it has been read.
    #[inline]
    pub fn read(&self, address: Gpa, into: &mut [u8]) -> core::result::Result<(), NotMemory> {
        let (region, offset) = self.find(address)?;
        if let Some(()) = region.window.read(offset, into) {
            return Ok(());
        }
        let here = (region.window.len() - offset).min(into.len());
        let (first, rest) = into.split_at_mut(here);
        region.window.read(offset, first).ok_or(NotMemory(address))?;
        self.read(address.wrapping_add(here as u64), rest)
    }

    /// Writes bytes, which may lie across regions that touch; what of them lies in a read-only page is ignored.
    ///
    /// # Errors
    /// [`NotMemory`] with the first address that is not memory; what lies before it has been written.
    #[inline]
    pub fn write(&mut self, address: Gpa, from: &[u8]) -> core::result::Result<(), NotMemory> {
        if self.read_only != NO_PAGE {
            return self.write_around(address, from);
        }
        self.write_through(address, from)
    }

    /// Writes bytes, and skips those of the page that can only be read.
    #[cold]
    fn write_around(&mut self, address: Gpa, from: &[u8]) -> core::result::Result<(), NotMemory> {
        let (mut address, mut rest) = (address, from);
        while !rest.is_empty() {
            let here = ((PAGE_SIZE - address.page_offset()) as usize).min(rest.len());
            let (page, after) = rest.split_at(here);
            if self.is_read_only(address) {
                self.find(address)?;
            } else {
                self.write_through(address, page)?;
            }
            (address, rest) = (address.wrapping_add(here as u64), after);
        }
        Ok(())
    }

    #[inline]
    fn write_through(&mut self, address: Gpa, from: &[u8]) -> core::result::Result<(), NotMemory> {
        let (region, offset) = self.find(address)?;
        let here = (region.window.len() - offset).min(from.len());
        let (first, rest) = from.split_at(here);
        region.window.write(offset, first).ok_or(NotMemory(address))?;
        self.landed(address, here as u64);
        if rest.is_empty() { Ok(()) } else { self.write_through(address.wrapping_add(here as u64), rest) }
    }

    /// Reads a number; in one access where it is aligned.
    ///
    /// # Errors
    /// [`NotMemory`] when any byte of it is not memory.
    #[inline]
    pub fn read_number(&self, address: Gpa, width: Width) -> core::result::Result<u64, NotMemory> {
        let (region, offset) = self.find(address)?;
        if let Some(value) = region.window.read_number(offset, width) {
            return Ok(value);
        }
        let mut bytes = [0; 8];
        self.read(address, &mut bytes[..width.bytes()])?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// Reads the aligned word of 64 bits that holds the byte at `address`, in one access; `None` where it is not memory.
    /// This is the shortest way to an entry of a page table.
    #[inline]
    pub fn word(&self, address: Gpa) -> Option<u64> {
        let (region, offset) = self.find(address).ok()?;
        region.window.word(offset)
    }

    /// Writes a number; in one access where it is aligned.
    ///
    /// # Errors
    /// [`NotMemory`] when any byte of it is not memory.
    #[inline]
    pub fn write_number(&mut self, address: Gpa, width: Width, value: u64) -> core::result::Result<(), NotMemory> {
        let (region, offset) = self.find(address)?;
        if self.touches_read_only(address, width.bytes() as u64)
            || region.window.write_number(offset, width, value).is_none()
        {
            return self.write(address, &value.to_le_bytes()[..width.bytes()]);
        }
        self.landed(address, width.bytes() as u64);
        Ok(())
    }

    /// Has `write` write words of 64 bits to the 4 KiB page at `page`, one after the other as another processor sees it: also to a
    /// page that is read-only.
    /// This is the shortest way to several words that belong together.
    ///
    /// # Errors
    /// [`NotMemory`] when `page` is none that begins a page of memory; nothing has been written then.
    #[inline(always)]
    pub fn write_page(&mut self, page: Gpa, write: impl FnOnce(&PageWords<'_>)) -> core::result::Result<(), NotMemory> {
        let (region, offset) = self.find(page)?;
        write(&region.window.page(offset).ok_or(NotMemory(page))?);
        self.landed(page, PAGE_SIZE);
        Ok(())
    }

    /// Exchanges a number in one locked access if it still is `current`: `Ok(Ok(current))` when it was, and
    /// `Ok(Err(other))` with what it is when not.
    ///
    /// # Errors
    /// [`NotMemory`] when it is not memory or not aligned to its width.
    #[inline]
    pub fn compare_exchange(
        &mut self,
        address: Gpa,
        width: Width,
        current: u64,
        new: u64,
    ) -> core::result::Result<core::result::Result<u64, u64>, NotMemory> {
        let (region, offset) = self.find(address)?;
        if self.is_read_only(address) {
            let now = region.window.read_number(offset, width).ok_or(NotMemory(address))?;
            return Ok(if now == current { Ok(now) } else { Err(now) });
        }
        let outcome = region.window.compare_exchange(offset, width, current, new).ok_or(NotMemory(address))?;
        if outcome.is_ok() {
            self.landed(address, width.bytes() as u64);
        }
        Ok(outcome)
    }

    /// The one door: every write of the host to guest memory has passed here by the time the guest runs again. Page
    /// tracking hangs its trackers here.
    #[inline]
    fn landed(&mut self, _address: Gpa, _bytes: u64) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn two_regions_that_touch() -> GuestMemory {
        let mut memory = GuestMemory::for_tests(0x2000);
        memory.add(Gpa::new(0x2000), Window::leaked(0x1000)).expect("touches, does not overlap");
        memory
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_and_nothing_else_changes(start in 0u64..0x3100, bytes in proptest::collection::vec(any::<u8>(), 1..64)) {
            let mut memory = two_regions_that_touch();
            let mut model = alloc::vec![0u8; 0x3000];
            let fits = start as usize + bytes.len() <= model.len();
            let wrote = memory.write(Gpa::new(start), &bytes);
            prop_assert_eq!(wrote.is_ok(), fits);
            for (offset, byte) in bytes.iter().enumerate() {
                if let Some(cell) = model.get_mut(start as usize + offset) { *cell = *byte; }
            }
            let mut seen = alloc::vec![0u8; 0x3000];
            memory.read(Gpa::new(0), &mut seen).expect("all of it is memory");
            prop_assert!(seen == model);
        }

        #[test]
        fn numbers_and_bytes_agree_wherever_they_lie(start in 0u64..0x2FF8, value: u64, shift in 0usize..4) {
            let width = Width::from_bytes(1 << shift).expect("a power of two up to 8");
            let mut memory = two_regions_that_touch();
            memory.write_number(Gpa::new(start), width, value).expect("inside");
            let mut bytes = [0; 8];
            memory.read(Gpa::new(start), &mut bytes).expect("inside");
            prop_assert_eq!(u64::from_le_bytes(bytes), value & width.mask());
            prop_assert_eq!(memory.read_number(Gpa::new(start), width), Ok(value & width.mask()));
            let aligned = Gpa::new(start & !7);
            prop_assert_eq!(memory.word(Gpa::new(start)), memory.read_number(aligned, Width::Qword).ok());
        }
    }

    #[test]
    fn overlapping_and_crooked_regions_are_refused() {
        for (start, bytes) in [(0x1000, 0x1000), (0x2800, 0x1000), (0x3000, 0), (0x1F000, 0x10_0800)] {
            let mut memory = two_regions_that_touch();
            assert_eq!(memory.add(Gpa::new(start), Window::leaked(bytes)), Err(Error::BadRegion(start)));
        }
    }

    proptest! {
        /// B8: by whatever door, what lies beside the page is written and the page is not.
        #[test]
        fn a_page_that_is_read_only_is_left_alone_by_every_write_but_its_own(
            start in 0x0FC0u64..0x2FF8, length in 1usize..64, shift in 0usize..4, way in 0usize..3,
        ) {
            let width = Width::from_bytes(1 << shift).expect("a power of two up to 8");
            let mut memory = two_regions_that_touch();
            let page = Gpa::new(0x1000);
            memory.write_page(page, |words| (0..512).for_each(|number| words.set(number, 0x5555_5555_5555_5555))).expect("a page");
            memory.set_read_only(Some(page));
            let (at, length) = match way {
                0 => (start, length.min((0x3000 - start) as usize)),
                1 => (start, width.bytes()),
                _ => (start & !7, width.bytes()),
            };
            match way {
                0 => memory.write(Gpa::new(at), &[0xAA; 64][..length]).expect("inside"),
                1 => memory.write_number(Gpa::new(at), width, 0xAAAA_AAAA_AAAA_AAAA).expect("inside"),
                _ => {
                    let now = memory.read_number(Gpa::new(at), width).expect("inside");
                    let exchanged = memory.compare_exchange(Gpa::new(at), width, now, 0xAAAA_AAAA_AAAA_AAAA & width.mask());
                    prop_assert_eq!(exchanged, Ok(Ok(now)));
                    prop_assert_eq!(memory.compare_exchange(Gpa::new(at), width, 1, 2).map(|lost| lost.is_err()), Ok(true));
                }
            }
            for address in (0x0F00..0x3000).map(Gpa::new) {
                let inside = (at..at + length as u64).contains(&address.as_u64());
                let expected = match address.as_u64() {
                    0x1000..0x2000 => 0x55,
                    _ if inside => 0xAA,
                    _ => 0,
                };
                prop_assert_eq!(memory.read_number(address, Width::Byte), Ok(expected), "{:?}", address);
            }
            memory.write_page(page, |words| words.set(511, 7)).expect("a page");
            prop_assert_eq!(memory.read_number(Gpa::new(0x1FF8), Width::Qword), Ok(7));
        }
    }

    #[test]
    fn a_lost_exchange_returns_what_is_there_and_writes_nothing() {
        let mut memory = GuestMemory::for_tests(0x1000);
        memory.write_number(Gpa::new(8), Width::Qword, 7).expect("inside");
        assert_eq!(memory.compare_exchange(Gpa::new(8), Width::Qword, 6, 9), Ok(Err(7)));
        assert_eq!(memory.compare_exchange(Gpa::new(8), Width::Qword, 7, 9), Ok(Ok(7)));
        assert_eq!(memory.read_number(Gpa::new(8), Width::Qword), Ok(9));
        assert_eq!(memory.compare_exchange(Gpa::new(9), Width::Qword, 0, 1), Err(NotMemory(Gpa::new(9))));
    }
}
