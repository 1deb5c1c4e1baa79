//! The registers by number, which xAPIC and x2APIC mode share: offset / 16 in the page, MSR - 800H (SDM Vol. 3A
//! 11.4.1, 11.12.1.2).

use super::lvt::{self, Entry};
use super::page;
use super::{Effect, LocalApic};
use crate::time::Tsc;

pub(super) const ID: u32 = 0x02;
pub(super) const VERSION: u32 = 0x03;
pub(super) const TPR: u32 = 0x08;
pub(super) const APR: u32 = 0x09;
pub(super) const PPR: u32 = 0x0A;
pub(super) const EOI: u32 = 0x0B;
pub(super) const RRD: u32 = 0x0C;
pub(super) const LDR: u32 = 0x0D;
pub(super) const DFR: u32 = 0x0E;
pub(super) const SVR: u32 = 0x0F;
pub(super) const ISR: u32 = 0x10;
pub(super) const ISR_LAST: u32 = 0x17;
pub(super) const TMR: u32 = 0x18;
pub(super) const TMR_LAST: u32 = 0x1F;
pub(super) const IRR: u32 = 0x20;
pub(super) const IRR_LAST: u32 = 0x27;
pub(super) const ESR: u32 = 0x28;
pub(super) const ICR: u32 = 0x30;
pub(super) const ICR_HIGH: u32 = 0x31;
pub(super) const LVT_TIMER: u32 = 0x32;
pub(super) const LVT_PERFORMANCE_MONITORING: u32 = 0x34;
pub(super) const LVT_LINT0: u32 = 0x35;
pub(super) const LVT_ERROR: u32 = 0x37;
pub(super) const INITIAL_COUNT: u32 = 0x38;
pub(super) const CURRENT_COUNT: u32 = 0x39;
pub(super) const DIVIDE: u32 = 0x3E;
pub(super) const SELF_IPI: u32 = 0x3F;

/// SVR bit 8: the local APIC is enabled by software.
pub(super) const SOFTWARE_ENABLE: u32 = 1 << 8;
/// SVR bit 12: EOIs are not broadcast to IOAPICs.
pub(super) const SUPPRESS_BROADCAST: u32 = 1 << 12;
/// The bits of the SVR that can be written.
pub(super) const SVR_WRITABLE: u32 = SUPPRESS_BROADCAST | SOFTWARE_ENABLE | 0xFF;
/// The bits of the ICR's low half that can be written.
pub(super) const ICR_WRITABLE: u32 = 0x000C_CFFF;

/// Version 14H, six entries in the local vector table, EOI broadcasts can be suppressed.
const VERSION_VALUE: u32 = 0x14 | (lvt::COUNT as u32 - 1) << 16 | 1 << 24;

/// Returns the entry of the local vector table that is register `number`.
#[inline]
pub(super) fn lvt_entry(number: u32) -> Option<Entry> {
    Some(match number {
        0x32 => Entry::Timer,
        0x33 => Entry::Thermal,
        0x34 => Entry::PerformanceMonitoring,
        0x35 => Entry::Lint0,
        0x36 => Entry::Lint1,
        0x37 => Entry::Error,
        _ => return None,
    })
}

impl LocalApic {
    #[inline]
    pub(super) const fn software_enabled(&self) -> bool {
        self.spurious & SOFTWARE_ENABLE != 0
    }

    /// Reads the register at `offset` of the page, as a 32-bit access does in xAPIC mode; `now` serves the timer.
    /// Registers begin at multiples of 16; elsewhere, and where no register is, 0 is read and the error noted.
    pub fn read(&mut self, offset: u16, now: Tsc) -> u32 {
        let number = u32::from(offset) >> 4;
        let value = match number {
            _ if !offset.is_multiple_of(16) => None,
            _ => self.kept_in_page(number).or_else(|| self.read_shared(number, now)),
        };
        value.unwrap_or_else(|| {
            self.report(lvt::ILLEGAL_REGISTER_ADDRESS);
            0
        })
    }

    /// Writes the register at `offset` of the page, as a 32-bit access does in xAPIC mode. Where no register is, the
    /// write is dropped and the error noted; read-only registers stay.
    pub fn write(&mut self, offset: u16, value: u32, now: Tsc) -> Effect {
        let number = u32::from(offset) >> 4;
        self.changed |= page::bit(number);
        match number {
            EOI if offset == 0xB0 => return self.end_of_interrupt(),
            _ if !offset.is_multiple_of(16) => self.report(lvt::ILLEGAL_REGISTER_ADDRESS),
            DFR => self.destination_format = value | 0x0FFF_FFFF,
            LDR => self.logical_destination = value & 0xFF00_0000,
            ICR_HIGH => self.command = self.command & 0xFFFF_FFFF | u64::from(value & 0xFF00_0000) << 32,
            ICR => {
                self.command = self.command & !0xFFFF_FFFF | u64::from(value & ICR_WRITABLE);
                return self.send(self.command);
            }
            ID | VERSION | APR | PPR | RRD | ISR..=IRR_LAST | CURRENT_COUNT => {}
            SELF_IPI => self.report(lvt::ILLEGAL_REGISTER_ADDRESS),
            _ => {
                if !self.write_shared(number, value, now) {
                    self.report(lvt::ILLEGAL_REGISTER_ADDRESS);
                }
            }
        }
        Effect::None
    }

    /// Reads a register that is the same in both modes; `None` when there is none.
    pub(super) fn read_shared(&mut self, number: u32, now: Tsc) -> Option<u32> {
        if number == CURRENT_COUNT || (IRR..=IRR_LAST).contains(&number) {
            self.advance(now);
        }
        match number {
            CURRENT_COUNT => Some(self.timer.current(now)),
            PPR => Some(self.processor_priority().into()),
            _ => self.kept(number),
        }
    }

    /// Returns a register that is the same in both modes and that time alone does not change; `None` when there is none.
    #[inline(always)]
    pub(super) fn kept(&self, number: u32) -> Option<u32> {
        Some(match number {
            VERSION => VERSION_VALUE,
            TPR => self.task_priority.into(),
            SVR => self.spurious,
            ISR..=ISR_LAST => self.isr.word((number - ISR) as usize),
            TMR..=TMR_LAST => self.tmr.word((number - TMR) as usize),
            IRR..=IRR_LAST => self.irr.word((number - IRR) as usize),
            ESR => self.errors.shown(),
            ICR => self.command as u32,
            LVT_TIMER..=LVT_ERROR => *self.lvt.get((number - LVT_TIMER) as usize)?,
            INITIAL_COUNT => self.timer.initial(),
            DIVIDE => self.timer.divide(),
            _ => return None,
        })
    }

    /// Returns a register that xAPIC mode alone has, or has another way; `None` for the others.
    #[inline(always)]
    pub(super) fn kept_in_page(&self, number: u32) -> Option<u32> {
        Some(match number {
            ID => self.id << 24,
            // The arbitration priority, the remote-read data and the EOI register exist, and hold nothing.
            APR | RRD | EOI => 0,
            DFR => self.destination_format,
            ICR_HIGH => (self.command >> 32) as u32,
            LDR => self.logical_destination,
            _ => return None,
        })
    }

    /// Writes a register that is the same in both modes; returns whether there is one. Bits that cannot be written
    /// are dropped.
    pub(super) fn write_shared(&mut self, number: u32, value: u32, now: Tsc) -> bool {
        match number {
            TPR => self.task_priority = value as u8,
            SVR => self.write_spurious(value, now),
            ESR => self.errors.latch(),
            INITIAL_COUNT => {
                self.advance(now);
                self.timer.set_initial(value, now);
            }
            DIVIDE => {
                self.advance(now);
                self.timer.set_divide(value, now);
            }
            _ => match lvt_entry(number) {
                Some(entry) => self.write_lvt(entry, value, now),
                None => return false,
            },
        }
        true
    }

    fn write_spurious(&mut self, value: u32, now: Tsc) {
        self.advance(now);
        self.spurious = value & SVR_WRITABLE;
        if !self.software_enabled() {
            self.mask_lvt();
        }
    }
}
