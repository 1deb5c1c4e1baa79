//! Jumps to where there is no memory: `to=0xADDRESS` on the command line, or 2 GiB.
#![no_std]
#![no_main]

use core::arch::asm;
use guests::{boot, end, main, say};

unsafe fn run() -> ! {
    let to = boot::number("to").unwrap_or(0x8000_0000);
    say!("wild-jump: to {to:#x}");
    asm!("call {}", in(reg) to, clobber_abi("C"));
    say!("libhv: fail wild-jump: came back");
    end::debug_exit(1)
}

main!(run);
