//! A guest's PMU that is not in the processor: what is read and written goes to where it is kept.

use crate::hw::{GlobalSwitch, PmuHardware};
use crate::pmu::bank::Bank;
use crate::pmu::registers::{CounterIndex, EventSelector, FixedControl, PmuRegister};

/// The bits of IA32_PERF_GLOBAL_STATUS that tell of counters (SDM Vol. 3B, figure "IA32_PERF_GLOBAL_STATUS MSR and
/// Architectural Perfmon Version 4").
const COUNTERS: u64 = 0xFFFF_FFFF_FFFF;

/// What of a guest's PMU is kept beside a host whose counters interrupt, or are the same.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Kept {
    /// The guest's registers while the host runs, where both use the same counters. The status is without the counters' bits.
    pub bank: Bank,
    /// The bits in the guest's IA32_PERF_GLOBAL_STATUS of counters that have run over. They are never in the processor when
    /// the guest is entered, so that those which are when it leaves have run over meanwhile.
    pub overflowed: u64,
}

impl Kept {
    /// Keeps what a status tells of counters; returns that.
    pub(super) fn take_overflows(&mut self, status: u64) -> u64 {
        self.overflowed |= status & COUNTERS;
        status & COUNTERS
    }
}

/// What is kept with the hardware behind it, which looks like hardware that holds all of it: handlers of the guest's
/// accesses need not know where its registers are.
#[derive(Debug)]
pub struct Parked<'a, H> {
    /// What is kept of the guest's.
    pub kept: &'a mut Kept,
    /// Whether that is all of its registers, or the status alone.
    pub whole: bool,
    /// What keeps the rest: permissions, and what entry and exit switch.
    pub hardware: &'a mut H,
}

const fn at(n: u8) -> usize {
    (n & 7) as usize
}

impl<H: PmuHardware> PmuHardware for Parked<'_, H> {
    fn global_switch(&self) -> GlobalSwitch {
        self.hardware.global_switch()
    }

    fn read_pmu(&self, register: PmuRegister) -> u64 {
        let bank = &self.kept.bank;
        match register {
            PmuRegister::GlobalStatus if self.whole => bank.global_status | self.kept.overflowed,
            PmuRegister::GlobalStatus => self.hardware.read_pmu(register) & !COUNTERS | self.kept.overflowed,
            PmuRegister::StatusReset | PmuRegister::StatusSet => 0,
            other if !self.whole => self.hardware.read_pmu(other),
            PmuRegister::Counter(n) | PmuRegister::FullCounter(n) => bank.counters[at(n)],
            PmuRegister::Selector(n) | PmuRegister::CoreSelector(n) => bank.selectors[at(n)],
            PmuRegister::Fixed(n) => bank.fixed[at(n)],
            PmuRegister::FixedControl => bank.fixed_control,
            PmuRegister::GlobalControl => bank.global_control,
            PmuRegister::InUse => in_use(bank),
            // Records stay in the processor: the host has no use for them.
            other => self.hardware.read_pmu(other),
        }
    }

    fn write_pmu(&mut self, register: PmuRegister, value: u64) {
        let Kept { bank, overflowed } = &mut *self.kept;
        match register {
            PmuRegister::StatusReset => *overflowed &= !value,
            PmuRegister::StatusSet => *overflowed |= value & COUNTERS,
            _ => {}
        }
        match register {
            PmuRegister::StatusReset | PmuRegister::StatusSet if value & !COUNTERS == 0 => {}
            PmuRegister::StatusReset if self.whole => bank.global_status &= !value,
            PmuRegister::StatusSet if self.whole => bank.global_status |= value & !COUNTERS,
            PmuRegister::StatusReset | PmuRegister::StatusSet => self.hardware.write_pmu(register, value & !COUNTERS),
            other if !self.whole => self.hardware.write_pmu(other, value),
            PmuRegister::Counter(n) | PmuRegister::FullCounter(n) => bank.counters[at(n)] = value,
            PmuRegister::Selector(n) | PmuRegister::CoreSelector(n) => bank.selectors[at(n)] = value,
            PmuRegister::Fixed(n) => bank.fixed[at(n)] = value,
            PmuRegister::FixedControl => bank.fixed_control = value,
            PmuRegister::GlobalControl => bank.global_control = value,
            PmuRegister::GlobalStatus | PmuRegister::InUse | PmuRegister::Capabilities => {}
            other => self.hardware.write_pmu(other, value),
        }
    }

    fn read_counter(&self, counter: CounterIndex) -> u64 {
        match counter {
            other if !self.whole => self.hardware.read_counter(other),
            CounterIndex::General(n) => self.kept.bank.counters[at(n)],
            CounterIndex::Fixed(n) => self.kept.bank.fixed[at(n)],
        }
    }

    fn switch_global_control(&mut self, on: bool, host: u64) {
        self.hardware.switch_global_control(on, host);
    }
    fn guest_global_control(&self) -> u64 {
        self.hardware.guest_global_control()
    }
    fn set_guest_global_control(&mut self, value: u64) {
        self.hardware.set_guest_global_control(value);
    }
    fn switches_branch_control(&self) -> bool {
        self.hardware.switches_branch_control()
    }
    fn switch_branch_control(&mut self, on: bool) {
        self.hardware.switch_branch_control(on);
    }
    fn guest_branch_control(&self) -> u64 {
        self.hardware.guest_branch_control()
    }
    fn set_guest_branch_control(&mut self, value: u64) {
        self.hardware.set_guest_branch_control(value);
    }
    fn pass_rdpmc(&mut self, pass: bool) {
        self.hardware.pass_rdpmc(pass);
    }
    fn pass_pmu(&mut self, register: PmuRegister, read: bool, write: bool) {
        self.hardware.pass_pmu(register, read, write);
    }
}

/// Returns IA32_PERF_GLOBAL_INUSE: the counters whose selector names an event, the fixed-function ones that are enabled,
/// and bit 63 when any of them interrupts (SDM Vol. 3B, "Performance Monitoring", IA32_PERF_GLOBAL_INUSE).
fn in_use(bank: &Bank) -> u64 {
    let general = (0..8u8).zip(&bank.selectors).filter(|(_, selector)| **selector & 0xFF != 0).map(|(n, _)| 1 << n);
    let fixed = (0..8u8).filter(|n| FixedControl(bank.fixed_control).of(*n) & 3 != 0).map(|n| 1 << (32 + n));
    let interrupts = bank.selectors.iter().any(|selector| EventSelector(*selector).interrupts())
        || (0..8).any(|n| FixedControl(bank.fixed_control).interrupts(n));
    general.chain(fixed).fold(u64::from(interrupts) << 63, |bits, bit: u64| bits | bit)
}
