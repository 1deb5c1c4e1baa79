//! Counts with all the counters it has, beside a host that may count with the same ones: exactly, interrupted once by each
//! overflow wherever in its exits that comes, and with no value of anybody's but its own.
//!
//! Command line: `none`, there is no PMU; `only=TEXT`.
#![no_std]
#![no_main]

use core::arch::{asm, global_asm};
use guests::boot::has_word;
use guests::cpu::{self, cpuid, rdmsr, wrmsr};
use guests::interrupts::{self, Frame, count, on};
use guests::lapic::{self, MASKED, register::LVT_PMC};
use guests::main;
use guests::pmu::*;
use guests::report::{Outcome, Tests, same};

const COUNTED: u64 = INSTRUCTIONS | USR | OS | EN;
const VECTOR: u8 = 0x51;
const MARKS: u16 = 0x5b0;
/// Instructions in a round without its spins, of which each has two, and at the end.
const ROUND: u64 = 5;
const END: u64 = 4;

global_asm!(
    r#"
    .pushsection .text.beside, "ax"
    .globl beside_rounds
beside_rounds:
    push rbx
    mov r8, rdx
    mov r10, rsi
    mov rax, rdi
    mov rdx, rdi
    shr rdx, 32
    mov ecx, {GLOBAL_CTRL}
    test rdi, rdi
    jz 2f
    wrmsr
2:  mov eax, 0
    cpuid
    mov r9, r8
3:  dec r9
    jnz 3b
    dec r10
    jnz 2b
    test rdi, rdi
    jz 4f
    xor eax, eax
    xor edx, edx
    mov ecx, {GLOBAL_CTRL}
    wrmsr
4:  pop rbx
    ret
    .popsection
"#,
    GLOBAL_CTRL = const GLOBAL_CTRL,
);

unsafe extern "C" {
    /// With GLOBAL_CTRL as it says, unless that is 0: `rounds` times CPUID, which leaves the guest, and `spins` turns of a
    /// loop of two instructions.
    fn beside_rounds(control: u64, rounds: u64, spins: u64);
}

/// TEST and JZ, and what stops the counters.
const fn instructions(rounds: u64, spins: u64) -> u64 {
    rounds * (ROUND + 2 * spins) + END + 2
}

unsafe fn served(_: &mut Frame) {
    lapic::end();
}

/// Every counter at once, through hundreds of exits.
unsafe fn exact() -> Outcome {
    let counters = Counters::enumerated();
    for (rounds, spins) in [(1, 1), (300, 1), (7, 2000), (300, 50)] {
        counters.clear();
        for n in 0..counters.general {
            wrmsr(PERFEVTSEL + n, COUNTED);
            wrmsr(A_PMC + n, 1000 * u64::from(n));
        }
        if counters.fixed & 1 != 0 {
            wrmsr(FIXED_CTR_CTRL, 0x3333);
        }
        beside_rounds(counters.bits(), rounds, spins);
        for n in 0..counters.general {
            same("a general-purpose counter", rdmsr(A_PMC + n) - 1000 * u64::from(n), instructions(rounds, spins))?;
        }
        if counters.fixed & 1 != 0 {
            same("fixed counter 0", rdmsr(FIXED_CTR), instructions(rounds, spins))?;
        }
        same("status", rdmsr(STATUS), 0u64)?;
    }
    Ok(())
}

/// What is written stays through exits, and is the only thing there.
unsafe fn unmixed() -> Outcome {
    let counters = Counters::enumerated();
    for pattern in [0, 0x5a5a_0000_1234u64, LAST - 0xff] {
        let selector = |n| if pattern == 0 { 0 } else { (COUNTED | u64::from(n) << 8) & !EN };
        counters.clear();
        for n in 0..counters.general {
            wrmsr(A_PMC + n, pattern + u64::from(n));
            wrmsr(PERFEVTSEL + n, selector(n));
        }
        for n in counters.fixed() {
            wrmsr(FIXED_CTR + n, pattern + 100 + u64::from(n));
        }
        beside_rounds(0, 50, 20);
        for n in 0..counters.general {
            same("counter", rdmsr(A_PMC + n), pattern + u64::from(n))?;
            same("selector", rdmsr(PERFEVTSEL + n), selector(n))?;
        }
        for n in counters.fixed() {
            same("fixed counter", rdmsr(FIXED_CTR + n), pattern + 100 + u64::from(n))?;
        }
        same("status", rdmsr(STATUS), 0u64)?;
        same("control", rdmsr(GLOBAL_CTRL), 0u64)?;
    }
    Ok(())
}

/// The overflow comes at every place of a round: in CPUID, right before and after it, and in between.
unsafe fn interrupted() -> Outcome {
    on(VECTOR, served);
    let before = count(VECTOR);
    let counters = Counters::enumerated();
    let mut handler = None;
    for place in 0..120 {
        let counter = place % counters.general;
        counters.clear();
        wrmsr(A_PMC + counter, LAST - 99 - u64::from(place));
        wrmsr(PERFEVTSEL + counter, COUNTED | INT);
        lapic::write(LVT_PMC, u32::from(VECTOR));
        cpu::sti();
        beside_rounds(1 << counter, 12, 20);
        beside_rounds(0, 3, 50);
        cpu::cli();
        same("interrupts", count(VECTOR) - before, place + 1)?;
        same("the entry has masked itself", lapic::read(LVT_PMC), MASKED | u32::from(VECTOR))?;
        same("status", rdmsr(STATUS), 1u64 << counter)?;
        // The handler's instructions count too, as many each time.
        let counted = rdmsr(A_PMC + counter) + 100 + u64::from(place) - instructions(12, 20);
        same("the handler's instructions", counted, *handler.get_or_insert(counted))?;
    }
    interrupts::off(VECTOR);
    Ok(())
}

/// What overflows while the entry is masked interrupts neither then nor later.
unsafe fn masked() -> Outcome {
    on(VECTOR, served);
    let before = count(VECTOR);
    let counters = Counters::enumerated();
    for place in 0..60 {
        counters.clear();
        wrmsr(A_PMC, LAST - 99 - place);
        wrmsr(PERFEVTSEL, COUNTED | INT);
        lapic::write(LVT_PMC, MASKED | u32::from(VECTOR));
        cpu::sti();
        beside_rounds(1, 12, 20);
        beside_rounds(0, 3, 50);
        lapic::write(LVT_PMC, u32::from(VECTOR));
        beside_rounds(0, 3, 50);
        cpu::cli();
        same("status", rdmsr(STATUS), 1u64)?;
        same("interrupts", count(VECTOR), before)?;
    }
    lapic::write(LVT_PMC, MASKED | u32::from(VECTOR));
    interrupts::off(VECTOR);
    Ok(())
}

unsafe fn mark(number: u32, longer: u64) {
    asm!("out dx, eax", in("dx") MARKS, in("eax") number, in("rcx") longer);
}

/// As many exits, and more instructions of the guest's: the host says what it counted.
unsafe fn stretches() -> Outcome {
    // A multiple of how often the hypervisor measures what an exit costs: that is an instruction more or less too.
    const ROUNDS: u64 = 256;
    const SPINS: [u64; 2] = [10, 300];
    for _ in 0..8 {
        for (number, spins) in (1..).zip(SPINS) {
            mark(0, 0);
            beside_rounds(0, ROUNDS, spins);
            mark(number, 0);
        }
    }
    mark(3, instructions(ROUNDS, SPINS[1]) - instructions(ROUNDS, SPINS[0]));
    Ok(())
}

unsafe fn run() -> ! {
    let mut tests = Tests::new();
    lapic::enter_xapic();
    if has_word("none") {
        tests.run("beside-no-pmu", || same("version", cpuid(0xa, 0)[0] & 0xff, 0u32));
    } else {
        tests.run("beside-all-counters-are-exact", exact);
        tests.run("beside-no-value-but-its-own", unmixed);
        tests.run("beside-each-overflow-interrupts-once", interrupted);
        tests.run("beside-masked-is-quiet", masked);
    }
    tests.run("beside-stretches", stretches);
    tests.finish()
}

main!(run);
