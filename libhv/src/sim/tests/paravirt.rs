//! Paravirtual events under the run loop, on the simulated processor: guests without a PMU that have hardware events
//! counted for them.

use super::harness::{DEBUG_EXIT, LVTPC, Mode, STACK};
use super::pmu::{PMI, Registers, both, run};
use super::*;
use crate::pmu::host::{HostCounters, HostEvent};
use crate::pmu::{Emulated, Paravirtual, Passthrough, PmuPolicy};

mod hostile;

const MEMORY: usize = super::harness::MEMORY;
const OPEN: u32 = 0x9_0000;
const RESULTS: u32 = 0x9_1000;
const USER_AND_KERNEL: u64 = 0b11 << 16;
pub(super) const INSTRUCTIONS: u64 = 0xC0 | USER_AND_KERNEL;
const BRANCHES: u64 = 0xC4 | USER_AND_KERNEL;

/// Operations and answers, by their numbers in the specification.
pub(super) const ENABLE: u32 = 3;
pub(super) const DISABLE: u32 = 4;
const READ: u32 = 5;
const CLOSE: u32 = 2;
const UNSUPPORTED_EVENT: u32 = 10;
const TOO_MANY_EVENTS: u32 = 11;
const OWN_COUNTERS: u32 = 14;

/// A call is this many instructions of the guest, the call itself among them.
pub(super) const CALL: u32 = 5;

pub(super) fn result(id: u32) -> u32 {
    RESULTS + 32 * id
}

pub(super) fn call(program: &mut Program, operation: u32, id: u32, address: u32) {
    use Gpr::{Rax, Rbx, Rcx, Rdx};
    let registers = [(Rax, 0x4C48_0000 + operation), (Rbx, id), (Rcx, address), (Rdx, 0)];
    program.ops(&registers.map(|(register, value)| Op::Mov(register, value))).ops(&[Op::Hypercall]);
}

/// Opens a hardware event; with a period its overflows interrupt.
pub(super) fn open(program: &mut Program, id: u32, config: u64, period: u32) {
    let words =
        [1, 64, u32::from(period != 0), 0, 2, 0, config as u32, (config >> 32) as u32, period, 0, result(id), 0, id];
    for (address, word) in (OPEN..).step_by(4).zip(words.into_iter().chain([0; 3])) {
        program.store(address, Width::Dword, word);
    }
    for (address, word) in (result(id)..).step_by(4).zip([1, 32, 0, 0]) {
        program.store(address, Width::Dword, word);
    }
    call(program, 1, 0, OPEN);
}

/// Adds the handler of an overflow: it unmasks the entry.
fn handle_overflow(program: &mut Program) {
    program.handler(PMI).ops(&[Op::PushAll]);
    Mode::X2Apic.write(program, LVTPC, PMI.into());
    Mode::X2Apic.end(program);
    program.ops(&[Op::PopAll, Op::Iret]);
}

pub(super) fn begin() -> Program {
    let mut program = Program::at(0x1000);
    program.ops(&[Op::Mov(Gpr::Rsp, STACK)]);
    program
}

/// Ends a program with what EAX holds.
pub(super) fn end(program: &mut Program) {
    program.ops(&[Op::Mov(Gpr::Rdx, DEBUG_EXIT.into()), Op::Out(Width::Dword), Op::Hlt]);
}

/// Rounds of seven instructions with a branch and an exit in each, after one instruction.
pub(super) fn rounds(program: &mut Program, times: u32) {
    program.repeat(times, &[Op::Nop, Op::PushAll, Op::Mov(Gpr::Rax, 0), Op::Cpuid, Op::PopAll]);
}

/// Returns what an event counted of `body`, from after ENABLE to before DISABLE, by its result block.
fn counted<P: PmuPolicy>(policy: P, registers: Registers, config: u64, body: impl FnOnce(&mut Program)) -> u32 {
    let mut program = begin();
    open(&mut program, 3, config, 0);
    call(&mut program, ENABLE, 3, 0);
    body(&mut program);
    call(&mut program, DISABLE, 3, 0);
    // What happens from here on is none of the event's.
    rounds(&mut program, 3);
    program.ops(&[Op::Load(result(3) + 0x10, Width::Dword)]);
    end(&mut program);
    run(policy, registers, 0, &program).value
}

/// Requirements B1 and A26: exactly what the guest executed between the calls, none of the host's, and instructions that
/// the hypervisor executes once; the instructions before DISABLE's call are the guest's own.
#[test]
fn a_hardware_event_counts_the_instructions_between_the_calls_and_no_other() {
    for registers in both() {
        for times in [1, 2, 1000] {
            let policy = || Paravirtual::on(());
            let body = |program: &mut Program| rounds(program, times);
            assert_eq!(counted(policy(), registers, INSTRUCTIONS, body), 1 + 7 * times + CALL - 1);
            assert_eq!(counted(policy(), registers, BRANCHES, body), times, "on {:?}", registers.vendor);
            assert_eq!(counted(policy(), registers, 0xC0 | 1 << 16, body), 0, "nothing of it at CPL 3");
            assert_eq!(counted(policy(), registers, 0xC0 | 1 << 17, body), 1 + 7 * times + CALL - 1);
            assert_eq!(counted(policy(), registers, 0xC0, body), 0, "at no privilege level");
            assert!(counted(policy(), registers, 0x3C | USER_AND_KERNEL, body) >= 6 * times, "cycles");
            let reads = |program: &mut Program| (0..times.min(9)).for_each(|_| call(program, READ, 3, 0));
            let calls = CALL * times.min(9) + CALL - 1;
            assert_eq!(counted(policy(), registers, INSTRUCTIONS, reads), calls, "READ counts as all instructions");
            let again = |program: &mut Program| {
                rounds(program, 1);
                call(program, ENABLE, 3, 0);
            };
            assert_eq!(counted(policy(), registers, INSTRUCTIONS, again), 8 + CALL + CALL - 1, "nothing changes");
        }
    }
}

/// Requirement B1: two events that pause at different times, and a guest that ends and runs again between.
#[test]
fn events_count_apart_and_across_the_end_of_a_run() {
    for registers in both() {
        for stops in [Op::Nop, Op::Hlt] {
            let mut program = begin();
            open(&mut program, 0, INSTRUCTIONS, 0);
            open(&mut program, 9, INSTRUCTIONS, 0);
            call(&mut program, ENABLE, 0, 0);
            rounds(&mut program, 10);
            call(&mut program, ENABLE, 9, 0);
            rounds(&mut program, 10);
            program.ops(&[stops]);
            call(&mut program, DISABLE, 0, 0);
            rounds(&mut program, 100);
            call(&mut program, ENABLE, 0, 0);
            program.ops(&[stops, Op::Nop]);
            call(&mut program, DISABLE, 0, 0);
            call(&mut program, DISABLE, 9, 0);
            program.ops(&[Op::Mov(Gpr::Rax, 0)]);
            end(&mut program);
            let ran = run(Paravirtual::on(()), registers, 0, &program);
            let count = |id: u32| ran.memory.read_number(Gpa::new((result(id) + 0x10).into()), Width::Qword);
            let first = 71 + CALL + 71 + 1 + CALL - 1 + 2 + CALL - 1;
            assert_eq!(count(0), Ok(first.into()), "on {:?}", registers.vendor);
            let second = 71 + 1 + CALL + 701 + CALL + 2 + CALL + CALL - 1;
            assert_eq!(count(9), Ok(second.into()), "on {:?}", registers.vendor);
            let left = ran.machine.pmu(|pmu| [pmu.host_read(registers.selector), pmu.host_read(registers.counter)]);
            assert_eq!(left, [0, 0], "nothing of it stays in the processor");
        }
    }
}

/// Requirements B3 and B4: each overflow is counted and interrupts, whoever executed the last instruction, and however
/// late the processor tells.
#[test]
fn an_overflow_interrupts_and_none_is_lost() {
    const PERIOD: u32 = 700;
    for registers in both() {
        // Where it halts for good its run ends, and it is run again.
        for (skid, stops) in [(0, Op::Nop), (3, Op::Nop), (0, Op::Hlt)] {
            let mut program = Mode::X2Apic.begin();
            Mode::X2Apic.write(&mut program, LVTPC, PMI.into());
            open(&mut program, 5, INSTRUCTIONS, PERIOD);
            call(&mut program, ENABLE, 5, 0);
            program.ops(&[stops, Op::Sti]);
            rounds(&mut program, 500);
            program.repeat(5000, &[Op::Nop]);
            program.ops(&[Op::Cli]);
            call(&mut program, DISABLE, 5, 0);
            program.ops(&[Op::Load(result(5) + 0x18, Width::Dword)]);
            end(&mut program);
            handle_overflow(&mut program);
            let ran = run(Paravirtual::on(()), registers, skid, &program);
            let count =
                ran.memory.read_number(Gpa::new((result(5) + 0x10).into()), Width::Dword).expect("memory") as u32;
            assert_eq!(ran.value, count / PERIOD, "on {:?}, skid {skid}", registers.vendor);
            assert!(ran.value >= 26, "{} overflows", ran.value);
            let came = ran.interrupts(Event::Interrupt(PMI)) as u32;
            assert!(came == ran.value || came + 1 == ran.value, "{came} interrupts of {}", ran.value);
            // The handler counts too: 11 instructions.
            assert_eq!(count, 1 + 1 + 1 + 3500 + 1 + 15_000 + 1 + CALL - 1 + came * 11);
        }
    }
}

/// Requirement B2: as many as CPUID says, no event by turns, and no more.
#[test]
fn counters_that_are_all_open_are_too_many_events() {
    for registers in both() {
        let mut program = begin();
        program.cpuid(0x4000_0011, 0).ops(&[Op::Mov(Gpr::Rax, 0)]);
        let counters = if registers.vendor == Vendor::Intel { 8 } else { 6 };
        (0..=counters).for_each(|id| open(&mut program, id, INSTRUCTIONS, 0));
        end(&mut program);
        assert_eq!(run(Paravirtual::on(()), registers, 0, &program).value, TOO_MANY_EVENTS);
        let mut program = begin();
        (0..=counters).for_each(|id| open(&mut program, id, INSTRUCTIONS, 0));
        call(&mut program, CLOSE, 2, 0);
        open(&mut program, counters, INSTRUCTIONS, 0);
        end(&mut program);
        assert_eq!(run(Paravirtual::on(()), registers, 0, &program).value, 0);
    }
}

/// Requirement B2: who has the counters has them alone: a guest its own, a host its own; and what no counter counts is told apart.
#[test]
fn a_hardware_event_that_is_not_counted_says_why() {
    fn answer<P: PmuPolicy>(policy: P, registers: Registers, config: u64) -> u32 {
        let mut program = begin();
        open(&mut program, 0, config, 0);
        end(&mut program);
        run(policy, registers, 0, &program).value
    }
    for registers in both() {
        assert_eq!(answer(Paravirtual::on(Passthrough::new()), registers, INSTRUCTIONS), OWN_COUNTERS);
        assert_eq!(answer(Paravirtual::on(Emulated::new()), registers, INSTRUCTIONS), OWN_COUNTERS);
        let host = || HostCounters::new().count(HostEvent::Cycles);
        assert_eq!(answer(Paravirtual::on(().beside(host())), registers, INSTRUCTIONS), UNSUPPORTED_EVENT);
        assert_eq!(answer(Paravirtual::on(()), registers, 0x9999), UNSUPPORTED_EVENT);
        let cache = if registers.vendor == Vendor::Intel { 0 } else { UNSUPPORTED_EVENT };
        assert_eq!(answer(Paravirtual::on(()), registers, 0x412E | USER_AND_KERNEL), cache);
        assert_eq!(answer(Paravirtual::on(()), registers, INSTRUCTIONS), 0);
    }
}

pub(super) const PAGE_CALL: u32 = 6;
const PAGE_OFF: u32 = 7;
const RESET: u32 = 8;
pub(super) const PAGE: u32 = 0x9_2000;

fn word(ran: &super::pmu::Ran, address: u32) -> u64 {
    ran.memory.read_number(Gpa::new(address.into()), Width::Qword).expect("memory")
}

/// Requirement B8: the page is what the host has written, whatever the guest writes; each store is ignored, counted and
/// ends nothing.
#[test]
fn a_guest_that_writes_to_its_page_reads_what_the_host_has() {
    for registers in both() {
        let mut program = begin();
        call(&mut program, PAGE_CALL, 0, PAGE);
        for offset in [0, 0x10, 0x20, 0x100, 0x17F, 0x7F8, 0xFFC] {
            program.store(PAGE + offset, Width::Dword, 0xDEAD_BEEF).store(PAGE + offset, Width::Byte, 0xEE);
        }
        // Half of these are in the page.
        program.store(PAGE - 2, Width::Dword, 0x1234_5678).store(PAGE + 0xFFE, Width::Dword, 0x1234_5678);
        program.cpuid(0, 0).ops(&[Op::Mov(Gpr::Rax, 0)]);
        end(&mut program);
        let ran = run(Paravirtual::on(()), registers, 0, &program);
        assert_eq!(word(&ran, PAGE), 1 | 768 << 32, "on {:?}", registers.vendor);
        assert_eq!((word(&ran, PAGE + 0x100), word(&ran, PAGE + 0x38)), (1, 16), "a CPUID, and the stores");
        assert_eq!(word(&ran, PAGE + 0x100 + 6 * 8), 16, "each left the guest");
        assert_eq!((word(&ran, PAGE + 0x7F8), word(&ran, PAGE + 0xFF8)), (0, 0));
        assert_eq!(word(&ran, PAGE - 8) >> 48, 0x5678, "what lies before the page is written");
        assert_eq!(word(&ran, PAGE + 0x1000) & 0xFFFF, 0x1234, "and after it");
        assert_eq!(word(&ran, PAGE + 0x10) % 2, 0);
    }
}

/// Requirement B8: moved, given up or reset, the page leaves the guest's memory as it was, and writable.
#[test]
fn a_page_that_is_given_up_is_the_guests_memory_again() {
    for registers in both() {
        for off in [PAGE_CALL, PAGE_OFF, RESET] {
            let mut program = begin();
            for (offset, value) in [(0, 0x1111), (0x100, 0x2222), (0xFFC, 0x3333)] {
                program.store(PAGE + offset, Width::Dword, value);
            }
            call(&mut program, PAGE_CALL, 0, PAGE);
            program.cpuid(0, 0).store(PAGE, Width::Dword, 0x9999);
            call(&mut program, off, 0, PAGE + 0x1000);
            program.cpuid(0, 0).store(PAGE + 0x200, Width::Dword, 0x4444).ops(&[Op::Mov(Gpr::Rax, 0)]);
            end(&mut program);
            let ran = run(Paravirtual::on(()), registers, 0, &program);
            let found = [0, 0x100, 0x200, 0xFF8].map(|offset| word(&ran, PAGE + offset));
            assert_eq!(found, [0x1111, 0x2222, 0x4444, 0x3333 << 32], "operation {off} on {:?}", registers.vendor);
            assert_eq!(word(&ran, PAGE + 0x1000) != 0, off == PAGE_CALL);
        }
    }
}

/// Requirement B8: an event's frame is no instruction's store: it takes effect, in the guest's own memory.
#[test]
fn a_stack_in_the_page_has_it_given_up() {
    for registers in both() {
        let mut program = begin();
        program.store(PAGE + 0xFFC, Width::Dword, 0x3333).store(PAGE + 0x10, Width::Dword, 0x5555);
        call(&mut program, PAGE_CALL, 0, PAGE);
        program.ops(&[Op::Mov(Gpr::Rsp, PAGE + 0xFFC), Op::Int(0x60)]);
        program.ops(&[Op::Mov(Gpr::Rax, 0)]);
        end(&mut program);
        program.handler(0x60).ops(&[Op::Nop, Op::Iret]);
        let ran = run(Paravirtual::on(()), registers, 0, &program);
        assert_eq!((ran.value, word(&ran, PAGE + 0x10), word(&ran, PAGE + 0xFF8) >> 32), (0, 0x5555, 0x3333));
        assert_ne!(word(&ran, PAGE + 0xFF0) >> 32, 0, "the frame");
    }
}
