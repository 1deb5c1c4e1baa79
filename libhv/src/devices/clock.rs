//! The crystal of a device, derived from the guest's time-stamp counter.

use crate::time::{Frequency, Tsc};

/// A clock that began to run at time-stamp counter 0.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    hz: u64,
    frequency: Frequency,
}

impl Clock {
    /// Makes a clock of `hz` hertz, which is not 0.
    pub(super) const fn new(hz: u64, frequency: Frequency) -> Self {
        Self { hz, frequency }
    }
    /// Returns the pulses that have passed by `now`.
    #[inline]
    pub(super) const fn pulses(self, now: Tsc) -> u64 {
        self.frequency.ticks_to(now.0, self.hz)
    }
    /// Returns the first moment by which `pulses` pulses have passed.
    #[inline]
    pub(super) const fn moment(self, pulses: u64) -> Tsc {
        Tsc(self.frequency.ticks_from(pulses, self.hz))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_moment_is_the_first_at_which_the_pulse_has_passed(pulses in 1u64..1 << 31, hz in 1u64..4_000_000, own in 4_000_000u64..5_000_000_000) {
            let clock = Clock::new(hz, Frequency::from_hz(own));
            let moment = clock.moment(pulses);
            prop_assert_eq!(clock.pulses(moment), pulses);
            prop_assert_eq!(clock.pulses(moment - 1), pulses - 1);
        }
    }
}
