//! Asks the performance monitoring unit for what the manual promises, counter by counter and bit by bit, with exact counts.
//!
//! Command line: `bare` without a hypervisor; `only=TEXT`.
#![no_std]
#![no_main]

mod apic;
mod counting;
mod events;
mod interrupt;
mod registers;
mod unit;
mod user;
mod vmx;
mod world;

use guests::report::Tests;
use guests::{lapic, main, say};

unsafe fn run() -> ! {
    let mut tests = Tests::new();
    if guests::cpu::cpuid(0xa, 0)[0] & 0xff < 2 {
        say!("libhv: fail pmu: CPUID leaf 0AH knows no performance monitoring");
    }
    lapic::enter_xapic();
    registers::run(&mut tests);
    counting::run(&mut tests);
    events::run(&mut tests);
    interrupt::run(&mut tests);
    apic::run(&mut tests);
    user::run(&mut tests);
    world::run(&mut tests);
    tests.finish()
}

main!(run);
