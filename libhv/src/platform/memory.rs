//! The host's memory: who has which part of it, behind one lock. Nothing here allocates from the heap, which grows
//! through it.
#![expect(unsafe_code, reason = "turns physical memory into frames, windows and slices, each once")]

use super::layout::{REGION_BYTES, Region};
use super::paging::{Permissions, Tables};
use super::pool::Pool;
use super::ranges::{LARGE_PAGE, Range, Ranges};
use super::share::{PIECES, Piece, share};
use crate::address::{Gpa, PAGE_SIZE};
use crate::boot::physical::Physical;
use crate::error::{Error, Result};
use crate::memory::window::Window;
use crate::memory::{FrameSource, Frames, GuestMemory};
use core::ptr::NonNull;
use hermit_sync::SpinMutex;
use x86_64::{PhysAddr, VirtAddr};

/// Frames that stay in the pool for the tables that mapping the next chunk takes.
const SPARE: usize = 8;
/// What no guest gets: the first MiB, which stays for small pieces and for starting processors in real mode.
const FOR_GUESTS: Range = Range { start: 1 << 20, end: REGION_BYTES };
/// What the regions that follow physical addresses can show.
const REACHABLE: Range = Range { start: 0, end: REGION_BYTES };

/// The host's memory, once the boot code has handed it over.
static HOST: SpinMutex<Option<HostMemory>> = SpinMutex::new(None);

const _: () = assert!(
    size_of::<Option<HostMemory>>() > size_of::<HostMemory>(),
    "without a niche, what holds nothing yet is all zeros, and takes no room in the image's file"
);

/// Who has which part of the machine's memory.
pub(crate) struct HostMemory {
    /// Usable memory that nobody has.
    free: Ranges,
    /// All usable memory, whoever has it: nothing else may be mapped over it.
    usable: Ranges,
    pool: Pool,
    pub(crate) tables: Tables,
    /// Bytes of image, heap, stacks and per-processor data.
    own: u64,
    heap_end: u64,
    windows_end: u64,
    /// Bytes that no guest gets: 4 MiB and a five-hundredth of all memory, for nested tables, heap and frames.
    held_back: u64,
}

impl HostMemory {
    /// Takes over the memory in `free`, part of `usable`; `own` bytes are already in use by the image.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] when there are not 2 MiB, aligned to their size, for the page tables.
    ///
    /// # Safety
    /// `free` is memory that nobody uses, and its part below 4 GiB is mapped writable at its physical addresses until
    /// [`Tables::moved`].
    pub(crate) unsafe fn new(mut free: Ranges, usable: Ranges, own: u64, huge_pages: bool) -> Result<Self> {
        let error = Error::OutOfMemory("page tables");
        let mut pool = Pool::new();
        let chunk = free.take(LARGE_PAGE, LARGE_PAGE, Range { start: 1 << 20, end: 4 << 30 }).ok_or(error)?;
        pool.add(chunk.start);
        // SAFETY: the chunk is below 4 GiB, where addresses are physical for now (this function's contract).
        let tables = unsafe { Tables::new(&mut pool, 0, huge_pages) }.ok_or(error)?;
        let (heap_end, windows_end) = (Region::Heap.base(), Region::Windows.base());
        let held_back = 2 * LARGE_PAGE + usable.bytes() / 512;
        let mut memory = Self { free, usable, pool, tables, own, heap_end, windows_end, held_back };
        memory.map_at(Region::Frames, Region::Frames.base() + chunk.start, chunk).ok_or(error)?;
        Ok(memory)
    }

    /// Hands the memory over to the functions of this module.
    pub(crate) fn hand_over(self) {
        *HOST.lock() = Some(self);
    }

    /// Maps `physical` at `start` in `region`, getting frames for tables as needed.
    fn map_at(&mut self, region: Region, start: u64, physical: Range) -> Option<()> {
        let span = if (start ^ physical.start).is_multiple_of(LARGE_PAGE) { LARGE_PAGE << 9 } else { LARGE_PAGE };
        // Tables for the inner part, and at each end two for the edges and two for the levels above.
        let tables = (physical.bytes() / span) as usize + 8;
        while self.pool.free() < tables && region != Region::Frames {
            self.grow()?;
        }
        // SAFETY: every region's addresses are given out once, by the callers below, or follow physical addresses, to
        // which only read-only data and device registers are mapped twice.
        unsafe { self.tables.map(start, physical, region.flags(), &mut self.pool) }
    }

    /// Maps what lies at a physical address at that address in `region`.
    pub(crate) fn map_physical(&mut self, region: Region, physical: Range) -> Option<u64> {
        let pages = physical.pages();
        if physical.end > REGION_BYTES || physical.is_empty() {
            return None;
        }
        self.map_at(region, region.base() + pages.start, pages)?;
        Some(region.base() + physical.start)
    }

    /// Maps a section of the image, whose pages are its own.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`]
    #[cfg(target_os = "none")]
    pub(crate) fn map_image(
        &mut self,
        start: u64,
        physical: Range,
        flags: x86_64::structures::paging::PageTableFlags,
    ) -> Result<()> {
        // SAFETY: the image runs there already, through the boot code's tables.
        unsafe { self.tables.map(start, physical, flags, &mut self.pool) }.ok_or(Error::OutOfMemory("page tables"))
    }

    /// Adds a chunk to the pool.
    fn grow(&mut self) -> Option<()> {
        if !self.pool.has_room() {
            return None;
        }
        let chunk = self.free.take(LARGE_PAGE, LARGE_PAGE, REACHABLE)?;
        self.map_at(Region::Frames, Region::Frames.base() + chunk.start, chunk)?;
        self.pool.add(chunk.start);
        Some(())
    }

    /// Maps `bytes` bytes of fresh memory, a multiple of 4096, contiguous or not, at `start` in `region`; for the host
    /// itself.
    pub(crate) fn provide(&mut self, region: Region, start: u64, bytes: u64) -> Option<()> {
        let mut done = 0;
        while done < bytes {
            let left = bytes - done;
            let large = if left >= LARGE_PAGE { self.free.take(LARGE_PAGE, LARGE_PAGE, REACHABLE) } else { None };
            let small = || Some(self.free.longest(PAGE_SIZE, REACHABLE)?.bytes());
            let piece = match large {
                Some(piece) => piece,
                None => {
                    let size = left.min(LARGE_PAGE);
                    let size = if self.free.place(size, PAGE_SIZE, REACHABLE).is_some() { size } else { small()? };
                    self.free.take(size.min(left), PAGE_SIZE, REACHABLE)?
                }
            };
            self.map_at(region, start + done, piece)?;
            self.own += piece.bytes();
            done += piece.bytes();
        }
        Some(())
    }

    /// Adds memory that was in use until now.
    pub(crate) fn give_back(&mut self, range: Range) {
        self.own = self.own.saturating_sub(range.bytes());
        self.free.insert(range);
    }

    /// Returns the memory that guests can still have: what stays back is for their nested tables.
    fn available(&self) -> u64 {
        let free: u64 = self.free.as_slice().iter().map(|range| cut(*range).bytes()).sum();
        free.saturating_sub(self.held_back) & !(PAGE_SIZE - 1)
    }
}

/// Returns what guests can have of `range`.
fn cut(range: Range) -> Range {
    Range { start: range.start.max(FOR_GUESTS.start), end: range.end.min(FOR_GUESTS.end) }.aligned(PAGE_SIZE)
}

/// Runs `work` on the host's memory; `None` where nobody has handed it over.
pub(crate) fn with<T>(work: impl FnOnce(&mut HostMemory) -> T) -> Option<T> {
    HOST.lock().as_mut().map(work)
}

/// Gives the heap at least `bytes` more bytes, behind those it has, and returns where they are.
pub(crate) fn grow_heap(bytes: u64) -> Option<Range> {
    let bytes = bytes.checked_next_multiple_of(LARGE_PAGE)?;
    with(|memory| {
        let start = memory.heap_end;
        if start + bytes > Region::Heap.base() + REGION_BYTES {
            return None;
        }
        memory.provide(Region::Heap, start, bytes)?;
        memory.heap_end = start + bytes;
        Some(Range::new(start, bytes))
    })?
}

/// Returns the bytes that guests can still have.
pub(crate) fn available() -> u64 {
    with(|memory| memory.available()).unwrap_or(0)
}

/// Returns the bytes that the hypervisor has for itself: image, heap, stacks, per-processor data and the pool of
/// frames, which holds all page tables and control structures.
pub(crate) fn kept() -> u64 {
    with(|memory| memory.own + memory.pool.bytes()).unwrap_or(0)
}

/// Returns how an address of the host is mapped, if it is.
pub(crate) fn permissions(address: VirtAddr) -> Option<Permissions> {
    with(|memory| memory.tables.permissions(address))?
}

/// Maps physical memory that is not usable memory (so nobody's Rust object) read-only, and returns it.
fn firmware(physical: Range) -> Option<&'static [u8]> {
    let start = with(|memory| {
        let foreign = !memory.usable.overlaps(physical.pages()) || physical.end <= PAGE_SIZE;
        foreign.then(|| memory.map_physical(Region::Firmware, physical))?
    })??;
    // SAFETY: mapped readable just now, for ever; it is no memory the host uses, and firmware leaves its tables alone
    // once it has started an image.
    Some(unsafe { core::slice::from_raw_parts(start as *const u8, physical.bytes() as usize) })
}

/// The tables of the firmware as the parsers see them.
#[derive(Debug)]
pub(crate) struct Firmware;

impl Physical for Firmware {
    fn bytes(&self, address: u64, length: usize) -> Option<&[u8]> {
        firmware(Range::new(address, length as u64))
    }
}

/// Maps a boot module read-only, and returns it.
///
/// # Safety
/// The memory holds a module, was never in the `free` memory of [`HostMemory::new`], and is not written any more.
#[cfg(target_os = "none")]
pub(crate) unsafe fn module(physical: Range) -> Option<&'static [u8]> {
    if physical.is_empty() {
        return Some(&[]);
    }
    let start = with(|memory| memory.map_physical(Region::Modules, physical))??;
    // SAFETY: mapped readable just now, for ever, and not written (this function's contract).
    Some(unsafe { core::slice::from_raw_parts(start as *const u8, physical.bytes() as usize) })
}

/// Maps a device's registers uncached, and returns where they are. They are not usable memory.
pub(crate) fn device(physical: Range) -> Option<NonNull<u8>> {
    let start = with(|memory| {
        let foreign = !memory.usable.overlaps(physical.pages());
        foreign.then(|| memory.map_physical(Region::Devices, physical))?
    })??;
    NonNull::new(start as *mut u8)
}

/// Makes the memory of a guest: see [`Machine::guest_memory`](super::Machine::guest_memory).
pub(crate) fn guest(bytes: u64) -> Result<GuestMemory> {
    let available = available();
    let too_large = Error::GuestTooLarge { needed: bytes, available };
    let bytes = bytes.checked_next_multiple_of(PAGE_SIZE).filter(|bytes| *bytes <= available).ok_or(too_large)?;
    let mut pieces = [Piece::default(); PIECES];
    let shared = with(|memory| {
        let count = share(&mut memory.free, bytes, FOR_GUESTS, &mut pieces)?;
        let start = memory.windows_end;
        memory.windows_end = start + pieces[..count].last().map_or(0, |last| last.guest + last.host.bytes());
        memory.windows_end = memory.windows_end.next_multiple_of(1 << 30);
        for piece in &pieces[..count] {
            memory.map_at(Region::Windows, start + piece.guest, piece.host)?;
        }
        Some((start, count))
    });
    let (start, count) = shared.flatten().ok_or(too_large)?;
    let mut guest = GuestMemory::new();
    for piece in &pieces[..count] {
        let base = NonNull::new((start + piece.guest) as *mut u8).ok_or(too_large)?;
        // SAFETY: the piece was taken out of the free memory and mapped writable there for ever, both just now, and no
        // reference to it is made.
        let window = unsafe { Window::new(base, piece.host.bytes() as usize, PhysAddr::new(piece.host.start)) };
        guest.add(Gpa::new(piece.guest), window)?;
    }
    Ok(guest)
}

/// The machine's frames: every value of the type gives from the one pool.
#[derive(Clone, Copy, Debug)]
pub struct HostFrames(pub(super) ());

// SAFETY: the pool gives each frame once until it is released; it is mapped writable in the region for frames, at its
// physical address, for ever, and zeroed here.
unsafe impl FrameSource for HostFrames {
    fn allocate(&mut self, count: usize) -> Option<Frames> {
        let range = with(|memory| {
            if memory.pool.free() < count.checked_add(SPARE)? {
                memory.grow()?;
            }
            match memory.pool.allocate(count) {
                None if count > 0 && count <= super::pool::CHUNK_FRAMES => {
                    memory.grow()?;
                    memory.pool.allocate(count)
                }
                range => range,
            }
        })??;
        let words = NonNull::new((Region::Frames.base() + range.start) as *mut u64)?;
        // SAFETY: the frames are mapped writable there, and nobody else has them.
        unsafe { words.cast::<u8>().write_bytes(0, range.bytes() as usize) };
        // SAFETY: as above, and zeroed; contiguous in one chunk.
        Some(unsafe { Frames::new(PhysAddr::new(range.start), words, count) })
    }

    fn release(&mut self, frames: Frames) {
        let range = Range::new(frames.physical().as_u64(), frames.count() as u64 * PAGE_SIZE);
        with(|memory| memory.pool.release(range));
    }
}
