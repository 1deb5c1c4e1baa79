//! A test image for a guest that is hostile to the PMU: a host counts beside it, and looks at each exit whether its counters
//! are what they must be. `pmu=` on the image's own command line names the policy and how the host counts.
//!
//! Before the guest begins, values of the host's stand in all counters and selectors; while it runs, they stand in the
//! host's own. The guest looks for them.
#![no_std]
#![no_main]
#![expect(unsafe_code, reason = "reads the host's counters, and writes what the guest must not see")]

mod warden;

use libhv::pmu::host::{HostCounters, HostEvent};
use libhv::pmu::{
    Emulated, EventFilter, EventSelector, Filtered, FixedControl, MaskedEvent, Means, Paravirtual, Passthrough,
    PmuCapability, PmuPolicy, PmuShare,
};
use libhv::prelude::*;
use warden::{SECRET, SECRET_PERIOD, Warden, Watched};

libhv::entry!(main);

/// No branches but the conditional ones, no reference cycles, neither fixed-function counter 1 nor 2.
const DENY: EventFilter<'static> = EventFilter::deny(&[
    MaskedEvent::any(0xC4),
    MaskedEvent::exact(0xC4, 0x11).excepted(),
    MaskedEvent::exact(0x3C, 1),
])
.fixed(0b0110);
/// Conditional branches, core cycles, the last level's references and misses, and fixed-function counter 1.
const ALLOW: EventFilter<'static> = EventFilter::allow(&[
    MaskedEvent::exact(0xC4, 0x11),
    MaskedEvent::exact(0x3C, 0),
    MaskedEvent::masked(0x2E, 0x41, 0xF1),
])
.fixed(0b0010);

fn filter(filter: &EventFilter<'_>) -> Filtered {
    Filtered::new(filter).expect("a filter of this image's own")
}

/// A policy with fewer counters: the host has the others.
struct Fewer<P> {
    policy: P,
    counters: u8,
    fixed: u8,
}

impl<P: PmuPolicy> PmuPolicy for Fewer<P> {
    const MEANS: Means = P::MEANS;
    const FILTERS: bool = P::FILTERS;

    fn share(&self, host: &PmuCapability) -> PmuShare {
        PmuShare { counters: self.counters, fixed: self.fixed, ..self.policy.share(host) }
    }
    fn permits(&self, selector: EventSelector, host: &PmuCapability) -> bool {
        self.policy.permits(selector, host)
    }
    fn permits_fixed(&self, counter: u8, control: FixedControl) -> bool {
        self.policy.permits_fixed(counter, control)
    }
}

const INSTRUCTIONS: HostEvent = HostEvent::Selector(EventSelector(0xC0 | 0b11 << 16));
/// Counters by their number for RDPMC.
const FIXED: u32 = 1 << 30;
/// Instructions from one sample of the host's to the next.
const PERIOD: u64 = 100_003;

/// Instructions thrice, the first time as `first` has them, and one value that is known by its looks.
fn thrice(first: HostCounters, period: Option<u64>, nobodys: &'static [(u32, u32)]) -> (HostCounters, Warden) {
    let host = first.count(INSTRUCTIONS).count(HostEvent::Fixed(0)).sample(HostEvent::Cycles, SECRET_PERIOD);
    let watched = Watched { instructions: &[(7, 0), (6, 1), (FIXED, 2)], secret: Some(5), period, nobodys };
    (host, Warden::new(watched))
}

/// In the guest's own counters.
fn exchanging() -> (HostCounters, Warden) {
    thrice(HostCounters::new().count(INSTRUCTIONS), None, &[])
}

/// The same, with samples; a guest that has fewer counters leaves some to nobody.
fn sampling(nobodys: &'static [(u32, u32)]) -> (HostCounters, Warden) {
    thrice(HostCounters::new().sample(INSTRUCTIONS, PERIOD), Some(PERIOD), nobodys)
}

/// Beside a guest with six counters and the fixed-function ones 0 and 3.
fn apart() -> (HostCounters, Warden) {
    let host = HostCounters::new().count(INSTRUCTIONS).count(INSTRUCTIONS);
    let nobodys = &[(FIXED | 1, 0x30A), (FIXED | 2, 0x30B)];
    let watched = Watched { instructions: &[(7, 0), (6, 1)], secret: None, period: None, nobodys };
    (host, Warden::new(watched))
}

/// What neither a guest with four counters and no fixed-function ones has, nor a host that samples.
const NOBODYS: &[(u32, u32)] = &[(4, 0x4C5), (FIXED | 1, 0x30A), (FIXED | 2, 0x30B), (FIXED | 3, 0x30C)];

/// Leaves values in all counters and selectors, as firmware may.
fn leave_values_behind() {
    const A_PMC: u32 = 0x4C1;
    const SELECTOR: u32 = 0x186;
    const FIXED_CTR: u32 = 0x309;
    for n in 0..8 {
        warden::write(A_PMC + n, SECRET | 0x1000 | u64::from(n));
        warden::write(SELECTOR + n, 0xDEAD);
    }
    for n in 0..4 {
        warden::write(FIXED_CTR + n, SECRET | 0x2000 | u64::from(n));
    }
}

fn main(machine: Machine) -> Result<StopReason> {
    let guest = Guest::from_modules(&machine)?;
    let mut words = machine.command_line().split(" -- ").next().unwrap_or("").split(' ');
    let wanted = words.find_map(|word| word.strip_prefix("pmu=")).unwrap_or("");
    leave_values_behind();
    macro_rules! launch {
        ($policy:expr, $host:expr) => {{
            let (host, warden) = $host;
            Hypervisor::new().appliance(warden).pmu($policy.beside(host)).launch(machine, guest)
        }};
    }
    match wanted {
        "deny" => launch!(filter(&DENY), exchanging()),
        "allow-apart" => launch!(Fewer { policy: filter(&ALLOW), counters: 6, fixed: 0b1001 }, apart()),
        "deny-apart" => launch!(Fewer { policy: filter(&DENY), counters: 4, fixed: 0 }, sampling(NOBODYS)),
        "all" => launch!(Passthrough::new(), sampling(&[])),
        "all-apart" => launch!(Fewer { policy: Passthrough::new(), counters: 6, fixed: 0b1001 }, apart()),
        "paravirtual" => launch!(Paravirtual::on(filter(&ALLOW)), sampling(&[])),
        // Nobody counts beside these.
        "deny-alone" => Hypervisor::new().pmu(filter(&DENY)).launch(machine, guest),
        "emulated" => Hypervisor::new().pmu(Emulated::of(filter(&ALLOW))).launch(machine, guest),
        _ => Err(Error::MissingModule { index: 1, role: "policy" }),
    }
}
