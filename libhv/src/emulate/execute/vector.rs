//! SSE and AVX loads and stores: the vector registers stay in the processor, and only the part that moves is touched.
//! That the guest may use them at all (CR0.TS, CR4.OSFXSR, XCR0) the processor has checked before the exit.

use crate::emulate::Bus;
use crate::emulate::decode::{Decoded, Operand};
use crate::emulate::machine::{Machine, Stop};
use crate::emulate::operation::VectorMove;
use crate::registers::{GuestState, VectorState};

impl<C: GuestState + VectorState + ?Sized, B: Bus> Machine<'_, C, B> {
    pub(super) fn vector(&mut self, instruction: &Decoded, operation: VectorMove, vex: bool) -> Result<(), Stop> {
        let mut instruction = *instruction;
        let (register, other, load) = match instruction.operands {
            [Operand::Memory, Operand::Vector { number, bytes }, Operand::None] => ((number, bytes), None, false),
            [Operand::Vector { number, bytes }, Operand::Memory, Operand::None] => ((number, bytes), None, true),
            // VMOVLPS and VMOVHPS take the half that they do not load from a second register.
            [Operand::Vector { number, bytes }, Operand::Vector { number: other, .. }, Operand::Memory] => {
                ((number, bytes), Some(other), true)
            }
            _ => return Err(Stop::Unemulated),
        };
        let (number, bytes) = register;
        let (size, alignment) = match operation {
            VectorMove::Whole { aligned } => (bytes, if aligned { bytes } else { 1 }),
            VectorMove::Scalar(width) => (width.bytes() as u8, 1),
            VectorMove::Half { .. } => (8, 1),
        };
        instruction.memory.bytes = size;
        let place = self.operand_aligned(&instruction, alignment.into(), !load)?;
        if !load {
            let [first, second, third, fourth] = self.cpu.ymm(number);
            let words = match operation {
                VectorMove::Half { high: true } => [second, 0, 0, 0],
                _ => [first, second, third, fourth],
            };
            return self.store_words(place, words);
        }
        let loaded = self.load_words(place)?;
        let value = match operation {
            VectorMove::Half { high } => {
                let [low_before, high_before, ..] = self.cpu.ymm(other.unwrap_or(number));
                if high { [low_before, loaded[0], 0, 0] } else { [loaded[0], high_before, 0, 0] }
            }
            _ => loaded,
        };
        if vex {
            self.cpu.set_ymm(number, value);
        } else {
            let [low, high, ..] = value;
            self.cpu.set_xmm(number, [low, high]);
        }
        Ok(())
    }
}
