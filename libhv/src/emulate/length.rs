//! The length of an instruction that exited, for processors that do not report it (SVM without NRIP save, APM Vol. 2
//! 15.7.1): a decoder for the few instructions that exits speak of, much shorter than a whole one.

use super::translate::locate;
use crate::address::{Gpa, Gva, PAGE_SIZE};
use crate::exit::Width;
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
#[inline]
pub fn instruction_length(cpu: &impl GuestState, memory: &GuestMemory, expected: Opcode) -> Option<u64> {
    let bits = cpu.code_bits();
    let address = code_address(cpu, bits);
    let gpa = locate(cpu, memory, address)?;
    let pattern = expected.pattern();
    if matches!(pattern.tail, Tail::Nothing) && expected != Opcode::Pause {
        let offset = gpa.as_u64() % 8;
        let word = memory.read_number(Gpa::new(gpa.as_u64() - offset), Width::Qword).ok()? >> (8 * offset);
        if offset + u64::from(pattern.length) <= 8 && word as u32 & pattern.mask == pattern.bytes {
            return Some(pattern.length.into());
        }
    }
    let (bytes, count) = fetch(cpu, memory, address, gpa);
    length_of(bytes.get(..count)?, bits, expected)
}

/// Returns the linear address of RIP in code of `bits` bits.
#[inline]
pub(super) fn code_address(cpu: &impl GuestState, bits: u32) -> Gva {
    if bits == 64 {
        Gva::new(cpu.rip())
    } else {
        Gva::new(cpu.segment(SegmentRegister::Cs).base.wrapping_add(cpu.rip()) & 0xFFFF_FFFF)
    }
}

/// Reads up to 15 bytes of code at `address`, which lies at `gpa`, and says how many could be read.
#[inline(never)]
pub(super) fn fetch(cpu: &impl GuestState, memory: &GuestMemory, address: Gva, gpa: Gpa) -> ([u8; 15], usize) {
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
