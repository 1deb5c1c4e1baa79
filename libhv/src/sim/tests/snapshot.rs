//! Guests that go on with another machine, whose virtual processor has what a snapshot has of the first.

use super::harness::MEMORY;
use super::paravirt::{CALL, DISABLE, ENABLE, INSTRUCTIONS, PAGE, PAGE_CALL, begin, call, end, open, result, rounds};
use super::pmu::{self, Four, Registers, both};
use super::*;
use crate::devices::{Chipset, Configuration};
use crate::exit::StopReason;
use crate::pmu::host::{HostCounters, HostEvent};
use crate::pmu::paravirt::BadState;
use crate::pmu::paravirt::abi::{Refusal, State as Events};
use crate::pmu::state::StateError;
use crate::pmu::{Emulated, Paravirtual, Passthrough, PmuCapability, PmuPolicy, State};
use crate::registers::EntryState;
use crate::sim::pmu::{Config, intel};
use crate::vcpu::cpuid::Settings;
use crate::vcpu::{Vcpu, World};
use std::boxed::Box;

const DEBUGCTL: u32 = 0x1D9;
const BTF: u64 = 1 << 1;
const FREEZE: u64 = 0b11 << 11;

/// A guest at the beginning of its program, with all that it runs on.
struct Place<P> {
    vcpu: Vcpu<Processor, (), P>,
    chipset: Chipset,
    memory: GuestMemory,
    machine: Machine,
}

impl<P: PmuPolicy> Place<P> {
    fn new(policy: P, registers: Registers, program: &Program) -> Self {
        let machine = Machine::new(1, HZ, 0);
        machine.set_pmu(registers.config);
        let cpuid = machine.cpuid(registers.vendor);
        let capability = PmuCapability::of(&cpuid, || machine.pmu(|pmu| pmu.host_read(0x345)));
        let (mut processor, memory) = Processor::new(&machine, registers.vendor, 1, MEMORY, program);
        processor.stop_after(1_000_000);
        let devices = Configuration { memory_below_4g: MEMORY as u64, ..Configuration::new(HZ) };
        let chipset = Chipset::new(devices, Box::new(()));
        let (settings, entry) = (Settings::new(1, HZ), EntryState::protected_mode(0x1000));
        let vcpu = Vcpu::with_pmu(processor, (), policy, capability, 0, &cpuid, &settings, &entry);
        Self { vcpu, chipset, memory, machine }
    }

    fn with<T>(&mut self, act: impl FnOnce(&mut Vcpu<Processor, (), P>, &mut World<'_, Machine>) -> T) -> T {
        let Self { vcpu, chipset, memory, machine } = self;
        act(vcpu, &mut World { chipset, memory, host: machine })
    }

    /// Runs the guest until it halts or writes to the debug-exit port: what it wrote.
    fn run(&mut self) -> Option<u32> {
        match self.with(|vcpu, world| vcpu.run(world)) {
            Ok(StopReason::DebugExit(value)) => Some(value),
            Ok(StopReason::Halted) => None,
            outcome => panic!("the guest ended with {outcome:?}"),
        }
    }

    fn save(&mut self) -> (Option<State>, Option<Events>) {
        self.with(|vcpu, world| (vcpu.save_pmu(world), vcpu.save_paravirt()))
    }
}

/// Runs `first` until it halts, and on another machine `second`; returns what that wrote, and where it ran.
fn moved<P: PmuPolicy>(policy: impl Fn() -> P, on: Registers, first: &Program, second: &Program) -> (u32, Place<P>) {
    let (mut here, mut there) = (Place::new(policy(), on, first), Place::new(policy(), on, second));
    assert_eq!(here.run(), None);
    let (pmu, events) = here.save();
    if let Some(state) = &pmu {
        there.with(|vcpu, world| vcpu.restore_pmu(state, world)).expect("a guest's own");
    }
    if let Some(events) = &events {
        there.with(|vcpu, world| vcpu.restore_paravirt(events, world)).expect("a guest's own");
    }
    assert_eq!(there.save(), (pmu, events));
    assert_eq!(there.machine.pmu(|pmu| pmu.host_read(on.selector)), 0, "nothing is in the processor before it runs");
    (there.run().expect("a value"), there)
}

/// A29, T-A24: the records, their control, and what freezes them and the counters come with the PMU; the rest of
/// IA32_DEBUGCTL does not.
#[test]
fn records_and_what_freezes_them_come_out_of_a_snapshot() {
    const CONTROL: u32 = 0x14CE;
    const DIRECT_CALLS: u64 = 1 | 1 << 1 | 1 << 19;
    let [mut registers, _] = both();
    registers.config = Config::Intel(intel::Config { lbr_depth: 16, ..intel::Config::default() });
    let mut first = begin();
    first.wrmsr(DEBUGCTL, FREEZE | BTF).wrmsr(CONTROL, DIRECT_CALLS);
    let one = first.here();
    first.ops(&[Op::Call(0x3000), Op::Hlt]).continue_at(0x3000).ops(&[Op::Return]);
    let reads = |msr| {
        let mut second = begin();
        let another = second.here();
        second.ops(&[Op::Call(0x3000)]).rdmsr(msr);
        end(&mut second);
        second.continue_at(0x3000).ops(&[Op::Return]);
        (moved(Passthrough::new, registers, &first, &second).0, another)
    };
    assert_eq!(reads(CONTROL).0, DIRECT_CALLS as u32);
    let (youngest, another) = reads(0x1500);
    assert_eq!((youngest, reads(0x1501).0), (another, one), "the records go on from those of before");
    assert_eq!(reads(DEBUGCTL).0, FREEZE as u32);
}

/// A18, A29: beside a host that counts, what has run over of the guest's is kept apart while it runs.
#[test]
fn a_status_that_is_kept_beside_a_host_comes_out_of_a_snapshot() {
    for (registers, status) in both().into_iter().zip([0x38E, 0xC000_0300]) {
        let from = u64::MAX >> 16;
        let mut first = begin();
        first.wrmsr(registers.selector, pmu::INSTRUCTIONS).wrmsr(registers.counter, from).wrmsr(registers.control, 1);
        first.ops(&[Op::Nop; 5]).wrmsr(registers.control, 0).ops(&[Op::Hlt]);
        let mut second = begin();
        second.rdmsr(status);
        end(&mut second);
        let host = || HostCounters::new().sample(HostEvent::Cycles, 1000);
        assert_eq!(moved(|| Passthrough::new().beside(host()), registers, &first, &second).0, 1, "the same counters");
        assert_eq!(moved(|| Four.beside(host()), registers, &first, &second).0, 1, "counters of its own");
    }
}

/// A29, T-A24: IA32_DEBUGCTL of a guest whose counters are emulated; and what a guest cannot set is refused.
#[test]
fn a_snapshot_sets_no_bit_of_the_debug_control_that_the_guest_could_not() {
    const COUNTERS: u64 = 1 << 12;
    let [registers, _] = both();
    let (mut first, mut second) = (begin(), begin());
    first.wrmsr(DEBUGCTL, COUNTERS).ops(&[Op::Hlt]);
    second.rdmsr(DEBUGCTL);
    end(&mut second);
    assert_eq!(moved(Emulated::new, registers, &first, &second).0, COUNTERS as u32);
    let mut place = Place::new(Passthrough::new(), registers, &second);
    let (state, _) = place.save();
    let state = state.expect("a PMU");
    for (bits, answer) in [(BTF, BTF), (1 << 11, 1 << 11), (1 << 14 | COUNTERS, 1 << 14), (1 << 63, 1 << 63)] {
        let wrong = State { debug_control: bits, ..state };
        let refused = place.with(|vcpu, world| vcpu.restore_pmu(&wrong, world));
        assert_eq!(refused, Err(StateError::DebugControl(answer)));
    }
    assert_eq!(place.run(), Some(0), "nothing has changed");
}

/// Requirement B7: events count on, overflow where they would have, and the page of counters is where it was.
#[test]
fn paravirtual_events_come_out_of_a_snapshot() {
    const CPUIDS: u32 = PAGE + 0x100;
    const TOTAL: u32 = 71 + 1 + 1 + 36 + 1 + 1 + CALL - 1;
    for registers in both() {
        let counts = |policy: fn() -> _, field: u32| {
            let (mut first, mut second) = (begin(), begin());
            call(&mut first, PAGE_CALL, 0, PAGE);
            open(&mut first, 3, INSTRUCTIONS, 50);
            call(&mut first, ENABLE, 3, 0);
            rounds(&mut first, 10);
            first.ops(&[Op::Hlt]);
            rounds(&mut second, 5);
            second.store(CPUIDS, Width::Dword, 7);
            call(&mut second, DISABLE, 3, 0);
            second.ops(&[Op::Load(field, Width::Dword)]);
            end(&mut second);
            moved(policy, registers, &first, &second)
        };
        let paravirtual = || Paravirtual::on(());
        assert_eq!(counts(paravirtual, result(3) + 0x10).0, TOTAL, "on {:?}", registers.vendor);
        let (overflows, place) = counts(paravirtual, result(3) + 0x18);
        assert_eq!(overflows, TOTAL / 50);
        let cpuids = place.memory.read_number(Gpa::new(CPUIDS.into()), Width::Qword);
        assert_eq!(cpuids, Ok(15), "the guest's write is ignored");
        let left = place.machine.pmu(|pmu| [pmu.host_read(registers.selector), pmu.host_read(registers.counter)]);
        assert_eq!(left, [0, 0], "nothing of it stays in the processor");
    }
}

/// Requirement B7: the page alone, which each exit brings up to date, of a guest that counts by itself.
#[test]
fn a_page_of_counters_counts_on_after_a_snapshot() {
    for registers in both() {
        let (mut first, mut second) = (begin(), begin());
        call(&mut first, PAGE_CALL, 0, PAGE);
        rounds(&mut first, 10);
        first.ops(&[Op::Hlt]);
        rounds(&mut second, 5);
        // Reading it is no exit.
        second.ops(&[Op::Load(PAGE + 0x100, Width::Dword)]);
        end(&mut second);
        let policy = || Paravirtual::on(Passthrough::new());
        assert_eq!(moved(policy, registers, &first, &second).0, 15, "CPUID, on both machines");
    }
}

/// Requirement B7: what is refused changes nothing, and takes no counter.
#[test]
fn a_state_of_events_that_is_refused_leaves_the_guest_its_own() {
    for registers in both() {
        let mut program = begin();
        open(&mut program, 3, INSTRUCTIONS, 0);
        call(&mut program, ENABLE, 3, 0);
        rounds(&mut program, 10);
        program.ops(&[Op::Hlt]);
        call(&mut program, DISABLE, 3, 0);
        program.ops(&[Op::Load(result(3) + 0x10, Width::Dword)]);
        end(&mut program);
        let mut place = Place::new(Paravirtual::on(()), registers, &program);
        assert_eq!(place.run(), None);
        let good = place.save().1.expect("events");
        let mut bad = good;
        bad.events[0] = good.events[3];
        let refused = place.with(|vcpu, world| vcpu.restore_paravirt(&bad, world));
        assert_eq!(refused, Err(BadState::Impossible { id: 0 }));
        bad = Events { version: 2, ..good };
        let refused = place.with(|vcpu, world| vcpu.restore_paravirt(&bad, world));
        assert_eq!(refused, Err(BadState::Head(Refusal::WrongVersion)));
        assert_eq!(place.save().1, Some(good));
        assert_eq!(place.run(), Some(71 + 1 + CALL - 1), "on {:?}", registers.vendor);
        let mut none = Place::new((), registers, &program);
        assert_eq!(none.save(), (None, None));
        assert_eq!(none.with(|vcpu, world| vcpu.restore_paravirt(&good, world)), Err(BadState::NoEvents));
    }
}
