//! Instructions that the hypervisor executed or skipped in the guest's stead count once, as on the processor that would
//! have executed them (requirement A26, T-A8). Pure.

use super::capability::PmuCapability;
use super::registers::{EventSelector, FixedControl, MAX_COUNTERS, Maker};
use bit_field::BitField;

/// Fixed-function counter 0: instructions retired.
const FIXED_INSTRUCTIONS: u8 = 0;

/// What retired.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Retired {
    /// The privilege level it was executed at, 0 to 3.
    pub cpl: u8,
    /// It was a branch.
    pub branch: bool,
}

/// Whether an event counts instructions, branches, or neither.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Counts {
    Instructions,
    Branches,
}

/// Returns what of an emulated instruction a selector counts. Conditional branches, which are never emulated, and all
/// that is no property of the instruction count nothing.
fn counts(selector: EventSelector, maker: Maker) -> Option<Counts> {
    const EDGE: usize = 18;
    const INVERT: usize = 23;
    // One instruction in a period of the clock: a threshold above 1 is not reached, and edges and periods without are
    // not the instruction's. Without a threshold INV means nothing.
    let threshold = selector.0.get_bits(24..32);
    // Outside transactions alone (IN_TXCP), and with PEBS (bit 34), it is still the same event; in them (IN_TX), or by more
    // bits of a unit mask, another.
    let another = maker == Maker::Intel && selector.0 & !(0b110 << 32 | 0xFFFF_FFFF) != 0;
    if another {
        return None;
    }
    if selector.0.get_bit(EDGE) || threshold > 1 || threshold == 1 && selector.0.get_bit(INVERT) || !selector.enabled()
    {
        return None;
    }
    match (maker, selector.event(maker), selector.unit_mask()) {
        (Maker::Intel, 0xC0, 0) | (Maker::Amd, 0xC0, _) => Some(Counts::Instructions),
        (Maker::Intel, 0xC4, 0) | (Maker::Amd, 0xC2, _) => Some(Counts::Branches),
        _ => None,
    }
}

/// Returns whether a general-purpose counter with this selector counts what retired.
pub fn selector_counts(selector: EventSelector, maker: Maker, retired: Retired) -> bool {
    selector.counts_at(retired.cpl)
        && match counts(selector, maker) {
            Some(Counts::Instructions) => true,
            Some(Counts::Branches) => retired.branch,
            None => false,
        }
}

/// Returns whether a fixed-function counter counts what retired.
pub fn fixed_counts(counter: u8, control: FixedControl, retired: Retired) -> bool {
    counter == FIXED_INSTRUCTIONS && control.counts_at(counter, retired.cpl)
}

/// Which counters count an emulated instruction, for all that can be asked: found when selectors change, so that an
/// exit looks up one word.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CreditMasks([u64; 4]);

/// What each of the masks is for.
const CASES: [Retired; 4] = [
    Retired { cpl: 0, branch: false },
    Retired { cpl: 3, branch: false },
    Retired { cpl: 0, branch: true },
    Retired { cpl: 3, branch: true },
];

impl CreditMasks {
    /// Finds them for selectors as the processor has them.
    pub fn of(pmu: &PmuCapability, selectors: &[u64; MAX_COUNTERS as usize], control: FixedControl) -> Self {
        let mut masks = Self::default();
        for (n, selector) in (0..pmu.counters).zip(selectors) {
            masks.select(n, EventSelector(*selector), pmu.maker);
        }
        masks.select_fixed(pmu, control);
        masks
    }

    /// A general-purpose counter has another selector.
    pub fn select(&mut self, n: u8, selector: EventSelector, maker: Maker) {
        for (retired, mask) in CASES.into_iter().zip(&mut self.0) {
            mask.set_bit(usize::from(n & 31), selector_counts(selector, maker, retired));
        }
    }

    /// The fixed-function counters have another control.
    pub fn select_fixed(&mut self, pmu: &PmuCapability, control: FixedControl) {
        for (retired, mask) in CASES.into_iter().zip(&mut self.0) {
            let counted = pmu.has_fixed(FIXED_INSTRUCTIONS) && fixed_counts(FIXED_INSTRUCTIONS, control, retired);
            mask.set_bit(32 + usize::from(FIXED_INSTRUCTIONS), counted);
        }
    }

    /// Returns the counters, with their bits in the global registers.
    #[inline]
    pub const fn counting(&self, retired: Retired) -> u64 {
        self.0[(retired.cpl != 0) as usize | (retired.branch as usize) << 1]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pmu::capability::processors::INTEL;
    use proptest::prelude::*;

    const INSTRUCTIONS: u64 = 0xC0 | EventSelector::ENABLE;
    const USER: u64 = 1 << 16;
    const SYSTEM: u64 = 1 << 17;

    /// A26, T-A17.
    #[test]
    fn an_instruction_counts_at_its_level_and_a_branch_as_both() {
        let counts = |selector: u64, cpl, branch| {
            selector_counts(EventSelector(selector), Maker::Intel, Retired { cpl, branch })
        };
        assert!(counts(INSTRUCTIONS | USER, 3, false) && !counts(INSTRUCTIONS | USER, 0, false));
        assert!(counts(INSTRUCTIONS | SYSTEM, 0, true) && !counts(INSTRUCTIONS | SYSTEM, 3, true));
        let branches = INSTRUCTIONS & !0xFF | 0xC4 | SYSTEM;
        assert!(counts(branches, 0, true) && !counts(branches, 0, false));
        assert!(!counts(branches | 0x1100, 0, true), "a conditional branch is not emulated");
        assert!(!counts(INSTRUCTIONS & !EventSelector::ENABLE | SYSTEM, 0, false));
        let inverted = INSTRUCTIONS | SYSTEM | 1 << 23;
        assert!(counts(inverted, 0, false) && !counts(inverted | 1 << 24, 0, false));
        assert!(!counts(INSTRUCTIONS | SYSTEM | 1 << 32, 0, false), "it is in no transaction");
        assert!(!counts(INSTRUCTIONS | SYSTEM | 1 << 40, 0, false), "a second unit mask is another event");
        assert!(counts(INSTRUCTIONS | SYSTEM | 1 << 33, 0, false));
        assert!(
            counts(INSTRUCTIONS | SYSTEM | 1 << 24, 0, false) && !counts(INSTRUCTIONS | SYSTEM | 2 << 24, 0, false)
        );
    }

    proptest! {
        #[test]
        fn masks_say_what_each_counter_says(selectors: [u64; 8], control: u64, cpl in 0u8..4, branch: bool) {
            let pmu = PmuCapability { counters: 6, fixed: 0b111, ..INTEL };
            let selectors = selectors.map(|bits| bits & 0x00F7_11C4 | 0xC0);
            let retired = Retired { cpl, branch };
            let masks = CreditMasks::of(&pmu, &selectors, FixedControl(control));
            for (n, selector) in selectors.iter().enumerate().take(6) {
                let alone = selector_counts(EventSelector(*selector), Maker::Intel, retired);
                prop_assert_eq!(masks.counting(retired) >> n & 1 != 0, alone);
            }
            prop_assert_eq!(masks.counting(retired) >> 32 & 1 != 0, control & if cpl == 0 { 1 } else { 2 } != 0);
            prop_assert_eq!(masks.counting(retired) & !0x1_0000_003F, 0);
        }
    }
}
