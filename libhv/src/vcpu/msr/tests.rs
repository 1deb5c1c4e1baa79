//! Tests of the guest's MSRs against tables written from the manuals.

use super::super::cpuid::{CpuidSource, Leaf, Settings};
use super::*;
use alloc::vec::Vec;
use proptest::prelude::*;

/// A processor with every feature.
struct Host {
    amd: bool,
}

impl CpuidSource for Host {
    fn cpuid(&self, leaf: u32, _subleaf: u32) -> Leaf {
        let vendor: Leaf = if self.amd {
            [0x20, 0x6874_7541, 0x444D_4163, 0x6974_6E65]
        } else {
            [0x20, 0x756E_6547, 0x6C65_746E, 0x4965_6E69]
        };
        match leaf {
            0 => vendor,
            0x8000_0000 => [0x8000_0021, 0, 0, 0],
            0x8000_0008 => [0x3028, u32::MAX, 0, 0],
            _ => [u32::MAX; 4],
        }
    }
}

fn cpuid(amd: bool, all: bool) -> CpuidTable {
    let basic = Settings::new(1, Frequency::from_hz(2_500_000_000));
    let all = Settings {
        rdtscp: all,
        xsaves: all,
        xss: 0x1800,
        xfd: all,
        speculation_control: all,
        arch_capabilities: all,
        ..basic
    };
    CpuidTable::new(&Host { amd }, &all)
}

fn msrs(amd: bool, all: bool) -> Msrs {
    let settings =
        MsrSettings { tsc: Frequency::from_hz(2_500_000_000), microcode: 0xD0DE, arch_capabilities: u64::MAX };
    Msrs::new(&cpuid(amd, all), &settings)
}

fn context() -> MsrContext {
    MsrContext { cr0: 0, efer: 0, now: Tsc(1000) }
}

fn read(msrs: &Msrs, msr: u32) -> MsrRead {
    msrs.read(Msr(msr), context)
}

fn write(msrs: &mut Msrs, msr: u32, value: u64) -> MsrWrite {
    msrs.write(Msr(msr), value, context)
}

/// Every MSR that exists, as ranges: for all processors, Intel's, AMD's, and those that settings bring.
const EXISTING: [&[(u32, u32)]; 4] = [
    &[
        (0x10, 0x10),
        (0x1B, 0x1B),
        (0x3B, 0x3B),
        (0x8B, 0x8B),
        (0xFE, 0xFE),
        (0x174, 0x176),
        (0x179, 0x17A),
        (0x1D9, 0x1D9),
        (0x200, 0x20F),
        (0x250, 0x250),
        (0x258, 0x259),
        (0x268, 0x26F),
        (0x277, 0x277),
        (0x2FF, 0x2FF),
        (0x6E0, 0x6E0),
        (0x800, 0x8FF),
        (0xC000_0080, 0xC000_0084),
        (0xC000_0100, 0xC000_0102),
    ],
    &[(0x17, 0x17), (0xCE, 0xCE), (0x1A0, 0x1A0)],
    &[
        (0xC001_0010, 0xC001_0010),
        (0xC001_0015, 0xC001_0015),
        (0xC001_001F, 0xC001_001F),
        (0xC001_0055, 0xC001_0055),
        (0xC001_1029, 0xC001_1029),
    ],
    &[(0x48, 0x48), (0x10A, 0x10A), (0x1C4, 0x1C5), (0xDA0, 0xDA0), (0xC000_0103, 0xC000_0103)],
];

#[test]
fn what_exists_can_be_read_and_nothing_else() {
    for (amd, all) in [(false, false), (false, true), (true, false), (true, true)] {
        let msrs = msrs(amd, all);
        let tables = [Some(EXISTING[0]), Some(EXISTING[if amd { 2 } else { 1 }]), all.then_some(EXISTING[3])];
        let exists =
            |msr: u32| tables.iter().flatten().any(|table| table.iter().any(|(a, b)| (*a..=*b).contains(&msr)));
        for msr in (0..0x2000).chain(0xC000_0000..0xC000_2000).chain(0xC001_0000..0xC001_2000).chain([!0, 0x4B56_4D00])
        {
            assert_eq!(read(&msrs, msr) != MsrRead::Fault, exists(msr), "{msr:#x}, AMD {amd}, all {all}");
        }
    }
}

#[test]
fn what_cannot_be_read_cannot_be_written_but_for_the_prediction_command() {
    for (amd, all) in [(false, false), (false, true), (true, false), (true, true)] {
        let fresh = msrs(amd, all);
        for msr in (0..0x2000).chain(0xC000_0000..0xC000_2000).chain(0xC001_0000..0xC001_2000) {
            if read(&fresh, msr) == MsrRead::Fault && !(all && msr == 0x49) {
                let mut msrs = fresh.clone();
                for value in [0, 1, u64::MAX] {
                    assert_eq!(write(&mut msrs, msr, value), MsrWrite::Fault, "{msr:#x}");
                }
                assert!(msrs == fresh);
            }
        }
        assert_eq!(write(&mut msrs(amd, all), 0x49, 1), if all { MsrWrite::Switched(1) } else { MsrWrite::Fault });
    }
}

#[test]
fn registers_that_only_tell_refuse_to_be_written_and_tell_what_the_guest_has() {
    let intel = [(0xFE, 0x508), (0x17, 0), (0xCE, 25 << 8), (0x179, 0), (0x10A, 0x0D1A_E17F)];
    for (msr, value) in intel {
        let mut msrs = msrs(false, true);
        assert_eq!(read(&msrs, msr), MsrRead::Value(value), "{msr:#x}");
        assert_eq!(write(&mut msrs, msr, value), MsrWrite::Fault, "{msr:#x}");
    }
    assert_eq!(read(&msrs(false, false), 0x8B), MsrRead::Value(0xD0DE << 32));
    assert_eq!(read(&msrs(true, false), 0x8B), MsrRead::Value(0xD0DE));
    assert_eq!(read(&msrs(false, false), 0x1A0), MsrRead::Value(0x1801));
    assert_eq!(read(&msrs(true, false), 0xC001_0015), MsrRead::Value(1 << 24));
    assert_eq!(read(&msrs(true, false), 0xC001_1029), MsrRead::Value(2));
}

#[test]
fn harmless_writes_that_systems_make_are_taken_and_others_refused() {
    let taken: [(bool, u32, u64); 9] = [
        (false, 0x8B, 0),
        (false, 0x17A, 0),
        (false, 0x1A0, 0x1800),
        (false, 0x1A0, 0x1801),
        (true, 0xC001_0015, 1 << 24 | 1 << 6),
        (true, 0xC001_1029, 2),
        (true, 0xC001_0010, 0),
        (true, 0xC001_0055, 0),
        (false, 0xDA0, 0x1800),
    ];
    for (amd, msr, value) in taken {
        assert_eq!(write(&mut msrs(amd, true), msr, value), MsrWrite::Done, "{msr:#x}");
    }
    let refused: [(bool, u32, u64); 9] = [
        (false, 0x8B, 1),
        (true, 0x8B, 0),
        (false, 0x17A, 1),
        (false, 0x1A0, 1 << 34),
        (true, 0xC001_0015, 1 << 30),
        (true, 0xC001_1029, 0),
        (true, 0xC001_0010, 1 << 21),
        (false, 0xDA0, 0x100),
        (true, 0x1A0, 0),
    ];
    for (amd, msr, value) in refused {
        assert_eq!(write(&mut msrs(amd, true), msr, value), MsrWrite::Fault, "{msr:#x}");
    }
}

#[test]
fn misc_enable_keeps_what_it_was_given() {
    let mut msrs = msrs(false, false);
    assert_eq!(write(&mut msrs, 0x1A0, 0), MsrWrite::Done);
    assert_eq!(read(&msrs, 0x1A0), MsrRead::Value(0x1800));
}

fn canonical_or_not() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        0..1u64 << 48,
        0xFFFF_0000_0000_0000..=u64::MAX,
        Just(0x0000_8000_0000_0000),
        Just(0x0000_7FFF_FFFF_FFFF),
        Just(0xFFFF_8000_0000_0000),
        Just(0xFFFF_7FFF_FFFF_FFFF),
    ]
}

proptest! {
    #[test]
    fn addresses_have_to_be_canonical(
        msr in prop::sample::select(alloc::vec![0x175u32, 0x176, 0xC000_0082, 0xC000_0083, 0xC000_0100, 0xC000_0101, 0xC000_0102]),
        value in canonical_or_not(),
    ) {
        let canonical = value <= 0x0000_7FFF_FFFF_FFFF || value >= 0xFFFF_8000_0000_0000;
        let expected = if canonical { MsrWrite::Switched(value) } else { MsrWrite::Fault };
        prop_assert_eq!(write(&mut msrs(false, false), msr, value), expected);
    }

    #[test]
    fn every_byte_of_the_pat_is_a_memory_type(types in proptest::array::uniform8(0u8..10)) {
        let legal = types.iter().all(|one| [0, 1, 4, 5, 6, 7].contains(one));
        let value = u64::from_le_bytes(types);
        prop_assert_eq!(write(&mut msrs(true, false), 0x277, value), if legal { MsrWrite::Switched(value) } else { MsrWrite::Fault });
    }

    #[test]
    fn registers_of_a_few_bits_refuse_the_others(bit in 0u32..64) {
        let intel = [
            (0x48u32, &[0u32, 1, 2] as &[u32]), (0x49, &[0]), (0x1C4, &[18]), (0x1C5, &[18]), (0x1D9, &[1]),
        ];
        for (msr, bits) in intel {
            let expected = if bits.contains(&bit) { MsrWrite::Switched(1 << bit) } else { MsrWrite::Fault };
            prop_assert_eq!(write(&mut msrs(false, true), msr, 1 << bit), expected, "{:#x}", msr);
        }
        for msr in [0xC000_0084, 0xC000_0103] {
            let expected = if bit < 32 { MsrWrite::Switched(1 << bit) } else { MsrWrite::Fault };
            prop_assert_eq!(write(&mut msrs(true, true), msr, 1 << bit), expected, "{:#x}", msr);
        }
    }

    #[test]
    fn efer_takes_what_exists_keeps_lma_and_changes_lme_only_without_paging(
        amd: bool, value in prop_oneof![any::<u64>(), any::<u64>().prop_map(|word| word & 0x5D01)],
        efer in any::<u64>().prop_map(|word| word & 0xD01), paging: bool,
    ) {
        let context = || MsrContext { cr0: if paging { 1 << 31 } else { 0 }, efer, now: Tsc(0) };
        let existing: Vec<u32> = alloc::vec![0, 8, 10, 11, 14];
        let reserved = (0..64).any(|bit| value >> bit & 1 != 0 && !existing.contains(&bit));
        let lme_changes = value >> 8 & 1 != efer >> 8 & 1;
        let expected = if reserved || paging && lme_changes {
            MsrWrite::Fault
        } else {
            MsrWrite::Efer(value & 0x4901 | efer & 0x400)
        };
        prop_assert_eq!(msrs(amd, false).write(Msr(0xC000_0080), value, context), expected);
        prop_assert_eq!(msrs(amd, false).read(Msr(0xC000_0080), context), MsrRead::Value(efer));
    }

    /// The model keeps the two registers and no offset: SDM Vol. 3B 19.17.3.
    #[test]
    fn tsc_and_tsc_adjust_move_together(writes in proptest::collection::vec((any::<bool>(), any::<u64>(), any::<u32>()), 1..8)) {
        let mut msrs = msrs(false, false);
        let (mut now, mut tsc, mut adjust) = (0u64, 0u64, 0u64);
        for (to_tsc, value, passed) in writes {
            now += u64::from(passed);
            tsc = tsc.wrapping_add(passed.into());
            let context = || MsrContext { now: Tsc(now), ..MsrContext::default() };
            let (msr, moved) = if to_tsc { (0x10, value.wrapping_sub(tsc)) } else { (0x3B, value.wrapping_sub(adjust)) };
            tsc = tsc.wrapping_add(moved);
            adjust = adjust.wrapping_add(moved);
            let wrote = msrs.write(Msr(msr), value, context);
            prop_assert_eq!(wrote, MsrWrite::TscOffset(tsc.wrapping_sub(now)));
            prop_assert_eq!(msrs.read(Msr(0x10), context), MsrRead::Value(tsc));
            prop_assert_eq!(msrs.read(Msr(0x3B), context), MsrRead::Value(adjust));
        }
    }
}
