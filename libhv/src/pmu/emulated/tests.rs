//! The emulated PMU on a fake one, and without any: against a model that knows how often each thing has happened.

use super::*;
use crate::hw::{GlobalSwitch, Host, PmiHost, PmiRoute, PmuHardware};
use crate::pmu::capability::PmuCapability;
use crate::pmu::capability::processors::{AMD, AMD_WITHOUT_GLOBAL, INTEL};
use crate::pmu::filter::{EventFilter, Filtered, MaskedEvent};
use crate::pmu::host::fake::{Fake, INSTRUCTIONS};
use crate::pmu::policy::{Means, Passthrough, PmuPolicy, PmuShare};
use crate::pmu::registers::{CounterIndex, EventSelector, Maker, PmuRegister};
use crate::pmu::view::PmuView;
use crate::time::Tsc;
use PmuRegister::*;
use alloc::vec::Vec;
use proptest::prelude::*;

const USER_AND_SYSTEM: u64 = 0b11 << 16;
const COUNTED: u64 = INSTRUCTIONS | USER_AND_SYSTEM | EventSelector::ENABLE;
const CYCLES: u64 = 0x3C | USER_AND_SYSTEM | EventSelector::ENABLE;

/// A guest with an emulated PMU. In the guest each instruction is a tick.
struct Rig {
    fake: Fake,
    pmu: EmulatedPmu,
    /// Interrupts that the guest was given.
    interrupts: u32,
}

impl Rig {
    /// On a processor with `processor` and a guest that is shown `shown`.
    fn with(processor: Option<PmuCapability>, shown: PmuCapability, switch: GlobalSwitch) -> Self {
        let mut fake = Fake::new(processor.unwrap_or(INTEL), switch);
        let view = PmuView::new(&shown, &PmuShare::all(&shown), Means::Emulated, switch).expect("a PMU");
        let mut pmu = EmulatedPmu::new(view, processor.as_ref(), switch);
        pmu.start(&mut fake);
        fake.route_pmi(PmiRoute::Guest);
        Self { fake, pmu, interrupts: 0 }
    }

    fn on(processor: PmuCapability, switch: GlobalSwitch) -> Self {
        Self::with(Some(processor), EmulatedPmu::shown(Some(&processor), switch), switch)
    }

    fn without_pmu() -> Self {
        Self::with(None, EmulatedPmu::shown(None, GlobalSwitch::Missing), GlobalSwitch::Missing)
    }

    fn write(&mut self, register: PmuRegister, value: u64) {
        self.try_write(register, value).unwrap_or_else(|| panic!("#GP of {value:#x} to {register:?}"));
    }

    fn try_write(&mut self, register: PmuRegister, value: u64) -> Option<()> {
        self.fake.run(3);
        let mut hardware = self.fake.clone();
        let done = self.pmu.write(register, value, &Passthrough::new(), &mut hardware);
        self.after();
        done
    }

    fn read(&mut self, register: PmuRegister) -> u64 {
        self.fake.run(2);
        let mut hardware = self.fake.clone();
        let value = self.pmu.read(register, &mut hardware).unwrap_or_else(|| panic!("#GP of {register:?}"));
        self.after();
        value
    }

    fn after(&mut self) {
        if self.fake.take_guest_pmi() {
            self.pmu.settle(&mut self.fake.clone());
            self.fake.route_pmi(PmiRoute::Guest);
        }
        self.interrupts += u32::from(self.pmu.take_interrupt());
    }

    /// The guest executes so many instructions, and leaves for every interrupt and when its deadline has come.
    fn guest_runs(&mut self, instructions: u64) {
        let mut left = instructions;
        while left > 0 {
            let now = self.fake.now();
            self.pmu.on_entry(now);
            let deadline = self.pmu.deadline(now);
            self.fake.enter();
            while left > 0 && !self.fake.0.borrow().guest_pmi && deadline.is_none_or(|at| self.fake.now() < at) {
                self.fake.run(1);
                left -= 1;
            }
            self.fake.leave();
            self.pmu.on_exit(self.fake.now(), &mut self.fake.clone());
            self.after();
            self.fake.run(5);
        }
    }
}

/// How a PMU is emulated: by which processor's, or by none.
fn rigs() -> [Rig; 4] {
    [
        Rig::on(INTEL, GlobalSwitch::Hardware),
        Rig::on(AMD, GlobalSwitch::Selectors),
        Rig::on(AMD_WITHOUT_GLOBAL, GlobalSwitch::Selectors),
        Rig::without_pmu(),
    ]
}

impl Rig {
    fn intel(&self) -> bool {
        self.pmu.view().guest().maker == Maker::Intel
    }
    /// A selector that counts every instruction, or cycles where nothing counts instructions.
    fn selector(&self) -> u64 {
        if self.pmu.view().guest().missing_events & 2 != 0 { CYCLES } else { COUNTED }
    }
    fn select(&self, n: u8) -> PmuRegister {
        if self.intel() { Selector(n) } else { CoreSelector(n) }
    }
    fn set_global(&mut self, value: u64) {
        if self.pmu.view().guest().has_global_control() {
            self.write(GlobalControl, value);
        }
    }
}

#[test]
fn counters_count_the_guest_exactly_and_nothing_of_the_host() {
    for mut rig in rigs() {
        let (selector, select) = (rig.selector(), rig.select(1));
        rig.write(FullCounter(1), 100);
        rig.write(select, selector);
        rig.set_global(1 << 1);
        for stay in 1..50 {
            rig.guest_runs(stay);
        }
        assert_eq!(rig.read(FullCounter(1)), 100 + 49 * 50 / 2);
        assert_eq!(rig.pmu.rdpmc(CounterIndex::General(1), &mut rig.fake.clone()), 100 + 49 * 50 / 2);
        assert_eq!(rig.read(select), selector);
        rig.write(select, 0);
        rig.guest_runs(10);
        assert_eq!(rig.read(FullCounter(1)), 100 + 49 * 50 / 2);
    }
}

/// T-A9, T-A10: status with and without an interrupt, once, and clearing it.
#[test]
fn a_counter_runs_over_once_and_interrupts_only_when_asked_to() {
    for mut rig in rigs().into_iter().filter(|rig| rig.pmu.view().guest().has_global_control()) {
        for interrupts in [false, true] {
            let before = rig.interrupts;
            let (select, selector) = (rig.select(0), rig.selector());
            rig.write(FullCounter(0), rig.pmu.view().guest().counter_mask());
            rig.write(select, selector | if interrupts { EventSelector::INTERRUPT } else { 0 });
            rig.set_global(1);
            rig.guest_runs(20);
            assert_eq!(rig.read(GlobalStatus), 1);
            assert_eq!(rig.read(FullCounter(0)), 19);
            assert_eq!(rig.interrupts - before, u32::from(interrupts));
            rig.write(StatusReset, 1);
            assert_eq!(rig.read(GlobalStatus), 0);
            rig.guest_runs(20);
            assert_eq!((rig.read(GlobalStatus), rig.interrupts - before), (0, u32::from(interrupts)));
            rig.write(select, 0);
        }
    }
}

/// T-A9
#[test]
fn writing_a_counter_that_runs_has_it_go_on_from_there() {
    for mut rig in rigs() {
        let (select, selector) = (rig.select(0), rig.selector());
        rig.write(select, selector);
        rig.set_global(1);
        rig.guest_runs(1000);
        rig.write(FullCounter(0), 0);
        rig.guest_runs(7);
        assert_eq!(rig.read(FullCounter(0)), 7);
    }
}

/// T-A4
#[test]
fn a_write_by_the_old_name_extends_the_sign_and_one_beyond_the_width_faults() {
    for mut rig in rigs().into_iter().filter(Rig::intel) {
        rig.write(Counter(2), 0x1_8000_0000);
        assert_eq!(rig.read(Counter(2)), 0xFFFF_8000_0000);
        assert_eq!(rig.try_write(FullCounter(2), 1 << 48), None);
        assert_eq!(rig.try_write(Selector(2), EventSelector::ANY_THREAD), None);
        assert_eq!(rig.try_write(GlobalControl, 1 << 60), None);
        assert_eq!(rig.try_write(Selector(8), 0), None);
        assert_eq!(rig.read(Counter(2)), 0xFFFF_8000_0000);
    }
}

/// Requirement A14.
#[test]
fn a_denied_event_reads_back_and_counts_nothing() {
    let policy = Filtered::new(&EventFilter::allow(&[MaskedEvent::exact(0x3C, 0)])).expect("a short list");
    let mut rig = Rig::on(INTEL, GlobalSwitch::Hardware);
    let mut hardware = rig.fake.clone();
    assert!(!policy.permits(EventSelector(COUNTED), &INTEL) && policy.permits(EventSelector(CYCLES), &INTEL));
    for (n, selector) in [(0, COUNTED), (1, CYCLES)] {
        rig.pmu.write(Selector(n), selector, &policy, &mut hardware).expect("legal");
    }
    rig.write(GlobalControl, 0b11);
    rig.guest_runs(50);
    assert_eq!((rig.read(FullCounter(0)), rig.read(FullCounter(1))), (0, 50));
    assert_eq!(rig.read(Selector(0)), COUNTED);
    assert_eq!(hardware.read_pmu(Selector(0)) & EventSelector::ENABLE, 0, "not even in the processor");
}

#[test]
fn the_guest_reaches_nothing_without_leaving() {
    assert!(rigs().iter().all(|rig| !rig.fake.0.borrow().passed));
}

/// Where nothing but the clock counts, what it does not know is shown as missing, and stands still.
#[test]
fn without_a_pmu_cycles_are_there_and_everything_else_is_not() {
    let mut rig = Rig::without_pmu();
    let [eax, ebx, ecx, edx] = rig.pmu.view().cpuid_leaf_0a();
    assert_eq!((eax & 0xFF, eax >> 24, ebx, ecx, edx & 0x1F), (5, 8, 0b1111_1010, 0b110, 0));
    let wishes = [CYCLES, CYCLES | 1 << 8, COUNTED, CYCLES & !(1 << 17)];
    for (n, selector) in (0..).zip(wishes) {
        rig.write(Selector(n), selector);
    }
    rig.write(FixedControl, 0x330);
    rig.write(GlobalControl, 0x6_0000_000F);
    rig.guest_runs(321);
    let counted: Vec<u64> = (0..4).map(|n| rig.read(FullCounter(n))).collect();
    assert_eq!(counted, [321, 321, 0, 0], "neither instructions nor cycles of one level");
    assert_eq!((rig.read(Fixed(1)), rig.read(Fixed(2))), (321, 321));
    assert_eq!(rig.try_write(Fixed(0), 0), None);
    // With edges or a threshold it is not cycles that are counted.
    rig.write(Selector(0), CYCLES | 1 << 18);
    rig.write(Selector(1), CYCLES | 2 << 24);
    rig.guest_runs(5);
    assert_eq!((rig.read(FullCounter(0)), rig.read(FullCounter(1))), (321, 321));
}

#[test]
fn an_interrupt_by_the_clock_has_a_deadline() {
    let mut rig = Rig::without_pmu();
    rig.write(FullCounter(0), (1 << 48) - 500);
    rig.write(Selector(0), CYCLES | EventSelector::INTERRUPT);
    assert_eq!(rig.pmu.deadline(Tsc(1000)), Some(Tsc(1500)));
    rig.guest_runs(499);
    assert_eq!((rig.interrupts, rig.pmu.deadline(Tsc(0))), (0, Some(Tsc(1))));
    rig.guest_runs(1);
    assert_eq!((rig.interrupts, rig.read(FullCounter(0))), (1, 0));
    rig.write(Selector(0), CYCLES);
    assert_eq!(rig.pmu.deadline(Tsc(0)), None, "nobody is to be interrupted");
}

/// T-A24: an overflow that interrupts stops all counters, until the status is cleared.
#[test]
fn counters_freeze_on_an_interrupt() {
    for mut rig in rigs().into_iter().filter(Rig::intel) {
        rig.pmu.set_freezes(true);
        let selector = rig.selector();
        rig.write(Selector(0), selector | EventSelector::INTERRUPT);
        rig.write(Selector(1), selector);
        rig.write(FullCounter(0), (1 << 48) - 10);
        rig.write(GlobalControl, 0b11);
        rig.guest_runs(100);
        assert_eq!(rig.read(GlobalStatus), 1 | 1 << 59);
        assert_eq!((rig.read(FullCounter(0)), rig.read(FullCounter(1))), (0, 10));
        rig.write(StatusReset, 1 | 1 << 59);
        rig.guest_runs(100);
        assert_eq!((rig.read(FullCounter(1)), rig.interrupts), (110, 1));
    }
}

/// A26: what the hypervisor executes counts once, and runs over like anything else.
#[test]
fn an_instruction_that_the_hypervisor_executed_is_credited_once() {
    let mut rig = Rig::on(INTEL, GlobalSwitch::Hardware);
    rig.write(Selector(0), COUNTED | EventSelector::INTERRUPT);
    rig.write(FullCounter(0), (1 << 48) - 4);
    rig.write(GlobalControl, 1);
    rig.guest_runs(3);
    rig.pmu.credit(1, &mut rig.fake.clone());
    rig.after();
    assert_eq!((rig.read(FullCounter(0)), rig.read(GlobalStatus), rig.interrupts), (0, 1, 1));
    rig.guest_runs(10);
    assert_eq!((rig.read(FullCounter(0)), rig.read(GlobalStatus), rig.interrupts), (10, 1, 1));
}

/// A guest's counter of another width runs over where the guest's does.
#[test]
fn a_counter_narrower_or_wider_than_the_processors_runs_over_at_its_own_width() {
    for (width, own) in [(40, 48), (48, 40)] {
        let processor = PmuCapability { width: own, ..INTEL };
        let shown = PmuCapability { width, ..processor };
        let mut rig = Rig::with(Some(processor), shown, GlobalSwitch::Hardware);
        rig.write(Selector(0), COUNTED | EventSelector::INTERRUPT);
        rig.write(GlobalControl, 1);
        for round in 1..4 {
            rig.write(FullCounter(0), (1 << width) - 5);
            rig.guest_runs(15);
            assert_eq!(rig.interrupts, round, "before the guest has read anything");
            assert_eq!(rig.read(FullCounter(0)), 10);
            assert_eq!((rig.read(GlobalStatus), rig.interrupts), (1, round));
            rig.write(StatusReset, 1);
        }
    }
}

impl Rig {
    fn ends(&mut self) {
        self.pmu.end(&mut self.fake.clone(), &mut self.fake);
    }
    fn begins(&mut self) {
        self.pmu.start(&mut self.fake);
        self.fake.route_pmi(PmiRoute::Guest);
    }
    /// A counter that counts, and interrupts after 100 instructions, and a fixed-function one where there is one.
    fn counts_to_100(&mut self) {
        let (select, selector) = (self.select(0), self.selector());
        self.write(FullCounter(0), self.pmu.view().guest().counter_mask() - 99);
        self.write(select, selector | EventSelector::INTERRUPT);
        if self.intel() {
            self.write(FixedControl, 0x330);
        }
        self.set_global(if self.intel() { 0x6_0000_0001 } else { 1 });
    }
}

/// A guest that ends may run again, as after a snapshot; its overflow is its own, and not that of whoever is next.
#[test]
fn a_guest_that_has_ended_goes_on_counting_when_it_runs_again() {
    for mut rig in rigs() {
        rig.counts_to_100();
        rig.guest_runs(60);
        rig.ends();
        assert!((0..4).all(|n| rig.fake.read_counter(CounterIndex::General(n)) == 0));
        rig.fake.run(1000);
        rig.begins();
        rig.guest_runs(39);
        assert_eq!((rig.interrupts, rig.read(FullCounter(0))), (0, rig.pmu.view().guest().counter_mask()));
        rig.guest_runs(3);
        assert_eq!((rig.interrupts, rig.read(FullCounter(0))), (1, 2));
        if rig.intel() {
            assert_eq!(rig.read(Fixed(1)), 102);
        }
    }
}

/// The interrupt is on its way when the guest ends: it hears of it once, and the next on this processor does not.
/// Also T-A12.
#[test]
fn an_interrupt_on_its_way_when_the_guest_ends_stays_its_own() {
    for mut rig in rigs().into_iter().filter(|rig| rig.pmu.uses_processor()) {
        rig.counts_to_100();
        rig.fake.enter();
        rig.fake.run(101);
        rig.fake.leave();
        assert!(rig.fake.0.borrow().guest_pmi);
        rig.ends();
        assert!(!rig.fake.take_guest_pmi(), "the next guest would hear of it");
        assert!(rig.pmu.save(0).pending && rig.pmu.take_interrupt());
    }
}

/// Requirements A29 and B7.
#[test]
fn an_emulated_guest_goes_on_counting_on_another_machine() {
    for (mut here, mut there) in rigs().into_iter().zip(rigs()) {
        here.counts_to_100();
        here.guest_runs(60);
        here.ends();
        let state = here.pmu.save(0);
        there.ends();
        there.pmu.restore(&state, &Passthrough::new()).expect("a guest could write it");
        assert_eq!(there.pmu.save(0), state);
        there.begins();
        there.guest_runs(42);
        assert_eq!((there.interrupts, there.read(FullCounter(0))), (1, 2));
        let (select, selector) = (there.select(0), there.selector());
        assert_eq!(there.read(select), selector | EventSelector::INTERRUPT);
        let mut wrong = state;
        wrong.registers.selectors[7] = u64::MAX;
        assert!(there.pmu.restore(&wrong, &Passthrough::new()).is_err());
    }
}

/// The filter sees a snapshot as it sees a guest.
#[test]
fn a_denied_event_does_not_come_in_by_a_snapshot() {
    let policy = Filtered::new(&EventFilter::allow(&[MaskedEvent::exact(0x3C, 0)])).expect("a short list");
    let mut rig = Rig::on(INTEL, GlobalSwitch::Hardware);
    rig.counts_to_100();
    rig.ends();
    let state = rig.pmu.save(0);
    rig.pmu.restore(&state, &policy).expect("a guest could write it");
    rig.begins();
    rig.guest_runs(50);
    assert_eq!((rig.read(FullCounter(0)), rig.interrupts), ((1 << 48) - 100, 0));
    assert_eq!(rig.read(Selector(0)) & 0xFF, 0xC0);
}

#[derive(Clone, Debug)]
enum Step {
    Run(u64),
    Select(u8, u8),
    Set(u8, u64),
    Enable(u64),
    Clear(u64),
    Check,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1u64..60).prop_map(Step::Run),
        3 => (0u8..4, 0u8..4).prop_map(|(n, what)| Step::Select(n, what)),
        2 => (0u8..4, prop_oneof![0u64..40, Just((1 << 48) - 20), Just((1 << 48) - 1)]).prop_map(|(n, v)| Step::Set(n, v)),
        2 => (0u64..16).prop_map(Step::Enable),
        1 => (0u64..16).prop_map(Step::Clear),
        2 => Just(Step::Check),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Multiplexed at will, with exits everywhere: every count and every overflow is the model's.
    /// Also T-A22.
    #[test]
    fn any_order_of_accesses_counts_as_the_model_does(
        steps in prop::collection::vec(step(), 1..60),
        which in 0usize..4,
    ) {
        let [a, b, c, d] = rigs();
        let mut rig = [a, b, c, d].into_iter().nth(which).expect("one of four");
        let global = rig.pmu.view().guest().has_global_control();
        let selector = rig.selector();
        let (mut values, mut selected, mut enabled, mut status) = ([0u64; 4], [0u8; 4], 0xF, 0u64);
        let (mut interrupts, mask) = (0, (1u64 << 48) - 1);
        for step in steps.into_iter().chain([Step::Check]) {
            let checks = matches!(step, Step::Check);
            match step {
                Step::Run(instructions) => {
                    rig.guest_runs(instructions);
                    for _ in 0..instructions {
                        let mut interrupt = false;
                        for n in 0..4 {
                            if selected[n] & 1 != 0 && enabled >> n & 1 != 0 {
                                values[n] = (values[n] + 1) & mask;
                                if values[n] == 0 {
                                    status |= 1 << n;
                                    interrupt |= selected[n] & 2 != 0;
                                }
                            }
                        }
                        interrupts += u32::from(interrupt);
                    }
                }
                Step::Select(n, what) => {
                    selected[usize::from(n)] = what;
                    let interrupt = if what & 2 != 0 { EventSelector::INTERRUPT } else { 0 };
                    let enable = if what & 1 != 0 { selector } else { selector & !EventSelector::ENABLE };
                    let register = rig.select(n);
                    rig.write(register, enable | interrupt);
                }
                Step::Set(n, value) => {
                    values[usize::from(n)] = value;
                    rig.write(FullCounter(n), value);
                }
                Step::Enable(bits) if global => {
                    enabled = bits;
                    rig.write(GlobalControl, bits);
                }
                Step::Clear(bits) if global => {
                    status &= !bits;
                    rig.write(StatusReset, bits);
                }
                _ => {}
            }
            // Reading would bring up to date what the next write must find so.
            if !checks {
                continue;
            }
            for n in 0..4u8 {
                prop_assert_eq!(rig.read(FullCounter(n)), values[usize::from(n)], "counter {}", n);
            }
            prop_assert_eq!(rig.interrupts, interrupts);
            if global {
                prop_assert_eq!(rig.read(GlobalStatus), status);
            }
        }
    }
}
