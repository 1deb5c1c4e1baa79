//! One guest instruction in software: decode, operands, execute.

mod cache;
mod cause;
mod control;
mod decode;
mod execute;
mod flags;
pub mod length;
mod machine;
mod opcodes;
mod operation;
pub mod segment;
pub mod translate;
mod vex;
mod walk;

#[cfg(test)]
pub(crate) mod fake;

use crate::address::Gpa;
use crate::exit::{Event, PageFault, Unemulated, Width};
use crate::memory::GuestMemory;
use crate::registers::{GuestState, VectorState};
use cache::Cache;
use machine::{Machine, Stop};

pub use cause::Cause;
pub use control::control_access;
pub use length::{Opcode, instruction_length, next_instruction};
pub use segment::{Reference, linear_address};
pub use translate::{Access, Paging, PagingFeatures, WalkError, locate};

/// What an instruction reaches that is not memory: device registers and ports.
pub trait Bus {
    /// Reads a device register; bits above `width` are ignored.
    fn read(&mut self, gpa: Gpa, width: Width) -> u64;
    /// Writes a device register; bits of `value` above `width` are 0.
    fn write(&mut self, gpa: Gpa, width: Width, value: u64);
    /// Reads a port, [`Width::Dword`] at most; bits above `width` are ignored.
    fn port_read(&mut self, port: u16, width: Width) -> u32;
    /// Writes a port, [`Width::Dword`] at most; bits of `value` above `width` are 0.
    fn port_write(&mut self, port: u16, width: Width, value: u32);
}

/// What became of an instruction.
#[must_use]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// It is done; registers and memory are as after it, and RIP shall become `next_rip`.
    Done {
        /// RIP after the instruction, or where it jumped.
        next_rip: u64,
        /// It was a branch.
        branch: bool,
    },
    /// Part of a repeated string instruction is done, or another processor was in the way: RIP stays, and the guest
    /// goes on with the same instruction, after interrupts that are pending.
    Repeat,
    /// It raises an exception. Nothing has changed but what iterations of a string instruction have completed.
    Fault(Event),
    /// It raises #PF, as above.
    PageFault(PageFault),
    /// It cannot be emulated; nothing has changed, as above.
    Unemulated(Unemulated),
}

/// Executes single instructions of one guest, and remembers how they decode.
#[derive(Debug)]
pub struct Emulator {
    features: PagingFeatures,
    cache: Cache,
}

impl Emulator {
    /// Makes an emulator for a guest whose CPUID shows these features.
    pub fn new(features: PagingFeatures) -> Self {
        Self { features, cache: Cache::new() }
    }

    /// Executes the instruction at RIP: memory through `memory`, everything else through `bus`. `cause` is what
    /// the exit says of it. RIP and RFLAGS.RF are left as they are; single-step traps are whoever's sets RIP.
    ///
    /// Exceptions that come before an exit the processor has already raised; I/O permissions are checked here once
    /// more, because the guest can change the instruction after its exit.
    pub fn execute(
        &mut self,
        cpu: &mut (impl GuestState + VectorState),
        memory: &mut GuestMemory,
        bus: &mut impl Bus,
        cause: &Cause,
    ) -> Outcome {
        let bits = cpu.code_bits();
        let outcome = self.cache.instruction(cpu, memory, bits, cause).and_then(|instruction| {
            let branch = instruction.is_branch();
            let mut machine = Machine { cpu, memory, bus, cause, features: self.features, paging: None, bits };
            Ok((machine.execute(instruction)?, branch))
        });
        match outcome {
            Ok((next_rip, branch)) => Outcome::Done { next_rip, branch },
            Err(Stop::Repeat) => Outcome::Repeat,
            Err(Stop::Fault(event)) => Outcome::Fault(event),
            Err(Stop::PageFault(fault)) => Outcome::PageFault(fault),
            Err(Stop::Unemulated) => Outcome::Unemulated(cache::record(cpu, memory, bits, cause)),
        }
    }
}

#[cfg(test)]
mod tests;
