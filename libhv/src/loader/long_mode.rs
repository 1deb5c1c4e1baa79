//! What 64-bit mode needs in guest memory: page tables that map the first 4 GiB one to one, and a GDT.

use super::map::{FOUR_GIB, store};
use crate::address::PAGE_SIZE;
use crate::error::ImageError;
use crate::memory::GuestMemory;
use crate::registers::{DescriptorTable, EntryState, Segment, SegmentAttributes, SegmentRegister};

/// Bytes the tables take: GDT, PML4, page-directory-pointer table and four page directories, a page each.
pub(super) const TABLE_BYTES: u64 = 7 * PAGE_SIZE;

/// The code segment's selector: `__BOOT_CS` of the Linux boot protocol.
const CODE_SELECTOR: u16 = 0x10;
/// The data segments' selector: `__BOOT_DS` of the Linux boot protocol.
const DATA_SELECTOR: u16 = 0x18;
/// Null, null, 64-bit code, data.
const GDT: [u64; 4] = [0, 0, 0x00AF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF];

/// Present and writable (SDM Vol. 3A 4.5).
const TABLE: u64 = 0b11;
/// Present, writable, and a 2 MiB page (SDM Vol. 3A 4.5).
const LARGE_PAGE: u64 = 1 << 7 | TABLE;
/// Bytes in a page that an entry of a page directory maps.
const LARGE_PAGE_SIZE: u64 = 2 << 20;
/// Entries in a table.
const ENTRIES: u64 = 512;

/// Writes the tables at `tables`, [`TABLE_BYTES`] bytes that are free and page-aligned, and returns the state that
/// enters `rip` in 64-bit mode on them, with interrupts off.
///
/// # Errors
/// [`ImageError::DoesNotFit`] when memory ends before the tables do.
pub(super) fn prepare(memory: &mut GuestMemory, tables: u64, rip: u64) -> Result<EntryState, ImageError> {
    let page = |number: u64| tables + number * PAGE_SIZE;
    write_table(memory, page(0), |index| GDT.get(index as usize).copied().unwrap_or(0))?;
    write_table(memory, page(1), |index| if index == 0 { page(2) | TABLE } else { 0 })?;
    let directories = FOUR_GIB / (ENTRIES * LARGE_PAGE_SIZE);
    write_table(memory, page(2), |index| if index < directories { page(3 + index) | TABLE } else { 0 })?;
    for directory in 0..directories {
        write_table(memory, page(3 + directory), |index| {
            ((directory * ENTRIES + index) * LARGE_PAGE_SIZE) | LARGE_PAGE
        })?;
    }

    let mut state = EntryState::long_mode(rip, page(1));
    let data = Segment::flat(DATA_SELECTOR, SegmentAttributes::DATA32);
    state.segments[..SegmentRegister::Ldtr as usize].fill(data);
    state.segments[SegmentRegister::Cs as usize] = Segment::flat(CODE_SELECTOR, SegmentAttributes::CODE64);
    state.gdtr = DescriptorTable { base: page(0), limit: size_of_val(&GDT) as u16 - 1 };
    Ok(state)
}

fn write_table(memory: &mut GuestMemory, address: u64, entry: impl Fn(u64) -> u64) -> Result<(), ImageError> {
    let mut table = [0; PAGE_SIZE as usize];
    for (index, word) in (0..).zip(table.chunks_exact_mut(8)) {
        word.copy_from_slice(&entry(index).to_le_bytes());
    }
    store(memory, "page table", address, &table)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::Gpa;
    use crate::exit::Width;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn addresses_below_4_gib_map_to_themselves_and_others_to_nothing(address in 0u64..1 << 34) {
            let mut memory = GuestMemory::for_tests(0x2_0000);
            let state = prepare(&mut memory, 0x8000, 0).expect("memory for all tables");
            let entry = |table: u64, shift: u32| {
                let index = address >> shift & 0x1FF;
                memory.read_number(Gpa::new((table & !0xFFF) + index * 8), Width::Qword).expect("a table in memory")
            };
            let pointer = entry(entry(state.cr3, 39), 30);
            prop_assert_eq!(pointer & 1 != 0, address < 1 << 32);
            if pointer & 1 != 0 {
                let leaf = entry(pointer, 21);
                prop_assert_eq!(leaf & 0x83, 0x83);
                prop_assert_eq!((leaf & !0x1F_FFFF) + address % 0x20_0000, address);
            }
        }
    }

    #[test]
    fn the_gdt_holds_what_the_segment_registers_hold() {
        let mut memory = GuestMemory::for_tests(0x2_0000);
        let state = prepare(&mut memory, 0x8000, 0).expect("memory for all tables");
        for register in [SegmentRegister::Cs, SegmentRegister::Ss, SegmentRegister::Ds, SegmentRegister::Es] {
            let segment = state.segments[register as usize];
            assert!(u32::from(segment.selector) + 7 <= u32::from(state.gdtr.limit));
            let address = Gpa::new(state.gdtr.base + u64::from(segment.selector));
            let descriptor = memory.read_number(address, Width::Qword).expect("the GDT is in memory");
            assert_eq!(descriptor >> 40 & 0xF0FF, u64::from(segment.attributes.0), "{register:?}");
        }
    }
}
