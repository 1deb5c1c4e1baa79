//! A test image: any guest with the PMU, by the policy that `pmu=` on the image's own command line names.
#![no_std]
#![no_main]

use libhv::pmu::host::{HostCounters, HostEvent};
use libhv::pmu::{Emulated, EventFilter, Filtered, Passthrough, PmuPolicy};
use libhv::prelude::*;

libhv::entry!(main);

/// Denies what tells of other cores: none of it is what the guest `pmu` counts.
fn filter() -> Filtered {
    const DENIED: EventFilter<'static> = EventFilter::NO_OFF_CORE;
    Filtered::new(&DENIED).expect("a filter of the library's own")
}

fn host() -> HostCounters {
    HostCounters::new().count(HostEvent::Cycles).count(HostEvent::Fixed(0))
}

fn main(machine: Machine) -> Result<StopReason> {
    let guest = Guest::from_modules(&machine)?;
    let hypervisor = Hypervisor::new();
    let mut words = machine.command_line().split(" -- ").next().unwrap_or("").split(' ');
    match words.find_map(|word| word.strip_prefix("pmu=")) {
        Some("passthrough") => hypervisor.pmu(Passthrough::new()).launch(machine, guest),
        Some("filtered") => hypervisor.pmu(filter()).launch(machine, guest),
        Some("direct") => hypervisor.pmu(Passthrough::new().direct_interrupts()).launch(machine, guest),
        Some("filtered-direct") => hypervisor.pmu(filter().direct_interrupts()).launch(machine, guest),
        Some("emulated") => hypervisor.pmu(Emulated::new()).launch(machine, guest),
        Some("beside") => hypervisor.pmu(Passthrough::new().beside(host())).launch(machine, guest),
        _ => hypervisor.launch(machine, guest),
    }
}
