//! The run loop over the simulated processor: events come once, in order, and never where the guest cannot take them.

use super::harness::*;
use super::oracle::Oracle;
use crate::exit::{Event, Exit, Resolution, StopReason, Width};
use crate::registers::{Gpr, GuestState};
use crate::sim::{Op, Program, Random, Record};
use crate::vcpu::Appliance;
use crate::vcpu::events::DOUBLE_FAULT;
use std::vec;
use std::vec::Vec;

#[test]
fn an_interrupt_to_self_is_taken_before_the_next_instruction_that_may() {
    for vendor in VENDORS {
        let mut program = Mode::X2Apic.prologue();
        program.ops(&[Op::Sti]).wrmsr(0x83F, 0x41).ops(&[Op::Cli]).wrmsr(0x83F, 0x42).ops(&[Op::Sti, Op::Ud2]);
        Mode::X2Apic.epilogue(&mut program);
        program.handler(6).ops(&[Op::Hlt]);
        let ran = run(&program, Setting::new(vendor));
        let mut oracle = Oracle::default();
        oracle.follow(&ran.journal);
        assert_eq!(oracle.interrupts, 1, "the instruction after STI comes first, and never ends");
        assert_eq!(ran.reason, StopReason::Halted);
    }
}

#[test]
fn halted_guests_wake_at_the_timers_deadline() {
    for vendor in VENDORS {
        let mut program = Mode::X2Apic.prologue();
        arm(&mut program, 5_000_000);
        program.ops(&[Op::Sti, Op::Hlt]).out(DEBUG_EXIT, Width::Byte, 7);
        Mode::X2Apic.handlers(&mut program);
        let ran = run(&program, Setting::new(vendor));
        assert_eq!(ran.reason, StopReason::DebugExit(7));
        assert!((5_000_000..5_000_100).contains(&ran.now.0), "woke at {:?}", ran.now);
    }
}

#[test]
fn deadlines_are_those_of_the_guests_own_clock() {
    const SET: u64 = 1 << 40;
    for (deadline, woke) in [(5, 0..200), (SET, 0..200), (SET + 50_000, 50_000..50_200)] {
        let mut program = Mode::X2Apic.prologue();
        program.wrmsr(0x10, SET).wrmsr(0x6E0, deadline).ops(&[Op::Sti, Op::Hlt]).out(DEBUG_EXIT, Width::Byte, 7);
        Mode::X2Apic.handlers(&mut program);
        let ran = run(&program, Setting { budget: 1000, ..Setting::new(VENDORS[0]) });
        assert_eq!(ran.reason, StopReason::DebugExit(7));
        assert!(woke.contains(&ran.now.0), "woke at {:?} for {deadline:#x}", ran.now);
    }
}

#[test]
fn a_guest_that_halts_for_good_ends() {
    let mut program = Mode::X2Apic.prologue();
    program.ops(&[Op::Cli, Op::Hlt]);
    for vendor in VENDORS {
        assert_eq!(run(&program, Setting::new(vendor)).reason, StopReason::Halted);
    }
}

#[test]
fn a_delivery_that_met_a_missing_page_is_made_again() {
    for vendor in VENDORS {
        let mut program = Mode::X2Apic.prologue();
        program.ops(&[Op::Sti]);
        for vector in PLAIN {
            program.wrmsr(0x83F, vector.into()).wrmsr(0x830, 0x4_0400).ops(&[Op::Int(0x80), Op::Int3]);
        }
        Mode::X2Apic.epilogue(&mut program);
        let ran = run(&program, Setting { unmap_stack_once_in: 2, ..Setting::new(vendor) });
        assert_eq!(ran.reason, StopReason::DebugExit(0));
        let faults = ran.exits.iter().filter(|exit| matches!(exit, Exit::NestedPageFault(_))).count();
        let mut oracle = Oracle::default();
        oracle.follow(&ran.journal);
        oracle.finish();
        assert_eq!((oracle.interrupts, oracle.nmis), (PLAIN.len() + 2, PLAIN.len()));
        assert!(faults >= 2 * PLAIN.len(), "{faults} deliveries were interrupted");
    }
}

#[test]
fn an_nmi_does_not_wake_the_handler_of_another() {
    for vendor in VENDORS {
        let mut program = Mode::X2Apic.prologue();
        Mode::X2Apic.nmi(&mut program);
        Mode::X2Apic.epilogue(&mut program);
        program.handler(2);
        Mode::X2Apic.nmi(&mut program);
        program.ops(&[Op::Hlt]).out(DEBUG_EXIT, Width::Byte, 9);
        assert_eq!(run(&program, Setting::new(vendor)).reason, StopReason::Halted);
    }
}

#[test]
fn an_interrupt_that_a_fault_overtook_wakes_the_fault_s_handler_from_hlt() {
    for vendor in VENDORS {
        let mut program = Mode::X2Apic.prologue();
        program.ops(&[Op::Sti]).wrmsr(0x83F, 0x41).ops(&[Op::Nop]);
        Mode::X2Apic.epilogue(&mut program);
        program.handler(13).ops(&[Op::Sti, Op::Hlt]).out(DEBUG_EXIT, Width::Byte, 9);
        let ran = run(&program, Setting { faults_at_stack: 1, budget: 1000, ..Setting::new(vendor) });
        assert_eq!(ran.reason, StopReason::DebugExit(9));
        assert_eq!(delivered(&ran), [Event::GENERAL_PROTECTION, Event::Interrupt(0x41)]);
    }
}

#[test]
fn an_interrupt_that_a_fault_overtook_needs_no_exit_to_be_thought_of() {
    for vendor in VENDORS {
        let mut program = Mode::X2Apic.prologue();
        program.ops(&[Op::Sti]).wrmsr(0x83F, 0x41).ops(&[Op::Nop]);
        Mode::X2Apic.epilogue(&mut program);
        program.handler(13).ops(&[Op::Sti, Op::Nop, Op::Nop]).out(DEBUG_EXIT, Width::Byte, 9);
        let ran = run(&program, Setting { faults_at_stack: 1, budget: 1000, ..Setting::new(vendor) });
        assert_eq!(ran.reason, StopReason::DebugExit(9));
        assert_eq!(delivered(&ran), [Event::GENERAL_PROTECTION, Event::Interrupt(0x41)]);
    }
}

#[test]
fn an_nmi_does_not_wait_for_an_interrupt_that_a_fault_overtook() {
    for vendor in VENDORS {
        let mut program = Mode::X2Apic.prologue();
        program.ops(&[Op::Sti]).wrmsr(0x83F, 0x41).ops(&[Op::Nop]);
        Mode::X2Apic.epilogue(&mut program);
        program.handler(13);
        Mode::X2Apic.nmi(&mut program);
        program.ops(&[Op::Nop; 5]).out(DEBUG_EXIT, Width::Byte, 9);
        let ran = run(&program, Setting { faults_at_stack: 1, budget: 1000, ..Setting::new(vendor) });
        assert_eq!(ran.reason, StopReason::DebugExit(9));
        assert_eq!(delivered(&ran), [Event::GENERAL_PROTECTION, Event::Nmi]);
    }
}

/// SDM Vol. 2A "CPUID", leaf 0BH: ECX\[7:0\] gives the subleaf back.
#[test]
fn cpuid_is_answered_by_leaf_and_subleaf() {
    for (vendor, subleaf) in VENDORS.into_iter().flat_map(|vendor| [(vendor, 0), (vendor, 1)]) {
        let mut program = Mode::X2Apic.begin();
        program.cpuid(0xB, subleaf).ops(&[Op::PushAll, Op::Load(STACK - 8, Width::Byte)]);
        program.ops(&[Op::Mov(Gpr::Rdx, DEBUG_EXIT.into()), Op::Out(Width::Byte)]);
        assert_eq!(run(&program, Setting::new(vendor)).reason, StopReason::DebugExit(subleaf));
    }
}

/// Loses RCX of a guest that executes CPUID.
struct Careless;
impl Appliance for Careless {
    fn on_exit(&mut self, exit: &Exit, guest: &mut impl GuestState) -> Resolution {
        if let Exit::Cpuid { .. } = exit {
            guest.set_gpr(Gpr::Rcx, 7);
        }
        Resolution::NotMine
    }
}

#[test]
fn cpuid_is_answered_as_the_exit_says() {
    for registers in super::pmu::both() {
        let mut program = Mode::X2Apic.begin();
        program.cpuid(0xB, 1).ops(&[Op::PushAll, Op::Load(STACK - 8, Width::Byte)]);
        program.ops(&[Op::Mov(Gpr::Rdx, DEBUG_EXIT.into()), Op::Out(Width::Byte)]);
        assert_eq!(super::pmu::run_on(|_| Careless, (), registers, 0, &program).value, 1);
    }
}

/// SDM Vol. 3A table 6-5: the appliance's #GP meets the delivery of the guest's.
#[test]
fn faults_that_meet_in_a_delivery_become_a_double_fault_and_then_shutdown() {
    for vendor in VENDORS {
        let mut program = Mode::X2Apic.prologue();
        risky(&mut program, &[Op::Mov(Gpr::Rcx, 0x7FFF), Op::Rdmsr]);
        Mode::X2Apic.epilogue(&mut program);
        program.handler(8).out(DEBUG_EXIT, Width::Byte, 9);
        let ran = |faults_at_stack| run(&program, Setting { faults_at_stack, budget: 1000, ..Setting::new(vendor) });
        let double = ran(1);
        assert_eq!(double.reason, StopReason::DebugExit(9));
        assert_eq!(delivered(&double), [DOUBLE_FAULT]);
        let triple = ran(2);
        assert_eq!((triple.reason, delivered(&triple)), (StopReason::Shutdown, vec![]));
    }
}

fn delivered(ran: &Ran) -> Vec<Event> {
    let event = |record: &Record| match record {
        Record::Delivered(event, _) => Some(*event),
        _ => None,
    };
    ran.journal.iter().filter_map(event).collect()
}

/// A guest of random blocks that uses only what the oracle knows.
fn orderly(mode: Mode, random: &mut Random, blocks: usize) -> Program {
    let mut program = mode.prologue();
    program.ops(&[Op::Sti]);
    for _ in 0..blocks {
        let all: Vec<u8> = PLAIN.into_iter().chain(NESTING).collect();
        match random.below(20) {
            0..5 => mode.interrupt(&mut program, random.pick(&all)),
            5 => mode.nmi(&mut program),
            6 | 7 => arm(&mut program, random.below(200) as u32),
            8 => sleep(&mut program, random.below(300) as u32),
            9 => drop(program.ops(&[Op::Cli])),
            10 | 11 => drop(program.ops(&[Op::Sti])),
            12 => drop(program.ops(&[Op::MovSs])),
            13 => drop(program.ops(&[Op::Mov(Gpr::Rax, random.below(16) as u32), Op::WriteCr8])),
            14 => drop(program.ops(&[random.pick(&[Op::Int(0x80), Op::Int3, Op::Hypercall, Op::Wbinvd, Op::Pause])])),
            15 => drop(program.flags(random.pick(&[2, 0x202, 0x302, 0x102]))),
            16 => drop(program.cpuid(random.below(0x20) as u32, random.below(4) as u32)),
            17 => {
                let ops = [
                    Op::Ud2,
                    Op::Rdmsr,
                    Op::Xsetbv,
                    Op::In(Width::Byte),
                    Op::Store(0xFEC0_0000, Width::Dword),
                    Op::Load(0xFED0_0000 + random.below(4096) as u32, Width::Byte),
                ];
                program.ops(&[Op::Mov(Gpr::Rcx, random.below(0x1000) as u32), Op::Mov(Gpr::Rdx, 0x80)]);
                risky(&mut program, &[random.pick(&ops)]);
            }
            _ => drop(program.ops(&[Op::Nop, Op::ReadCr8])),
        }
    }
    mode.epilogue(&mut program);
    program
}

#[test]
fn events_come_once_in_order_and_never_where_the_guest_cannot_take_them() {
    let (mut interrupts, mut nmis, mut interrupted) = (0, 0, 0);
    let seeds = if cfg!(debug_assertions) { 36 } else { 720 };
    for seed in 0..seeds {
        let mode = [Mode::X2Apic, Mode::XApic][seed as usize / 2 % 2];
        let program = orderly(mode, &mut Random::new(seed), 400);
        let setting = Setting {
            seed,
            stray_every: [0, 40, 200][seed as usize % 3],
            unmap_stack_once_in: [0, 3, 20][seed as usize / 4 % 3],
            ..Setting::new(VENDORS[seed as usize % 2])
        };
        let ran = run(&program, setting);
        assert_eq!(ran.reason, StopReason::DebugExit(0), "seed {seed}");
        let mut oracle = Oracle::default();
        oracle.follow(&ran.journal);
        oracle.finish();
        interrupts += oracle.interrupts;
        nmis += oracle.nmis;
        interrupted += ran.exits.iter().filter(|exit| matches!(exit, Exit::NestedPageFault(_))).count();
    }
    assert!(interrupts > 50 * seeds as usize && nmis > 5 * seeds as usize, "{interrupts} interrupts, {nmis} NMIs");
    assert!(interrupted > 10 * seeds as usize, "{interrupted} deliveries and accesses met a missing page");
}

#[test]
fn a_stack_where_a_device_is_ends_the_guest_and_not_the_host() {
    for vendor in VENDORS {
        let mut program = Mode::X2Apic.prologue();
        program.ops(&[Op::Mov(Gpr::Rsp, 0xFED0_0800)]);
        arm(&mut program, 12);
        program.ops(&[Op::Sti]).ops(&[Op::Store(0xFED0_0000, Width::Dword); 20]);
        Mode::X2Apic.epilogue(&mut program);
        let ran = run(&program, Setting::new(vendor));
        assert!(matches!(ran.reason, StopReason::Unhandled(_)), "{:?}", ran.reason);
        assert!(!ran.journal.iter().any(|record| matches!(record, Record::Delivered(..))));
    }
}

#[test]
fn the_pit_interrupts_through_the_pics_at_its_rate() {
    const TICKS: u64 = 10;
    /// Of 1193182 a second.
    const COUNT: u32 = 11932;
    for vendor in VENDORS {
        let mut program = Program::at(0x1000);
        program.ops(&[Op::Mov(Gpr::Rsp, STACK)]);
        for (port, value) in [(0x20, 0x11), (0x21, 0x20), (0x21, 4), (0x21, 1), (0x21, 0xFE), (0x43, 0x34)] {
            program.out(port, Width::Byte, value);
        }
        program.out(0x40, Width::Byte, COUNT & 0xFF).out(0x40, Width::Byte, COUNT >> 8);
        for _ in 0..TICKS {
            program.ops(&[Op::Sti, Op::Hlt, Op::Cli]);
        }
        program.out(DEBUG_EXIT, Width::Byte, 0).handler(0x20).ops(&[Op::PushAll]).out(0x20, Width::Byte, 0x20);
        program.ops(&[Op::PopAll, Op::Iret]);
        let ran = run(&program, Setting { stray_every: 100_000, ..Setting::new(vendor) });
        assert_eq!(ran.reason, StopReason::DebugExit(0));
        let times = ran.journal.iter().filter_map(|record| match record {
            Record::Delivered(Event::Interrupt(0x20), moment) => Some(moment.0),
            _ => None,
        });
        let times = times.collect::<Vec<_>>();
        assert_eq!(times.len() as u64, TICKS);
        let period = u64::from(COUNT) * 1_000_000_000 / 1_193_182;
        for (tick, time) in (1..).zip(times) {
            assert!((tick * period..tick * period + 2000).contains(&time), "tick {tick} at {time}");
        }
    }
}

#[test]
fn a_device_interrupts_through_the_ioapic() {
    const VECTOR: u8 = 0x41;
    for vendor in VENDORS {
        let mut program = Mode::XApic.prologue();
        // Pin 4, the UART: edge-triggered, fixed, to APIC ID 0. Then its transmitter asks for an interrupt.
        for (register, value) in [(0x19, 0), (0x18, VECTOR.into())] {
            program.store(0xFEC0_0000, Width::Dword, register).store(0xFEC0_0010, Width::Dword, value);
        }
        program.ops(&[Op::Sti]).out(0x3FC, Width::Byte, 8).out(0x3F9, Width::Byte, 2).ops(&[Op::Nop; 5]);
        program.out(DEBUG_EXIT, Width::Byte, 0);
        Mode::XApic.handlers(&mut program);
        let ran = run(&program, Setting::new(vendor));
        assert_eq!(ran.reason, StopReason::DebugExit(0));
        let taken = |record: &&Record| matches!(record, Record::Delivered(Event::Interrupt(VECTOR), _));
        assert_eq!(ran.journal.iter().filter(taken).count(), 1);
    }
}
