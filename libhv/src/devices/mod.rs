//! The devices a guest sees: one chipset, and room for the appliance's own.

mod clock;
pub mod debug_exit;
pub mod ioapic;
pub mod lapic;
pub mod pic;
pub mod pit;
pub mod pm;
pub mod uart;
