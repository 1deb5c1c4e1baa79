//! The calls: what the registers say, and what becomes of it. Every check comes before the first change.

use super::abi::{CALL, OpenBlock, Operation, Reason, Refusal, ResultBlock, Software};
use super::event::Event;
use super::request::{Counted, Request, check_header};
use super::source::CounterSource;
use super::{Answer, DIRTY, DUE, FRESH, Paravirt};
use crate::address::{Gpa, PAGE_SIZE};
use crate::memory::GuestMemory;
use crate::memory::guest::NotMemory;
use crate::trace::Trace;

/// A call, as the registers say it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Call {
    /// What is asked for.
    pub operation: Operation,
    /// EBX: an event's identifier.
    pub id: u32,
    /// ECX and EDX: a guest-physical address, its lower and its upper half.
    pub address: Gpa,
}

impl Call {
    /// Takes a call from RAX, RBX, RCX and RDX, of which the lower halves count; `None` when it is no call of this
    /// interface.
    #[inline]
    pub fn from_registers(rax: u64, rbx: u64, rcx: u64, rdx: u64) -> Option<Self> {
        let operation = Operation::from_number((rax as u32).wrapping_sub(CALL))?;
        Some(Self { operation, id: rbx as u32, address: Gpa::new(rdx << 32 | rcx & 0xFFFF_FFFF) })
    }
}

impl Paravirt {
    /// Carries a call out. `trace` does not hold the exit of the call itself yet.
    ///
    /// # Errors
    /// [`Refusal`], and nothing has changed.
    pub fn hypercall(
        &mut self,
        call: Call,
        memory: &mut GuestMemory,
        trace: &Trace,
        source: &mut impl CounterSource,
    ) -> Answer {
        match call.operation {
            Operation::Open => self.open(call.address, memory, source),
            Operation::Close => self.close(call.id, source),
            Operation::Enable => self.enable(call.id, trace, source),
            Operation::Disable => self.report(call.id, true, memory, trace, source),
            Operation::Read => self.report(call.id, false, memory, trace, source),
            Operation::Page => self.take_page(call.address, memory),
            Operation::PageOff => {
                self.give_up_page(memory);
                Ok(())
            }
            Operation::Reset => {
                self.reset(memory, source);
                Ok(())
            }
        }
    }

    fn open(&mut self, address: Gpa, memory: &mut GuestMemory, source: &mut impl CounterSource) -> Answer {
        if !address.as_u64().is_multiple_of(8) {
            return Err(Refusal::Unaligned);
        }
        let mut bytes = [0; OpenBlock::LENGTH as usize];
        memory.read(address, &mut bytes).map_err(|_| Refusal::BadAddress)?;
        let request = Request::decode(&OpenBlock::from_bytes(&bytes))?;
        self.check_place(&request, memory)?;
        let mut bytes = [0; ResultBlock::LENGTH as usize];
        memory.read(request.result, &mut bytes).map_err(|_| Refusal::BadAddress)?;
        let ResultBlock { version, length, flags, .. } = ResultBlock::from_bytes(&bytes);
        check_header(version, length, ResultBlock::LENGTH)?;
        if flags != 0 {
            return Err(Refusal::ReservedBits);
        }
        let event = self.lend(Event::new(request, None), source)?;
        if write_result(&event, memory).is_err() {
            event.release(source);
            return Err(Refusal::BadAddress);
        }
        self.events[request.id as usize] = Some(event);
        self.ask();
        Ok(())
    }

    /// Checks that there is room for an event: its identifier, and its result block.
    pub(super) fn check_place(&self, request: &Request, memory: &GuestMemory) -> Answer {
        let place = self.events.get(request.id as usize).ok_or(Refusal::IdOutOfRange)?;
        if place.is_some() {
            return Err(Refusal::IdInUse);
        }
        if !memory.contains(request.result, ResultBlock::LENGTH.into()) {
            return Err(Refusal::BadAddress);
        }
        match self.page {
            Some(page) if overlap(page, request.result) => Err(Refusal::Overlap),
            _ => Ok(()),
        }
    }

    /// Gives an event the counter it needs.
    pub(super) fn lend(&self, event: Event, source: &mut impl CounterSource) -> Result<Event, Refusal> {
        let Counted::Hardware(hardware) = event.counted() else { return Ok(event) };
        let counter = source.open(hardware)?;
        Ok(event.with_counter(Some(counter)))
    }

    fn find(&mut self, id: u32) -> Result<&mut Option<Event>, Refusal> {
        let place = self.events.get_mut(id as usize).ok_or(Refusal::IdOutOfRange)?;
        if place.is_some() { Ok(place) } else { Err(Refusal::UnknownId) }
    }

    fn close(&mut self, id: u32, source: &mut impl CounterSource) -> Answer {
        if let Some(event) = self.find(id)?.take() {
            event.release(source);
        }
        self.forget_overflow(id);
        self.more &= !(1 << id);
        self.ask();
        Ok(())
    }

    fn forget_overflow(&mut self, id: u32) {
        let bit = 1 << id;
        if self.overflowed & bit != 0 {
            self.overflowed &= !bit;
            self.more |= DIRTY;
        }
    }

    fn enable(&mut self, id: u32, trace: &Trace, source: &mut impl CounterSource) -> Answer {
        let Some(mut event) = *self.find(id)? else { return Err(Refusal::UnknownId) };
        if event.is_enabled() {
            return Ok(());
        }
        // The exit of this very call is none that the event has seen.
        let own = match event.counted() {
            Counted::Software(Software::Exits) | Counted::Exits(Reason::Hypercall) => 1,
            _ => 0,
        };
        let total = self.total(&event, trace, source).wrapping_add(own);
        event.enable(total, source);
        self.more |= u32::from(event.is_watched()) << id;
        self.events[id as usize] = Some(event);
        self.ask();
        Ok(())
    }

    /// Brings an event's count up to date and writes its result; has it count no more where `stop` says so.
    fn report(
        &mut self,
        id: u32,
        stop: bool,
        memory: &mut GuestMemory,
        trace: &Trace,
        source: &mut impl CounterSource,
    ) -> Answer {
        let Some(mut event) = *self.find(id)? else { return Err(Refusal::UnknownId) };
        event.settle(self.total(&event, trace, source));
        let found = event.find_overflows() != 0;
        let stopped = stop.then(|| event.disable()).flatten();
        write_result(&event, memory).map_err(|_| Refusal::BadAddress)?;
        match (stopped, event.counter()) {
            (Some(counter), _) => source.stop(counter),
            (None, Some(counter)) if event.is_enabled() => source.watch(counter, event.ahead()),
            _ => {}
        }
        self.more |= if found && event.notifies() { DUE } else { 0 };
        self.forget_overflow(id);
        self.more = self.more & !(1 << id) | u32::from(event.is_watched()) << id;
        self.events[id as usize] = Some(event);
        self.ask();
        Ok(())
    }

    fn take_page(&mut self, address: Gpa, memory: &mut GuestMemory) -> Answer {
        self.check_page(address, memory)?;
        if self.page != Some(address) {
            self.give_up_page(memory);
            for (number, word) in (0..).zip(&mut self.under) {
                *word = memory.word(address.wrapping_add(8 * number)).ok_or(Refusal::BadAddress)?;
            }
            self.page = Some(address);
        }
        self.more |= FRESH;
        self.ask();
        Ok(())
    }

    /// Checks that the page of counters may stand at `address`.
    ///
    /// # Errors
    /// What a call that names it is answered.
    pub fn check_page(&self, address: Gpa, memory: &GuestMemory) -> Answer {
        if address.page_offset() != 0 {
            return Err(Refusal::Unaligned);
        }
        if !memory.contains(address, PAGE_SIZE) {
            return Err(Refusal::BadAddress);
        }
        if self.events.iter().flatten().any(|event| overlap(address, event.result())) {
            return Err(Refusal::Overlap);
        }
        Ok(())
    }
}

fn write_result(event: &Event, memory: &mut GuestMemory) -> Result<(), NotMemory> {
    memory.write(event.result(), &event.block().to_bytes())
}

/// Returns whether a result block has any byte in the page.
fn overlap(page: Gpa, result: Gpa) -> bool {
    let last = result.wrapping_add(u64::from(ResultBlock::LENGTH) - 1);
    let number = |address: Gpa| address.as_u64() / PAGE_SIZE;
    (number(result)..=number(last)).contains(&number(page))
}
