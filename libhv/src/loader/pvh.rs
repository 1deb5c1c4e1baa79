//! PVH: an ELF file with a 32-bit entry point in a note of Xen's (Xen docs/misc/pvh.pandoc, hvm/start_info.h).

use super::elf::{self, Elf};
use super::map::{FOUR_GIB, HIGH_MEMORY, MemoryMap, Room, store};
use super::{Options, until_nul};
use crate::address::PAGE_SIZE;
use crate::error::{ImageError, Result};
use crate::memory::GuestMemory;
use crate::registers::{EntryState, Gpr, SegmentRegister};
use alloc::vec::Vec;
use core::ops::Range;

/// The owner of the note.
const NOTE_OWNER: &[u8] = b"Xen\0";
/// `XEN_ELFNOTE_PHYS32_ENTRY`
const PHYS32_ENTRY: u32 = 18;
/// `XEN_HVM_START_MAGIC_VALUE`
const START_MAGIC: u32 = 0x336E_C578;
/// The version of `hvm_start_info` with a memory map.
const START_VERSION: u32 = 1;
/// Bytes in `hvm_start_info`.
const START_INFO_BYTES: u64 = 56;
/// Bytes in `hvm_modlist_entry`.
const MODULE_BYTES: u64 = 32;
/// Bytes in `hvm_memmap_table_entry`.
const MAP_ENTRY_BYTES: u64 = 24;
/// The limit of the task-state segment that TR starts with.
const TSS_LIMIT: u32 = 0x67;

/// Returns whether the image is an ELF file with a PVH entry point.
pub(super) fn matches(image: &[u8]) -> bool {
    elf::matches(image) && Elf::parse(image).is_ok_and(|elf| entry(&elf).is_ok())
}

fn entry(elf: &Elf<'_>) -> core::result::Result<u32, ImageError> {
    let note = elf.note(NOTE_OWNER, PHYS32_ENTRY)?.ok_or(ImageError::NotThisKind("an ELF file with a PVH entry"))?;
    let address = match note.len() {
        4 => super::bytes::dword(note, 0)?.into(),
        8 => super::bytes::qword(note, 0)?,
        length => return Err(ImageError::BadField("the length of XEN_ELFNOTE_PHYS32_ENTRY", length as u64)),
    };
    u32::try_from(address).map_err(|_| ImageError::BadField("XEN_ELFNOTE_PHYS32_ENTRY", address))
}

/// Loads a PVH kernel with its modules and start information, and returns the state that enters it.
pub(super) fn load(image: &[u8], memory: &mut GuestMemory, options: &Options<'_>) -> Result<EntryState> {
    let elf = Elf::parse(image)?;
    let entry = entry(&elf)?;
    let map = MemoryMap::new(memory, options.reserved);
    let mut room = Room::new(&map);
    elf.place(&mut room)?;
    let mut modules = Vec::with_capacity(options.modules.len());
    for module in options.modules {
        let bytes = module.bytes.len() as u64;
        let start = room.highest("module", bytes, PAGE_SIZE, HIGH_MEMORY..FOUR_GIB)?;
        modules.push(start..start + bytes);
    }
    let bytes = start_info(0, &map, options, &modules).len() as u64;
    let base = room.lowest("PVH start information", bytes, PAGE_SIZE, 0..FOUR_GIB)?;

    elf.copy(memory)?;
    for (place, module) in modules.iter().zip(options.modules) {
        store(memory, "module", place.start, module.bytes)?;
    }
    store(memory, "PVH start information", base, &start_info(base, &map, options, &modules))?;
    let mut state = EntryState::protected_mode(entry);
    state.set_gpr(Gpr::Rbx, base);
    state.segments[SegmentRegister::Tr as usize].limit = TSS_LIMIT;
    Ok(state)
}

/// Returns the start information and what it points to, as they lie from `base` on; their length does not depend on
/// `base`.
fn start_info(base: u64, map: &MemoryMap, options: &Options<'_>, modules: &[Range<u64>]) -> Vec<u8> {
    let list = base + START_INFO_BYTES;
    let table = list + modules.len() as u64 * MODULE_BYTES;
    let mut text = table + map.entries().len() as u64 * MAP_ENTRY_BYTES;
    let mut place = |line: &[u8]| {
        let start = text;
        text += until_nul(line).len() as u64 + 1;
        start
    };
    let cmdline = place(options.command_line);
    let rsdp = options.rsdp.map_or(0, |rsdp| rsdp.as_u64());

    let pair = |low: u32, high: u32| u64::from(high) << 32 | u64::from(low);
    let mut words = alloc::vec![
        pair(START_MAGIC, START_VERSION),
        pair(0, modules.len() as u32),
        if modules.is_empty() { 0 } else { list },
        cmdline,
        rsdp,
        table,
        map.entries().len() as u64,
    ];
    for (range, module) in modules.iter().zip(options.modules) {
        words.extend([range.start, range.end - range.start, place(module.command_line), 0]);
    }
    for entry in map.entries() {
        words.extend([entry.range.start, entry.range.end - entry.range.start, entry.usage as u64]);
    }
    let mut bytes: Vec<u8> = words.into_iter().flat_map(u64::to_le_bytes).collect();
    for line in [options.command_line].into_iter().chain(options.modules.iter().map(|module| module.command_line)) {
        bytes.extend_from_slice(until_nul(line));
        bytes.push(0);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::super::{Kind, Module, detect, load};
    use super::*;
    use crate::address::Gpa;
    use crate::exit::Width;
    use proptest::prelude::*;

    /// An ELF file with a note and two segments: one of 0x100 bytes at 1 MiB, with 0x300 in memory, and one of 0x10
    /// bytes at 0x18_0000; virtual addresses are higher by 0x4000_0000.
    fn image(wide: bool) -> Vec<u8> {
        let mut image = alloc::vec![0u8; 0x400];
        let mut put = |offset: usize, bytes: &[u8]| image[offset..offset + bytes.len()].copy_from_slice(bytes);
        put(0, b"\x7FELF\x01\x01\x01");
        put(16, &[2, 0, if wide { 62 } else { 3 }, 0, 1]);
        let word = |value: u64| if wide { value.to_le_bytes().to_vec() } else { (value as u32).to_le_bytes().to_vec() };
        let (header, size) = if wide { (0x40, 56u8) } else { (0x34, 32) };
        put(24, &[word(0x4010_0020), word(header)].concat());
        if wide {
            put(4, &[2]);
        }
        put(if wide { 54 } else { 42 }, &[size, 0, 3, 0]);
        let segments =
            [(4u32, 0x200, 0, 20, 20), (1, 0x300, 0x10_0000, 0x100, 0x300), (1, 0x200, 0x18_0000, 0x10, 0x10)];
        for (index, (kind, offset, address, file, memory)) in segments.into_iter().enumerate() {
            let fields = [offset, address + 0x4000_0000, address, file, memory].map(word).concat();
            let kind = if wide { [kind, 5].map(u32::to_le_bytes).concat() } else { kind.to_le_bytes().to_vec() };
            put(header as usize + index * usize::from(size), &[kind, fields].concat());
        }
        put(0x200, &[4, 0, 0, 0, 4, 0, 0, 0, 18, 0, 0, 0, b'X', b'e', b'n', 0, 0x30, 0, 0x10, 0]);
        put(0x300, &[0xC3; 0x100]);
        image
    }

    fn number(memory: &GuestMemory, address: u64) -> u64 {
        memory.read_number(Gpa::new(address), Width::Qword).expect("in memory")
    }

    #[test]
    fn segments_are_copied_cleared_and_entered_by_the_note() {
        for wide in [false, true] {
            let mut memory = GuestMemory::for_tests(0x20_0000);
            memory.write(Gpa::new(0x10_0000), &[0xAA; 0x400]).expect("in memory");
            assert_eq!(detect(&image(wide)), Some(Kind::Pvh));
            let state = load(&image(wide), &mut memory, &Options::default()).expect("a kernel");
            assert_eq!(state.rip, 0x10_0030);
            let mut seen = [0; 0x400];
            memory.read(Gpa::new(0x10_0000), &mut seen).expect("in memory");
            assert!(
                seen[..0x100] == [0xC3; 0x100] && seen[0x100..0x300] == [0; 0x200] && seen[0x300..] == [0xAA; 0x100]
            );
            assert_eq!(number(&memory, 0x18_0008), 18 | 0x006E_6558 << 32);
        }
    }

    #[test]
    fn the_start_information_tells_command_line_modules_tables_and_memory() {
        let mut memory = GuestMemory::for_tests(0x20_0000);
        let modules = [Module { bytes: &[9; 100], command_line: b"disk" }, Module { bytes: b"x", command_line: b"" }];
        let rsdp = Some(Gpa::new(0xE_0000));
        let options = Options { command_line: b"quiet", modules: &modules, rsdp, ..Options::default() };
        let state = load(&image(true), &mut memory, &options).expect("a kernel");
        let info = state.gprs[Gpr::Rbx as usize];
        let field = |offset| number(&memory, info + offset);
        assert_eq!((field(0), field(8)), (0x1_336E_C578, 2 << 32));
        assert_eq!((field(32), field(48)), (0xE_0000, 3));
        let mut text = [0; 6];
        memory.read(Gpa::new(field(24)), &mut text).expect("in memory");
        assert_eq!(&text, b"quiet\0");
        for (module, at) in modules.iter().zip([field(16), field(16) + 32]) {
            let mut bytes = alloc::vec![0; number(&memory, at + 8) as usize];
            memory.read(Gpa::new(number(&memory, at)), &mut bytes).expect("in memory");
            assert_eq!(bytes, module.bytes);
            let mut line = alloc::vec![1; module.command_line.len() + 1];
            memory.read(Gpa::new(number(&memory, at + 16)), &mut line).expect("in memory");
            assert_eq!(line, [module.command_line, b"\0"].concat());
        }
        let map: Vec<_> = (0..9).map(|index| number(&memory, field(40) + index * 8)).collect();
        assert_eq!(map, [0, 0x9_FC00, 1, 0x9_FC00, 0x6_0400, 2, 0x10_0000, 0x10_0000, 1]);
    }

    #[test]
    fn a_multiboot_elf_is_entered_at_the_physical_address_of_its_entry_point() {
        let mut kernel = image(false);
        for (at, word) in (0x180..).step_by(4).zip([0x1BAD_B002u32, 0, 0u32.wrapping_sub(0x1BAD_B002)]) {
            kernel[at..at + 4].copy_from_slice(&word.to_le_bytes());
        }
        assert_eq!(detect(&kernel), Some(Kind::Multiboot));
        let state = load(&kernel, &mut GuestMemory::for_tests(0x20_0000), &Options::default()).expect("a kernel");
        assert_eq!(state.rip, 0x10_0020);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn a_damaged_file_ends_in_a_kernel_or_an_error_and_untouched_memory(
            wide: bool, length in 0usize..0x600,
            damage in proptest::collection::vec((0usize..0x110, any::<u8>()), 0..6),
        ) {
            let mut kernel = image(wide);
            for (at, byte) in damage {
                kernel[if at < 0x100 { at } else { at + 0x100 }] = byte;
            }
            kernel.truncate(length);
            let mut memory = GuestMemory::for_tests(0x20_0000);
            if load(&kernel, &mut memory, &Options { kind: Some(Kind::Pvh), ..Options::default() }).is_err() {
                let mut seen = alloc::vec![0; 0x20_0000];
                memory.read(Gpa::new(0), &mut seen).expect("in memory");
                prop_assert!(seen == alloc::vec![0; seen.len()]);
            }
        }
    }
}
