//! What the report says beside what the guest finds.

use super::*;
use crate::exit::Msr;
use crate::pmu::capability::processors::INTEL;
use crate::pmu::view::tests::{HOST, any_view};
use crate::pmu::{PmuCapability, PmuShare};
use proptest::prelude::*;
use std::string::ToString;

proptest! {
    /// Requirement 1.4.5: what is native exits nowhere, what is absent answers nowhere, and all else is in between.
    /// Also T-A21.
    #[test]
    fn the_report_says_what_the_guest_finds(view in any_view()) {
        let report = PmuReport::new(Ok(view));
        let intel = view.guest().maker == Maker::Intel;
        for n in 0..MAX_COUNTERS {
            let found = view.rdpmc(n.into(), 0, 0).is_ok();
            prop_assert_eq!(matches!(report.of(Item::Counter(n)), Provision::Absent(_)), !found);
            let found = view.rdpmc(0x4000_0000 | u32::from(n), 0, 0).is_ok();
            prop_assert_eq!(matches!(report.of(Item::Fixed(n)), Provision::Absent(_)), !found);
            let counted = intel && view.cpuid_leaf_0a()[1] >> n & 1 == 0;
            prop_assert_eq!(matches!(report.of(Item::Event(n)), Provision::Absent(_)), !counted);
        }
        let registers: &[(Item, u32, u32)] = &[
            (Item::Selectors, 0x186, 0xC001_0000),
            (Item::FixedControl, 0x38D, 0),
            (Item::FullWidthWrites, 0x4C1, 0xC001_0201),
            (Item::GlobalControl, 0x38F, 0xC000_0301),
            (Item::GlobalStatus, 0x38E, 0xC000_0300),
            (Item::StatusSet, 0x391, 0xC000_0303),
            (Item::InUse, 0x392, 0),
            (Item::Counter(0), 0xC1, 0xC001_0004),
        ];
        for (item, number, amd) in registers {
            let number = if intel { *number } else { *amd };
            let register = PmuRegister::of(Msr(number), view.guest().maker).filter(|one| view.exists(*one));
            let passed = register.map(|register| view.passes(register, false)).unwrap_or_default();
            let writable = register.is_some_and(|register| view.validate_write(register, 0).is_ok());
            let expected = match (register, view.means()) {
                (None, _) => "absent",
                (_, Means::Emulated) => "emulated",
                _ if passed.read && passed.write == writable => "native",
                _ => "mediated",
            };
            let printed = report.of(*item).to_string();
            prop_assert!(printed.starts_with(expected), "{:?} is {}, not {}", item, printed, expected);
        }
        prop_assert_eq!(report.of(Item::Rdpmc) == Provision::Native, view.passes_rdpmc());
        prop_assert_eq!(report.of(Item::Lbr) == Provision::Native, view.shows_lbr());
    }
}

/// A17, A18, 1.4.5: with a list entries and exits are slower than with fields, a version without a settable status is for one
/// guest, and performance metrics keep RDPMC.
#[test]
fn the_report_tells_what_a_processor_can_do_no_better() {
    let mut host = HOST;
    let report = |host: &PmuCapability, listed| {
        let view = PmuView::decide(host, &PmuShare::all(host), Means::Passed, GlobalSwitch::Hardware);
        PmuReport::new(view.map(|view| view.switched_by_list(listed)))
    };
    assert_eq!(report(&host, false).of(Item::Switch), Provision::Native);
    assert_eq!(report(&host, true).of(Item::Switch), Provision::Mediated(Why::MsrList));
    assert_eq!(report(&host, false).of(Item::Rdpmc), Provision::Native);
    assert_eq!(report(&host, false).of(Item::Turns), Provision::Native);
    host.version = 3;
    assert_eq!(report(&host, false).of(Item::Turns), Provision::Absent(Why::NotRestorable));
    host.capabilities |= PERF_METRICS;
    assert_eq!(report(&host, false).of(Item::Rdpmc), Provision::Mediated(Why::Metrics));
}

/// Requirement A22: beside a host that counts the status leaves the guest, and nothing else that does not without.
#[test]
fn the_status_is_not_passed_beside_a_host_that_counts() {
    let alone = PmuView::new(&INTEL, &PmuShare::all(&INTEL), Means::Passed, GlobalSwitch::Hardware).expect("a PMU");
    let beside = alone.beside_host();
    let status = [PmuRegister::GlobalStatus, PmuRegister::StatusReset, PmuRegister::StatusSet];
    for register in alone.registers() {
        let as_alone = beside.passes(register, false) == alone.passes(register, false);
        assert_eq!(as_alone, !status.contains(&register), "{register:?}");
    }
    for item in [Item::GlobalStatus, Item::StatusSet] {
        let of = |view: PmuView| PmuReport::new(Ok(view)).of(item);
        assert_eq!((of(alone), of(beside)), (Provision::Native, Provision::Mediated(Why::HostCounts)));
    }
}

#[test]
fn a_guest_without_a_pmu_is_told_why() {
    let report = PmuReport::new(Err(NoPmu::NothingStopsIt));
    assert_eq!(report.of(Item::Rdpmc), Provision::Absent(Why::NoPmu(NoPmu::NothingStopsIt)));
    assert_eq!(report.to_string(), "no PMU: nothing would stop its counters outside the guest");
}

#[test]
fn the_table_has_a_line_for_each_group_with_its_reason() {
    let host = PmuCapability { missing_events: 1 << 7, ..INTEL };
    let share = PmuShare { counters: 6, fixed: 0b0111, lbr: false };
    let view = PmuView::decide(&host, &share, Means::Passed, GlobalSwitch::Hardware);
    let printed = PmuReport::new(view).to_string();
    let expected = "\
counter             0-5  native
counter             6-7  absent: not shared
fixed counter       0-2  native
fixed counter       3    absent: not shared
fixed counter       4-7  absent: the processor has none
architectural event 0-6  native
architectural event 7    absent: the processor has none
selectors                native
fixed counters' control  mediated: the processor has counters that are not the guest's
full-width writes        native
RDPMC                    mediated: the processor has counters that are not the guest's
";
    assert_eq!(printed.get(..expected.len()), Some(expected), "{printed}");
}
