//! The devices a guest sees: one chipset, and room for the appliance's own.

pub mod ioapic;
pub mod lapic;
