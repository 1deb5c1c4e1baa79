//! Paravirtual events of a virtual processor where they meet the run loop: calls, what is counted at an exit, and the
//! processor's counters that are lent for hardware events.
//!
//! All of it is behind [`PmuPolicy::PARAVIRTUAL`], a constant: without the policy nothing is there. With it an exit costs
//! one comparison until the guest asks for something, and one more where counters can be lent.

use super::answer::Answer;
use super::cpuid::CpuidTable;
use super::own::UNKNOWN_HYPERCALL;
use super::{Appliance, Backend, Vcpu, World};
use crate::exit::{NestedPageFault, StopReason};
use crate::hw::Host;
use crate::pmu::paravirt::abi::{
    FEATURE_HARDWARE, FEATURE_PAGE, FEATURE_SOFTWARE, MAX_EVENTS, Operation, Refusal, State, VERSION,
};
use crate::pmu::paravirt::lent::{AtHand, Lender, lends};
use crate::pmu::paravirt::{BadState, Call, Paravirt, status};
use crate::pmu::{PmuPolicy, Retired};
use crate::registers::Gpr;
use crate::time::Tsc;
use crate::trace::Kind;

/// Tells the guest of its events.
pub(super) fn announce(cpuid: &mut CpuidTable, lender: Option<&Lender>) {
    let counters = lender.map_or(0, Lender::counters).min(MAX_EVENTS);
    let hardware = if counters != 0 { FEATURE_HARDWARE } else { 0 };
    cpuid.announce_events([VERSION, MAX_EVENTS, FEATURE_SOFTWARE | FEATURE_PAGE | hardware, counters]);
}

/// The counters that a virtual processor's events are counted with.
macro_rules! source {
    ($vcpu:ident) => {
        &mut AtHand {
            lender: $vcpu.lender.as_deref_mut(),
            own: $vcpu.pmu.view().is_some() || $vcpu.emulated.is_some(),
            hardware: &mut $vcpu.backend,
        }
    };
}

impl<B: Backend, A: Appliance, P: PmuPolicy> Vcpu<B, A, P> {
    /// Returns its paravirtual events; `None` where the policy gives none.
    pub fn paravirt(&self) -> Option<&Paravirt> {
        self.paravirt.as_deref()
    }

    /// Returns the state of its paravirtual events for a snapshot; `None` where the policy gives none (requirement B7). The
    /// guest does not run.
    pub fn save_paravirt(&mut self) -> Option<State> {
        Some(self.paravirt.as_ref()?.save(&self.trace, source!(self)))
    }

    /// Gives it the paravirtual events of a snapshot instead of its own; the page of counters is written at the first exit.
    /// The guest does not run.
    ///
    /// The guest's memory is restored after this: what is written to a page of counters is ignored, and the page of before
    /// is the guest's memory from here on.
    ///
    /// # Errors
    /// What the guest's own calls would have been answered, or what no events can have come to; nothing has changed then.
    pub fn restore_paravirt<H: Host>(
        &mut self,
        state: &State,
        world: &mut World<'_, H>,
    ) -> core::result::Result<(), BadState> {
        let Some(paravirt) = &mut self.paravirt else { return Err(BadState::NoEvents) };
        let mut lender = self.lender.as_deref().map(Lender::anew);
        let own = self.pmu.view().is_some() || self.emulated.is_some();
        let mut source = AtHand { lender: lender.as_mut(), own, hardware: &mut self.backend };
        let restored = Paravirt::restore(state, world.memory, &self.trace, &mut source);
        // Its counters count when the guest runs, whose processor's they are only then.
        if let Some(lender) = &mut lender {
            lender.end(&mut self.backend, world.host);
        }
        let restored = restored?;
        if !self.backend.set_read_only(restored.page()) {
            return Err(BadState::Page(Refusal::NotProtected));
        }
        world.memory.set_read_only(restored.page());
        self.asked = restored.asked();
        **paravirt = restored;
        if let (Some(place), Some(lender)) = (self.lender.as_deref_mut(), lender) {
            *place = lender;
        }
        Ok(())
    }

    /// Answers a hypercall.
    #[cold]
    #[inline(never)]
    pub(super) fn paravirtual_call<H: Host>(&mut self, world: &mut World<'_, H>) -> Answer {
        let [rax, rbx, rcx, rdx] = [Gpr::Rax, Gpr::Rbx, Gpr::Rcx, Gpr::Rdx].map(|gpr| self.backend.gpr(gpr));
        let before = self.counting_lent(false);
        let (Some(paravirt), Some(call)) = (&mut self.paravirt, Call::from_registers(rax, rbx, rcx, rdx)) else {
            self.backend.set_gpr(Gpr::Rax, UNKNOWN_HYPERCALL);
            return Answer::Complete;
        };
        let answer = match call.operation {
            Operation::Page => paravirt.check_page(call.address, world.memory).and_then(|()| {
                let protected = self.backend.set_read_only(Some(call.address));
                if protected { Ok(()) } else { Err(Refusal::NotProtected) }
            }),
            _ => Ok(()),
        };
        let answer = answer.and_then(|()| paravirt.hypercall(call, world.memory, &self.trace, source!(self)));
        self.asked = paravirt.asked();
        self.protect_page(world);
        self.backend.set_gpr(Gpr::Rax, status(answer).into());
        if let Some(lender) = &mut self.lender {
            lender.route(&mut self.backend, world.host);
        }
        let after = self.counting_lent(false);
        if after == 0 {
            return Answer::Complete;
        }
        // The call itself is counted by events that count before and after it: not by one that it starts or stops.
        self.backend.advance(world.memory);
        self.credit_lent(before & after);
        Answer::Retry
    }

    /// Has the guest find its page of counters, where there is one, as ROM.
    fn protect_page<H: Host>(&mut self, world: &mut World<'_, H>) {
        let page = self.paravirt.as_ref().and_then(|paravirt| paravirt.page());
        if page != world.memory.read_only() {
            world.memory.set_read_only(page);
            self.backend.set_read_only(page);
        }
    }

    /// Gives the page of counters up.
    #[cold]
    fn give_up_page<H: Host>(&mut self, world: &mut World<'_, H>) {
        if let Some(paravirt) = &mut self.paravirt {
            paravirt.give_up_page(world.memory);
            self.asked = paravirt.asked();
        }
        self.protect_page(world);
    }

    /// The guest has written to its page of counters: that is ignored. What cannot be ignored, because no instruction did
    /// it that can be executed here, has the page given up: it takes effect in the guest's own memory.
    #[cold]
    #[inline(never)]
    pub(super) fn write_to_page<H: Host>(
        &mut self,
        fault: NestedPageFault,
        world: &mut World<'_, H>,
        now: Tsc,
    ) -> Answer {
        if let Some(event) = self.backend.take_interrupted() {
            self.give_up_page(world);
            self.deliver_again(event);
            return Answer::Retry;
        }
        match self.emulate(Some(&fault), world, now) {
            Answer::Stop if matches!(self.end, Some(StopReason::Unemulated(_))) => {
                self.end = None;
                self.give_up_page(world);
                Answer::Retry
            }
            answer => answer,
        }
    }

    /// Returns the counters lent that count an instruction of the guest's now.
    #[inline(always)]
    fn counting_lent(&self, branch: bool) -> u64 {
        match &self.lender {
            Some(lender) if lends::<P>() && lender.counts() => {
                lender.counting(Retired { cpl: self.backend.cpl(), branch })
            }
            _ => 0,
        }
    }

    fn credit_lent(&mut self, counters: u64) {
        if let Some(lender) = &mut self.lender
            && lender.credit(counters, &mut self.backend)
        {
            self.look_at_lent();
        }
    }

    /// An instruction of the guest has been executed here: events count it (A26).
    #[inline(always)]
    pub(super) fn retired_lent(&mut self, branch: bool) {
        if lends::<P>() {
            let counters = self.counting_lent(branch);
            if counters != 0 {
                self.credit_lent(counters);
            }
        }
    }

    /// A counter that is lent may have counted what it was watched for.
    #[cold]
    #[inline(never)]
    fn look_at_lent(&mut self) {
        if let Some(paravirt) = &mut self.paravirt {
            paravirt.look(&self.trace, source!(self));
            self.asked = paravirt.asked();
        }
    }

    /// The guest is about to run on this processor.
    pub(super) fn enter_lent<H: Host>(&mut self, world: &mut World<'_, H>) {
        if let Some(lender) = &mut self.lender
            && lends::<P>()
        {
            lender.start(&mut self.backend, world.host);
            self.look_at_lent();
        }
    }

    /// The guest has ended.
    pub(super) fn leave_lent<H: Host>(&mut self, world: &mut World<'_, H>) {
        if let Some(lender) = &mut self.lender
            && lends::<P>()
        {
            lender.end(&mut self.backend, world.host);
        }
    }

    /// The host has taken interrupts: one may have been that of a counter lent.
    #[inline]
    pub(super) fn hear_lent<H: Host>(&mut self, world: &mut World<'_, H>) {
        if let Some(lender) = &mut self.lender
            && lends::<P>()
        {
            let heard = lender.hear(&mut self.backend, world.host);
            lender.route(&mut self.backend, world.host);
            if heard {
                self.look_at_lent();
            }
        }
    }

    /// Interrupts a guest that halts, where an event has overflowed.
    pub(super) fn interrupt_halted<H: Host>(&mut self, world: &mut World<'_, H>) {
        if P::PARAVIRTUAL
            && let Some(paravirt) = &mut self.paravirt
            && paravirt.take_due()
        {
            self.interrupt_by_pmu(world);
        }
    }

    /// An exit has been handled that came at `left_at`.
    #[inline(always)]
    pub(super) fn count_exit<H: Host>(&mut self, kind: Kind, left_at: Tsc, world: &mut World<'_, H>) {
        if P::PARAVIRTUAL && self.asked {
            let ticks = world.host.now().0.wrapping_sub(left_at.0);
            let Some(paravirt) = &mut self.paravirt else { return };
            if paravirt.handled(kind, ticks, &self.trace, world.memory) {
                self.asked = paravirt.asked();
                self.interrupt_by_pmu(world);
            }
        }
    }

    /// Something has happened that has an event of its own.
    #[inline(always)]
    pub(super) fn happened(&mut self, what: impl FnOnce(&mut Paravirt)) {
        if P::PARAVIRTUAL
            && let Some(paravirt) = &mut self.paravirt
        {
            what(paravirt);
        }
    }

    /// The guest is about to run, and something may have happened since the last exit was handled.
    #[inline]
    pub(super) fn refresh_page<H: Host>(&mut self, world: &mut World<'_, H>) {
        if P::PARAVIRTUAL
            && let Some(paravirt) = &mut self.paravirt
        {
            paravirt.refresh(&self.trace, world.memory);
        }
    }
}
