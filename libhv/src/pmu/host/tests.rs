//! The host beside the guest, on a fake PMU: nobody counts the other, nothing is lost, and the order is A16's.

use super::fake::World;
use super::rig::{ENABLED, MASK, Rig, instructions, sampled, whole};
use super::*;
use crate::hw::{GlobalSwitch, PmiRoute, PmuHardware};
use crate::pmu::bank::Bank;
use crate::pmu::capability::PmuCapability;
use crate::pmu::capability::processors::{AMD, AMD_WITHOUT_GLOBAL, INTEL};
use crate::pmu::policy::{Means, PmuPolicy, PmuShare};
use crate::pmu::registers::{EventSelector, PmuRegister};
use crate::pmu::{CounterIndex, Passthrough};
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};
use proptest::prelude::*;

/// What the processors are that this runs on, and how they switch.
fn machines() -> [(PmuCapability, GlobalSwitch); 3] {
    [(INTEL, GlobalSwitch::Hardware), (AMD, GlobalSwitch::Selectors), (AMD_WITHOUT_GLOBAL, GlobalSwitch::Selectors)]
}

/// The guest's selector as the mechanism gives it to the processor.
fn guests(pmu: &PmuCapability, selector: u64) -> u64 {
    if pmu.maker == crate::pmu::Maker::Amd { selector | EventSelector::GUEST_ONLY } else { selector }
}

/// Requirement A16.
#[test]
fn host_and_guest_count_their_own_instructions_in_the_same_counters() {
    for (pmu, switch) in machines() {
        let mut rig = Rig::new(&HostCounters::new().count(instructions()), pmu, Some(&whole(&pmu)), switch);
        assert_eq!(rig.host.plan(), Plan::Switch);
        for n in 0..usize::from(pmu.counters) {
            (rig.guest.bank.selectors[n], rig.guest.bank.counters[n]) = (guests(&pmu, ENABLED), 1000 * n as u64);
        }
        rig.guest.bank.global_control = pmu.counter_bits();
        rig.hardware().set_guest_global_control(pmu.counter_bits());
        for round in 0..100 {
            rig.host_runs(3 + round % 5);
            rig.guest_runs(7 + round % 3);
        }
        rig.settle();
        assert_eq!(rig.host.post().value(0), rig.executed[0]);
        for n in 0..u64::from(pmu.counters) {
            assert_eq!(rig.guest.bank.counters[n as usize], 1000 * n + rig.executed[1]);
        }
    }
}

/// A23, T-A12: a late NMI that comes between exit and the start of the host's events, or while they stop, is the guest's,
/// if the guest has run over and its entry was open; else nobody hears of it.
#[test]
fn an_nmi_while_the_counters_are_stopped_is_the_guests_that_has_run_over() {
    for (place, route) in [(0, PmiRoute::Guest), (1, PmiRoute::Guest), (2, PmiRoute::Guest), (2, PmiRoute::Masked)] {
        let pmu = INTEL;
        let counters = HostCounters::new().sample(instructions(), 1000);
        let mut rig = Rig::new(&counters, pmu, Some(&whole(&pmu)), GlobalSwitch::Hardware);
        // The test brings the interrupt itself.
        rig.fake.0.borrow_mut().skid = u64::MAX / 2;
        rig.guest.bank.selectors[0] = ENABLED | EventSelector::INTERRUPT;
        rig.guest.bank.counters[0] = MASK;
        rig.hardware().set_guest_global_control(1);
        let (mut hardware, post) = (rig.hardware(), rig.host.post());
        let come = |rig: &Rig| post.nmi(Some(Place::Host(7)), crate::hw::Host::now(&rig.fake), &mut rig.hardware());
        rig.host.on_entry(&mut hardware, &mut rig.fake, &rig.guest, route);
        rig.fake.enter();
        rig.fake.run(1);
        rig.fake.leave();
        if place == 0 {
            assert_eq!(come(&rig), Verdict::Noted);
        }
        rig.host.on_exit(&mut hardware, &mut rig.fake, &mut rig.guest, true);
        assert_eq!(rig.guest.overflowed, 1);
        if place == 1 {
            post.set_running(false);
            assert_eq!(come(&rig), Verdict::Noted);
            rig.host.on_entry(&mut hardware, &mut rig.fake, &rig.guest, route);
            rig.host.on_exit(&mut hardware, &mut rig.fake, &mut rig.guest, true);
        }
        let open = route == PmiRoute::Guest;
        if place == 2 {
            assert_eq!(come(&rig), Verdict::Late);
        }
        rig.take_pmi();
        assert_eq!((rig.guest_pmis, post.samples(0)), (u32::from(open), 0), "at {place}");
        rig.take_pmi();
        assert_eq!(rig.guest_pmis, u32::from(open), "told once");
    }
}

/// A23: what comes after it is the host's alone.
#[test]
fn a_status_bit_that_software_has_set_is_no_overflow() {
    for apart in [true, false] {
        let mut rig = sampled(apart, 100);
        rig.guest_has(5);
        rig.guest_stays(|_| {});
        let (kept, hardware) = (&mut rig.guest, &mut rig.fake.clone());
        let mut guests = Parked { kept, whole: !apart, hardware };
        guests.write_pmu(PmuRegister::StatusSet, 1);
        assert_eq!(guests.read_pmu(PmuRegister::GlobalStatus), 1);
        rig.guest_stays(|fake| assert_eq!(fake.read_pmu(PmuRegister::GlobalStatus), 0));
        rig.host_runs(150);
        rig.take_pmi();
        assert_eq!((rig.guest_pmis, rig.host.post().samples(0), rig.strange), (0, 1, 0), "apart: {apart}");
        let mut guests = Parked { kept: &mut rig.guest, whole: !apart, hardware: &mut rig.fake.clone() };
        guests.write_pmu(PmuRegister::StatusReset, 1);
        assert_eq!(guests.read_pmu(PmuRegister::GlobalStatus), 0);
    }
}

/// A23: another run of the guest, or a restore, finds what it has not cleared.
#[test]
fn a_status_that_stands_when_the_guest_runs_again_is_no_overflow() {
    for apart in [true, false] {
        let mut rig = sampled(apart, 100);
        rig.guest_has(5);
        rig.guest_stays(|_| {});
        rig.host.end(&mut rig.fake.clone(), &mut rig.fake);
        rig.fake.0.borrow_mut().status = 1;
        rig.host.adopt(&mut rig.guest, &mut rig.fake.clone());
        assert_eq!((rig.fake.read_pmu(PmuRegister::GlobalStatus), rig.guest.overflowed), (0, 1), "apart: {apart}");
        rig.host.start(0, &mut rig.fake.clone(), &mut rig.fake);
        rig.guest_stays(|_| {});
        rig.host_runs(150);
        rig.take_pmi();
        assert_eq!((rig.guest_pmis, rig.host.post().samples(0), rig.strange), (0, 1, 0), "apart: {apart}");
    }
}

/// T-A12: what comes after a masked entry, or does not come, is nobody's.
#[test]
fn an_interrupt_that_the_guest_masks_on_its_way_or_that_does_not_come_is_not_told() {
    for (apart, masks) in [(true, true), (true, false), (false, true), (false, false)] {
        let mut rig = sampled(apart, 20_000);
        rig.fake.0.borrow_mut().skid = if masks { 3 } else { u64::MAX / 2 };
        rig.guest_has(MASK);
        rig.guest_stays(|fake| fake.run(1));
        if masks {
            rig.guest_stays_with(PmiRoute::Masked, |_| {});
        }
        rig.host_runs(10);
        rig.fake.0.borrow_mut().skid = 0;
        rig.host_runs(20_000);
        rig.take_pmi();
        assert_eq!((rig.guest_pmis, rig.host.post().samples(0), rig.strange), (0, 1, 0), "{apart}, {masks}");
    }
}

/// Requirement A23.
#[test]
fn a_status_bit_of_a_counter_that_is_nobodys_stays() {
    let mut rig = sampled(true, 1000);
    rig.guest_stays(|fake| fake.0.borrow_mut().status = 1 << 6 | 1 << 5);
    assert_eq!((rig.fake.read_pmu(PmuRegister::GlobalStatus), rig.guest.overflowed), (1 << 6, 1 << 5));
}

/// A23, T-A12: nothing new shows in the status, and the interrupt is so late that it takes the host's route.
#[test]
fn a_counter_that_runs_over_again_before_its_status_is_cleared_interrupts_again() {
    for apart in [true, false] {
        let mut rig = sampled(apart, 1000);
        rig.fake.0.borrow_mut().skid = 3;
        rig.guest_has(MASK);
        for again in 1..4 {
            rig.guest_stays(|fake| fake.run(1));
            rig.host_runs(10);
            rig.take_pmi();
            assert_eq!((rig.guest_pmis, rig.host.post().samples(0), rig.strange), (again, 0, 0), "apart: {apart}");
            rig.guest_stays(|fake| fake.0.borrow_mut().counters[0] = MASK);
        }
        // It stands, with a counter that has run over lately: the host's is the host's.
        rig.guest_stays(|fake| fake.run(1));
        rig.host_runs(10);
        rig.take_pmi();
        rig.guest_stays(|fake| fake.run(1));
        rig.host_runs(1000);
        rig.take_pmi();
        assert_eq!((rig.guest_pmis, rig.host.post().samples(0), rig.strange), (4, 1, 0), "apart: {apart}");
    }
}

/// Requirement A16.
#[test]
fn nothing_of_the_guest_is_in_the_processor_while_the_host_runs() {
    let pmu = INTEL;
    let mut rig =
        Rig::new(&HostCounters::new().count(HostEvent::Cycles), pmu, Some(&whole(&pmu)), GlobalSwitch::Hardware);
    rig.guest.bank = Bank {
        counters: [77; 8],
        selectors: [ENABLED; 8],
        fixed: [99, 99, 99, 99, 0, 0, 0, 0],
        fixed_control: 0xBBBB,
        ..Bank::default()
    };
    rig.guest.overflowed = 1 << 5 | 1 << 33;
    let before = rig.guest;
    rig.guest_runs(5);
    assert_eq!(rig.guest, before, "IA32_PERF_GLOBAL_CTRL was 0");
    let (mut held, mut selected) = (Vec::new(), Vec::new());
    for n in 0..8 {
        held.push(rig.fake.read_pmu(PmuRegister::FullCounter(n)));
        selected.push(rig.fake.read_pmu(PmuRegister::Selector(n)));
    }
    assert!(!held.contains(&77) && selected[..7].iter().all(|selector| *selector == 0), "{held:?} {selected:x?}");
    assert!((0..4).all(|n| rig.fake.read_pmu(PmuRegister::Fixed(n)) == 0));
    assert_eq!((rig.fake.read_pmu(PmuRegister::FixedControl), rig.fake.read_pmu(PmuRegister::GlobalStatus)), (0, 0));
}

/// T-A13: what the guest had not cleared yet is there again, and raises nothing.
#[test]
fn a_status_that_the_guest_has_not_cleared_comes_back_without_an_interrupt() {
    for (pmu, switch) in machines().into_iter().take(2) {
        let mut rig = Rig::new(&HostCounters::new().count(instructions()), pmu, Some(&whole(&pmu)), switch);
        rig.guest.bank.selectors[3] = guests(&pmu, ENABLED | EventSelector::INTERRUPT);
        rig.guest.bank.counters[3] = MASK - 1;
        rig.guest.bank.global_control = 1 << 3;
        rig.hardware().set_guest_global_control(1 << 3);
        rig.guest_runs(4);
        assert_eq!((rig.guest_pmis, rig.guest.overflowed), (1, 1 << 3));
        for _ in 0..10 {
            rig.host_runs(3);
            rig.guest_runs(3);
        }
        assert_eq!((rig.guest_pmis, rig.guest.overflowed, rig.strange), (1, 1 << 3, 0));
    }
}

#[test]
fn a_counter_of_the_hosts_that_has_wrapped_shows_in_no_status_of_the_guest() {
    for (pmu, switch) in machines().into_iter().take(2) {
        let mut rig = Rig::new(&HostCounters::new().count(instructions()), pmu, Some(&whole(&pmu)), switch);
        rig.fake.0.borrow_mut().counters[usize::from(pmu.counters) - 1] = MASK - 2;
        rig.host_runs(5);
        rig.guest_runs(5);
        assert_eq!(rig.guest.overflowed, 0);
    }
}

#[test]
fn where_the_guest_has_no_pmu_entries_and_exits_write_nothing() {
    let counters = HostCounters::new().count(instructions()).sample(HostEvent::Cycles, 1_000_000);
    for (pmu, switch) in machines() {
        let mut rig = Rig::new(&counters, pmu, None, switch);
        assert_eq!(rig.host.plan(), Plan::Processor);
        let before = rig.fake.0.borrow().writes;
        for _ in 0..50 {
            rig.host_runs(2);
            rig.guest_runs(9);
        }
        assert_eq!(rig.fake.0.borrow().writes, before);
        rig.settle();
        assert_eq!(rig.host.post().value(0), rig.executed[0], "the guest is not counted");
    }
}

#[test]
fn a_processor_that_does_not_switch_has_the_hosts_events_stopped_by_a_write() {
    let mut rig = Rig::new(&HostCounters::new().count(instructions()), INTEL, None, GlobalSwitch::Missing);
    assert_eq!(rig.host.plan(), Plan::Stop);
    for _ in 0..20 {
        rig.host_runs(2);
        rig.guest_runs(9);
    }
    rig.settle();
    assert_eq!(rig.host.post().value(0), rig.executed[0]);
}

#[test]
fn a_guest_with_fewer_counters_keeps_them_in_the_processor() {
    let pmu = INTEL;
    let share = PmuShare { counters: 6, fixed: 0xF, lbr: false };
    let counters = HostCounters::new().count(instructions()).count(HostEvent::Cycles);
    let mut rig = Rig::new(&counters, pmu, Some(&share), GlobalSwitch::Hardware);
    assert_eq!(rig.host.plan(), Plan::Partition);
    let mut hardware = rig.hardware();
    hardware.write_pmu(PmuRegister::Selector(5), ENABLED);
    hardware.set_guest_global_control(1 << 5);
    let before = rig.fake.0.borrow().writes;
    for _ in 0..50 {
        rig.host_runs(2);
        rig.guest_runs(9);
    }
    assert_eq!((rig.fake.0.borrow().writes, rig.fake.0.borrow().routes), (before, 0), "neither registers nor routes");
    assert_eq!(hardware.read_counter(CounterIndex::General(5)), rig.executed[1]);
    rig.settle();
    assert_eq!((rig.host.post().value(0), rig.host.post().value(1)), (rig.executed[0], rig.executed[0]));
    // One that wants to be told needs the interrupt, and one more counter means to exchange.
    let plan = |counters: &HostCounters, share| {
        HostPmu::new(counters.as_events(), Some(&pmu), Some(share), GlobalSwitch::Hardware).expect("possible").plan()
    };
    assert_eq!(plan(&HostCounters::new().sample(HostEvent::Cycles, 100), &share), Plan::PartitionRouted);
    assert_eq!(plan(&HostCounters::new().count(HostEvent::Fixed(1)), &share), Plan::Switch);
    assert_eq!(plan(&HostCounters::new().count(HostEvent::Cycles), &whole(&pmu)), Plan::Switch);
}

/// Requirement A27.
#[test]
fn what_cannot_be_counted_is_refused_with_the_reason() {
    let refused = |counters: &HostCounters, pmu: PmuCapability, guest: Option<PmuShare>| {
        HostPmu::new(counters.as_events(), Some(&pmu), guest.as_ref(), GlobalSwitch::Hardware).map(|host| host.plan())
    };
    let nine = (0..9).fold(HostCounters::new(), |counters, _| counters.count(HostEvent::Cycles));
    assert_eq!(refused(&nine, INTEL, None), Err(HostCountersError::TooManyEvents(8)));
    let four = PmuCapability { counters: 1, ..INTEL };
    let two = HostCounters::new().count(HostEvent::Cycles).count(HostEvent::Cycles);
    assert_eq!(refused(&two, four, None), Err(HostCountersError::TooManyEvents(1)));
    let twice = HostCounters::new().count(HostEvent::Fixed(1)).count(HostEvent::Fixed(1));
    assert_eq!(refused(&twice, INTEL, None), Err(HostCountersError::NoFixedCounter(1)));
    // WRMSR would be #GP in the host.
    let reserved = EventSelector(0xC0 | 0b11 << 16 | 1 << 21 | 1 << 36);
    let counters = HostCounters::new().count(HostEvent::Selector(reserved));
    assert_eq!(refused(&counters, INTEL, None), Err(HostCountersError::ReservedBits(1 << 21 | 1 << 36)));
    for period in [0, (1 << 47) + 1] {
        let counters = HostCounters::new().sample(HostEvent::Cycles, period);
        assert_eq!(refused(&counters, INTEL, None), Err(HostCountersError::Period(period)));
    }
    let both = HostCounters::new().count(HostEvent::Cycles).counting_guest();
    let counted = HostPmu::new(both.as_events(), Some(&INTEL), Some(&whole(&INTEL)), GlobalSwitch::Hardware);
    assert_eq!(counted.map(|host| host.plan()), Err(HostCountersError::CountsGuest));
    // Version 3 cannot set the status again that the guest had (A18).
    let old = PmuCapability { version: 3, ..INTEL };
    let one = HostCounters::new().count(HostEvent::Cycles);
    assert_eq!(refused(&one, old, Some(whole(&old))), Err(HostCountersError::NotRestorable));
    assert_eq!(refused(&one, old, None), Ok(Plan::Processor));
    let none = HostPmu::new(one.as_events(), None, None, GlobalSwitch::Missing).map(|host| host.plan());
    assert_eq!(none, Err(HostCountersError::NoPmu));
}

#[test]
fn a_policy_beside_a_host_is_the_guests_in_everything_else() {
    fn means<P: PmuPolicy>(_: &P) -> (Means, bool, bool) {
        (P::MEANS, P::FILTERS, P::HOST_COUNTS)
    }
    let policy = Passthrough::new().beside(HostCounters::new().count(HostEvent::Cycles));
    assert_eq!(means(&policy), (Means::Passed, false, true));
    assert_eq!(policy.share(&INTEL), whole(&INTEL));
    assert!(policy.host_events().is_some_and(|events| !events.counts_guest()));
    assert_eq!(means(&().beside(())), (Means::Hidden, false, false));
}

static TOLD: AtomicU64 = AtomicU64::new(0);
static OF_GUEST: AtomicU64 = AtomicU64::new(0);

#[test]
fn a_host_that_counts_the_guest_samples_it_where_it_stood() {
    let counters = HostCounters::new().sample(instructions(), 100).on_sample(|sample| {
        TOLD.fetch_add(1, Ordering::Relaxed);
        let rip = sample.rip.expect("an address");
        assert_eq!(sample.guest, rip > 0x1000_0000);
        OF_GUEST.fetch_add(sample.guest.into(), Ordering::Relaxed);
    });
    let mut rig = Rig::new(&counters.counting_guest(), INTEL, None, GlobalSwitch::Hardware);
    for _ in 0..200 {
        rig.host_runs(5);
        rig.guest_runs(45);
    }
    rig.settle();
    assert_eq!(rig.host.post().value(0), rig.executed[0] + rig.executed[1]);
    let samples = (rig.executed[0] + rig.executed[1]) / 100;
    assert_eq!((TOLD.load(Ordering::Relaxed), rig.host.post().lost()), (samples, 0));
    assert!(OF_GUEST.load(Ordering::Relaxed) > samples / 2);
}

/// Where the host takes the NMI itself once the guest has left for it, the sample is still the guest's.
/// Also T-A12.
#[test]
fn an_nmi_taken_after_the_exit_is_still_the_guests() {
    static GUESTS: AtomicU64 = AtomicU64::new(0);
    let counters = HostCounters::new().sample(instructions(), 100).on_sample(|sample| {
        assert_eq!((sample.guest, sample.rip), (true, Some(0x4000)));
        GUESTS.fetch_add(1, Ordering::Relaxed);
    });
    let mut rig = Rig::new(&counters.counting_guest(), AMD, None, GlobalSwitch::Selectors);
    rig.fake.enter();
    rig.fake.run(100);
    rig.fake.leave();
    assert!(rig.fake.take_nmi());
    let (now, mut hardware) = (crate::hw::Host::now(&rig.fake), rig.hardware());
    assert_eq!(rig.host.post().nmi(Some(Place::Host(1)), now, &mut hardware), Verdict::Served);
    assert_eq!(rig.host.on_nmi(&mut hardware, &mut rig.fake, 0x4000), Verdict::Late);
    rig.settle();
    assert_eq!(GUESTS.load(Ordering::Relaxed), 1);
}

#[test]
fn the_watchdog_barks_at_a_host_that_does_not_enter_and_at_no_other() {
    static BARKS: AtomicU64 = AtomicU64::new(0);
    let counters = HostCounters::new().watchdog(1000).on_bark(|bark| {
        assert!(bark.rip.is_some() && bark.processor == 0, "{bark}");
        BARKS.fetch_add(1, Ordering::Relaxed);
    });
    for guest in [None, Some(whole(&INTEL))] {
        BARKS.store(0, Ordering::Relaxed);
        let mut rig = Rig::new(&counters, INTEL, guest.as_ref(), GlobalSwitch::Hardware);
        for _ in 0..100 {
            rig.host_runs(400);
            rig.guest_runs(10_000);
        }
        assert_eq!(BARKS.load(Ordering::Relaxed), 0, "it makes progress");
        rig.host_runs(999);
        assert_eq!(BARKS.load(Ordering::Relaxed), 0, "not before its time");
        rig.host_runs(1001);
        assert_eq!(BARKS.load(Ordering::Relaxed), 1);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    /// A22, A23, T-A12: however late interrupts come, each side's overflows are told to it and not to the other, once;
    /// whether they have the same counters or some of their own.
    #[test]
    fn every_overflow_is_told_to_its_owner_once(
        stays in prop::collection::vec((1u64..60, 1u64..60), 20..60),
        skid in prop_oneof![0u64..4, 4u64..50],
        host_period in 90u64..300,
        guest_period in 90u64..300,
        machine in 0usize..2,
        apart in any::<bool>(),
    ) {
        let (pmu, switch) = machines()[machine];
        let apart = apart && machine == 0;
        let share = PmuShare { counters: if apart { 4 } else { pmu.counters }, ..whole(&pmu) };
        let counters = HostCounters::new().sample(instructions(), host_period);
        let mut rig = Rig::new(&counters, pmu, Some(&share), switch);
        prop_assert_eq!(rig.host.plan(), if apart { Plan::PartitionRouted } else { Plan::Switch });
        rig.fake.0.borrow_mut().skid = skid;
        let selector = guests(&pmu, ENABLED | EventSelector::INTERRUPT);
        if apart {
            rig.hardware().write_pmu(PmuRegister::Selector(0), selector);
        }
        rig.guest.bank.selectors[0] = selector;
        rig.guest.bank.global_control = 1;
        rig.hardware().set_guest_global_control(1);
        rig.guest_rearms(apart, guest_period);
        for (host, guest) in stays {
            rig.host_runs(host);
            rig.take_pmi();
            rig.guest_runs(guest);
            // The guest's handler: it counts anew, and clears its status.
            if rig.guest_status(apart) & 1 != 0 && rig.guest_pmis > rig.handled {
                rig.handled += 1;
                prop_assert_eq!(rig.guest_pmis, rig.handled);
                rig.guest_rearms(apart, guest_period);
            }
            prop_assert_eq!(rig.fake.0.borrow().world, World::Host);
        }
        rig.host_runs(skid + 1);
        rig.take_pmi();
        rig.settle();
        prop_assert_eq!(rig.host.post().value(0), rig.executed[0]);
        prop_assert_eq!(rig.host.post().samples(0), rig.executed[0] / host_period);
        let pending = rig.guest_status(apart) & 1;
        prop_assert_eq!(u64::from(rig.guest_pmis), u64::from(rig.handled) + pending);
        prop_assert_eq!(rig.strange, 0);
    }
}
