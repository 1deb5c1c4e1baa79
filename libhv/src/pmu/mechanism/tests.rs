//! The mechanism on `sim`'s PMU: what a guest counts, what it cannot, and what moves when.

use super::frozen_by_interrupt;
use super::rig::{BRANCH, Fault, ONE, Rig, TestGuest};
use crate::pmu::bank::Bank;
use crate::pmu::{EventSelector, FixedControl, Means, Passthrough, PmuCapability, PmuPolicy, PmuShare, Retired};
use crate::sim::pmu::{amd, intel};

mod late;

const SELECTOR: u32 = 0x186;
const COUNTER: u32 = 0x4C1;
const FIXED: u32 = 0x309;
const FIXED_CONTROL: u32 = 0x38D;
const STATUS: u32 = 0x38E;
const CONTROL: u32 = 0x38F;
const STATUS_RESET: u32 = 0x390;
const USER: u64 = 1 << 16;
const SYSTEM: u64 = 1 << 17;
const INSTRUCTIONS: u64 = 0xC0 | USER | SYSTEM | EventSelector::ENABLE;
const BRANCHES: u64 = 0xC4 | USER | SYSTEM | EventSelector::ENABLE;
const CYCLES: u64 = 0x3C | USER | SYSTEM | EventSelector::ENABLE;

/// Denies cycles and all but the first fixed-function counter.
#[derive(Clone, Copy, Debug)]
pub(super) struct NoCycles;
impl PmuPolicy for NoCycles {
    const MEANS: Means = Means::Passed;
    const FILTERS: bool = true;
    fn permits(&self, selector: EventSelector, host: &PmuCapability) -> bool {
        !matches!(selector.event(host.maker), 0x3C | 0x76)
    }
    fn permits_fixed(&self, counter: u8, _: FixedControl) -> bool {
        counter == 0
    }
}

/// Everything, by a filter.
#[derive(Clone, Copy, Debug)]
struct All;
impl PmuPolicy for All {
    const MEANS: Means = Means::Passed;
    const FILTERS: bool = true;
}

fn started<P: PmuPolicy>(policy: P) -> (Rig, TestGuest<P>) {
    let mut rig = Rig::intel(intel::Config::default());
    let mut guest = rig.guest(policy);
    rig.resume(&mut guest);
    (rig, guest)
}

/// Requirements A17 and A26, T-A8: the host adds nothing, and what it executes in the guest's stead counts once.
fn counts_exactly<P: PmuPolicy>(policy: P) {
    let (mut rig, mut guest) = started(policy);
    for (n, selector) in [INSTRUCTIONS, BRANCHES, INSTRUCTIONS & !USER].into_iter().enumerate() {
        rig.wrmsr(&mut guest, SELECTOR + n as u32, selector).expect("legal");
    }
    rig.wrmsr(&mut guest, FIXED_CONTROL, 0x3).expect("legal");
    rig.wrmsr(&mut guest, CONTROL, 1 << 32 | 0b111).expect("legal");
    for round in 0..1000 {
        rig.step(&mut guest, 3, &ONE);
        rig.step(&mut guest, 0, &BRANCH);
        if round % 3 == 0 {
            rig.exit(&mut guest, 3, false);
            rig.exit(&mut guest, 0, true);
        }
    }
    let counts = [0, 1, 2].map(|n| rig.rdpmc(&mut guest, n).expect("there"));
    assert_eq!(counts, [2000 + 2 * 334, 1000 + 334, 1000 + 334]);
    assert_eq!(rig.rdpmc(&mut guest, 0x4000_0000), Ok(2000 + 2 * 334));
}

/// A17, T-A8.
#[test]
fn a_loop_with_forced_exits_counts_its_own_instructions_and_no_others() {
    counts_exactly(Passthrough::new());
    counts_exactly(All);
    counts_exactly(NoCycles);
}

/// A1, A9, A10.
#[test]
fn passed_registers_do_not_leave_the_guest() {
    let (mut rig, mut guest) = started(Passthrough::new());
    let accesses = rig.registers.accesses.get();
    for n in 0..8 {
        rig.wrmsr(&mut guest, SELECTOR + n, INSTRUCTIONS).expect("legal");
        rig.wrmsr(&mut guest, COUNTER + n, 5).expect("legal");
        rig.rdpmc(&mut guest, n).expect("there");
    }
    rig.wrmsr(&mut guest, CONTROL, 0xFF).expect("legal");
    rig.wrmsr(&mut guest, STATUS_RESET, 0xFF).expect("legal");
    rig.rdmsr(&mut guest, STATUS).expect("there");
    assert_eq!((guest.exits, rig.registers.accesses.get()), (0, accesses));
}

/// Requirement A11.
#[test]
fn with_a_filter_selectors_alone_leave_the_guest() {
    let (mut rig, mut guest) = started(NoCycles);
    rig.wrmsr(&mut guest, SELECTOR, INSTRUCTIONS).expect("legal");
    rig.wrmsr(&mut guest, FIXED_CONTROL, 3).expect("legal");
    assert_eq!(guest.exits, 2);
    for msr in [COUNTER, FIXED, CONTROL, STATUS, 0xC1] {
        rig.rdmsr(&mut guest, msr).expect("there");
        if msr != STATUS {
            rig.wrmsr(&mut guest, msr, 1).expect("legal");
        }
    }
    rig.rdpmc(&mut guest, 0).expect("there");
    assert_eq!(guest.exits, 2);
}

/// Requirement A14.
#[test]
fn a_denied_event_counts_nothing_and_reads_back_as_it_was_written() {
    let (mut rig, mut guest) = started(NoCycles);
    rig.wrmsr(&mut guest, SELECTOR, CYCLES).expect("legal");
    rig.wrmsr(&mut guest, FIXED_CONTROL, 0x333).expect("legal");
    rig.wrmsr(&mut guest, CONTROL, 0x7_0000_0001).expect("legal");
    (0..100).for_each(|_| rig.step(&mut guest, 3, &ONE));
    assert_eq!(rig.rdmsr(&mut guest, SELECTOR), Ok(CYCLES));
    assert_eq!(rig.rdmsr(&mut guest, FIXED_CONTROL), Ok(0x333));
    assert_eq!([0, 0x4000_0001, 0x4000_0002].map(|n| rig.rdpmc(&mut guest, n)), [Ok(0); 3]);
    assert_eq!(rig.rdpmc(&mut guest, 0x4000_0000), Ok(100), "the permitted one counts");
}

/// T-A1: what is compared with is what the processor has.
#[test]
fn a_denied_bit_goes_even_where_the_guest_wrote_the_same_before() {
    let (mut rig, mut guest) = started(NoCycles);
    rig.wrmsr(&mut guest, CONTROL, 0x7_0000_0001).expect("legal");
    for _ in 0..2 {
        rig.wrmsr(&mut guest, SELECTOR, INSTRUCTIONS).expect("legal");
        rig.wrmsr(&mut guest, SELECTOR, CYCLES).expect("legal");
        rig.wrmsr(&mut guest, FIXED_CONTROL, 0x333).expect("legal");
        rig.wrmsr(&mut guest, FIXED_CONTROL, 0x330).expect("legal");
    }
    (0..100).for_each(|_| rig.step(&mut guest, 0, &ONE));
    assert_eq!([0, 0x4000_0000, 0x4000_0001].map(|n| rig.rdpmc(&mut guest, n)), [Ok(0); 3]);
}

/// T-A10: with INT clear there is no interrupt, with INT set there is exactly one for each overflow.
/// Also T-A8.
#[test]
fn an_overflow_interrupts_once_whoever_executed_the_last_instruction() {
    for emulated in [false, true] {
        for interrupt in [0, EventSelector::INTERRUPT] {
            let (mut rig, mut guest) = started(All);
            rig.wrmsr(&mut guest, SELECTOR, INSTRUCTIONS | interrupt).expect("legal");
            rig.wrmsr(&mut guest, CONTROL, 1).expect("legal");
            for _ in 0..3 {
                rig.wrmsr(&mut guest, COUNTER, (1 << 48) - 2).expect("legal");
                rig.step(&mut guest, 3, &ONE);
                assert_eq!(rig.rdmsr(&mut guest, STATUS), Ok(0));
                if emulated {
                    rig.exit(&mut guest, 3, false);
                } else {
                    rig.step(&mut guest, 3, &ONE);
                }
                assert_eq!((rig.rdmsr(&mut guest, STATUS), rig.rdpmc(&mut guest, 0)), (Ok(1), Ok(0)));
                rig.step(&mut guest, 3, &ONE);
                rig.wrmsr(&mut guest, STATUS_RESET, 1).expect("legal");
            }
            assert_eq!(guest.interrupts, if interrupt == 0 { 0 } else { 3 });
        }
    }
}

/// Requirement A30.
#[test]
fn an_instruction_exit_costs_nothing_where_nobody_counts_instructions() {
    let (mut rig, mut guest) = started(All);
    rig.wrmsr(&mut guest, SELECTOR, CYCLES).expect("legal");
    rig.wrmsr(&mut guest, CONTROL, 1).expect("legal");
    let before = rig.registers.accesses.get();
    (0..100).for_each(|_| rig.exit(&mut guest, 0, false));
    assert_eq!(rig.registers.accesses.get(), before);
}

/// Requirements A18, A20 and section 1.4: registers move when the owner changes, and only those that differ.
/// Also A2, A13, A19.
#[test]
fn guests_that_take_turns_keep_their_counts_and_write_only_what_differs() {
    let mut rig = Rig::intel(intel::Config::default());
    let (mut one, mut other) = (rig.guest(Passthrough::new()), rig.guest(Passthrough::new()));
    let mut expected = [0u64; 2];
    for turn in 0..20u64 {
        let (guest, at) = if turn % 2 == 0 { (&mut one, 0) } else { (&mut other, 1) };
        rig.resume(guest);
        if turn < 2 {
            for n in 0..8 {
                rig.wrmsr(guest, SELECTOR + n, INSTRUCTIONS).expect("legal");
            }
            rig.wrmsr(guest, FIXED_CONTROL, 0xBBBB).expect("legal");
            rig.wrmsr(guest, CONTROL, 0xF_0000_00FF).expect("legal");
        }
        for _ in 0..=turn {
            rig.step(guest, 3, &ONE);
        }
        expected[at] += turn + 1;
        for counter in [0, 7, 0x4000_0000, 0x4000_0001] {
            assert_eq!(rig.rdpmc(guest, counter), Ok(expected[at]), "counter {counter:#x} in turn {turn}");
        }
        rig.pause(guest);
    }
    // 8 counters and 4 fixed ones, 8 selectors, IA32_FIXED_CTR_CTRL and the status: 24 for each turn after the first two.
    let counts = one.mechanism.counts();
    assert_eq!(counts.loads, 10);
    assert!(counts.writes <= 12 * counts.loads, "{counts:?}");
}

/// A26: what a guest wrote without leaving before another's turn counts after it.
#[test]
fn a_guest_that_comes_back_is_credited_by_its_latest_selectors() {
    let mut rig = Rig::intel(intel::Config::default());
    let (mut one, mut other) = (rig.guest(Passthrough::new()), rig.guest(Passthrough::new()));
    rig.resume(&mut one);
    rig.wrmsr(&mut one, SELECTOR, INSTRUCTIONS).expect("legal");
    rig.wrmsr(&mut one, CONTROL, 1).expect("legal");
    rig.pause(&mut one);
    rig.resume(&mut other);
    rig.pause(&mut other);
    rig.resume(&mut one);
    rig.exit(&mut one, 3, false);
    assert_eq!(rig.rdpmc(&mut one, 0), Ok(1));
}

/// A1, A30.
#[test]
fn an_owner_that_never_changes_never_moves() {
    let (mut rig, mut guest) = started(Passthrough::new());
    let accesses = rig.registers.accesses.get();
    for _ in 0..10 {
        guest.mechanism.acquire(&mut rig.registers, &mut rig.host).expect("its own");
    }
    assert_eq!(rig.registers.accesses.get(), accesses);
}

/// Requirement A20.
#[test]
fn a_guest_that_has_ended_leaves_nothing_behind() {
    let (mut rig, mut guest) = started(Passthrough::new());
    rig.wrmsr(&mut guest, SELECTOR, INSTRUCTIONS | EventSelector::INTERRUPT).expect("legal");
    rig.wrmsr(&mut guest, FIXED_CONTROL, 0xB).expect("legal");
    rig.wrmsr(&mut guest, CONTROL, 0x1_0000_0001).expect("legal");
    rig.wrmsr(&mut guest, COUNTER, (1 << 48) - 1).expect("legal");
    (0..9).for_each(|_| rig.step(&mut guest, 3, &ONE));
    guest.mechanism.release(&mut rig.registers, &mut rig.host);
    for msr in
        (0xC1..0xC9).chain(SELECTOR..SELECTOR + 8).chain(FIXED..FIXED + 4).chain([FIXED_CONTROL, STATUS, CONTROL])
    {
        assert_eq!(rig.registers.pmu.host_read(msr), 0, "{msr:#x}");
    }
}

mod on_amd {
    use super::*;

    const CORE_SELECTOR: u32 = 0xC001_0200;
    const CORE_COUNTER: u32 = 0xC001_0201;
    const AMD_CONTROL: u32 = 0xC000_0301;
    const AMD_BRANCHES: u64 = 0xC2 | USER | SYSTEM | EventSelector::ENABLE;

    fn started<P: PmuPolicy>(policy: P, config: amd::Config) -> (Rig, TestGuest<P>) {
        let mut rig = Rig::amd(config);
        let mut guest = rig.guest(policy);
        rig.resume(&mut guest);
        (rig, guest)
    }

    const GENERATIONS: [amd::Config; 3] = [
        amd::Config { extended: true, global: true, freeze: true, virtualized: false },
        amd::Config { extended: true, global: false, freeze: false, virtualized: false },
        amd::Config { extended: false, global: false, freeze: false, virtualized: false },
    ];

    /// GuestOnly is forced in the processor's copy, so that the host never counts though nothing switches the counters.
    #[test]
    fn the_guest_counts_exactly_and_the_host_never_does() {
        for config in GENERATIONS {
            let (mut rig, mut guest) = started(Passthrough::new(), config);
            let (selector, counter, step) =
                if config.extended { (CORE_SELECTOR, CORE_COUNTER, 2) } else { (0xC001_0000, 0xC001_0004, 1) };
            rig.wrmsr(&mut guest, selector, INSTRUCTIONS).expect("legal");
            rig.wrmsr(&mut guest, selector + step, AMD_BRANCHES | EventSelector::HOST_ONLY).expect("legal");
            if config.global {
                rig.wrmsr(&mut guest, AMD_CONTROL, 0b11).expect("legal");
            }
            for _ in 0..500 {
                rig.step(&mut guest, 3, &BRANCH);
                rig.exit(&mut guest, 0, false);
            }
            assert_eq!(rig.rdmsr(&mut guest, counter), Ok(1000), "{config:?}");
            assert_eq!(rig.rdpmc(&mut guest, 1), Ok(500));
            assert_eq!(rig.rdmsr(&mut guest, selector), Ok(INSTRUCTIONS));
            assert_eq!(rig.rdmsr(&mut guest, selector + step), Ok(AMD_BRANCHES | EventSelector::HOST_ONLY));
        }
    }

    /// Requirement A19.
    #[test]
    fn guests_take_turns() {
        let mut rig = Rig::amd(amd::Config::default());
        let (mut one, mut other) = (rig.guest(Passthrough::new()), rig.guest(NoCycles));
        for turn in 0..6u64 {
            rig.resume(&mut one);
            if turn == 0 {
                rig.wrmsr(&mut one, CORE_SELECTOR, INSTRUCTIONS).expect("legal");
                rig.wrmsr(&mut one, AMD_CONTROL, 1).expect("legal");
            }
            rig.step(&mut one, 3, &ONE);
            assert_eq!(rig.rdmsr(&mut one, CORE_COUNTER), Ok(turn.min(3) + 1));
            if turn == 3 {
                rig.wrmsr(&mut one, AMD_CONTROL, 0).expect("legal");
            }
            rig.pause(&mut one);
            rig.resume(&mut other);
            rig.wrmsr(&mut other, CORE_SELECTOR, 0x76 | USER | EventSelector::ENABLE).expect("legal");
            rig.step(&mut other, 3, &ONE);
            assert_eq!(rig.rdmsr(&mut other, CORE_COUNTER), Ok(0), "cycles are denied");
            rig.pause(&mut other);
        }
    }

    #[test]
    fn an_illegal_register_faults_in_the_guest_alone() {
        let (mut rig, mut guest) = started(Passthrough::new(), GENERATIONS[1]);
        assert_eq!(rig.wrmsr(&mut guest, AMD_CONTROL, 1), Err(Fault));
        assert_eq!(rig.rdmsr(&mut guest, 0xC001_020C), Err(Fault));
    }
}

/// Last-branch records go with their guest, and no other guest sees them.
/// Also A3.
#[test]
fn branch_records_go_with_their_guest() {
    const FROM: u32 = 0x1500;
    let mut rig = Rig::intel(intel::Config { lbr_depth: 8, ..intel::Config::default() });
    let (mut one, mut other) = (rig.guest(Passthrough::new()), rig.guest(Passthrough::new()));
    rig.resume(&mut one);
    for n in 0..4 {
        rig.wrmsr(&mut one, FROM + n, 0x1000 + u64::from(n)).expect("legal");
    }
    rig.pause(&mut one);
    rig.resume(&mut other);
    assert_eq!((0..8).map(|n| rig.rdmsr(&mut other, FROM + n)).filter(|from| *from != Ok(0)).count(), 0);
    rig.wrmsr(&mut other, FROM + 7, 0x2000).expect("legal");
    rig.pause(&mut other);
    rig.resume(&mut one);
    assert_eq!([0, 3, 7].map(|n| rig.rdmsr(&mut one, FROM + n)), [Ok(0x1000), Ok(0x1003), Ok(0)]);
    assert_eq!((one.exits, other.exits), (0, 0));
}

/// A4: a processor takes shallower depths too, and has no records beyond them then. The guest knows of the greatest alone,
/// so that whoever reads its records finds them all.
#[test]
fn a_guest_has_no_other_depth_of_branch_records_than_it_is_shown() {
    const DEPTH: u32 = 0x14CF;
    let mut rig = Rig::intel(intel::Config { lbr_depth: 32, ..intel::Config::default() });
    let (mut one, mut other) = (rig.guest(Passthrough::new()), rig.guest(Passthrough::new()));
    rig.resume(&mut one);
    assert_eq!(rig.wrmsr(&mut one, DEPTH, 8), Err(Fault));
    assert_eq!(rig.wrmsr(&mut one, DEPTH, 32), Ok(()));
    rig.pause(&mut one);
    rig.resume(&mut other);
    assert_eq!(rig.rdmsr(&mut other, DEPTH), Ok(32));
}

/// T-A13: CondChgd, which a processor may set by itself, cannot be set by software: it does not come back, and nothing
/// faults on its account.
#[test]
fn a_status_bit_that_nothing_sets_is_not_restored() {
    let mut rig = Rig::intel(intel::Config::default());
    let found = Bank { global_status: 1 << 63 | 0b11, ..Bank::default() };
    found.put(&rig.capability, &Bank::default(), &mut rig.registers);
    assert_eq!(rig.registers.pmu.host_read(STATUS), 0b11);
}

/// A12, T-A6: where the processor has counters that nobody can be given, what reaches them leaves the guest.
#[test]
fn a_counter_beyond_those_there_is_room_for_is_out_of_reach() {
    let mut rig = Rig::intel(intel::Config::default());
    rig.capability.has_more = true;
    let mut guest = rig.guest(Passthrough::new());
    rig.resume(&mut guest);
    assert_eq!(rig.rdpmc(&mut guest, 8), Err(Fault));
    assert_eq!(rig.wrmsr(&mut guest, CONTROL, 1 << 8), Err(Fault));
    assert_eq!(guest.exits, 2);
    rig.wrmsr(&mut guest, CONTROL, 0xFF).expect("legal");
    rig.wrmsr(&mut guest, STATUS_RESET, 0xFF).expect("legal");
    assert_eq!((rig.rdpmc(&mut guest, 7), guest.exits), (Ok(0), 5));
}

/// T-A3: after a reset IA32_PERF_GLOBAL_CTRL enables the general-purpose counters that the guest has, and no others.
#[test]
fn a_guest_begins_with_its_counters_enabled_in_the_global_control() {
    struct Three;
    impl PmuPolicy for Three {
        const MEANS: Means = Means::Passed;
        const FILTERS: bool = false;
        fn share(&self, host: &PmuCapability) -> PmuShare {
            PmuShare { counters: 3, ..PmuShare::all(host) }
        }
    }
    fn begins<P: PmuPolicy>(mut rig: Rig, policy: P, control: u32) -> Result<u64, Fault> {
        let mut guest = rig.guest(policy);
        rig.resume(&mut guest);
        rig.rdmsr(&mut guest, control)
    }
    let intel = || Rig::intel(intel::Config::default());
    let amd = || Rig::amd(amd::Config::default());
    assert_eq!((begins(intel(), All, CONTROL), begins(intel(), Three, CONTROL)), (Ok(0xFF), Ok(0b111)));
    assert_eq!((begins(amd(), All, 0xC000_0301), begins(amd(), Three, 0xC000_0301)), (Ok(0b11_1111), Ok(0b111)));
}

/// T-A16: what a guest reaches follows from what it is shown, and all of it is set, not only what is new.
#[test]
fn a_stricter_arrangement_closes_what_an_earlier_one_opened() {
    let (mut rig, mut guest) = started(Passthrough::new());
    rig.wrmsr(&mut guest, SELECTOR, CYCLES).expect("legal");
    assert_eq!(guest.exits, 0);
    let mut stricter = rig.guest(NoCycles);
    rig.arrange(&mut stricter);
    rig.enter(&mut stricter);
    rig.wrmsr(&mut stricter, SELECTOR, CYCLES).expect("legal");
    rig.wrmsr(&mut stricter, FIXED_CONTROL, 0x333).expect("legal");
    assert_eq!(stricter.exits, 2);
    rig.wrmsr(&mut stricter, CONTROL, 0x7_0000_0001).expect("legal");
    rig.step(&mut stricter, 3, &ONE);
    assert_eq!([0, 0x4000_0001].map(|n| rig.rdpmc(&mut stricter, n)), [Ok(0); 2]);
}

/// As an interrupt of the processor's would, that of a credited overflow freezes what IA32_DEBUGCTL says.
#[test]
fn a_credited_overflow_freezes_branch_records_too() {
    let mut rig = Rig::intel(intel::Config { lbr_depth: 8, ..intel::Config::default() });
    let mut guest = rig.guest(Passthrough::new());
    rig.resume(&mut guest);
    rig.wrmsr(&mut guest, SELECTOR, INSTRUCTIONS | EventSelector::INTERRUPT).expect("legal");
    rig.wrmsr(&mut guest, COUNTER, (1 << 48) - 1).expect("legal");
    let retired = Retired { cpl: 0, branch: false };
    assert!(guest.mechanism.retire(retired, &mut rig.registers, |_| frozen_by_interrupt(1 << 11 | 1 << 1)));
    assert_eq!(rig.rdmsr(&mut guest, STATUS), Ok(1 << 58 | 1));
}

/// T-A24: CTR_FRZ is set with a credited overflow too, goes with its guest, and holds nobody else's counters.
#[test]
fn counters_that_an_interrupt_froze_stay_frozen_across_turns() {
    const FROZEN: u64 = 1 << 59;
    let mut rig = Rig::intel(intel::Config::default());
    let (mut one, mut other) = (rig.guest(Passthrough::new()), rig.guest(Passthrough::new()));
    for guest in [&mut one, &mut other] {
        rig.resume(guest);
        rig.wrmsr(guest, SELECTOR, INSTRUCTIONS | EventSelector::INTERRUPT).expect("legal");
        rig.wrmsr(guest, CONTROL, 1).expect("legal");
        rig.pause(guest);
    }
    rig.resume(&mut one);
    rig.wrmsr(&mut one, COUNTER, (1 << 48) - 1).expect("legal");
    let retired = Retired { cpl: 3, branch: false };
    assert!(one.mechanism.retire(retired, &mut rig.registers, |_| frozen_by_interrupt(1 << 12)));
    for _ in 0..3 {
        assert_eq!(rig.rdmsr(&mut one, STATUS), Ok(FROZEN | 1));
        rig.step(&mut one, 3, &ONE);
        rig.exit(&mut one, 3, false);
        assert_eq!(rig.rdpmc(&mut one, 0), Ok(0));
        rig.pause(&mut one);
        rig.resume(&mut other);
        let before = rig.rdpmc(&mut other, 0).expect("there");
        rig.step(&mut other, 3, &ONE);
        assert_eq!((rig.rdmsr(&mut other, STATUS), rig.rdpmc(&mut other, 0)), (Ok(0), Ok(before + 1)));
        rig.pause(&mut other);
        rig.resume(&mut one);
    }
    rig.wrmsr(&mut one, STATUS_RESET, FROZEN | 1).expect("legal");
    rig.step(&mut one, 3, &ONE);
    assert_eq!(rig.rdpmc(&mut one, 0), Ok(1));
}
