//! From bytes to an operation with its operands: `iced-x86` reads the encoding, once per instruction, and what is kept
//! is only what `execute` needs.

use super::operation::{Bits, Shift};
use super::operation::{Logic, Operation, StringOperation, Unary, VectorMove};
use super::vex::Twin;
use crate::exit::Width;
use crate::registers::SegmentRegister;
use iced_x86::{Code, Decoder, DecoderOptions, Instruction, MemorySize, Mnemonic, OpKind, Register};

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
    let operation = operation(&instruction)?;
    let mut operands = [Operand::None; 3];
    let mut immediate = 0;
    for (position, operand) in operands.iter_mut().enumerate().take(instruction.op_count() as usize) {
        let position = position as u32;
        *operand = match instruction.op_kind(position) {
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
        memory: memory_operand(&instruction, bits),
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

fn memory_operand(instruction: &Instruction, bits: u32) -> MemoryOperand {
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
        bytes: match instruction.memory_size() {
            MemorySize::UInt8 | MemorySize::Int8 => 1,
            MemorySize::UInt16 | MemorySize::Int16 | MemorySize::WordOffset => 2,
            MemorySize::UInt32 | MemorySize::Int32 | MemorySize::DwordOffset => 4,
            MemorySize::UInt64 | MemorySize::Int64 | MemorySize::QwordOffset => 8,
            MemorySize::UInt128 => 16,
            _ => 0,
        },
    }
}

fn address_width(instruction: &Instruction) -> Width {
    let kinds = [0, 1].into_iter().take(instruction.op_count() as usize).map(|position| instruction.op_kind(position));
    for kind in kinds {
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

/// Returns what the instruction does; `None` where `execute` does not do it.
fn operation(instruction: &Instruction) -> Option<Operation> {
    let code = instruction.code();
    if let Some(condition) = numbered(code, Code::Seto_rm8, Code::Setg_rm8) {
        return Some(Operation::SetIf(condition));
    }
    if let Some(position) = numbered(code, Code::Cmovo_r16_rm16, Code::Cmovg_r64_rm64) {
        return Some(Operation::MoveIf(position / 3));
    }
    let far = matches!(
        code,
        Code::Call_m1616 | Code::Call_m1632 | Code::Call_m1664 | Code::Jmp_m1616 | Code::Jmp_m1632 | Code::Jmp_m1664
    );
    if far {
        return None;
    }
    Some(match instruction.mnemonic() {
        Mnemonic::Mov | Mnemonic::Movnti => Operation::Move,
        Mnemonic::Movzx => Operation::MoveZeroExtended,
        Mnemonic::Movsx | Mnemonic::Movsxd => Operation::MoveSignExtended,
        Mnemonic::Movbe => Operation::MoveSwapped,
        Mnemonic::Xchg => Operation::Exchange,
        Mnemonic::Add => Operation::Logic(Logic::Add),
        Mnemonic::Or => Operation::Logic(Logic::Or),
        Mnemonic::Adc => Operation::Logic(Logic::Adc),
        Mnemonic::Sbb => Operation::Logic(Logic::Sbb),
        Mnemonic::And => Operation::Logic(Logic::And),
        Mnemonic::Sub => Operation::Logic(Logic::Sub),
        Mnemonic::Xor => Operation::Logic(Logic::Xor),
        Mnemonic::Cmp => Operation::Logic(Logic::Cmp),
        Mnemonic::Test => Operation::Logic(Logic::Test),
        Mnemonic::Inc => Operation::Unary(Unary::Inc),
        Mnemonic::Dec => Operation::Unary(Unary::Dec),
        Mnemonic::Neg => Operation::Unary(Unary::Neg),
        Mnemonic::Not => Operation::Unary(Unary::Not),
        Mnemonic::Bt => Operation::Bits(Bits::Test),
        Mnemonic::Bts => Operation::Bits(Bits::Set),
        Mnemonic::Btr => Operation::Bits(Bits::Reset),
        Mnemonic::Btc => Operation::Bits(Bits::Complement),
        Mnemonic::Rol => Operation::Shift(Shift::Rol),
        Mnemonic::Ror => Operation::Shift(Shift::Ror),
        Mnemonic::Rcl => Operation::Shift(Shift::Rcl),
        Mnemonic::Rcr => Operation::Shift(Shift::Rcr),
        Mnemonic::Shl | Mnemonic::Sal => Operation::Shift(Shift::Shl),
        Mnemonic::Shr => Operation::Shift(Shift::Shr),
        Mnemonic::Sar => Operation::Shift(Shift::Sar),
        Mnemonic::Shld => Operation::DoubleShift { left: true },
        Mnemonic::Shrd => Operation::DoubleShift { left: false },
        Mnemonic::Mul => Operation::Multiply { signed: false },
        Mnemonic::Imul if instruction.op_count() == 1 => Operation::Multiply { signed: true },
        Mnemonic::Imul => Operation::MultiplyInto,
        Mnemonic::Div => Operation::Divide { signed: false },
        Mnemonic::Idiv => Operation::Divide { signed: true },
        Mnemonic::Cmpxchg => Operation::CompareExchange,
        Mnemonic::Cmpxchg8b | Mnemonic::Cmpxchg16b => Operation::CompareExchangePair,
        Mnemonic::Xadd => Operation::ExchangeAdd,
        Mnemonic::Push => Operation::Push(stack_width(instruction)?),
        Mnemonic::Pop => Operation::Pop(stack_width(instruction)?),
        Mnemonic::Call => Operation::Call(stack_width(instruction)?),
        Mnemonic::Jmp => Operation::Jump(stack_width(instruction)?),
        Mnemonic::Ret => Operation::Return(stack_width(instruction)?),
        _ => return string_operation(code).or_else(|| vector_operation(instruction.mnemonic())),
    })
}

/// Returns the position of `code` from `first` on, if it is not beyond `last`.
fn numbered(code: Code, first: Code, last: Code) -> Option<u8> {
    let position = (code as u32).wrapping_sub(first as u32);
    (position <= last as u32 - first as u32).then_some(position as u8)
}

/// Returns the operand size of an instruction that uses the stack or jumps through an operand.
fn stack_width(instruction: &Instruction) -> Option<Width> {
    if let Some((_, width, _)) = general(instruction.op0_register()) {
        return Some(width);
    }
    Some(match instruction.code() {
        Code::Push_imm16 | Code::Pushw_imm8 | Code::Push_rm16 | Code::Pop_rm16 => Width::Word,
        Code::Pushd_imm32 | Code::Pushd_imm8 | Code::Push_rm32 | Code::Pop_rm32 => Width::Dword,
        Code::Pushq_imm32 | Code::Pushq_imm8 | Code::Push_rm64 | Code::Pop_rm64 => Width::Qword,
        Code::Call_rel16 | Code::Call_rm16 | Code::Jmp_rm16 | Code::Retnw | Code::Retnw_imm16 => Width::Word,
        Code::Call_rel32_32 | Code::Call_rm32 | Code::Jmp_rm32 | Code::Retnd | Code::Retnd_imm16 => Width::Dword,
        Code::Call_rel32_64 | Code::Call_rm64 | Code::Jmp_rm64 | Code::Retnq | Code::Retnq_imm16 => Width::Qword,
        _ => return None,
    })
}

fn string_operation(code: Code) -> Option<Operation> {
    let (operation, width) = match code {
        Code::Movsb_m8_m8 => (StringOperation::Move, Width::Byte),
        Code::Movsw_m16_m16 => (StringOperation::Move, Width::Word),
        Code::Movsd_m32_m32 => (StringOperation::Move, Width::Dword),
        Code::Movsq_m64_m64 => (StringOperation::Move, Width::Qword),
        Code::Stosb_m8_AL => (StringOperation::Store, Width::Byte),
        Code::Stosw_m16_AX => (StringOperation::Store, Width::Word),
        Code::Stosd_m32_EAX => (StringOperation::Store, Width::Dword),
        Code::Stosq_m64_RAX => (StringOperation::Store, Width::Qword),
        Code::Lodsb_AL_m8 => (StringOperation::Load, Width::Byte),
        Code::Lodsw_AX_m16 => (StringOperation::Load, Width::Word),
        Code::Lodsd_EAX_m32 => (StringOperation::Load, Width::Dword),
        Code::Lodsq_RAX_m64 => (StringOperation::Load, Width::Qword),
        Code::Cmpsb_m8_m8 => (StringOperation::Compare, Width::Byte),
        Code::Cmpsw_m16_m16 => (StringOperation::Compare, Width::Word),
        Code::Cmpsd_m32_m32 => (StringOperation::Compare, Width::Dword),
        Code::Cmpsq_m64_m64 => (StringOperation::Compare, Width::Qword),
        Code::Scasb_AL_m8 => (StringOperation::Scan, Width::Byte),
        Code::Scasw_AX_m16 => (StringOperation::Scan, Width::Word),
        Code::Scasd_EAX_m32 => (StringOperation::Scan, Width::Dword),
        Code::Scasq_RAX_m64 => (StringOperation::Scan, Width::Qword),
        Code::Insb_m8_DX => (StringOperation::In, Width::Byte),
        Code::Insw_m16_DX => (StringOperation::In, Width::Word),
        Code::Insd_m32_DX => (StringOperation::In, Width::Dword),
        Code::Outsb_DX_m8 => (StringOperation::Out, Width::Byte),
        Code::Outsw_DX_m16 => (StringOperation::Out, Width::Word),
        Code::Outsd_DX_m32 => (StringOperation::Out, Width::Dword),
        _ => return None,
    };
    Some(Operation::String(operation, width))
}

/// Returns the move that an SSE load or store is.
fn vector_operation(mnemonic: Mnemonic) -> Option<Operation> {
    let operation = match mnemonic {
        Mnemonic::Movaps
        | Mnemonic::Movapd
        | Mnemonic::Movdqa
        | Mnemonic::Movntps
        | Mnemonic::Movntpd
        | Mnemonic::Movntdq
        | Mnemonic::Movntdqa => VectorMove::Whole { aligned: true },
        Mnemonic::Movups | Mnemonic::Movupd | Mnemonic::Movdqu | Mnemonic::Lddqu => {
            VectorMove::Whole { aligned: false }
        }
        Mnemonic::Movd | Mnemonic::Movss => VectorMove::Scalar(Width::Dword),
        Mnemonic::Movq | Mnemonic::Movsd => VectorMove::Scalar(Width::Qword),
        Mnemonic::Movlps | Mnemonic::Movlpd => VectorMove::Half { high: false },
        Mnemonic::Movhps | Mnemonic::Movhpd => VectorMove::Half { high: true },
        _ => return None,
    };
    Some(Operation::Vector { operation, vex: false })
}
