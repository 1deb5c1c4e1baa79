//! The two 8259A interrupt controllers.

use crate::cpu::{in8, out8};

/// Vector of IRQ 0 after [`initialize`].
pub const BASE: u8 = 0x20;
const COMMAND: [u16; 2] = [0x20, 0xa0];
const DATA: [u16; 2] = [0x21, 0xa1];

/// Starts both controllers with vectors from [`BASE`] on, and masks every line but the cascade.
pub unsafe fn initialize() {
    for chip in 0..2 {
        out8(COMMAND[chip], 0x11);
        out8(DATA[chip], BASE + 8 * chip as u8);
        out8(DATA[chip], if chip == 0 { 4 } else { 2 });
        out8(DATA[chip], 1);
    }
    set_mask(0xfffb);
}

/// Writes both masks: a set bit masks its IRQ.
pub unsafe fn set_mask(mask: u16) {
    out8(DATA[0], mask as u8);
    out8(DATA[1], (mask >> 8) as u8);
}

/// Reads both masks.
pub unsafe fn mask() -> u16 {
    u16::from(in8(DATA[1])) << 8 | u16::from(in8(DATA[0]))
}

/// Ends the interrupt of highest priority in service, on the second controller too for IRQ 8 and up.
pub unsafe fn end(irq: u8) {
    if irq >= 8 {
        out8(COMMAND[1], 0x20);
    }
    out8(COMMAND[0], 0x20);
}

/// Ends the interrupt of one line of the first controller by name (specific EOI).
pub unsafe fn end_specific(irq: u8) {
    out8(COMMAND[0], 0x60 | irq);
}

/// Reads which lines of the first controller have a request waiting.
pub unsafe fn requests() -> u8 {
    out8(COMMAND[0], 0x0a);
    in8(COMMAND[0])
}

/// Reads which lines of the first controller are in service.
pub unsafe fn in_service() -> u8 {
    out8(COMMAND[0], 0x0b);
    in8(COMMAND[0])
}
