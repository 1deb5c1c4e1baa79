//! Linux: a bzImage by the 64-bit boot protocol (Linux Documentation/arch/x86/boot.rst and zero-page.rst).

use super::bytes::{array, dword, qword, slice, word};
use super::map::{FOUR_GIB, HIGH_MEMORY, MemoryMap, Room, store};
use super::{Options, long_mode, until_nul};
use crate::address::PAGE_SIZE;
use crate::error::{Error, ImageError, Result};
use crate::memory::GuestMemory;
use crate::registers::{EntryState, Gpr};
use core::ops::Range;

/// `setup_header` and `boot_params` fields by their offsets, which are the same in the image and in the zero page.
mod field {
    pub(super) const ACPI_RSDP_ADDR: usize = 0x070;
    pub(super) const E820_ENTRIES: usize = 0x1E8;
    pub(super) const SETUP_SECTS: u64 = 0x1F1;
    pub(super) const SYSSIZE: u64 = 0x1F4;
    pub(super) const BOOT_FLAG: u64 = 0x1FE;
    pub(super) const JUMP_OFFSET: u64 = 0x201;
    pub(super) const HEADER: u64 = 0x202;
    pub(super) const VERSION: u64 = 0x206;
    pub(super) const TYPE_OF_LOADER: usize = 0x210;
    pub(super) const LOADFLAGS: u64 = 0x211;
    pub(super) const CODE32_START: usize = 0x214;
    pub(super) const RAMDISK_IMAGE: usize = 0x218;
    pub(super) const RAMDISK_SIZE: usize = 0x21C;
    pub(super) const CMD_LINE_PTR: usize = 0x228;
    pub(super) const INITRD_ADDR_MAX: u64 = 0x22C;
    pub(super) const KERNEL_ALIGNMENT: u64 = 0x230;
    pub(super) const RELOCATABLE_KERNEL: u64 = 0x234;
    pub(super) const XLOADFLAGS: u64 = 0x236;
    pub(super) const CMDLINE_SIZE: u64 = 0x238;
    pub(super) const PREF_ADDRESS: u64 = 0x258;
    pub(super) const INIT_SIZE: u64 = 0x260;
    pub(super) const INIT_SIZE_END: u64 = 0x264;
    pub(super) const E820_TABLE: usize = 0x2D0;
}

/// The `boot_flag` every kernel has.
const BOOT_FLAG: u16 = 0xAA55;
/// The `header` magic number.
const HEADER: &[u8; 4] = b"HdrS";
/// The first boot protocol with `xloadflags`.
const OLDEST_VERSION: u16 = 0x020C;
/// `loadflags`: the protected-mode part belongs at 1 MiB or above.
const LOADED_HIGH: u8 = 1 << 0;
/// `xloadflags`: there is a 64-bit entry point at [`ENTRY_64`].
const XLF_KERNEL_64: u16 = 1 << 0;
/// The 64-bit entry point's offset in the protected-mode part.
const ENTRY_64: u64 = 0x200;
/// `type_of_loader` for a boot loader without a number of its own.
const LOADER_UNDEFINED: u8 = 0xFF;
/// `setup_sects` where the field is 0.
const DEFAULT_SETUP_SECTS: u8 = 4;
/// Bytes in a sector, in which `setup_sects` counts.
const SECTOR: u64 = 512;
/// Bytes in a paragraph, in which `syssize` counts.
const PARAGRAPH: u64 = 16;
/// Where in the zero page the setup header has to end.
const SETUP_HEADER_LIMIT: u64 = 0x290;
/// Bytes in a `boot_e820_entry`.
const E820_ENTRY_BYTES: usize = 20;
/// Entries the zero page's memory map has room for.
const E820_MAX_ENTRIES: usize = 128;

/// Returns whether the image has the magic numbers of a Linux kernel.
pub(super) fn matches(image: &[u8]) -> bool {
    array(image, field::HEADER).is_ok_and(|magic: [u8; 4]| &magic == HEADER)
        && word(image, field::BOOT_FLAG) == Ok(BOOT_FLAG)
}

/// The setup header of a bzImage that this loader can load.
struct Header<'a> {
    /// The header's bytes, from `setup_sects` on, as they go to the zero page.
    bytes: &'a [u8],
    /// The protected-mode part.
    kernel: &'a [u8],
    initrd_addr_max: u64,
    alignment: u64,
    relocatable: bool,
    cmdline_size: usize,
    pref_address: u64,
    /// Bytes from the load address on that the kernel needs to itself until it reads the memory map.
    needed: u64,
}

impl<'a> Header<'a> {
    fn parse(image: &'a [u8]) -> core::result::Result<Self, ImageError> {
        if !matches(image) {
            return Err(ImageError::NotThisKind("a Linux bzImage"));
        }
        let version = word(image, field::VERSION)?;
        if version < OLDEST_VERSION {
            return Err(ImageError::BadField("the boot protocol version (2.12 or later is needed)", version.into()));
        }
        let [jump] = array(image, field::JUMP_OFFSET)?;
        let end = field::HEADER + u64::from(jump);
        if !(field::INIT_SIZE_END..=SETUP_HEADER_LIMIT).contains(&end) {
            return Err(ImageError::BadField("the jump over the setup header", jump.into()));
        }
        let xloadflags = word(image, field::XLOADFLAGS)?;
        if xloadflags & XLF_KERNEL_64 == 0 {
            return Err(ImageError::BadField("xloadflags (XLF_KERNEL_64 is needed)", xloadflags.into()));
        }
        let [loadflags] = array(image, field::LOADFLAGS)?;
        if loadflags & LOADED_HIGH == 0 {
            return Err(ImageError::BadField("loadflags (LOADED_HIGH is needed)", loadflags.into()));
        }
        let alignment = u64::from(dword(image, field::KERNEL_ALIGNMENT)?);
        if !alignment.is_power_of_two() {
            return Err(ImageError::BadField("kernel_alignment", alignment));
        }
        let setup_sects = match array(image, field::SETUP_SECTS)? {
            [0] => DEFAULT_SETUP_SECTS,
            [sectors] => sectors,
        };
        let syssize = dword(image, field::SYSSIZE)?;
        let kernel_bytes = u64::from(syssize) * PARAGRAPH;
        if kernel_bytes <= ENTRY_64 {
            return Err(ImageError::BadField("syssize", syssize.into()));
        }
        let [relocatable] = array(image, field::RELOCATABLE_KERNEL)?;
        Ok(Self {
            bytes: slice(image, field::SETUP_SECTS, end - field::SETUP_SECTS)?,
            kernel: slice(image, (u64::from(setup_sects) + 1) * SECTOR, kernel_bytes)?,
            initrd_addr_max: dword(image, field::INITRD_ADDR_MAX)?.into(),
            alignment,
            relocatable: relocatable != 0,
            cmdline_size: dword(image, field::CMDLINE_SIZE)? as usize,
            pref_address: qword(image, field::PREF_ADDRESS)?,
            needed: kernel_bytes.max(dword(image, field::INIT_SIZE)?.into()),
        })
    }

    /// Takes the kernel's room: at its preferred address, or, if it can be moved, at the lowest one above. Below it
    /// would not help: the kernel moves itself up to its preferred address then.
    fn place(&self, room: &mut Room) -> core::result::Result<u64, ImageError> {
        let lowest = self.pref_address.max(HIGH_MEMORY);
        if self.relocatable {
            return room.lowest("kernel", self.needed, self.alignment, lowest..FOUR_GIB);
        }
        if self.pref_address < HIGH_MEMORY || self.pref_address >= FOUR_GIB {
            return Err(ImageError::BadField("pref_address", self.pref_address));
        }
        room.claim("kernel", self.pref_address, self.needed)?;
        Ok(self.pref_address)
    }
}

/// Loads a bzImage with its initrd, command line, memory map and tables, and returns the state that enters it.
pub(super) fn load(image: &[u8], memory: &mut GuestMemory, options: &Options<'_>) -> Result<EntryState> {
    let header = Header::parse(image)?;
    let command_line = until_nul(options.command_line);
    if command_line.len() > header.cmdline_size {
        return Err(Error::CommandLineTooLong { given: command_line.len(), allowed: header.cmdline_size });
    }
    let map = MemoryMap::new(memory, options.reserved);
    if map.entries().len() > E820_MAX_ENTRIES {
        return Err(ImageError::Unsupported("a memory map of more than 128 ranges").into());
    }

    let mut room = Room::new(&map);
    let kernel = header.place(&mut room)?;
    let initrd_bytes = options.modules.iter().map(|module| padded(module.bytes)).sum();
    let initrd = match initrd_bytes {
        0 => 0,
        _ => {
            room.highest("initrd", initrd_bytes, PAGE_SIZE, HIGH_MEMORY..(header.initrd_addr_max + 1).min(FOUR_GIB))?
        }
    };
    // Low in memory: the kernel's way to five-level paging clears a page at the upper end of low memory.
    let mut low = |part, bytes: u64| room.lowest(part, bytes, PAGE_SIZE, 0..FOUR_GIB);
    let tables = low("page table", long_mode::TABLE_BYTES)?;
    let zero_page = low("zero page", PAGE_SIZE)?;
    let text = low("command line", command_line.len() as u64 + 1)?;

    let mut state = long_mode::prepare(memory, tables, kernel + ENTRY_64)?;
    store(memory, "kernel", kernel, header.kernel)?;
    store(memory, "command line", text, command_line)?;
    store(memory, "command line", text + command_line.len() as u64, &[0])?;
    let mut at = initrd;
    for module in options.modules {
        store(memory, "initrd", at, module.bytes)?;
        let padding = padded(module.bytes) - module.bytes.len() as u64;
        store(memory, "initrd", at + module.bytes.len() as u64, &[0; 4][..padding as usize])?;
        at += padded(module.bytes);
    }
    let rsdp = options.rsdp.map_or(0, |rsdp| rsdp.as_u64());
    let params = boot_params(&header, &map, kernel, text, initrd..initrd + initrd_bytes, rsdp);
    store(memory, "zero page", zero_page, &params)?;
    state.set_gpr(Gpr::Rsi, zero_page);
    Ok(state)
}

/// Returns the bytes a module takes in the initrd.
fn padded(module: &[u8]) -> u64 {
    (module.len() as u64).next_multiple_of(4)
}

/// Returns the zero page. All addresses are below 4 GiB but for `rsdp`.
fn boot_params(
    header: &Header<'_>,
    map: &MemoryMap,
    kernel: u64,
    command_line: u64,
    initrd: Range<u64>,
    rsdp: u64,
) -> [u8; PAGE_SIZE as usize] {
    let mut page = [0; PAGE_SIZE as usize];
    let mut put = |offset: usize, bytes: &[u8]| page[offset..offset + bytes.len()].copy_from_slice(bytes);
    put(field::SETUP_SECTS as usize, header.bytes);
    put(field::TYPE_OF_LOADER, &[LOADER_UNDEFINED]);
    put(field::CODE32_START, &(kernel as u32).to_le_bytes());
    put(field::RAMDISK_IMAGE, &(initrd.start as u32).to_le_bytes());
    put(field::RAMDISK_SIZE, &((initrd.end - initrd.start) as u32).to_le_bytes());
    put(field::CMD_LINE_PTR, &(command_line as u32).to_le_bytes());
    put(field::ACPI_RSDP_ADDR, &rsdp.to_le_bytes());
    put(field::E820_ENTRIES, &[map.entries().len() as u8]);
    for (index, entry) in map.entries().iter().enumerate().take(E820_MAX_ENTRIES) {
        let at = field::E820_TABLE + index * E820_ENTRY_BYTES;
        put(at, &entry.range.start.to_le_bytes());
        put(at + 8, &(entry.range.end - entry.range.start).to_le_bytes());
        put(at + 16, &(entry.usage as u32).to_le_bytes());
    }
    page
}

#[cfg(test)]
mod tests;
