//! An open event: what it counts, what it has counted, and its overflows.

use super::abi::{RESULT_ENABLED, ResultBlock, SAVED_ENABLED, SAVED_OPEN, SavedEvent, VERSION};
use super::request::{Counted, Request};
use super::source::{CounterId, CounterSource};
use crate::address::Gpa;

/// An open event.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Event {
    request: Request,
    counter: Option<CounterId>,
    /// What was counted before it was last enabled.
    count: u64,
    /// Where it is enabled: what the counter held then.
    base: Option<u64>,
    overflows: u64,
    /// The count at which it last overflowed.
    since: u64,
}

impl Event {
    /// Makes one that is stopped, at 0.
    pub(super) fn new(request: Request, counter: Option<CounterId>) -> Self {
        Self { request, counter, count: 0, base: None, overflows: 0, since: 0 }
    }

    /// Makes one that goes on where a saved one was, stopped; `None` when no event can have come to hold these numbers.
    pub(super) fn resumed(request: Request, saved: &SavedEvent) -> Option<Self> {
        let (count, overflows, since) = (saved.count, saved.overflows, saved.since);
        let possible = match request.period {
            0 => since == 0 && overflows == 0,
            period => count.checked_sub(since).is_some_and(|ahead| ahead < period),
        };
        possible.then_some(Self { count, overflows, since, ..Self::new(request, None) })
    }

    pub(super) fn with_counter(self, counter: Option<CounterId>) -> Self {
        Self { counter, ..self }
    }

    /// Returns how far it is from its next overflow; without a period, 0.
    pub(super) fn ahead(&self) -> u64 {
        self.request.period.saturating_sub(self.count.wrapping_sub(self.since))
    }

    pub(super) fn counted(&self) -> Counted {
        self.request.counted
    }
    pub(super) fn counter(&self) -> Option<CounterId> {
        self.counter
    }
    pub(super) fn result(&self) -> Gpa {
        self.request.result
    }
    pub(super) fn notifies(&self) -> bool {
        self.request.notify
    }
    pub(super) fn is_enabled(&self) -> bool {
        self.base.is_some()
    }

    /// Returns whether it is this module that finds its overflows.
    pub(super) fn is_watched(&self) -> bool {
        self.is_enabled() && self.request.period != 0 && self.counter.is_none()
    }

    /// Has it count from `total` on.
    pub(super) fn enable(&mut self, total: u64, source: &mut impl CounterSource) {
        self.base = Some(total);
        if let Some(counter) = self.counter {
            source.start(counter, self.ahead());
        }
    }

    /// Brings its count to what `total` says.
    pub(super) fn settle(&mut self, total: u64) {
        if let Some(base) = &mut self.base {
            self.count = self.count.wrapping_add(total.wrapping_sub(*base));
            *base = total;
        }
    }

    /// Finds out how often it has overflowed since this was last asked.
    pub(super) fn find_overflows(&mut self) -> u64 {
        let times = self.count.wrapping_sub(self.since).checked_div(self.request.period).unwrap_or(0);
        if times != 0 {
            self.overflow(times);
        }
        times
    }

    /// Takes down overflows, which are a period's distance from each other.
    pub(super) fn overflow(&mut self, times: u64) {
        self.overflows = self.overflows.wrapping_add(times);
        self.since = self.since.wrapping_add(self.request.period.wrapping_mul(times));
    }

    /// Has it count no more; returns the counter that is to be stopped.
    pub(super) fn disable(&mut self) -> Option<CounterId> {
        self.base.take().and(self.counter)
    }

    /// Gives its counter back.
    pub(super) fn release(self, source: &mut impl CounterSource) {
        if let Some(counter) = self.counter {
            source.stop(counter);
            source.close(counter);
        }
    }

    /// Returns its result block.
    pub(super) fn block(&self) -> ResultBlock {
        ResultBlock {
            version: VERSION,
            length: ResultBlock::LENGTH,
            flags: if self.is_enabled() { RESULT_ENABLED } else { 0 },
            count: self.count,
            overflows: self.overflows,
        }
    }

    /// Returns it as a saved state has it.
    pub(super) fn saved(&self) -> SavedEvent {
        let enabled = if self.is_enabled() { SAVED_ENABLED } else { 0 };
        SavedEvent {
            open: self.request.encode(),
            flags: SAVED_OPEN | enabled,
            count: self.count,
            overflows: self.overflows,
            since: self.since,
        }
    }
}
