//! An appliance for people who profile: a Linux guest with the PMU, and on the hypervisor's log what its use of it cost.
//!
//! Boot module 0 is the kernel, module 1 its initial RAM disk. `pmu=` on the image's own command line says what the guest
//! gets of the PMU: `passthrough` (the default), `filtered`, either with interrupts that reach the guest without an exit
//! (`direct`, `filtered-direct`), `emulated`, `paravirtual` (both kinds of events) or `none`:
//! `memory=512M pmu=filtered -- console=ttyS0`.
#![no_std]
#![no_main]

use libhv::pmu::registers::{Maker, PmuRegister};
use libhv::pmu::{ConstFilter, Emulated, EventFilter, FilteredBy, Paravirtual, Passthrough, PmuPolicy};
use libhv::prelude::*;

libhv::entry!(main);

/// All events but those that tell of other cores' accesses to memory.
struct NoOffCore;

impl ConstFilter for NoOffCore {
    const FILTER: EventFilter<'static> = EventFilter::NO_OFF_CORE;
}

/// Counts the exits that the guest's PMU causes, and tells when the guest has ended.
#[derive(Default)]
struct View {
    reads: u64,
    writes: u64,
    rdpmc: u64,
}

impl Appliance for View {
    fn on_exit(&mut self, exit: &Exit, _: &mut impl GuestState) -> Resolution {
        match exit {
            Exit::Rdmsr(msr) if PmuRegister::of(*msr, Maker::Intel).is_some() => self.reads += 1,
            Exit::Wrmsr(msr, _) if PmuRegister::of(*msr, Maker::Intel).is_some() => self.writes += 1,
            Exit::Rdpmc(_) => self.rdpmc += 1,
            _ => {}
        }
        Resolution::NotMine
    }
}

impl Drop for View {
    fn drop(&mut self) {
        let Self { reads, writes, rdpmc } = self;
        libhv::log!("pmu exits rdmsr {reads}, wrmsr {writes}, rdpmc {rdpmc}");
    }
}

fn main(machine: Machine) -> Result<StopReason> {
    let guest = Guest::from_modules(&machine)?.expect_linux()?;
    let hypervisor = Hypervisor::new().appliance(View::default());
    let mut words = machine.command_line().split(" -- ").next().unwrap_or("").split(' ');
    match words.find_map(|word| word.strip_prefix("pmu=")).unwrap_or("passthrough") {
        "none" => hypervisor.launch(machine, guest),
        "filtered" => hypervisor.pmu(FilteredBy::<NoOffCore>::new()).launch(machine, guest),
        "direct" => hypervisor.pmu(Passthrough::new().direct_interrupts()).launch(machine, guest),
        "filtered-direct" => hypervisor.pmu(FilteredBy::<NoOffCore>::new().direct_interrupts()).launch(machine, guest),
        "emulated" => hypervisor.pmu(Emulated::new()).launch(machine, guest),
        "paravirtual" => hypervisor.pmu(Paravirtual::on(Passthrough::new())).launch(machine, guest),
        _ => hypervisor.pmu(Passthrough::new()).launch(machine, guest),
    }
}
