//! A host that counts beside a guest that counts, whatever either does: each counts its own instructions alone.

use super::harness::{DEBUG_EXIT, LVTPC, Mode};
use super::pmu::*;
use super::*;
use crate::exit::{Exit, Resolution};
use crate::pmu::host::{HostCounters, HostEvent};
use crate::pmu::{Emulated, EventFilter, EventSelector, Filtered, Passthrough, PmuPolicy};
use crate::registers::GuestState;
use crate::sim::machine::Wires;
use crate::sim::pmu::Happened;
use crate::vcpu::Appliance;
use proptest::prelude::*;
use std::cell::Cell;
use std::rc::Rc;
use std::vec::Vec;

/// Works at each exit, for a while that the random numbers say.
struct Worker {
    wires: Rc<Wires>,
    lengths: Vec<u64>,
    exits: usize,
    done: Rc<Cell<u64>>,
}

impl Appliance for Worker {
    fn on_exit(&mut self, _: &Exit, _: &mut impl GuestState) -> Resolution {
        let instructions = self.lengths[self.exits % self.lengths.len()];
        self.exits += 1;
        for _ in 0..instructions {
            self.wires.counting(|counting| {
                counting.host(&Happened { cycles: 1, ref_cycles: 1, instructions: 1, ..Happened::default() });
            });
        }
        self.done.set(self.done.get() + instructions);
        Resolution::NotMine
    }
}

/// One step of the guest's.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// So many instructions that do not leave.
    Stay(u32),
    Cpuid,
    /// RDMSR of its counter, which leaves where counters are not passed.
    Read,
    /// Its counter begins a period anew.
    Rewind,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![(1u32..60).prop_map(Step::Stay), Just(Step::Cpuid), Just(Step::Read), Just(Step::Rewind)]
}

/// Counts instructions with an interrupt each `period`, and ends with what the counter holds.
fn program(registers: Registers, steps: &[Step], period: u64) -> Program {
    let from = (1 << 48) - period;
    let mut program = Mode::X2Apic.begin();
    Mode::X2Apic.write(&mut program, LVTPC, PMI.into());
    program.wrmsr(registers.selector, INSTRUCTIONS | INT).wrmsr(registers.counter, from).wrmsr(registers.control, 1);
    program.ops(&[Op::Sti]);
    for step in steps {
        match *step {
            Step::Stay(instructions) => program.repeat(instructions, &[Op::Nop]),
            Step::Cpuid => program.ops(&[Op::PushAll, Op::Mov(Gpr::Rax, 0), Op::Cpuid, Op::PopAll]),
            Step::Read => program.ops(&[Op::PushAll]).rdmsr(registers.counter).ops(&[Op::PopAll]),
            Step::Rewind => program.ops(&[Op::PushAll]).wrmsr(registers.counter, from).ops(&[Op::PopAll]),
        };
    }
    program.wrmsr(registers.control, 0).rdmsr(registers.counter);
    program.ops(&[Op::Mov(Gpr::Rdx, DEBUG_EXIT.into()), Op::Out(Width::Dword), Op::Hlt]).handler(PMI);
    program.ops(&[Op::PushAll]).wrmsr(registers.clear, 1).wrmsr(registers.counter, from);
    Mode::X2Apic.write(&mut program, LVTPC, PMI.into());
    Mode::X2Apic.end(&mut program);
    program.ops(&[Op::PopAll, Op::Iret]);
    program
}

/// Runs with the host beside and without, and compares.
fn compare<P: PmuPolicy>(
    policy: impl Fn() -> P,
    registers: Registers,
    host: HostCounters,
    lengths: &[u64],
    refused: u64,
    guest: &Program,
) -> core::result::Result<(), TestCaseError> {
    let alone = run(policy(), registers, 0, guest);
    let done = Rc::new(Cell::new(0));
    let (told, lengths) = (done.clone(), lengths.to_vec());
    let worker = move |processor: &mut Processor| {
        processor.refuse_entry(refused);
        Worker { wires: processor.wires.clone(), lengths, exits: 0, done: told }
    };
    let beside = run_on(worker, policy().beside(host), registers, 0, guest);
    prop_assert_eq!(beside.value, alone.value, "the guest's counter");
    let interrupts = [&beside, &alone].map(|ran| ran.interrupts(Event::Interrupt(PMI)));
    prop_assert_eq!(interrupts[0], interrupts[1], "the guest's interrupts");
    // Where nothing is exchanged, the host's work before and after each exit counts too: ten thousands.
    prop_assert_eq!(beside.host % 10_000, done.get() % 10_000, "the host's instructions");
    prop_assert!(done.get() == 0 || beside.host != 0);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// A4, A16, A26: the guest's counters and interrupts are as without a host that counts, and the host counts its own
    /// instructions alone, an entry that the processor refuses or none.
    #[test]
    fn host_and_guest_count_themselves_alone_whatever_they_do(
        steps in prop::collection::vec(step(), 1..40),
        lengths in prop::collection::vec(0u64..50, 1..10),
        period in 60u64..400,
        events in 1usize..6,
        host_period in prop::option::of(20u64..500),
        policy in 0..5,
        vendor in 0..2usize,
        refused in 0u64..30,
    ) {
        let registers = both()[vendor];
        // With the most events, each counter of the guest's is one of the host's too.
        let event = || HostEvent::Selector(EventSelector(INSTRUCTIONS));
        let mut host = (0..events + if vendor == 0 { 2 } else { 0 }).fold(HostCounters::new(), |host, _| host.count(event()));
        if let Some(period) = host_period {
            host = host.sample(event(), period);
        }
        let guest = program(registers, &steps, period);
        match policy {
            0 => compare(Passthrough::new, registers, host, &lengths, refused, &guest)?,
            1 => {
                let filter = || Filtered::new(&EventFilter::ALLOW_ALL).expect("legal");
                compare(filter, registers, host, &lengths, refused, &guest)?;
            }
            2 => compare(Emulated::new, registers, host, &lengths, refused, &guest)?,
            3 => compare(|| Four, registers, host, &lengths, refused, &guest)?,
            _ => compare(|| Emulated::of(Four), registers, host, &lengths, refused, &guest)?,
        }
    }
}
