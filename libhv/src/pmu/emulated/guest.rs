//! The emulated PMU where it meets a virtual processor: what it is shown, its interrupt, and what is executed for it.

use super::counter::EmulatedPmu;
use crate::exit::Msr;
use crate::hw::{PmiRoute, PmuHardware};
use crate::pmu::bank::counter_register;
use crate::pmu::capability::PmuCapability;
use crate::pmu::credit::Retired;
use crate::pmu::policy::{Means, PmuPolicy};
use crate::pmu::registers::{Maker, PmuRegister};
use crate::pmu::view::PmuView;

/// Returns whether a processor's counters hold what is written to them. AMD's processors have counters without CPUID
/// saying so; one that is itself emulated may have none. Nothing counts meanwhile.
pub fn answers(pmu: &PmuCapability, hardware: &mut impl PmuHardware) -> bool {
    const PATTERN: u64 = 0x5A5A_A5A5;
    if pmu.maker == Maker::Intel {
        return true;
    }
    let register = counter_register(pmu, 0);
    let before = hardware.read_pmu(register);
    hardware.write_pmu(register, PATTERN);
    let after = hardware.read_pmu(register);
    hardware.write_pmu(register, before);
    after == PATTERN
}

impl EmulatedPmu {
    /// Decides what the guest gets: of the processor's PMU, which [answers](answers), or of what can be counted without.
    /// `None` where the policy gives it nothing, or emulates nothing.
    pub fn decide<P: PmuPolicy>(
        policy: &P,
        processor: Option<&PmuCapability>,
        hardware: &impl PmuHardware,
    ) -> Option<Self> {
        if !matches!(P::MEANS, Means::Emulated) {
            return None;
        }
        let switch = hardware.global_switch();
        let shown = Self::shown(processor, switch);
        let view = PmuView::new(&shown, &policy.share(&shown), Means::Emulated, switch)?;
        let view = if P::FILTERS { view.filtered_by(|selector| policy.permits(selector, &shown)) } else { view };
        // IA32_DEBUGCTL goes into the processor: an entry with a bit that it lacks is refused.
        let has = processor.is_some_and(|pmu| pmu.maker == Maker::Intel && pmu.version >= 2 && pmu.capabilities != 0);
        Some(Self::new(if has && !P::HOST_COUNTS { view } else { view.without_freezing() }, processor, switch))
    }

    /// RDMSR; `None` for #GP.
    pub fn read_msr(&mut self, msr: Msr, hardware: &mut impl PmuHardware) -> Option<u64> {
        let register = PmuRegister::of(msr, self.view().guest().maker)?;
        self.read(register, hardware)
    }

    /// WRMSR, with its own credit: an instruction counts by what it finds. `None` for #GP.
    pub fn write_msr(
        &mut self,
        msr: Msr,
        value: u64,
        retired: Retired,
        policy: &impl PmuPolicy,
        hardware: &mut impl PmuHardware,
    ) -> Option<()> {
        let register = PmuRegister::of(msr, self.view().guest().maker)?;
        let counting = self.counting(retired);
        self.write(register, value, policy, hardware)?;
        self.credit(counting, hardware);
        Some(())
    }

    /// RDPMC; `None` for #GP.
    pub fn read_counter(&mut self, ecx: u32, cpl: u8, cr4: u64, hardware: &mut impl PmuHardware) -> Option<u64> {
        let counter = self.view().rdpmc(ecx, cpl, cr4).ok()?;
        Some(self.rdpmc(counter, hardware))
    }

    /// Counts an instruction that the hypervisor has executed in the guest's stead (A26).
    #[inline]
    pub fn retire(&mut self, retired: Retired, hardware: &mut impl PmuHardware) {
        let counting = self.counting(retired);
        if counting != 0 {
            self.credit(counting, hardware);
        }
    }

    /// Takes down whether the guest's LVTPC lets interrupts through, and returns the route of the processor's where that
    /// is to change (A24). What ran over while the guest's was masked interrupts nobody any more.
    pub fn mirror(&mut self, unmasked: bool, hardware: &mut impl PmuHardware) -> Option<PmiRoute> {
        if !self.uses_processor() || !self.set_routed(unmasked) {
            return None;
        }
        if unmasked {
            self.settle(hardware);
            self.drop_interrupt();
        }
        Some(if unmasked { PmiRoute::Guest } else { PmiRoute::Masked })
    }

    /// Returns whether the guest's local APIC is to deliver an interrupt: the processor's, which `came`, or one that the
    /// hypervisor has found due.
    #[inline]
    pub fn hear(&mut self, came: bool, hardware: &mut impl PmuHardware) -> bool {
        if came {
            self.settle(hardware);
            // The processor has masked its entry in delivering it; AMD's do not.
            if self.view().guest().maker == Maker::Intel {
                self.set_routed(false);
            }
        }
        self.take_interrupt()
    }
}
