//! Channel 0 and 2 of the 8254 interval timer.

use crate::cpu::{in8, out8};

const CONTROL: u16 = 0x43;
const CHANNEL0: u16 = 0x40;
const CHANNEL2: u16 = 0x42;
const PORT_B: u16 = 0x61;

/// Clock ticks in a millisecond, rounded.
pub const MILLISECOND: u16 = 1193;

/// Lets channel 0 raise IRQ 0 every `ticks` of 838 ns (mode 2).
pub unsafe fn periodic(ticks: u16) {
    program(0x34, ticks);
}

/// Lets channel 0 raise IRQ 0 once, after `ticks` (mode 0).
pub unsafe fn one_shot(ticks: u16) {
    program(0x30, ticks);
}

/// Stops channel 0: mode 0 with its output low until a count is written, which is not.
pub unsafe fn stop() {
    out8(CONTROL, 0x30);
}

unsafe fn program(control: u8, ticks: u16) {
    out8(CONTROL, control);
    out8(CHANNEL0, ticks as u8);
    out8(CHANNEL0, (ticks >> 8) as u8);
}

/// Latches and reads the count of channel 0.
pub unsafe fn counter() -> u16 {
    out8(CONTROL, 0);
    u16::from(in8(CHANNEL0)) | u16::from(in8(CHANNEL0)) << 8
}

/// Starts channel 2 in mode 0 with its gate open and the speaker off.
pub unsafe fn start_channel2(ticks: u16) {
    out8(PORT_B, in8(PORT_B) & !3);
    out8(CONTROL, 0xb0);
    out8(CHANNEL2, ticks as u8);
    out8(CHANNEL2, (ticks >> 8) as u8);
    out8(PORT_B, in8(PORT_B) & !3 | 1);
}

/// Returns whether the output of channel 2 is high: its count has run out.
pub unsafe fn channel2_output() -> bool {
    in8(PORT_B) & 0x20 != 0
}

/// Waits for `milliseconds` (at most 50) on channel 2, whatever the processor's speed.
pub unsafe fn delay(milliseconds: u16) {
    start_channel2(MILLISECOND * milliseconds);
    while !channel2_output() {}
}
