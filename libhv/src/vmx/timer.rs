//! The VMX-preemption timer: from a deadline to the count it starts from (SDM Vol. 3C 26.5.1). Pure.

use crate::time::Tsc;

/// Returns the count that expires no earlier than `deadline`, where the timer counts once in 2^`shift` ticks of the
/// TSC. A deadline beyond its 32 bits expires early, which harms nobody: it is asked for again.
#[inline]
pub(super) fn count(now: Tsc, deadline: Tsc, shift: u32) -> u32 {
    let ticks = deadline.since(now);
    let periods = (ticks >> shift) + u64::from(ticks & ((1 << shift) - 1) != 0);
    u32::try_from(periods).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_timer_is_neither_early_nor_late_by_a_period(now in 0u64..1 << 60, ahead in 0u64..1 << 40, shift in 0u32..32) {
            let count = u64::from(count(Tsc(now), Tsc(now + ahead), shift));
            prop_assert!(count == u64::from(u32::MAX) || count << shift >= ahead);
            prop_assert!(count << shift < ahead + (1 << shift));
        }

        #[test]
        fn a_deadline_that_has_passed_expires_at_once(now: u64, behind: u64, shift in 0u32..32) {
            prop_assert_eq!(count(Tsc(now), Tsc(now.saturating_sub(behind)), shift), 0);
        }
    }
}
