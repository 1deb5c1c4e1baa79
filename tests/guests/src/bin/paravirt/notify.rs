//! Overflows that interrupt, through the local APIC's LVT entry for performance monitoring.

use crate::abi::*;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use guests::lapic::register::LVT_PMC;
use guests::report::{Outcome, Tests, check, same};
use guests::{cpu, interrupts, lapic};

const VECTOR: u8 = 0x62;
const NMI: u32 = 4 << 8;

/// What the page said when the last interrupt came: the CPUIDs, and the events that have overflowed.
static CPUIDS: AtomicU64 = AtomicU64::new(0);
static OVERFLOWED: AtomicU64 = AtomicU64::new(0);

pub(crate) unsafe fn run(tests: &mut Tests) {
    tests.run("overflow-interrupts", vector);
    tests.run("overflow-is-an-nmi", nmi);
    tests.run("overflow-while-masked", masked);
    tests.run("overflow-of-two", two);
}

unsafe fn note() {
    let [cpuids, overflowed] = read_page([word::CPUID, word::OVERFLOWED]);
    CPUIDS.store(cpuids, Relaxed);
    OVERFLOWED.store(overflowed, Relaxed);
}

/// Counts up to 35 CPUIDs with a period of ten, and expects an interrupt right after each tenth.
unsafe fn count(id: u32, came: impl Fn() -> u32) -> Outcome {
    done(PAGE, 0, page_address())?;
    start(&event(id, CPUID_EXITS, 10))?;
    let [first, pmis] = read_page([word::CPUID, word::INJECTED_PMIS]);
    cpu::sti();
    for number in 1..=35 {
        leave(1);
        if came() != number / 10 {
            cpu::cli();
            return same("interrupts", came(), number / 10);
        }
    }
    cpu::cli();
    same("the third came with the thirtieth", CPUIDS.load(Relaxed) - first, 30u32)?;
    same("and the page said who", OVERFLOWED.load(Relaxed), 1u64 << id)?;
    same("interrupts counted", read_page([word::INJECTED_PMIS])[0] - pmis, 3u32)?;
    done(DISABLE, id, 0)?;
    same("overflows", result(id).overflows, 3u32)?;
    same("count", result(id).count, 35u32)?;
    same("reading the result forgets them", read_page([word::OVERFLOWED])[0], 0u32)?;
    done(RESET, 0, 0)
}

unsafe fn vector() -> Outcome {
    interrupts::on(VECTOR, |_| unsafe {
        note();
        lapic::write(LVT_PMC, u32::from(VECTOR));
        lapic::end();
    });
    lapic::write(LVT_PMC, u32::from(VECTOR));
    let outcome = count(3, || interrupts::count(VECTOR));
    lapic::write(LVT_PMC, lapic::MASKED);
    interrupts::off(VECTOR);
    outcome
}

unsafe fn nmi() -> Outcome {
    interrupts::on(2, |_| unsafe {
        note();
        lapic::write(LVT_PMC, NMI);
    });
    lapic::write(LVT_PMC, NMI);
    let outcome = count(15, || interrupts::count(2));
    lapic::write(LVT_PMC, lapic::MASKED);
    interrupts::off(2);
    outcome
}

/// On Intel's processors the entry masks itself, so that a handler that leaves it so sees one; the count goes on.
unsafe fn masked() -> Outcome {
    interrupts::on(VECTOR, |_| unsafe { lapic::end() });
    lapic::write(LVT_PMC, u32::from(VECTOR));
    start(&event(0, CPUID_EXITS, 2))?;
    cpu::sti();
    leave(10);
    cpu::cli();
    done(DISABLE, 0, 0)?;
    let masked = lapic::read(LVT_PMC) & lapic::MASKED != 0;
    let came = interrupts::count(VECTOR);
    lapic::write(LVT_PMC, lapic::MASKED);
    interrupts::off(VECTOR);
    if cpu::is_intel() {
        check(masked && came == 1, "Intel's local APIC masks the entry")?;
    } else {
        check(!masked && came == 5, "AMD's local APIC leaves the entry alone")?;
    }
    same("overflows", result(0).overflows, 5u32)?;
    done(CLOSE, 0, 0)
}

/// Two events that overflow at the same exit are one interrupt, and the page names both.
unsafe fn two() -> Outcome {
    interrupts::on(VECTOR, |_| unsafe {
        note();
        lapic::end();
    });
    lapic::write(LVT_PMC, u32::from(VECTOR));
    done(PAGE, 0, page_address())?;
    start(&event(1, CPUID_EXITS, 4))?;
    start(&event(2, CPUID_EXITS, 4))?;
    cpu::sti();
    leave(4);
    cpu::cli();
    lapic::write(LVT_PMC, lapic::MASKED);
    interrupts::off(VECTOR);
    same("interrupts", interrupts::count(VECTOR), 1u32)?;
    same("both", OVERFLOWED.load(Relaxed), 0b110u32)?;
    done(RESET, 0, 0)
}
