//! The values of a PMU's registers: taken out of a processor, and put into one with no more writes than needed.

use super::capability::PmuCapability;
use super::registers::{CounterIndex, EventSelector, FixedControl, MAX_COUNTERS, Maker, PmuRegister};
use crate::hw::PmuHardware;

/// IA32_PERF_GLOBAL_STATUS.CondChgd: can be cleared and not set (SDM Vol. 4, IA32_PERF_GLOBAL_STATUS_SET).
const CHANGED: u64 = 1 << 63;
const COUNT: usize = MAX_COUNTERS as usize;

/// The registers of one PMU, as the processor holds them: selectors are those the filter let through.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Bank {
    /// IA32_PMCn or PERF_CTRn
    pub counters: [u64; COUNT],
    /// IA32_PERFEVTSELn or PERF_CTLn
    pub selectors: [u64; COUNT],
    /// IA32_FIXED_CTRn
    pub fixed: [u64; COUNT],
    /// IA32_FIXED_CTR_CTRL
    pub fixed_control: u64,
    /// IA32_PERF_GLOBAL_CTRL
    pub global_control: u64,
    /// IA32_PERF_GLOBAL_STATUS
    pub global_status: u64,
}

/// Returns the register of a general-purpose counter in which all its bits can be written.
pub(super) const fn counter_register(pmu: &PmuCapability, n: u8) -> PmuRegister {
    let full = match pmu.maker {
        Maker::Intel => pmu.full_width_writes(),
        Maker::Amd => pmu.core_extensions,
    };
    if full { PmuRegister::FullCounter(n) } else { PmuRegister::Counter(n) }
}

/// Returns the register of a general-purpose counter's selector.
pub(super) const fn selector_register(pmu: &PmuCapability, n: u8) -> PmuRegister {
    match pmu.maker {
        Maker::Amd if pmu.core_extensions => PmuRegister::CoreSelector(n),
        _ => PmuRegister::Selector(n),
    }
}

/// Returns the numbers of the bits that are set.
#[inline]
pub(super) fn ones(mut bits: u64) -> impl Iterator<Item = u8> {
    core::iter::from_fn(move || {
        let lowest = bits.trailing_zeros() as u8;
        (bits != 0).then(|| {
            bits &= bits - 1;
            lowest
        })
    })
}

/// Returns whether a counter can be given this value: without full-width writes bit 31 fills those above it.
pub(super) fn can_hold(pmu: &PmuCapability, counter: CounterIndex, value: u64) -> bool {
    let whole = pmu.maker == Maker::Amd || pmu.full_width_writes() || matches!(counter, CounterIndex::Fixed(_));
    whole || value as u32 as i32 as u64 & pmu.counter_mask() == value
}

impl Bank {
    /// Returns whether these values can be put into a processor whose registers are all 0: all counters can be given
    /// theirs, and the status can be set where any bit is (A18).
    pub fn can_be_put(&self, pmu: &PmuCapability) -> bool {
        let held =
            (0..pmu.counters).zip(&self.counters).all(|(n, value)| can_hold(pmu, CounterIndex::General(n), *value));
        held && (pmu.has_status_set() || self.global_status & !CHANGED == 0)
    }

    /// Takes what changes by itself out of a processor whose counters stand still: counters and status. What the
    /// hypervisor writes it knows already.
    pub fn take_counts(&mut self, pmu: &PmuCapability, hardware: &impl PmuHardware) {
        for (n, counter) in (0..pmu.counters).zip(&mut self.counters) {
            *counter = hardware.read_counter(CounterIndex::General(n));
        }
        for (n, counter) in (0..MAX_COUNTERS).zip(&mut self.fixed) {
            if pmu.has_fixed(n) {
                *counter = hardware.read_counter(CounterIndex::Fixed(n));
            }
        }
        if pmu.has_global_control() {
            self.global_status = hardware.read_pmu(PmuRegister::GlobalStatus);
        }
    }

    /// Takes selectors too, which a guest may have written without leaving.
    pub fn take_selectors(&mut self, pmu: &PmuCapability, hardware: &impl PmuHardware) {
        for (n, selector) in (0..pmu.counters).zip(&mut self.selectors) {
            *selector = hardware.read_pmu(selector_register(pmu, n));
        }
        if pmu.fixed != 0 {
            self.fixed_control = hardware.read_pmu(PmuRegister::FixedControl);
        }
    }

    /// Takes those of an Intel processor's selectors whose counters are enabled in `enabled`, as IA32_PERF_GLOBAL_CTRL has
    /// it; returns whether any is another than before.
    #[inline]
    pub fn take_selectors_of(&mut self, pmu: &PmuCapability, enabled: u64, hardware: &impl PmuHardware) -> bool {
        let mut changed = false;
        for n in ones(enabled & pmu.counter_bits()) {
            let selector = hardware.read_pmu(PmuRegister::Selector(n));
            changed |=
                core::mem::replace(&mut self.selectors[usize::from(n & (MAX_COUNTERS - 1))], selector) != selector;
        }
        if enabled >> 32 & u64::from(pmu.fixed) != 0 {
            let control = hardware.read_pmu(PmuRegister::FixedControl);
            changed |= core::mem::replace(&mut self.fixed_control, control) != control;
        }
        changed
    }

    /// Returns the bits in IA32_PERF_GLOBAL_STATUS of the counters whose overflow interrupts.
    pub fn interrupting(&self) -> u64 {
        let general = (0..).zip(&self.selectors).filter(|(_, selector)| EventSelector(**selector).interrupts());
        let fixed = (0..MAX_COUNTERS).filter(|n| FixedControl(self.fixed_control).interrupts(*n));
        general.map(|(n, _)| 1 << n).chain(fixed.map(|n| 1 << (32 + u32::from(n)))).fold(0, |bits, bit: u64| bits | bit)
    }

    /// Puts these values into a processor whose registers are `present`, with its counters standing still, and writes
    /// only those that differ; returns how many. Selectors come before counters, so that no counter runs over by a
    /// selector of the other's; the status comes last (T-A13). IA32_PERF_GLOBAL_CTRL is the caller's: it is switched
    /// with the world or, where it is not, written last of all.
    pub fn put(&self, pmu: &PmuCapability, present: &Self, hardware: &mut impl PmuHardware) -> u32 {
        let mut writes = 0;
        let mut put = |register, value, present| {
            if value != present {
                hardware.write_pmu(register, value);
                writes += 1;
            }
        };
        for (n, (value, there)) in (0..pmu.counters).zip(self.selectors.iter().zip(&present.selectors)) {
            put(selector_register(pmu, n), *value, *there);
        }
        if pmu.fixed != 0 {
            put(PmuRegister::FixedControl, self.fixed_control, present.fixed_control);
        }
        for (n, (value, there)) in (0..pmu.counters).zip(self.counters.iter().zip(&present.counters)) {
            put(counter_register(pmu, n), *value, *there);
        }
        for (n, (value, there)) in (0..MAX_COUNTERS).zip(self.fixed.iter().zip(&present.fixed)) {
            if pmu.has_fixed(n) {
                put(PmuRegister::Fixed(n), *value, *there);
            }
        }
        if pmu.has_global_control() {
            let raise = self.global_status & !present.global_status & !CHANGED;
            let drop = present.global_status & !self.global_status;
            put(PmuRegister::StatusReset, drop, 0);
            if pmu.has_status_set() {
                put(PmuRegister::StatusSet, raise, 0);
            }
        }
        writes
    }
}
