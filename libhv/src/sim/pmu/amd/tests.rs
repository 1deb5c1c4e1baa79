//! AMD's PMU: whose work counts, what is left alone, and the switch in hardware.

use super::*;

const SELECTOR: u32 = 0xC001_0200;
const COUNTER: u32 = 0xC001_0201;
const STATUS: u32 = 0xC000_0300;
const CONTROL: u32 = 0xC000_0301;
const CLEAR: u32 = 0xC000_0302;
const SET: u32 = 0xC000_0303;
const EN: u64 = 1 << 22;
const ALL: u64 = EN | SELECT_OS | SELECT_USR;
const MAX: u64 = (1 << 48) - 1;

fn instructions(number: u64) -> Happened {
    Happened { cycles: 2, instructions: number, branches: 5, conditional: 3, mispredicted: 1, ..Happened::default() }
}

fn with(config: Config, writes: &[(u32, u64)]) -> Pmu {
    let mut pmu = Pmu::new(config);
    for &(msr, value) in writes {
        pmu.write(msr, value).unwrap();
    }
    pmu
}

#[test]
fn every_event_counts_what_happened() {
    let table = [(0x76, 2), (0xC0, 7), (0xC2, 5), (0xC3, 1), (0xD1, 3), (0x3C, 0), (1 << 32 | 0xC0, 0)];
    for (event, expected) in table {
        let mut pmu = with(Config::default(), &[(SELECTOR, event | ALL)]);
        assert!(!pmu.step(3, false, &instructions(7)));
        assert_eq!(pmu.read(COUNTER), Ok(expected), "event {event:#x}");
    }
}

/// T-A25.
#[test]
fn guest_only_and_host_only_mean_something_once_svme_is_set() {
    // T-A25
    let (guest, host) = (SELECT_GUEST_ONLY, SELECT_HOST_ONLY);
    for (bits, svme, in_guest, counts) in [
        (0, false, false, true),
        (guest, false, false, false),
        (host, false, false, false),
        (guest | host, false, false, false),
        (0, true, false, true),
        (0, true, true, true),
        (guest, true, false, false),
        (guest, true, true, true),
        (host, true, false, true),
        (host, true, true, false),
        (guest | host, true, false, true),
        (guest | host, true, true, true),
    ] {
        let mut pmu = with(Config::default(), &[(SELECTOR, 0xC0 | ALL | bits)]);
        pmu.set_svme(svme);
        assert!(!pmu.step(0, in_guest, &instructions(7)));
        assert_eq!(pmu.read(COUNTER), Ok(if counts { 7 } else { 0 }), "{bits:#x} {svme} {in_guest}");
    }
}

#[test]
fn overflow_sets_its_bit_once_and_interrupts_once_if_asked() {
    // T-A10
    for interrupts in [false, true] {
        let int = if interrupts { SELECT_INT } else { 0 };
        let mut pmu = with(Config::default(), &[(SELECTOR + 10, 0xC0 | ALL | int), (COUNTER + 10, MAX - 4)]);
        let requested = [0; 5].map(|_| pmu.step(0, false, &instructions(2)));
        assert_eq!(requested, [false, false, interrupts, false, false]);
        assert_eq!((pmu.read(COUNTER + 10), pmu.read(STATUS)), (Ok(5), Ok(1 << 5)));
        pmu.write(CLEAR, 1 << 5).unwrap();
        assert_eq!(pmu.read(STATUS), Ok(0));
        pmu.write(SET, 1).unwrap();
        assert!(!pmu.step(0, false, &instructions(2)));
        assert_eq!(pmu.read(STATUS), Ok(1), "T-A13: a bit that is set is no overflow");
    }
}

#[test]
fn the_legacy_registers_are_the_same_counters() {
    let mut pmu = with(Config::default(), &[(0xC001_0003, 0xC0 | ALL), (0xC001_0007, 5)]);
    assert_eq!([pmu.read(SELECTOR + 6), pmu.read(COUNTER + 6), pmu.read_counter(3)], [Ok(0xC0 | ALL), Ok(5), Ok(5)]);
    let legacy = Config { extended: false, global: false, freeze: false, virtualized: false };
    let mut old = with(legacy, &[(0xC001_0003, 0xC0 | ALL | SELECT_INT), (0xC001_0007, MAX)]);
    assert!(old.step(0, false, &instructions(1)), "without global registers counters are on");
    for msr in [SELECTOR, COUNTER, STATUS, CONTROL, CLEAR, SET] {
        assert_eq!([old.read(msr), old.write_leniently(msr, 0).map(|()| 0)], [Err(Fault::NoRegister); 2], "{msr:#x}");
    }
    assert_eq!([pmu.read_counter(5), old.read_counter(4)], [Ok(0), Err(Fault::NoCounter)]);
    // T-A7
    assert!([6, 64, 0x8000_0000, 0x4000_0000].iter().all(|&ecx| pmu.read_counter(ecx) == Err(Fault::NoCounter)));
    assert_eq!(pmu.write_leniently(0xC001_0008, 0), Err(Fault::NoRegister));
}

#[test]
fn what_is_reserved_is_left_alone() {
    // T-A4, T-A18
    let mut pmu = Pmu::new(Config::default());
    for (msr, held) in [(SELECTOR, SELECTOR_BITS), (COUNTER, MAX), (CONTROL, 0x3F), (STATUS, 0)] {
        assert_eq!(pmu.write_leniently(msr, u64::MAX), Ok(()));
        assert_eq!(pmu.read(msr), Ok(held), "{msr:#x}");
    }
    assert_eq!(pmu.write(SELECTOR, 1 << 19 | 1 << 21 | 1 << 36), Err(Fault::Reserved(1 << 19 | 1 << 21 | 1 << 36)));
    assert_eq!(pmu.write_leniently(SET, u64::MAX), Ok(()));
    assert_eq!(pmu.read(STATUS), Ok(0x3F | 3 << 58));
}

#[test]
fn freezing_stops_all_counters_until_software_goes_on() {
    let writes = [(SELECTOR, 0xC0 | ALL | SELECT_INT), (COUNTER, MAX), (0x1D9, DEBUGCTL_FREEZE)];
    let mut pmu = with(Config::default(), &writes);
    assert!(pmu.step(0, false, &instructions(1)));
    assert_eq!(pmu.read(STATUS), Ok(1 | STATUS_FROZEN));
    assert!(!pmu.step(0, false, &instructions(1)));
    assert_eq!(pmu.read(COUNTER), Ok(0));
    pmu.write(CLEAR, STATUS_FROZEN).unwrap();
    assert!(!pmu.step(0, false, &instructions(1)));
    assert_eq!(pmu.read(COUNTER), Ok(1));
}

/// T-A14.
#[test]
fn hardware_switches_the_counters_and_refuses_while_the_hosts_are_on() {
    // T-A14
    let mut pmu = Pmu::new(Config { virtualized: true, ..Config::default() });
    let mut slots = Slots { status: 4, control: 1, ..Slots::default() };
    slots.counters[0] = (0xC0 | ALL, 40);
    assert_eq!(pmu.load(&slots), Err(INVALID_PMC), "GlobalCtl has its value of RESET");
    pmu.write(CONTROL, 0).unwrap();
    pmu.write(SET, 1).unwrap();
    assert_eq!(pmu.load(&slots), Ok(()));
    assert_eq!(pmu.read(STATUS), Ok(4));
    assert!(!pmu.step(0, true, &instructions(2)));
    slots.counters[0].1 = 42;
    assert_eq!(pmu.save(), slots);
    assert_eq!([STATUS, CONTROL, SELECTOR, COUNTER].map(|msr| pmu.read(msr)), [Ok(1), Ok(0x3F), Ok(0), Ok(0)]);
    assert_eq!(pmu.load(&slots), Err(INVALID_PMC), "software has to clear it before the next VMRUN");
}
