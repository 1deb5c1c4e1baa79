//! Interrupts of a guest's counters that reach it without an exit, where they meet the run loop: the guest's virtual local
//! APIC learns of them when it matters. All of it is behind [`Pmu::DIRECT`], a constant.

use super::msr::index::{APIC_BASE, X2APIC_FIRST};
use super::{Appliance, Backend, Vcpu, World};
use crate::address::Gpa;
use crate::devices::lapic::{Delivery, LocalApic};
use crate::exit::Msr;
use crate::hw::{Host, PmiRoute};
use crate::pmu::mechanism::Came;
use crate::pmu::paravirt::Paravirt;
use crate::pmu::{Pmu, PmuPolicy};

/// Registers of the local APIC, by their offset, that show or change whether LVTPC is masked: itself, and the one that
/// disables the local APIC by software.
const LVTPC: u32 = 0x340;
const SPURIOUS: u32 = 0xF0;

impl<B: Backend, A: Appliance, P: PmuPolicy> Vcpu<B, A, P> {
    /// Has the guest's local APIC show what the processor's has delivered to the guest without an exit: LVTPC is masked
    /// then (A24). To be called before the guest reads or writes that entry; without direct interrupts there is nothing to
    /// do. Costs a read of the processor's entry.
    #[inline(always)]
    pub fn sync_pmu<H: Host>(&mut self, world: &mut World<'_, H>) {
        if Pmu::<P>::DIRECT {
            self.sync_direct(world);
        }
    }

    #[inline(never)]
    pub(super) fn sync_direct<H: Host>(&mut self, world: &mut World<'_, H>) {
        self.attention |= self.hear_direct(world);
    }

    /// As above, for a caller that brings what has changed to the page of the local APIC.
    #[inline(always)]
    pub(super) fn take_direct<H: Host>(&mut self, world: &mut World<'_, H>) {
        if Pmu::<P>::DIRECT {
            self.hear_direct(world);
        }
    }

    /// Returns whether anything has come.
    fn hear_direct<H: Host>(&mut self, world: &mut World<'_, H>) -> bool {
        let mut any = false;
        loop {
            match self.pmu.take_any(world.host) {
                Came::Nothing => return any,
                came => {
                    self.pmu.settle(&mut self.backend);
                    self.tell_apic(came, world);
                }
            }
            any = true;
        }
    }

    /// The guest's local APIC does what is to be done about an interrupt that came.
    fn tell_apic<H: Host>(&mut self, came: Came, world: &mut World<'_, H>) {
        let Some(apic) = world.chipset.local_apic(self.index) else { return };
        let anew = match came {
            Came::Nothing => return,
            Came::ToHost => apic.raise_performance_monitoring(),
            Came::ToGuest => apic.performance_monitoring_was_delivered(),
            Came::Nmi => {
                apic.deliver(Delivery::Nmi, 0, false);
                false
            }
        };
        // What has reached the guest already leaves nothing to deliver.
        self.attention |= came != Came::ToGuest;
        if anew {
            self.pmu.count_interrupt();
            self.happened(Paravirt::count_pmi);
        }
    }

    /// The guest is about to write an MSR of its local APIC; the processor's entry follows when it has.
    #[inline(always)]
    pub(super) fn before_apic_write<H: Host>(&mut self, msr: Msr, world: &mut World<'_, H>) {
        if Pmu::<P>::DIRECT && [X2APIC_FIRST + LVTPC / 16, X2APIC_FIRST + SPURIOUS / 16, APIC_BASE].contains(&msr.0) {
            self.sync_direct(world);
        }
    }

    /// The guest is about to read an MSR of its local APIC.
    #[inline(always)]
    pub(super) fn before_apic_read<H: Host>(&mut self, msr: Msr, world: &mut World<'_, H>) {
        if Pmu::<P>::DIRECT && msr.0 == X2APIC_FIRST + LVTPC / 16 {
            self.sync_direct(world);
            self.mirror_pmu(world);
        }
    }

    /// The guest is about to access what is not memory.
    pub(super) fn before_memory<H: Host>(&mut self, gpa: Gpa, world: &mut World<'_, H>) {
        let (page, register) = (Gpa::new(gpa.as_u64() & !0xFFF), gpa.as_u64() as u32 & 0xFF0);
        let apic = |apic: &mut LocalApic| apic.page() == Some(page);
        // With a page this is the exit by which the guest learns of it, whatever it reads.
        let tells = self.apic.served::<B>().is_some() || [LVTPC, SPURIOUS].contains(&register);
        if tells && world.chipset.local_apic(self.index).is_some_and(apic) {
            self.sync_direct(world);
        }
    }

    /// The guest has written a register in the page that its processor serves. Returns whether it is what a handler of
    /// these interrupts ends with, and has been seen to: the entry of LVTPC once more, for the next one.
    #[inline(always)]
    pub(super) fn armed_again<H: Host>(&mut self, offset: u16, world: &mut World<'_, H>) -> bool {
        if !Pmu::<P>::DIRECT || u32::from(offset) != LVTPC {
            return false;
        }
        let Some(page) = self.apic.served::<B>() else { return false };
        let Some(apic) = world.chipset.local_apic(self.index) else { return false };
        let again = apic.holds_performance_monitoring(page.register(offset)) && self.pmu.arm_again(world.host);
        if again {
            self.happened(Paravirt::count_pmi);
        }
        again
    }

    /// The guest has written a register in the page that its processor serves; it has not been taken note of yet.
    #[inline(always)]
    pub(super) fn before_page_write<H: Host>(&mut self, offset: u16, world: &mut World<'_, H>) {
        if Pmu::<P>::DIRECT && [LVTPC, SPURIOUS].contains(&u32::from(offset)) {
            self.take_direct(world);
        }
    }

    /// The guest has left by an NMI: it leaves by them while it is watched for an NMI window.
    #[cold]
    pub(super) fn guest_nmi<H: Host>(&mut self, world: &mut World<'_, H>) {
        let came = self.pmu.left_by_nmi(world.host);
        self.pmu.settle(&mut self.backend);
        self.tell_apic(came, world);
        self.mirror_pmu(world);
    }

    /// The guest has ended, and nothing comes any more: what it has got is known. What it has not waits for its next turn.
    pub(super) fn end_direct<H: Host>(&mut self, world: &mut World<'_, H>) {
        if Pmu::<P>::DIRECT {
            if self.pmu.take_unseen() {
                self.tell_apic(Came::ToGuest, world);
            }
            if self.pmu.take_other_nmi(world.host) {
                self.tell_apic(Came::Nmi, world);
            }
        }
    }

    /// Returns where the processor's LVTPC is to send interrupts, by the guest's.
    #[inline(always)]
    pub(super) fn guest_route<H: Host>(&self, world: &mut World<'_, H>) -> PmiRoute {
        match world.chipset.local_apic(self.index) {
            Some(apic) if self.pmu.is_direct() && apic.performance_monitoring_is_nmi() => PmiRoute::GuestNmi,
            Some(apic) if apic.takes_performance_monitoring() => PmiRoute::Guest,
            _ => PmiRoute::Masked,
        }
    }
}
