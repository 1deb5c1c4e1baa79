//! The lines between devices and interrupt controllers, and the messages between the controllers.

use super::Chipset;
use crate::devices::lapic::{Delivery, Effect, Interrupt, LocalApic};
use crate::devices::{i8042, pit, pm, rtc, uart};

/// Interrupt lines that devices of the appliance cannot have: timer, keyboard, cascade, COM1, RTC, SCI.
pub(super) const OWN_LINES: u32 =
    1 << pit::LINE | 1 << i8042::LINE | 1 << 2 | 1 << uart::COM1_LINE | 1 << rtc::LINE | 1 << pm::LINE;

/// The IOAPIC pin of the PICs' request.
const PIC_PIN: u8 = 0;
/// The IOAPIC pin of line 0, the timer.
const TIMER_PIN: u8 = 2;

impl Chipset {
    /// Returns whether a maskable interrupt waits that the processor's priority lets through.
    #[inline]
    pub fn pending_interrupt(&self, cpu: usize) -> bool {
        self.apics.get(cpu).is_some_and(|apic| apic.external_pending() || apic.pending().is_some())
    }

    /// Has a processor take the interrupt of [`pending_interrupt`](Self::pending_interrupt), and returns its vector. The
    /// PICs come first.
    pub fn acknowledge(&mut self, cpu: usize) -> Option<u8> {
        let apic = self.apics.get_mut(cpu)?;
        if !apic.external_pending() {
            return apic.acknowledge();
        }
        apic.acknowledge_external();
        let vector = self.pic.acknowledge();
        self.follow_pic();
        Some(vector)
    }

    /// Returns whether an NMI waits.
    #[inline]
    pub fn nmi_pending(&self, cpu: usize) -> bool {
        self.apics.get(cpu).is_some_and(LocalApic::nmi_pending)
    }

    /// Returns whether an NMI may still come to a processor that halts with interrupts off: from the IOAPIC, LINT0, a
    /// device of the appliance or another processor.
    pub fn nmi_possible(&self, cpu: usize) -> bool {
        self.ioapic.sends_nmi()
            || self.apics.get(cpu).is_some_and(LocalApic::lint0_is_nmi)
            || self.apics.len() > 1
            || !self.bus.is_empty()
    }

    /// Takes the NMI that waits, if one does.
    #[inline]
    pub fn take_nmi(&mut self, cpu: usize) -> bool {
        self.apics.get_mut(cpu).is_some_and(LocalApic::take_nmi)
    }

    /// Sets the level of an interrupt line, 0 to 23.
    pub(super) fn set_line(&mut self, line: u8, high: bool) {
        let bit = 1u32.checked_shl(line.into()).unwrap_or(0);
        if (self.lines & bit != 0) == high {
            return;
        }
        self.lines ^= bit;
        self.pic.set_line(line, high);
        self.follow_pic();
        self.ioapic.set_line(if line == pit::LINE { TIMER_PIN } else { line }, high);
        self.send_ioapic_messages();
    }

    /// Raises an edge on a line, whatever its level.
    pub(super) fn pulse(&mut self, line: u8) {
        self.set_line(line, false);
        self.set_line(line, true);
    }

    /// Carries the UART's line on; a moment at which it was low makes an edge of a high one.
    #[inline(always)]
    pub(super) fn follow_uart(&mut self) {
        if self.uart.take_fall() {
            self.set_line(uart::COM1_LINE, false);
        }
        self.set_line(uart::COM1_LINE, self.uart.line());
    }

    /// Carries the PICs' request on.
    pub(super) fn follow_pic(&mut self) {
        let asserted = self.pic.asserted();
        if asserted == self.lint0 {
            return;
        }
        self.lint0 = asserted;
        if let Some(first) = self.apics.first_mut() {
            first.set_lint0(asserted);
        }
        self.ioapic.set_line(PIC_PIN, asserted);
        self.send_ioapic_messages();
        self.attention |= asserted;
    }

    /// Takes what devices of the appliance ask for: lines, messages, the guest's end, deadlines.
    pub(super) fn follow_bus(&mut self) {
        let (driven, high) = self.bus.lines();
        for line in 0..u32::BITS as u8 {
            if driven >> line & 1 != 0 {
                self.set_line(line, high >> line & 1 != 0);
            }
        }
        let mut stop = None;
        let mut messages = alloc::vec::Vec::new();
        for device in self.bus.devices() {
            messages.extend(core::iter::from_fn(|| device.take_message()));
            stop = stop.or_else(|| device.take_stop());
        }
        messages.into_iter().for_each(|message| self.send_message(message));
        if let Some(reason) = stop {
            self.end(reason);
        }
        self.schedule_devices();
    }

    /// Sends what the IOAPIC has to say.
    pub(super) fn send_ioapic_messages(&mut self) {
        while let Some(interrupt) = self.ioapic.next_message() {
            self.route(interrupt);
        }
    }

    /// Carries out what a write to `cpu`'s local APIC asked for, and sees whether the processor has to look.
    #[inline(always)]
    pub(super) fn after_apic(&mut self, cpu: usize, effect: Effect) {
        match effect {
            Effect::None => {}
            Effect::Ipi(ipi) => {
                if ipi.delivery == Delivery::LowestPriority {
                    self.deliver_to_lowest(ipi.vector, false, |number, apic| apic.hears(&ipi, number == cpu));
                } else {
                    for (number, apic) in self.apics.iter_mut().enumerate() {
                        if apic.hears(&ipi, number == cpu) {
                            apic.deliver(ipi.delivery, ipi.vector, false);
                        }
                    }
                }
                self.attention = true;
            }
            Effect::EndOfInterrupt(vector) => {
                self.ioapic.end_of_interrupt(vector);
                self.send_ioapic_messages();
            }
        }
        let waits = |apic: &LocalApic| {
            apic.pending().is_some() || apic.external_pending() || apic.nmi_pending() || apic.startup_pending()
        };
        self.attention |= self.apics.get(cpu).is_some_and(waits);
        self.schedule();
    }

    /// Brings an interrupt message to whom it is for.
    pub(super) fn route(&mut self, interrupt: Interrupt) {
        let Interrupt { vector, delivery, destination, level } = interrupt;
        if delivery == Delivery::LowestPriority {
            self.deliver_to_lowest(vector, level, |_, apic| apic.matches(destination));
        } else {
            for apic in self.apics.iter_mut().filter(|apic| apic.matches(destination)) {
                apic.deliver(delivery, vector, level);
            }
        }
        self.attention = true;
    }

    /// Delivers a vector to the processor of the lowest priority, the first of several, among those that hear.
    fn deliver_to_lowest(&mut self, vector: u8, level: bool, hears: impl Fn(usize, &LocalApic) -> bool) {
        let hearers = self.apics.iter_mut().enumerate().filter(|(number, apic)| hears(*number, apic));
        if let Some((_, apic)) = hearers.min_by_key(|(_, apic)| apic.processor_priority()) {
            apic.deliver(Delivery::LowestPriority, vector, level);
        }
    }
}
