//! The simulated processor: what it holds, and what it writes down.

use super::counting::Doing;
use super::machine::{Machine, Wires};
use super::nested::NestedMap;
use super::pmu::Pmu;
use super::pmu::amd::Slots;
use super::program::{Op, Program};
use super::random::Random;
use crate::address::Gpa;
use crate::exit::{Event, RawExit, Width};
use crate::memory::{GuestMemory, Window};
use crate::registers::{DescriptorTable, EntryState, Segment};
use crate::time::Tsc;
use alloc::collections::BTreeMap;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use core::ops::RangeInclusive;

/// The code of the exit, [`Exit::Unhandled`](crate::exit::Exit::Unhandled), by which a processor whose instructions
/// are spent leaves for good.
pub const SPENT: u64 = 0x5133_0000;

/// Whose habits the processor has, where the two differ in what a hypervisor sees.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Vendor {
    /// Interrupts are acknowledged on exit, an interrupted INT n or INT3 is handed over with its length, and there is
    /// a timer of the backend's own.
    Intel,
    /// Interrupts stay pending, an interrupted INT n or INT3 starts anew by itself, and there is no timer.
    Amd,
}

/// What happened in the guest, in order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Record {
    /// An event was delivered: its handler is next. Moments are of the host's time-stamp counter.
    Delivered(Event, Tsc),
    /// A WRMSR ended without a fault: the MSR, its value, and the moment.
    Wrote(u32, u64, Tsc),
    /// Another instruction that the hypervisor carried out has ended, with this in EAX.
    Completed(Op, u32),
    /// An IRET ended.
    Returned,
}

/// What a processor writes down. Clones are the same journal, so that a test can read it while the run loop owns the
/// processor.
#[derive(Clone, Debug, Default)]
pub struct Journal(Rc<RefCell<Vec<Record>>>);

impl Journal {
    /// Takes what has been written down since the last call.
    pub fn take(&self) -> Vec<Record> {
        self.0.take()
    }
    pub(super) fn push(&self, record: Record) {
        self.0.borrow_mut().push(record);
    }
}

/// After which instruction the guest stands in an interrupt shadow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Shadow {
    None,
    Sti,
    MovSs,
}

/// How the guest left last.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Left {
    pub(super) raw: RawExit,
    /// The instruction that exited and its length, until it is advanced over.
    pub(super) instruction: Option<(Op, u8)>,
}

/// A processor that executes one guest's program, deterministically.
#[derive(Debug)]
pub struct Processor {
    pub(super) vendor: Vendor,
    pub(super) wires: Rc<Wires>,
    pub(super) memory: GuestMemory,
    pub(super) nested: NestedMap,
    /// The page that [`Backend::set_read_only`](crate::vcpu::Backend::set_read_only) named.
    pub(super) read_only: Option<Gpa>,
    pub(super) first: u32,
    pub(super) ops: Vec<Option<(Op, u8)>>,
    pub(super) handlers: BTreeMap<u8, u32>,

    pub(super) gprs: [u64; 16],
    pub(super) rip: u64,
    pub(super) rflags: u64,
    pub(super) cr0: u64,
    pub(super) cr2: u64,
    pub(super) cr3: u64,
    pub(super) cr4: u64,
    pub(super) efer: u64,
    pub(super) xcr0: u64,
    pub(super) segments: [Segment; 8],
    pub(super) tables: (DescriptorTable, DescriptorTable),
    pub(super) vectors: [[u64; 4]; 16],
    pub(super) switched: BTreeMap<u32, u64>,

    pub(super) shadow: Shadow,
    pub(super) nmi_blocked: bool,
    /// A single-step trap waits to be taken.
    pub(super) step: bool,
    pub(super) injection: Option<Event>,
    pub(super) interrupted: Option<Event>,
    pub(super) watches_interrupts: bool,
    pub(super) watches_nmi: bool,
    pub(super) passes_nmis: bool,
    /// What is left on the backend's own timer, which counts from entry to exit.
    pub(super) timer: Option<u64>,
    pub(super) timer_expires: u64,
    pub(super) tsc_offset: u64,
    pub(super) passed_msrs: BTreeMap<u32, (bool, bool)>,
    pub(super) passed_ports: Vec<RangeInclusive<u16>>,
    pub(super) passes_rdpmc: bool,
    /// What VM exits load into IA32_PERF_GLOBAL_CTRL, where VM entries and VM exits switch it.
    pub(super) host_global_control: Option<u64>,
    pub(super) guest_global_control: u64,
    /// What VM entries load into IA32_LBR_CTL, where they do.
    pub(super) guest_lbr_control: Option<u64>,
    /// The guest's counters in the VMCB, where hardware switches them.
    pub(super) virtual_counters: Option<Slots>,
    pub(super) doing: Doing,
    /// References to the last-level cache and misses of the instruction at hand.
    pub(super) touched: Cell<(u64, u64)>,
    pub(super) own_msrs: BTreeMap<u32, u64>,
    pub(super) left: Left,

    pub(super) random: Random,
    pub(super) unmap_stack_once_in: u64,
    pub(super) records: Journal,
    pub(super) executed: u64,
    pub(super) budget: u64,
    /// Entries up to the one that is refused, that one included; 0 for none.
    pub(super) refuses_in: u64,
}

impl Processor {
    /// Makes a processor on `machine` with `bytes` bytes of memory from address 0, and the guest's memory as the host
    /// sees it. The program's bytes are put there; it runs once [`load`](crate::vcpu::Backend::load) has set RIP.
    ///
    /// # Panics
    /// When the program does not fit into the memory.
    pub fn new(machine: &Machine, vendor: Vendor, seed: u64, bytes: usize, program: &Program) -> (Self, GuestMemory) {
        let (host, guest) = Window::leaked_pair(bytes);
        let (mut memory, mut own) = (GuestMemory::new(), GuestMemory::new());
        memory.add(Gpa::new(0), host).expect("a size that is a multiple of 4096");
        own.add(Gpa::new(0), guest).expect("a size that is a multiple of 4096");
        for (address, code) in program.bytes() {
            for (offset, byte) in (0u32..).zip(code) {
                let at = Gpa::new((address + offset).into());
                memory.write_number(at, Width::Byte, byte.into()).expect("a program that fits into the memory");
            }
        }
        let first = program.ops.keys().next().copied().unwrap_or(0);
        let last = program.ops.keys().next_back().copied().unwrap_or(0);
        let mut ops = alloc::vec![None; (last - first + 1) as usize];
        for (&address, &op) in &program.ops {
            ops[(address - first) as usize] = Some(op);
        }
        // The backend has set EFER.SVME by now.
        machine.wires().if_counting(|counting| {
            if let Pmu::Amd(pmu) = &mut counting.pmu {
                pmu.set_svme(true);
            }
        });
        let reset = EntryState::protected_mode(first);
        let processor = Self {
            vendor,
            wires: machine.wires(),
            memory: own,
            nested: NestedMap::new(bytes),
            read_only: None,
            first,
            ops,
            handlers: program.handlers.clone(),
            gprs: reset.gprs,
            rip: reset.rip,
            rflags: reset.rflags,
            cr0: reset.cr0,
            cr2: 0,
            cr3: 0,
            cr4: 0,
            efer: 0,
            xcr0: 1,
            segments: reset.segments,
            tables: (reset.gdtr, reset.idtr),
            vectors: [[0; 4]; 16],
            switched: super::backend::SWITCHED.iter().map(|&msr| (msr, 0)).collect(),
            shadow: Shadow::None,
            nmi_blocked: false,
            step: false,
            injection: None,
            interrupted: None,
            watches_interrupts: false,
            watches_nmi: false,
            passes_nmis: false,
            timer: None,
            timer_expires: u64::MAX,
            tsc_offset: 0,
            passed_msrs: BTreeMap::new(),
            passed_ports: Vec::new(),
            passes_rdpmc: false,
            host_global_control: None,
            guest_global_control: 0,
            guest_lbr_control: None,
            virtual_counters: None,
            doing: Doing::default(),
            touched: Cell::default(),
            own_msrs: BTreeMap::new(),
            left: Left::default(),
            random: Random::new(seed),
            unmap_stack_once_in: 0,
            records: Journal::default(),
            executed: 0,
            budget: u64::MAX,
            refuses_in: 0,
        };
        (processor, memory)
    }

    /// Has the guest leave for good, with [`SPENT`], after so many instructions in all.
    pub fn stop_after(&mut self, instructions: u64) {
        self.budget = instructions;
    }

    /// Refuses the last of so many entries, as VMLAUNCH and VMRESUME do with what they do not like.
    pub fn refuse_entry(&mut self, entries: u64) {
        self.refuses_in = entries;
    }

    /// Returns how many instructions the guest has begun.
    pub fn executed(&self) -> u64 {
        self.executed
    }

    /// Has the page of the guest's stack taken out of the nested translations, flushed, about once in so many
    /// deliveries of events; never when 0. Each such delivery ends in a nested page fault.
    pub fn unmap_stack_once_in(&mut self, deliveries: u64) {
        self.unmap_stack_once_in = deliveries;
    }

    /// Returns the nested translations, which tests may change at any time.
    pub fn nested(&self) -> NestedMap {
        self.nested.clone()
    }

    /// Returns what the processor writes down.
    pub fn journal(&self) -> Journal {
        self.records.clone()
    }

    pub(super) fn now(&self) -> Tsc {
        Tsc(self.wires.now.get())
    }
}
