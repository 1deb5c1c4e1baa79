//! Ends through the debug-exit port with the value that `value=N` on the command line gives.
#![no_std]
#![no_main]

use guests::{boot, end, main, say};

unsafe fn run() -> ! {
    let value = boot::number("value").unwrap_or(0);
    say!("debug-exit: {value}, command line {:?}", boot::command_line());
    end::debug_exit(value as u32)
}

main!(run);
