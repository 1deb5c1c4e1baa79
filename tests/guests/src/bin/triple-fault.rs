//! Takes an exception with an IDT of limit 0: shutdown.
#![no_std]
#![no_main]

use core::arch::asm;
use guests::{end, interrupts, main, say};

unsafe fn run() -> ! {
    say!("triple-fault: ud2 without an IDT");
    interrupts::load_idt(0);
    asm!("ud2", options(nostack));
    say!("libhv: fail triple-fault: still running");
    end::debug_exit(1)
}

main!(run);
