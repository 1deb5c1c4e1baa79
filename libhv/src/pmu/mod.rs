//! The PMU pillar: the guest owns the performance counters.
//!
//! One virtual processor owns a processor's PMU, and its counters and selectors stay there across exits: nothing is
//! saved or restored but IA32_PERF_GLOBAL_CTRL, which the processor switches with the world. All registers move only
//! when the owner changes, or when the host itself counts.
#![doc = include_str!("requirements.md")]

pub mod bank;
pub mod branches;
pub mod capability;
pub mod credit;
pub mod direct;
pub mod emulated;
pub mod filter;
pub mod host;
pub mod mechanism;
pub mod paravirt;
pub mod policy;
pub mod registers;
pub mod report;
#[cfg(test)]
mod requirements;
pub mod slot;
pub mod state;
pub mod view;

pub use capability::PmuCapability;
pub use credit::Retired;
pub use direct::Direct;
pub use emulated::Emulated;
pub use filter::{ConstFilter, EventFilter, Filtered, FilteredBy, MaskedEvent};
pub use mechanism::{Pmu, PmuCounts};
pub use paravirt::Paravirtual;
pub use policy::{Interrupts, Means, Passthrough, PmuPolicy, PmuShare};
pub use registers::{BranchRegister, CounterIndex, EventSelector, FixedControl, Maker, PmuRegister};
pub use report::{Item, PmuReport, Provision, Why};
pub use state::State;
pub use view::{Fault, NoPmu, PmuView};
