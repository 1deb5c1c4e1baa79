//! The host's own interrupts: which vectors there are, what serving them does, and how often each came.
//!
//! The host runs with RFLAGS.IF = 0; interrupts are taken in [`Host::serve_interrupts`](crate::hw::Host) and
//! [`Host::wait`](crate::hw::Host) alone, so no code of the host is ever interrupted by one.

use super::{apic, input};
use core::sync::atomic::{AtomicU64, Ordering};

/// Where the PICs are moved to before they are masked: 20H to 2FH. What still arrives there is spurious.
pub(crate) const PIC: u8 = 0x20;
/// The local APIC's timer.
pub(crate) const TIMER: u8 = 0x31;
/// A byte has arrived on COM1.
pub(crate) const CONSOLE: u8 = 0x32;
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
    /// Spurious ones, and those nobody asked for.
    pub other: u64,
}

static TIMERS: AtomicU64 = AtomicU64::new(0);
static CONSOLES: AtomicU64 = AtomicU64::new(0);
static NMIS: AtomicU64 = AtomicU64::new(0);
static OTHERS: AtomicU64 = AtomicU64::new(0);

/// Returns how often each interrupt has been served.
pub fn counts() -> Counts {
    Counts {
        timer: TIMERS.load(Ordering::Relaxed),
        console: CONSOLES.load(Ordering::Relaxed),
        nmi: NMIS.load(Ordering::Relaxed),
        other: OTHERS.load(Ordering::Relaxed),
    }
}

/// Returns how often the timer has come.
#[inline]
pub(crate) fn timers() -> u64 {
    TIMERS.load(Ordering::Relaxed)
}

/// Serves the interrupt with `vector`, which the processor has acknowledged.
pub(crate) fn serve(vector: u8) {
    let count = match vector {
        TIMER => &TIMERS,
        CONSOLE => &CONSOLES,
        2 => &NMIS,
        _ => &OTHERS,
    };
    count.fetch_add(1, Ordering::Relaxed);
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
