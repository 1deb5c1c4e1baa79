//! The host's own counters beside those of a virtual processor: at entry and exit, at an NMI, and where the guest's
//! registers are meanwhile.

use super::{Appliance, Backend, Vcpu, World};
use crate::error::{Error, Requirement, Result};
use crate::hw::Host;
use crate::pmu::host::{HostPmu, Kept, Plan, Post};
use crate::pmu::policy::PmuShare;
use crate::pmu::{Pmu, PmuPolicy, PmuView};
use alloc::boxed::Box;

/// The host's counters, and what is kept of the guest's meanwhile.
#[derive(Debug)]
pub(super) struct Beside {
    pub(super) counters: HostPmu,
    pub(super) guest: Kept,
    /// The guest runs, with the host's counters in its processor: what is kept of the guest's is nowhere else.
    pub(super) runs: bool,
}

impl<B: Backend, A: Appliance, P: PmuPolicy> Vcpu<B, A, P> {
    /// Returns the account of the host's counters, once the guest has been entered.
    pub fn host_counters(&self) -> Option<&'static Post> {
        self.beside.as_ref().map(|beside| beside.counters.post())
    }

    /// Starts the host's counters, unless they run: the guest's registers are in the processor then, or kept.
    pub(super) fn start_host<H: Host>(&mut self, world: &mut World<'_, H>) -> Result<()> {
        let Some(events) = self.pmu.policy().host_events().filter(|_| P::HOST_COUNTS) else { return Ok(()) };
        if self.beside.is_none() {
            // An emulated PMU has counters of the processor's too, unless it counts by the clock alone.
            let view = match &self.emulated {
                Some(emulated) => Some(emulated.view()).filter(|_| emulated.uses_processor()),
                None => self.pmu.view(),
            };
            let guest = view.map(PmuView::guest).map(|guest| PmuShare {
                counters: guest.counters,
                fixed: guest.fixed,
                lbr: false,
            });
            let switch = self.backend.global_switch();
            let counters = HostPmu::new(events, self.processor_pmu.as_ref(), guest.as_ref(), switch)
                .map_err(|why| Error::Unsupported(Requirement::HostCounters(why)))?;
            counters.post().publish();
            self.beside = Some(Box::new(Beside { counters, guest: Kept::default(), runs: false }));
        }
        if let Some(beside) = self.beside.as_deref_mut().filter(|beside| !beside.runs) {
            beside.counters.adopt(&mut beside.guest, &mut self.backend);
            beside.counters.start(self.index, &mut self.backend, world.host);
            beside.runs = true;
        }
        Ok(())
    }

    /// Stops the host's counters; what is kept of the guest's stays so.
    pub(super) fn end_host<H: Host>(&mut self, world: &mut World<'_, H>) {
        if !P::HOST_COUNTS {
            return;
        }
        if let Some(beside) = self.beside.as_deref_mut().filter(|beside| beside.runs) {
            beside.counters.end(&mut self.backend, world.host);
        }
    }

    /// The guest is about to be entered: the host's events stop.
    #[inline(always)]
    pub(super) fn stop_host<H: Host>(&mut self, world: &mut World<'_, H>) {
        if !P::HOST_COUNTS {
            return;
        }
        let route = self.guest_route(world);
        if let Some(beside) = &mut self.beside {
            let Beside { counters, guest, .. } = &mut **beside;
            counters.on_entry(&mut self.backend, world.host, guest, route);
        }
    }

    /// The guest has left: the host's events go on.
    #[inline(always)]
    pub(super) fn resume_host<H: Host>(&mut self, world: &mut World<'_, H>) {
        if let Some(beside) = &mut self.beside
            && P::HOST_COUNTS
        {
            let Beside { counters, guest, .. } = &mut **beside;
            // What an emulated PMU has the processor count, it writes itself.
            counters.on_exit(&mut self.backend, world.host, guest, !Pmu::<P>::EMULATED);
        }
    }

    /// The guest has left for an NMI.
    pub(super) fn host_nmi<H: Host>(&mut self, world: &mut World<'_, H>) {
        let rip = self.backend.rip();
        if let Some(beside) = &mut self.beside
            && P::HOST_COUNTS
        {
            beside.counters.on_nmi(&mut self.backend, world.host, rip);
            self.hear_pmu(world);
        }
    }

    /// Returns whether an interrupt of the guest's counters has come by a route that it shares with the host.
    #[inline(always)]
    pub(super) fn take_shared_pmi<H: Host>(&mut self, world: &mut World<'_, H>) -> bool {
        match &mut self.beside {
            Some(beside) if P::HOST_COUNTS && Pmu::<P>::PRESENT => beside.counters.take_guest_pmi(world.host),
            _ => false,
        }
    }

    /// Returns whether an interrupt of the guest's has come by the host's route.
    #[inline(always)]
    pub(super) fn guest_pmi_waits(&self) -> bool {
        Pmu::<P>::PRESENT && self.beside.as_ref().is_some_and(|beside| beside.counters.has_guest_pmi())
    }

    /// Returns whether the interrupt is routed at entry and exit, not when the guest writes its LVTPC.
    #[inline(always)]
    pub(super) fn routes_at_entry(&self) -> bool {
        P::HOST_COUNTS
            && self
                .beside
                .as_ref()
                .is_some_and(|beside| matches!(beside.counters.plan(), Plan::Switch | Plan::PartitionRouted))
    }
}
