//! A test image: its guest has counters that are emulated, by the processor's PMU or without one.
#![no_std]
#![no_main]

use libhv::pmu::Emulated;
use libhv::prelude::*;

libhv::entry!(main);

fn main(machine: Machine) -> Result<StopReason> {
    let guest = Guest::from_modules(&machine)?;
    Hypervisor::new().pmu(Emulated::new()).launch(machine, guest)
}
