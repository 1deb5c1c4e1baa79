//! The local APIC's timer: one-shot, periodic and TSC-deadline (SDM Vol. 3A 11.5.4).

use crate::time::{Frequency, Tsc};
use bit_field::BitField;

/// How fast the timer's clock runs before it is divided, in hertz: the "core crystal clock" that CPUID leaf 15H and
/// a hypervisor leaf may tell the guest.
pub const APIC_TIMER_HZ: u64 = 1_000_000_000;

/// A deadline that never comes.
const NEVER: Tsc = Tsc(u64::MAX);

/// A fraction as multiplier and shift, so that applying it needs no division. It is rounded up by less than 2^-shift.
#[derive(Clone, Copy, Debug)]
struct Ratio {
    multiplier: u64,
    shift: u32,
}

impl Ratio {
    /// Takes `over / under`; `under` is not 0.
    fn new(over: u64, under: u64) -> Self {
        let scaled = |shift: u32| ((over as u128) << shift).div_ceil(under as u128);
        let shift = (0..=63).rev().find(|&shift| scaled(shift) <= u64::MAX.into()).unwrap_or(0);
        Self { multiplier: scaled(shift) as u64, shift }
    }

    #[inline]
    fn product(self, value: u64) -> u128 {
        value as u128 * self.multiplier as u128
    }

    /// Multiplies, rounding down; saturates.
    #[inline]
    fn down(self, value: u64) -> u64 {
        u64::try_from(self.product(value) >> self.shift).unwrap_or(u64::MAX)
    }

    /// Multiplies, rounding up; saturates.
    #[inline]
    fn up(self, value: u64) -> u64 {
        let whole = self.down(value);
        let rest = self.product(value) & ((1 << self.shift) - 1);
        whole.saturating_add((rest != 0).into())
    }
}

/// What the timer does when its time comes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Mode {
    OneShot,
    Periodic,
    TscDeadline,
    /// 11b, reserved: the timer stands.
    Reserved,
}

impl Mode {
    /// Returns the mode in bits 18:17 of the LVT timer register.
    #[inline]
    pub(super) fn of_entry(entry: u32) -> Self {
        match entry.get_bits(17..19) {
            0 => Self::OneShot,
            1 => Self::Periodic,
            2 => Self::TscDeadline,
            _ => Self::Reserved,
        }
    }

    fn counts(self) -> bool {
        matches!(self, Self::OneShot | Self::Periodic)
    }
}

#[derive(Clone, Debug)]
pub(super) struct Timer {
    mode: Mode,
    initial: u32,
    divide: u32,
    /// The count that stood in the current-count register at `start`.
    count: u32,
    start: Tsc,
    deadline: Tsc,
    clock_per_tsc: Ratio,
    tsc_per_clock: Ratio,
}

impl Timer {
    pub(super) fn new(frequency: Frequency) -> Self {
        Self {
            mode: Mode::OneShot,
            initial: 0,
            divide: 0,
            count: 0,
            start: Tsc(0),
            deadline: NEVER,
            clock_per_tsc: Ratio::new(APIC_TIMER_HZ, frequency.hz()),
            tsc_per_clock: Ratio::new(frequency.hz(), APIC_TIMER_HZ),
        }
    }

    /// Puts every register back to what it is after power-up.
    pub(super) fn reset(&mut self) {
        (self.mode, self.initial, self.divide, self.count, self.deadline) = (Mode::OneShot, 0, 0, 0, NEVER);
    }

    /// Returns when the timer expires next, in the far future when it stands.
    #[inline]
    pub(super) const fn deadline(&self) -> Tsc {
        self.deadline
    }

    /// Returns whether the timer is going to expire at all.
    #[inline]
    pub(super) const fn armed(&self) -> bool {
        self.deadline.0 != NEVER.0
    }

    /// Returns whether the timer has expired since the last call, and goes on to its next deadline. Several periods
    /// that went by together count once, as the IRR would have it.
    #[inline]
    pub(super) fn expire(&mut self, now: Tsc) -> bool {
        if now < self.deadline || !self.armed() {
            return false;
        }
        if self.mode == Mode::Periodic {
            let period = self.span(self.initial).max(1);
            let missed = now.since(self.deadline);
            let skipped = if missed < period { 0 } else { missed / period * period };
            self.start = self.deadline + skipped;
            self.count = self.initial;
            self.deadline = self.start + period;
        } else {
            self.deadline = NEVER;
        }
        true
    }

    /// Changes the mode. A change to or from TSC-deadline disarms the timer; between one-shot and periodic the count
    /// goes on, as it does on processors, though the manual says that every change disarms.
    pub(super) fn set_mode(&mut self, mode: Mode) {
        if mode.counts() != self.mode.counts() || (mode != self.mode && !mode.counts()) {
            (self.deadline, self.initial) = (NEVER, 0);
        }
        self.mode = mode;
    }

    /// Returns IA32_TSC_DEADLINE: 0 when disarmed, and in any other mode.
    pub(super) fn tsc_deadline(&self) -> u64 {
        if self.mode == Mode::TscDeadline && self.armed() { self.deadline.0 } else { 0 }
    }

    /// Writes IA32_TSC_DEADLINE: 0 disarms; in any other mode nothing happens. The last moment of the counter cannot
    /// be told from never.
    #[inline]
    pub(super) fn set_tsc_deadline(&mut self, value: u64) {
        if self.mode == Mode::TscDeadline {
            self.deadline = if value == 0 { NEVER } else { Tsc(value) };
        }
    }

    /// Returns the initial-count register.
    pub(super) const fn initial(&self) -> u32 {
        self.initial
    }

    /// Writes the initial-count register, which starts the count, or with 0 stops it; in TSC-deadline mode nothing
    /// happens.
    pub(super) fn set_initial(&mut self, initial: u32, now: Tsc) {
        if self.mode.counts() {
            self.initial = initial;
            self.begin(initial, now);
        }
    }

    /// Returns the current-count register.
    pub(super) fn current(&self, now: Tsc) -> u32 {
        if !self.mode.counts() || !self.armed() {
            return 0;
        }
        let passed = self.clock_per_tsc.down(now.since(self.start)) >> self.divide_shift();
        // The deadline decides when 0 is reached.
        u64::from(self.count).saturating_sub(passed).max(1) as u32
    }

    /// Returns the divide configuration register.
    pub(super) const fn divide(&self) -> u32 {
        self.divide
    }

    /// Writes the divide configuration register; what is left of a count runs at the new rate from here on.
    pub(super) fn set_divide(&mut self, value: u32, now: Tsc) {
        let left = self.current(now);
        self.divide = value & 0b1011;
        if self.mode.counts() && self.armed() {
            self.begin(left, now);
        }
    }

    /// Counts down from `count`, which is 0 to stand still.
    fn begin(&mut self, count: u32, now: Tsc) {
        self.count = count;
        self.start = now;
        self.deadline = if count == 0 { NEVER } else { now + self.span(count) };
    }

    /// Returns the ticks of the time-stamp counter in `count` divided periods, at least 1.
    fn span(&self, count: u32) -> u64 {
        self.tsc_per_clock.up(u64::from(count) << self.divide_shift())
    }

    /// Returns the logarithm of the divisor, 0 to 7: bits 3 and 1:0 of the register, 000b for 2 and 111b for 1.
    #[inline]
    fn divide_shift(&self) -> u32 {
        let bits = self.divide & 3 | (self.divide >> 1) & 4;
        (bits + 1) & 7
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The divisors of SDM Vol. 3A Figure "Divide Configuration Register".
    const DIVISORS: [(u32, u64); 8] = [(0, 2), (1, 4), (2, 8), (3, 16), (8, 32), (9, 64), (10, 128), (11, 1)];

    /// A timer that lives through every tick of its clock.
    struct Ticking {
        initial: u32,
        current: u32,
        divisor: u64,
        phase: u64,
        periodic: bool,
    }

    impl Ticking {
        fn tick(&mut self) -> bool {
            if self.current == 0 {
                return false;
            }
            self.phase += 1;
            if self.phase < self.divisor {
                return false;
            }
            self.phase = 0;
            self.current -= 1;
            let expired = self.current == 0;
            if expired && self.periodic {
                self.current = self.initial;
            }
            expired
        }
    }

    proptest! {
        #[test]
        fn the_timer_agrees_with_one_that_counts_every_tick(
            ratio in 1u64..5,
            divide in 0usize..8,
            initial in 0u32..40,
            periodic: bool,
            rewrite in prop::option::of((1u64..300, 0u32..40)),
            steps in prop::collection::vec(1u64..50, 1..40),
        ) {
            let (register, divisor) = DIVISORS[divide];
            let mut timer = Timer::new(Frequency::from_hz(APIC_TIMER_HZ * ratio));
            let mut model = Ticking { initial, current: initial, divisor, phase: 0, periodic };
            timer.set_mode(if periodic { Mode::Periodic } else { Mode::OneShot });
            timer.set_divide(register, Tsc(1000));
            timer.set_initial(initial, Tsc(1000));
            let mut clock = 0;
            for step in steps {
                let mut expired = false;
                for _ in 0..step {
                    clock += 1;
                    if let Some((at, again)) = rewrite && clock == at {
                        timer.expire(Tsc(1000 + (clock - 1) * ratio));
                        timer.set_initial(again, Tsc(1000 + (clock - 1) * ratio));
                        (model.initial, model.current, model.phase, expired) = (again, again, 0, false);
                    }
                    expired |= model.tick();
                }
                let now = Tsc(1000 + clock * ratio);
                prop_assert_eq!(timer.expire(now), expired, "at {} of its clock", clock);
                prop_assert_eq!(timer.current(now), model.current);
                prop_assert!(!timer.armed() || timer.deadline() > now);
                prop_assert!(!timer.expire(now));
            }
        }

        #[test]
        fn a_deadline_is_never_early_and_at_most_one_tick_late(initial in 1u32.., divide in 0usize..8, hz in 1_000_000u64..10_000_000_000) {
            let (register, divisor) = DIVISORS[divide];
            let mut timer = Timer::new(Frequency::from_hz(hz));
            timer.set_divide(register, Tsc(0));
            timer.set_initial(initial, Tsc(5));
            let exact = (u128::from(initial) * u128::from(divisor) * u128::from(hz)).div_ceil(APIC_TIMER_HZ.into()) as u64;
            let late = timer.deadline().0 - 5 - exact;
            prop_assert!(late <= 1);
        }
    }

    #[test]
    fn a_new_divisor_applies_to_the_rest_of_the_count() {
        let mut timer = Timer::new(Frequency::from_hz(APIC_TIMER_HZ));
        timer.set_divide(0b1011, Tsc(0));
        timer.set_initial(100, Tsc(0));
        timer.set_divide(0b0000, Tsc(60));
        assert_eq!(timer.current(Tsc(60)), 40);
        assert_eq!(timer.deadline(), Tsc(60 + 40 * 2));
    }

    #[test]
    fn one_shot_and_periodic_share_a_count_and_tsc_deadline_does_not() {
        let mut timer = Timer::new(Frequency::from_hz(APIC_TIMER_HZ));
        timer.set_divide(0b1011, Tsc(0));
        timer.set_initial(100, Tsc(0));
        timer.set_mode(Mode::Periodic);
        assert_eq!(timer.current(Tsc(10)), 90);
        timer.set_mode(Mode::TscDeadline);
        assert!(!timer.armed());
        timer.set_initial(100, Tsc(20));
        assert!(!timer.armed());
        timer.set_tsc_deadline(77);
        assert_eq!((timer.deadline(), timer.tsc_deadline(), timer.current(Tsc(20))), (Tsc(77), 77, 0));
        assert!(timer.expire(Tsc(77)));
        assert_eq!(timer.tsc_deadline(), 0);
        timer.set_tsc_deadline(90);
        timer.set_tsc_deadline(0);
        assert!(!timer.expire(Tsc(100)));
        timer.set_mode(Mode::OneShot);
        timer.set_tsc_deadline(90);
        assert!(!timer.armed());
    }

    #[test]
    fn the_largest_count_on_the_fastest_clock_saturates() {
        let mut timer = Timer::new(Frequency::from_hz(u64::MAX));
        timer.set_divide(0b1010, Tsc(0));
        timer.set_mode(Mode::Periodic);
        timer.set_initial(u32::MAX, Tsc(u64::MAX - 1));
        assert!(timer.current(Tsc(u64::MAX)) > 0 || !timer.armed());
        timer.expire(Tsc(u64::MAX));
    }
}
