//! The PMU in its processor: what guests and hosts count, and how the interrupt comes.

use super::*;
use crate::hw::{PmiHost, PmiRoute, PmuHardware};
use crate::pmu::{CounterIndex, PmuRegister};
use crate::registers::{ControlRegister, SegmentRegister};
use crate::sim::pmu::{Config, Happened, amd, intel};

const INTEL: Config = Config::Intel(intel::Config {
    version: 5,
    general: 8,
    fixed: 4,
    width: 48,
    full_width_writes: true,
    freeze_in_smm: true,
    transactions: false,
    lbr_depth: 8,
});
const AMD: Config = Config::Amd(amd::Config { extended: true, global: true, freeze: true, virtualized: false });
const MAX: u64 = (1 << 48) - 1;
const ALL: u64 = 1 << 16 | 1 << 17 | 1 << 22;
const INT: u64 = 1 << 20;
const GUEST_ONLY: u64 = 1 << 40;
const HOST_ONLY: u64 = 1 << 41;
/// Of Intel: instructions, branches, conditional branches, mispredicted branches, LLC references and misses, cycles.
const EVENTS: [u64; 7] = [0xC0, 0xC4, 0x11C4, 0xC5, 0x4F2E, 0x412E, 0x3C];

fn machine(config: Config, body: impl FnOnce(&mut Program)) -> (Machine, Processor, GuestMemory) {
    let vendor = if matches!(config, Config::Amd(_)) { Vendor::Amd } else { Vendor::Intel };
    let machine = Machine::new(1, HZ, 0);
    machine.set_pmu(config);
    let mut program = Program::at(0x1000);
    body(&mut program);
    program.ops(&[Op::Hlt]).continue_at(0x4000).handler(13).ops(&[Op::Ud2]).handler(6).ops(&[Op::Hypercall]);
    let (mut processor, memory) = Processor::new(&machine, vendor, 1, MEMORY, &program);
    processor.set_gpr(Gpr::Rsp, STACK.into());
    (machine, processor, memory)
}

/// An Intel processor whose counters stand still in the host, with these selectors.
fn counting(selectors: &[u64], body: impl FnOnce(&mut Program)) -> (Machine, Processor, GuestMemory) {
    let (machine, mut processor, memory) = machine(INTEL, body);
    processor.write_pmu(PmuRegister::GlobalControl, 0);
    processor.switch_global_control(true, 0);
    processor.set_guest_global_control(0xF_0000_00FF);
    for (index, &selector) in (0..).zip(selectors) {
        processor.write_pmu(PmuRegister::Selector(index), selector | ALL);
    }
    (machine, processor, memory)
}

fn counts<const N: usize>(processor: &Processor) -> [u64; N] {
    core::array::from_fn(|index| processor.read_counter(CounterIndex::General(index as u8)))
}

#[test]
fn a_guest_counts_its_own_instructions_exactly() {
    let (machine, mut processor, memory) = counting(&EVENTS, |program| {
        program.repeat(10, &[Op::Nop]).ops(&[Op::Call(0x2000), Op::Cpuid]).store(0x6000, Width::Dword, 1);
        let back = program.here();
        program.continue_at(0x2000).ops(&[Op::Return]).continue_at(back);
    });
    machine.set_host_work(Happened { cycles: 1000, instructions: 1000, branches: 100, ..Happened::default() });
    assert!(matches!(processor.enter(), Ok(Exit::Cpuid { .. })));
    // MOV, ten times NOP, DEC and JNZ, CALL, RET. JNZ is mispredicted at first and at last, RET once. CPUID takes a cycle
    // and retires when the hypervisor says so. CALL misses, RET hits.
    assert_eq!(counts(&processor), [33, 12, 10, 3, 1, 1, 34]);
    processor.advance(&memory);
    assert_eq!(processor.enter(), Ok(Exit::Halt));
    assert_eq!(counts(&processor), [35, 12, 10, 3, 2, 2, 37], "two more, a store that misses, and the cycle of HLT");
}

#[test]
fn without_the_switch_a_guests_counters_count_the_host() {
    let (machine, mut processor, _) = counting(&[0xC0], |_| {});
    machine.set_host_work(Happened { cycles: 1, instructions: 100, ..Happened::default() });
    processor.switch_global_control(false, 0);
    processor.write_pmu(PmuRegister::GlobalControl, 1);
    assert_eq!(processor.enter(), Ok(Exit::Halt));
    assert_eq!(counts(&processor), [200], "at the entry and at the exit");
}

#[test]
fn the_host_counts_while_the_guest_does_not() {
    let (machine, mut processor, _) = counting(&[0xC0], |program| {
        program.ops(&[Op::Nop; 7]);
    });
    machine.set_host_work(Happened { cycles: 1, instructions: 100, ..Happened::default() });
    processor.write_pmu(PmuRegister::GlobalControl, 1);
    processor.switch_global_control(true, 1);
    processor.set_guest_global_control(0);
    assert_eq!(processor.enter(), Ok(Exit::Halt));
    assert_eq!(counts(&processor), [200]);
    assert_eq!((processor.read_pmu(PmuRegister::GlobalControl), processor.guest_global_control()), (1, 0));
}

#[test]
fn a_guest_of_amds_counts_by_its_selectors_bits() {
    let (machine, mut processor, memory) = machine(AMD, |program| {
        program.repeat(5, &[]).ops(&[Op::Cpuid]);
    });
    machine.set_host_work(Happened { cycles: 10, instructions: 100, ..Happened::default() });
    for (index, bits) in (0..).zip([GUEST_ONLY, HOST_ONLY, 0, GUEST_ONLY | HOST_ONLY]) {
        processor.write_pmu(PmuRegister::CoreSelector(index), 0xC0 | ALL | bits);
    }
    assert!(matches!(processor.enter(), Ok(Exit::Cpuid { .. })));
    processor.advance(&memory);
    assert_eq!(processor.enter(), Ok(Exit::Halt));
    assert_eq!(counts(&processor), [11, 400, 411, 411]);
}

#[test]
fn what_is_passed_is_reached_without_leaving_and_faults_in_the_guest() {
    let (_, mut processor, memory) = counting(&[], |program| {
        program.wrmsr(0x186, 0xC0 | ALL).ops(&[Op::Nop, Op::Nop]).rdpmc(0).ops(&[Op::Store(0x6000, Width::Dword)]);
        program.rdmsr(0xC1).ops(&[Op::Store(0x6004, Width::Dword)]).wrmsr(0x38F, 3).wrmsr(0x186, 1 << 32);
    });
    processor.pass_rdpmc(true);
    for (register, read, write) in [
        (PmuRegister::Selector(0), false, true),
        (PmuRegister::Counter(0), true, false),
        (PmuRegister::GlobalControl, true, true),
    ] {
        processor.pass_pmu(register, read, write);
    }
    assert_eq!(processor.enter(), Ok(Exit::Hypercall), "the handler of #UD, which that of #GP raises");
    let read = |address| memory.read_number(Gpa::new(address), Width::Dword);
    assert_eq!([read(0x6000), read(0x6004)], [Ok(4), Ok(7)], "each counts what came before it, WRMSR itself included");
    assert_eq!(delivered(&processor)[0], Event::GENERAL_PROTECTION);
    assert_eq!(processor.guest_global_control(), 3, "saved at the exit");
    assert_eq!(processor.read_pmu(PmuRegister::GlobalControl), 0, "the host's is loaded");
}

#[test]
fn what_is_not_passed_exits() {
    let (_, mut processor, memory) = counting(&[], |program| {
        program.rdpmc(0x4000_0001).wrmsr(0x38F, 3).rdmsr(0x38E);
    });
    assert_eq!(processor.enter(), Ok(Exit::Rdpmc(0x4000_0001)));
    processor.advance(&memory);
    assert_eq!(processor.enter(), Ok(Exit::Wrmsr(Msr(0x38F), 3)));
    processor.advance(&memory);
    assert_eq!(processor.enter(), Ok(Exit::Rdmsr(Msr(0x38E))));
}

#[test]
fn rdpmc_needs_cr4_pce_above_level_0_before_it_exits() {
    for (pce, expected) in [(true, Exit::Rdpmc(0)), (false, Exit::Hypercall)] {
        let (_, mut processor, _) = counting(&[], |program| {
            program.rdpmc(0);
        });
        let mut stack = processor.segment(SegmentRegister::Ss);
        stack.attributes.0 |= 3 << 5;
        processor.set_segment(SegmentRegister::Ss, stack);
        processor.set_control(ControlRegister::Cr4, u64::from(pce) << 8);
        assert_eq!(processor.enter(), Ok(expected));
    }
}

#[test]
fn an_overflow_in_the_guest_interrupts_the_host_once() {
    // T-A10, T-A22: Intel's exit acknowledges the interrupt, AMD's leaves it pending.
    for (config, selector, counter) in [
        (INTEL, PmuRegister::Selector(0), PmuRegister::FullCounter(0)),
        (AMD, PmuRegister::CoreSelector(0), PmuRegister::FullCounter(0)),
    ] {
        let vector = (config == INTEL).then_some(0x32);
        for skid in [0, 3] {
            let (mut machine, mut processor, _) = machine(config, |program| {
                program.ops(&[Op::Nop; 20]);
            });
            machine.set_pmi_skid(skid);
            machine.route_pmi(PmiRoute::Guest);
            processor.write_pmu(selector, 0xC0 | ALL | INT);
            processor.write_pmu(counter, MAX - 4);
            assert_eq!(processor.enter(), Ok(Exit::ExternalInterrupt(vector)));
            assert_eq!(processor.rip(), 0x1005 + skid, "the fifth instruction runs over");
            assert!(!machine.take_guest_pmi(), "it is not served yet");
            machine.serve_interrupts(vector);
            assert!(machine.take_guest_pmi());
            assert_eq!(processor.enter(), Ok(Exit::Halt), "one interrupt");
            assert!(!machine.take_guest_pmi());
        }
    }
}

#[test]
fn intel_masks_the_entry_when_it_delivers() {
    // T-A2
    for (config, selector, expected) in [
        (INTEL, PmuRegister::Selector(0), Exit::Halt),
        (AMD, PmuRegister::CoreSelector(0), Exit::ExternalInterrupt(None)),
    ] {
        let (mut machine, mut processor, _) = machine(config, |program| {
            program.ops(&[Op::Nop; 20]);
        });
        machine.route_pmi(PmiRoute::Guest);
        processor.write_pmu(selector, 0xC0 | ALL | INT);
        processor.write_pmu(PmuRegister::FullCounter(0), MAX);
        let Ok(Exit::ExternalInterrupt(vector)) = processor.enter() else { panic!("an interrupt") };
        machine.serve_interrupts(vector);
        processor.write_pmu(PmuRegister::FullCounter(0), MAX);
        assert_eq!(processor.enter(), Ok(expected));
    }
}

#[test]
fn an_interrupt_that_comes_late_waits_for_the_next_entry() {
    // T-A12: the guest leaves for another reason in between.
    let (mut machine, mut processor, memory) = counting(&[0xC0 | INT], |program| {
        program.ops(&[Op::Nop, Op::Cpuid, Op::Nop]);
    });
    machine.set_pmi_skid(5);
    machine.route_pmi(PmiRoute::Guest);
    processor.write_pmu(PmuRegister::FullCounter(0), MAX);
    assert!(matches!(processor.enter(), Ok(Exit::Cpuid { .. })));
    processor.advance(&memory);
    assert_eq!(processor.enter(), Ok(Exit::ExternalInterrupt(Some(0x32))));
    assert_eq!(processor.rip(), 0x1003);
    machine.serve_interrupts(Some(0x32));
    assert!(machine.take_guest_pmi());
    assert_eq!(processor.enter(), Ok(Exit::Halt));
}

#[test]
fn a_skid_runs_through_the_hosts_instructions_too() {
    let (mut machine, mut processor, memory) = counting(&[0xC0 | INT], |program| {
        program.ops(&[Op::Nop, Op::Cpuid, Op::Nop, Op::Nop]);
    });
    machine.set_pmi_skid(5);
    machine.set_host_work(Happened { cycles: 2, instructions: 2, ..Happened::default() });
    machine.route_pmi(PmiRoute::Guest);
    processor.write_pmu(PmuRegister::FullCounter(0), MAX);
    assert!(matches!(processor.enter(), Ok(Exit::Cpuid { .. })));
    processor.advance(&memory);
    assert_eq!(processor.enter(), Ok(Exit::ExternalInterrupt(Some(0x32))));
    assert_eq!(processor.rip(), 0x1004, "two at the exit, two at the entry, one in the guest");
}

#[test]
fn a_masked_entry_keeps_quiet() {
    // T-A24 of the entry, requirement A24: the status shows it all the same.
    let (mut machine, mut processor, _) = counting(&[0xC0 | INT], |program| {
        program.ops(&[Op::Nop; 5]);
    });
    machine.route_pmi(PmiRoute::Masked);
    processor.write_pmu(PmuRegister::FullCounter(0), MAX);
    assert_eq!(processor.enter(), Ok(Exit::Halt));
    assert_eq!(processor.read_pmu(PmuRegister::GlobalStatus), 1);
    machine.route_pmi(PmiRoute::Guest);
    assert!(!machine.take_guest_pmi(), "what met the mask is lost");
}

#[test]
fn an_nmi_leaves_the_guest_and_reaches_the_host() {
    for (config, exit_takes_it) in [(INTEL, true), (AMD, false)] {
        let selector = if config == INTEL { PmuRegister::Selector(0) } else { PmuRegister::CoreSelector(0) };
        let (mut machine, mut processor, _) = machine(config, |program| {
            program.ops(&[Op::Nop; 5]);
        });
        machine.route_pmi(PmiRoute::Host);
        processor.write_pmu(selector, 0xC0 | ALL | INT);
        processor.write_pmu(PmuRegister::FullCounter(0), MAX);
        assert_eq!(processor.enter(), Ok(Exit::Nmi));
        assert_eq!(machine.host_nmis(), u64::from(!exit_takes_it));
        assert_eq!(processor.enter(), Ok(Exit::Halt));
        machine.route_pmi(PmiRoute::Host);
        processor.write_pmu(PmuRegister::FullCounter(0), MAX - 9);
        machine.work(&Happened { cycles: 10, instructions: 10, ..Happened::default() });
        assert_eq!(machine.host_nmis(), 1 + u64::from(!exit_takes_it), "in the host it needs no exit");
    }
}

#[test]
fn branch_records_hold_the_guests_branches() {
    let (machine, mut processor, _) = counting(&[], |program| {
        program.repeat(3, &[]).ops(&[Op::Jump(0x2000)]).continue_at(0x2000);
    });
    machine.pmu(|pmu| pmu.host_write(0x14CE, 0x7F_0007));
    assert_eq!(processor.enter(), Ok(Exit::Halt));
    let records =
        machine.pmu(|pmu| [0, 1, 2, 3].map(|slot| (pmu.host_read(0x1500 + slot), pmu.host_read(0x1600 + slot))));
    assert_eq!(records, [(0x100C, 0x2000), (0x1006, 0x1005), (0x1006, 0x1005), (0, 0)]);
}

#[test]
fn branches_of_the_host_are_recorded_unless_the_control_is_switched() {
    for switched in [false, true] {
        let (machine, mut processor, _) = counting(&[], |program| {
            program.ops(&[Op::Jump(0x2000)]).continue_at(0x2000);
        });
        machine.set_host_work(Happened { branches: 1, ..Happened::default() });
        if switched {
            processor.switch_lbr_control(Some(0x7F_0007));
        } else {
            machine.pmu(|pmu| pmu.host_write(0x14CE, 0x7F_0007));
        }
        assert_eq!(processor.enter(), Ok(Exit::Halt));
        let from: [u64; 3] = machine.pmu(|pmu| [0, 1, 2].map(|slot| pmu.host_read(0x1500 + slot)));
        let host = 0xFFFF_8000_0000_0000;
        assert_eq!(from, if switched { [0x1000, 0, 0] } else { [host, 0x1000, host] });
        assert_eq!(processor.guest_lbr_control(), switched.then_some(0x7F_0007));
    }
}

#[test]
fn virtualized_counters_are_switched_by_hardware_and_interrupt_their_guest() {
    let config = Config::Amd(amd::Config { virtualized: true, ..amd::Config::default() });
    let (machine, mut processor, memory) = machine(config, |program| {
        program.ops(&[Op::Nop, Op::Nop, Op::Nop, Op::Cpuid]).continue_at(0x3000).handler(2).ops(&[Op::Iret]);
        program.continue_at(0x1005);
    });
    machine.set_host_work(Happened { cycles: 1, instructions: 100, ..Happened::default() });
    let mut slots = amd::Slots { control: 1, ..amd::Slots::default() };
    slots.counters[0] = (0xC0 | ALL | INT, MAX - 1);
    processor.virtualize_counters(Some(slots));
    // T-A14, T-A26: after RESET the host's counters are on.
    let refused = processor.enter();
    let Err(crate::error::EntryFailure::InvalidState(raw)) = refused else { panic!("{refused:?}") };
    assert_eq!(raw.code, u64::MAX - 3);
    processor.write_pmu(PmuRegister::GlobalControl, 0);
    assert!(matches!(processor.enter(), Ok(Exit::Cpuid { .. })));
    assert_eq!(delivered(&processor), [Event::Nmi]);
    let saved = processor.virtual_counters().expect("virtualized");
    // Three times NOP and an IRET, of which the second overflowed.
    assert_eq!((saved.counters[0].1, saved.status), (2, 1));
    assert_eq!(processor.read_pmu(PmuRegister::GlobalStatus), 0, "the host's own");
    assert_eq!(processor.read_pmu(PmuRegister::GlobalControl), 0x3F);
    processor.advance(&memory);
    assert!(processor.enter().is_err(), "the host's counters are on again");
}

/// T-A24.
#[test]
fn freezing_is_the_guests_own_while_it_runs() {
    // T-A24: IA32_DEBUGCTL is switched with the guest.
    let (mut machine, mut processor, _) = counting(&[0xC0 | INT], |program| {
        program.ops(&[Op::Nop; 5]);
    });
    machine.route_pmi(PmiRoute::Guest);
    processor.write_pmu(PmuRegister::FullCounter(0), MAX);
    processor.set_switched_msr(Msr(0x1D9), 1 << 12);
    assert_eq!(processor.enter(), Ok(Exit::ExternalInterrupt(Some(0x32))));
    assert_eq!(processor.read_pmu(PmuRegister::GlobalStatus), 1 | 1 << 59);
    machine.pmu(|pmu| assert_eq!(pmu.host_read(0x1D9), 0));
    assert_eq!(processor.switched_msr(Msr(0x1D9)), Some(1 << 12));
    machine.serve_interrupts(Some(0x32));
    assert_eq!(processor.enter(), Ok(Exit::Halt));
    assert_eq!(counts(&processor), [0]);
}

#[test]
fn what_does_not_end_does_not_retire() {
    let (_, mut processor, _) = counting(&[0xC0, 0xC4], |program| {
        program.continue_at(0x3000).handler(0x40).ops(&[Op::Iret]);
        program.continue_at(0x1000).ops(&[Op::Int(0x40), Op::Ud2]);
    });
    assert_eq!(processor.enter(), Ok(Exit::Hypercall));
    assert_eq!(counts(&processor), [2, 2], "INT and IRET; UD2 faults and its handler leaves");
    let (_, mut processor, _) = counting(&[0xC0, 0xC4], |program| {
        program.ops(&[Op::Int(0x55)]).continue_at(0x4100);
    });
    assert_eq!(processor.enter(), Ok(Exit::Hypercall));
    assert_eq!(counts(&processor), [0, 0], "INT has no handler and faults");
    let (_, mut processor, _) = counting(&[0xC0], |program| {
        program.ops(&[Op::Load(0x6000, Width::Dword)]);
    });
    processor.nested().set(Gpa::new(0x6000), None);
    processor.nested().flush();
    assert!(matches!(processor.enter(), Ok(Exit::NestedPageFault(_))));
    assert_eq!(counts(&processor), [0]);
    processor.nested().set(Gpa::new(0x6000), Some(Access::ALL));
    assert_eq!(processor.enter(), Ok(Exit::Halt));
    assert_eq!(counts(&processor), [1], "it is executed again");
}

#[test]
fn an_access_across_lines_is_two_references() {
    let (_, mut processor, _) = counting(&[0x4F2E, 0x412E], |program| {
        program.ops(&[Op::Store(0x603E, Width::Dword), Op::Load(0x6000, Width::Dword)]);
    });
    assert_eq!(processor.enter(), Ok(Exit::Halt));
    assert_eq!(counts(&processor), [2, 2]);
}

#[test]
fn an_overflow_while_an_interrupt_is_on_its_way_does_not_delay_it() {
    let (mut machine, mut processor, _) = counting(&[0xC0 | INT, 0xC0 | INT], |program| {
        program.ops(&[Op::Nop; 20]);
    });
    machine.set_pmi_skid(4);
    machine.route_pmi(PmiRoute::Guest);
    processor.write_pmu(PmuRegister::FullCounter(0), MAX);
    processor.write_pmu(PmuRegister::FullCounter(1), MAX - 2);
    assert_eq!(processor.enter(), Ok(Exit::ExternalInterrupt(Some(0x32))));
    assert_eq!(processor.rip(), 0x1005, "four after the first");
    assert_eq!(processor.read_pmu(PmuRegister::GlobalStatus), 3);
}

#[test]
#[should_panic(expected = "to 0x38f in the host faults")]
fn a_guests_global_ctrl_with_reserved_bits_is_refused_at_entry() {
    let (_, mut processor, _) = counting(&[], |_| {});
    processor.set_guest_global_control(1 << 8);
    let _ = processor.enter();
}

#[test]
#[should_panic(expected = "is passed, and does not exist")]
fn passing_a_register_that_does_not_exist_is_refused() {
    let config = Config::Intel(intel::Config { general: 4, lbr_depth: 0, ..intel::Config::default() });
    let (_, mut processor, _) = machine(config, |_| {});
    processor.pass_pmu(PmuRegister::Counter(4), true, true);
}
