//! Flat binaries: bytes that run from their first one on, in real mode or in 64-bit mode.

use super::map::{FOUR_GIB, LOW_MEMORY_END, MemoryMap, Room, store};
use super::{Options, long_mode, until_nul};
use crate::address::{Gpa, PAGE_SIZE};
use crate::error::{ImageError, Result};
use crate::memory::GuestMemory;
use crate::registers::{EntryState, Gpr};

/// SP in real mode: below the address at which firmware loads a boot sector.
const REAL_MODE_STACK: u64 = 0x7C00;
/// Bytes of stack in 64-bit mode.
const STACK_BYTES: u64 = 0x4000;

/// Loads `image` at `segment`:`offset` and returns the state that enters it in real mode, with SS:SP = 0000:7C00.
pub(super) fn load_real(
    image: &[u8],
    memory: &mut GuestMemory,
    options: &Options<'_>,
    segment: u16,
    offset: u16,
) -> Result<EntryState> {
    refuse_modules(options)?;
    if !until_nul(options.command_line).is_empty() {
        return Err(ImageError::Unsupported("a command line in real mode").into());
    }
    let address = (u64::from(segment) << 4) + u64::from(offset);
    let mut room = Room::new(&MemoryMap::new(memory, options.reserved));
    claim_image(&mut room, image, address)?;
    store(memory, "flat binary", address, image)?;
    let mut state = EntryState::real_mode(segment, offset);
    state.set_gpr(Gpr::Rsp, REAL_MODE_STACK);
    Ok(state)
}

/// Loads `image` at `address` and returns the state that enters it in 64-bit mode: the first 4 GiB mapped one to one,
/// RSP at the end of 16 KiB of stack, RDI the address of the command line, which ends with a NUL.
///
/// Page tables, stack and command line are at the upper end of low memory, so that what follows the image is free.
pub(super) fn load_long(
    image: &[u8],
    memory: &mut GuestMemory,
    options: &Options<'_>,
    address: Gpa,
) -> Result<EntryState> {
    refuse_modules(options)?;
    let address = address.as_u64();
    if address.checked_add(image.len() as u64).is_none_or(|end| end > FOUR_GIB) {
        return Err(ImageError::BadField("the load address (below 4 GiB is needed)", address).into());
    }
    let command_line = until_nul(options.command_line);
    let mut room = Room::new(&MemoryMap::new(memory, options.reserved));
    claim_image(&mut room, image, address)?;
    let mut low = |part, bytes| room.highest(part, bytes, PAGE_SIZE, 0..LOW_MEMORY_END);
    let tables = low("page table", long_mode::TABLE_BYTES)?;
    let stack = low("stack", STACK_BYTES)?;
    let text = low("command line", command_line.len() as u64 + 1)?;

    store(memory, "flat binary", address, image)?;
    store(memory, "command line", text, command_line)?;
    store(memory, "command line", text + command_line.len() as u64, &[0])?;
    let mut state = long_mode::prepare(memory, tables, address)?;
    state.set_gpr(Gpr::Rsp, stack + STACK_BYTES);
    state.set_gpr(Gpr::Rdi, text);
    Ok(state)
}

fn refuse_modules(options: &Options<'_>) -> core::result::Result<(), ImageError> {
    if options.modules.is_empty() { Ok(()) } else { Err(ImageError::Unsupported("modules with a flat binary")) }
}

fn claim_image(room: &mut Room, image: &[u8], address: u64) -> core::result::Result<(), ImageError> {
    if image.is_empty() {
        return Err(ImageError::Truncated { needed: 1, found: 0 });
    }
    room.claim("flat binary", address, image.len() as u64)
}

#[cfg(test)]
mod tests {
    use super::super::{Kind, Module, load};
    use super::*;
    use crate::exit::Width;
    use crate::registers::SegmentRegister;

    #[test]
    fn a_boot_sector_runs_where_firmware_would_load_it() {
        let mut memory = GuestMemory::for_tests(0x1_0000);
        let options = Options { kind: Some(Kind::FlatReal { segment: 0x7C0, offset: 4 }), ..Options::default() };
        let state = load(&[0xF4; 512], &mut memory, &options).expect("memory for it");
        let cs = state.segments[SegmentRegister::Cs as usize];
        assert_eq!((cs.selector, cs.base + state.rip), (0x7C0, 0x7C04));
        assert_eq!(memory.read_number(Gpa::new(0x7C04), Width::Dword), Ok(0xF4F4_F4F4));
        assert_eq!(memory.read_number(Gpa::new(0x7C00), Width::Dword), Ok(0));
    }

    #[test]
    fn a_64_bit_binary_finds_stack_tables_and_command_line_apart_from_each_other_and_itself() {
        let mut memory = GuestMemory::for_tests(0x20_0000);
        let kind = Some(Kind::FlatLong { address: Gpa::new(0x10_0000) });
        let options = Options { kind, command_line: b"seed=7", ..Options::default() };
        let state = load(&[0x90; 0x1000], &mut memory, &options).expect("memory for it");
        assert_eq!(state.rip, 0x10_0000);
        let (stack, text) = (state.gprs[Gpr::Rsp as usize], state.gprs[Gpr::Rdi as usize]);
        memory.write(Gpa::new(stack - 0x4000), &[0xEE; 0x4000]).expect("in memory");
        let mut line = [1; 7];
        memory.read(Gpa::new(text), &mut line).expect("in memory");
        assert_eq!(&line, b"seed=7\0");
        assert_eq!(memory.read_number(Gpa::new(state.cr3 + 8), Width::Qword), Ok(0));
        assert_eq!(memory.read_number(Gpa::new(0x10_0FF8), Width::Qword), Ok(0x9090_9090_9090_9090));
        assert!(state.gdtr.base < 0x9_FC00 && state.gdtr.base > 0x1000);
    }

    #[test]
    fn what_a_flat_binary_cannot_be_given_is_refused() {
        let real = Some(Kind::FlatReal { segment: 0, offset: 0x7C00 });
        let long = |address| Some(Kind::FlatLong { address: Gpa::new(address) });
        let modules = &[Module::default()];
        let refused = [
            Options { kind: real, command_line: b"x", ..Options::default() },
            Options { kind: real, modules, ..Options::default() },
            Options { kind: long(0x10_0000), modules, ..Options::default() },
            Options { kind: long(u64::MAX), ..Options::default() },
            Options { kind: long(0x1F_FFFF), ..Options::default() },
            Options { kind: Some(Kind::FlatReal { segment: 0xFFFF, offset: 0xFFFF }), ..Options::default() },
            Options { kind: long(0x10_0000), reserved: core::slice::from_ref(&(0..0x10_0000)), ..Options::default() },
        ];
        let mut memory = GuestMemory::for_tests(0x20_0000);
        for options in refused {
            let before = alloc::format!("{options:?}");
            assert!(load(&[0x90; 0x10_0000], &mut memory, &options).is_err(), "{before}");
        }
        let mut seen = alloc::vec![0; 0x20_0000];
        memory.read(Gpa::new(0), &mut seen).expect("in memory");
        assert!(seen == alloc::vec![0; seen.len()]);
    }
}
