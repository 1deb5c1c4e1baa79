//! A test image: owners of one PMU that take turns on VMX, on a machine that really counts. It tells what a change costs
//! in registers and in instructions of the host, and that each owner finds its counts as it left them.
#![no_std]
#![no_main]

mod tally;

use libhv::address::Gpa;
use libhv::exit::{Exit, Msr, StopReason};
use libhv::hw::{Host, PmiRoute};
use libhv::log;
use libhv::memory::GuestMemory;
use libhv::memory::nested::NestedTables;
use libhv::platform::Machine;
use libhv::pmu::{Passthrough, Pmu};
use libhv::registers::EntryState;
use libhv::vcpu::Backend;
use libhv::vmx::{EptEntry, Vmx};
use tally::Tally;

libhv::entry!(main);

/// Where the guest's code lies.
const CODE: u64 = 0x1000;
/// What runs in each turn, in real-address mode: MOV CX, 100; LOOP to itself; VMCALL; JMP to the start.
const GUEST: [u8; 10] = [0xB9, 100, 0, 0xE2, 0xFE, 0x0F, 0x01, 0xC1, 0xEB, 0xF6];
/// What a turn after the first retires: VMCALL leaves and does not. LOOP is a branch where it falls through, too.
const INSTRUCTIONS: u64 = 102;
const BRANCHES: u64 = 101;
const TURNS: u64 = 50;

const SELECTOR: u32 = 0x186;
const FIXED_CONTROL: Msr = Msr(0x38D);
const GLOBAL_CONTROL: Msr = Msr(0x38F);
/// EN, OS and USR, with the event.
const COUNT_INSTRUCTIONS: u64 = 0x43_00C0;
const COUNT_BRANCHES: u64 = 0x43_00C4;

/// Why the image has failed.
type Step<T = ()> = Result<T, &'static str>;

fn main(mut machine: Machine) -> libhv::Result<StopReason> {
    let capabilities = Vmx::check()?;
    let mut memory = machine.guest_memory(0x1_0000)?;
    memory.write(Gpa::new(CODE), &GUEST).expect("guest memory");
    let mut frames = machine.frames();
    let mut tables = NestedTables::<EptEntry>::new(&mut frames, capabilities.largest_page())?;
    tables.map_all(&mut frames, &memory)?;
    let mut vmx = machine.vmx(tables)?;
    vmx.load(&EntryState::real_mode(0, CODE as u16));
    let mut test = Test { vmx, memory, machine };
    match test.run() {
        Ok(()) => log!("pass pmu-owners"),
        Err(why) => log!("fail pmu-owners: {why}; {:x?}", test.vmx.raw_exit()),
    }
    Ok(StopReason::PowerOff)
}

/// An owner: what it counts with all general-purpose counters, and how much of it a turn is.
struct Owner {
    pmu: Pmu<Passthrough>,
    selector: u64,
    each_turn: u64,
    counted: u64,
}

struct Test {
    vmx: Vmx,
    memory: GuestMemory,
    machine: Machine,
}

impl Test {
    fn run(&mut self) -> Step {
        // The guest stands in front of its JMP from now on, and each turn is like the others.
        self.turn()?;
        self.take_turns("alike", [(COUNT_INSTRUCTIONS, INSTRUCTIONS); 2])?;
        self.take_turns("unlike", [(COUNT_INSTRUCTIONS, INSTRUCTIONS), (COUNT_BRANCHES, BRANCHES)])
    }

    /// Runs the guest from one VMCALL to the next.
    fn turn(&mut self) -> Step {
        loop {
            match self.vmx.enter().map_err(|_| "the processor refused to enter")? {
                Exit::ExternalInterrupt(vector) => self.machine.processor().serve_interrupts(vector),
                Exit::Hypercall => break,
                _ => return Err("the guest left otherwise than by VMCALL"),
            }
        }
        self.vmx.advance(&self.memory);
        Ok(())
    }

    /// Two owners with all counters live: whose turn it is puts its registers in, and counts.
    fn take_turns(&mut self, name: &str, selectors: [(u64, u64); 2]) -> Step {
        let mut owners = [self.owner(selectors[0]), self.owner(selectors[1])];
        for (owner, turns) in owners.iter_mut().zip([1, 3]) {
            self.acquire(owner);
            self.program(owner)?;
            // So far apart that no two counts are ever alike.
            for _ in 0..turns {
                self.count(owner)?;
            }
        }
        // First by the clock, then with each access counted, which takes time.
        let mut ticks = 0;
        for turn in 0..TURNS {
            let owner = &mut owners[turn as usize & 1];
            ticks += self.acquire(owner);
            self.count(owner)?;
        }
        let (mut reads, mut writes) = (0, 0);
        for turn in 0..TURNS {
            let owner = &mut owners[turn as usize & 1];
            let mut tally = Tally::new(&mut self.vmx);
            owner.pmu.acquire(&mut tally, self.machine.processor()).expect("a PMU that can be restored");
            (reads, writes) = (reads + tally.reads.get(), writes + tally.writes);
            self.count(owner)?;
        }
        // A clock that is read is an instruction itself.
        let instructions = ticks / TURNS - 1;
        log!("pmu owner {name}: writes {}, reads {}, instructions {instructions}", writes / TURNS, reads / TURNS);
        for owner in &mut owners {
            self.acquire(owner);
            owner.pmu.release(&mut self.vmx, self.machine.processor());
        }
        Ok(())
    }

    fn owner(&mut self, (selector, each_turn): (u64, u64)) -> Owner {
        let mut pmu = Pmu::new(Passthrough::new(), self.machine.pmu_capability(), &self.vmx);
        pmu.arrange(&mut self.vmx);
        Owner { pmu, selector, each_turn, counted: 0 }
    }

    /// Does what the run loop does where another was in the registers; returns the ticks that it took.
    fn acquire(&mut self, owner: &mut Owner) -> u64 {
        let before = self.machine.processor().now();
        owner.pmu.acquire(&mut self.vmx, self.machine.processor()).expect("a PMU that can be restored");
        owner.pmu.mirror(PmiRoute::Guest, &mut self.vmx, self.machine.processor());
        self.machine.processor().now().since(before)
    }

    fn program(&mut self, owner: &mut Owner) -> Step {
        let selectors = (0..8).map(|n| (Msr(SELECTOR + n), owner.selector));
        for (msr, value) in selectors.chain([(FIXED_CONTROL, 0x3333), (GLOBAL_CONTROL, 0xF_0000_00FF)]) {
            owner.pmu.write(msr, value, &mut self.vmx).ok_or("a register that the guest does not have")?;
        }
        Ok(())
    }

    /// Runs a turn of an owner's, and compares what it has counted in all of them.
    fn count(&mut self, owner: &mut Owner) -> Step {
        self.turn()?;
        owner.counted += owner.each_turn;
        for n in 0..8 {
            let counted = owner.pmu.read_counter(n, 0, 0, &self.vmx).ok_or("a counter that the guest does not have")?;
            if counted != owner.counted {
                log!("counter {n}: {counted}, not {}", owner.counted);
                return Err("what an owner has counted in its turns");
            }
        }
        Ok(())
    }
}
