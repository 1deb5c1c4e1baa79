//! The policy that gives a guest paravirtual events.

use crate::pmu::{EventSelector, FixedControl, Means, PmuCapability, PmuPolicy, PmuShare};

/// Paravirtual events, beside what `P` gives of the PMU: also none, `()`.
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

    fn share(&self, host: &PmuCapability) -> PmuShare {
        self.inner.share(host)
    }
    fn permits(&self, selector: EventSelector, host: &PmuCapability) -> bool {
        self.inner.permits(selector, host)
    }
    fn permits_fixed(&self, counter: u8, control: FixedControl) -> bool {
        self.inner.permits_fixed(counter, control)
    }
}
