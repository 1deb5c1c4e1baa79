//! The debug-exit port: a guest ends itself with a number.

use crate::exit::StopReason;

/// The port. Test kernels write to it where QEMU has its `isa-debug-exit` device.
pub const PORT: u16 = 0xF4;

/// Returns how the guest ends that writes `value` to the port: with the value as it was written, of any width up to
/// 32 bits. Who turns it into an exit status computes `value << 1 | 1`, as QEMU does.
#[inline]
pub const fn write(value: u32) -> StopReason {
    StopReason::DebugExit(value)
}
