//! The seam to hardware: what the run loop asks of the machine it runs on, and the instructions behind it.

pub mod bare;
pub mod counters;
pub mod host;
pub mod pmu;
pub mod vector;

pub use host::{Console, Host};
pub use pmu::{GlobalSwitch, PmiHost, PmiRoute, PmuHardware};
