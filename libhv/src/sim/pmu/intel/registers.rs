//! The MSRs of Intel's PMU and RDPMC: which exist, what they take, what they give (SDM Vol. 3B 20.2, Vol. 4 2.1).

use super::*;
use crate::sim::pmu::Fault;
use crate::sim::pmu::fault::only;

/// What an MSR number means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Register {
    Counter(usize),
    FullWidth(usize),
    Selector(usize),
    Fixed(usize),
    FixedControl,
    Capabilities,
    Status,
    GlobalControl,
    StatusReset,
    StatusSet,
    InUse,
    DebugControl,
    Lbr(u32),
}

impl Pmu {
    fn register(&self, msr: u32) -> Option<Register> {
        let Config { version, general, fixed, full_width_writes, .. } = self.config;
        let nth = |base: u32, count: u8| {
            let index = msr.checked_sub(base)?;
            (index < count.into()).then_some(index as usize)
        };
        let register = match msr {
            0xC1..0x186 => Register::Counter(nth(0xC1, general)?),
            0x186..0x1D9 => Register::Selector(nth(0x186, general)?),
            0x1D9 => Register::DebugControl,
            0x309..0x345 => Register::Fixed(nth(0x309, fixed)?),
            // CPUID.01H:ECX.PDCM, which came with version 2.
            0x345 if version >= 2 => Register::Capabilities,
            0x38D if version >= 2 => Register::FixedControl,
            0x38E if version >= 2 => Register::Status,
            0x38F if version >= 2 => Register::GlobalControl,
            0x390 if version >= 2 => Register::StatusReset,
            0x391 if version >= 4 => Register::StatusSet,
            0x392 if version >= 4 => Register::InUse,
            0x4C1..0x600 if full_width_writes => Register::FullWidth(nth(0x4C1, general)?),
            0x1200..0x1700 if self.lbr.is_some() => Register::Lbr(msr),
            _ => return None,
        };
        Some(register)
    }

    /// Returns whether an MSR of this number is of the PMU, and this processor has it.
    pub fn has(&self, msr: u32) -> bool {
        self.register(msr).is_some()
    }

    /// RDMSR.
    ///
    /// # Errors
    /// What makes it #GP.
    pub fn read(&self, msr: u32) -> Result<u64, Fault> {
        Ok(match self.register(msr).ok_or(Fault::NoRegister)? {
            Register::Counter(index) | Register::FullWidth(index) => self.general[index].value(),
            Register::Selector(index) => self.selectors[index],
            Register::Fixed(index) => self.fixed[index].value(),
            Register::FixedControl => self.fixed_control,
            Register::Capabilities => self.config.capabilities(),
            Register::Status => self.status,
            Register::GlobalControl => self.global_control,
            Register::StatusReset | Register::StatusSet => 0,
            Register::InUse => self.in_use(),
            Register::DebugControl => self.debug_control,
            Register::Lbr(msr) => self.lbr.as_ref().ok_or(Fault::NoRegister)?.read(msr)?,
        })
    }

    /// WRMSR.
    ///
    /// # Errors
    /// What makes it #GP; nothing has changed then.
    pub fn write(&mut self, msr: u32, value: u64) -> Result<(), Fault> {
        match self.register(msr).ok_or(Fault::NoRegister)? {
            // EDX does not count, and bit 31 of EAX fills the bits above it (SDM Vol. 3B 20.2.8).
            Register::Counter(index) => self.general[index].set(value as u32 as i32 as u64),
            Register::FullWidth(index) => {
                let value = only(self.general[index].mask(), value)?;
                self.general[index].set(value);
            }
            Register::Selector(index) => {
                self.selectors[index] = only(self.selector_bits(index), value)?;
                self.general[index].look_away();
            }
            Register::Fixed(index) => {
                let value = only(self.fixed[index].mask(), value)?;
                self.fixed[index].set(value);
            }
            Register::FixedControl => self.fixed_control = only(self.fixed_control_bits(), value)?,
            Register::Capabilities | Register::Status | Register::InUse => return Err(Fault::ReadOnly),
            Register::GlobalControl => self.global_control = only(self.config.counters(), value)?,
            Register::StatusReset => self.status &= !only(self.status_bits() | STATUS_CHANGED, value)?,
            Register::StatusSet => self.status |= only(self.status_bits(), value)?,
            Register::DebugControl => self.debug_control = only(self.debug_control_bits(), value)?,
            Register::Lbr(msr) => self.lbr.as_mut().ok_or(Fault::NoRegister)?.write(msr, value)?,
        }
        Ok(())
    }

    /// RDPMC, the privilege for it apart. The type is in bits 31:16 of ECX: 0 general-purpose, 4000H fixed (SDM Vol. 2B
    /// "RDPMC").
    ///
    /// # Errors
    /// What makes it #GP.
    pub fn read_counter(&self, ecx: u32) -> Result<u64, Fault> {
        let index = (ecx & 0xFFFF) as usize;
        let counters = match ecx >> 16 {
            0 => &self.general,
            0x4000 if self.config.version >= 2 => &self.fixed,
            _ => return Err(Fault::NoCounter),
        };
        counters.get(index).map(Counter::value).ok_or(Fault::NoCounter)
    }

    /// The bits of IA32_PERFEVTSELn. PC (19) is reserved since processors have no pins for it (SDM Vol. 3B 20.2.1.1).
    fn selector_bits(&self, index: usize) -> u64 {
        let mut bits = 0xFFFF_FFFF & !(1 << 19) & !SELECT_ANY_THREAD;
        if self.config.any_thread() {
            bits |= SELECT_ANY_THREAD;
        }
        if self.config.transactions {
            bits |= SELECT_IN_TX | if index == 2 { SELECT_IN_TXCP } else { 0 };
        }
        bits
    }

    fn fixed_control_bits(&self) -> u64 {
        let each = if self.config.any_thread() { 0b1111 } else { 0b1011 };
        (0..self.config.fixed).fold(0, |bits, index| bits | each << (4 * index))
    }

    fn status_bits(&self) -> u64 {
        let frozen = if self.config.version >= 4 { STATUS_FROZEN | STATUS_LBR_FROZEN } else { 0 };
        // Ovf_Uncore came with version 3 (SDM Vol. 4, IA32_PERF_GLOBAL_OVF_CTRL).
        let uncore = if self.config.version >= 3 { STATUS_UNCORE } else { 0 };
        self.config.counters() | uncore | STATUS_BUFFER | frozen
    }

    fn debug_control_bits(&self) -> u64 {
        let freeze = if self.config.version >= 2 { DEBUGCTL_FREEZE_LBRS | DEBUGCTL_FREEZE } else { 0 };
        DEBUGCTL_BTF | freeze | if self.config.freeze_in_smm { DEBUGCTL_FREEZE_IN_SMM } else { 0 }
    }

    /// IA32_PERF_GLOBAL_INUSE (SDM Vol. 3B 20.2.4.3).
    fn in_use(&self) -> u64 {
        let mut bits = 0;
        for (index, selector) in self.selectors.iter().enumerate() {
            bits |= u64::from(selector & 0xFF != 0) << index | u64::from(selector & SELECT_INT != 0) << 63;
        }
        for index in 0..self.fixed.len() {
            let control = self.fixed_control >> (4 * index);
            bits |= u64::from(control & 3 != 0) << (32 + index) | u64::from(control & 8 != 0) << 63;
        }
        bits
    }
}
