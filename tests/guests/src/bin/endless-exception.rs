//! A #GP whose handler goes back to the instruction that raised it, for ever: the guest never gets anywhere, and only a time-out ends it.
#![no_std]
#![no_main]

use core::arch::asm;
use guests::interrupts::{self, Frame};
use guests::{faults, main, say};

unsafe fn run() -> ! {
    // The handler returns to the instruction that faulted.
    unsafe fn again(_: &mut Frame) {}
    say!("endless-exception: a load that faults again and again");
    interrupts::on(faults::GP, again);
    loop {
        asm!("mov rax, [rcx]", in("rcx") 1u64 << 63, out("rax") _);
    }
}

main!(run);
