//! Asks for a reset: `by=cf9` through the reset control register, `by=keyboard` through the keyboard controller (the
//! default), `by=fast` through port 92H.
#![no_std]
#![no_main]

use guests::cpu::{in8, out8};
use guests::{boot, end, main, say};

unsafe fn run() -> ! {
    say!("reset: {}", boot::command_line());
    if boot::has_word("by=cf9") {
        out8(0xcf9, 2);
        out8(0xcf9, 6);
    } else if boot::has_word("by=fast") {
        out8(0x92, in8(0x92) | 1);
    } else {
        out8(0x64, 0xfe);
    }
    for _ in 0..1_000_000 {
        core::hint::spin_loop();
    }
    say!("libhv: fail reset: still running");
    end::debug_exit(1)
}

main!(run);
