//! Nested tables: what maps guest-physical to host-physical addresses. One walker serves EPT and NPT, which differ in
//! their entries alone.

use super::frame::{FrameSource, Frames, Spare};
use super::guest::GuestMemory;
use super::window::GuestFrames;
use crate::address::{Gpa, PAGE_SIZE};
use crate::error::{Error, Result};
use alloc::{vec, vec::Vec};
use core::marker::PhantomData;
use x86_64::PhysAddr;

/// The size of a page, by the level of the table that maps it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub enum Level {
    /// 4 KiB
    Size4K,
    /// 2 MiB
    Size2M,
    /// 1 GiB
    Size1G,
}

impl Level {
    /// Returns the bytes in a page.
    pub const fn bytes(self) -> u64 {
        PAGE_SIZE << (9 * self as u64)
    }
    const fn smaller(self) -> Option<Self> {
        match self {
            Self::Size4K => None,
            Self::Size2M => Some(Self::Size4K),
            Self::Size1G => Some(Self::Size2M),
        }
    }
}

/// What a guest may do to a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Access {
    /// Reads. Entries cannot express writing or executing without it.
    pub read: bool,
    /// Writes.
    pub write: bool,
    /// Instruction fetches.
    pub execute: bool,
}

impl Access {
    /// Everything.
    pub const ALL: Self = Self { read: true, write: true, execute: true };
    /// Reads and fetches.
    pub const READ_EXECUTE: Self = Self { read: true, write: false, execute: true };
    /// Reads.
    pub const READ: Self = Self { read: true, write: false, execute: false };
}

/// How the processor caches a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MemoryType {
    /// Memory.
    WriteBack,
    /// Registers of a device.
    Uncached,
}

/// An entry of a nested table, in the format of one vendor.
pub trait NestedEntry: Copy + 'static {
    /// Returns the entry with these bits.
    fn from_bits(bits: u64) -> Self;
    /// Returns the entry's bits.
    fn bits(self) -> u64;
    /// Returns an entry that maps a page of `level`'s size.
    fn leaf(frame: PhysAddr, access: Access, level: Level, memory_type: MemoryType) -> Self;
    /// Returns an entry that points to a table of the next level.
    fn table(frame: PhysAddr) -> Self;
    /// Returns whether the entry maps or points to anything.
    fn is_present(self) -> bool;
    /// Returns whether a present entry of a table that maps pages of `level`'s size maps a page.
    fn is_leaf(self, level: Level) -> bool;
    /// Returns where a present entry points.
    fn target(self) -> PhysAddr;
    /// Returns what a present leaf allows.
    fn access(self) -> Access;
    /// Returns how a present leaf has its page cached.
    fn memory_type(self) -> MemoryType;
}

/// Says that the processor may remember translations that are no longer true: [`Backend::flush_nested`] must come
/// before the next entry.
///
/// [`Backend::flush_nested`]: crate::vcpu::Backend::flush_nested
#[must_use = "the processor may remember translations that are no longer true"]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NestedFlush {
    /// Whether anything that was present has changed. New mappings need no flush.
    pub needed: bool,
}

/// The nested tables of one guest: four levels.
#[derive(Debug)]
pub struct NestedTables<E> {
    /// Sorted by physical address.
    tables: Vec<Frames>,
    root: PhysAddr,
    largest: Level,
    /// Frames for the tables that one page of its own needs.
    spare: Spare,
    read_only: Option<ReadOnly>,
    format: PhantomData<E>,
}

const NO_TABLE: Error = Error::OutOfMemory("a nested page table");

/// Guest-physical addresses that four levels translate.
const SPACE: u64 = 1 << 48;

impl<E: NestedEntry> NestedTables<E> {
    /// Makes tables that map nothing. `largest` is the largest page that the processor has.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] when there is no frame for the root.
    pub fn new(source: &mut impl FrameSource, largest: Level) -> Result<Self> {
        let root = source.allocate(1).ok_or(NO_TABLE)?;
        let physical = root.physical();
        Ok(Self {
            tables: vec![root],
            root: physical,
            largest,
            spare: Spare::default(),
            read_only: None,
            format: PhantomData,
        })
    }

    /// Returns the physical address of the root table.
    pub fn root(&self) -> PhysAddr {
        self.root
    }

    /// Returns the number of frames that the tables take.
    pub fn frames(&self) -> usize {
        self.tables.len()
    }

    /// Returns where a table is among all, or where it would be.
    fn find(&self, table: PhysAddr) -> core::result::Result<usize, usize> {
        self.tables.binary_search_by_key(&table, Frames::physical)
    }

    fn entry(&self, table: PhysAddr, index: usize) -> E {
        let found = self.find(table).ok().and_then(|place| self.tables.get(place));
        E::from_bits(found.map_or(0, |frames| frames.words()[index]))
    }

    fn set_entry(&mut self, table: PhysAddr, index: usize, entry: E) {
        if let Some(frames) = self.find(table).ok().and_then(|place| self.tables.get_mut(place)) {
            frames.words_mut()[index] = entry.bits();
        }
    }

    fn new_table(&mut self, source: &mut impl FrameSource) -> Result<PhysAddr> {
        let frames = source.allocate(1).ok_or(NO_TABLE)?;
        let physical = frames.physical();
        let (Ok(place) | Err(place)) = self.find(physical);
        self.tables.insert(place, frames);
        Ok(physical)
    }

    /// Maps all of the guest's memory, for every access.
    ///
    /// # Errors
    /// As [`map`](Self::map); [`Error::BadRegion`] also for memory that no processor may be given.
    pub fn map_all(&mut self, source: &mut impl FrameSource, memory: &GuestMemory) -> Result<()> {
        for region in memory.regions() {
            let frames = region.frames().ok_or(Error::BadRegion(region.start().as_u64()))?;
            // The tables are new to the processor: nothing is remembered.
            let _new = self.map(source, region.start(), frames, Access::ALL, MemoryType::WriteBack)?;
        }
        Ok(())
    }

    /// Maps host memory of the guest's at `start`, with the largest pages that fit; what was mapped there before is
    /// replaced.
    ///
    /// # Errors
    /// [`Error::BadRegion`] when an address or the size is not a multiple of 4 KiB or ends past 2^48;
    /// [`Error::OutOfMemory`] when no frame is left for a table.
    pub fn map(
        &mut self,
        source: &mut impl FrameSource,
        start: Gpa,
        frames: GuestFrames,
        access: Access,
        memory_type: MemoryType,
    ) -> Result<NestedFlush> {
        self.map_to(source, start, frames.start(), frames.bytes(), access, memory_type)
    }

    fn map_to(
        &mut self,
        source: &mut impl FrameSource,
        start: Gpa,
        host: PhysAddr,
        bytes: u64,
        access: Access,
        memory_type: MemoryType,
    ) -> Result<NestedFlush> {
        self.change(source, start, bytes, |offset, level| {
            let frame = PhysAddr::new_truncate(host.as_u64() + offset);
            let fits = (host.as_u64() + offset).is_multiple_of(level.bytes());
            fits.then(|| E::leaf(frame, access, level, memory_type))
        })
    }

    /// Takes away whatever `bytes` bytes at `start` map to.
    ///
    /// # Errors
    /// As [`map`](Self::map).
    pub fn unmap(&mut self, source: &mut impl FrameSource, start: Gpa, bytes: u64) -> Result<NestedFlush> {
        self.change(source, start, bytes, |_, _| Some(E::from_bits(0)))
    }

    /// Changes what the guest may do to `bytes` bytes at `start`, splitting larger pages at the edges; pages that are
    /// not mapped stay so.
    ///
    /// # Errors
    /// As [`map`](Self::map).
    pub fn protect(
        &mut self,
        source: &mut impl FrameSource,
        start: Gpa,
        bytes: u64,
        access: Access,
    ) -> Result<NestedFlush> {
        let mut flush = NestedFlush { needed: false };
        let (mut address, end) = Self::range(start, bytes)?;
        while address < end {
            let found = self.translate(Gpa::new(address));
            let step = found.map_or(PAGE_SIZE, |page| page.level.bytes() - address % page.level.bytes());
            let step = step.min(end - address);
            if let Some(page) = found {
                let start = Gpa::new(address);
                flush.needed |= self.map_to(source, start, page.host, step, access, page.memory_type)?.needed;
            }
            address += step;
        }
        Ok(flush)
    }

    /// Returns the first address of a range of pages and the one after it.
    fn range(start: Gpa, bytes: u64) -> Result<(u64, u64)> {
        let start = start.as_u64();
        let end = start.checked_add(bytes).filter(|&end| end <= SPACE && (start | bytes).is_multiple_of(PAGE_SIZE));
        end.map(|end| (start, end)).ok_or(Error::BadRegion(start))
    }

    /// Sets leaves over a range: `leaf(offset, level)` returns the entry for a page of that level at `offset` from the
    /// start, or `None` when a smaller page must be used.
    fn change(
        &mut self,
        source: &mut impl FrameSource,
        start: Gpa,
        bytes: u64,
        leaf: impl Fn(u64, Level) -> Option<E>,
    ) -> Result<NestedFlush> {
        let start = start.as_u64();
        let end = start.checked_add(bytes).filter(|&end| end <= SPACE).ok_or(Error::BadRegion(start))?;
        if !(start | bytes).is_multiple_of(PAGE_SIZE) {
            return Err(Error::BadRegion(start));
        }
        let mut flush = NestedFlush { needed: false };
        let mut address = start;
        while address < end {
            let mut level = self.largest;
            let entry = loop {
                let fits = address.is_multiple_of(level.bytes()) && end - address >= level.bytes();
                match (fits.then(|| leaf(address - start, level)).flatten(), level.smaller()) {
                    (Some(entry), _) => break entry,
                    (None, Some(smaller)) => level = smaller,
                    (None, None) => return Err(Error::BadRegion(start)),
                }
            };
            flush.needed |= self.set(source, address, level, entry)?;
            address += level.bytes();
        }
        Ok(flush)
    }

    /// Sets one leaf, making and splitting tables on the way; returns whether anything present has changed.
    fn set(&mut self, source: &mut impl FrameSource, address: u64, level: Level, leaf: E) -> Result<bool> {
        let mut table = self.root;
        let mut changed = false;
        let mut here = None;
        loop {
            let index = index(address, here);
            let entry = self.entry(table, index);
            if here == Some(level) {
                if entry.is_present() {
                    changed |= entry.bits() != leaf.bits();
                    if !entry.is_leaf(level) {
                        self.forget(source, entry.target(), level);
                    }
                }
                self.set_entry(table, index, leaf);
                return Ok(changed);
            }
            let next = match here {
                Some(large) if entry.is_present() && entry.is_leaf(large) => {
                    changed = true;
                    let split = self.split(source, entry, large)?;
                    self.set_entry(table, index, E::table(split));
                    split
                }
                _ if entry.is_present() => entry.target(),
                _ => {
                    let fresh = self.new_table(source)?;
                    self.set_entry(table, index, E::table(fresh));
                    fresh
                }
            };
            table = next;
            here = below(here);
        }
    }

    /// Makes a table of 512 smaller pages that maps what the large page `leaf` maps.
    fn split(&mut self, source: &mut impl FrameSource, leaf: E, level: Level) -> Result<PhysAddr> {
        let table = self.new_table(source)?;
        let smaller = level.smaller().unwrap_or(Level::Size4K);
        for number in 0..512 {
            let frame = PhysAddr::new_truncate(leaf.target().as_u64() + number * smaller.bytes());
            let entry = E::leaf(frame, leaf.access(), smaller, leaf.memory_type());
            self.set_entry(table, number as usize, entry);
        }
        Ok(table)
    }

    /// Gives back a table that no entry points to any more, with all below it. `level` is the size of what the entry
    /// that pointed to it could have mapped.
    fn forget(&mut self, source: &mut impl FrameSource, table: PhysAddr, level: Level) {
        if let Some(smaller) = level.smaller() {
            for index in 0..512 {
                let entry = self.entry(table, index);
                if smaller != Level::Size4K && entry.is_present() && !entry.is_leaf(smaller) {
                    self.forget(source, entry.target(), smaller);
                }
            }
        }
        if let Ok(place) = self.find(table) {
            source.release(self.tables.remove(place));
        }
    }

    /// Returns what `address` maps to, as the processor would find it.
    pub fn translate(&self, address: Gpa) -> Option<Translation> {
        let address = address.as_u64();
        if address >= SPACE {
            return None;
        }
        let mut table = self.root;
        let mut here = None;
        loop {
            let entry = self.entry(table, index(address, here));
            if !entry.is_present() {
                return None;
            }
            match here {
                Some(level) if entry.is_leaf(level) => {
                    let host = PhysAddr::new_truncate(entry.target().as_u64() + address % level.bytes());
                    return Some(Translation { host, access: entry.access(), memory_type: entry.memory_type(), level });
                }
                Some(Level::Size4K) => return None,
                _ => {
                    table = entry.target();
                    here = below(here);
                }
            }
        }
    }
}

/// What a guest-physical address maps to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Translation {
    /// The host-physical address.
    pub host: PhysAddr,
    /// What the guest may do there.
    pub access: Access,
    /// How the processor caches it.
    pub memory_type: MemoryType,
    /// The size of the page.
    pub level: Level,
}

/// Returns the index into a table whose entries map pages of `level`, or into the root (`None`).
fn index(address: u64, level: Option<Level>) -> usize {
    let shift = level.map_or(39, |level| 12 + 9 * level as u64);
    (address >> shift) as usize % 512
}

/// Returns the level of the tables that a table of `level` points to.
fn below(level: Option<Level>) -> Option<Level> {
    match level {
        None => Some(Level::Size1G),
        Some(level) => level.smaller(),
    }
}

mod read_only;
use read_only::ReadOnly;

#[cfg(test)]
mod tests;
