//! The local APIC of a virtual processor where the processor serves its registers from a page: what the guest has done there
//! goes to the model, what the model makes of it back to the page.
//!
//! The page is true whenever the guest runs: all that changes the local APIC asks for attention, or is seen to here.

use super::answer::Answer;
use super::{Appliance, Backend, Vcpu, World};
use crate::devices::lapic::ApicPage;
use crate::exit::{ApicAccess, NestedPageFault};
use crate::hw::Host;
use crate::pmu::PmuPolicy;
use crate::time::Tsc;

/// The page of the local APIC, where the processor can serve it.
#[derive(Debug)]
pub(super) struct Pages {
    served: Option<ApicPage>,
    spare: Option<ApicPage>,
}

impl Pages {
    pub(super) fn of(backend: &mut impl Backend) -> Self {
        Self { served: None, spare: backend.give_apic_page() }
    }

    fn is_there(&self) -> bool {
        self.served.is_some() || self.spare.is_some()
    }

    fn serve(&mut self, on: bool) {
        let page = self.served.take().or(self.spare.take());
        *(if on { &mut self.served } else { &mut self.spare }) = page;
    }

    /// Returns the page that the processor serves; `None` where it serves none.
    #[inline(always)]
    pub(super) fn served<B: Backend>(&mut self) -> Option<&mut ApicPage> {
        if B::SERVES_APIC { self.served.as_mut() } else { None }
    }
}

impl<B: Backend, A: Appliance, P: PmuPolicy> Vcpu<B, A, P> {
    /// The guest may have moved its local APIC, turned it off or on, or changed its mode.
    #[cold]
    pub(super) fn follow_apic_mode<H: Host>(&mut self, world: &mut World<'_, H>) {
        self.take_apic(world);
        let Some(apic) = world.chipset.local_apic(self.index) else { return };
        let served = self.apic.is_there() && self.backend.virtualize_apic(apic.may_be_shown());
        apic.show_all();
        self.apic.serve(served);
        self.show_apic(world);
    }

    /// Fetches what the guest has written to the page without an exit.
    #[inline]
    pub(super) fn take_apic<H: Host>(&mut self, world: &mut World<'_, H>) {
        if let Some(page) = self.apic.served::<B>()
            && let Some(apic) = world.chipset.local_apic(self.index)
        {
            apic.take(page);
        }
    }

    /// Brings what has changed to the page, and has the guest leave when it lowers a task priority that holds something
    /// back.
    #[inline(always)]
    pub(super) fn show_apic<H: Host>(&mut self, world: &mut World<'_, H>) {
        if let Some(page) = self.apic.served::<B>()
            && let Some(apic) = world.chipset.local_apic(self.index)
        {
            apic.show(page);
            let class = apic.held_back();
            self.backend.set_priority_threshold(class);
        }
    }

    /// As [`attend`](Self::attend), with a page.
    #[inline(never)]
    pub(super) fn attend_with_page<H: Host>(&mut self, world: &mut World<'_, H>) {
        self.take_apic(world);
        self.take_direct(world);
        self.attend(world);
        self.show_apic(world);
    }

    /// A register has been written in the page, by an instruction that has been executed and counted.
    #[inline(always)]
    pub(super) fn apic_write<H: Host>(&mut self, offset: u16, world: &mut World<'_, H>, now: Tsc) -> Answer {
        if self.armed_again(offset, world) {
            return Answer::Retry;
        }
        self.before_page_write(offset, world);
        let Some(page) = self.apic.served::<B>() else { return Answer::NotMine };
        if world.chipset.local_apic(self.index).is_some_and(|apic| apic.written_quietly(page, offset)) {
            self.mirror_pmu(world);
            return Answer::Retry;
        }
        self.apic_command(offset, world, now)
    }

    /// A register has been written that does something.
    #[inline(never)]
    fn apic_command<H: Host>(&mut self, offset: u16, world: &mut World<'_, H>, now: Tsc) -> Answer {
        let Some(page) = self.apic.served::<B>() else { return Answer::NotMine };
        world.chipset.apic_written(self.index, page, offset, now);
        self.mirror_pmu(world);
        let answer = self.after_ports(world, Answer::Retry);
        if !self.attention {
            self.show_apic(world);
        }
        answer
    }

    /// An access that the processor leaves to the hypervisor is emulated, as where there is no page.
    #[cold]
    pub(super) fn apic_access<H: Host>(&mut self, access: ApicAccess, world: &mut World<'_, H>, now: Tsc) -> Answer {
        let ApicAccess { offset, write, fetch, page_walk } = access;
        let Some(page) = world.chipset.local_apic(self.index).and_then(|apic| apic.page()) else {
            return Answer::NotMine;
        };
        let gpa = page.wrapping_add(offset.into());
        let fault = NestedPageFault { gpa, gva: None, write, fetch, present: true, page_walk };
        self.nested_page_fault(fault, world, now)
    }
}
