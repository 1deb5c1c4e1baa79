//! Where hardware events come from: whoever has counters to lend.

use super::abi::{BRANCH_MISSES, BRANCHES, CYCLES, INSTRUCTIONS, LLC_MISSES, LLC_REFERENCES, Refusal};
use crate::pmu::capability::PmuCapability;
use crate::pmu::registers::Maker;

/// A counter of a source, by a number that the source chose.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CounterId(pub u32);

/// A hardware event, in the layout of IA32_PERFEVTSELx: event 7:0, unit mask 15:8, USR 16, OS 17, edge 18, INV 23,
/// CMASK 31:24. No other bit is set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HardwareEvent(u32);

/// The bits that a hardware event may have.
const EVENT_BITS: u64 = 0xFF87_FFFF;

/// Event and unit mask.
const WHAT: u32 = 0xFFFF;

impl HardwareEvent {
    /// Takes the bits of a selector that say what is counted; `None` when others are set.
    pub const fn new(config: u64) -> Option<Self> {
        if config & !EVENT_BITS == 0 { Some(Self(config as u32)) } else { None }
    }
    /// Returns the bits.
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// Returns the selector by which this processor counts it, stopped; `None` when it does not. The numbers are those
    /// of Intel's architectural events (SDM Vol. 3B 21.2.1); AMD's processors have others for the same (APM Vol. 2 13.2.1
    /// leaves them to each family's manual, where these four have kept theirs since family 10H).
    pub fn selector(self, pmu: &PmuCapability) -> Option<u64> {
        // The bit in CPUID.0AH:EBX that is set where the event is missing, and AMD's number.
        let (bit, amd) = match u64::from(self.0 & WHAT) {
            CYCLES => (0, Some(0x76)),
            INSTRUCTIONS => (1, Some(0xC0)),
            LLC_REFERENCES => (3, None),
            LLC_MISSES => (4, None),
            BRANCHES => (5, Some(0xC2)),
            BRANCH_MISSES => (6, Some(0xC3)),
            _ => return None,
        };
        let what = match pmu.maker {
            Maker::Intel => (pmu.missing_events >> bit & 1 == 0).then_some(self.0 & WHAT)?,
            Maker::Amd => amd?,
        };
        Some(u64::from(self.0 & !WHAT | what))
    }
}

/// Why a source does not lend a counter.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NotLent {
    /// It cannot count this event, or may not for this guest.
    Unsupported,
    /// All counters that could count it are lent.
    NoneFree,
    /// The guest has counters of its own.
    Own,
}

impl From<NotLent> for Refusal {
    fn from(why: NotLent) -> Self {
        match why {
            NotLent::Unsupported => Self::UnsupportedEvent,
            NotLent::NoneFree => Self::TooManyEvents,
            NotLent::Own => Self::OwnCounters,
        }
    }
}

/// Lends counters that count a guest's hardware events, and nothing of the host's.
pub trait CounterSource {
    /// Lends a counter for `event`, stopped, at 0.
    ///
    /// # Errors
    /// [`NotLent`]; nothing has changed then.
    fn open(&mut self, event: HardwareEvent) -> Result<CounterId, NotLent>;
    /// Has a counter that was lent count. When it has counted another `ahead`, other than 0, the source's owner calls
    /// [`Paravirt::look`](super::Paravirt::look), and may do so before.
    fn start(&mut self, counter: CounterId, ahead: u64);
    /// Stops a counter that was lent.
    fn stop(&mut self, counter: CounterId);
    /// Returns what a counter has counted since it was lent.
    fn read(&mut self, counter: CounterId) -> u64;
    /// Has a counter that counts be watched for another distance, as [`start`](Self::start) says.
    fn watch(&mut self, counter: CounterId, ahead: u64);
    /// Takes a counter back, which is stopped.
    fn close(&mut self, counter: CounterId);
}

/// No counters.
impl CounterSource for () {
    fn open(&mut self, _: HardwareEvent) -> Result<CounterId, NotLent> {
        Err(NotLent::Unsupported)
    }
    fn start(&mut self, _: CounterId, _: u64) {}
    fn stop(&mut self, _: CounterId) {}
    fn read(&mut self, _: CounterId) -> u64 {
        0
    }
    fn watch(&mut self, _: CounterId, _: u64) {}
    fn close(&mut self, _: CounterId) {}
}
