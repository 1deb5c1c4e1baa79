//! What a snapshot keeps of what a register holds, and what it may hold for a restore: one judgement, which is that of the
//! guest's own WRMSR.

use super::{FREEZE_LBRS_ON_PMI, FREEZE_PERFMON_ON_PMI, Fault, PmuView};
use crate::pmu::registers::{Maker, PmuRegister};

impl PmuView {
    /// Returns the bits of IA32_DEBUGCTL that the guest may set for its PMU (T-A24): freezing on an interrupt, from
    /// version 2 on with IA32_PERF_CAPABILITIES, and the records' where there are any: an entry with a bit that the
    /// processor lacks is refused. FREEZE_WHILE_SMM is the host's (T-A23).
    pub fn debugctl_bits(&self) -> u64 {
        if self.guest.maker != Maker::Intel || self.guest.version < 2 || !self.shows_capabilities() {
            return 0;
        }
        let counters = if self.freezes { FREEZE_PERFMON_ON_PMI } else { 0 };
        counters | if self.shows_lbr() { FREEZE_LBRS_ON_PMI } else { 0 }
    }

    /// Returns what of a register's value the guest can have brought about; 0 where it has no such register.
    ///
    /// That is what [`validate_write`](Self::validate_write) accepts, and further what a counter comes to that counts
    /// beyond what can be written to it, and the bits of IA32_PERF_GLOBAL_STATUS that can be set or cleared. A processor
    /// newer than what is shown of it takes more in a register that passes: that is left away, and of an address that is
    /// none, all of it.
    pub fn kept(&self, register: PmuRegister, value: u64) -> u64 {
        match register {
            PmuRegister::Counter(_) if self.guest.maker == Maker::Intel && self.exists(register) => {
                value & self.guest.counter_mask()
            }
            PmuRegister::GlobalStatus => self.written(self.status_register(), value & self.status_bits()),
            _ => self.written(register, value),
        }
    }

    fn written(&self, register: PmuRegister, value: u64) -> u64 {
        match self.validate_write(register, value) {
            Ok(kept) => kept,
            Err(Fault::Reserved(bits)) => self.validate_write(register, value & !bits).unwrap_or(0),
            Err(_) => 0,
        }
    }

    /// Judges a register's value out of a snapshot: all of it is [kept](Self::kept).
    ///
    /// # Errors
    /// As [`validate_write`](Self::validate_write).
    pub fn validate_kept(&self, register: PmuRegister, value: u64) -> Result<(), Fault> {
        let kept = self.kept(register, value);
        if kept == value {
            return Ok(());
        }
        let written = if register == PmuRegister::GlobalStatus { self.status_register() } else { register };
        self.validate_write(written, value).and(Err(Fault::Reserved(value & !kept)))
    }

    /// Returns the register through which IA32_PERF_GLOBAL_STATUS is set, or at least cleared, bit by bit (A18).
    fn status_register(&self) -> PmuRegister {
        let settable = self.exists(PmuRegister::StatusSet);
        if settable { PmuRegister::StatusSet } else { PmuRegister::StatusReset }
    }
}
