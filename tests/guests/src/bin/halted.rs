//! Halts with interrupts off: nothing but an NMI could wake it.
#![no_std]
#![no_main]

use guests::{end, main, say};

unsafe fn run() -> ! {
    say!("halted: cli, hlt");
    end::halt()
}

main!(run);
