//! What a host gives the run loop: a clock, a timer, interrupts taken, a way to wait. The appliance's platform, an
//! embedding kernel and `sim` implement it.

use super::pmu::PmiHost;
use crate::time::{Frequency, Tsc};
use alloc::boxed::Box;

/// The logical processor that runs a virtual processor, with interrupts off (RFLAGS.IF = 0) between exit and entry.
pub trait Host: PmiHost {
    /// Returns the time-stamp counter.
    fn now(&self) -> Tsc;

    /// Returns how fast [`now`](Self::now) runs.
    fn frequency(&self) -> Frequency;

    /// Has an interrupt arrive at `deadline`, at once when it has passed, never when `None`. It replaces the one asked
    /// for before.
    fn arm(&mut self, deadline: Option<Tsc>);

    /// Serves the host's own interrupts: `acknowledged` is the vector of one that the processor has acknowledged on
    /// exit and that is in service; without it, all that are pending are taken.
    fn serve_interrupts(&mut self, acknowledged: Option<u8>);

    /// Halts the processor until an interrupt is pending, and serves it.
    fn wait(&mut self);
}

/// A serial line: what a guest's UART is connected to.
pub trait Console {
    /// Returns the next byte typed, if there is one.
    fn read(&mut self) -> Option<u8>;
    /// Sends a byte.
    fn write(&mut self, byte: u8);
}

/// A console that says nothing and loses what it is told.
impl Console for () {
    fn read(&mut self) -> Option<u8> {
        None
    }
    fn write(&mut self, _byte: u8) {}
}

impl<T: Console + ?Sized> Console for Box<T> {
    fn read(&mut self) -> Option<u8> {
        (**self).read()
    }
    #[inline]
    fn write(&mut self, byte: u8) {
        (**self).write(byte);
    }
}
