//! What a host wants counted: events, periods, a watchdog, and who is told.

use crate::pmu::capability::PmuCapability;
use crate::pmu::registers::{CounterIndex, EventSelector, Maker};
use crate::time::Tsc;
use crate::watchdog::{Bark, panic_on_bark};
use alloc::vec::Vec;
use core::fmt;

/// Events that a host counts at most.
pub const MAX_EVENTS: usize = 8;

/// Something to count.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HostEvent {
    /// The cycles in which the processor did not halt, in any general-purpose counter.
    Cycles,
    /// An event by its number and unit mask, in any general-purpose counter. EN, INT and the bits that say whom it counts
    /// are set as they must be; without USR and OS nothing is counted. A bit that the processor lacks is an error.
    Selector(EventSelector),
    /// What a fixed-function counter of this number counts.
    Fixed(u8),
}

impl HostEvent {
    /// Returns the selector of a general-purpose counter: enabled, and interrupting for an event that is sampled.
    fn selector(self, maker: Maker, samples: bool, guest: bool) -> u64 {
        const USER_AND_SYSTEM: u64 = 0b11 << 16;
        let wanted = match (self, maker) {
            (Self::Cycles, Maker::Intel) => 0x3C | USER_AND_SYSTEM,
            // CPU Clocks not Halted
            (Self::Cycles, Maker::Amd) => 0x76 | USER_AND_SYSTEM,
            (Self::Selector(selector), _) => selector.0,
            (Self::Fixed(_), _) => 0,
        };
        let both = EventSelector::GUEST_ONLY | EventSelector::HOST_ONLY;
        let whom = if maker == Maker::Amd && !guest { EventSelector::HOST_ONLY } else { 0 };
        let interrupt = if samples { EventSelector::INTERRUPT } else { 0 };
        wanted & !both & !EventSelector::INTERRUPT | whom | interrupt | EventSelector::ENABLE
    }
}

/// An event whose period has run over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sample {
    /// Which event, in the order in which they were asked for.
    pub event: usize,
    /// Where the processor was; `None` when the interrupt came too late to tell: an entry had begun.
    pub rip: Option<u64>,
    /// Whether that is an address of the guest's.
    pub guest: bool,
    /// When the interrupt was taken.
    pub at: Tsc,
}

/// Why a host cannot count what it wants.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum HostCountersError {
    /// The processor has no PMU that this pillar knows.
    NoPmu,
    /// The events need more counters than there are, of so many.
    TooManyEvents(u8),
    /// There is no fixed-function counter of this number, or it was asked for twice.
    NoFixedCounter(u8),
    /// The processor's selectors do not have these bits, and it would refuse them.
    ReservedBits(u64),
    /// A period is 0, or more than half of what a counter holds.
    Period(u64),
    /// The guest uses the same counters, and the processor cannot restore what it has in them (A18).
    NotRestorable,
    /// The events are to count the guest, which has a PMU of its own.
    CountsGuest,
}

impl fmt::Display for HostCountersError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoPmu => f.write_str("the processor has no PMU"),
            Self::TooManyEvents(counters) => write!(f, "the host's events need more than {counters} counters"),
            Self::NoFixedCounter(number) => write!(f, "there is no fixed-function counter {number} for the host"),
            Self::ReservedBits(bits) => write!(f, "bits {bits:#x} of an event's selector do not exist"),
            Self::Period(period) => write!(f, "a period of {period} events fits into no counter"),
            Self::NotRestorable => f.write_str("the guest's counters cannot be restored after the host's"),
            Self::CountsGuest => f.write_str("the host cannot count a guest that has a PMU of its own"),
        }
    }
}

impl core::error::Error for HostCountersError {}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Wish {
    event: HostEvent,
    period: Option<u64>,
    watches: bool,
}

/// What a host counts, and who is told of it: what [`HostCounters`] is made of.
#[derive(Clone, Debug)]
pub struct HostEvents {
    wishes: Vec<Wish>,
    guest: bool,
    pub(super) on_sample: fn(&Sample),
    pub(super) on_bark: fn(&Bark),
}

/// An event in the counter it was given.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Assigned {
    pub(super) counter: CounterIndex,
    /// The selector, or the four bits of IA32_FIXED_CTR_CTRL.
    pub(super) control: u64,
    pub(super) period: Option<u64>,
    pub(super) watches: bool,
    /// The bits of the counter.
    pub(super) mask: u64,
}

impl HostEvents {
    /// Whether the guest is counted as well.
    pub fn counts_guest(&self) -> bool {
        self.guest
    }

    /// Gives each event a counter: the highest ones, so that a guest that has fewer keeps its own.
    pub(super) fn assign(&self, pmu: &PmuCapability) -> Result<Vec<Assigned>, HostCountersError> {
        let (mut free, mut fixed) = (pmu.counters, pmu.fixed);
        let mut assigned = Vec::with_capacity(self.wishes.len());
        if self.wishes.len() > MAX_EVENTS {
            return Err(HostCountersError::TooManyEvents(MAX_EVENTS as u8));
        }
        for wish in &self.wishes {
            let samples = wish.period.is_some();
            let (counter, control, mask) = match wish.event {
                HostEvent::Fixed(n) => {
                    if n >= 8 || fixed >> n & 1 == 0 {
                        return Err(HostCountersError::NoFixedCounter(n));
                    }
                    fixed &= !(1 << n);
                    (CounterIndex::Fixed(n), 0b0011 | u64::from(samples) << 3, pmu.fixed_mask())
                }
                event => {
                    free = free.checked_sub(1).ok_or(HostCountersError::TooManyEvents(pmu.counters))?;
                    let selector = event.selector(pmu.maker, samples, self.guest);
                    if selector & !pmu.selector_bits() != 0 {
                        return Err(HostCountersError::ReservedBits(selector & !pmu.selector_bits()));
                    }
                    (CounterIndex::General(free), selector, pmu.counter_mask())
                }
            };
            // A counter of which 32 bits alone can be written takes half of them; so that an overflow shows, the highest
            // bit of any is set until then.
            let narrow =
                matches!(counter, CounterIndex::General(_)) && pmu.maker == Maker::Intel && !pmu.full_width_writes();
            let largest = if narrow { 1 << 31 } else { (mask >> 1) + 1 };
            if let Some(period) = wish.period.filter(|period| *period == 0 || *period > largest) {
                return Err(HostCountersError::Period(period));
            }
            assigned.push(Assigned { counter, control, period: wish.period, watches: wish.watches, mask });
        }
        Ok(assigned)
    }
}

/// Counters of the host's own, which do not count the guest; with `GUEST` they do, and the guest has no PMU.
#[derive(Clone, Debug)]
pub struct HostCounters<const GUEST: bool = false>(HostEvents);

impl HostCounters {
    /// Counts nothing yet.
    pub const fn new() -> Self {
        Self(HostEvents { wishes: Vec::new(), guest: false, on_sample: |_| {}, on_bark: panic_on_bark })
    }

    /// Has the events count the guest as well.
    pub fn counting_guest(self) -> HostCounters<true> {
        HostCounters(HostEvents { guest: true, ..self.0 })
    }
}

impl Default for HostCounters {
    fn default() -> Self {
        Self::new()
    }
}

impl<const GUEST: bool> HostCounters<GUEST> {
    pub(super) fn as_events(&self) -> &HostEvents {
        &self.0
    }

    fn wish(mut self, event: HostEvent, period: Option<u64>, watches: bool) -> Self {
        self.0.wishes.push(Wish { event, period, watches });
        self
    }

    /// Counts an event.
    pub fn count(self, event: HostEvent) -> Self {
        self.wish(event, None, false)
    }

    /// Counts an event, and takes a sample each `period` of it.
    pub fn sample(self, event: HostEvent, period: u64) -> Self {
        self.wish(event, Some(period), false)
    }

    /// Barks when the run loop has not entered the guest, nor the host [petted](crate::watchdog::pet) its watchdog, for
    /// `cycles` to twice as many cycles of the host's own. A processor that halts does not count them, and while the
    /// guest runs they are not counted.
    pub fn watchdog(self, cycles: u64) -> Self {
        self.wish(HostEvent::Cycles, Some(cycles), true)
    }

    /// Has `told` told of each sample, before the next entry. Without, samples are counted only.
    pub fn on_sample(mut self, told: fn(&Sample)) -> Self {
        self.0.on_sample = told;
        self
    }

    /// Has `told` told when the watchdog barks, in the handler of the NMI; without, the hypervisor panics. A watchdog
    /// whose bark returns goes on watching.
    pub fn on_bark(mut self, told: fn(&Bark)) -> Self {
        self.0.on_bark = told;
        self
    }
}
