//! IA32_DEBUGCTL: the guest's own but for one bit, which is the host's and stays as it is while the guest runs. Pure.

/// IA32_DEBUGCTL.FREEZE_WHILE_SMM: nothing is counted in system-management mode. An SMI goes there straight from the
/// guest, with the register as the guest runs with it: in the guest's hands the bit would have the guest count what
/// firmware does, or the host lose what it asked for (T-A23).
pub(super) const FREEZE_WHILE_SMM: u64 = 1 << 14;

/// What of IA32_DEBUGCTL is the host's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct DebugControl {
    host: u64,
}

impl DebugControl {
    /// Takes the host's bit out of its register.
    pub(super) fn of_host(debugctl: u64) -> Self {
        Self { host: debugctl & FREEZE_WHILE_SMM }
    }
    /// Returns what exits have to load, for they clear the register (SDM Vol. 3C 28.5.1); `None` for nothing.
    pub(super) fn after_exit(self) -> Option<u64> {
        (self.host != 0).then_some(self.host)
    }
    /// Returns what the register holds while the guest runs that wrote `value`.
    pub(super) fn while_guest_runs(self, value: u64) -> u64 {
        value & !FREEZE_WHILE_SMM | self.host
    }
    /// Returns what the guest reads where the register holds `value`.
    pub(super) fn as_guest_reads(value: u64) -> u64 {
        value & !FREEZE_WHILE_SMM
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// T-A23
        #[test]
        fn the_guest_neither_sees_nor_moves_the_freeze_in_smm(host: u64, written: u64) {
            let control = DebugControl::of_host(host);
            let held = control.while_guest_runs(written);
            prop_assert_eq!(held & 1 << 14, host & 1 << 14);
            prop_assert_eq!(held & !(1 << 14), written & !(1 << 14));
            prop_assert_eq!(DebugControl::as_guest_reads(held), written & !(1 << 14));
        }

        /// T-A23.
        #[test]
        fn exits_load_what_the_host_had_set_and_nothing_where_it_had_not(host: u64) {
            let wanted = if host & 1 << 14 != 0 { Some(1 << 14) } else { None };
            prop_assert_eq!(DebugControl::of_host(host).after_exit(), wanted);
        }
    }
}
