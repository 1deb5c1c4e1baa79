//! The length of an instruction that exited, for processors that do not report it (SVM without NRIP save, APM Vol. 2
//! 15.7.1): a decoder for the few instructions that exits speak of, much shorter than a whole one.

use super::translate::locate;
use crate::address::{Gpa, Gva, PAGE_SIZE};
use crate::memory::GuestMemory;
use crate::registers::{GuestState, SegmentRegister};

/// An instruction that an exit reports.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Opcode {
    /// CPUID
    Cpuid,
    /// RDMSR
    Rdmsr,
    /// WRMSR
    Wrmsr,
    /// RDPMC
    Rdpmc,
    /// RDTSC
    Rdtsc,
    /// RDTSCP
    Rdtscp,
    /// HLT
    Hlt,
    /// PAUSE
    Pause,
    /// VMCALL
    Vmcall,
    /// VMMCALL
    Vmmcall,
    /// XSETBV
    Xsetbv,
    /// INVD
    Invd,
    /// WBINVD, and WBNOINVD, which is a WBINVD with a prefix.
    Wbinvd,
    /// MONITOR
    Monitor,
    /// MWAIT
    Mwait,
    /// CLTS
    Clts,
    /// MOV to or from a control register.
    MovControl,
    /// MOV to or from a debug register.
    MovDebug,
    /// LMSW
    Lmsw,
    /// INVLPG
    Invlpg,
    /// IN
    In,
    /// OUT
    Out,
    /// INS
    Ins,
    /// OUTS
    Outs,
    /// INT3
    Int3,
    /// INTO
    Into,
    /// INT n
    Int,
}

/// What stands behind the opcode.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Tail {
    Nothing,
    /// A ModRM byte that names registers whatever its mod field says (SDM Vol. 2B, MOV to/from Control Registers).
    Registers,
    /// A ModRM byte whose reg field is this one, with its memory operand.
    Operand(u8),
    /// An 8-bit immediate.
    Immediate,
    /// An 8-bit port number, unless bit 3 of the opcode says DX.
    Port,
}

/// The opcode bytes as they lie in memory, first byte lowest, under a mask, and how many there are.
struct Pattern {
    bytes: u32,
    mask: u32,
    length: u8,
    tail: Tail,
}

const fn plain(bytes: u32, length: u8) -> Pattern {
    Pattern { bytes, mask: u32::MAX >> (32 - 8 * length as u32), length, tail: Tail::Nothing }
}

const fn with(tail: Tail, bytes: u32, mask: u32, length: u8) -> Pattern {
    Pattern { bytes, mask, length, tail }
}

impl Opcode {
    #[inline]
    const fn pattern(self) -> Pattern {
        match self {
            Self::Cpuid => plain(0xA2_0F, 2),
            Self::Rdmsr => plain(0x32_0F, 2),
            Self::Wrmsr => plain(0x30_0F, 2),
            Self::Rdpmc => plain(0x33_0F, 2),
            Self::Rdtsc => plain(0x31_0F, 2),
            Self::Rdtscp => plain(0xF9_01_0F, 3),
            Self::Hlt => plain(0xF4, 1),
            Self::Pause => plain(0x90, 1),
            Self::Vmcall => plain(0xC1_01_0F, 3),
            Self::Vmmcall => plain(0xD9_01_0F, 3),
            Self::Xsetbv => plain(0xD1_01_0F, 3),
            Self::Invd => plain(0x08_0F, 2),
            Self::Wbinvd => plain(0x09_0F, 2),
            Self::Monitor => plain(0xC8_01_0F, 3),
            Self::Mwait => plain(0xC9_01_0F, 3),
            Self::Clts => plain(0x06_0F, 2),
            Self::MovControl => with(Tail::Registers, 0x20_0F, 0xFD_FF, 2),
            Self::MovDebug => with(Tail::Registers, 0x21_0F, 0xFD_FF, 2),
            Self::Lmsw => with(Tail::Operand(6), 0x01_0F, 0xFF_FF, 2),
            Self::Invlpg => with(Tail::Operand(7), 0x01_0F, 0xFF_FF, 2),
            Self::In => with(Tail::Port, 0xE4, 0xF6, 1),
            Self::Out => with(Tail::Port, 0xE6, 0xF6, 1),
            Self::Ins => with(Tail::Nothing, 0x6C, 0xFE, 1),
            Self::Outs => with(Tail::Nothing, 0x6E, 0xFE, 1),
            Self::Int3 => plain(0xCC, 1),
            Self::Into => plain(0xCE, 1),
            Self::Int => with(Tail::Immediate, 0xCD, 0xFF, 1),
        }
    }
}

/// Returns the bytes in the instruction at RIP, 1 to 15, which is to be `expected`; `None` where it cannot be read or is
/// another one.
pub fn instruction_length(cpu: &(impl GuestState + ?Sized), memory: &GuestMemory, expected: Opcode) -> Option<u64> {
    let bits = cpu.code_bits();
    let address = code_address(cpu, bits);
    let gpa = locate(cpu, memory, address)?;
    let (bytes, count) = fetch(cpu, memory, address, gpa);
    length_of(bytes.get(..count)?, bits, expected)
}

/// Returns where the instruction at RIP ends, as RIP will have it; see [`instruction_length`].
#[inline(always)]
pub fn next_instruction(cpu: &impl GuestState, memory: &GuestMemory, expected: Opcode) -> Option<u64> {
    if cpu.code_bits() == 64
        && let Some(length) = plain_length(cpu, memory, expected)
    {
        return Some(cpu.rip().wrapping_add(length));
    }
    next_by_bytes(cpu, memory, expected)
}

/// The short way for opcodes that nothing goes before or comes after, in 64-bit code.
#[inline(always)]
fn plain_length(cpu: &impl GuestState, memory: &GuestMemory, expected: Opcode) -> Option<u64> {
    let pattern = expected.pattern();
    if !matches!(pattern.tail, Tail::Nothing) || expected == Opcode::Pause {
        return None;
    }
    let length = u64::from(pattern.length);
    let gpa = locate(cpu, memory, Gva::new(cpu.rip()))?;
    let offset = gpa.as_u64() % 8;
    let mut code = memory.word(gpa)? >> (8 * offset);
    if offset + length > 8 {
        if gpa.page_offset() + length > PAGE_SIZE {
            return None;
        }
        code |= memory.word(gpa.wrapping_add(8))? << (64 - 8 * offset);
    }
    (code as u32 & pattern.mask == pattern.bytes).then_some(length)
}

#[inline(never)]
fn next_by_bytes(cpu: &impl GuestState, memory: &GuestMemory, expected: Opcode) -> Option<u64> {
    let next = cpu.rip().wrapping_add(instruction_length(cpu, memory, expected)?);
    Some(if cpu.code_bits() == 64 { next } else { next & 0xFFFF_FFFF })
}

/// Returns the linear address of RIP in code of `bits` bits.
#[inline]
pub(super) fn code_address(cpu: &(impl GuestState + ?Sized), bits: u32) -> Gva {
    if bits == 64 {
        Gva::new(cpu.rip())
    } else {
        Gva::new(cpu.segment(SegmentRegister::Cs).base.wrapping_add(cpu.rip()) & 0xFFFF_FFFF)
    }
}

/// Reads up to 15 bytes of code at `address`, which lies at `gpa`, and says how many could be read.
#[inline(never)]
pub(super) fn fetch(
    cpu: &(impl GuestState + ?Sized),
    memory: &GuestMemory,
    address: Gva,
    gpa: Gpa,
) -> ([u8; 15], usize) {
    let mut bytes = [0; 15];
    let here = ((PAGE_SIZE - gpa.page_offset()) as usize).min(bytes.len());
    let (first, second) = bytes.split_at_mut(here);
    let mut count = 0;
    if memory.read(gpa, first).is_ok() {
        count = here;
        if !second.is_empty()
            && let Some(gpa) = locate(cpu, memory, address.wrapping_add(here as u64))
            && memory.read(gpa, second).is_ok()
        {
            count = 15;
        }
    }
    (bytes, count)
}

/// Returns the length of the instruction `bytes` begins with, which is to be `expected`.
fn length_of(bytes: &[u8], bits: u32, expected: Opcode) -> Option<u64> {
    let mut at = 0;
    let (mut address_override, mut repeated) = (false, false);
    loop {
        match *bytes.get(at)? {
            0x67 => address_override = true,
            0xF3 => repeated = true,
            0xF2 => repeated = false,
            0x26 | 0x2E | 0x36 | 0x3E | 0x64..=0x66 | 0xF0 => {}
            0x40..=0x4F if bits == 64 => {}
            _ => break,
        }
        at += 1;
    }
    let pattern = expected.pattern();
    let mut opcode = [0; 4];
    for (byte, from) in opcode.iter_mut().zip(bytes.get(at..)?.iter().take(pattern.length.into())) {
        *byte = *from;
    }
    if u32::from_le_bytes(opcode) & pattern.mask != pattern.bytes || expected == Opcode::Pause && !repeated {
        return None;
    }
    at += usize::from(pattern.length);
    at += match pattern.tail {
        Tail::Nothing => 0,
        Tail::Registers | Tail::Immediate => 1,
        Tail::Port => usize::from(opcode[0] & 8 == 0),
        Tail::Operand(digit) => {
            let modrm = *bytes.get(at)?;
            if modrm >> 3 & 7 != digit {
                return None;
            }
            1 + operand_bytes(modrm, bytes.get(at + 1).copied(), (bits == 16) != (address_override && bits != 64))
        }
    };
    (at <= bytes.len()).then_some(at as u64)
}

/// Returns how many bytes of SIB and displacement follow a ModRM byte; `next` is the byte after it (SDM Vol. 2A 2.1.5).
fn operand_bytes(modrm: u8, next: Option<u8>, addresses_16_bits: bool) -> usize {
    let (mode, register) = (modrm >> 6, modrm & 7);
    if mode == 3 {
        return 0;
    }
    if addresses_16_bits {
        return match (mode, register) {
            (0, 6) | (2, _) => 2,
            (1, _) => 1,
            _ => 0,
        };
    }
    let sib = register == 4;
    let base = if sib { next.unwrap_or(0) & 7 } else { register };
    let displacement = match (mode, base) {
        (0, 5) | (2, _) => 4,
        (1, _) => 1,
        _ => 0,
    };
    usize::from(sib) + displacement
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::emulate::fake::FakeCpu;
    use crate::exit::Width;
    use crate::registers::{EntryState, SegmentAttributes};
    use iced_x86::{Decoder, DecoderOptions, Mnemonic};
    use proptest::prelude::*;
    use std::vec::Vec;

    const KNOWN: [(Opcode, &[Mnemonic], &[u8]); 27] = [
        (Opcode::Cpuid, &[Mnemonic::Cpuid], &[0x0F, 0xA2]),
        (Opcode::Rdmsr, &[Mnemonic::Rdmsr], &[0x0F, 0x32]),
        (Opcode::Wrmsr, &[Mnemonic::Wrmsr], &[0x0F, 0x30]),
        (Opcode::Rdpmc, &[Mnemonic::Rdpmc], &[0x0F, 0x33]),
        (Opcode::Rdtsc, &[Mnemonic::Rdtsc], &[0x0F, 0x31]),
        (Opcode::Rdtscp, &[Mnemonic::Rdtscp], &[0x0F, 0x01, 0xF9]),
        (Opcode::Hlt, &[Mnemonic::Hlt], &[0xF4]),
        (Opcode::Pause, &[Mnemonic::Pause], &[0xF3, 0x90]),
        (Opcode::Vmcall, &[Mnemonic::Vmcall], &[0x0F, 0x01, 0xC1]),
        (Opcode::Vmmcall, &[Mnemonic::Vmmcall], &[0x0F, 0x01, 0xD9]),
        (Opcode::Xsetbv, &[Mnemonic::Xsetbv], &[0x0F, 0x01, 0xD1]),
        (Opcode::Invd, &[Mnemonic::Invd], &[0x0F, 0x08]),
        (Opcode::Wbinvd, &[Mnemonic::Wbinvd, Mnemonic::Wbnoinvd], &[0x0F, 0x09]),
        (Opcode::Monitor, &[Mnemonic::Monitor], &[0x0F, 0x01, 0xC8]),
        (Opcode::Mwait, &[Mnemonic::Mwait], &[0x0F, 0x01, 0xC9]),
        (Opcode::Clts, &[Mnemonic::Clts], &[0x0F, 0x06]),
        (Opcode::MovControl, &[Mnemonic::Mov], &[0x0F, 0x22, 0xC0]),
        (Opcode::MovDebug, &[Mnemonic::Mov], &[0x0F, 0x21, 0xF8]),
        (Opcode::Lmsw, &[Mnemonic::Lmsw], &[0x0F, 0x01, 0x34]),
        (Opcode::Invlpg, &[Mnemonic::Invlpg], &[0x0F, 0x01, 0x3E]),
        (Opcode::In, &[Mnemonic::In], &[0xEC]),
        (Opcode::Out, &[Mnemonic::Out], &[0xE7]),
        (Opcode::Ins, &[Mnemonic::Insb, Mnemonic::Insw, Mnemonic::Insd], &[0x6C]),
        (Opcode::Outs, &[Mnemonic::Outsb, Mnemonic::Outsw, Mnemonic::Outsd], &[0x6F]),
        (Opcode::Int3, &[Mnemonic::Int3], &[0xCC]),
        (Opcode::Into, &[Mnemonic::Into], &[0xCE]),
        (Opcode::Int, &[Mnemonic::Int], &[0xCD]),
    ];

    fn processor(bits: u32, rip: u64) -> FakeCpu {
        let mut cpu =
            if bits == 64 { FakeCpu::new(EntryState::long_mode(rip, 0x1000)) } else { FakeCpu::flat32(rip as u32) };
        if bits == 16 {
            cpu.state.segments[SegmentRegister::Cs as usize].attributes = SegmentAttributes::CODE16;
        }
        cpu
    }

    /// Tables that map the first 2 MiB, and code at `at`.
    fn memory_with(at: u64, code: &[u8]) -> GuestMemory {
        let mut memory = GuestMemory::for_tests(0x10000);
        for (at, entry) in [(0x1000, 0x2003u64), (0x2000, 0x3003), (0x3000, 0x83)] {
            memory.write_number(Gpa::new(at), Width::Qword, entry).expect("inside");
        }
        memory.write(Gpa::new(at), code).expect("inside");
        memory
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1500))]

        #[test]
        fn lengths_are_those_of_a_whole_decoder(
            known in 0..KNOWN.len(), prefixes in prop::collection::vec(prop::sample::select(
                &[0x26u8, 0x2E, 0x36, 0x3E, 0x64, 0x65, 0x66, 0x67, 0xF2, 0xF3, 0x40, 0x48, 0x4F][..]), 0..4),
            tail in prop::array::uniform8(any::<u8>()), keep in any::<bool>(),
            bits in prop::sample::select(&[16u32, 32, 64][..]), at in prop::sample::select(&[0x8000u64, 0x8005, 0x8006, 0x8007, 0x8FFA, 0x8FFE, 0x8FFF][..]),
        ) {
            let (opcode, mnemonics, bytes) = KNOWN[known];
            let mut code: Vec<u8> = prefixes.iter().chain(bytes).chain(&tail).copied().collect();
            if !keep {
                // A wild byte in place of the opcode's last: mostly another instruction.
                code[prefixes.len() + bytes.len() - 1] = tail[7];
            }
            code.truncate(15);
            let memory = memory_with(at, &code);
            let cpu = processor(bits, at);
            let found = instruction_length(&cpu, &memory, opcode);
            prop_assert_eq!(next_instruction(&cpu, &memory, opcode), found.map(|length| at + length));
            let decoded = Decoder::with_ip(bits, &code, at, DecoderOptions::NONE).decode();
            if let Some(length) = found && !decoded.is_invalid() {
                prop_assert_eq!(length, decoded.len() as u64, "{:?} {:02x?}", opcode, code);
            }
            // A REX prefix before another prefix counts for nothing, and a decoder may refuse the rest.
            if mnemonics.contains(&decoded.mnemonic()) && (opcode != Opcode::Pause || prefixes.is_empty())
                && (decoded.mnemonic() != Mnemonic::Mov || matches!(bytes[1], 0x21 | 0x22) && keep) {
                prop_assert_eq!(found, Some(decoded.len() as u64), "{:?} {:02x?} {}", opcode, code, bits);
            }
        }
    }

    #[test]
    fn another_instruction_has_no_length() {
        for (opcode, ..) in KNOWN {
            let memory = memory_with(0x8000, &[0x0F, 0x0B, 0x90, 0x90]);
            assert_eq!(instruction_length(&processor(64, 0x8000), &memory, opcode), None, "{opcode:?}");
        }
        let memory = memory_with(0x8000, &[0x90]);
        assert_eq!(instruction_length(&processor(64, 0x8000), &memory, Opcode::Pause), None, "NOP is not PAUSE");
        let memory = memory_with(0x8000, &[0x0F, 0x01, 0x30]);
        assert_eq!(instruction_length(&processor(64, 0x8000), &memory, Opcode::Invlpg), None, "LMSW is not INVLPG");
    }

    #[test]
    fn code_that_is_not_mapped_or_ends_early_has_no_length() {
        let memory = memory_with(0xFFFF, &[0x0F]);
        assert_eq!(instruction_length(&processor(64, 0xFFFF), &memory, Opcode::Cpuid), None, "memory ends");
        assert_eq!(instruction_length(&processor(64, 1 << 30), &memory, Opcode::Cpuid), None, "not mapped");
        assert_eq!(instruction_length(&processor(32, 0x10_0000), &memory, Opcode::Hlt), None, "not memory");
    }

    #[test]
    fn code_of_segments_begins_at_their_base() {
        let mut cpu = processor(16, 0x10);
        cpu.state.segments[SegmentRegister::Cs as usize].base = 0x8000;
        let memory = memory_with(0x8010, &[0x66, 0x0F, 0xA2]);
        assert_eq!(instruction_length(&cpu, &memory, Opcode::Cpuid), Some(3));
    }
}
