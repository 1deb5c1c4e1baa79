#![doc = include_str!("abi.md")]
//!
//! # In the library
//! [`Paravirt`] is the state of one virtual processor's events, pure of hardware; the policy [`Paravirtual`] gives a
//! guest one, on top of any policy for the PMU, and [`Vcpu`](crate::vcpu::Vcpu) saves and restores it. The tables above,
//! the blocks' layout and the C header `abi.h` come from one definition, [`abi`].

pub mod abi;
mod call;
mod event;
pub mod layout;
pub mod lent;
mod page;
mod policy;
pub mod request;
mod saved;
pub mod source;
#[cfg(test)]
mod specification;
#[cfg(test)]
mod tests;

pub use abi::Refusal;
pub use call::Call;
pub use policy::Paravirtual;
pub use saved::BadState;
pub use source::{CounterId, CounterSource, HardwareEvent, NotLent};

use crate::address::{Gpa, PAGE_SIZE};
use crate::memory::GuestMemory;
use crate::trace::Trace;
use abi::{MAX_EVENTS, REASONS, Reason, Software};
use event::Event;
use request::Counted;

/// The events whose overflow is looked for at every exit, a bit each.
const WATCHED: u32 = (1 << MAX_EVENTS) - 1;
/// An overflow was found that the guest is to be told.
const DUE: u32 = 1 << MAX_EVENTS;
/// The page has never been written.
const FRESH: u32 = DUE << 1;
/// Words of the page have changed that not every exit changes.
const DIRTY: u32 = DUE << 2;

/// Words of 64 bits in a page.
const PAGE_WORDS: usize = (PAGE_SIZE / 8) as usize;

/// What a call answers: done, or why not.
pub type Answer = Result<(), Refusal>;

/// Returns what EAX holds after a call.
pub const fn status(answer: Answer) -> u32 {
    match answer {
        Ok(()) => 0,
        Err(refusal) => refusal.number(),
    }
}

/// One virtual processor's paravirtual events.
///
/// The exits are counted by its [`Trace`], whoever asks for them or not; all else that is counted is counted here.
#[derive(Clone, Debug)]
pub struct Paravirt {
    events: [Option<Event>; MAX_EVENTS as usize],
    page: Option<Gpa>,
    /// What of the guest's own stood where the page is.
    under: [u64; PAGE_WORDS],
    sequence: u64,
    /// Exits before this processor was restored here, less those that its trace held then.
    origin: [u64; REASONS],
    stolen_ticks: u64,
    injected_pmis: u64,
    injected_interrupts: u64,
    emulated_instructions: u64,
    /// Events that have overflowed since their result was last written, a bit each.
    overflowed: u64,
    /// What an exit needs beside its own words in the page: [`WATCHED`], [`DUE`], [`FRESH`], [`DIRTY`].
    more: u32,
    /// There is something to do at every exit.
    asked: bool,
}

impl Default for Paravirt {
    fn default() -> Self {
        Self::new()
    }
}

impl Paravirt {
    /// Begins without events and without a page.
    pub const fn new() -> Self {
        Self {
            events: [const { None }; MAX_EVENTS as usize],
            page: None,
            under: [0; PAGE_WORDS],
            sequence: 0,
            origin: [0; REASONS],
            stolen_ticks: 0,
            injected_pmis: 0,
            injected_interrupts: 0,
            emulated_instructions: 0,
            overflowed: 0,
            more: 0,
            asked: false,
        }
    }

    /// Closes all events and gives the page up: the guest was reset, or asks for as much.
    pub fn reset(&mut self, memory: &mut GuestMemory, source: &mut impl CounterSource) {
        self.give_up_page(memory);
        self.close_all(source);
        self.ask();
    }

    fn close_all(&mut self, source: &mut impl CounterSource) {
        for event in self.events.iter_mut().filter_map(Option::take) {
            event.release(source);
        }
        (self.overflowed, self.more) = (0, 0);
    }

    /// Gives the page up, where there is one: the guest's memory is there again as it was.
    pub fn give_up_page(&mut self, memory: &mut GuestMemory) {
        if let Some(page) = self.page.take() {
            // The page was memory when the guest named it, and memory stays.
            let _ = memory.write_page(page, |words| {
                self.under.iter().enumerate().for_each(|(number, word)| words.set(number, *word));
            });
        }
        self.ask();
    }

    /// Returns where the guest has its page of counters.
    pub fn page(&self) -> Option<Gpa> {
        self.page
    }

    /// Returns whether anything is to be done at every exit: then [`handled`](Self::handled) is to be called.
    #[inline]
    pub fn asked(&self) -> bool {
        self.asked
    }

    /// Takes down that an interrupt of a performance-monitoring counter was raised.
    #[inline]
    pub fn count_pmi(&mut self) {
        self.injected_pmis = self.injected_pmis.wrapping_add(1);
        self.more |= DIRTY;
    }

    /// Takes down that a maskable interrupt was delivered.
    #[inline]
    pub fn count_interrupt(&mut self) {
        self.injected_interrupts = self.injected_interrupts.wrapping_add(1);
        self.more |= DIRTY;
    }

    /// Takes down that an instruction was executed in software.
    #[inline]
    pub fn count_emulated(&mut self) {
        self.emulated_instructions = self.emulated_instructions.wrapping_add(1);
        self.more |= DIRTY;
    }

    /// Looks at the counters of `source`, one of which may have counted what it was watched for.
    pub fn look(&mut self, trace: &Trace, source: &mut impl CounterSource) {
        for id in 0..self.events.len() {
            let Some(mut event) = self.events[id].filter(Event::is_enabled) else { continue };
            // One without a period is looked at too: its counter has run over, and is to go on from where it can.
            let Some(counter) = event.counter() else { continue };
            event.settle(self.total(&event, trace, source));
            if event.find_overflows() != 0 {
                self.overflowed |= 1 << id;
                self.more |= DIRTY | if event.notifies() { DUE } else { 0 };
            }
            source.watch(counter, event.ahead());
            self.events[id] = Some(event);
        }
        self.ask();
    }

    /// Returns whether the interrupt of performance-monitoring counters is to be raised, once: for a guest that does not
    /// run, where no exit will be handled that says so.
    pub fn take_due(&mut self) -> bool {
        let due = self.more & DUE != 0;
        self.more &= !DUE;
        due
    }

    fn ask(&mut self) {
        let counts_ticks = |event: &Event| event.counted() == Counted::Software(Software::StolenTicks);
        self.asked =
            self.page.is_some() || self.more & (WATCHED | DUE) != 0 || self.events.iter().flatten().any(counts_ticks);
    }

    #[inline(always)]
    fn exits(&self, reason: Reason, trace: &Trace) -> u64 {
        trace.count(reason.into()).exits.wrapping_add(self.origin[reason.number() as usize % REASONS])
    }

    /// Returns how often a software event has happened.
    pub fn happened(&self, event: Software, trace: &Trace) -> u64 {
        match event {
            Software::Exits => Reason::ALL.iter().fold(0, |sum, &reason| self.exits(reason, trace).wrapping_add(sum)),
            Software::StolenTicks => self.stolen_ticks,
            Software::NestedFaults => self.exits(Reason::NestedPageFault, trace),
            Software::InjectedPmis => self.injected_pmis,
            Software::InjectedInterrupts => self.injected_interrupts,
            Software::EmulatedInstructions => self.emulated_instructions,
        }
    }

    /// Returns what a counter that was always on would hold; a lent one, since it was lent.
    fn total(&self, event: &Event, trace: &Trace, source: &mut impl CounterSource) -> u64 {
        match (event.counted(), event.counter()) {
            (Counted::Software(software), _) => self.happened(software, trace),
            (Counted::Exits(reason), _) => self.exits(reason, trace),
            (Counted::Hardware(_), Some(counter)) => source.read(counter),
            (Counted::Hardware(_), None) => 0,
        }
    }
}
