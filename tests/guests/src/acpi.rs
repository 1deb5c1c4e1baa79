//! The ACPI tables: where IRQ 0 goes, and how to power off.

use crate::cpu::{in16, out16};
use core::ptr::with_exposed_provenance;

unsafe fn bytes(address: u64, length: usize) -> &'static [u8] {
    core::slice::from_raw_parts(with_exposed_provenance(address as usize), length)
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

fn dword(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes)
}

fn qword(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes)
}

/// Finds the RSDP: in the first KiB of the extended BIOS data area, or in E_0000H to F_FFFFH (ACPI 6.5, 5.2.5.1).
pub unsafe fn rsdp() -> Option<&'static [u8]> {
    let area = u64::from(with_exposed_provenance::<u16>(0x40e).read_volatile()) << 4;
    let ebda = (0x400..0xa_0000).contains(&area).then_some((area, 1024)).into_iter();
    ebda.chain([(0xe_0000, 0x2_0000)]).find_map(|(start, length)| {
        let place = (start..start + length).step_by(16).find(|at| {
            let found = bytes(*at, 20);
            found.starts_with(b"RSD PTR ") && sum(found) == 0
        })?;
        Some(bytes(place, 36))
    })
}

/// Finds a table by its signature, through the XSDT where there is one, and checks its sum.
pub unsafe fn table(signature: &[u8; 4]) -> Option<&'static [u8]> {
    let root = rsdp()?;
    let xsdt = if root[15] >= 2 { qword(root, 24)? } else { 0 };
    let (list, width) = if xsdt != 0 { (xsdt, 8) } else { (u64::from(dword(root, 16)?), 4) };
    let list = whole(list)?;
    list.get(36..)?.chunks_exact(width).find_map(|pointer| {
        let address = if width == 8 { qword(pointer, 0)? } else { u64::from(dword(pointer, 0)?) };
        whole(address).filter(|found| found.starts_with(signature))
    })
}

unsafe fn whole(address: u64) -> Option<&'static [u8]> {
    let length = dword(bytes(address, 36), 4)? as usize;
    let table = bytes(address, length);
    (length >= 36 && sum(table) == 0).then_some(table)
}

/// Returns the I/O APIC pin of an ISA interrupt, by the MADT's source overrides.
pub unsafe fn pin_of(irq: u8) -> u32 {
    let find = || {
        let mut rest = table(b"APIC")?.get(44..)?;
        while let [kind, length, ..] = *rest {
            let entry = rest.get(..usize::from(length)).filter(|entry| entry.len() >= 2)?;
            if kind == 2 && *entry.get(3)? == irq {
                return dword(entry, 4);
            }
            rest = &rest[entry.len()..];
        }
        None
    };
    find().unwrap_or(u32::from(irq))
}

/// Returns the port of PM1a_CNT and the SLP_TYP values of the DSDT's \_S5 package.
pub unsafe fn soft_off() -> Option<(u16, u16)> {
    let fadt = table(b"FACP")?;
    let dsdt = whole(u64::from(dword(fadt, 40)?))?;
    let at = dsdt.windows(5).position(|found| found == b"_S5_\x12")?;
    // PackageOp, PkgLength of one byte or more, element count, then a ByteConst, ZeroOp or OneOp.
    let package = dsdt.get(at + 5..)?;
    let elements = package.get(usize::from(*package.first()? >> 6) + 2..)?;
    let kind = match *elements.first()? {
        0x0a => *elements.get(1)?,
        small => small,
    };
    Some((dword(fadt, 64)? as u16, u16::from(kind & 7)))
}

/// Powers the machine off; returns only if that did not work.
pub unsafe fn power_off() {
    let Some((port, kind)) = soft_off() else { return };
    out16(port, in16(port) & !(7 << 10) | kind << 10 | 1 << 13);
    for _ in 0..1_000_000 {
        core::hint::spin_loop();
    }
}
