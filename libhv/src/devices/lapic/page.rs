//! The page that a processor reads and writes by itself in place of the registers of xAPIC mode, and what goes from one to
//! the other (SDM Vol. 3C "APIC virtualization and virtual interrupts", "Virtualizing memory-mapped APIC accesses").
//!
//! The local APIC notes which registers have changed, and [`LocalApic::show`] brings these to the page. Two registers the
//! guest changes there without an exit: the task priority and the destination in the ICR. [`LocalApic::take`] fetches them.

use super::registers::{EOI, ICR_HIGH, TPR};
use super::vectors::VectorSet;
use super::{Effect, LocalApic, registers};
use crate::address::Gpa;
use crate::memory::Frames;
use crate::time::Tsc;
use x86_64::PhysAddr;

/// Where the registers lie after power-up, and the only place where a processor serves them from a page.
pub(super) const PLACE: Gpa = Gpa::new(0xFEE0_0000);

/// The destination in the upper half of the ICR.
const DESTINATION: u32 = 0xFF00_0000;

/// Returns the bit of a register in a set of them; the eight of IRR, ISR and TMR go by their first.
#[inline(always)]
pub(super) const fn bit(number: u32) -> u64 {
    1 << (number & 63)
}

pub(super) const ISR: u64 = bit(registers::ISR);
pub(super) const TMR: u64 = bit(registers::TMR);
pub(super) const IRR: u64 = bit(registers::IRR);
/// The local vector table.
pub(super) const LVT: u64 = 0x3F << registers::LVT_TIMER;
/// ID, version, TPR, EOI, LDR, DFR, SVR, ESR, ICR, the local vector table, initial count and divide configuration: the
/// registers of which processors serve reads, beside the three of vectors.
const SINGLE: u64 = LVT
    | 1 << registers::ID
    | 1 << registers::VERSION
    | 1 << TPR
    | 1 << EOI
    | 1 << registers::LDR
    | 1 << registers::DFR
    | 1 << registers::SVR
    | 1 << registers::ESR
    | 1 << registers::ICR
    | 1 << ICR_HIGH
    | 1 << registers::INITIAL_COUNT
    | 1 << registers::DIVIDE;
/// All that the page shows.
pub(super) const ALL: u64 = SINGLE | ISR | TMR | IRR;

/// The virtual-APIC page of a virtual processor: it holds nothing but registers of the guest's.
#[derive(Debug)]
pub struct ApicPage(Frames);

impl ApicPage {
    /// Takes a frame of zeros.
    pub fn new(frame: Frames) -> Self {
        Self(frame)
    }

    /// Returns where it is.
    pub fn physical(&self) -> PhysAddr {
        self.0.physical()
    }

    /// Returns the register at `offset`, or whose part lies there: registers begin at multiples of 16.
    #[inline]
    pub fn register(&self, offset: u16) -> u32 {
        self.get(u32::from(offset) >> 4)
    }

    #[inline]
    fn get(&self, number: u32) -> u32 {
        self.0.words().get(2 * number as usize).map_or(0, |&word| word as u32)
    }

    #[inline]
    fn set(&mut self, number: u32, value: u32) {
        if let Some(word) = self.0.words_mut().get_mut(2 * number as usize) {
            *word = value.into();
        }
    }

    /// Sets the eight registers from `first` on.
    #[inline]
    fn set_vectors(&mut self, first: u32, set: &VectorSet) {
        let Some(words) = self.0.words_mut().get_mut(2 * first as usize..).and_then(<[u64]>::first_chunk_mut::<16>)
        else {
            return;
        };
        for (index, both) in set.words().iter().enumerate() {
            words[4 * index] = both & 0xFFFF_FFFF;
            words[4 * index + 2] = both >> 32;
        }
    }
}

impl LocalApic {
    /// Returns whether the registers lie where a processor can serve them from a page: in xAPIC mode, at the address they
    /// have after power-up.
    pub fn may_be_shown(&self) -> bool {
        self.page() == Some(PLACE)
    }

    /// Has the next [`show`](Self::show) bring every register to the page.
    pub const fn show_all(&mut self) {
        self.changed = ALL;
    }

    /// Fetches what the guest has written without an exit.
    #[inline]
    pub fn take(&mut self, page: &ApicPage) {
        // What has changed here since, by INIT, is newer.
        if self.changed & bit(TPR) == 0 {
            self.task_priority = page.get(TPR) as u8;
        }
        if self.changed & bit(ICR_HIGH) == 0 {
            self.command = self.command & 0xFFFF_FFFF | u64::from(page.get(ICR_HIGH) & DESTINATION) << 32;
        }
    }

    /// Brings the registers that have changed to the page.
    #[inline]
    pub fn show(&mut self, page: &mut ApicPage) {
        let changed = core::mem::take(&mut self.changed);
        if changed & (ISR | TMR | IRR) != 0 {
            if changed & ISR != 0 {
                page.set_vectors(registers::ISR, &self.isr);
            }
            if changed & TMR != 0 {
                page.set_vectors(registers::TMR, &self.tmr);
            }
            if changed & IRR != 0 {
                page.set_vectors(registers::IRR, &self.irr);
            }
        }
        let mut rest = changed & SINGLE;
        while rest != 0 {
            let number = rest.trailing_zeros();
            rest &= rest - 1;
            let value = self.kept_in_page(number).or_else(|| self.kept(number));
            page.set(number, value.unwrap_or(0));
        }
    }

    /// Sees to a write to the page, at `offset`, that needs nothing else; returns whether it was one.
    #[inline(always)]
    pub fn written_quietly(&mut self, page: &mut ApicPage, offset: u16) -> bool {
        let number = u32::from(offset) >> 4;
        if u32::from(offset) == EOI << 4 {
            return self.ended_quietly(page);
        }
        let held = self.write_quiet_lvt(number, page.get(number));
        if let Some(held) = held {
            page.set(number, held);
        }
        held.is_some()
    }

    /// Ends an interrupt whose end nobody waits for: it was edge-triggered, and none is requested. Returns whether it was
    /// one.
    #[inline(always)]
    fn ended_quietly(&mut self, page: &mut ApicPage) -> bool {
        let vector = self.isr.highest();
        if self.irr.highest() != 0 || self.tmr.contains(vector) {
            return false;
        }
        if vector != 0 {
            self.isr.remove(vector);
            let word = u32::from(vector) / 32;
            page.set(registers::ISR + word, self.isr.word(word as usize));
        }
        page.set(EOI, 0);
        true
    }

    /// Does what the guest has asked for by a write to the page, at `offset`: an APIC-write VM exit. [`show`](Self::show)
    /// must follow, for what the register really holds.
    #[inline]
    pub fn written(&mut self, page: &ApicPage, offset: u16, now: Tsc) -> Effect {
        self.take(page);
        self.write(offset & 0xFF0, page.register(offset), now)
    }

    /// Returns the class below which the guest's task priority must not fall unnoticed: that of the highest vector
    /// requested, where the task priority holds it back; 0 where it does not.
    #[inline]
    pub const fn held_back(&self) -> u8 {
        let class = self.irr.highest() >> 4;
        if class <= self.task_priority >> 4 { class } else { 0 }
    }
}

#[cfg(test)]
mod tests;
