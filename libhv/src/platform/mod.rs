//! The machine an appliance runs on: paging, interrupts, local APIC, clock, serial lines, ACPI tables and PCI.

pub mod acpi;
#[cfg_attr(not(target_os = "none"), expect(dead_code, reason = "the start of the bare machine calls it"))]
pub(crate) mod apic;
#[cfg_attr(not(target_os = "none"), expect(dead_code, reason = "the start of the bare machine calls it"))]
pub(crate) mod clock;
#[cfg(target_os = "none")]
mod heap;
mod host_pmi;
mod input;
pub mod interrupts;
pub mod layout;
mod machine;
#[cfg_attr(not(target_os = "none"), expect(dead_code, reason = "the start of the bare machine calls it"))]
pub(crate) mod memory;
pub mod nmi;
#[cfg_attr(not(target_os = "none"), expect(dead_code, reason = "the start of the bare machine calls it"))]
mod paging;
pub mod pci;
mod pool;
#[cfg_attr(not(target_os = "none"), expect(dead_code, reason = "the start of the bare machine calls it"))]
pub(crate) mod processor;
pub mod ranges;
mod rtc;
#[cfg(target_os = "none")]
pub(crate) mod runtime;
#[cfg(target_os = "none")]
pub(crate) mod segments;
#[cfg_attr(not(target_os = "none"), expect(dead_code, reason = "the start of the bare machine calls it"))]
pub mod serial;
mod share;
#[cfg(target_os = "none")]
pub(crate) mod vectors;
mod virtualize;
#[cfg_attr(not(target_os = "none"), expect(dead_code, reason = "the handler of NMIs of the bare machine calls it"))]
mod watchdog;

pub use host_pmi::host_count;
pub use machine::{Machine, Module};
pub use memory::HostFrames;
pub use paging::Permissions;
pub use processor::Processor;
pub use watchdog::Watching;

/// Writes a line to the log: `log!("{} frames", n)`. The line starts with `libhv: `.
#[macro_export]
macro_rules! log {
    ($($argument:tt)*) => { $crate::platform::serial::log(::core::format_args!($($argument)*)) };
}
