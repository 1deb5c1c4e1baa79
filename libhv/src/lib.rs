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
pub mod loader;
pub mod memory;
pub mod registers;
pub mod sim;
pub mod svm;
pub mod time;
pub mod trace;
pub mod vcpu;
pub mod vmx;

#[cfg(feature = "appliance")]
pub mod boot;
#[cfg(feature = "appliance")]
pub mod platform;

pub use error::{Error, Result};
