//! The policy that has a guest's counters emulated.

use crate::pmu::capability::PmuCapability;
use crate::pmu::host::HostEvents;
use crate::pmu::policy::{Interrupts, Means, Passthrough, PmuPolicy, PmuShare, assert_possible};
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
    ///
    /// A host that counts may be beside the guest, but cannot count it then:
    ///
    /// ```compile_fail,E0080
    /// use libhv::pmu::host::{HostCounters, HostEvent};
    /// use libhv::pmu::{Emulated, PmuPolicy};
    ///
    /// let host = HostCounters::new().count(HostEvent::Cycles).counting_guest();
    /// let policy = Emulated::of(().beside(host));
    /// ```
    pub const fn of(policy: P) -> Self {
        const { assert_possible::<Self>() }
        Self(policy)
    }
}

impl<P: PmuPolicy> PmuPolicy for Emulated<P> {
    const MEANS: Means = Means::Emulated;
    const FILTERS: bool = P::FILTERS;
    const PARAVIRTUAL: bool = P::PARAVIRTUAL;
    const HOST_COUNTS: bool = P::HOST_COUNTS;
    const HOST_COUNTS_GUEST: bool = P::HOST_COUNTS_GUEST;
    const INTERRUPTS: Interrupts = P::INTERRUPTS;

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
