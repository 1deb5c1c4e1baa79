//! I/O APIC: edge, level with EOI, masks, NMI.

use crate::external::serial_line;
use guests::boot::bare_on;
use guests::interrupts::{Frame, count, off, on};
use guests::ioapic::{LEVEL, MASKED, NMI, REMOTE_IRR, entries, entry, mask_all, set_entry};
use guests::report::{Outcome, Tests, check, same};
use guests::{acpi, cpu, ioapic, lapic, pic, pit};

const VECTOR: u8 = 0x81;
const SERIAL_PIN: u32 = 4;

pub(crate) unsafe fn run(tests: &mut Tests) {
    lapic::enter_xapic();
    pit::stop();
    tests.run("ioapic-registers", registers);
    tests.run("ioapic-edge", edge);
    tests.run("ioapic-masked-line-stays-quiet", masked);
    // Bochs has no remote IRR and no second interrupt after EOI.
    if !bare_on("bochs") {
        tests.run("ioapic-level-waits-for-eoi", level);
    }
    tests.run("ioapic-logical-destination", logical);
    tests.run("ioapic-nmi-wakes-hlt", nmi);
    serial_line(false);
    pit::stop();
    mask_all();
}

unsafe fn destination() -> u64 {
    u64::from(lapic::id()) << 56
}

unsafe fn end_local(_: &mut Frame) {
    lapic::end();
}

unsafe fn nothing(_: &mut Frame) {}

unsafe fn registers() -> Outcome {
    check(entries() >= 24, "fewer than 24 redirection entries")?;
    check((0x10..=0x30).contains(&(ioapic::read(ioapic::VERSION) & 0xff)), "version")?;
    let written = 0x0f00_0000_0001_0081;
    set_entry(5, written);
    let found = entry(5);
    set_entry(5, MASKED);
    same("redirection entry", found, written)
}

unsafe fn pulse() {
    pit::one_shot(pit::MILLISECOND);
    for _ in 0..3 {
        pit::delay(1);
        cpu::breathe();
    }
}

unsafe fn edge() -> Outcome {
    let pin = acpi::pin_of(0);
    on(VECTOR, end_local);
    set_entry(pin, destination() | u64::from(VECTOR));
    pulse();
    let first = count(VECTOR);
    pulse();
    set_entry(pin, MASKED);
    same("interrupts after one edge", first, 1u64)?;
    same("interrupts after two edges", count(VECTOR), 2u64)
}

unsafe fn masked() -> Outcome {
    let pin = acpi::pin_of(0);
    on(VECTOR, end_local);
    set_entry(pin, destination() | MASKED | u64::from(VECTOR));
    pulse();
    same("interrupts", count(VECTOR), 0u64)
}

unsafe fn logical() -> Outcome {
    let pin = acpi::pin_of(0);
    on(VECTOR, end_local);
    set_entry(pin, 1 << 56 | 1 << 11 | u64::from(VECTOR));
    pulse();
    let mine = count(VECTOR);
    set_entry(pin, 2 << 56 | 1 << 11 | u64::from(VECTOR));
    pulse();
    set_entry(pin, MASKED);
    same("interrupts for this processor", mine, 1u64)?;
    same("interrupts for nobody", count(VECTOR), 1u64)
}

unsafe fn level() -> Outcome {
    on(VECTOR, nothing);
    check(cpu::wait_until(|| cpu::in8(0x3fd) & 0x60 == 0x60), "the UART stays busy")?;
    set_entry(SERIAL_PIN, destination() | LEVEL | u64::from(VECTOR));
    serial_line(true);
    let came = cpu::wait_until(|| count(VECTOR) == 1);
    let held = entry(SERIAL_PIN) & REMOTE_IRR != 0;
    let trigger = lapic::bit(0x180, VECTOR);
    cpu::breathe();
    let before = count(VECTOR);
    lapic::end();
    let again = cpu::wait_until(|| count(VECTOR) == 2);
    serial_line(false);
    lapic::end();
    cpu::breathe();
    let after = count(VECTOR);
    let free = entry(SERIAL_PIN) & REMOTE_IRR == 0;
    set_entry(SERIAL_PIN, MASKED);
    off(VECTOR);
    check(came, "no interrupt")?;
    check(held, "remote IRR is clear during service")?;
    check(trigger, "the trigger mode register says edge")?;
    same("interrupts before EOI", before, 1u64)?;
    check(again, "EOI with the line up brings no second interrupt")?;
    same("interrupts after the line fell", after, 2u64)?;
    check(free, "remote IRR is set after EOI with the line down")
}

unsafe fn nmi() -> Outcome {
    let pin = acpi::pin_of(0);
    on(2, nothing);
    pic::set_mask(0xffff);
    set_entry(pin, destination() | NMI);
    cpu::rdtsc();
    // Bochs keeps an edge that found no receiver, and delivers it now.
    let before = if bare_on("bochs") { count(2) } else { 0 };
    pit::one_shot(pit::MILLISECOND);
    core::arch::asm!("cli", "hlt", options(nostack));
    let woken = count(2);
    set_entry(pin, MASKED);
    off(2);
    same("NMIs", woken - before, 1u64)
}
