//! A test image: the host counts, samples and watches itself with the processor's counters, and its guest has no PMU.
#![no_std]
#![no_main]

use libhv::pmu::PmuPolicy;
use libhv::pmu::host::{HostCounters, HostEvent};
use libhv::prelude::*;

libhv::entry!(main);

fn main(machine: Machine) -> Result<StopReason> {
    let guest = Guest::from_modules(&machine)?;
    let host = HostCounters::new().count(HostEvent::Cycles).sample(HostEvent::Cycles, 200_000).watchdog(50_000_000);
    Hypervisor::new().pmu(().beside(host)).launch(machine, guest)
}
