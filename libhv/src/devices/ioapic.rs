//! The IOAPIC: 24 pins, a redirection entry each, and the messages that come of them (82093AA, with the EOI register
//! of version 20H).
//!
//! Lines are given as asserted or not: the polarity bits are kept and ignored.

use super::lapic::{Delivery, Destination, Interrupt};
use bit_field::BitField;

/// Pins, and redirection entries.
pub const PINS: u8 = 24;

const DELIVERY_STATUS: u64 = 1 << 12;
const REMOTE_IRR: u64 = 1 << 14;
const LEVEL: u64 = 1 << 15;
const MASKED: u64 = 1 << 16;
/// Vector, delivery and destination mode, polarity, trigger, mask, destination.
const WRITABLE: u64 = 0xFF00_0000_0001_AFFF;

const IOREGSEL: u16 = 0x00;
const IOWIN: u16 = 0x10;
const IOEOI: u16 = 0x40;

/// An IOAPIC. What it has to say is fetched with [`next_message`](Self::next_message) after every call that may
/// cause a message: a line that changes, a register that is written, an end of interrupt.
#[derive(Clone, Debug)]
pub struct IoApic {
    id: u8,
    select: u8,
    /// One bit a pin: the line is asserted.
    lines: u32,
    /// One bit a pin: a message waits to be fetched.
    waiting: u32,
    entries: [u64; PINS as usize],
}

impl IoApic {
    /// Makes an IOAPIC as it is after a reset, every pin masked; bits 3:0 of `id` are its ID.
    pub const fn new(id: u8) -> Self {
        Self { id: id & 0xF, select: 0, lines: 0, waiting: 0, entries: [MASKED; PINS as usize] }
    }

    /// Sets the line at `pin`; there is none from [`PINS`] on.
    #[inline]
    pub fn set_line(&mut self, pin: u8, asserted: bool) {
        let Some(&entry) = self.entries.get(usize::from(pin)) else { return };
        let bit = 1 << pin;
        let rising = asserted && self.lines & bit == 0;
        self.lines = if asserted { self.lines | bit } else { self.lines & !bit };
        if entry & LEVEL != 0 {
            self.offer_level(pin);
        } else if rising && entry & MASKED == 0 {
            self.waiting |= bit;
        }
    }

    /// Returns whether a pin is set to send an NMI.
    pub fn sends_nmi(&self) -> bool {
        self.entries.iter().any(|entry| entry & MASKED == 0 && entry >> 8 & 7 == 4)
    }

    /// Returns whether the line at `pin` is asserted.
    #[inline]
    pub const fn line(&self, pin: u8) -> bool {
        pin < PINS && self.lines >> pin & 1 != 0
    }

    /// Has a level-triggered pin send its message while its line is asserted and the last one has ended.
    #[inline]
    fn offer_level(&mut self, pin: u8) {
        let entry = self.entries[usize::from(pin)];
        let bit = 1 << pin;
        let ready = entry & (MASKED | REMOTE_IRR) == 0 && self.lines & bit != 0;
        self.waiting = if ready { self.waiting | bit } else { self.waiting & !bit };
    }

    /// Returns the next message, the lowest pin's first; a level-triggered one is in service from here on.
    #[inline]
    pub fn next_message(&mut self) -> Option<Interrupt> {
        while self.waiting != 0 {
            let pin = self.waiting.trailing_zeros() as usize;
            self.waiting &= self.waiting - 1;
            let entry = &mut self.entries[pin];
            let level = *entry & LEVEL != 0;
            let Some(delivery) = Delivery::from_bits((*entry >> 8) as u8) else { continue };
            if level {
                *entry |= REMOTE_IRR;
            }
            let destination = Destination::from_byte((*entry >> 56) as u8, entry.get_bit(11));
            return Some(Interrupt { vector: *entry as u8, delivery, destination, level });
        }
        None
    }

    /// Ends the level-triggered interrupts with this vector, as a local APIC's broadcast or the EOI register does.
    #[inline]
    pub fn end_of_interrupt(&mut self, vector: u8) {
        for pin in 0..PINS {
            let entry = &mut self.entries[usize::from(pin)];
            if *entry as u8 == vector && *entry & REMOTE_IRR != 0 {
                *entry &= !REMOTE_IRR;
                self.offer_level(pin);
            }
        }
    }

    /// Reads the 32-bit register at `offset` of the IOAPIC's page: IOREGSEL or IOWIN, elsewhere 0.
    pub fn read(&self, offset: u16) -> u32 {
        match offset {
            IOREGSEL => self.select.into(),
            IOWIN => self.read_selected(),
            _ => 0,
        }
    }

    /// Writes the 32-bit register at `offset` of the IOAPIC's page: IOREGSEL, IOWIN or EOI; elsewhere nothing happens.
    pub fn write(&mut self, offset: u16, value: u32) {
        match offset {
            IOREGSEL => self.select = value as u8,
            IOWIN => self.write_selected(value),
            IOEOI => self.end_of_interrupt(value as u8),
            _ => {}
        }
    }

    fn read_selected(&self) -> u32 {
        match self.select {
            // Identification, and the arbitration ID, which follows it.
            0x00 | 0x02 => u32::from(self.id) << 24,
            0x01 => u32::from(PINS - 1) << 16 | 0x20,
            _ => {
                let Some((pin, upper)) = self.selected_entry() else { return 0 };
                let waiting = if self.waiting >> pin & 1 != 0 { DELIVERY_STATUS } else { 0 };
                let entry = self.entries[usize::from(pin)] | waiting;
                if upper { (entry >> 32) as u32 } else { entry as u32 }
            }
        }
    }

    fn write_selected(&mut self, value: u32) {
        if self.select == 0 {
            self.id = value.get_bits(24..28) as u8;
        }
        let Some((pin, upper)) = self.selected_entry() else { return };
        let entry = &mut self.entries[usize::from(pin)];
        let half = if upper { !0 << 32 } else { 0xFFFF_FFFF };
        let placed = if upper { u64::from(value) << 32 } else { value.into() };
        *entry = *entry & !(half & WRITABLE) | placed & WRITABLE;
        if *entry & LEVEL != 0 {
            self.offer_level(pin);
        } else {
            // Systems end a level-triggered interrupt by making the pin edge-triggered for a moment.
            *entry &= !REMOTE_IRR;
            if *entry & MASKED != 0 {
                self.waiting &= !(1 << pin);
            }
        }
    }

    /// Returns the pin whose entry is selected, and whether its upper half is.
    fn selected_entry(&self) -> Option<(u8, bool)> {
        let index = self.select.checked_sub(0x10)?;
        (index / 2 < PINS).then_some((index / 2, index % 2 != 0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    fn write_entry(ioapic: &mut IoApic, pin: u8, entry: u64) {
        for (half, value) in [(1, (entry >> 32) as u32), (0, entry as u32)] {
            ioapic.write(IOREGSEL, u32::from(0x10 + 2 * pin + half));
            ioapic.write(IOWIN, value);
        }
    }

    fn read_entry(ioapic: &mut IoApic, pin: u8) -> u64 {
        let mut half = |half| {
            ioapic.write(IOREGSEL, u32::from(0x10 + 2 * pin + half));
            u64::from(ioapic.read(IOWIN))
        };
        half(1) << 32 | half(0)
    }

    fn drain(ioapic: &mut IoApic) -> Vec<u8> {
        core::iter::from_fn(|| ioapic.next_message()).map(|message| message.vector).collect()
    }

    /// A pin in words: what it was told last, and what it still owes.
    #[derive(Default, Clone, Copy)]
    struct Pin {
        level: bool,
        masked: bool,
        high: bool,
        in_service: bool,
    }

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Line(bool),
        Mask(bool),
        Eoi,
        Trigger(bool),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => any::<bool>().prop_map(Step::Line),
            2 => any::<bool>().prop_map(Step::Mask),
            2 => Just(Step::Eoi),
            1 => any::<bool>().prop_map(Step::Trigger),
        ]
    }

    proptest! {
        #[test]
        fn each_pin_behaves_as_its_own_little_machine(steps in prop::collection::vec((0usize..3, step()), 1..80)) {
            const PLACES: [u8; 3] = [0, 9, 23];
            let mut ioapic = IoApic::new(0);
            let mut pins = [Pin { masked: true, ..Pin::default() }; 3];
            for (index, step) in steps {
                let (place, pin) = (PLACES[index], &mut pins[index]);
                let mut sent = false;
                match step {
                    Step::Line(high) => {
                        sent = high && !pin.high && !pin.level && !pin.masked;
                        pin.high = high;
                        ioapic.set_line(place, high);
                    }
                    Step::Eoi => {
                        pin.in_service = false;
                        ioapic.end_of_interrupt(0x40 + index as u8);
                    }
                    Step::Mask(masked) => pin.masked = masked,
                    Step::Trigger(level) => {
                        pin.level = level;
                        pin.in_service &= level;
                    }
                }
                if matches!(step, Step::Mask(_) | Step::Trigger(_)) {
                    let entry = u64::from(pin.level) << 15 | u64::from(pin.masked) << 16 | 0x40 | index as u64;
                    write_entry(&mut ioapic, place, entry);
                }
                if pin.level && pin.high && !pin.masked && !pin.in_service {
                    (sent, pin.in_service) = (true, true);
                }
                let expected = if sent { std::vec![0x40 + index as u8] } else { Vec::new() };
                prop_assert_eq!(drain(&mut ioapic), expected, "after {:?} at pin {}", step, place);
                prop_assert_eq!(read_entry(&mut ioapic, place) & REMOTE_IRR != 0, pin.in_service);
            }
        }
    }

    #[test]
    fn an_entry_makes_the_message_it_describes() {
        let mut ioapic = IoApic::new(2);
        write_entry(&mut ioapic, 4, 0x03 << 56 | 1 << 11 | 1 << 8 | 0x31);
        ioapic.set_line(4, true);
        assert_eq!(read_entry(&mut ioapic, 4) & DELIVERY_STATUS, DELIVERY_STATUS);
        let destination = Destination { id: 3, logical: true };
        let message = Interrupt { vector: 0x31, delivery: Delivery::LowestPriority, destination, level: false };
        assert_eq!(ioapic.next_message(), Some(message));
        assert_eq!(ioapic.next_message(), None);
        assert_eq!(read_entry(&mut ioapic, 4) & DELIVERY_STATUS, 0);
    }

    #[test]
    fn status_bits_reserved_bits_and_read_only_registers_stay() {
        let mut ioapic = IoApic::new(2);
        write_entry(&mut ioapic, 23, u64::MAX);
        assert_eq!(read_entry(&mut ioapic, 23), 0xFF00_0000_0001_AFFF);
        for (register, expected) in
            [(0x00, 0x0F00_0000), (0x01, 0x0017_0020), (0x02, 0x0F00_0000), (0x40, 0), (0xFF, 0)]
        {
            ioapic.write(IOREGSEL, register);
            ioapic.write(IOWIN, u32::MAX);
            assert_eq!(ioapic.read(IOWIN), expected, "register {register:#x}");
        }
    }

    #[test]
    fn one_end_of_interrupt_serves_every_pin_with_the_vector() {
        let mut ioapic = IoApic::new(0);
        for pin in [10, 11] {
            write_entry(&mut ioapic, pin, LEVEL | 0x50);
            ioapic.set_line(pin, true);
        }
        assert_eq!(drain(&mut ioapic), [0x50, 0x50]);
        ioapic.set_line(10, false);
        ioapic.write(IOEOI, 0x50);
        assert_eq!(drain(&mut ioapic), [0x50]);
        assert_eq!(read_entry(&mut ioapic, 10) & REMOTE_IRR, 0);
    }

    #[test]
    fn a_line_that_falls_before_its_message_is_fetched_takes_it_back() {
        let mut ioapic = IoApic::new(0);
        write_entry(&mut ioapic, 10, LEVEL | 0x50);
        ioapic.set_line(10, true);
        ioapic.set_line(10, false);
        assert_eq!(drain(&mut ioapic), []);
        ioapic.set_line(24, true);
        assert!(!ioapic.line(24));
    }
}
