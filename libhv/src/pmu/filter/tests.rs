//! Compiled filters against lists that are walked.

use super::*;
use crate::hw::pmu::GlobalSwitch;
use crate::pmu::PmuShare;
use crate::pmu::capability::processors::INTEL;
use crate::pmu::view::{ARCHITECTURAL, PmuView};
use proptest::prelude::*;
use std::vec;
use std::vec::Vec;

fn named(entry: &MaskedEvent, event: u16, unit_mask: u8) -> bool {
    entry.event == event && unit_mask & entry.mask == entry.unit_mask
}

/// Whether a list that is walked permits an event.
fn permitted(allows: bool, list: &[MaskedEvent], event: u16, unit_mask: u8) -> bool {
    let mut names = list.iter().filter(|entry| named(entry, event, unit_mask));
    let excepted = names.clone().any(|entry| entry.except);
    (names.any(|entry| !entry.except) && !excepted) == allows
}

/// Entries of few numbers, so that they meet.
fn any_entry() -> impl Strategy<Value = MaskedEvent> {
    let event = prop_oneof![0xC0u16..0xC4, 0x1C0u16..0x1C3, Just(0xFFF), 0u16..0x1000];
    (event, any::<u8>(), prop_oneof![Just(0xFF), Just(0), any::<u8>()], any::<bool>())
        .prop_map(|(event, unit_mask, mask, except)| MaskedEvent { event, unit_mask: unit_mask & mask, mask, except })
}

fn any_list() -> impl Strategy<Value = Vec<MaskedEvent>> {
    let some = |count: std::ops::Range<usize>| prop::collection::vec(any_entry(), count);
    prop_oneof![some(0..8), some(100..151)]
}

fn selector(event: u16, unit_mask: u8) -> EventSelector {
    let event = u64::from(event);
    EventSelector(event & 0xFF | u64::from(unit_mask) << 8 | (event & 0xF00) << 24 | 1 << 22)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Requirement A14, and the ABI of KVM's masked events: an event counts as listed when an entry names it and no
    /// exception does, in whatever order they stand.
    #[test]
    fn a_compiled_filter_permits_what_its_lists_do(
        allows: bool, list in any_list(), amd in prop::option::of(any_list()), fixed: u8,
        events in prop::collection::vec((0u16..0x1000, any::<u8>()), 64)
    ) {
        let filter = if allows { EventFilter::allow(&list) } else { EventFilter::deny(&list) }.fixed(fixed);
        let filter = match &amd {
            Some(amd) => filter.on_amd(amd),
            None => filter,
        };
        let compiled = filter.compile().expect("a legal filter");
        let listed = list.iter().chain(amd.iter().flatten());
        let near = listed.flat_map(|entry| [0, 1, !entry.mask].map(|flip| (entry.event, entry.unit_mask ^ flip)));
        for (event, unit_mask) in near.chain(events) {
            let selector = selector(event, unit_mask);
            let expected = permitted(allows, amd.as_ref().unwrap_or(&list), event, unit_mask);
            prop_assert_eq!(compiled.permits(selector, Maker::Amd), expected, "{:#x} {:#x}", event, unit_mask);
            // The upper bits of an event's number are no part of it on Intel's processors.
            let expected = permitted(allows, &list, event & 0xFF, unit_mask);
            prop_assert_eq!(compiled.permits(selector, Maker::Intel), expected, "{:#x} {:#x}", event, unit_mask);
        }
        for counter in 0..=u8::MAX {
            prop_assert_eq!(compiled.permits_fixed(counter), counter < 8 && (fixed >> counter & 1 != 0) == allows);
        }
    }
}

#[test]
fn each_thing_wrong_with_a_filter_has_its_own_error() {
    let many = vec![MaskedEvent::any(1); MAX_ENTRIES + 1];
    let (most, one) = (&many[1..], &many[..1]);
    assert_eq!(EventFilter::allow(&many).compile(), Err(FilterError::TooManyEntries(301)));
    assert_eq!(EventFilter::deny(most).on_amd(one).compile(), Err(FilterError::TooManyEntries(301)));
    assert!(EventFilter::allow(most).compile().is_ok());
    let beyond = MaskedEvent::any(0x1000);
    assert_eq!(EventFilter::allow(&[beyond]).compile(), Err(FilterError::NoSuchEvent(beyond)));
    let careless = MaskedEvent::masked(0xC0, 3, 1).excepted();
    assert_eq!(EventFilter::deny(&[]).on_amd(&[careless]).compile(), Err(FilterError::UnitMaskBeyondMask(careless)));
}

#[test]
fn as_many_events_as_entries_have_a_set_each() {
    let list: Vec<_> = (0..300).map(|n| MaskedEvent::exact(n, n as u8)).collect();
    let compiled = EventFilter::allow(&list).compile().expect("300 entries");
    for n in 0..300 {
        assert!(
            compiled.permits(selector(n, n as u8), Maker::Amd) && !compiled.permits(selector(n, !n as u8), Maker::Amd)
        );
    }
}

#[test]
fn the_architectural_filter_permits_what_cpuid_speaks_of_and_nothing_else() {
    let compiled = EventFilter::ARCHITECTURAL.compile().expect("legal");
    for event in 0..0x100 {
        for unit_mask in 0..=0xFF {
            let selector = selector(event, unit_mask);
            let architectural = ARCHITECTURAL.iter().any(|one| one.0 == selector.0 & 0xFFFF);
            assert_eq!(compiled.permits(selector, Maker::Intel), architectural, "{event:#x} {unit_mask:#x}");
        }
    }
    assert!(!compiled.permits(selector(0x1C0, 0), Maker::Amd) && compiled.permits(selector(0xC2, 0), Maker::Amd));
    assert_eq!((0..=u8::MAX).filter(|n| compiled.permits_fixed(*n)).collect::<Vec<_>>(), [0, 1, 2, 3]);
}

struct Everything;
impl ConstFilter for Everything {
    const FILTER: EventFilter<'static> = EventFilter::ALLOW_ALL;
}
struct NoOffCore;
impl ConstFilter for NoOffCore {
    const FILTER: EventFilter<'static> = EventFilter::NO_OFF_CORE;
}

/// Requirement 1.4.3.
#[test]
fn a_filter_that_allows_everything_is_no_filter() {
    const { assert!(!FilteredBy::<Everything>::FILTERS && FilteredBy::<NoOffCore>::FILTERS) };
    for denying in [EventFilter::allow(&[]), EventFilter::deny(&[]).fixed(1), EventFilter::NO_OFF_CORE] {
        assert!(!denying.allows_all());
    }
    assert!(!EventFilter::deny(&[]).on_amd(&[MaskedEvent::any(1)]).allows_all());
}

/// What a filter known to the compiler decides, the same filter compiled at run time decides; and CPUID hides the
/// architectural events that it denies.
#[test]
fn the_policies_agree_and_cpuid_shows_what_they_deny() {
    struct NoBranches;
    impl ConstFilter for NoBranches {
        const FILTER: EventFilter<'static> =
            EventFilter::deny(&[MaskedEvent::any(0xC4), MaskedEvent::any(0x2E)]).fixed(2);
    }
    let (built, run) = (FilteredBy::<NoBranches>::new(), Filtered::new(&NoBranches::FILTER).expect("legal"));
    for event in 0..0x100 {
        let selector = selector(event, 0x41);
        assert_eq!(built.permits(selector, &INTEL), run.permits(selector, &INTEL));
        assert_eq!(built.permits(selector, &INTEL), event != 0xC4 && event != 0x2E);
    }
    assert!(built.permits_fixed(0, FixedControl(0xB)) && !built.permits_fixed(1, FixedControl(0xB)));
    let view = PmuView::new(&INTEL, &PmuShare::all(&INTEL), Means::Passed, GlobalSwitch::Hardware).expect("a PMU");
    let view = view.filtered_by(|selector| built.permits(selector, &INTEL));
    assert_eq!(view.cpuid_leaf_0a()[1], 1 << 3 | 1 << 4 | 1 << 5, "LLC references, LLC misses, branches");
}
