//! A guest's PMU as a value: taken out for a snapshot, and put back after the checks that a guest's WRMSR passes
//! (requirements A29, B7).

use super::Pmu;
use crate::hw::{GlobalSwitch, Host, PmuHardware};
use crate::pmu::bank::{Bank, selector_register};
use crate::pmu::credit::CreditMasks;
use crate::pmu::policy::PmuPolicy;
use crate::pmu::registers::{CounterIndex, FixedControl, MAX_COUNTERS, PmuRegister};
use crate::pmu::state::{State, StateError};

impl<P: PmuPolicy> Pmu<P> {
    /// Returns the registers as the guest reads them; `None` when it has no PMU. The guest does not run.
    pub fn save<H: Host>(&self, hardware: &impl PmuHardware, host: &mut H) -> Option<State> {
        let (view, pmu) = (self.view()?, self.host.as_ref()?);
        let slot = host.pmu_slot();
        let (mut bank, mut late) = (self.bank, self.late);
        if slot.owner() == Some(self.owner) {
            bank.take_counts(pmu, hardware);
            if self.selectors_passed {
                bank.take_selectors(pmu, hardware);
            }
            if hardware.global_switch() == GlobalSwitch::Selectors && pmu.has_global_control() {
                bank.global_control = hardware.read_pmu(PmuRegister::GlobalControl);
            }
        } else if let Some((parked, parked_late)) = slot.parked(self.owner) {
            (bank, late) = (*parked, late | parked_late);
        }
        if hardware.global_switch() == GlobalSwitch::Hardware {
            bank.global_control = hardware.guest_global_control();
        }
        if !self.selectors_passed {
            (bank.selectors, bank.fixed_control) = (self.selectors, self.fixed_control);
        }
        let guest = view.guest();
        for n in 0..MAX_COUNTERS {
            let at = usize::from(n);
            if !guest.has_counter(n) {
                (bank.counters[at], bank.selectors[at]) = (0, 0);
            }
            if !guest.has_fixed(n) {
                bank.fixed[at] = 0;
            }
        }
        bank.fixed_control &= guest.fixed_control_bits();
        bank.global_control &= guest.control_bits();
        Some(State::new(view, &bank, late))
    }

    /// Gives the guest the registers of a snapshot. The guest does not run, and has not run or is to forget that it has.
    ///
    /// # Errors
    /// The first value that the guest could not have written itself; nothing has changed then.
    pub fn restore<H: Host>(
        &mut self,
        state: &State,
        hardware: &mut impl PmuHardware,
        host: &mut H,
    ) -> Result<(), StateError> {
        state.check(self.view())?;
        let Some(pmu) = self.host else { return Ok(()) };
        self.release(hardware, host);
        host.pmu_slot().unpark(self.owner);
        (self.selectors, self.fixed_control) = (state.registers.selectors, state.registers.fixed_control);
        self.bank = Bank {
            selectors: self.selectors.map(|selector| self.allowed(selector, &pmu)),
            fixed_control: self.allowed_fixed(self.fixed_control),
            ..state.registers
        };
        for (n, selector) in (0..MAX_COUNTERS).zip(&mut self.bank.selectors) {
            // A register that is not there has no GuestOnly either.
            if !pmu.has(selector_register(&pmu, n)) {
                *selector = 0;
            }
        }
        self.masks = CreditMasks::of(&pmu, &self.bank.selectors, FixedControl(self.bank.fixed_control));
        (self.late, self.unseen, self.nmi) = (state.pending, false, false);
        self.owed = Default::default();
        hardware.set_guest_global_control(state.registers.global_control);
        Ok(())
    }

    /// Reads a counter of the guest's, for whoever looks on from outside; `None` when it has none, or is not in the
    /// processor.
    pub fn peek<H: Host>(&self, counter: CounterIndex, hardware: &impl PmuHardware, host: &mut H) -> Option<u64> {
        let counter = self.view()?.rdpmc(counter.ecx(), 0, 0).ok()?;
        (host.pmu_slot().owner() == Some(self.owner)).then(|| hardware.read_counter(counter))
    }
}

#[cfg(test)]
mod tests {
    use super::super::rig::{ONE, Rig};
    use super::*;
    use crate::pmu::{EventFilter, EventSelector, Filtered, Passthrough};
    use crate::sim::pmu::{amd, intel};

    const INSTRUCTIONS: u64 = 0xC0 | 1 << 16 | 1 << 17 | EventSelector::ENABLE;

    fn filtered() -> Filtered {
        Filtered::new(&EventFilter::ARCHITECTURAL).expect("legal")
    }

    fn moves<P: PmuPolicy>(policy: impl Fn() -> P, rig: impl Fn() -> Rig, selector: u32, control: u32) {
        let (mut here, mut there) = (rig(), rig());
        let mut guest = here.guest(policy());
        here.resume(&mut guest);
        here.wrmsr(&mut guest, selector, INSTRUCTIONS | EventSelector::INTERRUPT).expect("legal");
        here.wrmsr(&mut guest, control, 1).expect("legal");
        (0..5).for_each(|_| here.step(&mut guest, 3, &ONE));
        let state = guest.mechanism.save(&here.registers, &mut here.host).expect("a PMU");
        let bytes = state.to_bytes();
        let mut twin = there.guest(policy());
        let state = State::from_bytes(&bytes).expect("as written");
        there.arrange(&mut twin);
        twin.mechanism.restore(&state, &mut there.registers, &mut there.host).expect("legal");
        there.enter(&mut twin);
        (0..3).for_each(|_| there.step(&mut twin, 3, &ONE));
        // What the hypervisor executes counts there, too.
        (0..2).for_each(|_| there.exit(&mut twin, 3, false));
        assert_eq!(there.rdpmc(&mut twin, 0), Ok(10));
        assert_eq!(there.rdmsr(&mut twin, selector), Ok(INSTRUCTIONS | EventSelector::INTERRUPT));
        assert_eq!(there.rdmsr(&mut twin, control), Ok(1));
    }

    /// Requirements A29 and B7.
    #[test]
    fn a_guest_goes_on_counting_on_another_machine() {
        let intel = || Rig::intel(intel::Config::default());
        moves(Passthrough::new, intel, 0x186, 0x38F);
        moves(filtered, intel, 0x186, 0x38F);
        let amd = || Rig::amd(amd::Config::default());
        moves(Passthrough::new, amd, 0xC001_0200, 0xC000_0301);
    }

    #[test]
    fn what_a_guest_could_not_write_is_refused_and_changes_nothing() {
        let mut rig = Rig::intel(intel::Config::default());
        let mut guest = rig.guest(filtered());
        rig.resume(&mut guest);
        let good = guest.mechanism.save(&rig.registers, &mut rig.host).expect("a PMU");
        let mut bad = good;
        bad.registers.selectors[3] = EventSelector::ANY_THREAD;
        assert!(guest.mechanism.restore(&bad, &mut rig.registers, &mut rig.host).is_err());
        assert_eq!(guest.mechanism.save(&rig.registers, &mut rig.host), Some(good));
    }

    /// A29, T-A13: an interrupt that its local APIC had not heard of is heard of once by the one that goes on.
    #[test]
    fn an_interrupt_that_was_pending_comes_once_where_the_guest_goes_on() {
        for pending in [false, true] {
            let mut rig = Rig::intel(intel::Config::default());
            let mut guest = rig.guest(Passthrough::new());
            rig.resume(&mut guest);
            let mut state = guest.mechanism.save(&rig.registers, &mut rig.host).expect("a PMU");
            state.pending = pending;
            guest.mechanism.restore(&state, &mut rig.registers, &mut rig.host).expect("legal");
            assert_eq!(guest.mechanism.save(&rig.registers, &mut rig.host), Some(state));
            for _ in 0..2 {
                rig.enter(&mut guest);
                assert_eq!(guest.interrupts, u64::from(pending));
            }
        }
    }

    /// A29: of a guest that has had to leave the processor nothing comes back but what it was restored to.
    #[test]
    fn a_guest_that_is_restored_while_another_has_the_processor_finds_the_snapshot() {
        let mut rig = Rig::intel(intel::Config::default());
        let (mut guest, mut other) = (rig.guest(Passthrough::new()), rig.guest(Passthrough::new()));
        rig.resume(&mut guest);
        let before = guest.mechanism.save(&rig.registers, &mut rig.host).expect("a PMU");
        rig.wrmsr(&mut guest, 0x4C1, 7).expect("legal");
        rig.pause(&mut guest);
        rig.resume(&mut other);
        guest.mechanism.restore(&before, &mut rig.registers, &mut rig.host).expect("its own");
        rig.pause(&mut other);
        rig.resume(&mut guest);
        assert_eq!(guest.mechanism.save(&rig.registers, &mut rig.host), Some(before));
    }

    /// The filter sees a snapshot as it sees a guest.
    #[test]
    fn a_denied_event_does_not_come_in_by_a_snapshot() {
        let mut rig = Rig::intel(intel::Config::default());
        let mut guest = rig.guest(filtered());
        rig.resume(&mut guest);
        let mut state = guest.mechanism.save(&rig.registers, &mut rig.host).expect("a PMU");
        let denied = 0xD1 | 1 << 16 | 1 << 17 | EventSelector::ENABLE;
        (state.registers.selectors[0], state.registers.global_control) = (denied, 1);
        guest.mechanism.restore(&state, &mut rig.registers, &mut rig.host).expect("a guest could write it");
        rig.enter(&mut guest);
        assert_eq!(rig.rdmsr(&mut guest, 0x186), Ok(denied));
        assert_eq!(rig.registers.pmu.host_read(0x186) & EventSelector::ENABLE, 0);
        // Of the fixed-function counters only the first is permitted.
        let mut guest = rig.guest(Filtered::new(&EventFilter::allow(&[]).fixed(0b1)).expect("legal"));
        rig.resume(&mut guest);
        let mut state = guest.mechanism.save(&rig.registers, &mut rig.host).expect("a PMU");
        state.registers.fixed_control = 0xBBB;
        guest.mechanism.restore(&state, &mut rig.registers, &mut rig.host).expect("a guest could write it");
        rig.enter(&mut guest);
        assert_eq!(rig.rdmsr(&mut guest, 0x38D), Ok(0xBBB));
        assert_eq!(rig.registers.pmu.host_read(0x38D), 0xB);
    }
}
