//! The last exits of each virtual processor, a counter and a cost for each kind.
//!
//! The ring lies in a static so that a panic can print it; the counters belong to the virtual processor.

use crate::exit::Exit;
use core::fmt;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// The kinds of exit that are counted, one for each variant of [`Exit`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(missing_docs, reason = "named after the variants of Exit")]
#[repr(u8)]
pub enum Kind {
    Cpuid,
    Rdmsr,
    Wrmsr,
    Rdpmc,
    Xsetbv,
    PortIo,
    NestedPageFault,
    ApicAccess,
    ApicWrite,
    TprBelowThreshold,
    ControlRegister,
    DebugRegister,
    Exception,
    ExternalInterrupt,
    Nmi,
    InterruptWindow,
    NmiWindow,
    TimerExpired,
    Hypercall,
    Halt,
    Relax,
    CacheFlush,
    Undefined,
    Shutdown,
    Init,
    Unhandled,
}

/// Kinds of exit.
pub const KINDS: usize = Kind::Unhandled as usize + 1;

impl From<&Exit> for Kind {
    #[inline]
    fn from(exit: &Exit) -> Self {
        match exit {
            Exit::Cpuid { .. } => Self::Cpuid,
            Exit::Rdmsr(_) => Self::Rdmsr,
            Exit::Wrmsr(..) => Self::Wrmsr,
            Exit::Rdpmc(_) => Self::Rdpmc,
            Exit::Xsetbv { .. } => Self::Xsetbv,
            Exit::PortIo(_) => Self::PortIo,
            Exit::NestedPageFault(_) => Self::NestedPageFault,
            Exit::ApicAccess(_) => Self::ApicAccess,
            Exit::ApicWrite { .. } => Self::ApicWrite,
            Exit::TprBelowThreshold => Self::TprBelowThreshold,
            Exit::ControlRegister(_) => Self::ControlRegister,
            Exit::DebugRegister => Self::DebugRegister,
            Exit::Exception { .. } => Self::Exception,
            Exit::ExternalInterrupt(_) => Self::ExternalInterrupt,
            Exit::Nmi => Self::Nmi,
            Exit::InterruptWindow => Self::InterruptWindow,
            Exit::NmiWindow => Self::NmiWindow,
            Exit::TimerExpired => Self::TimerExpired,
            Exit::Hypercall => Self::Hypercall,
            Exit::Halt => Self::Halt,
            Exit::Relax => Self::Relax,
            Exit::CacheFlush => Self::CacheFlush,
            Exit::Undefined => Self::Undefined,
            Exit::Shutdown => Self::Shutdown,
            Exit::Init => Self::Init,
            Exit::Unhandled(_) => Self::Unhandled,
        }
    }
}

/// How often a kind of exit happened, and what handling it cost.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Count {
    /// Exits.
    pub exits: u64,
    /// Ticks of the time-stamp counter between exit and next entry, summed over the exits that are measured: the first
    /// of the kind and every [`MEASURED`]th after it.
    pub ticks: u64,
}

impl Count {
    /// Returns what an exit costs on the average, in ticks; 0 where none happened.
    pub fn ticks_each(&self) -> u64 {
        self.ticks.checked_div(self.exits.div_ceil(MEASURED.into())).unwrap_or(0)
    }
}

/// Of so many exits of a kind one is measured: to read the counter twice would be a good part of the cost.
pub const MEASURED: u8 = 16;

/// Exits kept for each virtual processor; a power of two.
const KEPT: usize = 32;
/// Virtual processors whose last exits are kept; those beyond share rings.
const RINGS: usize = 16;

/// The last exits of a virtual processor: where the guest stood, and the kind.
#[derive(Debug)]
struct Ring {
    next: AtomicUsize,
    rips: [AtomicU64; KEPT],
    kinds: [AtomicU64; KEPT],
}

static LAST: [Ring; RINGS] = [const {
    Ring {
        next: AtomicUsize::new(0),
        rips: [const { AtomicU64::new(0) }; KEPT],
        kinds: [const { AtomicU64::new(0) }; KEPT],
    }
}; RINGS];

/// What of a kind of exit has been measured.
#[derive(Clone, Copy, Debug)]
struct Measured {
    /// How many exits there have been when the next one is measured, that one included.
    next: u64,
    ticks: u64,
}

/// What a virtual processor has been through.
#[derive(Debug)]
pub struct Trace {
    /// Exits of each kind until one is measured, that one included. They are all that an exit counts: how many there were
    /// follows.
    until_measured: [u8; KINDS],
    measured: [Measured; KINDS],
    ring: &'static Ring,
}

impl Trace {
    /// Starts with all counters at 0. `processor` is the index of the virtual processor.
    pub const fn new(processor: usize) -> Self {
        let measured = [const { Measured { next: 1, ticks: 0 } }; KINDS];
        Self { until_measured: [1; KINDS], measured, ring: &LAST[processor % RINGS] }
    }

    /// Takes down an exit: its kind, and where the guest stood.
    #[inline(always)]
    pub(crate) fn left(&mut self, kind: Kind, rip: u64) {
        let next = self.ring.next.load(Ordering::Relaxed);
        self.ring.next.store(next.wrapping_add(1), Ordering::Relaxed);
        let position = next % KEPT;
        self.ring.rips[position].store(rip, Ordering::Relaxed);
        self.ring.kinds[position].store(kind as u64, Ordering::Relaxed);
    }

    /// Takes down that an exit has been handled; `ticks` tells in how many, where that is measured.
    #[inline(always)]
    pub(crate) fn handled(&mut self, kind: Kind, ticks: impl FnOnce() -> u64) {
        let until = &mut self.until_measured[kind as usize];
        *until = until.wrapping_sub(1);
        if *until == 0 {
            *until = MEASURED;
            let measured = &mut self.measured[kind as usize];
            measured.next += u64::from(MEASURED);
            measured.ticks += ticks();
        }
    }

    /// Returns how often exits of a kind happened, and what they cost.
    #[inline(always)]
    pub fn count(&self, kind: Kind) -> Count {
        self.counts(kind as usize)
    }

    #[inline(always)]
    fn counts(&self, kind: usize) -> Count {
        let (until, Measured { next, ticks }) = (self.until_measured[kind], self.measured[kind]);
        Count { exits: next - u64::from(until), ticks }
    }

    /// Returns the number of all exits.
    pub fn exits(&self) -> u64 {
        (0..KINDS).map(|kind| self.counts(kind).exits).sum()
    }
}

/// A line for each kind of exit that happened, the most frequent first.
impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut counts: [Count; KINDS] = core::array::from_fn(|kind| self.counts(kind));
        loop {
            let most = (0..KINDS).rev().max_by_key(|&kind| counts[kind].exits).unwrap_or(0);
            let count = core::mem::take(&mut counts[most]);
            if count.exits == 0 {
                return Ok(());
            }
            let (exits, each) = (count.exits, count.ticks_each());
            writeln!(f, "{:18} {exits:>10} exits {each:>8} ticks each", name(most))?;
        }
    }
}

const NAMES: [&str; KINDS] = [
    "CPUID",
    "RDMSR",
    "WRMSR",
    "RDPMC",
    "XSETBV",
    "port",
    "nested page fault",
    "APIC access",
    "APIC write",
    "TPR below threshold",
    "control register",
    "debug register",
    "exception",
    "external interrupt",
    "NMI",
    "interrupt window",
    "NMI window",
    "timer",
    "hypercall",
    "HLT",
    "relax",
    "cache flush",
    "undefined",
    "shutdown",
    "INIT",
    "unhandled",
];

fn name(kind: usize) -> &'static str {
    NAMES.get(kind).copied().unwrap_or("?")
}

/// Returns how many exits of a virtual processor have begun since the image started, modulo 2^64.
/// Virtual processors beyond the sixteenth share counts with others.
pub fn begun(processor: usize) -> u64 {
    LAST[processor % RINGS].next.load(Ordering::Relaxed) as u64
}

/// Writes the last exits of every virtual processor, oldest first: the last words of a panic.
///
/// # Errors
/// Those of `to`.
pub fn last_exits(to: &mut dyn fmt::Write) -> fmt::Result {
    for (processor, ring) in LAST.iter().enumerate() {
        let next = ring.next.load(Ordering::Relaxed);
        for position in next.saturating_sub(KEPT)..next {
            let rip = ring.rips[position % KEPT].load(Ordering::Relaxed);
            let kind = ring.kinds[position % KEPT].load(Ordering::Relaxed);
            writeln!(to, "processor {processor} exit {position}: {} at {rip:#x}", name(kind as usize))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::String;

    #[test]
    fn the_last_exits_are_told_oldest_first_and_no_more_than_are_kept() {
        let mut trace = Trace::new(3);
        for number in 0..KEPT as u64 + 5 {
            trace.left(Kind::Halt, 0x1000 + number);
            trace.handled(Kind::Halt, || 7);
        }
        let mut text = String::new();
        last_exits(&mut text).expect("a String takes anything");
        let mine: alloc::vec::Vec<&str> = text.lines().filter(|line| line.starts_with("processor 3 ")).collect();
        assert_eq!(mine.len(), KEPT);
        assert_eq!(mine[0], "processor 3 exit 5: HLT at 0x1005");
        assert_eq!(trace.count(Kind::Halt), Count { exits: 37, ticks: 3 * 7 }, "exits 0, 16 and 32 are measured");
        assert_eq!((trace.count(Kind::Halt).ticks_each(), trace.count(Kind::Nmi).ticks_each()), (7, 0));
        assert_eq!(trace.exits(), KEPT as u64 + 5);
    }

    #[test]
    fn every_exit_is_counted_whether_it_is_measured_or_not() {
        let mut trace = Trace::new(4);
        for number in 0..100 {
            let expected = Count { exits: number, ticks: number.div_ceil(16) };
            assert_eq!((trace.count(Kind::Cpuid), trace.exits()), (expected, number));
            trace.handled(Kind::Cpuid, || 1);
        }
    }
}
