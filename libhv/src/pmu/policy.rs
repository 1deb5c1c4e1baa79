//! Policies: what a guest gets of the PMU. A policy sees facts and returns decisions; only the mechanism touches
//! registers, and stays sound whatever a policy answers.

use super::capability::PmuCapability;
use super::direct::Direct;
use super::host::{Beside, HostCounting, HostEvents};
use super::registers::{EventSelector, FixedControl};

/// How a guest's counters come to count.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Means {
    /// They do not: the guest has no PMU.
    Hidden,
    /// They are the processor's: reading and writing them does not leave the guest.
    Passed,
    /// Each access leaves the guest, and the hypervisor counts with the processor's counters on its behalf.
    Emulated,
}

/// How the interrupt of a guest's counters reaches it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Interrupts {
    /// By an exit: the guest's virtual local APIC delivers it when the guest goes on.
    Exiting,
    /// Where the guest has it delivered as an NMI, without an exit; in other delivery modes as above. Every other NMI of
    /// the processor is the guest's then too, which is why it has to be asked for. On a processor that cannot do it, it is
    /// as above, and the report says why.
    Direct,
}

/// What of the processor's PMU a guest is given. What is not there, or cannot be given, it does not get: see
/// the report.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PmuShare {
    /// General-purpose counters, from 0 on.
    pub counters: u8,
    /// A bit for each fixed-function counter.
    pub fixed: u8,
    /// The architectural last-branch records.
    pub lbr: bool,
}

impl PmuShare {
    /// All that `host` has.
    pub const fn all(host: &PmuCapability) -> Self {
        Self { counters: host.counters, fixed: host.fixed, lbr: host.lbr_depth != 0 }
    }
}

/// What a guest gets of the PMU: chosen per guest, by type, before its first entry (requirement A5).
///
/// ```
/// use libhv::pmu::{EventSelector, FixedControl, Means, PmuCapability, PmuPolicy, PmuShare};
///
/// /// Two counters, and nothing that tells of the memory: events below 80H.
/// struct Modest;
/// impl PmuPolicy for Modest {
///     const MEANS: Means = Means::Passed;
///     const FILTERS: bool = true;
///     fn share(&self, host: &PmuCapability) -> PmuShare {
///         PmuShare { counters: 2, fixed: 0, ..PmuShare::all(host) }
///     }
///     fn permits(&self, selector: EventSelector, host: &PmuCapability) -> bool {
///         selector.event(host.maker) < 0x80
///     }
/// }
/// ```
pub trait PmuPolicy {
    /// How the guest's counters come to count.
    const MEANS: Means;
    /// Whether [`permits`](Self::permits) and [`permits_fixed`](Self::permits_fixed) refuse anything. If not, selectors
    /// are passed too, where the processor allows it, and the filter costs nothing.
    const FILTERS: bool;
    /// Whether the guest has paravirtual events: see [`Paravirtual`](super::Paravirtual).
    const PARAVIRTUAL: bool = false;
    /// Whether the host counts events of its own: see [`beside`](Self::beside).
    const HOST_COUNTS: bool = false;
    /// Whether these count the guest as well, which only a guest without a PMU allows: both do not build.
    const HOST_COUNTS_GUEST: bool = false;
    /// How the counters' interrupt reaches the guest: see [`direct_interrupts`](Self::direct_interrupts).
    const INTERRUPTS: Interrupts = Interrupts::Exiting;

    /// Decides what the guest gets of what the processor has.
    fn share(&self, host: &PmuCapability) -> PmuShare {
        PmuShare::all(host)
    }

    /// Decides whether the guest may count an event. A denied selector reads back as it was written, and counts nothing
    /// (A14).
    fn permits(&self, selector: EventSelector, host: &PmuCapability) -> bool {
        let _ = (selector, host);
        true
    }

    /// Decides whether the guest may use a fixed-function counter, with the bits it asks for.
    fn permits_fixed(&self, counter: u8, control: FixedControl) -> bool {
        let _ = (counter, control);
        true
    }

    /// Returns what the host counts.
    fn host_events(&self) -> Option<&HostEvents> {
        None
    }

    /// Puts a host that counts events of its own beside the guest: they stand still while it runs.
    fn beside<C: HostCounting>(self, host: C) -> Beside<Self, C>
    where
        Self: Sized,
    {
        Beside::new(self, host)
    }

    /// Has the counters' interrupt reach the guest without an exit, where the guest has it delivered as an NMI: see
    /// [`Interrupts::Direct`].
    fn direct_interrupts(self) -> Direct<Self>
    where
        Self: Sized,
    {
        Direct::new(self)
    }
}

/// Refuses, when the hypervisor is built, a policy whose parts cannot be together.
pub(super) const fn assert_possible<P: PmuPolicy>() {
    assert!(
        !P::HOST_COUNTS_GUEST || matches!(P::MEANS, Means::Hidden),
        "the host cannot count a guest that has a PMU of its own"
    );
    if matches!(P::INTERRUPTS, Interrupts::Direct) {
        assert!(matches!(P::MEANS, Means::Passed), "only counters that are passed to the guest interrupt it directly");
        assert!(!P::HOST_COUNTS, "the NMIs of a host that counts would reach the guest");
    }
}

/// No PMU: CPUID says so, IA32_MISC_ENABLE says so, its registers and RDPMC are #GP.
impl PmuPolicy for () {
    const MEANS: Means = Means::Hidden;
    const FILTERS: bool = false;
}

/// The guest owns the PMU: every register, without exits.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Passthrough;

impl Passthrough {
    /// Gives all that the processor has.
    pub const fn new() -> Self {
        Self
    }
}

impl PmuPolicy for Passthrough {
    const MEANS: Means = Means::Passed;
    const FILTERS: bool = false;
}
