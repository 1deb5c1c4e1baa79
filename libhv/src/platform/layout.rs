//! The host's address space: separate regions at fixed bases, so that an isolated map is made by leaving regions out.
//!
//! Each region has a sixteenth of the upper half, 8 TiB, or sixteen entries of the top-level table: whether a map has
//! a region is decided there. Nothing is mapped at low addresses once the image has started.

use x86_64::structures::paging::PageTableFlags;

/// Bytes in a region, and so the highest physical address the regions that follow physical addresses can show.
pub const REGION_BYTES: u64 = 8 << 40;

/// Where the image is linked: 2 GiB below the end of the address space. The image's sections are read-execute,
/// read-only, and read-write, in pages of 4 KiB.
pub const IMAGE: u64 = 0xFFFF_FFFF_8000_0000;

/// A region of the host's address space, outside the image. Every one of them is no-execute.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u64)]
pub enum Region {
    /// Windows onto guest memory, in the largest pages that fit.
    Windows = 0,
    /// Frames for control structures and tables, the host's page tables among them: physical address + base.
    Frames = 1,
    /// The heap.
    Heap = 2,
    /// Boot modules, read-only: physical address + base.
    Modules = 3,
    /// Tables of the firmware, read-only: physical address + base.
    Firmware = 4,
    /// Registers of devices, uncached: physical address + base.
    Devices = 5,
    /// What each logical processor has of its own: descriptor table and task-state segment.
    PerProcessor = 6,
    /// Stacks, each with unmapped pages under it.
    Stacks = 7,
}

impl Region {
    /// Returns the region's first address.
    pub const fn base(self) -> u64 {
        0xFFFF_8000_0000_0000 + self as u64 * REGION_BYTES
    }

    /// Returns how the region's pages are mapped.
    pub const fn flags(self) -> PageTableFlags {
        let present = PageTableFlags::PRESENT.union(PageTableFlags::NO_EXECUTE);
        match self {
            Self::Modules | Self::Firmware => present,
            Self::Devices => present
                .union(PageTableFlags::WRITABLE)
                .union(PageTableFlags::NO_CACHE)
                .union(PageTableFlags::WRITE_THROUGH),
            _ => present.union(PageTableFlags::WRITABLE),
        }
    }
}
