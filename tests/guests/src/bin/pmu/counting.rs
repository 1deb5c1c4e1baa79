//! Exact counts of loops of known length, filters, and the ways to read a counter.

use crate::unit::*;
use core::arch::asm;
use guests::boot::has_word;
use guests::cpu::{self, wrmsr};
use guests::faults::{BP, GP, UD, catch, raises};
use guests::pmu::*;
use guests::report::{Outcome, Tests, check, same};

const TURNS: u64 = 1000;
/// Instructions of `pmu_loop` that count.
const LENGTH: u64 = 2 * TURNS + STOP;

pub(crate) unsafe fn run(tests: &mut Tests) {
    tests.run("pmu-instructions-are-exact", instructions);
    tests.run("pmu-every-counter-counts-the-same", every_counter);
    tests.run("pmu-cycles-agree", cycles);
    tests.run("pmu-privilege-filters", filters);
    tests.run("pmu-enable-bits", enables);
    tests.run("pmu-cmask-inv-edge", conditions);
    tests.run("pmu-unknown-event-counts-nothing", unknown);
    tests.run("pmu-cpuid-counts-once", exits);
    tests.run("pmu-faults-do-not-retire", faults);
    tests.run("pmu-rdpmc", rdpmc);
    tests.run("pmu-rdpmc-refuses", rdpmc_refuses);
    clear();
}

/// Runs the loop under counter 0 with `event`, and gives the count.
unsafe fn of_loop(event: u64) -> u64 {
    clear();
    program(0, event, 0);
    pmu_loop(1, TURNS);
    general(0)
}

unsafe fn instructions() -> Outcome {
    same("of the loop", of_loop(INSTRUCTIONS), LENGTH)?;
    // A hundred times as long, and none lost.
    program(0, INSTRUCTIONS, 0);
    pmu_loop(1, 100 * TURNS);
    same("of the long loop", general(0), 200 * TURNS + STOP)?;
    // What a counter holds goes on.
    pmu_loop(1, 1);
    same("once more", general(0), 200 * TURNS + STOP + 2 + STOP)
}

unsafe fn every_counter() -> Outcome {
    clear();
    for n in 0..8 {
        program(n, INSTRUCTIONS, u64::from(n));
    }
    wrmsr(FIXED_CTR_CTRL, 0x1111);
    pmu_loop(ALL, TURNS);
    for n in 0..8 {
        same("general-purpose counter", general(n), LENGTH + u64::from(n))?;
    }
    same("fixed counter 0", fixed(0), LENGTH)?;
    // A machine without a pipeline has four slots in each cycle.
    same("fixed counter 3", fixed(3), 4 * fixed(1))
}

/// The whole run takes a period for each instruction here; with a hypervisor it may take more.
unsafe fn cycles() -> Outcome {
    clear();
    program(0, CYCLES, 0);
    program(1, REFERENCE_CYCLES, 0);
    wrmsr(FIXED_CTR_CTRL, 0x110);
    pmu_loop(3 | 6 << 32, TURNS);
    // The last instruction may be one that a hypervisor executes, in no time of the guest's.
    let executed = if has_word("bare") { LENGTH } else { LENGTH - 1 };
    check(general(0) >= executed, "fewer cycles than instructions")?;
    same("core cycles", fixed(1), general(0))?;
    same("reference cycles", fixed(2), general(1))?;
    same("at the rate of the core", general(1), general(0))
}

unsafe fn filters() -> Outcome {
    clear();
    for (n, levels) in [0, USR, OS, USR | OS].into_iter().enumerate() {
        wrmsr(PERFEVTSEL + n as u32, INSTRUCTIONS | levels | EN);
    }
    wrmsr(FIXED_CTR_CTRL, 2);
    pmu_loop(0xf | 1 << 32, TURNS);
    same("nobody", general(0), 0u64)?;
    same("USR", general(1), 0u64)?;
    same("OS", general(2), LENGTH)?;
    same("both", general(3), LENGTH)?;
    same("fixed, USR", fixed(0), 0u64)
}

unsafe fn enables() -> Outcome {
    clear();
    wrmsr(PERFEVTSEL, INSTRUCTIONS | OS);
    program(1, INSTRUCTIONS, 0);
    wrmsr(FIXED_CTR_CTRL, 1);
    pmu_loop(1, TURNS);
    same("EN clear", general(0), 0u64)?;
    same("GLOBAL_CTRL clear", general(1), 0u64)?;
    same("fixed, GLOBAL_CTRL clear", fixed(0), 0u64)
}

unsafe fn conditions() -> Outcome {
    same("CMASK 1", of_loop(INSTRUCTIONS | cmask(1)), LENGTH)?;
    same("CMASK 2", of_loop(INSTRUCTIONS | cmask(2)), 0u64)?;
    same("INV without CMASK", of_loop(INSTRUCTIONS | INV), LENGTH)?;
    same("INV, CMASK 2", of_loop(INSTRUCTIONS | INV | cmask(2)), of_loop(CYCLES))?;
    same("branches, CMASK 1", of_loop(BRANCHES | cmask(1)), TURNS)?;
    same("branches, INV", of_loop(BRANCHES | INV | cmask(1)), of_loop(CYCLES) - TURNS)?;
    same("branches, edge", of_loop(BRANCHES | EDGE | cmask(1)), TURNS)?;
    same("cycles, edge", of_loop(CYCLES | EDGE | cmask(1)), 1u64)?;
    same("cycles, CMASK 255", of_loop(CYCLES | cmask(255)), 0u64)
}

unsafe fn unknown() -> Outcome {
    for event in [0x0000, 0x00d1, 0x01c0, 0x20c4, 0x01a4] {
        same("event", of_loop(event), 0u64)?;
    }
    Ok(())
}

/// T-A8: an instruction that a hypervisor executes for the guest counts once, like any other.
unsafe fn exits() -> Outcome {
    const TIMES: u64 = 10;
    clear();
    program(0, INSTRUCTIONS, 0);
    program(1, BRANCHES, 0);
    asm!(
        "push rbx", "xor edx, edx", "mov eax, 3", "mov ecx, {GLOBAL_CTRL}", "wrmsr",
        "mov esi, {times}",
        "2:", "xor eax, eax", "cpuid", "dec esi", "jnz 2b",
        "xor eax, eax", "xor edx, edx", "mov ecx, {GLOBAL_CTRL}", "wrmsr", "pop rbx",
        GLOBAL_CTRL = const GLOBAL_CTRL, times = const TIMES, out("esi") _, out("eax") _, out("ecx") _, out("edx") _,
    );
    same("instructions", general(0), 1 + 4 * TIMES + STOP)?;
    same("branches", general(1), TIMES)
}

/// UD2 and INT3 take the same way through the handler, but INT3 retires.
unsafe fn faults() -> Outcome {
    clear();
    program(0, INSTRUCTIONS, 0);
    // One copy of it: the code after the fault counts too.
    #[inline(never)]
    unsafe fn count(body: unsafe fn()) -> (u8, u64) {
        wrmsr(PMC, 0);
        let fault = catch(|| body());
        wrmsr(GLOBAL_CTRL, 0);
        (fault.map_or(0, |fault| fault.vector), general(0))
    }
    unsafe fn undefined() {
        asm!("wrmsr", "nop", "nop", "nop", "ud2", in("ecx") GLOBAL_CTRL, in("eax") 1, in("edx") 0);
    }
    unsafe fn breakpoint() {
        asm!("wrmsr", "nop", "nop", "nop", "int3", in("ecx") GLOBAL_CTRL, in("eax") 1, in("edx") 0);
    }
    let (fault, without) = count(undefined);
    let (trap, with) = count(breakpoint);
    same("vector", fault, UD)?;
    same("vector", trap, BP)?;
    same("one instruction more", with, without + 1)
}

unsafe fn rdpmc() -> Outcome {
    clear();
    for n in 0..8 {
        wrmsr(A_PMC + n, 0x8000_0000_0001 + u64::from(n));
        same("general-purpose", cpu::rdpmc(n), 0x8000_0000_0001 + u64::from(n))?;
    }
    for n in 0..4 {
        wrmsr(FIXED_CTR + n, 0x7000_0000_0001 + u64::from(n));
        same("fixed", cpu::rdpmc(RDPMC_FIXED + n), 0x7000_0000_0001 + u64::from(n))?;
    }
    // While it counts, RDPMC and RDMSR see what has retired before them.
    clear();
    program(0, INSTRUCTIONS, 0);
    let (first, second): (u32, u32);
    asm!(
        "wrmsr", "xor ecx, ecx", "rdpmc", "mov esi, eax", "nop", "nop", "rdpmc", "mov edi, eax",
        "xor eax, eax", "xor edx, edx", "mov ecx, {GLOBAL_CTRL}", "wrmsr", GLOBAL_CTRL = const GLOBAL_CTRL,
        inout("ecx") GLOBAL_CTRL => _, inout("eax") 1 => _, inout("edx") 0 => _, out("esi") first, out("edi") second,
    );
    same("at the first", first, 1u64)?;
    same("at the second", second, 5u64)?;
    same("at the end", general(0), 11u64)
}

/// T-A7: no such counter, no such type, and no "fast" reads.
unsafe fn rdpmc_refuses() -> Outcome {
    let indices =
        [8, 64, 0xffff, 0x4000_0004, 0x4000_0040, 0x2000_0000, 0x8000_0000, 0xc000_0000, 0x1_0000, 0xffff_ffff];
    for index in indices {
        raises("RDPMC", GP, 0, || {
            cpu::rdpmc(index);
        })
        .or_else(|_| same("no #GP for ECX", index, 0u64))?;
    }
    Ok(())
}
