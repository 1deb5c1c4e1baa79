//! What the boot loader told, in one form for every loader. Pure: reads memory through [`Physical`] and owns what it
//! keeps, so that the loader's structures may be overwritten afterwards.

use super::physical::Physical;
use super::{multiboot, pvh};
use crate::error::{Error, Result};
use crate::platform::ranges::{Range, Ranges};

/// Boot modules at most.
pub const MODULES: usize = 16;
/// Bytes in all command lines together, at most.
pub const TEXT: usize = 8192;
/// Entries of a memory map that are looked at; what a map has beyond them stays unused.
const MAP_ENTRIES: u64 = 512;
/// Bytes in an RSDP of revision 2 (ACPI 6.5, 5.2.5.3).
pub const RSDP_BYTES: usize = 36;
const NO_RSDP: [u8; RSDP_BYTES] = [0; RSDP_BYTES];

/// EAX at a Multiboot 1 entry (Multiboot 0.6.96, 3.2).
pub const MULTIBOOT1: u32 = 0x2BAD_B002;
/// EAX at a Multiboot 2 entry (Multiboot 2.0, 3.3).
pub const MULTIBOOT2: u32 = 0x36D7_6289;
/// The magic number of PVH's `hvm_start_info`, which the entry code passes on as if it were in EAX.
pub const PVH: u32 = 0x336E_C578;

/// A piece of the text that [`BootInfo`] owns.
#[derive(Clone, Copy, Debug, Default)]
struct Span {
    start: usize,
    end: usize,
}

/// A boot module where the loader put it.
#[derive(Clone, Copy, Debug, Default)]
struct ModuleSpan {
    range: Range,
    command_line: Span,
}

/// What the boot loader told.
pub struct BootInfo {
    usable: Ranges,
    reserved: Ranges,
    modules: [ModuleSpan; MODULES],
    module_count: usize,
    text: [u8; TEXT],
    used: usize,
    command_line: Span,
    /// All zeros where there is none: an `Option` would keep this structure out of `.bss`.
    rsdp: [u8; RSDP_BYTES],
}

impl core::fmt::Debug for BootInfo {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let modules = f.debug_struct("BootInfo").field("usable", &self.usable).finish();
        modules.and_then(|()| write!(f, " {:?}", self.command_line()))
    }
}

impl BootInfo {
    /// Reads the boot information at `address` of the loader that entered with `magic`.
    ///
    /// # Errors
    /// [`Error::BootInformation`] when it is none of the three kinds, cannot be read, or contradicts itself.
    pub fn parse(magic: u32, address: u64, memory: &impl Physical) -> Result<Self> {
        let mut info = Self {
            usable: Ranges::new(),
            reserved: Ranges::new(),
            modules: [ModuleSpan::default(); MODULES],
            module_count: 0,
            text: [0; TEXT],
            used: 0,
            command_line: Span::default(),
            rsdp: NO_RSDP,
        };
        match magic {
            MULTIBOOT1 => multiboot::parse1(&mut info, address, memory)?,
            MULTIBOOT2 => multiboot::parse2(&mut info, address, memory)?,
            PVH => pvh::parse(&mut info, address, memory)?,
            _ => return Err(Error::BootInformation("the magic number is no loader's")),
        }
        for reserved in info.reserved.as_slice() {
            info.usable.remove(reserved.pages());
        }
        if info.usable.bytes() == 0 {
            return Err(Error::BootInformation("there is no memory map, or no usable memory in it"));
        }
        if info.rsdp().is_none() {
            info.rsdp = find_rsdp(memory).unwrap_or(NO_RSDP);
        }
        Ok(info)
    }

    /// Returns the memory the loader calls usable, without what it also calls reserved. Modules and the image lie in
    /// it.
    pub fn usable(&self) -> &Ranges {
        &self.usable
    }

    /// Returns the image's command line.
    pub fn command_line(&self) -> &str {
        self.text(self.command_line)
    }

    /// Returns where each module lies, and its command line, in the loader's order.
    pub fn modules(&self) -> impl Iterator<Item = (Range, &str)> {
        self.modules[..self.module_count].iter().map(|module| (module.range, self.text(module.command_line)))
    }

    /// Returns the ACPI root pointer, as its bytes; those of a revision 0 pointer end in zeros.
    pub fn rsdp(&self) -> Option<&[u8; RSDP_BYTES]> {
        (self.rsdp != NO_RSDP).then_some(&self.rsdp)
    }

    fn text(&self, span: Span) -> &str {
        self.text.get(span.start..span.end).and_then(|bytes| core::str::from_utf8(bytes).ok()).unwrap_or_default()
    }

    /// Adds an entry of the memory map. Types are those of the BIOS (ACPI 6.5, 15.1): 1 is usable memory.
    pub(super) fn add_memory(&mut self, start: u64, bytes: u64, kind: u32) {
        match kind {
            1 => self.usable.insert(Range::new(start, bytes)),
            _ => self.reserved.insert(Range::new(start, bytes)),
        }
    }

    /// Returns how many entries of a map of `count` entries are looked at.
    pub(super) fn map_entries(count: u64) -> u64 {
        count.min(MAP_ENTRIES)
    }

    pub(super) fn set_command_line(&mut self, bytes: &[u8]) -> Result<()> {
        self.command_line = self.keep(bytes)?;
        Ok(())
    }

    pub(super) fn set_rsdp(&mut self, bytes: &[u8]) {
        self.rsdp = NO_RSDP;
        for (to, from) in self.rsdp.iter_mut().zip(bytes) {
            *to = *from;
        }
    }

    pub(super) fn add_module(&mut self, range: Range, command_line: &[u8]) -> Result<()> {
        let command_line = self.keep(command_line)?;
        let place = self.modules.get_mut(self.module_count).ok_or(Error::BootInformation("more than 16 modules"))?;
        *place = ModuleSpan { range, command_line };
        self.module_count += 1;
        Ok(())
    }

    /// Copies a text, which ends at its first NUL, without the blanks around it.
    fn keep(&mut self, bytes: &[u8]) -> Result<Span> {
        let bytes = bytes.split(|byte| *byte == 0).next().unwrap_or_default().trim_ascii();
        let bad = Error::BootInformation("a command line is not UTF-8");
        core::str::from_utf8(bytes).map_err(|_| bad)?;
        let span = Span { start: self.used, end: self.used + bytes.len() };
        let long = Error::BootInformation("the command lines have more than 8192 bytes together");
        self.text.get_mut(span.start..span.end).ok_or(long)?.copy_from_slice(bytes);
        self.used = span.end;
        Ok(span)
    }
}

/// Returns the bytes of the NUL-terminated text at `address`, without the NUL, into `buffer`.
///
/// # Errors
/// [`Error::BootInformation`] when it cannot be read or does not fit.
pub(super) fn text<'b>(memory: &impl Physical, address: u64, buffer: &'b mut [u8; TEXT]) -> Result<&'b [u8]> {
    for length in 0..TEXT {
        let at = address.checked_add(length as u64);
        match at.and_then(|at| memory.bytes(at, 1)) {
            Some([0]) => return Ok(&buffer[..length]),
            Some([byte]) => buffer[length] = *byte,
            _ => return Err(Error::BootInformation("a command line cannot be read")),
        }
    }
    Err(Error::BootInformation("the command lines have more than 8192 bytes together"))
}

/// Looks for the root pointer where a PC's BIOS leaves it: in the first KiB of the extended BIOS data area, whose
/// segment is at 40EH, and from E0000H to FFFFFH, at multiples of 16 (ACPI 6.5, 5.2.5.1).
fn find_rsdp(memory: &impl Physical) -> Option<[u8; RSDP_BYTES]> {
    let segment = memory.bytes(0x40E, 2).map_or(0, |bytes| u64::from(bytes[0]) | u64::from(bytes[1]) << 8);
    let extended = (segment << 4, 1024);
    for (start, length) in [extended, (0xE_0000, 0x2_0000)] {
        let Some(area) = memory.bytes(start, length) else { continue };
        for candidate in area.windows(RSDP_BYTES).step_by(16) {
            if candidate.starts_with(b"RSD PTR ")
                && candidate[..20].iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)) == 0
            {
                return candidate.first_chunk().copied();
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_bytes_and_no_address_make_it_panic(
            kind in 0usize..4, bytes in proptest::collection::vec(any::<u8>(), 0..400), address in 0u64..0x120, base in 0u64..0x20
        ) {
            let magic = [MULTIBOOT1, MULTIBOOT2, PVH, 7][kind];
            let _ = BootInfo::parse(magic, address, &(base, bytes.as_slice()));
        }

        #[test]
        fn small_numbers_that_point_into_each_other_do_not_either(
            kind in 0usize..3, words in proptest::collection::vec(prop_oneof![0u32..0x180, Just(u32::MAX), any::<u32>()], 0..96)
        ) {
            let (magic, start): (_, &[u32]) = [(MULTIBOOT1, &[0xFFFF][..]), (MULTIBOOT2, &[0x180]), (PVH, &[PVH, 1])][kind];
            let bytes: std::vec::Vec<u8> = start.iter().chain(&words).flat_map(|word| word.to_le_bytes()).collect();
            let _ = BootInfo::parse(magic, 0, &(0, bytes.as_slice()));
        }
    }

    #[test]
    fn the_root_pointer_is_found_behind_the_ebda_segment_and_its_checksum_counts() {
        let mut memory = std::vec![0u8; 0x10_0000];
        memory[0x40E..0x410].copy_from_slice(&0x9FC0u16.to_le_bytes());
        memory[0x9FC30..0x9FC38].copy_from_slice(b"RSD PTR ");
        assert_eq!(find_rsdp(&(0, memory.as_slice())), None);
        let sum = b"RSD PTR ".iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
        memory[0x9FC38] = sum.wrapping_neg();
        assert!(find_rsdp(&(0, memory.as_slice())).is_some_and(|found| found[8] == sum.wrapping_neg()));
        memory.copy_within(0x9FC30..0x9FC40, 0xF_FFC0);
        memory[0x9FC31] = 0;
        assert!(find_rsdp(&(0, memory.as_slice())).is_some());
    }

    #[test]
    fn reserved_entries_win_over_usable_ones() {
        let mut words = std::vec![PVH, 1, 0, 0, 0, 0, 0, 0, 0, 0, 56, 0, 3, 0];
        for (start, bytes, kind) in [(0x1000, 0x1800, 2), (0, 0x8000, 1), (0x7800, 0x1000, 9)] {
            words.extend([start, 0, bytes, 0, kind, 0]);
        }
        let bytes: std::vec::Vec<u8> = words.iter().flat_map(|word: &u32| word.to_le_bytes()).collect();
        let info = BootInfo::parse(PVH, 0, &(0, bytes.as_slice())).expect("a map with usable memory");
        assert_eq!(info.usable().as_slice(), [Range { start: 0, end: 0x1000 }, Range { start: 0x3000, end: 0x7000 }]);
    }
}
