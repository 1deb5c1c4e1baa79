//! Time as the time-stamp counter counts it: the one clock of host, guest and device models.

use core::ops::{Add, Sub};

/// A moment: a value of the host's time-stamp counter. Deadlines of every device are kept in it, so that comparing
/// one with the clock is one subtraction.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Tsc(pub u64);

impl Tsc {
    /// Returns the ticks from `earlier` to this moment, 0 when `earlier` is later.
    #[inline]
    pub const fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<u64> for Tsc {
    type Output = Self;
    #[inline]
    fn add(self, ticks: u64) -> Self {
        Self(self.0.saturating_add(ticks))
    }
}

impl Sub<u64> for Tsc {
    type Output = Self;
    #[inline]
    fn sub(self, ticks: u64) -> Self {
        Self(self.0.saturating_sub(ticks))
    }
}

/// Ticks of the time-stamp counter in a second. Never 0.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Frequency(u64);

impl Frequency {
    /// Takes a frequency in hertz; 0 is taken as 1.
    pub const fn from_hz(hz: u64) -> Self {
        Self(if hz == 0 { 1 } else { hz })
    }
    /// Returns the frequency in hertz.
    pub const fn hz(self) -> u64 {
        self.0
    }
    /// Converts ticks of the time-stamp counter to periods of a clock of `hz` hertz, rounding down.
    #[inline]
    pub const fn ticks_to(self, ticks: u64, hz: u64) -> u64 {
        (ticks as u128 * hz as u128 / self.0 as u128) as u64
    }
    /// Converts periods of a clock of `hz` hertz (not 0) to ticks of the time-stamp counter, rounding up, so that a
    /// deadline is never early; saturates at 2^64 - 1.
    #[inline]
    pub const fn ticks_from(self, periods: u64, hz: u64) -> u64 {
        let ticks = (periods as u128 * self.0 as u128).div_ceil(hz as u128);
        if ticks > u64::MAX as u128 { u64::MAX } else { ticks as u64 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_deadline_computed_from_periods_is_never_early(periods in 0u64..1 << 40, hz in 1u64..5_000_000_000, own in 1u64..5_000_000_000) {
            let clock = Frequency::from_hz(own);
            prop_assert!(clock.ticks_to(clock.ticks_from(periods, hz), hz) >= periods);
        }
    }
}
