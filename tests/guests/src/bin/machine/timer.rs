//! The local APIC's timer: one-shot, periodic, TSC-deadline, masked; and HLT woken by it.

use guests::interrupts::{Frame, count, last_rip, on};
use guests::lapic::register::*;
use guests::lapic::{self, DEADLINE, DEADLINE_MSR, MASKED, PERIODIC, bit, end, read, write};
use guests::report::{Outcome, Tests, check, same};
use guests::{boot, cpu, pit};

const VECTOR: u8 = 0x71;
const TICKS: u32 = 200_000;

pub(crate) unsafe fn run(tests: &mut Tests) {
    tests.run("timer-counts-down", counts_down);
    tests.run("timer-one-shot", one_shot);
    tests.run("timer-periodic", periodic);
    tests.run("timer-masked", masked);
    tests.run("timer-divider", divider);
    tests.run("timer-wakes-hlt", wakes);
    if lapic::has_deadline() || !boot::has_word("bare") {
        tests.run("timer-tsc-deadline", deadline);
        tests.run("timer-tsc-deadline-disarmed", disarmed);
    } else {
        tests.skip("timer-tsc-deadline", "the processor has none");
    }
    write(LVT_TIMER, MASKED | u32::from(VECTOR));
}

unsafe fn serve(_: &mut Frame) {
    end();
}

unsafe fn start(entry: u32, ticks: u32) {
    on(VECTOR, serve);
    write(INITIAL, 0);
    write(DIVIDE, 0xb);
    write(LVT_TIMER, entry | u32::from(VECTOR));
    write(INITIAL, ticks);
}

unsafe fn settle() {
    for _ in 0..3 {
        pit::delay(1);
        cpu::breathe();
    }
}

unsafe fn counts_down() -> Outcome {
    start(MASKED, 0x7000_0000);
    let first = read(CURRENT);
    let moved = cpu::wait_until(|| read(CURRENT) != first);
    let second = read(CURRENT);
    let initial = read(INITIAL);
    write(INITIAL, 0);
    check(moved, "the count stands still")?;
    check(first <= 0x7000_0000 && second < first, "the count does not fall")?;
    same("initial count", initial, 0x7000_0000u64)?;
    same("count after 0 was written", read(CURRENT), 0u64)
}

unsafe fn one_shot() -> Outcome {
    start(0, TICKS);
    let came = cpu::wait_until(|| count(VECTOR) != 0);
    settle();
    check(came, "no interrupt")?;
    same("interrupts", count(VECTOR), 1u64)?;
    same("count at the end", read(CURRENT), 0u64)
}

unsafe fn periodic() -> Outcome {
    start(PERIODIC, TICKS);
    let came = cpu::wait_until(|| count(VECTOR) >= 5);
    write(LVT_TIMER, MASKED | PERIODIC | u32::from(VECTOR));
    cpu::breathe();
    let stopped = count(VECTOR);
    settle();
    let running = read(CURRENT);
    write(INITIAL, 0);
    check(came, "fewer than five interrupts")?;
    same("interrupts after masking", count(VECTOR), stopped)?;
    check(running <= TICKS, "the count is above the initial count")
}

unsafe fn masked() -> Outcome {
    start(MASKED, TICKS);
    let ran_out = cpu::wait_until(|| read(CURRENT) == 0);
    cpu::breathe();
    check(ran_out, "the count never ends")?;
    check(!bit(IRR, VECTOR), "requested")?;
    same("interrupts", count(VECTOR), 0u64)
}

/// Divided by 128 the timer needs far longer than divided by 1.
unsafe fn divider() -> Outcome {
    let mut times = [0; 2];
    for (time, divide) in times.iter_mut().zip([0xb, 0xa]) {
        on(VECTOR, serve);
        write(INITIAL, 0);
        write(LVT_TIMER, u32::from(VECTOR));
        write(DIVIDE, divide);
        same("divide configuration", read(DIVIDE), divide)?;
        let begin = cpu::rdtsc();
        write(INITIAL, 20_000);
        check(cpu::wait_until(|| count(VECTOR) != 0), "no interrupt")?;
        *time = cpu::rdtsc().wrapping_sub(begin);
    }
    write(DIVIDE, 0xb);
    check(times[1] > times[0].saturating_mul(4), "no slower when divided by 128")
}

unsafe fn wakes() -> Outcome {
    for _ in 0..5 {
        start(0, TICKS);
        let wanted: u64;
        core::arch::asm!("lea {}, [rip + 3f]", "sti", "hlt", "3:", "cli", out(reg) wanted, options(nostack));
        same("interrupts", count(VECTOR), 1u64)?;
        same("RIP at the wake-up", last_rip(VECTOR), wanted)?;
    }
    Ok(())
}

unsafe fn deadline() -> Outcome {
    write(INITIAL, 0);
    on(VECTOR, serve);
    write(LVT_TIMER, DEADLINE | u32::from(VECTOR));
    let when = cpu::rdtsc() + 200_000;
    cpu::wrmsr(DEADLINE_MSR, when);
    let armed = cpu::rdmsr(DEADLINE_MSR);
    let early = count(VECTOR);
    let came = cpu::wait_until(|| count(VECTOR) != 0);
    let now = cpu::rdtsc();
    settle();
    check(armed == when || early != 0, "the deadline does not read back")?;
    check(came, "no interrupt")?;
    check(now >= when, "before its time")?;
    same("interrupts", count(VECTOR), 1u64)?;
    // Bochs leaves the passed deadline in the register.
    same("deadline afterwards", if boot::bare_on("bochs") { 0 } else { cpu::rdmsr(DEADLINE_MSR) }, 0u64)?;
    on(VECTOR, serve);
    cpu::wrmsr(DEADLINE_MSR, cpu::rdtsc() - 1);
    check(cpu::wait_until(|| count(VECTOR) != 0), "a deadline in the past brings nothing")?;
    same("current count in this mode", read(CURRENT), 0u64)
}

unsafe fn disarmed() -> Outcome {
    on(VECTOR, serve);
    write(LVT_TIMER, DEADLINE | u32::from(VECTOR));
    cpu::wrmsr(DEADLINE_MSR, cpu::rdtsc() + 2_000_000);
    cpu::wrmsr(DEADLINE_MSR, 0);
    settle();
    let after_zero = count(VECTOR);
    // Changing the mode disarms as well.
    cpu::wrmsr(DEADLINE_MSR, cpu::rdtsc() + 2_000_000);
    write(LVT_TIMER, MASKED | u32::from(VECTOR));
    settle();
    same("interrupts after writing 0", after_zero, 0u64)?;
    same("deadline after leaving the mode", cpu::rdmsr(DEADLINE_MSR), 0u64)?;
    same("interrupts after leaving the mode", count(VECTOR), 0u64)
}
