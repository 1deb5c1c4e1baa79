//! Which operation an encoding is and how much memory it reaches: a table of the encodings that are emulated, much
//! shorter than the decoder's own tables of every encoding there is.

use super::operation::{Bits, Logic, Operation, Shift, StringOperation, Unary, VectorMove};
use crate::exit::Width;
use Family::One;
use iced_x86::Code;

/// The operations of successive encodings.
#[derive(Clone, Copy)]
enum Family {
    One(Operation),
    /// Group 1: eight operations, each with all its sizes.
    Arithmetic,
    /// Group 2: the same for shifts and rotates.
    Shift,
    /// All conditions.
    SetIf,
    /// All conditions, each with all its sizes.
    MoveIf,
    /// The width is that of the size.
    String(StringOperation),
    Push,
    Pop,
    Call,
    Jump,
    Return,
}

/// Bytes in memory: those of the first encoding, doubled with each of the next until all `count` have been.
#[derive(Clone, Copy)]
struct Sizes {
    first: u8,
    count: u8,
}

const BYTE_UP: Sizes = Sizes { first: 1, count: 4 };
const WORD_UP: Sizes = Sizes { first: 2, count: 3 };

const fn fixed(bytes: u8) -> Sizes {
    Sizes { first: bytes, count: 1 }
}

struct Rows {
    first: u16,
    last: u16,
    family: Family,
    sizes: Sizes,
}

const fn rows(first: Code, last: Code, family: Family, sizes: Sizes) -> Rows {
    Rows { first: first as u16, last: last as u16, family, sizes }
}

const fn one(code: Code, family: Family, sizes: Sizes) -> Rows {
    rows(code, code, family, sizes)
}

const ARITHMETIC: [Logic; 8] =
    [Logic::Add, Logic::Or, Logic::Adc, Logic::Sbb, Logic::And, Logic::Sub, Logic::Xor, Logic::Cmp];
const SHIFTS: [Shift; 8] =
    [Shift::Rol, Shift::Ror, Shift::Rcl, Shift::Rcr, Shift::Shl, Shift::Shr, Shift::Shl, Shift::Sar];

/// Returns what an encoding does, and the bytes of its operand in memory where it has one; a vector register's width
/// counts for vectors. `None` where `execute` does not do it.
pub(super) fn lookup(code: Code) -> Option<(Operation, u8)> {
    let code = code as u16;
    let after = TABLE.partition_point(|rows| rows.first <= code);
    let rows = TABLE.get(after.checked_sub(1)?).filter(|rows| code <= rows.last)?;
    let position = code - rows.first;
    let count = u16::from(rows.sizes.count);
    let bytes = rows.sizes.first << (position % count);
    let width = Width::from_bytes(bytes.into());
    let number = position / count;
    let operation = match rows.family {
        One(operation) => operation,
        Family::Arithmetic => Operation::Logic(*ARITHMETIC.get(usize::from(number))?),
        Family::Shift => Operation::Shift(*SHIFTS.get(usize::from(number))?),
        Family::SetIf => Operation::SetIf(number as u8),
        Family::MoveIf => Operation::MoveIf(number as u8),
        Family::String(operation) => Operation::String(operation, width?),
        Family::Push => Operation::Push(width?),
        Family::Pop => Operation::Pop(width?),
        Family::Call => Operation::Call(width?),
        Family::Jump => Operation::Jump(width?),
        Family::Return => Operation::Return(width?),
    };
    Some((operation, bytes))
}

/// Sorted, as the decoder numbers encodings.
const TABLE: &[Rows] = &[
    rows(Code::Add_rm8_r8, Code::Add_RAX_imm32, One(Operation::Logic(Logic::Add)), BYTE_UP),
    rows(Code::Or_rm8_r8, Code::Or_RAX_imm32, One(Operation::Logic(Logic::Or)), BYTE_UP),
    rows(Code::Adc_rm8_r8, Code::Adc_RAX_imm32, One(Operation::Logic(Logic::Adc)), BYTE_UP),
    rows(Code::Sbb_rm8_r8, Code::Sbb_RAX_imm32, One(Operation::Logic(Logic::Sbb)), BYTE_UP),
    rows(Code::And_rm8_r8, Code::And_RAX_imm32, One(Operation::Logic(Logic::And)), BYTE_UP),
    rows(Code::Sub_rm8_r8, Code::Sub_RAX_imm32, One(Operation::Logic(Logic::Sub)), BYTE_UP),
    rows(Code::Xor_rm8_r8, Code::Xor_RAX_imm32, One(Operation::Logic(Logic::Xor)), BYTE_UP),
    rows(Code::Cmp_rm8_r8, Code::Cmp_RAX_imm32, One(Operation::Logic(Logic::Cmp)), BYTE_UP),
    rows(Code::Inc_r16, Code::Inc_r32, One(Operation::Unary(Unary::Inc)), WORD_UP),
    rows(Code::Dec_r16, Code::Dec_r32, One(Operation::Unary(Unary::Dec)), WORD_UP),
    rows(Code::Push_r16, Code::Push_r64, Family::Push, WORD_UP),
    rows(Code::Pop_r16, Code::Pop_r64, Family::Pop, WORD_UP),
    one(Code::Movsxd_r16_rm16, One(Operation::MoveSignExtended), fixed(2)),
    rows(Code::Movsxd_r32_rm32, Code::Movsxd_r64_rm32, One(Operation::MoveSignExtended), fixed(4)),
    rows(Code::Push_imm16, Code::Pushq_imm32, Family::Push, WORD_UP),
    rows(Code::Imul_r16_rm16_imm16, Code::Imul_r64_rm64_imm32, One(Operation::MultiplyInto), WORD_UP),
    rows(Code::Pushw_imm8, Code::Pushq_imm8, Family::Push, WORD_UP),
    rows(Code::Imul_r16_rm16_imm8, Code::Imul_r64_rm64_imm8, One(Operation::MultiplyInto), WORD_UP),
    rows(Code::Insb_m8_DX, Code::Insd_m32_DX, Family::String(StringOperation::In), BYTE_UP),
    rows(Code::Outsb_DX_m8, Code::Outsd_DX_m32, Family::String(StringOperation::Out), BYTE_UP),
    rows(Code::Add_rm8_imm8, Code::Cmp_rm8_imm8, Family::Arithmetic, fixed(1)),
    rows(Code::Add_rm16_imm16, Code::Cmp_rm64_imm32, Family::Arithmetic, WORD_UP),
    rows(Code::Add_rm8_imm8_82, Code::Cmp_rm8_imm8_82, Family::Arithmetic, fixed(1)),
    rows(Code::Add_rm16_imm8, Code::Cmp_rm64_imm8, Family::Arithmetic, WORD_UP),
    rows(Code::Test_rm8_r8, Code::Test_rm64_r64, One(Operation::Logic(Logic::Test)), BYTE_UP),
    rows(Code::Xchg_rm8_r8, Code::Xchg_rm64_r64, One(Operation::Exchange), BYTE_UP),
    rows(Code::Mov_rm8_r8, Code::Mov_r64_rm64, One(Operation::Move), BYTE_UP),
    rows(Code::Mov_rm16_Sreg, Code::Mov_r64m16_Sreg, One(Operation::Move), fixed(2)),
    rows(Code::Mov_Sreg_rm16, Code::Mov_Sreg_r64m16, One(Operation::Move), fixed(2)),
    rows(Code::Pop_rm16, Code::Pop_rm64, Family::Pop, WORD_UP),
    rows(Code::Xchg_r16_AX, Code::Xchg_r64_RAX, One(Operation::Exchange), WORD_UP),
    rows(Code::Mov_AL_moffs8, Code::Mov_moffs64_RAX, One(Operation::Move), BYTE_UP),
    rows(Code::Movsb_m8_m8, Code::Movsq_m64_m64, Family::String(StringOperation::Move), BYTE_UP),
    rows(Code::Cmpsb_m8_m8, Code::Cmpsq_m64_m64, Family::String(StringOperation::Compare), BYTE_UP),
    rows(Code::Test_AL_imm8, Code::Test_RAX_imm32, One(Operation::Logic(Logic::Test)), BYTE_UP),
    rows(Code::Stosb_m8_AL, Code::Stosq_m64_RAX, Family::String(StringOperation::Store), BYTE_UP),
    rows(Code::Lodsb_AL_m8, Code::Lodsq_RAX_m64, Family::String(StringOperation::Load), BYTE_UP),
    rows(Code::Scasb_AL_m8, Code::Scasq_RAX_m64, Family::String(StringOperation::Scan), BYTE_UP),
    rows(Code::Mov_r8_imm8, Code::Mov_r64_imm64, One(Operation::Move), BYTE_UP),
    rows(Code::Rol_rm8_imm8, Code::Sar_rm8_imm8, Family::Shift, fixed(1)),
    rows(Code::Rol_rm16_imm8, Code::Sar_rm64_imm8, Family::Shift, WORD_UP),
    rows(Code::Retnw_imm16, Code::Retnq_imm16, Family::Return, WORD_UP),
    rows(Code::Retnw, Code::Retnq, Family::Return, WORD_UP),
    one(Code::Mov_rm8_imm8, One(Operation::Move), fixed(1)),
    rows(Code::Mov_rm16_imm16, Code::Mov_rm64_imm32, One(Operation::Move), WORD_UP),
    rows(Code::Rol_rm8_1, Code::Sar_rm8_1, Family::Shift, fixed(1)),
    rows(Code::Rol_rm16_1, Code::Sar_rm64_1, Family::Shift, WORD_UP),
    rows(Code::Rol_rm8_CL, Code::Sar_rm8_CL, Family::Shift, fixed(1)),
    rows(Code::Rol_rm16_CL, Code::Sar_rm64_CL, Family::Shift, WORD_UP),
    rows(Code::Call_rel16, Code::Call_rel32_64, Family::Call, WORD_UP),
    rows(Code::Test_rm8_imm8, Code::Test_rm8_imm8_F6r1, One(Operation::Logic(Logic::Test)), fixed(1)),
    one(Code::Not_rm8, One(Operation::Unary(Unary::Not)), fixed(1)),
    one(Code::Neg_rm8, One(Operation::Unary(Unary::Neg)), fixed(1)),
    one(Code::Mul_rm8, One(Operation::Multiply { signed: false }), fixed(1)),
    one(Code::Imul_rm8, One(Operation::Multiply { signed: true }), fixed(1)),
    one(Code::Div_rm8, One(Operation::Divide { signed: false }), fixed(1)),
    one(Code::Idiv_rm8, One(Operation::Divide { signed: true }), fixed(1)),
    rows(Code::Test_rm16_imm16, Code::Test_rm64_imm32_F7r1, One(Operation::Logic(Logic::Test)), WORD_UP),
    rows(Code::Not_rm16, Code::Not_rm64, One(Operation::Unary(Unary::Not)), WORD_UP),
    rows(Code::Neg_rm16, Code::Neg_rm64, One(Operation::Unary(Unary::Neg)), WORD_UP),
    rows(Code::Mul_rm16, Code::Mul_rm64, One(Operation::Multiply { signed: false }), WORD_UP),
    rows(Code::Imul_rm16, Code::Imul_rm64, One(Operation::Multiply { signed: true }), WORD_UP),
    rows(Code::Div_rm16, Code::Div_rm64, One(Operation::Divide { signed: false }), WORD_UP),
    rows(Code::Idiv_rm16, Code::Idiv_rm64, One(Operation::Divide { signed: true }), WORD_UP),
    one(Code::Inc_rm8, One(Operation::Unary(Unary::Inc)), fixed(1)),
    one(Code::Dec_rm8, One(Operation::Unary(Unary::Dec)), fixed(1)),
    rows(Code::Inc_rm16, Code::Inc_rm64, One(Operation::Unary(Unary::Inc)), WORD_UP),
    rows(Code::Dec_rm16, Code::Dec_rm64, One(Operation::Unary(Unary::Dec)), WORD_UP),
    rows(Code::Call_rm16, Code::Call_rm64, Family::Call, WORD_UP),
    rows(Code::Jmp_rm16, Code::Jmp_rm64, Family::Jump, WORD_UP),
    rows(Code::Push_rm16, Code::Push_rm64, Family::Push, WORD_UP),
    one(
        Code::Movups_xmm_xmmm128,
        One(Operation::Vector { operation: VectorMove::Whole { aligned: false }, vex: false }),
        fixed(0),
    ),
    one(
        Code::Movupd_xmm_xmmm128,
        One(Operation::Vector { operation: VectorMove::Whole { aligned: false }, vex: false }),
        fixed(0),
    ),
    one(
        Code::Movss_xmm_xmmm32,
        One(Operation::Vector { operation: VectorMove::Scalar(Width::Dword), vex: false }),
        fixed(0),
    ),
    one(
        Code::Movsd_xmm_xmmm64,
        One(Operation::Vector { operation: VectorMove::Scalar(Width::Qword), vex: false }),
        fixed(0),
    ),
    one(
        Code::Movups_xmmm128_xmm,
        One(Operation::Vector { operation: VectorMove::Whole { aligned: false }, vex: false }),
        fixed(0),
    ),
    one(
        Code::Movupd_xmmm128_xmm,
        One(Operation::Vector { operation: VectorMove::Whole { aligned: false }, vex: false }),
        fixed(0),
    ),
    one(
        Code::Movss_xmmm32_xmm,
        One(Operation::Vector { operation: VectorMove::Scalar(Width::Dword), vex: false }),
        fixed(0),
    ),
    one(
        Code::Movsd_xmmm64_xmm,
        One(Operation::Vector { operation: VectorMove::Scalar(Width::Qword), vex: false }),
        fixed(0),
    ),
    one(
        Code::Movlps_xmm_m64,
        One(Operation::Vector { operation: VectorMove::Half { high: false }, vex: false }),
        fixed(0),
    ),
    one(
        Code::Movlpd_xmm_m64,
        One(Operation::Vector { operation: VectorMove::Half { high: false }, vex: false }),
        fixed(0),
    ),
    one(
        Code::Movlps_m64_xmm,
        One(Operation::Vector { operation: VectorMove::Half { high: false }, vex: false }),
        fixed(0),
    ),
    one(
        Code::Movlpd_m64_xmm,
        One(Operation::Vector { operation: VectorMove::Half { high: false }, vex: false }),
        fixed(0),
    ),
    one(
        Code::Movhps_xmm_m64,
        One(Operation::Vector { operation: VectorMove::Half { high: true }, vex: false }),
        fixed(0),
    ),
    one(
        Code::Movhpd_xmm_m64,
        One(Operation::Vector { operation: VectorMove::Half { high: true }, vex: false }),
        fixed(0),
    ),
    one(
        Code::Movhps_m64_xmm,
        One(Operation::Vector { operation: VectorMove::Half { high: true }, vex: false }),
        fixed(0),
    ),
    one(
        Code::Movhpd_m64_xmm,
        One(Operation::Vector { operation: VectorMove::Half { high: true }, vex: false }),
        fixed(0),
    ),
    one(
        Code::Movaps_xmm_xmmm128,
        One(Operation::Vector { operation: VectorMove::Whole { aligned: true }, vex: false }),
        fixed(0),
    ),
    one(
        Code::Movapd_xmm_xmmm128,
        One(Operation::Vector { operation: VectorMove::Whole { aligned: true }, vex: false }),
        fixed(0),
    ),
    one(
        Code::Movaps_xmmm128_xmm,
        One(Operation::Vector { operation: VectorMove::Whole { aligned: true }, vex: false }),
        fixed(0),
    ),
    one(
        Code::Movapd_xmmm128_xmm,
        One(Operation::Vector { operation: VectorMove::Whole { aligned: true }, vex: false }),
        fixed(0),
    ),
    one(
        Code::Movntps_m128_xmm,
        One(Operation::Vector { operation: VectorMove::Whole { aligned: true }, vex: false }),
        fixed(0),
    ),
    one(
        Code::Movntpd_m128_xmm,
        One(Operation::Vector { operation: VectorMove::Whole { aligned: true }, vex: false }),
        fixed(0),
    ),
    rows(Code::Cmovo_r16_rm16, Code::Cmovg_r64_rm64, Family::MoveIf, WORD_UP),
    one(
        Code::Movd_xmm_rm32,
        One(Operation::Vector { operation: VectorMove::Scalar(Width::Dword), vex: false }),
        fixed(0),
    ),
    one(
        Code::Movq_xmm_rm64,
        One(Operation::Vector { operation: VectorMove::Scalar(Width::Qword), vex: false }),
        fixed(0),
    ),
    one(
        Code::Movdqa_xmm_xmmm128,
        One(Operation::Vector { operation: VectorMove::Whole { aligned: true }, vex: false }),
        fixed(0),
    ),
    one(
        Code::Movdqu_xmm_xmmm128,
        One(Operation::Vector { operation: VectorMove::Whole { aligned: false }, vex: false }),
        fixed(0),
    ),
    one(
        Code::Movd_rm32_xmm,
        One(Operation::Vector { operation: VectorMove::Scalar(Width::Dword), vex: false }),
        fixed(0),
    ),
    one(
        Code::Movq_rm64_xmm,
        One(Operation::Vector { operation: VectorMove::Scalar(Width::Qword), vex: false }),
        fixed(0),
    ),
    one(
        Code::Movq_xmm_xmmm64,
        One(Operation::Vector { operation: VectorMove::Scalar(Width::Qword), vex: false }),
        fixed(0),
    ),
    one(
        Code::Movdqa_xmmm128_xmm,
        One(Operation::Vector { operation: VectorMove::Whole { aligned: true }, vex: false }),
        fixed(0),
    ),
    one(
        Code::Movdqu_xmmm128_xmm,
        One(Operation::Vector { operation: VectorMove::Whole { aligned: false }, vex: false }),
        fixed(0),
    ),
    rows(Code::Seto_rm8, Code::Setg_rm8, Family::SetIf, fixed(1)),
    rows(Code::Bt_rm16_r16, Code::Bt_rm64_r64, One(Operation::Bits(Bits::Test)), WORD_UP),
    rows(Code::Shld_rm16_r16_imm8, Code::Shld_rm64_r64_CL, One(Operation::DoubleShift { left: true }), WORD_UP),
    rows(Code::Bts_rm16_r16, Code::Bts_rm64_r64, One(Operation::Bits(Bits::Set)), WORD_UP),
    rows(Code::Shrd_rm16_r16_imm8, Code::Shrd_rm64_r64_CL, One(Operation::DoubleShift { left: false }), WORD_UP),
    rows(Code::Imul_r16_rm16, Code::Imul_r64_rm64, One(Operation::MultiplyInto), WORD_UP),
    rows(Code::Cmpxchg_rm8_r8, Code::Cmpxchg_rm64_r64, One(Operation::CompareExchange), BYTE_UP),
    rows(Code::Btr_rm16_r16, Code::Btr_rm64_r64, One(Operation::Bits(Bits::Reset)), WORD_UP),
    rows(Code::Movzx_r16_rm8, Code::Movzx_r64_rm8, One(Operation::MoveZeroExtended), fixed(1)),
    rows(Code::Movzx_r16_rm16, Code::Movzx_r64_rm16, One(Operation::MoveZeroExtended), fixed(2)),
    rows(Code::Bt_rm16_imm8, Code::Bt_rm64_imm8, One(Operation::Bits(Bits::Test)), WORD_UP),
    rows(Code::Bts_rm16_imm8, Code::Bts_rm64_imm8, One(Operation::Bits(Bits::Set)), WORD_UP),
    rows(Code::Btr_rm16_imm8, Code::Btr_rm64_imm8, One(Operation::Bits(Bits::Reset)), WORD_UP),
    rows(Code::Btc_rm16_imm8, Code::Btc_rm64_imm8, One(Operation::Bits(Bits::Complement)), WORD_UP),
    rows(Code::Btc_rm16_r16, Code::Btc_rm64_r64, One(Operation::Bits(Bits::Complement)), WORD_UP),
    rows(Code::Movsx_r16_rm8, Code::Movsx_r64_rm8, One(Operation::MoveSignExtended), fixed(1)),
    rows(Code::Movsx_r16_rm16, Code::Movsx_r64_rm16, One(Operation::MoveSignExtended), fixed(2)),
    rows(Code::Xadd_rm8_r8, Code::Xadd_rm64_r64, One(Operation::ExchangeAdd), BYTE_UP),
    one(Code::Movnti_m32_r32, One(Operation::Move), fixed(4)),
    one(Code::Movnti_m64_r64, One(Operation::Move), fixed(8)),
    one(Code::Cmpxchg8b_m64, One(Operation::CompareExchangePair), fixed(8)),
    one(Code::Cmpxchg16b_m128, One(Operation::CompareExchangePair), fixed(16)),
    one(
        Code::Movq_xmmm64_xmm,
        One(Operation::Vector { operation: VectorMove::Scalar(Width::Qword), vex: false }),
        fixed(0),
    ),
    one(
        Code::Movntdq_m128_xmm,
        One(Operation::Vector { operation: VectorMove::Whole { aligned: true }, vex: false }),
        fixed(0),
    ),
    one(
        Code::Lddqu_xmm_m128,
        One(Operation::Vector { operation: VectorMove::Whole { aligned: false }, vex: false }),
        fixed(0),
    ),
    one(
        Code::Movntdqa_xmm_m128,
        One(Operation::Vector { operation: VectorMove::Whole { aligned: true }, vex: false }),
        fixed(0),
    ),
    rows(Code::Movbe_r16_m16, Code::Movbe_r64_m64, One(Operation::MoveSwapped), WORD_UP),
    rows(Code::Movbe_m16_r16, Code::Movbe_m64_r64, One(Operation::MoveSwapped), WORD_UP),
];

#[cfg(test)]
mod tests;
