//! The processor by itself: that it executes and delivers as the manuals say, and what it refuses.

mod beside;
mod counting;
mod direct;
mod harness;
mod oracle;
mod paravirt;
mod pmu;
mod run;
mod snapshot;
mod wild;

use super::*;
use crate::address::Gpa;
use crate::exit::{Event, Exit, Msr, Width};
use crate::hw::Host;
use crate::memory::GuestMemory;
use crate::memory::nested::Access;
use crate::registers::{Gpr, GuestState};
use crate::time::{Frequency, Tsc};
use crate::vcpu::Backend;
use std::vec::Vec;

const MEMORY: usize = 0x1_0000;
const STACK: u32 = 0x8000;
const HZ: Frequency = Frequency::from_hz(1_000_000_000);
const UNDEFINED: Event = Event::Exception { vector: 6, error_code: None };

/// A processor at the beginning of a program, with a stack, and a handler for each of `vectors` that is an IRET.
fn processor(vendor: Vendor, vectors: &[u8], body: impl FnOnce(&mut Program)) -> (Machine, Processor, GuestMemory) {
    let machine = Machine::new(1, HZ, 0);
    let mut program = Program::at(0x1000);
    program.ops(&[Op::Mov(Gpr::Rsp, STACK)]);
    body(&mut program);
    program.ops(&[Op::Hlt]).continue_at(0x4000);
    for &vector in vectors {
        program.handler(vector);
        if matches!(vector, 8 | 10..=14 | 17) {
            program.ops(&[Op::DropErrorCode]);
        }
        program.ops(&[Op::Iret]);
    }
    let (processor, memory) = Processor::new(&machine, vendor, 1, MEMORY, &program);
    (machine, processor, memory)
}

fn delivered(processor: &Processor) -> Vec<Event> {
    let events = |record| if let Record::Delivered(event, _) = record { Some(event) } else { None };
    processor.journal().take().into_iter().filter_map(events).collect()
}

#[test]
fn an_interrupt_pushes_a_frame_and_iret_takes_it() {
    let (_, mut processor, memory) = processor(Vendor::Intel, &[], |program| {
        program.ops(&[Op::Sti, Op::Nop, Op::Cpuid, Op::Hlt]).handler(0x40).ops(&[Op::Hypercall, Op::Iret]);
    });
    assert_eq!(processor.enter(), Ok(Exit::Cpuid { leaf: 0, subleaf: 0 }));
    processor.advance(&memory);
    let resume = processor.rip();
    processor.inject(Event::Interrupt(0x40));
    assert_eq!(processor.enter(), Ok(Exit::Hypercall));
    assert_eq!(processor.rflags(), 2, "an interrupt gate disables interrupts");
    let frame = [1u32, 2, 3].map(|slot| memory.read_number(Gpa::new((STACK - 4 * slot).into()), Width::Dword));
    assert_eq!(frame, [Ok(0x202), Ok(8), Ok(resume)]);
    processor.advance(&memory);
    assert_eq!(processor.enter(), Ok(Exit::Halt));
    assert_eq!((processor.rip(), processor.rflags(), processor.gpr(Gpr::Rsp)), (resume, 0x202, STACK.into()));
}

#[test]
fn a_window_opens_after_the_instruction_that_follows_sti() {
    for (ops, expected) in [
        (&[Op::Sti, Op::Nop][..], Exit::InterruptWindow),
        (&[Op::Sti, Op::Cli, Op::Nop], Exit::Halt),
        (&[Op::Sti], Exit::Halt),
        (&[Op::Sti, Op::MovSs], Exit::Halt),
        (&[Op::Sti, Op::MovSs, Op::Nop], Exit::InterruptWindow),
        (&[Op::Nop], Exit::Halt),
    ] {
        let (_, mut processor, _) = processor(Vendor::Amd, &[], |program| {
            program.ops(ops);
        });
        processor.watch_interrupt_window(true);
        assert_eq!(processor.enter(), Ok(expected), "{ops:?}");
        assert_eq!(processor.accepts_interrupt(), expected == Exit::InterruptWindow, "{ops:?}");
    }
}

#[test]
fn nmis_are_blocked_from_delivery_to_iret() {
    let (_, mut processor, memory) = processor(Vendor::Intel, &[], |program| {
        program.ops(&[Op::Cpuid, Op::Hlt]).handler(2).ops(&[Op::Hypercall, Op::Iret]);
    });
    let _ = processor.enter();
    processor.advance(&memory);
    processor.inject(Event::Nmi);
    processor.watch_nmi_window(true);
    assert_eq!(processor.enter(), Ok(Exit::Hypercall));
    assert!(!processor.accepts_nmi());
    processor.advance(&memory);
    assert_eq!(processor.enter(), Ok(Exit::NmiWindow));
    assert!(processor.accepts_nmi());
}

#[test]
fn what_an_exit_interrupts_is_handed_over_and_delivered_again() {
    for (vendor, op, handed_over) in [
        (Vendor::Intel, Op::Int(0x80), Some(Event::Software { vector: 0x80, length: 2, exception: false })),
        (Vendor::Intel, Op::Int3, Some(Event::Software { vector: 3, length: 1, exception: true })),
        (Vendor::Amd, Op::Int(0x80), None),
        (Vendor::Amd, Op::Ud2, Some(UNDEFINED)),
    ] {
        let (_, mut processor, _) = processor(vendor, &[3, 6, 0x80], |program| {
            program.ops(&[op]);
        });
        let stack = Gpa::new(u64::from(STACK) - 4);
        processor.nested().set(stack, None);
        processor.flush_nested();
        let Ok(Exit::NestedPageFault(fault)) = processor.enter() else { panic!("the stack is not mapped") };
        assert_eq!((fault.gpa, fault.write, fault.present), (stack, true, false));
        assert_eq!(fault.gva.is_some(), vendor == Vendor::Intel);
        assert_eq!(processor.rip(), 0x1005, "the guest stands at the instruction");
        processor.nested().set(stack, Some(Access::ALL));
        let event = processor.take_interrupted();
        assert_eq!(event, handed_over);
        if let Some(event) = event {
            processor.inject(event);
        }
        if op == Op::Ud2 {
            processor.stop_after(8);
            assert!(matches!(processor.enter(), Ok(Exit::Unhandled(raw)) if raw.code == SPENT));
            assert!(delivered(&processor).len() > 1, "a fault comes again and again");
        } else {
            assert_eq!(processor.enter(), Ok(Exit::Halt));
            assert_eq!(delivered(&processor).len(), 1);
        }
    }
}

#[test]
fn a_fault_without_a_handler_becomes_a_double_fault_and_then_shutdown() {
    for (vectors, expected, exit) in [
        (&[13u8][..], &[Event::Exception { vector: 13, error_code: Some(6 << 3 | 3) }][..], None),
        (&[8], &[Event::Exception { vector: 8, error_code: Some(0) }], None),
        (&[], &[], Some(Exit::Shutdown)),
    ] {
        let (_, mut processor, _) = processor(Vendor::Amd, vectors, |program| {
            program.ops(&[Op::Ud2]);
        });
        processor.stop_after(3);
        let left = processor.enter();
        assert!(exit.is_none_or(|exit| left == Ok(exit)), "{left:?}");
        assert_eq!(delivered(&processor), expected);
    }
}

#[test]
fn single_steps_trap_after_the_next_instruction_and_not_in_a_shadow() {
    let trap = Exit::Exception { vector: 1, error_code: None };
    let (_, mut processor, memory) = processor(Vendor::Intel, &[1], |program| {
        program.ops(&[Op::Push(0x102), Op::PopFlags, Op::Nop, Op::MovSs, Op::Nop, Op::Cpuid]);
    });
    let first = 0x1005 + 6;
    for end in [first + 1, first + 4] {
        assert_eq!(processor.enter(), Ok(trap));
        assert_eq!(processor.rip(), end);
        processor.inject(Event::Exception { vector: 1, error_code: None });
    }
    assert_eq!(processor.enter(), Ok(Exit::Cpuid { leaf: 0, subleaf: 0 }));
    processor.advance(&memory);
    assert_eq!(processor.injected(), Some(Event::Exception { vector: 1, error_code: None }));
}

#[test]
fn time_passes_by_instructions_and_interrupts_come_at_their_moments() {
    for (vendor, vector) in [(Vendor::Intel, Some(0x31)), (Vendor::Amd, None)] {
        let (mut machine, mut processor, _) = processor(vendor, &[], |program| {
            program.ops(&[Op::Nop; 20]);
        });
        machine.arm(Some(Tsc(10)));
        assert_eq!(processor.enter(), Ok(Exit::ExternalInterrupt(vector)));
        assert_eq!((machine.now(), processor.executed()), (Tsc(10), 10));
        machine.serve_interrupts(vector);
        let own = processor.arm_timer(machine.now(), Some(Tsc(12)));
        assert_eq!(own, vendor == Vendor::Intel);
        let next = processor.enter();
        assert_eq!(next, Ok(if own { Exit::TimerExpired } else { Exit::Halt }));
    }
}

#[test]
fn passed_registers_do_not_exit() {
    let (_, mut processor, memory) = processor(Vendor::Intel, &[], |program| {
        program.wrmsr(0x174, 5).rdmsr(0x174).out(0x80, Width::Byte, 1).ops(&[Op::In(Width::Dword)]).out(
            0x81,
            Width::Word,
            1,
        );
    });
    processor.pass_msr(Msr(0x174).guest_ownable().expect("IA32_SYSENTER_CS"), true, false);
    processor.pass_ports(0x80..=0x83);
    assert_eq!(processor.enter(), Ok(Exit::Wrmsr(Msr(0x174), 5)));
    processor.pass_ports(0..=0x7F);
    processor.advance(&memory);
    assert_eq!(processor.journal().take(), [Record::Wrote(0x174, 5, Tsc(5))]);
    assert_eq!(processor.enter(), Ok(Exit::Halt));
}

/// Enters a processor that stands where `ops` have taken it, with `act` done before.
fn act(ops: &[Op], act: impl FnOnce(&mut Machine, &mut Processor, &GuestMemory)) {
    let (mut machine, mut processor, memory) = processor(Vendor::Intel, &[2, 0x40], |program| {
        program.ops(ops).ops(&[Op::Cpuid, Op::Cpuid]);
    });
    let _ = processor.enter();
    act(&mut machine, &mut processor, &memory);
    let _ = processor.enter();
}

macro_rules! refuses {
    ($($name:ident: $words:literal, $ops:expr, $act:expr;)*) => {$(
        #[test]
        #[should_panic(expected = $words)]
        fn $name() {
            act(&$ops, $act);
        }
    )*};
}

refuses! {
    an_interrupt_while_interrupts_are_disabled_is_refused: "injected with interrupts disabled", [Op::Nop],
        |_, processor, _| processor.inject(Event::Interrupt(0x40));
    an_interrupt_in_the_shadow_of_sti_is_refused: "injected in a shadow", [Op::Sti],
        |_, processor, _| processor.inject(Event::Interrupt(0x40));
    an_interrupt_in_the_shadow_of_mov_ss_is_refused: "injected in a shadow", [Op::Sti, Op::MovSs],
        |_, processor, _| processor.inject(Event::Interrupt(0x40));
    an_nmi_in_a_shadow_is_refused: "NMI injected in a shadow", [Op::MovSs],
        |_, processor, _| processor.inject(Event::Nmi);
    an_nmi_in_an_nmi_handler_is_refused: "while NMIs are blocked", [Op::Nop],
        |_, processor, _| {
            processor.nmi_blocked = true;
            processor.inject(Event::Nmi);
        };
    an_exception_without_its_error_code_is_refused: "the error code of exception 13", [Op::Nop],
        |_, processor, _| processor.inject(Event::Exception { vector: 13, error_code: None });
    an_error_code_where_there_is_none_is_refused: "the error code of exception 6", [Op::Nop],
        |_, processor, _| processor.inject(Event::Exception { vector: 6, error_code: Some(0) });
    vector_2_as_an_exception_is_refused: "is not an exception", [Op::Nop],
        |_, processor, _| processor.inject(Event::Exception { vector: 2, error_code: None });
    an_event_lost_to_another_is_refused: "is lost to", [Op::Nop],
        |_, processor, _| {
            processor.inject(Event::Nmi);
            processor.inject(Event::GENERAL_PROTECTION);
        };
    advancing_twice_is_refused: "advanced over an exit", [Op::Nop],
        |_, processor, memory| {
            processor.advance(memory);
            processor.advance(memory);
        };
    an_end_that_is_not_the_instructions_is_refused: "ends at", [Op::Nop],
        |_, processor, _| processor.advance_to(processor.rip() + 3);
    a_forgotten_delivery_is_refused: "was being delivered, and was forgotten", [Op::Nop],
        |_, processor, _| processor.interrupted = Some(Event::Nmi);
    a_translation_that_was_not_flushed_is_refused: "changed and not flushed", [Op::Nop],
        |_, processor, memory| {
            processor.advance(memory);
            processor.nested().set(Gpa::new(0x1000), Some(Access::READ));
        };
    an_interrupt_acknowledged_and_not_served_is_refused: "never served", [Op::Nop],
        |machine, processor, _| {
            machine.arm(Some(machine.now()));
            let left = processor.enter();
            assert_eq!(left, Ok(Exit::ExternalInterrupt(Some(0x31))));
        };
    a_reserved_bit_of_rflags_is_refused: "reserved bits", [Op::Nop],
        |_, processor, _| processor.set_rflags(1 << 15 | 2);
    paging_without_protection_is_refused: "PG without PE", [Op::Nop],
        |_, processor, _| processor.set_control(crate::registers::ControlRegister::Cr0, 1 << 31);
    waiting_for_nothing_is_refused: "never come", [Op::Nop],
        |machine, _, _| machine.wait();
}

#[test]
fn the_same_seed_makes_the_same_run() {
    let run = |seed| {
        let mut machine = Machine::new(seed, HZ, 50);
        let mut program = Program::at(0x1000);
        program.ops(&[Op::Mov(Gpr::Rsp, STACK)]);
        let again = program.here();
        program.ops(&[Op::Int(0x80), Op::Nop, Op::Jump(again)]).handler(0x80).ops(&[Op::Iret]);
        let (mut processor, _memory) = Processor::new(&machine, Vendor::Amd, seed, MEMORY, &program);
        processor.unmap_stack_once_in(4);
        processor.stop_after(500);
        let mut exits = Vec::new();
        loop {
            let exit = processor.enter().expect("entered");
            exits.push((exit, machine.now()));
            match exit {
                Exit::NestedPageFault(fault) => processor.nested().set(fault.gpa, Some(Access::ALL)),
                Exit::ExternalInterrupt(vector) => machine.serve_interrupts(vector),
                _ => return (exits, processor.journal().take()),
            }
        }
    };
    assert_eq!(run(7), run(7));
    assert_ne!(run(7).0, run(8).0);
}
