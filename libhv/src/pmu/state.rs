//! A guest's PMU as a value, for snapshots and migration: what the guest wrote and what it counted, never what a filter
//! made of it in the processor.
//!
//! A value from outside is judged by what judges the guest's own WRMSR, [`PmuView::validate_write`]: there is no second
//! way in (requirement 2.4.3). What is taken out of a processor goes by the same judgement, so that no guest can bring
//! itself into a state that is refused: see [`PmuView::kept`].
//!
//! Of IA32_DEBUGCTL a state has the bits that freeze counters and records, which a guest has by its PMU alone; the others
//! are the processor's own, and a restore leaves them as they are. What is pending in the local APIC is the local APIC's.

mod bytes;
#[cfg(test)]
mod tests;

pub use bytes::{DecodeError, LENGTH, VERSION};

use super::bank::{Bank, counter_register, selector_register};
use super::branches::BranchState;
use super::capability::PmuCapability;
use super::policy::Means;
use super::registers::{BranchRegister, CounterIndex, MAX_COUNTERS, Maker, PmuRegister};
use super::view::{Fault, PmuView};
use core::convert::Infallible;
use core::fmt;

/// Counters of both kinds.
pub(super) const COUNTERS: usize = 2 * MAX_COUNTERS as usize;

/// What is found of a guest's PMU: in a processor, and with the hypervisor.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Found {
    /// The registers, with selectors as the guest wrote them.
    pub registers: Bank,
    /// IA32_LBR_CTL, and the last-branch records.
    pub branches: BranchState,
    /// IA32_DEBUGCTL
    pub debug_control: u64,
    /// Events that general-purpose counters, and behind them fixed-function ones, have still to be advanced by.
    pub owed: [u32; COUNTERS],
    /// An overflow has interrupted, and the local APIC does not know yet.
    pub pending: bool,
}

/// The state of a guest's PMU.
///
/// As bytes it is [`LENGTH`] long, in little-endian order: signature (4), version (2), length (2), maker (1: Intel 1,
/// AMD 2), flags (1: bit 0 an interrupt is pending), zero (6), IA32_PERF_CAPABILITIES, IA32_FIXED_CTR_CTRL,
/// IA32_PERF_GLOBAL_CTRL, IA32_PERF_GLOBAL_STATUS (8 each), eight counters, eight selectors, eight fixed-function
/// counters (8 each), IA32_DEBUGCTL, IA32_LBR_CTL, IA32_LBR_DEPTH (8 each), what eight counters and eight fixed-function
/// counters are owed (4 each), 64 last-branch records (FROM, TO, INFO: 8 each). What a guest has not is 0.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct State {
    /// Whose registers.
    pub maker: Maker,
    /// IA32_PERF_CAPABILITIES as the guest reads it.
    pub capabilities: u64,
    /// The registers as the guest reads them.
    pub registers: Bank,
    /// The last-branch records.
    pub branches: BranchState,
    /// Of IA32_DEBUGCTL, FREEZE_LBRS_ON_PMI and FREEZE_PERFMON_ON_PMI.
    pub debug_control: u64,
    /// Events that general-purpose counters, and behind them fixed-function ones, have still to be advanced by: what the
    /// hypervisor executed in the guest's stead, and the counter cannot hold yet (A26).
    pub owed: [u32; COUNTERS],
    /// An overflow has interrupted, and the local APIC does not know yet.
    pub pending: bool,
}

/// Why a guest cannot have a state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum StateError {
    /// The guest has no PMU, and the state is not that of none (T-A20).
    NoPmu,
    /// The registers are those of another maker.
    Maker(Maker),
    /// The guest was shown another IA32_PERF_CAPABILITIES: this one.
    Capabilities(u64),
    /// The guest was shown last-branch records of another depth: this one.
    Depth(u8),
    /// The guest could not have set these bits of IA32_DEBUGCTL.
    DebugControl(u64),
    /// The guest has no such counter, or not one that is ever owed anything.
    Owed(CounterIndex),
    /// The guest could not have written this register so.
    Register(PmuRegister, Fault),
    /// The guest could have come to this value, but no write puts it into this register: IA32_PMCn without full-width
    /// writes, IA32_PERF_GLOBAL_STATUS before version 4.
    Unrestorable(PmuRegister, u64),
}

impl fmt::Display for StateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoPmu => f.write_str("the guest has no PMU"),
            Self::Maker(maker) => write!(f, "the registers are {maker:?}'s"),
            Self::Capabilities(value) => write!(f, "IA32_PERF_CAPABILITIES was {value:#x}"),
            Self::Depth(depth) => write!(f, "there were {depth} last-branch records"),
            Self::DebugControl(bits) => write!(f, "IA32_DEBUGCTL: bits {bits:#x} are reserved"),
            Self::Owed(counter) => write!(f, "{counter:?}: nothing can be owed to it"),
            Self::Register(register, fault) => write!(f, "{register:?}: {fault}"),
            Self::Unrestorable(register, value) => write!(f, "{register:?}: nothing can set it to {value:#x}"),
        }
    }
}

impl core::error::Error for StateError {}

/// Has `visit` see every register of a guest's PMU, with what it holds.
fn each<E>(
    guest: &PmuCapability,
    registers: &mut Bank,
    branches: &mut BranchState,
    mut visit: impl FnMut(PmuRegister, &mut u64) -> Result<(), E>,
) -> Result<(), E> {
    let Bank { counters, selectors, fixed, fixed_control, global_control, global_status } = registers;
    for (n, value) in (0..).zip(counters) {
        visit(counter_register(guest, n), value)?;
    }
    for (n, value) in (0..).zip(selectors) {
        visit(selector_register(guest, n), value)?;
    }
    for (n, value) in (0..).zip(fixed) {
        visit(PmuRegister::Fixed(n), value)?;
    }
    visit(PmuRegister::FixedControl, fixed_control)?;
    visit(PmuRegister::GlobalControl, global_control)?;
    visit(PmuRegister::GlobalStatus, global_status)?;
    visit(PmuRegister::Branch(BranchRegister::Control), &mut branches.control)?;
    branches.registers().try_for_each(|(register, value)| visit(register, value))
}

/// Returns the counters in the order of [`State::owed`].
fn counters() -> impl Iterator<Item = CounterIndex> {
    (0..MAX_COUNTERS).map(CounterIndex::General).chain((0..MAX_COUNTERS).map(CounterIndex::Fixed))
}

/// Returns whether a counter of the guest's can be owed anything: it has that counter, and not all that its counters come
/// to can be put into them.
fn owes(guest: &PmuCapability, counter: CounterIndex) -> bool {
    let has = match counter {
        CounterIndex::General(n) => guest.has_counter(n),
        CounterIndex::Fixed(n) => guest.has_fixed(n),
    };
    has && !guest.restores_all()
}

impl State {
    /// Makes the state of a guest's PMU out of what is found of it. What the guest could not have written itself is left
    /// out: IA32_PERF_GLOBAL_STATUS.CondChgd, which nothing can set again, and what only a processor newer than the one
    /// that the guest is shown has in a register that passes.
    pub fn new(view: &PmuView, found: &Found) -> Self {
        let Found { mut registers, mut branches, debug_control, mut owed, pending } = *found;
        let guest = view.guest();
        let Ok(()) = each(guest, &mut registers, &mut branches, |register, value| {
            *value = view.kept(register, *value);
            Ok::<(), Infallible>(())
        });
        branches.depth = guest.lbr_depth;
        for (counter, events) in counters().zip(&mut owed) {
            *events = if owes(guest, counter) { *events } else { 0 };
        }
        let debug_control = debug_control & view.debugctl_bits();
        let (maker, capabilities) = (guest.maker, view.perf_capabilities());
        Self { maker, capabilities, registers, branches, debug_control, owed, pending }
    }

    /// Judges whether a guest that is shown `view` can have this state: each value must be one that the guest could have
    /// written, and registers that it has not must be 0. `None` stands for a guest without a PMU.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn check(&self, view: Option<&PmuView>) -> Result<(), StateError> {
        let Self { maker, capabilities, mut registers, mut branches, debug_control, owed, pending } = *self;
        let Some(view) = view else {
            let found = Found { registers, branches, debug_control, owed, pending };
            return if capabilities == 0 && found == Found::default() { Ok(()) } else { Err(StateError::NoPmu) };
        };
        let guest = view.guest();
        if maker != guest.maker {
            return Err(StateError::Maker(maker));
        }
        if capabilities != view.perf_capabilities() {
            return Err(StateError::Capabilities(capabilities));
        }
        if branches.depth != guest.lbr_depth {
            return Err(StateError::Depth(branches.depth));
        }
        each(guest, &mut registers, &mut branches, |register, value| Self::check_register(view, register, *value))?;
        let frozen = debug_control & !view.debugctl_bits();
        if frozen != 0 {
            return Err(StateError::DebugControl(frozen));
        }
        let wrong = counters().zip(owed).find(|(counter, events)| *events != 0 && !owes(guest, *counter));
        wrong.map_or(Ok(()), |(counter, _)| Err(StateError::Owed(counter)))
    }

    fn check_register(view: &PmuView, register: PmuRegister, value: u64) -> Result<(), StateError> {
        view.validate_kept(register, value).map_err(|fault| StateError::Register(register, fault))?;
        let restorable = view.means() == Means::Emulated
            || match register {
                // Without full-width writes a guest writes 32 bits of a counter, which then counts beyond them.
                PmuRegister::Counter(_) => value == 0 || view.validate_write(register, value) == Ok(value),
                PmuRegister::GlobalStatus => value == 0 || view.exists(PmuRegister::StatusSet),
                _ => true,
            };
        if restorable { Ok(()) } else { Err(StateError::Unrestorable(register, value)) }
    }
}
