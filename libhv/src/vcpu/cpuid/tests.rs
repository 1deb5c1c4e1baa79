//! Tests of the guest's CPUID against a list of what it may show that was written apart from the allow-list.

use super::*;
use crate::sim::Vendor;
use proptest::prelude::*;

const GHZ: u64 = 1_000_000_000;

/// A processor whose leaves are `words` stirred with leaf and subleaf, or all ones.
struct Host {
    amd: bool,
    seed: Option<u64>,
}

impl CpuidSource for Host {
    fn cpuid(&self, leaf: u32, subleaf: u32) -> Leaf {
        let name: &[u8; 12] = if self.amd { b"AuthcAMDenti" } else { b"GenuntelineI" };
        let word = |index: usize| u32::from_le_bytes([0, 1, 2, 3].map(|byte| name[index * 4 + byte]));
        let vendor = [word(0), word(1), word(2)];
        match (leaf, self.seed) {
            (0, _) => [0x20, vendor[0], vendor[1], vendor[2]],
            (0x8000_0000, _) => [0x8000_0028, vendor[0], vendor[1], vendor[2]],
            (_, None) => [u32::MAX; 4],
            (_, Some(seed)) => [1u64, 2, 3, 4].map(|register| {
                let mixed = (seed ^ u64::from(leaf) << 20 ^ u64::from(subleaf) << 3 ^ register << 60)
                    .wrapping_mul(0x9E37_79B9_7F4A_7C15);
                (mixed ^ mixed >> 29).wrapping_mul(0xBF58_476D_1CE4_E5B9) as u32 >> 3 ^ (mixed >> 32) as u32
            }),
        }
    }
}

/// A small processor with AVX-512, AMX and XSAVES whose areas lie as on Intel's (SDM Vol. 1 13.5).
struct Xeon;

impl CpuidSource for Xeon {
    fn cpuid(&self, leaf: u32, subleaf: u32) -> Leaf {
        match (leaf, subleaf) {
            (0xD, 0) => [0x602E7, 0x2B00, 0x2B00, 0],
            (0xD, 1) => [0x1F, 0x2B00, 0x1900, 0],
            (0xD, 2) => [0x100, 0x240, 0, 0],
            (0xD, 5) => [0x40, 0x440, 0, 0],
            (0xD, 6) => [0x200, 0x480, 0, 0],
            (0xD, 7) => [0x400, 0x680, 0, 0],
            (0xD, 9) => [8, 0xA80, 0, 0],
            (0xD, 11) => [0x10, 0, 1, 0],
            (0xD, 17) => [0x40, 0xAC0, 2, 0],
            (0xD, 18) => [0x2000, 0xB00, 6, 0],
            (0xD, _) => [0; 4],
            _ => Host { amd: false, seed: None }.cpuid(leaf, subleaf),
        }
    }
}

fn settings(processors: u32) -> Settings {
    Settings::new(processors, Frequency::from_hz(3 * GHZ))
}

fn everything(processors: u32) -> Settings {
    Settings {
        rdtscp: true,
        invpcid: true,
        xsaves: true,
        xss: u64::MAX,
        xfd: true,
        speculation_control: true,
        arch_capabilities: true,
        ..settings(processors)
    }
}

fn quiet() -> Dynamic {
    Dynamic::default()
}

/// What any guest may see of each feature word, with everything permitted: EAX to EDX.
fn permitted(amd: bool, leaf: u32, subleaf: u32) -> Option<Leaf> {
    let sizes = u32::MAX;
    Some(match (leaf, subleaf) {
        (0x1, _) => [0x0FFF_3FFF, u32::MAX, 0xF7FA_3203, 0x0F8B_FBFF],
        (0x3 | 0x5 | 0x8..=0xA | 0xC | 0xE..=0x14 | 0x17..=0x1C, _) => [0; 4],
        (0x2, _) if amd => [0; 4],
        (0x6, _) => [4, 0, 0, 0],
        (0x7, 0) => [2, 0xF1BF_27EB, 0x1A40_5F4E, 0xAFC0_4510],
        (0x7, 1) => [0x00A0_1CB7, 0, 0, 0x4530],
        (0x7, 2) => [0, 0, 0, 0x20],
        (0x7, _) => [0; 4],
        (0xD, 0) => [0x602E7, sizes, sizes, 0],
        (0xD, 1) => [0x1F, sizes, 0xF_FD18, 0],
        (0xD, 19..) => [sizes, sizes, 7, 0],
        (0x15 | 0x16, _) if amd => [0; 4],
        (0x8000_0001, _) if amd => [0x0FFF_3FFF, 0xF000_FFFF, 0x0040_01E1, 0x2FD3_FBFF],
        (0x8000_0001, _) => [0, 0, 0x0040_01E1, 0x2FD3_FBFF],
        (0x8000_0007, _) => [0, 0, 0, 1 << 8],
        (0x8000_0008, _) => [0x3FFF, 0x251C_D005, 0xF0FF, 0],
        (0x8000_0009..=0x8000_0018 | 0x8000_001B | 0x8000_001C | 0x8000_001F | 0x8000_0020, _) if amd => [0; 4],
        (0x8000_001A, _) if amd => [7, 0, 0, 0],
        (0x8000_0021, _) if amd => [0x2000_0C45, 0, 0, 0],
        (0x8000_0022..=0x8000_00FF | 0x4000_0011..=0x4000_00FF | 0xC000_0000.., _) if amd => [0; 4],
        (0x4000_0001..=0x4000_000F, _) => [0; 4],
        _ => return None,
    })
}

fn nothing_shows_beyond_the_list(host: &Host, settings: &Settings) -> Result<(), TestCaseError> {
    let table = CpuidTable::new(host, settings);
    let leaves = (0..0x28).chain(0x4000_0000..0x4000_0018).chain(0x8000_0000..0x8000_0030).chain([0xC000_0001, !0]);
    for leaf in leaves {
        for subleaf in 0..34 {
            let Some(permitted) = permitted(host.amd, leaf, subleaf) else { continue };
            let seen = table.lookup(leaf, subleaf, quiet);
            let forced = match leaf {
                1 => [0, 0, 0x8120_0000, 0x200],
                _ => [0; 4],
            };
            for register in 0..4 {
                let beyond = seen[register] & !(permitted[register] | forced[register]);
                prop_assert_eq!(beyond, 0, "leaf {:#x}.{} register {}: {:x?}", leaf, subleaf, register, seen);
            }
        }
    }
    Ok(())
}

#[test]
fn a_processor_with_every_bit_set_shows_what_the_list_permits_and_all_of_it() {
    for amd in [false, true] {
        let host = Host { amd, seed: None };
        nothing_shows_beyond_the_list(&host, &everything(1)).expect("the list holds");
        let table = CpuidTable::new(&host, &everything(1));
        for (leaf, subleaf, register) in [(1, 0, 2), (1, 0, 3), (7, 0, 1), (7, 0, 2), (7, 0, 3), (7, 1, 0), (7, 1, 3)] {
            let permitted = permitted(amd, leaf, subleaf).expect("a feature word")[register];
            assert_eq!(table.lookup(leaf, subleaf, quiet)[register] & permitted, permitted, "{leaf:#x}.{subleaf}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn nothing_beyond_the_list_shows_whatever_the_host_has(seed: u64, amd: bool, rdtscp: bool, xsaves: bool, xfd: bool) {
        let settings = Settings { rdtscp, xsaves, xfd, ..everything(1) };
        nothing_shows_beyond_the_list(&Host { amd, seed: Some(seed) }, &settings)?;
    }

    #[test]
    fn no_leaf_and_no_number_of_processors_is_a_panic(
        seed: u64, amd: bool, leaf: u32, subleaf: u32, processors: u32, hz: u64, xcr0: u64, xss: u64, apic_id: u32,
    ) {
        let settings = Settings { tsc: Frequency::from_hz(hz), ..everything(processors) };
        let table = CpuidTable::new(&Host { amd, seed: Some(seed) }, &settings);
        let dynamic = || Dynamic { cr4: seed, xcr0, xss, apic_id };
        for leaf in [leaf, leaf & 0x3F, leaf & 0x8000_003F, leaf & 0x4000_001F, 0xD] {
            let _ = table.lookup(leaf, subleaf, dynamic);
            let _ = table.lookup(leaf, subleaf & 31, dynamic);
        }
    }

    /// 1 in 3000 is what NTP can no longer correct.
    #[test]
    fn leaf_15h_tells_the_frequency_of_the_tsc_and_its_product_fits_in_32_bits(hz in 10_000_000u64..4_290_000_000) {
        let table = CpuidTable::new(&Host { amd: false, seed: Some(1) }, &Settings::new(1, Frequency::from_hz(hz)));
        let [denominator, numerator, crystal, _] = table.lookup(0x15, 0, quiet);
        prop_assert!((crystal / 1000).checked_mul(numerator).is_some());
        let told = u128::from(crystal) * u128::from(numerator) / u128::from(denominator);
        prop_assert!(told.abs_diff(hz.into()) * 3000 < hz.into(), "{told}");
    }
}

#[test]
fn what_the_backend_does_not_switch_or_enable_stays_hidden() {
    for amd in [false, true] {
        let table = CpuidTable::new(&Host { amd, seed: None }, &settings(1));
        let hidden = [
            Feature::RDTSCP,
            Feature::RDPID,
            Feature::INVPCID,
            Feature::XSAVES,
            Feature::XFD,
            Feature::AMX_TILE,
            Feature::AMX_BF16,
            Feature::IBRS_IBPB,
            Feature::STIBP,
            Feature::SSBD,
            Feature::AMD_IBPB,
            Feature::AMD_SSBD,
            Feature::ARCH_CAPABILITIES,
            Feature::HTT,
        ];
        for feature in hidden {
            assert!(!table.offers(feature), "{feature:?}");
        }
        assert_eq!(table.xcr0() & xstate::AMX, 0);
        assert_eq!(table.lookup(0xD, 18, quiet), [0; 4]);
    }
}

#[test]
fn osxsave_and_ospke_follow_cr4_and_the_apic_identifier_its_processor() {
    let table = CpuidTable::new(&Host { amd: false, seed: None }, &settings(4));
    for (cr4, osxsave, ospke) in [(0, 0, 0), (1 << 18, 1, 0), (1 << 22, 0, 1)] {
        let dynamic = || Dynamic { cr4, apic_id: 3, ..quiet() };
        let [_, ebx, ecx, edx] = table.lookup(1, 0, dynamic);
        assert_eq!((ebx >> 24, ebx >> 16 & 0xFF, ecx >> 27 & 1, edx >> 28 & 1), (3, 4, osxsave, 1));
        assert_eq!(table.lookup(7, 0, dynamic)[2] >> 4 & 1, ospke);
        assert_eq!(table.lookup(0xB, 1, dynamic), [2, 4, 0x201, 3]);
        assert_eq!(table.lookup(0xB, 0, dynamic), [0, 1, 0x100, 3]);
        assert_eq!(table.lookup(0xB, 2, dynamic), [0, 0, 2, 3]);
    }
}

#[test]
fn sizes_of_the_xsave_area_follow_xcr0_and_xss() {
    let table = CpuidTable::new(&Xeon, &everything(1));
    let sizes = |xcr0, xss| {
        let dynamic = || Dynamic { xcr0, xss, ..quiet() };
        (table.lookup(0xD, 0, dynamic)[1], table.lookup(0xD, 1, dynamic)[1])
    };
    assert_eq!(table.xcr0(), 0x602E7);
    assert_eq!(table.xss(), 0x1900);
    assert_eq!(sizes(0b1, 0), (576, 576));
    assert_eq!(sizes(0b111, 0), (0x340, 0x340));
    assert_eq!(sizes(0x207, 0), (0xA88, 0x348));
    // TILECFG starts at a multiple of 64 in the compacted format: 240H + 100H + 8, then 380H.
    assert_eq!(sizes(0x20207, 0), (0xB00, 0x3C0));
    assert_eq!(sizes(0b111, 0x800), (0x340, 0x350));
    assert_eq!(sizes(0x602E7, 0), (0x2B00, 0x2A00));
    assert_eq!(table.lookup(0xD, 0, quiet)[2], 0x2B00);
    assert_eq!(table.lookup(0xD, 11, quiet), [0x10, 0, 1, 0]);
}

#[test]
fn a_component_without_its_companions_is_not_offered() {
    for (permitted, offered) in [(!0, 0x2E7), (!0x40, 0x207), (!0x4, 0x203), (!0x2, 0), (!0x200, 0xE7), (0x1F, 0x7)] {
        let table = CpuidTable::new(&Xeon, &Settings { xcr0: permitted, ..settings(1) });
        assert_eq!(table.xcr0(), offered, "{permitted:#x}");
        assert_eq!(table.offers(Feature::AVX2), offered & 4 != 0);
        assert_eq!(table.offers(Feature::AVX512BW), offered & 0xE0 == 0xE0);
        assert_eq!(table.offers(Feature::PKU), offered & 0x200 != 0);
        assert_eq!(table.offers(Feature::XSAVE), offered != 0);
    }
}

#[test]
fn leaves_out_of_range_are_answered_as_the_vendor_s_processors_do() {
    let intel = CpuidTable::new(&Host { amd: false, seed: Some(7) }, &settings(2));
    let amd = CpuidTable::new(&Host { amd: true, seed: Some(7) }, &settings(2));
    for leaf in [0x20, 0x3FFF_FFFF, 0x4000_0011, 0x7FFF_FFFF, 0x8000_0022, 0xC000_0000, u32::MAX] {
        assert_eq!(intel.lookup(leaf, 1, quiet), intel.lookup(0x1F, 1, quiet), "{leaf:#x}");
        assert_eq!(amd.lookup(leaf, 1, quiet), [0; 4], "{leaf:#x}");
    }
    assert_eq!(intel.lookup(0, 0, quiet)[0], 0x1F);
    assert_eq!(intel.lookup(0x8000_0009, 1, quiet), intel.lookup(0x1F, 1, quiet));
}

#[test]
fn a_pillar_can_show_hide_and_replace_what_is_a_plain_value() {
    let mut table = CpuidTable::new(&Host { amd: false, seed: None }, &settings(1));
    let pdcm = Feature { leaf: 1, subleaf: 0, register: Register::Ecx, bit: 15 };
    table.offer(pdcm);
    table.withdraw(Feature::AES);
    assert_eq!(table.lookup(1, 0, quiet)[2] & (1 << 15 | 1 << 25), 1 << 15);
    assert!(table.replace(0xA, [0x0730_0402, 0, 0, 0x603]));
    assert_eq!(table.lookup(0xA, 0, quiet), [0x0730_0402, 0, 0, 0x603]);
    assert!(!table.replace(0, [0xFF; 4]) && !table.replace(7, [0; 4]) && !table.replace(0x20, [0; 4]));
}

#[test]
fn caches_are_shared_as_the_guest_s_processors_are_arranged() {
    let table = CpuidTable::new(&Host { amd: false, seed: None }, &settings(6));
    let [eax, ..] = table.lookup(4, 0, quiet);
    assert_eq!((eax >> 26, eax >> 14 & 0xFFF, eax & 0x1F), (7, 7, 31));
    assert_eq!(table.lookup(4, 8, quiet), [0; 4]);
}

#[test]
fn the_hypervisor_says_its_name_and_its_clocks() {
    let table = CpuidTable::new(&Host { amd: true, seed: Some(3) }, &settings(1));
    let [max, name @ ..] = table.lookup(0x4000_0000, 0, quiet);
    assert_eq!(max, 0x4000_0010);
    assert_eq!(name.map(u32::to_le_bytes).as_flattened(), b"LibhvLibhv  ");
    assert_eq!(table.lookup(max, 0, quiet), [3_000_000, 1_000_000, 0, 0]);
}

#[test]
fn paravirtual_events_are_announced_by_the_signatures_maximum_and_nothing_without_them() {
    for amd in [false, true] {
        let mut table = CpuidTable::new(&Host { amd, seed: Some(1) }, &everything(1));
        assert_eq!(table.lookup(0x4000_0000, 0, Dynamic::default)[0], 0x4000_0010);
        let highest = table.lookup(0x20, 0, Dynamic::default);
        assert_eq!(table.lookup(0x4000_0011, 0, Dynamic::default), highest, "a leaf out of range");
        table.announce_events([1, 16, 5, 0]);
        assert_eq!(table.lookup(0x4000_0000, 0, Dynamic::default)[0], 0x4000_0011);
        assert_eq!(table.lookup(0x4000_0011, 7, Dynamic::default), [1, 16, 5, 0]);
        assert_eq!(table.lookup(0x4000_0012, 0, Dynamic::default), highest, "a leaf out of range");
    }
}

/// SDM Vol. 2A "CPUID": below 20H too, where leaves that are always the same are found by one look.
#[test]
fn beyond_the_last_leaf_the_last_one_answers_or_none() {
    let table = |vendor: Vendor| CpuidTable::new(&vendor, &settings(1));
    let (intel, amd) = (table(Vendor::Intel), table(Vendor::Amd));
    for leaf in [0x17, 0x18, 0x1F, 0x20] {
        assert_eq!(intel.lookup(leaf, 0, Dynamic::default), intel.basic[0x16], "{leaf:#x}");
        assert_eq!(amd.lookup(leaf, 0, Dynamic::default), [0; 4], "{leaf:#x}");
        assert_eq!((intel.constant(leaf), amd.constant(leaf)), (None, None));
    }
    assert_ne!(intel.basic[0x16], [0; 4]);
}
