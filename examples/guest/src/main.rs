//! An appliance that runs whatever image its first boot module is: Linux, Multiboot, PVH or flat code.
#![no_std]
#![no_main]

use libhv::prelude::*;

libhv::entry!(main);

fn main(machine: Machine) -> Result<StopReason> {
    let guest = Guest::from_modules(&machine)?;
    Hypervisor::new().launch(machine, guest)
}
