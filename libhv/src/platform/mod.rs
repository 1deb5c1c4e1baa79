//! The machine an appliance owns: paging, interrupts, clock, console, ACPI, PCI.
