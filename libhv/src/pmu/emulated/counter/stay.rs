//! An emulated PMU into the processor and out of it.

use super::{Backing, EmulatedPmu};
use crate::hw::{Host, PmiRoute, PmuHardware};
use crate::pmu::bank::Bank;
use crate::pmu::registers::PmuRegister;

impl EmulatedPmu {
    /// Takes the processor's PMU, in whose registers nothing counts, and closes it to the guest.
    pub fn start(&mut self, hardware: &mut impl PmuHardware) {
        if let Some(pmu) = &self.processor {
            if pmu.has_global_control() {
                hardware.write_pmu(PmuRegister::GlobalControl, 0);
            }
            hardware.pass_rdpmc(false);
            hardware.set_guest_global_control(0);
            hardware.switch_global_control(true, 0);
            for n in 0..self.view.guest().counters {
                self.write_selector(n, true, hardware);
            }
            self.write_fixed_control(hardware);
        }
        for at in 0..self.counters.len() {
            self.back(at, hardware);
        }
        self.enable(hardware);
    }

    /// Leaves nothing of the guest in the processor: it is all here, for the next start.
    pub fn end(&mut self, hardware: &mut impl PmuHardware, host: &mut impl Host) {
        let Some(pmu) = self.processor else { return };
        host.route_pmi(PmiRoute::Masked);
        self.routed = false;
        // What its interrupt would tell is found out here: it must not come to whoever is next.
        host.serve_interrupts(None);
        host.take_guest_pmi();
        self.settle(hardware);
        for counter in &mut self.counters {
            counter.backing = Backing::Nothing;
        }
        let mut present = Bank::default();
        if pmu.has_global_control() {
            hardware.write_pmu(PmuRegister::GlobalControl, 0);
        }
        hardware.set_guest_global_control(0);
        present.take_selectors(&pmu, hardware);
        present.take_counts(&pmu, hardware);
        Bank::default().put(&pmu, &present, hardware);
    }
}
