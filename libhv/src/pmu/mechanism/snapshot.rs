//! A guest's PMU as a value: taken out for a snapshot, and put back after the checks that a guest's WRMSR passes
//! (requirements A29, B7).

use super::Pmu;
use super::credit::Owed;
use crate::hw::{GlobalSwitch, Host, PmuHardware};
use crate::pmu::bank::{Bank, selector_register};
use crate::pmu::branches::{BranchState, Branches};
use crate::pmu::credit::CreditMasks;
use crate::pmu::policy::PmuPolicy;
use crate::pmu::registers::{CounterIndex, FixedControl, MAX_COUNTERS, PmuRegister};
use crate::pmu::state::{Found, State, StateError};

impl<P: PmuPolicy> Pmu<P> {
    /// Returns the state of the guest's PMU, with its IA32_DEBUGCTL being `debug_control`; `None` when it has none. The
    /// guest does not run.
    pub fn save<H: Host>(&self, debug_control: u64, hardware: &impl PmuHardware, host: &mut H) -> Option<State> {
        let (view, pmu) = (self.view()?, self.host.as_ref()?);
        let slot = host.pmu_slot();
        let (mut bank, mut records, mut late) = (self.bank, (&self.records).into(), self.late);
        if slot.owner() == Some(self.owner) {
            bank.take_counts(pmu, hardware);
            records = (&Branches::take(self.depth(), hardware)).into();
            if self.selectors_passed {
                bank.take_selectors(pmu, hardware);
            }
            if hardware.global_switch() == GlobalSwitch::Selectors && pmu.has_global_control() {
                bank.global_control = hardware.read_pmu(PmuRegister::GlobalControl);
            }
        } else if let Some((parked, branches, parked_late)) = slot.parked(self.owner) {
            (bank, records, late) = (*parked, branches.into(), late | parked_late);
        }
        if hardware.global_switch() == GlobalSwitch::Hardware {
            bank.global_control = hardware.guest_global_control();
        }
        if !self.selectors_passed {
            (bank.selectors, bank.fixed_control) = (self.selectors, self.fixed_control);
        }
        let control = hardware.guest_branch_control();
        let branches = BranchState { control, records, ..BranchState::default() };
        let owed = self.owed.events();
        Some(State::new(view, &Found { registers: bank, branches, debug_control, owed, pending: late }))
    }

    /// Gives the guest the registers of a snapshot; of its IA32_DEBUGCTL, which the caller has, the bits of the state's that
    /// are its PMU's are to follow. The guest does not run, and has not run or is to forget that it has.
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
        self.owed = Owed::of(&state.owed);
        if self.depth() != 0 {
            self.records = (&state.branches).into();
            hardware.set_guest_branch_control(state.branches.control);
        }
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
    use super::super::rig::{ONE, Rig, TestGuest};
    use super::*;
    use crate::pmu::{EventFilter, EventSelector, Filtered, Passthrough};
    use crate::sim::pmu::{amd, intel};
    use proptest::prelude::*;

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
        let state = guest.mechanism.save(0, &here.registers, &mut here.host).expect("a PMU");
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
        let good = guest.mechanism.save(0, &rig.registers, &mut rig.host).expect("a PMU");
        let mut bad = good;
        bad.registers.selectors[3] = EventSelector::ANY_THREAD;
        assert!(guest.mechanism.restore(&bad, &mut rig.registers, &mut rig.host).is_err());
        assert_eq!(guest.mechanism.save(0, &rig.registers, &mut rig.host), Some(good));
    }

    /// The guest's PMU goes to another machine, as bytes.
    fn moved<P: PmuPolicy>(policy: P, guest: &TestGuest<P>, here: &mut Rig, there: &mut Rig) -> TestGuest<P> {
        let bytes = guest.mechanism.save(0, &here.registers, &mut here.host).expect("a PMU").to_bytes();
        let mut twin = there.guest(policy);
        there.arrange(&mut twin);
        let state = State::from_bytes(&bytes).expect("as written");
        twin.mechanism.restore(&state, &mut there.registers, &mut there.host).expect("legal");
        there.enter(&mut twin);
        twin
    }

    /// Requirement A29: wherever the records are meanwhile.
    /// Also A3, A18.
    #[test]
    fn last_branch_records_and_their_control_go_with_a_snapshot() {
        const RECORDS: [(u32, u64); 5] =
            [(0x14CE, 0x7F_0007), (0x1500, 0x1000), (0x1600, u64::MAX << 47), (0x1200, 1 << 63), (0x150F, 0x2000)];
        let rig = || Rig::intel(intel::Config { lbr_depth: 16, ..intel::Config::default() });
        let (mut here, mut there) = (rig(), rig());
        let mut guest = here.guest(Passthrough::new());
        here.resume(&mut guest);
        for (msr, value) in RECORDS {
            here.wrmsr(&mut guest, msr, value).expect("legal");
        }
        let mut twin = moved(Passthrough::new(), &guest, &mut here, &mut there);
        assert_eq!(RECORDS.map(|(msr, _)| there.rdmsr(&mut twin, msr)), RECORDS.map(|(_, value)| Ok(value)));
        assert_eq!((there.rdmsr(&mut twin, 0x1501), twin.exits), (Ok(0), 0));
        let in_processor = guest.mechanism.save(0, &here.registers, &mut here.host);
        here.pause(&mut guest);
        let mut other = here.guest(Passthrough::new());
        here.resume(&mut other);
        here.wrmsr(&mut other, 0x1500, 0x3000).expect("legal");
        here.pause(&mut other);
        here.resume(&mut guest);
        guest.mechanism.release(&mut here.registers, &mut here.host);
        assert_eq!(guest.mechanism.save(0, &here.registers, &mut here.host), in_processor, "it has ended");
        assert_eq!(here.registers.pmu.host_read(0x1500), 0, "nothing of it stays");
        here.enter(&mut guest);
        assert_eq!(here.rdmsr(&mut guest, 0x1500), Ok(0x1000), "it runs again");
    }

    /// Requirement A29: out of its turn a guest's records wait for it, and a snapshot has them.
    #[test]
    fn records_that_wait_for_their_guests_turn_are_in_its_snapshot() {
        let mut rig = Rig::intel(intel::Config { lbr_depth: 8, ..intel::Config::default() });
        let (mut guest, mut other) = (rig.guest(Passthrough::new()), rig.guest(Passthrough::new()));
        rig.resume(&mut guest);
        rig.wrmsr(&mut guest, 0x1607, 0x1000).expect("legal");
        rig.pause(&mut guest);
        rig.resume(&mut other);
        let state = guest.mechanism.save(0, &rig.registers, &mut rig.host).expect("a PMU");
        assert_eq!((state.branches.depth, state.branches.records[7]), (8, [0, 0x1000, 0]));
        guest
            .mechanism
            .restore(
                &State { branches: BranchState { depth: 8, ..BranchState::default() }, ..state },
                &mut rig.registers,
                &mut rig.host,
            )
            .expect("legal");
        rig.pause(&mut other);
        rig.resume(&mut guest);
        assert_eq!(rig.rdmsr(&mut guest, 0x1607), Ok(0), "what a snapshot says holds");
    }

    /// A29: as the guest's own write of IA32_LBR_DEPTH would be.
    #[test]
    fn records_of_another_depth_are_refused() {
        let rig = |lbr_depth| Rig::intel(intel::Config { lbr_depth, ..intel::Config::default() });
        let mut here = rig(16);
        let guest = here.guest(Passthrough::new());
        let state = guest.mechanism.save(0, &here.registers, &mut here.host).expect("a PMU");
        for (depth, answer) in [(8, Err(StateError::Depth(16))), (16, Ok(())), (32, Err(StateError::Depth(16)))] {
            let mut there = rig(depth);
            let mut twin = there.guest(Passthrough::new());
            there.arrange(&mut twin);
            assert_eq!(twin.mechanism.restore(&state, &mut there.registers, &mut there.host), answer);
        }
    }

    /// T-A18, A29: a processor newer than what the guest is shown takes bits that the guest has not; they stay its own
    /// until a snapshot, which it cannot be kept from by them.
    #[test]
    fn a_guest_cannot_write_itself_into_a_state_that_is_refused() {
        const IN_TX: u64 = 1 << 32;
        let rig = || Rig::intel(intel::Config { transactions: true, ..intel::Config::default() });
        let (mut here, mut there) = (rig(), rig());
        let mut guest = here.guest(Passthrough::new());
        here.resume(&mut guest);
        here.wrmsr(&mut guest, 0x186, INSTRUCTIONS | IN_TX).expect("the processor's");
        let mut twin = moved(Passthrough::new(), &guest, &mut here, &mut there);
        assert_eq!(here.rdmsr(&mut guest, 0x186), Ok(INSTRUCTIONS | IN_TX));
        assert_eq!(there.rdmsr(&mut twin, 0x186), Ok(INSTRUCTIONS));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// A26, A29, T-A8: wherever a guest moves, what its counters are owed moves with it, and is paid once.
        #[test]
        fn what_counters_are_owed_is_paid_once_whoever_pays(
            (version, full_width_writes) in prop_oneof![Just((3, true)), Just((2, false)), Just((4, false))],
            before in 1u64..6,
            executed in prop::collection::vec((any::<bool>(), any::<bool>()), 1..12),
        ) {
            let config = intel::Config { version, full_width_writes, ..intel::Config::default() };
            let mut here = Rig::intel(config);
            let mut guest = here.guest(Passthrough::new());
            here.resume(&mut guest);
            here.wrmsr(&mut guest, 0x186, INSTRUCTIONS | EventSelector::INTERRUPT).expect("legal");
            here.wrmsr(&mut guest, 0xC1, before.wrapping_neg()).expect("legal");
            here.wrmsr(&mut guest, 0x309, before.wrapping_neg() & ((1 << 48) - 1)).expect("legal");
            here.wrmsr(&mut guest, 0x38D, 0b11).expect("legal");
            here.wrmsr(&mut guest, 0x38F, 1 << 32 | 1).expect("legal");
            let mut interrupts = 0;
            for (exits, moves) in &executed {
                if *exits {
                    here.exit(&mut guest, 3, false);
                } else {
                    here.step(&mut guest, 3, &ONE);
                }
                // What has run over cannot be restored before version 4 (A18).
                if *moves && (version >= 4 || here.rdmsr(&mut guest, 0x38E) == Ok(0)) {
                    let mut there = Rig::intel(config);
                    let twin = moved(Passthrough::new(), &guest, &mut here, &mut there);
                    interrupts += guest.interrupts;
                    (here, guest) = (there, twin);
                }
            }
            (0..6).for_each(|_| here.step(&mut guest, 3, &ONE));
            let counted = [0, 0x4000_0000].map(|n| here.rdpmc(&mut guest, n));
            prop_assert_eq!(counted, [Ok(executed.len() as u64 + 6 - before); 2]);
            prop_assert_eq!((interrupts + guest.interrupts, here.rdmsr(&mut guest, 0x38E)), (1, Ok(1 << 32 | 1)));
        }
    }

    /// A29, T-A13: an interrupt that its local APIC had not heard of is heard of once by the one that goes on.
    #[test]
    fn an_interrupt_that_was_pending_comes_once_where_the_guest_goes_on() {
        for pending in [false, true] {
            let mut rig = Rig::intel(intel::Config::default());
            let mut guest = rig.guest(Passthrough::new());
            rig.resume(&mut guest);
            let mut state = guest.mechanism.save(0, &rig.registers, &mut rig.host).expect("a PMU");
            state.pending = pending;
            guest.mechanism.restore(&state, &mut rig.registers, &mut rig.host).expect("legal");
            assert_eq!(guest.mechanism.save(0, &rig.registers, &mut rig.host), Some(state));
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
        let before = guest.mechanism.save(0, &rig.registers, &mut rig.host).expect("a PMU");
        rig.wrmsr(&mut guest, 0x4C1, 7).expect("legal");
        rig.pause(&mut guest);
        rig.resume(&mut other);
        guest.mechanism.restore(&before, &mut rig.registers, &mut rig.host).expect("its own");
        rig.pause(&mut other);
        rig.resume(&mut guest);
        assert_eq!(guest.mechanism.save(0, &rig.registers, &mut rig.host), Some(before));
    }

    /// The filter sees a snapshot as it sees a guest.
    #[test]
    fn a_denied_event_does_not_come_in_by_a_snapshot() {
        let mut rig = Rig::intel(intel::Config::default());
        let mut guest = rig.guest(filtered());
        rig.resume(&mut guest);
        let mut state = guest.mechanism.save(0, &rig.registers, &mut rig.host).expect("a PMU");
        let denied = 0xD1 | 1 << 16 | 1 << 17 | EventSelector::ENABLE;
        (state.registers.selectors[0], state.registers.global_control) = (denied, 1);
        guest.mechanism.restore(&state, &mut rig.registers, &mut rig.host).expect("a guest could write it");
        rig.enter(&mut guest);
        assert_eq!(rig.rdmsr(&mut guest, 0x186), Ok(denied));
        assert_eq!(rig.registers.pmu.host_read(0x186) & EventSelector::ENABLE, 0);
        // Of the fixed-function counters only the first is permitted.
        let mut guest = rig.guest(Filtered::new(&EventFilter::allow(&[]).fixed(0b1)).expect("legal"));
        rig.resume(&mut guest);
        let mut state = guest.mechanism.save(0, &rig.registers, &mut rig.host).expect("a PMU");
        state.registers.fixed_control = 0xBBB;
        guest.mechanism.restore(&state, &mut rig.registers, &mut rig.host).expect("a guest could write it");
        rig.enter(&mut guest);
        assert_eq!(rig.rdmsr(&mut guest, 0x38D), Ok(0xBBB));
        assert_eq!(rig.registers.pmu.host_read(0x38D), 0xB);
    }
}
