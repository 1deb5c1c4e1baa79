//! The run loop under guests that ask for everything.

use super::harness::*;
use crate::exit::{Exit, StopReason, Width};
use crate::registers::Gpr;
use crate::sim::{Op, Program, Random, SPENT};

#[test]
fn every_cpuid_leaf_and_every_msr_gets_an_answer() {
    for vendor in VENDORS {
        let mut program = Mode::X2Apic.prologue();
        let mut expected = 0;
        for leaf in (0..0x30).chain(0x4000_0000..0x4000_0010).chain(0x8000_0000..0x8000_0028).chain([u32::MAX]) {
            for subleaf in [0, 1, 2, u32::MAX] {
                program.cpuid(leaf, subleaf);
                expected += 1;
            }
        }
        let msrs = (0..0x200).chain(0x270..0x280).chain(0x2F0..0x310).chain(0x480..0x4A0).chain(0x7F0..0x910);
        for msr in msrs.chain(0xC000_0000..0xC000_0110).chain(0xC001_0000..0xC001_0150) {
            program.ops(&[Op::Mov(Gpr::Rcx, msr)]);
            risky(&mut program, &[Op::Rdmsr]);
            if !matches!(msr, 0x1B | 0x80B | 0x80F | 0x830..=0x83F) {
                program.ops(&[Op::Mov(Gpr::Rdx, 0xFFFF)]);
                risky(&mut program, &[Op::Wrmsr]);
            }
            expected += 2;
        }
        Mode::X2Apic.epilogue(&mut program);
        let ran = run(&program, Setting::new(vendor));
        assert_eq!(ran.reason, StopReason::DebugExit(0));
        let asked =
            ran.exits.iter().filter(|exit| matches!(exit, Exit::Cpuid { .. } | Exit::Rdmsr(_) | Exit::Wrmsr(..)));
        assert!(asked.count() > expected - 40);
    }
}

/// A guest that does anything, with anything in its registers.
fn wild(random: &mut Random, ops: usize) -> Program {
    const PORTS: [u32; 14] = [0x20, 0x21, 0x40, 0x43, 0x60, 0x61, 0x64, 0x70, 0x80, 0xA0, 0xA1, 0x3F8, 0xCF8, 0xCFC];
    const MSRS: [u32; 12] = [0x1B, 0x10, 0x6E0, 0x808, 0x80B, 0x80F, 0x830, 0x832, 0x838, 0x83F, 0xC000_0080, 0x277];
    let mut program = Program::at(0x1000);
    program.ops(&[Op::Mov(Gpr::Rsp, STACK), Op::Mov(Gpr::Rcx, 0x1B), Op::Mov(Gpr::Rax, 0xFEE0_0D00)]);
    program.ops(&[random.pick(&[Op::Wrmsr, Op::Nop]), random.pick(&[Op::Sti, Op::Nop])]);
    let start = program.here();
    for _ in 0..ops {
        let width = random.pick(&[Width::Byte, Width::Word, Width::Dword]);
        let numbers = [random.word() as u32, random.below(256) as u32, 1 << random.below(32), 0];
        let number = random.pick(&numbers);
        let addresses = [
            0xFEE0_0000 + random.below(0x400) as u32,
            0xFEC0_0000 + random.below(0x44) as u32,
            random.below(MEMORY as u64) as u32 | 0x8_0000,
            random.word() as u32,
        ];
        let address = random.pick(&addresses);
        let register = random.pick(&[Gpr::Rax, Gpr::Rax, Gpr::Rcx, Gpr::Rdx, Gpr::Rbp, Gpr::Rbx]);
        let op = match random.below(32) {
            0..4 => Op::Mov(register, number),
            4 | 5 => Op::Mov(Gpr::Rcx, random.pick(&MSRS)),
            6 | 7 => Op::Mov(Gpr::Rdx, random.pick(&PORTS)),
            8 => Op::Mov(Gpr::Rdx, 0),
            9 => Op::Cpuid,
            10 => Op::Rdmsr,
            11..14 => Op::Wrmsr,
            14 | 15 => Op::Out(width),
            16 => Op::In(width),
            17 | 18 => Op::Store(address, width),
            19 => Op::Load(address, width),
            20 => Op::Hlt,
            21 => Op::Sti,
            22 => random.pick(&[Op::Cli, Op::MovSs, Op::Pause, Op::Wbinvd, Op::Rdtsc]),
            23 => random.pick(&[Op::Xsetbv, Op::Hypercall, Op::Ud2]),
            24 => random.pick(&[Op::Int3, Op::Int(number as u8), Op::Iret]),
            25 => random.pick(&[Op::Push(number), Op::PopFlags, Op::PopFlags]),
            26 => random.pick(&[Op::WriteCr4, Op::WriteCr8, Op::ReadCr8]),
            27 => random.pick(&[Op::PushAll, Op::PopAll, Op::DropErrorCode]),
            28 if random.once_in(20) => Op::Mov(Gpr::Rsp, address),
            _ => Op::Nop,
        };
        risky(&mut program, &[op]);
    }
    program.ops(&[Op::Jump(start)]);
    Mode::X2Apic.handlers(&mut program);
    for vector in 0x20..=0xFF {
        if !PLAIN.contains(&vector) && !NESTING.contains(&vector) && vector != 0x80 && random.below(8) > 0 {
            program.handler(vector).ops(&[Op::PushAll]).wrmsr(0x80B, 0).ops(&[Op::PopAll, Op::Iret]);
        }
    }
    program
}

#[test]
fn a_million_wild_instructions_never_panic_the_host() {
    let (mut spent, mut runs) = (0, 0);
    let mut left = if cfg!(debug_assertions) { 100_000 } else { 1_000_000 };
    for seed in 1.. {
        let program = wild(&mut Random::new(seed), 300);
        let setting = Setting {
            seed,
            stray_every: 100,
            unmap_stack_once_in: 50,
            budget: 5000,
            passes_halt: true,
            ..Setting::new(VENDORS[seed as usize % 2])
        };
        let ran = run(&program, setting);
        if let StopReason::Unhandled(raw) = ran.reason {
            assert!(raw.code == SPENT || raw.code == 0, "seed {seed}: {raw:?}");
            spent += u32::from(raw.code == SPENT);
        }
        runs += 1;
        left -= ran.executed.min(left);
        if left == 0 {
            break;
        }
    }
    assert!(spent * 4 > runs, "{spent} of {runs} guests lived to the end");
}
