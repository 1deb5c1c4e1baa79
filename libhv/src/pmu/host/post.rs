//! What the handler of NMIs and the run loop share: how far each event has come, samples that wait, and who is to be
//! looked at when an NMI comes. All of it is atomic, because the handler interrupts the loop anywhere.
//!
//! While the host's counters run, the handler serves them. While they are stopped, which is whenever the guest's
//! registers may be in the processor, it touches none (A23): it takes down that an NMI came, and the run loop serves the
//! overflow as it stops. An overflow whose NMI has not come by then is owed one, by which the late NMI is known.
//!
//! The guest's late interrupt takes the host's route, and the host's the guest's. Where both are awaited, the first that
//! comes is told to the guest: it has an overflow to show for it, and the host has served its own.

use super::events::{Assigned, HostEvents, MAX_EVENTS, Sample};
use crate::hw::PmuHardware;
use crate::pmu::bank::counter_register;
use crate::pmu::capability::PmuCapability;
use crate::pmu::registers::{CounterIndex, Maker, PmuRegister};
use crate::time::Tsc;
use crate::watchdog::{Bark, pets};
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use hermit_sync::OnceCell;

/// Samples that wait for the run loop; a power of two. Those beyond are counted as lost.
const KEPT: usize = 64;
/// Ticks after which an interrupt that was awaited will not come any more: it met a masked entry.
const LATEST: u64 = 10_000;

/// Where the processor was when an NMI came.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// In the host, at this RIP.
    Host(u64),
    /// In the guest, at this RIP: the NMI is why it left.
    Guest(u64),
}

/// Whose an NMI was.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// An event's, which has run over.
    Served,
    /// That of an overflow which has been served already, or of the guest's.
    Late,
    /// The counters are stopped: it has been taken down for the run loop.
    Noted,
    /// None of this: another source's.
    Strange,
}

/// How far one event has come.
#[derive(Debug)]
struct Progress {
    event: Assigned,
    /// What the counter held when `total` was taken.
    last: AtomicU64,
    total: AtomicU64,
    samples: AtomicU64,
}

/// A sample that waits: address, moment, and the event with [`KNOWN`] and [`GUEST`].
type Waiting = [AtomicU64; 3];
const KNOWN: u64 = 1 << 8;
const GUEST: u64 = 1 << 9;

/// An interrupt that is to come, from a moment on: when that was, 0 for none.
#[derive(Debug, Default)]
struct Awaited(AtomicU64);

impl Awaited {
    fn set(&self, now: Tsc) {
        self.0.store(now.0 | 1, Relaxed);
    }

    fn is_set(&self) -> bool {
        self.0.load(Relaxed) != 0
    }

    fn clear(&self) {
        self.0.store(0, Relaxed);
    }

    /// Returns whether it may still come, and awaits it no more.
    fn take(&self, now: impl FnOnce() -> Tsc) -> bool {
        let since = self.0.load(Relaxed);
        self.clear();
        since != 0 && now().0.wrapping_sub(since & !1) < LATEST
    }
}

/// The account of one processor's host counters.
#[derive(Debug)]
pub struct Post {
    pmu: PmuCapability,
    progress: Vec<Progress>,
    control: u64,
    on_bark: fn(&Bark),
    processor: AtomicUsize,
    running: AtomicBool,
    /// An NMI came while the counters were stopped, and where.
    came: AtomicBool,
    came_at: AtomicU64,
    /// The NMI of an overflow that has been served.
    owed: Awaited,
    /// The guest's LVTPC let its interrupts through when it was entered last.
    guest_open: AtomicBool,
    /// The interrupt of a counter of the guest's that has run over.
    guest: Awaited,
    /// The same, which the guest has masked.
    guest_masked: Awaited,
    /// The guest's has come, as an NMI.
    guest_came: AtomicBool,
    beats: AtomicU64,
    /// The beats when the watchdog looked last.
    seen: AtomicU64,
    waiting: [Waiting; KEPT],
    written: AtomicUsize,
    read: AtomicUsize,
    lost: AtomicU64,
    strange: AtomicU64,
}

/// The account that the handler of NMIs serves.
static PUBLISHED: OnceCell<&'static Post> = OnceCell::new();

impl Post {
    /// Has the handler of NMIs serve this account; the first one published stays.
    pub fn publish(&'static self) {
        PUBLISHED.get_or_init(|| self);
    }

    /// Returns the account that the handler of NMIs serves.
    pub fn published() -> Option<&'static Self> {
        PUBLISHED.get().copied()
    }

    /// Returns whose registers the counters are in.
    pub fn maker(&self) -> Maker {
        self.pmu.maker
    }

    pub(super) fn new(pmu: &PmuCapability, events: &HostEvents, assigned: &[Assigned]) -> &'static Self {
        let progress = assigned.iter().take(MAX_EVENTS).map(|event| Progress {
            event: *event,
            last: AtomicU64::new(start(event, 0)),
            total: AtomicU64::new(0),
            samples: AtomicU64::new(0),
        });
        Box::leak(Box::new(Self {
            pmu: *pmu,
            progress: progress.collect(),
            control: assigned.iter().fold(0, |bits, event| bits | 1 << event.counter.bit()),
            on_bark: events.on_bark,
            processor: AtomicUsize::new(0),
            running: AtomicBool::new(false),
            came: AtomicBool::new(false),
            came_at: AtomicU64::new(0),
            owed: Awaited::default(),
            guest_open: AtomicBool::new(false),
            guest: Awaited::default(),
            guest_masked: Awaited::default(),
            guest_came: AtomicBool::new(false),
            beats: AtomicU64::new(0),
            seen: AtomicU64::new(u64::MAX),
            waiting: [const { [const { AtomicU64::new(0) }; 3] }; KEPT],
            written: AtomicUsize::new(0),
            read: AtomicUsize::new(0),
            lost: AtomicU64::new(0),
            strange: AtomicU64::new(0),
        }))
    }

    /// Returns how often an event has happened in the host, up to when its counter was last looked at; 0 for an event
    /// that nobody asked for.
    pub fn value(&self, event: usize) -> u64 {
        self.progress.get(event).map_or(0, |progress| progress.total.load(Relaxed))
    }

    /// Returns how often an event has happened in the host until now; 0 for an event that nobody asked for. To be called
    /// on the processor that counts it, whose `hardware` it is.
    pub fn value_now(&self, event: usize, hardware: &impl PmuHardware) -> u64 {
        let Some(progress) = self.progress.get(event) else { return 0 };
        loop {
            let total = progress.total.load(Relaxed);
            if !self.running.load(Relaxed) {
                return total;
            }
            let last = progress.last.load(Relaxed);
            let now = hardware.read_counter(progress.event.counter);
            // An NMI meanwhile has moved all of it.
            if (progress.total.load(Relaxed), progress.last.load(Relaxed)) == (total, last) {
                return total.wrapping_add(now.wrapping_sub(last) & progress.event.mask);
            }
        }
    }

    /// Returns how many samples an event has given.
    pub fn samples(&self, event: usize) -> u64 {
        self.progress.get(event).map_or(0, |progress| progress.samples.load(Relaxed))
    }

    /// Returns how many samples nobody could be told of, because too many waited.
    pub fn lost(&self) -> u64 {
        self.lost.load(Relaxed)
    }

    /// Returns how many NMIs came while the events ran that were neither theirs nor the guest's.
    pub fn strange(&self) -> u64 {
        self.strange.load(Relaxed)
    }

    /// Returns how many events there are.
    pub fn events(&self) -> usize {
        self.progress.len()
    }

    /// Returns the bits of IA32_PERF_GLOBAL_CTRL that enable the host's events.
    pub(super) fn control(&self) -> u64 {
        self.control
    }

    pub(super) fn set_processor(&self, processor: usize) {
        self.processor.store(processor, Relaxed);
    }

    /// The run loop makes progress.
    #[inline]
    pub(super) fn beat(&self) {
        self.beats.store(self.beats.load(Relaxed).wrapping_add(1), Relaxed);
    }

    /// The counters are in the processor and count from now on; NMIs are the handler's.
    #[inline]
    pub(super) fn set_running(&self, running: bool) {
        self.running.store(running, Relaxed);
        // The handler runs on this processor: only the compiler could move writes across.
        core::sync::atomic::compiler_fence(core::sync::atomic::Ordering::SeqCst);
    }

    /// Serves an NMI that the processor took, on this processor, with no other in progress. In the host it is the
    /// handler of NMIs that calls this. After [`Verdict::Served`] and [`Verdict::Late`] the caller routes
    /// LVTPC to the host again, which has masked itself.
    pub fn nmi(&self, place: Option<Place>, now: Tsc, hardware: &mut impl PmuHardware) -> Verdict {
        if !self.running.load(Relaxed) {
            if let Some(Place::Host(rip)) = place {
                self.came_at.store(rip, Relaxed);
                self.came.store(true, Relaxed);
            }
            return Verdict::Noted;
        }
        self.pause(hardware);
        let overflowed = self.take_counts(hardware, place, now);
        let guests = self.is_guests(|| now);
        self.resume(hardware);
        if overflowed {
            if guests {
                self.owed.set(now);
            }
            return Verdict::Served;
        }
        if guests || self.owed.take(|| now) || matches!(place, Some(Place::Guest(rip)) if self.attribute(rip)) {
            return Verdict::Late;
        }
        self.strange.store(self.strange.load(Relaxed).wrapping_add(1), Relaxed);
        Verdict::Strange
    }

    /// Where NMIs are taken by the host once the guest has left for them, the sample has been kept by then, as the
    /// host's: it is the guest's.
    fn attribute(&self, rip: u64) -> bool {
        let waits = self.has_samples();
        if waits {
            let [address, _, which] = &self.waiting[self.read.load(Relaxed) % KEPT];
            address.store(rip, Relaxed);
            which.store(which.load(Relaxed) | KNOWN | GUEST, Relaxed);
        }
        waits
    }

    /// The guest is entered, and its LVTPC is open or masked.
    #[inline]
    pub(super) fn set_guest_open(&self, open: bool) {
        self.guest_open.store(open, Relaxed);
        if !open && self.guest.is_set() {
            self.guest_masked.0.store(self.guest.0.load(Relaxed), Relaxed);
            self.guest.clear();
        }
    }

    /// The guest has left, and a counter has run over meanwhile that interrupts.
    pub(super) fn guest_ran_over(&self, now: Tsc) {
        if self.guest_open.load(Relaxed) { self.guest.set(now) } else { self.guest_masked.set(now) }
    }

    /// Returns whether an NMI is the guest's, and takes down that it has come, where the guest lets it through.
    fn is_guests(&self, now: impl Fn() -> Tsc) -> bool {
        if self.guest.take(&now) {
            self.guest_came.store(true, Relaxed);
            return true;
        }
        // What met the guest's mask is nobody's any more.
        self.guest_masked.take(now)
    }

    /// Returns whether an interrupt of the guest's has come by the host's route.
    #[inline]
    pub fn has_guest_pmi(&self) -> bool {
        self.guest_came.load(Relaxed)
    }

    /// Returns whether the guest is owed an interrupt: `came` tells whether one has come on its route.
    pub(super) fn take_guest_pmi(&self, came: bool, now: impl Fn() -> Tsc) -> bool {
        let by_nmi = self.guest_came.load(Relaxed);
        if by_nmi {
            self.guest_came.store(false, Relaxed);
        }
        // The host's late one took the guest's route, where the guest has none run over.
        by_nmi || came && (self.guest.take(&now) || !self.owed.take(now))
    }

    /// Counts what the counters have counted since they were last looked at, and serves those that have run over. They
    /// stand still. Called by the run loop with `running` clear.
    pub(super) fn settle(&self, hardware: &mut impl PmuHardware, now: Tsc) {
        let came = self.came.swap(false, Relaxed).then(|| Place::Host(self.came_at.load(Relaxed)));
        let overflowed = self.take_counts(hardware, came, now);
        let guests = came.is_some() && self.is_guests(|| now);
        if overflowed && (guests || came.is_none()) {
            self.owed.set(now);
        } else if !overflowed && !guests && came.is_some() {
            // What came was a late one.
            self.owed.clear();
        }
    }

    /// An NMI came while the counters were stopped and before they are started again: nothing has run over since, so it
    /// was a late one.
    #[inline]
    pub(super) fn forgive(&self, now: impl Fn() -> Tsc) {
        if self.came.load(Relaxed) {
            self.came.store(false, Relaxed);
            if !self.is_guests(now) {
                self.owed.clear();
            }
        }
    }

    fn pause(&self, hardware: &mut impl PmuHardware) {
        if self.pmu.has_global_control() {
            hardware.write_pmu(PmuRegister::GlobalControl, 0);
        }
    }

    fn resume(&self, hardware: &mut impl PmuHardware) {
        if self.pmu.has_global_control() {
            hardware.write_pmu(PmuRegister::GlobalControl, self.control);
        }
    }

    /// Returns whether an event that is sampled has run over.
    fn take_counts(&self, hardware: &mut impl PmuHardware, place: Option<Place>, now: Tsc) -> bool {
        let (mut any, mut reset) = (false, 0);
        for (number, progress) in self.progress.iter().enumerate() {
            let event = &progress.event;
            let value = hardware.read_counter(event.counter) & event.mask;
            let happened = value.wrapping_sub(progress.last.load(Relaxed)) & event.mask;
            progress.total.store(progress.total.load(Relaxed).wrapping_add(happened), Relaxed);
            let runs_over = event.period.is_some() && value <= event.mask >> 1;
            if !runs_over {
                progress.last.store(value, Relaxed);
                continue;
            }
            // What it has counted beyond belongs to the next period.
            let next = start(event, value);
            let register = match event.counter {
                CounterIndex::General(n) => counter_register(&self.pmu, n),
                CounterIndex::Fixed(n) => PmuRegister::Fixed(n),
            };
            hardware.write_pmu(register, next);
            progress.last.store(next, Relaxed);
            progress.samples.store(progress.samples.load(Relaxed).wrapping_add(1), Relaxed);
            (any, reset) = (true, reset | 1 << event.counter.bit());
            if event.watches { self.watch(place) } else { self.keep(number, place, now) }
        }
        if reset != 0 && self.pmu.has_global_control() {
            hardware.write_pmu(PmuRegister::StatusReset, reset);
        }
        any
    }

    /// Barks when there has been no progress since it looked last.
    fn watch(&self, place: Option<Place>) {
        let beats = self.beats.load(Relaxed).wrapping_add(pets());
        if self.seen.swap(beats, Relaxed) != beats {
            return;
        }
        let rip = match place {
            Some(Place::Host(rip)) => Some(rip),
            // The guest runs: that is progress.
            Some(Place::Guest(_)) => return,
            None => None,
        };
        (self.on_bark)(&Bark { processor: self.processor.load(Relaxed), rip, beats });
    }

    fn keep(&self, event: usize, place: Option<Place>, now: Tsc) {
        let written = self.written.load(Relaxed);
        if written.wrapping_sub(self.read.load(Relaxed)) >= KEPT {
            self.lost.store(self.lost.load(Relaxed).wrapping_add(1), Relaxed);
            return;
        }
        let (rip, flags) = match place {
            None => (0, 0),
            Some(Place::Host(rip)) => (rip, KNOWN),
            Some(Place::Guest(rip)) => (rip, KNOWN | GUEST),
        };
        let [address, moment, which] = &self.waiting[written % KEPT];
        address.store(rip, Relaxed);
        moment.store(now.0, Relaxed);
        which.store(event as u64 | flags, Relaxed);
        self.written.store(written.wrapping_add(1), Relaxed);
    }

    /// Returns what the counter of an event holds, as of when it was looked at last.
    pub(super) fn held(&self, event: usize) -> u64 {
        self.progress.get(event).map_or(0, |progress| progress.last.load(Relaxed))
    }

    /// Returns whether samples wait.
    #[inline]
    pub(super) fn has_samples(&self) -> bool {
        self.written.load(Relaxed) != self.read.load(Relaxed)
    }

    /// Tells of the samples that wait.
    #[cold]
    pub(super) fn tell(&self, told: fn(&Sample)) {
        while self.has_samples() {
            let read = self.read.load(Relaxed);
            let [address, moment, which] = self.waiting[read % KEPT].each_ref().map(|word| word.load(Relaxed));
            self.read.store(read.wrapping_add(1), Relaxed);
            told(&Sample {
                event: (which & 0xFF) as usize,
                rip: (which & KNOWN != 0).then_some(address),
                guest: which & GUEST != 0,
                at: Tsc(moment),
            });
        }
    }
}

/// A line for each event.
impl fmt::Display for Post {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for event in 0..self.events() {
            writeln!(f, "event {event}: {} times, {} samples", self.value(event), self.samples(event))?;
        }
        write!(f, "samples lost: {}, NMIs of others: {}", self.lost(), self.strange())
    }
}

/// Returns what a counter starts from that has counted `beyond` events of its next period.
fn start(event: &Assigned, beyond: u64) -> u64 {
    event.period.map_or(0, |period| beyond.wrapping_sub(period) & event.mask)
}
