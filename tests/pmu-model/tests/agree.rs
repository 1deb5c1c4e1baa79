//! Both models answer every command of random programs alike. Where they do not, the manual decides which is wrong.

use libhv::sim::pmu::{Branch, Happened};
use pmu_model::{Command, Ours, Theirs};
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::{Config, TestRunner};
use std::path::Path;

const MAX: u64 = (1 << 48) - 1;

/// The MSRs of the PMU, and the numbers beside them that none has.
fn registers() -> Vec<u32> {
    let beside =
        [0xC0, 0xC9, 0x185, 0x18E, 0x308, 0x30D, 0x329, 0x344, 0x346, 0x38C, 0x393, 0x4C0, 0x4C9, 0x3F1, 0x14CE];
    let counters = (0xC1..=0xC8).chain(0x186..=0x18D).chain(0x309..=0x30C).chain(0x4C1..=0x4C8);
    counters.chain([0x1D9, 0x345]).chain(0x38D..=0x392).chain(beside).collect()
}

/// A step with up to `most` of each event.
fn step(most: u64) -> impl Strategy<Value = Command> {
    let number = move || 0..=most;
    let events = [number(), number(), number(), number(), number(), number()];
    (0u8..4, 0u64..6, 0u64..6, events).prop_map(|(cpl, cycles, ref_cycles, events)| {
        let [instructions, branches, conditional, mispredicted, llc_references, llc_misses] = events;
        let happened = Happened {
            cycles,
            ref_cycles,
            instructions,
            branches,
            conditional,
            mispredicted,
            llc_references,
            llc_misses,
        };
        Command::Step(cpl, happened)
    })
}

/// A selector that counts something, most of the time.
fn selector() -> impl Strategy<Value = u64> {
    let events = vec![0x3C, 0x13C, 0xC0, 0xC4, 0x11C4, 0xC5, 0x4F2E, 0x412E, 0x1C0, 0x5C];
    let mask = select(vec![0, 0, 0, 1, 2, 3, 5, 255]);
    (select(events), 0u64..8, mask, any::<[bool; 3]>()).prop_map(|(event, bits, mask, [edge, invert, enable])| {
        let levels = (bits & 3) << 16 | (bits >> 2 & 1) << 20;
        event | levels | mask << 24 | u64::from(edge) << 18 | u64::from(invert) << 23 | u64::from(enable) << 22
    })
}

/// A value of any register: near an overflow, of few bits, or anything.
fn value() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => (0u64..12).prop_map(|below| MAX - below),
        2 => (0u64..12).prop_map(|below| 0xFFFF_FFFF - below),
        3 => 0u64..20,
        3 => (0u32..64).prop_map(|bit| 1 << bit),
        2 => any::<[bool; 12]>().prop_map(|bits| {
            (0..8).chain(32..36).zip(bits).fold(0, |value, (bit, is)| value | u64::from(is) << bit)
        }),
        2 => (0u64..0x1_0000).prop_map(|control| control & 0xBBBB),
        1 => any::<u64>(),
    ]
}

fn command() -> impl Strategy<Value = Command> {
    // What falls together in a table of 2^n entries is 2^n apart.
    let near = |unit: u64, bits: [u32; 7]| {
        (0u64..2, select(bits.map(|bit| 1 << bit).to_vec())).prop_map(move |(low, far)| low * unit + far)
    };
    let from = prop_oneof![9 => near(1, [0, 8, 9, 10, 11, 12, 13]), 1 => any::<u64>()];
    let physical = prop_oneof![9 => near(64, [6, 13, 14, 15, 16, 20, 21]), 1 => any::<u64>()];
    let kind =
        select(vec![Branch::Conditional, Branch::Conditional, Branch::Indirect, Branch::Indirect, Branch::Direct]);
    prop_oneof![
        5 => (0u32..8, selector()).prop_map(|(index, value)| Command::Write(0x186 + index, value)),
        4 => (select(registers()), value()).prop_map(|(msr, value)| Command::Write(msr, value)),
        2 => select(vec![0xF_0000_00FF, 0xF_0000_00FF, 0xFF, 0]).prop_map(|value| Command::Write(0x38F, value)),
        1 => select(vec![0xBBBB, 0x3333, 0xB]).prop_map(|value| Command::Write(0x38D, value)),
        1 => select(vec![0x1000, 0x1000, 0x1800, 0]).prop_map(|value| Command::Write(0x1D9, value)),
        1 => select(vec![0, 0, 1, 3, 7]).prop_map(Command::Skid),
        1 => Just(Command::Write(0x390, 0xE800_000F_0000_00FF)),
        3 => select(registers()).prop_map(Command::Read),
        2 => prop_oneof![0u32..10, 0x4000_0000u32..0x4000_0006, 0x2000_0000u32..0x2000_0002, 0x8000_0000u32..0x8000_0002,
            any::<u32>()].prop_map(Command::ReadCounter),
        10 => step(4),
        2 => step(300),
        5 => (kind, from, 0u64..3, any::<bool>())
            .prop_map(|(kind, from, to, taken)| Command::Branch(kind, from, to, taken)),
        5 => physical.prop_map(Command::Access),
    ]
}

#[test]
fn both_models_answer_every_program_alike() {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let theirs = Theirs::new(folder).unwrap_or_else(|why| panic!("{why}"));
    let programs = prop::collection::vec(command(), 1..150);
    let config = Config { cases: 300, max_shrink_iters: 20_000, failure_persistence: None, ..Config::default() };
    let agree = |program: Vec<Command>| {
        let whole = registers().into_iter().map(Command::Read);
        let program: Vec<Command> = [Command::Reset].into_iter().chain(program).chain(whole).collect();
        let theirs = theirs.answers(&program).map_err(TestCaseError::fail)?;
        let mut ours = Ours::default();
        for (command, theirs) in program.iter().zip(theirs) {
            prop_assert_eq!(ours.answer(command), theirs, "ours and theirs differ at: {}", command);
        }
        Ok(())
    };
    if let Err(why) = TestRunner::new(config).run(&programs, agree) {
        panic!("{why}");
    }
}
