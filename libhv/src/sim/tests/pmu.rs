//! The PMU pillar under the run loop, on the simulated processor: guests that own the counters.

use super::harness::{DEBUG_EXIT, LVTPC, Mode, STACK};
use super::*;
use crate::devices::{Chipset, Configuration};
use crate::error::Error;
use crate::exit::{Exit, Resolution, StopReason};
use crate::hw::PmiRoute;
use crate::pmu::host::{HostCounters, HostEvent};
use crate::pmu::{
    Emulated, EventFilter, Filtered, Means, Passthrough, PmuCapability, PmuCounts, PmuPolicy, PmuReport, PmuShare,
};
use crate::registers::{EntryState, GuestState};
use crate::sim::pmu::{Config, Happened, amd, intel};
use crate::vcpu::cpuid::Settings;
use crate::vcpu::{Appliance, Vcpu, World};
use std::boxed::Box;

const MEMORY: usize = super::harness::MEMORY;
pub(super) const PMI: u8 = 0x51;
pub(super) const INSTRUCTIONS: u64 = 0xC0 | 1 << 16 | 1 << 17 | 1 << 22;
pub(super) const INT: u64 = 1 << 20;
/// Far more than guests count here: whatever leaks shows.
const HOST_WORK: Happened = Happened {
    cycles: 10_000,
    ref_cycles: 10_000,
    instructions: 10_000,
    branches: 1000,
    conditional: 1000,
    mispredicted: 100,
    llc_references: 100,
    llc_misses: 100,
};

/// Where a vendor has its registers.
#[derive(Clone, Copy)]
pub(super) struct Registers {
    pub(super) vendor: Vendor,
    pub(super) config: Config,
    pub(super) selector: u32,
    pub(super) counter: u32,
    pub(super) control: u32,
    pub(super) clear: u32,
}

pub(super) fn both() -> [Registers; 2] {
    [
        Registers {
            vendor: Vendor::Intel,
            config: Config::Intel(intel::Config::default()),
            selector: 0x186,
            counter: 0x4C1,
            control: 0x38F,
            clear: 0x390,
        },
        Registers {
            vendor: Vendor::Amd,
            config: Config::Amd(amd::Config::default()),
            selector: 0xC001_0200,
            counter: 0xC001_0201,
            control: 0xC000_0301,
            clear: 0xC000_0302,
        },
    ]
}

/// An Intel processor on which software cannot set IA32_PERF_GLOBAL_STATUS.
pub(super) fn before_version_4() -> Registers {
    let [intel, _] = both();
    Registers { config: Config::Intel(intel::Config { version: 3, ..intel::Config::default() }), ..intel }
}

pub(super) struct Ran {
    /// What the guest wrote to the debug-exit port.
    pub(super) value: u32,
    /// It came to its end, rather than to that of the instructions it was given.
    pub(super) ended: bool,
    pub(super) journal: Vec<Record>,
    pub(super) counts: PmuCounts,
    pub(super) exits: u64,
    /// What its policy gives it.
    pub(super) report: PmuReport,
    /// What the host's first event has counted.
    pub(super) host: u64,
    pub(super) machine: Machine,
    pub(super) memory: GuestMemory,
}

impl Ran {
    pub(super) fn interrupts(&self, wanted: Event) -> usize {
        self.journal.iter().filter(|record| matches!(record, Record::Delivered(event, _) if *event == wanted)).count()
    }
}

pub(super) fn run<P: PmuPolicy>(policy: P, registers: Registers, skid: u64, program: &Program) -> Ran {
    run_for((), policy, registers, skid, program)
}

fn run_for<A: Appliance, P: PmuPolicy>(
    appliance: A,
    policy: P,
    registers: Registers,
    skid: u64,
    program: &Program,
) -> Ran {
    run_on(|_| appliance, policy, registers, skid, program)
}

/// The same with an appliance that is made when the processor is.
pub(super) fn run_on<A: Appliance, P: PmuPolicy>(
    appliance: impl FnOnce(&mut Processor) -> A,
    policy: P,
    registers: Registers,
    skid: u64,
    program: &Program,
) -> Ran {
    let mut machine = Machine::new(1, HZ, 0);
    machine.set_pmu(registers.config);
    machine.set_host_work(HOST_WORK);
    machine.set_pmi_skid(skid);
    let cpuid = machine.cpuid(registers.vendor);
    let capability = PmuCapability::of(&cpuid, || machine.pmu(|pmu| pmu.host_read(0x345)));
    let (mut processor, mut memory) = Processor::new(&machine, registers.vendor, 1, MEMORY, program);
    processor.stop_after(10_000_000);
    let appliance = appliance(&mut processor);
    let bounded = processor.budget < 10_000_000;
    let journal = processor.journal();
    let mut chipset =
        Chipset::new(Configuration { memory_below_4g: MEMORY as u64, ..Configuration::new(HZ) }, Box::new(()));
    let (settings, entry) = (Settings::new(1, HZ), EntryState::protected_mode(0x1000));
    let mut vcpu = Vcpu::with_pmu(processor, appliance, policy, capability, 0, &cpuid, &settings, &entry);
    let mut ended = true;
    let value = loop {
        match vcpu.run(&mut World { chipset: &mut chipset, memory: &mut memory, host: &mut machine }) {
            Ok(StopReason::DebugExit(value)) => break value,
            // It is interrupted again and again.
            Ok(StopReason::Unhandled(raw)) if raw.code == SPENT && bounded => {
                ended = false;
                break 0;
            }
            // It halts for good, and is run again all the same, out of a snapshot.
            Ok(StopReason::Halted) => {
                machine.work(&HOST_WORK);
                let world = &mut World { chipset: &mut chipset, memory: &mut memory, host: &mut machine };
                let state = vcpu.save_pmu(world);
                assert_eq!(state.is_some(), P::MEANS != Means::Hidden);
                if let Some(state) = state {
                    vcpu.restore_pmu(&state, world).expect("its own");
                    assert_eq!(vcpu.save_pmu(world), Some(state));
                }
                let events = vcpu.save_paravirt();
                assert_eq!(events.is_some(), P::PARAVIRTUAL);
                if let Some(events) = events {
                    vcpu.restore_paravirt(&events, world).expect("its own");
                    assert_eq!(vcpu.save_paravirt(), Some(events));
                }
            }
            // It is run again, and another guest could be: nothing of this one is there.
            Err(Error::VmEntry(_)) => {
                assert_eq!(
                    (machine.slot.owner(), machine.wires().counting(|counting| counting.route())),
                    (None, PmiRoute::Masked)
                );
                machine.work(&HOST_WORK);
            }
            outcome => panic!("the guest ended with {outcome:?}"),
        }
    };
    let host = vcpu.host_counters().map_or(0, |post| post.value(0));
    let (counts, exits, report) = (vcpu.pmu_counts(), vcpu.trace().exits(), vcpu.pmu_report());
    Ran { value, ended, journal: journal.take(), counts, exits, report, host, machine, memory }
}

/// A guest that sets up counter 0, runs `body`, and tells what `RDPMC` of counter 0 gives then.
fn counting(registers: Registers, selector: u64, start: u64, body: impl FnOnce(&mut Program)) -> Program {
    let mut program = Program::at(0x1000);
    program.ops(&[Op::Mov(Gpr::Rsp, STACK)]);
    program.wrmsr(registers.selector, selector).wrmsr(registers.counter, start).wrmsr(registers.control, 1);
    body(&mut program);
    program.rdpmc(0).ops(&[Op::Mov(Gpr::Rdx, DEBUG_EXIT.into()), Op::Out(Width::Dword), Op::Hlt]);
    program
}

/// The counted loop of `times` rounds, each with an exit.
fn looped(registers: Registers, times: u32) -> Program {
    counting(registers, INSTRUCTIONS, 0, |program| {
        program.repeat(times, &[Op::Nop, Op::PushAll, Op::Mov(Gpr::Rax, 0), Op::Cpuid, Op::PopAll]);
    })
}

/// Requirement A26, section 1.4 point 6: the host adds nothing, and skipped instructions count once.
/// Also A2.
#[test]
fn a_loop_with_an_exit_in_each_round_counts_exactly() {
    fn counts<P: PmuPolicy>(policy: impl Fn() -> P, registers: Registers) {
        let base = run(policy(), registers, 0, &looped(registers, 1));
        let more = run(policy(), registers, 0, &looped(registers, 1001));
        assert_eq!(more.value - base.value, 1000 * 7, "on {:?}", registers.vendor);
        assert!(more.exits >= base.exits + 1000);
        assert!(more.counts.credited >= 1000, "CPUID is credited");
    }
    for registers in both() {
        counts(Passthrough::new, registers);
        counts(|| Filtered::new(&EventFilter::ALLOW_ALL).expect("legal"), registers);
        counts(Emulated::new, registers);
        // The host counts with the same counters, or with all of them.
        counts(|| Passthrough::new().beside(HostCounters::new().count(HostEvent::Cycles)), registers);
        let all = |counters| (0..6).fold(counters, |counters: HostCounters, _| counters.count(HostEvent::Cycles));
        counts(|| Passthrough::new().beside(all(HostCounters::new())), registers);
        let filter = || Filtered::new(&EventFilter::ALLOW_ALL).expect("legal");
        counts(|| filter().beside(all(HostCounters::new())), registers);
        counts(|| Emulated::new().beside(all(HostCounters::new())), registers);
    }
}

/// Requirement A26: what an appliance executes in the guest's stead counts once too, whichever exit it came with.
#[test]
fn an_instruction_that_an_appliance_completes_counts_once() {
    const DEVICE: u32 = 0xD000_0000;
    struct Sink;
    impl Appliance for Sink {
        fn on_exit(&mut self, exit: &Exit, _guest: &mut impl GuestState) -> Resolution {
            match exit {
                Exit::NestedPageFault(fault) if fault.gpa.as_u64() == DEVICE.into() => Resolution::Complete,
                _ => Resolution::NotMine,
            }
        }
    }
    for registers in both() {
        let storing = |address| {
            counting(registers, INSTRUCTIONS, 0, |program| {
                for _ in 0..5 {
                    program.store(address, Width::Dword, 7);
                }
            })
        };
        let memory = run_for(Sink, Passthrough::new(), registers, 0, &storing(0x9_0000));
        let device = run_for(Sink, Passthrough::new(), registers, 0, &storing(DEVICE));
        assert_eq!(device.value, memory.value, "on {:?}", registers.vendor);
        assert!(device.counts.credited >= memory.counts.credited + 5);
    }
}

/// Requirements A22 to A25, T-A2, T-A10: each overflow is one interrupt in the guest, whether the processor or the
/// hypervisor executed the last instruction, however late the processor tells.
/// Also T-A12.
#[test]
fn each_overflow_reaches_the_guests_handler_once() {
    const ROUNDS: u32 = 40;
    for registers in both() {
        for mode in [Mode::XApic, Mode::X2Apic] {
            for skid in [0, 3] {
                let program = sampled(registers, mode, ROUNDS, PMI.into());
                let ran = run(Passthrough::new(), registers, skid, &program);
                let delivered = ran.interrupts(Event::Interrupt(PMI));
                assert_eq!(ran.counts.interrupts, delivered as u64);
                // 70 instructions a period, 20 rounds of 7 each.
                assert!(delivered >= 5, "{delivered} interrupts on {:?}, skid {skid}", registers.vendor);
                assert_eq!(ran.machine.host_nmis(), 0);
            }
        }
    }
}

/// The same with counters that are emulated, and with a host that counts in between with the same ones: neither loses
/// an interrupt of the guest's nor makes one.
/// Also A5.
#[test]
fn a_guest_is_interrupted_as_often_however_its_counters_are_kept() {
    for registers in both() {
        for skid in [0, 3] {
            let program = sampled(registers, Mode::X2Apic, 40, PMI.into());
            let passed = run(Passthrough::new(), registers, skid, &program).interrupts(Event::Interrupt(PMI));
            let emulated = run(Emulated::new(), registers, skid, &program);
            assert_eq!(emulated.interrupts(Event::Interrupt(PMI)), passed, "emulated, skid {skid}");
            let events = (0..6).fold(HostCounters::new(), |counters, _| counters.count(HostEvent::Cycles));
            let beside = run(Passthrough::new().beside(events.clone()), registers, skid, &program);
            let both = run(Emulated::new().beside(events), registers, skid, &program);
            for beside in [beside, both] {
                assert_eq!(beside.interrupts(Event::Interrupt(PMI)), passed, "beside a host, skid {skid}");
                assert_eq!(beside.counts.interrupts, passed as u64);
                assert_eq!(beside.machine.host_nmis(), 0);
                // The simulated host works while its events are stopped: nothing of the guest's is counted either.
                assert_eq!(beside.host % 10_000, 0);
            }
        }
    }
}

/// T-A24: before version 4 an interrupt that freezes clears IA32_PERF_GLOBAL_CTRL, and what the guest writes to other
/// registers does not set it again.
#[test]
fn an_emulated_guest_is_frozen_as_its_version_says() {
    let frozen = |registers: Registers, tells: &dyn Fn(&mut Program)| {
        let mut program = Mode::X2Apic.begin();
        Mode::X2Apic.write(&mut program, LVTPC, PMI.into());
        program.wrmsr(0x1D9, 1 << 12).wrmsr(registers.selector, INSTRUCTIONS | INT);
        program.wrmsr(registers.counter, (1 << 48) - 20).wrmsr(registers.control, 1);
        program.ops(&[Op::Sti]).ops(&[Op::Nop; 40]).ops(&[Op::Hlt]).handler(PMI);
        program.wrmsr(registers.clear, 1).wrmsr(registers.selector + 1, 0).ops(&[Op::Nop; 7]);
        tells(&mut program);
        program.ops(&[Op::Mov(Gpr::Rdx, DEBUG_EXIT.into()), Op::Out(Width::Dword), Op::Hlt]);
        [run(Passthrough::new(), registers, 0, &program).value, run(Emulated::new(), registers, 0, &program).value]
    };
    let [intel, _] = both();
    for (registers, control) in [(before_version_4(), 0), (intel, 1)] {
        let told = frozen(registers, &|program| _ = program.rdmsr(registers.control));
        assert_eq!(told, [control; 2], "IA32_PERF_GLOBAL_CTRL");
        assert_eq!(frozen(registers, &|program| _ = program.rdpmc(0)), [0; 2], "the counter");
    }
}

/// Without a PMU in the guest the host counts itself, and the guest too where it asks for that.
#[test]
fn a_host_counts_itself_or_the_guest_too() {
    for registers in both() {
        let program = {
            let mut program = Program::at(0x1000);
            program.repeat(3000, &[Op::Nop]).out(DEBUG_EXIT, Width::Dword, 1);
            program
        };
        let own = run(().beside(HostCounters::new().count(HostEvent::Cycles)), registers, 0, &program);
        assert!(own.host > 0 && own.host % 10_000 == 0, "{} on {:?}", own.host, registers.vendor);
        let both =
            run(().beside(HostCounters::new().count(HostEvent::Cycles).counting_guest()), registers, 0, &program);
        assert!(both.host % 10_000 >= 3000, "{} on {:?}", both.host, registers.vendor);
    }
}

/// Four counters, and none of the fixed-function ones.
pub(super) struct Four;
impl PmuPolicy for Four {
    const MEANS: Means = Means::Passed;
    const FILTERS: bool = false;
    fn share(&self, host: &PmuCapability) -> PmuShare {
        PmuShare { counters: 4, fixed: 0, ..PmuShare::all(host) }
    }
}

/// However its counters are kept, and whoever counts beside it: a guest that has stopped finds them again, and the host
/// has its own account of both turns.
#[test]
fn a_guest_that_stops_and_runs_again_goes_on_counting() {
    fn counts<P: PmuPolicy>(policy: impl Fn() -> P, registers: Registers) -> u64 {
        let body = |stops: bool| {
            counting(registers, INSTRUCTIONS, 0, |program| {
                program.repeat(50, &[Op::Nop]).ops(if stops { &[Op::Hlt] } else { &[Op::Nop] });
                program.repeat(50, &[Op::Nop]);
            })
        };
        let [through, stopped] = [false, true].map(|stops| run(policy(), registers, 0, &body(stops)));
        assert_eq!(stopped.value, through.value, "on {:?}", registers.vendor);
        // The host works at exits and entries alone, when counters that are exchanged stand still.
        let works = [through.host, stopped.host].map(|host| host / 10_000);
        assert_eq!([through.host, stopped.host], works.map(|work| work * 10_000), "the host counts the guest");
        assert!(works[1] <= 100 && works[0] <= works[1], "{works:?}");
        works[1]
    }
    for registers in both() {
        counts(Passthrough::new, registers);
        counts(|| Filtered::new(&EventFilter::ALLOW_ALL).expect("legal"), registers);
        counts(Emulated::new, registers);
        counts(|| Passthrough::new().beside(HostCounters::new().count(HostEvent::Cycles)), registers);
        counts(|| Emulated::new().beside(HostCounters::new().count(HostEvent::Cycles)), registers);
        let works = counts(|| Emulated::of(Four).beside(HostCounters::new().count(HostEvent::Cycles)), registers);
        assert_eq!(works > 0, matches!(registers.vendor, Vendor::Intel), "AMD's are exchanged");
        let works = counts(|| Four.beside(HostCounters::new().count(HostEvent::Cycles)), registers);
        assert_eq!(works > 0, matches!(registers.vendor, Vendor::Intel), "AMD's are exchanged");
    }
}

/// Requirement A4: a host whose counters stay in the processor beside the guest's shows none of its control, and is not
/// frozen with them.
#[test]
fn a_host_beside_a_guest_is_not_seen_and_not_stopped() {
    let [registers, _] = both();
    let beside = || Four.beside(HostCounters::new().count(HostEvent::Fixed(0)));
    let mut program = Program::at(0x1000);
    program.ops(&[Op::Mov(Gpr::Rsp, STACK)]).rdmsr(0x38D);
    program.ops(&[Op::Mov(Gpr::Rdx, DEBUG_EXIT.into()), Op::Out(Width::Dword), Op::Hlt]);
    assert_eq!(run(beside(), registers, 0, &program).value, 0, "IA32_FIXED_CTR_CTRL is the host's");
    for (msr, value) in [(0x391, 1 << 59), (0x1D9, 1 << 12)] {
        let mut program = Program::at(0x1000);
        program.ops(&[Op::Mov(Gpr::Rsp, STACK)]).wrmsr(msr, value).out(DEBUG_EXIT, Width::Dword, 1);
        program.ops(&[Op::Hlt]).handler(13).out(DEBUG_EXIT, Width::Dword, 13);
        assert_eq!(run(beside(), registers, 0, &program).value, 13, "{msr:#x} freezes the host");
        assert_eq!(run(Four, registers, 0, &program).value, 1, "it is the guest's own");
    }
}

/// Requirement A25.
#[test]
fn an_overflow_can_be_an_nmi() {
    for registers in both() {
        let program = sampled(registers, Mode::X2Apic, 40, 4 << 8);
        let ran = run(Passthrough::new(), registers, 0, &program);
        assert!(ran.interrupts(Event::Nmi) >= 5);
        assert_eq!(ran.counts.interrupts, ran.interrupts(Event::Nmi) as u64);
    }
}

/// Requirement A24: masked by the guest, masked in the processor; the status tells all the same.
#[test]
fn a_masked_guest_gets_no_interrupt_and_has_no_exits_by_it() {
    for registers in both() {
        let program = sampled(registers, Mode::X2Apic, 40, 1 << 16 | u32::from(PMI));
        let ran = run(Passthrough::new(), registers, 0, &program);
        assert_eq!((ran.interrupts(Event::Interrupt(PMI)), ran.counts.interrupts), (0, 0));
        let ran = run(Emulated::new(), registers, 0, &program);
        assert_eq!((ran.interrupts(Event::Interrupt(PMI)), ran.counts.interrupts), (0, 0), "emulated");
    }
}

/// A guest that samples: the handler clears the status, starts the next period and unmasks its entry.
pub(super) fn sampled(registers: Registers, mode: Mode, rounds: u32, entry: u32) -> Program {
    const PERIOD: u64 = (1 << 48) - 70;
    let vector = if entry >> 8 & 7 == 4 { 2 } else { PMI };
    let mut program = mode.begin();
    mode.write(&mut program, LVTPC, entry);
    program.wrmsr(registers.selector, INSTRUCTIONS | INT).wrmsr(registers.counter, PERIOD).wrmsr(registers.control, 1);
    program.ops(&[Op::Sti]);
    program.repeat(rounds, &[Op::Nop, Op::PushAll, Op::Mov(Gpr::Rax, 0), Op::Cpuid, Op::PopAll]);
    program.repeat(20 * rounds, &[Op::Nop]);
    program.out(DEBUG_EXIT, Width::Dword, 1).ops(&[Op::Hlt]).handler(vector);
    program.ops(&[Op::PushAll]).wrmsr(registers.clear, 1).wrmsr(registers.counter, PERIOD);
    mode.write(&mut program, LVTPC, entry);
    if vector == PMI {
        mode.end(&mut program);
    }
    program.ops(&[Op::PopAll, Op::Iret]);
    program
}

/// Requirement A4: nothing of the guest's stays in the processor when it has ended.
#[test]
fn a_guest_that_has_ended_leaves_the_counters_empty() {
    for registers in both() {
        let ran = run(Passthrough::new(), registers, 0, &looped(registers, 10));
        let left = ran.machine.pmu(|pmu| [pmu.host_read(registers.selector), pmu.host_read(registers.counter)]);
        assert_eq!(left, [0, 0]);
    }
}

/// A5, A7.
#[test]
fn without_a_policy_there_is_no_pmu() {
    for registers in both() {
        for msr in [registers.selector, registers.counter, registers.control] {
            let mut program = Program::at(0x1000);
            program.ops(&[Op::Mov(Gpr::Rsp, STACK)]).rdmsr(msr).out(DEBUG_EXIT, Width::Dword, 0);
            program.ops(&[Op::Hlt]).handler(13).out(DEBUG_EXIT, Width::Dword, 13);
            assert_eq!(run((), registers, 0, &program).value, 13, "{msr:#x}");
        }
    }
}

/// The architectural last-branch records are the guest's: it reads its own branches, and none of the host's, without an
/// exit.
/// Also T-A5.
#[test]
fn a_guest_reads_its_own_branches_and_none_of_the_hosts() {
    const CONTROL: u32 = 0x14CE;
    const DIRECT_CALLS: u64 = 1 | 1 << 1 | 1 << 19;
    let [mut registers, _] = both();
    registers.config = Config::Intel(intel::Config { lbr_depth: 16, ..intel::Config::default() });
    let mut program = Program::at(0x1000);
    program.ops(&[Op::Mov(Gpr::Rsp, STACK)]).wrmsr(CONTROL, DIRECT_CALLS);
    let call = program.here();
    program.ops(&[Op::Call(0x3000), Op::Cpuid]).wrmsr(CONTROL, 0).rdmsr(0x1500);
    program.ops(&[Op::Mov(Gpr::Rdx, DEBUG_EXIT.into()), Op::Out(Width::Dword), Op::Hlt]);
    program.continue_at(0x3000).ops(&[Op::Return]);
    let ran = run(Passthrough::new(), registers, 0, &program);
    assert_eq!(ran.value, call);
    assert_eq!(ran.exits, 1, "CPUID alone; OUT is the end");
    assert_eq!(ran.machine.pmu(|pmu| pmu.host_read(0x1500)), 0, "nothing stays when the guest has ended");
}
