//! Tries to break out: random registers, ports, device memory, page tables and instructions, a step at a time; every
//! exception ends its step, and an NMI ends a step that does not end.
//!
//! Command line: `seed=N`, `steps=N`; `bare` where there is no hypervisor, which leaves out ports that a real machine does
//! not forgive; `from=N` to say every step from N on before it is done.
//! Left out: what ends the machine (resets, power-off, INIT), stores into the guest's own image, and instructions without a
//! defined meaning on device memory, which a hypervisor may end its guest for.
#![no_std]
#![no_main]

mod devices;
mod registers;
mod sandbox;

use guests::interrupts::{self, Frame, on, set_stack};
use guests::random::Random;
use guests::{acpi, boot, cpu, end, faults, ioapic, lapic, main, pic, pit, say};

static mut STEP: u64 = 0;
static mut SEEN: u64 = u64::MAX;
static mut ABANDONED: u64 = 0;

/// Whether a step may have touched what the watchdog is made of: PIT, I/O APIC and local APIC.
pub(crate) static mut TOUCHED: bool = false;

/// Ends a step in which two NMIs came.
unsafe fn watchdog(frame: &mut Frame) {
    if SEEN == STEP && faults::caught(frame) {
        ABANDONED += 1;
    }
    SEEN = STEP;
}

/// Interrupts come where a step sets IF; nobody waits for them.
unsafe fn ignore(_: &mut Frame) {}

/// Has the PIT send an NMI through the I/O APIC every 5 ms or so.
unsafe fn wind_watchdog() {
    let pin = acpi::pin_of(0);
    ioapic::set_entry(pin, ioapic::MASKED);
    pit::periodic(6000);
    ioapic::set_entry(pin, u64::from(lapic::id()) << 56 | ioapic::NMI);
}

/// Puts back what steps may have changed and the guest itself needs.
unsafe fn mend() {
    faults::catch(|| cpu::write_dr7(0x400));
    faults::catch(|| cpu::write_dr7(0x400));
    pic::set_mask(0xffff);
    if cpu::rdmsr(lapic::BASE_MSR) & 0xc00 != 0x800 {
        faults::catch(|| lapic::enter_xapic());
    }
    wind_watchdog();
    TOUCHED = false;
}

unsafe fn run() -> ! {
    let seed = boot::number("seed").unwrap_or(1);
    let steps = boot::number("steps").unwrap_or(1_000_000);
    let from = boot::number("from").unwrap_or(u64::MAX);
    say!("hostile: seed {seed}, {steps} steps to go");
    for vector in 0..=255 {
        set_stack(vector, if vector == 2 || vector == 8 { 2 } else { 1 });
        if vector >= 32 {
            on(vector, ignore);
        }
    }
    on(2, watchdog);
    lapic::enter_xapic();
    sandbox::prepare();
    let mut random = Random::new(seed);
    let mut seen = 0u64;
    for step in 0..steps {
        STEP = step;
        let kind = random.below(100);
        if step % 128 == 0 {
            mend();
            sandbox::refill(&mut random);
        } else if TOUCHED && (65..=94).contains(&kind) {
            mend();
        }
        if step >= from {
            say!("hostile: step {step}, kind {kind}");
        }
        let fault = match kind {
            0..=14 => registers::read_msr(&mut random),
            15..=29 => registers::write_msr(&mut random),
            30..=34 => registers::control(&mut random),
            35..=36 => registers::descriptors(&mut random),
            37..=41 => registers::leaves(&mut random),
            42..=54 => devices::port(&mut random),
            55..=64 => devices::memory(&mut random),
            65..=84 => sandbox::user(&mut random),
            85..=94 => sandbox::kernel(&mut random),
            _ => sandbox::tables(&mut random),
        };
        seen += u64::from(fault.is_some());
        if (step + 1) % 100_000 == 0 {
            guests::serial::initialize();
            say!("hostile: at {}", step + 1);
        }
    }
    guests::serial::initialize();
    interrupts::reload();
    let (abandoned, nmis) = (ABANDONED, interrupts::count(2));
    say!("hostile: {steps} steps, {seen} faults");
    say!("hostile: {abandoned} steps ended by the watchdog, {nmis} NMIs");
    say!("libhv: pass hostile");
    end::debug_exit(0)
}

main!(run);
