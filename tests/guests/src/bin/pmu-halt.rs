//! Halts while an interrupt of its counters is on its way, and is woken by it wherever in its hypervisor it arrives.
//!
//! Command line: `skid=NUMBER`, the instructions from an overflow to its interrupt.
#![no_std]
#![no_main]

use core::arch::global_asm;
use guests::boot::number;
use guests::interrupts::{self, Frame, count, on};
use guests::lapic::{self, register::LVT_PMC};
use guests::pmu::*;
use guests::report::{Outcome, Tests, same};
use guests::{cpu, main};

const VECTOR: u8 = 0x51;
const NMI: u8 = 2;
const NMI_ENTRY: u32 = 4 << 8;

global_asm!(
    r#"
    .pushsection .text.halt, "ax"
    .globl halt_after
    .globl halt_halts
halt_after:
    mov eax, 1
    xor edx, edx
    mov ecx, {GLOBAL_CTRL}
    wrmsr
2:  dec rdi
    jnz 2b
    sti
halt_halts:
    hlt
    cli
    xor eax, eax
    wrmsr
    ret
    .popsection
"#,
    GLOBAL_CTRL = const GLOBAL_CTRL,
);

unsafe extern "C" {
    /// Halts with counter 0 enabled, after `spins` turns of a loop of two instructions, and STI.
    fn halt_after(spins: u64);
    /// The HLT in it, one byte long.
    static halt_halts: u8;
}

unsafe fn served(_: &mut Frame) {
    lapic::end();
}

/// An exit by a timer of the hypervisor's brings an NMI before HLT, which would wait for another then.
unsafe fn seen(frame: &mut Frame) {
    let halts = &raw const halt_halts as u64;
    if (halt_after as *const () as u64..=halts).contains(&frame.rip) {
        frame.rip = halts + 1;
    }
}

/// The overflow comes at every instruction before HLT, so that the interrupt arrives at as many after it.
unsafe fn woken(entry: u32, vector: u8) -> Outcome {
    let skid = number("skid").unwrap_or(0);
    let spins = (skid - 2) / 2;
    let before = count(vector);
    let counters = Counters::enumerated();
    for place in 3..2 * spins {
        counters.clear();
        overflow_at(place);
        lapic::write(LVT_PMC, entry);
        halt_after(spins);
        same("interrupts", u64::from(count(vector) - before), place - 2)?;
    }
    Ok(())
}

unsafe fn overflow_at(instruction: u64) {
    cpu::wrmsr(A_PMC, LAST + 1 - instruction);
    cpu::wrmsr(PERFEVTSEL, INSTRUCTIONS | OS | EN | INT);
}

unsafe fn run() -> ! {
    let mut tests = Tests::new();
    lapic::enter_xapic();
    on(VECTOR, served);
    on(NMI, seen);
    tests.run("halt-is-woken-by-a-late-interrupt", || woken(VECTOR.into(), VECTOR));
    tests.run("halt-is-woken-by-a-late-nmi", || woken(NMI_ENTRY, NMI));
    interrupts::off(VECTOR);
    tests.finish()
}

main!(run);
