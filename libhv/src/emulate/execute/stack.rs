//! PUSH, POP, near CALL, JMP and RET.

use crate::emulate::Bus;
use crate::emulate::decode::{Decoded, Operand};
use crate::emulate::machine::{Machine, Stop};
use crate::exit::{Event, Width};
use crate::registers::{CR0_PE, ControlRegister, GuestState, RFLAGS_VM, SegmentRegister, VectorState};

/// The number of RSP.
const RSP: u8 = 4;

impl<C: GuestState + VectorState + ?Sized, B: Bus> Machine<'_, C, B> {
    /// Returns how much of RSP is the stack pointer: all of it in 64-bit mode, else as SS.B says.
    fn stack_width(&self) -> Width {
        if self.bits == 64 {
            Width::Qword
        } else if self.cpu.segment(SegmentRegister::Ss).attributes.default_big() {
            Width::Dword
        } else {
            Width::Word
        }
    }

    /// Writes a value below the top of the stack and moves RSP there.
    fn push(&mut self, width: Width, value: u64) -> Result<(), Stop> {
        let stack = self.stack_width();
        let top = self.register(RSP, stack).wrapping_sub(width.bytes() as u64) & stack.mask();
        let place = self.span(SegmentRegister::Ss, top, width.bytes(), true)?;
        self.store(place, value)?;
        self.set_register(RSP, stack, top);
        Ok(())
    }

    /// Reads the value at the top of the stack; RSP stays.
    fn top(&mut self, width: Width) -> Result<u64, Stop> {
        let top = self.register(RSP, self.stack_width());
        let place = self.span(SegmentRegister::Ss, top, width.bytes(), false)?;
        self.load(place)
    }

    fn move_stack(&mut self, bytes: u64) {
        let stack = self.stack_width();
        let top = self.register(RSP, stack).wrapping_add(bytes);
        self.set_register(RSP, stack, top);
    }

    pub(super) fn push_operand(&mut self, instruction: &Decoded, width: Width) -> Result<(), Stop> {
        let value = self.read(instruction, instruction.operands[0])?;
        self.push(width, value)
    }

    /// An operand that is addressed with RSP uses RSP as it is after the value was taken (SDM Vol. 2B, POP).
    pub(super) fn pop_operand(&mut self, instruction: &Decoded, width: Width) -> Result<(), Stop> {
        let [operand, ..] = instruction.operands;
        if operand != Operand::Memory {
            let value = self.top(width)?;
            self.move_stack(width.bytes() as u64);
            return self.write(instruction, operand, value);
        }
        // Both addresses are judged before a device could see the read.
        let before = self.cpu.gpr(crate::registers::Gpr::Rsp);
        self.move_stack(width.bytes() as u64);
        let destination = self.operand(instruction, true);
        let after = self.cpu.gpr(crate::registers::Gpr::Rsp);
        self.cpu.set_gpr(crate::registers::Gpr::Rsp, before);
        let destination = destination?;
        let value = self.top(width)?;
        self.store(destination, value)?;
        self.cpu.set_gpr(crate::registers::Gpr::Rsp, after);
        Ok(())
    }

    /// Returns the target of a jump as RIP will have it; #GP(0) where it is not canonical or beyond the limit of CS.
    fn target(&mut self, value: u64, width: Width) -> Result<u64, Stop> {
        let target = value & width.mask();
        let valid = if self.bits == 64 {
            self.paging().canonical(target)
        } else {
            target <= self.cpu.segment(SegmentRegister::Cs).limit.into()
        };
        if valid { Ok(target) } else { Err(Stop::Fault(Event::GENERAL_PROTECTION)) }
    }

    pub(super) fn call(&mut self, instruction: &Decoded, width: Width, next_rip: u64) -> Result<u64, Stop> {
        let target = self.read(instruction, instruction.operands[0])?;
        let target = self.target(target, width)?;
        self.push(width, next_rip)?;
        Ok(target)
    }

    pub(super) fn jump(&mut self, instruction: &Decoded, width: Width) -> Result<u64, Stop> {
        let target = self.read(instruction, instruction.operands[0])?;
        self.target(target, width)
    }

    pub(super) fn ret(&mut self, instruction: &Decoded, width: Width) -> Result<u64, Stop> {
        let target = self.top(width)?;
        let target = self.target(target, width)?;
        self.move_stack((width.bytes() as u64).wrapping_add(instruction.immediate & 0xFFFF));
        Ok(target)
    }

    /// Returns whether ports are the guest's to use: the processor has checked it before the exit, but not for an
    /// instruction that another processor has written over the one that exited (SDM Vol. 1 19.5).
    pub(super) fn ports_allowed(&mut self, port: u16, width: Width) -> Result<(), Stop> {
        let rflags = self.cpu.rflags();
        let protected = self.cpu.control(ControlRegister::Cr0) & CR0_PE != 0;
        let virtual_8086 = rflags & RFLAGS_VM != 0;
        if !protected || !virtual_8086 && u64::from(self.cpu.cpl()) <= rflags >> 12 & 3 {
            return Ok(());
        }
        let denied = Stop::Fault(Event::GENERAL_PROTECTION);
        let task = self.cpu.segment(SegmentRegister::Tr);
        let limit = u64::from(task.limit);
        // The bitmap's offset is the word at 66H of a 32-bit or 64-bit TSS; a 16-bit one has none.
        if task.attributes.segment_type() & 0b1101 != 0b1001 || limit < 0x67 {
            return Err(denied);
        }
        let map = self.system_word(task.base.wrapping_add(0x66))?;
        let byte = map + u64::from(port / 8);
        if byte + 1 > limit {
            return Err(denied);
        }
        let word = self.system_word(task.base.wrapping_add(byte))?;
        let mask = (1u64 << width.bytes()) - 1;
        if word >> (port % 8) & mask == 0 { Ok(()) } else { Err(denied) }
    }
}
