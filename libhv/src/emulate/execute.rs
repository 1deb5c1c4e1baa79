//! Carries out one decoded instruction.

mod arithmetic;
mod exchange;
mod moves;
mod stack;
mod string;
mod vector;

#[cfg(test)]
mod oracle;

#[cfg(test)]
pub(super) use string::ELEMENTS_AT_ONCE;

use super::Bus;
use super::decode::Decoded;
use super::machine::{AnyProcessor, Machine, Stop};
use super::operation::Operation;
use crate::registers::{GuestState, VectorState};

impl<C: GuestState + VectorState, B: Bus> Machine<'_, C, B> {
    /// Carries out an instruction and returns RIP after it. On [`Stop`] registers and memory are as before it, except
    /// for the iterations that a string instruction has completed.
    #[inline]
    pub(super) fn execute(&mut self, instruction: &Decoded) -> Result<u64, Stop> {
        match instruction.operation {
            Operation::Move => self.mov(instruction)?,
            Operation::MoveZeroExtended => self.movzx(instruction)?,
            _ => {
                let Self { cpu, memory, bus, cause, features, paging, bits } = self;
                let cpu: &mut dyn AnyProcessor = *cpu;
                let mut machine =
                    Machine { cpu, memory, bus: *bus, cause, features: *features, paging: *paging, bits: *bits };
                return machine.execute_rare(instruction);
            }
        }
        Ok(self.rip_after(instruction))
    }
}

impl<B: Bus> Machine<'_, dyn AnyProcessor + '_, B> {
    /// Carries out what device drivers seldom do to registers in memory; one copy of the code serves all backends.
    #[inline(never)]
    fn execute_rare(&mut self, instruction: &Decoded) -> Result<u64, Stop> {
        let next_rip = self.rip_after(instruction);
        match instruction.operation {
            // `execute` has done these.
            Operation::Move | Operation::MoveZeroExtended => return Err(Stop::Unemulated),
            Operation::MoveSignExtended => self.movsx(instruction)?,
            Operation::MoveSwapped => self.movbe(instruction)?,
            Operation::MoveIf(condition) => self.cmov(instruction, condition)?,
            Operation::SetIf(condition) => self.setcc(instruction, condition)?,
            Operation::Exchange => self.xchg(instruction)?,
            Operation::ExchangeAdd => self.xadd(instruction)?,
            Operation::CompareExchange => self.cmpxchg(instruction)?,
            Operation::CompareExchangePair => self.cmpxchg_pair(instruction)?,
            Operation::Logic(operation) => self.logic(instruction, operation)?,
            Operation::Unary(operation) => self.unary(instruction, operation)?,
            Operation::Bits(operation) => self.bits(instruction, operation)?,
            Operation::Shift(operation) => self.shift(instruction, operation)?,
            Operation::DoubleShift { left } => self.double_shift(instruction, left)?,
            Operation::Multiply { signed } => self.multiply(instruction, signed)?,
            Operation::MultiplyInto => self.multiply_into(instruction)?,
            Operation::Divide { signed } => self.divide(instruction, signed)?,
            Operation::String(operation, width) => self.string(instruction, operation, width)?,
            Operation::Push(width) => self.push_operand(instruction, width)?,
            Operation::Pop(width) => self.pop_operand(instruction, width)?,
            Operation::Call(width) => return self.call(instruction, width, next_rip),
            Operation::Jump(width) => return self.jump(instruction, width),
            Operation::Return(width) => return self.ret(instruction, width),
            Operation::Vector { operation, vex } => self.vector(instruction, operation, vex)?,
        }
        Ok(next_rip)
    }
}

impl<C: GuestState + VectorState + ?Sized, B: Bus> Machine<'_, C, B> {
    /// Returns RIP after the instruction; it wraps at the width of the code.
    #[inline]
    fn rip_after(&self, instruction: &Decoded) -> u64 {
        let next = self.cpu.rip().wrapping_add(instruction.length.into());
        match self.bits {
            64 => next,
            32 => next & 0xFFFF_FFFF,
            _ => next & 0xFFFF,
        }
    }
}
