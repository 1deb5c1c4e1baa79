//! The run loop over the simulated processor, with the real chipset; and the programs that its tests share.

use super::oracle::TIMER;
use crate::address::Gpa;
use crate::devices::{Chipset, Configuration};
use crate::exit::{Event, Exit, Resolution, StopReason, Width};
use crate::hw::Host;
use crate::memory::nested::Access;
use crate::registers::{EntryState, Gpr, GuestState};
use crate::sim::{Machine, NestedMap, Op, Processor, Program, Record, Vendor};
use crate::time::{Frequency, Tsc};
use crate::vcpu::cpuid::Settings;
use crate::vcpu::{Appliance, Vcpu, World};
use std::boxed::Box;
use std::cell::RefCell;
use std::rc::Rc;
use std::vec::Vec;

const HZ: Frequency = Frequency::from_hz(1_000_000_000);
pub(super) const MEMORY: usize = 0x10_0000;
pub(super) const STACK: u32 = 0x8_0000;
pub(super) const DEBUG_EXIT: u16 = 0xF4;
/// Vectors whose handlers end the interrupt with interrupts disabled, and those that enable them before.
pub(super) const PLAIN: [u8; 4] = [0x41, 0x42, 0x77, 0xD0];
pub(super) const NESTING: [u8; 4] = [0x43, 0x58, 0x9A, 0xE1];

/// Notes every exit, and maps the pages of the stack that the processor has lost.
struct Watcher {
    nested: NestedMap,
    exits: Rc<RefCell<Vec<Exit>>>,
    passes_halt: bool,
    /// Answers the faults at one of those pages with #GP as well, so often; it comes back with the last.
    faults: u32,
}

impl Appliance for Watcher {
    fn on_exit(&mut self, exit: &Exit, _guest: &mut impl GuestState) -> Resolution {
        self.exits.borrow_mut().push(*exit);
        match exit {
            Exit::NestedPageFault(fault) if !fault.present && fault.gpa.as_u64() < MEMORY as u64 => {
                if self.faults <= 1 {
                    self.nested.set(fault.gpa, Some(Access::ALL));
                }
                let Some(left) = self.faults.checked_sub(1) else { return Resolution::Retry };
                self.faults = left;
                Resolution::Inject(Event::GENERAL_PROTECTION)
            }
            Exit::Halt if self.passes_halt => Resolution::Complete,
            _ => Resolution::NotMine,
        }
    }
}

/// How a guest is run.
#[derive(Clone, Copy)]
pub(super) struct Setting {
    pub(super) vendor: Vendor,
    pub(super) seed: u64,
    pub(super) stray_every: u64,
    pub(super) unmap_stack_once_in: u64,
    pub(super) budget: u64,
    pub(super) passes_halt: bool,
    /// The stack is missing at first, and the appliance answers that with #GP, so often.
    pub(super) faults_at_stack: u32,
}

impl Setting {
    pub(super) fn new(vendor: Vendor) -> Self {
        let (seed, stray_every, unmap_stack_once_in, budget) = (1, 0, 0, 1_000_000);
        Self { vendor, seed, stray_every, unmap_stack_once_in, budget, passes_halt: false, faults_at_stack: 0 }
    }
}

pub(super) struct Ran {
    pub(super) reason: StopReason,
    pub(super) journal: Vec<Record>,
    pub(super) exits: Vec<Exit>,
    pub(super) now: Tsc,
    pub(super) executed: u64,
}

pub(super) fn run(program: &Program, setting: Setting) -> Ran {
    let mut machine = Machine::new(setting.seed, HZ, setting.stray_every);
    let (mut processor, mut memory) = Processor::new(&machine, setting.vendor, setting.seed, MEMORY, program);
    processor.unmap_stack_once_in(setting.unmap_stack_once_in);
    processor.stop_after(setting.budget);
    let (journal, exits) = (processor.journal(), Rc::new(RefCell::new(Vec::new())));
    let nested = processor.nested();
    if setting.faults_at_stack != 0 {
        nested.set(Gpa::new(u64::from(STACK) - 4), None);
        nested.flush();
    }
    let Setting { passes_halt, faults_at_stack: faults, .. } = setting;
    let watcher = Watcher { nested, exits: exits.clone(), passes_halt, faults };
    let configuration = Configuration { memory_below_4g: MEMORY as u64, ..Configuration::new(HZ) };
    let mut chipset = Chipset::new(configuration, Box::new(()));
    let settings = Settings::new(1, HZ);
    let entry = EntryState::protected_mode(0x1000);
    let mut vcpu = Vcpu::new(processor, watcher, 0, &setting.vendor, &settings, &entry);
    let outcome = vcpu.run(&mut World { chipset: &mut chipset, memory: &mut memory, host: &mut machine });
    let reason = outcome.expect("a simulated processor is always entered");
    let (now, executed) = (machine.now(), vcpu.backend().executed());
    Ran { reason, journal: journal.take(), exits: exits.take(), now, executed }
}

/// How the guest reaches its local APIC.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Mode {
    /// By stores to its page.
    XApic,
    /// By WRMSR.
    X2Apic,
}

/// Registers of the local APIC, by their numbers in x2APIC mode less 800H.
pub(super) const SPURIOUS: u32 = 0xF;
pub(super) const LVTPC: u32 = 0x34;

impl Mode {
    /// Adds a write of a register, by its number in x2APIC mode less 800H.
    pub(super) fn write(self, program: &mut Program, number: u32, value: u32) {
        match self {
            Self::XApic => program.store(0xFEE0_0000 + number * 16, Width::Dword, value),
            Self::X2Apic => program.wrmsr(0x800 + number, value.into()),
        };
    }

    /// Adds an interrupt to the guest itself.
    pub(super) fn interrupt(self, program: &mut Program, vector: u8) {
        match self {
            Self::XApic => self.write(program, 0x30, 0x4_0000 | u32::from(vector)),
            Self::X2Apic => self.write(program, 0x3F, vector.into()),
        }
    }

    /// Adds an NMI to the guest itself.
    pub(super) fn nmi(self, program: &mut Program) {
        self.write(program, 0x30, 0x4_0400);
    }

    /// Adds the end of an interrupt.
    pub(super) fn end(self, program: &mut Program) {
        self.write(program, 0x0B, 0);
    }

    /// Begins a program: a stack, and the local APIC enabled by software.
    pub(super) fn begin(self) -> Program {
        let mut program = Program::at(0x1000);
        program.ops(&[Op::Mov(Gpr::Rsp, STACK)]);
        if self == Self::X2Apic {
            program.wrmsr(0x1B, 0xFEE0_0D00);
        }
        self.write(&mut program, SPURIOUS, 0x1FF);
        program
    }

    /// Begins a program with the timer in TSC-deadline mode too.
    pub(super) fn prologue(self) -> Program {
        let mut program = self.begin();
        self.write(&mut program, 0x32, 0x4_0000 | u32::from(TIMER));
        program
    }

    /// Ends a program: everything that waits is taken, then it writes 0 to the debug-exit port. Handlers follow.
    pub(super) fn epilogue(self, program: &mut Program) {
        program.flags(2).ops(&[Op::Mov(Gpr::Rax, 0), Op::WriteCr8, Op::Sti]).ops(&[Op::Nop; 40]);
        sleep(program, 500);
        sleep(program, 500);
        program.out(DEBUG_EXIT, Width::Byte, 0).ops(&[Op::Cli, Op::Hlt]);
        self.handlers(program);
    }

    /// Adds the handlers.
    pub(super) fn handlers(self, program: &mut Program) {
        program.continue_at(0x4_0000);
        for vector in PLAIN.into_iter().chain([TIMER]) {
            self.end(program.handler(vector).ops(&[Op::PushAll]));
            program.ops(&[Op::PopAll, Op::Iret]);
        }
        for vector in NESTING {
            self.end(program.handler(vector).ops(&[Op::PushAll, Op::Sti, Op::Nop, Op::Nop]));
            program.ops(&[Op::MovSs, Op::PopAll, Op::Iret]);
        }
        for vector in [1, 2, 3, 0x80] {
            program.handler(vector).ops(&[Op::Nop, Op::Iret]);
        }
        program.handler(6).ops(&[Op::ReturnTo(Gpr::Rbp), Op::Iret]);
        program.handler(13).ops(&[Op::DropErrorCode, Op::ReturnTo(Gpr::Rbp), Op::Iret]);
    }
}

/// Adds instructions that may fault: then the guest goes on after them.
pub(super) fn risky(program: &mut Program, ops: &[Op]) {
    let bytes: usize = ops.iter().map(|op| op.encode(0).len()).sum();
    let end = program.here() + 5 + bytes as u32;
    program.ops(&[Op::Mov(Gpr::Rbp, end)]).ops(ops);
}

/// Has the timer interrupt in `ticks`.
pub(super) fn arm(program: &mut Program, ticks: u32) {
    program.ops(&[Op::Rdtsc, Op::AddEax(ticks), Op::Mov(Gpr::Rdx, 0), Op::Mov(Gpr::Rcx, 0x6E0), Op::Wrmsr]);
}

/// Halts until the timer interrupts.
pub(super) fn sleep(program: &mut Program, ticks: u32) {
    program.ops(&[Op::Cli, Op::Mov(Gpr::Rax, 0), Op::WriteCr8]);
    arm(program, ticks);
    program.ops(&[Op::Sti, Op::Hlt]);
}

pub(super) const VENDORS: [Vendor; 2] = [Vendor::Intel, Vendor::Amd];
