//! Watchdogs: how a host that makes no progress is noticed, and what is said of it (requirement A27).
//!
//! The host runs with interrupts off, so what looks after it comes as an NMI. Two sources can be had:
//! [`HostCounters::watchdog`](crate::pmu::host::HostCounters::watchdog) counts the host's own cycles; a [`Watchdog`] has a
//! timer's tick and no counter, for a host whose guest has the PMU.
//!
//! Progress is an exit of the guest, or [`pet`]. Neither costs an exit anything: exits are counted already.

use crate::time::Tsc;
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use core::time::Duration;

/// A watchdog's alarm: a processor of the host has made no progress.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bark {
    /// The processor that stopped.
    pub processor: usize,
    /// The address of the instruction it was at, where that is known.
    pub rip: Option<u64>,
    /// How far it had come: exits of its guest, or entries, and calls of [`pet`], modulo 2^64.
    pub beats: u64,
}

impl fmt::Display for Bark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "processor {} has made no progress since beat {}", self.processor, self.beats)?;
        self.rip.map_or(Ok(()), |rip| write!(f, ", it is at {rip:#x}"))
    }
}

static PETS: AtomicU64 = AtomicU64::new(0);
static BARKED: AtomicBool = AtomicBool::new(false);

/// Tells the watchdog that the host makes progress, where it does something long between an exit and the next entry.
#[inline]
pub fn pet() {
    PETS.fetch_add(1, Relaxed);
}

/// Returns how often [`pet`] has been called.
#[inline]
pub(crate) fn pets() -> u64 {
    PETS.load(Relaxed)
}

/// Panics: the last words tell the last exits of every virtual processor, and the image ends with the status of a host
/// that hangs.
pub(crate) fn panic_on_bark(bark: &Bark) {
    BARKED.store(true, Relaxed);
    panic!("watchdog: {bark}");
}

/// Returns whether a watchdog's bark is why the hypervisor panics.
#[cfg_attr(
    not(any(test, target_os = "none")),
    expect(dead_code, reason = "the panic handler of the bare machine asks")
)]
pub(crate) fn barked() -> bool {
    BARKED.load(Relaxed)
}

/// A watchdog that uses no counter of the PMU: a timer's tick, which comes as an NMI, looks whether the host makes
/// progress. Without [`on_bark`](Self::on_bark) a bark is a panic that says where the host is.
///
/// The guest's time does not count: a guest that runs without an exit leaves for each tick, which is progress. Neither
/// does a host count that halts until an interrupt comes.
///
/// ```
/// use core::time::Duration;
/// use libhv::watchdog::Watchdog;
///
/// let watchdog = Watchdog::after(Duration::from_secs(2)).on_bark(|bark| panic!("{bark}"));
/// # let _ = watchdog;
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Watchdog {
    /// For how long the host may make no progress.
    pub patience: Duration,
    /// Who is told of a bark.
    pub on_bark: fn(&Bark),
}

impl Watchdog {
    /// Barks when the host has made no progress for `patience`, and two ticks of the timer later at the latest. Any
    /// patience will do; one shorter than a tick is as long as a tick.
    pub const fn after(patience: Duration) -> Self {
        Self { patience, on_bark: panic_on_bark }
    }

    /// Has `told` told of a bark, in the handler of the NMI: it may interrupt the host anywhere, so it takes no locks and
    /// no memory. When it returns the host goes on, and the watchdog goes on watching.
    pub const fn on_bark(self, told: fn(&Bark)) -> Self {
        Self { on_bark: told, ..self }
    }
}

impl From<Duration> for Watchdog {
    fn from(patience: Duration) -> Self {
        Self::after(patience)
    }
}

/// One processor, as it was when a tick last looked.
#[derive(Clone, Debug, Default)]
struct Buddy {
    /// Its beats; `None` while it rests.
    seen: Option<u64>,
    /// How long it has made no progress, in ticks of the time-stamp counter.
    quiet: u64,
}

/// What a tick finds out: the processors look after each other, by whichever of them the tick interrupts. The platform of
/// an appliance drives it for a [`Watchdog`]; a kernel that brings its own tick drives it itself.
#[derive(Debug)]
pub struct Buddies {
    buddies: Vec<Buddy>,
    patience: u64,
    tick: u64,
    looked: Tsc,
}

impl Buddies {
    /// Begins to look after `processors` at `now`: `tick` is the time from one tick to the next, and `patience` how long
    /// a processor may stand still, in ticks of the time-stamp counter.
    pub fn new(processors: usize, patience: u64, tick: u64, now: Tsc) -> Self {
        Self { buddies: alloc::vec![Buddy::default(); processors], patience, tick, looked: now }
    }

    /// A tick has interrupted processor `here` at `rip`. `beats` tells how far a processor has come, `None` when it
    /// rests. Returns an alarm where a processor has stood still for the patience; the next one of it comes after
    /// another.
    ///
    /// Time is counted as far as ticks account for it: when all of the machine has stood still, as a virtual machine may,
    /// that is no lack of progress.
    pub fn look(&mut self, now: Tsc, here: usize, rip: u64, beats: impl Fn(usize) -> Option<u64>) -> Option<Bark> {
        let passed = now.since(self.looked).min(self.tick.saturating_mul(2));
        self.looked = now;
        let mut bark = None;
        for (processor, buddy) in self.buddies.iter_mut().enumerate() {
            let beats = beats(processor);
            let still = beats.filter(|_| beats == buddy.seen);
            buddy.seen = beats;
            buddy.quiet = if still.is_some() { buddy.quiet.saturating_add(passed) } else { 0 };
            if let Some(beats) = still.filter(|_| buddy.quiet >= self.patience && bark.is_none()) {
                buddy.quiet = 0;
                bark = Some(Bark { processor, rip: (processor == here).then_some(rip), beats });
            }
        }
        bark
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::panic::catch_unwind;

    const PATIENCE: u64 = 1000;
    const TICK: u64 = 100;

    fn buddies(processors: usize) -> Buddies {
        Buddies::new(processors, PATIENCE, TICK, Tsc(0))
    }

    /// Requirement A27.
    #[test]
    fn a_processor_that_stops_is_barked_at_wherever_the_tick_comes() {
        let mut buddies = buddies(3);
        let mut barks = std::vec::Vec::new();
        for tick in 1..=40 {
            let beats = |processor| Some(if processor == 1 { 10.min(tick) } else { tick });
            let here = tick as usize % 3;
            barks.extend(buddies.look(Tsc(tick * TICK), here, 7, beats).map(|bark| (tick, bark)));
        }
        // It beats last before tick 10, and is seen so then.
        let bark = |rip| Bark { processor: 1, rip, beats: 10 };
        assert_eq!(barks, [(20, bark(None)), (30, bark(None)), (40, bark(Some(7)))]);
    }

    #[test]
    fn whoever_rests_need_not_make_progress() {
        let mut buddies = buddies(1);
        for tick in 1..100 {
            let rests = tick % 10 == 0;
            assert_eq!(buddies.look(Tsc(tick * TICK), 0, 7, |_| (!rests).then_some(1)), None);
        }
    }

    /// A27: a look tells of one; the other is told of by the next.
    #[test]
    fn of_two_that_stop_both_are_barked_at() {
        let mut buddies = buddies(2);
        let barks = (1..=12).filter_map(|tick| buddies.look(Tsc(tick * TICK), 0, 7, |_| Some(1)));
        assert_eq!(barks.map(|bark| bark.processor).collect::<std::vec::Vec<_>>(), [0, 1]);
    }

    #[test]
    fn the_time_of_a_rest_does_not_count() {
        let mut buddies = buddies(1);
        let mut barks = |tick| buddies.look(Tsc(tick * TICK), 0, 7, |_| (tick != 3).then_some(1)).is_some();
        // It is seen at tick 4 for the first time since.
        assert_eq!((1..=20).find(|tick| barks(*tick)), Some(14));
    }

    /// Otherwise a virtual machine that was stopped for a while would find its hypervisor stuck.
    #[test]
    fn time_without_ticks_is_no_lack_of_progress() {
        let mut buddies = buddies(1);
        let barked = (1..=4).any(|look| buddies.look(Tsc(look * 1_000_000), 0, 7, |_| Some(1)).is_some());
        assert!(!barked, "three stretches of which no more than two ticks count");
        assert!((5..=6).any(|look| buddies.look(Tsc(look * 1_000_000), 0, 7, |_| Some(1)).is_some()));
    }

    #[test]
    fn a_bark_is_a_panic_that_says_who_and_where() {
        let bark = Bark { processor: 0, rip: Some(0x10_0000), beats: 1 };
        let words = catch_unwind(|| (Watchdog::from(Duration::ZERO).on_bark)(&bark)).expect_err("a panic");
        let words = words.downcast::<std::string::String>().expect("words");
        assert_eq!(*words, "watchdog: processor 0 has made no progress since beat 1, it is at 0x100000");
        assert!(barked());
    }

    proptest! {
        /// However ticks and progress fall, a bark means a whole patience without progress, and a patience and two ticks
        /// without progress, with ticks on time, mean a bark.
        #[test]
        fn a_bark_means_that_there_was_no_progress_for_the_patience(
            steps in proptest::collection::vec((1u64..=TICK, 0u32..8, any::<bool>()), 1..400)
        ) {
            let mut buddies = buddies(1);
            // When the last progress was or bark, and how much time ticks have accounted for since.
            let (mut now, mut beats, mut progress, mut accounted, mut looked) = (0, 0, 0, None, 0);
            for (ahead, dice, ticks) in steps {
                now += ahead;
                if dice == 0 {
                    beats += 1;
                    (progress, accounted) = (now, None);
                }
                if ticks {
                    accounted = accounted.map_or(Some(0), |time| Some(time + (now - looked).min(2 * TICK)));
                    looked = now;
                    let barked = buddies.look(Tsc(now), 0, 0, |_| Some(beats)).is_some();
                    prop_assert!(!barked || now - progress >= PATIENCE, "{} after {}", now, progress);
                    prop_assert_eq!(barked, accounted >= Some(PATIENCE), "at {} from {}", now, progress);
                    if barked {
                        (progress, accounted) = (now, Some(0));
                    }
                }
            }
        }
    }
}
