//! The operations, one at a time.

use crate::oracle::*;
use crate::{fail, work};
use core::arch::asm;
use guests::cpu::{self, wrmsr};
use guests::faults::{GP, catch};
use guests::lapic::{self, MASKED, register::LVT_PMC};
use guests::pmu::*;
use guests::random::Random;

/// Where counters, selectors and their like are on any processor, or could be: first and how many.
const NEIGHBOURS: [(u32, u32); 26] = [
    (0xc1, 13),
    (0x183, 24),
    (0x1a4, 9),
    (0x1ad, 3),
    (0x1c8, 2),
    (0x309, 0x30),
    (0x340, 0x10),
    (0x38a, 0x20),
    (0x3e0, 4),
    (0x3f0, 0x10),
    (0x4c1, 0x30),
    (0x560, 0x2c),
    (0x600, 0xe0),
    (0x700, 0x40),
    (0xdc0, 0x20),
    (0x1200, 0x40),
    (0x14ce, 2),
    (0x1500, 0x40),
    (0x1600, 0x40),
    (0x1900, 0x100),
    (0x1a00, 0x100),
    (0xc000_0300, 0x10),
    (0xc001_0000, 8),
    (0xc001_0200, 0x20),
    (0xc001_0230, 0x30),
    (0xc001_1030, 0x10),
];

/// Event select and unit mask of what there is, of off-core responses, and of nothing.
const EVENTS: [u64; 16] = [
    0x003c, 0x013c, 0x00c0, 0x00c4, 0x11c4, 0x20c4, 0x40c4, 0x00c5, 0x4f2e, 0x412e, 0x01a4, 0x01b7, 0x012a, 0x01c0, 0,
    0x013c,
];

pub(crate) unsafe fn step(kind: u64, oracle: &mut Oracle, random: &mut Random) {
    match kind {
        0..=23 => select(oracle, random),
        24..=33 => count_from(oracle, random),
        34..=40 => fixed_control(oracle, random),
        41..=48 => global_control(oracle, random),
        49..=55 => status(oracle, random),
        56..=61 => others(oracle, random),
        62..=70 => read_counter(oracle, random),
        71..=80 => neighbour(oracle, random),
        81..=86 => entry(random),
        87..=88 => oracle.look_at_all(),
        89..=92 => leave(oracle, random),
        93..=94 => cpu::breathe(),
        95 => work::run_over(oracle, random),
        _ => work::stretch(oracle, random),
    }
}

/// Writes an MSR, which faults if and only if the value is not legal; returns whether it was written.
unsafe fn write(oracle: &mut Oracle, msr: u32, value: u64, legal: bool) -> bool {
    let fault = catch(|| wrmsr(msr, value));
    if fault.is_none() != legal || fault.is_some_and(|fault| fault.vector != GP) {
        fail("WRMSR, and whether it is to be #GP", msr.into(), value, legal.into());
    }
    oracle.faults += u64::from(!legal);
    legal
}

fn selector(random: &mut Random) -> u64 {
    let event = random.one_of(&EVENTS);
    let bits = random.next() & 0x00d7_0000;
    match random.below(10) {
        0..=4 => event | bits | OS | EN,
        5 => event | bits,
        6 => event | bits | OS | EN | (random.next() & 0xff << 24),
        7 => random.next() & SELECTOR_BITS,
        8 => event | OS | EN | 1 << random.below(64),
        _ => random.value(),
    }
}

unsafe fn select(oracle: &mut Oracle, random: &mut Random) {
    let n =
        if random.below(16) == 0 { random.below(12) as u32 } else { random.below(oracle.there.general.into()) as u32 };
    let value = innocent(selector(random));
    let legal = n < oracle.there.general && value & !SELECTOR_BITS == 0;
    oracle.change(|oracle| {
        if write(oracle, PERFEVTSEL + n, value, legal) {
            oracle.selectors[n as usize] = value;
        }
    });
}

/// A value for a counter: often one that runs over soon.
fn preset(random: &mut Random) -> u64 {
    innocent(match random.below(8) {
        0..=2 => LAST - random.below(200),
        3 => LAST - random.below(20_000),
        4 => random.next() & LAST,
        5 => 0,
        6 => u64::from(random.next() as u32 | 1 << 31),
        _ => random.value(),
    })
}

unsafe fn count_from(oracle: &mut Oracle, random: &mut Random) {
    let index = random.below(oracle.count as u64) as usize;
    let counter = oracle.counter(index);
    let value = preset(random);
    oracle.look_at(index);
    let (msr, legal, kept) = match counter.bit {
        n @ 0..32 if random.below(3) != 0 => (A_PMC + n, value <= LAST, value),
        0..32 => (counter.msr, true, value as u32 as i32 as u64 & LAST),
        _ => (counter.msr, value <= LAST, value),
    };
    oracle.change(|oracle| {
        if write(oracle, msr, value, legal) {
            oracle.written(index, kept);
        }
    });
}

unsafe fn fixed_control(oracle: &mut Oracle, random: &mut Random) {
    let value = match random.below(4) {
        0 => random.value(),
        1 => oracle.fixed_bits() & 0xbbbb,
        _ => random.next() & oracle.fixed_bits(),
    };
    let legal = value & !oracle.fixed_bits() == 0;
    oracle.change(|oracle| {
        if write(oracle, FIXED_CTR_CTRL, value, legal) {
            oracle.fixed_control = value;
        }
    });
}

unsafe fn global_control(oracle: &mut Oracle, random: &mut Random) {
    let value = match random.below(8) {
        0 => random.value(),
        1..=3 => oracle.bits(),
        4 => 0,
        _ => random.next() & oracle.bits(),
    };
    let legal = value & !oracle.bits() == 0;
    oracle.change(|oracle| {
        if write(oracle, GLOBAL_CTRL, value, legal) {
            oracle.global = value;
        }
    });
}

unsafe fn status(oracle: &mut Oracle, random: &mut Random) {
    let msr = random.one_of(&[STATUS_RESET, STATUS_SET]);
    let more = if msr == STATUS_RESET { 1 << 63 } else { 0 };
    let legal = oracle.set_bits | more;
    let value = match random.below(4) {
        0 => random.value(),
        1 => legal,
        _ => random.next() & legal,
    };
    let taken = value & !legal == 0;
    oracle.change(|oracle| {
        if write(oracle, msr, value, taken) {
            oracle.status_written(msr, value);
        }
    });
}

/// Registers beside the counters: some take a few bits, others none.
unsafe fn others(oracle: &mut Oracle, random: &mut Random) {
    let value = random.value();
    match random.below(4) {
        0 => {
            let value = if random.below(2) == 0 { value & oracle.debug_bits } else { value };
            let legal = value & !oracle.debug_bits == 0;
            oracle.change(|oracle| {
                if write(oracle, DEBUGCTL, value, legal) {
                    oracle.debugctl = value;
                }
            });
        }
        1 => {
            let value = if random.below(2) == 0 { value & 0x1881 } else { value };
            if write(oracle, MISC_ENABLE, value, value & !0x1881 == 0) {
                oracle.misc_written(value);
            }
        }
        _ => {
            let msr = random.one_of(&[STATUS, INUSE, CAPABILITIES]);
            write(oracle, msr, value, false);
        }
    }
    oracle.look_at_control(random.next() as u32);
}

unsafe fn read_counter(oracle: &mut Oracle, random: &mut Random) {
    let low = random.below(12) as u32;
    let index = match random.below(8) {
        0 => random.next() as u32,
        1 => 1 << random.below(32),
        2 => low | random.one_of(&[0x2000_0000, 0x8000_0000, 0xc000_0000, 0x1_0000, 0x4001_0000]),
        3..=5 => low | RDPMC_FIXED,
        _ => low,
    };
    let known = (0..oracle.count).find(|&known| oracle.counter(known).rdpmc == index);
    match (rdpmc(index), known) {
        (None, None) => oracle.faults += 1,
        (Some(value), Some(known)) => {
            let bit = oracle.counter(known).bit;
            oracle.look_at(known);
            let after = oracle.value(known);
            if oracle.active() >> bit & 1 == 0 && value != after {
                fail("RDPMC", index.into(), value, after);
            }
        }
        (answer, _) => fail("RDPMC, and whether it is to be #GP", index.into(), answer.unwrap_or(0), 0),
    }
}

/// Whatever lies around the registers that are this guest's is #GP, reading and writing.
unsafe fn neighbour(oracle: &mut Oracle, random: &mut Random) {
    let (first, count) = random.one_of(&NEIGHBOURS);
    let msr = first + random.below(count.into()) as u32;
    let Counters { general, fixed } = oracle.there;
    let within = |first: u32| (first..first + general).contains(&msr);
    let own = within(PMC)
        || within(PERFEVTSEL)
        || within(A_PMC)
        || matches!(msr, FIXED_CTR..0x311 if fixed >> (msr - FIXED_CTR) & 1 != 0)
        || matches!(msr, CAPABILITIES | FIXED_CTR_CTRL..=INUSE | MISC_ENABLE);
    if own {
        return;
    }
    let mut value = 0;
    if catch(|| value = cpu::rdmsr(msr)).is_none() {
        fail("RDMSR of what this guest has not", msr.into(), value, 0);
    }
    let value = random.value();
    write(oracle, msr, value, false);
    oracle.faults += 1;
}

/// LVTPC, in every mode; an INIT that would come stays masked.
unsafe fn entry(random: &mut Random) {
    let vector = 32 + random.below(223) as u32;
    let value = match random.below(12) {
        0..=3 => vector,
        4..=6 => 0x400,
        7 => MASKED | vector,
        8 => 0x200,
        9 => MASKED | 0x500,
        10 => random.one_of(&[0x100, 0x300, 0x600, 0x700]),
        _ => random.below(16) as u32,
    };
    lapic::write(LVT_PMC, value);
    // A vector that cannot be raises an error, which stays noted until then.
    lapic::write(lapic::register::ESR, 0);
}

/// Has the hypervisor execute instructions for this guest: none of them counts where it is denied.
unsafe fn leave(oracle: &mut Oracle, random: &mut Random) {
    oracle.change(|_| {
        for _ in 0..1 + random.below(4) {
            match random.below(4) {
                0 => {
                    cpu::cpuid(random.below(0x20) as u32, 0);
                }
                1 => {
                    lapic::read(LVT_PMC);
                }
                2 => {
                    cpu::in8(0x61);
                }
                _ => asm!("vmcall", inout("rax") 0xffff_u64 => _, in("rcx") 0, in("rdx") 0, options(nostack)),
            }
        }
    });
}
