//! Overflow, its interrupt, and the freeze.

use crate::unit::*;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use guests::boot::{has_word, number};
use guests::cpu::{self, rdmsr, wrmsr};
use guests::interrupts::{self, Frame, count, last_rip, on};
use guests::lapic::{
    self, MASKED, SILENT,
    register::{CURRENT, LVT_PMC},
};
use guests::pmu::*;
use guests::report::{Outcome, Tests, same};

const VECTOR: u8 = 0x51;
const NMI: u8 = 2;
const NMI_DELIVERY: u32 = 4 << 8;
const TURNS: u64 = 1000;

pub(crate) unsafe fn run(tests: &mut Tests) {
    on(VECTOR, served);
    on(NMI, nmi);
    tests.run("pmu-overflow-sets-status", overflow);
    tests.run("pmu-overflow-of-fixed-counters", fixed_overflow);
    tests.run("pmu-no-interrupt-without-int", silent);
    tests.run("pmu-interrupt-once-and-masked", interrupt);
    tests.run("pmu-interrupt-of-a-fixed-counter", fixed_interrupt);
    tests.run("pmu-interrupt-comes-where-it-overflows", place);
    tests.run("pmu-interrupt-as-nmi", as_nmi);
    tests.run("pmu-interrupt-as-nmi-whose-handler-changes-the-entry", changed);
    tests.run("pmu-masked-entry-keeps-the-status", masked);
    if skid() == 0 {
        tests.run("pmu-one-interrupt-after-the-other", again);
    }
    tests.run("pmu-freeze", freeze);
    interrupts::off(VECTOR);
    interrupts::off(NMI);
    lapic::write(LVT_PMC, SILENT);
    clear();
}

/// Instructions that retire between an overflow and its interrupt on this machine.
pub(crate) fn skid() -> u64 {
    number("skid").unwrap_or(0)
}

/// What LVTPC held when the interrupt was served.
static ENTRY: AtomicU64 = AtomicU64::new(0);

unsafe fn served(_: &mut Frame) {
    ENTRY.store(u64::from(lapic::read(LVT_PMC)), Relaxed);
    lapic::end();
}

unsafe fn nmi(_: &mut Frame) {
    if has_word("direct") {
        // It came without an exit: where the processor serves LVTPC from a page, this read brings the hypervisor to tell
        // the page.
        lapic::read(CURRENT);
    }
    ENTRY.store(u64::from(lapic::read(LVT_PMC)), Relaxed);
}

/// Fresh counters, and LVTPC with `entry`.
unsafe fn prepare(entry: u32) {
    clear();
    lapic::write(LVT_PMC, entry);
    on(VECTOR, served);
    on(NMI, nmi);
}

unsafe fn overflow() -> Outcome {
    prepare(MASKED | u32::from(VECTOR));
    for n in 0..8 {
        program(n, INSTRUCTIONS, LAST - 99 + u64::from(n));
    }
    program(7, INSTRUCTIONS, 0);
    pmu_loop(0xff, 50);
    // 104 instructions: the counters with up to 104 events to go have wrapped.
    same("status", rdmsr(STATUS), 0x7fu64)?;
    same("counter 0", general(0), 4u64)?;
    same("counter 4", general(4), 8u64)?;
    wrmsr(STATUS_RESET, 5);
    same("two bits less", rdmsr(STATUS), 0x7au64)?;
    // The last value is no overflow yet; the next event is.
    clear();
    program(0, INSTRUCTIONS, LAST - STOP);
    start_and_stop();
    same("at the last value", general(0), LAST)?;
    same("no status", rdmsr(STATUS), 0u64)?;
    start_and_stop();
    same("after it", general(0), STOP - 1)?;
    same("status", rdmsr(STATUS), 1u64)
}

/// Starts and stops: the four instructions of the stop count.
unsafe fn start_and_stop() {
    core::arch::asm!(
        "wrmsr", "xor eax, eax", "xor edx, edx", "mov ecx, {GLOBAL_CTRL}", "wrmsr", GLOBAL_CTRL = const GLOBAL_CTRL,
        inout("ecx") GLOBAL_CTRL => _, inout("eax") 1 => _, inout("edx") 0 => _,
    );
}

unsafe fn fixed_overflow() -> Outcome {
    prepare(MASKED | u32::from(VECTOR));
    wrmsr(FIXED_CTR_CTRL, 0x1111);
    for n in 0..4 {
        wrmsr(FIXED_CTR + n, LAST - 10);
    }
    pmu_loop(0xf << 32, TURNS);
    same("status", rdmsr(STATUS), 0xfu64 << 32)?;
    same("fixed counter 0", fixed(0), 2 * TURNS + STOP - 11)
}

/// T-A10.
unsafe fn silent() -> Outcome {
    prepare(u32::from(VECTOR));
    program(0, INSTRUCTIONS, LAST - 10);
    cpu::sti();
    pmu_loop(1, TURNS);
    cpu::cli();
    same("interrupts", count(VECTOR), 0u64)?;
    same("status", rdmsr(STATUS), 1u64)?;
    same("LVTPC", lapic::read(LVT_PMC), VECTOR)
}

/// T-A2 and T-A10: exactly one, with the entry masked by its delivery; the counter goes on.
unsafe fn interrupt() -> Outcome {
    prepare(u32::from(VECTOR));
    program(0, INSTRUCTIONS | INT, LAST - 999);
    pmu_loop(1, TURNS);
    // IF was clear: it waits.
    same("before IF is set", count(VECTOR), 0u64)?;
    cpu::breathe();
    same("interrupts", count(VECTOR), 1u64)?;
    same("LVTPC in the handler", ENTRY.load(Relaxed), u64::from(MASKED) | u64::from(VECTOR))?;
    same("status", rdmsr(STATUS), 1u64)?;
    same("counter", general(0), 2 * TURNS + STOP - 1000)?;
    cpu::breathe();
    same("no other", count(VECTOR), 1u64)
}

unsafe fn fixed_interrupt() -> Outcome {
    prepare(u32::from(VECTOR));
    wrmsr(FIXED_CTR_CTRL, 9);
    wrmsr(FIXED_CTR, LAST - 500);
    pmu_loop(1 << 32, TURNS);
    cpu::breathe();
    same("interrupts", count(VECTOR), 1u64)?;
    same("status", rdmsr(STATUS), 1u64 << 32)
}

/// Without a skid the interrupt comes between the instruction that overflows and the next one; `skid=N` is the machine's.
unsafe fn place() -> Outcome {
    let first = pmu_sled_first as *const () as u64;
    for events in [2, 3, 17, 50, 90] {
        prepare(u32::from(VECTOR));
        // STI counts, and holds off interrupts for one instruction.
        program(0, INSTRUCTIONS | INT, LAST + 1 - 1 - events);
        pmu_sled(1);
        same("interrupts", count(VECTOR), 1u64)?;
        same("at the instruction", last_rip(VECTOR).wrapping_sub(first), events + skid())?;
    }
    Ok(())
}

unsafe fn as_nmi() -> Outcome {
    prepare(NMI_DELIVERY);
    program(0, INSTRUCTIONS | INT, LAST - 99);
    pmu_loop(1, TURNS);
    same("NMIs", count(NMI), 1u64)?;
    same("LVTPC in the handler", ENTRY.load(Relaxed), u64::from(MASKED | NMI_DELIVERY))?;
    same("status", rdmsr(STATUS), 1u64)
}

/// A24: the first thing that the handler of an NMI does is to write the entry, and by that the next overflow interrupts.
unsafe fn changed() -> Outcome {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    unsafe fn change(_: &mut Frame) {
        lapic::write(LVT_PMC, NEXT.load(Relaxed) as u32);
    }
    unsafe fn overflows() {
        wrmsr(STATUS_RESET, 1);
        program(0, INSTRUCTIONS | INT, LAST - 99);
        pmu_loop(1, TURNS);
    }
    let vector = u32::from(VECTOR);
    let cases = [(NMI_DELIVERY, 2u64, 0u64), (vector, 1, 1), (MASKED | vector, 1, 0), (MASKED | NMI_DELIVERY, 1, 0)];
    for (next, nmis, interrupts) in cases {
        prepare(NMI_DELIVERY);
        on(NMI, change);
        NEXT.store(next.into(), Relaxed);
        overflows();
        // What was delivered before the write is not found out after it.
        lapic::read(CURRENT);
        same("LVTPC after the handler", lapic::read(LVT_PMC), next)?;
        overflows();
        cpu::breathe();
        same("NMIs", count(NMI), nmis)?;
        same("interrupts", count(VECTOR), interrupts)?;
        same("LVTPC", lapic::read(LVT_PMC), if interrupts == 0 { next } else { MASKED | next })?;
    }
    Ok(())
}

unsafe fn masked() -> Outcome {
    prepare(MASKED | u32::from(VECTOR));
    program(0, INSTRUCTIONS | INT, LAST - 99);
    pmu_loop(1, TURNS);
    cpu::breathe();
    same("interrupts", count(VECTOR), 0u64)?;
    same("status", rdmsr(STATUS), 1u64)?;
    // The overflow was an edge; the next one is another.
    lapic::write(LVT_PMC, u32::from(VECTOR));
    cpu::breathe();
    same("after it is unmasked", count(VECTOR), 0u64)?;
    program(0, INSTRUCTIONS | INT, LAST);
    pmu_loop(1, 1);
    cpu::breathe();
    same("of the next overflow", count(VECTOR), 1u64)
}

/// T-A13: as many interrupts as overflows, when the handler does what a handler does.
unsafe fn again() -> Outcome {
    unsafe fn rearm(_: &mut Frame) {
        wrmsr(GLOBAL_CTRL, 0);
        wrmsr(STATUS_RESET, 1);
        wrmsr(A_PMC, LAST - 99);
        lapic::write(LVT_PMC, u32::from(VECTOR));
        lapic::end();
        wrmsr(GLOBAL_CTRL, 1);
    }
    prepare(u32::from(VECTOR));
    on(VECTOR, rearm);
    // Conditional branches: none in the handler counts while GLOBAL_CTRL is 0, and few do around that.
    program(0, CONDITIONAL | INT, LAST - 99);
    cpu::sti();
    pmu_loop(1, 100 * TURNS);
    cpu::cli();
    same("interrupts", count(VECTOR), TURNS)
}

/// T-A24: with FREEZE_PERFMON_ON_PMI every counter stops at the overflow, however late its interrupt comes, and goes on when
/// CTR_FRZ is cleared.
unsafe fn freeze() -> Outcome {
    prepare(u32::from(VECTOR));
    program(0, INSTRUCTIONS | INT, LAST - 99);
    program(1, INSTRUCTIONS, 0);
    wrmsr(DEBUGCTL, FREEZE);
    pmu_loop(3, TURNS);
    let (status, stopped) = (rdmsr(STATUS), [general(0), general(1)]);
    cpu::breathe();
    wrmsr(STATUS_RESET, CTR_FRZ | 1);
    pmu_loop(3, TURNS);
    let (later, interrupts) = (general(1), count(VECTOR));
    wrmsr(DEBUGCTL, 0);
    same("status", status, CTR_FRZ | 1)?;
    same("the counter that overflowed", stopped[0], 0u64)?;
    same("the other", stopped[1], 100u64)?;
    same("interrupts", interrupts, 1u64)?;
    same("after the thaw", later, 100 + 2 * TURNS + STOP)
}
