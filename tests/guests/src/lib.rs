//! What the small guests share: boot code, serial output, a collector of results, caught faults, and the devices of a PC.
//!
//! # Safety
//! Every `unsafe fn` in here executes privileged instructions or touches memory by address. Each asks for the one same
//! thing of its caller: to be the only program on a machine that may be lost, in 64-bit mode at CPL 0 with the first
//! 4 GiB mapped one to one, as [`boot`] leaves it. A guest's `main` is called so, and every test is an `unsafe fn` below it.
#![no_std]

pub mod acpi;
pub mod boot;
pub mod cpu;
pub mod end;
pub mod faults;
pub mod interrupts;
pub mod ioapic;
pub mod lapic;
pub mod pic;
pub mod pit;
pub mod pmu;
pub mod random;
pub mod report;
pub mod serial;

/// Makes the given function the guest's `main`: it is called once by the boot code, with the whole machine its own.
#[macro_export]
macro_rules! main {
    ($function:path) => {
        #[unsafe(no_mangle)]
        unsafe extern "C" fn guest_main() -> ! {
            $function()
        }
    };
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    serial::print(format_args!("libhv: fail panic: {info}\n"));
    unsafe { end::debug_exit(0x3f) }
}
