//! The ways a guest ends the machine.

use crate::cpu::{out8, out32};
use crate::{acpi, serial};
use core::arch::asm;

/// Ends through the isa-debug-exit device at port F4H: the emulator's status becomes `value << 1 | 1`. On a machine
/// without it powers off for 0, and for anything else asks Bochs to shut down.
pub unsafe fn debug_exit(value: u32) -> ! {
    serial::drain();
    out32(0xf4, value);
    if value == 0 {
        acpi::power_off();
    }
    for letter in b"Shutdown" {
        out8(0x8900, *letter);
    }
    halt()
}

/// Halts with interrupts off, for ever.
pub unsafe fn halt() -> ! {
    loop {
        asm!("cli", "hlt", options(nomem, nostack));
    }
}
