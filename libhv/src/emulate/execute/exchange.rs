//! XADD, CMPXCHG, CMPXCHG8B and CMPXCHG16B.

use crate::emulate::Bus;
use crate::emulate::decode::{Decoded, Operand};
use crate::emulate::flags::{self, ZF};
use crate::emulate::machine::{Machine, Stop};
use crate::emulate::operation::Logic;
use crate::exit::Width;
use crate::registers::{GuestState, VectorState};

/// The number of RAX.
const RAX: u8 = 0;
const RCX: u8 = 1;
const RDX: u8 = 2;
const RBX: u8 = 3;

impl<C: GuestState + VectorState + ?Sized, B: Bus> Machine<'_, C, B> {
    pub(super) fn xadd(&mut self, instruction: &Decoded) -> Result<(), Stop> {
        let [place, register, _] = instruction.operands;
        let width = self.width(instruction, place)?;
        let addend = self.read(instruction, register)?;
        let rflags = self.cpu.rflags();
        let mut old = 0;
        let mut sum = flags::logic(Logic::Add, 0, addend, width, rflags);
        if place == Operand::Memory {
            self.modify(instruction, place, false, |value| {
                old = value;
                sum = flags::logic(Logic::Add, value, addend, width, rflags);
                sum.result
            })?;
            self.write(instruction, register, old)?;
        } else {
            // The sum is written last: it stays where both operands are the same register.
            old = self.read(instruction, place)?;
            sum = flags::logic(Logic::Add, old, addend, width, rflags);
            self.write(instruction, register, old)?;
            self.write(instruction, place, sum.result)?;
        }
        self.set_flags(sum.mask, sum.flags);
        Ok(())
    }

    /// Memory is written in either case: with what it held where the comparison failed.
    pub(super) fn cmpxchg(&mut self, instruction: &Decoded) -> Result<(), Stop> {
        let [place, register, _] = instruction.operands;
        let width = self.width(instruction, place)?;
        let new = self.read(instruction, register)?;
        let expected = self.register(RAX, width);
        let rflags = self.cpu.rflags();
        let mut found = 0;
        if place == Operand::Memory {
            self.modify(instruction, place, false, |value| {
                found = value;
                if value == expected { new } else { value }
            })?;
        } else {
            found = self.read(instruction, place)?;
            self.write(instruction, place, if found == expected { new } else { found })?;
        }
        let comparison = flags::logic(Logic::Cmp, expected, found, width, rflags);
        if found != expected {
            self.set_register(RAX, width, found);
        }
        self.set_flags(comparison.mask, comparison.flags);
        Ok(())
    }

    pub(super) fn cmpxchg_pair(&mut self, instruction: &Decoded) -> Result<(), Stop> {
        let half = match instruction.memory.bytes {
            8 => Width::Dword,
            16 => Width::Qword,
            _ => return Err(Stop::Unemulated),
        };
        let place = self.operand_aligned(instruction, if half == Width::Qword { 16 } else { 1 }, true)?;
        let expected = [self.register(RAX, half), self.register(RDX, half)];
        let new = [self.register(RBX, half), self.register(RCX, half)];
        let found = if half == Width::Dword {
            let join = |[low, high]: [u64; 2]| high << 32 | low;
            let (expected, new) = (join(expected), join(new));
            let mut found = 0;
            self.modify_span(place, instruction.lock, |value| {
                found = value;
                if value == expected { new } else { value }
            })?;
            [found & half.mask(), found >> 32]
        } else {
            // 128 bits cannot be exchanged in one access from here: with LOCK only devices, which nobody shares.
            if instruction.lock && self.is_memory(place) {
                return Err(Stop::Unemulated);
            }
            let [low, high, ..] = self.load_words(place)?;
            let found = [low, high];
            let [low, high] = if found == expected { new } else { found };
            self.store_words(place, [low, high, 0, 0])?;
            found
        };
        if found != expected {
            self.set_register(RAX, half, found[0]);
            self.set_register(RDX, half, found[1]);
        }
        self.set_flags(ZF, if found == expected { ZF } else { 0 });
        Ok(())
    }
}
