//! Interrupts of a guest's counters that do not leave it.
//!
//! Linux has its counters interrupt as NMIs. While a guest has its LVTPC so, and unmasked, the processor's own entry is an
//! NMI too, and NMIs go through the guest's IDT with no exit; the processor blocks them until the guest's IRET. In any
//! other delivery mode the interrupt takes the way that it has without this.
//!
//! What follows:
//! - Every NMI is the guest's then, whoever sent it, while the guest runs and while the host does: a host that needs NMIs
//!   cannot have this.
//! - The processor masks its LVTPC when it delivers. The guest's own, in its virtual local APIC, follows when the guest
//!   reads or writes it, and with it what [`PmuCounts`](super::PmuCounts) and the paravirtual page count.
//! - Where the processor serves reads of the local APIC from a page (VMX's APIC-register virtualization), no read of LVTPC
//!   leaves the guest: its mask bit shows a delivery from the guest's next exit on that has to do with its local APIC or
//!   with events. A guest that takes the next interrupt by writing the whole entry, or by clearing the bit, sees no
//!   difference; one that writes only when it has read the bit as set must not be given this.
//! - An NMI that meets the host, because it came late, becomes pending in the guest's local APIC as without this.
//! - An NMI that has to wait until the guest takes NMIs again (one that came late, an IPI, LINT1) needs NMI-window exiting,
//!   and that needs virtual NMIs (SDM Vol. 3C 27.2.1.1): until it is delivered NMIs leave the guest.
//!
//! An overflow may come at any moment; the guest gets each once:
//!
//! | it comes | what becomes of it | shown by |
//! | --- | --- | --- |
//! | while the guest takes NMIs | the processor delivers it | `an_overflow_that_is_an_nmi_reaches_the_guest_without_an_exit` |
//! | in the guest's handler | the processor keeps it until IRET, across exits too | `a_guest_cannot_tell_a_direct_interrupt_from_one_by_an_exit` |
//! | in the handler, and the guest gives its entry another mode before IRET | it is let in to the host, and injected | `an_nmi_that_waits_is_not_lost_when_the_guest_gives_its_entry_a_vector` |
//! | after an exit, or before an entry | it meets the host, and is injected | `a_late_nmi_reaches_the_guest_once_wherever_it_arrives` |
//! | when the guest has left to halt | the same: it wakes the guest | `a_late_nmi_wakes_a_guest_that_halts` |
//! | while an NMI waits to be injected | the guest leaves for it, and the two are one | `a_guest_cannot_tell_a_direct_interrupt_from_one_by_an_exit` |
//! | with an instruction that the hypervisor executes | it is injected, unless the entry is masked | the same |
//! | in the middle of a delivery that faults by nested paging | the delivery begins anew | the same |
//! | when the registers leave the processor | it is kept for the guest's next turn | `a_guest_that_loses_the_processor_keeps_what_has_come_of_its_interrupts` |

use super::capability::PmuCapability;
use super::host::HostEvents;
use super::policy::{Interrupts, Means, PmuPolicy, PmuShare, assert_possible};
use super::registers::{EventSelector, FixedControl};
use super::report::Why;

/// How a guest's counters interrupt it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum InterruptPath {
    /// Through its virtual local APIC.
    #[default]
    LocalApic,
    /// Without an exit, as an NMI.
    Direct,
    /// The policy asks for the latter, the former is what there can be, and why.
    NotDirect(Why),
}

/// The guest's policy `P`, with the counters' interrupt reaching it without an exit: see
/// [`direct_interrupts`](PmuPolicy::direct_interrupts) and [`Interrupts::Direct`].
///
/// ```
/// use libhv::pmu::{Paravirtual, Passthrough, PmuPolicy};
///
/// let policy = Passthrough::new().direct_interrupts();
/// let with_events = Paravirtual::on(policy);
/// # let _ = with_events;
/// ```
///
/// A host that counts has NMIs of its own, which would reach the guest: asking for both does not build.
///
/// ```compile_fail,E0080
/// use libhv::pmu::host::{HostCounters, HostEvent};
/// use libhv::pmu::{Passthrough, PmuPolicy};
///
/// let policy = Passthrough::new().direct_interrupts().beside(HostCounters::new().count(HostEvent::Cycles));
/// ```
///
/// ```compile_fail,E0080
/// use libhv::pmu::host::{HostCounters, HostEvent};
/// use libhv::pmu::{Passthrough, PmuPolicy};
///
/// let policy = Passthrough::new().beside(HostCounters::new().count(HostEvent::Cycles)).direct_interrupts();
/// ```
///
/// Nor does it where the guest's counters are not the processor's:
///
/// ```compile_fail,E0080
/// use libhv::pmu::{Emulated, PmuPolicy};
///
/// let policy = Emulated::new().direct_interrupts();
/// ```
///
/// ```compile_fail,E0080
/// use libhv::pmu::{Emulated, Passthrough, PmuPolicy};
///
/// let policy = Emulated::of(Passthrough::new().direct_interrupts());
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Direct<P>(P);

impl<P: PmuPolicy> Direct<P> {
    /// Has the interrupt of the counters that `policy` gives reach the guest without an exit.
    pub const fn new(policy: P) -> Self {
        const { assert_possible::<Self>() }
        Self(policy)
    }
}

impl<P: PmuPolicy> PmuPolicy for Direct<P> {
    const MEANS: Means = P::MEANS;
    const FILTERS: bool = P::FILTERS;
    const PARAVIRTUAL: bool = P::PARAVIRTUAL;
    const HOST_COUNTS: bool = P::HOST_COUNTS;
    const HOST_COUNTS_GUEST: bool = P::HOST_COUNTS_GUEST;
    const INTERRUPTS: Interrupts = Interrupts::Direct;

    fn share(&self, host: &PmuCapability) -> PmuShare {
        self.0.share(host)
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
