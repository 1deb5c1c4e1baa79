//! From bytes to an operation with its operands: `iced-x86` reads the encoding, once per instruction, and what is kept
//! is only what `execute` needs.

use super::opcodes::lookup;
use super::operation::{Operation, VectorMove};
use super::vex::Twin;
use crate::exit::Width;
use crate::registers::SegmentRegister;
use iced_x86::{Decoder, DecoderOptions, Instruction, OpKind, Register};

/// An operand.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Operand {
    /// No operand.
    None,
    /// A general-purpose register, or bits 15:8 of one of the first four.
    Register {
        /// Its number, 0 to 15.
        number: u8,
        /// How much of it.
        width: Width,
        /// AH, CH, DH or BH: `number` is that of RAX, RCX, RDX or RBX.
        high: bool,
    },
    /// The memory operand.
    Memory,
    /// The immediate.
    Immediate,
    /// XMM or YMM register.
    Vector {
        /// Its number, 0 to 15.
        number: u8,
        /// 16 or 32.
        bytes: u8,
    },
    /// A segment register's selector.
    Segment(SegmentRegister),
}

/// The memory operand: segment:\[base + index * scale + displacement\].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct MemoryOperand {
    pub(super) segment: SegmentRegister,
    /// A register's number, or [`NO_REGISTER`].
    pub(super) base: u8,
    /// A register's number, or [`NO_REGISTER`].
    pub(super) index: u8,
    /// 0 to 3: the index is shifted by it.
    pub(super) scale: u8,
    /// Signed; for RIP-relative operands the sum with the next RIP.
    pub(super) displacement: u64,
    /// Bytes that the instruction reads or writes there; 0 where the operation knows better.
    pub(super) bytes: u8,
}

/// In place of a register's number: there is none.
pub(super) const NO_REGISTER: u8 = 0xFF;

/// A repeat prefix.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Repeat {
    /// None
    Once,
    /// REP or REPE
    WhileEqual,
    /// REPNE
    WhileNotEqual,
}

/// An instruction as `execute` needs it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Decoded {
    pub(super) operation: Operation,
    pub(super) operands: [Operand; 3],
    pub(super) memory: MemoryOperand,
    pub(super) immediate: u64,
    /// Bytes, 1 to 15.
    pub(super) length: u8,
    /// The width of addresses, for string instructions.
    pub(super) address: Width,
    pub(super) repeat: Repeat,
    pub(super) lock: bool,
    /// The memory operand is all that the instruction reads or writes in memory, and lies where the operand says.
    pub(super) one_place: bool,
}

impl Decoded {
    /// Returns whether it goes elsewhere than to the next instruction.
    #[inline]
    pub(super) const fn is_branch(&self) -> bool {
        matches!(self.operation, Operation::Call(_) | Operation::Jump(_) | Operation::Return(_))
    }
}

/// Decodes the instruction that `bytes` begin with, in code of `bits` bits (16, 32 or 64) at `rip`. `None` where they
/// are no whole instruction, or one that `execute` does not know.
pub(super) fn decode(bytes: &[u8], bits: u32, rip: u64) -> Option<Decoded> {
    let Some(twin) = Twin::of(bytes, bits) else { return decode_legacy(bytes, bits, rip) };
    // Addresses relative to RIP count from the end of the instruction.
    let mut decoded = decode_legacy(twin.bytes(), bits, rip.wrapping_add_signed(twin.longer.into()))?;
    decoded.length = decoded.length.checked_add_signed(twin.longer)?;
    let Operation::Vector { operation, vex } = &mut decoded.operation else { return None };
    *vex = true;
    if let (VectorMove::Half { .. }, [register @ Operand::Vector { .. }, Operand::Memory, _]) =
        (*operation, decoded.operands)
    {
        decoded.operands = [register, Operand::Vector { number: twin.source, bytes: 16 }, Operand::Memory];
    }
    if twin.wide {
        for operand in &mut decoded.operands {
            if let Operand::Vector { bytes, .. } = operand {
                *bytes = 32;
            }
        }
    }
    Some(decoded)
}

/// [`decode`] for what has no VEX prefix.
fn decode_legacy(bytes: &[u8], bits: u32, rip: u64) -> Option<Decoded> {
    let mut decoder = Decoder::try_with_ip(bits, bytes, rip, DecoderOptions::NONE).ok()?;
    let instruction = decoder.decode();
    if instruction.is_invalid() {
        return None;
    }
    let (operation, bytes) = lookup(instruction.code())?;
    let mut operands = [Operand::None; 3];
    let mut immediate = 0;
    for (position, operand) in operands.iter_mut().enumerate() {
        let position = position as u32;
        *operand = match instruction.op_kind(position) {
            OpKind::Register if instruction.op_register(position) == Register::None => Operand::None,
            OpKind::Register => register_operand(instruction.op_register(position))?,
            OpKind::Memory
            | OpKind::MemorySegSI
            | OpKind::MemorySegESI
            | OpKind::MemorySegRSI
            | OpKind::MemoryESDI
            | OpKind::MemoryESEDI
            | OpKind::MemoryESRDI => Operand::Memory,
            OpKind::Immediate8
            | OpKind::Immediate8_2nd
            | OpKind::Immediate16
            | OpKind::Immediate32
            | OpKind::Immediate64
            | OpKind::Immediate8to16
            | OpKind::Immediate8to32
            | OpKind::Immediate8to64
            | OpKind::Immediate32to64 => {
                immediate = instruction.immediate(position);
                Operand::Immediate
            }
            OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64 => {
                immediate = instruction.near_branch_target();
                Operand::Immediate
            }
            _ => return None,
        };
    }
    Some(Decoded {
        operation,
        operands,
        memory: memory_operand(&instruction, bits, bytes),
        immediate,
        length: instruction.len() as u8,
        address: address_width(&instruction),
        repeat: if instruction.has_repne_prefix() {
            Repeat::WhileNotEqual
        } else if instruction.has_rep_prefix() {
            Repeat::WhileEqual
        } else {
            Repeat::Once
        },
        lock: instruction.has_lock_prefix(),
        one_place: !matches!(
            operation,
            Operation::String(..) | Operation::Push(_) | Operation::Pop(_) | Operation::Call(_) | Operation::Bits(_)
        ),
    })
}

/// Returns the general-purpose register's number, width, and whether it is a high byte.
fn general(register: Register) -> Option<(u8, Width, bool)> {
    let within = |first: Register| register as u8 - first as u8;
    Some(match register as u32 {
        number if number < Register::AL as u32 => return None,
        number if number < Register::AH as u32 => (within(Register::AL), Width::Byte, false),
        number if number < Register::SPL as u32 => (within(Register::AH), Width::Byte, true),
        number if number < Register::AX as u32 => (within(Register::AH), Width::Byte, false),
        number if number < Register::EAX as u32 => (within(Register::AX), Width::Word, false),
        number if number < Register::RAX as u32 => (within(Register::EAX), Width::Dword, false),
        number if number < Register::EIP as u32 => (within(Register::RAX), Width::Qword, false),
        _ => return None,
    })
}

fn register_operand(register: Register) -> Option<Operand> {
    if let Some((number, width, high)) = general(register) {
        return Some(Operand::Register { number, width, high });
    }
    if let Some(segment) = segment(register) {
        return Some(Operand::Segment(segment));
    }
    let number = register as u32;
    let offset = number.wrapping_sub(Register::XMM0 as u32);
    (offset < 16).then_some(Operand::Vector { number: offset as u8, bytes: 16 })
}

fn segment(register: Register) -> Option<SegmentRegister> {
    Some(match register {
        Register::ES => SegmentRegister::Es,
        Register::CS => SegmentRegister::Cs,
        Register::SS => SegmentRegister::Ss,
        Register::DS => SegmentRegister::Ds,
        Register::FS => SegmentRegister::Fs,
        Register::GS => SegmentRegister::Gs,
        _ => return None,
    })
}

fn memory_operand(instruction: &Instruction, bits: u32, bytes: u8) -> MemoryOperand {
    let number = |register| general(register).map_or(NO_REGISTER, |(number, ..)| number);
    let (base, index) = (instruction.memory_base(), instruction.memory_index());
    let default = match general(base) {
        Some((4 | 5, ..)) => SegmentRegister::Ss,
        _ => SegmentRegister::Ds,
    };
    let chosen = segment(instruction.segment_prefix())
        .filter(|segment| bits != 64 || matches!(segment, SegmentRegister::Fs | SegmentRegister::Gs));
    MemoryOperand {
        segment: chosen.unwrap_or(default),
        base: number(base),
        index: number(index),
        scale: instruction.memory_index_scale().trailing_zeros() as u8,
        displacement: instruction.memory_displacement64(),
        bytes,
    }
}

fn address_width(instruction: &Instruction) -> Width {
    for kind in [0, 1].map(|position| instruction.op_kind(position)) {
        match kind {
            OpKind::MemorySegSI | OpKind::MemoryESDI => return Width::Word,
            OpKind::MemorySegESI | OpKind::MemoryESEDI => return Width::Dword,
            OpKind::MemorySegRSI | OpKind::MemoryESRDI => return Width::Qword,
            OpKind::Memory => {
                let register = match instruction.memory_base() {
                    Register::None => instruction.memory_index(),
                    base => base,
                };
                if let Some((_, width, _)) = general(register) {
                    return width;
                }
                // Without a register: the width of the displacement, or of EIP and RIP, which are added already.
                return match (instruction.memory_displ_size(), register) {
                    (_, Register::EIP) => Width::Dword,
                    (2, _) => Width::Word,
                    (4, _) => Width::Dword,
                    _ => Width::Qword,
                };
            }
            _ => {}
        }
    }
    Width::Qword
}
