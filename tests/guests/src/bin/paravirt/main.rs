//! Uses paravirtual events as their specification (`libhv/src/pmu/paravirt/abi.md`) describes them: every call, every
//! refusal that a guest can provoke, and the page of counters, compared with what this guest knows it did.
#![no_std]
#![no_main]

mod abi;
mod cost;
mod errors;
mod events;
mod hardware;
mod notify;
mod page;

use guests::report::Tests;
use guests::{lapic, main};

unsafe fn run() -> ! {
    abi::prepare();
    let mut tests = Tests::new();
    errors::run(&mut tests);
    events::run(&mut tests);
    lapic::enter_x2apic();
    page::run(&mut tests);
    notify::run(&mut tests);
    hardware::run(&mut tests);
    cost::run(&mut tests);
    tests.finish()
}

main!(run);
