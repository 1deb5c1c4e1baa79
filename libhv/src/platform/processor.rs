//! One logical processor: its control registers, descriptor table, stacks, and the timer that [`Host`] asks for.
#![expect(unsafe_code, reason = "sets up segments and control registers, and takes interrupts")]

use super::clock::Ratio;
use super::{apic, interrupts};
use crate::exit::Msr;
use crate::hw::{Host, PmiHost, PmiRoute, bare};
use crate::pmu::slot::PmuSlot;
use crate::time::{Frequency, Tsc};

/// IA32_TSC_DEADLINE (SDM Vol. 3A 12.5.4.1).
const IA32_TSC_DEADLINE: Msr = Msr(0x6E0);

// Halts until an interrupt has been served. NMIs are not held back by STI on every processor: the handler of one that comes
// before HLT knows by the label that it was about to halt.
core::arch::global_asm!(
    r#"
    .section .text.libhv_wait, "ax"
    .globl libhv_wait
    .globl libhv_wait_halts
libhv_wait:
    sti
libhv_wait_halts:
    hlt
    cli
    ret
    .text
    "#
);

unsafe extern "C" {
    fn libhv_wait();
    safe static libhv_wait_halts: u8;
}

/// Returns the address of the HLT in [`Host::wait`], which is one byte long.
pub(super) fn halts_at() -> u64 {
    &raw const libhv_wait_halts as u64
}

/// How the local APIC's timer is programmed.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Timer {
    /// With the value of the time-stamp counter at which it interrupts.
    Deadline,
    /// With counts down to 0.
    Count(Ratio),
}

/// The logical processor this runs on: clock, timer and interrupts of the bare machine.
#[derive(Debug)]
pub struct Processor {
    frequency: Frequency,
    timer: Timer,
    armed: Option<Tsc>,
    /// The timer's interrupts when it was armed: with another number now, it has gone off.
    armed_at: u64,
    /// The guest's counters' interrupts that have been taken note of.
    pmis: u64,
    /// The counters have been routed to the guest as NMIs.
    routes_nmis: bool,
    /// The guest's other NMIs that have been taken note of.
    nmis: u64,
    slot: PmuSlot,
}

impl Processor {
    pub(crate) fn new(frequency: Frequency, timer: Timer) -> Self {
        Self {
            frequency,
            timer,
            armed: None,
            armed_at: 0,
            pmis: 0,
            routes_nmis: false,
            nmis: 0,
            slot: PmuSlot::default(),
        }
    }
}

impl Host for Processor {
    #[inline]
    fn now(&self) -> Tsc {
        bare::read_tsc()
    }

    #[inline]
    fn frequency(&self) -> Frequency {
        self.frequency
    }

    /// Programs the local APIC's timer, unless it is already. Without a TSC deadline the interrupt comes up to a count
    /// of that timer late, and for a deadline farther away than it can count, early: then it is to be asked for again.
    #[inline]
    fn arm(&mut self, deadline: Option<Tsc>) {
        let timers = interrupts::timers();
        if deadline == self.armed && timers == self.armed_at {
            return;
        }
        (self.armed, self.armed_at) = (deadline, timers);
        match (self.timer, deadline) {
            // SAFETY: CPUID reported the deadline mode and the timer is in it; any value is legal, and 0 disarms.
            (Timer::Deadline, deadline) => unsafe {
                bare::write_msr(IA32_TSC_DEADLINE, deadline.map_or(0, |deadline| deadline.0.max(1)));
            },
            (Timer::Count(ratio), Some(deadline)) => apic::count_down(ratio.counts(deadline.since(bare::read_tsc()))),
            (Timer::Count(_), None) => apic::count_down(0),
        }
    }

    #[inline]
    fn serve_interrupts(&mut self, acknowledged: Option<u8>) {
        match acknowledged {
            Some(vector) => interrupts::serve(vector),
            // SAFETY: every vector that can come has a handler, which leaves all registers as they were. STI holds
            // interrupts back for one instruction, and they are taken after it, before CLI.
            None => unsafe { core::arch::asm!("sti", "nop", "cli") },
        }
    }

    fn wait(&mut self) {
        // SAFETY: as in `serve_interrupts`: with interrupts held back until HLT, none is taken before it and missed.
        unsafe { libhv_wait() }
    }
}

impl PmiHost for Processor {
    #[inline]
    fn route_pmi(&mut self, route: PmiRoute) {
        self.routes_nmis = route == PmiRoute::GuestNmi;
        interrupts::route_counters(route);
    }

    #[inline]
    fn take_guest_pmi(&mut self) -> bool {
        let pmis = interrupts::guest_pmis();
        core::mem::replace(&mut self.pmis, pmis) != pmis
    }

    #[inline]
    fn take_guest_nmi(&mut self) -> bool {
        let nmis = interrupts::guest_nmis();
        core::mem::replace(&mut self.nmis, nmis) != nmis
    }

    #[inline]
    fn guest_nmi_delivered(&self) -> bool {
        self.routes_nmis && apic::guest_nmi() == Some(true)
    }

    fn open_nmis(&mut self) {
        if self.routes_nmis {
            interrupts::while_opening(bare::unblock_nmis);
        }
    }

    fn pmu_slot(&mut self) -> &mut PmuSlot {
        &mut self.slot
    }
}
