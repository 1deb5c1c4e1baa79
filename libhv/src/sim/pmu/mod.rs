//! The PMU of a simulated processor, written from the manuals and independent of the rest of the crate.
//!
//! Time comes in steps: [`Pmu::step`] is told what [`Happened`] in a clock period, and counts. What a guest does wrong
//! faults; what the hypervisor does wrong panics, with words that say what it was.

pub mod amd;
mod counter;
mod fault;
mod happened;
pub mod intel;
mod lbr;
mod predictor;

pub use fault::Fault;
pub use happened::Happened;
pub use lbr::{Kind, Taken};
pub use predictor::{Answered, Branch, Caches, Predictor};

/// A processor's PMU.
#[derive(Clone, Debug)]
pub enum Pmu {
    /// Intel's architectural performance monitoring.
    Intel(intel::Pmu),
    /// AMD's core performance counters.
    Amd(amd::Pmu),
}

/// What a processor's PMU has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Config {
    /// See [`intel::Config`].
    Intel(intel::Config),
    /// See [`amd::Config`].
    Amd(amd::Config),
}

impl Pmu {
    /// Makes a PMU as it is after RESET.
    ///
    /// # Panics
    /// When no processor is like `config`.
    pub fn new(config: Config) -> Self {
        match config {
            Config::Intel(config) => Self::Intel(intel::Pmu::new(config)),
            Config::Amd(config) => Self::Amd(amd::Pmu::new(config)),
        }
    }

    /// Counts a step at privilege level `cpl`, in the guest or in the host; returns whether it requested a performance
    /// monitoring interrupt: at most one, however many counters overflowed.
    #[must_use]
    pub fn step(&mut self, cpl: u8, in_guest: bool, happened: &Happened) -> bool {
        match self {
            Self::Intel(pmu) => pmu.step(cpl, happened),
            Self::Amd(pmu) => pmu.step(cpl, in_guest, happened),
        }
    }

    /// Records a taken branch where there are records of them.
    pub fn branch(&mut self, cpl: u8, taken: &Taken) {
        if let Self::Intel(pmu) = self {
            pmu.branch(cpl, taken);
        }
    }

    /// Returns whether an MSR of this number is of the PMU, and this processor has it.
    pub fn has(&self, msr: u32) -> bool {
        match self {
            Self::Intel(pmu) => pmu.has(msr),
            Self::Amd(pmu) => pmu.has(msr),
        }
    }

    /// RDMSR, as the guest executes it.
    ///
    /// # Errors
    /// What makes it #GP.
    pub fn read(&self, msr: u32) -> Result<u64, Fault> {
        match self {
            Self::Intel(pmu) => pmu.read(msr),
            Self::Amd(pmu) => pmu.read(msr),
        }
    }

    /// WRMSR, as the guest executes it.
    ///
    /// # Errors
    /// What makes it #GP; nothing has changed then.
    pub fn write(&mut self, msr: u32, value: u64) -> Result<(), Fault> {
        match self {
            Self::Intel(pmu) => pmu.write(msr, value),
            Self::Amd(pmu) => pmu.write_leniently(msr, value),
        }
    }

    /// RDPMC, as the guest executes it; the privilege for it apart.
    ///
    /// # Errors
    /// What makes it #GP.
    pub fn read_counter(&self, ecx: u32) -> Result<u64, Fault> {
        match self {
            Self::Intel(pmu) => pmu.read_counter(ecx),
            Self::Amd(pmu) => pmu.read_counter(ecx),
        }
    }

    /// RDMSR by the hypervisor.
    ///
    /// # Panics
    /// Where it faults.
    pub fn host_read(&self, msr: u32) -> u64 {
        self.read(msr).unwrap_or_else(|fault| panic!("RDMSR of {msr:#x} in the host faults: {fault}"))
    }

    /// WRMSR by the hypervisor.
    ///
    /// # Panics
    /// Where it faults, and where a processor leaves part of the value away.
    pub fn host_write(&mut self, msr: u32, value: u64) {
        let done = match self {
            Self::Intel(pmu) => pmu.write(msr, value),
            Self::Amd(pmu) => pmu.write(msr, value),
        };
        done.unwrap_or_else(|fault| panic!("WRMSR of {value:#x} to {msr:#x} in the host faults: {fault}"));
    }

    /// RDPMC by the hypervisor.
    ///
    /// # Panics
    /// Where it faults.
    pub fn host_read_counter(&self, ecx: u32) -> u64 {
        self.read_counter(ecx).unwrap_or_else(|fault| panic!("RDPMC of {ecx:#x} in the host faults: {fault}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[should_panic(expected = "WRMSR of 0x80000 to 0x186 in the host faults: bits 0x80000 are reserved")]
    fn a_reserved_bit_written_by_the_hypervisor_is_refused() {
        Pmu::new(Config::Intel(intel::Config::default())).host_write(0x186, 1 << 19);
    }

    #[test]
    #[should_panic(expected = "WRMSR of 0x1 to 0xc0000300 in the host faults: the MSR is read-only")]
    fn what_amd_ignores_is_refused_in_the_hypervisor() {
        Pmu::new(Config::Amd(amd::Config::default())).host_write(0xC000_0300, 1);
    }

    #[test]
    #[should_panic(expected = "RDPMC of 0x40000004 in the host faults: this processor has no such counter")]
    fn a_counter_that_does_not_exist_is_refused_in_the_hypervisor() {
        let _ = Pmu::new(Config::Intel(intel::Config::default())).host_read_counter(0x4000_0004);
    }
}
