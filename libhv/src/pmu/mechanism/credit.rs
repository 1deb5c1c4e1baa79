//! The mechanism's credit: what the hypervisor has executed in the guest's stead counts in the processor's counters
//! (requirement A26).
//!
//! Where software cannot set IA32_PERF_GLOBAL_STATUS (before version 4) a counter is not advanced beyond all ones: the
//! guest's next event overflows it in the processor, with the status, the interrupt and the freezing of the processor's
//! own, and what was due beyond is paid when that is heard of. The overflow comes one event late, and no count is lost.

use super::{COUNTERS_FROZEN, Pmu};
use crate::hw::{GlobalSwitch, PmuHardware};
use crate::pmu::bank::{can_hold, counter_register, ones};
use crate::pmu::capability::PmuCapability;
use crate::pmu::credit::{CreditMasks, Retired};
use crate::pmu::policy::PmuPolicy;
use crate::pmu::registers::{CounterIndex, EventSelector, FixedControl, Maker, PmuRegister};
use crate::pmu::state::COUNTERS;

/// Events that counters have still to be advanced by, by their bits in IA32_PERF_GLOBAL_CTRL.
#[derive(Debug, Default)]
pub(super) struct Owed {
    counters: u64,
    events: [u32; COUNTERS],
}

impl Owed {
    fn place(&mut self, bit: u8) -> &mut u32 {
        &mut self.events[usize::from(bit & 7 | (bit & 32) >> 2)]
    }

    /// Returns whether nothing is owed.
    #[inline]
    pub(super) const fn is_nothing(&self) -> bool {
        self.counters == 0
    }

    /// Takes what is owed to a counter.
    fn take(&mut self, bit: u8) -> u32 {
        self.counters &= !(1 << bit);
        core::mem::take(self.place(bit))
    }

    fn owe(&mut self, bit: u8, events: u32) {
        self.counters |= u64::from(events != 0) << bit;
        *self.place(bit) = events;
    }

    /// Returns what is owed, as a snapshot has it.
    pub(super) const fn events(&self) -> [u32; COUNTERS] {
        self.events
    }

    /// Owes what a snapshot says.
    pub(super) fn of(events: &[u32; COUNTERS]) -> Self {
        let bits = (0..8).chain(32..40);
        let mut owed = Self::default();
        bits.zip(events).for_each(|(bit, events)| owed.owe(bit, *events));
        owed
    }
}

impl<P: PmuPolicy> Pmu<P> {
    /// Counts an instruction that the hypervisor has executed in the guest's stead (A26). Returns whether a counter ran
    /// over that interrupts: the guest's local APIC is to deliver one. `freezes` tells what an
    /// interrupt freezes, see [`frozen_by_interrupt`](super::frozen_by_interrupt).
    #[inline]
    pub fn retire<B: PmuHardware>(
        &mut self,
        retired: Retired,
        hardware: &mut B,
        freezes: impl FnOnce(&B) -> u64,
    ) -> bool {
        let counting = self.counting(retired, hardware);
        counting != 0 && self.credit(counting, hardware, freezes)
    }

    /// Returns the counters that count an instruction which begins now: WRMSR to a selector counts by what it finds.
    #[inline]
    pub fn counting(&mut self, retired: Retired, hardware: &impl PmuHardware) -> u64 {
        if !Self::PRESENT || !self.selectors_passed && self.masks.counting(retired) == 0 {
            return 0;
        }
        self.enabled_and_counting(retired, hardware)
    }

    #[inline(never)]
    fn enabled_and_counting(&mut self, retired: Retired, hardware: &impl PmuHardware) -> u64 {
        let Some(pmu) = self.host else { return 0 };
        let enabled = match hardware.global_switch() {
            GlobalSwitch::Hardware => hardware.guest_global_control(),
            _ if pmu.has_global_control() => hardware.read_pmu(PmuRegister::GlobalControl),
            _ => u64::MAX,
        };
        if enabled != 0 && self.selectors_passed && self.bank.take_selectors_of(&pmu, enabled, hardware) {
            self.masks = CreditMasks::of(&pmu, &self.bank.selectors, FixedControl(self.bank.fixed_control));
        }
        let counting = self.masks.counting(retired) & enabled;
        let frozen = || pmu.maker == Maker::Intel && pmu.version >= 4 && is_frozen(hardware);
        if counting == 0 || frozen() { 0 } else { counting }
    }

    /// Advances the counters in `counting` by one; returns as [`retire`](Self::retire) does.
    #[inline(never)]
    pub fn credit<B: PmuHardware>(&mut self, counting: u64, hardware: &mut B, freezes: impl FnOnce(&B) -> u64) -> bool {
        let Some(pmu) = self.host else { return false };
        let mut overflowed = 0;
        let mut interrupts = false;
        for bit in ones(counting) {
            if self.advance(bit, 1, &pmu, hardware) {
                let n = bit & 7;
                let selector = EventSelector(self.bank.selectors[usize::from(n)]);
                let fixed = FixedControl(self.bank.fixed_control);
                interrupts |= if bit < 32 { selector.interrupts() } else { fixed.interrupts(n) };
                overflowed |= 1 << bit;
            }
        }
        if overflowed != 0 && pmu.has_status_set() {
            let freeze = if interrupts && pmu.maker == Maker::Intel { freezes(hardware) } else { 0 };
            hardware.write_pmu(PmuRegister::StatusSet, overflowed | freeze);
        }
        interrupts
    }

    /// The counters' interrupt has come: those that have run over are paid what they are owed.
    #[inline]
    pub fn settle(&mut self, hardware: &mut impl PmuHardware) {
        if Self::PRESENT && self.owed.counters != 0 {
            self.pay(hardware);
        }
    }

    #[cold]
    fn pay(&mut self, hardware: &mut impl PmuHardware) {
        let Some(pmu) = self.host else { return };
        let mut overflowed = 0;
        for bit in ones(self.owed.counters) {
            overflowed |= u64::from(self.advance(bit, 0, &pmu, hardware)) << bit;
        }
        if overflowed != 0 && pmu.has_status_set() {
            hardware.write_pmu(PmuRegister::StatusSet, overflowed);
        }
    }

    /// Advances a counter by `events` and what it is owed; returns whether it has run over. What it cannot hold now it is
    /// owed.
    fn advance(&mut self, bit: u8, events: u32, pmu: &PmuCapability, hardware: &mut impl PmuHardware) -> bool {
        let n = bit & 7;
        let (counter, register, mask) = match bit {
            0..32 => (CounterIndex::General(n), counter_register(pmu, n), pmu.counter_mask()),
            _ => (CounterIndex::Fixed(n), PmuRegister::Fixed(n), pmu.fixed_mask()),
        };
        let due = self.owed.take(bit).saturating_add(events);
        let before = hardware.read_counter(counter) & mask;
        let may_run_over = pmu.has_status_set() || !pmu.has_global_control();
        let room = if may_run_over { u32::MAX } else { u32::try_from(mask - before).unwrap_or(u32::MAX) };
        let now = due.min(room);
        let after = before.wrapping_add(now.into()) & mask;
        if now == 0 || !can_hold(pmu, counter, after) {
            self.owed.owe(bit, due);
            return false;
        }
        hardware.write_pmu(register, after);
        self.owed.owe(bit, due - now);
        self.counts.credited += u64::from(now);
        after < before
    }
}

fn is_frozen(hardware: &impl PmuHardware) -> bool {
    hardware.read_pmu(PmuRegister::GlobalStatus) & COUNTERS_FROZEN != 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Error, Requirement};
    use crate::pmu::Passthrough;
    use crate::pmu::mechanism::rig::{ONE, Rig, TestGuest};
    use crate::sim::pmu::intel;
    use proptest::prelude::*;
    use std::vec::Vec;

    const SELECTOR: u32 = 0x186;
    const COUNTER: u32 = 0xC1;
    const CONTROL: u32 = 0x38F;
    const STATUS: u32 = 0x38E;
    const STATUS_RESET: u32 = 0x390;
    /// Retired instructions at all levels, enabled.
    const INSTRUCTIONS: u64 = 0x43_00C0;

    fn counting(version: u8, full_width_writes: bool, selector: u64, count: u64) -> (Rig, TestGuest<Passthrough>) {
        let mut rig = Rig::intel(intel::Config { version, full_width_writes, ..intel::Config::default() });
        let mut guest = rig.guest(Passthrough::new());
        rig.resume(&mut guest);
        rig.wrmsr(&mut guest, SELECTOR, selector).expect("legal");
        rig.wrmsr(&mut guest, COUNTER, count).expect("legal");
        rig.wrmsr(&mut guest, CONTROL, 1).expect("legal");
        (rig, guest)
    }

    proptest! {
        /// A26, T-A8: however instructions of the guest's and of the hypervisor's follow each other, each counts once and each
        /// turn interrupts once, where software cannot set the status too.
        #[test]
        fn no_instruction_is_lost_where_the_status_cannot_be_set(
            version in 2u8..=5,
            full_width_writes: bool,
            before in 1u64..6,
            executed in proptest::collection::vec(any::<bool>(), 8..40),
        ) {
            let (mut rig, mut guest) =
                counting(version, full_width_writes, INSTRUCTIONS | EventSelector::INTERRUPT, before.wrapping_neg());
            for exits in &executed {
                if *exits {
                    rig.exit(&mut guest, 3, false);
                } else {
                    rig.step(&mut guest, 3, &ONE);
                }
            }
            // The guest's own instruction overflows what is due.
            rig.step(&mut guest, 3, &ONE);
            prop_assert_eq!(rig.rdpmc(&mut guest, 0), Ok(executed.len() as u64 + 1 - before));
            prop_assert_eq!((guest.interrupts, rig.rdmsr(&mut guest, STATUS)), (1, Ok(1)));
        }
    }

    /// A26: without an interrupt the next credit pays.
    #[test]
    fn what_a_counter_is_owed_is_paid_with_its_next_event() {
        let (mut rig, mut guest) = counting(3, false, INSTRUCTIONS, u64::MAX);
        let steps: Vec<_> = (0..4)
            .map(|_| {
                rig.exit(&mut guest, 3, false);
                rig.rdpmc(&mut guest, 0)
            })
            .collect();
        assert_eq!(steps, [Ok((1 << 48) - 1); 4]);
        rig.step(&mut guest, 3, &ONE);
        assert_eq!(rig.rdmsr(&mut guest, STATUS), Ok(1));
        rig.wrmsr(&mut guest, STATUS_RESET, 1).expect("legal");
        rig.exit(&mut guest, 3, false);
        assert_eq!((rig.rdpmc(&mut guest, 0), rig.rdmsr(&mut guest, STATUS), guest.interrupts), (Ok(5), Ok(0), 0));
        // In part, where that is all up to the next overflow.
        rig.wrmsr(&mut guest, COUNTER, u64::MAX).expect("legal");
        (0..4).for_each(|_| rig.exit(&mut guest, 3, false));
        rig.wrmsr(&mut guest, COUNTER, 2u64.wrapping_neg()).expect("legal");
        rig.exit(&mut guest, 3, false);
        assert_eq!(rig.rdpmc(&mut guest, 0), Ok((1 << 48) - 1));
        rig.step(&mut guest, 3, &ONE);
        rig.exit(&mut guest, 3, false);
        assert_eq!(rig.rdpmc(&mut guest, 0), Ok(5));
    }

    /// A26: without full-width writes a counter waits at bit 31, and once the guest has written to it, it may run over as it
    /// is paid.
    #[test]
    fn a_counter_that_runs_over_as_it_is_paid_says_so() {
        let (mut rig, mut guest) = counting(4, false, INSTRUCTIONS, (1 << 31) - 1);
        rig.exit(&mut guest, 3, false);
        assert_eq!(rig.rdpmc(&mut guest, 0), Ok((1 << 31) - 1));
        rig.wrmsr(&mut guest, COUNTER, u64::MAX).expect("legal");
        rig.wrmsr(&mut guest, SELECTOR + 1, INSTRUCTIONS | EventSelector::INTERRUPT).expect("legal");
        rig.wrmsr(&mut guest, COUNTER + 1, u64::MAX).expect("legal");
        rig.wrmsr(&mut guest, CONTROL, 2).expect("legal");
        rig.step(&mut guest, 3, &ONE);
        assert_eq!((rig.rdpmc(&mut guest, 0), guest.interrupts, rig.rdmsr(&mut guest, STATUS)), (Ok(0), 1, Ok(0b11)));
    }

    /// A18, 1.4.2: a count above bit 31 cannot be written without full-width writes, nor a status before version 4: who is in
    /// the processor stays, and another is told.
    #[test]
    fn guests_take_turns_where_all_can_be_restored_and_nowhere_else() {
        for (version, full_width_writes) in [(5, true), (4, true), (5, false), (3, true), (2, false)] {
            let (mut rig, mut one) = counting(version, full_width_writes, INSTRUCTIONS, 0);
            (0..7).for_each(|_| rig.step(&mut one, 3, &ONE));
            let mut other = rig.guest(Passthrough::new());
            let restores = version >= 4 && full_width_writes;
            let refused = Err(Error::Unsupported(Requirement::RestorablePmu));
            let answer = other.mechanism.acquire(&mut rig.registers, &mut rig.host);
            assert_eq!(answer, if restores { Ok(()) } else { refused }, "version {version}");
            rig.enter(&mut one);
            assert_eq!(rig.rdpmc(&mut one, 0), Ok(7));
            one.mechanism.release(&mut rig.registers, &mut rig.host);
            assert_eq!(other.mechanism.acquire(&mut rig.registers, &mut rig.host), Ok(()), "it has the PMU alone");
        }
    }

    /// A18: what a guest leaves with, it comes back with or not at all.
    #[test]
    fn a_count_that_cannot_be_written_does_not_come_back_as_another() {
        for (full_width_writes, back) in [(true, Ok(())), (false, Err(Error::Unsupported(Requirement::RestorablePmu)))]
        {
            let (mut rig, mut guest) = counting(5, full_width_writes, INSTRUCTIONS, (1 << 31) - 1);
            rig.step(&mut guest, 3, &ONE);
            guest.mechanism.release(&mut rig.registers, &mut rig.host);
            assert_eq!(guest.mechanism.acquire(&mut rig.registers, &mut rig.host), back);
            assert!(back.is_err() || rig.rdpmc(&mut guest, 0) == Ok(1 << 31));
        }
    }
}
