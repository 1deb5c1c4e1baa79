//! The appliance's own devices: what they claim, how they are reached, and what they ask for.

use super::pci::{self, Claim, Pci};
use crate::address::Gpa;
use crate::exit::{StopReason, Width};
use crate::time::Tsc;
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;
use core::ops::RangeInclusive;

/// A message-signalled interrupt: the write of `data` to `address` (SDM Vol. 3A 11.11).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Message {
    /// In 0xFEE00000-0xFEEFFFFF.
    pub address: u64,
    /// Vector, delivery mode and trigger.
    pub data: u32,
}

/// A device of the appliance's own. It has the ports and the memory it claims to itself.
///
/// ```
/// use libhv::devices::bus::Device;
/// use libhv::exit::Width;
/// use libhv::time::Tsc;
/// use std::ops::RangeInclusive;
///
/// /// Counts what is written to port 510H, and tells it.
/// struct Counter(u32);
/// impl Device for Counter {
///     fn ports(&self) -> &[RangeInclusive<u16>] {
///         &[0x510..=0x510]
///     }
///     fn port_read(&mut self, _port: u16, _width: Width, _now: Tsc) -> u32 {
///         self.0
///     }
///     fn port_write(&mut self, _port: u16, _width: Width, _value: u32, _now: Tsc) {
///         self.0 += 1;
///     }
/// }
/// ```
pub trait Device: Send {
    /// Returns the ports it claims. Asked once, when it is added.
    fn ports(&self) -> &[RangeInclusive<u16>] {
        &[]
    }
    /// Returns the guest-physical addresses it claims. Asked once, when it is added.
    fn memory(&self) -> &[RangeInclusive<u64>] {
        &[]
    }
    /// Returns the interrupt line it drives: a pin of the IOAPIC, below 16 a line of the PICs too. Several devices may
    /// drive one. Asked once, when it is added.
    fn interrupt_line(&self) -> Option<u8> {
        None
    }
    /// Reads `width` (32 bits at most) at `port`, the first of its ports that is accessed.
    fn port_read(&mut self, port: u16, width: Width, now: Tsc) -> u32 {
        let _ = (port, now);
        width.mask() as u32
    }
    /// Writes `width` (32 bits at most) at `port`, the first of its ports that is accessed.
    fn port_write(&mut self, port: u16, width: Width, value: u32, now: Tsc) {
        let _ = (port, width, value, now);
    }
    /// Reads `width` at `address`, the first of its addresses that is accessed.
    fn memory_read(&mut self, address: Gpa, width: Width, now: Tsc) -> u64 {
        let _ = (address, now);
        width.mask()
    }
    /// Writes `width` at `address`, the first of its addresses that is accessed.
    fn memory_write(&mut self, address: Gpa, width: Width, value: u64, now: Tsc) {
        let _ = (address, width, value, now);
    }
    /// Reads `width` at `offset` of base address register `bar`; asked of PCI functions only.
    fn bar_read(&mut self, bar: usize, offset: u64, width: Width, now: Tsc) -> u64 {
        let _ = (bar, offset, now);
        width.mask()
    }
    /// Writes `width` at `offset` of base address register `bar`; asked of PCI functions only.
    fn bar_write(&mut self, bar: usize, offset: u64, width: Width, value: u64, now: Tsc) {
        let _ = (bar, offset, width, value, now);
    }
    /// Lets time pass; called at the [`deadline`](Self::deadline) at the latest, and perhaps sooner.
    fn advance(&mut self, now: Tsc) {
        let _ = now;
    }
    /// Returns when it wants to be told the time. Asked after every access and every [`advance`](Self::advance).
    fn deadline(&self) -> Option<Tsc> {
        None
    }
    /// Returns the level of its interrupt line. Asked when `deadline` is.
    fn interrupting(&self) -> bool {
        false
    }
    /// Returns the next message-signalled interrupt it sends. Asked until `None` when `deadline` is.
    fn take_message(&mut self) -> Option<Message> {
        None
    }
    /// Returns how the guest ends, if it has decided so. Asked when `deadline` is.
    fn take_stop(&mut self) -> Option<StopReason> {
        None
    }
}

/// Why a device cannot be added.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Conflict {
    /// A port it claims, here the first of the range, is taken in whole or in part.
    Port(u16),
    /// Memory it claims, here the first address of the range, is taken in whole or in part.
    Memory(u64),
    /// The interrupt line does not exist, or belongs to the chipset alone.
    Line(u8),
    /// The PCI bus has no device number left, or no room for a base address register.
    PciFull,
}

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Port(port) => write!(f, "the ports from {port:#x} on are taken"),
            Self::Memory(address) => write!(f, "the memory from {address:#x} on is taken"),
            Self::PciFull => f.write_str("the PCI bus has no room for another function"),
            Self::Line(line) => write!(f, "interrupt line {line} is not for devices of the appliance"),
        }
    }
}

impl core::error::Error for Conflict {}

struct Attached {
    device: Box<dyn Device>,
    ports: Vec<RangeInclusive<u16>>,
    memory: Vec<RangeInclusive<u64>>,
    line: Option<u8>,
    /// The device number on PCI bus 0, if it is a PCI function.
    pci: Option<u8>,
}

/// The devices that were added, each found by what it claims.
#[derive(Default)]
pub(super) struct Bus {
    attached: Vec<Attached>,
}

fn overlap<T: PartialOrd>(a: &RangeInclusive<T>, b: &RangeInclusive<T>) -> bool {
    a.start() <= b.end() && b.start() <= a.end()
}

impl Bus {
    /// Adds a device that claims nothing another one has, nor anything of `ports` and `memory`.
    pub(super) fn add(
        &mut self,
        device: Box<dyn Device>,
        ports: &[RangeInclusive<u16>],
        memory: &[RangeInclusive<u64>],
    ) -> Result<(), Conflict> {
        let taken = self.attached.iter().flat_map(|other| &other.ports).chain(ports);
        for port in device.ports() {
            if port.is_empty() || taken.clone().any(|other| overlap(port, other)) {
                return Err(Conflict::Port(*port.start()));
            }
        }
        let taken = self.attached.iter().flat_map(|other| &other.memory).chain(memory);
        for range in device.memory() {
            if range.is_empty() || taken.clone().any(|other| overlap(range, other)) {
                return Err(Conflict::Memory(*range.start()));
            }
        }
        let (ports, memory, line) = (device.ports().to_vec(), device.memory().to_vec(), device.interrupt_line());
        self.attached.push(Attached { device, ports, memory, line, pci: None });
        Ok(())
    }

    /// Adds a function of PCI bus 0 by its device number.
    pub(super) fn add_function(&mut self, device: Box<dyn Device>, number: u8) {
        let line = Some(pci::interrupt_line(number));
        self.attached.push(Attached { device, ports: Vec::new(), memory: Vec::new(), line, pci: Some(number) });
    }

    /// Returns the PCI function with a base address register for which `offset` has an answer: the device, the
    /// register's number, and the offset.
    pub(super) fn at_bar(
        &mut self,
        pci: &Pci,
        offset: impl Fn(Claim) -> Option<u64>,
    ) -> Option<(&mut dyn Device, usize, u64)> {
        self.attached.iter_mut().find_map(|one| {
            let function = pci.function(one.pci?)?;
            let (bar, offset) = (0..pci::BARS).find_map(|bar| Some((bar, offset(function.claim(bar)?)?)))?;
            Some((&mut *one.device as &mut dyn Device, bar, offset))
        })
    }

    /// Returns whether no device was added.
    pub(super) fn is_empty(&self) -> bool {
        self.attached.is_empty()
    }

    /// Returns the device at a port.
    pub(super) fn at_port(&mut self, port: u16) -> Option<&mut dyn Device> {
        let attached = self.attached.iter_mut().find(|one| one.ports.iter().any(|range| range.contains(&port)))?;
        Some(&mut *attached.device)
    }

    /// Returns the device at an address.
    pub(super) fn at_address(&mut self, address: Gpa) -> Option<&mut dyn Device> {
        let address = address.as_u64();
        let attached = self.attached.iter_mut().find(|one| one.memory.iter().any(|range| range.contains(&address)))?;
        Some(&mut *attached.device)
    }

    /// Returns whether a device claims an address.
    pub(super) fn claims(&self, address: Gpa) -> bool {
        self.attached.iter().any(|one| one.memory.iter().any(|range| range.contains(&address.as_u64())))
    }

    /// Returns whether a PCI function has an address.
    pub(super) fn in_bar(&self, pci: &Pci, address: Gpa) -> bool {
        let functions = self.attached.iter().filter_map(|one| pci.function(one.pci?));
        functions
            .flat_map(|function| (0..pci::BARS).filter_map(|bar| function.claim(bar)))
            .any(|claim| claim.address(address.as_u64()).is_some())
    }

    /// Returns the devices.
    pub(super) fn devices(&mut self) -> impl Iterator<Item = &mut Box<dyn Device>> {
        self.attached.iter_mut().map(|one| &mut one.device)
    }

    /// Returns the earliest deadline.
    pub(super) fn deadline(&self) -> Option<Tsc> {
        self.attached.iter().filter_map(|one| one.device.deadline()).min()
    }

    /// Returns the lines that devices drive, and of these the ones that are high: a bit each.
    pub(super) fn lines(&self) -> (u32, u32) {
        self.attached.iter().filter_map(|one| Some((one.line?, one.device.interrupting()))).fold(
            (0, 0),
            |(driven, high), (line, level)| {
                let bit = 1u32.checked_shl(line.into()).unwrap_or(0);
                (driven | bit, if level { high | bit } else { high })
            },
        )
    }
}

impl fmt::Debug for Bus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.attached.iter().map(|one| (&one.ports, &one.memory, one.line))).finish()
    }
}
