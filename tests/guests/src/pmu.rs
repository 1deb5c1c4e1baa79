//! The performance monitoring unit's registers and events by the manual's names (SDM Vol. 4; Vol. 3B, "Performance
//! Monitoring").

use crate::cpu::{cpuid, wrmsr};

/// IA32_PMC0 and those after it: the general-purpose counters. A write takes 32 bits and extends their sign.
pub const PMC: u32 = 0xc1;
/// IA32_PERFEVTSEL0 and those after it: the general-purpose counters' selectors.
pub const PERFEVTSEL: u32 = 0x186;
/// IA32_MISC_ENABLE.
pub const MISC_ENABLE: u32 = 0x1a0;
/// IA32_DEBUGCTL.
pub const DEBUGCTL: u32 = 0x1d9;
/// IA32_FIXED_CTR0 and those after it.
pub const FIXED_CTR: u32 = 0x309;
/// IA32_PERF_CAPABILITIES.
pub const CAPABILITIES: u32 = 0x345;
/// IA32_FIXED_CTR_CTRL: four bits for each fixed-function counter.
pub const FIXED_CTR_CTRL: u32 = 0x38d;
/// IA32_PERF_GLOBAL_STATUS.
pub const STATUS: u32 = 0x38e;
/// IA32_PERF_GLOBAL_CTRL.
pub const GLOBAL_CTRL: u32 = 0x38f;
/// IA32_PERF_GLOBAL_STATUS_RESET, before version 4 IA32_PERF_GLOBAL_OVF_CTRL.
pub const STATUS_RESET: u32 = 0x390;
/// IA32_PERF_GLOBAL_STATUS_SET.
pub const STATUS_SET: u32 = 0x391;
/// IA32_PERF_GLOBAL_INUSE.
pub const INUSE: u32 = 0x392;
/// IA32_A_PMC0 and those after it: the same counters as from [`PMC`] on, written in their whole width.
pub const A_PMC: u32 = 0x4c1;

/// Bit of a selector: counts at CPL 1 to 3.
pub const USR: u64 = 1 << 16;
/// Bit of a selector: counts at CPL 0.
pub const OS: u64 = 1 << 17;
/// Bit of a selector: edge detection.
pub const EDGE: u64 = 1 << 18;
/// Bit of a selector: an overflow interrupts.
pub const INT: u64 = 1 << 20;
/// Bit of a selector: AnyThread, reserved in version 5.
pub const ANY: u64 = 1 << 21;
/// Bit of a selector: the counter is enabled.
pub const EN: u64 = 1 << 22;
/// Bit of a selector: CMASK is inverted.
pub const INV: u64 = 1 << 23;
/// Every bit of a selector that may be set: without pin control and AnyThread, which are reserved.
pub const SELECTOR_BITS: u64 = 0xffd7_ffff;

/// CMASK of a selector.
pub const fn cmask(events: u64) -> u64 {
    events << 24
}

/// Event select and unit mask of core cycles.
pub const CYCLES: u64 = 0x003c;
/// Event select and unit mask of reference cycles.
pub const REFERENCE_CYCLES: u64 = 0x013c;
/// Event select and unit mask of instructions retired.
pub const INSTRUCTIONS: u64 = 0x00c0;
/// Event select and unit mask of branches retired.
pub const BRANCHES: u64 = 0x00c4;
/// Event select and unit mask of conditional branches retired.
pub const CONDITIONAL: u64 = 0x11c4;
/// Event select and unit mask of mispredicted branches retired.
pub const MISPREDICTED: u64 = 0x00c5;
/// Event select and unit mask of references to the last-level cache.
pub const REFERENCES: u64 = 0x4f2e;
/// Event select and unit mask of references that miss there.
pub const MISSES: u64 = 0x412e;
/// Event select and unit mask of top-down slots.
pub const SLOTS: u64 = 0x01a4;

/// Largest value of a counter: each has 48 bits.
pub const LAST: u64 = (1 << 48) - 1;
/// Bit of IA32_PERF_GLOBAL_STATUS: branch records are frozen.
pub const LBR_FRZ: u64 = 1 << 58;
/// Bit of IA32_PERF_GLOBAL_STATUS: all counters are frozen.
pub const CTR_FRZ: u64 = 1 << 59;
/// IA32_DEBUGCTL.FREEZE_PERFMON_ON_PMI: an overflow sets [`CTR_FRZ`].
pub const FREEZE: u64 = 1 << 12;

/// The number for RDPMC of fixed-function counter 0.
pub const RDPMC_FIXED: u32 = 1 << 30;

/// The counters of a unit.
#[derive(Clone, Copy)]
pub struct Counters {
    /// How many general-purpose ones, from 0 on.
    pub general: u32,
    /// A bit for each fixed-function one.
    pub fixed: u32,
}

impl Counters {
    /// Returns those that CPUID leaf 0AH tells of.
    pub fn enumerated() -> Self {
        let [eax, _, ecx, edx] = cpuid(0xa, 0);
        Self { general: eax >> 8 & 0xff, fixed: ecx | (1u32 << (edx & 0x1f)) - 1 }
    }

    /// Returns their bits in IA32_PERF_GLOBAL_CTRL and its like.
    pub const fn bits(self) -> u64 {
        (1 << self.general) - 1 | (self.fixed as u64) << 32
    }

    /// Returns the numbers of the fixed-function ones.
    pub fn fixed(self) -> impl Iterator<Item = u32> {
        (0..32).filter(move |n| self.fixed >> n & 1 != 0)
    }

    /// Stops them, and zeroes each with its control and its status.
    pub unsafe fn clear(self) {
        wrmsr(GLOBAL_CTRL, 0);
        if self.fixed != 0 {
            wrmsr(FIXED_CTR_CTRL, 0);
        }
        for n in 0..self.general {
            wrmsr(PERFEVTSEL + n, 0);
            wrmsr(PMC + n, 0);
        }
        for n in self.fixed() {
            wrmsr(FIXED_CTR + n, 0);
        }
        wrmsr(STATUS_RESET, self.bits());
    }
}
