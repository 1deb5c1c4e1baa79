//! AMD's core performance counters, with and without PerfMonV2's global registers, and their virtualization in hardware
//! (APM Vol. 2 13.2 and 15.39, PPR "core performance monitor counters").

#[cfg(test)]
mod tests;

use super::counter::Counter;
use super::fault::{Fault, only};
use super::happened::{Condition, Happened, Source};

/// The most counters there are.
pub const COUNTERS: usize = 6;

const SELECT_USR: u64 = 1 << 16;
const SELECT_OS: u64 = 1 << 17;
const SELECT_INT: u64 = 1 << 20;
const SELECT_EN: u64 = 1 << 22;
const SELECT_GUEST_ONLY: u64 = 1 << 40;
const SELECT_HOST_ONLY: u64 = 1 << 41;
/// Event, unit mask, USR, OS, edge, INT, EN, INV, CMASK, the event's upper bits, GuestOnly, HostOnly.
const SELECTOR_BITS: u64 = 0x030F_FFD7_FFFF;
const STATUS_LBR_FROZEN: u64 = 1 << 58;
const STATUS_FROZEN: u64 = 1 << 59;
const DEBUGCTL_BTF: u64 = 1 << 1;
const DEBUGCTL_FREEZE_LBRS: u64 = 1 << 11;
const DEBUGCTL_FREEZE: u64 = 1 << 12;

/// The exit code of a VMRUN that is refused because the host's counters are on while the guest's are virtualized.
pub const INVALID_PMC: i64 = -4;

/// What a processor's PMU has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Config {
    /// Six counters and their own MSRs (CPUID.80000001H:ECX.PerfCtrExtCore); without, the legacy four.
    pub extended: bool,
    /// PerfMonV2: the global registers.
    pub global: bool,
    /// Counters can be frozen on an interrupt (CPUID.80000022H:EAX.LbrAndPmcFreeze).
    pub freeze: bool,
    /// VMRUN and #VMEXIT can switch the counters.
    pub virtualized: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self { extended: true, global: true, freeze: true, virtualized: false }
    }
}

impl Config {
    /// Returns how many counters there are.
    pub fn counters(&self) -> usize {
        if self.extended { COUNTERS } else { 4 }
    }

    fn enables(&self) -> u64 {
        (1 << self.counters()) - 1
    }

    /// Returns CPUID leaf 8000_0022H.
    pub fn leaf_8000_0022(&self) -> [u32; 4] {
        let features = u32::from(self.global) | u32::from(self.freeze) << 2;
        [features, if self.global { self.counters() as u32 } else { 0 }, 0, 0]
    }
}

/// Where the VMCB keeps a guest's counters when hardware switches them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Slots {
    /// PERF_CTLn and PERF_CTRn.
    pub counters: [(u64, u64); COUNTERS],
    /// PerfCntrGlobalStatus
    pub status: u64,
    /// PerfCntrGlobalCtl
    pub control: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Register {
    Selector(usize),
    Counter(usize),
    Status,
    GlobalControl,
    StatusClear,
    StatusSet,
    DebugControl,
}

/// The PMU of a logical processor.
#[derive(Clone, Debug)]
pub struct Pmu {
    config: Config,
    selectors: [u64; COUNTERS],
    counters: [Counter; COUNTERS],
    global_control: u64,
    status: u64,
    debug_control: u64,
    svme: bool,
    /// The host's status while the guest's is in its place.
    host_status: Option<u64>,
}

impl Pmu {
    /// Makes a PMU as it is after RESET.
    ///
    /// # Panics
    /// When no processor is like `config`.
    pub fn new(config: Config) -> Self {
        assert!(config.extended || !config.global, "PerfMonV2 without the extended counters");
        assert!(config.global || !config.freeze && !config.virtualized, "both need PerfMonV2");
        Self {
            config,
            selectors: [0; COUNTERS],
            counters: [Counter::new(48); COUNTERS],
            global_control: config.enables(),
            status: 0,
            debug_control: 0,
            svme: false,
            host_status: None,
        }
    }

    /// Returns what the processor has.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Sets EFER.SVME as it is in the mode that the processor is in.
    pub fn set_svme(&mut self, on: bool) {
        self.svme = on;
    }

    /// Returns whether a selector counts in this mode. With SVME clear only one with neither bit does.
    fn counts_in(&self, selector: u64, in_guest: bool) -> bool {
        let (guest, host) = (selector & SELECT_GUEST_ONLY != 0, selector & SELECT_HOST_ONLY != 0);
        match (guest, host) {
            (false, false) => true,
            _ if !self.svme => false,
            (true, true) => true,
            (only_guest, _) => only_guest == in_guest,
        }
    }

    /// Counts a step at privilege level `cpl`; returns whether it requested an interrupt.
    pub fn step(&mut self, cpl: u8, in_guest: bool, happened: &Happened) -> bool {
        let enabled = match self.config.global {
            true if self.status & STATUS_FROZEN != 0 => 0,
            true => self.global_control,
            false => self.config.enables(),
        };
        let level = if cpl == 0 { SELECT_OS } else { SELECT_USR };
        let (mut overflowed, mut interrupts) = (0, false);
        for index in 0..self.config.counters() {
            let selector = self.selectors[index];
            let counts = enabled >> index & 1 != 0
                && selector & SELECT_EN != 0
                && selector & level != 0
                && self.counts_in(selector, in_guest);
            let counter = &mut self.counters[index];
            if !counts {
                counter.look_away();
                continue;
            }
            let event = (selector & 0xFF | selector >> 24 & 0xF00) as u16;
            if counter.count(&Condition::of(Source::amd(event), selector), happened) {
                overflowed |= 1 << index;
                interrupts |= selector & SELECT_INT != 0;
            }
        }
        if self.config.global {
            self.status |= overflowed;
        }
        if interrupts {
            let if_asked = |asked, bit| if self.debug_control & asked != 0 { bit } else { 0 };
            self.status |= if_asked(DEBUGCTL_FREEZE, STATUS_FROZEN) | if_asked(DEBUGCTL_FREEZE_LBRS, STATUS_LBR_FROZEN);
        }
        interrupts
    }

    /// VMRUN with the guest's counters virtualized: theirs are loaded, and the host's status is put aside.
    ///
    /// # Errors
    /// [`INVALID_PMC`] when the host's PerfCntrGlobalCtl is not 0.
    ///
    /// # Panics
    /// When the processor has no such virtualization, or a slot holds what no register does.
    pub fn load(&mut self, slots: &Slots) -> Result<(), i64> {
        assert!(self.config.virtualized, "VMRUN with PMC virtualization, which this processor has not");
        if self.global_control != 0 {
            return Err(INVALID_PMC);
        }
        let status = self.host_status.replace(self.status);
        assert!(status.is_none(), "VMRUN within a guest");
        for (index, (selector, counter)) in slots.counters.into_iter().enumerate() {
            assert_eq!(selector & !SELECTOR_BITS, 0, "the slot of PERF_CTL{index} holds reserved bits: {selector:#x}");
            assert_eq!(counter & !self.counters[index].mask(), 0, "the slot of PERF_CTR{index} holds {counter:#x}");
            self.selectors[index] = selector;
            self.counters[index].set(counter);
            self.counters[index].look_away();
        }
        assert_eq!(slots.control & !self.config.enables(), 0, "the slot of PerfCntrGlobalCtl holds reserved bits");
        assert_eq!(slots.status & !self.status_bits(), 0, "the slot of PerfCntrGlobalStatus holds reserved bits");
        (self.global_control, self.status) = (slots.control, slots.status);
        Ok(())
    }

    /// #VMEXIT after [`load`](Self::load): the guest's counters go to the VMCB, the host gets its status back, and the
    /// rest has its values of RESET: all counters enabled.
    ///
    /// # Panics
    /// When there was no such VMRUN.
    pub fn save(&mut self) -> Slots {
        let host_status = self.host_status.take().expect("#VMEXIT follows VMRUN");
        let counters = core::array::from_fn(|index| (self.selectors[index], self.counters[index].value()));
        let slots = Slots { counters, status: self.status, control: self.global_control };
        self.selectors = [0; COUNTERS];
        self.counters = [Counter::new(48); COUNTERS];
        (self.global_control, self.status) = (self.config.enables(), host_status);
        slots
    }

    /// Returns whether a guest's counters are loaded.
    pub fn is_loaded(&self) -> bool {
        self.host_status.is_some()
    }

    fn register(&self, msr: u32) -> Option<Register> {
        let Config { extended, global, .. } = self.config;
        Some(match msr {
            0x1D9 => Register::DebugControl,
            0xC000_0300 if global => Register::Status,
            0xC000_0301 if global => Register::GlobalControl,
            0xC000_0302 if global => Register::StatusClear,
            0xC000_0303 if global => Register::StatusSet,
            0xC001_0000..=0xC001_0003 => Register::Selector((msr & 3) as usize),
            0xC001_0004..=0xC001_0007 => Register::Counter((msr & 3) as usize),
            0xC001_0200..=0xC001_020B if extended => {
                let index = ((msr - 0xC001_0200) / 2) as usize;
                if msr & 1 == 0 { Register::Selector(index) } else { Register::Counter(index) }
            }
            _ => return None,
        })
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
            Register::Selector(index) => self.selectors[index],
            Register::Counter(index) => self.counters[index].value(),
            Register::Status => self.status,
            Register::GlobalControl => self.global_control,
            Register::StatusClear | Register::StatusSet => 0,
            Register::DebugControl => self.debug_control,
        })
    }

    /// WRMSR as it should be: with reserved bits clear, and not to a register that is read-only.
    ///
    /// # Errors
    /// What is wrong with it; nothing has changed then.
    pub fn write(&mut self, msr: u32, value: u64) -> Result<(), Fault> {
        match self.register(msr).ok_or(Fault::NoRegister)? {
            Register::Selector(index) => {
                self.selectors[index] = only(SELECTOR_BITS, value)?;
                self.counters[index].look_away();
            }
            Register::Counter(index) => {
                let value = only(self.counters[index].mask(), value)?;
                self.counters[index].set(value);
            }
            Register::Status => return Err(Fault::ReadOnly),
            Register::GlobalControl => self.global_control = only(self.config.enables(), value)?,
            Register::StatusClear => self.status &= !only(self.status_bits(), value)?,
            Register::StatusSet => self.status |= only(self.status_bits(), value)?,
            Register::DebugControl => {
                let freeze = if self.config.freeze { DEBUGCTL_FREEZE | DEBUGCTL_FREEZE_LBRS } else { 0 };
                self.debug_control = only(DEBUGCTL_BTF | freeze, value)?;
            }
        }
        Ok(())
    }

    /// WRMSR as the processor does it: reserved bits and read-only registers are left alone without a fault.
    ///
    /// # Errors
    /// What makes it #GP; nothing has changed then.
    pub fn write_leniently(&mut self, msr: u32, value: u64) -> Result<(), Fault> {
        match self.write(msr, value) {
            Err(Fault::Reserved(bits)) => self.write(msr, value & !bits),
            Err(Fault::ReadOnly) => Ok(()),
            done => done,
        }
    }

    /// RDPMC, the privilege for it apart: ECX is the number of the counter (APM Vol. 3 "RDPMC").
    ///
    /// # Errors
    /// What makes it #GP.
    pub fn read_counter(&self, ecx: u32) -> Result<u64, Fault> {
        let counters = &self.counters[..self.config.counters()];
        counters.get(ecx as usize).map(Counter::value).ok_or(Fault::NoCounter)
    }

    fn status_bits(&self) -> u64 {
        self.config.enables() | if self.config.freeze { STATUS_FROZEN | STATUS_LBR_FROZEN } else { 0 }
    }
}
