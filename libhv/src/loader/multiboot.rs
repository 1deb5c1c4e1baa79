//! Multiboot 1 kernels (Multiboot Specification 0.6.96).

use super::bytes::{dword, slice};
use super::elf::Elf;
use super::map::{FOUR_GIB, HIGH_MEMORY, MemoryMap, Room, clear, store};
use super::{Options, until_nul};
use crate::address::PAGE_SIZE;
use crate::error::{ImageError, Result};
use crate::memory::GuestMemory;
use crate::registers::{EntryState, Gpr};
use alloc::vec::Vec;
use core::ops::Range;

/// The header's `magic`.
const MAGIC: u32 = 0x1BAD_B002;
/// What the kernel finds in EAX.
const BOOT_LOADER_MAGIC: u32 = 0x2BAD_B002;
/// The header lies in this many first bytes of the image.
const SEARCHED: usize = 8192;
/// Header `flags`: modules are to be aligned to pages. They always are.
const PAGE_ALIGN: u32 = 1 << 0;
/// Header `flags`: `mem_*` and `mmap_*` are needed. They always are there.
const MEMORY_INFO: u32 = 1 << 1;
/// Header `flags`: the address fields are valid.
const ADDRESS_FIELDS: u32 = 1 << 16;
/// Header `flags` whose demands a boot loader has to meet, or refuse the kernel.
const REQUIREMENTS: u32 = 0xFFFF;

/// Information `flags`: `mem_lower` and `mem_upper` are valid.
const INFO_MEMORY: u32 = 1 << 0;
/// Information `flags`: `cmdline` is valid.
const INFO_CMDLINE: u32 = 1 << 2;
/// Information `flags`: `mods_*` are valid.
const INFO_MODS: u32 = 1 << 3;
/// Information `flags`: `mmap_*` are valid.
const INFO_MMAP: u32 = 1 << 6;
/// Information `flags`: `boot_loader_name` is valid.
const INFO_LOADER_NAME: u32 = 1 << 9;
/// Bytes in the information structure, up to its framebuffer fields and with them.
const INFO_BYTES: usize = 116;
/// Bytes in a structure of the module list.
const MODULE_BYTES: usize = 16;
/// What `boot_loader_name` points to.
const LOADER_NAME: &[u8] = b"libhv";

/// Returns whether the image has a Multiboot header.
pub(super) fn matches(image: &[u8]) -> bool {
    find(image).is_some()
}

/// Returns the offset and the flags of the header: the first that is aligned to 4 bytes and has a right checksum.
fn find(image: &[u8]) -> Option<(u64, u32)> {
    let searched = &image[..image.len().min(SEARCHED)];
    (0..searched.len() as u64).step_by(4).find_map(|offset| {
        let number = |further: u64| dword(searched, offset + further).ok();
        let (magic, flags, checksum) = (number(0)?, number(4)?, number(8)?);
        (magic == MAGIC && magic.wrapping_add(flags).wrapping_add(checksum) == 0).then_some((offset, flags))
    })
}

/// Where a kernel goes.
enum Program<'a> {
    /// By the header's address fields.
    Flat { address: u64, bytes: &'a [u8], memory: u64, entry: u32 },
    /// By the program headers of an ELF file.
    Elf(Elf<'a>),
}

impl<'a> Program<'a> {
    fn parse(image: &'a [u8]) -> core::result::Result<Self, ImageError> {
        let (header, flags) = find(image).ok_or(ImageError::NotThisKind("a Multiboot 1 kernel"))?;
        if flags & REQUIREMENTS & !(PAGE_ALIGN | MEMORY_INFO) != 0 {
            return Err(ImageError::BadField("the requirements of the Multiboot header", flags.into()));
        }
        if flags & ADDRESS_FIELDS == 0 {
            return Elf::parse(image).map(Self::Elf);
        }
        let field = |offset| dword(image, header + offset).map(u64::from);
        let (header_addr, load_addr, load_end, bss_end) = (field(12)?, field(16)?, field(20)?, field(24)?);
        let before = header_addr.checked_sub(load_addr).filter(|before| *before <= header);
        let start = header - before.ok_or(ImageError::BadField("load_addr", load_addr))?;
        let bytes = match load_end {
            0 => image.len() as u64 - start,
            end => end.checked_sub(load_addr).ok_or(ImageError::BadField("load_end_addr", end))?,
        };
        let memory = match bss_end {
            0 => bytes,
            end => end
                .checked_sub(load_addr)
                .filter(|memory| *memory >= bytes)
                .ok_or(ImageError::BadField("bss_end_addr", end))?,
        };
        let entry = dword(image, header + 28)?;
        Ok(Self::Flat { address: load_addr, bytes: slice(image, start, bytes)?, memory, entry })
    }

    /// Takes the kernel's room and returns the address after it.
    fn place(&self, room: &mut Room) -> core::result::Result<u64, ImageError> {
        match self {
            Self::Flat { address, memory, .. } => {
                room.claim("kernel", *address, *memory)?;
                Ok(address + memory)
            }
            Self::Elf(elf) => elf.place(room),
        }
    }

    fn copy(&self, memory: &mut GuestMemory) -> core::result::Result<(), ImageError> {
        match self {
            Self::Flat { address, bytes, memory: total, .. } => {
                let length = bytes.len() as u64;
                store(memory, "kernel", *address, bytes)?;
                clear(memory, "kernel", address + length, total - length)
            }
            Self::Elf(elf) => elf.copy(memory),
        }
    }

    fn entry(&self) -> core::result::Result<u32, ImageError> {
        match self {
            Self::Flat { entry, .. } => Ok(*entry),
            Self::Elf(elf) => elf.physical_entry(),
        }
    }
}

/// Loads a Multiboot 1 kernel with its modules and the information structure, and returns the state that enters it.
pub(super) fn load(image: &[u8], memory: &mut GuestMemory, options: &Options<'_>) -> Result<EntryState> {
    let program = Program::parse(image)?;
    let entry = program.entry()?;
    let map = MemoryMap::new(memory, options.reserved);
    let mut room = Room::new(&map);
    // Modules follow the kernel, where other boot loaders put them too.
    let mut end = program.place(&mut room)?.max(HIGH_MEMORY);
    let mut modules = Vec::with_capacity(options.modules.len());
    for module in options.modules {
        let bytes = module.bytes.len() as u64;
        let start = room.lowest("module", bytes, PAGE_SIZE, end..FOUR_GIB)?;
        end = start + bytes;
        modules.push(start..end);
    }
    let bytes = information(0, &map, options, &modules).len() as u64;
    let base = room.lowest("Multiboot information", bytes, PAGE_SIZE, 0..FOUR_GIB)?;

    program.copy(memory)?;
    for (place, module) in modules.iter().zip(options.modules) {
        store(memory, "module", place.start, module.bytes)?;
    }
    store(memory, "Multiboot information", base, &information(base, &map, options, &modules))?;
    let mut state = EntryState::protected_mode(entry);
    state.set_gpr(Gpr::Rax, BOOT_LOADER_MAGIC.into());
    state.set_gpr(Gpr::Rbx, base);
    Ok(state)
}

/// Returns the information structure and what it points to, as they lie from `base` on; their length does not depend
/// on `base`. All addresses are below 4 GiB.
fn information(base: u64, map: &MemoryMap, options: &Options<'_>, modules: &[Range<u64>]) -> Vec<u8> {
    let mut bytes = alloc::vec![0; INFO_BYTES + modules.len() * MODULE_BYTES];
    let here = |bytes: &Vec<u8>| (base + bytes.len() as u64) as u32;
    let text = |bytes: &mut Vec<u8>, text: &[u8]| {
        let address = here(bytes);
        bytes.extend_from_slice(until_nul(text));
        bytes.push(0);
        address
    };
    let put = |bytes: &mut Vec<u8>, offset: usize, value: u32| {
        bytes[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
    };

    let map_address = here(&bytes);
    for entry in map.entries() {
        bytes.extend_from_slice(&20u32.to_le_bytes());
        bytes.extend_from_slice(&entry.range.start.to_le_bytes());
        bytes.extend_from_slice(&(entry.range.end - entry.range.start).to_le_bytes());
        bytes.extend_from_slice(&(entry.usage as u32).to_le_bytes());
    }
    let map_bytes = here(&bytes) - map_address;
    let kib = |address| u32::try_from(map.usable_from(address) >> 10).unwrap_or(u32::MAX);
    for (index, (place, module)) in modules.iter().zip(options.modules).enumerate() {
        let at = INFO_BYTES + index * MODULE_BYTES;
        put(&mut bytes, at, place.start as u32);
        put(&mut bytes, at + 4, place.end as u32);
        let string = text(&mut bytes, module.command_line);
        put(&mut bytes, at + 8, string);
    }
    let (cmdline, name) = (text(&mut bytes, options.command_line), text(&mut bytes, LOADER_NAME));
    let flags = INFO_MEMORY | INFO_CMDLINE | INFO_MODS | INFO_MMAP | INFO_LOADER_NAME;
    let list = (base + INFO_BYTES as u64) as u32;
    for (offset, value) in [
        (0, flags),
        (4, kib(0)),
        (8, kib(HIGH_MEMORY)),
        (16, cmdline),
        (20, modules.len() as u32),
        (24, list),
        (44, map_bytes),
        (48, map_address),
        (64, name),
    ] {
        put(&mut bytes, offset, value);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::super::{Module, load};
    use super::*;
    use crate::address::Gpa;
    use crate::exit::Width;
    use proptest::prelude::*;

    const KERNEL: u64 = 0x10_0000;

    fn header(flags: u32, rest: &[u32]) -> Vec<u8> {
        let words = [0x1BAD_B002, flags, 0u32.wrapping_sub(0x1BAD_B002).wrapping_sub(flags)];
        words.iter().chain(rest).flat_map(|word| word.to_le_bytes()).collect()
    }

    /// A kernel of 4096 bytes whose header stands at `at`, loaded from its first byte on.
    fn with_addresses(at: u32, bss: u32) -> Vec<u8> {
        let mut image: Vec<u8> = (0..4096).map(|byte| byte as u8 | 1).collect();
        let end = 0x10_0000 + 4096;
        let header = header(1 << 16 | 3, &[0x10_0000 + at, 0x10_0000, end, end + bss, 0x10_0040]);
        image[at as usize..at as usize + header.len()].copy_from_slice(&header);
        image
    }

    fn number(memory: &GuestMemory, address: u64) -> u64 {
        memory.read_number(Gpa::new(address), Width::Dword).expect("in memory")
    }

    fn text(memory: &GuestMemory, address: u64) -> Vec<u8> {
        let bytes = (address..).map(|at| memory.read_number(Gpa::new(at), Width::Byte).expect("in memory") as u8);
        bytes.take_while(|byte| *byte != 0).collect()
    }

    #[test]
    fn the_address_fields_say_what_is_loaded_where_and_what_is_cleared() {
        for at in [0, 4, 0x400] {
            let image = with_addresses(at, 0x2000);
            let mut memory = GuestMemory::for_tests(0x20_0000);
            memory.write(Gpa::new(KERNEL), &[0xAA; 0x4000]).expect("in memory");
            let state = load(&image, &mut memory, &Options::default()).expect("a kernel");
            let mut seen = alloc::vec![0; 0x4000];
            memory.read(Gpa::new(KERNEL), &mut seen).expect("in memory");
            assert!(seen[..4096] == image && seen[4096..0x3000] == [0; 0x2000] && seen[0x3000..] == [0xAA; 0x1000]);
            assert_eq!((state.rip, state.gprs[Gpr::Rax as usize]), (0x10_0040, 0x2BAD_B002));
            assert_eq!(state, {
                let mut same = EntryState::protected_mode(0x10_0040);
                same.gprs = state.gprs;
                same
            });
        }
    }

    #[test]
    fn the_information_tells_command_line_modules_and_memory() {
        let mut memory = GuestMemory::for_tests(0x20_0000);
        let modules =
            [Module { bytes: b"first", command_line: b"one" }, Module { bytes: &[7; 5000], command_line: b"two" }];
        let options = Options { command_line: b"test=all\0hidden", modules: &modules, ..Options::default() };
        let state = load(&with_addresses(0, 0x800), &mut memory, &options).expect("a kernel");
        let info = state.gprs[Gpr::Rbx as usize];
        assert_eq!(number(&memory, info) & 0x4D, 0x4D);
        assert_eq!((number(&memory, info + 4), number(&memory, info + 8)), (639, 1024));
        assert_eq!(text(&memory, number(&memory, info + 16)), b"test=all");
        assert_eq!(number(&memory, info + 20), 2);
        let mut free = KERNEL + 4096 + 0x800;
        for (index, module) in modules.iter().enumerate() {
            let entry = number(&memory, info + 24) + index as u64 * 16;
            let (start, end) = (number(&memory, entry), number(&memory, entry + 4));
            assert!(start >= free && start % 4096 == 0);
            free = end;
            let mut bytes = alloc::vec![0; (end - start) as usize];
            memory.read(Gpa::new(start), &mut bytes).expect("in memory");
            assert_eq!(bytes, module.bytes);
            assert_eq!(text(&memory, number(&memory, entry + 8)), module.command_line);
        }
        let (mut at, end) = (number(&memory, info + 48), number(&memory, info + 48) + number(&memory, info + 44));
        let mut map = Vec::new();
        while at < end {
            let [start, length, usage] = [4, 12, 20].map(|offset| number(&memory, at + offset));
            map.push((start, length, usage));
            at += 4 + number(&memory, at);
        }
        assert_eq!(map, [(0, 0x9_FC00, 1), (0x9_FC00, 0x6_0400, 2), (KERNEL, 0x10_0000, 1)]);
    }

    #[test]
    fn a_demand_that_cannot_be_met_and_a_wrong_checksum_are_refused() {
        let mut memory = GuestMemory::for_tests(0x20_0000);
        let mut video = header(1 << 16 | 4, &[0x10_0000, 0x10_0000, 0, 0, 0x10_0000]);
        assert!(matches!(
            load(&video, &mut memory, &Options::default()),
            Err(crate::Error::Image(ImageError::BadField(..)))
        ));
        video[8] ^= 1;
        assert!(matches!(
            load(&video, &mut memory, &Options::default()),
            Err(crate::Error::Image(ImageError::NotThisKind(_)))
        ));
        let late = [alloc::vec![0; 8192 - 11], with_addresses(0, 0)].concat();
        assert_eq!(super::super::detect(&late), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn wrong_address_fields_end_in_a_kernel_or_an_error_and_untouched_memory(
            fields in proptest::array::uniform5(prop_oneof![Just(0u32), 0xF_F000u32..0x21_0000, any::<u32>()]),
            at in 0usize..64, length in 0usize..4096,
        ) {
            let mut image = alloc::vec![0xA5; at * 4];
            image.extend(header(1 << 16, &fields));
            image.resize(image.len().max(length), 0x5A);
            let mut memory = GuestMemory::for_tests(0x20_0000);
            if load(&image, &mut memory, &Options { kind: Some(super::super::Kind::Multiboot), ..Options::default() }).is_err() {
                let mut seen = alloc::vec![0; 0x20_0000];
                memory.read(Gpa::new(0), &mut seen).expect("in memory");
                prop_assert!(seen == alloc::vec![0; seen.len()]);
            }
        }

        #[test]
        fn a_damaged_kernel_ends_in_a_kernel_or_an_error_and_untouched_memory(
            length in 0usize..4096, damage in proptest::collection::vec((0usize..32, any::<u8>()), 0..4),
        ) {
            let mut image = with_addresses(0, 0x100);
            for (at, byte) in damage {
                image[at] = byte;
            }
            image.truncate(length);
            let mut memory = GuestMemory::for_tests(0x20_0000);
            let kind = Some(super::super::Kind::Multiboot);
            if load(&image, &mut memory, &Options { kind, ..Options::default() }).is_err() {
                let mut seen = alloc::vec![0; 0x20_0000];
                memory.read(Gpa::new(0), &mut seen).expect("in memory");
                prop_assert!(seen == alloc::vec![0; seen.len()]);
            }
        }
    }
}
