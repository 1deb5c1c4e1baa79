//! Processors that tests know, and change where they need another.

use super::{FULL_WIDTH_WRITES, PmuCapability};
use crate::pmu::registers::Maker;

/// Eight counters, four fixed ones, all the architectural events and everything of version 5 but last-branch records.
pub(in crate::pmu) const INTEL: PmuCapability = PmuCapability {
    maker: Maker::Intel,
    version: 5,
    counters: 8,
    width: 48,
    fixed: 0xF,
    fixed_width: 48,
    missing_events: 0,
    capabilities: FULL_WIDTH_WRITES,
    any_thread_deprecated: true,
    core_extensions: false,
    lbr_depth: 0,
    has_more: false,
};

/// PerfMonV2 with six counters.
pub(in crate::pmu) const AMD: PmuCapability = PmuCapability {
    maker: Maker::Amd,
    version: 2,
    counters: 6,
    fixed: 0,
    fixed_width: 0,
    capabilities: 0,
    core_extensions: true,
    ..INTEL
};

/// The same core before it had global registers.
pub(in crate::pmu) const AMD_WITHOUT_GLOBAL: PmuCapability = PmuCapability { version: 1, ..AMD };
