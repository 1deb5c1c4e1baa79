//! The page of counters: exact, whole, free of exits, and the host's alone.

use crate::abi::*;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use guests::report::{Outcome, Tests, check, same};
use guests::{cpu, interrupts, ioapic, lapic};

const VECTOR: u8 = 0x61;

/// What the page said at the beginning of the last handler.
static SEEN: AtomicU64 = AtomicU64::new(0);

pub(crate) unsafe fn run(tests: &mut Tests) {
    tests.run("page-counts-exits", exits);
    tests.run("page-reading-does-not-leave", free);
    tests.run("page-interrupts", injected);
    tests.run("page-devices", devices);
    tests.run("page-stolen-time", stolen);
    tests.run("page-sequence", sequence);
    tests.run("page-moves-and-ends", moves);
    tests.run("page-scribbled-over", scribbled);
}

unsafe fn exits() -> Outcome {
    done(PAGE, 0, page_address())?;
    for times in [1, 2, 17, 500] {
        let [before] = read_page([word::CPUID]);
        leave(times);
        let [after] = read_page([word::CPUID]);
        same("CPUIDs", after - before, times)?;
    }
    let [before] = read_page([word::HYPERCALLS]);
    for _ in 0..5 {
        call(CLOSE, 9, 0);
    }
    let [after] = read_page([word::HYPERCALLS]);
    same("hypercalls, refused ones too", after - before, 5u32)?;
    let head = read_page([0, 1]);
    same("version and length", head[0], 1 | 768u64 << 32)?;
    same("flags", head[1], 0u32)?;
    done(PAGE_OFF, 0, 0)
}

/// A hundred thousand reads: had each left the guest, the exits would show it.
unsafe fn free() -> Outcome {
    done(PAGE, 0, page_address())?;
    let before = all_exits();
    let mut seen = 0;
    for _ in 0..100_000 {
        seen |= read_page([word::CPUID])[0];
    }
    let after = all_exits();
    check(seen != 0, "there were CPUIDs")?;
    // The host's own interrupts come now and then.
    check(after - before < 1000, "reading the page leaves the guest")?;
    done(PAGE_OFF, 0, 0)
}

unsafe fn injected() -> Outcome {
    done(PAGE, 0, page_address())?;
    interrupts::on(VECTOR, |_| unsafe {
        SEEN.store(read_page([word::INJECTED_INTERRUPTS])[0], Relaxed);
        lapic::end();
    });
    let [before] = read_page([word::INJECTED_INTERRUPTS]);
    for _ in 0..25 {
        lapic::send_self(VECTOR);
        cpu::breathe();
    }
    let [after] = read_page([word::INJECTED_INTERRUPTS]);
    interrupts::off(VECTOR);
    same("interrupts that came", interrupts::count(VECTOR), 25u32)?;
    same("interrupts that were counted", after - before, 25u32)?;
    same("the last of them, when its handler began", SEEN.load(Relaxed), after)?;
    done(PAGE_OFF, 0, 0)
}

unsafe fn devices() -> Outcome {
    done(PAGE, 0, page_address())?;
    let before = read_page([word::NESTED_FAULTS, word::EMULATED]);
    for _ in 0..40 {
        cpu::load32(ioapic::SELECT);
    }
    let after = read_page([word::NESTED_FAULTS, word::EMULATED]);
    same("nested faults", after[0] - before[0], 40u32)?;
    same("emulated instructions", after[1] - before[1], 40u32)?;
    done(PAGE_OFF, 0, 0)
}

unsafe fn stolen() -> Outcome {
    const SLEEP: u64 = 200_000_000;
    done(PAGE, 0, page_address())?;
    let ([before], start) = (read_page([word::STOLEN_TICKS]), cpu::rdtsc());
    leave(200);
    let ([after], end) = (read_page([word::STOLEN_TICKS]), cpu::rdtsc());
    check(after - before > 200 && after - before < end - start, "between nothing and all of the time")?;
    if lapic::has_deadline() {
        interrupts::on(VECTOR, |_| unsafe { lapic::end() });
        lapic::write(lapic::register::LVT_TIMER, lapic::DEADLINE | u32::from(VECTOR));
        let [before] = read_page([word::STOLEN_TICKS]);
        cpu::wrmsr(lapic::DEADLINE_MSR, cpu::rdtsc() + SLEEP);
        cpu::wait();
        let [after] = read_page([word::STOLEN_TICKS]);
        lapic::write(lapic::register::LVT_TIMER, lapic::MASKED);
        interrupts::off(VECTOR);
        check(after - before < SLEEP / 2, "a guest that halts is not stolen from")?;
    }
    done(PAGE_OFF, 0, 0)
}

/// Whoever reads across an exit is told so.
unsafe fn sequence() -> Outcome {
    done(PAGE, 0, page_address())?;
    for _ in 0..50 {
        let [before] = read_page([word::SEQUENCE]);
        leave(1);
        let [after] = read_page([word::SEQUENCE]);
        check(after > before && before % 2 == 0 && after % 2 == 0, "the sequence")?;
    }
    done(PAGE_OFF, 0, 0)
}

unsafe fn moves() -> Outcome {
    done(PAGE, 0, page_address())?;
    let [counted] = read_page([word::CPUID]);
    done(PAGE_OFF, 0, 0)?;
    let [left] = read_page([word::CPUID]);
    leave(10);
    same("a page that was given up", read_page([word::CPUID])[0], left)?;
    done(PAGE, 0, page_address())?;
    same("what was counted meanwhile", read_page([word::CPUID])[0] - counted, 10u32)?;
    done(RESET, 0, 0)?;
    let [left] = read_page([word::CPUID]);
    leave(10);
    same("a page after RESET", read_page([word::CPUID])[0], left)
}

/// The host believes nothing that stands in the page, and writes all of it when it is named again.
unsafe fn scribbled() -> Outcome {
    const UNUSED: usize = 500;
    done(PAGE, 0, page_address())?;
    let [before] = read_page([word::CPUID]);
    for number in [word::CPUID, word::STOLEN_TICKS, word::NESTED_FAULTS, UNUSED] {
        page_word(number).write_volatile(u64::MAX / 3);
    }
    start(&event(0, CPUID_EXITS, 0))?;
    leave(3);
    same("a word that was overwritten", read_page([word::CPUID])[0] - before, 3u32)?;
    done(DISABLE, 0, 0)?;
    same("an event", result(0).count, 3u32)?;
    done(CLOSE, 0, 0)?;
    done(PAGE, 0, page_address())?;
    check(read_page([word::NESTED_FAULTS])[0] < u64::MAX / 3, "all is written when the page is named again")?;
    same("what is not the host's", page_word(UNUSED).read_volatile(), u64::MAX / 3)?;
    done(PAGE_OFF, 0, 0)
}
