//! A guest that writes whatever it likes, by every name a register has, and takes turns with another.

use super::rig::{Fault, ONE, Rig, TestGuest};
use super::tests::NoCycles;
use crate::pmu::{EventSelector, Passthrough};
use crate::sim::Random;
use crate::sim::pmu::{amd, intel};
use std::vec::Vec;

/// What a maker's registers are called.
struct Names {
    /// The first selector's MSRs, how far the next is away, and how many there are.
    selectors: &'static [(u32, u32, u32)],
    counters: &'static [(u32, u32, u32)],
    others: &'static [u32],
    control: u32,
    /// The event that is denied: cycles.
    denied: u64,
    /// The bits that a selector keeps.
    kept: u64,
}

const INTEL: Names = Names {
    selectors: &[(0x186, 1, 8)],
    counters: &[(0xC1, 1, 8), (0x4C1, 1, 8), (0x309, 1, 4)],
    others: &[0x38D, 0x38E, 0x390, 0x391, 0x392, 0x345, 0x3F1, 0x3F2, 0x600, 0x1A6, 0x329],
    control: 0x38F,
    denied: 0x3C,
    kept: u64::MAX,
};
const AMD: Names = Names {
    selectors: &[(0xC001_0000, 1, 4), (0xC001_0200, 2, 6)],
    counters: &[(0xC001_0004, 1, 4), (0xC001_0201, 2, 6)],
    others: &[0xC000_0300, 0xC000_0302, 0xC000_0303, 0xC001_1030],
    control: 0xC000_0301,
    denied: 0x76,
    kept: 0x30F_FFD7_FFFF,
};

/// Returns a register by one of its names: its MSR and its number.
fn pick(random: &mut Random, names: &[(u32, u32, u32)]) -> (u32, usize) {
    let (first, step, count) = names[random.below(names.len() as u64) as usize];
    let n = random.below(count.into()) as u32;
    (first + n * step, n as usize)
}

fn values(rig: &Rig, fixed: bool) -> Vec<u64> {
    let general = 0..u32::from(rig.capability.counters);
    let fixed = if fixed { 1..4 } else { 0..0 };
    general.chain(fixed.map(|n| 0x4000_0000 | n)).map(|n| rig.registers.pmu.host_read_counter(n)).collect()
}

/// Another guest has its turn, and counts cycles with all it has.
fn other_turn(rig: &mut Rig, other: &mut TestGuest<Passthrough>, names: &Names) {
    const EVERYWHERE: u64 = 0b11 << 16 | EventSelector::ENABLE;
    rig.resume(other);
    let (first, step, count) = names.selectors[names.selectors.len() - 1];
    for n in 0..count {
        rig.wrmsr(other, first + n * step, names.denied | EVERYWHERE).expect("legal");
    }
    rig.wrmsr(other, names.control, (1 << count) - 1).expect("legal");
    let before = rig.rdpmc(other, 0).expect("there");
    rig.step(other, 3, &ONE);
    assert_eq!(rig.rdpmc(other, 0), Ok(before + 1), "the other counts what it likes");
    rig.pause(other);
}

fn never_counts_what_is_denied(mut rig: Rig, names: &Names, operations: u32, seed: u64) {
    let intel = names.kept == u64::MAX;
    let (mut guest, mut other) = (rig.guest(NoCycles), rig.guest(Passthrough::new()));
    rig.resume(&mut guest);
    let mut random = Random::new(seed);
    let mut shadows = [0; 8];
    for _ in 0..operations {
        let value = match random.below(4) {
            0 => random.below(u64::MAX),
            1 => random.below(1 << 16) | random.below(1 << 8) << 32,
            _ => [0xC0, names.denied][random.below(2) as usize] | random.below(1 << 24) & !0xFFFF & !(1 << 21),
        };
        match random.below(16) {
            0..6 => {
                let (msr, n) = pick(&mut random, names.selectors);
                let written = rig.wrmsr(&mut guest, msr, value);
                assert!(intel || written.is_ok());
                if written.is_ok() {
                    shadows[n] = value & names.kept;
                }
            }
            6..9 => drop(rig.wrmsr(&mut guest, pick(&mut random, names.counters).0, value)),
            9..11 => drop(rig.wrmsr(&mut guest, names.control, value)),
            11..13 => {
                let msr = names.others[random.below(names.others.len() as u64) as usize];
                let _ = (rig.wrmsr(&mut guest, msr, value), rig.rdmsr(&mut guest, msr));
            }
            13 => {
                let index = random.below(1 << 32) as u32;
                let legal =
                    index < rig.capability.counters.into() || intel && (0x4000_0000..0x4000_0004).contains(&index);
                assert_eq!(rig.rdpmc(&mut guest, index).is_err(), !legal);
            }
            14 if random.below(8) == 0 => {
                let before = values(&rig, intel);
                rig.pause(&mut guest);
                other_turn(&mut rig, &mut other, names);
                rig.resume(&mut guest);
                assert_eq!(values(&rig, intel), before, "the turn of the other shows");
            }
            15 if random.below(8) == 0 => {
                let state = guest.mechanism.save(0, &rig.registers, &mut rig.host).expect("a PMU");
                guest.mechanism.restore(&state, &mut rig.registers, &mut rig.host).expect("its own");
                rig.enter(&mut guest);
                assert_eq!(guest.mechanism.save(0, &rig.registers, &mut rig.host), Some(state));
            }
            _ => {
                let (msr, n) = pick(&mut random, names.selectors);
                assert_eq!(rig.rdmsr(&mut guest, msr), Ok(shadows[n]), "{msr:#x}");
            }
        }
        let before = values(&rig, intel);
        rig.step(&mut guest, 3 * (random.below(2) as u8), &ONE);
        rig.exit(&mut guest, 0, false);
        let after = values(&rig, intel);
        for (n, (before, after)) in before.into_iter().zip(after).enumerate() {
            let denied = match shadows.get(n) {
                Some(selector) if n < rig.capability.counters.into() => {
                    let high = if intel { 0 } else { selector >> 24 & 0xF00 };
                    selector & 0xFF | high == names.denied
                }
                _ => true,
            };
            assert!(!denied || before == after, "counter {n} counts {:#x}", shadows[n % 8]);
        }
    }
}

/// Requirements A4, A13 and A14: by whatever name, in whatever order, across turns and snapshots.
/// Also T-A22.
#[test]
fn a_hostile_guest_never_counts_what_is_denied() {
    never_counts_what_is_denied(Rig::intel(intel::Config::default()), &INTEL, 100_000, 7);
}

/// The legacy registers and those of the core extensions are the same counters (APM Vol. 2 13.2.1): the filter sees
/// both, and both read back what either wrote.
/// Also A4.
#[test]
fn a_hostile_guest_on_amd_never_counts_what_is_denied_by_either_name() {
    never_counts_what_is_denied(Rig::amd(amd::Config::default()), &AMD, 15_000, 8);
    let before_second = amd::Config { global: false, freeze: false, ..amd::Config::default() };
    let mut rig = Rig::amd(before_second);
    let mut guest = rig.guest(NoCycles);
    rig.resume(&mut guest);
    assert_eq!(rig.wrmsr(&mut guest, AMD.control, 1), Err(Fault));
    rig.wrmsr(&mut guest, 0xC001_0201, 5).expect("legal");
    rig.wrmsr(&mut guest, 0xC001_0000, 0xC0 | 1 << 16 | EventSelector::ENABLE).expect("legal");
    rig.step(&mut guest, 3, &ONE);
    assert_eq!(rig.rdmsr(&mut guest, 0xC001_0004), Ok(6));
    rig.wrmsr(&mut guest, 0xC001_0200, AMD.denied | 1 << 16 | EventSelector::ENABLE).expect("legal");
    rig.step(&mut guest, 3, &ONE);
    assert_eq!(rig.rdmsr(&mut guest, 0xC001_0201), Ok(6));
}
