//! What each register must read, by what has been written to it, and which counters may count at all.

use crate::policy::Policy;
use crate::{fail, same};
use core::fmt;
use guests::cpu::{self, cpuid, rdmsr, rdtsc, wrmsr};
use guests::faults::catch;
use guests::pmu::*;
use guests::random::Random;

/// The events of CPUID.0AH:EBX. No machine here has the last.
const ARCHITECTURAL: [u64; 8] =
    [CYCLES, INSTRUCTIONS, REFERENCE_CYCLES, REFERENCES, MISSES, BRANCHES, MISPREDICTED, SLOTS];

/// The upper sixteen bits of the host's values: see the image. The guest writes no such number itself.
const SECRET: u64 = 0xdead;

/// Returns whether a number could be the host's, or come to look like it.
fn is_secret(value: u64) -> bool {
    matches!(value >> 32 & 0xffff, 0xdeac..=0xdeae) || value >> 48 == SECRET
}

/// Returns the number, or another if it looks like one of the host's.
pub(crate) fn innocent(value: u64) -> u64 {
    if is_secret(value) || is_secret(value << 32) { 0x5eed } else { value }
}

/// Reads an MSR, which must not show what is the host's.
pub(crate) unsafe fn read(msr: u32) -> u64 {
    let value = rdmsr(msr);
    if is_secret(value) {
        fail("a value of the host", msr.into(), value, 0);
    }
    value
}

/// Executes RDPMC; `None` for #GP.
pub(crate) unsafe fn rdpmc(index: u32) -> Option<u64> {
    let mut value = 0;
    let fault = catch(|| value = cpu::rdpmc(index));
    if is_secret(value) {
        fail("a value of the host by RDPMC", index.into(), value, 0);
    }
    fault.is_none().then_some(value)
}

/// One of the counters.
#[derive(Clone, Copy, Default)]
pub(crate) struct Counter {
    pub(crate) msr: u32,
    pub(crate) rdpmc: u32,
    /// Its bit in IA32_PERF_GLOBAL_CTRL.
    pub(crate) bit: u32,
    /// What it held when it was looked at last, and when that was.
    value: u64,
    at: u64,
}

pub(crate) struct Oracle {
    policy: Policy,
    pub(crate) there: Counters,
    /// The general-purpose ones, and then the others.
    counters: [Counter; 12],
    pub(crate) count: usize,
    pub(crate) selectors: [u64; 8],
    pub(crate) fixed_control: u64,
    pub(crate) global: u64,
    pub(crate) debugctl: u64,
    misc: u64,
    /// The status bits that may be set, and those that must be.
    may: u64,
    must: u64,
    /// Bits that IA32_DEBUGCTL and IA32_PERF_GLOBAL_STATUS_SET have here.
    pub(crate) debug_bits: u64,
    pub(crate) set_bits: u64,
    pub(crate) faults: u64,
    pub(crate) stretches: u64,
    still: u64,
}

impl fmt::Display for Oracle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { there: Counters { general, fixed }, faults, stretches, still, .. } = self;
        write!(
            f,
            "{general} counters and {fixed:#b}, {faults} faults, {stretches} stretches, {still} looks at one that stands"
        )
    }
}

impl Oracle {
    /// Begins with nothing counting, and looks at what there is.
    pub(crate) unsafe fn new(policy: Policy) -> Self {
        let [eax, ebx, ecx, _] = cpuid(0xa, 0);
        let missing = ARCHITECTURAL
            .iter()
            .enumerate()
            .fold(1 << 7, |bits, (n, event)| bits | u64::from(policy.denies(*event)) << n);
        same("events that CPUID says are missing", 0u32, ebx.into(), missing);
        let general = eax >> 8 & 0xff;
        let there = Counters { general, fixed: ecx };
        same("GLOBAL_CTRL at first", GLOBAL_CTRL, read(GLOBAL_CTRL), (1 << general) - 1);
        wrmsr(GLOBAL_CTRL, 0);
        let mut counters = [Counter::default(); 12];
        let all = (0..general).map(|n| Counter { msr: PMC + n, rdpmc: n, bit: n, ..Counter::default() }).chain(
            there.fixed().map(|n| Counter {
                msr: FIXED_CTR + n,
                rdpmc: RDPMC_FIXED | n,
                bit: 32 + n,
                ..Counter::default()
            }),
        );
        let mut count = 0;
        for counter in all {
            // What the host, or whoever was there before, left in it.
            same("a counter at first", counter.msr, read(counter.msr), 0);
            counters[count] = counter;
            count += 1;
        }
        let takes = |msr: u32, bit: u64| catch(|| wrmsr(msr, bit)).is_none();
        let freezes = if takes(DEBUGCTL, FREEZE) { FREEZE } else { 0 };
        let frozen = if takes(STATUS_SET, CTR_FRZ) { CTR_FRZ } else { 0 };
        wrmsr(DEBUGCTL, 0);
        wrmsr(STATUS_RESET, frozen);
        Self {
            policy,
            there,
            counters,
            count,
            selectors: [0; 8],
            fixed_control: 0,
            global: 0,
            debugctl: 0,
            misc: read(MISC_ENABLE),
            may: 0,
            must: 0,
            debug_bits: freezes | 2,
            set_bits: there.bits() | frozen | LBR_FRZ | 3 << 61,
            faults: 0,
            stretches: 0,
            still: 0,
        }
    }

    /// Returns the bits of IA32_PERF_GLOBAL_CTRL that exist.
    pub(crate) fn bits(&self) -> u64 {
        self.there.bits()
    }

    /// Returns the bits of IA32_FIXED_CTR_CTRL that exist.
    pub(crate) fn fixed_bits(&self) -> u64 {
        self.there.fixed().fold(0, |bits, n| bits | 0xb << (4 * n))
    }

    pub(crate) fn counter(&self, index: usize) -> Counter {
        self.counters[index]
    }

    /// Returns whether a counter is denied what it is to count.
    pub(crate) fn denied(&self, index: usize) -> bool {
        match self.counters[index].bit {
            n @ 0..32 => self.policy.denies(self.selectors[n as usize]),
            bit => self.policy.denies_fixed(bit - 32),
        }
    }

    /// Returns whether a counter has all that counting takes, but a permission. This program runs at CPL 0 alone.
    pub(crate) fn enabled(&self, index: usize) -> bool {
        let bit = self.counters[index].bit;
        let selected = match bit {
            n @ 0..32 => self.selectors[n as usize] & (EN | OS) == EN | OS,
            bit => self.fixed_control >> (4 * (bit - 32)) & 1 != 0,
        };
        selected && self.global >> bit & 1 != 0
    }

    /// Returns the counters that may count, as bits of IA32_PERF_GLOBAL_CTRL.
    pub(crate) fn active(&self) -> u64 {
        (0..self.count)
            .filter(|&index| self.enabled(index) && !self.denied(index))
            .fold(0, |bits, index| bits | 1 << self.counters[index].bit)
    }

    /// Does what may change which counters count, and looks at them all: each that counted neither before nor after has
    /// stood still.
    pub(crate) unsafe fn change(&mut self, change: impl FnOnce(&mut Self)) {
        let before = self.active();
        self.ran_over();
        change(self);
        let after = self.active();
        self.ran_over();
        for index in 0..self.count {
            self.look(index, (before | after) >> self.counters[index].bit & 1 != 0);
        }
    }

    /// A counter has been written.
    pub(crate) fn written(&mut self, index: usize, value: u64) {
        self.counters[index].value = value;
    }

    /// Looks at a counter, which may have counted or not.
    unsafe fn look(&mut self, index: usize, counts: bool) {
        let Counter { msr, value: before, at, .. } = self.counters[index];
        let (value, now) = (read(msr), rdtsc());
        if counts {
            // Four slots in a cycle, and no cycle that the time-stamp counter does not know of.
            let counted = value.wrapping_sub(before) & LAST;
            if counted > 4 * (now - at) + 64 {
                fail("more events than there was time for", msr.into(), value, before);
            }
        } else {
            self.still += 1;
            if value != before {
                fail("a counter counts that must not", msr.into(), value, before);
            }
        }
        (self.counters[index].value, self.counters[index].at) = (value, now);
    }

    /// Looks at a counter as it is enabled now.
    pub(crate) unsafe fn look_at(&mut self, index: usize) {
        self.look(index, self.active() >> self.counters[index].bit & 1 != 0);
    }

    pub(crate) unsafe fn look_at_one(&mut self, random: &mut Random) {
        self.look_at(random.below(self.count as u64) as usize);
    }

    /// Returns how far a counter has gone since it was looked at last, by whichever way.
    pub(crate) unsafe fn advanced(&mut self, index: usize) -> u64 {
        let Counter { msr, rdpmc: ecx, value: before, .. } = self.counters[index];
        let value = read(msr);
        same("RDPMC of a counter that stands", ecx, rdpmc(ecx).unwrap_or(u64::MAX), value);
        (self.counters[index].value, self.counters[index].at) = (value, rdtsc());
        value.wrapping_sub(before) & LAST
    }

    /// IA32_PERF_GLOBAL_STATUS_SET or _RESET has been written. What counts may have run over meanwhile.
    pub(crate) fn status_written(&mut self, msr: u32, value: u64) {
        if msr == STATUS_SET {
            (self.may, self.must) = (self.may | value, self.must | value);
        } else {
            (self.may, self.must) = (self.may & !value, self.must & !value);
        }
        self.ran_over();
    }

    /// Whatever counts may have run over.
    fn ran_over(&mut self) {
        let active = self.active();
        self.may |= active | if active != 0 && self.debugctl & FREEZE != 0 { CTR_FRZ } else { 0 };
    }

    /// Counters have been enabled by this, and are not any more.
    pub(crate) fn ran(&mut self, global: u64) {
        self.global = global;
        self.ran_over();
        self.global = 0;
    }

    pub(crate) fn value(&self, index: usize) -> u64 {
        self.counters[index].value
    }

    pub(crate) unsafe fn misc_written(&mut self, value: u64) {
        self.misc = self.misc & !1 | value & 1;
    }

    /// Reads one of the registers that are no counters, by a number.
    pub(crate) unsafe fn look_at_control(&mut self, number: u32) {
        self.ran_over();
        let (msr, value) = match number % (8 + self.there.general) {
            0 => return self.look_at_status(),
            1 => (FIXED_CTR_CTRL, self.fixed_control),
            2 => (GLOBAL_CTRL, self.global),
            3 => (DEBUGCTL, self.debugctl),
            4 => (MISC_ENABLE, self.misc & 1 | 0x1880),
            5 => (STATUS_RESET, 0),
            6 => (CAPABILITIES, 1 << 13),
            7 => (INUSE, self.in_use()),
            n => (PERFEVTSEL + n - 8, self.selectors[n as usize - 8]),
        };
        same("what a register holds", msr, read(msr), value);
    }

    unsafe fn look_at_status(&self) {
        let status = read(STATUS);
        if status & !self.may != 0 || self.must & !status != 0 {
            fail("STATUS has what it must not, or lacks what it must have", self.must, status, self.may);
        }
        same("STATUS_SET", STATUS_SET, read(STATUS_SET), 0);
    }

    fn in_use(&self) -> u64 {
        let general = (0..self.there.general).zip(self.selectors).fold(0, |bits, (n, selector)| {
            bits | u64::from(selector & 0xff != 0) << n | u64::from(selector & INT != 0) << 63
        });
        (0..4).fold(general, |bits, n| {
            let control = self.fixed_control >> (4 * n);
            bits | u64::from(control & 3 != 0) << (32 + n) | u64::from(control & 8 != 0) << 63
        })
    }

    pub(crate) unsafe fn look_at_all(&mut self) {
        (0..self.count).for_each(|index| self.look_at(index));
        for number in 0..8 + self.there.general {
            self.look_at_control(number);
        }
    }
}
