//! A guest that calls at random, with blocks that are nearly right: it gets answers, never anything of the host's.

use super::*;
use crate::sim::random::Random;
use crate::trace::KINDS;

/// Programs for each vendor, and calls in each: 100,000 calls in all.
const PROGRAMS: u64 = 25;
const CALLS: u32 = 2000;
/// Where the guest has its blocks, and the page of counters: here nobody else writes.
const DATA: u32 = 0x8_8000;
/// More than any event can count here. The host's work would be more by far: it is 10,000 of everything at each exit.
const MOST: u64 = 1_000_000;
/// Above all answers, whatever is refused.
const REFUSALS: u32 = 16;

/// A number that a guest may try, of which none looks like an address of the host with any other above it.
fn number(random: &mut Random) -> u32 {
    match random.below(6) {
        0 => random.below(20) as u32,
        1 => random.pick(&[OPEN, RESULTS, PAGE, PAGE + 0x1000, DATA, 0xF_FFF8, 0xF_F000, 0x10_0000]),
        2 => random.pick(&[u32::MAX, u32::MAX - 7, 0xFFFF_F000]),
        3 => random.pick(&[64, 32, 1, 2, 0x100]) + random.below(KINDS as u64) as u32,
        _ => random.below(0x1000) as u32 & !7,
    }
}

fn random_call(program: &mut Program, random: &mut Random) {
    use Gpr::{Rax, Rbx, Rcx, Rdx};
    let operation = match random.below(30) {
        0 => number(random),
        1 => 8,
        _ => random.pick(&[1, 1, 1, 1, 2, 3, 3, 4, 5, 6, 7]),
    };
    let address = match random.below(8) {
        0 => number(random),
        _ if operation == 1 => OPEN,
        _ => random.pick(&[PAGE, PAGE + 0x1000, RESULTS, PAGE]),
    };
    let id = if random.once_in(9) { number(random) } else { random.below(12) as u32 };
    let high = if random.once_in(20) { number(random) } else { 0 };
    let registers = [(Rax, 0x4C48_0000u32.wrapping_add(operation)), (Rbx, id), (Rcx, address), (Rdx, high)];
    program.ops(&registers.map(|(register, value)| Op::Mov(register, value))).ops(&[Op::Hypercall]);
}

/// Writes an open block, right but for what chance changes.
fn random_block(program: &mut Program, random: &mut Random) {
    let id = random.below(12) as u32;
    let (event_type, config) = match random.below(3) {
        0 => (1, random.pick(&[0, 2, 3, 4, 5, 0x100, 0x10F])),
        _ => (2, random.pick(&[0x3C, 0xC0, 0xC0, 0xC4, 0xC5, 0x4F2E, 0x412E]) | random.pick(&[0x3_0000, 0x2_0000])),
    };
    let period = random.pick(&[0, 0, 2000, 3333]);
    let place = result(id);
    let mut words = [
        1,
        64,
        u32::from(period != 0 || random.once_in(20)),
        0,
        event_type,
        0,
        config,
        0,
        period,
        0,
        place,
        0,
        id,
        0,
        0,
        0,
    ];
    while random.once_in(3) {
        words[random.below(16) as usize] = number(random);
    }
    // A shorter period leaves the guest no time but for its handler.
    words[8] = if words[8] == 0 { 0 } else { words[8].max(2000) };
    for (address, word) in (OPEN..).step_by(4).zip(words) {
        program.store(address, Width::Dword, word);
    }
    for (address, word) in (place..).step_by(4).zip([1, 32, 0, 0]) {
        program.store(address, Width::Dword, word);
    }
}

fn hostile(seed: u64) -> Program {
    let mut random = Random::new(seed);
    let mut program = Mode::X2Apic.begin();
    Mode::X2Apic.write(&mut program, LVTPC, PMI.into());
    program.ops(&[Op::Sti]);
    for _ in 0..CALLS {
        match random.below(12) {
            0..3 => random_block(&mut program, &mut random),
            5 => drop(program.store(PAGE + 4 * random.below(0x400) as u32, Width::Dword, 0xEEEE)),
            6 => drop(program.cpuid(0, 0)),
            7 => drop(program.repeat(random.below(30) as u32 + 1, &[Op::Nop])),
            _ => {}
        }
        random_call(&mut program, &mut random);
    }
    program.ops(&[Op::Cli, Op::Mov(Gpr::Rax, 0)]);
    end(&mut program);
    handle_overflow(&mut program);
    program
}

/// Requirement B2: 100,000 random calls end no guest and panic nowhere; every answer is one of the specification's, and
/// nothing that the guest can read afterwards is an address of the host or a count of what the host did.
#[test]
fn random_calls_get_answers_and_nothing_of_the_hosts() {
    let mut answered = [0u32; REFUSALS as usize];
    for seed in 0..PROGRAMS {
        for registers in both() {
            let ran = run(Paravirtual::on(()), registers, seed % 4, &hostile(seed));
            assert_eq!(ran.value, 0, "seed {seed}");
            let mut calls = 0;
            for record in &ran.journal {
                if let Record::Completed(Op::Hypercall, answer) = *record {
                    calls += 1;
                    assert!(answer < REFUSALS || answer == u32::MAX, "seed {seed}: answer {answer:#x}");
                    answered.get_mut(answer as usize).into_iter().for_each(|times| *times += 1);
                }
            }
            assert_eq!(calls, CALLS, "seed {seed}");
            // Where a word of 64 bits begins, the upper half of an address of the host would follow.
            let mut bytes = std::vec![0; MEMORY - DATA as usize];
            ran.memory.read(Gpa::new(DATA.into()), &mut bytes).expect("memory");
            for (place, word) in bytes.as_chunks::<4>().0.iter().enumerate() {
                let half = u32::from_le_bytes(*word);
                assert!(
                    !(0x5000..0x8000).contains(&half),
                    "seed {seed}: {half:#x} at {:#x}",
                    DATA as usize + 4 * place
                );
            }
            // Result blocks are written by the host, and by the guest with these alone.
            for address in (RESULTS..RESULTS + 0x180).step_by(8) {
                let found = word(&ran, address);
                assert!(
                    found < MOST || found == 1 | 32 << 32 || found == 1 | 768 << 32,
                    "seed {seed}: {found:#x} at {address:#x}"
                );
            }
            let left = ran.machine.pmu(|pmu| [pmu.host_read(registers.selector), pmu.host_read(registers.counter)]);
            assert_eq!(left, [0, 0], "seed {seed}");
        }
    }
    let never: Vec<u32> = (0..REFUSALS - 2).filter(|answer| answered[*answer as usize] == 0).collect();
    assert!(never.is_empty(), "no call was answered with {never:?}: {answered:?}");
}
