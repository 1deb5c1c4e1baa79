//! The PCI functions of the machine, through configuration mechanism #1.
#![expect(unsafe_code, reason = "reads PCI configuration space through ports")]

use alloc::vec::Vec;
use hermit_sync::SpinMutex;
use pci_types::{ConfigRegionAccess, HeaderType, PciAddress, PciHeader, PciPciBridgeHeader};
use x86_64::instructions::port::Port;

/// The two ports are one register: an address, and then the data.
static PORTS: SpinMutex<()> = SpinMutex::new(());

/// PCI segment 0's configuration space, 256 bytes a function, through ports CF8H and CFCH.
#[derive(Clone, Copy, Debug)]
pub struct ConfigurationPorts;

fn select(address: PciAddress, offset: u16) {
    let place = u32::from(address.bus()) << 16 | u32::from(address.device()) << 11 | u32::from(address.function()) << 8;
    // SAFETY: the port belongs to the host bridge, and choosing an address does nothing yet.
    unsafe { Port::<u32>::new(0xCF8).write(1 << 31 | place | u32::from(offset & 0xFC)) };
}

impl ConfigRegionAccess for ConfigurationPorts {
    unsafe fn read(&self, address: PciAddress, offset: u16) -> u32 {
        let _alone = PORTS.lock();
        select(address, offset);
        // SAFETY: the caller vouches for the register (`ConfigRegionAccess::read`).
        unsafe { Port::new(0xCFC).read() }
    }

    unsafe fn write(&self, address: PciAddress, offset: u16, value: u32) {
        let _alone = PORTS.lock();
        select(address, offset);
        // SAFETY: the caller vouches for the register and the value (`ConfigRegionAccess::write`).
        unsafe { Port::new(0xCFC).write(value) };
    }
}

/// A PCI function.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Function {
    /// Bus, device and function.
    pub address: PciAddress,
    /// Who made it.
    pub vendor: u16,
    /// What it is, by its maker's numbers.
    pub device: u16,
    /// The base class.
    pub class: u8,
    /// The sub-class.
    pub subclass: u8,
    /// The programming interface.
    pub interface: u8,
}

/// Returns all functions of segment 0 that can be reached from bus 0 through bridges.
pub fn functions(access: impl ConfigRegionAccess + Copy) -> Vec<Function> {
    let mut found = Vec::new();
    let mut buses = [false; 256];
    buses[0] = true;
    // Bridges lead to higher buses, so that one pass sees all; a bridge that leads back is not followed.
    for bus in 0..=255 {
        if !buses[usize::from(bus)] {
            continue;
        }
        for device in 0..32 {
            let first = PciHeader::new(PciAddress::new(0, bus, device, 0));
            let last = if first.id(access).0 == 0xFFFF {
                continue;
            } else if first.has_multiple_functions(access) {
                7
            } else {
                0
            };
            for function in 0..=last {
                let header = PciHeader::new(PciAddress::new(0, bus, device, function));
                let (vendor, id) = header.id(access);
                if vendor == 0xFFFF {
                    continue;
                }
                let (_, class, subclass, interface) = header.revision_and_class(access);
                found.push(Function { address: header.address(), vendor, device: id, class, subclass, interface });
                if header.header_type(access) == HeaderType::PciPciBridge {
                    let bridge = PciPciBridgeHeader::from_header(header, access);
                    let behind = bridge.map_or(0, |bridge| bridge.secondary_bus_number(access));
                    buses[usize::from(behind)] |= behind > bus;
                }
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    /// Configuration space as (bus, device, function, offset) to its words; all ones where there is nothing.
    #[derive(Clone, Copy)]
    struct Space<'s>(&'s BTreeMap<(u8, u8, u8, u16), u32>);

    impl ConfigRegionAccess for Space<'_> {
        unsafe fn read(&self, address: PciAddress, offset: u16) -> u32 {
            let place = (address.bus(), address.device(), address.function());
            if !self.0.contains_key(&(place.0, place.1, place.2, 0)) {
                return u32::MAX;
            }
            self.0.get(&(place.0, place.1, place.2, offset)).copied().unwrap_or(0)
        }
        unsafe fn write(&self, _address: PciAddress, _offset: u16, _value: u32) {
            panic!("listing writes nothing");
        }
    }

    #[test]
    fn functions_behind_bridges_are_found_and_loops_end() {
        let space = BTreeMap::from([
            ((0, 0, 0, 0), 0x1237_8086),
            ((0, 0, 0, 8), 0x0600_0000),
            // A device of two functions, of which the second is missing and the third is there.
            ((0, 3, 0, 0), 0x0001_1AF4),
            ((0, 3, 0, 12), 0x0080_0000),
            ((0, 3, 2, 0), 0x0002_1AF4),
            // One function only: a second is not looked for.
            ((0, 4, 0, 0), 0x0003_1AF4),
            ((0, 4, 1, 0), 0x0004_1AF4),
            // A bridge to bus 7, and there one that leads back.
            ((0, 5, 0, 0), 0x0005_1AF4),
            ((0, 5, 0, 12), 0x0001_0000),
            ((0, 5, 0, 24), 0x0007_0700),
            ((7, 0, 0, 0), 0x0006_1AF4),
            ((7, 0, 0, 12), 0x0001_0000),
            ((7, 0, 0, 24), 0x0000_0007),
        ]);
        let found: Vec<_> = functions(Space(&space)).iter().map(|function| function.device).collect();
        assert_eq!(found, [0x1237, 1, 2, 3, 5, 6]);
    }
}
