//! What a state is: its bytes, and what a guest can have of it.

use super::*;
use crate::hw::pmu::GlobalSwitch;
use crate::pmu::capability::processors::INTEL;
use crate::pmu::view::tests::any_view;
use crate::pmu::{PmuCapability, PmuShare};
use proptest::prelude::*;

fn any_found() -> impl Strategy<Value = Found> {
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
    let written = prop::collection::vec((0usize..64, 0usize..3, any::<u64>()), 0..8);
    let branches = (any::<u64>(), any::<u8>(), written).prop_map(|(control, depth, written)| {
        let mut branches = BranchState { control, depth, ..BranchState::default() };
        written.into_iter().for_each(|(n, which, value)| branches.records[n][which] = value);
        branches
    });
    (bank, branches, any::<u64>(), any::<[u32; COUNTERS]>(), any::<bool>()).prop_map(
        |(registers, branches, debug_control, owed, pending)| Found {
            registers,
            branches,
            debug_control,
            owed,
            pending,
        },
    )
}

fn any_state() -> impl Strategy<Value = State> {
    let maker = prop_oneof![Just(Maker::Intel), Just(Maker::Amd)];
    (maker, any::<u64>(), any_found()).prop_map(|(maker, capabilities, found)| {
        let Found { registers, branches, debug_control, owed, pending } = found;
        State { maker, capabilities, registers, branches, debug_control, owed, pending }
    })
}

fn found(registers: Bank) -> Found {
    Found { registers, ..Found::default() }
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
    fn a_state_is_what_the_guest_could_have_written(
        view in any_view(), wanted in any_found(), flip in 0u32..64, place in 0usize..31, n in 0u8..64
    ) {
        let registers = legal(&view, &wanted.registers);
        // The processor may have set what nothing sets again.
        let found = Found { registers: Bank { global_status: registers.global_status | 1 << 63, ..registers }, ..wanted };
        let state = State::new(&view, &found);
        prop_assert_eq!(state.registers, registers);
        prop_assert_eq!(state.check(Some(&view)), Ok(()));
        let mut other = state;
        let (bank, guest) = (&mut other.registers, view.guest());
        let eighth = place as u8 % 8;
        let record = &mut other.branches.records[usize::from(n)];
        let (value, register) = match place {
            0..8 => (&mut bank.counters[place], counter_register(guest, eighth)),
            8..16 => (&mut bank.selectors[place - 8], selector_register(guest, eighth)),
            16..24 => (&mut bank.fixed[place - 16], PmuRegister::Fixed(eighth)),
            24 => (&mut bank.fixed_control, PmuRegister::FixedControl),
            25 => (&mut bank.global_control, PmuRegister::GlobalControl),
            26 => (&mut bank.global_status, PmuRegister::StatusSet),
            27 => (&mut other.branches.control, PmuRegister::Branch(BranchRegister::Control)),
            28 => (&mut record[0], PmuRegister::Branch(BranchRegister::From(n))),
            29 => (&mut record[1], PmuRegister::Branch(BranchRegister::To(n))),
            _ => (&mut record[2], PmuRegister::Branch(BranchRegister::Info(n))),
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
                view.validate_write(PmuRegister::StatusReset, value) == Ok(value) && value >> 63 == 0
            }
            _ => written,
        };
        prop_assert_eq!(other.check(Some(&view)).is_ok(), legal || other == state, "{:?} {:#x}", register, value);
        let other = State { debug_control: state.debug_control | 1 << flip, ..state };
        prop_assert_eq!(other.check(Some(&view)).is_ok(), other == state || view.debugctl_bits() >> flip & 1 != 0);
    }

    /// Whatever a processor holds, newer than the guest knows of as it may be: a guest cannot bring itself into a state
    /// that is refused, but into what no write restores (A18).
    #[test]
    fn what_is_saved_is_never_refused_but_for_what_nothing_restores(view in any_view(), found in any_found()) {
        let state = State::new(&view, &found);
        let answer = state.check(Some(&view));
        prop_assert!(matches!(answer, Ok(()) | Err(StateError::Unrestorable(..))), "{:?}", answer);
        prop_assert!(answer.is_ok() || !view.guest().restores_all() && view.means() == Means::Passed);
        prop_assert_eq!(state.pending, found.pending);
    }

    /// A26: a counter can be owed what no write could have put into it, and none that is not there.
    #[test]
    fn only_a_counter_that_cannot_be_given_all_is_ever_owed_anything(view in any_view(), owed: [u32; COUNTERS]) {
        let guest = view.guest();
        let state = State::new(&view, &Found::default());
        let owes = |at: usize| {
            let intel_before_4 = guest.maker == Maker::Intel && (guest.version < 4 || guest.capabilities >> 13 & 1 == 0);
            let mask = u64::from(guest.fixed) << 8 | ((1 << guest.counters) - 1);
            intel_before_4 && mask >> at & 1 != 0
        };
        for (at, events) in owed.into_iter().enumerate() {
            let mut owing = state;
            owing.owed[at] = events;
            prop_assert_eq!(owing.check(Some(&view)).is_ok(), events == 0 || owes(at), "{} of {:?}", at, guest);
        }
        let saved = State::new(&view, &Found { owed, ..Found::default() });
        let expected: [u32; COUNTERS] = core::array::from_fn(|at| if owes(at) { owed[at] } else { 0 });
        prop_assert_eq!(saved.owed, expected);
    }
}

fn haswell() -> PmuCapability {
    PmuCapability { version: 3, counters: 4, fixed: 0b111, any_thread_deprecated: false, ..INTEL }
}
fn view(host: &PmuCapability, means: Means) -> PmuView {
    PmuView::new(host, &PmuShare::all(host), means, GlobalSwitch::Hardware).expect("a PMU")
}

#[test]
fn what_is_wrong_with_bytes_has_its_own_error() {
    let good = {
        let pending = Found { pending: true, ..Found::default() };
        State::new(&view(&haswell(), Means::Passed), &pending).to_bytes()
    };
    let with = |place: usize, value: u8| {
        let mut bytes = good;
        bytes[place] = value;
        State::from_bytes(&bytes)
    };
    assert_eq!(State::from_bytes(&[]), Err(DecodeError::Signature));
    assert_eq!((with(0, 0), with(4, 1)), (Err(DecodeError::Signature), Err(DecodeError::Version(1))));
    assert_eq!(
        (with(6, 8), State::from_bytes(&good[..LENGTH - 1])),
        (Err(DecodeError::Length(LENGTH & !0xFF | 8)), Err(DecodeError::Length(LENGTH - 1)))
    );
    assert_eq!((with(8, 3), with(9, 3)), (Err(DecodeError::Maker(3)), Err(DecodeError::NotZero(9))));
    assert_eq!((with(15, 1), with(257, 1)), (Err(DecodeError::NotZero(15)), Err(DecodeError::NotZero(257))));
}

/// T-A20.
#[test]
fn without_a_pmu_there_is_no_state_but_none() {
    let view = view(&haswell(), Means::Passed);
    assert_eq!(State::new(&view, &Found::default()).check(None), Err(StateError::NoPmu));
    let none = State { capabilities: 0, ..State::new(&view, &Found::default()) };
    assert_eq!(none.check(None), Ok(()));
    assert_eq!(none.check(Some(&view)), Err(StateError::Capabilities(0)));
    assert_eq!(State { pending: true, ..none }.check(None), Err(StateError::NoPmu));
}

#[test]
fn an_error_names_the_register_and_the_bits() {
    let view = view(&haswell(), Means::Passed);
    let with = |registers: Bank| State { registers, ..State::new(&view, &Found::default()) }.check(Some(&view));
    let bank = Bank::default();
    let beyond = Bank { counters: [0, 0, 0, 0, 1, 0, 0, 0], ..bank };
    assert_eq!(with(beyond), Err(StateError::Register(PmuRegister::FullCounter(4), Fault::Absent)));
    let any_thread = Bank { selectors: [0, 1 << 21, 0, 0, 0, 0, 0, 0], ..bank };
    assert_eq!(with(any_thread), Err(StateError::Register(PmuRegister::Selector(1), Fault::Reserved(1 << 21))));
    let status = Bank { global_status: 1 << 63 | 1 << 40, ..bank };
    assert_eq!(with(status), Err(StateError::Register(PmuRegister::GlobalStatus, Fault::Reserved(1 << 40))));
    let amd = State { maker: Maker::Amd, ..State::new(&view, &Found::default()) };
    assert_eq!(amd.check(Some(&view)), Err(StateError::Maker(Maker::Amd)));
}

/// A18: what the processor cannot be brought to again is refused, not lost.
#[test]
fn what_no_write_restores_is_refused_where_the_processor_holds_it() {
    let old = PmuCapability { capabilities: 0, ..haswell() };
    let counted = Bank { counters: [1 << 40, 0, 0, 0, 0, 0, 0, 0], ..Bank::default() };
    let overflowed = Bank { global_status: 1, ..Bank::default() };
    let check = |means, bank: &Bank| State::new(&view(&old, means), &found(*bank)).check(Some(&view(&old, means)));
    let refused = StateError::Unrestorable(PmuRegister::Counter(0), 1 << 40);
    assert_eq!(check(Means::Passed, &counted), Err(refused));
    assert_eq!(check(Means::Passed, &overflowed), Err(StateError::Unrestorable(PmuRegister::GlobalStatus, 1)));
    assert_eq!((check(Means::Emulated, &counted), check(Means::Emulated, &overflowed)), (Ok(()), Ok(())));
}
