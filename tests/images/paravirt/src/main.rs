//! A test image: its first boot module is the guest, which has paravirtual events and no PMU.
#![no_std]
#![no_main]

use libhv::pmu::Paravirtual;
use libhv::prelude::*;

libhv::entry!(main);

fn main(machine: Machine) -> Result<StopReason> {
    let guest = Guest::from_modules(&machine)?;
    Hypervisor::new().pmu(Paravirtual::on(())).launch(machine, guest)
}
