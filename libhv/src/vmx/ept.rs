//! Extended page tables: the format of their entries and of the pointer to them (SDM Vol. 3C 29.3).

use crate::memory::nested::{Access, Level, MemoryType, NestedEntry};
use bit_field::BitField;
use x86_64::PhysAddr;

/// Bits 51:12, where an entry keeps a physical address.
const ADDRESS: u64 = 0x000F_FFFF_FFFF_F000;
/// Bits 2:0: read, write, execute; an entry with none of them is not present.
const PERMISSIONS: u64 = 0b111;
/// Bit 7: the entry maps a page, in tables above the lowest.
const PAGE: u64 = 1 << 7;
/// Memory type 6, write-back, as bits 5:3 of a leaf have it; 0 is uncached.
const WRITE_BACK: u64 = 6 << 3;

/// An EPT entry: any bits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EptEntry(u64);

impl NestedEntry for EptEntry {
    #[inline]
    fn from_bits(bits: u64) -> Self {
        Self(bits)
    }
    #[inline]
    fn bits(self) -> u64 {
        self.0
    }
    /// An access without reading maps nothing: EPT cannot express writing alone, and has fetching alone as an option
    /// (SDM Vol. 3C 29.3.3.1).
    fn leaf(frame: PhysAddr, access: Access, level: Level, memory_type: MemoryType) -> Self {
        if !access.read {
            return Self(0);
        }
        let mut bits = frame.as_u64() & ADDRESS & !(level.bytes() - 1) | 1;
        bits.set_bit(1, access.write);
        bits.set_bit(2, access.execute);
        bits |= match memory_type {
            MemoryType::WriteBack => WRITE_BACK,
            MemoryType::Uncached => 0,
        };
        if level != Level::Size4K {
            bits |= PAGE;
        }
        Self(bits)
    }
    fn table(frame: PhysAddr) -> Self {
        Self(frame.as_u64() & ADDRESS | PERMISSIONS)
    }
    #[inline]
    fn is_present(self) -> bool {
        self.0 & PERMISSIONS != 0
    }
    #[inline]
    fn is_leaf(self, level: Level) -> bool {
        level == Level::Size4K || self.0 & PAGE != 0
    }
    #[inline]
    fn target(self) -> PhysAddr {
        PhysAddr::new_truncate(self.0 & ADDRESS)
    }
    #[inline]
    fn access(self) -> Access {
        Access { read: self.0.get_bit(0), write: self.0.get_bit(1), execute: self.0.get_bit(2) }
    }
    fn memory_type(self) -> MemoryType {
        if self.0 & WRITE_BACK == WRITE_BACK { MemoryType::WriteBack } else { MemoryType::Uncached }
    }
}

/// Returns the extended-page-table pointer for four levels under the table at `root`, kept in write-back memory,
/// without accessed and dirty flags (SDM Vol. 3C 25.6.11).
pub(super) fn pointer(root: PhysAddr) -> u64 {
    const WRITE_BACK_TABLES: u64 = 6;
    const FOUR_LEVELS: u64 = 3 << 3;
    root.as_u64() & ADDRESS | FOUR_LEVELS | WRITE_BACK_TABLES
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_leaf_is_no_misconfiguration(frame in 0u64..1 << 52, read: bool, write: bool, execute: bool, size in 0usize..3, cached: bool) {
            let level = [Level::Size4K, Level::Size2M, Level::Size1G][size];
            let frame = PhysAddr::new(frame & !(level.bytes() - 1));
            let access = Access { read, write, execute };
            let memory_type = if cached { MemoryType::WriteBack } else { MemoryType::Uncached };
            let entry = EptEntry::leaf(frame, access, level, memory_type);
            let bits = entry.bits();
            // SDM Vol. 3C 29.3.3.1: no writing without reading, a memory type that exists, reserved bits clear.
            prop_assert!(bits & 3 != 2);
            prop_assert!([0, 6].contains(&(bits >> 3 & 7)));
            prop_assert_eq!(entry.is_present(), read);
            if read {
                prop_assert_eq!(bits & ADDRESS, frame.as_u64());
                prop_assert_eq!(entry.target(), frame);
                prop_assert_eq!((entry.access(), entry.memory_type()), (access, memory_type));
                prop_assert_eq!(bits >> 7 & 1 == 1, size > 0);
                prop_assert!(entry.is_leaf(level));
                prop_assert_eq!(bits >> 3 & 7 == 6, cached);
            }
        }

        #[test]
        fn a_table_is_no_leaf_and_restricts_nothing(frame in 0u64..1 << 40) {
            let frame = PhysAddr::new(frame << 12);
            let entry = EptEntry::table(frame);
            prop_assert_eq!(entry.bits() & 0xFFF, 7);
            prop_assert_eq!(entry.target(), frame);
            prop_assert!(!entry.is_leaf(Level::Size2M) && !entry.is_leaf(Level::Size1G));
        }
    }
}
