//! The host counts too: counters of an appliance's own, which stand still while the guest runs, and watchdogs.
//!
//! Whether entries and exits cost anything depends on what the guest has, see [`Plan`]: nothing where the guest's PMU is
//! hidden, nothing where guest and host share the counters out and the host's do not interrupt, and a switch of all that
//! differs where both use the same ones (requirements A16, A20 to A23).
//!
//! What follows for the host (A27): it cannot count a guest that has a PMU of its own, which is an error when the
//! hypervisor is built; its own events never count the guest otherwise either; and a watchdog of the counters stands
//! still with them while the guest runs, which is no harm, because the processor is not stuck then. Where the host gives
//! up the counters altogether, a [`Watchdog`](crate::watchdog::Watchdog) watches without any.

mod beside;
mod events;
#[cfg(test)]
pub(super) mod fake;
mod parked;
mod plan;
mod post;
#[cfg(test)]
mod rig;
mod switch;
#[cfg(test)]
mod tests;

pub use beside::{Beside, HostCounting};
pub use events::{HostCounters, HostCountersError, HostEvent, HostEvents, MAX_EVENTS, Sample};
pub use parked::{Kept, Parked};
pub use plan::Plan;
pub use post::{Place, Post, Verdict};
pub use switch::HostPmu;
