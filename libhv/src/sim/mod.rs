//! A deterministic processor: the third backend, for tests and for users' own tests.
//!
//! [`Processor`] executes programs of a few dozen instructions and follows the manuals where events are concerned:
//! delivery, shadows, blocking, windows, what an exit interrupts. [`Machine`] is the host around it. Neither has a
//! clock, a thread or any randomness but a seed's. They are stricter than hardware: what a processor would silently
//! accept or refuse with an entry failure panics, with words that say what the hypervisor did wrong. Nothing here asks
//! the rest of the crate what is right. A machine that is given one has a PMU, see [`pmu`], which counts what guests and
//! host execute.

mod backend;
mod check;
mod counting;
mod cpuid;
mod deliver;
mod execute;
mod machine;
mod nested;
pub mod pmu;
mod pmu_hardware;
mod processor;
mod program;
mod random;
mod registers;
#[cfg(test)]
mod tests;

pub use cpuid::Cpuid;
pub use machine::Machine;
pub use nested::NestedMap;
pub use processor::{Journal, Processor, Record, SPENT, Vendor};
pub use program::{Op, Program};
pub use random::Random;
