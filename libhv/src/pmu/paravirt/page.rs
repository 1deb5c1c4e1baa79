//! What is done at an exit while somebody asks: ticks are added up, overflows found, and the page of counters brought
//! up to date, by the words that changed.

use super::Paravirt;
use super::abi::{PageBlock, REASONS, Reason, VERSION};
use crate::address::Gpa;
use crate::memory::GuestMemory;
use crate::trace::{Kind, Trace};
use core::mem::offset_of;

const fn word(offset: usize) -> usize {
    offset / 8
}

const SEQUENCE: usize = word(offset_of!(PageBlock, sequence));
const OVERFLOWED: usize = word(offset_of!(PageBlock, overflowed));
const STOLEN_TICKS: usize = word(offset_of!(PageBlock, stolen_ticks));
const INJECTED_PMIS: usize = word(offset_of!(PageBlock, injected_pmis));
const INJECTED_INTERRUPTS: usize = word(offset_of!(PageBlock, injected_interrupts));
const EMULATED_INSTRUCTIONS: usize = word(offset_of!(PageBlock, emulated_instructions));
const EXITS: usize = word(offset_of!(PageBlock, exits));

impl Paravirt {
    /// Takes down an exit that has been handled in `ticks`, and that `trace` holds; brings the page up to date. Returns
    /// whether the interrupt of performance-monitoring counters is to be raised.
    #[inline(always)]
    pub fn handled(&mut self, kind: Kind, ticks: u64, trace: &Trace, memory: &mut GuestMemory) -> bool {
        // A guest that halts waits for something of its own.
        if kind != Kind::Halt {
            self.stolen_ticks = self.stolen_ticks.wrapping_add(ticks);
        }
        if self.watched != 0 {
            self.watch(trace);
        }
        if let Some(page) = self.page {
            if self.fresh || self.dirty {
                self.write_page(page, trace, memory);
            } else {
                let reason = Reason::from(kind);
                let sequence = self.sequence;
                self.sequence = sequence.wrapping_add(2);
                // The page was memory when the guest named it, and memory stays.
                let _ = memory.write_words(
                    page,
                    [
                        (SEQUENCE, sequence.wrapping_add(1)),
                        (EXITS + reason.number() as usize, self.exits(reason, trace)),
                        (STOLEN_TICKS, self.stolen_ticks),
                        (SEQUENCE, sequence.wrapping_add(2)),
                    ],
                );
            }
        }
        self.due && self.take_due()
    }

    /// Brings the page up to date where something has changed since the exit was handled: the guest was given an
    /// interrupt.
    #[inline]
    pub fn refresh(&mut self, trace: &Trace, memory: &mut GuestMemory) {
        if let Some(page) = self.page
            && self.dirty
        {
            self.write_page(page, trace, memory);
        }
    }

    #[cold]
    fn take_due(&mut self) -> bool {
        self.due = false;
        self.ask();
        true
    }

    /// Looks for overflows of software events.
    #[cold]
    fn watch(&mut self, trace: &Trace) {
        for id in (0..self.events.len()).filter(|id| self.watched >> id & 1 != 0) {
            let Some(mut event) = self.events[id] else { continue };
            event.settle(self.total(&event, trace, &mut ()));
            if event.find_overflows() != 0 {
                self.overflowed |= 1 << id;
                self.due |= event.notifies();
                self.dirty = true;
            }
            self.events[id] = Some(event);
        }
    }

    #[cold]
    #[inline(never)]
    fn write_page(&mut self, page: Gpa, trace: &Trace, memory: &mut GuestMemory) {
        let (odd, even) = (self.sequence.wrapping_add(1), self.sequence.wrapping_add(2));
        let _ = memory.write_words(page, [(SEQUENCE, odd)]);
        if core::mem::take(&mut self.fresh) {
            let empty = PageBlock { version: VERSION, length: PageBlock::LENGTH, sequence: odd, ..PageBlock::zeroed() };
            let _ = memory.write(page, &empty.to_bytes());
        }
        let words = [
            (OVERFLOWED, self.overflowed),
            (STOLEN_TICKS, self.stolen_ticks),
            (INJECTED_PMIS, self.injected_pmis),
            (INJECTED_INTERRUPTS, self.injected_interrupts),
            (EMULATED_INSTRUCTIONS, self.emulated_instructions),
        ];
        let _ = memory.write_words(page, words);
        let exits = |number| Reason::from_number(number).map_or(0, |reason| self.exits(reason, trace));
        let exits: [(usize, u64); REASONS] = core::array::from_fn(|number| (EXITS + number, exits(number as u32)));
        let _ = memory.write_words(page, exits);
        let _ = memory.write_words(page, [(SEQUENCE, even)]);
        (self.sequence, self.dirty) = (even, false);
    }
}
