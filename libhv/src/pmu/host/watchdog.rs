//! The watchdog that needs no counter: each processor looks after its neighbour (requirement A27).
//!
//! A processor that makes progress says so with [`beat`](Buddies::beat), at every entry of its guest or whatever it
//! does; one that halts or ends says [`rest`](Buddies::rest). At a tick, [`check`](Buddies::check) looks whether the
//! neighbour has made progress, and barks once it has made none for the patience.
//!
//! A processor without a neighbour watches itself, by a tick that must come even where interrupts are off: an NMI, which
//! an I/O APIC sends from a timer.

use super::events::{Bark, panic_on_bark};
use crate::time::Tsc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// One processor's progress, and when it was last seen to make some.
#[derive(Debug)]
struct Buddy {
    /// Twice the beats, and 1 more while it rests.
    beats: AtomicU64,
    /// The same as its watcher saw them last.
    seen: AtomicU64,
    since: AtomicU64,
}

/// All processors, each of which watches the next that is there.
#[derive(Debug)]
pub struct Buddies {
    buddies: Vec<Buddy>,
    patience: u64,
    on_bark: fn(&Bark),
}

impl Buddies {
    /// Makes a watch over `processors`, all at rest, that barks when one has made no progress for `patience` ticks of
    /// the time-stamp counter. A bark is a panic.
    pub fn new(processors: usize, patience: u64) -> Self {
        let buddy = || Buddy { beats: AtomicU64::new(1), seen: AtomicU64::new(1), since: AtomicU64::new(0) };
        Self { buddies: (0..processors).map(|_| buddy()).collect(), patience, on_bark: panic_on_bark }
    }

    /// Has `told` told of barks instead.
    pub fn on_bark(self, told: fn(&Bark)) -> Self {
        Self { on_bark: told, ..self }
    }

    /// A processor makes progress. It alone calls this.
    #[inline]
    pub fn beat(&self, processor: usize) {
        if let Some(buddy) = self.buddies.get(processor) {
            buddy.beats.store((buddy.beats.load(Relaxed) & !1).wrapping_add(2), Relaxed);
        }
    }

    /// A processor will make no progress, and need not, until it [beats](Self::beat) again.
    #[inline]
    pub fn rest(&self, processor: usize) {
        if let Some(buddy) = self.buddies.get(processor) {
            buddy.beats.store(buddy.beats.load(Relaxed) | 1, Relaxed);
        }
    }

    /// Returns whom a processor watches: the next that does not rest, itself when there is no other.
    pub fn neighbour(&self, processor: usize) -> usize {
        let mut others = (processor + 1..self.buddies.len()).chain(0..processor);
        others.find(|&other| self.buddies[other].beats.load(Relaxed) & 1 == 0).unwrap_or(processor)
    }

    /// A tick of `processor`: looks after its neighbour, and barks once for each patience that goes by without progress.
    /// `rip` is where this processor was interrupted, which tells something when it watches itself. Returns whether it
    /// barked.
    pub fn check(&self, processor: usize, now: Tsc, rip: Option<u64>) -> bool {
        let neighbour = self.neighbour(processor);
        let Some(buddy) = self.buddies.get(neighbour) else { return false };
        let beats = buddy.beats.load(Relaxed);
        if beats & 1 != 0 || buddy.seen.swap(beats, Relaxed) != beats {
            buddy.since.store(now.0, Relaxed);
            return false;
        }
        if now.since(Tsc(buddy.since.load(Relaxed))) < self.patience {
            return false;
        }
        buddy.since.store(now.0, Relaxed);
        let rip = rip.filter(|_| neighbour == processor);
        (self.on_bark)(&Bark { processor: neighbour, rip, beats: beats / 2 });
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    const PATIENCE: u64 = 1000;

    /// Requirement A27.
    #[test]
    fn a_processor_that_stops_is_barked_at_by_its_neighbour() {
        let buddies = Buddies::new(3, PATIENCE).on_bark(|bark| assert_eq!((bark.processor, bark.rip), (1, None)));
        let mut barks = 0;
        for tick in 0..40 {
            for processor in (0..3).filter(|&processor| processor != 1 || tick < 10) {
                buddies.beat(processor);
                barks += u32::from(buddies.check(processor, Tsc(tick * 100), Some(7)));
            }
        }
        // Stopped at 1000 and seen so at 1100 at the latest, with 2900 to go.
        assert_eq!(barks, 2);
    }

    #[test]
    fn a_bark_is_a_panic_that_says_who_and_where() {
        let buddies = Buddies::new(1, PATIENCE);
        buddies.beat(0);
        assert!(!buddies.check(0, Tsc(0), None));
        let bark = catch_unwind(AssertUnwindSafe(|| buddies.check(0, Tsc(PATIENCE), Some(0x10_0000))));
        let words = bark.expect_err("a panic").downcast::<std::string::String>().expect("words");
        assert_eq!(*words, "watchdog: processor 0 has made no progress since entry 1, it is at 0x100000");
    }

    #[test]
    fn whoever_rests_need_not_make_progress_and_watches_nobody_alone() {
        let buddies = Buddies::new(2, PATIENCE).on_bark(|bark| panic!("{bark}"));
        for tick in 0..100 {
            buddies.beat(0);
            buddies.check(0, Tsc(tick * 100), None);
        }
        assert_eq!((buddies.neighbour(0), buddies.neighbour(1)), (0, 0));
        buddies.beat(1);
        assert_eq!(buddies.neighbour(0), 1);
        buddies.rest(1);
        assert_eq!(buddies.neighbour(0), 0);
    }

    proptest! {
        /// However ticks and progress fall, a bark means a whole patience without progress, and two patiences without
        /// progress mean a bark.
        #[test]
        fn a_bark_means_that_there_was_no_progress_for_the_patience(
            steps in proptest::collection::vec((1u64..300, any::<bool>(), any::<bool>()), 1..200)
        ) {
            let buddies = Buddies::new(2, PATIENCE).on_bark(|_| {});
            buddies.beat(0);
            buddies.beat(1);
            let (mut now, mut progress, mut quiet_checks) = (0, 0, None::<u64>);
            for (ahead, beats, ticks) in steps {
                now += ahead;
                if beats {
                    buddies.beat(1);
                    (progress, quiet_checks) = (now, None);
                }
                if ticks {
                    let barked = buddies.check(0, Tsc(now), None);
                    prop_assert!(!barked || now - progress >= PATIENCE, "{} after {}", now, progress);
                    let first = *quiet_checks.get_or_insert(now);
                    prop_assert!(barked || now - first < PATIENCE || progress == 0, "no bark at {} from {}", now, first);
                    if barked {
                        quiet_checks = Some(now);
                    }
                }
            }
        }
    }
}
