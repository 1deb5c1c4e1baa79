//! The machine an appliance runs on: paging, interrupts, local APIC, clock, serial lines, ACPI tables and PCI.

#[cfg(target_os = "none")]
mod heap;
mod machine;
#[cfg(target_os = "none")]
pub(crate) mod runtime;
pub mod serial;

pub use machine::Machine;

/// Writes a line to the log: `log!("{} frames", n)`. The line starts with `libhv: `.
#[macro_export]
macro_rules! log {
    ($($argument:tt)*) => { $crate::platform::serial::log(::core::format_args!($($argument)*)) };
}
