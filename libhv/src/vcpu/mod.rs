//! A virtual processor: the one run loop, and the trait that a backend implements.

mod backend;
pub mod control;
pub mod cpuid;
pub mod events;
pub mod msr;
pub mod mtrr;
pub mod xsetbv;

pub use backend::Backend;
