//! Asks the processor for what the manuals promise: CPUID, MSRs, control registers, modes, paging, exceptions, single-step.
//!
//! Command line: `bare` without a hypervisor, with `qemu` or `bochs` for what those leave out; `only=TEXT`.
#![no_std]
#![no_main]

mod control;
mod cpuid;
mod debug;
mod events;
mod modes;
mod msr;
mod paging;
mod user;

use guests::main;
use guests::report::Tests;

unsafe fn run() -> ! {
    let mut tests = Tests::new();
    cpuid::run(&mut tests);
    msr::run(&mut tests);
    control::run(&mut tests);
    debug::run(&mut tests);
    events::run(&mut tests);
    paging::run(&mut tests);
    user::run(&mut tests);
    modes::run(&mut tests);
    tests.finish()
}

main!(run);
