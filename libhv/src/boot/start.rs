//! The order in which the platform comes up: from the entry code's call to the appliance's `main`.
#![expect(unsafe_code, reason = "calls the appliance, whose function is found by the linker")]

use crate::platform::{Machine, runtime, serial};

unsafe extern "Rust" {
    /// What `libhv::entry!` defines.
    safe fn libhv_main(machine: Machine) -> crate::Result<crate::exit::StopReason>;
}

/// Continues in Rust, on the boot stack, with the boot code's mappings.
pub(super) extern "C" fn start(_magic: u32, _information: u32, entry_tsc: u64) -> ! {
    serial::start();
    runtime::end(libhv_main(Machine::new(entry_tsc)))
}
