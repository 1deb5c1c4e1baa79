//! Uses every interrupt source and device of a PC the way an operating system does, and powers off by ACPI.
//!
//! Command line: `bare` where there is no hypervisor, `bochs` or `qemu` where that machine is Bochs or QEMU, `only=TEXT` for the tests whose
//! name holds TEXT.
#![no_std]
#![no_main]

mod clock;
mod external;
mod ipi;
mod level;
mod mmio;
mod shadow;
mod timer;

use guests::report::Tests;
use guests::{acpi, boot, end, lapic, main, say};

unsafe fn run() -> ! {
    let mut tests = Tests::new();
    external::run(&mut tests);
    level::run(&mut tests);
    clock::run(&mut tests);
    shadow::run(&mut tests);
    mmio::run(&mut tests);
    tests.group("xapic-");
    lapic::enter_xapic();
    local(&mut tests);
    tests.group("x2apic-");
    if lapic::has_x2apic() || !boot::has_word("bare") {
        lapic::enter_x2apic();
        local(&mut tests);
        ipi::run_x2apic(&mut tests);
    } else {
        tests.skip("mode", "the processor has none");
    }
    if tests.failed() == 0 {
        tests.sum();
        say!("libhv: machine powers off");
        guests::serial::drain();
        acpi::power_off();
        say!("libhv: fail power-off: still running");
        end::debug_exit(1);
    }
    tests.finish()
}

unsafe fn local(tests: &mut Tests) {
    ipi::run(tests);
    timer::run(tests);
}

main!(run);
