//! A guest's PMU as a value, for snapshots and migration: what the guest wrote and what it counted, never what a filter
//! made of it in the processor.
//!
//! A value from outside is judged by what judges the guest's own WRMSR, [`PmuView::validate_write`]: there is no second
//! way in (requirement 2.4.3). What is pending in the local APIC is the local APIC's, IA32_DEBUGCTL the processor's.

use super::bank::{Bank, counter_register, selector_register};
use super::policy::Means;
use super::registers::{MAX_COUNTERS, Maker, PmuRegister};
use super::view::{Fault, PmuView};
use core::fmt;

/// Bytes of a state.
pub const LENGTH: usize = 256;
/// The version of the layout.
pub const VERSION: u16 = 1;
const SIGNATURE: u32 = u32::from_le_bytes(*b"lPMU");
const PENDING: u8 = 1;
const COUNT: usize = MAX_COUNTERS as usize;

/// The state of a guest's PMU.
///
/// As bytes it is [`LENGTH`] long, in little-endian order: signature (4), version (2), length (2), maker (1: Intel 1,
/// AMD 2), flags (1: bit 0 an interrupt is pending), zero (6), IA32_PERF_CAPABILITIES, IA32_FIXED_CTR_CTRL,
/// IA32_PERF_GLOBAL_CTRL, IA32_PERF_GLOBAL_STATUS (8 each), eight counters, eight selectors, eight fixed-function
/// counters (8 each), zero (16). What a guest has not is 0.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct State {
    /// Whose registers.
    pub maker: Maker,
    /// IA32_PERF_CAPABILITIES as the guest reads it.
    pub capabilities: u64,
    /// The registers as the guest reads them.
    pub registers: Bank,
    /// An overflow has interrupted, and the local APIC does not know yet.
    pub pending: bool,
}

/// Why bytes are no state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum DecodeError {
    /// They do not begin as one.
    Signature,
    /// The layout is of another version.
    Version(u16),
    /// There are fewer or more than [`LENGTH`], or they say so: how many.
    Length(usize),
    /// Nobody's registers: the number.
    Maker(u8),
    /// A byte that must be 0, or has bits that must be, is not: where.
    NotZero(usize),
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
    /// The guest could not have written this register so.
    Register(PmuRegister, Fault),
    /// The guest could have come to this value, but no write puts it into this register: IA32_PMCn without full-width
    /// writes, IA32_PERF_GLOBAL_STATUS before version 4.
    Unrestorable(PmuRegister, u64),
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Signature => f.write_str("these bytes are no PMU's state"),
            Self::Version(version) => write!(f, "version {version} of a PMU's state is not known"),
            Self::Length(length) => write!(f, "a PMU's state has {LENGTH} bytes, not {length}"),
            Self::Maker(number) => write!(f, "{number} is no maker"),
            Self::NotZero(place) => write!(f, "byte {place} has bits that must be 0"),
        }
    }
}

impl fmt::Display for StateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoPmu => f.write_str("the guest has no PMU"),
            Self::Maker(maker) => write!(f, "the registers are {maker:?}'s"),
            Self::Capabilities(value) => write!(f, "IA32_PERF_CAPABILITIES was {value:#x}"),
            Self::Register(register, fault) => write!(f, "{register:?}: {fault}"),
            Self::Unrestorable(register, value) => write!(f, "{register:?}: nothing can set it to {value:#x}"),
        }
    }
}

impl core::error::Error for DecodeError {}
impl core::error::Error for StateError {}

/// Takes words from the front of bytes; 0 behind their end.
struct Words<'a>(&'a [u8]);
impl Words<'_> {
    fn next(&mut self) -> u64 {
        match self.0.split_first_chunk() {
            Some((word, rest)) => {
                self.0 = rest;
                u64::from_le_bytes(*word)
            }
            None => 0,
        }
    }
    fn next_array(&mut self) -> [u64; COUNT] {
        core::array::from_fn(|_| self.next())
    }
}

impl State {
    /// Makes the state of a guest's PMU out of its registers as the guest reads them. IA32_PERF_GLOBAL_STATUS.CondChgd,
    /// which nothing can set again, is left out.
    pub fn new(view: &PmuView, registers: &Bank, pending: bool) -> Self {
        let mut registers = *registers;
        registers.global_status &= view.status_bits();
        Self { maker: view.guest().maker, capabilities: view.perf_capabilities(), registers, pending }
    }

    /// Returns the state as bytes.
    pub fn to_bytes(&self) -> [u8; LENGTH] {
        let Self { maker, capabilities, registers, pending } = self;
        let Bank { counters, selectors, fixed, fixed_control, global_control, global_status } = registers;
        let maker = match maker {
            Maker::Intel => 1u64,
            Maker::Amd => 2,
        };
        let head = u64::from(SIGNATURE) | u64::from(VERSION) << 32 | (LENGTH as u64) << 48;
        let flags = maker | if *pending { u64::from(PENDING) << 8 } else { 0 };
        let single = [head, flags, *capabilities, *fixed_control, *global_control, *global_status];
        let words = single.iter().chain(counters).chain(selectors).chain(fixed);
        let mut bytes = [0; LENGTH];
        for (place, word) in bytes.as_chunks_mut().0.iter_mut().zip(words) {
            *place = word.to_le_bytes();
        }
        bytes
    }

    /// Reads a state from bytes. Whether a guest can have it, [`check`](Self::check) tells.
    ///
    /// # Errors
    /// What is wrong with the bytes.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut words = Words(bytes);
        let head = words.next();
        if head as u32 != SIGNATURE {
            return Err(DecodeError::Signature);
        }
        let (version, length) = ((head >> 32) as u16, usize::from((head >> 48) as u16));
        if version != VERSION {
            return Err(DecodeError::Version(version));
        }
        if length != LENGTH || bytes.len() != LENGTH {
            return Err(DecodeError::Length(if length != LENGTH { length } else { bytes.len() }));
        }
        let [maker, flags, ..] = words.next().to_le_bytes();
        let maker = match maker {
            1 => Maker::Intel,
            2 => Maker::Amd,
            other => return Err(DecodeError::Maker(other)),
        };
        let state = Self {
            maker,
            capabilities: words.next(),
            registers: Bank {
                fixed_control: words.next(),
                global_control: words.next(),
                global_status: words.next(),
                counters: words.next_array(),
                selectors: words.next_array(),
                fixed: words.next_array(),
            },
            pending: flags & PENDING != 0,
        };
        // All that has a meaning is in `state`, so that whatever else is not 0 makes a difference.
        match state.to_bytes().iter().zip(bytes).position(|(ours, theirs)| ours != theirs) {
            Some(place) => Err(DecodeError::NotZero(place)),
            None => Ok(state),
        }
    }

    /// Judges whether a guest that is shown `view` can have this state: each value must be one that the guest could have
    /// written, and registers that it has not must be 0. `None` stands for a guest without a PMU.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn check(&self, view: Option<&PmuView>) -> Result<(), StateError> {
        let Some(view) = view else {
            let empty = self.capabilities == 0 && self.registers == Bank::default() && !self.pending;
            return if empty { Ok(()) } else { Err(StateError::NoPmu) };
        };
        let Self { maker, capabilities, registers, pending: _ } = self;
        let guest = view.guest();
        if *maker != guest.maker {
            return Err(StateError::Maker(*maker));
        }
        if *capabilities != view.perf_capabilities() {
            return Err(StateError::Capabilities(*capabilities));
        }
        let Bank { counters, selectors, fixed, fixed_control, global_control, global_status } = registers;
        for (n, value) in (0..).zip(counters) {
            Self::check_counter(view, counter_register(guest, n), *value)?;
        }
        for (n, value) in (0..).zip(selectors) {
            Self::check_register(view, selector_register(guest, n), *value)?;
        }
        for (n, value) in (0..).zip(fixed) {
            Self::check_register(view, PmuRegister::Fixed(n), *value)?;
        }
        Self::check_register(view, PmuRegister::FixedControl, *fixed_control)?;
        Self::check_register(view, PmuRegister::GlobalControl, *global_control)?;
        Self::check_status(view, *global_status)
    }

    fn check_register(view: &PmuView, register: PmuRegister, value: u64) -> Result<(), StateError> {
        let refused = |fault| Err(StateError::Register(register, fault));
        match view.validate_write(register, value) {
            Ok(kept) if kept == value => Ok(()),
            // What AMD's processors leave away is in no register.
            Ok(kept) => refused(Fault::Reserved(value & !kept)),
            Err(Fault::Absent) if value == 0 => Ok(()),
            Err(fault) => refused(fault),
        }
    }

    /// Without full-width writes a guest writes 32 bits of a counter, which then counts beyond them.
    fn check_counter(view: &PmuView, register: PmuRegister, value: u64) -> Result<(), StateError> {
        let guest = view.guest();
        if guest.maker == Maker::Amd || guest.full_width_writes() || !view.exists(register) {
            return Self::check_register(view, register, value);
        }
        let above = value & !guest.counter_mask();
        if above != 0 {
            return Err(StateError::Register(register, Fault::Reserved(above)));
        }
        let written = view.validate_write(register, value).map_err(|fault| StateError::Register(register, fault))?;
        let restorable = written == value || view.means() == Means::Emulated;
        if restorable { Ok(()) } else { Err(StateError::Unrestorable(register, value)) }
    }

    /// IA32_PERF_GLOBAL_STATUS is not written, but set and cleared bit by bit (A18).
    fn check_status(view: &PmuView, value: u64) -> Result<(), StateError> {
        const STATUS: PmuRegister = PmuRegister::GlobalStatus;
        if value == 0 {
            return Ok(());
        }
        let settable = view.exists(PmuRegister::StatusSet);
        let register = if settable { PmuRegister::StatusSet } else { PmuRegister::StatusReset };
        Self::check_register(view, register, value).map_err(|error| match error {
            StateError::Register(_, fault) => StateError::Register(STATUS, fault),
            other => other,
        })?;
        let restorable = settable || view.means() == Means::Emulated;
        if restorable { Ok(()) } else { Err(StateError::Unrestorable(STATUS, value)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hw::pmu::GlobalSwitch;
    use crate::pmu::capability::processors::INTEL;
    use crate::pmu::view::tests::any_view;
    use crate::pmu::{PmuCapability, PmuShare};
    use proptest::prelude::*;

    fn any_state() -> impl Strategy<Value = State> {
        let bank = (any::<[u64; 8]>(), any::<[u64; 8]>(), any::<[u64; 8]>(), any::<[u64; 3]>()).prop_map(
            |(counters, selectors, fixed, [fixed_control, global_control, global_status])| Bank {
                counters,
                selectors,
                fixed,
                fixed_control,
                global_control,
                global_status,
            },
        );
        let maker = prop_oneof![Just(Maker::Intel), Just(Maker::Amd)];
        (maker, any::<u64>(), bank, any::<bool>()).prop_map(|(maker, capabilities, registers, pending)| State {
            maker,
            capabilities,
            registers,
            pending,
        })
    }

    /// What a guest may write, written.
    fn legal(view: &PmuView, wanted: &Bank) -> Bank {
        let guest = view.guest();
        let keep = |register, value| match view.validate_write(register, value) {
            Ok(kept) => kept,
            Err(Fault::Reserved(bits)) => value & !bits,
            Err(_) => 0,
        };
        Bank {
            counters: core::array::from_fn(|n| keep(counter_register(guest, n as u8), wanted.counters[n])),
            selectors: core::array::from_fn(|n| keep(selector_register(guest, n as u8), wanted.selectors[n])),
            fixed: core::array::from_fn(|n| keep(PmuRegister::Fixed(n as u8), wanted.fixed[n])),
            fixed_control: keep(PmuRegister::FixedControl, wanted.fixed_control),
            global_control: keep(PmuRegister::GlobalControl, wanted.global_control),
            global_status: keep(PmuRegister::StatusSet, wanted.global_status),
        }
    }

    proptest! {
        #[test]
        fn a_state_comes_back_out_of_its_bytes(state in any_state()) {
            prop_assert_eq!(State::from_bytes(&state.to_bytes()), Ok(state));
        }

        #[test]
        fn bytes_are_a_state_and_its_only_form_or_an_error(
            state in any_state(), changes in prop::collection::vec((0usize..LENGTH, any::<u8>()), 0..4), length in 0usize..=LENGTH + 8
        ) {
            let mut bytes = state.to_bytes();
            for (place, value) in changes {
                bytes[place] = value;
            }
            let padded: std::vec::Vec<u8> = bytes.into_iter().chain([0; 8]).take(length).collect();
            for bytes in [&bytes[..], &padded] {
                if let Ok(state) = State::from_bytes(bytes) {
                    prop_assert_eq!(&state.to_bytes()[..], bytes);
                }
            }
        }

        /// Requirements 2.4.3 and A29: what a guest can write, a snapshot can hold, and nothing else.
        #[test]
        fn a_state_is_what_the_guest_could_have_written(view in any_view(), state in any_state(), flip in 0u32..64, place in 0usize..27) {
            let registers = legal(&view, &state.registers);
            // The processor may have set what nothing sets again.
            let found = Bank { global_status: registers.global_status | 1 << 63, ..registers };
            let state = State::new(&view, &found, state.pending);
            prop_assert_eq!(state.registers, registers);
            prop_assert_eq!(state.check(Some(&view)), Ok(()));
            let mut other = state;
            let bank = &mut other.registers;
            let guest = view.guest();
            let n = place as u8 % 8;
            let (value, register) = match place {
                0..8 => (&mut bank.counters[place], counter_register(guest, n)),
                8..16 => (&mut bank.selectors[place - 8], selector_register(guest, n)),
                16..24 => (&mut bank.fixed[place - 16], PmuRegister::Fixed(n)),
                24 => (&mut bank.fixed_control, PmuRegister::FixedControl),
                25 => (&mut bank.global_control, PmuRegister::GlobalControl),
                _ => (&mut bank.global_status, PmuRegister::StatusSet),
            };
            *value |= 1 << flip;
            let value = *value;
            let written = view.validate_write(register, value) == Ok(value);
            let legal = match register {
                // What is counted in memory can be restored, whatever the guest can write.
                PmuRegister::Counter(_) if guest.maker == Maker::Intel && view.means() == Means::Emulated => {
                    view.exists(register) && value & !guest.counter_mask() == 0
                }
                PmuRegister::StatusSet if view.means() == Means::Emulated && guest.version < 4 && guest.maker == Maker::Intel => {
                    view.validate_write(PmuRegister::StatusReset, value) == Ok(value)
                }
                _ => written,
            };
            prop_assert_eq!(other.check(Some(&view)).is_ok(), legal || other == state, "{:?} {:#x}", register, value);
        }
    }

    const HASWELL: PmuCapability =
        PmuCapability { version: 3, counters: 4, fixed: 0b111, any_thread_deprecated: false, ..INTEL };

    fn view(host: &PmuCapability, means: Means) -> PmuView {
        PmuView::new(host, &PmuShare::all(host), means, GlobalSwitch::Hardware).expect("a PMU")
    }

    #[test]
    fn what_is_wrong_with_bytes_has_its_own_error() {
        let good = State::new(&view(&HASWELL, Means::Passed), &Bank::default(), true).to_bytes();
        let with = |place: usize, value: u8| {
            let mut bytes = good;
            bytes[place] = value;
            State::from_bytes(&bytes)
        };
        assert_eq!(State::from_bytes(&[]), Err(DecodeError::Signature));
        assert_eq!((with(0, 0), with(4, 2)), (Err(DecodeError::Signature), Err(DecodeError::Version(2))));
        assert_eq!(
            (with(6, 8), State::from_bytes(&good[..LENGTH - 1])),
            (Err(DecodeError::Length(264)), Err(DecodeError::Length(255)))
        );
        assert_eq!((with(8, 3), with(9, 3)), (Err(DecodeError::Maker(3)), Err(DecodeError::NotZero(9))));
        assert_eq!(with(LENGTH - 1, 1), Err(DecodeError::NotZero(LENGTH - 1)));
    }

    /// T-A20.
    #[test]
    fn without_a_pmu_there_is_no_state_but_none() {
        let view = view(&HASWELL, Means::Passed);
        assert_eq!(State::new(&view, &Bank::default(), false).check(None), Err(StateError::NoPmu));
        let none = State { capabilities: 0, ..State::new(&view, &Bank::default(), false) };
        assert_eq!(none.check(None), Ok(()));
        assert_eq!(none.check(Some(&view)), Err(StateError::Capabilities(0)));
        assert_eq!(State { pending: true, ..none }.check(None), Err(StateError::NoPmu));
    }

    #[test]
    fn an_error_names_the_register_and_the_bits() {
        let view = view(&HASWELL, Means::Passed);
        let with =
            |registers: Bank| State { registers, ..State::new(&view, &Bank::default(), false) }.check(Some(&view));
        let bank = Bank::default();
        let beyond = Bank { counters: [0, 0, 0, 0, 1, 0, 0, 0], ..bank };
        assert_eq!(with(beyond), Err(StateError::Register(PmuRegister::FullCounter(4), Fault::Absent)));
        let any_thread = Bank { selectors: [0, 1 << 21, 0, 0, 0, 0, 0, 0], ..bank };
        assert_eq!(with(any_thread), Err(StateError::Register(PmuRegister::Selector(1), Fault::Reserved(1 << 21))));
        let status = Bank { global_status: 1 << 63 | 1 << 40, ..bank };
        assert_eq!(with(status), Err(StateError::Register(PmuRegister::GlobalStatus, Fault::Reserved(1 << 40))));
        let amd = State { maker: Maker::Amd, ..State::new(&view, &bank, false) };
        assert_eq!(amd.check(Some(&view)), Err(StateError::Maker(Maker::Amd)));
    }

    /// A18: what the processor cannot be brought to again is refused, not lost.
    #[test]
    fn what_no_write_restores_is_refused_where_the_processor_holds_it() {
        let old = PmuCapability { capabilities: 0, ..HASWELL };
        let counted = Bank { counters: [1 << 40, 0, 0, 0, 0, 0, 0, 0], ..Bank::default() };
        let overflowed = Bank { global_status: 1, ..Bank::default() };
        let check = |means, bank: &Bank| State::new(&view(&old, means), bank, false).check(Some(&view(&old, means)));
        let refused = StateError::Unrestorable(PmuRegister::Counter(0), 1 << 40);
        assert_eq!(check(Means::Passed, &counted), Err(refused));
        assert_eq!(check(Means::Passed, &overflowed), Err(StateError::Unrestorable(PmuRegister::GlobalStatus, 1)));
        assert_eq!((check(Means::Emulated, &counted), check(Means::Emulated, &overflowed)), (Ok(()), Ok(())));
    }
}
