//! The table against what the decoder itself says of every encoding: its mnemonic and the size of its operand.

use super::*;
use iced_x86::{Instruction, MemorySize, Mnemonic};

/// Returns what an encoding does, by its mnemonic.
fn expected(code: Code) -> Option<Operation> {
    if let Some(condition) = numbered(code, Code::Seto_rm8, Code::Setg_rm8) {
        return Some(Operation::SetIf(condition));
    }
    if let Some(position) = numbered(code, Code::Cmovo_r16_rm16, Code::Cmovg_r64_rm64) {
        return Some(Operation::MoveIf(position / 3));
    }
    // Moves of registers that `decode` does not know.
    let foreign = numbered(code, Code::Mov_r32_cr, Code::Mov_tr_r32).is_some()
        || matches!(
            code,
            Code::Movd_mm_rm32
                | Code::Movq_mm_rm64
                | Code::Movq_mm_mmm64
                | Code::Movd_rm32_mm
                | Code::Movq_rm64_mm
                | Code::Movq_mmm64_mm
        );
    if foreign {
        return None;
    }
    let mut instruction = Instruction::new();
    instruction.set_code(code);
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
        Mnemonic::Push => Operation::Push(stack_width(code)?),
        Mnemonic::Pop => Operation::Pop(stack_width(code)?),
        Mnemonic::Call => Operation::Call(stack_width(code)?),
        Mnemonic::Jmp => Operation::Jump(stack_width(code)?),
        Mnemonic::Ret => Operation::Return(stack_width(code)?),
        _ => return string_operation(code).or_else(|| vector_operation(instruction.mnemonic())),
    })
}

fn numbered(code: Code, first: Code, last: Code) -> Option<u8> {
    let position = (code as u32).wrapping_sub(first as u32);
    (position <= last as u32 - first as u32).then_some(position as u8)
}

fn stack_width(code: Code) -> Option<Width> {
    Some(match code {
        Code::Push_imm16 | Code::Pushw_imm8 | Code::Push_rm16 | Code::Pop_rm16 | Code::Push_r16 | Code::Pop_r16 => {
            Width::Word
        }
        Code::Pushd_imm32 | Code::Pushd_imm8 | Code::Push_rm32 | Code::Pop_rm32 | Code::Push_r32 | Code::Pop_r32 => {
            Width::Dword
        }
        Code::Pushq_imm32 | Code::Pushq_imm8 | Code::Push_rm64 | Code::Pop_rm64 | Code::Push_r64 | Code::Pop_r64 => {
            Width::Qword
        }
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

/// Returns the bytes that an encoding reaches, where the decoder knows.
fn expected_bytes(code: Code) -> Option<u8> {
    let mut instruction = Instruction::new();
    instruction.set_code(code);
    Some(match instruction.memory_size() {
        MemorySize::UInt8 | MemorySize::Int8 => 1,
        MemorySize::UInt16 | MemorySize::Int16 | MemorySize::WordOffset => 2,
        MemorySize::UInt32 | MemorySize::Int32 | MemorySize::DwordOffset => 4,
        MemorySize::UInt64 | MemorySize::Int64 | MemorySize::QwordOffset => 8,
        MemorySize::UInt128 => 16,
        _ => return None,
    })
}

#[test]
fn every_encoding_is_what_the_decoder_calls_it() {
    // Encodings of early processors only, which the decoder gives when it is asked to.
    let obsolete = |code: &Code| numbered(*code, Code::Cmpxchg486_rm8_r8, Code::Cmpxchg486_rm32_r32).is_some();
    for code in Code::values().filter(|code| !obsolete(code)) {
        let found = lookup(code);
        assert_eq!(found.map(|(operation, _)| operation), expected(code), "{code:?}");
        if let (Some((operation, bytes)), Some(expected)) = (found, expected_bytes(code))
            && !matches!(operation, Operation::Vector { .. })
        {
            assert_eq!(bytes, expected, "{code:?}");
        }
    }
}

#[test]
fn the_table_is_sorted() {
    assert!(TABLE.windows(2).all(|pair| pair[0].last < pair[1].first));
    assert!(TABLE.iter().all(|rows| rows.first <= rows.last));
}
