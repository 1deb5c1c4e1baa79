//! Sequences of calls against a model that counts one by one, and what single calls promise.

mod model;

use super::abi::*;
use super::request::{Counted, Request};
use super::*;
use crate::exit::Width;
use crate::memory::GuestMemory;
use crate::trace::Kind;
use model::{Lab, MEMORY, RESULTS, World};

fn request(id: u32, counted: Counted) -> Request {
    Request { id, counted, period: 0, notify: false, result: Gpa::new(RESULTS + 0x20 * u64::from(id)) }
}

const EXITS: Counted = Counted::Software(Software::Exits);

/// Requirement B2.
#[test]
fn each_wrong_call_has_its_own_error_and_changes_nothing() {
    let mut world = World::new();
    assert_eq!(world.open(&request(1, EXITS)), Ok(()));
    assert_eq!(world.call(Operation::Page, 0, 0x3000), Ok(()));
    let before = world.paravirt.save(&world.trace, &mut world.lab);
    let hardware = |event| Counted::Hardware(HardwareEvent::new(event).expect("a legal selector"));
    let at = |result| Request { result: Gpa::new(result), ..request(2, EXITS) };
    let opens = [
        (request(1, EXITS), Refusal::IdInUse),
        (request(MAX_EVENTS, EXITS), Refusal::IdOutOfRange),
        (request(2, hardware(0x11)), Refusal::UnsupportedEvent),
        (at(MEMORY - 16), Refusal::BadAddress),
        (at(u64::MAX - 7), Refusal::BadAddress),
        (at(0x1001), Refusal::Unaligned),
        (at(0x3000), Refusal::Overlap),
        (at(0x2FE8), Refusal::Overlap),
        (at(0x3FF8), Refusal::Overlap),
    ];
    for (request, refusal) in opens {
        assert_eq!(world.open(&request), Err(refusal), "{request:?}");
    }
    let calls = [
        (Operation::Open, 0, 0x101, Refusal::Unaligned),
        (Operation::Open, 0, MEMORY - 8, Refusal::BadAddress),
        (Operation::Open, 0, u64::MAX - 7, Refusal::BadAddress),
        (Operation::Close, 2, 0, Refusal::UnknownId),
        (Operation::Close, u32::MAX, 0, Refusal::IdOutOfRange),
        (Operation::Enable, 2, 0, Refusal::UnknownId),
        (Operation::Enable, MAX_EVENTS, 0, Refusal::IdOutOfRange),
        (Operation::Disable, 0, 0, Refusal::UnknownId),
        (Operation::Read, 15, 0, Refusal::UnknownId),
        (Operation::Page, 0, 0x3008, Refusal::Unaligned),
        (Operation::Page, 0, MEMORY, Refusal::BadAddress),
        (Operation::Page, 0, 1 << 63, Refusal::BadAddress),
        (Operation::Page, 0, RESULTS & !0xFFF, Refusal::Overlap),
    ];
    for (operation, id, address, refusal) in calls {
        assert_eq!(world.call(operation, id, address), Err(refusal), "{operation:?} {id} {address:#x}");
    }
    for (word, refusal) in
        [(2u64 | 32 << 32, Refusal::WrongVersion), (1 | 24 << 32, Refusal::WrongLength), (0, Refusal::WrongVersion)]
    {
        assert_eq!(world.open_with(&request(2, EXITS), word, 0), Err(refusal));
    }
    assert_eq!(world.open_with(&request(2, EXITS), 1 | 32 << 32, 1), Err(Refusal::ReservedBits));
    let mut after = world.paravirt.save(&world.trace, &mut world.lab);
    (after.sequence, after.exits, after.stolen_ticks) = (before.sequence, before.exits, before.stolen_ticks);
    assert_eq!(after, before);
    assert!(world.lab.lent.is_empty());
}

#[test]
fn counters_that_are_all_lent_are_too_many_events() {
    let mut world = World::new();
    let hardware = Counted::Hardware(HardwareEvent::new(0xC0).expect("a legal selector"));
    for id in 0..Lab::COUNTERS {
        assert_eq!(world.open(&request(id, hardware)), Ok(()));
    }
    assert_eq!(world.open(&request(9, hardware)), Err(Refusal::TooManyEvents));
    assert_eq!(world.call(Operation::Close, 0, 0), Ok(()));
    assert_eq!(world.open(&request(9, hardware)), Ok(()));
    assert_eq!(world.call(Operation::Reset, 0, 0), Ok(()), "a reset closes all");
    assert!(world.lab.lent.is_empty() && !world.paravirt.asked());
}

/// Requirement B1.
#[test]
fn enable_and_disable_enclose_what_happens_between_them_and_not_themselves() {
    for (counted, expected) in [(EXITS, 5), (Counted::Exits(Reason::Cpuid), 3), (Counted::Exits(Reason::Hypercall), 1)]
    {
        let mut world = World::new();
        assert_eq!(world.open(&request(0, counted)), Ok(()));
        assert_eq!(world.call(Operation::Enable, 0, 0), Ok(()));
        for kind in [Kind::Cpuid, Kind::Cpuid, Kind::Hypercall, Kind::Cpuid, Kind::Halt] {
            world.exit(kind, 10);
        }
        assert_eq!(world.call(Operation::Disable, 0, 0), Ok(()));
        world.exit(Kind::Cpuid, 10);
        assert_eq!(world.result(RESULTS).count, expected, "{counted:?}");
        assert_eq!(world.call(Operation::Read, 0, 0), Ok(()));
        assert_eq!((world.result(RESULTS).count, world.result(RESULTS).flags), (expected, 0), "{counted:?}");
    }
}

#[test]
fn a_halted_guest_is_not_stolen_from() {
    let mut world = World::new();
    assert_eq!(world.call(Operation::Page, 0, 0x3000), Ok(()));
    let (before, sequence) = (world.page(0x3000).stolen_ticks, world.page(0x3000).sequence);
    world.exit(Kind::Halt, 1_000_000);
    assert_eq!(world.page(0x3000).sequence, sequence + 2);
    world.exit(Kind::Cpuid, 7);
    assert_eq!((world.page(0x3000).stolen_ticks, world.page(0x3000).sequence), (before + 7, sequence + 4));
}

/// Requirement B8.
#[test]
fn a_page_that_is_moved_or_given_up_is_the_guests_memory_again() {
    let mut world = World::new();
    for (address, value) in [(0x3000, 7), (0x3FF8, 8), (0x4100, 9)] {
        world.memory.write_number(Gpa::new(address), Width::Qword, value).expect("memory");
    }
    let word = |world: &World, address| world.memory.read_number(Gpa::new(address), Width::Qword).expect("memory");
    assert_eq!(world.call(Operation::Page, 0, 0x3000), Ok(()));
    assert_eq!((word(&world, 0x3000), word(&world, 0x3FF8)), (1 | 768 << 32, 0), "all of it is the host's");
    world.exit(Kind::Cpuid, 1);
    assert_eq!(world.call(Operation::Page, 0, 0x4008), Err(Refusal::Unaligned));
    assert_eq!(world.page(0x3000).exits[0], 1, "refused, it stays where it is");
    assert_eq!(world.call(Operation::Page, 0, 0x4000), Ok(()));
    assert_eq!((word(&world, 0x3000), word(&world, 0x3FF8)), (7, 8));
    world.exit(Kind::Cpuid, 1);
    assert_eq!((word(&world, 0x3010), world.page(0x4000).exits[0]), (0, 2));
    assert_eq!(world.call(Operation::Page, 0, 0x4000), Ok(()));
    assert_eq!(world.call(Operation::PageOff, 0, 0), Ok(()));
    assert_eq!((word(&world, 0x4000), word(&world, 0x4100)), (0, 9), "named twice, it is given up once");
    world.exit(Kind::Cpuid, 1);
    assert_eq!((word(&world, 0x4000), word(&world, 0x4100)), (0, 9));
}

#[test]
fn registers_name_a_call_by_their_lower_halves() {
    let junk = 0xDEAD_BEEF_0000_0000;
    let call = Call::from_registers(junk | 0x4C48_0001, junk | 7, junk | 0x8000_1000, junk | 0x12).expect("a call");
    assert_eq!(call, Call { operation: Operation::Open, id: 7, address: Gpa::new(0x12_8000_1000) });
    for number in [0, 99, 0x4C48_0000, 0x4C48_0009, 0x4C48_0101, 0x4C47_FFFF] {
        assert_eq!(Call::from_registers(number, 0, 0, 0), None, "{number:#x}");
    }
    assert_eq!((status(Ok(())), status(Err(Refusal::Overlap))), (0, 13));
}

/// Requirement B7.
#[test]
fn a_bad_state_is_refused_by_the_checks_of_calls_and_takes_no_counter() {
    let mut world = World::new();
    let hardware = Counted::Hardware(HardwareEvent::new(0xC0).expect("a legal selector"));
    assert_eq!(world.open(&request(0, hardware)), Ok(()));
    assert_eq!(world.open(&Request { period: 10, ..request(1, EXITS) }), Ok(()));
    world.memory.write_number(Gpa::new(0x3800), Width::Qword, 1).expect("memory");
    assert_eq!(world.call(Operation::Page, 0, 0x3000), Ok(()));
    let good = world.paravirt.save(&world.trace, &mut world.lab);
    let event = |id, why| BadState::Event { id, why };
    type Case = (fn(&mut State), BadState);
    let cases: &[Case] = &[
        (|state| state.version = 2, BadState::Head(Refusal::WrongVersion)),
        (|state| state.length = 0, BadState::Head(Refusal::WrongLength)),
        (|state| state.flags = 4, BadState::Head(Refusal::ReservedBits)),
        (|state| state.flags = 0, BadState::Head(Refusal::ReservedBits)),
        (|state| state.sequence |= 1, BadState::Head(Refusal::ReservedBits)),
        (|state| state.reserved[3] = 1, BadState::Head(Refusal::ReservedBits)),
        (|state| state.exits[26] = 1, BadState::Head(Refusal::ReservedBits)),
        (|state| (state.flags, state.page) = (0, 0), BadState::Head(Refusal::ReservedBits)),
        (|state| state.page = MEMORY, BadState::Page(Refusal::BadAddress)),
        (|state| state.page = RESULTS, event(0, Refusal::Overlap)),
        (|state| state.events[1].open.result = MEMORY, event(1, Refusal::BadAddress)),
        (|state| state.events[1].open.config = 99, event(1, Refusal::UnsupportedEvent)),
        (|state| state.events[0].open.config = 0x11, event(0, Refusal::UnsupportedEvent)),
        (|state| state.events[1].open.id = 2, BadState::Impossible { id: 1 }),
        (|state| state.events[1].flags |= 8, event(1, Refusal::ReservedBits)),
        (|state| state.events[1].flags = 0, event(1, Refusal::ReservedBits)),
        (|state| state.events[1].count = 10, BadState::Impossible { id: 1 }),
        (|state| state.events[1].since = 1, BadState::Impossible { id: 1 }),
        (|state| state.events[0].overflows = 1, BadState::Impossible { id: 0 }),
    ];
    let restore = |state: &State| {
        let mut lab = Lab::default();
        let restored = Paravirt::restore(state, &GuestMemory::for_tests(MEMORY as usize), &Trace::new(0), &mut lab);
        (restored.map(|_| ()), lab.lent.len())
    };
    assert_eq!(restore(&good), (Ok(()), 1));
    for (number, (change, why)) in cases.iter().enumerate() {
        let mut state = good;
        change(&mut state);
        assert_eq!(restore(&state), (Err(*why), 0), "case {number}");
    }
}

/// The first to look at an overflow may be a call: the guest is told all the same (B3).
#[test]
fn an_overflow_that_a_call_finds_is_notified_too() {
    for (operation, raised) in [(Operation::Read, 1), (Operation::Disable, 1), (Operation::Close, 0)] {
        let mut world = World::new();
        let interrupts = Counted::Software(Software::InjectedInterrupts);
        assert_eq!(world.open(&Request { period: 2, notify: true, ..request(0, interrupts) }), Ok(()));
        assert_eq!(world.call(Operation::Enable, 0, 0), Ok(()));
        (0..3).for_each(|_| world.paravirt.count_interrupt());
        assert_eq!(world.call(operation, 0, 0), Ok(()));
        assert_eq!(world.raised, raised, "{operation:?}");
    }
}

/// The order in which another processor sees what an exit changes: nothing of it outside an odd sequence.
/// Also B8.
#[test]
fn what_an_exit_changes_is_written_while_the_sequence_is_odd() {
    let mut world = World::new();
    world.exit(Kind::Halt, 1);
    let mut words = std::vec::Vec::new();
    world.paravirt.each_word_of_exit(6, Kind::Halt, &world.trace, |number, value| words.push((number, value)));
    assert_eq!(words, [(2, 7), (32 + 16, 1), (4, 0), (2, 8)]);
}
