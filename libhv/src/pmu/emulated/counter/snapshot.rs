//! An emulated PMU as a value (requirements A29, B7): all of it is in memory while the guest does not run.

use super::{COUNT, EmulatedPmu};
use crate::pmu::bank::Bank;
use crate::pmu::credit::CreditMasks;
use crate::pmu::mechanism::{COUNTERS_FROZEN, frozen_by_interrupt};
use crate::pmu::policy::PmuPolicy;
use crate::pmu::registers::FixedControl;
use crate::pmu::state::{Found, State, StateError};

impl EmulatedPmu {
    /// Returns the state of the guest's PMU, with its IA32_DEBUGCTL being `debug_control`. The guest does not run, and has
    /// [ended](Self::end) if it has run.
    pub fn save(&self, debug_control: u64) -> State {
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
        State::new(&self.view, &Found { registers, debug_control, pending: self.interrupt, ..Found::default() })
    }

    /// Gives the guest the registers of a snapshot, which `policy` filters as it does the guest's own writes; of its
    /// IA32_DEBUGCTL, which the caller has, the bits of the state's that are its PMU's are to follow. What its counters are
    /// owed they are paid. The guest does not run, and has [ended](Self::end) if it has run.
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
        self.freezes = frozen_by_interrupt(state.debug_control) & COUNTERS_FROZEN != 0;
        let owed = state.owed.iter().enumerate();
        let over = owed.fold(0, |over, (at, events)| over | self.add(at, (*events).into()));
        self.take_down(over);
        self.masks = CreditMasks::of(self.view.guest(), &self.permitted, FixedControl(self.permitted_fixed));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hw::GlobalSwitch;
    use crate::pmu::policy::{Means, Passthrough, PmuShare};
    use crate::pmu::registers::EventSelector;
    use crate::pmu::view::PmuView;
    use crate::pmu::view::tests::HOST;

    /// A26, A29: a guest whose counters were the processor's, and could not hold all, comes to have emulated ones.
    #[test]
    fn what_counters_are_owed_is_paid_where_they_are_emulated() {
        // Owed across bit 31, which without full-width writes cannot be written, and with it across the last.
        for (version, held, total, overflowed) in
            [(4, (1 << 31) - 1, (1 << 31) + 2, 0), (4, u64::MAX >> 16, 2, 1), (3, u64::MAX >> 16, 2, 1)]
        {
            let host = crate::pmu::PmuCapability { version, capabilities: 1 << 12, ..HOST };
            let view =
                PmuView::new(&host, &PmuShare::all(&host), Means::Emulated, GlobalSwitch::Hardware).expect("a PMU");
            let mut found = Found::default();
            found.registers.selectors[2] = 0xC0 | 3 << 16 | EventSelector::INTERRUPT | EventSelector::ENABLE;
            (found.registers.counters[2], found.owed[2]) = (held, 3);
            (found.registers.fixed[1], found.owed[9]) = (7, 5);
            let mut pmu = EmulatedPmu::new(view, Some(&host), GlobalSwitch::Hardware);
            pmu.restore(&State::new(&view, &found), &Passthrough::new()).expect("legal");
            let state = pmu.save(0);
            assert_eq!(
                (state.registers.counters[2], state.registers.fixed[1], state.owed),
                (total, 12, [0; 2 * COUNT])
            );
            assert_eq!((state.registers.global_status, state.pending), (overflowed << 2, overflowed != 0), "{version}");
        }
    }

    /// T-A24, A29: what runs over as it is paid freezes by the IA32_DEBUGCTL of the snapshot, not by that of before.
    #[test]
    fn what_a_restore_pays_freezes_by_the_restored_debug_control() {
        const FREEZE: u64 = 1 << 12;
        let host = crate::pmu::PmuCapability { version: 3, ..HOST };
        let view = PmuView::new(&host, &PmuShare::all(&host), Means::Emulated, GlobalSwitch::Hardware).expect("a PMU");
        for (before, debug_control, control) in [(true, 0, 1), (false, FREEZE, 0)] {
            let mut found = Found { debug_control, ..Found::default() };
            found.registers.selectors[0] = 0xC0 | 3 << 16 | EventSelector::INTERRUPT | EventSelector::ENABLE;
            (found.registers.counters[0], found.owed[0], found.registers.global_control) = (u64::MAX >> 16, 1, 1);
            let mut pmu = EmulatedPmu::new(view, Some(&host), GlobalSwitch::Hardware);
            pmu.set_freezes(before);
            pmu.restore(&State::new(&view, &found), &Passthrough::new()).expect("legal");
            let Bank { global_status, global_control, .. } = pmu.save(debug_control).registers;
            assert_eq!((global_status, global_control), (1, control), "{debug_control:#x}");
        }
    }
}
