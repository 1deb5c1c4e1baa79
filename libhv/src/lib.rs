//! libhv: a `no_std` library that makes an application a single-purpose hypervisor on bare x86-64.
//!
//! Manuals cited: Intel SDM = Software Developer's Manual, revision 325462-087 (2025); AMD APM = Architecture
//! Programmer's Manual, publications 24593 rev. 3.43 (volume 2) and 24594 (volume 3).
#![no_std]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod address;
pub mod devices;
pub mod emulate;
pub mod error;
pub mod exit;
pub mod guest;
pub mod hw;
#[cfg(feature = "appliance")]
pub mod hypervisor;
pub mod loader;
pub mod memory;
pub mod pmu;
pub mod registers;
pub mod sim;
pub mod svm;
pub mod time;
pub mod trace;
pub mod vcpu;
pub mod vmx;
pub mod watchdog;

#[cfg(feature = "appliance")]
pub mod boot;
#[cfg(feature = "appliance")]
pub mod platform;

pub use error::{Error, Result};

/// What an appliance's `main.rs` needs.
#[cfg(feature = "appliance")]
pub mod prelude {
    pub use crate::error::{Error, Result};
    pub use crate::exit::{Event, Exit, Resolution, StopReason};
    pub use crate::guest::{Guest, MIB};
    pub use crate::hypervisor::Hypervisor;
    pub use crate::loader::Kind;
    pub use crate::platform::Machine;
    pub use crate::registers::{Gpr, GuestState};
    pub use crate::vcpu::Appliance;
    pub use crate::watchdog::Watchdog;
    pub use core::time::Duration;
}
