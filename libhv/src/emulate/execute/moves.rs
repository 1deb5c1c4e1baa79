//! Moves between registers and memory that leave the flags.

use crate::emulate::Bus;
use crate::emulate::decode::{Decoded, Operand};
use crate::emulate::flags;
use crate::emulate::machine::{Machine, Stop, sign_extend};
use crate::exit::Width;
use crate::registers::{GuestState, VectorState};

impl<C: GuestState + VectorState + ?Sized, B: Bus> Machine<'_, C, B> {
    #[inline]
    pub(super) fn mov(&mut self, instruction: &Decoded) -> Result<(), Stop> {
        let [destination, source, _] = instruction.operands;
        let value = self.read(instruction, source)?;
        self.write(instruction, destination, value)
    }

    #[inline]
    pub(super) fn movzx(&mut self, instruction: &Decoded) -> Result<(), Stop> {
        self.mov(instruction)
    }

    pub(super) fn movsx(&mut self, instruction: &Decoded) -> Result<(), Stop> {
        let [destination, source, _] = instruction.operands;
        let width = self.width(instruction, source)?;
        let value = self.read(instruction, source)?;
        self.write(instruction, destination, sign_extend(value, width))
    }

    pub(super) fn movbe(&mut self, instruction: &Decoded) -> Result<(), Stop> {
        let [destination, source, _] = instruction.operands;
        let width = self.width(instruction, source)?;
        let value = self.read(instruction, source)?;
        self.write(instruction, destination, swap(value, width))
    }

    /// The source is read, and a 32-bit destination's upper half cleared, whether the condition holds or not.
    pub(super) fn cmov(&mut self, instruction: &Decoded, condition: u8) -> Result<(), Stop> {
        let [destination, source, _] = instruction.operands;
        let new = self.read(instruction, source)?;
        let old = self.read(instruction, destination)?;
        let value = if flags::condition(condition, self.cpu.rflags()) { new } else { old };
        self.write(instruction, destination, value)
    }

    pub(super) fn setcc(&mut self, instruction: &Decoded, condition: u8) -> Result<(), Stop> {
        let value = flags::condition(condition, self.cpu.rflags());
        self.write(instruction, instruction.operands[0], value.into())
    }

    /// XCHG is locked with or without the prefix (SDM Vol. 3A 9.1.2.1).
    pub(super) fn xchg(&mut self, instruction: &Decoded) -> Result<(), Stop> {
        let [first, second, _] = instruction.operands;
        let (place, register) = if second == Operand::Memory { (second, first) } else { (first, second) };
        let new = self.read(instruction, register)?;
        let mut old = 0;
        self.modify(instruction, place, true, |value| {
            old = value;
            new
        })?;
        self.write(instruction, register, old)
    }
}

/// Reverses the bytes of a value.
fn swap(value: u64, width: Width) -> u64 {
    value.swap_bytes() >> (64 - 8 * width.bytes())
}
