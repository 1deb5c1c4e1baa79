//! Which device has which port: one match, then the appliance's own devices.

use super::Chipset;
use crate::devices::{debug_exit, i8042, pci, pit, pm, rtc, uart};
use crate::exit::{StopReason, Width};
use crate::time::Tsc;
use core::ops::RangeInclusive;

const COM1: u16 = uart::COM1;
const COM1_LAST: u16 = uart::COM1 + 7;
const PCI_LAST: u16 = pci::DATA + 3;
const PM_LAST: u16 = pm::END - 1;
/// System control port A: bit 0 resets, bit 1 is A20.
const PORT_A: u16 = 0x92;
const A20: u8 = 1 << 1;

/// The ports that devices of the appliance cannot have.
pub(super) const OWN_PORTS: &[RangeInclusive<u16>] = &[
    0x20..=0x21,
    0x40..=0x43,
    0x60..=0x64,
    0x70..=0x71,
    PORT_A..=PORT_A,
    0xA0..=0xA1,
    debug_exit::PORT..=debug_exit::PORT + 3,
    COM1..=COM1_LAST,
    0x4D0..=0x4D1,
    pm::EVENT_BLOCK..=PM_LAST,
    0xCF8..=0xCFF,
];

impl Chipset {
    /// Reads `width` (32 bits at most) at `port`; all ones where there is no device.
    #[inline]
    pub fn port_read(&mut self, _cpu: usize, port: u16, width: Width, now: Tsc) -> u32 {
        if width == Width::Byte {
            return self.read_byte(port, now).into();
        }
        self.read_wide(port, width, now)
    }

    /// Writes `width` (32 bits at most) at `port`; the write is lost where there is no device.
    #[inline]
    pub fn port_write(&mut self, _cpu: usize, port: u16, width: Width, value: u32, now: Tsc) {
        if width == Width::Byte {
            return self.write_byte(port, value as u8, now);
        }
        self.write_wide(port, width, value, now);
    }

    #[inline]
    fn read_byte(&mut self, port: u16, now: Tsc) -> u8 {
        match port {
            COM1..=COM1_LAST => {
                let value = self.uart.read(port);
                if self.uart.drives() {
                    self.follow_uart();
                }
                value
            }
            _ => self.read_other_byte(port, now),
        }
    }

    fn read_other_byte(&mut self, port: u16, now: Tsc) -> u8 {
        match port {
            0x20 | 0x21 | 0xA0 | 0xA1 | 0x4D0 | 0x4D1 => {
                let value = self.pic.read(port);
                self.follow_pic();
                value
            }
            0x40..=0x43 | 0x61 => self.pit.read(port, now),
            pm::EVENT_BLOCK..=PM_LAST => self.pm.read(port, Width::Byte, now) as u8,
            pm::RESET => self.pm.read_reset(),
            rtc::INDEX | rtc::DATA => {
                let value = self.rtc.read(port, now);
                self.set_line(rtc::LINE, self.rtc.line());
                self.schedule_devices();
                value
            }
            pci::ADDRESS..=PCI_LAST => self.pci.read(port, Width::Byte) as u8,
            i8042::DATA => {
                let value = self.keyboard.read_data();
                self.set_line(i8042::LINE, self.keyboard.line());
                value
            }
            i8042::COMMAND => self.keyboard.read_status(),
            PORT_A => A20,
            _ => self.read_bus(port, Width::Byte, now) as u8,
        }
    }

    #[inline]
    fn write_byte(&mut self, port: u16, value: u8, now: Tsc) {
        match port {
            COM1..=COM1_LAST => {
                // Most bytes are data that nobody wants an interrupt for.
                self.uart.write(port, value);
                if self.uart.drives() {
                    self.follow_uart();
                }
            }
            _ => self.write_other_byte(port, value, now),
        }
    }

    fn write_other_byte(&mut self, port: u16, value: u8, now: Tsc) {
        match port {
            0x20 | 0x21 | 0xA0 | 0xA1 | 0x4D0 | 0x4D1 => {
                self.pic.write(port, value);
                self.follow_pic();
            }
            0x40..=0x43 | 0x61 => {
                self.pit.write(port, value, now);
                if self.pit.take_edge(now) {
                    self.pulse(pit::LINE);
                }
                self.schedule_devices();
            }
            pm::EVENT_BLOCK..=PM_LAST => self.write_pm(port, Width::Byte, value.into(), now),
            pm::RESET => {
                if let Some(reason) = self.pm.write_reset(value) {
                    self.end(reason);
                }
            }
            i8042::DATA | i8042::COMMAND => {
                let end = match port {
                    i8042::DATA => self.keyboard.write_data(value),
                    _ => self.keyboard.write_command(value),
                };
                self.set_line(i8042::LINE, self.keyboard.line());
                if let Some(reason) = end {
                    self.end(reason);
                }
            }
            PORT_A if value & 1 != 0 => self.end(StopReason::Reset),
            PORT_A => {}
            debug_exit::PORT => self.end(debug_exit::write(value.into())),
            rtc::INDEX | rtc::DATA => {
                self.rtc.write(port, value, now);
                self.set_line(rtc::LINE, self.rtc.line());
                self.schedule_devices();
            }
            pci::ADDRESS..=PCI_LAST => self.pci.write(port, Width::Byte, value.into()),
            _ => self.write_bus(port, Width::Byte, value.into(), now),
        }
    }

    fn read_wide(&mut self, port: u16, width: Width, now: Tsc) -> u32 {
        match port {
            pm::EVENT_BLOCK..=PM_LAST => self.pm.read(port, width, now),
            pci::ADDRESS..=PCI_LAST => self.pci.read(port, width),
            _ if self.on_bus(port) => self.read_bus(port, width, now),
            _ => {
                let bytes = core::array::from_fn(|index| {
                    if index < width.bytes() { self.read_byte(port.wrapping_add(index as u16), now) } else { 0 }
                });
                u32::from_le_bytes(bytes)
            }
        }
    }

    fn write_wide(&mut self, port: u16, width: Width, value: u32, now: Tsc) {
        let value = value & width.mask() as u32;
        match port {
            pm::EVENT_BLOCK..=PM_LAST => self.write_pm(port, width, value, now),
            debug_exit::PORT => self.end(debug_exit::write(value)),
            pci::ADDRESS..=PCI_LAST => self.pci.write(port, width, value),
            _ if self.on_bus(port) => self.write_bus(port, width, value, now),
            _ => {
                for (byte, index) in value.to_le_bytes().into_iter().zip(0..width.bytes() as u16) {
                    self.write_byte(port.wrapping_add(index), byte, now);
                }
            }
        }
    }

    fn write_pm(&mut self, port: u16, width: Width, value: u32, now: Tsc) {
        if let Some(reason) = self.pm.write(port, width, value, now) {
            self.end(reason);
        }
        self.set_line(pm::LINE, self.pm.line());
        self.schedule_devices();
    }

    /// Returns whether a device of the appliance has a port: such a device sees accesses whole.
    fn on_bus(&mut self, port: u16) -> bool {
        self.bus.at_port(port).is_some() || self.bus.at_bar(&self.pci, |claim| claim.port(port)).is_some()
    }

    fn read_bus(&mut self, port: u16, width: Width, now: Tsc) -> u32 {
        let ones = width.mask() as u32;
        let value = if let Some(device) = self.bus.at_port(port) {
            device.port_read(port, width, now)
        } else if let Some((device, bar, offset)) = self.bus.at_bar(&self.pci, |claim| claim.port(port)) {
            device.bar_read(bar, offset, width, now) as u32
        } else {
            return ones;
        };
        self.follow_bus();
        value & ones
    }

    fn write_bus(&mut self, port: u16, width: Width, value: u32, now: Tsc) {
        if let Some(device) = self.bus.at_port(port) {
            device.port_write(port, width, value, now);
            self.follow_bus();
        } else if let Some((device, bar, offset)) = self.bus.at_bar(&self.pci, |claim| claim.port(port)) {
            device.bar_write(bar, offset, width, value.into(), now);
            self.follow_bus();
        }
    }
}
