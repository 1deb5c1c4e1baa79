//! A guest's PMU that is not in the processor: what is read and written goes to where it is kept.

use crate::hw::{GlobalSwitch, PmuHardware};
use crate::pmu::bank::Bank;
use crate::pmu::registers::{CounterIndex, EventSelector, FixedControl, PmuRegister};

/// A kept bank with the hardware behind it, which looks like hardware that holds the bank: handlers of the guest's
/// accesses need not know where its registers are.
#[derive(Debug)]
pub struct Parked<'a, H> {
    /// The guest's registers.
    pub bank: &'a mut Bank,
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
        match register {
            PmuRegister::Counter(n) | PmuRegister::FullCounter(n) => self.bank.counters[at(n)],
            PmuRegister::Selector(n) | PmuRegister::CoreSelector(n) => self.bank.selectors[at(n)],
            PmuRegister::Fixed(n) => self.bank.fixed[at(n)],
            PmuRegister::FixedControl => self.bank.fixed_control,
            PmuRegister::GlobalControl => self.bank.global_control,
            PmuRegister::GlobalStatus => self.bank.global_status,
            PmuRegister::StatusReset | PmuRegister::StatusSet => 0,
            PmuRegister::InUse => in_use(self.bank),
            // Records stay in the processor: the host has no use for them.
            other => self.hardware.read_pmu(other),
        }
    }

    fn write_pmu(&mut self, register: PmuRegister, value: u64) {
        match register {
            PmuRegister::Counter(n) | PmuRegister::FullCounter(n) => self.bank.counters[at(n)] = value,
            PmuRegister::Selector(n) | PmuRegister::CoreSelector(n) => self.bank.selectors[at(n)] = value,
            PmuRegister::Fixed(n) => self.bank.fixed[at(n)] = value,
            PmuRegister::FixedControl => self.bank.fixed_control = value,
            PmuRegister::GlobalControl => self.bank.global_control = value,
            PmuRegister::StatusReset => self.bank.global_status &= !value,
            PmuRegister::StatusSet => self.bank.global_status |= value,
            PmuRegister::GlobalStatus | PmuRegister::InUse | PmuRegister::Capabilities => {}
            other => self.hardware.write_pmu(other, value),
        }
    }

    fn read_counter(&self, counter: CounterIndex) -> u64 {
        match counter {
            CounterIndex::General(n) => self.bank.counters[at(n)],
            CounterIndex::Fixed(n) => self.bank.fixed[at(n)],
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
