//! What a virtual processor answers by itself: CPUID, MSRs, XSETBV, hypercalls.

use super::cpuid::Dynamic;
use super::{Appliance, Backend, Vcpu, World, xsetbv};
use crate::exit::{Event, Msr, Resolution};
use crate::hw::Host;
use crate::registers::{CR4_OSXSAVE, ControlRegister, Gpr};
use crate::time::Tsc;

/// What RAX holds after a hypercall that nobody knows: -1.
pub const UNKNOWN_HYPERCALL: u64 = u64::MAX;

impl<B: Backend, A: Appliance> Vcpu<B, A> {
    #[inline]
    pub(super) fn cpuid(&mut self, leaf: u32, subleaf: u32) -> Resolution {
        let (backend, apic_id) = (&self.backend, self.index as u32);
        let [eax, ebx, ecx, edx] = self.cpuid.lookup(leaf, subleaf, || {
            let cr4 = backend.control(ControlRegister::Cr4);
            let xcr0 = if cr4 & CR4_OSXSAVE != 0 { backend.xcr0() } else { 1 };
            Dynamic { cr4, xcr0, xss: 0, apic_id }
        });
        self.backend.set_gpr(Gpr::Rax, eax.into());
        self.backend.set_gpr(Gpr::Rbx, ebx.into());
        self.backend.set_gpr(Gpr::Rcx, ecx.into());
        self.backend.set_gpr(Gpr::Rdx, edx.into());
        Resolution::Complete
    }

    pub(super) fn xsetbv(&mut self, xcr: u32, value: u64) -> Resolution {
        let cr4 = self.backend.control(ControlRegister::Cr4);
        match xsetbv::check(cr4, self.backend.cpl(), xcr, value, self.cpuid.xcr0()) {
            Ok(()) => {
                self.backend.set_xcr0(value);
                Resolution::Complete
            }
            Err(event) => Resolution::Inject(event),
        }
    }

    pub(super) fn hypercall(&mut self) -> Resolution {
        if self.backend.cpl() != 0 {
            return Resolution::Inject(Event::UNDEFINED);
        }
        self.backend.set_gpr(Gpr::Rax, UNKNOWN_HYPERCALL);
        Resolution::Complete
    }

    #[inline]
    pub(super) fn read_msr<H: Host>(&mut self, msr: Msr, world: &mut World<'_, H>, now: Tsc) -> Resolution {
        let answer = world.chipset.read_msr(self.index, msr, now);
        let value = match answer {
            Some(Ok(value)) => value,
            Some(Err(event)) => return Resolution::Inject(event),
            None => match self.backend.switched_msr(msr) {
                Some(value) => value,
                None if msr.0 == 0xC000_0080 => self.backend.efer(),
                None => return Resolution::Inject(Event::GENERAL_PROTECTION),
            },
        };
        self.backend.set_edx_eax(value);
        Resolution::Complete
    }

    #[inline]
    pub(super) fn write_msr<H: Host>(
        &mut self,
        msr: Msr,
        value: u64,
        world: &mut World<'_, H>,
        now: Tsc,
    ) -> Resolution {
        match world.chipset.write_msr(self.index, msr, value, now) {
            Some(Ok(())) => self.after_devices(world, Resolution::Complete),
            Some(Err(event)) => Resolution::Inject(event),
            None if msr.0 == 0xC000_0080 => {
                self.backend.set_efer(value);
                Resolution::Complete
            }
            None if self.backend.set_switched_msr(msr, value) => Resolution::Complete,
            None => Resolution::Inject(Event::GENERAL_PROTECTION),
        }
    }
}
