//! The PMU's seam on SVM: nothing is switched with the world, the selectors say themselves that they count the guest alone
//! (GuestOnly, APM Vol. 2 13.2.1), which the mechanism forces.
//!
//! Hardware PMC virtualization (CPUID 8000_000AH:EDX\[8\]) is not asked for, and processors that have it run as those that
//! have not: what is public of it does not yet say how an overflow reaches a guest without AVIC.

use super::vcpu::Svm;
use super::vmcb::intercept3;
use crate::hw::{GlobalSwitch, PmuHardware, counters};
use crate::pmu::registers::{CounterIndex, Maker, PmuRegister};

impl PmuHardware for Svm {
    fn global_switch(&self) -> GlobalSwitch {
        GlobalSwitch::Selectors
    }

    fn read_pmu(&self, register: PmuRegister) -> u64 {
        counters::read(register, Maker::Amd)
    }

    fn write_pmu(&mut self, register: PmuRegister, value: u64) {
        counters::write(register, Maker::Amd, value);
    }

    fn read_counter(&self, counter: CounterIndex) -> u64 {
        counters::read_counter(counter)
    }

    fn switch_global_control(&mut self, _on: bool, _host: u64) {}

    fn guest_global_control(&self) -> u64 {
        0
    }

    fn set_guest_global_control(&mut self, _value: u64) {}

    fn pass_rdpmc(&mut self, pass: bool) {
        let intercepts = &mut self.vmcb.control.intercept3;
        *intercepts = if pass { *intercepts & !intercept3::RDPMC } else { *intercepts | intercept3::RDPMC };
    }

    fn pass_pmu(&mut self, register: PmuRegister, read: bool, write: bool) {
        if let Some(msr) = register.msr(Maker::Amd) {
            self.msrs.pass(msr.0, read, write);
        }
    }
}
