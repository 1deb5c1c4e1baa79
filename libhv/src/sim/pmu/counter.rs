//! One performance counter: a number of so many bits that wraps.

use super::happened::{Condition, Happened};

/// A counter, and whether the condition it follows held in the last period it saw.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Counter {
    value: u64,
    width: u32,
    held: bool,
}

impl Counter {
    /// A counter at 0.
    ///
    /// # Panics
    /// When `width` is not 32 to 63.
    pub(super) fn new(width: u8) -> Self {
        assert!((32..64).contains(&width), "a counter of {width} bits");
        Self { value: 0, width: width.into(), held: false }
    }

    /// The bits that exist.
    pub(super) fn mask(&self) -> u64 {
        (1 << self.width) - 1
    }

    pub(super) fn value(&self) -> u64 {
        self.value
    }

    /// Sets it; bits that do not exist are lost.
    pub(super) fn set(&mut self, value: u64) {
        self.value = value & self.mask();
    }

    /// The condition is another from here on, or is not watched: it does not hold.
    pub(super) fn look_away(&mut self) {
        self.held = false;
    }

    /// Counts a step; returns whether the counter overflowed, which is once at most.
    pub(super) fn count(&mut self, condition: &Condition, happened: &Happened) -> bool {
        let (amount, held) = condition.advances(happened, self.held);
        self.held = held;
        let room = self.mask() - self.value;
        self.set(self.value.wrapping_add(amount));
        amount > room
    }
}
