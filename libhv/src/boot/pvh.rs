//! PVH's `hvm_start_info` (Xen, `public/arch-x86/hvm/start_info.h`).

use super::info::{BootInfo, PVH, RSDP_BYTES, TEXT, text};
use super::physical::Physical;
use crate::error::{Error, Result};
use crate::platform::ranges::Range;

/// Reads the structure at `address` into `info`.
pub(super) fn parse(info: &mut BootInfo, address: u64, memory: &impl Physical) -> Result<()> {
    let bad = |problem| Error::BootInformation(problem);
    let start = memory.bytes(address, 40).ok_or(bad("hvm_start_info cannot be read"))?;
    let word = |offset: usize| u32::from_le_bytes([0, 1, 2, 3].map(|byte| start[offset + byte]));
    let quad = |offset: usize| u64::from(word(offset)) | u64::from(word(offset + 4)) << 32;
    if word(0) != PVH {
        return Err(bad("hvm_start_info has another magic number"));
    }
    let mut buffer = [0; TEXT];
    if quad(24) != 0 {
        info.set_command_line(text(memory, quad(24), &mut buffer)?)?;
    }
    for module in 0..u64::from(word(12)) {
        let entry = quad(16).checked_add(module * 32);
        let entry = entry.and_then(|entry| memory.bytes(entry, 32)).ok_or(bad("the module list cannot be read"))?;
        let field = |offset: usize| u64::from_le_bytes([0, 1, 2, 3, 4, 5, 6, 7].map(|byte| entry[offset + byte]));
        let line = if field(16) == 0 { &[][..] } else { text(memory, field(16), &mut buffer)? };
        info.add_module(Range::new(field(0), field(8)), line)?;
    }
    // Version 0 ends here: without a memory map, which the caller finds missing.
    if word(4) >= 1 {
        let map = address.checked_add(40).and_then(|at| Some((memory.u64(at)?, memory.u32(at.checked_add(8)?)?)));
        let (map, count) = map.ok_or(bad("hvm_start_info cannot be read"))?;
        for entry in 0..BootInfo::map_entries(count.into()) {
            let at = map.checked_add(entry * 24).ok_or(bad("the memory map cannot be read"))?;
            let entry = memory.bytes(at, 24).ok_or(bad("the memory map cannot be read"))?;
            let field = |offset: usize| u64::from_le_bytes([0, 1, 2, 3, 4, 5, 6, 7].map(|byte| entry[offset + byte]));
            info.add_memory(field(0), field(8), field(16) as u32);
        }
    }
    if let Some(rsdp) = memory.bytes(quad(32), RSDP_BYTES).filter(|_| quad(32) != 0) {
        info.set_rsdp(rsdp);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    #[test]
    fn modules_map_command_line_and_root_pointer_arrive() {
        let mut bytes: Vec<u8> = Vec::new();
        let mut put = |values: &[u64]| bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        put(&[u64::from(PVH) | 1 << 32, 1 << 32, 0x1038, 0x1078, 0x1080, 0x1058, 1]);
        put(&[0x40_0000, 0x1234, 0x107C, 0]);
        put(&[0x10_0000, 0x70_0000, 1, 0]);
        bytes.extend(b"a=b\0m x\0");
        bytes.extend(b"RSD PTR ");
        bytes.resize(0x80 + 40, 7);
        let info = BootInfo::parse(PVH, 0x1000, &(0x1000, bytes.as_slice())).expect("well formed");
        assert_eq!(info.command_line(), "a=b");
        assert_eq!(info.modules().collect::<Vec<_>>(), [(Range::new(0x40_0000, 0x1234), "m x")]);
        assert_eq!(info.usable().as_slice(), [Range::new(0x10_0000, 0x70_0000)]);
        assert!(info.rsdp().is_some_and(|rsdp| rsdp.starts_with(b"RSD PTR ") && rsdp[35] == 7));
    }
}
