//! The local vector table, the lines it serves, and the error-status register (SDM Vol. 3A 11.5).

use super::page;
use super::registers::{INITIAL_COUNT, LVT_LINT0, LVT_PERFORMANCE_MONITORING, LVT_TIMER};
use super::timer::Mode;
use super::{Delivery, LocalApic};
use crate::time::Tsc;
use bit_field::BitField;

/// The mask bit of every entry.
pub(super) const MASKED: u32 = 1 << 16;
const REMOTE_IRR: u32 = 1 << 14;
const LEVEL: u32 = 1 << 15;

/// ESR: an IPI with a vector below 16 was sent.
pub(super) const SEND_ILLEGAL_VECTOR: u32 = 1 << 5;
/// ESR: an interrupt with a vector below 16 came, from outside or from the local vector table.
pub(super) const RECEIVE_ILLEGAL_VECTOR: u32 = 1 << 6;
/// ESR: a register was accessed that does not exist.
pub(super) const ILLEGAL_REGISTER_ADDRESS: u32 = 1 << 7;

/// Entries of the table. There is none for corrected machine checks.
pub(super) const COUNT: usize = 6;

/// An entry, in the order of the registers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(usize)]
pub(super) enum Entry {
    Timer,
    Thermal,
    PerformanceMonitoring,
    Lint0,
    Lint1,
    Error,
}

/// The bits software can write, by entry.
pub(super) const WRITABLE: [u32; COUNT] = [0x7_00FF, 0x1_07FF, 0x1_07FF, 0x1_A7FF, 0x1_A7FF, 0x1_00FF];
/// The bits that exist but are the processor's to write: delivery status, and the remote IRR of LINT0 and LINT1.
pub(super) const READ_ONLY: [u32; COUNT] = [0x1000, 0x1000, 0x1000, 0x5000, 0x5000, 0x1000];

/// Returns whether LINT0's entry lets the PICs' interrupts through.
#[inline]
pub(super) const fn passes_external(entry: u32) -> bool {
    entry & (MASKED | 7 << 8) == 7 << 8
}

/// The error-status register: what it shows, and what has been found since it was written.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Errors {
    shown: u32,
    found: u32,
}

impl Errors {
    pub(super) const fn shown(self) -> u32 {
        self.shown
    }
    /// Shows what was found since the last write, and arms the error interrupt again.
    pub(super) const fn latch(&mut self) {
        (self.shown, self.found) = (self.found, 0);
    }
}

impl LocalApic {
    /// Notes an error; the first since the error-status register was written raises the error interrupt.
    #[cold]
    pub(super) fn report(&mut self, error: u32) {
        let first = self.errors.found == 0;
        self.errors.found |= error;
        if first {
            self.raise(Entry::Error);
        }
    }

    /// Delivers the interrupt of an entry, unless masked. ExtINT is not delivered from here: the PICs' line is
    /// followed, see [`external_pending`](Self::external_pending).
    #[inline]
    pub(super) fn raise(&mut self, entry: Entry) {
        let value = self.lvt[entry as usize];
        if value & MASKED != 0 {
            return;
        }
        match Delivery::from_bits((value >> 8) as u8) {
            Some(Delivery::Fixed) => self.request(value as u8, false),
            Some(mode @ (Delivery::Nmi | Delivery::Init)) => self.deliver(mode, 0, false),
            _ => {}
        }
    }

    /// Writes an entry. The timer's earlier expiry, if due, belongs to the earlier value.
    pub(super) fn write_lvt(&mut self, entry: Entry, value: u32, now: Tsc) {
        let index = entry as usize;
        if entry == Entry::Timer {
            self.advance(now);
            self.timer.set_mode(Mode::of_entry(value));
            self.changed |= page::bit(INITIAL_COUNT);
        }
        self.keep_lvt(index, value);
        if entry == Entry::Lint0 {
            if !self.lint0_is_level() {
                self.lvt[index] &= !REMOTE_IRR;
            }
            self.request_lint0_level();
        }
    }

    /// Keeps the bits of an entry that software can write.
    #[inline(always)]
    fn keep_lvt(&mut self, index: usize, value: u32) {
        let forced = if self.software_enabled() { 0 } else { MASKED };
        self.lvt[index] = self.lvt[index] & READ_ONLY[index] | value & WRITABLE[index] | forced;
    }

    /// Writes an entry that concerns nobody before its event comes, and returns what it then holds: thermal, performance
    /// monitoring, LINT1 and error. `None` for any other register.
    #[inline(always)]
    pub(super) fn write_quiet_lvt(&mut self, number: u32, value: u32) -> Option<u32> {
        const QUIET: u32 = 0b11_0110;
        let index = number.wrapping_sub(LVT_TIMER) as usize;
        if index >= COUNT || QUIET >> index & 1 == 0 {
            return None;
        }
        self.keep_lvt(index, value);
        Some(self.lvt[index])
    }

    /// Masks every entry, as disabling the local APIC by software does.
    pub(super) fn mask_lvt(&mut self) {
        self.lvt.iter_mut().for_each(|entry| *entry |= MASKED);
        self.changed |= page::LVT;
    }

    /// Delivers the interrupt of the performance-monitoring counters, and masks its entry where the processor is one
    /// that does (SDM Vol. 3A 11.5.1). Returns whether it was delivered.
    pub fn raise_performance_monitoring(&mut self) -> bool {
        let index = Entry::PerformanceMonitoring as usize;
        let unmasked = self.lvt[index] & MASKED == 0;
        self.raise(Entry::PerformanceMonitoring);
        if unmasked && self.masks_performance_monitoring {
            self.lvt[index] |= MASKED;
            self.changed |= page::bit(LVT_PERFORMANCE_MONITORING);
        }
        unmasked
    }

    /// Shows what the processor's own local APIC has done: delivered the interrupt of the performance-monitoring counters to
    /// the guest, and masked its entry. Returns whether the entry was not masked before.
    pub fn performance_monitoring_was_delivered(&mut self) -> bool {
        let entry = &mut self.lvt[Entry::PerformanceMonitoring as usize];
        let unmasked = *entry & MASKED == 0;
        *entry |= MASKED;
        self.changed |= page::bit(LVT_PERFORMANCE_MONITORING);
        unmasked
    }

    /// Returns whether an interrupt of the performance-monitoring counters would be delivered as an NMI.
    #[inline]
    pub const fn performance_monitoring_is_nmi(&self) -> bool {
        self.lvt[Entry::PerformanceMonitoring as usize] & (MASKED | 7 << 8) == 4 << 8 && self.enabled()
    }

    /// Returns whether the entry of the performance-monitoring counters is this.
    #[inline]
    pub const fn holds_performance_monitoring(&self, entry: u32) -> bool {
        self.lvt[Entry::PerformanceMonitoring as usize] == entry
    }

    /// Returns whether an interrupt of the performance-monitoring counters would be delivered.
    #[inline]
    pub const fn takes_performance_monitoring(&self) -> bool {
        self.lvt[Entry::PerformanceMonitoring as usize] & MASKED == 0
    }

    /// Sets LINT0, the PICs' interrupt request.
    #[inline]
    pub fn set_lint0(&mut self, asserted: bool) {
        let rising = asserted && !self.lint[0];
        self.lint[0] = asserted;
        if self.lint0_is_level() {
            self.request_lint0_level();
        } else if rising && self.enabled() {
            self.raise(Entry::Lint0);
        }
    }

    /// Sets LINT1, by custom the line for NMIs; it is edge-triggered.
    pub fn set_lint1(&mut self, asserted: bool) {
        let rising = asserted && !self.lint[1];
        self.lint[1] = asserted;
        if !rising {
            return;
        }
        if self.enabled() {
            self.raise(Entry::Lint1);
        } else {
            self.nmi = true;
        }
    }

    /// Returns whether LINT0 is a fixed, level-triggered interrupt.
    fn lint0_is_level(&self) -> bool {
        let entry = self.lvt[Entry::Lint0 as usize];
        entry & LEVEL != 0 && entry.get_bits(8..11) == 0
    }

    /// Requests LINT0's level-triggered interrupt while the line is asserted and the last one has ended.
    fn request_lint0_level(&mut self) {
        let index = Entry::Lint0 as usize;
        let entry = self.lvt[index];
        if self.lint[0] && self.lint0_is_level() && entry & (MASKED | REMOTE_IRR) == 0 {
            self.lvt[index] |= REMOTE_IRR;
            self.changed |= page::bit(LVT_LINT0);
            self.request(entry as u8, true);
        }
    }

    /// Ends a level-triggered interrupt of LINT0, if it was its.
    pub(super) fn end_local_level(&mut self, vector: u8) {
        let index = Entry::Lint0 as usize;
        if self.lvt[index] & REMOTE_IRR != 0 && self.lvt[index] as u8 == vector {
            self.lvt[index] &= !REMOTE_IRR;
            self.changed |= page::bit(LVT_LINT0);
            self.request_lint0_level();
        }
    }
}
