//! Results and status flags of the integer instructions, as pure functions (SDM Vol. 1 3.4.3.1, App. A and B).

use super::operation::{Logic, Shift, Unary};
use crate::exit::Width;

/// Carry.
pub(super) const CF: u64 = 1 << 0;
/// Even parity of the result's lowest byte.
pub(super) const PF: u64 = 1 << 2;
/// Carry out of bit 3.
pub(super) const AF: u64 = 1 << 4;
/// The result is 0.
pub(super) const ZF: u64 = 1 << 6;
/// The result's highest bit.
pub(super) const SF: u64 = 1 << 7;
/// Signed overflow.
pub(super) const OF: u64 = 1 << 11;
/// All status flags.
pub(super) const STATUS: u64 = CF | PF | AF | ZF | SF | OF;

/// What an instruction leaves: a result, and values for the flags of a mask.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Outcome {
    pub(super) result: u64,
    pub(super) mask: u64,
    pub(super) flags: u64,
}

#[inline]
fn bits(width: Width) -> u32 {
    8 * width.bytes() as u32
}

/// Returns whether the highest bit is set.
#[inline]
fn sign(value: u64, width: Width) -> bool {
    value >> (bits(width) - 1) & 1 != 0
}

#[inline]
fn flag(condition: bool, flag: u64) -> u64 {
    if condition { flag } else { 0 }
}

/// Returns ZF, SF and PF of a result.
#[inline]
pub(super) fn of_result(result: u64, width: Width) -> u64 {
    flag(result & width.mask() == 0, ZF)
        | flag(sign(result, width), SF)
        | flag((result as u8).count_ones().is_multiple_of(2), PF)
}

fn add(left: u64, right: u64, carry: bool, width: Width) -> (u64, u64) {
    let sum = u128::from(left) + u128::from(right) + u128::from(carry);
    let result = sum as u64 & width.mask();
    let flags = flag(sum >> bits(width) != 0, CF)
        | flag((left ^ right ^ result) & 0x10 != 0, AF)
        | flag(sign((left ^ result) & (right ^ result), width), OF);
    (result, flags | of_result(result, width))
}

fn subtract(left: u64, right: u64, borrow: bool, width: Width) -> (u64, u64) {
    let result = left.wrapping_sub(right).wrapping_sub(borrow.into()) & width.mask();
    let flags = flag(u128::from(left) < u128::from(right) + u128::from(borrow), CF)
        | flag((left ^ right ^ result) & 0x10 != 0, AF)
        | flag(sign((left ^ right) & (left ^ result), width), OF);
    (result, flags | of_result(result, width))
}

/// Computes an operation with two sources. AF after AND, OR, XOR and TEST is undefined and stays.
pub(super) fn logic(operation: Logic, left: u64, right: u64, width: Width, rflags: u64) -> Outcome {
    let (left, right) = (left & width.mask(), right & width.mask());
    let carry = rflags & CF != 0;
    let bitwise = |result: u64| Outcome { result, mask: STATUS & !AF, flags: of_result(result, width) };
    let (result, flags) = match operation {
        Logic::Add => add(left, right, false, width),
        Logic::Adc => add(left, right, carry, width),
        Logic::Sub | Logic::Cmp => subtract(left, right, false, width),
        Logic::Sbb => subtract(left, right, carry, width),
        Logic::Or => return bitwise(left | right),
        Logic::And | Logic::Test => return bitwise(left & right),
        Logic::Xor => return bitwise(left ^ right),
    };
    Outcome { result, mask: STATUS, flags }
}

/// Computes an operation with one source. INC and DEC leave CF, NOT leaves all flags.
pub(super) fn unary(operation: Unary, value: u64, width: Width) -> Outcome {
    let value = value & width.mask();
    let (result, flags, mask) = match operation {
        Unary::Inc => {
            let (result, flags) = add(value, 1, false, width);
            (result, flags, STATUS & !CF)
        }
        Unary::Dec => {
            let (result, flags) = subtract(value, 1, false, width);
            (result, flags, STATUS & !CF)
        }
        Unary::Neg => {
            let (result, flags) = subtract(0, value, false, width);
            (result, flags, STATUS)
        }
        Unary::Not => (!value & width.mask(), 0, 0),
    };
    Outcome { result, mask, flags }
}

/// Computes a shift or rotate by `count`, of which the processor takes 6 bits for 64-bit operands and else 5. With a
/// count of 0 no flag changes; OF is computed as for a count of 1 where it is undefined.
pub(super) fn shift(operation: Shift, value: u64, count: u64, width: Width, rflags: u64) -> Outcome {
    let (size, value) = (bits(width), value & width.mask());
    let count = count as u32 & if width == Width::Qword { 63 } else { 31 };
    let unchanged = Outcome { result: value, mask: 0, flags: 0 };
    if count == 0 {
        return unchanged;
    }
    let carry_in = rflags & CF != 0;
    let wide = u128::from(value);
    let (result, carry) = match operation {
        Shift::Shl => {
            let all = wide << count;
            (all as u64 & width.mask(), all >> size & 1 != 0)
        }
        Shift::Shr => ((wide >> count) as u64, wide >> (count - 1) & 1 != 0),
        Shift::Sar => {
            let signed = i128::from(super::machine::sign_extend(value, width) as i64);
            ((signed >> count) as u64 & width.mask(), signed >> (count - 1) & 1 != 0)
        }
        Shift::Rol => {
            let by = count % size;
            let result = (wide << by | wide >> (size - by)) as u64 & width.mask();
            (result, result & 1 != 0)
        }
        Shift::Ror => {
            let by = count % size;
            let result = (wide >> by | wide << (size - by)) as u64 & width.mask();
            (result, sign(result, width))
        }
        Shift::Rcl | Shift::Rcr => {
            // Rotates through a register that is one bit longer, with the carry at its top.
            let length = size + 1;
            let by = match (count % length, operation) {
                (0, _) => 0,
                (by, Shift::Rcl) => by,
                (by, _) => length - by,
            };
            let long = wide | u128::from(carry_in) << size;
            let rotated = if by == 0 { long } else { long << by | long >> (length - by) };
            (rotated as u64 & width.mask(), rotated >> size & 1 != 0)
        }
    };
    let overflow = match operation {
        Shift::Shl | Shift::Rol | Shift::Rcl => sign(result, width) != carry,
        Shift::Shr => sign(value, width),
        Shift::Sar => false,
        Shift::Ror | Shift::Rcr => sign(result, width) != (result >> (size - 2) & 1 != 0),
    };
    let flags = flag(carry, CF) | flag(overflow, OF);
    match operation {
        Shift::Shl | Shift::Shr | Shift::Sar => {
            Outcome { result, mask: STATUS & !AF, flags: flags | of_result(result, width) }
        }
        _ => Outcome { result, mask: CF | OF, flags },
    }
}

/// Computes SHLD or SHRD. Counts above 16 for 16-bit operands have undefined results; here `filler` repeats.
pub(super) fn double_shift(left: bool, value: u64, filler: u64, count: u64, width: Width) -> Outcome {
    let (size, value, filler) = (bits(width), value & width.mask(), filler & width.mask());
    let count = count as u32 & if width == Width::Qword { 63 } else { 31 };
    if count == 0 {
        return Outcome { result: value, mask: 0, flags: 0 };
    }
    let (result, carry) = if left {
        let by = count % size;
        let pair = u128::from(value) << size | u128::from(filler);
        let (pair, by) = if count > size { ((pair << size) | u128::from(value), by) } else { (pair, count) };
        ((pair << by >> size) as u64 & width.mask(), pair >> (2 * size - by) & 1 != 0)
    } else {
        let pair = u128::from(filler) << size | u128::from(value);
        let (pair, by) =
            if count > size { (u128::from(value) << size | u128::from(filler), count % size) } else { (pair, count) };
        ((pair >> by) as u64 & width.mask(), pair >> (by - 1) & 1 != 0)
    };
    let flags = flag(carry, CF) | flag(sign(result ^ value, width), OF) | of_result(result, width);
    Outcome { result, mask: STATUS & !AF, flags }
}

/// Returns whether a condition, numbered as Jcc, SETcc and CMOVcc encode it, holds.
pub(super) fn condition(number: u8, rflags: u64) -> bool {
    let less = (rflags & SF != 0) != (rflags & OF != 0);
    let holds = match number >> 1 & 7 {
        0 => rflags & OF != 0,
        1 => rflags & CF != 0,
        2 => rflags & ZF != 0,
        3 => rflags & (CF | ZF) != 0,
        4 => rflags & SF != 0,
        5 => rflags & PF != 0,
        6 => less,
        _ => less || rflags & ZF != 0,
    };
    holds != (number & 1 != 0)
}
