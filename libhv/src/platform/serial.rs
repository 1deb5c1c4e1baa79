//! Serial lines: COM1 is the guest's console, COM2 the log; where there is no COM2, the log goes to COM1 too.
#![expect(unsafe_code, reason = "reads and writes the ports of 16550 UARTs")]

use super::input;
use crate::hw::Console;
use core::fmt::{self, Write};
use core::sync::atomic::{AtomicU16, Ordering};
use x86_64::instructions::port::Port;

/// Polls of LSR before a byte is given up: a line without a UART must not stop the host.
const PATIENCE: u32 = 1 << 20;

/// LSR bit 0: a byte has been received.
const DATA_READY: u8 = 1 << 0;
/// LSR bit 5: the transmitter takes a byte.
const TRANSMITTER_EMPTY: u8 = 1 << 5;

/// A 16550 UART at one of the places where PCs have them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Line(u16);

impl Line {
    /// The first serial line, ports 3F8H to 3FFH.
    pub const COM1: Self = Self(0x3F8);
    /// The second serial line, ports 2F8H to 2FFH.
    pub const COM2: Self = Self(0x2F8);

    fn read(self, register: u16) -> u8 {
        // SAFETY: the port is a UART's (`Self` is COM1 or COM2) or nobody's; a read of it changes no memory.
        unsafe { Port::new(self.0 + register).read() }
    }

    fn write(self, register: u16, value: u8) {
        // SAFETY: as in `read`; UARTs of PCs do no DMA.
        unsafe { Port::new(self.0 + register).write(value) }
    }

    /// Returns whether a UART answers: its scratch register keeps what is written to it.
    pub(crate) fn present(self) -> bool {
        [0x5A, 0xA5].into_iter().all(|pattern| {
            self.write(7, pattern);
            self.read(7) == pattern
        })
    }

    /// Sets 115200 baud, 8 data bits, no parity, one stop bit, FIFOs on and empty, no interrupts.
    pub(crate) fn configure(self) {
        for (register, value) in [(1, 0), (3, 0x80), (0, 1), (1, 0), (3, 0x03), (2, 0x07), (4, 0x0B)] {
            self.write(register, value);
        }
    }

    /// Has the UART ask for an interrupt when a byte has been received.
    pub(crate) fn interrupt_on_receive(self) {
        self.write(1, 1);
    }

    /// Returns a byte that has been received.
    #[inline]
    pub(crate) fn receive(self) -> Option<u8> {
        (self.read(5) & DATA_READY != 0).then(|| self.read(0))
    }

    /// Sends a byte, when the transmitter takes it.
    #[inline]
    pub(crate) fn send(self, byte: u8) {
        let mut patience = PATIENCE;
        while self.read(5) & TRANSMITTER_EMPTY == 0 && patience > 0 {
            patience -= 1;
            core::hint::spin_loop();
        }
        self.write(0, byte);
    }
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            if byte == b'\n' {
                self.send(b'\r');
            }
            self.send(byte);
        }
        Ok(())
    }
}

/// The serial line of the guest: COM1. Bytes typed wait in a queue that its interrupt fills.
#[derive(Clone, Copy, Debug)]
pub struct Com1(());

impl Com1 {
    /// Makes the console.
    pub(crate) fn new() -> Self {
        Self(())
    }
}

impl Console for Com1 {
    #[inline]
    fn read(&mut self) -> Option<u8> {
        input::next()
    }
    #[inline]
    fn write(&mut self, byte: u8) {
        Line::COM1.send(byte);
    }
}

/// The first port of the line the log goes to; 0 before [`start`], and then nothing is written.
static LOG: AtomicU16 = AtomicU16::new(0);

/// Sets both lines up and chooses the one for the log.
pub(crate) fn start() {
    Line::COM1.configure();
    let log = if Line::COM2.present() { Line::COM2 } else { Line::COM1 };
    if log != Line::COM1 {
        log.configure();
    }
    LOG.store(log.0, Ordering::Relaxed);
}

/// Returns the line the log goes to, once [`start`] has run.
pub(crate) fn log_line() -> Option<Line> {
    Some(Line(LOG.load(Ordering::Relaxed))).filter(|line| line.0 != 0)
}

/// Writes one line to the log, beginning with `libhv: `; what [`log!`](crate::log!) calls.
#[doc(hidden)]
pub fn log(arguments: fmt::Arguments<'_>) {
    if let Some(mut line) = log_line() {
        // Writing to a `Line` cannot fail, and what a `Display` refuses to print is left out.
        let _ = line.write_fmt(format_args!("libhv: {arguments}\n"));
    }
}
