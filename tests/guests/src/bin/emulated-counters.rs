//! Counters of an architectural PMU of which the hypervisor emulates each access: what CPUID says there is counts, what
//! it says is missing does not, and an overflow interrupts once.
#![no_std]
#![no_main]

use core::sync::atomic::{AtomicU32, Ordering::Relaxed};
use guests::cpu::{self, rdmsr, rdpmc, rdtsc, spin, wrmsr};
use guests::interrupts::{Frame, count, on};
use guests::lapic::{self, register::LVT_PMC};
use guests::pmu::*;
use guests::report::{Outcome, Tests, check, same};
use guests::{faults, main};

const ENABLED: u64 = USR | OS | EN;
const VECTOR: u8 = 0x61;

/// Returns whether CPUID says that an architectural event is there.
fn has(event: u32) -> bool {
    let [eax, ebx, ..] = cpu::cpuid(0xa, 0);
    eax >> 24 > event && ebx >> event & 1 == 0
}

unsafe fn enumerated() -> Outcome {
    let [eax, _, ecx, edx] = cpu::cpuid(0xa, 0);
    check(eax & 0xff >= 2 && eax >> 8 & 0xff >= 2, "neither version 2 nor two counters")?;
    same("width", eax >> 16 & 0xff, 48u32)?;
    check(has(0), "no cycles")?;
    check(ecx & 0b10 != 0 || edx & 0x1f > 1, "no fixed-function counter of cycles")?;
    check(cpu::cpuid(1, 0)[2] & 1 << 15 != 0 && rdmsr(CAPABILITIES) & 1 << 13 != 0, "no full-width writes")
}

unsafe fn accesses() -> Outcome {
    Counters::enumerated().clear();
    wrmsr(PERFEVTSEL, CYCLES | USR | OS);
    same("selector", rdmsr(PERFEVTSEL), CYCLES | USR | OS)?;
    wrmsr(PMC, 0x8000_0000);
    same("counter by its old name", rdmsr(A_PMC), 0xffff_8000_0000u64)?;
    same("RDPMC", rdpmc(0), 0xffff_8000_0000u64)?;
    let gp = |what, body: unsafe fn()| faults::raises(what, faults::GP, 0, || body());
    gp("WRMSR above the width", || wrmsr(A_PMC, LAST + 1))?;
    gp("WRMSR of AnyThread", || wrmsr(PERFEVTSEL, ANY))?;
    gp("WRMSR of the status", || wrmsr(STATUS, 0))?;
    gp("WRMSR of a reserved enable", || wrmsr(GLOBAL_CTRL, 1 << 60))?;
    gp("RDPMC of counter 64", || {
        rdpmc(64);
    })?;
    gp("RDPMC by the fast way", || {
        rdpmc(1 << 31);
    })
}

/// Cycles are counted while they are to be, no more of them than there were, and not while they are not.
unsafe fn cycles() -> Outcome {
    Counters::enumerated().clear();
    wrmsr(PERFEVTSEL, CYCLES | ENABLED);
    wrmsr(FIXED_CTR_CTRL, 0x30);
    wrmsr(GLOBAL_CTRL, 2 << 32 | 1);
    let start = rdtsc();
    spin(300_000);
    let (general, fixed, end) = (rdmsr(A_PMC), rdmsr(FIXED_CTR + 1), rdtsc());
    check(general > 100_000, "hardly any cycles")?;
    check(general <= end - start + 20_000 && fixed <= end - start + 20_000, "more cycles than there were")?;
    wrmsr(GLOBAL_CTRL, 0);
    let stopped = rdmsr(A_PMC);
    check(stopped >= general, "counts backwards")?;
    spin(100_000);
    same("counter that stands still", rdmsr(A_PMC), stopped)
}

/// Returns what counter 0 counts in a loop.
#[inline(never)]
unsafe fn counted(turns: u64) -> u64 {
    let before = rdmsr(A_PMC);
    spin(turns);
    rdmsr(A_PMC) - before
}

/// Instructions are counted exactly, or CPUID says that they are not counted, and they are not.
unsafe fn instructions() -> Outcome {
    Counters::enumerated().clear();
    wrmsr(PERFEVTSEL, INSTRUCTIONS | ENABLED);
    wrmsr(GLOBAL_CTRL, 1);
    let (first, second) = (counted(10_000), counted(20_000));
    match has(1) {
        true => same("instructions of 10000 more turns", second - first, 20_000u64),
        false => same("instructions that cannot be counted", second, 0u64),
    }
}

static SAMPLES: AtomicU32 = AtomicU32::new(0);

unsafe fn once(_: &mut Frame) {
    lapic::end();
}

unsafe fn again(_: &mut Frame) {
    wrmsr(A_PMC, LAST - 49_999);
    wrmsr(STATUS_RESET, 1);
    lapic::write(LVT_PMC, VECTOR.into());
    SAMPLES.fetch_add(1, Relaxed);
    lapic::end();
}

unsafe fn overflow() -> Outcome {
    Counters::enumerated().clear();
    on(VECTOR, once);
    let before = count(VECTOR);
    lapic::write(LVT_PMC, VECTOR.into());
    wrmsr(PERFEVTSEL, CYCLES | ENABLED | INT);
    wrmsr(A_PMC, LAST - 99_999);
    cpu::sti();
    wrmsr(GLOBAL_CTRL, 1);
    spin(1_000_000);
    cpu::cli();
    same("interrupts", count(VECTOR) - before, 1u32)?;
    same("status", rdmsr(STATUS), 1u64)?;
    check(rdmsr(A_PMC) < LAST / 2, "the counter has not run over")?;
    wrmsr(STATUS_RESET, 1);
    same("status that was cleared", rdmsr(STATUS), 0u64)
}

unsafe fn overflow_in_silence() -> Outcome {
    Counters::enumerated().clear();
    let before = count(VECTOR);
    lapic::write(LVT_PMC, VECTOR.into());
    wrmsr(PERFEVTSEL, CYCLES | ENABLED);
    wrmsr(A_PMC, LAST);
    cpu::sti();
    wrmsr(GLOBAL_CTRL, 1);
    spin(100_000);
    cpu::cli();
    same("status", rdmsr(STATUS), 1u64)?;
    same("interrupts", count(VECTOR) - before, 0u32)
}

/// A profiler: each interrupt sets the next.
unsafe fn sampling() -> Outcome {
    Counters::enumerated().clear();
    on(VECTOR, again);
    SAMPLES.store(0, Relaxed);
    lapic::write(LVT_PMC, VECTOR.into());
    wrmsr(PERFEVTSEL, CYCLES | ENABLED | INT);
    wrmsr(A_PMC, LAST - 49_999);
    cpu::sti();
    wrmsr(GLOBAL_CTRL, 1);
    let mut turns = 0;
    while SAMPLES.load(Relaxed) < 20 && turns < 10_000 {
        spin(10_000);
        turns += 1;
    }
    wrmsr(GLOBAL_CTRL, 0);
    cpu::cli();
    check(SAMPLES.load(Relaxed) >= 20, "fewer than 20 samples in 100 million turns")
}

unsafe fn run() -> ! {
    let mut tests = Tests::new();
    if lapic::has_x2apic() {
        lapic::enter_x2apic();
    }
    tests.run("cpuid", enumerated);
    tests.run("accesses", accesses);
    tests.run("cycles", cycles);
    tests.run("instructions", instructions);
    tests.run("overflow", overflow);
    tests.run("overflow-in-silence", overflow_in_silence);
    tests.run("sampling", sampling);
    tests.finish()
}

main!(run);
