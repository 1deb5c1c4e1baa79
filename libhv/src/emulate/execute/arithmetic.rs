//! Integer arithmetic, logic, bits, shifts, multiplication and division with their flags.

use crate::emulate::Bus;
use crate::emulate::decode::{Decoded, Operand};
use crate::emulate::flags::{self, CF, OF, Outcome};
use crate::emulate::machine::{Machine, Stop, sign_extend};
use crate::emulate::operation::{Bits, Logic, Shift, Unary};
use crate::exit::{Event, Width};
use crate::registers::{GuestState, VectorState};

/// #DE, divide error.
const DIVIDE_ERROR: Event = Event::Exception { vector: 0, error_code: None };
/// The number of RAX.
const RAX: u8 = 0;
const RDX: u8 = 2;

impl<C: GuestState + VectorState + ?Sized, B: Bus> Machine<'_, C, B> {
    pub(super) fn logic(&mut self, instruction: &Decoded, operation: Logic) -> Result<(), Stop> {
        let [destination, source, _] = instruction.operands;
        let width = self.width(instruction, destination)?;
        let rflags = self.cpu.rflags();
        let right = self.read(instruction, source)?;
        if matches!(operation, Logic::Cmp | Logic::Test) {
            let left = self.read(instruction, destination)?;
            let outcome = flags::logic(operation, left, right, width, rflags);
            self.set_flags(outcome.mask, outcome.flags);
            return Ok(());
        }
        self.replace(instruction, destination, |left| flags::logic(operation, left, right, width, rflags))
    }

    pub(super) fn unary(&mut self, instruction: &Decoded, operation: Unary) -> Result<(), Stop> {
        let [destination, ..] = instruction.operands;
        let width = self.width(instruction, destination)?;
        self.replace(instruction, destination, |value| flags::unary(operation, value, width))
    }

    pub(super) fn shift(&mut self, instruction: &Decoded, operation: Shift) -> Result<(), Stop> {
        let [destination, count, _] = instruction.operands;
        let width = self.width(instruction, destination)?;
        let rflags = self.cpu.rflags();
        let count = self.read(instruction, count)?;
        self.replace(instruction, destination, |value| flags::shift(operation, value, count, width, rflags))
    }

    pub(super) fn double_shift(&mut self, instruction: &Decoded, left: bool) -> Result<(), Stop> {
        let [destination, filler, count] = instruction.operands;
        let width = self.width(instruction, destination)?;
        let filler = self.read(instruction, filler)?;
        let count = self.read(instruction, count)?;
        self.replace(instruction, destination, |value| flags::double_shift(left, value, filler, count, width))
    }

    /// Replaces an operand by the result of an operation and sets its flags.
    fn replace(
        &mut self,
        instruction: &Decoded,
        operand: Operand,
        operation: impl Fn(u64) -> Outcome,
    ) -> Result<(), Stop> {
        let mut last = (0, 0);
        self.modify(instruction, operand, false, |value| {
            let outcome = operation(value);
            last = (outcome.mask, outcome.flags);
            outcome.result
        })?;
        self.set_flags(last.0, last.1);
        Ok(())
    }

    /// A bit number in a register reaches beyond a memory operand, by its sign in either direction
    /// (SDM Vol. 2A 3.1.1.9).
    pub(super) fn bits(&mut self, instruction: &Decoded, operation: Bits) -> Result<(), Stop> {
        let [place, source, _] = instruction.operands;
        let width = self.width(instruction, place)?;
        let size = 8 * width.bytes() as u64;
        let number = self.read(instruction, source)?;
        let bit = number & (size - 1);
        let mut carry = false;
        let change = |value: u64| {
            carry = value >> bit & 1 != 0;
            match operation {
                Bits::Test => value,
                Bits::Set => value | 1 << bit,
                Bits::Reset => value & !(1 << bit),
                Bits::Complement => value ^ 1 << bit,
            }
        };
        if place == Operand::Memory {
            let mut address = self.effective_address(&instruction.memory, instruction.address);
            if source != Operand::Immediate {
                let words = sign_extend(number, width) as i64 >> size.trailing_zeros();
                address = address.wrapping_add((words as u64).wrapping_mul(width.bytes() as u64))
                    & instruction.address.mask();
            }
            let write = operation != Bits::Test;
            let span = self.span(instruction.memory.segment, address, width.bytes(), write)?;
            if write {
                self.modify_span(span, instruction.lock, change)?;
            } else {
                let value = self.load(span)?;
                carry = value >> bit & 1 != 0;
            }
        } else {
            let mut change = change;
            let value = change(self.read(instruction, place)?);
            if operation != Bits::Test {
                self.write(instruction, place, value)?;
            }
        }
        self.set_flags(CF, if carry { CF } else { 0 });
        Ok(())
    }

    /// MUL and one-operand IMUL: rDX:rAX, or AX, becomes the product; CF and OF say that its upper half is needed.
    pub(super) fn multiply(&mut self, instruction: &Decoded, signed: bool) -> Result<(), Stop> {
        let [source, ..] = instruction.operands;
        let width = self.width(instruction, source)?;
        let (left, right) = (self.register(RAX, width), self.read(instruction, source)?);
        let size = 8 * width.bytes() as u32;
        let (product, fits) = if signed {
            let wide = |value| i128::from(sign_extend(value, width) as i64);
            let product = wide(left) * wide(right);
            (product as u128, product == wide(product as u64))
        } else {
            let product = u128::from(left) * u128::from(right);
            (product, product >> size == 0)
        };
        if width == Width::Byte {
            self.set_register(RAX, Width::Word, product as u64);
        } else {
            self.set_register(RAX, width, product as u64);
            self.set_register(RDX, width, (product >> size) as u64);
        }
        self.set_flags(CF | OF, if fits { 0 } else { CF | OF });
        Ok(())
    }

    pub(super) fn multiply_into(&mut self, instruction: &Decoded) -> Result<(), Stop> {
        let [destination, source, third] = instruction.operands;
        let width = self.width(instruction, destination)?;
        let left = self.read(instruction, source)?;
        let right = self.read(instruction, if third == Operand::None { destination } else { third })?;
        let wide = |value| i128::from(sign_extend(value, width) as i64);
        let product = wide(left) * wide(right);
        self.write(instruction, destination, product as u64)?;
        self.set_flags(CF | OF, if product == wide(product as u64) { 0 } else { CF | OF });
        Ok(())
    }

    /// DIV and IDIV: #DE where the divisor is 0 or the quotient does not fit; flags are undefined and stay.
    pub(super) fn divide(&mut self, instruction: &Decoded, signed: bool) -> Result<(), Stop> {
        let [source, ..] = instruction.operands;
        let width = self.width(instruction, source)?;
        let divisor = self.read(instruction, source)?;
        let size = 8 * width.bytes() as u32;
        let dividend = if width == Width::Byte {
            u128::from(self.register(RAX, Width::Word))
        } else {
            u128::from(self.register(RDX, width)) << size | u128::from(self.register(RAX, width))
        };
        let divided = if signed {
            let dividend = (dividend << (128 - 2 * size)) as i128 >> (128 - 2 * size);
            let divisor = i128::from(sign_extend(divisor, width) as i64);
            dividend
                .checked_div(divisor)
                .filter(|quotient| *quotient == i128::from(sign_extend(*quotient as u64, width) as i64))
                .map(|quotient| (quotient as u64, (dividend % divisor) as u64))
        } else {
            let divisor = u128::from(divisor);
            dividend
                .checked_div(divisor)
                .filter(|quotient| quotient >> size == 0)
                .map(|quotient| (quotient as u64, (dividend % divisor) as u64))
        };
        let (quotient, remainder) = divided.ok_or(Stop::Fault(DIVIDE_ERROR))?;
        if width == Width::Byte {
            self.set_register(RAX, Width::Word, (remainder & 0xFF) << 8 | quotient & 0xFF);
        } else {
            self.set_register(RAX, width, quotient);
            self.set_register(RDX, width, remainder);
        }
        Ok(())
    }
}
