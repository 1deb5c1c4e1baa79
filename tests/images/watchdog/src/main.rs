//! A test image: a watchdog looks after a host that works, waits or hangs as its guest asks.
//!
//! The image's own command line says which (`watch=tick`, `watch=counters`, `watch=both`), after how many milliseconds
//! (`patience=150`), that the guest has the PMU (`pmu`), and that a bark is told to a function of the image's (`told`),
//! which lets the host go on.
#![no_std]
#![no_main]

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use libhv::hw::{Host, bare};
use libhv::platform::{interrupts, nmi};
use libhv::pmu::host::HostCounters;
use libhv::pmu::{Passthrough, PmuPolicy};
use libhv::prelude::*;
use libhv::vcpu::cpuid::{CpuidSource, HostCpuid};
use libhv::watchdog::{Bark, pet};

libhv::entry!(main);

/// What the guest asks for, by leaves of CPUID: how long the patience is, in ticks of the time-stamp counter.
const PATIENCE: u32 = 0x4000_4700;
/// The host works for longer than the patience, and says so.
const WORK: u32 = 0x4000_4701;
/// The host hangs.
const HANG: u32 = 0x4000_4702;
/// It hangs when the guest leaves for an NMI.
const HANG_AT_NMI: u32 = 0x4000_4703;

/// Periods of the interval timer's clock from one tick to the next, and in a second.
const TICK: u64 = 0x1_0000;
const HZ: u64 = 1_193_182;

static EXITS_FOR_NMI: AtomicU64 = AtomicU64::new(0);
static FIRST_EXIT: AtomicU64 = AtomicU64::new(0);
static RELEASED: AtomicBool = AtomicBool::new(false);

struct Busy {
    patience: u64,
    hangs_at_nmi: bool,
}

/// Loops where it is known to loop, without PAUSE: QEMU leaves its own loop for each, and its time hardly moves.
#[inline(never)]
extern "C" fn hang() {
    while !RELEASED.load(Relaxed) {}
}

fn told(bark: &Bark) {
    let start = hang as *const () as u64;
    let there = bark.rip.is_some_and(|rip| (start..start + 32).contains(&rip));
    libhv::log!("told that {bark}: {}", if there { "it hangs there" } else { "it is elsewhere" });
    RELEASED.store(true, Relaxed);
}

impl Busy {
    fn work(&self) {
        let start = bare::read_tsc();
        let mut petted = 0;
        loop {
            let passed = bare::read_tsc().since(start);
            if passed > self.patience * 2 {
                return;
            }
            if passed / (self.patience / 8) != petted {
                petted = passed / (self.patience / 8);
                pet();
            }
        }
    }
}

impl Appliance for Busy {
    fn on_exit(&mut self, exit: &Exit, guest: &mut impl GuestState) -> Resolution {
        if FIRST_EXIT.load(Relaxed) == 0 {
            FIRST_EXIT.store(bare::read_tsc().0, Relaxed);
        }
        match *exit {
            Exit::Cpuid { leaf: PATIENCE, .. } => {
                guest.set_gpr(Gpr::Rax, self.patience & 0xFFFF_FFFF);
                guest.set_gpr(Gpr::Rdx, self.patience >> 32);
                return Resolution::Complete;
            }
            Exit::Cpuid { leaf: WORK, .. } => self.work(),
            Exit::Cpuid { leaf: HANG, .. } => hang(),
            Exit::Cpuid { leaf: HANG_AT_NMI, .. } => self.hangs_at_nmi = true,
            Exit::Nmi => {
                EXITS_FOR_NMI.fetch_add(1, Relaxed);
                if self.hangs_at_nmi {
                    hang();
                }
            }
            _ => {}
        }
        Resolution::NotMine
    }
}

/// Compares the NMIs that came with the time that passed since the first exit, and looks whether any comes after the guest
/// has ended, in the time of three ticks.
fn count(hz: u64, outcome: Result<StopReason>) -> Result<StopReason> {
    let passed = bare::read_tsc().0.wrapping_sub(FIRST_EXIT.load(Relaxed));
    let (left, taken) = (EXITS_FOR_NMI.load(Relaxed), interrupts::counts().nmi);
    let is_amd = HostCpuid.cpuid(0, 0)[1] == u32::from_le_bytes(*b"Auth");
    // On SVM the host takes the NMI for which the guest has left.
    let ticks = if is_amd { taken } else { left + taken };
    let expected = (u128::from(passed) * u128::from(HZ) / u128::from(TICK) / u128::from(hz)) as u64;
    let verdict = if (expected / 2..=expected + expected / 8 + 4).contains(&ticks) { "as many" } else { "not as many" };
    libhv::log!("{left} exits for NMIs, {taken} NMIs in the host: {verdict} as ticks, of which there were {expected}");
    let ended = bare::read_tsc();
    while bare::read_tsc().since(ended) < hz / 6 {}
    let later = interrupts::counts().nmi - taken;
    libhv::log!("{later} NMIs after the end, and {:?} has them", nmi::user());
    outcome
}

fn main(mut machine: Machine) -> Result<StopReason> {
    let guest = Guest::from_modules(&machine)?;
    let words = machine.command_line().split(" -- ").next().unwrap_or("");
    let value = |name| words.split(' ').find_map(|word| word.strip_prefix(name));
    let milliseconds = value("patience=").and_then(|text| text.parse().ok()).unwrap_or(150);
    let is_told = value("told").is_some();
    let hz = machine.processor().frequency().hz();
    let patience = hz / 1000 * milliseconds;

    let hypervisor = Hypervisor::new().appliance(Busy { patience, hangs_at_nmi: false });
    let counters = HostCounters::new().watchdog(patience);
    let counters = if is_told { counters.on_bark(told) } else { counters };
    let ticking = Watchdog::after(Duration::from_millis(milliseconds));
    let ticking = if is_told { ticking.on_bark(told) } else { ticking };
    let beside = ().beside(counters);
    match (value("watch="), value("pmu").is_some()) {
        (Some("tick"), true) => {
            let hypervisor = hypervisor.pmu(Passthrough::new()).watchdog(ticking);
            count(hz, hypervisor.launch(machine, guest))
        }
        (Some("tick"), false) => count(hz, hypervisor.watchdog(ticking).launch(machine, guest)),
        (Some("both"), _) => hypervisor.pmu(beside).watchdog(ticking).launch(machine, guest),
        (Some("counters"), _) => hypervisor.pmu(beside).launch(machine, guest),
        _ => hypervisor.launch(machine, guest),
    }
}
