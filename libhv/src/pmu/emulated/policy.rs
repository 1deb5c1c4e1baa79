//! The policy that has a guest's counters emulated.

use crate::pmu::capability::PmuCapability;
use crate::pmu::host::HostEvents;
use crate::pmu::policy::{Means, Passthrough, PmuPolicy, PmuShare};
use crate::pmu::registers::{EventSelector, FixedControl};

/// The guest's counters are emulated; what it gets, and which events, is what `P` says.
///
/// ```
/// use libhv::pmu::{Emulated, Means, PmuPolicy};
///
/// fn means<P: PmuPolicy>(_: P) -> Means {
///     P::MEANS
/// }
/// assert_eq!(means(Emulated::new()), Means::Emulated);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Emulated<P = Passthrough>(P);

impl Emulated {
    /// Gives all that the processor has, or can be counted without it.
    pub const fn new() -> Self {
        Self(Passthrough::new())
    }
}

impl<P: PmuPolicy> Emulated<P> {
    /// Gives what `policy` gives, by emulation.
    pub const fn of(policy: P) -> Self {
        Self(policy)
    }
}

impl<P: PmuPolicy> PmuPolicy for Emulated<P> {
    const MEANS: Means = Means::Emulated;
    const FILTERS: bool = P::FILTERS;
    const PARAVIRTUAL: bool = P::PARAVIRTUAL;
    const HOST_COUNTS: bool = P::HOST_COUNTS;

    fn share(&self, host: &PmuCapability) -> PmuShare {
        PmuShare { lbr: false, ..self.0.share(host) }
    }
    fn permits(&self, selector: EventSelector, host: &PmuCapability) -> bool {
        self.0.permits(selector, host)
    }
    fn permits_fixed(&self, counter: u8, control: FixedControl) -> bool {
        self.0.permits_fixed(counter, control)
    }
    fn host_events(&self) -> Option<&HostEvents> {
        self.0.host_events()
    }
}
