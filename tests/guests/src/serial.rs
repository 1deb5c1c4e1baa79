//! Output on COM1, polled.

use crate::cpu::{in8, out8};
use core::fmt::{Arguments, Write};

const COM1: u16 = 0x3f8;

/// Sets 115200 baud, 8 data bits, no interrupts.
pub unsafe fn initialize() {
    for (register, value) in [(1, 0), (3, 0x80), (0, 1), (1, 0), (3, 3), (2, 7), (4, 3)] {
        out8(COM1 + register, value);
    }
}

/// Waits until everything printed has left the UART.
pub unsafe fn drain() {
    for _ in 0..1_000_000 {
        if in8(COM1 + 5) & 0x40 != 0 {
            break;
        }
    }
}

struct Com1;

impl Write for Com1 {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        for byte in text.bytes() {
            unsafe {
                for _ in 0..1_000_000 {
                    if in8(COM1 + 5) & 0x20 != 0 {
                        break;
                    }
                }
                out8(COM1, byte);
            }
        }
        Ok(())
    }
}

/// Prints formatted text.
pub fn print(text: Arguments<'_>) {
    // Writing to COM1 cannot fail.
    let _ = Com1.write_fmt(text);
}

/// Prints a line on COM1.
#[macro_export]
macro_rules! say {
    ($($text:tt)*) => { $crate::serial::print(format_args!("{}\n", format_args!($($text)*))) };
}
