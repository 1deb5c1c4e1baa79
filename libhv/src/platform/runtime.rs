//! How the hypervisor ends: the last line of the log, and the panic handler.
#![expect(unsafe_code, reason = "halts the processor for ever")]

use super::serial;
use crate::error::{HANG_STATUS, PANIC_STATUS, Result};
use crate::exit::StopReason;
use crate::watchdog;
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicBool, Ordering};

/// Says how it ended, in the last line of the log, and halts for ever.
pub(crate) fn end(outcome: Result<StopReason>) -> ! {
    match outcome {
        Ok(reason) => crate::log!("end {} {reason}", reason.status()),
        Err(error) => crate::log!("end {} {error}", error.status()),
    }
    halt()
}

/// Halts the processor for ever, interrupts off.
pub(crate) fn halt() -> ! {
    loop {
        // SAFETY: with interrupts off for good, nothing runs any more but an NMI's handler, which returns to the loop.
        unsafe { core::arch::asm!("cli", "hlt", options(nomem, nostack)) }
    }
}

/// Says where and why, and halts for ever. A panic on the way stops it at once.
#[panic_handler]
fn panic(information: &PanicInfo<'_>) -> ! {
    static PANICKING: AtomicBool = AtomicBool::new(false);
    if !PANICKING.swap(true, Ordering::SeqCst) {
        crate::log!("panic: {information}");
        last_exits();
        let (status, what) = if watchdog::barked() { (HANG_STATUS, "hung") } else { (PANIC_STATUS, "panicked") };
        crate::log!("end {status} the hypervisor {what}: {}", information.message());
    }
    halt()
}

/// Writes the last exits of every virtual processor to the log.
fn last_exits() {
    if let Some(mut line) = serial::log_line() {
        // Writing to a `Line` cannot fail.
        let _ = crate::trace::last_exits(&mut line);
    }
}
