//! The host's own interrupts: which vectors there are, what serving them does, and how often each came.
//!
//! The host runs with RFLAGS.IF = 0; interrupts are taken in [`Host::serve_interrupts`](crate::hw::Host) and
//! [`Host::wait`](crate::hw::Host) alone, so no code of the host is ever interrupted by one.

use super::{apic, input};
use crate::hw::PmiRoute;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Where the PICs are moved to before they are masked: 20H to 2FH. What still arrives there is spurious.
pub(crate) const PIC: u8 = 0x20;
/// The local APIC's timer.
pub(crate) const TIMER: u8 = 0x31;
/// A byte has arrived on COM1.
pub(crate) const CONSOLE: u8 = 0x32;
/// The performance counters, while they are a guest's (A22).
pub(crate) const GUEST_PMI: u8 = 0x33;
/// Tells the run loop that an NMI of the guest's has met the host.
pub(crate) const GUEST_NMI: u8 = 0x34;
/// The local APIC's spurious vector; older ones want its low four bits set (SDM Vol. 3A 12.9).
pub(crate) const SPURIOUS: u8 = 0x3F;

/// How often each interrupt has been served since the image started.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    /// The local APIC's timer.
    pub timer: u64,
    /// Bytes on the console line.
    pub console: u64,
    /// Non-maskable interrupts.
    pub nmi: u64,
    /// Those of them that came while the performance counters' interrupt was the host's: its counters may be the cause.
    pub host_pmi: u64,
    /// Interrupts of performance counters that are a guest's.
    pub guest_pmi: u64,
    /// Spurious ones, and those nobody asked for.
    pub other: u64,
}

static TIMERS: AtomicU64 = AtomicU64::new(0);
static CONSOLES: AtomicU64 = AtomicU64::new(0);
static NMIS: AtomicU64 = AtomicU64::new(0);
static HOST_PMIS: AtomicU64 = AtomicU64::new(0);
static GUEST_PMIS: AtomicU64 = AtomicU64::new(0);
static GUEST_NMIS: AtomicU64 = AtomicU64::new(0);
static OTHERS: AtomicU64 = AtomicU64::new(0);

/// The performance counters' interrupt is the host's. While it is not, an NMI has another cause, whatever overflows the
/// counters show: they are a guest's (A23).
static COUNTERS_ARE_THE_HOSTS: AtomicBool = AtomicBool::new(false);

/// Returns how often each interrupt has been served.
pub fn counts() -> Counts {
    Counts {
        timer: TIMERS.load(Ordering::Relaxed),
        console: CONSOLES.load(Ordering::Relaxed),
        nmi: NMIS.load(Ordering::Relaxed),
        host_pmi: HOST_PMIS.load(Ordering::Relaxed),
        guest_pmi: guest_pmis(),
        other: OTHERS.load(Ordering::Relaxed),
    }
}

/// Returns how often an NMI has interrupted the host.
#[inline]
pub(crate) fn nmis() -> u64 {
    NMIS.load(Ordering::Relaxed)
}

/// The host lets an NMI in that waited for the guest.
static OPENING: AtomicBool = AtomicBool::new(false);

/// Returns how often the timer has come.
#[inline]
pub(crate) fn timers() -> u64 {
    TIMERS.load(Ordering::Relaxed)
}

/// Returns how often performance counters that are a guest's have interrupted.
#[inline]
pub(crate) fn guest_pmis() -> u64 {
    GUEST_PMIS.load(Ordering::Relaxed)
}

/// Returns how often other NMIs of a guest's have met the host.
#[inline]
pub(crate) fn guest_nmis() -> u64 {
    GUEST_NMIS.load(Ordering::Relaxed)
}

/// Calls `open`, which unblocks NMIs: what the counters have delivered was delivered to the guest, whatever comes.
#[inline]
pub(crate) fn while_opening(open: impl FnOnce()) {
    OPENING.store(true, Ordering::SeqCst);
    open();
    OPENING.store(false, Ordering::SeqCst);
}

/// Sends the performance counters' interrupt where `route` says. The counters are the host's from before LVTPC says so
/// until after it says something else: no interrupt of its own is missed.
#[inline]
pub(crate) fn route_counters(route: PmiRoute) {
    let hosts = route == PmiRoute::Host;
    if hosts {
        COUNTERS_ARE_THE_HOSTS.store(true, Ordering::SeqCst);
    }
    apic::route_counters(route);
    if !hosts {
        COUNTERS_ARE_THE_HOSTS.store(false, Ordering::SeqCst);
    }
}

/// An NMI has interrupted the host. If the performance counters are to interrupt the guest without an exit it is the
/// guest's: it is taken note of, and the next entry ends at once. Returns whether it was.
///
/// Whether the counters were the cause is known by their entry, which they have masked, and which loses its mark then.
#[cfg_attr(not(target_os = "none"), expect(dead_code, reason = "the handler of NMIs calls it"))]
pub(super) fn take_guest_nmi() -> bool {
    let Some(delivered) = apic::guest_nmi().filter(|_| !COUNTERS_ARE_THE_HOSTS.load(Ordering::SeqCst)) else {
        return false;
    };
    if delivered && !OPENING.load(Ordering::SeqCst) {
        apic::route_counters(PmiRoute::Masked);
        GUEST_PMIS.fetch_add(1, Ordering::Relaxed);
    } else {
        GUEST_NMIS.fetch_add(1, Ordering::Relaxed);
    }
    wake();
    true
}

/// The handler of NMIs has found something for the guest: a host that is about to wait for an interrupt, or to enter the
/// guest, does neither for long.
pub(super) fn wake() {
    apic::interrupt_self(GUEST_NMI);
}

/// Serves the interrupt with `vector`, which the processor has acknowledged.
pub(crate) fn serve(vector: u8) {
    let count = match vector {
        // It has been counted when it came as an NMI.
        GUEST_NMI => return apic::end_of_interrupt(),
        TIMER => &TIMERS,
        CONSOLE => &CONSOLES,
        GUEST_PMI => &GUEST_PMIS,
        2 => &NMIS,
        _ => &OTHERS,
    };
    count.fetch_add(1, Ordering::Relaxed);
    if vector == 2 && COUNTERS_ARE_THE_HOSTS.load(Ordering::SeqCst) {
        HOST_PMIS.fetch_add(1, Ordering::Relaxed);
    }
    match vector {
        // Neither an NMI nor a spurious interrupt is in service in the local APIC.
        2 | SPURIOUS | PIC..=0x2F => {}
        TIMER | CONSOLE => {
            input::drain();
            apic::end_of_interrupt();
        }
        _ => apic::end_of_interrupt(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A22, A23: one test, for the counts are the process' own.
    #[test]
    fn a_counters_interrupt_is_the_guests_by_its_vector_and_the_hosts_by_its_route() {
        let since = |before: Counts| {
            let now = counts();
            (now.nmi - before.nmi, now.host_pmi - before.host_pmi, now.guest_pmi - before.guest_pmi)
        };
        let before = counts();
        route_counters(PmiRoute::Guest);
        serve(2);
        assert_eq!(since(before), (1, 0, 0), "an NMI while the counters are the guest's");
        serve(GUEST_PMI);
        assert_eq!(since(before), (1, 0, 1));
        route_counters(PmiRoute::Host);
        serve(2);
        assert_eq!(since(before), (2, 1, 1));
        // It comes late: the host has the counters again.
        serve(GUEST_PMI);
        assert_eq!(since(before), (2, 1, 2));
        route_counters(PmiRoute::Masked);
        serve(2);
        assert_eq!(since(before), (3, 1, 2));
    }
}
