//! What a simulated guest executes: instructions by name, and programs of them with their bytes in guest memory.

use crate::exit::Width;
use crate::registers::Gpr;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;

/// An instruction of 32-bit code. Operands that are not named are where the instruction has them: ECX and EDX:EAX for
/// MSRs, DX and EAX for ports.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Op {
    /// NOP
    Nop,
    /// MOV of a number to one of the first eight general-purpose registers.
    Mov(Gpr, u32),
    /// CPUID
    Cpuid,
    /// RDMSR
    Rdmsr,
    /// WRMSR
    Wrmsr,
    /// RDTSC
    Rdtsc,
    /// OUT to DX; not 64 bits.
    Out(Width),
    /// IN from DX; not 64 bits.
    In(Width),
    /// MOV of AL, AX or EAX to memory; not 64 bits.
    Store(u32, Width),
    /// MOV of memory to AL, AX or EAX; not 64 bits.
    Load(u32, Width),
    /// HLT
    Hlt,
    /// STI
    Sti,
    /// CLI
    Cli,
    /// MOV of AX to SS. Its shadow counts here; the segment stays.
    MovSs,
    /// XSETBV
    Xsetbv,
    /// VMCALL
    Hypercall,
    /// IRETD
    Iret,
    /// INT3
    Int3,
    /// INT n
    Int(u8),
    /// JMP to an address.
    Jump(u32),
    /// JNZ to an address.
    JumpNotZero(u32),
    /// CALL of an address.
    Call(u32),
    /// RET
    Return,
    /// DEC of one of the first eight general-purpose registers, 32 bits, with its flags.
    Decrement(Gpr),
    /// RDPMC
    Rdpmc,
    /// PUSH of a number.
    Push(u32),
    /// POPFD
    PopFlags,
    /// UD2
    Ud2,
    /// PAUSE
    Pause,
    /// WBINVD
    Wbinvd,
    /// ADD ESP, 4: takes an error code from the stack.
    DropErrorCode,
    /// PUSHAD
    PushAll,
    /// POPAD
    PopAll,
    /// ADD of a number to EAX. The flags stay.
    AddEax(u32),
    /// MOV of a general-purpose register to the word on top of the stack: where IRET will return to.
    ReturnTo(Gpr),
    /// MOV of EAX to CR4.
    WriteCr4,
    /// MOV of EAX to CR8, in the form that 32-bit code has for it (APM Vol. 3, "MOV CRn").
    WriteCr8,
    /// MOV of CR8 to EAX.
    ReadCr8,
}

impl Op {
    /// Returns the instruction's bytes as they stand at `address`.
    ///
    /// # Panics
    /// When a width is 64 bits.
    pub fn encode(self, address: u32) -> Vec<u8> {
        let sized = |width: Width, byte: u8, rest: &[u8]| -> Vec<u8> {
            let mut bytes = match width {
                Width::Byte => alloc::vec![byte],
                Width::Word => alloc::vec![0x66, byte | 1],
                Width::Dword => alloc::vec![byte | 1],
                Width::Qword => panic!("32-bit code has no 64-bit operands"),
            };
            bytes.extend_from_slice(rest);
            bytes
        };
        let with = |opcode: &[u8], number: u32| [opcode, &number.to_le_bytes()].concat();
        let absolute = |number: u32| with(&[0x05], number);
        let plain: &[u8] = match self {
            Self::Mov(register, number) => return with(&[0xB8 + (register as u8 & 7)], number),
            Self::Out(width) => return sized(width, 0xEE, &[]),
            Self::In(width) => return sized(width, 0xEC, &[]),
            Self::Store(to, width) => return sized(width, 0x88, &absolute(to)),
            Self::Load(from, width) => return sized(width, 0x8A, &absolute(from)),
            Self::Jump(to) => return with(&[0xE9], to.wrapping_sub(address.wrapping_add(5))),
            Self::JumpNotZero(to) => return with(&[0x0F, 0x85], to.wrapping_sub(address.wrapping_add(6))),
            Self::Call(to) => return with(&[0xE8], to.wrapping_sub(address.wrapping_add(5))),
            Self::Decrement(register) => return alloc::vec![0x48 + (register as u8 & 7)],
            Self::Push(number) => return with(&[0x68], number),
            Self::AddEax(number) => return with(&[0x05], number),
            Self::ReturnTo(register) => return alloc::vec![0x89, 0x04 | (register as u8 & 7) << 3, 0x24],
            Self::Int(vector) => return alloc::vec![0xCD, vector],
            Self::PopFlags => &[0x9D],
            Self::Return => &[0xC3],
            Self::Rdpmc => &[0x0F, 0x33],
            Self::Nop => &[0x90],
            Self::Cpuid => &[0x0F, 0xA2],
            Self::Rdmsr => &[0x0F, 0x32],
            Self::Wrmsr => &[0x0F, 0x30],
            Self::Rdtsc => &[0x0F, 0x31],
            Self::Hlt => &[0xF4],
            Self::Sti => &[0xFB],
            Self::Cli => &[0xFA],
            Self::MovSs => &[0x8E, 0xD0],
            Self::Xsetbv => &[0x0F, 0x01, 0xD1],
            Self::Hypercall => &[0x0F, 0x01, 0xC1],
            Self::Iret => &[0xCF],
            Self::Int3 => &[0xCC],
            Self::Ud2 => &[0x0F, 0x0B],
            Self::Pause => &[0xF3, 0x90],
            Self::Wbinvd => &[0x0F, 0x09],
            Self::DropErrorCode => &[0x83, 0xC4, 0x04],
            Self::PushAll => &[0x60],
            Self::PopAll => &[0x61],
            Self::WriteCr4 => &[0x0F, 0x22, 0xE0],
            Self::WriteCr8 => &[0xF0, 0x0F, 0x22, 0xC0],
            Self::ReadCr8 => &[0xF0, 0x0F, 0x20, 0xC0],
        };
        plain.to_vec()
    }
}

/// Instructions at their addresses, and the handlers of the interrupt vectors.
#[derive(Clone, Debug, Default)]
pub struct Program {
    pub(super) ops: BTreeMap<u32, (Op, u8)>,
    pub(super) handlers: BTreeMap<u8, u32>,
    next: u32,
}

impl Program {
    /// Begins a program at `address`.
    pub fn at(address: u32) -> Self {
        Self { next: address, ..Self::default() }
    }

    /// Returns where the next instruction will stand.
    pub fn here(&self) -> u32 {
        self.next
    }

    /// Goes on at another address.
    pub fn continue_at(&mut self, address: u32) -> &mut Self {
        self.next = address;
        self
    }

    /// Adds instructions.
    pub fn ops(&mut self, ops: &[Op]) -> &mut Self {
        for &op in ops {
            let length = op.encode(self.next).len() as u8;
            self.ops.insert(self.next, (op, length));
            self.next += u32::from(length);
        }
        self
    }

    /// Makes what follows the handler of a vector.
    pub fn handler(&mut self, vector: u8) -> &mut Self {
        self.handlers.insert(vector, self.next);
        self
    }

    /// Adds CPUID of a leaf and subleaf.
    pub fn cpuid(&mut self, leaf: u32, subleaf: u32) -> &mut Self {
        self.ops(&[Op::Mov(Gpr::Rax, leaf), Op::Mov(Gpr::Rcx, subleaf), Op::Cpuid])
    }

    /// Adds RDMSR of an MSR.
    pub fn rdmsr(&mut self, msr: u32) -> &mut Self {
        self.ops(&[Op::Mov(Gpr::Rcx, msr), Op::Rdmsr])
    }

    /// Adds WRMSR of a number to an MSR.
    pub fn wrmsr(&mut self, msr: u32, value: u64) -> &mut Self {
        let (high, low) = ((value >> 32) as u32, value as u32);
        self.ops(&[Op::Mov(Gpr::Rcx, msr), Op::Mov(Gpr::Rax, low), Op::Mov(Gpr::Rdx, high), Op::Wrmsr])
    }

    /// Adds RDPMC of a counter.
    pub fn rdpmc(&mut self, ecx: u32) -> &mut Self {
        self.ops(&[Op::Mov(Gpr::Rcx, ecx), Op::Rdpmc])
    }

    /// Adds a loop that is gone through `times` times and counts down in ECX. Its instructions are one, then those of
    /// `body` and two for each time.
    pub fn repeat(&mut self, times: u32, body: &[Op]) -> &mut Self {
        self.ops(&[Op::Mov(Gpr::Rcx, times)]);
        let again = self.here();
        self.ops(body).ops(&[Op::Decrement(Gpr::Rcx), Op::JumpNotZero(again)])
    }

    /// Adds a change of EFLAGS by way of the stack.
    pub fn flags(&mut self, flags: u32) -> &mut Self {
        self.ops(&[Op::Push(flags), Op::PopFlags])
    }

    /// Adds OUT of a number to a port.
    pub fn out(&mut self, port: u16, width: Width, value: u32) -> &mut Self {
        self.ops(&[Op::Mov(Gpr::Rdx, port.into()), Op::Mov(Gpr::Rax, value), Op::Out(width)])
    }

    /// Adds a store of a number to memory.
    pub fn store(&mut self, address: u32, width: Width, value: u32) -> &mut Self {
        self.ops(&[Op::Mov(Gpr::Rax, value), Op::Store(address, width)])
    }

    /// Returns the bytes of every instruction with its address.
    pub fn bytes(&self) -> impl Iterator<Item = (u32, Vec<u8>)> {
        self.ops.iter().map(|(&address, (op, _))| (address, op.encode(address)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use iced_x86::{Code, Decoder, DecoderOptions};

    #[test]
    fn every_instruction_is_what_a_disassembler_reads() {
        let table = [
            (Op::Mov(Gpr::Rdi, 5), Code::Mov_r32_imm32),
            (Op::Out(Width::Byte), Code::Out_DX_AL),
            (Op::Out(Width::Word), Code::Out_DX_AX),
            (Op::In(Width::Dword), Code::In_EAX_DX),
            (Op::Store(0xFEE0_00B0, Width::Dword), Code::Mov_rm32_r32),
            (Op::Store(0xFEE0_00B0, Width::Byte), Code::Mov_rm8_r8),
            (Op::Load(0xFEC0_0010, Width::Word), Code::Mov_r16_rm16),
            (Op::Jump(0x1000), Code::Jmp_rel32_32),
            (Op::JumpNotZero(0x1000), Code::Jne_rel32_32),
            (Op::Call(0x3000), Code::Call_rel32_32),
            (Op::Return, Code::Retnd),
            (Op::Decrement(Gpr::Rcx), Code::Dec_r32),
            (Op::Rdpmc, Code::Rdpmc),
            (Op::Int(0x80), Code::Int_imm8),
            (Op::MovSs, Code::Mov_Sreg_r32m16),
            (Op::Xsetbv, Code::Xsetbv),
            (Op::Hypercall, Code::Vmcall),
            (Op::Iret, Code::Iretd),
            (Op::DropErrorCode, Code::Add_rm32_imm8),
            (Op::Push(5), Code::Pushd_imm32),
            (Op::PopFlags, Code::Popfd),
            (Op::PushAll, Code::Pushad),
            (Op::PopAll, Code::Popad),
            (Op::AddEax(7), Code::Add_EAX_imm32),
            (Op::ReturnTo(Gpr::Rbp), Code::Mov_rm32_r32),
            (Op::WriteCr4, Code::Mov_cr_r32),
            (Op::WriteCr8, Code::Mov_cr_r32),
            (Op::Wbinvd, Code::Wbinvd),
        ];
        for (op, expected) in table {
            let bytes = op.encode(0x2000);
            let instruction = Decoder::with_ip(32, &bytes, 0x2000, DecoderOptions::AMD).decode();
            assert_eq!((instruction.code(), instruction.len()), (expected, bytes.len()), "{op:?}");
            if let Op::Store(address, _) | Op::Load(address, _) = op {
                assert_eq!(instruction.memory_displacement64(), address.into());
            }
            if let Op::Jump(address) | Op::JumpNotZero(address) | Op::Call(address) = op {
                assert_eq!(instruction.near_branch_target(), address.into());
            }
        }
    }
}
