//! The policy that gives a guest paravirtual events.

use crate::pmu::host::HostEvents;
use crate::pmu::{EventSelector, FixedControl, Interrupts, Means, PmuCapability, PmuPolicy, PmuShare};

/// Paravirtual events, beside what `P` gives of the PMU: also none, `()`.
///
/// Hardware events are counted where nobody else has the counters: on `()`, without a host that counts events of its own.
/// A guest that has a PMU counts them itself, and is told so; beside a host that counts there are none.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Paravirtual<P = ()> {
    inner: P,
}

impl<P> Paravirtual<P> {
    /// Adds paravirtual events to a policy.
    pub const fn on(inner: P) -> Self {
        Self { inner }
    }
}

impl<P: PmuPolicy> PmuPolicy for Paravirtual<P> {
    const MEANS: Means = P::MEANS;
    const FILTERS: bool = P::FILTERS;
    const PARAVIRTUAL: bool = true;
    const HOST_COUNTS: bool = P::HOST_COUNTS;
    const HOST_COUNTS_GUEST: bool = P::HOST_COUNTS_GUEST;
    const INTERRUPTS: Interrupts = P::INTERRUPTS;

    fn share(&self, host: &PmuCapability) -> PmuShare {
        self.inner.share(host)
    }
    fn permits(&self, selector: EventSelector, host: &PmuCapability) -> bool {
        self.inner.permits(selector, host)
    }
    fn permits_fixed(&self, counter: u8, control: FixedControl) -> bool {
        self.inner.permits_fixed(counter, control)
    }
    fn host_events(&self) -> Option<&HostEvents> {
        self.inner.host_events()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pmu::Passthrough;
    use crate::pmu::host::{HostCounters, HostEvent};

    #[test]
    fn a_host_counts_in_whatever_order_the_policies_are_put_together() {
        fn counts<P: PmuPolicy>(policy: &P) -> bool {
            P::PARAVIRTUAL && P::HOST_COUNTS && policy.host_events().is_some()
        }
        let host = || HostCounters::new().count(HostEvent::Cycles);
        assert!(counts(&Paravirtual::on(Passthrough::new().beside(host()))));
        assert!(counts(&Paravirtual::on(Passthrough::new()).beside(host())));
    }
}
