//! The page of counters: exact, whole, free of exits, and the host's alone.

use crate::abi::*;
use core::arch::asm;
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
    tests.run("page-given-up", given_up);
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

/// What the guest has in its memory where the page will be.
const OWN: [(usize, u64); 4] = [(0, 0x1111), (word::SEQUENCE, 0x2222), (word::CPUID, 0x3333), (511, 0x4444)];

unsafe fn write_own(page: *mut u64) {
    for (number, value) in OWN {
        page.add(number).write_volatile(value);
    }
}

unsafe fn has_own(page: *mut u64) -> Outcome {
    for (number, value) in OWN {
        same("the guest's memory", page.add(number).read_volatile(), value)?;
    }
    Ok(())
}

unsafe fn moves() -> Outcome {
    let (page, other) = (page_word(0), block_word(0));
    write_own(page);
    write_own(other);
    done(PAGE, 0, page_address())?;
    let [counted] = read_page([word::CPUID]);
    done(PAGE_OFF, 0, 0)?;
    has_own(page)?;
    leave(10);
    has_own(page)?;
    done(PAGE, 0, page_address())?;
    same("what was counted meanwhile", read_page([word::CPUID])[0] - counted, 10u32)?;
    done(PAGE, 0, block_address())?;
    has_own(page)?;
    write_own(page);
    check(other.read_volatile() == 1 | 768 << 32, "the page has moved")?;
    done(RESET, 0, 0)?;
    has_own(other)?;
    leave(10);
    has_own(other)
}

/// To the guest the page is ROM: whatever stores to it, it holds what the host has written, and all else is stored.
unsafe fn scribbled() -> Outcome {
    const UNUSED: usize = 500;
    done(PAGE, 0, page_address())?;
    let before = read_page([word::CPUID, word::NESTED_FAULTS, word::EMULATED, word::STOLEN_TICKS]);
    for number in [word::CPUID, word::STOLEN_TICKS, word::NESTED_FAULTS, UNUSED, 0] {
        page_word(number).write_volatile(u64::MAX / 3);
    }
    let [at, old] = [page_word(word::CPUID) as u64, 5];
    asm!("lock inc qword ptr [{0}]", "not byte ptr [{0} + 1]", in(reg) at);
    let mut exchanged: u64 = old;
    asm!("xchg [{0}], {1}", in(reg) at, inout(reg) exchanged);
    same("what an exchange reads", exchanged, before[0])?;
    start(&event(0, CPUID_EXITS, 0))?;
    leave(3);
    let after = read_page([word::CPUID, word::NESTED_FAULTS, word::EMULATED, word::STOLEN_TICKS]);
    same("a word that was stored to", after[0] - before[0], 3u32)?;
    same("stores that left the guest", after[1] - before[1], 8u32)?;
    same("and were executed by the host", after[2] - before[2], 8u32)?;
    check(after[3] - before[3] < 1 << 40, "stolen ticks")?;
    same("version and length", page_word(0).read_volatile(), 1 | 768u64 << 32)?;
    same("what has no meaning", page_word(UNUSED).read_volatile(), 0u32)?;
    done(DISABLE, 0, 0)?;
    same("an event", result(0).count, 3u32)?;
    done(RESET, 0, 0)
}

/// What the host cannot ignore takes effect in the guest's own memory: there is no page any more.
unsafe fn given_up() -> Outcome {
    write_own(page_word(0));
    done(PAGE, 0, page_address())?;
    asm!("fxsave [{}]", in(reg) page_address() + 0x400);
    has_own(page_word(0))?;
    leave(5);
    has_own(page_word(0))?;
    done(PAGE, 0, page_address())?;
    interrupts::on(VECTOR, |_| {});
    asm!("mov r12, rsp", "mov rsp, {}", "int 0x61", "mov rsp, r12", in(reg) page_address() + 0xFF0, out("r12") _);
    interrupts::off(VECTOR);
    same("interrupts", interrupts::count(VECTOR), 1u32)?;
    has_own(page_word(0))?;
    done(PAGE, 0, page_address())?;
    same("it can be named again", page_word(0).read_volatile(), 1 | 768u64 << 32)?;
    done(PAGE_OFF, 0, 0)
}
