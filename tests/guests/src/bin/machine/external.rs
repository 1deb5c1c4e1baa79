//! PIT, PIC and UART interrupts.

use guests::interrupts::{Frame, count, off, on};
use guests::report::{Outcome, Tests, check, same};
use guests::{cpu, ioapic, lapic, pic, pit};

/// Vector of IRQ 0, the PIT's.
pub(crate) const TICK: u8 = pic::BASE;
const SERIAL: u8 = pic::BASE + 4;

pub(crate) unsafe fn run(tests: &mut Tests) {
    virtual_wire();
    tests.run("pit-counts-down", counts_down);
    tests.run("pit-channel-2", channel_2);
    tests.run("pit-irq-through-pic", periodic_ticks);
    tests.run("pit-one-shot-fires-once", fires_once);
    tests.run("pic-mask-reads-back", mask_reads_back);
    tests.run("pic-masked-line-waits", masked_line_waits);
    tests.run("pic-holds-until-eoi", holds_until_eoi);
    tests.run("pic-priority", priority);
    tests.run("uart-irq-through-pic", serial_interrupt);
    tests.run("uart-registers", serial_registers);
    pit::stop();
    pic::set_mask(0xffff);
}

/// Has the PICs' INTR reach the processor through LINT0 of a local APIC in xAPIC mode.
pub(crate) unsafe fn virtual_wire() {
    cpu::cli();
    lapic::enter_xapic();
    ioapic::mask_all();
    lapic::write(lapic::register::LVT_LINT0, 0x700);
    pit::stop();
    pic::initialize();
}

unsafe fn end_tick(_: &mut Frame) {
    pic::end(0);
}

unsafe fn nothing(_: &mut Frame) {}

unsafe fn counts_down() -> Outcome {
    pit::periodic(0);
    let first = pit::counter();
    let moved = cpu::wait_until(|| pit::counter() != first);
    let second = pit::counter();
    check(moved, "the counter stands still")?;
    check(first.wrapping_sub(second) < 0x8000, "the counter counts up")
}

unsafe fn channel_2() -> Outcome {
    pit::start_channel2(5 * pit::MILLISECOND);
    check(!pit::channel2_output(), "the output is high before the count ran out")?;
    let start = cpu::rdtsc();
    check(cpu::wait_until(|| pit::channel2_output()), "the output stays low")?;
    check(cpu::rdtsc().wrapping_sub(start) > 1000, "the count ran out at once")
}

unsafe fn periodic_ticks() -> Outcome {
    on(TICK, end_tick);
    pit::periodic(pit::MILLISECOND);
    pic::set_mask(0xfffa);
    let came = cpu::wait_until(|| count(TICK) >= 5);
    pic::set_mask(0xfffb);
    pit::stop();
    cpu::breathe();
    check(came, "fewer than five ticks")
}

unsafe fn fires_once() -> Outcome {
    // Starting PIC and PIT anew forgets an edge of the test before.
    pic::initialize();
    on(TICK, end_tick);
    pit::one_shot(pit::MILLISECOND);
    pic::set_mask(0xfffa);
    let came = cpu::wait_until(|| count(TICK) != 0);
    for _ in 0..3 {
        pit::delay(1);
        cpu::breathe();
    }
    pic::set_mask(0xfffb);
    check(came, "no interrupt")?;
    same("interrupts", count(TICK), 1u64)
}

unsafe fn mask_reads_back() -> Outcome {
    for mask in [0xffff, 0x5afb, 0xfffb] {
        pic::set_mask(mask);
        same("mask", pic::mask(), mask)?;
    }
    Ok(())
}

unsafe fn masked_line_waits() -> Outcome {
    pic::initialize();
    on(TICK, end_tick);
    pit::one_shot(pit::MILLISECOND);
    pit::delay(3);
    cpu::breathe();
    same("interrupts while masked", count(TICK), 0u64)?;
    check(pic::requests() & 1 != 0, "the request register does not show it")?;
    pic::set_mask(0xfffa);
    let came = cpu::wait_until(|| count(TICK) != 0);
    pic::set_mask(0xfffb);
    check(came, "lost when unmasked")?;
    check(pic::requests() & 1 == 0, "still requested after acknowledgement")
}

unsafe fn holds_until_eoi() -> Outcome {
    pic::initialize();
    on(TICK, nothing);
    pit::one_shot(pit::MILLISECOND);
    pic::set_mask(0xfffa);
    check(cpu::wait_until(|| count(TICK) == 1), "no interrupt")?;
    same("in service", pic::in_service(), 1u8)?;
    pit::one_shot(pit::MILLISECOND);
    pit::delay(3);
    cpu::breathe();
    same("interrupts before EOI", count(TICK), 1u64)?;
    check(pic::requests() & 1 != 0, "second edge lost")?;
    pic::end_specific(0);
    let came = cpu::wait_until(|| count(TICK) == 2);
    pic::end(0);
    pic::set_mask(0xfffb);
    check(came, "EOI does not let the second one in")?;
    same("in service after EOI", pic::in_service(), 0u8)
}

/// Turns the UART's "transmitter empty" interrupt on or off: it asserts IRQ 4 at once, as a level.
pub(crate) unsafe fn serial_line(up: bool) {
    cpu::out8(0x3fc, 0x0b);
    cpu::out8(0x3f9, if up { 2 } else { 0 });
}

unsafe fn transmitter_is_empty() -> bool {
    cpu::wait_until(|| cpu::in8(0x3fd) & 0x60 == 0x60)
}

unsafe fn priority() -> Outcome {
    unsafe fn serve_serial(_: &mut Frame) {
        serial_line(false);
        pic::end(4);
    }
    pic::initialize();
    check(transmitter_is_empty(), "the UART stays busy")?;
    on(TICK, nothing);
    on(SERIAL, serve_serial);
    pit::one_shot(pit::MILLISECOND);
    pic::set_mask(0xffea);
    let came = cpu::wait_until(|| count(TICK) == 1);
    serial_line(true);
    cpu::breathe();
    let early = count(SERIAL);
    pic::end_specific(0);
    let late = cpu::wait_until(|| count(SERIAL) == 1);
    serial_line(false);
    pic::set_mask(0xfffb);
    off(SERIAL);
    check(came, "no tick")?;
    same("IRQ 4 during IRQ 0", early, 0u64)?;
    check(late, "IRQ 4 lost")
}

unsafe fn serial_interrupt() -> Outcome {
    static mut IDENTIFICATION: u8 = 0;
    unsafe fn serve(_: &mut Frame) {
        IDENTIFICATION = cpu::in8(0x3fa);
        serial_line(false);
        pic::end(4);
    }
    pic::initialize();
    check(transmitter_is_empty(), "the UART stays busy")?;
    on(SERIAL, serve);
    pic::set_mask(0xffeb);
    serial_line(true);
    let came = cpu::wait_until(|| count(SERIAL) != 0);
    serial_line(false);
    pic::set_mask(0xfffb);
    off(SERIAL);
    check(came, "no interrupt")?;
    same("interrupt identification", IDENTIFICATION & 0xf, 2u8)?;
    same("interrupts", count(SERIAL), 1u64)
}

unsafe fn serial_registers() -> Outcome {
    for value in [0x5a, 0xa5] {
        cpu::out8(0x3ff, value);
        same("scratch", cpu::in8(0x3ff), value)?;
    }
    let line = cpu::in8(0x3fb);
    cpu::out8(0x3fb, line | 0x80);
    let divisor = cpu::in8(0x3f8);
    cpu::out8(0x3fb, line);
    same("divisor", divisor, 1u8)?;
    same("line control", cpu::in8(0x3fb), line)
}
