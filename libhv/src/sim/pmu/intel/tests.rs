//! Intel's PMU: exact counts, overflow once, and what each register takes.

use super::*;
use crate::sim::pmu::Fault;

const MAX: u64 = (1 << 48) - 1;
const OS: u64 = 1 << 17;
const USR: u64 = 1 << 16;
const INT: u64 = 1 << 20;
const EN: u64 = 1 << 22;
const INSTRUCTIONS: u64 = 0xC0 | OS | USR | EN;
const CYCLES: u64 = 0x3C | OS | USR | EN;
const SELECTOR: u32 = 0x186;
const COUNTER: u32 = 0xC1;
const FULL: u32 = 0x4C1;
const FIXED: u32 = 0x309;
const FIXED_CONTROL: u32 = 0x38D;
const STATUS: u32 = 0x38E;
const CONTROL: u32 = 0x38F;
const RESET: u32 = 0x390;
const SET: u32 = 0x391;
const DEBUGCTL: u32 = 0x1D9;

fn version(version: u8) -> Pmu {
    Pmu::new(Config {
        version,
        fixed: if version > 1 { 4 } else { 0 },
        full_width_writes: version > 1,
        ..Config::default()
    })
}

/// A PMU whose counters are all enabled in GLOBAL_CTRL, after these writes.
fn with(writes: &[(u32, u64)]) -> Pmu {
    let mut pmu = version(5);
    pmu.write(CONTROL, 0xF_0000_00FF).unwrap();
    for &(msr, value) in writes {
        pmu.write(msr, value).unwrap();
    }
    pmu
}

fn instructions(number: u64) -> Happened {
    Happened { cycles: 1, instructions: number, ..Happened::default() }
}

fn cycles(number: u64) -> Happened {
    Happened { cycles: number, ..Happened::default() }
}

#[test]
fn every_event_counts_what_happened_and_unknown_ones_nothing() {
    let happened = Happened {
        cycles: 3,
        ref_cycles: 5,
        instructions: 7,
        branches: 11,
        conditional: 9,
        mispredicted: 2,
        llc_references: 13,
        llc_misses: 4,
    };
    let table = [
        (0x3C, 3),
        (0x13C, 5),
        (0xC0, 7),
        (0xC4, 11),
        (0x11C4, 9),
        (0xC5, 2),
        (0x4F2E, 13),
        (0x412E, 4),
        (0x1C0, 0),
        (0x23C, 0),
        (0x2C4, 0),
        (0, 0),
        (0x76, 0),
    ];
    for (event, expected) in table {
        let mut pmu = with(&[(SELECTOR, event | OS | EN)]);
        assert!(!pmu.step(0, &happened) && !pmu.step(0, &happened));
        assert_eq!(pmu.read(COUNTER), Ok(2 * expected), "event {event:#x}");
    }
    let mut pmu = with(&[(FIXED_CONTROL, 0x1111)]);
    assert!(!pmu.step(0, &happened));
    assert_eq!([0, 1, 2, 3].map(|index| pmu.read(FIXED + index)), [Ok(7), Ok(3), Ok(5), Ok(12)]);
}

#[test]
fn a_counter_counts_only_while_all_its_enables_agree() {
    for (selector, control, cpl, counts) in [
        (0xC0 | EN | OS, 1, 0, true),
        (0xC0 | EN | OS, 1, 3, false),
        (0xC0 | EN | USR, 1, 0, false),
        (0xC0 | EN | USR, 1, 3, true),
        (0xC0 | EN | USR, 1, 1, true),
        (0xC0 | EN, 1, 0, false),
        (0xC0 | OS | USR, 1, 0, false),
        (0xC0 | EN | OS | USR, !1 & 0xFF, 0, false),
    ] {
        let mut pmu = with(&[(SELECTOR, selector), (CONTROL, control)]);
        assert!(!pmu.step(cpl, &instructions(3)));
        assert_eq!(pmu.read(COUNTER), Ok(if counts { 3 } else { 0 }), "{selector:#x} {control:#x} {cpl}");
    }
    for (fixed_control, cpl, counts) in [(0x10, 0, true), (0x10, 3, false), (0x20, 3, true), (0x80, 0, false)] {
        let mut pmu = with(&[(FIXED_CONTROL, fixed_control)]);
        assert!(!pmu.step(cpl, &cycles(3)));
        assert_eq!(pmu.read(FIXED + 1), Ok(if counts { 3 } else { 0 }), "{fixed_control:#x} {cpl}");
    }
}

#[test]
fn cmask_inv_and_edge_count_periods_and_transitions() {
    let (edge, inv) = (1 << 18, 1 << 23);
    let mask = |number: u64| number << 24;
    // Instructions in the periods: 0, 3, 3, 1, 5, 0 0 0.
    let steps = [(0, 1), (3, 1), (3, 1), (1, 1), (5, 1), (0, 3)];
    for (bits, expected) in [
        (0, 12),
        (inv, 12),
        (mask(1), 4),
        (mask(3), 3),
        (mask(3) | inv, 5),
        (edge, 1),
        (edge | mask(3), 2),
        (edge | mask(3) | inv, 3),
        (mask(255), 0),
    ] {
        let mut pmu = with(&[(SELECTOR, INSTRUCTIONS | bits)]);
        for (number, cycles) in steps {
            assert!(!pmu.step(0, &Happened { cycles, ..instructions(number) }));
        }
        assert_eq!(pmu.read(COUNTER), Ok(expected), "{bits:#x}");
    }
    for (bits, expected) in [(0, 8), (mask(1), 8), (mask(2), 0), (mask(2) | inv, 8), (edge, 1)] {
        let mut pmu = with(&[(SELECTOR, CYCLES | bits)]);
        for (number, cycles) in steps {
            assert!(!pmu.step(0, &Happened { cycles, ..instructions(number) }));
        }
        assert_eq!(pmu.read(COUNTER), Ok(expected), "{bits:#x}");
    }
}

#[test]
fn an_edge_comes_anew_after_the_counter_looked_away() {
    let edges = INSTRUCTIONS & !USR | 1 << 18;
    for (between, expected) in [(None, 1), (Some((SELECTOR, edges)), 2), (Some((CONTROL, 1)), 1)] {
        let mut pmu = with(&[(SELECTOR, edges)]);
        assert!(!pmu.step(0, &instructions(1)));
        if let Some((msr, value)) = between {
            pmu.write(msr, value).unwrap();
        }
        assert!(!pmu.step(0, &instructions(1)));
        assert_eq!(pmu.read(COUNTER), Ok(expected), "{between:?}");
        assert!(!pmu.step(3, &instructions(1)) && !pmu.step(0, &instructions(1)));
        assert_eq!(pmu.read(COUNTER), Ok(expected + 1), "at another level the condition does not hold");
    }
}

#[test]
fn reference_cycles_come_one_in_each_period_and_nothing_without_a_period() {
    let edge = 1 << 18;
    for (event, bits, expected) in
        [(0x13C, 0, 7), (0x13C, 1 << 24, 5), (0x13C, 2 << 24, 0), (0x13C, edge, 2), (0xC0, 1 << 24, 1)]
    {
        let mut pmu = with(&[(SELECTOR, event | OS | EN | bits)]);
        for (cycles, ref_cycles, instructions) in [(4, 3, 0), (3, 2, 1), (0, 2, 1)] {
            assert!(!pmu.step(0, &Happened { cycles, ref_cycles, instructions, ..Happened::default() }));
        }
        assert_eq!(pmu.read(COUNTER), Ok(expected), "{event:#x} {bits:#x}");
    }
}

#[test]
fn overflow_sets_its_bit_once_and_interrupts_once_if_asked() {
    // T-A10
    for interrupts in [false, true] {
        let mut pmu = with(&[(SELECTOR, INSTRUCTIONS | if interrupts { INT } else { 0 }), (FULL, MAX - 4)]);
        let requested: Vec<bool> = (0..10).map(|_| pmu.step(0, &instructions(2))).collect();
        let expected: Vec<bool> = (0..10).map(|step| interrupts && step == 2).collect();
        assert_eq!(requested, expected);
        assert_eq!((pmu.read(COUNTER), pmu.read(STATUS)), (Ok(15), Ok(1)));
        pmu.write(RESET, 1).unwrap();
        assert_eq!(pmu.read(STATUS), Ok(0));
        assert!(!pmu.step(0, &instructions(2)));
        assert_eq!(pmu.read(STATUS), Ok(0));
    }
    let mut pmu = with(&[(FIXED_CONTROL, 0xB0), (FIXED + 1, MAX)]);
    assert!(pmu.step(0, &cycles(1)));
    assert_eq!((pmu.read(FIXED + 1), pmu.read(STATUS)), (Ok(0), Ok(1 << 33)));
}

#[test]
fn counters_that_overflow_together_request_one_interrupt() {
    let mut pmu = with(&[(SELECTOR, INSTRUCTIONS | INT), (SELECTOR + 7, INSTRUCTIONS | INT), (FIXED_CONTROL, 9)]);
    for msr in [FULL, FULL + 7, FIXED] {
        pmu.write(msr, MAX).unwrap();
    }
    assert!(pmu.step(0, &instructions(1)));
    assert_eq!(pmu.read(STATUS), Ok(1 | 1 << 7 | 1 << 32));
    assert!(!pmu.step(0, &instructions(1)));
}

#[test]
fn writes_of_counters_go_by_their_forms() {
    // T-A4
    let mut pmu = with(&[]);
    for (value, held) in
        [(0x7FFF_FFFF, 0x7FFF_FFFF), (0x8000_0000, MAX & !0x7FFF_FFFF), (5 << 32 | 9, 9), (u64::MAX, MAX)]
    {
        pmu.write(COUNTER + 2, value).unwrap();
        assert_eq!([pmu.read(COUNTER + 2), pmu.read(FULL + 2), pmu.read_counter(2)], [Ok(held); 3]);
    }
    for msr in [FULL + 7, FIXED + 3] {
        assert_eq!(pmu.write(msr, 1 << 48 | 5), Err(Fault::Reserved(1 << 48)));
        assert_eq!(pmu.read(msr), Ok(0));
        assert_eq!(pmu.write(msr, MAX), Ok(()));
        assert_eq!(pmu.read(msr), Ok(MAX));
    }
}

/// T-A9.
#[test]
fn a_running_counter_goes_on_from_what_is_written() {
    // T-A9
    let mut pmu = with(&[(SELECTOR, INSTRUCTIONS)]);
    assert!(!pmu.step(0, &instructions(9)));
    pmu.write(COUNTER, 0).unwrap();
    assert!(!pmu.step(0, &instructions(4)));
    assert_eq!((pmu.read(COUNTER), pmu.read(STATUS)), (Ok(4), Ok(0)));
    pmu.write(COUNTER, u64::MAX).unwrap();
    assert_eq!(pmu.read(STATUS), Ok(0), "a write is no overflow");
    assert!(!pmu.step(0, &instructions(1)));
    assert_eq!((pmu.read(COUNTER), pmu.read(STATUS)), (Ok(0), Ok(1)));
}

#[test]
fn global_ctrl_enables_every_general_counter_after_reset() {
    // T-A3
    for (general, expected) in [(8, 0xFF), (1, 1), (0, 0)] {
        let pmu = Pmu::new(Config { general, ..Config::default() });
        assert_eq!(pmu.read(CONTROL), Ok(expected));
    }
    let mut old = version(1);
    old.write(SELECTOR + 7, INSTRUCTIONS).unwrap();
    assert!(!old.step(0, &instructions(3)));
    assert_eq!(old.read(COUNTER + 7), Ok(3), "version 1 has nothing to enable it with");
}

#[test]
fn rdpmc_takes_the_types_and_counters_there_are() {
    // T-A7
    let mut pmu = with(&[]);
    pmu.write(FULL + 7, 0x1234_5678_9ABC).unwrap();
    pmu.write(FIXED + 3, 3).unwrap();
    assert_eq!(pmu.read_counter(7), Ok(0x1234_5678_9ABC));
    assert_eq!(pmu.read_counter(0x4000_0003), Ok(3));
    for ecx in [8, 64, 0x4000_0004, 0x2000_0000, 0x8000_0000, 0x8000_0007, 0xC000_0000, 0x1_0000, 0x4001_0000, u32::MAX]
    {
        assert_eq!(pmu.read_counter(ecx), Err(Fault::NoCounter), "{ecx:#x}");
    }
    assert_eq!(version(1).read_counter(0x4000_0000), Err(Fault::NoCounter));
}

#[test]
fn status_is_written_through_set_and_reset_without_an_interrupt() {
    // T-A13
    let mut pmu = with(&[(SELECTOR, INSTRUCTIONS | INT)]);
    pmu.write(SET, 1 << 33 | 1 | 1 << 62).unwrap();
    assert!(!pmu.step(0, &instructions(1)), "a bit that is set is no overflow");
    assert_eq!(pmu.read(STATUS), Ok(1 << 33 | 1 | 1 << 62));
    pmu.write(SET, 0).unwrap();
    pmu.write(RESET, 1 | 1 << 62 | 1 << 63).unwrap();
    assert_eq!(pmu.read(STATUS), Ok(1 << 33), "only what is named is cleared");
    assert_eq!(pmu.write(STATUS, 0), Err(Fault::ReadOnly));
    assert_eq!([pmu.read(SET), pmu.read(RESET)], [Ok(0), Ok(0)]);
}

#[test]
fn freezing_stops_all_counters_until_software_goes_on() {
    // T-A24
    let writes = [(SELECTOR, INSTRUCTIONS | INT), (FULL, MAX), (FIXED_CONTROL, 3), (DEBUGCTL, DEBUGCTL_FREEZE)];
    let mut pmu = with(&writes);
    assert!(pmu.step(0, &instructions(1)));
    assert_eq!(pmu.read(STATUS), Ok(1 | STATUS_FROZEN));
    assert!(!pmu.step(0, &instructions(5)));
    assert_eq!((pmu.read(COUNTER), pmu.read(FIXED)), (Ok(0), Ok(1)));
    assert_eq!(pmu.read(CONTROL), Ok(0xF_0000_00FF), "GLOBAL_CTRL is as it was");
    pmu.write(RESET, STATUS_FROZEN).unwrap();
    assert!(!pmu.step(0, &instructions(5)));
    assert_eq!((pmu.read(COUNTER), pmu.read(FIXED)), (Ok(5), Ok(6)));
    pmu.write(SET, STATUS_FROZEN).unwrap();
    assert!(!pmu.step(0, &instructions(5)));
    assert_eq!(pmu.read(COUNTER), Ok(5), "a restored bit freezes as well");
    let mut quiet = with(&[(SELECTOR, INSTRUCTIONS), (FULL, MAX), (DEBUGCTL, DEBUGCTL_FREEZE)]);
    assert!(!quiet.step(0, &instructions(1)));
    assert_eq!(quiet.read(STATUS), Ok(1), "only a counter that interrupts freezes");
    let mut old = version(3);
    for (msr, value) in writes {
        old.write(msr, value).unwrap();
    }
    assert!(old.step(0, &instructions(1)));
    assert_eq!([old.read(STATUS), old.read(CONTROL)], [Ok(1), Ok(0)]);
}

#[test]
fn inuse_shows_selectors_and_interrupt_enables() {
    let mut pmu = with(&[(SELECTOR + 3, 0xC0), (FIXED_CONTROL, 0x20)]);
    assert_eq!(pmu.read(0x392), Ok(1 << 3 | 1 << 33));
    assert_eq!(pmu.write(0x392, 0), Err(Fault::ReadOnly));
    pmu.write(SELECTOR + 3, INT).unwrap();
    assert_eq!(pmu.read(0x392), Ok(1 << 33 | 1 << 63));
}

/// T-A18.
#[test]
fn reserved_bits_go_by_version_and_capability() {
    // T-A18
    let takes = |config: Config, msr: u32, bit: u32| match Pmu::new(config).write(msr, 1 << bit) {
        Ok(()) => true,
        Err(Fault::Reserved(bits)) => {
            assert_eq!(bits, 1 << bit);
            false
        }
        Err(other) => panic!("{other}"),
    };
    let all = |config: Config, msr: u32| {
        (0..64).filter(|&bit| takes(config, msr, bit)).fold(0u64, |bits, bit| bits | 1 << bit)
    };
    let of = |version| Config { version, ..Config::default() };
    for (version, any_thread) in [(2, false), (3, true), (4, true), (5, false)] {
        let (selector, fixed) = if any_thread { (1 << 21, 0x4444) } else { (0, 0) };
        assert_eq!(all(of(version), SELECTOR), 0xFFD7_FFFF | selector, "version {version}");
        assert_eq!(all(of(version), FIXED_CONTROL), 0xBBBB | fixed, "version {version}");
    }
    let transactions = Config { transactions: true, ..of(5) };
    assert_eq!([1, 2].map(|index| all(transactions, SELECTOR + index) >> 32), [1, 3], "T-A17: IN_TXCP");
    let fewer = Config { general: 3, fixed: 2, ..of(5) };
    assert_eq!(all(fewer, CONTROL), 0x3_0000_0007);
    assert_eq!(all(fewer, FIXED_CONTROL), 0xBB);
    assert_eq!(all(fewer, RESET), 0xEC00_0003_0000_0007);
    assert_eq!(all(fewer, SET), 0x6C00_0003_0000_0007);
    assert_eq!(all(Config { version: 3, ..fewer }, RESET), 0xE000_0003_0000_0007);
    assert_eq!(all(of(5), DEBUGCTL), 0x5802);
    assert_eq!(all(Config { freeze_in_smm: false, ..of(5) }, DEBUGCTL), 0x1802);
}

#[test]
fn registers_exist_by_version_and_number_of_counters() {
    let exists = |config: Config, msr: u32| Pmu::new(config).read(msr) != Err(Fault::NoRegister);
    let fewer = Config { general: 4, fixed: 3, ..Config::default() };
    for (first, last, beyond) in
        [(COUNTER, 0xC4, 0xC5), (SELECTOR, 0x189, 0x18A), (FULL, 0x4C4, 0x4C5), (FIXED, 0x30B, 0x30C)]
    {
        assert!(exists(fewer, first) && exists(fewer, last) && !exists(fewer, beyond), "{first:#x}");
        assert_eq!(Pmu::new(fewer).write(beyond, 0), Err(Fault::NoRegister));
    }
    assert!(!exists(Config { full_width_writes: false, ..fewer }, FULL));
    assert_eq!(Pmu::new(fewer).read(0x345), Ok(1 << 13 | 1 << 12));
    assert_eq!(Pmu::new(fewer).write(0x345, 0), Err(Fault::ReadOnly));
    for (version, count) in [(2, 5), (3, 5), (4, 7), (5, 7)] {
        let there =
            [0x345, 0x38D, 0x38E, 0x38F, 0x390, 0x391, 0x392].map(|msr| exists(Config { version, ..fewer }, msr));
        assert_eq!(there.iter().filter(|&&is| is).count(), count, "version {version}");
    }
    assert!(
        [0x345, 0x38D, 0x38E, 0x38F, 0x390, 0x309].iter().all(|&msr| version(1).read(msr) == Err(Fault::NoRegister))
    );
}

#[test]
fn branch_records_stop_when_an_interrupt_freezes_them() {
    let mut pmu = Pmu::new(Config { lbr_depth: 32, ..Config::default() });
    let kind = crate::sim::pmu::Kind::DirectJump;
    let jump = |from| crate::sim::pmu::Taken { from, to: 1, kind, mispredicted: false };
    for (msr, value) in
        [(0x14CE, 0x7F_0007), (DEBUGCTL, DEBUGCTL_FREEZE_LBRS), (SELECTOR, INSTRUCTIONS | INT), (FULL, MAX)]
    {
        pmu.write(msr, value).unwrap();
    }
    pmu.branch(0, &jump(5));
    assert!(pmu.step(0, &instructions(1)));
    pmu.branch(0, &jump(6));
    assert_eq!([pmu.read(0x1500), pmu.read(STATUS)], [Ok(5), Ok(1 | STATUS_LBR_FROZEN)]);
    assert!(!pmu.step(0, &instructions(1)));
    assert_eq!(pmu.read(COUNTER), Ok(1), "counters go on");
    pmu.write(RESET, STATUS_LBR_FROZEN).unwrap();
    pmu.branch(0, &jump(6));
    assert_eq!(pmu.read(0x1500), Ok(6));
    assert_eq!(version(5).read(0x1500), Err(Fault::NoRegister));
}
