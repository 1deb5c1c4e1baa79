//! The operations that `execute` carries out, in fewer words than the instruction set has.

use crate::exit::Width;

/// What an instruction does with its operands; the first is the destination.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Operation {
    /// MOV, MOVNTI
    Move,
    /// MOVZX
    MoveZeroExtended,
    /// MOVSX, MOVSXD
    MoveSignExtended,
    /// MOVBE
    MoveSwapped,
    /// CMOVcc with the condition's number (SDM Vol. 1 App. B).
    MoveIf(u8),
    /// SETcc with the condition's number.
    SetIf(u8),
    /// XCHG
    Exchange,
    /// XADD
    ExchangeAdd,
    /// CMPXCHG
    CompareExchange,
    /// CMPXCHG8B, CMPXCHG16B
    CompareExchangePair,
    /// Two operands in, flags and mostly a result out.
    Logic(Logic),
    /// One operand in and out.
    Unary(Unary),
    /// BT, BTS, BTR, BTC
    Bits(Bits),
    /// Shifts and rotates.
    Shift(Shift),
    /// SHLD, SHRD
    DoubleShift {
        /// SHLD
        left: bool,
    },
    /// MUL, and IMUL with one operand.
    Multiply {
        /// IMUL
        signed: bool,
    },
    /// IMUL with two or three operands.
    MultiplyInto,
    /// DIV, IDIV
    Divide {
        /// IDIV
        signed: bool,
    },
    /// A string instruction with the width of its elements.
    String(StringOperation, Width),
    /// PUSH with its operand size, as below.
    Push(Width),
    /// POP
    Pop(Width),
    /// CALL, near.
    Call(Width),
    /// JMP, near and indirect.
    Jump(Width),
    /// RET, near.
    Return(Width),
    /// A load or store of a vector register.
    Vector {
        /// Which part of the register.
        operation: VectorMove,
        /// The encoding is VEX: a load clears the rest of the register.
        vex: bool,
    },
}

/// Operations with two sources.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Logic {
    Add,
    Or,
    Adc,
    Sbb,
    And,
    Sub,
    Xor,
    Cmp,
    Test,
}

/// Operations with one source.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Unary {
    Inc,
    Dec,
    Neg,
    Not,
}

/// What happens to the bit that was tested.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Bits {
    Test,
    Set,
    Reset,
    Complement,
}

/// Shifts and rotates by their mnemonics.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Shift {
    Rol,
    Ror,
    Rcl,
    Rcr,
    Shl,
    Shr,
    Sar,
}

/// String instructions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum StringOperation {
    /// MOVS
    Move,
    /// STOS
    Store,
    /// LODS
    Load,
    /// CMPS
    Compare,
    /// SCAS
    Scan,
    /// INS
    In,
    /// OUTS
    Out,
}

/// The part of a vector register that moves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum VectorMove {
    /// All of it.
    Whole {
        /// The address must be a multiple of the register's size.
        aligned: bool,
    },
    /// The lowest element; a load clears the rest of bits 127:0.
    Scalar(Width),
    /// 64 of bits 127:0; a load keeps the others.
    Half {
        /// Bits 127:64.
        high: bool,
    },
}
