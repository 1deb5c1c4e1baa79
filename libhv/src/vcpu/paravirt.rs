//! Paravirtual events of a virtual processor where they meet the run loop: calls, and what is counted at an exit.
//!
//! All of it is behind [`PmuPolicy::PARAVIRTUAL`], a constant: without the policy nothing is there. With it an exit costs
//! one comparison until the guest asks for something.

use super::cpuid::CpuidTable;
use super::own::UNKNOWN_HYPERCALL;
use super::{Appliance, Backend, Vcpu, World};
use crate::hw::Host;
use crate::pmu::PmuPolicy;
use crate::pmu::paravirt::abi::{FEATURE_HARDWARE, FEATURE_PAGE, FEATURE_SOFTWARE, MAX_EVENTS, VERSION};
use crate::pmu::paravirt::{Call, CounterSource, Paravirt, status};
use crate::registers::Gpr;
use crate::time::Tsc;
use crate::trace::Kind;

/// Where hardware events come from: nowhere.
const SOURCE: () = ();

/// Tells the guest of its events.
pub(super) fn announce(cpuid: &mut CpuidTable) {
    const fn features<S: CounterSource>(_: &S) -> u32 {
        FEATURE_SOFTWARE | FEATURE_PAGE | if S::LENDS { FEATURE_HARDWARE } else { 0 }
    }
    cpuid.announce_events([VERSION, MAX_EVENTS, features(&SOURCE), 0]);
}

impl<B: Backend, A: Appliance, P: PmuPolicy> Vcpu<B, A, P> {
    /// Returns its paravirtual events; `None` where the policy gives none.
    pub fn paravirt(&self) -> Option<&Paravirt> {
        self.paravirt.as_deref()
    }

    /// Answers a hypercall: returns what RAX will hold.
    #[cold]
    #[inline(never)]
    pub(super) fn paravirtual_call<H: Host>(&mut self, world: &mut World<'_, H>) -> u64 {
        let [rax, rbx, rcx, rdx] = [Gpr::Rax, Gpr::Rbx, Gpr::Rcx, Gpr::Rdx].map(|gpr| self.backend.gpr(gpr));
        let (Some(paravirt), Some(call)) = (&mut self.paravirt, Call::from_registers(rax, rbx, rcx, rdx)) else {
            return UNKNOWN_HYPERCALL;
        };
        let answer = paravirt.hypercall(call, world.memory, &self.trace, &mut { SOURCE });
        self.asked = paravirt.asked();
        status(answer).into()
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
