//! The ACPI tables that describe the chipset to the guest (ACPI 6.5): values in, bytes and their addresses out.
//!
//! They lie from [`ADDRESS`] on, in the area below 1 MiB that PCs keep for firmware and memory maps call reserved; the
//! RSDP comes first.

mod dsdt;

use super::chipset::{Configuration, IOAPIC, IOAPIC_ID, LOCAL_APICS};
use super::{pit, pm, rtc};
use crate::address::Gpa;
use acpi_tables::Aml;
use acpi_tables::facs::FACS;
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use alloc::vec::Vec;

/// The guest-physical address of the RSDP.
pub const ADDRESS: u64 = 0xE_0000;
/// The first guest-physical address that no table reaches.
pub const END: u64 = 0x10_0000;

const OEM_ID: [u8; 6] = *b"LIBHV ";
const OEM_TABLE_ID: [u8; 8] = *b"LIBHVPC ";
const OEM_REVISION: u32 = 1;
const ALIGNMENT: u64 = 64;

/// Boot architecture flags: there are legacy devices; there is no VGA.
const LEGACY_DEVICES: u16 = 1 << 0;
const NO_VGA: u16 = 1 << 2;

/// Every table with its address.
#[derive(Clone, Debug)]
pub struct Tables {
    /// The address of the root system description pointer: boot protocols hand it over.
    pub rsdp: Gpa,
    /// What is to be written to guest memory, and where.
    pub parts: Vec<(Gpa, Vec<u8>)>,
}

/// Makes the tables of a guest with this configuration.
pub fn tables(configuration: &Configuration) -> Tables {
    let mut parts = Vec::new();
    let mut free = ADDRESS + ALIGNMENT;
    let mut place = |bytes: Vec<u8>| {
        let address = free;
        free = (free + bytes.len() as u64).next_multiple_of(ALIGNMENT);
        parts.push((Gpa::new(address), bytes));
        address
    };
    let facs = place(bytes(&FACS::new()));
    let dsdt = place(table(b"DSDT", 2, &dsdt::definition_block(configuration)));
    let fadt = place(fadt(facs, dsdt));
    let madt = place(table(b"APIC", 5, &madt_body(configuration.processors())));
    let addresses = [fadt, madt];
    let xsdt = place(table(b"XSDT", 1, &addresses.map(u64::to_le_bytes).concat()));
    // All addresses are below `END`.
    let rsdt = place(table(b"RSDT", 1, &addresses.map(|address| (address as u32).to_le_bytes()).concat()));
    let rsdp = Gpa::new(ADDRESS);
    parts.push((rsdp, root_pointer(rsdt as u32, xsdt)));
    Tables { rsdp, parts }
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

/// Returns what makes the sum of `bytes` 0.
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0u8, |sum, byte| sum.wrapping_sub(*byte))
}

/// Puts a system description header before `body` (ACPI 6.5 §5.2.6).
fn table(signature: &[u8; 4], revision: u8, body: &[u8]) -> Vec<u8> {
    let length = 36 + body.len() as u32;
    let mut table = Vec::with_capacity(length as usize);
    table.extend(signature);
    table.extend(length.to_le_bytes());
    table.extend([revision, 0]);
    table.extend(OEM_ID);
    table.extend(OEM_TABLE_ID);
    table.extend(OEM_REVISION.to_le_bytes());
    table.extend(b"LHV ");
    table.extend(1u32.to_le_bytes());
    table.extend(body);
    table[9] = checksum(&table);
    table
}

/// The RSDP (ACPI 6.5 §5.2.5.3).
fn root_pointer(rsdt: u32, xsdt: u64) -> Vec<u8> {
    let mut pointer = Vec::with_capacity(36);
    pointer.extend(b"RSD PTR \0");
    pointer.extend(OEM_ID);
    pointer.push(2);
    pointer.extend(rsdt.to_le_bytes());
    pointer[8] = checksum(&pointer);
    pointer.extend(36u32.to_le_bytes());
    pointer.extend(xsdt.to_le_bytes());
    pointer.extend([0; 4]);
    pointer[32] = checksum(&pointer);
    pointer
}

/// The FADT (ACPI 6.5 §5.2.9): both the 32-bit and the 64-bit fields, for guests that read only one kind.
fn fadt(facs: u64, dsdt: u64) -> Vec<u8> {
    let port = |port: u16, bits: u8, access| GAS::new(AddressSpace::SystemIo, bits, 0, access, port.into());
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .flag(Flags::Wbinvd)
        .flag(Flags::ProcC1)
        .flag(Flags::SlpButton)
        .flag(Flags::FixRtc)
        .flag(Flags::TmrValExt)
        .flag(Flags::ResetRegSup);
    fadt.firmware_ctrl = (facs as u32).into();
    fadt.x_firmware_ctrl = facs.into();
    fadt.dsdt = (dsdt as u32).into();
    fadt.x_dsdt = dsdt.into();
    fadt.sci_int = u16::from(pm::LINE).into();
    fadt.pm1a_evt_blk = u32::from(pm::EVENT_BLOCK).into();
    fadt.pm1a_cnt_blk = u32::from(pm::CONTROL_BLOCK).into();
    fadt.pm_tmr_blk = u32::from(pm::TIMER_BLOCK).into();
    (fadt.pm1_evt_len, fadt.pm1_cnt_len, fadt.pm_tmr_len) = (4, 2, 4);
    fadt.x_pm1a_evt_blk = port(pm::EVENT_BLOCK, 32, AccessSize::WordAccess);
    fadt.x_pm1a_cnt_blk = port(pm::CONTROL_BLOCK, 16, AccessSize::WordAccess);
    fadt.x_pm_tmr_blk = port(pm::TIMER_BLOCK, 32, AccessSize::DwordAccess);
    // Above 100 and 1000 microseconds: there is no C2 and no C3.
    fadt.p_lvl2_lat = 101.into();
    fadt.p_lvl3_lat = 1001.into();
    fadt.century = rtc::CENTURY;
    fadt.iapc_boot_arch = (LEGACY_DEVICES | NO_VGA).into();
    fadt.reset_reg = port(pm::RESET, 8, AccessSize::ByteAccess);
    fadt.reset_value = pm::RESET_VALUE;
    bytes(&fadt.finalize())
}

/// The MADT after its header (ACPI 6.5 §5.2.12): processors, the IOAPIC, the lines that are not what ISA has, NMIs.
fn madt_body(processors: u32) -> Vec<u8> {
    const PICS_PRESENT: u32 = 1;
    const ENABLED: u32 = 1;
    /// Active high, level-triggered.
    const LEVEL: u16 = 0b1101;
    let mut body = Vec::new();
    body.extend((*LOCAL_APICS.start() as u32).to_le_bytes());
    body.extend(PICS_PRESENT.to_le_bytes());
    for id in 0..processors {
        match u8::try_from(id) {
            Ok(id @ 0..=254) => {
                body.extend([0, 8, id, id]);
                body.extend(ENABLED.to_le_bytes());
            }
            _ => {
                body.extend([9, 16, 0, 0]);
                body.extend([id, ENABLED, id].map(u32::to_le_bytes).concat());
            }
        }
    }
    body.extend([1, 12, IOAPIC_ID, 0]);
    body.extend([IOAPIC as u32, 0].map(u32::to_le_bytes).concat());
    for (line, pin, flags) in [(pit::LINE, 2, 0), (pm::LINE, pm::LINE, LEVEL)] {
        body.extend([2, 10, 0, line]);
        body.extend(u32::from(pin).to_le_bytes());
        body.extend(flags.to_le_bytes());
    }
    // LINT1 of every processor.
    body.extend([4, 6, 0xFF, 0, 0, 1]);
    if processors > 255 {
        body.extend([0xA, 12, 0, 0]);
        body.extend(u32::MAX.to_le_bytes());
        body.extend([1, 0, 0, 0]);
    }
    body
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::Frequency;
    use proptest::prelude::*;

    fn configuration(processors: usize, memory_below_4g: u64) -> Configuration {
        Configuration { processors, memory_below_4g, ..Configuration::new(Frequency::from_hz(1)) }
    }

    /// The firmware area as a guest reads it.
    fn area(configuration: &Configuration) -> Vec<u8> {
        let mut area = alloc::vec![0; (END - ADDRESS) as usize];
        for (address, bytes) in tables(configuration).parts {
            let start = (address.as_u64() - ADDRESS) as usize;
            let part = &mut area[start..start + bytes.len()];
            assert!(part.iter().all(|byte| *byte == 0), "two tables at {address}");
            part.copy_from_slice(&bytes);
        }
        area
    }

    fn number(bytes: &[u8], at: usize, length: usize) -> u64 {
        bytes[at..at + length].iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
    }

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    /// Follows an address to a table whose length and checksum are right.
    fn follow(area: &[u8], address: u64) -> &[u8] {
        let bytes = &area[(address - ADDRESS) as usize..];
        let table = &bytes[..number(bytes, 4, 4) as usize];
        assert_eq!(sum(table), 0, "checksum of {:?}", &table[..4]);
        table
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn a_guest_finds_every_table_by_both_roots(processors in 1usize..1100, memory in 0u64..1 << 32) {
            let area = area(&configuration(processors, memory));
            prop_assert_eq!(&area[..8], b"RSD PTR ");
            prop_assert_eq!((sum(&area[..20]), sum(&area[..36])), (0, 0));
            let rsdt = follow(&area, number(&area, 16, 4));
            let xsdt = follow(&area, number(&area, 24, 8));
            prop_assert_eq!((&rsdt[..4], &xsdt[..4]), (&b"RSDT"[..], &b"XSDT"[..]));
            let by_xsdt: Vec<u64> = xsdt[36..].chunks(8).map(|entry| number(entry, 0, 8)).collect();
            let by_rsdt: Vec<u64> = rsdt[36..].chunks(4).map(|entry| number(entry, 0, 4)).collect();
            prop_assert_eq!(&by_xsdt, &by_rsdt);
            let fadt = follow(&area, by_xsdt[0]);
            prop_assert_eq!(&fadt[..4], b"FACP");
            prop_assert_eq!(number(fadt, 40, 4), number(fadt, 140, 8));
            prop_assert_eq!(&follow(&area, number(fadt, 140, 8))[..4], b"DSDT");
            let facs = (number(fadt, 132, 8) - ADDRESS) as usize;
            prop_assert_eq!(&area[facs..facs + 4], b"FACS");
            prop_assert_eq!(number(fadt, 132, 8) % 64, 0);

            let madt = follow(&area, by_xsdt[1]);
            let (mut rest, mut ids, mut kinds) = (&madt[44..], Vec::new(), Vec::new());
            while let [kind, length, ..] = *rest {
                match kind {
                    0 => ids.push(rest[3].into()),
                    9 => ids.push(number(rest, 4, 4)),
                    _ => kinds.push(kind),
                }
                rest = &rest[length.into()..];
            }
            prop_assert_eq!(ids, (0..processors.min(1024) as u64).collect::<Vec<_>>());
            prop_assert!(kinds.starts_with(&[1, 2, 2, 4]));
        }
    }

    #[test]
    fn fixed_hardware_is_where_the_ports_are() {
        let area = area(&configuration(1, 1 << 28));
        let xsdt = follow(&area, number(&area, 24, 8));
        let fadt = follow(&area, number(xsdt, 36, 8));
        assert_eq!((number(fadt, 56, 4), number(fadt, 64, 4), number(fadt, 76, 4)), (0x600, 0x604, 0x608));
        assert_eq!((number(fadt, 152, 8), number(fadt, 176, 8), number(fadt, 212, 8)), (0x600, 0x604, 0x608));
        assert_eq!((number(fadt, 46, 2), number(fadt, 108, 1)), (9, 0x32));
        assert_eq!((number(fadt, 116, 1), number(fadt, 120, 8), number(fadt, 128, 1)), (1, 0xCF9, 6));
        assert_eq!(number(fadt, 112, 4) & (1 << 8 | 1 << 10 | 1 << 4 | 1 << 20), 1 << 8 | 1 << 10);
    }
}
