//! What of the guest's PMU is reached without an exit.

use super::{Passed, PmuView};
use crate::pmu::capability::PERF_METRICS;
use crate::pmu::policy::Means;
use crate::pmu::registers::{BranchRegister, Maker, PmuRegister};

impl PmuView {
    /// Returns whether the guest has every counter that the processor has, in its width (A9): only then do registers
    /// that speak of all counters at once show nothing that is not the guest's.
    #[inline]
    pub fn matches_hardware(&self) -> bool {
        let (guest, host) = (&self.guest, &self.host);
        !host.has_more
            && guest.counters == host.counters
            && guest.fixed == host.fixed
            && guest.width == host.width
            && guest.fixed_width == host.fixed_width
    }

    /// Returns whether the guest's status is the processor's.
    #[inline]
    fn passes_status(&self) -> bool {
        self.matches_hardware() && !self.beside
    }

    /// Returns whether RDPMC does not leave the guest. It does where it reads what is not the guest's: performance
    /// metrics (A8), or what cores share.
    #[inline]
    pub fn passes_rdpmc(&self) -> bool {
        let metrics = self.host.capabilities & PERF_METRICS != 0;
        self.means == Means::Passed && self.matches_hardware() && !metrics && !self.rdpmc_reaches_uncore()
    }

    /// Returns whether RDPMC reads counters of the northbridge or data fabric and of the third-level cache too, behind
    /// the core's (APM Vol. 3 "RDPMC"): on AMD's processors, since there are core extensions.
    #[inline]
    pub fn rdpmc_reaches_uncore(&self) -> bool {
        self.host.maker == Maker::Amd && self.host.core_extensions
    }

    /// Returns whether the processor refuses what no guest may write to a selector: AnyThread, and on AMD's processors
    /// to count the host.
    fn selectors_are_safe(&self) -> bool {
        self.host.maker == Maker::Intel && (self.host.any_thread_deprecated || self.host.version < 3)
    }

    /// Returns which accesses to a register do not leave the guest (A10, A11, A12). `unaltered` says that the register
    /// holds what the guest wrote there: a filter lets reads of such a selector pass.
    pub fn passes(&self, register: PmuRegister, unaltered: bool) -> Passed {
        let (none, all) = (Passed::default(), Passed { read: true, write: true });
        let when = |condition: bool, passed: Passed| if condition { passed } else { none };
        if self.means != Means::Passed || !self.exists(register) {
            return none;
        }
        let selectors = Passed {
            read: self.host.maker == Maker::Intel && (!self.filters || unaltered),
            write: self.selectors_are_safe() && !self.filters,
        };
        match register {
            PmuRegister::Counter(_) | PmuRegister::FullCounter(_) | PmuRegister::Fixed(_) => all,
            PmuRegister::Selector(_) | PmuRegister::CoreSelector(_) => selectors,
            PmuRegister::FixedControl => when(self.guest.fixed == self.host.fixed, selectors),
            PmuRegister::GlobalControl => when(self.matches_hardware(), all),
            PmuRegister::StatusReset | PmuRegister::StatusSet => when(self.passes_status(), all),
            PmuRegister::GlobalStatus => when(self.passes_status(), Passed { read: true, write: false }),
            PmuRegister::InUse => {
                let read = self.matches_hardware() && selectors.read;
                Passed { read, write: false }
            }
            PmuRegister::Capabilities => none,
            // The processor takes shallower depths than the one that is shown, and whoever reads the records of this
            // guest would then find none beyond.
            PmuRegister::Branch(BranchRegister::Depth) => Passed { read: true, write: false },
            // Entry and exit switch what records: no branch of the host is in the records.
            PmuRegister::Branch(_) => all,
        }
    }
}
