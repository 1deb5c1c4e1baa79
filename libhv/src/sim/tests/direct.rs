//! Interrupts of the counters that reach the guest without an exit, on the simulated processor.

use super::harness::{DEBUG_EXIT, LVTPC, Mode, SPURIOUS};
use super::pmu::{INSTRUCTIONS, INT, PMI, Ran, Registers, before_version_4, both, run, run_on, sampled};
use super::*;
use crate::exit::Resolution;
use crate::memory::nested::Access;
use crate::pmu::report::{Item, Provision, Why};
use crate::pmu::{EventFilter, Filtered, Passthrough, PmuPolicy};
use crate::vcpu::Appliance;
use proptest::prelude::*;

const NMI: u32 = 4 << 8;
const MASKED: u32 = 1 << 16;

/// Gives the stack back that the processor takes away in the middle of deliveries.
struct Stack(NestedMap);
impl Appliance for Stack {
    fn on_exit(&mut self, exit: &Exit, _: &mut impl GuestState) -> Resolution {
        match exit {
            Exit::NestedPageFault(fault) if !fault.present && fault.gpa.as_u64() < super::harness::MEMORY as u64 => {
                self.0.set(fault.gpa, Some(Access::ALL));
                Resolution::Retry
            }
            _ => Resolution::NotMine,
        }
    }
}

fn run_unmapped<P: PmuPolicy>(policy: P, skid: u64, once_in: u64, program: &Program) -> Ran {
    let make = |processor: &mut Processor| {
        processor.unmap_stack_once_in(once_in);
        processor.stop_after(5000);
        Stack(processor.nested())
    };
    run_on(make, policy, both()[0], skid, program)
}

/// What the guest has seen, without the moments.
fn seen(ran: &Ran) -> Vec<Record> {
    let timeless = |record: &Record| match *record {
        Record::Delivered(event, _) => Record::Delivered(event, Tsc(0)),
        Record::Wrote(msr, value, _) => Record::Wrote(msr, value, Tsc(0)),
        other => other,
    };
    ran.journal.iter().map(timeless).collect()
}

/// A25: an NMI of the counters is no exit, and everything is as it is with one.
#[test]
fn an_overflow_that_is_an_nmi_reaches_the_guest_without_an_exit() {
    let [intel, _] = both();
    for mode in [Mode::XApic, Mode::X2Apic] {
        let program = sampled(intel, mode, 40, NMI);
        let by_exits = run(Passthrough::new(), intel, 0, &program);
        let direct = run(Passthrough::new().direct_interrupts(), intel, 0, &program);
        let filter = Filtered::new(&EventFilter::NO_OFF_CORE).expect("legal").direct_interrupts();
        let filtered = run(filter, intel, 0, &program);
        let nmis = direct.interrupts(Event::Nmi) as u64;
        assert!(nmis >= 5);
        assert_eq!((seen(&direct), direct.value), (seen(&by_exits), by_exits.value));
        assert_eq!((direct.counts.interrupts, filtered.counts.interrupts), (nmis, nmis));
        // Some of them overflow where an instruction is executed in the guest's stead: those are injected.
        let saved = by_exits.exits - direct.exits;
        assert!(saved > nmis / 2, "{saved} exits less, {nmis} NMIs");
        assert_eq!(direct.machine.host_nmis(), 0);
        assert_eq!(direct.report.of(Item::Interrupt), Provision::Direct);
    }
}

/// T-A2: AMD's processors do not mask the entry on delivery, and the guest is told of it in the report.
#[test]
fn where_it_cannot_be_it_is_as_without_and_the_report_says_why() {
    let [intel, amd] = both();
    let program = sampled(amd, Mode::X2Apic, 40, NMI);
    let ran = run(Passthrough::new().direct_interrupts(), amd, 0, &program);
    assert_eq!(seen(&ran), seen(&run(Passthrough::new(), amd, 0, &program)));
    assert_eq!(ran.report.of(Item::Interrupt), Provision::Mediated(Why::NotMaskedOnDelivery));
    let ran = run(Passthrough::new(), intel, 0, &sampled(intel, Mode::X2Apic, 40, NMI));
    assert_eq!(ran.report.of(Item::Interrupt), Provision::Mediated(Why::LocalApic));
}

/// Requirement A22, T-A12: one that comes late meets the host, or the guest after it, and the guest gets each once.
#[test]
fn a_late_nmi_reaches_the_guest_once_wherever_it_arrives() {
    let [intel, _] = both();
    for skid in 0..30 {
        for mode in [Mode::XApic, Mode::X2Apic] {
            let ran = run(Passthrough::new().direct_interrupts(), intel, skid, &sampled(intel, mode, 40, NMI));
            let nmis = ran.interrupts(Event::Nmi);
            assert!(nmis >= 5);
            assert_eq!(ran.counts.interrupts, nmis as u64, "skid {skid}");
            assert_eq!(ran.machine.host_nmis(), 0);
        }
    }
}

/// Requirement A24: the entry that the guest reads is masked by the delivery, and unmasked by its write.
#[test]
fn the_guest_reads_the_mask_that_the_delivery_has_set() {
    let [intel, _] = both();
    let mut program = Mode::X2Apic.begin();
    Mode::X2Apic.write(&mut program, LVTPC, NMI);
    program.wrmsr(intel.selector, INSTRUCTIONS | INT).wrmsr(intel.counter, (1 << 48) - 20).wrmsr(intel.control, 1);
    program.ops(&[Op::Nop; 30]).rdmsr(0x800 + LVTPC);
    program.out(DEBUG_EXIT, Width::Dword, 1).ops(&[Op::Hlt]).handler(2).ops(&[Op::PushAll]);
    program.wrmsr(intel.control, 0).rdmsr(0x800 + LVTPC).rdmsr(0x800 + LVTPC);
    Mode::X2Apic.write(&mut program, LVTPC, NMI);
    program.ops(&[Op::PopAll, Op::Iret]);
    let ran = run(Passthrough::new().direct_interrupts(), intel, 0, &program);
    let read = |record: &Record| if let Record::Completed(Op::Rdmsr, eax) = record { Some(*eax) } else { None };
    let entries: Vec<u32> = ran.journal.iter().filter_map(read).collect();
    assert_eq!(entries, [MASKED | NMI, MASKED | NMI, NMI]);
    assert_eq!(ran.counts.interrupts, 1);
}

/// A26: what a counter is owed, on a processor where the hypervisor cannot have it run over, is paid when the guest hears
/// of its interrupt, and not by the next instruction that counts.
#[test]
fn a_counter_is_paid_what_it_is_owed_when_its_interrupt_is_heard_of() {
    let old = before_version_4();
    for to_go in 6..16 {
        let mut program = Mode::X2Apic.begin();
        Mode::X2Apic.write(&mut program, LVTPC, NMI);
        program.wrmsr(old.selector, INSTRUCTIONS | INT).wrmsr(old.counter, (1 << 48) - to_go).wrmsr(old.control, 1);
        program.ops(&[Op::Cpuid; 4]).ops(&[Op::Nop; 12]).ops(&[Op::Hlt]);
        // Nothing counts any more when the entry is read.
        program.handler(2).wrmsr(old.control, 0).rdmsr(0x800 + LVTPC).rdpmc(0);
        program.ops(&[Op::Mov(Gpr::Rdx, DEBUG_EXIT.into()), Op::Out(Width::Dword), Op::Hlt]);
        let by_exits = run(Passthrough::new(), old, 0, &program);
        let direct = run(Passthrough::new().direct_interrupts(), old, 0, &program);
        assert_eq!(direct.value, by_exits.value, "{to_go} to go");
        assert_eq!((direct.counts.interrupts, direct.counts.credited), (1, 4), "{to_go} to go");
    }
}

/// What a guest does, and the handlers of its interrupts: anything that has to do with them.
#[derive(Clone, Copy, Debug)]
enum Act {
    Nops(u8),
    /// An exit whose instruction is credited.
    Cpuid,
    /// The entry: an NMI, a vector, masked.
    Entry(u32),
    ReadEntry,
    /// An NMI to itself.
    Nmi,
    /// The interrupt flag.
    Flag(bool),
    /// The counter is about to overflow.
    Counter(u8),
    /// Disabled by software, which masks all entries, and enabled again.
    Apic,
    /// Disabled in its base register, and enabled again.
    Off,
    Freeze(bool),
    /// In a handler of NMIs it is for good: the guest's run ends, and it is run again.
    Halt,
}

fn act() -> impl Strategy<Value = Act> {
    const VECTOR: u32 = PMI as u32;
    let entries = std::vec![NMI, NMI, NMI, VECTOR, NMI | MASKED, VECTOR | MASKED, 5 << 8 | MASKED, 2 << 8];
    prop_oneof![
        4 => (1u8..12).prop_map(Act::Nops),
        2 => Just(Act::Cpuid),
        3 => prop::sample::select(entries).prop_map(Act::Entry),
        1 => Just(Act::ReadEntry),
        1 => Just(Act::Nmi),
        1 => any::<bool>().prop_map(Act::Flag),
        4 => (1u8..25).prop_map(Act::Counter),
        1 => Just(Act::Apic),
        1 => Just(Act::Off),
        1 => any::<bool>().prop_map(Act::Freeze),
    ]
}

fn add(program: &mut Program, mode: Mode, registers: Registers, acts: &[Act]) {
    for act in acts {
        match *act {
            Act::Nops(count) => drop(program.repeat(count.into(), &[Op::Nop])),
            Act::Cpuid => drop(program.cpuid(0, 0)),
            Act::Entry(entry) => mode.write(program, LVTPC, entry),
            Act::ReadEntry if mode == Mode::X2Apic => drop(program.rdmsr(0x800 + LVTPC)),
            Act::ReadEntry => drop(program.ops(&[Op::Load(0xFEE0_0000 + 16 * LVTPC, Width::Dword)])),
            Act::Nmi => mode.nmi(program),
            Act::Flag(on) => drop(program.ops(&[if on { Op::Sti } else { Op::Cli }])),
            Act::Counter(to_go) => {
                program.wrmsr(registers.clear, 1 | 1 << 59).wrmsr(registers.counter, (1 << 48) - u64::from(to_go));
            }
            Act::Apic => {
                mode.write(program, SPURIOUS, 0xFF);
                mode.write(program, SPURIOUS, 0x1FF);
            }
            Act::Off => {
                program.wrmsr(0x1B, 0xFEE0_0100).wrmsr(0x1B, 0xFEE0_0900);
                if mode == Mode::X2Apic {
                    program.wrmsr(0x1B, 0xFEE0_0D00);
                }
                mode.write(program, SPURIOUS, 0x1FF);
            }
            Act::Halt => drop(program.ops(&[Op::Hlt])),
            Act::Freeze(on) => drop(program.wrmsr(0x1D9, u64::from(on) << 12)),
        }
    }
}

fn any_program(mode: Mode, body: &[Act], in_nmi: &[Act], in_vector: &[Act]) -> Program {
    let [intel, _] = both();
    let mut program = mode.begin();
    program.wrmsr(intel.selector, INSTRUCTIONS | INT).wrmsr(intel.control, 1);
    add(&mut program, mode, intel, body);
    program.ops(&[Op::Sti, Op::Nop, Op::Nop]).rdpmc(0);
    program.ops(&[Op::Mov(Gpr::Rdx, DEBUG_EXIT.into()), Op::Out(Width::Dword), Op::Hlt]);
    for (vector, acts) in [(2, in_nmi), (PMI, in_vector)] {
        program.handler(vector).ops(&[Op::PushAll]);
        add(&mut program, mode, intel, acts);
        if vector == PMI {
            mode.end(&mut program);
        }
        program.ops(&[Op::PopAll, Op::Iret]);
    }
    program
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// Requirements A24, A25: whatever a guest does with its entry, its counter, NMIs of its own and the freeze, it sees
    /// what it would see if each interrupt left it: those that come, where they come, and the entry that it reads.
    #[test]
    fn a_guest_cannot_tell_a_direct_interrupt_from_one_by_an_exit(
        x2apic: bool,
        body in prop::collection::vec(act(), 1..60),
        in_nmi in prop::collection::vec(act(), 0..8),
        in_vector in prop::collection::vec(act(), 0..8),
        once_in in prop::sample::select(&[0u64, 0, 3][..]),
    ) {
        let mode = if x2apic { Mode::X2Apic } else { Mode::XApic };
        let program = any_program(mode, &body, &in_nmi, &in_vector);
        let by_exits = run_unmapped(Passthrough::new(), 0, 0, &program);
        let direct = run_unmapped(Passthrough::new().direct_interrupts(), 0, once_in, &program);
        let (mut seen_direct, mut seen_by_exits) = (seen(&direct), seen(&by_exits));
        if !direct.ended || !by_exits.ended {
            // It is interrupted for ever, and was stopped somewhere.
            let common = seen_direct.len().min(seen_by_exits.len());
            prop_assert!(common > 100);
            seen_direct.truncate(common);
            seen_by_exits.truncate(common);
        } else {
            prop_assert_eq!(direct.counts.interrupts, by_exits.counts.interrupts);
            prop_assert_eq!(direct.value, by_exits.value);
        }
        prop_assert_eq!(seen_direct, seen_by_exits);
        prop_assert_eq!(direct.machine.host_nmis(), 0);
    }
}

/// An NMI of the counters waits for the IRET of an NMI's handler, which unmasks the entry and then makes it another: it is
/// not lost where NMIs leave the guest again.
#[test]
fn an_nmi_that_waits_is_not_lost_when_the_guest_gives_its_entry_a_vector() {
    for mode in [Mode::XApic, Mode::X2Apic] {
        for in_nmi in [&[Act::Entry(PMI as u32)][..], &[Act::Entry(NMI), Act::Entry(PMI as u32)], &[Act::Apic]] {
            let body = [Act::Entry(NMI), Act::Nmi, Act::Nops(3)];
            // It overflows after each number of instructions: somewhere it does in the handler.
            let waits: usize = (1..40)
                .map(|to_go| {
                    let body = [&[body[0], Act::Counter(to_go)], &body[1..]].concat();
                    let program = any_program(mode, &body, in_nmi, &[]);
                    let by_exits = run_unmapped(Passthrough::new(), 0, 0, &program);
                    let direct = run_unmapped(Passthrough::new().direct_interrupts(), 0, 0, &program);
                    assert_eq!(seen(&direct), seen(&by_exits), "{mode:?}, {in_nmi:?}, {to_go}");
                    assert_eq!(direct.counts.interrupts, by_exits.counts.interrupts);
                    usize::from(direct.interrupts(Event::Nmi) == 2)
                })
                .sum();
            assert!(waits > 0);
        }
    }
}

/// T-A12: it arrives before the guest halts, when it has left to halt, or while it does, and the guest gets it.
#[test]
fn a_late_nmi_wakes_a_guest_that_halts() {
    let [intel, _] = both();
    for (to_go, skid) in (1..=10).flat_map(|to_go| (0..60).map(move |skid| (to_go, skid))) {
        let mut program = Mode::X2Apic.begin();
        Mode::X2Apic.write(&mut program, LVTPC, NMI);
        program.wrmsr(intel.selector, INSTRUCTIONS | INT).wrmsr(intel.control, 1);
        program.wrmsr(intel.counter, (1 << 48) - to_go).ops(&[Op::Nop; 8]).ops(&[Op::Hlt]);
        program.handler(2).out(DEBUG_EXIT, Width::Dword, 1);
        let ran = run(Passthrough::new().direct_interrupts(), intel, skid, &program);
        assert_eq!((ran.interrupts(Event::Nmi), ran.counts.interrupts), (1, 1), "{to_go}, skid {skid}");
    }
}

/// T-A13: nor when the guest's run ends in that handler, and it goes on out of a snapshot.
#[test]
fn an_nmi_that_waits_is_not_lost_when_the_run_ends_in_the_handler() {
    for mode in [Mode::XApic, Mode::X2Apic] {
        let in_nmi = [Act::Entry(NMI), Act::Counter(8), Act::Nops(11), Act::Halt];
        let program = any_program(mode, &[Act::Entry(NMI), Act::Counter(8), Act::Nops(11)], &in_nmi, &[]);
        let by_exits = run_unmapped(Passthrough::new(), 0, 0, &program);
        let direct = run_unmapped(Passthrough::new().direct_interrupts(), 0, 0, &program);
        assert!(!direct.ended && direct.interrupts(Event::Nmi) > 20, "one after the other");
        let common = seen(&direct).len().min(seen(&by_exits).len());
        assert_eq!(seen(&direct)[..common], seen(&by_exits)[..common], "{mode:?}");
    }
}
