//! The information of Multiboot 1 (0.6.96, 3.3) and Multiboot 2 (2.0, 3.6).

use super::info::{BootInfo, TEXT, text};
use super::physical::Physical;
use crate::error::{Error, Result};
use crate::platform::ranges::Range;

/// Loaders of Multiboot 1 that put the file's name before its command line, by the beginning of the name they give
/// themselves. GRUB 2 does not, and the specification leaves it open.
const NAMES_THE_FILE: [&[u8]; 4] = [b"qemu", b"iPXE", b"GNU GRUB 0", b"SYSLINUX"];

/// Reads Multiboot 1's structure at `address` into `info`.
///
/// Some loaders put the file's name before the command line: [`NAMES_THE_FILE`]. From theirs, the first word is left
/// out; so a file whose name has a blank shows the rest of it.
pub(super) fn parse1(info: &mut BootInfo, address: u64, memory: &impl Physical) -> Result<()> {
    let bad = |problem| Error::BootInformation(problem);
    let start = memory.bytes(address, 68).ok_or(bad("the Multiboot information cannot be read"))?;
    let word = |offset: usize| u32::from_le_bytes([0, 1, 2, 3].map(|byte| start[offset + byte]));
    let has = |flag: u32| word(0) >> flag & 1 != 0;

    let mut buffer = [0; TEXT];
    let mut named = false;
    if has(9) {
        let name = text(memory, word(64).into(), &mut buffer)?;
        named = NAMES_THE_FILE.iter().any(|beginning| name.starts_with(beginning));
    }
    if has(2) {
        info.set_command_line(arguments(text(memory, word(16).into(), &mut buffer)?, named))?;
    }
    if has(3) {
        for module in 0..u64::from(word(20)) {
            let entry =
                memory.bytes(u64::from(word(24)) + module * 16, 16).ok_or(bad("the module list cannot be read"))?;
            let field = |offset: usize| u32::from_le_bytes([0, 1, 2, 3].map(|byte| entry[offset + byte]));
            let line = if field(8) == 0 { &[][..] } else { text(memory, field(8).into(), &mut buffer)? };
            info.add_module(module_range(field(0), field(4))?, arguments(line, named))?;
        }
    }
    if has(6) {
        let (mut at, end) = (u64::from(word(48)), u64::from(word(48)) + u64::from(word(44)));
        for _ in 0..BootInfo::map_entries(u64::MAX) {
            if at >= end {
                break;
            }
            // The size of an entry, in front of it, does not count itself.
            let entry = memory.bytes(at, 24).ok_or(bad("the memory map cannot be read"))?;
            let field = |offset: usize| u32::from_le_bytes([0, 1, 2, 3].map(|byte| entry[offset + byte]));
            let quad = |offset: usize| u64::from(field(offset)) | u64::from(field(offset + 4)) << 32;
            if field(0) < 20 {
                return Err(bad("an entry of the memory map is too short"));
            }
            info.add_memory(quad(4), quad(12), field(20));
            at += u64::from(field(0)) + 4;
        }
    } else if has(0) {
        info.add_memory(0, u64::from(word(4)) << 10, 1);
        info.add_memory(1 << 20, u64::from(word(8)) << 10, 1);
    }
    Ok(())
}

/// Reads Multiboot 2's tags at `address` into `info`.
pub(super) fn parse2(info: &mut BootInfo, address: u64, memory: &impl Physical) -> Result<()> {
    let bad = |problem| Error::BootInformation(problem);
    let total = memory.u32(address).ok_or(bad("the Multiboot 2 information cannot be read"))?;
    let tags = memory.bytes(address, total as usize).ok_or(bad("the Multiboot 2 information cannot be read"))?;
    let mut rest = tags.get(8..).ok_or(bad("the Multiboot 2 information is too short"))?;
    let mut have_new_rsdp = false;
    while let Some((kind, size)) = number(rest, 0).zip(number(rest, 4)) {
        let tag = rest.get(8..size as usize).ok_or(bad("a Multiboot 2 tag has an impossible size"))?;
        match kind {
            0 => break,
            1 => info.set_command_line(tag)?,
            3 => {
                let (start, end) = number(tag, 0).zip(number(tag, 4)).ok_or(bad("a module's tag is too short"))?;
                info.add_module(module_range(start, end)?, tag.get(8..).unwrap_or_default())?;
            }
            6 => map2(info, tag)?,
            14 if !have_new_rsdp => info.set_rsdp(tag),
            15 => {
                info.set_rsdp(tag);
                have_new_rsdp = true;
            }
            _ => {}
        }
        rest = rest.get((size as usize).next_multiple_of(8)..).unwrap_or_default();
    }
    Ok(())
}

/// Reads the memory map's tag.
fn map2(info: &mut BootInfo, tag: &[u8]) -> Result<()> {
    let size =
        number(tag, 0).filter(|size| *size >= 20).ok_or(Error::BootInformation("the memory map is too short"))?;
    let entries = tag.get(8..).unwrap_or_default().chunks_exact(size as usize);
    for entry in entries.take(BootInfo::map_entries(u64::MAX) as usize) {
        let quad = |offset| Some(u64::from(number(entry, offset)?) | u64::from(number(entry, offset + 4)?) << 32);
        if let (Some(start), Some(bytes), Some(kind)) = (quad(0), quad(8), number(entry, 16)) {
            info.add_memory(start, bytes, kind);
        }
    }
    Ok(())
}

fn number(bytes: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(offset..)?.first_chunk()?))
}

fn module_range(start: u32, end: u32) -> Result<Range> {
    if end < start {
        return Err(Error::BootInformation("a module ends before it starts"));
    }
    Ok(Range { start: start.into(), end: end.into() })
}

/// Leaves out the first word where the loader put the file's name there.
fn arguments(line: &[u8], named: bool) -> &[u8] {
    match line.iter().position(|byte| *byte == b' ') {
        Some(blank) if named => &line[blank..],
        None if named => &[],
        _ => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::info::{MULTIBOOT1, MULTIBOOT2};
    use std::vec::Vec;

    fn words(values: &[u32]) -> Vec<u8> {
        values.iter().flat_map(|value| value.to_le_bytes()).collect()
    }

    fn multiboot1(name: &[u8; 8]) -> Vec<u8> {
        let mut start = [0; 29];
        (start[0], start[4], start[5], start[6], start[11], start[12], start[16]) =
            (0x24C, 0x10AC, 1, 0x1084, 24, 0x1094, 0x10A4);
        let mut bytes = words(&start[..17]);
        bytes.resize(0x84, 0);
        bytes.extend(words(&[0x30_0000, 0x30_0010, 0x10B4, 0]));
        bytes.resize(0x94, 0);
        bytes.extend(words(&[20, 0, 0, 0x40_0000]));
        bytes.extend(name);
        bytes.extend(b"/k b=c\0\0/m n o\0\0");
        bytes.resize(0xC0, 0);
        bytes
    }

    #[test]
    fn the_name_of_the_file_is_left_out_for_loaders_that_give_it() {
        for (name, line, module) in [(b"qemu\0\0\0\0", "b=c", "n o"), (b"GRUB 2.0", "/k b=c", "/m n o")] {
            let mut bytes = multiboot1(name);
            if name[7] != 0 {
                bytes[0xAB] = 0;
            }
            // The map's entry: 24 bytes from 1094H, its length and type behind the words above.
            bytes.resize(0x100, 0);
            bytes[44..52].copy_from_slice(&words(&[24, 0x10E0]));
            bytes[0xE0..0xF8].copy_from_slice(&words(&[20, 0, 0, 0x40_0000, 0, 1]));
            let info = BootInfo::parse(MULTIBOOT1, 0x1000, &(0x1000, bytes.as_slice())).expect("well formed");
            assert_eq!(info.command_line(), line);
            let modules: Vec<_> = info.modules().collect();
            assert_eq!(modules, [(Range { start: 0x30_0000, end: 0x30_0010 }, module)]);
            assert_eq!(info.usable().as_slice(), [Range { start: 0, end: 0x40_0000 }]);
        }
    }

    #[test]
    fn tags_are_found_behind_tags_of_odd_size() {
        let mut bytes = words(&[0, 0, 1, 13]);
        bytes.extend(b"a=b\0x\0\0\0");
        bytes.extend(words(&[3, 18, 0x30_0000, 0x30_1000]));
        bytes.extend(b"m\0\0\0\0\0\0\0");
        bytes.extend(words(&[6, 40, 24, 0, 0x10_0000, 0, 0x20_0000, 0, 1, 0]));
        bytes.extend(words(&[15, 44, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 14, 28, 7, 7, 7, 7, 7, 0, 0, 8]));
        let total = bytes.len() as u32;
        bytes[..4].copy_from_slice(&total.to_le_bytes());
        let info = BootInfo::parse(MULTIBOOT2, 0x1000, &(0x1000, bytes.as_slice())).expect("well formed");
        assert_eq!(info.command_line(), "a=b");
        assert_eq!(info.modules().collect::<Vec<_>>(), [(Range { start: 0x30_0000, end: 0x30_1000 }, "m")]);
        assert_eq!(info.usable().as_slice(), [Range { start: 0x10_0000, end: 0x30_0000 }]);
        assert_eq!(info.rsdp().map(|rsdp| rsdp[0]), Some(1), "the newer root pointer wins");
    }

    #[test]
    fn a_module_that_ends_before_it_starts_is_refused() {
        let mut bytes = multiboot1(b"GRUB 2.0");
        bytes[0x84..0x88].copy_from_slice(&0x40_0000u32.to_le_bytes());
        let memory: (u64, &[u8]) = (0x1000, &bytes);
        assert_eq!(
            BootInfo::parse(MULTIBOOT1, 0x1000, &memory).err(),
            Some(Error::BootInformation("a module ends before it starts"))
        );
    }
}
