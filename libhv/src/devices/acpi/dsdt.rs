//! The DSDT: what a guest cannot find by itself.

use crate::devices::chipset::Configuration;
use crate::devices::{debug_exit, pci, pic, pit, pm, rtc, uart};
use acpi_tables::Aml;
use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Device, EISAName, IO, Interrupt, Name, Package, PackageBuilder,
    ResourceTemplate, Scope,
};
use alloc::boxed::Box;
use alloc::vec::Vec;

type Resources = Vec<Box<dyn Aml>>;

fn ports(first: u16, length: u8) -> Box<dyn Aml> {
    Box::new(IO::new(first, first, 1, length))
}

/// An ISA interrupt: rising edge, not shared.
fn edge(line: u8) -> Box<dyn Aml> {
    Box::new(Interrupt::new(true, true, false, false, line.into()))
}

/// Appends a device of the system bus with its identifier, its number among those of the same kind, and its resources.
fn device(block: &mut Vec<u8>, name: &str, id: &str, uid: u8, resources: Resources) {
    let resources = ResourceTemplate::new(resources.iter().map(|resource| &**resource as &dyn Aml).collect());
    Device::new(
        name.into(),
        alloc::vec![
            &Name::new("_HID".into(), &EISAName::new(id)),
            &Name::new("_UID".into(), &uid),
            // Present, enabled, shown, working.
            &Name::new("_STA".into(), &0x0Fu8),
            &Name::new("_CRS".into(), &resources),
        ],
    )
    .to_aml_bytes(block);
}

/// The PCI root with its windows, and the line of each device's INTA.
fn pci_root(block: &mut Vec<u8>, configuration: &Configuration) {
    let mut windows: Resources = alloc::vec![
        Box::new(AddressSpace::<u16>::new_bus_number(0, 0)),
        ports(pci::ADDRESS, 8),
        Box::new(AddressSpace::<u16>::new_io(0, pci::ADDRESS - 1, None)),
        Box::new(AddressSpace::<u16>::new_io(pci::DATA + 4, 0xFFFF, None)),
    ];
    if let Some(window) = pci::memory_window(configuration.memory_below_4g) {
        let (first, last) = (*window.start(), *window.end());
        windows.push(Box::new(AddressSpace::<u32>::new_memory(
            AddressSpaceCacheable::NotCacheable,
            true,
            first,
            last,
            None,
        )));
    }
    let windows = ResourceTemplate::new(windows.iter().map(|window| &**window as &dyn Aml).collect());
    let mut routing = PackageBuilder::new();
    for number in 1..pci::DEVICES {
        let address = u32::from(number) << 16 | 0xFFFF;
        let line = pci::interrupt_line(number);
        routing.add_element(&Package::new(alloc::vec![&address, &0u8, &0u8, &line]));
    }
    Device::new(
        "PCI0".into(),
        alloc::vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0A03")),
            &Name::new("_UID".into(), &0u8),
            &Name::new("_BBN".into(), &0u8),
            &Name::new("_CRS".into(), &windows),
            &Name::new("_PRT".into(), &routing),
        ],
    )
    .to_aml_bytes(block);
}

/// Returns the AML after the table's header.
pub(super) fn definition_block(configuration: &Configuration) -> Vec<u8> {
    let mut devices = Vec::new();
    pci_root(&mut devices, configuration);
    device(&mut devices, "PIC_", "PNP0000", 0, alloc::vec![ports(pic::FIRST, 2), ports(pic::SECOND, 2)]);
    device(&mut devices, "TMR_", "PNP0100", 0, alloc::vec![ports(0x40, 4), edge(pit::LINE)]);
    device(&mut devices, "RTC_", "PNP0B00", 0, alloc::vec![ports(rtc::INDEX, 2), edge(rtc::LINE)]);
    device(&mut devices, "COM1", "PNP0501", 1, alloc::vec![ports(uart::COM1, 8), edge(uart::COM1_LINE)]);
    let motherboard =
        [(0x61, 1), (0x92, 1), (0x4D0, 2), (debug_exit::PORT, 4), (pm::EVENT_BLOCK, (pm::END - pm::EVENT_BLOCK) as u8)];
    let motherboard = motherboard.into_iter().map(|(first, length)| ports(first, length)).collect();
    device(&mut devices, "MB__", "PNP0C02", 0, motherboard);

    let mut block = Scope::raw("\\_SB_".into(), devices);
    let s5 = Package::new(alloc::vec![&pm::S5, &pm::S5, &0u8, &0u8]);
    Name::new("\\_S5_".into(), &s5).to_aml_bytes(&mut block);
    block
}
