//! Cycles by the time-stamp counter: it counts for the guest from entry to exit.

use super::counter::EmulatedPmu;
use crate::hw::PmuHardware;
use crate::time::Tsc;

impl EmulatedPmu {
    /// Returns whether the clock moves any counter.
    #[inline]
    pub fn ticks(&self) -> bool {
        self.ticking != 0
    }

    /// The guest is entered: its clock runs.
    #[inline]
    pub fn on_entry(&mut self, now: Tsc) {
        self.entered = now;
    }

    /// The guest has left: its clock stands still.
    #[inline]
    pub fn on_exit(&mut self, now: Tsc, hardware: &mut impl PmuHardware) {
        if self.ticking != 0 {
            self.tick(now.since(self.entered), hardware);
        }
    }

    fn tick(&mut self, ticks: u64, hardware: &mut impl PmuHardware) {
        let mut over = 0;
        for at in 0..self.counters.len() {
            if self.ticking >> self.counters[at].index.bit() & 1 != 0 {
                over |= self.add(at, ticks);
            }
        }
        self.run_over(over, hardware);
    }

    /// Returns when, in a guest that is entered now and stays, the clock makes a counter interrupt.
    #[inline]
    pub fn deadline(&self, now: Tsc) -> Option<Tsc> {
        if self.ticking == 0 {
            return None;
        }
        let ticking = self.counters.iter().filter(|counter| self.ticking >> counter.index.bit() & 1 != 0);
        let left = ticking.filter(|counter| self.interrupts(counter.index)).map(|counter| counter.mask - counter.value);
        left.min().map(|left| now + left + 1)
    }
}
