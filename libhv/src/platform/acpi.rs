//! ACPI tables of the machine: the few the host needs, read with their checksums (ACPI 6.5, chapter 5). Pure.

use crate::boot::physical::Physical;
use alloc::vec::Vec;

/// The longest table that is looked at.
const LONGEST: u32 = 1 << 20;
/// Bytes in a table's header (ACPI 6.5, 5.2.6).
const HEADER: usize = 36;

/// What the firmware's tables say.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Acpi {
    /// Interrupt controllers and processors.
    pub madt: Option<Madt>,
    /// Fixed hardware.
    pub fadt: Option<Fadt>,
    /// Memory-mapped PCI configuration space, from the MCFG.
    pub pci_segments: Vec<PciSegment>,
}

/// The Multiple APIC Description Table (ACPI 6.5, 5.2.12).
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Madt {
    /// The APIC identifiers of the processors that can be started.
    pub processors: Vec<u32>,
    /// The I/O APICs.
    pub io_apics: Vec<IoApic>,
    /// ISA interrupts that are not identity-mapped, edge-triggered and active high.
    pub overrides: Vec<Override>,
}

/// An I/O APIC.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IoApic {
    /// The physical address of its registers.
    pub address: u32,
    /// The global system interrupt of its first input.
    pub gsi_base: u32,
}

/// How an ISA interrupt is wired.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Override {
    /// The ISA interrupt.
    pub source: u8,
    /// Its global system interrupt.
    pub gsi: u32,
    /// Polarity.
    pub active_low: bool,
    /// Trigger mode.
    pub level: bool,
}

/// The Fixed ACPI Description Table, as far as the host uses it (ACPI 6.5, 5.2.9).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Fadt {
    /// The I/O port of the power-management timer.
    pub pm_timer: Option<u16>,
    /// The power-management timer has 32 bits, not 24.
    pub pm_timer_32: bool,
}

/// A PCI segment whose configuration space is memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PciSegment {
    /// The physical address of bus 0, whether the segment has it or not.
    pub base: u64,
    /// The segment's number.
    pub segment: u16,
    /// The first bus.
    pub first_bus: u8,
    /// The last bus.
    pub last_bus: u8,
}

impl Acpi {
    /// Reads the tables that the root pointer `rsdp` leads to. Tables that cannot be read, or whose checksum is wrong,
    /// are left out.
    pub fn read(rsdp: &[u8], memory: &impl Physical) -> Self {
        let mut acpi = Self::default();
        let Some((root, wide)) = root(rsdp) else { return acpi };
        let signature: &[u8] = if wide { b"XSDT" } else { b"RSDT" };
        let Some(list) = table(memory, root).filter(|list| list.starts_with(signature)) else { return acpi };
        for pointer in list[HEADER..].chunks_exact(if wide { 8 } else { 4 }) {
            let address = pointer.iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
            let Some(table) = table(memory, address) else { continue };
            match table.first_chunk() {
                Some(b"APIC") => acpi.madt = Some(madt(table)),
                Some(b"FACP") => acpi.fadt = Some(fadt(table)),
                Some(b"MCFG") => acpi.pci_segments = mcfg(table),
                _ => {}
            }
        }
        acpi
    }
}

/// Returns the root table's address and whether it is an XSDT.
fn root(rsdp: &[u8]) -> Option<(u64, bool)> {
    if !rsdp.starts_with(b"RSD PTR ") || sum(rsdp.get(..20)?) != 0 {
        return None;
    }
    let wide = rsdp[15] >= 2 && rsdp.get(..36).is_some_and(|rsdp| sum(rsdp) == 0);
    match quad(rsdp, 24).filter(|address| wide && *address != 0) {
        Some(xsdt) => Some((xsdt, true)),
        None => Some((word(rsdp, 16)?.into(), false)),
    }
}

/// Returns the table at `address`, header included, when its length and checksum are right.
fn table(memory: &impl Physical, address: u64) -> Option<&[u8]> {
    let length = memory.u32(address.checked_add(4)?)?;
    if address == 0 || length < HEADER as u32 || length > LONGEST {
        return None;
    }
    memory.bytes(address, length as usize).filter(|table| sum(table) == 0)
}

fn madt(table: &[u8]) -> Madt {
    let mut madt = Madt::default();
    let mut rest = table.get(HEADER + 8..).unwrap_or_default();
    while let [kind, length, ..] = *rest {
        let Some((entry, behind)) = rest.split_at_checked(usize::from(length)).filter(|_| length >= 2) else { break };
        rest = behind;
        // Flags of a processor: enabled, or can be enabled.
        let usable = |flags: Option<u32>| flags.is_some_and(|flags| flags & 3 != 0);
        match kind {
            0 if usable(word(entry, 4)) => madt.processors.push(entry[3].into()),
            9 if usable(word(entry, 8)) => madt.processors.extend(word(entry, 4)),
            1 => {
                let chip = word(entry, 4).zip(word(entry, 8));
                madt.io_apics.extend(chip.map(|(address, gsi_base)| IoApic { address, gsi_base }));
            }
            2 => {
                let flags = entry.get(8).copied().unwrap_or(0);
                let (active_low, level) = (flags & 3 == 3, flags >> 2 & 3 == 3);
                let line = word(entry, 4).map(|gsi| Override { source: entry[3], gsi, active_low, level });
                madt.overrides.extend(line);
            }
            _ => {}
        }
    }
    madt
}

fn fadt(table: &[u8]) -> Fadt {
    let old = word(table, 76).filter(|_| table.get(91) == Some(&4));
    // X_PM_TMR_BLK counts where it is in I/O space (address space 1).
    let new = quad(table, 212).filter(|address| table.get(208) == Some(&1) && *address != 0);
    let port = new.or(old.map(u64::from)).and_then(|port| u16::try_from(port).ok());
    Fadt {
        pm_timer: port.filter(|port| *port != 0),
        pm_timer_32: word(table, 112).is_some_and(|flags| flags >> 8 & 1 != 0),
    }
}

fn mcfg(table: &[u8]) -> Vec<PciSegment> {
    let entries = table.get(HEADER + 8..).unwrap_or_default().chunks_exact(16);
    let segments = entries.filter_map(|entry| {
        let segment = u16::from_le_bytes([entry[8], entry[9]]);
        Some(PciSegment { base: quad(entry, 0)?, segment, first_bus: entry[10], last_bus: entry[11] })
    });
    segments.collect()
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

fn word(bytes: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(offset..)?.first_chunk()?))
}

fn quad(bytes: &[u8], offset: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(offset..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Gives a table its length and checksum.
    fn sealed(signature: &[u8; 4], body: &[u8]) -> Vec<u8> {
        let mut table = signature.to_vec();
        table.extend(((HEADER + body.len()) as u32).to_le_bytes());
        table.resize(HEADER, 0);
        table.extend(body);
        table[9] = sum(&table).wrapping_neg();
        table
    }

    fn rsdp(root: u32) -> Vec<u8> {
        let mut rsdp = b"RSD PTR \0......\0".to_vec();
        rsdp.extend(root.to_le_bytes());
        rsdp[8] = sum(&rsdp).wrapping_neg();
        rsdp
    }

    /// A machine with these tables behind an RSDT at 0.
    fn machine(tables: &[Vec<u8>]) -> Vec<u8> {
        let mut at = 0x100u32;
        let mut pointers = Vec::new();
        for table in tables {
            pointers.extend(at.to_le_bytes());
            at += table.len() as u32;
        }
        let mut memory = std::vec![0; 0x10];
        memory.extend(sealed(b"RSDT", &pointers));
        memory.resize(0x100, 0);
        tables.iter().for_each(|table| memory.extend(table));
        memory
    }

    fn example() -> [Vec<u8>; 3] {
        let mut apic = std::vec![0; 8];
        apic.extend([0, 8, 0, 7, 1, 0, 0, 0, 0, 8, 0, 8, 0, 0, 0, 0]);
        apic.extend([1, 12, 0, 0, 0, 0, 0xC0, 0xFE, 0x10, 0, 0, 0]);
        apic.extend([2, 10, 0, 4, 20, 0, 0, 0, 0x0F, 0]);
        apic.extend([9, 16, 0, 0, 0, 1, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
        let mut fixed = std::vec![0; 92 - HEADER];
        fixed[76 - HEADER..][..2].copy_from_slice(&[0x08, 0x06]);
        fixed[91 - HEADER] = 4;
        let mut config = std::vec![0; 8];
        config.extend([0, 0, 0, 0xB0, 0, 0, 0, 0, 1, 0, 2, 255, 0, 0, 0, 0]);
        [sealed(b"APIC", &apic), sealed(b"FACP", &fixed), sealed(b"MCFG", &config)]
    }

    #[test]
    fn processors_chips_lines_timer_and_segments_are_found() {
        let memory = machine(&example());
        let acpi = Acpi::read(&rsdp(0x10), &(0, memory.as_slice()));
        let madt = acpi.madt.expect("an APIC table");
        assert_eq!(madt.processors, [7, 0x100]);
        assert_eq!(madt.io_apics, [IoApic { address: 0xFEC0_0000, gsi_base: 16 }]);
        assert_eq!(madt.overrides, [Override { source: 4, gsi: 20, active_low: true, level: true }]);
        assert_eq!(acpi.fadt, Some(Fadt { pm_timer: Some(0x608), pm_timer_32: false }));
        assert_eq!(acpi.pci_segments, [PciSegment { base: 0xB000_0000, segment: 1, first_bus: 2, last_bus: 255 }]);
    }

    #[test]
    fn a_table_with_a_wrong_checksum_is_left_out_and_the_others_are_not() {
        let mut tables = example();
        tables[0][40] ^= 1;
        let memory = machine(&tables);
        let acpi = Acpi::read(&rsdp(0x10), &(0, memory.as_slice()));
        assert!(acpi.madt.is_none() && acpi.fadt.is_some() && acpi.pci_segments.len() == 1);
    }

    proptest! {
        #[test]
        fn broken_tables_never_make_it_panic(changes in proptest::collection::vec((0usize..0x200, any::<u8>()), 0..20), seal: bool) {
            let mut memory = machine(&example());
            for (at, value) in changes {
                if let Some(byte) = memory.get_mut(at) { *byte = value; }
            }
            // With the checksums mended, more of the parsers is reached.
            let mut at = 0x100;
            while let Some(length) = word(&memory, at + 4).map(|length| length as usize).filter(|_| seal) {
                let Some(table) = memory.get_mut(at..at.saturating_add(length.max(HEADER))) else { break };
                table[9] = table[9].wrapping_sub(sum(table));
                at += length.max(HEADER);
            }
            let _ = Acpi::read(&rsdp(0x10), &(0, memory.as_slice()));
        }
    }
}
