//! Save and restore (requirement B7): the whole state is one value, and comes back through the checks that a guest's
//! own calls pass.

use super::abi::{
    REASONS, Reason, Refusal, SAVED_ENABLED, SAVED_OPEN, SAVED_OVERFLOWED, STATE_DUE, STATE_PAGE, SavedEvent, State,
    VERSION,
};
use super::event::Event;
use super::request::{Request, check_header};
use super::source::CounterSource;
use super::{DUE, FRESH, Paravirt};
use crate::address::Gpa;
use crate::memory::GuestMemory;
use crate::trace::Trace;

/// Why a state cannot be restored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BadState {
    /// The policy gives the guest no events.
    NoEvents,
    /// Its version, its length, or something reserved in its head.
    Head(Refusal),
    /// Its page of counters.
    Page(Refusal),
    /// An event of it.
    Event {
        /// Its identifier.
        id: u32,
        /// What a guest's own call would have been answered.
        why: Refusal,
    },
    /// Numbers of an event that no event can have come to hold.
    Impossible {
        /// Its identifier.
        id: u32,
    },
}

impl Paravirt {
    /// Returns all that it is, at the moment `trace` tells of; it goes on as it was. Counters of `source` are read.
    pub fn save(&self, trace: &Trace, source: &mut impl CounterSource) -> State {
        let mut state = State {
            version: VERSION,
            length: State::LENGTH,
            sequence: self.sequence,
            stolen_ticks: self.stolen_ticks,
            injected_pmis: self.injected_pmis,
            injected_interrupts: self.injected_interrupts,
            emulated_instructions: self.emulated_instructions,
            ..State::zeroed()
        };
        if let Some(page) = self.page {
            (state.flags, state.page, state.under) = (STATE_PAGE, page.as_u64(), self.under);
        }
        for (number, exits) in (0..).zip(&mut state.exits) {
            *exits = Reason::from_number(number).map_or(0, |reason| self.exits(reason, trace));
        }
        let mut due = self.more & DUE != 0;
        for ((id, event), saved) in self.events.iter().enumerate().zip(&mut state.events) {
            let Some(mut event) = *event else { continue };
            event.settle(self.total(&event, trace, source));
            let found = event.find_overflows() != 0;
            due |= found && event.notifies();
            *saved = event.saved();
            if found || self.overflowed >> id & 1 != 0 {
                saved.flags |= SAVED_OVERFLOWED;
            }
        }
        if due {
            state.flags |= STATE_DUE;
        }
        state
    }

    /// Makes one that goes on where `state` was saved: on another host, with a `trace` of its own and a `source` of its
    /// own, and with the guest's `memory` as it was. The page of counters is written at the first exit.
    ///
    /// # Errors
    /// [`BadState`], with no counter of `source` taken.
    pub fn restore(
        state: &State,
        memory: &GuestMemory,
        trace: &Trace,
        source: &mut impl CounterSource,
    ) -> Result<Self, BadState> {
        let mut paravirt = Self::of_head(state, trace)?;
        if state.flags & STATE_PAGE != 0 {
            paravirt.check_page(Gpa::new(state.page), memory).map_err(BadState::Page)?;
            (paravirt.page, paravirt.under) = (Some(Gpa::new(state.page)), state.under);
            paravirt.more |= FRESH;
        }
        for (id, saved) in (0..).zip(&state.events) {
            if let Err(why) = paravirt.resume(id, saved, memory, trace, source) {
                paravirt.close_all(source);
                return Err(why);
            }
        }
        paravirt.ask();
        Ok(paravirt)
    }

    fn of_head(state: &State, trace: &Trace) -> Result<Self, BadState> {
        check_header(state.version, state.length, State::LENGTH).map_err(BadState::Head)?;
        let no_page = state.flags & STATE_PAGE == 0 && (state.page != 0 || state.under.iter().any(|word| *word != 0));
        let unknown = state.exits.iter().skip(Reason::ALL.len()).chain(&state.reserved).any(|&word| word != 0);
        if state.flags & !(STATE_PAGE | STATE_DUE) != 0 || no_page || unknown || !state.sequence.is_multiple_of(2) {
            return Err(BadState::Head(Refusal::ReservedBits));
        }
        let mut paravirt = Self {
            sequence: state.sequence,
            stolen_ticks: state.stolen_ticks,
            injected_pmis: state.injected_pmis,
            injected_interrupts: state.injected_interrupts,
            emulated_instructions: state.emulated_instructions,
            more: if state.flags & STATE_DUE != 0 { DUE } else { 0 },
            ..Self::new()
        };
        let mut origin = [0; REASONS];
        for &reason in Reason::ALL {
            let number = reason.number() as usize;
            origin[number] = state.exits[number].wrapping_sub(paravirt.exits(reason, trace));
        }
        paravirt.origin = origin;
        Ok(paravirt)
    }

    fn resume(
        &mut self,
        id: u32,
        saved: &SavedEvent,
        memory: &GuestMemory,
        trace: &Trace,
        source: &mut impl CounterSource,
    ) -> Result<(), BadState> {
        let refused = |why| BadState::Event { id, why };
        if saved.flags & SAVED_OPEN == 0 {
            let nothing = *saved == SavedEvent::zeroed();
            return if nothing { Ok(()) } else { Err(refused(Refusal::ReservedBits)) };
        }
        if saved.flags & !(SAVED_OPEN | SAVED_ENABLED | SAVED_OVERFLOWED) != 0 {
            return Err(refused(Refusal::ReservedBits));
        }
        let request = Request::decode(&saved.open).map_err(refused)?;
        if request.id != id {
            return Err(BadState::Impossible { id });
        }
        self.check_place(&request, memory).map_err(refused)?;
        let event = Event::resumed(request, saved).ok_or(BadState::Impossible { id })?;
        let mut event = self.lend(event, source).map_err(refused)?;
        if saved.flags & SAVED_ENABLED != 0 {
            event.enable(self.total(&event, trace, source), source);
        }
        self.more |= u32::from(event.is_watched()) << id;
        if saved.flags & SAVED_OVERFLOWED != 0 {
            self.overflowed |= 1 << id;
        }
        self.events[id as usize] = Some(event);
        Ok(())
    }
}
