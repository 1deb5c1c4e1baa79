//! An emulated PMU as a value (requirements A29, B7): all of it is in memory while the guest does not run.

use super::{COUNT, EmulatedPmu};
use crate::pmu::bank::Bank;
use crate::pmu::credit::CreditMasks;
use crate::pmu::policy::PmuPolicy;
use crate::pmu::registers::FixedControl;
use crate::pmu::state::{State, StateError};

impl EmulatedPmu {
    /// Returns the registers as the guest reads them. The guest does not run, and has [ended](Self::end) if it has run.
    pub fn save(&self) -> State {
        let mut registers = Bank {
            selectors: self.selectors,
            fixed_control: self.fixed_control,
            global_control: self.global_control,
            global_status: self.status,
            ..Bank::default()
        };
        for at in 0..COUNT {
            (registers.counters[at], registers.fixed[at]) = (self.counters[at].value, self.counters[COUNT + at].value);
        }
        State::new(&self.view, &registers, self.interrupt)
    }

    /// Gives the guest the registers of a snapshot, which `policy` filters as it does the guest's own writes. The guest
    /// does not run, and has [ended](Self::end) if it has run.
    ///
    /// # Errors
    /// The first value that the guest could not have written itself; nothing has changed then.
    pub fn restore(&mut self, state: &State, policy: &impl PmuPolicy) -> Result<(), StateError> {
        state.check(Some(&self.view))?;
        let Bank { counters, selectors, fixed, fixed_control, global_control, global_status } = state.registers;
        for (n, selector) in (0..self.view.guest().counters).zip(selectors) {
            self.permit(n, selector, policy);
        }
        self.permit_fixed(fixed_control, policy);
        for (counter, value) in self.counters.iter_mut().zip(counters.into_iter().chain(fixed)) {
            counter.value = value;
        }
        (self.global_control, self.status, self.interrupt) = (global_control, global_status, state.pending);
        self.masks = CreditMasks::of(self.view.guest(), &self.permitted, FixedControl(self.permitted_fixed));
        Ok(())
    }
}
