//! Where hardware events come from: whoever has counters to lend.

use super::abi::Refusal;

/// A counter of a source, by a number that the source chose.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CounterId(pub u32);

/// A hardware event, in the layout of IA32_PERFEVTSELx: event 7:0, unit mask 15:8, USR 16, OS 17, edge 18, INV 23,
/// CMASK 31:24. No other bit is set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HardwareEvent(u32);

/// The bits that a hardware event may have.
const EVENT_BITS: u64 = 0xFF87_FFFF;

impl HardwareEvent {
    /// Takes the bits of a selector that say what is counted; `None` when others are set.
    pub const fn new(config: u64) -> Option<Self> {
        if config & !EVENT_BITS == 0 { Some(Self(config as u32)) } else { None }
    }
    /// Returns the bits.
    pub const fn bits(self) -> u32 {
        self.0
    }
}

/// Why a source does not lend a counter.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NotLent {
    /// It cannot count this event, or may not for this guest.
    Unsupported,
    /// All counters that could count it are lent.
    NoneFree,
}

impl From<NotLent> for Refusal {
    fn from(why: NotLent) -> Self {
        match why {
            NotLent::Unsupported => Self::UnsupportedEvent,
            NotLent::NoneFree => Self::TooManyEvents,
        }
    }
}

/// Lends counters that count a guest's hardware events, and nothing of the host's.
///
/// When a counter has counted another `period`, the source's owner tells [`Paravirt::overflowed`].
///
/// [`Paravirt::overflowed`]: super::Paravirt::overflowed
pub trait CounterSource {
    /// Whether there is any counter to lend: what CPUID tells the guest.
    const LENDS: bool;

    /// Lends a counter for `event`, stopped, at 0. With a `period` other than 0 it is watched for having counted that,
    /// `first` for the first time.
    ///
    /// # Errors
    /// [`NotLent`]; nothing has changed then.
    fn open(&mut self, event: HardwareEvent, period: u64, first: u64) -> Result<CounterId, NotLent>;
    /// Has a counter that was lent count.
    fn start(&mut self, counter: CounterId);
    /// Stops a counter that was lent.
    fn stop(&mut self, counter: CounterId);
    /// Returns what a counter has counted since it was lent.
    fn read(&mut self, counter: CounterId) -> u64;
    /// Takes a counter back.
    fn close(&mut self, counter: CounterId);
}

/// No counters.
impl CounterSource for () {
    const LENDS: bool = false;

    fn open(&mut self, _: HardwareEvent, _: u64, _: u64) -> Result<CounterId, NotLent> {
        Err(NotLent::Unsupported)
    }
    fn start(&mut self, _: CounterId) {}
    fn stop(&mut self, _: CounterId) {}
    fn read(&mut self, _: CounterId) -> u64 {
        0
    }
    fn close(&mut self, _: CounterId) {}
}
