//! The PMU of a virtual processor where it meets the run loop: who owns the registers, the interrupt on its way to the
//! local APIC, and what the guest's instructions count when the hypervisor executes them.

use super::answer::Answer;
use super::{Appliance, Backend, Vcpu, World};
use crate::devices::lapic::LocalApic;
use crate::error::Result;
use crate::exit::{Event, Msr};
use crate::hw::{Host, PmiRoute};
use crate::pmu::emulated::EmulatedPmu;
use crate::pmu::host::Parked;
use crate::pmu::mechanism::{COUNTERS_FROZEN, frozen_by_interrupt};
use crate::pmu::paravirt::Paravirt;
use crate::pmu::state::{State, StateError};
use crate::pmu::{Pmu, PmuCounts, PmuPolicy, PmuReport, PmuView, Retired};
use crate::registers::ControlRegister;
use crate::time::Tsc;

/// IA32_DEBUGCTL
const DEBUGCTL: Msr = Msr(0x1D9);

/// Does something to the registers of the guest's PMU, wherever they are: in the processor, or kept while the host counts.
macro_rules! registers {
    ($vcpu:ident, |$hardware:ident| $body:expr) => {
        match &mut $vcpu.beside {
            Some(beside) if P::HOST_COUNTS && beside.runs && beside.counters.plan().keeps_status() => {
                let whole = beside.counters.plan().parks_guest();
                let $hardware = &mut Parked { kept: &mut beside.guest, whole, hardware: &mut $vcpu.backend };
                $body
            }
            _ => {
                let $hardware = &mut $vcpu.backend;
                $body
            }
        }
    };
}

impl<B: Backend, A: Appliance, P: PmuPolicy> Vcpu<B, A, P> {
    /// The guest's registers go into the processor, unless they are there.
    #[inline]
    pub(super) fn enter_pmu<H: Host>(&mut self, world: &mut World<'_, H>) -> Result<()> {
        if (Pmu::<P>::PRESENT || P::PARAVIRTUAL)
            && let Some(apic) = world.chipset.local_apic(self.index)
        {
            apic.mask_performance_monitoring_on_delivery(!self.cpuid.is_amd());
        }
        if Pmu::<P>::PRESENT {
            match &mut self.emulated {
                Some(emulated) => emulated.start(&mut self.backend),
                None => self.pmu.acquire(&mut self.backend, world.host)?,
            }
            self.hear_pmu(world);
            self.mirror_pmu(world);
        }
        self.enter_lent(world);
        Ok(())
    }

    /// The guest has ended: nothing of it stays in the processor.
    #[cold]
    pub(super) fn leave_pmu<H: Host>(&mut self, world: &mut World<'_, H>) {
        // While the host's counters are still there: what the guest leaves is cleared with all that are.
        self.end_host(world);
        if self.take_shared_pmi(world) {
            self.pmu.came();
        }
        self.leave_lent(world);
        if Pmu::<P>::PRESENT {
            match &mut self.emulated {
                Some(emulated) => registers!(self, |hardware| emulated.end(hardware, world.host)),
                None => registers!(self, |hardware| self.pmu.release(hardware, world.host)),
            }
            self.end_direct(world);
        }
        if let Some(beside) = &mut self.beside {
            beside.runs = false;
        }
    }

    /// Returns the state of the guest's PMU for a snapshot; `None` when it has none (requirement A29). The guest does not
    /// run.
    pub fn save_pmu<H: Host>(&self, world: &mut World<'_, H>) -> Option<State> {
        let debug_control = self.backend.switched_msr(DEBUGCTL).unwrap_or(0);
        if let Some(emulated) = &self.emulated {
            return Some(emulated.save(debug_control));
        }
        // Nothing is kept beside a host that counts: the end of a run has put it where it is without one.
        self.pmu.save(debug_control, &self.backend, world.host)
    }

    /// Gives the guest's PMU the state of a snapshot, and IA32_DEBUGCTL those bits that are the PMU's: its other bits stay.
    /// The guest does not run.
    ///
    /// # Errors
    /// The first value that the guest could not have written itself; nothing has changed then.
    pub fn restore_pmu<H: Host>(
        &mut self,
        state: &State,
        world: &mut World<'_, H>,
    ) -> core::result::Result<(), StateError> {
        match &mut self.emulated {
            Some(emulated) => emulated.restore(state, self.pmu.policy())?,
            None => self.pmu.restore(state, &mut self.backend, world.host)?,
        }
        let view = self.emulated.as_ref().map(EmulatedPmu::view).or(self.pmu.view());
        let bits = view.map_or(0, PmuView::debugctl_bits);
        if bits != 0 {
            let others = self.backend.switched_msr(DEBUGCTL).unwrap_or(0) & !bits;
            self.backend.set_switched_msr(DEBUGCTL, others | state.debug_control);
        }
        Ok(())
    }

    /// The guest is about to be entered: its emulated clock runs.
    #[inline(always)]
    pub(super) fn start_clock<H: Host>(&mut self, world: &World<'_, H>) {
        if let Some(emulated) = &mut self.emulated
            && Pmu::<P>::EMULATED
        {
            emulated.on_entry(world.host.now());
        }
    }

    /// The guest has left: its emulated clock stands still.
    #[inline(always)]
    pub(super) fn stop_clock(&mut self, now: Tsc) {
        if let Some(emulated) = &mut self.emulated
            && Pmu::<P>::EMULATED
        {
            emulated.set_freezes(freezes(&self.backend) & COUNTERS_FROZEN != 0);
            registers!(self, |hardware| emulated.on_exit(now, hardware));
        }
    }

    /// The exit has been seen to: an interrupt of the emulated counters may have become due.
    #[inline(always)]
    pub(super) fn hear_emulated<H: Host>(&mut self, world: &mut World<'_, H>) {
        if Pmu::<P>::EMULATED {
            self.hear_pmu(world);
        }
    }

    /// Returns when the emulated clock interrupts, if the guest is entered now.
    #[inline(always)]
    pub(super) fn clock_deadline(&self, now: impl FnOnce() -> Tsc) -> Option<Tsc> {
        self.emulated.as_ref().filter(|emulated| Pmu::<P>::EMULATED && emulated.ticks())?.deadline(now())
    }

    /// RDPMC (SDM Vol. 2B "RDPMC").
    pub(super) fn read_counter(&mut self, ecx: u32) -> Answer {
        let cr4 = self.backend.control(ControlRegister::Cr4);
        let cpl = self.backend.cpl();
        let value = match &mut self.emulated {
            Some(emulated) if Pmu::<P>::EMULATED => {
                registers!(self, |hardware| emulated.read_counter(ecx, cpl, cr4, hardware))
            }
            _ => registers!(self, |hardware| self.pmu.read_counter(ecx, cpl, cr4, hardware)),
        };
        match value {
            Some(value) => {
                self.backend.set_edx_eax(value);
                Answer::Complete
            }
            None => self.raise(Event::GENERAL_PROTECTION),
        }
    }

    /// An instruction of the guest has been executed here.
    #[inline(always)]
    pub(super) fn retired<H: Host>(&mut self, branch: bool, world: &mut World<'_, H>) {
        if !Pmu::<P>::PRESENT {
            return self.retired_lent(branch);
        }
        let retired = Retired { cpl: self.backend.cpl(), branch };
        if let Some(emulated) = &mut self.emulated
            && Pmu::<P>::EMULATED
        {
            return registers!(self, |hardware| emulated.retire(retired, hardware));
        }
        let frozen = if P::HOST_COUNTS { freezes(&self.backend) } else { 0 };
        let interrupts = match &mut self.beside {
            Some(_) if P::HOST_COUNTS => registers!(self, |hardware| self.pmu.retire(retired, hardware, |_| frozen)),
            _ => self.pmu.retire(retired, &mut self.backend, freezes),
        };
        if interrupts {
            self.interrupt_by_counters(world);
        }
    }

    /// Reports what the guest gets of the PMU and what it does not, and why.
    pub fn pmu_report(&self) -> PmuReport {
        self.emulated.as_ref().map_or_else(|| self.pmu.report(), |emulated| PmuReport::new(Ok(*emulated.view())))
    }

    /// Returns what has happened to the guest's PMU.
    pub fn pmu_counts(&self) -> PmuCounts {
        self.emulated.as_ref().map_or_else(|| self.pmu.counts(), EmulatedPmu::counts)
    }

    /// RDMSR of a register of the PMU; `None` for #GP.
    #[inline]
    pub(super) fn read_pmu_msr(&mut self, msr: Msr) -> Option<u64> {
        match &mut self.emulated {
            Some(emulated) if Pmu::<P>::EMULATED => registers!(self, |hardware| emulated.read_msr(msr, hardware)),
            _ => registers!(self, |hardware| self.pmu.read(msr, hardware)),
        }
    }

    /// WRMSR to a register of the PMU: it counts by what it finds there, as in the processor.
    #[cold]
    pub(super) fn write_pmu_msr<H: Host>(&mut self, msr: Msr, value: u64, world: &mut World<'_, H>) -> Answer {
        let retired = Retired { cpl: self.backend.cpl(), branch: false };
        if let Some(emulated) = &mut self.emulated
            && Pmu::<P>::EMULATED
        {
            emulated.set_freezes(freezes(&self.backend) & COUNTERS_FROZEN != 0);
            let policy = self.pmu.policy();
            let written = registers!(self, |hardware| emulated.write_msr(msr, value, retired, policy, hardware));
            // A counter may have a deadline now.
            self.attention = true;
            if written.is_none() {
                return self.raise(Event::GENERAL_PROTECTION);
            }
            self.backend.advance(world.memory);
            return Answer::Retry;
        }
        let counting = registers!(self, |hardware| self.pmu.counting(retired, hardware));
        if registers!(self, |hardware| self.pmu.write(msr, value, hardware)).is_none() {
            return self.raise(Event::GENERAL_PROTECTION);
        }
        self.backend.advance(world.memory);
        if counting != 0 {
            let freezes = freezes(&self.backend);
            if registers!(self, |hardware| self.pmu.credit(counting, hardware, |_| freezes)) {
                self.interrupt_by_counters(world);
            }
        }
        Answer::Retry
    }

    /// The host has taken interrupts: one may have been the PMU's.
    #[inline]
    pub(super) fn hear_pmu<H: Host>(&mut self, world: &mut World<'_, H>) {
        if !Pmu::<P>::PRESENT {
            return self.hear_lent(world);
        }
        if Pmu::<P>::DIRECT {
            self.sync_direct(world);
            return self.mirror_pmu(world);
        }
        let shared = self.take_shared_pmi(world);
        let heard = match &mut self.emulated {
            Some(emulated) if Pmu::<P>::EMULATED => {
                let came = emulated.uses_processor() && (shared || world.host.take_guest_pmi());
                registers!(self, |hardware| emulated.hear(came, hardware))
            }
            _ => {
                if shared {
                    self.pmu.came();
                }
                let came = self.pmu.take_interrupt(world.host);
                if came {
                    registers!(self, |hardware| self.pmu.settle(hardware));
                }
                came
            }
        };
        if heard {
            self.interrupt_by_counters(world);
        }
    }

    /// The counters interrupt, or would if the guest's local APIC let them.
    pub(super) fn interrupt_by_counters<H: Host>(&mut self, world: &mut World<'_, H>) {
        if self.interrupt_by_pmu(world) {
            match &mut self.emulated {
                Some(emulated) if Pmu::<P>::EMULATED => emulated.count_interrupt(),
                _ => self.pmu.count_interrupt(),
            }
        }
    }

    /// The guest's local APIC delivers an interrupt by the entry of the counters (A25); returns whether it lets it
    /// through.
    pub(super) fn interrupt_by_pmu<H: Host>(&mut self, world: &mut World<'_, H>) -> bool {
        self.sync_pmu(world);
        let delivered = world.chipset.local_apic(self.index).is_some_and(LocalApic::raise_performance_monitoring);
        if delivered {
            self.happened(Paravirt::count_pmi);
        }
        self.attention = true;
        self.mirror_pmu(world);
        delivered
    }

    /// The guest may have written its LVTPC, and the processor's follows (A24).
    #[inline]
    pub(super) fn mirror_pmu<H: Host>(&mut self, world: &mut World<'_, H>) {
        if !Pmu::<P>::PRESENT {
            return;
        }
        let at_entry = self.routes_at_entry();
        if at_entry && !Pmu::<P>::EMULATED {
            return;
        }
        let route = self.guest_route(world);
        match &mut self.emulated {
            Some(emulated) if Pmu::<P>::EMULATED => {
                let changed = registers!(self, |hardware| emulated.mirror(route != PmiRoute::Masked, hardware));
                if let Some(route) = changed.filter(|_| !at_entry) {
                    world.host.route_pmi(route);
                }
            }
            _ if !at_entry => self.pmu.mirror(route, &mut self.backend, world.host),
            _ => {}
        }
    }
}

/// Returns what an interrupt freezes, as bits of IA32_PERF_GLOBAL_STATUS.
fn freezes(backend: &impl Backend) -> u64 {
    backend.switched_msr(DEBUGCTL).map_or(0, frozen_by_interrupt)
}
