//! Hardware events, where the host has counters to lend: exact, whatever makes the guest leave.

use crate::abi::*;
use core::arch::asm;
use guests::lapic::register::LVT_PMC;
use guests::report::{Outcome, Tests, check, same};
use guests::{cpu, interrupts, ioapic, lapic};

const VECTOR: u8 = 0x63;
const USER: u64 = 1 << 16;
const KERNEL: u64 = 1 << 17;
const CYCLES: u64 = 0x3C;
const INSTRUCTIONS: u64 = 0xC0;
const BRANCHES: u64 = 0xC4;

pub(crate) unsafe fn run(tests: &mut Tests) {
    if counters() == 0 {
        tests.run("hardware-refused", refused);
        return;
    }
    tests.run("hardware-counts-exactly", exact);
    tests.run("hardware-by-privilege", privilege);
    tests.run("hardware-emulated-instructions", emulated);
    tests.run("hardware-read-and-pause", pauses);
    tests.run("hardware-overflow", overflow);
    tests.run("hardware-all-counters", all);
}

/// Returns how many hardware events can be open.
fn counters() -> u32 {
    cpu::cpuid(0x4000_0011, 0)[3]
}

fn hardware(id: u32, config: u64, period: u64) -> Open {
    Open { event_type: 2, ..event(id, config, period) }
}

macro_rules! between_calls {
    ($call:literal, $id:expr, $rounds:expr) => {
        asm!(
            "push rbx",
            "mov eax, 0x4C480003", "mov ebx, r8d", "xor ecx, ecx", "xor edx, edx", $call,
            "2: nop", "xor eax, eax", "xor ecx, ecx", "cpuid", "dec r9", "jnz 2b",
            "mov eax, 0x4C480004", "mov ebx, r8d", "xor ecx, ecx", "xor edx, edx", $call,
            "pop rbx",
            in("r8") u64::from($id), inout("r9") u64::from($rounds) => _,
            out("rax") _, out("rcx") _, out("rdx") _,
        )
    };
}

/// Enables an event, goes round so many times with a CPUID in each, and disables it. Between the calls there are six
/// instructions a round, one of them a branch, and the four that load the registers of the second call.
unsafe fn rounds(id: u32, rounds: u32) {
    if cpu::is_intel() {
        between_calls!("vmcall", id, rounds);
    } else {
        between_calls!("vmmcall", id, rounds);
    }
}

unsafe fn refused() -> Outcome {
    for config in [CYCLES, INSTRUCTIONS, BRANCHES] {
        same("an event that nobody can count", open(&hardware(3, config | KERNEL, 0)), UNSUPPORTED_EVENT)?;
    }
    check(cpu::cpuid(0x4000_0011, 0)[2] & 0b10 == 0, "the feature")
}

unsafe fn exact() -> Outcome {
    for times in [1, 2, 10, 1000, 5000] {
        for (config, expected) in [(INSTRUCTIONS, 6 * times + 4), (BRANCHES, times)] {
            same("OPEN", open(&hardware(3, config | KERNEL | USER, 0)), 0u32)?;
            rounds(3, times);
            same("count", result(3).count, expected)?;
            leave(5);
            done(READ, 3, 0)?;
            same("count, and no more", result(3).count, expected)?;
            done(CLOSE, 3, 0)?;
        }
    }
    same("OPEN", open(&hardware(3, CYCLES | KERNEL, 0)), 0u32)?;
    rounds(3, 100);
    check(result(3).count >= 500, "cycles, but for what the host executed")?;
    done(CLOSE, 3, 0)
}

unsafe fn privilege() -> Outcome {
    for (flags, expected) in [(USER, 0), (0, 0), (KERNEL, 64u32)] {
        same("OPEN", open(&hardware(0, INSTRUCTIONS | flags, 0)), 0u32)?;
        rounds(0, 10);
        same("count", result(0).count, expected)?;
        done(CLOSE, 0, 0)?;
    }
    Ok(())
}

/// A load from a device is executed by the host and counts as any other.
unsafe fn emulated() -> Outcome {
    let mut found = [0; 2];
    for (found, times) in found.iter_mut().zip([10, 110]) {
        start(&hardware(2, INSTRUCTIONS | KERNEL, 0))?;
        let mut left: u64 = times;
        asm!("2: mov eax, [{at}]", "dec {left}", "jnz 2b", at = in(reg) ioapic::SELECT, left = inout(reg) left, out("eax") _);
        let _ = left;
        done(DISABLE, 2, 0)?;
        *found = result(2).count;
        done(CLOSE, 2, 0)?;
    }
    same("100 rounds of three", found[1] - found[0], 300u32)
}

unsafe fn pauses() -> Outcome {
    same("OPEN", open(&hardware(7, INSTRUCTIONS | KERNEL, 0)), 0u32)?;
    done(READ, 7, 0)?;
    check(result(7).count == 0 && !result(7).enabled, "an event begins stopped")?;
    for round in 1..5u32 {
        rounds(7, 50);
        same("a round", result(7).count, 304 * round)?;
        leave(20);
    }
    done(CLOSE, 7, 0)?;
    same("OPEN", open(&hardware(7, INSTRUCTIONS | KERNEL, 0)), 0u32)?;
    same("an event that is opened anew", result(7).count, 0u32)?;
    done(CLOSE, 7, 0)
}

unsafe fn overflow() -> Outcome {
    interrupts::on(VECTOR, |_| unsafe {
        lapic::write(LVT_PMC, u32::from(VECTOR));
        lapic::end();
    });
    lapic::write(LVT_PMC, u32::from(VECTOR));
    for period in [5000, 777] {
        let before = interrupts::count(VECTOR);
        same("OPEN", open(&hardware(4, INSTRUCTIONS | KERNEL, period)), 0u32)?;
        cpu::sti();
        rounds(4, 10_000);
        cpu::breathe();
        cpu::cli();
        let (found, came) = (result(4), interrupts::count(VECTOR) - before);
        same("overflows", found.overflows, found.count / period)?;
        check(found.count >= 60_004, "the loop")?;
        same("interrupts", came, found.overflows as u32)?;
        done(CLOSE, 4, 0)?;
    }
    lapic::write(LVT_PMC, lapic::MASKED);
    interrupts::off(VECTOR);
    Ok(())
}

unsafe fn all() -> Outcome {
    let counters = counters();
    for id in 0..counters {
        same("as many as CPUID says", open(&hardware(id, INSTRUCTIONS | KERNEL, 0)), 0u32)?;
    }
    if counters < 16 {
        same("one more", open(&hardware(counters, INSTRUCTIONS | KERNEL, 0)), TOO_MANY_EVENTS)?;
        same("a software event", open(&event(counters, CPUID_EXITS, 0)), 0u32)?;
    }
    done(RESET, 0, 0)?;
    same("RESET gives them back", open(&hardware(0, INSTRUCTIONS | KERNEL, 0)), 0u32)?;
    done(CLOSE, 0, 0)
}
