//! The I/O APIC at FEC0_0000H.

use crate::cpu::{load32, store32};

/// Address of IOREGSEL.
pub const SELECT: u64 = 0xfec0_0000;
/// Address of IOWIN.
pub const WINDOW: u64 = 0xfec0_0010;
/// Index of the version register.
pub const VERSION: u32 = 1;
/// Mask bit of a redirection entry.
pub const MASKED: u64 = 1 << 16;
/// Level trigger mode of a redirection entry.
pub const LEVEL: u64 = 1 << 15;
/// Remote IRR of a redirection entry.
pub const REMOTE_IRR: u64 = 1 << 14;
/// NMI as the delivery mode of a redirection entry.
pub const NMI: u64 = 4 << 8;

/// Reads a register by index.
pub unsafe fn read(index: u32) -> u32 {
    store32(SELECT, index);
    load32(WINDOW)
}

/// Writes a register by index.
pub unsafe fn write(index: u32, value: u32) {
    store32(SELECT, index);
    store32(WINDOW, value);
}

/// Returns how many redirection entries there are.
pub unsafe fn entries() -> u32 {
    (read(VERSION) >> 16 & 0xff) + 1
}

/// Reads a redirection entry.
pub unsafe fn entry(pin: u32) -> u64 {
    u64::from(read(0x11 + 2 * pin)) << 32 | u64::from(read(0x10 + 2 * pin))
}

/// Writes a redirection entry, upper half first.
pub unsafe fn set_entry(pin: u32, value: u64) {
    write(0x11 + 2 * pin, (value >> 32) as u32);
    write(0x10 + 2 * pin, value as u32);
}

/// Masks every entry.
pub unsafe fn mask_all() {
    for pin in 0..entries() {
        set_entry(pin, MASKED);
    }
}
