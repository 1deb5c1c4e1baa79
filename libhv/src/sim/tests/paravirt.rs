//! Paravirtual events under the run loop, on the simulated processor: guests without a PMU that have hardware events
//! counted for them.

use super::harness::{DEBUG_EXIT, Mode, STACK};
use super::pmu::{Registers, both, run};
use super::*;
use crate::pmu::host::{HostCounters, HostEvent};
use crate::pmu::{Emulated, Paravirtual, Passthrough, PmuPolicy};

const OPEN: u32 = 0x9_0000;
const RESULTS: u32 = 0x9_1000;
const PMI: u8 = 0x51;
const USER_AND_KERNEL: u64 = 0b11 << 16;
const INSTRUCTIONS: u64 = 0xC0 | USER_AND_KERNEL;
const BRANCHES: u64 = 0xC4 | USER_AND_KERNEL;

/// Operations and answers, by their numbers in the specification.
const ENABLE: u32 = 3;
const DISABLE: u32 = 4;
const READ: u32 = 5;
const CLOSE: u32 = 2;
const UNSUPPORTED_EVENT: u32 = 10;
const TOO_MANY_EVENTS: u32 = 11;
const OWN_COUNTERS: u32 = 14;

/// A call is this many instructions of the guest, the call itself among them.
const CALL: u32 = 5;

fn result(id: u32) -> u32 {
    RESULTS + 32 * id
}

fn call(program: &mut Program, operation: u32, id: u32, address: u32) {
    use Gpr::{Rax, Rbx, Rcx, Rdx};
    let registers = [(Rax, 0x4C48_0000 + operation), (Rbx, id), (Rcx, address), (Rdx, 0)];
    program.ops(&registers.map(|(register, value)| Op::Mov(register, value))).ops(&[Op::Hypercall]);
}

/// Opens a hardware event; with a period its overflows interrupt.
fn open(program: &mut Program, id: u32, config: u64, period: u32) {
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

fn begin() -> Program {
    let mut program = Program::at(0x1000);
    program.ops(&[Op::Mov(Gpr::Rsp, STACK)]);
    program
}

/// Ends a program with what EAX holds.
fn end(program: &mut Program) {
    program.ops(&[Op::Mov(Gpr::Rdx, DEBUG_EXIT.into()), Op::Out(Width::Dword), Op::Hlt]);
}

/// Rounds of seven instructions with a branch and an exit in each, after one instruction.
fn rounds(program: &mut Program, times: u32) {
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
        for skid in [0, 3] {
            let mut program = begin();
            program.wrmsr(0x1B, 0xFEE0_0D00);
            Mode::X2Apic.write(&mut program, 0xF, 0x1FF);
            Mode::X2Apic.write(&mut program, 0x34, PMI.into());
            open(&mut program, 5, INSTRUCTIONS, PERIOD);
            call(&mut program, ENABLE, 5, 0);
            program.ops(&[Op::Sti]);
            rounds(&mut program, 500);
            program.repeat(5000, &[Op::Nop]);
            program.ops(&[Op::Cli]);
            call(&mut program, DISABLE, 5, 0);
            program.ops(&[Op::Load(result(5) + 0x18, Width::Dword)]);
            end(&mut program);
            program.handler(PMI).ops(&[Op::PushAll]);
            Mode::X2Apic.write(&mut program, 0x34, PMI.into());
            Mode::X2Apic.write(&mut program, 0xB, 0);
            program.ops(&[Op::PopAll, Op::Iret]);
            let ran = run(Paravirtual::on(()), registers, skid, &program);
            let count =
                ran.memory.read_number(Gpa::new((result(5) + 0x10).into()), Width::Dword).expect("memory") as u32;
            assert_eq!(ran.value, count / PERIOD, "on {:?}, skid {skid}", registers.vendor);
            assert!(ran.value >= 26, "{} overflows", ran.value);
            let came = ran.interrupts(Event::Interrupt(PMI)) as u32;
            assert!(came == ran.value || came + 1 == ran.value, "{came} interrupts of {}", ran.value);
            // The handler counts too: 11 instructions.
            assert_eq!(count, 1 + 1 + 3500 + 1 + 15_000 + 1 + CALL - 1 + came * 11);
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
