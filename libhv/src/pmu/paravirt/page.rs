//! What is done at an exit while somebody asks: ticks are added up, overflows found, and the page of counters brought
//! up to date, by the words that changed.

use super::abi::{PageBlock, Reason, VERSION};
use super::{DIRTY, DUE, FRESH, PAGE_WORDS, Paravirt, WATCHED};
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
        if self.more != 0 {
            return self.handled_further(kind, trace, memory);
        }
        self.write_exit(kind, trace, memory);
        false
    }

    /// Writes what every exit changes.
    #[inline(always)]
    fn write_exit(&mut self, kind: Kind, trace: &Trace, memory: &mut GuestMemory) {
        let Some(page) = self.page else { return };
        let sequence = self.sequence;
        self.sequence = sequence.wrapping_add(2);
        // The page was memory when the guest named it, and memory stays.
        let _ = memory.write_page(page, |words| {
            self.each_word_of_exit(sequence, kind, trace, |number, value| words.set(number, value));
        });
    }

    /// Gives `set` the words that an exit changes, in the order in which a reader may see them.
    #[inline(always)]
    pub(super) fn each_word_of_exit(&self, sequence: u64, kind: Kind, trace: &Trace, mut set: impl FnMut(usize, u64)) {
        let reason = Reason::from(kind);
        set(SEQUENCE, sequence.wrapping_add(1));
        set(EXITS + reason.number() as usize, self.exits(reason, trace));
        set(STOLEN_TICKS, self.stolen_ticks);
        set(SEQUENCE, sequence.wrapping_add(2));
    }

    #[inline(never)]
    fn handled_further(&mut self, kind: Kind, trace: &Trace, memory: &mut GuestMemory) -> bool {
        self.watch(trace);
        if self.more & (FRESH | DIRTY) != 0 {
            self.write_more(Some(kind), trace, memory);
        } else {
            self.write_exit(kind, trace, memory);
        }
        let due = self.more & DUE != 0;
        if due {
            self.more &= !DUE;
            self.ask();
        }
        due
    }

    /// Brings the page up to date where something has changed since the exit was handled: the guest was given an
    /// interrupt.
    #[inline]
    pub fn refresh(&mut self, trace: &Trace, memory: &mut GuestMemory) {
        if self.more & DIRTY != 0 {
            self.write_more(None, trace, memory);
        }
    }

    /// Looks for overflows of software events.
    fn watch(&mut self, trace: &Trace) {
        let mut rest = self.more & WATCHED;
        while rest != 0 {
            let id = rest.trailing_zeros();
            rest &= rest - 1;
            let Some(event) = self.events.get(id as usize).and_then(Option::as_ref) else { continue };
            let total = self.total(event, trace, &mut ());
            let Some(event) = self.events.get_mut(id as usize).and_then(Option::as_mut) else { continue };
            event.settle(total);
            if event.find_overflows() != 0 {
                self.overflowed |= 1 << id;
                self.more |= DIRTY | if event.notifies() { DUE } else { 0 };
            }
        }
    }

    /// Writes what the less frequent exits change, and after `last` what it changed; all of a page that is fresh.
    #[inline(never)]
    fn write_more(&mut self, last: Option<Kind>, trace: &Trace, memory: &mut GuestMemory) {
        let fresh = self.more & FRESH != 0;
        self.more &= !(FRESH | DIRTY);
        let Some(page) = self.page else { return };
        let (odd, even) = (self.sequence.wrapping_add(1), self.sequence.wrapping_add(2));
        self.sequence = even;
        let _ = memory.write_page(page, |words| words.set(SEQUENCE, odd));
        let _ = memory.write_page(page, |words| {
            if fresh {
                (0..PAGE_WORDS).filter(|number| *number != SEQUENCE).for_each(|number| words.set(number, 0));
                words.set(0, u64::from(VERSION) | u64::from(PageBlock::LENGTH) << 32);
            }
            words.set(OVERFLOWED, self.overflowed);
            words.set(STOLEN_TICKS, self.stolen_ticks);
            words.set(INJECTED_PMIS, self.injected_pmis);
            words.set(INJECTED_INTERRUPTS, self.injected_interrupts);
            words.set(EMULATED_INSTRUCTIONS, self.emulated_instructions);
            let all = if fresh { Reason::ALL } else { &[] };
            for reason in all.iter().copied().chain(last.map(Reason::from)) {
                words.set(EXITS + reason.number() as usize, self.exits(reason, trace));
            }
            words.set(SEQUENCE, even);
        });
    }
}
