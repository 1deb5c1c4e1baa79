//! The devices a guest sees: one chipset, and room for the appliance's own.

pub mod acpi;
pub mod bus;
pub mod chipset;
mod clock;
pub mod debug_exit;
pub mod i8042;
pub mod ioapic;
pub mod lapic;
pub mod pci;
pub mod pic;
pub mod pit;
pub mod pm;
pub mod rtc;
pub mod uart;

pub use bus::{Conflict, Device};
pub use chipset::{Chipset, Configuration};
pub use lapic::Startup;
