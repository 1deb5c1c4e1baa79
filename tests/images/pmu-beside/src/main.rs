//! A test image: the host counts beside the guest `beside`, and looks whether it counts itself alone.
//!
//! Words of the image's own command line: `pmu=`, what the guest gets (`passthrough`, `filtered`, `emulated`, `four`
//! counters, `emulated-four`, `none`, or `counted`: none, and the host counts it); `period=`, instructions of the host
//! between its samples; `late`: interrupts come late, or when the guest has been entered.
#![no_std]
#![no_main]

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use libhv::platform::{host_count, layout};
use libhv::pmu::host::{HostCounters, HostEvent, Post, Sample};
use libhv::pmu::{
    Emulated, EventFilter, EventSelector, Filtered, Means, Passthrough, PmuCapability, PmuPolicy, PmuShare,
};
use libhv::prelude::*;

libhv::entry!(main);

/// INST_RETIRED.ANY_P at all privilege levels.
const INSTRUCTIONS: EventSelector = EventSelector(0xC0 | 0b11 << 16);
/// Where the guest says what it is about to do, and has done.
const MARKS: u16 = 0x5B0;

/// Samples with an address of the host's, with one of the guest's, without any, and with one that is neither's.
static SAMPLES: [AtomicU64; 4] = [const { AtomicU64::new(0) }; 4];

fn sampled(sample: &Sample) {
    let which = match sample.rip {
        Some(_) if sample.guest => 1,
        Some(rip) if rip >= layout::IMAGE && rip.abs_diff(main as *const () as u64) < 16 << 20 => 0,
        Some(_) => 3,
        None => 2,
    };
    SAMPLES[which].fetch_add(1, Relaxed);
}

/// Four counters, and no fixed-function ones.
struct Four;
impl PmuPolicy for Four {
    const MEANS: Means = Means::Passed;
    const FILTERS: bool = false;
    fn share(&self, host: &PmuCapability) -> PmuShare {
        PmuShare { counters: 4, fixed: 0, ..PmuShare::all(host) }
    }
}

/// What the host counts from one mark of the guest's to the next: two stretches with the same exits, of which the second is
/// longer by as many instructions of the guest's as it says at the end.
struct Marks {
    began: u64,
    lengths: [u64; 2],
    counts_guest: bool,
    exact: bool,
}

impl Appliance for Marks {
    fn on_exit(&mut self, exit: &Exit, guest: &mut impl GuestState) -> Resolution {
        let Exit::PortIo(access) = exit else { return Resolution::NotMine };
        if access.port != MARKS || access.input {
            return Resolution::NotMine;
        }
        let now = host_count(0).unwrap_or(0);
        match guest.gpr(Gpr::Rax) as u32 {
            0 => self.began = now,
            mark @ (1 | 2) => {
                // The least: now and then a device has its time.
                let length = &mut self.lengths[mark as usize - 1];
                *length = (*length).min(now - self.began);
            }
            _ => self.compare(guest.gpr(Gpr::Rcx)),
        }
        Resolution::Complete
    }
}

impl Marks {
    fn compare(&self, longer: u64) {
        let [short, long] = self.lengths;
        libhv::log!(
            "the host counted {short} instructions in one stretch, {long} in one with {longer} more of the guest's"
        );
        let wanted = if self.counts_guest { longer } else { 0 };
        // Samples are instructions too.
        if self.exact && (short == 0 || long.wrapping_sub(short) != wanted) {
            libhv::log!("fail pmu-beside: the host does not count what it is to");
        }
    }
}

fn main(machine: Machine) -> Result<StopReason> {
    let words = || machine.command_line().split(" -- ").next().unwrap_or("").split(' ');
    let period = words().find_map(|word| word.strip_prefix("period=")).and_then(|period| period.parse().ok());
    let late = words().any(|word| word == "late");
    let events = || {
        let events = HostCounters::new().count(HostEvent::Fixed(0)).on_sample(sampled);
        match period {
            Some(period) => events.sample(HostEvent::Selector(INSTRUCTIONS), period).watchdog(1 << 40),
            None => events.count(HostEvent::Selector(INSTRUCTIONS)),
        }
    };
    let filter = || Filtered::new(&EventFilter::NO_OFF_CORE).expect("a filter of the library's own");
    let exact = period.is_none();
    let outcome = match words().find_map(|word| word.strip_prefix("pmu=")).unwrap_or("passthrough") {
        "filtered" => launch(filter().beside(events()), exact, machine),
        "emulated" => launch(Emulated::new().beside(events()), exact, machine),
        "four" => launch(Four.beside(events()), exact, machine),
        "emulated-four" => launch(Emulated::of(Four).beside(events()), exact, machine),
        "none" => launch(().beside(events()), exact, machine),
        "counted" => launch(().beside(events().counting_guest()), exact, machine),
        _ => launch(Passthrough::new().beside(events()), exact, machine),
    };
    if let Some(period) = period {
        samples(period, late);
    }
    outcome
}

fn launch<P: PmuPolicy>(policy: P, exact: bool, machine: Machine) -> Result<StopReason> {
    let guest = Guest::from_modules(&machine)?;
    let marks = Marks { began: 0, lengths: [u64::MAX; 2], counts_guest: P::HOST_COUNTS_GUEST, exact };
    Hypervisor::new().appliance(marks).pmu(policy).launch(machine, guest)
}

/// Each period was one sample, and each sample has the host's address unless its interrupt came late.
fn samples(period: u64, late: bool) {
    let Some(post) = Post::published() else { return };
    let [host, guest, unknown, wild] = SAMPLES.each_ref().map(|number| number.load(Relaxed));
    libhv::log!("samples in the host {host}, in the guest {guest}, somewhere {unknown}, nowhere {wild}");
    let (value, taken) = (post.value(1), post.samples(1));
    if taken == 0 || taken != value / period || host + guest + unknown + wild + post.lost() != taken {
        libhv::log!("fail pmu-beside: {taken} samples of {value} instructions");
    }
    if wild != 0 || host < 500 || guest != 0 || unknown != 0 && !late {
        libhv::log!("fail pmu-beside: samples are elsewhere than in the host");
    }
    if post.strange() != 0 {
        libhv::log!("fail pmu-beside: an NMI that is nobody's");
    }
}
