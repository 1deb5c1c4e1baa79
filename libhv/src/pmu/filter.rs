//! Filters of events: lists of what a guest may count, or may not, compiled to a table that is looked up in constant
//! time however long the lists are.
//!
//! An entry speaks of an event's number and unit mask, as the entries of KVM's masked filters do; edge, inversion and
//! threshold change when an event counts and not what it tells, and are not looked at.
//!
//! Events that reach beyond the processor itself are no danger here, with any filter: off-core responses (B7H and BBH,
//! on later processors 2AH and 2BH), load latency and front-end events count what their own MSRs name, uncore and
//! data-fabric counters are selected by theirs, and a guest has none of these. They stay 0, so that such an event counts
//! nothing. AnyThread, which counts the core's other thread, is no bit that a guest is shown.
//! [`EventFilter::NO_OFF_CORE`] denies the off-core events by number all the same.

use super::capability::PmuCapability;
use super::policy::{Means, PmuPolicy};
use super::registers::{EventSelector, FixedControl, Maker};
use alloc::boxed::Box;
use core::fmt;
use core::marker::PhantomData;

/// Entries that a filter may have, all its lists together.
pub const MAX_ENTRIES: usize = 300;
/// Events there can be: 8 bits of number on Intel's processors, 12 on AMD's.
const INTEL_EVENTS: usize = 0x100;
const AMD_EVENTS: usize = 0x1000;

/// An entry of a filter: events of one number, with some of their unit masks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MaskedEvent {
    /// The number, 0 to FFFH. Above FFH there are AMD's alone.
    pub event: u16,
    /// What the unit mask is, in the bits that `mask` has.
    pub unit_mask: u8,
    /// The bits of the unit mask that are compared: 0 for none, FFH for all.
    pub mask: u8,
    /// The entry takes events out that others of its list put in.
    pub except: bool,
}

impl MaskedEvent {
    /// An event with this unit mask and no other.
    pub const fn exact(event: u16, unit_mask: u8) -> Self {
        Self { event, unit_mask, mask: 0xFF, except: false }
    }
    /// An event with any unit mask.
    pub const fn any(event: u16) -> Self {
        Self { event, unit_mask: 0, mask: 0, except: false }
    }
    /// An event with those unit masks that are `unit_mask` in the bits of `mask`.
    pub const fn masked(event: u16, unit_mask: u8, mask: u8) -> Self {
        Self { event, unit_mask, mask, except: false }
    }
    /// Returns the same events as an exception of the list.
    pub const fn excepted(self) -> Self {
        Self { except: true, ..self }
    }
}

/// What is wrong with a filter.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum FilterError {
    /// There are more than [`MAX_ENTRIES`].
    TooManyEntries(usize),
    /// No processor has an event of this number.
    NoSuchEvent(MaskedEvent),
    /// The unit mask has bits that are not compared: the entry looks as if it said more than it does.
    UnitMaskBeyondMask(MaskedEvent),
}

impl fmt::Display for FilterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooManyEntries(count) => write!(f, "{count} entries are more than {MAX_ENTRIES}"),
            Self::NoSuchEvent(entry) => write!(f, "event {:#x} has more than 12 bits", entry.event),
            Self::UnitMaskBeyondMask(entry) => {
                let MaskedEvent { event, unit_mask, mask, .. } = entry;
                write!(f, "unit mask {unit_mask:#x} of event {event:#x} has bits that mask {mask:#x} has not")
            }
        }
    }
}

impl core::error::Error for FilterError {}

/// Which events a guest may count: those in a list, or those that are not. An event is in a list when an entry names
/// it and no exception does.
///
/// ```
/// use libhv::pmu::filter::{EventFilter, MaskedEvent};
/// /// Retired instructions, and branches but the far ones; of the fixed counters the first.
/// const EXACT: EventFilter =
///     EventFilter::allow(&[MaskedEvent::exact(0xC0, 0), MaskedEvent::any(0xC4), MaskedEvent::exact(0xC4, 0x40).excepted()])
///         .fixed(0b001);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EventFilter<'a> {
    allows: bool,
    events: &'a [MaskedEvent],
    amd: Option<&'a [MaskedEvent]>,
    fixed: u8,
}

impl EventFilter<'static> {
    /// Every event and every fixed-function counter.
    pub const ALLOW_ALL: Self = EventFilter::deny(&[]);
    /// Those that mean the same on all processors of a maker: the events that CPUID.0AH:EBX speaks of and the first four
    /// fixed-function counters; on AMD's processors cycles, instructions, branches and what of them was mispredicted.
    pub const ARCHITECTURAL: Self = EventFilter::allow(&[
        MaskedEvent::masked(0x3C, 0, 0xFE),
        MaskedEvent::exact(0xC0, 0),
        MaskedEvent::exact(0x2E, 0x4F),
        MaskedEvent::exact(0x2E, 0x41),
        MaskedEvent::exact(0xC4, 0),
        MaskedEvent::exact(0xC5, 0),
        MaskedEvent::exact(0xA4, 1),
    ])
    .on_amd(&[
        MaskedEvent::exact(0x76, 0),
        MaskedEvent::exact(0xC0, 0),
        MaskedEvent::exact(0xC2, 0),
        MaskedEvent::exact(0xC3, 0),
        MaskedEvent::exact(0xC4, 0),
        MaskedEvent::exact(0xC5, 0),
    ])
    .fixed(0xF);
    /// All but off-core responses, which count nothing in a guest.
    pub const NO_OFF_CORE: Self = EventFilter::deny(&[
        MaskedEvent::any(0xB7),
        MaskedEvent::any(0xBB),
        MaskedEvent::any(0x2A),
        MaskedEvent::any(0x2B),
    ])
    .on_amd(&[]);
}

impl<'a> EventFilter<'a> {
    /// Allows the events in a list, and no fixed-function counter.
    pub const fn allow(events: &'a [MaskedEvent]) -> Self {
        Self { allows: true, events, amd: None, fixed: 0 }
    }
    /// Allows the events that are not in a list, and every fixed-function counter.
    pub const fn deny(events: &'a [MaskedEvent]) -> Self {
        Self { allows: false, events, amd: None, fixed: 0 }
    }
    /// Has another list on AMD's processors, whose events have other numbers.
    #[must_use]
    pub const fn on_amd(self, events: &'a [MaskedEvent]) -> Self {
        Self { amd: Some(events), ..self }
    }
    /// Allows, or denies, the fixed-function counters whose bits are set; the others are the opposite.
    #[must_use]
    pub const fn fixed(self, counters: u8) -> Self {
        Self { fixed: counters, ..self }
    }

    /// Returns whether nothing is denied.
    pub const fn allows_all(&self) -> bool {
        let amd_denies = match self.amd {
            Some(list) => !list.is_empty(),
            None => false,
        };
        !self.allows && self.events.is_empty() && !amd_denies && self.fixed == 0
    }

    /// Compiles the lists.
    ///
    /// # Errors
    /// What is wrong with the first wrong entry, or with how many there are.
    pub const fn compile(&self) -> Result<CompiledFilter, FilterError> {
        let amd_entries = match self.amd {
            Some(list) => list.len(),
            None => 0,
        };
        let count = self.events.len().saturating_add(amd_entries);
        if count > MAX_ENTRIES {
            return Err(FilterError::TooManyEntries(count));
        }
        let mut filter = CompiledFilter {
            sets: [UnitMasks([0; 4]); MAX_ENTRIES + 1],
            intel: [0; INTEL_EVENTS],
            amd: [0; AMD_EVENTS],
            used: 1,
            unlisted: !self.allows,
            fixed: if self.allows { self.fixed } else { !self.fixed },
        };
        match self.amd {
            Some(list) => {
                if let Err(error) = filter.add(self.events, true, false) {
                    return Err(error);
                }
                if let Err(error) = filter.add(list, false, true) {
                    return Err(error);
                }
            }
            None => {
                if let Err(error) = filter.add(self.events, true, true) {
                    return Err(error);
                }
            }
        }
        Ok(filter)
    }
}

/// A bit for each unit mask.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct UnitMasks([u64; 4]);

/// A filter as it is looked up: an event's number gives its set of unit masks, and the unit mask a bit in it. Two loads,
/// and 18 KiB for any filter.
#[derive(Clone, PartialEq, Eq)]
pub struct CompiledFilter {
    /// The listed unit masks; the first set is that of the events without an entry.
    sets: [UnitMasks; MAX_ENTRIES + 1],
    intel: [u16; INTEL_EVENTS],
    amd: [u16; AMD_EVENTS],
    used: u16,
    /// Whether what is not in the list is permitted, rather than what is.
    unlisted: bool,
    fixed: u8,
}

impl CompiledFilter {
    /// Adds a list to the tables of one maker, or of both. There is room, as there is a set for each entry.
    const fn add(&mut self, list: &[MaskedEvent], intel: bool, amd: bool) -> Result<(), FilterError> {
        let mut pass = 0;
        // First all that is put in, then all that is taken out.
        while pass < 2 {
            let excepts = pass == 1;
            let mut n = 0;
            while n < list.len() {
                let entry = list[n];
                if entry.event as usize >= AMD_EVENTS {
                    return Err(FilterError::NoSuchEvent(entry));
                }
                if entry.unit_mask & !entry.mask != 0 {
                    return Err(FilterError::UnitMaskBeyondMask(entry));
                }
                if entry.except == excepts {
                    self.add_entry(entry, intel, amd);
                }
                n += 1;
            }
            pass += 1;
        }
        Ok(())
    }

    const fn add_entry(&mut self, entry: MaskedEvent, intel: bool, amd: bool) {
        let event = entry.event as usize;
        let intel = intel && event < INTEL_EVENTS;
        let mut index = if amd {
            self.amd[event]
        } else if intel {
            self.intel[event]
        } else {
            return;
        };
        if index == 0 {
            index = self.used;
            self.used += 1;
            if amd {
                self.amd[event] = index;
            }
            if intel {
                self.intel[event] = index;
            }
        }
        let mut unit_mask = 0;
        while unit_mask < 0x100 {
            if unit_mask & entry.mask as usize == entry.unit_mask as usize {
                let word = &mut self.sets[index as usize].0[unit_mask / 64];
                if entry.except {
                    *word &= !(1 << (unit_mask % 64));
                } else {
                    *word |= 1 << (unit_mask % 64);
                }
            }
            unit_mask += 1;
        }
    }

    /// Returns whether an event may be counted.
    #[inline]
    pub fn permits(&self, selector: EventSelector, maker: Maker) -> bool {
        let event = usize::from(selector.event(maker));
        let index = match maker {
            Maker::Intel => self.intel[event % INTEL_EVENTS],
            Maker::Amd => self.amd[event % AMD_EVENTS],
        };
        let unit_mask = usize::from(selector.unit_mask());
        let listed =
            self.sets.get(usize::from(index)).is_some_and(|set| set.0[unit_mask / 64] >> (unit_mask % 64) & 1 != 0);
        listed != self.unlisted
    }

    /// Returns whether a fixed-function counter may be used, 0 to 7; others may not.
    #[inline]
    pub fn permits_fixed(&self, counter: u8) -> bool {
        counter < 8 && self.fixed >> counter & 1 != 0
    }
}

impl fmt::Debug for CompiledFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { used, unlisted, fixed, .. } = self;
        f.debug_struct("CompiledFilter").field("used", used).field("unlisted", unlisted).field("fixed", fixed).finish()
    }
}

/// The guest owns the PMU, and counts what a filter permits: its selectors and IA32_FIXED_CTR_CTRL are intercepted,
/// everything else passes. For a filter that is known when the image is built, see [`FilteredBy`].
#[derive(Clone, Debug)]
pub struct Filtered {
    filter: Box<CompiledFilter>,
}

impl Filtered {
    /// Compiles a filter.
    ///
    /// # Errors
    /// Those of [`EventFilter::compile`].
    pub fn new(filter: &EventFilter<'_>) -> Result<Self, FilterError> {
        Ok(Self { filter: Box::new(filter.compile()?) })
    }
}

impl PmuPolicy for Filtered {
    const MEANS: Means = Means::Passed;
    const FILTERS: bool = true;

    #[inline]
    fn permits(&self, selector: EventSelector, host: &PmuCapability) -> bool {
        self.filter.permits(selector, host.maker)
    }
    #[inline]
    fn permits_fixed(&self, counter: u8, _: FixedControl) -> bool {
        self.filter.permits_fixed(counter)
    }
}

/// A filter that is known when the image is built.
pub trait ConstFilter {
    /// The filter.
    const FILTER: EventFilter<'static>;
}

/// As [`Filtered`], by a filter that is compiled with the image: a wrong one does not build, and one that allows
/// everything is [`Passthrough`](super::Passthrough).
///
/// ```
/// use libhv::pmu::filter::{ConstFilter, EventFilter, FilteredBy};
/// struct Architectural;
/// impl ConstFilter for Architectural {
///     const FILTER: EventFilter<'static> = EventFilter::ARCHITECTURAL;
/// }
/// let policy = FilteredBy::<Architectural>::new();
/// # let _ = policy;
/// ```
pub struct FilteredBy<F>(PhantomData<fn() -> F>);

impl<F> FilteredBy<F> {
    /// Gives all that the processor has, but what the filter denies.
    pub const fn new() -> Self {
        Self(PhantomData)
    }
}

impl<F> Clone for FilteredBy<F> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<F> Copy for FilteredBy<F> {}
impl<F> Default for FilteredBy<F> {
    fn default() -> Self {
        Self::new()
    }
}
impl<F> fmt::Debug for FilteredBy<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FilteredBy")
    }
}

impl<F: ConstFilter> FilteredBy<F> {
    const COMPILED: &'static CompiledFilter = &match F::FILTER.compile() {
        Ok(filter) => filter,
        Err(FilterError::TooManyEntries(_)) => panic!("the filter has more than 300 entries"),
        Err(FilterError::NoSuchEvent(_)) => panic!("an event's number has more than 12 bits"),
        Err(FilterError::UnitMaskBeyondMask(_)) => panic!("a unit mask has bits that its mask has not"),
    };
}

impl<F: ConstFilter> PmuPolicy for FilteredBy<F> {
    const MEANS: Means = Means::Passed;
    const FILTERS: bool = !F::FILTER.allows_all();

    #[inline]
    fn permits(&self, selector: EventSelector, host: &PmuCapability) -> bool {
        !Self::FILTERS || Self::COMPILED.permits(selector, host.maker)
    }
    #[inline]
    fn permits_fixed(&self, counter: u8, _: FixedControl) -> bool {
        !Self::FILTERS || Self::COMPILED.permits_fixed(counter)
    }
}

#[cfg(test)]
mod tests;
