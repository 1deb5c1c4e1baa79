//! Entries of nested page tables: those of long mode, walked as user accesses (APM Vol. 2 15.25.5).

use crate::memory::nested::{Access, Level, MemoryType, NestedEntry};
use bit_field::BitField;
use x86_64::PhysAddr;
use x86_64::structures::paging::PageTableFlags;

/// An entry of a nested page table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NptEntry(u64);

const TABLE: PageTableFlags =
    PageTableFlags::PRESENT.union(PageTableFlags::WRITABLE).union(PageTableFlags::USER_ACCESSIBLE);

impl NestedEntry for NptEntry {
    fn from_bits(bits: u64) -> Self {
        Self(bits)
    }
    fn bits(self) -> u64 {
        self.0
    }
    fn leaf(frame: PhysAddr, access: Access, level: Level, memory_type: MemoryType) -> Self {
        let mut flags = PageTableFlags::USER_ACCESSIBLE;
        flags.set(PageTableFlags::PRESENT, access.read);
        flags.set(PageTableFlags::WRITABLE, access.write);
        flags.set(PageTableFlags::NO_EXECUTE, !access.execute);
        flags.set(PageTableFlags::HUGE_PAGE, level != Level::Size4K);
        flags.set(PageTableFlags::NO_CACHE | PageTableFlags::WRITE_THROUGH, memory_type == MemoryType::Uncached);
        Self(frame.as_u64() | flags.bits())
    }
    fn table(frame: PhysAddr) -> Self {
        Self(frame.as_u64() | TABLE.bits())
    }
    fn is_present(self) -> bool {
        self.flags().contains(PageTableFlags::PRESENT)
    }
    fn is_leaf(self, level: Level) -> bool {
        level == Level::Size4K || self.flags().contains(PageTableFlags::HUGE_PAGE)
    }
    fn target(self) -> PhysAddr {
        PhysAddr::new_truncate(self.0.get_bits(12..52) << 12)
    }
    fn access(self) -> Access {
        let flags = self.flags();
        Access {
            read: flags.contains(PageTableFlags::PRESENT),
            write: flags.contains(PageTableFlags::WRITABLE),
            execute: !flags.contains(PageTableFlags::NO_EXECUTE),
        }
    }
    fn memory_type(self) -> MemoryType {
        if self.flags().contains(PageTableFlags::NO_CACHE) { MemoryType::Uncached } else { MemoryType::WriteBack }
    }
}

impl NptEntry {
    fn flags(self) -> PageTableFlags {
        PageTableFlags::from_bits_truncate(self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_have_the_bits_of_the_manual() {
        let leaf = |access, level, kind| NptEntry::leaf(PhysAddr::new(0x4000_0000), access, level, kind).bits();
        assert_eq!(leaf(Access::ALL, Level::Size4K, MemoryType::WriteBack), 0x4000_0007);
        assert_eq!(leaf(Access::READ_EXECUTE, Level::Size2M, MemoryType::WriteBack), 0x4000_0085);
        assert_eq!(leaf(Access::READ, Level::Size1G, MemoryType::Uncached), 1 << 63 | 0x4000_009D);
        assert_eq!(NptEntry::table(PhysAddr::new(0x7000)).bits(), 0x7007);
        let types =
            [0x4000_0007, 0x4000_0085, 1 << 63 | 0x4000_009D].map(|bits| NptEntry::from_bits(bits).memory_type());
        assert_eq!(types, [MemoryType::WriteBack, MemoryType::WriteBack, MemoryType::Uncached]);
    }
}
