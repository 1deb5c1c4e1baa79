//! A guest's policy with a host that counts beside it, by type.

use super::events::{HostCounters, HostEvents};
use crate::pmu::capability::PmuCapability;
use crate::pmu::policy::{Interrupts, Means, PmuPolicy, PmuShare, assert_possible};
use crate::pmu::registers::{EventSelector, FixedControl};

/// What a host counts beside its guest.
pub trait HostCounting {
    /// Whether it counts anything: if not, no exit costs anything.
    const COUNTS: bool;
    /// Whether its events count the guest as well, which only a guest without a PMU allows.
    const COUNTS_GUEST: bool;

    /// Returns what is counted.
    fn events(&self) -> Option<&HostEvents>;
}

/// Nothing is counted.
impl HostCounting for () {
    const COUNTS: bool = false;
    const COUNTS_GUEST: bool = false;

    fn events(&self) -> Option<&HostEvents> {
        None
    }
}

impl<const GUEST: bool> HostCounting for HostCounters<GUEST> {
    const COUNTS: bool = true;
    const COUNTS_GUEST: bool = GUEST;

    fn events(&self) -> Option<&HostEvents> {
        Some(self.as_events())
    }
}

/// A guest's policy `P`, and a host that counts `C`.
///
/// ```
/// use libhv::pmu::host::{HostCounters, HostEvent};
/// use libhv::pmu::{Passthrough, PmuPolicy};
///
/// let policy = Passthrough::new().beside(HostCounters::new().watchdog(10_000_000_000).count(HostEvent::Cycles));
/// # let _ = policy;
/// ```
///
/// A host that counts the guest is possible only when the guest has no PMU:
///
/// ```
/// use libhv::pmu::PmuPolicy;
/// use libhv::pmu::host::{HostCounters, HostEvent};
///
/// let policy = ().beside(HostCounters::new().count(HostEvent::Cycles).counting_guest());
/// # let _ = policy;
/// ```
///
/// Asking for both does not build:
///
/// ```compile_fail,E0080
/// use libhv::pmu::host::{HostCounters, HostEvent};
/// use libhv::pmu::{Passthrough, PmuPolicy};
///
/// let policy = Passthrough::new().beside(HostCounters::new().count(HostEvent::Cycles).counting_guest());
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Beside<P, C> {
    guest: P,
    host: C,
}

impl<P: PmuPolicy, C: HostCounting> Beside<P, C> {
    /// Puts a host that counts beside a guest's policy.
    pub const fn new(guest: P, host: C) -> Self {
        const { assert_possible::<Self>() }
        Self { guest, host }
    }
}

impl<P: PmuPolicy, C: HostCounting> PmuPolicy for Beside<P, C> {
    const MEANS: Means = P::MEANS;
    const FILTERS: bool = P::FILTERS;
    const PARAVIRTUAL: bool = P::PARAVIRTUAL;
    const HOST_COUNTS: bool = C::COUNTS;
    const HOST_COUNTS_GUEST: bool = C::COUNTS_GUEST;
    const INTERRUPTS: Interrupts = P::INTERRUPTS;

    fn share(&self, host: &PmuCapability) -> PmuShare {
        self.guest.share(host)
    }
    fn permits(&self, selector: EventSelector, host: &PmuCapability) -> bool {
        self.guest.permits(selector, host)
    }
    fn permits_fixed(&self, counter: u8, control: FixedControl) -> bool {
        self.guest.permits_fixed(counter, control)
    }
    fn host_events(&self) -> Option<&HostEvents> {
        self.host.events()
    }
}
