//! The local APIC against a sorted-set model, a table of what x2APIC mode refuses, and the sequences systems use.

use super::*;
use crate::exit::Msr;
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::vec::Vec;

const HZ: Frequency = Frequency::from_hz(APIC_TIMER_HZ);
const NOW: Tsc = Tsc(0);

fn enabled() -> LocalApic {
    let mut apic = LocalApic::new(0, HZ);
    assert_eq!(apic.write(0xF0, 0x1FF, NOW), Effect::None);
    apic
}

fn x2apic(id: u32) -> LocalApic {
    let mut apic = LocalApic::new(id, HZ);
    apic.set_base(apic.base() | 1 << 10).unwrap();
    wrmsr(&mut apic, 0x80F, 0x1FF);
    apic
}

fn wrmsr(apic: &mut LocalApic, msr: u32, value: u64) {
    assert_eq!(apic.write_msr(Msr(msr), value, NOW), Ok(Effect::None), "WRMSR {msr:#x}");
}

fn rdmsr(apic: &mut LocalApic, msr: u32) -> u64 {
    apic.read_msr(Msr(msr), NOW).unwrap_or_else(|_| panic!("RDMSR {msr:#x}"))
}

fn write(apic: &mut LocalApic, offset: u16, value: u32) {
    assert_eq!(apic.write(offset, value, NOW), Effect::None, "write {offset:#x}");
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Request(u8, bool),
    Acknowledge,
    Eoi,
    Priority(u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (any::<u8>(), any::<bool>()).prop_map(|(vector, level)| Step::Request(vector, level)),
        3 => Just(Step::Acknowledge),
        2 => Just(Step::Eoi),
        1 => any::<u8>().prop_map(Step::Priority),
    ]
}

/// IRR, ISR and TMR as sorted sets.
#[derive(Default)]
struct Model {
    requested: BTreeSet<u8>,
    served: Vec<u8>,
    level: BTreeSet<u8>,
    task_priority: u8,
}

impl Model {
    fn processor_priority(&self) -> u8 {
        let served = self.served.iter().max().copied().unwrap_or(0);
        if self.task_priority >> 4 >= served >> 4 { self.task_priority } else { served >> 4 << 4 }
    }
    fn pending(&self) -> Option<u8> {
        self.requested.last().copied().filter(|vector| vector / 16 > self.processor_priority() / 16)
    }
}

fn words(set: impl Fn(u8) -> bool) -> Vec<u32> {
    (0..8u8).map(|word| (0..32).map(|bit| u32::from(set(word * 32 + bit)) << bit).sum()).collect()
}

proptest! {
    #[test]
    fn priorities_agree_with_sorted_sets(steps in prop::collection::vec(step(), 0..150)) {
        let (mut apic, mut model) = (enabled(), Model::default());
        for step in steps {
            match step {
                Step::Request(vector, level) => {
                    apic.deliver(Delivery::Fixed, vector, level);
                    if vector > 15 {
                        model.requested.insert(vector);
                        if level { model.level.insert(vector); } else { model.level.remove(&vector); }
                    }
                }
                Step::Acknowledge => {
                    let taken = model.pending();
                    prop_assert_eq!(apic.acknowledge(), taken);
                    if let Some(vector) = taken {
                        model.requested.remove(&vector);
                        model.served.push(vector);
                    }
                }
                Step::Eoi => {
                    let effect = apic.write(0xB0, 0, NOW);
                    let ended = model.served.iter().max().copied();
                    model.served.retain(|vector| Some(*vector) != ended);
                    let expected = match ended.filter(|vector| model.level.contains(vector)) {
                        Some(vector) => Effect::EndOfInterrupt(vector),
                        None => Effect::None,
                    };
                    prop_assert_eq!(effect, expected);
                }
                Step::Priority(value) => {
                    model.task_priority = value;
                    write(&mut apic, 0x80, value.into());
                }
            }
            prop_assert_eq!(apic.pending(), model.pending());
            prop_assert_eq!(apic.processor_priority(), model.processor_priority());
            prop_assert_eq!(apic.read(0xA0, NOW), u32::from(model.processor_priority()));
        }
        let registers = |apic: &mut LocalApic, first: u16| -> Vec<u32> {
            (0..8).map(|index| apic.read(first + index * 16, NOW)).collect()
        };
        prop_assert_eq!(registers(&mut apic, 0x100), words(|vector| model.served.contains(&vector)));
        prop_assert_eq!(registers(&mut apic, 0x180), words(|vector| model.level.contains(&vector)));
        prop_assert_eq!(registers(&mut apic, 0x200), words(|vector| model.requested.contains(&vector)));
    }

    #[test]
    fn no_access_in_any_mode_panics(accesses in prop::collection::vec((any::<bool>(), 0u32..0x120, any::<u64>(), any::<u32>()), 0..60), id: u32, now: u64) {
        let mut apic = LocalApic::new(id, Frequency::from_hz(now));
        for (x2, number, value, later) in accesses {
            let now = Tsc(now) + u64::from(later);
            if x2 {
                let _ = apic.set_base(apic.base() | 1 << 10);
            }
            let _ = apic.write(number as u16 * 16, value as u32, now);
            let _ = apic.read(number as u16 * 16 + (value >> 62) as u16, now);
            let _ = apic.write_msr(Msr(0x800 + number), value & value.rotate_left(number), now);
            let _ = apic.read_msr(Msr(0x800 + number), now);
            let _ = (apic.acknowledge(), apic.deadline(), apic.raise_performance_monitoring());
        }
    }
}

/// What SDM Vol. 3A Table "x2APIC MSR Address Space" and the figures of the registers allow: MSR, whether it can be
/// read, and the bits that may be 1 in a write. MSRs not in it refuse everything.
fn x2apic_table() -> Vec<(u32, bool, Option<u64>)> {
    let mut table = std::vec![
        (0x802, true, None),
        (0x803, true, None),
        (0x808, true, Some(0xFF)),
        (0x80A, true, None),
        (0x80B, false, Some(0)),
        (0x80D, true, None),
        (0x80F, true, Some(0x11FF)),
        (0x828, true, Some(0)),
        (0x830, true, Some(0xFFFF_FFFF_000C_DFFF)),
        (0x832, true, Some(0x0007_10FF)),
        (0x833, true, Some(0x0001_17FF)),
        (0x834, true, Some(0x0001_17FF)),
        (0x835, true, Some(0x0001_F7FF)),
        (0x836, true, Some(0x0001_F7FF)),
        (0x837, true, Some(0x0001_10FF)),
        (0x838, true, Some(0xFFFF_FFFF)),
        (0x839, true, None),
        (0x83E, true, Some(0xB)),
        (0x83F, false, Some(0xFF)),
    ];
    table.extend((0x810..=0x827).map(|msr| (msr, true, None)));
    table
}

#[test]
fn x2apic_mode_refuses_what_the_manual_refuses() {
    let table = x2apic_table();
    for msr in 0x800..0x900 {
        let (_, readable, writable) = table.iter().copied().find(|row| row.0 == msr).unwrap_or((msr, false, None));
        assert_eq!(x2apic(3).read_msr(Msr(msr), NOW).is_ok(), readable, "RDMSR {msr:#x}");
        assert_eq!(x2apic(3).write_msr(Msr(msr), 0, NOW).is_ok(), writable.is_some(), "WRMSR {msr:#x}");
        for bit in 0..64 {
            let allowed = writable.is_some_and(|mask| mask >> bit & 1 != 0);
            assert_eq!(x2apic(3).write_msr(Msr(msr), 1 << bit, NOW).is_ok(), allowed, "WRMSR {msr:#x} of bit {bit}");
        }
        let mut xapic = enabled();
        assert_eq!(xapic.read_msr(Msr(msr), NOW), Err(GeneralProtection));
        assert_eq!(xapic.write_msr(Msr(msr), 0, NOW), Err(GeneralProtection));
    }
}

#[test]
fn the_modes_follow_each_other_as_the_manual_draws_them() {
    const OFF: u64 = 0;
    const XAPIC: u64 = 0x800;
    const X2APIC: u64 = 0xC00;
    let allowed =
        [(OFF, OFF), (OFF, XAPIC), (XAPIC, OFF), (XAPIC, XAPIC), (XAPIC, X2APIC), (X2APIC, OFF), (X2APIC, X2APIC)];
    for from in [OFF, XAPIC, X2APIC] {
        for to in [OFF, XAPIC, 0x400, X2APIC] {
            let mut apic = LocalApic::new(0, HZ);
            apic.set_base(0xFEE0_0100 | XAPIC).unwrap();
            apic.set_base(0xFEE0_0100 | from).unwrap();
            assert_eq!(apic.set_base(0xFEE0_0100 | to).is_ok(), allowed.contains(&(from, to)), "{from:#x} to {to:#x}");
        }
    }
    for bit in (0..8).chain([9]).chain(40..64) {
        let mut apic = LocalApic::new(0, HZ).physical_address_bits(40);
        assert!(apic.set_base(apic.base() | 1 << bit).is_err(), "bit {bit}");
    }
}

#[test]
fn the_page_moves_with_the_base_and_is_gone_in_x2apic_mode() {
    let mut apic = LocalApic::new(0, HZ);
    apic.set_base(0x1_2345_6900).unwrap();
    assert_eq!(apic.page().map(|page| page.as_u64()), Some(0x1_2345_6000));
    apic.set_base(apic.base() | 0x400).unwrap();
    assert_eq!(apic.page(), None);
}

#[test]
fn a_processor_knows_which_destinations_mean_it() {
    let physical = |id| Destination { id, logical: false };
    let logical = |id| Destination { id, logical: true };
    let mut apic = LocalApic::new(3, HZ);
    for (format, own, meant, others) in [
        (0xFFFF_FFFF, 0x0800_0000, [0x08, 0x0C, 0xFF], [0x04, 0x80, 0x00]),
        (0x0FFF_FFFF, 0x2400_0000, [0x24, 0x2C, 0x2F], [0x14, 0x22, 0x84]),
    ] {
        write(&mut apic, 0xE0, format);
        write(&mut apic, 0xD0, own);
        assert!(meant.iter().all(|&id| apic.matches(logical(id))));
        assert!(!others.iter().any(|&id| apic.matches(logical(id))));
    }
    assert!(apic.matches(physical(3)) && !apic.matches(physical(4)) && apic.matches(physical(u32::MAX)));
    let mut apic = x2apic(0x25);
    assert_eq!(rdmsr(&mut apic, 0x80D), 0x0002_0020);
    assert!(apic.matches(logical(0x0002_0030)) && apic.matches(logical(u32::MAX)) && apic.matches(physical(0x25)));
    assert!(!apic.matches(logical(0x0001_0020)) && !apic.matches(logical(0x0002_0010)) && !apic.matches(physical(5)));
    apic.set_base(0xFEE0_0000).unwrap();
    assert!(!apic.matches(physical(u32::MAX)));
}

#[test]
fn an_ipi_to_oneself_arrives_at_once_and_others_are_routed() {
    let mut apic = x2apic(3);
    for (msr, value) in [(0x83F, 0x41u64), (0x830, 0x4_0042), (0x830, 3 << 32 | 0x43)] {
        wrmsr(&mut apic, msr, value);
        assert_eq!(apic.acknowledge(), Some(value as u8));
        wrmsr(&mut apic, 0x80B, 0);
    }
    let ipi = |audience, delivery| Ok(Effect::Ipi(Ipi { vector: 0x44, delivery, audience }));
    let everybody = Audience::Matching(Destination { id: 0x1_0001, logical: true });
    for (command, expected) in [
        (0x8_0044, ipi(Audience::All, Delivery::Fixed)),
        (0xC_0444, ipi(Audience::Others, Delivery::Nmi)),
        (0x1_0001 << 32 | 0x0944, ipi(everybody, Delivery::LowestPriority)),
        (0xC_4544, ipi(Audience::Others, Delivery::Init)),
        (0xC_8544, Ok(Effect::None)),
        (0xC_0344, Ok(Effect::None)),
    ] {
        assert_eq!(apic.write_msr(Msr(0x830), command, NOW), expected, "ICR {command:#x}");
    }
    let Effect::Ipi(ipi) = enabled().write(0x300, 0xC_0044, NOW) else { panic!("an IPI") };
    assert!(!apic.hears(&ipi, true) && apic.hears(&ipi, false));
}

#[test]
fn an_illegal_vector_is_an_error_and_not_an_interrupt() {
    let mut apic = enabled();
    write(&mut apic, 0x370, 0xE0);
    write(&mut apic, 0x300, 0x4_000F);
    assert_eq!((apic.pending(), apic.read(0x280, NOW)), (Some(0xE0), 0));
    assert_eq!(apic.acknowledge(), Some(0xE0));
    write(&mut apic, 0xB0, 0);
    apic.deliver(Delivery::Fixed, 3, false);
    assert_eq!(apic.pending(), None, "one error interrupt until the register is written");
    write(&mut apic, 0x280, 0);
    assert_eq!(apic.read(0x280, NOW), 0x60);
    write(&mut apic, 0x280, 0);
    assert_eq!(apic.read(0x280, NOW), 0);
    write(&mut apic, 0x040, 1);
    write(&mut apic, 0x280, 0);
    assert_eq!(apic.read(0x280, NOW), 0x80);
}

#[test]
fn disabled_by_software_it_masks_every_entry_and_takes_no_fixed_interrupt() {
    let mut apic = enabled();
    for offset in (0x320..=0x370).step_by(16) {
        write(&mut apic, offset, 0x40);
    }
    write(&mut apic, 0xF0, 0xFF);
    for offset in (0x320..=0x370).step_by(16) {
        write(&mut apic, offset, 0x40);
        assert_eq!(apic.read(offset, NOW), 0x1_0040);
    }
    apic.deliver(Delivery::Fixed, 0x40, false);
    assert_eq!(apic.pending(), None);
    apic.deliver(Delivery::Nmi, 0, false);
    assert!(apic.take_nmi() && !apic.take_nmi());
}

/// B4, T-A2.
#[test]
fn the_performance_interrupt_masks_itself_on_intel_alone_and_may_be_an_nmi() {
    for amd in [false, true] {
        let mut apic = enabled();
        if amd {
            apic.mask_performance_monitoring_on_delivery(false);
        }
        assert!(!apic.raise_performance_monitoring());
        write(&mut apic, 0x340, 0x400);
        assert!(apic.raise_performance_monitoring());
        assert!(apic.take_nmi());
        assert_eq!(apic.read(0x340, NOW), if amd { 0x400 } else { 0x1_0400 });
        assert_eq!(apic.raise_performance_monitoring(), amd);
        write(&mut apic, 0x340, 0xEE);
        apic.raise_performance_monitoring();
        assert_eq!(apic.acknowledge(), Some(0xEE));
    }
}

#[test]
fn lint0_passes_the_pics_by_or_is_a_level_triggered_interrupt() {
    let mut apic = LocalApic::new(0, HZ);
    apic.set_lint0(true);
    assert!(!apic.external_pending(), "masked after power-up");
    apic.set_virtual_wire();
    assert!(apic.external_pending());
    apic.set_lint1(true);
    assert!(apic.take_nmi());
    write(&mut apic, 0x350, 0x8045);
    assert!(!apic.external_pending());
    assert_eq!(apic.acknowledge(), Some(0x45));
    assert_eq!(apic.read(0x350, NOW), 0xC045);
    assert_eq!(apic.write(0xB0, 0, NOW), Effect::EndOfInterrupt(0x45));
    assert_eq!(apic.acknowledge(), Some(0x45), "the line is still asserted");
    apic.set_lint0(false);
    assert_eq!(apic.write(0xB0, 0, NOW), Effect::EndOfInterrupt(0x45));
    assert_eq!(apic.pending(), None);
    apic.set_base(0xFEE0_0000).unwrap();
    apic.set_lint0(true);
    assert!(apic.external_pending(), "without a local APIC the line is the processor's");
}

#[test]
fn a_second_processor_waits_for_init_and_start_up() {
    let mut apic = LocalApic::new(1, HZ);
    write(&mut apic, 0xF0, 0x1FF);
    apic.deliver(Delivery::Fixed, 0x40, false);
    apic.deliver(Delivery::Init, 0, false);
    assert_eq!((apic.pending(), apic.read(0xF0, NOW)), (None, 0xFF));
    apic.deliver(Delivery::Startup, 0x9A, false);
    apic.deliver(Delivery::Startup, 0x9B, false);
    assert!(apic.startup_pending());
    assert_eq!(apic.take_startup(), Some(Startup::Init));
    assert_eq!(apic.take_startup(), Some(Startup::Sipi(0x9A)));
    assert_eq!(apic.take_startup(), None, "a second start-up IPI does nothing");
}

#[test]
fn the_timer_interrupts_at_its_deadline_in_each_mode() {
    let mut apic = enabled();
    write(&mut apic, 0x3E0, 0xB);
    write(&mut apic, 0x380, 100);
    assert_eq!(apic.deadline(), None, "masked");
    write(&mut apic, 0x320, 0xEC);
    assert_eq!(apic.deadline(), Some(Tsc(100)));
    apic.advance(Tsc(99));
    assert_eq!((apic.pending(), apic.read(0x390, Tsc(99))), (None, 1));
    apic.advance(Tsc(100));
    assert_eq!((apic.acknowledge(), apic.deadline()), (Some(0xEC), None));
    let _ = apic.write(0xB0, 0, NOW);

    write(&mut apic, 0x320, 0x4_00EC);
    assert_eq!(apic.write_msr(Msr(IA32_TSC_DEADLINE), 500, Tsc(200)), Ok(Effect::None));
    assert_eq!((apic.deadline(), apic.read_msr(Msr(IA32_TSC_DEADLINE), Tsc(200))), (Some(Tsc(500)), Ok(500)));
    assert_eq!(apic.read_msr(Msr(IA32_TSC_DEADLINE), Tsc(500)), Ok(0));
    assert_eq!(apic.acknowledge(), Some(0xEC));
    let _ = apic.write(0xB0, 0, NOW);
    assert_eq!(apic.write_msr(Msr(IA32_TSC_DEADLINE), 500, Tsc(600)), Ok(Effect::None));
    assert_eq!(apic.pending(), Some(0xEC), "a deadline that has passed interrupts at once");
}

#[test]
fn linux_brings_the_local_apic_up_in_either_mode() {
    // setup_local_APIC, setup_APIC_timer and the ESR check of lapic_setup_esr, as a register trace.
    const TRACE: [(u32, u32); 13] = [
        (0x08, 0x10),
        (0x0F, 0x1FF),
        (0x35, 0x1_0700),
        (0x36, 0x400),
        (0x28, 0),
        (0x37, 0xFE),
        (0x28, 0),
        (0x33, 0x1_0000),
        (0x34, 0x400),
        (0x3E, 0x3),
        (0x32, 0x3_00EC),
        (0x38, 1000),
        (0x08, 0x10),
    ];
    for mut apic in [enabled(), x2apic(0)] {
        for (number, value) in TRACE {
            if apic.x2apic() {
                wrmsr(&mut apic, 0x800 + number, value.into());
            } else {
                write(&mut apic, number as u16 * 16, value);
            }
        }
        let version = if apic.x2apic() { rdmsr(&mut apic, 0x803) as u32 } else { apic.read(0x30, NOW) };
        assert_eq!(((version & 0xFF), version >> 16 & 0xFF), (0x14, 5));
        assert_eq!(apic.deadline(), None, "masked until the calibration is done");
        let effect = if apic.x2apic() {
            apic.write_msr(Msr(0x832), 0x2_00EC, Tsc(8000)).unwrap()
        } else {
            apic.write(0x320, 0x2_00EC, Tsc(8000))
        };
        assert_eq!((effect, apic.deadline()), (Effect::None, Some(Tsc(16000))));
        for period in 1..4 {
            apic.advance(Tsc(8000 + period * 16000));
            assert_eq!(apic.acknowledge(), Some(0xEC));
            assert_eq!(apic.end_of_interrupt(), Effect::None);
        }
    }
}

#[test]
fn suppressed_broadcasts_leave_the_ioapic_to_its_own_register() {
    let mut apic = x2apic(0);
    wrmsr(&mut apic, 0x80F, 0x11FF);
    apic.deliver(Delivery::Fixed, 0x60, true);
    assert_eq!(apic.acknowledge(), Some(0x60));
    wrmsr(&mut apic, 0x80B, 0);
}

#[test]
fn cr8_is_the_class_of_the_task_priority() {
    let mut apic = enabled();
    apic.deliver(Delivery::Fixed, 0x5F, false);
    apic.set_cr8(5);
    assert_eq!((apic.pending(), apic.read(0x80, NOW)), (None, 0x50));
    write(&mut apic, 0x80, 0x4F);
    assert_eq!((apic.cr8(), apic.pending()), (4, Some(0x5F)));
}
