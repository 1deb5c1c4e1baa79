//! An appliance that runs a Linux kernel: boot module 0 is the kernel, module 1 its initial RAM disk.
//!
//! The image's command line says how much memory the guest has and what its kernel is told:
//! `memory=256M -- console=ttyS0`.
#![no_std]
#![no_main]

use libhv::prelude::*;

libhv::entry!(main);

fn main(machine: Machine) -> Result<StopReason> {
    let guest = Guest::from_modules(&machine)?.expect_linux()?;
    Hypervisor::new().launch(machine, guest)
}
