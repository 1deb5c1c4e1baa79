//! The host's page tables: built once at boot, and extended by whole ranges in the largest pages that fit.
#![expect(unsafe_code, reason = "page tables are memory that the processor reads")]

use super::pool::Pool;
use super::ranges::{HUGE_PAGE, LARGE_PAGE, Range};
use crate::address::PAGE_SIZE;
use core::ptr::NonNull;
use x86_64::structures::paging::mapper::{
    MapToError, MappedFrame, Mapper, OffsetPageTable, Translate, TranslateResult,
};
use x86_64::structures::paging::{
    FrameAllocator, Page, PageSize, PageTable, PageTableFlags, PhysFrame, Size1GiB, Size2MiB, Size4KiB,
};
use x86_64::{PhysAddr, VirtAddr};

/// How a page of the host is mapped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Permissions {
    /// The page can be written.
    pub write: bool,
    /// The page can be executed.
    pub execute: bool,
    /// The page's size in bytes: 4 KiB, 2 MiB or 1 GiB.
    pub page_bytes: u64,
}

/// A hierarchy of page tables whose frames all come from one [`Pool`].
#[derive(Debug)]
pub(crate) struct Tables {
    root: PhysAddr,
    /// What to add to a table's physical address to reach it.
    offset: u64,
    /// Bytes in the largest page that the processor has.
    largest: u64,
}

impl Tables {
    /// Makes an empty hierarchy.
    ///
    /// # Safety
    /// Adding `offset` to the physical address of any frame of `pool`, now or later, gives where it is mapped
    /// writable, until [`moved`](Self::moved) says otherwise.
    pub(crate) unsafe fn new(pool: &mut Pool, offset: u64, huge_pages: bool) -> Option<Self> {
        let root = PhysAddr::new(pool.allocate(1)?.start);
        let tables = Self { root, offset, largest: if huge_pages { HUGE_PAGE } else { LARGE_PAGE } };
        // SAFETY: the frame is mapped (this function's contract), is nobody else's (just allocated), and a page table
        // has no invalid bit patterns.
        unsafe { tables.table().write(PageTable::new()) };
        Some(tables)
    }

    /// Returns where the root table is.
    fn table(&self) -> NonNull<PageTable> {
        NonNull::new((self.root.as_u64() + self.offset) as *mut PageTable).unwrap_or(NonNull::dangling())
    }

    /// Notes that the tables are now reached with another offset.
    ///
    /// # Safety
    /// As for [`new`](Self::new).
    pub(crate) unsafe fn moved(&mut self, offset: u64) {
        self.offset = offset;
    }

    /// Returns the physical address for CR3.
    pub(crate) fn root(&self) -> PhysAddr {
        self.root
    }

    fn mapper(&mut self) -> OffsetPageTable<'_> {
        // SAFETY: the root table is initialised and reached through `&mut self` alone.
        let root = unsafe { self.table().as_mut() };
        // SAFETY: the offset holds for every frame of the pool, and all tables come from it (`new`'s contract).
        unsafe { OffsetPageTable::new(root, VirtAddr::new_truncate(self.offset)) }
    }

    /// Maps the pages of `physical` at `start` and on. What is already mapped to the same address stays as it is.
    /// `None` when it is mapped to another address, or the pool has no frame for a table.
    ///
    /// # Safety
    /// Nobody relies on the addresses being unmapped, and what is reached through the mapping is used soundly.
    pub(crate) unsafe fn map(
        &mut self,
        start: u64,
        physical: Range,
        flags: PageTableFlags,
        pool: &mut Pool,
    ) -> Option<()> {
        let largest = self.largest;
        let mut mapper = self.mapper();
        let mut at = physical.start;
        while at < physical.end {
            let to = start.checked_add(at - physical.start)?;
            let fits = |page: u64| page <= largest && (to | at).is_multiple_of(page) && physical.end - at >= page;
            at += if fits(HUGE_PAGE) {
                map_page::<Size1GiB>(&mut mapper, to, at, flags, pool)?
            } else if fits(LARGE_PAGE) {
                map_page::<Size2MiB>(&mut mapper, to, at, flags, pool)?
            } else {
                map_page::<Size4KiB>(&mut mapper, to, at, flags, pool)?
            };
        }
        Some(())
    }

    /// Returns how `address` is mapped, if it is.
    pub(crate) fn permissions(&mut self, address: VirtAddr) -> Option<Permissions> {
        match self.mapper().translate(address) {
            TranslateResult::Mapped { frame, flags, .. } => Some(Permissions {
                write: flags.contains(PageTableFlags::WRITABLE),
                execute: !flags.contains(PageTableFlags::NO_EXECUTE),
                page_bytes: match frame {
                    MappedFrame::Size4KiB(_) => PAGE_SIZE,
                    MappedFrame::Size2MiB(_) => LARGE_PAGE,
                    MappedFrame::Size1GiB(_) => HUGE_PAGE,
                },
            }),
            _ => None,
        }
    }
}

/// Maps one page and returns its size.
fn map_page<'t, S: PageSize + core::fmt::Debug>(
    mapper: &mut OffsetPageTable<'t>,
    to: u64,
    from: u64,
    flags: PageTableFlags,
    pool: &mut Pool,
) -> Option<u64>
where
    OffsetPageTable<'t>: Mapper<S>,
{
    let page = Page::<S>::from_start_address(VirtAddr::try_new(to).ok()?).ok()?;
    let frame = PhysFrame::<S>::from_start_address(PhysAddr::try_new(from).ok()?).ok()?;
    // SAFETY: `Tables::map`'s contract.
    match unsafe { mapper.map_to(page, frame, flags, &mut Taken(pool)) } {
        // Nothing was mapped there: the processor remembers no translation that would have to be flushed.
        Ok(flush) => flush.ignore(),
        Err(MapToError::FrameAllocationFailed) => return None,
        Err(_) if mapper.translate_addr(page.start_address()) == Some(frame.start_address()) => {}
        Err(_) => return None,
    }
    Some(S::SIZE)
}

/// Frames for tables, from the pool.
struct Taken<'p>(&'p mut Pool);

// SAFETY: the pool gives each frame once, and `Tables::new`'s contract says that they can be reached.
unsafe impl FrameAllocator<Size4KiB> for Taken<'_> {
    fn allocate_frame(&mut self) -> Option<PhysFrame<Size4KiB>> {
        Some(PhysFrame::containing_address(PhysAddr::new(self.0.allocate(1)?.start)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::frame::{FrameSource, HeapFrames};

    /// A pool of "physical" memory on the heap, and the offset that reaches it.
    fn pool() -> (Pool, u64) {
        let mut pool = Pool::new();
        let frames = HeapFrames.allocate(1024).expect("4 MiB");
        let address = frames.as_ptr().as_ptr() as u64;
        let base = 0x4000_0000 + (LARGE_PAGE - address % LARGE_PAGE) % LARGE_PAGE;
        let base = base.next_multiple_of(LARGE_PAGE);
        assert!(pool.add(base));
        (pool, address.next_multiple_of(LARGE_PAGE).wrapping_sub(base))
    }

    #[test]
    fn pages_are_as_large_as_addresses_and_length_allow() {
        let (mut pool, offset) = pool();
        // SAFETY: the heap's memory is reached with this offset.
        let mut tables = unsafe { Tables::new(&mut pool, offset, true) }.expect("frames");
        let flags = PageTableFlags::PRESENT | PageTableFlags::NO_EXECUTE;
        let physical = Range { start: HUGE_PAGE - LARGE_PAGE - PAGE_SIZE, end: 2 * HUGE_PAGE + LARGE_PAGE + PAGE_SIZE };
        let base = 0xFFFF_8000_0000_0000;
        // SAFETY: no processor uses these tables.
        unsafe { tables.map(base + physical.start, physical, flags, &mut pool) }.expect("frames");
        let size =
            |tables: &mut Tables, at: u64| tables.permissions(VirtAddr::new(base + at)).map(|found| found.page_bytes);
        assert_eq!(size(&mut tables, physical.start - 1), None);
        assert_eq!(size(&mut tables, physical.start), Some(PAGE_SIZE));
        assert_eq!(size(&mut tables, HUGE_PAGE - 1), Some(LARGE_PAGE));
        assert_eq!(size(&mut tables, HUGE_PAGE), Some(HUGE_PAGE));
        assert_eq!(size(&mut tables, 2 * HUGE_PAGE), Some(LARGE_PAGE));
        assert_eq!(size(&mut tables, physical.end - 1), Some(PAGE_SIZE));
        assert_eq!(size(&mut tables, physical.end), None);
        let found = tables.permissions(VirtAddr::new(base + physical.start)).expect("mapped");
        assert!(!found.write && !found.execute);
    }

    #[test]
    fn the_same_mapping_again_is_fine_and_another_is_refused() {
        let (mut pool, offset) = pool();
        // SAFETY: the heap's memory is reached with this offset.
        let mut tables = unsafe { Tables::new(&mut pool, offset, false) }.expect("frames");
        let flags = PageTableFlags::PRESENT | PageTableFlags::WRITABLE;
        let mut map = |start, end| {
            // SAFETY: no processor uses these tables.
            unsafe { tables.map(0xFFFF_8000_4000_0000, Range { start, end }, flags, &mut pool) }
        };
        assert_eq!(map(LARGE_PAGE, 2 * LARGE_PAGE), Some(()));
        assert_eq!(map(LARGE_PAGE, LARGE_PAGE + PAGE_SIZE), Some(()));
        assert_eq!(map(LARGE_PAGE + PAGE_SIZE, LARGE_PAGE + 2 * PAGE_SIZE), None);
        assert_eq!(map(LARGE_PAGE, 3 * LARGE_PAGE), Some(()));
    }
}
