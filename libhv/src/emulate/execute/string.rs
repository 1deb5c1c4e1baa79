//! MOVS, STOS, LODS, CMPS, SCAS, INS and OUTS with their repeat prefixes.

use crate::emulate::Bus;
use crate::emulate::decode::{Decoded, Repeat};
use crate::emulate::flags::{self, ZF};
use crate::emulate::machine::{Machine, Stop};
use crate::emulate::operation::{Logic, StringOperation};
use crate::exit::Width;
use crate::registers::{GuestState, RFLAGS_DF, SegmentRegister, VectorState};

/// How many elements are done before the guest gets a chance to take an interrupt.
pub(crate) const ELEMENTS_AT_ONCE: u32 = 1024;

const RAX: u8 = 0;
const RCX: u8 = 1;
const RDX: u8 = 2;
const RSI: u8 = 6;
const RDI: u8 = 7;

impl<C: GuestState + VectorState + ?Sized, B: Bus> Machine<'_, C, B> {
    /// Does up to [`ELEMENTS_AT_ONCE`] elements, and [`Stop::Repeat`] where there are more: the registers then say
    /// where to go on, as after an interrupt.
    pub(super) fn string(
        &mut self,
        instruction: &Decoded,
        operation: StringOperation,
        width: Width,
    ) -> Result<(), Stop> {
        if matches!(operation, StringOperation::In | StringOperation::Out) {
            let port = self.register(RDX, Width::Word) as u16;
            self.ports_allowed(port, width)?;
        }
        if instruction.repeat == Repeat::Once {
            return self.element(instruction, operation, width);
        }
        let address = instruction.address;
        for _ in 0..ELEMENTS_AT_ONCE {
            let count = self.register(RCX, address);
            if count == 0 {
                return Ok(());
            }
            self.element(instruction, operation, width)?;
            self.set_register(RCX, address, count - 1);
            let equal = self.cpu.rflags() & ZF != 0;
            let compares = matches!(operation, StringOperation::Compare | StringOperation::Scan);
            if count == 1 || compares && equal != (instruction.repeat == Repeat::WhileEqual) {
                return Ok(());
            }
        }
        Err(Stop::Repeat)
    }

    /// Does one element and moves the index registers.
    fn element(&mut self, instruction: &Decoded, operation: StringOperation, width: Width) -> Result<(), Stop> {
        let address = instruction.address;
        let source = instruction.memory.segment;
        let bytes = width.bytes();
        match operation {
            StringOperation::Move => {
                let from = self.span(source, self.register(RSI, address), bytes, false)?;
                let to = self.span(SegmentRegister::Es, self.register(RDI, address), bytes, true)?;
                let value = self.load(from)?;
                self.store(to, value)?;
            }
            StringOperation::Store => {
                let to = self.span(SegmentRegister::Es, self.register(RDI, address), bytes, true)?;
                self.store(to, self.register(RAX, width))?;
            }
            StringOperation::Load => {
                let from = self.span(source, self.register(RSI, address), bytes, false)?;
                let value = self.load(from)?;
                self.set_register(RAX, width, value);
            }
            StringOperation::Compare => {
                let from = self.span(source, self.register(RSI, address), bytes, false)?;
                let with = self.span(SegmentRegister::Es, self.register(RDI, address), bytes, false)?;
                let (left, right) = (self.load(from)?, self.load(with)?);
                self.compare(left, right, width);
            }
            StringOperation::Scan => {
                let with = self.span(SegmentRegister::Es, self.register(RDI, address), bytes, false)?;
                let right = self.load(with)?;
                self.compare(self.register(RAX, width), right, width);
            }
            StringOperation::In => {
                let to = self.span(SegmentRegister::Es, self.register(RDI, address), bytes, true)?;
                let port = self.register(RDX, Width::Word) as u16;
                let value = u64::from(self.bus.port_read(port, width)) & width.mask();
                self.store(to, value)?;
            }
            StringOperation::Out => {
                let from = self.span(source, self.register(RSI, address), bytes, false)?;
                let value = self.load(from)?;
                let port = self.register(RDX, Width::Word) as u16;
                self.bus.port_write(port, width, value as u32);
            }
        }
        let step = if self.cpu.rflags() & RFLAGS_DF != 0 { (bytes as u64).wrapping_neg() } else { bytes as u64 };
        if !matches!(operation, StringOperation::Store | StringOperation::Scan | StringOperation::In) {
            let index = self.register(RSI, address).wrapping_add(step);
            self.set_register(RSI, address, index);
        }
        if !matches!(operation, StringOperation::Load | StringOperation::Out) {
            let index = self.register(RDI, address).wrapping_add(step);
            self.set_register(RDI, address, index);
        }
        Ok(())
    }

    fn compare(&mut self, left: u64, right: u64, width: Width) {
        let comparison = flags::logic(Logic::Cmp, left, right, width, 0);
        self.set_flags(comparison.mask, comparison.flags);
    }
}
