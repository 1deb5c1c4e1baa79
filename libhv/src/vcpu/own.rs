//! What a virtual processor answers by itself: CPUID, MSRs, XSETBV, hypercalls.

use super::answer::Answer;
use super::cpuid::Dynamic;
use super::msr::{MsrContext, MsrRead, MsrWrite, index};
use super::{Appliance, Backend, Vcpu, World, xsetbv};
use crate::devices::lapic::LocalApic;
use crate::exit::{Event, Msr};
use crate::hw::Host;
use crate::pmu::{Pmu, PmuPolicy};
use crate::registers::{CR4_OSXSAVE, ControlRegister, Gpr};
use crate::time::Tsc;

/// What RAX holds after a hypercall that nobody knows: -1.
pub const UNKNOWN_HYPERCALL: u64 = u64::MAX;

/// Has code of its own for each of the MSRs that guests access most: with a constant for it the lists are not searched.
macro_rules! frequent {
    ($msr:ident, $known:ident => $one:expr, $other:expr) => {
        frequent! {
            $msr, $known => $one, $other;
            FS_BASE GS_BASE KERNEL_GS_BASE SYSENTER_CS SYSENTER_ESP SYSENTER_EIP STAR LSTAR CSTAR FMASK PAT DEBUGCTL
            APIC_BASE TSC_DEADLINE
        }
    };
    ($msr:ident, $known:ident => $one:expr, $other:expr; $($name:ident)*) => {
        match $msr.0 {
            $(index::$name => {
                let $known = Msr(index::$name);
                $one
            })*
            _ => $other,
        }
    };
}

impl<B: Backend, A: Appliance, P: PmuPolicy> Vcpu<B, A, P> {
    #[inline(always)]
    pub(super) fn cpuid(&mut self, leaf: u32, subleaf: u32) -> Answer {
        if let Some(&[eax, ebx, ecx, edx]) = self.cpuid.constant(leaf) {
            self.backend.set_gpr(Gpr::Rax, eax.into());
            self.backend.set_gpr(Gpr::Rbx, ebx.into());
            self.backend.set_gpr(Gpr::Rcx, ecx.into());
            self.backend.set_gpr(Gpr::Rdx, edx.into());
        } else {
            self.varying_cpuid(leaf, subleaf);
        }
        Answer::Complete
    }

    #[cold]
    #[inline(never)]
    fn varying_cpuid(&mut self, leaf: u32, subleaf: u32) {
        let (backend, xss, apic_id) = (&self.backend, self.msrs.xss(), self.index as u32);
        let answer = self.cpuid.lookup(leaf, subleaf, || {
            let cr4 = backend.control(ControlRegister::Cr4);
            let xcr0 = if cr4 & CR4_OSXSAVE != 0 { backend.xcr0() } else { 1 };
            Dynamic { cr4, xcr0, xss, apic_id }
        });
        for (register, value) in [Gpr::Rax, Gpr::Rbx, Gpr::Rcx, Gpr::Rdx].into_iter().zip(answer) {
            self.backend.set_gpr(register, value.into());
        }
    }

    pub(super) fn xsetbv(&mut self, xcr: u32, value: u64) -> Answer {
        let cr4 = self.backend.control(ControlRegister::Cr4);
        match xsetbv::check(cr4, self.backend.cpl(), xcr, value, self.cpuid.xcr0()) {
            Ok(()) => {
                self.backend.set_xcr0(value);
                Answer::Complete
            }
            Err(event) => self.raise(event),
        }
    }

    #[inline(always)]
    pub(super) fn hypercall<H: Host>(&mut self, world: &mut World<'_, H>) -> Answer {
        if self.backend.cpl() != 0 {
            return self.raise(Event::UNDEFINED);
        }
        if P::PARAVIRTUAL {
            return self.paravirtual_call(world);
        }
        self.backend.set_gpr(Gpr::Rax, UNKNOWN_HYPERCALL);
        Answer::Complete
    }

    #[inline(always)]
    pub(super) fn read_msr<H: Host>(&mut self, msr: Msr, world: &mut World<'_, H>, now: Tsc) -> Answer {
        // The local APIC's in x2APIC mode are the most frequent by far, and found without the list.
        if LocalApic::owns_in_x2apic_mode(msr) {
            let value = self.read_apic_msr(msr, world, now);
            return self.has_read(value);
        }
        frequent! {
            msr, known => {
                let value = self.read_listed_msr(known, world, now);
                self.has_read(value)
            },
            {
                let value = self.read_other_msr(msr, world, now);
                self.has_read(value)
            }
        }
    }

    /// RDMSR gives this value; `None` for #GP.
    #[inline(always)]
    fn has_read(&mut self, value: Option<u64>) -> Answer {
        let Some(value) = value else { return self.raise(Event::GENERAL_PROTECTION) };
        self.backend.set_edx_eax(value);
        Answer::Complete
    }

    #[inline(never)]
    fn read_other_msr<H: Host>(&mut self, msr: Msr, world: &mut World<'_, H>, now: Tsc) -> Option<u64> {
        self.read_listed_msr(msr, world, now)
    }

    #[inline(always)]
    fn read_listed_msr<H: Host>(&mut self, msr: Msr, world: &mut World<'_, H>, now: Tsc) -> Option<u64> {
        match self.msrs.read(msr, || context(&self.backend, now)) {
            MsrRead::Value(value) => Some(value),
            MsrRead::Switched => self.backend.switched_msr(msr),
            MsrRead::LocalApic => self.read_apic_control(msr, world, now),
            MsrRead::Fault if Pmu::<P>::PRESENT => self.read_pmu_msr(msr),
            MsrRead::Fault => None,
        }
    }

    #[inline(always)]
    fn read_apic_msr<H: Host>(&mut self, msr: Msr, world: &mut World<'_, H>, now: Tsc) -> Option<u64> {
        self.before_apic_read(msr, world);
        world.chipset.read_msr(self.index, msr, now)?.ok()
    }

    /// IA32_APIC_BASE and IA32_TSC_DEADLINE, which there are in every mode.
    #[inline(always)]
    fn read_apic_control<H: Host>(&mut self, msr: Msr, world: &mut World<'_, H>, now: Tsc) -> Option<u64> {
        if msr.0 == index::APIC_BASE {
            return world.chipset.local_apic(self.index).map(|apic| apic.base());
        }
        let deadline = world.chipset.read_msr(self.index, msr, now)?.ok()?;
        Some(self.guest_deadline(deadline))
    }

    #[inline(always)]
    pub(super) fn write_msr<H: Host>(&mut self, msr: Msr, value: u64, world: &mut World<'_, H>, now: Tsc) -> Answer {
        if LocalApic::owns_in_x2apic_mode(msr) {
            return self.write_apic_msr(msr, value, world, now);
        }
        frequent! {
            msr, known => self.write_listed_msr(known, value, world, now),
            match self.write_other_msr(msr, value, world, now) {
                // Said so, the others are known to be no more than that.
                Answer::Complete => Answer::Complete,
                answer => answer,
            }
        }
    }

    #[inline(never)]
    fn write_other_msr<H: Host>(&mut self, msr: Msr, value: u64, world: &mut World<'_, H>, now: Tsc) -> Answer {
        self.write_listed_msr(msr, value, world, now)
    }

    #[inline(always)]
    fn write_listed_msr<H: Host>(&mut self, msr: Msr, value: u64, world: &mut World<'_, H>, now: Tsc) -> Answer {
        let done = match self.msrs.write(msr, value, || context(&self.backend, now)) {
            MsrWrite::Done => true,
            MsrWrite::Switched(value) => self.backend.set_switched_msr(msr, value),
            MsrWrite::Efer(value) => {
                self.backend.set_efer(value);
                true
            }
            MsrWrite::TscOffset(offset) => {
                self.backend.set_tsc_offset(offset);
                true
            }
            MsrWrite::Fault if Pmu::<P>::PRESENT => return self.write_pmu_msr(msr, value, world),
            MsrWrite::LocalApic => return self.write_apic_control(msr, value, world, now),
            MsrWrite::Fault => false,
        };
        if done { Answer::Complete } else { self.raise(Event::GENERAL_PROTECTION) }
    }

    #[inline(always)]
    fn write_apic_msr<H: Host>(&mut self, msr: Msr, value: u64, world: &mut World<'_, H>, now: Tsc) -> Answer {
        self.before_apic_write(msr, world);
        let written = world.chipset.write_msr(self.index, msr, value, now);
        if !matches!(written, Some(Ok(()))) {
            return self.raise(Event::GENERAL_PROTECTION);
        }
        self.after_devices(world, Answer::Complete)
    }

    /// IA32_APIC_BASE and IA32_TSC_DEADLINE, which there are in every mode.
    #[inline(never)]
    fn write_apic_control<H: Host>(&mut self, msr: Msr, value: u64, world: &mut World<'_, H>, now: Tsc) -> Answer {
        self.before_apic_write(msr, world);
        let deadline = msr.0 == index::TSC_DEADLINE;
        let value = if deadline { self.host_deadline(value, now) } else { value };
        self.take_apic(world);
        let written = world.chipset.write_msr(self.index, msr, value, now);
        if !matches!(written, Some(Ok(()))) {
            return self.raise(Event::GENERAL_PROTECTION);
        }
        if deadline {
            self.show_apic(world);
        } else {
            self.follow_apic_mode(world);
        }
        self.after_devices(world, Answer::Complete)
    }

    /// IA32_TSC_DEADLINE counts by the guest's clock, the devices by the host's; 0 is no deadline by both.
    /// What has passed by the guest's clock has passed by the host's too, however far apart the two are.
    fn host_deadline(&self, deadline: u64, now: Tsc) -> u64 {
        let guest_now = now.0.wrapping_add(self.msrs.tsc_offset());
        match deadline.checked_sub(guest_now) {
            _ if deadline == 0 => 0,
            None => 1,
            Some(ticks) => now.0.saturating_add(ticks).max(1),
        }
    }

    fn guest_deadline(&self, deadline: u64) -> u64 {
        match deadline {
            0 => 0,
            _ => deadline.wrapping_add(self.msrs.tsc_offset()),
        }
    }
}

#[inline]
fn context(backend: &impl Backend, now: Tsc) -> MsrContext {
    MsrContext { cr0: backend.control(ControlRegister::Cr0), efer: backend.efer(), now }
}
